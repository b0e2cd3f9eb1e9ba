"""Inspection: one pass over the chunks of a file that compares them with what was written."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from mlarray_xr.errors import ChunkError, SourceError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, check_chunks
from mlarray_xr.storage.chunks import decode_checked_chunk
from mlarray_xr.storage.encode import released_gil
from mlarray_xr.storage.frame_file import read_payload, special_codes
from mlarray_xr.storage.read_pool import run_shared, sharing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.storage.remote_source import Source

__all__ = ["Inspection"]

_MOST_LISTED = 1000
_RUN_BYTES = 8 << 20
_RUN_CHUNKS = 1 << 12
# All threads together: a chunk may have 2 GiB, and a thread that decodes holds it three times.
_MEMORY_BYTES = 1 << 30
_COPIES = 3

Verdict = Literal["matching", "changed", "unchecked", "damaged"]


class Inspection:
    """One pass over the chunks of a file, shared by threads, and what it has found.

    Chunks are read, not mapped: a file that is truncated meanwhile is an error, not a signal.

    Parameters
    ----------
    source
        What to read; pinned.
    header
        Its checked header.
    offsets
        Its checked chunk table.
    integrity
        What was written; None where nobody recorded it. Then every chunk is decoded.
    decode
        Whether to decode chunks that match their checksum, too.
    """

    def __init__(
        self,
        source: Source,
        header: FrameHeader,
        offsets: NDArray[np.int64],
        integrity: Integrity | None,
        *,
        decode: bool,
    ) -> None:
        # Whoever replaces chunks leaves a payload of another length. Damage does not: the chunk
        # table would not be found.
        self.is_edited = integrity is not None and integrity.payload_len != header.payload_len
        self.counts: Counter[Verdict] = Counter()
        self._source, self._header, self._offsets = source, header, offsets
        self._integrity, self._decode = integrity, decode
        self._faults: list[tuple[int, str]] = []
        self._lock = threading.Lock()

    @property
    def faults(self) -> list[tuple[int, str]]:
        """Numbers of the first damaged chunks, at most 1000, and what is wrong with each."""
        return sorted(self._faults)[:_MOST_LISTED]

    def run(self, *, threads: int | None) -> None:
        """Look at every chunk, at runs of them side by side.

        Parameters
        ----------
        threads
            Threads to use; None shares the CPUs with reads under way. Fewer for large chunks.

        Raises
        ------
        SourceError
            When the file changed meanwhile, or cannot be opened any more.
        """
        self._look_at_specials()
        is_decoding = self._integrity is None or self.is_edited or self._decode
        with released_gil() if is_decoding else contextlib.nullcontext(), sharing() as share:
            most = max(1, _MEMORY_BYTES // (_COPIES * self._header.chunksize + _RUN_BYTES))
            tasks = (partial(self._look_at_run, *run) for run in self._runs())
            run_shared(tasks, threads=min(threads or share, most))

    def _runs(self) -> Iterator[tuple[NDArray[np.int64], int]]:
        """Yield chunks with payload by some MiB, in the order of the file, and where each run ends.

        A run ends where the next one begins, or where its last chunk must end.
        """
        header = self._header
        stored = np.flatnonzero(self._offsets >= 0)
        stored = stored[np.argsort(self._offsets[stored], kind="stable")]
        starts = self._offsets[stored]
        most = starts + header.chunksize + CHUNK_HEADER_BYTES
        stops = np.minimum(np.append(starts[1:], header.payload_len), most)
        begin = 0
        while begin < len(stored):
            end = int(np.searchsorted(starts, starts[begin] + _RUN_BYTES))
            end = max(begin + 1, min(end, begin + _RUN_CHUNKS))
            yield stored[begin:end], int(stops[end - 1])
            begin = end

    def _look_at_specials(self) -> None:
        """Compare the chunks without payload with what was written, all at once."""
        numbers = np.flatnonzero(self._offsets < 0)
        if self._integrity is None:
            self._note("unchecked", len(numbers))
            return
        codes = special_codes(self._offsets)
        differ = numbers[codes[numbers] != self._integrity.special[numbers]]
        self._note("matching", len(numbers) - len(differ))
        self._note("changed" if self.is_edited else "damaged", len(differ))
        if not self.is_edited:
            for number in differ[:_MOST_LISTED].tolist():
                fault = self._integrity.fault(number, b"", special=int(codes[number]))
                self._list(number, fault or "")

    def _look_at_run(self, numbers: NDArray[np.int64], stop: int) -> None:
        """Judge the chunks of a run, or look at them one by one where that goes wrong."""
        starts = self._offsets[numbers] - self._offsets[numbers[0]]
        run = self._sound_run(numbers, stop)
        for number, start in zip(numbers.tolist(), starts.tolist(), strict=True):
            if run is None:
                self._look_at_chunk(number)
            else:
                self._judge(number, run[start : start + _stored_bytes(run[start:])])

    def _sound_run(self, numbers: NDArray[np.int64], stop: int) -> NDArray[np.uint8] | None:
        """Return the bytes of a run, read at once; None when a chunk of it may be unsound."""
        offsets = self._offsets[numbers]
        start = int(offsets[0])
        if offsets[-1] + CHUNK_HEADER_BYTES > stop:
            return None
        try:
            run = self._read(start, stop)
            check_chunks(run, numbers, offsets - start, self._header, name="")
        except (ChunkError, _DiskError):
            return None
        return run

    def _look_at_chunk(self, number: int) -> None:
        """Read and judge one chunk, believing neither its neighbours nor its header."""
        start = int(self._offsets[number])
        try:
            length = _stored_bytes(self._read(start, start + CHUNK_HEADER_BYTES))
            if not CHUNK_HEADER_BYTES <= length <= self._header.payload_len - start:
                self._condemn(number, f"its header claims {length} bytes")
                return
            chunk = self._read(start, start + length)
            where = np.array([number]), np.zeros(1, np.int64)
            check_chunks(chunk, *where, self._header, name="")
        except ChunkError:
            self._condemn(number, "its header is not that of a chunk of this array")
        except _DiskError as error:
            self._condemn(number, f"it cannot be read: {error}")
        else:
            self._judge(number, chunk)

    def _judge(self, number: int, stored: NDArray[np.uint8]) -> None:
        """Compare a chunk whose header is sound with what was written, and decode it if need be."""
        verdict: Verdict = "unchecked"
        if self._integrity is not None:
            fault = self._integrity.fault(number, stored.data, special=0)
            if fault is not None and not self.is_edited:
                self._condemn(number, fault)
                return
            verdict = "matching" if fault is None else "changed"
        if verdict != "matching" or self._decode:
            try:
                decode_checked_chunk(
                    stored.tobytes(), nbytes=self._header.chunksize, name=f"chunk {number}"
                )
            except ChunkError as error:
                self._condemn(number, str(error))
                return
        self._note(verdict, 1)

    def _read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return a range of the payload; `_DiskError` where the disk does not give it."""
        try:
            return read_payload(self._source, self._header, start=start, stop=stop)
        except SourceError:
            raise
        except OSError as error:
            raise _DiskError(error.strerror or str(error)) from error

    def _condemn(self, number: int, reason: str) -> None:
        """Count a chunk as damaged and keep it for the list."""
        self._note("damaged", 1)
        self._list(number, reason)

    def _note(self, verdict: Verdict, count: int) -> None:
        """Count chunks."""
        with self._lock:
            self.counts[verdict] += count

    def _list(self, number: int, reason: str) -> None:
        """Keep a damaged chunk for the list, as long as it may be among the first."""
        with self._lock:
            self._faults.append((number, reason))
            if len(self._faults) > 2 * _MOST_LISTED:
                self._faults = self.faults


class _DiskError(Exception):
    """The disk does not give bytes of a file that is there."""


def _stored_bytes(head: NDArray[np.uint8]) -> int:
    """Return how many bytes a chunk header claims."""
    return int(head[12:16].view("<i4")[0])
