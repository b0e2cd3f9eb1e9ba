"""The write graph: a Dask array becomes segments on its workers, and one file at the end."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlarray_xr.dask import from_mla, scheduler_client
from mlarray_xr.planning.assignment import fit_dtype
from mlarray_xr.planning.region import plan_rim
from mlarray_xr.storage.job import WriteJob, part_of
from mlarray_xr.storage.multipart_job import MultipartJob
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.segments import parts_on_disk
from mlarray_xr.storage.trial import choose_codec_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import dask.array as da
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.job import Finished, Progress

__all__ = [
    "choose_on_worker",
    "compute_all",
    "delayed_mapping",
    "delayed_value",
    "folder_of_tasks",
    "merged_array",
    "threads_per_process",
    "watched",
    "workers_without",
    "write_graph",
]

_RECORDS_PER_TASK = 64
# Each of them may hold up to 5 MiB that wait to be joined.
_PORTIONS_PER_TASK = 16
_WATCH_SECONDS = 0.25
_ASK_SECONDS = 2.0


def write_graph(
    array: da.Array, job: WriteJob | MultipartJob, *, missing: Sequence[int]
) -> da.Array:
    """Return a 0-d array whose one element is made by writing the file.

    Every part is encoded in the task that computes it, so no voxel leaves its worker; what travels
    are records of a few bytes, gathered in a tree. The last task joins the segments. Of an object
    of a store small parts travel as well, as far as they are joined to pieces it takes.

    Parameters
    ----------
    array
        Of the plan's shape and dtype; rechunked to the job's parts.
    job
        What to write.
    missing
        The parts to compute, by number: all but those that an earlier write left.
    """
    import dask.array as da

    extents = job.parts.extents
    aligned = array if array.chunks == extents else array.rechunk(extents)
    # Metadata may be megabytes; they and what the layout is for only the last task needs.
    bare = replace(job, metadata=b"", plan=_bare(job.plan))
    records = da.map_blocks(
        _write_block,
        aligned,
        job=bare,
        dtype=object,
        chunks=tuple((1,) * n for n in job.parts.grid),
        meta=np.empty((0,) * array.ndim, object),
    )
    if len(missing) < records.npartitions:  # an empty array has a block, and no parts
        records = _only(records, missing, grid=job.parts.grid)
    graph: da.Array = da.reduction(
        records,
        chunk=_keep,
        combine=partial(_join, ndim=records.ndim, job=bare),
        aggregate=partial(_finish, job=job),
        concatenate=False,
        split_every=_records_per_task(
            records.numblocks,
            most=_RECORDS_PER_TASK if isinstance(job, WriteJob) else _PORTIONS_PER_TASK,
        ),
        dtype=object,
        meta=np.empty((), object),
    )
    return graph


def _bare(plan: FramePlan) -> FramePlan:
    """Return a plan that encodes the same chunks, without what their layout is for."""
    return replace(plan, layout=replace(plan.layout, basis=None))


def _records_per_task(grid: tuple[int, ...], *, most: int) -> dict[int, int]:
    """Return along how many blocks of every axis a task of the tree joins records.

    Dask's own choice, the same number for every axis, joins 4 at a time when one of three is long.
    """
    counts, left = {}, most
    for n_left, axis in enumerate(sorted(range(len(grid)), key=grid.__getitem__), -len(grid)):
        # The equal share of the axes to come; Dask's tree ends when every axis shrinks.
        counts[axis] = min(grid[axis], max(2, round(left ** (-1 / n_left))))
        left //= counts[axis]
    return counts


def _only(records: da.Array, numbers: Sequence[int], *, grid: tuple[int, ...]) -> da.Array:
    """Return some blocks of an array, by C-order number, as a 1-D array."""
    import dask.array as da
    from dask.base import tokenize
    from dask.highlevelgraph import HighLevelGraph

    name = f"mla-parts-{tokenize(records.name, tuple(numbers))}"
    positions = zip(*np.unravel_index(np.asarray(numbers, np.int64), grid), strict=True)
    layer: dict[Any, Any] = {
        (name, i): (_flatten, (records.name, *map(int, position)))
        for i, position in enumerate(positions if grid else [()] * len(numbers))
    } or {(name, 0): (partial(_cell, [], ndim=1),)}
    graph = HighLevelGraph.from_collections(name, layer, dependencies=cast("Any", [records]))
    return da.Array(graph, name, chunks=((1,) * len(layer),), dtype=object)


def _write_block(
    block: NDArray[Any], job: WriteJob | MultipartJob, block_info: Any = None
) -> NDArray[np.object_]:
    """Write one part where it was computed; return its record as a block of one element."""
    where = block_info[0]
    part = job.parts.number_of(tuple(where["chunk-location"]))
    box = job.parts.placed(tuple((int(a), int(b)) for a, b in where["array-location"]))
    values, dtype = np.asarray(block), job.plan.dtype
    if values.dtype == dtype.newbyteorder("="):
        # Joined blocks of the other byte order have the machine's (NumPy 2.4's concatenate).
        values = values.astype(dtype, copy=False)
    return _cell([job.write_part(values, box, part=part)], ndim=block.ndim)


def _cell(value: object, *, ndim: int) -> NDArray[np.object_]:
    """Return an array of one element."""
    cell = np.empty((1,) * ndim, object)
    cell[(0,) * ndim] = value
    return cell


def _flatten(block: NDArray[np.object_]) -> NDArray[np.object_]:
    """Return a block of one element as a 1-D block."""
    return block.reshape(1)


# The names of the arguments are those that dask.array.reduction calls with.


def _keep(block: Any, axis: Any, keepdims: bool) -> Any:  # noqa: ARG001
    """Return a block as it is: the first step of the tree."""
    return block


def _join(
    blocks: Any,
    axis: Any,  # noqa: ARG001
    keepdims: bool,  # noqa: ARG001
    ndim: int,
    job: WriteJob | MultipartJob,
) -> NDArray[np.object_]:
    """Join lists of records into one."""
    records = _records(blocks)
    return _cell(job.join(records) if isinstance(job, MultipartJob) else records, ndim=ndim)


def _finish(
    blocks: Any,
    axis: Any,  # noqa: ARG001
    keepdims: bool,  # noqa: ARG001
    job: WriteJob | MultipartJob,
) -> NDArray[np.object_]:
    """Make the file of all parts: exactly one task."""
    done = np.empty((), object)
    done[()] = job.finish(_records(blocks))
    return done


def _records(blocks: Any) -> list[Any]:
    """Return the records in nested lists of blocks."""
    if isinstance(blocks, np.ndarray):
        return [record for records in blocks.ravel() for record in records]
    return [record for block in blocks for record in _records(block)]


def merged_array(array: da.Array, old: MlaArray, *, box: Box, outer: Box) -> da.Array:
    """Return an array that is new inside a box, and what a file has around it.

    Only what lies around is read of the file.

    Parameters
    ----------
    array
        The new values, of the box's shape.
    old
        The file.
    box, outer
        What is replaced, and what is returned.
    """
    import dask.array as da

    merged = array
    if array.dtype != old.dtype:
        empty = np.empty((0,) * old.ndim, old.dtype)
        fit = partial(fit_dtype, dtype=old.dtype)
        merged = da.map_blocks(fit, array, dtype=old.dtype, meta=empty)
    around = from_mla(old)
    for axis, before, after in plan_rim(box, outer):
        first, last = (
            [] if piece is None else [around[tuple(slice(*pair) for pair in piece)]]
            for piece in (before, after)
        )
        if first or last:
            merged = da.concatenate([*first, merged, *last], axis=axis)
    return merged


def compute_all(graphs: Sequence[da.Array]) -> list[Finished]:
    """Compute write graphs together, so that what they share is computed once."""
    from dask.base import compute

    if not graphs:
        return []
    return [done.item() for done in compute(*graphs)]


def choose_on_worker(array: da.Array, layout: Layout, *, prefer: Preference) -> CodecChoice:
    """Choose a codec on the middle of an array: a chunk of the array, and of the file at least.

    The middle is computed twice, once for the choice, but does not leave the workers.
    """
    import dask.array as da

    middle = tuple(
        slice(max(0, (n - extent) // 2), max(0, (n - extent) // 2) + extent)
        for n, extent in (
            (n, min(n, max(chunk, *along)))
            for n, chunk, along in zip(array.shape, layout.chunks, array.chunks, strict=True)
        )
    )
    sample = array[middle].rechunk(-1)
    chosen = da.map_blocks(
        _choose_block,
        sample,
        layout=layout,
        prefer=prefer,
        dtype=object,
        chunks=((1,),) * sample.ndim,
        meta=np.empty((0,) * sample.ndim, object),
    )
    choice: CodecChoice = chosen.compute().item()
    return choice


def _choose_block(block: NDArray[Any], layout: Layout, prefer: Preference) -> NDArray[np.object_]:
    """Choose a codec on one block; return the choice as a block of one element."""
    chunks = tuple(min(pair) for pair in zip(layout.chunks, block.shape, strict=True))
    blocks = tuple(min(pair) for pair in zip(layout.blocks, chunks, strict=True))
    values = np.asarray(block)
    choice = choose_codec_for(
        partial(part_of, values),
        shape=values.shape,
        dtype=values.dtype,
        layout=replace(layout, chunks=chunks, blocks=blocks),
        prefer=prefer,
    )
    return _cell(choice, ndim=block.ndim)


def delayed_value(graph: da.Array, finish: Callable[[Finished], Any]) -> Any:
    """Return a Delayed of what a function makes of a write graph's result.

    The graph is optimised first: wrapped as it is, P2P rechunking in it would be cancelled
    (distributed 2026.8).
    """
    from dask.delayed import delayed

    return delayed(_apply, pure=False)(finish, graph.to_delayed().item())


def delayed_mapping(values: dict[str, Any]) -> Any:
    """Return a Delayed of a mapping from a mapping of Delayed."""
    from dask.delayed import delayed

    return delayed(dict, pure=False)(list(values.items()))


def _apply(finish: Callable[[Finished], Any], done: NDArray[np.object_]) -> Any:
    """Apply a function to the one element of a 0-d array."""
    return finish(done.item())


def threads_per_process() -> int:
    """Return how many tasks one process may run at the same time; of local schedulers the most."""
    import dask.config

    client = scheduler_client()
    if client is not None:
        return max(client.nthreads().values(), default=1)
    return max(available_threads(), dask.config.get("num_workers", None) or 1)


def folder_of_tasks() -> str | None:
    """Return Dask's ``temporary-directory``; None where it is that of the system."""
    import dask.config

    folder: str | None = dask.config.get("temporary-directory", None)
    return folder


def workers_without(folder: str) -> list[str]:
    """Return the addresses of the workers of the active cluster that do not see a folder."""
    client = scheduler_client()
    if client is None or client.asynchronous:
        return []
    seen: dict[str, bool] = client.run(os.path.isdir, folder)
    return sorted(address for address, sees in seen.items() if not sees)


def _parts_stored(job: WriteJob | MultipartJob) -> set[int]:
    """Return the numbers of the parts that are on disk, or in the store."""
    if isinstance(job, WriteJob):
        return parts_on_disk(job.staging)
    with contextlib.suppress(OSError):  # the write itself will tell
        return job.parts_sent()
    return set()


@contextlib.contextmanager
def watched(job: WriteJob | MultipartJob, progress: Progress | None) -> Iterator[None]:
    """Tell a callback how many chunks are stored while the block runs, whoever writes them.

    Counting names in the staging folder works alike for threads, processes and clusters; of an
    object the store is asked.
    """
    if progress is None:
        yield
        return
    sizes = [len(job.plan.numbers_in(box)) for box in job.parts.boxes()]
    stopped = threading.Event()

    def watch() -> None:
        before = -1
        while not stopped.wait(_WATCH_SECONDS if isinstance(job, WriteJob) else _ASK_SECONDS):
            done = sum(sizes[part] for part in _parts_stored(job) if part < len(sizes))
            if done > before:  # names are gone as soon as the file is complete
                progress(done, job.n_chunks)
                before = done

    watcher = threading.Thread(target=watch, name="mla-progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stopped.set()
        watcher.join()
    progress(job.n_chunks, job.n_chunks)
