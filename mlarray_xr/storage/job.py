"""WriteJob: one write as every process that takes part in it sees it."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.encode import encode_part
from mlarray_xr.storage.frame_edit import editing
from mlarray_xr.storage.joining import Prefix, join_ready, take_prefix
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.publication import published
from mlarray_xr.storage.segments import find_segments, write_segment

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.storage.encode import EncodedChunk, FramePlan
    from mlarray_xr.storage.segments import Segment
    from mlarray_xr.storage.source import LocalSource
    from mlarray_xr.storage.staging import Staging

__all__ = [
    "Finished",
    "PartRecord",
    "Progress",
    "Sliceable",
    "Streamed",
    "WriteJob",
    "identity_of",
    "part_of",
]


class Progress(Protocol):
    """What is told how far a write is."""

    def __call__(self, done: int, total: int) -> None:
        """Take the number of chunks that are done, and of all chunks."""


class Sliceable(Protocol):
    """An array, in memory or not, of which boxes can be taken by several threads."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        """Return the elements of a box."""


@runtime_checkable
class Streamed(Protocol):
    """An array that comes slab after slab, once, and cannot be read in any other order."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""

    @property
    def axis(self) -> int:
        """The axis along which slabs follow one another; they span all others."""

    def beginning(self, extents: Sequence[int], *, n: int) -> NDArray[Any]:
        """Return up to n slabs as one array; `slabs` of the same extents returns them again."""

    def slabs(self, extents: Sequence[int]) -> Generator[NDArray[Any]]:
        """Yield slabs of these extents along the axis, each in memory of its own.

        An error in the source may show as late as after the last one.
        """

    def unpacked(self) -> Sliceable:
        """Return the same values as an array of which boxes can be taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartRecord:
    """What a task that wrote a part says of it."""

    part: int
    """Number of the part."""
    process: str
    """Host and number of the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What publishing a file says of it."""

    file_bytes: int
    """Bytes of the file."""
    seconds: float
    """Wall time of joining, checking and publishing."""
    workers: int
    """Processes that encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteJob:
    """One write: what is written where, in which parts. Picklable; sent to every worker.

    Tasks may run twice, late, or after the write has ended; none of that does harm.
    """

    staging: Staging
    """The folder for segments, and the target."""
    plan: FramePlan
    """What decides the bytes of the chunks."""
    parts: Parts
    """How the array is cut."""
    metadata: bytes
    """The encoded metadata entry."""
    overwrite: bool
    """Whether an existing target is replaced."""
    before: tuple[int, ...] | None
    """Identity of what had the target's name when the write began."""
    into: LocalSource | None = None
    """The file that is changed in place, as it was then; None when a new one is made."""

    @property
    def n_chunks(self) -> int:
        """Number of chunks that are written."""
        if self.into is None:
            return self.plan.n_chunks
        return sum(len(self.plan.numbers_in(box)) for box in self.parts.boxes())

    def segments_found(self, *, check: bool) -> dict[int, Segment]:
        """Return the good segments on disk by part; `check` compares their checksums."""
        numbers = {i: self.plan.numbers_in(box) for i, box in enumerate(self.parts.boxes())}
        return find_segments(self.staging, self.plan, numbers=numbers, check=check)

    def write_part(self, values: NDArray[Any], box: Box, *, part: int) -> PartRecord:
        """Encode a part and leave it as a segment.

        Raises
        ------
        SourceError
            When the write was given up meanwhile.
        """
        record = PartRecord(part=part, process=f"{socket.gethostname()}:{os.getpid()}")
        if self._is_going_on():
            chunks = encode_part(values, box, self.plan)
            write_segment(chunks, staging=self.staging, plan=self.plan, part=part)
            if self.into is None and len(self.parts) > 1:
                join_ready(self.staging, self.plan, part=part, parts=self.parts)
        return record

    def finish(self, records: list[PartRecord]) -> Finished:
        """Join all segments into the file, publish it, and remove the staging folder.

        Raises
        ------
        SourceError
            When the write was given up meanwhile.
        ValueError
            When parts are missing.
        """
        begin = time.perf_counter()
        if self._is_going_on():
            try:
                self._join()
            except (OSError, ValueError):
                # Another attempt of the same task may have finished at the same time.
                if self._is_going_on():
                    raise
        self.staging.remove()
        return Finished(
            file_bytes=os.path.getsize(self.staging.target),
            seconds=time.perf_counter() - begin,
            workers=len({record.process for record in records}),
        )

    def write_directly(self, values: Sliceable | Streamed, progress: Progress | None) -> Finished:
        """Encode an array in the threads of this process straight into the new file."""
        with self._publishing() as writer, contextlib.closing(self._encodings(values)) as tasks:
            n_done = 0
            self._tell(progress, n_done)
            # Closed: were the disk full, other threads would go on to read the values.
            with contextlib.closing(run_ordered(tasks)) as encoded:
                for chunks in encoded:
                    writer.append(chunks)
                    n_done += len(chunks)
                    self._tell(progress, n_done)
            begin = time.perf_counter()
            writer.finish()
        self.staging.remove()
        return Finished(
            file_bytes=os.path.getsize(self.staging.target),
            seconds=time.perf_counter() - begin,
            workers=1,
        )

    def write_encoded(
        self, tasks: Iterable[Callable[[], list[EncodedChunk]]], progress: Progress | None
    ) -> Finished:
        """Write chunks that need not be encoded straight into the new file.

        Parameters
        ----------
        tasks
            Give some chunks each, in the order of the parts and of the chunks in each part; called
            by the threads of this process.
        progress
            Called with the number of chunks that are done, and of all.
        """
        n_done = 0
        self._tell(progress, n_done)
        with self._publishing() as writer, contextlib.closing(run_ordered(tasks)) as results:
            chunks = itertools.chain.from_iterable(results)
            for box in self.parts.boxes():
                count = len(self.plan.numbers_in(box))
                writer.append(itertools.islice(chunks, count))
                n_done += count
                self._tell(progress, n_done)
            begin = time.perf_counter()
            writer.finish()
        self.staging.remove()
        return Finished(
            file_bytes=os.path.getsize(self.staging.target),
            seconds=time.perf_counter() - begin,
            workers=1,
        )

    def write_segments(
        self, values: Sliceable, missing: Sequence[int], progress: Progress | None
    ) -> Finished:
        """Leave the missing parts as segments, by the threads of this process, and finish."""
        boxes = self.parts.boxes()
        n_done = self.n_chunks - sum(len(self.plan.numbers_in(boxes[i])) for i in missing)
        tasks = [partial(self._write, values, boxes[part], part) for part in missing]
        records = []
        self._tell(progress, n_done)
        with contextlib.closing(run_ordered(tasks)) as written:
            for record in written:
                records.append(record)
                n_done += len(self.plan.numbers_in(boxes[record.part]))
                self._tell(progress, n_done)
        return self.finish(records)

    def _join(self) -> None:
        """Join all segments into the file, and publish it."""
        found = self.segments_found(check=False)
        missing = sorted(set(range(len(self.parts))) - found.keys())
        if missing:
            msg = f"{self.staging.folder}: {len(missing)} parts missing, first {missing[0]}"
            raise ValueError(msg)
        segments = [found[part] for part in range(len(self.parts))]
        if self.into is not None:
            with editing(self.into) as edit:
                edit.adopt(segments)
                edit.finish()
            return
        path, prefix = take_prefix(self.staging) or (None, Prefix())
        with self._publishing(begun=path) as writer:
            writer.adopt(segments, prefix=prefix)
            writer.finish()

    def _tell(self, progress: Progress | None, n_done: int) -> None:
        """Tell how many chunks are done, if anybody wants to know."""
        if progress is not None:
            progress(n_done, self.n_chunks)

    def _encodings(
        self, values: Sliceable | Streamed
    ) -> Generator[Callable[[], list[EncodedChunk]]]:
        """Yield what encodes each part; what comes slab after slab is taken when it is yielded."""
        boxes = self.parts.boxes()
        if not isinstance(values, Streamed):
            yield from (partial(self._encode, values, box) for box in boxes)
            return
        with contextlib.closing(values.slabs(self.parts.extents[values.axis])) as slabs:
            # The slabs first: they are asked for one more than there are, which checks their end.
            for slab, box in zip(slabs, boxes, strict=True):
                yield partial(self._encode_part, slab, box)

    def _encode(self, values: Sliceable, box: Box) -> list[EncodedChunk]:
        """Read and encode one part of an array."""
        return self._encode_part(part_of(values, box), box)

    def _encode_part(self, values: NDArray[Any], box: Box) -> list[EncodedChunk]:
        """Encode one part."""
        return list(encode_part(values, box, self.plan))

    def _write(self, values: Sliceable, box: Box, part: int) -> PartRecord:
        """Leave one part of an array as a segment."""
        return self.write_part(part_of(values, box), box, part=part)

    @contextlib.contextmanager
    def _publishing(self, *, begun: str | None = None) -> Iterator[FrameWriter]:
        """Open a writer of the new file, which has the target's name when the block ends well."""
        target, folder = self.staging.target, self.staging.folder
        with published(
            target, overwrite=self.overwrite, temporary_folder=folder, begun=begun
        ) as file:
            yield FrameWriter(file, plan=self.plan, metadata=self.metadata, n_parts=len(self.parts))

    def _is_going_on(self) -> bool:
        """Tell whether the write has not ended; tasks run late when a worker with results dies.

        Raises
        ------
        SourceError
            When it has ended without a file.
        """
        try:
            self.staging.check()
        except SourceError:
            if identity_of(self.staging.target) in (None, self.before):
                raise
            return False
        return True


def identity_of(path: str) -> tuple[int, ...] | None:
    """Return what changes when another file gets this name; None when none has it."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def part_of(values: Sliceable, box: Box) -> NDArray[Any]:
    """Read one part of an array."""
    found = values[tuple(slice(start, stop) for start, stop in box)]
    # Of no axes it is a scalar, which has the byte order of the machine.
    return np.asarray(found) if box else np.asarray(found, values.dtype)
