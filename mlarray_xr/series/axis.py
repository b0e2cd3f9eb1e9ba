"""The axis along which the frames of a series lie, and the number that each frame began with.

Two numbers name a frame and are never the same thing: its index in the array in hand, which every
selection changes, and ``orig_volume``, its number in the series that was recorded, which none does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pandas as pd
import xarray as xr
from xarray.core import indexing

from mlarray_xr.attributes import read_metadata
from mlarray_xr.backend import MlaBackendArray
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.placement import file_dims
from mlarray_xr.record import Record, stored_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["ORIG_VOLUME", "picked", "series_dim", "with_orig_volume"]

ORIG_VOLUME = "orig_volume"
"""Name of the coordinate that holds the number of each frame in the original series."""

_TIME = "time"
_WITHIN_A_FRAME = {"x", "y", "z", "channel", "component"}
_POSITION = "index in the stored array"
"""What opening calls the coordinate of a dimension that has none of its own."""

Series = TypeVar("Series", xr.DataArray, xr.Dataset)


def series_dim(obj: xr.DataArray | xr.Dataset, dim: str | None = None) -> str:
    """Return the dimension that frames lie along.

    Parameters
    ----------
    obj
        A series.
    dim
        What to take. By default ``time``, else the only dimension that is neither spatial nor
        ``channel`` nor ``component``.

    Raises
    ------
    ValueError
        When `dim` is none of its dimensions, or none or several could be meant.

    Examples
    --------
    >>> series_dim(xr.DataArray(np.zeros((5, 2, 3, 4)), dims=("volume", "z", "y", "x")))
    'volume'
    """
    names = [str(name) for name in obj.sizes]
    if dim is not None:
        if dim not in names:
            msg = f"dim={dim!r} is no dimension of this object. To fix: choose one of {names}"
            raise ValueError(msg)
        return dim
    others = [name for name in names if name not in _names_within_a_frame(obj)]
    if _TIME in names:
        return _TIME
    if len(others) == 1:
        return others[0]
    found = f"{others} could be meant" if others else "all of them lie within a frame"
    msg = f"which of the dimensions {names} do frames lie along? {found}. To fix: give dim="
    raise ValueError(msg)


def with_orig_volume(obj: Series, dim: str) -> Series:
    """Return a series whose frames bear their numbers, as the coordinate ``orig_volume``.

    Numbers that are there, or that the file holds, are kept, and other coordinates that the file
    holds along the frames come with them. Frames of any other file are numbered by their position
    in it, whatever was selected since. Everything else is numbered from 0 now.

    Parameters
    ----------
    obj
        A series.
    dim
        The dimension that its frames lie along.

    Raises
    ------
    ValueError
        When frames were selected from a file and nothing tells which, or ``orig_volume`` is
        something else.

    Examples
    --------
    >>> series = with_orig_volume(xr.DataArray(np.zeros((4, 3)), dims=("time", "x")), "time")
    >>> series[::-2].orig_volume.values
    array([3, 1])
    """
    if isinstance(obj, xr.Dataset):
        along = [array for array in obj.data_vars.values() if dim in array.dims]
        along.sort(key=lambda array: read_metadata(array.attrs) is None)  # those of files first
        numbered = with_orig_volume(along[0] if along else obj[dim], dim)
        return obj.assign_coords(
            {name: c for name, c in numbered.coords.items() if name not in obj.variables}
        )
    attached = attach_coords(obj)
    if ORIG_VOLUME not in attached.coords:
        return attached.assign_coords({ORIG_VOLUME: (dim, _numbers(attached, dim))})
    found = attached.coords[ORIG_VOLUME]
    if found.dims != (dim,) or found.dtype.kind not in "iu":
        msg = (
            f"coordinate {ORIG_VOLUME!r} holds {found.dtype} along {found.dims}; one integer for "
            f"each frame along {dim!r} is needed. To fix: drop or assign it"
        )
        raise ValueError(msg)
    return attached


def is_numbered(array: xr.DataArray, dim: str) -> bool:
    """Tell whether something tells which frames of its file an array holds; else they are counted.

    Parameters
    ----------
    array
        A series.
    dim
        The dimension that its frames lie along.

    Examples
    --------
    >>> is_numbered(xr.DataArray([1, 2], dims="time"), "time")
    False
    """
    if ORIG_VOLUME in attach_coords(array).coords:
        return True
    described = read_metadata(array.attrs)
    return described is not None and _told(array, dim, *described) is not None


def picked(obj: Series, dim: str, positions: Sequence[int] | NDArray[np.intp]) -> Series:
    """Return a view of some frames, in the order given; nothing is read and nothing copied.

    NumPy copies what is not evenly spaced, so arrays in memory get xarray's lazy indexing.

    Parameters
    ----------
    obj
        A series.
    dim
        The dimension that its frames lie along.
    positions
        Indices into `obj`, not negative.

    Examples
    --------
    >>> frames = xr.DataArray(np.arange(5), dims="time")
    >>> picked(frames, "time", [0, 3, 4]).values
    array([0, 3, 4])
    """
    wanted = np.asarray(positions, dtype=np.intp)
    steps = np.diff(wanted)
    if len(wanted) and (steps == 1).all():
        return obj.isel({dim: slice(int(wanted[0]), int(wanted[-1]) + 1)})
    return _lazy(obj, dim).isel({dim: wanted})


def _names_within_a_frame(obj: xr.DataArray | xr.Dataset) -> set[str]:
    """Return names of dimensions that are never those of a series.

    Of files that do not name their axes every one is called spatial, so these do not count.
    """
    arrays = [obj] if isinstance(obj, xr.DataArray) else obj.data_vars.values()
    named = [array for array in arrays if "axes_assumed" not in array.attrs]
    return _WITHIN_A_FRAME.union(*(file_dims(array).values() for array in named))


def _lazy(obj: Series, dim: str) -> Series:
    """Put what lies in memory along a dimension behind lazy indexing; copied when written to."""
    if isinstance(obj, xr.Dataset):
        found = {name: a for name, a in obj.data_vars.items() if dim in a.dims}
        return obj.assign({name: _lazy(array, dim) for name, array in found.items()})
    if not obj.variable._in_memory:  # noqa: SLF001 - `data` would read the file
        return obj
    values = indexing.LazilyIndexedArray(indexing.NumpyIndexingAdapter(obj.values))
    return obj.copy(deep=False, data=indexing.CopyOnWriteArray(cast("Any", values)))


def _numbers(array: xr.DataArray, dim: str) -> NDArray[np.int64]:
    """Return the positions of frames in the file that they come from; 0, 1, ... without one."""
    n = array.sizes[dim]
    described = read_metadata(array.attrs)
    if described is None:
        return np.arange(n)
    metadata, shape = described
    axis = _stored_axis(array, dim, metadata, shape)
    if axis is None:
        return np.arange(n)
    told = _told(array, dim, metadata, shape)
    if told is not None:
        return told
    # Dask keeps no record of selections but that there were some.
    if n == shape[axis] and not _is_selected_by_dask(array):
        return np.arange(n)
    msg = (
        f"{n} of the {shape[axis]} frames of the file were selected, and nothing tells which. "
        f"To fix: assign {ORIG_VOLUME!r} along {dim!r} before selecting"
    )
    raise ValueError(msg)


def _stored_axis(
    array: xr.DataArray, dim: str, metadata: Metadata, shape: tuple[int, ...]
) -> int | None:
    """Return the axis of the file that frames lie along, None where it cannot be told."""
    axes = stored_axes(metadata, len(shape))
    # Of a dimension that was renamed the file has another name, which the array no longer has.
    gone = [d for d in axes.dims if d not in array.dims and d not in axes.spatial_dims]
    stored_dim = dim if dim in axes.dims else gone[0] if len(gone) == 1 else None
    return None if stored_dim is None else axes.dims.index(stored_dim)


def _told(
    array: xr.DataArray, dim: str, metadata: Metadata, shape: tuple[int, ...]
) -> NDArray[np.int64] | None:
    """Return the positions of frames in their file as something tells them, None otherwise."""
    axis = _stored_axis(array, dim, metadata, shape)
    if axis is None:
        return None
    stored_dim = stored_axes(metadata, len(shape)).dims[axis]
    stored = Record.of(metadata, shape=shape).coords.get(stored_dim)
    for positions in (
        _labelled(array, dim, None if stored is None else stored.values),
        _selected(array, axis, shape[axis]),
    ):
        if positions is not None and len(positions) == array.sizes[dim]:
            return positions
    return None


def _is_selected_by_dask(array: xr.DataArray) -> bool:
    """Tell whether a Dask array was indexed on its way."""
    graph = getattr(array.variable._data, "dask", None)  # noqa: SLF001 - `data` would read the file
    layers = getattr(graph, "layers", {})
    return any(str(name).startswith("getitem-") for name in layers)


def _labelled(
    array: xr.DataArray, dim: str, stored: NDArray[Any] | None
) -> NDArray[np.int64] | None:
    """Return the positions that the index along the frames tells, None where it does not."""
    if dim not in array.indexes:
        return None
    if array.coords[dim].attrs.get("long_name") == _POSITION:
        return np.asarray(array.coords[dim].values, dtype=np.int64)
    index = None if stored is None else pd.Index(stored)
    if index is None or not index.is_unique:
        return None
    positions = index.get_indexer(array.indexes[dim])
    return positions.astype(np.int64) if (positions >= 0).all() else None


def _selected(array: xr.DataArray, axis: int, length: int) -> NDArray[np.int64] | None:
    """Return the positions that lazy indexing holds, None where it holds none."""
    data: Any = array.variable._data  # noqa: SLF001 - `data` would read the file
    lazy = indexing.LazilyIndexedArray | indexing.LazilyVectorizedIndexedArray
    while not isinstance(data, lazy | None):
        data = getattr(data, "array", None)
    if data is None or not isinstance(data.array, MlaBackendArray):
        return None
    found = data.key.tuple[axis]
    if isinstance(data, indexing.LazilyVectorizedIndexedArray):
        return np.ravel(found) % max(length, 1)
    return np.atleast_1d(np.arange(length)[found])
