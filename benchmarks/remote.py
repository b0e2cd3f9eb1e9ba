"""Remote reads: the same volume over HTTP with the delays of a network, read in many ways."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cold_timing import ColdJob, time_cold
from benchmarks.data import random_boxes
from benchmarks.remote_files import stored_block_bytes, write_served
from benchmarks.remote_readers import (
    BLOSC2,
    BLOSC2_32,
    INDEXED,
    TENSORSTORE,
    TENSORSTORE_SHARDED,
    check,
    remote_contenders,
)
from benchmarks.report import Goal, Row, Skip, Table, timed_row
from benchmarks.serving import BYTES_PER_SECOND, ServedFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.data import Workplace
    from benchmarks.remote_readers import RemoteContender, RemoteReader
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_NAME = "remote"
_LATENCY_S = {"full": 0.02, "smoke": 0.001}
_MOST_REPEATS = 7
_POINTS = 100
_THREADS = 8
_PATCHES = {1: 16, _THREADS: 64}
_OPEN_REQUESTS = Goal(of="median", relation="<=", bound=2)
_OPEN_MB = Goal(of="median", relation="<=", bound=0.08)
_OVERREAD = Goal(of="median", relation="<=", bound=1.15)
_NOTHING = Goal(of="median", relation="<=", bound=0)
_HIT = Goal(of="ratio", relation=">=", bound=20)
_ZARR_PATCHES = Goal(of="ratio", relation=">=", bound=1.5)
_BLOSC2_PATCHES = Goal(of="ratio", relation=">=", bound=3)


def _at_least(bound: float) -> Goal:
    """Return the goal to be so many times faster."""
    return Goal(of="ratio", relation=">=", bound=bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One operation on an array, as it is done again in every repeat."""

    name: str
    """What reports call it."""
    act: Callable[[RemoteReader, int], object]
    """Does it."""
    prepare: Callable[[RemoteReader, int], object]
    """Comes before it."""
    goals: tuple[tuple[str, Goal], ...] = ()
    """Of contenders, by name: how many times faster ours is to be."""


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
            f"int16, shape {size.shape}, HTTP from another process on this machine, "
            f"{latency_s * 1e3:g} ms before every answer and again before the first one on a new "
            f"connection, {BYTES_PER_SECOND / 1e6:g} MB/s per connection. Every operation opens "
            "the array anew with nothing cached; connections stay open between them. Codec LZ4HC 8 "
            "with byte shuffle everywhere; blosc2 reads our file, and the chunks of the sharded "
            "Zarr stores are the blocks of it."
        )
        cases = _cases(size)
        yield _traffic(contenders, cases, server, folder, about=about)
        yield _single_reads(contenders, cases, size, about=about, skips=tuple(skips))
        yield _patches(contenders, size, about=about)


def _cases(size: Size) -> list[_Case]:
    """Return the operations."""

    def box(edge: int, repeat: int) -> Any:
        return random_boxes(size.shape, edge=edge, count=1, seed=repeat)[0]

    def read(edge: int, reader: RemoteReader, repeat: int) -> object:
        return reader.read(box(edge, repeat))

    def open_and_read(edge: int, reader: RemoteReader, repeat: int) -> object:
        reader.open()
        return read(edge, reader, repeat)

    def pick(reader: RemoteReader, repeat: int) -> object:
        return reader.pick(_points(size.shape, repeat))

    def read_slice(reader: RemoteReader, repeat: int) -> object:
        first = 1 + repeat * 7 % (size.shape[0] - 1)
        return reader.read(((first, first + 1), *((0, n) for n in size.shape[1:])))

    def opened(reader: RemoteReader, repeat: int) -> object:  # noqa: ARG001
        return reader.open()

    def nothing(reader: RemoteReader, repeat: int) -> object:
        """Leave the array as the last operation left it."""

    small, large = size.edges[:2]
    return [
        _Case(name="open", act=opened, prepare=nothing),
        _Case(
            name=f"{small} cubed",
            act=partial(read, small),
            prepare=opened,
            goals=((BLOSC2, _at_least(2)), (BLOSC2_32, _at_least(2))),
        ),
        _Case(name=f"open and {small} cubed", act=partial(open_and_read, small), prepare=nothing),
        _Case(
            name=f"{large} cubed",
            act=partial(read, large),
            prepare=opened,
            goals=((BLOSC2, _at_least(1.33)), (BLOSC2_32, _at_least(1.33))),
        ),
        _Case(
            name=f"{_POINTS} points",
            act=pick,
            prepare=opened,
            goals=(
                (BLOSC2, _at_least(2)),
                (BLOSC2_32, _at_least(2)),
                (TENSORSTORE, _at_least(1.43)),
                (TENSORSTORE_SHARDED, _at_least(1.43)),
            ),
        ),
        _Case(name="a slice of the first axis", act=read_slice, prepare=opened),
        _Case(
            name=f"{small} cubed again",
            act=partial(read, small),
            prepare=partial(open_and_read, small),
        ),
    ]


def _points(shape: tuple[int, ...], repeat: int) -> list[NDArray[np.int64]]:
    """Return uniformly random points, the same for the same repeat."""
    rng = np.random.default_rng([repeat, _POINTS])
    return [rng.integers(0, n, _POINTS) for n in shape]


def _traffic(
    contenders: list[RemoteContender],
    cases: list[_Case],
    server: ServedFolder,
    folder: Path,
    *,
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
            mine = contender.name == INDEXED
            is_again, is_open = case is cases[-1], case is cases[0]
            bounds = (_OPEN_REQUESTS, _OPEN_MB) if mine and is_open else (None, None)
            if done.requests:
                rows.append(
                    _counted(case.name, contender, done.requests, unit="requests", goal=bounds[0])
                )
            goal = _NOTHING if mine and is_again else bounds[1]
            rows.append(
                _counted(case.name, contender, done.bytes_sent / 1e6, unit="MB", goal=goal)
            )
            if mine and case is cases[1]:
                rows.append(_overread(contender, case, done.bytes_sent, folder))
    return Table(
        name=_NAME,
        title="Remote reads: requests and bytes",
        about=f"As the server counted them, once; MB of bodies. {about}",
        rows=tuple(rows),
    )
