"""The lock file by which C-Blosc2 keeps writers of one frame apart, taken as C-Blosc2 takes it.

Handles of python-blosc2 with ``locking=True`` open ``<path>.b2lock``, never look at its name again,
and hold it for every operation (``frame.c`` of C-Blosc2 3.3): shared for reading, exclusively
(``flock``) for writing. Bytes 8 to 16 count the exclusive holders, in native byte order: a handle
that finds another count than its last one reads anew what it remembers of the frame.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import TargetBusy

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ProcessLock", "frame_lock"]

_SUFFIX = ".b2lock"
_COUNT_AT = 8
_COUNT_BYTES = 8
_WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.01


@contextlib.contextmanager
def frame_lock(path: str, *, wait_seconds: float = _WAIT_SECONDS) -> Iterator[None]:
    """Keep handles of python-blosc2 that use locking out of a frame while the block runs.

    Where the file system has no such locks the block runs all the same. A lock file that was not
    there before is removed again, unless somebody waits for it: that handle would go on with a lock
    that later ones do not see.

    Parameters
    ----------
    path
        The frame.
    wait_seconds
        How long to wait for others.

    Raises
    ------
    TargetBusy
        When another handle keeps the lock.
    """
    name = path + _SUFFIX
    deadline = time.monotonic() + wait_seconds
    while True:
        descriptor, is_new = _open(name)
        try:
            is_ours = _acquire(descriptor, deadline=deadline) and is_new
        except BlockingIOError:
            os.close(descriptor)
            msg = (
                f"{path}: another program holds the lock {name} (python-blosc2 with locking=True). "
                "To fix: end its holding_lock() block, or that program"
            )
            raise TargetBusy(msg) from None
        except BaseException:
            _release(descriptor, name, is_ours=is_new)
            raise
        if _is_named(descriptor, name):
            break
        os.close(descriptor)  # removed and made anew meanwhile: that one counts
    try:
        yield
    finally:
        _release(descriptor, name, is_ours=is_ours)


class ProcessLock:
    """A reentrant lock of the threads of one process: a forked child finds it free.

    The child has none of the threads that may have held it.
    """

    def __init__(self) -> None:
        self._by_process: dict[int, Any] = {}

    def __enter__(self) -> None:
        """Take the lock."""
        self._by_process.setdefault(os.getpid(), threading.RLock()).acquire()

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._by_process[os.getpid()].release()


def _open(name: str) -> tuple[int, bool]:
    """Open the lock file, and tell whether it was made by this call."""
    # A link could lead to a file of somebody else, in which the count would be written.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.suppress(FileExistsError):
        return os.open(name, flags | os.O_EXCL, 0o666), True
    return os.open(name, flags, 0o666), False


def _acquire(descriptor: int, *, deadline: float) -> bool:
    """Take the lock and count this holder; do without where there are no locks.

    Returns
    -------
    bool
        Whether nobody seems to have had it before.

    Raises
    ------
    BlockingIOError
        When somebody else still has it at the deadline.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where C-Blosc2 locks by other means
        return True
    is_first = True
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            is_first = False
            time.sleep(_POLL_SECONDS)
        except OSError:
            return True  # no locks on this file system
        else:
            break
    found = os.pread(descriptor, _COUNT_BYTES, _COUNT_AT)
    count = int.from_bytes(found, sys.byteorder) if len(found) == _COUNT_BYTES else 0
    raised = (count + 1) % (1 << (8 * _COUNT_BYTES))
    os.pwrite(descriptor, raised.to_bytes(_COUNT_BYTES, sys.byteorder), _COUNT_AT)
    return is_first and count == 0


def _release(descriptor: int, name: str, *, is_ours: bool) -> None:
    """Give the lock back, and remove its file if it is of no use to others."""
    if is_ours and not _is_wanted(descriptor):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
    # A child forked meanwhile has a copy of the descriptor: closing this one alone keeps the lock.
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _is_named(descriptor: int, name: str) -> bool:
    """Tell whether an open file still has its name."""
    try:
        found = os.stat(name, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(descriptor))


def _is_wanted(descriptor: int) -> bool:
    """Tell whether somebody waits for the lock, or that cannot be told."""
    inode = os.fstat(descriptor).st_ino
    try:
        with open("/proc/locks", encoding="ascii") as file:
            waiting = [line.split() for line in file if "->" in line]
    except OSError:
        return True
    return any(field.endswith(f":{inode}") for fields in waiting for field in fields)
