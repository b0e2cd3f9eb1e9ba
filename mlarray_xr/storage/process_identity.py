"""Which process owns a record, and whether it is still alive, from any process of its machine."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["is_dead", "this_process"]


def this_process() -> dict[str, Any]:
    """Return what tells whether this process is still alive, from any process of this machine."""
    return {
        "host": socket.gethostname(),
        "boot": _text_of("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link_of("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def is_dead(owner: Mapping[str, Any]) -> bool:
    """Tell whether an owner is dead for certain: one of another machine never is."""
    here = this_process()
    # On Windows the question would not be a question: os.kill ends or interrupts the process.
    if owner.get("host") != here["host"] or os.name != "posix":
        return False
    if owner.get("boot") != here["boot"]:
        return bool(here["boot"] and owner.get("boot"))
    pid = owner.get("pid")
    if owner.get("pid_namespace") != here["pid_namespace"] or not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    now = _started(pid)
    return bool(now and owner.get("started")) and now != owner["started"]


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; numbers of processes are used again.

    Nothing where it cannot be told, ``"ended"`` of one that only waits to be noticed by its parent.
    """
    # Fields 3 and 22; the second one is the name in parentheses, which may hold spaces.
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return ""
    return "ended" if fields[0] in "ZX" else fields[19]


def _text_of(path: str) -> str:
    """Return the text of a file of the kernel; nothing where there is none."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(4096).strip()
    except OSError:
        return ""


def _link_of(path: str) -> str:
    """Return where a link of the kernel points; nothing where there is none."""
    try:
        return os.readlink(path)
    except OSError:
        return ""
