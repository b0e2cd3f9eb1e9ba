"""Folds: a series without one of its frames, and that frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.series.axis import Series, picked, series_dim, with_orig_volume

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["leave_one_out"]


def leave_one_out(obj: Series, dim: str | None = None) -> Iterator[tuple[Series, Series]]:
    """Iterate over the frames of a series: all others, and the one that is held out.

    Both are lazy views: nothing is read, copied or written before their values are asked for.

    Parameters
    ----------
    obj : xarray.DataArray or xarray.Dataset
        A series from a file, from Dask or in memory.
    dim
        The dimension that its frames lie along; see `mlarray_xr.series.axis.series_dim`.

    Yields
    ------
    train, held_out : same type as `obj`
        All frames but one, and that one, without `dim`. Both bear ``orig_volume``, the number of
        each frame in the original series.

    Raises
    ------
    ValueError
        When it is not clear which dimension is meant, or which frames these are.

    Examples
    --------
    >>> import xarray as xr
    >>> series = xr.DataArray(np.array([[1, 2], [3, 4], [5, 6]]), dims=("time", "x"))
    >>> for train, held_out in leave_one_out(series):
    ...     print(train.orig_volume.values, int(held_out.orig_volume), held_out.values)
    [1 2] 0 [1 2]
    [0 2] 1 [3 4]
    [0 1] 2 [5 6]
    """
    along = series_dim(obj, dim)
    return _folds(with_orig_volume(obj, along), along)


def _folds(obj: Series, dim: str) -> Iterator[tuple[Series, Series]]:
    """Iterate over the folds of a numbered series."""
    positions = np.arange(obj.sizes[dim])
    for held_out in positions:
        others = np.delete(positions, held_out)
        yield picked(obj, dim, others), obj.isel({dim: int(held_out)})
