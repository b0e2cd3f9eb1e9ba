from __future__ import annotations

import collections
import gzip
import pickle
import pickletools
import struct
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import mlarray.meta
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.limits import DEFAULT_LIMITS, Limits
from mlarray_xr.format.pickle_machine import STEPS
from mlarray_xr.format.plain_pickle import decode_pickle
from tests.stored_metadata import GENUINE, name_of, record_of, same, variable_value

if TYPE_CHECKING:
    from collections.abc import Callable

ACCEPTED = {
    *("FRAME", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "SETITEM", "SETITEMS", "APPEND"),
    *("APPENDS", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "MEMOIZE", "BINGET", "LONG_BINGET"),
    *("STACK_GLOBAL", "REDUCE", "BUILD"),
}
SMALL = Limits(value_bytes=2**22, opcodes=200_000, nodes=50_000)
MOST_PEAK_BYTES = 32 * 2**20

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**2000), 2**2000)
    | st.floats()
    | st.text(st.characters(), max_size=20)
)
keys = st.text(max_size=8) | st.integers(-(2**64) + 1, 2**64 - 1) | st.booleans() | st.none()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
    ),
    max_leaves=30,
)


def decode(pickled: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[Any, Any]:
    return decode_pickle(gzip.compress(pickled, 1), limits=limits)


def dump(value: object, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def symbol(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def entry(value: bytes) -> bytes:
    """Pickle a dict with the one key `a`."""
    return b"\x80\x04}" + text("a") + value + b"s."


def listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return [listed(item) for item in value] if isinstance(value, list | tuple) else value


def peak_bytes(act: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(value=st.dictionaries(keys, trees, max_size=6), protocol=st.sampled_from([4, 5]))
@example(value={"\ud800": "\udfff\0", "": -0.0}, protocol=4)
@example(value={"long": "é" * 300, "many": list(range(-300, 70_000, 40))}, protocol=5)
@example(value={"edges": [-(2**31), 2**31 - 1, 2**31, 255, 256, 65535, 65536]}, protocol=4)
def test_plain_values_decode_as_the_standard_library_does(value: Any, protocol: int) -> None:
    assert same(decode(dump(value, protocol)), listed(value))


def test_several_frames_decode() -> None:
    value = {"rows": [["x" * 50, i, i / 7] for i in range(5000)]}
    pickled = dump(value)
    frames = sum(op.name == "FRAME" for op, _, _ in pickletools.genops(pickled))
    assert frames > 1
    assert same(decode(pickled), value)


def test_shared_objects_come_back_as_copies() -> None:
    shared = [1]
    found = decode(dump({"a": shared, "b": shared}))
    assert found == {"a": [1], "b": [1]}
    assert found["a"] is not found["b"]


def test_classes_of_the_reference_decode_as_plain_values() -> None:
    frozen = mlarray.meta._FrozenDict({"a": mlarray.meta._FrozenList([1, [2]])})
    assert same(decode(dump({"x": frozen}, protocol=5)), {"x": {"a": [1, [2]]}})


def test_ordered_dicts_keep_their_order() -> None:
    value = collections.OrderedDict([("b", 1), ("a", collections.OrderedDict())])
    found = decode(dump({"x": value}))
    assert same(found, {"x": {"b": 1, "a": {}}})


def test_numpy_scalars_decode_as_plain_values() -> None:
    value = {
        "f": [np.float64(1.5), np.float64("nan"), np.float64(-0.0)],
        "s": [np.str_("µm"), np.str_(""), np.str_("µm")],
    }
    expected = {"f": [1.5, float("nan"), -0.0], "s": ["µm", "", "µm"]}
    assert same(decode(dump(value)), expected)


@pytest.mark.parametrize("module", ["numpy._core.multiarray", "numpy.core.multiarray"])
def test_numpy_scalars_of_any_byte_order_and_numpy_decode(module: str) -> None:
    dtype = symbol("numpy", "dtype") + text("f8") + b"\x89\x88\x87R(K\x03" + text(">") + b"NtbC\x08"
    pickled = entry(symbol(module, "scalar") + dtype + struct.pack(">d", 2.5) + b"\x86R")
    assert decode(pickled) == {"a": 2.5}


def test_accept_list_is_pinned() -> None:
    codes = {op.name: ord(op.code) for op in pickletools.opcodes}
    assert set(STEPS) == {codes[name] for name in ACCEPTED}


@pytest.mark.parametrize("opcode", sorted(set(range(256)) - set(STEPS) - {0x2E}))
def test_every_other_opcode_is_refused(opcode: int) -> None:
    with pytest.raises(MetadataError, match=f"refused pickle opcode 0x{opcode:02x} at byte 6"):
        decode(entry(bytes([opcode])))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3])
def test_old_protocols_are_refused(protocol: int) -> None:
    with pytest.raises(MetadataError, match=r"protocol 2 to 5|refused pickle opcode"):
        decode(dump({"a": "b", "c": [1]}, protocol))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (symbol("this", "s"), "refused class or function 'this' 's'"),
        (symbol("os", "system") + text("true") + b"\x85R", "'os' 'system'"),
        (symbol("mlarray.meta", "_FrozenList.append"), "_FrozenList.append"),
        (symbol("mlarray", "meta._FrozenList"), "meta._FrozenList"),
        (b"K\x01K\x02\x93", "class reference without a name"),
        (symbol("mlarray.meta", "_FrozenList"), "found Symbol"),
        (symbol("mlarray.meta", "_FrozenList") + b"\x85", "found Symbol"),
        (symbol("mlarray.meta", "_FrozenList") + text("abc") + b"\x85R", "one list"),
        (symbol("mlarray.meta", "_FrozenList") + b"]]\x86R", "one list"),
        (symbol("mlarray.meta", "_FrozenDict") + b"]\x85R", "one dict"),
        (symbol("mlarray.meta", "_FrozenDict") + b"]R", "something other than an accepted class"),
        (symbol("collections", "OrderedDict") + b"]\x85R", "OrderedDict with arguments"),
        (text("os") + b"]\x85R", "something other than an accepted class"),
        (symbol("numpy", "dtype") + text("f8") + b"\x89\x88\x87R", "found Dtype"),
        (symbol("numpy", "dtype") + text("f8") + b"\x85R", "unknown arguments"),
        (symbol("numpy", "dtype") + text("f8") + b"\x89\x88\x87R)b", "unknown state"),
        (b"]}b", "fills in an object where there is none"),
        (b"C\x01x", "found bytes"),
        (b"K\x01a", "fills a list where there is none"),
        (b"K\x01K\x02K\x03s", "fills a dict where there is none"),
        (b"}(K\x01u", "key without a value"),
        (b"}]K\x01s", "key of type list"),
        (b"})K\x01s", "key of type tuple"),
        (b"}\x8a\x09" + bytes(8) + b"\x01K\x01s", "integer dict key of 65 bit"),
        (b"h\x00", "memo entry 0 of 0"),
        (b"j\xff\xff\xff\xff", "memo entry 4294967295 of 0"),
        (b"e", "without the mark"),
        (b"(\x94", "empty stack"),
        (b"(\x85", "empty stack"),
        (b"(", "exactly one object"),
        (b"K\x01", "exactly one object"),
        (b"X\xff\xff\xff\xff", "a length of 4294967295 bytes with 2 left"),
        (b"\x8c\x02\xc3\x28", "text that is not utf-8"),
        (b"\x8a\xff", "a length of 255 bytes"),
        (b"\x95" + b"\xff" * 8, "frame of 18446744073709551615 bytes"),
        (b"\x80\x04", "refused pickle opcode 0x80"),
        (b".", "bytes after the end"),
    ],
)
def test_abuse_is_refused_and_named(value: bytes, message: str) -> None:
    tail = b"" if message == "exactly one object" else b"s"
    pickled = b"\x80\x04}" + text("a") + value + tail + b"."
    with pytest.raises(MetadataError, match=message):
        decode(pickled)


@pytest.mark.parametrize(
    ("code", "payload"),
    [("O", b"12345678"), ("f4", b"1234"), ("f8", b"1234"), ("U2", b"1234"), ("U", b"")],
)
def test_other_numpy_scalars_are_refused(code: str, payload: bytes) -> None:
    dtype = symbol("numpy", "dtype") + text(code) + b"\x89\x88\x87R(K\x03" + text("<") + b"tb"
    raw = b"C" + bytes([len(payload)]) + payload
    pickled = entry(symbol("numpy._core.multiarray", "scalar") + dtype + raw + b"\x86R")
    with pytest.raises(MetadataError, match="neither float64 nor str_"):
        decode(pickled)


def test_nothing_is_imported() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(MetadataError, match="'this'"):
        decode(entry(symbol("this", "s")))
    assert "this" not in sys.modules


@pytest.mark.parametrize("root", [[], (), None, 1, "x", [{}]])
def test_the_root_is_a_dict(root: object) -> None:
    with pytest.raises(MetadataError, match="where the root dict must be"):
        decode(dump(root))


def test_gzip_members_and_padding_are_read_like_gzip_does() -> None:
    pickled = dump({"a": 1})
    stream = gzip.compress(pickled[:5]) + b"\0" * 9 + gzip.compress(pickled[5:]) + b"\0" * 3
    assert decode_pickle(stream, limits=DEFAULT_LIMITS) == {"a": 1}


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (b"", "breaks off"),
        (b"\0", "damaged gzip|breaks off"),
        (gzip.compress(dump({}))[:-1], "breaks off"),
        (gzip.compress(dump({})) + b"x", "damaged gzip|breaks off"),
        (gzip.compress(dump({})) + b"junk", "damaged gzip"),
        (dump({}), "damaged gzip"),
        (gzip.compress(b""), "a length of 1 bytes with 0 left"),
        (gzip.compress(b"") * 65, "more than 64 gzip members"),
    ],
)
def test_damaged_gzip_is_refused(stream: bytes, message: str) -> None:
    with pytest.raises(MetadataError, match=message):
        decode_pickle(stream, limits=DEFAULT_LIMITS)


@pytest.mark.parametrize(
    ("value", "enough", "too_few", "message"),
    [
        ({"a": [[[]]]}, Limits(depth=4), Limits(depth=3), "at most 3 nested"),
        ({"a": [1, 2, 3]}, Limits(nodes=4), Limits(nodes=3), "at most 3 entries"),
        ({"a": 2**87}, Limits(int_bytes=12), Limits(int_bytes=11), "at most 11|int_bytes"),
        ({}, Limits(opcodes=3), Limits(opcodes=2), "more than 2 pickle opcodes"),
        ({}, Limits(value_bytes=5), Limits(value_bytes=4), "more than 4 bytes"),
    ],
)
def test_limits_hold_to_the_last_unit(
    value: Any, enough: Limits, too_few: Limits, message: str
) -> None:
    pickled = pickletools.optimize(dump(value)) if value else b"\x80\x04}\x94."
    assert same(decode(pickled, enough), value)
    with pytest.raises(MetadataError, match=message):
        decode(pickled, too_few)


def test_cycles_are_refused() -> None:
    value: dict[str, Any] = {"a": []}
    value["a"].append(value)
    with pytest.raises(MetadataError, match="nested dicts and lists"):
        decode(dump(value))


def test_deep_nesting_ends_in_the_typed_error() -> None:
    with pytest.raises(MetadataError, match="nested dicts and lists"):
        decode(entry(b"]" * 200_000 + b"a" * 199_999))
    with pytest.raises(MetadataError, match="nested dicts and lists"):
        decode(entry(b")" + b"\x85" * 200_000))


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(
            b"\x80\x04}(K\x00]\x94"
            + b"".join(
                b"K" + bytes([i + 1]) + b"](" + (b"h" + bytes([i])) * 10 + b"e\x94"
                for i in range(12)
            )
            + b"u.",
            id="shared lists",
        ),
        pytest.param(
            b"\x80\x04}(K\x00X"
            + (2**16).to_bytes(4, "little")
            + b"x" * 2**16
            + b"\x94K\x01]("
            + b"h\x00" * 1_000
            + b"eu.",
            id="shared text",
        ),
        pytest.param(
            b"\x80\x04}(K\x00"
            + symbol("numpy._core.multiarray", "scalar")
            + b"\x94"
            + symbol("numpy", "dtype")
            + text("U16384")
            + b"\x89\x88\x87R(K\x03"
            + text("<")
            + b"tb\x94B"
            + (2**16).to_bytes(4, "little")
            + "\N{GOTHIC LETTER HWAIR}".encode("utf-32-le") * 2**14
            + b"\x94\x86RK\x01]("
            + b"h\x00h\x01h\x02\x86R" * 1_000
            + b"eu.",
            id="one buffer, many texts",
        ),
        pytest.param(b"\x80\x04}(K\x00](" + b"]" * 100_000 + b"eu.", id="many empty lists"),
        pytest.param(b"\x80\x04" + b"(" * 300_000, id="many marks"),
        pytest.param(b"\x80\x04" + bytes(400 * 2**20), id="over the size limit"),
    ],
)
def test_bombs_end_in_the_typed_error_within_bounded_memory(pickled: bytes) -> None:
    stream = gzip.compress(pickled, 1)

    def refused() -> None:
        with pytest.raises(MetadataError):
            decode_pickle(stream, limits=SMALL)

    assert peak_bytes(refused) < MOST_PEAK_BYTES


def test_colliding_integer_keys_are_refused() -> None:
    colliding = [k * (2**61 - 1) for k in range(1, 100_000)]
    assert len({hash(key) for key in colliding}) == 1
    items = b"".join(b"\x8a\x0b" + key.to_bytes(11, "little") + b"N" for key in colliding)
    with pytest.raises(MetadataError, match="integer dict key of 65 bit"):
        decode(b"\x80\x04}(" + items + b"u.")


fragments = st.sampled_from(
    [
        *(bytes([code]) for code in STEPS),
        *(text(name) for name in ("a", "mlarray.meta", "_FrozenList", "numpy", "dtype", "f8", "<")),
        symbol("mlarray.meta", "_FrozenDict"),
        symbol("numpy", "dtype") + text("U1") + b"\x89\x88\x87R\x94",
        symbol("numpy._core.multiarray", "scalar"),
        *(b"}", b"]", b"K\x01", b"h\x00", b"C\x04abcd", b"(", b"s", b"u", b"a", b"e"),
    ]
)


@given(soup=st.lists(fragments | st.binary(max_size=3), max_size=60))
def test_any_opcodes_end_in_a_plain_dict_or_the_typed_error(soup: list[bytes]) -> None:
    try:
        found = decode(b"\x80\x04}" + b"".join(soup) + b".", Limits(nodes=10_000))
    except MetadataError:
        return
    assert same(found, listed(found))


PICKLED = [path for path in GENUINE if record_of(path).get("container") == "pickle"]


@pytest.mark.parametrize("path", PICKLED[::6], ids=name_of)
def test_no_prefix_of_a_genuine_pickle_decodes(path: Any) -> None:
    value = variable_value(path)
    pickled = gzip.decompress(value[1 + (1 << (value[0] - 0xC4)) :])
    assert decode(pickled)
    for length in range(len(pickled)):
        with pytest.raises(MetadataError):
            decode(pickled[:length])
