"""Coordinates of a file as xarray coordinates, and back."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mlarray_xr.attributes import is_name, read_metadata
from mlarray_xr.errors import MlaWarning
from mlarray_xr.placement import INDEX, SPATIAL_DIM, WORLD, file_positions
from mlarray_xr.record import Record, StoredCoordinate

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import xarray as xr

    from mlarray_xr.geometry import Geometry

__all__ = ["attach_coords", "coords_to_store", "spatial_coords", "with_stored_coords"]

_MOST_FLOATS = 1 << 24
"""Longest axis that gets float coordinates: a file may claim any extent."""

_POSITION = {"long_name": "index in the stored array"}
"""Marks the coordinate of a dimension that needs one to follow selections, and has none."""


def spatial_coords(geometry: Geometry, sizes: Mapping[str, int]) -> tuple[dict[str, Any], str]:
    """Return the coordinates of the spatial dimensions, and what they mean.

    Positions of voxel centres, 1-D float64, where they are true for every voxel of a plane: the
    geometry is stored and axis-aligned, and float64 tells neighbours apart. Otherwise indices,
    which take no memory. Dimensions of a volume that the array lacks get a scalar.
    """
    units = dict(zip(geometry.dims, geometry.units, strict=True))
    if geometry.is_stored and geometry.world_axes() is not None:
        lengths = [sizes.get(dim, 1) for dim in geometry.dims]
        if max(lengths) <= _MOST_FLOATS:
            values = [geometry.coordinate(axis, n) for axis, n in enumerate(lengths)]
            if all(np.isfinite(v).all() and (np.diff(v) != 0).all() for v in values):
                return {
                    dim: _variable(dim, sizes, v, _world_attrs(dim, units[dim]))
                    for dim, v in zip(geometry.dims, values, strict=True)
                }, WORLD
    coords = {}
    for dim in geometry.dims:
        unit = {} if units[dim] is None else {"spacing_units": units[dim]}
        attrs = {"long_name": f"voxel index along {dim}", SPATIAL_DIM: dim, **unit}
        coords[dim] = _variable(dim, sizes, pd.RangeIndex(sizes.get(dim, 1)), attrs)
    return coords, INDEX


def with_stored_coords(
    coords: Mapping[str, Any], record: Record, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Add the stored scalars and dimension coordinates that fit the array, and let them win.

    They are stored where they do not follow from the geometry. A dimension that has none, but along
    which others are stored, gets a position: `attach_coords` needs it.
    """
    coords = dict(coords)
    for name, found in record.coords.items():
        is_index = found.dims == (name,) and sizes.get(name) == len(found.values)
        if is_index or (not found.dims and name not in sizes):
            coords[name] = (found.dims, found.values, found.attrs)
    for name, found in record.coords.items():
        if found.dims and found.dims != (name,) and sizes.get(found.dims[0]) == len(found.values):
            dim = found.dims[0]
            coords.setdefault(dim, (dim, pd.RangeIndex(sizes[dim]), dict(_POSITION)))
    return coords


def attach_coords(array: xr.DataArray) -> xr.DataArray:
    """Add the stored 1-D coordinates that have no index, such as b-values along time.

    Opening leaves them out, because Dask chunks would make them inconsistent with the data. They
    follow what was selected since.

    Parameters
    ----------
    array
        Opened from a file, whole or any selection of it.

    Examples
    --------
    >>> import xarray as xr, mlarray_xr
    >>> series = xr.DataArray([7, 8, 9], dims="time", coords={"bval": ("time", [0, 700, 1000])})
    >>> _ = mlarray_xr.to_mla(series, "series.mla")
    >>> attach_coords(mlarray_xr.open_mla("series.mla")[1:]).bval.values
    array([ 700, 1000])
    """
    described = read_metadata(array.attrs)
    if described is None:
        return array
    record = Record.of(described[0], shape=described[1])
    for name, found in record.coords.items():
        if len(found.dims) != 1 or found.dims == (name,) or name in {*array.coords, *array.dims}:
            continue
        positions = _positions(array, found.dims[0], record)
        if positions is not None and ((positions >= 0) & (positions < len(found.values))).all():
            dims = array.coords[found.dims[0]].dims
            array = array.assign_coords({name: (dims, found.values[positions], found.attrs)})
    return array


def coords_to_store(array: xr.DataArray, covered: Collection[str]) -> dict[str, StoredCoordinate]:
    """Return the coordinates that reading would not bring back by itself.

    Parameters
    ----------
    array
        What is written.
    covered
        Names whose coordinates follow from the stored geometry.

    Warns
    -----
    MlaWarning
        When a coordinate cannot be stored: several dimensions, or no plain values.
    """
    coords = {}
    for name, found in array.coords.items():
        is_position = found.attrs.get("long_name") == _POSITION["long_name"]
        if name in covered or (is_position and found.dtype.kind == "i"):
            continue
        try:
            if found.ndim > 1:
                raise TypeError(f"{found.ndim} dimensions")  # noqa: TRY301 - before it is computed
            if not is_name(name):
                raise TypeError("names are at most 256 printable characters")  # noqa: TRY301
            dims = tuple(map(str, found.dims))
            attrs = {key: value for key, value in found.attrs.items() if key != SPATIAL_DIM}
            coordinate = StoredCoordinate(dims=dims, values=found.values, attrs=attrs)
            coordinate.to_entry()
        except TypeError as error:
            warnings.warn(
                f"coordinate {name!r} is not stored in the file: {error}. A file holds scalars and "
                "1-D coordinates of numbers, texts and times. To silence this, drop it: "
                f"array.drop_vars({name!r})",
                MlaWarning,
                stacklevel=2,
            )
        else:
            coords[str(name)] = coordinate
    return coords


def _variable(dim: str, sizes: Mapping[str, int], values: Any, attrs: dict[str, Any]) -> Any:
    """Return a coordinate along its dimension, or as a scalar where the array lacks it."""
    return (dim, values, attrs) if dim in sizes else ((), values[0], attrs)


def _world_attrs(dim: str, unit: str | None) -> dict[str, str]:
    """Return the attributes of a coordinate of positions, as CF and pint readers expect them."""
    attrs = {"long_name": f"voxel centre along {dim}", SPATIAL_DIM: dim}
    if dim in {"x", "y", "z"}:
        attrs["axis"] = dim.upper()
    if unit is not None:
        attrs["units"] = unit
    return attrs


def _positions(array: xr.DataArray, dim: str, record: Record) -> Any:
    """Return integer indices into the stored array along a dimension, None where unknown."""
    if dim not in array.coords:
        return None
    values = array.coords[dim].values
    along_space = file_positions(array, dim)
    if along_space is not None:
        is_whole = (along_space == np.rint(along_space)).all()
        return along_space.astype(np.int64) if is_whole else None
    if array.coords[dim].attrs.get("long_name") == _POSITION["long_name"]:
        return values
    original = record.coords.get(dim)
    index = None if original is None else pd.Index(original.values)
    if index is None or not index.is_unique or math.prod(values.shape) == 0:
        return None
    return index.get_indexer(np.atleast_1d(values)).reshape(values.shape)
