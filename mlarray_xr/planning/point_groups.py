"""Points grouped by chunk and block, so that each touched block is decoded once."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = ["PointGroups", "RangePiece", "group_points", "plan_range_pieces"]

_DECODED_BYTES = 16 << 20
_PIECE_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PointGroups:
    """Points sorted by chunk and block, cut into groups that lie in one chunk each.

    Numbers of chunks and blocks are C-order numbers with the axes that have no points at 0: what a
    `RangePiece` adds are those axes.
    """

    rows: NDArray[np.intp]
    """The points in the order of their groups."""
    ranks: NDArray[np.int64]
    """Of each of them, which of its group's blocks it lies in."""
    local: NDArray[np.int64]
    """Of each of them, the C-order number of its element inside the block."""
    row_bounds: list[int]
    """Where each group begins in `rows`, and where the last one ends."""
    blocks: NDArray[np.int64]
    """Numbers of the touched blocks in their chunk, ascending inside each group."""
    block_bounds: list[int]
    """Where each group begins in `blocks`, and where the last one ends."""
    chunks: list[int]
    """Number of each group's chunk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RangePiece:
    """The positions of the axes without points that lie in one chunk, as their outer product."""

    target: tuple[slice, ...]
    """Where they go along the ranges of the result, per axis."""
    chunk: int
    """What they add to the number of the chunk."""
    blocks: NDArray[np.int64]
    """What the touched blocks add to the number of the block, ascending."""
    ranks: NDArray[np.int64]
    """Of each position, which of these blocks it lies in."""
    local: NDArray[np.int64]
    """Of each position, what it adds to the number of the element inside the block."""


def group_points(
    points: Sequence[NDArray[np.intp]],
    *,
    axes: Sequence[int],
    header: FrameHeader,
    blocks_per_point: int,
) -> PointGroups:
    """Sort points by chunk and block.

    Parameters
    ----------
    points
        Positions along each of `axes`, at least one, all equally long, inside the array.
    axes
        The axes that have points.
    header
        Of the frame they lie in.
    blocks_per_point
        How many blocks the ranges of the other axes make of each touched one, at most. Groups are
        cut so that their blocks decode to 16 MiB at most, or are a single one.
    """
    grid, block_grid = header.chunk_grid, _block_grid(header)
    per_chunk = math.prod(block_grid)
    key = np.zeros(len(points[0]), np.int64)
    local = np.zeros(len(points[0]), np.int64)
    for positions, axis in zip(points, axes, strict=True):
        chunk, inside = np.divmod(positions, header.chunks[axis])
        chunk *= math.prod(grid[axis + 1 :]) * per_chunk
        key += chunk
        block, inside = np.divmod(inside, header.blocks[axis])
        block *= math.prod(block_grid[axis + 1 :])
        key += block
        inside *= math.prod(header.blocks[axis + 1 :])
        local += inside
    # The order inside a block does not matter, and an unstable sort is several times as fast.
    rows = np.argsort(key)
    key = key[rows]
    starts = _starts(key)
    blocks = key[starts]
    chunks = blocks // per_chunk
    first = _starts(chunks)
    # Inside a chunk a new group begins wherever the blocks of the one before are full.
    ordinal = np.arange(len(blocks)) - np.repeat(first, np.diff(first, append=len(blocks)))
    most = max(1, _DECODED_BYTES // header.blocksize // blocks_per_point)
    groups = np.flatnonzero(ordinal % most == 0)
    ranks = np.repeat(ordinal % most, np.diff(starts, append=len(rows)))
    return PointGroups(
        rows=rows,
        ranks=ranks,
        local=local[rows],
        row_bounds=[*starts[groups].tolist(), len(rows)],
        blocks=blocks - chunks * per_chunk,
        block_bounds=[*groups.tolist(), len(blocks)],
        chunks=chunks[groups].tolist(),
    )


def plan_range_pieces(
    ranges: Sequence[range], *, axes: Sequence[int], header: FrameHeader
) -> list[RangePiece]:
    """Cut ranges, which have no points, into pieces of one chunk and about 2^20 elements at most.

    Parameters
    ----------
    ranges
        Positions along each of `axes`, none of them empty; without any, there is one piece.
    axes
        The axes that have no points.
    header
        Of the frame they lie in.
    """
    left = max(1, _PIECE_ELEMENTS // math.prod(header.blocks))
    along: list[list[tuple[slice, NDArray[np.int64]]]] = []
    for wanted, axis in zip(ranges, axes, strict=True):
        pieces = list(_axis_pieces(wanted, axis=axis, header=header, most=left))
        along.append(pieces)
        left = max(1, left // max(_n_blocks(p, axis, header) for _, p in pieces))
    return [_crossed(combination, axes, header) for combination in itertools.product(*along)]


def _crossed(
    pieces: tuple[tuple[slice, NDArray[np.int64]], ...], axes: Sequence[int], header: FrameHeader
) -> RangePiece:
    """Cross the pieces of single axes."""
    chunk = 0
    block = np.zeros((1,) * len(pieces), np.int64)
    local = block.copy()
    for i, ((_, positions), axis) in enumerate(zip(pieces, axes, strict=True)):
        shape = [1] * len(pieces)
        shape[i] = -1
        number, inside = np.divmod(positions, header.chunks[axis])
        chunk += int(number[0]) * math.prod(header.chunk_grid[axis + 1 :])
        number, inside = np.divmod(inside, header.blocks[axis])
        block = block + (number * math.prod(_block_grid(header)[axis + 1 :])).reshape(shape)
        local = local + (inside * math.prod(header.blocks[axis + 1 :])).reshape(shape)
    blocks, ranks = np.unique(block, return_inverse=True)
    return RangePiece(
        target=tuple(target for target, _ in pieces),
        chunk=chunk,
        blocks=blocks,
        ranks=ranks.reshape(-1),
        local=local.reshape(-1),
    )


def _axis_pieces(
    wanted: range, *, axis: int, header: FrameHeader, most: int
) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Yield the parts of a range that lie in one chunk and at most so many blocks of it."""
    positions = np.arange(wanted.start, wanted.stop, wanted.step, dtype=np.int64)
    number, inside = np.divmod(positions, header.chunks[axis])
    column = inside // header.blocks[axis] // most
    cuts = np.flatnonzero((np.diff(number) != 0) | (np.diff(column) != 0)) + 1
    for start, stop in itertools.pairwise([0, *cuts.tolist(), len(positions)]):
        yield slice(start, stop), positions[start:stop]


def _n_blocks(positions: NDArray[np.int64], axis: int, header: FrameHeader) -> int:
    """Count the blocks that positions of one chunk touch along one axis."""
    return len(np.unique(positions % header.chunks[axis] // header.blocks[axis]))


def _starts(ordered: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return where each run of equal numbers begins."""
    return np.concatenate((np.zeros(1, np.intp), np.flatnonzero(np.diff(ordered)) + 1))


def _block_grid(header: FrameHeader) -> tuple[int, ...]:
    """Return how many blocks a padded chunk has along each axis."""
    return tuple(-(-c // b) for c, b in zip(header.chunks, header.blocks, strict=True))
