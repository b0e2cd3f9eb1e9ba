"""OverlapMean: the weighted mean of overlapping patches, a slab of the volume at a time."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.patch_weights import PatchShares

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.grid_patches import PatchGrid
    from mlarray_xr.planning.patch_weights import Weighting

__all__ = ["OverlapMean"]


class OverlapMean:
    """Adds up the patches of a grid in order; what no later patch touches is finished and leaves.

    Rows, the planes across the first axis along which there are several patches, are held while
    patches touch them: never more than a patch is long, however long the axis is. They lie in a
    ring, so that none is moved.

    Parameters
    ----------
    grid
        The patches.
    weighting
        See `mlarray_xr.planning.patch_weights.axis_weights`.
    n_channels
        Channels of every patch.
    dtype
        Floating type of the sums.

    Examples
    --------
    >>> from mlarray_xr.planning.grid_patches import PatchGrid
    >>> grid = PatchGrid(extents=(6,), shape=(4,), steps=(2,))
    >>> mean = OverlapMean(grid, "uniform", n_channels=1, dtype="float32")
    >>> for number, values in enumerate(([[1, 1, 1, 1]], [[3, 3, 3, 3]])):
    ...     for box, finished in mean.add(number, np.array(values)):
    ...         print(box, finished)
    ((0, 2),) [[1. 1.]]
    ((2, 4),) [[2. 2.]]
    ((4, 6),) [[3. 3.]]
    """

    def __init__(
        self, grid: PatchGrid, weighting: Weighting, *, n_channels: int, dtype: DTypeLike
    ) -> None:
        self._grid, self._shares = grid, PatchShares(grid, weighting, dtype=dtype)
        several = (axis for axis, count in enumerate(grid.counts) if count > 1)
        self._axis = next(several, 0)
        held = list(grid.extents)
        self._depth = held[self._axis] = min(grid.shape[self._axis], held[self._axis])
        self._sums = np.zeros((n_channels, *held), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are held."""
        return self._sums.nbytes

    def add(self, number: int, prediction: NDArray[Any]) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Add a patch, and iterate over what is finished with it.

        Parameters
        ----------
        number
            Of the patch: one more than that of the patch before.
        prediction
            (n_channels, *patch), numbers.

        Yields
        ------
        box
            Part of the volume, array indices.
        values
            (n_channels, *extents of the box): the mean, in memory that is used again.
        """
        place, axis = self._grid[number], self._axis
        shares = self._shares.of(number)
        inside, valid = list(place.inside), [slice(*pair) for pair in place.valid]
        values = prediction[:, *valid]
        first, last = inside[axis]
        for rows in self._runs(first, last):
            part: list[slice] = [slice(None)] * len(inside)
            part[axis] = slice(rows[0] - first, rows[1] - first)
            sums = self._held([*inside[:axis], rows, *inside[axis + 1 :]])
            weights = shares[tuple(part)]
            # One channel after another: the product takes the memory of one.
            for total, channel in zip(sums, values, strict=True):
                total += channel[tuple(part)] * weights
        return self._finished(number)

    def _finished(self, number: int) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Yield the rows before the start of the next patch, and make room."""
        place, axis = self._grid[number], self._axis
        whole: list[tuple[int, int]] = [(0, n) for n in self._grid.extents]
        start, stop = place.inside[axis]
        if number + 1 < len(self._grid):
            stop = self._grid[number + 1].inside[axis][0]
        for rows in self._runs(start, stop):
            box = [*whole[:axis], rows, *whole[axis + 1 :]]
            values = self._held(box)
            yield tuple(box), values
            values[...] = 0

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut a range of rows where the ring begins anew."""
        wraps = range(-(-(start + 1) // self._depth) * self._depth, stop, self._depth)
        return itertools.pairwise([start, *wraps, stop]) if start < stop else iter(())

    def _held(self, box: list[tuple[int, int]]) -> NDArray[Any]:
        """Return the memory of a box that does not cross the end of the ring."""
        key = [slice(*pair) for pair in box]
        start, stop = box[self._axis]
        first = start % self._depth
        key[self._axis] = slice(first, first + stop - start)
        return self._sums[:, *key]
