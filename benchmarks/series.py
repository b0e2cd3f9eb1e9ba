"""Series: frames and voxels of 4-D files, and how a `.nii.gz` becomes one."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import nibabel as nib
import numpy as np

from benchmarks.data import make_values
from benchmarks.report import Goal, Row, Table, timed_row
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, convert

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.data import Workplace
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["MEMORY_MAP", "run"]

OURS = 'MlaArray, layout="frames"'
BY_VOXEL = 'MlaArray, layout="series"'
MEMORY_MAP = "np.memmap, copied"
MEMORY_MAP_C = "np.memmap, copied to C order"
NIBABEL = "nibabel dataobj, .nii"
NIBABEL_GZ = "nibabel dataobj, .nii.gz"
HDF5 = "h5py, volume-major, contiguous"
HDF5_CHUNKED = "h5py, volume-major, a chunk per frame, gzip"

_FULL_SHAPES = ((64, 64, 40, 300), (128, 128, 60, 300))
_SMOKE_SHAPES = ((16, 18, 20, 24),)
_MOST_REPEATS = 7
_FRAMES, _VOXELS = 30, 5
_PIECE_BYTES = 4 << 20
_NOISE = 10.0
_FRAME_GOAL = Goal(of="median", relation="<=", bound=5)
# How many times faster ours is: a fifth is five times as slow.
_COPY_GOAL = Goal(of="ratio", relation=">=", bound=1 / 5)
_VOXEL_GOAL = Goal(of="ratio", relation=">=", bound=20)
_CONVERT_GOAL = Goal(of="ratio", relation=">=", bound=1 / 1.2)
_WRITTEN_GOAL = Goal(of="median", relation="<=", bound=1.1)
_MEMORY_GOAL = Goal(of="median", relation="<=", bound=150)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """One series and the files that hold it."""

    values: NDArray[np.int16]
    """The oracle, Fortran order as NIfTI has it."""
    folder: Path
    """Where the files are."""

    @property
    def case(self) -> str:
        """How rows call it."""
        return "x".join(map(str, self.values.shape))

    def path(self, name: str) -> Path:
        """Return the path of one of the files."""
        return self.folder / name


def run(workplace: Workplace) -> list[Table]:
    """Return the tables of frames, voxels and conversion."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    shapes = _FULL_SHAPES if size.name == "full" else _SMOKE_SHAPES
    frames, voxels, converted = [], [], []
    for number, shape in enumerate(shapes):
        folder = workplace.folder / f"series{number}"
        folder.mkdir()
        series = _made(shape, folder)
        converted += _conversion(series, size)
        _write_others(series)
        frames += _frames(series, size)
        voxels += _voxels(series, size)
        for path in folder.iterdir():
            path.unlink()
    about = (
        "int16, smooth tissue that drifts and noise of a deviation of 10; .nii.gz as nibabel "
        "writes it (level 1); ours with the codec that was chosen by trial."
    )
    return [
        Table(
            name="series",
            title="One frame of a series",
            about=f"Milliseconds for a random frame. {about} Volume-major: frames along the "
            "first axis, as nifreeze's pull request 461 lays out HDF5.",
            rows=tuple(frames),
        ),
        Table(
            name="series",
            title="The series of one voxel",
            about=f"Milliseconds for all frames of a random voxel. {about}",
            rows=tuple(voxels),
        ),
        Table(
            name="series",
            title="Converting a series",
            about=f"A `.nii.gz` to `.mla`. {about} Written are all bytes that the process wrote, "
            "per byte of the file; memory is what the process took at most beyond its imports.",
            rows=tuple(converted),
        ),
    ]


def _made(shape: tuple[int, ...], folder: Path) -> _Series:
    """Make a series and its NIfTI files."""
    rng = np.random.default_rng(1)
    tissue = make_values(shape[:3], "int16").astype(np.float32)
    values = np.empty(shape, np.int16, order="F")
    for k in range(shape[3]):
        noise = np.float32(_NOISE) * rng.standard_normal(shape[:3], np.float32)
        values[..., k] = np.rint(np.abs(tissue * np.float32(1 + 0.02 * np.sin(k / 5)) + noise))
    image = nib.Nifti1Image(values, np.eye(4))
    for name in ("a.nii", "a.nii.gz"):
        nib.save(image, folder / name)
    return _Series(values=values, folder=folder)


def _write_others(series: _Series) -> None:
    """Write the files of the other contenders."""
    for layout in ("frames", "series"):
        convert(series.path("a.nii"), series.path(f"{layout}.mla"), layout=layout)
    major = np.ascontiguousarray(np.moveaxis(series.values, -1, 0))
    with h5py.File(series.path("a.h5"), "w") as file:
        file.create_dataset("plain", data=major)
        file.create_dataset(
            "packed", data=major, chunks=(1, *major.shape[1:]), compression="gzip", shuffle=True
        )


def _frames(series: _Series, size: Size) -> list[Row]:
    """Return the rows of one random frame, the mean of several."""
    rng = np.random.default_rng(2)
    n = series.values.shape[3]
    picks = rng.integers(0, n, (size.repeats + 1, _FRAMES)).tolist()
    mapped: Any = np.memmap(series.path("a.nii"), "<i2", "r", 352, series.values.shape, "F")
    array = MlaArray(series.path("frames.mla"))
    image: Any = nib.load(series.path("a.nii"))
    packed: Any = nib.load(series.path("a.nii.gz"))
    with h5py.File(series.path("a.h5"), "r") as file:
        readers: dict[str, Callable[[int], NDArray[Any]]] = {
            OURS: lambda k: array[..., k],
            MEMORY_MAP: lambda k: np.array(mapped[..., k]),
            MEMORY_MAP_C: lambda k: np.array(mapped[..., k], order="C"),
            NIBABEL: lambda k: image.dataobj[..., k],
            NIBABEL_GZ: lambda k: packed.dataobj[..., k],
            HDF5: lambda k: file["plain"][k],
            HDF5_CHUNKED: lambda k: file["packed"][k],
        }
        _check(readers, lambda k: series.values[..., k], n - 2)
        counts = {NIBABEL_GZ: 1}
        found = _timed(readers, picks, size, counts)
    goals = {OURS: _FRAME_GOAL, MEMORY_MAP: _COPY_GOAL}
    return _rows(series.case, found, goals, mine=OURS)


def _voxels(series: _Series, size: Size) -> list[Row]:
    """Return the rows of all frames of one voxel, the mean of several."""
    rng = np.random.default_rng(3)
    shape = series.values.shape
    n_voxels = int(np.prod(shape[:3]))
    picks = rng.integers(0, n_voxels, (size.repeats + 1, _VOXELS)).tolist()
    mapped: Any = np.memmap(series.path("a.nii"), "<i2", "r", 352, shape, "F")
    arrays = {name: MlaArray(series.path(f"{name}.mla")) for name in ("series", "frames")}

    def at(number: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(number, shape[:3]))

    with h5py.File(series.path("a.h5"), "r") as file:
        readers: dict[str, Callable[[int], NDArray[Any]]] = {
            BY_VOXEL: lambda v: arrays["series"][at(v)],
            OURS: lambda v: arrays["frames"][at(v)],
            MEMORY_MAP: lambda v: np.array(mapped[at(v)]),
            HDF5: lambda v: file["plain"][(slice(None), *at(v))],
            HDF5_CHUNKED: lambda v: file["packed"][(slice(None), *at(v))],
        }
        _check(readers, lambda v: series.values[at(v)], n_voxels // 2)
        found = _timed(readers, picks, size, {HDF5_CHUNKED: 1})
    return _rows(series.case, found, {OURS: _VOXEL_GOAL}, mine=BY_VOXEL)


def _conversion(series: _Series, size: Size) -> list[Row]:
    """Return the rows of converting a series."""
    source, target = series.path("a.nii.gz"), series.path("a.mla")

    def converted() -> None:
        convert(source, target, layout="frames", mode="w")

    jobs: dict[str, Callable[[int], object]] = {
        "mlarray_xr.convert": lambda _: converted(),
        "gzip, decompressing once": lambda _: _decompress(source),
    }
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    if not np.array_equal(MlaArray(target)[...], series.values):
        msg = f"{source} became something else"
        raise RuntimeError(msg)
    goals = {"gzip, decompressing once": _CONVERT_GOAL}
    rows = _rows(series.case, found, goals, mine="mlarray_xr.convert")
    return [*rows, *_costs(series)]


def _costs(series: _Series) -> list[Row]:
    """Return what converting in a new process writes and takes, where the system tells."""
    if sys.platform != "linux":
        return []
    command = [sys.executable, "-m", "benchmarks.conversion_probe", str(series.path("a.nii.gz"))]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    counted = partial(Row, contender="mlarray_xr.convert")
    share, memory = found["written"] / found["file"], found["memory"] / 1e6
    return [
        counted(
            case=f"{series.case}, bytes written",
            unit="x",
            median=share,
            best=share,
            # Of the few kilobytes of a smoke run the records beside the target are the larger part.
            goal=_WRITTEN_GOAL if found["file"] > _PIECE_BYTES else None,
        ),
        counted(
            case=f"{series.case}, memory",
            unit="MB",
            median=memory,
            best=memory,
            goal=_MEMORY_GOAL,
        ),
    ]


def _decompress(path: Path) -> None:
    """Decompress a file as Python does, piece by piece."""
    with gzip.open(path, "rb") as file:
        while file.read(_PIECE_BYTES):
            pass


def _check(
    readers: dict[str, Callable[[int], NDArray[Any]]],
    expected: Callable[[int], NDArray[Any]],
    number: int,
) -> None:
    """Compare what everybody reads with the oracle."""
    for name, read in readers.items():
        if not np.array_equal(read(number), expected(number)):
            msg = f"{name} read something else"
            raise RuntimeError(msg)


def _timed(
    readers: dict[str, Callable[[int], NDArray[Any]]],
    picks: list[list[int]],
    size: Size,
    counts: dict[str, int],
) -> dict[str, Samples]:
    """Return seconds per read; slow contenders read but some of the picks."""

    def job(name: str) -> Callable[[int], object]:
        read, n = readers[name], counts.get(name)
        return lambda repeat: [read(pick) for pick in picks[repeat][:n]]

    found = time_paired(
        {name: job(name) for name in readers}, repeats=size.repeats, patience_s=size.patience_s
    )
    n_picks = len(picks[0])
    return {name: taken.divided(counts.get(name, n_picks)) for name, taken in found.items()}


def _rows(case: str, found: dict[str, Samples], goals: dict[str, Goal], *, mine: str) -> list[Row]:
    """Return a row for every contender, compared with ours."""
    return [
        timed_row(
            case,
            name,
            samples,
            mine=None if name == mine else found[mine],
            goal=goals.get(name),
        )
        for name, samples in found.items()
    ]
