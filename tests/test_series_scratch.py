"""Scratch arrays: zeros on disk, one file for all processes, gone afterwards, whatever happens."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis.extra import numpy as hnp

from mlarray_xr.series import scratch as scratch_module
from mlarray_xr.series.scratch import ScratchArray, scratch
from mlarray_xr.storage.process_identity import this_process
from tests.package_source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

HEX = "0123456789abcdef" * 2
NAME = f"mlarray_xr-scratch-{HEX}"

OWNER = """
import os, sys, time
from mlarray_xr.series.scratch import scratch
with scratch((64, 1024), "f4", folder=sys.argv[1]) as array:
    array[3] = 7
    print(array.path, flush=True)
    time.sleep(60)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def start_owner(folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process, path = start_owner(tmp_path)
    with process:
        try:
            yield process, path
        finally:
            process.kill()


def write_seven(array: ScratchArray, k: int) -> int:
    array[k] = 7
    return int(np.asarray(array).sum())


# --- the array ---------------------------------------------------------------------------------


def test_it_is_zeros_that_take_no_space(tmp_path: Path) -> None:
    with scratch((1 << 10, 1 << 10), "f8", folder=tmp_path) as array:
        found = os.stat(array.path)
        assert (found.st_size, found.st_blocks) == (8 << 20, 0)
        assert (array.shape, array.dtype, array.ndim, array.size, array.nbytes, len(array)) == (
            (1 << 10, 1 << 10),
            np.dtype("f8"),
            2,
            1 << 20,
            8 << 20,
            1 << 10,
        )
        assert not np.asarray(array).any()
        array[5, ::2] = 1.5
        array[7] += 2
        assert float(array[5].sum()) == 1.5 * 512
        assert np.fromfile(array.path, "f8").sum() == 1.5 * 512 + 2 * 1024
    assert names_in(tmp_path) == []


@given(values=hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
def test_it_holds_what_numpy_holds(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray[Any, Any]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with scratch(values.shape, values.dtype, folder=folder) as array:
        array[...] = values
        assert np.asarray(array).dtype == values.dtype
        assert np.asarray(array).tobytes() == values.tobytes()
        assert array[...].shape == values.shape


def test_an_integer_is_a_shape(tmp_path: Path) -> None:
    with scratch(3, "i2", folder=tmp_path) as array:
        assert array[:].tolist() == [0, 0, 0]


def test_numpy_xarray_and_dask_use_it_without_copies(tmp_path: Path) -> None:
    with scratch((4, 6), "i4", folder=tmp_path) as array:
        labelled = xr.DataArray(np.asarray(array), dims=("time", "x"))
        labelled[2] = 9
        assert array[2].tolist() == [9] * 6
        assert not np.shares_memory(np.array(array, copy=True), np.asarray(array))
        assert np.asarray(array, dtype="f8").dtype == np.float64
        source = da.arange(24, chunks=6).reshape(4, 6)
        for scheduler in ("sync", "threads"):
            array[...] = 0
            with dask.config.set(scheduler=scheduler):
                da.store(source, array)
            assert np.array_equal(array, np.arange(24).reshape(4, 6))


def test_the_default_folder_is_that_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch(2, "u1") as array:
        assert Path(array.path).is_relative_to(tmp_path)
        assert os.stat(os.path.dirname(array.path)).st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("shape", "dtype", "error"),
    [
        ((2, -1), "u1", ValueError),
        (3, object, TypeError),
        (3, "U", TypeError),
        (1.5, "u1", TypeError),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, shape: Any, dtype: Any, error: type[Exception]
) -> None:
    with pytest.raises(error), scratch(shape, dtype, folder=tmp_path):
        pass
    assert names_in(tmp_path) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError, match="nowhere"),
        scratch(3, "u1", folder=tmp_path / "nowhere"),
    ):
        pass


def test_more_than_the_disk_holds_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with (
        pytest.raises(OSError, match=r"1 MiB that are free in .*To fix: folder=") as caught,
        scratch((1 << 20) + 1, "u1", folder=tmp_path),
    ):
        pass
    assert caught.value.errno == errno.ENOSPC
    assert names_in(tmp_path) == []
    with scratch(1 << 20, "u1", folder=tmp_path):
        pass


# --- its end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_it_is_gone_after_any_exception(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(array: ScratchArray) -> None:
        array[0] = 1
        raise error

    with pytest.raises(error), scratch((8, 8), "f4", folder=tmp_path) as array:
        fail(array)
    assert names_in(tmp_path) == []


def test_it_is_gone_when_making_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, mode: int = 0o777) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError), scratch(3, "u1", folder=tmp_path):
        pass
    assert names_in(tmp_path) == []


def test_an_address_says_that_its_block_has_ended(tmp_path: Path) -> None:
    with scratch(4, "u1", folder=tmp_path) as array:
        array[...] = 3
        view = array[1:]
        copied = pickle.loads(pickle.dumps(array))
    for ended in (array, copied):
        for use in (
            lambda a: a[0],
            lambda a: a.__setitem__(0, 1),
            np.asarray,
            len,
        ):
            with pytest.raises(ValueError, match=r"gone: its block has ended\. To fix"):
                use(ended)
        assert repr(ended) == "<ScratchArray shape=(4,) dtype=uint8 4 B>"
    assert view.tolist() == [3, 3, 3]


def test_control_c_removes_it(tmp_path: Path, owner: tuple[subprocess.Popen[str], str]) -> None:
    process, path = owner
    assert os.path.exists(path)
    process.send_signal(signal.SIGINT)
    process.wait(20)
    assert names_in(tmp_path) == []


# --- processes ---------------------------------------------------------------------------------


def test_it_pickles_as_an_address(tmp_path: Path) -> None:
    with scratch((512, 512), "f8", folder=tmp_path) as array:
        array[1, 2] = 5
        data = pickle.dumps(array)
        assert len(data) < 1000
        other = pickle.loads(data)
        other[3, 4] = 6
        assert (other[1, 2], array[3, 4]) == (5, 6)


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_share_the_bytes(tmp_path: Path, method: str) -> None:
    context = multiprocessing.get_context(method)
    with scratch((4, 10), "i8", folder=tmp_path) as array:
        array[0] = 1
        with context.Pool(1) as pool:
            assert pool.apply(write_seven, (array, 2)) == 80
        assert array[2].tolist() == [7] * 10
        array[0] = 0
        assert write_seven(array, 2) == 70
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_leaves_the_block_removes_nothing(tmp_path: Path) -> None:
    with scratch(4, "u1", folder=tmp_path) as array:
        child = -1
        try:
            with scratch(4, "u1", folder=tmp_path) as inner:
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    assert os.path.exists(inner.path)
        finally:
            if child == 0:
                os._exit(0)
        array[0] = 1
    assert names_in(tmp_path) == []


def test_threads_share_it(tmp_path: Path) -> None:
    with scratch((8, 4), "i8", folder=tmp_path) as array:
        threads = [threading.Thread(target=array.__setitem__, args=(k, k)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert array[:, 3].tolist() == [*range(8)]


# --- what is left ------------------------------------------------------------------------------


def test_the_next_call_removes_what_a_killed_owner_left(
    tmp_path: Path, owner: tuple[subprocess.Popen[str], str]
) -> None:
    process, path = owner
    with scratch(3, "u1", folder=tmp_path):
        assert os.path.exists(path)  # the owner lives
        assert len(names_in(tmp_path)) == 4
    process.kill()
    process.wait(20)
    assert len(names_in(tmp_path)) == 2
    with scratch(3, "u1", folder=tmp_path) as array:
        assert names_in(tmp_path) == sorted(
            [Path(array.path).parent.name, Path(array.path).parent.name + ".owner.json"]
        )
    assert names_in(tmp_path) == []


def leave(folder: Path, record: dict[str, Any] | str, *, suffix: str = "") -> None:
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / f"{NAME}.owner.json{suffix}").write_text(text)


def dead() -> dict[str, Any]:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return {**this_process(), "pid": process.pid, "started": "1"}


@pytest.mark.parametrize("has_folder", [True, False])
@pytest.mark.parametrize("suffix", ["", f".{HEX}.tmp"])
def test_every_stage_of_a_death_is_swept(tmp_path: Path, has_folder: bool, suffix: str) -> None:
    leave(tmp_path, dead(), suffix=suffix)
    if has_folder:
        (tmp_path / NAME).mkdir()
        (tmp_path / NAME / "values.raw").write_bytes(b"123")
    with scratch(1, "u1", folder=tmp_path):
        assert len(names_in(tmp_path)) == 2


@pytest.mark.parametrize(
    "record",
    ["", "[]", "{}", {**this_process()}, {**this_process(), "host": "elsewhere", "pid": 1 << 22}],
)
def test_what_may_be_alive_is_left_alone(tmp_path: Path, record: Any) -> None:
    leave(tmp_path, record)
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "values.raw").write_bytes(b"123")
    (tmp_path / "mlarray_xr-scratch-mine").mkdir()
    with scratch(1, "u1", folder=tmp_path):
        pass
    assert names_in(tmp_path) == [NAME, f"{NAME}.owner.json", "mlarray_xr-scratch-mine"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_links_are_not_followed(tmp_path: Path) -> None:
    """Anybody may leave names in a folder for temporary files."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "values.raw").write_bytes(b"precious")
    folder = tmp_path / "tmp"
    folder.mkdir()
    leave(folder, dead())
    (folder / NAME).symlink_to(victim)
    with scratch(1, "u1", folder=folder):
        pass
    assert (victim / "values.raw").read_bytes() == b"precious"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no users here")
def test_what_other_users_left_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(tmp_path, dead())
    uid = os.getuid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: uid + 1)
        scratch_module._sweep(str(tmp_path))
    assert names_in(tmp_path) == [f"{NAME}.owner.json"]
    scratch_module._sweep(str(tmp_path))
    assert names_in(tmp_path) == []
