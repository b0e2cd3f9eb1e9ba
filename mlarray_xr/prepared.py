"""PreparedWrite: a write that is decided and claimed, not yet begun."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask import from_address
from mlarray_xr.dask_write import (
    compute_all,
    delayed_value,
    threads_per_process,
    watched,
    write_graph,
)
from mlarray_xr.planning.write_plan import recut
from mlarray_xr.progress import shown_progress
from mlarray_xr.report import WriteReport
from mlarray_xr.storage.job import WriteJob, identity_of
from mlarray_xr.storage.joining import forget_prefix
from mlarray_xr.storage.multipart_job import MultipartJob
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.staging import claim
from mlarray_xr.storage.upload import StagedUpload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mlarray_xr.planning.codec_choice import CodecChoice
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.progress import Shown
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.job import Finished, Progress
    from mlarray_xr.storage.source import LocalSource
    from mlarray_xr.subject import Subject

__all__ = [
    "LARGER_PARTS",
    "PreparedWrite",
    "claim_write",
    "delayed_report",
    "parts_in_flight",
    "run_all",
]

LARGER_PARTS = "memory_limit= larger, workers with more memory, or larger chunks of the Dask array"
"""What makes the parts of a write larger, for warnings."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedWrite:
    """One file to write: what from, where to, and which parts are still missing."""

    subject: Subject
    """What is written."""
    job: WriteJob
    """How."""
    path: str
    """The target as it was named."""
    missing: tuple[int, ...]
    """Parts that no earlier write has left, by number."""
    uses_tasks: bool
    """Whether Dask runs it."""
    keeps: bool
    """Whether what is done outlives a failure."""
    choice: CodecChoice | None
    """Why this codec."""
    began: float
    """When it was asked for, seconds since 1970."""
    region: Box | None = None
    """What of an existing file is replaced; None when a file is made."""
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    """What must be equal for the work of two writes to be mixed."""
    upload: StagedUpload | MultipartJob | None = None
    """How a store gets the file: whole when it is complete, or in pieces instead of that."""

    @property
    def writer(self) -> WriteJob | MultipartJob:
        """What encodes the parts, and makes one file or object of them."""
        return self.upload if isinstance(self.upload, MultipartJob) else self.job

    def graph(self) -> Any:
        """Return the 0-d Dask array that writes the file when it is computed."""
        values = self.subject.values
        if not self.subject.is_dask:
            values = from_address(values, chunks=self.writer.parts.extents)
        return write_graph(values, self.writer, missing=self.missing)

    def run(self, progress: Progress | None) -> WriteReport:
        """Write the file with the threads of this process."""
        # A file that is changed in place is read meanwhile: it must not grow before the end.
        values = self.subject.values
        if isinstance(self.upload, MultipartJob):
            done = self.upload.write_missing(values, self.missing, progress)
        elif self.keeps or self.region is not None:
            done = self.job.write_segments(values, self.missing, progress)
        else:
            done = self.job.write_directly(values, progress)
        return self.report(done)

    @contextlib.contextmanager
    def cleaned_up(self) -> Iterator[None]:
        """Remove or release the staging folder when the block fails."""
        process = os.getpid()
        try:
            yield
        except BaseException:
            if os.getpid() == process:  # not a forked child, whose parent goes on
                self.give_up()
            raise

    def give_up(self) -> None:
        """Remove what there is of the file, or leave it for a later write to resume."""
        if isinstance(self.upload, MultipartJob):
            self.upload.give_up()
        elif self.keeps:
            forget_prefix(self.job.staging)  # only segments are resumed, and disks may be full
            self.job.staging.release()
        else:
            self.job.staging.remove()
        if isinstance(self.upload, StagedUpload):
            self.upload.clean_up()

    def report(self, done: Finished) -> WriteReport:
        """Return the report of the finished write."""
        return self.finisher()(done)

    def finisher(self) -> Callable[[Finished], WriteReport]:
        """Return what makes the report; unlike this object it pickles small."""
        job = self.writer
        boxes = job.parts.boxes()
        n_missing = sum(len(job.plan.numbers_in(boxes[part])) for part in self.missing)
        return partial(
            _report,
            plan=job.plan,
            path=self.path,
            n_chunks=job.n_chunks,
            n_resumed_chunks=job.n_chunks - n_missing,
            choice=self.choice,
            began=self.began,
            region=self.region,
            send=self._send(),
        )

    def _send(self) -> Callable[[], None] | None:
        """Return what brings the finished file to its store; None when it stays, or is there."""
        if isinstance(self.upload, StagedUpload):
            return partial(self.upload.send, self.job.staging.target)
        return None


def _report(
    done: Finished,
    *,
    plan: FramePlan,
    path: str,
    n_chunks: int,
    n_resumed_chunks: int,
    choice: CodecChoice | None,
    began: float,
    region: Box | None,
    send: Callable[[], None] | None,
) -> WriteReport:
    """Return the report of a finished write, whose file has gone to its store by then."""
    begin = time.perf_counter()
    if send is not None:
        send()
    return WriteReport(
        path=path,
        shape=plan.shape,
        dtype=str(plan.dtype),
        nbytes=math.prod(plan.shape) * plan.dtype.itemsize,
        file_bytes=done.file_bytes,
        n_chunks=n_chunks,
        n_resumed_chunks=n_resumed_chunks,
        seconds=time.time() - began,
        assembly_seconds=done.seconds + time.perf_counter() - begin,
        workers=done.workers,
        layout=plan.layout,
        codec=plan.codec,
        choice=choice,
        region=region,
    )


def claim_write(
    subject: Subject,
    *,
    path: str,
    target: str,
    plan: FramePlan,
    parts: Parts,
    metadata: bytes,
    overwrite: bool,
    resume: bool,
    uses_tasks: bool,
    choice: CodecChoice | None,
    began: float,
    token: str | None = None,
    into: LocalSource | None = None,
    region: Box | None = None,
) -> PreparedWrite:
    """Claim the target of a write that is decided, and find what an earlier one left.

    Parameters
    ----------
    subject
        What is written.
    path, target
        The target as it was named, and as it is written: absolute, links followed.
    plan
        Shape, type, layout and codec of the file.
    parts
        How the array is cut.
    metadata
        The encoded metadata entry.
    overwrite
        Whether an existing target is replaced.
    resume
        Whether to use what an earlier write left, and to leave what this one does.
    uses_tasks
        Whether Dask runs the write.
    choice
        Why this codec.
    began
        When the write was asked for, seconds since 1970.
    token
        What tells whether two writes are of the same values; None asks the subject.
    into, region
        The file that is changed in place, and the box that is replaced.

    Raises
    ------
    TargetBusy
        When another writer is at work on the target.
    ConversionError
        When there is nothing to resume but another write, or one whose record is damaged.
    """
    if resume and token is None:
        token = subject.token()
    fingerprint = _fingerprint(plan, metadata, token if resume and token else uuid.uuid4().hex)
    staging, recorded = claim(
        target, {"fingerprint": fingerprint, "parts": parts.extents}, resume=resume
    )
    try:
        job = WriteJob(
            staging=staging,
            plan=plan,
            parts=recut(
                parts, recorded.get("parts"), chunks=plan.layout.chunks, folder=staging.folder
            ),
            metadata=metadata,
            overwrite=overwrite,
            before=identity_of(target),
            into=into,
        )
        if resume:
            forget_prefix(staging)
        found = job.segments_found(check=True) if resume else {}
    except BaseException:
        (staging.release if resume else staging.remove)()
        raise
    return PreparedWrite(
        subject=subject,
        job=job,
        path=path,
        missing=tuple(part for part in range(len(job.parts)) if part not in found),
        uses_tasks=uses_tasks,
        keeps=resume,
        choice=choice,
        began=began,
        region=region,
        fingerprint=fingerprint,
    )


def parts_in_flight(*, uses_tasks: bool) -> int:
    """Return how many parts a process works on at the same time."""
    return threads_per_process() if uses_tasks else available_threads() + 1


def run_all(writes: list[PreparedWrite], progress: Shown) -> list[WriteReport]:
    """Run writes: those of Dask arrays in one computation, so that what they share is read once.

    When one fails, those that are not finished are given up.
    """
    tasks = [write for write in writes if write.uses_tasks and write.missing]
    with contextlib.ExitStack() as unfinished:
        for write in writes:
            unfinished.enter_context(write.cleaned_up())
        tell = unfinished.enter_context(shown_progress(progress, unit="chunk"))
        shares = dict(zip(map(id, writes), _shares(tell, writes), strict=True))
        with contextlib.ExitStack() as watching:
            for write in tasks:
                watching.enter_context(watched(write.writer, shares[id(write)]))
            done = dict(zip(map(id, tasks), compute_all([w.graph() for w in tasks]), strict=True))
        return [
            write.report(done[id(write)]) if id(write) in done else write.run(shares[id(write)])
            for write in writes
        ]


def _shares(tell: Progress | None, writes: Sequence[PreparedWrite]) -> list[Progress | None]:
    """Return what each of several writes tells its chunks to: they are counted together."""
    if tell is None or len(writes) == 1:
        return [tell] * len(writes)
    all_done, total = [0] * len(writes), sum(write.writer.n_chunks for write in writes)

    def share(number: int, done: int, _: int) -> None:
        all_done[number] = done
        tell(sum(all_done), total)

    return [partial(share, number) for number in range(len(writes))]


def delayed_report(write: PreparedWrite) -> Any:
    """Return a Delayed that writes the file and whose value is the report."""
    return delayed_value(write.graph(), write.finisher())


def _fingerprint(plan: FramePlan, metadata: bytes, token: str) -> dict[str, Any]:
    """Return what must be equal for the work of two writes to be mixed."""
    return {
        "shape": list(plan.shape),
        "dtype": plan.dtype_str,
        "chunks": list(plan.layout.chunks),
        "blocks": list(plan.layout.blocks),
        "codec": str(plan.codec),
        "block_index": bool(plan.n_indexed_blocks),
        "metadata": hashlib.sha256(metadata).hexdigest(),
        "source": token,
    }
