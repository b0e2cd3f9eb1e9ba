"""How many chunks and blocks a window touches, held against counting at every offset."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlarray_xr.planning.touching import expected_blocks, expected_chunks, touched_along

if TYPE_CHECKING:
    from collections.abc import Sequence

# Extent, window, block, chunk: blocks need not divide chunks, all but the extent may exceed it.
Axis = tuple[int, int, int, int]
axes = st.tuples(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.integers(1, 50)
).map(lambda axis: (axis[0], axis[1], min(axis[2], axis[3]), axis[3]))


def cells_at(offset: int, window: int, *, block: int, chunk: int) -> int:
    """Count the blocks of chunks that one window touches, element by element."""
    return len({(x // chunk, x % chunk // block) for x in range(offset, offset + window)})


def mean_along(extent: int, window: int, *, block: int, chunk: int) -> float:
    """Count at all offsets of one axis."""
    window = min(window, extent)
    offsets = range(extent - window + 1)
    return sum(cells_at(o, window, block=block, chunk=chunk) for o in offsets) / len(offsets)


def mean_touched(
    shape: Sequence[int], window: Sequence[int], chunks: Sequence[int], blocks: Sequence[int]
) -> float:
    """Count at all offsets of an array, every one for itself."""
    inside = [min(p, n) for p, n in zip(window, shape, strict=True)]
    offsets = [range(n - p + 1) for n, p in zip(shape, inside, strict=True)]
    counts = [
        math.prod(
            cells_at(o, p, block=b, chunk=c)
            for o, p, c, b in zip(corner, inside, chunks, blocks, strict=True)
        )
        for corner in itertools.product(*offsets)
    ]
    return sum(counts) / len(counts)


@given(axis=axes)
@example(axis=(1, 1, 1, 1))
@example(axis=(10, 3, 7, 7))
@example(axis=(10, 99, 4, 99))
@example(axis=(23, 5, 4, 10))
def test_one_axis_is_counted_exactly(axis: Axis) -> None:
    extent, window, block, chunk = axis
    chunks = mean_along(extent, window, block=chunk, chunk=chunk)
    blocks = mean_along(extent, window, block=block, chunk=chunk)
    assert touched_along(extent, window, chunk) == pytest.approx(chunks, rel=1e-15)
    assert touched_along(extent, window, block, chunk=chunk) == pytest.approx(blocks, rel=1e-15)


@given(extent=st.integers(1, 300), window=st.integers(1, 400))
def test_arrays_of_sizes_give_what_integers_give(extent: int, window: int) -> None:
    sizes = range(1, 320)
    found = touched_along(extent, window, np.array(sizes, np.float64))
    np.testing.assert_allclose(found, [touched_along(extent, window, n) for n in sizes], rtol=1e-12)


@given(
    grid=st.lists(
        st.tuples(st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
        min_size=1,
        max_size=3,
    )
)
def test_an_array_is_counted_exactly(grid: list[Axis]) -> None:
    shape, window, chunks, sizes = zip(*grid, strict=True)
    blocks = tuple(map(min, sizes, chunks))
    assert expected_chunks(shape, window, chunks) == pytest.approx(
        mean_touched(shape, window, chunks, chunks), rel=1e-12
    )
    assert expected_blocks(shape, window, chunks, blocks) == pytest.approx(
        mean_touched(shape, window, chunks, blocks), rel=1e-12
    )


def test_an_array_without_axes_is_one_chunk_of_one_block() -> None:
    assert expected_chunks((), (), ()) == expected_blocks((), (), (), ()) == 1


@given(axis=axes)
def test_windows_touch_at_least_one_cell_and_at_most_all(axis: Axis) -> None:
    extent, window, block, chunk = axis
    n_cells = -(-extent // chunk)
    assert 1 <= touched_along(extent, window, chunk) <= n_cells
    assert touched_along(extent, extent, chunk) == n_cells
    assert touched_along(extent, 1, block, chunk=chunk) == 1


@given(
    extent=st.integers(10**9, 10**12),
    window=st.integers(1, 10**12),
    sizes=st.lists(st.integers(1, 10**12), min_size=2, max_size=5, unique=True),
)
@example(extent=10**12, window=10**12, sizes=[1, 7, 10**12])
@example(extent=10**12, window=1, sizes=[1, 3, 10**6])
def test_large_extents_stay_finite_and_ordered(extent: int, window: int, sizes: list[int]) -> None:
    inside = min(window, extent)
    for size in sizes:
        found = touched_along(extent, window, size)
        # So many cells hold p elements at least; at most one more begins at every p / size steps.
        assert max(1, inside / size * (1 - 1e-12)) <= found <= (inside - 1) / size + 2
    floats = touched_along(extent, window, np.array(sizes, np.float64))
    assert np.isfinite(floats).all()
    exact = np.array([touched_along(extent, window, size) for size in sizes])
    np.testing.assert_allclose(floats, exact, rtol=2e-4)


@given(
    extent=st.integers(10**6, 10**12),
    windows=st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)).map(sorted),
    size=st.integers(1, 10**9),
    factor=st.integers(2, 9),
)
def test_longer_windows_touch_more_and_larger_cells_less(
    extent: int, windows: list[int], size: int, factor: int
) -> None:
    shorter, longer = windows
    touched = touched_along(extent, longer, size)
    assert touched_along(extent, shorter, size) <= touched * (1 + 1e-15)
    assert touched_along(extent, longer, factor * size) <= touched * (1 + 1e-15)
