"""Where the blocks of a chunk stand in it, and chunks made of some of them.

A chunk is a header of 32 bytes, a table with the start of every block, and the blocks. The table is
not sorted when several threads encoded the chunk. A *mini chunk* has the same header but for its
sizes, a table for the blocks that are wanted, and these blocks: it decodes to exactly them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlarray_xr.format.chunk import (
    CHUNK_HEADER_BYTES,
    RAW_FLAG,
    damaged_chunk,
    is_chunk_head,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = ["BlockLayout", "head_bytes", "mini_chunk", "most_chunk_bytes", "parse_block_layout"]

_DICTIONARY, _DELTA, _BYTEDELTA = 0x01, 3, 35
# They look at the neighbours of a block, or keep what they need in the frame.
_WHOLE_FILTERS = (_DELTA, 32, 33)
_PLUGIN_FORMAT = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockLayout:
    """Where the blocks of one chunk stand, counted from the first byte of the chunk."""

    head: bytes
    """The header of the chunk, 32 bytes."""
    kind: Literal["streams", "raw", "value", "whole"]
    """Whether blocks are compressed, stored as they are, all of one value, or to be decoded
    together because each depends on others."""
    cbytes: int
    """Stored bytes of the chunk."""
    starts: NDArray[np.int32]
    """First byte of every block; empty for the last two kinds."""
    block_bytes: int
    """Decoded bytes of a block."""

    @property
    def is_divisible(self) -> bool:
        """Whether some blocks can be decoded without the others."""
        return self.kind in ("streams", "raw")

    @property
    def nbytes(self) -> int:
        """Bytes that the table and the header take in memory."""
        return len(self.head) + self.starts.nbytes

    def is_like(self, other: BlockLayout) -> bool:
        """Tell whether the blocks of another chunk stand at the same places, and decode alike."""
        return self.head == other.head and np.array_equal(self.starts, other.starts)

    def spans(self, blocks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first byte of blocks, and the byte behind each."""
        starts = self.starts[blocks].astype(np.int64)
        if self.kind == "raw":
            return starts, starts + self.block_bytes
        # Streams are as long as the way to the next one, whichever block that is.
        edges = np.append(np.sort(self.starts), np.int32(self.cbytes))
        following = np.searchsorted(edges, starts.astype(np.int32), side="right")
        # None is longer than its bytes and 4 for each of its parts, at most one for each byte of an
        # element: where many blocks claim to start at the same byte, each would be a whole chunk.
        most = self.block_bytes + 4 * max(1, self.head[3])
        return starts, np.minimum(edges[following], starts + most)


def head_bytes(header: FrameHeader) -> int:
    """Return how many bytes of a chunk tell where its blocks stand."""
    return CHUNK_HEADER_BYTES + 4 * (header.chunksize // header.blocksize)


def most_chunk_bytes(header: FrameHeader) -> int:
    """Return the most bytes that a chunk of a frame takes: what does not compress is stored raw."""
    return max(header.chunksize + CHUNK_HEADER_BYTES, head_bytes(header))


def parse_block_layout(
    head: bytes, header: FrameHeader, *, number: int | None, room: int, name: str
) -> BlockLayout:
    """Parse and check header and block table of a chunk.

    Parameters
    ----------
    head
        The first bytes of the chunk, `head_bytes` or all that there are.
    header
        The checked header of the frame.
    number
        C-order number of the chunk, for errors; None where `name` names the chunk.
    room
        The most bytes that the chunk can have.
    name
        What to call the file in errors.

    Raises
    ------
    ChunkError
        When it cannot be a chunk of this frame.
    """
    first = CHUNK_HEADER_BYTES + 4 * (header.chunksize // header.blocksize)
    nbytes, _, cbytes = struct.unpack_from("<iii", head.ljust(16, b"\0"), 4)
    is_complete = len(head) >= CHUNK_HEADER_BYTES
    if not is_complete or not is_chunk_head(head, room=room, header=header):
        raise damaged_chunk(number, nbytes, cbytes, header=header, name=name)
    filters = head[16:22]
    plain_head, starts = bytearray(head[:CHUNK_HEADER_BYTES]), np.zeros(0, np.int32)
    is_plugin = head[2] >> 5 == _PLUGIN_FORMAT and head[22] >= 33
    kind: Literal["streams", "raw", "value", "whole"] = "streams"
    if (head[31] >> 4) & 7:
        kind = "value"
    elif head[2] & RAW_FLAG:
        kind = "raw"
        n_blocks = header.chunksize // header.blocksize
        starts = (CHUNK_HEADER_BYTES + header.blocksize * np.arange(n_blocks)).astype(np.int32)
    elif not first <= min(cbytes, len(head)):
        raise damaged_chunk(number, nbytes, cbytes, header=header, name=name)
    else:
        starts = np.frombuffer(head, "<i4", (first - CHUNK_HEADER_BYTES) // 4, CHUNK_HEADER_BYTES)
        starts = starts.astype(np.int32)
        if starts.min(initial=cbytes) < first or starts.max(initial=0) >= cbytes:
            raise damaged_chunk(number, nbytes, cbytes, header=header, name=name)
        is_wide = _BYTEDELTA in filters and header.typesize > 0xFF  # more than a parameter can say
        if set(filters) & set(_WHOLE_FILTERS) or is_plugin or is_wide or head[31] & _DICTIONARY:
            kind, starts = "whole", np.zeros(0, np.int32)
    for place, filter_id in enumerate(filters):
        # 0 stands for the size of an element, which the decoder then takes from the frame.
        if filter_id == _BYTEDELTA and not plain_head[24 + place]:
            plain_head[24 + place] = header.typesize & 0xFF
    return BlockLayout(
        head=bytes(plain_head),
        kind=kind,
        cbytes=cbytes,
        starts=starts,
        block_bytes=header.blocksize,
    )


def mini_chunk(layout: BlockLayout, payloads: Sequence[bytes]) -> bytes:
    """Return a chunk that decodes to given blocks of another, in the order in which they stand.

    Parameters
    ----------
    layout
        Of the chunk that the blocks come from; divisible.
    payloads
        The stored bytes of each block.
    """
    head = bytearray(layout.head)
    struct.pack_into("<i", head, 4, len(payloads) * layout.block_bytes)
    table = b""
    if layout.kind == "streams":
        lengths = np.fromiter(map(len, payloads), np.int64, len(payloads))
        first = CHUNK_HEADER_BYTES + 4 * len(payloads)
        table = (first + np.cumsum(lengths) - lengths).astype("<i4").tobytes()
    total = CHUNK_HEADER_BYTES + len(table) + sum(map(len, payloads))
    struct.pack_into("<i", head, 12, total)
    return b"".join((bytes(head), table, *payloads))
