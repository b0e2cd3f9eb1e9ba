"""Codecs: spelling, refusals, and what Blosc2 makes of the parameters."""

from __future__ import annotations

import itertools
import os
import pickle
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest

from mlarray_xr.array import MlaArray
from mlarray_xr.creation import create
from mlarray_xr.errors import LayoutError
from mlarray_xr.foreign.conversion import convert
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

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
        "zstd-1-shuffle-trunc0",
        "zstd-1-shuffle-trunc012",
        "zstd-1-shuffle-trunc12-x",
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(LayoutError, match=r"is not spelled 'name-level', .* names: blosclz, lz4"):
        Codec.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gzip-5", r"codec 'gzip' is not one of blosclz, lz4, lz4hc, zlib, zstd"),
        ("LZ4-5", r"codec 'LZ4' is not one of"),
        ("lz4-10", r"'lz4-10' is not spelled .* levels: 0 to 9;"),
        ("lz4-05", r"is not spelled"),
        ("zstd-1-trunc12", r"filter 'trunc12' is not one of none, shuffle, bitshuffle$"),
        ("lz4-5-median", r"filter 'median' is not one of none, shuffle, bitshuffle$"),
        ("zstd-1-shuffle-trunc52", r"52 kept mantissa bits are not an integer from 1 to 51"),
        ("lz4-5-", r"filter '' is not one of"),
    ],
)
def test_unknown_names_and_levels_are_refused(text: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        Codec.parse(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lz4-5-delta", "parts of such chunks back wrong"),
        ("zstd-1-shuffle-dict", "parts of such chunks back wrong"),
        ("zstd-dict-1", "parts of such chunks back wrong"),
        ("zfp_rate-5", "gives wrong values without an error"),
        ("zfp", "it loses bits"),
        ("ZFP_ACC-1", "it loses bits"),
        ("j2k-1", "a plugin that a reader would have to load"),
        ("ndlz-5", "encodes 2-D bytes only"),
        ("zstd-1-bytedelta", "drops it for bytes"),
        ("zstd-1-trunc_prec", "say how many bits are kept"),
        ("zstd-1-shuffle-trunc", "say how many bits are kept"),
        ("lz4-1-int_trunc", "loses bits of integers"),
    ],
)
def test_what_cannot_be_read_back_or_is_lossy_is_refused_with_its_reason(
    text: str, reason: str
) -> None:
    with pytest.raises(LayoutError, match=rf"codec '{text}': .* is refused: .*{reason}"):
        Codec.parse(text)


def test_the_reason_is_given_without_parsing_too() -> None:
    with pytest.raises(LayoutError, match=r"filter 'delta' is not one of .* refused: Blosc2 reads"):
        Codec(name="lz4", level=5, filter="delta")
    with pytest.raises(LayoutError, match=r"codec 'zfp_acc' is not one of .* it loses bits"):
        Codec(name="zfp_acc", level=5)


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


LOSSY = [
    Codec(name=name, level=1, filter=filter_, mantissa_bits=bits)
    for name, filter_, bits in itertools.product(("lz4", "zstd"), FILTERS, (1, 12, 22))
]


@pytest.mark.parametrize("codec", LOSSY, ids=str)
def test_lossy_codecs_say_so_and_round_trip_through_their_spelling(codec: Codec) -> None:
    assert codec.is_lossy
    assert Codec.parse(str(codec)) == codec
    assert not Codec.parse(str(codec).rpartition("-")[0]).is_lossy


def awkward(dtype: str) -> NDArray[Any]:
    values = np.random.default_rng(3).normal(0, 100, (40, 33, 21)).astype(dtype)
    limits = np.finfo(dtype)
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, limits.max, limits.tiny]
    values[0, 0, : len(special)] = special
    values[0, 1, 0] = limits.smallest_subnormal
    # Uninteresting regions compress, pure noise does not: chunks of both kinds.
    values[:20] = np.round(values[:20])
    return values


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("codec", LOSSY, ids=str)
def test_truncated_values_are_what_every_reader_reads(
    tmp_path: Path, codec: Codec, dtype: str
) -> None:
    values = awkward(dtype)
    expected = codec.truncated(values)
    path = tmp_path / "lossy.mla"
    cparams = blosc2.CParams(**codec.cparams(values.itemsize, dtype=values.dtype))
    mlarray.MLArray(expected, cparams=cparams).save(path)
    stored = blosc2.open(str(path))
    assert stored.schunk.cparams.filters[4:] == [
        blosc2.Filter.TRUNC_PREC,
        BLOSC2_FILTERS[codec.filter],
    ]
    assert stored.schunk.cparams.filters_meta == [0, 0, 0, 0, codec.mantissa_bits, 0]
    for found in (stored[...], mlarray.MLArray.open(path)[...], MlaArray(path)[...]):
        assert np.asarray(found).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("codec", LOSSY, ids=str)
def test_truncation_is_what_blosc2_does_where_it_compresses(codec: Codec, dtype: str) -> None:
    values = awkward(dtype)[:20].copy()
    params = codec.cparams(values.itemsize, dtype=values.dtype)
    packed = blosc2.compress2(values, cparams=blosc2.CParams(**params))
    assert len(packed) < values.nbytes
    assert blosc2.decompress2(packed) == codec.truncated(values).tobytes()


@pytest.mark.parametrize(("dtype", "bits"), [("f4", 23), ("f8", 52)])
@pytest.mark.parametrize("codec", LOSSY, ids=str)
def test_truncation_keeps_the_promised_bits_and_no_others(
    codec: Codec, dtype: str, bits: int
) -> None:
    values = awkward(dtype)
    before = values.copy()
    found = codec.truncated(values)
    assert values.tobytes() == before.tobytes()
    assert codec.truncated(found).tobytes() == found.tobytes()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(values))
    is_normal = np.isfinite(values) & (np.abs(values) >= np.finfo(dtype).tiny)
    a, b = values[is_normal].astype("f8"), found[is_normal].astype("f8")
    assert codec.mantissa_bits is not None
    assert (np.abs(a - b) < np.abs(a) * 2.0**-codec.mantissa_bits).all()
    assert (np.abs(b) <= np.abs(a)).all()
    mask = (1 << (bits - codec.mantissa_bits)) - 1
    assert not (found.view(f"u{found.itemsize}") & np.uint64(mask)).any()


def test_signalling_nans_stay_nans() -> None:
    values = np.array([0x7F800001, 0xFF800001], "u4").view("f4")
    found = Codec.parse("zstd-1-shuffle-trunc1").truncated(values)
    assert np.isnan(found).all()
    assert (found.view("u4") == [0x7FC00000, 0xFFC00000]).all()


def test_any_strides_are_truncated_in_place_of_none() -> None:
    codec = Codec.parse("zstd-1-shuffle-trunc3")
    values = awkward("f4")
    turned = values.transpose(2, 0, 1)[::-2]
    expected = codec.truncated(values).transpose(2, 0, 1)[::-2]
    assert codec.truncated(turned).tobytes() == expected.tobytes()
    assert codec.truncated(np.array(1.3, "f4")).shape == ()
    lossless = Codec.parse("zstd-1")
    assert lossless.truncated(values) is values


@pytest.mark.parametrize("dtype", ["i4", "u8", "c8", "c16", "f2", ">f4", ">f8", "M8[s]", "S4"])
def test_only_native_floating_point_numbers_are_truncated(dtype: str) -> None:
    codec, values = Codec.parse("zstd-1-shuffle-trunc5"), np.zeros(4, dtype)
    for truncate in (
        lambda: codec.truncated(values),
        lambda: codec.cparams(values.itemsize, dtype=values.dtype),
    ):
        with pytest.raises(LayoutError, match=r"keeps 5 mantissa bits, which .* cannot lose"):
            truncate()


def test_lossy_parameters_need_the_type_and_fewer_bits_than_it_has() -> None:
    with pytest.raises(LayoutError, match="which None cannot lose"):
        Codec.parse("zstd-1-shuffle-trunc5").cparams(4)
    wide = Codec.parse("zstd-1-shuffle-trunc23")
    assert wide.cparams(8, dtype=np.dtype("f8"))["filters_meta"] == [0, 0, 0, 0, 23, 0]
    with pytest.raises(LayoutError, match="keeps 23 mantissa bits, which float32 cannot lose"):
        wide.cparams(4, dtype=np.dtype("f4"))


@pytest.mark.parametrize("bits", [0, -1, 52, True, 5.0, "5"])
def test_kept_bits_are_integers_from_1_to_51(bits: Any) -> None:
    with pytest.raises(LayoutError, match="are not an integer from 1 to 51"):
        Codec(name="zstd", level=1, mantissa_bits=bits)


@pytest.mark.parametrize("codec", ["lz4-1-none-trunc3", Codec.parse("zstd-1-shuffle-trunc12")])
def test_nothing_lossy_is_written_unless_asked_for(tmp_path: Path, codec: str | Codec) -> None:
    values, path = np.ones((4, 4), "f4"), tmp_path / "lossy.mla"
    np.save(tmp_path / "values.npy", values)
    for write in (
        lambda: to_mla(values, path, codec=codec),
        lambda: create(path, shape=(4, 4), dtype="f4", codec=codec).__enter__(),
        lambda: convert(tmp_path / "values.npy", path, codec=codec),
    ):
        with pytest.raises(LayoutError, match=rf"'{codec}' is lossy: it keeps (3|12) bits .* fix"):
            write()
        assert os.listdir(tmp_path) == ["values.npy"]


def test_permission_to_be_lossy_changes_no_other_codec(tmp_path: Path) -> None:
    values = awkward("f4")
    for codec in ("zstd-1", "auto"):
        paths = [tmp_path / f"{codec}-{lossy}.mla" for lossy in (False, True)]
        for path, lossy in zip(paths, (False, True), strict=True):
            assert not to_mla(values, path, codec=codec, lossy=lossy).codec.is_lossy
        assert paths[0].read_bytes() == paths[1].read_bytes()
        assert MlaArray(paths[1])[...].tobytes() == values.tobytes()


def test_a_codec_is_a_value() -> None:
    codec = Codec.parse("zstd-3")
    assert pickle.loads(pickle.dumps(codec)) == codec
    assert len({codec, Codec.parse("zstd-3-shuffle"), DEFAULT_CODEC}) == 2
