"""What compressed pixels may honestly claim: checks before a decoder allocates."""

from __future__ import annotations

import struct

from mlarray_xr.errors import ConversionError

__all__ = ["check_expansion", "claimed_pixels"]

_TRUSTED_BYTES = 1 << 30
"""Parts that decode to at most this are decoded whatever their ratio."""

_MAX_RATIO = 1100
"""Deflate reaches 1032; only a larger part with a larger ratio is refused."""

_SOI, _J2K, _JP2 = b"\xff\xd8", b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "
_NO_SIZE_MARKERS = {0xC4, 0xC8, 0xCC}
_LONE_MARKERS = {0x01, *range(0xD0, 0xD9)}


def check_expansion(decoded_bytes: int, *, encoded_bytes: int) -> None:
    """Refuse to decode a few bytes to gigabytes.

    Raises
    ------
    ConversionError
        When the decoded size is above 1 GiB and above 1100 times the encoded one.

    Examples
    --------
    >>> check_expansion(10**9, encoded_bytes=10)
    >>> check_expansion(10**11, encoded_bytes=10)
    Traceback (most recent call last):
    mlarray_xr.errors.ConversionError: 10 compressed bytes claim to hold 100000000000 bytes...
    """
    if decoded_bytes > max(_TRUSTED_BYTES, _MAX_RATIO * encoded_bytes):
        raise ConversionError(
            f"{encoded_bytes} compressed bytes claim to hold {decoded_bytes} bytes of pixels, more "
            f"than {_TRUSTED_BYTES >> 30} GiB and {_MAX_RATIO} times their number: the file is "
            "damaged or hostile"
        )


def claimed_pixels(data: bytes) -> int | None:
    """Return rows times columns that a JPEG, JPEG-LS or JPEG 2000 codestream says it holds.

    None for anything else. ISO/IEC 10918-1 B.2.2 (JPEG), 14495-1 C.2.2 (JPEG-LS) and 15444-1 A.5.1
    (JPEG 2000) say where.

    Raises
    ------
    ConversionError
        When a JP2 file has no codestream.

    Examples
    --------
    >>> claimed_pixels(bytes.fromhex("ffd8 ffc0 000b 08 0002 0003 01 01 11 00"))
    6
    """
    if data.startswith(_SOI):
        return _jpeg_pixels(data)
    at = _boxed_codestream(data) if data.startswith(_JP2) else 0
    if data.startswith(_J2K, at) and len(data) >= at + 24:
        right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
        return int(max(right - left, 0) * max(bottom - top, 0))
    return None


def _boxed_codestream(data: bytes) -> int:
    """Return where the codestream of a JP2 file starts (15444-1 annex I).

    A box shorter than its own header leads nowhere, and pydicom 3.0 round in circles.
    """
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"jp2c":
            return at + 8
        if length < 8:
            break
        at += length
    raise ConversionError("a JP2 file without a codestream: it is damaged or hostile")


def _jpeg_pixels(data: bytes) -> int | None:
    """Walk the segments of a JPEG to the one with the size."""
    at = 2
    while at + 9 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xDA:
            return None
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _LONE_MARKERS:
            at += 2
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in _NO_SIZE_MARKERS):
            rows, columns = struct.unpack_from(">2H", data, at + 5)
            return int(rows * columns)
        else:
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return None
