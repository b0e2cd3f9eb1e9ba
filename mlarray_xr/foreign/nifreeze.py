"""nifreeze's HDF5 files: an image series with affine, gradients or frame times, and a brain mask.

Known are its formats ``NFDH5`` (any series, diffusion) and ``EMC/PET``, version 1 and 2, as
``BaseDataset.to_filename`` and ``PET.to_filename`` of github.com/nipreps/nifreeze write them (main
ce48c64; version 2: pull request 461). Everything is in the group ``/0``: ``dataobj`` in the order
x, y, z, volume, or volume first where its attribute ``volume_axis`` is 0, as it is in version 2.
``gradients`` are b-vectors in FSL's convention and b-values.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.errors import ConversionError, MlaWarning
from mlarray_xr.foreign.hdf5_file import attributes, check_storage, resolved
from mlarray_xr.foreign.nifti_series import BVECS
from mlarray_xr.foreign.positions import MAX_POSITIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Json

__all__ = [
    "SERIES",
    "companion_datasets",
    "is_nifreeze",
    "nifreeze_affine",
    "nifreeze_coords",
    "nifreeze_dims",
    "nifreeze_source",
]

SERIES = ("0", "dataobj")
"""Where the series is."""

_FORMATS = ("NFDH5", "EMC/PET")
_VERSIONS = (1, 2)
_COMPANIONS = {"mask": "brainmask", "bzero": "bzero"}
_OWN_PLACE = {"brainmask", "bzero", "dataobj", "gradients", "midframe"}
"""Members that become arrays or coordinates; every other one is metadata."""

_SOURCE_ATTRS = ("Format", "Type", "Version")
_MOST_MEMBERS = 64
_MOST_NUMBERS = 1 << 18
"""Of all members that become metadata: 16 for each volume of a series are far fewer."""


def is_nifreeze(file: Any) -> bool:
    """Tell the files of nifreeze whose layout is known."""
    attrs = file.attrs
    try:
        return attrs.get("Format") in _FORMATS and int(attrs.get("Version", 0)) in _VERSIONS
    except (OverflowError, TypeError, ValueError):
        return False


def nifreeze_affine(file: Any, found: Any) -> NDArray[np.float64] | None:
    """Return the affine of a volume or series: index along its spatial axes to RAS+, mm.

    None for what is neither.

    Raises
    ------
    ConversionError
        When the file has no affine, or a broken one.
    """
    if not is_nifreeze(file) or not found.name.startswith("/0/") or found.ndim not in (3, 4):
        return None
    return _numbers(file, "affine", (4, 4))


def nifreeze_dims(file: Any, found: Any, affine: NDArray[np.float64]) -> list[str]:
    """Return the names of the axes, array order, which is never changed."""
    names = _names_along(affine)
    if found.ndim == 3:
        return names
    return ["time", *names] if _volume_axis(file, found) == 0 else [*names, "time"]


def nifreeze_coords(file: Any, found: Any) -> dict[str, xr.Variable]:
    """Return what is known of every volume of a series: gradients, frame times, its number.

    Raises
    ------
    ConversionError
        When there are more or fewer gradients or times than volumes.
    """
    if found.ndim != 4 or found.shape[_volume_axis(file, found)] > MAX_POSITIONS:
        return {}
    n, group = found.shape[_volume_axis(file, found)], file["/0"]
    coords = {
        "orig_volume": xr.Variable(
            "time", np.arange(n), {"long_name": "number of the volume in the original file"}
        )
    }
    if group.id.links.exists(b"gradients"):
        columns = _gradients(file, n).T
        for name, letter, values in zip(BVECS, "ijk", columns, strict=False):
            label = f"b-vector along {letter} of the original file, FSL's sign convention"
            coords[name] = xr.Variable("time", values, {"long_name": label})
        attrs = {"long_name": "b-value", "units": "s/mm2"}
        coords["bval"] = xr.Variable("time", columns[3], attrs)
    if group.id.links.exists(b"midframe"):
        coords["time"] = xr.Variable(
            "time",
            _numbers(file, "midframe", (n,)),
            {"long_name": "middle of the frame", "units": "s"},
        )
    return coords


def nifreeze_source(file: Any) -> dict[str | int | float | bool | None, Json]:
    """Return everything else a file says, as plain data: format, version, type, small members.

    Raises
    ------
    ConversionError
        When there are more members than nifreeze writes.

    Warns
    -----
    MlaWarning
        When a member is too long, or nothing that metadata can hold.
    """
    group, left = file["/0"], _MOST_NUMBERS
    if len(group) > _MOST_MEMBERS:
        raise ConversionError(f"the group /0 has {len(group)} members, which nifreeze never writes")
    attrs = {**attributes(group), **attributes(file)}
    source: dict[str | int | float | bool | None, Json] = {
        key.lower(): value.item() if isinstance(value, np.generic) else str(value)
        for key, value in attrs.items()
        if key in _SOURCE_ATTRS
    }
    for name in group:
        if name in _OWN_PLACE or name.startswith("_"):
            continue
        member = file[resolved(file, ("0", name))]
        shape, kind = getattr(member, "shape", None), getattr(member, "dtype", np.dtype("O")).kind
        if shape is None or kind not in "biuf" or math.prod(shape) > left:
            warnings.warn(
                f"nifreeze's /0/{name} of shape {shape} is no small table of numbers: it is left "
                "out",
                MlaWarning,
                stacklevel=4,
            )
            continue
        check_storage(member)
        left -= math.prod(shape)
        source[name] = np.asarray(member[()]).tolist()
    return source


def companion_datasets(file: Any, found: Any) -> dict[str, Any]:
    """Return the volumes that belong to a dataset, by the name of the file that they become.

    Of anything but the series of a nifreeze file there are none.

    ``mask`` is nifreeze's ``brainmask``, ``bzero`` its reference map without diffusion weighting.

    Raises
    ------
    ConversionError
        When one is not on the grid of the series, which nifreeze does not check.
    """
    if nifreeze_affine(file, found) is None or found.ndim != 4:
        return {}
    axis = _volume_axis(file, found)
    space = tuple(n for number, n in enumerate(found.shape) if number != axis)
    group, companions = file["/0"], {}
    for name, member in _COMPANIONS.items():
        if not group.id.links.exists(member.encode()):
            continue
        volume = file[resolved(file, ("0", member))]
        shape = getattr(volume, "shape", None)
        if shape != space or volume.dtype.kind not in "biuf":
            raise ConversionError(
                f"nifreeze's /0/{member} has shape {shape} and the volumes of the series {space}. "
                "To fix: (1) correct it; (2) dataset='0/dataobj' converts the series alone"
            )
        check_storage(volume)
        companions[name] = volume
    return companions


def _volume_axis(file: Any, found: Any) -> int:
    """Return the axis of the volumes of a series."""
    default = 0 if int(file.attrs["Version"]) > 1 else 3
    try:
        axis = int(found.attrs.get("volume_axis", default))
    except (OSError, TypeError, ValueError):
        axis = -1
    if axis not in (0, 3):
        raise ConversionError(
            f"the attribute volume_axis of {found.name} is {axis}, and 0 or 3 are known"
        )
    return axis


def _gradients(file: Any, n: int) -> NDArray[np.float64]:
    """Return b-vectors and b-values as n rows of four; nifreeze transposes four rows of n, too."""
    stored = file[resolved(file, ("0", "gradients"))]
    is_upright = getattr(stored, "shape", None) != (4, n) or n == 4
    return (
        _numbers(file, "gradients", (n, 4)) if is_upright else _numbers(file, "gradients", (4, n)).T
    )


def _numbers(file: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a small table of finite numbers."""
    stored = file[resolved(file, ("0", name))]
    found = getattr(stored, "shape", None)
    if found != shape or stored.dtype.kind not in "iuf":
        raise ConversionError(f"nifreeze's /0/{name} has shape {found} where {shape} is needed")
    check_storage(stored)
    values = np.asarray(stored[...], np.float64)
    if not np.isfinite(values).all():
        raise ConversionError(f"nifreeze's /0/{name} holds NaN or infinities. To fix: correct it")
    return values


def _names_along(affine: NDArray[np.float64]) -> list[str]:
    """Name each voxel axis after the world axis it mostly runs along; x, y, z when ambiguous."""
    along = np.abs(affine[:3, :3]).argmax(axis=0).tolist()
    return ["xyz"[axis] for axis in along] if sorted(along) == [0, 1, 2] else ["x", "y", "z"]
