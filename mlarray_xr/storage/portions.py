"""Portions: what one piece of a multipart upload holds, on its way to the store or there already.

The chunks of a frame may stand in any order, so portions do: their places follow from their sizes
when all of them are known. Small ones travel until enough of them have met.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.storage.encode import EncodedChunk, FramePlan

__all__ = [
    "FIRST_NUMBER",
    "Portion",
    "PortionRecord",
    "halves",
    "joined",
    "plan_groups",
    "portion_of",
]

FIRST_NUMBER = 1
"""Number of the portion that stands behind the header of the frame."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Portion:
    """Stored chunks, one after another."""

    number: int
    """Where it stands among the portions."""
    size: int
    """Bytes of the chunks."""
    entries: NDArray[Any]
    """Records of the chunks; offsets count from the portion's first byte."""
    etag: str = ""
    """Validator that the store gave; empty as long as it has not got the portion."""
    data: bytes = field(default=b"", repr=False)
    """The chunks, as long as the store has not got them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PortionRecord:
    """What is known of some parts of a write: their portions, and who encoded them."""

    portions: tuple[Portion, ...]
    """In any order."""
    processes: frozenset[str]
    """Host and number of every process."""
    part: int
    """Number of one of the parts."""


def portion_of(chunks: Iterable[EncodedChunk], *, number: int, plan: FramePlan) -> Portion:
    """Return encoded chunks as one portion."""
    entries, data, position = [], [], 0
    for chunk in chunks:
        entry = chunk.entry.copy()
        entry["offset"] = position
        position += len(chunk.data)
        entries.append(entry)
        data.append(chunk.data)
    table = np.array(entries, plan.entry_dtype)
    return Portion(number=number, size=position, entries=table, data=b"".join(data))


def halves(portion: Portion, *, least_bytes: int) -> list[Portion]:
    """Split off the first chunks of a portion, enough bytes of them, as the first portion of all.

    Of a small portion nothing is split off; all of it, if what is left would be small.
    """
    if portion.size < least_bytes:
        return [portion]
    ends = portion.entries["offset"] + portion.entries["length"]
    n_kept = int(np.searchsorted(ends, least_bytes)) + 1
    cut = int(ends[n_kept - 1])
    if portion.size - cut < least_bytes:
        return [replace(portion, number=FIRST_NUMBER)]
    rest = portion.entries[n_kept:].copy()
    rest["offset"] -= cut
    first = Portion(
        number=FIRST_NUMBER,
        size=cut,
        entries=portion.entries[:n_kept].copy(),
        data=portion.data[:cut],
    )
    second = Portion(
        number=portion.number,
        size=portion.size - cut,
        entries=rest,
        data=portion.data[cut:],
    )
    return [first, second]


def plan_groups(sizes: Sequence[int], *, least_bytes: int) -> list[slice]:
    """Cut a row of sizes into groups of at least so many bytes; what is left over forms none.

    Examples
    --------
    >>> plan_groups([3, 3, 5, 1, 1], least_bytes=5)
    [slice(0, 2, None), slice(2, 3, None)]
    """
    groups, start, total = [], 0, 0
    for stop, size in enumerate(sizes, 1):
        total += size
        if total >= least_bytes:
            groups.append(slice(start, stop))
            start, total = stop, 0
    return groups


def joined(portions: Sequence[Portion]) -> Portion:
    """Return several portions as one, which has the number of the first of them."""
    starts = np.cumsum([0, *(portion.size for portion in portions)])
    tables = []
    for portion, start in zip(portions, starts[:-1], strict=True):
        table = portion.entries.copy()
        table["offset"] += start
        tables.append(table)
    return Portion(
        number=portions[0].number,
        size=int(starts[-1]),
        entries=np.concatenate(tables),
        data=b"".join(portion.data for portion in portions),
    )
