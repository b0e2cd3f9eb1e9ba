"""Headers and trailers of frames: what is read from good ones, and every rule on a damaged one."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mlarray_xr.errors import FormatError
from mlarray_xr.format.cursor import Cursor
from mlarray_xr.format.frame import FrameHeader, header_length, parse_header
from mlarray_xr.format.trailer import parse_trailer, trailer_length
from tests.frame_kit import HEADER_FIELDS, make_frame, replaced, sections_of
from tests.stored_metadata import GENUINE, name_of, record_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VALUES = np.arange(20 * 24, dtype="<f4").reshape(20, 24)
FRAME = make_frame(VALUES, chunks=(8, 10), blocks=(4, 5), entries={"mlarray": b"one", "own": b"2"})
HEADER = sections_of(FRAME).header
TRAILER = sections_of(FRAME).trailer
B2ND_AT = HEADER.index(b"\x97\x00\x02")
SHAPE_AT, CHUNKS_AT, BLOCKS_AT = B2ND_AT + 5, B2ND_AT + 24, B2ND_AT + 35
DTYPE_AT = B2ND_AT + 45


def parse(header: bytes, *, file_size: int = len(FRAME)) -> FrameHeader:
    return parse_header(header, file_size=file_size, name="f.mla")


def with_field(name: str, value: int, header: bytes = HEADER) -> bytes:
    at, n_bytes = HEADER_FIELDS[name]
    return replaced(header, at, value.to_bytes(n_bytes, "big", signed=value < 0))


def with_fields(**values: int) -> bytes:
    header = HEADER
    for name, value in values.items():
        header = with_field(name, value, header)
    return header


def with_b2nd(content: bytes) -> bytes:
    """Return a header whose b2nd metalayer has other content, of any length."""
    header = HEADER[: B2ND_AT - 4] + struct.pack(">I", len(content)) + content
    return with_field("header_len", len(header), header)


def b2nd(
    *,
    shape: tuple[int, ...] = (20, 24),
    chunks: tuple[int, ...] = (8, 10),
    blocks: tuple[int, ...] = (4, 5),
    dtype: bytes = b"<f4",
) -> bytes:
    tag = bytes([0x90 + len(shape)])
    return (
        b"\x97\x00"
        + bytes([len(shape)])
        + tag
        + b"".join(b"\xd3" + struct.pack(">q", n) for n in shape)
        + tag
        + b"".join(b"\xd2" + struct.pack(">i", n) for n in chunks)
        + tag
        + b"".join(b"\xd2" + struct.pack(">i", n) for n in blocks)
        + b"\x00\xdb"
        + struct.pack(">I", len(dtype))
        + dtype
    )


def test_a_good_header_says_what_blosc2_wrote() -> None:
    header = parse(HEADER)
    assert (header.shape, header.chunks, header.blocks) == ((20, 24), (8, 10), (4, 5))
    assert (header.dtype, header.typesize) == (np.dtype("<f4"), 4)
    assert (header.blocksize, header.chunksize) == (80, 320)
    assert (header.chunk_grid, header.n_chunks) == ((3, 3), 9)
    assert (header.header_len, header.frame_len) == (len(HEADER), len(FRAME))
    assert header.index_start + len(sections_of(FRAME).index) + len(TRAILER) == len(FRAME)
    assert header.has_vlmeta
    assert header.fixed_metadata is None


def test_the_rebuilt_metalayer_is_the_real_one() -> None:
    assert with_b2nd(b2nd()) == HEADER


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_headers_of_genuine_files_are_accepted_and_right(path: Path) -> None:
    frame, record = path.read_bytes(), record_of(path)
    head = frame[: header_length(frame, file_size=len(frame), name=path.name)]
    header = parse_header(head, file_size=len(frame), name=path.name)
    if path.suffix == ".mla":
        assert list(header.shape) == record["b2nd"]["shape"]
        assert list(header.chunks) == record["b2nd"]["chunks"]
        assert list(header.blocks) == record["b2nd"]["blocks"]
        assert header.dtype == np.dtype(record["b2nd"]["dtype"])
    assert header.frame_len == len(frame)
    assert (header.fixed_metadata is not None) == (path.suffix == ".mb2nd")
    length = trailer_length(frame[-23:], header, value_bytes=1 << 25, name=path.name)
    entries = parse_trailer(frame[-length:], header, name=path.name)
    assert set(entries) == ({"mlarray"} if path.suffix == ".mla" else set())


@pytest.mark.parametrize("ndim", range(17))
def test_every_number_of_axes(ndim: int) -> None:
    shape = (
        tuple(2 + axis % 2 for axis in range(ndim)) if ndim <= 8 else (1,) * (ndim - 4) + (3,) * 4
    )
    frame = make_frame(np.arange(int(np.prod(shape)), dtype="<i2").reshape(shape))
    header = parse(sections_of(frame).header, file_size=len(frame))
    assert header.shape == shape
    assert header.n_chunks == 1
    assert len(header.chunks) == len(header.blocks) == ndim


@pytest.mark.parametrize("shape", [(0,), (0, 5), (4, 0, 3)])
def test_empty_arrays_have_no_chunks(shape: tuple[int, ...]) -> None:
    frame = make_frame(np.zeros(shape, "<f8"))
    header = parse(sections_of(frame).header, file_size=len(frame))
    assert (header.shape, header.n_chunks, header.payload_len) == (shape, 0, 0)
    assert trailer_length(frame[-23:], header, value_bytes=1, name="f") == len(frame) - len(
        sections_of(frame).header
    )


def test_bytes_after_the_frame_are_allowed() -> None:
    assert parse(HEADER, file_size=len(FRAME) + 400).frame_len == len(FRAME)


@dataclass(frozen=True)
class Rule:
    name: str
    header: bytes
    match: str


EVERY_TAG = (15, 24, 29, 38, 47, 52, 57, 62, 65, 69, 70, 87, 88, 91)
HEADER_RULES = [
    *(Rule(f"tag {at}", replaced(HEADER, at, b"\x01"), f"expected at byte ({at}|{at - 1})")
      for at in EVERY_TAG),
    Rule("frame one byte too long", with_field("frame_len", len(FRAME) + 1), "truncated"),
    Rule("frame too short", with_field("frame_len", len(HEADER) + 34), "truncated"),
    Rule("frame of 2^64-1", with_field("frame_len", 2**64 - 1), "truncated"),
    *(Rule(f"flags {flags:#x}", replaced(HEADER, 25, bytes([flags])), "only contiguous frames")
      for flags in (0x10, 0x14, 0x1F, 0x02, 0x22, 0x32, 0x92)),
    Rule("sparse", replaced(HEADER, 26, b"\x01"), "only contiguous frames"),
    Rule("variable chunks", replaced(HEADER, 25, b"\x53"), "variable size"),
    *(Rule(f"{name} {value}", with_field(name, value), "impossible sizes|truncated")
      for name in ("nbytes", "payload_len", "typesize", "blocksize", "chunksize")
      for value in (-1, -(2**31))),
    Rule("no element", with_field("typesize", 0), "impossible sizes"),
    Rule("payload beyond", with_field("payload_len", len(FRAME) + 1), "impossible sizes"),
    Rule("entry flag", replaced(HEADER, 68, b"\xc0"), "byte 68 is c0, no flag"),
    Rule("other layer", HEADER.replace(b"\xa4b2nd", b"\xa4b3nd"), r"metalayers \['b3nd'\]"),
    Rule("lazy layer", HEADER.replace(b"\xa4b2nd", b"\xa4b2o\x00"), "lazy expressions"),
    Rule("name bytes", HEADER.replace(b"\xa4b2nd", b"\xa4\xff\xff\xff\xff"), "not UTF-8"),
    Rule("no name", HEADER.replace(b"\xa4b2nd", b"\xa0b2nd"), "a metalayer name was expected"),
    Rule("map count", with_field("map_count", 2), "metalayer name was expected|expected at byte"),
    Rule("map count 0", with_field("map_count", 0), "expected at byte"),
    Rule("value count", HEADER.replace(b"\xdc\x00\x01", b"\xdc\x00\x02"), "not list them once"),
    Rule("layer below 0", replaced(HEADER, 100, struct.pack(">i", -1)), "overlaps the map"),
    Rule("layer at 90", replaced(HEADER, 100, struct.pack(">i", 90)), "overlaps the map"),
    Rule("layer far away", replaced(HEADER, 100, struct.pack(">i", 2**31 - 1)), "truncated"),
    Rule("layer tag", replaced(HEADER, B2ND_AT - 5, b"\xc5"), "expected at byte"),
    Rule("layer too long", replaced(HEADER, B2ND_AT - 4, b"\xff\xff\xff\xff"), "truncated"),
    Rule("layer version", replaced(HEADER, B2ND_AT + 1, b"\x01"), "expected at byte"),
    Rule("17 axes", replaced(HEADER, B2ND_AT + 2, b"\x11"), "17 axes, at most 16"),
    Rule("3 axes", replaced(HEADER, B2ND_AT + 2, b"\x03"), "expected at byte"),
    Rule("more bytes", with_b2nd(b2nd() + b"\x00"), "bytes follow the b2nd metalayer"),
    Rule("fewer bytes", with_b2nd(b2nd()[:-1]), "truncated"),
    Rule("dtype format", with_b2nd(b2nd().replace(b"\x00\xdb", b"\x01\xdb")), "expected at byte"),
    *(Rule(f"dtype {text!r}", with_b2nd(b2nd(dtype=text)), "is not supported")
      for text in (b"|O8", b"[('a', 'O')]", b"<f4\n", b"<f4 ", b"", b"\xff\xfe\xfd", b"f" * 65,
                   b"<f4,<f4", b"os.system", b"<i3", b"(2,)f4", b"|V8[s]", b"<M8[25s/4]")),
    Rule("dtype unit", with_b2nd(b2nd(dtype=b"<M8[xx]")), "not one NumPy knows"),
    Rule("dtype size", with_b2nd(b2nd(dtype=b"<f8")), "has 8 bytes, the frame says 4"),
    Rule("dtype of nothing", with_b2nd(b2nd(dtype=b"|S0")), "has 0 bytes, the frame says 4"),
    Rule("shape below 0", with_b2nd(b2nd(shape=(-20, 24))), "impossible shape"),
    Rule("shape 2^62", with_b2nd(b2nd(shape=(2**62, 24))), "impossible shape"),
    Rule("shape 2^63 bytes", with_b2nd(b2nd(shape=(2**61, 24))), "exceeds 2.63 bytes"),
    Rule("chunk below 0", with_b2nd(b2nd(chunks=(-8, 10))), "impossible shape"),
    Rule("block below 0", with_b2nd(b2nd(blocks=(-4, 5))), "impossible shape"),
    Rule("chunk 0", with_b2nd(b2nd(chunks=(0, 10))), "chunks .* of blocks"),
    Rule("block 0", with_b2nd(b2nd(blocks=(0, 5))), "chunks .* of blocks"),
    Rule("block > chunk", with_b2nd(b2nd(blocks=(16, 5))), "chunks .* of blocks"),
    Rule("chunk size", with_b2nd(b2nd(chunks=(12, 10))), "the frame says 320"),
    Rule("huge chunk", with_b2nd(b2nd(chunks=(2**31 - 1, 9), blocks=(1, 1))), "the frame says 320"),
    Rule("block size", with_b2nd(b2nd(blocks=(4, 2))), "are not 80 bytes"),
    Rule("more chunks", with_b2nd(b2nd(shape=(25, 24))), "12 chunks of 320 bytes are not the 2880"),
    Rule("empty with data", with_b2nd(b2nd(shape=(0, 24))), "is empty, yet 2880 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("rule", HEADER_RULES, ids=lambda rule: rule.name)
def test_header_rule(rule: Rule) -> None:
    assert rule.header != HEADER
    with pytest.raises(FormatError, match=rule.match):
        parse(rule.header)


def test_more_chunks_than_an_index_can_hold() -> None:
    n_chunks = 2**28
    header = with_b2nd(b2nd(shape=(n_chunks * 8, 10)))
    header = with_field("nbytes", n_chunks * 320, header)
    with pytest.raises(FormatError, match="268435456 chunks"):
        parse(header)


def test_a_chunk_that_wraps_around_64_bits_is_refused() -> None:
    wide = b2nd(shape=(20, 24), chunks=(2**30 + 2, 2**30 + 5), blocks=(2**30 + 2, 2**30 + 5))
    with pytest.raises(FormatError, match=r"chunks .* of blocks"):
        parse(with_b2nd(wide))


@pytest.mark.parametrize("length", range(len(HEADER)))
def test_a_header_cut_anywhere_is_refused(length: int) -> None:
    with pytest.raises(FormatError):
        parse(HEADER[:length], file_size=length)
    with pytest.raises(FormatError):
        parse(HEADER[:length])


@pytest.mark.parametrize("header_len", [-(2**31), -1, 0, 86, 2**20 + 1, 2**31 - 1])
def test_impossible_header_lengths(header_len: int) -> None:
    first = with_field("header_len", header_len)
    with pytest.raises(FormatError, match="cannot be in a file"):
        header_length(first, file_size=1 << 40, name="f.mla")


@pytest.mark.parametrize(
    ("first", "found"),
    [(b"", "nothing"), (b"\x89PNG\r\n\x1a\n", "89 50 4e 47"), (b"text", "74 65")],
)
def test_other_files_are_named_by_their_first_bytes(first: bytes, found: str) -> None:
    with pytest.raises(FormatError, match=f"f.mla: not an .mla file.*{found}"):
        header_length(first, file_size=len(first), name="f.mla")


@pytest.mark.parametrize("field", sorted(HEADER_FIELDS))
@pytest.mark.parametrize("value", [0, -1, 1, 2**15 - 1, 2**31 - 1, 2**63 - 1])
def test_no_integer_of_the_header_raises_anything_but_format_error(field: str, value: int) -> None:
    at, n_bytes = HEADER_FIELDS[field]
    data = (value & (256**n_bytes - 1)).to_bytes(n_bytes, "big")
    header = replaced(HEADER, at, data)
    try:
        parsed = parse(header)
    except FormatError:
        return
    if field == "payload_len":  # what follows the header is compared with it later
        assert parsed.payload_len == value
    else:
        assert field in {"threads_in", "threads_out", "map_size"} or header == HEADER
        assert parsed == parse(HEADER)


def test_random_damage_of_the_header_raises_nothing_but_format_error() -> None:
    random = np.random.default_rng(7)
    accepted = 0
    for _ in range(4000):
        damaged = bytearray(HEADER)
        for at in random.integers(0, len(HEADER), random.integers(1, 4)):
            damaged[at] = random.integers(0, 256)
        try:
            header = parse(bytes(damaged))
        except FormatError:
            continue
        accepted += 1
        assert header.n_chunks * header.chunksize == 2880
        assert header.dtype.itemsize == header.typesize == 4
    assert 0 < accepted < 2000


def test_an_empty_array_has_chunks_where_it_has_extents() -> None:
    empty = with_b2nd(b2nd(shape=(0, 24), chunks=(0, 0), blocks=(0, 0)))
    empty = with_field("nbytes", 0, with_field("payload_len", 0, empty))
    with pytest.raises(FormatError, match="of nothing"):
        parse(empty)


def trailer_entries(trailer: bytes, header: bytes = HEADER) -> dict[str, tuple[int, int]]:
    return parse_trailer(trailer, parse(header), name="f.mla")


def test_trailer_entries_are_found_where_they_are() -> None:
    spans = trailer_entries(TRAILER)
    assert list(spans) == ["mlarray", "own"]
    for start, stop in spans.values():
        assert TRAILER[start] == 5
        assert int.from_bytes(TRAILER[start + 12 : start + 16], "little") == stop - start


NAME_AT = TRAILER.index(b"\xa7mlarray")
OFFSET_AT = NAME_AT + 9
TRAILER_RULES: list[tuple[str, Callable[[], bytes], str]] = [
    ("version", lambda: replaced(TRAILER, 1, b"\x02"), "expected at byte 0"),
    ("name tag", lambda: replaced(TRAILER, NAME_AT, b"\xd9"), "metalayer name was expected"),
    ("name bytes", lambda: replaced(TRAILER, NAME_AT + 1, b"\xff"), "not UTF-8"),
    ("offset < 0", lambda: replaced(TRAILER, OFFSET_AT, b"\xff" * 4), "lies outside the trailer"),
    ("offset 0", lambda: replaced(TRAILER, OFFSET_AT, bytes(4)), "lies outside the trailer"),
    ("far", lambda: replaced(TRAILER, OFFSET_AT, b"\x7f" + b"\xff" * 3), "outside the trailer"),
    ("twice", lambda: TRAILER.replace(b"\xa7mlarray", b"\xa3own\xd2\x00\x00"), "trailer"),
    ("no entries", lambda: replaced(TRAILER, 5, b"\xde\x00\x00"), "expected at byte"),
    (
        "value too long",
        lambda: replaced(TRAILER, trailer_entries(TRAILER)["mlarray"][0] - 4, b"\xff" * 4),
        "entry 'mlarray'.*truncated or damaged",
    ),
    (
        "value into the footer",
        lambda: replaced(
            TRAILER,
            (own := trailer_entries(TRAILER)["own"])[0] - 4,
            struct.pack(">I", own[1] - own[0] + 1),
        ),
        "entry 'own'.*truncated or damaged",
    ),
]  # fmt: skip


@pytest.mark.parametrize("rule", TRAILER_RULES, ids=lambda rule: rule[0])
def test_trailer_rule(rule: tuple[str, Callable[[], bytes], str]) -> None:
    _, make, match = rule
    with pytest.raises(FormatError, match=match):
        trailer_entries(make())


def test_the_same_name_twice_is_refused() -> None:
    frame = make_frame(VALUES, entries={"aa": b"1", "bb": b"2"})
    header, trailer = sections_of(frame).header, sections_of(frame).trailer
    with pytest.raises(FormatError, match="does not list them once"):
        parse_trailer(
            trailer.replace(b"\xa2bb", b"\xa2aa"), parse(header, file_size=len(frame)), name="f"
        )


def test_header_and_trailer_must_agree_on_entries() -> None:
    with pytest.raises(FormatError, match="the trailer has 2"):
        trailer_entries(TRAILER, replaced(HEADER, 68, b"\xc2"))
    bare = sections_of(make_frame(VALUES))
    with pytest.raises(FormatError, match="the trailer has 0"):
        trailer_entries(bare.trailer)


@pytest.mark.parametrize("length", [0, 34, len(FRAME), 2**32 - 1])
def test_impossible_trailer_lengths(length: int) -> None:
    footer = replaced(TRAILER[-23:], 1, struct.pack(">I", length))
    with pytest.raises(FormatError, match=f"a trailer of {length} bytes does not fit"):
        trailer_length(footer, parse(HEADER), value_bytes=1 << 25, name="f.mla")


@pytest.mark.parametrize("at", [0, 5])
def test_footer_tags(at: int) -> None:
    footer = replaced(TRAILER[-23:], at, b"\x00")
    with pytest.raises(FormatError, match=f"expected at byte {at}"):
        trailer_length(footer, parse(HEADER), value_bytes=1 << 25, name="f.mla")


def test_a_trailer_beyond_the_metadata_limit_is_refused() -> None:
    frame = make_frame(VALUES, entries={"mlarray": np.random.default_rng(0).bytes(1 << 21)})
    header = parse(sections_of(frame).header, file_size=len(frame))
    assert trailer_length(frame[-23:], header, value_bytes=1 << 21, name="f") > 1 << 21
    with pytest.raises(FormatError, match="exceeds the metadata limit of 1000"):
        trailer_length(frame[-23:], header, value_bytes=1000, name="f")


def test_an_empty_array_with_a_gap_is_refused() -> None:
    sections = sections_of(make_frame(np.zeros((0, 3), "<f8")))
    frame = sections.header + b"gap" + sections.trailer
    frame = replaced(frame, 16, struct.pack(">Q", len(frame)))
    header = parse(frame[: len(sections.header)], file_size=len(frame))
    with pytest.raises(FormatError, match="an empty array has no chunks"):
        trailer_length(frame[-23:], header, value_bytes=1 << 25, name="f")


def test_a_cursor_never_reads_outside() -> None:
    cursor = Cursor(b"\xd2\x00\x00\x00\x07\xd3", what="f")
    assert cursor.i32() == 7
    with pytest.raises(FormatError, match="8 bytes wanted at byte 6, only 0 are left"):
        cursor.i64()
    with pytest.raises(FormatError, match="-1 bytes wanted"):
        Cursor(b"abc").take(-1)
