"""Runs of stored chunks: what is read of a file at once, and checked before it is handed on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.chunk import check_chunks
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.frame_file import read_payload

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.remote_source import Source
    from mlarray_xr.zarr_view.chunk_table import ChunkTable

__all__ = ["RUN_BYTES", "ChunkChecks", "ChunkRun", "plan_runs", "read_run"]

RUN_BYTES = 8 << 20
"""Read at once; more where a chunk has more."""

_RUN_CHUNKS = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkChecks:
    """What the writer recorded of chunks as they are stored."""

    lengths: NDArray[np.int32]
    """Bytes of each."""
    crc32: NDArray[np.uint32]
    """Checksum of each."""

    @classmethod
    def read(cls, source: Source, header: FrameHeader) -> ChunkChecks | None:
        """Return what is recorded of all chunks of a file; None when it is not of these.

        Raises
        ------
        FormatError
            When the record is damaged.
        """
        recorded = read_integrity(source)
        # Whoever replaces chunks leaves a payload of another length.
        is_valid = recorded is not None and recorded.payload_len == header.payload_len
        if recorded is None or not is_valid or recorded.differences(header):
            return None
        return cls(lengths=recorded.length, crc32=recorded.crc32)

    def of(self, numbers: NDArray[np.int64]) -> ChunkChecks:
        """Return what is recorded of some chunks."""
        return ChunkChecks(lengths=self.lengths[numbers], crc32=self.crc32[numbers])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkRun:
    """Chunks with payload that stand one after another in a file; picklable."""

    numbers: NDArray[np.int64]
    """C-order number of each."""
    starts: NDArray[np.int64]
    """First byte of each, counted from the beginning of the payload; ascending."""
    room: NDArray[np.int64]
    """The most bytes that each can have."""
    checks: ChunkChecks | None
    """What was recorded of them; None where nobody did."""


def plan_runs(
    numbers: NDArray[np.int64],
    table: ChunkTable,
    checks: ChunkChecks | None,
    *,
    header: FrameHeader,
    name: str,
) -> list[ChunkRun]:
    """Group chunks into runs of some MiB, in the order of the file.

    Parameters
    ----------
    numbers
        Which chunks; those without payload are left out.
    table
        Where they are.
    checks
        What was recorded of all chunks of the file.
    header
        Of the file.
    name
        What to call it in errors.

    Raises
    ------
    ChunkError
        When two chunks share their bytes, which no writer does: each would become a copy.
    """
    stored = numbers[table.special[numbers] == 0]
    stored = stored[np.argsort(table.starts[stored], kind="stable")]
    starts, room = table.starts[stored] - header.header_len, table.lengths[stored]
    if (np.diff(starts) == 0).any():
        first = int(stored[np.argmin(np.diff(starts) != 0)])
        raise ChunkError(
            f"{name}: chunk {first} and another one have the same bytes: the chunk index is damaged"
        )
    runs, begin = [], 0
    while begin < len(stored):
        end = _run_end(starts, room, begin)
        inside = slice(begin, end)
        runs.append(
            ChunkRun(
                numbers=stored[inside],
                starts=starts[inside],
                room=room[inside],
                checks=None if checks is None else checks.of(stored[inside]),
            )
        )
        begin = end
    return runs


def read_run(run: ChunkRun, source: Source, header: FrameHeader) -> list[tuple[int, memoryview]]:
    """Read the chunks of a run, and return number and bytes of each, checked but not decoded.

    Raises
    ------
    ChunkError
        Naming the chunk that is no chunk of this file, or not what was written.
    SourceChanged
        When the file changed meanwhile.
    """
    first, stop = int(run.starts[0]), int(run.starts[-1] + run.room[-1])
    payload = read_payload(source, header, start=first, stop=stop)
    places = run.starts - first
    check_chunks(payload, run.numbers, places, header, name=source.name)
    lengths = payload[places[:, None] + np.arange(12, 16)].view("<i4")[:, 0].tolist()
    chunks = []
    for i, (number, start) in enumerate(zip(run.numbers.tolist(), places.tolist(), strict=True)):
        stored = payload.data[start : start + lengths[i]]
        fault = _fault(run, i, stored)
        if fault is not None:
            raise ChunkError(
                f"{source.name}: chunk {number} (grid position {chunk_place(number, header)[0]}) "
                f"is damaged: {fault}. To fix: (1) mlarray_xr.verify tells of all chunks; (2) get "
                "the file again from where it came"
            )
        chunks.append((number, stored))
    return chunks


def _run_end(starts: NDArray[np.int64], room: NDArray[np.int64], begin: int) -> int:
    """Return where a run ends: at a gap, or when it is long enough."""
    end = min(begin + _RUN_CHUNKS, len(starts))
    is_next = starts[begin + 1 : end] == starts[begin : end - 1] + room[begin : end - 1]
    fits = starts[begin + 1 : end] + room[begin + 1 : end] <= starts[begin] + RUN_BYTES
    breaks = np.flatnonzero(~(is_next & fits))
    return begin + 1 + int(breaks[0]) if len(breaks) else end


def _fault(run: ChunkRun, i: int, stored: memoryview) -> str | None:
    """Say how a chunk of a run differs from what was written; None when it does not."""
    if len(stored) > run.room[i]:
        return f"it has {len(stored)} bytes, the next chunk begins after {run.room[i]}"
    if run.checks is None:
        return None
    found, written = len(stored), int(run.checks.lengths[i])
    if found != written:
        return f"it has {found} bytes, {written} were written"
    crc, wanted = zlib.crc32(stored), int(run.checks.crc32[i])
    return None if crc == wanted else f"its checksum is {crc:08x}, {wanted:08x} was written"
