"""What a writer asks of the layout before the array is known: one way only, fitted to any array."""

from __future__ import annotations

import math
from typing import Any

import blosc2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.planning.layout_request import LayoutRequest

CACHES = CacheSizes(l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=2 << 20)
DIMS = ("time", "y", "x")


def decided(
    request: LayoutRequest,
    shape: tuple[int, ...] = (20, 300, 300),
    *,
    dtype: str = "<i2",
    dims: tuple[str, ...] = DIMS,
    spatial: tuple[int, ...] = (1, 2),
    codec: Codec | None = None,
) -> Layout:
    return request.plan(shape, dtype_str=dtype, dims=dims, spatial=spatial, codec=codec)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patch": 64},
        {"patch": (3, 64, 64)},
        {"patch": {"x": 9}},
        {"patch": None},
        {"chunks": 50},
        {"chunks": {"x": 50}, "blocks": 7},
        {"layout": "frames"},
        {"layout": "series"},
        {"layout": "balanced"},
    ],
)
def test_a_request_is_what_plan_layout_is_asked(options: dict[str, Any]) -> None:
    codec = Codec.parse("zstd-1")
    found = decided(LayoutRequest(**options, caches=CACHES), codec=codec)
    expected = plan_layout(
        (20, 300, 300), "i2", dims=DIMS, spatial=(1, 2), caches=CACHES, codec=codec, **options
    )
    assert found == expected
    assert found.basis == expected.basis


def test_spatial_axes_are_those_that_are_told() -> None:
    request = LayoutRequest(patch=64)
    layout = decided(request, (90, 9, 90), dims=("a", "b", "c"), spatial=(0, 2))
    assert layout.cost().window == (64, 1, 64)
    assert layout.patch == (64, 64)


@pytest.mark.parametrize(
    "options",
    [{"patch": 64}, {"patch": None}, {"chunks": 8}, {"blocks": 8}, {"chunks": 8, "blocks": 8}],
)
def test_a_layout_is_given_alone(options: dict[str, Any]) -> None:
    layout = Layout(chunks=(9, 9), blocks=(9, 9))
    with pytest.raises(LayoutError, match=r"layout=Layout\(chunks=\(9, 9\).*patch.* exclude each"):
        LayoutRequest(layout=layout, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "frames", "patch": 64}, r"patch=64 and layout='frames' exclude each other"),
        ({"layout": "frames", "chunks": 64}, r"layout='frames' and chunks=64 exclude each other"),
        ({"patch": None, "chunks": 64}, r"patch=None and chunks=64 exclude each other"),
        ({"blocks": 64}, r"blocks=64 were given without chunks"),
        ({"layout": "fast"}, r"layout='fast' is no preset"),
    ],
)
def test_requests_that_contradict_themselves_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LayoutError, match=message):
        decided(LayoutRequest(**options))


@pytest.mark.parametrize(
    ("options", "goes_by_caches"),
    [
        ({}, True),
        ({"patch": 64}, True),
        ({"layout": "frames"}, True),
        ({"chunks": 300}, True),
        ({"chunks": 300, "blocks": 8}, False),
        ({"patch": None}, False),
    ],
)
def test_caches_are_looked_at_where_they_have_a_say(
    options: dict[str, Any], goes_by_caches: bool
) -> None:
    assert LayoutRequest(**options).goes_by_caches is goes_by_caches
    small = CacheSizes(l1_bytes=1 << 10, l2_bytes=4 << 10, l3_bytes=8 << 10)
    large = CacheSizes(l1_bytes=1 << 17, l2_bytes=2 << 20, l3_bytes=8 << 20)
    plans = {
        decided(LayoutRequest(**options, caches=caches), (20, 3000, 3000))
        for caches in (small, large)
    }
    assert len(plans) == 1 + goes_by_caches


def test_a_given_layout_goes_by_no_caches() -> None:
    layout = Layout(chunks=(9, 9, 9), blocks=(9, 9, 3))
    assert not LayoutRequest(layout=layout).goes_by_caches
    with pytest.raises(LayoutError, match="or caches exclude each other"):
        LayoutRequest(layout=layout, caches=CACHES)


# ---------------------------------------------------------------------------------------------
# Layouts of other arrays

sides = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)


@given(shape=sides, data=st.data())
@settings(max_examples=75)
def test_a_layout_is_clipped_to_any_array(shape: tuple[int, ...], data: st.DataObject) -> None:
    chunks = tuple(data.draw(st.integers(1, 60)) for _ in shape)
    blocks = tuple(data.draw(st.integers(1, c)) for c in chunks)
    layout = Layout(chunks=chunks, blocks=blocks)
    dims = tuple(f"spatial_{i}" for i in range(len(shape)))
    axes = tuple(range(len(shape)))
    found = decided(LayoutRequest(layout=layout), shape, dims=dims, spatial=axes)
    for n, old, new in zip(shape, chunks, found.chunks, strict=True):
        assert new == min(old, n)
    for chunk, old, new in zip(found.chunks, blocks, found.blocks, strict=True):
        assert new == min(old, chunk)
    blosc2.uninit(shape, dtype="i2", chunks=found.chunks, blocks=found.blocks)


@pytest.mark.parametrize("shape", [(0, 9), (9, 0), (0, 0)])
def test_empty_arrays_get_empty_layouts(shape: tuple[int, ...]) -> None:
    layout = plan_layout((60, 70), "i2", patch=5)
    found = decided(LayoutRequest(layout=layout), shape, dims=("y", "x"), spatial=(0, 1))
    assert (found.chunks, found.blocks) == (shape, shape)


def test_layouts_of_empty_arrays_fit_others() -> None:
    layout = plan_layout((0, 70), "i2", patch=5)
    found = decided(LayoutRequest(layout=layout), (6, 7), dims=("y", "x"), spatial=(0, 1))
    assert (found.chunks, found.blocks) == ((1, 7), (1, 7))


def test_layouts_of_scalars_fit_scalars() -> None:
    found = decided(LayoutRequest(layout=plan_layout((), "i2")), (), dims=(), spatial=())
    assert (found.chunks, found.blocks) == ((), ())


def test_layouts_of_other_axes_are_refused() -> None:
    layout = plan_layout((60, 70), "i2", patch=5)
    with pytest.raises(LayoutError, match=r"has 2 axes, and the array of \(20, 300, 300\) has 3"):
        decided(LayoutRequest(layout=layout))


def test_what_a_layout_was_planned_for_goes_with_it() -> None:
    layout = plan_layout((20, 300, 300), "i2", patch=64, dims=DIMS, caches=CACHES)
    found = decided(LayoutRequest(layout=layout), (20, 300, 300))
    assert found == layout
    assert found.basis is not None
    assert layout.basis is not None
    assert found.basis.windows == layout.basis.windows
    assert found.basis.caches == CACHES
    assert found.basis.rule == "searched"
    smaller = decided(LayoutRequest(layout=layout), (3, 40, 300))
    assert smaller.patch == (64, 64)
    assert smaller.cost().window == (1, 40, 64)
    assert math.prod(smaller.chunks) <= 3 * 40 * 300


def test_a_layout_for_other_elements_counts_their_bytes() -> None:
    layout = plan_layout((20, 300, 300), "f8", patch=64, dims=DIMS, caches=CACHES)
    found = decided(LayoutRequest(layout=layout), (20, 300, 300), dtype="|u1")
    assert found.cost().wanted_bytes == 64 * 64


PLANE: dict[str, Any] = {"shape": (1 << 16, 1 << 16), "dims": ("y", "x"), "spatial": (0, 1)}


def test_a_layout_for_larger_elements_is_held_to_the_limits_of_a_frame() -> None:
    request = LayoutRequest(layout=Layout(chunks=(1 << 15, 1 << 15), blocks=(1 << 12, 1 << 12)))
    assert decided(request, **PLANE, dtype="|u1").chunks == (1 << 15, 1 << 15)
    with pytest.raises(LayoutError, match=r"Blosc2 holds 2147483615"):
        decided(request, **PLANE, dtype="<f8")


def test_a_layout_that_makes_too_many_chunks_is_refused() -> None:
    request = LayoutRequest(layout=Layout(chunks=(1, 1), blocks=(1, 1)))
    with pytest.raises(LayoutError, match=r"makes 4294967296 chunks; a frame's index holds"):
        decided(request, **PLANE)


def test_the_patch_is_left_out_where_it_does_not_fit_the_spatial_axes() -> None:
    layout = plan_layout((20, 300, 300), "i2", patch=(3, 64, 64), caches=CACHES)
    assert layout.patch == (3, 64, 64)
    assert decided(LayoutRequest(layout=layout)).patch is None
    assert decided(LayoutRequest(layout=layout), spatial=(0, 1, 2)).patch == (3, 64, 64)
