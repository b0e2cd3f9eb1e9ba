"""HDF5 files: one dataset of a file, lazily, with the labels that are known to be used there.

What is understood: dimension scales (HDF5's own specification), ``element_size_um`` (ilastik and
PlantSeg: voxel size z, y, x in micrometres), ``axistags`` (vigra, which ilastik writes), and
nifreeze's NFDH5 files (affine, gradients, frame times).
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.hdf5_file import (
    attributes,
    check_storage,
    explained,
    links,
    opened,
    resolved,
)
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.labelled import (
    check_values,
    choose_dataset,
    dataset_parts,
    decoded_coordinate,
    is_storable,
    labelled_metadata,
)
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Json, Metadata

__all__ = ["Hdf5Array", "open_image"]

_UNUSED_SCALE = "This is a netCDF dimension but not a netCDF variable"
_VIGRA_DIMS = {"x": "x", "y": "y", "z": "z", "t": "time", "c": "channel"}
_NIFREEZE_SERIES = ("0", "dataobj")
_GRADIENT_COLUMNS = ("bvec_x", "bvec_y", "bvec_z", "bval")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Array:
    """One dataset of an HDF5 file: an address; each read opens the file and closes it.

    Opening takes a third of a millisecond. In return there is no handle that a thread, a fork or a
    pickle could carry along; HDF5 itself lets one thread read at a time.
    """

    source: LocalSource
    """The file, pinned."""
    dataset: str
    """Path of the dataset inside the file, without links."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements, byte order as stored."""

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box.

        Raises
        ------
        SourceChanged
            When the file was replaced since it was opened.
        ConversionError
            When a chunk of the box is damaged or its filter is not installed.
        """
        self.source.check()
        try:
            with opened(self.source.path) as file:
                # HDF5 gives scalars for arrays without axes.
                return np.asarray(file[self.dataset][key], self.dtype)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise ConversionError(
                f"{self.source.path}: dataset {self.dataset!r} cannot be read at {key}: {error}. "
                "It is damaged, or its filter is not installed. To fix: (1) copy the file again; "
                "(2) pip install hdf5plugin, and import it"
            ) from error

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.Hdf5Array", *self.source.token, self.dataset)


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a dataset of an HDF5 file; reads its attributes and scales, none of its elements.

    Parameters
    ----------
    path
        A local file.
    scratch_dir
        Unused: datasets are read where they lie.
    dataset
        Path of the dataset inside the file. By default the only one of two or more axes, of
        nifreeze's files the series.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    ConversionError
        When it is no HDF5 file or a damaged one, the dataset has elements that cannot be converted
        or lies partly in another file, or there are several and none was chosen.
    MissingDependencyError
        When h5py is not installed.

    Examples
    --------
    >>> import h5py
    >>> with h5py.File("cells.h5", "w") as file:
    ...     raw = file.create_dataset("raw", data=np.zeros((4, 5, 6), "uint16"))
    ...     raw.attrs["element_size_um"] = [0.5, 0.25, 0.25]
    >>> image = open_image("cells.h5", scratch_dir=None, dataset=None)
    >>> image.values.shape, image.metadata.spatial.spacing
    ((4, 5, 6), (0.5, 0.25, 0.25))
    """
    del scratch_dir
    source = source_of(path)
    assert isinstance(source, LocalSource)
    with explained(source.path), opened(source.path) as file:
        name = _chosen(file, dataset)
        found = _own_dataset(file, name)
        check_values(found.shape, found.dtype)
        values = Hdf5Array(
            source=source, dataset=name, shape=found.shape, dtype=np.dtype(found.dtype.str)
        )
        return ForeignImage(values=values, metadata=_metadata(file, found))


def _chosen(file: Any, dataset: str | None) -> str:
    """Return the path of the dataset that is meant."""
    start = "/" if dataset is None else resolved(file, dataset_parts(dataset))
    if hasattr(file[start], "shape"):
        return start
    if dataset is None and _is_nifreeze(file):
        return resolved(file, _NIFREEZE_SERIES)
    prefix = start.rstrip("/") + "/"
    candidates = {}
    for name, item in links(file):
        shape = getattr(item, "shape", None)
        if shape is None or item.is_scale or not name.startswith(prefix):
            continue
        with contextlib.suppress(ConversionError, TypeError):
            check_values(shape, item.dtype)
            candidates[name] = (shape, item.dtype)
    return choose_dataset(candidates)


def _own_dataset(file: Any, name: str) -> Any:
    """Return a dataset all of whose elements are in the file."""
    found = file[name]
    if getattr(found, "shape", None) is None:
        raise ConversionError(f"{name!r} is no array. To fix: choose another with dataset=")
    check_storage(found)
    return found


def _metadata(file: Any, found: Any) -> Metadata:
    """Return the metadata of a dataset."""
    attrs = attributes(found)
    dims, coords = _scales(found)
    tags = _vigra_dims(attrs, found.ndim)
    affine = _nifreeze_affine(file, found)
    if affine is not None:
        tags = [*_names_along(affine), "time"][: found.ndim]
        coords |= _nifreeze_coords(file, found)
    metadata = labelled_metadata(
        shape=found.shape,
        dims=[dim or tag for dim, tag in zip(dims, tags, strict=True)],
        attrs=attrs,
        coords=coords,
        name=found.name.rpartition("/")[2],
        file_format="hdf5",
    )
    spatial = metadata.spatial
    if spatial.affine is not None:
        return metadata
    along, size = spatial.spatial_axes(ndim=found.ndim), _element_size(attrs)
    if affine is not None:
        rows = tuple(map(tuple, affine.tolist()))
        spatial = replace(spatial, affine=rows, coord_system="RAS+")
    elif size is not None and len(along) == len(size):
        units: list[Json] = ["um" if axis in along else "" for axis in range(found.ndim)]
        spatial = replace(spatial, spacing=size, axis_units=units)
    return replace(metadata, spatial=spatial)


def _scales(found: Any) -> tuple[list[str | None], dict[str, xr.Variable]]:
    """Return the names of the dimensions, and the coordinates that dimension scales give."""
    dims: list[str | None] = []
    coords = {}
    for axis in found.dims:
        scales = {scale.name.rpartition("/")[2]: scale for scale in axis.values()}
        dim = axis.label or next(iter(scales), None)
        dims.append(dim)
        for name, scale in scales.items():
            values = _scale_values(scale)
            if values is not None:
                coords[name] = decoded_coordinate(name, [str(dim)], values, attributes(scale))
    return dims, coords


def _scale_values(scale: Any) -> NDArray[Any] | None:
    """Return the positions along a dimension; None where a scale does nothing but name it."""
    import h5py

    title = scale.attrs.get("NAME", b"")
    title = title.decode("latin-1") if isinstance(title, bytes) else str(title)
    is_text = h5py.check_string_dtype(scale.dtype) is not None
    if title.startswith(_UNUSED_SCALE) or not (is_text or scale.dtype.kind in "biuf"):
        return None
    if scale.ndim != 1 or not is_storable(scale.name, scale.shape):
        return None
    check_storage(scale)
    return np.asarray(scale.asstr()[...] if is_text else scale[...])


def _vigra_dims(attrs: Mapping[str, Any], ndim: int) -> Sequence[str | None]:
    """Return the names that the attribute ``axistags`` gives, one per axis or None."""
    try:
        keys = [axis["key"] for axis in json.loads(attrs["axistags"])["axes"]]
        names = [_VIGRA_DIMS[key] for key in keys]
    except (KeyError, RecursionError, TypeError, ValueError):
        return [None] * ndim
    return names if len({*names}) == len(names) == ndim else [None] * ndim


def _element_size(attrs: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the attribute ``element_size_um``: three lengths, array order, micrometres."""
    try:
        size = tuple(map(float, attrs["element_size_um"]))
    except (KeyError, TypeError, ValueError):
        return None
    is_size = len(size) == 3 and all(math.isfinite(length) and length > 0 for length in size)
    return size if is_size else None


def _is_nifreeze(file: Any) -> bool:
    """Tell the files of nifreeze whose layout is known."""
    attrs = file.attrs
    try:
        return attrs.get("Format") == "NFDH5" and int(attrs.get("Version", 0)) == 1
    except (TypeError, ValueError):
        return False


def _nifreeze_affine(file: Any, found: Any) -> NDArray[np.float64] | None:
    """Return the affine of a volume or series in a nifreeze file: index i, j, k to RAS+, mm."""
    if not _is_nifreeze(file) or not found.name.startswith("/0/") or found.ndim not in (3, 4):
        return None
    return _nifreeze_numbers(file, "affine", (4, 4))


def _nifreeze_coords(file: Any, found: Any) -> dict[str, xr.Variable]:
    """Return the gradient table of a diffusion series, or the frame times of a PET series."""
    if found.ndim != 4:
        return {}
    n, coords, group = found.shape[3], {}, file["/0"]
    if group.id.links.exists(b"gradients"):
        columns = _nifreeze_numbers(file, "gradients", (n, 4)).T
        coords = dict(zip(_GRADIENT_COLUMNS, columns, strict=True))
    if group.id.links.exists(b"midframe"):
        coords["time"] = _nifreeze_numbers(file, "midframe", (n,))
    units = {"time": {"units": "s"}}
    return {name: xr.Variable("time", v, units.get(name)) for name, v in coords.items()}


def _nifreeze_numbers(file: Any, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a small table of a nifreeze file."""
    stored = file[resolved(file, ("0", name))]
    found = getattr(stored, "shape", None)
    if found != shape or stored.dtype.kind not in "iuf":
        raise ConversionError(f"nifreeze's /0/{name} has shape {found} where {shape} is needed")
    check_storage(stored)
    return np.asarray(stored[...], np.float64)


def _names_along(affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Name each voxel axis after the world axis it mostly runs along; x, y, z when ambiguous."""
    along = np.abs(affine[:3, :3]).argmax(axis=0).tolist()
    return tuple("xyz"[axis] for axis in along) if sorted(along) == [0, 1, 2] else ("x", "y", "z")
