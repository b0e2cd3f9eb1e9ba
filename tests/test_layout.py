"""The Layout value, and plan_layout: its arguments, the ways to decide, and every refusal."""

from __future__ import annotations

import math
import pickle
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.access import Window
from mlarray_xr.planning.caches import CacheSizes, detect_caches
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.layout import Basis, Layout
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.planning.reference_rules import reference_layout
from tests.frame_kit import make_frame

if TYPE_CHECKING:
    from pathlib import Path

MAX_CHUNKS = 268_435_455
CACHES = CacheSizes(l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=2 << 20)
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
    for caches in (None, CACHES):
        layout = plan_layout(
            shape, dtype, patch=patch, dims=dims, caches=caches, strategy="mlarray-0.0.54"
        )
        assert (layout.chunks, layout.blocks) == (chunks, blocks)
        assert layout.basis is not None
        assert layout.basis.rule == "mlarray-0.0.54"


def test_the_older_rule_of_the_reference() -> None:
    layout = plan_layout((60, 512, 512), "i2", patch=(1, 512, 512), strategy="mlarray-0.0.53")
    chunks, blocks = reference_layout(
        "mlarray-0.0.53", (60, 512, 512), 2, patch=(1, 512, 512), spatial=(0, 1, 2)
    )
    assert layout == Layout(chunks=chunks, blocks=blocks, patch=(1, 512, 512))


def test_strategies_plan_for_spatial_axes_by_number_or_by_name() -> None:
    expected = reference_layout("mlarray-0.0.54", (5, 90, 90), 4, patch=(64, 64), spatial=(1, 2))
    for axes in ({"dims": ("time", "y", "x")}, {"spatial": (1, 2)}):
        layout = plan_layout((5, 90, 90), "f4", patch=64, strategy="mlarray-0.0.54", **axes)
        assert (layout.chunks, layout.blocks, layout.patch) == (*expected, (64, 64))


# ---------------------------------------------------------------------------------------------
# What is planned for


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0, 5), ()])
@pytest.mark.parametrize(
    "request_", [{}, {"patch": 3}, {"patch": None}, {"chunks": 2}, {"chunks": 2, "blocks": 1}]
)
def test_empty_and_scalar_arrays_get_what_blosc2_gives_them(
    shape: tuple[int, ...], request_: dict[str, Any]
) -> None:
    layout = plan_layout(shape, "f4", **request_)
    array = blosc2.zeros(shape, dtype="f4")
    assert (layout.chunks, layout.blocks) == (array.chunks, array.blocks) == (shape, shape)


def test_scalars_have_no_patch() -> None:
    assert plan_layout((), "f4").patch is None


@pytest.mark.parametrize("layout", ["frames", "series", "balanced"])
def test_empty_series_are_planned(layout: Any) -> None:
    planned = plan_layout((0, 5, 6), "f4", layout=layout, dims=("time", "y", "x"))
    assert planned.chunks == planned.blocks == (0, 5, 6)


def test_empty_arrays_are_planned_for_windows() -> None:
    planned = plan_layout((0, 5, 6), "f4", access=[((1, -1, -1), 1)])
    assert planned.chunks == (0, 5, 6)


@pytest.mark.parametrize(
    "patch",
    [
        (64, 192, 128),
        [64, 192, 128],
        (1, 64, 192, 128),
        {"z": 64, "x": 128},
        {"channel": 1, "z": np.int32(64), "y": 192, "x": 128},
    ],
)
def test_every_spelling_of_a_patch_means_the_same(patch: Any) -> None:
    dims = ("channel", "z", "y", "x")
    layout = plan_layout((3, 200, 300, 400), "f4", patch=patch, dims=dims, caches=CACHES)
    by_axis = plan_layout(
        (3, 200, 300, 400), "f4", patch=(1, 64, 192, 128), spatial=(1, 2, 3), caches=CACHES
    )
    assert (layout.chunks, layout.blocks) == (by_axis.chunks, by_axis.blocks)
    assert layout.patch == (64, 192, 128)
    assert layout.cost().window == (1, 64, 192, 128)


def test_one_int_holds_for_every_spatial_axis() -> None:
    dims = ("z", "time", "x")
    layout = plan_layout((90, 9, 90), "f4", patch=64, dims=dims, caches=CACHES)
    assert layout == plan_layout((90, 9, 90), "f4", patch=(64, 64), dims=dims, caches=CACHES)
    assert layout.patch == (64, 64)
    assert layout.cost().window == (64, 1, 64)


def test_other_axes_may_be_read_whole() -> None:
    """A patch of all channels decodes every one; the file records what is spatial."""
    dims = ("y", "x", "channel")
    one, all_ = (
        plan_layout((512, 512, 4), "f4", patch=(128, 128, n), dims=dims, caches=CACHES)
        for n in (1, 4)
    )
    assert one.patch == all_.patch == (128, 128)
    assert (one.blocks[2], all_.blocks[2]) == (1, 4)


def test_the_default_patch_is_192() -> None:
    layout = plan_layout((600, 600, 600), "u1", caches=CACHES)
    assert layout == plan_layout((600, 600, 600), "u1", patch=192, caches=CACHES)
    assert layout.patch == (192, 192, 192)


def test_a_patch_is_recorded_as_it_was_given_and_read_inside_the_array() -> None:
    layout = plan_layout((20, 700), "u1", patch=(64, 128), caches=CACHES)
    assert layout.patch == (64, 128)
    assert layout.cost().window == (20, 128)


def test_axes_without_a_spatial_name_are_all_planned_but_record_no_patch() -> None:
    layout = plan_layout((100, 100), "f4", dims=("time", "channel"), caches=CACHES)
    unnamed = plan_layout((100, 100), "f4", caches=CACHES)
    assert (layout.chunks, layout.blocks) == (unnamed.chunks, unnamed.blocks)
    assert (layout.patch, unnamed.patch) == (None, (192, 192))


@pytest.mark.parametrize("name", ["x", "y", "z", "spatial", "spatial_x", "spatial_2"])
def test_spatial_names(name: str) -> None:
    layout = plan_layout((9, 9), "f4", dims=("channel", name))
    assert (layout.cost().window, layout.patch) == ((1, 9), (192,))
    layout = plan_layout((9, 9), "f4", dims=(name, "time"))
    assert (layout.cost().window, layout.patch) == ((9, 1), (192,))


@pytest.mark.parametrize("name", ["xx", "non_spatial", "X", "t", "components"])
def test_other_names_are_not_spatial(name: str) -> None:
    assert plan_layout((9, 9), "f4", dims=("x", name)).cost().window == (9, 1)


def test_spatial_axes_by_number_go_before_names() -> None:
    layout = plan_layout((9, 9, 9), "f4", dims=("x", "q", "y"), spatial=(1,), patch=4)
    assert (layout.cost().window, layout.patch) == ((1, 4, 1), (4,))


@pytest.mark.parametrize("spatial", [(2,), (-1,), (1, 0), (0, 0), (0, 1, 2), (0.0,), ("x",)])
def test_impossible_spatial_axes_are_refused(spatial: Any) -> None:
    with pytest.raises(LayoutError, match="spatial"):
        plan_layout((9, 9), "f4", spatial=spatial, patch=4)


def test_no_patch_leaves_the_choice_to_blosc2(tmp_path: Path) -> None:
    for shape, dtype in [((5, 60, 600), "f4"), ((1000, 1000), "i2"), ((7,), "u1")]:
        layout = plan_layout(shape, dtype, patch=None, codec=Codec.parse("zstd-3"))
        expected = blosc2.compute_chunks_blocks(
            shape, dtype=np.dtype(dtype), cparams={"codec": blosc2.Codec.ZSTD, "clevel": 3}
        )
        assert (layout.chunks, layout.blocks) == tuple(map(tuple, expected))
        assert layout.patch is None
        assert layout.basis is not None
        assert (layout.basis.rule, layout.basis.windows) == ("Blosc2", ())
        # Blosc2 opens what it chose.
        values = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
        frame = make_frame(values, chunks=layout.chunks, blocks=layout.blocks)
        array = blosc2.ndarray_from_cframe(frame)
        assert (array.chunks, array.blocks) == (layout.chunks, layout.blocks)
        np.testing.assert_array_equal(array[...], values)


# ---------------------------------------------------------------------------------------------
# Caches and codec


def test_caches_may_be_spelled_in_every_way() -> None:
    spellings: list[Any] = [
        CACHES,
        "l1=32KiB,l2=1MiB,l3=2MiB",
        {"l1": 32768, "l2": "1MiB", "l3": "2 MiB"},
    ]
    plans = {plan_layout((96, 512, 512), "i2", caches=caches) for caches in spellings}
    assert len(plans) == 1


def test_caches_are_those_of_this_machine_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_layout((9, 9), "i2").basis == plan_layout((9, 9), "i2", caches="local").basis
    basis = plan_layout((9, 9), "i2").basis
    assert basis is not None
    assert basis.caches == detect_caches()
    monkeypatch.setenv("MLARRAY_XR_CACHES", "l1=32KiB,l2=1MiB,l3=2MiB")
    basis = plan_layout((9, 9), "i2").basis
    assert basis is not None
    assert basis.caches == CACHES


def test_caches_decide() -> None:
    small = CacheSizes(l1_bytes=16 << 10, l2_bytes=256 << 10, l3_bytes=1 << 20)
    large = CacheSizes(l1_bytes=128 << 10, l2_bytes=2 << 20, l3_bytes=8 << 20)
    near, far = (
        [plan_layout((1024,) * 3, "i2", patch=64, caches=c, remote=r) for c in (small, large)]
        for r in (False, True)
    )
    assert near[0].chunk_bytes(2) <= 1 << 20
    assert far[0].chunk_bytes(2) <= 1 << 20 < far[1].chunk_bytes(2) <= 8 << 20


def test_a_codec_is_given_as_text_or_value() -> None:
    text, value = (
        plan_layout((96, 512, 512), "i2", codec=codec, caches=CACHES)
        for codec in ("zstd-3-bitshuffle", Codec.parse("zstd-3-bitshuffle"))
    )
    assert text.basis == value.basis
    assert text == value
    assert text.basis is not None
    assert text.basis.codec == Codec.parse("zstd-3-bitshuffle")


def test_the_default_codec_is_planned_for_when_none_is_known() -> None:
    unknown, known = (
        plan_layout((96, 512, 512), "i2", codec=codec, caches=CACHES)
        for codec in (None, DEFAULT_CODEC)
    )
    assert unknown == known
    assert unknown.cost() == known.cost()


def test_slower_codecs_take_longer_for_the_same_shapes() -> None:
    fast, slow = (
        plan_layout((256, 512, 512), "i2", chunks=64, blocks=16, codec=codec, caches=CACHES)
        for codec in ("lz4-9-bitshuffle", "zstd-9-none")
    )
    assert slow.cost(64).blocks == fast.cost(64).blocks
    assert slow.cost(64).milliseconds > fast.cost(64).milliseconds


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"codec 'lz5-1'|codec 'lz5' is not one of"):
        plan_layout((9, 9), "i2", codec="lz5-1")


# ---------------------------------------------------------------------------------------------
# Given chunks and blocks


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
    assert layout.basis is not None
    assert (layout.basis.rule, layout.basis.windows) == ("given", ())


@given(
    shape=st.lists(st.integers(1, 3000), min_size=1, max_size=5).map(tuple),
    chunk=st.integers(1, 300),
    itemsize=st.sampled_from([1, 2, 3, 4, 8, 255]),
)
@settings(max_examples=75)
def test_blocks_for_given_chunks_are_evened_out(
    shape: tuple[int, ...], chunk: int, itemsize: int
) -> None:
    chunks = tuple(min(n, chunk) for n in shape)
    n_chunks = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    assume(math.prod(chunks) * itemsize <= 1 << 30 and n_chunks <= MAX_CHUNKS)
    layout = plan_layout(shape, f"V{itemsize}", chunks=chunk, caches=CACHES)
    assert layout.chunks == chunks
    assert math.prod(layout.blocks) * itemsize <= max(CACHES.l2_bytes // 2, itemsize)
    for extent, padded, count in zip(chunks, layout.padded_chunk, layout.block_grid, strict=True):
        assert extent <= padded < extent + count


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


def test_an_array_that_no_frame_holds_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"Blosc2 holds 2147483615|frame"):
        plan_layout((10**7, 10**7, 10**7), "f8")
    with pytest.raises(LayoutError, match=r"makes \d+ chunks; a frame's index holds"):
        plan_layout((10**7, 10**7), "f8", strategy="mlarray-0.0.54", patch=1)


# ---------------------------------------------------------------------------------------------
# Refusals


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
        ({"blocks": 8}, r"blocks=8 were given without chunks; give both or neither"),
        ({"blocks": 8, "patch": 8}, r"blocks=8 were given without chunks"),
        ({"chunks": (64,)}, r"chunks=\(64,\) has 1 entries for 2 axes; give one per axis, one int"),
        ({"chunks": 0}, r"chunks holds 0; every size must be an integer >= 1"),
        ({"chunks": (64, -1)}, r"chunks holds -1; every size"),
        ({"chunks": {"x": 64}}, r"chunks=\{'x': 64\} goes by dimension name; give dims="),
        ({"chunks": 64, "blocks": (8, 8, 8)}, r"blocks=\(8, 8, 8\) has 3 entries for 2 axes"),
        ({"chunks": 64, "blocks": (8, 0)}, r"blocks holds 0; every size"),
        ({"chunks": 64, "blocks": {"q": 1}, "dims": "yx"}, r"blocks names \['q'\]"),
        ({"layout": "fast"}, r"layout='fast' is no preset; there are frames, series, balanced"),
        ({"layout": "frames"}, r"layout='frames' is for series, and of \(100, 100\) all axes"),
        ({"access": []}, r"access=\[\] holds no window"),
        ({"caches": "l1=0"}, r"caches= says that L1 is '0'"),
        ({"caches": 32768}, r"caches= is 32768"),
        ({"strategy": "mlarray-0.0.48"}, r"strategy='mlarray-0.0.48' is (unknown|not known)"),
    ],
)
def test_impossible_requests_are_refused(request_: dict[str, Any], message: str) -> None:
    full: dict[str, Any] = {"shape": (100, 100), "dtype": "f4", **request_}
    with pytest.raises(LayoutError, match=message):
        plan_layout(full.pop("shape"), full.pop("dtype"), **full)


WAYS: dict[str, Any] = {
    "patch": 64,
    "access": [((1, -1, -1), 1)],
    "layout": "frames",
    "chunks": 64,
}


@pytest.mark.parametrize(
    ("one", "other"), [(a, b) for i, a in enumerate(WAYS) for b in list(WAYS)[i + 1 :]]
)
def test_of_two_ways_to_decide_both_are_named(one: str, other: str) -> None:
    with pytest.raises(LayoutError, match=rf"{one}=.* and {other}=.* exclude each other"):
        plan_layout((9, 9, 9), "f4", dims=("time", "y", "x"), **{n: WAYS[n] for n in (one, other)})


@pytest.mark.parametrize("other", ["access", "layout", "chunks"])
@pytest.mark.parametrize("patch", [None, "64"])
def test_a_patch_that_is_none_or_nonsense_is_given_as_well(other: str, patch: Any) -> None:
    request: dict[str, Any] = {"patch": patch, other: WAYS[other]}
    with pytest.raises(LayoutError, match=rf"patch={patch!r}"):
        plan_layout((9, 9, 9), "f4", dims=("time", "y", "x"), **request)


@pytest.mark.parametrize(
    "request_", [{"patch": None}, {"layout": "frames"}, {"access": [((9, 9, 9), 1)]}, {"chunks": 4}]
)
def test_strategies_plan_for_patches_only(request_: dict[str, Any]) -> None:
    dims = ("time", "y", "x")
    with pytest.raises(LayoutError, match=r"strategy='mlarray-0.0.54' plans for one patch; give"):
        plan_layout((9, 9, 9), "f4", dims=dims, strategy="mlarray-0.0.54", **request_)


@pytest.mark.parametrize(
    ("shape", "strategy"),
    [((3,) * 16, "mlarray-0.0.54"), ((9, 9, 9, 9), "mlarray-0.0.53"), ((0, 4), "mlarray-0.0.54")],
)
def test_what_a_rule_has_no_answer_to_is_refused_and_can_be_planned(
    shape: tuple[int, ...], strategy: Any
) -> None:
    with pytest.raises(LayoutError, match=rf"strategy='{strategy}' was asked for .* To fix: leave"):
        plan_layout(shape, "f4", strategy=strategy)
    assert plan_layout(shape, "f4").chunks


# ---------------------------------------------------------------------------------------------
# The value


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
        (
            {
                "chunks": (4,),
                "blocks": (4,),
                "basis": Basis(shape=(4, 4), itemsize=1, caches=CACHES),
            },
            r"a layout of 1 axes is not for an array of \(4, 4\)",
        ),
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
    copy = pickle.loads(pickle.dumps(layout))
    assert copy == layout
    assert copy.basis == layout.basis
    assert copy.cost() == layout.cost()
    assert hash(layout) == hash(plan_layout((100, 100), "<f4"))


def test_what_a_layout_is_for_is_neither_compared_nor_shown() -> None:
    layout = plan_layout((100, 100), "f4", patch=50, caches=CACHES)
    bare = Layout(chunks=layout.chunks, blocks=layout.blocks, patch=(50, 50))
    assert layout == bare
    assert hash(layout) == hash(bare)
    assert repr(layout) == repr(bare)
    assert repr(bare) == f"Layout(chunks={bare.chunks}, blocks={bare.blocks}, patch=(50, 50))"
    assert layout != Layout(chunks=layout.chunks, blocks=layout.blocks)


def test_a_layout_pickles_small() -> None:
    layout = plan_layout((3,) * 16, "u1", patch=3, dims=tuple("abcdefghijklmzyx"))
    assert len(pickle.dumps(layout)) < 2000


# ---------------------------------------------------------------------------------------------
# Its costs: those of tests/test_read_cost.py, for the array and the windows it knows


def test_costs_are_those_of_the_patch_that_was_planned_for() -> None:
    layout = plan_layout((40, 50, 60), "i2", patch=(16, 17, 18), caches=CACHES)
    assert layout.cost() == layout.cost((16, 17, 18))
    assert layout.cost().window == (16, 17, 18)


@pytest.mark.parametrize(
    ("patch", "window"),
    [
        ("default", (1, 100, 100)),
        (8, (1, 8, 8)),
        ((8, 9), (1, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ({"x": 9}, (1, 100, 9)),
        ({"time": 2, "y": 1, "x": 10**9}, (2, 1, 100)),
    ],
)
def test_costs_of_other_patches(patch: Any, window: tuple[int, ...]) -> None:
    dims = ("time", "y", "x")
    layout = plan_layout((5, 100, 100), "i2", dims=dims, chunks=50, blocks=10, caches=CACHES)
    cost = layout.cost(patch)
    assert cost.window == window
    assert cost.wanted_bytes == 2 * math.prod(window)


def test_the_first_window_is_the_cost_of_several() -> None:
    access: Any = [((1, -1), 1), ((-1, 1), 5)]
    layout = plan_layout((60, 70), "i2", access=access, caches=CACHES)
    assert layout.cost().window == (1, 70)


def test_costs_by_hand() -> None:
    layout = plan_layout((60, 512, 512), "f4", chunks=(1, 512, 512), blocks=(1, 64, 64))
    cost = layout.cost((1, 64, 64))
    # 449 offsets along each axis, of which eight touch one block and all others two.
    along = (8 + 441 * 2) / 449
    assert cost.chunks == 1
    assert cost.blocks == pytest.approx(along**2)
    assert cost.amplification == pytest.approx(along**2)
    assert cost.decoded_bytes == cost.working_set_bytes == pytest.approx(along**2 * 64 * 64 * 4)


def test_costs_that_cannot_be_known_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"was planned for no patch; say which one: layout.cost"):
        plan_layout((9, 9), "i2", chunks=3).cost()
    with pytest.raises(LayoutError, match=r"was planned for no patch"):
        plan_layout((9, 9), "i2", patch=None).cost()
    with pytest.raises(LayoutError, match=r"does not say of which array it is. To fix: take it"):
        Layout(chunks=(3,), blocks=(3,)).cost(3)
    with pytest.raises(LayoutError, match=r"an array of \(0, 9\) has no patch to read"):
        plan_layout((0, 9), "i2").cost()
    with pytest.raises(LayoutError, match=r"patch holds 0; every size"):
        plan_layout((9, 9), "i2").cost(0)


def test_scalars_cost_one_block() -> None:
    layout = plan_layout((), "f8")
    cost = layout.cost("default")
    assert (cost.window, cost.chunks, cost.blocks, cost.wanted_bytes) == ((), 1, 1, 8)
    assert cost.amplification == 1


def test_windows_that_a_layout_was_planned_for_are_known() -> None:
    basis = plan_layout((20, 700), "u1", patch=(64, 128)).basis
    assert basis is not None
    assert basis.windows == (Window(shape=(20, 128)),)
    assert (basis.shape, basis.itemsize, basis.rule) == ((20, 700), 1, "searched")
