from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlarray_xr.axes import axis_labels_for, plan_dims

if TYPE_CHECKING:
    from collections.abc import Sequence

LABELS = st.lists(
    st.sampled_from(
        ["spatial", "spatial_x", "spatial_z", "temporal", "channel", "x", "x_0", "x_1", "", "a b"]
    )
    | st.text(max_size=80),
    max_size=8,
)


@pytest.mark.parametrize(
    ("labels", "dims", "spatial", "assumed"),
    [
        (["channel", "spatial_z", "spatial_y", "spatial_x"], "channel z y x", (1, 2, 3), False),
        (["spatial_x", "spatial_y", "spatial_z"], "x y z", (0, 1, 2), False),
        (["temporal", "components", "spatial_x"], "time component x", (2,), False),
        (["spatial", "channel", "spatial"], "y channel x", (0, 2), True),
        (["energy", "my axis", "spatial"], "energy my_axis x", (2,), True),
        (["spatial"] * 4, "spatial_0 spatial_1 spatial_2 spatial_3", (0, 1, 2, 3), False),
        (["spatial", "spatial_x"], "spatial x", (0, 1), False),
        (["x", "spatial_x"], "x_0 x_1", (1,), False),
        (["a", "a", "a_0"], "a_1 a_2 a_0", (), False),
        (["time", "temporal"], "time_0 time_1", (), False),
        (["", "a/b\0c", "x" * 5000], "dim_0 a_b_c " + "x" * 64, (), False),
        (["q" * 70, "q" * 80], f"{'q' * 62}_0 {'q' * 62}_1", (), False),
        ([], "", (), False),
    ],
)
def test_dims_follow_the_labels(
    labels: Sequence[str], dims: str, spatial: tuple[int, ...], assumed: bool
) -> None:
    axes = plan_dims(labels, len(labels))
    assert axes.dims == tuple(dims.split())
    assert axes.spatial == spatial
    assert axes.assumed is assumed
    assert axes.labels == tuple(labels)


@pytest.mark.parametrize(
    ("ndim", "dims"),
    [(0, ""), (1, "x"), (2, "y x"), (3, "z y x"), (4, "dim_0 z y x"), (5, "dim_0 dim_1 z y x")],
)
def test_without_labels_the_trailing_axes_are_assumed(ndim: int, dims: str) -> None:
    axes = plan_dims(None, ndim)
    assert axes.dims == tuple(dims.split())
    assert axes.spatial == tuple(range(ndim))
    assert axes.labels is None
    assert axes.assumed is (ndim > 0)


def test_labels_of_another_length_name_nothing() -> None:
    assert plan_dims(["channel"], 2) == plan_dims(None, 2)


@given(LABELS)
@example(["x", "spatial_x", "x_0"])
@example(["q" * 64] * 12)
def test_dims_are_unique_clean_and_as_many_as_axes(labels: list[str]) -> None:
    dims = plan_dims(labels, len(labels)).dims
    assert len(set(dims)) == len(labels)
    assert all(re.fullmatch("[0-9A-Za-z_]{1,64}", dim) for dim in dims)


@given(
    st.permutations(["spatial_z", "spatial_y", "spatial_x", "temporal", "channel", "components"])
)
def test_known_labels_survive_the_way_there_and_back(labels: list[str]) -> None:
    assert axis_labels_for(plan_dims(labels, len(labels)).dims) == tuple(labels)
