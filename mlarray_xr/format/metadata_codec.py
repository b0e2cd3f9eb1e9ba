"""Metadata bytes of every generation to `Metadata`, and back to what the newest releases read."""

from __future__ import annotations

import gzip
import pickle
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.generations import up_convert
from mlarray_xr.format.limits import DEFAULT_LIMITS, expand_plain
from mlarray_xr.format.plain_msgpack import decode_msgpack
from mlarray_xr.format.plain_pickle import decode_pickle

if TYPE_CHECKING:
    from mlarray_xr.format.limits import Limits
    from mlarray_xr.format.metadata import Metadata, Storage

__all__ = ["decode_fixed_metadata", "decode_metadata", "encode_metadata"]

_BIN_LENGTH_WIDTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_MAP_TAGS: Final = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
# Protocol 4 is the newest that every supported Python of the reference reads.
_PICKLE_PROTOCOL: Final = 4
_OWN: Final = "mlarray_xr"
_UNKNOWN: Final = "unknown"


def decode_metadata(
    value: bytes, *, shape: tuple[int, ...], limits: Limits = DEFAULT_LIMITS
) -> Metadata:
    r"""Decode the value of the variable-length entry `mlarray`, of any release.

    The first byte tells the container: a msgpack map up to 0.0.48, msgpack bytes that hold a
    gzipped pickle from 0.0.49 on. Nothing in the value is executed or imported.

    Parameters
    ----------
    value
        The decompressed value.
    shape
        Shape of the array in the file; ``(0,)`` for a file that holds metadata only.
    limits
        What decoding may cost.

    Raises
    ------
    MetadataError
        When the value is of no known kind, damaged, hostile, over a limit, or does not fit the
        array.

    Warns
    -----
    MlaWarning
        When the value holds entries that no release has.

    Examples
    --------
    >>> from mlarray_xr.format.metadata import Metadata
    >>> gzipped = encode_metadata(Metadata(extra={"a": 1}, has_array=True))
    >>> value = b"\xc5" + len(gzipped).to_bytes(2, "big") + gzipped
    >>> decode_metadata(value, shape=(4, 5)).extra
    {'a': 1}
    """
    if len(value) > limits.value_bytes:
        raise MetadataError(
            f"the metadata value may take {limits.value_bytes} bytes, found {len(value)}. "
            "To fix: raise Limits.value_bytes if the file is trusted."
        )
    tag = value[0] if value else None
    if tag in _MAP_TAGS:
        raw: Any = decode_msgpack(value, limits=limits)
        return _restore_unknown(up_convert(raw, shape=shape, flat=_is_flat(raw)))
    if tag in _BIN_LENGTH_WIDTHS:
        raw = decode_pickle(_bin_payload(value), limits=limits)
        return _restore_unknown(up_convert(raw, shape=shape, flat=False))
    found = "nothing" if tag is None else f"first byte 0x{tag:02x}"
    raise MetadataError(
        f"the metadata value must be a msgpack map or msgpack bytes, found {found}. "
        "To fix: write the file again with mlarray 0.0.23 or newer."
    )


def decode_fixed_metadata(
    value: bytes, *, shape: tuple[int, ...], limits: Limits = DEFAULT_LIMITS
) -> Metadata:
    r"""Decode the content of the fixed metalayer `med_blosc2`, of the predecessor's files.

    Parameters
    ----------
    value
        The content of the metalayer: one msgpack map.
    shape
        Shape of the array in the file.
    limits
        What decoding may cost.

    Raises
    ------
    MetadataError
        When the value is damaged, hostile, over a limit, or does not fit the array.

    Warns
    -----
    MlaWarning
        When the value holds entries that no release has.

    Examples
    --------
    >>> decode_fixed_metadata(b"\x81\xa6header\x81\xa1a\x01", shape=(4, 5)).source
    {'a': 1}
    """
    raw: Any = decode_msgpack(value, limits=limits)
    if type(raw) is not dict:
        raise MetadataError(
            f"the med_blosc2 metalayer must hold a msgpack map, found {type(raw).__name__}. "
            "To fix: write the file again with mlarray 0.0.23 or newer."
        )
    return _restore_unknown(up_convert(raw, shape=shape, flat=True))


def encode_metadata(metadata: Metadata) -> bytes:
    """Encode metadata as the gzipped pickle that releases 0.0.49 to 0.0.54 read.

    The result is what the writer stores as msgpack bytes in the variable-length entry `mlarray`;
    the same values in the same order give the same bytes. `Metadata.unknown` travels in
    ``extra["mlarray_xr"]["unknown"]``, because the reference refuses entries that it does not
    know. A `patch_size` that does not fit the spatial axes is left out for the same reason.

    Raises
    ------
    MetadataError
        When an entry is not plain, or the result would pass `DEFAULT_LIMITS`.

    Examples
    --------
    >>> from mlarray_xr.format.metadata import Metadata
    >>> encode_metadata(Metadata())[:2].hex()
    '1f8b'
    """
    spatial = metadata.spatial
    labels = spatial.axis_labels
    count = None if labels is None else len(spatial.spatial_axes(ndim=len(labels)))
    raw = {
        "source": {"data": metadata.source},
        "extra": {"data": _extra_with_unknown(metadata)},
        "spatial": {
            "spacing": spatial.spacing,
            "origin": spatial.origin,
            "direction": spatial.direction,
            "affine": spatial.affine,
            "shape": None,
            "axis_labels": labels,
            # Releases before 0.0.54 refuse the mere presence of this key.
            **({} if spatial.coord_system is None else {"coord_system": spatial.coord_system}),
            "axis_units": spatial.axis_units,
            "_num_spatial_axes": count,
            "_num_non_spatial_axes": None if labels is None else len(labels) - (count or 0),
        },
        "stats": _entries(metadata.stats),
        "bbox": _entries(metadata.bbox),
        "is_seg": {"is_seg": metadata.is_seg},
        "blosc2": _entries(_storage_that_fits(metadata)),
        "_has_array": {"has_array": metadata.has_array},
        "_image_meta_format": {"image_meta_format": metadata.image_meta_format},
        "_mlarray_version": metadata.mlarray_version,
    }
    pickled = pickle.dumps(expand_plain(raw, limits=DEFAULT_LIMITS), protocol=_PICKLE_PROTOCOL)
    if len(pickled) > DEFAULT_LIMITS.value_bytes:
        raise MetadataError(
            f"metadata may take {DEFAULT_LIMITS.value_bytes} bytes, found {len(pickled)}. "
            "To fix: store large tables in a file of their own."
        )
    return gzip.compress(pickled, 9, mtime=0)


def _bin_payload(value: bytes) -> bytes:
    """Return the bytes of a msgpack bin that must fill `value` exactly."""
    width = _BIN_LENGTH_WIDTHS[value[0]]
    start = 1 + width
    stated = int.from_bytes(value[1:start], "big")
    if len(value) != start + stated:
        raise MetadataError(
            f"the metadata value states {stated} bytes of content, found "
            f"{max(0, len(value) - start)}. To fix: copy the file again, it is damaged."
        )
    return value[start:]


def _is_flat(raw: dict[Any, Any]) -> bool:
    """Tell the dicts of releases up to 0.0.27, the last to say `image` for `source`."""
    return "image" in raw and "original" not in raw and "source" not in raw


def _entries(section: Any) -> dict[str, Any]:
    """Return one section of the schema as a dict of its entries."""
    return {each.name: getattr(section, each.name) for each in fields(section)}


def _storage_that_fits(metadata: Metadata) -> Storage:
    """Drop a patch size that the reference would refuse: one that misses a spatial axis.

    Files of releases up to 0.0.40 hold such when their channel axis got lost.
    """
    storage = metadata.blosc2
    axes = metadata.spatial.axis_labels or storage.chunk_size
    if storage.patch_size is None or axes is None:
        return storage
    fits = len(storage.patch_size) == len(metadata.spatial.spatial_axes(ndim=len(axes)))
    return storage if fits else replace(storage, patch_size=None)


def _extra_with_unknown(metadata: Metadata) -> dict[Any, Any]:
    """Add the unknown entries to `extra`, where the reference keeps what it does not know."""
    if not metadata.unknown:
        return metadata.extra
    own = metadata.extra.get(_OWN, {})
    if type(own) is not dict or _UNKNOWN in own:
        raise MetadataError(
            f"extra[{_OWN!r}] must be a dict without {_UNKNOWN!r} to carry unknown entries, found "
            f"{'that key' if type(own) is dict else type(own).__name__}. To fix: rename the entry."
        )
    return {**metadata.extra, _OWN: {**own, _UNKNOWN: metadata.unknown}}


def _restore_unknown(metadata: Metadata) -> Metadata:
    """Take back the unknown entries that `encode_metadata` put into `extra`."""
    own = metadata.extra.get(_OWN)
    carried = own.get(_UNKNOWN) if type(own) is dict else None
    if type(own) is not dict or type(carried) is not dict:
        return metadata
    rest = {name: item for name, item in own.items() if name != _UNKNOWN}
    extra = {name: item for name, item in metadata.extra.items() if name != _OWN}
    if rest:
        extra[_OWN] = rest
    return replace(metadata, extra=extra, unknown={**carried, **metadata.unknown})
