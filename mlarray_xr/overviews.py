"""build_overviews: coarser levels of a file, written beside it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mlarray_xr.array import MlaArray
from mlarray_xr.dask import has_client
from mlarray_xr.dask_overviews import computed, delayed_after, delayed_overviews
from mlarray_xr.dask_write import watched
from mlarray_xr.errors import ConversionError, FormatError, LayoutError
from mlarray_xr.file_write import prepare_file
from mlarray_xr.overview_metadata import level_metadata, reducible_axes, spacing_along
from mlarray_xr.overview_record import Method, OverviewRecord, content_identity
from mlarray_xr.overview_siblings import MOST_LEVELS, level_path, names_level
from mlarray_xr.overview_write import OverviewWrite
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.codec_choice import choose_codec_unseen
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_request import LayoutRequest
from mlarray_xr.planning.overview_levels import level_shape, plan_levels
from mlarray_xr.planning.overview_parts import constant_pieces, plan_overview_parts
from mlarray_xr.planning.reduction import check_reducible
from mlarray_xr.prepared import parts_in_flight
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.address import is_url, local_path
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.source import source_of
from mlarray_xr.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.overview_write import PartTask
    from mlarray_xr.planning.overview_parts import OverviewParts
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.progress import Shown
    from mlarray_xr.report import WriteReport
    from mlarray_xr.storage.job import Finished, Progress

__all__ = ["build_overviews", "check_level_targets", "method_for"]

# 64 TiB; a damaged header may claim more, and what is planned of each part is in memory.
_MOST_PARTS = 1 << 18


def build_overviews(
    path: str | os.PathLike[str],
    *,
    levels: int | Literal["auto"] = "auto",
    method: Literal["auto", "mean", "mode"] = "auto",
    mode: Literal["w-", "w"] = "w-",
    compute: bool = True,
    progress: Shown = None,
) -> Any:
    """Write coarser levels of a file beside it, in one parallel pass over it.

    Level k of ``ct.mla`` is ``ct.level<k>.mla``, an `.mla` file like any other, with the layout and
    the codec of the file as far as they fit, and with true geometry: its voxels lie in the middle
    of those that they stand for. From each level to the next, spatial axes are halved that are not
    much coarser than the finest one. The file is read once, part by part, on the cluster of the
    active distributed client or by the threads of this process; parts that hold one value by the
    statistics of their chunks are not read at all. Levels appear complete or not at all, the finest
    first. They say which content they were made from: those of a file that was replaced or edited
    since are left out by readers.

    Parameters
    ----------
    path
        A local `.mla` file.
    levels
        How many, fewer when all spatial axes are one voxel long before. ``"auto"``: until no
        spatial axis is longer than 256 voxels, none of an array that is small.
    method
        ``"mean"`` of the voxels, NaN passed over, integers rounded half to even; ``"mode"``, the
        most frequent label, of equally frequent ones not zero and then the smallest. ``"auto"`` is
        the mode of segmentations and booleans, the mean of everything else.
    mode
        ``"w-"`` refuses levels that are there, ``"w"`` replaces them and removes those beyond the
        new ones. A file of such a name that does not say that it is this level is never touched.
    compute
        False returns a Delayed; the targets are claimed at once.
    progress
        Called with the number of chunks of the first level done and of all of them; True, False and
        None as in `mlarray_xr.to_mla`.

    Returns
    -------
    tuple of WriteReport, or dask.delayed.Delayed
        One for each level, finest first; with ``compute=False`` a Delayed of that.

    Raises
    ------
    FileExistsError
        When a level is there and `mode` is ``"w-"``, or a file that is none has its name.
    TargetBusy
        When another writer is at work on a level.
    ConversionError
        When there is no mean or mode of the type, the file is itself a level, or is not local.
    LayoutError
        When the file claims to be larger than 64 TiB.
    SourceChanged
        When the file is replaced or edited meanwhile.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.overviews import build_overviews
    >>> _ = mlarray_xr.to_mla(np.arange(600.0).reshape(2, 300), "wide.mla")
    >>> [report.shape for report in build_overviews("wide.mla")]
    [(1, 150)]
    """
    began = time.time()
    if method not in ("auto", *get_args(Method)) or mode not in ("w-", "w"):
        msg = f"method={method!r}, mode={mode!r}: 'auto', 'mean' or 'mode', and 'w-' or 'w'"
        raise ValueError(msg)
    array = _base(path)
    chosen = method_for(array.metadata, array.dtype) if method == "auto" else method
    check_reducible(array.dtype, chosen)
    factors = _factors(array, levels)
    check_level_targets(str(array.path), overwrite=mode == "w")
    if not factors:
        _remove_beyond(array, 0, mode=mode)
        return _nothing(compute=compute)
    write, prepared = _prepared(array, factors, chosen, mode=mode, compute=compute, began=began)
    with contextlib.ExitStack() as unfinished:
        for each in prepared:
            unfinished.enter_context(each.cleaned_up())
        statistics = array.chunk_statistics()
        constants = statistics and constant_pieces(write.parts, statistics, chunks=array.chunks)
        tasks = write.tasks(constants or None)
        finish = partial(
            _reports, finishers=tuple(p.finisher() for p in prepared), array=array, mode=mode
        )
        if not compute:
            return delayed_overviews(write, tasks, finish=finish)
        tell = unfinished.enter_context(shown_progress(progress, unit="chunk"))
        if has_client():
            unfinished.enter_context(watched(prepared[0].job, tell))
            return computed(delayed_overviews(write, tasks, finish=finish))
        return finish(_run_here(write, tasks, tell))


def method_for(metadata: Metadata, dtype: np.dtype[Any]) -> Method:
    """Return how overviews are made: by the mode of labels, by the mean of all else."""
    return "mode" if metadata.is_seg or dtype.kind == "b" else "mean"


def check_level_targets(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Refuse to write levels where files are that must not be replaced.

    Raises
    ------
    FileExistsError
        When there are levels that are not to be overwritten; when a file has the name of a level
        and does not say that it is one.
    """
    for level in range(1, MOST_LEVELS + 1):
        found = level_path(path, level)
        if not os.path.lexists(found):
            continue
        if not overwrite:
            msg = (
                f"{found}: the file exists. To fix: (1) mode='w' (mla overviews --overwrite) "
                "replaces levels; (2) remove it"
            )
            raise FileExistsError(msg)
        if not _is_level(found, level):
            msg = (
                f"{found}: it does not say that it is level {level} of anything, and is not "
                "replaced. To fix: move it away"
            )
            raise FileExistsError(msg)


def _base(path: str | os.PathLike[str]) -> MlaArray:
    """Open the file of which levels are made.

    Raises
    ------
    ConversionError
        When it is not local, or is a level itself.
    """
    name = local_path(os.fsdecode(path))
    if is_url(name):
        msg = (
            f"{name.partition('?')[0]}: overviews are made of local files. To fix: make them "
            "before the file is uploaded, and upload the files of the levels beside it"
        )
        raise ConversionError(msg)
    array = MlaArray(name)
    record = OverviewRecord.found_in(array.metadata)
    if record is not None and names_level(name):
        msg = f"{name}: it is level {record.level} of another file. To fix: name that file"
        raise ConversionError(msg)
    return array


def _factors(array: MlaArray, levels: int | Literal["auto"]) -> tuple[tuple[int, ...], ...]:
    """Decide the factors of the levels of a file."""
    spatial = reducible_axes(array.metadata, array.ndim)
    if not spatial and levels != "auto" and levels:
        raise ConversionError(
            f"{array.path}: levels={levels}, but none of its axes is spatial. To fix: name them "
            "z, y and x when the file is written"
        )
    spacing = spacing_along(array.metadata, array.ndim)
    planned = plan_levels(
        array.shape, spacing=[spacing[axis] for axis in spatial], spatial=spatial, levels=levels
    )
    return () if 0 in array.shape else planned


def _prepared(
    array: MlaArray,
    factors: tuple[tuple[int, ...], ...],
    method: Method,
    *,
    mode: Literal["w-", "w"],
    compute: bool,
    began: float,
) -> tuple[OverviewWrite, list[PreparedWrite]]:
    """Plan the pass, and claim the files of all levels."""
    parts = plan_overview_parts(
        array.shape, chunks=array.chunks, itemsize=array.dtype.itemsize, factors=factors
    )
    if len(parts) > _MOST_PARTS:
        msg = (
            f"{array.path}: overviews of {array.shape} would be made in {len(parts)} parts, more "
            f"than {_MOST_PARTS}. To fix: make them of regions, which to_mla writes to own files"
        )
        raise LayoutError(msg)
    codec = _codec_like(array)
    identity = content_identity(source_of(array.path))
    prepared: list[PreparedWrite] = []
    try:
        for level, of_level in enumerate(factors, 1):
            record = OverviewRecord(level=level, factors=of_level, method=method, of=identity)
            one = prepare_file(
                _subject(array, record),
                level_path(str(array.path), level),
                request=LayoutRequest(layout=_layout(array, parts, level)),
                codec=codec,
                lossy=False,
                prefer="balanced",
                overwrite=mode == "w",
                metadata=None,
                block_index=False,
                align_chunks=True,
                compute=True,
                resume=False,
                memory_limit=None,
            )
            uses_tasks = not compute or has_client()
            in_flight = parts_in_flight(uses_tasks=uses_tasks)
            cut = parts.of_level(level, in_flight=in_flight)
            prepared.append(
                replace(
                    one,
                    job=replace(one.job, parts=cut),
                    missing=tuple(range(len(cut))),
                    uses_tasks=uses_tasks,
                    began=began,
                )
            )
    except BaseException:
        for one in prepared:
            one.give_up()
        raise
    jobs = tuple(one.job for one in prepared)
    return OverviewWrite(array=array, parts=parts, method=method, jobs=jobs), prepared


def _subject(array: MlaArray, record: OverviewRecord) -> Subject:
    """Return what stands for a level before it has values."""
    shape = level_shape(array.shape, record.factors)
    return Subject(
        values=np.broadcast_to(np.zeros((), array.dtype), shape),
        metadata=level_metadata(array.metadata, shape=array.shape, record=record),
    )


def _layout(array: MlaArray, parts: OverviewParts, level: int) -> Layout:
    """Return the layout of a level: that of the file, as far as it fits the parts."""
    chunks = parts.chunks[level - 1]
    blocks = tuple(min(pair) for pair in zip(array.blocks, chunks, strict=True))
    return Layout(chunks=chunks, blocks=blocks)


def _codec_like(array: MlaArray) -> Codec:
    """Return the codec of a file, without loss; one that suits most where it is not made here."""
    info = array.info()
    filters = [name for name in info["filters"] if name != "trunc_prec"] or ["none"]
    try:
        return Codec(name=info["codec"], level=info["level"], filter=filters[-1])
    except LayoutError:
        itemsize, reason = array.dtype.itemsize, "the file has a codec that is only read"
        return choose_codec_unseen(itemsize, prefer="balanced", reason=reason).codec


def _run_here(
    write: OverviewWrite, tasks: Sequence[PartTask], tell: Progress | None
) -> tuple[Finished, ...]:
    """Write all levels with the threads of this process."""
    job = write.jobs[0]
    boxes, n_done, records = job.parts.boxes(), 0, []
    running = run_ordered([partial(write.write_part, task) for task in tasks])
    with contextlib.closing(running) as written:
        for record in written:
            records.append(record)
            n_done += len(job.plan.numbers_in(boxes[record[0].part]))
            if tell is not None:
                tell(n_done, job.n_chunks)
    return write.finish(records)


def _reports(
    done: tuple[Finished, ...],
    *,
    finishers: tuple[Any, ...],
    array: MlaArray,
    mode: Literal["w-", "w"],
) -> tuple[WriteReport, ...]:
    """Return the reports of all levels, when those that are too many are gone."""
    _remove_beyond(array, len(done), mode=mode)
    return tuple(finish(one) for finish, one in zip(finishers, done, strict=True))


def _remove_beyond(array: MlaArray, level: int, *, mode: Literal["w-", "w"]) -> None:
    """Remove the levels after one, if levels are replaced: the files that say they are levels."""
    for beyond in range(level + 1, MOST_LEVELS + 1):
        found = level_path(str(array.path), beyond)
        if mode == "w" and _is_level(found, beyond):
            os.unlink(found)


def _is_level(path: str, level: int) -> bool:
    """Tell whether a file says that it is this level of something."""
    try:
        record = OverviewRecord.found_in(MlaArray(path).metadata)
    except (FormatError, OSError):
        return False
    return record is not None and record.level == level


def _nothing(*, compute: bool) -> Any:
    """Return the reports of no level."""
    return () if compute else delayed_after(tuple, [])
