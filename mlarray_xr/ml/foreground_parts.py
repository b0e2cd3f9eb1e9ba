"""ForegroundParts: the foreground of a volume, looked at chunk by chunk."""

from __future__ import annotations

import math
import threading
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.ml.class_counts import ClassCounts
from mlarray_xr.planning.foreground import check_labels
from mlarray_xr.planning.grid import plan_pieces
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.read_pool import run_shared, sharing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.foreground import Foreground
    from mlarray_xr.planning.grid import Box

__all__ = ["ForegroundParts"]

_NUMBERS = "biuf"
# What is held of a part at a time, whatever its size: counting labels takes 8 bytes an element.
_PIECE_ELEMENTS = 1 << 21
# Threads that wait for a server keep no CPU busy.
_REMOTE_THREADS = 8
_SCANNED = 4096


class ForegroundParts:
    """The parts of a volume: along sampled axes one chunk, along the others all there is.

    Parameters
    ----------
    array
        The mask.
    foreground
        What is looked for.
    axes
        The axes that are sampled, ascending. An element of these axes is foreground when any is
        that has its place, along whatever the others are.

    Raises
    ------
    LayoutError
        When the array has no such axes, or no element.
    TypeError
        When its elements are no real numbers.
    """

    def __init__(self, array: MlaArray, foreground: Foreground, *, axes: tuple[int, ...]) -> None:
        if not axes or list(axes) != [i for i in range(array.ndim) if i in axes] or not array.size:
            msg = f"{array.path}: no foreground along axes {axes} of an array of {array.shape}"
            raise LayoutError(msg)
        if array.dtype.kind not in _NUMBERS:
            msg = f"{array.path}: elements of type {array.dtype} are no mask: numbers are needed"
            raise TypeError(msg)
        self.array, self.foreground, self.axes = array, foreground, axes
        self.reduced: tuple[int, ...] = tuple(i for i in range(array.ndim) if i not in axes)
        """The axes that are not sampled."""
        self.grid: tuple[int, ...] = tuple(-(-array.shape[i] // array.chunks[i]) for i in axes)
        """Number of parts along each sampled axis."""

    @property
    def is_flat(self) -> bool:
        """Whether every element has a place of its own, so that parts are chunks."""
        return all(self.array.shape[axis] == 1 for axis in self.reduced)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Places in each part, C order of the grid."""
        return self._sizes(self.axes)

    @property
    def chunk_sizes(self) -> NDArray[np.int64]:
        """Elements of each chunk inside the array, C order of the chunk grid."""
        return self._sizes(range(self.array.ndim))

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """Type of what tells classes apart."""
        labels = self.foreground.labels_of(self.array.dtype)
        return self.array.dtype.newbyteorder("=") if labels is None else labels.dtype

    def parts_with(self, chunks: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the parts of which at least one chunk has a flag; C order of the chunk grid."""
        shape, sizes = self.array.shape, self.array.chunks
        grid = tuple(-(-n // c) for n, c in zip(shape, sizes, strict=True))
        return np.flatnonzero(chunks.reshape(grid).any(axis=self.reduced))

    def count(self, parts: NDArray[np.int64]) -> ClassCounts:
        """Count the foreground of parts, several at a time.

        Raises
        ------
        ValueError
            When there are too many labels, or the predicate does not fit.
        ChunkError, SourceError
            As reading raises them.
        """
        nothing = np.zeros(0, np.int64)
        rows: list[tuple[NDArray[Any], ...]] = [(np.zeros(0, np.bool_), nothing, nothing)]
        seen: set[Any] = set()
        lock = threading.Lock()

        def look(part: int) -> None:
            labels, counts = self._count_part(part)
            with lock:
                seen.update(labels.tolist())
                check_labels(len(seen))
                rows.append((labels, np.full(len(labels), part), counts))

        with sharing() as share:
            threads = max(share, _REMOTE_THREADS) if is_url(self.array.path) else share
            tasks = (partial(look, part) for part in parts.tolist())
            run_shared(tasks, threads=self.array.threads or threads)
        labels, numbers, counts = (np.concatenate(column) for column in zip(*rows, strict=True))
        return ClassCounts.of(labels=labels, parts=numbers, counts=counts)

    def find(self, part: int, label: Any, rank: int) -> tuple[int, tuple[int, ...] | None]:
        """Find one element of a class in a part.

        Returns
        -------
        count : int
            Elements of the class in that part.
        index : tuple of int or None
            Along the sampled axes, that of the element which `rank` others come before; None when
            there are not so many.
        """
        count, index = 0, None
        for box, values in self._pieces(part):
            mask = self.foreground.mask(values, label=label)
            flat = (mask.any(axis=self.reduced) if self.reduced else mask).reshape(-1)
            n_found = int(np.count_nonzero(flat))
            if count <= rank < count + n_found:
                extents = tuple(b - a for a, b in box)
                inside = np.unravel_index(_position(flat, rank - count), extents)
                index = tuple(int(i) + a for i, (a, _) in zip(inside, box, strict=True))
            count += n_found
        return count, index

    def _count_part(self, part: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the classes in a part and how many elements they have."""
        totals: Counter[Any] = Counter()
        labels = np.zeros(0)
        for _, values in self._pieces(part):
            labels, counts = self.foreground.count(values, reduced=self.reduced)
            totals.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
            check_labels(len(totals))
        return np.array([*totals], labels.dtype), np.array([*totals.values()], np.int64)

    def _sizes(self, axes: Iterable[int]) -> NDArray[np.int64]:
        """Return the elements of each box of chunks along some axes."""
        sizes = np.ones((), np.int64)
        for axis in axes:
            extent, chunk = self.array.shape[axis], self.array.chunks[axis]
            first = np.arange(0, extent, chunk, dtype=np.int64)
            sizes = np.multiply.outer(sizes, np.minimum(extent - first, chunk))
        return sizes.reshape(-1)

    def _pieces(self, part: int) -> Iterator[tuple[Box, NDArray[Any]]]:
        """Read a part piece by piece: boxes along the sampled axes, with all that is there."""
        array, position = self.array, np.unravel_index(part, self.grid)
        extents, chunks = ([of[i] for i in self.axes] for of in (array.shape, array.chunks))
        box = tuple(
            (int(i) * c, min((int(i) + 1) * c, n))
            for i, c, n in zip(position, chunks, extents, strict=True)
        )
        deep = [(0, n) for n in array.shape]
        n_deep = array.size // math.prod(extents)
        pieces = plan_pieces(
            box,
            chunks=tuple(chunks),
            blocks=tuple(array.blocks[i] for i in self.axes),
            n_elements=max(1, _PIECE_ELEMENTS // n_deep),
        )
        for piece in pieces:
            for axis, pair in zip(self.axes, piece, strict=True):
                deep[axis] = pair
            yield piece, array.read(deep, threads=1)


def _position(flat: NDArray[np.bool_], rank: int) -> int:
    """Return where the flag stands that `rank` others come before.

    By halves: listing all of them takes ten times as long where a tenth is set.
    """
    start, stop = 0, len(flat)
    while stop - start > _SCANNED:
        middle = (start + stop) // 2
        n_before = int(np.count_nonzero(flat[start:middle]))
        if rank < n_before:
            stop = middle
        else:
            start, rank = middle, rank - n_before
    return start + int(np.flatnonzero(flat[start:stop])[rank])
