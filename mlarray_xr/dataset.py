"""One file as an xarray dataset, and the metadata that a DataArray stands for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import xarray as xr

from mlarray_xr.attributes import (
    METADATA_ATTR,
    OWN_ATTRS,
    is_name,
    metadata_text,
    plain_value,
    read_metadata,
    shown_text,
)
from mlarray_xr.axes import axis_labels_for, plan_dims
from mlarray_xr.coordinates import (
    attach_coords,
    coords_to_store,
    spatial_coords,
    with_stored_coords,
)
from mlarray_xr.errors import GeometryError, MlaWarning
from mlarray_xr.format.metadata import SPATIAL_LABELS, Boxes, Metadata, Spatial, Stats, Storage
from mlarray_xr.placement import file_dims, geometry_of
from mlarray_xr.planning.grid import plan_part
from mlarray_xr.record import Record, stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from mlarray_xr.axes import Axes
    from mlarray_xr.format.metadata import Json
    from mlarray_xr.geometry import Geometry

__all__ = ["Described", "dataset_from", "metadata_of"]


class Described(Protocol):
    """What describing an array takes: a file, or an array in memory with metadata."""

    @property
    def metadata(self) -> Metadata:
        """Metadata as stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents in voxels."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents of a chunk, voxels."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Extents of a block, voxels."""


def dataset_from(
    lazy: Any,
    array: Described,
    *,
    variable: str | None = None,
    drop_variables: Sequence[str] = (),
    part_bytes: int | None = None,
) -> xr.Dataset:
    """Describe one file as a dataset of one variable; reads no voxel.

    Dimensions are named after the axis labels, in array order. Spatial dimensions of an
    axis-aligned geometry get float coordinates, the positions of voxel centres; those of an oblique
    or unknown one get index coordinates. The affine of the file is an attribute. The whole metadata
    is one attribute that is written to other formats but not printed. Attributes and coordinates
    that `metadata_of` stored come back; 1-D coordinates without an index by `attach_coords` only.

    Parameters
    ----------
    lazy
        What becomes the data of the variable: a lazily indexed, Dask or NumPy array.
    array
        The file: gives metadata, shape, dtype, chunks and blocks.
    variable
        Name of the variable. By default the stored name, else ``"labels"`` for segmentations and
        ``"image"``.
    drop_variables
        Names of variables or coordinates to leave out.
    part_bytes
        Upper bound of the preferred part of a Dask task; None is 128 MiB.

    Returns
    -------
    xarray.Dataset
        Without variables when the file holds metadata only.

    Raises
    ------
    ValueError
        When `variable` is the name of a dimension or coordinate.

    Examples
    --------
    >>> import mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "plane.mla")
    >>> file = mlarray_xr.MlaArray("plane.mla")
    >>> dataset_from(file[...], file)["image"].dims
    ('y', 'x')
    """
    metadata = array.metadata
    if not metadata.has_array:
        return xr.Dataset(attrs={METADATA_ATTR: metadata_text(metadata, shape=())})
    axes = stored_axes(metadata, len(array.shape))
    geometry = stored_geometry(metadata, axes)
    record = Record.of(metadata, shape=array.shape)
    sizes = dict(zip(axes.dims, array.shape, strict=True))
    along_space, meaning = spatial_coords(geometry, sizes)
    coords = with_stored_coords(along_space, record, sizes)
    attrs = {
        **record.attrs,
        **_geometry_attrs(geometry, axes, meaning),
        METADATA_ATTR: metadata_text(metadata, shape=array.shape),
    }
    default = record.name or _default_name(metadata)
    name = _variable_name(variable, default, {*axes.dims, *coords})
    dataset = xr.Dataset({name: (axes.dims, lazy, attrs, _encoding(array, axes, part_bytes))})
    # Not through Coordinates: there a RangeIndex becomes an index of int64 in memory.
    return dataset.assign_coords(coords).drop_vars(list(drop_variables), errors="ignore")


def metadata_of(array: xr.DataArray) -> Metadata:
    """Return the metadata to write for an array: that of its file, brought up to date.

    For an array as it was opened this is the metadata of its file, unchanged. After a selection
    the geometry follows the coordinates, and bounding boxes are left out. Stored statistics are
    left out as soon as values may have changed. Of a plane cut from a volume the schema gets the
    geometry within the plane, when it has one of its own, and our entry that of the volume.

    Raises
    ------
    GeometryError
        When the file's geometry is known but not that of this array.
    MetadataError
        When the attribute with the metadata was damaged.

    Warns
    -----
    MlaWarning
        When a coordinate or an attribute cannot be stored, or the geometry has no place.

    Examples
    --------
    >>> profile = xr.DataArray([4, 5, 6], dims="x", coords={"x": [1.0, 1.5, 2.0]})
    >>> metadata_of(profile).spatial
    Spatial(affine=((0.5, 1.0), (0.0, 1.0)), axis_labels=('spatial_x',))
    """
    stored, shape = read_metadata(array.attrs) or (Metadata(), ())
    array = attach_coords(array)
    before = stored_axes(stored, len(shape))
    dims = tuple(str(dim) for dim in array.dims)
    renamed = {now: dim for dim, now in file_dims(array).items() if now != dim}
    named = plan_dims(_labels(dims, stored, before, renamed), len(dims))
    axes = replace(named, dims=dims)
    geometry = _geometry(array, axes)
    opened = stored_geometry(stored, before)
    is_unmoved = dims == before.dims and array.shape == shape and _is_same(geometry, opened)
    volume = geometry if geometry and geometry.is_stored else None
    is_plane = volume is not None and len(volume.dims) > len(axes.spatial)
    follows = volume.dims if volume else axes.spatial_dims if geometry else ()
    record = Record(
        name=_name_to_store(array, stored),
        dims=dims if named.dims != dims else None,
        attrs=_attrs_to_store(array),
        coords=coords_to_store(array, follows),
        plane_dims=volume.dims if volume and is_plane else (),
        plane_affine=volume.affine if volume and is_plane else (),
    )
    units = _axis_units(geometry, opened, axes, before, stored.spatial.axis_units)
    system = _coord_system(array, stored.spatial)
    if is_unmoved:
        spatial = replace(stored.spatial, coord_system=system, axis_units=units)
    else:
        spatial = Spatial(
            affine=_affine_to_store(geometry, axes),
            axis_labels=axes.labels,
            coord_system=system,
            axis_units=units,
        )
    # Whatever computes new values drops the encoding.
    has_values = is_unmoved and "blocks" in array.encoding
    return replace(
        stored,
        has_array=True,
        extra=record.added_to(stored.extra),
        spatial=spatial,
        stats=stored.stats if has_values else Stats(),
        bbox=stored.bbox if is_unmoved else Boxes(),
        blosc2=stored.blosc2 if dims == before.dims else Storage(),
    )


def _geometry_attrs(geometry: Geometry, axes: Axes, meaning: str) -> dict[str, Any]:
    """Return the geometry of the file as flat attributes that netCDF can hold."""
    attrs: dict[str, Any] = {}
    if geometry.dims:
        attrs["spatial_dims"] = " ".join(geometry.dims)
        attrs["spatial_coords"] = meaning
    if geometry.is_stored:
        attrs["spacing"] = list(geometry.spacing)
        attrs["affine"] = [number for row in geometry.affine for number in row]
    if geometry.coord_system is not None:
        attrs["coord_system"] = shown_text(geometry.coord_system)
    if axes.assumed:
        attrs["axes_assumed"] = f"the file does not name {', '.join(axes.spatial_dims)}"
    return attrs


def _encoding(array: Described, axes: Axes, part_bytes: int | None) -> dict[str, Any]:
    """Return the layout of the file, and the parts in which Dask reads it best."""
    sizes = array.metadata.blosc2.patch_size
    patch = None
    if sizes is not None and len(sizes) == len(axes.spatial):
        along = dict(zip(axes.spatial, sizes, strict=True))
        patch = tuple(along.get(axis, 1) for axis in range(len(axes.dims)))
    part = plan_part(
        array.shape,
        array.chunks,
        itemsize=array.dtype.itemsize,
        target_bytes=part_bytes,
        patch=patch,
    )
    return {
        "preferred_chunks": dict(zip(axes.dims, part, strict=True)),
        "chunks": tuple(array.chunks),
        "blocks": tuple(array.blocks),
    }


def _variable_name(variable: str | None, default: str, taken: Collection[str]) -> str:
    """Return the name of the variable, which no dimension or coordinate has."""
    if variable is not None:
        if variable in taken:
            raise ValueError(
                f"variable={variable!r} is the name of a dimension or coordinate of this file; "
                f"choose a name that is not among {sorted(taken)}"
            )
        return variable
    return f"{default}_data" if default in taken else default


def _default_name(metadata: Metadata) -> str:
    """Return the name of a variable for which none is stored."""
    return "labels" if metadata.is_seg else "image"


def _name_to_store(array: xr.DataArray, stored: Metadata) -> str | None:
    """Return the name of the variable unless reading would choose it anyway."""
    default = _default_name(stored)
    if default in {*array.dims, *array.coords}:
        default = f"{default}_data"
    return array.name if isinstance(array.name, str) and array.name != default else None


def _attrs_to_store(array: xr.DataArray) -> dict[str, Any]:
    """Return the user's attributes as plain data; warn of those that are not."""
    attrs = {}
    for name, value in array.attrs.items():
        if name in OWN_ATTRS:
            continue
        try:
            if not is_name(name):
                raise TypeError("names are at most 256 printable characters")  # noqa: TRY301
            attrs.update(plain_value({name: value}))
        except TypeError as error:
            warnings.warn(
                f"attribute {name!r} is not stored in the file: {error}. Files hold texts, "
                "numbers, lists and dicts with texts as keys",
                MlaWarning,
                stacklevel=3,
            )
    return attrs


def _labels(
    dims: tuple[str, ...], stored: Metadata, before: Axes, renamed: Mapping[str, str]
) -> tuple[str, ...] | None:
    """Return the axis labels to store: those of the file follow their dimensions.

    Dimensions whose names were assumed stay plain ``spatial``: writing must not make them certain.
    So do those of which the new name says nothing.
    """
    if dims == before.dims:
        return stored.spatial.axis_labels
    if before.dims and before.labels is None and plan_dims(None, len(dims)).dims == dims:
        return None
    labels = before.labels or ("spatial",) * len(before.dims)
    known = dict(zip(before.dims, labels, strict=True))
    new = dict(zip(dims, axis_labels_for(dims), strict=True))
    unnamed = {dim for dim in renamed if new.get(dim) not in SPATIAL_LABELS}
    return tuple("spatial" if dim in unnamed else known.get(dim, new[dim]) for dim in dims)


def _geometry(array: xr.DataArray, axes: Axes) -> Geometry | None:
    """Return the geometry of an array if it can be stored; None when there is nothing to store."""
    try:
        geometry = geometry_of(array)
    except GeometryError:
        if axes.spatial and "affine" in array.attrs:
            raise
        if "affine" in array.attrs:
            warnings.warn(
                f"the geometry is not stored: none of the dimensions {axes.dims} is spatial. To "
                "silence this, give it up: del array.attrs['affine']",
                MlaWarning,
                stacklevel=3,
            )
        return None
    placed = tuple(dim for dim in geometry.dims if dim in axes.dims)
    if placed == axes.spatial_dims:
        return geometry
    if geometry.is_stored:
        missing = sorted({*axes.spatial_dims} - {*placed})
        warnings.warn(
            f"the geometry is not stored: nothing is known of positions along {missing}, and a "
            "file holds an affine for all spatial dimensions or none. To store it, assign "
            "coordinates to them and remove attrs['affine'], or rename them",
            MlaWarning,
            stacklevel=3,
        )
    return None


def _is_same(geometry: Geometry | None, opened: Geometry) -> bool:
    """Tell whether an array still has the geometry that it was opened with."""
    if geometry is None:
        return not opened.dims
    return (
        geometry.dims == opened.dims
        and geometry.is_stored == opened.is_stored
        and np.array_equal(geometry.affine, opened.affine, equal_nan=True)
    )


def _coord_system(array: xr.DataArray, stored: Spatial) -> str | None:
    """Return the coordinate system: the file's full text, unless the attribute was changed."""
    shown, kept = array.attrs.get("coord_system"), stored.coord_system
    if kept is not None and shown == shown_text(kept):
        return kept
    return shown if isinstance(shown, str) else None


def _axis_units(
    geometry: Geometry | None, opened: Geometry, axes: Axes, before: Axes, stored: Json
) -> Json:
    """Return the units to store, one per array axis: the file's own field while it is true."""
    if axes.dims == before.dims and (geometry is None or geometry.units == opened.units):
        return stored
    known: dict[str, Json] = {}
    if isinstance(stored, list) and len(stored) == len(before.dims):
        known.update(zip(before.dims, stored, strict=True))
    if geometry is not None:
        known.update(zip(geometry.dims, geometry.units, strict=True))
    units: list[Json] = [known.get(dim) or "" for dim in axes.dims]
    return units if any(units) else None


def _affine_to_store(geometry: Geometry | None, axes: Axes) -> tuple[tuple[float, ...], ...] | None:
    """Return the affine over the array's own spatial axes, None without one."""
    if geometry is None or not geometry.is_stored or not axes.spatial:
        return None
    plane = geometry.without(geometry.dims[len(axes.spatial) :])
    return None if plane is None else plane.affine
