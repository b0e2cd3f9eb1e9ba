"""Values at points: which axes they lie along, where in the array, and how they are read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mlarray_xr.storage.gather import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.geometry import Geometry
    from mlarray_xr.planning.point_plan import PointPlan
    from mlarray_xr.planning.selection import PointSelection

__all__ = ["Space", "check_space", "point_axes", "read_points", "world_indices"]

Space: TypeAlias = Literal["index", "world"]

_VOXELS_AT_ONCE = 1 << 22
_ELEMENTS_AT_ONCE = 1 << 24
_WHOLE = 1e-6
"""An index this close to an integer is that integer: world positions carry rounding."""


def check_space(space: str) -> None:
    """Refuse spaces that there are not."""
    if space not in ("index", "world"):
        msg = f"space={space!r} is not 'index' or 'world'"
        raise ValueError(msg)


def point_axes(
    points: ArrayLike, *, spatial: tuple[int, ...], ndim: int
) -> tuple[tuple[int, ...], NDArray[Any]]:
    """Return the axes that the columns of points in index space belong to, and the points.

    Parameters
    ----------
    points
        (n, s): one column for each spatial axis, or one for each axis. May be empty.
    spatial
        The spatial axes, array order.
    ndim
        Number of axes.

    Raises
    ------
    ValueError
        For any other number of columns.

    Examples
    --------
    >>> point_axes([(7, 8, 9)], spatial=(1, 2, 3), ndim=4)[0]
    (1, 2, 3)
    >>> point_axes([(0, 7, 8, 9)], spatial=(1, 2, 3), ndim=4)[0]
    (0, 1, 2, 3)
    """
    array = np.asarray(points)
    every = tuple(range(ndim))
    if ndim and array.shape == (0,):
        axes = spatial or every
        return axes, np.zeros((0, len(axes)), np.intp)
    for axes in (spatial, every):
        if axes and array.ndim == 2 and array.shape[1] == len(axes):
            return axes, array
    counts = sorted({len(spatial), ndim} - {0})
    msg = (
        f"points of shape {array.shape} do not fit an array of {ndim} axes, of which {spatial} are "
        f"spatial. To fix: (n, s) with s in {counts}, columns in array order; a single point is "
        "[[...]]"
    )
    raise ValueError(msg)


def world_indices(positions: ArrayLike, *, geometry: Geometry) -> NDArray[np.float64]:
    """Return the fractional indices of world positions, (n, s), in the order of the dimensions.

    Positions within a millionth of a voxel of a voxel centre are that centre: the last one would
    be outside otherwise, where rounding has it so.

    Parameters
    ----------
    positions
        (n, s), one column per world axis of the geometry; may be empty.
    geometry
        Where the array lies.

    Raises
    ------
    GeometryError
        When positions do not determine indices.
    ValueError
        When positions are no (n, s) numbers.
    """
    n_axes = len(geometry.dims)
    world = np.asarray(positions)
    if world.shape == (0,):
        world = np.zeros((0, n_axes))
    if world.ndim != 2 or world.shape[1] != n_axes or world.dtype.kind not in "iuf":
        msg = (
            f"world positions of shape {world.shape} and type {world.dtype}: numbers of shape "
            f"(n, {n_axes}) are needed, one column per world axis"
        )
        raise ValueError(msg)
    indices = geometry.world_to_index(world)
    nearest = np.rint(indices)
    return np.where(np.abs(indices - nearest) <= _WHOLE, nearest, indices)


def read_points(plan: PointPlan, read: Callable[[PointSelection], NDArray[Any]]) -> NDArray[Any]:
    """Read the values at points, in batches of bounded memory.

    Parameters
    ----------
    plan
        From `plan_points`.
    read
        Returns what a selection means, the points first.

    Returns
    -------
    numpy.ndarray
        (n, ...): one row per point in the order given, duplicates included, then the axes kept
        whole, in array order. Of dropped points there is no row.

    Examples
    --------
    >>> from mlarray_xr.planning.point_plan import plan_points
    >>> voxels = np.arange(12).reshape(3, 4)
    >>> plan = plan_points(
    ...     [(2, 3), (0.5, 0.5), (9, 9)],
    ...     shape=voxels.shape,
    ...     dtype=voxels.dtype,
    ...     axes=(0, 1),
    ...     method="linear",
    ...     outside="fill",
    ...     fill_value=-1,
    ... )
    >>> read_points(plan, lambda selection: voxels[selection.points])
    array([11. ,  2.5, -1. ])
    """
    others = plan.result_shape[1:]
    per_point = plan.voxels_per_point
    if per_point == 1 and 0 < plan.n_kept == plan.result_shape[0] <= _VOXELS_AT_ONCE:
        return read(plan.selection(slice(None)))
    out = allocate(plan.result_shape, plan.dtype)
    if plan.kept is not None and plan.fill_value is not None:
        out[...] = plan.fill_value
    n_elements = max(1, math.prod(others))
    step = max(1, min(_VOXELS_AT_ONCE, _ELEMENTS_AT_ONCE // n_elements) // per_point)
    for start in range(0, plan.n_kept if out.size else 0, step):
        some = slice(start, min(start + step, plan.n_kept))
        values = read(plan.selection(some)).reshape(-1, per_point, *others)
        is_dense = plan.kept is None or plan.fill_value is None
        target = some if is_dense or plan.kept is None else plan.kept[some]
        out[target] = plan.combine(values, some)
    return out
