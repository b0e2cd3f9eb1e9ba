"""Boxes of a file that are read to be timed: random patches, and small probes near them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout

__all__ = ["probe_boxes", "random_boxes", "random_voxels", "touched_by"]

# Of what a probe decodes: it is for the cache, and 16 axes have 65536 corners.
_PROBE_BYTES, _MOST_AXES = 8 << 20, 3


def random_boxes(
    shape: Sequence[int], window: Sequence[int], *, count: int, seed: int
) -> list[Box]:
    """Return boxes of one shape, at offsets of which each is as likely as any other.

    Parameters
    ----------
    shape, window
        Of the array and of a box that fits in; array order.
    count
        How many.
    seed
        The same seed gives the same boxes.

    Examples
    --------
    >>> random_boxes((10, 1), (10, 1), count=1, seed=0)
    [((0, 10), (0, 1))]
    """
    rng = np.random.default_rng(seed)
    last = np.subtract(shape, window)
    starts = rng.integers(0, last, (count, len(window)), endpoint=True).tolist()
    return [tuple((a, a + p) for a, p in zip(start, window, strict=True)) for start in starts]


def random_voxels(
    shape: Sequence[int], window: Sequence[int], *, count: int, seed: int
) -> list[tuple[int, ...]]:
    """Return random voxels of random boxes: what is around them compresses as the boxes do.

    Examples
    --------
    >>> random_voxels((1, 1), (1, 1), count=2, seed=0)
    [(0, 0), (0, 0)]
    """
    rng = np.random.default_rng(seed)
    last = np.subtract(shape, window)
    starts = rng.integers(0, last, (count, len(window)), endpoint=True)
    voxels: list[list[int]] = (starts + rng.integers(0, window, starts.shape)).tolist()
    return [tuple(voxel) for voxel in voxels]


def touched_by(box: Box, *, chunks: Sequence[int], blocks: Sequence[int]) -> tuple[int, int]:
    """Count the chunks and the blocks that a box touches; blocks begin anew in every chunk.

    Examples
    --------
    >>> touched_by(((9, 11), (0, 5)), chunks=(10, 10), blocks=(5, 5))
    (2, 2)
    """
    n_chunks = n_blocks = 1
    for (start, stop), chunk, block in zip(box, chunks, blocks, strict=True):
        per_chunk = -(-chunk // block)
        (first, low), (last, high) = divmod(start, chunk), divmod(stop - 1, chunk)
        n_chunks *= last - first + 1
        n_blocks *= (last - first) * per_chunk + high // block - low // block + 1
    return n_chunks, n_blocks


def probe_boxes(
    voxel: Sequence[int], *, shape: Sequence[int], layout: Layout, itemsize: int
) -> tuple[Box, Box, Box, Box]:
    """Return four small boxes near a voxel whose costs are of different kinds.

    The voxel, which is hardly more than a call; the voxels around the nearest corner of blocks of
    its chunk, which is decoding; these blocks, which is decoding and copying; the voxels around
    the nearest corner of chunks, which is chunks. No more than 8 blocks or chunks meet, and what
    is decoded is at most 8 MiB or one block; where nothing meets, boxes are alike.

    Examples
    --------
    >>> from mlarray_xr import Layout
    >>> layout = Layout(chunks=(20, 30), blocks=(10, 10))
    >>> probes = probe_boxes((3, 32), shape=(20, 90), layout=layout, itemsize=2)
    >>> probes[0], probes[1]
    (((3, 4), (32, 33)), ((9, 11), (39, 41)))
    >>> probes[2], probes[3]
    (((0, 20), (30, 50)), ((3, 4), (29, 31)))
    """
    chunks, blocks = layout.chunks, layout.blocks
    firsts = [x // c * c for x, c in zip(voxel, chunks, strict=True)]
    ends = [min(a + c, n) for a, c, n in zip(firsts, chunks, shape, strict=True)]
    most = _most_axes(math.prod(blocks) * itemsize)
    inner = _borders(voxel, starts=firsts, stops=ends, sizes=blocks, most=most)
    outer = _borders(voxel, starts=[0] * len(shape), stops=shape, sizes=chunks, most=most)
    whole = []
    for border, x, first, end, b in zip(inner, voxel, firsts, ends, blocks, strict=True):
        low = (x - first) // b * b + first if border is None else border - b
        high = low + b if border is None else border + b
        whole.append((low, min(high, end)))
    alone = tuple((x, x + 1) for x in voxel)
    return alone, _around(inner, voxel), tuple(whole), _around(outer, voxel)


def _most_axes(block_bytes: int) -> int:
    """Return along how many axes two blocks may be read at once."""
    return max(0, min(_MOST_AXES, (_PROBE_BYTES // block_bytes).bit_length() - 1))


def _borders(
    voxel: Sequence[int],
    *,
    starts: Sequence[int],
    stops: Sequence[int],
    sizes: Sequence[int],
    most: int,
) -> list[int | None]:
    """Return where, nearest to a voxel, two cells meet along the last few axes that have two."""
    borders: list[int | None] = []
    for x, start, stop, size in zip(voxel, starts, stops, sizes, strict=True):
        n_cells = -(-(stop - start) // size)
        nearest = (2 * (x - start) + size) // (2 * size)
        at = start + min(max(nearest, 1), n_cells - 1) * size
        borders.append(at if n_cells > 1 else None)
    having = [axis for axis, border in enumerate(borders) if border is not None]
    kept = having[max(0, len(having) - most) :]
    return [border if axis in kept else None for axis, border in enumerate(borders)]


def _around(borders: Sequence[int | None], voxel: Sequence[int]) -> Box:
    """Return the voxels beside borders; along other axes the voxel itself."""
    return tuple(
        (x, x + 1) if border is None else (border - 1, border + 1)
        for border, x in zip(borders, voxel, strict=True)
    )
