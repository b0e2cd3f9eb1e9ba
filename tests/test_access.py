"""Access patterns: every spelling of windows, the presets, and every refusal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.access import PRESETS, Window, preset_windows, windows_of
from mlarray_xr.planning.layout_plan import plan_layout

CACHES = "l1=32KiB,l2=1MiB,l3=2MiB"
TYX = ("time", "y", "x")


@pytest.mark.parametrize(
    ("window", "extents"),
    [
        ((1, 64, 64), (1, 64, 64)),
        ([1, 64, 64], (1, 64, 64)),
        ((-1, 1, np.int64(1)), (100, 1, 1)),
        ((-1, -1, -1), (100, 512, 512)),
        ({"time": 1}, (1, 512, 512)),
        ({"time": -1, "y": 1, "x": 1}, (100, 1, 1)),
        ({}, (100, 512, 512)),
        ((1000, 1000, 1000), (100, 512, 512)),
    ],
)
def test_every_spelling_of_a_window(window: Any, extents: tuple[int, ...]) -> None:
    (found,) = windows_of([(window, 2)], shape=(100, 512, 512), dims=TYX)
    assert found == Window(shape=extents, weight=2.0)
    assert all(type(n) is int for n in found.shape)


def test_windows_keep_their_order_and_weights() -> None:
    access: Any = [((8, 8), 10), ((1, -1), 0.5), ((-1, 1), np.float32(3))]
    windows = windows_of(access, shape=(64, 32), dims=None)
    assert [window.shape for window in windows] == [(8, 8), (1, 32), (64, 1)]
    assert [window.weight for window in windows] == [10.0, 0.5, 3.0]


def test_empty_axes_have_windows_of_one() -> None:
    assert windows_of([((-1, 5), 1)], shape=(0, 9), dims=None) == (Window(shape=(1, 5)),)


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ([], r"access=\[\] holds no window; give pairs of a shape and a weight"),
        ("frames", r"access holds 'f'; give pairs of a shape and a weight"),
        ([(8, 8)], r"access window 8 does not describe the 2 axes of \(64, 32\)"),
        ([((8, 8, 8), 1)], r"access window \(8, 8, 8\) does not describe the 2 axes"),
        ([("88", 1)], r"access (window|holds) '88?'"),
        ([((8, 8),)], r"access holds \(\(8, 8\),\); give pairs of a shape and a weight"),
        ([((8, 8), 1, 2)], r"access holds \(\(8, 8\), 1, 2\); give pairs"),
        ([((8, 8), "often")], r"access holds \(\(8, 8\), 'often'\); give pairs"),
        ([((8, 8), None)], r"access holds \(\(8, 8\), None\); give pairs"),
        ([3], r"access holds 3; give pairs"),
        ([((8, 8), 0)], r"access window \(8, 8\) has weight 0.0; a weight is a positive number"),
        ([((8, 8), -1)], r"has weight -1.0"),
        ([((8, 8), math.nan)], r"has weight nan"),
        ([((8, 8), math.inf)], r"has weight inf"),
        ([((8, 8), 10**400)], r"access .*weight"),
        ([((8, 0), 1)], r"access holds 0; every size must be an integer >= 1"),
        ([((8, -2), 1)], r"access holds -2; every size"),
        ([((8, 2.0), 1)], r"access holds 2.0; every size"),
        ([((8, True), 1)], r"access holds True; every size"),
        ([({"y": 8}, 1)], r"access=\{'y': 8\} goes by dimension name; give dims= as well"),
    ],
)
def test_impossible_patterns_are_refused(access: Any, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        windows_of(access, shape=(64, 32), dims=None)


def test_windows_of_unknown_dimensions_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"access names \['z'\]; the dimensions are \('time'"):
        windows_of([({"z": 8}, 1)], shape=(9, 9, 9), dims=TYX)


def test_a_window_of_no_weight_is_no_window() -> None:
    with pytest.raises(LayoutError, match=r"has weight 0; a weight is a positive number"):
        Window(shape=(1,), weight=0)


def test_frames_read_space_and_series_read_time() -> None:
    shape, spatial = (100, 3, 64, 32), (2, 3)
    (frame,) = preset_windows("frames", shape=shape, spatial=spatial)
    (series,) = preset_windows("series", shape=shape, spatial=spatial)
    assert frame == Window(shape=(1, 1, 64, 32))
    assert series == Window(shape=(100, 3, 1, 1))


@given(
    shape=st.lists(st.integers(0, 10**6), min_size=2, max_size=6).map(tuple),
    n_spatial=st.integers(1, 5),
)
def test_balanced_wants_as_many_bytes_of_frames_as_of_series(
    shape: tuple[int, ...], n_spatial: int
) -> None:
    spatial = tuple(range(len(shape)))[-min(n_spatial, len(shape) - 1) :]
    frame, series = preset_windows("balanced", shape=shape, spatial=spatial)
    assert frame.shape == preset_windows("frames", shape=shape, spatial=spatial)[0].shape
    assert series.shape == preset_windows("series", shape=shape, spatial=spatial)[0].shape
    assert frame.weight * math.prod(frame.shape) == pytest.approx(1)
    assert series.weight * math.prod(series.shape) == pytest.approx(1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("spatial", [(), (0, 1, 2)])
def test_presets_need_two_kinds_of_axes(preset: str, spatial: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match=rf"layout='{preset}' is for series, and of \(9, 8, 7\)"):
        preset_windows(preset, shape=(9, 8, 7), spatial=spatial)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"layout='time' is no preset; there are frames, series"):
        preset_windows("time", shape=(9, 8), spatial=(1,))


def plan(**options: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    layout = plan_layout((128, 256, 256), "i2", dims=TYX, caches=CACHES, **options)
    return layout.chunks, layout.blocks


def test_presets_are_the_windows_they_name() -> None:
    assert plan(layout="frames") == plan(access=[({"time": 1}, 1)])
    assert plan(layout="series") == plan(access=[({"y": 1, "x": 1}, 3)])
    balanced = [({"time": 1}, 1 / 256**2), ((-1, 1, 1), 1 / 128)]
    assert plan(layout="balanced") == plan(access=balanced)


def amplifications(**options: Any) -> tuple[float, float]:
    """Return how many bytes are decoded for every byte wanted of a frame, and of a series."""
    layout = plan_layout((128, 256, 256), "i2", dims=TYX, caches=CACHES, **options)
    frame, series = layout.cost((1, 256, 256)), layout.cost((128, 1, 1))
    return frame.amplification, series.amplification


def test_presets_serve_what_they_are_named_for() -> None:
    frames, series, balanced = (amplifications(layout=preset) for preset in PRESETS)
    assert frames[0] == 1
    assert series[1] < balanced[1] < frames[1]
    assert frames[0] < balanced[0] < series[0]


def test_a_window_with_all_the_weight_decides() -> None:
    alone = plan(access=[((1, 256, 256), 1)])
    assert plan(access=[((1, 256, 256), 1e9), ((128, 1, 1), 1)]) == alone
    assert plan(access=[((1, 256, 256), 1), ((128, 1, 1), 1e-9)]) == alone
    assert plan(access=[((1, 256, 256), 1), ((128, 1, 1), 1e9)]) != alone


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**-20, 1024, 2.0**300])
def test_only_ratios_of_weights_matter(scale: float) -> None:
    access = [((1, 256, 256), 3), ((128, 1, 1), 5), ((16, 16, 16), 40)]
    scaled = [(window, weight * scale) for window, weight in access]
    assert plan(access=scaled) == plan(access=access)


def test_weights_at_the_ends_of_floating_point_are_weights() -> None:
    alone = plan(access=[((1, 256, 256), 1)])
    for weight in (5e-324, 1.7e308):
        assert plan(access=[((1, 256, 256), weight)]) == alone
        assert plan(access=[((1, 256, 256), weight)] * 3) == alone


def test_the_same_window_twice_is_that_window() -> None:
    once = plan(access=[((16, 16, 16), 7)])
    assert plan(access=[((16, 16, 16), 3), ((16, 16, 16), 4)]) == once


def test_several_windows_record_no_patch() -> None:
    layout = plan_layout((128, 256, 256), "i2", access=[((16, 16, 16), 1)], caches=CACHES)
    assert layout.patch is None
    assert layout.basis is not None
    assert layout.basis.windows == (Window(shape=(16, 16, 16)),)
    assert layout.cost().window == (16, 16, 16)
