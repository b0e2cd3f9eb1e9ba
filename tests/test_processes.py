"""Threads, forks, spawned workers and pickles: every process reads, none hangs."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest

from mlarray_xr import to_mla
from mlarray_xr.array import MlaArray
from tests.frame_kit import write_b2nd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECONDS = 60
SHAPE = (96, 100, 70)

# Python 3.12 and later warn when a process with threads forks: that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


VALUES = np.cumsum(np.random.default_rng(0).integers(0, 3, SHAPE, np.int32), axis=2, dtype="<i4")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_b2nd(tmp_path / "p.b2nd", VALUES, chunks=(40, 40, 40), blocks=(16, 20, 20))


def check_reads(array: MlaArray, *, seed: int = 0, count: int = 10) -> bool:
    """Read some boxes with several numbers of threads, and compare."""
    own = random.Random(seed)
    for _ in range(count):
        stops = [own.randint(0, n) for n in SHAPE]
        box = [(own.randint(0, stop), stop) for stop in stops]
        expected = VALUES[tuple(slice(*pair) for pair in box)]
        found = array.read(box, threads=own.choice([None, 1, 2, 5]))
        if not np.array_equal(found, expected):
            return False
    return np.array_equal(array[...], VALUES)


def in_fork(action: Callable[[], bool]) -> str:
    """Run in a forked child and say how it ended: right, wrong, hung or the signal."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if action() else 3)
        except BaseException:
            os._exit(4)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "right", 3: "wrong", 4: "raised"}.get(code, f"signal {-code}")
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def read_with_many_threads(array: MlaArray) -> None:
    assert check_reads(array, count=5)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: check_reads(array, seed=seed, count=4), range(8)))


def test_forked_children_read_after_their_parent_has(path: Path) -> None:
    array = MlaArray(path)
    read_with_many_threads(array)
    ended = [in_fork(partial(check_reads, array, seed=seed)) for seed in range(3)]
    assert ended == ["right"] * 3
    assert check_reads(array)


def test_forked_children_read_bytes_in_memory(tmp_path: Path) -> None:
    to_mla(VALUES, tmp_path / "m.mla")
    image = MlaArray((tmp_path / "m.mla").read_bytes())
    read_with_many_threads(image)
    assert in_fork(lambda: check_reads(image)) == "right"
    assert check_reads(image)


def test_forked_children_open_files_of_their_own(path: Path) -> None:
    read_with_many_threads(MlaArray(path))
    assert in_fork(lambda: check_reads(MlaArray(path))) == "right"


def test_children_of_children_read(path: Path) -> None:
    array = MlaArray(path)
    read_with_many_threads(array)

    def child() -> bool:
        return check_reads(array) and in_fork(lambda: check_reads(array)) == "right"

    assert in_fork(child) == "right"


def test_forked_children_read_when_the_parent_used_blosc2_with_threads(path: Path) -> None:
    before = blosc2.set_nthreads(4)
    try:
        opened = blosc2.open(str(path), mode="r")
        np.testing.assert_array_equal(opened[...], VALUES)
        blosc2.compress2(np.zeros(1 << 20), nthreads=4)
        array = MlaArray(path)
        assert in_fork(lambda: check_reads(array)) == "right"
        assert check_reads(array)
        assert in_fork(lambda: check_reads(array)) == "right"
    finally:
        blosc2.set_nthreads(before)


def test_forked_children_decode_whole_chunks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]}
    delta = write_b2nd(tmp_path / "d.b2nd", VALUES, chunks=(40,) * 3, blocks=(20,) * 3, **options)
    array = MlaArray(delta)
    read_with_many_threads(array)
    assert in_fork(lambda: check_reads(array)) == "right"


def test_forks_while_threads_read(path: Path) -> None:
    array, stop = MlaArray(path), threading.Event()
    wrong: list[object] = []

    def hammer(seed: int) -> None:
        while not stop.is_set():
            seed += 1
            try:
                if not check_reads(array, seed=seed, count=2):
                    wrong.append(seed)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(1000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    try:
        ended = [in_fork(lambda: check_reads(array, count=2)) for _ in range(12)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(SECONDS)
    assert ended == ["right"] * 12
    assert wrong == []


def answer(array: MlaArray, channel: Any) -> None:
    """Read in a worker process and send the verdict."""
    channel.send(check_reads(array))
    channel.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_start_method(path: Path, method: str) -> None:
    array = MlaArray(path)
    read_with_many_threads(array)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=answer, args=(array, there))  # type: ignore[attr-defined]
    worker.start()
    there.close()
    try:
        assert here.poll(SECONDS), "the worker hangs"
        assert here.recv() is True
        worker.join(SECONDS)
        assert worker.exitcode == 0
    finally:
        worker.kill()
        worker.join()


def row_sums(array: MlaArray, row: int) -> int:
    return int(array[row].sum())


def test_arrays_travel_to_a_pool_of_processes(path: Path) -> None:
    array = MlaArray(path)
    array[0]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        futures = [pool.submit(row_sums, array, row) for row in range(0, SHAPE[0], 9)]
        found = [future.result(SECONDS) for future in futures]
    assert found == [int(VALUES[row].sum()) for row in range(0, SHAPE[0], 9)]


def test_threads_read_one_array_side_by_side(path: Path) -> None:
    array = MlaArray(path)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda seed: check_reads(array, seed=seed, count=12), range(16)))


def test_threads_read_while_others_close(path: Path) -> None:
    array, stop = MlaArray(path), threading.Event()

    def close_again_and_again() -> None:
        while not stop.is_set():
            array.close()
            time.sleep(0)

    closer = threading.Thread(target=close_again_and_again)
    closer.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda seed: check_reads(array, seed=seed, count=6), range(8)))
    finally:
        stop.set()
        closer.join(SECONDS)


def test_more_reading_threads_than_the_pool_has(path: Path) -> None:
    array = MlaArray(path, threads=4)
    with ThreadPoolExecutor(50) as pool:
        futures = [pool.submit(check_reads, array, seed=seed, count=2) for seed in range(100)]
        assert all(future.result(SECONDS) for future in futures)


def test_threads_share_a_file_that_is_damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    header_len = int.from_bytes(data[11:15], "big")
    data[header_len + 8] ^= 1
    path.write_bytes(data)
    array = MlaArray(path)

    def read(i: int) -> bool:
        if i % 2:
            return np.array_equal(array[80:], VALUES[80:])
        with pytest.raises(ValueError, match="chunk 0 "):
            array.read(((0, 96), (0, 100), (0, 70)), threads=3)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))


def test_errors_of_readers_survive_pickling(path: Path) -> None:
    array = MlaArray(path)
    path.unlink()
    with pytest.raises(OSError, match="Open it again") as caught:
        array[0]
    other = pickle.loads(pickle.dumps(caught.value))
    assert type(other) is type(caught.value)
    assert str(other) == str(caught.value)
