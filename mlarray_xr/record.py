"""What xarray knows and the schema does not: our entry in the free-form part of a file.

The entry is ``extra["mlarray_xr"]``, which the reference package keeps on all its ways. Its content
comes from a file, so every part is checked, and a part that is not what it should be is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import OWN_ATTRS, is_name, plain_value
from mlarray_xr.axes import Axes, plan_dims
from mlarray_xr.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["Record", "StoredCoordinate", "stored_axes", "stored_geometry"]

_KEY = "mlarray_xr"
_COORDS_BYTES = 64 << 20
"""Bound of all coordinates of a file in memory."""

_MOST_DIMS = 64
"""NumPy has no more dimensions."""

_DTYPE = re.compile(r"[iu][1248]|f[248]|b1|U|[mM]8\[(s|ms|us|ns)\]")
"""Types of coordinates; xarray has no other units of time."""

_ELEMENTS: dict[str, set[type]] = {
    "b": {bool},
    "f": {int, float},
    "U": {str},
    **{kind: {int} for kind in "iumM"},
}
"""Types of plain values by kind of array."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredCoordinate:
    """One coordinate of at most one dimension.

    Examples
    --------
    >>> times = np.array(["2026-01-02"], "M8[ns]")
    >>> entry = StoredCoordinate(dims=("time",), values=times).to_entry()
    >>> entry["dtype"], entry["values"]
    ('M8[ns]', [1767312000000000000])
    >>> StoredCoordinate.from_entry(entry, sizes={"time": 1}).values.dtype
    dtype('<M8[ns]')
    """

    dims: tuple[str, ...]
    """Name of the dimension, or nothing for a scalar."""
    values: NDArray[Any]
    """Integers, floats, bools, texts, times or time spans."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """Attributes, plain data."""

    def to_entry(self) -> dict[str, Any]:
        """Return plain data; times become integers since 1970 in the unit of their type.

        Raises
        ------
        TypeError
            When there is more than one dimension, or values or attributes are not plain data.
        """
        values = self.values
        if values.dtype == object and all(type(value) is str for value in values.flat):
            values = values.astype("U")
        kind = values.dtype.str[1:] if values.dtype.kind != "U" else "U"
        if values.ndim > 1 or not _DTYPE.fullmatch(kind):
            raise TypeError(f"{values.ndim} dimensions of {values.dtype} cannot be stored")
        plain = values.astype(np.int64) if values.dtype.kind in "mM" else values
        return {
            "dims": list(self.dims),
            "dtype": kind,
            "values": plain.tolist(),
            "attrs": plain_value(self.attrs),
        }

    @classmethod
    def from_entry(
        cls, entry: Any, *, sizes: Mapping[str, int], limit_bytes: int = _COORDS_BYTES
    ) -> StoredCoordinate | None:
        """Read plain data back.

        None when it is not what `to_entry` returns, does not fit an array of these `sizes` by
        dimension, or takes more than `limit_bytes` in memory.
        """
        try:
            dims, kind, found = tuple(entry["dims"]), entry["dtype"], entry["values"]
            attrs = {name: value for name, value in entry["attrs"].items() if is_name(name)}
            flat = found if dims else [found]
            if not _DTYPE.fullmatch(kind) or type(flat) is not list:
                return None
            if dims and (len(flat),) != tuple(sizes[dim] for dim in dims):
                return None
            if not {type(value) for value in flat} <= _ELEMENTS[kind[0]]:
                return None
            # Each text takes the room of the longest.
            itemsize = 4 * max(map(len, flat), default=0) if kind == "U" else 8
            if itemsize * len(flat) > limit_bytes:
                return None
            with np.errstate(over="raise"):
                values = np.asarray(found, np.int64 if kind[0] in "mM" else kind)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            return None
        return cls(dims=dims, values=values.astype(kind, copy=False), attrs=attrs)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """The entry as a value; parts that are absent are None or empty.

    Examples
    --------
    >>> from mlarray_xr.format.metadata import Metadata
    >>> extra = Record(name="ct").added_to({"site": 3})
    >>> extra
    {'site': 3, 'mlarray_xr': {'name': 'ct'}}
    >>> Record.of(Metadata(extra=extra), shape=()).name
    'ct'
    """

    name: str | None = None
    """Name of the variable."""
    dims: tuple[str, ...] | None = None
    """Names of the dimensions, where they are not those that the axis labels give."""
    attrs: dict[str, Any] = field(default_factory=dict)
    """The user's attributes."""
    coords: dict[str, StoredCoordinate] = field(default_factory=dict)
    """Coordinates that do not follow from the geometry."""
    plane_dims: tuple[str, ...] = ()
    """Dimensions of a plane or line of a volume: the array's spatial ones, then those removed."""
    plane_affine: tuple[tuple[float, ...], ...] = ()
    """Affine over `plane_dims`, one row and column more than there are dimensions."""

    @classmethod
    def of(cls, metadata: Metadata, *, shape: tuple[int, ...]) -> Record:
        """Read the entry of a file that holds an array of `shape`."""
        entry = _entry(metadata)
        name, attrs = entry.get("name"), _mapping(entry.get("attrs"))
        sizes = dict(zip(stored_axes(metadata, len(shape)).dims, shape, strict=True))
        plane_dims, plane_affine = _plane(entry.get("plane"))
        return cls(
            name=name if is_name(name) else None,
            dims=_names(entry.get("dims")),
            attrs={key: value for key, value in attrs.items() if key not in OWN_ATTRS},
            coords=_coords(_mapping(entry.get("coords")), sizes),
            plane_dims=plane_dims,
            plane_affine=plane_affine,
        )

    def added_to(self, extra: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return free-form data with this entry in place of an earlier one; empty: none at all."""
        parts: dict[str, Any] = {
            "name": self.name,
            "dims": None if self.dims is None else list(self.dims),
            "attrs": self.attrs,
            "coords": {key: value.to_entry() for key, value in self.coords.items()},
        }
        if self.plane_dims:
            affine = [list(row) for row in self.plane_affine]
            parts["plane"] = {"dims": list(self.plane_dims), "affine": affine}
        entry = {key: value for key, value in parts.items() if value}
        others = {key: value for key, value in extra.items() if key != _KEY}
        return {**others, _KEY: entry} if entry else others


def stored_axes(metadata: Metadata, ndim: int) -> Axes:
    """Return the axes of an array in a file: names we stored, else those the labels give."""
    axes = plan_dims(metadata.spatial.axis_labels, ndim)
    dims = _names(_entry(metadata).get("dims"))
    if dims is None or len(dims) != ndim or not all(_is_word(dims[axis]) for axis in axes.spatial):
        return axes
    return replace(axes, dims=dims)


def stored_geometry(metadata: Metadata, axes: Axes) -> Geometry:
    """Return the geometry of an array in a file; for a plane of a volume, that of the volume.

    The dimensions of a volume that the array lacks come last. What our entry says of the volume
    counts only while it agrees with the schema's own fields.

    Raises
    ------
    GeometryError
        When the stored numbers are for another count of spatial axes.
    """
    geometry = Geometry.from_spatial(metadata.spatial, axes=axes)
    dims, affine = _plane(_entry(metadata).get("plane"))
    size = len(axes.spatial)
    removed = dims[size:]
    if dims[:size] != axes.spatial_dims or not removed or {*removed} & {*axes.dims}:
        return geometry
    volume = Geometry(
        dims=dims,
        affine=affine,
        units=geometry.units + (None,) * len(removed),
        coord_system=geometry.coord_system,
    )
    plane = volume.without(removed)
    agrees = not geometry.is_stored if plane is None else plane.affine == geometry.affine
    return volume if agrees else geometry


def _entry(metadata: Metadata) -> dict[Any, Any]:
    """Return our entry as it was found, empty where there is none."""
    entry = metadata.extra.get(_KEY)
    return entry if type(entry) is dict else {}


def _mapping(value: Any) -> dict[str, Any]:
    """Return the items of a dict that have a name as key."""
    items = value.items() if type(value) is dict else ()
    return {key: item for key, item in items if is_name(key)}


def _coords(entries: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, StoredCoordinate]:
    """Return the coordinates that fit the array, as long as all of them fit in memory."""
    coords, left_bytes = {}, _COORDS_BYTES
    for name, entry in entries.items():
        found = StoredCoordinate.from_entry(entry, sizes=sizes, limit_bytes=left_bytes)
        if found is not None:
            coords[name] = found
            left_bytes -= found.values.nbytes
    return coords


def _names(value: Any) -> tuple[str, ...] | None:
    """Return unique texts, or None."""
    if type(value) is not list or not all(map(is_name, value)):
        return None
    return tuple(value) if len(set(value)) == len(value) else None


def _plane(value: Any) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return dims and affine of a plane when both are there and agree."""
    try:
        dims, rows = _names(value["dims"]) or (), value["affine"]
        size = len(dims) + 1
        if size > _MOST_DIMS or not all(map(_is_word, dims)) or len(rows) != size:
            return (), ()
        if not all(len(row) == size and {*map(type, row)} <= _ELEMENTS["f"] for row in rows):
            return (), ()
        return dims, tuple(tuple(map(float, row)) for row in rows)
    except (KeyError, OverflowError, TypeError):
        return (), ()


def _is_word(name: str) -> bool:
    """Tell names without white space: attributes list the spatial ones in one text."""
    return name.split() == [name]
