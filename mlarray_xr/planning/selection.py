"""NumPy keys as values: which elements an indexing expression wants, and in which shape."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OuterSelection",
    "PointSelection",
    "VectorizedSelection",
    "is_scalar_key",
    "plan_outer",
    "plan_runs",
    "plan_selection",
    "plan_vectorized",
]

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OuterSelection:
    """The outer product of one index list per axis; the result has `shape`.

    Slices and integers are ranges, integer arrays are arrays: both non-negative.
    """

    axes: tuple[range | Indices, ...]
    """Wanted positions along each axis, any order, repeats allowed."""
    shape: tuple[int, ...]
    """Shape of the result: integers drop their axis, N-D arrays bring theirs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointSelection:
    """Points along some axes, crossed with ranges along the others."""

    points: tuple[Indices | None, ...]
    """1-D positions along each axis, all equally long; None where a range is taken."""
    ranges: tuple[range | None, ...]
    """The range along each axis that has no points."""
    points_shape: tuple[int, ...]
    """Shape of the broadcast index arrays."""
    points_at: int
    """Where that shape stands among the result's axes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VectorizedSelection:
    """What to read for one broadcastable index array per axis, and how to shape it afterwards."""

    selection: OuterSelection | PointSelection
    """What to read."""
    order: tuple[int, ...]
    """How to permute the axes read."""
    spread: tuple[int, ...]
    """Shape to give the permuted values, ready for broadcasting."""
    shape: tuple[int, ...]
    """Shape of the result."""


def plan_vectorized(
    key: tuple[NDArray[np.integer[Any]], ...], shape: tuple[int, ...]
) -> VectorizedSelection:
    """Plan one index array per axis, recovering the outer product where there is one.

    xarray hands every lazy transpose, and points along some axes only, to its backends as dense
    broadcast index arrays: read point by point, a transposed volume would be millions of points.

    Parameters
    ----------
    key
        Integer arrays, mutually broadcastable, one per axis; negative positions count from the end.
    shape
        Shape of the array.

    Raises
    ------
    IndexError
        When a position lies outside the array.
    """
    result = np.broadcast_shapes(*[k.shape for k in key])
    positions = []
    for axis, (k, extent) in enumerate(zip(key, shape, strict=True)):
        if k.size:
            _check_bounds(int(k.min()), int(k.max()), axis=axis, extent=extent)
        padded = k.reshape((1,) * (len(result) - k.ndim) + k.shape)
        positions.append(_without_repeats(np.where(padded < 0, padded + extent, padded)))
    varying = [tuple(i for i, n in enumerate(p.shape) if n != 1) for p in positions]
    used = [i for axes in varying for i in axes]
    if all(len(axes) <= 1 for axes in varying) and len(used) == len(set(used)):
        lists = tuple(p.reshape(-1).astype(np.intp) for p in positions)
        kept = [axes[0] for axes in varying if axes]
        spread = [1] * len(result)
        for axes, along in zip(varying, lists, strict=True):
            if axes:
                spread[axes[0]] = len(along)
        lengths = tuple(len(p) for p, axes in zip(lists, varying, strict=True) if axes)
        return VectorizedSelection(
            selection=OuterSelection(axes=lists, shape=lengths),
            order=tuple(int(i) for i in np.argsort(kept)),
            spread=tuple(spread),
            shape=result,
        )
    broadcast = np.broadcast_arrays(*positions)
    spread_shape = broadcast[0].shape
    points = PointSelection(
        points=tuple(b.reshape(-1).astype(np.intp) for b in broadcast),
        ranges=(None,) * len(shape),
        points_shape=spread_shape,
        points_at=0,
    )
    order = tuple(range(len(spread_shape)))
    return VectorizedSelection(selection=points, order=order, spread=spread_shape, shape=result)


def _without_repeats(positions: NDArray[Any]) -> NDArray[Any]:
    """Drop the dense broadcast: keep one entry along every axis on which nothing changes."""
    for axis, n in enumerate(positions.shape):
        first = positions[(slice(None),) * axis + (slice(0, 1),)]
        if n > 1 and (positions == first).all():
            positions = first
    return positions


def plan_selection(key: Any, shape: tuple[int, ...]) -> OuterSelection | PointSelection:
    """Translate a NumPy key into the selection it means, NumPy's rules throughout.

    Raises
    ------
    IndexError
        For positions outside the array, too many indices, new axes, and index types NumPy refuses.
    """
    entries, dots_at = _expand(key if isinstance(key, tuple) else (key,), shape)
    axes: list[range | int | Indices] = [
        _axis_entry(entry, axis=axis, extent=n)
        for axis, (entry, n) in enumerate(zip(entries, shape, strict=True))
    ]
    arrays = [axis for axis, entry in enumerate(axes) if isinstance(entry, np.ndarray)]
    integers = [axis for axis, entry in enumerate(axes) if isinstance(entry, int)]
    if len(arrays) + len(integers) > 1 and arrays:
        return _point_selection(axes, sorted(arrays + integers), dots_at=dots_at)
    positions: list[range | Indices] = []
    result: list[int] = []
    for entry in axes:
        if isinstance(entry, int):
            positions.append(range(entry, entry + 1))
        elif isinstance(entry, range):
            positions.append(entry)
            result.append(len(entry))
        else:
            positions.append(entry.reshape(-1))
            result.extend(entry.shape)
    return OuterSelection(axes=tuple(positions), shape=tuple(result))


def is_scalar_key(key: Any) -> bool:
    """Tell whether a key of one element means a NumPy scalar: one without an ellipsis."""
    entries = key if isinstance(key, tuple) else (key,)
    return not any(isinstance(entry, EllipsisType) for entry in entries)


def plan_outer(key: tuple[Any, ...], shape: tuple[int, ...]) -> OuterSelection:
    """Plan one integer, slice or 1-D integer array per axis, each along its own axis.

    Raises
    ------
    IndexError
        When a position lies outside the array.
    """
    axes: list[range | Indices] = []
    result: list[int] = []
    for axis, (entry, extent) in enumerate(zip(key, shape, strict=True)):
        wanted = _axis_entry(entry, axis=axis, extent=extent)
        axes.append(range(wanted, wanted + 1) if isinstance(wanted, int) else wanted)
        if not isinstance(wanted, int):
            result.append(len(wanted))
    return OuterSelection(axes=tuple(axes), shape=tuple(result))


def plan_runs(indices: range | Indices, *, gap: int) -> list[tuple[int, int]]:
    """Group positions into runs: start/stop pairs that together cover them all.

    Positions at most `gap` apart share a run: closer than a block, the elements between them are
    decoded anyway.

    Parameters
    ----------
    indices
        Non-negative positions, any order.
    gap
        Largest distance inside a run.
    """
    if len(indices) == 0:
        return []
    if isinstance(indices, range) and abs(indices.step) <= gap:
        return [(min(indices[0], indices[-1]), max(indices[0], indices[-1]) + 1)]
    ordered = np.unique(np.asarray(indices))
    breaks = np.flatnonzero(np.diff(ordered) > gap)
    starts = ordered[np.concatenate(([0], breaks + 1))]
    stops = ordered[np.concatenate((breaks, [len(ordered) - 1]))] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def _expand(key: tuple[Any, ...], shape: tuple[int, ...]) -> tuple[list[Any], int]:
    """Return one entry per axis, masks turned into positions, and the axis the ellipsis is at."""
    entries = [_as_mask(entry) for entry in key]
    if any(entry is None for entry in entries):
        msg = "new axes (None, newaxis) are not made here. To fix: index the result, x[...][None]"
        raise IndexError(msg)
    dots = [i for i, entry in enumerate(entries) if isinstance(entry, EllipsisType)]
    if len(dots) > 1:
        msg = "an index can only have a single ellipsis ('...')"
        raise IndexError(msg)
    at = dots[0] if dots else len(entries)
    used = sum(_axes_used(entry) for i, entry in enumerate(entries) if i != at)
    if used > len(shape):
        msg = f"too many indices: {used} for an array of {len(shape)} axes {shape}"
        raise IndexError(msg)
    entries[at : at + 1] = [slice(None)] * (len(shape) - used)
    expanded: list[Any] = []
    dots_at = len(shape)
    for i, entry in enumerate(entries):
        if i == at:
            dots_at = len(expanded)
        if isinstance(entry, np.ndarray) and entry.dtype == bool:
            covered = shape[len(expanded) : len(expanded) + entry.ndim]
            if entry.shape != covered:
                msg = f"boolean index of shape {entry.shape} on axes of extents {covered}"
                raise IndexError(msg)
            expanded.extend(entry.nonzero())
        else:
            expanded.append(entry)
    return expanded, dots_at


def _as_mask(entry: Any) -> Any:
    """Return a boolean list or array as an array, anything else as it is."""
    if isinstance(entry, np.ndarray | list) and np.asarray(entry).dtype == bool:
        return np.asarray(entry) if np.ndim(entry) else bool(entry)
    return entry


def _axes_used(entry: Any) -> int:
    """Return how many axes an entry indexes: a boolean mask as many as it has."""
    return entry.ndim if isinstance(entry, np.ndarray) and entry.dtype == bool else 1


def _axis_entry(entry: Any, *, axis: int, extent: int) -> range | int | Indices:
    """Return one axis's entry as a range, a non-negative integer or a non-negative array."""
    if isinstance(entry, slice):
        return range(extent)[entry]
    if isinstance(entry, bool | np.bool_):
        msg = "a single boolean is not an index here. To fix: use a boolean array or an integer"
        raise IndexError(msg)
    if not isinstance(entry, np.ndarray | list | tuple):
        try:
            position = operator.index(entry)
        except TypeError:
            msg = f"only integers, slices, ellipsis and integer arrays are indices, got {entry!r}"
            raise IndexError(msg) from None
        _check_bounds(position, position, axis=axis, extent=extent)
        return position % extent
    array = np.asarray(entry)
    if array.size == 0 and (array.dtype.kind in "iu" or not isinstance(entry, np.ndarray)):
        return np.zeros(array.shape, np.intp)
    if array.dtype.kind not in "iu":
        msg = f"arrays used as indices must be of integer (or boolean) type, got {array.dtype}"
        raise IndexError(msg)
    _check_bounds(int(array.min()), int(array.max()), axis=axis, extent=extent)
    array = array.astype(np.intp)
    return np.where(array < 0, array + extent, array)


def _check_bounds(lowest: int, highest: int, *, axis: int, extent: int) -> None:
    """Refuse positions outside ``[-extent, extent)``."""
    if lowest < -extent or highest >= extent:
        wrong = lowest if lowest < -extent else highest
        msg = f"index {wrong} is out of bounds for axis {axis} with size {extent}"
        raise IndexError(msg)


def _point_selection(
    axes: list[range | int | Indices], advanced: list[int], *, dots_at: int
) -> PointSelection:
    """Broadcast the index arrays of a key that has several of them."""
    try:
        broadcast = np.broadcast_arrays(*[np.asarray(axes[axis]) for axis in advanced])
    except ValueError as error:
        shapes = [np.shape(axes[axis]) for axis in advanced]
        msg = f"shape mismatch: index arrays of shapes {shapes} cannot be broadcast together"
        raise IndexError(msg) from error
    by_axis = dict(zip(advanced, broadcast, strict=True))
    # NumPy: index arrays next to each other keep their place, separated ones move to the front.
    # An ellipsis separates them even where it stands for no axis.
    together = advanced[-1] - advanced[0] == len(advanced) - 1
    together &= not advanced[0] < dots_at <= advanced[-1]
    return PointSelection(
        points=tuple(
            by_axis[axis].reshape(-1).astype(np.intp) if axis in by_axis else None
            for axis in range(len(axes))
        ),
        ranges=tuple(entry if isinstance(entry, range) else None for entry in axes),
        points_shape=broadcast[0].shape,
        points_at=advanced[0] if together else 0,
    )
