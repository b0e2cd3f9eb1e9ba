"""Edits in place when something goes wrong: kills, full disks, forks, other writers, readers."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest

import mlarray_xr
from mlarray_xr import MlaArray
from mlarray_xr.errors import FormatError, SourceChanged, TargetBusy
from mlarray_xr.storage import frame_edit
from mlarray_xr.storage.frame_lock import frame_lock
from mlarray_xr.storage.frame_sections import reading
from mlarray_xr.storage.random_access import RandomAccessFile
from mlarray_xr.storage.source import source_of
from mlarray_xr.storage.staging import owned
from tests.test_edit import BOX, NEW, SHAPE, VALUES, assert_sound, edited, names_in, written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SECONDS = 60
TURN_BYTES = 31

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, signals")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any, int]]:
    """Record what is done to files: writes (bytes, position), cuts (None, size), syncs."""
    done: list[tuple[str, Any, int]] = []
    write, truncate, sync = (getattr(RandomAccessFile, n) for n in ("write", "truncate", "sync"))

    def record(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        done.append(("write", bytes(data), at))
        write(self, data, at=at)

    def cut(self: RandomAccessFile, size: int) -> None:
        done.append(("truncate", None, size))
        truncate(self, size)

    def synced(self: RandomAccessFile) -> None:
        done.append(("sync", None, 0))
        sync(self)

    monkeypatch.setattr(RandomAccessFile, "write", record)
    monkeypatch.setattr(RandomAccessFile, "truncate", cut)
    monkeypatch.setattr(RandomAccessFile, "sync", synced)
    return done


def at_the_turn(monkeypatch: pytest.MonkeyPatch, action: Callable[[], Any]) -> None:
    """Do something when all is appended and on disk, before the header means it."""
    write = RandomAccessFile.write

    def intercept(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        if len(data) == TURN_BYTES and at == 16:
            action()
        write(self, data, at=at)

    monkeypatch.setattr(RandomAccessFile, "write", intercept)


# A machine that stops


def content_of(path: Path) -> NDArray[Any]:
    """Return what all readers agree that a file holds."""
    values: NDArray[Any] = MlaArray(path)[...]
    np.testing.assert_array_equal(blosc2.open(str(path), mode="r")[...], values)
    assert mlarray_xr.verify(path, decode=True).state == "ok"
    return values


def replayed(before: bytes, calls: list[tuple[str, Any, int]]) -> bytes:
    """Return what a file is after some writes and cuts."""
    data = bytearray(before)
    for name, content, at in calls:
        if name == "write":
            data.extend(bytes(max(0, at - len(data))))
            data[at : at + len(content)] = content
        elif name == "truncate":
            data[:] = data[:at].ljust(at, b"\0")
    return bytes(data)


def moments(calls: list[tuple[str, Any, int]]) -> Iterator[tuple[list[Any], bool]]:
    """Yield what is done when the machine stops after each few bytes, and whether it is all."""
    for i, (name, content, at) in enumerate(calls):
        yield calls[:i], False
        # The last write is one that a disk does as a whole: less than a sector, inside the first.
        if name == "write" and not (at == 16 and len(content) == TURN_BYTES):
            for n_bytes in {1, 7, len(content) // 2, len(content) - 1}:
                yield [*calls[:i], (name, content[:n_bytes], at)], False
    yield calls, True


def test_whenever_it_stops_the_file_is_old_or_new(
    path: Path, calls: list[tuple[str, Any, int]]
) -> None:
    before, stopped = path.read_bytes(), path.with_name("stopped.mla")
    MlaArray(path, mode="r+").write(BOX, NEW)
    assert [name for name, *_ in calls][-4:] == ["truncate", "sync", "write", "sync"]
    assert calls[-2][2] == 16
    assert calls[-2][2] + TURN_BYTES <= 512
    assert replayed(before, calls) == path.read_bytes()
    turn = len(calls) - 2
    for done, _ in moments(list(calls)):
        stopped.write_bytes(replayed(before, done))
        expected = edited() if len(done) > turn else VALUES
        np.testing.assert_array_equal(content_of(stopped), expected)


def test_what_was_not_forced_to_disk_may_be_there_in_any_order(
    path: Path, calls: list[tuple[str, Any, int]]
) -> None:
    before, stopped = path.read_bytes(), path.with_name("stopped.mla")
    MlaArray(path, mode="r+").write(BOX, NEW)
    appended = list(itertools.takewhile(lambda call: call[0] != "sync", calls))
    assert len(appended) >= 5
    for count in range(len(appended) + 1):
        for done in itertools.combinations(appended, count):
            stopped.write_bytes(replayed(before, list(done)))
            np.testing.assert_array_equal(MlaArray(stopped)[...], VALUES)
    np.testing.assert_array_equal(content_of(stopped), VALUES)


def test_what_a_kill_leaves_behind_does_no_harm(
    path: Path, calls: list[tuple[str, Any, int]]
) -> None:
    before = path.read_bytes()
    MlaArray(path, mode="r+").write(BOX, NEW)
    wanted, expected = path.read_bytes(), VALUES.copy()
    expected[:2, :2] = 3
    for junk in (replayed(before, calls[:-2]), before + bytes(5), before + bytes(1 << 16)):
        path.write_bytes(junk)
        array = MlaArray(path, mode="r+")
        array[:2, :2] = 3
        assert_sound(path, expected)
        assert path.stat().st_size < len(wanted) + 1000


KILLED = """
import os, signal, sys
import numpy as np
from mlarray_xr import MlaArray
from mlarray_xr.storage.random_access import RandomAccessFile
path, n_calls = sys.argv[1], int(sys.argv[2])
def count(name):
    done = getattr(RandomAccessFile, name)
    def call(*args, **options):
        global n_calls
        n_calls -= 1
        if n_calls < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done(*args, **options)
    setattr(RandomAccessFile, name, call)
for name in ("write", "truncate", "sync"):
    count(name)
MlaArray(path, mode="r+").write(((5, 15), (4, 14)), np.load(sys.argv[3]))
"""


@linux_only
def test_a_killed_editor_is_replaced_by_the_next(path: Path) -> None:
    new = path.with_name("new.npy")
    np.save(new, NEW)
    before = path.read_bytes()
    for n_calls, is_new in ((0, False), (3, False), (7, False), (8, True)):
        path.write_bytes(before)
        command = [sys.executable, "-c", KILLED, str(path), str(n_calls), str(new)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert {"e.mla.b2lock", "e.mla.parts"} <= set(names_in(path.parent))
        expected = edited() if is_new else VALUES.copy()
        np.testing.assert_array_equal(content_of(path), expected)
        MlaArray(path, mode="r+")[0] = 1
        expected[0] = 1
        assert_sound(path, expected)
        assert not path.with_name("e.mla.parts").exists()


@pytest.mark.parametrize("n_writes", range(6))
def test_a_full_disk_leaves_the_old_content(
    path: Path, monkeypatch: pytest.MonkeyPatch, n_writes: int
) -> None:
    before, status = path.read_bytes(), path.stat()
    other, array, write = MlaArray(path), MlaArray(path, mode="r+"), RandomAccessFile.write
    left = itertools.count(n_writes, -1)

    def fill_up(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        is_full = next(left) == 0
        write(self, data[:9] if is_full and len(data) != TURN_BYTES else data, at=at)
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RandomAccessFile, "write", fill_up)
        with pytest.raises(OSError, match="No space left") as caught:
            array.write(BOX, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert names_in(path.parent) == ["e.mla"]
    if n_writes == 5:  # when the header was written already nobody can tell
        assert_sound(path, edited())
        return
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    np.testing.assert_array_equal(other[...], VALUES)
    array.write(BOX, NEW)
    assert_sound(path, edited())


def test_no_room_for_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    array = MlaArray(path, mode="r+")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            array.write(BOX, NEW)
    assert names_in(path.parent) == ["e.mla"]
    array.write(BOX, NEW)
    assert_sound(path, edited())


# Readers


def test_who_opens_the_file_just_before_the_turn_notices_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[MlaArray] = []

    def open_and_read() -> None:
        for is_read in (True, False):
            readers.append(MlaArray(path))
            if is_read:
                np.testing.assert_array_equal(readers[-1][...], VALUES)

    write, sync, clock = RandomAccessFile.write, RandomAccessFile.sync, []

    def stop_the_clock(self: RandomAccessFile) -> None:
        clock.append(self.stat().st_mtime_ns)
        sync(self)

    def write_at_once(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        write(self, data, at=at)
        if len(data) == TURN_BYTES:  # the time of the write before: clocks are coarse
            os.utime(path, ns=(0, clock[0]))

    monkeypatch.setattr(RandomAccessFile, "sync", stop_the_clock)
    monkeypatch.setattr(RandomAccessFile, "write", write_at_once)
    at_the_turn(monkeypatch, open_and_read)
    MlaArray(path, mode="r+").write(BOX, NEW)
    for reader in readers:
        with pytest.raises(SourceChanged):
            reader[...]


READS = """
import sys
import numpy as np
from mlarray_xr import MlaArray
from mlarray_xr.errors import SourceChanged
path, base = sys.argv[1], np.load(sys.argv[2])
print("begun", flush=True)
seen, n_changed = [], 0
while not seen or seen[-1] < 40:
    try:
        array = MlaArray(path)
        difference = np.unique(array[...] - base)
        assert difference.size == 1, difference
        seen.append(int(difference[0]))
    except SourceChanged:
        n_changed += 1
assert seen == sorted(seen)
print(len(set(seen)), n_changed)
"""


def test_readers_get_the_old_array_the_new_one_or_an_error(tmp_path: Path) -> None:
    base = np.random.default_rng(1).integers(0, 99, (64, 64, 16), np.int16)
    path = written(tmp_path, base, chunks=16, blocks=8, metadata=None)
    np.save(tmp_path / "base.npy", base)
    command = [sys.executable, "-c", READS, str(path), str(tmp_path / "base.npy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "begun\n"
        array = MlaArray(path, mode="r+")
        for number in range(1, 41):
            array[...] = base + np.int16(number)
        shown, errors = it.communicate(timeout=SECONDS)
    assert it.returncode == 0, errors
    assert int(shown.split()[0]) >= 2


# Other writers


HOLDS = """
import sys
from mlarray_xr import MlaArray
from mlarray_xr.storage.frame_edit import FrameEdit
finish = FrameEdit.finish
def wait(self):
    print("editing", flush=True)
    sys.stdin.readline()
    return finish(self)
FrameEdit.finish = wait
MlaArray(sys.argv[1], mode="r+")[5] = 7
"""


@contextlib.contextmanager
def another_editor(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that edits the file until it gets a line."""
    command = [sys.executable, "-c", HOLDS, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "editing\n"
            yield process
        finally:
            process.kill()


def test_another_process_is_named(path: Path) -> None:
    array = MlaArray(path, mode="r+")
    with another_editor(path) as process:
        who = rf"e\.mla: process {process.pid} on {socket.gethostname()!r} is writing it"
        for attempt in (
            lambda: array.write(BOX, NEW),
            lambda: MlaArray(path, mode="r+").write(BOX, NEW),
            lambda: mlarray_xr.to_mla(VALUES, path, mode="w"),
            lambda: mlarray_xr.create(path, shape=(3,), dtype="i2", mode="w").__enter__(),
        ):
            with pytest.raises(TargetBusy, match=who):
                attempt()
        np.testing.assert_array_equal(MlaArray(path)[...], VALUES)
        _, errors = process.communicate("go on\n", timeout=SECONDS)
        assert process.returncode == 0, errors
    expected = VALUES.copy()
    expected[5] = 7
    assert_sound(path, expected)
    with pytest.raises(SourceChanged):
        array.write(BOX, NEW)


def test_other_objects_of_this_process_are_refused_while_one_edits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array, other = MlaArray(path, mode="r+"), MlaArray(path, mode="r+")

    def disturb() -> None:
        with pytest.raises(TargetBusy, match=f"process {os.getpid()} on"):
            other.write(BOX, 0)

    at_the_turn(monkeypatch, disturb)
    array.write(BOX, NEW)
    assert_sound(path, edited())


def test_threads_take_turns(path: Path) -> None:
    array, rows = MlaArray(path, mode="r+"), range(SHAPE[0])

    def work(row: int) -> bool:
        array[row] = -row
        return bool((array[row] == -row).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, rows))
    assert_sound(path, np.repeat(-np.arange(SHAPE[0], dtype="i2")[:, None], SHAPE[1], axis=1))


def test_threads_with_objects_of_their_own_try_again(path: Path) -> None:
    def work(row: int) -> None:
        for _ in range(10_000):
            with contextlib.suppress(TargetBusy, SourceChanged):
                MlaArray(path, mode="r+")[row] = -row
                return
        pytest.fail(f"row {row} was never written")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(SHAPE[0])))
    assert_sound(path, np.repeat(-np.arange(SHAPE[0], dtype="i2")[:, None], SHAPE[1], axis=1))


def test_a_file_that_is_edited_while_it_is_opened_is_not_called_damaged(path: Path) -> None:
    source = source_of(path)
    MlaArray(path, mode="r+").write(BOX, NEW)
    with pytest.raises(SourceChanged), reading(source):
        raise FormatError("the header claims more bytes than there were")
    with pytest.raises(FormatError, match="damaged"), reading(source_of(path)):
        raise FormatError("really damaged")


def test_a_program_without_locks_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = RandomAccessFile.write

    def disturb(self: RandomAccessFile, data: bytes, *, at: int) -> None:
        write(self, data, at=at)
        if at and len(data) != TURN_BYTES:
            theirs = blosc2.open(str(path), mode="a")
            theirs[0:8, 0:8] = np.arange(64).reshape(8, 8)
            monkeypatch.setattr(RandomAccessFile, "write", write)

    monkeypatch.setattr(RandomAccessFile, "write", disturb)
    with pytest.raises(SourceChanged, match=r"another program wrote.*locking=True"):
        MlaArray(path, mode="r+").write(BOX, NEW)


# The lock of C-Blosc2


def hold_theirs(path: Path) -> Any:
    return blosc2.open(str(path), mode="a", locking=True)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Write a file without checksums: one that other programs may change without a trace."""
    blosc2.asarray(VALUES, chunks=(8, 8), blocks=(4, 4), urlpath=str(tmp_path / "e.b2nd"))
    return tmp_path / "e.b2nd"


def test_handles_with_locking_see_edits_and_are_seen(plain: Path) -> None:
    theirs, expected = hold_theirs(plain), VALUES.copy()
    np.testing.assert_array_equal(theirs[...], expected)
    for number in range(4):
        MlaArray(plain, mode="r+")[number : number + 9, 3:9] = number
        expected[number : number + 9, 3:9] = number
        np.testing.assert_array_equal(theirs[...], expected)
        theirs[number, :] = np.full((1, SHAPE[1]), -number)
        expected[number] = -number
        np.testing.assert_array_equal(MlaArray(plain)[...], expected)
    assert plain.with_name("e.b2nd.b2lock").exists()  # theirs, which they would not open again


def test_who_holds_their_lock_is_waited_for_and_then_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = hold_theirs(path)
    with theirs.schunk.holding_lock(), monkeypatch.context() as patch:
        patch.setattr(frame_edit, "frame_lock", partial(frame_lock, wait_seconds=0.05))
        with pytest.raises(TargetBusy, match=r"e\.mla\.b2lock.*locking=True.*holding_lock"):
            MlaArray(path, mode="r+").write(BOX, NEW)
    MlaArray(path, mode="r+").write(BOX, NEW)
    np.testing.assert_array_equal(theirs[...], edited())
    assert sorted(names_in(path.parent)) == ["e.mla", "e.mla.b2lock"]


def test_writers_of_both_kinds_lose_nothing(plain: Path) -> None:

    def ours(row: int) -> None:
        for _ in range(10_000):
            with contextlib.suppress(TargetBusy, SourceChanged):
                MlaArray(plain, mode="r+")[row] = row
                return
        pytest.fail(f"row {row} was never written")

    script = """
import sys, blosc2, numpy as np
theirs = blosc2.open(sys.argv[1], mode="a", locking=True)
print("begun", flush=True)
for row in range(1, 20, 2):
    theirs[row, :] = np.full((1, 18), row)
"""
    hold_theirs(plain)
    command = [sys.executable, "-c", script, str(plain)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        assert it.stdout is not None
        assert it.stdout.readline() == "begun\n"
        for row in range(0, 20, 2):
            ours(row)
        _, errors = it.communicate(timeout=SECONDS)
    assert it.returncode == 0, errors
    expected = np.repeat(np.arange(20, dtype="i2")[:, None], SHAPE[1], axis=1)
    np.testing.assert_array_equal(MlaArray(plain)[...], expected)
    np.testing.assert_array_equal(blosc2.open(str(plain), mode="r")[...], expected)


def test_one_holder_at_a_time_though_the_file_comes_and_goes(path: Path) -> None:
    inside: list[int] = []

    def hold(number: int) -> bool:
        with frame_lock(str(path)):
            inside.append(number)
            time.sleep(0.001)
            is_alone = inside == [number]
            inside.remove(number)
        return is_alone

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(hold, range(100)))


@linux_only
def test_a_lock_file_that_is_waited_for_stays(path: Path) -> None:
    import fcntl

    name, deadline = path.with_name("e.mla.b2lock"), time.monotonic() + SECONDS
    with contextlib.ExitStack() as stack:
        with frame_lock(str(path)):
            theirs = stack.enter_context(name.open("rb"))
            waiter = threading.Thread(target=fcntl.flock, args=(theirs, fcntl.LOCK_EX))
            waiter.start()
            inode = f":{os.fstat(theirs.fileno()).st_ino} "
            while not re.search(f"->.*{inode}", Path("/proc/locks").read_text()):
                assert time.monotonic() < deadline
        waiter.join(SECONDS)
        # They never look at the name again: were it another file, others would not see this lock.
        with pytest.raises(TargetBusy), frame_lock(str(path), wait_seconds=0):
            pass
    with frame_lock(str(path), wait_seconds=0):
        pass


def test_holders_are_counted_where_theirs_are(plain: Path) -> None:
    def count() -> int:
        return int.from_bytes(plain.with_name("e.b2nd.b2lock").read_bytes()[8:16], sys.byteorder)

    theirs = hold_theirs(plain)
    theirs[0, 0] = 1
    before = count()
    assert before > 0
    with frame_lock(str(plain)):
        assert count() == before + 1
    MlaArray(plain, mode="r+")[0, 0] = 2
    assert count() == before + 2


def test_a_link_is_no_lock_file(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"important text of somebody")
    path.with_name("e.mla.b2lock").symlink_to(victim)
    with pytest.raises(OSError, match="b2lock"):
        MlaArray(path, mode="r+").write(BOX, NEW)
    assert victim.read_bytes() == b"important text of somebody"
    np.testing.assert_array_equal(MlaArray(path)[...], VALUES)


# Forks


@linux_only
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_during_an_edit_keeps_no_lock_and_reads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = MlaArray(path, mode="r+")
    path.with_name("e.mla.b2lock").touch()  # so that it is one file all the time
    children: list[int] = []
    here, there = os.pipe()

    def fork() -> None:
        if child := os.fork():
            children.append(child)
            return
        try:
            signal.alarm(SECONDS)  # a lock that nobody gives back kills it
            os.read(here, 1)  # holds a copy of every descriptor until the edit is done
            found = MlaArray(path)[...]
            with pytest.raises(SourceChanged):
                array[...]
            os._exit(0 if np.array_equal(found, edited()) else 3)
        except BaseException:
            os._exit(4)

    # In another thread: of the child's locks one is then held by nobody who is there.
    at_the_turn(monkeypatch, lambda: run_in_thread(fork))
    try:
        array.write(BOX, NEW)
        with owned(str(path)), frame_lock(str(path), wait_seconds=0):
            pass
    finally:
        os.write(there, b"x")
    (child,) = children
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def run_in_thread(action: Callable[[], None]) -> None:
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(SECONDS)
