"""The graph that makes all overviews of a file: one task for each part that has to be read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.dask import warn_of_many_tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlarray_xr.overview_write import OverviewWrite, PartTask
    from mlarray_xr.storage.job import Finished, PartRecord

__all__ = ["computed", "delayed_after", "delayed_overviews"]

# Parts of one known value cost next to nothing: one task does many of them.
_CONSTANT_PER_TASK = 64
_RECORDS_PER_TASK = 64


def delayed_overviews(
    write: OverviewWrite,
    tasks: Sequence[PartTask],
    *,
    finish: Callable[[tuple[Finished, ...]], Any],
) -> Any:
    """Return a Delayed that writes all levels, and whose value a function makes of what it did.

    No voxel leaves the worker that reads it; what travels are records of a few bytes.

    Parameters
    ----------
    write
        What is written.
    tasks
        What each part needs.
    finish
        What is made of the result.
    """
    from dask.delayed import delayed

    constant = [task for task in tasks if task.only_value is not None]
    batches = [[task] for task in tasks if task.only_value is None]
    batches += _batches(constant, _CONSTANT_PER_TASK)
    warn_of_many_tasks(len(batches), fix="larger chunks of the file")
    # One node of the graph, which every worker gets once.
    shared = delayed(write.bare(), pure=False)
    written = delayed(_write_parts, pure=False)
    records = [written(shared, batch) for batch in batches]
    while len(records) > _RECORDS_PER_TASK:
        joined = delayed(_join, pure=False)
        records = [joined(group) for group in _batches(records, _RECORDS_PER_TASK)]
    return delayed(_finish, pure=False)(write, records, finish)


def delayed_after(function: Callable[[Any], Any], before: Any) -> Any:
    """Return a Delayed of what a function makes of the value of another Delayed."""
    from dask.delayed import delayed

    return delayed(function, pure=False)(before)


def computed(value: Any) -> Any:
    """Return the value of a Delayed."""
    return value.compute()


def _batches(items: list[Any], count: int) -> list[list[Any]]:
    """Return lists of at most so many items."""
    return [items[start : start + count] for start in range(0, len(items), count)]


def _write_parts(write: OverviewWrite, tasks: list[PartTask]) -> list[tuple[PartRecord, ...]]:
    """Write some parts of every level."""
    return [write.write_part(task) for task in tasks]


def _join(records: list[list[Any]]) -> list[Any]:
    """Join lists of records into one."""
    return [record for each in records for record in each]


def _finish(
    write: OverviewWrite,
    records: list[list[tuple[PartRecord, ...]]],
    finish: Callable[[tuple[Finished, ...]], Any],
) -> Any:
    """Publish all levels: exactly one task."""
    return finish(write.finish(_join(records)))
