"""Thin boxes: one frame of a series, one plane along the last axis, put together from blocks.

The C library copies a block into a box row by row, and a row of a thin box is a single element: of
a frame of int16 that takes three times as long as decoding it. NumPy copies the decoded blocks
along whichever axis is long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.grid import chunk_boxes
from mlarray_xr.storage.block_request import ChunkBlocks
from mlarray_xr.storage.tiles import untile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.block_request import BlockReader

__all__ = ["is_thin", "read_thin"]

# Rows of so few bytes are copied faster by NumPy, which takes some 30 us more to begin with.
_SHORT_ROW_BYTES = 16
_LEAST_BYTES = 64 << 10
# Less gains nothing from a second thread.
_LEAST_SHARED_BYTES = 1 << 20


def is_thin(box: Box, header: FrameHeader) -> bool:
    """Tell whether a box is read faster by `read_thin`, which every thin one is that is not small.

    Parameters
    ----------
    box
        Inside the array, not empty.
    header
        Of the file.
    """
    if not box:
        return False
    n_bytes = math.prod(stop - start for start, stop in box) * header.typesize
    row = min(box[-1][1] - box[-1][0], header.blocks[-1]) * header.typesize
    return n_bytes >= _LEAST_BYTES and row < _SHORT_ROW_BYTES and _is_aligned(box, header)


def read_thin(
    box: Box,
    out: NDArray[Any],
    *,
    header: FrameHeader,
    reader: BlockReader,
    threads: int | None,
) -> None:
    """Fill `out` with the elements of a box that `is_thin`.

    Parameters
    ----------
    box, out, threads
        As in `MappedReader.read`.
    header
        Of the file.
    reader
        Of its blocks.

    Raises
    ------
    SourceChanged, ChunkError
        As `reader` does.
    """
    pieces = list(_pieces(box, header))
    if threads is None and out.nbytes < _LEAST_SHARED_BYTES:
        threads = 1

    def take(number: int, values: NDArray[Any]) -> None:
        pieces[number].put(values, out)

    reader.read_blocks((piece.asked for piece in pieces), take, threads=threads)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Piece:
    """The part of a box that lies in one chunk."""

    asked: ChunkBlocks
    """The blocks it touches: a grid of them."""
    grid: tuple[int, ...]
    """How many blocks along every axis."""
    inside: tuple[slice, ...]
    """What of a block is in the box; whole blocks along axes of several."""
    place: tuple[slice, ...]
    """Where that is in the box."""

    def put(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Copy the decoded blocks to their place."""
        tiles = values.reshape(self.grid + values.shape[1:])
        tiles = tiles[(slice(None),) * len(self.grid) + self.inside]
        blocks = tiles.shape[len(self.grid) :]
        extents = tuple(n * b for n, b in zip(self.grid, blocks, strict=True))
        untile(tiles, out[self.place], chunks=extents, blocks=blocks)


def _pieces(box: Box, header: FrameHeader) -> Iterator[_Piece]:
    """Yield the parts of a box by chunk."""
    block_grid = tuple(-(-c // b) for c, b in zip(header.chunks, header.blocks, strict=True))
    for position, part in chunk_boxes(box, chunks=header.chunks):
        ranges, inside = [], []
        for (start, stop), at, chunk, block in zip(
            part, position, header.chunks, header.blocks, strict=True
        ):
            first, last = (start - at * chunk) // block, (stop - 1 - at * chunk) // block
            begin = start - at * chunk - first * block
            ranges.append(range(first, last + 1))
            inside.append(slice(begin, begin + stop - start) if first == last else slice(None))
        numbers = np.ravel_multi_index(np.ix_(*ranges), block_grid).reshape(-1)
        chunk_number = int(np.ravel_multi_index(position, header.chunk_grid))
        yield _Piece(
            asked=ChunkBlocks(chunk=chunk_number, blocks=numbers),
            grid=tuple(map(len, ranges)),
            inside=tuple(inside),
            place=tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(part, box, strict=True)),
        )


def _is_aligned(box: Box, header: FrameHeader) -> bool:
    """Tell whether along each axis a box begins on the border of a block, or lies within one."""
    for (start, stop), chunk, block in zip(box, header.chunks, header.blocks, strict=True):
        behind = start % chunk % block
        left = min(block - behind, chunk - start % chunk)
        if behind and stop - start > left:
            return False
    return True
