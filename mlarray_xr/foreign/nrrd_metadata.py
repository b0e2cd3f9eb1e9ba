"""What a NRRD header says in the words of the schema, and the header that an array needs.

The axes of the array are those of the header in reverse: the bytes of the file are the array in
C order.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from mlarray_xr.axes import axis_labels_for, plan_dims
from mlarray_xr.errors import ConversionError, GeometryError
from mlarray_xr.foreign.nrrd_fields import NrrdAxis
from mlarray_xr.foreign.nrrd_header import NrrdHeader, plan_header
from mlarray_xr.foreign.nrrd_space import Placement, placement_of, space_of
from mlarray_xr.foreign.positions import MAX_POSITIONS, EvenAxis, even_axis
from mlarray_xr.format.metadata import SPATIAL_LABELS, Metadata, Spatial
from mlarray_xr.record import Record, StoredCoordinate, stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.array import MlaArray
    from mlarray_xr.format.metadata import Json

__all__ = ["describe", "header_for"]

_KEY: Final = "nrrd"
_LABEL: Final = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_SEGMENT: Final = re.compile(r"Segment\d+_ID")
"""Key that 3D Slicer gives every segment of a segmentation."""

_DIMS: Final = {"time": "time", "list": "channel", "stub": "channel", "": "channel"}
_COLOURS: Final = ("color", "rgb", "hsv", "rgba")
_COMPONENT: Final = "component"


def describe(header: NrrdHeader) -> Metadata:
    """Return the metadata that a NRRD header stands for.

    Raises
    ------
    ConversionError
        When numbers of the geometry are broken.
    """
    placement = placement_of(header)
    labels = _axis_labels(placement)
    dims = plan_dims(labels, len(placement.axes)).dims
    volume = placement.volume
    removed = volume.dims[len(placement.spatial) :] if volume else ()
    geometry = volume.without(removed) if volume and removed else volume
    record = Record(
        coords=_coordinates(placement, dims),
        plane_dims=volume.dims if volume and removed else (),
        plane_affine=volume.affine if volume and removed else (),
    )
    units: list[Json] = [axis.unit for axis in placement.axes]
    for i, unit in zip(placement.spatial, volume.units if volume else (), strict=False):
        units[i] = unit or ""
    return Metadata(
        source={_KEY: header.to_dict()},
        extra={_KEY: header.to_json(), **record.added_to({})},
        spatial=Spatial(
            affine=None if geometry is None else geometry.affine,
            axis_labels=labels,
            coord_system=None if volume is None else volume.coord_system,
            axis_units=units if any(units) else None,
        ),
        is_seg=any(_SEGMENT.fullmatch(line.key) for line in header.lines) or None,
        has_array=True,
        image_meta_format="nrrd",
    )


def _axis_labels(placement: Placement) -> tuple[str, ...] | None:
    """Label all axes; None when no more is known than that all are spatial."""
    n_spatial, n = len(placement.spatial), len(placement.axes)
    if placement.names is None and n_spatial == n:
        return None
    labels = axis_labels_for(placement.names) if placement.names else ("spatial",) * n_spatial
    known = dict(zip(placement.spatial, labels, strict=True))
    return tuple(known.get(i) or _label(axis) for i, axis in enumerate(placement.axes))


def _label(axis: NrrdAxis) -> str:
    """Label an axis that is not spatial after its own label, else after its kind."""
    (own,) = axis_labels_for([axis.label])
    if _LABEL.fullmatch(axis.label) and own not in SPATIAL_LABELS:
        return own
    dim = _DIMS.get(axis.kind) or ("channel" if axis.kind.endswith(_COLOURS) else _COMPONENT)
    return axis_labels_for([dim])[0]


def _coordinates(placement: Placement, dims: Sequence[str]) -> dict[str, StoredCoordinate]:
    """Return the positions along the axes that are not spatial, where the header tells."""
    coords = {}
    for i, axis in enumerate(placement.axes):
        if i in placement.spatial or math.isnan(axis.spacing) or axis.size > MAX_POSITIONS:
            continue
        start = 0.0 if math.isnan(axis.minimum) else axis.minimum
        if axis.centering == "cell":
            start += axis.spacing / 2
        if not math.isfinite(start + axis.spacing):
            raise ConversionError(f"positions from {start} in steps of {axis.spacing} are none")
        even = EvenAxis(start=start, step=axis.spacing, unit=axis.unit or None)
        attrs = {"units": even.unit} if even.unit else {}
        values = even.positions(axis.size)
        coords[dims[i]] = StoredCoordinate(dims=(dims[i],), values=values, attrs=attrs)
    return coords


def header_for(array: MlaArray) -> NrrdHeader:
    """Return the header for an array, its own if it came from NRRD and still says the truth.

    Raises
    ------
    GeometryError
        When the geometry holds NaN or infinity.
    ConversionError
        When NRRD has no such type or shape, or positions are not evenly spaced.
    """
    metadata = array.metadata
    stored = NrrdHeader.from_json(metadata.extra.get(_KEY))
    if stored is not None and _is_true(stored, array):
        return stored
    axes = stored_axes(metadata, array.ndim)
    geometry = stored_geometry(metadata, axes)
    if not np.isfinite(geometry.affine).all():
        raise GeometryError(
            f"{array.path}: the geometry {geometry.affine} is none, and NRRD cannot hold it. To "
            "fix: assign float coordinates, or remove attrs['affine'], before writing the file"
        )
    space, directions = space_of(geometry, like=stored)
    record = Record.of(metadata, shape=array.shape)
    # A plane of a volume becomes a volume of one slice: others know no plane in space.
    removed = [dim for dim in geometry.dims if dim not in axes.dims]
    sizes = {**dict.fromkeys(removed, 1), **dict(zip(axes.dims, array.shape, strict=True))}
    # The name of a world tells which axis is x; without one, labels do.
    is_labelled = not space.name and not axes.assumed
    planned = [
        NrrdAxis(
            size=n,
            kind="domain",
            direction=directions.get(dim),
            label=dim if is_labelled else "",
        )
        if dim in geometry.dims
        else _other_axis(record, dim, n)
        for dim, n in sizes.items()
    ]
    dtype = np.dtype(np.uint8) if array.dtype == bool else array.dtype
    return plan_header(base=stored, dtype=dtype, axes=planned[::-1], space=space)


def _other_axis(record: Record, dim: str, size: int) -> NrrdAxis:
    """Return an axis that is not spatial; its kind is one that ITK and 3D Slicer read."""
    axis = NrrdAxis(size=size, kind="vector" if dim == _COMPONENT else "list", label=dim)
    even = even_axis(record, dim)
    if even is None:
        return axis
    return replace(axis, spacing=even.step, minimum=even.start, unit=even.unit or "")


def _is_true(header: NrrdHeader, array: MlaArray) -> bool:
    """Tell whether a stored header still says what the file says."""
    try:
        shape = tuple(axis.size for axis in reversed(header.axes))
        if (shape, header.dtype) != (array.shape, array.dtype):
            return False
        described = describe(header)
        found, wanted = (
            stored_geometry(m, stored_axes(m, array.ndim)) for m in (array.metadata, described)
        )
    except (ConversionError, GeometryError):
        return False
    records = [Record.of(m, shape=array.shape) for m in (array.metadata, described)]
    positions = [{k: (v.values.tolist(), v.attrs) for k, v in r.coords.items()} for r in records]
    return (
        (found.dims, found.coord_system) == (wanted.dims, wanted.coord_system)
        and stored_axes(array.metadata, array.ndim).dims == stored_axes(described, array.ndim).dims
        and np.array_equal(found.affine, wanted.affine)
        and positions[1].items() <= positions[0].items()
    )
