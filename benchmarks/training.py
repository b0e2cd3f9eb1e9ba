"""Training: random patches of twenty volumes in batches, through a DataLoader."""

from __future__ import annotations

import gc
import json
import math
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.cold_timing import ColdJob, time_cold
from benchmarks.data import make_values
from benchmarks.load import Moment, wait_for_quiet
from benchmarks.report import Goal, Row, Skip, Table
from benchmarks.timing import Samples
from benchmarks.training_files import copied, write_files
from benchmarks.training_readers import (
    BATCH,
    MEMORY_MAP,
    MEMORY_MAP_COPY,
    MLARRAY,
    MONAI,
    OURS,
    RADIOBJECT,
    TORCHIO,
    EpochSize,
    local_loaders,
    nifti_loaders,
    radiobject_process,
)
from mlarray_xr import to_mla

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.data import Workplace
    from benchmarks.size import Size
    from benchmarks.training_files import TrainingFiles
    from benchmarks.training_readers import Loader

__all__ = ["MINE", "RATES", "run"]

MINE = "ours"
RATES = "Training patches, {} workers"
_NAME = "training"
_WORKERS = {"full": (0, 1, 2), "smoke": (0, 2)}
_COST_WORKERS = {"full": (0, 2), "smoke": (2,)}
_PATCHES_PER_VOLUME = {64: 24, 96: 12, 128: 8, 24: 20}
_MOST_REPEATS = 5
# What is ten times as slow gets fewer patches, but more than its workers read ahead.
_FEWEST = 3
# Files of the loader that is timed to its first batch, and extents of the volume in a large one.
_MANY = {"full": 1000, "smoke": 8}
_LARGE = {"full": (1000, 1000, 1000), "smoke": (64, 64, 64)}
_SMALL_FILE = (64, 64, 64)
_FIRST_BATCH = Goal(of="median", relation="<=", bound=1000)
_READER_MB = 100
# How many times faster ours is to be: by workers, by what ours reads, and by whom.
_SAME_FILE, _DEFAULT, _PLANNED, _ = OURS
_MLARRAY_GOALS: dict[tuple[int, str], float] = {
    (0, _SAME_FILE): 1.5,
    (2, _SAME_FILE): 1,
    (2, _DEFAULT): 1.5,
    (2, _PLANNED): 1.5,
}
_GOALS = {RADIOBJECT: 2, MEMORY_MAP: 0.4, MEMORY_MAP_COPY: 0.4, TORCHIO: 20, MONAI: 20}


def run(workplace: Workplace) -> Iterator[Table]:
    """Yield a table for each number of workers, and one of disk, memory and first batch."""
    size, folder = workplace.size, workplace.folder / "training"
    is_full = size.name == "full"
    files = write_files(folder, size, with_nifti=is_full)
    with ExitStack() as stack:
        elsewhere, skips = None, [Skip(contender=RADIOBJECT, reason="takes long to start")]
        if is_full:
            elsewhere, skips = radiobject_process(files, folder / "radiobject", stack)
        for workers in _WORKERS[size.name]:
            rows = []
            for edge in files.edges:
                epoch = EpochSize(
                    edge=edge, patches_per_volume=_PATCHES_PER_VOLUME[edge], workers=workers
                )
                found = _timed(files, epoch, size, elsewhere)
                if is_full and edge == files.edges[-1] and workers != 1:
                    slow, missing = _timed_nifti(files, epoch)
                    found, skips = {**found, **slow}, [*skips, *missing]
                rows += _rates(found, epoch)
            yield Table(
                name=_NAME,
                title=RATES.format(workers),
                about=_about(files),
                rows=tuple(rows),
                skips=tuple(dict.fromkeys(skips)),
            )
    yield _costs(files, workplace, folder)


def _about(files: TrainingFiles) -> str:
    """Return what the tables of rates are about."""
    edges = [math.prod(shape) ** (1 / 3) for shape in files.shapes]
    return (
        f"Random cubes of {len(files.shapes)} int16 volumes of {min(edges):.0f} to "
        f"{max(edges):.0f} cubed, batches of {BATCH} through a DataLoader, epochs with workers "
        "that stay; the first batches of an epoch are not counted. The layouts are what ours "
        'reads, as to_mla writes it without and with patch=; the fast codec is prefer="speed". '
        "The Dataset over MLArray.open reads what MLArray(values).save wrote. All kinds of Dataset "
        "keep arrays open in every worker; a memory map is uncompressed, and the batch is copied "
        "from it, or from a copy of each patch. RadiObject reads tiles of 64 cubed; its datasets "
        "of equal shapes are joined, and its workers spawned, for forked ones wait for ever. "
        "TorchIO and MONAI read the whole volume for each patch, or for several of it; once over "
        "all volumes, of the largest patches, for smaller ones take as long."
    )


def _timed(
    files: TrainingFiles,
    epoch: EpochSize,
    size: Size,
    elsewhere: Callable[[EpochSize], Loader] | None,
) -> dict[str, Samples]:
    """Return seconds per patch of those that take turns."""
    loaders: dict[str, Loader] = {**local_loaders(files, epoch)}
    if elsewhere is not None:
        fewer = max(_FEWEST, epoch.patches_per_volume // 4)
        loaders[RADIOBJECT] = elsewhere(replace(epoch, patches_per_volume=fewer))
    wait_for_quiet(size.patience_s)
    found = _per_patch(loaders, epoch, repeats=min(size.repeats, _MOST_REPEATS))
    loaders.clear()
    gc.collect()  # ends their workers
    return found


def _timed_nifti(files: TrainingFiles, epoch: EpochSize) -> tuple[dict[str, Samples], list[Skip]]:
    """Return seconds per patch of those that read NIfTI, each run once."""
    loaders, skips = nifti_loaders(files, epoch)
    found = {}
    for name, loader in loaders.items():
        loader.prepare(1)
        begin = time.perf_counter()
        loader.act(1)
        taken = Samples(wall=(time.perf_counter() - begin,), cpu=(0,))
        found[name] = taken.divided(loader.patches)
    return found, skips


def _per_patch(loaders: dict[str, Loader], epoch: EpochSize, *, repeats: int) -> dict[str, Samples]:
    """Return seconds per patch of loaders that take turns."""
    others: dict[str, list[float]] = {name: [] for name in loaders}
    jobs = {
        name: ColdJob(prepare=each.prepare, act=partial(_act, each, others[name]))
        for name, each in loaders.items()
    }
    taken = time_cold(jobs, repeats=repeats)
    found = {}
    for name, samples in taken.items():
        # What happens in other processes looks like another program.
        is_here = not epoch.workers and name != RADIOBJECT
        shares = tuple(others[name][1:]) if is_here else ()
        found[name] = replace(samples, others=shares).divided(loaders[name].patches)
    return found


def _act(loader: Loader, others: list[float], repeat: int) -> None:
    """Take the rest of an epoch, and note what other programs used of the CPUs meanwhile."""
    begin = Moment.now()
    loader.act(repeat)
    share = Moment.now().others_since(begin)
    others += [] if share is None else [share]


def _rates(found: dict[str, Samples], epoch: EpochSize) -> list[Row]:
    """Return the rows of one patch size: each of ours, and those that it is compared with."""
    rows = []
    for layout in OURS:
        case, mine = f"{epoch.edge} cubed, {layout}", found[layout]
        rows.append(_rate(case, MINE, mine))
        others = [name for name in found if name not in OURS]
        for name in others if layout == _PLANNED else [MLARRAY]:
            bound = _GOALS.get(name)
            if name == MLARRAY:
                bound = _MLARRAY_GOALS.get((epoch.workers, layout))
            rows.append(_rate(case, name, found[name], mine=mine, bound=bound))
    return rows


def _rate(
    case: str,
    contender: str,
    samples: Samples,
    *,
    mine: Samples | None = None,
    bound: float | None = None,
) -> Row:
    """Return a row in patches per second; samples of one run are compared by their medians."""
    ratio = None
    if mine is not None:
        is_paired = len(samples.wall) == len(mine.wall)
        ratio = samples.ratio_to(mine) if is_paired else samples.median / mine.median
    return Row(
        case=case,
        contender=contender,
        unit="patches/s",
        median=1 / samples.median,
        best=1 / samples.best,
        ratio=ratio,
        goal=None if bound is None else Goal(of="ratio", relation=">=", bound=bound),
        others=samples.others,
    )


def _costs(files: TrainingFiles, workplace: Workplace, folder: Path) -> Table:
    """Return the table of disk space, memory and first batches."""
    size = workplace.size
    space = dict(files.folders)
    if (folder / "radiobject").is_dir():
        space[RADIOBJECT] = folder / "radiobject"
    rows = [
        _counted("all volumes on disk", kind, _disk_bytes(each) / 1e6, unit="MB")
        for kind, each in space.items()
    ]
    rows += _first_batches(files, size, folder)
    skips = []
    if sys.platform == "linux":
        rows += _memory(files, size, folder)
    else:
        skips.append(Skip(contender="memory", reason="counted on Linux only"))
    shape = "x".join(map(str, _LARGE[size.name]))
    return Table(
        name=_NAME,
        title="Training: disk, first batch, memory",
        about=(
            f"The {len(files.shapes)} volumes have {files.voxels / 1e6:.3g} million int16 voxels. "
            "The time to the first batch begins with the list of files, in a process that has "
            "imported everything, and includes starting the workers. Memory is how much more the "
            "process that reads has, of what no file stands behind, at most and compared with the "
            f"moment before it starts; it reads {BATCH} patches at a time of a volume of {shape} "
            f"uint8. Its goal is a batch and {_READER_MB} MB."
        ),
        rows=tuple(rows),
        skips=tuple(skips),
    )


def _first_batches(files: TrainingFiles, size: Size, folder: Path) -> list[Row]:
    """Time the first batch of a loader of many files."""
    source = folder / "one.mla"
    to_mla(make_values(_SMALL_FILE, "int16"), source, patch=files.edges[0])
    paths = copied(source, folder / "many", _MANY[size.name])
    rows = []
    for workers in _COST_WORKERS[size.name]:
        taken = [
            1e3 * _probe("first", paths, edge=files.edges[0] // 2, workers=workers)
            for _ in range(min(size.repeats // 2, 3))
        ]
        rows.append(
            Row(
                case=f"first batch of {len(paths)} files, {workers} workers",
                contender=MINE,
                unit="ms",
                median=statistics.median(taken),
                best=min(taken),
                goal=_FIRST_BATCH,
            )
        )
    return rows


def _memory(files: TrainingFiles, size: Size, folder: Path) -> list[Row]:
    """Return what reading a large volume takes."""
    path, shape = folder / "large.mla", _LARGE[size.name]
    plane = make_values((1, *shape[1:]), "uint8")
    # One plane, again and again: it is decoded like any other, and little has to be made of it.
    to_mla(np.broadcast_to(plane, shape), path)
    rows = []
    for edge in files.edges:
        batch_mb = BATCH * edge**3 / 1e6
        for workers in _COST_WORKERS[size.name]:
            taken_mb = _probe("memory", [path], edge=edge, workers=workers) / 1e6
            case = f"memory of each worker, {edge} cubed, {workers} workers"
            if not workers:
                case = f"memory of the process, {edge} cubed, 0 workers"
            goal = Goal(of="median", relation="<=", bound=round(batch_mb + _READER_MB))
            rows.append(_counted(case, MINE, taken_mb, unit="MB", goal=goal))
    return rows


def _probe(what: str, paths: list[Path], *, edge: int, workers: int) -> float:
    """Return what a new process measured."""
    command = [sys.executable, "-m", "benchmarks.training_probe", what, str(edge), str(workers)]
    done = subprocess.run(
        [*command, *map(str, paths)],
        cwd=Path(__file__).parents[1],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(json.loads(done.stdout))


def _disk_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _counted(
    case: str, contender: str, count: float, *, unit: str, goal: Goal | None = None
) -> Row:
    """Return a row of something counted once."""
    return Row(case=case, contender=contender, unit=unit, median=count, best=count, goal=goal)
