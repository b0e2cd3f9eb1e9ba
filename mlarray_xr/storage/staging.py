"""The staging folder of one target: who writes it, what is written, and what is done already.

``<name>.mla.parts/`` stands beside the target from the first moment of a write to its last. Whoever
creates ``owner.json`` in it first is the only writer. ``plan.json`` says what is written; segments
of another plan or another write cannot be taken for its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, SourceError, TargetBusy
from mlarray_xr.storage.json_record import (
    create_record,
    read_record,
    remove_file,
    replace_record,
)
from mlarray_xr.storage.process_identity import is_dead, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Staging", "claim", "owned"]

_SUFFIX = ".parts"
_OWNER, _PLAN = "owner.json", "plan.json"
_ENDINGS = (".seg", ".tmp", ".raw")
_OWN_NAME = re.compile(r"(.*\.)?[0-9a-f]{32}\.[a-z]+", re.DOTALL)
_WRITE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_NAME_BYTES = 255
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
    claim_id: str
    """Names the claim; a write that is resumed has several."""

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
        record = read_record(self.path(_PLAN))
        if record is None or record.get("write_id") != self.write_id:
            msg = (
                f"{self.folder}: the folder no longer belongs to this write: it was finished, "
                "cancelled or started anew meanwhile, or this process does not see it. To fix: "
                "(1) start the write again; (2) write where all workers see the same files"
            )
            raise SourceError(msg)

    def release(self) -> None:
        """Give up ownership and leave what is done for a later write to resume."""
        _disown(self.folder, self.claim_id)

    def remove(self) -> None:
        """Remove the folder and everything of ours in it, unless another write has it by now.

        The plan goes first, so that straggling tasks stop; the owner's record last, so that nobody
        else begins before.
        """
        plan = _read_plan(self.folder) or {}
        if plan.get("write_id") != self.write_id and not _is_owner(self.folder, self.claim_id):
            return
        remove_file(self.path(_PLAN))
        _clear(self.folder)
        remove_file(self.path(_OWNER))
        for _ in range(_ATTEMPTS):
            _remove_empty(self.folder)
            # A task that was just beginning may have left something since. Whoever comes next owns
            # the folder long before there is anything in it that could be lost.
            if os.path.exists(self.path(_OWNER)) or not _clear(self.folder):
                break


def staging_folder(target: str) -> str:
    """Return the path of the staging folder of a target."""
    folder, name = os.path.split(target)
    if len(os.fsencode(name)) + len(_SUFFIX) > _MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return os.path.join(folder, name + _SUFFIX)


def claim(target: str, plan: Mapping[str, Any], *, resume: bool) -> tuple[Staging, dict[str, Any]]:
    """Become the only writer of a target.

    A folder that a dead process left is taken over: cleared, or kept when `resume` is asked for
    and its plan is the same. A process that resumes a write of its own, such as one whose Delayed
    failed, shares the claim that it has.

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
    owner, shared = _own(folder, target, resume=resume)
    if shared is not None:
        _check_same(shared, plan, folder)
        return _staging(folder, target, plan=shared, owner=owner), shared
    try:
        found = _read_plan(folder) if resume else None
        if found is not None:
            _check_same(found, plan, folder)
            _clear(folder, endings=(".tmp",))
        else:
            _clear(folder)
            found = {**plan, "write_id": uuid.uuid4().hex}
            _record_plan(folder, found)
    except BaseException:
        _disown(folder, owner["claim_id"])
        raise
    return _staging(folder, target, plan=found, owner=owner), found


def _staging(
    folder: str, target: str, *, plan: Mapping[str, Any], owner: Mapping[str, Any]
) -> Staging:
    """Return the address of a folder that is owned."""
    return Staging(
        folder=folder, target=target, write_id=plan["write_id"], claim_id=owner["claim_id"]
    )


@contextlib.contextmanager
def owned(target: str) -> Iterator[None]:
    """Be the only writer of a target while the block runs, and leave what others left to resume.

    Parameters
    ----------
    target
        Absolute path of the file.

    Raises
    ------
    TargetBusy
        When another writer is at work, or may be.
    OSError
        When the folder cannot be made.
    """
    folder = staging_folder(target)
    _make_folder(folder, target)
    owner, _ = _own(folder, target, resume=False)
    try:
        yield
    finally:
        _disown(folder, owner["claim_id"])


def _make_folder(folder: str, target: str) -> None:
    """Make the staging folder unless it is there."""
    try:
        os.mkdir(folder)
    except FileExistsError:
        try:
            is_folder = stat.S_ISDIR(os.lstat(folder).st_mode)
        except FileNotFoundError:
            return  # removed by a writer that just ended
        if not is_folder:
            msg = f"{folder}: not a folder, and a write to {target} needs it. To fix: remove it"
            raise SourceError(msg) from None


def _own(folder: str, target: str, *, resume: bool) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Create the owner's record, which only one process can; or share that of this process.

    Returns the record, and the plan when it is shared.
    """
    path = os.path.join(folder, _OWNER)
    mine = {**this_process(), "claim_id": uuid.uuid4().hex}
    for _ in range(_ATTEMPTS):
        if _create_owner(folder, mine):
            return mine, None
        owner = read_record(path)
        if owner is None:
            continue  # released between the two steps
        is_mine = {**mine, "claim_id": owner.get("claim_id")} == owner
        if resume and is_mine and (plan := _read_plan(folder)) is not None:
            return owner, plan
        if not is_dead(owner):
            break
        _depose(path, owner)
    raise _busy(folder, target)


def _create_owner(folder: str, owner: Mapping[str, Any]) -> bool:
    """Create the owner's record unless there is one; tell whether there was none."""
    try:
        return create_record(os.path.join(folder, _OWNER), owner)
    except FileNotFoundError:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)  # removed by a writer that just ended
        return False
    except BaseException:
        _remove_empty(folder)
        raise


def _is_owner(folder: str, claim_id: str) -> bool:
    """Tell whether the owner's record is that of a claim."""
    owner = read_record(os.path.join(folder, _OWNER)) or {}
    return owner.get("claim_id") == claim_id


def _disown(folder: str, claim_id: str) -> None:
    """End a claim; of an unfinished write, which can be resumed, the folder stays."""
    if _is_owner(folder, claim_id):
        remove_file(os.path.join(folder, _OWNER))
        _remove_empty(folder)


def _busy(folder: str, target: str) -> TargetBusy:
    """Return the error for a target that somebody else is writing."""
    owner = read_record(os.path.join(folder, _OWNER)) or {}
    who = "somebody, whose record cannot be read,"
    wait = "wait"
    if "pid" in owner:
        who = f"process {owner['pid']} on {owner.get('host')!r}"
        if {**this_process(), "claim_id": owner.get("claim_id")} == owner:
            wait = "that is this process: compute the Delayed that it has, or wait"
    return TargetBusy(
        f"{target}: {who} is writing it. To fix: (1) {wait}; (2) if nobody is for certain, remove "
        f"the folder {folder}"
    )


def _depose(path: str, owner: Mapping[str, Any]) -> None:
    """Remove the record of a dead owner, and not that of whoever came after it."""
    with _locked(path):
        if read_record(path) == owner:
            remove_file(path)


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold a lock on a file inside the block, where there are such locks.

    One of this machine is enough: nobody on another one calls an owner dead.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            mode = "r+b" if os.access(path, os.W_OK) else "rb"  # NFS locks what may be written
            file = stack.enter_context(open(path, mode))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def _record_plan(folder: str, plan: Mapping[str, Any]) -> None:
    """Record the plan of a folder that is owned.

    A writer that just ended may still clear it, and take the record before it has its name.
    """
    path = os.path.join(folder, _PLAN)
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FileNotFoundError):
            replace_record(path, plan)
            return
    replace_record(path, plan)


def _read_plan(folder: str) -> dict[str, Any] | None:
    """Return the plan recorded in a folder; None when there is none that names its write."""
    found = read_record(os.path.join(folder, _PLAN))
    is_named = found is not None and _WRITE_ID.fullmatch(str(found.get("write_id")))
    return found if is_named else None


def _clear(folder: str, *, endings: tuple[str, ...] = _ENDINGS) -> int:
    """Remove what writes leave in their folder, but for its records; return how much there was."""
    found = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            is_ours = _OWN_NAME.fullmatch(entry.name) and entry.name.endswith(endings)
            if is_ours and not entry.is_dir(follow_symlinks=False):
                remove_file(entry.path)
                found += 1
    return found


def _remove_empty(folder: str) -> None:
    """Remove a folder unless something is in it."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)
