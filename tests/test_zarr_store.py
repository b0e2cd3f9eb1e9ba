"""An unconverted file as a Zarr store: every reader of Zarr sees what the engine sees."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import mlarray_xr
from mlarray_xr.errors import ChunkError, ConversionError, FormatError, SourceChanged
from mlarray_xr.storage.source import source_of
from mlarray_xr.zarr import MlaStore, as_store
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from tests.frame_kit import make_frame
from tests.range_server import RangeServer
from tests.remote_kit import CHUNKS, VOLUME, settings, volume_frame
from tests.stored_metadata import GENUINE, name_of
from tests.strategies import keys, stored

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import ByteRequest

    from tests.strategies import Stored

RNG = np.random.default_rng(8)


def image_of(store: MlaStore, name: str = "image") -> Any:
    return zarr.open_array(store, path=name, mode="r", zarr_format=3)


def opened(store: Any, **options: Any) -> xr.Dataset:
    """Without what only NGFF has a place for."""
    asked: dict[str, Any] = {"chunks": None, "decode_timedelta": False, **options}
    dataset: xr.Dataset = xr.open_zarr(store, **asked)
    dataset.attrs.pop("ome", None)
    return dataset


def volume(tmp_path: Path, **options: Any) -> Path:
    """A volume in world coordinates, of several chunks, of which some are of zeros."""
    values = RNG.integers(-50, 1000, (20, 30, 44), np.int16)
    values[10:] = 0
    array = xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords={
            "z": ("z", 5 + 2.5 * np.arange(20), {"units": "mm"}),
            "y": ("y", -3 + 0.5 * np.arange(30), {"units": "mm"}),
            "x": ("x", 7 - 0.5 * np.arange(44), {"units": "mm"}),
        },
        attrs={"coord_system": "RAS", "protocol": "head", "kernel": [1, 2]},
    )
    target = tmp_path / "volume.mla"
    mlarray_xr.to_mla(array, target, chunks=(10, 16, 24), blocks=(5, 8, 8), **options)
    return target


@pytest.mark.parametrize("path", GENUINE, ids=name_of)
def test_every_genuine_file_is_what_the_engine_shows(path: Path) -> None:
    with xr.open_dataset(path, engine="mlarray") as expected:
        found = opened(as_store(path))
        assert set(found.variables) == set(expected.variables)
        for name, variable in expected.variables.items():
            shown = found[name].variable
            assert shown.dims == variable.dims
            assert shown.dtype == variable.dtype.newbyteorder("=")
            np.testing.assert_array_equal(shown.values, variable.values)
            assert set(shown.attrs) == set(variable.attrs)
        assert found.attrs.keys() == expected.attrs.keys()


def test_a_volume_in_world_coordinates_is_identical(tmp_path: Path) -> None:
    path = volume(tmp_path)
    expected = xr.load_dataset(path, engine="mlarray")
    xr.testing.assert_identical(opened(as_store(path)).load(), expected)
    lazy = opened(as_store(path), chunks={})
    assert lazy.image.chunks == ((10, 10), (16, 14), (24, 20))
    xr.testing.assert_identical(lazy.load(), expected)


@given(array=stored(), data=st.data())
@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_selections_are_those_of_numpy(array: Stored, data: st.DataObject) -> None:
    if array.values.dtype.kind in "SUV":
        with pytest.raises(ConversionError, match="elements of type"):
            as_store(mla_bytes(array.values, chunks=array.chunks, blocks=array.blocks))
        return
    values = array.values
    store = as_store(mla_bytes(values, chunks=array.chunks, blocks=array.blocks))
    image = image_of(store)
    assert image.shape == values.shape
    np.testing.assert_array_equal(image[...], values)
    key = data.draw(keys(values.shape))
    if not any(isinstance(k, slice) and (k.step or 1) < 0 for k in _entries(key)) and all(
        k is not None for k in _entries(key)
    ):
        np.testing.assert_array_equal(image[key], values[key])
    if values.ndim and values.size:
        points = tuple(RNG.integers(0, n, 7) for n in values.shape)
        np.testing.assert_array_equal(image.vindex[points], values[points])
        outer = tuple(RNG.integers(0, n, 3) for n in values.shape)
        np.testing.assert_array_equal(image.oindex[outer], values[np.ix_(*outer)])


def _entries(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def mla_bytes(values: NDArray[Any], **options: Any) -> bytes:
    return make_frame(values, **options)


@pytest.mark.parametrize(
    ("values", "chunks", "blocks"),
    [
        (np.float32(3.5), (), ()),
        (np.zeros((0, 5), np.int16), (0, 5), (0, 5)),
        (np.arange(7, dtype=">i4"), (3,), (2,)),
        (RNG.random((6, 8)), (10, 8), (10, 3)),
        (RNG.random((9, 7)) < 0.5, (4, 4), (3, 4)),
        (RNG.random((5, 6)) + 1j, (4, 4), (2, 3)),
        (np.arange(6).astype("M8[s]"), (4,), (2,)),
    ],
    ids=["0-d", "empty", "big-endian", "large-chunk", "bool", "complex", "times"],
)
@pytest.mark.filterwarnings("ignore:The data type .* does not have a Zarr V3 specification")
def test_shapes_and_types_at_the_edge(
    tmp_path: Path, values: Any, chunks: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    path = tmp_path / "edge.b2nd"
    path.write_bytes(mla_bytes(np.asarray(values), chunks=chunks, blocks=blocks))
    found = image_of(as_store(path))[...]
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.asarray(values).dtype.newbyteorder("=")


def test_chunks_without_payload_are_the_fill_value(tmp_path: Path) -> None:
    values = np.ones((16, 24), np.float32)
    values[:8, :8], values[8:, 8:16] = 0, np.nan
    both = mlarray_xr.to_mla(values, tmp_path / "both.mla", chunks=8, blocks=8).path
    store = as_store(both)
    assert image_of(store).fill_value == 0
    np.testing.assert_array_equal(image_of(store)[...], values)
    names = listed(store, "image/c/0")
    assert names == ["1", "2"]  # the chunk of zeros is not there
    assert listed(store, "image/c/1") == ["0", "1", "2"]  # that of NaN is made

    values[:8, :8] = 5
    nans = mlarray_xr.to_mla(values, tmp_path / "nans.mla", chunks=8, blocks=8).path
    store = as_store(nans)
    assert np.isnan(image_of(store).fill_value)
    np.testing.assert_array_equal(image_of(store)[...], values)
    assert listed(store, "image/c/1") == ["0", "2"]


def listed(store: MlaStore, prefix: str) -> list[str]:
    async def collect() -> list[str]:
        return sorted([name async for name in store.list_dir(prefix)])

    return asyncio.run(collect())


def test_listing_agrees_with_the_keys(tmp_path: Path) -> None:
    store = as_store(volume(tmp_path, levels=1))

    async def everything() -> list[str]:
        return [key async for key in store.list()]

    found = asyncio.run(everything())
    assert len(found) == len(set(found))
    assert {"zarr.json", "image/zarr.json", "x/c/0", "image/c/0/1/1", "level1/zarr.json"} <= {
        *found
    }
    for folder in {key.rpartition("/")[0] for key in found} | {"", "image", "level1/image/c"}:
        direct = {
            key.removeprefix(f"{folder}/".lstrip("/")).partition("/")[0]
            for key in found
            if key.startswith(f"{folder}/".lstrip("/"))
        }
        assert set(listed(store, folder)) == direct
        assert set(listed(store, f"{folder}/")) == direct
    for key in found:
        assert asyncio.run(store.exists(key))
        size = asyncio.run(store.getsize(key))
        data = asyncio.run(store.get(key, default_buffer_prototype()))
        assert data is not None
        assert len(data) == size > 0


@pytest.mark.parametrize(
    "key",
    [
        "image/c/9/0/0", "image/c/0/0", "image/c/0/0/0/0", "image/c/-1/0/0", "image/c/00/0/0",
        "image/c/0//0", "image/c/+0/0/0", "image/c/0.0.0", "image/0/0/0", "nothing", "image",
        "image/c/0/0/0/zarr.json", "../volume.mla", "image/c/1/0/0", "", "/zarr.json",
        "image/c/99999999999999999999/0/0", "image/c/\u0663/0/0",
    ],
)  # fmt: skip
def test_what_is_not_there_is_none(tmp_path: Path, key: str) -> None:
    store = as_store(volume(tmp_path))
    assert asyncio.run(store.get(key, default_buffer_prototype())) is None
    assert not asyncio.run(store.exists(key))
    with pytest.raises(FileNotFoundError):
        asyncio.run(store.getsize(key))


def test_ranges_of_a_chunk_are_those_of_its_bytes(tmp_path: Path) -> None:
    path = volume(tmp_path)
    store, prototype = as_store(path), default_buffer_prototype()
    key = "image/c/0/1/0"
    whole = asyncio.run(store.get(key, prototype))
    assert whole is not None
    data, table = whole.to_bytes(), ChunkTable.read(source_of(path))
    start = int(table.starts[2])
    assert data == path.read_bytes()[start : start + int(table.lengths[2])]
    asked: list[tuple[ByteRequest | None, bytes]] = [
        (RangeByteRequest(3, 40), data[3:40]),
        (RangeByteRequest(3, 10**9), data[3:]),
        (RangeByteRequest(10**9, 10**9 + 1), b""),
        (OffsetByteRequest(7), data[7:]),
        (SuffixByteRequest(5), data[-5:]),
        (SuffixByteRequest(10**9), data),
        (None, data),
    ]
    pairs = [(key, request) for request, _ in asked]
    for request, wanted in asked:
        one = store.get_sync(key, byte_range=request)
        assert one is not None
        assert one.to_bytes() == wanted
    found = asyncio.run(store.get_partial_values(prototype, pairs))
    assert [None if one is None else one.to_bytes() for one in found] == [b for _, b in asked]


def multiscales_in(store: MlaStore) -> Any:
    attributes: Any = dict(zarr.open_group(store, mode="r").attrs)
    return attributes["ome"]["multiscales"]


def test_overviews_are_levels(tmp_path: Path) -> None:
    path = volume(tmp_path, levels=2)
    store = as_store(path)
    (image,) = multiscales_in(store)
    assert [axis["name"] for axis in image["axes"]] == ["z", "y", "x"]
    assert {axis["unit"] for axis in image["axes"]} == {"millimeter"}
    toward = [axis["orientation"]["value"] for axis in image["axes"]]
    assert toward == ["inferior-to-superior", "posterior-to-anterior", "right-to-left"]
    assert [each["path"] for each in image["datasets"]] == [
        "image",
        "level1/image",
        "level2/image",
    ]
    for level, each in enumerate(image["datasets"]):
        expected = mlarray_xr.open_mla(path, level=level)
        found = opened(store, group=f"level{level}" if level else None).image
        xr.testing.assert_identical(found.load(), expected.load())
        (scale, shift) = each["coordinateTransformations"]
        for axis, dim in enumerate("zyx"):
            steps = scale["scale"][axis] * np.arange(expected.sizes[dim])
            sign = -1 if dim == "x" else 1  # what falls is counted the other way round
            np.testing.assert_allclose(
                shift["translation"][axis] + steps, sign * expected[dim].values
            )
    alone = as_store(path, overviews=False)
    assert "level1" not in zarr.open_group(alone, mode="r")
    assert len(multiscales_in(alone)[0]["datasets"]) == 1


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_dask_reads_it(tmp_path: Path, scheduler: str) -> None:
    path = volume(tmp_path)
    expected = mlarray_xr.MlaArray(path)[...]
    lazy = da.from_zarr(as_store(path), component="image")
    assert lazy.chunksize == (10, 16, 24)
    with dask.config.set(scheduler=scheduler):
        np.testing.assert_array_equal((lazy + 1).compute(), expected + 1)


def read_mean(store: MlaStore) -> float:
    return float(np.mean(image_of(store)[...]))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_read_it(tmp_path: Path, method: str) -> None:
    store = as_store(volume(tmp_path))
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        assert pool.submit(read_mean, store).result() == read_mean(store)


def test_it_pickles_as_an_address(tmp_path: Path) -> None:
    values = RNG.integers(0, 9, (64, 64), np.uint8)
    path = mlarray_xr.to_mla(values, tmp_path / "many.mla", chunks=2, blocks=2).path
    store = as_store(path)
    np.testing.assert_array_equal(image_of(store)[...], values)
    data = pickle.dumps(store)
    assert len(data) < 12_000  # of 1024 chunks
    again = pickle.loads(data)
    assert again == store
    assert hash(again) == hash(store)
    assert again.__dask_tokenize__() == store.__dask_tokenize__()
    np.testing.assert_array_equal(image_of(again)[:5], values[:5])
    assert str(path) in str(store)
    assert store != as_store(mla_bytes(values))


def test_it_is_read_only(tmp_path: Path) -> None:
    store = as_store(volume(tmp_path))
    assert store.with_read_only(True) is store
    with pytest.raises(ValueError, match="read-only"):
        store.with_read_only(False)
    with pytest.raises(ValueError, match="read-only"):
        zarr.open_array(store, path="image", mode="r+")[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.delete("zarr.json"))
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.delete_dir("image"))
    with pytest.raises(ValueError, match="read-only"):
        asyncio.run(store.clear())
    with pytest.raises(ValueError, match="read-only"):
        store.set_sync("zarr.json", default_buffer_prototype().buffer.from_bytes(b"{}"))
    with pytest.raises(ValueError, match="read-only"):
        store.delete_sync("zarr.json")


def test_a_replaced_file_is_told(tmp_path: Path) -> None:
    path = volume(tmp_path)
    image = image_of(as_store(path))
    os.utime(path, ns=(1, 1))
    with pytest.raises(SourceChanged):
        image[...]


def test_damage_is_told(tmp_path: Path) -> None:
    path = volume(tmp_path)
    data = bytearray(path.read_bytes())
    start = int(ChunkTable.read(source_of(path)).starts[0])
    data[start + 4 : start + 8] = (12345).to_bytes(4, "little")
    path.write_bytes(data)
    image = image_of(as_store(path))
    with pytest.raises(ChunkError):
        image[...]
    path.write_bytes(data[:-9])
    with pytest.raises(FormatError):
        as_store(path)


def test_metadata_alone_are_an_empty_group(tmp_path: Path) -> None:
    path = Path(__file__).parent / "data" / "mla" / "0.0.54" / "bbox_only.mla"
    store = as_store(path)
    expected = xr.load_dataset(path, engine="mlarray")
    xr.testing.assert_identical(opened(store).load(), expected)


def test_a_remote_file_is_read_by_ranges() -> None:
    with RangeServer({"v.b2nd": volume_frame()}) as server, settings():
        store = as_store(server.url("v.b2nd"))
        assert server.counts().requests <= 6  # two for the file, the rest look for overviews
        server.reset_counts()
        image = image_of(store)
        np.testing.assert_array_equal(image[1:3, 2:5, 3:9], VOLUME[1:3, 2:5, 3:9])
        assert server.counts().requests == 1  # its chunk
        np.testing.assert_array_equal(image[...], VOLUME)
        assert image.chunks == CHUNKS
        server.put("v.b2nd", volume_frame() + b"\0" * 10)
        with pytest.raises(SourceChanged):
            image[0, 0, 0]  # one request: none is under way when the server ends


def test_without_zarr_it_is_said_what_to_install() -> None:
    code = "import sys; sys.modules['zarr'] = None; import mlarray_xr.zarr"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "MissingDependencyError: mlarray_xr.zarr needs" in done.stderr
    assert 'pip install "mlarray-xr[zarr]"' in done.stderr


def test_a_fill_value_that_a_user_noted_masks_nothing(tmp_path: Path) -> None:
    for dtype, noted in (("f4", 3.5), ("i2", -1), ("f8", float("nan"))):
        values = np.arange(6).reshape(2, 3).astype(dtype)
        attrs = {"_FillValue": noted, "station": 4}
        path = tmp_path / f"{dtype}.mla"
        mlarray_xr.to_mla(xr.DataArray(values, dims=("y", "x"), attrs=attrs), path)
        found = opened(as_store(path)).image
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, values)
        assert found.attrs["station"] == 4
        assert "_FillValue" in found.attrs["mla_metadata"][0]


def test_chunks_of_nan_are_read_of_every_type_that_has_it() -> None:
    for dtype in ("f4", "f8", "c8"):
        array = blosc2.nans((16, 16), dtype=np.dtype(dtype), chunks=(8, 8), blocks=(4, 4))
        array[:8, 8:] = 0
        found = image_of(as_store(array.to_cframe()))[...]
        assert np.isnan(found[:8, :8]).all()
        assert not found[:8, 8:].any()


def test_damage_names_the_chunk(tmp_path: Path) -> None:
    path = volume(tmp_path)
    data = bytearray(path.read_bytes())
    start = int(ChunkTable.read(source_of(path)).starts[3])
    data[start + 4 : start + 8] = (12345).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ChunkError, match=r"image/c/0/1/1: it is damaged"):
        image_of(as_store(path))[...]


def test_texts_are_refused_with_a_way_out(tmp_path: Path) -> None:
    mlarray_xr.to_mla(np.array(["a", "bc"]), tmp_path / "texts.mla")
    with pytest.raises(ConversionError, match="To fix: write numbers instead of texts"):
        as_store(tmp_path / "texts.mla")


@pytest.mark.parametrize(
    ("times", "scale", "start"),
    [
        (0.36 + 0.72 * np.arange(5), 0.72, 0.36),
        (np.linspace(0.5, 2.9, 5), 0.6, 0.5),
        (np.arange(5) * 0.72, 0.72, 0.0),
        (np.array([0.0, 1, 2, 3, 5]), 1.0, 0.0),
    ],
)
def test_even_times_are_a_scale(
    tmp_path: Path, times: NDArray[np.float64], scale: float, start: float
) -> None:
    series = xr.DataArray(
        np.zeros((5, 4, 4, 4), np.int16),
        dims=("time", "z", "y", "x"),
        coords={"time": ("time", times, {"units": "s"})},
    )
    mlarray_xr.to_mla(series, tmp_path / "series.mla")
    (image,) = multiscales_in(as_store(tmp_path / "series.mla"))
    first, *rest = image["datasets"][0]["coordinateTransformations"]
    shift = rest[0]["translation"][0] if rest else 0.0
    assert (first["scale"][0], shift) == (pytest.approx(scale), pytest.approx(start))
    is_even = len(set(np.diff(times).round(9))) == 1
    assert image["axes"][0].get("unit") == ("second" if is_even else None)
