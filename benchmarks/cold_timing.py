"""Cold timing: as paired timing, with something done before each job that is not timed."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.timing import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["ColdJob", "time_cold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdJob:
    """What is timed, and what puts everything back before it; both get the number of the repeat."""

    prepare: Callable[[int], object]
    """Not timed."""
    act: Callable[[int], object]
    """Timed."""


def time_cold(jobs: Mapping[str, ColdJob], *, repeats: int) -> dict[str, Samples]:
    """Run every job once per repeat, each repeat beginning with another one.

    Repeat 0 warms up and is not counted. What other programs use of the CPUs is not told: a server
    in another process is one of them.
    """
    names = list(jobs)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for repeat in range(repeats + 1):
        turn = repeat % len(names)
        gc.collect()
        for name in names[turn:] + names[:turn]:
            jobs[name].prepare(repeat)
            gc.disable()
            try:
                cpu, wall = time.process_time(), time.perf_counter()
                jobs[name].act(repeat)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            finally:
                gc.enable()
            if repeat:
                taken[name].append((wall, cpu))
    return {
        name: Samples(wall=tuple(w for w, _ in pairs), cpu=tuple(c for _, c in pairs))
        for name, pairs in taken.items()
    }
