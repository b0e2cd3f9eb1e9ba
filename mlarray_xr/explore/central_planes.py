"""CentralPlanes: which planes of an array are looked at, and how they lie on a screen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError, GeometryError
from mlarray_xr.explore.orientation import letters
from mlarray_xr.placement import geometry_of

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.geometry import Geometry

__all__ = ["CentralPlanes", "Edges", "PlaneView", "known_geometry", "plan_central_planes"]

_MOST_UNEQUAL = 1000.0
"""Sides of more different lengths than this are drawn by their voxels: one would be no pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edges:
    """Letters of the sides of a patient that the edges of a picture show."""

    top: str
    """Above the first row on the screen."""
    bottom: str
    """Below the last one."""
    left: str
    """Left of the first column."""
    right: str
    """Right of the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneView:
    """One plane of an array and how it is shown."""

    rows: str
    """Dimension that runs down the screen, or up."""
    columns: str
    """Dimension that runs to the right."""
    position: dict[str, int]
    """Index along every other dimension."""
    extent: tuple[float, float]
    """Height and width, in units of the spacing."""
    is_flipped: bool
    """Whether the last row is at the top."""
    edges: Edges | None
    """What the edges show, None where that is not known."""
    caption: str
    """Names of rows and columns, and where across them the plane is."""

    def size_px(self, px_per_unit: float) -> tuple[int, int]:
        """Return height and width on the screen, at least a pixel."""
        height, width = (max(1, round(side * px_per_unit)) for side in self.extent)
        return height, width


@dataclass(frozen=True, slots=True, kw_only=True)
class CentralPlanes:
    """The planes through the middle of an array, one for each pair of at most three axes."""

    views: tuple[PlaneView, ...]
    """One to three."""
    unit: str
    """Of the extents."""

    def px_per_unit(self, size_px: int) -> float:
        """Return the scale at which the longest side of any plane has so many pixels."""
        return size_px / max(max(view.extent) for view in self.views)


def plan_central_planes(array: xr.DataArray) -> CentralPlanes:
    """Choose the planes through the middle of the spatial axes; of other axes the first entry.

    Proportions follow the spacing. Superior, or else anterior, is up where the geometry says RAS or
    LPS; otherwise rows run down in array order.

    Parameters
    ----------
    array
        At least 2-D. No voxel is read.

    Raises
    ------
    ConversionError
        When there are fewer than two axes, no voxels, or voxels that are no numbers.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> planes = plan_central_planes(xr.DataArray(np.zeros((4, 6, 8)), dims=("z", "y", "x")))
    >>> [view.caption for view in planes.views], planes.unit
    (['y, x  z=2', 'z, x  y=3', 'z, y  x=4'], 'voxels')
    """
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "biufc":
        raise ConversionError(
            f"an array of shape {array.shape} and type {array.dtype} has no picture: two axes and "
            "some numbers are needed"
        )
    dims = [str(dim) for dim in array.dims]
    geometry = known_geometry(array)
    spacing: dict[str, float] = {}
    if geometry is not None:
        spacing = {
            dim: step if math.isfinite(step) and step > 0 else 1.0
            for dim, step in zip(geometry.dims, geometry.spacing, strict=True)
        }
    spatial = [dim for dim in dims if dim in spacing]
    shown = (spatial if len(spatial) > 1 else dims)[-3:]
    extents = {dim: array.sizes[dim] * spacing.get(dim, 1.0) for dim in shown}
    unit = _unit(geometry, shown)
    if not max(extents.values()) <= _MOST_UNEQUAL * min(extents.values()) < math.inf:
        extents, unit = {dim: float(array.sizes[dim]) for dim in shown}, "voxels"
    views = [
        _view(array, pair, shown=shown, extents=extents, geometry=geometry)
        for pair in reversed(list(combinations(shown, 2)))
    ]
    return CentralPlanes(views=tuple(views), unit=unit)


def known_geometry(array: xr.DataArray) -> Geometry | None:
    """Return the geometry of an array, None without one that proportions can follow."""
    try:
        geometry = geometry_of(array)
    except GeometryError:
        return None
    return geometry if geometry.is_stored else None


def _view(
    array: xr.DataArray,
    pair: tuple[str, str],
    *,
    shown: list[str],
    extents: dict[str, float],
    geometry: Geometry | None,
) -> PlaneView:
    """Return how the plane of two dimensions is shown."""
    is_named = all(dim in ("x", "y", "z") for dim in pair)
    columns, rows = sorted(pair) if is_named else reversed(pair)
    position = {str(dim): 0 for dim in array.dims if dim not in pair}
    across = {dim: array.sizes[dim] // 2 for dim in shown if dim not in pair}
    text = "".join(f"  {dim}={index}" for dim, index in across.items())
    return PlaneView(
        rows=rows,
        columns=columns,
        position={**position, **across},
        extent=(extents[rows], extents[columns]),
        is_flipped=geometry is not None and _points_up(geometry, rows),
        edges=None if geometry is None else _edges(geometry, rows=rows, columns=columns),
        caption=f"{rows}, {columns}{text}",
    )


def _edges(geometry: Geometry, *, rows: str, columns: str) -> Edges | None:
    """Return the letters at the edges of a plane, None where they are not known."""
    down, across = letters(geometry, rows), letters(geometry, columns)
    if down is None or across is None:
        return None
    top, bottom = reversed(down) if _points_up(geometry, rows) else down
    return Edges(top=top, bottom=bottom, left=across[0], right=across[1])


def _points_up(geometry: Geometry, dim: str) -> bool:
    """Tell whether the last entry of a dimension belongs at the top: superior or anterior."""
    ends = letters(geometry, dim)
    return ends is not None and ends[1] in ("S", "A")


def _unit(geometry: Geometry | None, shown: list[str]) -> str:
    """Return the unit that all shown dimensions have."""
    if geometry is None:
        return "voxels"
    units = {unit for dim, unit in zip(geometry.dims, geometry.units, strict=True) if dim in shown}
    return next(iter(units)) or "units" if len(units) == 1 else "units"
