"""Publication: a file that has its name only when it is complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_target", "naming", "published"]

# No space, over quota, larger than files may be.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_target(path: str, *, overwrite: bool) -> tuple[str, str]:
    """Refuse a target that cannot be made; return the path that is written, and its folder.

    To overwrite a link is to replace what it points to.

    Raises
    ------
    FileNotFoundError
        When the folder does not exist.
    FileExistsError
        When the target exists, be it as a dangling link, and is not to be replaced.
    IsADirectoryError
        When a folder has its name.
    """
    if overwrite:
        path = os.path.realpath(path)
    elif os.path.lexists(path):
        raise _exists(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        msg = f"{path}: the folder does not exist. To fix: os.makedirs({folder!r})"
        raise FileNotFoundError(msg)
    if os.path.isdir(path):
        msg = f"{path}: a folder has this name. To fix: (1) remove it; (2) choose another name"
        raise IsADirectoryError(msg)
    return path, folder


@contextlib.contextmanager
def published(
    path: str,
    *,
    overwrite: bool,
    temporary_folder: str | None = None,
    begun: str | None = None,
) -> Iterator[BinaryIO]:
    """Open a temporary file; give it the target's name when the block ends without error.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether an existing target may be replaced.
    temporary_folder
        Where the temporary file is, on the target's file system; None is beside the target.
    begun
        A file to go on with instead of a new temporary one.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        When there is no folder for the target, or a folder in its place.
    FileExistsError
        At once, or at the end when somebody else made the target meanwhile.

    Examples
    --------
    >>> with published("letter.txt", overwrite=False) as file:
    ...     _ = file.write(b"all of it")
    >>> os.path.getsize("letter.txt")
    9
    """
    path, folder = check_target(path, overwrite=overwrite)
    # Without the target's name: a name of the greatest length leaves no room for a suffix.
    temporary = begun or os.path.join(temporary_folder or folder, f".{uuid.uuid4().hex}.tmp")
    process = os.getpid()
    try:
        with naming(path), open(temporary, "r+b" if begun else "x+b") as file:
            yield file
            file.flush()
            if overwrite and os.path.exists(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(file.fileno())
        _rename(temporary, path, overwrite=overwrite)
    finally:
        if os.getpid() == process:  # not a forked child that fails, whose parent goes on
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    if hasattr(os, "O_DIRECTORY"):
        entry = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Put a file's name on errors that say that the disk is full and not which."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = path
        raise


def _rename(temporary: str, path: str, *, overwrite: bool) -> None:
    """Move a finished file to its name, atomically."""
    if overwrite:
        os.replace(temporary, path)
        return
    try:
        # Unlike a rename, a link refuses an existing target atomically.
        os.link(temporary, path)
    except FileExistsError:
        raise _exists(path) from None
    except OSError:
        # File systems without hard links: the check and the rename are two steps.
        check_target(path, overwrite=False)
        os.rename(temporary, path)


def _exists(path: str) -> FileExistsError:
    """Return the error for a target that must not be replaced."""
    return FileExistsError(
        f"{path}: the file exists. To fix: (1) mode='w' (mla convert --overwrite) replaces it; "
        "(2) choose another name"
    )
