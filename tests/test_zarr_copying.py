"""Copies between files and Zarr: chunks stay as they are, and NumPy says what they hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
import zarr
from fsspec import filesystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import LocalStore as LocalObjects
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec
from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)

import mlarray_xr
from mlarray_xr import Metadata, MlaArray, to_mla, verify
from mlarray_xr.errors import ChunkError, ConversionError, FormatError, LayoutError, SourceChanged
from mlarray_xr.format.metadata import Stats
from mlarray_xr.storage.source import source_of
from mlarray_xr.zarr_view import copied_image, zarr_export
from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_runs import RUN_BYTES, plan_runs, read_run
from mlarray_xr.zarr_view.chunk_table import ChunkTable
from mlarray_xr.zarr_view.chunk_target import StoreTarget
from mlarray_xr.zarr_view.shard import decode_shard_table, encode_shard_table
from mlarray_xr.zarr_view.store import as_store
from mlarray_xr.zarr_view.zarr_export import to_zarr
from mlarray_xr.zarr_view.zarr_import import from_zarr
from tests.range_server import RangeServer
from tests.strategies import NUMBERS, layouts, shapes, values_of

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import NDArray

FILES = Path(__file__).parent / "data" / "mla"
WITH_VALUES = [f for f in sorted(FILES.rglob("*.*")) if f.with_suffix(".npy").exists()]
WITH_VALUES = [f for f in WITH_VALUES if f.suffix in (".mla", ".mb2nd", ".b2nd")]
# The newest of each kind, and one of each release.
GENERATIONS = sorted(
    {*{f.stem: f for f in WITH_VALUES}.values(), *{f.parent: f for f in WITH_VALUES}.values()}
)
DTYPES = (*NUMBERS, "|i1", "<u2", "<f8", "<c8", "<M8[ns]", "<m8[s]")
SHARDS: tuple[Any, ...] = (None, "file", 40)
VOLUME = np.arange(50 * 60 * 40, dtype="<f4").reshape(50, 60, 40)
LAYOUT: dict[str, Any] = {"chunks": 20, "blocks": (7, 10, 20), "codec": "zstd-1"}


def image_in(store: Any, path: str = "image") -> NDArray[Any]:
    return np.asarray(zarr.open_group(store, mode="r")[path][...])  # type: ignore[index]


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def written(folder: Path, values: Any, **options: Any) -> Path:
    path = folder / "a.mla"
    to_mla(values, path, mode="w", **(options or LAYOUT))
    return path


def edited(folder: Path, key: str, change: Any) -> None:
    """Change the metadata document of a node."""
    path = folder / key / "zarr.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def chunk_files(folder: Path, array: str = "image") -> list[Path]:
    return sorted(p for p in (folder / array / "c").rglob("*") if p.is_file())


# There and back


@pytest.mark.parametrize("shards", [None, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_come_back_byte_for_byte(tmp_path: Path, dtype: str, shards: Any) -> None:
    values = values_of((50, 33, 21), np.dtype(dtype), seed=3)
    values[:20, :20, :20] = np.zeros((), values.dtype)
    path = written(tmp_path, values)
    to_zarr(path, tmp_path / "a.zarr", shards=shards)
    found = image_in(tmp_path / "a.zarr")
    np.testing.assert_array_equal(found, values)
    assert found.dtype == values.dtype.newbyteorder("=")
    report = from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)
    assert (report.shape, report.n_chunks) == (values.shape, 12)
    assert verify(tmp_path / "b.mla").state == "ok"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_layouts_come_back_byte_for_byte(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(shapes(max_dims=5, max_side=9))
    chunks, blocks = data.draw(layouts(shape))
    shards: Any = data.draw(st.sampled_from([None, "file", 5]))
    values = values_of(shape, np.dtype("<i2"), seed=1)
    path = written(tmp_path, values, chunks=chunks, blocks=blocks, codec="lz4-5-bitshuffle")
    to_zarr(path, tmp_path / "a.zarr", shards=shards, mode="w")
    np.testing.assert_array_equal(image_in(tmp_path / "a.zarr"), values)
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla", mode="w")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


@pytest.mark.parametrize("file", GENERATIONS, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_files_of_all_generations_are_copied(tmp_path: Path, file: Path) -> None:
    values = np.load(file.with_suffix(".npy"))
    to_zarr(file, tmp_path / "a.zarr", shards="file")
    arrays = dict(zarr.open_group(tmp_path / "a.zarr", mode="r").arrays())
    (name,) = {"image", "labels"} & arrays.keys()
    np.testing.assert_array_equal(arrays[name][...], values)
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    back, original = MlaArray(tmp_path / "b.mla"), MlaArray(file)
    np.testing.assert_array_equal(back[...], values)
    assert (back.chunks, back.blocks, back.dtype) == (
        original.chunks,
        original.blocks,
        original.dtype,
    )
    # As texts: NaN differs from itself.
    assert repr(back.metadata.source) == repr(original.metadata.source)
    assert back.metadata.is_seg == original.metadata.is_seg
    assert back.metadata.spatial == original.metadata.spatial
    assert verify(tmp_path / "b.mla").state == "ok"


def test_chunks_in_zarr_are_the_bytes_of_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    table, whole = ChunkTable.read(source_of(path)), bytes_of(path)
    to_zarr(path, tmp_path / "a.zarr")
    for number, position in enumerate(np.ndindex(table.grid)):
        start, room = int(table.starts[number]), int(table.lengths[number])
        found = (tmp_path / "a.zarr/image/c").joinpath(*map(str, position)).read_bytes()
        assert whole[start : start + room].startswith(found)
        assert int.from_bytes(found[12:16], "little") == len(found)


def test_labels_and_layout_come_back(tmp_path: Path) -> None:
    ramp = xr.DataArray(
        np.arange(64 * 90 * 70, dtype="i2").reshape(64, 90, 70),
        dims=("z", "y", "x"),
        coords={"z": 3.0 * np.arange(64), "y": 0.5 * np.arange(90), "x": 0.5 * np.arange(70)},
        attrs={"scanner": "A"},
    )
    path = written(tmp_path, ramp, patch=32, block_index=True, codec="zstd-1-bitshuffle")
    to_zarr(path, tmp_path / "a.zarr")
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)
    opened = xr.open_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(opened.x, ramp.x)
    # Who takes the plain way finds nothing of it among the attributes of the user.
    to_mla(opened.image, tmp_path / "c.mla")
    assert (
        mlarray_xr.open_mla(tmp_path / "c.mla").attrs.keys()
        == mlarray_xr.open_mla(path).attrs.keys()
    )


COORDINATES: dict[str, dict[str, Any]] = {
    "order": {"zz": ("time", [3, 1, 2]), "time": [5, 6, 7], "sp ace": ("time", [*"xyz"]), "a": 3},
    "units of a time": {"time": ("time", [0.0, 1, 2], {"units": "days since 2000-01-01"})},
    "whole": {"t": ("time", [0, 1, 2], {"units": "days since 2000-01-01", "calendar": "standard"})},
    "absent": {"t": ("time", [0.0, np.nan, 2], {"units": "seconds since 2000-01-01"})},
    "scaled": {"q": ("time", np.array([0, 1, 2], "i2"), {"scale_factor": 0.5, "add_offset": 1.0})},
    "filled": {"q": ("time", np.array([0, 1, 2], "f4"), {"missing_value": 1.0})},
    "truths": {"q": ("time", np.array([0, 1, 2], "i1"), {"dtype": "bool"})},
    "unsigned": {"q": ("time", np.array([-1, 1, 2], "i1"), {"_Unsigned": "true"})},
    "listed": {"q": ("time", [1, 2, 3], {"coordinates": "z"})},
    "seconds": {"time": np.array(["2000-01-01", "NaT", "2002-01-01"], "M8[s]")},
    "spans": {"d": ("time", np.array([1, 2, 3], "m8[ms]"))},
    "texts": {"q": ("time", ["a", "", "ccc"]), "scalar": "h\u00e9"},
}


@pytest.mark.parametrize("coords", COORDINATES.values(), ids=COORDINATES.keys())
def test_coordinates_come_back(tmp_path: Path, coords: dict[str, Any]) -> None:
    values = np.arange(60, dtype="i2").reshape(3, 4, 5)
    path = written(tmp_path, xr.DataArray(values, dims=("time", "y", "x"), coords=coords), chunks=4)
    to_zarr(path, tmp_path / "a.zarr")
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text("abcXYZ_ 0", min_size=1, max_size=4), unique=True, max_size=5),
    units=st.sampled_from(["s", "days since 2000-01-01", "hours since 0001-01-01", "since", "1"]),
    kind=st.sampled_from(["f8", "i4", "u1", "f4"]),
)
def test_any_order_of_coordinates_comes_back(
    tmp_path: Path, names: list[str], units: str, kind: str
) -> None:
    coords = {
        f"c{name}": ("time", np.array([n, 7, 3], kind), {"units": units})
        for n, name in enumerate(names)
    }
    image = xr.DataArray(np.zeros((3, 4), "u1"), dims=("time", "y"), coords=coords)
    path = written(tmp_path, image, chunks=4)
    to_zarr(path, tmp_path / "a.zarr", mode="w")
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla", mode="w")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_coordinates_that_were_changed_since(tmp_path: Path) -> None:
    days = ("time", [0.0, 1.0, 2.0], {"units": "days since 2000-01-01"})
    image = xr.DataArray(np.zeros((3, 4), "u1"), dims=("time", "y"), coords={"time": days})
    to_zarr(written(tmp_path, image, chunks=4), tmp_path / "a.zarr")
    array: Any = zarr.open_array(tmp_path / "a.zarr/time", mode="r+")
    array[1] = 1.5
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    found = mlarray_xr.open_mla(tmp_path / "b.mla").time.values
    assert found[1] == np.datetime64("2000-01-02T12:00")


def test_lossy_codecs_come_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 40)).astype("f4")
    path = written(tmp_path, values, chunks=20, codec="zstd-1-shuffle-trunc8", lossy=True)
    to_zarr(path, tmp_path / "a.zarr")
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_stated_statistics_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME, metadata=Metadata(has_array=True, stats=Stats(mean=3.0)))
    to_zarr(path, tmp_path / "a.zarr")
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert MlaArray(tmp_path / "b.mla").metadata.stats == Stats()


# What is not stored as a chunk


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("has_zeros", [False, True])
def test_nan_and_zeros(tmp_path: Path, has_zeros: bool, shards: Any) -> None:
    values = VOLUME + 1
    values[:20, :20, :20] = np.nan
    if has_zeros:
        values[20:40, :20, :20] = 0
    path = written(tmp_path, values)
    to_zarr(path, tmp_path / "a.zarr", shards=shards)
    np.testing.assert_array_equal(image_in(tmp_path / "a.zarr"), values)
    if shards is None:
        nan_chunk = tmp_path / "a.zarr/image/c/0/0/0"
        assert nan_chunk.exists() == has_zeros
        assert not (tmp_path / "a.zarr/image/c/1/0/0").exists() or not has_zeros
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_nothing_but_zeros_has_no_objects(tmp_path: Path) -> None:
    path = written(tmp_path, np.zeros((40, 40), "u1"), chunks=20)
    to_zarr(path, tmp_path / "a.zarr", shards=20)
    assert not (tmp_path / "a.zarr/image/c").exists()
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_one_shard_holds_all(tmp_path: Path) -> None:
    to_zarr(written(tmp_path, VOLUME), tmp_path / "a.zarr", shards="file")
    assert chunk_files(tmp_path / "a.zarr") == [tmp_path / "a.zarr/image/c/0/0/0"]
    document = json.loads((tmp_path / "a.zarr/image/zarr.json").read_text())
    assert document["chunk_grid"]["configuration"]["chunk_shape"] == [60, 60, 40]
    # One chunk of it, through zarr-python's own reading of the index.
    array = zarr.open_array(tmp_path / "a.zarr/image", mode="r")
    np.testing.assert_array_equal(array[45:, 41, 3:9], VOLUME[45:, 41, 3:9])


@pytest.mark.parametrize("shards", [np.int64(40), np.array([40, 40, 40]), (np.uint8(40), 40, 40)])
def test_shards_of_numpy(tmp_path: Path, shards: Any) -> None:
    to_zarr(written(tmp_path, VOLUME), tmp_path / "a.zarr", shards=shards)
    assert zarr.open_array(tmp_path / "a.zarr/image", mode="r").shards == (40, 40, 40)


@pytest.mark.parametrize(
    "shards",
    ["all", 0, (20, 20), -3, (2.5, 2, 2), 2.5, True, (True, 20, 20), np.bool_(1), {}, (None,) * 3],
)
def test_shards_that_are_none(tmp_path: Path, shards: Any) -> None:
    with pytest.raises(LayoutError, match="shards="):
        to_zarr(written(tmp_path, VOLUME), tmp_path / "a.zarr", shards=shards)
    assert sorted(os.listdir(tmp_path)) == ["a.mla"]


# Overviews, stores, modes


@pytest.mark.parametrize("shards", [None, "file"])
def test_overviews_are_copied(tmp_path: Path, shards: Any) -> None:
    path = written(tmp_path, VOLUME, levels=2, **LAYOUT)
    to_zarr(path, tmp_path / "a.zarr", shards=shards)
    for level in (1, 2):
        expected = MlaArray(tmp_path / f"a.level{level}.mla")[...]
        np.testing.assert_array_equal(
            image_in(tmp_path / "a.zarr", f"level{level}/image"), expected
        )
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla", array="level1/image")
    np.testing.assert_array_equal(
        MlaArray(tmp_path / "b.mla")[...], MlaArray(tmp_path / "a.level1.mla")[...]
    )
    from_zarr(tmp_path / "a.zarr", tmp_path / "c.mla")
    assert bytes_of(tmp_path / "c.mla") == bytes_of(path)
    to_zarr(path, tmp_path / "a.zarr", overviews=False, mode="w")
    assert not (tmp_path / "a.zarr/level1").exists()


@pytest.mark.parametrize("shards", [None, 40])
def test_stores_of_zarr_python(tmp_path: Path, shards: Any) -> None:
    path = written(tmp_path, VOLUME)
    memory, zipped = MemoryStore(), ZipStore(tmp_path / "a.zip", mode="w")
    for store in (memory, zipped, LocalStore(tmp_path / "a.zarr")):
        to_zarr(path, store, shards=shards)
    zipped.close()
    for n, source in enumerate([memory, tmp_path / "a.zip", LocalStore(tmp_path / "a.zarr")]):
        from_zarr(source, tmp_path / f"b{n}.mla")
        assert bytes_of(tmp_path / f"b{n}.mla") == bytes_of(path)
    with pytest.raises(FileExistsError, match="not empty"):
        to_zarr(path, memory)
    to_zarr(path, memory, mode="w")
    np.testing.assert_array_equal(image_in(memory), VOLUME)
    other = MemoryStore()
    StoreTarget(store=other).put("notes.txt", b"mine")
    with pytest.raises(ConversionError, match="this is none"):
        to_zarr(path, other, mode="w")


def stores_on(folder: Path) -> dict[str, Any]:
    """Return stores that show a folder and are no LocalStore."""
    disk = filesystem("file", auto_mkdir=True)
    part = DirFileSystem(str(folder.parent), disk)
    return {
        "obstore": ObjectStore(LocalObjects(folder, mkdir=True)),
        "fsspec": FsspecStore(AsyncFileSystemWrapper(disk, asynchronous=True), path=str(folder)),
        "part of a file system": FsspecStore(
            AsyncFileSystemWrapper(part, asynchronous=True), path=folder.name
        ),
        "wrapped": WrapperStore(LocalStore(folder)),
        "wrapped twice": LoggingStore(WrapperStore(LocalStore(folder)), log_level="CRITICAL"),
    }


KINDS_OF_STORES = ["obstore", "fsspec", "part of a file system", "wrapped", "wrapped twice"]


@pytest.mark.parametrize("kind", KINDS_OF_STORES)
@pytest.mark.parametrize("inside", ["a.mla", "deeper/than/a.mla"])
def test_stores_that_contain_the_source(tmp_path: Path, kind: str, inside: str) -> None:
    folder = tmp_path / "cases"
    (folder / inside).parent.mkdir(parents=True)
    zarr.create_group(folder)
    path = written((folder / inside).parent, VOLUME)
    before = files_in(folder)
    with pytest.raises(ConversionError, match=r"contains the file that is read.*a\.mla"):
        to_zarr(path, stores_on(folder)[kind], mode="w")
    assert files_in(folder) == before
    (tmp_path / "link.mla").symlink_to(path)
    with pytest.raises(ConversionError, match="contains the file that is read"):
        to_zarr(tmp_path / "link.mla", stores_on(folder)[kind], mode="w")
    assert files_in(folder) == before
    path.rename(tmp_path / "a.mla")
    to_zarr(tmp_path / "a.mla", stores_on(folder)[kind], mode="w")
    np.testing.assert_array_equal(image_in(folder), VOLUME)


@pytest.mark.parametrize("is_store", [False, True])
def test_levels_inside_a_target(tmp_path: Path, is_store: bool) -> None:
    folder = tmp_path / "a.zarr"
    zarr.create_group(folder)
    path = written(tmp_path, VOLUME, levels=1, **LAYOUT)
    (tmp_path / "a.level1.mla").rename(folder / "level.mla")
    (tmp_path / "a.level1.mla").symlink_to(folder / "level.mla")
    before = files_in(folder)
    target: Any = WrapperStore(LocalStore(folder)) if is_store else folder
    with pytest.raises(ConversionError, match="contains the file that is read"):
        to_zarr(path, target, mode="w")
    assert files_in(folder) == before


def test_buckets_that_contain_the_source(tmp_path: Path) -> None:
    path, store = written(tmp_path, VOLUME), MemoryStore()
    zarr.create_group(store)
    StoreTarget(store=store).put("cases/a.mla", bytes_of(path))
    with RangeServer({"bucket/cases/a.mla": bytes_of(path)}) as server:
        url = server.url("bucket/cases/a.mla")
        with pytest.raises(ConversionError, match="contains the file that is read"):
            to_zarr(url, store, overviews=False, mode="w")
    assert len(store._store_dict) == 2


@pytest.mark.parametrize("kind", KINDS_OF_STORES)
def test_early_failures_leave_what_a_store_held(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, np.ones((40, 40), "i4"), chunks=20)
    store = stores_on(tmp_path / "a.zarr")[kind]
    to_zarr(path, store)
    table = ChunkTable.read(source_of(path))
    table.special[2], table.lengths[2], table.starts[2] = 2, 0, 0
    with (
        mock.patch.object(ChunkTable, "read", return_value=table),
        pytest.raises(ChunkError, match="chunk 2 of int32 is said to be NaN"),
    ):
        to_zarr(path, store, mode="w")
    (tmp_path / "bad.mla").write_bytes(bytes_of(path)[:-30])
    with pytest.raises(FormatError):
        to_zarr(tmp_path / "bad.mla", store, mode="w")
    np.testing.assert_array_equal(image_in(store), np.ones((40, 40)))


def test_stores_for_reading_only(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    to_zarr(path, tmp_path / "a.zarr")
    before = files_in(tmp_path)
    modes: tuple[Any, ...] = ("w-", "w")
    for folder in (tmp_path / "a.zarr", tmp_path / "new.zarr"):
        local = LocalStore(folder, read_only=True)
        for store in (local, WrapperStore(local), MemoryStore(read_only=True), as_store(path)):
            for mode in modes:
                with pytest.raises(ConversionError, match=r"reading only. To fix: .*read_only"):
                    to_zarr(path, store, mode=mode)
    assert files_in(tmp_path) == before
    to_zarr(path, LocalStore(tmp_path / "a.zarr", read_only=True).with_read_only(False), mode="w")


def test_names_of_the_greatest_length(tmp_path: Path) -> None:
    path, target = written(tmp_path, VOLUME), tmp_path / ("\u00e9" * 125 + ".zarr")
    modes: tuple[Any, ...] = ("w-", "w")
    for mode in modes:
        to_zarr(path, target, mode=mode)
    np.testing.assert_array_equal(image_in(target), VOLUME)


def test_existing_targets(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    to_zarr(path, tmp_path / "a.zarr")
    with pytest.raises(FileExistsError):
        to_zarr(path, tmp_path / "a.zarr")
    with pytest.raises(FileExistsError):
        from_zarr(tmp_path / "a.zarr", path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(ConversionError, match="neither"):
        to_zarr(path, tmp_path / "mine", mode="w")
    to_zarr(path, tmp_path / "a.zarr", shards="file", mode="w")
    from_zarr(tmp_path / "a.zarr", path, mode="w")
    np.testing.assert_array_equal(MlaArray(path)[...], VOLUME)


@pytest.mark.parametrize("target", ["s3://bucket/a.zarr?key=1", 3])
def test_targets_that_are_none(tmp_path: Path, target: Any) -> None:
    error = ConversionError if isinstance(target, str) else TypeError
    with pytest.raises(error, match="zarr-python") as caught:
        to_zarr(written(tmp_path, VOLUME), target)
    assert "key=1" not in str(caught.value)
    with pytest.raises(error, match="zarr-python") as caught:
        from_zarr(target, tmp_path / "b.mla")
    assert "key=1" not in str(caught.value)
    mode: Any = "a"
    with pytest.raises(ValueError, match="mode='a'"):
        to_zarr(tmp_path / "a.mla", tmp_path / "a.zarr", mode=mode)
    with pytest.raises(ValueError, match="mode='a'"):
        from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla", mode=mode)


def test_files_in_memory_and_progress(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    told: list[tuple[int, int]] = []
    to_zarr(bytes_of(path), tmp_path / "a.zarr", progress=lambda *n: told.append(n))
    assert told[-1] == (18, 18)
    told.clear()
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla", progress=lambda *n: told.append(n))
    assert (told[0], told[-1]) == ((0, 18), (18, 18))
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


@pytest.mark.parametrize("shards", [None, "file"])
def test_remote_files(tmp_path: Path, shards: Any) -> None:
    path = written(tmp_path, VOLUME)
    with RangeServer({"a.mla": bytes_of(path)}) as server:
        to_zarr(server.url("a.mla"), tmp_path / "a.zarr", overviews=False, shards=shards)
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_metadata_alone_is_a_group(tmp_path: Path) -> None:
    to_zarr(FILES / "0.0.54" / "meta_only_empty.mla", tmp_path / "a.zarr")
    assert "mla_metadata" in zarr.open_group(tmp_path / "a.zarr", mode="r").attrs


# Failures of to_zarr


@pytest.mark.parametrize("shards", SHARDS)
def test_a_flipped_bit_is_named_and_nothing_published(tmp_path: Path, shards: Any) -> None:
    path = written(tmp_path, VOLUME)
    table, data = ChunkTable.read(source_of(path)), bytearray(bytes_of(path))
    data[int(table.starts[7]) + 500] ^= 4
    path.write_bytes(data)
    with pytest.raises(ChunkError, match=r"chunk 7 \(grid position \(1, 0, 1\)\).*checksum"):
        to_zarr(path, tmp_path / "a.zarr", shards=shards)
    assert os.listdir(tmp_path) == ["a.mla"]
    store = MemoryStore()
    with pytest.raises(ChunkError):
        to_zarr(path, store, shards=shards)
    assert not store._store_dict


def test_damaged_heads_and_shared_bytes(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    source = source_of(path)
    header, table = MlaArray(path)._header, ChunkTable.read(source)
    data = bytearray(bytes_of(path))
    data[int(table.starts[3]) + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(ChunkError, match="chunk 3"):
        to_zarr(path, tmp_path / "a.zarr")
    table.starts[5] = table.starts[4]
    with pytest.raises(ChunkError, match="chunk 4 and another one"):
        plan_runs(np.arange(18), table, None, header=header, name="a.mla")


def test_chunks_longer_than_their_room(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    data = bytearray(bytes_of(path))
    data[int(ChunkTable.read(source_of(path)).starts[0]) + 13] ^= 0x10
    path.write_bytes(data)
    source = source_of(path)
    header, table = MlaArray(path)._header, ChunkTable.read(source)
    (run,) = plan_runs(np.arange(18), table, None, header=header, name="a.mla")
    with pytest.raises(ChunkError, match=r"chunk 0.*the next chunk begins"):
        read_run(run, source, header)


def test_integers_that_are_said_to_be_nan(tmp_path: Path) -> None:
    path = written(tmp_path, np.ones((40, 40), "i4"), chunks=20)
    table = ChunkTable.read(source_of(path))
    table.special[2], table.lengths[2], table.starts[2] = 2, 0, 0
    with (
        mock.patch.object(ChunkTable, "read", return_value=table),
        pytest.raises(ChunkError, match="chunk 2 of int32 is said to be NaN"),
    ):
        to_zarr(path, tmp_path / "a.zarr")
    assert os.listdir(tmp_path) == ["a.mla"]


def test_runs_are_bounded(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (24, 1024, 1024), "u1")
    path = written(tmp_path, values, chunks=(1, 1024, 1024), codec="lz4-1-none")
    header, table = MlaArray(path)._header, ChunkTable.read(source_of(path))
    runs = plan_runs(np.arange(24), table, None, header=header, name="a.mla")
    assert len(runs) == 4
    assert max(int(r.starts[-1] + r.room[-1] - r.starts[0]) for r in runs) <= RUN_BYTES
    scattered = plan_runs(np.array([1, 5, 6, 9]), table, None, header=header, name="a.mla")
    assert [r.numbers.tolist() for r in scattered] == [[1], [5, 6], [9]]


def test_errors_while_writing_leave_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    with (
        mock.patch.object(copied_image.CopiedImage, "key", side_effect=OSError(28, "disk full")),
        pytest.raises(OSError, match="disk full"),
    ):
        to_zarr(path, tmp_path / "a.zarr")
    assert os.listdir(tmp_path) == ["a.mla"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills in another way")
def test_a_killed_copy_has_no_name(tmp_path: Path) -> None:
    path = written(tmp_path, VOLUME)
    script = (
        "import sys, time; from mlarray_xr.zarr_view import copied_image, zarr_export\n"
        "key = copied_image.CopiedImage.key\n"
        "def slow(self, position):\n"
        "    print('busy', flush=True); time.sleep(0.05); return key(self, position)\n"
        "copied_image.CopiedImage.key = slow\n"
        "zarr_export.to_zarr(sys.argv[1], sys.argv[2])\n"
    )
    target = tmp_path / "a.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path), str(target)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"busy\n"
        child.kill()
    assert not target.exists()
    # What is left tells whose it is.
    (left,) = (p.name for p in tmp_path.iterdir() if p != path)
    assert re.fullmatch(r"\.a\.zarr\.[0-9a-f]{32}\.tmp", left)
    to_zarr(path, target)
    np.testing.assert_array_equal(image_in(target), VOLUME)


# Arrays that zarr-python wrote


def created(folder: Path, values: NDArray[Any], **options: Any) -> Path:
    path = folder / "z.zarr"
    shutil.rmtree(path, ignore_errors=True)
    group = zarr.open_group(path, mode="w")
    options = {"chunks": (20,) * values.ndim, "serializer": None, **options}
    codec = B2ndCodec(
        typesize=values.dtype.itemsize, chunks=options["chunks"], blocks=(10,) * values.ndim
    )
    options["serializer"] = options["serializer"] or codec
    array = group.create_array(
        "ct", shape=values.shape, dtype=values.dtype, compressors=None, **options
    )
    array[...] = values
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fill_value": 7},
        {"shards": (40, 40, 40)},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"dimension_names": ("z", "y", "x")},
    ],
    ids=str,
)
def test_arrays_of_others(tmp_path: Path, options: dict[str, Any]) -> None:
    values = VOLUME.copy()
    values[:20] = 7
    values[20:40, :20, :20] = 0
    values[20:40, 20:40, :20] = np.nan
    path = created(tmp_path, values, **options)
    from_zarr(path, tmp_path / "b.mla")
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], values)
    assert verify(tmp_path / "b.mla", decode=True).state == "ok"
    recorded = MlaArray(tmp_path / "b.mla").chunk_statistics()
    assert recorded is not None
    assert np.nanmax(recorded.greatest) == values[~np.isnan(values)].max()
    assert int(recorded.nonzero.sum()) == np.count_nonzero(values)


@pytest.mark.parametrize("shards", [None, (80, 40, 80)])
def test_arrays_of_the_codec_alone(tmp_path: Path, shards: Any) -> None:
    options: dict[str, Any] = {"chunks": (40, 40, 40), "shards": shards, "serializer": B2ndCodec()}
    path = created(tmp_path, VOLUME, **options)
    from_zarr(path, tmp_path / "b.mla")
    back = MlaArray(tmp_path / "b.mla")
    np.testing.assert_array_equal(back[...], VOLUME)
    assert (back.chunks, back.blocks) == ((40, 40, 40), (20, 20, 40))
    assert verify(tmp_path / "b.mla", decode=True).state == "ok"


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index_codecs", [[BytesCodec()], None])
def test_tables_of_shards(tmp_path: Path, location: str, index_codecs: Any) -> None:
    inner = B2ndCodec(typesize=4, chunks=(20, 20, 20), blocks=(10, 10, 20))
    kept = {} if index_codecs is None else {"index_codecs": index_codecs}
    shard = ShardingCodec(chunk_shape=(20, 20, 20), codecs=[inner], index_location=location, **kept)
    path = created(tmp_path, VOLUME, chunks=(60, 60, 40), serializer=shard)
    from_zarr(path, tmp_path / "b.mla", array="ct")
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], VOLUME)
    assert MlaArray(tmp_path / "b.mla").chunks == (20, 20, 20)


def test_padding_of_others_does_not_count(tmp_path: Path) -> None:
    values = np.ones((25, 25), "i2")
    path = created(tmp_path, values, fill_value=99)
    from_zarr(path, tmp_path / "b.mla")
    recorded = MlaArray(tmp_path / "b.mla").chunk_statistics()
    assert recorded is not None
    assert recorded.greatest.tolist() == [1] * 4
    assert recorded.nonzero.tolist() == [400, 100, 100, 25]


@pytest.mark.parametrize("compressors", [None, BloscCodec()])
def test_other_codecs_are_converted_instead(tmp_path: Path, compressors: Any) -> None:
    group = zarr.open_group(tmp_path / "z.zarr", mode="w")
    group.create_array("ct", data=VOLUME, chunks=(20, 20, 20), compressors=compressors)
    for name in (None, "ct"):
        with pytest.raises(ConversionError, match=r"To fix: mlarray_xr.convert\(src, dst\)"):
            from_zarr(tmp_path / "z.zarr", tmp_path / "b.mla", array=name)
    assert os.listdir(tmp_path) == ["z.zarr"]
    mlarray_xr.convert(tmp_path / "z.zarr", tmp_path / "b.mla")


def test_which_array(tmp_path: Path) -> None:
    path = created(tmp_path, VOLUME)
    shutil.copytree(path / "ct", path / "mr")
    with pytest.raises(ConversionError, match=r"there are 2 arrays.*array='"):
        from_zarr(path, tmp_path / "b.mla")
    with pytest.raises(ConversionError, match="no array 'pet'"):
        from_zarr(path, tmp_path / "b.mla", array="pet")
    with pytest.raises(ConversionError, match=r"array='../z.zarr/ct' is no name") as caught:
        from_zarr(path, tmp_path / "b.mla", array="../z.zarr/ct")
    assert "dataset" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        from_zarr(tmp_path / "absent.zarr", tmp_path / "b.mla")
    from_zarr(path / "mr", tmp_path / "b.mla")
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], VOLUME)


# Hostile stores


def refused(path: Any, folder: Path, error: type[Exception], match: str) -> None:
    before = sorted(os.listdir(folder))
    with pytest.raises(error, match=match):
        from_zarr(path, folder / "b.mla")
    assert sorted(os.listdir(folder)) == before


@pytest.mark.parametrize("place", [0, 4, 12, 40])
def test_damaged_chunks_are_named(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME, chunks=20, blocks=5, codec="zstd-1"), path)
    victim = path / "image/c/1/0/1"
    data = bytearray(victim.read_bytes())
    data[place] ^= 0x11
    victim.write_bytes(data)
    refused(path, tmp_path, ChunkError, r"a.zarr: image: chunk \(1, 0, 1\)")
    victim.write_bytes(data[:30])
    refused(path, tmp_path, ChunkError, r"a.zarr: image: chunk \(1, 0, 1\)")
    victim.write_bytes(bytes(1 << 20))
    refused(path, tmp_path, ChunkError, "image/c/1/0/1: a chunk of 1048576 bytes")


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME), path)
    outside = tmp_path / "outside"
    shutil.move(path / "image/c/1", outside)
    (path / "image/c/1").symlink_to(outside)
    refused(path, tmp_path, ConversionError, "link or a device")
    (path / "image/c/1").unlink()
    shutil.move(outside, path / "image/c/1")
    shutil.move(path / "image/c/1/1/1", outside)
    (path / "image/c/1/1/1").symlink_to(outside)
    refused(path, tmp_path, ConversionError, "link or a device")


def with_table(path: Path, change: Any) -> None:
    """Change the table of the only shard of an array of 18 chunks."""
    data = path.read_bytes()
    table = np.frombuffer(data[-4 - 16 * 18 : -4], "<i8").reshape(18, 2).copy()
    change(table)
    path.write_bytes(data[: -4 - 16 * 18] + encode_shard_table(table[:, 0], table[:, 1]))


def test_hostile_tables_of_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME), path, shards="file")
    (shard,) = chunk_files(path)
    good = shard.read_bytes()

    def same(table: NDArray[Any]) -> None:
        table[:] = table[0]

    def outside(table: NDArray[Any]) -> None:
        table[3] = 0, 1 << 62

    def wrapped(table: NDArray[Any]) -> None:
        table[3] = -9, 40

    for change in (same, outside, wrapped):
        with_table(shard, change)
        refused(path, tmp_path, ChunkError, "overlap or end outside")
        shard.write_bytes(good)
    shard.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])
    refused(path, tmp_path, ChunkError, "checksum of its table")
    shard.write_bytes(good[-100:])
    refused(path, tmp_path, ChunkError, "a shard of 100 bytes")


@given(data=st.binary(min_size=0, max_size=80), n_chunks=st.integers(0, 5))
def test_any_table_is_a_table_or_refused(data: bytes, n_chunks: int) -> None:
    try:
        starts, lengths = decode_shard_table(
            data, n_chunks=n_chunks, shard_bytes=1000, has_checksum=False, name="x"
        )
    except ChunkError:
        return
    assert ((starts >= 0) <= (starts + lengths <= 1000)).all()
    assert lengths[lengths > 0].sum() <= 1000


def test_hostile_documents(tmp_path: Path) -> None:
    source = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME), source)

    def tried(change: Any, match: str) -> None:
        folder = tmp_path / "hostile" / "a.zarr"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        edited(folder, "image", change)
        refused(folder, tmp_path / "hostile", ConversionError, match)

    def codec(**changes: Any) -> Any:
        return lambda d: d["codecs"][0]["configuration"].update(changes)

    (tmp_path / "hostile").mkdir()
    tried(lambda d: d.update(shape=[1 << 61, 60, 40]), "chunks|any machine|damaged")
    tried(lambda d: d.update(shape=[1 << 31, 1 << 20, 40]), "no chunks of a file|any machine")
    tried(codec(chunks=[1 << 30, 1 << 30, 1 << 30]), "chunks")
    tried(codec(blocks=[0, 1, 1]), "blocks")
    tried(codec(typesize=8), "bytes per element")
    tried(codec(codec="../../x"), "codec")
    tried(codec(pickle=1), "pickle|known")
    tried(lambda d: d["codecs"].append({"name": "crc32c"}), "mlarray_xr.convert")
    tried(lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[25] * 3), "same chunks")
    tried(
        lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/../"),
        "separator|damaged",
    )


@pytest.mark.parametrize("extent", [0, -20, 30, 1.5, True, "40", None])
def test_hostile_extents_of_shards(tmp_path: Path, extent: Any) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME), path, shards=40)
    edited(
        path,
        "image",
        lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[extent, 40, 40]),
    )
    refused(path, tmp_path, ConversionError, "damaged")


def test_hostile_layout_records_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME, patch=20), path)
    for facts in (3, {"planning": [1]}, {"planning": {"rule": 5, "caches": "x", "access": [[1]]}}):
        edited(path, "image", lambda d, facts=facts: d["attributes"].update(mla_layout=facts))
        from_zarr(path, tmp_path / "b.mla", mode="w")
        np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], VOLUME)


def test_compressed_zip_files(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    for shards in (None, "file"):
        to_zarr(written(tmp_path, VOLUME), path, shards=shards, mode="w")
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files_in(path).items():
                archive.writestr(name, data)
        if shards is None:
            from_zarr(tmp_path / "a.zip", tmp_path / "b.mla", mode="w")
            assert bytes_of(tmp_path / "b.mla") == bytes_of(tmp_path / "a.mla")
        else:
            os.unlink(tmp_path / "b.mla")
            refused(tmp_path / "a.zip", tmp_path, ConversionError, "unzip the file")


def test_a_store_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    to_zarr(written(tmp_path, VOLUME), path)
    with mock.patch("os.lstat", side_effect=_larger(os.lstat)):
        refused(path, tmp_path, SourceChanged, "it was changed")


def _larger(lstat: Any) -> Any:
    def stat(name: Any, **options: Any) -> Any:
        found = lstat(name, **options)
        if f"image{os.sep}c{os.sep}" not in os.fspath(name):
            return found
        return os.stat_result((*found[:6], found.st_size + 1, *found[7:10]))

    return stat


# Many processes, bounded memory


@pytest.mark.parametrize("shards", SHARDS)
def test_workers_copy(tmp_path: Path, cluster: Client, shards: Any) -> None:
    path = written(tmp_path, VOLUME, levels=1, **LAYOUT)
    here = mock.Mock(side_effect=AssertionError("copied in the client's process"))
    with mock.patch.object(copied_image, "read_run", here):
        to_zarr(path, tmp_path / "a.zarr", shards=shards)
    assert not here.called
    np.testing.assert_array_equal(image_in(tmp_path / "a.zarr"), VOLUME)
    assert not [name for name in os.listdir(tmp_path / "a.zarr") if name.endswith(".tmp")]
    from_zarr(tmp_path / "a.zarr", tmp_path / "b.mla")
    assert bytes_of(tmp_path / "b.mla") == bytes_of(path)


def test_damage_comes_back_from_workers(tmp_path: Path, cluster: Client) -> None:
    path = written(tmp_path, VOLUME)
    data = bytearray(bytes_of(path))
    data[int(ChunkTable.read(source_of(path)).starts[7]) + 500] ^= 4
    path.write_bytes(data)
    with pytest.raises(ChunkError, match="chunk 7"):
        to_zarr(path, tmp_path / "a.zarr")
    time.sleep(0.2)
    assert os.listdir(tmp_path) == ["a.mla"]
    with (
        mock.patch.object(zarr_export, "workers_without", return_value=["tcp://x"]),
        pytest.raises(ConversionError, match="do not see this folder"),
    ):
        to_zarr(path, tmp_path / "a.zarr")


MEMORY = """
import os, sys
import numpy as np
import mlarray_xr
from mlarray_xr.zarr_view.zarr_export import to_zarr
from mlarray_xr.zarr_view.zarr_import import from_zarr

def used(name):
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024

os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
os.chdir(sys.argv[1])
for name in ("small", "large"):
    if name == "large":
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        before = used("VmRSS")
    to_zarr(f"{name}.mla", f"{name}.zarr")
    to_zarr(f"{name}.mla", f"{name}.s.zarr", shards="file")
    from_zarr(f"{name}.zarr", f"{name}1.mla")
    from_zarr(f"{name}.s.zarr", f"{name}2.mla")
print(used("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resets the peak of /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 16, (64, 1024, 1024), "u2")
    options: dict[str, Any] = {"chunks": (4, 512, 512), "codec": "lz4-1"}
    to_mla(noise[:16], tmp_path / "small.mla", **options)
    to_mla(noise, tmp_path / "large.mla", **options)
    del noise
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The file has 134 MB; runs of 8 MiB for two threads and two more are 34 MB.
    assert int(done.stdout) < 60_000_000
    assert bytes_of(tmp_path / "large1.mla") == bytes_of(tmp_path / "large.mla")
    assert bytes_of(tmp_path / "large2.mla") == bytes_of(tmp_path / "large.mla")
