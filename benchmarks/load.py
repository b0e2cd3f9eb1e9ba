"""Load: what other programs take from the CPUs while something is measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.machine import cpu_count

__all__ = ["DISTURBED", "Moment", "wait_for_quiet"]

# Share of all CPUs. The system counts in steps of 10 ms, so much less cannot be told from nothing.
DISTURBED = 0.15

_STAT = Path("/proc/stat")
_LOOK_S = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The clocks at one time."""

    at: float
    """Seconds."""
    own: float
    """CPU seconds of this process so far."""
    machine: float | None
    """CPU seconds of the whole machine so far; None where it does not tell."""

    @classmethod
    def now(cls) -> Self:
        """Read the clocks."""
        return cls(at=time.perf_counter(), own=time.process_time(), machine=_machine_seconds())

    def others_since(self, earlier: Moment) -> float | None:
        """Return the share of all CPUs, 0..1, that other programs used since an earlier moment."""
        if self.machine is None or earlier.machine is None:
            return None
        theirs = (self.machine - earlier.machine) - (self.own - earlier.own)
        return max(0.0, theirs / ((self.at - earlier.at) * cpu_count()))


def wait_for_quiet(limit_s: float) -> None:
    """Return when other programs leave the CPUs alone, after a time limit at the latest."""
    for _ in range(max(1, int(limit_s / _LOOK_S))):
        begin = Moment.now()
        time.sleep(_LOOK_S)
        if (Moment.now().others_since(begin) or 0) <= DISTURBED:
            return


def _machine_seconds() -> float | None:
    """Return the CPU seconds the machine has spent on anything, Linux only."""
    if not _STAT.is_file():
        return None
    counts = [int(n) for n in _STAT.read_text(encoding="ascii").splitlines()[0].split()[1:]]
    idle, waiting, guests = counts[3], counts[4], sum(counts[8:])
    return (sum(counts) - idle - waiting - guests) / os.sysconf("SC_CLK_TCK")
