"""Remote arrays in other processes: pickled, spawned, forked, and in the workers of Dask."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest

from mlarray_xr import ReadStats, measure, open_mla, stats
from mlarray_xr.array import MlaArray
from mlarray_xr.errors import SourceChanged, SourceDenied, SourceTimeout
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.transport_obstore import is_unusable_after_fork
from tests.range_server import Faults, RangeServer
from tests.remote_kit import VOLUME, settings, volume_frame, with_block_index
from tests.s3_server import S3Server, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

SECONDS = 60
PLAIN, INDEXED = "plain.b2nd", "indexed.b2nd"
SECRETS = {"headers": {"Authorization": "Bearer t0ken-of-mine"}}

# Python 3.12 and later warn when a process with threads forks: that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")


@pytest.fixture(scope="module")
def running() -> Iterator[RangeServer]:
    frame = volume_frame()
    with RangeServer({PLAIN: frame, INDEXED: with_block_index(frame)}) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> Iterator[RangeServer]:
    with settings():
        running.faults, running.etags = Faults(), "strong"
        running.reset_counts()
        yield running


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server({PLAIN: volume_frame()}) as running:
        yield running


def reads_right(array: MlaArray) -> bool:
    """Read a box with two threads, and then everything."""
    found = array.read([(10, 50), (3, 71), (30, 34)], threads=2)
    return np.array_equal(found, VOLUME[10:50, 3:71, 30:34]) and np.array_equal(array[...], VOLUME)


def in_fork(action: Callable[[], bool]) -> str:
    """Run in a forked child and say how it ended: right, wrong, raised, hung or the signal."""
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


# --- pickles --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PLAIN, INDEXED])
def test_pickles_are_small_and_lazy(server: RangeServer, name: str) -> None:
    array = MlaArray(server.url(name), threads=2, storage_options=SECRETS)
    assert reads_right(array)
    data = pickle.dumps(array)
    assert len(data) < 2000
    with settings():
        server.reset_counts()
        other = pickle.loads(data)
        assert (other.shape, other.dtype, other.chunks, other.blocks, other.threads) == (
            array.shape, array.dtype, array.chunks, array.blocks, 2
        )  # fmt: skip
        assert other.__dask_tokenize__() == array.__dask_tokenize__()
        assert server.counts().requests == 0
        assert reads_right(other)
        assert server.counts().requests >= 2 + 8
        headers = [one.headers.get("authorization") for one in server.counts().log]
        assert set(headers) == {"Bearer t0ken-of-mine"}
        assert other.metadata.to_dict() == array.metadata.to_dict()


def test_nothing_shows_secrets(server: RangeServer) -> None:
    url = server.url(PLAIN).replace("http://", "http://me:pa55word@") + "?sig=5ecret"
    array = MlaArray(url, storage_options=SECRETS)
    source = array._source
    assert isinstance(source, RemoteSource)
    shown = [
        array, array.path, array.info(), array.stats(), source, source.address,
        source.address.digest, pickle.loads(pickle.dumps(array)),
        open_mla(url, storage_options=SECRETS),
    ]  # fmt: skip
    text = " ".join(map(repr, shown)) + str(array)
    assert PLAIN in text
    assert not [word for word in ("t0ken", "5ecret", "pa55word") if word in text]


def test_unpickled_arrays_notice_a_replaced_object(server: RangeServer) -> None:
    server.put("replaced.b2nd", volume_frame())
    data = pickle.dumps(MlaArray(server.url("replaced.b2nd")))
    server.put("replaced.b2nd", volume_frame(VOLUME[::-1]))
    with settings(), pytest.raises(SourceChanged):
        pickle.loads(data)[0, 0, 0]


def test_errors_survive_pickling(server: RangeServer) -> None:
    server.faults = Faults(deny=403)
    with pytest.raises(SourceDenied) as denied:
        MlaArray(server.url(PLAIN))
    server.faults = Faults(stall_first=1000)
    with settings(timeout_s=0.2, retries=0), pytest.raises(SourceTimeout) as late:
        MlaArray(server.url(PLAIN))
    for error in (denied.value, late.value):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))


# --- spawn and fork -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spawned() -> Iterator[ProcessPoolExecutor]:
    """Two processes that know nothing of this one."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_spawned_processes_read(server: RangeServer, spawned: ProcessPoolExecutor) -> None:
    arrays = [MlaArray(server.url(name)) for name in (PLAIN, INDEXED)]
    assert all(map(reads_right, arrays))
    assert list(spawned.map(reads_right, arrays, timeout=SECONDS)) == [True, True]


def test_processes_of_a_fork_server_read(server: RangeServer) -> None:
    array = MlaArray(server.url(PLAIN))
    assert reads_right(array)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        assert pool.submit(reads_right, array).result(SECONDS)


def test_a_pool_of_forked_workers_reads(server: RangeServer) -> None:
    array = MlaArray(server.url(PLAIN))
    assert reads_right(array)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(reads_right, [array] * 4).get(SECONDS) == [True] * 4


@pytest.mark.parametrize("etags", ["strong", "weak", "none"])
@pytest.mark.parametrize("name", [PLAIN, INDEXED])
def test_forked_children_read_after_their_parent_has(
    server: RangeServer, name: str, etags: Any
) -> None:
    server.etags = etags
    array = MlaArray(server.url(name))
    assert reads_right(array)

    def child() -> bool:
        return is_unusable_after_fork() and reads_right(array)

    assert [in_fork(child) for _ in range(2)] == ["right", "right"]
    assert reads_right(array)


def test_forked_children_open_for_themselves(server: RangeServer) -> None:
    assert reads_right(MlaArray(server.url(PLAIN)))

    def child() -> bool:
        array = MlaArray(server.url(INDEXED))
        server_counts = stats()  # of the child alone
        return reads_right(array) and server_counts.requests <= 3 and array.stats().requests > 8

    assert in_fork(child) == "right"


def test_children_of_children_read(server: RangeServer) -> None:
    array = MlaArray(server.url(PLAIN))
    assert reads_right(array)
    assert in_fork(lambda: reads_right(array) and in_fork(lambda: reads_right(array)) == "right")


def test_forked_children_read_with_their_credentials(server: RangeServer) -> None:
    array = MlaArray(server.url(PLAIN), storage_options=SECRETS)
    assert reads_right(array)
    server.reset_counts()
    assert in_fork(partial(reads_right, array)) == "right"
    headers = {one.headers.get("authorization") for one in server.counts().log}
    assert headers == {"Bearer t0ken-of-mine"}


def test_forked_children_read_from_s3(s3: S3Server) -> None:
    with settings():
        array = MlaArray(s3.url(PLAIN), storage_options=s3.storage_options)
        assert reads_right(array)
        assert in_fork(partial(reads_right, array)) == "right"


def test_forked_children_notice_a_replaced_object(server: RangeServer) -> None:
    server.put("replaced.b2nd", volume_frame())
    array = MlaArray(server.url("replaced.b2nd"))
    assert reads_right(array)
    server.put("replaced.b2nd", volume_frame(VOLUME[::-1]))

    def child() -> bool:
        try:
            reads_right(array)
        except SourceChanged:
            return True
        return False

    assert in_fork(child) == "right"


def test_forks_while_threads_read(server: RangeServer) -> None:
    array, stop = MlaArray(server.url(PLAIN)), threading.Event()
    wrong: list[object] = []

    def hammer() -> None:
        while not stop.is_set():
            try:
                if not reads_right(array):
                    wrong.append("values")
            except BaseException as error:
                wrong.append(error)

    with settings(cache_bytes=20_000):
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        ended = [in_fork(partial(reads_right, array)) for _ in range(2)]
        stop.set()
        for thread in threads:
            thread.join()
    assert ended == ["right"] * 2
    assert not wrong


# --- Dask -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [PLAIN, INDEXED])
def test_threads_of_dask_read_every_chunk_once(server: RangeServer, name: str) -> None:
    image = open_mla(server.url(name), chunks={})
    server.reset_counts()
    with measure() as measured:
        found = image.data.compute(scheduler="threads", num_workers=4)
    np.testing.assert_array_equal(found, VOLUME)
    counts = server.counts()
    assert counts.requests == measured.stats.requests <= 8 + 2
    assert counts.bytes_sent == measured.stats.bytes_fetched
    assert measured.stats.bytes_useful == VOLUME.nbytes


def read_measured(array: MlaArray, start: int) -> tuple[int, ReadStats]:
    """Read some planes and say what this process requested meanwhile."""
    with measure() as measured:
        total = int(array[start : start + 20].sum())
    return total, measured.stats


def test_measurements_of_processes_add_up(
    server: RangeServer, spawned: ProcessPoolExecutor
) -> None:
    array = MlaArray(server.url(INDEXED))
    server.reset_counts()
    answers = list(spawned.map(partial(read_measured, array), range(0, 80, 20)))
    assert sum(total for total, _ in answers) == VOLUME.sum()
    merged = sum((found for _, found in answers), ReadStats())
    assert merged.requests == server.counts().requests
    assert merged.bytes_fetched == server.counts().bytes_sent
    assert merged.bytes_useful == VOLUME.nbytes
    assert merged.to_plain()["requests"] == merged.requests


def test_workers_of_a_cluster_read_and_their_counts_merge(
    server: RangeServer, cluster: Client
) -> None:
    image = open_mla(server.url(PLAIN), chunks={})
    assert isinstance(image.data, da.Array)
    before = sum(cluster.run(stats).values(), ReadStats())
    server.reset_counts()
    np.testing.assert_array_equal(image.compute().values, VOLUME)
    after = sum(cluster.run(stats).values(), ReadStats())
    counts = server.counts()
    assert counts.requests >= 8
    assert after.requests - before.requests == counts.requests
    assert after.bytes_fetched - before.bytes_fetched == counts.bytes_sent
    assert after.bytes_useful - before.bytes_useful == VOLUME.nbytes


def test_errors_of_workers_arrive_as_they_are(server: RangeServer, cluster: Client) -> None:
    server.put("soon.b2nd", volume_frame())
    image = open_mla(server.url("soon.b2nd"), chunks={})
    server.put("soon.b2nd", volume_frame(VOLUME[::-1]))
    with pytest.raises(SourceChanged):
        image.compute()


def test_many_threads_with_arrays_of_their_own(server: RangeServer) -> None:
    data = pickle.dumps(MlaArray(server.url(PLAIN)))
    with settings(), ThreadPoolExecutor(8) as pool:
        server.reset_counts()
        assert all(pool.map(lambda _: reads_right(pickle.loads(data)), range(16)))
        assert server.counts().requests == 2 + 8
