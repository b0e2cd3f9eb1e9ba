"""The block cache: least recently used, bounded, every key fetched by one thread at a time."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlarray_xr.errors import SourceError
from mlarray_xr.storage import read_settings
from mlarray_xr.storage.block_cache import (
    _OVERHEAD_BYTES,
    BlockCache,
    FlightAbandoned,
    Key,
    block_cache,
)
from mlarray_xr.storage.read_settings import configure

SECONDS = 30  # after which a thread that waits in vain fails its test
KEYS: list[Key] = [("file", chunk, block) for chunk in (0, 1) for block in (-2, 0, 1, 2)]
SIZES = st.integers(0, 1500)


class AgainstPlainDict(RuleBasedStateMachine):
    """Whatever happens, the cache holds what a plain dict in the order of use would."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[Key, tuple[int, int]] = {}
        self.flights: dict[Key, list[Future[Any]]] = {}
        self.n_values = 0

    @initialize(limit=st.one_of(st.just(0), st.integers(1, 4000)))
    def begin(self, limit: int) -> None:
        self.limit, self.cache = limit, BlockCache(limit_bytes=limit)

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True))
    def claim(self, keys: list[Key]) -> None:
        claim = self.cache.claim(keys)
        assert claim.found == {key: self.kept[key][0] for key in keys if key in self.kept}
        assert [*claim.joined] == [k for k in keys if k not in self.kept and k in self.flights]
        assert claim.owned == [k for k in keys if k not in self.kept and k not in self.flights]
        for key in claim.found:
            self.kept[key] = self.kept.pop(key)
        for key, flight in claim.joined.items():
            assert not flight.done()
            self.flights[key].append(flight)
        self.flights |= {key: [] for key in claim.owned}

    @rule(key=st.sampled_from(KEYS), n_bytes=SIZES)
    def fulfil(self, key: Key, n_bytes: int) -> None:
        """Bring a value that was claimed, or one that came along with others."""
        self.n_values += 1
        evicted = self.cache.fulfil(key, self.n_values, n_bytes=n_bytes)
        cost = n_bytes + _OVERHEAD_BYTES
        self.kept.pop(key, None)
        n_dropped = 0
        if cost <= self.limit:
            while sum(size for _, size in self.kept.values()) + cost > self.limit:
                del self.kept[next(iter(self.kept))]
                n_dropped += 1
            self.kept[key] = (self.n_values, cost)
        assert evicted == n_dropped
        for flight in self.flights.pop(key, []):
            assert flight.result(0) == self.n_values

    @rule(keys=st.lists(st.sampled_from(KEYS), max_size=3))
    def fail(self, keys: list[Key]) -> None:
        error = SourceError("gone")
        self.cache.fail(keys, error)
        for key in keys:
            for flight in self.flights.pop(key, []):
                assert flight.exception(0) is error

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.kept.clear()

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert self.cache.kept_bytes == sum(size for _, size in self.kept.values()) <= self.limit
        assert list(self.cache._kept) == list(self.kept)
        assert self.cache.in_flight == len(self.flights)
        assert not any(flight.done() for joined in self.flights.values() for flight in joined)


TestAgainstPlainDict = AgainstPlainDict.TestCase
TestAgainstPlainDict.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)


def filled(limit_bytes: int, *sizes: int) -> BlockCache:
    cache = BlockCache(limit_bytes=limit_bytes)
    for number, n_bytes in enumerate(sizes):
        cache.fulfil(("f", 0, number), number, n_bytes=n_bytes)
    return cache


def found(cache: BlockCache, *numbers: int) -> list[int]:
    """Return which of some keys are in a cache; give up on the others at once."""
    claim = cache.claim([("f", 0, number) for number in numbers])
    cache.fail(claim.owned, FlightAbandoned("only looked"))
    return list(claim.found.values())


def test_what_was_not_used_for_longest_is_dropped() -> None:
    cache = filled(3 * (100 + _OVERHEAD_BYTES), 100, 100, 100)
    assert found(cache, 0) == [0]
    assert cache.fulfil(("f", 0, 3), 3, n_bytes=100) == 1
    assert found(cache, 0, 1, 2, 3) == [0, 2, 3]


def test_one_large_value_drops_several() -> None:
    cache = filled(3 * (100 + _OVERHEAD_BYTES), 100, 100, 100)
    assert cache.fulfil(("f", 0, 3), 3, n_bytes=500) == 3
    assert found(cache, 0, 1, 2, 3) == [3]


def test_a_value_larger_than_the_cache_goes_to_those_who_wait_and_drops_nothing() -> None:
    cache = filled(1000, 100, 100)
    cache.claim([("f", 0, 9)])
    waiting = cache.claim([("f", 0, 9)]).joined[("f", 0, 9)]
    assert cache.fulfil(("f", 0, 9), b"large", n_bytes=1001) == 0
    assert waiting.result(0) == b"large"
    assert found(cache, 0, 1, 9) == [0, 1]


def test_a_value_is_not_kept_beside_its_larger_successor() -> None:
    cache = filled(1000, 100)
    cache.fulfil(("f", 0, 0), "new", n_bytes=5000)
    assert (found(cache, 0), cache.kept_bytes) == ([], 0)


@pytest.mark.parametrize("value", [None, b"", 0, False])
def test_values_that_are_false_are_values(value: object) -> None:
    cache = BlockCache(limit_bytes=1000)
    cache.fulfil(("f", 0, 0), value, n_bytes=0)
    assert cache.claim([("f", 0, 0)]).found == {("f", 0, 0): value}


def test_the_same_key_twice_in_a_claim_is_owned_once_and_joined() -> None:
    cache = BlockCache(limit_bytes=0)
    claim = cache.claim([("f", 0, 0), ("f", 0, 0)])
    assert claim.owned == [*claim.joined] == [("f", 0, 0)]
    cache.fulfil(("f", 0, 0), "value", n_bytes=1)
    assert claim.joined["f", 0, 0].result(0) == "value"


@pytest.fixture
def _settings_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_settings, "_settings", read_settings.ReadSettings())


@pytest.mark.usefixtures("_settings_are_restored")
def test_the_settings_of_the_process_bound_its_cache() -> None:
    cache = BlockCache()
    configure(cache_bytes=10 * (100 + _OVERHEAD_BYTES))
    assert sum(cache.fulfil(("f", 0, n), n, n_bytes=100) for n in range(10)) == 0
    configure(cache_bytes=2 * (100 + _OVERHEAD_BYTES))
    assert cache.fulfil(("f", 0, 10), 10, n_bytes=100) == 9
    assert found(cache, *range(11)) == [9, 10]
    configure(cache_bytes=0)
    cache.fulfil(("f", 0, 11), 11, n_bytes=0)
    assert cache.kept_bytes == 0
    assert found(cache, *range(12)) == []


def test_the_process_has_one_cache() -> None:
    assert block_cache() is block_cache()


@pytest.mark.parametrize("limit_bytes", [0, 3000, 1 << 20])
def test_of_threads_that_want_the_same_one_fetches(limit_bytes: int) -> None:
    n_threads, keys = 8, [("f", chunk, 0) for chunk in range(20)]
    cache, everybody_claimed = BlockCache(limit_bytes=limit_bytes), threading.Barrier(n_threads)

    def read(number: int) -> tuple[list[Key], dict[Key, Any]]:
        claim = cache.claim(keys[number:] + keys[:number])
        everybody_claimed.wait(SECONDS)
        for key in claim.owned:
            cache.fulfil(key, ("value of", key), n_bytes=200)
        waited = {key: flight.result(SECONDS) for key, flight in claim.joined.items()}
        return claim.owned, waited | {key: ("value of", key) for key in claim.owned}

    with ThreadPoolExecutor(n_threads) as pool:
        reads = list(pool.map(read, range(n_threads)))
    assert sorted(key for owned, _ in reads for key in owned) == sorted(keys)
    assert all(values == {key: ("value of", key) for key in keys} for _, values in reads)
    assert cache.in_flight == 0
    assert cache.kept_bytes <= limit_bytes


def test_an_error_reaches_everybody_who_waits_and_nobody_after() -> None:
    n_threads, key = 6, ("f", 0, 0)
    cache, everybody_claimed = BlockCache(limit_bytes=1000), threading.Barrier(n_threads)

    def read(_: int) -> str:
        claim = cache.claim([key])
        everybody_claimed.wait(SECONDS)
        if claim.owned:
            cache.fail(claim.owned, FileNotFoundError("no such object"))
            return "failed"
        return type(claim.joined[key].exception(SECONDS)).__name__

    with ThreadPoolExecutor(n_threads) as pool:
        outcomes = sorted(pool.map(read, range(n_threads)))
    assert outcomes == ["FileNotFoundError"] * (n_threads - 1) + ["failed"]
    assert cache.in_flight == 0
    assert cache.claim([key]).owned == [key]


def test_many_threads_and_a_small_cache_stay_consistent() -> None:
    n_threads, n_reads = 6, 150
    cache, together = BlockCache(limit_bytes=2000), threading.Barrier(n_threads)
    fetching: set[Key] = set()
    lock = threading.Lock()

    def read(key: Key, number: int) -> None:
        claim = cache.claim([key])
        if claim.owned:
            with lock:
                assert key not in fetching, "two threads fetch the same key"
                fetching.add(key)
            with lock:
                fetching.remove(key)
            if number % 7 == 0:
                cache.fail(claim.owned, FlightAbandoned("interrupted"))
            else:
                cache.fulfil(key, key, n_bytes=150)
            return
        if claim.joined and isinstance(claim.joined[key].exception(SECONDS), FlightAbandoned):
            return
        value = claim.found[key] if claim.found else claim.joined[key].result(SECONDS)
        assert value == key

    def work(thread: int) -> None:
        together.wait(SECONDS)
        for number in range(n_reads):
            read(("f", (number * (thread + 1)) % 11, 0), number)
            assert cache.kept_bytes <= 2000

    with ThreadPoolExecutor(n_threads) as pool:
        for done in [pool.submit(work, thread) for thread in range(n_threads)]:
            done.result(SECONDS)
    assert cache.in_flight == 0
    assert cache.kept_bytes == len(cache._kept) * (150 + _OVERHEAD_BYTES)


FORK = """
import os
from mlarray_xr.storage.block_cache import block_cache
cache = block_cache()
cache.fulfil(("f", 0, 0), b"kept", n_bytes=4)
assert cache.claim([("f", 0, 1)]).owned
with cache._lock:  # as another thread of the parent may hold it
    child = os.fork()
    if not child:
        fresh = block_cache()
        claim = fresh.claim([("f", 0, 0), ("f", 0, 1)])
        is_empty = fresh.kept_bytes == 0 and not claim.found and not claim.joined
        os._exit(0 if is_empty else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert block_cache() is cache and cache.in_flight == 1
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_starts_with_nothing_kept_and_nothing_in_flight() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=SECONDS)
