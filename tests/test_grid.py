"""Boxes, chunk grids, parts and slabs: who reads what, exactly once."""

from __future__ import annotations

import itertools
import math
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.grid import (
    Box,
    box_shape,
    check_box,
    chunk_boxes,
    is_empty,
    part_boxes,
    plan_part,
    plan_pieces,
    plan_slabs,
    touched_chunks,
)

Shape = tuple[int, ...]


@st.composite
def grids(draw: st.DrawFn, *, most: int = 12, ndim: int = 4) -> tuple[Shape, Shape, Shape, Box]:
    """Draw shape, chunks, blocks and a box; chunks may exceed the shape."""
    n = draw(st.integers(0, ndim))
    shape = tuple(draw(st.lists(st.integers(1, most), min_size=n, max_size=n)))
    chunks = tuple(draw(st.integers(1, extent + 3)) for extent in shape)
    blocks = tuple(draw(st.integers(1, chunk)) for chunk in chunks)
    box = []
    for extent in shape:
        start = draw(st.integers(0, extent - 1))
        box.append((start, draw(st.integers(start + 1, extent))))
    return shape, chunks, blocks, tuple(box)


def slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


@given(grids())
def test_chunk_boxes_are_the_box_exactly_once(grid: tuple[Shape, Shape, Shape, Box]) -> None:
    shape, chunks, _, box = grid
    seen = np.zeros(shape, int)
    positions = []
    for position, piece in chunk_boxes(box, chunks=chunks):
        seen[slices(piece)] += 1
        positions.append(position)
        assert not is_empty(piece)
        for i, chunk, (start, stop) in zip(position, chunks, piece, strict=True):
            assert i * chunk <= start < stop <= (i + 1) * chunk
    expected = np.zeros(shape, int)
    expected[slices(box)] = 1
    np.testing.assert_array_equal(seen, expected)
    assert positions == sorted(positions)


@given(grids())
def test_touched_chunks_are_those_with_an_element_in_the_box(
    grid: tuple[Shape, Shape, Shape, Box],
) -> None:
    shape, chunks, _, box = grid
    counts = tuple(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    numbers = np.arange(math.prod(counts)).reshape(counts)
    for axis, chunk in enumerate(chunks):
        numbers = np.repeat(numbers, chunk, axis=axis)
    expected = np.unique(numbers[tuple(slice(n) for n in shape)][slices(box)])
    found = touched_chunks(box, chunks=chunks, grid=counts)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_touched_chunks_of_very_large_arrays_do_not_overflow() -> None:
    chunks, counts = (128, 128, 128), (2**9, 2**9, 2**9)
    box = tuple((128 * n - 1, 128 * n) for n in counts)
    assert touched_chunks(box, chunks=chunks, grid=counts).tolist() == [2**27 - 1]


@given(grids(), st.data())
def test_parts_are_the_array_exactly_once(
    grid: tuple[Shape, Shape, Shape, Box], data: st.DataObject
) -> None:
    shape = grid[0]
    part = tuple(data.draw(st.integers(1, n + 2)) for n in shape)
    seen = np.zeros(shape, int)
    boxes = list(part_boxes(shape, part))
    for box in boxes:
        seen[slices(box)] += 1
        assert all(n <= p for n, p in zip(box_shape(box), part, strict=True))
    assert (seen == 1).all()
    assert boxes == sorted(boxes)


def test_an_empty_array_has_no_parts_and_a_0d_array_one() -> None:
    assert list(part_boxes((0, 5), (1, 5))) == []
    assert list(part_boxes((), ())) == [()]
    assert list(chunk_boxes(((2, 2), (0, 5)), chunks=(4, 4))) == []
    assert list(chunk_boxes((), chunks=())) == [((), ())]


@given(grids(most=20), st.integers(1, 12))
@example(((64,), (64,), (18,), ((3, 60),)), 5)
@example(((100,), (10,), (3,), ((0, 100),)), 40)
def test_slabs_are_contiguous_and_the_box_exactly_once(
    grid: tuple[Shape, Shape, Shape, Box], n_slabs: int
) -> None:
    _, chunks, blocks, box = grid
    slabs = plan_slabs(box, chunks=chunks, blocks=blocks, n_slabs=n_slabs)
    assert 1 <= len(slabs) <= n_slabs
    shape = box_shape(box)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    first = 0
    for slab in slabs:
        assert not is_empty(slab)
        local = tuple(
            slice(start - origin, stop - origin)
            for (start, stop), (origin, _) in zip(slab, box, strict=True)
        )
        elements = np.asarray(numbers[local]).reshape(-1)
        np.testing.assert_array_equal(elements, np.arange(first, first + len(elements)))
        first += len(elements)
    assert first == numbers.size


@given(grids(most=40, ndim=2), st.integers(2, 9))
def test_slabs_never_cut_a_block(grid: tuple[Shape, Shape, Shape, Box], n_slabs: int) -> None:
    _, chunks, blocks, box = grid
    slabs = plan_slabs(box, chunks=chunks, blocks=blocks, n_slabs=n_slabs)
    for left, right in itertools.pairwise(slabs):
        (axis,) = (i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
        cut = left[axis][1]
        assert cut == right[axis][0]
        assert cut % chunks[axis] % blocks[axis] == 0
        assert all(stop - start == 1 for start, stop in box[:axis])


def test_slabs_use_every_thread_where_there_are_borders() -> None:
    box = ((0, 1), (0, 64), (0, 64))
    slabs = plan_slabs(box, chunks=(1, 64, 64), blocks=(1, 16, 16), n_slabs=4)
    assert [slab[1] for slab in slabs] == [(0, 16), (16, 32), (32, 48), (48, 64)]
    assert plan_slabs(((3, 4),), chunks=(8,), blocks=(2,), n_slabs=8) == [((3, 4),)]
    assert plan_slabs((), chunks=(), blocks=(), n_slabs=8) == [()]


@given(
    grids(most=300, ndim=3),
    st.sampled_from([1, 2, 8, 16]),
    st.sampled_from([None, 0, 1, 500, 10_000, 10**6]),
    st.booleans(),
)
def test_a_part_is_whole_chunks_within_the_target(
    grid: tuple[Shape, Shape, Shape, Box], itemsize: int, target: int | None, has_patch: bool
) -> None:
    shape, chunks, patch, _ = grid
    wanted = patch if has_patch else None
    part = plan_part(shape, chunks, itemsize=itemsize, target_bytes=target, patch=wanted)
    for n, c, p in zip(shape, chunks, part, strict=True):
        assert p == n or (p % c == 0 and c <= p < n)
        assert p >= min(c, n)
    one_chunk = tuple(min(n, c) for n, c in zip(shape, chunks, strict=True))
    assert part == one_chunk or math.prod(part) * itemsize <= (
        128 << 20 if target is None else target
    )
    again = plan_part(shape, chunks, itemsize=itemsize, target_bytes=target, patch=wanted)
    assert part == again


@pytest.mark.parametrize(
    ("shape", "chunks", "itemsize", "least", "most"),
    [
        ((8192,) * 3, (128,) * 3, 1, 4000, 5000),
        ((512, 512, 512), (64, 64, 64), 2, 8, 32),
        ((4, 256, 256, 256), (1, 54, 54, 80), 4, 8, 64),
        ((100, 100), (50, 50), 4, 1, 1),
    ],
)
def test_the_number_of_parts_suits_a_scheduler(
    shape: Shape, chunks: Shape, itemsize: int, least: int, most: int
) -> None:
    part = plan_part(shape, chunks, itemsize=itemsize)
    n_parts = math.prod(-(-n // p) for n, p in zip(shape, part, strict=True))
    assert least <= n_parts <= most


def test_parts_grow_toward_the_patch() -> None:
    shape, chunks = (4096,) * 3, (64,) * 3
    flat = plan_part(shape, chunks, itemsize=1, patch=(64, 512, 512))
    assert flat[0] < flat[1] == flat[2]
    cube = plan_part(shape, chunks, itemsize=1)
    assert max(cube) <= 2 * min(cube)


def test_the_last_part_is_no_sliver() -> None:
    part = plan_part((10_001, 1000), (100, 1000), itemsize=10)
    assert part == (2600, 1000)
    assert len(list(part_boxes((10_001, 1000), part))) == 4


@pytest.mark.parametrize(("shape", "part"), [((0, 5), (1, 5)), ((), ()), ((0,), (1,))])
def test_parts_of_empty_and_0d_arrays(shape: Shape, part: Shape) -> None:
    assert plan_part(shape, shape, itemsize=4) == part


@pytest.mark.parametrize(
    ("chunks", "patch"), [((4,), None), ((4, 4, 4), None), ((4, 4), (4,)), ((4, 4), (4, 4, 4))]
)
def test_parts_need_one_number_per_axis(chunks: Shape, patch: Shape | None) -> None:
    with pytest.raises(LayoutError, match="differ in their number of axes"):
        plan_part((8, 8), chunks, itemsize=1, patch=patch)


def test_parts_of_very_many_tiny_chunks_are_planned_in_few_steps() -> None:
    n_calls = 0

    def count_calls(frame: object, event: str, argument: object) -> None:
        nonlocal n_calls
        n_calls += event == "call"
        assert n_calls < 10_000

    sys.setprofile(count_calls)
    try:
        plan_part((1 << 26,), (1,), itemsize=1)
    finally:
        sys.setprofile(None)
    assert n_calls > 0


@pytest.mark.parametrize(
    ("box", "match"),
    [
        (((0, 4),), "has 1 axes, the array has 2"),
        (((0, 4), (0, 5), (0, 1)), "has 3 axes"),
        (((-1, 4), (0, 5)), "box -1:4 on axis 0"),
        (((0, 5), (0, 5)), "box 0:5 on axis 0 does not fit the extent 4"),
        (((3, 2), (0, 5)), "box 3:2 on axis 0"),
        (((0, 4), (0, 2**70)), "on axis 1"),
    ],
)
def test_boxes_outside_are_refused(box: Box, match: str) -> None:
    with pytest.raises(IndexError, match=match):
        check_box(box, (4, 5))


def test_boxes_become_plain_integers() -> None:
    box = check_box([[np.int8(1), np.uint64(3)], (np.int64(0), 0)], (4, 5))  # type: ignore[list-item]
    assert box == ((1, 3), (0, 0))
    assert {type(n) for pair in box for n in pair} == {int}
    with pytest.raises(TypeError):
        check_box(((0, 1.0), (0, 1)), (4, 5))  # type: ignore[arg-type]


@given(grid=grids(most=40), n_elements=st.integers(1, 5000))
def test_pieces_cover_a_box_once_and_cut_no_block(
    grid: tuple[Shape, Shape, Shape, Box], n_elements: int
) -> None:
    _, chunks, blocks, box = grid
    seen = np.zeros([stop - start for start, stop in box], np.intp)
    for piece in plan_pieces(box, chunks=chunks, blocks=blocks, n_elements=n_elements):
        seen[tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(piece, box, strict=True))] += 1
        for pair, ends, chunk, block in zip(piece, box, chunks, blocks, strict=True):
            assert all(edge in ends or edge % chunk % block == 0 for edge in pair)
    assert (seen == 1).all()


def test_pieces_of_a_large_box_are_small_and_long() -> None:
    box, chunks, blocks = ((0, 448), (0, 512), (0, 448)), (66, 72, 120), (22, 24, 24)
    pieces = list(plan_pieces(box, chunks=chunks, blocks=blocks, n_elements=1 << 19))
    assert max(math.prod(box_shape(piece)) for piece in pieces) <= 1 << 19
    assert all(piece[2] == (0, 448) for piece in pieces)
