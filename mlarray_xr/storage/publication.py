"""Publication: a file that has its name only when it is complete and on disk."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_absent", "published"]


def check_absent(path: str) -> None:
    """Refuse a target that exists.

    Raises
    ------
    FileExistsError
        When something has that name, a dangling link included.
    """
    if os.path.lexists(path):
        raise _exists(path)


@contextlib.contextmanager
def published(path: str, *, overwrite: bool) -> Iterator[BinaryIO]:
    """Open a temporary file beside the target; give it its name when the block ends without error.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether an existing target may be replaced.

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
    if overwrite:
        path = os.path.realpath(path)  # a link stays a link to what is replaced
    else:
        check_absent(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        msg = f"{path}: the folder does not exist. To fix: os.makedirs({folder!r})"
        raise FileNotFoundError(msg)
    if os.path.isdir(path):
        msg = f"{path}: a folder has this name. To fix: (1) remove it; (2) choose another name"
        raise IsADirectoryError(msg)
    # Without the target's name: a name of the greatest length leaves no room for a suffix.
    temporary = os.path.join(folder, f".{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            if overwrite and os.path.exists(path):
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
            os.fsync(file.fileno())
        _rename(temporary, path, overwrite=overwrite)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    if hasattr(os, "O_DIRECTORY"):
        entry = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)


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
        check_absent(path)
        os.rename(temporary, path)


def _exists(path: str) -> FileExistsError:
    """Return the error for a target that must not be replaced."""
    return FileExistsError(
        f"{path}: the file exists. To fix: (1) mode='w' (mla convert --overwrite) replaces it; "
        "(2) choose another name"
    )
