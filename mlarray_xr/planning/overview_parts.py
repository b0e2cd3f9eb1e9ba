"""In which parts a file is read once for all of its overviews, and the chunks that these get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.grid import plan_part
from mlarray_xr.planning.overview_levels import level_shape
from mlarray_xr.planning.write_plan import Parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.integrity import ChunkStatistics
    from mlarray_xr.planning.grid import Box

__all__ = ["Constants", "OverviewParts", "constant_pieces", "plan_overview_parts"]

# Of the first level; what is read is larger by the factors, and is held piece by piece only.
_LEVEL_BYTES = 32 << 20
# A piece and its sums stay in the caches.
_PIECE_BYTES = 8 << 20
_LARGEST_PIECE_BYTES = 32 << 20
# Beyond this many chunks, parts that are whole chunks as well as whole cells are too large.
_MOST_CHUNKS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Which pieces of an array hold one value only, as far as that is known without reading."""

    is_known: NDArray[np.bool_]
    """One entry for each piece of the grid."""
    values: NDArray[Any]
    """The value of each piece, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewParts:
    """How a file is read for its overviews: part by part, each part piece by piece.

    Borders of parts and pieces are borders of cells at every level, and those of parts are borders
    of chunks in the file of every level.
    """

    shape: tuple[int, ...]
    """Extents of the array."""
    itemsize: int
    """Bytes of an element."""
    factors: tuple[tuple[int, ...], ...]
    """Of each level along every axis."""
    part: tuple[int, ...]
    """Extents of a part of the array: what one task turns into a part of every level."""
    piece: tuple[int, ...]
    """Extents of a piece: what is read at once; a part is a whole number of them."""
    chunks: tuple[tuple[int, ...], ...]
    """Extents of a chunk in the file of each level."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of parts along each axis."""
        return level_shape(self.shape, self.part)

    def __len__(self) -> int:
        """Return the number of parts."""
        return math.prod(self.grid)

    def box(self, number: int) -> Box:
        """Return the box of a part of the array."""
        position = np.unravel_index(number, self.grid)
        return tuple(
            (int(i) * p, min((int(i) + 1) * p, n))
            for i, p, n in zip(position, self.part, self.shape, strict=True)
        )

    def pieces(self, number: int) -> list[tuple[tuple[int, ...], Box]]:
        """Return position in the grid of pieces, and box, of each piece of a part."""
        ranges = [
            [(i, (i * p, min((i + 1) * p, stop))) for i in range(start // p, -(-stop // p))]
            for (start, stop), p in zip(self.box(number), self.piece, strict=True)
        ]
        return [
            (tuple(i for i, _ in found), tuple(pair for _, pair in found))
            for found in product(*ranges)
        ]

    def level_box(self, box: Box, level: int) -> Box:
        """Return where the cells of a box of the array are in a level, from 1 on."""
        return tuple(
            (start // f, -(-stop // f))
            for (start, stop), f in zip(box, self.factors[level - 1], strict=True)
        )

    def of_level(self, level: int, *, in_flight: int) -> Parts:
        """Return the parts in which the file of a level is written, from 1 on."""
        shape = level_shape(self.shape, self.factors[level - 1])
        extents = []
        for axis, n in enumerate(shape):
            edges = range(0, n, max(1, self.part[axis] // self.factors[level - 1][axis]))
            # Of an axis that is one part, whose extent need not be a multiple of the factor.
            edges = edges if self.part[axis] < self.shape[axis] else range(0, n, n)
            extents.append(tuple(b - a for a, b in pairwise([*edges, n])))
        return Parts(extents=tuple(extents), in_flight=in_flight, itemsize=self.itemsize)


def plan_overview_parts(
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...],
    itemsize: int,
    factors: Sequence[tuple[int, ...]],
) -> OverviewParts:
    """Decide parts, pieces and chunks.

    Parts are whole chunks of the file unless that would take more than 8 of them along an axis,
    and large enough that the first level of one has some 32 MiB; of small files they are smaller,
    for all threads to have work. Levels get the chunks of the file, or what is left of a part.

    Parameters
    ----------
    shape, chunks
        Extents of the array, not empty, and of a chunk of its file.
    itemsize
        Bytes of an element.
    factors
        Of each level, at least of one; see `plan_levels`.

    Examples
    --------
    >>> plan = plan_overview_parts(
    ...     (512, 512), chunks=(96, 96), itemsize=2, factors=[(2, 2), (4, 4)]
    ... )
    >>> plan.part, plan.chunks
    ((512, 512), ((96, 96), (96, 96)))
    """
    unit, piece = _unit_and_piece(shape, chunks=chunks, itemsize=itemsize, factors=factors)
    target_bytes = _LEVEL_BYTES * math.prod(factors[0])
    part = plan_part(shape, tuple(unit), itemsize=itemsize, target_bytes=target_bytes)
    return OverviewParts(
        shape=shape,
        itemsize=itemsize,
        factors=tuple(factors),
        part=part,
        piece=tuple(piece),
        chunks=tuple(
            tuple(
                min(c, -(-n // f)) if p >= n else _largest_divisor(p // f, most=c)
                for n, p, c, f in zip(shape, part, chunks, of_level, strict=True)
            )
            for of_level in factors
        ),
    )


def constant_pieces(
    parts: OverviewParts, statistics: ChunkStatistics, *, chunks: tuple[int, ...]
) -> Constants:
    """Return which pieces hold one value only, by the value ranges of the chunks they touch.

    Floats count when all are zero or all NaN: NaN, which ranges pass over, hides nowhere else.

    Parameters
    ----------
    parts
        How the array is read.
    statistics
        Of its chunks.
    chunks
        Extents of a chunk.

    Examples
    --------
    >>> from mlarray_xr.format.integrity import ChunkStatistics
    >>> least, greatest = np.array([3, 3, 0], "u1"), np.array([3, 3, 9], "u1")
    >>> ranges = ChunkStatistics(least=least, greatest=greatest, nonzero=np.array([4, 4, 2]))
    >>> parts = OverviewParts(
    ...     shape=(12,), itemsize=1, factors=((2,),), part=(8,), piece=(4,), chunks=((4,),)
    ... )
    >>> constant_pieces(parts, ranges, chunks=(4,)).is_known
    array([ True,  True, False])
    """
    grid = level_shape(parts.shape, chunks)
    native = statistics.least.dtype.newbyteorder("=")
    least, greatest, nonzero = (
        column.reshape(grid)
        for column in (
            statistics.least.astype(native),
            statistics.greatest.astype(native),
            statistics.nonzero,
        )
    )
    over_pieces = partial(_over_pieces, parts=parts, chunks=chunks)
    lowest = over_pieces(np.minimum, least)
    if native.kind != "f":
        return Constants(is_known=lowest == over_pieces(np.maximum, greatest), values=lowest)
    is_zero = over_pieces(np.maximum, nonzero) == 0
    # Chunks of nothing but NaN have no range.
    is_nan = over_pieces(np.logical_and, np.isnan(least))
    values = np.where(is_zero, native.type(0), native.type(np.nan))
    return Constants(is_known=is_zero | is_nan, values=values)


def _over_pieces(
    function: np.ufunc, grid: NDArray[Any], *, parts: OverviewParts, chunks: tuple[int, ...]
) -> NDArray[Any]:
    """Reduce a grid of chunks to one entry for each piece, of the chunks that it touches."""
    for axis, (n, c, p) in enumerate(zip(parts.shape, chunks, parts.piece, strict=True)):
        spans = [(start // c, (min(start + p, n) - 1) // c + 1) for start in range(0, n, p)]
        grid = _over_spans(function, grid, axis, spans)
    return grid


def _over_spans(
    function: np.ufunc, grid: NDArray[Any], axis: int, spans: list[tuple[int, int]]
) -> NDArray[Any]:
    """Reduce a grid along one axis to an entry for each span, which may overlap."""
    # reduceat takes starts alone: of pairs (start, stop) every other result is a span's. The last
    # stop has to exist, and is not looked at.
    padded = np.concatenate([grid, np.take(grid, [-1], axis)], axis)
    result: NDArray[Any] = function.reduceat(
        padded, [edge for span in spans for edge in span], axis
    )
    return np.take(result, range(0, 2 * len(spans), 2), axis)


def _unit_and_piece(
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...],
    itemsize: int,
    factors: Sequence[tuple[int, ...]],
) -> tuple[list[int], list[int]]:
    """Return what parts are made of, and the pieces in which that is read."""
    pairs = list(zip(chunks, factors[0], factors[-1], strict=True))
    # The first level, which is the largest, gets the chunks of the file.
    wanted = [_whole_cells(c * first, last) for c, first, last in pairs]
    unit = [min(n, extent) for n, extent in zip(shape, wanted, strict=True)]
    while math.prod(unit) * itemsize < _PIECE_BYTES // 2 and unit != list(shape):
        axis = min((a for a, n in enumerate(shape) if unit[a] < n), key=unit.__getitem__)
        unit[axis] = min(shape[axis], 2 * unit[axis])
    whole_chunks = [_whole_cells(c, last) for c, _, last in pairs]
    piece = _cut(unit, shape, steps=whole_chunks, most=_PIECE_BYTES // itemsize)
    if math.prod(piece) * itemsize > _LARGEST_PIECE_BYTES:
        # Chunks are larger than that: blocks at the borders of such pieces are decoded twice.
        whole_cells = [last for _, _, last in pairs]
        piece = _cut(piece, shape, steps=whole_cells, most=_PIECE_BYTES // itemsize)
    return unit, piece


def _cut(
    extents: Sequence[int], shape: tuple[int, ...], *, steps: Sequence[int], most: int
) -> list[int]:
    """Return a piece of no more than so many elements, if it can be of whole steps."""
    piece = list(extents)
    while math.prod(piece) > most:
        halves = [
            axis
            for axis, (extent, step) in enumerate(zip(piece, steps, strict=True))
            # Pieces divide parts; of an axis that is one part they need not.
            if extent > step and (extent % (2 * step) == 0 or extents[axis] == shape[axis])
        ]
        if not halves:
            break
        axis = max(halves, key=piece.__getitem__)
        piece[axis] = -(-piece[axis] // (2 * steps[axis])) * steps[axis]
    return piece


def _whole_cells(chunk: int, factor: int) -> int:
    """Return an extent of whole cells, and of whole chunks where that is not too large."""
    both = math.lcm(chunk, factor)
    if both <= _MOST_CHUNKS * max(chunk, factor):
        return both
    doublings = max(0, math.ceil(math.log2(_MOST_CHUNKS / 2 * chunk / factor)))
    return factor << doublings  # halves of it can be chunks of the levels


def _largest_divisor(number: int, *, most: int) -> int:
    """Return the largest divisor of a number that is not above a limit."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)
