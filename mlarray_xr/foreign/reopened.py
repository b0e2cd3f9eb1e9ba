"""Reopened: what a process reads out of files once, on first use, and never sends to another."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlarray_xr.storage.source import LocalSource

__all__ = ["Reopened", "digest_of"]

T = TypeVar("T")


class Reopened(Generic[T]):
    """A value that every process builds for itself; only the way to build it travels.

    The value must be plain data: a forked child goes on with that of its parent.

    Parameters
    ----------
    build
        Called without arguments, once per process; picklable.
    value
        What `build` would return, when this process has it already.

    Examples
    --------
    >>> import pickle
    >>> sizes = Reopened(dict, value={"x": 3})
    >>> sizes.get(), pickle.loads(pickle.dumps(sizes)).get()
    ({'x': 3}, {})
    """

    __slots__ = ("_build", "_lock", "_pid", "_value")

    def __init__(self, build: Callable[[], T], *, value: T | None = None) -> None:
        self._build = build
        self._value = value
        self._pid, self._lock = os.getpid(), threading.Lock()

    def get(self) -> T:
        """Return the value; threads that ask for it at the same time wait for the first one."""
        if self._value is None:
            if self._pid != os.getpid():
                # A lock that another thread of the parent held would never be released here.
                self._pid, self._lock = os.getpid(), threading.Lock()
            with self._lock:
                if self._value is None:
                    self._value = self._build()
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Reopened, (self._build,)


def digest_of(sources: Iterable[LocalSource]) -> str:
    """Return one short text that changes when any of the files, or their order, does."""
    return hashlib.sha256(repr([source.token for source in sources]).encode()).hexdigest()
