"""The metadata schema as frozen values, in the names of the newest release.

Array order everywhere: entry i of `spacing` and column i of `direction` and `affine` belong to
the i-th *spatial* axis of the array, in the order of its shape; other axes are skipped.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mlarray_xr.format.entry import (
    check_entries,
    check_entry,
    check_square,
    is_box,
    is_box_label,
    is_dict,
    is_extent,
    is_number,
    is_text,
    refusal,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SPATIAL_LABELS", "Boxes", "Json", "Metadata", "Spatial", "Stats", "Storage"]

Json: TypeAlias = (
    "bool | int | float | str | list[Json] | dict[str | int | float | bool | None, Json] | None"
)
Number: TypeAlias = "int | float"
Vector: TypeAlias = "tuple[Number, ...]"
Matrix: TypeAlias = "tuple[Vector, ...]"

SPATIAL_LABELS: Final = frozenset({"spatial", "spatial_x", "spatial_y", "spatial_z"})
"""The axis labels that count as spatial; every other label does not."""

_ENTRIES: Final = "spacing origin axis_labels chunk_size block_size patch_size scores labels"
_TUPLE_DEPTHS: Final = {
    **dict.fromkeys(_ENTRIES.split(), 1),
    "direction": 2,
    "affine": 2,
    "bboxes": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Spatial:
    """Where the voxels lie: spacing, origin and direction, or one affine, and names of the axes.

    Numbers keep their type, and NaN, zero and negative ones are legal; None means not stated.

    Parameters
    ----------
    spacing, origin
        s numbers, where s is the number of spatial axes.
    direction
        s rows of s numbers.
    affine
        s + 1 rows of s + 1 numbers; never together with the three above.
    axis_labels
        One label per array axis.
    coord_system
        Free text such as ``"RAS+"`` or ``"LPS"``.
    axis_units
        Anything plain; usually one unit per axis.

    Raises
    ------
    MetadataError
        By the constructor, when a type is wrong or the parts do not agree with each other.

    Examples
    --------
    >>> Spatial(spacing=(2.0, 0.5), axis_labels=("channel", "spatial", "spatial"))
    Spatial(spacing=(2.0, 0.5), axis_labels=('channel', 'spatial', 'spatial'))
    """

    spacing: Vector | None = None
    origin: Vector | None = None
    direction: Matrix | None = None
    affine: Matrix | None = None
    axis_labels: tuple[str, ...] | None = None
    coord_system: str | None = None
    axis_units: Json = None

    def __post_init__(self) -> None:
        """Check types and agreement."""
        check_entries("spatial.spacing", self.spacing, "numbers", is_number)
        check_entries("spatial.origin", self.origin, "numbers", is_number)
        check_square("spatial.direction", self.direction)
        check_square("spatial.affine", self.affine)
        check_entries("spatial.axis_labels", self.axis_labels, "texts", is_text)
        check_entry("spatial.coord_system", self.coord_system, "a text", is_text)
        ranks = self._ranks()
        if "affine" in ranks and len(ranks) > 1:
            raise refusal("spatial", "either affine or the others", f"{' and '.join(ranks)}")
        if self.axis_labels is not None:
            ranks["axis_labels"] = len(self.spatial_axes(ndim=len(self.axis_labels)))
        if len(set(ranks.values())) > 1:
            found = ", ".join(f"{name} for {rank}" for name, rank in ranks.items())
            raise refusal("spatial", "one number of spatial axes", found)

    def __repr__(self) -> str:
        """Show what identifies nobody."""
        names = ("spacing", "origin", "direction", "affine", "axis_labels", "coord_system")
        stated = [(name, getattr(self, name)) for name in names]
        shown = [f"{name}={reprlib.repr(value)}" for name, value in stated if value is not None]
        return f"Spatial({', '.join(shown)})"

    def spatial_axes(self, *, ndim: int) -> tuple[int, ...]:
        """Return the array axes that are spatial: the labelled ones, or all without labels.

        Examples
        --------
        >>> Spatial(axis_labels=("channel", "spatial_y", "spatial_x")).spatial_axes(ndim=3)
        (1, 2)
        """
        if self.axis_labels is None:
            return tuple(range(ndim))
        return tuple(i for i, label in enumerate(self.axis_labels) if label in SPATIAL_LABELS)

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Check that labels and geometry have as many entries as an array of `shape` needs.

        Raises
        ------
        MetadataError
            When they do not; the message names both numbers.

        Examples
        --------
        >>> Spatial(spacing=(2.0, 0.5)).check_fits((20, 30))
        """
        if self.axis_labels is not None and len(self.axis_labels) != len(shape):
            wanted = f"{len(shape)} labels for the array of shape {shape}"
            raise refusal("spatial.axis_labels", wanted, f"{len(self.axis_labels)}")
        count = len(self.spatial_axes(ndim=len(shape)))
        wanted = f"for {count} spatial axes of the array of shape {shape}"
        for name, rank in self._ranks().items():
            if rank != count:
                raise refusal(f"spatial.{name}", wanted, f"one for {rank}")

    def _ranks(self) -> dict[str, int]:
        """Return for how many spatial axes each stated part of the geometry speaks."""
        parts = {
            "spacing": (self.spacing, 0),
            "origin": (self.origin, 0),
            "direction": (self.direction, 0),
            "affine": (self.affine, 1),
        }
        return {name: len(part) - more for name, (part, more) in parts.items() if part is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Summary numbers of the voxels as the writer stated them; None where it did not.

    Raises
    ------
    MetadataError
        By the constructor, when an entry is neither a number nor None.

    Examples
    --------
    >>> Stats(min=0, max=250).max
    250
    """

    min: Number | None = None
    max: Number | None = None
    mean: Number | None = None
    median: Number | None = None
    std: Number | None = None
    percentile_min: Number | None = None
    percentile_max: Number | None = None
    percentile_mean: Number | None = None
    percentile_median: Number | None = None
    percentile_std: Number | None = None
    percentile_min_key: Number | None = None
    percentile_max_key: Number | None = None

    def __post_init__(self) -> None:
        """Check types and agreement."""
        for each in fields(self):
            check_entry(f"stats.{each.name}", getattr(self, each.name), "a number", is_number)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Boxes:
    """Bounding boxes, each a (low, high) pair per spatial axis, with scores and labels.

    Whether the high end belongs to the box is not defined by the format.

    Raises
    ------
    MetadataError
        By the constructor, when an entry has the wrong type, or there is not one score and one
        label per box.

    Examples
    --------
    >>> Boxes(bboxes=(((0, 3), (1, 4)),), labels=("lesion",))
    Boxes(1 boxes)
    """

    bboxes: tuple[Matrix, ...] | None = None
    scores: Vector | None = None
    labels: tuple[str | Number, ...] | None = None

    def __post_init__(self) -> None:
        """Check types and agreement."""
        check_entries("bbox.bboxes", self.bboxes, "(low, high) pairs per axis", is_box)
        check_entries("bbox.scores", self.scores, "numbers", is_number)
        check_entries("bbox.labels", self.labels, "texts or numbers", is_box_label)
        for name, entries in (("scores", self.scores), ("labels", self.labels)):
            if None not in (self.bboxes, entries) and len(entries or ()) != len(self.bboxes or ()):
                wanted = f"one entry for each of {len(self.bboxes or ())} boxes"
                raise refusal(f"bbox.{name}", wanted, f"{len(entries or ())}")

    def __repr__(self) -> str:
        """Show what identifies nobody."""
        return f"Boxes({len(self.bboxes or ())} boxes)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How the writer asked for the array to be stored; the frame itself says how it is.

    Raises
    ------
    MetadataError
        By the constructor, when an entry has the wrong type.

    Examples
    --------
    >>> Storage(chunk_size=(64, 64), patch_size=(192, 192)).chunk_size
    (64, 64)
    """

    chunk_size: tuple[int, ...] | None = None
    block_size: tuple[int, ...] | None = None
    patch_size: tuple[int, ...] | None = None
    cparams: dict[str, Json] | None = field(default=None, repr=False)
    dparams: dict[str, Json] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check types and agreement."""
        for name in ("chunk_size", "block_size", "patch_size"):
            check_entries(f"blosc2.{name}", getattr(self, name), "extents", is_extent)
        for name in ("cparams", "dparams"):
            check_entry(f"blosc2.{name}", getattr(self, name), "a dict", is_dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Metadata:
    """All metadata of one file, whichever release wrote it.

    The repr tells nothing of `source` and `extra` but their sizes: they may identify a patient.

    Parameters
    ----------
    source, extra
        Free plain data: of the original image, and of everybody else.
    spatial, stats, bbox, blosc2
        The sections of the schema.
    is_seg
        Whether the voxels are labels; None where not stated.
    has_array
        False for a file that holds metadata only.
    image_meta_format
        Where `source` comes from: ``"nifti"``, ``"nrrd"``, ``"dicom"`` or free text.
    mlarray_version
        The version text of the schema.
    unknown
        Entries outside the schema, kept so that rewriting a file loses nothing.

    Raises
    ------
    MetadataError
        By the constructor, when an entry has the wrong type.

    Examples
    --------
    >>> Metadata(source={"PatientName": "Doe"}, spatial=Spatial(spacing=(1, 2)), has_array=True)
    Metadata(spatial=Spatial(spacing=(1, 2)), is_seg=None, has_array=True, source=1 keys, \
extra=0 keys, unknown=0 keys)
    """

    source: dict[Any, Json] = field(default_factory=dict)
    extra: dict[Any, Json] = field(default_factory=dict)
    spatial: Spatial = field(default_factory=Spatial)
    stats: Stats = field(default_factory=Stats)
    bbox: Boxes = field(default_factory=Boxes)
    is_seg: bool | None = None
    blosc2: Storage = field(default_factory=Storage)
    has_array: bool = False
    image_meta_format: str | None = None
    mlarray_version: str = "v0"
    unknown: dict[Any, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check types and agreement."""
        sections = (("spatial", Spatial), ("stats", Stats), ("bbox", Boxes), ("blosc2", Storage))
        plain = (("source", dict), ("extra", dict), ("unknown", dict), ("has_array", bool))
        for name, kind in (*sections, *plain, ("mlarray_version", str)):
            if type(getattr(self, name)) is not kind:
                raise refusal(name, kind.__name__, type(getattr(self, name)).__name__)
        check_entry("is_seg", self.is_seg, "True, False", lambda value: type(value) is bool)
        check_entry("image_meta_format", self.image_meta_format, "a text", is_text)

    def __repr__(self) -> str:
        """Show what identifies nobody."""
        sizes = [
            f"{name}={len(getattr(self, name))} keys" for name in ("source", "extra", "unknown")
        ]
        shown = [f"{name}={getattr(self, name)!r}" for name in ("spatial", "is_seg", "has_array")]
        return f"Metadata({', '.join(shown + sizes)})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts and lists, in the names of the newest release.

        `unknown` is left out. The values of `source`, `extra`, `cparams`, `dparams` and
        `axis_units` are shared with this object.

        Examples
        --------
        >>> Metadata(spatial=Spatial(spacing=(1, 2))).to_dict()["spatial"]["spacing"]
        [1, 2]
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        del values["unknown"]
        for name in _SECTIONS:
            section = values[name]
            values[name] = {
                each.name: _lists(getattr(section, each.name)) for each in fields(section)
            }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metadata:
        """Build metadata from what `to_dict` returns; entries that are missing take defaults.

        Raises
        ------
        MetadataError
            When a name is not of the schema or a type is wrong.

        Examples
        --------
        >>> Metadata.from_dict({"spatial": {"spacing": [1, 2]}}).spatial.spacing
        (1, 2)
        """
        known = {each.name for each in fields(cls)} - {"unknown"}
        _check_names("metadata", values, known)
        parts = {
            name: _section(name, _SECTIONS[name], value) if name in _SECTIONS else value
            for name, value in values.items()
        }
        return cls(**parts)


_SECTIONS: Final[dict[str, Callable[..., Any]]] = {
    "spatial": Spatial,
    "stats": Stats,
    "bbox": Boxes,
    "blosc2": Storage,
}


def _section(name: str, kind: Any, values: object) -> Any:
    """Build one section from its dict, with lists turned to tuples where the schema has them."""
    if type(values) is not dict:
        raise refusal(name, "a dict", type(values).__name__)
    _check_names(name, values, {each.name for each in fields(kind)})
    return kind(**{key: _tuples(item, _TUPLE_DEPTHS.get(key, 0)) for key, item in values.items()})


def _check_names(what: str, values: Mapping[str, Any], known: set[str]) -> None:
    """Refuse names that are not of the schema."""
    unknown = [name for name in values if name not in known]
    if unknown:
        raise refusal(what, f"names among {sorted(known)}", reprlib.repr(unknown))


def _tuples(value: object, depth: int) -> Any:
    """Turn lists into tuples down to `depth` levels; anything else stays for the checks to see."""
    if depth and type(value) in {list, tuple}:
        return tuple(_tuples(item, depth - 1) for item in value)  # type: ignore[attr-defined]
    return value


def _lists(value: object) -> Any:
    """Turn tuples of the schema into lists."""
    return [_lists(item) for item in value] if type(value) is tuple else value
