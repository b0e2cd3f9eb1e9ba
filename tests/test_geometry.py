from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.axes import plan_dims
from mlarray_xr.errors import GeometryError
from mlarray_xr.format.metadata import Spatial
from mlarray_xr.geometry import Geometry

NUMBERS = st.floats(-100, 100).map(lambda number: round(number, 3))
OBLIQUE = ((0.5, 0.0, 0.1, -10.0), (0.0, 0.75, 0.0, 20.0), (0.0, 0.05, 2.0, 30.5), (0, 0, 0, 1))


def stored(ndim: int, **fields: Any) -> Geometry:
    return Geometry.from_spatial(Spatial(**fields), axes=plan_dims(None, ndim))


def test_the_triple_becomes_direction_times_spacing_and_origin() -> None:
    direction = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
    geometry = stored(3, spacing=(3.0, 0.75, 0.5), origin=(10, -20.5, 30), direction=direction)
    expected = np.eye(4)
    expected[:3, :3] = np.asarray(direction) @ np.diag([3.0, 0.75, 0.5])
    expected[:3, 3] = [10, -20.5, 30]
    np.testing.assert_array_equal(np.asarray(geometry.affine), expected)
    assert geometry.spacing == (3.0, 0.75, 0.5)
    np.testing.assert_array_equal(geometry.direction, direction)
    assert geometry.origin == (10, -20.5, 30)


def test_missing_parts_are_ones_zeros_and_identity() -> None:
    assert stored(2).affine == ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    assert not stored(2).is_stored
    assert stored(2, origin=(1, 2)).affine == ((1, 0, 1), (0, 1, 2), (0, 0, 1))
    assert stored(2, origin=(1, 2)).is_stored


def test_non_spatial_axes_have_no_column() -> None:
    axes = plan_dims(["spatial_y", "channel", "spatial_x"], 3)
    geometry = Geometry.from_spatial(Spatial(spacing=(3, 2)), axes=axes)
    assert geometry.dims == ("y", "x")
    assert geometry.spacing == (3, 2)


@pytest.mark.parametrize(
    "fields", [{"spacing": (1,)}, {"origin": (1,)}, {"affine": ((1, 0), (0, 1))}]
)
def test_numbers_for_another_count_of_axes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(GeometryError, match="2 spatial axes"):
        stored(2, **fields)


@pytest.mark.parametrize(
    ("affine", "units"), [(((1.0, 0.0),), ("mm",)), (((1.0,), (1.0,)), ("mm",))]
)
def test_an_affine_that_is_not_square_is_refused(affine: Any, units: Any) -> None:
    with pytest.raises(GeometryError, match="2 rows of 2"):
        Geometry(dims=("x",), affine=affine, units=units)


def test_units_must_be_one_per_dimension() -> None:
    with pytest.raises(GeometryError, match="one per dimension"):
        Geometry(dims=("x",), affine=((1.0, 0.0), (0.0, 1.0)), units=())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_degenerate_spacing_is_kept_and_aligned_with_nothing(bad: float) -> None:
    geometry = stored(2, spacing=(bad, 1.0))
    assert not geometry.is_invertible
    assert geometry.world_axes() is None
    assert geometry.spacing[1] == 1
    assert geometry.spacing[0] == bad or math.isnan(geometry.spacing[0])
    with pytest.raises(GeometryError, match="oblique or degenerate"):
        geometry.coordinate(0, 4)
    with pytest.raises(GeometryError, match="span no volume"):
        geometry.world_to_index([[0, 0]])


def test_a_view_that_did_not_move_keeps_its_origin_beside_nan() -> None:
    geometry = stored(2, spacing=(math.nan, 1.0), origin=(5, 6))
    moved = geometry.moved(start=(0, 2), step=(1, 1), order=(0, 1))
    assert moved.origin == (5, 8)


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (((2, 0, 5), (0, 3, 6), (0, 0, 1)), (0, 1)),
        (((0, -2, 5), (3, 0, 6), (0, 0, 1)), (1, 0)),
        (((2, 1e-6, 5), (1e-6, 3, 6), (0, 0, 1)), (0, 1)),
        (((2, 1e-3, 5), (0, 3, 6), (0, 0, 1)), None),
        (((2, 2, 5), (0, 0, 6), (0, 0, 1)), None),
    ],
)
def test_aligned_means_a_signed_permutation(affine: Any, expected: Any) -> None:
    assert stored(2, affine=affine).world_axes() == expected


def test_a_geometry_without_axes_is_aligned() -> None:
    geometry = stored(0)
    assert geometry.world_axes() == ()
    assert geometry.is_invertible
    assert not geometry.is_stored


def test_coordinates_are_one_formula() -> None:
    geometry = stored(2, affine=((0, 0.3, 10.1), (-0.7, 0, 5), (0, 0, 1)))
    np.testing.assert_array_equal(geometry.coordinate(0, 5), 5 + -0.7 * np.arange(5))
    np.testing.assert_array_equal(geometry.coordinate(1, 5), 10.1 + 0.3 * np.arange(5))


@given(
    st.lists(st.lists(NUMBERS, min_size=4, max_size=4), min_size=3, max_size=3),
    st.tuples(*[st.integers(-20, 20)] * 3),
    st.tuples(*[st.sampled_from([-3, -1, 1, 2])] * 3),
    st.permutations(range(3)),
    st.tuples(*[st.integers(0, 9)] * 3),
)
def test_moved_maps_new_indices_to_the_same_world(
    rows: Any, start: Any, step: Any, order: Any, index: Any
) -> None:
    geometry = stored(3, affine=(*map(tuple, rows), (0, 0, 0, 1)))
    moved = geometry.moved(start=start, step=step, order=order)
    old = np.asarray(start) + np.asarray(step) * np.asarray(index)
    new = [index[axis] for axis in order]
    expected = np.asarray(geometry.affine) @ [*old, 1]
    np.testing.assert_allclose(np.asarray(moved.affine) @ [*new, 1], expected, atol=1e-6)
    assert moved.dims == tuple(geometry.dims[axis] for axis in order)


def test_moving_nowhere_changes_no_bit() -> None:
    geometry = stored(3, affine=OBLIQUE)
    assert geometry.moved(start=(0, 0, 0), step=(1, 1, 1), order=(0, 1, 2)) == geometry


@pytest.mark.parametrize(
    "affine", [OBLIQUE, ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))]
)
def test_storing_and_reading_gives_the_same_geometry(affine: Any) -> None:
    axes = plan_dims(["spatial_z", "spatial_y", "spatial_x"], 3)
    spatial = Spatial(affine=affine, coord_system="RAS", axis_labels=axes.labels)
    geometry = Geometry.from_spatial(spatial, axes=axes)
    again = Spatial(affine=geometry.affine, coord_system="RAS", axis_labels=axes.labels)
    assert Geometry.from_spatial(again, axes=axes) == geometry


def test_nothing_is_stored_where_nothing_is_known() -> None:
    assert not stored(2).is_stored


def test_a_plane_keeps_the_world_axes_it_needs() -> None:
    geometry = stored(3, affine=((0, 2, 0, 5), (3, 0, 0, 6), (0, 0, 4, 7), (0, 0, 0, 1)))
    plane = geometry.without(["z"])
    assert plane is not None
    assert plane.dims == ("y", "x")
    np.testing.assert_array_equal(plane.affine, [[2, 0, 5], [0, 4, 7], [0, 0, 1]])


def test_a_geometry_without_nothing_is_itself() -> None:
    geometry = stored(2, spacing=(0, math.nan))
    assert geometry.without([]) is geometry


def test_an_oblique_plane_needs_all_world_axes() -> None:
    assert stored(3, affine=OBLIQUE).without(["x"]) is None


@pytest.mark.parametrize("system", ["RAS", "RAS+"])
def test_between_ras_and_lps_the_first_two_world_axes_flip(system: str) -> None:
    geometry = stored(3, affine=OBLIQUE, coord_system=system)
    flipped = geometry.in_system("LPS")
    np.testing.assert_array_equal(
        np.asarray(flipped.affine), np.diag([-1.0, -1, 1, 1]) @ np.asarray(geometry.affine)
    )
    assert flipped.coord_system == "LPS"
    assert flipped.in_system("RAS").affine == geometry.affine
    assert geometry.in_system("RAS") is geometry


@pytest.mark.parametrize(("ndim", "system"), [(3, None), (3, "unknown"), (2, "RAS")])
def test_a_system_is_never_guessed(ndim: int, system: str | None) -> None:
    with pytest.raises(GeometryError, match="attrs\\['coord_system'\\]"):
        stored(ndim, coord_system=system).in_system("RAS")


def test_only_ras_and_lps_can_be_asked_for() -> None:
    with pytest.raises(GeometryError, match="'RAS' or 'LPS'"):
        stored(3, coord_system="RAS").in_system("LAS")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"coord_system": "RAS"}, True),
        ({"coord_system": "LPS"}, False),
        ({"origin": (0, 0, 1e-12)}, True),
        ({"origin": (0, 0, 1e-3)}, False),
    ],
)
def test_same_grid_allows_noise_only(change: dict[str, Any], expected: bool) -> None:
    fields = {"spacing": (1, 2, 3), "coord_system": "RAS+"}
    first, second = stored(3, **fields), stored(3, **{**fields, **change})
    assert first.same_grid(second, atol=1e-6) is expected


def test_nan_is_no_grid() -> None:
    geometry = stored(1, spacing=(math.nan,))
    assert not geometry.same_grid(geometry, atol=1)


@pytest.mark.parametrize(
    ("axis_units", "expected"),
    [
        ("mm", ("mm", "mm")),
        (["s", "mm", "um"], ("mm", "um")),
        (["mm", "um"], ("mm", "um")),
        (["mm", 3], ("mm", None)),
        (["mm", "\n", "x" * 65], (None, None)),
        ({"x": "mm"}, (None, None)),
        (["mm"], (None, None)),
        (None, (None, None)),
    ],
)
def test_units_are_found_where_they_are_plain(axis_units: Any, expected: Any) -> None:
    axes = plan_dims(["temporal", "spatial_y", "spatial_x"], 3)
    assert Geometry.from_spatial(Spatial(axis_units=axis_units), axes=axes).units == expected


def test_points_map_there_and_back() -> None:
    geometry = stored(3, affine=OBLIQUE)
    points = np.arange(12.0).reshape(2, 2, 3)
    world = geometry.index_to_world(points)
    np.testing.assert_allclose(world[1, 1], (np.asarray(OBLIQUE) @ [9, 10, 11, 1])[:3])
    np.testing.assert_allclose(geometry.world_to_index(world), points, atol=1e-12)
