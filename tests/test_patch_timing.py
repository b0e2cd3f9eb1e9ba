"""Timing patches: exact counts beside brute force, and times by a clock that reads wind on."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr import Layout, Metadata, MlaArray, plan_layout, to_mla
from mlarray_xr.errors import LayoutError
from mlarray_xr.explore import patch_boxes, patch_timing
from mlarray_xr.explore.machine_speed import (
    MachineSpeed,
    fitted_speed,
    mean_parts,
    window_parts,
)
from mlarray_xr.explore.patch_boxes import probe_boxes, random_boxes, random_voxels, touched_by
from mlarray_xr.explore.patch_timing import time_patches
from mlarray_xr.format.metadata import Spatial
from mlarray_xr.planning.grid import box_shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlarray_xr.planning.grid import Box

SHAPE = (30, 25, 40)
CACHES = "l1=32KiB,l2=1MiB,l3=2MiB"


@pytest.fixture(autouse=True)
def _caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLARRAY_XR_CACHES", CACHES)


def volume(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Layout]:
    """Draw a shape, a window that fits, and a layout of it."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    window = tuple(draw(st.integers(1, n)) for n in shape)
    chunks = tuple(draw(st.integers(1, n)) for n in shape)
    blocks = tuple(draw(st.integers(1, c)) for c in chunks)
    return shape, window, plan_layout(shape, "u2", chunks=chunks, blocks=blocks, caches=CACHES)


def all_boxes(shape: tuple[int, ...], window: tuple[int, ...]) -> list[Box]:
    starts = itertools.product(*(range(n - p + 1) for n, p in zip(shape, window, strict=True)))
    return [tuple((a, a + p) for a, p in zip(s, window, strict=True)) for s in starts]


def cells_of(box: Box, layout: Layout) -> tuple[int, int]:
    """Count chunks and blocks by looking at every element."""
    chunks, blocks = set(), set()
    for element in itertools.product(*(range(*pair) for pair in box)):
        chunk = tuple(e // c for e, c in zip(element, layout.chunks, strict=True))
        inside = (e % c // b for e, c, b in zip(element, layout.chunks, layout.blocks, strict=True))
        chunks.add(chunk)
        blocks.add((chunk, tuple(inside)))
    return len(chunks), len(blocks)


@given(drawn=layouts())
@settings(max_examples=60)
def test_counts_over_all_offsets_are_those_predicted(
    drawn: tuple[tuple[int, ...], tuple[int, ...], Layout],
) -> None:
    shape, window, layout = drawn
    boxes = all_boxes(shape, window)
    counts = [touched_by(box, chunks=layout.chunks, blocks=layout.blocks) for box in boxes]
    for box, count in zip(boxes, counts, strict=True):
        assert count == cells_of(box, layout)
    cost = layout.cost(window)
    # One rounding per axis and the product.
    for found, expected in zip(zip(*counts, strict=True), (cost.chunks, cost.blocks), strict=True):
        assert float(Fraction(sum(found), len(boxes))) == pytest.approx(expected, rel=1e-14)


def test_boxes_are_anywhere_and_the_same_for_the_same_seed() -> None:
    shape, window = (5, 7, 3), (4, 5, 3)
    boxes = random_boxes(shape, window, count=3000, seed=1)
    found = Counter(boxes)
    assert set(found) == set(all_boxes(shape, window))
    assert all(400 < n < 600 for n in found.values())
    assert boxes == random_boxes(shape, window, count=3000, seed=1)
    assert boxes != random_boxes(shape, window, count=3000, seed=2)
    assert {type(edge) for box in boxes[:9] for pair in box for edge in pair} == {int}


@given(drawn=layouts(), limit=st.integers(1, 600), data=st.data())
@settings(max_examples=100)
def test_probes_are_near_and_bounded(
    drawn: tuple[tuple[int, ...], tuple[int, ...], Layout], limit: int, data: st.DataObject
) -> None:
    shape, _, layout = drawn
    voxel = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patch_boxes, "_PROBE_BYTES", limit)
        probes = probe_boxes(voxel, shape=shape, layout=layout, itemsize=2)
    block_bytes = 2 * math.prod(layout.blocks)
    for box in probes:
        for (start, stop), n in zip(box, shape, strict=True):
            assert 0 <= start < stop <= n
        n_blocks = cells_of(box, layout)[1]
        assert n_blocks <= 8
        assert n_blocks * block_bytes <= max(limit, block_bytes)
    alone, knot, group, corner = probes
    assert alone == tuple((x, x + 1) for x in voxel)
    assert cells_of(knot, layout) == cells_of(group, layout)
    assert cells_of(group, layout)[0] == 1
    n_chunks, n_blocks = cells_of(corner, layout)
    assert n_chunks == n_blocks
    sizes = (max(layout.blocks), max(layout.blocks), max(layout.chunks))
    for x, *pairs in zip(voxel, knot, group, corner, strict=True):
        for (start, stop), size in zip(pairs, sizes, strict=True):
            assert start - size <= x < stop + size


def test_probes_are_where_patches_are() -> None:
    voxels = random_voxels((100, 100), (81, 81), count=4000, seed=1)
    assert voxels == random_voxels((100, 100), (81, 81), count=4000, seed=1)
    rows = Counter(row // 10 for row, _ in voxels)
    assert rows[5] > 2 * rows[0]
    assert set(rows) == set(range(10))


@given(drawn=layouts())
@settings(max_examples=60)
def test_parts_add_up_to_the_model(
    drawn: tuple[tuple[int, ...], tuple[int, ...], Layout],
) -> None:
    shape, window, layout = drawn
    whole = layout.cost(window)
    parts = window_parts(window, layout)
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(whole.milliseconds)
    # Nothing is not linear but spill, which these small blocks are far from.
    assert mean_parts(all_boxes(shape, window), layout) == pytest.approx(parts)


def test_factors_are_found_and_bounded() -> None:
    modelled = [(3.0, 1.0, 0.1), (3.0, 8.0, 0.1), (3.0, 8.0, 6.0), (9.0, 8.0, 0.2)]
    for truth in ((3.0, 1.5, 1.5), (0.5, 0.5, 0.5), (1.0, 2.0, 0.7)):
        speed = MachineSpeed(calls=truth[0], decode=truth[1], copy=truth[2])
        found = fitted_speed(modelled, [speed.milliseconds(parts) for parts in modelled])
        for parts in ((20.0, 50.0, 10.0), (5.0, 1.0, 1.0), (1.0, 9.0, 3.0)):
            assert found.milliseconds(parts) == pytest.approx(speed.milliseconds(parts), rel=0.03)
    alike = fitted_speed([(1.0, 2.0, 3.0)] * 4, [12.0] * 4)
    assert (alike.calls, alike.decode, alike.copy) == pytest.approx((2.0, 2.0, 2.0))
    # Decoding for nothing, which no machine does.
    odd = fitted_speed(modelled, [30.0, 3.0, 3.0, 9.0])
    assert min(odd.calls, odd.decode, odd.copy) > 0


class Watch:
    """A clock that only reads wind on, and a notebook of what was read."""

    def __init__(self, take: Callable[[Watch, Box], float]) -> None:
        self.now = 100.0
        self.take = take
        self.boxes: list[Box] = []
        self.threads: list[int | None] = []
        self.buffers: list[Any] = []

    def __call__(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Watch:
        read = MlaArray.read

        def watched(array: MlaArray, box: Box, *, out: Any, threads: int | None) -> Any:
            values = read(array, box, out=out, threads=threads)
            self.now += self.take(self, box)
            self.boxes.append(box)
            self.threads.append(threads)
            self.buffers.append(out)
            return values

        monkeypatch.setattr(MlaArray, "read", watched)
        return self


WRITTEN: dict[str, dict[str, Any]] = {
    "planned": {"patch": 8},
    "small": {"chunks": (8, 8, 8), "blocks": (4, 4, 4)},
    "uneven": {"chunks": (7, 25, 11), "blocks": (3, 10, 4)},
    "slices": {"chunks": (1, 25, 40), "blocks": (1, 25, 40)},
    "whole": {"chunks": SHAPE, "blocks": (30, 5, 40)},
    "Blosc2": {"patch": None},
}


@pytest.fixture(params=WRITTEN, ids=str)
def array(request: pytest.FixtureRequest, tmp_path: Path) -> MlaArray:
    to_mla(volume(), tmp_path / "a.mla", codec="zstd-1", **WRITTEN[request.param])
    return MlaArray(tmp_path / "a.mla")


def machine(array: MlaArray, *, speed: MachineSpeed) -> Callable[[Box], float]:
    """Return what tells how long a machine takes for a box of a file, seconds."""
    layout = array.layout
    return cache(lambda box: speed.milliseconds(mean_parts([box], layout)) / 1e3)


def test_a_machine_twice_as_slow_gets_twice_the_prediction(
    array: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = (5, 9, 6)
    patch_seconds = 2.5 * array.layout.cost(window).milliseconds / 1e3
    seconds_of = machine(array, speed=MachineSpeed(calls=2.0, decode=2.0, copy=2.0))

    def take(_: Watch, box: Box) -> float:
        is_patch = box_shape(box) == window
        return patch_seconds if is_patch else seconds_of(box)

    watch = Watch(take).install(monkeypatch)
    timing = time_patches(array, window, seconds=0.02, count=30, seed=4, clock=watch)
    assert timing.machine_factor == pytest.approx(2)
    assert timing.predicted == array.layout.cost(window)
    assert timing.scaled_ms == pytest.approx(2 * timing.predicted_ms)
    times = (timing.mean_ms, timing.median_ms, *timing.quartiles_ms)
    assert times == pytest.approx((2.5 * timing.predicted_ms,) * 4)
    assert timing.ratio == pytest.approx(1.25)
    read = [box for box in watch.boxes if box_shape(box) == window][-timing.n_reads :]
    assert read[:30] == random_boxes(SHAPE, window, count=30, seed=4)
    touched = [cells_of(box, array.layout) for box in read[:30]]
    assert timing.chunks == pytest.approx(statistics.fmean(n for n, _ in touched))
    assert timing.blocks == pytest.approx(statistics.fmean(n for _, n in touched))
    per_block = math.prod(array.blocks) / math.prod(window)
    assert timing.amplification == pytest.approx(timing.blocks * per_block)


@pytest.mark.parametrize("window", [(12, 12, 12), (1, 20, 30), (30, 2, 3)])
@pytest.mark.parametrize(
    "speed",
    [
        MachineSpeed(calls=3.0, decode=1.5, copy=1.5),
        MachineSpeed(calls=1.5, decode=3.0, copy=3.0),
        MachineSpeed(calls=0.5, decode=1.0, copy=0.5),
    ],
    ids=lambda speed: f"{speed.calls}-{speed.decode}",
)
def test_a_machine_with_slow_calls_or_slow_bytes_gets_the_right_prediction(
    window: tuple[int, ...], speed: MachineSpeed, array: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Probes do not depend on the patch, yet tell what it takes; one factor of chunks would not."""
    seconds_of = machine(array, speed=speed)
    watch = Watch(lambda _, box: seconds_of(box)).install(monkeypatch)
    timing = time_patches(array, window, seconds=0.01, count=60, clock=watch)
    exact = speed.milliseconds(window_parts(window, array.layout))
    assert timing.scaled_ms == pytest.approx(exact, rel=0.12)
    assert timing.ratio == pytest.approx(1, abs=0.2)


def test_a_machine_that_changes_its_speed_meanwhile_does_not_matter(
    array: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches and probes take turns, so that both meet fast and slow times."""
    seconds_of = machine(array, speed=MachineSpeed(calls=1.0, decode=1.0, copy=1.0))

    def take(watch: Watch, box: Box) -> float:
        is_slow = watch.now % 0.05 < 0.025
        return (1 + is_slow) * seconds_of(box)

    watch = Watch(take).install(monkeypatch)
    timing = time_patches(array, (12, 12, 12), seconds=0.1, count=60, clock=watch)
    # Half of the time, in which a third of the reads are made.
    assert timing.machine_factor == pytest.approx(4 / 3, rel=0.15)
    assert timing.ratio == pytest.approx(1, abs=0.2)


@pytest.fixture
def small(tmp_path: Path) -> MlaArray:
    to_mla(volume(), tmp_path / "small.mla", codec="zstd-1", **WRITTEN["small"])
    return MlaArray(tmp_path / "small.mla")


@pytest.mark.parametrize(("count", "n_different", "n_reads"), [(None, 50, 50), (20, 20, 50)])
def test_patches_are_read_until_the_time_is_spent(
    count: int | None,
    n_different: int,
    n_reads: int,
    small: MlaArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch = Watch(lambda *_: 1 / 1024).install(monkeypatch)
    timing = time_patches(small, 5, seconds=50 / 1024, count=count, clock=watch)
    assert (timing.count, timing.n_reads) == (n_different, n_reads)
    assert timing.mean_ms == 1000 / 1024
    # An eighth of the time each for voxels and patches, before anything is timed.
    warm_up, timed = watch.boxes[:14], watch.boxes[14:]
    assert [box_shape(box) for box in warm_up] == [(1, 1, 1)] * 7 + [(5, 5, 5)] * 7
    patches = [box for box in timed if box_shape(box) == (5, 5, 5)]
    assert len(patches) == n_reads
    assert patches[n_different:] == patches[: n_reads - n_different]
    # Turns of three reads; four kinds of probes together take half the time of the patches.
    assert len(timed) - n_reads == pytest.approx(n_reads / 2, abs=4 * 3)


def test_as_many_patches_as_asked_for_however_long_it_takes(
    small: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(lambda *_: 1.0).install(monkeypatch)
    timing = time_patches(small, 5, seconds=0.5, count=33, clock=watch)
    assert (timing.count, timing.n_reads) == (33, 33)
    timing = time_patches(small, 5, seconds=0.5, clock=watch)
    assert (timing.count, timing.n_reads) == (1, 1)


def test_what_is_kept_of_fast_patches_is_bounded(
    small: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patch_timing, "_MOST_READS", 70)
    watch = Watch(lambda *_: 1e-9).install(monkeypatch)
    timing = time_patches(small, 5, seconds=1, count=40, clock=watch)
    assert (timing.count, timing.n_reads) == (40, 70)


def test_a_patch_takes_what_its_reads_usually_take(
    small: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one round adds, such as a cold disk, does not count; how patches differ does."""
    weights = {box: i for i, box in enumerate(random_boxes(SHAPE, (5, 5, 5), count=9, seed=0))}
    assert len(weights) == 9

    def take(watch: Watch, box: Box) -> float:
        if box not in weights:
            return 1e-3
        is_late = watch.boxes.count(box) % 3 == 2
        return (weights[box] + 1) * 1e-3 + 0.5 * is_late

    watch = Watch(take).install(monkeypatch)
    timing = time_patches(small, 5, seconds=60, count=9, clock=watch)
    assert timing.n_reads >= 27
    times = np.arange(1.0, 10.0)
    assert timing.mean_ms == pytest.approx(times.mean())
    assert timing.median_ms == pytest.approx(5)
    assert timing.quartiles_ms == pytest.approx(np.quantile(times, (0.25, 0.75)).tolist())


def test_everything_goes_to_one_buffer_and_probes_to_one_thread(
    small: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(lambda *_: 1e-3).install(monkeypatch)
    timing = time_patches(small, (5, 5, 5), seconds=0.01, count=4, threads=3, clock=watch)
    assert timing.threads == 3
    (base,) = {id(out.base): out.base for out in watch.buffers}.values()
    assert base.size == 8**3
    for box, threads in zip(watch.boxes, watch.threads, strict=True):
        assert threads == (3 if box_shape(box) == (5, 5, 5) else 1)
    np.testing.assert_array_equal(
        watch.buffers[-1], small[tuple(slice(*pair) for pair in watch.boxes[-1])]
    )


def test_a_real_clock_gives_real_numbers(array: MlaArray) -> None:
    timing = time_patches(array, 5, seconds=0.005, count=3)
    facts = json.loads(json.dumps(timing.to_plain()))
    assert facts["window"] == [5, 5, 5]
    numbers = {name: value for name, value in facts.items() if isinstance(value, float)}
    assert len(numbers) == 15
    assert all(0 < value < math.inf for value in numbers.values())
    assert timing.quartiles_ms[0] <= timing.median_ms <= timing.quartiles_ms[1]


def labelled(path: Path) -> MlaArray:
    spatial = Spatial(axis_labels=("channel", "spatial_y", "spatial_x"))
    metadata = Metadata(spatial=spatial, has_array=True)
    to_mla(volume((3, 40, 50)), path, patch=8, codec="zstd-1", metadata=metadata)
    return MlaArray(path)


@pytest.mark.parametrize(
    ("patch", "window"),
    [
        (10, (1, 10, 10)),
        ((10, 20), (1, 10, 20)),
        ((3, 10, 20), (3, 10, 20)),
        ({"y": 10, "x": 20, "channel": 2}, (2, 10, 20)),
        ("default", (1, 40, 50)),
        (None, (1, 8, 8)),
    ],
)
def test_a_patch_is_spelled_as_everywhere(
    patch: Any, window: tuple[int, ...], tmp_path: Path
) -> None:
    timing = time_patches(labelled(tmp_path / "a.mla"), patch, seconds=0.001, count=1)
    assert timing.window == timing.predicted.window == window


def test_without_a_patch_anywhere_it_is_the_default(small: MlaArray) -> None:
    assert small.layout.patch is None
    assert time_patches(small, seconds=0.001, count=1).window == SHAPE


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": (5, 26, 5)}, r"small.mla: patch \(5, 26, 5\) does not fit .* 26 along axis 1"),
        ({"patch": 31}, "31 along axis 0 of 30.*at most 30"),
        ({"patch": (5, 5)}, "2 entries for 3 spatial axes"),
        ({"patch": 0}, "an integer >= 1"),
        ({"patch": "large"}, "no patch"),
        ({"count": 0}, "count=0 patches"),
        ({"count": 100_001}, "1 to 100000"),
        ({"seconds": 0}, "seconds=0 is no time"),
        ({"seconds": math.inf}, "seconds=inf"),
        ({"seconds": math.nan}, "seconds=nan"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    options: dict[str, Any], message: str, small: MlaArray
) -> None:
    patch = options.pop("patch", 5)
    with pytest.raises(LayoutError, match=message):
        time_patches(small, patch, **options)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 4)])
def test_arrays_without_patches_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    to_mla(np.zeros(shape, "int16"), tmp_path / "a.mla")
    with pytest.raises(LayoutError, match=r"a\.mla: an array of shape .* has no patches"):
        time_patches(MlaArray(tmp_path / "a.mla"), 1)


def test_a_file_in_memory_is_timed_and_named(small: MlaArray) -> None:
    assert small.path is not None
    with open(small.path, "rb") as file:
        held = MlaArray(file.read())
    assert time_patches(held, 5, seconds=0.001, count=2).count == 2
    with pytest.raises(LayoutError, match="the array in memory: patch"):
        time_patches(held, 50)
