"""The staging folder: one writer at a time, dead ones replaced, living ones never."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mlarray_xr
from mlarray_xr.errors import ConversionError, SourceError, TargetBusy
from mlarray_xr.storage import process_identity
from mlarray_xr.storage import staging as staging_module
from mlarray_xr.storage.json_record import replace_record
from mlarray_xr.storage.process_identity import this_process
from mlarray_xr.storage.staging import Staging, claim, owned, staging_folder

if TYPE_CHECKING:
    from collections.abc import Callable

PLAN: dict[str, Any] = {"fingerprint": {"shape": [4], "codec": "lz4-1"}, "parts": [[4]]}
OTHER: dict[str, Any] = {"fingerprint": {"shape": [4], "codec": "zstd-1"}, "parts": [[4]]}
VALUES = np.arange(16, dtype="i2").reshape(4, 4)
HEX = "0123456789abcdef" * 2
SEGMENT = f"0000000003.{HEX}.seg"


def begin(target: Path, *, plan: Any = None, resume: bool = False) -> Staging:
    return claim(str(target), PLAN if plan is None else plan, resume=resume)[0]


def folder_of(target: Path) -> Path:
    return Path(staging_folder(str(target)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def leave_owner(target: Path, owner: Any) -> Path:
    """Leave a folder whose owner's record says something, as text or JSON."""
    folder = folder_of(target)
    folder.mkdir(exist_ok=True)
    text = owner if isinstance(owner, str) else json.dumps(owner)
    (folder / "owner.json").write_text(text)
    return folder


def record(**fields: Any) -> dict[str, Any]:
    """Return the record of an owner like this process, but for some fields."""
    return {**this_process(), "claim_id": HEX, **fields}


# Who owns a folder


def test_a_second_writer_is_told_of_the_first(tmp_path: Path) -> None:
    begin(tmp_path / "a.mla")
    expected = rf"a\.mla: process {os.getpid()} on {socket.gethostname()!r} is writing it"
    with pytest.raises(TargetBusy, match=expected):
        begin(tmp_path / "a.mla")
    with pytest.raises(TargetBusy, match=expected), owned(str(tmp_path / "a.mla")):
        pass
    assert names_in(tmp_path / "a.mla.parts") == ["owner.json", "plan.json"]


CLAIMS = """
import os, signal, sys
from mlarray_xr.errors import TargetBusy
from mlarray_xr.storage.staging import claim
plan = {"fingerprint": {"shape": [4], "codec": "lz4-1"}, "parts": [[4]]}
for resume in (False, True):
    try:
        claim(sys.argv[1], plan, resume=resume)
        print("claimed", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    except TargetBusy as error:
        print(error, flush=True)
"""


def run_claims(target: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CLAIMS, str(target)], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize("resume", [False, True])
def test_another_process_is_refused_until_this_one_ends(tmp_path: Path, resume: bool) -> None:
    target = tmp_path / "a.mla"
    mine = begin(target)
    refusals = run_claims(target)
    assert len(refusals) == 2
    assert all(f"process {os.getpid()} on" in refusal for refusal in refusals)
    mine.check()
    mine.release()
    assert run_claims(target) == ["claimed"]  # and then it is killed
    theirs = json.loads((folder_of(target) / "plan.json").read_text())["write_id"]
    again = begin(target, resume=resume)
    assert (again.write_id == theirs) == resume
    with pytest.raises(TargetBusy):
        begin(target)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_owner_that_nobody_has_waited_for_is_dead(tmp_path: Path) -> None:
    script = CLAIMS.replace("os.kill(os.getpid(), signal.SIGKILL)", "signal.pause()")
    command = [sys.executable, "-c", script, str(tmp_path / "a.mla")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        with pytest.raises(TargetBusy, match=f"process {process.pid} on"):
            begin(tmp_path / "a.mla")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)  # its number is still taken
        begin(tmp_path / "a.mla")


DEAD: dict[str, Callable[[], dict[str, Any]]] = {
    "ended": lambda: record(pid=dead_pid()),
    "its number is used again": lambda: record(started="1"),
    "the machine was started anew": lambda: record(boot="another"),
}
ALIVE: dict[str, Callable[[], dict[str, Any]]] = {
    "this process": record,
    "another host": lambda: record(host="elsewhere", pid=dead_pid()),
    "another host since started anew": lambda: record(host="elsewhere", boot="another"),
    "another container": lambda: record(pid_namespace="pid:[1]", pid=dead_pid()),
    "a system that does not tell": lambda: record(boot="", started=""),
    "somebody else's": lambda: record(pid=1, started=""),
}
DAMAGED: dict[str, Any] = {
    "empty": "",
    "torn": '{"host": "vm", "pi',
    "no object": "[]",
    "binary": "\x00\ufffd\x1f",
    "deep": "[" * 100_000,
    "long number": '{"pid": ' + "9" * 5000 + "}",
    "nothing": "{}",
    "no number": record(pid="1"),
    "truth": record(pid=True, started=""),
    "a group": record(pid=0),
    "everybody": record(pid=-1),
    "beyond all": record(pid=10**30),
    "fields of other types": record(host=[1], boot={}, pid=None, started=3),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("owner", DEAD.values(), ids=list(DEAD))
def test_a_dead_owner_is_replaced(tmp_path: Path, owner: Callable[[], dict[str, Any]]) -> None:
    folder = leave_owner(tmp_path / "a.mla", owner())
    (folder / SEGMENT).write_bytes(b"of before")
    mine = begin(tmp_path / "a.mla")
    assert names_in(folder) == ["owner.json", "plan.json"]
    mine.check()
    mine.remove()
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("owner", ALIVE.values(), ids=list(ALIVE))
def test_what_may_be_alive_is_never_replaced(
    tmp_path: Path, owner: Callable[[], dict[str, Any]], resume: bool
) -> None:
    folder = leave_owner(tmp_path / "a.mla", owner())
    before = (folder / "owner.json").read_bytes()
    with pytest.raises(TargetBusy, match=r"is writing it.*remove the folder .*a\.mla\.parts"):
        begin(tmp_path / "a.mla", resume=resume)
    assert (folder / "owner.json").read_bytes() == before
    assert names_in(folder) == ["owner.json"]


@pytest.mark.parametrize("owner", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_owners_record_is_refused_until_it_is_removed(tmp_path: Path, owner: Any) -> None:
    folder = leave_owner(tmp_path / "a.mla", owner)
    message = "record cannot be read" if isinstance(owner, str) else "is writing it"
    with pytest.raises(TargetBusy, match=rf"{message}.*remove the folder"):
        begin(tmp_path / "a.mla")
    (folder / "owner.json").unlink()  # what the message says
    begin(tmp_path / "a.mla").check()


def test_what_cannot_be_looked_at_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process out of file descriptors cannot read /proc."""
    begin(tmp_path / "a.mla")
    started = process_identity._started
    monkeypatch.setattr(
        process_identity,
        "_started",
        lambda pid: "" if sys._getframe(1).f_code.co_name == "is_dead" else started(pid),
    )
    with pytest.raises(TargetBusy):
        begin(tmp_path / "a.mla")


# Races


def is_claimed(target: str) -> bool:
    try:
        claim(target, PLAN, resume=False)
    except TargetBusy:
        return False
    return True


def claim_all(targets: list[str], start: str) -> list[bool]:
    while not os.path.exists(start):
        time.sleep(0.001)
    return [is_claimed(target) for target in targets]


def race_targets(tmp_path: Path) -> list[str]:
    """Return targets, every other one with a folder that a dead process left."""
    targets = [tmp_path / f"{number}.mla" for number in range(60)]
    pid = dead_pid()
    for target in targets[::2]:
        leave_owner(target, record(pid=pid))
    return [str(target) for target in targets]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_of_many_threads_one_becomes_the_owner(tmp_path: Path) -> None:
    targets = race_targets(tmp_path)
    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(claim_all, targets, str(tmp_path / "start")) for _ in range(6)]
        (tmp_path / "start").touch()
        found = np.array([job.result() for job in jobs])
    np.testing.assert_array_equal(found.sum(axis=0), 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_of_many_processes_one_becomes_the_owner(tmp_path: Path) -> None:
    targets = race_targets(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawn) as pool:
        jobs = [pool.submit(claim_all, targets, str(tmp_path / "start")) for _ in range(4)]
        (tmp_path / "start").touch()
        found = np.array([job.result() for job in jobs])
        np.testing.assert_array_equal(found.sum(axis=0), 1)
        for target in targets:
            assert names_in(folder_of(Path(target))) == ["owner.json", "plan.json"]


def test_a_dead_owner_is_not_deposed_twice(tmp_path: Path) -> None:
    """Whoever saw the dead one may be so slow that the next one is at work already."""
    dead = record(pid=dead_pid())
    path = str(leave_owner(tmp_path / "a.mla", dead) / "owner.json")
    mine = begin(tmp_path / "a.mla")
    staging_module._depose(path, dead)
    with pytest.raises(TargetBusy):
        begin(tmp_path / "a.mla")
    mine.check()


def test_folders_that_come_and_go(tmp_path: Path) -> None:
    def work(_: int) -> int:
        n_done = 0
        for _ in range(60):
            try:
                mine = begin(tmp_path / "a.mla")
            except TargetBusy:
                continue
            mine.check()
            (folder_of(tmp_path / "a.mla") / SEGMENT).touch()
            mine.check()
            mine.remove()
            n_done += 1
        return n_done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) > 0
    assert names_in(tmp_path) == []


def test_a_plan_that_is_cleared_away_is_recorded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, n_taken = replace_record, 0

    def taken_first(path: str, plan: Any) -> None:
        nonlocal n_taken
        n_taken += 1
        if n_taken == 1:
            raise FileNotFoundError(path)
        record(path, plan)

    monkeypatch.setattr(staging_module, "replace_record", taken_first)
    mine = begin(tmp_path / "a.mla")
    mine.check()
    assert n_taken == 2
    mine.remove()
    assert names_in(tmp_path) == []


# The end of a claim


def test_release_keeps_the_work_and_remove_does_not(tmp_path: Path) -> None:
    mine = begin(tmp_path / "a.mla")
    Path(mine.path(SEGMENT)).touch()
    mine.release()
    assert names_in(folder_of(tmp_path / "a.mla")) == [SEGMENT, "plan.json"]
    again = begin(tmp_path / "a.mla", resume=True)
    assert again.write_id == mine.write_id
    again.remove()
    assert names_in(tmp_path) == []
    again.remove()
    again.release()
    assert names_in(tmp_path) == []


def test_strange_files_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a.mla.parts"
    folder.mkdir()
    strange = ["notes.txt", "scan.raw", "x.seg", "draft.tmp", "my_plan.json"]
    for name in strange:
        (folder / name).write_text("mine")
    (folder / SEGMENT).mkdir()
    for name in (f"{HEX}.raw", f".{HEX}.tmp", f"plan.json.{HEX}.tmp", f"0000000007.{HEX}.seg"):
        (folder / name).touch()
    mlarray_xr.to_mla(VALUES, tmp_path / "a.mla")
    assert names_in(folder) == sorted([*strange, SEGMENT])
    assert all((folder / name).read_text() == "mine" for name in strange)
    assert names_in(tmp_path) == ["a.mla", "a.mla.parts"]


@pytest.mark.parametrize("end", [Staging.remove, Staging.release])
def test_a_superseded_writer_leaves_its_successor_alone(
    tmp_path: Path, end: Callable[[Staging], None]
) -> None:
    mine = begin(tmp_path / "a.mla")
    for path in folder_of(tmp_path / "a.mla").iterdir():
        path.unlink()  # by somebody who thinks it dead
    folder_of(tmp_path / "a.mla").rmdir()
    theirs = begin(tmp_path / "a.mla")
    Path(theirs.path(SEGMENT)).touch()
    with pytest.raises(SourceError, match="no longer belongs to this write"):
        mine.check()
    end(mine)
    theirs.check()
    assert names_in(folder_of(tmp_path / "a.mla")) == [SEGMENT, "owner.json", "plan.json"]
    with pytest.raises(TargetBusy):
        begin(tmp_path / "a.mla")


def test_an_interrupted_removal_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = begin(tmp_path / "a.mla")
    Path(mine.path(SEGMENT)).touch()

    def interrupt(folder: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(staging_module, "_clear", interrupt)
        with pytest.raises(KeyboardInterrupt):
            mine.remove()
    with pytest.raises(TargetBusy):
        begin(tmp_path / "a.mla")
    mine.remove()
    assert names_in(tmp_path) == []


def test_its_address_is_small_and_works_elsewhere(tmp_path: Path) -> None:
    mine = begin(tmp_path / "a.mla")
    data = pickle.dumps(mine)
    assert len(data) < 1000
    copy = pickle.loads(data)
    copy.check()
    copy.remove()
    with pytest.raises(SourceError, match="no longer belongs"):
        mine.check()


def test_ownership_alone_leaves_the_work_of_others(tmp_path: Path) -> None:
    target = tmp_path / "a.mla"
    with owned(str(target)), pytest.raises(TargetBusy):
        begin(target)
    assert names_in(tmp_path) == []
    mine = begin(target)
    Path(mine.path(SEGMENT)).touch()
    mine.release()
    with owned(str(target)):
        mine.check()
    assert begin(target, resume=True).write_id == mine.write_id
    assert SEGMENT in names_in(folder_of(target))


# The folder


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link"])
def test_something_else_in_its_place_is_refused(tmp_path: Path, kind: str) -> None:
    place, other = tmp_path / "a.mla.parts", tmp_path / "other"
    if kind == "file":
        place.write_text("mine")
    else:
        if kind == "link to a folder":
            other.mkdir()
            (other / SEGMENT).write_text("mine")
        place.symlink_to(other)
    before = names_in(tmp_path)
    with pytest.raises(SourceError, match=r"a\.mla\.parts: not a folder.*remove it"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla")
    assert names_in(tmp_path) == before
    if kind == "link to a folder":
        assert names_in(other) == [SEGMENT]


def test_longest_names_have_folders_of_their_own(tmp_path: Path) -> None:
    names = ["n" * 249, "n" * 250, "n" * 251 + "1234", "n" * 251 + "1235", "ä" * 127 + "1"]
    folders = {folder_of(tmp_path / name).name for name in names}
    assert len(folders) == len(names)
    assert all(len(os.fsencode(name)) <= 255 for name in folders)
    claims = [begin(tmp_path / name) for name in names]
    assert sorted(folders) == names_in(tmp_path)
    for one in claims:
        one.remove()
    assert names_in(tmp_path) == []


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def unsupported(*_: Any) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("resume", [True, False])
def test_a_full_disk_leaves_nothing_to_stumble_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool, resume: bool
) -> None:
    with monkeypatch.context() as patched:
        if not has_links:
            patched.setattr("os.link", unsupported)
        patched.setattr("mlarray_xr.storage.json_record.json.dump", full)
        with pytest.raises(OSError, match="No space left"):
            begin(tmp_path / "a.mla", resume=resume)
        assert names_in(tmp_path) == []
    with monkeypatch.context() as patched:
        patched.setattr(staging_module, "replace_record", full)
        with pytest.raises(OSError, match="No space left"):
            begin(tmp_path / "a.mla", resume=resume)
        assert names_in(tmp_path) == []
    begin(tmp_path / "a.mla", resume=resume)


def test_file_systems_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", unsupported)
    with ThreadPoolExecutor(4) as pool:
        (tmp_path / "start").touch()
        targets = [str(tmp_path / f"{number}.mla") for number in range(30)]
        jobs = [pool.submit(claim_all, targets, str(tmp_path / "start")) for _ in range(4)]
        found = np.array([job.result() for job in jobs])
    np.testing.assert_array_equal(found.sum(axis=0), 1)
    mlarray_xr.to_mla(VALUES, tmp_path / "a.mla")
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], VALUES)


# Plans


def test_resuming_adopts_the_write_and_its_parts(tmp_path: Path) -> None:
    mine = begin(tmp_path / "a.mla")
    folder = folder_of(tmp_path / "a.mla")
    for name in (SEGMENT, f"0000000004.{HEX}.tmp", f".{HEX}.tmp"):
        (folder / name).touch()
    mine.release()
    again, plan = claim(str(tmp_path / "a.mla"), {**PLAN, "parts": [[2, 2]]}, resume=True)
    assert again.write_id == mine.write_id
    assert again.claim_id != mine.claim_id
    assert plan["parts"] == [[4]]
    assert names_in(folder) == [SEGMENT, "owner.json", "plan.json"]
    mine.release()  # it is not the owner any more
    again.check()
    assert "owner.json" in names_in(folder)


def test_starting_over_clears_the_folder(tmp_path: Path) -> None:
    mine = begin(tmp_path / "a.mla")
    Path(mine.path(SEGMENT)).touch()
    mine.release()
    again = begin(tmp_path / "a.mla")
    assert again.write_id != mine.write_id
    assert names_in(folder_of(tmp_path / "a.mla")) == ["owner.json", "plan.json"]
    with pytest.raises(SourceError):
        mine.check()


def test_another_plan_is_refused_and_named(tmp_path: Path) -> None:
    mine = begin(tmp_path / "a.mla")
    Path(mine.path(SEGMENT)).touch()
    mine.release()
    expected = r"another write: codec was 'lz4-1', is 'zstd-1'\. To fix: .*resume=False starts over"
    with pytest.raises(ConversionError, match=expected):
        begin(tmp_path / "a.mla", plan=OTHER, resume=True)
    assert names_in(folder_of(tmp_path / "a.mla")) == [SEGMENT, "plan.json"]
    assert begin(tmp_path / "a.mla", resume=True).write_id == mine.write_id


def test_a_process_shares_the_claim_it_has(tmp_path: Path) -> None:
    """Such as that of a Delayed that failed: nothing tells when it is given up."""
    mine = begin(tmp_path / "a.mla", resume=True)
    Path(mine.path(f"0000000004.{HEX}.tmp")).touch()  # another thread may be at work
    with pytest.raises(ConversionError, match="codec was"):
        begin(tmp_path / "a.mla", plan=OTHER, resume=True)
    assert begin(tmp_path / "a.mla", resume=True) == mine
    assert f"0000000004.{HEX}.tmp" in names_in(folder_of(tmp_path / "a.mla"))
    with pytest.raises(TargetBusy):
        begin(tmp_path / "a.mla")


BROKEN_PLANS: dict[str, Any] = {
    "empty": "",
    "torn": '{"fingerprint": {"sha',
    "no object": "[]",
    "deep": "[" * 100_000,
    "no write": PLAN,
    "number": {**PLAN, "write_id": 5},
    "short": {**PLAN, "write_id": "ab"},
    "long": {**PLAN, "write_id": HEX + "a"},
    "a path": {**PLAN, "write_id": "../../../../../../../../../../etc"},
}


@pytest.mark.parametrize("plan", BROKEN_PLANS.values(), ids=list(BROKEN_PLANS))
def test_a_damaged_plan_is_no_plan(tmp_path: Path, plan: Any) -> None:
    folder = folder_of(tmp_path / "a.mla")
    folder.mkdir()
    (folder / "plan.json").write_text(plan if isinstance(plan, str) else json.dumps(plan))
    (folder / SEGMENT).touch()
    mine = begin(tmp_path / "a.mla", resume=True)
    mine.check()
    assert names_in(folder) == ["owner.json", "plan.json"]


@pytest.mark.parametrize("fingerprint", [None, [], "text", {"shape": None}, {"more": 1}])
def test_a_strange_fingerprint_is_another_write(tmp_path: Path, fingerprint: Any) -> None:
    folder = folder_of(tmp_path / "a.mla")
    folder.mkdir()
    plan = {"fingerprint": fingerprint, "write_id": HEX}
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ConversionError, match=r"another write: codec was None, is 'lz4-1'"):
        begin(tmp_path / "a.mla", resume=True)
    begin(tmp_path / "a.mla")


BROKEN_PARTS: dict[str, Any] = {
    "missing": ...,
    "null": None,
    "number": 5,
    "fewer axes": [[4]],
    "more axes": [[4], [4], [1]],
    "inside a chunk": [[3, 1], [4]],
    "too short": [[2], [4]],
    "too long": [[2, 4], [4]],
    "beyond all": [[10**12], [4]],
    "backwards": [[-2, 6], [4]],
    "nothing": [[0, 4], [4]],
    "no extents": [[], [4]],
    "fractions": [[4.0], [4]],
    "text": [["a"], [4]],
}


@pytest.mark.parametrize("parts", BROKEN_PARTS.values(), ids=list(BROKEN_PARTS))
def test_damaged_parts_of_a_plan_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: Any
) -> None:
    target, layout = tmp_path / "a.mla", {"chunks": 2, "blocks": 2, "codec": "lz4-1"}
    with monkeypatch.context() as patched:
        patched.setattr("mlarray_xr.storage.job.FrameWriter.finish", full)
        with pytest.raises(OSError, match="No space left"):
            mlarray_xr.to_mla(VALUES, target, resume=True, **layout)  # type: ignore[arg-type]
    path = folder_of(target) / "plan.json"
    plan = {**json.loads(path.read_text()), "parts": parts}
    if parts is ...:
        del plan["parts"]
    path.write_text(json.dumps(plan))
    with pytest.raises(ConversionError, match=r"a\.mla\.parts.*resume=False"):
        mlarray_xr.to_mla(VALUES, target, resume=True, **layout)  # type: ignore[arg-type]
    mlarray_xr.to_mla(VALUES, target, **layout)  # type: ignore[arg-type]
    np.testing.assert_array_equal(mlarray_xr.MlaArray(target)[...], VALUES)
    assert names_in(tmp_path) == ["a.mla"]
