"""Paired timing: contenders take turns, so that a busy machine slows all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
            wall=tuple(s / count for s in self.wall), cpu=tuple(s / count for s in self.cpu)
        )

    def ratio_to(self, ours: Samples) -> float:
        """Return how many times longer this took than ours: the median over paired repeats."""
        pairs = zip(self.wall, ours.wall, strict=True)
        return statistics.median(theirs / mine for theirs, mine in pairs)


def time_paired(
    jobs: Mapping[str, Callable[[int], object]], *, repeats: int
) -> dict[str, Samples]:
    """Run every job once per repeat, each repeat beginning with another one.

    Parameters
    ----------
    jobs
        Called with the number of the repeat; equal numbers must mean equal work. Repeat 0 warms
        up and is not counted.
    repeats
        Counted repeats.
    """
    names = list(jobs)
    walls: dict[str, list[float]] = {name: [] for name in names}
    cpus: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            gc.disable()
            try:
                cpu, wall = time.process_time(), time.perf_counter()
                jobs[name](repeat)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            finally:
                gc.enable()
            if repeat:
                walls[name].append(wall)
                cpus[name].append(cpu)
    return {name: Samples(wall=tuple(walls[name]), cpu=tuple(cpus[name])) for name in names}
