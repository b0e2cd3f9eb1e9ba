"""Faults of servers, networks and objects: recovered from, or a typed error; never other values."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mlarray_xr import open_mla, to_mla, verify
from mlarray_xr.array import MlaArray
from mlarray_xr.errors import (
    ChunkError,
    FormatError,
    MlaError,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceTimeout,
)
from mlarray_xr.storage import retry, transport_obstore
from mlarray_xr.storage.block_cache import block_cache
from mlarray_xr.storage.chunk_load import ChunkLoader
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.ranged import RangedReader
from mlarray_xr.storage.source import source_of
from mlarray_xr.verification import verify_files
from tests.frame_kit import encoded_index, make_frame, offsets_of, replaced, sections_of
from tests.hostile_reader import mutations
from tests.range_server import Faults, RangeServer
from tests.remote_kit import (
    BLOCKS,
    CHUNKS,
    VOLUME,
    fast_retries,
    settings,
    volume_frame,
    with_block_index,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

FRAME, NAME = volume_frame(), "volume.b2nd"
OTHER = volume_frame(VOLUME[::-1])
N_READS = 8
"""Requests of a read of everything: one for every chunk."""
THROUGH_FSSPEC = {"size_policy": "head"}  # an option that obstore has nothing for
SECONDS = 30


@pytest.fixture(scope="module")
def running() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


@pytest.fixture
def server(running: RangeServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    fast_retries(monkeypatch)
    running.faults, running.etags = Faults(), "strong"
    running.put(NAME, FRAME)
    running.reset_counts()
    with settings():
        yield running
        assert_nothing_is_claimed()


@pytest.fixture
def array(server: RangeServer) -> MlaArray:
    """An array that was opened while all was well."""
    opened = MlaArray(server.url(NAME))
    server.reset_counts()
    return opened


def assert_nothing_is_claimed() -> None:
    """What nobody fetches any more, others need not wait for."""
    assert block_cache().in_flight == 0


def assert_reads(array: MlaArray, values: NDArray[Any] = VOLUME) -> None:
    np.testing.assert_array_equal(array[...], values)


def caught_by(array: MlaArray) -> BaseException | None:
    """Read everything, and return the error, if there was one."""
    try:
        assert_reads(array)
    except MlaError as error:
        return error
    return None


# --- what passes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_storm_that_passes_is_waited_for(server: RangeServer, status: int) -> None:
    server.faults = Faults(fail_first=3, fail_status=status)
    array = MlaArray(server.url(NAME))
    server.faults = Faults(fail_first=3, fail_status=status)
    assert_reads(array)
    stats = array.stats()
    assert (stats.requests, stats.retries, stats.errors) == (2 + 8 + 6, 6, 6)


@pytest.mark.parametrize("faults", [Faults(cut_first=3), Faults(cut_every=3), Faults(fail_every=2)])
def test_broken_answers_are_asked_for_again(server: RangeServer, faults: Faults) -> None:
    with settings(retries=10):
        server.faults = faults
        array = MlaArray(server.url(NAME))
        assert_reads(array)
        assert array.stats().retries == server.counts().requests - 2 - 8 > 0


def test_answers_that_do_not_come_are_asked_for_again(server: RangeServer) -> None:
    with settings(timeout_s=0.5, retries=2):
        server.faults = Faults(stall_first=2)
        array = MlaArray(server.url(NAME))
        server.faults = Faults(stall_first=3)
        assert_reads(array)
        assert array.stats().errors == 5


@pytest.mark.parametrize(("options", "heard"), [(THROUGH_FSSPEC, 7.0), ({}, None)])
def test_the_server_says_how_long_to_wait(
    server: RangeServer,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    heard: float | None,
) -> None:
    asked: list[float | None] = []

    def note(tried: int, *, retry_after_s: float | None = None, rng: object = None) -> float:
        asked.append(retry_after_s)
        return 0.0

    monkeypatch.setattr(retry, "plan_delay_s", note)
    array = MlaArray(server.url(NAME), storage_options=options)
    server.faults = Faults(fail_first=2, retry_after_s=7)
    assert_reads(array)
    assert asked == [heard, heard]  # obstore 0.12 does not pass the header on


# --- what does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, None])
@pytest.mark.parametrize(
    "faults",
    [Faults(fail_every=1), Faults(fail_every=1, fail_status=500), Faults(cut_every=1),
     Faults(wrong_range=True), Faults(short_by=7)],
    ids=["503", "500", "cut", "range", "short"],
)  # fmt: skip
def test_what_does_not_pass_is_an_error_that_counts_the_tries(
    server: RangeServer, array: MlaArray, faults: Faults, threads: int | None
) -> None:
    array.threads = threads
    with settings(retries=2):
        server.faults = faults
        with pytest.raises(SourceError, match=r"volume\.b2nd.*\(tried 3 times\).*To fix") as caught:
            assert_reads(array)
        assert not isinstance(caught.value, SourceTimeout | SourceChanged)
        assert_nothing_is_claimed()
        with pytest.raises(SourceError, match=r"\(tried 3 times\)"):
            MlaArray(server.url(NAME))
        server.faults = Faults()
        assert_reads(array)


def test_without_retries_there_is_one_try(server: RangeServer) -> None:
    with settings(retries=0):
        array = MlaArray(server.url(NAME))
        server.faults = Faults(fail_every=1)
        with pytest.raises(SourceError, match=r"\(tried once\)"):
            array[0, 0, 0]
        assert array.stats().retries == 0


def test_slow_servers_time_out(server: RangeServer) -> None:
    for faults in (Faults(stall_first=1000), Faults(bytes_per_second=20_000)):
        with settings(timeout_s=0.3, retries=1):
            server.faults = Faults()
            array = MlaArray(server.url(NAME))
            server.faults = faults
            with pytest.raises(SourceTimeout, match=r"tried 2 times.*timeout_s") as caught:
                array[0, 0, 0]
            assert isinstance(caught.value, TimeoutError)
            with pytest.raises(SourceTimeout):
                MlaArray(server.url(NAME))
            server.faults = Faults()
            assert_reads(array)


def test_more_time_helps_arrays_that_are_open(server: RangeServer, array: MlaArray) -> None:
    from mlarray_xr import configure

    server.faults = Faults(latency_s=0.4)
    configure(timeout_s=0.1, retries=0)
    with pytest.raises(SourceTimeout):
        array[0, 0, 0]
    configure(timeout_s=10)
    assert array[0, 0, 0] == VOLUME[0, 0, 0]


@pytest.mark.parametrize("status", [401, 403])
def test_wrong_credentials_are_told_at_once(
    server: RangeServer, array: MlaArray, status: int
) -> None:
    server.faults = Faults(deny=status)
    with pytest.raises(SourceDenied, match=rf"{status}.*To fix: give credentials") as caught:
        MlaArray(server.url(NAME))
    assert isinstance(caught.value, PermissionError)
    assert server.counts().requests <= 2
    with pytest.raises(SourceDenied):
        array[0, 0, 0]
    assert server.counts().requests <= 3
    server.faults = Faults()
    assert_reads(array)


def test_missing_objects_are_missing(server: RangeServer, array: MlaArray) -> None:
    for opened in (MlaArray, open_mla, verify):
        with pytest.raises(FileNotFoundError, match=r"none\.b2nd"):
            opened(server.url("none.b2nd"))
    server.delete(NAME)
    with pytest.raises(FileNotFoundError, match=r"volume\.b2nd"):
        assert_reads(array)
    server.put(NAME, FRAME)
    assert_reads(array)


def test_nobody_listens(server: RangeServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with settings(retries=1), pytest.raises(SourceError, match=r"tried 2 times"):
        MlaArray(f"http://127.0.0.1:{port}/a.mla")


@pytest.mark.parametrize("content", [b"", b"<html>" * 30, bytes(100_000), FRAME[:-1], FRAME[1:]])
def test_other_objects_are_refused(server: RangeServer, content: bytes) -> None:
    server.put("page.b2nd", content)
    with pytest.raises((FormatError, SourceError), match=r"page\.b2nd"):
        MlaArray(server.url("page.b2nd"))


@pytest.mark.parametrize("options", [{}, THROUGH_FSSPEC], ids=["obstore", "fsspec"])
def test_servers_without_ranges_are_refused_at_once(
    server: RangeServer, options: dict[str, Any]
) -> None:
    large = bytes(32 << 20)
    server.put("large.b2nd", FRAME + large)
    for faults in (Faults(ignore_range=True), Faults(ignore_suffix=True, ignore_range=True)):
        server.reset_counts()
        server.faults = faults
        with pytest.raises(SourceError, match=r"no Range support.*To fix: download"):
            MlaArray(server.url("large.b2nd"), storage_options=options)
        assert server.counts().bytes_sent < len(large) // 2


def test_a_server_that_stops_to_know_ranges_is_refused(
    server: RangeServer, array: MlaArray
) -> None:
    server.faults = Faults(ignore_range=True)
    with pytest.raises(SourceError, match="no Range support"):
        array[0, 0, 0]


def test_errors_show_no_secrets(server: RangeServer) -> None:
    server.faults = Faults(deny=403)
    url = server.url(NAME).replace("http://", "http://me:pa55word@") + "?X-Amz-Signature=5ecret"
    with pytest.raises(SourceError) as caught:
        MlaArray(url, storage_options={"headers": {"Authorization": "Bearer t0ken-t0ken"}})
    text = f"{caught.value} {caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__
    assert "volume.b2nd" in text
    assert not [word for word in ("pa55word", "5ecret", "t0ken") if word in text]


# --- objects that change --------------------------------------------------------------------------


def outcome(server: RangeServer, new: NDArray[Any]) -> str:
    """Open and read everything, in two steps; say whose values those are."""
    try:
        array = MlaArray(server.url(NAME), threads=2)
        found = np.concatenate([array[:30], array[30:]])
    except SourceChanged:
        return "changed"
    if found.shape == VOLUME.shape and np.array_equal(found, VOLUME):
        return "old"
    return "new" if np.array_equal(found, new) else "mixture"


@pytest.mark.parametrize("mode", ["auto", "blocks"])
@pytest.mark.parametrize(
    ("etags", "new"),
    [("strong", VOLUME[::-1]), ("weak", VOLUME[::-1]), ("strong", VOLUME[:41]),
     ("none", VOLUME[:41]), ("none", np.concatenate([VOLUME, VOLUME]))],
    ids=["strong", "weak", "strong, smaller", "smaller", "larger"],
)  # fmt: skip
def test_an_object_replaced_after_every_number_of_requests(
    server: RangeServer, etags: Any, new: NDArray[Any], mode: str
) -> None:
    server.etags = etags
    replacement = volume_frame(new)
    found: list[str] = []
    with settings(block_reads=mode, cache_bytes=0):
        n_requests = 0
        while not found or found[-1] != "old":
            server.put(NAME, FRAME)
            server.faults = Faults(replace_after=n_requests, replacement=replacement)
            found.append(outcome(server, new))
            n_requests += 1
    assert found[0] == "new"
    assert set(found[1:-1]) <= {"changed", "old", "new"}
    assert found.count("changed") >= 8


def test_an_object_of_the_same_size_replaced_where_nothing_but_its_date_tells(
    server: RangeServer,
) -> None:
    server.etags = "none"
    for n_requests in range(1, 2 + N_READS):
        server.put(NAME, FRAME)
        server.faults = Faults(replace_after=n_requests, replacement=OTHER)
        with settings(cache_bytes=0):
            assert outcome(server, VOLUME[::-1]) != "mixture"


def test_a_truncated_object_is_noticed(server: RangeServer, array: MlaArray) -> None:
    for etags in ("strong", "weak", "none"):
        server.put(NAME, FRAME)
        server.etags = etags
        array = MlaArray(server.url(NAME))
        for size in (len(FRAME) - 1, len(FRAME) // 2, 10, 0):
            server.put(NAME, FRAME[:size])
            with pytest.raises(SourceError) as caught:
                array[...]
            assert isinstance(caught.value, SourceChanged), caught.value
        server.put(NAME, FRAME)


@pytest.mark.parametrize("options", [{}, THROUGH_FSSPEC], ids=["obstore", "fsspec"])
def test_opening_again_reads_what_is_there_now(
    server: RangeServer, options: dict[str, Any]
) -> None:
    before = MlaArray(server.url(NAME), storage_options=options)
    assert_reads(before)
    server.put(NAME, OTHER)
    after = MlaArray(server.url(NAME), storage_options=options)
    assert_reads(after, VOLUME[::-1])
    assert before.__dask_tokenize__() != after.__dask_tokenize__()
    assert_reads(after, VOLUME[::-1])
    with settings(cache_bytes=0), pytest.raises(SourceChanged):
        assert_reads(before)


def test_a_dataset_notices_a_replaced_object(server: RangeServer) -> None:
    image = open_mla(server.url(NAME))
    server.put(NAME, OTHER)
    with pytest.raises(SourceChanged):
        image.values  # noqa: B018 - reads


# --- damaged bytes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checked") / "checked.mla"
    to_mla(VOLUME, path, chunks=CHUNKS, blocks=BLOCKS)
    return path.read_bytes()


@given(data=st.data())
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_checksums_notice_every_damaged_byte(
    server: RangeServer, checked: bytes, data: st.DataObject
) -> None:
    header, offsets = read_index(source_of(checked))
    chunk = data.draw(st.integers(0, len(offsets) - 1))
    first = header.header_len + int(offsets[chunk])
    cbytes = int.from_bytes(checked[first + 12 : first + 16], "little")
    offset = first + data.draw(st.integers(0, 40) | st.integers(0, cbytes - 1))
    server.faults = Faults()
    server.put("checked.mla", checked)
    with settings():
        array = MlaArray(server.url("checked.mla"), checksums=True, threads=1)
        assert array[0, 0, 0] == VOLUME[0, 0, 0]
    with settings():
        server.faults = Faults(corrupt=offset)
        # The head of the object comes with it where the byte is in there.
        with pytest.raises(ChunkError, match=f"chunk {chunk} "):
            array[...]
        assert_nothing_is_claimed()
        server.faults = Faults()
        assert_reads(array)


@pytest.mark.parametrize("code", [1, 2, 4])
def test_checksums_notice_chunks_that_became_special(
    server: RangeServer, checked: bytes, code: int
) -> None:
    sections = sections_of(checked)
    offsets = offsets_of(sections)
    offsets[3] = (code - 128) << 56
    frame = sections.with_index(encoded_index(offsets)).joined()
    server.put("special.mla", frame)
    for address in (frame, server.url("special.mla")):
        array = MlaArray(address, checksums=True)
        with pytest.raises(ChunkError, match="chunk 3 "):
            array[...]


@given(offset=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_with_checksums_no_damage_gives_other_values(
    server: RangeServer, checked: bytes, offset: float, bit: int
) -> None:
    header, _ = read_index(source_of(checked))
    # Anywhere but in the chunks, of which another test takes every byte.
    places = [*range(header.header_len), *range(header.index_start, len(checked))]
    place = places[int(offset * len(places))]
    damaged = replaced(checked, place, bytes([checked[place] ^ 1 << bit]))
    server.faults = Faults()
    server.put("damaged.mla", damaged)
    with settings(), contextlib.suppress(MlaError):
        array = MlaArray(server.url("damaged.mla"), checksums=True)
        found = array[...]
        assert found.dtype == VOLUME.dtype
        np.testing.assert_array_equal(found, VOLUME)


def read_damaged(connection: Any) -> None:
    """Read many damaged objects, and send how that ended; runs in a process of its own."""
    with contextlib.suppress(Exception), RangeServer() as server:
        for region in ("header", "payload", "index", "trailer", "anywhere", "truncations"):
            for number, frame in enumerate(small_frames()):
                connection.send(read_mutations(server, frame, region, seed=number))
    connection.close()


def small_frames() -> list[bytes]:
    """Files with raw, special, whole, and plain chunks, with and without a block index."""
    ramp = (np.arange(40 * 30, dtype="<i2") // 11).reshape(40, 30)
    ramp[:10] = 0
    ramp[20:30, :15] = np.random.default_rng(0).integers(0, 9999, (10, 15))
    plain = make_frame(ramp, chunks=(10, 15), blocks=(5, 6))
    delta = make_frame(ramp, chunks=(10, 15), blocks=(5, 6), filters=[3], filters_meta=[0])
    return [plain, with_block_index(plain), with_block_index(delta)]


def read_mutations(
    server: RangeServer, frame: bytes, region: str, *, seed: int
) -> dict[str, int | str]:
    """Read damaged copies of a file, blocks alone and whole chunks."""
    counts: Counter[str] = Counter(region=0)
    count = 40 if region != "truncations" else max(1, len(frame) // 40)
    for number, damaged in enumerate(mutations(frame, seed=seed, count=count, region=region)):
        server.put("damaged.b2nd", damaged)
        with settings(block_reads=("auto", "blocks", "chunks")[number % 3], retries=0):
            try:
                array = MlaArray(server.url("damaged.b2nd"))
                if array.nbytes < 1 << 20:
                    array[...]
                array.read([(0, min(n, 7)) for n in array.shape])
                counts["read"] += 1
            except MlaError:
                counts["refused"] += 1
            except Exception:
                counts[f"{region}: {traceback.format_exc()[-1500:]}"] += 1
    return dict(counts)


def test_damage_anywhere_never_crashes() -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=read_damaged, args=(sender,))
    child.start()
    sender.close()
    total: Counter[str] = Counter()
    with contextlib.suppress(EOFError):
        while receiver.poll(SECONDS):
            total += Counter(receiver.recv())
    child.join(SECONDS)
    assert child.exitcode == 0
    assert set(total) == {"read", "refused"}, "\n".join(map(str, total))
    assert sum(total.values()) >= 6 * 3 * 40
    assert total["refused"] > 200


def test_blocks_that_claim_the_whole_chunk_take_no_more_memory(server: RangeServer) -> None:
    """A table in which all blocks begin at the same place makes each as long as the chunk."""
    header, offsets = read_index(source_of(FRAME))
    damaged, first = FRAME, header.header_len + int(offsets[0])
    start = (32 + 4 * 24).to_bytes(4, "little")
    damaged = replaced(damaged, first + 32, start * 24)
    server.put("claims.b2nd", damaged)
    with settings(block_reads="blocks"):
        array = MlaArray(server.url("claims.b2nd"))
        loaded: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            plain = RangedReader._values

            def note(self: RangedReader, arrived: Any) -> NDArray[Any]:
                loaded.append(sum(map(len, arrived.payloads)))
                return plain(self, arrived)

            patch.setattr(RangedReader, "_values", note)
            with contextlib.suppress(ChunkError):
                array[:40, :36, :32]
        assert loaded[0] <= 24 * (3840 + 1024)


# --- several threads, and reads that are given up -------------------------------------------------


def in_thread(array: MlaArray) -> NDArray[Any]:
    """Read everything in another thread, which may not wait for ever."""
    with ThreadPoolExecutor(1) as pool:
        found: NDArray[Any] = pool.submit(lambda: array[...]).result(SECONDS)
        return found


@pytest.mark.parametrize("threads", [1, 2])
def test_all_threads_get_an_error_and_the_next_read_is_right(
    server: RangeServer, array: MlaArray, threads: int
) -> None:
    array.threads = threads
    with settings(retries=1):
        server.faults = Faults(fail_every=1, latency_s=0.02)
        start = threading.Barrier(8)

        def read(_: int) -> BaseException | None:
            start.wait()
            return caught_by(array)

        with ThreadPoolExecutor(8) as pool:
            errors = list(pool.map(read, range(8)))
        assert all(isinstance(error, SourceError) for error in errors)
        assert_nothing_is_claimed()
        server.faults = Faults()
        np.testing.assert_array_equal(in_thread(array), VOLUME)
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda _: caught_by(array), range(8))) == [None] * 8


@pytest.mark.parametrize("threads", [1, 2])
def test_nobody_waits_for_a_read_that_failed_on_damage(server: RangeServer, threads: int) -> None:
    header, offsets = read_index(source_of(FRAME))
    inside = header.header_len + int(offsets[0]) + 32 + 4 * 24
    server.put("damaged.b2nd", replaced(FRAME, inside, b"\x7f" * 400))
    array = MlaArray(server.url("damaged.b2nd"), threads=threads)
    server.faults = Faults(latency_s=0.01)
    with pytest.raises(ChunkError, match="chunk 0") as caught:
        array[...]
    assert caught.value.__traceback__ is not None  # which holds what the read had begun
    assert_nothing_is_claimed()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: array[41:]).result(SECONDS)
    np.testing.assert_array_equal(found, VOLUME[41:])


@contextlib.contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """Press Ctrl-C some time later, and expect it to end the block."""
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        timer.join()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_read_leaves_nothing_claimed(
    server: RangeServer, array: MlaArray, threads: int
) -> None:
    array.threads = threads
    with settings(max_concurrency=2):
        server.faults = Faults(latency_s=0.3)
        with interrupted_after(0.1):
            array[...]
        assert_nothing_is_claimed()
        sent = server.counts().requests
        assert sent <= 2
        server.faults = Faults()
        np.testing.assert_array_equal(in_thread(array), VOLUME)


def test_those_who_waited_for_an_interrupted_read_read_themselves(
    server: RangeServer, array: MlaArray
) -> None:
    array.threads = 1
    server.faults = Faults(latency_s=0.4)
    with ThreadPoolExecutor(1) as pool:

        def follow() -> NDArray[Any]:
            time.sleep(0.1)
            found: NDArray[Any] = array[...]
            return found

        waiting = pool.submit(follow)
        with interrupted_after(0.25):
            array[...]
        np.testing.assert_array_equal(waiting.result(SECONDS), VOLUME)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(ChunkLoader, "_divided"), (RangedReader, "_values"), (RangedReader, "_place")],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_errors_of_any_kind_leave_nothing_claimed(
    server: RangeServer,
    array: MlaArray,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    error: type[BaseException],
) -> None:
    plain, calls = getattr(kind, method), []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(method)
        if len(calls) == 3:
            raise error
        return plain(*args, **kwargs)

    monkeypatch.setattr(kind, method, fail)
    for threads in (1, 2):
        calls.clear()
        with settings():
            with pytest.raises(error) as caught:
                array.read([(0, n) for n in VOLUME.shape], threads=threads)
            assert caught.value.__traceback__ is not None
            assert_nothing_is_claimed()
            np.testing.assert_array_equal(in_thread(array), VOLUME)


def test_an_interrupt_while_blocks_are_put_into_the_cache(
    server: RangeServer, array: MlaArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, n_kept = block_cache(), []
    plain = cache.fulfil

    def fulfil(key: Any, value: Any, *, n_bytes: int) -> int:
        n_kept.append(key)
        if len(n_kept) == 5:
            raise KeyboardInterrupt
        return plain(key, value, n_bytes=n_bytes)

    monkeypatch.setattr(cache, "fulfil", fulfil)
    with pytest.raises(KeyboardInterrupt):
        array.read([(0, n) for n in VOLUME.shape], threads=1)
    assert_nothing_is_claimed()
    np.testing.assert_array_equal(in_thread(array), VOLUME)


def test_closing_during_a_read_does_not_disturb_it(server: RangeServer, array: MlaArray) -> None:
    server.faults = Faults(latency_s=0.1)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: array[...])
        time.sleep(0.05)
        array.close()
        np.testing.assert_array_equal(reading.result(SECONDS), VOLUME)
    assert_reads(array)


def test_without_validators_opening_again_reads_what_is_there_now(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replacement of the same size, of which nothing but its bytes tells."""
    monkeypatch.setattr(transport_obstore, "dated_validator", lambda _: None)
    server.etags = "none"
    server.put(NAME, FRAME)
    assert_reads(MlaArray(server.url(NAME)))
    server.put(NAME, OTHER)
    assert_reads(MlaArray(server.url(NAME)), VOLUME[::-1])


def test_damage_is_noticed_where_the_file_has_a_block_index(server: RangeServer) -> None:
    data = bytearray(with_block_index(FRAME))
    header, offsets = read_index(source_of(bytes(data)))
    first = header.header_len + int(offsets[0])
    data[first + int.from_bytes(data[first + 12 : first + 16], "little") - 5] ^= 4
    server.put("damaged.b2nd", bytes(data))
    array = MlaArray(server.url("damaged.b2nd"))
    for _ in range(2):
        with pytest.raises(ChunkError, match=r"damaged\.b2nd: chunk 0 is damaged.*To fix"):
            array[...]
    last = tuple(slice(n - 1, n) for n in VOLUME.shape)
    assert (array[last] == VOLUME[last]).all()


def test_no_report_shows_a_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://user:word@127.0.0.1:9/x.mla?signature=SECRET"
    with settings(retries=0):
        (report,) = verify_files([url])
    assert report.state == "unreadable"
    shown = f"{report} {report!r}"
    assert "127.0.0.1" in shown
    assert not any(secret in shown for secret in ("user", "word@", "SECRET"))
