"""Paired timing: contenders take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.load import DISTURBED, Moment, wait_for_quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Samples", "time_paired"]


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
    jobs: Mapping[str, Callable[[int], object]], *, repeats: int, patience_s: float = 0
) -> dict[str, Samples]:
    """Run every job once per repeat, each repeat beginning with another one.

    Parameters
    ----------
    jobs
        Called with the number of the repeat; equal numbers must mean equal work. Repeat 0 warms
        up and is not counted.
    repeats
        Counted repeats.
    patience_s
        Seconds to spend on waiting for a quiet machine and taking disturbed repeats again. What is
        disturbed is told by the CPU time of other programs, never by what was measured.
    """
    names = list(jobs)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    others: list[float] = []
    left = patience_s
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        order = names[turn:] + names[:turn]
        times, share = _run(jobs, order, repeat)
        while share is not None and share > DISTURBED and left > 0 and repeat:
            begin = time.monotonic()
            wait_for_quiet(left)
            times, share = _run(jobs, order, repeat)
            left -= time.monotonic() - begin
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
    begin = Moment.now()
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
    return taken, Moment.now().others_since(begin)
