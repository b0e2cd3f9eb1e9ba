"""PreparedWrite: a write that is decided and claimed, not yet begun."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
import uuid
from dataclasses import dataclass, replace
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
from mlarray_xr.format.metadata import Storage
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.write_plan import check_chunk_borders, plan_parts
from mlarray_xr.report import WriteReport
from mlarray_xr.storage.job import WriteJob, identity_of
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.staging import claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.codec_choice import CodecChoice
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.job import Finished, Progress
    from mlarray_xr.subject import Subject

__all__ = ["PreparedWrite", "delayed_report", "prepare", "run_all"]


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

    def graph(self) -> Any:
        """Return the 0-d Dask array that writes the file when it is computed."""
        values = self.subject.values
        if not self.subject.is_dask:
            values = from_address(values, chunks=self.job.parts.extents)
        return write_graph(values, self.job, missing=self.missing)

    def run(self, progress: Progress | None) -> WriteReport:
        """Write the file with the threads of this process."""
        with self.cleaned_up():
            if self.keeps:
                done = self.job.write_segments(self.subject.values, self.missing, progress)
            else:
                done = self.job.write_directly(self.subject.values, progress)
            return self.report(done)

    @contextlib.contextmanager
    def cleaned_up(self) -> Iterator[None]:
        """Remove or release the staging folder when the block fails."""
        try:
            yield
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Remove the staging folder, or leave it for a later write to resume."""
        if self.keeps:
            self.job.staging.release()
        else:
            self.job.staging.remove()

    def report(self, done: Finished) -> WriteReport:
        """Return the report of the finished write."""
        return self.finisher()(done)

    def finisher(self) -> Callable[[Finished], WriteReport]:
        """Return what makes the report; unlike this object it pickles small."""
        plan, boxes = self.job.plan, self.job.parts.boxes()
        n_missing = sum(len(plan.numbers_in(boxes[part])) for part in self.missing)
        return partial(
            _report,
            job=self.job,
            path=self.path,
            n_resumed_chunks=plan.n_chunks - n_missing,
            choice=self.choice,
            began=self.began,
        )


def _report(
    done: Finished,
    *,
    job: WriteJob,
    path: str,
    n_resumed_chunks: int,
    choice: CodecChoice | None,
    began: float,
) -> WriteReport:
    """Return the report of a finished write."""
    plan = job.plan
    return WriteReport(
        path=path,
        shape=plan.shape,
        dtype=str(plan.dtype),
        nbytes=math.prod(plan.shape) * plan.dtype.itemsize,
        file_bytes=done.file_bytes,
        n_chunks=plan.n_chunks,
        n_resumed_chunks=n_resumed_chunks,
        seconds=time.time() - began,
        assembly_seconds=done.seconds,
        workers=done.workers,
        layout=plan.layout,
        codec=plan.codec,
        choice=choice,
    )


def prepare(
    subject: Subject,
    *,
    path: str,
    target: str,
    plan: FramePlan,
    metadata: Metadata,
    overwrite: bool,
    align_chunks: bool,
    resume: bool,
    memory_limit: int | None,
    uses_tasks: bool,
    choice: CodecChoice | None,
    began: float,
    dims: tuple[str, ...],
) -> PreparedWrite:
    """Decide the parts of a write and claim its target.

    Parameters
    ----------
    subject
        What is written.
    path, target
        The target as it was named, and as it is written: absolute, links followed.
    plan
        Shape, type, layout and codec of the file.
    metadata
        What the file says of itself.
    overwrite
        Whether an existing target is replaced.
    align_chunks
        Whether Dask chunks that do not fit the file's may be rechunked.
    resume
        Whether to use what an earlier write left, and to leave what this one does.
    memory_limit
        Bytes that the parts of one process may take.
    uses_tasks
        Whether Dask runs the write.
    choice
        Why this codec.
    began
        When the write was asked for, seconds since 1970.
    dims
        Names of the axes, for errors.

    Raises
    ------
    TargetBusy
        When another writer is at work on the target.
    LayoutError
        When chunks do not fit, or parts not the memory.
    ConversionError
        When there is nothing to resume but another write.
    """
    source_chunks = subject.values.chunks if subject.is_dask else None
    if source_chunks is not None and not align_chunks:
        check_chunk_borders(source_chunks, plan.layout.chunks, dims)
    parts = plan_parts(
        plan.shape,
        plan.layout,
        itemsize=plan.dtype.itemsize,
        in_flight=threads_per_process() if uses_tasks else available_threads() + 1,
        source_chunks=source_chunks,
        memory_limit=memory_limit,
    )
    stored = encode_metadata(_with_storage(metadata, plan))
    token = subject.token() if resume else uuid.uuid4().hex
    wanted = {"fingerprint": _fingerprint(plan, stored, token), "parts": parts.extents}
    staging, recorded = claim(target, wanted, resume=resume)
    job = WriteJob(
        staging=staging,
        plan=plan,
        parts=replace(parts, extents=tuple(map(tuple, recorded["parts"]))),
        metadata=stored,
        overwrite=overwrite,
        before=identity_of(target),
    )
    found = job.segments_found(check=True) if resume else {}
    return PreparedWrite(
        subject=subject,
        job=job,
        path=path,
        missing=tuple(part for part in range(len(job.parts)) if part not in found),
        uses_tasks=uses_tasks,
        keeps=resume,
        choice=choice,
        began=began,
    )


def run_all(writes: list[PreparedWrite], progress: Progress | None) -> list[WriteReport]:
    """Run writes: those of Dask arrays in one computation, so that what they share is read once."""
    tasks = [write for write in writes if write.uses_tasks and write.missing]
    with contextlib.ExitStack() as stack:
        for write in tasks:
            stack.enter_context(write.cleaned_up())
            stack.enter_context(watched(write.job, progress))
        done = dict(zip(map(id, tasks), compute_all([w.graph() for w in tasks]), strict=True))
    return [
        write.report(done[id(write)]) if id(write) in done else write.run(progress)
        for write in writes
    ]


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
        "metadata": hashlib.sha256(metadata).hexdigest(),
        "source": token,
    }


def _with_storage(metadata: Metadata, plan: FramePlan) -> Metadata:
    """Return the metadata with the layout that is really written."""
    storage = Storage(
        chunk_size=plan.layout.chunks,
        block_size=plan.layout.blocks,
        patch_size=plan.layout.patch,
        cparams={"codec": plan.cparams().codec.value, "clevel": plan.codec.level},
        dparams={"nthreads": 1},
    )
    return replace(metadata, has_array=True, blosc2=storage)
