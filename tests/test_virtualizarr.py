"""Virtual datasets: what is read through references is what the engine reads from the file."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import blosc2
import icechunk
import mlarray
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import HTTPStore, LocalStore, MemoryStore, S3Store
from virtualizarr import open_virtual_dataset, open_virtual_datatree, open_virtual_mfdataset
from virtualizarr.manifests import ManifestArray
from virtualizarr.parsers.typing import Parser

from mlarray_xr import Metadata, MlaArray, to_mla
from mlarray_xr.errors import ConversionError, FormatError, MissingDependencyError, SourceError
from mlarray_xr.format.metadata import Spatial
from mlarray_xr.storage.source import source_of
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from mlarray_xr.zarr_view.parser import MlaParser
from tests.frame_kit import write_b2nd
from tests.range_server import RangeServer
from tests.remote_kit import settings as remote_settings
from tests.s3_server import REGION, s3_server
from tests.strategies import Stored, stored, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

READS = ["chunks", "blocks"]
LOCAL = ObjectStoreRegistry({"file://": LocalStore()})
SHAPE = (10, 12, 7)
OBLIQUE = Spatial(
    affine=((0.5, 0.0, 0.1, -10.0), (0.1, 0.75, 0.0, 20.0), (0.0, 0.05, 2.0, 30.5), (0, 0, 0, 1))
)


def voxels(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    """Return values of which the first chunks are zeros."""
    values = np.asarray(values_of(shape, np.dtype(dtype), 3))
    values[:4] = np.zeros((), dtype)
    return values


def volume(values: NDArray[Any], **attrs: Any) -> xr.DataArray:
    dims = ("z", "y", "x")[3 - values.ndim :]
    coords = {
        dim: 3.0 + (k + 1) * np.arange(n)
        for k, (dim, n) in enumerate(zip(dims, values.shape, strict=True))
    }
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def series() -> xr.DataArray:
    times = np.datetime64("2020-01-01T00:00:00", "ns") + np.arange(10) * np.timedelta64(1, "s")
    coords = {"time": times, "bval": ("time", np.arange(10.0))}
    return xr.DataArray(voxels(), dims=("time", "y", "x"), coords=coords)


FILES: dict[str, tuple[Any, dict[str, Any]]] = {
    "edge chunks": (volume(voxels(), site="A", numbers=[1, 2.5]), {"chunks": 4, "blocks": 3}),
    "big endian": (voxels(">i2"), {"chunks": 4}),
    "bytes": (voxels("u1"), {"chunks": 5}),
    "masks": (xr.DataArray(voxels("?"), dims=("z", "y", "x"), name="mask"), {"chunks": 5}),
    "floats": (voxels("f4"), {"chunks": (10, 3, 7)}),
    "big-endian floats": (voxels(">f8"), {"chunks": 5}),
    "complex": (voxels("c8"), {"chunks": 5}),
    "times": (voxels("M8[s]", (10,)), {}),
    "oblique": (voxels(), {"chunks": 4, "metadata": Metadata(spatial=OBLIQUE)}),
    "series": (series(), {"chunks": 4}),
    "empty": (volume(np.zeros((0, 5), "int32")), {}),
}


@pytest.fixture(params=FILES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Write a file, return its path."""
    values, layout = FILES[request.param]
    to_mla(values, tmp_path / "file.mla", **layout)
    return str(tmp_path / "file.mla")


def opened(path: Path | str, **options: Any) -> xr.Dataset:
    return open_virtual_dataset(str(path), registry=LOCAL, parser=MlaParser(**options))


def through_icechunk(virtual: xr.Dataset, folder: Path) -> xr.Dataset:
    """Write references into a repository in memory, and read through them from the disk."""
    prefix = f"file://{folder}/"
    config = icechunk.RepositoryConfig.default()
    local = icechunk.local_filesystem_store(str(folder))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, local))
    repository = icechunk.Repository.create(
        icechunk.in_memory_storage(),
        config=config,
        authorize_virtual_chunk_access=icechunk.containers_credentials({prefix: None}),
    )
    session = repository.writable_session("main")
    virtual.vz.to_icechunk(session.store)
    session.commit("references")
    store = repository.readonly_session("main").store
    read: xr.Dataset = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None)
    return read


def through_kerchunk(virtual: xr.Dataset, folder: Path) -> xr.Dataset:
    """Write references as JSON, and read through them by fsspec; xarray's fill values go."""
    virtual.vz.to_kerchunk(str(folder / "references.json"), format="json")
    read = xr.open_dataset(
        "reference://",
        engine="zarr",
        backend_kwargs={
            "storage_options": {"fo": str(folder / "references.json")},
            "consolidated": False,
        },
        mask_and_scale=False,
    ).load()
    for variable in read.variables.values():
        variable.attrs.pop("_FillValue", None)
    return read


def loaded(path: Path | str, **options: Any) -> xr.Dataset:
    """Read the bytes of the references through the store of the registry."""
    names = [str(name) for name in opened(path, **options).data_vars]
    return open_virtual_dataset(
        str(path), registry=LOCAL, parser=MlaParser(**options), loadable_variables=names
    )


# What is read back


@pytest.mark.parametrize("reads", READS)
def test_icechunk_reads_what_the_engine_reads(written: str, reads: str, tmp_path: Path) -> None:
    wanted = xr.open_dataset(written, engine="mlarray")
    xr.testing.assert_identical(through_icechunk(opened(written, reads=reads), tmp_path), wanted)


def test_kerchunk_references_read_what_the_engine_reads(written: str, tmp_path: Path) -> None:
    wanted = xr.open_dataset(written, engine="mlarray")
    xr.testing.assert_identical(through_kerchunk(opened(written), tmp_path), wanted)


@pytest.mark.parametrize("reads", READS)
def test_loading_reads_what_the_engine_reads(written: str, reads: str) -> None:
    wanted = xr.open_dataset(written, engine="mlarray")
    read = loaded(written, reads=reads)
    xr.testing.assert_identical(read, wanted)
    assert all(not isinstance(each.data, ManifestArray) for each in read.variables.values())


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=stored(max_dims=3))
def test_any_layout_is_read_block_by_block_and_whole(case: Stored, tmp_path: Path) -> None:
    path = write_b2nd(tmp_path / "a.b2nd", case.values, chunks=case.chunks, blocks=case.blocks)
    if case.values.dtype.kind in "SU":
        with pytest.raises(ConversionError, match="elements of type"):
            opened(path)
        return
    for reads in READS:
        np.testing.assert_array_equal(loaded(path, reads=reads).image.values, case.values)


def test_chunks_that_exceed_the_array(tmp_path: Path) -> None:
    values = np.arange(60, dtype="int16").reshape(6, 10) + 1
    path = write_b2nd(tmp_path / "a.b2nd", values, chunks=(6, 16), blocks=(4, 4))
    assert opened(path).image.data.chunks == (6, 16)
    for reads in READS:
        read = through_icechunk(opened(path, reads=reads), tmp_path)
        np.testing.assert_array_equal(read.image.values, values)
    np.testing.assert_array_equal(through_kerchunk(opened(path), tmp_path).image.values, values)


def test_an_array_without_axes(tmp_path: Path) -> None:
    to_mla(np.array(5, "int32"), tmp_path / "a.mla")
    assert through_icechunk(opened(tmp_path / "a.mla"), tmp_path).image.values == 5
    assert loaded(tmp_path / "a.mla").image.values == 5
    # VirtualiZarr would write references that nobody finds: 0 would be read.
    with pytest.raises(AttributeError):
        opened(tmp_path / "a.mla").vz.to_kerchunk(str(tmp_path / "a.json"), format="json")


@pytest.mark.parametrize("name", ["a b", "ä", "100%", "a+b", "[a]"])
def test_names_of_local_files(name: str, tmp_path: Path) -> None:
    to_mla(voxels("u1"), tmp_path / f"{name}.mla")
    virtual = opened(tmp_path / f"{name}.mla")
    np.testing.assert_array_equal(through_icechunk(virtual, tmp_path).image, voxels("u1"))
    np.testing.assert_array_equal(through_kerchunk(virtual, tmp_path).image, voxels("u1"))


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%20b"])
def test_names_that_look_like_urls_are_escaped(name: str, tmp_path: Path) -> None:
    to_mla(voxels("u1"), tmp_path / f"{name}.mla")
    virtual = opened(tmp_path / f"{name}.mla")
    np.testing.assert_array_equal(through_icechunk(virtual, tmp_path).image, voxels("u1"))


# What the dataset is


def test_the_dataset_is_virtual_and_its_coordinates_are_in_memory(tmp_path: Path) -> None:
    to_mla(volume(voxels()), tmp_path / "a.mla", chunks=4)
    virtual = opened(tmp_path / "a.mla")
    assert isinstance(virtual.image.data, ManifestArray)
    assert list(virtual.indexes) == ["z", "y", "x"]
    assert virtual.image.encoding == {}  # would become attributes
    assert "characters>" in str(virtual.image.attrs["mla_metadata"])  # patients' names stay hidden
    wanted = xr.open_dataset(tmp_path / "a.mla", engine="mlarray")
    assert virtual.image.attrs == wanted.image.attrs
    xr.testing.assert_identical(virtual.drop_vars("image"), wanted.drop_vars("image"))


def test_references_are_the_chunk_table(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla", chunks=4)
    table = ChunkTable.read(source_of(tmp_path / "a.mla"))
    manifest = opened(tmp_path / "a.mla").image.data.manifest
    assert manifest.shape_chunk_grid == table.grid == (3, 3, 2)
    entries = manifest.dict()
    stored_chunks = np.flatnonzero(table.special == 0)
    assert 0 < len(entries) == len(stored_chunks) < 18
    for number in stored_chunks:
        key = ".".join(map(str, np.unravel_index(number, table.grid)))
        assert entries[key] == {
            "path": f"file://{tmp_path}/a.mla",
            "offset": table.starts[number],
            "length": table.lengths[number],
        }


def test_a_scalar_coordinate_is_written_to_icechunk(tmp_path: Path) -> None:
    to_mla(volume(voxels())[2], tmp_path / "a.mla")
    wanted = xr.open_dataset(tmp_path / "a.mla", engine="mlarray")
    assert wanted.z.values == 5
    xr.testing.assert_identical(through_icechunk(opened(tmp_path / "a.mla"), tmp_path), wanted)


@pytest.mark.xfail(reason="VirtualiZarr 2.5.1 names their chunk '' instead of '0'", strict=True)
def test_a_scalar_coordinate_is_written_to_kerchunk(tmp_path: Path) -> None:
    to_mla(volume(voxels())[2], tmp_path / "a.mla")
    assert through_kerchunk(opened(tmp_path / "a.mla"), tmp_path).z.values == 5


def test_names_of_the_array(tmp_path: Path) -> None:
    to_mla(volume(voxels()).rename("ct"), tmp_path / "a.mla")
    assert list(opened(tmp_path / "a.mla").data_vars) == ["ct"]
    assert list(opened(tmp_path / "a.mla", variable="image").data_vars) == ["image"]
    with pytest.raises(ValueError, match="name of a dimension"):
        opened(tmp_path / "a.mla", variable="z")
    to_mla(volume(voxels()).rename("a/b"), tmp_path / "b.mla")
    with pytest.raises(ConversionError, match=r"b\.mla: \['a/b'\] cannot name arrays in Zarr"):
        opened(tmp_path / "b.mla")


def test_a_file_of_metadata_alone(tmp_path: Path) -> None:
    empty = mlarray.MLArray()
    empty.meta.source.data["id"] = 3
    empty.save(tmp_path / "a.mla")
    wanted = xr.open_dataset(tmp_path / "a.mla", engine="mlarray")
    xr.testing.assert_identical(opened(tmp_path / "a.mla"), wanted)


def test_trees_and_groups(tmp_path: Path) -> None:
    to_mla(volume(voxels()), tmp_path / "a.mla", chunks=4)
    path = str(tmp_path / "a.mla")
    tree = open_virtual_datatree(path, registry=LOCAL, parser=MlaParser())
    assert isinstance(tree["image"].data, ManifestArray)
    assert list(tree.to_dataset().indexes) == ["z", "y", "x"]
    store = MlaParser()(path, LOCAL)
    with pytest.raises(ValueError, match=r"group='level1': an \.mla file has none"):
        store.to_virtual_dataset("level1")


def test_the_store_is_one_of_zarr(tmp_path: Path) -> None:
    to_mla(volume(voxels()), tmp_path / "a.mla", chunks=4)
    store = MlaParser()(str(tmp_path / "a.mla"), LOCAL)
    read = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None)
    np.testing.assert_array_equal(read.image.values, voxels())
    assert read.image.dims == ("z", "y", "x")
    assert list(zarr.open_group(store, mode="r").array_keys()) == ["image"]


def test_parsers_and_datasets_reach_other_processes(tmp_path: Path) -> None:
    to_mla(volume(voxels()), tmp_path / "a.mla", chunks=4)
    parser = MlaParser(reads="blocks", fill_value=0, variable="ct")
    assert isinstance(parser, Parser)
    assert pickle.loads(pickle.dumps(parser)) == parser
    again = pickle.loads(pickle.dumps(opened(tmp_path / "a.mla")))
    np.testing.assert_array_equal(through_icechunk(again, tmp_path).image, voxels())


# Chunks without bytes


def with_nan(*, zeros: bool) -> NDArray[Any]:
    values = values_of(SHAPE, np.dtype("f4"), 3) + 1
    values[4:8, :4, :4] = np.nan
    if zeros:
        values[:4, :4, :4] = 0
    return values


@pytest.mark.parametrize("reads", READS)
def test_nan_is_the_fill_value_when_asked_for(reads: str, tmp_path: Path) -> None:
    values = with_nan(zeros=False)
    to_mla(values, tmp_path / "a.mla", chunks=4)
    virtual = opened(tmp_path / "a.mla", reads=reads, fill_value=math.nan)
    assert virtual.image.data.manifest.get_entry((1, 0, 0)) is None
    np.testing.assert_array_equal(through_icechunk(virtual, tmp_path).image, values)
    if reads == "chunks":
        np.testing.assert_array_equal(through_kerchunk(virtual, tmp_path).image, values)


def test_a_fill_value_that_is_wrong_for_a_chunk_is_refused(tmp_path: Path) -> None:
    """VirtualiZarr joins arrays of different fill values: the first would hold for all."""
    to_mla(with_nan(zeros=False), tmp_path / "nan.mla", chunks=4)
    with pytest.raises(ConversionError, match=r"nan.mla: chunk \(1, 0, 0\), one of 1 .*holds NaN"):
        opened(tmp_path / "nan.mla")
    to_mla(voxels("f4"), tmp_path / "zeros.mla", chunks=4)
    with pytest.raises(ConversionError, match=r"chunk \(0, 0, 0\), one of 6 .* holds zeros"):
        opened(tmp_path / "zeros.mla", fill_value=math.nan)
    to_mla(with_nan(zeros=True), tmp_path / "both.mla", chunks=4)
    for fill_value in (0, math.nan):
        with pytest.raises(ConversionError, match="as_store"):
            opened(tmp_path / "both.mla", fill_value=fill_value)


def test_integers_have_no_nan(tmp_path: Path) -> None:
    to_mla(voxels() + 1, tmp_path / "a.mla", chunks=4)
    with pytest.raises(ConversionError, match="int16 has no NaN"):
        opened(tmp_path / "a.mla", fill_value=math.nan)


# Many files


@pytest.fixture
def cases(tmp_path: Path) -> list[str]:
    """Write files of the same layout, each with another codec, name and place."""
    paths = [str(tmp_path / f"case{k}.mla") for k in range(3)]
    codecs = ["lz4hc-8", "zstd-3", "zlib-2-bitshuffle"]
    for k, (path, codec) in enumerate(zip(paths, codecs, strict=True)):
        image = volume(voxels(shape=(8, 12, 7)) + np.int16(k), case=k, site="A")
        image = image.assign_coords(z=image.z + 8 * k)
        to_mla(image, path, chunks=4, blocks=2, codec=codec)
    return paths


OPTIONS: dict[str, Any] = {
    "new": {"dim": "case", "join": "override", "combine_attrs": "drop_conflicts"},
    "existing": {"dim": "z", "combine_attrs": "drop_conflicts"},
}


@pytest.mark.parametrize("along", OPTIONS)
@pytest.mark.parametrize("way", ["icechunk", "icechunk by blocks", "kerchunk"])
def test_files_are_joined(along: str, way: str, cases: list[str], tmp_path: Path) -> None:
    reads = "blocks" if "blocks" in way else "chunks"
    joined = xr.concat([opened(path, reads=reads) for path in cases], **OPTIONS[along])
    assert isinstance(joined.image.data, ManifestArray)
    assert joined.image.attrs["site"] == "A"
    assert "case" not in joined.image.attrs
    files = [xr.open_dataset(path, engine="mlarray") for path in cases]
    wanted = xr.concat(files, **OPTIONS[along])
    through = through_kerchunk if way == "kerchunk" else through_icechunk
    read = through(joined, tmp_path)
    xr.testing.assert_identical(read, wanted)
    some = {dim: slice(1, 3) for dim in wanted.dims}
    xr.testing.assert_identical(read.isel(some), wanted.isel(some))


def test_files_are_opened_side_by_side(cases: list[str]) -> None:
    joined = open_virtual_mfdataset(
        cases,
        registry=LOCAL,
        parser=MlaParser(),
        parallel=ThreadPoolExecutor,
        combine="nested",
        concat_dim="case",
        join="override",
        combine_attrs="drop_conflicts",
    )
    assert joined.image.data.shape == (3, 8, 12, 7)


def test_files_of_other_layouts_are_not_joined(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla", chunks=4, blocks=2)
    to_mla(voxels(), tmp_path / "b.mla", chunks=4, blocks=4)
    with pytest.raises(NotImplementedError, match="different codecs"):
        xr.concat([opened(tmp_path / f"{k}.mla") for k in "ab"], dim="case")


def test_an_empty_file_is_joined_with_empty_ones_only(tmp_path: Path) -> None:
    write_b2nd(tmp_path / "none.b2nd", np.zeros((0, 4), "i2"))
    write_b2nd(tmp_path / "some.b2nd", np.ones((3, 4), "i2"), chunks=(1, 4), blocks=(1, 4))
    none, some = opened(tmp_path / "none.b2nd"), opened(tmp_path / "some.b2nd")
    joined = xr.concat([none, none], dim="case")
    assert through_icechunk(joined, tmp_path).image.shape == (2, 0, 4)
    with pytest.raises(NotImplementedError, match="different codecs"):
        np.concatenate([none.image.data, some.image.data], axis=0)


def test_kerchunk_has_no_place_for_blocks(cases: list[str], tmp_path: Path) -> None:
    """It would drop the codec, and the bytes of compressed chunks would be taken for voxels."""
    with pytest.raises(AttributeError):
        opened(cases[0], reads="blocks").vz.to_kerchunk(str(tmp_path / "a.json"), format="json")


# Other places


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as running, remote_settings():
        yield running


def http_registry(server: RangeServer) -> Any:
    url = f"http://127.0.0.1:{server.port}"
    return ObjectStoreRegistry({url: HTTPStore.from_url(url, client_options={"allow_http": True})})


def test_opening_reads_the_ends_of_a_remote_file(server: RangeServer, tmp_path: Path) -> None:
    values = np.arange(400 * 400, dtype="int32").reshape(400, 400)
    to_mla(values, tmp_path / "many.mla", chunks=4, blocks=4)
    data = (tmp_path / "many.mla").read_bytes()
    server.put("many.mla", data)
    url = server.url("many.mla")
    virtual = open_virtual_dataset(url, registry=http_registry(server), parser=MlaParser())
    assert virtual.image.data.manifest.shape_chunk_grid == (100, 100)
    header = MlaArray(tmp_path / "many.mla")._header
    index_and_trailer = len(data) - header.index_start
    assert 10_000 < index_and_trailer < len(data) / 2
    assert server.counts().bytes_sent < 100_000 + index_and_trailer


def test_of_a_large_remote_chunk_only_the_wanted_block_is_read(
    server: RangeServer, tmp_path: Path
) -> None:
    values = np.random.default_rng(5).integers(0, 255, (128, 256, 256), np.uint8)
    to_mla(values, tmp_path / "a.mla", chunks=256, blocks=32)
    server.put("a.mla", (tmp_path / "a.mla").read_bytes())
    store = MlaParser(reads="blocks")(server.url("a.mla"), http_registry(server))
    assert 0 < server.counts().bytes_sent < 100_000 < values.nbytes / 50
    array = zarr.open_array(store, path="image", mode="r", zarr_format=3)
    server.reset_counts()
    assert array[10, 20, 30] == values[10, 20, 30]
    assert 0 < server.counts().bytes_sent < 100_000


def test_a_short_chunk_of_many_blocks(tmp_path: Path) -> None:
    """Of a repeated value: it ends before the table of blocks that others of its kind have."""
    repeated = blosc2.full((4096, 2048), 7, dtype="i2", chunks=(2048, 2048), blocks=(64, 64))
    (tmp_path / "a.b2nd").write_bytes(repeated.to_cframe())
    store = MlaParser(reads="blocks")(str(tmp_path / "a.b2nd"), LOCAL)
    assert int(store.to_virtual_dataset().image.data.manifest["0.0"]["length"]) < 64
    array = zarr.open_array(store, path="image", mode="r", zarr_format=3)
    assert array[3, 4] == array[4095, 2047] == 7
    read = through_icechunk(opened(tmp_path / "a.b2nd", reads="blocks"), tmp_path)
    assert read.image[3, 4] == read.image[4095, 2047] == 7


def test_a_store_with_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    to_mla(voxels(), tmp_path / "data/a b.mla", chunks=4)
    url = f"file://{tmp_path}/data/a b.mla"
    registry = ObjectStoreRegistry({f"file://{tmp_path}": LocalStore(prefix=tmp_path)})
    virtual = open_virtual_dataset(
        url, registry=registry, parser=MlaParser(), loadable_variables=["image"]
    )
    np.testing.assert_array_equal(virtual.image.values, voxels())


def test_objects_in_s3(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla", chunks=4)
    data = (tmp_path / "a.mla").read_bytes()
    with remote_settings(), s3_server({"study/a.mla": data}) as server:
        store = S3Store(
            server.bucket,
            prefix="study",
            endpoint=server.endpoint_url,
            access_key_id="key",
            secret_access_key="secret",
            region=REGION,
            client_options={"allow_http": True},
        )
        url = server.url("study/a.mla")
        read = open_virtual_dataset(
            url,
            registry=ObjectStoreRegistry({f"s3://{server.bucket}": store}),
            parser=MlaParser(),
            loadable_variables=["image"],
        )
        np.testing.assert_array_equal(read.image.values, voxels())
        with pytest.raises(FileNotFoundError):
            MlaParser()(server.url("study/b.mla"), ObjectStoreRegistry({"s3://images": store}))


def test_objects_in_memory(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla", chunks=4)
    store = MemoryStore()
    store.put("folder/a.mla", (tmp_path / "a.mla").read_bytes())
    read = open_virtual_dataset(
        "memory:///folder/a.mla",
        registry=ObjectStoreRegistry({"memory://": store}),
        parser=MlaParser(),
        loadable_variables=["image"],
    )
    np.testing.assert_array_equal(read.image.values, voxels())


# What is refused


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla")
    data = (tmp_path / "a.mla").read_bytes()
    (tmp_path / "cut.mla").write_bytes(data[:-40])
    with pytest.raises(FormatError, match=r"cut\.mla"):
        opened(tmp_path / "cut.mla")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "none.mla")
    with pytest.raises(ValueError, match="Could not find an ObjectStore"):
        open_virtual_dataset("s3://b/a.mla", registry=LOCAL, parser=MlaParser())


def test_stores_of_others() -> None:
    registry: Any = ObjectStoreRegistry()
    registry.register("https://a.org", object())
    with pytest.raises(SourceError, match="give an obstore store"):
        MlaParser()("https://a.org/b.mla", registry)


@pytest.mark.parametrize("wrong", [{"reads": "voxels"}, {"fill_value": 1}])
def test_parameters_that_there_are_not(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MlaParser(**wrong)


def test_virtualizarr_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "virtualizarr", None)
    with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[virtual\]"):
        MlaParser()("file:///a.mla", LOCAL)


def test_importing_the_parser_imports_no_virtualizarr() -> None:
    code = (
        "import sys, mlarray_xr.zarr_view.parser;"
        "assert not {'virtualizarr', 'icechunk', 'zarr'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
