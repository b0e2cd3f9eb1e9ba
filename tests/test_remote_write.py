"""Writing to object stores: complete objects or none, the same values whatever computes them."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.config
import fsspec
import numpy as np
import obstore.store
import pytest

import mlarray_xr
from mlarray_xr.errors import SourceError
from tests.s3_server import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client
    from numpy.typing import NDArray

    from tests.s3_server import S3Server

VALUES = np.random.default_rng(4).integers(0, 500, (24, 20, 18), np.int16)
LAYOUT: dict[str, Any] = {"chunks": (4, 10, 9), "blocks": (4, 5, 9), "codec": "lz4-1"}
PART_CHUNKS = (8, 10, 18)
LOCAL = ("synchronous", "threads", "processes")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the chunks of small Dask arrays as they are, as is done with those of 16 MiB."""
    monkeypatch.setattr("mlarray_xr.planning.write_plan._SMALLEST_BYTES", 0)


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put temporary files where the test sees whether any is left."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert [path.name for path in folder.iterdir() if path.name.startswith("mlarray")] == []


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(running: S3Server) -> Iterator[S3Server]:
    """Give a bucket without objects, and see to it that no upload is left open."""
    listed = running.client.list_objects_v2(Bucket=running.bucket)
    for found in listed.get("Contents", []):
        running.delete(found["Key"])
    yield running
    assert uploads_in(running) == []


@pytest.fixture
def memory() -> Iterator[Any]:
    """Give the filesystem in memory, empty."""
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


def keys_in(server: S3Server) -> list[str]:
    listed = server.client.list_objects_v2(Bucket=server.bucket)
    return sorted(found["Key"] for found in listed.get("Contents", []))


def uploads_in(server: S3Server) -> list[Any]:
    found: list[Any] = server.client.list_multipart_uploads(Bucket=server.bucket).get("Uploads", [])
    return found


def object_in(server: S3Server, key: str) -> bytes:
    data: bytes = server.client.get_object(Bucket=server.bucket, Key=key)["Body"].read()
    return data


def lazy(values: NDArray[Any] = VALUES, chunks: Any = PART_CHUNKS) -> Any:
    return da.from_array(values, chunks=chunks)


def failing(values: NDArray[Any] = VALUES) -> Any:
    def fail(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
        if block_info[0]["chunk-location"] == (2, 1, 0):
            raise RuntimeError("no such voxel")
        return block

    return da.map_blocks(fail, lazy(values), dtype=values.dtype, meta=values[:0])


# Whole files to whatever store there is


@pytest.mark.parametrize("scheduler", LOCAL)
def test_a_lazy_array_becomes_an_object_in_memory(
    memory: Any, scheduler: str, tmp_path: Path
) -> None:
    with dask.config.set(scheduler=scheduler, num_workers=2):
        report = mlarray_xr.to_mla(lazy(), "memory://bucket/a.mla", **LAYOUT)
    local = mlarray_xr.to_mla(lazy(), tmp_path / "a.mla", **LAYOUT)
    assert report.path == "memory://bucket/a.mla"
    assert (report.file_bytes, report.n_chunks) == (local.file_bytes, 24)
    assert memory.cat_file("/bucket/a.mla") == (tmp_path / "a.mla").read_bytes()
    assert list(memory.store) == ["/bucket/a.mla"]
    np.testing.assert_array_equal(mlarray_xr.MlaArray("memory://bucket/a.mla")[...], VALUES)


def test_names_with_brackets_are_names(memory: Any) -> None:
    for mode in ("w-", "w"):
        mlarray_xr.to_mla(VALUES, "memory://bucket/scan[1]*.mla", mode=mode, **LAYOUT)
    assert list(memory.store) == ["/bucket/scan[1]*.mla"]


def test_a_cluster_that_shares_a_folder_puts_files_together(memory: Any, cluster: Client) -> None:
    mlarray_xr.to_mla(lazy(), "memory://bucket/a.mla", **LAYOUT)
    np.testing.assert_array_equal(mlarray_xr.MlaArray("memory://bucket/a.mla")[...], VALUES)


def test_workers_that_do_not_see_the_folder_are_named(
    memory: Any, cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.remote_write.workers_without", lambda folder: ["tcp://far:1"])
    with pytest.raises(SourceError, match=r"1 workers do not see.*tcp://far:1.*temporary-dir"):
        mlarray_xr.to_mla(lazy(), "memory://bucket/a.mla", **LAYOUT)


def test_workers_are_asked_for_the_folder(cluster: Client, tmp_path: Path) -> None:
    from mlarray_xr.dask_write import workers_without

    assert workers_without(str(tmp_path)) == []
    assert len(workers_without(str(tmp_path / "gone"))) == 2


def test_the_temporary_folder_is_that_of_dask(memory: Any, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    seen: list[int] = []

    def look(done: int, total: int) -> None:
        seen.append(len(list(folder.iterdir())))

    with dask.config.set({"temporary-directory": str(folder)}):
        mlarray_xr.to_mla(VALUES, "memory://bucket/a.mla", progress=look, **LAYOUT)
    assert seen[0] == 1
    assert list(folder.iterdir()) == []


def test_a_delayed_write_uploads_when_it_is_computed(memory: Any) -> None:
    later = mlarray_xr.to_mla(VALUES, "memory://bucket/a.mla", compute=False, **LAYOUT)
    assert list(memory.store) == []
    with dask.config.set(scheduler="threads"):
        assert later.compute().path == "memory://bucket/a.mla"
    np.testing.assert_array_equal(mlarray_xr.MlaArray("memory://bucket/a.mla")[...], VALUES)


def test_a_failing_task_leaves_nothing(memory: Any) -> None:
    with pytest.raises(RuntimeError, match="no such voxel"):
        mlarray_xr.to_mla(failing(), "memory://bucket/a.mla", **LAYOUT)
    assert list(memory.store) == []


def test_a_failing_upload_leaves_nothing(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **keywords: Any) -> None:
        raise OSError("cut")

    monkeypatch.setattr(type(memory), "cp_file", fail)
    with pytest.raises(SourceError, match=r"memory://bucket/a\.mla: could not be written.*cut"):
        mlarray_xr.to_mla(VALUES, "memory://bucket/a.mla", **LAYOUT)
    assert list(memory.store) == []


@pytest.mark.parametrize("client", ["obstore", "fsspec"])
def test_an_object_is_replaced_only_when_that_is_asked_for(s3: S3Server, client: str) -> None:
    place = place_of(s3, client)
    where = place["store"]
    mlarray_xr.to_mla(VALUES, "a.mla" if client == "obstore" else f"{s3.bucket}/a.mla", **place)
    before = object_in(s3, "a.mla")
    path = "a.mla" if client == "obstore" else f"{s3.bucket}/a.mla"
    with pytest.raises(FileExistsError, match=r"a\.mla: the object exists.*mode='w'"):
        mlarray_xr.to_mla(VALUES + 1, path, store=where)
    assert object_in(s3, "a.mla") == before
    mlarray_xr.to_mla(VALUES + 1, path, mode="w", store=where)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path, store=where)[...], VALUES + 1)


def place_of(server: S3Server, client: str) -> dict[str, Any]:
    """Return a store that the caller made."""
    if client == "fsspec":
        return {"store": fsspec.filesystem("s3", **server.storage_options)}
    store = obstore.store.S3Store(
        server.bucket,
        config={
            "access_key_id": "key",
            "secret_access_key": "secret",
            "endpoint": server.endpoint_url,
            "region": "eu-central-1",
        },
        client_options={"allow_http": True},
    )
    return {"store": store}
