"""The frames of a series as its file holds them, whatever was selected or derived since."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from mlarray_xr.backend import MlaBackendArray
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import dataset_from
from mlarray_xr.placement import file_dims
from mlarray_xr.series.axis import ORIG_VOLUME, series_dim, with_orig_volume

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["FromStored", "original_frame", "positions_in", "sources_of", "stored_series"]

_WRAPPERS = (
    indexing.CopyOnWriteArray,
    indexing.ImplicitToExplicitIndexingAdapter,
    indexing.LazilyIndexedArray,
    indexing.LazilyVectorizedIndexedArray,
    indexing.MemoryCachedArray,
)
"""What xarray puts around a lazy array; none of them changes a value."""

_OPENED = "original-"
_SELECTIONS = (_OPENED, "open_dataset-", "xarray-", "getitem-", "rechunk-", "transpose-")
"""How names of layers of a Dask graph begin that change no value."""


class FromStored(BackendArray):
    """A lazy array that is computed from a series, which it keeps."""

    __slots__ = ()

    stored: xr.DataArray
    """The series, whole and lazy, with ``orig_volume``."""


def original_frame(
    array: xr.DataArray, orig_volume: int, *, dim: str | None = None
) -> xr.DataArray:
    """Return one frame of the series that an array comes from, lazy, whole, as the file holds it.

    The frame is named by its number in the original series, never by its index in `array`; for
    that there is ``array.isel``. It may be one that `array` no longer has.

    Parameters
    ----------
    array
        From a file: any lazy selection of it, resampled or not; with Dask whatever was derived.
    orig_volume
        Number of the frame in the original series, as the coordinate of that name has it.
    dim
        The dimension that frames lie along in the file.

    Returns
    -------
    xarray.DataArray
        Without `dim`, with its own coordinates. The values are read when asked for; that raises
        `SourceChanged` when the file was replaced meanwhile.

    Raises
    ------
    IndexError
        When the file has no such frame.
    ValueError
        When no file is known: values were computed or loaded, or come from several series.

    Examples
    --------
    >>> import mlarray_xr, xarray as xr
    >>> voxels = np.arange(12, dtype="int16").reshape(4, 3)
    >>> _ = mlarray_xr.to_mla(xr.DataArray(voxels, dims=("time", "x")), "series.mla")
    >>> later = mlarray_xr.open_mla("series.mla")[2:, ::2]
    >>> original_frame(later, 1).values, later.isel(time=1).values
    (array([3, 4, 5], dtype=int16), array([ 9, 11], dtype=int16))
    """
    files = _files_of(array)
    series = [whole for file in files if (whole := _series_in(file, array, dim)) is not None]
    if len(series) != 1:
        msg = (
            f"{len(series)} series in files are behind this array, one is needed: values that were "
            "loaded, or computed without Dask, no longer know their file. To fix: (1) ask the "
            "array that was opened; (2) name the dimension of the frames with dim="
        )
        raise ValueError(msg)
    along = series_dim(series[0], dim if dim in series[0].dims else None)
    numbers = series[0].coords[ORIG_VOLUME].values
    found = np.flatnonzero(numbers == orig_volume)
    if not len(found):
        msg = (
            f"the file has no frame with orig_volume {orig_volume}: it has {len(numbers)} frames, "
            f"{_range_in_words(numbers)}. To fix: choose one of them; frames are counted from 0"
        )
        raise IndexError(msg)
    return series[0].isel({along: int(found[0])})


def stored_series(array: xr.DataArray, dim: str) -> xr.DataArray | None:
    """Return the series whose frames an array shows or has resampled: whole, lazy, numbered.

    None where values were changed in another way, are in memory, or come from several files: then
    the array itself is all that is known.

    Parameters
    ----------
    array
        Any selection of a series.
    dim
        The dimension that its frames lie along.
    """
    sources, is_selection = sources_of(array)
    if len(sources) != 1 or not is_selection:
        return None
    if isinstance(sources[0], FromStored):
        return sources[0].stored
    if isinstance(sources[0], MlaBackendArray):
        return _series_in(sources[0], array, dim)
    return None


def sources_of(array: xr.DataArray) -> tuple[list[Any], bool]:
    """Return what the values of a lazy array are read from, and whether they are as read.

    Several only for Dask arrays, which are searched as a graph without computing anything.
    """
    data: Any = array.variable._data  # noqa: SLF001 - `data` would read the file
    if not hasattr(data, "__dask_graph__"):
        return [_innermost(data)], True
    graph: Mapping[Any, Any] = data.__dask_graph__()
    names = [str(name) for name in getattr(graph, "layers", graph)]
    opened = [_innermost(graph[name]) for name in names if name.startswith(_OPENED)]
    return opened, all(name.startswith(_SELECTIONS) for name in names)


def positions_in(series: xr.DataArray, array: xr.DataArray) -> NDArray[np.intp]:
    """Return where in a stored series the frames of a numbered array are.

    Raises
    ------
    ValueError
        When the series lacks some of them.
    """
    where = {int(n): i for i, n in reversed([*enumerate(series.coords[ORIG_VOLUME].values)])}
    wanted = [int(number) for number in np.atleast_1d(array.coords[ORIG_VOLUME].values)]
    missing = sorted({*wanted} - where.keys())
    if missing:
        msg = (
            f"{ORIG_VOLUME} names frames {missing} that the file does not have. To fix: keep the "
            "coordinate as opening gave it"
        )
        raise ValueError(msg)
    return np.asarray([where[number] for number in wanted], dtype=np.intp)


def _files_of(array: xr.DataArray) -> list[MlaBackendArray]:
    """Return the different files that the values of an array come from."""
    files: dict[Any, MlaBackendArray] = {}
    for source in sources_of(array)[0]:
        if isinstance(source, FromStored):
            files |= {file.__dask_tokenize__(): file for file in _files_of(source.stored)}
        elif isinstance(source, MlaBackendArray):
            files[source.__dask_tokenize__()] = source
    return list(files.values())


def _series_in(file: MlaBackendArray, array: xr.DataArray, dim: str | None) -> xr.DataArray | None:
    """Return all that a file holds under the names of an array, numbered; None without frames."""
    dataset = dataset_from(indexing.LazilyIndexedArray(file), file.file)
    series = attach_coords(dataset[next(iter(dataset.data_vars))])
    try:
        along = series_dim(series, dim if dim in series.dims else None)
    except ValueError:
        return None
    names = {old: new for old, new in file_dims(array).items() if old != new}
    if dim is not None and dim != along:
        names[along] = dim
    return with_orig_volume(series, along).rename({**names}).rename(array.name)


def _innermost(data: Any) -> Any:
    """Return what is inside xarray's wrappers."""
    while isinstance(data, _WRAPPERS):
        data = data.array
    return data


def _range_in_words(numbers: NDArray[np.int64]) -> str:
    """Say which frames there are."""
    return f"{numbers.min()} to {numbers.max()}" if len(numbers) else "none"
