"""Frames one after the other: right, in order, read ahead, within the memory that was said."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ChunkError
from mlarray_xr.series import frames as frames_module
from mlarray_xr.series.frames import frames, plan_batches
from mlarray_xr.series.gradients import without_b0
from tests.frame_kit import offsets_of, replaced, sections_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE = (12, 4, 8, 8)
DIMS = ("time", "z", "y", "x")
FRAME_BYTES = 4 * 8 * 8 * 2


def voxels() -> NDArray[np.int16]:
    return np.random.default_rng(3).integers(-999, 999, SHAPE).astype("int16")


def write(path: Path, *, chunk: int, block: int = 1) -> str:
    bval = ("time", [0.0, 1000.0, 1000.0] * 4)
    array = xr.DataArray(voxels(), dims=DIMS, coords={"bval": bval})
    mlarray_xr.to_mla(array, path, chunks=(chunk, 4, 8, 8), blocks=(block, 4, 8, 8))
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("frames") / "series.mla", chunk=4, block=2)


def opened(path: str, kind: str) -> xr.DataArray:
    array = mlarray_xr.open_mla(path, chunks={} if kind == "dask" else None)
    return array.compute() if kind == "memory" else array


def frame_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("mlarray_xr-frames")]


@pytest.mark.parametrize("kind", ["lazy", "dask", "memory"])
@pytest.mark.parametrize("read_ahead", [0, 1, 3])
@pytest.mark.parametrize("memory_limit", [1, 7 * FRAME_BYTES, "1 MiB"])
def test_frames_come_in_order(
    path: str, kind: str, read_ahead: int, memory_limit: int | str
) -> None:
    array = opened(path, kind)
    options: dict[str, Any] = {"read_ahead": read_ahead, "memory_limit": memory_limit}
    count = 0
    for k, frame in enumerate(frames(array, **options)):
        assert isinstance(frame.variable._data, np.ndarray)
        assert (frame.dims, int(frame.orig_volume), frame.dtype.name) == (DIMS[1:], k, "int16")
        assert float(frame.bval) == [0, 1000, 1000][k % 3]
        assert np.array_equal(frame.values, voxels()[k])
        count += 1
    assert count == 12
    found = [int(frame.orig_volume) for frame in frames(without_b0(array)[::-1], **options)]
    assert found == [11, 10, 8, 7, 5, 4, 2, 1]
    assert not frame_threads()


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_every_scheduler_reads_frames(path: str, scheduler: str) -> None:
    array = without_b0(opened(path, "dask")).transpose("x", "time", "y", "z")
    with dask.config.set(scheduler=scheduler):
        for frame in frames(array, memory_limit=9 * FRAME_BYTES):
            expected = voxels()[int(frame.orig_volume)].transpose(2, 1, 0)
            assert np.array_equal(frame.values, expected)


def test_a_client_that_is_current_reads_frames(path: str, cluster: Any) -> None:
    found = [frame.values for frame in frames(opened(path, "dask"), memory_limit="4 KiB")]
    assert np.array_equal(np.stack(found), voxels())


def test_frames_of_arrays_in_memory_are_views(path: str) -> None:
    array = opened(path, "memory")
    assert all(np.shares_memory(frame.values, array.values) for frame in frames(array))


def test_geometry_and_attributes_come_with_each_frame(tmp_path: Path) -> None:
    coords = {"z": 3.0 * np.arange(4), "y": np.arange(8.0), "x": np.arange(8.0)}
    array = xr.DataArray(voxels(), dims=DIMS, coords=coords, attrs={"site": "A"}, name="bold")
    mlarray_xr.to_mla(array, tmp_path / "bold.mla")
    frame = next(frames(mlarray_xr.open_mla(tmp_path / "bold.mla")[:, 1:]))
    assert (frame.name, frame.attrs["site"], frame.mla.origin) == ("bold", "A", (3.0, 0.0, 0.0))


@pytest.mark.parametrize("empty", ["time", "x"])
def test_empty_series(path: str, empty: str) -> None:
    array = opened(path, "lazy").isel({empty: slice(0, 0)})
    assert len(list(frames(array))) == (0 if empty == "time" else 12)


# --- batches -----------------------------------------------------------------------------------


def batches_of(places: list[list[int]], *, n_most: int, read_ahead: int = 1) -> Any:
    n = len(places[0])
    return plan_batches(
        n,
        frame_bytes=10,
        memory_bytes=10 * n_most * (read_ahead + 2),
        places=[np.asarray(p, dtype=np.intp) for p in places],
        read_ahead=read_ahead,
    ).batches


def test_batches_are_whole_chunks_where_these_fit() -> None:
    chunks = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert batches_of([chunks], n_most=4) == ((0, 4), (4, 8), (8, 10))
    assert batches_of([chunks], n_most=7) == ((0, 4), (4, 10))
    assert batches_of([chunks], n_most=8) == ((0, 8), (8, 10))
    assert batches_of([chunks], n_most=99) == ((0, 10),)


def test_chunks_that_do_not_fit_are_cut_between_blocks() -> None:
    chunks, blocks = [0] * 6 + [1] * 2, [0, 0, 1, 1, 2, 2, 3, 3]
    assert batches_of([chunks, blocks], n_most=3) == ((0, 2), (2, 4), (4, 6), (6, 8))
    assert batches_of([chunks, blocks], n_most=4) == ((0, 4), (4, 6), (6, 8))
    assert batches_of([chunks, blocks], n_most=1) == tuple((k, k + 1) for k in range(8))


def test_batches_follow_the_chunks_of_selected_frames(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames 1, 2 | 4, 5, 7 | 8, 10, 11 of chunks of four."""
    read: list[list[int]] = []

    def note(array: xr.DataArray, dim: str, batch: tuple[int, int]) -> xr.DataArray:
        found = array.isel({dim: slice(*batch)}).compute()
        read.append(found.orig_volume.values.tolist())
        return found

    monkeypatch.setattr(frames_module, "_read", note)
    limit = 4 * FRAME_BYTES * 3
    list(frames(without_b0(opened(path, "lazy")), memory_limit=limit))
    assert read == [[1, 2], [4, 5, 7], [8, 10, 11]]
    read.clear()
    list(frames(opened(path, "lazy"), memory_limit=limit // 2))
    assert read == [[2 * k, 2 * k + 1] for k in range(6)]


@pytest.mark.native
def test_nothing_is_decoded_twice(path: str) -> None:
    blocks = 12 // 2
    for limit, most in ((2 * FRAME_BYTES * 3, blocks), ("1 MiB", blocks)):
        with mlarray_xr.measure() as measured:
            list(frames(opened(path, "lazy"), memory_limit=limit))
        assert measured.stats.blocks_decoded <= most


@given(
    chunk=st.integers(1, 9),
    block=st.integers(1, 9),
    n=st.integers(0, 60),
    frame_bytes=st.integers(1, 50),
    memory_bytes=st.integers(1, 2000),
    read_ahead=st.integers(0, 4),
    n_copies=st.integers(1, 2),
)
def test_plans_keep_their_promise(
    chunk: int,
    block: int,
    n: int,
    frame_bytes: int,
    memory_bytes: int,
    read_ahead: int,
    n_copies: int,
) -> None:
    positions = np.arange(n)
    plan = plan_batches(
        n,
        frame_bytes=frame_bytes,
        memory_bytes=memory_bytes,
        places=[positions // chunk, positions // chunk * 9 + positions % chunk // block],
        read_ahead=read_ahead,
        n_copies=n_copies,
    )
    covered = [k for start, stop in plan.batches for k in range(start, stop)]
    assert covered == list(range(n))
    assert all(start < stop for start, stop in plan.batches)
    assert plan.read_ahead <= read_ahead
    assert plan.peak_bytes <= max(memory_bytes, (1 + n_copies) * frame_bytes)
    longest = memory_bytes // frame_bytes // plan.n_at_once
    for (_, stop), (begin, end) in itertools.pairwise(plan.batches):
        # Only chunks that are longer than a batch may be cut.
        if stop % chunk and longest >= chunk:
            pytest.fail(f"cut inside a chunk at {stop}, next {begin, end}")


@pytest.mark.parametrize("read_ahead", [0, 1, 2])
@pytest.mark.parametrize("n_frames", [3, 5, 8, 12, 48])
def test_no_more_is_in_memory_than_was_said(
    path: str, monkeypatch: pytest.MonkeyPatch, read_ahead: int, n_frames: int
) -> None:
    """Counts what is alive whenever a read begins, with what that read will take."""
    refs: list[weakref.ref[Any]] = []
    peaks = []
    original = frames_module._read

    class Kept(np.ndarray[Any, Any]):
        """An array that can be counted."""

    def read(array: xr.DataArray, dim: str, batch: tuple[int, int]) -> xr.DataArray:
        coming = (batch[1] - batch[0]) * FRAME_BYTES
        alive = [values for ref in refs if (values := ref()) is not None]
        peaks.append(coming + sum(values.nbytes for values in alive))
        del alive
        found = original(array, dim, batch)
        values = found.values.view(Kept)
        refs.append(weakref.ref(values))
        found.variable._data = values
        return found

    monkeypatch.setattr(frames_module, "_read", read)
    limit = n_frames * FRAME_BYTES
    for frame in frames(opened(path, "lazy"), read_ahead=read_ahead, memory_limit=limit):
        assert frame.shape == SHAPE[1:]
    assert max(peaks) <= limit
    assert len(peaks) > 1 or n_frames == 48


# --- ends --------------------------------------------------------------------------------------


def test_nothing_is_read_before_the_first_frame(path: str) -> None:
    with mlarray_xr.measure() as measured:
        frames(opened(path, "lazy"))
    assert measured.stats.bytes_useful == 0


def test_the_thread_ends_when_the_loop_is_left(path: str) -> None:
    with contextlib.closing(frames(opened(path, "lazy"), memory_limit=3 * FRAME_BYTES)) as some:
        next(some)
        assert frame_threads()
    assert not frame_threads()


def test_the_thread_ends_when_the_generator_is_forgotten(path: str) -> None:
    some = frames(opened(path, "lazy"), memory_limit=3 * FRAME_BYTES)
    next(some)
    del some
    gc.collect()
    assert not frame_threads()


def test_reads_that_wait_are_not_begun_after_the_end(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = [], threading.Event()

    def read(array: xr.DataArray, dim: str, batch: tuple[int, int]) -> xr.DataArray:
        started.append(batch)
        if batch != (0, 1):
            assert go.wait(10)
        return array.isel({dim: slice(*batch)}).compute()

    monkeypatch.setattr(frames_module, "_read", read)
    some = frames(opened(path, "lazy"), read_ahead=3, memory_limit=5 * FRAME_BYTES)
    next(some)
    threading.Timer(0.05, go.set).start()
    some.close()
    assert started[0] == (0, 1)
    assert len(started) <= 2
    assert not frame_threads()


@pytest.mark.parametrize("read_ahead", [0, 2])
def test_an_error_comes_in_its_turn(tmp_path: Path, read_ahead: int) -> None:
    path = write(tmp_path / "damaged.mla", chunk=1)
    data = Path(path).read_bytes()
    sections = sections_of(data)
    at = len(sections.header) + int(offsets_of(sections)[5]) + 8
    Path(path).write_bytes(replaced(data, at, bytes([data[at] ^ 1])))
    some = frames(
        mlarray_xr.open_mla(path, checksums=True),
        read_ahead=read_ahead,
        memory_limit=5 * FRAME_BYTES,
    )
    good: list[int] = []
    with pytest.raises(ChunkError):
        good.extend(int(frame.orig_volume) for frame in some)
    assert good == [0, 1, 2, 3, 4][: len(good)]
    assert not frame_threads()
    assert next(some, None) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"read_ahead": -1}, "read_ahead=-1 is negative"),
        ({"memory_limit": "many"}, "no amount of memory"),
        ({"dim": "volume"}, "no dimension"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    path: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        frames(opened(path, "lazy"), **options)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_the_thread_of_its_parent(path: str) -> None:
    array = opened(path, "lazy")
    begun = array.mla.frames(memory_limit=array[:8].nbytes)
    next(begun)
    assert frame_threads()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            signal.alarm(30)
            try:
                list(begun)
            except RuntimeError as error:
                os._exit(0 if "another process" in str(error) else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    begun.close()
