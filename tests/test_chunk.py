"""Chunk headers, chunk tables and block tables: what is accepted, and every rule on damage."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ChunkError, FormatError
from mlarray_xr.format.chunk import (
    _MAX_INDEX_BYTES,
    CHUNK_HEADER_BYTES,
    are_chunk_heads,
    check_chunks,
    check_index,
    check_index_header,
    is_chunk_head,
    parse_chunk_header,
)
from mlarray_xr.format.frame import FrameHeader, parse_header
from mlarray_xr.storage.chunks import decode_chunk
from tests.frame_kit import (
    Sections,
    encoded_index,
    make_frame,
    offsets_of,
    replaced,
    sections_of,
    special_chunk,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RAMP = (np.arange(20 * 24, dtype="<i4") // 7).reshape(20, 24)


@dataclass(frozen=True)
class Stored:
    """A frame as the checks see it."""

    sections: Sections
    header: FrameHeader
    offsets: NDArray[np.int64]

    def check(
        self, payload: bytes | None = None, numbers: list[int] | None = None
    ) -> NDArray[np.bool_]:
        wanted = np.arange(len(self.offsets)) if numbers is None else np.asarray(numbers)
        stored = wanted[self.offsets[wanted] >= 0]
        data = np.frombuffer(self.sections.payload if payload is None else payload, np.uint8)
        return check_chunks(data, stored, self.offsets[stored], self.header, name="f.mla")


def stored(frame: bytes) -> Stored:
    sections = sections_of(frame)
    header = parse_header(sections.header, file_size=len(frame), name="f.mla")
    return Stored(sections, header, offsets_of(sections))


RAMP_FRAME = make_frame(RAMP, chunks=(8, 24), blocks=(4, 12))
SMALL = stored(RAMP_FRAME)


def read(tmp_path: Path, frame: bytes) -> NDArray[np.int32]:
    path = tmp_path / "f.b2nd"
    path.write_bytes(frame)
    with MlaArray(path) as array:
        values: NDArray[np.int32] = array[...]
    return values


def test_good_chunks_pass() -> None:
    assert SMALL.check().tolist() == [False] * 3


CHUNK_RULES = {
    "version": (0, b"\x06"),
    "not extended": (2, b"\x04"),
    "codec format 2": (2, b"\x45"),
    "codec format 7": (2, b"\xe5"),
    "typesize": (3, b"\x08"),
    "nbytes small": (4, struct.pack("<i", 380)),
    "nbytes negative": (4, struct.pack("<i", -1)),
    "blocksize": (8, struct.pack("<i", 96)),
    "blocksize 0": (8, struct.pack("<i", 0)),
    "cbytes 31": (12, struct.pack("<i", 31)),
    "cbytes negative": (12, struct.pack("<i", -5)),
    "cbytes huge": (12, struct.pack("<i", 2**31 - 1)),
    "filter 5": (16, b"\x05"),
    "filter 255": (21, b"\xff"),
    "special 1": (31, b"\x10"),
    "special 2": (31, b"\x20"),
    "special 4": (31, b"\x40"),
    "special 7": (31, b"\x70"),
    "repeat of wrong length": (31, b"\x30"),
    "first block before": (32, struct.pack("<i", 47)),
    "first block negative": (32, struct.pack("<i", -1)),
    "first block beyond": (32, struct.pack("<i", 2**31 - 1)),
    "last block beyond": (44, struct.pack("<i", 100_000)),
}


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("rule", CHUNK_RULES)
def test_chunk_rule(rule: str, number: int) -> None:
    at, value = CHUNK_RULES[rule]
    payload = replaced(SMALL.sections.payload, int(SMALL.offsets[number]) + at, value)
    with pytest.raises(
        ChunkError, match=rf"f\.mla: chunk {number} \(grid position \({number}, 0\)"
    ):
        SMALL.check(payload)
    others = [i for i in range(3) if i != number]
    assert SMALL.check(payload, others).tolist() == [False, False]


def test_a_damaged_chunk_leaves_the_others_readable(tmp_path: Path) -> None:
    at = len(SMALL.sections.header) + int(SMALL.offsets[1]) + 8
    (tmp_path / "f.b2nd").write_bytes(replaced(RAMP_FRAME, at, b"\x00"))
    array = MlaArray(tmp_path / "f.b2nd")
    with pytest.raises(ChunkError, match=r"chunk 1 .*Other chunks can still be read"):
        array[...]
    np.testing.assert_array_equal(array[:8], RAMP[:8])
    with pytest.raises(ChunkError, match="chunk 1"):
        array[7:9]
    np.testing.assert_array_equal(array[16:], RAMP[16:])


def test_raw_chunks_have_exactly_their_bytes() -> None:
    noise = np.frombuffer(np.random.default_rng(0).bytes(800), "<i4")
    raw = stored(make_frame(noise, chunks=(100,), blocks=(50,)))
    assert raw.sections.payload[int(raw.offsets[0]) + 2] & 2
    raw.check()
    at = int(raw.offsets[0]) + 12
    with pytest.raises(ChunkError, match="chunk 0"):
        raw.check(replaced(raw.sections.payload, at, struct.pack("<i", 431)))


def test_a_repeated_value_has_exactly_one_element() -> None:
    array = blosc2.full((20,), 9, dtype="<i4", chunks=(10,), blocks=(5,))
    full = stored(array.to_cframe())
    assert (full.offsets >= 0).all()
    full.check()
    at = int(full.offsets[1]) + 12
    with pytest.raises(ChunkError, match="chunk 1"):
        full.check(replaced(full.sections.payload, at, struct.pack("<i", 35)))


@pytest.mark.parametrize(("block", "n_blocks"), [(64, 70_000), (256, 300), (1024, 2)])
def test_block_tables_of_any_length_are_checked(block: int, n_blocks: int) -> None:
    row = np.repeat(np.arange(n_blocks, dtype="<u4") % 251, block // 4)
    values = np.concatenate([row, row, row])
    many = stored(make_frame(values, chunks=(len(row),), blocks=(block // 4,)))
    assert many.header.chunksize // many.header.blocksize == n_blocks
    assert not many.sections.payload[int(many.offsets[0]) + 2] & 2
    many.check()
    for number, entry in ((0, 0), (2, n_blocks - 1), (1, n_blocks // 2)):
        at = int(many.offsets[number]) + 32 + 4 * entry
        damaged = replaced(many.sections.payload, at, struct.pack("<i", 2**30))
        with pytest.raises(ChunkError, match=f"chunk {number} "):
            many.check(damaged)


def test_a_block_table_longer_than_its_chunk_is_refused() -> None:
    cbytes = struct.pack("<i", 32 + 4 * 4 - 1)
    payload = replaced(SMALL.sections.payload, int(SMALL.offsets[0]) + 12, cbytes)
    with pytest.raises(ChunkError, match="chunk 0"):
        SMALL.check(payload)


@pytest.mark.parametrize(
    ("cparams", "whole"),
    [
        ({"codec": blosc2.Codec.ZSTD, "use_dict": True}, True),
        ({"filters": [blosc2.Filter.DELTA], "filters_meta": [0]}, True),
        ({"codec": blosc2.Codec.ZSTD}, False),
    ],
)
def test_chunks_that_must_be_decoded_whole_are_told(cparams: dict[str, Any], whole: bool) -> None:
    values = np.tile(np.arange(1000, dtype="<i4"), 40)
    found = stored(make_frame(values, chunks=(20_000,), blocks=(2_000,), **cparams)).check()
    assert found.tolist() == [whole] * 2


@given(data=st.data())
def test_one_chunk_header_is_judged_as_many_are(data: st.DataObject) -> None:
    """Any bytes, most of them near a good header: both judges say the same."""
    kinds = (RAMP, np.full_like(RAMP, 7), np.random.default_rng(3).bytes(1920))
    values = data.draw(st.sampled_from(kinds))
    array = np.frombuffer(values, "<i4").reshape(20, 24) if isinstance(values, bytes) else values
    found = stored(make_frame(array, chunks=(10, 12), blocks=(5, 6)))
    head = bytearray(found.sections.payload[:CHUNK_HEADER_BYTES])
    for at, byte in data.draw(
        st.dictionaries(st.integers(0, 31), st.integers(0, 255), max_size=3)
    ).items():
        head[at] = byte
    room = data.draw(st.sampled_from((0, 31, 32, 36, 500, 1 << 20)))
    header = data.draw(st.sampled_from((found.header, replace(found.header, typesize=300))))
    many = are_chunk_heads(
        np.frombuffer(head, np.uint8)[None], room=np.array([room]), header=header
    )
    assert is_chunk_head(bytes(head), room=room, header=header) == many[0]


def test_special_entries_of_the_table() -> None:
    special = np.array([0x81, 0x82, 0x84], np.uint64) << np.uint64(56)
    check_index(special.view(np.int64), SMALL.header, name="f")
    for entry in (0x80, 0x83, 0x85, 0xFF):
        table = np.array([0, entry << 56, 0], np.uint64).view(np.int64)
        with pytest.raises(ChunkError, match=r"f\.mla: chunk 1 points to byte"):
            check_index(table, SMALL.header, name="f.mla")


@pytest.mark.parametrize(
    "entry", [-1, 2**63 - 1, -(2**63) + (1 << 56) + 1, len(SMALL.sections.payload) - 31]
)
def test_impossible_entries_of_the_table(entry: int) -> None:
    with pytest.raises(ChunkError, match=f"chunk 2 points to byte {entry}"):
        check_index(np.array([0, 0, entry], np.int64), SMALL.header, name="f")
    check_index(
        np.array([0, 0, len(SMALL.sections.payload) - 32], np.int64), SMALL.header, name="f"
    )


INDEX = SMALL.sections.index


@pytest.mark.parametrize(
    "head",
    [
        replaced(INDEX[:32], 0, b"\x06"),
        replaced(INDEX[:32], 3, b"\x04"),
        replaced(INDEX[:32], 4, struct.pack("<i", 16)),
        replaced(INDEX[:32], 12, struct.pack("<i", len(INDEX) + 1)),
    ],
)
def test_index_header_rule(head: bytes) -> None:
    check_index_header(INDEX[:32], SMALL.header, index_bytes=len(INDEX), name="f")
    with pytest.raises(FormatError, match="damaged or not N-D"):
        check_index_header(head, SMALL.header, index_bytes=len(INDEX), name="f")


def test_an_index_shorter_than_its_header_is_refused() -> None:
    for head, n_bytes in ((INDEX[:32], 31), (INDEX[:31], 32), (b"", 0)):
        with pytest.raises(FormatError, match="at least 32 are needed"):
            check_index_header(head, SMALL.header, index_bytes=n_bytes, name="f")


def test_the_number_of_chunks_is_bounded() -> None:
    n_chunks = _MAX_INDEX_BYTES // 8 + 1
    header = replace(SMALL.header, shape=(8 * n_chunks, 24))
    head = special_chunk(8 * n_chunks, 3, bytes(8))
    with pytest.raises(FormatError, match=f"{n_chunks} chunks exceed the limit"):
        check_index_header(head[:32], header, index_bytes=len(head), name="f")


def test_gaps_and_disorder_in_the_payload(tmp_path: Path) -> None:
    sections, offsets = SMALL.sections, SMALL.offsets
    ends = sorted([*offsets.tolist(), len(sections.payload)])
    pieces = {at: sections.payload[at : ends[ends.index(at) + 1]] for at in offsets.tolist()}
    payload, moved = b"\xee" * 37, offsets.copy()
    for number in (2, 0, 1):
        moved[number] = len(payload)
        payload += pieces[int(offsets[number])] + b"\xee" * 11
    frame = replace(sections, payload=payload, index=encoded_index(moved)).joined()
    np.testing.assert_array_equal(read(tmp_path, frame), RAMP)


def test_two_entries_may_name_one_chunk(tmp_path: Path) -> None:
    table = SMALL.offsets.copy()
    table[1] = table[0]
    frame = SMALL.sections.with_index(encoded_index(table)).joined()
    values = read(tmp_path, frame)
    np.testing.assert_array_equal(values[8:16], RAMP[:8])


@pytest.mark.parametrize("codec", [blosc2.Codec.BLOSCLZ, blosc2.Codec.LZ4, blosc2.Codec.ZSTD])
def test_a_compressed_index_is_read(tmp_path: Path, codec: blosc2.Codec) -> None:
    values = np.zeros(4000, "<i2")
    values[5::40] = 3
    sections = sections_of(make_frame(values, chunks=(20,), blocks=(10,)))
    index = blosc2.compress2(offsets_of(sections), typesize=8, codec=codec, nthreads=1)
    assert not index[2] & 2
    np.testing.assert_array_equal(read(tmp_path, sections.with_index(index).joined()), values)


def test_an_index_of_one_repeated_value_is_read(tmp_path: Path) -> None:
    frame = sections_of(blosc2.zeros((24,), dtype="<i4", chunks=(8,), blocks=(4,)).to_cframe())
    index = special_chunk(24, 3, struct.pack("<Q", 0x81 << 56))
    np.testing.assert_array_equal(
        read(tmp_path, frame.with_index(index).joined()), np.zeros(24, "<i4")
    )


@pytest.mark.parametrize("code", [2, 4, 5, 6, 7])
def test_an_index_without_content_is_refused(tmp_path: Path, code: int) -> None:
    frame = SMALL.sections.with_index(special_chunk(24, code)).joined()
    with pytest.raises(FormatError):
        read(tmp_path, frame)


@pytest.mark.parametrize("value", [b"", bytes(16), bytes(24), bytes(7)])
def test_a_repeated_index_value_of_another_length_is_refused(tmp_path: Path, value: bytes) -> None:
    frame = SMALL.sections.with_index(special_chunk(24, 3, value)).joined()
    with pytest.raises(FormatError):
        read(tmp_path, frame)


def test_decoding_is_bounded_before_it_begins() -> None:
    data = blosc2.compress2(np.zeros(100_000, "u1") + 1, nthreads=1)
    assert len(data) < 1000
    with pytest.raises(FormatError, match="decodes to 100000 bytes, the limit is 99999"):
        decode_chunk(data, max_nbytes=99_999, name="value")
    assert decode_chunk(data, max_nbytes=100_000, name="value").tolist() == [1] * 100_000
    with pytest.raises(FormatError, match="the limit is"):
        decode_chunk(special_chunk(2**31 - 1, 1), max_nbytes=1 << 25, name="value")


@pytest.mark.parametrize("size", [1, 40, 5000])
def test_values_of_any_size_decode_to_what_was_encoded(size: int) -> None:
    for data in (np.random.default_rng(size).bytes(size), b"ab" * size, bytes(size)):
        chunk = blosc2.compress2(data, typesize=1, nthreads=1)
        assert decode_chunk(chunk, max_nbytes=1 << 20, name="value").tobytes() == data


@pytest.mark.parametrize(
    ("chunk", "match"),
    [
        (b"", "are no Blosc2 chunk"),
        (bytes(31), "are no Blosc2 chunk"),
        (replaced(INDEX, 0, b"\x09"), "version 9"),
        (INDEX + b"\x00", "are stored"),
        (INDEX[:-1], "are stored"),
        (replaced(INDEX, 4, struct.pack("<i", 0)), "decodes to 0 bytes"),
        (replaced(INDEX, 4, struct.pack("<i", -8)), "decodes to -8 bytes"),
    ],
)
def test_chunk_header_rule(chunk: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        parse_chunk_header(chunk, max_nbytes=1 << 20, name="value")


def test_raw_values_must_have_the_length_they_claim() -> None:
    raw = blosc2.compress2(np.random.default_rng(0).bytes(64), typesize=1, nthreads=1)
    assert raw[2] & 2
    with pytest.raises(FormatError, match="63 raw bytes do not fit"):
        parse_chunk_header(replaced(raw, 4, struct.pack("<i", 63)), max_nbytes=100, name="value")
