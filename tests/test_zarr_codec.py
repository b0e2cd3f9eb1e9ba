"""Zarr arrays whose chunks are those of `.mla` files, with either pipeline of zarr."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.core import codec_pipeline
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ChunkError, LayoutError, MlaError
from mlarray_xr.planning import chunk_fetch
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.source import source_of
from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_codec import B2ndChunkCodec
from mlarray_xr.zarr_view.numcodec import B2ndNumcodec
from tests.frame_kit import make_frame, offsets_of, sections_of, special_chunk
from tests.strategies import dtypes, layouts, shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

CORPUS = Path(__file__).parent / "data" / "mla"
PIPELINES = [
    name for name in ("BatchedCodecPipeline", "FusedCodecPipeline") if hasattr(codec_pipeline, name)
]
LIKE_NUMPY = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Iterator[str]:
    """Read and write with each of zarr's pipelines."""
    with zarr.config.set({"codec_pipeline.path": f"zarr.core.codec_pipeline.{request.param}"}):
        yield request.param


@pytest.fixture(params=["chunk", "blocks"])
def fetched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Fetch whole chunks, as of small ones, and then blocks, as of large ones."""
    if request.param == "blocks":
        monkeypatch.setattr(chunk_fetch, "_WHOLE_BYTES", 0)
    return str(request.param)


class Recorded(MemoryStore):
    """A store that remembers which bytes were asked for, and may forget its chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[Any] = []
        self.is_forgetful = False

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        self._record(key, byte_range)
        found = await super().get(key, prototype, byte_range)
        return self._forgotten(key, found)

    def get_sync(self, key: str, *, prototype: Any = None, byte_range: Any = None) -> Any:
        self._record(key, byte_range)
        found = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._forgotten(key, found)

    def _record(self, key: str, byte_range: Any) -> None:
        if key.startswith("c/"):
            self.ranges.append(byte_range)

    def _forgotten(self, key: str, found: Any) -> Any:
        """Lose a chunk as soon as somebody looked at it."""
        if self.is_forgetful:
            self._store_dict.pop(key, None)
        return found


def stored_array(
    values: NDArray[Any], *, chunks: tuple[int, ...], store: Any = None, **serializer: Any
) -> Any:
    """Write values with the codec, and open them again from JSON."""
    place = MemoryStore() if store is None else store
    array = zarr.create_array(
        place,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks,
        serializer=B2ndCodec(**serializer),
        compressors=None,
        fill_value=np.zeros((), values.dtype)[()],
    )
    array[...] = values
    return zarr.open_array(place, mode="r+")


def virtual_array(
    stored: dict[str, bytes],
    *,
    shape: tuple[int, ...],
    dtype: Any,
    codec: B2ndCodec,
    chunks: tuple[int, ...] | None = None,
    fill_value: int = 0,
) -> Any:
    """Return an array of chunks that are there already."""
    store = Recorded()
    zarr.create_array(
        store,
        shape=shape,
        dtype=dtype,
        chunks=chunks or codec.chunks or (),
        serializer=codec,
        compressors=None,
        fill_value=fill_value,
    )
    for key, data in stored.items():
        put(store, key, data)
    return zarr.open_array(store, mode="r+")


def put(store: MemoryStore, key: str, data: bytes) -> None:
    """Store a chunk as it is."""
    store._store_dict[key] = default_buffer_prototype().buffer.from_bytes(data)


def recorded(array: Any) -> list[Any]:
    return array.store.ranges  # type: ignore[no-any-return]


def large_chunk(seed: int = 0, **cparams: Any) -> tuple[NDArray[Any], bytes, B2ndCodec]:
    """Return a chunk of more than 4 MiB, its bytes and its codec."""
    values = np.random.default_rng(seed).integers(0, 300, (130, 140, 150)).astype("<i2")
    chunk = chunk_of(values, (13, 14, 30), **({"codec": blosc2.Codec.LZ4} | cparams))
    return values, chunk, B2ndCodec(typesize=2, chunks=(130, 140, 150), blocks=(13, 14, 30))


def chunk_of(values: NDArray[Any], blocks: tuple[int, ...], **cparams: Any) -> bytes:
    """Return the one chunk of a Blosc2 array."""
    frame = sections_of(make_frame(values, chunks=values.shape, blocks=blocks, **cparams))
    (offset,) = offsets_of(frame).tolist()
    (length,) = np.frombuffer(frame.payload, "<i4", 1, offset + 12).tolist()
    return frame.payload[offset : offset + length]


# ----------------------------------------------------------------------------------- like NumPy


@st.composite
def zarr_reads(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[str, Any]:
    """Draw a selection, and the way it is asked for."""
    kind = draw(st.sampled_from(["basic", "oindex", "vindex", "mask", "blocks"]))
    if kind == "basic" or not shape or 0 in shape:
        return "basic", tuple(_basic(draw, n) for n in shape[: draw(st.integers(0, len(shape)))])
    if kind == "oindex":
        lists = [
            draw(st.one_of(st.none(), st.lists(st.integers(0, n - 1), min_size=1, max_size=9)))
            for n in shape
        ]
        entries = (_basic(draw, n) if k is None else k for k, n in zip(lists, shape, strict=True))
        return kind, tuple(entries)
    if kind == "vindex":
        length = draw(st.integers(1, 8))
        return kind, tuple(
            draw(st.lists(st.integers(-n, n - 1), min_size=length, max_size=length)) for n in shape
        )
    if kind == "mask":
        return kind, np.random.default_rng(draw(st.integers(0, 99))).random(shape) > 0.8
    return kind, (draw(st.integers(0, 1)),)


def _basic(draw: st.DrawFn, n: int) -> Any:
    """Draw an integer or a slice of positive step."""
    if n and draw(st.booleans()):
        return draw(st.integers(0, n - 1))
    start = draw(st.integers(0, n))
    return slice(start, draw(st.integers(start, n)), draw(st.integers(1, max(n, 1))))


def expected_of(values: NDArray[Any], kind: str, key: Any, chunks: tuple[int, ...]) -> Any:
    """Return what NumPy selects."""
    if kind == "oindex":
        entries = [np.atleast_1d(np.arange(n)[k]) for k, n in zip(key, values.shape, strict=True)]
        dropped = tuple(i for i, k in enumerate(key) if isinstance(k, int))
        return values[np.ix_(*entries)].squeeze(dropped)
    if kind == "blocks":
        (number,) = key
        return values[number * chunks[0] : (number + 1) * chunks[0]]
    return values[tuple(map(np.array, key)) if kind == "vindex" else key]


def read(array: Any, kind: str, key: Any) -> Any:
    """Select as zarr does."""
    return {
        "basic": lambda: array[key or ...],
        "oindex": lambda: array.oindex[key],
        "vindex": lambda: array.vindex[key],
        "mask": lambda: array.vindex[key],
        "blocks": lambda: array.blocks[key],
    }[kind]()


@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
@LIKE_NUMPY
@given(data=st.data())
def test_reading_is_numpy(data: st.DataObject, pipeline: str, fetched: str) -> None:
    shape = data.draw(shapes(max_dims=4, min_side=1, max_side=12))
    chunks, blocks = data.draw(layouts(shape))
    values = values_of(shape, data.draw(dtypes()), data.draw(st.integers(0, 99)))
    endian = data.draw(st.sampled_from(["little", "big"]))
    array = stored_array(values, chunks=chunks, blocks=blocks, endian=endian)
    for _ in range(3):
        kind, key = data.draw(zarr_reads(shape))
        if kind == "blocks" and key[0] * chunks[0] >= shape[0]:
            continue
        found = read(array, kind, key)
        expected = expected_of(values, kind, key, chunks)
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
@LIKE_NUMPY
@given(data=st.data())
def test_writing_is_numpy(data: st.DataObject, pipeline: str) -> None:
    shape = data.draw(shapes(min_dims=1, max_dims=3, min_side=1, max_side=9))
    chunks, _ = data.draw(layouts(shape))
    values = values_of(shape, data.draw(dtypes()), 5)
    array = stored_array(values, chunks=chunks, codec="zstd-1")
    for seed in range(2):
        key = tuple(slice(*sorted((data.draw(st.integers(0, n)), n))) for n in shape)
        new = values_of(values[key].shape, values.dtype, seed + 7)
        array[key] = new
        values[key] = new
    np.testing.assert_array_equal(array[...], values)


def test_blocks_and_chunks_are_chosen(pipeline: str) -> None:
    values = np.arange(90 * 80 * 70, dtype="i4").reshape(90, 80, 70)
    array = zarr.create_array(
        {}, data=values, chunks=(90, 80, 70), serializer=B2ndCodec(), compressors=None
    )
    assert array.metadata.to_dict()["codecs"] == (
        {"name": "mlarray_xr.b2nd", "configuration": {"typesize": 4, "endian": "little"}},
    )
    np.testing.assert_array_equal(array[3:80:7, 9, :], values[3:80:7, 9, :])


def test_missing_chunks_are_the_fill_value(pipeline: str, fetched: str) -> None:
    codec = B2ndCodec(typesize=2, chunks=(2, 2), blocks=(1, 2))
    array = virtual_array({}, shape=(4, 4), dtype="i2", codec=codec, fill_value=5)
    assert (array[...] == 5).all()
    assert (array[:, 1] == 5).all()


def test_chunks_inside_of_shards(pipeline: str, fetched: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (40, 36)).astype("i2")
    inner = B2ndCodec(blocks=(5, 6))
    shards = ShardingCodec(chunk_shape=(10, 12), codecs=[inner])
    store = MemoryStore()
    zarr.create_array(store, data=values, chunks=(20, 36), serializer=shards, compressors=None)
    array = zarr.open_array(store, mode="r")
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(array[13:29:2, 7], values[13:29:2, 7])
    np.testing.assert_array_equal(array.vindex[[0, 39], [35, 2]], values[[0, 39], [35, 2]])


def test_behind_a_transposition(pipeline: str) -> None:
    values = np.arange(120, dtype="i4").reshape(6, 20)
    array = zarr.create_array(
        {},
        data=values,
        chunks=(6, 10),
        filters=[zarr.codecs.TransposeCodec(order=(1, 0))],
        serializer=B2ndCodec(blocks=(3, 3)),
        compressors=[zarr.codecs.ZstdCodec()],
    )
    np.testing.assert_array_equal(array[1:4, 5:15], values[1:4, 5:15])


# ------------------------------------------------------------------------------- chunks of files


@pytest.mark.parametrize(
    "path", sorted(CORPUS.glob("*/*.mla"))[::5], ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_files_of_every_generation(path: Path, pipeline: str, fetched: str) -> None:
    file = MlaArray(path)
    header, offsets = read_index(source_of(path))
    payload = path.read_bytes()[header.header_len : header.index_start]
    grid = [tuple(map(int, i)) for i in np.ndindex(header.chunk_grid)]
    # Bytes of other chunks follow.
    stored = {
        "/".join(("c", *map(str, position))): payload[offset : offset + header.chunksize + 32]
        for position, offset in zip(grid, offsets.tolist(), strict=True)
        if offset >= 0
    }
    codec = B2ndCodec.of(file)
    array = virtual_array(stored, shape=file.shape, dtype=file.dtype, codec=codec)
    values = np.asarray(file[...])
    np.testing.assert_array_equal(array[...], values)
    box = tuple(slice(n // 3, n // 3 + 2) for n in values.shape)
    np.testing.assert_array_equal(array[box or ...], values[box])


@pytest.mark.parametrize("place", [0, 1, 3])
def test_axes_of_stacked_files(place: int, pipeline: str, fetched: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (12, 10, 8)).astype("i2")
    data = chunk_of(values, (4, 5, 8))
    codec = B2ndCodec(typesize=2, chunks=(12, 10, 8), blocks=(4, 5, 8))
    shape = [12, 10, 8]
    shape.insert(place, 2)
    chunks = [12, 10, 8]
    chunks.insert(place, 1)
    position = [0, 0, 0]
    position.insert(place, 1)
    array = virtual_array(
        {"c/" + "/".join(map(str, position)): data},
        shape=tuple(shape),
        dtype="i2",
        codec=codec,
        chunks=tuple(chunks),
    )
    expected = np.stack([np.zeros_like(values), values], axis=place)
    np.testing.assert_array_equal(array[...], expected)
    np.testing.assert_array_equal(array[:, :1, 1:, 1], expected[:, :1, 1:, 1])
    array[...] = expected + 1
    np.testing.assert_array_equal(array[...], expected + 1)


def test_only_the_blocks_of_a_large_chunk_are_fetched(pipeline: str) -> None:
    values, data, codec = large_chunk()
    array = virtual_array({"c/0/0/0": data}, shape=values.shape, dtype="i2", codec=codec)
    np.testing.assert_array_equal(array[20:30, 20:50, 40:50], values[20:30, 20:50, 40:50])
    ranges = recorded(array)
    assert ranges[0] == RangeByteRequest(0, 32 + 4 * 500)
    assert all(r.end - r.start < len(data) // 4 for r in ranges)
    assert sum(r.end - r.start for r in ranges) < len(data) // 10
    ranges.clear()
    points = ([0, 129, 0], [139, 0, 139], [0, 149, 1])
    np.testing.assert_array_equal(array.vindex[points], values[points])
    assert len(ranges) == 3  # the table, and two blocks far from each other
    assert sum(r.end - r.start for r in ranges) < 30_000
    ranges.clear()
    np.testing.assert_array_equal(array[:80], values[:80])
    assert ranges == [None]


@pytest.mark.parametrize(
    "cparams",
    [
        {"clevel": 0},
        {"use_dict": True, "codec": blosc2.Codec.ZSTD},
        {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]},
        {"filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA], "filters_meta": [0, 0]},
    ],
    ids=["raw", "dictionary", "delta", "bytedelta"],
)
def test_large_chunks_of_other_kinds(cparams: dict[str, Any], pipeline: str) -> None:
    values, data, codec = large_chunk(**cparams)
    array = virtual_array({"c/0/0/0": data}, shape=values.shape, dtype="i2", codec=codec)
    np.testing.assert_array_equal(array[20:30, 20:50, 40:50], values[20:30, 20:50, 40:50])


@pytest.mark.parametrize(("code", "value"), [(1, 0), (3, 7), (4, 0)])
def test_large_chunks_of_one_value(code: int, value: int, pipeline: str) -> None:
    _, _, codec = large_chunk()
    repeated = np.int16(value).tobytes() if code == 3 else b""
    head = bytearray(special_chunk(130 * 140 * 150 * 2, code, repeated, typesize=2))
    head[8:12] = (13 * 14 * 30 * 2).to_bytes(4, "little")
    array = virtual_array({"c/0/0/0": bytes(head)}, shape=(130, 140, 150), dtype="i2", codec=codec)
    assert array[20:22, 3, 4].tolist() == [value, value]
    assert len(recorded(array)) <= 2


def test_a_large_chunk_that_is_cut_off(pipeline: str) -> None:
    values, data, codec = large_chunk()
    array = virtual_array(
        {"c/0/0/0": data[: len(data) // 2]}, shape=values.shape, dtype="i2", codec=codec
    )
    with pytest.raises(ChunkError):
        array[...]
    with pytest.raises(ChunkError, match="cut off, or was replaced"):
        array[-3:, -3:, -3:]


def test_a_large_chunk_that_is_removed_meanwhile(pipeline: str) -> None:
    values, data, codec = large_chunk()
    array = virtual_array({"c/0/0/0": data}, shape=values.shape, dtype="i2", codec=codec)
    array.store.is_forgetful = True
    with pytest.raises(ChunkError, match="was removed"):
        array[:3, :3, :3]


# -------------------------------------------------------------------------------- configuration


CONFIGURED = B2ndCodec(typesize=2, chunks=(10, 6), blocks=(4, 6), endian="big", codec="zstd-1")


def test_the_configuration_is_json() -> None:
    written = json.loads(json.dumps(CONFIGURED.to_dict()))
    assert written["configuration"] == {
        "typesize": 2,
        "chunks": [10, 6],
        "blocks": [4, 6],
        "endian": "big",
        "codec": "zstd-1",
    }
    for again in (B2ndCodec.from_dict(written), pickle.loads(pickle.dumps(CONFIGURED))):
        assert again == CONFIGURED
        assert hash(again) == hash(CONFIGURED)
    assert B2ndCodec(chunks=[10, 6]) != CONFIGURED  # type: ignore[arg-type]
    chunk_codec = B2ndChunkCodec(typesize=2, chunks=(10, 6), blocks=(4, 6))
    assert B2ndChunkCodec.from_dict(json.loads(json.dumps(chunk_codec.to_dict()))) == chunk_codec
    assert pickle.loads(pickle.dumps(chunk_codec)) == chunk_codec


GOOD = {"typesize": 2, "chunks": [10, 6], "blocks": [4, 6]}


@pytest.mark.parametrize(
    "change",
    [
        {"typesize": 0},
        {"typesize": 1 << 40},
        {"typesize": "2"},
        {"typesize": 2.5},
        {"chunks": [1 << 20, 1 << 20]},
        {"chunks": [10, 6, 2]},
        {"chunks": "10"},
        {"chunks": {"0": 10}},
        {"chunks": [10, True]},
        {"chunks": [10, -6]},
        {"chunks": [10, 0]},
        {"chunks": [[10], 6]},
        {"chunks": [1] * 500, "blocks": [1] * 500},
        {"blocks": [4, 7]},
        {"blocks": [0, 6]},
        {"codec": "zfp_acc-1"},
        {"codec": ["lz4", 1]},
        {"codec": "x" * 10_000},
        {"plugin": "os.system"},
    ],
    ids=lambda change: str(change)[:40],
)
def test_configurations_that_are_none(change: dict[str, Any]) -> None:
    configuration: dict[str, Any] = {**GOOD, **change}
    with pytest.raises(LayoutError) as raised:
        B2ndCodec.from_dict({"name": "mlarray_xr.b2nd", "configuration": configuration})
    assert len(str(raised.value)) < 11_000
    with pytest.raises(LayoutError):
        B2ndChunkCodec.from_dict({"name": "mlarray_xr.b2nd_chunk", "configuration": configuration})
    with pytest.raises((LayoutError, TypeError)):
        B2ndNumcodec(**configuration)


@pytest.mark.parametrize("endian", ["middle", None, ["little"], 1])
def test_byte_orders_that_are_none(endian: Any) -> None:
    with pytest.raises(LayoutError, match="endian"):
        B2ndCodec(endian=endian)


def test_configurations_of_other_codecs() -> None:
    with pytest.raises(LayoutError, match="does not configure"):
        B2ndCodec.from_dict({"name": "blosc", "configuration": {}})
    with pytest.raises(LayoutError, match="does not configure"):
        B2ndCodec.from_dict({"name": "mlarray_xr.b2nd", "configuration": [1]})
    with pytest.raises(LayoutError, match="configured without"):
        B2ndChunkCodec.from_dict({"name": "mlarray_xr.b2nd_chunk", "configuration": {}})


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [
        (B2ndCodec(typesize=4), "i2"),
        (B2ndCodec(chunks=(8, 9)), "i2"),
        (B2ndCodec(blocks=(9, 8)), "i2"),
        (B2ndCodec(blocks=(8,)), "i2"),
        (B2ndCodec(), "str"),
    ],
)
def test_arrays_that_do_not_fit_are_not_made(codec: B2ndCodec, dtype: str) -> None:
    with pytest.raises(LayoutError, match=r"To fix|do not fit"):
        zarr.create_array(
            {}, shape=(8, 8), chunks=(8, 8), dtype=dtype, serializer=codec, compressors=None
        )


def test_a_lossy_codec_writes_what_is_read(pipeline: str) -> None:
    values = np.random.default_rng(0).normal(size=(20, 20)).astype("f4")
    array = stored_array(values, chunks=(10, 20), codec="zstd-1-shuffle-trunc8")
    found = array[...]
    assert not np.array_equal(found, values)
    np.testing.assert_allclose(found, values, rtol=2**-8)


def test_sizes_are_not_known_before() -> None:
    with pytest.raises(NotImplementedError):
        CONFIGURED.compute_encoded_size(10, None)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------- bytes to bytes


@pytest.mark.parametrize("dtype", ["i2", ">f4", "u1", "c16"])
def test_chunks_as_bytes(dtype: str, pipeline: str) -> None:
    values = values_of((20, 12), np.dtype(dtype), 1)
    codec = B2ndChunkCodec(typesize=values.dtype.itemsize, chunks=(10, 6), blocks=(4, 4))
    store = MemoryStore()
    zarr.create_array(store, data=values, chunks=(10, 6), compressors=[codec])
    array = zarr.open_array(store, mode="r")
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(array[7:13, 5], values[7:13, 5])


def test_both_codecs_read_the_same_bytes(pipeline: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (10, 6)).astype("i2")
    store = MemoryStore()
    zarr.create_array(store, data=values, chunks=(10, 6), serializer=B2ndCodec(), compressors=None)
    data = store._store_dict["c/0/0"].to_bytes()
    codec = B2ndChunkCodec(typesize=2, chunks=(10, 6), blocks=(10, 6))
    array = zarr.create_array(
        store,
        overwrite=True,
        shape=(10, 6),
        dtype="i2",
        chunks=(10, 6),
        serializer=BytesCodec(),
        compressors=[codec],
    )
    put(store, "c/0/0", data)
    np.testing.assert_array_equal(array[...], values)


def test_zarr_2(pipeline: str) -> None:
    values = np.random.default_rng(0).integers(0, 99, (20, 12)).astype("i2")
    codec = B2ndNumcodec(typesize=2, chunks=(10, 6), blocks=(4, 6))
    store = MemoryStore()
    zarr.create_array(store, data=values, chunks=(10, 6), compressors=codec, zarr_format=2)
    array = zarr.open_array(store, mode="r")
    assert array.compressors == (codec,)
    np.testing.assert_array_equal(array[3:15, 2:], values[3:15, 2:])


def test_numcodecs() -> None:
    values = np.arange(60, dtype=">i2").reshape(10, 6)
    config = {"id": "mlarray_xr.b2nd_chunk", **GOOD, "codec": "lz4-1"}
    codec = numcodecs.get_codec(config)
    assert type(codec) is B2ndNumcodec
    assert codec.get_config() == config
    assert "codec='lz4-1'" in repr(codec)
    assert pickle.loads(pickle.dumps(codec)) == codec
    stored = codec.encode(values)
    for given_ in (stored, bytearray(stored), memoryview(stored), np.frombuffer(stored, "u1")):
        assert bytes(codec.decode(given_)) == values.tobytes()
    out = np.empty_like(values)
    assert codec.decode(stored, out) is out
    np.testing.assert_array_equal(out, values)
    with pytest.raises(ValueError, match=r"small|bound|size|broadcast|reshape"):
        codec.decode(stored, np.empty(3, "u1"))
    with pytest.raises(LayoutError):
        codec.encode(values[:9])
    with pytest.raises(MlaError):
        codec.decode(stored[:40])
