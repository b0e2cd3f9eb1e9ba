"""Labels over an image: on its grid, or on another one that is parallel to it in the world."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ConversionError, GeometryError
from mlarray_xr.explore.central_planes import known_geometry
from mlarray_xr.placement import WORLD
from mlarray_xr.planning.plane_request import VisiblePlane

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from mlarray_xr.explore.plane_source import PlaneSource, Raster
    from mlarray_xr.explore.scene import Scene
    from mlarray_xr.explore.viewer_state import ViewerState
    from mlarray_xr.geometry import Geometry

__all__ = ["AxisOnto", "LabelOverlay", "plan_overlay"]

_SPATIAL_DIMS = "spatial_dims"
_OFF_GRID = 0.5
"""Voxels by which a grid may lean across the whole image and still count as parallel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisOnto:
    """How the indices along an axis of labels follow from those of the image."""

    axis: int | None
    """Axis of the image; None where the labels lie at one place of it."""
    scale: float
    """Voxels of the labels for one of the image; negative where they run the other way."""
    offset: float
    """Index into the labels where the image has index 0."""

    def index(self, position: Sequence[int]) -> int:
        """Return the nearest index into the labels; may lie outside of them."""
        at = 0 if self.axis is None else position[self.axis]
        return math.floor(self.scale * at + self.offset + 0.5)

    def onto_labels(self, edge: float) -> float:
        """Return the edge in voxels of the labels at an edge in voxels of the image."""
        return self.scale * (edge - 0.5) + self.offset + 0.5

    def onto_image(self, edge: float) -> float:
        """Return the edge in voxels of the image at an edge in voxels of the labels."""
        return (edge - 0.5 - self.offset) / self.scale + 0.5


def plan_overlay(image: xr.DataArray, labels: xr.DataArray, scene: Scene) -> tuple[AxisOnto, ...]:
    """Decide how labels lie on an image: one entry for each of their axes.

    Where both say where they lie in the world, through world coordinates; otherwise labels have
    the image's dimensions and extents. Dimensions that labels lack, such as time, do not matter.

    Raises
    ------
    ConversionError
        When labels are no whole numbers, lie on a rotated grid, or cannot be placed.

    Examples
    --------
    >>> import xarray as xr
    >>> from mlarray_xr.explore.scene import scene_of
    >>> image = xr.DataArray(np.zeros((2, 5, 4)), dims=("time", "y", "x"))
    >>> labels = xr.DataArray(np.zeros((5, 4), "uint8"), dims=("y", "x"))
    >>> [onto.axis for onto in plan_overlay(image, labels, scene_of(image))]
    [1, 2]
    """
    if labels.dtype.kind not in "biu":
        raise ConversionError(
            f"labels of type {labels.dtype}: whole numbers or booleans are needed. To fix: "
            'labels.astype("uint8")'
        )
    onto = {}
    here = known_geometry(_placed_like(image, labels))
    there = known_geometry(_placed_like(labels, image))
    if here is not None and there is not None:
        onto = _through_world(here, there, scene, labels)
    for dim in map(str, labels.dims):
        if dim in onto:
            continue
        if dim not in scene.dims or labels.sizes[dim] != scene.shape[scene.dims.index(dim)]:
            raise ConversionError(
                f"labels of {dict(labels.sizes)} do not lie on an image of "
                f"{dict(zip(scene.dims, scene.shape, strict=True))}: dimension {dim!r} differs, "
                "and not both say where they lie in the world. To fix: give both a geometry, or "
                "select what fits"
            )
        onto[dim] = AxisOnto(axis=scene.dims.index(dim), scale=1.0, offset=0.0)
    return tuple(onto[str(dim)] for dim in labels.dims)


class LabelOverlay:
    """Reads the labels that lie on what is visible of an image.

    Parameters
    ----------
    source
        Of the labels.
    onto
        How they lie on the image, from `plan_overlay`.
    shape
        Extents of the labels.
    """

    def __init__(
        self, source: PlaneSource, *, onto: tuple[AxisOnto, ...], shape: tuple[int, ...]
    ) -> None:
        self._source, self._onto, self._shape = source, onto, shape

    def plane(self, state: ViewerState) -> Raster | None:
        """Return the labels on the plane, placed in voxels of the image; None beside them."""
        seen = self._seen(state)
        if seen is None:
            return None
        raster = self._source.plane(seen)
        rows, columns = (
            (onto.onto_image(first), onto.onto_image(last))
            for onto, (first, last) in zip(
                (self._onto[seen.rows], self._onto[seen.columns]), raster.extent, strict=True
            )
        )
        return replace(raster, extent=(rows, columns))

    def read_ahead(self, state: ViewerState) -> None:
        """Read the labels that somebody will see who goes on as before."""
        seen = self._seen(state)
        if seen is not None:
            forward = self._onto[seen.scroll].scale > 0
            self._source.read_ahead(seen, heading=state.heading if forward else -state.heading)

    def value(self, position: Sequence[int]) -> int | None:
        """Return the label at an index of the image; None beside them."""
        index = self._index(position)
        return None if index is None else int(self._source.value(index))

    def _index(self, position: Sequence[int], *, free: Sequence[int] = ()) -> list[int] | None:
        """Return the index into the labels; None outside of them along any axis but free ones."""
        index = [onto.index(position) for onto in self._onto]
        for axis, (at, n) in enumerate(zip(index, self._shape, strict=True)):
            if not 0 <= at < n:
                if self._onto[axis].axis not in free:
                    return None
                index[axis] = 0
        return index

    def _seen(self, state: ViewerState) -> VisiblePlane | None:
        """Return what is visible in voxels of the labels; None where they are not, or no plane."""
        seen = state.visible
        index = self._index(seen.position, free=(seen.rows, seen.columns))
        axes = {onto.axis: axis for axis, onto in enumerate(self._onto)}
        if index is None or seen.rows not in axes or seen.columns not in axes:
            return None
        rows, columns = (self._onto[axes[axis]] for axis in (seen.rows, seen.columns))
        edges = [
            sorted((onto.onto_labels(first), onto.onto_labels(last)))
            for onto, (first, last) in zip((rows, columns), seen.visible, strict=True)
        ]
        return VisiblePlane(
            rows=axes[seen.rows],
            columns=axes[seen.columns],
            position=tuple(index),
            visible=((edges[0][0], edges[0][1]), (edges[1][0], edges[1][1])),
            voxels_per_px=(
                seen.voxels_per_px[0] * abs(rows.scale),
                seen.voxels_per_px[1] * abs(columns.scale),
            ),
            scroll=axes.get(seen.scroll, axes[seen.rows]),
        )


def _placed_like(array: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Return an array with the attributes of another one where it lost its own.

    Arithmetic and comparisons keep coordinates and may drop attributes (xarray's ``keep_attrs``):
    `image > 0` lies where the image lies, if its coordinates say so, in the same terms.
    """
    names = other.attrs.get(_SPATIAL_DIMS)
    if _SPATIAL_DIMS in array.attrs or not isinstance(names, str):
        return array
    kinds = "f" if other.attrs.get("spatial_coords") == WORLD else "iu"
    is_placed = all(
        dim in array.coords and array[dim].dtype.kind in kinds
        for dim in names.split()
        if dim in array.dims
    )
    return array.assign_attrs(other.attrs) if is_placed else array


def _through_world(
    image: Geometry, labels: Geometry, scene: Scene, array: xr.DataArray
) -> dict[str, AxisOnto]:
    """Return how the spatial axes of labels follow from those of the image.

    Raises
    ------
    ConversionError
        When their worlds differ or the grids are rotated against each other.
    """
    try:
        if {image.coord_system, labels.coord_system} > {image.coord_system}:
            labels = labels.in_system(image.coord_system or "")
        matrix = np.linalg.inv(labels.matrix) @ image.matrix
        offsets = labels.world_to_index(image.origin)
    except (GeometryError, np.linalg.LinAlgError, ValueError) as error:
        raise ConversionError(
            f"labels cannot be placed on the image: {error}. To fix: give both the same "
            "coordinate system and a geometry that spans a volume"
        ) from error
    extents = [scene.shape[scene.dims.index(dim)] if dim in scene.dims else 1 for dim in image.dims]
    leans = np.abs(matrix) * extents
    onto = {}
    for row, dim in enumerate(labels.dims):
        column = int(np.abs(matrix[row]).argmax())
        if dim not in array.dims and extents[column] > 1:
            raise ConversionError(
                f"the labels are those of one slice across {dim!r}, of which the image has "
                f"{extents[column]}. To fix: keep the dimension, labels.isel({dim}=[0])"
            )
        if np.delete(leans[row], column).max(initial=0) > _OFF_GRID:
            raise ConversionError(
                "the grid of the labels is rotated against that of the image: nearest labels "
                f"along {dim!r} would need more than one axis. To fix: resample the labels onto "
                "the image, then view"
            )
        seen = image.dims[column]
        if dim in array.dims:
            onto[dim] = AxisOnto(
                axis=scene.dims.index(seen) if seen in scene.dims else None,
                scale=float(matrix[row, column]),
                offset=float(offsets[row]),
            )
    return onto
