"""The integrity entry: its bytes, its hostile variants, what opening reads of it, checked reads."""

from __future__ import annotations

import functools
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ChunkError, FormatError, SourceChanged
from mlarray_xr.format.frame import parse_header
from mlarray_xr.format.integrity import (
    INTEGRITY_NAME,
    ChunkStatistics,
    Integrity,
    chunk_place,
    decode_integrity,
    encode_integrity,
    has_statistics,
)
from mlarray_xr.format.limits import Limits
from mlarray_xr.format.trailer import parse_trailer, unpack_bytes
from mlarray_xr.storage import frame_entries, frame_file, frame_sections, handles
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.frame_file import open_frame, read_index, read_payload
from mlarray_xr.storage.handles import close_reader, open_readers, reader_of
from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.source import source_of
from tests.frame_kit import make_frame, offsets_of, replaced, sections_of, special_chunk

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.source import BytesSource, LocalSource

VALUES = np.random.default_rng(3).integers(-99, 99, (20, 18), "i2")
VALUES[:8, :8] = 0
SUMMABLE = ("|b1", "|i1", "|u1", "<i2", ">i2", "<u4", "<i8", ">u8", "<f2", "<f4", ">f8")
OTHERS = ("<c8", "<M8[ns]", "|S3", "<U2")


def header_of(frame: bytes) -> FrameHeader:
    return parse_header(sections_of(frame).header, file_size=len(frame))


@functools.cache
def header_for(shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> FrameHeader:
    array = blosc2.uninit(shape, dtype=np.dtype(dtype), chunks=chunks, blocks=chunks)
    return header_of(array.to_cframe())


def statistics_of(n_chunks: int, dtype: str, random: np.random.Generator) -> ChunkStatistics:
    size = n_chunks * np.dtype(dtype).itemsize
    least, greatest = (
        np.frombuffer(random.bytes(size), "u1") & (1 if dtype == "|b1" else 255) for _ in range(2)
    )
    return ChunkStatistics(
        least=least.view(dtype),
        greatest=greatest.view(dtype),
        nonzero=random.integers(0, 2**62, n_chunks),
    )


@st.composite
def records(draw: st.DrawFn) -> Integrity:
    ndim = draw(st.integers(0, 4))
    shape = tuple(draw(st.integers(0, 9)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(1, max(1, n))) for n in shape)
    dtype = draw(st.sampled_from([*SUMMABLE, *OTHERS]))
    random = np.random.default_rng(draw(st.integers(0, 2**16)))
    n_chunks = (
        0 if 0 in shape else int(np.prod([-(-n // c) for n, c in zip(shape, chunks, strict=True)]))
    )
    return Integrity(
        shape=shape,
        chunks=chunks,
        blocks=chunks,
        dtype_str=dtype,
        payload_len=draw(st.integers(0, 2**62)),
        crc32=random.integers(0, 2**32, n_chunks, "u4"),
        length=random.integers(0, 2**31, n_chunks, "i4"),
        special=random.choice(np.array([0, 1, 2, 4], "u1"), n_chunks),
        statistics=statistics_of(n_chunks, dtype, random) if has_statistics(dtype) else None,
        writer=draw(st.sampled_from(["", "mlarray_xr 0.1.0", "x" * 255])),
    )


def assert_equal(found: Integrity | None, expected: Integrity) -> None:
    assert found is not None
    for name in ("shape", "chunks", "blocks", "dtype_str", "payload_len", "writer", "n_chunks"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.statistics is None) == (expected.statistics is None)
    columns: list[tuple[Any, Any, str]]
    columns = [(found, expected, name) for name in ("crc32", "length", "special")]
    if found.statistics is not None:
        names = ("least", "greatest", "nonzero")
        columns += [(found.statistics, expected.statistics, name) for name in names]
    for left, right, name in columns:
        one, other = getattr(left, name), getattr(right, name)
        assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())


@given(records())
def test_what_is_encoded_comes_back(record: Integrity) -> None:
    data = encode_integrity(record)
    assert data == encode_integrity(record)
    header = header_for(record.shape, record.chunks, record.dtype_str)
    assert_equal(decode_integrity(data, header, name="f"), record)
    head = 60 + 16 * len(record.shape) + len(record.writer) + len(record.dtype_str)
    assert len(data) <= head + 33 * record.n_chunks


def example(*, n_chunks: int = 6, dtype: str = "<i2", **changes: Any) -> Integrity:
    random = np.random.default_rng(0)
    facts: dict[str, Any] = {
        "shape": (n_chunks * 4,),
        "chunks": (4,),
        "blocks": (4,),
        "dtype_str": dtype,
        "payload_len": 1000,
        "crc32": random.integers(0, 2**32, n_chunks, "u4"),
        "length": np.full(n_chunks, 40, "i4"),
        "special": np.zeros(n_chunks, "u1"),
        "statistics": statistics_of(n_chunks, dtype, random),
        "writer": "mlarray_xr 0.1.0",
    }
    return Integrity(**{**facts, **changes})


def test_regular_columns_take_little_room() -> None:
    n_chunks = 10_000
    counts = np.full(n_chunks, 500_000)
    range_of = ChunkStatistics(
        least=np.full(n_chunks, -1024, "i2"), greatest=np.full(n_chunks, 3071, "i2"), nonzero=counts
    )
    data = encode_integrity(example(n_chunks=n_chunks, statistics=range_of))
    assert len(data) < 5 * n_chunks


@pytest.mark.parametrize("nan", [0x7FC00000, 0xFFC00001, 0x7F800001])
def test_every_pattern_of_nan_survives(nan: int) -> None:
    values = np.full(6, nan, "<u4").view("<f4")
    statistics = ChunkStatistics(least=values, greatest=values, nonzero=np.zeros(6, "i8"))
    record = example(dtype="<f4", statistics=statistics)
    assert_equal(decode(encode_integrity(record), dtype="<f4"), record)


def decode(data: bytes, *, n_chunks: int = 6, dtype: str = "<i2") -> Integrity | None:
    return decode_integrity(data, header_for((n_chunks * 4,), (4,), dtype), name="f.mla")


@pytest.mark.parametrize(
    "changes",
    [
        {"crc32": np.zeros(5, "u4")},
        {"crc32": np.zeros(6, "u8")},
        {"length": np.zeros((6, 1), "i4")},
        {"special": np.zeros(6, "i1")},
        {"dtype_str": "<i4"},
        {"dtype_str": "<c8", "statistics": statistics_of(6, "<c8", np.random.default_rng(0))},
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="given"):
        example(**changes)


@pytest.mark.parametrize("n_chunks", [5, 7])
def test_an_entry_about_another_number_of_chunks_says_nothing(n_chunks: int) -> None:
    assert decode(encode_integrity(example()), n_chunks=n_chunks) is None


def test_every_flipped_bit_of_an_entry_is_noticed() -> None:
    data = encode_integrity(example())
    for at in range(len(data)):
        for bit in range(8):
            with pytest.raises(FormatError):
                decode(replaced(data, at, bytes([data[at] ^ 1 << bit])))


def test_an_entry_cut_anywhere_is_refused() -> None:
    data = encode_integrity(example())
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:length])
    with pytest.raises(FormatError, match="it is damaged"):
        decode(data + b"\x00")


def resealed(body: bytes) -> bytes:
    """Return an entry whose checksum is right, whatever it holds."""
    return b"mlxc" + struct.pack(">I", zlib.crc32(body)) + body


BODY = encode_integrity(example())[8:]
COLUMNS_AT = BODY.index(b"mlarray_xr 0.1.0") + 16


def column(method: int, content: bytes) -> bytes:
    return struct.pack(">BI", method, len(content)) + content


def with_columns(*columns: bytes, count: int | None = None) -> bytes:
    n_columns = len(columns) if count is None else count
    return resealed(BODY[:COLUMNS_AT] + bytes([n_columns]) + b"".join(columns))


RAW = (column(0, bytes(24)), column(0, bytes(24)), column(0, bytes(6)))
RANGES = (column(0, bytes(12)), column(0, bytes(12)), column(0, bytes(48)))


def test_hand_made_columns_are_read() -> None:
    for columns in (RAW, (*RAW, *RANGES), (column(1, zlib.compress(bytes(24))), *RAW[1:])):
        found = decode(with_columns(*columns))
        assert found is not None
        assert not found.crc32.any()
        assert (found.statistics is None) == (len(columns) == 3)


@pytest.mark.parametrize(
    "data",
    [
        with_columns(*RAW, count=2),
        with_columns(*RAW, count=4),
        with_columns(*RAW, *RANGES[:2]),
        with_columns(*RAW, RANGES[0]),
        with_columns(*RAW, *RANGES, b"more"),
        with_columns(column(2, bytes(24)), *RAW[1:]),
        with_columns(column(0, bytes(23)), *RAW[1:]),
        with_columns(column(1, bytes(24)), *RAW[1:]),
        with_columns(column(1, zlib.compress(bytes(23))), *RAW[1:]),
        with_columns(column(1, zlib.compress(bytes(25))), *RAW[1:]),
        with_columns(column(1, zlib.compress(bytes(24)) + b"x"), *RAW[1:]),
        with_columns(column(1, zlib.compress(bytes(24))[:-1]), *RAW[1:]),
        with_columns(struct.pack(">BI", 0, 2**32 - 1), *RAW[1:]),
        resealed(BODY.replace(struct.pack(">BBQ", 1, 1, 24), struct.pack(">BBQ", 1, 1, 99))),
        resealed(BODY.replace(b"\x03<i2", b"\x03|O8")),
        resealed(BODY[:20]),
        resealed(b""),
        b"",
    ],
)
def test_crafted_entries_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"f\.mla: integrity entry"):
        decode(data)


def test_booleans_are_0_or_1() -> None:
    columns = (*RAW, column(0, b"\0\1\0\1\0\2"), column(0, bytes(6)), RANGES[2])
    body = with_columns(*columns)[8:].replace(b"\x03<i2", b"\x03|b1")
    with pytest.raises(FormatError, match="booleans holds 2"):
        decode(resealed(body), dtype="|b1")


def test_a_column_never_takes_more_than_its_numbers() -> None:
    bomb = zlib.compress(bytes(1 << 26))
    with pytest.raises(FormatError, match="a column of 0 bytes, 24 are right"):
        decode(with_columns(column(1, bomb), *RAW[1:]))


def test_an_entry_of_a_later_version_says_nothing() -> None:
    assert decode(resealed(b"\x02" + b"whatever comes then")) is None


def test_writers_do_not_reach_the_terminal() -> None:
    found = decode(resealed(BODY.replace(b"mlarray_xr 0.1.0", b"\x1b[2J\x00\xff clear it!")))
    assert found is not None
    assert found.writer.isprintable()


@pytest.mark.parametrize(
    ("value", "content"),
    [(b"\xc4\x02ab", b"ab"), (b"\xc5\x00\x01a", b"a"), (b"\xc6\0\0\0\0", b"")],
)
def test_byte_strings_are_unpacked(value: bytes, content: bytes) -> None:
    assert unpack_bytes(value, name="f") == content


@pytest.mark.parametrize("value", [b"", b"\xc4", b"\xc4\x02a", b"\xc4\x00a", b"\xa2ab", b"\x80"])
def test_what_is_no_byte_string_is_refused(value: bytes) -> None:
    with pytest.raises(FormatError, match="no byte string"):
        unpack_bytes(value, name="f")


def test_places_of_chunks_end_with_the_array() -> None:
    header = header_for((20, 18), (8, 8), "<i2")
    assert chunk_place(0, header) == ((0, 0), ((0, 8), (0, 8)))
    assert chunk_place(8, header) == ((2, 2), ((16, 20), (16, 18)))
    assert chunk_place(0, header_for((), (), "<i2")) == ((), ())


# What is written, and what opening reads of it


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "good.mla"
    mlarray_xr.to_mla(VALUES, path, chunks=8, blocks=(8, 4), codec="lz4-5")
    return path


def recorded(path: Any) -> Integrity:
    found = read_integrity(source_of(path))
    assert found is not None
    return found


def test_written_files_say_what_they_hold(path: Path) -> None:
    record, frame = recorded(path), path.read_bytes()
    sections = sections_of(frame)
    header, offsets = read_index(source_of(path))
    np.testing.assert_array_equal(offsets, offsets_of(sections))
    assert record.differences(header) == ()
    assert record.payload_len == header.payload_len == len(sections.payload)
    assert record.writer.startswith("mlarray_xr ")
    assert record.statistics is not None
    assert record.special[0] == 1
    for number, offset in enumerate(offsets.tolist()):
        _, box = chunk_place(number, header)
        values = VALUES[tuple(slice(*pair) for pair in box)]
        found = [getattr(record.statistics, n)[number] for n in ("least", "greatest", "nonzero")]
        assert found == [values.min(), values.max(), np.count_nonzero(values)]
        if offset >= 0:
            length = int(record.length[number])
            stored = sections.payload[offset : offset + length]
            assert (stored[0], len(stored)) == (5, length)
            assert zlib.crc32(stored) == record.crc32[number]
            assert read_payload(
                source_of(path), header, start=offset, stop=offset + length
            ).tobytes() == (stored)


def test_other_files_say_nothing() -> None:
    frame = make_frame(VALUES, chunks=(8, 8), blocks=(8, 4), entries={"mlarray": b"x", "b": b"y"})
    assert read_integrity(source_of(frame)) is None


def test_an_entry_that_is_no_byte_string_is_damage() -> None:
    frame = make_frame(VALUES, chunks=(8, 8), blocks=(8, 4), entries={INTEGRITY_NAME: "text"})
    with pytest.raises(FormatError, match=r"integrity entry: .* no byte string"):
        read_integrity(source_of(frame))


class CountedFile(BytesIO):
    """A file that notes what is read of it."""

    def __init__(self, data: bytes, reads: list[tuple[int, int]]) -> None:
        super().__init__(data)
        self.reads = reads

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.reads.append((start, start + len(data)))
        return data


class CountedSource:
    """A source of bytes that look like a local file."""

    name = "counted.mla"

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)
        self.reads: list[tuple[int, int]] = []

    def open(self) -> CountedFile:
        return CountedFile(self.data, self.reads)

    def check(self) -> None:
        """Bytes in memory do not change behind a reader."""


def reads_of(call: Callable[[LocalSource], object], data: bytes) -> list[tuple[int, int]]:
    source = CountedSource(data)
    call(cast("LocalSource", source))
    return source.reads


def with_entries(frame: bytes, **entries: bytes) -> bytes:
    """Return the frame with more entries behind those it has."""
    array = blosc2.ndarray_from_cframe(frame, copy=True)
    for name, value in entries.items():
        array.schunk.vlmeta[name] = value
    data: bytes = array.to_cframe()
    return data


def test_a_small_file_is_opened_with_one_read(tmp_path: Path) -> None:
    path = tmp_path / "small.mla"
    mlarray_xr.to_mla(VALUES[:8, 8:16], path, chunks=8, blocks=8)
    data = path.read_bytes()
    assert len(data) < 4096
    assert reads_of(open_frame, data) == [(0, len(data))]


def test_opening_reads_neither_the_table_nor_entries_of_others(path: Path) -> None:
    noise = np.random.default_rng(0).bytes(1 << 20)
    data = with_entries(path.read_bytes(), other=noise, another=noise)
    assert len(data) > 2 << 20
    reads = reads_of(open_frame, data)
    assert len(reads) <= 6
    assert sum(stop - start for start, stop in reads) <= 6 * 4096
    trailer = len(data) - len(sections_of(data).trailer)
    spans = parse_trailer(data[trailer:], header_of(data), name="f")
    start, stop = (trailer + at for at in spans["other"])
    assert sum(max(0, min(b, stop) - max(a, start)) for a, b in reads) <= 2 * 4096


def test_opening_a_file_of_many_chunks_reads_little(tmp_path: Path) -> None:
    path = tmp_path / "many.mla"
    values = np.random.default_rng(0).integers(0, 99, (128, 128), "i2")
    mlarray_xr.to_mla(values, path, chunks=2, blocks=2, codec="lz4-1")
    data = path.read_bytes()
    assert len(sections_of(data).trailer) > 16 << 10
    reads = reads_of(open_frame, data)
    assert len(reads) <= 5
    assert sum(stop - start for start, stop in reads) <= 5 * 4096
    assert recorded(path).n_chunks == 4096


def test_metadata_may_stand_anywhere_in_the_trailer(path: Path) -> None:
    frame = path.read_bytes()
    plain = blosc2.ndarray_from_cframe(frame, copy=True)
    metadata, table = plain.schunk.vlmeta["mlarray"], plain.schunk.vlmeta[INTEGRITY_NAME]
    for name in ("mlarray", INTEGRITY_NAME):
        del plain.schunk.vlmeta[name]
    bare = plain.to_cframe()
    noise = np.random.default_rng(0).bytes(100_000)
    data = with_entries(bare, **{INTEGRITY_NAME: table, "noise": noise, "mlarray": metadata})
    expected = mlarray_xr.MlaArray(frame)
    found = mlarray_xr.MlaArray(data)
    assert found.metadata == expected.metadata
    np.testing.assert_array_equal(found[...], VALUES)
    assert_equal(read_integrity(source_of(data)), recorded(path))
    assert len(reads_of(open_frame, data)) <= 6


def test_a_huge_metadata_entry_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_entries(path.read_bytes(), mlarray=np.random.default_rng(0).bytes(3 << 20))
    length = len(sections_of(data).trailer)
    # The trailer is within its own limit: it may hold a table.
    monkeypatch.setattr(frame_sections, "trailer_length", lambda *_, **__: length)
    monkeypatch.setattr(frame_file, "DEFAULT_LIMITS", Limits(value_bytes=1 << 20))
    source = CountedSource(data)
    with pytest.raises(
        FormatError, match=r"it takes 31.* bytes in the trailer, the limit is 2097152"
    ):
        open_frame(cast("LocalSource", source))
    assert sum(stop - start for start, stop in source.reads) < 1 << 16


def test_a_file_that_becomes_shorter_is_an_error(path: Path) -> None:
    header, _ = read_index(source_of(path))
    source = CountedSource(path.read_bytes()[: header.header_len + 100])
    with pytest.raises(SourceChanged, match="became shorter"):
        read_payload(cast("LocalSource", source), header, start=0, stop=200)


# Checks on read


def read_all(reader: MappedReader, *, threads: int | None = 1) -> NDArray[Any]:
    out = np.empty(reader.header.shape, reader.header.dtype)
    reader.read(tuple((0, n) for n in out.shape), out, threads=threads)
    return out


def checked(address: Any) -> MappedReader:
    return MappedReader(source_of(address), check=True)


def flipped(path: Path, number: int, *, at: int = -1) -> bytes:
    """Return the file with one bit of a chunk flipped."""
    frame, record = path.read_bytes(), recorded(path)
    header, offsets = read_index(source_of(path))
    start = header.header_len + int(offsets[number])
    place = range(start, start + int(record.length[number]))[at]
    return replaced(frame, place, bytes([frame[place] ^ 1]))


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_checked_reads_are_right(path: Path, threads: int | None) -> None:
    reader = checked(path)
    np.testing.assert_array_equal(read_all(reader, threads=threads), VALUES)
    np.testing.assert_array_equal(read_all(reader, threads=threads), VALUES)


def test_a_checked_read_names_the_damaged_chunk(path: Path) -> None:
    data = flipped(path, 4)
    assert not np.array_equal(read_all(MappedReader(source_of(data))), VALUES)
    reader = checked(data)
    for _ in range(2):
        with pytest.raises(ChunkError, match=r"chunk 4 \(grid position \(1, 1\), box .*8, 16"):
            read_all(reader)
    out = np.empty((8, 18), "i2")
    reader.read(((0, 8), (0, 18)), out, threads=1)
    np.testing.assert_array_equal(out, VALUES[:8])


def test_a_checked_read_sees_zeros_that_became_nan(tmp_path: Path) -> None:
    path = tmp_path / "zeros.mla"
    mlarray_xr.to_mla(np.zeros((8, 8), "f4"), path, chunks=4, blocks=4)
    sections = sections_of(path.read_bytes())
    assert set(offsets_of(sections).tolist()) == {-0x7F << 56}  # 0x81: zeros
    nan = special_chunk(4 * 8, 3, (0x82 << 56).to_bytes(8, "little"))
    data = sections.with_index(nan).joined()
    assert np.isnan(read_all(MappedReader(source_of(data)))).all()
    with pytest.raises(ChunkError, match=r"chunk 0 .* the chunk table says NaN, written was zeros"):
        read_all(checked(data))


def test_files_without_checksums_are_not_read_checked(tmp_path: Path) -> None:
    plain = make_frame(VALUES, chunks=(8, 8), blocks=(8, 4))
    with pytest.raises(FormatError, match=r"no checksums for its chunks.*To fix: \(1\)"):
        checked(plain)


def test_checksums_of_another_array_are_refused(path: Path) -> None:
    frame = path.read_bytes()
    shape = frame.index(struct.pack(">q", 18), 100)
    data = replaced(frame, shape, struct.pack(">q", 17))
    assert mlarray_xr.MlaArray(data).shape == (20, 17)
    with pytest.raises(FormatError, match=r"header says shape \(20, 17\), written was \(20, 18\)"):
        checked(data)


def test_each_chunk_is_compared_once_and_only_when_asked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    fault = Integrity.fault

    def counted(self: Integrity, number: int, stored: Any, *, special: int) -> str | None:
        compared.append(number)
        return fault(self, number, stored, special=special)

    monkeypatch.setattr(Integrity, "fault", counted)
    reader, out = checked(path), np.empty((9, 3), "i2")
    reader.read(((8, 17), (9, 12)), out, threads=1)
    assert compared == [4, 7]
    for _ in range(2):
        read_all(reader)
    assert sorted(compared) == [1, 2, 3, 4, 5, 6, 7, 8]  # chunk 0 has no payload
    compared.clear()

    def refuse(source: LocalSource | BytesSource) -> None:
        raise AssertionError("the table is not to be looked for")

    monkeypatch.setattr(frame_entries, "read_integrity", refuse)
    read_all(MappedReader(source_of(path)))
    assert compared == []


def test_readers_that_check_are_kept_apart(path: Path) -> None:
    handles._open.clear()  # a full cache would drop others for these
    source, before = source_of(path), open_readers()
    plain, check = reader_of(source), reader_of(source, check=True)
    assert plain is not check
    assert reader_of(source, check=False) is plain
    assert reader_of(source, check=True) is check
    assert open_readers() == before + 2
    close_reader(source)
    assert open_readers() == before
    memory = source_of(path.read_bytes())
    held = [reader_of(memory, check=check) for check in (False, True)]
    assert held[0] is not held[1]
    assert [reader_of(memory, check=check) for check in (False, True)] == held
    assert len(handles._in_memory) >= 2
