"""Previewing: how long a notebook takes to show what is in a large file, and with what memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.preview_roads import OURS, ROADS
from benchmarks.report import Goal, Row, Skip, Table, timed_row
from benchmarks.timing import time_paired
from mlarray_xr import create, open_mla, plan_layout
from mlarray_xr.overviews import build_overviews
from mlarray_xr.storage.slab_cache import nothing_kept

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from benchmarks.data import Workplace

__all__ = ["run"]

_WITHOUT, _WITH = "without overviews", "with overviews"
_TIME = Goal(of="median", relation="<=", bound=150)
_MEMORY = Goal(of="median", relation="<=", bound=30)
_MOST_REPEATS = 5
_SEED = 6


def run(workplace: Workplace) -> list[Table]:
    """Return one table: times and memory with and without overviews, ours and by hand."""
    size = workplace.size
    paths = _files(workplace.folder / "previewing", size.sparse_shape)
    arrays = {case: open_mla(path) for case, path in paths.items()}
    jobs = {
        (case, road): partial(_look, ROADS[road], array)
        for case, array in arrays.items()
        for road in ROADS
        if case == _WITHOUT or road == OURS
    }
    with nothing_kept():
        taken = time_paired(
            {f"{case}, {road}": job for (case, road), job in jobs.items()},
            repeats=min(size.repeats, _MOST_REPEATS),
            patience_s=size.patience_s,
        )
    mine = taken[f"{_WITHOUT}, {OURS}"]
    rows = [
        timed_row(
            f"time, {case}",
            road,
            taken[f"{case}, {road}"],
            mine=None if road == OURS else mine,
            goal=_TIME if road == OURS else None,
        )
        for case, road in jobs
    ]
    skips: list[Skip] = []
    if sys.platform.startswith("linux"):
        rows += [_memory(case, road, paths[case]) for case, road in jobs]
    else:
        skips.append(Skip(contender="memory", reason="is read from /proc"))
    gigabytes = np.prod(size.sparse_shape, dtype=float) * 2 / 1e9
    return [
        Table(
            name="previewing",
            title="What a notebook shows of a large file",
            about=(
                f"int16, shape {size.sparse_shape}, {gigabytes:.2g} GB decoded. The chunks of the "
                "three central planes hold tissue and noise, all others zeros, which are not "
                "stored. Ours shows three planes of 256 pixels and the facts: from samples of the "
                "planes, or from overviews where there are some. By hand, the three planes are "
                "read whole. Memory is the peak of a new process over what it had after the same "
                "with a small file; pages of the mapped file count."
            ),
            rows=tuple(rows),
            skips=tuple(skips),
        )
    ]


def _look(
    road: Callable[[xr.DataArray], object],
    array: xr.DataArray,
    repeat: int,  # noqa: ARG001
) -> None:
    """Look at an array; every repeat is alike."""
    road(array)


def _files(folder: Path, shape: tuple[int, ...]) -> dict[str, Path]:
    """Make a file twice: alone, and with overviews beside it."""
    paths = {_WITHOUT: folder / "alone" / "volume.mla", _WITH: folder / "levels" / "volume.mla"}
    for path in paths.values():
        path.parent.mkdir(parents=True)
    _write(paths[_WITHOUT], shape)
    os.link(paths[_WITHOUT], paths[_WITH])
    build_overviews(paths[_WITH])
    return paths


def _write(path: Path, shape: tuple[int, ...]) -> None:
    """Write a file of zeros with a ball in noise wherever a central plane needs it."""
    chunks = plan_layout(shape, "int16", patch="default").chunks
    noise = np.random.default_rng(_SEED).normal(0, 20, chunks).astype(np.int16)
    middle = tuple(n // 2 // c for n, c in zip(shape, chunks, strict=True))
    grid = (range(-(-n // c)) for n, c in zip(shape, chunks, strict=True))
    with create(path, shape=shape, dtype="int16", codec="lz4-5-shuffle") as writer:
        for position in itertools.product(*grid):
            if not any(i == m for i, m in zip(position, middle, strict=True)):
                continue
            box = tuple(
                slice(i * c, min(i * c + c, n))
                for i, c, n in zip(position, chunks, shape, strict=True)
            )
            squares = [
                np.linspace(2 * part.start / n - 1, 2 * part.stop / n - 1, part.stop - part.start)
                ** 2
                for part, n in zip(box, shape, strict=True)
            ]
            inside = sum(np.ix_(*squares)) < 0.8
            values = inside * np.int16(1000)
            writer[box] = values + noise[tuple(slice(0, n) for n in values.shape)]


def _memory(case: str, road: str, path: Path) -> Row:
    """Return the memory of a new process that looks at a file."""
    command = [sys.executable, "-m", "benchmarks.preview_probe", road, str(path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    added = int(done.stdout) / 1e6
    return Row(
        case=f"memory added, {case}",
        contender=road,
        unit="MB",
        median=added,
        best=added,
        goal=_MEMORY if road == OURS else None,
    )
