"""Codecs: spelling, refusals, and what Blosc2 makes of the parameters."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
FILTERS = ("none", "shuffle", "bitshuffle")
BLOSC2_FILTERS = {
    "none": blosc2.Filter.NOFILTER,
    "shuffle": blosc2.Filter.SHUFFLE,
    "bitshuffle": blosc2.Filter.BITSHUFFLE,
}
EVERY_CODEC = [
    Codec(name=name, level=level, filter=filter_)
    for name, level, filter_ in itertools.product(NAMES, range(10), FILTERS)
]


def test_every_codec_round_trips_through_its_spelling() -> None:
    spelled = [str(codec) for codec in EVERY_CODEC]
    assert len(set(spelled)) == len(EVERY_CODEC) == 150
    assert [Codec.parse(text) for text in spelled] == EVERY_CODEC


@pytest.mark.parametrize("text", ["lz4hc-8", "zstd-1-bitshuffle", "lz4-5-none", "blosclz-0"])
def test_spellings_round_trip_through_the_codec(text: str) -> None:
    assert str(Codec.parse(text)) == text


def test_the_default_filter_may_be_spelled_out() -> None:
    assert Codec.parse("lz4hc-8-shuffle") == Codec.parse("lz4hc-8") == DEFAULT_CODEC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lz4hc",
        "lz4hc-",
        "lz4hc-x",
        "lz4--1",
        "zstd-1-shuffle-2",
        "-",
        "lz4-²",
        "zstd-bitshuffle",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(LayoutError, match=r"is not spelled 'name-level' or .* names: blosclz, lz4"):
        Codec.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gzip-5", r"codec 'gzip' is not one of blosclz, lz4, lz4hc, zlib, zstd"),
        ("LZ4-5", r"codec 'LZ4' is not one of"),
        ("lz4-10", r"'lz4-10' is not spelled .* levels: 0 to 9;"),
        ("lz4-05", r"is not spelled"),
        ("lz4-5-delta", r"filter 'delta' is not one of none, shuffle, bitshuffle"),
        ("lz4-5-", r"filter '' is not one of"),
    ],
)
def test_unknown_names_and_levels_are_refused(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Codec.parse(text)


@pytest.mark.parametrize("level", [-1, 10, True, 5.0, "5", None])
def test_levels_are_integers_from_0_to_9(level: Any) -> None:
    with pytest.raises(LayoutError, match="is not an integer from 0 to 9"):
        Codec(name="lz4", level=level)


@pytest.mark.parametrize("itemsize", [0, -1, 256])
def test_elements_blosc2_cannot_read_back_are_refused(itemsize: int) -> None:
    with pytest.raises(LayoutError, match=rf"elements of {itemsize} bytes cannot be stored"):
        DEFAULT_CODEC.cparams(itemsize)


def test_parameters_are_fresh_plain_numbers() -> None:
    params = DEFAULT_CODEC.cparams(4)
    numbers = [params["codec"], params["clevel"], params["typesize"], params["nthreads"]]
    numbers += [params["splitmode"], *params["filters"], *params["filters_meta"]]
    assert {type(number) for number in numbers} == {int}
    params["filters"][5] = 0
    assert DEFAULT_CODEC.cparams(4)["filters"] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize("codec", EVERY_CODEC, ids=str)
def test_blosc2_understands_every_codec(codec: Codec) -> None:
    cparams = blosc2.CParams(**codec.cparams(2))
    assert cparams.codec is getattr(blosc2.Codec, codec.name.upper())
    assert cparams.clevel == codec.level
    assert cparams.splitmode is blosc2.SplitMode.AUTO_SPLIT
    assert cparams.filters == [blosc2.Filter.NOFILTER] * 5 + [BLOSC2_FILTERS[codec.filter]]
    data = (np.arange(5000) // 7).astype("<i2")
    packed = blosc2.compress2(data, cparams=cparams)
    assert blosc2.decompress2(packed) == data.tobytes()
    assert len(packed) < data.nbytes or codec.level == 0


@pytest.mark.parametrize("codec", [c for c in EVERY_CODEC if c.level in (1, 8)], ids=str)
@pytest.mark.parametrize("dtype", ["u1", "<i2", "<f4", "<c16", ">f8"])
def test_frames_made_with_every_codec_read_back_equal(codec: Codec, dtype: str) -> None:
    data = (np.arange(33 * 21) // 5).reshape(33, 21).astype(dtype)
    cparams = blosc2.CParams(**codec.cparams(data.dtype.itemsize))
    array = blosc2.asarray(data, chunks=(20, 20), blocks=(7, 9), cparams=cparams)
    again = blosc2.ndarray_from_cframe(array.to_cframe())
    assert again.schunk.cparams.codec is cparams.codec
    assert again.schunk.cparams.filters == cparams.filters
    assert again.dtype == data.dtype
    np.testing.assert_array_equal(again[:], data)


def test_the_default_is_what_the_reference_writes(tmp_path: Path) -> None:
    path = tmp_path / "reference.mla"
    mlarray.MLArray(np.zeros((20, 20), dtype="f4")).save(path)
    written = asdict(blosc2.open(str(path)).schunk.cparams)
    expected = asdict(blosc2.CParams(**DEFAULT_CODEC.cparams(4)))
    compared = ("codec", "clevel", "typesize", "splitmode", "filters", "filters_meta", "use_dict")
    assert {key: written[key] for key in compared} == {key: expected[key] for key in compared}


def test_a_codec_is_a_value() -> None:
    codec = Codec.parse("zstd-3")
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert len({codec, Codec.parse("zstd-3-shuffle"), DEFAULT_CODEC}) == 2
