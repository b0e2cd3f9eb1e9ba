"""Block order and array order: a chunk is stored as its blocks, one after another.

``block-major`` means: the blocks of the padded chunk in C order, each in C order itself.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["tile", "untile"]


def untile(
    decoded: NDArray[np.generic], *, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return a decoded chunk in array order, cropped to the chunk's shape.

    Parameters
    ----------
    decoded
        The elements of one chunk, 1-D, block-major, padded to whole blocks.
    chunks, blocks
        Shapes of chunk and block, array order.
    """
    ndim = len(chunks)
    if ndim == 0:
        return decoded.reshape(())
    grid = tuple(-(-c // b) for c, b in zip(chunks, blocks, strict=True))
    order = [axis for i in range(ndim) for axis in (i, ndim + i)]
    padded = [g * b for g, b in zip(grid, blocks, strict=True)]
    tiles = decoded.reshape(grid + blocks).transpose(order).reshape(padded)
    return tiles[tuple(slice(c) for c in chunks)]


def tile(
    values: NDArray[np.generic], *, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> NDArray[np.generic]:
    """Return the block-major elements of one chunk, padded with zeros to whole blocks.

    Parameters
    ----------
    values
        The chunk in array order; smaller than `chunks` at the array's edge.
    chunks, blocks
        Shapes of chunk and block, array order.
    """
    ndim = values.ndim
    grid = tuple(-(-c // b) for c, b in zip(chunks, blocks, strict=True))
    tiles = np.zeros(grid + blocks, values.dtype)
    view = tiles.transpose([axis for i in range(ndim) for axis in (i, ndim + i)])
    # Whole blocks and the clipped rest of each axis: at most 2^ndim strided copies.
    pieces = [_pieces(n, b) for n, b in zip(values.shape, blocks, strict=True)]
    for combination in itertools.product(*pieces):
        target = tuple(s for piece in combination for s in (piece.blocks, piece.inside))
        shape = [n for piece in combination for n in (piece.count, piece.length)]
        source: tuple[Any, ...] = (*(piece.rows for piece in combination), ...)
        view[target] = values[source].reshape(shape)
    return tiles.reshape(-1)


class _Piece:
    """A run of equally long block parts along one axis."""

    __slots__ = ("blocks", "count", "inside", "length", "rows")

    def __init__(self, first_row: int, first_block: int, count: int, length: int) -> None:
        self.rows = slice(first_row, first_row + count * length)
        self.blocks = slice(first_block, first_block + count)
        self.inside = slice(0, length)
        self.count, self.length = count, length


def _pieces(extent: int, block: int) -> list[_Piece]:
    """Split an axis into its whole blocks and the clipped rest."""
    whole, rest = divmod(extent, block)
    pieces = [_Piece(0, 0, whole, block)] if whole else []
    return pieces + ([_Piece(whole * block, whole, 1, rest)] if rest else [])
