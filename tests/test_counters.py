"""Counters of reads: sums, rates, times, threads, and measurements."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.storage.counters import Measurement, ReadStats, Tally, measure, stats, tallies_of

SECONDS = 30  # after which a thread that waits in vain fails its test
NAMES = [field.name for field in fields(ReadStats)]
# Whole numbers, so that sums are exact in any order.
NUMBERS = st.fixed_dictionaries({name: st.integers(0, 1 << 40) for name in NAMES})
STATS = NUMBERS.map(lambda numbers: ReadStats(**numbers))


@given(st.lists(STATS, min_size=1, max_size=6))
def test_numbers_add_up_but_for_the_peak_which_is_the_largest(several: list[ReadStats]) -> None:
    total = sum(several, ReadStats())
    assert total == sum(several)  # begins with 0
    for name in NAMES:
        merge: Any = max if name == "peak_in_flight" else sum
        assert getattr(total, name) == merge(getattr(each, name) for each in several)


@given(STATS, STATS, STATS)
def test_the_order_of_adding_makes_no_difference(a: ReadStats, b: ReadStats, c: ReadStats) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + ReadStats() == a


def test_only_stats_are_added() -> None:
    others: list[Any] = [1, None, "x", {"requests": 1}]
    for other in others:
        with pytest.raises(TypeError):
            ReadStats() + other
        with pytest.raises(TypeError):
            other + ReadStats()


def test_rates() -> None:
    found = ReadStats(
        hits=2, joined=1, misses=1, fetch_seconds=6.0, busy_seconds=1.5,
        bytes_decoded=300, bytes_useful=100,
    )  # fmt: skip
    assert (found.hit_rate, found.parallelism, found.amplification) == (0.75, 4.0, 3.0)
    assert ReadStats(misses=4).hit_rate == 0
    assert ReadStats(hits=4).hit_rate == 1


def test_rates_of_nothing_are_not_numbers() -> None:
    nothing = ReadStats()
    for rate in (nothing.hit_rate, nothing.parallelism, nothing.amplification):
        assert math.isnan(rate)


@given(STATS)
def test_plain_numbers_survive_json(found: ReadStats) -> None:
    plain = json.loads(json.dumps(found.to_plain(), allow_nan=False))
    assert {name: plain[name] for name in NAMES} == {n: getattr(found, n) for n in NAMES}
    for name in set(plain) - set(NAMES):
        rate = getattr(found, name)
        assert plain[name] is None if math.isnan(rate) else plain[name] == rate
    assert set(plain) - set(NAMES) == {"hit_rate", "parallelism", "amplification"}


def test_the_table_names_what_was_counted() -> None:
    table = str(
        ReadStats(requests=7, retries=2, errors=3, bytes_fetched=3 << 20, blocks_decoded=11,
                  bytes_decoded=5 << 20, hits=4, joined=5, misses=6, peak_in_flight=9,
                  fetch_seconds=5.0, busy_seconds=2.0)
    )  # fmt: skip
    for text in (
        "7 (2 retries, 3 errors)", "3 MiB", "5 MiB in 11 blocks",
        "4 cached, 5 joined, 6 fetched", "9 at most, 2.5 in the mean", "2.000 s network",
    ):  # fmt: skip
        assert text in table
    assert str(ReadStats())


def test_a_tally_is_busy_while_any_request_is_under_way() -> None:
    """1 s of one request, 2 s of two, 1 s of one; a pause; 3 s of another."""
    tally = Tally()
    assert tally.snapshot() == ReadStats()
    for begins, at in [(True, 10), (True, 11), (False, 13), (False, 14), (True, 20), (False, 23)]:
        (tally.begin_request if begins else tally.end_request)(at=float(at))
    found = tally.snapshot()
    assert (found.busy_seconds, found.peak_in_flight) == (7.0, 2)
    tally.add(ReadStats(requests=3, fetch_seconds=3.0 + 3.0 + 3.0))
    assert tally.snapshot().parallelism == 9 / 7


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=15))
def test_busy_time_and_peak_are_those_of_the_requests(requests: list[tuple[int, int]]) -> None:
    """The oracle goes through time second by second."""
    tally = Tally()
    spans = [(begin, begin + length) for begin, length in requests]
    # Of what happens at the same time ends come first: requests then follow each other.
    events = sorted([(b, 1) for b, _ in spans] + [(e, 0) for _, e in spans])
    for at, begins in events:
        (tally.begin_request if begins else tally.end_request)(at=float(at))
    under_way = [sum(b <= second < e for b, e in spans) for second in range(80)]
    found = tally.snapshot()
    assert found.busy_seconds == sum(map(bool, under_way))
    assert found.peak_in_flight == max(under_way)


def test_requests_under_way_count_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 16.0)
    tally = Tally()
    tally.begin_request(at=10.0)
    assert tally.snapshot().busy_seconds == 6.0
    tally.end_request(at=12.0)
    assert tally.snapshot().busy_seconds == 2.0


def test_a_request_that_began_before_the_tally_did_is_none_of_its_own() -> None:
    tally = Tally()
    tally.end_request(at=5.0)
    tally.begin_request(at=6.0)
    tally.end_request(at=8.0)
    found = tally.snapshot()
    assert (found.busy_seconds, found.peak_in_flight) == (2.0, 1)


def test_what_others_counted_is_added_as_it_is() -> None:
    tally = Tally()
    tally.begin_request(at=0.0)
    tally.end_request(at=1.0)
    tally.add(ReadStats(requests=2, peak_in_flight=5, busy_seconds=4.0))
    tally.add(ReadStats(requests=1, peak_in_flight=3))
    assert tally.snapshot() == ReadStats(requests=3, peak_in_flight=5, busy_seconds=5.0)


def test_counts_of_many_threads_are_exact() -> None:
    n_threads, n_times = 8, 500
    tally, together = Tally(), threading.Barrier(n_threads)

    def work(thread: int) -> None:
        together.wait(SECONDS)
        for _ in range(n_times):
            tally.begin_request(at=0.0)
            tally.add(ReadStats(requests=1, bytes_fetched=thread, fetch_seconds=0.5))
            tally.end_request(at=0.0)

    with ThreadPoolExecutor(n_threads) as pool:
        list(pool.map(work, range(n_threads)))
    found = tally.snapshot()
    assert found.requests == n_threads * n_times
    assert found.bytes_fetched == n_times * sum(range(n_threads))
    assert found.fetch_seconds == found.requests / 2
    assert found.busy_seconds == 0.0
    assert 1 <= found.peak_in_flight <= n_threads


def count(file: Tally, **numbers: int) -> None:
    """Count as the readers do."""
    for tally in tallies_of(file):
        tally.add(ReadStats(**numbers))


def test_nested_measurements_count_what_happens_in_them() -> None:
    file, other, before = Tally(), Tally(), stats()
    count(file, requests=1)
    with measure() as outer:
        count(file, requests=10)
        with measure() as inner:
            count(other, requests=100)
            assert outer.stats.requests == 110
        count(file, requests=1000)
    count(file, requests=10_000)
    assert (outer.stats.requests, inner.stats.requests) == (1110, 100)
    assert (file.snapshot().requests, other.snapshot().requests) == (11_011, 100)
    assert stats().requests - before.requests == 11_111


def test_measurements_may_overlap_without_being_nested() -> None:
    file, one, two = Tally(), measure(), measure()
    first = one.__enter__()
    count(file, hits=1)
    second = two.__enter__()
    count(file, hits=2)
    one.__exit__(None, None, None)
    count(file, hits=4)
    two.__exit__(None, None, None)
    assert (first.stats.hits, second.stats.hits) == (3, 6)


def test_a_measurement_ends_also_by_an_error() -> None:
    file = Tally()
    with pytest.raises(ValueError, match="within"), measure() as measured:
        raise ValueError("within")
    count(file, hits=1)
    assert measured.stats == ReadStats()
    assert len(tallies_of(file)) == 2


def test_what_is_under_way_when_a_measurement_ends_changes_it_no_more() -> None:
    with measure() as measured:
        tallies = tallies_of(Tally())
        for tally in tallies:
            tally.begin_request(at=time.perf_counter())
    then = measured.stats
    for tally in tallies:
        tally.end_request(at=1e9)
        tally.add(ReadStats(requests=1))
    assert measured.stats == then
    assert then.peak_in_flight == 1


def test_all_threads_are_measured() -> None:
    n_threads, together = 4, threading.Barrier(4)
    file = Tally()

    def work(number: int) -> ReadStats:
        together.wait(SECONDS)
        with measure() as own:
            count(file, misses=1)
            together.wait(SECONDS)  # everybody has counted, nobody has left
        return own.stats

    with measure() as measured, ThreadPoolExecutor(n_threads) as pool:
        own = list(pool.map(work, range(n_threads)))
    assert measured.stats.misses == file.snapshot().misses == n_threads
    assert all(1 <= each.misses <= n_threads for each in own)
    assert len(tallies_of(file)) == 2


def test_a_measurement_shows_its_stats() -> None:
    measurement = Measurement()
    measurement.tally.add(ReadStats(requests=5))
    assert str(measurement) == str(ReadStats(requests=5))


FORK = """
import os
from mlarray_xr.storage import counters
from mlarray_xr.storage.counters import ReadStats, Tally, measure, stats, tallies_of

def count(n):
    for tally in tallies_of(Tally()):
        tally.add(ReadStats(requests=n))

count(1)
child = None
with measure() as measured:
    count(10)
    with counters._lock, counters._process._lock:  # as other threads of the parent may hold them
        child = os.fork()
    if not child:
        is_fresh = stats() == ReadStats()
        count(100)
        is_fresh = is_fresh and stats().requests == 100
if not child:
    os._exit(0 if is_fresh and measured.stats.requests == 10 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (stats().requests, measured.stats.requests) == (11, 10)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_counts_from_zero_and_may_leave_the_measurement_it_was_made_in() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=SECONDS)
