"""Cells to voxels: exact arithmetic and plain Python are the oracles, xarray that of NaN."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.reduction import check_reducible, reduce_mean, reduce_mode

TWO_LEVELS = ((2, 1, 2), (4, 2, 4))


def cells(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> Any:
    grid = [range(0, n, f) for n, f in zip(values.shape, factors, strict=True)]
    for position in itertools.product(*grid):
        box = tuple(slice(i, i + f) for i, f in zip(position, factors, strict=True))
        yield tuple(i // f for i, f in zip(position, factors, strict=True)), values[box].ravel()


def level(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.empty([-(-n // f) for n, f in zip(values.shape, factors, strict=True)], values.dtype)


def exact_mean(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mean of each cell of the array itself, in exact numbers, rounded half to even once."""
    result = level(values, factors)
    for position, found in cells(values, factors):
        result[position] = round(sum(map(Fraction, map(int, found)), Fraction(0)) / len(found))
    return result


def added_mean(values: np.ndarray[Any, Any], *levels: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mean by additions in float64 in the order that is promised: level by level, by axis."""
    wide = np.complex128 if values.dtype.kind == "c" else np.float64
    sums = np.where(np.isnan(values), 0, values).astype(wide)
    counts = (~np.isnan(values)).astype(np.float64)
    before = (1,) * values.ndim
    for now in levels:
        for axis in range(values.ndim):
            if now[axis] > before[axis]:
                sums, counts = added_pairs(sums, axis), added_pairs(counts, axis)
        before = now
    with np.errstate(all="ignore"):
        means: np.ndarray[Any, Any] = (sums / counts).astype(values.dtype)
    return means


def added_pairs(sums: np.ndarray[Any, Any], axis: int) -> np.ndarray[Any, Any]:
    rows = np.moveaxis(sums, axis, 0)
    pairs = [
        rows[i] + rows[i + 1] if i + 1 < len(rows) else rows[i] for i in range(0, len(rows), 2)
    ]
    summed: np.ndarray[Any, Any] = np.moveaxis(np.stack(pairs), 0, axis)
    return summed


def counted_mode(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> np.ndarray[Any, Any]:
    result = level(values, factors)
    for position, found in cells(values, factors):
        count = Counter(found.tolist())
        result[position] = max(count, key=lambda x: (count[x], x != 0, -x))
    return result


def arrays(dtype: Any, elements: Any = None) -> Any:
    shapes = npst.array_shapes(min_dims=3, max_dims=3, max_side=9)
    return npst.arrays(dtype, shapes, elements=elements)


@given(st.sampled_from(["?", "u1", "<i2", ">u2", "<i4", "u4"]).flatmap(arrays))
@settings(max_examples=80)
def test_means_of_integers_are_exact_and_rounded_once(values: np.ndarray[Any, Any]) -> None:
    for found, factors in zip(reduce_mean(values, TWO_LEVELS), TWO_LEVELS, strict=True):
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, exact_mean(values, factors))


@given(
    st.sampled_from(["<f4", ">f4", "f8", "f2", "c8", "c16"]),
    npst.array_shapes(min_dims=3, max_dims=3, max_side=9),
    st.integers(0, 1 << 32),
)
@settings(max_examples=80)
def test_means_of_floats_are_those_additions_bit_for_bit(
    dtype: str, shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=shape) * 10.0 ** rng.integers(-4, 4, shape)).astype(dtype)
    values[rng.random(shape) < rng.choice([0, 0.5])] = np.nan
    fine, coarse = reduce_mean(values, TWO_LEVELS)
    assert fine.dtype == coarse.dtype == values.dtype
    np.testing.assert_array_equal(fine, added_mean(values, TWO_LEVELS[0]))
    np.testing.assert_array_equal(coarse, added_mean(values, *TWO_LEVELS))


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8"])
def test_nan_is_passed_over_as_xarray_does(dtype: str) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(7, 6, 9)).astype(dtype)
    values[rng.random(values.shape) < 0.4] = np.nan
    values[:4, :2, :4] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # xarray's, of cells of nothing but NaN
        wanted = (
            xr.DataArray(values.astype("c16" if dtype == "c8" else "f8"), dims=("z", "y", "x"))
            .coarsen(z=4, y=2, x=4, boundary="pad")
            .mean()
        )
    _, found = reduce_mean(values, TWO_LEVELS)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert np.isnan(found[0, 0, 0])


def test_infinity_stays_and_zeros_have_one_sign() -> None:
    values = np.array([np.inf, 1, np.inf, -np.inf, -0.0, -0.0], "f4")
    (found,) = reduce_mean(values, [(2,)])
    np.testing.assert_array_equal(found, np.array([np.inf, np.nan, 0], "f4"))
    assert not np.signbit(found[2])


@pytest.mark.parametrize("dtype", ["i8", "u8"])
def test_the_largest_integers_do_not_wrap(dtype: str) -> None:
    limits = np.iinfo(dtype)
    (found,) = reduce_mean(np.array([limits.max] * 2 + [limits.min] * 2, dtype), [(2,)])
    assert found[0] > limits.max - 4096
    assert found[1] == limits.min


@given(
    st.sampled_from(["?", "u1", "<i2", ">u4"]).flatmap(
        lambda dtype: arrays(dtype, st.integers(0, 1 if dtype == "?" else 4))
    )
)
@settings(max_examples=80)
def test_modes_are_those_that_counting_finds(values: np.ndarray[Any, Any]) -> None:
    fine, coarse = reduce_mode(values, TWO_LEVELS)
    assert fine.dtype == values.dtype
    np.testing.assert_array_equal(fine, counted_mode(values, (2, 1, 2)))
    np.testing.assert_array_equal(coarse, counted_mode(fine, (2, 2, 2)))


@given(arrays("i2"))
def test_no_label_appears_that_was_not_there(values: np.ndarray[Any, Any]) -> None:
    for found in reduce_mode(values, TWO_LEVELS):
        assert {*found.ravel().tolist()} <= {*values.ravel().tolist()}


def test_a_sheet_one_voxel_thick_stays() -> None:
    labels = np.zeros((32, 32, 32), "uint8")
    labels[:, 13] = 4
    for found in reduce_mode(labels, [(2, 2, 2), (4, 4, 4), (8, 8, 8)]):
        assert (found == 4).any(axis=1).all()


def test_nan_is_no_label() -> None:
    (found,) = reduce_mode(np.array([np.nan, 2, np.nan, np.nan], "f4"), [(2,)])
    np.testing.assert_array_equal(found, np.array([2, np.nan], "f4"))


@given(arrays("f4", st.floats(-100, 100, width=32)), st.sampled_from([reduce_mean, reduce_mode]))
def test_pieces_give_what_the_whole_gives(values: np.ndarray[Any, Any], reduce: Any) -> None:
    *_, whole = reduce(values, TWO_LEVELS)
    pieces = [reduce(values[i : i + 4], TWO_LEVELS)[-1] for i in range(0, len(values), 4)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_inputs_are_left_alone() -> None:
    values = np.arange(24, dtype="i4").reshape(2, 3, 4)
    values.setflags(write=False)
    for reduce in (reduce_mean, reduce_mode):
        reduce(values, TWO_LEVELS)


@pytest.mark.parametrize(
    ("dtype", "method", "fix"),
    [
        ("U3", "mean", "convert"),
        ("M8[s]", "mode", "convert"),
        ("V4", "mean", "convert"),
        ("c8", "mode", "method='mean'"),
    ],
)
def test_types_without_such_a_thing_are_refused(dtype: str, method: str, fix: str) -> None:
    with pytest.raises(ConversionError, match=fix):
        check_reducible(np.dtype(dtype), method)
