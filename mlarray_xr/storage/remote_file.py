"""RemoteFile: one version of a remote object that this process has open, and its requests.

One of the package's few pieces of state: as many as are used stay open, bounded, forgotten after a
fork. An open file is a client, counters, and the two ends of the object, which hold all that
opening looks at.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from mlarray_xr.errors import SourceChanged
from mlarray_xr.storage.counters import ReadStats, Tally, tallies_of
from mlarray_xr.storage.disk_cache import DiskCache
from mlarray_xr.storage.read_settings import read_settings
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.request_pool import submit_request
from mlarray_xr.storage.retry import with_retries
from mlarray_xr.storage.transport import Piece, open_transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from mlarray_xr.storage.remote_source import RemoteAddress
    from mlarray_xr.storage.transport import Transport

__all__ = ["RemoteFile", "close_remote", "pin_remote", "remote_file"]

_HEAD_BYTES, _TAIL_BYTES = 8 << 10, 64 << 10
_MOST_OPEN = 128
_MOST_BEFORE_TAIL = 1 << 20
# Of an index or a trailer that is longer than the tail: many small reads close to each other.
_READ_AHEAD_BYTES, _MOST_KEPT = 64 << 10, 4

_lock = threading.Lock()
_open: OrderedDict[RemoteSource, RemoteFile] = OrderedDict()


class RemoteFile:
    """Fetches ranges of one version of a remote object; safe to share among threads.

    Every answer is compared with what was pinned: what is read of a file is of one version.

    Parameters
    ----------
    source
        What to read; pinned.
    transport
        Brings bytes of its address, by the settings of now; its requests are counted.
    tally
        What is counted.
    """

    def __init__(self, source: RemoteSource, transport: Transport, tally: Tally) -> None:
        self.source, self.tally = source, tally
        cached = _with_disk_cache(transport, source, tally)
        self._opened = (_client_settings(), cached)
        self._ends: tuple[Piece, Piece] | None = None
        self._read_last: deque[Piece] = deque(maxlen=_MOST_KEPT)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, fewer only at the end of the object.

        Raises
        ------
        SourceChanged
            When the object was replaced.
        SourceError, FileNotFoundError
            When the bytes cannot be had.
        """
        stop = min(stop, self.source.size)
        head, tail = self._both_ends()
        for piece in (head, tail, *tuple(self._read_last)):
            if piece.start <= start and stop <= piece.start + len(piece.data):
                return piece.data[start - piece.start : stop - piece.start]
        if stop <= tail.start <= start + _MOST_BEFORE_TAIL and stop - start < _READ_AHEAD_BYTES:
            # Table and trailer are longer than the tail: the rest of them in one request.
            data = self.request(start, tail.start).result() + tail.data
            self._ends = head, replace(tail, data=data, start=start)
            return data[: stop - start]
        if stop - start >= _READ_AHEAD_BYTES:
            return self.request(start, stop).result()
        data = self.request(start, min(start + _READ_AHEAD_BYTES, self.source.size)).result()
        self._read_last.append(Piece(data=data, start=start, size=None, etag=None))
        return data[: stop - start]

    def request(self, start: int, stop: int) -> Future[bytes]:
        """Begin to fetch the bytes from `start` to `stop`, which lie inside the object."""
        return submit_request(lambda: self._fetch(start, stop))

    def keep_ends(self, head: Piece, tail: Piece) -> None:
        """Keep what opening fetched."""
        self._ends = head, tail

    def _both_ends(self) -> tuple[Piece, Piece]:
        """Return both ends, fetching them where another process had opened the file."""
        with self._lock:  # one thread fetches them, others wait
            if self._ends is None:
                head, tail = _fetch_ends(
                    self._transport(),
                    self.tally,
                    head_bytes=min(_HEAD_BYTES, self.source.size),
                    etag=self._validator,
                )
                for piece in (head, tail):
                    self.compare(piece)
                if ends_digest(head, tail, etag=self.source.etag) != self.source.ends:
                    msg = f"{self.source.name}: it was replaced since it was opened. Open it again"
                    raise SourceChanged(msg)
                self._ends = head, tail
            return self._ends

    @property
    def _validator(self) -> str:
        """The validator; ``*`` without, as in RFC 9110: any, but the object has to be as long."""
        return "*" if self.source.etag is None else self.source.etag

    def _transport(self) -> Transport:
        """Return what brings bytes, opened again when settings that it depends on have changed."""
        settings, transport = self._opened
        if settings != _client_settings():
            settings = _client_settings()
            counted = _open_counted(self.source.address, self.tally)
            transport = _with_disk_cache(counted, self.source, self.tally)
            self._opened = settings, transport
        return transport

    def _fetch(self, start: int, stop: int) -> bytes:
        """Fetch a range, again when that failed for what may pass."""
        transport = self._transport()
        piece = _retried(lambda: transport.fetch(start, stop, etag=self._validator), self.tally)
        self.compare(piece)
        return piece.data

    def compare(self, piece: Piece) -> None:
        """Compare what an answer says of the object with what was pinned.

        Raises
        ------
        SourceChanged
            When they differ.
        """
        source = self.source
        found_size = source.size if piece.size is None else piece.size
        # Of an object without validator some clients make one of its date, others do not.
        if found_size == source.size and (source.etag is None or piece.etag in (None, source.etag)):
            return
        msg = (
            f"{source.name}: the object was replaced since it was opened: {source.size} bytes with "
            f"etag {source.etag} then, {found_size} with {piece.etag} now. Open it again"
        )
        raise SourceChanged(msg)


def ends_digest(head: Piece, tail: Piece, *, etag: str | None) -> str:
    """Return what tells versions of an object apart that has no strong validator; else nothing."""
    if etag is not None and not etag.startswith(("W/", "w/")):
        return ""
    return hashlib.sha256(head.data + tail.data).hexdigest()


class _Counted:
    """A transport whose requests are counted."""

    def __init__(self, transport: Transport, tally: Tally) -> None:
        self._transport, self._tally = transport, tally

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        """Fetch a range by one request."""
        return self._counted(lambda: self._transport.fetch(start, stop, etag=etag))

    def fetch_tail(self, n_bytes: int) -> Piece:
        """Fetch the last bytes by one request."""
        return self._counted(lambda: self._transport.fetch_tail(n_bytes))

    def _counted(self, send: Callable[[], Piece]) -> Piece:
        """Send a request and count it, however it ends."""
        tallies = tallies_of(self._tally)
        begin = time.perf_counter()
        for tally in tallies:
            tally.begin_request(at=begin)
        n_bytes, errors, n_requests = 0, 1, 1
        try:
            piece = send()
            n_bytes, errors, n_requests = len(piece.data), 0, piece.n_requests
        finally:
            end = time.perf_counter()
            counts = ReadStats(
                requests=n_requests,
                bytes_fetched=n_bytes,
                errors=errors,
                fetch_seconds=end - begin,
            )
            for tally in tallies:
                tally.end_request(at=end)
                tally.add(counts)
        return piece


def pin_remote(address: RemoteAddress) -> RemoteSource:
    """Return the source of the object that is behind an address now: two requests side by side.

    Raises
    ------
    FileNotFoundError
        When there is none.
    SourceChanged
        When it was replaced between the two requests.
    SourceError
        When it cannot be read.
    """
    tally = Tally()
    counted = _open_counted(address, tally)
    head, tail = _fetch_ends(counted, tally)
    size = tail.start + len(tail.data) if tail.size is None else tail.size
    source = RemoteSource(
        address=address, size=size, etag=tail.etag, ends=ends_digest(head, tail, etag=tail.etag)
    )
    file = RemoteFile(source, counted, tally)
    file.compare(head)
    with _lock:
        file = _open.setdefault(source, file)
    if file.tally is not tally:  # it was open: what was spent on finding that out counts there, too
        file.tally.add(tally.snapshot())
    file.keep_ends(head, tail)
    _trim(source)
    return source


def remote_file(source: RemoteSource) -> RemoteFile:
    """Return this process's open file of a source; opening it sends no request."""
    with _lock:
        file = _open.get(source)
    if file is None:
        tally = Tally()
        fresh = RemoteFile(source, _open_counted(source.address, tally), tally)
        with _lock:
            file = _open.setdefault(source, fresh)
    _trim(source)
    return file


def close_remote(source: RemoteSource) -> None:
    """Drop this process's open file of a source."""
    with _lock:
        _open.pop(source, None)


def _trim(used: RemoteSource) -> None:
    """Note that a source was used, and drop those that were not for longest."""
    with _lock:
        if used in _open:
            _open.move_to_end(used)
        while len(_open) > _MOST_OPEN:
            _open.popitem(last=False)


def _fetch_ends(
    transport: Transport,
    tally: Tally,
    *,
    head_bytes: int = _HEAD_BYTES,
    etag: str | None = None,
) -> tuple[Piece, Piece]:
    """Fetch the two ends of an object at the same time."""
    head = submit_request(
        lambda: _retried(lambda: transport.fetch(0, head_bytes, etag=etag), tally)
    )
    tail = submit_request(lambda: _retried(lambda: transport.fetch_tail(_TAIL_BYTES), tally))
    try:
        return head.result(), tail.result()
    finally:
        tail.cancel()  # of no use when the head could not be had


def _retried(attempt: Callable[[], Piece], tally: Tally) -> Piece:
    """Send a request again when it failed for what may pass."""

    def count() -> None:
        for each in tallies_of(tally):
            each.add(ReadStats(retries=1))

    return with_retries(attempt, retries=read_settings().retries, on_retry=count)


def _client_settings() -> tuple[float, str | None, int]:
    """Return the settings that clients are opened with."""
    settings = read_settings()
    return settings.timeout_s, settings.cache_dir, settings.cache_dir_bytes


def _open_counted(address: RemoteAddress, tally: Tally) -> _Counted:
    """Return a client of an address, whose requests are counted."""
    return _Counted(open_transport(address, timeout_s=read_settings().timeout_s), tally)


def _with_disk_cache(transport: Transport, source: RemoteSource, tally: Tally) -> Transport:
    """Return a transport that asks the disk first, where a disk cache was configured."""
    settings = read_settings()
    if settings.cache_dir is None:
        return transport

    def count(n_bytes: int) -> None:
        for each in tallies_of(tally):
            each.add(ReadStats(disk_bytes=n_bytes))

    cache = DiskCache(settings.cache_dir, limit_bytes=settings.cache_dir_bytes)
    return cache.wrapped(transport, source, on_hit=count)


def _forget_after_fork() -> None:
    """Start afresh in a forked child: clients have threads of the parent."""
    global _lock, _open
    _lock, _open = threading.Lock(), OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
