"""The plane cache: slabs that were read lately, bounded in bytes, each read once at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PlaneCache"]

_Values: TypeAlias = "NDArray[np.generic[Any]]"


class PlaneCache:
    """Keeps the arrays that were used last, in any number of threads.

    Parameters
    ----------
    limit_bytes
        Most bytes that are kept. A larger array is handed out and not kept.

    Examples
    --------
    >>> import numpy as np
    >>> cache = PlaneCache(limit_bytes=16)
    >>> cache.get("a", lambda: np.zeros(8, np.uint8)).size, cache.kept_bytes
    (8, 8)
    """

    def __init__(self, *, limit_bytes: int) -> None:
        if limit_bytes < 0:
            msg = f"limit_bytes={limit_bytes}: 0 or more bytes are needed"
            raise ValueError(msg)
        self.limit_bytes = limit_bytes
        self.kept_bytes = 0
        """Bytes of all arrays kept now."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, _Values] = OrderedDict()
        self._coming: dict[Hashable, Future[_Values]] = {}

    def get(self, key: Hashable, read: Callable[[], _Values]) -> _Values:
        """Return the array of a key: a kept one, one that another thread is reading, or a new one.

        What reading raises is raised in every thread that waits for it, and nothing is kept.
        """
        with self._lock:
            values = self._kept.get(key)
            if values is not None:
                self._kept.move_to_end(key)
                return values
            coming = self._coming.get(key)
            is_mine = coming is None
            if coming is None:
                coming = self._coming[key] = Future()
        if is_mine:
            self._read(key, read, coming)
        return coming.result()

    def __contains__(self, key: Hashable) -> bool:
        """Tell whether an array is kept or coming."""
        with self._lock:
            return key in self._kept or key in self._coming

    def clear(self) -> None:
        """Drop every array."""
        with self._lock:
            self._kept.clear()
            self.kept_bytes = 0

    def _read(self, key: Hashable, read: Callable[[], _Values], coming: Future[_Values]) -> None:
        """Read an array for all threads that wait for it, and keep it."""
        try:
            values = read()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            coming.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            if values.nbytes <= self.limit_bytes:
                self._kept[key] = values
                self.kept_bytes += values.nbytes
            while self.kept_bytes > self.limit_bytes:
                self.kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        coming.set_result(values)
