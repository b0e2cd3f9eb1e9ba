"""The block index: where the blocks of every chunk stand, as bytes and back.

Entry `mlarray_xr.blocks` of the trailer, msgpack bytes. Chunks tell the same themselves, at their
beginning; over a network that is one more round trip. Numbers are big-endian::

    magic "mlxb", crc32 of all that follows (4 bytes), version (1)
    number of chunks (8), blocks in a chunk (4), crc32 of the chunk table it belongs to (4)
    columns (see `mlarray_xr.format.column`): chunk headers, 32 u1 each; starts of blocks, <i4 each;
    checksums of blocks, <u2 each: the lower half of the crc32 of what is stored

The chunk table as it is checksummed: little-endian int64. Chunks without payload, and those that
are not compressed, have zeros. Other programs may write a chunk again where it stands, with its
blocks in another order, and leave the index as it was: only the checksums tell.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES
from mlarray_xr.format.column import decode_column, encode_column, take_unsigned
from mlarray_xr.format.cursor import Cursor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = [
    "BLOCK_INDEX_NAME",
    "BlockIndex",
    "block_check",
    "decode_block_index",
    "encode_block_index",
    "fits_block_index",
    "most_block_index_bytes",
]

BLOCK_INDEX_NAME = "mlarray_xr.blocks"
_MAGIC = b"mlxb"
_VERSION = 1
_CHECKED_FROM = len(_MAGIC) + 4
# It is a table in memory for as long as the file is open.
_MOST_BYTES = 64 << 20
_OVERHEAD_BYTES = 64
# A start and a checksum.
_BLOCK_BYTES = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockIndex:
    """Headers and block tables of all chunks of one file."""

    heads: NDArray[np.uint8]
    """The first 32 bytes of every chunk, (n, 32)."""
    starts: NDArray[np.int32]
    """Start of every block in its chunk, (n, blocks in a chunk)."""
    checks: NDArray[np.uint16]
    """`block_check` of every block, (n, blocks in a chunk)."""

    def head(self, chunk: int) -> bytes:
        """Return the first bytes of a chunk, up to the end of its block table."""
        return bytes(self.heads[chunk]) + bytes(self.starts[chunk].astype("<i4"))


def block_check(payload: bytes) -> int:
    """Return the checksum of a block as it is stored.

    Examples
    --------
    >>> block_check(b"stored")
    63755
    """
    return zlib.crc32(payload) & 0xFFFF


def fits_block_index(n_chunks: int, n_blocks: int) -> bool:
    """Tell whether an index of so many chunks of so many blocks is made, and read: up to 64 MiB."""
    return n_chunks * (CHUNK_HEADER_BYTES + _BLOCK_BYTES * n_blocks) <= _MOST_BYTES


def most_block_index_bytes(header: FrameHeader) -> int | None:
    """Return the most bytes that an honest index of a file takes; None where none is read."""
    n_blocks = _blocks_in_chunk(header)
    if not fits_block_index(header.n_chunks, n_blocks):
        return None
    return header.n_chunks * (CHUNK_HEADER_BYTES + _BLOCK_BYTES * n_blocks) + _OVERHEAD_BYTES


def encode_block_index(index: BlockIndex, offsets: NDArray[np.int64]) -> bytes:
    """Encode the index of a file with a chunk table: about 4 bytes a block."""
    n_chunks, n_blocks = index.starts.shape
    body = b"".join(
        [
            struct.pack(">BQII", _VERSION, n_chunks, n_blocks, _table_crc(offsets)),
            encode_column(index.heads.reshape(-1), "|u1"),
            encode_column(index.starts.reshape(-1), "<i4"),
            encode_column(index.checks.reshape(-1), "<u2"),
        ]
    )
    return _MAGIC + struct.pack(">I", zlib.crc32(body)) + body


def decode_block_index(
    data: bytes, header: FrameHeader, offsets: NDArray[np.int64], *, name: str
) -> BlockIndex | None:
    """Decode the index of a file whose header and chunk table have been checked.

    Nothing in it is checked against the chunks; whoever uses an entry checks it as one that was
    read from the chunk itself.

    Returns
    -------
    BlockIndex or None
        None when it belongs to another chunk table, is of a later version, or is larger than any
        that is made.

    Raises
    ------
    FormatError
        When it is damaged.
    """
    what = f"{name}: block index"
    cursor = Cursor(data, what=what)
    cursor.expect(_MAGIC)
    if take_unsigned(cursor, 4) != zlib.crc32(memoryview(data)[_CHECKED_FROM:]):
        msg = f"{what}: its checksum is not that of what was written: it is damaged"
        raise FormatError(msg)
    if cursor.take(1)[0] != _VERSION:
        return None
    n_chunks, n_blocks = take_unsigned(cursor, 8), take_unsigned(cursor, 4)
    wanted = (header.n_chunks, _blocks_in_chunk(header))
    if (n_chunks, n_blocks) != wanted or not fits_block_index(n_chunks, n_blocks):
        return None
    if take_unsigned(cursor, 4) != _table_crc(offsets):
        return None
    heads = decode_column(cursor, np.dtype("u1"), n_chunks * CHUNK_HEADER_BYTES)
    starts = decode_column(cursor, np.dtype("<i4"), n_chunks * n_blocks)
    checks = decode_column(cursor, np.dtype("<u2"), n_chunks * n_blocks)
    return BlockIndex(
        heads=heads.reshape(n_chunks, CHUNK_HEADER_BYTES),
        starts=starts.reshape(n_chunks, n_blocks),
        checks=checks.reshape(n_chunks, n_blocks),
    )


def _blocks_in_chunk(header: FrameHeader) -> int:
    """Return the number of blocks in a chunk; 0 for an array without elements."""
    return header.chunksize // header.blocksize if header.blocksize else 0


def _table_crc(offsets: NDArray[np.int64]) -> int:
    """Return the checksum of a chunk table."""
    return zlib.crc32(np.ascontiguousarray(offsets, "<i8").tobytes())
