"""RandomAccessFile: whole reads and writes at positions of one open file, from any thread."""

from __future__ import annotations

import contextlib
import os
import threading
from io import FileIO
from typing import TYPE_CHECKING, Self

from mlarray_xr.errors import SourceError

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RandomAccessFile"]


class RandomAccessFile:
    r"""A file open for reading and writing, without a buffer: each write is one system call.

    Parameters
    ----------
    path
        The file.
    mode : {"r+", "x+"}
        Whether it must exist, or must not.

    Examples
    --------
    >>> with RandomAccessFile("scratch.bin", mode="x+") as file:
    ...     file.write(b"cdef", at=2)
    ...     file.read(1, 4)
    b'\x00cd'
    """

    def __init__(self, path: str, *, mode: str) -> None:
        self._file = FileIO(path, mode)
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`.

        Raises
        ------
        SourceError
            When the file ends before.
        """
        data = b""
        with self._lock:
            self._file.seek(start)
            while len(data) < stop - start:
                piece = self._file.read(stop - start - len(data))
                if not piece:
                    msg = f"{self._file.name}: ends at byte {start + len(data)}, {stop} was wanted"
                    raise SourceError(msg)
                data += piece
        return data

    def write(self, data: bytes, *, at: int) -> None:
        """Write bytes at a position."""
        left = memoryview(data)
        with self._lock:
            self._file.seek(at)
            while left:
                left = left[self._file.write(left) :]

    def fileno(self) -> int:
        """Return the descriptor, for copies in the kernel; its position means nothing."""
        return self._file.fileno()

    def truncate(self, size: int) -> None:
        """Cut the file; one that has the size keeps its modification time, too."""
        with self._lock:
            if self.stat().st_size != size:
                self._file.truncate(size)

    def set_modified(self, mtime_ns: int) -> None:
        """Set the modification time, nanoseconds, where this user may."""
        with contextlib.suppress(PermissionError):
            os.utime(self._file.fileno(), ns=(self.stat().st_atime_ns, mtime_ns))

    def sync(self) -> None:
        """Force what was written to disk."""
        os.fsync(self._file.fileno())

    def stat(self) -> os.stat_result:
        """Return what the system knows of the open file."""
        return os.fstat(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()
