"""What the files beside a NIfTI series say, as coordinates along its volumes and slices.

The coordinates are ``orig_volume``, ``bval``, ``bvec_x``, ``bvec_y``, ``bvec_z``,
``frame_duration`` and, where BIDS tells, ``time`` along the volumes, ``slice_time`` along the
slices. The whole JSON object is the metadata's ``source["bids"]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.bids_sidecar import read_json
from mlarray_xr.foreign.bids_timing import frame_durations, frame_times, slice_times
from mlarray_xr.foreign.gradient_files import parse_bvals, parse_bvecs
from mlarray_xr.foreign.positions import MAX_POSITIONS
from mlarray_xr.foreign.sidecar_files import find_sidecars, read_text
from mlarray_xr.record import StoredCoordinate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.foreign.nifti_header import NiftiHeader
    from mlarray_xr.format.metadata import Metadata

__all__ = ["BVECS", "Sidecars", "bids_of", "first_time", "read_sidecars", "series_coords"]

_BIDS = "bids"
BVECS = ("bvec_x", "bvec_y", "bvec_z")
"""Names of the coordinates with the components of the b-vectors."""

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_SPATIAL_AXES = 3
"""Of a NIfTI image; the next one counts the volumes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sidecars:
    """What the files beside a NIfTI image say."""

    bids: dict[str, Any] | None = None
    """The JSON object; None without one."""
    bval: NDArray[np.float64] | None = None
    """b-values, s/mm2, one for each volume."""
    bvec: NDArray[np.float64] | None = None
    """b-vectors, shape (3, volumes), FSL's convention."""


def read_sidecars(stem: str, header: NiftiHeader) -> Sidecars:
    """Read the files beside an image; those of gradients and times must fit a series of volumes.

    Parameters
    ----------
    stem
        Absolute path of the image without its suffix.
    header
        Of the image. With other than four axes the JSON object alone is read.

    Raises
    ------
    ConversionError
        When a file is damaged, or has another count of numbers than the image of volumes or slices.
    """
    files = find_sidecars(stem)
    bids, shape = read_json(files.json), header.shape
    if len(shape) != _SPATIAL_AXES + 1:
        return Sidecars(bids=bids)
    try:
        _bids_coords(bids or {}, header)
    except ConversionError as error:
        raise ConversionError(f"{', '.join(files.json)}: {error}") from error
    return Sidecars(
        bids=bids,
        bval=_parsed(files.bval, parse_bvals, shape[3]),
        bvec=_parsed(files.bvec, parse_bvecs, shape[3]),
    )


def series_coords(
    header: NiftiHeader, dims: Sequence[str], sidecars: Sidecars
) -> dict[str, StoredCoordinate]:
    """Return the coordinates of a series, by name; none for an image of other than four axes.

    Parameters
    ----------
    header
        Of the image.
    dims
        Names of its axes.
    sidecars
        What the files beside it say.

    Raises
    ------
    ConversionError
        When the sidecars do not fit the image.
    """
    if len(dims) <= _SPATIAL_AXES or header.shape[3] > MAX_POSITIONS:
        return {}
    volumes = np.arange(header.shape[3])
    found: dict[str, tuple[int, NDArray[Any], dict[str, Any]]] = {
        "orig_volume": (3, volumes, {"long_name": "number of the volume in the original file"})
    }
    if len(dims) > _SPATIAL_AXES + 1:
        return _named(found, dims)
    if sidecars.bval is not None:
        found["bval"] = (3, sidecars.bval, {"long_name": "b-value", "units": "s/mm2"})
    if sidecars.bvec is not None:
        for name, letter, values in zip(BVECS, "ijk", sidecars.bvec, strict=True):
            label = f"b-vector along {letter} of the original file, FSL's sign convention"
            found[name] = (3, values, {"long_name": label})
    for name, (axis, times) in _bids_coords(sidecars.bids or {}, header).items():
        if name != "time" or dims[3] == "time":
            found[name] = (axis, times, {"units": "s"})
    return _named(found, dims)


def bids_of(metadata: Metadata) -> dict[str, Any] | None:
    """Return the JSON object that a file keeps; None without one."""
    found: Any = metadata.source.get(_BIDS)
    return found if type(found) is dict else None


def _parsed(
    path: str | None, parse: Callable[..., NDArray[np.float64]], n: int
) -> NDArray[np.float64] | None:
    """Read a file of gradients."""
    if path is None:
        return None
    try:
        return parse(read_text(path), n=n)
    except ConversionError as error:
        text = str(error)
        raise ConversionError(text if text.startswith(path) else f"{path}: {text}") from error


def _bids_coords(
    bids: Mapping[str, Any], header: NiftiHeader
) -> dict[str, tuple[int, NDArray[np.float64]]]:
    """Return axis and values of what the JSON object says of a series."""
    n = header.shape[3]
    if n > MAX_POSITIONS:
        return {}
    times, durations = frame_times(bids, n=n, start=first_time(header)), frame_durations(bids, n=n)
    found = {"slice_time": slice_times(bids, shape=header.shape, default=header.slice_axis)}
    found["time"] = None if times is None else (3, times)
    found["frame_duration"] = None if durations is None else (3, durations)
    return {name: entry for name, entry in found.items() if entry is not None}


def first_time(header: NiftiHeader) -> float:
    """Return the time of the first volume that a header states, s."""
    start = header.time_start
    return start * _SECONDS.get(header.time_unit or "s", 1.0)


def _named(
    found: Mapping[str, tuple[int, NDArray[Any], dict[str, Any]]], dims: Sequence[str]
) -> dict[str, StoredCoordinate]:
    """Return coordinates along dimensions, where there were axes."""
    return {
        name: StoredCoordinate(dims=(dims[axis],), values=values, attrs=attrs)
        for name, (axis, values, attrs) in found.items()
    }
