"""Cells of voxels become one voxel each: the mean of images, the most frequent label of masks.

Levels are computed one from the other, each axis halved or kept. Of the mean, sums and counts go
from level to level and nothing is rounded in between; of the mode, labels do. Cells that the end of
the array cuts are those of the voxels that are there.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.overview_levels import steps_between

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["check_reducible", "reduce_mean", "reduce_mode"]

_MEAN_KINDS, _MODE_KINDS = "biufc", "biuf"
# Cells for which 32 bits hold the sum of 16 bit values.
_SMALL_CELL = 1 << 15


def check_reducible(dtype: np.dtype[Any], method: str) -> None:
    """Refuse types of which there is no mean or no mode.

    Raises
    ------
    ConversionError
        Of the mean when the type is not numeric, of the mode also when it is complex.

    Examples
    --------
    >>> check_reducible(np.dtype("int16"), "mean")
    """
    kinds = _MODE_KINDS if method == "mode" else _MEAN_KINDS
    if dtype.kind in kinds:
        return
    fix = "method='mean'" if dtype.kind in _MEAN_KINDS else "convert with .astype(...) first"
    msg = f"overviews of {dtype} by their {method}: there is no such thing. To fix: {fix}"
    raise ConversionError(msg)


def reduce_mean(values: NDArray[Any], factors: Sequence[Sequence[int]]) -> tuple[NDArray[Any], ...]:
    """Return the mean of cells, one array for each level.

    Neighbours are added along the first axis, then along the second, and so on, from level to
    level: in integers where they hold every sum (of values of up to 32 bits), in float64 or
    complex128 otherwise. Then sums are divided, in float64. Integers are rounded half to even;
    those of 64 bits are only as exact as float64. NaN is passed over, as
    ``xarray.DataArray.coarsen(...).mean()`` does; a cell of nothing but NaN is NaN.

    Parameters
    ----------
    values
        A box of the array, beginning at multiples of the largest factors.
    factors
        Of each level along every axis, relative to `values`, powers of two: what
        `mlarray_xr.planning.overview_levels.plan_levels` returns.

    Returns
    -------
    tuple of numpy.ndarray
        Of the type of `values`.

    Examples
    --------
    >>> reduce_mean(np.array([1, 2, 4, 4, 9], "int16"), [(2,), (4,)])
    (array([2, 4, 9], dtype=int16), array([3, 9], dtype=int16))
    """
    check_reducible(values.dtype, "mean")
    sums, counts = values, None
    if values.dtype.kind in "fc":
        is_nan = np.isnan(values)
        if is_nan.any():
            sums, counts = np.where(is_nan, values.dtype.type(0), values), ~is_nan
    means = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for now, steps in zip(factors, steps_between(factors), strict=True):
            total = _sum_dtype(values.dtype, cell=math.prod(now))
            for axis, step in enumerate(steps):
                if step > 1:
                    sums = _halved(sums, axis, total)
                    counts = None if counts is None else _halved(counts, axis, np.dtype(np.int32))
            size = _cell_sizes(values.shape, now) if counts is None else counts
            means.append(_rounded(np.true_divide(sums, size), values.dtype))
    return tuple(means)


def reduce_mode(values: NDArray[Any], factors: Sequence[Sequence[int]]) -> tuple[NDArray[Any], ...]:
    """Return the most frequent label of cells, one array for each level.

    Of labels that are equally frequent, one that is not zero wins over zero, and the smallest wins
    over others: a sheet that is one voxel thick fills half of its cells, and stays. NaN counts as
    no label. Each level is made from the level before it. Labels that were not there never appear.

    Parameters
    ----------
    values, factors
        As of `reduce_mean`.

    Returns
    -------
    tuple of numpy.ndarray
        Of the type of `values`.

    Examples
    --------
    >>> reduce_mode(np.array([0, 3, 0, 0, 7, 5], "uint8"), [(2,)])
    (array([3, 0, 5], dtype=uint8),)
    """
    check_reducible(values.dtype, "mode")
    modes, labels = [], values
    for steps in steps_between(factors):
        labels = _most_frequent(labels, steps)
        modes.append(labels)
    return tuple(modes)


def _sum_dtype(dtype: np.dtype[Any], *, cell: int) -> np.dtype[Any]:
    """Return the type in which cells of so many values are summed."""
    if dtype.kind in "biu" and dtype.itemsize <= 2 and cell <= _SMALL_CELL:
        return np.dtype(np.int32)
    if dtype.kind in "biu" and dtype.itemsize <= 4:
        return np.dtype(np.int64)
    widest = np.complex128 if dtype.kind == "c" else np.float64
    return (
        np.result_type(dtype.newbyteorder("="), widest) if dtype.kind in "fc" else np.dtype(widest)
    )


def _halved(values: NDArray[Any], axis: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return sums of neighbours along one axis; the last of an odd number stays alone."""
    before: tuple[Any, ...] = (slice(None),) * axis
    sums: NDArray[Any] = values[(*before, slice(0, None, 2))].astype(dtype)
    sums[(*before, slice(0, values.shape[axis] // 2))] += values[(*before, slice(1, None, 2))]
    return sums


def _cell_sizes(shape: Sequence[int], factors: Sequence[int]) -> NDArray[np.int64]:
    """Return of how many values each cell is; of one axis length 1 where all are equal."""
    sizes = np.ones((), np.int64)
    for n, factor in zip(shape, factors, strict=True):
        along = np.full(-(-n // factor) if n % factor else 1, factor, np.int64)
        if n % factor:
            along[-1] = n % factor
        sizes = sizes[..., None] * along
    return sizes


def _rounded(means: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return means in the type of the values."""
    if dtype.kind in "fc":
        # Zeros and NaN have one bit pattern each, also where a part of nothing else is not read.
        means = means + 0.0
        np.copyto(means, np.nan, where=np.isnan(means))
        return means.astype(dtype)
    whole: NDArray[Any] = np.rint(means)
    if dtype.kind != "b" and dtype.itemsize == 8:
        limits = np.iinfo(dtype)
        # The largest integer is no float64; the next one that is does not fit.
        whole = np.clip(whole, float(limits.min), np.nextafter(float(limits.max), 0))
    return whole.astype(dtype)


def _most_frequent(labels: NDArray[Any], steps: Sequence[int]) -> NDArray[Any]:
    """Return the mode of cells of up to two labels along every axis."""
    least = greatest = labels
    for axis, step in enumerate(steps):
        if step > 1:
            least = _pairwise(np.minimum, least, axis)
            greatest = _pairwise(np.maximum, greatest, axis)
    modes = least.astype(labels.dtype)
    # Most cells hold one label; NaN, which differs from itself, is looked at with the others.
    mixed = np.nonzero(least != greatest)
    if len(mixed) and len(mixed[0]):
        modes[mixed] = _mode_of(_members(labels, steps, mixed))
    return modes


def _pairwise(function: Any, values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Apply a function to neighbours along one axis; the last of an odd number stays alone."""
    before: tuple[Any, ...] = (slice(None),) * axis
    result: NDArray[Any] = values[(*before, slice(0, None, 2))].copy()
    paired = result[(*before, slice(0, values.shape[axis] // 2))]
    function(paired, values[(*before, slice(1, None, 2))], out=paired)
    return result


def _members(
    labels: NDArray[Any], steps: Sequence[int], cells: tuple[NDArray[np.intp], ...]
) -> NDArray[Any]:
    """Return the labels of some cells, one row for each place in a cell.

    Where the array ends inside a cell its labels count twice, all of them: that changes no mode.
    """
    rows = []
    for place in product(*(range(step) for step in steps)):
        at = tuple(
            np.minimum(cell * step + offset, n - 1)
            for cell, step, offset, n in zip(cells, steps, place, labels.shape, strict=True)
        )
        rows.append(labels[at])
    return np.stack(rows)


def _mode_of(members: NDArray[Any]) -> NDArray[Any]:
    """Return the most frequent entry of each column; see `reduce_mode` for ties."""
    members.sort(axis=0)
    best: NDArray[Any] = members[0].copy()
    most = np.zeros(members.shape[1], np.int32)
    for row in members:  # ascending: of equally frequent labels the smallest comes first
        count = (members == row).sum(axis=0, dtype=np.int32)
        is_better = (count > most) | ((count == most) & (best == 0) & (row != 0))
        best[is_better], most[is_better] = row[is_better], count[is_better]
    return best
