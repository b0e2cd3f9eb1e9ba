"""Where patches lie: inside, padded as NumPy pads, uniform, and a function of the draw alone."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.draw import Draw
from mlarray_xr.planning.epoch_order import grouped_order, plan_epoch_order, plan_share
from mlarray_xr.planning.padding import Padding, PadMode
from mlarray_xr.planning.patch_place import PatchPlace, place_around, place_from
from mlarray_xr.planning.random_patches import RandomPatches
from mlarray_xr.planning.sample_space import SampleSpace
from mlarray_xr.planning.slices import Slices2D, WholeVolume

if TYPE_CHECKING:
    from mlarray_xr.planning.sampling import Sampling

NAMES = ("time", "z", "y", "x")
extents: st.SearchStrategy[tuple[int, ...]] = st.lists(
    st.integers(1, 20), min_size=1, max_size=4
).map(tuple)


def space_of(sizes: tuple[int, ...]) -> SampleSpace:
    dims = NAMES[-len(sizes) :]
    spatial = tuple(i for i, dim in enumerate(dims) if dim != "time")
    return SampleSpace(dims=dims, extents=sizes, spatial=spatial)


def nothing(*_: object) -> None:
    return None


def placed(sampling: Sampling, space: SampleSpace, *, index: int = 0, epoch: int = 0) -> PatchPlace:
    draw = Draw(seed=3, epoch=epoch, index=index)
    return sampling.place(space, number=index, draw=draw, find=nothing)


@st.composite
def places(draw: st.DrawFn) -> PatchPlace:
    sizes = draw(extents)
    shape = tuple(draw(st.integers(1, 25)) for _ in sizes)
    start = tuple(draw(st.integers(-9, 30)) for _ in sizes)
    return place_from(start, shape=shape, extents=sizes)


@given(places())
def test_a_patch_is_inside_wherever_it_fits_and_covers_what_does_not(place: PatchPlace) -> None:
    for (start, stop), (a, b), size, n in zip(
        place.box, place.inside, place.shape, place.extents, strict=True
    ):
        assert stop - start == size
        if size <= n:
            assert (start, stop) == (a, b)
        else:
            assert (a, b) == (0, n)
            assert abs((0 - start) - (stop - n)) <= 1  # in the middle


@given(places(), st.sampled_from(["constant", "edge", "reflect"]))
def test_padding_is_that_of_numpy(place: PatchPlace, mode: PadMode) -> None:
    rng = np.random.default_rng(1)
    values = rng.integers(1, 99, place.extents)
    inside = values[tuple(slice(a, b) for a, b in place.inside)]
    around = [(a, size - b) for (a, b), size in zip(place.valid, place.shape, strict=True)]
    extra: dict[str, Any] = {"constant_values": 7} if mode == "constant" else {}
    expected = np.pad(inside, around, mode=mode, **extra)
    out = np.full((2, *place.shape), -1)
    out[:, *(slice(a, b) for a, b in place.valid)] = inside
    Padding(mode=mode).fill(out, valid=place.valid, value=7)
    np.testing.assert_array_equal(out, np.stack([expected, expected]))


@given(extents, st.data())
def test_random_patches_repeat_for_equal_draws_only(sizes: tuple[int, ...], data: Any) -> None:
    space = space_of(sizes)
    shape = tuple(data.draw(st.integers(1, 25)) for _ in sizes)
    sampling = RandomPatches(shape, patches_per_volume=5)
    index, epoch = data.draw(st.integers(0, 2**40)), data.draw(st.integers(0, 99))
    one = placed(sampling, space, index=index, epoch=epoch)
    assert one == placed(RandomPatches(shape), space, index=index, epoch=epoch)
    assert one.shape == shape
    assert sampling.count(space) == sampling.n_per_volume == 5


def test_large_seeds_are_told_apart() -> None:
    big = 2**64 - 1
    draws = [Draw(seed=big - i, epoch=big - j, index=big - k) for i, j, k in np.ndindex(2, 2, 2)]
    assert len({draw.generator().integers(2**63) for draw in draws}) == 8


def test_draws_of_neighbours_and_epochs_differ() -> None:
    numbers = {
        Draw(seed=seed, epoch=epoch, index=index).generator().integers(2**63)
        for seed in range(3)
        for epoch in range(10)
        for index in range(100)
    }
    assert len(numbers) == 3000


def test_offsets_are_uniform_and_every_one_occurs() -> None:
    space, sampling = space_of((9, 6)), RandomPatches((4, 5))
    found = Counter(placed(sampling, space, index=i).start for i in range(3000))
    assert found.keys() == {(y, x) for y in range(6) for x in range(2)}
    assert chisquare(list(found.values())).pvalue > 0.01


@pytest.mark.parametrize("value", [-1, 2**64, 0.5, "7", True, None])
def test_seeds_are_whole_numbers_of_64_bits(value: Any) -> None:
    with pytest.raises(ValueError, match="whole number"):
        Draw(seed=value, epoch=0, index=0)


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        (3, (7, 3, 3, 3)),
        ((3, 4, 5), (7, 3, 4, 5)),
        ((2, 3, 4, 5), (2, 3, 4, 5)),
        ((2, 3, -1, 5), (2, 3, 9, 5)),
        ({"z": 3}, (7, 3, 9, 9)),
        ({"time": 1, "x": -1}, (1, 8, 9, 9)),
        (50, (7, 50, 50, 50)),
    ],
)
def test_every_spelling_of_a_patch(patch: Any, expected: tuple[int, ...]) -> None:
    assert space_of((7, 8, 9, 9)).patch_extents(patch) == expected


@pytest.mark.parametrize("patch", [0, -2, 2.5, True, (3, 4), {"w": 3}, "default", (1,) * 5])
def test_what_is_no_patch_is_refused(patch: Any) -> None:
    with pytest.raises(LayoutError):
        space_of((7, 8, 9, 9)).patch_extents(patch)


def test_patches_may_depend_on_the_volume() -> None:
    sampling = RandomPatches(lambda space: {"z": min(space.extents[0], 5)})
    assert placed(sampling, space_of((3, 8, 8))).shape == (3, 8, 8)
    assert placed(sampling, space_of((9, 8, 8))).shape == (5, 8, 8)


@given(extents.filter(lambda sizes: len(sizes) > 1), st.integers(1, 9), st.integers(1, 9))
def test_slabs_cover_a_volume_in_order(sizes: tuple[int, ...], thickness: int, step: int) -> None:
    space = space_of(sizes)
    sampling = Slices2D("y", thickness=thickness, step=min(step, thickness))
    axis, covered, before = space.dims.index("y"), np.zeros(sizes, np.int64), -99
    for number in range(sampling.count(space)):
        place = placed(sampling, space, index=number)
        covered[tuple(slice(a, b) for a, b in place.inside)] += 1
        assert place.start[axis] > before
        before = place.start[axis]
        assert (place.dropped == (axis,)) == (thickness == 1)
        assert len(place.sample_shape) == len(sizes) - (thickness == 1)
    assert covered.all()
    if step >= thickness and (sizes[axis] - thickness) % thickness == 0:
        assert covered.max() == 1


def test_slices_across_what_is_not_there_are_refused() -> None:
    with pytest.raises(LayoutError, match="'time'"):
        Slices2D("time").count(space_of((3, 4)))


def test_whole_volumes() -> None:
    place = placed(WholeVolume(), space_of((3, 4, 5)))
    assert place.box == ((0, 3), (0, 4), (0, 5))
    assert WholeVolume().count(space_of((3, 4, 5))) == 1


def test_a_patch_around_an_element_holds_it() -> None:
    for centre in np.ndindex(9, 7):
        place = place_around(centre, shape=(4, 9), extents=(9, 7))
        assert all(a <= c < b for c, (a, b) in zip(centre, place.box, strict=True))
        assert place.box[0][0] >= 0
        assert place.box[0][1] <= 9


@given(st.integers(0, 60), st.integers(0, 9), st.booleans())
def test_an_order_holds_every_sample_once(n: int, epoch: int, shuffle: bool) -> None:
    order = plan_epoch_order(n, seed=5, epoch=epoch, shuffle=shuffle)
    assert sorted(order) == list(range(n))
    assert list(order) == list(plan_epoch_order(n, seed=5, epoch=epoch, shuffle=shuffle))


@given(st.integers(0, 60), st.integers(1, 9), st.booleans())
def test_ranks_share_an_order_without_duplicates(n: int, world_size: int, even: bool) -> None:
    order = plan_epoch_order(n, seed=5, epoch=1, shuffle=True)
    shares = [
        plan_share(order, rank=rank, world_size=world_size, even=even) for rank in range(world_size)
    ]
    taken = [index for share in shares for index in share]
    assert len(taken) == len({*taken}) == (n // world_size * world_size if even else n)
    assert len({len(share) for share in shares}) <= (1 if even else 2)


@settings(max_examples=50)
@given(st.integers(0, 80), st.integers(1, 30), st.integers(1, 7))
def test_grouping_moves_samples_inside_their_window(n: int, window: int, n_keys: int) -> None:
    order = plan_epoch_order(n, seed=1, epoch=0, shuffle=True)
    grouped = list(grouped_order(order, window=window, key=lambda index: index % n_keys))
    for begin in range(0, n, window):
        before, after = order[begin : begin + window], grouped[begin : begin + window]
        assert sorted(before) == sorted(after)
        runs = [key for key, _ in itertools.groupby(index % n_keys for index in after)]
        assert len(runs) == len({*runs})
