"""Columns of numbers in an entry: method (1 byte), stored bytes (4, big-endian), the bytes.

Method 0 is raw; method 1 is the first bytes of all numbers, then the second bytes, and so on,
deflated by zlib.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.cursor import Cursor

__all__ = ["decode_column", "encode_column", "take_unsigned"]

_RAW, _DEFLATED = 0, 1
_LEVEL = 6


def encode_column(numbers: NDArray[Any], wanted: str) -> bytes:
    """Return method, length and bytes of a column: deflated where that makes it smaller."""
    raw = np.ascontiguousarray(numbers, wanted)
    shuffled = raw.view(np.uint8).reshape(len(raw), raw.itemsize).T.tobytes()
    deflated = zlib.compress(shuffled, _LEVEL)
    method, stored = _RAW, raw.tobytes()
    if len(deflated) < len(stored):
        method, stored = _DEFLATED, deflated
    return struct.pack(">BI", method, len(stored)) + stored


def decode_column(cursor: Cursor, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Consume one column; never more is allocated than `count` numbers take."""
    n_bytes = count * dtype.itemsize
    method, stored = cursor.take(1)[0], cursor.take(take_unsigned(cursor, 4))
    content = np.frombuffer(stored, np.uint8)
    if method == _DEFLATED:
        inflated = _inflate(stored, n_bytes)
        content = np.frombuffer(inflated, np.uint8).reshape(dtype.itemsize, -1).T.reshape(-1)
    if method not in (_RAW, _DEFLATED) or len(content) != n_bytes:
        msg = f"{cursor.what}: a column of {len(content)} bytes, {n_bytes} are right: damaged"
        raise FormatError(msg)
    if dtype.kind == "b" and content.size and content.max() > 1:
        msg = f"{cursor.what}: a column of booleans holds {content.max()}: damaged"
        raise FormatError(msg)
    return np.ascontiguousarray(content).view(dtype)


def _inflate(stored: bytes, n_bytes: int) -> bytes:
    """Return what a zlib stream holds when that is exactly so many bytes, else nothing."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(stored, max_length=n_bytes + 1)
    except zlib.error:
        return b""
    is_whole = stream.eof and not stream.unused_data and len(content) == n_bytes
    return content if is_whole else b""


def take_unsigned(cursor: Cursor, size: int) -> int:
    """Consume a big-endian number without a sign."""
    return int.from_bytes(cursor.take(size), "big")
