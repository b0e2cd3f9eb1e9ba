"""ClassCounts: how many elements of each class every part of a volume holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ClassCounts", "DrawnElement"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnElement:
    """One element of a class, all of them equally likely."""

    part: int
    """Number of the part that holds it."""
    rank: int
    """How many elements of the class come before it in that part."""
    count: int
    """How many there are in that part."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassCounts:
    """Counts by class and part, of those pairs alone of which there is something.

    Examples
    --------
    >>> counts = ClassCounts.of(labels=[2, 1, 2], parts=[0, 3, 5], counts=[7, 4, 1])
    >>> counts.labels, counts.draw(0, np.random.default_rng(0)).part
    (array([1, 2]), 3)
    """

    labels: NDArray[Any]
    """The classes, sorted."""
    starts: NDArray[np.int64]
    """Where the rows of each class begin, and where those of the last one end."""
    parts: NDArray[np.int32]
    """Part of each row, ascending within a class."""
    before: NDArray[np.int64]
    """Elements in all rows before each one, and in all rows."""

    @classmethod
    def of(cls, *, labels: Any, parts: Any, counts: Any) -> ClassCounts:
        """Return the counts of rows in any order: class, part, number of elements."""
        labels, parts, counts = np.asarray(labels), np.asarray(parts), np.asarray(counts)
        order = np.lexsort((parts, labels))
        order = order[counts[order] > 0]
        found, starts = np.unique(labels[order], return_index=True)
        return cls(
            labels=found,
            starts=np.append(starts, len(order)),
            parts=parts[order].astype(np.int32),
            before=np.append(0, np.cumsum(counts[order], dtype=np.int64)),
        )

    @property
    def counts(self) -> NDArray[np.int64]:
        """Elements of each row."""
        return np.diff(self.before)

    def draw(self, number: int, rng: np.random.Generator) -> DrawnElement:
        """Draw one of the elements of a class, given by its place among the labels."""
        start, stop = self.starts[number : number + 2]
        drawn = rng.integers(self.before[start], self.before[stop])
        row = start + np.searchsorted(self.before[start:stop], drawn, "right") - 1
        first, end = self.before[row : row + 2]
        return DrawnElement(
            part=int(self.parts[row]), rank=int(drawn - first), count=int(end - first)
        )
