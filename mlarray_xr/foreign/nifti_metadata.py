"""What a NIfTI header says in the words of the schema, and the header that an array needs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlarray_xr.axes import axis_labels_for
from mlarray_xr.errors import ConversionError, GeometryError
from mlarray_xr.foreign.nifti_header import (
    TIME_UNITS,
    NiftiHeader,
    plan_header,
    spatial_names,
)
from mlarray_xr.foreign.nifti_series import Sidecars, bids_of, series_coords
from mlarray_xr.foreign.positions import MAX_POSITIONS, EvenAxis, even_axis
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.geometry import Geometry
from mlarray_xr.record import Record, StoredCoordinate, stored_axes, stored_geometry

if TYPE_CHECKING:
    from mlarray_xr.array import MlaArray
    from mlarray_xr.format.metadata import Json

__all__ = ["describe", "header_for"]

_KEY = "nifti"
_SCALING = ("scl_slope", "scl_inter")
_TELL_TIMES = {"FrameTimesStart", "RepetitionTime", "VolumeTiming"}
"""Fields of the JSON file that tell, or will tell, of every volume when it began."""


def describe(header: NiftiHeader, sidecars: Sidecars) -> Metadata:
    """Return the metadata that a NIfTI header stands for, and the files beside the image.

    Raises
    ------
    ConversionError
        When the header is broken, or the sidecars do not fit it.
    """
    shape, affine = header.shape, header.affine
    names = spatial_names(affine)
    dims = _dims(names, header)
    removed = names[len(shape) :]
    volume = Geometry(
        dims=names,
        affine=tuple(tuple(row) for row in affine.tolist()),
        units=(header.space_unit,) * 3,
        coord_system="RAS+",
    )
    geometry = volume.without(removed) if removed else volume
    known = (header.space_unit,) * 3 + (header.time_unit,)
    units: list[Json] = [unit or "" for unit in (*known, "", "", "")[: len(shape)]]
    record = Record(
        attrs=_scaling_attrs(header),
        coords={**_time_coords(header, dims), **series_coords(header, dims, sidecars)},
        plane_dims=names if removed else (),
        plane_affine=volume.affine if removed else (),
    )
    source: dict[Any, Any] = {_KEY: header.fields()}
    if sidecars.bids is not None:
        source["bids"] = sidecars.bids
    return Metadata(
        source=source,
        extra={_KEY: header.to_json(), **record.added_to({})},
        spatial=Spatial(
            affine=None if geometry is None else geometry.affine,
            axis_labels=axis_labels_for(dims),
            coord_system=volume.coord_system,
            axis_units=units if any(units) else None,
        ),
        has_array=True,
        image_meta_format="nifti",
    )


def _dims(names: tuple[str, str, str], header: NiftiHeader) -> tuple[str, ...]:
    """Name all axes of a NIfTI array."""
    is_time = header.time_unit is None or header.time_unit in TIME_UNITS
    fourth = "time" if is_time else "spectral"
    return (*names, fourth, "component", "dim_5", "dim_6")[: len(header.shape)]


def _scaling_attrs(header: NiftiHeader) -> dict[str, Any]:
    """Return slope and intercept as attributes."""
    if header.scaling is None:
        return {}
    return dict(zip(_SCALING, header.scaling, strict=True))


def _time_coords(header: NiftiHeader, dims: tuple[str, ...]) -> dict[str, StoredCoordinate]:
    """Return the coordinate of the fourth axis where the header tells it."""
    if header.time_axis is None or header.shape[3] > MAX_POSITIONS:
        return {}
    attrs = {} if header.time_unit is None else {"units": header.time_unit}
    values = header.time_axis.positions(header.shape[3])
    return {dims[3]: StoredCoordinate(dims=(dims[3],), values=values, attrs=attrs)}


def header_for(array: MlaArray) -> tuple[NiftiHeader, list[int]]:
    """Return the header for an array, and the order of its axes in the NIfTI file."""
    metadata = array.metadata
    stored = NiftiHeader.from_json(metadata.extra.get(_KEY))
    if stored is not None and _is_true(stored, array):
        return stored, list(range(array.ndim))
    axes = stored_axes(metadata, array.ndim)
    geometry = stored_geometry(metadata, axes).in_system("RAS")
    if not geometry.is_invertible or not geometry.is_stored:
        raise GeometryError(
            f"{array.path}: the geometry is unknown or spans no volume, and NIfTI needs one. "
            "To fix: assign float coordinates x, y and z before writing the file"
        )
    others = [axis for axis in range(array.ndim) if axis not in axes.spatial]
    others.sort(key=lambda axis: axes.dims[axis] != "time")
    order = [*axes.spatial, *others]
    shape = [array.shape[axis] for axis in axes.spatial]
    shape += [1] * (3 - len(shape)) + [array.shape[axis] for axis in others]
    record = Record.of(metadata, shape=array.shape)
    slope = tuple(record.attrs.get(name) for name in _SCALING)
    header = plan_header(
        base=stored,
        shape=shape,
        dtype=np.dtype(np.uint8) if array.dtype == bool else array.dtype,
        affine=np.asarray(geometry.affine),
        space_unit=geometry.units[0],
        time_axis=_time_axis(record, axes.dims[others[0]], metadata) if others else None,
        scaling=cast("tuple[float, float]", slope) if all(map(_is_number, slope)) else None,
    )
    return header, order


def _time_axis(record: Record, dim: str, metadata: Metadata) -> EvenAxis | None:
    """Return start and step along the fourth axis; no step where the JSON file tells the times."""
    try:
        return even_axis(record, dim)
    except ConversionError:
        if dim != "time" or not {*(bids_of(metadata) or ())} & _TELL_TIMES:
            raise
        return EvenAxis(start=0.0, step=0.0, unit="s")


def _is_true(header: NiftiHeader, array: MlaArray) -> bool:
    """Tell whether a stored header still says what the file says."""
    try:
        if (header.shape, header.dtype) != (array.shape, array.dtype):
            return False
        described = describe(header, Sidecars(bids=bids_of(array.metadata)))
        axes = [stored_axes(m, array.ndim) for m in (array.metadata, described)]
        found, wanted = map(stored_geometry, (array.metadata, described), axes)
    except (ConversionError, GeometryError):
        return False
    records = [Record.of(m, shape=array.shape) for m in (array.metadata, described)]
    slopes = [{k: r.attrs.get(k) for k in _SCALING} for r in records]
    fourth = axes[1].dims[3:4]
    times = [
        {k: (v.values.tolist(), v.attrs) for k, v in r.coords.items() if k in fourth}
        for r in records
    ]
    return axes[0].spatial == axes[1].spatial and (
        (found.dims, found.coord_system) == (wanted.dims, wanted.coord_system)
        and np.array_equal(found.affine, wanted.affine, equal_nan=True)
        and slopes[0] == slopes[1]
        and times[1].items() <= times[0].items()
    )


def _is_number(value: object) -> bool:
    """Tell whether an attribute is a finite number."""
    return type(value) in (int, float) and math.isfinite(cast("float", value))
