"""Folders that nnU-Net has preprocessed, and pickles of arrays that are read, never executed."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import struct
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlarray_xr.errors import ConversionError, MetadataError, SourceError
from mlarray_xr.format.limits import Limits
from mlarray_xr.format.pickle_arrays import decode_array_pickle
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.nnunet import read_nnunet_properties
from mlarray_xr.planning.padding import Padding
from mlarray_xr.planning.patch_place import place_from

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

PROTOCOLS = (2, 3, 4, 5)
RNG = np.random.default_rng(0)


def properties(n_locations: int = 500) -> dict[str, Any]:
    """What nnU-Net notes of a case, types included."""
    locations = RNG.integers(0, 90, (n_locations, 4))
    return {
        "sitk_stuff": {
            "spacing": (0.8, 0.8, 2.5),
            "origin": (-10.0, 4.5, 0.0),
            "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        },
        "nibabel_stuff": {"original_affine": np.diag([0.8, 0.8, 2.5, 1.0])},
        "spacing": [np.float64(2.5), 0.8, 0.8],
        "shape_before_cropping": (64, np.int64(90), 90),
        "bbox_used_for_cropping": [[0, 64], [np.int64(3), np.int32(90)], [0, 90]],
        "shape_after_cropping_and_before_resampling": (64, 87, 90),
        "class_locations": collections.OrderedDict(
            {1: locations, np.int64(2): [], (1, 2): locations[::2], 3: np.zeros((0, 4), np.int64)}
        ),
        "notes": collections.defaultdict(list, {"crop": [np.bool_(True), None, "ä"]}),
        "intensities": np.array([0.5, 1.5], np.float32),
    }


def plain(value: Any) -> Any:
    """Return what must be read: Python's own types, lists for tuples, native arrays."""
    if isinstance(value, dict):
        return {
            key.item() if isinstance(key, np.generic) else key: plain(v) for key, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def check_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            check_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_same(one, other)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected, strict=True)
        assert found.flags.writeable
    else:
        assert found == expected or (found != found and expected != expected)


def read(folder: Path, data: bytes) -> dict[str, Any]:
    path = folder / "case.pkl"
    path.write_bytes(data)
    return read_nnunet_properties(path)


# Properties


@pytest.mark.parametrize("n_locations", [3, 5000])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_properties_are_read_as_unpickling_would(
    tmp_path: Path, protocol: int, n_locations: int
) -> None:
    value = properties(n_locations)
    with (tmp_path / "case.pkl").open("wb") as file:
        pickle.dump(value, file, protocol=protocol)
    check_same(read_nnunet_properties(tmp_path / "case.pkl"), plain(value))


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | hnp.from_dtype(np.dtype("f4")).map(np.float32)
    | st.integers(-(2**63), 2**63 - 1).map(np.int64)
    | hnp.arrays(
        hnp.integer_dtypes(endianness="=")
        | hnp.unsigned_integer_dtypes(endianness="=")
        | hnp.floating_dtypes(endianness="=", sizes=(16, 32, 64))
        | hnp.boolean_dtypes(),
        hnp.array_shapes(min_dims=0, min_side=0, max_side=4),
    ).map(lambda array: array.T)
)
keys = (
    st.text(max_size=8)
    | st.integers(-(2**63), 2**63)
    | st.lists(st.integers(-1, 300), max_size=3).map(tuple)
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.dictionaries(keys, inner, max_size=4).map(collections.OrderedDict)
        | st.dictionaries(keys, inner, max_size=4).map(
            lambda d: collections.defaultdict(int, d),
        )
    ),
    max_leaves=15,
)


def decode(data: bytes, **limits: int) -> dict[Any, Any]:
    """Decode in memory; arrays are loaded."""

    def load(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: load(item) for key, item in value.items()}
        if isinstance(value, list):
            return [load(item) for item in value]
        return value.load(lambda a, b: data[a:b]) if hasattr(value, "load") else value

    chosen = {"limits": Limits(**limits)} if limits else {}
    return load(decode_array_pickle(lambda a, b: data[a:b], size=len(data), **chosen))  # type: ignore[no-any-return]


@given(st.dictionaries(keys, trees, max_size=5), st.sampled_from(PROTOCOLS))
def test_any_values_are_read_as_unpickling_would(value: dict[Any, Any], protocol: int) -> None:
    check_same(decode(pickle.dumps(value, protocol)), plain(value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_byte_orders_and_layouts_become_native(protocol: int) -> None:
    values = np.arange(3000, dtype=">i8").reshape(10, 30, 10)
    for array in (values, np.asfortranarray(values), values[::2, 1:], values.T):
        found = decode(pickle.dumps({"a": array}, protocol))["a"]
        assert found.dtype == np.int64
        assert found.dtype.isnative
        np.testing.assert_array_equal(found, array)


def test_pickles_of_older_numpy_are_read() -> None:
    value = {"a": np.arange(4), "b": np.float64(2)}
    for protocol in PROTOCOLS:
        data = pickle.dumps(value, protocol).replace(b"numpy._core.", b"numpy.core.")
        # One byte less in two names of protocol 4 and 5, whose lengths are stated.
        for name in (b"numpy.core.multiarray", b"numpy.core.numeric"):
            data = data.replace(bytes([len(name) + 1]) + name, bytes([len(name)]) + name)
        frame = data.find(b"\x95", 0, 3)
        if frame == 2:
            data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]
        check_same(decode(data), plain(value))


def test_shared_arrays_are_read_once() -> None:
    shared = np.arange(100_000)
    found = decode(pickle.dumps({"a": shared, "b": [shared, shared]}))
    np.testing.assert_array_equal(found["b"][1], shared)


def test_large_arrays_are_read_when_they_are_wanted() -> None:
    data = pickle.dumps({"class_locations": {c: np.zeros((50_000, 4), "i8") for c in range(8)}})
    read_bytes = 0

    def counted(start: int, stop: int) -> bytes:
        nonlocal read_bytes
        read_bytes += stop - start
        return data[start:stop]

    found = decode_array_pickle(counted, size=len(data))
    assert read_bytes < 64 * 1024
    assert len(data) > 12_000_000
    assert found["class_locations"][7].load(counted).shape == (50_000, 4)


# Hostile files


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.result = (call, arguments)

    def __reduce__(self) -> Any:
        return self.result


class Stateful:
    def __init__(self) -> None:
        self.state = 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value",
    [
        Evil(os.system, "touch executed"),
        Evil(eval, "open('executed', 'w')"),
        Evil(exec, "open('executed', 'w')"),
        Evil(__import__, "this"),
        Evil(collections.OrderedDict, [("a", 1)]),
        Evil(bytes, 10**9),
        Evil(list, (1, 2)),
        Evil(np.zeros, 10**9),
        Evil(np.dtype, "O", False, True),
        Stateful(),
        np.array([{}, Evil(os.system, "touch executed")], object),
        np.array(["text"]),
        np.zeros(2, [("a", "i4")]),
        np.datetime64("2026-01-01"),
        np.ma.masked_array([1], [True]),
        np.float64,
        {1, 2},
        1j,
        b"bytes",
        np.dtype("i4"),
        {3.5j: 1},
        {((1, 2), 3): 1},
        {("a",): 1},
        {frozenset(): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_plain_is_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    sys.modules.pop("this", None)
    data = pickle.dumps({"spacing": [1.0], "x": value}, protocol)
    with pytest.raises(MetadataError, match=r"case\.pkl: a pickle of plain values"):
        read(tmp_path, data)
    assert sorted(os.listdir(tmp_path)) == ["case.pkl"]
    assert "this" not in sys.modules


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def symbol(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def entry(value: bytes) -> bytes:
    """Pickle a dict with the one key `a`."""
    return b"\x80\x05}" + text("a") + value + b"s."


def dtype(code: str, order: str = "<") -> bytes:
    state = b"(K\x03" + text(order) + b"tb"
    return symbol("numpy", "dtype") + text(code) + b"\x89\x88\x87R" + state


def integer(n: int) -> bytes:
    raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def array(code: str, shape: tuple[int, ...], raw: bytes, order: str = "C") -> bytes:
    """Spell an array of protocol 5, whatever it claims."""
    extents = b"(" + b"".join(map(integer, shape)) + b"t"
    return (
        symbol("numpy._core.numeric", "_frombuffer")
        + b"("
        + raw
        + dtype(code)
        + extents
        + text(order)
        + b"tR"
    )


def stretch(count: int) -> bytes:
    return b"\x96" + struct.pack("<Q", count) + bytes(count)


SCALAR = symbol("numpy._core.multiarray", "scalar")
RECONSTRUCT = symbol("numpy._core.multiarray", "_reconstruct")
EMPTY = RECONSTRUCT + symbol("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"


def test_the_spellings_of_these_tests_are_right() -> None:
    for raw in (stretch(32), stretch(32_000)):
        size = len(raw) - 9
        found = decode(entry(array("i8", (size // 16, 2), raw)))["a"]
        np.testing.assert_array_equal(found, np.zeros((size // 16, 2), "i8"), strict=True)
    state = b"(K\x01K\x02\x85" + dtype("i2") + b"\x89C\x04" + bytes(4) + b"tb"
    np.testing.assert_array_equal(decode(entry(EMPTY + state))["a"], np.zeros(2, "i2"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (array("i8", (2**40,), stretch(8)), "8 bytes for a NumPy array of another size"),
        (array("i8", (2**62, 2**62), stretch(8)), "another size"),
        (array("i8", (-1,), stretch(8)), "another size"),
        (array("i8", (0, 2**62, 2**62), stretch(0)), "extents that no memory has"),
        (array("i8", (0,) * 33, stretch(0)), "another size"),
        (array("i8", (1,), b"K\x08"), "a NumPy array of int"),
        (array("i8", (1,), text("12345678")), "a NumPy array of str"),
        (array("i8", (1,), stretch(8), order="A"), "unknown arguments"),
        (array("O", (1,), stretch(8)), "a NumPy array of type 'O'"),
        (array("O8", (1,), stretch(8)), "a NumPy array of type 'O8'"),
        (array("V8", (1,), stretch(8)), "a NumPy array of type 'V8'"),
        (array("f16", (1,), stretch(16)), "a NumPy array of type 'f16'"),
        (b"\x96" + struct.pack("<Q", 2**62), "a length of 4611686018427387904 bytes"),
        (b"\x8e" + struct.pack("<Q", 2**63), "a length of 9223372036854775808 bytes"),
        (b"B" + struct.pack("<I", 2**32 - 1), "a length of 4294967295 bytes"),
        (EMPTY, "without its state"),
        (EMPTY + b"]b", "an unknown state"),
        (EMPTY + b"(K\x01K\x02\x85" + dtype("i2") + b"\x89]tb", "a NumPy array of list"),
        (EMPTY + b"(K\x01K\x02\x85K\x07\x89C\x04" + bytes(4) + b"tb", "an unknown state"),
        (RECONSTRUCT + symbol("numpy", "ndarray") + b"K\x09\x85C\x01b\x87R", "unknown class"),
        (RECONSTRUCT + symbol("builtins", "list") + b"K\x00\x85C\x01b\x87R", "unknown class"),
        (symbol("numpy", "ndarray") + b"K\x00\x85R", "may only be named"),
        (symbol("numpy", "ndarray"), "a Symbol on its own"),
        (symbol("builtins", "int") + b"K\x00\x85R", "may only be named"),
        (symbol("builtins", "bytes") + b"K\x09\x85R", "bytes with arguments"),
        (symbol("collections", "defaultdict") + b"K\x09\x85R", "defaultdict of something"),
        (symbol("_codecs", "encode") + text("x") + text("rot13") + b"\x86R", "an encoding other"),
        (symbol("numpy._core.multiarray", "scalar") + dtype("i8") + b"C\x01x\x86R", "no number"),
        (
            symbol("numpy._core.multiarray", "scalar") + dtype("O8") + stretch(8) + b"\x86R",
            "number",
        ),
        (dtype("i8"), "a Dtype on its own"),
        (symbol("numpy", "dtype") + text("i8") + b"\x89\x88\x87R", "a Dtype on its own"),
        (stretch(5000), "a Stretch on its own"),
        (b"cos\nsystem\n" + text("touch executed") + b"\x85R", "'os' 'system'"),
        (b"c" + b"x" * 500, "the name of a class of more than 128 bytes"),
        (b"cos", "a length of 1 bytes with 0 left"),
        (b"\xff", "refused pickle opcode 0xff"),
        (b"\x82\x01", "refused pickle opcode 0x82"),
        (b"\x81", "refused pickle opcode 0x81"),
        (b"\x97", "refused pickle opcode 0x97"),
        (b"Pid\n", "refused pickle opcode 0x50"),
    ],
)
def test_arrays_that_lie_are_refused(value: bytes, message: str) -> None:
    data = entry(value)
    if message.endswith("0 left"):
        data = data[:-2]
    with pytest.raises(MetadataError, match=message):
        decode(data)


def test_nothing_below_protocol_2_and_no_other_root_is_read() -> None:
    for protocol in (0, 1):
        with pytest.raises(MetadataError, match=r"no pickle of protocol 2 to 5"):
            decode(pickle.dumps({"a": 1}, protocol))
    roots: tuple[Any, ...] = ([], None, np.zeros(3))
    for root in roots:
        with pytest.raises(MetadataError, match="where the root dict must be"):
            decode(pickle.dumps(root))


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMBS = {
    "deep lists": entry(b"]" * 5000 + b"a" * 4999),
    "deep tuples": entry(b")" + b"\x85" * 5000),
    "wide lists": entry(b"](" + b"]" * 60_000 + b"e"),
    "many marks": b"\x80\x05" + b"(" * 120_000,
    "shared lists": b"\x80\x05}(K\x00]\x94"
    + b"".join(
        b"K" + bytes([i + 1]) + b"](" + (b"h" + bytes([i])) * 10 + b"e\x94" for i in range(12)
    )
    + b"u.",
    "tuple keys": b"\x80\x05}(" + b"".join(integer(i) + b"\x85N" for i in range(5000)) + b"u.",
    "colliding keys": b"\x80\x05}(" + integer(2**70) + b"Nu.",
    "one buffer, many arrays": b"\x80\x05}("
    + text("b")
    + array("i8", (2**17,), stretch(2**20)[:9] + bytes(2**20) + b"\x94")
    + b"".join(
        text(f"k{i}")
        + symbol("numpy._core.numeric", "_frombuffer")
        + b"(h\x00"
        + dtype("i8")
        + b"("
        + integer(2**17)
        + b"t"
        + text("C")
        + b"tR"
        for i in range(500)
    )
    + b"u.",
    "one text, many arrays": b"\x80\x05}("
    + text("b")
    + b"X"
    + struct.pack("<I", 2**20)
    + b"x" * 2**20
    + b"\x94"
    + b"".join(
        text(f"k{i}")
        + symbol("numpy._core.numeric", "_frombuffer")
        + b"("
        + symbol("_codecs", "encode")
        + b"h\x00"
        + text("latin1")
        + b"\x86R"
        + dtype("u1")
        + b"("
        + integer(2**20)
        + b"t"
        + text("C")
        + b"tR"
        for i in range(500)
    )
    + b"u.",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_within_bounded_memory(data: bytes) -> None:
    def refused() -> None:
        with pytest.raises(MetadataError):
            decode(data, opcodes=100_000, nodes=20_000, depth=32)

    assert peak_bytes(refused) < 16 * 2**20 + 4 * len(data)


def test_text_that_stands_for_bytes_is_latin() -> None:
    data = pickle.dumps({"a": np.arange(3, dtype="u1")}, 2)
    start = data.index(b"\x00\x01\x02")
    wide = "\0☺\2".encode()
    data = data[: start - 4] + struct.pack("<I", len(wide)) + wide + data[start + 3 :]
    with pytest.raises(MetadataError, match="not Latin-1"):
        decode(data)


def test_limits_hold_to_the_last_unit() -> None:
    data = pickletools.optimize(pickle.dumps({"a": [1, 2, [3]]}))
    for name, enough, message in (
        ("nodes", 5, "more than 4 entries"),
        ("depth", 3, "more than 2 nested"),
        ("opcodes", sum(1 for _ in pickletools.genops(data)) - 1, "pickle opcodes, the limit"),
    ):
        assert decode(data, **{name: enough}) == {"a": [1, 2, [3]]}
        with pytest.raises(MetadataError, match=message):
            decode(data, **{name: enough - 1})


fragments = st.sampled_from(
    [
        *(op.code.encode("latin-1") for op in pickletools.opcodes),
        dtype("i8"),
        EMPTY,
        EMPTY + b"\x94",
        stretch(16),
        array("i8", (2,), stretch(16)),
        RECONSTRUCT,
        symbol("_codecs", "encode"),
        *(b"}", b"]", b"K\x01", b"h\x00", b"(", b"s", b"u", b"a", b"e", b"R", b"b", b"t"),
    ]
)


@given(st.lists(fragments | st.binary(max_size=3), max_size=60))
def test_any_opcodes_end_in_values_or_the_typed_error(soup: list[bytes]) -> None:
    try:
        found = decode(b"\x80\x05}" + b"".join(soup) + b".", nodes=10_000)
    except MetadataError:
        return
    check_same(found, plain(found))


def test_no_prefix_of_properties_is_read() -> None:
    for protocol in PROTOCOLS:
        data = pickle.dumps(properties(2), protocol)
        assert decode(data)
        for length in range(len(data)):
            with pytest.raises(MetadataError):
                decode(data[:length])


def test_a_file_that_became_shorter_is_refused() -> None:
    data = pickle.dumps({"a": np.zeros(10_000), "b": 1})
    with pytest.raises(MetadataError, match="were to be read"):
        decode_array_pickle(lambda a, b: data[a : min(b, 50)], size=len(data))
    found = decode_array_pickle(lambda a, b: data[a:b], size=len(data))
    with pytest.raises(MetadataError, match="9 bytes where an array of 80000 must be"):
        found["a"].load(lambda a, b: bytes(9))


# Folders


def volume(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 20, 24, 18)).astype(np.float32)
    return image, rng.integers(-1, 4, (1, 20, 24, 18), np.int8)


def write_case(folder: Path, case: str, *, seed: int = 0) -> None:
    """Write a case as nnU-Net 2.6 does: ZSTD 8, blocks of the order of the patch."""
    folder.mkdir(parents=True, exist_ok=True)
    image, seg = volume(seed)
    cparams = {"codec": blosc2.Codec.ZSTD, "clevel": 8}
    for name, values in ((case, image), (f"{case}_seg", seg)):
        channels = len(values)
        blosc2.asarray(
            values,
            urlpath=str(folder / f"{name}.b2nd"),
            chunks=(channels, 10, 12, 18),
            blocks=(channels, 5, 6, 9),
            cparams=cparams,
            mode="w",
        )
    with (folder / f"{case}.pkl").open("wb") as file:
        pickle.dump(properties(), file)


@pytest.fixture
def preprocessed(tmp_path: Path) -> Path:
    """A dataset folder with one configuration of three cases."""
    root = tmp_path / "Dataset001_X"
    for seed, case in enumerate(("case_10", "case_9", "case_2")):
        write_case(root / "nnUNetPlans_3d_fullres", case, seed=seed)
    for name in ("dataset.json", "nnUNetPlans.json", "gt_segmentations/case_2.nii.gz"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    sampling = root / "nnUNetPlans_3d_fullres" / "fg_sampling"
    sampling.mkdir()
    (sampling / "locations.b2nd").write_bytes(b"none of ours")
    return root


def test_cases_become_subjects(preprocessed: Path) -> None:
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    cases = Collection.from_nnunet(folder)
    assert cases.subjects == ("case_2", "case_9", "case_10")
    assert cases.modalities == ("image", "seg")
    assert cases["case_9"].files == {
        "image": str(folder / "case_9.b2nd"),
        "seg": str(folder / "case_9_seg.b2nd"),
    }
    labels = cases["case_9"].labels
    assert labels == {
        "spacing": [2.5, 0.8, 0.8],
        "shape_before_cropping": [64, 90, 90],
        "bbox_used_for_cropping": [[0, 64], [3, 90], [0, 90]],
        "shape_after_cropping_and_before_resampling": [64, 87, 90],
        "intensities": [0.5, 1.5],
    }
    assert cases.table["spacing"].tolist() == [[2.5, 0.8, 0.8]] * 3
    assert len(cases.filter(lambda record: record.labels["spacing"][0] > 2)) == 3
    assert pickle.loads(pickle.dumps(cases)).records == cases.records
    cases.check_alignment(channel=0)


def test_patches_are_those_of_blosc2(preprocessed: Path) -> None:
    cases = Collection.from_nnunet(preprocessed / "nnUNetPlans_3d_fullres")
    volumes = cases.volumes("case_10", channel=0)
    arrays: tuple[NDArray[Any], ...] = volume(0)
    for name, expected in zip(("image", "seg"), arrays, strict=True):
        found = volumes[name]
        assert found.n_channels == len(expected)
        place = place_from((3, 5, 7), shape=(8, 8, 8), extents=found.space.extents)
        out = np.empty((len(expected), 8, 8, 8), expected.dtype)
        found.read(place, out, padding=Padding(), value=0)
        np.testing.assert_array_equal(out, expected[:, 3:11, 5:13, 7:15])


def test_cases_without_notes_are_named(preprocessed: Path) -> None:
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    (folder / "case_9.pkl").unlink()
    with pytest.raises(FileNotFoundError, match=r"case_9\.pkl"):
        Collection.from_nnunet(folder)
    bare = Collection.from_nnunet(folder, labels=False)
    assert bare["case_2"].labels == {}
    (folder / "case_9.pkl").write_bytes(pickle.dumps(Evil(os.system, "touch executed")))
    with pytest.raises(MetadataError, match=r"case_9.pkl: .* 'system'"):
        Collection.from_nnunet(folder)
    assert not os.path.exists("executed")


def test_cases_without_segmentation_are_explicit(preprocessed: Path) -> None:
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    (folder / "case_9_seg.b2nd").unlink()
    with pytest.raises(ConversionError, match=r"1 of 3 subjects lack a modality \(seg of 1\)"):
        Collection.from_nnunet(folder)
    assert Collection.from_nnunet(folder, missing="drop").subjects == ("case_2", "case_10")
    assert list(Collection.from_nnunet(folder, missing="keep")["case_9"].files) == ["image"]


def test_folders_without_cases_say_what_they_are(preprocessed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"such as 'nnUNetPlans_3d_fullres' inside it"):
        Collection.from_nnunet(preprocessed)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "case.npz").touch()
    with pytest.raises(ConversionError, match=r"npz files of nnU-Net before 2\.6"):
        Collection.from_nnunet(tmp_path / "old")


def test_links_out_of_the_folder_are_refused(preprocessed: Path, tmp_path: Path) -> None:
    folder = preprocessed / "nnUNetPlans_3d_fullres"
    for name in ("case_9.b2nd", "case_9.pkl"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
        with pytest.raises(SourceError, match=f"{name}: a link that leads"):
            Collection.from_nnunet(folder)
        (folder / name).unlink()
        (tmp_path / name).rename(folder / name)
    assert len(Collection.from_nnunet(folder)) == 3
