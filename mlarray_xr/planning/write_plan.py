"""The parts in which a file is written, and the memory that takes: decided before anything runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.planning.grid import plan_part

if TYPE_CHECKING:
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout

__all__ = ["Parts", "check_chunk_borders", "plan_parts", "plan_streamed_parts", "recut"]

# Large enough that a scheduler's 3 ms per task vanish, small enough for any worker.
_PART_BYTES = 128 << 20
_LARGEST_BYTES = 256 << 20
_SMALLEST_BYTES = 16 << 20
# What is unpacked while the slab before it is encoded; the first and the last one have no company.
_SLAB_BYTES = 8 << 20
# A part in memory, what it was made from, and its compressed chunks.
_COPIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """How an array is cut into the parts that tasks write: whole file chunks, in C order.

    Together with values, layout and codec it decides the bytes of the file: chunks stand part
    after part.

    Parameters
    ----------
    extents
        Along every axis the extents of the parts; all but the last are multiples of the chunk.
    in_flight
        How many parts one process works on at the same time.
    itemsize
        Bytes of an element.
    origin
        Where the first part begins, a chunk border; None is the array's first element.

    Examples
    --------
    >>> parts = Parts(extents=((4, 2), (6,)), in_flight=2, itemsize=1)
    >>> list(parts.boxes())
    [((0, 4), (0, 6)), ((4, 6), (0, 6))]
    >>> parts.number_of((1, 0)), parts.largest_bytes, parts.peak_bytes
    (1, 24, 144)
    """

    extents: tuple[tuple[int, ...], ...]
    in_flight: int
    itemsize: int
    origin: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of parts along each axis."""
        return tuple(map(len, self.extents))

    @property
    def largest_bytes(self) -> int:
        """Decoded bytes of the largest part."""
        return math.prod(max(along, default=0) for along in self.extents) * self.itemsize

    @property
    def peak_bytes(self) -> int:
        """Memory that one process needs for parts, bytes; what tasks before them hold is extra."""
        return self.in_flight * _COPIES * self.largest_bytes

    def __len__(self) -> int:
        """Return the number of parts: none of an empty array."""
        return 0 if any(0 in along for along in self.extents) else math.prod(self.grid)

    def boxes(self) -> list[Box]:
        """Return the boxes of the parts in C order."""
        if not len(self):
            return []
        starts = self.origin or (0,) * len(self.extents)
        edges = [
            list(itertools.accumulate(along, initial=start))
            for along, start in zip(self.extents, starts, strict=True)
        ]
        return list(itertools.product(*(list(itertools.pairwise(along)) for along in edges)))

    def placed(self, box: Box) -> Box:
        """Return where a box that counts from the first part is in the array."""
        starts = self.origin or (0,) * len(box)
        return tuple((a + start, b + start) for (a, b), start in zip(box, starts, strict=True))

    def number_of(self, position: tuple[int, ...]) -> int:
        """Return the C-order number of the part at a position in the grid."""
        return int(np.ravel_multi_index(position, self.grid)) if position else 0


def plan_parts(
    shape: tuple[int, ...],
    layout: Layout,
    *,
    itemsize: int,
    in_flight: int,
    source_chunks: tuple[tuple[int, ...], ...] | None = None,
    memory_limit: int | None = None,
    thread_bytes: int | None = None,
) -> Parts:
    """Decide the parts of a write.

    Parts are near 128 MiB, of small arrays 32 MiB, and less where workers have little memory. The
    chunks of a Dask array are taken as they are when their borders are borders of file chunks and
    they have from 16 to 256 MiB; otherwise parts get the shape of such a chunk, rounded to whole
    file chunks.

    Parameters
    ----------
    shape
        Extents of the array.
    layout
        Chunks and blocks of the file.
    itemsize
        Bytes of an element.
    in_flight
        How many parts a process works on at the same time.
    source_chunks
        The chunks of a Dask array, along every axis.
    memory_limit
        Bytes that the parts of one process may take; makes parts smaller.
    thread_bytes
        Memory that a thread of a worker has. Half of it is for its part, as far as whole chunks
        allow; what produces the part needs the rest.

    Raises
    ------
    LayoutError
        When not even one chunk at a time fits the limit.

    Examples
    --------
    >>> from mlarray_xr.planning.layout import Layout
    >>> layout = Layout(chunks=(64, 64, 64), blocks=(16, 16, 16))
    >>> plan_parts((512, 512, 512), layout, itemsize=2, in_flight=2).grid
    (2, 2, 2)
    """
    ceiling, target = _LARGEST_BYTES, _PART_BYTES
    smallest = math.prod(min(c, n) for c, n in zip(layout.chunks, shape, strict=True)) * itemsize
    if thread_bytes is not None:
        ceiling = min(ceiling, max(smallest, thread_bytes // 2 // _COPIES))
        target = min(target, ceiling)
    if memory_limit is not None:
        ceiling = min(ceiling, memory_limit // (_COPIES * in_flight))
        target = min(target, ceiling)
        if ceiling < smallest:
            msg = (
                f"memory_limit={memory_limit}: {in_flight} parts at a time of at least one chunk "
                f"{layout.chunks} of {smallest} bytes need {smallest * _COPIES * in_flight} bytes. "
                "To fix: (1) raise the limit; (2) smaller chunks; (3) fewer threads per worker"
            )
            raise LayoutError(msg)
    if source_chunks is not None:
        source_chunks = tuple(tuple(n for n in along if n) or (0,) for along in source_chunks)
        kept = Parts(extents=source_chunks, in_flight=in_flight, itemsize=itemsize)
        least = 0 if len(kept) <= 1 else min(_SMALLEST_BYTES, ceiling)
        is_sized = least <= kept.largest_bytes <= ceiling
        if is_sized and is_aligned(source_chunks, layout.chunks):
            return kept
    patch = None
    if source_chunks is not None and 0 not in shape:
        patch = tuple(max(along) for along in source_chunks)
    part = plan_part(shape, layout.chunks, itemsize=itemsize, target_bytes=target, patch=patch)
    extents = tuple(
        tuple(min(p, n - start) for start in range(0, n, p)) or (0,)
        for n, p in zip(shape, part, strict=True)
    )
    return Parts(extents=extents, in_flight=in_flight, itemsize=itemsize)


def plan_streamed_parts(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    *,
    itemsize: int,
    in_flight: int,
    axis: int,
    memory_limit: int | None = None,
) -> Parts | None:
    """Decide the parts of a write whose values come one after another along an axis.

    Parts span all other axes. They are near 8 MiB and at least one chunk thick.

    Parameters
    ----------
    shape, chunks
        Extents of the array, and of a chunk of the file.
    itemsize
        Bytes of an element.
    in_flight
        How many parts a process works on at the same time.
    axis
        Along which parts are cut.
    memory_limit
        Bytes that the parts of one process may take; makes parts smaller.

    Returns
    -------
    Parts or None
        None where a part would take more than 256 MiB or the limit allows, and where there would be
        fewer than two.

    Examples
    --------
    >>> plan_streamed_parts(
    ...     (64, 64, 40, 30), (64, 64, 40, 3), itemsize=2, in_flight=2, axis=3
    ... ).extents
    ((64,), (64,), (40,), (24, 6))
    >>> plan_streamed_parts((64, 64, 40, 30), (16, 16, 16, 30), itemsize=2, in_flight=2, axis=3)
    """
    ceiling = _LARGEST_BYTES
    if memory_limit is not None:
        ceiling = min(ceiling, memory_limit // (_COPIES * in_flight))
    n_elements = math.prod(shape)
    if n_elements < 2 or shape[axis] <= chunks[axis]:
        return None
    chunk_bytes = n_elements // shape[axis] * chunks[axis] * itemsize
    if chunk_bytes > ceiling:
        return None
    thickness = max(1, min(_SLAB_BYTES, ceiling) // chunk_bytes) * chunks[axis]
    if thickness >= shape[axis]:
        return None
    along = tuple(min(thickness, shape[axis] - start) for start in range(0, shape[axis], thickness))
    extents = tuple(along if at == axis else (n,) for at, n in enumerate(shape))
    return Parts(extents=extents, in_flight=in_flight, itemsize=itemsize)


def recut(parts: Parts, extents: Any, *, chunks: tuple[int, ...], folder: str) -> Parts:
    """Return the parts of an earlier write of the same array, by the record it left.

    Parameters
    ----------
    parts
        How the array would be cut now.
    extents
        What was recorded, which may be damaged.
    chunks
        Chunks of the file.
    folder
        Where the record is, for errors.

    Raises
    ------
    ConversionError
        When the record is damaged.

    Examples
    --------
    >>> parts = Parts(extents=((4, 2), (6,)), in_flight=2, itemsize=1)
    >>> recut(parts, [[2, 2, 2], [6]], chunks=(2, 3), folder="a.mla.parts").grid
    (3, 1)
    """
    try:
        found = tuple(tuple(map(index, along)) for along in extents)
        is_sound = is_aligned(found, chunks) and all(
            sum(along) == sum(now) and (min(along, default=0) > 0 or along == (0,))
            for along, now in zip(found, parts.extents, strict=True)
        )
    except (TypeError, ValueError, ZeroDivisionError):
        is_sound = False
    if not is_sound:
        msg = f"{folder}: the record of the write is damaged. To fix: resume=False starts over"
        raise ConversionError(msg)
    return replace(parts, extents=found)


def is_aligned(source_chunks: tuple[tuple[int, ...], ...], chunks: tuple[int, ...]) -> bool:
    """Tell whether no border of a Dask array's chunks lies inside a chunk of the file."""
    return all(
        extent % chunk == 0
        for along, chunk in zip(source_chunks, chunks, strict=True)
        for extent in along[:-1]
    )


def check_chunk_borders(
    source_chunks: tuple[tuple[int, ...], ...],
    chunks: tuple[int, ...],
    dims: tuple[str, ...],
    *,
    origin: tuple[int, ...] | None = None,
) -> None:
    """Refuse a Dask array of which two chunks share a chunk of the file.

    Parameters
    ----------
    source_chunks
        The chunks of the array, along every axis.
    chunks
        Extents of a chunk of the file.
    dims
        Names of the axes, for errors.
    origin
        Where the array begins in the file; None is its first element.

    Raises
    ------
    LayoutError
        Naming both chunks of the array and the chunk of the file.
    """
    starts = origin or (0,) * len(chunks)
    for axis, (along, chunk) in enumerate(zip(source_chunks, chunks, strict=True)):
        edges = list(itertools.accumulate(along, initial=starts[axis]))[1:-1]
        for i, edge in enumerate(edges):
            if edge % chunk:
                msg = (
                    f"chunks {i} and {i + 1} of the Dask array along {dims[axis]!r} (axis {axis}) "
                    f"meet at {edge}, inside chunk {edge // chunk} of the file, which is "
                    f"{edge // chunk * chunk}:{(edge // chunk + 1) * chunk}. To fix: (1) "
                    f"align_chunks=True rechunks; (2) array.chunk({{{dims[axis]!r}: multiple of "
                    f"{chunk}}}); (3) chunks= or patch= of another size"
                )
                raise LayoutError(msg)
