"""What there is to look at: the planes of an array, their proportions, and which side is up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.explore.central_planes import known_geometry, plan_central_planes
from mlarray_xr.explore.orientation import letters

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.explore.central_planes import PlaneView
    from mlarray_xr.geometry import Geometry

__all__ = ["PlaneAxes", "Scene", "scene_of"]

_COLOURS = 3
_NAMES = {"LR": "sagittal", "AP": "coronal", "IS": "axial"}
"""Of planes, by the sides that the axis across them runs between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneAxes:
    """Two dimensions of an array as rows and columns of a picture."""

    name: str
    """Anatomical, or the two dimensions where several would be named alike."""
    rows: str
    """Dimension that runs down, or up when flipped."""
    columns: str
    """Dimension that runs to the right."""
    is_flipped: bool
    """Whether the last row is at the top: superior or anterior is up."""
    row_letters: tuple[str, str] | None
    """Sides of the patient at the first and the last row."""
    column_letters: tuple[str, str] | None
    """Sides of the patient at the first and the last column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The dimensions of an array as a viewer shows them."""

    dims: tuple[str, ...]
    """Dimensions, array order, without one of colours."""
    shape: tuple[int, ...]
    """Their extents."""
    spacing: tuple[float, ...]
    """Distance between neighbours along each; 1 where unknown."""
    unit: str
    """Of the spacing."""
    planes: tuple[PlaneAxes, ...]
    """The planes that can be shown, the one shown first first."""
    has_colours: bool
    """Whether a last axis holds red, green and blue."""

    def plane(self, name: str) -> PlaneAxes:
        """Return the plane of a name.

        Raises
        ------
        ValueError
            When there is none.
        """
        for plane in self.planes:
            if plane.name == name:
                return plane
        names = [plane.name for plane in self.planes]
        raise ValueError(f"there is no plane {name!r}. To fix: take one of {names}")

    def scroll_dim(self, plane: PlaneAxes) -> str | None:
        """Return the dimension across a plane: the last spatial one that is not shown, or any."""
        shown = {dim for each in self.planes for dim in (each.rows, each.columns)}
        hidden = [dim for dim in self.dims if dim not in (plane.rows, plane.columns)]
        return max(hidden, key=lambda dim: (dim in shown, hidden.index(dim)), default=None)


def scene_of(array: xr.DataArray, *, may_hold_colours: bool = True) -> Scene:
    """Return the planes of an array, those that its preview shows through the middle.

    Parameters
    ----------
    array
        No voxel of it is read.
    may_hold_colours
        Whether a last axis of three uint8 that is not spatial is one of colours; that of labels
        never is.

    Raises
    ------
    ConversionError
        When there are fewer than two axes, no voxels, voxels that are no numbers, or dimensions
        whose names are no text.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> scene = scene_of(xr.DataArray(np.zeros((5, 4, 3)), dims=("z", "y", "x")))
    >>> [plane.name for plane in scene.planes], scene.scroll_dim(scene.planes[0])
    (['y, x', 'z, x', 'z, y'], 'z')
    """
    unnamed = [dim for dim in array.dims if not isinstance(dim, str)]
    if unnamed:
        raise ConversionError(
            f"dimensions {unnamed} of an array are to be shown: names that are text are needed. "
            f'To fix: array.rename({{{unnamed[0]!r}: "y"}})'
        )
    geometry = known_geometry(array)
    has_colours = may_hold_colours and _has_colours(array, geometry)
    grey = array[..., 0] if has_colours else array
    central = plan_central_planes(grey)
    spacing = {
        dim: extent / grey.sizes[dim]
        for view in central.views
        for dim, extent in zip((view.rows, view.columns), view.extent, strict=True)
    }
    return Scene(
        dims=tuple(map(str, grey.dims)),
        shape=grey.shape,
        spacing=tuple(spacing.get(str(dim), 1.0) for dim in grey.dims),
        unit=central.unit,
        planes=_told_apart([_plane(view, list(spacing), geometry) for view in central.views]),
        has_colours=has_colours,
    )


def _has_colours(array: xr.DataArray, geometry: Geometry | None) -> bool:
    """Tell whether the last axis holds red, green and blue; rows and columns are left."""
    spatial = ("x", "y", "z") if geometry is None else geometry.dims
    return (
        array.ndim > 2
        and array.shape[-1] == _COLOURS
        and array.dtype == np.uint8
        and array.dims[-1] not in spatial
    )


def _plane(view: PlaneView, shown: list[str], geometry: Geometry | None) -> PlaneAxes:
    """Return a plane with the letters of its ends, named after what it cuts."""
    sides = {dim: None if geometry is None else letters(geometry, dim) for dim in shown}
    across = [sides[dim] for dim in shown if dim not in (view.rows, view.columns)]
    ends = "".join(sorted(across[0])) if len(across) == 1 and across[0] else ""
    return PlaneAxes(
        name=_NAMES.get(ends, f"{view.rows}, {view.columns}"),
        rows=view.rows,
        columns=view.columns,
        is_flipped=view.is_flipped,
        row_letters=sides[view.rows],
        column_letters=sides[view.columns],
    )


def _told_apart(planes: list[PlaneAxes]) -> tuple[PlaneAxes, ...]:
    """Return planes with those of one name, near 45 degrees, named after their dimensions."""
    counts = Counter(plane.name for plane in planes)
    return tuple(
        replace(plane, name=f"{plane.rows}, {plane.columns}") if counts[plane.name] > 1 else plane
        for plane in planes
    )
