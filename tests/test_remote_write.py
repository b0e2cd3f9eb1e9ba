"""Writing to object stores: complete objects or none, the same values whatever computes them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pickle
import shutil
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import blosc2
import dask.array as da
import dask.config
import fsspec
import numpy as np
import obstore.store
import pytest
import xarray as xr
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem  # type: ignore[import-untyped]

import mlarray_xr
from mlarray_xr.errors import (
    ConversionError,
    LayoutError,
    SourceChanged,
    SourceDenied,
    SourceError,
)
from mlarray_xr.format.chunk import RAW_FLAG
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.write_plan import Parts
from mlarray_xr.remote_write import plan_pieces
from mlarray_xr.storage import multipart, multipart_job, upload
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.frame_entries import read_block_index
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.multipart import MultipartUpload, begin_upload
from mlarray_xr.storage.multipart_job import MultipartJob
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.source import source_of
from mlarray_xr.storage.upload import open_store, upload_file
from tests.s3_server import s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from distributed import Client
    from numpy.typing import NDArray

    from mlarray_xr.storage.portions import PortionRecord
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
    local = mlarray_xr.to_mla(lazy(), tmp_path / "a.mla", block_index=True, **LAYOUT)
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


def test_of_a_failing_upload_the_finished_file_is_kept(
    memory: Any, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **keywords: Any) -> None:
        raise OSError("cut")

    monkeypatch.setattr(type(memory), "cp_file", fail)
    with pytest.raises(SourceError, match=r"a\.mla: could not be written.*cut.*kept as") as raised:
        mlarray_xr.to_mla(VALUES, "memory://bucket/a.mla", **LAYOUT)
    assert list(memory.store) == []
    np.testing.assert_array_equal(take_kept(scratch, str(raised.value)), VALUES)


def take_kept(scratch: Path, message: str) -> NDArray[Any]:
    """Read and remove the file that an error names, and nothing else is there."""
    (folder,) = scratch.iterdir()
    (file,) = folder.iterdir()
    assert f"is kept as {file}: " in message
    values: NDArray[Any] = mlarray_xr.MlaArray(file)[...]
    shutil.rmtree(folder)
    return values


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


# S3 in pieces

NOISE_SHAPE = (24, 256, 1024)  # 12.6 MB
NOISE_LAYOUT: dict[str, Any] = {
    "chunks": (6, 256, 256),
    "blocks": (6, 64, 64),
    "codec": "lz4-1",
}
# Sent by the tasks that encode them, and joined from small ones.
LARGE, SMALL = (24, 256, 512), (6, 256, 256)


def noise(chunks: tuple[int, ...]) -> Any:
    """Return values that do not compress, made where they are written."""
    empty = np.empty((0,) * 3, np.uint16)
    return da.map_blocks(
        noise_block, da.empty(NOISE_SHAPE, np.uint16, chunks=chunks), dtype=np.uint16, meta=empty
    )


def noise_block(block: NDArray[Any], block_info: Any = None) -> NDArray[Any]:
    seed = block_info[0]["chunk-location"]
    return np.random.default_rng(seed).integers(0, 1 << 16, block.shape, np.uint16)


def computed(array: Any) -> NDArray[Any]:
    values: NDArray[Any] = array.compute(scheduler="synchronous")
    return values


def to_s3(obj: Any, server: S3Server, key: str = "a.mla", **options: Any) -> Any:
    return mlarray_xr.to_mla(
        obj, server.url(key), storage_options=server.storage_options, **options
    )


def check_object(server: S3Server, values: NDArray[Any], key: str = "a.mla") -> None:
    """Compare an object with an array, as a file, and as read from the store."""
    data = object_in(server, key)
    assert mlarray_xr.verify(data).state in ("ok", "unknown")
    np.testing.assert_array_equal(mlarray_xr.MlaArray(data)[...], values)
    opened = mlarray_xr.MlaArray(server.url(key), storage_options=server.storage_options)
    np.testing.assert_array_equal(opened[...], values)


@pytest.mark.parametrize(
    ("scheduler", "chunks"),
    [
        ("synchronous", SMALL),
        ("threads", LARGE),
        ("processes", LARGE),
        ("cluster", SMALL),
    ],
)
def test_every_scheduler_sends_pieces_of_one_object(
    s3: S3Server, request: pytest.FixtureRequest, scheduler: str, chunks: tuple[int, ...]
) -> None:
    with using(scheduler, request):
        report = to_s3(noise(chunks), s3, **NOISE_LAYOUT)
    assert report.path == s3.url("a.mla")
    assert (report.n_chunks, report.n_resumed_chunks) == (16, 0)
    assert report.file_bytes == len(object_in(s3, "a.mla"))
    assert keys_in(s3) == ["a.mla"]
    check_object(s3, computed(noise(chunks)))
    check_block_index(object_in(s3, "a.mla"))


@contextlib.contextmanager
def using(scheduler: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """Compute by a local scheduler, or on the test cluster."""
    if scheduler == "cluster":
        request.getfixturevalue("cluster")
        yield
        return
    with dask.config.set(scheduler=scheduler, num_workers=2):
        yield


def test_threads_send_pieces_of_an_array_in_memory(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 3 << 20)
    told: list[tuple[int, int]] = []
    values = computed(noise(SMALL))
    report = to_s3(values, s3, progress=lambda done, total: told.append((done, total)))
    assert told[0][0] == 0
    assert told[-1] == (report.n_chunks, report.n_chunks)
    assert sorted(told) == told
    check_object(s3, values)


def test_an_object_is_labelled_as_a_file_is(s3: S3Server, tmp_path: Path) -> None:
    image = xr.DataArray(
        VALUES,
        dims=("z", "y", "x"),
        coords={"z": 2.0 * np.arange(24), "y": 0.5 * np.arange(20), "x": 0.5 * np.arange(18)},
        attrs={"patient": "nobody"},
    )
    mlarray_xr.to_mla(image, tmp_path / "a.mla", **LAYOUT)
    to_s3(image, s3, **LAYOUT)
    found = mlarray_xr.open_mla(s3.url("a.mla"), storage_options=s3.storage_options)
    expected = mlarray_xr.open_mla(tmp_path / "a.mla")
    xr.testing.assert_equal(found, expected)
    assert found.attrs == expected.attrs
    assert found.encoding["chunks"] == expected.encoding["chunks"]


@pytest.mark.parametrize("values", [np.zeros((0, 4), "int16"), np.array(2.5), np.full(9, np.nan)])
def test_arrays_without_much_in_them_are_objects(s3: S3Server, values: NDArray[Any]) -> None:
    for subject in (values, da.from_array(values)):
        to_s3(subject, s3, mode="w")
        check_object(s3, values)


def test_variables_become_objects_of_a_prefix(s3: S3Server) -> None:
    dims = ("z", "y", "x")
    both = xr.Dataset({"ct": (dims, VALUES), "pet": (dims, VALUES + 1)})
    reports = to_s3(both, s3, key="case/", **LAYOUT)
    assert reports["pet"].path == s3.url("case/pet.mla")
    assert keys_in(s3) == ["case/ct.mla", "case/pet.mla"]
    check_object(s3, VALUES + 1, key="case/pet.mla")


def test_nothing_is_visible_before_the_end(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    complete, seen = MultipartUpload.complete, []

    def look(upload: MultipartUpload, etags: Any, *, overwrite: bool) -> None:
        seen.append((keys_in(s3), len(uploads_in(s3))))
        complete(upload, etags, overwrite=overwrite)

    monkeypatch.setattr(MultipartUpload, "complete", look)
    to_s3(VALUES, s3, **LAYOUT)
    assert seen == [([], 1)]


def test_every_piece_goes_with_its_checksum(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    send, checked = S3FileSystem.call_s3, []

    def look(self: Any, method: str, *args: Any, **keywords: Any) -> Any:
        if method == "upload_part":
            digest = hashlib.md5(keywords["Body"]).digest()
            checked.append(keywords["ContentMD5"] == base64.b64encode(digest).decode())
        return send(self, method, *args, **keywords)

    monkeypatch.setattr(S3FileSystem, "call_s3", look)
    to_s3(VALUES, s3, **LAYOUT)
    assert checked == [True]


def test_an_object_may_be_made_of_what_it_was(s3: S3Server) -> None:
    to_s3(VALUES, s3, **LAYOUT)
    before = mlarray_xr.open_mla(s3.url("a.mla"), storage_options=s3.storage_options, chunks={})
    with dask.config.set(scheduler="threads"):
        to_s3(before + np.int16(1), s3, mode="w", **LAYOUT)
    check_object(s3, VALUES + 1)


def test_progress_is_what_the_store_has(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlarray_xr.dask_write._ASK_SECONDS", 0.01)
    told: list[tuple[int, int]] = []
    with dask.config.set(scheduler="threads", num_workers=1):
        to_s3(
            noise(LARGE),
            s3,
            progress=lambda done, total: told.append((done, total)),
            **NOISE_LAYOUT,
        )
    assert told == sorted(told)
    assert told[-1] == (16, 16)


def test_a_write_that_waits_is_an_upload(s3: S3Server) -> None:
    later = to_s3(lazy(), s3, compute=False, **LAYOUT)
    assert (keys_in(s3), len(uploads_in(s3))) == ([], 1)
    with dask.config.set(scheduler="threads"):
        assert later.compute().path == s3.url("a.mla")
    check_object(s3, VALUES)


@pytest.mark.parametrize("scheduler", ["threads", "cluster"])
def test_a_failing_task_aborts_the_upload(
    s3: S3Server, request: pytest.FixtureRequest, scheduler: str
) -> None:
    with using(scheduler, request), pytest.raises(RuntimeError, match="no such voxel"):
        to_s3(failing(), s3, **LAYOUT)
    assert (keys_in(s3), uploads_in(s3)) == ([], [])


@pytest.mark.usefixtures("parts_of_3_mb")
def test_pieces_that_were_sent_are_given_up(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    put = MultipartUpload.put

    def count(upload: MultipartUpload, number: int, data: bytes) -> str:
        sent.append(number)
        return put(upload, number, data)

    monkeypatch.setattr(MultipartUpload, "put", count)
    with pytest.raises(RuntimeError, match="no more boxes"):
        to_s3(Interruptible(computed(noise(SMALL)), 3, []), s3, **NOISE_LAYOUT)
    assert sent == [2, 3]
    assert (keys_in(s3), uploads_in(s3)) == ([], [])


def test_an_interrupted_write_aborts_the_upload(s3: S3Server) -> None:
    class Interrupted:
        shape, dtype, ndim, size = VALUES.shape, VALUES.dtype, 3, VALUES.size

        def __getitem__(self, key: Any) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_s3(Interrupted(), s3, **LAYOUT)
    assert (keys_in(s3), uploads_in(s3)) == ([], [])


def test_objects_are_replaced_only_when_that_is_asked_for(s3: S3Server) -> None:
    to_s3(VALUES, s3, **LAYOUT)
    with pytest.raises(FileExistsError, match=r"images/a\.mla: the object exists.*mode='w'"):
        to_s3(VALUES + 1, s3, **LAYOUT)
    check_object(s3, VALUES)
    to_s3(VALUES + 1, s3, mode="w", **LAYOUT)
    check_object(s3, VALUES + 1)


@pytest.mark.parametrize("knows_conditions", [True, False])
def test_of_two_writers_the_second_one_is_told(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, knows_conditions: bool
) -> None:
    if not knows_conditions:
        without_conditions(monkeypatch)
    later = to_s3(VALUES, s3, compute=False, **LAYOUT)
    to_s3(VALUES + 1, s3, **LAYOUT)
    with dask.config.set(scheduler="synchronous"), pytest.raises(FileExistsError, match="exists"):
        later.compute()
    check_object(s3, VALUES + 1)
    (left,) = uploads_in(s3)
    s3.client.abort_multipart_upload(Bucket=s3.bucket, Key="a.mla", UploadId=left["UploadId"])


def without_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer as stores do that know no conditions for uploads."""
    send = S3FileSystem.call_s3

    def refuse(self: Any, method: str, *args: Any, **keywords: Any) -> Any:
        if "IfNoneMatch" in keywords:
            answer = {"Error": {"Code": "NotImplemented", "Message": "IfNoneMatch"}}
            raise OSError("not implemented") from ClientError(answer, method)
        return send(self, method, *args, **keywords)

    monkeypatch.setattr(S3FileSystem, "call_s3", refuse)


def test_stores_without_conditions_are_written_to(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_conditions(monkeypatch)
    to_s3(VALUES, s3, **LAYOUT)
    check_object(s3, VALUES)


def test_without_s3fs_files_are_uploaded_whole(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    multipart._client.cache_clear()
    to_s3(lazy(), s3, **LAYOUT)
    check_object(s3, VALUES)


def test_tasks_may_run_twice_and_late(s3: S3Server) -> None:
    plan = FramePlan(
        shape=NOISE_SHAPE,
        dtype_str="<u2",
        layout=Layout(chunks=(6, 256, 256), blocks=(6, 64, 64)),
        codec=Codec.parse("lz4-1"),
    )
    parts = Parts(extents=((6,) * 4, (256,), (512, 512)), in_flight=1, itemsize=2)
    job = MultipartJob(
        upload=begin_upload(remote_address(s3.url("a.mla"), storage_options=s3.storage_options)),
        plan=plan,
        parts=parts,
        metadata=encode_metadata(Metadata(has_array=True)),
        overwrite=False,
    )
    values = computed(noise(SMALL))
    records: list[PortionRecord] = []
    for _ in range(2):
        records = [
            job.write_part(values[tuple(slice(*pair) for pair in box)], box, part=part)
            for part, box in enumerate(parts.boxes())
        ]
    assert "secret" not in repr(job)
    assert len(pickle.dumps(job)) < 4_000
    twice = [job.join(records) for _ in range(2)]
    assert [p.etag for p in twice[0][0].portions] == [p.etag for p in twice[1][0].portions]
    done = job.finish(twice[1])
    assert job.finish(twice[0]).file_bytes == done.file_bytes
    check_object(s3, values)


# Going on with what was sent


@dataclass
class Interruptible:
    """Values of which boxes are taken until a number of them was; then it fails."""

    values: NDArray[Any]
    most: int
    taken: list[int]

    def __post_init__(self) -> None:
        self.shape, self.dtype = self.values.shape, self.values.dtype
        self.ndim, self.size = self.values.ndim, self.values.size

    def __dask_tokenize__(self) -> str:
        return "interruptible"

    def __getitem__(self, key: Any) -> Any:
        if key[2].start is not None and self.values[key].size:
            if len(self.taken) >= self.most:
                raise RuntimeError("no more boxes")
            self.taken.append(key[2].start)
        return self.values[key]


@pytest.fixture
def parts_of_3_mb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 3 << 20)
    monkeypatch.setattr("mlarray_xr.storage.ordered_tasks.available_threads", lambda: 1)
    # The rule of 5 MiB is the server's; pieces that are sent one by one are large enough for it.
    monkeypatch.setattr(multipart_job, "LEAST_BYTES", 3 << 20)
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)


@pytest.mark.usefixtures("parts_of_3_mb")
def test_what_was_sent_is_not_computed_again(s3: S3Server) -> None:
    values = computed(noise(SMALL))
    first = Interruptible(values, 3, [])
    with pytest.raises(RuntimeError, match="no more boxes"):
        to_s3(first, s3, resume=True, **NOISE_LAYOUT)
    assert "a.mla" not in keys_in(s3)
    assert "a.mla.parts/plan.json" in keys_in(s3)
    second = Interruptible(values, 100, [])
    report = to_s3(second, s3, resume=True, **NOISE_LAYOUT)
    # Of four parts the third keeps something back, and is encoded again.
    assert len(first.taken) == 3
    assert len(second.taken) == 2
    assert report.n_resumed_chunks == 8
    assert keys_in(s3) == ["a.mla"]
    check_object(s3, values)


@pytest.mark.usefixtures("parts_of_3_mb")
def test_only_notes_that_the_store_proves_are_believed(s3: S3Server) -> None:
    values = computed(noise(SMALL))
    with pytest.raises(RuntimeError):
        to_s3(Interruptible(values, 3, []), s3, resume=True, **NOISE_LAYOUT)
    note = bytearray(object_in(s3, "a.mla.parts/00002.rec"))
    note[60] ^= 1
    s3.put("a.mla.parts/00002.rec", bytes(note))
    (left,) = uploads_in(s3)
    s3.client.upload_part(  # the same place, other bytes
        Bucket=s3.bucket, Key="a.mla", UploadId=left["UploadId"], PartNumber=3, Body=b"other"
    )
    second = Interruptible(values, 100, [])
    assert to_s3(second, s3, resume=True, **NOISE_LAYOUT).n_resumed_chunks == 0
    check_object(s3, values)


@pytest.mark.usefixtures("parts_of_3_mb")
def test_what_was_sent_of_other_values_is_refused_and_can_be_dropped(s3: S3Server) -> None:
    values = computed(noise(SMALL))
    with pytest.raises(RuntimeError):
        to_s3(Interruptible(values, 3, []), s3, resume=True, **NOISE_LAYOUT)
    with pytest.raises(ConversionError, match=r"a\.mla\.parts: holds .*: source differ"):
        to_s3(values, s3, resume=True, **NOISE_LAYOUT)
    to_s3(values, s3, **NOISE_LAYOUT)
    assert keys_in(s3) == ["a.mla"]
    check_object(s3, values)


def test_an_upload_that_is_gone_is_begun_anew(s3: S3Server) -> None:
    with dask.config.set(scheduler="synchronous"), pytest.raises(RuntimeError):
        to_s3(failing(), s3, resume=True, **LAYOUT)
    (left,) = uploads_in(s3)
    s3.client.abort_multipart_upload(Bucket=s3.bucket, Key="a.mla", UploadId=left["UploadId"])
    to_s3(lazy(), s3, resume=True, **LAYOUT)
    assert keys_in(s3) == ["a.mla"]
    check_object(s3, VALUES)


@pytest.mark.parametrize("scheduler", ["synchronous", "cluster"])
def test_tasks_go_on_with_what_others_have_sent(
    s3: S3Server, request: pytest.FixtureRequest, tmp_path: Path, scheduler: str
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    empty = np.empty((0,) * 3, np.uint16)
    blank = da.empty((24, 256, 2048), np.uint16, chunks=LARGE)
    subject = da.map_blocks(gated_block, blank, gate=str(gate), dtype=np.uint16, meta=empty)
    with using(scheduler, request):
        with pytest.raises(RuntimeError, match="the gate is closed"):
            to_s3(subject, s3, resume=True, **NOISE_LAYOUT)
        (left,) = uploads_in(s3)
        listed = s3.client.list_parts(Bucket=s3.bucket, Key="a.mla", UploadId=left["UploadId"])
        gate.unlink()
        report = to_s3(subject, s3, resume=True, **NOISE_LAYOUT)
    # Parts have 8 chunks. What a cluster still sends after a task has failed nobody knows.
    n_sent = 8 * len(listed.get("Parts", []))
    assert report.n_resumed_chunks == n_sent or scheduler == "cluster"
    assert keys_in(s3) == ["a.mla"]
    check_object(s3, computed(subject))


def gated_block(block: NDArray[Any], gate: str, block_info: Any = None) -> NDArray[Any]:
    if os.path.exists(gate) and block_info[0]["chunk-location"] == (0, 0, 0):
        raise RuntimeError("the gate is closed")
    return noise_block(block, block_info)


# Places in the object


@given(data=st.data())
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_portions_of_any_size_make_one_frame(
    data: st.DataObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    least_bytes = data.draw(st.sampled_from([1, 300, 2_000, 50_000]))
    monkeypatch.setattr(multipart_job, "LEAST_BYTES", least_bytes)
    monkeypatch.setattr(MultipartJob, "_read_back", lambda job: 0)
    greatest = data.draw(st.sampled_from([300, 1 << 16]))
    noisy = np.random.default_rng(1).integers(0, greatest, (24, 20, 18)).astype(np.uint16)
    for row in data.draw(st.sets(st.integers(0, 5))):
        noisy[4 * row : 4 * row + 4] = data.draw(st.sampled_from([0, 7]))
    extents = data.draw(st.sampled_from([((24,), (20,)), ((8,) * 3, (10, 10)), ((4,) * 6, (20,))]))
    sent: dict[int, bytes] = {}
    job = MultipartJob(
        upload=cast("Any", RecordedUpload(sent)),
        plan=FramePlan(
            shape=noisy.shape,
            dtype_str="<u2",
            layout=Layout(chunks=(4, 10, 9), blocks=(4, 5, 9)),
            codec=Codec.parse("lz4-1"),
            has_block_index=True,
        ),
        parts=Parts(extents=(*extents, (18,)), in_flight=1, itemsize=2),
        metadata=encode_metadata(Metadata(has_array=True)),
        overwrite=True,
    )
    records: list[PortionRecord] = []
    for part, box in enumerate(job.parts.boxes()):
        values = noisy[tuple(slice(*pair) for pair in box)]
        records.append(job.write_part(values, box, part=part))
        if data.draw(st.booleans()):
            records = job.join(records)
    job.finish(data.draw(st.permutations(records)))
    assert all(len(sent[number]) >= least_bytes for number in sorted(sent)[:-1])
    frame = b"".join(sent[number] for number in sorted(sent))
    assert mlarray_xr.verify(frame).state == "ok"
    np.testing.assert_array_equal(mlarray_xr.MlaArray(frame)[...], noisy)
    np.testing.assert_array_equal(blosc2.ndarray_from_cframe(frame)[...], noisy)
    check_block_index(frame)


def check_block_index(frame: bytes) -> None:
    """Compare what the trailer says of the chunks with what they say themselves."""
    source = source_of(frame)
    header, offsets = read_index(source)
    index = read_block_index(source, offsets)
    assert index is not None
    n_bytes = 32 + 4 * index.starts.shape[1]
    for chunk in np.flatnonzero(offsets >= 0).tolist():
        stored = frame[header.header_len + offsets[chunk] :][:n_bytes]
        # Raw chunks have voxels where others have their table.
        assert index.head(chunk) == (bytes(n_bytes) if stored[2] & RAW_FLAG else stored)


class RecordedUpload:
    """An upload into a mapping."""

    def __init__(self, sent: dict[int, bytes]) -> None:
        self._sent = sent
        self._is_complete = False

    def put(self, number: int, data: bytes) -> str:
        assert self._sent.setdefault(number, data) == data
        return f"etag-{number}"

    def complete(self, etags: dict[int, str], *, overwrite: bool) -> None:
        assert etags == {number: f"etag-{number}" for number in self._sent}
        self._is_complete = True

    def is_complete(self) -> bool:
        return self._is_complete


@given(
    extents=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=40), min_size=1, max_size=3),
    most=st.integers(1, 500),
)
def test_pieces_are_joined_until_a_store_takes_them(extents: list[list[int]], most: int) -> None:
    parts = Parts(extents=tuple(map(tuple, extents)), in_flight=1, itemsize=1)
    found = plan_pieces(parts, most=most)
    assert len(found) <= most
    assert found == parts or len(parts) > most
    for before, after in zip(parts.extents, found.extents, strict=True):
        borders = set(np.cumsum(before).tolist())
        assert sum(before) == sum(after)
        assert set(np.cumsum(after).tolist()) <= borders


def test_pieces_larger_than_the_memory_are_refused(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.remote_write.MOST_PARTS", 2)
    with pytest.raises(LayoutError, match=r"takes 2 pieces.*memory_limit=50000"):
        to_s3(lazy(), s3, memory_limit=50_000, **LAYOUT)
    to_s3(lazy(), s3, **LAYOUT)
    check_object(s3, VALUES)


# What is refused, and how


@pytest.mark.parametrize(
    ("path", "options", "error", "told"),
    [
        ("s3://key:secretkey@b/a.mla", {"mode": "r+"}, ConversionError, "mode='r\\+' writes into"),
        ("memory://b/a.mla", {"resume": True}, ConversionError, "resume=True goes on"),
        ("s3://key:secretkey@b/a.b2nd", {}, ConversionError, "must end in '.mla'"),
        ("https://key:secretkey@b/a.mla", {}, ConversionError, "not written to web servers"),
        ("simplecache::s3://b/a.mla", {}, ConversionError, "chained URLs"),
        ("nothing://b/a.mla", {}, SourceError, "nothing"),
        ("s3://b/a.mla", {"storage_options": {"kye": "secretkey"}}, SourceError, "'kye'"),
        ("a.mla", {"storage_options": {"key": "secretkey"}}, SourceError, "not remote"),
    ],
)
def test_what_cannot_be_written_is_refused(
    path: str, options: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told) as raised:
        mlarray_xr.to_mla(VALUES, path, **options)
    assert "secretkey" not in str(raised.value)


def test_a_missing_bucket_is_named(s3: S3Server) -> None:
    for mode in ("w", "w-"):
        with pytest.raises(FileNotFoundError, match=r"s3://nobody/a\.mla.*no such bucket"):
            mlarray_xr.to_mla(
                VALUES, "s3://nobody/a.mla", mode=mode, storage_options=s3.storage_options
            )


@pytest.mark.parametrize("client", ["s3fs", "obstore"])
def test_credentials_that_are_refused_are_not_shown(
    s3: S3Server, scratch: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    def refuse(*args: Any, **keywords: Any) -> None:
        raise PermissionError("AccessDenied for secretkey at http://u:p@host/?sig=x")

    options = {**s3.storage_options, "secret": "secretkey"}
    if client == "s3fs":
        monkeypatch.setattr(S3FileSystem, "call_s3", refuse)
    else:
        monkeypatch.setattr("mlarray_xr.remote_write.has_multipart", lambda address: False)
        monkeypatch.setattr(obstore, "put", refuse)
    with pytest.raises(SourceDenied, match=r"images/a\.mla: writing was denied") as raised:
        mlarray_xr.to_mla(VALUES, s3.url("a.mla"), mode="w", storage_options=options)
    assert not {"secretkey", "sig=x", "u:p"} & set(str(raised.value).split())
    assert "secretkey" not in str(raised.value)
    assert "sig=" not in str(raised.value)
    if client == "obstore":
        np.testing.assert_array_equal(take_kept(scratch, str(raised.value)), VALUES)


def test_an_object_that_somebody_else_wrote_is_noticed(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = obstore.put

    def race(store: Any, path: str, file: Any, **options: Any) -> Any:
        done = put(store, path, file, **options)
        s3.put("a.mla", b"other bytes")
        return done

    monkeypatch.setattr(obstore, "put", race)
    (tmp_path / "a.mla").write_bytes(b"the bytes..")
    address = remote_address(s3.url("a.mla"), storage_options=s3.storage_options)
    with pytest.raises(SourceChanged, match="Somebody else"):
        upload_file(str(tmp_path / "a.mla"), address, overwrite=True)


def test_large_files_that_are_uploaded_whole_are_sent_in_parts(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_LARGEST_CONDITIONAL_BYTES", 100)
    data = np.random.default_rng(0).bytes(20 << 20)
    (tmp_path / "a.mla").write_bytes(data)
    address = remote_address(s3.url("a.mla"), storage_options=s3.storage_options)
    upload_file(str(tmp_path / "a.mla"), address, overwrite=False)
    assert object_in(s3, "a.mla") == data
    with pytest.raises(FileExistsError):
        open_store(address).put(str(tmp_path / "a.mla"), overwrite=False)
