"""The disk cache: right bytes whatever happens to its files, few requests, bounded, private."""

from __future__ import annotations

import contextlib
import errno
import itertools
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlarray_xr.errors import MlaWarning, SourceChanged
from mlarray_xr.storage import disk_cache
from mlarray_xr.storage.disk_cache import DiskCache, missing_runs
from mlarray_xr.storage.page_file import PAGE_BYTES, PageFile
from mlarray_xr.storage.piece import Piece
from mlarray_xr.storage.remote_source import RemoteAddress, RemoteSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlarray_xr.storage.piece import Transport

pytestmark = pytest.mark.skipif(not hasattr(os, "pread"), reason="no disk cache on this system")

ROOT = Path(__file__).parents[1]
KB, MB = 1 << 10, 1 << 20
PAGES = 20
SIZE = PAGES * PAGE_BYTES - 1234
# What a file system may add to the pages themselves: blocks of marks, and of its own bookkeeping.
SLACK_BYTES = 64 * KB


def content(seed: int, size: int = SIZE) -> bytes:
    """Return the bytes of an object; one of its pages holds zeros, as a hole does."""
    values = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    values[3 * PAGE_BYTES : 4 * PAGE_BYTES] = 0
    return values.tobytes()


@dataclass
class FakeTransport:
    """A server in memory that counts what it is asked for."""

    data: bytes
    etag: str | None = '"one"'
    requests: list[tuple[int, int]] = field(default_factory=list)
    is_down: bool = False
    answers_etag: bool = True

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        assert 0 <= start < stop <= len(self.data)
        self.requests.append((start, stop))
        if self.is_down:
            raise ConnectionError("down")
        if etag not in (None, self.etag):
            raise SourceChanged("replaced")
        shown = self.etag if self.answers_etag else None
        return Piece(data=self.data[start:stop], start=start, size=len(self.data), etag=shown)

    def fetch_tail(self, n_bytes: int) -> Piece:
        return self.fetch(max(len(self.data) - n_bytes, 0), len(self.data))


@dataclass
class Opened:
    """One object behind a disk cache, and what is counted about it."""

    server: FakeTransport
    cache: DiskCache
    url: str = "memory://object"
    digest: str = "d"
    hits: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.transport: Transport = self.cache.wrapped(
            self.server, self.source, on_hit=self.hits.append
        )

    @property
    def source(self) -> RemoteSource:
        address = RemoteAddress(url=self.url, digest=self.digest)
        return RemoteSource(address=address, size=len(self.server.data), etag=self.server.etag)

    def check(self, start: int = 0, stop: int | None = None) -> None:
        """Read a range and compare it."""
        stop = len(self.server.data) if stop is None else stop
        piece = self.transport.fetch(start, stop, etag=self.server.etag)
        assert piece == Piece(
            data=self.server.data[start:stop],
            start=start,
            size=len(self.server.data),
            etag=self.server.etag,
        )

    def counts(self) -> tuple[int, int, int]:
        """Return requests, bytes fetched and bytes from the disk since the last time."""
        asked = self.server.requests
        counted = (len(asked), sum(stop - start for start, stop in asked), sum(self.hits))
        asked.clear()
        self.hits.clear()
        return counted


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def opened(folder: Path, data: bytes | None = None, *, limit: int = 64 * MB) -> Opened:
    server = FakeTransport(content(0) if data is None else data)
    return Opened(server, DiskCache(str(folder), limit_bytes=limit))


def files(folder: Path, ending: str = "") -> list[Path]:
    return sorted(folder.glob(f"*{ending}"))


def allocated(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in files(folder))


def damage(path: Path, start: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(data)


# Requests and counters


def test_what_was_read_once_comes_from_the_disk_in_the_next_process(folder: Path) -> None:
    first = opened(folder)
    first.check()
    assert first.counts() == (1, SIZE, 0)
    second = opened(folder)
    second.check()
    second.check(5, 7)
    assert second.counts() == (0, 0, SIZE + 2)


def test_whole_pages_are_fetched_and_no_more(folder: Path) -> None:
    remote = opened(folder)
    remote.check(PAGE_BYTES + 1, 3 * PAGE_BYTES + 1)
    remote.check(SIZE - 1, SIZE)
    assert remote.server.requests == [
        (PAGE_BYTES, 4 * PAGE_BYTES),
        ((PAGES - 1) * PAGE_BYTES, SIZE),
    ]


def test_only_what_is_missing_is_fetched(folder: Path) -> None:
    remote = opened(folder)
    remote.check(0, 5 * PAGE_BYTES)
    remote.counts()
    remote.check(PAGE_BYTES // 2, 7 * PAGE_BYTES)
    assert remote.server.requests == [(5 * PAGE_BYTES, 7 * PAGE_BYTES)]
    assert remote.counts()[2] == 5 * PAGE_BYTES - PAGE_BYTES // 2


@given(
    pages=st.tuples(st.integers(0, 600), st.integers(1, 600)),
    have=st.sets(st.integers(0, 1200)) | st.just(set(range(300, 700))),
)
def test_requests_cover_what_is_missing_and_nothing_outside(
    pages: tuple[int, int], have: set[int]
) -> None:
    asked = range(pages[0], pages[0] + pages[1])
    runs = missing_runs(asked, have)
    covered = [page for run in runs for page in run]
    assert covered == sorted(set(covered))
    assert set(asked) - have <= set(covered) <= set(asked)
    assert all(run.start not in have and run[-1] not in have for run in runs)
    gaps = [right.start - left.stop for left, right in itertools.pairwise(runs)]
    assert all(gap * PAGE_BYTES > MB for gap in gaps)


def test_tails_other_validators_and_bad_ranges_go_to_the_server(folder: Path) -> None:
    remote = opened(folder)
    assert remote.transport.fetch_tail(10).data == remote.server.data[-10:]
    with pytest.raises(SourceChanged):
        remote.transport.fetch(0, 10, etag='"other"')
    for start, stop in ((0, SIZE + 1), (-1, 5), (5, 5)):
        with pytest.raises(AssertionError):
            remote.transport.fetch(start, stop)
    assert not files(folder)


@pytest.mark.parametrize("etag", [None, "", 'W/"one"', 'w/"one"'])
def test_objects_without_a_strong_validator_are_not_stored(folder: Path, etag: str | None) -> None:
    remote = Opened(FakeTransport(content(0), etag), DiskCache(str(folder), limit_bytes=MB))
    assert remote.transport is remote.server
    assert not folder.exists()


def test_answers_that_name_no_version_are_not_stored(folder: Path) -> None:
    remote = opened(folder)
    remote.server.answers_etag = False
    remote.check()
    remote.check()
    assert remote.counts() == (2, 2 * SIZE, 0)
    assert not files(folder)


def test_every_version_address_and_access_has_its_own_file(folder: Path) -> None:
    cache = DiskCache(str(folder), limit_bytes=64 * MB)
    servers = [
        Opened(FakeTransport(content(1)), cache),
        Opened(FakeTransport(content(2), etag='"two"'), cache),
        Opened(FakeTransport(content(3)), cache, url="memory://other"),
        Opened(FakeTransport(content(4)), cache, digest="e"),
        Opened(FakeTransport(content(5, SIZE + 1)), cache),
    ]
    for remote in servers * 2:
        remote.check()
    assert len(files(folder, ".dat")) == len(files(folder, ".crc")) == len(servers)


def test_a_failed_request_keeps_what_was_fetched_before(folder: Path) -> None:
    data = content(0, 3 * MB)
    remote = opened(folder, data)
    remote.check(MB, MB + 1)  # so that two requests are needed
    remote.check(2 * MB + PAGE_BYTES, len(data))
    remote.server.is_down = True
    with pytest.raises(ConnectionError):
        remote.transport.fetch(0, len(data))
    remote.check(2 * MB + PAGE_BYTES, len(data))
    remote.check(MB, MB + 1)


@pytest.mark.parametrize("data", [b"x", bytes(PAGE_BYTES), bytes(PAGE_BYTES + 1)])
def test_tiny_objects_and_zeros_are_stored(folder: Path, data: bytes) -> None:
    opened(folder, data).check()
    remote = opened(folder, data)
    remote.check()
    assert remote.counts() == (0, 0, len(data))


def test_a_page_with_a_crc_of_zero_is_stored(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    file = PageFile(folder=str(folder), name="a" * 64, size=4)
    before = zlib.crc32(f"{file.name} 0".encode())
    data = (before ^ 0x6DD90A9D).to_bytes(4, "little")
    assert zlib.crc32(data, before) == 0
    assert file.write(0, data, limit_bytes=MB) == 4
    assert {page: bytes(view) for page, view in file.read(range(1)).items()} == {0: data}


# Damage


class DamagedCache(RuleBasedStateMachine):
    """Reads, versions and evictions among every kind of damage to the files."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.servers = {
            etag: FakeTransport(content(seed), f'"{etag}"') for seed, etag in enumerate("ab")
        }

    @initialize(limit_pages=st.sampled_from([0, 1, 5, 30, 1000]))
    def open(self, limit_pages: int) -> None:
        self.limit_bytes = limit_pages * PAGE_BYTES
        self.reopen()

    @rule()
    def reopen(self) -> None:
        cache = DiskCache(str(self.folder), limit_bytes=self.limit_bytes)
        self.remotes = {etag: Opened(server, cache) for etag, server in self.servers.items()}

    @rule(etag=st.sampled_from("ab"), at=st.integers(0, SIZE - 1), length=st.integers(1, SIZE))
    def read(self, etag: str, at: int, length: int) -> None:
        remote, stop = self.remotes[etag], min(at + length, SIZE)
        remote.check(at, stop)
        requests, fetched, hits = remote.counts()
        begin, end = at - at % PAGE_BYTES, min(-(-stop // PAGE_BYTES) * PAGE_BYTES, SIZE)
        assert requests <= 1
        assert fetched <= end - begin
        assert stop - at <= hits + fetched
        assert hits <= stop - at

    @rule(etag=st.sampled_from("ab"), pages=st.integers(1, 5))
    def read_by_another_process_with_a_small_limit(self, etag: str, pages: int) -> None:
        cache = DiskCache(str(self.folder), limit_bytes=pages * PAGE_BYTES)
        Opened(self.servers[etag], cache).check(0, pages * PAGE_BYTES)
        self.remotes[etag].counts()

    @rule(
        index=st.integers(0, 3),
        part=st.floats(0, 1),
        data=st.binary(min_size=1, max_size=100) | st.just(bytes(2 * PAGE_BYTES)),
    )
    def overwrite(self, index: int, part: float, data: bytes) -> None:
        if path := self.file(index):
            damage(path, int(part * path.stat().st_size), data)

    @rule(index=st.integers(0, 3), part=st.floats(0, 1))
    def truncate(self, index: int, part: float) -> None:
        if path := self.file(index):
            os.truncate(path, int(part * path.stat().st_size))

    @rule(index=st.integers(0, 3))
    def empty_but_keep_the_length(self, index: int) -> None:
        if path := self.file(index):
            size = path.stat().st_size
            os.truncate(path, 0)
            os.truncate(path, size)

    @rule(index=st.integers(0, 3))
    def remove(self, index: int) -> None:
        if path := self.file(index):
            path.unlink()

    @rule(ending=st.sampled_from([".dat", ".crc"]))
    def exchange(self, ending: str) -> None:
        if len(found := files(self.folder, ending)) == 2:
            spare = self.folder / "spare"
            found[0].rename(spare)
            found[1].rename(found[0])
            spare.rename(found[1])

    @invariant()
    def nothing_else_is_left_behind(self) -> None:
        assert {path.suffix for path in files(self.folder)} <= {".dat", ".crc"}

    def file(self, index: int) -> Path | None:
        found = files(self.folder)
        return found[index] if index < len(found) else None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)


TestDamagedCache = DamagedCache.TestCase
TestDamagedCache.settings = settings(
    max_examples=60, stateful_step_count=25, suppress_health_check=list(HealthCheck)
)


def test_damaged_pages_are_found_fetched_and_repaired(folder: Path) -> None:
    opened(folder).check()
    (data_file,), (mark_file,) = files(folder, ".dat"), files(folder, ".crc")
    damage(data_file, 2 * PAGE_BYTES + 17, b"!")
    damage(mark_file, 4 * 5, b"!!!!")
    remote = opened(folder)
    remote.check(2 * PAGE_BYTES, 3 * PAGE_BYTES)
    remote.check(5 * PAGE_BYTES, 6 * PAGE_BYTES)
    assert remote.counts() == (2, 2 * PAGE_BYTES, 0)
    remote.check()
    assert remote.counts() == (0, 0, SIZE)


def test_pages_under_another_name_or_number_are_not_read(folder: Path) -> None:
    cache = DiskCache(str(folder), limit_bytes=64 * MB)
    remotes = [Opened(FakeTransport(content(seed)), cache, url=str(seed)) for seed in range(2)]
    for remote in remotes:
        remote.check()
    for ending in (".dat", ".crc"):
        first, second = files(folder, ending)
        shutil.copyfile(first, second)
        unit = PAGE_BYTES if ending == ".dat" else 4
        damage(first, 0, first.read_bytes()[unit : 2 * unit])
    for remote in remotes:
        remote.counts()
        remote.check(0, PAGE_BYTES)
        assert remote.counts() == (1, PAGE_BYTES, 0)


# The limit


@pytest.mark.parametrize("limit", [0, 100 * KB, 256 * KB, 400 * KB, 600 * KB])
@pytest.mark.parametrize("longest", [1, SIZE])
def test_many_objects_stay_within_the_limit(folder: Path, limit: int, longest: int) -> None:
    caches = [DiskCache(str(folder), limit_bytes=limit) for _ in range(5)]
    remotes = [
        Opened(FakeTransport(content(seed)), cache, url=f"memory://{seed}")
        for seed, cache in enumerate(caches)
    ]
    random = np.random.default_rng(0)
    for _ in range(300):
        start = int(random.integers(SIZE))
        stop = min(start + int(random.integers(longest)) + 1, SIZE)
        remotes[random.integers(5)].check(start, stop)
        assert allocated(folder) <= limit + SLACK_BYTES
    assert any(any(remote.hits) for remote in remotes) == (limit > 0)


def test_the_objects_not_opened_for_longest_go_first(folder: Path) -> None:
    size = 100 * KB
    cache = DiskCache(str(folder), limit_bytes=3 * size + SLACK_BYTES)

    def read(name: str) -> bool:
        """Tell whether an object was fetched."""
        time.sleep(0.02)  # more than a step of the clock that files get their times from
        remote = Opened(FakeTransport(content(0, size)), cache, url=name)
        remote.check()
        return remote.counts()[0] == 1

    assert [read(name) for name in "abcad"] == [True, True, True, False, True]
    assert [read(name) for name in "adb"] == [False, False, True]


def test_an_object_larger_than_the_limit_is_stored_in_part(folder: Path) -> None:
    limit = 256 * KB
    remote = opened(folder, content(0, 2 * MB), limit=limit)
    for start in range(0, 2 * MB, 64 * KB):
        remote.check(start, start + 64 * KB)
    remote.counts()
    remote.check()
    _, fetched, hits = remote.counts()
    assert limit // 2 < hits <= limit
    assert fetched < 2 * MB
    assert allocated(folder) <= limit + SLACK_BYTES


def test_holes_do_not_count(folder: Path) -> None:
    data = content(0, 4 * MB)
    for stop in (4 * MB, 3 * MB):
        opened(folder, data, limit=100 * KB).check(stop - 10, stop)
    remote = opened(folder, data, limit=100 * KB)
    remote.check(4 * MB - 10, 4 * MB)
    remote.check(3 * MB - 10, 3 * MB)
    assert remote.counts() == (0, 0, 20)


def test_whatever_else_is_in_the_folder_stays(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "notes.txt").write_bytes(bytes(MB))
    (folder / ("a" * 64 + ".dat")).mkdir()
    (folder / ("b" * 64 + ".crc")).symlink_to(folder / "notes.txt")
    before = set(files(folder))
    (folder / ("c" * 64 + ".dat")).write_bytes(bytes(MB))
    opened(folder, limit=100 * KB).check()
    assert {path for path in files(folder) if path.stem != own_name(folder)} == before


def own_name(folder: Path) -> str:
    """Return the name of the page file that `opened` makes."""
    (mark_file,) = (path for path in files(folder, ".crc") if not path.is_symlink())
    return mark_file.stem


# Folders that cannot be used


@contextlib.contextmanager
def warned_once(folder: Path) -> Iterator[None]:
    with pytest.warns(MlaWarning) as found:
        yield
    assert len(found) == 1
    assert str(folder) in str(found[0].message)
    assert "To fix" in str(found[0].message)


def failing(function: Callable[..., Any], number: int, when: Callable[..., bool]) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            raise OSError(number, os.strerror(number))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_stops_storing_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    remote = opened(folder)
    remote.check(0, 2 * PAGE_BYTES)
    left = 3 * PAGE_BYTES
    pwrite = os.pwrite

    def filling_up(file: int, data: memoryview, start: int) -> int:
        nonlocal left
        if not left:
            raise OSError(number, os.strerror(number))
        written = pwrite(file, data[:left], start)
        left -= written
        return written

    monkeypatch.setattr(os, "pwrite", filling_up)
    with warned_once(folder):
        remote.check()
        remote.check()
        other = Opened(remote.server, remote.cache, url="memory://other")
        other.check()
    assert remote.counts()[2] >= 2 * 2 * PAGE_BYTES
    monkeypatch.undo()
    again = opened(folder)
    again.check()
    assert again.counts() == (1, SIZE - 2 * PAGE_BYTES, 2 * PAGE_BYTES)


def test_a_write_of_less_than_was_asked_is_continued(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:1001], at))
    opened(folder).check()
    monkeypatch.undo()
    remote = opened(folder)
    remote.check()
    assert remote.counts() == (0, 0, SIZE)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EMFILE])
def test_a_folder_that_takes_no_files_serves_what_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    opened(folder).check(0, PAGE_BYTES)
    refusing = failing(os.open, number, lambda _, flags, *__, **___: flags & os.O_CREAT != 0)
    monkeypatch.setattr(os, "open", refusing)
    remote = opened(folder)
    with warned_once(folder):
        remote.check()
        remote.check()
    assert remote.counts()[2] == 2 * PAGE_BYTES


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_files_that_cannot_be_read_are_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    remote = opened(folder)
    remote.check()
    monkeypatch.setattr(os, "pread", failing(os.pread, number, lambda *_: True))
    with warned_once(folder):
        remote.check()
        remote.check()
    assert remote.counts() == (3, 3 * SIZE, 0)


def test_a_folder_that_is_removed_meanwhile_is_done_without(folder: Path) -> None:
    remote = opened(folder)
    remote.check(0, PAGE_BYTES)
    shutil.rmtree(folder)
    with warned_once(folder):
        remote.check()
        remote.check()
    assert not folder.exists()
    again = opened(folder)
    again.check()
    again.check()
    assert again.counts() == (1, SIZE, SIZE)


def test_a_file_in_the_place_of_the_folder_is_left_alone(folder: Path) -> None:
    folder.write_text("mine")
    with warned_once(folder):
        remote = opened(folder)
        remote.check()
        assert opened(folder).transport is not remote.transport
    assert remote.transport is remote.server
    assert folder.read_text() == "mine"


def test_the_folder_of_somebody_else_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(folder).check()
    user = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with warned_once(folder):
        remote = opened(folder)
    remote.check()
    assert remote.counts() == (1, SIZE, 0)


def test_a_folder_open_to_everybody_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o1777)
    with warned_once(folder):
        remote = opened(folder)
    assert remote.transport is remote.server


def test_nobody_else_may_look_at_the_files(folder: Path) -> None:
    previous = os.umask(0)
    try:
        opened(folder / "inner").check()
    finally:
        os.umask(previous)
    assert stat.S_IMODE((folder / "inner").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(folder / "inner")} == {0o600}


@pytest.mark.parametrize("ending", [".dat", ".crc"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "dangling", "pipe", "folder"])
def test_what_was_planted_under_a_name_is_not_followed(
    folder: Path, tmp_path: Path, kind: str, ending: str
) -> None:
    opened(folder).check()
    (planted,) = files(folder, ending)
    victim = tmp_path / "victim"
    planted.rename(victim)
    match kind:
        case "symlink":
            planted.symlink_to(victim)
        case "hard link":
            planted.hardlink_to(victim)
        case "dangling":
            planted.symlink_to(tmp_path / "absent")
        case "pipe":
            os.mkfifo(planted)
        case "folder":
            planted.mkdir()
    before = victim.read_bytes()
    with warned_once(folder):
        remote = opened(folder)
        remote.check()
        remote.check(0, 10)
    assert remote.counts()[2] == 0
    assert victim.read_bytes() == before
    assert not (tmp_path / "absent").exists()


def test_warnings_name_every_folder_once(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for name in "aba":
            (tmp_path / name).touch()
            opened(tmp_path / name)
    assert len(found) == 2


@pytest.mark.parametrize("name", ["../" + "a" * 61, "a" * 63, "A" * 64, "a" * 64 + "/"])
def test_page_files_cannot_leave_their_folder(name: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        PageFile(folder=".", name=name, size=1)


# Threads and processes


def test_threads_read_right_while_files_are_removed(folder: Path) -> None:
    remotes = [opened(folder, limit=limit) for limit in (64 * MB, 40 * KB, 100 * KB)]
    ended = threading.Event()

    def remove() -> None:
        while not ended.is_set():
            for path in files(folder):
                path.unlink(missing_ok=True)
            time.sleep(0.001)

    def read(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(40):
            start, stop = sorted(random.integers(0, SIZE, 2).tolist())
            remotes[random.integers(3)].check(start, stop + 1)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        with ThreadPoolExecutor(32) as pool:
            for done in [pool.submit(read, seed) for seed in range(32)]:
                done.result()
    finally:
        ended.set()
        remover.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_reads_and_stores(folder: Path) -> None:
    remote = opened(folder, limit=MB)
    remote.check(0, PAGE_BYTES)
    remote.counts()

    def read() -> None:
        remote.check()
        assert remote.counts() == (1, SIZE - PAGE_BYTES, PAGE_BYTES)

    held = threading.Event()
    ended = threading.Event()

    def hold() -> None:
        with disk_cache._lock:
            held.set()
            ended.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    child = multiprocessing.get_context("fork").Process(target=read)
    with warnings.catch_warnings():  # Python 3.12 and later warn of forks among threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    child.join(60)
    ended.set()
    holder.join()
    assert child.exitcode == 0
    remote.check()
    assert remote.counts() == (0, 0, SIZE)


READER = """
import sys
import numpy as np
from tests.test_disk_cache import SIZE, FakeTransport, Opened, content
from mlarray_xr.storage.disk_cache import DiskCache
folder, seed, limit, rounds = sys.argv[1], *map(int, sys.argv[2:])
cache = DiskCache(folder, limit_bytes=limit)
remotes = [Opened(FakeTransport(content(i)), cache, url=str(i)) for i in range(3)]
random = np.random.default_rng(seed)
print("ready", flush=True)
for _ in range(rounds):
    start, stop = sorted(random.integers(0, SIZE, 2).tolist())
    remotes[random.integers(3)].check(start, stop + 1)
print(sum(sum(remote.hits) for remote in remotes))
"""


def reader(folder: Path, seed: int, limit: int, rounds: int) -> subprocess.Popen[str]:
    arguments = [str(folder), str(seed), str(limit), str(rounds)]
    command = [sys.executable, "-W", "error", "-c", READER, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_processes_read_right_while_one_is_killed_and_files_are_evicted(folder: Path) -> None:
    endless = 1_000_000
    rest = [reader(folder, 1, 64 * MB, 400), reader(folder, 2, 150 * KB, 400)]
    killed = [reader(folder, 3, 64 * MB, endless), reader(folder, 4, 150 * KB, endless)]
    for process in killed:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    for process in killed:
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    for process in rest:
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert int(printed.splitlines()[-1]) > 0
    cache = DiskCache(str(folder), limit_bytes=64 * MB)
    for seed in range(3):
        Opened(FakeTransport(content(seed)), cache, url=str(seed)).check()
