"""Points: values at scattered positions of a local file."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.point_readers import CLOUDVOLUME, OURS, ZARR_SHARDED, point_contenders
from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, measure

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.data import Workplace
    from benchmarks.point_readers import PointContender
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_MOST_REPEATS = 5
_CLUSTERS, _CLUSTER_EDGE = 10, 64
# How many times faster ours is to be, where points are sparse.
_SPARSE_GOALS = {CLOUDVOLUME: 10, ZARR_SHARDED: 5}
_CLUSTERED_GOAL = Goal(of="median", relation="<=", bound=2)
_ONCE = Goal(of="median", relation="<=", bound=1)


def run(workplace: Workplace) -> list[Table]:
    """Return one table: sparse, clustered and many points, and how often blocks are decoded."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    few, many = (10_000, 1_000_000) if size.name == "full" else (100, 20_000)
    volume = workplace.volume("int16")
    contenders, skips = point_contenders(volume)
    sparse = _picked(contenders, size, draw=_sparse, count=few)
    clustered = _picked(contenders, size, draw=_clustered, count=few)
    million = _picked(contenders, size, draw=_sparse, count=many)
    goals = {name: Goal(of="ratio", relation=">=", bound=n) for name, n in _SPARSE_GOALS.items()}
    rows = [
        *_rows(f"{few} sparse points", sparse, goals),
        *_rows(f"{few} clustered points", clustered, {OURS: _CLUSTERED_GOAL}),
        *_rows(f"{many} sparse points", million, {}),
        _decoded_once(volume.path, _sparse(size.shape, many, 0)),
    ]
    return [
        Table(
            name="points",
            title="Points of a local file",
            about=(
                f"Time per point: int16, shape {size.shape}, compression ratio "
                f"{volume.ratio:.2f}. Sparse points lie anywhere, clustered ones in {_CLUSTERS} "
                f"cubes of {_CLUSTER_EDGE}; other points in every repeat. The Zarr stores have "
                "the codec and the chunks of the file, the inner chunks of the shards are its "
                "blocks; CloudVolume has all of the volume in its cache, in raw 64-cubed chunks. "
                "The last row counts."
            ),
            rows=tuple(rows),
            skips=tuple(skips),
        )
    ]


def _picked(
    contenders: list[PointContender],
    size: Size,
    *,
    draw: Callable[[tuple[int, ...], int, int], NDArray[np.int64]],
    count: int,
) -> dict[str, Samples]:
    """Return seconds per point of those contenders that so many points do not take too long."""
    points = [draw(size.shape, count, repeat) for repeat in range(size.repeats + 1)]

    def job(contender: PointContender) -> Callable[[int], object]:
        return lambda repeat: contender.pick(points[repeat])

    jobs = {c.name: job(c) for c in contenders if c.most_points >= count}
    taken = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    return {name: samples.divided(count) for name, samples in taken.items()}


def _sparse(shape: tuple[int, ...], count: int, repeat: int) -> NDArray[np.int64]:
    """Return points anywhere, (axes, count)."""
    rng = np.random.default_rng([count, repeat])
    return np.stack([rng.integers(0, n, count) for n in shape])


def _clustered(shape: tuple[int, ...], count: int, repeat: int) -> NDArray[np.int64]:
    """Return points in a few cubes, (axes, count), in random order."""
    rng = np.random.default_rng([count, repeat])
    edges = [min(_CLUSTER_EDGE, n) for n in shape]
    which = rng.integers(0, _CLUSTERS, count)
    corners = [
        rng.integers(0, n - edge + 1, _CLUSTERS) for n, edge in zip(shape, edges, strict=True)
    ]
    return np.stack(
        [
            corner[which] + rng.integers(0, edge, count)
            for corner, edge in zip(corners, edges, strict=True)
        ]
    )


def _rows(case: str, found: dict[str, Samples], goals: dict[str, Goal]) -> list[Row]:
    """Return the rows of one set of points, microseconds per point."""
    return [
        Row(
            case=case,
            contender=name,
            unit="us",
            median=samples.median * 1e6,
            best=samples.best * 1e6,
            ratio=None if name == OURS else samples.ratio_to(found[OURS]),
            goal=goals.get(name),
            others=samples.others,
        )
        for name, samples in found.items()
    ]


def _decoded_once(path: Path, points: NDArray[np.int64]) -> Row:
    """Return how many blocks are decoded for each one that points lie in."""
    array = MlaArray(path)
    chunks, blocks = (np.array(extents)[:, None] for extents in (array.chunks, array.blocks))
    touched = np.concatenate([points // chunks, points % chunks // blocks])
    n_touched = np.unique(touched, axis=1).shape[1]
    with measure() as counted:
        array[tuple(points)]
    share = counted.stats.blocks_decoded / n_touched
    case = f"{points.shape[1]} sparse points, blocks decoded for each touched"
    return Row(case=case, contender=OURS, unit="x", median=share, best=share, goal=_ONCE)
