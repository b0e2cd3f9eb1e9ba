"""The threads that share the work of one large read, and how many of them a read may use.

One of the package's few pieces of state: the pool belongs to the process, is made on first use
and forgotten in forked children.
"""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

__all__ = ["available_threads", "check_threads", "run_shared", "sharing", "submit_read"]

Result = TypeVar("Result")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_readers = 0
_is_forked = False


def available_threads() -> int:
    """Return how many threads one read may use when nothing else reads: one per usable CPU.

    1 in a forked child: forked loader workers are themselves the parallelism.
    """
    if _is_forked:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads below 1."""
    if threads is not None and threads < 1:
        msg = f"threads={threads}: at least 1 is needed, or None to share the CPUs"
        raise ValueError(msg)


@contextlib.contextmanager
def sharing() -> Iterator[int]:
    """Count the caller as reading and tell it how many threads it may use.

    Threads are shared among the reads under way, so that Dask tasks or loader threads that read
    side by side do not each start a full set of threads.
    """
    global _readers
    with _lock:
        _readers += 1
        share = max(1, available_threads() // _readers)
    try:
        yield share
    finally:
        with _lock:
            _readers -= 1


def run_shared(tasks: Iterable[Callable[[], None]], *, threads: int) -> None:
    """Run independent tasks, the caller being one of the threads; the first error is raised.

    Parameters
    ----------
    tasks
        Called once each, in order; taken one at a time, so they may be made as they are needed.
    threads
        Threads to use, the caller's included.
    """
    if threads <= 1:
        for task in tasks:
            task()
        return
    work = _SharedWork(tasks)
    helpers: list[Future[None]] = []
    try:
        with contextlib.suppress(RuntimeError):  # no more threads to be had: these must do
            for _ in range(min(threads, _most_threads()) - 1):
                helpers.append(_shared_pool().submit(work.drain))  # noqa: PERF401 - keeps those started
        work.drain()
    finally:
        for helper in helpers:
            helper.cancel()
        work.wait()
    work.raise_error()


def submit_read(read: Callable[[], Result]) -> Future[Result]:
    """Call a function that reads in a thread of the pool; 32 or more run at the same time."""
    return _shared_pool().submit(read)


class _SharedWork:
    """Tasks that several threads take from one after another.

    What counts as finished is the tasks, not the threads: an executor that fails to start a
    thread has queued its work all the same, and another thread may still come to it.
    """

    def __init__(self, tasks: Iterable[Callable[[], None]]) -> None:
        self._waiting = iter(tasks)
        self._turn = threading.Condition()
        self._n_running = 0
        self._error: BaseException | None = None

    def drain(self) -> None:
        """Run tasks until none is left or one has failed; errors are kept for `raise_error`."""
        while (task := self._take()) is not None:
            error: BaseException | None = None
            try:
                task()
            except BaseException as caught:
                error = caught
            with self._turn:
                self._n_running -= 1
                self._stop(error)
                self._turn.notify_all()

    def wait(self) -> None:
        """Return when no task is running; none starts afterwards."""
        with self._turn:
            self._waiting = iter(())
            self._turn.wait_for(lambda: self._n_running == 0)

    def raise_error(self) -> None:
        """Raise the first error of a task, if there was one."""
        if self._error is not None:
            raise self._error

    def _take(self) -> Callable[[], None] | None:
        """Return the next task, counted as running."""
        with self._turn:
            try:
                task = next(self._waiting, None)
            except BaseException as error:
                self._stop(error)
                return None
            self._n_running += task is not None
            return task

    def _stop(self, error: BaseException | None) -> None:
        """Keep the first error, if there is one, and start nothing that is left."""
        if error is not None:
            self._error = self._error or error
            self._waiting = iter(())


def _most_threads() -> int:
    """Return the upper bound of the pool; its threads are started as reads ask for them."""
    return max(32, available_threads())


def _shared_pool() -> ThreadPoolExecutor:
    """Return the process's pool, made on first use."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(_most_threads(), thread_name_prefix="mlarray-read")
        return _pool


def _forget_after_fork() -> None:
    """Start afresh in a forked child: its copy of the pool has no threads."""
    global _lock, _pool, _readers, _is_forked
    _lock, _pool, _readers, _is_forked = threading.Lock(), None, 0, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
