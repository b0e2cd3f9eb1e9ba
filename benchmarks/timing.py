"""Paired timing: contenders take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import cpu_count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Samples", "time_paired"]

_STAT = Path("/proc/stat")
# What a repeat may lose to other programs before it is taken again: 15 % of all CPUs. The
# system counts in steps of 10 ms, so much less cannot be told from nothing.
_DISTURBED = 0.15
_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Seconds one contender took, one value per repeat."""

    wall: tuple[float, ...]
    """Elapsed seconds."""
    cpu: tuple[float, ...]
    """CPU seconds of all threads of this process."""
    others: tuple[float, ...] = ()
    """Share of all CPUs that other programs used meanwhile, 0..1; empty where it is not known."""

    @property
    def median(self) -> float:
        """Median of the elapsed seconds."""
        return statistics.median(self.wall)

    @property
    def best(self) -> float:
        """Shortest of the elapsed seconds."""
        return min(self.wall)

    @property
    def cpu_median(self) -> float:
        """Median of the CPU seconds."""
        return statistics.median(self.cpu)

    def divided(self, count: int) -> Samples:
        """Return the seconds of one of `count` equal pieces of work."""
        return Samples(
            wall=tuple(s / count for s in self.wall),
            cpu=tuple(s / count for s in self.cpu),
            others=self.others,
        )

    def ratio_to(self, ours: Samples) -> float:
        """Return how many times longer this took than ours: the median over paired repeats."""
        pairs = zip(self.wall, ours.wall, strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)


def time_paired(
    jobs: Mapping[str, Callable[[int], object]], *, repeats: int, retries: int = 0
) -> dict[str, Samples]:
    """Run every job once per repeat, each repeat beginning with another one.

    Parameters
    ----------
    jobs
        Called with the number of the repeat; equal numbers must mean equal work. Repeat 0 warms
        up and is not counted.
    repeats
        Counted repeats.
    retries
        How many repeats may be taken again, for each counted one, because other programs were
        busy. That is told by their CPU time, never by what was measured.
    """
    names = list(jobs)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    others: list[float] = []
    left = retries * repeats
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        order = names[turn:] + names[:turn]
        times, share = _run(jobs, order, repeat)
        while share is not None and share > _DISTURBED and left and repeat:
            left -= 1
            time.sleep(_PAUSE_S)
            times, share = _run(jobs, order, repeat)
        if repeat:
            for name in names:
                taken[name].append(times[name])
            others += [] if share is None else [share]
    return {
        name: Samples(
            wall=tuple(wall for wall, _ in taken[name]),
            cpu=tuple(cpu for _, cpu in taken[name]),
            others=tuple(others),
        )
        for name in names
    }


def _run(
    jobs: Mapping[str, Callable[[int], object]], order: list[str], repeat: int
) -> tuple[dict[str, tuple[float, float]], float | None]:
    """Return elapsed and CPU seconds of each job, and the share of CPUs that others used."""
    taken = {}
    busy, own, begin = _busy_seconds(), time.process_time(), time.perf_counter()
    for name in order:
        gc.collect()
        gc.disable()
        try:
            cpu, wall = time.process_time(), time.perf_counter()
            jobs[name](repeat)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        finally:
            gc.enable()
        taken[name] = (wall, cpu)
    elapsed, own = time.perf_counter() - begin, time.process_time() - own
    after = _busy_seconds()
    if busy is None or after is None:
        return taken, None
    return taken, max(0.0, (after - busy - own) / (elapsed * cpu_count()))


def _busy_seconds() -> float | None:
    """Return the CPU seconds this machine has spent so far, None where it does not tell."""
    if not _STAT.is_file():
        return None
    counts = [int(n) for n in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    idle, waiting, guest = counts[3], counts[4], sum(counts[8:])
    return (sum(counts) - idle - waiting - guest) / os.sysconf("SC_CLK_TCK")
