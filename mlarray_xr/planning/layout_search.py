"""The search for the chunks and blocks that read given windows at the least modelled cost.

Blocks come first, because they decide what is decoded: all combinations of likely extents are
compared, with a bound for what their chunks will cost. For the best of them all likely multiples
are tried as chunks. What comes out is refined: along one axis after the other it gets the blocks
and chunks with which the score of `mlarray_xr.planning.layout_score` is least; then once more,
after two axes were changed at a time.

Axes are sorted by what is asked of them before anything is decided, so that a transposed array
gets the transposed answer; of axes that are alike the last one gets the longest extents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlarray_xr.planning.layout_score import (
    MAX_BLOCK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    Extents,
    Task,
    amplification_along,
    amplification_of,
    blocks_fit,
    chunks_fit,
    layout_score,
    rounded,
    spread,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

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

# Likely extents are these, what divides a window or an axis evenly, and the axis itself. Of five
# axes six extents each are combined: the first powers are the ones that differ most.
_POWERS = (1, 8, 4, 16, 2, *(1 << e for e in range(5, 12)))
_OTHERS = tuple(sorted(m << e for m in (3, 5) for e in range(12)))
_DIVISORS = (1, 2, 3, 4, 5, 6, 8)
_MULTIPLES = (2, 4, 3, 8, 6, 16, 32, 12, 64, 24, 5, 10, 128, 48, 256, 20, 96, 192)
# Extents that are compared, so that planning takes some milliseconds.
_MOST_BLOCKS, _MOST_CHUNKS, _FINALISTS = 8_192, 1_728, 8
# Smaller axes than the seven largest are not split over blocks but read one by one.
_MOST_AXES = 7
# How many layouts are refined, round by round: at first the finalists.
_DESCENTS, _DESCENTS_AGAIN = (8, 3), (20, 3)
# Of layouts that cost nearly the same those are taken whose chunks are shaped most like what is
# read, and the ones that were found before they were refined.
_AS_GOOD = 1.02
# Weights are relative; lighter windows than this count as much.
_LIGHTEST = 1e-30
# What rounding may add to the amplification that is allowed.
_ROUNDING = 1 + 1e-9


class _Found(NamedTuple):
    """Shapes and what they cost; the least of several is the best."""

    score: float
    chunks: _Shape
    blocks: _Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class _Combinations:
    """Extents in all combinations of some candidates for every axis."""

    candidates: list[list[int]]
    """Of every axis, ascending."""

    @classmethod
    def of(cls, likely: list[list[int]], *, most: int) -> _Combinations:
        """Return all combinations, the least likely ones left out where there are many."""
        n_open = sum(len(candidates) > 1 for candidates in likely)
        if n_open > _MOST_AXES:
            likely = [[min(c)] for c in likely[:-_MOST_AXES]] + likely[-_MOST_AXES:]
        # Rounded up a little: the third root of 1728 is 11.999999999999998.
        each = max(2, int(most ** (1 / min(max(n_open, 1), _MOST_AXES)) + 1e-9))
        return cls(candidates=[sorted(candidates[:each]) for candidates in likely])

    @property
    def extents(self) -> list[NDArray[np.float64]]:
        """Per axis, to be broadcast against each other."""
        arrays = [np.array(candidates, np.float64) for candidates in self.candidates]
        return list(np.meshgrid(*arrays, indexing="ij", sparse=True))

    def ranked(self, *keys: Any, count: int) -> list[_Shape]:
        """Return the places where keys are least, of which the last one counts most.

        Ties go to the longest extents along later axes: the last ones in Fortran order.
        """
        n = tuple(map(len, self.candidates))
        backwards = [np.broadcast_to(key, n).ravel(order="F")[::-1] for key in keys]
        first = math.prod(n) - 1 - np.lexsort(backwards)[:count]
        return list(zip(*np.unravel_index(first, n, order="F"), strict=True))

    def shape_at(self, place: tuple[int, ...]) -> _Shape:
        """Return the extents of one combination."""
        return tuple(c[i] for c, i in zip(self.candidates, place, strict=True))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Front:
    """Layouts that descend together, along the first of the three axes of every array."""

    score: NDArray[np.float64]
    """Of every layout."""
    along: tuple[Extents, ...]
    """Of every axis of the layouts."""

    @classmethod
    def of(cls, task: Task, found: list[_Found]) -> _Front:
        """Return what was found, in columns."""
        sizes = np.array([(f.chunks, f.blocks) for f in found], np.float64)
        chunks, blocks = sizes.transpose(1, 2, 0)[..., np.newaxis, np.newaxis]
        return cls(
            score=np.array([f.score for f in found]).reshape(-1, 1, 1),
            along=tuple(
                Extents.of(task, axis=axis, blocks=blocks[axis], chunks=chunks[axis])
                for axis in range(len(task.shape))
            ),
        )

    def best(self, count: int) -> _Front:
        """Return the layouts of the lowest scores, the lowest first."""
        first = np.argsort(self.score[:, 0, 0], kind="stable")[:count]
        return _Front(score=self.score[first], along=tuple(e.at(first) for e in self.along))

    def with_axis(self, axis: int, extents: Extents) -> tuple[Extents, ...]:
        """Return what the layouts are along every axis, with others along one of them."""
        return (*self.along[:axis], extents, *self.along[axis + 1 :])

    def first(self) -> _Found:
        """Return the first of the layouts."""
        chunks = tuple(int(e.chunks[0, 0, 0]) for e in self.along)
        blocks = tuple(int(e.blocks[0, 0, 0]) for e in self.along)
        return _Found(float(self.score[0, 0, 0]), chunks, blocks)


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
    finalists = _best_blocks(ordered, count=_FINALISTS)
    found = sorted(f for f in (_best_chunks(ordered, blocks) for blocks in finalists) if f)
    if found:
        best = _refined(ordered, found)
    else:
        best = _Found(math.inf, _coarsest(ordered, finalists[0]), finalists[0])
    chunks, blocks = _longest_last(ordered, chunks=best.chunks, blocks=best.blocks)
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
    tried = _Combinations.of(likely, most=_MOST_BLOCKS)
    along = [Extents.of(task, axis=i, blocks=n) for i, n in enumerate(tried.extents)]
    score = layout_score(task, along)
    too_much = amplification_along(task, along) > task.max_amplification * _ROUNDING
    too_large = ~blocks_fit(task, along)
    ranked = tried.ranked(score, too_much, too_large, count=count)
    faults = [(too_large[at], too_much[at]) for at in ranked]
    return [tried.shape_at(at) for at, f in zip(ranked, faults, strict=True) if f == faults[0]]


def _best_chunks(task: Task, blocks: _Shape) -> _Found | None:
    """Return the best chunks for given blocks; None if none fit."""
    likely = [_likely_multiples(n, b) for n, b in zip(task.shape, blocks, strict=True)]
    tried = _Combinations.of(likely, most=_MOST_CHUNKS)
    sizes = enumerate(zip(blocks, tried.extents, strict=True))
    along = [Extents.of(task, axis=i, blocks=b, chunks=c) for i, (b, c) in sizes]
    fits = chunks_fit(task, along)
    if not fits.any():
        return None
    score = np.where(fits, layout_score(task, along), np.inf)
    is_worse = score > score.min() * _AS_GOOD
    first = tried.ranked(score, _unlikeness(task, tried.extents), is_worse, count=1)[0]
    return _Found(float(score[first]), tried.shape_at(first), blocks)


def _refined(task: Task, found: list[_Found]) -> _Found:
    """Return the best of what was found; something better, where it can be refined by much."""
    first = found[0]
    least = amplification_of(task, chunks=first.chunks, blocks=first.blocks)
    task = replace(task, max_amplification=max(task.max_amplification, least))
    tables = {axis: _all_along(task, axis) for axis, n in enumerate(task.shape) if n > 1}
    best = _descended(task, found, tables=tables, rounds=_DESCENTS)
    traded = _traded(task, best)
    if traded:
        best = min(best, _descended(task, traded, tables=tables, rounds=_DESCENTS_AGAIN))
    return best if best.score * _AS_GOOD < first.score else first


def _descended(
    task: Task, starts: list[_Found], *, tables: dict[int, Extents], rounds: tuple[int, ...]
) -> _Found:
    """Return the best that is reached by changes along one axis after the other.

    All starts descend at once; those that are behind are given up before every round.
    """
    front = _Front.of(task, starts)
    for most in rounds:
        front = front.best(most)
        before = front.score
        for axis in sorted(tables, reverse=True):
            front = _lowered(task, front, axis=axis, table=tables[axis])
        if (front.score == before).all():
            break
    return front.best(1).first()


def _traded(task: Task, found: _Found) -> list[_Found]:
    """Return layouts whose blocks and chunks are half as long along one axis, twice along another.

    Descents end where no axis alone can be changed for the better; two together may. What they
    cost is left open.
    """
    n_blocks = [-(-c // b) for c, b in zip(found.chunks, found.blocks, strict=True)]
    traded = []
    for shorter, longer in permutations(range(len(task.shape)), 2):
        blocks = list(found.blocks)
        blocks[shorter] = -(-blocks[shorter] // 2)
        blocks[longer] = min(2 * blocks[longer], task.shape[longer])
        if blocks[shorter] < found.blocks[shorter] and blocks[longer] > found.blocks[longer]:
            sizes = zip(task.shape, n_blocks, blocks, strict=True)
            chunks = tuple(min(n, count * block) for n, count, block in sizes)
            traded.append(_Found(math.inf, chunks, tuple(blocks)))
    return traded


def _all_along(task: Task, axis: int) -> Extents:
    """Return all likely blocks along an axis, each with all likely chunks."""
    n = task.shape[axis]
    blocks = np.array(sorted(_likely_extents(task, axis)), np.float64)[:, np.newaxis]
    multiples = [k for k in (1, *_MULTIPLES) if k < n]
    chunks = np.minimum(blocks * np.array([*multiples, n], np.float64), n)
    return Extents.of(task, axis=axis, blocks=blocks, chunks=chunks)


def _lowered(task: Task, front: _Front, *, axis: int, table: Extents) -> _Front:
    """Return layouts with the best blocks and chunks of a table along one axis."""
    tried = front.with_axis(axis, table)
    allowed = (
        chunks_fit(task, tried)
        & blocks_fit(task, tried)
        & (amplification_along(task, tried) <= task.max_amplification * _ROUNDING)
    )
    score = np.where(allowed, layout_score(task, tried), np.inf)
    # An array of one axis leaves nothing in which the layouts differ.
    score = np.broadcast_to(score, (len(front.score), *table.chunks.shape))
    lowest = score.min(axis=(1, 2), keepdims=True)
    place = score.reshape(len(score), -1).argmin(axis=1)
    row, column = (at.reshape(-1, 1, 1) for at in np.unravel_index(place, score.shape[1:]))
    is_lower = lowest < front.score
    old = front.along[axis]
    new = Extents.of(
        task,
        axis=axis,
        blocks=np.where(is_lower, table.blocks[row, 0], old.blocks),
        chunks=np.where(is_lower, table.chunks[row, column], old.chunks),
    )
    return _Front(score=np.minimum(lowest, front.score), along=front.with_axis(axis, new))


def _unlikeness(task: Task, extents: Sequence[Any]) -> Any:
    """Return how far shapes are from those of the windows: 0 for the same proportions."""
    total = sum(window.weight for window in task.windows)
    usual = sum(
        np.log2(np.array(window.shape)) * (window.weight / total) for window in task.windows
    )
    return rounded(spread([np.log2(n) - u for n, u in zip(extents, usual, strict=True)]))


def _coarsest(task: Task, blocks: _Shape) -> _Shape:
    """Return chunks of given blocks that a frame can hold, if any can, for very large arrays."""
    chunks = list(blocks)
    while math.prod(-(-n // c) for n, c in zip(task.shape, chunks, strict=True)) > MAX_CHUNKS:
        axis = max(range(len(chunks)), key=lambda i: (task.shape[i] / chunks[i], i))
        chunks[axis] = min(2 * chunks[axis], task.shape[axis])
    return tuple(chunks)


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
