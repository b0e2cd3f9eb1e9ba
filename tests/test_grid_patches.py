"""Grids of patches: cover everything, overlap as asked, weights as the field has them."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.draw import Draw
from mlarray_xr.planning.grid_patches import GridPatches, PatchGrid
from mlarray_xr.planning.patch_weights import PatchShares, Weighting, axis_weights, weight_sums
from mlarray_xr.planning.sample_space import SampleSpace

WEIGHTINGS: tuple[Weighting, ...] = ("uniform", "hann", "gaussian")
DIMS = ("time", "z", "y", "x")


def space_of(*extents: int, n_spatial: int | None = None) -> SampleSpace:
    ndim = len(extents)
    first = ndim - (ndim if n_spatial is None else n_spatial)
    return SampleSpace(dims=DIMS[4 - ndim :], extents=extents, spatial=tuple(range(first, ndim)))


@st.composite
def grids(draw: st.DrawFn, *, max_dims: int = 4) -> PatchGrid:
    """Draw grids of volumes that are smaller and larger than the patch."""
    ndim = draw(st.integers(1, max_dims))
    shape = tuple(draw(st.integers(1, 7)) for _ in range(ndim))
    return PatchGrid(
        extents=tuple(draw(st.integers(1, 12)) for _ in range(ndim)),
        shape=shape,
        steps=tuple(draw(st.integers(1, size)) for size in shape),
    )


# Places


@given(grid=grids())
def test_patches_cover_every_voxel_and_stay_inside(grid: PatchGrid) -> None:
    covered = np.zeros(grid.extents, bool)
    for place in grid:
        covered[tuple(slice(*pair) for pair in place.inside)] = True
        for (start, stop), size, n in zip(place.box, grid.shape, grid.extents, strict=True):
            assert stop - start == size
            if size <= n:
                assert 0 <= start <= stop <= n
            else:  # the volume is in the middle
                assert (-start, stop - n) == ((size - n) // 2, size - n - (size - n) // 2)
    assert covered.all()


@given(grid=grids())
def test_patches_come_in_c_order_and_are_found_again(grid: PatchGrid) -> None:
    along = [grid.starts(axis) for axis in range(len(grid.shape))]
    places = list(grid)
    assert [place.start for place in places] == list(product(*along))
    assert [grid.find(place.box) for place in places] == list(range(len(grid)))
    for starts, step in zip(along, grid.steps, strict=True):
        distances = [b - a for a, b in pairwise(starts)]
        assert set(distances[:-1]) <= {step}
        assert all(0 < distance <= step for distance in distances[-1:])


def test_what_is_no_patch_of_the_grid_is_not_found() -> None:
    grid = PatchGrid(extents=(10, 10), shape=(4, 4), steps=(3, 3))
    assert grid.find(((3, 7), (6, 10))) == 5
    assert grid.find(((2, 6), (6, 10))) is None
    assert grid.find(((3, 8), (6, 10))) is None
    for number in (9, -1):
        with pytest.raises(IndexError, match="of a grid of 9"):
            grid[number]


def test_a_grid_of_millions_is_no_list() -> None:
    grid = GridPatches(8, overlap=0.5).plan_windows(space_of(4096, 4096, 4096))
    assert len(grid) == 1023**3
    assert grid[len(grid) - 1].start == (4088, 4088, 4088)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("extents", [(40, 33, 17), (16, 16, 16), (31, 70, 16)])
def test_places_are_those_of_monai(extents: tuple[int, ...], overlap: float) -> None:
    utils = pytest.importorskip("monai.data.utils")
    interval = [16 - int(16 * overlap)] * 3
    expected = utils.dense_patch_slices(extents, (16, 16, 16), interval)
    grid = GridPatches(16, overlap=overlap).plan_windows(space_of(*extents))
    assert [tuple(slice(*pair) for pair in place.box) for place in grid] == expected


@pytest.mark.parametrize("overlap", [0, 2, 6])
def test_places_are_those_of_torchio(overlap: int) -> None:
    torchio = pytest.importorskip("torchio")
    extents = (40, 33, 17)
    subject = torchio.Subject(image=torchio.ScalarImage(tensor=np.zeros((1, *extents), "f4")))
    expected = torchio.GridSampler(subject, patch_size=16, patch_overlap=overlap).locations
    grid = GridPatches(16, overlap=overlap).plan_windows(space_of(*extents))
    found = [(*place.start, *(stop for _, stop in place.box)) for place in grid]
    assert sorted(found) == sorted(map(tuple, expected.tolist()))


def test_a_grid_is_a_sampling_without_chance() -> None:
    space, sampling = space_of(20, 9, 11), GridPatches((8, 9, 4), overlap=(2, 0, 0.5))
    assert sampling.n_per_volume is None
    assert sampling.count(space) == 3 * 1 * 5
    for number in (0, 7, 14):
        draws = [Draw(seed=seed, epoch=seed, index=seed) for seed in (0, 1)]
        places = [
            sampling.place(space, number=number, draw=draw, find=lambda *_: None) for draw in draws
        ]
        assert places[0] == places[1] == sampling.plan_windows(space)[number]


# Spellings of patch and overlap


@pytest.mark.parametrize(
    ("overlap", "steps"),
    [
        (0, (5, 8, 8, 8)),
        (0.5, (5, 4, 4, 4)),
        (np.float32(0.25), (5, 6, 6, 6)),
        (3, (5, 5, 5, 5)),
        (np.int64(3), (5, 5, 5, 5)),
        ((1, 0.5, 7), (5, 7, 4, 1)),
        ((0, 1, 0.5, 7), (5, 7, 4, 1)),
        ({"x": 0.5, "z": 2}, (5, 6, 8, 4)),
        (0.999, (5, 1, 1, 1)),
    ],
)
def test_spellings_of_an_overlap(overlap: Any, steps: tuple[int, ...]) -> None:
    space = space_of(5, 20, 20, 20, n_spatial=3)
    assert GridPatches(8, overlap=overlap).plan_windows(space).steps == steps


def test_a_patch_may_follow_from_the_volume() -> None:
    sampling = GridPatches(lambda space: {"z": space.extents[0] // 2}, overlap=1)
    assert sampling.plan_windows(space_of(20, 9, 9)).shape == (10, 9, 9)


@pytest.mark.parametrize("overlap", [1.0, -1, -0.5, True, math.nan, "half", None, (0, 1.5, 0)])
def test_overlaps_that_make_no_sense(overlap: Any) -> None:
    with pytest.raises(LayoutError, match="overlap holds"):
        GridPatches(8, overlap=overlap)


def test_overlaps_that_do_not_fit_a_volume() -> None:
    space = space_of(20, 20, 20)
    with pytest.raises(LayoutError, match=r"8 voxels along 'z', where the patch has 8"):
        GridPatches(8, overlap=8).plan_windows(space)
    with pytest.raises(LayoutError, match=r"names \['t'\]"):
        GridPatches(8, overlap={"t": 1}).plan_windows(space)
    with pytest.raises(LayoutError, match="2 entries"):
        GridPatches(8, overlap=(1, 1)).plan_windows(space)
    # Where one patch is all there is nothing overlaps.
    assert len(GridPatches(8, overlap=8).plan_windows(space_of(8, 7, 3))) == 1


# Weights


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("size", [1, 2, 3, 8, 96, 500])
def test_weights_are_positive_and_symmetric(weighting: Weighting, size: int) -> None:
    weights = axis_weights(weighting, size)
    assert weights.shape == (size,)
    assert weights.dtype == np.float32
    assert 0 < weights.min() <= weights.max() <= 1
    np.testing.assert_array_almost_equal_nulp(weights, weights[::-1], nulp=2)
    # The product of as many axes as arrays have stays far from what float32 flushes to zero.
    assert float(weights.min()) ** 4 > np.finfo(np.float32).tiny


@pytest.mark.parametrize("shape", [(8, 8, 8), (5, 12, 7)])
def test_gaussian_weights_are_those_of_monai(shape: tuple[int, ...]) -> None:
    utils = pytest.importorskip("monai.data.utils")
    expected = utils.compute_importance_map(shape, mode="gaussian").numpy()
    weights = PatchShares(
        PatchGrid(extents=shape, shape=shape, steps=shape), "gaussian", dtype="f4"
    )
    product_of_axes = np.einsum("i,j,k", *(axis_weights("gaussian", n) for n in shape))
    is_raised = expected <= expected.min()  # MONAI clips what is small
    np.testing.assert_allclose(product_of_axes[~is_raised], expected[~is_raised], rtol=1e-5)
    assert (product_of_axes[is_raised] <= expected.min()).all()
    assert (weights.of(0) == 1).all()  # one patch has it all


def test_hann_weights_are_those_of_torchio() -> None:
    inference = pytest.importorskip("torchio.data.inference.aggregator")
    expected = inference.GridAggregator._get_hann_window((6, 9, 4)).numpy()
    found = np.einsum("i,j,k", *(axis_weights("hann", n) for n in (6, 9, 4)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_unknown_weighting_is_named() -> None:
    with pytest.raises(ValueError, match="weights='cosine': choose one of"):
        axis_weights("cosine", 4)  # type: ignore[arg-type]


@given(grid=grids(max_dims=3), weighting=st.sampled_from(WEIGHTINGS))
def test_shares_are_weights_over_their_sum(grid: PatchGrid, weighting: Weighting) -> None:
    along = [axis_weights(weighting, size).astype(np.float64) for size in grid.shape]
    weights = along[0]
    for more in along[1:]:
        weights = np.multiply.outer(weights, more)
    sums = np.zeros(grid.extents)
    keys = [
        tuple(tuple(slice(*pair) for pair in box) for box in (place.inside, place.valid))
        for place in grid
    ]
    for inside, valid in keys:
        sums[inside] += weights[valid]
    separable = [weight_sums(grid, axis, one) for axis, one in enumerate(along)]
    product_of_sums = separable[0]
    for more in separable[1:]:
        product_of_sums = np.multiply.outer(product_of_sums, more)
    np.testing.assert_allclose(product_of_sums, sums, rtol=1e-12)
    shares = PatchShares(grid, weighting, dtype=np.float64)
    total = np.zeros(grid.extents)
    for number, (inside, valid) in enumerate(keys):
        np.testing.assert_allclose(shares.of(number), (weights[valid] / sums[inside]), rtol=1e-12)
        total[inside] += shares.of(number)
    np.testing.assert_allclose(total, 1, rtol=1e-12)
