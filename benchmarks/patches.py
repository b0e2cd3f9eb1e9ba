"""Patches: random cubes, one at a time and by two threads, as training loaders read them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from benchmarks.contenders import OPTIONAL, ours, prepare, reference
from benchmarks.data import random_boxes
from benchmarks.report import Goal, Table, timed_row
from benchmarks.timing import time_paired

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.contenders import Contender, Read
    from benchmarks.data import Box, Workplace
    from benchmarks.report import Skip
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_NAME = "patches"
_READERS = 2
_ONE_THREAD = Goal(of="ratio", relation=">=", bound=1.0)
_POOL = Goal(of="ratio", relation=">=", bound=1.4)
_TWO_READERS = Goal(of="ratio", relation=">=", bound=2.5)


def run(workplace: Workplace) -> Iterator[Table]:
    """Yield one table per data type and way of reading."""
    for type_name in ("int16", "float32"):
        volume = workplace.volume(type_name)
        about = f"{type_name}, shape {volume.values.shape}, compression ratio {volume.ratio:.2f}"
        contenders, _ = prepare(volume, modules=("ours", "reference"))
        peers, skips = prepare(volume, modules=OPTIONAL)
        yield _one_at_a_time(contenders, workplace.size, about=about, title=type_name)
        yield _by_two_threads(contenders, workplace.size, about=about, title=type_name)
        yield _peers(
            contenders, peers, workplace.size, about=about, title=type_name, skips=tuple(skips)
        )


def _one_at_a_time(contenders: list[Contender], size: Size, *, about: str, title: str) -> Table:
    """Compare single patches with the reference package."""
    rows = []
    for edge in size.edges:
        found = _time_patches(contenders, size, edge=edge)
        theirs = found[reference.NAME]
        for label, mine, goal in (
            ("1 thread", ours.ONE_THREAD, _ONE_THREAD),
            ("1 thread, fresh buffers", ours.FRESH, None),
            ("default threads", ours.POOL, None if edge == size.edges[0] else _POOL),
        ):
            case = f"{edge} cubed, {label}"
            rows.append(timed_row(case, mine, found[mine]))
            rows.append(timed_row(case, reference.NAME, theirs, mine=found[mine], goal=goal))
    return Table(
        name=_NAME,
        title=f"Patches of {title}, one at a time",
        about=f"Time per random patch, one Python thread reading. Volume: {about}.",
        rows=tuple(rows),
    )


def _by_two_threads(contenders: list[Contender], size: Size, *, about: str, title: str) -> Table:
    """Compare two Python threads that each read their own patches."""
    chosen = [c for c in contenders if c.name in (ours.ONE_THREAD, reference.NAME)]
    rows = []
    for edge in size.edges:
        with ThreadPoolExecutor(_READERS) as pool:
            jobs = {c.name: _job(c, size, edge=edge, pool=pool) for c in chosen}
            samples = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
        found = {name: s.divided(size.patches(edge) * _READERS) for name, s in samples.items()}
        case = f"{edge} cubed, {_READERS} Python threads"
        mine, theirs = found[ours.ONE_THREAD], found[reference.NAME]
        goal = None if edge == size.edges[0] else _TWO_READERS
        rows.append(timed_row(case, ours.ONE_THREAD, mine))
        rows.append(timed_row(case, reference.NAME, theirs, mine=mine, goal=goal))
    return Table(
        name=_NAME,
        title=f"Patches of {title}, two Python threads",
        about=(
            "Time per random patch (elapsed time over the number of patches) while two Python "
            f"threads read, each with its own reader. Volume: {about}."
        ),
        rows=tuple(rows),
    )


def _peers(
    contenders: list[Contender],
    peers: list[Contender],
    size: Size,
    *,
    about: str,
    title: str,
    skips: tuple[Skip, ...],
) -> Table:
    """Compare single patches with other formats that hold the same values."""
    pool = [c for c in contenders if c.name == ours.POOL]
    rows = []
    for edge in size.edges:
        found = _time_patches([*pool, *peers], size, edge=edge)
        case, mine = f"{edge} cubed", found.pop(ours.POOL)
        rows.append(timed_row(case, ours.POOL, mine))
        rows += [timed_row(case, name, theirs, mine=mine) for name, theirs in found.items()]
    return Table(
        name=_NAME,
        title=f"Patches of {title}, other formats",
        about=(
            "Time per random patch, one Python thread reading, every library with its own default "
            f"threads; codec LZ4HC 8 with byte shuffle everywhere. Volume: {about}."
        ),
        rows=tuple(rows),
        skips=skips,
    )


def _time_patches(contenders: list[Contender], size: Size, *, edge: int) -> dict[str, Samples]:
    """Return seconds per patch of each contender."""
    jobs = {c.name: _job(c, size, edge=edge, pool=None) for c in contenders}
    samples = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    return {name: s.divided(size.patches(edge)) for name, s in samples.items()}


def _job(
    contender: Contender, size: Size, *, edge: int, pool: ThreadPoolExecutor | None
) -> Callable[[int], object]:
    """Return what reads one repeat's patches, alone or in the threads of a pool."""
    readers = [contender.open_reader() for _ in range(_READERS if pool else 1)]
    count = size.patches(edge) * len(readers)

    def read_all(read: Read, boxes: Iterator[Box]) -> None:
        for box in boxes:
            read(box)

    def job(repeat: int) -> None:
        # One list for all threads, so that none is idle while another has patches left.
        boxes = iter(random_boxes(size.shape, edge=edge, count=count, seed=repeat))
        if pool is None:
            read_all(readers[0], boxes)
            return
        for future in [pool.submit(read_all, read, boxes) for read in readers]:
            future.result()

    return job
