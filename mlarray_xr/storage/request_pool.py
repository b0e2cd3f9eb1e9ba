"""The threads that wait for answers of servers: as many as requests may be under way.

One of the package's few pieces of state: the pool belongs to the process, is made on first use
and forgotten in forked children.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mlarray_xr.storage.read_settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["submit_request"]

_Answer = TypeVar("_Answer")

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0


def submit_request(send: Callable[[], _Answer]) -> Future[_Answer]:
    """Call a function that sends a request in a thread; at most `max_concurrency` run at a time.

    It may wait for its answer but not for other requests, which could then have no thread left.
    """
    global _pool, _pool_size
    wanted = read_settings().max_concurrency
    with _lock:
        if _pool is None or _pool_size != wanted:
            retired, _pool_size = _pool, wanted
            _pool = ThreadPoolExecutor(wanted, thread_name_prefix="mlarray-request")
            if retired is not None:
                retired.shutdown(wait=False)  # what was submitted still runs
        return _pool.submit(send)


def _forget_after_fork() -> None:
    """Start afresh in a forked child: its copy of the pool has no threads."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
