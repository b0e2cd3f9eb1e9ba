"""Remote reads against NumPy and against the local reader; what they request, and how much."""

from __future__ import annotations

import itertools
import math
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import blosc2
import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from obstore.store import LocalStore, MemoryStore

from mlarray_xr import measure, to_mla
from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ChunkError, FormatError, SourceError
from mlarray_xr.format.block_index import BLOCK_INDEX_NAME
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.storage import ranged
from mlarray_xr.storage.block_cache import block_cache
from mlarray_xr.storage.frame_entries import read_block_index
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.source import source_of
from tests.frame_kit import make_frame, offsets_of, sections_of
from tests.range_server import Faults, RangeServer
from tests.remote_kit import (
    BLOCKS,
    CHUNKS,
    VOLUME,
    fast_retries,
    forget,
    settings,
    volume_frame,
    with_block_index,
)
from tests.s3_server import S3Server, s3_server
from tests.stored_metadata import DATA, GENUINE, name_of
from tests.strategies import filled_boxes, keys, stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

FRAME = volume_frame()
INDEXED = with_block_index(FRAME)
EVERY = [*GENUINE, *sorted((DATA / "mla").glob("*/*.b2nd"))]
BLOCK = tuple(slice(2 * b, 3 * b) for b in BLOCKS[:1]) + tuple(slice(0, b) for b in BLOCKS[1:])
"""One block of the first chunk, the fifth along the first axis."""
HEAD_BYTES = 32 + 4 * 24
fresh_names = (f"{number}.b2nd" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[RangeServer]:
    with RangeServer({"plain.b2nd": FRAME, "indexed.b2nd": INDEXED}) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(server: RangeServer) -> Iterator[None]:
    with settings():
        server.faults = Faults()
        server.reset_counts()
        yield
        assert block_cache().in_flight == 0


def served(server: RangeServer, frame: bytes) -> str:
    """Put a file under a name that was never used; return its URL."""
    name = next(fresh_names)
    server.put(name, frame)
    return server.url(name)


def assert_same(found: Any, expected: Any) -> None:
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.tobytes() == expected.tobytes()


def extents(frame: bytes, chunk: int) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """Return the stored bytes of a chunk, and first and last byte of its blocks, read by hand."""
    sections = sections_of(frame)
    stored = sections.payload[int(offsets_of(sections)[chunk]) :]
    cbytes = int.from_bytes(stored[12:16], "little")
    starts = np.frombuffer(stored, "<i4", 24, 32).astype(np.int64)
    edges = sorted([*starts.tolist(), cbytes])
    stops = [edges[edges.index(start) + 1] for start in starts.tolist()]
    return cbytes, starts, np.array(stops)


# --- values ---------------------------------------------------------------------------------------


@given(data=st.data(), file=stored(min_dims=0, max_dims=4))
@hypothesis_settings(max_examples=60)
def test_boxes_and_selections_are_those_of_numpy(
    server: RangeServer, data: st.DataObject, file: Any
) -> None:
    frame = make_frame(file.values, chunks=file.chunks, blocks=file.blocks)
    if data.draw(st.booleans()):
        frame = with_block_index(frame)
    changes = {
        "cache_bytes": data.draw(st.sampled_from([0, 3000, 1 << 20])),
        "block_reads": data.draw(st.sampled_from(["auto", "blocks", "chunks"])),
        "decoded_cache_bytes": data.draw(st.sampled_from([0, 1 << 20])),
    }
    with settings(**changes):
        array = MlaArray(served(server, frame), threads=data.draw(st.sampled_from([1, 2, None])))
        assert (array.chunks, array.blocks) == (file.chunks, file.blocks)
        for _ in range(2):
            box = data.draw(filled_boxes(file.values.shape))
            assert_same(array.read(box), file.values[(*(slice(*pair) for pair in box), ...)])
            key = data.draw(keys(file.values.shape))
            found, expected = array[key], file.values[key]
            assert found.shape == expected.shape
            np.testing.assert_array_equal(found, expected)
        assert_same(array[...], file.values)


@pytest.mark.parametrize("path", EVERY, ids=name_of)
def test_files_of_every_generation(server: RangeServer, path: Path) -> None:
    server.put(f"{name_of(path)}{path.suffix}", path.read_bytes())
    remote, local = MlaArray(server.url(f"{name_of(path)}{path.suffix}")), MlaArray(path)
    assert_same(remote[...], local[...])
    assert repr(remote.metadata.to_dict()) == repr(local.metadata.to_dict())
    facts, known = remote.info(), local.info()
    assert {**facts, "path": ""} == {**known, "path": ""}
    assert str(facts["path"]).startswith("http://127.0.0.1")


def mixed() -> NDArray[np.float32]:
    """Chunks of zeros, of NaN, of one value, of noise, and of a ramp."""
    values = np.zeros((50, 24), "<f4")
    values[10:20] = np.nan
    values[20:30] = 7
    values[30:40] = np.random.default_rng(0).random((10, 24), np.float32)
    values[40:] = np.arange(240).reshape(10, 24)
    return values


RAMP = np.arange(60 * 40, dtype="<u2").reshape(60, 40) // 7
LAYOUT: dict[str, Any] = {"chunks": (30, 20), "blocks": (10, 8)}
LONG = np.arange(60 * 4000, dtype="<u2").reshape(60, 4000) // 7
DICTIONARY: dict[str, Any] = {"codec": blosc2.Codec.ZSTD, "use_dict": True}
NOISE = np.random.default_rng(1).integers(0, 256, (60, 40), np.uint8)
SMOOTH = np.linspace(0, 1, 2400, dtype="<f4").reshape(60, 40)


def filtered(values: NDArray[Any], *filters: blosc2.Filter, **cparams: Any) -> bytes:
    metas = [0] * len(filters)
    return make_frame(values, **LAYOUT, filters=list(filters), filters_meta=metas, **cparams)


SPECIAL: dict[str, bytes] = {
    "mixed": make_frame(mixed(), chunks=(10, 24), blocks=(4, 8)),
    "zeros": blosc2.zeros((60, 40), "<i4", **LAYOUT).to_cframe(),
    "nan": blosc2.nans((60, 40), "<f8", **LAYOUT).to_cframe(),
    "repeated": blosc2.full((60, 40), 37, dtype="<i2", **LAYOUT).to_cframe(),
    "repeated text": blosc2.full((60, 40), b"abc", dtype="S3", **LAYOUT).to_cframe(),
    "uninitialised": blosc2.uninit((60, 40), "<i4", **LAYOUT).to_cframe(),
    "raw": make_frame(NOISE, **LAYOUT, clevel=0),
    "noise": make_frame(NOISE, **LAYOUT, clevel=9),
    "delta": filtered(RAMP, blosc2.Filter.DELTA),
    "delta and shuffle": filtered(RAMP, blosc2.Filter.SHUFFLE, blosc2.Filter.DELTA),
    "bytedelta": filtered(RAMP, blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA),
    "bitshuffle": filtered(RAMP, blosc2.Filter.BITSHUFFLE),
    "no filter": filtered(RAMP, blosc2.Filter.NOFILTER),
    "ndcell": make_frame(SMOOTH, **LAYOUT, filters=[blosc2.Filter.NDCELL], filters_meta=[4]),
    "ndmean": make_frame(SMOOTH, **LAYOUT, filters=[blosc2.Filter.NDMEAN], filters_meta=[4]),
    "zstd dictionary": make_frame(LONG, chunks=(30, 4000), blocks=(10, 400), **DICTIONARY),
    "lz4 dictionary": make_frame(
        LONG, chunks=(30, 4000), blocks=(10, 400), **{**DICTIONARY, "codec": blosc2.Codec.LZ4}
    ),
    "zlib": make_frame(RAMP, **LAYOUT, codec=blosc2.Codec.ZLIB),
    "blosclz": make_frame(RAMP, **LAYOUT, codec=blosc2.Codec.BLOSCLZ),
    "ndlz": make_frame(
        NOISE // 64, **LAYOUT, codec=blosc2.Codec.NDLZ, codec_meta=4, filters=[], filters_meta=[]
    ),
    "zfp": make_frame(
        SMOOTH, **LAYOUT, codec=blosc2.Codec.ZFP_RATE, codec_meta=50, filters=[], filters_meta=[]
    ),
    "big endian": make_frame(SMOOTH.astype(">f8"), **LAYOUT),
    "big endian nan": make_frame(np.full((20, 20), np.nan, ">f4"), chunks=(10, 10)),
    "0-d": make_frame(np.float32(3.5)),
    "1-d": make_frame(np.arange(1000, dtype="<i8"), chunks=(300,), blocks=(64,)),
    "5-d": make_frame(
        np.arange(2 * 3 * 4 * 5 * 6, dtype="<i4").reshape(2, 3, 4, 5, 6),
        chunks=(2, 2, 3, 3, 4),
        blocks=(1, 2, 2, 2, 3),
    ),
    "empty": make_frame(np.zeros((0,), "<i2")),
    "empty 3-d": make_frame(np.zeros((3, 0, 4), "<i2")),
    "times": make_frame(np.arange(100).astype("M8[ns]"), chunks=(30,), blocks=(8,)),
    "large elements": make_frame(np.array([f"{i:080d}" for i in range(90)]), chunks=(40,)),
    "one block": make_frame(RAMP, chunks=(60, 40), blocks=(60, 40)),
    "below 64 KiB": make_frame(
        np.random.default_rng(4).integers(0, 256, (600, 40), np.uint8), chunks=(200, 40)
    ),
}
MODES = list(itertools.product(["auto", "blocks", "chunks"], [0, 64 << 20]))


@pytest.mark.parametrize("name", SPECIAL)
def test_every_kind_of_chunk(server: RangeServer, name: str) -> None:
    frame = SPECIAL[name]
    local = MlaArray(frame)
    expected = local[...]
    if name == "uninitialised":
        assert not expected.any()
    inner = tuple(slice(n // 3, n // 3 + 1 + n // 2) for n in local.shape)
    forms = [frame] if "empty" in name else [frame, with_block_index(frame)]
    for form, (mode, cache_bytes) in itertools.product(forms, MODES):
        url = served(server, form)
        with settings(block_reads=mode, cache_bytes=cache_bytes):
            for threads in (1, 2, None):
                remote = MlaArray(url, threads=threads)
                assert_same(remote[inner], expected[inner])
                assert_same(remote[...], expected)
                corner = (-1,) * local.ndim
                if expected.size:
                    assert_same(np.asarray(remote[corner]), np.asarray(expected[corner]))


def test_the_special_files_are_what_they_are_meant_to_be() -> None:
    assert len(SPECIAL["1-d"]) < 8 << 10 < len(SPECIAL["below 64 KiB"]) < 64 << 10 < len(FRAME)
    codes = {name: (int(offsets_of(sections_of(SPECIAL[name]))[0]) >> 56) & 7 for name in
             ("zeros", "nan", "uninitialised", "mixed")}  # fmt: skip
    assert codes == {"zeros": 1, "nan": 2, "uninitialised": 4, "mixed": 1}
    heads = {name: sections_of(frame).payload[:32] for name, frame in SPECIAL.items()}
    assert heads["raw"][2] & 2
    assert (heads["repeated"][31] >> 4) & 7 == 3
    assert heads["zstd dictionary"][31] & heads["lz4 dictionary"][31] & 1
    assert [heads[name][2] >> 5 for name in ("ndlz", "zfp")] == [6, 6]


def test_structures_are_refused_as_locally(server: RangeServer) -> None:
    frame = make_frame(np.zeros(5, [("a", "<i4"), ("b", "<f4")]))
    for source in (frame, served(server, frame)):
        with pytest.raises(FormatError, match=r"element type .* is not supported"):
            MlaArray(source)


@pytest.mark.parametrize("options", [{}, {"codec": "zstd-5"}])
def test_checksums_are_compared(
    server: RangeServer, tmp_path: Path, options: dict[str, Any]
) -> None:
    path = tmp_path / "c.mla"
    to_mla(VOLUME, path, chunks=CHUNKS, blocks=BLOCKS, **options)
    server.put("c.mla", path.read_bytes())
    for mode in ("auto", "blocks", "chunks"):
        with settings(block_reads=mode):
            checked = MlaArray(server.url("c.mla"), checksums=True)
            assert_same(checked[5:50, 7:9], VOLUME[5:50, 7:9])
            assert_same(checked[...], VOLUME)
            assert_same(MlaArray(server.url("c.mla"))[...], VOLUME)


def test_checksums_need_checksums(server: RangeServer) -> None:
    with pytest.raises(FormatError, match="has no checksums"):
        MlaArray(server.url("plain.b2nd"), checksums=True)[0, 0, 0]


# --- block index ----------------------------------------------------------------------------------


def test_the_block_index_of_the_tests_is_used() -> None:
    source = source_of(INDEXED)
    index = read_block_index(source, read_index(source)[1])
    assert index is not None
    assert index.starts.shape == (8, 24)
    _, starts, _ = extents(INDEXED, 5)
    np.testing.assert_array_equal(index.starts[5], starts)


def rewritten(path: Path, values: NDArray[Any]) -> bytes:
    """Write all chunks again by Blosc2, which knows nothing of the block index."""
    before = blosc2.set_nthreads(1)  # blocks stand in their order
    try:
        array = blosc2.open(str(path), mode="a")
        array[...] = values
    finally:
        blosc2.set_nthreads(before)
    return path.read_bytes()


def trusted(array: MlaArray, key: Any) -> NDArray[Any]:
    """Read; blocks that look damaged, since others of their lengths took their places, as they are.

    Nothing tells one from the other, so that reading them has to be asked for.
    """
    try:
        values: NDArray[Any] = array[key]
    except ChunkError as error:
        assert "takes what is there" in str(error)  # noqa: PT017 - either is right
        with settings(block_reads="chunks"):
            values = array[key]
    return values


@pytest.mark.parametrize("mode", ["auto", "blocks", "chunks"])
@pytest.mark.parametrize("kind", ["raw", "streams", "value"])
def test_an_index_of_chunks_that_were_written_again_misleads_nobody(
    server: RangeServer, tmp_path: Path, kind: str, mode: str
) -> None:
    noise = np.random.default_rng(2).integers(0, 1 << 15, (40, 30), np.int16)
    old = {"raw": noise, "streams": noise // 1000, "value": np.full((40, 30), 5, np.int16)}[kind]
    frame = with_block_index(make_frame(old, chunks=(20, 30), blocks=(5, 10), nthreads=1))
    path = tmp_path / "again.b2nd"
    for new in (old // 100, noise[::-1] // 300, np.full_like(old, 9)):
        path.write_bytes(frame)
        url = served(server, rewritten(path, new))
        with settings(block_reads=mode):
            for key in ((slice(7, 9), slice(3, 25)), ...):
                assert_same(trusted(MlaArray(url), key), np.ascontiguousarray(new[key]))


def test_blocks_that_changed_their_places_are_not_mistaken(server: RangeServer) -> None:
    old = np.arange(4 * 64, dtype="<i4").repeat(64).reshape(4, 64 * 64)
    frame = with_block_index(make_frame(old, chunks=(2, 4096), blocks=(1, 4096), nthreads=1))
    sections = sections_of(frame)
    first, second = np.frombuffer(sections.payload, "<i4", 2, 32).tolist()
    end = int.from_bytes(sections.payload[12:16], "little")
    assert second - first == end - second
    swapped = sections.payload[second:end] + sections.payload[first:second]
    table = np.array([second, first], "<i4").tobytes()
    moved = sections.payload[:32] + table + swapped + sections.payload[end:]
    again = replace(sections, payload=moved).joined()
    assert_same(MlaArray(again)[...], old)
    with settings(block_reads="blocks"):
        assert_same(MlaArray(served(server, again))[0], old[0])


def test_an_index_that_points_elsewhere_is_noticed(server: RangeServer) -> None:
    array = blosc2.ndarray_from_cframe(INDEXED, copy=True)
    index = array.schunk.vlmeta[BLOCK_INDEX_NAME]
    array.schunk.vlmeta[BLOCK_INDEX_NAME] = index[:-9] + b"\0" * 9
    assert_same(MlaArray(served(server, array.to_cframe()))[...], VOLUME)


# --- requests and bytes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.b2nd", "indexed.b2nd"])
def test_opening_takes_two_requests(server: RangeServer, name: str) -> None:
    array = MlaArray(server.url(name))
    assert (array.shape, array.metadata.has_array) == (VOLUME.shape, True)
    counts = server.counts()
    assert Counter(counts.ranges) == Counter(
        [("GET", name, "bytes=0-8191", 206), ("GET", name, "bytes=-65536", 206)]
    )
    assert counts.bytes_sent == 72 << 10 <= 80_000
    stats = array.stats()
    assert (stats.requests, stats.bytes_fetched, stats.errors) == (2, 72 << 10, 0)


def test_a_long_trailer_takes_few_requests(server: RangeServer, tmp_path: Path) -> None:
    text = "".join(map(str, np.random.default_rng(0).integers(0, 10**9, 40_000)))
    path = tmp_path / "long.mla"
    to_mla(VOLUME, path, chunks=CHUNKS, blocks=BLOCKS,
           metadata=Metadata(has_array=True, extra={"text": text}))  # fmt: skip
    server.put("long.mla", path.read_bytes())
    assert len(sections_of(path.read_bytes()).trailer) > 100_000
    array = MlaArray(server.url("long.mla"))
    assert array.metadata.extra["text"] == text
    assert server.counts().requests <= 4
    assert_same(array[:1], VOLUME[:1])
    assert server.counts().requests <= 4 + 4 + 1


def test_an_unknown_chunk_comes_in_one_request(server: RangeServer) -> None:
    array = MlaArray(server.url("plain.b2nd"))
    server.reset_counts()
    assert_same(array[BLOCK], VOLUME[BLOCK])
    cbytes, _, _ = extents(FRAME, 0)
    assert (server.counts().requests, server.counts().bytes_sent) == (1, cbytes)
    stats = array.stats()
    assert (stats.misses, stats.hits, stats.blocks_decoded) == (1, 0, 1)
    assert (stats.bytes_decoded, stats.bytes_useful) == (3840, 3840)


def test_blocks_of_an_unknown_chunk_come_after_its_head(server: RangeServer) -> None:
    with settings(block_reads="blocks"):
        array = MlaArray(server.url("plain.b2nd"))
        server.reset_counts()
        assert_same(array[BLOCK], VOLUME[BLOCK])
    _, starts, stops = extents(FRAME, 0)
    number = 2 * math.prod((3, 2))
    counts = server.counts()
    assert counts.requests == 2
    assert counts.bytes_sent == HEAD_BYTES + stops[number] - starts[number]


def test_blocks_of_a_known_chunk_come_alone(server: RangeServer) -> None:
    array = MlaArray(server.url("indexed.b2nd"))
    server.reset_counts()
    assert_same(array[BLOCK], VOLUME[BLOCK])
    _, starts, stops = extents(INDEXED, 0)
    counts = server.counts()
    assert (counts.requests, counts.bytes_sent) == (1, stops[12] - starts[12])


def test_a_patch_of_a_known_file_costs_the_bytes_of_its_blocks(server: RangeServer) -> None:
    values = np.random.default_rng(6).integers(0, 60, (96, 96, 96), np.int16)
    frame = make_frame(values, chunks=(96, 96, 96), blocks=(32, 32, 32))
    stored = sections_of(frame).payload
    starts = np.frombuffer(stored, "<i4", 27, 32).reshape(3, 3, 3)
    edges = np.sort([*starts.reshape(-1), len(stored)])
    # Far enough from each other that fetching what is between two blocks never pays.
    assert np.diff(edges).min() > 32 << 10
    patch = (slice(40, 70), slice(0, 64), slice(20, 96))
    touched = starts[1:3, 0:2, 0:3].reshape(-1)
    wanted = int((edges[np.searchsorted(edges, touched) + 1] - touched).sum())
    array = MlaArray(served(server, with_block_index(frame)))
    server.reset_counts()
    assert_same(array[patch], np.ascontiguousarray(values[patch]))
    assert server.counts().bytes_sent == wanted
    assert array.stats().requests - 2 == server.counts().requests <= 12


@pytest.mark.parametrize("name", ["plain.b2nd", "indexed.b2nd"])
@pytest.mark.parametrize("mode", ["auto", "blocks", "chunks"])
def test_reading_again_sends_nothing(server: RangeServer, name: str, mode: str) -> None:
    with settings(block_reads=mode):
        array = MlaArray(server.url(name))
        assert_same(array[5:70, 30:40], VOLUME[5:70, 30:40])
        server.reset_counts()
        assert_same(array[5:70, 30:40], VOLUME[5:70, 30:40])
        assert_same(MlaArray(server.url(name), threads=2)[5:60, 30], VOLUME[5:60, 30])
        assert server.counts().requests == 2  # of the second opening
        stats = array.stats()
        assert stats.hits > stats.misses > 0
        assert stats.hit_rate == stats.hits / (stats.hits + stats.misses)


def test_without_a_cache_everything_is_fetched_again(server: RangeServer) -> None:
    with settings(cache_bytes=0):
        array = MlaArray(server.url("plain.b2nd"))
        for _ in range(3):
            server.reset_counts()
            assert_same(array[...], VOLUME)
            assert server.counts().requests == 8
        stats = array.stats()
        assert (stats.hits, stats.misses) == (0, 3 * 8 * 24)
        assert block_cache().kept_bytes == 0


def test_a_tiny_cache_stays_tiny(server: RangeServer) -> None:
    with settings(cache_bytes=50_000):
        array = MlaArray(server.url("plain.b2nd"), threads=2)
        for _ in range(2):
            assert_same(array[...], VOLUME)
            assert 0 < block_cache().kept_bytes <= 50_000
        assert array.stats().evictions > 0


@pytest.mark.parametrize("faults", [Faults(fail_every=3), Faults(fail_first=3, fail_status=500)])
def test_counters_are_those_of_the_server(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, faults: Faults
) -> None:
    fast_retries(monkeypatch)
    with settings(block_reads="blocks", retries=10), measure() as measured:
        array = MlaArray(server.url("plain.b2nd"))
        server.faults = faults
        assert_same(array[...], VOLUME)
        assert_same(array[BLOCK], VOLUME[BLOCK])
        found, counts = array.stats(), server.counts()
    failed = sum(one.status >= 500 for one in counts.log)
    assert failed >= 3
    assert (found.requests, found.bytes_fetched) == (counts.requests, counts.bytes_sent)
    assert found.retries == found.errors == failed
    assert found.bytes_useful == VOLUME.nbytes + 3840
    assert found.blocks_decoded == 8 * 24 + 1
    assert found.misses == 8 * 24
    assert found.hits == 1
    assert measured.stats.requests == counts.requests
    assert measured.stats.bytes_fetched == counts.bytes_sent
    assert found.peak_in_flight >= counts.peak_in_flight >= 1


def test_cut_bodies_are_counted_as_errors(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast_retries(monkeypatch)
    with settings(retries=10):
        array = MlaArray(server.url("plain.b2nd"))
        server.faults = Faults(cut_every=3)
        assert_same(array[...], VOLUME)
        found, counts = array.stats(), server.counts()
    assert (found.requests, found.retries) == (counts.requests, counts.requests - 2 - 8)
    assert found.errors == found.retries > 0


@pytest.mark.parametrize("most", [1, 3, 32])
def test_so_many_requests_are_under_way(server: RangeServer, most: int) -> None:
    with settings(max_concurrency=most, block_reads="chunks"):
        array = MlaArray(server.url("plain.b2nd"))
        server.reset_counts()
        server.faults = Faults(latency_s=0.1)
        assert_same(array[...], VOLUME)
        assert min(most, 2) <= server.counts().peak_in_flight <= min(most, 8)
        assert min(most, 2) <= array.stats().peak_in_flight <= min(most, 8)


@pytest.mark.parametrize("chunks_at_once", [1, 2, 5])
def test_memory_is_bounded_by_the_window(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, chunks_at_once: int
) -> None:
    monkeypatch.setattr(ranged, "_WINDOW_BYTES", chunks_at_once * math.prod(CHUNKS) * 2)
    with settings(cache_bytes=0):
        array = MlaArray(server.url("plain.b2nd"))
        server.reset_counts()
        server.faults = Faults(latency_s=0.02)
        assert_same(array[...], VOLUME)
        assert server.counts().peak_in_flight == chunks_at_once


def test_the_window_counts_stored_bytes_of_whole_chunks(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cbytes = max(extents(FRAME, chunk)[0] for chunk in range(8))
    monkeypatch.setattr(ranged, "_WINDOW_BYTES", 2 * cbytes)
    array = MlaArray(server.url("plain.b2nd"))
    server.reset_counts()
    server.faults = Faults(latency_s=0.02)
    assert_same(array[39:41, 35:37, 31:33], VOLUME[39:41, 35:37, 31:33])
    assert (server.counts().requests, server.counts().peak_in_flight) == (8, 2)


def test_large_parts_are_decoded_in_pieces(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged, "_PIECE_BYTES", 2 * 3840)
    for name, mode in itertools.product(["plain.b2nd", "indexed.b2nd"], ["auto", "blocks"]):
        with settings(block_reads=mode):
            array = MlaArray(server.url(name), threads=2)
            assert_same(array[3:77, 1:71, 2:63], np.ascontiguousarray(VOLUME[3:77, 1:71, 2:63]))


@pytest.mark.parametrize("name", ["plain.b2nd", "indexed.b2nd"])
def test_threads_that_read_the_same_fetch_it_once(server: RangeServer, name: str) -> None:
    array = MlaArray(server.url(name))
    server.reset_counts()
    server.faults = Faults(latency_s=0.1)
    start = threading.Barrier(8)

    def read(_: int) -> None:
        start.wait()
        assert_same(array.read([(0, 40), (0, 36), (0, 32)]), VOLUME[:40, :36, :32])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    assert server.counts().requests == 1
    stats = array.stats()
    assert stats.misses == 24
    assert stats.hits + stats.joined == 7 * 24


def test_threads_that_read_at_random_read_right(server: RangeServer) -> None:
    for name, cache_bytes in itertools.product(["plain.b2nd", "indexed.b2nd"], [0, 30_000, None]):
        with settings(cache_bytes=cache_bytes):
            array = MlaArray(server.url(name))

            def read(seed: int, array: MlaArray = array) -> None:
                own = np.random.default_rng(seed)
                for _ in range(6):
                    box = [tuple(sorted(own.integers(0, n + 1, 2).tolist())) for n in VOLUME.shape]
                    found = array.read(box, threads=(1, 2, None)[own.integers(3)])
                    np.testing.assert_array_equal(found, VOLUME[tuple(slice(*p) for p in box)])

            with ThreadPoolExecutor(6) as pool:
                list(pool.map(read, range(6)))


def test_settings_hold_for_files_that_are_open(server: RangeServer, tmp_path: Path) -> None:
    with settings(cache_bytes=0):
        array = MlaArray(server.url("plain.b2nd"))
        with settings(cache_bytes=0, cache_dir=tmp_path / "cache"):
            array = MlaArray(server.url("plain.b2nd"))
            for _ in range(2):
                assert_same(array[BLOCK], VOLUME[BLOCK])
            assert array.stats().disk_bytes > 0
    with settings(cache_bytes=0):
        array = MlaArray(server.url("plain.b2nd"))
        read_once = array[BLOCK]
        from mlarray_xr import configure

        configure(cache_dir=tmp_path / "another")
        assert_same(array[BLOCK], read_once)
        server.reset_counts()
        assert_same(array[BLOCK], read_once)
        assert server.counts().requests == 0
        assert array.stats().disk_bytes > 0


def test_closed_arrays_open_again(server: RangeServer) -> None:
    with MlaArray(server.url("plain.b2nd")) as array:
        assert_same(array[BLOCK], VOLUME[BLOCK])
    server.reset_counts()
    assert_same(array[BLOCK], VOLUME[BLOCK])
    assert server.counts().requests == 2


# --- other stores ---------------------------------------------------------------------------------


def test_files_in_the_memory_of_fsspec() -> None:
    url = "memory://folder/volume.b2nd"
    with fsspec.open(url, "wb") as file:
        file.write(FRAME)
    try:
        array = MlaArray(url, threads=2)
        assert_same(array[3:50, ::7], VOLUME[3:50, ::7])
        assert_same(array[...], VOLUME)
        assert array.path == url
        forget()
        through_store = MlaArray("/folder/volume.b2nd", store=fsspec.filesystem("memory"))
        assert_same(through_store[3:50], VOLUME[3:50])
    finally:
        fsspec.filesystem("memory").rm("/folder", recursive=True)


def test_stores_of_obstore(tmp_path: Path) -> None:
    (tmp_path / "volume.b2nd").write_bytes(FRAME)
    array = MlaArray("volume.b2nd", store=LocalStore(tmp_path))
    assert_same(array[3:50], VOLUME[3:50])
    assert array.stats().requests == 2 + 8
    with pytest.raises(FileNotFoundError, match=r"other\.b2nd"):
        MlaArray("other.b2nd", store=LocalStore(tmp_path))


def test_stores_that_no_other_process_could_use_are_refused() -> None:
    with pytest.raises(SourceError, match=r"MemoryStore cannot be pickled.*To fix"):
        MlaArray("a/volume.b2nd", store=MemoryStore())


def test_a_store_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="both given"):
        MlaArray("a.b2nd", store=LocalStore(tmp_path), storage_options={"anon": True})


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server({"deep/volume.b2nd": FRAME, "indexed.b2nd": INDEXED}) as running:
        yield running


def test_files_on_s3(s3: S3Server) -> None:
    options = s3.storage_options
    array = MlaArray(s3.url("deep/volume.b2nd"), storage_options=options)
    assert array.stats().requests == 2
    assert_same(array[3:50, ::7], VOLUME[3:50, ::7])
    assert_same(array[...], VOLUME)
    assert array.stats().requests == 2 + 8
    assert_same(array[...], VOLUME)
    assert array.stats().requests == 2 + 8
    with pytest.raises(FileNotFoundError, match=r"none\.b2nd"):
        MlaArray(s3.url("none.b2nd"), storage_options=options)
    indexed = MlaArray(s3.url("indexed.b2nd"), storage_options=options)
    assert_same(indexed[BLOCK], VOLUME[BLOCK])
    assert indexed.stats().requests == 3


def test_signed_addresses_read_and_are_never_shown(s3: S3Server) -> None:
    url = s3.signed_url("indexed.b2nd")
    array = MlaArray(url)
    assert_same(array[BLOCK], VOLUME[BLOCK])
    assert "Signature" in url
    assert "ignature" not in repr(array) + str(array.path) + repr(array.info())
