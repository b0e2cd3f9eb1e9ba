"""Sources: picklable addresses of bytes, each with a token of what was there when it was opened."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from io import FileIO

from mlarray_xr.errors import SourceChanged, SourceError

__all__ = ["BytesSource", "LocalSource", "source_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """A regular local file, pinned by size, modification time and inode.

    The device number is left out: it differs between the hosts of a cluster that share a file
    system, the inode does not.
    """

    path: str
    """Absolute path."""
    size: int
    """Bytes of the file."""
    mtime_ns: int
    """Modification time, nanoseconds."""
    inode: int
    """File number."""

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    @property
    def token(self) -> tuple[str | int, ...]:
        """Path, size, modification time and inode."""
        return (self.path, self.size, self.mtime_ns, self.inode)

    def check(self) -> None:
        """Compare the file at the path with the pinned one.

        Raises
        ------
        SourceChanged
            When it was replaced, rewritten, truncated or removed.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            msg = f"{self.path}: gone since it was opened ({error.strerror}). Open it again"
            raise SourceChanged(msg) from error
        self.check_stat(found)

    def check_stat(self, found: os.stat_result) -> None:
        """Compare the pinned identity with a stat result; `SourceChanged` when they differ."""
        if (found.st_size, found.st_mtime_ns, found.st_ino) == (
            self.size,
            self.mtime_ns,
            self.inode,
        ):
            return
        msg = (
            f"{self.path}: the file changed since it was opened: {self.size} bytes then, "
            f"{found.st_size} now (inode {self.inode}, now {found.st_ino}). Open it again"
        )
        raise SourceChanged(msg)

    def open(self) -> FileIO:
        """Open the pinned file for reading, unbuffered.

        Raises
        ------
        SourceChanged
            When another file, or none, is there now.
        SourceError
            When it cannot be opened.
        """
        try:
            file = FileIO(self.path)
        except (FileNotFoundError, IsADirectoryError) as error:
            msg = f"{self.path}: the file is gone since it was opened. Open it again"
            raise SourceChanged(msg) from error
        except OSError as error:
            msg = f"{self.path}: the file cannot be opened: {error.strerror}"
            raise SourceError(msg) from error
        try:
            self.check_stat(os.fstat(file.fileno()))
        except SourceChanged:
            file.close()
            raise
        return file


@dataclass(frozen=True, slots=True, kw_only=True)
class BytesSource:
    """A whole file held in memory."""

    data: bytes = field(repr=False, compare=False)
    """The file's bytes."""
    digest: str
    """SHA-256 of the bytes."""

    @property
    def name(self) -> str:
        """A description, since memory has no path."""
        return f"<{len(self.data)} bytes in memory>"

    @property
    def token(self) -> tuple[str | int, ...]:
        """Length and digest of the bytes."""
        return (len(self.data), self.digest)

    def check(self) -> None:
        """Nothing to compare: the bytes are immutable."""


def source_of(address: object) -> LocalSource | BytesSource:
    """Return the source that an address given by a user stands for.

    Parameters
    ----------
    address
        A path (str or path-like, ``~`` and relative paths allowed), a file's bytes, or a binary
        file object, which is read whole.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    SourceError
        When the address is a directory, a device or a URL (see `open_address`).
    TypeError
        When it is none of the accepted kinds.
    """
    if isinstance(address, str | os.PathLike):
        return _local_source(os.fsdecode(address))
    if isinstance(address, bytes | bytearray | memoryview):
        data = bytes(address)
    elif callable(read := getattr(address, "read", None)):
        if callable(seek := getattr(address, "seek", None)):
            seek(0)
        data = read()
        if not isinstance(data, bytes):
            msg = (
                f"a binary file object is needed, {type(address).__name__} gave text: open it 'rb'"
            )
            raise TypeError(msg)
    else:
        msg = f"a path, bytes or a binary file object is needed, got {type(address).__name__}"
        raise TypeError(msg)
    return BytesSource(data=data, digest=hashlib.sha256(data).hexdigest())


def _local_source(path: str) -> LocalSource:
    """Pin the regular file at a path."""
    if "://" in path:
        msg = f"{path}: only .mla files are read from URLs. To fix: download the file first"
        raise SourceError(msg)
    path = os.path.abspath(os.path.expanduser(path))
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        msg = f"{path}: one .mla file is needed, this is {kind}. To fix: name one file inside it"
        raise SourceError(msg)
    return LocalSource(
        path=path, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino
    )
