"""Dask: reductions and loading of a whole volume on the threaded scheduler."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import mlarray
import numpy as np
import xarray as xr

from benchmarks.contenders import ours
from benchmarks.machine import cpu_count
from benchmarks.report import Goal, Row, Skip, Table, timed_row
from benchmarks.timing import time_paired

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.data import Volume, Workplace
    from benchmarks.size import Size

__all__ = ["run"]

_NAME = "dask"
_OURS = "ours, chunks={}"
_REFERENCE = "MLArray through dask.array.from_array"
_VARIABLE = "image"

Operation = Literal["max", "mean", "load"]

_REFERENCE_GOALS: dict[Operation, float] = {"max": 1.7, "mean": 1.3, "load": 1.4}
_ZARR_GOAL = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lazy:
    """A lazy array and what a report calls it."""

    name: str
    array: da.Array

    def compute(self, operation: Operation) -> Any:
        """Reduce or load it, on whatever scheduler is set."""
        return (self.array if operation == "load" else getattr(self.array, operation)()).compute()


def run(workplace: Workplace) -> list[Table]:
    """Return the comparison and the scaling curve."""
    volume = workplace.volume("int16")
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(scheduler="threads", num_workers=cpu_count()))
        opened = stack.enter_context(ours.open_dataset(volume.path, chunks={}))
        mine = _Lazy(name=_OURS, array=opened[_VARIABLE].data)
        source = mlarray.MLArray.open(volume.path)
        theirs = _Lazy(
            name=_REFERENCE,
            array=da.from_array(source, chunks=mine.array.chunks, name=False),
        )
        for lazy in (mine, theirs):
            _check(lazy, volume.values)
        # Zarr last: its threads and its memory slow whoever comes after it.
        return [
            _comparison(mine, theirs, workplace.size),
            _scaling(mine, theirs, workplace.size),
            _stores(mine, volume, workplace.size),
        ]


def _zarr_stores(volume: Volume, size: Size, *, part: tuple[int, ...]) -> list[_Lazy]:
    """Write and open stores as a Zarr user would lay them out."""
    from zarr.codecs import BloscCodec, BloscShuffle

    codec = BloscCodec(
        typesize=volume.values.itemsize, cname="lz4hc", clevel=8, shuffle=BloscShuffle.shuffle
    )
    dims = ("z", "y", "x")
    labelled = xr.Dataset({_VARIABLE: (dims, volume.values)})
    found = []
    for edge in size.store_edges:
        path = volume.folder / f"dask-{edge}.zarr"
        encoding = {_VARIABLE: {"chunks": (edge,) * len(dims), "compressors": [codec]}}
        labelled.to_zarr(path, encoding=encoding, zarr_format=3, consolidated=False)
        tried: dict[str, dict[str, int]] = {"{}": {}}
        if edge == size.store_edges[0]:
            sizes = {d: max(edge, round(p / edge) * edge) for d, p in zip(dims, part, strict=True)}
            tried["like ours"] = sizes
        for label, chunks in tried.items():
            array = xr.open_zarr(path, chunks=chunks, consolidated=False)[_VARIABLE].data
            found.append(_Lazy(name=f"zarr, {edge}-cubed, chunks={label}", array=array))
    return found


def _check(lazy: _Lazy, values: np.ndarray[Any, Any]) -> None:
    """Compare all three results with the true values; `RuntimeError` when one differs."""
    is_right = (
        np.array_equal(lazy.compute("load"), values)
        and lazy.compute("max") == values.max()
        and np.isclose(lazy.compute("mean"), values.mean(dtype=np.float64))
    )
    if not is_right:
        msg = f"{lazy.name} gives wrong results"
        raise RuntimeError(msg)


def _comparison(mine: _Lazy, theirs: _Lazy, size: Size) -> Table:
    """Compare ours and the reference with the same parts."""
    rows = []
    for operation, bound in _REFERENCE_GOALS.items():
        goal = Goal(of="ratio", relation=">=", bound=bound)
        rows += _compared(mine, [theirs], operation, size, goals={theirs.name: goal})
    return Table(
        name=_NAME,
        title="A whole volume through Dask",
        about=(
            f"int16, shape {mine.array.shape}, {cpu_count()} Dask threads, for both the same "
            f"{mine.array.npartitions} parts of {mine.array.chunksize}."
        ),
        rows=tuple(rows),
    )


def _stores(mine: _Lazy, volume: Volume, size: Size) -> Table:
    """Compare ours and Zarr stores: the fastest of them carries the goal."""
    try:
        part = tuple(map(int, mine.array.chunksize))
        stores = _zarr_stores(volume, size, part=part)
        skips: tuple[Skip, ...] = ()
    except ImportError as error:
        stores, skips = [], (Skip(contender="zarr", reason=str(error)),)
    for lazy in stores:
        _check(lazy, volume.values)
    rows = []
    for operation in _REFERENCE_GOALS if stores else ():
        found = _compared(mine, stores, operation, size, goals={})
        fastest = min(found[1:], key=lambda row: row.median)
        goal = Goal(of="ratio", relation=">=", bound=_ZARR_GOAL)
        rows += [replace(row, goal=goal) if row is fastest else row for row in found]
    return Table(
        name=_NAME,
        title="A whole volume through Dask, Zarr stores",
        about=(
            "The same volume as Zarr stores of the same codec, through `xarray.open_zarr`. The "
            "goal is held against the fastest of them."
        ),
        rows=tuple(rows),
        skips=skips,
    )


def _compared(
    mine: _Lazy, others: list[_Lazy], operation: Operation, size: Size, *, goals: dict[str, Goal]
) -> list[Row]:
    """Time one operation: ours first, then the others compared with it."""
    jobs = {lazy.name: _job(lazy, operation) for lazy in (mine, *others)}
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    rows = [timed_row(operation, mine.name, found[mine.name])]
    rows += [
        timed_row(
            operation,
            lazy.name,
            found[lazy.name],
            mine=found[mine.name],
            goal=goals.get(lazy.name),
        )
        for lazy in others
    ]
    return rows


def _scaling(mine: _Lazy, theirs: _Lazy, size: Size) -> Table:
    """Repeat the maximum with 1 to all CPUs."""
    rows = []
    for workers in range(1, cpu_count() + 1):
        with dask.config.set(num_workers=workers):
            jobs = {lazy.name: _job(lazy, "max") for lazy in (mine, theirs)}
            found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
        case = f"max, {workers} workers"
        rows.append(timed_row(case, mine.name, found[mine.name]))
        rows.append(timed_row(case, theirs.name, found[theirs.name], mine=found[mine.name]))
    return Table(
        name=_NAME,
        title="Scaling over Dask threads",
        about="The maximum of the same volume with 1 worker thread up to one per CPU.",
        rows=tuple(rows),
    )


def _job(lazy: _Lazy, operation: Operation) -> Callable[[int], object]:
    """Return what computes one operation."""
    return lambda repeat: lazy.compute(operation)  # noqa: ARG005 - every repeat does the same
