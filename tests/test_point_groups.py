"""Points grouped by chunk and block: every touched block once, every point in its block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.planning import point_groups
from mlarray_xr.planning.point_groups import group_points, plan_range_pieces
from mlarray_xr.planning.selection import PointSelection
from mlarray_xr.storage import point_gather
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.point_gather import gather_points
from mlarray_xr.storage.source import source_of
from tests.frame_kit import make_frame
from tests.strategies import Stored, stored, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.block_request import ChunkBlocks, Take


def header_of(
    shape: tuple[int, ...], chunks: tuple[int, ...], blocks: tuple[int, ...], dtype: str = "i2"
) -> FrameHeader:
    frame = blosc2.zeros(shape, dtype=np.dtype(dtype), chunks=chunks, blocks=blocks)
    return open_frame(source_of(frame.to_cframe())).header


class CountingBlocks:
    """Answers from an array in memory, last request first, and counts the blocks."""

    def __init__(self, values: NDArray[Any], header: FrameHeader) -> None:
        self.values, self.header = values, header
        self.asked: dict[tuple[int, int], int] = {}
        self.n_requests = 0
        self.most_blocks = 0

    def read_blocks(
        self, wanted: Iterable[ChunkBlocks], take: Take, *, threads: int | None
    ) -> None:
        del threads
        for number, request in reversed(list(enumerate(wanted))):
            assert (np.diff(request.blocks) > 0).all()
            self.n_requests += 1
            self.most_blocks = max(self.most_blocks, len(request.blocks))
            for block in request.blocks.tolist():
                place = (request.chunk, block)
                self.asked[place] = self.asked.get(place, 0) + 1
            take(number, np.stack([self.block(request.chunk, b) for b in request.blocks.tolist()]))

    def block(self, chunk: int, block: int) -> NDArray[Any]:
        header = self.header
        grid = [-(-c // b) for c, b in zip(header.chunks, header.blocks, strict=True)]
        i, j = np.unravel_index(chunk, header.chunk_grid), np.unravel_index(block, grid)
        padded = np.zeros(header.blocks, self.values.dtype)
        start = [int(a * c + k * b) for a, c, k, b in self._each(i, header.chunks, j)]
        stop = [
            min(int(first + b), int((a + 1) * c), n)
            for first, b, a, c, n in zip(
                start, header.blocks, i, header.chunks, header.shape, strict=True
            )
        ]
        inside = self.values[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        padded[tuple(slice(0, n) for n in inside.shape)] = inside
        return padded

    def _each(self, i: Any, chunks: Any, j: Any) -> Any:
        return zip(i, chunks, j, self.header.blocks, strict=True)


@st.composite
def selections(draw: st.DrawFn) -> tuple[Stored, PointSelection]:
    """Draw an array, and points along some of its axes with ranges along the others."""
    array = draw(stored(min_dims=1, max_dims=4))
    shape = array.values.shape
    ndim = len(shape)
    axes = draw(st.sets(st.integers(0, ndim - 1), min_size=1))
    filled = all(shape[axis] for axis in axes)
    n = draw(st.integers(0, 12)) if filled else 0
    points: list[NDArray[np.intp] | None] = [None] * ndim
    ranges: list[range | None] = [None] * ndim
    for axis, extent in enumerate(shape):
        if axis in axes:
            numbers = draw(st.lists(st.integers(0, max(extent - 1, 0)), min_size=n, max_size=n))
            points[axis] = np.array(numbers, np.intp)
        else:
            ranges[axis] = range(extent)[draw(st.slices(extent)) if extent else slice(None)]
    selection = PointSelection(
        points=tuple(points), ranges=tuple(ranges), points_shape=(n,), points_at=0
    )
    return array, selection


def expected(values: NDArray[Any], selection: PointSelection) -> NDArray[Any]:
    """Select with NumPy: the outer product of the ranges first, then the points."""
    on_ranges = [
        np.arange(n) if r is None else np.asarray(r, np.intp)
        for n, r in zip(values.shape, selection.ranges, strict=True)
    ]
    cut = values[np.ix_(*on_ranges)]
    axes = [axis for axis, p in enumerate(selection.points) if p is not None]
    moved = np.moveaxis(cut, axes, range(len(axes)))
    picked: NDArray[Any] = moved[tuple(p for p in selection.points if p is not None)]
    return picked


@given(selections())
def test_points_and_ranges_are_what_numpy_picks(case: tuple[Stored, PointSelection]) -> None:
    array, selection = case
    header = header_of(array.values.shape, array.chunks, array.blocks, array.values.dtype.str)
    reader = CountingBlocks(array.values, header)
    found = gather_points(selection, header, reader, threads=1)
    np.testing.assert_array_equal(found, expected(array.values, selection))
    assert found.dtype == array.values.dtype
    assert set(reader.asked.values()) <= {1}


def test_a_block_is_asked_for_once_and_only_where_points_are() -> None:
    header = header_of((20, 30), (8, 16), (3, 5))
    values = values_of((20, 30), np.dtype("i2"), 1)
    reader = CountingBlocks(values, header)
    rng = np.random.default_rng(2)
    points = rng.integers(0, (12, 30), (400, 2))
    selection = PointSelection(
        points=tuple(points.T), ranges=(None, None), points_shape=(400,), points_at=0
    )
    found = gather_points(selection, header, reader, threads=1)
    np.testing.assert_array_equal(found, values[tuple(points.T)])
    touched = {(int(y) // 8, int(x) // 16, int(y) % 8 // 3, int(x) % 16 // 5) for y, x in points}
    assert len(reader.asked) == len(touched)
    assert set(reader.asked.values()) == {1}
    assert reader.n_requests == len({(a, b) for a, b, _, _ in touched})


def test_the_order_of_the_result_is_that_of_numpy_keys() -> None:
    header = header_of((4, 6, 5), (3, 4, 2), (2, 3, 2))
    values = values_of((4, 6, 5), np.dtype("i2"), 3)
    index = np.array([[0, 3], [2, 2], [1, 0]])
    selection = PointSelection(
        points=(None, index.reshape(-1), index.reshape(-1)),
        ranges=(range(3, -1, -2), None, None),
        points_shape=(3, 2),
        points_at=1,
    )
    found = gather_points(selection, header, CountingBlocks(values, header), threads=1)
    np.testing.assert_array_equal(found, values[::-2][:, index, index])


def test_batches_and_small_requests_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_of((40, 30, 6), (16, 16, 6), (4, 4, 2))
    values = values_of((40, 30, 6), np.dtype("i2"), 4)
    rng = np.random.default_rng(5)
    points = rng.integers(0, (40, 30), (300, 2))
    selection = PointSelection(
        points=(points[:, 0], points[:, 1], None),
        ranges=(None, None, range(5, 0, -1)),
        points_shape=(300,),
        points_at=0,
    )
    plain = CountingBlocks(values, header)
    gather_points(selection, header, plain, threads=1)
    monkeypatch.setattr(point_groups, "_DECODED_BYTES", 6 * header.blocksize)
    monkeypatch.setattr(point_groups, "_PIECE_ELEMENTS", 2 * math.prod(header.blocks))
    monkeypatch.setattr(point_gather, "_POINTS_AT_ONCE", 128)
    monkeypatch.setattr(point_gather, "_ELEMENTS_AT_ONCE", 7)
    cut = CountingBlocks(values, header)
    found = gather_points(selection, header, cut, threads=1)
    np.testing.assert_array_equal(found, values[points[:, 0], points[:, 1], 5:0:-1])
    assert plain.most_blocks > cut.most_blocks <= 6
    assert plain.asked.keys() == cut.asked.keys()
    assert max(cut.asked.values()) == 3  # once for each batch


def test_groups_lie_in_one_chunk_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    header = header_of((64, 64), (32, 32), (4, 4))
    monkeypatch.setattr(point_groups, "_DECODED_BYTES", 10 * header.blocksize)
    points = np.random.default_rng(6).integers(0, 64, (2, 2000))
    groups = group_points(list(points), axes=(0, 1), header=header, blocks_per_point=2)
    assert max(np.diff(groups.block_bounds)) == 5
    assert groups.row_bounds[-1] == 2000
    assert sorted(groups.rows.tolist()) == list(range(2000))
    for group, chunk in enumerate(groups.chunks):
        some = slice(groups.row_bounds[group], groups.row_bounds[group + 1])
        y, x = points[:, groups.rows[some]]
        assert {*(y // 32 * 2 + x // 32).tolist()} == {chunk}
        blocks = groups.blocks[groups.block_bounds[group] : groups.block_bounds[group + 1]]
        at = blocks[groups.ranks[some]]
        np.testing.assert_array_equal(at, y % 32 // 4 * 8 + x % 32 // 4)
        np.testing.assert_array_equal(groups.local[some], y % 4 * 4 + x % 4)


def test_ranges_are_cut_at_chunks() -> None:
    header = header_of((10, 7), (4, 7), (2, 3))
    pieces = plan_range_pieces([range(9, -1, -3)], axes=(0,), header=header)
    assert [piece.target for piece in pieces] == [(slice(0, 1),), (slice(1, 2),), (slice(2, 4),)]
    assert [piece.chunk for piece in pieces] == [2, 1, 0]
    assert pieces[2].blocks.tolist() == [0, 3]
    assert pieces[2].ranks.tolist() == [1, 0]
    assert pieces[2].local.tolist() == [3, 0]


def test_without_ranges_there_is_one_piece() -> None:
    (piece,) = plan_range_pieces([], axes=(), header=header_of((4,), (4,), (2,)))
    assert (piece.target, piece.chunk) == ((), 0)
    assert (piece.blocks.tolist(), piece.ranks.tolist(), piece.local.tolist()) == ([0], [0], [0])


def test_headers_in_these_tests_are_those_of_files() -> None:
    frame = make_frame(np.zeros((20, 30), "i2"), chunks=(8, 16), blocks=(3, 5))
    read = open_frame(source_of(frame)).header
    made = header_of((20, 30), (8, 16), (3, 5))
    assert (read.blocksize, read.chunk_grid) == (made.blocksize, made.chunk_grid)
