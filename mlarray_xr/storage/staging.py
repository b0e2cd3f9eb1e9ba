"""The staging folder of one target: who writes it, what is written, and what is done already.

``<name>.mla.parts/`` stands beside the target from the first moment of a write to its last. Whoever
creates ``owner.json`` in it first is the only writer. ``plan.json`` says what is written; segments
of another plan or another write cannot be taken for its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, SourceError, TargetBusy

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Staging", "claim"]

_SUFFIX = ".parts"
_OWNER, _PLAN = "owner.json", "plan.json"
_OWN_ENDINGS = (".seg", ".tmp", ".raw")
_MAX_NAME_BYTES = 255
_MAX_RECORD_BYTES = 64 << 20
_ATTEMPTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """The address of a staging folder and of the one write that it belongs to; picklable."""

    folder: str
    """Absolute path."""
    target: str
    """Absolute path of the file that is written."""
    write_id: str
    """Names the write: 32 hexadecimal digits."""

    def path(self, name: str) -> str:
        """Return the path of something in the folder."""
        return os.path.join(self.folder, name)

    def check(self) -> None:
        """Make sure that the folder still belongs to this write.

        Raises
        ------
        SourceError
            When it is gone or belongs to another write: this one was finished or given up.
        """
        record = _read_record(self.path(_PLAN))
        if record is None or record.get("write_id") != self.write_id:
            msg = (
                f"{self.folder}: the folder no longer belongs to this write: it was finished, "
                "cancelled or started anew meanwhile. To fix: start the write again"
            )
            raise SourceError(msg)

    def release(self) -> None:
        """Give up ownership and leave what is done for a later write to resume."""
        _unlink(self.path(_OWNER))

    def remove(self) -> None:
        """Remove the folder and everything of ours in it; the last to go is the owner's record."""
        _clear(self.folder)
        _unlink(self.path(_OWNER))
        with contextlib.suppress(OSError):  # a straggling task may have left something just now
            os.rmdir(self.folder)


def staging_folder(target: str) -> str:
    """Return the path of the staging folder of a target."""
    folder, name = os.path.split(target)
    if len(os.fsencode(name)) + len(_SUFFIX) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, name + _SUFFIX)


def claim(target: str, plan: Mapping[str, Any], *, resume: bool) -> tuple[Staging, dict[str, Any]]:
    """Become the only writer of a target.

    A folder that a dead process left is taken over: cleared, or kept when `resume` is asked for
    and its plan is the same.

    Parameters
    ----------
    target
        Absolute path of the file to write.
    plan
        What will be written, as JSON. ``"fingerprint"`` is what must be equal to resume.
    resume
        Whether to go on with what is there.

    Returns
    -------
    staging, plan
        The folder, and the plan recorded there: on resuming that of the earlier write.

    Raises
    ------
    TargetBusy
        When another writer is at work, or may be.
    ConversionError
        When `resume` is asked for and the plan on disk is another one.
    OSError
        When the folder cannot be made.
    """
    folder = staging_folder(target)
    _make_folder(folder, target)
    recorded = _own(folder, target, resume=resume)
    try:
        found = _read_record(os.path.join(folder, _PLAN)) if resume else None
        if found is not None:
            _check_same(found, plan, folder)
            staging = Staging(folder=folder, target=target, write_id=str(found["write_id"]))
            _clear(folder, endings=(".tmp",))
            return staging, found
        _clear(folder)
        staging = Staging(folder=folder, target=target, write_id=recorded["write_id"])
        fresh = {**plan, "write_id": staging.write_id}
        _write_record(staging.path(_PLAN), fresh)
    except BaseException:
        _unlink(os.path.join(folder, _OWNER))
        raise
    return staging, fresh


def _make_folder(folder: str, target: str) -> None:
    """Make the staging folder."""
    if os.path.islink(folder) or (os.path.exists(folder) and not os.path.isdir(folder)):
        msg = f"{folder}: not a folder, and a write to {target} needs it. To fix: remove it"
        raise SourceError(msg)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)


def _own(folder: str, target: str, *, resume: bool) -> dict[str, Any]:
    """Create the owner's record, which only one process can; return it."""
    path = os.path.join(folder, _OWNER)
    mine = {**_this_process(), "write_id": uuid.uuid4().hex}
    for _ in range(_ATTEMPTS):
        if _create_record(path, mine):
            return mine
        owner = _read_record(path)
        if owner is None:
            continue  # released between the two steps
        is_mine = resume and all(owner.get(key) == mine[key] for key in _this_process())
        if not (is_mine or _is_dead(owner)):
            break
        _depose(path, owner)
    owner = _read_record(path) or {}
    msg = (
        f"{target}: process {owner.get('pid')} on {owner.get('host')!r} is writing it (write "
        f"{owner.get('write_id')}). To fix: (1) wait for it; (2) if it is known to be dead, remove "
        f"the folder {folder}"
    )
    raise TargetBusy(msg)


def _depose(path: str, owner: Mapping[str, Any]) -> None:
    """Move the record of a dead owner away; of several processes that try, one succeeds."""
    moved = f"{path}.{uuid.uuid4().hex}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, moved)
        if _read_record(moved) != owner:  # somebody else was faster, and this is the new owner
            with contextlib.suppress(OSError):
                os.link(moved, path)
        os.unlink(moved)


def _this_process() -> dict[str, Any]:
    """Return what tells whether this process is still alive, from any process of this machine."""
    return {
        "host": socket.gethostname(),
        "boot": _text_of("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": _link_of("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _is_dead(owner: Mapping[str, Any]) -> bool:
    """Tell whether an owner is dead for certain: one of another machine never is."""
    here = _this_process()
    if owner.get("host") != here["host"]:
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
    except OSError:
        return False
    return bool(owner.get("started")) and owner["started"] != _started(pid)


def _started(pid: int) -> str:
    """Return when a process started, in ticks since boot; numbers of processes are used again."""
    # Field 22; the second one is the name in parentheses, which may hold spaces.
    fields = _text_of(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 else ""


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


def _check_same(found: Mapping[str, Any], plan: Mapping[str, Any], folder: str) -> None:
    """Refuse to mix the work of two plans."""
    then, now = found.get("fingerprint"), plan["fingerprint"]
    if then == now:
        return
    old = then if isinstance(then, dict) else {}
    parts = [
        f"{name} was {old.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*old, *now})
        if old.get(name) != now.get(name)
    ]
    msg = (
        f"{folder}: holds the beginning of another write: {'; '.join(parts)}. To fix: "
        "(1) resume with what was written then; (2) resume=False starts over"
    )
    raise ConversionError(msg)


def _read_record(path: str) -> dict[str, Any] | None:
    """Return a record; None when it is not there or not whole."""
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _write_record(path: str, record: Mapping[str, Any]) -> None:
    """Write a record that others see whole or not at all."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with open(temporary, "x", encoding="utf-8") as file:
        json.dump(record, file)
    os.replace(temporary, path)


def _create_record(path: str, record: Mapping[str, Any]) -> bool:
    """Write a record unless there is one; whole at once, and never by two processes."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            json.dump(record, file)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path))  # removed by a writer that just ended
        return False
    except OSError:
        # File systems without hard links: exclusive, though not whole at once.
        with contextlib.suppress(FileExistsError), open(path, "x", encoding="utf-8") as file:
            json.dump(record, file)
            return True
        return False
    finally:
        _unlink(temporary)
    return True


def _clear(folder: str, *, endings: tuple[str, ...] = (*_OWN_ENDINGS, _PLAN)) -> None:
    """Remove what writes leave in their folder, but for the owner's record."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(endings):
                _unlink(entry.path)


def _unlink(path: str) -> None:
    """Remove a file that may be gone."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
