"""Weights of predictions inside a patch, for the mean where patches overlap.

The weight of a voxel is the product of one number per axis. Patches of a grid lie at every
combination of their starts, so the sum of all weights at a voxel is such a product as well: the
share of each patch is known before any prediction is there, and nothing has to be divided later.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.planning.grid_patches import PatchGrid

__all__ = ["PatchShares", "Weighting", "axis_weights", "weight_sums"]

Weighting = Literal["uniform", "hann", "gaussian"]

_SIGMA_SHARE = 0.125


def axis_weights(weighting: Weighting, size: int) -> NDArray[np.float32]:
    """Return the weights along one axis of a patch: positive, symmetric, 1 at most.

    Parameters
    ----------
    weighting
        ``"uniform"``: ones. ``"hann"``: a Hann window of size + 2 without its two zeros, as
        TorchIO's ``GridAggregator`` has it. ``"gaussian"``: sigma is an eighth of the patch, as
        MONAI and nnU-Net have it, who raise what is very small in addition.
    size
        Extent of the patch.

    Returns
    -------
    numpy.ndarray
        (size,) float32.

    Raises
    ------
    ValueError
        When there is no such weighting.

    Examples
    --------
    >>> axis_weights("hann", 3), axis_weights("gaussian", 3).round(4)
    (array([0.5, 1. , 0.5], dtype=float32), array([0.0286, 1.    , 0.0286], dtype=float32))
    """
    if weighting not in get_args(Weighting):
        msg = f"weights={weighting!r}: choose one of {get_args(Weighting)}"
        raise ValueError(msg)
    if weighting == "uniform":
        return np.ones(size, np.float32)
    if weighting == "hann":
        return np.hanning(size + 2)[1:-1].astype(np.float32)
    deviations = (np.arange(size) - (size - 1) / 2) / (_SIGMA_SHARE * size)
    weights: NDArray[np.float64] = np.exp(-0.5 * deviations**2)
    return weights.astype(np.float32)


def weight_sums(grid: PatchGrid, axis: int, weights: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sum along one axis of the weights of all patches, at each voxel of the volume.

    Examples
    --------
    >>> from mlarray_xr.planning.grid_patches import PatchGrid
    >>> grid = PatchGrid(extents=(7,), shape=(4,), steps=(2,))
    >>> weight_sums(grid, 0, np.ones(4))
    array([1., 1., 2., 3., 2., 2., 1.])
    """
    extent = grid.extents[axis]
    sums = np.zeros(extent)
    for start in grid.starts(axis):
        first, stop = max(start, 0), min(start + len(weights), extent)
        sums[first:stop] += weights[first - start : stop - start]
    return sums


class PatchShares:
    """The share that each patch of a grid has in the mean: weights over their sum, 1 in total.

    Parameters
    ----------
    grid
        The patches.
    weighting
        As of `axis_weights`.
    dtype
        Type of the shares: their sum is 1 as exactly as it has it.

    Examples
    --------
    >>> from mlarray_xr.planning.grid_patches import PatchGrid
    >>> grid = PatchGrid(extents=(6,), shape=(4,), steps=(2,))
    >>> shares = PatchShares(grid, "uniform", dtype=np.float32)
    >>> shares.of(0)
    array([1. , 1. , 0.5, 0.5], dtype=float32)
    """

    def __init__(self, grid: PatchGrid, weighting: Weighting, *, dtype: DTypeLike) -> None:
        self._grid, self._dtype = grid, np.dtype(dtype)
        self._weights = [axis_weights(weighting, size) for size in grid.shape]
        self._sums = [
            weight_sums(grid, axis, weights) for axis, weights in enumerate(self._weights)
        ]

    def of(self, number: int) -> NDArray[Any]:
        """Return the shares of one patch, of the part of it that lies in the volume."""
        place = self._grid[number]
        along = zip(self._weights, self._sums, place.valid, place.inside, strict=True)
        shares = [
            (weights[slice(*valid)] / sums[slice(*inside)]).astype(self._dtype)
            for weights, sums, valid, inside in along
        ]
        return reduce(np.multiply.outer, shares)
