"""Interleaved steps: results, window, errors, and nothing that goes on when the caller stops."""

from __future__ import annotations

import operator
import threading
from collections.abc import Generator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.storage.interleaved import interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.storage.interleaved import Steps

SECONDS = 30  # after which a thread that waits in vain fails its test


@dataclass
class Watched:
    """Procedures that note what they do."""

    began: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)
    taken: int = 0
    most_taken: int = 0
    most_running: int = 0

    @property
    def running(self) -> int:
        return len(self.began) - len(self.ended) - len(self.closed)

    def steps(self, number: int, size: int, waits: list[list[Future[int]]]) -> Steps[int]:
        """Wait for some futures after others; return the sum of their results."""
        self.began.append(number)
        self.taken += size
        if self.running > 1:
            self.most_taken = max(self.most_taken, self.taken)
        self.most_running = max(self.most_running, self.running)
        try:
            total = 0
            for futures in waits:
                yield futures
                assert all(future.done() for future in futures)
                total += sum(future.result() for future in futures)
            self.ended.append(number)
        except BaseException:
            self.closed.append(number)
            raise
        finally:
            self.taken -= size
        return total


def done(result: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(result)
    return future


def unstarted(watched: Watched, *futures: list[Future[int]]) -> list[tuple[int, Steps[int]]]:
    """Return procedures of size 1 that wait once."""
    return [(1, watched.steps(number, 1, [waits])) for number, waits in enumerate(futures)]


PLANS = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.lists(st.integers(0, 9), max_size=3), max_size=3)),
    max_size=12,
)


@given(PLANS, st.integers(0, 12), st.randoms(use_true_random=False))
def test_all_results_come_and_the_window_is_never_exceeded(
    plans: list[tuple[int, list[list[int]]]], window: int, random: Any
) -> None:
    """Futures are done before they are yielded, or by another thread in any order."""
    watched, pending = Watched(), []
    procedures = []
    for number, (size, plan) in enumerate(plans):
        waits: list[list[Future[int]]] = []
        for values in plan:
            waits.append([done(value) if random.random() < 0.3 else Future() for value in values])
            pairs = zip(waits[-1], values, strict=True)
            pending += [(future, value) for future, value in pairs if not future.done()]
        procedures.append((size, watched.steps(number, size, waits)))
    random.shuffle(pending)

    def answer() -> None:
        for future, value in pending:
            future.set_result(value)

    answering = threading.Thread(target=answer)
    answering.start()
    results = list(interleaved(procedures, window=window))
    answering.join(SECONDS)
    assert sorted(results) == sorted(sum(map(sum, plan)) for _, plan in plans)
    assert sorted(watched.ended) == watched.began == list(range(len(plans)))
    assert watched.most_taken <= window
    assert watched.taken == 0


def test_results_come_in_the_order_in_which_they_are_ready() -> None:
    futures: list[Future[int]] = [Future() for _ in range(3)]
    results = interleaved(unstarted(Watched(), *[[f] for f in futures], [done(3)]), window=9)
    assert next(results) == 3
    for number in (2, 0, 1):
        futures[number].set_result(number)
        assert next(results) == number
    assert list(results) == []


def test_a_procedure_goes_on_only_when_all_it_waits_for_is_there() -> None:
    first, second = Future[int](), Future[int]()
    watched = Watched()
    results = interleaved(unstarted(watched, [first, second], [done(7)]), window=9)
    assert next(results) == 7
    second.set_result(20)
    assert watched.ended == [1]
    first.set_result(10)
    assert next(results) == 30


def test_the_same_future_may_be_awaited_by_many_and_twice() -> None:
    shared: Future[int] = Future()
    procedures = unstarted(Watched(), [shared, shared], [shared], [done(0)])
    results = interleaved(procedures, window=9)
    assert next(results) == 0
    shared.set_result(4)
    assert sorted(results) == [4, 8]


def test_procedures_without_futures_end_at_once() -> None:
    watched = Watched()
    procedures = [(1, watched.steps(n, 1, [[]] * n)) for n in range(3)]
    assert list(interleaved(procedures, window=9)) == [0, 0, 0]
    assert list(interleaved([], window=1)) == []


def test_as_many_run_side_by_side_as_fit_the_window() -> None:
    watched = Watched()
    futures: list[Future[int]] = [Future() for _ in range(5)]
    results = interleaved(unstarted(watched, *[[f] for f in futures]), window=3)
    futures[1].set_result(1)
    assert next(results) == 1
    assert watched.began == [0, 1, 2]
    futures[3].set_result(3)
    assert next(results) == 3
    assert watched.began == [0, 1, 2, 3]
    for number in (0, 2, 4):
        futures[number].set_result(number)
    assert sorted(results) == [0, 2, 4]
    assert watched.most_running == 3


def test_what_is_larger_than_the_window_runs_alone() -> None:
    watched = Watched()
    procedures = [(size, watched.steps(n, size, [[done(n)]])) for n, size in enumerate([1, 9, 1])]
    assert list(interleaved(procedures, window=3)) == [0, 1, 2]
    assert watched.most_running == 1


def test_procedures_are_made_only_when_there_is_room() -> None:
    made: list[int] = []

    def make() -> Iterator[tuple[int, Steps[int]]]:
        for number in range(10):
            made.append(number)
            yield 1, Watched().steps(number, 1, [[done(number)]])

    results = interleaved(make(), window=2)
    assert made == []
    assert next(results) == 0
    assert len(made) == 3
    assert list(results) == list(range(1, 10))


@pytest.mark.parametrize("error", [ValueError("damaged"), KeyboardInterrupt()])
def test_the_first_error_closes_the_others(error: BaseException) -> None:
    watched = Watched()
    failing, endless = Future[int](), Future[int]()
    procedures = unstarted(watched, [endless], [failing], [done(2)], [endless])
    results = interleaved(procedures, window=3)
    assert next(results) == 2
    failing.set_exception(error)
    with pytest.raises(type(error)):
        next(results)
    assert sorted(watched.closed) == [0, 1]
    assert watched.began == [0, 1, 2]
    assert next(results, None) is None
    endless.set_result(0)  # too late: nobody goes on
    assert watched.ended == [2]


def test_an_error_while_closing_leaves_none_of_the_others_open() -> None:
    closed = []

    def stubborn(number: int) -> Steps[int]:
        try:
            yield [Future()]
        finally:
            closed.append(number)
            if number >= 0:
                raise RuntimeError(number)
        return 0

    def failing() -> Steps[int]:
        yield [done(0)]
        raise ValueError

    procedures = [*((1, stubborn(number)) for number in range(5)), (1, failing())]
    with pytest.raises((RuntimeError, ValueError)):
        list(interleaved(procedures, window=9))
    assert sorted(closed) == [0, 1, 2, 3, 4]


def test_an_error_in_making_a_procedure_closes_those_that_run() -> None:
    watched = Watched()

    def make() -> Iterator[tuple[int, Steps[int]]]:
        yield 1, watched.steps(0, 1, [[Future()]])
        yield 1, watched.steps(1, 1, [[done(1)]])
        raise LookupError

    results = interleaved(make(), window=2)
    with pytest.raises(LookupError):
        next(results)
    assert watched.running == 0


def test_a_caller_that_stops_closes_everything() -> None:
    watched = Watched()
    waits = [[done(0)], [Future[int]()], [Future[int](), done(1)], [done(3)]]
    results = interleaved(unstarted(watched, *waits), window=3)
    assert next(results) == 0
    assert isinstance(results, Generator)
    results.close()
    assert sorted(watched.closed) == [1, 2]
    assert watched.taken == 0


def test_a_cancelled_future_is_an_error_and_no_deadlock() -> None:
    watched, cancelled = Watched(), Future[int]()
    results = interleaved(unstarted(watched, [cancelled, Future()], [cancelled]), window=9)
    cancelled.cancel()
    with pytest.raises(CancelledError):
        next(results)
    assert watched.running == 0


def test_many_requests_in_many_threads() -> None:
    watched = Watched()
    with ThreadPoolExecutor(8) as pool:

        def chain(number: int) -> Steps[int]:
            total = 0
            for step in range(3):
                futures = [pool.submit(operator.mul, n, step) for n in range(number % 5)]
                yield futures
                total += sum(future.result() for future in futures)
            return total

        procedures = [(number % 3, chain(number)) for number in range(300)]
        results = list(interleaved(procedures, window=20))
    assert sorted(results) == sorted(3 * sum(range(n % 5)) for n in range(300))
    assert watched.running == 0


def test_two_threads_may_wait_for_what_the_other_fetches() -> None:
    """As two reads that want the same blocks, each bringing what it claimed first."""
    brought: list[Future[int]] = [Future() for _ in range(40)]
    together = threading.Barrier(2)

    def bring(own: int, other: int) -> Steps[int]:
        yield [done(0)]
        brought[own].set_result(own)
        yield [brought[other]]
        return own + brought[other].result()

    def read(parity: int) -> list[int]:
        together.wait(SECONDS)
        procedures = ((1, bring(n + parity, 39 - n - parity)) for n in range(0, 40, 2))
        return list(interleaved(procedures, window=30))

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(read, parity) for parity in (0, 1)]
        results = [future.result(SECONDS) for future in both]
    assert results == [[39] * 20] * 2
