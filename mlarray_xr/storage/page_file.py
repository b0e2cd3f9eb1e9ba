"""Page files: the pages of one version of a remote object that a folder keeps, each with its crc.

Two files. ``<name>.dat`` holds pages at the object's own offsets, with holes in between;
``<name>.crc`` holds one little-endian uint32 per page: the zlib crc32 of the text ``<name> <page
number>`` and the stored page (1 where that is 0), or 0 for a page that is not there. A page is
written first and marked afterwards, and compared with its mark whenever it is read: pages of killed
writers, holes that a power loss left behind, bad disks, and pages of other files all read as
absent. So nothing is ever locked, synced or repaired: any number of processes read, write and
remove these files at once.

Every operation opens the files anew by their names in the folder, which costs microseconds: a file
that another process removed is not written any further, and there is nothing to close or to lose in
a forked child. The files hold people's images: they are for their owner alone, and neither links
nor files of somebody else are followed.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PAGE_BYTES", "PageFile", "make_folder", "remove_oldest"]

PAGE_BYTES = 8192
"""Bytes of a page: blocks of 10 KB on average are over-read by 5 %, by 62 % with 64 KiB pages."""

_DATA, _MARKS = ".dat", ".crc"
_MARK_BYTES = 4
_FILE_NAME = re.compile(r"([0-9a-f]{64})\.(dat|crc)")
_STAT_BLOCK_BYTES = 512  # the unit of st_blocks, whatever the file system's own blocks are


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFile:
    """The stored pages of one version of an object; an address, nothing stays open."""

    folder: str
    """Where the files are."""
    name: str
    """What they are called, without their endings: 64 hexadecimal digits."""
    size: int
    """Bytes of the whole object."""

    def __post_init__(self) -> None:
        """Refuse names that could leave the folder, or that nobody would ever remove."""
        if not _FILE_NAME.fullmatch(self.name + _DATA) or self.size < 0:
            msg = (
                f"a page file needs 64 hexadecimal digits and a size, not {self.name}, {self.size}"
            )
            raise ValueError(msg)

    def span(self, pages: range) -> tuple[int, int]:
        """Return where pages that follow each other begin and end in the object."""
        return pages.start * PAGE_BYTES, min(pages.stop * PAGE_BYTES, self.size)

    def touch(self) -> None:
        """Note that the file is in use: `remove_oldest` goes by the time of the marks."""
        with contextlib.suppress(FileNotFoundError), self._opened(os.O_RDONLY) as (_, marks):
            os.utime(marks)

    def read(self, pages: range) -> dict[int, memoryview]:
        """Return those of the pages that are stored and whole, by number.

        Raises
        ------
        OSError
            When the files are there and cannot be read, or are not ours.
        """
        start, stop = self.span(pages)
        try:
            with self._opened(os.O_RDONLY) as (data_file, mark_file):
                packed = os.pread(mark_file, _MARK_BYTES * len(pages), _MARK_BYTES * pages.start)
                if not any(packed):
                    return {}
                # A copy of our own: what was compared cannot change any more.
                stored = memoryview(os.pread(data_file, stop - start, start))
        except FileNotFoundError:
            return {}
        marks = struct.unpack_from(f"<{len(packed) // _MARK_BYTES}I", packed)
        found = {}
        for page, mark in zip(pages, marks, strict=False):  # a mark file may end early
            begin, end = (at - start for at in self.span(range(page, page + 1)))
            view = stored[begin:end]
            if mark and len(view) == end - begin and mark == self._mark(page, view):
                found[page] = view
        return found

    def write(self, first: int, data: bytes, *, limit_bytes: int) -> int:
        """Store pages that follow each other, as far as the file stays within a limit.

        Parameters
        ----------
        first
            Number of the first page.
        data
            Whole pages; only the last one of the object may be shorter.
        limit_bytes
            What both files together may take on the disk.

        Returns
        -------
        int
            How many bytes were stored.

        Raises
        ------
        OSError
            When they cannot be written, or are not ours.
        """
        with self._opened(os.O_RDWR | os.O_CREAT) as (data_file, mark_file):
            taken = _allocated(os.fstat(data_file)) + _allocated(os.fstat(mark_file))
            fitting = max(limit_bytes - taken, 0) // PAGE_BYTES
            kept = memoryview(data)[: fitting * PAGE_BYTES]
            starts = range(0, len(kept), PAGE_BYTES)
            marks = [
                self._mark(page, kept[at : at + PAGE_BYTES])
                for page, at in enumerate(starts, first)
            ]
            packed = memoryview(struct.pack(f"<{len(marks)}I", *marks))
            _write_all(data_file, kept, first * PAGE_BYTES)
            _write_all(mark_file, packed, first * _MARK_BYTES)
        return len(kept)

    def _mark(self, page: int, data: memoryview) -> int:
        """Return the mark of a page; never 0, which marks a page that is not there."""
        return zlib.crc32(data, zlib.crc32(f"{self.name} {page}".encode())) or 1

    @contextlib.contextmanager
    def _opened(self, flags: int) -> Iterator[tuple[int, int]]:
        """Open data and marks; another process may remove either of them at any time."""
        with _opened_folder(self.folder) as folder, contextlib.ExitStack() as stack:
            data_file, mark_file = (
                stack.enter_context(_opened_file(folder, self.name + ending, flags))
                for ending in (_DATA, _MARKS)
            )
            yield data_file, mark_file


def make_folder(folder: str) -> None:
    """Make a folder that is its owner's alone, or check the one that is there.

    Raises
    ------
    OSError
        When it cannot be made, belongs to somebody else, or may be written by everybody.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with _opened_folder(folder):
        pass


def remove_oldest(folder: str, *, limit_bytes: int, keep_bytes: int) -> None:
    """Remove the page files that were not used for longest, if all together exceed a limit.

    What counts is what they take on the disk, holes do not. Whoever reads such a file meanwhile
    reads it to its end, whoever writes to it begins a new one with the next pages.

    Parameters
    ----------
    folder
        Where they are; anything else in it is left alone.
    limit_bytes
        Up to here nothing is removed.
    keep_bytes
        What to come down to.

    Raises
    ------
    OSError
        When the folder cannot be read, or files cannot be removed.
    """
    with _opened_folder(folder) as opened:
        files = _page_files(opened)
        total = sum(bytes_ for bytes_, _ in files.values())
        if total <= limit_bytes:
            return
        for name, (bytes_, _) in sorted(files.items(), key=lambda item: item[1][1]):
            if total <= keep_bytes:
                break
            for ending in (_MARKS, _DATA):  # data without marks are pages that are not there
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name + ending, dir_fd=opened)
            total -= bytes_


def _page_files(folder: int) -> dict[str, tuple[int, int]]:
    """Return what page files take on the disk and when they were last used, in ns, by name."""
    files: dict[str, tuple[int, int]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            matched = _FILE_NAME.fullmatch(entry.name)
            if not matched:
                continue
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed meanwhile
                continue
            if stat.S_ISREG(found.st_mode):
                bytes_, used_ns = files.get(matched[1], (0, 0))
                files[matched[1]] = (bytes_ + _allocated(found), max(used_ns, found.st_mtime_ns))
    return files


@contextlib.contextmanager
def _opened_folder(folder: str) -> Iterator[int]:
    """Open a folder that nobody else can put files in; names in it are then looked up in it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(opened)
        if found.st_uid != os.geteuid():
            msg = f"{folder} belongs to user {found.st_uid}, not to user {os.geteuid()}"
            raise PermissionError(msg)
        if found.st_mode & stat.S_IWOTH:
            msg = f"{folder} may be written by everybody (mode {stat.S_IMODE(found.st_mode):o})"
            raise PermissionError(msg)
        yield opened
    finally:
        os.close(opened)


@contextlib.contextmanager
def _opened_file(folder: int, name: str, flags: int) -> Iterator[int]:
    """Open a file of our own: no link in either sense, no pipe that would make us wait."""
    safe = flags | os.O_NOFOLLOW | os.O_NONBLOCK
    opened = os.open(name, safe, 0o600, dir_fd=folder)
    try:
        found = os.fstat(opened)
        # Without any name left another process has just removed it, which is harmless.
        is_ours = found.st_uid == os.geteuid() and found.st_nlink <= 1
        if not is_ours or not stat.S_ISREG(found.st_mode):
            msg = f"{name} is not a file of this cache, but a link or somebody else's"
            raise PermissionError(msg)
        yield opened
    finally:
        os.close(opened)


def _write_all(file: int, data: memoryview, start: int) -> None:
    """Write at an offset; a disk that gets full takes a part first and refuses the rest."""
    while data:
        written = os.pwrite(file, data, start)
        data, start = data[written:], start + written


def _allocated(found: os.stat_result) -> int:
    """Return what a file takes on the disk; holes take nothing."""
    return found.st_blocks * _STAT_BLOCK_BYTES
