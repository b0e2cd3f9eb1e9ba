from __future__ import annotations

import ast
import dataclasses
import gzip
import json
import tracemalloc
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import mlarray.meta
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import MetadataError, MlaWarning
from mlarray_xr.format.generations import up_convert
from mlarray_xr.format.limits import DEFAULT_LIMITS, Limits
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats, Storage
from mlarray_xr.format.metadata_codec import (
    decode_fixed_metadata,
    decode_metadata,
    encode_metadata,
)
from mlarray_xr.format.plain_msgpack import decode_msgpack
from mlarray_xr.format.plain_pickle import decode_pickle
from tests.stored_metadata import (
    DATA,
    GENUINE,
    HOSTILE,
    fixed_value,
    name_of,
    record_of,
    same,
    shape_of,
    variable_value,
    wrap,
    wrap_pickle,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mlarray_xr.format.metadata import Json

GENERATIONS = {"M1", "M2", "J1", "J2", "J3", "J4", "J5", "J6", "P1/P2", "P3"}
HOSTILE_SHAPE = (8, 9, 10)
MOST_PEAK_BYTES = 256 * 2**20


def decode_file(path: Path) -> Metadata:
    if path.suffix == ".mb2nd":
        return decode_fixed_metadata(fixed_value(path), shape=shape_of(path))
    return decode_metadata(variable_value(path), shape=shape_of(path))


def decode_raw(raw: object, shape: tuple[int, ...] = HOSTILE_SHAPE) -> Metadata:
    """Decode a dict as releases up to 0.0.48 stored it."""
    return decode_metadata(msgpack.packb(raw), shape=shape)


def round_trip(metadata: Metadata, shape: tuple[int, ...]) -> Metadata:
    return decode_metadata(wrap(encode_metadata(metadata)), shape=shape)


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- the genuine corpus


def test_the_corpus_holds_every_generation() -> None:
    assert len(GENUINE) > 130
    assert {record_of(path)["generation"] for path in GENUINE} == GENERATIONS


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_every_genuine_file_decodes_to_its_normalized_view(path: Path) -> None:
    expected = record_of(path)["normalized"]
    del expected["spatial"]["shape"]
    # JSON knows text keys only; the next test looks at the others.
    assert same(json.loads(json.dumps(decode_file(path).to_dict())), expected)


LOSSY = [
    path
    for path in GENUINE
    if record_of(path).get("raw_json_is_lossy")
    and "nan" not in record_of(path)["raw_metadata_repr"]
]


@pytest.mark.parametrize("path", LOSSY, ids=name_of)
def test_keys_and_leaves_keep_their_type(path: Path) -> None:
    raw = ast.literal_eval(record_of(path)["raw_metadata_repr"])
    stored = raw["source"]["data"] if "source" in raw else raw["image"]
    assert same(decode_file(path).source, listed(stored))


def test_some_genuine_files_hold_integer_keys() -> None:
    assert sum("int_keys" in name_of(path) for path in LOSSY) >= 2


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_every_genuine_file_survives_our_own_encoding(path: Path) -> None:
    metadata = decode_file(path)
    again = round_trip(metadata, shape_of(path))
    if "mmap_created_channel" in path.stem and metadata.spatial.axis_labels is None:
        storage = dataclasses.replace(metadata.blosc2, patch_size=None)
        metadata = dataclasses.replace(metadata, blosc2=storage)
    assert same(again.to_dict(), metadata.to_dict())


def test_pickles_of_other_programs_are_refused() -> None:
    pickled = (DATA / "mla" / "nnunetv2" / "case_v28.pkl").read_bytes()
    with pytest.raises(MetadataError, match="refused class or function 'numpy"):
        decode_pickle(gzip.compress(pickled), limits=DEFAULT_LIMITS)


# ---------------------------------------------------------------- the hostile corpus

BY_CATCHER = [
    name for name, entry in HOSTILE.items() if entry.get("caught_by") == "metadata decode"
]
SEMANTIC = [name for name, entry in HOSTILE.items() if entry["class"] == "semantic"]


def test_the_hostile_corpus_is_there() -> None:
    assert len(BY_CATCHER) > 20
    assert len(SEMANTIC) > 5


@pytest.mark.parametrize("name", BY_CATCHER)
def test_hostile_metadata_is_refused_within_bounded_memory(name: str) -> None:
    value = variable_value(DATA / "hostile" / name)
    tracemalloc.start()
    try:
        with pytest.raises(MetadataError):
            decode_metadata(value, shape=HOSTILE_SHAPE)
        assert tracemalloc.get_traced_memory()[1] < MOST_PEAK_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["_control_good.mla", "vlmeta_other_key_ext43.mla"])
def test_harmless_neighbours_decode(name: str) -> None:
    metadata = decode_metadata(variable_value(DATA / "hostile" / name), shape=HOSTILE_SHAPE)
    assert metadata.spatial.spacing == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("name", SEMANTIC)
def test_odd_but_safe_metadata_opens_or_is_refused(name: str) -> None:
    value = variable_value(DATA / "hostile" / name)
    if HOSTILE[name]["expect"] == "open":
        assert decode_metadata(value, shape=HOSTILE_SHAPE).has_array
    elif name == "sem_unknown_top_key.mla":
        with pytest.warns(MlaWarning, match="'foo'"):
            assert "foo" in decode_metadata(value, shape=HOSTILE_SHAPE).unknown
    else:
        with pytest.raises(MetadataError):
            decode_metadata(value, shape=HOSTILE_SHAPE)


def test_odd_spacing_is_kept_as_it_is() -> None:
    value = variable_value(DATA / "hostile" / "sem_spacing_nan_zero_neg.mla")
    spacing = decode_metadata(value, shape=HOSTILE_SHAPE).spatial.spacing
    assert same(spacing, (float("nan"), 0.0, -1.0))


# ---------------------------------------------------------------- containers


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "found nothing"),
        (b"\xa5hello", "first byte 0xa5"),
        (b"\x90", "first byte 0x90"),
        (b"\xc0", "first byte 0xc0"),
        (b"\x1f\x8b\x08", "first byte 0x1f"),
        (b"\xc5\x00", "states 0 bytes"),
        (b"\xc6\xff\xff\xff\xffabc", "states 4294967295 bytes of content, found 3"),
        (b"\xc4\x01ab", "states 1 bytes of content, found 2"),
        (b"\xc4\x00", "breaks off"),
        (b"\x80\x00", "msgpack value, found ExtraData"),
        (b"\x81\xa1a", "incomplete input"),
    ],
)
def test_unknown_containers_are_refused(value: bytes, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        decode_metadata(value, shape=HOSTILE_SHAPE)


def test_the_value_limit_counts_before_decoding() -> None:
    with pytest.raises(MetadataError, match="may take 9 bytes, found 10"):
        decode_metadata(b"\xc6" + bytes(9), shape=(1,), limits=Limits(value_bytes=9))


@pytest.mark.parametrize("value", [b"\x90", b"\xc0", b"\xa0"])
def test_the_fixed_metalayer_holds_a_map(value: bytes) -> None:
    with pytest.raises(MetadataError, match="must hold a msgpack map"):
        decode_fixed_metadata(value, shape=(1,))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (msgpack.packb({"a": b"x"}), "found bytes"),
        (msgpack.packb({b"a": 1}), "found bytes"),
        (msgpack.packb({"a": msgpack.ExtType(42, b"abc")}), "extension type 42 of 3 bytes"),
        (msgpack.packb({"a": msgpack.Timestamp(1)}), "found Timestamp"),
        (b"\x81\x90\x01", "unhashable"),
        (b"\x91" * 300 + b"\x90", "nested"),
        (b"\x91" * 100_000 + b"\x90", "msgpack"),
        (b"\xdd\xff\xff\xff\xff", "max_array_len"),
        (b"\xdf\xff\xff\xff\xff", "max_map_len"),
        (b"\xa2\xc3\x28", "UnicodeDecodeError"),
    ],
)
def test_msgpack_abuse_is_refused(value: bytes, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        decode_msgpack(value, limits=DEFAULT_LIMITS)


def test_msgpack_bombs_stop_while_they_are_built() -> None:
    limits = Limits(nodes=1000)
    bomb = b"\xdc\x00\x0a" + (b"\xdc\x03\xe8" + b"\x80" * 1000) * 10
    with pytest.raises(MetadataError, match="more than 1000 entries"):
        decode_msgpack(bomb, limits=limits)
    with pytest.raises(MetadataError, match="over the limit of 4"):
        decode_msgpack(b"\x94\x01\x01\x01\x01", limits=Limits(value_bytes=4))


def test_msgpack_speaks_the_dialect_of_python_blosc2() -> None:
    value = msgpack.packb(
        {1: ["__tuple__", ["__tuple__", 1], []], "n": [float("inf"), 2**64 - 1, -(2**63)]}
    )
    expected: dict[Json, Json] = {1: [[1], []], "n": [float("inf"), 2**64 - 1, -(2**63)]}
    assert same(decode_msgpack(value, limits=DEFAULT_LIMITS), expected)


# ---------------------------------------------------------------- conversion


def test_only_flat_metadata_keeps_a_lone_data_key() -> None:
    assert decode_raw({"image": None, "extra": {"data": {"x": 1}}}).extra == {"data": {"x": 1}}
    assert decode_raw({"original": None, "extra": {"data": {"x": 1}}}).extra == {"x": 1}
    kept = {"data": {"x": 1}, "y": 2}
    assert decode_raw({"source": None, "extra": kept}).extra == kept


def test_missing_entries_take_defaults() -> None:
    assert decode_raw({}) == Metadata()
    assert decode_raw({"_has_array": True}) == Metadata(has_array=True)
    assert decode_raw({"_has_array": {"has_array": None}, "spatial": None, "bbox": None}) == (
        Metadata()
    )
    assert decode_fixed_metadata(b"\x80", shape=(1,)) == Metadata(has_array=True)


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        (0, ("channel", "spatial", "spatial")),
        (-1, ("spatial", "spatial", "channel")),
        (-3, ("channel", "spatial", "spatial")),
        (3, None),
        (-4, None),
        (None, None),
    ],
)
def test_channel_axis_becomes_labels(axis: int | None, labels: tuple[str, ...] | None) -> None:
    raw = {"image": None, "_has_array": True, "spatial": {"channel_axis": axis}}
    assert decode_raw(raw).spatial.axis_labels == labels


def test_channel_axis_without_array_counts_from_the_geometry() -> None:
    raw = {"image": None, "_has_array": False}
    spatial = {"channel_axis": -1, "origin": [0, 0]}
    labels = ("spatial", "spatial", "channel")
    assert decode_raw({**raw, "spatial": spatial}, (0,)).spatial.axis_labels == labels
    assert decode_raw({**raw, "spatial": {"channel_axis": -1}}, (0,)).spatial == Spatial()


def test_affine_wins_over_the_triple() -> None:
    affine = [[1, 0, 5], [0, 2, 6], [0, 0, 1]]
    raw = {"_has_array": True, "spatial": {"affine": affine, "spacing": ["never", "read"]}}
    spatial = decode_raw(raw, (4, 5)).spatial
    assert spatial == Spatial(affine=((1, 0, 5), (0, 2, 6), (0, 0, 1)))


def test_whole_floats_of_a_patch_size_become_ints() -> None:
    assert same(decode_raw({"blosc2": {"patch_size": [16.0, 8]}}).blosc2.patch_size, (16, 8))
    with pytest.raises(MetadataError, match=r"blosc2\.patch_size must be extents, found float"):
        decode_raw({"blosc2": {"patch_size": [16.5, 8]}})


@pytest.mark.parametrize(
    ("spatial", "message"),
    [
        ({"spacing": ["1", "1", "1"]}, r"spacing must be numbers, found str at \[0\]"),
        ({"spacing": [1, None, 1]}, r"spacing must be numbers, found NoneType at \[1\]"),
        ({"spacing": [[1], 1, 1]}, r"spacing must be numbers, found tuple|list at \[0\]"),
        ({"spacing": 1.0}, "spacing must be a tuple of numbers or None, found float"),
        ({"spacing": {"x": 1}}, "found dict"),
        ({"spacing": [1, 1]}, r"for 3 spatial axes of the array of shape \(8, 9, 10\).* for 2"),
        ({"origin": [1] * 4}, "for 3 spatial axes .* for 4"),
        ({"direction": [[1, 0], [0, 1]]}, "for 3 spatial axes .* for 2"),
        ({"direction": [1, 0, 0]}, "direction must be rows of numbers, found int"),
        ({"direction": [[1, 0, 0], [0, 1, 0]]}, "as many columns as rows, found 2 rows"),
        ({"direction": [[1, 0, "0"]] * 3}, "direction must be rows of numbers"),
        ({"affine": [[1] * 3] * 3}, "for 3 spatial axes .* for 2"),
        ({"affine": []}, "for 3 spatial axes .* for -1"),
        ({"axis_labels": ["spatial"]}, r"3 labels for the array of shape \(8, 9, 10\), found 1"),
        ({"axis_labels": ["a", 1, "c"]}, r"axis_labels must be texts, found int at \[1\]"),
        (
            {"axis_labels": ["a", "b", "c"], "spacing": [1, 1, 1]},
            "spacing for 3, axis_labels for 0",
        ),
        ({"spacing": [1, 1, 1], "origin": [1, 1]}, "spacing for 3, origin for 2"),
        ({"coord_system": 1}, "coord_system must be a text or None, found int"),
        ({"channel_axis": "0"}, "channel_axis must be an int or None, found str"),
        ([1], "spatial must be a dict or None, found list"),
    ],
)
def test_geometry_that_does_not_fit_is_refused(spatial: Any, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        decode_raw({"_has_array": True, "spatial": spatial})


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"_has_array": 1}, "has_array must be bool, found int"),
        ({"_has_array": "yes"}, "has_array must be bool, found str"),
        ({"is_seg": 1}, "is_seg must be True, False or None, found int"),
        ({"source": [1]}, "source must be dict, found list"),
        ({"extra": "x"}, "extra must be dict, found str"),
        ({"stats": {"min": "0"}}, r"stats\.min must be a number or None, found str"),
        ({"stats": [1]}, "stats must be a dict or None, found list"),
        ({"bbox": "x"}, "bbox must be a dict or None, found str"),
        ({"bbox": [[[0, 1, 2]]]}, "bboxes must be .* found tuple at"),
        ({"bbox": [[[0, True]]]}, "bboxes must be"),
        ({"bbox": {"bboxes": [[[0, 1]]], "scores": []}}, "one entry for each of 1 boxes, found 0"),
        ({"bbox": {"labels": [True]}}, "labels must be texts or numbers, found bool"),
        ({"blosc2": {"chunk_size": ["x"]}}, "chunk_size must be extents, found str"),
        ({"blosc2": {"block_size": [-1]}}, "block_size must be extents, found int"),
        ({"blosc2": {"cparams": [1]}}, "cparams must be a dict or None, found list"),
        ({"_image_meta_format": 1}, "image_meta_format must be a text or None, found int"),
        ({"_mlarray_version": 1}, "mlarray_version must be str, found int"),
    ],
)
def test_wrong_types_are_refused(raw: Any, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        decode_raw(raw)


def test_integers_over_64_bit_are_no_geometry() -> None:
    assert Spatial(spacing=(2**64 - 1,)).spacing == (2**64 - 1,)
    with pytest.raises(MetadataError, match="numbers, found int"):
        Spatial(spacing=(2**64,))


def test_unknown_entries_are_kept_on_top_and_named() -> None:
    raw = {"future": [1], 7: "x", "source": {"data": {"a": 1}}, "original": {"b": 2}}
    with pytest.warns(MlaWarning, match="'future', 7, 'original': they are kept"):
        metadata = decode_raw(raw)
    assert metadata.unknown == {"future": [1], 7: "x", "original": {"b": 2}}
    assert round_trip(metadata, HOSTILE_SHAPE) == metadata


@pytest.mark.parametrize("section", ["spatial", "stats", "bbox", "blosc2"])
def test_unknown_entries_of_a_section_are_named_and_ignored(section: str) -> None:
    with pytest.warns(MlaWarning, match=f"in {section} .*'future': they are ignored"):
        assert decode_raw({section: {"future": 1}}) == Metadata()


def test_warnings_stay_short() -> None:
    with pytest.warns(MlaWarning, match=r"and 9992 more") as caught:
        decode_raw({f"{i}" + "x" * 1000: 1 for i in range(10_000)})
    assert len(str(caught[0].message)) < 1000


def test_unknown_entries_join_other_data_of_ours() -> None:
    metadata = Metadata(extra={"mlarray_xr": {"crc": 1}, "a": 2}, unknown={"future": 1})
    raw = decode_pickle(encode_metadata(metadata), limits=DEFAULT_LIMITS)
    assert "future" not in raw
    assert raw["extra"]["data"]["mlarray_xr"] == {"crc": 1, "unknown": {"future": 1}}  # type: ignore[index,call-overload]
    assert round_trip(metadata, (0,)) == metadata


@pytest.mark.parametrize("own", ["text", {"unknown": {}}])
def test_unknown_entries_need_their_place(own: Json) -> None:
    with pytest.raises(MetadataError, match="to carry unknown entries"):
        encode_metadata(Metadata(extra={"mlarray_xr": own}, unknown={"future": 1}))


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "build",
    [
        lambda: Spatial(spacing=[1.0]),  # type: ignore[arg-type]
        lambda: Spatial(spacing=(np.float64(1),)),
        lambda: Spatial(spacing=(1,), affine=((1, 0), (0, 1))),
        lambda: Stats(min="0"),  # type: ignore[arg-type]
        lambda: Boxes(scores=("x",)),  # type: ignore[arg-type]
        lambda: Storage(chunk_size=(1.0,)),  # type: ignore[arg-type]
        lambda: Metadata(source=None),  # type: ignore[arg-type]
        lambda: Metadata(spatial=None),  # type: ignore[arg-type]
        lambda: Metadata.from_dict({"colour": 1}),
        lambda: Metadata.from_dict({"spatial": {"shape": [1]}}),
        lambda: Metadata.from_dict({"spatial": None}),
    ],
)
def test_values_are_checked_at_birth(build: Any) -> None:
    with pytest.raises(MetadataError, match="To fix: "):
        build()


def test_repr_shows_geometry_and_sizes_only() -> None:
    metadata = Metadata(
        source={"PatientName": "Doe"},
        extra={"SECRET": "SECRET"},
        unknown={"SECRET": 1},
        bbox=Boxes(bboxes=(((0, 1),),), labels=("SECRET",)),
        blosc2=Storage(cparams={"SECRET": 1}, dparams={"SECRET": 1}),
        spatial=Spatial(spacing=(1, 2), axis_units=["SECRET"]),
    )
    assert repr(metadata) == (
        "Metadata(spatial=Spatial(spacing=(1, 2)), is_seg=None, has_array=False, "
        "source=1 keys, extra=1 keys, unknown=1 keys)"
    )
    assert "SECRET" not in f"{metadata.bbox!r}{metadata.blosc2!r}{metadata.spatial!r}"


def test_errors_show_no_values() -> None:
    with pytest.raises(MetadataError) as caught:
        decode_raw({"spatial": {"spacing": ["SECRET"]}, "source": {"a": "SECRET"}})
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_limits_are_positive_ints(field: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"Limits.{field} must be a positive int"):
        Limits(**{field: number})


# ---------------------------------------------------------------- encoding

numbers = st.integers(-(2**63), 2**64 - 1) | st.floats()
free: st.SearchStrategy[dict[Any, Any]] = st.dictionaries(
    st.text(max_size=6) | st.integers(-(2**63), 2**63),
    st.recursive(
        st.none() | st.booleans() | numbers | st.text(st.characters(), max_size=10),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
        ),
        max_leaves=10,
    ),
    max_size=4,
)
units: st.SearchStrategy[Any] = st.none() | st.lists(st.text(max_size=3), max_size=3)
cparams: st.SearchStrategy[Any] = st.none() | st.just({"codec": 5, "filters": [0, 1]})
labels = st.sampled_from(["spatial", "spatial_x", "spatial_z", "channel", "temporal", "energy"])


def vectors(size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*[numbers] * size)


def squares(size: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(*[vectors(size)] * size)


@st.composite
def metadata_with_shape(draw: st.DrawFn) -> tuple[Metadata, tuple[int, ...]]:
    """Draw metadata that fits an array, and the shape of that array."""
    has_array = draw(st.booleans())
    ndim = draw(st.integers(1, 5))
    axis_labels = draw(st.none() | st.tuples(*[labels] * ndim))
    count = len(Spatial(axis_labels=axis_labels).spatial_axes(ndim=ndim))
    maybe = st.none() | vectors(count)
    if draw(st.booleans()):
        spatial = Spatial(
            axis_labels=axis_labels,
            spacing=draw(maybe),
            origin=draw(maybe),
            direction=draw(st.none() | squares(count)),
            coord_system=draw(st.none() | st.text(max_size=5)),
            axis_units=draw(units),
        )
    else:
        spatial = Spatial(axis_labels=axis_labels, affine=draw(squares(count + 1)))
    boxes = st.lists(st.tuples(*[st.tuples(numbers, numbers)] * count), max_size=3)
    found = draw(st.none() | boxes.map(tuple))
    scores = None if found is None else draw(st.none() | vectors(len(found)))
    sizes = st.tuples(*[st.integers(1, 300)] * ndim)
    metadata = Metadata(
        source=draw(free),
        extra=draw(free),
        spatial=spatial,
        stats=Stats(min=draw(st.none() | numbers), percentile_max_key=draw(st.none() | numbers)),
        bbox=Boxes(bboxes=found, scores=scores),
        is_seg=draw(st.none() | st.booleans()),
        blosc2=Storage(
            chunk_size=draw(st.none() | sizes),
            patch_size=draw(st.none() | st.tuples(*[st.integers(1, 300)] * count)),
            cparams=draw(cparams),
        ),
        has_array=has_array,
        image_meta_format=draw(st.none() | st.text(max_size=5)),
        unknown=draw(free),
    )
    return metadata, (2,) * ndim if has_array else (0,)


@given(drawn=metadata_with_shape())
def test_encoding_loses_nothing(drawn: tuple[Metadata, tuple[int, ...]]) -> None:
    metadata, shape = drawn
    again = round_trip(metadata, shape)
    assert same(again.to_dict(), metadata.to_dict())
    assert same(again.unknown, metadata.unknown)
    assert encode_metadata(again) == encode_metadata(metadata)


@given(drawn=metadata_with_shape())
def test_dicts_lose_nothing(drawn: tuple[Metadata, tuple[int, ...]]) -> None:
    metadata = dataclasses.replace(drawn[0], unknown={})
    again = Metadata.from_dict(metadata.to_dict())
    assert same(again.to_dict(), metadata.to_dict())


@given(drawn=metadata_with_shape())
def test_the_schema_of_the_reference_accepts_what_we_encode(
    drawn: tuple[Metadata, tuple[int, ...]],
) -> None:
    metadata, _ = drawn
    raw = decode_pickle(encode_metadata(metadata), limits=DEFAULT_LIMITS)
    theirs = mlarray.meta.Meta.from_mapping(raw)
    ours = metadata.to_dict()
    assert same(theirs.source.data, ours["source"])
    for name in ("spacing", "origin", "direction", "affine", "axis_labels", "coord_system"):
        assert same(getattr(theirs.spatial, name), ours["spatial"][name])
    assert theirs.stats.min is metadata.stats.min or same(theirs.stats.min, metadata.stats.min)
    assert theirs.is_seg.value is metadata.is_seg


def test_encoded_bytes_are_reproducible_and_plain() -> None:
    first = Metadata(extra={"a": ["same" * 3, "".join(["same"] * 3)]})
    second = Metadata(extra={"a": ["same" * 3] * 2})
    assert encode_metadata(first) == encode_metadata(second)
    header = encode_metadata(first)[:9]
    assert header[4:8] == bytes(4)
    assert b"coord_system" not in gzip.decompress(encode_metadata(first))
    stated = Metadata(spatial=Spatial(coord_system="LPS"))
    assert b"coord_system" in gzip.decompress(encode_metadata(stated))


def deep(levels: int) -> Json:
    value: Json = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"a": np.float32(1)}, "found float32"),
        ({"a": b"x"}, "found bytes"),
        ({"a": {1, 2}}, "found set"),
        ({("a",): 1}, "found tuple"),
        ({2**64: 1}, "must fit 64 bit, found 65 bit"),
        ({"a": 2**2040}, "at most 255 bytes in one int"),
        ({"a": deep(5000)}, "at most 200 nested"),
        ({"a": "x" * (32 * 2**20 + 1)}, "bytes of text"),
        ({"a": [0.5] * 1_000_000, "b": [""] * 1_100_000}, "at most 2000000 entries"),
    ],
)
def test_what_we_could_not_read_back_is_not_written(extra: Any, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        encode_metadata(Metadata(extra=extra))


CASES = [
    (Metadata(has_array=True), (6, 7)),
    (
        Metadata(
            source={"Größe": "µm", "n": [1, None, {"a": 2}]},
            spatial=Spatial(
                spacing=(3.0, 0.75, 2),
                origin=(10.0, -20.5, 0),
                direction=((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
                axis_labels=("channel", "spatial_z", "spatial_y", "spatial_x"),
                coord_system="LPS",
                axis_units=["", "mm", "mm", "mm"],
            ),
            is_seg=True,
            blosc2=Storage(patch_size=(4, 5, 6)),
            unknown={"future": 1},
            has_array=True,
        ),
        (2, 4, 5, 6),
    ),
    (
        Metadata(
            spatial=Spatial(affine=((0.5, 0.1, -10.0), (0.0, 2.0, 30.5), (0.0, 0.0, 1.0))),
            stats=Stats(min=0, max=2.5),
            bbox=Boxes(bboxes=(((0, 1), (2.5, 3)),), scores=(0.5,), labels=("x",)),
            has_array=True,
        ),
        (4, 5),
    ),
    # A patch size that misses a spatial axis: the reference refuses such a file.
    (Metadata(blosc2=Storage(chunk_size=(2, 4, 5), patch_size=(4, 5)), has_array=True), (2, 4, 5)),
]


@pytest.mark.parametrize(("metadata", "shape"), CASES)
def test_the_reference_opens_what_we_encode(
    tmp_path: Path, metadata: Metadata, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "ours.mla"
    voxels = np.arange(np.prod(shape), dtype="int16").reshape(shape)
    stored = blosc2.asarray(voxels, urlpath=str(path), mode="w")
    stored.schunk.vlmeta["mlarray"] = encode_metadata(metadata)
    del stored

    theirs = mlarray.MLArray(path)
    np.testing.assert_array_equal(theirs[...], voxels)
    spatial = metadata.to_dict()["spatial"]
    assert theirs.meta.spatial.spacing == spatial["spacing"]
    assert theirs.meta.spatial.origin == spatial["origin"]
    assert theirs.meta.spatial.direction == spatial["direction"]
    assert theirs.meta.spatial.affine == spatial["affine"]
    assert theirs.meta.spatial.axis_labels == spatial["axis_labels"]
    assert theirs.meta.spatial.coord_system == spatial["coord_system"]
    assert theirs.meta.source.data == metadata.source
    assert theirs.meta.bbox.bboxes == metadata.to_dict()["bbox"]["bboxes"]
    assert theirs.meta.is_seg.value is metadata.is_seg
    assert decode_metadata(variable_value(path), shape=shape).unknown == metadata.unknown


# ---------------------------------------------------------------- damage


@cache
def sample_values() -> list[tuple[bytes, tuple[int, ...]]]:
    """Return one value per generation of the variable-length entry."""
    paths = {record_of(path)["generation"]: path for path in GENUINE if path.suffix == ".mla"}
    return [(variable_value(path), shape_of(path)) for path in paths.values()]


def decode_anything(value: bytes, shape: tuple[int, ...]) -> None:
    """Decode; nothing but a plain result or the typed error may come of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MlaWarning)
        try:
            metadata = decode_metadata(value, shape=shape)
        except MetadataError:
            return
    assert len(repr(metadata)) < 5000


damages = st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=4)


@given(which=st.integers(0, 7), damage=damages, cut=st.none() | st.integers(0, 2**12))
def test_damage_ends_in_the_typed_error(
    which: int, damage: list[tuple[int, int]], cut: int | None
) -> None:
    value, shape = sample_values()[which]
    flipped = bytearray(value)
    for place, mask in damage:
        flipped[place % len(value)] ^= mask
    decode_anything(bytes(flipped[:cut]), shape)


@given(which=st.integers(6, 7), damage=damages, cut=st.none() | st.integers(0, 2**12))
def test_damage_below_the_checksum_ends_in_the_typed_error(
    which: int, damage: list[tuple[int, int]], cut: int | None
) -> None:
    value, shape = sample_values()[which]
    assert value[0] == 0xC5
    flipped = bytearray(gzip.decompress(value[3:]))
    for place, mask in damage:
        flipped[place % len(flipped)] ^= mask
    decode_anything(wrap_pickle(bytes(flipped[:cut])), shape)


@given(value=st.binary(max_size=200))
def test_any_bytes_end_in_the_typed_error(value: bytes) -> None:
    decode_anything(value, (4, 5))
    decode_anything(wrap_pickle(value), (4, 5))
    decode_anything(b"\x81\xa7spatial" + value, (4, 5))


@given(
    raw=st.dictionaries(
        st.sampled_from(["image", "source", "spatial", "bbox", "_blosc2", "_has_array", "header"])
        | st.text(max_size=3),
        st.dictionaries(
            st.sampled_from(["spacing", "affine", "axis_labels", "channel_axis", "bboxes", "data"]),
            st.recursive(
                st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
                lambda inner: st.lists(inner, max_size=4),
                max_leaves=8,
            ),
        )
        | st.none()
        | st.booleans(),
        max_size=6,
    ),
    flat=st.booleans(),
    ndim=st.integers(0, 4),
)
def test_any_plain_dict_converts_or_ends_in_the_typed_error(
    raw: dict[Any, Any], flat: bool, ndim: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MlaWarning)
        try:
            metadata = up_convert(raw, shape=(2,) * ndim, flat=flat)
        except MetadataError:
            return
    assert same(round_trip(metadata, (2,) * ndim).unknown, metadata.unknown)
