"""The disk cache: what was fetched from a server once is read from a local folder afterwards.

A wrapper around a transport that serves whole pages from a page file and fetches what is missing
there. Optional, and never a reason to fail: where the folder cannot be used, reading goes on
without it, after one warning per process and folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from typing import TYPE_CHECKING

from mlarray_xr.errors import MlaWarning
from mlarray_xr.storage.frame_lock import ProcessLock
from mlarray_xr.storage.page_file import PAGE_BYTES, PageFile, make_folder, remove_oldest
from mlarray_xr.storage.piece import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from mlarray_xr.storage.piece import Transport
    from mlarray_xr.storage.remote_source import RemoteSource

__all__ = ["CachedTransport", "DiskCache", "missing_runs"]

# Stored pages between missing ones are fetched again up to here: the requests of one call follow
# each other, and 1 MiB takes as long as a round trip does (20 ms at 80 MB/s, rounded down).
_BRIDGED_PAGES = (1 << 20) // PAGE_BYTES
# Between two looks at the folder a process may write this share of the limit, and never more bytes.
_SHARE_UNCHECKED = 16
_MAX_UNCHECKED_BYTES = 64 << 20

# Folders that this process has warned of, and by which call.
_warned: dict[str, object] = {}
# What was written since the last look, by folder and limit; nothing before the first look.
_unchecked_bytes: dict[tuple[str, int], int] = {}
_lock = ProcessLock()


class DiskCache:
    """Pages of remote objects in a folder, bounded, shared by threads and processes.

    The least recently opened files go first when all of them together take more than the limit,
    which every process looks at when it begins and after every sixteenth of the limit that it has
    written (at most 64 MiB); by that much per process the folder may exceed it for a while. One
    object alone never takes more than 15/16 of the limit: what exceeds them is fetched every time.
    Instances hold nothing: those of one process share what they have written.

    Files belong to one version of an object, named by URL, size, validator and a digest of the
    options. Those of older versions are never read again and go as the oldest ones.

    Parameters
    ----------
    folder
        Made with mode 0700 when it is missing; files get 0600. A folder of another user, or one
        that everybody may write to, is not used: pages are protected against bad disks and killed
        processes, not against somebody who wants to deceive.
    limit_bytes
        What all page files may take on the disk; 0 stores nothing.

    Examples
    --------
    >>> from mlarray_xr.storage.remote_source import RemoteSource, remote_address
    >>> address = remote_address("https://example.org/ct.mla")
    >>> without_validator = RemoteSource(address=address, size=1000, etag=None)
    >>> transport = object()
    >>> cache = DiskCache("pages", limit_bytes=10 << 30)
    >>> cache.wrapped(transport, without_validator, on_hit=print) is transport
    True
    """

    def __init__(self, folder: str, *, limit_bytes: int) -> None:
        self._folder = os.path.abspath(os.path.expanduser(folder))
        self._limit_bytes = limit_bytes
        self._check_every_bytes = min(limit_bytes // _SHARE_UNCHECKED, _MAX_UNCHECKED_BYTES)

    def wrapped(
        self, transport: Transport, source: RemoteSource, *, on_hit: Callable[[int], None]
    ) -> Transport:
        """Return a transport that looks into the folder first.

        A source without a strong validator gets its own transport back: nothing would tell whether
        stored pages are still those of the object. So does every source when the folder cannot be
        used, and on Windows, which lacks the calls.

        Parameters
        ----------
        transport
            What fetches pages that are not stored.
        source
            The version of the object that `transport` reads.
        on_hit
            Called with the number of bytes that a call took from the disk, from any thread.

        Warns
        -----
        MlaWarning
            When the folder cannot be used; once per process and folder.
        """
        etag = source.etag
        if not etag or etag[:2].upper() == "W/":
            return transport
        described = json.dumps([PAGE_BYTES, *source.token]).encode()
        name = hashlib.sha256(described).hexdigest()
        file = PageFile(folder=self._folder, name=name, size=source.size)
        if not hasattr(os, "pread"):
            self.warn("this system has no positioned reads")
            return transport
        try:
            make_folder(self._folder)
            file.touch()
            self._keep_limit(0)
        except OSError as error:
            self.warn(error)
            return transport
        return CachedTransport(transport, source, file, self, on_hit=on_hit)

    def store(self, file: PageFile, first: int, data: bytes) -> None:
        """Store pages that follow each other, from page `first`, as far as there is room.

        Raises
        ------
        OSError
            When the folder does not take them.
        """
        own_limit = self._limit_bytes - self._check_every_bytes
        stored = file.write(first, data, limit_bytes=own_limit)
        if stored:
            self._keep_limit(stored)

    def warn(self, found: OSError | str) -> None:
        """Warn that the folder cannot be used, unless this process has heard of it."""
        call = object()
        if _warned.setdefault(self._folder, call) is call:
            msg = (
                f"{self._folder}: the disk cache cannot be used ({found}); reading goes on without "
                "it. To fix: choose a folder of your own with free space"
            )
            warnings.warn(msg, MlaWarning, stacklevel=2)

    def _keep_limit(self, written_bytes: int) -> None:
        """Look at the folder for the first time, or if enough was written since the last time."""
        key = (self._folder, self._limit_bytes)
        with _lock:
            unchecked = _unchecked_bytes.get(key, self._check_every_bytes) + written_bytes
            is_due = unchecked >= self._check_every_bytes
            _unchecked_bytes[key] = 0 if is_due else unchecked
        if not is_due:
            return
        keep_bytes = self._limit_bytes - self._check_every_bytes
        remove_oldest(self._folder, limit_bytes=self._limit_bytes, keep_bytes=keep_bytes)


class CachedTransport:
    """A transport that reads from the disk what is there, and stores what it fetches.

    Every answer is of the one version that it was made for: only pages that the server confirmed
    with that validator are stored, so a transport that learns none in its answers stores nothing.

    Parameters
    ----------
    transport
        What fetches pages that are not stored.
    source
        The version of the object.
    file
        Its pages.
    cache
        Where they are stored.
    on_hit
        Called with the number of bytes that a call took from the disk, from any thread.
    """

    def __init__(
        self,
        transport: Transport,
        source: RemoteSource,
        file: PageFile,
        cache: DiskCache,
        *,
        on_hit: Callable[[int], None],
    ) -> None:
        self._transport = transport
        self._source = source
        self._file = file
        self._cache = cache
        self._on_hit = on_hit
        self._reads_disk = True
        self._writes_disk = True

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        """Return a range of the object, as far as possible from the disk.

        Missing pages are fetched one run of them after the other, whole pages and never beyond the
        object. Ranges outside of it and other validators are the transport's own affair.

        Raises
        ------
        SourceError
            As the transport does. What was fetched before stays stored.
        """
        source = self._source
        if etag not in (None, source.etag) or not 0 <= start < stop <= source.size:
            return self._transport.fetch(start, stop, etag=etag)
        pages = range(start // PAGE_BYTES, -(-stop // PAGE_BYTES))
        have = self._read(pages)
        fetched: set[int] = set()
        for run in missing_runs(pages, have):
            have.update(self._fetch_pages(run))
            fetched.update(run)
        views = [have[page] for page in pages]
        begin = pages.start * PAGE_BYTES
        views[-1] = views[-1][: stop - (pages.stop - 1) * PAGE_BYTES]
        views[0] = views[0][start - begin :]
        hit_bytes = sum(
            len(view) for page, view in zip(pages, views, strict=True) if page not in fetched
        )
        if hit_bytes:
            self._on_hit(hit_bytes)
        return Piece(data=b"".join(views), start=start, size=source.size, etag=source.etag)

    def fetch_tail(self, n_bytes: int) -> Piece:
        """Return the last bytes of the object, from the server: its answer tells the version."""
        return self._transport.fetch_tail(n_bytes)

    def _read(self, pages: range) -> dict[int, memoryview]:
        """Return the pages that are on the disk."""
        if not self._reads_disk:
            return {}
        try:
            return self._file.read(pages)
        except OSError as error:
            self._reads_disk = self._writes_disk = False
            self._cache.warn(error)
            return {}

    def _fetch_pages(self, pages: range) -> dict[int, memoryview]:
        """Return pages that follow each other in one request, and store them."""
        start, stop = self._file.span(pages)
        piece = self._transport.fetch(start, stop, etag=self._source.etag)
        if self._writes_disk and piece.etag == self._source.etag:
            try:
                self._cache.store(self._file, pages.start, piece.data)
            except OSError as error:
                self._writes_disk = False
                self._cache.warn(error)
        data = memoryview(piece.data)
        return {
            page: data[at : at + PAGE_BYTES]
            for page, at in zip(pages, range(0, len(data), PAGE_BYTES), strict=True)
        }


def missing_runs(pages: range, have: Container[int]) -> list[range]:
    """Return which pages to fetch in one request each, so that the missing ones are among them.

    Stored pages in between are fetched along where that takes less time than another request; no
    request goes beyond the first and the last missing page, and there are never more bytes to
    fetch than without the stored pages.

    Examples
    --------
    >>> missing_runs(range(10, 15), {10, 12, 14})
    [range(11, 14)]
    >>> missing_runs(range(0, 1000), range(5, 990))
    [range(0, 5), range(990, 1000)]
    """
    runs: list[range] = []
    for page in pages:
        if page in have:
            continue
        if runs and page - runs[-1].stop <= _BRIDGED_PAGES:
            runs[-1] = range(runs[-1].start, page + 1)
        else:
            runs.append(range(page, page + 1))
    return runs
