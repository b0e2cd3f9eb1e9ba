"""Streamed arrays: what is packed in one piece, unpacked once and straight into what is written."""

from __future__ import annotations

import contextlib
import itertools
import math
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.foreign.packed import unpacked

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.foreign.packed import PackedArray, PackedStream
    from mlarray_xr.foreign.raw import RawArray

    _Begun: TypeAlias = tuple[tuple[int, ...], NDArray[np.uint8], Generator[NDArray[np.uint8]]]
    """The bytes of all slabs, the first ones in one run, and what unpacks the others."""

__all__ = ["StreamedArray"]

_BEGINNING_BYTES = 16 << 20
"""Unpacked before anything is encoded, to try codecs on: as little as stands for the array."""


class StreamedArray:
    """A packed array that comes slab after slab, and as a whole only when there is no other way.

    A slab spans all axes but the slowest of the stream: the last axis of a NIfTI series, so that
    slabs are runs of frames. For one thread of one process; `close` it when it is done with.

    Parameters
    ----------
    stream
        Where the array is.
    scratch_dir
        Where it is unpacked when slabs do not do, as in `unpacked`.

    Examples
    --------
    >>> import gzip, numpy as np
    >>> from mlarray_xr.foreign.packed import PackedStream
    >>> from mlarray_xr.foreign.raw import local_source
    >>> with gzip.open("frames.gz", "wb") as file:
    ...     _ = file.write(bytes(range(6)))
    >>> stream = PackedStream(
    ...     source=local_source("frames.gz"),
    ...     packing="gzip",
    ...     dtype=np.dtype("uint8"),
    ...     shape=(2, 3),
    ...     order="F",
    ... )
    >>> array = StreamedArray(stream, scratch_dir=None)
    >>> array.axis, [slab.tolist() for slab in array.slabs((2, 1))]
    (1, [[[0, 2], [1, 3]], [[4], [5]]])
    """

    __slots__ = ("_begun", "_scratch_dir", "_whole", "stream")

    stream: PackedStream
    """Where the array is."""

    def __init__(self, stream: PackedStream, *, scratch_dir: str | None) -> None:
        self.stream = stream
        self._scratch_dir = scratch_dir
        self._whole: RawArray | PackedArray | None = None
        self._begun: _Begun | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, array order."""
        return self.stream.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, byte order as stored."""
        return self.stream.dtype

    @property
    def axis(self) -> int:
        """The slowest axis of more than one element; the first or last where there is none."""
        axes = range(len(self.shape))
        slowest_first = axes if self.stream.order == "C" else axes[::-1]
        return next((axis for axis in slowest_first if self.shape[axis] > 1), slowest_first.start)

    @property
    def is_whole(self) -> bool:
        """Whether it was unpacked as a whole, so that slabs have no advantage any more."""
        return self._whole is not None

    def beginning(self, extents: Sequence[int], *, n: int) -> NDArray[Any]:
        """Unpack the first slabs and keep them: `slabs` of the same extents goes on behind them.

        Parameters
        ----------
        extents
            Of all slabs along `axis`, together that of the array.
        n
            How many are unpacked at most.

        Returns
        -------
        numpy.ndarray
            The first slab, and as many more as have 16 MiB with it.

        Raises
        ------
        ConversionError, SourceChanged
            As `PackedStream.runs`.
        """
        self.close()
        sizes = [self._nbytes(extent) for extent in extents]
        n_first = max(1, min(n, _BEGINNING_BYTES // sizes[0]))
        runs = self.stream.runs([sum(sizes[:n_first]), *sizes[n_first:]])
        self._begun = tuple(sizes), next(runs), runs
        return self._slab(self._begun[1])

    def slabs(self, extents: Sequence[int]) -> Generator[NDArray[Any]]:
        """Unpack the array slab by slab.

        The checksum of the stream is compared when the slab after the last one is asked for.

        Parameters
        ----------
        extents
            Of all slabs along `axis`, together that of the array.

        Raises
        ------
        ConversionError, SourceChanged
            As `PackedStream.runs`.
        """
        sizes = tuple(self._nbytes(extent) for extent in extents)
        begun, self._begun = self._begun, None
        if begun is None or begun[0] != sizes:
            runs = self.stream.runs(sizes)
        else:
            _, first, runs = begun
            edges = itertools.accumulate(sizes, initial=0)
            for start, stop in itertools.pairwise(edges):
                if stop <= first.size:
                    yield self._slab(first[start:stop])
            del begun, first
        with contextlib.closing(runs):
            yield from map(self._slab, runs)

    def unpacked(self) -> RawArray | PackedArray:
        """Unpack the array to the scratch folder; small ones, on their first read, into memory.

        Raises
        ------
        ConversionError, SourceChanged
            As `PackedStream.runs`.
        """
        self.close()
        if self._whole is None:
            self._whole = unpacked(self.stream, scratch_dir=self._scratch_dir)
        return self._whole

    def close(self) -> None:
        """Close the file, and forget the beginning."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun[2].close()

    def _nbytes(self, extent: int) -> int:
        """Return the bytes of a slab."""
        others = (n for axis, n in enumerate(self.shape) if axis != self.axis)
        return math.prod(others) * extent * self.dtype.itemsize

    def _slab(self, run: NDArray[np.uint8]) -> NDArray[Any]:
        """Return what was unpacked as a slab."""
        shape = list(self.shape)
        shape[self.axis] = run.size // self._nbytes(1)
        return run.view(self.dtype).reshape(shape, order=self.stream.order)
