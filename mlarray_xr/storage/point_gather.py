"""Points read through blocks: each touched block is decoded once, in whatever order points come."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.point_groups import group_points, plan_range_pieces
from mlarray_xr.storage.block_request import ChunkBlocks
from mlarray_xr.storage.gather import allocate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.point_groups import PointGroups, RangePiece
    from mlarray_xr.planning.selection import PointSelection
    from mlarray_xr.storage.block_request import BlockReader

__all__ = ["gather_points"]

# Sorting takes 85 bytes for each of these points.
_POINTS_AT_ONCE = 1 << 22
_ELEMENTS_AT_ONCE = 1 << 20


def gather_points(
    selection: PointSelection, header: FrameHeader, reader: BlockReader, *, threads: int | None
) -> NDArray[Any]:
    """Read points so that every block that holds some of them is decoded once.

    Points are sorted 4 194 304 at a time, which bounds the memory beyond selection and result to
    about 400 MB; of more points, blocks are decoded once for each such batch.

    Parameters
    ----------
    selection
        Points along some axes, ranges along the others.
    header
        Of the frame that is read.
    reader
        Decodes blocks of that frame.
    threads
        As in `BlockReader.read_blocks`.

    Returns
    -------
    numpy.ndarray
        In NumPy's order: the points' axes where the selection says, then the ranges.
    """
    axes = [axis for axis, p in enumerate(selection.points) if p is not None]
    points = [p for p in selection.points if p is not None]
    others = [axis for axis, r in enumerate(selection.ranges) if r is not None]
    ranges = [r for r in selection.ranges if r is not None]
    lengths = tuple(len(r) for r in ranges)
    out = allocate((len(points[0]), *lengths), header.dtype)
    if out.size:
        pieces = plan_range_pieces(ranges, axes=others, header=header)
        blocks_per_point = max(len(piece.blocks) for piece in pieces)
        for start in range(0, len(out), _POINTS_AT_ONCE):
            batch = slice(start, start + _POINTS_AT_ONCE)
            groups = group_points(
                [p[batch] for p in points],
                axes=axes,
                header=header,
                blocks_per_point=blocks_per_point,
            )
            kind = _Gathering if ranges else _PlainGathering
            gathering = kind(groups, pieces, out[batch], math.prod(header.blocks))
            reader.read_blocks(gathering.requests(), gathering.take, threads=threads)
    out = out.reshape(selection.points_shape + lengths)
    n_axes = len(selection.points_shape)
    first = selection.points_at
    return np.moveaxis(out, range(n_axes), range(first, first + n_axes))


class _Gathering:
    """What to ask for a batch of points, and where the answers go.

    Parameters
    ----------
    groups
        The points.
    pieces
        The ranges along the other axes.
    out
        One row per point, then one axis per range.
    block_size
        Elements of a block.
    """

    def __init__(
        self, groups: PointGroups, pieces: list[RangePiece], out: NDArray[Any], block_size: int
    ) -> None:
        self._groups, self._pieces, self._out = groups, pieces, out
        self._block_size = block_size

    def requests(self) -> Iterator[ChunkBlocks]:
        """Yield the blocks of each group with each piece of the ranges."""
        for group, chunk in enumerate(self._groups.chunks):
            for piece in self._pieces:
                blocks = np.sort(self._blocks(group, piece).reshape(-1))
                yield ChunkBlocks(chunk=chunk + piece.chunk, blocks=blocks)

    def take(self, request: int, values: NDArray[Any]) -> None:
        """Put the elements of one answer to their places."""
        group, number = divmod(request, len(self._pieces))
        groups, piece, flat = self._groups, self._pieces[number], values.reshape(-1)
        crossed = self._blocks(group, piece)
        # Where in the answer each block of the points begins, for each block of the ranges.
        begins = np.empty(crossed.shape, np.int64)
        begins.reshape(-1)[np.argsort(crossed, axis=None)] = np.arange(
            0, flat.size, self._block_size
        )
        lengths = tuple(target.stop - target.start for target in piece.target)
        step = max(1, _ELEMENTS_AT_ONCE // len(piece.local))
        for start in range(groups.row_bounds[group], groups.row_bounds[group + 1], step):
            some = slice(start, min(start + step, groups.row_bounds[group + 1]))
            elements = begins[groups.ranks[some]][:, piece.ranks]
            elements += groups.local[some, None]
            elements += piece.local
            picked = flat[elements].reshape(-1, *lengths)
            there: tuple[Any, ...] = (groups.rows[some], *piece.target)
            self._out[there] = picked

    def _blocks(self, group: int, piece: RangePiece) -> NDArray[np.int64]:
        """Return the numbers of a group's blocks, one column for each block of the ranges."""
        bounds = self._groups.block_bounds
        return self._groups.blocks[bounds[group] : bounds[group + 1], None] + piece.blocks


class _PlainGathering(_Gathering):
    """The same without ranges: far less to do for each answer, and there may be many of them."""

    def requests(self) -> Iterator[ChunkBlocks]:
        """Yield the blocks of each group."""
        groups = self._groups
        for chunk, (start, stop) in zip(
            groups.chunks, itertools.pairwise(groups.block_bounds), strict=True
        ):
            yield ChunkBlocks(chunk=chunk, blocks=groups.blocks[start:stop])

    def take(self, request: int, values: NDArray[Any]) -> None:
        """Put the elements of one answer to their places."""
        groups = self._groups
        some = slice(groups.row_bounds[request], groups.row_bounds[request + 1])
        elements = groups.ranks[some] * self._block_size
        elements += groups.local[some]
        self._out[groups.rows[some]] = values.reshape(-1)[elements]
