"""FileArray: the array in one file, as an address that reads what is asked for."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

from mlarray_xr.errors import FormatError, SourceChanged
from mlarray_xr.planning.grid import box_shape, check_box, is_empty
from mlarray_xr.planning.selection import PointSelection, is_scalar_key, plan_selection
from mlarray_xr.planning.shaped import Shaped
from mlarray_xr.storage.counters import ReadStats, tallies_of
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.gather import allocate, check_out, gather_outer
from mlarray_xr.storage.handles import close_reader, opened_reader, reader_of
from mlarray_xr.storage.point_gather import gather_points
from mlarray_xr.storage.read_pool import check_threads
from mlarray_xr.storage.remote_file import remote_file
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.slab_cache import read_nearby
from mlarray_xr.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    import numpy as np
    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import ChunkStatistics
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.selection import OuterSelection
    from mlarray_xr.storage.handles import Reader
    from mlarray_xr.storage.remote_source import Source

__all__ = ["FileArray"]


class FileArray(Shaped):
    """What `MlaArray` reads with: the address and the header of one file, and no open file.

    Parameters
    ----------
    source
        What to read; pinned.
    header
        Its checked header.
    threads
        Threads per read, see `MlaArray`.
    checksums
        Whether each chunk is compared with its checksum when it is first read.
    turn
        What reads enter, one at a time where somebody edits the file.
    """

    __slots__ = ("__weakref__", "_checksums", "_header", "_reader", "_source", "_turn", "threads")

    threads: int | None
    """Threads per read, see the class."""

    def __init__(
        self,
        source: Source,
        header: FrameHeader,
        *,
        threads: int | None,
        checksums: bool,
        turn: contextlib.AbstractContextManager[Any],
    ) -> None:
        self._source, self._header = source, header
        self.threads, self._checksums = threads, checksums
        self._turn = turn
        self._reader: Reader | None = None

    @property
    def path(self) -> str | None:
        """Absolute path of the file, or its URL without secrets; None when it is in memory."""
        return None if isinstance(self._source, BytesSource) else self._source.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, array order."""
        return self._header.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, byte order as stored."""
        return self._header.dtype

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents of a Blosc2 chunk, array order; may exceed the shape."""
        return self._header.chunks

    @property
    def blocks(self) -> tuple[int, ...]:
        """Extents of a Blosc2 block, array order."""
        return self._header.blocks

    def read(
        self,
        box: Sequence[tuple[SupportsIndex, SupportsIndex]],
        *,
        out: NDArray[Any] | None = None,
        threads: int | None = None,
    ) -> NDArray[Any]:
        """Read a box, into the caller's buffer when one is given.

        The GIL is released while decoding, and `out` is filled in place, so loader threads can
        read side by side into buffers they reuse.

        Parameters
        ----------
        box
            One (start, stop) pair per axis, array order, inside the array: boxes are not clipped.
        out
            C-contiguous buffer of the box's shape and the array's dtype.
        threads
            Overrides the array's `threads` for this read.

        Returns
        -------
        numpy.ndarray
            `out`, or a new array of the box's shape.

        Raises
        ------
        IndexError
            When the box reaches outside the array.
        TypeError, ValueError
            When `out` is no array, or has another shape or dtype, or cannot be filled in place.
        SourceChanged
            When the file changed since it was opened.
        ChunkError
            When a chunk of the box is damaged; other boxes can still be read.

        Examples
        --------
        >>> import numpy as np, mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.arange(30).reshape(5, 6), "box.mla")
        >>> mlarray_xr.MlaArray("box.mla").read(((1, 3), (0, 2)))
        array([[ 6,  7],
               [12, 13]])
        """
        checked = check_box(box, self.shape)
        check_threads(threads)
        if out is None:
            out = allocate(box_shape(checked), self.dtype)
        else:
            check_out(out, shape=box_shape(checked), dtype=self.dtype)
        with self._turn:
            self._fill(checked, out, threads=self.threads if threads is None else threads)
        return out

    def __getitem__(self, key: Any) -> Any:
        """Index as NumPy does; new axes are refused. Returns an array or a NumPy scalar."""
        values = self.select(plan_selection(key, self.shape))
        return values if values.shape or not is_scalar_key(key) else values[()]

    def select(self, selection: OuterSelection | PointSelection) -> NDArray[Any]:
        """Read a planned selection: the one door through which every kind of indexing goes.

        Parameters
        ----------
        selection
            From `mlarray_xr.planning.selection`, made for this array's shape.

        Returns
        -------
        numpy.ndarray
            The selected elements, in the selection's shape.
        """
        with self._turn:
            if not isinstance(selection, PointSelection):
                return gather_outer(
                    selection, self._header, partial(self._fill, threads=self.threads)
                )
            with self._followed() as reader:
                values = gather_points(selection, self._header, reader, threads=self.threads)
            self._count_useful(reader, values.nbytes)
        return values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything into a new NumPy array."""
        if copy is False:
            msg = "copy=False: a compressed array is always copied. To fix: leave copy out"
            raise ValueError(msg)
        values = self.read(tuple((0, n) for n in self.shape))
        return values if dtype is None else values.astype(dtype, copy=False)

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.MlaArray", *self._source.token)

    def __enter__(self) -> Self:
        """Return the array."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Release this process's map of the file; a later read maps it again."""
        self._reader = None
        close_reader(self._source)

    def stats(self) -> ReadStats:
        """Return what this process has read of the file since it was opened here.

        Arrays of the same file share their counters, whatever their threads.
        """
        reader = opened_reader(self._source, check=self._checksums)
        if reader is None and isinstance(self._source, RemoteSource):
            # Without opening a reader, which asks the server.
            return remote_file(self._source).tally.snapshot()
        return ReadStats() if reader is None else reader.tally.snapshot()

    def chunk_statistics(self) -> ChunkStatistics | None:
        """Return the value ranges of all chunks, as the writer recorded them; reads no chunk.

        Returns
        -------
        ChunkStatistics or None
            In C order of the chunk grid. None when the file has none, when another program has
            changed chunks since, and when they cannot be read: the chunks tell the same.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.

        Examples
        --------
        >>> import numpy as np, mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.arange(8), "ranges.mla", chunks=4, blocks=4)
        >>> mlarray_xr.MlaArray("ranges.mla").chunk_statistics().greatest
        array([3, 7])
        """
        with self._turn, contextlib.suppress(FormatError):
            recorded, header = read_integrity(self._source), self._header
            # Whoever replaces chunks leaves a payload of another length.
            if (
                recorded is not None
                and recorded.payload_len == header.payload_len
                and not recorded.differences(header)
            ):
                return recorded.statistics
        return None

    def _fill(self, box: Box, out: NDArray[Any], *, threads: int | None) -> None:
        """Fill a checked buffer with a checked box."""
        if is_empty(box):
            return
        with self._followed() as reader:
            fill = partial(reader.read, threads=threads)
            if not read_nearby(
                (*self._source.token, self._checksums), self._header, box, out, fill
            ):
                self._source.check()  # as reading the file would have
        self._count_useful(reader, out.nbytes)

    def _count_useful(self, reader: Reader, n_bytes: int) -> None:
        """Count the bytes of a result."""
        useful = ReadStats(bytes_useful=n_bytes)
        for tally in tallies_of(reader.tally):
            tally.add(useful)

    @contextlib.contextmanager
    def _followed(self) -> Iterator[Reader]:
        """Give the reader of the file; one that has changed meanwhile is closed."""
        try:
            reader = reader_of(self._source, check=self._checksums)
            if isinstance(self._source, BytesSource):
                self._reader = reader  # readers of memory live as long as somebody holds them
            yield reader
        except SourceChanged:
            self.close()
            raise
        except FormatError:
            # An edit under way changes what is mapped, which may look like damage.
            self._source.check()
            raise
