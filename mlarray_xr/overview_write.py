"""OverviewWrite: all levels of one file, made in one pass over it, as every process sees it."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import SourceChanged, SourceError
from mlarray_xr.planning.grid import box_shape, chunk_boxes
from mlarray_xr.planning.reduction import reduce_mean, reduce_mode
from mlarray_xr.storage.encode import EncodedChunk, encode_part
from mlarray_xr.storage.job import PartRecord, identity_of
from mlarray_xr.storage.segments import write_segment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlarray_xr.overview_record import Method
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.overview_parts import Constants, OverviewParts
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.job import Finished, WriteJob

__all__ = ["OverviewWrite", "PartTask"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartTask:
    """What one part needs: its number, and which of its pieces need not be read."""

    number: int
    """Of the part, in C order."""
    known: tuple[Any, ...]
    """For each piece, in order, the only value that it holds, or None where that is not known."""

    @property
    def only_value(self) -> Any:
        """The only value of the whole part; None where there is none, or it is not known."""
        first = self.known[0]
        if any(value is None for value in self.known):
            return None
        is_one = np.array_equal(self.known, [first] * len(self.known), equal_nan=True)
        return first if is_one else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OverviewWrite:
    """One pass: what is read, how it is reduced, and the write of each level. Picklable."""

    array: MlaArray
    """The file itself."""
    parts: OverviewParts
    """How it is read."""
    method: Method
    """What a voxel is of those that it stands for."""
    jobs: tuple[WriteJob, ...]
    """The write of each level, finest first."""

    def tasks(self, constants: Constants | None) -> list[PartTask]:
        """Return what every part needs."""
        return [
            PartTask(
                number=number,
                known=tuple(
                    None
                    if constants is None or not constants.is_known[position]
                    else constants.values[position]
                    for position, _ in self.parts.pieces(number)
                ),
            )
            for number in range(len(self.parts))
        ]

    def bare(self) -> OverviewWrite:
        """Return this without the metadata, which may be megabytes, for tasks that write parts."""
        return replace(self, jobs=tuple(replace(job, metadata=b"") for job in self.jobs))

    def write_part(self, task: PartTask) -> tuple[PartRecord, ...]:
        """Leave a part of every level as a segment; a part of one known value is not read.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        SourceError
            When the write was given up meanwhile.
        """
        box, value = self.parts.box(task.number), task.only_value
        boxes = [self.parts.level_box(box, level) for level in range(1, len(self.jobs) + 1)]
        if value is not None:
            return tuple(
                _write_constant(job, value, where, part=task.number)
                for job, where in zip(self.jobs, boxes, strict=True)
            )
        levels = [np.empty(box_shape(where), self.array.dtype) for where in boxes]
        for (_, piece), known in zip(self.parts.pieces(task.number), task.known, strict=True):
            for level, reduced in enumerate(self._reduced(piece, known), 1):
                inside = tuple(
                    slice(a - first, b - first)
                    for (a, b), (first, _) in zip(
                        self.parts.level_box(piece, level), boxes[level - 1], strict=True
                    )
                )
                levels[level - 1][inside] = reduced
        return tuple(
            job.write_part(values, where, part=task.number)
            for job, values, where in zip(self.jobs, levels, boxes, strict=True)
        )

    def finish(self, records: Sequence[tuple[PartRecord, ...]]) -> tuple[Finished, ...]:
        """Publish the file of each level, finest first: what is there is always a beginning.

        Raises
        ------
        SourceChanged
            When the file was replaced or edited meanwhile.
        """
        now = MlaArray(self.array.path)
        if now.__dask_tokenize__() != self.array.__dask_tokenize__():
            msg = f"{self.array.path}: it was replaced or edited while overviews were made of it"
            raise SourceChanged(msg)
        return tuple(
            job.finish([each[level] for each in records]) for level, job in enumerate(self.jobs)
        )

    def _reduced(self, piece: Box, known: Any) -> Sequence[Any]:
        """Return a piece of every level; its one value where it is known."""
        if known is not None:
            return [known] * len(self.jobs)
        reduce = reduce_mode if self.method == "mode" else reduce_mean
        return reduce(self.array.read(piece), self.parts.factors)


def _write_constant(job: WriteJob, value: Any, box: Box, *, part: int) -> PartRecord:
    """Leave a part that holds one value as a segment."""
    if not _is_over(job):
        chunks = _constant_chunks(value, box, job.plan)
        write_segment(chunks, staging=job.staging, plan=job.plan, part=part)
    return PartRecord(part=part, process=f"{socket.gethostname()}:{os.getpid()}")


def _is_over(job: WriteJob) -> bool:
    """Tell whether a write has ended well; tasks run late when a worker with results dies.

    Raises
    ------
    SourceError
        When it has ended without a file.
    """
    try:
        job.staging.check()
    except SourceError:
        if identity_of(job.staging.target) in (None, job.before):
            raise
        return True
    return False


def _constant_chunks(value: Any, box: Box, plan: FramePlan) -> Iterator[EncodedChunk]:
    """Yield the chunks of a part that holds one value, each shape of them encoded once."""
    encoded: dict[tuple[int, ...], EncodedChunk] = {}
    pieces = chunk_boxes(box, chunks=plan.layout.chunks)
    for number, (_, piece) in zip(plan.numbers_in(box).tolist(), pieces, strict=True):
        shape = box_shape(piece)
        if shape not in encoded:
            (encoded[shape],) = encode_part(np.full(shape, value, plan.dtype), piece, plan)
        entry = encoded[shape].entry.copy()
        entry["number"] = number
        yield EncodedChunk(entry=entry, data=encoded[shape].data)
