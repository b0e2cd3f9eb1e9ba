"""The write graph: one task per part, the same bytes under every scheduler, and no voxel sent."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import pickle
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import dask.array as da
import dask.config
import numpy as np
import pytest
import xarray as xr
from dask.base import annotate, optimize
from dask.diagnostics.progress import ProgressBar
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.dask import from_mla
from mlarray_xr.dask_write import write_graph
from mlarray_xr.errors import LayoutError
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import encode_metadata
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.write_plan import Parts, plan_parts
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.job import PartRecord, WriteJob
from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.staging import claim
from tests.strategies import dtypes, layouts, shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from distributed import Client
    from numpy.typing import NDArray

VALUES = np.random.default_rng(4).integers(0, 500, (24, 20, 18), np.int16)
LAYOUT: dict[str, Any] = {"chunks": (4, 10, 9), "blocks": (4, 5, 9), "codec": "lz4-1"}
PART_CHUNKS = (8, 10, 18)
N_PARTS = 6
LOCAL = ("synchronous", "threads", "processes")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the chunks of small Dask arrays as they are, as is done with those of 16 MiB."""
    monkeypatch.setattr("mlarray_xr.planning.write_plan._SMALLEST_BYTES", 0)


def read(path: str | Path) -> NDArray[Any]:
    values: NDArray[Any] = mlarray_xr.MlaArray(path)[...]
    return values


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def specials_in(path: Path) -> list[int]:
    """Return the codes of the chunks that have no payload."""
    found = mlarray_xr.verify(path)
    assert found.state == "ok"
    opened = blosc2.open(str(path))  # it owns what its schunk looks at
    return [int(chunk.special.value) for chunk in opened.schunk.iterchunks_info()]


def lazy(values: NDArray[Any] = VALUES, chunks: Any = PART_CHUNKS) -> Any:
    return da.from_array(values, chunks=chunks)


def job_of(path: Path, *, plan: FramePlan, parts: Parts, metadata: Metadata | None = None) -> Any:
    wanted = {"fingerprint": {"path": str(path)}, "parts": parts.extents}
    return WriteJob(
        staging=claim(str(path), wanted, resume=False)[0],
        plan=plan,
        parts=parts,
        metadata=encode_metadata(metadata or Metadata(has_array=True)),
        overwrite=False,
        before=None,
    )


# The same bytes


def test_bytes_depend_on_the_parts_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Client
) -> None:
    def fixed(*args: Any, **keywords: Any) -> Parts:
        return plan_parts(*args, **{**keywords, "source_chunks": lazy().chunks})

    monkeypatch.setattr("mlarray_xr.file_write.plan_parts", fixed)
    files: dict[str, bytes] = {}
    for name in (*LOCAL, "cluster", "direct", "resumable", "rechunked", "delayed"):
        path = tmp_path / f"{name}.mla"
        subject: Any = lazy(chunks=(5, 20, 7)) if name == "rechunked" else lazy()
        with contextlib.ExitStack() as stack:
            if name not in ("cluster", "delayed"):
                scheduler = name if name in LOCAL else "synchronous"
                stack.enter_context(dask.config.set(scheduler=scheduler, num_workers=2))
            if name in ("direct", "resumable"):
                subject = VALUES
            report = mlarray_xr.to_mla(
                subject, path, resume=name == "resumable", compute=name != "delayed", **LAYOUT
            )
            report = report.compute() if name == "delayed" else report
        assert report.n_chunks == 24
        files[name] = path.read_bytes()
    np.testing.assert_array_equal(read(tmp_path / "direct.mla"), VALUES)
    assert {name: data == files["direct"] for name, data in files.items()} == dict.fromkeys(
        files, True
    )
    assert len(names_in(tmp_path)) == len(files)


def test_bytes_do_not_depend_on_the_number_of_cores(tmp_path: Path) -> None:
    before = blosc2.set_nthreads(1)
    try:
        mlarray_xr.to_mla(VALUES, tmp_path / "one.mla", **LAYOUT)
        blosc2.set_nthreads(3)
        mlarray_xr.to_mla(VALUES, tmp_path / "three.mla", **LAYOUT)
    finally:
        blosc2.set_nthreads(before)
    assert (tmp_path / "one.mla").read_bytes() == (tmp_path / "three.mla").read_bytes()


@pytest.mark.parametrize("method", ["tasks", "p2p"])
@pytest.mark.parametrize("compute", [True, False])
def test_rechunking_before_the_write(
    tmp_path: Path, cluster: Client, method: str, compute: bool
) -> None:
    with dask.config.set({"array.rechunk.method": method}):
        subject = lazy(chunks=(24, 5, 5)).rechunk((5, 20, 18)) + 1
        done = mlarray_xr.to_mla(subject, tmp_path / "a.mla", compute=compute, **LAYOUT)
        report = done if compute else done.compute()
    np.testing.assert_array_equal(read(report.path), VALUES + 1)
    assert names_in(tmp_path) == ["a.mla"]


# Schedulers and failures


def fail_once(block: NDArray[Any], folder: str, block_id: tuple[int, ...] = ()) -> NDArray[Any]:
    marker = Path(folder, "failed-" + "-".join(map(str, block_id)))
    if block_id == (1, 1, 0) and not marker.exists():
        marker.touch()
        msg = "the first attempt failed"
        raise RuntimeError(msg)
    return block


@pytest.mark.parametrize("compute", [True, False])
def test_retries_reach_the_tasks_that_write(tmp_path: Path, cluster: Client, compute: bool) -> None:
    subject = lazy().map_blocks(fail_once, folder=str(tmp_path), dtype="i2", meta=VALUES[:0])
    with annotate(retries=2):
        done = mlarray_xr.to_mla(subject, tmp_path / "a.mla", compute=compute, **LAYOUT)
        if not compute:
            done.compute()
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)
    assert names_in(tmp_path) == ["a.mla", "failed-1-1-0"]


def test_without_retries_one_failure_fails_the_write(tmp_path: Path, cluster: Client) -> None:
    subject = lazy().map_blocks(fail_once, folder=str(tmp_path), dtype="i2", meta=VALUES[:0])
    with pytest.raises(RuntimeError, match="the first attempt failed"):
        mlarray_xr.to_mla(subject, tmp_path / "a.mla", **LAYOUT)
    assert not (tmp_path / "a.mla").exists()


PLAN = FramePlan(
    shape=VALUES.shape,
    dtype_str="<i2",
    layout=Layout(chunks=LAYOUT["chunks"], blocks=LAYOUT["blocks"]),
    codec=Codec.parse("lz4-1"),
)
PARTS = Parts(extents=((8, 8, 8), (10, 10), (18,)), in_flight=2, itemsize=2)


def test_tasks_may_run_twice_and_late(tmp_path: Path) -> None:
    job = pickle.loads(pickle.dumps(job_of(tmp_path / "a.mla", plan=PLAN, parts=PARTS)))
    pieces = [VALUES[tuple(slice(start, stop) for start, stop in box)] for box in PARTS.boxes()]
    work = list(zip(pieces, PARTS.boxes(), range(N_PARTS), strict=True))
    records = [job.write_part(piece, box, part=part) for piece, box, part in work + work[1:4]]
    names = names_in(tmp_path / "a.mla.parts")
    assert len([name for name in names if name.endswith(".seg")]) == N_PARTS + 3
    done = job.finish(records)
    assert names_in(tmp_path) == ["a.mla"]
    before = (tmp_path / "a.mla").stat()
    again = job.write_part(*work[0][:2], part=0)  # its worker died with the record
    assert again == records[0]
    assert job.finish(records).file_bytes == done.file_bytes == before.st_size
    assert (tmp_path / "a.mla").stat() == before
    assert names_in(tmp_path) == ["a.mla"]
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)


def test_the_last_task_may_run_twice_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path / "a.mla", plan=PLAN, parts=PARTS)
    for part, box in enumerate(PARTS.boxes()):
        job.write_part(VALUES[tuple(slice(*pair) for pair in box)], box, part=part)
    segments_found = WriteJob.segments_found

    def overtaken(self: WriteJob, *, check: bool) -> Any:
        found = segments_found(self, check=check)
        monkeypatch.setattr(WriteJob, "segments_found", segments_found)
        self.finish([])
        return found

    monkeypatch.setattr(WriteJob, "segments_found", overtaken)
    job.finish([])
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)
    assert names_in(tmp_path) == ["a.mla"]


def test_missing_parts_are_an_error(tmp_path: Path) -> None:
    job = job_of(tmp_path / "a.mla", plan=PLAN, parts=PARTS)
    box = PARTS.boxes()[2]
    job.write_part(VALUES[tuple(slice(*pair) for pair in box)], box, part=2)
    with pytest.raises(ValueError, match="5 parts missing, first 0"):
        job.finish([])
    assert names_in(tmp_path) == ["a.mla.parts"]


# The graph


def n_tasks(graph: da.Array) -> int:
    return len(dict(optimize(graph)[0].__dask_graph__()))


GRIDS = [(512,), (500, 1, 1), (2, 1, 300), (24, 24), (8, 8, 8), (1, 1), (64,), (65,), (3, 3, 3, 3)]


@pytest.mark.parametrize("grid", GRIDS)
def test_reading_computing_and_writing_a_part_is_one_task(
    tmp_path: Path, grid: tuple[int, ...]
) -> None:
    ones = (1,) * len(grid)
    source = tmp_path / "source.mla"
    mlarray_xr.to_mla(np.zeros(grid, "u1"), source, chunks=ones, blocks=ones, codec="lz4-1")
    plan = FramePlan(
        shape=grid,
        dtype_str="|u1",
        layout=Layout(chunks=ones, blocks=ones),
        codec=Codec.parse("lz4-1"),
    )
    parts = Parts(extents=tuple((1,) * n for n in grid), in_flight=1, itemsize=1)
    extra: Any = {"notes": "n" * 100_000}
    job = job_of(tmp_path / "a.mla", plan=plan, parts=parts, metadata=Metadata(extra=extra))
    n_parts = math.prod(grid)
    graph = write_graph(from_mla(source, chunks="file") + 1, job, missing=range(n_parts))
    assert n_parts < n_tasks(graph) <= n_parts + n_parts // 24 + 6
    # Of what was left out by an earlier write nothing is computed, and with it nothing is read.
    rest = range(0, n_parts, 3)
    graph = write_graph(from_mla(source, chunks="file") + 1, job, missing=rest)
    assert n_tasks(graph) <= 2 * len(rest) + len(rest) // 24 + 6


def test_the_graph_holds_addresses_and_no_voxels(tmp_path: Path) -> None:
    source = tmp_path / "source.mla"
    noise = np.random.default_rng(5).integers(0, 2**16, (64, 64, 64), np.uint16)
    mlarray_xr.to_mla(noise, source, chunks=8, codec="lz4-1")
    plan = FramePlan(
        shape=noise.shape,
        dtype_str="<u2",
        layout=Layout(chunks=(8, 8, 8), blocks=(8, 8, 8)),
        codec=Codec.parse("lz4-1"),
    )
    parts = Parts(extents=((8,) * 8,) * 3, in_flight=1, itemsize=2)
    notes: Any = {"notes": os.urandom(50_000).hex()}
    metadata = Metadata(extra=notes)
    job = job_of(tmp_path / "a.mla", plan=plan, parts=parts, metadata=metadata)
    graph = write_graph(from_mla(source, chunks="file") + 1, job, missing=range(512))
    (optimised,) = optimize(graph)
    tasks = dict(optimised.__dask_graph__())
    sizes = sorted(len(dumps(task)) for task in tasks.values())
    assert sizes[-2] < 5_000  # each task alone
    assert len(job.metadata) < sizes[-1] < len(job.metadata) + 5_000  # the last one
    assert len(dumps(tasks)) < len(job.metadata) + 512 * 600


class Sizes(SchedulerPlugin):
    """Notes how many bytes every result has."""

    def __init__(self) -> None:
        self.largest = 0
        self.n_results = 0

    def transition(self, key: Any, start: Any, finish: Any, *args: Any, **keywords: Any) -> None:
        if finish == "memory":
            self.largest = max(self.largest, keywords.get("nbytes") or 0)
            self.n_results += 1


def start_counting(dask_scheduler: Any = None) -> None:
    dask_scheduler.add_plugin(Sizes(), name="sizes")


def stop_counting(dask_scheduler: Any = None) -> tuple[int, int]:
    plugin = dask_scheduler.plugins["sizes"]
    dask_scheduler.remove_plugin("sizes")
    return plugin.n_results, plugin.largest


def test_results_on_a_cluster_are_small(tmp_path: Path, cluster: Client) -> None:
    source = tmp_path / "source.mla"
    mlarray_xr.to_mla(VALUES, source, **LAYOUT)
    cluster.run_on_scheduler(start_counting)
    try:
        subject = from_mla(source, chunks=PART_CHUNKS) + 1
        mlarray_xr.to_mla(subject, tmp_path / "a.mla", **LAYOUT)
    finally:
        n_results, largest = cluster.run_on_scheduler(stop_counting)
    assert N_PARTS < n_results <= N_PARTS + 3
    assert 0 < largest < 2000
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES + 1)


def test_variables_share_what_they_are_computed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.mla"
    mlarray_xr.to_mla(VALUES, source, **LAYOUT)
    reads: list[Any] = []
    real = MappedReader.read

    def counted(self: MappedReader, box: Any, out: Any, *, threads: int | None) -> None:
        if self.source.name == str(source):
            reads.append(box)
        real(self, box, out, threads=threads)

    image = xr.DataArray(from_mla(source, chunks=PART_CHUNKS), dims=("z", "y", "x"))
    both = xr.Dataset({"plus": image + 1, "minus": image - 1})
    monkeypatch.setattr(MappedReader, "read", counted)
    with dask.config.set(scheduler="synchronous"):
        reports = mlarray_xr.to_mla(both, tmp_path / "both", **LAYOUT)
    assert len(reads) == N_PARTS
    np.testing.assert_array_equal(read(reports["plus"].path), VALUES + 1)
    np.testing.assert_array_equal(read(reports["minus"].path), VALUES - 1)
    assert names_in(tmp_path / "both") == ["minus.mla", "plus.mla"]


def fail(block: NDArray[Any]) -> NDArray[Any]:
    msg = "the source failed"
    raise RuntimeError(msg)


@pytest.mark.parametrize("compute", [True, False])
def test_of_several_variables_none_is_left_behind(tmp_path: Path, compute: bool) -> None:
    broken = lazy().map_blocks(fail, dtype="i2", meta=VALUES[:0])
    arrays = {"a": VALUES, "b": broken, "c": lazy(), "d": VALUES}
    data = xr.Dataset({name: (("z", "y", "x"), values) for name, values in arrays.items()})
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(RuntimeError, match="the source failed"),
    ):
        mlarray_xr.to_mla(data, tmp_path / "d", **LAYOUT)
    assert {name for name in names_in(tmp_path / "d") if name.endswith(".parts")} == set()


# Every array


@st.composite
def cut(draw: st.DrawFn, n: int) -> tuple[int, ...]:
    """Cut an axis anywhere, now and then into nothing."""
    edges = sorted([0, n, *draw(st.lists(st.integers(0, n), max_size=4))])
    return tuple(b - a for a, b in itertools.pairwise(edges))


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=dtypes())
def test_any_chunks_are_written(data: st.DataObject, dtype: np.dtype[Any]) -> None:
    shape = data.draw(shapes(min_dims=1, max_dims=4, max_side=7))
    chunks, blocks = data.draw(layouts(shape))
    values = values_of(shape, dtype, data.draw(st.integers(0, 99)))
    pieces = tuple(data.draw(cut(n)) for n in shape)
    subject = da.from_array(values, chunks=pieces)
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="synchronous"):
        path = Path(folder, "a.mla")
        report = mlarray_xr.to_mla(subject, path, chunks=chunks, blocks=blocks, codec="lz4-1")
        found = read(path)
        assert (found.shape, found.dtype) == (values.shape, values.dtype)
        np.testing.assert_array_equal(found, values)
        assert report.file_bytes == path.stat().st_size
        assert names_in(Path(folder)) == ["a.mla"]


@pytest.mark.parametrize("compute", [True, False])
@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [">f4", "?", "<M8[D]", "<c8", "S3", "<U2"])
def test_small_and_empty_arrays(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, resume: bool, compute: bool
) -> None:
    values = values_of(shape, np.dtype(dtype), 7)
    path = tmp_path / "a.mla"
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    with dask.config.set(scheduler="synchronous"):
        report = mlarray_xr.to_mla(
            da.from_array(values), path, resume=resume, compute=compute, progress=progress
        )
        report = report if compute else report.compute()
    assert report.n_chunks == (0 if 0 in shape else 1)
    if compute:
        assert calls[-1] == (report.n_chunks, report.n_chunks)
    found = read(path)
    assert (found.shape, found.dtype) == (values.shape, values.dtype)
    np.testing.assert_array_equal(found, values)
    assert names_in(tmp_path) == ["a.mla"]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_chunks_of_zeros_and_of_nan_take_no_room(tmp_path: Path, dtype: str) -> None:
    values = np.ones((40, 16, 16), dtype)
    values[8:16], values[16:32] = 0, np.nan
    values[33, 1, 1] = 0
    subject = da.from_array(values, chunks=(16, 16, 16))
    path = tmp_path / "a.mla"
    with dask.config.set(scheduler="synchronous"):
        mlarray_xr.to_mla(subject, path, chunks=(8, 16, 16), blocks=(4, 16, 16), codec="lz4-1")
    np.testing.assert_array_equal(read(path), values)
    assert specials_in(path) == [0, 1, 2, 2, 0]


@pytest.mark.parametrize("value", [0, np.nan])
def test_a_file_of_nothing_but_special_chunks(tmp_path: Path, value: float) -> None:
    subject = da.full((32, 16, 16), value, dtype="f4", chunks=(8, 16, 16))
    files = set()
    for resume in (True, False):
        path = tmp_path / f"{resume}.mla"
        with dask.config.set(scheduler="synchronous"):
            report = mlarray_xr.to_mla(
                subject, path, chunks=(4, 16, 16), codec="lz4-1", resume=resume
            )
        np.testing.assert_array_equal(read(path), np.full((32, 16, 16), value, "f4"))
        assert specials_in(path) == [2 if value else 1] * 8
        assert report.file_bytes < 4096
        files.add(path.read_bytes())
    assert len(files) == 1


# Chunks that do not fit


def test_chunks_that_share_a_chunk_of_the_file_can_be_refused(tmp_path: Path) -> None:
    subject = lazy(chunks=((8, 6, 10), (20,), (18,)))
    expected = (
        r"chunks 1 and 2 of the Dask array along 'z' \(axis 0\) meet at 14, inside chunk 3 of the "
        r"file, which is 12:16\. To fix: \(1\) align_chunks=True rechunks"
    )
    with pytest.raises(LayoutError, match=expected):
        mlarray_xr.to_mla(subject, tmp_path / "a.mla", align_chunks=False, **LAYOUT)
    assert names_in(tmp_path) == []
    mlarray_xr.to_mla(subject, tmp_path / "a.mla", **LAYOUT)
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)


def test_chunks_that_fit_are_not_refused(tmp_path: Path) -> None:
    for number, chunks in enumerate([((4, 20), (10, 10), (18,)), ((24,), (20,), (9, 9))]):
        path = tmp_path / f"{number}.mla"
        mlarray_xr.to_mla(lazy(chunks=chunks), path, align_chunks=False, **LAYOUT)
        np.testing.assert_array_equal(read(path), VALUES)


# Progress


class Calls:
    """Notes what a progress callback is told."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.made.append((done, total))

    def check(self, total: int) -> None:
        done = [n for n, _ in self.made]
        assert {n for _, n in self.made} == {total}
        assert done == sorted(done)
        assert done[-1] == total
        assert min(done) >= 0


@contextlib.contextmanager
def scheduled(name: str, request: pytest.FixtureRequest) -> Iterator[None]:
    if name == "cluster":
        request.getfixturevalue("cluster")
        yield
    else:
        with dask.config.set(scheduler=name, num_workers=2):
            yield


@pytest.mark.parametrize("scheduler", [*LOCAL, "cluster"])
def test_progress_of_tasks(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    scheduler: str,
) -> None:
    monkeypatch.setattr("mlarray_xr.dask_write._WATCH_SECONDS", 0.001)
    calls = Calls()
    with scheduled(scheduler, request):
        mlarray_xr.to_mla(lazy(), tmp_path / "a.mla", progress=calls, **LAYOUT)
    calls.check(24)
    assert len(calls.made) > 1


@pytest.mark.parametrize("resume", [True, False])
def test_progress_of_arrays_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    calls = Calls()
    mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", progress=calls, resume=resume, **LAYOUT)
    calls.check(24)
    assert len(calls.made) > 10


def test_strange_names_do_not_stop_the_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.dask_write._WATCH_SECONDS", 0.001)
    (tmp_path / "a.mla.parts").mkdir()
    (tmp_path / "a.mla.parts" / "0000000099.mine.seg").touch()
    calls = Calls()
    with dask.config.set(scheduler="synchronous"):
        mlarray_xr.to_mla(lazy(), tmp_path / "a.mla", progress=calls, **LAYOUT)
    calls.check(24)


@pytest.mark.parametrize("scheduler", LOCAL)
def test_bars_of_dask_show_the_write(tmp_path: Path, scheduler: str) -> None:
    shown = io.StringIO()
    with dask.config.set(scheduler=scheduler, num_workers=2), ProgressBar(out=shown):
        mlarray_xr.to_mla(lazy(), tmp_path / "a.mla", **LAYOUT)
    assert "100% Completed" in shown.getvalue()


def test_a_callback_that_fails_ends_a_direct_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    monkeypatch.setattr("mlarray_xr.storage.ordered_tasks.available_threads", lambda: 2)
    n_read = 0

    class Counted:
        shape, dtype, ndim, size = VALUES.shape, VALUES.dtype, VALUES.ndim, VALUES.size

        def __getitem__(self, key: Any) -> NDArray[Any]:
            nonlocal n_read
            n_read += 1
            part: NDArray[Any] = VALUES[key]
            return part

    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as interrupted:
        mlarray_xr.to_mla(Counted(), tmp_path / "a.mla", progress=stop, **LAYOUT)
    n_before = n_read
    assert n_before < 10
    del interrupted
    assert n_read == n_before
    assert names_in(tmp_path) == []


def test_records_are_small() -> None:
    record = PartRecord(part=10**9, process="h" * 64 + ":4194304")
    assert len(pickle.dumps(record)) < 300
