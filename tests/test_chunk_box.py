"""A chunk by itself: its form, what of it a key needs, and its bytes, in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ChunkError, FormatError, LayoutError
from mlarray_xr.format.block_layout import head_bytes
from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.planning.chunk_fetch import plan_chunk_fetch, plan_even_blocks
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.storage import chunk_box, chunks
from mlarray_xr.storage.chunk_box import (
    decode_bytes,
    decode_fetched,
    decode_picked,
    encode_bytes,
    encode_chunk,
)
from mlarray_xr.storage.chunk_pick import plan_pick
from mlarray_xr.storage.tiles import tile
from tests import hostile_blocks, hostile_chunks
from tests.frame_kit import make_frame, offsets_of, sections_of, special_chunk
from tests.strategies import keys, layouts, shapes, stored, values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tests.strategies import Stored

PIPELINES: dict[str, dict[str, Any]] = {
    "plain": {"filters": [blosc2.Filter.NOFILTER], "filters_meta": [0]},
    "shuffle": {},
    "bitshuffle": {"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]},
    "delta": {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]},
    "delta and shuffle": {
        "filters": [blosc2.Filter.DELTA, blosc2.Filter.SHUFFLE],
        "filters_meta": [0, 0],
    },
    "bytedelta of the element": {
        "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        "filters_meta": [0, 0],
    },
    "cells": {"filters": [blosc2.Filter.NDCELL], "filters_meta": [4]},
    "stored": {"clevel": 0},
    "split": {"splitmode": blosc2.SplitMode.ALWAYS_SPLIT},
    "not split": {"splitmode": blosc2.SplitMode.NEVER_SPLIT},
    "zstd dictionary": {"use_dict": True, "codec": blosc2.Codec.ZSTD},
    "lz4 dictionary": {"use_dict": True, "codec": blosc2.Codec.LZ4},
    "two threads": {"nthreads": 2},
    **{f"codec {c.name}": {"codec": c} for c in (*list(blosc2.Codec)[:5],)},
}
TYPES = ("u1", "<i2", ">i2", "<f4", ">f8", "<c16", "S3", "<U70", "<M8[ns]")


@pytest.fixture(params=["native", "portable"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decode through the C library, then without it."""
    if request.param == "portable":
        monkeypatch.setattr(chunk_box, "native_library", lambda: None)
        monkeypatch.setattr(chunks, "native_library", lambda: None)
    return str(request.param)


def chunk_of(values: NDArray[Any], blocks: tuple[int, ...], **cparams: Any) -> bytes:
    """Return the one chunk of a Blosc2 array, as Blosc2 stores it."""
    frame = sections_of(make_frame(values, chunks=values.shape, blocks=blocks, **cparams))
    (offset,) = offsets_of(frame).tolist()
    if offset < 0:
        return special_chunk(0, 0)
    (length,) = np.frombuffer(frame.payload, "<i4", 1, offset + 12).tolist()
    return frame.payload[offset : offset + length]


def form_of(values: NDArray[Any], blocks: tuple[int, ...]) -> ChunkForm:
    return ChunkForm(typesize=values.dtype.itemsize, chunks=values.shape, blocks=blocks)


def decoded(data: bytes, form: ChunkForm, key: Any, dtype: Any) -> NDArray[Any]:
    """Decode what a key selects of a chunk with foreign bytes behind it."""
    bytes_ = np.frombuffer(data + b"gap", np.uint8)
    return decode_picked(bytes_, form, plan_pick(key, form), dtype=np.dtype(dtype), name="chunk")


def typical(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Return values that compress, and not to nothing."""
    return values_of(shape, np.dtype(dtype), 3)


# --------------------------------------------------------------------------------------- the form


@pytest.mark.parametrize(
    ("typesize", "extents", "blocks"),
    [
        (0, (4,), (2,)),
        (-1, (4,), (2,)),
        (True, (4,), (2,)),
        (2.0, (4,), (2,)),
        ("2", (4,), (2,)),
        (None, (4,), (2,)),
        (2, (4,), (8,)),
        (2, (4, 4), (4,)),
        (2, (0,), (0,)),
        (2, (-4,), (-4,)),
        (2, (4.0,), (4,)),
        (2, (True,), (1,)),
        (2, "44", (4,)),
        (2, 4, 4),
        (2, None, None),
        (2, {"a": 1}, (1,)),
        (2, (1,) * 17, (1,) * 17),
        (2, (1 << 31,), (1,)),
        (2, (1 << 30,), (1 << 30,)),
        (2, (1 << 16, 1 << 16), (1, 1)),
        (1 << 31, (1,), (1,)),
        (2, ([1],), ([1],)),
    ],
)
def test_forms_that_are_none_are_refused(typesize: Any, extents: Any, blocks: Any) -> None:
    with pytest.raises(LayoutError):
        ChunkForm(typesize=typesize, chunks=extents, blocks=blocks)


@pytest.mark.parametrize(
    ("extents", "shape", "blocks"),
    [
        ((5, 6), (5, 6), (2, 3)),
        ((5, 6), (1, 5, 6), (1, 2, 3)),
        ((5, 6), (5, 1, 6), (2, 1, 3)),
        ((5, 6), (1, 5, 1, 6, 1), (1, 2, 1, 3, 1)),
        ((1, 6), (1, 1, 6), (1, 1, 3)),
        ((), (1, 1), (1, 1)),
    ],
)
def test_axes_of_one_element_are_put_in(
    extents: tuple[int, ...], shape: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    own = (2, 3) if extents == (5, 6) else (1, 3)[: len(extents)]
    form = ChunkForm(typesize=2, chunks=extents, blocks=own)
    assert form.spread(shape) == ChunkForm(typesize=2, chunks=shape, blocks=blocks)


@pytest.mark.parametrize("shape", [(5,), (6, 5), (5, 6, 2), (2, 5, 6), (10, 3), (), (1,) * 16])
def test_other_chunks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayoutError, match="the chunk grid has chunks of shape"):
        ChunkForm(typesize=2, chunks=(5, 6), blocks=(2, 3)).spread(shape)


@given(st.lists(st.integers(1, 700), max_size=4), st.sampled_from([1, 2, 8, 255, 100_000]))
def test_even_blocks(extents: list[int], itemsize: int) -> None:
    blocks = plan_even_blocks(tuple(extents), itemsize=itemsize)
    size = int(np.prod(blocks, dtype=object)) * itemsize
    assert all(1 <= b <= c for b, c in zip(blocks, extents, strict=True))
    assert size <= 64 << 10 or set(blocks) <= {1}
    assert blocks == tuple(extents) or size > 8 << 10  # no smaller than has to be


@pytest.mark.parametrize(
    ("nbytes", "wanted", "plan"),
    [
        (4 << 20, 1, "chunk"),
        ((4 << 20) + 1, 1, "blocks"),
        (64 << 20, 31, "blocks"),
        (64 << 20, 32, "chunk"),
        (64 << 20, 64, "chunk"),
        (64 << 20, 0, "blocks"),
    ],
)
def test_small_chunks_and_halves_of_chunks_are_fetched_whole(
    nbytes: int, wanted: int, plan: str
) -> None:
    assert plan_chunk_fetch(chunk_bytes=nbytes, n_blocks=64, n_wanted=wanted) == plan


# ---------------------------------------------------------------------------------------- picks


@st.composite
def chunk_keys(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Draw a key of any of the kinds that zarr makes, and more."""
    if not shape or draw(st.booleans()):
        return draw(keys(shape))
    positions = [st.lists(st.integers(0, n - 1), min_size=1, max_size=7) for n in shape]
    if draw(st.booleans()):
        return np.ix_(*[np.array(draw(along)) for along in positions])
    length = draw(st.integers(1, 6))
    points = [
        np.array(draw(st.lists(st.integers(-n, n - 1), min_size=length, max_size=length)))
        for n in shape
    ]
    if draw(st.booleans()):
        points[0] = points[0][:, None]
    return tuple(points)


@st.composite
def keyed_chunks(draw: st.DrawFn) -> tuple[NDArray[Any], tuple[int, ...], Any]:
    shape = draw(shapes(min_side=1, max_side=11))
    blocks, _ = draw(layouts(shape))
    return np.arange(np.prod(shape, dtype=int)).reshape(shape), blocks, draw(chunk_keys(shape))


@given(keyed_chunks())
def test_a_pick_is_what_numpy_selects(
    chunk: tuple[NDArray[Any], tuple[int, ...], Any],
) -> None:
    values, blocks, key = chunk
    form = form_of(values, blocks)
    tiles = np.empty(form.n_blocks * int(np.prod(blocks, dtype=int)), values.dtype)
    tile(values, tiles, chunks=values.shape, blocks=blocks)
    in_blocks = tiles.reshape(form.n_blocks, *blocks)
    pick = plan_pick(key, form)
    found = pick.values(lambda first, last: in_blocks[pick.numbers[first:last]], values.dtype)
    expected = values[key]
    assert found.shape == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


@given(keyed_chunks())
def test_no_block_is_decoded_in_vain(chunk: tuple[NDArray[Any], tuple[int, ...], Any]) -> None:
    values, blocks, key = chunk
    form = form_of(values, blocks)
    number = np.zeros(values.shape, int)
    for axis, (block, n) in enumerate(zip(blocks, form.grid, strict=True)):
        along = np.arange(values.shape[axis]) // block
        number = number * n + along.reshape([-1, *[1] * (values.ndim - axis - 1)])
    entries = key if isinstance(key, tuple) else (key,)
    kinds = {type(entry) for entry in entries}
    touched, found = np.unique(number[key]), plan_pick(key, form).numbers
    if kinds & {np.ndarray, list} and (kinds - {np.ndarray, list} or len(entries) < values.ndim):
        assert set(touched.tolist()) <= set(found.tolist())  # index arrays crossed with slices
    else:
        assert found.tolist() == touched.tolist()


@pytest.mark.parametrize("key", [7, (0, 0, 0), np.array([7]), (slice(0, 2), None), "z", 1.5])
def test_keys_that_do_not_fit_are_refused(key: Any) -> None:
    with pytest.raises(IndexError):
        plan_pick(key, ChunkForm(typesize=2, chunks=(7, 4), blocks=(2, 2)))


# -------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_chunks_of_every_kind(pipeline: str, dtype: str, road: str) -> None:
    values = typical((11, 13, 8), dtype)
    blocks = (4, 4, 8)
    params = PIPELINES[pipeline]
    if pipeline in ("cells", "bytedelta of the element") and values.dtype.itemsize > 255:
        pytest.skip("Blosc2 does not write these")
    data = chunk_of(values, blocks, **{"codec": blosc2.Codec.LZ4, **params})
    form = form_of(values, blocks)
    whole: tuple[Any, ...] = ()
    for key in (
        whole,
        (slice(4, 4),),
        (slice(1, 9, 3), 12, slice(None)),
        (slice(4, 8), slice(0, 4)),
        (slice(None, None, 6), slice(3, 4), slice(0, 3)),
        np.ix_([10, 0], [1, 12, 5], [7]),
        (np.array([0, 10, 5]), np.array([12, 0, 5]), np.array([7, 0, 1])),
    ):
        found = decoded(data, form, key, dtype)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values[key])
    plain = decode_bytes(np.frombuffer(data, np.uint8), form, name="chunk")
    assert plain.tobytes() == values.tobytes()


@pytest.mark.parametrize("codec", ["ZFP_ACC", "ZFP_PREC", "ZFP_RATE", "NDLZ"])
def test_plugin_codecs(codec: str, road: str) -> None:
    ndlz = codec == "NDLZ"
    values = typical((24, 20), "u1" if ndlz else "<f4")
    meta = {"ZFP_ACC": 1, "ZFP_PREC": 20, "ZFP_RATE": 40, "NDLZ": 4}[codec]
    params = {
        "codec": blosc2.Codec[codec],
        "codec_meta": meta,
        "filters": [blosc2.Filter.NOFILTER],
        "filters_meta": [0],
        "splitmode": blosc2.SplitMode.NEVER_SPLIT,
    }
    array = blosc2.asarray(values, chunks=(24, 20), blocks=(8, 12), cparams=params)
    data = chunk_of(values, (8, 12), **params)
    form = form_of(values, (8, 12))
    found = decoded(data, form, (slice(3, 20), 7), values.dtype)
    np.testing.assert_array_equal(found, np.asarray(array[...])[3:20, 7])
    # An array with another axis does not change how the plugin sees the chunk.
    spread = form.spread((1, 24, 20))
    bytes_ = np.frombuffer(data, np.uint8)
    again = decode_picked(
        bytes_, form, plan_pick((0, slice(3, 20), 7), spread), dtype=values.dtype, name="chunk"
    )
    np.testing.assert_array_equal(again, found)


@given(stored(max_dims=4, min_side=1), st.data())
def test_random_chunks(array: Stored, data: st.DataObject) -> None:
    values = array.values
    blocks = array.chunks  # these are at most the shape
    form = form_of(values, blocks)
    key = data.draw(chunk_keys(values.shape))
    chunk = encode_chunk(values, form, DEFAULT_CODEC)
    expected = values[key]
    found = decoded(chunk, form, key, values.dtype)
    assert found.shape == np.shape(expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("code", [1, 4])
def test_chunks_of_zeros(code: int, road: str) -> None:
    form = ChunkForm(typesize=2, chunks=(5, 6), blocks=(2, 3))
    data = special_of(form, code)
    assert not decoded(data, form, (), "<i2").any()
    assert decoded(data, form, (2, slice(0, 6, 2)), "<i2").tolist() == [0, 0, 0]
    assert not decode_bytes(np.frombuffer(data, np.uint8), form, name="chunk").any()


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8", "<c16"])
def test_chunks_of_nan(dtype: str) -> None:
    form = ChunkForm(typesize=np.dtype(dtype).itemsize, chunks=(5, 6), blocks=(2, 3))
    found = decoded(special_of(form, 2), form, (slice(0, 3), 1), dtype)
    assert np.isnan(found).all()
    assert found.shape == (3,)


def test_nan_is_no_integer() -> None:
    form = ChunkForm(typesize=2, chunks=(5, 6), blocks=(2, 3))
    with pytest.raises(ChunkError, match="said to be NaN"):
        decoded(special_of(form, 2), form, (), "<i2")


def test_bytes_of_a_chunk_of_nan() -> None:
    form = ChunkForm(typesize=4, chunks=(5, 6), blocks=(2, 3))
    plain = decode_bytes(np.frombuffer(special_of(form, 2), np.uint8), form, name="chunk")
    assert np.isnan(plain.view("<f4")).all()
    assert len(plain) == 120


def test_a_repeated_value(road: str) -> None:
    form = ChunkForm(typesize=2, chunks=(5, 6), blocks=(2, 3))
    data = special_of(form, 3, np.int16(-7).tobytes())
    assert (decoded(data, form, (), "<i2") == np.full((5, 6), -7)).all()
    assert decoded(data, form, (4, 5), "<i2") == -7
    with pytest.raises(ChunkError):
        decode_bytes(np.frombuffer(data[:-1], np.uint8), form, name="chunk")


def special_of(form: ChunkForm, code: int, value: bytes = b"") -> bytes:
    """Return a chunk without streams."""
    head = bytearray(special_chunk(form.header.chunksize, code, value, typesize=form.typesize))
    head[8:12] = form.header.blocksize.to_bytes(4, "little")
    return bytes(head)


@pytest.mark.parametrize("change", ["short", "other blocks", "other type", "other chunks", "empty"])
def test_a_chunk_of_another_form_is_refused(change: str, road: str) -> None:
    values = typical((12, 10), "<i4")
    data = chunk_of(values, (4, 5))
    form = {
        "other blocks": ChunkForm(typesize=4, chunks=(12, 10), blocks=(5, 5)),
        "other type": ChunkForm(typesize=2, chunks=(12, 20), blocks=(4, 10)),
        "other chunks": ChunkForm(typesize=4, chunks=(12, 15), blocks=(4, 5)),
    }.get(change, ChunkForm(typesize=4, chunks=(12, 10), blocks=(4, 5)))
    stored_bytes = {"short": data[:-1], "empty": b""}.get(change, data)
    with pytest.raises(FormatError):
        decode_picked(
            np.frombuffer(stored_bytes, np.uint8),
            form,
            plan_pick((), form),
            dtype=form.dtype,
            name="chunk",
        )


def test_fetched_blocks_that_are_damaged(road: str) -> None:
    values = typical((60, 50), "<i4")
    form = form_of(values, (20, 25))
    data = chunk_of(values, (20, 25), codec=blosc2.Codec.ZSTD)
    layout = chunk_box.chunk_layout(
        data[: head_bytes(form.header)], form, room=len(data), name="chunk"
    )
    pick = plan_pick((slice(25, 47), slice(1, 3)), form)
    starts, stops = layout.spans(pick.numbers)
    payloads = [data[a:b] for a, b in zip(starts, stops, strict=True)]
    found = decode_fetched(payloads, layout, form, pick, dtype=values.dtype, name="chunk")
    np.testing.assert_array_equal(found, values[25:47, 1:3])
    with pytest.raises(ChunkError):
        decode_fetched(
            [b"\x7f" * len(p) for p in payloads],
            layout,
            form,
            pick,
            dtype=values.dtype,
            name="chunk",
        )


def test_hostile_chunks(tmp_path: Path, native: bool) -> None:
    values = typical((9, 7), "<i2")
    for name, params in PIPELINES.items():
        form = form_of(values, (4, 4))
        hostile_blocks.save_victim(tmp_path, name, chunk_of(values, (4, 4), **params), form.header)
    zeros = encode_chunk(np.zeros((9, 7), "<i2"), form, DEFAULT_CODEC)
    hostile_blocks.save_victim(tmp_path, "zeros", zeros, form.header)
    done = subprocess.run(
        [sys.executable, os.fspath(Path(hostile_chunks.__file__)), os.fspath(tmp_path), "60", "7"],
        env={
            **os.environ,
            "PYTHONPATH": os.fspath(Path(__file__).parents[1]),
            "MLARRAY_XR_NATIVE": str(int(native)),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    outcomes = json.loads(done.stdout)
    assert outcomes.keys() == {*PIPELINES, "zeros"}
    assert all(found["refused"] > 50 for found in outcomes.values())


# -------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    ("dtype", "codec"),
    [
        ("<i2", "lz4hc-8"),
        (">f4", "zstd-1-bitshuffle"),
        ("|u1", "lz4-5-none"),
        ("<f8", "zstd-1-shuffle-trunc12"),
        ("<c16", "blosclz-3"),
        ("S3", "zlib-1"),
    ],
)
def test_the_bytes_are_those_of_a_file(tmp_path: Path, dtype: str, codec: str) -> None:
    values = typical((30, 20), dtype)
    path = tmp_path / "image.mla"
    mlarray_xr.to_mla(
        values, path, chunks=(16, 12), blocks=(5, 6), codec=codec, lossy="trunc" in codec
    )
    frame = sections_of(path.read_bytes())
    form = ChunkForm(typesize=values.dtype.itemsize, chunks=(16, 12), blocks=(5, 6))
    data = encode_chunk(values[:16, :12], form, Codec.parse(codec))
    assert data in frame.payload
    if "trunc" not in codec:
        plain = np.frombuffer(values[:16, :12].tobytes(), np.uint8)
        assert encode_bytes(plain, form, Codec.parse(codec)) == data


def test_what_is_no_chunk_is_not_encoded() -> None:
    form = ChunkForm(typesize=2, chunks=(4, 4), blocks=(2, 2))
    with pytest.raises(LayoutError):
        encode_chunk(np.zeros((4, 3), "i2"), form, DEFAULT_CODEC)
    with pytest.raises(LayoutError):
        encode_chunk(np.zeros((4, 4), "i4"), form, DEFAULT_CODEC)
    with pytest.raises(LayoutError):
        encode_bytes(np.zeros(31, "u1"), form, DEFAULT_CODEC)
    with pytest.raises(LayoutError, match="cannot lose"):
        encode_bytes(np.zeros(32, "u1"), form, Codec.parse("zstd-1-shuffle-trunc8"))


@pytest.mark.parametrize(
    ("chunks", "itemsize", "blocks"),
    [
        ((), 4, ()),
        ((5,), 8, (5,)),
        ((64, 64, 64), 2, (32, 32, 32)),
        ((512, 512), 2, (128, 256)),
        ((100, 7, 300), 4, (50, 7, 38)),
        ((1, 1000, 1000), 1, (1, 250, 250)),
        ((70000,), 1, (35000,)),
    ],
)
def test_blocks_that_nobody_asked_for_are_those_of_stored_arrays(
    chunks: tuple[int, ...], itemsize: int, blocks: tuple[int, ...]
) -> None:
    """Arrays whose codec names no blocks are decoded by this rule: it may never change."""
    assert plan_even_blocks(chunks, itemsize=itemsize) == blocks
