"""What a viewer says of one voxel: index, place in the world, value. Never who it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import GeometryError
from mlarray_xr.explore.central_planes import known_geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from mlarray_xr.geometry import Geometry

__all__ = ["describe_voxel"]


def describe_voxel(
    array: xr.DataArray, position: Sequence[int], *, value: Any, label: int | None = None
) -> str:
    """Return index, numeric coordinates, world position, value and label of a voxel, line by line.

    Parameters
    ----------
    array
        The image; nothing of it is read.
    position
        Index along its dimensions; one of colours may be missing.
    value
        Of the voxel: a number, or three colours.
    label
        Its label, None where there is none.

    Examples
    --------
    >>> import xarray as xr
    >>> image = xr.DataArray(
    ...     np.zeros((3, 2)), dims=("time", "x"), coords={"time": [0.0, 2.5, 5.0], "x": [9.0, 8.5]}
    ... )
    >>> print(describe_voxel(image, (1, 1), value=np.float64(7.25)))
    index  time=1  x=1
    time = 2.5
    world  x = 8.5
    value  7.25
    """
    index = {str(dim): int(at) for dim, at in zip(array.dims, position, strict=False)}
    geometry = known_geometry(array)
    spatial = () if geometry is None else geometry.dims
    lines = ["index  " + "  ".join(f"{dim}={at}" for dim, at in index.items())]
    for dim, at in index.items():
        if dim not in spatial and dim in array.coords and array[dim].dtype.kind in "iuf":
            unit = array[dim].attrs.get("units")
            text = f" {unit}" if isinstance(unit, str) and unit.isprintable() else ""
            lines.append(f"{dim} = {_number(array[dim].values[at].item())}{text}")
    if geometry is not None:
        places = geometry.index_to_world([index.get(dim, 0) for dim in spatial]).tolist()
        unit = next((unit for unit in geometry.units if unit), "")
        known = ", ".join(filter(None, (geometry.coord_system, unit)))
        names = _world_names(geometry)
        text = "  ".join(f"{name} = {place:.8g}" for name, place in zip(names, places, strict=True))
        lines.append(f"world{f' ({known})' if known else ''}  {text}")
    numbers = "  ".join(map(_number, np.atleast_1d(value).tolist()))
    lines.append(f"value  {numbers}" + ("" if label is None else f"  label  {label}"))
    return "\n".join(lines)


def _world_names(geometry: Geometry) -> tuple[str, ...]:
    """Return names of the world axes: of a patient's, of the dimensions along them, or numbers."""
    try:
        geometry.in_system("RAS")
    except GeometryError:
        along = geometry.world_axes()
    else:
        return ("x", "y", "z")
    if along is None:
        return tuple(f"axis {n}" for n in range(len(geometry.dims)))
    return tuple(geometry.dims[along.index(n)] for n in range(len(along)))


def _number(number: float) -> str:
    """Return a number as text: every digit of a whole one, six of others."""
    return f"{number:d}" if isinstance(number, int) else f"{number:.6g}"
