"""Writes that are killed, that meet each other, and that find no room: no file is ever half."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest

import mlarray_xr
from mlarray_xr.errors import TargetBusy
from tests.write_kit import (
    LAYOUT,
    N_PARTS,
    PacedSource,
    check_file,
    folder_of,
    lazy,
    names_in,
    segments_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
HANGS_AFTER_SECONDS = 120
killing = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
OLD = np.full((5, 6), 7, np.int16)
VALUES = (np.arange(np.prod(PacedSource.shape), dtype="<i4") // 3).reshape(PacedSource.shape)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make parts of one chunk, and take the chunks of small Dask arrays as they are."""
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    monkeypatch.setattr("mlarray_xr.planning.write_plan._SMALLEST_BYTES", 0)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for a state that is bound to come."""
    deadline = time.monotonic() + HANGS_AFTER_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.002)


@pytest.fixture
def source(tmp_path: Path) -> PacedSource:
    (tmp_path / "notes").mkdir()
    return PacedSource(str(tmp_path / "notes"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "a.mla"


class Writer:
    """A write in processes of its own."""

    def __init__(
        self,
        source: PacedSource,
        target: Path,
        scheduler: str | None,
        *,
        most_bytes: int | None = None,
        **options: Any,
    ) -> None:
        asked = {
            "folder": source.folder,
            "target": str(target),
            "scheduler": scheduler,
            "most_bytes": most_bytes,
            "options": options,
        }
        command = "from tests.write_kit import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, json.dumps(asked)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """End all processes of the write at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def outcome(self) -> str:
        """Wait for the end, and return what was said of it."""
        return self.process.communicate(timeout=HANGS_AFTER_SECONDS)[0].strip()


def complete_file(folder: Path, source: PacedSource, **options: Any) -> bytes:
    """Return the file of a write that nobody disturbs; the notes of it are removed."""
    path = folder / "undisturbed.mla"
    mlarray_xr.to_mla(lazy(source), path, **LAYOUT, **options)
    forget_notes(source)
    return path.read_bytes()


def forget_notes(source: PacedSource) -> None:
    for note in Path(source.folder).glob("[0-9]*"):
        note.unlink()


def resume_after_kill(source: PacedSource, target: Path) -> None:
    """Go on with what was left, in this process; only what is missing may be computed."""
    left = {int(path.name.partition(".")[0]) for path in segments_in(target)}
    if not (folder_of(target) / "plan.json").exists():
        left = set()  # it was being removed: segments without a plan prove nothing
    forget_notes(source)
    source.allow(None)
    report = mlarray_xr.to_mla(lazy(source), target, mode="w", resume=True, **LAYOUT)
    assert sorted(part for part, _ in source.taken()) == sorted(set(range(N_PARTS)) - left)
    assert report.n_resumed_chunks == len(left)  # a part is a chunk


@killing
@pytest.mark.parametrize(
    ("scheduler", "held"),
    [("cluster", True), ("cluster", False), ("processes", True), (None, True), (None, False)],
)
def test_a_killed_write_leaves_the_old_file_or_the_new_one(
    tmp_path: Path, source: PacedSource, target: Path, scheduler: str | None, held: bool
) -> None:
    new = complete_file(tmp_path, source)
    mlarray_xr.to_mla(OLD, target)
    old = target.read_bytes()
    chance = random.SystemRandom()
    n_done = chance.randrange(1, N_PARTS - 2)
    source.allow(n_done if held else None)
    with Writer(source, target, scheduler, mode="w", resume=True) as writer:
        if held:
            wait_until(lambda: len(segments_in(target)) >= n_done)
            assert target.read_bytes() == old
        else:
            wait_until(lambda: len(segments_in(target)) >= n_done or target.read_bytes() != old)
            time.sleep(chance.random() / 20)
        writer.kill()
    found = target.read_bytes()
    assert found == old or (found == new and not held)
    is_left = folder_of(target).exists()
    assert is_left or found == new
    if is_left:
        assert {path.suffix for path in folder_of(target).iterdir()} <= {".json", ".seg", ".tmp"}
        resume_after_kill(source, target)
    assert target.read_bytes() == new
    assert names_in(target.parent) == ["a.mla"]
    check_file(target, VALUES)


@killing
def test_workers_that_outlive_their_client_do_no_harm(
    tmp_path: Path, source: PacedSource, target: Path
) -> None:
    new = complete_file(tmp_path, source)
    source.allow(5)
    with Writer(source, target, "processes", resume=True) as writer:
        wait_until(lambda: len(segments_in(target)) == 5 and len(source.taken()) == 7)
        writer.process.kill()
        writer.process.wait()
        # Two tasks wait in the workers, which go on while this process resumes.
        source.allow(None)
        mlarray_xr.to_mla(lazy(source), target, resume=True, **LAYOUT)
        assert target.read_bytes() == new
    assert target.read_bytes() == new
    check_file(target, VALUES)
    # They may have left a segment when the folder was about to go; it is in nobody's way.
    mlarray_xr.to_mla(OLD, target, mode="w")
    assert names_in(target.parent) == ["a.mla"]


@killing
@pytest.mark.parametrize("resume", [True, False])
def test_a_new_writer_takes_over_from_a_killed_one(
    tmp_path: Path, source: PacedSource, target: Path, resume: bool
) -> None:
    source.allow(4)
    with Writer(source, target, None, resume=resume) as writer:
        wait_until(lambda: len(source.taken()) > 4)
        with pytest.raises(TargetBusy, match=f"process {writer.process.pid} on"):
            mlarray_xr.to_mla(lazy(source), target, **LAYOUT)
        writer.kill()
    assert not target.exists()
    forget_notes(source)
    source.allow(None)
    report = mlarray_xr.to_mla(source, target, **LAYOUT)
    assert report.n_resumed_chunks == 0
    assert sorted(part for part, _ in source.taken()) == list(range(N_PARTS))
    assert names_in(target.parent) == ["a.mla"]
    check_file(target, VALUES)


@killing
def test_a_worker_that_is_killed_is_replaced(
    tmp_path: Path, source: PacedSource, target: Path
) -> None:
    from distributed import Client, LocalCluster

    new = complete_file(tmp_path, source)
    source.allow(6)
    addresses = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, **addresses) as cluster,
        Client(cluster, set_as_default=False) as client,
        client.as_current(),
    ):
        done = client.compute(mlarray_xr.to_mla(lazy(source), target, compute=False, **LAYOUT))
        wait_until(lambda: len(source.taken()) == 8 and len(segments_in(target)) == 6)
        killed = source.taken()[-1][1]
        os.kill(killed, signal.SIGKILL)
        source.allow(None)
        report = done.result(timeout=HANGS_AFTER_SECONDS)
    taken = [part for part, _ in source.taken()]
    assert set(taken) == set(range(N_PARTS))
    assert len(taken) > N_PARTS
    assert report.n_chunks == N_PARTS
    assert target.read_bytes() == new
    assert names_in(target.parent) == ["a.mla"]
    check_file(target, VALUES)


# Two writers


@killing
def test_of_two_writers_one_succeeds(source: PacedSource, target: Path) -> None:
    source.allow(0)
    with Writer(source, target, None) as first, Writer(source, target, None) as second:
        both = [first, second]
        wait_until(lambda: any(writer.process.poll() is not None for writer in both))
        wait_until(lambda: source.taken())
        loser, winner = sorted(both, key=lambda writer: writer.process.poll() is None)
        said = loser.outcome()
        assert said.startswith(f"TargetBusy: {target}: process {winner.process.pid} on ")
        assert repr(socket.gethostname()) in said
        assert not target.exists()
        source.allow(None)
        assert winner.outcome() == "done: 0 resumed"
    assert names_in(target.parent) == ["a.mla"]
    check_file(target, VALUES)


# A disk without room

FULL_DISK = """
import json, os, shutil, sys
from pathlib import Path
import numpy as np
import mlarray_xr
from tests.write_kit import LAYOUT, PacedSource, lazy, small_parts


def fill_and_resume(folder, is_lazy, resume, room):
    source, target = PacedSource(str(folder.parent)), folder / "a.mla"
    subject = lazy(source) if is_lazy else source
    options = {"mode": "w", "resume": resume, **LAYOUT}
    mlarray_xr.to_mla(np.full((5, 6), 7, np.int16), target)
    old, free = target.read_bytes(), os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(free.f_bavail * free.f_frsize - room))
    try:
        mlarray_xr.to_mla(subject, target, **options)
    except OSError as error:
        said = str(error)
    is_old = target.read_bytes() == old
    filler.unlink()
    left, n_segments = os.listdir(folder), len(list(folder.glob("*.parts/*.seg")))
    report = mlarray_xr.to_mla(subject, target, **options)
    names, values = os.listdir(folder), mlarray_xr.MlaArray(target)[...].tolist()
    target.unlink()
    return said, is_old, sorted(left), n_segments, report.n_resumed_chunks, names, values


small_parts()
cases = json.loads(sys.argv[2])
print(json.dumps([fill_and_resume(Path(sys.argv[1]), *case) for case in cases]))
"""
TMPFS = 'mount -t tmpfs -o size=4m none "$1" && shift && exec "$@"'


def small_disk(folder: Path) -> list[str]:
    """Return the beginning of a command that sees a file system of 4 MiB in a folder."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    command += ["sh", "-c", TMPFS, "small-disk", str(folder)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets nobody but its owner mount a small file system")
    return command


def test_a_full_disk_keeps_the_old_file_and_what_is_done(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    rooms = {"nothing": 0, "some parts": 80_000, "all parts": 200_000}
    cases = [
        (is_lazy, resume, room)
        for is_lazy, resume, room in itertools.product([False, True], [False, True], rooms.values())
        if is_lazy or resume or room != rooms["all parts"]  # without parts there is room enough
    ]
    command = [*small_disk(tmp_path / "out"), sys.executable, "-c", FULL_DISK]
    command += [str(tmp_path / "out"), json.dumps(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert not done.stderr
    results = json.loads(done.stdout)
    for (is_lazy, resume, room), result in zip(cases, results, strict=True):
        said, is_old, left, n_segments, n_resumed, names, values = result
        assert "No space left on device: " in said
        assert "/a.mla" in said
        assert is_old
        assert left == (["a.mla", "a.mla.parts"] if resume and room else ["a.mla"])
        assert n_segments in (range(1, N_PARTS + 1) if resume and room else {0})
        # Tasks that were under way in Dask's threads end after the error.
        assert n_segments <= n_resumed if is_lazy else n_segments == n_resumed
        assert names == ["a.mla"]
        assert values == VALUES.tolist()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize(("most_bytes", "n_segments"), [(64, 0), (6000, 0), (50_000, N_PARTS)])
def test_files_that_may_not_grow_keep_the_old_file_and_what_is_done(
    source: PacedSource, target: Path, most_bytes: int, n_segments: int
) -> None:
    mlarray_xr.to_mla(OLD, target)
    old = target.read_bytes()
    options = {"mode": "w", "resume": True}
    with Writer(source, target, None, most_bytes=most_bytes, **options) as writer:
        said = writer.outcome()
    assert said.startswith("OSError: [Errno 27] File too large")
    assert target.read_bytes() == old
    assert len(segments_in(target)) == n_segments
    assert folder_of(target).exists() == (most_bytes > 64)
    resume_after_kill(source, target)
    assert names_in(target.parent) == ["a.mla"]
    check_file(target, VALUES)
