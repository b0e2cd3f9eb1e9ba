"""Where the voxels of a DataArray in hand lie, after whatever was done to it.

Attributes keep the affine of the file and coordinates keep what was selected: integer or float
positions survive slices, strides, flips, transposes and arithmetic, so the geometry of the view
follows and cannot go stale. Each coordinate names its dimension in the file, so it survives
renaming too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from mlarray_xr.errors import GeometryError
from mlarray_xr.geometry import Geometry, names_patient_axes

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["INDEX", "SPATIAL_DIM", "WORLD", "file_dims", "file_positions", "geometry_of"]

WORLD = "world position"
"""Value of the attribute ``spatial_coords``: coordinates are positions of voxel centres."""

INDEX = "voxel index"
"""Value of the attribute ``spatial_coords``: coordinates are indices into the stored array."""

SPATIAL_DIM = "spatial_dim"
"""Attribute of a spatial coordinate: the name of its dimension in the file."""

_IRREGULAR = 1e-3
"""How far, in steps, a position may lie from an even run of positions."""

_WHOLE = 1e-6
"""An index this close to an integer is that integer: coordinates carry rounding."""


def file_dims(array: xr.DataArray) -> dict[str, str]:
    """Return the names that the spatial dimensions of the file have now, by those in the file."""
    names = array.attrs.get("spatial_dims")
    dims = names.split() if isinstance(names, str) else []
    return {dim: _name_now(array, dim) for dim in dims}


def _name_now(array: xr.DataArray, dim: str) -> str:
    """Return the name that a dimension of the file has now: its own where nothing says otherwise.

    Coordinates computed from a spatial one inherit its attributes, so the name itself goes first.
    """
    claims = [
        str(name)
        for name, coordinate in array.coords.items()
        if coordinate.attrs.get(SPATIAL_DIM) == dim and coordinate.dims in ((), (name,))
    ]
    return claims[0] if len(claims) == 1 and dim not in claims else dim


def _file_geometry(array: xr.DataArray) -> Geometry | None:
    """Return the geometry of the stored array under the present names; None without any.

    Raises
    ------
    GeometryError
        When the attributes were edited so that they no longer agree, or two dimensions of the file
        have one name now.
    """
    attrs = array.attrs
    names = attrs.get("spatial_dims")
    if not isinstance(names, str):
        return None
    dims = tuple(file_dims(array).values())
    if len({*dims}) < len(dims):
        raise GeometryError(
            f"renamed dimensions cannot be told apart: those of the file are {names!r}, and their "
            f"coordinates are now {dims}. Keep the coordinates of all dimensions that are renamed, "
            "or give the geometry up: array.drop_attrs()"
        )
    size = len(dims) + 1
    affine = np.eye(size)
    if "affine" in attrs:
        try:
            affine = np.asarray(attrs["affine"], dtype=np.float64).reshape(size, size)
        except (TypeError, ValueError) as error:
            raise GeometryError(
                f"attribute 'affine' does not hold the {size} x {size} numbers that "
                f"spatial_dims={names!r} needs, row by row; correct one of the two"
            ) from error
    system = attrs.get("coord_system")
    return Geometry(
        dims=dims,
        affine=tuple(tuple(row) for row in affine.tolist()),
        units=(None,) * len(dims),
        coord_system=system if isinstance(system, str) else None,
        is_stored="affine" in attrs,
    )


def geometry_of(array: xr.DataArray) -> Geometry:
    """Return the geometry of an array as it is now.

    Its dimensions are the array's spatial ones in the array's order, followed by those that an
    integer selection removed: these stay as scalar coordinates and count as index 0. Without
    attributes the coordinates x, y and z alone are the geometry, if they are floating.

    Raises
    ------
    GeometryError
        When positions are unknown, uneven or those of scattered points.

    Examples
    --------
    >>> import xarray as xr
    >>> profile = xr.DataArray([4, 5, 6, 7], dims="x", coords={"x": [1.0, 1.5, 2.0, 2.5]})
    >>> geometry_of(profile[::-2]).affine
    ((-1.0, 2.5), (0.0, 1.0))
    """
    base = _file_geometry(array)
    spatial = () if base is None else base.dims
    here = [str(dim) for dim in array.dims if dim in (spatial or ("x", "y", "z"))]
    is_floating = any(dim in array.coords and array[dim].dtype.kind == "f" for dim in here)
    if base is None or (not base.is_stored and is_floating):
        return _from_coordinates(array, here, base)
    removed = [dim for dim in base.dims if dim not in here and dim in array.coords]
    lost = [dim for dim in base.dims if dim not in here and dim not in array.coords]
    # Along an axis that was averaged over or dropped nothing is known, and nothing needs to be if
    # it shares no world axis with the others.
    remaining = base if not lost else None if base.world_axes() is None else base.without(lost)
    if remaining is None or not remaining.dims:
        raise _unknown(array, lost)
    start, step = zip(*(_run(array, dim, base) for dim in remaining.dims), strict=True)
    order = [remaining.dims.index(dim) for dim in (*here, *removed)]
    moved = remaining.moved(start=start, step=step, order=order)
    return _with_units(moved, array)


def file_positions(array: xr.DataArray, dim: str) -> NDArray[np.float64] | None:
    """Return the indices into the stored array along a spatial dimension; None where unknown."""
    base = _file_geometry(array)
    if base is None or dim not in base.dims or dim not in array.coords:
        return None
    if array[dim].dtype.kind not in "iuf":
        return None
    origin, scale = _scale(array, dim, base)
    values = np.asarray(array[dim].values, dtype=np.float64)
    return _whole((values - origin) / scale)


def _run(array: xr.DataArray, dim: str, base: Geometry) -> tuple[float, float]:
    """Return first index into the file and step along one dimension."""
    if dim not in array.coords:
        raise _unknown(array, [dim])
    coordinate = array[dim]
    if coordinate.ndim and coordinate.dims != (dim,):
        raise GeometryError(
            f"{dim!r} holds one position for each of the points along {coordinate.dims}: points "
            "form no grid and have no affine. Use their coordinates directly"
        )
    origin, scale = _scale(array, dim, base)
    index = array.indexes.get(dim)
    if isinstance(index, pd.RangeIndex) and len(index) and (origin, scale) == (0.0, 1.0):
        return float(index[0]), float(index.step)
    positions = file_positions(array, dim)
    if positions is None:
        raise _unknown(array, [dim])
    first, step = _even(dim, np.atleast_1d(positions))
    return first, float(_whole(np.asarray(step)))


def _even(dim: str, positions: NDArray[np.float64]) -> tuple[float, float]:
    """Return first and step of an even run of positions."""
    n = len(positions)
    first = float(positions[0]) if n else 0.0
    if n < 2:
        return first, 1.0
    mean = float(positions[-1] - positions[0]) / (n - 1)
    errors = np.abs(positions - (first + mean * np.arange(n)))
    if mean == 0 or not (errors <= _IRREGULAR * abs(mean)).all():
        raise GeometryError(
            f"the {n} positions along {dim!r} are not evenly spaced, so no affine is true for "
            f"them. 1. Select with a slice. 2. Resample: array.interp({dim}=...). "
            f"3. Use the coordinate array[{dim!r}] itself"
        )
    # Of equally good steps, the one that gives these very positions back keeps round trips exact.
    steps = (mean, float(positions[1]) - first, float(f"{mean:.12g}"))
    exact = (step for step in steps if np.array_equal(first + step * np.arange(n), positions))
    return first, next(exact, mean)


def _scale(array: xr.DataArray, dim: str, base: Geometry) -> tuple[float, float]:
    """Return the coordinate of index 0 and the difference between neighbours in the file."""
    world = base.world_axes()
    meaning = array.attrs.get("spatial_coords", INDEX if world is None else WORLD)
    if meaning != WORLD or world is None or not base.is_stored:
        return 0.0, 1.0
    axis = base.dims.index(dim)
    row = base.affine[world[axis]]
    return row[-1], row[axis]


def _whole(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round positions that are integers but for rounding errors."""
    nearest = np.rint(positions)
    return np.where(np.abs(positions - nearest) <= _WHOLE, nearest, positions)


def _from_coordinates(array: xr.DataArray, dims: list[str], base: Geometry | None) -> Geometry:
    """Build the geometry that 1-D coordinates alone describe.

    World axes are in array order, or x, y, z where the array is said to be RAS or LPS.
    """
    if not dims or any(dim not in array.coords for dim in dims):
        raise _unknown(array, [dim for dim in dims if dim not in array.coords])
    if all(array[dim].dtype.kind != "f" for dim in dims):
        raise _unknown(array, dims)
    system = base.coord_system if base is not None else array.attrs.get("coord_system")
    rows = list(range(len(dims)))
    if sorted(dims) == ["x", "y", "z"] and names_patient_axes(system):
        rows = [sorted(dims).index(dim) for dim in dims]
    affine = np.zeros((len(dims) + 1,) * 2)
    affine[-1, -1] = 1.0
    for axis, (row, dim) in enumerate(zip(rows, dims, strict=True)):
        if array[dim].dtype.kind not in "iuf" or array[dim].dims != (dim,):
            raise _unknown(array, [dim])
        values = np.asarray(array[dim].values, dtype=np.float64)
        affine[row, -1], affine[row, axis] = _even(dim, values)
    found = Geometry(
        dims=tuple(dims),
        affine=tuple(tuple(row) for row in affine.tolist()),
        units=(None,) * len(dims),
        coord_system=system if isinstance(system, str) else None,
    )
    return _with_units(found, array)


def _with_units(geometry: Geometry, array: xr.DataArray) -> Geometry:
    """Add the units that the coordinates name."""
    units = []
    for dim in geometry.dims:
        attrs = array[dim].attrs if dim in array.coords else {}
        unit = attrs.get("units", attrs.get("spacing_units"))
        units.append(unit if isinstance(unit, str) else None)
    return replace(geometry, units=tuple(units))


def _unknown(array: xr.DataArray, dims: list[str]) -> GeometryError:
    """Say that positions are unknown and what to do."""
    what = f"dimensions {dims} of an array with" if dims else "an array with"
    return GeometryError(
        f"positions are unknown for {what} dims {array.dims} and coordinates "
        f"{sorted(map(str, array.coords))}. 1. Keep the coordinates and attributes that "
        "the file was opened with. 2. Assign positions: array.assign_coords(z=...), floats, one "
        "per voxel centre. 3. For a mean or maximum of oblique slices, state where the result "
        "lies: assign_coords(z=index). 4. Give the geometry up: array.drop_attrs()"
    )
