"""Single blocks of mapped frames are what Blosc2 reads there, whatever the codec."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.chunk import check_chunks
from mlarray_xr.planning.selection import PointSelection
from mlarray_xr.storage import mapped, mapped_blocks
from mlarray_xr.storage.block_request import ChunkBlocks
from mlarray_xr.storage.counters import Tally
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.mapped_blocks import MappedBlocks
from mlarray_xr.storage.point_gather import gather_points
from mlarray_xr.storage.source import source_of
from tests.frame_kit import encoded_index, make_frame, offsets_of, sections_of
from tests.strategies import stored

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from tests.strategies import Stored

PIPELINES: list[dict[str, Any]] = [
    {},
    {"filters": [blosc2.Filter.NOFILTER], "filters_meta": [0]},
    {"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]},
    {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]},
    {"filters": [blosc2.Filter.DELTA, blosc2.Filter.SHUFFLE], "filters_meta": [0, 0]},
    {"filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA], "filters_meta": [0, 0]},
    {"clevel": 0},
    {"splitmode": blosc2.SplitMode.ALWAYS_SPLIT},
    {"splitmode": blosc2.SplitMode.NEVER_SPLIT},
    {"use_dict": True, "codec": blosc2.Codec.ZSTD},
    {"use_dict": True, "codec": blosc2.Codec.LZ4},
]
CODECS = [
    blosc2.Codec.BLOSCLZ,
    blosc2.Codec.LZ4,
    blosc2.Codec.LZ4HC,
    blosc2.Codec.ZLIB,
    blosc2.Codec.ZSTD,
]


@pytest.fixture(params=["native", "portable"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read through the C library, then without it."""
    if request.param == "portable":
        monkeypatch.setattr(mapped, "native_library", lambda: None)
        monkeypatch.setattr(mapped_blocks, "native_library", lambda: None)
    return str(request.param)


class Opened:
    """A frame in memory, its blocks, and what the blocks should hold."""

    def __init__(self, frame: bytes) -> None:
        self.frame, self.source = frame, source_of(frame)
        self.header: FrameHeader = open_frame(self.source).header
        self.reader = MappedReader(self.source)
        self.tally = Tally()
        bytes_ = np.frombuffer(frame, np.uint8)
        self.payload = bytes_[self.header.header_len : self.header.index_start]
        self.offsets = offsets_of(sections_of(frame)) if self.header.n_chunks else np.zeros(0, "i8")
        self.blocks = MappedBlocks(
            self.payload,
            header=self.header,
            check=self.check,
            fill=partial(self.reader.read, threads=1),
            tally=self.tally,
            name="frame",
        )

    def check(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        offsets = self.offsets[numbers]
        whole = np.zeros(len(numbers), np.bool_)
        has = offsets >= 0
        whole[has] = check_chunks(self.payload, numbers[has], offsets[has], self.header, name="f")
        return offsets, whole

    def requests(self, *, every: int = 1) -> Iterator[ChunkBlocks]:
        """Yield every n-th block of every chunk, those outside the array among them."""
        n_blocks = self.header.chunksize // self.header.blocksize
        for chunk in range(self.header.n_chunks):
            blocks = np.arange(chunk % every % n_blocks, n_blocks, every)
            yield ChunkBlocks(chunk=chunk, blocks=blocks)

    def compare(self, values: NDArray[Any], *, every: int = 1, threads: int | None = 1) -> None:
        """Compare the blocks with an array in memory, as far as they are inside of it."""
        asked = list(self.requests(every=every))
        taken: list[int] = []

        def take(number: int, blocks: NDArray[Any]) -> None:
            request = asked[number]
            assert blocks.shape == (len(request.blocks), *self.header.blocks)
            assert blocks.dtype == values.dtype
            assert blocks.flags.c_contiguous
            for block, found in zip(request.blocks.tolist(), blocks, strict=True):
                inside = values[self.place(request.chunk, block)]
                clipped = np.asarray(found)[tuple(slice(0, n) for n in inside.shape)]
                np.testing.assert_array_equal(clipped, inside)
            taken.append(number)

        self.blocks.read_blocks(iter(asked), take, threads=threads)
        assert sorted(taken) == list(range(len(asked)))

    def place(self, chunk: int, block: int) -> tuple[Any, ...]:
        """Return where a block lies in the array; it may be outside."""
        h = self.header
        if not h.shape:
            return ()
        grid = [-(-c // b) for c, b in zip(h.chunks, h.blocks, strict=True)]
        key = []
        for i, j, c, b, n in zip(
            np.unravel_index(chunk, h.chunk_grid),
            np.unravel_index(block, grid),
            h.chunks,
            h.blocks,
            h.shape,
            strict=True,
        ):
            start = int(i * c + j * b)
            key.append(slice(min(start, n), min(start + b, int((i + 1) * c), n)))
        return tuple(key)


# Dictionaries are for larger blocks: of tiny ones Blosc2 writes chunks that it cannot read.
@given(array=stored(), pipeline=st.sampled_from(PIPELINES[:-2]), codec=st.sampled_from(CODECS))
def test_every_block_is_what_was_stored(
    array: Stored, pipeline: dict[str, Any], codec: blosc2.Codec
) -> None:
    cparams = {"codec": codec, **pipeline}
    frame = make_frame(array.values, chunks=array.chunks, blocks=array.blocks, **cparams)
    if array.values.size:
        Opened(frame).compare(array.values)


# Of elements of more than 255 bytes Blosc2 makes no byte differences.
@pytest.mark.parametrize(
    ("pipeline", "dtype"),
    [
        pytest.param(pipeline, dtype, id=f"{number}-{dtype}")
        for number, pipeline in enumerate(PIPELINES)
        for dtype in ("u1", "<i2", ">f8", "U80")
        if dtype != "U80" or blosc2.Filter.BYTEDELTA not in pipeline.get("filters", ())
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_larger_blocks(pipeline: dict[str, Any], dtype: str, every: int, road: str) -> None:
    del road
    numbers = np.cumsum(np.random.default_rng(1).integers(0, 3, (26, 31)), axis=1)
    values = numbers.astype(dtype)
    frame = make_frame(values, chunks=(12, 20), blocks=(5, 8), **pipeline)
    Opened(frame).compare(values, every=every)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": blosc2.Codec.ZFP_ACC, "codec_meta": 3},
        {"codec": blosc2.Codec.NDLZ, "codec_meta": 4, "splitmode": blosc2.SplitMode.NEVER_SPLIT},
        {"filters": [blosc2.Filter.NDCELL], "filters_meta": [4], "codec": blosc2.Codec.LZ4},
        {"filters": [blosc2.Filter.NDMEAN], "filters_meta": [4], "codec": blosc2.Codec.LZ4},
        {"filters": [blosc2.Filter.TRUNC_PREC], "filters_meta": [9], "codec": blosc2.Codec.LZ4},
    ],
    ids=["zfp", "ndlz", "ndcell", "ndmean", "trunc_prec"],
)
def test_plugins_read_as_blosc2_reads_them(options: dict[str, Any], road: str) -> None:
    del road
    dtype = "u1" if options.get("codec") == blosc2.Codec.NDLZ else "<f4"
    values = np.cumsum(np.random.default_rng(2).normal(0, 9, (40, 50)), axis=0).astype(dtype)
    options = {"filters": [], "filters_meta": [], **options}
    frame = make_frame(values, chunks=(20, 24), blocks=(12, 8), **options)
    expected = blosc2.ndarray_from_cframe(frame)[...]
    Opened(frame).compare(expected, every=2)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2", "<i2", "|u1"])
@pytest.mark.parametrize("kind", ["zeros", "repeated", "uninit"])
def test_special_chunks(kind: str, dtype: str, road: str) -> None:
    del road
    shape, chunks, blocks = (20, 30), (8, 16), (3, 5)
    value = {"zeros": 0, "repeated": 7, "uninit": 0}[kind]
    make = blosc2.uninit if kind == "uninit" else partial(blosc2.full, fill_value=value)
    array = make(shape, dtype=np.dtype(dtype), chunks=chunks, blocks=blocks)
    Opened(array.to_cframe()).compare(np.full(shape, value, dtype), every=3)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", "<f8"])
def test_chunks_of_nan(dtype: str, road: str) -> None:
    del road
    values = np.ones((20, 30), dtype)
    parts = sections_of(make_frame(values, chunks=(8, 16), blocks=(3, 5)))
    offsets = offsets_of(parts)
    offsets[:2] = -0x7E << 56
    values[:8] = np.nan
    Opened(parts.with_index(encoded_index(offsets)).joined()).compare(values)


def test_threads_share_the_work(road: str) -> None:
    del road
    values = np.cumsum(np.random.default_rng(3).integers(0, 3, (600, 400)), axis=0).astype("<i4")
    opened = Opened(make_frame(values, chunks=(60, 50), blocks=(10, 12)))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for every in (1, 3):
                opened.compare(values, every=every, threads=3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_what_is_decoded_is_counted() -> None:
    values = np.arange(600, dtype="<i2").reshape(20, 30)
    opened = Opened(make_frame(values, chunks=(8, 16), blocks=(3, 5)))
    opened.compare(values, every=2)
    n = sum(len(request.blocks) for request in opened.requests(every=2))
    found = opened.tally.snapshot()
    assert (found.blocks_decoded, found.bytes_decoded) == (n, n * opened.header.blocksize)
    assert found.decode_seconds > 0


def test_requests_are_taken_as_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(600, dtype="<i2").reshape(20, 30)
    opened = Opened(make_frame(values, chunks=(8, 16), blocks=(3, 5)))
    monkeypatch.setattr(mapped_blocks, "_TURN_BYTES", opened.header.blocksize)
    events: list[tuple[str, int]] = []

    def requests() -> Iterator[ChunkBlocks]:
        for number, request in enumerate(opened.requests()):
            events.append(("asked", number))
            yield request

    opened.blocks.read_blocks(
        requests(), lambda number, _: events.append(("taken", number)), threads=1
    )
    expected = [(what, i) for i in range(opened.header.n_chunks) for what in ("asked", "taken")]
    assert events == expected


def test_an_error_of_the_caller_reaches_the_caller() -> None:
    opened = Opened(make_frame(np.zeros((20, 30), "<i2"), chunks=(8, 16), blocks=(3, 5)))

    def take(number: int, values: NDArray[Any]) -> None:
        del number, values
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        opened.blocks.read_blocks(opened.requests(), take, threads=2)


@pytest.mark.native
def test_a_damaged_chunk_is_named_and_others_are_read() -> None:
    values = np.cumsum(np.random.default_rng(4).integers(0, 3, (20, 30)), axis=0).astype("<i4")
    frame = bytearray(make_frame(values, chunks=(8, 16), blocks=(8, 16), codec=blosc2.Codec.ZSTD))
    good = Opened(bytes(frame))
    first = good.header.header_len + int(good.offsets[1])
    # The length of the first stream of its only block.
    frame[first + 36 : first + 40] = (1 << 20).to_bytes(4, "little")
    opened = Opened(bytes(frame))
    read = partial(opened.blocks.read_blocks, threads=1)
    with pytest.raises(ChunkError, match=r"chunk 1 \(grid position \(0, 1\)"):
        read([ChunkBlocks(chunk=1, blocks=np.array([0]))], lambda *_: None)
    taken: list[NDArray[Any]] = []
    read([ChunkBlocks(chunk=2, blocks=np.array([0]))], lambda _, v: taken.append(v.copy()))
    np.testing.assert_array_equal(taken[0][0], values[8:16, :16])


@pytest.mark.native
def test_blocks_that_claim_each_others_bytes_are_not_copied_without_end() -> None:
    rng = np.random.default_rng(8)
    values = rng.integers(0, 2**31, 64 * 1024, np.int32)
    values[1024:] >>= 8
    frame = bytearray(make_frame(values, chunks=(64 * 1024,), blocks=(1024,)))
    good = Opened(bytes(frame))
    table = good.header.header_len + int(good.offsets[0]) + 32
    starts = np.frombuffer(frame, "<i4", 64, table)
    # Every block is the first one, the others of which nobody speaks are its continuation.
    frame[table : table + 256] = np.full(64, starts.min(), "<i4").tobytes()
    opened = Opened(bytes(frame))
    asked = ChunkBlocks(chunk=0, blocks=np.arange(0, 64, 2))
    tracemalloc.start()
    with contextlib.suppress(ChunkError):
        opened.blocks.read_blocks([asked], lambda *_: None, threads=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 32 * opened.header.blocksize


@pytest.mark.native
@given(at=st.integers(32, 10**6), byte=st.integers(0, 255))
def test_flipped_bytes_raise_or_read_never_more(at: int, byte: int) -> None:
    values = np.cumsum(np.random.default_rng(5).integers(0, 3, (20, 30)), axis=0).astype("<i4")
    frame = bytearray(make_frame(values, chunks=(8, 16), blocks=(4, 8)))
    header = open_frame(source_of(bytes(frame))).header
    frame[header.header_len + at % header.payload_len] = byte
    opened = Opened(bytes(frame))
    sizes: list[int] = []
    with contextlib.suppress(ChunkError):
        opened.blocks.read_blocks(
            opened.requests(every=2), lambda _, v: sizes.append(v.nbytes), threads=1
        )
        assert sum(sizes) == opened.tally.snapshot().bytes_decoded
    assert all(nbytes % opened.header.blocksize == 0 for nbytes in sizes)


def test_a_million_points_of_a_large_sparse_file_decode_each_block_once() -> None:
    """2048 cubed, of which all but a few chunks are zeros that take no space."""
    array = blosc2.zeros((2048,) * 3, dtype=np.uint8, chunks=(256,) * 3, blocks=(64,) * 3)
    filled = np.arange(64**3, dtype=np.uint32).astype(np.uint8).reshape((64,) * 3)
    array[512:576, 1024:1088, :64] = filled
    opened = Opened(array.to_cframe())
    points = np.random.default_rng(6).integers(0, 2048, (3, 10**6))
    points[:, :20_000] = points[:, :20_000] % 64 + np.array([[512], [1024], [0]])
    selection = PointSelection(
        points=tuple(points), ranges=(None,) * 3, points_shape=(10**6,), points_at=0
    )
    found = gather_points(selection, opened.header, opened.blocks, threads=None)
    inside = (points // 64 == np.array([[8], [16], [0]])).all(axis=0)
    np.testing.assert_array_equal(found[inside], filled[tuple(points[:, inside] % 64)])
    assert not found[~inside].any()
    touched = len(np.unique(np.ravel_multi_index(tuple(points // 64), (32,) * 3)))
    assert opened.tally.snapshot().blocks_decoded == touched
