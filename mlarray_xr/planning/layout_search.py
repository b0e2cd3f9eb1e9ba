"""The search for the chunks and blocks that read given windows at the least modelled cost.

Blocks come first, because they decide what is decoded: all combinations of likely extents are
compared, with a bound for what their chunks will cost. For the best of them all likely multiples
are tried as chunks. The cost is that of `mlarray_xr.planning.read_cost`, times what small blocks
cost in size and small chunks in writing.

Axes are sorted by what is asked of them before anything is decided, so that a transposed array
gets the transposed answer; of axes that are alike the last one gets the longest extents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.read_cost import size_penalty
from mlarray_xr.planning.touching import touched_along

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.planning.access import Window
    from mlarray_xr.planning.read_cost import ReadModel

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_CHUNKS",
    "MAX_CHUNK_BYTES",
    "Task",
    "amplification_of",
    "search_blocks",
    "search_shapes",
]

_Shape = tuple[int, ...]

MAX_BLOCK_BYTES = 536_866_816
MAX_CHUNK_BYTES = 2**31 - 33
MAX_CHUNKS = 268_435_455
# Likely extents are these, what divides a window or an axis evenly, and the axis itself.
_POWERS = tuple(1 << e for e in range(12))
_OTHERS = tuple(sorted(m << e for m in (3, 5) for e in range(12)))
_DIVISORS = (1, 2, 3, 4, 5, 6, 8)
_MULTIPLES = (2, 4, 3, 8, 6, 16, 32, 12, 64, 24, 5, 10, 128, 48, 256, 20, 96, 192)
# Extents that are compared, so that planning takes some milliseconds.
_MOST_BLOCKS, _MOST_CHUNKS, _FINALISTS = 8_192, 1_728, 12
# Smaller axes than the seven largest are not split over blocks but read one by one.
_MOST_AXES = 7
# Measured: what is done once for every chunk that is written takes 0.24 ms, as long as encoding
# 34 KB with LZ4HC 8. Half of it counts: files are read more often than written.
_CHUNK_OVERHEAD_BYTES = 16_384
# Blocks in a chunk that are not touched but looked at, for every one that is, before chunks are
# known.
_SCANNED = 2.0
_LIKELY_BLOCKS_PER_CHUNK = 24.0
# Zeros beyond the edge of an array are nearly free to store, and cost a tenth to write.
_PADDING_WEIGHT = 0.1
# Of chunks that cost nearly the same those are taken that are shaped most like what is read.
_AS_GOOD = 1.02
# Weights are relative; lighter windows than this count as much.
_LIGHTEST = 1e-30
# Differences below this are rounding, which may differ between machines.
_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of a layout. Shapes in array order, without empty axes."""

    shape: _Shape
    """Extents of the array."""
    itemsize: int
    """Bytes of an element."""
    windows: tuple[Window, ...]
    """What is read."""
    model: ReadModel
    """What reading costs."""
    max_amplification: float = math.inf
    """Blocks that decode more for every byte wanted are not considered, if any others are."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Combinations:
    """Extents in all combinations of some candidates for every axis."""

    extents: NDArray[np.int64]
    """One row per combination, one column per axis."""
    touched: list[NDArray[np.float64]]
    """Of every window, how many cells of these extents it touches."""
    runs: list[NDArray[np.float64]]
    """Of every window, how many runs are contiguous in it and in a cell, mean over the axes that
    may be the last one in memory."""


def search_shapes(task: Task) -> tuple[_Shape, _Shape]:
    """Return the chunks and the blocks that cost least.

    Parameters
    ----------
    task
        What is asked.

    Returns
    -------
    chunks, blocks
        Extents per axis. Blocks divide chunks, except along axes that a chunk spans.
    """
    ordered, order = _ordered(task)
    best: tuple[float, _Shape, _Shape] | None = None
    for blocks in _best_blocks(ordered, count=_FINALISTS):
        found = _best_chunks(ordered, blocks)
        if found is not None and (best is None or found < best):
            best = found
    if best is None:
        blocks = _best_blocks(ordered, count=1)[0]
        best = (math.inf, _coarsest(ordered, blocks), blocks)
    chunks, blocks = _longest_last(ordered, chunks=best[1], blocks=best[2])
    return _restored(chunks, order), _restored(blocks, order)


def search_blocks(task: Task) -> _Shape:
    """Return the blocks that cost least inside one chunk, which `task.shape` is.

    Their extents are evened out, so that least is added to fill the last one along every axis.
    """
    ordered, order = _ordered(task)
    block = _best_blocks(ordered, count=1)[0]
    counts = [-(-n // b) for n, b in zip(ordered.shape, block, strict=True)]
    even = tuple(-(-n // count) for n, count in zip(ordered.shape, counts, strict=True))
    return _restored(even, order)


def amplification_of(task: Task, *, chunks: Sequence[int], blocks: Sequence[int]) -> float:
    """Return decoded over wanted bytes of all windows together."""
    decoded = wanted = 0.0
    for window in task.windows:
        touched = math.prod(
            touched_along(n, p, b, chunk=c)
            for n, p, b, c in zip(task.shape, window.shape, blocks, chunks, strict=True)
        )
        decoded += window.weight * touched * math.prod(blocks)
        wanted += window.weight * math.prod(window.shape)
    return decoded / wanted


def _ordered(task: Task) -> tuple[Task, list[int]]:
    """Return the task with its axes sorted by what is asked of them, and their numbers."""
    order = sorted(
        range(len(task.shape)),
        key=lambda axis: (task.shape[axis], [w.shape[axis] for w in task.windows], axis),
    )

    def sort(sizes: _Shape) -> _Shape:
        return tuple(sizes[axis] for axis in order)

    heaviest = max(window.weight for window in task.windows)
    windows = tuple(
        replace(window, shape=sort(window.shape), weight=max(window.weight / heaviest, _LIGHTEST))
        for window in task.windows
    )
    return replace(task, shape=sort(task.shape), windows=windows), order


def _longest_last(task: Task, *, chunks: _Shape, blocks: _Shape) -> tuple[_Shape, _Shape]:
    """Return the shapes with the longest blocks last among axes that are alike; they cost the same.

    Runs of elements that are neighbours in memory are longer then.
    """
    windows = (window.shape for window in task.windows)
    # Axes are sorted by what is asked of them, so that those that are alike are neighbours.
    asked: list[Any] = list(zip(task.shape, *windows, strict=True))
    axes = sorted(zip(asked, blocks, chunks, strict=True))
    return tuple(chunk for *_, chunk in axes), tuple(block for _, block, _ in axes)


def _restored(sizes: _Shape, order: list[int]) -> _Shape:
    """Return sizes of sorted axes in array order."""
    placed = dict(zip(order, sizes, strict=True))
    return tuple(placed[axis] for axis in range(len(sizes)))


def _best_blocks(task: Task, *, count: int) -> list[_Shape]:
    """Return the most promising blocks, best first."""
    likely = [_likely_extents(task, axis) for axis in range(len(task.shape))]
    tried = _combinations(task, likely, most=_MOST_BLOCKS)
    block_bytes = np.prod(tried.extents, axis=1, dtype=np.float64) * task.itemsize
    decoded = wanted = 0.0
    time: Any = 0.0
    for window, n_blocks, n_runs in zip(task.windows, tried.touched, tried.runs, strict=True):
        window_bytes = math.prod(window.shape) * task.itemsize
        time = time + window.weight * task.model.read_time_ns(
            n_chunks=np.maximum(1.0, n_blocks / _LIKELY_BLOCKS_PER_CHUNK),
            n_blocks=n_blocks,
            chunk_grid=_SCANNED * np.minimum(n_blocks, _LIKELY_BLOCKS_PER_CHUNK),
            block_bytes=block_bytes,
            wanted_bytes=window_bytes,
            n_runs=n_runs,
        )
        decoded = decoded + window.weight * n_blocks * block_bytes
        wanted += window.weight * window_bytes
    score = _rounded(time * size_penalty(block_bytes, _thinness(tried.extents)))
    too_much: Any = decoded > wanted * task.max_amplification * (1 + 1e-9)
    too_large: Any = block_bytes > max(
        min(task.model.caches.l2_bytes // 2, MAX_BLOCK_BYTES), task.itemsize
    )
    # Ties go to later axes, so that the answer does not depend on the order of combinations.
    keys = [*(-tried.extents[:, axis] for axis in range(len(task.shape))), score]
    ranked = np.lexsort((*keys, too_much, too_large))[:count]
    faults = np.stack([too_large, too_much])[:, ranked]
    fair = (faults == faults[:, :1]).all(axis=0)
    return [tuple(row) for row in tried.extents[ranked[fair]].tolist()]


def _best_chunks(task: Task, blocks: _Shape) -> tuple[float, _Shape, _Shape] | None:
    """Return score, chunks and blocks of the best chunks for given blocks; None if none fit."""
    likely = [_likely_multiples(n, b) for n, b in zip(task.shape, blocks, strict=True)]
    tried = _combinations(task, likely, most=_MOST_CHUNKS)
    grid = np.prod(-(-tried.extents // np.array(blocks)), axis=1, dtype=np.float64)
    block_bytes = math.prod(blocks) * task.itemsize
    chunk_bytes = grid * block_bytes
    n_chunks = np.prod(-(-np.array(task.shape) // tried.extents), axis=1, dtype=np.float64)
    limit = max(task.model.caches.l3_bytes, block_bytes)
    fits = (chunk_bytes <= min(limit, MAX_CHUNK_BYTES)) & (n_chunks <= MAX_CHUNKS)
    if not fits.any():
        return None
    time: Any = 0.0
    for window, touched in zip(task.windows, tried.touched, strict=True):
        along = [
            touched_along(n, p, b) for n, p, b in zip(task.shape, window.shape, blocks, strict=True)
        ]
        time = time + window.weight * task.model.read_time_ns(
            n_chunks=touched,
            n_blocks=math.prod(along),
            chunk_grid=grid,
            block_bytes=block_bytes,
            wanted_bytes=math.prod(window.shape) * task.itemsize,
            n_runs=_mean_runs(window, along),
        )
    padding = n_chunks * chunk_bytes / (math.prod(task.shape) * task.itemsize)
    held_bytes = np.prod(tried.extents, axis=1, dtype=np.float64) * task.itemsize
    score = time * (1 + _CHUNK_OVERHEAD_BYTES / held_bytes) * padding**_PADDING_WEIGHT
    thinness = _thinness(np.array([blocks]))[0]
    score = _rounded(np.where(fits, score * size_penalty(block_bytes, thinness), np.inf))
    near = score > score.min() * _AS_GOOD
    keys = [-tried.extents[:, axis] for axis in range(len(task.shape))]
    first = np.lexsort([*keys, score, _unlikeness(task, tried.extents), near])[0]
    return float(score[first]), tuple(tried.extents[first].tolist()), blocks


def _thinness(blocks: NDArray[np.int64]) -> Any:
    """Return how many doublings lie between the shortest and the longest axis of blocks."""
    octaves = np.log2(blocks)
    return octaves.max(axis=1) - octaves.min(axis=1)


def _unlikeness(task: Task, extents: NDArray[np.int64]) -> Any:
    """Return how far shapes are from those of the windows: 0 for the same proportions."""
    total = sum(window.weight for window in task.windows)
    usual = sum(
        np.log2(np.array(window.shape)) * (window.weight / total) for window in task.windows
    )
    deviations = np.log2(extents) - usual
    return _rounded(deviations.max(axis=1) - deviations.min(axis=1))


def _coarsest(task: Task, blocks: _Shape) -> _Shape:
    """Return chunks of given blocks that a frame can hold, if any can, for very large arrays."""
    chunks = list(blocks)
    while math.prod(-(-n // c) for n, c in zip(task.shape, chunks, strict=True)) > MAX_CHUNKS:
        axis = max(range(len(chunks)), key=lambda i: (task.shape[i] / chunks[i], i))
        chunks[axis] = min(2 * chunks[axis], task.shape[axis])
    return tuple(chunks)


def _combinations(task: Task, likely: list[list[int]], *, most: int) -> _Combinations:
    """Return all combinations of extents, the least likely ones left out where there are many."""
    n_open = sum(len(candidates) > 1 for candidates in likely)
    if n_open > _MOST_AXES:
        likely = [[min(c)] for c in likely[:-_MOST_AXES]] + likely[-_MOST_AXES:]
    # Rounded up a little: the third root of 1728 is 11.999999999999998.
    each = max(2, int(most ** (1 / min(max(n_open, 1), _MOST_AXES)) + 1e-9))
    chosen = [np.array(sorted(candidates[:each]), np.int64) for candidates in likely]
    grids = np.meshgrid(*chosen, indexing="ij", sparse=True)
    shape = tuple(map(len, chosen))
    extents = np.stack([np.broadcast_to(g, shape).reshape(-1) for g in grids], axis=1)
    touched, runs = [], []
    for window in task.windows:
        along = [
            touched_along(n, p, grid.astype(np.float64))
            for n, p, grid in zip(task.shape, window.shape, grids, strict=True)
        ]
        touched.append(np.broadcast_to(math.prod(along), shape).reshape(-1))
        runs.append(np.broadcast_to(_mean_runs(window, along), shape).reshape(-1))
    return _Combinations(extents=extents, touched=touched, runs=runs)


def _mean_runs(window: Window, along: Sequence[Any]) -> Any:
    """Return how many runs there are, mean over the axes that may be the last one in memory.

    Parameters
    ----------
    window
        What is read.
    along
        How many blocks it touches along every axis.
    """
    cuts = [touched / p for touched, p in zip(along, window.shape, strict=True) if p > 1]
    return math.prod(window.shape) * (sum(cuts) / max(1, len(cuts)))


def _likely_extents(task: Task, axis: int) -> list[int]:
    """Return the extents that a block may have along an axis, the most likely ones first."""
    n = task.shape[axis]
    windows = {window.shape[axis] for window in task.windows}
    even = [-(-whole // parts) for parts in _DIVISORS for whole in (n, *sorted(windows))]
    # The most likely ones first, as far as there are not too many.
    likely = (n, *sorted(windows), *_POWERS, *even, *_OTHERS)
    return list(dict.fromkeys(size for size in likely if size <= n))


def _likely_multiples(extent: int, block: int) -> list[int]:
    """Return the extents that a chunk of given blocks may have along an axis."""
    n_blocks = -(-extent // block)
    multiples = (1, n_blocks, *_MULTIPLES)
    return list(dict.fromkeys(min(k * block, extent) for k in multiples if k <= n_blocks))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values without what is only rounding."""
    finite = np.where(np.isfinite(values) & (values > 0), values, 1.0)
    scale = 10.0 ** (_DIGITS - np.floor(np.log10(finite)))
    return np.where(finite == values, np.round(finite * scale) / scale, values)
