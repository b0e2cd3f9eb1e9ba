"""The block cache: encoded blocks of remote files in the memory of this process.

One of the package's few pieces of state, forgotten after a fork. Encoded blocks are kept, not
decoded ones: twice as many patches find theirs in the same memory. What one thread is fetching,
others wait for: nothing is fetched twice at the same time.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.read_settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BlockCache", "Claim", "FlightAbandoned", "Key", "block_cache"]

# Version of a file, chunk, and block or what else is kept of a chunk.
Key: TypeAlias = "tuple[str, int, int]"
# A key, its entry and its place in the order, on CPython 3.11.
_OVERHEAD_BYTES = 250


class FlightAbandoned(SourceError):
    """What those who wait get when the read that fetched for them gave up; they fetch then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a read has to do for the keys it asked for."""

    found: dict[Key, Any]
    """Values that were in the cache."""
    owned: list[Key]
    """Keys that the read must fulfil or fail, come what may."""
    joined: dict[Key, Future[Any]]
    """Keys that another read is fetching."""


class BlockCache:
    """Least recently used values, bounded in bytes, each fetched by one thread at a time.

    A thread that owns keys fulfils them before it waits for those of others, so that nobody waits
    in a circle.

    Parameters
    ----------
    limit_bytes
        Most bytes that are kept; None goes by the settings of the process.

    Examples
    --------
    >>> cache = BlockCache(limit_bytes=1000)
    >>> claim = cache.claim([("a", 0, 1)])
    >>> cache.fulfil(("a", 0, 1), b"payload", n_bytes=7)
    0
    >>> cache.claim([("a", 0, 1)]).found
    {('a', 0, 1): b'payload'}
    """

    def __init__(self, *, limit_bytes: int | None = None) -> None:
        self._fixed_limit = limit_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, tuple[Any, int]] = OrderedDict()
        # None as long as nobody waits: making a Future takes as long as all the rest.
        self._flights: dict[Key, Future[Any] | None] = {}
        self._kept_bytes = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept, overhead included."""
        return self._kept_bytes

    @property
    def in_flight(self) -> int:
        """Number of keys that somebody is fetching."""
        return len(self._flights)

    def find(self, key: Key) -> Any:
        """Return a value that is kept, or None."""
        with self._lock:
            kept = self._kept.get(key)
            if kept is None:
                return None
            self._kept.move_to_end(key)
            return kept[0]

    def claim(self, keys: Iterable[Key]) -> Claim:
        """Return what is there of some keys, and who brings the rest."""
        claim = Claim(found={}, owned=[], joined={})
        with self._lock:
            for key in keys:
                kept = self._kept.get(key)
                if kept is not None:
                    self._kept.move_to_end(key)
                    claim.found[key] = kept[0]
                elif key in self._flights:
                    flight = self._flights[key] or Future()
                    self._flights[key] = claim.joined[key] = flight
                else:
                    self._flights[key] = None
                    claim.owned.append(key)
        return claim

    def fulfil(self, key: Key, value: Any, *, n_bytes: int) -> int:
        """Keep a value and give it to those who wait for it.

        Returns
        -------
        int
            How many values were dropped to make room.
        """
        with self._lock:
            evicted = self._keep(key, value, n_bytes)
            flight = self._flights.pop(key, None)
        if flight is not None:
            flight.set_result(value)
        return evicted

    def fail(self, keys: Iterable[Key], error: BaseException) -> None:
        """Tell those who wait for keys that were not fulfilled why."""
        with self._lock:
            flights = [self._flights.pop(key, None) for key in keys]
        for flight in flights:
            if flight is not None:
                flight.set_exception(error)

    def clear(self) -> None:
        """Drop everything that is kept."""
        with self._lock:
            self._kept.clear()
            self._kept_bytes = 0

    def _keep(self, key: Key, value: Any, n_bytes: int) -> int:
        """Put a value in, as the last to be dropped; one that is too large is not kept."""
        limit, evicted = self._limit_bytes, 0
        before = self._kept.pop(key, None)
        self._kept_bytes -= before[1] if before else 0
        cost = n_bytes + _OVERHEAD_BYTES
        if cost <= limit:
            self._kept[key] = (value, cost)
            self._kept_bytes += cost
        while self._kept_bytes > limit:
            _, (_, dropped) = self._kept.popitem(last=False)
            self._kept_bytes -= dropped
            evicted += 1
        return evicted

    @property
    def _limit_bytes(self) -> int:
        """Most bytes that are kept now."""
        return read_settings().cache_bytes if self._fixed_limit is None else self._fixed_limit


_cache = BlockCache()


def block_cache() -> BlockCache:
    """Return the cache of this process."""
    return _cache


def _forget_after_fork() -> None:
    """Start afresh in a forked child: threads that were fetching do not exist there."""
    global _cache
    _cache = BlockCache()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
