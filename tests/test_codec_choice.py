"""The rule that chooses a codec, the model of costs it uses, and where samples are taken."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.codec_choice import (
    CodecTrial,
    Preference,
    choose_codec_from,
    choose_codec_unseen,
    plan_candidates,
    plan_samples,
    shortlist,
)
from mlarray_xr.planning.codec_cost import WITH_COSTS, decode_cost, encode_cost
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout

if TYPE_CHECKING:
    import random

PREFERENCES: tuple[Preference, ...] = get_args(Preference)
ITEMSIZES = (1, 2, 3, 4, 8, 16, 40)
NBYTES = 1 << 20


def trial(codec: str, stored_bytes: int, *, itemsize: int = 2, nbytes: int = NBYTES) -> CodecTrial:
    return CodecTrial(
        codec=Codec.parse(codec), itemsize=itemsize, nbytes=nbytes, stored_bytes=stored_bytes
    )


@st.composite
def trial_sets(draw: st.DrawFn) -> list[CodecTrial]:
    """Trials of all candidates with sizes that have nothing to do with each other."""
    itemsize = draw(st.sampled_from(ITEMSIZES))
    codecs = plan_candidates(itemsize, prefer="size")
    sizes = st.one_of(st.integers(1, NBYTES * 9 // 8), st.integers(NBYTES // 2, NBYTES * 5 // 8))
    return [
        CodecTrial(codec=codec, itemsize=itemsize, nbytes=NBYTES, stored_bytes=draw(sizes))
        for codec in codecs
    ]


preferences = st.sampled_from(PREFERENCES)


@given(trial_sets(), preferences, st.randoms())
def test_the_order_of_trials_does_not_matter(
    trials: list[CodecTrial], prefer: Preference, randomness: random.Random
) -> None:
    choice = choose_codec_from(trials, prefer=prefer)
    before = list(trials)
    randomness.shuffle(trials)
    assert choose_codec_from(trials, prefer=prefer) == choice
    assert sorted(map(str, trials)) == sorted(map(str, before))


@given(trial_sets(), preferences, st.integers(2, 1000))
def test_more_of_the_same_data_gives_the_same_choice(
    trials: list[CodecTrial], prefer: Preference, times: int
) -> None:
    larger = [
        replace(t, nbytes=t.nbytes * times, stored_bytes=t.stored_bytes * times) for t in trials
    ]
    small, large = (choose_codec_from(ts, prefer=prefer) for ts in (trials, larger))
    assert small.codec == large.codec
    assert small.reason == large.reason


def costs(t: CodecTrial) -> tuple[float, float, float]:
    return t.stored_bytes, t.decode_cost, t.encode_cost


@given(trial_sets(), preferences)
def test_what_is_beaten_in_everything_never_wins(
    trials: list[CodecTrial], prefer: Preference
) -> None:
    chosen = choose_codec_from(trials, prefer=prefer).trials[0]
    if chosen.codec == DEFAULT_CODEC and prefer != "size":
        return  # nothing else keeps the bounds
    for other in trials:
        pairs = list(zip(costs(other), costs(chosen), strict=True))
        beats = all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
        assert not beats, other


@given(trial_sets())
def test_speed_never_reads_slower_than_balanced_by_the_model(trials: list[CodecTrial]) -> None:
    fast, balanced = (
        choose_codec_from(trials, prefer=prefer).trials[0] for prefer in ("speed", "balanced")
    )
    assert fast.decode_cost <= balanced.decode_cost


@given(trial_sets())
def test_size_takes_the_smallest_but_for_a_few_per_cent(trials: list[CodecTrial]) -> None:
    chosen = choose_codec_from(trials, prefer="size").trials[0]
    smallest = min(trials, key=lambda t: t.stored_bytes)
    assert chosen.stored_bytes <= 1.03 * smallest.stored_bytes
    if chosen.encode_cost >= smallest.encode_cost:
        assert chosen.stored_bytes == smallest.stored_bytes


@given(trial_sets(), st.sampled_from(["speed", "balanced"]))
def test_fast_choices_keep_their_bounds_against_the_reference(
    trials: list[CodecTrial], prefer: Preference
) -> None:
    chosen = choose_codec_from(trials, prefer=prefer).trials[0]
    reference = next(t for t in trials if t.codec == DEFAULT_CODEC)
    if chosen is reference:
        return
    reading = chosen.decode_cost / reference.decode_cost
    assert reading <= (1.05 if prefer == "speed" else 1.6)
    assert chosen.encode_cost <= 0.6 * reference.encode_cost
    assert chosen.stored_bytes <= 1.1 * reference.stored_bytes or reading <= 0.5


@given(trial_sets(), preferences)
def test_candidates_given_up_early_do_not_compete(
    trials: list[CodecTrial], prefer: Preference
) -> None:
    chosen = choose_codec_from(trials, prefer=prefer)
    goes_on = shortlist(trials, prefer=prefer)
    assert chosen.codec in goes_on
    assert goes_on[0] == DEFAULT_CODEC
    assert len(set(goes_on)) == len(goes_on) <= 7
    # The others could not be better had they been tried on less, whatever came of it.
    partly = [
        t if t.codec in goes_on else replace(t, nbytes=t.nbytes // 2, stored_bytes=1)
        for t in trials
    ]
    again = choose_codec_from(partly, prefer=prefer)
    assert again.codec == chosen.codec
    assert [t.codec for t in again.trials[: len(goes_on)]] == [
        t.codec for t in chosen.trials if t.codec in goes_on
    ]


def test_merged_trials_add_up() -> None:
    both = trial("zstd-1", 300, nbytes=1000).merged(trial("zstd-1", 100, nbytes=500))
    assert both == trial("zstd-1", 400, nbytes=1500)
    assert both.ratio == 3.75


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # Stored bytes of a thousand, as measured: int16 scan, z-scored scan, labels.
        (
            {"lz4hc-8": 490, "lz4-9": 510, "lz4-9-bitshuffle": 364, "zstd-1": 309},
            "lz4-9-bitshuffle",
        ),
        ({"lz4hc-8": 699, "lz4hc-1-none": 418, "lz4-9": 715, "zstd-1-none": 330}, "lz4hc-1-none"),
    ],
)
def test_balanced_weighs_size_against_reading(sizes: dict[str, int], expected: str) -> None:
    trials = [trial(name, n, nbytes=1000, itemsize=4) for name, n in sizes.items()]
    assert str(choose_codec_from(trials, prefer="balanced").codec) == expected
    assert str(choose_codec_from(trials, prefer="speed").codec) == "lz4-9"
    assert str(choose_codec_from(trials, prefer="size").codec).startswith("zstd-1")


def test_a_per_cent_of_size_is_no_reason_to_write_several_times_slower() -> None:
    trials = [trial("lz4hc-8", 50_000), trial("lz4-9", 50_500), trial("lz4hc-5", 50_000)]
    for prefer in PREFERENCES:
        assert str(choose_codec_from(trials, prefer=prefer).codec) == "lz4-9"


def test_the_reference_is_kept_when_everything_else_is_too_large() -> None:
    trials = [trial("lz4hc-8", 1000), trial("lz4-9", 1300), trial("zstd-1", 1300)]
    choice = choose_codec_from(trials, prefer="balanced")
    assert choice.codec == DEFAULT_CODEC
    assert "nothing tried is better" in choice.reason


def test_rules_refuse_trials_without_reference_and_unknown_wishes() -> None:
    with pytest.raises(LayoutError, match="'lz4hc-8' was not tried on all samples"):
        choose_codec_from([trial("zstd-1", 10)], prefer="balanced")
    with pytest.raises(LayoutError, match="'lz4hc-8' was not tried on all samples"):
        choose_codec_from([], prefer="balanced")
    few = trial("lz4hc-8", 10, nbytes=100)
    with pytest.raises(LayoutError, match="'lz4hc-8' was not tried on all samples"):
        choose_codec_from([few, trial("zstd-1", 10)], prefer="balanced")
    unknown: Preference = "fast"  # type: ignore[assignment]
    with pytest.raises(LayoutError, match="prefer='fast' is not one of speed, balanced, size"):
        choose_codec_from([trial("lz4hc-8", 10)], prefer=unknown)
    with pytest.raises(LayoutError, match="prefer='fast'"):
        plan_candidates(2, prefer=unknown)
    with pytest.raises(LayoutError, match="prefer='fast'"):
        choose_codec_unseen(2, prefer=unknown, reason="")


@pytest.mark.parametrize("text", ["zlib-5", "lz4-5", "lz4hc-8-none", "zstd-1-shuffle-trunc12"])
def test_codecs_of_unknown_cost_are_not_tried(text: str) -> None:
    with pytest.raises(
        LayoutError, match=f"costs of codec '{text}' are not known; known are lz4-9"
    ):
        trial(text, 10)


@pytest.mark.parametrize("numbers", [(0, 1, 1), (2, 0, 1), (2, 1, 0)])
def test_trials_of_nothing_are_refused(numbers: tuple[int, int, int]) -> None:
    itemsize, nbytes, stored = numbers
    with pytest.raises(LayoutError, match="all numbers must be positive"):
        trial("zstd-1", stored, itemsize=itemsize, nbytes=nbytes)


@pytest.mark.parametrize("itemsize", ITEMSIZES)
@pytest.mark.parametrize("prefer", PREFERENCES)
def test_candidates_make_sense_for_the_item_size(itemsize: int, prefer: Preference) -> None:
    reference, *others = plan_candidates(itemsize, prefer=prefer)
    assert reference == DEFAULT_CODEC
    assert len({reference, *others}) == len(others) + 1 >= 9
    assert {reference, *others} <= set(WITH_COSTS)
    assert itemsize > 1 or not any(codec.filter == "shuffle" for codec in others)
    if prefer != "size":
        assert all(encode_cost(codec) <= 0.6 * encode_cost(reference) for codec in others)


@pytest.mark.parametrize("codec", WITH_COSTS, ids=str)
@pytest.mark.parametrize("itemsize", ITEMSIZES)
def test_costs_of_reading_are_what_the_model_says(codec: Codec, itemsize: int) -> None:
    ratios = [2.0**k for k in range(-2, 12)]
    found = [decode_cost(codec, itemsize=itemsize, ratio=ratio) for ratio in ratios]
    assert all(0.1 < cost < 10 for cost in found)
    assert found[0] == found[1] == found[2]  # what does not compress is stored
    assert found[3] == max(found)  # data that is halved is the most work
    assert found[3:] == sorted(found[3:], reverse=True)
    assert encode_cost(codec) > 1


def test_a_byte_shuffle_of_single_bytes_is_known_to_be_slow() -> None:
    shuffled, plain = (
        decode_cost(Codec.parse(text), itemsize=1, ratio=20.0) for text in ("lz4hc-8", "lz4-9-none")
    )
    assert shuffled > 2 * plain


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_a_choice_is_a_small_value_that_explains_itself(prefer: Preference) -> None:
    codecs = plan_candidates(4, prefer=prefer)
    trials = [
        CodecTrial(codec=codec, itemsize=4, nbytes=3 << 19, stored_bytes=(1 << 20) + 7 * i)
        for i, codec in enumerate(codecs)
    ]
    choice = choose_codec_from(trials, prefer=prefer)
    assert pickle.loads(pickle.dumps(choice)) == choice
    assert len({choice, choose_codec_from(trials[::-1], prefer=prefer)}) == 1
    text = json.dumps(choice.to_json())
    assert len(text) < 2048
    stored = json.loads(text)
    assert stored["codec"] == str(choice.codec)
    assert stored["prefer"] == prefer
    assert {name: size for name, _, size in stored["trials"]} == {
        str(t.codec): t.stored_bytes for t in trials
    }
    head, columns, *rows = choice.explain().splitlines()
    assert head == str(choice)
    assert columns.split()[0] == "codec"
    assert [row.split()[0] == "*" for row in rows] == [True] + [False] * (len(codecs) - 1)
    assert {row.lstrip("* ").split()[0] for row in rows} == set(map(str, codecs))
    assert max(map(len, choice.explain().splitlines())) < 100


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_without_samples_the_choice_is_plain(prefer: Preference) -> None:
    for itemsize, filter_ in ((1, "none"), (2, "shuffle"), (8, "shuffle")):
        choice = choose_codec_unseen(itemsize, prefer=prefer, reason="why not")
        assert choice.codec in plan_candidates(itemsize, prefer=prefer)
        assert choice.codec.filter == filter_
        assert choice.explain() == str(choice) == f"{choice.codec} ({prefer}): why not"


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], Layout, int]:
    shape = tuple(draw(st.lists(st.integers(1, 300), min_size=0, max_size=4)))
    itemsize = draw(st.sampled_from(ITEMSIZES))
    chunks = tuple(draw(st.integers(1, 2 * n)) for n in shape)
    blocks = tuple(draw(st.integers(1, c)) for c in chunks)
    return shape, Layout(chunks=chunks, blocks=blocks), itemsize


@given(layouts(), st.integers(1, 20), st.integers(0, 10**6))
def test_samples_are_blocks_of_different_chunks(
    drawn: tuple[tuple[int, ...], Layout, int], n: int, seed: int
) -> None:
    shape, layout, itemsize = drawn
    boxes = plan_samples(shape, layout, itemsize=itemsize, n=n, seed=seed)
    assert boxes == plan_samples(shape, layout, itemsize=itemsize, n=n, seed=seed)
    assert 1 <= len(boxes) <= n
    seen = set()
    for box in boxes:
        extents = [stop - start for start, stop in box]
        assert math.prod(extents) * itemsize <= max(1 << 18, (3 << 19) // max(3, len(boxes)))
        for (start, stop), extent, c, b in zip(
            box, shape, layout.chunks, layout.blocks, strict=True
        ):
            assert 0 <= start < stop <= extent
            assert start // c == (stop - 1) // c
            assert start % c % b == 0
            is_whole = (stop - start) % b == 0 or stop in (extent, (start // c + 1) * c)
            assert is_whole or stop - start < b
        seen.add(tuple(start // c for (start, _), c in zip(box, layout.chunks, strict=True)))
    assert len(seen) == len(boxes)
    sizes = [math.prod(stop - start for start, stop in box) * itemsize for box in boxes]
    assert sum(sizes[:6]) <= 3 << 19
    middle = tuple(e // 2 // c for e, c in zip(shape, layout.chunks, strict=True))
    assert (
        tuple(start // c for (start, _), c in zip(boxes[0], layout.chunks, strict=True)) == middle
    )


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 2)), max_size=3))
def test_few_chunks_are_all_sampled(axes: list[tuple[int, int]]) -> None:
    chunks = tuple(chunk for chunk, _ in axes)
    shape = tuple(chunk * n for chunk, n in axes)
    layout = Layout(chunks=chunks, blocks=chunks)
    n_chunks = math.prod(n for _, n in axes)
    assert len(plan_samples(shape, layout, itemsize=1)) == n_chunks


@pytest.mark.parametrize("shape", [(0,), (5, 0, 3), (0, 0)])
def test_an_empty_array_has_no_samples(shape: tuple[int, ...]) -> None:
    assert plan_samples(shape, plan_layout(shape, "u1"), itemsize=1) == ()


def test_samples_are_spread_and_seeds_move_all_but_the_first() -> None:
    shape, layout = (4096, 2048, 2048), Layout(chunks=(64, 64, 64), blocks=(16, 16, 16))
    for n, n_zones in ((6, 2), (16, 4)):
        boxes = plan_samples(shape, layout, itemsize=2, n=n)
        for axis, extent in enumerate(shape):
            zones = {n_zones * box[axis][0] // extent for box in boxes}
            assert zones == set(range(n_zones))
            assert all(0.05 < box[axis][0] / extent < 0.95 for box in boxes)
    first, *others = plan_samples(shape, layout, itemsize=2)
    for seed in (1, 2, 77):
        also_first, *also_others = plan_samples(shape, layout, itemsize=2, seed=seed)
        assert also_first == first
        assert len(set(others) & set(also_others)) <= 1


def test_samples_of_a_huge_array_and_of_huge_blocks_stay_small() -> None:
    shape = (10**6, 10**6, 10**6)
    layout = Layout(chunks=(1024, 1024, 512), blocks=(1024, 1024, 512))
    boxes = plan_samples(shape, layout, itemsize=1)
    assert len(boxes) == 16
    assert all(math.prod(b - a for a, b in box) == 1 << 18 for box in boxes)
    for n in (1, 2, 3):
        few = plan_samples(shape, layout, itemsize=1, n=n)
        assert [math.prod(b - a for a, b in box) for box in few] == [1 << 19] * n
