"""RangedReader: fills boxes of a remote file from the blocks that they touch."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.block_layout import mini_chunk
from mlarray_xr.planning.grid import box_shape, chunk_boxes, is_empty, plan_pieces
from mlarray_xr.storage.block_request import ChunkBlocks
from mlarray_xr.storage.chunk_load import ChunkLoader, Loaded
from mlarray_xr.storage.chunks import decode_mini_chunk, decode_whole_chunk
from mlarray_xr.storage.counters import ReadStats, tallies_of
from mlarray_xr.storage.frame_entries import read_block_index, recorded_integrity
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.interleaved import interleaved
from mlarray_xr.storage.read_pool import run_shared, sharing
from mlarray_xr.storage.remote_file import remote_file
from mlarray_xr.storage.tiles import untile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.block_request import Take
    from mlarray_xr.storage.remote_source import RemoteSource

__all__ = ["RangedReader"]

# Bytes, decoded or stored, of the chunks whose requests are under way or who wait to be decoded.
_WINDOW_BYTES = 128 << 20
# Decoded bytes of a request, so that a chunk of a gigabyte is not decoded at once.
_PIECE_BYTES = 16 << 20
# Handing a patch of 64 cubed to other threads takes longer than decoding it here.
_SMALL_BYTES = 1 << 20
_NAN = -0x7E << 56


class RangedReader:
    """Fills boxes, and decodes blocks, of one remote file; safe to share among threads.

    Only blocks that are touched are fetched, or whole chunks where that is cheaper. Requests of
    many chunks are under way at the same time, and chunks are decoded as they arrive, without the
    GIL. Every answer is compared with the version that was pinned.

    Parameters
    ----------
    source
        What to read; pinned.
    check
        Whether to compare each chunk with its checksum when it arrives; chunks are then fetched
        whole.

    Raises
    ------
    SourceChanged
        When the object is not the one the source was made for.
    FormatError
        When the frame is damaged, or has no checksums to compare with.
    """

    def __init__(self, source: RemoteSource, *, check: bool = False) -> None:
        self.source = source
        self.header, offsets = read_index(source)
        self._file = remote_file(source)
        self.tally = self._file.tally
        named = repr((*source.token, check)).encode()
        stored = np.sort(offsets[offsets >= 0])
        self._loader = ChunkLoader(
            file=self._file,
            header=self.header,
            offsets=offsets,
            block_index=None if check else read_block_index(source, offsets),
            integrity=recorded_integrity(source, self.header) if check else None,
            identity=hashlib.sha256(named).hexdigest(),
            edges=np.append(stored, self.header.payload_len),
        )

    def read(self, box: Box, out: NDArray[Any], *, threads: int | None) -> None:
        """Fill `out` with the elements of a box.

        Parameters
        ----------
        box
            Start/stop per axis, inside the array (not checked here).
        out
            Of the box's shape and the array's dtype.
        threads
            Threads that decode, the caller's included; None shares the CPUs with other reads.

        Raises
        ------
        SourceChanged
            When the object changed since it was opened.
        ChunkError
            When a chunk of the box is damaged.
        SourceError
            When bytes cannot be had.
        """
        if is_empty(box):
            return
        places: dict[int, tuple[tuple[int, ...], Box]] = {}

        def wanted() -> Iterator[ChunkBlocks]:
            for number, (position, part) in enumerate(self._pieces(box)):
                places[number] = position, part
                yield self._touched(position, part)

        def take(number: int, values: NDArray[Any]) -> None:
            position, part = places.pop(number)
            self._place(values, position, part, out[_inside(part, box)])

        is_small = threads is None and out.nbytes <= _SMALL_BYTES
        self.read_blocks(wanted(), take, threads=1 if is_small else threads)

    def read_blocks(
        self, wanted: Iterable[ChunkBlocks], take: Take, *, threads: int | None
    ) -> None:
        """Decode blocks; see `mlarray_xr.storage.block_request.BlockReader`."""
        loads = (
            (self._loader.held_bytes(request), self._loader.load(index, request))
            for index, request in enumerate(wanted)
        )
        runs = interleaved(loads, window=_WINDOW_BYTES)
        tasks: Iterator[Callable[[], None]]
        tasks = (partial(self._decode, loaded, take) for loaded in self._arrivals(runs))
        # Closed here: an error's traceback would keep the steps, and others wait for their blocks.
        with contextlib.closing(runs), sharing() as share:
            run_shared(tasks, threads=share if threads is None else threads)

    def _arrivals(self, loads: Iterator[Loaded]) -> Iterator[Loaded]:
        """Pass on what was loaded, and count the time that was waited for it."""
        while True:
            begin = time.perf_counter()
            loaded = next(loads, None)
            self._count(ReadStats(wait_seconds=time.perf_counter() - begin))
            if loaded is None:
                return
            yield loaded

    def _decode(self, loaded: Loaded, take: Take) -> None:
        """Decode what was loaded and hand it over."""
        begin = time.perf_counter()
        try:
            values = self._values(loaded)
        except ChunkError:
            if self._loader.block_index is None:
                raise
            values = self._values(self._reloaded(loaded))
        seconds = time.perf_counter() - begin
        n_blocks = len(loaded.wanted.blocks)
        self._count(
            ReadStats(
                blocks_decoded=n_blocks,
                bytes_decoded=n_blocks * self.header.blocksize,
                decode_seconds=seconds,
            )
        )
        take(loaded.index, values)

    def _reloaded(self, loaded: Loaded) -> Loaded:
        """Load again, by what the chunk itself tells of its blocks.

        Other programs may write a chunk again where it stands, and leave the index as it was:
        blocks that are not where it says do not decode.
        """
        # Under another name: what was fetched by the index is in the block cache.
        loader = replace(
            self._loader, block_index=None, identity=f"{self._loader.identity} by chunk"
        )
        (again,) = interleaved([(0, loader.load(loaded.index, loaded.wanted))], window=0)
        return again

    def _values(self, loaded: Loaded) -> NDArray[Any]:
        """Return the decoded blocks, (n, *blocks)."""
        header, layout, wanted = self.header, loaded.layout, loaded.wanted
        shape = (len(wanted.blocks), *header.blocks)
        name = f"{self.source.name}: chunk {wanted.chunk}"
        if layout is None:
            if int(self._loader.offsets[wanted.chunk]) != _NAN:
                return np.zeros(shape, header.dtype)
            if header.dtype.kind != "f":
                msg = f"{name} is said to be NaN in an array of {header.dtype}: it is damaged"
                raise ChunkError(msg)
            return np.full(shape, np.nan, header.dtype)
        if layout.kind == "raw":
            return np.frombuffer(b"".join(loaded.payloads), header.dtype).reshape(shape)
        if layout.kind == "streams":
            return decode_mini_chunk(mini_chunk(layout, loaded.payloads), header, name=name)
        (stored,) = loaded.payloads
        if layout.kind == "value":
            return np.full(shape, np.frombuffer(stored, header.dtype, 1, 32), header.dtype)
        return decode_whole_chunk(stored, header, name=name)[wanted.blocks]

    def _pieces(self, box: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
        """Split a box at the borders of chunks, and what is too large at those of blocks."""
        header, n_elements = self.header, max(1, _PIECE_BYTES // self.header.typesize)
        for position, part in chunk_boxes(box, chunks=header.chunks):
            if math.prod(box_shape(part)) <= n_elements:
                yield position, part
                continue
            for piece in plan_pieces(
                part, chunks=header.chunks, blocks=header.blocks, n_elements=n_elements
            ):
                yield position, piece

    def _touched(self, position: tuple[int, ...], part: Box) -> ChunkBlocks:
        """Return the blocks of a chunk that a part of it touches."""
        header = self.header
        chunk = int(np.ravel_multi_index(position, header.chunk_grid)) if position else 0
        numbers = np.zeros((), np.int64)
        for first, (start, stop), c, b in self._along(position, part):
            along = np.arange((start - first) // b, (stop - 1 - first) // b + 1)
            numbers = numbers[..., None] * -(-c // b) + along
        return ChunkBlocks(chunk=chunk, blocks=numbers.reshape(-1))

    def _place(
        self, values: NDArray[Any], position: tuple[int, ...], part: Box, out: NDArray[Any]
    ) -> None:
        """Copy the part of decoded blocks that is wanted to its place, a view of any strides."""
        blocks = self.header.blocks
        counts, cuts = [], []
        for first, (start, stop), _, b in self._along(position, part):
            low = (start - first) // b
            counts.append((stop - 1 - first) // b + 1 - low)
            cuts.append(slice(start - first - low * b, stop - first - low * b))
        extents = tuple(n * b for n, b in zip(counts, blocks, strict=True))
        whole = np.empty(extents, self.header.dtype)
        untile(values.reshape(-1), whole, chunks=extents, blocks=blocks)
        out[...] = whole[tuple(cuts)]

    def _along(
        self, position: tuple[int, ...], part: Box
    ) -> Iterator[tuple[int, tuple[int, int], int, int]]:
        """Yield for every axis where the chunk begins, start and stop, and chunk and block."""
        header = self.header
        for i, pair, c, b in zip(position, part, header.chunks, header.blocks, strict=True):
            yield i * c, pair, c, b

    def _count(self, stats: ReadStats) -> None:
        """Count what happened."""
        for tally in tallies_of(self._file.tally):
            tally.add(stats)


def _inside(part: Box, box: Box) -> tuple[Any, ...]:
    """Return the key of a part in an array that holds the box; an array even where it is 0-d."""
    return (*(slice(a - o, b - o) for (a, b), (o, _) in zip(part, box, strict=True)), ...)
