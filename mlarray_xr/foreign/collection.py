"""convert_folder: one `.mla` file for every image below a folder; what fails does not stop it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from mlarray_xr.dask import has_client, run_tasks
from mlarray_xr.dask_caches import caches_for_write
from mlarray_xr.dask_write import threads_per_process
from mlarray_xr.errors import MlaError
from mlarray_xr.foreign.case_folder import Obstacle, find_cases
from mlarray_xr.foreign.recipe import Recipe, share_of
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.progress import shown_progress
from mlarray_xr.report import WriteReport
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from mlarray_xr.foreign.case import Case
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.nodes import ClusterCaches
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.progress import Shown
    from mlarray_xr.storage.job import Progress

__all__ = ["CollectionReport", "convert_folder"]

_LARGE_BYTES = 64 << 20
"""Files from here on are converted one after another, each by all threads."""

_MOST_JOBS = 8
"""Small files at a time in the threads of one process: more only take memory."""

_JOB_BYTES = 512 << 20
"""What a small file may take of a memory limit before fewer are converted at a time."""

_MOST_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """What converting a folder did.

    Examples
    --------
    >>> report = CollectionReport(
    ...     target="/data/mla", failed=(Obstacle(source="/data/raw/a.nii", reason="truncated"),)
    ... )
    >>> print(report)
    /data/mla
      0 converted, 0 complete already, 1 failed
      0.0 MB in 0.0 MB, 0.00 s
      failed: /data/raw/a.nii: truncated
    """

    target: str
    """Absolute path of the folder of the targets."""
    converted: tuple[WriteReport, ...] = ()
    """The files that were written."""
    skipped: tuple[str, ...] = ()
    """Targets that were complete already."""
    failed: tuple[Obstacle, ...] = ()
    """Sources that could not be converted."""
    left_out: tuple[Obstacle, ...] = ()
    """Links that were not followed."""
    seconds: float = 0.0
    """Wall time."""

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded arrays that were written."""
        return sum(report.nbytes for report in self.converted)

    @property
    def file_bytes(self) -> int:
        """Bytes of the files that were written."""
        return sum(report.file_bytes for report in self.converted)

    def summary(self) -> str:
        """Return counts, sizes and time, without what failed."""
        counts = [
            f"{len(self.converted)} converted",
            f"{len(self.skipped)} complete already",
            f"{len(self.failed)} failed",
        ]
        if self.left_out:
            counts.append(f"{len(self.left_out)} links not followed")
        return (
            f"{self.target}\n  {', '.join(counts)}\n  {self.nbytes / 1e6:.1f} MB in "
            f"{self.file_bytes / 1e6:.1f} MB, {self.seconds:.2f} s"
        )

    def __str__(self) -> str:
        """Return the summary, and the first 20 of what failed."""
        lines = [f"  failed: {each.source}: {each.reason}" for each in self.failed[:_MOST_SHOWN]]
        if len(self.failed) > _MOST_SHOWN:
            lines.append(f"  and {len(self.failed) - _MOST_SHOWN} more")
        return "\n".join([self.summary(), *lines])


def convert_folder(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    layout: Preset | None = None,
    caches: CacheSizes | ClusterCaches | Mapping[str, int | str] | str | None = None,
    codec: str | Codec = "auto",
    mode: Literal["w-", "w"] = "w-",
    source_format: str | None = None,
    dataset: str | None = None,
    resume: bool = True,
    verify: bool = False,
    memory_limit: int | str | None = None,
    jobs: int | None = None,
    progress: Shown = None,
) -> CollectionReport:
    """Convert every image below a folder to an `.mla` file of the same relative name.

    A file of a format that `convert` reads is one image; so is a Zarr folder, a folder with the
    slices of a DICOM series, and a folder with numbered TIFF files of one plane each, which gives
    its name to the target. Names that start with a dot are passed over; links are followed when
    they lead to a file inside the folder.

    Small files are converted several at a time, in threads or as tasks of the active distributed
    client; files of 64 MiB and more one after another, each by all threads or workers. Damaged
    files are reported at the end and do not stop the others. Every target records its source, so
    that starting again goes on where an earlier run ended.

    Parameters
    ----------
    src, dst
        Local folders; `dst` is made when it is missing, and not searched when it is inside `src`.
    patch, chunks, blocks, layout, caches, codec, dataset, verify
        As in `convert`, for every image; caches are looked at once. With `verify`, targets that
        were complete already are compared as well.
    mode
        ``"w-"`` refuses existing targets, but for what `resume` says; ``"w"`` replaces them.
    source_format
        Converts images of this format only.
    resume
        Targets that are complete conversions of what their source is now are left as they are;
        targets of an earlier state of their source, or with other parameters, are made again.
        Large files go on with the parts that an earlier run left.
    memory_limit
        Memory that the parts under way in one process may take, bytes or a text such as ``"2GB"``.
    jobs
        Small files at a time; None is one per thread, in this process at most 8.
    progress
        Called with the bytes of the sources that are done, and of all sources; True, False and
        None as in `mlarray_xr.to_mla`.

    Returns
    -------
    CollectionReport
        What was converted, what was complete already, what failed and why.

    Raises
    ------
    ConversionError
        At once, when two images would become the same file.
    FileNotFoundError, NotADirectoryError
        When there is no such folder.

    Examples
    --------
    >>> import numpy as np
    >>> for name in ("raw", "raw/sub-01"):
    ...     os.mkdir(name)
    ...     np.save(f"{name}/scan.npy", np.zeros((8, 16, 16), "int16"))
    >>> report = convert_folder("raw", "mla")
    >>> [os.path.relpath(each.path, "mla") for each in report.converted]
    ['scan.mla', 'sub-01/scan.mla']
    >>> len(convert_folder("raw", "mla").skipped)
    2
    """
    if mode not in ("w-", "w"):
        raise ValueError(f"mode={mode!r} is not 'w-' (refuse existing files) or 'w' (replace them)")
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs={jobs}: at least 1 is needed, or None to use every thread")
    began = time.perf_counter()
    source, target = (os.path.abspath(os.path.expanduser(os.fsdecode(p))) for p in (src, dst))
    folder = find_cases(source, target, source_format=source_format)
    recipe = Recipe(
        patch=patch,
        chunks=chunks,
        blocks=blocks,
        layout=layout,
        caches=caches_for_write(caches),
        codec=codec,
        dataset=dataset,
        verify=verify,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
    )
    with shown_progress(progress, unit="B") as tell:
        results = _convert_all(
            folder.cases, recipe, overwrite=mode == "w", resume=resume, jobs=jobs, progress=tell
        )
    return CollectionReport(
        target=target,
        converted=tuple(each for each in results if isinstance(each, WriteReport)),
        skipped=tuple(each for each in results if isinstance(each, str)),
        failed=(*folder.failed, *(each for each in results if isinstance(each, Obstacle))),
        left_out=folder.left_out,
        seconds=time.perf_counter() - began,
    )


def _convert_all(
    cases: Sequence[Case],
    recipe: Recipe,
    *,
    overwrite: bool,
    resume: bool,
    jobs: int | None,
    progress: Progress | None,
) -> list[WriteReport | Obstacle | str]:
    """Convert cases, small ones side by side, and return what became of each."""
    jobs, share = _plan_jobs(recipe.memory_limit, jobs)
    results: dict[int, WriteReport | Obstacle | str] = {}
    small = [number for number, case in enumerate(cases) if case.nbytes < _LARGE_BYTES]
    total, done = sum(case.nbytes for case in cases), 0
    attempt = partial(_attempted, overwrite=overwrite, resume=resume)
    one = partial(attempt, recipe=replace(recipe, memory_limit=share), keeps=False)
    tasks = run_tasks(one, [cases[number] for number in small], jobs=jobs)
    with contextlib.closing(tasks) as finished:
        for position, future in finished:
            case = cases[small[position]]
            results[small[position]] = _outcome(future, case)
            done += case.nbytes
            if progress is not None:
                progress(done, total)
    for number, case in enumerate(cases):
        if number not in results:
            shown = share_of(progress, begin=done, length=case.nbytes, overall=total)
            results[number] = attempt(case, recipe=recipe, keeps=resume, progress=shown)
            done += case.nbytes
            if progress is not None:
                progress(done, total)
    return [results[number] for number in range(len(cases))]


def _plan_jobs(memory_limit: int | None, jobs: int | None) -> tuple[int | None, int | None]:
    """Return how many small files are converted at a time, and the memory of each."""
    if has_client():
        return jobs, None if memory_limit is None else memory_limit // threads_per_process()
    if jobs is None:
        jobs = min(_MOST_JOBS, available_threads())
        if memory_limit is not None:
            jobs = min(jobs, max(1, memory_limit // _JOB_BYTES))
    return jobs, None if memory_limit is None else memory_limit // jobs


def _attempted(
    case: Case,
    *,
    recipe: Recipe,
    overwrite: bool,
    resume: bool,
    keeps: bool,
    progress: Progress | None = None,
) -> WriteReport | Obstacle | str:
    """Convert one case; return its report, its target when that was complete, or what failed."""
    try:
        step, origin = recipe.plan(case, overwrite=overwrite, resume=resume)
        if step == "skip":
            if recipe.verify:
                recipe.check(case)
            return case.target
        os.makedirs(os.path.dirname(case.target), exist_ok=True)
        return recipe.run(
            case,
            overwrite=step == "replace",
            origin=origin,
            keeps=keeps,
            restarts=True,
            progress=progress,
        )
    except Exception as error:
        # Whatever it is, the other cases must not suffer; the report names it.
        return _obstacle(case, error)


def _outcome(
    future: Future[WriteReport | Obstacle | str], case: Case
) -> WriteReport | Obstacle | str:
    """Return the result of a task; one that was lost with its worker is an obstacle."""
    try:
        return future.result()
    except Exception as error:
        return _obstacle(case, error)


def _obstacle(case: Case, error: Exception) -> Obstacle:
    """Describe an error, without repeating the name of the source."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    if not isinstance(error, MlaError | OSError):
        text = f"{type(error).__name__}: {text}"
    return Obstacle(source=case.source, reason=text.removeprefix(f"{case.source}: "))
