"""RecordedForeground: what the value ranges of chunks tell of a foreground before any is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.integrity import ChunkStatistics
    from mlarray_xr.planning.foreground import Foreground

__all__ = ["RecordedForeground", "recorded_foreground"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedForeground:
    """Counts of foreground elements by class and chunk, where the statistics tell them.

    A row says that of class `labels[i]` there are `counts[i]` elements in chunk `chunks[i]`, or
    fewer by as many NaN as that chunk holds: to the statistics NaN is one of the values that are
    not zero.
    """

    labels: NDArray[Any]
    """Class of each row, as `Foreground.labels_of` has them."""
    chunks: NDArray[np.int64]
    """Number of its chunk."""
    counts: NDArray[np.int64]
    """Number of elements, above 0."""
    is_open: NDArray[np.bool_]
    """Whether a chunk may hold some, and the statistics do not tell how many."""


def recorded_foreground(
    foreground: Foreground, statistics: ChunkStatistics, *, sizes: NDArray[np.int64]
) -> RecordedForeground:
    """Return what statistics tell.

    Parameters
    ----------
    foreground
        What is looked for.
    statistics
        Of every chunk.
    sizes
        Elements of each chunk inside the array.

    Examples
    --------
    >>> from mlarray_xr.format.integrity import ChunkStatistics
    >>> from mlarray_xr.planning.foreground import Foreground
    >>> least, greatest = np.array([0, 0, 0], "u1"), np.array([0, 1, 9], "u1")
    >>> nonzero, sizes = np.array([0, 7, 5]), np.array([64, 64, 64])
    >>> ranges = ChunkStatistics(least=least, greatest=greatest, nonzero=nonzero)
    >>> recorded_foreground(Foreground(), ranges, sizes=sizes).counts
    array([7, 5])
    >>> recorded_foreground(Foreground(classes="balanced"), ranges, sizes=sizes).is_open
    array([False, False,  True])
    """
    if foreground.predicate is not None:
        nothing = np.zeros(0, np.int64)
        labels, is_open = np.ones(0, np.bool_), np.ones(len(sizes), np.bool_)
        return RecordedForeground(labels=labels, chunks=nothing, counts=nothing, is_open=is_open)
    limit = foreground.limit_of(statistics.least.dtype)
    if limit is None:
        return _of_classes(foreground, statistics, sizes)
    return _above(limit, statistics, sizes)


def _above(
    limit: float, statistics: ChunkStatistics, sizes: NDArray[np.int64]
) -> RecordedForeground:
    """Return what is known of values above a limit."""
    least, nonzero = statistics.least, statistics.nonzero
    with np.errstate(over="ignore"):
        some, every = statistics.greatest > limit, least > limit  # False of NaN
    is_known = every | (least >= 0) if limit == 0 else every
    counts = nonzero if limit >= 0 else sizes
    chunks = np.flatnonzero(some & is_known & (counts > 0))
    return RecordedForeground(
        labels=np.ones(len(chunks), np.bool_),
        chunks=chunks,
        counts=counts[chunks],
        is_open=some & ~is_known,
    )


def _of_classes(
    foreground: Foreground, statistics: ChunkStatistics, sizes: NDArray[np.int64]
) -> RecordedForeground:
    """Return what is known of labels: that of chunks of one whole number, or of 0 and 1 or -1."""
    native = statistics.least.dtype.newbyteorder("=")
    least, greatest = statistics.least.astype(native), statistics.greatest.astype(native)
    is_known = (least == greatest) | ((least == 0) & (greatest == 1))
    is_known |= (least == -1) & (greatest == 0)
    is_known &= native.kind != "f"  # NaN may hide among them
    other = np.where(least != 0, least, greatest)
    labels = foreground.labels_of(native)
    if labels is None:
        may_hold, is_wanted = greatest > 0, other > 0
    else:
        first, end = np.searchsorted(labels, least), np.searchsorted(labels, greatest, "right")
        may_hold, is_wanted = first < end, np.isin(other, labels[labels != 0])
    is_zero_wanted = labels is not None and 0 in labels
    others = np.flatnonzero(is_known & is_wanted)
    zeros = np.flatnonzero(is_known & (statistics.nonzero < sizes) & is_zero_wanted)
    return RecordedForeground(
        labels=np.concatenate([other[others], np.zeros(len(zeros), native)]),
        chunks=np.concatenate([others, zeros]),
        counts=np.concatenate([statistics.nonzero[others], (sizes - statistics.nonzero)[zeros]]),
        is_open=may_hold & ~is_known,
    )
