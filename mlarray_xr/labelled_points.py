"""Values of a DataArray at points, which may be anywhere between its voxels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.dask import is_dask
from mlarray_xr.dask_points import dask_points
from mlarray_xr.placement import file_dims, geometry_of
from mlarray_xr.planning.point_plan import plan_points
from mlarray_xr.points import check_space, point_axes, read_points, world_indices

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.planning.point_plan import Method, Outside
    from mlarray_xr.planning.selection import PointSelection
    from mlarray_xr.points import Space

__all__ = ["points_of"]

_POINT = "point"
_NUMBER = "point_number"


def points_of(
    array: xr.DataArray,
    points: ArrayLike,
    *,
    space: Space,
    method: Method,
    outside: Outside,
    fill_value: Any,
) -> xr.DataArray:
    """Return the values of an array at points, in one grouped read.

    Parameters
    ----------
    array
        Backed by a file, by Dask (then the result is lazy) or by memory.
    points
        (n, s). ``"index"``: one column for each spatial dimension of the array, or for each
        dimension, in its order. ``"world"``: one column per world axis of its geometry.
    space
        See `points`.
    method, outside, fill_value
        See `mlarray_xr.planning.point_plan.plan_points`.

    Returns
    -------
    xarray.DataArray
        Dimension ``point`` first, in the order given; then the dimensions kept whole, with their
        coordinates. Where points are dropped, ``point_number`` tells which are left.

    Raises
    ------
    IndexError
        When points are outside and `outside` is ``"raise"``.
    GeometryError
        When the array does not tell where in the world it lies.
    TypeError, ValueError
        As `plan_points`; also when a dimension is already called ``point``, or Dask does not know
        the shape.
    """
    check_space(space)
    if _POINT in array.dims:
        msg = (
            f"{_POINT!r} is the dimension of the result, and one of the array: {array.dims}. "
            "To fix: array.rename(point=...)"
        )
        raise ValueError(msg)
    if np.isnan(array.shape).any():
        msg = f"extents of parts are unknown: {array.chunks}. To fix: data.compute_chunk_sizes()"
        raise ValueError(msg)
    axes, indices = _as_indices(array, points, space)
    plan = plan_points(
        indices,
        shape=array.shape,
        dtype=array.dtype,
        axes=axes,
        method=method,
        outside=outside,
        fill_value=fill_value,
        # Along dimensions that an integer selection removed, points lie on it or are outside.
        n_removed=indices.shape[1] - len(axes),
    )
    # Of an array that is neither in memory nor Dask's, `data` would read everything.
    if array.chunks is not None and is_dask(array.data):
        values: Any = dask_points(array.data, plan)
    else:
        values = read_points(plan, lambda selection: _read(array.variable, selection))
    others = [array.dims[axis] for axis in plan.other_axes]
    coords = {name: c.variable for name, c in array.coords.items() if {*c.dims} <= {*others}}
    if outside == "drop":
        kept = np.arange(len(plan.points)) if plan.kept is None else plan.kept
        coords[_NUMBER] = xr.Variable(_POINT, kept)
    return xr.DataArray(
        values, dims=(_POINT, *others), coords=coords, name=array.name, attrs=array.attrs
    )


def _as_indices(
    array: xr.DataArray, points: ArrayLike, space: Space
) -> tuple[tuple[int, ...], NDArray[Any]]:
    """Return the axes that points lie along and their indices; further columns are of no axis."""
    if space == "index":
        names = {*file_dims(array).values()} or {"x", "y", "z"}
        spatial = tuple(axis for axis, dim in enumerate(array.dims) if dim in names)
        return point_axes(points, spatial=spatial, ndim=array.ndim)
    geometry = geometry_of(array)
    indices = world_indices(points, geometry=geometry)
    here = tuple(array.dims.index(dim) for dim in geometry.dims if dim in array.dims)
    if not here:
        msg = (
            f"points lie along spatial dimensions, the array has none: {array.dims}. To fix: "
            "select with slices, array.isel(x=slice(3, 4)), which keep the dimension"
        )
        raise ValueError(msg)
    return here, indices


def _read(variable: xr.Variable, selection: PointSelection) -> NDArray[Any]:
    """Read a selection, the points first, in one vectorised read."""
    indexers = {
        dim: xr.Variable(_POINT, along)
        for dim, along in zip(variable.dims, selection.points, strict=True)
        if along is not None
    }
    values: NDArray[Any] = variable.isel(indexers).transpose(_POINT, ...).to_numpy()
    return values
