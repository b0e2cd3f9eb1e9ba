"""Raw voxels: arrays whose elements lie in a file one after the other, and how they are written."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.job import Progress

__all__ = ["RawArray", "local_source", "raw_slabs"]

_SLAB_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RawArray:
    """An array that lies uncompressed in a file: an address, mapped anew for every read.

    Mapping costs tens of microseconds, so nothing is kept open: the object pickles small and
    serves any number of threads, forked and spawned processes.

    Raises
    ------
    ConversionError
        By the constructor, when the file is shorter than the array.

    Examples
    --------
    >>> import numpy as np
    >>> np.arange(12, dtype=">i2").tofile("twelve.raw")
    >>> array = RawArray(
    ...     source=local_source("twelve.raw"), dtype=np.dtype(">i2"), shape=(3, 4), order="C"
    ... )
    >>> array[1:3, 0:2]
    array([[4, 5],
           [8, 9]], dtype='>i2')
    """

    source: LocalSource
    """The file, pinned: reads of another one raise `SourceChanged`."""
    dtype: np.dtype[Any]
    """Type of the elements, byte order as stored."""
    shape: tuple[int, ...]
    """Extents, array order."""
    order: Literal["C", "F"]
    """``"C"``: neighbours along the last axis are neighbours in the file; ``"F"``: the first."""
    offset: int = 0
    """Where the first element starts, bytes."""
    identity: tuple[str | int, ...] | None = None
    """What the values are known by, when that is not the file: where they were unpacked from."""

    def __post_init__(self) -> None:
        """Check that the file holds the whole array."""
        needed = self.offset + math.prod(self.shape) * self.dtype.itemsize
        if self.offset < 0 or needed > self.source.size:
            raise ConversionError(
                f"shape {self.shape} of {self.dtype} from byte {self.offset} needs {needed} bytes, "
                f"the file {self.source.path} has {self.source.size}: it is truncated, or the "
                "header is wrong. To fix: copy or export it again"
            )

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Read a box into a new array, whose memory order is that of the file.

        Raises
        ------
        SourceChanged
            When the file is not the one that was opened, or changed during the read.
        """
        # The ellipsis keeps a 0-d array an array: a scalar would lose its byte order.
        whole: Any = self.to_numpy()
        values: NDArray[Any] = np.array(whole[(*key, ...)])
        self.source.check()
        return values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return the whole array as NumPy asks for it."""
        return np.array(self.to_numpy(), dtype, copy=copy)

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        known = self.identity or (*self.source.token, self.offset)
        return ("mlarray_xr.RawArray", *known, self.dtype.str, repr(self.shape), self.order)

    def to_numpy(self) -> NDArray[Any]:
        """Return the whole array as a read-only map of the file.

        Raises
        ------
        SourceChanged
            When the file is not the one that was opened.
        """
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        with self.source.open() as file:
            # NumPy's stubs know only of files that can be written.
            opened = cast("Any", file)
            return np.memmap(opened, self.dtype, "r", self.offset, self.shape, self.order)


def local_source(path: str | os.PathLike[str]) -> LocalSource:
    """Pin the regular file at a path.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    SourceError
        When the path is a directory, a device or a URL.
    """
    return cast("LocalSource", source_of(path))


def raw_slabs(
    array: MlaArray, order: Sequence[int], *, progress: Progress | None = None
) -> Iterator[bytes]:
    """Read an array as the bytes of a raw file, at most 64 MiB or a line at a time.

    Parameters
    ----------
    array
        Booleans become bytes of 0 and 1.
    order
        The axes of the array, that of neighbours in the file first.
    progress
        Called with the number of slabs that were taken, and of all slabs.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6, dtype="uint8").reshape(2, 3), "six.mla")
    >>> array = mlarray_xr.MlaArray("six.mla")
    >>> [list(b"".join(raw_slabs(array, order))) for order in ((1, 0), (0, 1))]
    [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5]]
    """
    boxes = list(_slab_boxes(array, order))
    for done, box in enumerate(boxes, 1):
        values = array.read(box)
        stored = values.view(np.uint8) if values.dtype == bool else values
        yield stored.transpose(order).tobytes(order="F")
        if progress is not None:
            progress(done, len(boxes))


def _slab_boxes(array: MlaArray, order: Sequence[int]) -> Iterator[Box]:
    """Cut an array into boxes that follow one another in Fortran order of its reordered axes."""
    if 0 in array.shape:
        return
    steps = [1] * array.ndim
    room = _SLAB_BYTES // array.dtype.itemsize
    for axis in order:
        chunk, n = array.chunks[axis], array.shape[axis]
        whole_chunks = room // chunk * chunk
        steps[axis] = min(n, max(1, whole_chunks or room))
        room //= n
    ranges = [range(0, array.shape[axis], steps[axis]) for axis in reversed(order)]
    for starts in itertools.product(*ranges):
        at = dict(zip(reversed(order), starts, strict=True))
        yield tuple((at[a], min(at[a] + steps[a], n)) for a, n in enumerate(array.shape))
