"""`to_mla(mode="r+")`: a region is replaced wholly or not at all, and all around it stays."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import mlarray
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError, SourceChanged, TargetBusy
from mlarray_xr.format.metadata import Metadata, Stats
from mlarray_xr.planning.region import plan_outer_box, plan_region, plan_rim
from mlarray_xr.storage.read_pool import available_threads
from mlarray_xr.storage.staging import claim
from tests.strategies import boxes, dtypes, layouts, shapes, values_of

if TYPE_CHECKING:
    from distributed import Client
    from numpy.typing import NDArray

VALUES = np.random.default_rng(2).integers(0, 500, (24, 20, 18), np.int16)
LAYOUT: dict[str, Any] = {"chunks": (8, 10, 9), "blocks": (4, 5, 9), "codec": "lz4-1"}
BOX = ((3, 17), (0, 20), (5, 12))
REGION = tuple(slice(*pair) for pair in BOX)
NEW = -VALUES[REGION] - 1
CHUNK_BYTES = 8 * 10 * 9 * 2
# One chunk is a part.
MEMORY = 3 * CHUNK_BYTES * (available_threads() + 1)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "image.mla"
    mlarray_xr.to_mla(labelled(), path, **LAYOUT)
    return path


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the chunks of small Dask arrays as they are, as is done with those of 16 MiB."""
    monkeypatch.setattr("mlarray_xr.planning.write_plan._SMALLEST_BYTES", 0)


def labelled(values: Any = VALUES) -> xr.DataArray:
    coords = {"z": 1.0 + 2.5 * np.arange(24), "y": 0.5 * np.arange(20), "x": 0.5 * np.arange(18)}
    attrs = {"scanner": "a"}
    return xr.DataArray(values, dims=("z", "y", "x"), coords=coords, name="image", attrs=attrs)


def replaced(values: NDArray[Any] = VALUES, new: Any = NEW) -> NDArray[Any]:
    wanted = values.copy()
    wanted[REGION] = new
    return wanted


def check(path: Path, wanted: NDArray[Any]) -> None:
    """Compare a file with NumPy, by our reader and by the reference package, and verify it."""
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path)[...], wanted, strict=True)
    np.testing.assert_array_equal(np.asarray(mlarray.MLArray.open(str(path))[...]), wanted)
    assert mlarray_xr.verify(path).state == "ok"
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# What is replaced

WRITERS = ("numpy", "dask", "lazy", "delayed", "resumable", "resumable dask")


@settings(max_examples=60)
@given(data=st.data(), dtype=dtypes(), writer=st.sampled_from(WRITERS))
def test_any_box_of_any_file_is_that_of_numpy(
    data: st.DataObject, dtype: np.dtype[Any], writer: str
) -> None:
    shape = data.draw(shapes(max_dims=4, max_side=8))
    chunks, blocks = data.draw(layouts(shape))
    box = data.draw(boxes(shape))
    old, new = values_of(shape, dtype, 1), values_of(tuple(b - a for a, b in box), dtype, 2)
    wanted = old.copy()
    wanted[tuple(slice(*pair) for pair in box)] = new
    with tempfile.TemporaryDirectory() as folder, dask.config.set(scheduler="synchronous"):
        path = Path(folder, "a.mla")
        mlarray_xr.to_mla(old, path, chunks=chunks, blocks=blocks, codec="lz4-1")
        subject: Any = new
        if "dask" in writer:
            subject = da.from_array(new, chunks=tuple(max(1, n // 2) for n in new.shape))
        elif writer == "lazy":
            mlarray_xr.to_mla(new, Path(folder, "new.mla"), codec="lz4-1")
            subject = mlarray_xr.MlaArray(Path(folder, "new.mla"))
        done = mlarray_xr.to_mla(
            subject,
            path,
            mode="r+",
            region=box,
            compute=writer != "delayed",
            resume="resumable" in writer,
        )
        report = done.compute() if writer == "delayed" else done
        Path(folder, "new.mla").unlink(missing_ok=True)
        check(path, wanted)
        assert report.region == box
        assert report.file_bytes == path.stat().st_size


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes", "cluster"])
def test_every_scheduler_replaces_the_same(target: Path, cluster: Client, scheduler: str) -> None:
    array = da.from_array(NEW, chunks=(5, 20, 3)).map_blocks(np.negative).map_blocks(np.negative)
    with dask.config.set(scheduler=cluster if scheduler == "cluster" else scheduler):
        mlarray_xr.to_mla(array, target, mode="r+", region=REGION)
    check(target, replaced())


def test_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "image.mla"
    metadata = Metadata(has_array=True, extra={"note": "kept"}, stats=Stats(min=0.0, max=500.0))
    mlarray_xr.to_mla(VALUES, path, metadata=metadata, **LAYOUT)
    before = mlarray_xr.MlaArray(path)
    mlarray_xr.to_mla(NEW, path, mode="r+", region=REGION)
    after = mlarray_xr.MlaArray(path)
    assert after.layout == before.layout
    assert after.metadata.extra == {"note": "kept"}
    assert after.metadata.stats == Stats()  # they were those of the old values
    with pytest.raises(SourceChanged):
        before[...]


def test_the_report_tells_what_was_written(target: Path) -> None:
    report = mlarray_xr.to_mla(NEW, target, mode="r+", region=REGION)
    assert (report.n_chunks, report.written_bytes) == (3 * 2 * 2, NEW.nbytes)
    assert "region 3:17, 0:20, 5:12" in str(report)


def test_chunks_that_are_covered_are_not_read(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    plain = mlarray_xr.MlaArray._fill

    def counting(self: Any, box: Any, out: Any, **options: Any) -> None:
        read.append(box)
        plain(self, box, out, **options)

    monkeypatch.setattr("mlarray_xr.array.MlaArray._fill", counting)
    whole = {"z": slice(8, 24)}
    for values in (VALUES[8:], da.from_array(VALUES[8:], chunks=8)):
        mlarray_xr.to_mla(values, target, mode="r+", region=whole)
    assert read == []
    with dask.config.set(scheduler="synchronous"):
        mlarray_xr.to_mla(
            da.ones((1, 20, 18), dtype="i2"), target, mode="r+", region={"z": slice(8, 9)}
        )
    assert {pair for box in read for pair in box[:1]} == {(9, 16)}


def test_a_file_may_be_changed_by_what_is_computed_of_it(target: Path) -> None:
    with dask.config.set(scheduler="threads"):
        array = mlarray_xr.open_mla(target, chunks={})[REGION]
        (-array - 1).astype("int16").mla.to_mla(target, mode="r+", region="auto")
    check(target, replaced())


# Where


def test_coordinates_tell_where(target: Path) -> None:
    part = labelled(replaced())[REGION]
    mlarray_xr.to_mla(part, target, mode="r+", region="auto")
    mlarray_xr.to_mla(part.to_dataset().chunk(), target, mode="r+", region="auto")
    check(target, replaced())


@pytest.mark.parametrize(
    "part",
    [labelled()[:, ::2], labelled().assign_coords(z=np.arange(24.0)), labelled()[::-1]],
    ids=["steps", "elsewhere", "backwards"],
)
def test_coordinates_that_are_no_run_are_refused(target: Path, part: xr.DataArray) -> None:
    with pytest.raises(ConversionError, match=r"region='auto': the coordinates along '[zy]'"):
        mlarray_xr.to_mla(part, target, mode="r+", region="auto")
    check(target, VALUES)


def test_variables_go_to_their_files(tmp_path: Path) -> None:
    folder = tmp_path / "case"
    pair = xr.Dataset({"ct": labelled(), "mask": labelled(VALUES % 2)})
    mlarray_xr.to_mla(pair, folder, **LAYOUT)
    mlarray_xr.to_mla((pair + 1)[{"z": slice(4, 6)}], folder, mode="r+", region={"z": slice(4, 6)})
    wanted = VALUES.copy()
    wanted[4:6] += 1
    np.testing.assert_array_equal(mlarray_xr.MlaArray(folder / "ct.mla")[...], wanted)
    assert sorted(each.name for each in folder.iterdir()) == ["ct.mla", "mask.mla"]


@pytest.mark.parametrize(
    ("region", "error", "words"),
    [
        ({"t": slice(0, 3)}, ValueError, r"region names \['t'\], the file has dimensions"),
        ({"z": slice(0, 24, 2)}, ValueError, "region with step 2"),
        ({"z": slice(20, 30)}, IndexError, r"box 20:30 on axis 0 does not fit the extent 24"),
        ({"z": slice(-4, None)}, IndexError, "negative positions"),
        ((slice(0, 3),), ValueError, "has 1 entries, the file has axes"),
        ({"z": slice(0, 3)}, ValueError, r"shape \(14, 20, 7\) for a region .*z 14 for 0:3, x 7"),
        (None, ValueError, r"for a region of shape \(24, 20, 18\)"),
    ],
)
def test_regions_that_do_not_fit_are_refused(
    target: Path, region: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mlarray_xr.to_mla(NEW, target, mode="r+", region=region)
    check(target, VALUES)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"mode": "w", "region": REGION}, ValueError, "which alone takes a region"),
        ({"mode": "a"}, ValueError, "mode='a'"),
        ({"mode": "r+", "codec": "zstd-1"}, ConversionError, "are those of the file"),
        ({"mode": "r+", "patch": 64}, ConversionError, "leave out"),
        ({"mode": "r+", "chunks": 8}, ConversionError, "leave out"),
        ({"mode": "r+", "region": "auto"}, ConversionError, "needs a DataArray"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    target: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        mlarray_xr.to_mla(VALUES, target, **options)
    check(target, VALUES)


def test_other_dimensions_are_refused(target: Path) -> None:
    with pytest.raises(ConversionError, match=r"array.transpose\('z', 'y', 'x'\)"):
        mlarray_xr.to_mla(labelled().transpose("x", "y", "z"), target, mode="r+")


def test_a_missing_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", mode="r+")
    assert list(tmp_path.iterdir()) == []


# Types


@pytest.mark.parametrize("lazy", [False, True])
def test_values_that_the_type_cannot_hold_are_refused(target: Path, lazy: bool) -> None:
    for values, words in (
        (NEW.astype("f4"), "are not stored as int16"),
        (NEW.astype("i8") + 10**6, "do not fit int16"),
    ):
        subject = da.from_array(values, chunks=7) if lazy else values
        with pytest.raises(ConversionError, match=words):
            mlarray_xr.to_mla(subject, target, mode="r+", region=REGION)
    check(target, VALUES)


@pytest.mark.parametrize("lazy", [False, True])
def test_values_of_another_type_that_fit_are_taken(target: Path, lazy: bool) -> None:
    subject: Any = NEW.astype(">i8")
    subject = da.from_array(subject, chunks=7) if lazy else subject
    mlarray_xr.to_mla(subject, target, mode="r+", region=REGION)
    check(target, replaced())


# Chunks


@pytest.mark.parametrize(
    ("region", "chunks", "words"),
    [
        ({"z": slice(3, 16)}, None, r"region 3:16 along 'z' \(axis 0\) cuts chunks .* span 0:16"),
        ({"z": slice(8, 24)}, (12, 20, 18), r"chunks 0 and 1 .* along 'z' .* meet at 20"),
    ],
)
def test_cut_chunks_can_be_refused(
    target: Path, region: dict[str, slice], chunks: Any, words: str
) -> None:
    values: Any = VALUES[region["z"]]
    values = values if chunks is None else da.from_array(values, chunks=chunks)
    with pytest.raises(LayoutError, match=words):
        mlarray_xr.to_mla(values, target, mode="r+", region=region, align_chunks=False)
    mlarray_xr.to_mla(
        da.from_array(VALUES[8:] + 1, chunks=(8, 20, 18)),
        target,
        mode="r+",
        region={"z": slice(8, None)},
        align_chunks=False,
    )
    check(target, np.concatenate([VALUES[:8], VALUES[8:] + 1]))


# Failures


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("resume", [False, True])
def test_a_failure_leaves_the_file_as_it_was(target: Path, lazy: bool, resume: bool) -> None:
    before = target.read_bytes()
    written: list[Any] = []
    failing = Failing(NEW, fails_at=9, written=written)
    subject: Any = failing
    if lazy:
        whole = da.from_array(NEW, chunks=(5, 5, 7), name="new")
        subject = whole.map_blocks(failing.on_block, dtype="i2", name="failing")
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(RuntimeError, match="lost"):
            write(subject, target, resume=resume)
        assert target.read_bytes() == before
        assert len(list(target.parent.iterdir())) == 1 + resume
        failing.fails_at = 99
        report = write(subject, target, resume=resume)
    assert bool(report.n_resumed_chunks) == resume
    check(target, replaced())


def write(subject: Any, target: Path, *, resume: bool) -> mlarray_xr.WriteReport:
    report: mlarray_xr.WriteReport = mlarray_xr.to_mla(
        subject, target, mode="r+", region=REGION, resume=resume, memory_limit=MEMORY
    )
    return report


class Failing:
    """An array, or a step of one, that fails for a while."""

    def __init__(self, values: NDArray[Any], *, fails_at: int, written: list[Any]) -> None:
        self.values, self.fails_at, self.written = values, fails_at, written
        self.shape, self.dtype = values.shape, values.dtype

    def __dask_tokenize__(self) -> str:
        return "failing"

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self.on_block(self.values[key])

    def on_block(self, block: NDArray[Any]) -> NDArray[Any]:
        if block.size:
            self.written.append(block.shape)
            if len(self.written) >= self.fails_at:
                raise RuntimeError("lost")
        return block


def test_a_file_that_changed_is_not_resumed(target: Path) -> None:
    failing = Failing(NEW, fails_at=1, written=[])
    with pytest.raises(RuntimeError, match="lost"):
        mlarray_xr.to_mla(failing, target, mode="r+", region=REGION, resume=True)
    mlarray_xr.MlaArray(target, mode="r+")[0, 0, 0] = 77
    with pytest.raises(ConversionError, match="holds the beginning of another write: source was"):
        mlarray_xr.to_mla(failing, target, mode="r+", region=REGION, resume=True)


def test_a_file_that_changes_meanwhile_is_not_overwritten(target: Path) -> None:
    other = VALUES + 1
    writing = mlarray_xr.to_mla(da.from_array(NEW), target, mode="r+", region=REGION, compute=False)
    fresh = target.with_name("other.mla")
    mlarray_xr.to_mla(other, fresh, **LAYOUT)
    fresh.replace(target)  # by a program that does not ask whether somebody writes
    with pytest.raises(SourceChanged):
        writing.compute()
    shutil.rmtree(target.with_name("image.mla.parts"))
    check(target, other)


def test_a_second_writer_is_told_of_the_first(target: Path) -> None:
    staging, _ = claim(str(target), {"fingerprint": {}, "parts": []}, resume=False)
    with pytest.raises(TargetBusy, match=r"process \d+ on"):
        mlarray_xr.to_mla(NEW, target, mode="r+", region=REGION)
    staging.remove()
    mlarray_xr.to_mla(NEW, target, mode="r+", region=REGION)
    check(target, replaced())


DIES = """
import os, signal, sys
import dask, dask.array as da, numpy as np
import mlarray_xr

seen = []

def fatal(block):
    seen.append(block.shape)
    if len(seen) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return block

new = da.from_array(np.load(sys.argv[2]), chunks=(5, 5, 7), name="new")
dask.config.set(scheduler="synchronous")
mlarray_xr.to_mla(
    new.map_blocks(fatal, name="fatal", dtype=new.dtype, meta=new._meta), sys.argv[1],
    mode="r+", region={"z": slice(3, 17), "x": slice(5, 12)}, resume=True,
    memory_limit=int(sys.argv[3]),
)
"""


def test_a_killed_write_is_resumed(target: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    saved = tmp_path_factory.mktemp("new") / "new.npy"
    np.save(saved, NEW)
    before = target.read_bytes()
    command = [sys.executable, "-c", DIES, str(target), str(saved), str(MEMORY)]
    died = subprocess.run(command, check=False)
    assert died.returncode == -9
    assert target.read_bytes() == before
    new = da.from_array(NEW, chunks=(5, 5, 7), name="new")
    again = new.map_blocks(np.asarray, name="fatal", dtype=new.dtype)
    report = write(again, target, resume=True)
    assert 0 < report.n_resumed_chunks < report.n_chunks
    check(target, replaced())


def test_progress_counts_the_chunks_of_the_region(target: Path) -> None:
    for values in (NEW, da.from_array(NEW, chunks=5)):
        told: list[tuple[int, int]] = []
        mlarray_xr.to_mla(
            values,
            target,
            mode="r+",
            region=REGION,
            progress=lambda done, total, told=told: told.append((done, total)),
        )
        assert told[-1] == (12, 12)
        assert told == sorted(told)


# Deciding


@given(st.data())
def test_the_rim_joins_a_box_to_the_chunks_around_it(data: st.DataObject) -> None:
    shape = data.draw(shapes(min_dims=1, max_dims=4, min_side=1))
    chunks, _ = data.draw(layouts(shape))
    box = data.draw(boxes(shape))
    outer = plan_outer_box(box, shape=shape, chunks=chunks)
    values = np.arange(np.prod(shape)).reshape(shape)
    joined = values[tuple(slice(*pair) for pair in box)]
    if joined.size:
        for axis, before, after in plan_rim(box, outer):
            pieces = [values[tuple(slice(*p) for p in b)] for b in (before, after) if b is not None]
            order = [*pieces[: before is not None], joined, *pieces[before is not None :]]
            joined = np.concatenate(order, axis=axis)
        np.testing.assert_array_equal(joined, values[tuple(slice(*pair) for pair in outer)])
        for (start, stop), n, chunk in zip(outer, shape, chunks, strict=True):
            assert start % chunk == 0
            assert stop == n or stop % chunk == 0
    assert (
        plan_region(
            box, dims=("a",) * len(shape), shape=shape, values_shape=tuple(b - a for a, b in box)
        )
        == box
    )
