"""MultipartJob: one write into an object of S3 as every process that takes part in it sees it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import FormatError, MlaWarning, SourceError
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.storage.encode import encode_part
from mlarray_xr.storage.frame_ends import frame_ends
from mlarray_xr.storage.frame_entries import recorded_integrity
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.frame_template import frame_template
from mlarray_xr.storage.handles import reader_of
from mlarray_xr.storage.job import Finished, part_of
from mlarray_xr.storage.multipart import LAST_NUMBER, LEAST_BYTES, UploadEnded
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.portions import (
    FIRST_NUMBER,
    Portion,
    PortionRecord,
    halves,
    joined,
    plan_groups,
    portion_of,
)
from mlarray_xr.storage.remote_file import pin_remote
from mlarray_xr.storage.upload_notes import note_portion, noted_portions, remove_notes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.job import Progress, Sliceable
    from mlarray_xr.storage.multipart import MultipartUpload

__all__ = ["MOST_PARTS", "MultipartJob"]

MOST_PARTS = LAST_NUMBER - 2
"""Parts of a write: one number more is for the header, and one for index and trailer."""
# Of a write by threads: small portions that wait are joined when there are so many.
_RECORDS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipartJob:
    """One write into an object: what is written where, in which parts. Picklable.

    Every task encodes a part and sends it, unless it is small: then it travels to where it meets
    others. One part keeps its first 5 MiB back, because the first piece of the upload holds the
    header, which is known last, and must not be small. Tasks may run twice, late, or after the
    write has ended; none of that does harm.
    """

    upload: MultipartUpload
    """Where the pieces go."""
    plan: FramePlan
    """What decides the bytes of the chunks."""
    parts: Parts
    """How the array is cut."""
    metadata: bytes
    """The encoded metadata entry."""
    overwrite: bool
    """Whether an object that is there is replaced."""
    keeps: bool = False
    """Whether what is sent is noted, for a later write to resume."""

    @property
    def n_chunks(self) -> int:
        """Number of chunks that are written."""
        return self.plan.n_chunks

    def parts_sent(self) -> set[int]:
        """Return the numbers of the parts that the store has; of those joined the first only."""
        sent = self.upload.etags() or {}
        return {number - 2 for number in sent if FIRST_NUMBER < number < LAST_NUMBER}

    def write_part(self, values: NDArray[Any], box: Box, *, part: int) -> PortionRecord:
        """Encode a part, and send what is large enough.

        Raises
        ------
        SourceError
            When the store cannot be reached, or the write was given up meanwhile.
        """
        chunks = encode_part(values, box, self.plan)
        whole = portion_of(chunks, number=part + 2, plan=self.plan)
        # In the middle, since the first part of an image may hold nothing but air.
        is_kept = part == len(self.parts) // 2
        portions = halves(whole, least_bytes=LEAST_BYTES) if is_kept else [whole]
        try:
            sent = tuple(self._sent(portion) for portion in portions)
        except UploadEnded:
            # Tasks run late when a worker with results dies.
            if not self.upload.is_complete():
                raise
            sent = ()
        process = f"{socket.gethostname()}:{os.getpid()}"
        return PortionRecord(portions=sent, processes=frozenset({process}), part=part)

    def join(self, records: Iterable[PortionRecord]) -> list[PortionRecord]:
        """Return one record of several, and send what has become large enough by that."""
        given = list(records)
        if not given:
            return []
        portions = sorted(
            (portion for record in given for portion in record.portions),
            key=lambda portion: portion.number,
        )
        waiting = [p for p in portions if not p.etag and p.number != FIRST_NUMBER]
        groups = plan_groups([p.size for p in waiting], least_bytes=LEAST_BYTES)
        left = waiting[groups[-1].stop :] if groups else waiting
        sent = [self._sent(joined(waiting[group])) for group in groups]
        others = [p for p in portions if p.etag or p.number == FIRST_NUMBER]
        one = PortionRecord(
            portions=(*others, *sent, *left),
            processes=frozenset().union(*(record.processes for record in given)),
            part=min(record.part for record in given),
        )
        return [one]

    def finish(self, records: Iterable[PortionRecord]) -> Finished:
        """Send the two ends of the object, let it appear, and read samples back.

        Raises
        ------
        FileExistsError
            When an object is there by now and is not to be replaced.
        FormatError
            When the object does not read back.
        SourceError
            When the store cannot be reached, or the write was given up meanwhile.
        ValueError
            When chunks are missing.
        """
        begin = time.perf_counter()
        given = list(records)
        # The task may run again when the worker with its result dies.
        if not self.upload.is_complete():
            try:
                self._publish(self._all_portions(given))
            except (UploadEnded, FileExistsError):
                if not self.upload.is_complete():
                    raise
        file_bytes = self._read_back()
        if self.keeps:
            try:
                remove_notes(self.upload.address)
            except SourceError as error:  # the object is there and complete
                warnings.warn(str(error), MlaWarning, stacklevel=2)
        return Finished(
            file_bytes=file_bytes,
            seconds=time.perf_counter() - begin,
            workers=len({process for record in given for process in record.processes}) or 1,
        )

    def write_missing(
        self, values: Sliceable, missing: Sequence[int], progress: Progress | None
    ) -> Finished:
        """Encode and send the missing parts of an array by the threads of this process."""
        boxes = self.parts.boxes()
        n_done = self.n_chunks - sum(len(self.plan.numbers_in(boxes[i])) for i in missing)
        tasks = [partial(self._write, values, boxes[part], part) for part in missing]
        records: list[PortionRecord] = []
        self._tell(progress, n_done)
        with contextlib.closing(run_ordered(tasks)) as written:
            for record in written:
                records.append(record)
                n_done += len(self.plan.numbers_in(boxes[record.part]))
                if len(records) >= _RECORDS_AT_ONCE:
                    records = self.join(records)
                self._tell(progress, n_done)
        return self.finish(records)

    def give_up(self) -> None:
        """Abort the upload, or leave it for a later write to resume."""
        if not self.keeps:
            # What is to be told is why the write failed, not that the store is out of reach.
            with contextlib.suppress(OSError):
                self.upload.abort()

    def missing(self) -> tuple[int, ...]:
        """Return the numbers of the parts that no earlier write has sent and noted."""
        is_sent = np.zeros(self.plan.n_chunks, np.bool_)
        for portion in noted_portions(self.upload, self.plan):
            is_sent[portion.entries["number"]] = True
        boxes = self.parts.boxes()
        return tuple(
            part for part, box in enumerate(boxes) if not is_sent[self.plan.numbers_in(box)].all()
        )

    def _all_portions(self, given: Sequence[PortionRecord]) -> list[Portion]:
        """Return the portions of this write, and those of an earlier one that it goes on with."""
        portions = [portion for record in self.join(given) for portion in record.portions]
        if not self.keeps:
            return portions
        is_new = np.zeros(self.plan.n_chunks, np.bool_)
        for portion in portions:
            is_new[portion.entries["number"]] = True
        found = noted_portions(self.upload, self.plan)
        return [*portions, *(p for p in found if not is_new[p.entries["number"]].any())]

    def _write(self, values: Sliceable, box: Box, part: int) -> PortionRecord:
        """Encode and send one part of an array."""
        return self.write_part(part_of(values, box), box, part=part)

    def _tell(self, progress: Progress | None, n_done: int) -> None:
        """Tell how many chunks are done, if anybody wants to know."""
        if progress is not None:
            progress(n_done, self.n_chunks)

    def _sent(self, portion: Portion) -> Portion:
        """Send a portion that is large enough, and is not to stand behind the header."""
        if portion.size < LEAST_BYTES or portion.number == FIRST_NUMBER:
            return portion
        etag = self.upload.put(portion.number, portion.data)
        sent = replace(portion, etag=etag, data=b"")
        if self.keeps:
            note_portion(self.upload, sent)
        return sent

    def _publish(self, portions: Sequence[Portion]) -> None:
        """Send the first and the last piece of the object, and let it appear."""
        sent = sorted((p for p in portions if p.etag), key=lambda p: p.number)
        kept = sorted((p for p in portions if not p.etag), key=lambda p: p.number)
        first = joined(kept) if kept else None
        data = first.data if first is not None else b""
        if sent:
            header_len = len(frame_template(self.plan, self.metadata, b"")[0])
            # A gap between chunks is legal; without it the store would refuse the object.
            data += bytes(max(0, LEAST_BYTES - header_len - len(data)))
        table = self._placed(first, sent, start=len(data))
        payload_len = len(data) + sum(portion.size for portion in sent)
        header, ending = frame_ends(self.plan, self.metadata, table, payload_len=payload_len)
        etags = {portion.number: portion.etag for portion in sent}
        if sent:
            etags[LAST_NUMBER] = self.upload.put(LAST_NUMBER, ending)
            ending = b""
        etags[FIRST_NUMBER] = self.upload.put(FIRST_NUMBER, header + data + ending)
        self.upload.complete(etags, overwrite=self.overwrite)

    def _placed(
        self, first: Portion | None, sent: Sequence[Portion], *, start: int
    ) -> NDArray[Any]:
        """Return the records of all chunks by number, with their places."""
        table = np.zeros(self.plan.n_chunks, self.plan.entry_dtype)
        n_written = np.zeros(self.plan.n_chunks, np.int64)
        position = start
        for portion in [*([] if first is None else [first]), *sent]:
            entries = portion.entries.copy()
            if portion is not first:
                entries["offset"] += position
                position += portion.size
            table[entries["number"]] = entries
            np.add.at(n_written, entries["number"], 1)
        if (n_written != 1).any():
            number = int(np.flatnonzero(n_written != 1)[0])
            msg = f"chunk {number} was written {n_written[number]} times, and once is right"
            raise ValueError(msg)
        return table

    def _read_back(self) -> int:
        """Read the object's ends, and its first, middle and last stored chunk; return its size."""
        source, plan = pin_remote(self.upload.address), self.plan
        found = open_frame(source).header
        if (found.shape, found.dtype_str) != (plan.shape, plan.dtype.str):
            msg = (
                f"{source.name}: {plan.dtype} {plan.shape} was written, {found.dtype_str} "
                f"{found.shape} reads back: somebody else wrote it at the same time"
            )
            raise FormatError(msg)
        reader = reader_of(source, check=True)
        stored = np.flatnonzero(recorded_integrity(source, found).special == 0).tolist()
        for number in sorted({stored[i] for i in (0, len(stored) // 2, -1)} if stored else ()):
            _, box = chunk_place(number, found)
            reader.read(box, np.empty(box_shape(box), plan.dtype), threads=1)
        return source.size
