"""The score that the search of layouts makes small, and the limits that it keeps.

The score is the modelled time of the windows, times what small and thin blocks cost in size, and
what small chunks and padding cost in writing. All of it follows from products over the axes, so
that many layouts are scored at once by broadcasting what is known of every axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
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
    "Extents",
    "Task",
    "amplification_along",
    "amplification_of",
    "blocks_fit",
    "chunks_fit",
    "layout_score",
    "mean_runs",
    "rounded",
    "spread",
]

MAX_BLOCK_BYTES = 536_866_816
MAX_CHUNK_BYTES = 2**31 - 33
MAX_CHUNKS = 268_435_455
# Measured: what is done once for every chunk that is written takes 0.24 ms, as long as encoding
# 34 KB with LZ4HC 8. Half of it counts: files are read more often than written.
_CHUNK_OVERHEAD_BYTES = 16_384
# Zeros beyond the edge of an array are nearly free to store, and cost a tenth to write.
_PADDING_WEIGHT = 0.1
# Blocks in a chunk that are not touched but looked at, for every one that is, before chunks are
# known.
_SCANNED = 2.0
_LIKELY_BLOCKS_PER_CHUNK = 24.0
# Differences below this are rounding, which may differ between machines.
_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is asked of a layout. Shapes in array order, without empty axes."""

    shape: tuple[int, ...]
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
class Extents:
    """Blocks and chunks along one axis, and what windows touch of them: one layout, or many.

    Fields are numbers, or arrays that are broadcast against those of other axes. Blocks divide
    chunks, or a chunk spans the axis. Without chunks, what is said of them is empty.
    """

    blocks: Any
    """Elements of a block."""
    touched_blocks: tuple[Any, ...]
    """Of every window, how many blocks it touches, mean over its offsets."""
    chunks: Any = 0
    """Elements of a chunk."""
    grid: Any = 0
    """Blocks in a chunk."""
    n_chunks: Any = 0
    """Chunks along the axis."""
    touched_chunks: tuple[Any, ...] = ()
    """Of every window, how many chunks it touches, mean over its offsets."""

    @classmethod
    def of(cls, task: Task, *, axis: int, blocks: Any, chunks: Any = None) -> Extents:
        """Return extents with what they make of a task; arrays are of float64."""
        n = task.shape[axis]
        sizes = [window.shape[axis] for window in task.windows]
        touched_blocks = tuple(touched_along(n, p, blocks) for p in sizes)
        if chunks is None:
            return cls(blocks=blocks, touched_blocks=touched_blocks)
        return cls(
            blocks=blocks,
            touched_blocks=touched_blocks,
            chunks=chunks,
            grid=-(-chunks // blocks),
            n_chunks=-(-n // chunks),
            touched_chunks=tuple(touched_along(n, p, chunks) for p in sizes),
        )

    def at(self, places: NDArray[np.intp]) -> Extents:
        """Return some of many, which vary along the first axis of every array."""
        return Extents(
            blocks=self.blocks[places],
            touched_blocks=tuple(touched[places] for touched in self.touched_blocks),
            chunks=self.chunks[places],
            grid=self.grid[places],
            n_chunks=self.n_chunks[places],
            touched_chunks=tuple(touched[places] for touched in self.touched_chunks),
        )


def layout_score(task: Task, along: Sequence[Extents]) -> Any:
    """Return what layouts cost.

    Parameters
    ----------
    task
        What is asked.
    along
        Blocks and chunks per axis. Where chunks are not known yet, likely ones count, and what
        writing costs is left out.
    """
    block_bytes = _block_bytes(task, along)
    has_chunks = bool(along[0].touched_chunks)
    grid = math.prod(extents.grid for extents in along)
    time: Any = 0.0
    for number, window in enumerate(task.windows):
        touched = [extents.touched_blocks[number] for extents in along]
        n_blocks = math.prod(touched)
        if has_chunks:
            n_chunks = math.prod(extents.touched_chunks[number] for extents in along)
        else:
            likely = np.minimum(n_blocks, _LIKELY_BLOCKS_PER_CHUNK)
            n_chunks, grid = n_blocks / likely, _SCANNED * likely
        time = time + window.weight * task.model.read_time_ns(
            n_chunks=n_chunks,
            n_blocks=n_blocks,
            chunk_grid=grid,
            block_bytes=block_bytes,
            wanted_bytes=math.prod(window.shape) * task.itemsize,
            n_runs=mean_runs(window, touched),
        )
    thinness = spread([np.log2(extents.blocks) for extents in along])
    score = time * size_penalty(block_bytes, thinness)
    return rounded(score * _writing_penalty(task, along) if has_chunks else score)


def amplification_of(task: Task, *, chunks: Sequence[int], blocks: Sequence[int]) -> float:
    """Return decoded over wanted bytes of all windows together, for any chunks and blocks."""
    touched = [
        math.prod(
            touched_along(n, p, b, chunk=c)
            for n, p, b, c in zip(task.shape, window.shape, blocks, chunks, strict=True)
        )
        for window in task.windows
    ]
    return float(_amplification(task, touched, block_elements=math.prod(blocks)))


def amplification_along(task: Task, along: Sequence[Extents]) -> Any:
    """Return decoded over wanted bytes of all windows together."""
    touched = [
        math.prod(extents.touched_blocks[number] for extents in along)
        for number in range(len(task.windows))
    ]
    return _amplification(task, touched, block_elements=math.prod(e.blocks for e in along))


def blocks_fit(task: Task, along: Sequence[Extents]) -> Any:
    """Tell which blocks are at most half of the second level, as decoding needs two of them."""
    limit = min(task.model.caches.l2_bytes // 2, MAX_BLOCK_BYTES)
    return _block_bytes(task, along) <= max(limit, task.itemsize)


def chunks_fit(task: Task, along: Sequence[Extents]) -> Any:
    """Tell which chunks are at most the third level, and not more than a frame holds."""
    block_bytes = _block_bytes(task, along)
    chunk_bytes = math.prod(extents.grid for extents in along) * block_bytes
    limit = np.minimum(np.maximum(task.model.caches.l3_bytes, block_bytes), MAX_CHUNK_BYTES)
    n_chunks = math.prod(extents.n_chunks for extents in along)
    return (chunk_bytes <= limit) & (n_chunks <= MAX_CHUNKS)


def mean_runs(window: Window, along: Sequence[Any]) -> Any:
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


def spread(values: Sequence[Any]) -> Any:
    """Return the greatest less the least of some values, or arrays."""
    return reduce(np.maximum, values) - reduce(np.minimum, values)


def rounded(values: Any) -> Any:
    """Return values without what is only rounding."""
    finite = np.where(np.isfinite(values) & (values > 0), values, 1.0)
    scale = 10.0 ** (_DIGITS - np.floor(np.log10(finite)))
    return np.where(finite == values, np.round(finite * scale) / scale, values)


def _block_bytes(task: Task, along: Sequence[Extents]) -> Any:
    """Return the bytes of a block."""
    return math.prod(extents.blocks for extents in along) * task.itemsize


def _amplification(task: Task, touched: Sequence[Any], *, block_elements: Any) -> Any:
    """Return decoded over wanted bytes, from the blocks that every window touches."""
    pairs = list(zip(task.windows, touched, strict=True))
    wanted = sum(window.weight * math.prod(window.shape) for window in task.windows)
    return sum(window.weight * n_blocks for window, n_blocks in pairs) * block_elements / wanted


def _writing_penalty(task: Task, along: Sequence[Extents]) -> Any:
    """Return what is added for every chunk, and for zeros beyond the edge of the array."""
    stored = math.prod(
        e.n_chunks * e.grid * e.blocks / n for e, n in zip(along, task.shape, strict=True)
    )
    overhead = _CHUNK_OVERHEAD_BYTES / (math.prod(e.chunks for e in along) * task.itemsize)
    return (1 + overhead) * stored**_PADDING_WEIGHT
