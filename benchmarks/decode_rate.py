"""Decode rate: how much of Blosc2's own speed reaches the caller of `MlaArray.read`."""

from __future__ import annotations

import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

from benchmarks.contenders import ours, prepare
from benchmarks.data import random_boxes
from benchmarks.machine import cpu_count
from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume, Workplace
    from benchmarks.timing import Samples

__all__ = ["run"]

_NAME = "decode-rate"
_SHARE = Goal(of="median", relation=">=", bound=70)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Something that decodes, and how much."""

    name: str
    job: Callable[[int], object]
    """Does the work of one repeat."""
    decoded_bytes: Callable[[int], int]
    """Bytes that the work of one repeat must decode."""


def run(workplace: Workplace) -> list[Table]:
    """Return one table of rates and shares."""
    volumes = [workplace.volume("int16"), workplace.volume("float32")]
    rows = [row for volume in volumes for row in _rows(volume, workplace)]
    return [
        Table(
            name=_NAME,
            title="Share of Blosc2's own decoding rate",
            about=(
                f"{cpu_count()} threads. The limit decodes every chunk from memory into reused "
                "buffers with `blosc2.decompress2` and the GIL released, and puts nothing in its "
                "place; the second row does the same into one buffer as large as the volume, which "
                "costs memory bandwidth but no copy either. Rates count decoded bytes: those of "
                "all blocks that a read touches."
            ),
            rows=tuple(rows),
        )
    ]


def _rows(volume: Volume, workplace: Workplace) -> list[Row]:
    """Return the rows of one volume."""
    case, size = str(volume.values.dtype), workplace.size
    out = np.empty(volume.values.shape, volume.values.dtype)
    with ThreadPoolExecutor(cpu_count()) as pool:
        limit = _limit(volume, pool, is_large=False)
        works = [
            _limit(volume, pool, is_large=True),
            _whole_volume(volume, out),
            _patches(volume, workplace, pool),
            _patches(volume, workplace, None),
        ]
        before = blosc2.set_releasegil(True)
        try:
            found = time_paired(
                {w.name: w.job for w in (limit, *works)},
                repeats=size.repeats,
                patience_s=size.patience_s,
            )
        finally:
            blosc2.set_releasegil(before)
    if not np.array_equal(out, volume.values):
        msg = "the whole volume was read wrongly"
        raise RuntimeError(msg)
    limits, others = _rates(limit, found[limit.name]), found[limit.name].others
    rows = [_rate_row(case, limit.name, limits, others=others)]
    for work in works:
        rates = _rates(work, found[work.name])
        rows.append(_rate_row(case, work.name, rates, others=others))
        shares = (100 * rate / most for rate, most in zip(rates, limits, strict=True))
        rows.append(
            Row(
                case=case,
                contender=work.name,
                unit="% of the limit",
                median=statistics.median(shares),
                # Best against best: a hiccup of the limit is no achievement of ours.
                best=100 * max(rates) / max(limits),
                goal=None if work is works[0] else _SHARE,
            )
        )
    return rows


def _limit(volume: Volume, pool: ThreadPoolExecutor, *, is_large: bool) -> _Work:
    """Decode every chunk in all threads, into one small buffer each or side by side."""
    # The array must stay referenced: python-blosc2's chunk store dies with it.
    opened = blosc2.open(str(volume.path), mode="r")
    stored = opened.schunk
    chunks = [stored.get_chunk(number) for number in range(stored.nchunks)]
    threads = cpu_count()
    buffers = np.empty((len(chunks) if is_large else threads, stored.chunksize), np.uint8)

    def decode(thread: int) -> None:
        for number in range(thread, len(chunks), threads):
            # nthreads: Blosc2's own threads would make this slower, not faster.
            blosc2.decompress2(
                chunks[number], dst=buffers[number if is_large else thread], nthreads=1
            )

    nbytes = stored.nchunks * stored.chunksize
    return _Work(
        name=f"blosc2.decompress2 of every chunk, {'large buffer' if is_large else 'the limit'}",
        job=lambda repeat: list(pool.map(decode, range(threads))),  # noqa: ARG005
        decoded_bytes=lambda repeat: nbytes,  # noqa: ARG005 - every repeat does the same
    )


def _whole_volume(volume: Volume, out: np.ndarray[Any, Any]) -> _Work:
    """Read everything in one call into one buffer."""
    array = MlaArray(volume.path)
    whole: Box = tuple((0, n) for n in array.shape)
    return _Work(
        name=f"the whole volume, {cpu_count()} threads",
        job=lambda repeat: array.read(whole, out=out),  # noqa: ARG005 - as above
        decoded_bytes=lambda repeat: _touched_bytes(whole, array),  # noqa: ARG005
    )


def _patches(volume: Volume, workplace: Workplace, pool: ThreadPoolExecutor | None) -> _Work:
    """Read patches: with a thread of Python per CPU, or one after another with ours."""
    size, array = workplace.size, MlaArray(volume.path)
    edge, readers = size.edges[1], cpu_count() if pool else 1
    how = f"{readers} Python threads" if pool else "one at a time, default threads"
    wanted = ours.ONE_THREAD if pool else ours.POOL
    (contender,) = (c for c in prepare(volume, modules=("ours",))[0] if c.name == wanted)
    reads = [contender.open_reader() for _ in range(readers)]

    def boxes(repeat: int) -> list[Box]:
        count = size.patches(edge) * readers
        return random_boxes(size.shape, edge=edge, count=count, seed=repeat)

    def read_all(read: Read, boxes: Iterator[Box]) -> None:
        for box in boxes:
            read(box)

    def job(repeat: int) -> None:
        waiting = iter(boxes(repeat))
        if pool is None:
            read_all(reads[0], waiting)
        else:
            list(pool.map(read_all, reads, [waiting] * readers))

    return _Work(
        name=f"patches of {edge} cubed, {how}",
        job=job,
        decoded_bytes=lambda repeat: sum(_touched_bytes(box, array) for box in boxes(repeat)),
    )


def _touched_bytes(box: Box, array: MlaArray) -> int:
    """Return the bytes of all blocks that a box touches."""
    touched = 1
    for (start, stop), chunk, block in zip(box, array.chunks, array.blocks, strict=True):
        borders = range(start // chunk * chunk, stop, chunk)
        touched *= sum(
            -(-(min(stop, first + chunk) - first) // block) - (max(start, first) - first) // block
            for first in borders
        )
    return touched * math.prod(array.blocks) * array.dtype.itemsize


def _rates(work: _Work, samples: Samples) -> list[float]:
    """Return GB/s of every repeat."""
    return [
        work.decoded_bytes(repeat) / seconds / 1e9
        for repeat, seconds in enumerate(samples.wall, start=1)
    ]


def _rate_row(case: str, contender: str, rates: list[float], *, others: tuple[float, ...]) -> Row:
    """Return a row of rates, of which more is better."""
    return Row(
        case=case,
        contender=contender,
        unit="GB/s",
        median=statistics.median(rates),
        best=max(rates),
        others=others,
    )
