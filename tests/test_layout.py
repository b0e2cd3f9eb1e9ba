"""Layouts: parity with the reference rule, the limits of Blosc2, and every refusal."""

from __future__ import annotations

import math
import pickle
from typing import Any

import blosc2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mlarray.blosc2_layout_strategies import comp_blosc2_params_spatial_only_magnitude

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.layout import Layout, plan_layout

L1_SHARE = 26_214
L3_SHARE = 1_153_433
MAX_CHUNKS = 268_435_455

CTZYX = ("channel", "time", "z", "y", "x")

REFERENCE_TABLE: list[tuple[tuple[int, ...], str, Any, Any, Any, Any]] = [
    ((512, 512), "f4", "default", None, (320, 320), (80, 80)),
    ((512, 512), "f4", 256, None, (400, 400), (80, 80)),
    ((128, 512, 512), "f4", "default", None, (54, 54, 80), (18, 18, 20)),
    ((128, 512, 512), "i2", "default", None, (66, 72, 120), (22, 24, 24)),
    ((128, 512, 512), "u1", "default", None, (84, 90, 150), (28, 30, 30)),
    ((4, 128, 256, 256), "f4", "default", ("channel", *"zyx"), (1, 54, 54, 80), (1, 18, 18, 20)),
    ((10, 4, 64, 128, 128), "f4", "default", CTZYX, (1, 1, 64, 54, 80), (1, 1, 18, 18, 20)),
    ((60, 512, 512), "f4", (1, 512, 512), None, (6, 2, 512), (6, 2, 512)),
]


@pytest.mark.parametrize(("shape", "dtype", "patch", "dims", "chunks", "blocks"), REFERENCE_TABLE)
def test_the_published_table_of_the_reference(
    shape: tuple[int, ...],
    dtype: str,
    patch: Any,
    dims: tuple[str, ...] | None,
    chunks: tuple[int, ...],
    blocks: tuple[int, ...],
) -> None:
    layout = plan_layout(shape, dtype, patch=patch, dims=dims)
    assert (layout.chunks, layout.blocks) == (chunks, blocks)


extent = st.one_of(st.sampled_from([1, 2, 3, 7]), st.integers(1, 100), st.integers(1, 3000))
patch_extent = st.one_of(st.sampled_from([1, 2, 32, 64, 128, 192]), st.integers(1, 700))
itemsize = st.one_of(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 255))


@st.composite
def requests(draw: st.DrawFn) -> tuple[tuple[int, ...], list[bool], tuple[int, ...], int]:
    shape = tuple(draw(st.lists(extent, min_size=1, max_size=6)))
    mask = draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)).filter(any))
    patch = tuple(draw(patch_extent) for spatial in mask if spatial)
    return shape, mask, patch, draw(itemsize)


def names(mask: list[bool]) -> list[str]:
    return [f"spatial_{i}" if spatial else f"other_{i}" for i, spatial in enumerate(mask)]


def count_chunks(shape: tuple[int, ...], chunks: list[int]) -> int:
    return math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))


@given(request=requests())
@settings(max_examples=600, deadline=None)
@example(request=((60, 512, 512), [True] * 3, (1, 512, 512), 4))
@example(request=((7, 100, 100, 100), [False, True, True, True], (2, 3, 5), 2))
@example(request=((300, 300), [True, True], (1, 1), 1))
def test_planned_shapes_equal_those_of_the_reference(
    request: tuple[tuple[int, ...], list[bool], tuple[int, ...], int],
) -> None:
    shape, mask, patch, size = request
    chunks, blocks = comp_blosc2_params_spatial_only_magnitude(
        shape, patch, mask, bytes_per_pixel=size
    )
    assume(count_chunks(shape, chunks) <= MAX_CHUNKS)
    layout = plan_layout(shape, f"V{size}", patch=patch, dims=names(mask))
    assert layout == Layout(chunks=tuple(chunks), blocks=tuple(blocks), patch=patch)


@given(request=requests(), big=st.integers(1, 60_000))
@settings(max_examples=300, deadline=None)
def test_planned_shapes_nest_and_stay_within_the_caches(
    request: tuple[tuple[int, ...], list[bool], tuple[int, ...], int], big: int
) -> None:
    shape, mask, patch, _ = request
    assume(math.prod(shape) <= MAX_CHUNKS)
    layout = plan_layout(shape, f"V{big}", patch=patch, dims=names(mask))
    for n, chunk, block, spatial in zip(shape, layout.chunks, layout.blocks, mask, strict=True):
        assert 1 <= block <= chunk <= n
        assert spatial or chunk == 1
    assert math.prod(layout.blocks) * big <= max(L1_SHARE, big)
    assert math.prod(layout.chunks) * big <= max(L3_SHARE, big)
    assert layout == plan_layout(shape, f"V{big}", patch=patch, dims=names(mask))


def test_more_axes_than_the_block_budget_holds_leave_the_leading_ones_at_one() -> None:
    layout = plan_layout((3,) * 16, "f4")
    assert layout.blocks == (1,) * 4 + (2,) * 11 + (3,)
    with pytest.raises(RuntimeError, match="Cannot fit any even"):
        comp_blosc2_params_spatial_only_magnitude((3,) * 16, (192,) * 16)


def test_elements_larger_than_the_block_budget_make_blocks_of_one() -> None:
    layout = plan_layout((40, 40, 40), "V30000")
    assert (layout.chunks, layout.blocks) == ((3, 3, 4), (1, 1, 1))


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 5), ()])
@pytest.mark.parametrize("request_", [{}, {"patch": None}, {"chunks": 2}])
def test_empty_and_scalar_arrays_get_what_blosc2_gives_them(
    shape: tuple[int, ...], request_: dict[str, Any]
) -> None:
    layout = plan_layout(shape, "f4", **request_)
    array = blosc2.zeros(shape, dtype="f4")
    assert (layout.chunks, layout.blocks) == (array.chunks, array.blocks) == (shape, shape)


def test_scalars_have_no_patch() -> None:
    assert plan_layout((), "f4").patch is None


@pytest.mark.parametrize(
    "patch",
    [
        (64, 192, 128),
        [64, 192, 128],
        (7, 64, 192, 128),
        {"z": 64, "x": 128},
        {"channel": 7, "z": np.int32(64), "y": 192, "x": 128},
    ],
)
def test_every_spelling_of_a_patch_means_the_same(patch: Any) -> None:
    dims = ("channel", "z", "y", "x")
    layout = plan_layout((3, 200, 300, 400), "f4", patch=patch, dims=dims)
    chunks, blocks = comp_blosc2_params_spatial_only_magnitude(
        (3, 200, 300, 400), (64, 192, 128), [False, True, True, True]
    )
    assert layout == Layout(chunks=tuple(chunks), blocks=tuple(blocks), patch=(64, 192, 128))


def test_one_int_holds_for_every_spatial_axis() -> None:
    dims = ("z", "time", "x")
    layout = plan_layout((90, 9, 90), "f4", patch=64, dims=dims)
    assert layout == plan_layout((90, 9, 90), "f4", patch=(64, 64), dims=dims)
    assert layout.patch == (64, 64)


def test_no_patch_plans_for_the_whole_array() -> None:
    layout = plan_layout((5, 60, 600), "f4", patch=None)
    assert layout == plan_layout((5, 60, 600), "f4", patch=(5, 60, 600))
    assert layout.patch == (5, 60, 600)


def test_axes_without_a_spatial_name_are_all_planned_but_record_no_patch() -> None:
    layout = plan_layout((100, 100), "f4", dims=("time", "channel"))
    unnamed = plan_layout((100, 100), "f4")
    assert (layout.chunks, layout.blocks) == (unnamed.chunks, unnamed.blocks)
    assert (layout.patch, unnamed.patch) == (None, (192, 192))


@pytest.mark.parametrize("name", ["x", "y", "z", "spatial", "spatial_x", "spatial_2"])
def test_spatial_names(name: str) -> None:
    assert plan_layout((9, 9), "f4", dims=("channel", name)).chunks == (1, 9)
    assert plan_layout((9, 9), "f4", dims=(name, "time")).chunks == (9, 1)


@pytest.mark.parametrize("name", ["xx", "non_spatial", "X", "t", "components"])
def test_other_names_are_not_spatial(name: str) -> None:
    assert plan_layout((9, 9), "f4", dims=("x", name)).chunks == (9, 1)


@pytest.mark.parametrize(
    ("chunks", "blocks", "expected"),
    [
        ((2, 64, 50), (1, 16, 16), ((2, 64, 50), (1, 16, 16))),
        ((2, 64, 999), (9, 16, 999), ((2, 64, 100), (2, 16, 100))),
        (64, 16, ((3, 64, 64), (3, 16, 16))),
        ({"y": 64}, {"x": 10}, ((3, 64, 100), (3, 64, 10))),
        ([np.int64(2), 64, 50], np.uint8(16), ((2, 64, 50), (2, 16, 16))),
    ],
)
def test_given_chunks_and_blocks_are_kept_and_clipped(
    chunks: Any, blocks: Any, expected: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    dims = ("channel", "y", "x")
    layout = plan_layout((3, 100, 100), "f4", chunks=chunks, blocks=blocks, dims=dims)
    assert (layout.chunks, layout.blocks) == expected
    assert layout.patch is None
    assert all(type(n) is int for n in layout.chunks + layout.blocks)


@pytest.mark.parametrize(
    ("chunks", "dims", "dtype", "blocks"),
    [
        ((64, 64, 64), None, "f4", (16, 16, 16)),
        ((96, 96, 96), None, "f4", (16, 16, 20)),
        ((1, 512, 512), None, "f4", (1, 74, 74)),
        ((4, 64, 64), ("channel", "y", "x"), "f4", (1, 64, 64)),
        ((10, 10, 10), None, "u1", (10, 10, 10)),
    ],
)
def test_blocks_for_given_chunks_are_evened_out(
    chunks: tuple[int, ...], dims: tuple[str, ...] | None, dtype: str, blocks: tuple[int, ...]
) -> None:
    layout = plan_layout((600, 600, 600), dtype, chunks=chunks, dims=dims)
    assert (layout.chunks, layout.blocks) == (chunks, blocks)


@given(request=requests())
@settings(max_examples=200, deadline=None)
def test_blocks_chosen_for_given_chunks_fit_the_cache_with_less_than_a_block_to_spare(
    request: tuple[tuple[int, ...], list[bool], tuple[int, ...], int],
) -> None:
    shape, mask, _, size = request
    chunks = tuple(min(n, 256) for n in shape)
    assume(math.prod(chunks) * size <= 2**30)
    layout = plan_layout(shape, f"V{size}", chunks=256, dims=names(mask))
    assert layout.chunks == chunks
    assert math.prod(layout.blocks) * size <= L1_SHARE
    for chunk, padded, count in zip(chunks, layout.padded_chunk, layout.block_grid, strict=True):
        assert chunk <= padded < chunk + count


def test_planned_layouts_are_accepted_by_blosc2() -> None:
    for shape, dtype, patch, dims, *_ in REFERENCE_TABLE:
        layout = plan_layout(shape, dtype, patch=patch, dims=dims)
        array = blosc2.uninit(shape, dtype=dtype, chunks=layout.chunks, blocks=layout.blocks)
        assert (array.chunks, array.blocks) == (layout.chunks, layout.blocks)
        assert array.schunk.chunksize == layout.chunk_bytes(array.dtype.itemsize)


def test_the_size_limits_are_those_of_blosc2() -> None:
    largest = plan_layout((2**31 - 33,), "u1", chunks=2**31 - 33, blocks=1)
    assert largest.chunk_bytes(1) == 2**31 - 33
    blosc2.uninit((2**31 - 33,), dtype="u1", chunks=largest.chunks, blocks=largest.blocks)
    with pytest.raises(LayoutError, match=r"take 2147483616 bytes; Blosc2 holds 2147483615"):
        plan_layout((2**31 - 32,), "u1", chunks=2**31 - 32, blocks=32)
    with pytest.raises(RuntimeError):
        blosc2.uninit((2**31 - 32,), dtype="u1", chunks=(2**31 - 32,), blocks=(32,))
    block = 536_866_816
    plan_layout((2**30,), "u1", chunks=block, blocks=block)
    with pytest.raises(LayoutError, match=r"take 536866817 bytes; .* give smaller blocks"):
        plan_layout((2**30,), "u1", chunks=block + 1, blocks=block + 1)


def test_padding_counts_toward_the_chunk_limit() -> None:
    chunk = 2**31 - 33
    with pytest.raises(LayoutError, match=r"padded to whole blocks \(33025,\)"):
        plan_layout((chunk,), "u1", chunks=chunk, blocks=33_025)


def test_the_number_of_chunks_is_limited() -> None:
    plan_layout((MAX_CHUNKS,), "u1", chunks=1)
    with pytest.raises(LayoutError, match=r"makes 268435456 chunks; a frame's index holds"):
        plan_layout((MAX_CHUNKS + 1,), "u1", chunks=1)
    with pytest.raises(LayoutError, match=r"makes 300000000 chunks; .* give larger chunks="):
        plan_layout((300_000_000, 2), "u1", dims=("time", "x"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"shape": (4, -1)}, r"shape holds -1; every size must be an integer >= 0"),
        ({"shape": (4, 2.0)}, r"shape holds 2.0; every size"),
        ({"shape": (1,) * 17}, r"has 17 axes; Blosc2 holds 16"),
        ({"dtype": "V0"}, r"has no bytes to store; give it a length"),
        ({"dims": ("x",)}, r"dims \('x',\) name 1 axes, shape \(100, 100\) has 2"),
        ({"patch": 0}, r"patch holds 0; every size must be an integer >= 1"),
        ({"patch": True}, r"patch holds True; every size"),
        ({"patch": (4, "5")}, r"patch holds '5'; every size"),
        ({"patch": (64, 64, 64)}, r"patch=\(64, 64, 64\) has 3 entries for 2 spatial axes of 2"),
        ({"patch": (), "dims": ("x", "t")}, r"has 0 entries for 1 spatial axes of 2"),
        ({"patch": "64"}, r"patch='64' is no patch; give 'default', sizes or None"),
        ({"patch": {"x": 4}}, r"patch=\{'x': 4\} goes by dimension name; give dims="),
        ({"patch": {"q": 4}, "dims": "yx"}, r"patch names \['q'\]; the dimensions are \('y', 'x'"),
        ({"patch": {"x": -4}, "dims": "yx"}, r"patch holds -4; every size"),
        ({"patch": 64, "chunks": 64}, r"patch=64 and chunks=64 exclude each other; give the patch"),
        ({"patch": None, "chunks": 64}, r"patch=None and chunks=64 exclude each other"),
        ({"blocks": 8}, r"blocks=8 were given without chunks; give both or neither"),
        ({"blocks": 8, "patch": 8}, r"blocks=8 were given without chunks"),
        ({"chunks": (64,)}, r"chunks=\(64,\) has 1 entries for 2 axes; give one per axis, one int"),
        ({"chunks": 0}, r"chunks holds 0; every size must be an integer >= 1"),
        ({"chunks": (64, -1)}, r"chunks holds -1; every size"),
        ({"chunks": {"x": 64}}, r"chunks=\{'x': 64\} goes by dimension name; give dims="),
        ({"chunks": 64, "blocks": (8, 8, 8)}, r"blocks=\(8, 8, 8\) has 3 entries for 2 axes"),
        ({"chunks": 64, "blocks": (8, 0)}, r"blocks holds 0; every size"),
        ({"chunks": 64, "blocks": {"q": 1}, "dims": "yx"}, r"blocks names \['q'\]"),
    ],
)
def test_impossible_requests_are_refused(request_: dict[str, Any], message: str) -> None:
    full: dict[str, Any] = {"shape": (100, 100), "dtype": "f4", **request_}
    with pytest.raises(LayoutError, match=message):
        plan_layout(full.pop("shape"), full.pop("dtype"), **full)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunks": (4, 4), "blocks": (4,)}, r"have 2 axes, blocks \(4,\) have 1"),
        ({"chunks": (1,) * 17, "blocks": (1,) * 17}, r"of 17 axes was asked for; Blosc2 holds 16"),
        ({"chunks": (4, 4), "blocks": (4, 5)}, r"axis 1 has chunk 4 and block 5"),
        ({"chunks": (4,), "blocks": (0,)}, r"axis 0 has chunk 4 and block 0"),
        ({"chunks": (0,), "blocks": (1,)}, r"axis 0 has chunk 0 and block 1"),
        ({"chunks": (-1,), "blocks": (-1,)}, r"axis 0 has chunk -1 and block -1"),
        ({"chunks": (4,), "blocks": (4,), "patch": (1, 1)}, r"patch \(1, 1\) does not fit 1 axes"),
        ({"chunks": (4,), "blocks": (4,), "patch": (0,)}, r"patch \(0,\) does not fit 1 axes"),
        ({"chunks": (4,), "blocks": (4,), "patch": ()}, r"patch \(\) does not fit 1 axes"),
    ],
)
def test_layouts_are_checked_at_birth(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Layout(**fields)


def test_a_layout_knows_its_padding() -> None:
    layout = Layout(chunks=(10, 0, 7), blocks=(4, 0, 7))
    assert layout.block_grid == (3, 0, 1)
    assert layout.padded_chunk == (12, 0, 7)
    assert layout.chunk_bytes(8) == 0
    assert Layout(chunks=(10, 7), blocks=(4, 7)).chunk_bytes(8) == 12 * 7 * 8
    assert Layout(chunks=(), blocks=()).chunk_bytes(2) == 2


def test_a_layout_is_a_value() -> None:
    layout = plan_layout((100, 100), "f4")
    assert pickle.loads(pickle.dumps(layout)) == layout
    assert hash(layout) == hash(plan_layout((100, 100), "<f4"))
