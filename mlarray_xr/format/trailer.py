"""The trailer of a frame: where the variable-length metadata entries lie."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from mlarray_xr.errors import FormatError
from mlarray_xr.format.cursor import Cursor
from mlarray_xr.format.frame import FOOTER_BYTES, MIN_TRAILER_BYTES

if TYPE_CHECKING:
    from mlarray_xr.format.frame import FrameHeader

__all__ = ["METADATA_NAME", "parse_trailer", "trailer_length"]

METADATA_NAME = "mlarray"
_MAX_ENTRY_OVERHEAD = 1 << 20


def trailer_length(footer: bytes, header: FrameHeader, *, value_bytes: int, name: str) -> int:
    """Return the trailer's length from the last 23 bytes of a frame.

    Parameters
    ----------
    footer
        The last 23 bytes of the frame.
    header
        The checked header of the same frame.
    value_bytes
        Largest metadata value accepted, bytes; the trailer may hold 1 MiB more than that.
    name
        What to call the file in errors.

    Raises
    ------
    FormatError
        When the footer is damaged, or the trailer does not fit the frame or the limit.
    """
    cursor = Cursor(footer, what=f"{name}: trailer")
    length = cursor.integer(0xCE, 4, signed=False)
    cursor.expect(b"\xd8")
    room = header.frame_len - header.header_len - header.payload_len
    if not MIN_TRAILER_BYTES <= length <= room:
        msg = f"{name}: a trailer of {length} bytes does not fit the {room} bytes left for it"
        raise FormatError(msg)
    if length > value_bytes + _MAX_ENTRY_OVERHEAD:
        msg = f"{name}: a trailer of {length} bytes exceeds the metadata limit of {value_bytes}"
        raise FormatError(msg)
    if 0 in header.shape and header.header_len != header.frame_len - length:
        msg = f"{name}: an empty array has no chunks, yet bytes stand between header and trailer"
        raise FormatError(msg)
    return length


def parse_trailer(trailer: bytes, header: FrameHeader, *, name: str) -> dict[str, tuple[int, int]]:
    """Return the span of each metadata entry's value, relative to the trailer's first byte.

    A value is a Blosc2 chunk; nothing is decoded here, so that entries which are not ours are
    never looked into.

    Raises
    ------
    FormatError
        When the map is damaged or an entry lies outside the trailer.
    """
    cursor = Cursor(trailer, what=f"{name}: trailer")
    cursor.expect(b"\x94\x01")
    found = cursor.names()
    if bool(found) != header.has_vlmeta:
        msg = f"{name}: the header says entries: {header.has_vlmeta}, the trailer has {len(found)}"
        raise FormatError(msg)
    spans: dict[str, tuple[int, int]] = {}
    body = trailer[: len(trailer) - FOOTER_BYTES]
    for entry, offset in found:
        if not cursor.position <= offset <= len(body):
            msg = f"{name}: metadata entry {entry!r} at byte {offset} lies outside the trailer"
            raise FormatError(msg)
        value = Cursor(body, position=offset, what=f"{name}: metadata entry {entry!r}")
        length = value.integer(0xC6, 4, signed=False)
        if length > len(body) - value.position:
            msg = (
                f"{name}: metadata entry {entry!r} claims {length} bytes, "
                f"{len(body) - value.position} are left of the trailer: it is truncated or damaged"
            )
            raise FormatError(msg)
        spans[entry] = (value.position, value.position + length)
    # Entries that share their bytes would be copied once each, by us and by the C library.
    ordered = sorted(spans.values())
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ordered)):
        msg = f"{name}: {len(spans)} metadata entries overlap in a trailer of {len(trailer)} bytes"
        raise FormatError(msg)
    return spans
