"""A worker that does the newest job: of those that wait meanwhile, older ones are dropped."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LatestWins"]


class LatestWins:
    """Does jobs in a thread of its own, one at a time, the newest next.

    The thread ends when nothing is left to do, so that nothing has to be closed.

    Parameters
    ----------
    name
        Of the thread.

    Examples
    --------
    >>> done = []
    >>> worker = LatestWins(name="example")
    >>> worker.submit(lambda: done.append(1))
    >>> worker.wait()
    >>> done
    [1]
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._next: Callable[[], None] | None = None
        self._is_running = False

    @property
    def is_stale(self) -> bool:
        """Whether a newer job waits for the one that runs now."""
        return self._next is not None

    def submit(self, job: Callable[[], None]) -> None:
        """Do a job as soon as the one that runs is done, unless a newer one comes before.

        Parameters
        ----------
        job
            Handles its own errors.
        """
        with self._changed:
            self._next = job
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name=self._name).start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until nothing is left to do.

        Raises
        ------
        TimeoutError
            When that takes longer.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_running, timeout_s):
                msg = f"{self._name} is at work for more than {timeout_s} s"
                raise TimeoutError(msg)

    def _run(self) -> None:
        """Do jobs until none waits."""
        while True:
            with self._changed:
                job, self._next = self._next, None
                if job is None:
                    self._is_running = False
                    self._changed.notify_all()
                    return
            try:
                job()
            except BaseException:
                # A job that breaks its promise must not stop the one that waits.
                threading.Thread(target=self._run, name=self._name).start()
                raise
