"""`create`: any order, any region, bounded memory; published complete, or nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import mlarray
import numpy as np
import pytest
import xarray as xr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError, MlaWarning, TargetBusy
from mlarray_xr.format.metadata import Spatial
from mlarray_xr.planning.codec import Codec
from mlarray_xr.storage import canvas as canvas_module
from mlarray_xr.storage.encode import encode_part
from mlarray_xr.storage.random_access import RandomAccessFile
from tests.strategies import dtypes, filled_boxes, keys, layouts, mixed_shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHAPE = (12, 20, 18)
VALUES = np.random.default_rng(7).integers(-500, 500, SHAPE, np.int16)
LAYOUT: dict[str, Any] = {"chunks": (4, 10, 9), "blocks": (2, 5, 9)}
CHUNK_BYTES = 4 * 10 * 9 * 2
N_CHUNKS = 12
SECONDS = 60


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> NDArray[Any]:
    values: NDArray[Any] = mlarray_xr.MlaArray(path)[...]
    return values


def least_memory(path: Path, **options: Any) -> int:
    """Return the fewest bytes with which `create` agrees to fill a file: one chunk at a time."""
    try:
        mlarray_xr.create(path, memory_limit=1, **options).__enter__()
    except LayoutError as error:
        return int(re.findall(r"need (\d+) bytes", str(error))[0])
    return 1  # an array without elements


# Whatever is assigned


class Filling(RuleBasedStateMachine):
    """Assign to a writer and to a NumPy array, end well or not, and compare."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "filled.mla"

    @initialize(data=st.data(), shape=mixed_shapes(), dtype=dtypes())
    def begin(self, data: st.DataObject, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        # Several chunks along an axis, and memory for one or two: the others are put aside.
        chunks, blocks = data.draw(layouts(tuple((n + 1) // 2 for n in shape)))
        codec = data.draw(st.sampled_from(["lz4-1", "zstd-1-bitshuffle", "lz4hc-5-none"]))
        options: dict[str, Any] = {"shape": shape, "dtype": dtype}
        options |= {"chunks": chunks, "blocks": blocks}
        memory = least_memory(self.path, **options)
        memory += data.draw(st.integers(0, 1)) * dtype.itemsize * int(np.prod(chunks))
        self.values: NDArray[Any] = np.zeros(shape, dtype)
        self._context = mlarray_xr.create(self.path, memory_limit=memory, codec=codec, **options)
        self.out = self._context.__enter__()
        self.ends_well = data.draw(st.booleans())
        assert (self.out.shape, self.out.dtype) == (shape, dtype)
        assert (self.out.chunks, self.out.blocks) == (chunks, blocks) or 0 in shape

    @rule(data=st.data(), seed=st.integers(0, 2**16), kind=st.sampled_from(["array", "row", "one"]))
    def assign(self, data: st.DataObject, seed: int, kind: str) -> None:
        key = data.draw(keys(self.values.shape))
        shape = self.values[key].shape
        values: Any = values_of(
            {"array": shape, "row": shape[-1:], "one": ()}[kind], self.dtype, seed
        )
        if self.dtype.kind == "f" and seed % 5 == 0:
            values = np.full_like(values, np.nan)
        elif seed % 7 == 0:
            values = np.zeros_like(values)
        self.values[key] = values
        self.out[key] = values

    @rule(data=st.data(), seed=st.integers(0, 2**16))
    def assign_a_box(self, data: st.DataObject, seed: int) -> None:
        key: Any = tuple(slice(*pair) for pair in data.draw(filled_boxes(self.values.shape)))
        values = values_of(self.values[(*key, ...)].shape, self.dtype, seed)
        self.values[key] = values
        self.out[key] = values

    @rule()
    def read_all(self) -> None:
        np.testing.assert_array_equal(self.out[...], self.values)

    @rule(data=st.data())
    def read_back(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.values.shape))
        found, expected = self.out[key], self.values[key]
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)

    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.values.shape))
        for error, wrong_key, values in (
            (ConversionError, key, np.zeros(self.values[key].shape, "V3")),
            (ValueError, key, np.zeros((2, *self.values[key].shape), self.dtype)),
            (IndexError, (0,) * (self.values.ndim + 1), self.values[key]),
        ):
            with pytest.raises(error):
                self.out[wrong_key] = values

    def _publish(self) -> None:
        assert not self.path.exists()
        self._context.__exit__(None, None, None)
        found = read(self.path)
        assert (found.dtype, found.shape) == (self.dtype, self.values.shape)
        np.testing.assert_array_equal(found, self.values)
        assert mlarray_xr.verify(self.path, decode=True).state == "ok"
        reference = mlarray.MLArray.open(self.path)[...]
        np.testing.assert_array_equal(reference, self.values)
        assert names_in(self.path.parent) == ["filled.mla"]

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = self.values.dtype
        return found

    def teardown(self) -> None:
        if not hasattr(self, "ends_well"):
            pass  # it did not even begin
        elif self.ends_well:
            self._publish()
        else:
            wrong = RuntimeError("stop")
            assert not self._context.__exit__(RuntimeError, wrong, None)
            assert names_in(self.path.parent) == []
        self._folder.cleanup()


@pytest.mark.filterwarnings("ignore:chunks .* are encoded again and again")
def test_it_becomes_what_was_assigned() -> None:
    run_state_machine_as_test(Filling, settings=settings(max_examples=80, stateful_step_count=15))


# How it ends


def filled(path: Path, values: NDArray[Any] = VALUES, **options: Any) -> mlarray_xr.WriteReport:
    """Fill a file plane by plane."""
    with mlarray_xr.create(
        path, **{"shape": values.shape, "dtype": values.dtype, **LAYOUT, **options}
    ) as out:
        for z, plane in enumerate(values):
            out[z] = plane
    assert out.report is not None
    return out.report


@pytest.mark.parametrize("codec", ["lz4-1", "zstd-1-bitshuffle"])
def test_the_file_is_the_one_that_to_mla_writes(tmp_path: Path, codec: str) -> None:
    metadata = mlarray_xr.Metadata(spatial=Spatial(spacing=(3.0, 0.5, 0.5)), source={"id": 5})
    options: dict[str, Any] = {**LAYOUT, "codec": codec, "metadata": metadata}
    expected = mlarray_xr.to_mla(VALUES, tmp_path / "to.mla", **options)
    report = filled(tmp_path / "create.mla", codec=codec, metadata=metadata)
    assert (tmp_path / "create.mla").read_bytes() == (tmp_path / "to.mla").read_bytes()
    same = ("shape", "dtype", "nbytes", "file_bytes", "n_chunks", "layout", "codec")
    assert [getattr(report, n) for n in same] == [getattr(expected, n) for n in same]
    assert (report.path, report.workers) == (str(tmp_path / "create.mla"), 1)


def test_dims_are_stored_and_decide_what_a_patch_is(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shape": (40, 60, 60), "dtype": "f4", "patch": 16}
    with mlarray_xr.create(tmp_path / "d.mla", dims=("time", "y", "x"), **options) as out:
        out[3] = 1.5
    opened = mlarray_xr.open_mla(tmp_path / "d.mla")
    assert opened.dims == ("time", "y", "x")
    assert float(opened[3].sum()) == 1.5 * 3600
    assert out.report is not None
    expected = mlarray_xr.plan_layout(
        (40, 60, 60), "f4", patch=16, dims=("time", "y", "x"), codec=out.report.codec
    )
    assert (out.chunks, out.blocks) == (expected.chunks, expected.blocks)
    for wrong, message in (
        ({"dims": ("y", "x")}, "one name per axis"),
        ({"dims": ("z", "y", "x"), "metadata": mlarray_xr.Metadata()}, "both given"),
    ):
        with pytest.raises(ConversionError, match=message):
            mlarray_xr.create(tmp_path / "w.mla", **{**options, **wrong}).__enter__()


def test_the_codec_is_chosen_without_values_and_the_report_says_so(tmp_path: Path) -> None:
    report = filled(tmp_path / "a.mla")
    assert report.choice is not None
    assert report.codec == report.choice.codec
    assert "no values to try codecs on" in str(report.choice)
    assert filled(tmp_path / "b.mla", codec="lz4-3").choice is None


def test_a_lossy_codec_must_be_meant(tmp_path: Path) -> None:
    values = np.ones(SHAPE, "f4")
    with pytest.raises(LayoutError, match="lossy=True"):
        filled(tmp_path / "a.mla", values, codec="zstd-1-shuffle-trunc12")
    assert names_in(tmp_path) == []
    values[0] = np.pi
    filled(tmp_path / "a.mla", values, codec="zstd-1-shuffle-trunc12", lossy=True)
    found = read(tmp_path / "a.mla")
    assert (found[0] != values[0]).all()
    np.testing.assert_allclose(found, values, rtol=2.0**-12)
    assert mlarray_xr.verify(tmp_path / "a.mla").state == "ok"


ENDS: dict[str, tuple[type[BaseException], Callable[[Any], Any]]] = {
    "an error": (ZeroDivisionError, lambda _: 1 // 0),
    "an interrupt": (KeyboardInterrupt, lambda _: signal.raise_signal(signal.SIGINT)),
    "values refused": (ConversionError, lambda out: out.__setitem__(0, 1e9)),
    "a key refused": (IndexError, lambda out: out.__setitem__(99, 0)),
}


@pytest.mark.parametrize("mode", ["w-", "w"])
@pytest.mark.parametrize("end", ENDS)
def test_an_error_leaves_what_was_there(tmp_path: Path, end: str, mode: Any) -> None:
    path, (error, cause) = tmp_path / "a.mla", ENDS[end]
    if mode == "w":
        filled(path, -VALUES)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}
    context = mlarray_xr.create(path, shape=SHAPE, dtype="i2", mode=mode, **LAYOUT)

    def fill() -> None:
        with context as out:
            out[...] = VALUES
            assert names_in(tmp_path) == sorted({*before, "a.mla.parts"})
            writers.append(out)
            cause(out)

    writers: list[Any] = []
    with pytest.raises(error):
        fill()
    (out,) = writers
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before
    uses: list[Callable[[], Any]] = [lambda: out[0], lambda: out.__setitem__(0, 0)]
    for use in uses:
        with pytest.raises(ValueError, match=r"ended, well or not.*mode='r\+'"):
            use()
    assert out.report is None


def test_a_file_is_replaced_only_when_it_is_asked_for(tmp_path: Path) -> None:
    filled(tmp_path / "a.mla", -VALUES)
    with pytest.raises(FileExistsError, match="mode='w'"):
        filled(tmp_path / "a.mla")
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), -VALUES)
    filled(tmp_path / "a.mla", mode="w")
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)
    with pytest.raises(ValueError, match="mode='r' is not 'w-'"):
        filled(tmp_path / "b.mla", mode="r")
    assert names_in(tmp_path) == ["a.mla"]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "objects": ({"dtype": "O"}, ConversionError, "cannot be written"),
    "no size": ({"dtype": "U"}, ConversionError, "has no size.*U1"),
    "suffix": ({"path": "a.b2nd"}, ConversionError, "must end in"),
    "url": ({"path": "s3://bucket/a.mla"}, ConversionError, "objects are written whole"),
    "folder": ({"path": "absent/a.mla"}, FileNotFoundError, "folder does not exist"),
    "codec": ({"codec": "zip-3"}, LayoutError, "zip"),
    "negative": ({"shape": (4, -1)}, ValueError, "negative"),
    "too little memory": ({"memory_limit": 1000}, LayoutError, r"need \d+ bytes.*raise it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_made_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong, error, message = WRONG[case]
    options: dict[str, Any] = {"path": "a.mla", "shape": SHAPE, "dtype": "i2", **wrong}
    with pytest.raises(error, match=message):
        mlarray_xr.create(**options).__enter__()
    assert names_in(tmp_path) == []


# Who else is at work


def test_a_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    who = rf"a\.mla: process {os.getpid()} on {socket.gethostname()!r} is writing it"
    with mlarray_xr.create(path, shape=SHAPE, dtype="i2", **LAYOUT) as out:
        for other in (filled, lambda path: mlarray_xr.to_mla(VALUES, path)):
            with pytest.raises(TargetBusy, match=who):
                other(path)
        out[...] = VALUES
    np.testing.assert_array_equal(read(path), VALUES)
    assert names_in(tmp_path) == ["a.mla"]


def test_a_file_made_by_others_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(FileExistsError),
        mlarray_xr.create(tmp_path / "a.mla", shape=SHAPE, dtype="i2"),
    ):
        (tmp_path / "a.mla").write_bytes(b"theirs")
    assert (tmp_path / "a.mla").read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["a.mla"]


KILLED = """
import os, signal, sys
import numpy as np
import mlarray_xr
path, moment, limit = sys.argv[1:]
with mlarray_xr.create(path, shape=(64, 64), dtype="i2", chunks=16, memory_limit=int(limit)) as out:
    out[...] = np.arange(64)
    if moment == "publishing":
        from mlarray_xr.storage import canvas
        canvas.FrameWriter.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("moment", ["filling", "publishing"])
def test_after_a_kill_there_is_no_file_and_the_next_writer_cleans_up(
    tmp_path: Path, moment: str
) -> None:
    path = tmp_path / "a.mla"
    limit = least_memory(path, shape=(64, 64), dtype="i2", chunks=16)
    command = [sys.executable, "-W", "ignore", "-c", KILLED, str(path), moment, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names_in(tmp_path) == ["a.mla.parts"]
    assert any(name.endswith(".raw") for name in names_in(tmp_path / "a.mla.parts"))
    filled(path)
    np.testing.assert_array_equal(read(path), VALUES)
    assert names_in(tmp_path) == ["a.mla"]


def test_it_stays_in_its_process(tmp_path: Path) -> None:
    with mlarray_xr.create(tmp_path / "a.mla", shape=SHAPE, dtype="i2", **LAYOUT) as out:
        with pytest.raises(TypeError, match=r"belongs to the process.*to_mla"):
            pickle.dumps(out)
        out[...] = VALUES


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_cannot_take_part_and_does_no_harm(tmp_path: Path) -> None:
    path, uses, held = tmp_path / "a.mla", 0, threading.Event()
    try:
        with mlarray_xr.create(path, shape=SHAPE, dtype="i2", **LAYOUT) as out:
            out[...] = VALUES
            release = threading.Event()

            def hold() -> None:
                with out._lock:
                    held.set()
                    release.wait(SECONDS)

            holder = threading.Thread(target=hold)
            holder.start()
            held.wait(SECONDS)
            if not (child := os.fork()):
                for use in (lambda: out[0], lambda: out.__setitem__(0, 0), out.publish):
                    try:
                        use()
                    except RuntimeError:
                        uses += 1
                raise SystemExit(uses)  # leaves the block
            status = os.waitpid(child, 0)[1]
            release.set()
            holder.join(SECONDS)
    except SystemExit as ended:
        os._exit(int(str(ended)) + 10)
    assert os.waitstatus_to_exitcode(status) == 13
    np.testing.assert_array_equal(read(path), VALUES)
    assert names_in(tmp_path) == ["a.mla"]


# Memory, threads, the disk


class Counted:
    """Counts the chunks that are encoded, in any thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_chunks = 0
        self._lock = threading.Lock()
        monkeypatch.setattr(canvas_module, "encode_part", self)

    def __call__(self, *args: Any) -> Any:
        with self._lock:
            self.n_chunks += 1
        return encode_part(*args)


def test_each_chunk_is_encoded_once_where_a_layer_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, encoded = tmp_path / "a.mla", Counted(monkeypatch)
    memory = least_memory(path, shape=SHAPE, dtype="i2", **LAYOUT) + 7 * CHUNK_BYTES
    filled(path, memory_limit=memory)
    assert encoded.n_chunks == N_CHUNKS
    np.testing.assert_array_equal(read(path), VALUES)


def test_one_warning_when_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encoded = tmp_path / "a.mla", Counted(monkeypatch)
    memory = least_memory(path, shape=SHAPE, dtype="i2", **LAYOUT)
    with pytest.warns(MlaWarning, match="encoded again and again.*raise") as caught:
        filled(path, memory_limit=memory)
    assert len(caught) == 1
    assert encoded.n_chunks > 2 * N_CHUNKS
    np.testing.assert_array_equal(read(path), VALUES)


def test_nothing_is_encoded_that_nobody_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = Counted(monkeypatch)
    shape, chunks = (10**4, 10**4, 10**3), (1000, 1000, 10)
    with mlarray_xr.create(tmp_path / "a.mla", shape=shape, dtype="f4", chunks=chunks) as out:
        out[-1, -1, -3:] = 7
        assert out[-1, 0, :5].tolist() == [0] * 5
    assert encoded.n_chunks == 1
    assert mlarray_xr.MlaArray(tmp_path / "a.mla")[-1, -1, -4:].tolist() == [0, 7, 7, 7]
    assert (tmp_path / "a.mla").stat().st_size < 1 << 20


def test_memory_stays_below_the_limit(tmp_path: Path) -> None:
    rng, shape, limit = np.random.default_rng(3), (64, 256, 256), 4 << 20
    options: dict[str, Any] = {"chunks": (16, 64, 64), "memory_limit": limit, "codec": "lz4-1"}
    plane = rng.integers(0, 99, shape[1:], np.int16)
    with mlarray_xr.create(tmp_path / "warm.mla", shape=shape, dtype="i2", **options):
        pass  # imports everything
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with mlarray_xr.create(tmp_path / "a.mla", shape=shape, dtype="i2", **options) as out:
            for z in range(shape[0]):
                out[z] = plane + np.int16(z)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # The limit is of chunks; threads and tables take some more.
    assert peak < limit + (1 << 20) < out.nbytes
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[63], plane + 63)


@pytest.mark.filterwarnings("ignore:chunks .* are encoded again and again")
def test_dask_stores_into_it_without_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    memory = least_memory(path, shape=SHAPE, dtype="i2", **LAYOUT)
    with mlarray_xr.create(path, shape=SHAPE, dtype="i2", memory_limit=memory, **LAYOUT) as out:
        lazy = da.from_array(VALUES, chunks=(5, 7, 4))
        target: Any = out
        da.store(lazy, target, lock=False, scheduler="threads", num_workers=8)
    np.testing.assert_array_equal(read(path), VALUES)


@pytest.mark.filterwarnings("ignore:chunks .* are encoded again and again")
def test_threads_write_and_read_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    memory = least_memory(path, shape=SHAPE, dtype="i2", **LAYOUT)

    def work(x: int) -> bool:
        out[:, :, x] = VALUES[:, :, x]
        return np.array_equal(out[:, :, x], VALUES[:, :, x])

    with (
        mlarray_xr.create(path, shape=SHAPE, dtype="i2", memory_limit=memory, **LAYOUT) as out,
        ThreadPoolExecutor(8) as pool,
    ):
        assert all(pool.map(work, range(SHAPE[2])))
    np.testing.assert_array_equal(read(path), VALUES)


@pytest.mark.parametrize("is_caught", [False, True])
def test_a_full_disk_ends_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_caught: bool
) -> None:
    path = tmp_path / "a.mla"
    memory = least_memory(path, shape=SHAPE, dtype="i2", **LAYOUT)

    def full(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RandomAccessFile, "write", full)
    # Chunks on their way to the disk are lost: who goes on all the same must not get a file.
    caught: Any = OSError if is_caught else ()

    def fill() -> None:
        options = {"shape": SHAPE, "dtype": "i2", "memory_limit": memory, **LAYOUT}
        with mlarray_xr.create(path, **options) as out, contextlib.suppress(caught):
            out[...] = VALUES

    expected: Any = (ValueError, "ended, well or not") if is_caught else (OSError, "No space left")
    with pytest.raises(expected[0], match=expected[1]):
        fill()
    assert names_in(tmp_path) == []


def test_values_of_other_arrays_are_taken(tmp_path: Path) -> None:
    filled(tmp_path / "source.mla")
    with mlarray_xr.create(tmp_path / "a.mla", shape=SHAPE, dtype=">i4", **LAYOUT) as out:
        out[0:4] = mlarray_xr.MlaArray(tmp_path / "source.mla")[0:4]
        out[4:6] = xr.DataArray(VALUES[4:6])
        out[6:8] = VALUES[6:8].tolist()
        out[8:] = da.from_array(VALUES[8:], chunks=3)
        out[11] = out[0]
    expected = VALUES.copy()
    expected[11] = VALUES[0]
    found = read(tmp_path / "a.mla")
    assert found.dtype == np.dtype(">i4")
    np.testing.assert_array_equal(found, expected)


def test_the_codec_may_be_a_value(tmp_path: Path) -> None:
    codec = Codec(name="zstd", level=2, filter="bitshuffle")
    assert filled(tmp_path / "a.mla", codec=codec).codec == codec
