"""The block index: what is written comes back, what does not belong is passed over, no bombs."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlarray_xr.errors import FormatError
from mlarray_xr.format.block_index import (
    BlockIndex,
    decode_block_index,
    encode_block_index,
    most_block_index_bytes,
)
from mlarray_xr.format.block_layout import head_bytes, parse_block_layout
from mlarray_xr.format.column import decode_column, encode_column
from mlarray_xr.format.cursor import Cursor
from mlarray_xr.format.frame import FrameHeader, parse_header
from tests.frame_kit import make_frame, offsets_of, replaced, sections_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Where the fields stand, see the module.
VERSION_AT, CHUNKS_AT, BLOCKS_AT, TABLE_CRC_AT, COLUMNS_AT = 8, 9, 17, 21, 25


def header_of(shape: tuple[int, ...], chunks: tuple[int, ...], blocks: tuple[int, ...]) -> Any:
    """Return the header of a frame of two-byte elements."""
    frame = make_frame(np.zeros(shape, "<i2"), chunks=chunks, blocks=blocks)
    return parse_header(sections_of(frame).header, file_size=len(frame))


HEADER: FrameHeader = header_of((40,), (16,), (4,))  # 3 chunks of 4 blocks
OFFSETS = np.array([0, 300, 100], np.int64)


def small_index() -> BlockIndex:
    random = np.random.default_rng(0)
    return BlockIndex(
        heads=random.integers(0, 256, (3, 32), np.uint8),
        starts=random.integers(0, 1000, (3, 4), np.int32),
        checks=random.integers(0, 1 << 16, (3, 4), np.uint16),
    )


GOOD = encode_block_index(small_index(), OFFSETS)


def decode(data: bytes, header: FrameHeader = HEADER, offsets: Any = OFFSETS) -> BlockIndex | None:
    return decode_block_index(data, header, offsets, name="f.mla")


def resealed(data: bytes) -> bytes:
    """Return an index with the checksum that belongs to what was changed."""
    return data[:4] + struct.pack(">I", zlib.crc32(data[8:])) + data[8:]


@given(st.integers(1, 12), st.integers(1, 9), st.data())
def test_what_is_written_comes_back(n_chunks: int, n_blocks: int, data: st.DataObject) -> None:
    header = replace(HEADER, shape=(n_chunks,), chunks=(1,), chunksize=n_blocks * HEADER.blocksize)
    wanted = BlockIndex(
        heads=data.draw(npst.arrays(np.uint8, (n_chunks, 32))),
        starts=data.draw(npst.arrays(np.int32, (n_chunks, n_blocks))),
        checks=data.draw(npst.arrays(np.uint16, (n_chunks, n_blocks))),
    )
    offsets = data.draw(npst.arrays(np.int64, n_chunks))
    encoded = encode_block_index(wanted, offsets)
    assert len(encoded) <= (most_block_index_bytes(header) or 0)
    found = decode(encoded, header, offsets)
    assert found is not None
    np.testing.assert_array_equal(found.heads, wanted.heads)
    np.testing.assert_array_equal(found.starts, wanted.starts)
    np.testing.assert_array_equal(found.checks, wanted.checks)
    dtypes = (found.heads.dtype.str, found.starts.dtype.str, found.checks.dtype.str)
    assert dtypes == ("|u1", "<i4", "<u2")


def stored_index(frame: bytes) -> tuple[FrameHeader, NDArray[np.int64], BlockIndex, Any]:
    """Return header, chunk table and index of a frame, and the first bytes of its chunks."""
    sections = sections_of(frame)
    header = parse_header(sections.header, file_size=len(frame))
    offsets, size = offsets_of(sections), head_bytes(header)
    firsts = np.zeros((len(offsets), size), np.uint8)
    for chunk, offset in enumerate(offsets.tolist()):
        if offset >= 0:
            firsts[chunk] = np.frombuffer(sections.payload, np.uint8, size, offset)
    starts = np.ascontiguousarray(firsts[:, 32:]).view("<i4")
    # As hard to compress as checksums are.
    checks = np.random.default_rng(1).integers(0, 1 << 16, starts.shape, np.uint16)
    index = BlockIndex(heads=firsts[:, :32], starts=starts, checks=checks)
    return header, offsets, index, firsts


def test_an_entry_is_what_the_chunk_itself_tells() -> None:
    values = np.arange(60 * 50, dtype="<i4").reshape(60, 50) // 7
    values[20:40] = 0
    frame = make_frame(values, chunks=(20, 30), blocks=(5, 10))
    header, offsets, index, firsts = stored_index(frame)
    found = decode(encode_block_index(index, offsets), header, offsets)
    assert found is not None
    for chunk, offset in enumerate(offsets.tolist()):
        assert found.head(chunk) == firsts[chunk].tobytes()
        if offset >= 0:
            parse_block_layout(found.head(chunk), header, number=chunk, room=10**6, name="f")
    assert (offsets < 0).any()


def test_it_takes_about_four_bytes_a_block() -> None:
    """Noise on a ramp, in chunks of 45 blocks as images have them."""
    shape, chunks, blocks = (132, 144, 240), (66, 72, 120), (22, 24, 24)
    z, y, x = np.indices(shape)
    noise = np.random.default_rng(0).normal(0, 20, shape)
    values = (1000 * np.sin(z / 40) * np.cos(y / 30) + 3 * x + noise).astype("<i2")
    header, offsets, index, _ = stored_index(make_frame(values, chunks=chunks, blocks=blocks))
    encoded = encode_block_index(index, offsets)
    assert len(encoded) / index.starts.size < 5.2  # 8 chunks only: headers weigh more than in files
    assert len(encoded) < 0.001 * header.frame_len
    assert index.starts.shape == (8, 45)


def test_an_index_of_another_chunk_table_is_passed_over() -> None:
    for other in (OFFSETS[::-1], OFFSETS + 1, np.array([0, 300, -1])):
        assert decode(GOOD, offsets=other) is None
    assert decode(GOOD, offsets=OFFSETS.astype(">i8")) is not None


@pytest.mark.parametrize(("shape", "blocks"), [((56,), (4,)), ((40,), (8,))])
def test_an_index_of_another_array_is_passed_over(
    shape: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    assert decode(GOOD, header_of(shape, (16,), blocks)) is None


def test_a_later_version_is_passed_over_whatever_follows() -> None:
    for version in (0, 2, 255):
        assert decode(resealed(replaced(GOOD, VERSION_AT, bytes([version])))) is None
    assert decode(resealed(GOOD[:VERSION_AT] + b"\x02 something else")) is None


def test_an_index_of_an_array_without_elements() -> None:
    header = header_of((0, 5), (0, 5), (0, 5))
    nothing = BlockIndex(
        heads=np.zeros((0, 32), np.uint8),
        starts=np.zeros((0, 0), np.int32),
        checks=np.zeros((0, 0), np.uint16),
    )
    offsets = np.zeros(0, np.int64)
    found = decode(encode_block_index(nothing, offsets), header, offsets)
    assert found is not None
    assert found.starts.size == 0
    assert decode(GOOD, header, offsets) is None


def test_every_damaged_bit_is_seen() -> None:
    for at in range(len(GOOD)):
        for bit in range(8):
            with pytest.raises(FormatError, match=r"f\.mla: block index"):
                decode(replaced(GOOD, at, bytes([GOOD[at] ^ 1 << bit])))


def test_every_truncation_is_seen() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(FormatError, match=r"f\.mla: block index"):
            decode(GOOD[:length])
    for length in range(COLUMNS_AT, len(GOOD)):
        with pytest.raises(FormatError, match=r"f\.mla: block index"):
            decode(resealed(GOOD[:length]))


@given(st.integers(COLUMNS_AT, len(GOOD) - 1), st.binary(min_size=1, max_size=8))
@settings(max_examples=300)
def test_forged_columns_are_refused_or_read_and_nothing_else(at: int, value: bytes) -> None:
    """Whoever forges content forges the checksum with it."""
    forged = resealed((GOOD[:at] + value + GOOD[at + len(value) :])[: len(GOOD)])
    try:
        found = decode(forged)
    except FormatError:
        return
    assert found is not None
    assert (found.heads.shape, found.starts.shape) == ((3, 32), (3, 4))


def forged(header: FrameHeader, offsets: NDArray[np.int64], *columns: bytes) -> bytes:
    """Return an index that claims what a header asks for, with any columns."""
    table = zlib.crc32(offsets.astype("<i8").tobytes())
    n_blocks = header.chunksize // header.blocksize
    body = struct.pack(">BQII", 1, header.n_chunks, n_blocks, table) + b"".join(columns)
    return b"mlxb" + struct.pack(">I", zlib.crc32(body)) + body


def column(method: int, stored: bytes) -> bytes:
    return struct.pack(">BI", method, len(stored)) + stored


def grown_bytes(data: bytes, header: FrameHeader, offsets: NDArray[np.int64]) -> int:
    """Return the most bytes that decoding an index allocates, whether it is refused or not."""
    tracemalloc.start()
    try:
        decode(data, header, offsets)
    except FormatError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return peak


def test_a_bomb_is_not_inflated() -> None:
    """100 MB of zeros in 100 kB; the headers of three chunks have 96 bytes."""
    bomb = column(1, zlib.compress(bytes(100_000_000), 9))
    data = forged(HEADER, OFFSETS, bomb, bomb, bomb)
    with pytest.raises(FormatError, match="a column of 0 bytes, 96 are right"):
        decode(data)
    assert grown_bytes(data, HEADER, OFFSETS) < 10 * len(data) < 5_000_000


def test_a_bomb_whose_size_the_header_claims_is_not_inflated() -> None:
    """A frame may claim 2^31 bytes a chunk in blocks of one element."""
    n_blocks = (1 << 31) // 2 - 100
    header = replace(HEADER, shape=(1,), chunks=(1,), blocksize=2, chunksize=2 * n_blocks)
    offsets = np.zeros(1, np.int64)
    assert most_block_index_bytes(header) is None
    packer = zlib.compressobj(9)
    starts = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    data = forged(header, offsets, column(0, bytes(32)), column(1, starts))
    assert decode(data, header, offsets) is None
    assert grown_bytes(data, header, offsets) < 20_000_000


@pytest.mark.parametrize(
    "stored",
    [
        column(2, bytes(96)),
        column(0, bytes(95)),
        column(0, bytes(97)),
        column(1, zlib.compress(bytes(95))),
        column(1, zlib.compress(bytes(97))),
        column(1, zlib.compress(bytes(96)) + b"x"),
        column(1, zlib.compress(bytes(96))[:-1]),
        column(1, b"no stream"),
        column(1, b""),
        struct.pack(">BI", 0, 2**32 - 1) + bytes(96),
    ],
)
def test_a_column_of_another_length_is_refused(stored: bytes) -> None:
    starts = column(0, small_index().starts.astype("<i4").tobytes())
    checks = column(0, bytes(24))
    assert decode(forged(HEADER, OFFSETS, column(0, bytes(96)), starts, checks)) is not None
    with pytest.raises(FormatError, match="block index"):
        decode(forged(HEADER, OFFSETS, stored, starts, checks))


def test_the_most_bytes_of_an_index() -> None:
    assert most_block_index_bytes(HEADER) == 3 * (32 + 6 * 4) + 64
    assert len(GOOD) <= 3 * (32 + 6 * 4) + 64
    assert most_block_index_bytes(header_of((0,), (1,), (1,))) == 64
    large = replace(HEADER, shape=(16 * (64 << 20) // (32 + 24) - 16 * 4,))
    assert (most_block_index_bytes(large) or 0) > 63 << 20
    assert most_block_index_bytes(replace(HEADER, shape=(large.shape[0] + 160,))) is None


COLUMNS = st.sampled_from(["|u1", "<i4", "<u8"]).flatmap(
    lambda dtype: npst.arrays(
        np.dtype(dtype), st.integers(0, 200), elements=st.integers(0, 200) | st.integers(0, 3)
    )
)


@given(COLUMNS)
def test_columns_come_back_and_never_grow(numbers: NDArray[Any]) -> None:
    stored = encode_column(numbers, numbers.dtype.str)
    assert len(stored) <= 5 + numbers.nbytes
    cursor = Cursor(stored + b"rest", what="column")
    found = decode_column(cursor, numbers.dtype, len(numbers))
    np.testing.assert_array_equal(found, numbers)
    assert found.dtype == numbers.dtype
    assert cursor.take(4) == b"rest"
