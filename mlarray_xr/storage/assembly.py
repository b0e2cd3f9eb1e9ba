"""Assembly: encoded chunks and segments become one frame, checked before it is published."""

from __future__ import annotations

import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.storage.frame_ends import frame_ends
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.frame_template import frame_template
from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.segments import PAGE_BYTES, begin_to_write_back, copy_segment
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.storage.encode import EncodedChunk, FramePlan
    from mlarray_xr.storage.joining import Prefix
    from mlarray_xr.storage.segments import Segment

__all__ = ["FrameWriter"]


class FrameWriter:
    """Writes one frame into a new file: parts in order, each chunk exactly once, then `finish`.

    Parts of a file that has several begin on a page of 4096 bytes, so that file systems which can
    share pages (XFS, Btrfs, NFS 4.2) join segments without copying. What lies between is zeros.

    Parameters
    ----------
    file
        An empty file on disk, open for reading and writing; see `mlarray_xr.storage.publication`.
    plan
        What is written.
    metadata
        The encoded metadata entry.
    n_parts
        Number of parts that will be added.
    """

    def __init__(self, file: BinaryIO, *, plan: FramePlan, metadata: bytes, n_parts: int) -> None:
        self._file, self._plan, self._metadata = file, plan, metadata
        self._header, _ = frame_template(plan, metadata, b"")
        self._page_bytes = PAGE_BYTES if n_parts > 1 else 1
        self._table = np.zeros(plan.n_chunks, plan.entry_dtype)
        self._is_written = np.zeros(plan.n_chunks, np.bool_)
        self._payload_len = 0
        file.write(self._header)

    def append(self, chunks: Iterable[EncodedChunk]) -> None:
        """Add the chunks of one part.

        Raises
        ------
        ValueError
            When a chunk was added before.
        """
        is_first, begin = True, self._file.tell()
        for chunk in chunks:
            entry = chunk.entry.copy()
            if chunk.data:
                if is_first:
                    self._file.write(bytes(self._turn_page()))
                    is_first = False
                entry["offset"] = self._payload_len
                self._file.write(chunk.data)
                self._payload_len += len(chunk.data)
            self._record(entry.reshape(1))
        self._file.flush()
        begin_to_write_back(self._file.fileno(), begin, self._file.tell())

    def adopt(self, segments: Sequence[Segment], *, prefix: Prefix) -> None:
        """Add the chunks of segments, in order of their parts; copied by several threads.

        Parameters
        ----------
        segments
            Of all parts.
        prefix
            How much of them is in the file already.

        Raises
        ------
        ValueError
            When a chunk was added before.
        OSError
            When the disk is full, or a segment is shorter than it was.
        """
        copies: list[tuple[Segment, int]] = []
        kept = len(self._header)
        for number, segment in enumerate(segments):
            entries = segment.entries.copy()
            if segment.payload_bytes:
                self._turn_page()
                entries["offset"] += np.where(entries["special"], 0, self._payload_len)
                copies.append((segment, self._position))
                self._payload_len += segment.payload_bytes
            self._record(entries)
            if number + 1 == prefix.n_parts and self._position == prefix.stop:
                copies.clear()
                kept = prefix.stop
        self._file.flush()
        self._file.truncate(kept)
        with ThreadPoolExecutor(min(available_threads(), len(copies) or 1)) as pool:
            for job in [pool.submit(self._copy, segment, position) for segment, position in copies]:
                job.result()
        self._file.seek(self._position)

    def finish(self) -> int:
        """Write chunk table, trailer and final header, and read samples back as a reader would.

        Returns
        -------
        int
            Bytes of the frame.

        Raises
        ------
        ValueError
            When chunks are missing.
        FormatError
            When the frame does not read back.
        """
        if not self._is_written.all():
            missing = np.flatnonzero(~self._is_written)
            msg = f"{len(missing)} chunks were never written, the first is {missing[0]}"
            raise ValueError(msg)
        header, ending = frame_ends(
            self._plan,
            self._metadata,
            self._table,
            payload_len=self._payload_len,
        )
        self._file.write(ending)
        self._file.truncate()
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        self._read_back()
        return self._position + len(ending)

    @property
    def _position(self) -> int:
        """Where the payload ends so far, bytes from the beginning of the file."""
        return len(self._header) + self._payload_len

    def _copy(self, segment: Segment, position: int) -> None:
        """Copy the payload of a segment to its place."""
        target = self._file.fileno()
        copy_segment(segment, target=target, position=position, page_bytes=self._page_bytes)
        begin_to_write_back(target, position, position + segment.payload_bytes)

    def _turn_page(self) -> int:
        """Move on to the next page, and return how many bytes that leaves unused."""
        gap = -self._position % self._page_bytes
        self._payload_len += gap
        return gap

    def _record(self, entries: NDArray[Any]) -> None:
        """Note where chunks are."""
        numbers = entries["number"]
        if self._is_written[numbers].any():
            twice = numbers[self._is_written[numbers]][0]
            msg = f"chunk {twice} was written before"
            raise ValueError(msg)
        self._table[numbers] = entries
        self._is_written[numbers] = True

    def _read_back(self) -> None:
        """Open the frame, and read first, middle and last chunk that have a payload."""
        plan, source = self._plan, source_of(self._file.name)
        found = open_frame(source).header
        if (found.shape, found.dtype_str) != (plan.shape, plan.dtype.str):
            msg = f"{plan.shape} was written, {found.shape} reads back: the disk may be failing"
            raise FormatError(msg)
        stored = np.flatnonzero(self._table["special"] == 0)
        if not len(stored):
            return
        reader = MappedReader(source)
        for number in {int(stored[i]) for i in (0, len(stored) // 2, -1)}:
            entry = self._table[number]
            self._file.seek(len(self._header) + int(entry["offset"]))
            if zlib.crc32(self._file.read(int(entry["length"]))) != entry["crc32"]:
                msg = (
                    f"chunk {number} does not read back as it was written: the disk may be failing"
                )
                raise FormatError(msg)
            position = np.unravel_index(number, plan.chunk_grid) if plan.shape else ()
            box = tuple(
                (int(i) * c, min((int(i) + 1) * c, n))
                for i, c, n in zip(position, plan.layout.chunks, plan.shape, strict=True)
            )
            out = np.empty(tuple(b - a for a, b in box), plan.dtype)
            reader.read(box, out, threads=1)
