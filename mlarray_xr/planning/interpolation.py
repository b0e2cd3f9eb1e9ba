"""Linear interpolation between voxel centres: which voxels a position needs, and how much of each.

The value at a position is the sum over the corners of the cell around it of value times weight;
the weight of a corner is, multiplied over the axes, one minus its distance in voxels. A corner of
weight 0 takes no part, so NaN and infinity do not spread to positions that lie on a voxel centre.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["corner_indices", "corner_weights", "weighted_sum"]


def corner_indices(positions: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """Return the voxels around positions.

    Parameters
    ----------
    positions
        (n, s) fractional indices, not negative.

    Returns
    -------
    list of numpy.ndarray
        For each axis the indices of the 2^s corners, (n, 2^s). Where a position lies on a voxel
        centre, the upper corner, of weight 0, is that voxel again.

    Examples
    --------
    >>> [index.tolist() for index in corner_indices(np.array([[1.25, 3.0]]))]
    [[[1, 1, 2, 2]], [[3, 3, 3, 3]]]
    """
    corners = []
    for low, high, bits in zip(
        np.floor(positions).T, np.ceil(positions).T, _bits(positions.shape[1]), strict=True
    ):
        both = np.stack((low, high), axis=1).astype(np.intp)
        corners.append(both[:, bits])
    return corners


def corner_weights(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of the corners of `corner_indices`, (n, 2^s); they add up to 1.

    Examples
    --------
    >>> corner_weights(np.array([[1.25, 3.0]])).tolist()
    [[0.75, 0.0, 0.25, 0.0]]
    """
    n, s = positions.shape
    weights = np.ones((n, 1 << s))
    above = positions - np.floor(positions)
    for fraction, bits in zip(above.T, _bits(s), strict=True):
        weights *= np.stack((1 - fraction, fraction), axis=1)[:, bits]
    return weights


def weighted_sum(
    values: NDArray[Any], weights: NDArray[np.float64], *, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return the interpolated values.

    Parameters
    ----------
    values
        (n, 2^s, ...) values at the corners.
    weights
        (n, 2^s).
    dtype
        Of the result, floating or complex.

    Returns
    -------
    numpy.ndarray
        (n, ...).
    """
    result = np.zeros((values.shape[0], *values.shape[2:]), dtype)
    term = np.empty_like(result)
    with np.errstate(invalid="ignore"):  # of opposite infinities the sum is NaN, as it should be
        for corner in range(weights.shape[1]):
            weight = weights[:, corner].reshape(-1, *(1,) * (result.ndim - 1))
            term[...] = 0
            np.multiply(values[:, corner], weight, out=term, where=weight != 0)
            result += term
    return result


def _bits(s: int) -> NDArray[np.intp]:
    """Return for each of s axes which of the 2^s corners are upper ones, (s, 2^s)."""
    return (np.arange(1 << s) >> np.arange(s - 1, -1, -1)[:, None]) & 1
