"""Loading: the requests that bring the stored bytes of some blocks of a chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.errors import ChunkError, SourceChanged
from mlarray_xr.format.block_index import block_check
from mlarray_xr.format.block_layout import head_bytes, most_chunk_bytes, parse_block_layout
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.planning.byte_ranges import affordable_gap, plan_ranges
from mlarray_xr.storage.block_cache import FlightAbandoned, block_cache
from mlarray_xr.storage.counters import ReadStats, tallies_of
from mlarray_xr.storage.frame_file import special_codes
from mlarray_xr.storage.read_settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.block_index import BlockIndex
    from mlarray_xr.format.block_layout import BlockLayout
    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.storage.block_cache import Key
    from mlarray_xr.storage.block_request import ChunkBlocks
    from mlarray_xr.storage.interleaved import Steps
    from mlarray_xr.storage.remote_file import RemoteFile

__all__ = ["ChunkLoader", "Loaded"]

# What is kept of a chunk besides its blocks, as numbers that are none of a block.
_WHOLE, _LAYOUT = -1, -2
# Latency times bandwidth of one connection: a chunk that is smaller arrives before a second
# request, which needs the answer of the first, would.
_CHUNK_BYTES = 1 << 20

# Reading what the index says of a chunk takes 30 us.
_MOST_PARSED_BYTES = 8 << 20

_Fetch: TypeAlias = "Callable[[list[Key]], Steps[dict[Key, Any]]]"


class _WrittenAgain(ChunkError):
    """Blocks are not where the block index has them, but where their chunk itself says."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loaded:
    """What some blocks of a chunk are decoded from."""

    index: int
    """Which request it answers."""
    wanted: ChunkBlocks
    """The request."""
    layout: BlockLayout | None
    """Where blocks stand in the chunk; None for a chunk without payload."""
    payloads: Sequence[bytes]
    """Stored bytes of each block, or of the whole chunk where it cannot be divided."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkLoader:
    """Brings blocks of the chunks of one remote file, through the block cache."""

    file: RemoteFile
    """What is read."""
    header: FrameHeader
    """Its checked header."""
    offsets: NDArray[np.int64]
    """Offset of each chunk in the payload, negative without payload; see `chunk_offsets`."""
    block_index: BlockIndex | None
    """Where blocks stand in every chunk, if the file tells."""
    integrity: Integrity | None
    """Checksums that every chunk is compared with, if it is to be."""
    identity: str
    """Of this version of the file, in the block cache."""
    edges: NDArray[np.int64]
    """All offsets with payload and the end of the payload, ascending."""
    parsed: dict[int, BlockLayout | None] = field(default_factory=dict)
    """What the block index says of chunks that were read lately."""

    def held_bytes(self, wanted: ChunkBlocks) -> int:
        """Return what blocks of a chunk take of memory, decoded or fetched, whatever is more."""
        decoded = len(wanted.blocks) * self.header.blocksize
        is_known = self.block_index is not None and read_settings().block_reads != "chunks"
        if self.offsets[wanted.chunk] < 0 or is_known or not self._is_fetched_whole(wanted):
            return decoded
        return max(decoded, self._room(wanted.chunk))

    def load(self, index: int, wanted: ChunkBlocks) -> Steps[Loaded]:
        """Return the steps that bring blocks of a chunk.

        Raises
        ------
        ChunkError
            When the chunk is damaged.
        SourceError
            When its bytes cannot be had.
        """
        if self.offsets[wanted.chunk] < 0:
            self._compare(wanted.chunk, b"")
            return Loaded(index=index, wanted=wanted, layout=None, payloads=())
        place = (self.identity, wanted.chunk, _LAYOUT)
        known: dict[Key, Any] = {}
        fetch, layout = self._fetch_blocks, block_cache().find(place)
        if layout is None and (layout := self._recorded_layout(wanted.chunk)) is not None:
            fetch = self._fetch_recorded
        elif layout is None:
            known = yield from self._shared([place], lambda _: self._fetch_layout(wanted))
            layout = known[place]
        numbers = wanted.blocks.tolist() if layout.is_divisible else [_WHOLE]
        keys = [(self.identity, wanted.chunk, number) for number in numbers]
        missing = [key for key in keys if key not in known]
        if len(missing) < len(keys):
            self._count(ReadStats(misses=len(keys) - len(missing)))
        try:
            if missing:
                known |= yield from self._shared(missing, partial(fetch, layout), is_counted=True)
        except _WrittenAgain:
            return (yield from self.load(index, wanted))
        payloads = [known[key] for key in keys]
        return Loaded(index=index, wanted=wanted, layout=layout, payloads=payloads)

    def _shared(
        self, keys: list[Key], fetch: _Fetch, *, is_counted: bool = False
    ) -> Steps[dict[Key, Any]]:
        """Bring values from the cache, from who is fetching them, or else by `fetch`.

        What this read owns it fulfils, or fails, before it waits for others.
        """
        cache, missing = block_cache(), keys
        values: dict[Key, Any] = {}
        while missing:
            claim = cache.claim(missing)
            values |= claim.found
            evicted = 0
            if claim.owned:
                try:
                    fetched = yield from fetch(claim.owned)
                    for key, value in fetched.items():
                        size = value.nbytes if key[2] == _LAYOUT else len(value)
                        evicted += cache.fulfil(key, value, n_bytes=size)
                except Exception as error:
                    cache.fail(claim.owned, error)
                    raise
                except BaseException:
                    cache.fail(claim.owned, FlightAbandoned("a read was interrupted"))
                    raise
                values |= fetched
            if claim.joined:
                yield list(claim.joined.values())
            if is_counted or evicted:
                counts = (len(claim.found), len(claim.owned), len(claim.joined))
                hits, misses, joined = counts if is_counted else (0, 0, 0)
                self._count(ReadStats(hits=hits, misses=misses, joined=joined, evictions=evicted))
            missing = []
            for key, flight in claim.joined.items():
                try:
                    values[key] = flight.result()
                except FlightAbandoned:
                    missing.append(key)
        return values

    def _fetch_layout(self, wanted: ChunkBlocks) -> Steps[dict[Key, Any]]:
        """Fetch what tells where the blocks of a chunk stand, or at once the whole chunk."""
        chunk, room = wanted.chunk, self._room(wanted.chunk)
        is_whole = room <= head_bytes(self.header) or self._is_fetched_whole(wanted)
        size = room if is_whole else head_bytes(self.header)
        (data,) = yield from self._request(chunk, [(0, size)])
        layout = self._parse(chunk, data)
        parts = self._divided(chunk, layout, data) if is_whole else {}
        return parts | {(self.identity, chunk, _LAYOUT): layout}

    def _fetch_blocks(self, layout: BlockLayout, keys: list[Key]) -> Steps[dict[Key, Any]]:
        """Fetch blocks of a chunk, or all of it where it has to be."""
        chunk = keys[0][1]
        is_whole = read_settings().block_reads == "chunks" or self.integrity is not None
        if is_whole or not layout.is_divisible:
            return (yield from self._fetch_whole(layout, chunk))
        starts, stops = layout.spans(np.array([block for _, _, block in keys]))
        ranges = plan_ranges(starts, stops, gap_bytes=affordable_gap(starts, stops))
        pieces = yield from self._request(chunk, [(start, stop) for start, stop, _ in ranges])
        fetched: dict[Key, Any] = {}
        for (begin, _, spans), data in zip(ranges, pieces, strict=True):
            for number in spans.tolist():
                fetched[keys[number]] = data[starts[number] - begin : stops[number] - begin]
        return fetched

    def _fetch_recorded(self, layout: BlockLayout, keys: list[Key]) -> Steps[dict[Key, Any]]:
        """Fetch blocks from where the block index says, and compare them with its checksums.

        Where they differ, another program has written the chunk again where it stood, or it is
        damaged: its own table tells.
        """
        assert self.block_index is not None
        chunk = keys[0][1]
        checks = self.block_index.checks[chunk]
        fetched = yield from self._fetch_blocks(layout, keys)
        if all(block_check(fetched[key]) == checks[key[2]] for key in keys):
            return fetched
        (head,) = yield from self._request(chunk, [(0, head_bytes(self.header))])
        if self._parse(chunk, head).is_like(layout):
            msg = (
                f"{self.file.source.name}: chunk {chunk} is damaged, or was written again by "
                "another program: blocks do not match the checksums of the block index. To fix: "
                "mlarray_xr.configure(block_reads='chunks') takes what is there"
            )
            raise ChunkError(msg)
        self.parsed[chunk] = None  # what the index says of this chunk is not asked for again
        msg = f"{self.file.source.name}: chunk {chunk} is not where the block index has it"
        raise _WrittenAgain(msg)

    def _fetch_whole(self, layout: BlockLayout, chunk: int) -> Steps[dict[Key, Any]]:
        """Fetch all of a chunk of which the beginning is known."""
        (data,) = yield from self._request(chunk, [(0, layout.cbytes)])
        # The decoder trusts the header. Servers without validators may send another version.
        if self._parse(chunk, data).head != layout.head:
            msg = (
                f"{self.file.source.name}: chunk {chunk} does not begin as it did when it was "
                "looked at first. It was replaced meanwhile. To fix: open it again"
            )
            raise SourceChanged(msg)
        return self._divided(chunk, layout, data)

    def _request(self, chunk: int, ranges: list[tuple[int, int]]) -> Steps[list[bytes]]:
        """Fetch ranges of a chunk at the same time."""
        first = self.header.header_len + int(self.offsets[chunk])
        futures = [self.file.request(first + start, first + stop) for start, stop in ranges]
        try:
            yield futures
            return [future.result() for future in futures]
        finally:  # what a read that was given up has not sent yet is never sent
            for future in futures:
                future.cancel()

    def _divided(self, chunk: int, layout: BlockLayout, data: bytes) -> dict[Key, Any]:
        """Return the blocks of a chunk that was fetched whole, after comparing it."""
        stored = data[: layout.cbytes]
        self._compare(chunk, stored)
        if not layout.is_divisible:
            return {(self.identity, chunk, _WHOLE): stored}
        starts, stops = layout.spans(np.arange(len(layout.starts)))
        return {
            (self.identity, chunk, number): stored[start:stop]
            for number, (start, stop) in enumerate(
                zip(starts.tolist(), stops.tolist(), strict=True)
            )
        }

    def _compare(self, chunk: int, stored: bytes) -> None:
        """Compare a chunk with its checksum, if that is to be; without payload, its code alone."""
        if self.integrity is None:
            return
        code = int(special_codes(self.offsets[chunk : chunk + 1])[0])
        fault = self.integrity.fault(chunk, stored, special=code)
        if fault is not None:
            position, box = chunk_place(chunk, self.header)
            msg = (
                f"{self.file.source.name}: chunk {chunk} (grid position {position}, box {box}) is "
                f"damaged, or was changed by another program: {fault}. Other chunks can still be "
                "read"
            )
            raise ChunkError(msg)

    def _recorded_layout(self, chunk: int) -> BlockLayout | None:
        """Return where the blocks of a chunk stand as the block index has it.

        None of chunks without streams: where another program wrote one again, other bytes than
        those that were meant would be taken for values, and nothing would tell.
        """
        if self.block_index is None or read_settings().block_reads == "chunks":
            return None
        if chunk not in self.parsed:
            if len(self.parsed) * head_bytes(self.header) > _MOST_PARSED_BYTES:
                self.parsed.clear()
            try:
                layout = self._parse(chunk, self.block_index.head(chunk))
            except ChunkError:  # of a chunk that was there before: the file may be sound
                self.parsed[chunk] = None
            else:
                self.parsed[chunk] = layout if layout.kind == "streams" else None
        return self.parsed.get(chunk)

    def _is_fetched_whole(self, wanted: ChunkBlocks) -> bool:
        """Tell whether a chunk is fetched whole, as far as that is known before looking at it."""
        mode = read_settings().block_reads
        if mode == "chunks" or self.integrity is not None:
            return True
        if mode == "blocks":
            return False
        n_blocks = self.header.chunksize // self.header.blocksize
        return self._room(wanted.chunk) <= _CHUNK_BYTES or 2 * len(wanted.blocks) >= n_blocks

    def _parse(self, chunk: int, head: bytes) -> BlockLayout:
        """Return where the blocks of a chunk stand, from its first bytes or from all of them."""
        return parse_block_layout(
            head[: head_bytes(self.header)],
            self.header,
            number=chunk,
            room=self._room(chunk),
            name=self.file.source.name,
        )

    def _room(self, chunk: int) -> int:
        """Return the most bytes that a chunk can have: up to the next one, which may leave gaps."""
        offset = self.offsets[chunk]
        following = self.edges[np.searchsorted(self.edges, offset, side="right")]
        return min(int(following - offset), most_chunk_bytes(self.header))

    def _count(self, stats: ReadStats) -> None:
        """Count what happened."""
        for tally in tallies_of(self.file.tally):
            tally.add(stats)
