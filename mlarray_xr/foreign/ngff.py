"""OME-NGFF metadata: the JSON of multiscale images, read into values.

Versions 0.1 to 0.5 (https://ngff.openmicroscopy.org). Values only; the arrays are elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import OWN_ATTRS, is_name
from mlarray_xr.axes import axis_labels_for, plan_dims
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.positions import MAX_POSITIONS, EvenAxis
from mlarray_xr.format.metadata import SPATIAL_LABELS, Metadata, Spatial
from mlarray_xr.record import Record, StoredCoordinate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlarray_xr.format.metadata import Json

__all__ = [
    "OPPOSITE",
    "TOWARD_RAS",
    "UNITS",
    "Level",
    "Multiscale",
    "NgffAxis",
    "is_label",
    "level_metadata",
]

_VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5")
_UNNAMED_AXES = ("0.1", "0.2")
_FIRST_AXES = "tczyx"
"""Of the versions that do not name them."""

_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_DIMS = {("t", "time"): "time", ("c", "channel"): "channel"}

UNITS = {
    "angstrom": "angstrom",
    "nanometer": "nm",
    "micrometer": "um",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
    "microsecond": "us",
    "millisecond": "ms",
    "second": "s",
    "minute": "min",
    "hour": "h",
}
"""Symbols of the units that NGFF spells out."""

TOWARD_RAS = ("left-to-right", "posterior-to-anterior", "inferior-to-superior")
"""Which way positions along the world axes of RAS grow, as RFC 4 says it."""
OPPOSITE = dict(
    zip(
        TOWARD_RAS,
        ("right-to-left", "anterior-to-posterior", "superior-to-inferior"),
        strict=True,
    )
)
OPPOSITE |= {other: way for way, other in OPPOSITE.items()}
"""The same way back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NgffAxis:
    """One axis of a multiscale image."""

    name: str
    """Unique among the axes."""
    kind: str | None
    """``"space"``, ``"time"``, ``"channel"``, something else or None."""
    unit: str | None
    """Unit in the words of UDUNITS, such as ``"micrometer"``."""
    orientation: str | None = None
    """Which way positions grow in a patient, one of `OPPOSITE`; None where nothing is said."""

    @property
    def dim(self) -> str:
        """Name of the dimension."""
        return _DIMS.get((self.name, self.kind or ""), self.name)

    @property
    def label(self) -> str:
        """Axis label of the schema."""
        label = axis_labels_for([self.dim])[0]
        if self.kind == "space":
            return label if label in SPATIAL_LABELS else "spatial"
        return self.dim if label in SPATIAL_LABELS else label

    @property
    def short_unit(self) -> str | None:
        """Unit as a symbol, where there is one."""
        return None if self.unit is None else UNITS.get(self.unit, self.unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One array of a multiscale image; index i along an axis lies at scale * i + translation."""

    path: str
    """Path of the array inside the group."""
    scale: tuple[float, ...] | None
    """One number per axis; None where the file does not tell."""
    translation: tuple[float, ...]
    """One number per axis; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiscale:
    """One image in several resolutions."""

    axes: tuple[NgffAxis, ...]
    """Array order, the same for all levels."""
    levels: tuple[Level, ...]
    """Finest first."""

    @classmethod
    def all_of(cls, attributes: Mapping[str, Any]) -> tuple[Multiscale, ...]:
        """Read all multiscale images that the attributes of a group describe.

        Raises
        ------
        ConversionError
            When the version is unknown, or something is not what the specification says.

        Examples
        --------
        >>> axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        >>> scale = {"type": "scale", "scale": [2.0, 0.5]}
        >>> datasets = [{"path": "0", "coordinateTransformations": [scale]}]
        >>> image = {"version": "0.4", "axes": axes, "datasets": datasets}
        >>> (found,) = Multiscale.all_of({"multiscales": [image]})
        >>> found.levels
        (Level(path='0', scale=(2.0, 0.5), translation=()),)
        """
        described = _ome(attributes)
        images = described.get("multiscales", [])
        try:
            return tuple(_multiscale(image, described.get("version")) for image in images)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ConversionError):
                raise
            raise ConversionError(
                f"the OME-NGFF metadata is broken: {type(error).__name__}: {error}"
            ) from error


def is_label(attributes: Mapping[str, Any]) -> bool:
    """Tell whether a group says that its image is a segmentation."""
    return "image-label" in _ome(attributes)


def level_metadata(
    image: Multiscale,
    level: Level,
    *,
    shape: tuple[int, ...],
    group_attributes: Mapping[str, Any],
    attrs: Mapping[str, Any],
) -> Metadata:
    """Return what the metadata says of one level, in the words of the schema.

    Scale and translation of spatial axes are the geometry; those of others, where there are any,
    coordinates. Where three spatial axes say which way positions grow in a patient (RFC 4), the
    world is RAS.

    Raises
    ------
    ConversionError
        When the array does not have as many axes as the metadata says.
    """
    axes = image.axes
    if len(shape) != len(axes):
        names = [axis.name for axis in axes]
        raise ConversionError(f"level {level.path!r} of shape {shape} has other axes than {names}")
    labels, dims = tuple(axis.label for axis in axes), tuple(axis.dim for axis in axes)
    spatial = [i for i, axis in enumerate(axes) if axis.kind == "space"]
    units: list[Json] = [axis.short_unit or "" for axis in axes]
    ways = _ways([axes[axis].orientation for axis in spatial])
    record = Record(
        dims=None if plan_dims(labels, len(axes)).dims == dims else dims,
        attrs={k: v for k, v in attrs.items() if k not in OWN_ATTRS and is_name(k)},
        coords=_coords(image, level, shape),
    )
    source: dict[Any, Any] = {"ome": dict(_ome(group_attributes))}
    return Metadata(
        source=source,
        extra=record.added_to({}),
        spatial=Spatial(
            affine=_affine(level, spatial, ways or range(len(spatial))),
            coord_system="RAS" if ways else None,
            axis_labels=labels,
            axis_units=units if any(units) else None,
        ),
        is_seg=True if is_label(group_attributes) else None,
        has_array=True,
        image_meta_format="ome-zarr",
    )


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the attributes that belong to NGFF: since 0.5 they have a key of their own."""
    own = attributes.get("ome")
    return own if type(own) is dict else attributes


def _multiscale(image: dict[str, Any], common_version: object) -> Multiscale:
    """Read one multiscale image."""
    version = image.get("version", common_version or "0.4")
    if version not in _VERSIONS:
        raise ConversionError(
            f"OME-NGFF of version {version!r} is not known: {_VERSIONS[0]} to {_VERSIONS[-1]} are"
        )
    named = _FIRST_AXES if version in _UNNAMED_AXES else image["axes"]
    axes = tuple(_axis(axis) for axis in named)
    dims = [axis.dim for axis in axes]
    if len({*dims}) < len(dims) or not all(map(is_name, dims)):
        raise ConversionError(f"the axes {dims} cannot be told apart")
    outer = image.get("coordinateTransformations", [])
    levels = [
        _level(str(entry["path"]), [entry.get("coordinateTransformations", []), outer], len(axes))
        for entry in image["datasets"]
    ]
    if not levels:
        raise ConversionError("the multiscale image has no level")
    return Multiscale(axes=axes, levels=tuple(levels))


def _axis(axis: Any) -> NgffAxis:
    """Read one axis: a name (to 0.3), or name, type and unit."""
    entry = {"name": axis} if isinstance(axis, str) else axis
    name, kind, unit = entry["name"], entry.get("type"), entry.get("unit")
    kind = _TYPES.get(name) if isinstance(axis, str) else kind
    if not isinstance(name, str) or (kind == "space" and name.split() != [name]):
        raise ConversionError(f"the name {name!r} of an axis is no word")
    toward = entry.get("orientation")
    way = toward.get("value") if isinstance(toward, dict) else None
    return NgffAxis(
        name=name,
        kind=kind if isinstance(kind, str) else None,
        unit=unit if isinstance(unit, str) else None,
        orientation=way if isinstance(way, str) and way in OPPOSITE else None,
    )


def _level(path: str, steps: Sequence[Any], ndim: int) -> Level:
    """Read one level: its own transformations, then those of the whole image."""
    scale, translation = np.ones(ndim), np.zeros(ndim)
    is_known = False
    for change in (change for step in steps for change in step):
        kind = change["type"]
        is_known = True
        if kind == "scale":
            numbers = _numbers(change["scale"], ndim)
            if not numbers.all():
                raise ConversionError(f"the scale {change['scale']} of level {path!r} holds a zero")
            scale, translation = scale * numbers, translation * numbers
        elif kind == "translation":
            translation = translation + _numbers(change["translation"], ndim)
        elif kind != "identity":
            raise ConversionError(f"transformation {kind!r} of level {path!r} is not known")
    return Level(
        path=path,
        scale=tuple(scale.tolist()) if is_known else None,
        # Adding zero turns -0.0 into 0.0.
        translation=tuple((translation + 0.0).tolist()) if translation.any() else (),
    )


def _numbers(value: Any, ndim: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return finite numbers, one per axis."""
    is_plain = type(value) is list and all(type(number) in (int, float) for number in value)
    if not is_plain or len(value) != ndim or not all(map(math.isfinite, value)):
        raise ConversionError(f"{ndim} finite numbers are needed, one per axis, not {value!r:.80}")
    return np.asarray(value, np.float64)


def _ways(orientations: Sequence[str | None]) -> dict[int, int] | None:
    """Return the world axis of RAS that each spatial axis runs along; None where that is not said.

    Of one that runs the other way the bitwise complement.
    """
    found = {}
    for place, toward in enumerate(orientations):
        if toward in TOWARD_RAS:
            found[place] = TOWARD_RAS.index(toward)
        elif toward is not None:
            found[place] = ~TOWARD_RAS.index(OPPOSITE[toward])
    is_complete = {row if row >= 0 else ~row for row in found.values()} == {0, 1, 2}
    return found if is_complete and len(orientations) == len(TOWARD_RAS) else None


def _affine(
    level: Level, spatial: Sequence[int], rows: Mapping[int, int] | Sequence[int]
) -> tuple[tuple[float, ...], ...] | None:
    """Return the affine over the spatial axes, None where positions are unknown."""
    if level.scale is None or not spatial:
        return None
    affine = np.zeros((len(spatial) + 1, len(spatial) + 1))
    affine[-1, -1] = 1
    for column, axis in enumerate(spatial):
        way = rows[column]
        row, sign = (way, 1) if way >= 0 else (~way, -1)
        affine[row, column] = sign * level.scale[axis]
        affine[row, -1] = sign * (level.translation[axis] if level.translation else 0.0)
    return tuple(tuple(row) for row in (affine + 0.0).tolist())


def _coords(image: Multiscale, level: Level, shape: tuple[int, ...]) -> dict[str, StoredCoordinate]:
    """Return the coordinates of axes that are not spatial, where the file tells any."""
    coords = {}
    for i, axis in enumerate(image.axes):
        scale = 1.0 if level.scale is None else level.scale[i]
        start = level.translation[i] if level.translation else 0.0
        is_index = (scale, start, axis.unit) == (1.0, 0.0, None)
        if axis.kind == "space" or is_index or shape[i] > MAX_POSITIONS:
            continue
        unit = axis.short_unit
        coords[axis.dim] = StoredCoordinate(
            dims=(axis.dim,),
            values=EvenAxis(start=start, step=scale, unit=unit).positions(shape[i]),
            attrs={} if unit is None else {"units": unit},
        )
    return coords
