"""Points of a Dask array: sorted by part, one task for each part that holds some of them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.interpolation import corner_weights, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Iterator

    import dask.array as da
    from numpy.typing import NDArray

    from mlarray_xr.planning.point_plan import PointPlan

__all__ = ["dask_points"]

# The result is cut into pieces of so many voxels read, one task each.
_VOXELS_AT_ONCE = 1 << 22


def dask_points(array: da.Array, plan: PointPlan) -> da.Array:
    """Return the values at points of a Dask array, lazily.

    A task takes from one part whatever points it holds; parts without points are never computed.
    A second kind of task puts the values into the order of the points. There is one of these for
    each 4 194 304 voxels that points read, and a part that has points of several takes part in
    each of them.

    Parameters
    ----------
    array
        What the plan was made for; the extents of its parts are known.
    plan
        From `mlarray_xr.planning.point_plan.plan_points`.

    Returns
    -------
    dask.array.Array
        Of the plan's `result_shape` and `dtype`.
    """
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    token = tokenize(array, plan.points, plan.kept, plan.axes, plan.method, plan.fill_value)
    name, picked = f"points-{token}", f"points-pick-{token}"
    others = [range(array.numblocks[axis]) for axis in plan.other_axes]
    step = max(1, _VOXELS_AT_ONCE // plan.voxels_per_point)
    n_rows = plan.result_shape[0]
    rows = [(start, min(start + step, n_rows)) for start in range(0, max(n_rows, 1), step)]
    graph: dict[Any, Any] = {}
    sources: list[Any] = [array]
    for number, (start, stop) in enumerate(rows):
        some, target = _in_rows(plan, start, stop)
        order, parts = _by_part(array, plan, some)
        positions = plan.positions(some) if plan.method == "linear" else None
        for other in itertools.product(*others):
            keys = []
            for part, local in parts:
                at = dict(zip((*plan.axes, *plan.other_axes), (*part, *other), strict=True))
                source = (array.name, *(at[axis] for axis in range(array.ndim)))
                keys.append((picked, number, *part, *other))
                graph[keys[-1]] = (_pick, source, plan.axes, local)
            shape = (
                stop - start,
                *(array.chunks[axis][i] for axis, i in zip(plan.other_axes, other, strict=True)),
            )
            merge = (_merge, keys, order, positions, target, shape, plan.dtype, plan.fill_value)
            graph[(name, number, *other)] = merge
    return da.Array(
        HighLevelGraph.from_collections(name, graph, dependencies=sources),
        name,
        chunks=(
            tuple(stop - start for start, stop in rows),
            *(array.chunks[axis] for axis in plan.other_axes),
        ),
        meta=np.empty((0,) * len(plan.result_shape), plan.dtype),
    )


def _in_rows(plan: PointPlan, start: int, stop: int) -> tuple[slice, NDArray[np.intp] | None]:
    """Return the points read for some rows of the result, and their rows unless it is all."""
    if plan.kept is None or plan.fill_value is None:
        return slice(start, stop), None
    first, last = np.searchsorted(plan.kept, (start, stop)).tolist()
    return slice(first, last), plan.kept[first:last] - start


def _by_part(
    array: da.Array, plan: PointPlan, some: slice
) -> tuple[NDArray[np.intp], list[tuple[tuple[int, ...], list[NDArray[np.intp]]]]]:
    """Return the order that sorts voxels by part, and for each part the indices inside."""
    key = np.zeros(1, np.intp)
    local, numbers = [], []
    for voxels, axis in zip(plan.voxels(some), plan.axes, strict=True):
        bounds = np.cumsum([0, *array.chunks[axis]])
        number = np.searchsorted(bounds[1:], voxels.reshape(-1), side="right")
        local.append(voxels.reshape(-1) - bounds[number])
        numbers.append(number)
        key = key * array.numblocks[axis] + number
    order = np.argsort(key)
    return order, list(_cut(key[order], order, local, numbers))


def _cut(
    key: NDArray[np.intp],
    order: NDArray[np.intp],
    local: list[NDArray[np.intp]],
    numbers: list[NDArray[np.intp]],
) -> Iterator[tuple[tuple[int, ...], list[NDArray[np.intp]]]]:
    """Yield each part and the indices inside of its voxels, in order."""
    cuts = (np.flatnonzero(np.diff(key)) + 1).tolist()
    for start, stop in itertools.pairwise([0, *cuts, len(order)] if len(order) else []):
        here = order[start:stop]
        part = tuple(int(number[here[0]]) for number in numbers)
        yield part, [along[here] for along in local]


def _pick(values: NDArray[Any], axes: tuple[int, ...], local: list[NDArray[Any]]) -> NDArray[Any]:
    """Return the values at indices into one part, (k, ...)."""
    others = tuple(axis for axis in range(values.ndim) if axis not in axes)
    picked: NDArray[Any] = np.asarray(values).transpose(axes + others)[tuple(local)]
    return picked


def _merge(
    pieces: list[NDArray[Any]],
    order: NDArray[np.intp],
    positions: NDArray[Any] | None,
    target: NDArray[np.intp] | None,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    fill_value: NDArray[Any] | None,
) -> NDArray[Any]:
    """Put the values of all parts into the order of the points, interpolate, and fill."""
    if not pieces:
        return np.full(shape, np.zeros((), dtype) if fill_value is None else fill_value, dtype)
    values = np.empty((len(order), *shape[1:]), pieces[0].dtype)
    values[order] = np.concatenate(pieces)
    if positions is not None:
        corners = values.reshape(len(positions), -1, *shape[1:])
        values = weighted_sum(corners, corner_weights(positions.astype(np.float64)), dtype=dtype)
    if target is None:
        return values
    result = np.full(shape, fill_value, dtype)
    result[target] = values
    return result
