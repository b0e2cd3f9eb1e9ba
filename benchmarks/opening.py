"""Opening: how long it takes, how much is read, and that neither grows with the array."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np

from benchmarks.contenders import ours, reference
from benchmarks.report import Goal, Row, Skip, Table, timed_row
from benchmarks.timing import time_paired
from mlarray_xr import Metadata, MlaArray
from mlarray_xr.format.metadata_codec import encode_metadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.data import Workplace

__all__ = ["run"]

_NAME = "opening"
_PER_REPEAT = 20
_IO = Path("/proc/self/io")
_DATASET = Goal(of="median", relation="<=", bound=3)
_CUBE = Goal(of="median", relation="<=", bound=500)
_TASKS = Goal(of="median", relation="<=", bound=5000)
_READ = Goal(of="median", relation="<=", bound=64)
_MEMORY = Goal(of="median", relation="<=", bound=20)


def run(workplace: Workplace) -> list[Table]:
    """Return one table: times, bytes, memory, tasks."""
    path = workplace.volume("int16").path
    sparse = workplace.folder / "sparse.mla"
    _write_zeros(sparse, workplace.size.sparse_shape, np.dtype(np.int16))
    cube = workplace.folder / "cube.mla"
    _write_zeros(cube, workplace.size.cube_shape, np.dtype(np.uint8))
    rows = [*_times(path, workplace), *_cube_rows(cube, workplace)]
    skips: list[Skip] = []
    if _IO.is_file():
        rows += [*_bytes_read(path), *_memory_added(sparse)]
    else:
        skips.append(Skip(contender="bytes and memory", reason="counted on Linux only"))
    sizes = [
        f"{'x'.join(map(str, shape))} {name} ({math.prod(shape) * width / 1e9:.1f} GB)"
        for shape, name, width in (
            (workplace.size.sparse_shape, "int16", 2),
            (workplace.size.cube_shape, "uint8", 1),
        )
    ]
    table = Table(
        name=_NAME,
        title="Opening a file",
        about=(
            "Warm: modules are imported and the file has been opened before. Times are per "
            f"opening. The sparse file is {sizes[0]} of zeros, the cube {sizes[1]} of zeros. "
            "Bytes read are those of read calls; memory added is the growth of the resident set "
            "of a new process that has opened another file before."
        ),
        rows=tuple(rows),
        skips=tuple(skips),
    )
    return [table]


def _times(path: Path, workplace: Workplace) -> list[Row]:
    """Time the ways of opening."""
    size = workplace.size
    openers: dict[str, Callable[[], Any]] = {
        "MlaArray(path)": lambda: MlaArray(path),
        reference.NAME: lambda: mlarray.MLArray.open(path),
        "xarray.open_dataset": lambda: ours.open_dataset(path),
        "xarray.open_dataset, chunks={}": lambda: ours.open_dataset(path, chunks={}),
    }
    jobs = {name: _repeated(opener) for name, opener in openers.items()}
    samples = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    found = {name: s.divided(_PER_REPEAT) for name, s in samples.items()}
    mine = found["MlaArray(path)"]
    return [
        timed_row(
            "open",
            name,
            taken,
            mine=mine if name == reference.NAME else None,
            goal=_DATASET if name == "xarray.open_dataset" else None,
        )
        for name, taken in found.items()
    ]


def _repeated(opener: Callable[[], Any]) -> Callable[[int], object]:
    """Return what opens many times: one opening is too short to time."""

    def job(repeat: int) -> None:  # noqa: ARG001 - every repeat does the same
        for _ in range(_PER_REPEAT):
            opener()

    return job


def _cube_rows(path: Path, workplace: Workplace) -> list[Row]:
    """Open the cube lazily and count Dask's tasks."""
    name, size = "xarray.open_dataset, chunks={}", workplace.size
    job = {name: lambda repeat: ours.open_dataset(path, chunks={})}  # noqa: ARG005
    taken = time_paired(job, repeats=size.repeats, patience_s=size.patience_s)[name]
    tasks = len(dict(ours.open_dataset(path, chunks={}).__dask_graph__()))
    return [
        timed_row("open the cube", name, taken, goal=_CUBE),
        _counted("open the cube", name, tasks, unit="tasks", goal=_TASKS),
    ]


def _bytes_read(path: Path) -> list[Row]:
    """Count the bytes of read calls while opening."""
    openers: dict[str, Callable[[], Any]] = {
        "MlaArray(path)": lambda: MlaArray(path),
        "xarray.open_dataset": lambda: ours.open_dataset(path),
    }
    return [
        _counted("read while opening", name, _count_read(opener) / 1024, unit="KiB", goal=_READ)
        for name, opener in openers.items()
    ]


def _count_read(opener: Callable[[], Any]) -> float:
    """Return the bytes of read calls one opening makes, without those of looking at the counter."""
    opener()
    counts = []
    for _ in range(5):
        first, second = _read_so_far(), _read_so_far()
        opened = opener()
        counts.append(_read_so_far() - second - (second - first))
        del opened
    return statistics.median(counts)


def _read_so_far() -> int:
    """Return the bytes this process has read."""
    return int(_IO.read_text(encoding="ascii").partition("rchar:")[2].split()[0])


def _memory_added(path: Path) -> list[Row]:
    """Return how much memory a new process needs for the sparse file."""
    command = [sys.executable, "-m", "benchmarks.memory_probe", str(path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [
        _counted("memory added, sparse file", what, added / 1e6, unit="MB", goal=_MEMORY)
        for what, added in json.loads(done.stdout).items()
    ]


def _counted(case: str, contender: str, count: float, *, unit: str, goal: Goal) -> Row:
    """Return a row of something counted once."""
    return Row(case=case, contender=contender, unit=unit, median=count, best=count, goal=goal)


def _write_zeros(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write a file of zeros that takes next to no disk, in the reference's default layout.

    The reference itself would compress every chunk, which takes minutes here.
    """
    layout = mlarray.MLArray.zeros(shape, dtype=dtype).meta.blosc2
    array = blosc2.zeros(
        shape,
        dtype=dtype,
        chunks=tuple(layout.chunk_size),
        blocks=tuple(layout.block_size),
        urlpath=str(path),
        contiguous=True,
    )
    array.schunk.vlmeta["mlarray"] = encode_metadata(Metadata(has_array=True))
