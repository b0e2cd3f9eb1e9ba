"""The file behind a DataArray that was opened from one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xarray.core import indexing

from mlarray_xr.backend import MlaBackendArray

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.array import MlaArray

__all__ = ["file_of", "whole_file_of"]

_OPENED = "open_dataset-"
"""How xarray begins the names of Dask arrays that are what a file holds, not yet computed with."""

_WRAPPERS = (
    indexing.CopyOnWriteArray,
    indexing.ImplicitToExplicitIndexingAdapter,
    indexing.LazilyIndexedArray,
    indexing.LazilyVectorizedIndexedArray,
    indexing.MemoryCachedArray,
)
"""What xarray puts around stored values; what scales or decodes them is none of these."""


def file_of(array: xr.DataArray) -> MlaArray | None:
    """Return the file whose stored values an array shows: all of them, or any lazy selection.

    None once values were computed or loaded, for Dask arrays after any operation, and for arrays
    that came from elsewhere.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "behind.mla")
    >>> plane = mlarray_xr.open_mla("behind.mla")
    >>> file_of(plane[1:, ::-1]).shape
    (4, 5)
    >>> file_of(plane + 1) is None
    True
    """
    found = _unwrapped(array)
    return None if found is None else found[0]


def whole_file_of(array: xr.DataArray) -> MlaArray | None:
    """Return the file of an array that is all of it, in the order of the file; otherwise None.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "whole.mla")
    >>> plane = mlarray_xr.open_mla("whole.mla", chunks={})
    >>> whole_file_of(plane).shape, whole_file_of(plane[1:]) is None
    ((4, 5), True)
    """
    found = _unwrapped(array)
    if found is None:
        return None
    file, keys = found
    whole = tuple(map(slice, file.shape))
    for key in keys:
        if len(key) != file.ndim or not all(isinstance(one, slice) for one in key):
            return None
        if any(
            range(n)[one] != range(n)[all_]
            for one, all_, n in zip(key, whole, file.shape, strict=True)
        ):
            return None
    return file


def _unwrapped(array: xr.DataArray) -> tuple[MlaArray, list[tuple[Any, ...]]] | None:
    """Return the file inside xarray's and Dask's wrappers, and the selections on the way."""
    data: Any = array.variable._data  # noqa: SLF001 - `data` would read the file
    if hasattr(data, "__dask_graph__"):
        if not str(data.name).startswith(_OPENED):
            return None
        data = data.dask.get(f"original-{data.name}")
    keys = []
    while isinstance(data, _WRAPPERS):
        key = getattr(data, "key", None)
        if key is not None:
            keys.append(key.tuple)
        data = data.array
    return (data.file, keys) if isinstance(data, MlaBackendArray) else None
