"""Keys become selections that mean what NumPy means by them."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlarray_xr.planning.selection import (
    OuterSelection,
    PointSelection,
    plan_outer,
    plan_runs,
    plan_selection,
    plan_vectorized,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


def numbered(shape: tuple[int, ...]) -> NDArray[np.int64]:
    return np.arange(math.prod(shape)).reshape(shape)


def apply(selection: OuterSelection | PointSelection, values: NDArray[Any]) -> NDArray[Any]:
    """Read a selection the slow way, element by element."""
    if isinstance(selection, OuterSelection):
        lists = [np.asarray(p, np.intp) for p in selection.axes]
        picked = values[np.ix_(*lists)] if lists else values
        return picked.reshape(selection.shape)
    on_points = [p for p in selection.points if p is not None]
    on_ranges = [r for r in selection.ranges if r is not None]
    lengths = tuple(len(r) for r in on_ranges)
    picked = np.empty((len(on_points[0]), *lengths), values.dtype)
    for i in range(len(on_points[0])):
        chosen = [
            [p[i]] if p is not None else list(r or ())
            for p, r in zip(selection.points, selection.ranges, strict=True)
        ]
        picked[i] = values[np.ix_(*[np.asarray(x, np.intp) for x in chosen])].reshape(lengths)
    n, first = len(selection.points_shape), selection.points_at
    picked = picked.reshape(selection.points_shape + lengths)
    return np.moveaxis(picked, range(n), range(first, first + n))


SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)


@st.composite
def keys(draw: st.DrawFn) -> tuple[tuple[int, ...], Any]:
    """Draw a shape and a key without new axes; now and then out of bounds."""
    shape = draw(SHAPES)
    entries: list[Any] = []
    axis = 0
    while axis < len(shape) and draw(st.integers(0, 9)):
        extent = shape[axis]
        kind = draw(st.sampled_from(["slice", "integer", "array", "mask", "list"]))
        low, high = -extent - (draw(st.integers(0, 19)) == 0), extent - 1
        if kind == "slice":
            bounds = st.none() | st.integers(-8, 8)
            step = draw(st.none() | st.integers(-7, 7).filter(bool))
            entries.append(slice(draw(bounds), draw(bounds), step))
        elif kind == "mask":
            n = draw(st.integers(1, min(2, len(shape) - axis)))
            entries.append(draw(hnp.arrays(bool, shape[axis : axis + n])))
            axis += n - 1
        elif extent == 0:
            entries.append(np.zeros(draw(st.integers(0, 1)), np.intp))
        elif kind == "integer":
            number = draw(st.integers(low, high))
            entries.append(draw(st.sampled_from([number, np.int16(number), np.array(number)])))
        else:
            sizes = st.sampled_from([(), (1,), (3,), (2, 3), (3, 1), (0,)])
            array = draw(hnp.arrays(np.int64, draw(sizes), elements=st.integers(low, high)))
            entries.append(array.tolist() if kind == "list" and array.ndim else array)
        axis += 1
    if draw(st.booleans()):
        entries.insert(draw(st.integers(0, len(entries))), Ellipsis)
    if len(entries) == 1 and draw(st.booleans()):
        return shape, entries[0]
    return shape, tuple(entries)


def numpy_answer(values: NDArray[Any], key: Any) -> Any:
    try:
        return values[key]
    except IndexError as error:
        return error


@given(keys())
@example(((3, 4, 5), (slice(None), [0], Ellipsis, [1])))
@example(((3, 4, 5), (slice(None), [0, 1], Ellipsis, [1, 2])))
@example(((3, 4, 5), ([0, 1], slice(None), 2)))
@example(((3, 4, 5), (0, slice(None), [1, 2])))
@example(((3, 4), (np.array(1), 2)))
@example(((4,), ([],)))
def test_a_key_selects_what_numpy_selects(case: tuple[tuple[int, ...], Any]) -> None:
    shape, key = case
    values = numbered(shape)
    expected = numpy_answer(values, key)
    if isinstance(expected, IndexError):
        with pytest.raises(IndexError):
            plan_selection(key, shape)
        return
    try:
        selection = plan_selection(key, shape)
    except IndexError:
        # NumPy lets positions pass unchecked where nothing is selected.
        assert np.size(expected) == 0
        return
    found = apply(selection, values)
    assert found.shape == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "key",
    [7, -8, (slice(None), 9), [7], [-8, 0], (0, 0, 0, 0), (Ellipsis, Ellipsis), 1.0, "a", [1.0],
     np.array([1.0]), np.array([]), np.ones((7, 8), bool), np.ones(8, bool), ([0, 1], [0, 1, 2]),
     (np.ones(7, bool), [0, 1]), object(), [None], 2**70, [2**70], b"x", {1}, ["a"],
     np.ones((7, 9, 5, 1), bool), (slice(0, 0), [100])],
    ids=repr,
)  # fmt: skip
def test_mistakes_are_index_errors_as_in_numpy(key: Any) -> None:
    with pytest.raises(IndexError):
        numbered((7, 9, 5))[key]
    with pytest.raises(IndexError):
        plan_selection(key, (7, 9, 5))


@pytest.mark.parametrize("key", [None, np.newaxis, (0, None), (None, Ellipsis)])
def test_new_axes_are_refused(key: Any) -> None:
    with pytest.raises(IndexError, match="new axes"):
        plan_selection(key, (7, 9, 5))


@pytest.mark.parametrize("key", [True, np.True_, np.array(True), (False, 1), (np.array(False),)])
def test_single_booleans_are_refused(key: Any) -> None:
    with pytest.raises(IndexError):
        plan_selection(key, (7, 9, 5))


def test_a_slice_step_of_zero_is_numpy_s_error() -> None:
    with pytest.raises(ValueError, match="zero"):
        plan_selection(slice(None, None, 0), (7,))


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, max_side=6))
def test_outer_keys_select_along_their_own_axis(
    data: st.DataObject, shape: tuple[int, ...]
) -> None:
    key: list[Any] = []
    lists: list[Any] = []
    dropped = []
    for axis, n in enumerate(shape):
        kind = data.draw(st.sampled_from(["slice", "integer", "array"]))
        if kind == "slice":
            entry: Any = slice(None, None, data.draw(st.sampled_from([1, 2, -1, -3])))
            lists.append(np.arange(n)[entry])
        elif kind == "integer":
            entry = data.draw(st.integers(-n, n - 1))
            lists.append([entry])
            dropped.append(axis)
        else:
            entry = data.draw(
                hnp.arrays(np.intp, st.integers(0, 5), elements=st.integers(-n, n - 1))
            )
            lists.append(entry)
        key.append(entry)
    values = numbered(shape)
    expected = values[np.ix_(*lists)].squeeze(tuple(dropped))
    found = apply(plan_outer(tuple(key), shape), values)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@st.composite
def vectorized_keys(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[NDArray[Any], ...]]:
    """Draw broadcastable index arrays, dense or sparse, orthogonal or not."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=5))
    n = draw(st.integers(0, 3))
    result = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    arrays = []
    for extent in shape:
        own = draw(st.integers(0, n))
        sides = [side if draw(st.booleans()) else 1 for side in result][own:]
        array = draw(hnp.arrays(np.int64, tuple(sides), elements=st.integers(-extent, extent - 1)))
        dense = draw(st.booleans())
        arrays.append(np.broadcast_to(array, result).copy() if dense else array)
    return shape, tuple(arrays)


@given(vectorized_keys())
@example(((2, 3), (np.arange(2)[None, :] * np.ones((3, 1), int), np.arange(3)[:, None])))
def test_vectorized_keys_broadcast_as_in_numpy(
    case: tuple[tuple[int, ...], tuple[NDArray[Any], ...]],
) -> None:
    shape, key = case
    values = numbered(shape)
    expected = values[key]
    plan = plan_vectorized(key, shape)
    picked = apply(plan.selection, values).transpose(plan.order).reshape(plan.spread)
    found = np.broadcast_to(picked, plan.shape)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_a_dense_transpose_is_an_outer_selection() -> None:
    key = np.broadcast_arrays(np.arange(50)[None, :], np.arange(40)[:, None])
    plan = plan_vectorized(tuple(key), (50, 40))
    assert isinstance(plan.selection, OuterSelection)
    assert [len(axis) for axis in plan.selection.axes] == [50, 40]


def test_vectorized_positions_outside_are_refused() -> None:
    with pytest.raises(IndexError, match="index 5 is out of bounds for axis 1 with size 5"):
        plan_vectorized((np.array([0]), np.array([5])), (4, 5))
    with pytest.raises(IndexError, match="index -5 is out of bounds for axis 0"):
        plan_vectorized((np.array([-5]), np.array([0])), (4, 5))


@given(
    st.lists(st.integers(0, 200), max_size=30) | st.builds(
        range, st.integers(0, 40), st.integers(0, 40), st.sampled_from([1, 2, 7, 30])
    ) | st.builds(range, st.integers(0, 40), st.just(-1), st.sampled_from([-1, -2, -7, -30])),
    st.integers(1, 20),
)  # fmt: skip
def test_runs_cover_the_positions_and_little_else(wanted: list[int] | range, gap: int) -> None:
    indices = wanted if isinstance(wanted, range) else np.array(wanted, np.intp)
    runs = plan_runs(indices, gap=gap)
    assert runs == sorted(runs)
    covered = [i for start, stop in runs for i in range(start, stop)]
    assert set(wanted) <= set(covered)
    assert len(covered) == len(set(covered))
    for (_, stop), (start, _) in itertools.pairwise(runs):
        assert start - (stop - 1) > gap
    for start, stop in runs:
        assert {start, stop - 1} <= set(wanted)
        inside = sorted(i for i in set(wanted) if start <= i < stop)
        assert all(b - a <= gap for a, b in itertools.pairwise(inside))
