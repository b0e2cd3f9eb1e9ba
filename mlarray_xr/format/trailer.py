"""The trailer of a frame: where the variable-length metadata entries lie."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Protocol

from mlarray_xr.errors import FormatError
from mlarray_xr.format.cursor import Cursor
from mlarray_xr.format.frame import FOOTER_BYTES, MIN_TRAILER_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.format.frame import FrameHeader

__all__ = [
    "METADATA_NAME",
    "TrailerBytes",
    "encode_trailer",
    "largest_table",
    "largest_value",
    "pack_bytes",
    "parse_trailer",
    "trailer_length",
    "unpack_bytes",
]

METADATA_NAME = "mlarray"
_MAX_ENTRY_OVERHEAD = 1 << 20
_TABLE_BYTES_PER_CHUNK = 64
# Tags and count, then per entry a tag, a name of at most 31 bytes, and a tagged offset.
_MAP_HEAD_BYTES = 9
_MOST_BYTES_PER_NAME = 1 + 31 + 5
_VALUE_HEAD_BYTES = 5
_BIN_LENGTH_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4}


class TrailerBytes(Protocol):
    """The bytes of a trailer, which may be read when they are asked for; `bytes` are."""

    def __len__(self) -> int:
        """Return the trailer's length."""

    def __getitem__(self, piece: slice, /) -> bytes:
        """Return a piece, given by plain start and stop."""


def largest_value(value_bytes: int) -> int:
    """Return the most bytes that a value of at most `value_bytes` may take in the trailer."""
    return value_bytes + _MAX_ENTRY_OVERHEAD


def largest_table(n_chunks: int) -> int:
    """Return the most bytes that an honest table about so many chunks takes in the trailer."""
    return n_chunks * _TABLE_BYTES_PER_CHUNK + _MAX_ENTRY_OVERHEAD


def trailer_length(footer: bytes, header: FrameHeader, *, value_bytes: int, name: str) -> int:
    """Return the trailer's length from the last 23 bytes of a frame.

    Parameters
    ----------
    footer
        The last 23 bytes of the frame.
    header
        The checked header of the same frame.
    value_bytes
        Largest metadata value accepted, bytes; the trailer may hold 1 MiB more than that, and 64
        bytes for every chunk.
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
    if length > value_bytes + largest_table(header.n_chunks):
        msg = f"{name}: a trailer of {length} bytes exceeds the metadata limit of {value_bytes}"
        raise FormatError(msg)
    if 0 in header.shape and header.header_len != header.frame_len - length:
        msg = f"{name}: an empty array has no chunks, yet bytes stand between header and trailer"
        raise FormatError(msg)
    return length


def parse_trailer(
    trailer: TrailerBytes, header: FrameHeader, *, name: str
) -> dict[str, tuple[int, int]]:
    """Return the span of each metadata entry's value, relative to the trailer's first byte.

    A value is a Blosc2 chunk; nothing is decoded here, so that entries which are not ours are
    never looked into. Of the trailer, only the map and the first five bytes of every entry are
    asked for.

    Raises
    ------
    FormatError
        When the map is damaged or an entry lies outside the trailer.
    """
    count = int.from_bytes(trailer[_MAP_HEAD_BYTES - 2 : _MAP_HEAD_BYTES], "big")
    body_len = len(trailer) - FOOTER_BYTES
    map_bytes = min(body_len, _MAP_HEAD_BYTES + count * _MOST_BYTES_PER_NAME + 3)
    cursor = Cursor(trailer[0:map_bytes], what=f"{name}: trailer")
    cursor.expect(b"\x94\x01")
    found = cursor.names()
    if bool(found) != header.has_vlmeta:
        msg = f"{name}: the header says entries: {header.has_vlmeta}, the trailer has {len(found)}"
        raise FormatError(msg)
    spans: dict[str, tuple[int, int]] = {}
    for entry, offset in found:
        if not cursor.position <= offset <= body_len:
            msg = f"{name}: metadata entry {entry!r} at byte {offset} lies outside the trailer"
            raise FormatError(msg)
        start = offset + _VALUE_HEAD_BYTES
        head = trailer[offset : min(start, body_len)]
        length = Cursor(head, what=f"{name}: metadata entry {entry!r}").integer(
            0xC6, 4, signed=False
        )
        if length > body_len - start:
            msg = (
                f"{name}: metadata entry {entry!r} claims {length} bytes, "
                f"{body_len - start} are left of the trailer: it is truncated or damaged"
            )
            raise FormatError(msg)
        spans[entry] = (start, start + length)
    # Entries that share their bytes would be copied once each, by us and by the C library.
    ordered = sorted(spans.values())
    if any(stop > start for (_, stop), (start, _) in itertools.pairwise(ordered)):
        msg = f"{name}: {len(spans)} metadata entries overlap in a trailer of {len(trailer)} bytes"
        raise FormatError(msg)
    return spans


def encode_trailer(entries: Mapping[str, bytes]) -> bytes:
    """Return the trailer that holds entries, byte for byte as C-Blosc2 writes it.

    Parameters
    ----------
    entries
        The value of each entry, a Blosc2 chunk, by its name of 1 to 31 bytes.
    """
    texts = [name.encode() for name in entries]
    names = [bytes([0xA0 + len(text)]) + text for text in texts]
    map_len = 6 + sum(len(name) + 5 for name in names)
    offset = 2 + 1 + map_len + 3
    head = b""
    for name, value in zip(names, entries.values(), strict=True):
        head += name + struct.pack(">Bi", 0xD2, offset)
        offset += _VALUE_HEAD_BYTES + len(value)
    count = struct.pack(">H", len(names))
    body = b"".join(struct.pack(">BI", 0xC6, len(value)) + value for value in entries.values())
    start = b"\x94\x01\x93\xcd" + struct.pack(">H", map_len & 0xFFFF) + b"\xde" + count + head
    trailer = start + b"\xdc" + count + body
    # The fingerprint of type 0: none.
    return trailer + struct.pack(">BIBB", 0xCE, len(trailer) + FOOTER_BYTES, 0xD8, 0) + bytes(16)


def pack_bytes(content: bytes) -> bytes:
    r"""Return content as one msgpack byte string, see `unpack_bytes`.

    Examples
    --------
    >>> pack_bytes(b"ab")
    b'\xc4\x02ab'
    """
    tag, width = next((t, w) for t, w in _BIN_LENGTH_WIDTHS.items() if len(content) < 1 << (8 * w))
    return bytes([tag]) + len(content).to_bytes(width, "big") + content


def unpack_bytes(value: bytes, *, name: str) -> bytes:
    """Return the content of a decoded entry that is one msgpack byte string.

    Raises
    ------
    FormatError
        When it is anything else.
    """
    start = 1 + _BIN_LENGTH_WIDTHS.get(value[0], 0) if value else 0
    if start < 2 or int.from_bytes(value[1:start], "big") != len(value) - start:
        msg = f"{name}: {len(value)} bytes starting with {value[:5].hex(' ')} are no byte string"
        raise FormatError(msg)
    return value[start:]
