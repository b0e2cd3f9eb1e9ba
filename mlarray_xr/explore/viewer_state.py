"""The state of a viewer: a frozen value that no transition takes outside of the image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlarray_xr.planning.plane_request import VisiblePlane

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.explore.scene import PlaneAxes, Scene

__all__ = ["ViewerState", "first_state"]

_MOST_PX_PER_VOXEL = 64.0
_LEAST_SHARE = 0.25
"""An image is never shown smaller than a quarter of the canvas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewerState:
    """What a viewer shows.

    Positions on a plane are in voxels: voxel i covers i to i + 1, its centre is i + 0.5.
    """

    scene: Scene
    """What there is to look at."""
    size_px: int
    """Height and width of the canvas."""
    plane: PlaneAxes
    """What is shown of it."""
    position: tuple[int, ...]
    """Index along every dimension: the slice that is shown, and the crosshair on it."""
    centre: tuple[float, float]
    """Row and column in the middle of the canvas."""
    px_per_unit: float
    """Zoom: pixels for a unit of the spacing."""
    window: tuple[float, float]
    """Values shown as black and as white."""
    scroll: str | None
    """Dimension along which somebody moved last, or would first."""
    heading: int = 1
    """Whether upward (1) or downward (-1)."""
    has_crosshair: bool = False
    """Whether the crosshair is shown."""
    has_labels: bool = True
    """Whether labels are shown, where there are any."""
    opacity: float = 0.5
    """Of labels, 0..1."""

    def __post_init__(self) -> None:
        """Refuse what is outside of the image, and numbers that show nothing."""
        inside = all(0 <= at < n for at, n in zip(self.position, self.scene.shape, strict=True))
        numbers = (*self.centre, self.px_per_unit, *self.window, self.opacity)
        if not inside or not all(map(math.isfinite, numbers)) or self.px_per_unit <= 0:
            raise ValueError(f"nothing can be shown at {self}")
        if not self.window[0] < self.window[1]:
            raise ValueError(f"window {self.window}: the first value must be below the second")

    @property
    def spacing(self) -> tuple[float, float]:
        """Distance between rows and between columns."""
        known = dict(zip(self.scene.dims, self.scene.spacing, strict=True))
        return known[self.plane.rows], known[self.plane.columns]

    @property
    def extents(self) -> tuple[int, int]:
        """Number of rows and columns of the plane."""
        sizes = dict(zip(self.scene.dims, self.scene.shape, strict=True))
        return sizes[self.plane.rows], sizes[self.plane.columns]

    @property
    def crosshair(self) -> tuple[int, int]:
        """Row and column of the crosshair."""
        at = dict(zip(self.scene.dims, self.position, strict=True))
        return at[self.plane.rows], at[self.plane.columns]

    @property
    def visible(self) -> VisiblePlane:
        """What is to be read."""
        spans = [self.size_px / (self.px_per_unit * step) for step in self.spacing]
        axis = self.scene.dims.index
        rows, columns = (
            (middle - span / 2, middle + span / 2)
            for middle, span in zip(self.centre, spans, strict=True)
        )
        return VisiblePlane(
            rows=axis(self.plane.rows),
            columns=axis(self.plane.columns),
            position=self.position,
            visible=(rows, columns),
            voxels_per_px=(spans[0] / self.size_px, spans[1] / self.size_px),
            scroll=axis(self.scroll or self.plane.rows),
        )

    @property
    def zooms(self) -> tuple[float, float]:
        """Least and most pixels for a unit of the spacing."""
        fit = _fitting(self)
        return _LEAST_SHARE * fit, max(_MOST_PX_PER_VOXEL / min(self.spacing), fit)

    def on_plane(self, name: str) -> ViewerState:
        """Return the state with another plane through the same position, all of it visible."""
        plane = self.scene.plane(name)
        if plane == self.plane:
            return self
        return replace(self, plane=plane, scroll=self.scene.scroll_dim(plane)).fitted()

    def moved(self, position: Mapping[str, float]) -> ViewerState:
        """Return the state at other indices along some dimensions, clipped to the image."""
        at = dict(zip(self.scene.dims, self.position, strict=True))
        scroll, heading = self.scroll, self.heading
        for dim, index in position.items():
            if dim not in at:
                raise ValueError(f"there is no dimension {dim!r}. To fix: one of {list(at)}")
            n = self.scene.shape[self.scene.dims.index(dim)]
            clipped = int(min(max(index, 0), n - 1))
            if clipped != at[dim] and dim not in (self.plane.rows, self.plane.columns):
                scroll, heading = dim, 1 if clipped > at[dim] else -1
            at[dim] = clipped
        return replace(self, position=tuple(at.values()), scroll=scroll, heading=heading)

    def scrolled(self, steps: int) -> ViewerState:
        """Return the state so many slices further along the dimension across the plane."""
        dim = self.scene.scroll_dim(self.plane)
        if dim is None:
            return self
        return self.moved({dim: self.position[self.scene.dims.index(dim)] + steps})

    def picked(self, row: float, column: float) -> ViewerState:
        """Return the state with the crosshair on the voxel at a position of the plane."""
        place = {self.plane.rows: math.floor(row), self.plane.columns: math.floor(column)}
        return replace(self.moved(place), has_crosshair=True)

    def looked(self, centre: tuple[float, float], px_per_unit: float) -> ViewerState:
        """Return the state with another middle and zoom; some of the image stays in the canvas."""
        least, most = self.zooms
        zoom = min(max(px_per_unit, least), most)
        rows, columns = (
            float(min(max(at, 0), n)) for at, n in zip(centre, self.extents, strict=True)
        )
        return replace(self, centre=(rows, columns), px_per_unit=zoom)

    def zoomed(self, factor: float) -> ViewerState:
        """Return the state with pixels so many times larger, about the middle of the canvas."""
        return self.looked(self.centre, self.px_per_unit * factor)

    def fitted(self) -> ViewerState:
        """Return the state with all of the plane in the canvas."""
        rows, columns = self.extents
        return replace(self, centre=(rows / 2, columns / 2), px_per_unit=_fitting(self))

    def windowed(self, low: float, high: float) -> ViewerState:
        """Return the state with other values shown as black and as white.

        Raises
        ------
        ValueError
            When the first is not below the second.
        """
        return replace(self, window=(float(low), float(high)))


def first_state(
    scene: Scene, *, size_px: int, window: tuple[float, float], plane: str | None = None
) -> ViewerState:
    """Return the state in which a viewer opens: the middle slice, all of it, the first of others.

    Parameters
    ----------
    scene
        What there is to look at.
    size_px
        Height and width of the canvas.
    window
        Values shown as black and as white.
    plane
        Name of the plane; the axial one unless given, or the first where none is known as such.
    """
    shown = {dim for each in scene.planes for dim in (each.rows, each.columns)}
    axial = [each for each in scene.planes if each.name == "axial"]
    axes = [*axial, *scene.planes][0] if plane is None else scene.plane(plane)
    return ViewerState(
        scene=scene,
        size_px=size_px,
        plane=axes,
        position=tuple(
            n // 2 if dim in shown else 0 for dim, n in zip(scene.dims, scene.shape, strict=True)
        ),
        centre=(0.0, 0.0),
        px_per_unit=1.0,
        window=window,
        scroll=scene.scroll_dim(axes),
    ).fitted()


def _fitting(state: ViewerState) -> float:
    """Return the zoom at which all of the plane is in the canvas."""
    longest = max(n * step for n, step in zip(state.extents, state.spacing, strict=True))
    return state.size_px / longest
