"""ForegroundIndex: foreground elements of a mask, drawn without reading all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlarray_xr.ml.class_counts import ClassCounts
from mlarray_xr.ml.counts_file import counts_file
from mlarray_xr.ml.foreground_parts import ForegroundParts
from mlarray_xr.planning.recorded_foreground import recorded_foreground
from mlarray_xr.storage.frame_lock import ProcessLock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.foreground import Foreground
    from mlarray_xr.planning.recorded_foreground import RecordedForeground

__all__ = ["ForegroundIndex"]

Index: TypeAlias = tuple[int, ...]

# To the statistics NaN is a value: a float mask that is half NaN is drawn twice in the mean, and
# one that holds hardly anything else is counted.
_MOST_TRIES = 8


class ForegroundIndex:
    """Draws foreground elements of one mask, each of a class equally likely; one chunk is read.

    Where the statistics of the file tell how many there are in every chunk, nothing else is ever
    read: so for values above 0 of masks that this package wrote, and for the labels of those that
    hold 0 and 1. Otherwise the first draw counts, in one pass over the chunks that may hold some,
    some MiB at a time. What is drawn depends on the file and on the generator alone, not on what
    was drawn before. Threads may share an index.

    Parameters
    ----------
    array
        The mask.
    foreground
        What is drawn.
    axes
        The axes that are sampled, ascending. Along the others an element is foreground when any
        is.
    folder
        Where counts are kept, so that other processes need no pass; None keeps them in memory.

    Raises
    ------
    LayoutError
        When the array has no such axes, or no element.
    TypeError
        When its elements are no real numbers.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.planning.foreground import Foreground
    >>> mask = np.zeros((64, 64), "uint8")
    >>> mask[40:42, 7] = 1
    >>> _ = mlarray_xr.to_mla(mask, "mask.mla", chunks=16, blocks=8)
    >>> index = ForegroundIndex(mlarray_xr.MlaArray("mask.mla"), Foreground(), axes=(0, 1))
    >>> rng = np.random.default_rng(0)
    >>> sorted({index.find(rng) for _ in range(20)})
    [(40, 7), (41, 7)]
    """

    def __init__(
        self,
        array: MlaArray,
        foreground: Foreground,
        *,
        axes: tuple[int, ...],
        folder: str | None = None,
    ) -> None:
        self._parts = ForegroundParts(array, foreground, axes=axes)
        self._file = None if folder is None else counts_file(folder, self._parts)
        # Each believes less than the one before, and is asked when that one was wrong.
        self._makers = (self._recorded, self._counted, self._counted_afresh)
        self._made: dict[int, _Known | None] = {}
        self._lock = ProcessLock()

    def find(self, rng: np.random.Generator) -> Index | None:
        """Draw an element.

        Returns
        -------
        tuple of int or None
            Its index along the sampled axes; None when the mask has no foreground.

        Raises
        ------
        ValueError
            When there are more labels than are counted, the predicate does not fit, or chunks do
            not hold what was counted in them.
        ChunkError, SourceError
            As reading raises them.
        """
        for step in range(len(self._makers)):
            known = self._known(step)
            if known is None:
                continue
            number = known.draw_class(rng)
            if number is None:
                return None
            index = self._drawn(known, number, rng)
            if index is not None:
                return index
        msg = (
            f"{self._parts.array.path}: chunks hold another foreground than was counted in them. "
            "To fix: (1) give a predicate that depends on the values alone; (2) change no mask "
            "while it is read"
        )
        raise ValueError(msg)

    def _drawn(self, known: _Known, number: int, rng: np.random.Generator) -> Index | None:
        """Draw an element of a class; None when the counts turn out to be wrong."""
        label = known.counts.labels[number]
        for _ in range(_MOST_TRIES if known.are_bounds else 1):
            element = known.counts.draw(number, rng)
            n_found, index = self._parts.find(element.part, label, element.rank)
            if n_found > element.count or (n_found < element.count and not known.are_bounds):
                return None
            if index is not None:
                return index
        return None

    def _known(self, step: int) -> _Known | None:
        """Return what a step knows, made when it is first asked for; None when it is too little."""
        if step not in self._made:
            with self._lock:
                if step not in self._made:
                    self._made[step] = self._makers[step]()
        return self._made[step]

    def _recorded(self) -> _Known | None:
        """Return what the statistics tell, if that is enough."""
        recorded = self._statistics_tell()
        if recorded is None or recorded.is_open.any() or not self._parts.is_flat:
            return None
        counts = ClassCounts.of(
            labels=recorded.labels, parts=recorded.chunks, counts=recorded.counts
        )
        return self._weighted(counts, are_bounds=self._parts.array.dtype.kind == "f")

    def _counted(self) -> _Known | None:
        """Return what was counted once, or count where the statistics do not rule it out.

        None when they told it all: they are only asked again where they gave bounds.
        """
        parts, told = self._parts, self._known(0)
        if told is not None and not told.are_bounds:
            return None
        kept = None if self._file is None else self._file.read(parts.sizes, parts.label_dtype)
        if kept is not None:
            return self._weighted(kept)
        recorded = self._statistics_tell()
        if recorded is None:
            return self._counted_afresh()
        may_hold = recorded.is_open.copy()
        may_hold[recorded.chunks] = True
        return self._counted_in(parts.parts_with(may_hold))

    def _counted_afresh(self) -> _Known:
        """Count everywhere."""
        return self._counted_in(np.arange(len(self._parts.sizes)))

    def _counted_in(self, parts: NDArray[np.int64]) -> _Known:
        """Count in some parts, and keep that."""
        counts = self._parts.count(parts)
        if self._file is not None:
            self._file.write(counts)
        return self._weighted(counts)

    def _statistics_tell(self) -> RecordedForeground | None:
        """Return what the statistics tell, if there are any that can be true."""
        parts = self._parts
        statistics, sizes = parts.array.chunk_statistics(), parts.chunk_sizes
        if statistics is None:
            return None
        if ((statistics.nonzero < 0) | (statistics.nonzero > sizes)).any():
            return None
        return recorded_foreground(parts.foreground, statistics, sizes=sizes)

    def _weighted(self, counts: ClassCounts, *, are_bounds: bool = False) -> _Known:
        """Return counts with the probability of each class."""
        weights = self._parts.foreground.weights_of(counts.labels)
        return _Known(counts=counts, weights=weights, are_bounds=are_bounds)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """What one step knows of a mask."""

    counts: ClassCounts
    """How many elements there are in each part."""
    weights: NDArray[np.float64]
    """Probability of each class."""
    are_bounds: bool
    """Whether there may be fewer."""

    def draw_class(self, rng: np.random.Generator) -> int | None:
        """Draw a class, by its place among the labels; None when there is none to be drawn."""
        if not self.weights.any():
            return None
        return int(rng.choice(len(self.weights), p=self.weights)) if len(self.weights) > 1 else 0
