"""Which levels there are, and in which parts they are made: plain arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.format.integrity import ChunkStatistics
from mlarray_xr.planning.overview_levels import (
    choose_level,
    level_shape,
    plan_levels,
    steps_between,
)
from mlarray_xr.planning.overview_parts import constant_pieces, plan_overview_parts

EXTENTS = st.lists(st.integers(1, 5000), min_size=3, max_size=3)
SPACINGS = st.lists(st.floats(0.01, 20), min_size=3, max_size=3)


@given(EXTENTS, SPACINGS, st.integers(0, 6))
def test_levels_halve_and_leave_other_axes_alone(
    extents: list[int], spacing: list[float], levels: int
) -> None:
    planned = plan_levels((7, *extents), spacing=spacing, spatial=(1, 2, 3), levels=levels)
    assert len(planned) <= levels
    if len(planned) < levels:
        last = planned[-1] if planned else (1,) * 4
        assert level_shape(extents, last[1:]) == (1, 1, 1)
    for steps in steps_between(planned):
        assert steps[0] == 1
        assert {*steps} <= {1, 2}
        assert 2 in steps


@given(EXTENTS, SPACINGS)
def test_auto_stops_when_all_fit_a_screen_and_not_before(
    extents: list[int], spacing: list[float]
) -> None:
    planned = plan_levels(extents, spacing=spacing, spatial=(0, 1, 2), levels="auto")
    shapes = [level_shape(extents, f) for f in ((1, 1, 1), *planned)]
    assert max(shapes[-1]) <= 256
    assert all(max(shape) > 256 for shape in shapes[:-1])


@given(SPACINGS)
def test_voxels_become_cubes(spacing: list[float]) -> None:
    planned = plan_levels((1 << 30,) * 3, spacing=spacing, spatial=(0, 1, 2), levels=14)
    found = [step * f for step, f in zip(spacing, planned[-1], strict=True)]
    assert max(found) / min(found) <= 2.001


def test_anisotropic_volumes_wait_for_their_thick_axis() -> None:
    planned = plan_levels((60, 512, 512), spacing=(3, 0.5, 0.5), spatial=(0, 1, 2), levels=4)
    assert planned == ((1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16))


def test_an_axis_of_one_voxel_holds_nothing_up() -> None:
    planned = plan_levels((1, 64, 64), spacing=(0.01, 1, 1), spatial=(0, 1, 2), levels=1)
    assert planned == ((1, 2, 2),)


@pytest.mark.parametrize("spacing", [(0, 1, 1), (math.nan, 1, 9), (math.inf, 1, 1), (-1, 1, 1)])
def test_spacings_that_are_none_count_as_equal(spacing: tuple[float, ...]) -> None:
    planned = plan_levels((8, 8, 8), spacing=spacing, spatial=(0, 1, 2), levels=1)
    assert planned == ((2, 2, 2),)


@pytest.mark.parametrize("levels", [-1, True, 1.5, "all", None])
def test_counts_that_are_none_are_refused(levels: Any) -> None:
    with pytest.raises(ValueError, match="levels="):
        plan_levels((8,), spacing=(1,), spatial=(0,), levels=levels)


def test_one_spacing_per_spatial_axis_is_needed() -> None:
    with pytest.raises(ValueError, match="2 spacings for 1"):
        plan_levels((8,), spacing=(1, 2), spatial=(0,), levels=1)


def test_the_coarsest_level_that_is_fine_enough_is_chosen() -> None:
    spacings = [(3, 0.5, 0.5), (3, 1, 1), (6, 2, 2)]
    assert choose_level(spacings, wanted=(None, 1.0, 1.5)) == 1
    assert choose_level(spacings, wanted=(10, 10, 10)) == 2
    assert choose_level(spacings, wanted=(1, 1, 1)) == 0
    assert choose_level([(0.1,), (0.1 + 0.2,)], wanted=(0.3,)) == 1


PLANS = st.tuples(
    st.lists(st.integers(1, 900), min_size=1, max_size=3),
    st.lists(st.integers(1, 300), min_size=3, max_size=3),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 5),
)


@given(PLANS)
def test_parts_and_pieces_have_borders_of_cells_and_chunks(plan: Any) -> None:
    extents, chunks, itemsize, levels = plan
    shape, axes = tuple(extents), tuple(range(len(extents)))
    factors = plan_levels(shape, spacing=(1,) * len(shape), spatial=axes, levels=levels)
    if not factors:
        return
    parts = plan_overview_parts(
        shape, chunks=tuple(chunks[: len(shape)]), itemsize=itemsize, factors=factors
    )
    seen = np.zeros(shape, np.uint8)
    for number in range(len(parts)):
        for _, box in parts.pieces(number):
            seen[tuple(slice(*pair) for pair in box)] += 1
            for (start, stop), n, factor in zip(box, shape, factors[-1], strict=True):
                assert start % factor == 0
                assert stop % factor == 0 or stop == n
    assert (seen == 1).all()
    for level, of_level in enumerate(factors, 1):
        cut = parts.of_level(level, in_flight=1)
        assert tuple(map(sum, cut.extents)) == level_shape(shape, of_level)
        assert cut.boxes() == [
            parts.level_box(parts.box(number), level) for number in range(len(parts))
        ]
        for along, chunk in zip(cut.extents, parts.chunks[level - 1], strict=True):
            assert all(extent % chunk == 0 for extent in along[:-1])


@given(
    st.lists(st.integers(0, 2), min_size=12, max_size=12), st.sampled_from([4, 6]), st.booleans()
)
def test_constant_pieces_hold_one_value(chunks: list[int], chunk: int, floats: bool) -> None:
    values = np.repeat(np.array(chunks, "f4" if floats else "i2"), chunk)
    if floats:
        values[values == 2] = np.nan
    rows = values.reshape(-1, chunk)
    statistics = ChunkStatistics(
        least=np.fmin.reduce(rows, axis=1),
        greatest=np.fmax.reduce(rows, axis=1),
        nonzero=(rows != 0).sum(axis=1),
    )
    parts = plan_overview_parts(
        values.shape, chunks=(chunk,), itemsize=values.itemsize, factors=((2,), (4,))
    )
    object.__setattr__(parts, "piece", (8,))  # smaller than any that is planned
    constants = constant_pieces(parts, statistics, chunks=(chunk,))
    for start in range(0, len(values), 8):
        piece, i = values[start : start + 8], start // 8
        touched = values[start // chunk * chunk : -(-(start + 8) // chunk) * chunk]
        is_one = np.array_equal(touched, np.full_like(touched, touched[0]), equal_nan=floats)
        assert constants.is_known[i] == (is_one and not (floats and touched[0] == 1))
        if constants.is_known[i]:
            np.testing.assert_array_equal(piece, constants.values[i])
