"""The integrity entry: checksum, length and value range of every chunk, as bytes and back.

Entry `mlarray_xr.chunks` of the trailer, msgpack bytes. Numbers are big-endian::

    magic "mlxc", crc32 of all that follows (4 bytes), version (1)
    number of axes (1), shape (8 each), chunks (4 each), blocks (4 each)
    type string (length 1, text), payload bytes (8), number of chunks (8)
    writer (length 1, text), number of columns (1): 3, or 6 with statistics
    columns: method (1), stored bytes (4), the bytes

Columns are ``crc32 <u4``, ``length <i4``, ``special u1`` and, with statistics, ``least`` and
``greatest`` of the array's type and ``nonzero <i8``. Method 0 is raw; method 1 is the first bytes
of all numbers, then the second bytes, and so on, deflated by zlib. Equal values give equal bytes:
nothing in the entry depends on time or chance.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.column import decode_column, encode_column, take_unsigned
from mlarray_xr.format.cursor import Cursor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = [
    "INTEGRITY_NAME",
    "ChunkStatistics",
    "Integrity",
    "chunk_place",
    "decode_integrity",
    "encode_integrity",
    "has_statistics",
]

INTEGRITY_NAME = "mlarray_xr.chunks"
_MAGIC = b"mlxc"
_VERSION = 1
_CHECKED_FROM = len(_MAGIC) + 4
_ORDERED = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_KINDS = {0: "stored bytes", 1: "zeros", 2: "NaN", 4: "nothing"}
_COLUMNS = (("crc32", "<u4"), ("length", "<i4"), ("special", "|u1"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkStatistics:
    """The range of the values of every chunk; padding beyond the array's edge does not count."""

    least: NDArray[Any]
    """Smallest value of each chunk, array's type. NaN is passed over; NaN where all are NaN."""
    greatest: NDArray[Any]
    """Largest value of each chunk, by the same rules."""
    nonzero: NDArray[np.int64]
    """Number of values that are not zero; NaN is not zero."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Integrity:
    """What a writer recorded of a complete file, so that damage and later edits can be told.

    Chunks are in C order of the chunk grid.

    Examples
    --------
    >>> import numpy as np
    >>> crc32, special = np.array([7, 9], "u4"), np.zeros(2, "u1")
    >>> value = Integrity(
    ...     shape=(6,),
    ...     chunks=(4,),
    ...     blocks=(2,),
    ...     dtype_str="<i2",
    ...     payload_len=80,
    ...     crc32=crc32,
    ...     length=np.array([40, 40], "i4"),
    ...     special=special,
    ...     statistics=None,
    ...     writer="an example",
    ... )
    >>> value.n_chunks, encode_integrity(value)[:4]
    (2, b'mlxc')
    """

    shape: tuple[int, ...]
    """Extents of the array, array order."""
    chunks: tuple[int, ...]
    """Extents of a chunk, array order."""
    blocks: tuple[int, ...]
    """Extents of a block, array order."""
    dtype_str: str
    """NumPy type string of the elements."""
    payload_len: int
    """Bytes of the section that holds the chunks, gaps included."""
    crc32: NDArray[np.uint32]
    """Checksum of each chunk as it is stored, header included; 0 without payload."""
    length: NDArray[np.int32]
    """Stored bytes of each chunk, header included; 0 without payload."""
    special: NDArray[np.uint8]
    """0, or Blosc2's code of a chunk without payload: 1 zeros, 2 NaN, 4 uninitialised."""
    statistics: ChunkStatistics | None
    """Value ranges; None for types that have no order, or of more than 8 bytes."""
    writer: str
    """Program and version that wrote the file, ASCII."""

    def __post_init__(self) -> None:
        """Check that the columns fit the chunk grid and each other."""
        for name, column, wanted in _columns(self):
            if column.shape != (self.n_chunks,) or column.dtype != np.dtype(wanted):
                msg = (
                    f"{name} of shape {column.shape} and type {column.dtype} given, "
                    f"{self.n_chunks} chunks of {self.dtype_str} need one {wanted} each"
                )
                raise ValueError(msg)
        if self.statistics is not None and not has_statistics(self.dtype_str):
            msg = f"statistics given for type {self.dtype_str}, which has no order"
            raise ValueError(msg)

    @property
    def n_chunks(self) -> int:
        """Number of chunks of the grid: none of an empty array."""
        return _count_chunks(self.shape, self.chunks)

    def differences(self, header: FrameHeader) -> tuple[str, ...]:
        """Say how a frame's header contradicts what was written; no text when it does not.

        The length of the payload is left out: other programs may move chunks.
        """
        facts = ("shape", "chunks", "blocks", "dtype_str")
        return tuple(
            f"the header says {fact} {getattr(header, fact)}, written was {getattr(self, fact)}"
            for fact in facts
            if getattr(header, fact) != getattr(self, fact)
        )

    def fault(self, number: int, stored: bytes | memoryview, *, special: int) -> str | None:
        """Say how a chunk differs from what was written; None when it does not.

        Parameters
        ----------
        number
            C-order number of the chunk.
        stored
            Its bytes in the file, header included; empty without payload.
        special
            0, or Blosc2's code of a chunk without payload.
        """
        if special != self.special[number]:
            found, written = (
                _KINDS.get(int(code), "?") for code in (special, self.special[number])
            )
            return f"the chunk table says {found}, written was {written}"
        if len(stored) != self.length[number]:
            return f"it has {len(stored)} bytes, {self.length[number]} were written"
        found_crc, written_crc = zlib.crc32(stored), int(self.crc32[number])
        if found_crc != written_crc:
            return f"its checksum is {found_crc:08x}, {written_crc:08x} was written"
        return None


def chunk_place(
    number: int, header: FrameHeader
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return grid position and box of a chunk; the box ends where the array does."""
    position = tuple(int(i) for i in np.unravel_index(number, header.chunk_grid or (1,)))
    places = zip(position, header.chunks, header.shape, strict=False)
    return position[: len(header.shape)], tuple(
        (i * chunk, min((i + 1) * chunk, extent)) for i, chunk, extent in places
    )


def has_statistics(dtype_str: str) -> bool:
    """Tell whether chunks of a type have statistics: ordered numbers of at most 8 bytes.

    Examples
    --------
    >>> has_statistics("<i2"), has_statistics("<c8")
    (True, False)
    """
    return _ORDERED.fullmatch(dtype_str) is not None


def encode_integrity(value: Integrity) -> bytes:
    """Encode the entry: at most 33 bytes a chunk, 9 or fewer without statistics."""
    ndim = len(value.shape)
    columns = _columns(value)
    body = b"".join(
        [
            struct.pack(f">BB{ndim}Q", _VERSION, ndim, *value.shape),
            struct.pack(f">{2 * ndim}I", *value.chunks, *value.blocks),
            _short_text(value.dtype_str),
            struct.pack(">QQ", value.payload_len, value.n_chunks),
            _short_text(value.writer),
            bytes([len(columns)]),
            *(encode_column(column, wanted) for _, column, wanted in columns),
        ]
    )
    return _MAGIC + struct.pack(">I", zlib.crc32(body)) + body


def decode_integrity(data: bytes, header: FrameHeader, *, name: str) -> Integrity | None:
    """Decode the entry of a file whose header has been checked.

    Parameters
    ----------
    data
        The entry's content.
    header
        The header of the same file; its number of chunks bounds what is allocated.
    name
        What to call the file in errors.

    Returns
    -------
    Integrity or None
        None when the entry is whole and says nothing here: it is of a later version, or another
        program has changed the number of chunks since.

    Raises
    ------
    FormatError
        When the entry is damaged.
    """
    what = f"{name}: integrity entry"
    cursor = Cursor(data, what=what)
    cursor.expect(_MAGIC)
    crc, found = take_unsigned(cursor, 4), zlib.crc32(memoryview(data)[_CHECKED_FROM:])
    if found != crc:
        msg = f"{what}: its checksum is {found:08x}, {crc:08x} was written: it is damaged"
        raise FormatError(msg)
    if cursor.take(1)[0] != _VERSION:
        return None
    ndim = cursor.take(1)[0]
    shape, chunks, blocks = (
        tuple(take_unsigned(cursor, size) for _ in range(ndim)) for size in (8, 4, 4)
    )
    dtype_str = _take_text(cursor)
    payload_len, n_chunks = take_unsigned(cursor, 8), take_unsigned(cursor, 8)
    writer = _take_text(cursor)
    if n_chunks != header.n_chunks:
        return None
    wanted = _wanted_columns(cursor.take(1)[0], dtype_str, what=what)
    columns = [decode_column(cursor, np.dtype(each), n_chunks) for each in wanted]
    if cursor.position != len(data) or _count_chunks(shape, chunks) != n_chunks:
        msg = f"{what}: it is about {n_chunks} chunks, shape {shape} in {chunks} contradicts it"
        raise FormatError(msg)
    crc32, length, special, *ranges = columns
    return Integrity(
        shape=shape,
        chunks=chunks,
        blocks=blocks,
        dtype_str=dtype_str,
        payload_len=payload_len,
        crc32=crc32,
        length=length,
        special=special,
        statistics=_statistics(*ranges) if ranges else None,
        writer=writer,
    )


def _count_chunks(shape: tuple[int, ...], chunks: tuple[int, ...]) -> int:
    """Return the number of chunks of a grid; 0 of an empty array, or one cut into nothing."""
    if 0 in shape or 0 in chunks:
        return 0
    return math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))


def _columns(value: Integrity) -> list[tuple[str, NDArray[Any], str]]:
    """Return name, numbers and type of each column, in the order of the entry."""
    columns = [(name, getattr(value, name), wanted) for name, wanted in _COLUMNS]
    if value.statistics is None:
        return columns
    ranges = _range_columns(value.dtype_str)
    return columns + [(name, getattr(value.statistics, name), wanted) for name, wanted in ranges]


def _range_columns(dtype_str: str) -> tuple[tuple[str, str], ...]:
    """Return name and type of the columns with statistics."""
    return ("least", dtype_str), ("greatest", dtype_str), ("nonzero", "<i8")


def _statistics(
    least: NDArray[Any], greatest: NDArray[Any], nonzero: NDArray[Any]
) -> ChunkStatistics:
    """Return the last three columns as statistics."""
    return ChunkStatistics(least=least, greatest=greatest, nonzero=nonzero)


def _wanted_columns(count: int, dtype_str: str, *, what: str) -> list[str]:
    """Return the types of the columns of an entry that has so many."""
    columns: tuple[tuple[str, str], ...] = _COLUMNS
    if count == len(_COLUMNS) + 3 and has_statistics(dtype_str):
        columns += _range_columns(dtype_str)
    if len(columns) != count:
        msg = f"{what}: {count} columns about chunks of type {dtype_str[:64]!r}"
        raise FormatError(msg)
    return [wanted for _, wanted in columns]


def _take_text(cursor: Cursor) -> str:
    """Consume a text of at most 255 bytes; what is no ASCII becomes question marks."""
    text = cursor.take(cursor.take(1)[0]).decode("ascii", "replace")
    return text if text.isprintable() else ascii(text)[1:-1]


def _short_text(text: str) -> bytes:
    """Return the length of a text of at most 255 characters, and the text."""
    data = text.encode("ascii")
    return bytes([len(data)]) + data
