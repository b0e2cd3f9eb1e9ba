"""Counters of reads: what was asked of a network, what came back, and what it was good for.

One of the package's few pieces of state: the process has one tally, every open file one of its
own, and every `measure` under way another. Whoever moves bytes adds to those that concern it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass, fields, replace
from operator import add, attrgetter
from typing import TYPE_CHECKING, Any

from mlarray_xr.html_table import facts_table
from mlarray_xr.planning.byte_amount import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Measurement", "ReadStats", "Tally", "measure", "stats", "tallies_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadStats:
    """What reads did; counts add up over threads, files, workers and times.

    Requests are counted as a server sees them, repeated ones each time. Bytes of failed requests
    that never arrived are not counted.

    Examples
    --------
    >>> first = ReadStats(requests=2, bytes_fetched=1000, hits=3, misses=1)
    >>> both = first + ReadStats(requests=1, bytes_fetched=500, peak_in_flight=4)
    >>> both.requests, both.bytes_fetched, both.peak_in_flight, both.hit_rate
    (3, 1500, 4, 0.75)
    """

    requests: int = 0
    """Requests that were sent, repeated ones included."""
    bytes_fetched: int = 0
    """Bytes of the objects that answers brought."""
    retries: int = 0
    """Requests that were sent again because the one before failed."""
    errors: int = 0
    """Requests that failed, whether they were sent again or not."""
    blocks_decoded: int = 0
    """Blocks that were decoded."""
    bytes_decoded: int = 0
    """Bytes of these blocks."""
    bytes_useful: int = 0
    """Bytes of the results."""
    hits: int = 0
    """Blocks that were in the block cache."""
    misses: int = 0
    """Blocks that had to be fetched."""
    joined: int = 0
    """Blocks that another read was fetching already."""
    evictions: int = 0
    """Blocks that the block cache dropped for others."""
    disk_bytes: int = 0
    """Bytes that the disk cache gave."""
    peak_in_flight: int = 0
    """Most requests under way at the same time; the larger of two when added."""
    fetch_seconds: float = 0.0
    """Time of all requests, summed."""
    busy_seconds: float = 0.0
    """Time during which any request was under way."""
    decode_seconds: float = 0.0
    """Time of decoding, summed over threads."""
    wait_seconds: float = 0.0
    """Time that reads waited for requests."""

    def __add__(self, other: object) -> ReadStats:
        """Return the sums."""
        if not isinstance(other, ReadStats):
            return NotImplemented
        added = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        added["peak_in_flight"] = max(self.peak_in_flight, other.peak_in_flight)
        return ReadStats(**added)

    def __radd__(self, other: object) -> ReadStats:
        """Return itself when `sum` begins with 0."""
        return self if other == 0 else NotImplemented

    @property
    def hit_rate(self) -> float:
        """Part of the blocks that needed no request of their own; NaN when none was asked for."""
        asked = self.hits + self.joined + self.misses
        return (self.hits + self.joined) / asked if asked else float("nan")

    @property
    def parallelism(self) -> float:
        """Mean number of requests under way while any was; NaN without requests."""
        return self.fetch_seconds / self.busy_seconds if self.busy_seconds else float("nan")

    @property
    def amplification(self) -> float:
        """Decoded over useful bytes; NaN when nothing was read."""
        return self.bytes_decoded / self.bytes_useful if self.bytes_useful else float("nan")

    def to_plain(self) -> dict[str, Any]:
        """Return all numbers as plain values, fit for JSON; rates that are not known are None."""
        rates = {name: getattr(self, name) for name in ("hit_rate", "parallelism", "amplification")}
        known = {name: None if rate != rate else rate for name, rate in rates.items()}
        return {f.name: getattr(self, f.name) for f in fields(self)} | known

    def __str__(self) -> str:
        """Return a short table."""
        return "\n".join(f"{name:<16} {text}" for name, text in self._rows())

    def _repr_html_(self) -> str:
        """Return the same table for notebooks."""
        return facts_table(self._rows(), title="read")

    def _rows(self) -> list[tuple[str, str]]:
        """Return the counts in words."""
        return [
            ("requests", f"{self.requests} ({self.retries} retries, {self.errors} errors)"),
            ("fetched", in_words(self.bytes_fetched)),
            ("from disk cache", in_words(self.disk_bytes)),
            ("decoded", f"{in_words(self.bytes_decoded)} in {self.blocks_decoded} blocks"),
            ("useful", in_words(self.bytes_useful)),
            ("blocks", f"{self.hits} cached, {self.joined} joined, {self.misses} fetched"),
            ("evicted", f"{self.evictions} blocks"),
            ("in flight", f"{self.peak_in_flight} at most, {self.parallelism:.1f} in the mean"),
            (
                "time",
                f"{self.busy_seconds:.3f} s network, {self.wait_seconds:.3f} s waiting, "
                f"{self.decode_seconds:.3f} s decoding",
            ),
        ]


_NAMES = tuple(field.name for field in fields(ReadStats))
_NUMBERS = attrgetter(*_NAMES)


class Tally:
    """Adds up what several threads report; its numbers are read as one `ReadStats`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Plain numbers: they are added to several times for every chunk that is read.
        self._total: list[Any] = list(_NUMBERS(ReadStats()))
        self._in_flight = 0
        self._peak = 0
        self._busy_seconds = 0.0
        self._busy_since = 0.0

    def add(self, stats: ReadStats) -> None:
        """Add counts."""
        numbers = _NUMBERS(stats)
        with self._lock:
            self._total = list(map(add, self._total, numbers))
            self._peak = max(self._peak, stats.peak_in_flight)

    def begin_request(self, *, at: float) -> None:
        """Count a request as under way."""
        with self._lock:
            if not self._in_flight:
                self._busy_since = at
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)

    def end_request(self, *, at: float) -> None:
        """Count a request as over; one that began before this tally did is none of its own."""
        with self._lock:
            if self._in_flight:
                self._in_flight -= 1
                if not self._in_flight:
                    self._busy_seconds += at - self._busy_since

    def snapshot(self) -> ReadStats:
        """Return what was counted so far."""
        with self._lock:
            counted = ReadStats(**dict(zip(_NAMES, self._total, strict=True)))
            busy = counted.busy_seconds + self._busy_seconds
            if self._in_flight:
                busy += time.perf_counter() - self._busy_since
            return replace(counted, peak_in_flight=self._peak, busy_seconds=busy)


class Measurement:
    """What `measure` gives: its `stats` are those of the block, also while it runs."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._final: ReadStats | None = None

    @property
    def stats(self) -> ReadStats:
        """What this process read since the block was entered, until it was left."""
        return self.tally.snapshot() if self._final is None else self._final

    def end(self) -> None:
        """Count nothing more, also not of requests that are under way."""
        self._final = self.tally.snapshot()

    def __str__(self) -> str:
        """Return the table of its stats."""
        return str(self.stats)

    def _repr_html_(self) -> str:
        """Return the same table for notebooks."""
        return self.stats._repr_html_()


_lock = threading.Lock()
_process = Tally()
_measuring: list[Tally] = []


def stats() -> ReadStats:
    """Return what this process has read through this package so far.

    Remote files count in full; of local ones useful bytes, and of points also the blocks.

    Examples
    --------
    >>> import mlarray_xr
    >>> mlarray_xr.stats().requests >= 0
    True
    """
    return _process.snapshot()


@contextlib.contextmanager
def measure() -> Iterator[Measurement]:
    """Count what this process reads while a block runs, on all of its threads.

    Yields
    ------
    Measurement
        Its ``stats`` is a `ReadStats`.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "uint8"), "measured.mla")
    >>> with mlarray_xr.measure() as measured:
    ...     _ = mlarray_xr.MlaArray("measured.mla")[1:3]
    >>> measured.stats.bytes_useful, measured.stats.requests
    (10, 0)
    """
    measurement = Measurement()
    with _lock:
        _measuring.append(measurement.tally)
    try:
        yield measurement
    finally:
        with _lock:
            is_counting = measurement.tally in _measuring  # not in a child that was forked inside
            if is_counting:
                _measuring.remove(measurement.tally)
        if is_counting:
            measurement.end()


def tallies_of(file: Tally) -> tuple[Tally, ...]:
    """Return every tally that what is read of a file concerns now."""
    with _lock:
        return (file, _process, *_measuring)


def _forget_after_fork() -> None:
    """Start afresh in a forked child: what the parent read is counted there."""
    global _lock, _process, _measuring
    _lock, _process, _measuring = threading.Lock(), Tally(), []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
