"""Interleaved steps: many short procedures that wait for requests, driven by one thread.

A procedure is a generator that yields futures, goes on when all of them are done, and returns its
result. So a read has many requests under way and needs no thread of its own for each chunk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

__all__ = ["Steps", "interleaved"]

_Result = TypeVar("_Result")
Steps: TypeAlias = Generator[Sequence[Future[Any]], None, _Result]


def interleaved(
    procedures: Iterable[tuple[int, Steps[_Result]]], *, window: int
) -> Generator[_Result]:
    """Run procedures side by side, and yield their results as they come.

    Parameters
    ----------
    procedures
        What each takes of the window, and its steps; taken one by one as there is room.
    window
        How much those that have begun may take together; one of them may take more, alone.

    Raises
    ------
    BaseException
        The first error of a procedure; the others are closed then, as they are when the iterator
        is.
    """
    ready: SimpleQueue[_Run[_Result]] = SimpleQueue()
    running: set[_Run[_Result]] = set()
    finished: deque[_Run[_Result]] = deque()
    remaining = iter(procedures)
    following = next(remaining, None)
    taken = 0
    try:
        while True:
            while following is not None and (not running or taken + following[0] <= window):
                run = _Run(*following)
                running.add(run)
                taken += run.size
                ready.put(run)
                following = next(remaining, None)
            if not running:
                return
            # Whatever can go on does before the caller gets busy with a result: its requests would
            # wait for that.
            while not finished or not ready.empty():
                run = ready.get()
                if run.go_on(ready):
                    finished.append(run)
            run = finished.popleft()
            running.discard(run)
            taken -= run.size
            yield run.result
    finally:
        with ExitStack() as closing:  # all of them, also when one cannot be
            for run in running:
                closing.callback(run.steps.close)


class _Run(Generic[_Result]):
    """A procedure under way."""

    result: _Result

    def __init__(self, size: int, steps: Steps[_Result]) -> None:
        self.size, self.steps = size, steps
        self._lock = threading.Lock()
        self._n_awaited = 0

    def go_on(self, ready: SimpleQueue[_Run[_Result]]) -> bool:
        """Take steps until futures have to be waited for, or, then True, to the end."""
        while True:
            try:
                futures = next(self.steps)
            except StopIteration as end:
                self.result = end.value
                return True
            pending = [future for future in futures if not future.done()]
            if pending:
                self._wait(pending, ready)
                return False

    def _wait(self, pending: list[Future[Any]], ready: SimpleQueue[_Run[_Result]]) -> None:
        """Put itself into the queue once all of some futures are done."""
        self._n_awaited = len(pending)

        def count(_: Future[Any]) -> None:
            with self._lock:
                self._n_awaited -= 1
                is_last = not self._n_awaited
            if is_last:
                ready.put(self)

        for future in pending:
            future.add_done_callback(count)
