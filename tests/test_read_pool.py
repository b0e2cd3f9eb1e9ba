"""Work shared among threads: every task once, errors raised, nothing running afterwards."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from mlarray_xr.storage import read_pool
from mlarray_xr.storage.read_pool import run_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.mark.parametrize("threads", [1, 2, 7, 10_000])
@pytest.mark.parametrize("n_tasks", [0, 1, 5, 300])
def test_every_task_runs_once(threads: int, n_tasks: int) -> None:
    done: list[int] = []
    run_shared((lambda i=i: done.append(i) for i in range(n_tasks)), threads=threads)  # type: ignore[misc]
    assert sorted(done) == list(range(n_tasks))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_stops_tasks_that_were_not_even_made(threads: int) -> None:
    made = 0

    def fail() -> None:
        raise ValueError("broken")

    def tasks() -> Iterator[Callable[[], None]]:
        nonlocal made
        while made < 1_000_000:
            made += 1
            yield fail

    with pytest.raises(ValueError, match="broken"):
        run_shared(tasks(), threads=threads)
    assert made <= threads


@pytest.mark.parametrize("threads", [1, 4])
def test_an_error_while_making_tasks_is_raised(threads: int) -> None:
    def tasks() -> Iterator[Callable[[], None]]:
        yield lambda: None
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        run_shared(tasks(), threads=threads)


def test_nothing_runs_after_the_call_even_if_threads_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ThreadPoolExecutor(1) as real:

        class Failing:
            def submit(self, work: Callable[[], None]) -> Future[Any]:
                real.submit(work)
                raise RuntimeError("can't start new thread")

        monkeypatch.setattr(read_pool, "_shared_pool", Failing)
        both = threading.Barrier(2)
        finished: list[int] = []

        def task(i: int) -> None:
            both.wait(timeout=30)
            if threading.current_thread() is not threading.main_thread():
                threading.Event().wait(0.05)
            finished.append(i)

        run_shared([lambda: task(0), lambda: task(1)], threads=2)
        assert sorted(finished) == [0, 1]
