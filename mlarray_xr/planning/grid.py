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
    "plan_slabs",
    "touched_chunks",
]

Box = tuple[tuple[int, int], ...]

DEFAULT_PART_BYTES = 128 << 20
_SMALLEST_PART_BYTES = 16 << 20
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
    borders = list(range((start // chunk + 1) * chunk, stop, chunk))
    if len(borders) < n_slabs - 1:
        # Blocks restart at every chunk border: a chunk need not be a whole number of blocks.
        firsts = [start // chunk * chunk, *borders]
        inner = (range(first, min(first + chunk, stop), block) for first in firsts)
        borders = [b for b in itertools.chain.from_iterable(inner) if start < b < stop]
    if not borders:
        return [box]
    wanted = [start + (stop - start) * i / n_slabs for i in range(1, n_slabs)]
    nearest = np.searchsorted(borders, wanted)
    cuts = {borders[min(i, len(borders) - 1)] for i in nearest.tolist()}
    edges = [start, *sorted(cuts), stop]
    return [(*box[:axis], (a, b), *box[axis + 1 :]) for a, b in itertools.pairwise(edges) if a < b]


def plan_part(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    itemsize: int,
    target_bytes: int | None = None,
    patch: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Choose the part one Dask task reads: whole file chunks, sized for a task.

    The part grows chunk by chunk along the axis where it is shortest compared with the patch (in
    chunks when there is no patch), until one more chunk would exceed the target. The target is
    128 MiB, less for small arrays so that there are about 64 parts of at least 16 MiB to share
    among workers. Extents are then evened out, so that the last part is not a sliver.

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
    weights = patch if patch is not None else chunks
    grid = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    counts = [1] * len(shape)

    def extents(counts: list[int]) -> list[int]:
        return [min(k * c, n) for k, c, n in zip(counts, chunks, shape, strict=True)]

    growing = [axis for axis, n in enumerate(grid) if n > 1]
    while growing:
        part = extents(counts)
        axis = min(growing, key=lambda i: (part[i] / max(weights[i], 1), -i))
        counts[axis] += 1
        if math.prod(extents(counts)) * itemsize > target:
            counts[axis] -= 1
            growing.remove(axis)
        elif counts[axis] == grid[axis]:
            growing.remove(axis)
    even = [-(-n // -(-n // k)) for n, k in zip(grid, counts, strict=True)]
    return tuple(extents(even))
