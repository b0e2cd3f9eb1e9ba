"""What xarray knows and the schema does not: our entry in the free-form part of a file.

The entry is ``extra["mlarray_xr"]``, which the reference package keeps on all its ways. Its content
comes from a file, so every part is checked, and a part that is not what it should be is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import OWN_ATTRS, plain_value
from mlarray_xr.axes import Axes, plan_dims
from mlarray_xr.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["Record", "StoredCoordinate", "stored_axes", "stored_geometry"]

_KEY = "mlarray_xr"
_DTYPE = re.compile(r"[iuf][1248]|b1|U|[mM]8\[(\d{1,4})?(Y|M|W|D|h|m|s|ms|us|ns)\]")
_NAME_CHARACTERS = 256
_TEXT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredCoordinate:
    """One coordinate of at most one dimension.

    Examples
    --------
    >>> times = np.array(["2026-01-02"], "M8[ns]")
    >>> entry = StoredCoordinate(dims=("time",), values=times).to_entry()
    >>> entry["dtype"], entry["values"]
    ('M8[ns]', [1767312000000000000])
    >>> StoredCoordinate.from_entry(entry).values.dtype
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
    def from_entry(cls, entry: Any) -> StoredCoordinate | None:
        """Read plain data back; None when it is not what `to_entry` returns."""
        try:
            dims, kind, found = tuple(entry["dims"]), entry["dtype"], entry["values"]
            attrs = {str(name): value for name, value in entry["attrs"].items()}
            if not _DTYPE.fullmatch(kind) or not all(type(dim) is str for dim in dims):
                return None
            if kind == "U" and not _fits_in_memory(found):
                return None
            exact = np.asarray(found, np.int64 if kind[0] in "mM" else kind)
            values = exact.astype(kind) if kind[0] in "mM" else exact
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            return None
        return cls(dims=dims, values=values, attrs=attrs) if values.ndim == len(dims) < 2 else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """The entry as a value; parts that are absent are None or empty.

    Examples
    --------
    >>> from mlarray_xr.format.metadata import Metadata
    >>> extra = Record(name="ct").added_to({"site": 3})
    >>> extra
    {'site': 3, 'mlarray_xr': {'name': 'ct'}}
    >>> Record.of(Metadata(extra=extra)).name
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
    def of(cls, metadata: Metadata) -> Record:
        """Read the entry of a file."""
        entry = metadata.extra.get(_KEY)
        if type(entry) is not dict:
            return cls()
        name, dims, plane = entry.get("name"), entry.get("dims"), entry.get("plane")
        coords = _mapping(entry.get("coords"))
        found = {key: StoredCoordinate.from_entry(value) for key, value in coords.items()}
        attrs = _mapping(entry.get("attrs"))
        plane_dims, plane_affine = _plane(plane)
        return cls(
            name=name if type(name) is str and 0 < len(name) <= _NAME_CHARACTERS else None,
            dims=_names(dims),
            attrs={key: value for key, value in attrs.items() if key not in OWN_ATTRS},
            coords={key: value for key, value in found.items() if value is not None},
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
    dims = Record.of(metadata).dims
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
    record, size = Record.of(metadata), len(axes.spatial)
    removed = record.plane_dims[size:]
    if record.plane_dims[:size] != axes.spatial_dims or not removed or {*removed} & {*axes.dims}:
        return geometry
    volume = Geometry(
        dims=record.plane_dims,
        affine=record.plane_affine,
        units=geometry.units + (None,) * len(removed),
        coord_system=geometry.coord_system,
    )
    plane = volume.without(removed)
    agrees = not geometry.is_stored if plane is None else plane.affine == geometry.affine
    return volume if agrees else geometry


def _mapping(value: Any) -> dict[str, Any]:
    """Return the items of a dict that have a text as key."""
    items = value.items() if type(value) is dict else ()
    return {key: item for key, item in items if type(key) is str and key}


def _names(value: Any) -> tuple[str, ...] | None:
    """Return unique texts, or None."""
    if type(value) is not list or not all(
        type(name) is str and 0 < len(name) <= _NAME_CHARACTERS for name in value
    ):
        return None
    return tuple(value) if len(set(value)) == len(value) else None


def _plane(value: Any) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Return dims and affine of a plane when both are there and agree."""
    try:
        dims = _names(value["dims"]) or ()
        affine = np.asarray(value["affine"], np.float64)
    except (KeyError, OverflowError, TypeError, ValueError):
        return (), ()
    if affine.shape != (len(dims) + 1,) * 2 or not all(map(_is_word, dims)):
        return (), ()
    return dims, tuple(tuple(row) for row in affine.tolist())


def _is_word(name: str) -> bool:
    """Tell names without white space: attributes list the spatial ones in one text."""
    return name.split() == [name]


def _fits_in_memory(texts: Any) -> bool:
    """Tell whether texts make an array of bounded size: each takes the room of the longest."""
    flat = texts if type(texts) is list else [texts]
    longest = max((len(text) for text in flat if type(text) is str), default=0)
    return all(type(text) is str for text in flat) and 4 * longest * len(flat) <= _TEXT_BYTES
