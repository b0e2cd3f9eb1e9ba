"""Boxes, chunk grids and parts: the integer arithmetic of who reads what.

A *box* is a start/stop pair per axis, array order. A *part* is the box one Dask task handles: a
whole number of file chunks along every axis.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np

from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = [
    "Box",
    "box_shape",
    "check_box",
    "chunk_boxes",
    "is_empty",
    "part_boxes",
    "plan_part",
    "plan_pieces",
    "plan_slabs",
    "surrounding_blocks",
    "touched_chunks",
]

Box = tuple[tuple[int, int], ...]

DEFAULT_PART_BYTES = 128 << 20
_SMALLEST_PART_BYTES = 32 << 20
_PARTS_WANTED = 64


def box_shape(box: Box) -> tuple[int, ...]:
    """Return the extents of a box."""
    return tuple(stop - start for start, stop in box)


def is_empty(box: Box) -> bool:
    """Tell whether a box holds no element."""
    return any(start >= stop for start, stop in box)


def check_box(box: Sequence[tuple[SupportsIndex, SupportsIndex]], shape: tuple[int, ...]) -> Box:
    """Return the box as plain integers, inside the array.

    Raises
    ------
    IndexError
        When the box has another number of axes than the array, or reaches outside it.
    """
    if len(box) != len(shape):
        msg = f"box {tuple(box)} has {len(box)} axes, the array has {len(shape)}: {shape}"
        raise IndexError(msg)
    plain = tuple((operator.index(start), operator.index(stop)) for start, stop in box)
    for axis, ((start, stop), extent) in enumerate(zip(plain, shape, strict=True)):
        if not 0 <= start <= stop <= extent:
            msg = (
                f"box {start}:{stop} on axis {axis} does not fit the extent {extent}. "
                "Boxes are not clipped; negative positions do not count from the end"
            )
            raise IndexError(msg)
    return plain


def surrounding_blocks(
    box: Box, *, shape: tuple[int, ...], chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> Box:
    """Return the box of all blocks that a non-empty box touches, clipped to the array.

    Examples
    --------
    >>> surrounding_blocks(((9, 11), (5, 6)), shape=(30, 30), chunks=(10, 10), blocks=(4, 4))
    ((8, 14), (4, 8))
    """
    around = []
    for (start, stop), n, c, b in zip(box, shape, chunks, blocks, strict=True):
        first, last = start // c * c, (stop - 1) // c * c
        low = first + (start - first) // b * b
        # Blocks restart at every chunk border: a chunk need not be a whole number of blocks.
        high = min(last + (stop - 1 - last) // b * b + b, last + c, n)
        around.append((low, high))
    return tuple(around)


def touched_chunks(
    box: Box, *, chunks: tuple[int, ...], grid: tuple[int, ...]
) -> NDArray[np.int64]:
    """Return the numbers of the chunks that a non-empty box touches, in C order of the grid."""
    numbers = np.zeros((1,) * len(box), np.int64)
    for axis, ((start, stop), chunk) in enumerate(zip(box, chunks, strict=True)):
        along = np.arange(start // chunk, (stop - 1) // chunk + 1, dtype=np.int64)
        stride = math.prod(grid[axis + 1 :])
        shape = [1] * len(box)
        shape[axis] = len(along)
        numbers = numbers + (along * stride).reshape(shape)
    return numbers.reshape(-1)


def chunk_boxes(box: Box, *, chunks: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Box]]:
    """Iterate over the chunks a box touches: grid position, and the part of the box inside.

    The boxes together are the box, exactly once, in C order of the chunk grid.
    """
    ranges = []
    for (start, stop), chunk in zip(box, chunks, strict=True):
        positions = range(start // chunk, -(-stop // chunk)) if stop > start else range(0)
        ranges.append([(i, (max(start, i * chunk), min(stop, (i + 1) * chunk))) for i in positions])
    for combination in itertools.product(*ranges):
        yield tuple(i for i, _ in combination), tuple(pair for _, pair in combination)


def part_boxes(shape: tuple[int, ...], part: tuple[int, ...]) -> Iterator[Box]:
    """Iterate over the parts of an array in C order; together they are the array, exactly once."""
    ranges = [
        [(start, min(start + p, n)) for start in range(0, n, p)]
        for n, p in zip(shape, part, strict=True)
    ]
    yield from itertools.product(*ranges)


def plan_slabs(
    box: Box, *, chunks: tuple[int, ...], blocks: tuple[int, ...], n_slabs: int
) -> list[Box]:
    """Split a box into slabs whose elements are contiguous ranges of a C-order buffer.

    The cut axis is the first one longer than 1: only such slabs are contiguous. Cuts fall on
    chunk borders where there are enough of them, else on block borders, so that no block is
    decoded twice. The slabs together are the box, exactly once, in order.

    Parameters
    ----------
    box
        A non-empty box.
    chunks, blocks
        Shapes of chunk and block, array order.
    n_slabs
        How many slabs are wanted; fewer come back when there are fewer borders.
    """
    axis = next((i for i, (start, stop) in enumerate(box) if stop - start > 1), None)
    if axis is None or n_slabs <= 1:
        return [box]
    start, stop = box[axis]
    chunk, block = chunks[axis], blocks[axis]
    has_chunk_borders = (stop - 1) // chunk - start // chunk >= n_slabs - 1
    edges = [start]
    for i in range(1, n_slabs):
        wanted = start + (stop - start) * i // n_slabs
        # Blocks restart at every chunk border: a chunk need not be a whole number of blocks.
        first = wanted // chunk * chunk
        step = chunk if has_chunk_borders else block
        edge = min(first + (wanted - first + step // 2) // step * step, first + chunk)
        if edges[-1] < edge < stop:
            edges.append(edge)
    return [(*box[:axis], pair, *box[axis + 1 :]) for pair in itertools.pairwise([*edges, stop])]


def plan_pieces(
    box: Box, *, chunks: tuple[int, ...], blocks: tuple[int, ...], n_elements: int
) -> Iterator[Box]:
    """Split a box into pieces that stay in a cache and cut no block.

    The last axes are kept whole as far as the size allows, so that a piece is copied to its place
    in long runs; the first ones are cut down to single blocks. The pieces together are the box,
    exactly once, in C order.

    Parameters
    ----------
    box
        A non-empty box.
    chunks, blocks
        Shapes of chunk and block, array order.
    n_elements
        Elements of a piece; one block along every axis is the smallest.
    """
    ranges: list[list[tuple[int, int]]] = []
    left = n_elements
    for axis in reversed(range(len(box))):
        (start, stop), chunk, block = box[axis], chunks[axis], blocks[axis]
        before = math.prod(
            min(b, last - first) for b, (first, last) in zip(blocks, box[:axis], strict=False)
        )
        room = max(1, left // before)
        step = room // chunk * chunk or min(max(block, room // block * block), chunk)
        if room >= stop - start:
            ranges.append([(start, stop)])
        else:
            # Blocks restart at every chunk border: a chunk need not be a whole number of blocks.
            stride = max(chunk, step)
            firsts = range(start // stride * stride, stop, stride)
            edges = (edge for first in firsts for edge in range(first, first + stride, step))
            inside = [start, *(edge for edge in edges if start < edge < stop), stop]
            ranges.append(list(itertools.pairwise(inside)))
        left = max(1, left // max(b - a for a, b in ranges[-1]))
    yield from itertools.product(*reversed(ranges))


def plan_part(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    itemsize: int,
    target_bytes: int | None = None,
    patch: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Choose the part one Dask task reads: whole file chunks, sized for a task.

    The part is the patch (one chunk when there is no patch) scaled up as far as the target allows,
    rounded to whole chunks. The target is 128 MiB, less for small arrays so that there are about
    64 parts of at least 32 MiB to share among workers. Extents are then evened out, so that the
    last part is not a sliver.

    Parameters
    ----------
    shape, chunks
        Shapes of array and file chunk, array order.
    itemsize
        Bytes of one element.
    target_bytes
        Upper bound of a part, bytes. One chunk is the smallest part, whatever the bound.
    patch
        Window that will be taken from the array, array order; shapes the part.

    Returns
    -------
    tuple of int
        Extents of a part: a multiple of the chunk along every axis, or the whole axis.

    Raises
    ------
    LayoutError
        When the shapes do not have the same number of axes.
    """
    if len(shape) != len(chunks) or (patch is not None and len(patch) != len(shape)):
        msg = f"shape {shape}, chunks {chunks} and patch {patch} differ in their number of axes"
        raise LayoutError(msg)
    if 0 in shape:
        return tuple(max(n, 1) for n in shape)
    ceiling = DEFAULT_PART_BYTES if target_bytes is None else target_bytes
    fair_share = math.prod(shape) * itemsize // _PARTS_WANTED
    target = min(ceiling, max(_SMALLEST_PART_BYTES, fair_share))
    weights = [max(w, 1) for w in (chunks if patch is None else patch)]
    grid = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]

    def extents(counts: list[int]) -> list[int]:
        return [min(k * c, n) for k, c, n in zip(counts, chunks, shape, strict=True)]

    def scaled(scale: int) -> list[int]:
        # Exact in integers: `scale` is in 1/64 of the patch.
        wanted = (scale * w // (64 * c) for w, c in zip(weights, chunks, strict=True))
        return [min(max(k, 1), n) for k, n in zip(wanted, grid, strict=True)]

    def fits(counts: list[int]) -> bool:
        return math.prod(extents(counts)) * itemsize <= target

    # Bisection, not growth chunk by chunk: a hostile file may have 2^28 tiny chunks.
    low, high = 0, 64 * max(shape, default=1) + 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(scaled(middle)) else (low, middle)
    counts = scaled(low)
    part = extents(counts)
    for axis in sorted(range(len(shape)), key=lambda i: (part[i] / weights[i], -i)):
        row = math.prod(extents([*counts[:axis], 1, *counts[axis + 1 :]])) * itemsize
        counts[axis] = min(grid[axis], max(counts[axis], target // max(row, 1)))
    even = [-(-n // -(-n // k)) for n, k in zip(grid, counts, strict=True)]
    return tuple(extents(even))
