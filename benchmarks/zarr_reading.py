"""Reading through zarr-python: an unconverted file, and the same array as a Zarr store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BloscShuffle

from benchmarks.contenders import slices
from benchmarks.contenders.zarr_store import store_path
from benchmarks.data import random_boxes
from benchmarks.report import Goal, Table, timed_row
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray
from mlarray_xr.zarr import as_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume, Workplace
    from benchmarks.report import Row
    from benchmarks.size import Size

__all__ = ["run"]

OURS, DIRECT = "unconverted .mla, as_store", "the same file, MlaArray"
SHARDED, SAME_GRID, PLAIN = (
    "native Zarr, 64-cubed chunks, sharded",
    "native Zarr, shard = chunk, chunk = block of the file",
    "native Zarr, 64-cubed chunks",
)
_GOAL = Goal(of="ratio", relation=">=", bound=1.0)
_MOST_REPEATS = 5


def run(workplace: Workplace) -> list[Table]:
    """Return one table: milliseconds per read of an int16 volume."""
    volume = workplace.volume("int16")
    readers = _readers(volume)
    _check(readers, volume)
    rows: list[Row] = []
    for case, boxes in _cases(volume.values.shape, workplace.size).items():
        jobs = {name: _job(read, boxes) for name, read in readers.items()}
        taken = time_paired(
            jobs,
            repeats=min(workplace.size.repeats, _MOST_REPEATS),
            patience_s=workplace.size.patience_s,
        )
        found = {name: samples.divided(len(boxes[0])) for name, samples in taken.items()}
        mine = found.pop(OURS)
        rows.append(timed_row(case, OURS, mine))
        for name, theirs in found.items():
            goal = _GOAL if name in (SHARDED, SAME_GRID) else None
            rows.append(timed_row(case, name, theirs, mine=mine, goal=goal))
    return [
        Table(
            name="zarr-reading",
            title="Reading through zarr-python",
            about=(
                f"Milliseconds per read of an int16 volume of shape {volume.values.shape}, one "
                f"Python thread reading, files in the page cache, zarr-python {zarr.__version__}. "
                "Codec LZ4HC 8 with byte shuffle everywhere. Before zarr-python 3.2 the chunks of "
                "a shard are read one after another: newer ones read shards faster."
            ),
            rows=tuple(rows),
        )
    ]


def _readers(volume: Volume) -> dict[str, Read]:
    """Return what reads the volume in each way."""
    arrays: dict[str, Any] = {
        OURS: zarr.open_array(as_store(volume.path), path="image", mode="r"),
        SHARDED: zarr.open_array(store_path(volume, is_sharded=True), mode="r"),
        SAME_GRID: zarr.open_array(_same_grid(volume), mode="r"),
        PLAIN: zarr.open_array(store_path(volume, is_sharded=False), mode="r"),
        DIRECT: MlaArray(volume.path),
    }
    return {name: _read_of(array) for name, array in arrays.items()}


def _read_of(array: Any) -> Read:
    """Return what reads boxes of an array."""

    def read(box: Box) -> Any:
        return array[slices(box)]

    return read


def _same_grid(volume: Volume) -> Path:
    """Return a sharded store with the chunks and blocks of the file, as far as Zarr has such."""
    path = volume.folder / "same-grid.zarr"
    if not path.exists():
        file = MlaArray(volume.path)
        # The chunks of a shard have to divide it; blocks need not divide a chunk.
        shards = tuple(-(-c // b) * b for c, b in zip(file.chunks, file.blocks, strict=True))
        array = zarr.create_array(
            path,
            shape=file.shape,
            dtype=file.dtype,
            chunks=file.blocks,
            shards=shards,
            compressors=BloscCodec(
                typesize=file.dtype.itemsize,
                cname="lz4hc",
                clevel=8,
                shuffle=BloscShuffle.shuffle,
            ),
        )
        array[...] = volume.values
    return path


def _check(readers: dict[str, Read], volume: Volume) -> None:
    """Compare one box of all: the time of wrong values means nothing."""
    (box,) = random_boxes(volume.values.shape, edge=20, count=1, seed=5)
    for name, read in readers.items():
        if not np.array_equal(read(box), volume.values[slices(box)]):
            msg = f"{name} reads wrong values"
            raise RuntimeError(msg)


def _cases(shape: tuple[int, ...], size: Size) -> dict[str, list[list[Box]]]:
    """Return what is read: for each case the boxes of every repeat."""
    rng = np.random.default_rng(11)
    repeats = range(size.repeats + 1)
    cases: dict[str, list[list[Box]]] = {}
    for edge in size.edges:
        count = min(size.patches(edge), 8)
        cases[f"{edge} cubed"] = [
            random_boxes(shape, edge=edge, count=count, seed=repeat) for repeat in repeats
        ]
    for axis, dim in enumerate("zyx"):
        cases[f"a slice along {dim}"] = [
            [_plane(shape, axis, int(rng.integers(shape[axis])))] for _ in repeats
        ]
    whole: Box = tuple((0, n) for n in shape)
    cases["all of it"] = [[whole] for _ in repeats]
    return cases


def _plane(shape: tuple[int, ...], axis: int, at: int) -> Box:
    """Return the box of a plane."""
    return tuple((at, at + 1) if i == axis else (0, n) for i, n in enumerate(shape))


def _job(read: Read, boxes: list[list[Box]]) -> Callable[[int], object]:
    """Return what reads the boxes of a repeat."""

    def job(repeat: int) -> None:
        for box in boxes[repeat]:
            read(box)

    return job
