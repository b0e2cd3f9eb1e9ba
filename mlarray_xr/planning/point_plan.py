"""What becomes of points: which voxels each of them reads, and what those outside get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mlarray_xr.planning.interpolation import corner_indices, corner_weights, weighted_sum
from mlarray_xr.planning.selection import PointSelection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["Method", "Outside", "PointPlan", "plan_points"]

Method: TypeAlias = Literal["nearest", "linear"]
Outside: TypeAlias = Literal["raise", "fill", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointPlan:
    """Checked points, and what becomes of those outside."""

    points: NDArray[Any]
    """(n, s) or more columns: indices into the array, integers or fractions. Further columns are of
    axes that the array does not have any more."""
    kept: NDArray[np.intp] | None
    """Numbers of the points inside, ascending; None when all are."""
    axes: tuple[int, ...]
    """The s axes that the columns belong to; all other axes are kept whole."""
    shape: tuple[int, ...]
    """Shape of the array."""
    dtype: np.dtype[Any]
    """Type of the result."""
    method: Method
    """How fractional indices are meant."""
    fill_value: NDArray[Any] | None
    """0-D, what points outside get; None when they are dropped."""

    @property
    def n_kept(self) -> int:
        """Number of points that are read."""
        return len(self.points) if self.kept is None else len(self.kept)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of the result: the points, then the axes kept whole."""
        n = self.n_kept if self.fill_value is None else len(self.points)
        return n, *(self.shape[axis] for axis in self.other_axes)

    @property
    def other_axes(self) -> tuple[int, ...]:
        """The axes that are kept whole."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    @property
    def voxels_per_point(self) -> int:
        """Number of voxels that one point reads along `axes`."""
        return 1 << len(self.axes) if self.method == "linear" else 1

    def positions(self, some: slice) -> NDArray[Any]:
        """Return the indices of some of the points that are read, (k, s)."""
        chosen = self.points[some] if self.kept is None else self.points[self.kept[some]]
        return chosen[:, : len(self.axes)]

    def voxels(self, some: slice) -> list[NDArray[np.intp]]:
        """Return the voxels that some of the points read: for each axis (k, voxels_per_point)."""
        positions = self.positions(some)
        if self.method == "linear":
            return corner_indices(positions.astype(np.float64, copy=False))
        whole = positions if positions.dtype.kind in "iu" else np.rint(positions)
        return [column.astype(np.intp)[:, None] for column in whole.T]

    def combine(self, values: NDArray[Any], some: slice) -> NDArray[Any]:
        """Return the values at some of the points from those of their voxels.

        Parameters
        ----------
        values
            (k, voxels_per_point, ...), as `voxels` has them.
        some
            The points they belong to.
        """
        if self.method == "nearest":
            return values[:, 0]
        weights = corner_weights(self.positions(some).astype(np.float64, copy=False))
        return weighted_sum(values, weights, dtype=self.dtype)

    def selection(self, some: slice) -> PointSelection:
        """Return the voxels that some of the points read, those of a point one after another."""
        flat = {
            axis: along.reshape(-1)
            for axis, along in zip(self.axes, self.voxels(some), strict=True)
        }
        return PointSelection(
            points=tuple(flat.get(axis) for axis in range(len(self.shape))),
            ranges=tuple(None if axis in flat else range(n) for axis, n in enumerate(self.shape)),
            points_shape=flat[self.axes[0]].shape,
            points_at=0,
        )


def plan_points(
    points: ArrayLike,
    *,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axes: tuple[int, ...],
    method: Method,
    outside: Outside,
    fill_value: Any,
    n_removed: int = 0,
) -> PointPlan:
    """Check points and decide what becomes of each.

    Parameters
    ----------
    points
        (n, s) indices of voxel centres, one column for each of `axes`; integers or fractions,
        never counted from the end.
    shape, dtype
        Of the array.
    axes
        The axes that the points lie along.
    method
        ``"nearest"`` takes the voxel whose centre is nearest, of two equally near ones the even
        index: points in [-0.5, n - 0.5) are inside. ``"linear"`` interpolates between the 2^s
        voxels around, in float64: points in [0, n - 1] are inside.
    outside
        ``"raise"`` refuses points outside, ``"fill"`` gives them `fill_value`, ``"drop"`` leaves
        them out. NaN is outside.
    fill_value
        A value that the result's type holds; None is NaN where it holds that.
    n_removed
        How many more columns there are, of axes with one position that the array has no more.

    Raises
    ------
    IndexError
        When points are outside and `outside` is ``"raise"``, whatever space they came from.
    TypeError, ValueError
        When points are no (n, s) numbers, the type cannot be interpolated or does not hold the
        fill value, or a choice is unknown.
    """
    if method not in ("nearest", "linear") or outside not in ("raise", "fill", "drop"):
        msg = (
            f"method={method!r}, outside={outside!r}: methods are 'nearest' and 'linear', points "
            "outside are subject to 'raise', 'fill' or 'drop'"
        )
        raise ValueError(msg)
    if fill_value is not None and outside != "fill":
        msg = f"fill_value={fill_value!r} has no effect on outside={outside!r}. To fix: 'fill'"
        raise ValueError(msg)
    result = _result_dtype(dtype, method)
    fill = _checked_fill(fill_value, result) if outside == "fill" else None
    checked = _checked_points(points, len(axes) + n_removed)
    extents = (*(shape[axis] for axis in axes), *(1,) * n_removed)
    kept = _inside(checked, extents, method)
    if kept is not None and outside == "raise":
        wrong = int(np.flatnonzero(np.append(kept, -1) != np.arange(len(kept) + 1))[0])
        limits = "[-0.5, n - 0.5)" if method == "nearest" else "[0, n - 1]"
        msg = (
            f"{len(checked) - len(kept)} of {len(checked)} points are outside, the first is number "
            f"{wrong} at index {checked[wrong].tolist()}: with method={method!r} each index has to "
            f"be in {limits} for extents n of {extents}. To fix: outside='fill' or outside='drop'"
        )
        raise IndexError(msg)
    return PointPlan(
        points=checked,
        kept=kept,
        axes=axes,
        shape=shape,
        dtype=result,
        method=method,
        fill_value=fill,
    )


def _checked_points(points: ArrayLike, n_columns: int) -> NDArray[Any]:
    """Return points as an (n, s) array of integers or float64."""
    array = np.asarray(points)
    if array.size == 0 and array.ndim in (1, 2):
        return np.zeros((0, n_columns), np.intp)
    if array.dtype.kind not in "iuf":
        msg = f"points are of type {array.dtype}: integers or floats are needed"
        raise TypeError(msg)
    if array.ndim != 2 or array.shape[1] != n_columns:
        msg = (
            f"points of shape {array.shape}: (n, {n_columns}) is needed, one row per point and one "
            "column per axis. To fix: a single point is [[...]]"
        )
        raise ValueError(msg)
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array


def _inside(
    points: NDArray[Any], extents: tuple[int, ...], method: Method
) -> NDArray[np.intp] | None:
    """Return the numbers of the points inside, None when all are."""
    inside = np.ones(len(points), np.bool_)
    for column, n in zip(points.T, extents, strict=True):
        if method == "nearest" and column.dtype.kind == "f":
            inside &= (column >= -0.5) & (column < n - 0.5)
        else:
            inside &= (column >= 0) & (column <= n - 1)
    return None if inside.all() else np.flatnonzero(inside)


def _result_dtype(dtype: np.dtype[Any], method: Method) -> np.dtype[Any]:
    """Return the type of values at points."""
    if method == "nearest":
        return dtype
    if dtype.kind not in "biufc":
        msg = f"values of type {dtype} cannot be interpolated. To fix: method='nearest'"
        raise TypeError(msg)
    return np.result_type(dtype, np.float64)


def _checked_fill(fill_value: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return a fill value as a 0-D array of a type that holds it."""
    if fill_value is None:
        if dtype.kind in "fc":
            return np.array(np.nan, dtype)
        msg = f"outside='fill': {dtype} has no NaN. To fix: fill_value=, a value that it holds"
        raise ValueError(msg)
    given = np.asarray(fill_value)
    if given.ndim == 0 and _holds(dtype, given):
        return given.astype(dtype)
    msg = f"fill_value={fill_value!r} is no single value that {dtype} holds"
    raise ValueError(msg)


def _holds(dtype: np.dtype[Any], value: NDArray[Any]) -> bool:
    """Tell whether a type holds a value; floats may be rounded, but not to infinity."""
    if dtype.kind in "biu" and value.dtype.kind in "biuf":
        number = value.item()
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        return bool(low <= number <= high and number == int(number))
    if dtype.kind in "fc" and value.dtype.kind in "biufc":
        if value.dtype.kind == "c" and dtype.kind == "f":
            return False
        with np.errstate(over="ignore"):
            return bool(np.isfinite(value.astype(dtype)) or not np.isfinite(value))
    if not np.can_cast(value.dtype, dtype, "same_kind"):
        return False
    held = value.astype(dtype)
    return bool(held == value) or (dtype.kind in "mM" and bool(np.isnat(value)))
