"""Overviews of a labelled array: the coarser levels that lie beside its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xarray.core import indexing

from mlarray_xr.backend import MlaBackendArray
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dask import array_chunk_bytes, is_dask
from mlarray_xr.dataset import dataset_from
from mlarray_xr.opened_file import whole_file_of
from mlarray_xr.overview_siblings import find_levels, level_path

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.array import MlaArray

__all__ = ["find_levels", "level_path", "levels_of"]


def levels_of(array: xr.DataArray) -> tuple[xr.DataArray, ...]:
    """Return an array and its overviews, finest first: entry k is level k.

    Overviews are lazy as the array is, have its name, and lie where it lies in the world. There are
    some only when the array is the whole of a file, as it was opened.

    Parameters
    ----------
    array
        Opened from a file by `open_mla` or the engine, with or without Dask.

    Warns
    -----
    MlaWarning
        Once, when a level beside the file belongs to other content and is left out.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "single.mla")
    >>> len(levels_of(mlarray_xr.open_mla("single.mla")))
    1
    """
    file = whole_file_of(array)
    if file is None:
        return (array,)
    return (array, *(_opened(level, like=array) for level in find_levels(file)[1:]))


def _opened(file: MlaArray, *, like: xr.DataArray) -> xr.DataArray:
    """Return the array of a file, named and lazy as another."""
    lazy = indexing.LazilyIndexedArray(MlaBackendArray(file))
    dataset = dataset_from(lazy, file, part_bytes=array_chunk_bytes())
    (found,) = dataset.data_vars.values()
    if is_dask(like.variable._data):  # noqa: SLF001 - `data` would read a lazy array
        # The prefix that xarray itself gives what it opens: the file behind it can be found by it.
        found = found.chunk(found.encoding["preferred_chunks"], name_prefix="open_dataset-")
    return attach_coords(found).rename(like.name)
