"""MappedBlocks: decodes single blocks of a mapped frame, straight from the map, without the GIL."""

from __future__ import annotations

import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.block_layout import BlockLayout, mini_chunk
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, RAW_FLAG, stands_alone
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.planning.grid import box_shape, is_empty
from mlarray_xr.storage.counters import ReadStats, tallies_of
from mlarray_xr.storage.libblosc2 import decode_blocks, native_library
from mlarray_xr.storage.read_pool import run_shared, sharing
from mlarray_xr.storage.tiles import tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.block_request import ChunkBlocks, Take
    from mlarray_xr.storage.counters import Tally
    from mlarray_xr.storage.gather import Fill

__all__ = ["CheckedChunks", "MappedBlocks"]

CheckedChunks: TypeAlias = (
    "Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.bool_]]]"
)
_Numbered: TypeAlias = "list[tuple[int, ChunkBlocks]]"

# One thread's turn: less than this and handing out turns costs more than it gains.
_TURN_BYTES = 1 << 20
_TURN_REQUESTS = 256
# Of more runs of blocks than these, a mini chunk is made.
_MOST_CALLS = 2
# Entry of the chunk table that stands for a chunk of NaN; the other negative ones are zeros.
_NAN = -0x7E << 56


class MappedBlocks:
    """Decodes whole blocks of the chunks of one mapped frame; safe to share among threads.

    Chunks that only decode right as a whole, and those of plugin codecs and filters, which need
    the frame, are read as boxes; so is everything where the C library is not available.

    Parameters
    ----------
    payload
        The frame's payload section, uint8, where the chunk table counts from.
    header
        Of the frame.
    check
        Checks the chunks of these numbers at their first use; returns for each its entry in the
        chunk table, and whether it only decodes right as a whole.
    fill
        Reads boxes of the same frame, in this thread.
    tally
        Counts what is decoded.
    name
        What to call the file in errors.
    """

    def __init__(
        self,
        payload: NDArray[np.uint8],
        *,
        header: FrameHeader,
        check: CheckedChunks,
        fill: Fill,
        tally: Tally,
        name: str,
    ) -> None:
        self._payload, self._address = payload, payload.ctypes.data
        self._memory = payload.data
        self._header, self._dtype, self._name = header, header.dtype, name
        self._check, self._fill, self._tally = check, fill, tally
        self._is_native = native_library() is not None
        # The C library counts in bytes where an element has more than its header can say.
        self._block_items = header.blocksize // (header.typesize if header.typesize < 256 else 1)
        self._buffers: deque[NDArray[np.uint8]] = deque()

    def read_blocks(
        self, wanted: Iterable[ChunkBlocks], take: Take, *, threads: int | None
    ) -> None:
        """Decode blocks; see `mlarray_xr.storage.block_request.BlockReader`.

        Parameters
        ----------
        wanted
            What to decode; taken as it is needed.
        take
            Called with each answer.
        threads
            Threads to use, the caller's included; None shares the CPUs with other reads.

        Raises
        ------
        ChunkError
            When a chunk is damaged.
        """
        turns = (partial(self._read_turn, turn, take) for turn in self._turns(wanted))
        with sharing() as share:
            run_shared(turns, threads=threads or share)

    def _turns(self, wanted: Iterable[ChunkBlocks]) -> Iterator[_Numbered]:
        """Yield requests, with their numbers, in lists that are worth a thread's turn."""
        turn: _Numbered = []
        most = max(1, _TURN_BYTES // self._header.blocksize)
        n_blocks = 0
        for numbered in enumerate(wanted):
            turn.append(numbered)
            n_blocks += len(numbered[1].blocks)
            if n_blocks >= most or len(turn) >= _TURN_REQUESTS:
                yield turn
                turn, n_blocks = [], 0
        if turn:
            yield turn

    def _read_turn(self, turn: _Numbered, take: Take) -> None:
        """Answer requests one after another, in one buffer."""
        offsets, is_whole_only = self._check(np.array([asked.chunk for _, asked in turn]))
        blocksize = self._header.blocksize
        buffer = self._take_buffer(max(len(asked.blocks) for _, asked in turn) * blocksize)
        n_blocks, seconds = 0, 0.0
        try:
            for (number, asked), offset, whole in zip(
                turn, offsets.tolist(), is_whole_only.tolist(), strict=True
            ):
                begin = time.perf_counter()
                values = buffer[: len(asked.blocks) * blocksize]
                self._fill_blocks(values, asked, offset, is_whole_only=whole)
                seconds += time.perf_counter() - begin
                n_blocks += len(asked.blocks)
                take(number, values.view(self._dtype).reshape(-1, *self._header.blocks))
        finally:
            self._buffers.append(buffer)
        found = ReadStats(
            blocks_decoded=n_blocks, bytes_decoded=n_blocks * blocksize, decode_seconds=seconds
        )
        for tally in tallies_of(self._tally):
            tally.add(found)

    def _take_buffer(self, nbytes: int) -> NDArray[np.uint8]:
        """Return an idle buffer that is long enough, or a new one: new pages are slow to write."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = np.empty(0, np.uint8)
        return buffer if len(buffer) >= nbytes else np.empty(nbytes, np.uint8)

    def _fill_blocks(
        self, out: NDArray[np.uint8], asked: ChunkBlocks, offset: int, *, is_whole_only: bool
    ) -> None:
        """Put blocks of a chunk into a buffer, one after another."""
        values = out.view(self._dtype)
        if offset >= 0:
            head = self._payload[offset : offset + CHUNK_HEADER_BYTES].tobytes()
            if self._is_native and not is_whole_only and stands_alone(head):
                self._decode(asked, offset, head, out)
            else:
                self._read_around(asked, values)
        elif offset != _NAN:
            out[...] = 0
        elif self._dtype.kind == "f":
            values[...] = np.nan
        else:
            self._read_around(asked, values)

    def _decode(self, asked: ChunkBlocks, offset: int, head: bytes, out: NDArray[np.uint8]) -> None:
        """Decode blocks of a checked chunk, in one call or a few."""
        stored_bytes = int.from_bytes(head[12:16], "little")
        runs = _runs(asked.blocks.tolist())
        source: int | bytes = self._address + offset
        if (head[31] >> 4) & 7:
            runs = [(0, len(asked.blocks))]  # one value is repeated: blocks are all the same
        elif len(runs) > _MOST_CALLS and not head[2] & RAW_FLAG:
            source = self._mini_chunk(asked, offset, head, stored_bytes)
            stored_bytes, runs = len(source), [(0, len(asked.blocks))]
        reason = decode_blocks(
            source,
            out.ctypes.data,
            stored_bytes=stored_bytes,
            runs=runs,
            block_items=self._block_items,
            block_bytes=self._header.blocksize,
        )
        if reason is not None:
            position, box = chunk_place(asked.chunk, self._header)
            msg = (
                f"{self._name}: chunk {asked.chunk} (grid position {position}, box {box}) cannot "
                f"be decoded: {reason}. The chunk is damaged; others can still be read"
            )
            raise ChunkError(msg)

    def _mini_chunk(self, asked: ChunkBlocks, offset: int, head: bytes, stored_bytes: int) -> bytes:
        """Return a chunk of nothing but the wanted blocks.

        A call for each block is soon over, and then threads wait for the GIL more than they
        decode: with blocks of 8 KiB two threads were half as fast as one.
        """
        header = self._header
        first = offset + CHUNK_HEADER_BYTES
        n_blocks = header.chunksize // header.blocksize
        layout = BlockLayout(
            head=head,
            kind="streams",
            cbytes=stored_bytes,
            starts=self._payload[first : first + 4 * n_blocks].view("<i4"),
            block_bytes=header.blocksize,
        )
        starts, stops = layout.spans(asked.blocks)
        spans = zip((starts + offset).tolist(), (stops + offset).tolist(), strict=True)
        return mini_chunk(layout, [self._memory[start:stop].tobytes() for start, stop in spans])

    def _read_around(self, asked: ChunkBlocks, out: NDArray[Any]) -> None:
        """Read the box around all wanted blocks of a chunk and pick them from it."""
        header = self._header
        grid = tuple(-(-c // b) for c, b in zip(header.chunks, header.blocks, strict=True))
        places = np.unravel_index(asked.blocks, grid) if grid else ()
        position, chunk_box = chunk_place(asked.chunk, header)
        low = [int(along.min()) for along in places]
        counts = tuple(int(p.max()) + 1 - a for p, a in zip(places, low, strict=True))
        box = tuple(
            (i * c + a * b, min(i * c + (a + n) * b, stop))
            for i, c, b, a, n, (_, stop) in zip(
                position, header.chunks, header.blocks, low, counts, chunk_box, strict=True
            )
        )
        if is_empty(box):
            out[...] = np.zeros((), self._dtype)  # blocks beyond the edge of the array
            return
        values = np.empty(box_shape(box), self._dtype)
        self._fill(box, values)
        tiles = np.empty((math.prod(counts), *header.blocks), self._dtype)
        extents = tuple(n * b for n, b in zip(counts, header.blocks, strict=True))
        tile(values, tiles.reshape(-1), chunks=extents, blocks=header.blocks)
        inside = [p - a for p, a in zip(places, low, strict=True)]
        picked = np.ravel_multi_index(inside, counts) if counts else asked.blocks
        out.reshape(-1, *header.blocks)[...] = tiles[picked]


def _runs(blocks: list[int]) -> list[tuple[int, int]]:
    """Return first and length of each run of consecutive numbers."""
    runs = []
    start = previous = blocks[0]
    for block in blocks[1:]:
        if block != previous + 1:
            runs.append((start, previous + 1 - start))
            start = block
        previous = block
    return [*runs, (start, previous + 1 - start)]
