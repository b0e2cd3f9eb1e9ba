"""The handle cache: the readers of this process, bounded, forgotten after a fork.

One of the package's few pieces of state. Arrays hold addresses only; whatever is open is here.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.ranged import RangedReader
from mlarray_xr.storage.remote_file import close_remote
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from mlarray_xr.storage.remote_source import Source

__all__ = [
    "Reader",
    "close_reader",
    "most_open_files",
    "open_readers",
    "opened_reader",
    "reader_of",
]

_FEWEST_OPEN, _MOST_OPEN = 128, 1024
_lock = threading.Lock()
Reader: TypeAlias = MappedReader | RangedReader
# A source, and whether its readers compare chunks with their checksums.
_Key: TypeAlias = "tuple[Source, bool]"
_open: OrderedDict[_Key, Reader] = OrderedDict()
_in_memory: weakref.WeakValueDictionary[_Key, Reader] = weakref.WeakValueDictionary()


def most_open_files() -> int:
    """Return how many files may stay open: a quarter of what the system allows, 128 to 1024.

    Patches drawn from more files than that open one nearly every time, which costs as much as
    reading two of 64 cubed.
    """
    try:
        import resource
    except ImportError:  # Windows
        return _FEWEST_OPEN
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if soft < 0 else min(max(soft // 4, _FEWEST_OPEN), _MOST_OPEN)


def reader_of(source: Source, *, check: bool = False) -> Reader:
    """Return this process's reader of a source, opening it when it is not open.

    At most `most_open_files` files stay open, the least recently used one is dropped first; a read
    under way keeps its reader. Readers of bytes in memory live as long as somebody holds them.

    Parameters
    ----------
    source
        What to read; pinned.
    check
        Whether the reader compares chunks with their checksums. Such readers are kept apart.
    """
    cache: MutableMapping[_Key, Reader]
    cache = _in_memory if isinstance(source, BytesSource) else _open
    key = (source, check)
    with _lock:
        reader = cache.get(key)
    if reader is None:
        # Outside the lock: opening a file on a slow file system must not stop other reads.
        fresh: Reader
        if isinstance(source, RemoteSource):
            fresh = RangedReader(source, check=check)
        else:
            fresh = MappedReader(source, check=check)
        limit = most_open_files()
        with _lock:
            reader = cache.setdefault(key, fresh)
            while len(_open) > limit:
                _open.popitem(last=False)
    if not isinstance(source, BytesSource):
        with _lock, contextlib.suppress(KeyError):
            _open.move_to_end(key)
    return reader


def opened_reader(source: Source, *, check: bool = False) -> Reader | None:
    """Return this process's reader of a source if it is open; see `reader_of`."""
    with _lock:
        return _open.get((source, check)) or _in_memory.get((source, check))


def close_reader(source: Source) -> None:
    """Drop this process's readers of a source; the next read opens it again."""
    if isinstance(source, BytesSource):
        return
    with _lock:
        for check in (False, True):
            _open.pop((source, check), None)
    if isinstance(source, RemoteSource):
        close_remote(source)


def open_readers() -> int:
    """Return how many files this process holds open."""
    with _lock:
        return len(_open)


def _forget_after_fork() -> None:
    """Start afresh in a forked child: inherited handles belong to the parent's threads."""
    global _lock, _open, _in_memory
    _lock, _open, _in_memory = threading.Lock(), OrderedDict(), weakref.WeakValueDictionary()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
