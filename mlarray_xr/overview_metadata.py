"""The metadata of a level: that of the file, with the geometry and coordinates of its cells."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.format.metadata import Boxes, Stats, Storage
from mlarray_xr.geometry import Geometry
from mlarray_xr.planning.reduction import reduce_mean
from mlarray_xr.record import Record, stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.axes import Axes
    from mlarray_xr.format.metadata import Metadata, Spatial
    from mlarray_xr.overview_record import OverviewRecord
    from mlarray_xr.record import StoredCoordinate

__all__ = ["level_metadata", "reducible_axes", "spacing_along"]

_NAMED = 3
"""Of an array whose axes nobody names, the last three are taken for z, y and x."""


def reducible_axes(metadata: Metadata, ndim: int) -> tuple[int, ...]:
    """Return the axes of an array that overviews make coarser: the spatial ones."""
    axes = stored_axes(metadata, ndim)
    return axes.spatial if axes.labels is not None else axes.spatial[-_NAMED:]


def spacing_along(metadata: Metadata, ndim: int) -> dict[int, float]:
    """Return the spacing along each spatial axis, by number of the axis; 1 where none is stored."""
    axes = stored_axes(metadata, ndim)
    return dict(zip(axes.spatial, stored_geometry(metadata, axes).spacing, strict=False))


def level_metadata(
    metadata: Metadata, *, shape: tuple[int, ...], record: OverviewRecord
) -> Metadata:
    """Return the metadata of a level of a file.

    Spacings grow by the factors, and the first voxel lies in the middle of those that it stands
    for: (factor - 1) / 2 voxels of the file further along each axis. Where the file has no
    geometry, the world of its levels are its voxel indices. Floating positions along a dimension
    become means, other coordinates along dimensions that were made coarser are left out, and so
    are statistics, bounding boxes and what is known of the original image.

    Parameters
    ----------
    metadata, shape
        Of the file itself.
    record
        Which level it is.
    """
    axes = stored_axes(metadata, len(shape))
    factors = dict(zip(axes.dims, record.factors, strict=True))
    stored = Record.of(metadata, shape=shape)
    coords = {name: _coarser(name, one, factors) for name, one in stored.coords.items()}
    stored = replace(stored, coords={name: one for name, one in coords.items() if one is not None})
    if stored.plane_dims:
        along = [factors.get(dim, 1) for dim in stored.plane_dims]
        volume = Geometry(
            dims=stored.plane_dims,
            affine=stored.plane_affine,
            units=(None,) * len(along),
        )
        stored = replace(stored, plane_affine=_moved(volume, along).affine)
    return replace(
        metadata,
        source={},
        image_meta_format=None,
        extra=record.added_to(stored.added_to(metadata.extra)),
        spatial=_spatial(metadata.spatial, axes, record.factors, is_plane=bool(stored.plane_dims)),
        stats=Stats(),
        bbox=Boxes(),
        blosc2=Storage(),
    )


def _moved(geometry: Geometry, factors: Sequence[int]) -> Geometry:
    """Return the geometry of cells of so many voxels."""
    return geometry.moved(
        start=[(f - 1) / 2 for f in factors], step=factors, order=range(len(factors))
    )


def _spatial(spatial: Spatial, axes: Axes, factors: Sequence[int], *, is_plane: bool) -> Spatial:
    """Return where the voxels of a level lie, in the way in which the file says it."""
    along = [factors[axis] for axis in axes.spatial]
    geometry = Geometry.from_spatial(spatial, axes=axes)
    if not geometry.dims or (is_plane and not geometry.is_stored):
        return spatial  # our own entry has the geometry of the volume
    moved = _moved(geometry, along)
    if spatial.affine is not None or not geometry.is_stored:
        return replace(spatial, affine=moved.affine)
    spacing = spatial.spacing or (1.0,) * len(along)
    coarser = tuple(step * f for step, f in zip(spacing, along, strict=True))
    return replace(spatial, spacing=coarser, origin=moved.origin)


def _coarser(
    name: str, coordinate: StoredCoordinate, factors: dict[str, int]
) -> StoredCoordinate | None:
    """Return a coordinate of a level; None when there is none that is true."""
    (factor,) = [factors.get(dim, 1) for dim in coordinate.dims] or [1]
    if factor == 1:
        return coordinate
    if coordinate.dims != (name,) or coordinate.values.dtype.kind != "f":
        return None
    halvings = [(2 << k,) for k in range(factor.bit_length() - 1)]
    means = reduce_mean(np.asarray(coordinate.values, np.float64), halvings)[-1]
    return replace(coordinate, values=means.astype(coordinate.values.dtype))
