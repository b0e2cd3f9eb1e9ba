"""Every generation of the metadata dict, brought to the names of the newest release.

Only one decision changes meaning: *flat* dicts (the predecessor, and releases up to 0.0.27) hold
their values bare; later ones wrap single values in a dict of one key. Everything else is
converted entry by entry, whatever release wrote it.
"""

from __future__ import annotations

import warnings
from dataclasses import fields, replace
from typing import Any, Final

from mlarray_xr.errors import MlaWarning
from mlarray_xr.format.entry import refusal
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats, Storage

__all__ = ["up_convert"]

# Names of older releases; the first predecessor had `header` where later ones have `image`.
_RENAMED: Final = {
    "header": "source",
    "image": "source",
    "original": "source",
    "_blosc2": "blosc2",
    "_med_blosc2_version": "_mlarray_version",
    "med_blosc2_version": "_mlarray_version",
}
_WRAPPERS: Final = {
    "source": "data",
    "extra": "data",
    "is_seg": "is_seg",
    "_has_array": "has_array",
    "_image_meta_format": "image_meta_format",
    "_mlarray_version": "mlarray_version",
}
_KNOWN: Final = frozenset({*_WRAPPERS, "spatial", "stats", "bbox", "blosc2"})
# The first predecessor had the entries of these two sections on the top level.
_ONCE_TOP_LEVEL: Final = {
    "spacing": "spatial",
    "origin": "spatial",
    "direction": "spatial",
    "chunk_size": "blosc2",
    "block_size": "blosc2",
    "patch_size": "blosc2",
}
# Copies of what the array or the labels say: never trusted, hence dropped in silence.
_REDUNDANT: Final = frozenset(
    {"shape", "channel_axis", "_num_spatial_axes", "_num_non_spatial_axes"}
)
_MOST_NAMES_SHOWN: Final = 8


def up_convert(raw: dict[Any, Any], *, shape: tuple[int, ...], flat: bool) -> Metadata:
    """Convert the stored dict of any generation.

    Parameters
    ----------
    raw
        Plain dicts and lists as stored, in the names of the release that wrote them.
    shape
        Shape of the array in the file, from which the place of a channel axis follows; ``(0,)``
        for a file that holds metadata only.
    flat
        Whether single values are bare (predecessor and releases up to 0.0.27) or wrapped.

    Raises
    ------
    MetadataError
        When an entry has the wrong type or does not fit the array.

    Warns
    -----
    MlaWarning
        When `raw` holds names that no release has: on the top level they are kept in
        `Metadata.unknown`, inside a section they are dropped.

    Examples
    --------
    >>> stored = {"image": None, "spatial": {"spacing": [2, 1], "channel_axis": -1}}
    >>> up_convert(stored, shape=(5, 6, 3), flat=True).spatial
    Spatial(spacing=(2, 1), axis_labels=('spatial', 'spatial', 'channel'))
    """
    known, unknown = _sort_names(_nest(raw) if flat and "spatial" not in raw else raw)
    # The predecessor has no such entry, because it always stored an array.
    known.setdefault("_has_array", flat)
    entries = {
        name.removeprefix("_"): known.get(name) if flat else _unwrap(known.get(name), wrapper)
        for name, wrapper in _WRAPPERS.items()
    }
    ndim = len(shape) if entries["has_array"] else None
    entries["spatial"] = _spatial(known.get("spatial"), ndim=ndim)
    entries["stats"] = _section("stats", known.get("stats"), kind=Stats)
    entries["bbox"] = _section("bbox", _boxes(known.get("bbox")), kind=Boxes)
    entries["blosc2"] = _storage(known.get("blosc2"))
    stated = {name: value for name, value in entries.items() if value is not None}
    metadata = replace(Metadata.from_dict(stated), unknown=unknown)
    if metadata.has_array:
        metadata.spatial.check_fits(shape)
    return metadata


def _nest(raw: dict[Any, Any]) -> dict[Any, Any]:
    """Bring the first predecessor's top-level entries into their sections."""
    nested: dict[Any, Any] = {}
    for name, value in raw.items():
        section = _ONCE_TOP_LEVEL.get(name)
        if section is None:
            nested[name] = value
        else:
            nested.setdefault(section, {})[name] = value
    return nested


def _sort_names(raw: dict[Any, Any]) -> tuple[dict[str, Any], dict[Any, Any]]:
    """Split into entries of the schema, under their newest names, and unknown ones."""
    known: dict[str, Any] = {}
    unknown: dict[Any, Any] = {}
    for name, value in raw.items():
        newest = _RENAMED.get(name, name)
        if newest in _KNOWN and newest not in known and (newest == name or newest not in raw):
            known[newest] = value
        else:
            unknown[name] = value
    if unknown:
        _warn_unknown(unknown, where="", fate="they are kept in Metadata.unknown")
    return known, unknown


def _unwrap(value: object, wrapper: str) -> Any:
    """Take a single value out of its dict of one key, or as it is when user code assigned it bare.

    ``{"data": ...}`` alone is ambiguous in a bare source; the reference unwraps it, so do we.
    """
    if type(value) is dict and list(value) == [wrapper]:
        return value[wrapper]
    return value


def _spatial(value: object, *, ndim: int | None) -> dict[Any, Any]:
    """Convert the spatial section: one description of the geometry, labels for a channel axis."""
    entries = _section("spatial", value, kind=Spatial)
    if entries.get("affine") is not None:
        # Release 0.0.49 wrote both, and read the affine.
        for name in ("spacing", "origin", "direction"):
            entries.pop(name, None)
    if entries.get("axis_labels") is None and type(value) is dict:
        entries["axis_labels"] = _channel_labels(value, ndim=ndim)
    return entries


def _channel_labels(spatial: dict[Any, Any], *, ndim: int | None) -> list[str] | None:
    """Derive labels from `channel_axis` of releases up to 0.0.34; out of range means none."""
    axis = spatial.get("channel_axis")
    if axis is None:
        return None
    if type(axis) is not int:
        raise refusal("spatial.channel_axis", "an int or None", type(axis).__name__)
    if ndim is None:
        geometry = [spatial.get(name) for name in ("spacing", "origin", "direction")]
        stated = next((part for part in geometry if isinstance(part, list)), None)
        if stated is None:
            return None
        ndim = len(stated) + 1
    if not -ndim <= axis < ndim:
        return None
    labels = ["spatial"] * ndim
    labels[axis] = "channel"
    return labels


def _storage(value: object) -> dict[Any, Any]:
    """Convert the storage section: the reference stores a patch size of whole floats as given."""
    entries = _section("blosc2", value, kind=Storage)
    patch = entries.get("patch_size")
    if type(patch) is list:
        entries["patch_size"] = [
            int(item) if type(item) is float and item.is_integer() else item for item in patch
        ]
    return entries


def _boxes(value: object) -> object:
    """Bring a bare list of boxes into the section it became."""
    return {"bboxes": value} if type(value) is list else value


def _section(name: str, value: object, *, kind: Any) -> dict[Any, Any]:
    """Keep the entries of a section that the schema knows; None stands for an empty one."""
    if value is None:
        return {}
    if type(value) is not dict:
        raise refusal(name, "a dict or None", type(value).__name__)
    names = {each.name for each in fields(kind)}
    redundant = _REDUNDANT if kind is Spatial else frozenset()
    unknown = [key for key in value if key not in names and key not in redundant]
    if unknown:
        _warn_unknown(unknown, where=f" in {name}", fate="they are ignored")
    return {key: item for key, item in value.items() if key in names}


def _warn_unknown(names: Any, *, where: str, fate: str) -> None:
    """Warn of unknown entries, with a bounded number of shortened names."""
    shown = ", ".join(ascii(name)[:40] for name in list(names)[:_MOST_NAMES_SHOWN])
    more = "" if len(names) <= _MOST_NAMES_SHOWN else f" and {len(names) - _MOST_NAMES_SHOWN} more"
    warnings.warn(
        f"metadata entries{where} that no release of mlarray has, found {shown}{more}: {fate}. "
        "To fix: keep own data in extra, or update mlarray_xr.",
        MlaWarning,
        stacklevel=2,
    )
