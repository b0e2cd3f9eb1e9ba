"""What an assignment does to each chunk, and which values it takes: NumPy, less what loses data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.assignment import fit_values, outer_only, plan_chunk_selections
from mlarray_xr.planning.selection import OuterSelection, plan_selection
from tests.strategies import keys, shapes

EVERYTHING = OuterSelection(axes=(range(3),), shape=(3,))


@given(data=st.data(), shape=shapes(max_dims=4, max_side=7))
def test_the_chunks_together_are_the_selection(data: st.DataObject, shape: tuple[int, ...]) -> None:
    key = data.draw(keys(shape))
    chunks = tuple(data.draw(st.integers(1, n + 2)) for n in shape)
    expected = np.zeros(shape, "i8")
    count = expected[key].size
    values = np.arange(1, count + 1).reshape(expected[key].shape)
    expected[key] = values
    selection = outer_only(plan_selection(key, shape))
    fitted = fit_values(values, selection, np.dtype("i8"))
    found = np.zeros(shape, "i8")
    seen = np.zeros_like(fitted)
    positions = []
    for piece in plan_chunk_selections(selection, shape=shape, chunks=chunks):
        box: tuple[Any, ...] = tuple(slice(start, stop) for start, stop in piece.box)
        assert piece.position == tuple(s.start // c for s, c in zip(box, chunks, strict=True))
        part = found[(*box, ...)]
        touched = np.zeros(part.shape, bool)
        touched[piece.chunk_key] = True
        assert touched.any()
        assert touched.all() == piece.is_whole
        part[piece.chunk_key] = fitted[piece.values_key]
        seen[piece.values_key] += 1
        positions.append(piece.position)
    np.testing.assert_array_equal(found, expected)
    assert (seen == 1).all()
    assert positions == sorted(set(positions))


def test_ranges_are_not_listed() -> None:
    selection = plan_selection((slice(None, None, 10**15),), (10**18,))
    assert isinstance(selection, OuterSelection)
    fitted = fit_values(1, selection, np.dtype("i2"))
    assert fitted.strides == (0,)
    pieces = list(plan_chunk_selections(selection, shape=(10**18,), chunks=(10**17,)))
    assert len(pieces) == 10
    assert all(isinstance(piece.chunk_key[0], slice) for piece in pieces)


@pytest.mark.parametrize(
    "key", [([0, 1], [0, 1]), np.ones((3, 3), bool), (0, [1]), (np.array(1), np.array([1]))]
)
def test_single_points_are_refused(key: Any) -> None:
    with pytest.raises(IndexError, match=r"single points.*read the box"):
        outer_only(plan_selection(key, (3, 3)))


TAKEN: list[tuple[Any, str]] = [
    (10, "u1"),
    (True, "u1"),
    (np.int64(-128), "i1"),
    (np.uint64(5), "i1"),
    (np.array([0, 1, 255]), "u1"),
    (np.array([0, 1, 1]), "?"),
    (np.array([2**63 - 1], "u8"), "i8"),
    (7, "f4"),
    (0.1, "f4"),
    (np.array([1e-60, np.inf, np.nan]), "f4"),
    (np.array([1, 2, 3], ">i2"), "<i4"),
    (np.array([1, 2, 3], "<i2"), ">i2"),
    (1.5, "c8"),
    (1 + 2j, "c8"),
    (np.array(["a", "bc", ""]), "U2"),
    (np.array([b"a"], "S9"), "S1"),
    (np.array(["2026-01-01", "NaT", "1969-12-31"], "M8[s]"), "M8[ns]"),
    (np.array(["2026-01-01", "NaT", "1969-12-31"], "M8[ns]"), "M8[D]"),
    (np.timedelta64(3, "h"), "m8[s]"),
    (np.array([], "i8"), "u1"),
]


@pytest.mark.parametrize(("values", "dtype"), TAKEN, ids=str)
def test_values_that_a_type_holds(values: Any, dtype: str) -> None:
    given_values = np.asarray(values)
    shape = given_values.shape or (3,)
    selection = OuterSelection(axes=(range(shape[0]),), shape=shape)
    fitted = fit_values(values, selection, np.dtype(dtype))
    assert (fitted.dtype, fitted.shape) == (np.dtype(dtype), shape)
    np.testing.assert_array_equal(fitted, np.broadcast_to(given_values.astype(dtype), shape))


REFUSED: list[tuple[Any, str, str]] = [
    (256, "u1", "from 256 to 256 do not fit uint8, which holds 0 to 255"),
    (-1, "u8", "do not fit uint64"),
    (np.array([2**64 - 1], "u8"), "i8", "from 18446744073709551615"),
    (2, "?", "do not fit bool, which holds 0 to 1"),
    (2**70, "i8", "type object"),
    (1.0, "i4", "type float64 are not stored as int32.*astype"),
    (1.0, "?", "are not stored"),
    (1j, "f8", "are not stored"),
    (1e300, "f4", "too large, long or fine for float32"),
    (70000, "f2", "too large"),
    (1e300 + 1j, "c8", "too large"),
    (np.array(["abc"]), "U2", "too large, long"),
    (np.array([b"abc"]), "S2", "too large, long"),
    ("a", "S1", "are not stored"),
    (1, "U2", "are not stored"),
    (np.datetime64("2026-01-01T00:00:01"), "M8[D]", "or fine for"),
    (np.datetime64("9999-01-01"), "M8[ns]", "too large"),
    (5, "m8[s]", "are not stored"),
    (np.zeros(3, "V3"), "V4", "are not stored"),
    (np.zeros(3, [("a", "i2")]), "i2", "are not stored"),
    (np.ma.masked_array([1, 2, 3], [True, False, False]), "i8", "masked array"),
    (None, "i2", "type object"),
]


@pytest.mark.parametrize(("values", "dtype", "message"), REFUSED, ids=str)
def test_values_that_a_type_does_not_hold(values: Any, dtype: str, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        fit_values(values, EVERYTHING, np.dtype(dtype))


def test_values_broadcast_as_in_numpy() -> None:
    selection = OuterSelection(axes=(range(1, 2), range(4)), shape=(4,))
    values = np.arange(4).reshape(1, 1, 4)
    fitted = fit_values(values, selection, np.dtype("i8"))
    np.testing.assert_array_equal(fitted, [[0, 1, 2, 3]])
    wrong: Any
    for wrong in (np.arange(3), np.zeros((2, 4)), []):
        with pytest.raises(ValueError, match="do not broadcast to shape"):
            fit_values(np.asarray(wrong, "i8"), selection, np.dtype("i8"))
