"""`to_mla`: complete or not at all, the same bytes whoever computes them, and typed refusals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import mlarray
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError, SourceChanged, SourceError, TargetBusy
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout_plan import plan_layout
from tests.strategies import boxes, dtypes, shapes, stored, values_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client
    from numpy.typing import NDArray

    from tests.strategies import Stored

VALUES = np.random.default_rng(2).integers(0, 500, (24, 20, 18), np.int16)
LAYOUT: dict[str, Any] = {"chunks": (8, 10, 9), "blocks": (4, 5, 9)}


def read(path: str | Path) -> NDArray[Any]:
    values: NDArray[Any] = mlarray_xr.MlaArray(path)[...]
    return values


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def labelled(values: Any = VALUES) -> xr.DataArray:
    coords = {"z": 1.0 + 2.5 * np.arange(24), "y": 0.5 * np.arange(20), "x": 0.5 * np.arange(18)}
    return xr.DataArray(values, dims=("z", "y", "x"), coords=coords, name="image")


SUBJECTS: dict[str, Callable[[Path], Any]] = {
    "numpy": lambda _: VALUES,
    "fortran order": lambda _: np.asfortranarray(VALUES),
    "list": lambda _: VALUES.tolist(),
    "DataArray": lambda _: labelled(),
    "DataArray of Dask": lambda _: labelled(da.from_array(VALUES, chunks=(7, 20, 5))),
    "Dataset": lambda _: labelled().to_dataset(name="ct"),
    "Variable": lambda _: xr.Variable(("z", "y", "x"), VALUES),
    "lazy DataArray": lambda file: xr.open_dataset(file)["image"],
    "lazy DataArray of Dask": lambda file: xr.open_dataset(file, chunks={})["image"],
    "lazy selection": lambda file: xr.open_dataset(file)["image"][:, :, ::-1][:, :, ::-1],
    "Dask": lambda _: da.from_array(VALUES, chunks=(5, 6, 7)),
    "MlaArray": mlarray_xr.MlaArray,
}


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=list(SUBJECTS))
def test_everything_an_array_can_be(tmp_path: Path, subject: Callable[[Path], Any]) -> None:
    source = tmp_path / "source.mla"
    mlarray_xr.to_mla(labelled(), source)
    report = mlarray_xr.to_mla(subject(source), tmp_path / "copy.mla", **LAYOUT)
    np.testing.assert_array_equal(read(report.path), VALUES)
    assert names_in(tmp_path) == ["copy.mla", "source.mla"]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=stored(max_dims=6, max_side=5))
def test_any_shape_type_and_layout_reads_back(content: Stored, tmp_path: Path) -> None:
    path = tmp_path / "any.mla"
    report = mlarray_xr.to_mla(
        content.values, path, chunks=content.chunks, blocks=content.blocks, mode="w"
    )
    actual = mlarray_xr.MlaArray(path)
    assert (actual.shape, actual.dtype) == (content.values.shape, content.values.dtype)
    np.testing.assert_array_equal(actual[...], content.values)
    if content.values.size:
        assert (actual.chunks, actual.blocks) == (content.chunks, content.blocks)
    assert report.file_bytes == path.stat().st_size


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=shapes(max_dims=6, max_side=6), dtype=dtypes(), patch=st.sampled_from([None, 4]))
def test_planned_layouts_read_back(
    shape: tuple[int, ...], dtype: np.dtype[Any], patch: int | None, tmp_path: Path
) -> None:
    values = values_of(shape, dtype, 0)
    mlarray_xr.to_mla(values, tmp_path / "planned.mla", patch=patch, mode="w")
    np.testing.assert_array_equal(read(tmp_path / "planned.mla"), values)


def test_special_values_keep_their_bits(tmp_path: Path) -> None:
    values = np.zeros((40, 40), "f4")
    values[0, :4] = np.array([0x7FC00001, 0xFFC00000, 0x80000000, 0x7F800000], "u4").view("f4")
    values[20:] = np.nan
    path = tmp_path / "nan.mla"
    mlarray_xr.to_mla(values, path, chunks=20, blocks=10)
    np.testing.assert_array_equal(read(path).view("u4"), values.view("u4"))


# The same bytes


def test_bytes_do_not_depend_on_who_computes_them(tmp_path: Path) -> None:
    mlarray_xr.to_mla(VALUES, tmp_path / "0.mla", **LAYOUT)
    expected = (tmp_path / "0.mla").read_bytes()
    lazy = da.from_array(VALUES, chunks=(5, 20, 7))
    mlarray_xr.to_mla(VALUES, tmp_path / "1.mla", **LAYOUT)
    mlarray_xr.to_mla(np.asfortranarray(VALUES), tmp_path / "2.mla", **LAYOUT)
    for number, scheduler in enumerate(("synchronous", "threads", "processes"), 3):
        with dask.config.set(scheduler=scheduler, num_workers=2):
            mlarray_xr.to_mla(lazy, tmp_path / f"{number}.mla", **LAYOUT)
    for number in range(1, 6):
        assert (tmp_path / f"{number}.mla").read_bytes() == expected


def test_bytes_are_the_same_on_a_cluster(tmp_path: Path, cluster: Client) -> None:
    mlarray_xr.to_mla(VALUES, tmp_path / "local.mla", **LAYOUT)
    expected = (tmp_path / "local.mla").read_bytes()
    lazy = da.from_array(VALUES, chunks=(5, 20, 7))
    for method in ("tasks", "p2p"):
        with dask.config.set({"array.rechunk.method": method}):
            subject = lazy.rechunk((24, 4, 4))
            mlarray_xr.to_mla(subject, tmp_path / f"{method}.mla", **LAYOUT)
        assert (tmp_path / f"{method}.mla").read_bytes() == expected


def test_bytes_do_not_depend_on_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    found = set()
    for threads in (1, 2, 7, 7, 7):
        monkeypatch.setattr(
            "mlarray_xr.storage.ordered_tasks.available_threads", lambda n=threads: n
        )
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", mode="w", **LAYOUT)
        found.add((tmp_path / "a.mla").read_bytes())
    assert len(found) == 1


# Complete or not at all


def test_an_existing_target_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path)
    before, stat = path.read_bytes(), path.stat()
    with pytest.raises(FileExistsError, match=r"a\.mla: the file exists.*mode='w'"):
        mlarray_xr.to_mla(VALUES + 1, path)
    assert path.read_bytes() == before
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
    mlarray_xr.to_mla(VALUES + 1, path, mode="w")
    np.testing.assert_array_equal(read(path), VALUES + 1)


def test_a_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    path.symlink_to(tmp_path / "nowhere.mla")
    with pytest.raises(FileExistsError, match="exists"):
        mlarray_xr.to_mla(VALUES, path)
    assert names_in(tmp_path) == ["a.mla"]


class Gate:
    """Lets a write go on only when it is told to."""

    def __init__(self) -> None:
        self.is_reached, self.may_pass = threading.Event(), threading.Event()

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        self.is_reached.set()
        assert self.may_pass.wait(timeout=60)
        return block


@pytest.mark.parametrize("mode", ["w-", "w"])
def test_a_second_writer_is_refused_and_told_of_the_first(tmp_path: Path, mode: Any) -> None:
    path, gate = tmp_path / "a.mla", Gate()
    ones, meta = da.ones((4, 4), dtype="i2", chunks=4), np.empty((0, 0), "i2")
    subject = da.map_blocks(gate, ones, dtype="i2", name="gate", meta=meta)

    def write() -> None:
        with dask.config.set(scheduler="synchronous"):
            mlarray_xr.to_mla(subject, path, mode=mode, codec="lz4-1")

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(write)
        assert gate.is_reached.wait(timeout=60)
        with pytest.raises(TargetBusy, match=rf"a\.mla: process {os.getpid()} on .* is writing it"):
            mlarray_xr.to_mla(VALUES, path, mode=mode, codec="lz4-1")
        gate.may_pass.set()
        first.result(timeout=60)
    np.testing.assert_array_equal(read(path), np.ones((4, 4), "i2"))
    assert names_in(tmp_path) == ["a.mla"]


def test_of_many_writers_exactly_one_succeeds(tmp_path: Path) -> None:
    path, barrier = tmp_path / "a.mla", threading.Barrier(4)

    def write(value: int) -> int | None:
        barrier.wait(timeout=60)
        try:
            mlarray_xr.to_mla(np.full((4, 4), value, "i2"), path)
        except FileExistsError:
            return None
        return value

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            (winner,) = {value for value in pool.map(write, range(4)) if value is not None}
        np.testing.assert_array_equal(read(path), np.full((4, 4), winner, "i2"))
        assert names_in(tmp_path) == ["a.mla"]
        path.unlink()


def fail_late(block: NDArray[Any], block_id: tuple[int, ...] | None = None) -> NDArray[Any]:
    if block_id is not None and block_id[0] == 2:
        msg = "the source failed"
        raise RuntimeError(msg)
    return block


class Brittle:
    """A lazy array whose last third cannot be read."""

    shape, dtype, ndim, size = (24, 20, 18), np.dtype("i2"), 3, 24 * 20 * 18

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        if key[0].stop > 16:
            msg = "the source failed"
            raise RuntimeError(msg)
        return VALUES[key]


def failing_write(path: Path, *, mode: Any, scheduler: str | None) -> None:
    subject = da.from_array(VALUES, chunks=(8, 20, 18)).map_blocks(fail_late, dtype="i2")
    with dask.config.set(scheduler=scheduler):
        mlarray_xr.to_mla(subject, path, mode=mode, **LAYOUT)


@pytest.mark.parametrize("mode", ["w-", "w"])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_a_failing_task_leaves_nothing(tmp_path: Path, scheduler: str, mode: str) -> None:
    with pytest.raises(RuntimeError, match="the source failed"):
        failing_write(tmp_path / "a.mla", mode=mode, scheduler=scheduler)
    assert names_in(tmp_path) == []


def test_a_failing_task_on_a_cluster_leaves_nothing(tmp_path: Path, cluster: Client) -> None:
    with pytest.raises(RuntimeError, match="the source failed"):
        failing_write(tmp_path / "a.mla", mode="w-", scheduler=None)
    assert names_in(tmp_path) == []


def test_a_failing_task_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path)
    with pytest.raises(RuntimeError, match="the source failed"):
        failing_write(path, mode="w", scheduler="synchronous")
    np.testing.assert_array_equal(read(path), VALUES)
    assert names_in(tmp_path) == ["a.mla"]


def test_values_that_fail_midway_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    with pytest.raises(RuntimeError, match="the source failed"):
        mlarray_xr.to_mla(Brittle(), tmp_path / "a.mla", **LAYOUT)
    assert names_in(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlarray_xr.storage.publication.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("chunks", [None, {}, {"z": 8, "y": 20, "x": 18}])
@pytest.mark.filterwarnings("ignore:The specified chunks:UserWarning")
def test_overwriting_the_file_that_is_read(tmp_path: Path, chunks: Any) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(labelled(), path, **LAYOUT)
    old = xr.open_dataset(path, chunks=chunks)
    mlarray_xr.to_mla(old["image"] * 2, path, mode="w")
    np.testing.assert_array_equal(read(path), VALUES * 2)
    again = xr.open_dataset(path, chunks=chunks)["image"]
    mlarray_xr.to_mla(again, path, mode="w")
    np.testing.assert_array_equal(read(path), VALUES * 2)
    with pytest.raises(SourceChanged, match="changed"):
        again.compute()
    assert names_in(tmp_path) == ["a.mla"]


KILLED = """
import os, signal, sys
import numpy as np, dask.array as da
import mlarray_xr

def die(block, block_id=None):
    if block_id[0] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return block

subject = da.ones((24, 20, 18), dtype="i2", chunks=(8, 20, 18)).map_blocks(die, dtype="i2")
import dask
with dask.config.set(scheduler="synchronous"):
    mlarray_xr.to_mla(subject, sys.argv[1], mode="w", chunks=8)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_writer_leaves_the_target_absent_or_old(tmp_path: Path) -> None:
    fresh, old = tmp_path / "fresh.mla", tmp_path / "old.mla"
    mlarray_xr.to_mla(VALUES, old)
    for path in (fresh, old):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
    assert not fresh.exists()
    np.testing.assert_array_equal(read(old), VALUES)
    assert names_in(tmp_path) == ["fresh.mla.parts", "old.mla", "old.mla.parts"]
    for path in (fresh, old):
        mlarray_xr.to_mla(VALUES, path, mode="w")  # takes over what a dead process left
        np.testing.assert_array_equal(read(path), VALUES)
    assert names_in(tmp_path) == ["fresh.mla", "old.mla"]


# What is refused

OBJECTS: dict[str, tuple[Any, str]] = {
    "object": (np.array([1, "a"], object), "type object cannot be written"),
    "structured": (np.zeros(3, [("a", "i4")]), r"type \[\('a', '<i4'\)\] cannot be written"),
    "StringDType": (np.array(["a"], np.dtypes.StringDType()), "cannot be written"),
    "None": (None, "type object cannot be written"),
    "mapping": ({"a": 1}, "type object cannot be written"),
    "text": ("other.mla", "an array is needed.*convert"),
    "masked": (np.ma.masked_array([1, 2], [True, False]), r"masked array.*filled"),
    "no variable": (xr.Dataset(), "without variables"),
    "Dask of objects": (da.from_array(np.array([1, "a"], object), chunks=1), "cannot be written"),
    "masked Dask": (da.ma.masked_equal(da.zeros(4, dtype="i4"), 0), r"masked array.*filled"),
    "unknown extents": (da.arange(9)[da.arange(9) > 3], "compute_chunk_sizes"),
}


@pytest.mark.parametrize(("subject", "message"), OBJECTS.values(), ids=list(OBJECTS))
def test_objects_that_no_file_can_hold(tmp_path: Path, subject: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        mlarray_xr.to_mla(subject, tmp_path / "a.mla")
    assert names_in(tmp_path) == []


def test_long_elements_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="1200 bytes cannot be stored"):
        mlarray_xr.to_mla(np.zeros(3, "U300"), tmp_path / "a.mla")
    mlarray_xr.to_mla(np.full(3, "b" * 63, "U63"), tmp_path / "a.mla")
    assert read(tmp_path / "a.mla")[2] == "b" * 63


@pytest.mark.parametrize("wrong", [lambda b: b.astype("f8"), lambda b: b[:1]])
def test_tasks_that_break_their_word_are_refused(tmp_path: Path, wrong: Any) -> None:
    subject = da.zeros((4, 4), dtype="i4", chunks=2).map_blocks(wrong, dtype="i4")
    with pytest.raises(ConversionError, match="for box"):
        mlarray_xr.to_mla(subject, tmp_path / "a.mla")
    assert names_in(tmp_path) == []


TARGETS: dict[str, tuple[str, type[Exception], str]] = {
    "suffix": ("a.zarr", ConversionError, r"a\.zarr: the name must end in '\.mla'"),
    "upper case": ("a.MLA", ConversionError, "must end in"),
    "no suffix": ("mla", ConversionError, "must end in"),
    "another host": ("file://other/a.mla", SourceError, "names the host 'other'"),
    "unknown protocol": ("gopher://host/a.mla", SourceError, "knows no protocol 'gopher'"),
    "missing folder": ("none/a.mla", FileNotFoundError, r"none/a\.mla: the folder does not exist"),
}


@pytest.mark.parametrize(("name", "kind", "message"), TARGETS.values(), ids=list(TARGETS))
def test_targets_that_are_refused(
    tmp_path: Path, name: str, kind: type[Exception], message: str
) -> None:
    target = name if "://" in name else str(tmp_path / name)
    with pytest.raises(kind, match=message):
        mlarray_xr.to_mla(VALUES, target)
    assert names_in(tmp_path) == []


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.mla").mkdir()
    with pytest.raises(FileExistsError, match="exists"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla")
    with pytest.raises(IsADirectoryError, match="a folder has this name"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", mode="w")
    assert names_in(tmp_path) == ["a.mla"]


def test_wrong_modes_and_codecs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="modes are 'w-'"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", mode="a")  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match="codec 'gzip'"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", codec="gzip-3")
    with pytest.raises(LayoutError, match="exclude each other"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", chunks=4, patch=4)
    with pytest.raises(LayoutError, match="without chunks"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", blocks=4)
    with pytest.raises(TypeError, match="unexpected keyword"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", chunk=4)  # type: ignore[call-arg]
    assert names_in(tmp_path) == []


# Targets, layout, codec and report


def test_forms_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    long = "n" * (255 - len(".mla")) + ".mla"
    for target, name in (
        ("relative.mla", "relative.mla"),
        ("~/home.mla", "home.mla"),
        (Path("path.mla"), "path.mla"),
        (os.fsencode(tmp_path / "bytes.mla"), "bytes.mla"),
        (long, long),
    ):
        report = mlarray_xr.to_mla(VALUES, target)  # type: ignore[arg-type]
        assert report.path == str(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name), VALUES)


def test_the_report_tells_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    report = mlarray_xr.to_mla(VALUES, path, codec="zstd-3-bitshuffle", **LAYOUT)
    assert report.path == str(path)
    assert (report.shape, report.dtype) == (VALUES.shape, "int16")
    assert (report.nbytes, report.file_bytes) == (VALUES.nbytes, path.stat().st_size)
    assert report.n_chunks == 12
    assert report.seconds > 0
    assert (report.layout.chunks, report.layout.blocks) == (LAYOUT["chunks"], LAYOUT["blocks"])
    assert report.codec == Codec(name="zstd", level=3, filter="bitshuffle")
    assert report.ratio == VALUES.nbytes / path.stat().st_size
    for part in (str(path), "int16 (24, 20, 18)", "12 chunks (8, 10, 9)", "zstd-3-bitshuffle"):
        assert part in str(report)


@pytest.mark.parametrize(
    "codec", ["blosclz-5", "lz4-1", "lz4hc-9-none", "zlib-6", "zstd-1-bitshuffle"]
)
def test_codecs(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, codec=codec, **LAYOUT)
    info = mlarray_xr.MlaArray(path).info()
    chosen = Codec.parse(codec)
    assert (info["codec"], info["level"]) == (chosen.name, chosen.level)
    assert info["filters"] == ([] if chosen.filter == "none" else [chosen.filter])
    np.testing.assert_array_equal(read(path), VALUES)


def test_layouts_by_dimension_name(tmp_path: Path) -> None:
    array = xr.DataArray(np.zeros((3, 6, 8, 10), "i2"), dims=("time", "z", "y", "x"))
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(array, path, chunks={"time": 2, "x": 5})
    assert mlarray_xr.MlaArray(path).chunks == (2, 6, 8, 5)
    mlarray_xr.to_mla(array, path, patch={"z": 4, "y": 4, "x": 4}, mode="w")
    assert mlarray_xr.MlaArray(path).blocks[0] == 1
    own = array.rename(time="my axis")
    mlarray_xr.to_mla(own, path, chunks={"my axis": 1, "y": 4}, mode="w")
    assert mlarray_xr.MlaArray(path).chunks == (1, 6, 4, 10)
    with pytest.raises(LayoutError, match=re.escape("('time', 'z', 'y', 'x')")):
        mlarray_xr.to_mla(array, path, chunks={"t": 2}, mode="w")


@pytest.mark.parametrize(
    ("shape", "labels"),
    [
        ((40, 300, 280), None),
        ((300, 280), None),
        ((5, 60, 70, 80), ("temporal", "spatial_z", "spatial_y", "spatial_x")),
        ((200, 90, 3), ("spatial_y", "spatial_x", "channel")),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "f4"])
def test_the_layout_of_a_release_is_that_of_the_reference(
    tmp_path: Path, shape: tuple[int, ...], labels: tuple[str, ...] | None, dtype: str
) -> None:
    values = np.zeros(shape, dtype)
    mlarray.MLArray(values, axis_labels=labels).save(str(tmp_path / "theirs.mla"))
    theirs = mlarray_xr.MlaArray(tmp_path / "theirs.mla")
    metadata = Metadata(spatial=Spatial(axis_labels=labels))
    spatial = metadata.spatial.spatial_axes(ndim=len(shape))
    layout = plan_layout(shape, dtype, spatial=spatial, strategy="mlarray-0.0.54")
    report = mlarray_xr.to_mla(values, tmp_path / "ours.mla", metadata=metadata, layout=layout)
    assert (report.layout.chunks, report.layout.blocks) == (theirs.chunks, theirs.blocks)
    stored_layout = mlarray_xr.MlaArray(report.path).metadata.blosc2
    assert stored_layout.patch_size == theirs.metadata.blosc2.patch_size


def test_given_metadata_wins(tmp_path: Path) -> None:
    metadata = Metadata(spatial=Spatial(spacing=(3.0, 2.0, 1.0)), source={"modality": "CT"})
    mlarray_xr.to_mla(labelled(), tmp_path / "a.mla", metadata=metadata)
    found = mlarray_xr.MlaArray(tmp_path / "a.mla").metadata
    assert (found.spatial.spacing, found.source) == ((3.0, 2.0, 1.0), {"modality": "CT"})
    assert found.has_array


def test_a_stale_encoding_is_only_a_hint(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mla", tmp_path / "b.mla"
    mlarray_xr.to_mla(labelled(), source, **LAYOUT)
    crop = xr.open_dataset(source)["image"][1:4, :3, :2]
    assert crop.encoding["chunks"] == LAYOUT["chunks"]
    mlarray_xr.to_mla(crop, target)
    np.testing.assert_array_equal(read(target), VALUES[1:4, :3, :2])
    assert mlarray_xr.MlaArray(target).metadata.blosc2.chunk_size == (3, 3, 2)


def test_the_stored_layout_is_the_written_one(tmp_path: Path) -> None:
    source, target = tmp_path / "a.mla", tmp_path / "b.mla"
    mlarray_xr.to_mla(VALUES, source, **LAYOUT)
    mlarray_xr.to_mla(mlarray_xr.MlaArray(source), target, chunks=5)
    stored_layout = mlarray_xr.MlaArray(target).metadata.blosc2
    assert stored_layout.chunk_size == mlarray_xr.MlaArray(target).chunks == (5, 5, 5)


def test_every_source_voxel_is_computed_once(tmp_path: Path) -> None:
    counts: list[tuple[int, ...]] = []

    def count(block: NDArray[Any], block_id: tuple[int, ...] = ()) -> NDArray[Any]:
        counts.append(block_id)
        return block

    subject = da.from_array(VALUES, chunks=(7, 20, 5)).map_blocks(
        count, dtype="i2", meta=np.empty((0, 0, 0), "i2")
    )
    with dask.config.set(scheduler="threads"):
        mlarray_xr.to_mla(subject, tmp_path / "a.mla", codec="lz4-1", **LAYOUT)
    assert len(counts) == len(set(counts)) == subject.npartitions


# A writer, its readers and the file system, in any order


class Writer(RuleBasedStateMachine):
    """The files of a folder against a dict of NumPy arrays."""

    names = st.sampled_from(["a.mla", "b.mla"])
    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model: dict[str, NDArray[Any]] = {}
        self.versions: dict[str, int] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def published(self, name: str, values: NDArray[Any]) -> None:
        self.model[name] = values
        self.versions[name] = self.versions.get(name, 0) + 1

    @rule(name=names, mode=st.sampled_from(["w-", "w"]), data=st.data(), as_dask=st.booleans())
    def write(self, name: str, mode: Any, data: st.DataObject, as_dask: bool) -> None:
        content = data.draw(stored(min_dims=1, max_dims=3, max_side=6))
        subject = da.from_array(content.values, chunks=2) if as_dask else content.values
        keywords = {"chunks": content.chunks, "blocks": content.blocks, "mode": mode}
        with dask.config.set(scheduler="synchronous"):
            if mode == "w-" and name in self.model:
                with pytest.raises(FileExistsError, match="exists"):
                    mlarray_xr.to_mla(subject, self.folder / name, **keywords)
                return
            mlarray_xr.to_mla(subject, self.folder / name, **keywords)
        self.published(name, content.values)

    @rule(name=names)
    def fail(self, name: str) -> None:
        with pytest.raises(RuntimeError, match="the source failed"):
            failing_write(self.folder / name, mode="w", scheduler="synchronous")

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def double(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        source = mlarray_xr.open_mla(self.folder / name)
        mlarray_xr.to_mla(source, self.folder / name, mode="w")
        self.published(name, self.model[name])

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def read_box(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        expected = self.model[name]
        box = data.draw(boxes(expected.shape))
        actual = mlarray_xr.MlaArray(self.folder / name).read(box)
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected[tuple(slice(a, b) for a, b in box)])

    @precondition(lambda self: bool(self.model))
    @rule(target=handles, data=st.data(), warm=st.booleans())
    def open(self, data: st.DataObject, warm: bool) -> Any:
        name = data.draw(st.sampled_from(sorted(self.model)))
        array = mlarray_xr.MlaArray(self.folder / name)
        if warm:
            array[...]
        return name, self.versions[name], array, self.model[name]

    @rule(handle=handles)
    def read_through_an_old_handle(self, handle: Any) -> None:
        name, version, array, expected = handle
        if expected.size and (name not in self.model or self.versions[name] != version):
            with pytest.raises(SourceChanged, match=name):
                array[...]
        else:
            np.testing.assert_array_equal(array[...], expected)

    @precondition(lambda self: bool(self.model))
    @rule(data=st.data())
    def move_away(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        (self.folder / name).unlink()
        del self.model[name]
        self.versions[name] += 1

    @invariant()
    def the_folder_holds_what_was_published(self) -> None:
        assert names_in(self.folder) == sorted(self.model)


def test_writers_and_readers_in_any_order() -> None:
    run_state_machine_as_test(Writer, settings=settings(max_examples=40, stateful_step_count=20))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("resume", [True, False])
def test_a_forked_child_that_fails_leaves_the_write_to_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    parent = os.getpid()
    children: list[int] = []

    def fork_once(done: int, total: int) -> None:
        if os.getpid() == parent and done and not children:
            children.append(os.fork())
            if not children[0]:
                raise RuntimeError("the child fails")

    try:
        mlarray_xr.to_mla(
            VALUES, tmp_path / "a.mla", resume=resume, progress=fork_once, codec="lz4-1", **LAYOUT
        )
    finally:
        if os.getpid() != parent:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 3
    np.testing.assert_array_equal(read(tmp_path / "a.mla"), VALUES)
    assert names_in(tmp_path) == ["a.mla"]
