"""Comparison: what was written is read back and held against its source, part by part."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.dask import run_tasks
from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.grid import part_boxes, plan_part
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.foreign.image import LazyArray
    from mlarray_xr.foreign.streamed import StreamedArray
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.storage.job import Progress

__all__ = ["Comparison", "find_difference", "find_streamed_difference"]

_PART_BYTES = 32 << 20
_COPIES = 2
"""A part as it is read, and in the order in which it is compared."""

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two arrays that should hold the same elements; picklable when they are.

    Examples
    --------
    >>> one = np.arange(6).reshape(2, 3)
    >>> pair = Comparison(source=one, target=one.T.reshape(3, 2, 1), order=(1, 0))
    >>> pair.target_box(((0, 1), (1, 3)))
    ((1, 3), (0, 1), (0, 1))
    >>> pair.differs(((0, 1), (1, 3)))
    False
    """

    source: LazyArray
    """What was read."""
    target: LazyArray
    """What was written, read again."""
    order: tuple[int, ...]
    """The axes of the source in the order in which the target has them."""

    def __post_init__(self) -> None:
        """Refuse arrays that cannot be equal.

        Raises
        ------
        ConversionError
            When type or extents differ; axes of one element may be more or less.
        """
        types = _plain(self.source.dtype), _plain(self.target.dtype)
        extents = [self.source.shape[axis] for axis in self.order]
        if types[0] != types[1] or _long(extents) != _long(self.target.shape):
            raise ConversionError(
                f"{self.source.shape} of {self.source.dtype} became {self.target.shape} of "
                f"{self.target.dtype}"
            )

    def target_box(self, box: Box) -> Box:
        """Return where the target has a box of the source."""
        long = iter([box[axis] for axis in self.order if self.source.shape[axis] != 1])
        return tuple((0, 1) if extent == 1 else next(long) for extent in self.target.shape)

    def differs(self, box: Box) -> bool:
        """Tell whether a box differs in any bit; one of the two is in memory at a time."""
        found = _digest(self.target, self.target_box(box), range(len(self.target.shape)))
        return _digest(self.source, box, self.order) != found


def find_difference(
    comparison: Comparison,
    *,
    chunks: tuple[int, ...],
    memory_limit: int | None = None,
    progress: Progress | None = None,
) -> Box | None:
    """Compare two arrays bit by bit, on the cluster of the active client or in threads here.

    Parameters
    ----------
    comparison
        The two.
    chunks
        Along the axes of the source: what is decoded at once.
    memory_limit
        Bytes that the parts of one process may take.
    progress
        Called with the number of parts compared and of all parts.

    Returns
    -------
    Box or None
        Of the source: the first part that is found to differ.
    """
    source = comparison.source
    if 0 in source.shape:
        return None
    limit = _PART_BYTES
    if memory_limit is not None:
        limit = min(limit, memory_limit // (_COPIES * available_threads()))
    part = plan_part(source.shape, chunks, itemsize=source.dtype.itemsize, target_bytes=limit)
    boxes = list(part_boxes(source.shape, part))
    with contextlib.closing(run_tasks(partial(_differs, comparison), boxes)) as finished:
        for done, (number, future) in enumerate(finished, 1):
            if future.result():
                return boxes[number]
            if progress is not None:
                progress(done, len(boxes))
    return None


def find_streamed_difference(
    source: StreamedArray,
    target: LazyArray,
    *,
    slabs: Parts,
    progress: Progress | None = None,
) -> Box | None:
    """Compare a packed array with what was made of it, bit by bit, while it is unpacked again.

    Parameters
    ----------
    source, target
        The two, axis by axis the same.
    slabs
        How the source is cut along its slowest axis.
    progress
        Called with the number of slabs compared and of all slabs.

    Returns
    -------
    Box or None
        The first slab that differs.

    Raises
    ------
    ConversionError, SourceChanged
        When the source is damaged, or no longer what it was.
    """
    boxes = slabs.boxes()
    with contextlib.closing(source.slabs(slabs.extents[source.axis])) as unpacked:
        tasks = (
            partial(_slab_differs, slab, target, box)
            for slab, box in zip(unpacked, boxes, strict=True)
        )
        with contextlib.closing(run_ordered(tasks)) as compared:
            for done, (box, differs) in enumerate(zip(boxes, compared, strict=True), 1):
                if differs:
                    return box
                if progress is not None:
                    progress(done, len(boxes))
    return None


def _slab_differs(slab: NDArray[Any], target: LazyArray, box: Box) -> bool:
    """Compare one slab."""
    order = range(slab.ndim)
    return _digest_of(slab, order) != _digest(target, box, order)


def _differs(comparison: Comparison, box: Box) -> bool:
    """Compare one box: a function, so that it pickles."""
    return comparison.differs(box)


def _digest(array: LazyArray, box: Box, order: Sequence[int]) -> bytes:
    """Return the digest of the elements of a box: C order, this machine's byte order."""
    return _digest_of(np.asarray(array[tuple(slice(*pair) for pair in box)]), order)


def _digest_of(values: NDArray[Any], order: Sequence[int]) -> bytes:
    """Return the digest of elements: C order of the reordered axes, this machine's byte order."""
    plain: Any = np.ascontiguousarray(values.transpose(order), _plain(values.dtype))
    return hashlib.blake2b(plain.reshape(-1).view(np.uint8), digest_size=_DIGEST_BYTES).digest()


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return a type in this machine's byte order; booleans are bytes of 0 and 1."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _long(extents: Sequence[int]) -> tuple[int, ...]:
    """Return the extents other than 1."""
    return tuple(extent for extent in extents if extent != 1)
