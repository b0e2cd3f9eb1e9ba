"""Block order and array order: a chunk is stored as its blocks, one after another.

``block-major`` means: the blocks of the padded chunk in C order, each in C order itself.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["tile", "untile"]


def tile(
    values: NDArray[Any], out: NDArray[Any], *, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    """Put the elements of one chunk into block-major order, padded with zeros to whole blocks.

    Parameters
    ----------
    values
        The chunk in array order, of any strides; smaller than `chunks` at the array's edge.
    out
        Where they go: 1-D, as many elements as the padded chunk has. Using it again for the next
        chunk is twice as fast as a new one, whose pages the system has to clear first.
    chunks, blocks
        Shapes of chunk and block, array order.
    """
    grid = tuple(-(-c // b) for c, b in zip(chunks, blocks, strict=True))
    if out.size > values.size:
        out.view(np.uint8)[...] = 0
    for inside, in_array in _piece_views(out, values, grid=grid, blocks=blocks):
        inside[...] = in_array


def untile(
    tiles: NDArray[Any], out: NDArray[Any], *, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    """Put the elements of one chunk into array order.

    Parameters
    ----------
    tiles
        The elements of one chunk, 1-D, block-major, padded to whole blocks.
    out
        Where they go, of any strides; smaller than `chunks` at the array's edge.
    chunks, blocks
        Shapes of chunk and block, array order.
    """
    grid = tuple(-(-c // b) for c, b in zip(chunks, blocks, strict=True))
    for inside, in_array in _piece_views(tiles, out, grid=grid, blocks=blocks):
        in_array[...] = inside


def _piece_views(
    tiles: NDArray[Any], values: NDArray[Any], *, grid: tuple[int, ...], blocks: tuple[int, ...]
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield pairs of equally shaped views that together are all of `values`.

    Whole blocks and the clipped rest of each axis: at most 2^ndim pairs. Splitting axes always
    gives a view, whatever the strides.
    """
    ndim = values.ndim
    order = [axis for i in range(ndim) for axis in (i, ndim + i)]
    split = tiles.reshape(grid + blocks).transpose(order)
    pieces = [_pieces(n, b) for n, b in zip(values.shape, blocks, strict=True)]
    for combination in itertools.product(*pieces):
        inside = tuple(s for piece in combination for s in (piece.blocks, piece.inside))
        # The ellipsis keeps a 0-d array an array.
        rows: tuple[Any, ...] = (*(piece.rows for piece in combination), ...)
        shape = [n for piece in combination for n in (piece.count, piece.length)]
        whole: tuple[Any, ...] = (*inside, ...)
        yield split[whole], values[rows].reshape(shape)


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
