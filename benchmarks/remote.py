"""Remote reads: the same volume over HTTP with the delays of a network, read in many ways."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.cold_timing import ColdJob, time_cold
from benchmarks.data import random_boxes
from benchmarks.remote_cases import (
    AGAIN,
    LARGE,
    OPEN,
    POINTS,
    SMALL,
    RemoteCase,
    patch_box,
    remote_cases,
)
from benchmarks.remote_files import stored_block_bytes, write_served
from benchmarks.remote_readers import (
    BLOSC2,
    BLOSC2_MANY,
    INDEXED,
    TENSORSTORE,
    TENSORSTORE_SHARDED,
    check,
    remote_contenders,
)
from benchmarks.report import Goal, Row, Table, timed_row
from benchmarks.serving import BYTES_PER_SECOND, ServedFolder
from mlarray_xr.storage.read_settings import ReadSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.data import Workplace
    from benchmarks.remote_readers import RemoteContender
    from benchmarks.report import Skip
    from benchmarks.serving import Traffic
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_NAME = "remote"
_LATENCY_S = {"full": 0.02, "smoke": 0.001}
_MOST_REPEATS = 7
_THREADS = 8
_PATCHES = {1: 16, _THREADS: 64}
_OVERREAD = Goal(of="median", relation="<=", bound=1.15)
# Requests, and megabytes.
_TRAFFIC_GOALS: dict[str, tuple[float | None, float]] = {OPEN: (2, 0.08), AGAIN: (None, 0)}
# How many times faster ours is to be.
_GOALS: dict[tuple[str, str], float] = {
    **{(SMALL, name): 2 for name in (BLOSC2, BLOSC2_MANY)},
    **{(LARGE, name): 1.33 for name in (BLOSC2, BLOSC2_MANY)},
    **{(POINTS, name): 2 for name in (BLOSC2, BLOSC2_MANY)},
    **{(POINTS, name): 1.43 for name in (TENSORSTORE, TENSORSTORE_SHARDED)},
}
_HIT_GOAL = 20
_PATCH_GOALS = {"blosc2": 3, "zarr": 1.5}


def run(workplace: Workplace) -> Iterator[Table]:
    """Yield tables of requests and bytes, of single reads, and of patches read by threads."""
    folder, volume = workplace.folder / "served", workplace.volume("int16")
    write_served(volume, folder)
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    latency_s = _LATENCY_S[size.name]
    with ExitStack() as stack:
        server = stack.enter_context(ServedFolder(folder, latency_s=latency_s))
        contenders, skips = remote_contenders(server.url, stack)
        for contender in contenders:
            check(contender, volume.values)
        about = (
            f"int16, shape {size.shape}, over HTTP from another process on this machine: "
            f"{latency_s * 1e3:g} ms before every answer and again before the first one on a new "
            f"connection, {BYTES_PER_SECOND / 1e6:g} MB/s per connection. Arrays are opened anew "
            "for every operation, with nothing cached; connections stay open. All send "
            f"{ReadSettings().max_concurrency} requests at a time and cache in memory what they "
            "can, where nothing else is said. Codec LZ4HC 8 with "
            "byte shuffle everywhere; blosc2 reads our file, and the inner chunks of the sharded "
            "Zarr stores are its blocks."
        )
        cases = remote_cases(size.shape, edges=size.edges[:2])
        yield _traffic(contenders, cases, server, folder, size=size, about=about)
        yield _single_reads(contenders, cases, size, about=about, skips=tuple(skips))
        yield _patches(contenders, size, about=about)


def _traffic(
    contenders: list[RemoteContender],
    cases: list[RemoteCase],
    server: ServedFolder,
    folder: Path,
    *,
    size: Size,
    about: str,
) -> Table:
    """Count requests and bytes of every operation, done once."""
    rows = []
    for case in cases:
        for contender in contenders:
            case.prepare(contender.reader, 1)
            before = server.traffic()
            case.act(contender.reader, 1)
            done = server.traffic() - before
            rows += _traffic_rows(case, contender, done)
            if case.kind == SMALL and contender.name == INDEXED:
                box = patch_box(size.shape, size.edges[0], 1)
                needed = stored_block_bytes(folder / "indexed.mla", box)
                title, share = f"{case.title}, bytes of its blocks", done.bytes_sent / needed
                rows.append(_counted(title, INDEXED, share, unit="x", goal=_OVERREAD))
    return Table(
        name=_NAME,
        title="Remote reads, requests and bytes",
        about=f"As the server counted them, of one operation; MB of bodies. {about}",
        rows=tuple(rows),
    )


def _traffic_rows(case: RemoteCase, contender: RemoteContender, done: Traffic) -> list[Row]:
    """Return the rows of one operation."""
    most_requests, most_mb = None, None
    if contender.name == INDEXED:
        most_requests, most_mb = _TRAFFIC_GOALS.get(case.kind, (None, None))
    rows = []
    if done.requests:
        goal = None if most_requests is None else _at_most(most_requests)
        rows.append(_counted(case.title, contender.name, done.requests, unit="requests", goal=goal))
    goal = None if most_mb is None else _at_most(most_mb)
    rows.append(_counted(case.title, contender.name, done.bytes_sent / 1e6, unit="MB", goal=goal))
    return rows


def _single_reads(
    contenders: list[RemoteContender],
    cases: list[RemoteCase],
    size: Size,
    *,
    about: str,
    skips: tuple[Skip, ...],
) -> Table:
    """Time every operation, one at a time."""
    rows, found = [], {}
    for case in cases:
        jobs = {
            c.name: ColdJob(
                prepare=partial(case.prepare, c.reader), act=partial(case.act, c.reader)
            )
            for c in contenders
        }
        found[case.kind] = time_cold(jobs, repeats=size.repeats)
        goals = {
            c.name: _at_least(_GOALS[case.kind, c.name])
            for c in contenders
            if (case.kind, c.name) in _GOALS
        }
        rows += _timed_rows(case.title, contenders, found[case.kind], goals)
    hit, miss = (found[kind][INDEXED] for kind in (AGAIN, SMALL))
    title = f"{cases[-1].title}, and the first time"
    rows.append(timed_row(title, INDEXED, miss, mine=hit, goal=_at_least(_HIT_GOAL)))
    return Table(
        name=_NAME,
        title="Remote reads, one at a time",
        about=(
            f"Time per operation; what is faster is {INDEXED}. {about} The last row compares a "
            "patch that is not cached with one that is."
        ),
        rows=tuple(rows),
        skips=skips,
    )


def _patches(contenders: list[RemoteContender], size: Size, *, about: str) -> Table:
    """Time random patches, read by one thread and by several."""
    edge, rows = size.edges[0], []
    for threads, most in _PATCHES.items():
        count = most if size.name == "full" else 4

        def read_all(contender: RemoteContender, repeat: int, *, n: int, threads: int) -> None:
            boxes = random_boxes(size.shape, edge=edge, count=n, seed=repeat)
            contender.reader.read_all(boxes, threads)

        def opened(contender: RemoteContender, repeat: int) -> None:  # noqa: ARG001
            contender.reader.open()

        jobs = {
            c.name: ColdJob(
                prepare=partial(opened, c),
                act=partial(read_all, c, n=count, threads=threads),
            )
            for c in contenders
        }
        taken = time_cold(jobs, repeats=size.repeats)
        per_patch = {name: samples.divided(count) for name, samples in taken.items()}
        goals = {
            c.name: _at_least(bound)
            for c in contenders
            for library, bound in _PATCH_GOALS.items()
            if threads > 1 and c.name.startswith(library)
        }
        title = f"{count} patches, {edge} cubed, {threads} thread{'s' if threads > 1 else ''}"
        rows += _timed_rows(title, contenders, per_patch, goals)
    return Table(
        name=_NAME,
        title="Remote reads, random patches by threads",
        about=(
            "Elapsed time over the number of patches; the threads share one array. Nothing is "
            f"cached at first. {about}"
        ),
        rows=tuple(rows),
    )


def _timed_rows(
    title: str,
    contenders: list[RemoteContender],
    found: dict[str, Samples],
    goals: dict[str, Goal],
) -> list[Row]:
    """Return the rows of one operation, each compared with ours."""
    rows = []
    for contender in contenders:
        name = contender.name
        mine = None if name == INDEXED else found[INDEXED]
        row = timed_row(title, name, found[name], mine=mine, goal=goals.get(name))
        rows.append(replace(row, cpu=None) if contender.is_elsewhere else row)
    return rows


def _counted(case: str, contender: str, count: float, *, unit: str, goal: Goal | None) -> Row:
    """Return a row of something counted once."""
    return Row(case=case, contender=contender, unit=unit, median=count, best=count, goal=goal)


def _at_least(bound: float) -> Goal:
    """Return the goal to be so many times faster."""
    return Goal(of="ratio", relation=">=", bound=bound)


def _at_most(bound: float) -> Goal:
    """Return the goal to need no more than this."""
    return Goal(of="median", relation="<=", bound=bound)
