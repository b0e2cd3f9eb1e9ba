"""MlaArray: a lazy, picklable, NumPy-like view of the array in one file."""

from __future__ import annotations

import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, TypeAlias

import numpy as np

from mlarray_xr.errors import FormatError, MlaError, SourceChanged
from mlarray_xr.planning.assignment import outer_only
from mlarray_xr.planning.grid import box_shape, check_box, is_empty
from mlarray_xr.planning.selection import (
    OuterSelection,
    PointSelection,
    is_scalar_key,
    plan_selection,
)
from mlarray_xr.planning.shaped import Shaped
from mlarray_xr.storage.edit import check_mode, edit_frame
from mlarray_xr.storage.frame_file import open_frame, read_planning
from mlarray_xr.storage.frame_lock import ProcessLock
from mlarray_xr.storage.gather import allocate, check_out, gather_outer, gather_points
from mlarray_xr.storage.handles import close_reader, reader_of
from mlarray_xr.storage.libblosc2 import native_library
from mlarray_xr.storage.planning_record import checked_planning, file_layout
from mlarray_xr.storage.read_pool import check_threads
from mlarray_xr.storage.source import BytesSource, LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.storage.edit import EditReport
    from mlarray_xr.storage.mapped import MappedReader

__all__ = ["MlaArray"]

_State: TypeAlias = "tuple[LocalSource | BytesSource, FrameHeader, int | None, str, bool]"


class MlaArray(Shaped):
    """The array in one `.mla` file: an address that reads what is asked for, when it is asked.

    Opening reads and checks the header and the metadata, no voxel. The object holds no open file:
    it pickles in less than 2 kB, works in threads and in forked or spawned processes, and every
    process keeps its own bounded cache of mapped files. A file that is replaced or truncated
    raises `SourceChanged` instead of mixing old and new.

    Parameters
    ----------
    path
        A local path, a file's bytes, or a binary file object (which is read whole). `.mla` files
        of every release, `.mb2nd` files and plain Blosc2 arrays named `.b2nd` are accepted.
    threads
        Threads per read. None shares the CPUs with other reads under way and leaves small boxes
        to one thread; 1 never starts a thread.
    mode : {"r", "r+"}
        ``"r+"`` edits in place: ``array[key] = values`` and `write`; threads then take turns.
    checksums
        Whether each chunk is compared with its checksum when it is first read; files without
        checksums are then refused.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    FormatError
        When the file is damaged, hostile or not an `.mla` file.
    SourceError
        When the path is a directory or a URL, or bytes in memory are to be edited.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> voxels = np.arange(24, dtype="int16").reshape(2, 3, 4)
    >>> _ = mlarray_xr.to_mla(voxels, "example.mla")
    >>> array = mlarray_xr.MlaArray("example.mla")
    >>> array.shape, array.dtype
    ((2, 3, 4), dtype('int16'))
    >>> array[1, ::-1, 2]
    array([22, 18, 14], dtype=int16)
    """

    __slots__ = (
        "__weakref__",
        "_checksums",
        "_header",
        "_metadata",
        "_mode",
        "_reader",
        "_source",
        "_turn",
        "threads",
    )

    threads: int | None
    """Threads per read, see the class."""

    def __init__(
        self,
        path: object,
        *,
        threads: int | None = None,
        mode: Literal["r", "r+"] = "r",
        checksums: bool = False,
    ) -> None:
        check_threads(threads)
        source = source_of(path)
        check_mode(mode, source)
        opened = open_frame(source)
        self._set((source, opened.header, threads, mode, checksums), opened.metadata)

    def __getstate__(self) -> _State:
        """Return the address; what is open stays in this process."""
        with self._turn:
            return self._source, self._header, self.threads, self._mode, self._checksums

    def __setstate__(self, state: _State) -> None:
        """Restore the address; nothing is opened before the first read."""
        self._set(state, None)

    def _set(self, state: _State, metadata: Metadata | None) -> None:
        """Fill the slots."""
        self._source, self._header, self.threads, self._mode, self._checksums = state
        self._metadata = metadata
        self._reader: MappedReader | None = None
        # Reads of a file that nobody edits through this object need not wait for each other.
        self._turn: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._mode == "r" else ProcessLock()
        )

    @property
    def path(self) -> str | None:
        """Absolute path of the file, None when it is in memory."""
        return self._source.path if isinstance(self._source, LocalSource) else None

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

    @property
    def layout(self) -> Layout:
        """Chunks and blocks of the file, with what reading them costs on this machine."""
        planning: dict[str, Any] = {}
        with contextlib.suppress(MlaError, OSError):  # the shapes are known without the file
            planning = self._planning()
        return file_layout(self._header, self.metadata, planning)

    @property
    def metadata(self) -> Metadata:
        """The imaging metadata, decoded when the file is opened (again after unpickling)."""
        if self._metadata is None:
            self._metadata = open_frame(self._source).metadata
        return self._metadata

    def info(self) -> dict[str, Any]:
        """Describe file, layout and codec without reading a voxel or any free-form metadata.

        Returns
        -------
        dict
            Plain values, fit for JSON. Sizes are bytes; ``ratio`` is decoded over stored bytes;
            ``planned`` is what the writer recorded of how the layout was decided, empty when
            nothing; ``reader`` says which decoder this process uses, ``"native"`` or
            ``"portable"``.

        Examples
        --------
        >>> import numpy as np, mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "uint8"), "zeros.mla")
        >>> info = mlarray_xr.MlaArray("zeros.mla").info()
        >>> info["shape"], info["dtype"], info["n_chunks"]
        ([4, 5], 'uint8', 1)
        """
        reader = "native" if native_library() is not None else "portable"
        planned = self._planning()
        return {"path": self.path, **self._header.facts(), "planned": planned, "reader": reader}

    def _planning(self) -> dict[str, Any]:
        """Return what the file records of how its layout was decided."""
        return checked_planning(read_planning(self._source), ndim=self.ndim)

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
        fill = partial(self._fill, threads=self.threads)
        with self._turn:
            if isinstance(selection, PointSelection):
                return gather_points(selection, self._header, fill)
            return gather_outer(selection, self._header, fill)

    def write(self, box: Sequence[tuple[SupportsIndex, SupportsIndex]], values: Any) -> EditReport:
        """Replace the elements of a box, in the file; a kill leaves the old ones or the new ones.

        Only chunks that the box touches are written, behind what is there. Arrays opened before
        raise `SourceChanged` from then on; this one goes on with the new values. Statistics that
        the metadata states are removed with the old values.

        Parameters
        ----------
        box
            One (start, stop) pair per axis, array order, inside the array.
        values
            A number, or anything that broadcasts to the box's shape and that the array's type
            holds: whole numbers in its range; floats, which may be rounded.

        Raises
        ------
        TypeError
            When the array was not opened with ``mode="r+"``.
        ConversionError
            When the type cannot hold the values, or its compression is not made here.
        IndexError, ValueError
            When the box reaches outside the array, or the values do not fit the box.
        TargetBusy, SourceChanged
            When another writer is at work on the file, or was since it was opened.

        Examples
        --------
        >>> import numpy as np, mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "uint8"), "write.mla")
        >>> array = mlarray_xr.MlaArray("write.mla", mode="r+")
        >>> report = array.write(((1, 3), (0, 2)), 7)
        >>> array[:, 0]
        array([0, 7, 7, 0], dtype=uint8)
        """
        checked = check_box(box, self.shape)
        axes = tuple(range(start, stop) for start, stop in checked)
        return self._edit(OuterSelection(axes=axes, shape=box_shape(checked)), values)

    def __setitem__(self, key: Any, values: Any) -> None:
        """Assign as NumPy does, in the file; see `write`. Single points are refused."""
        self._edit(outer_only(plan_selection(key, self.shape)), values)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read everything into a new NumPy array."""
        if copy is False:
            msg = "copy=False: a compressed array is always copied. To fix: leave copy out"
            raise ValueError(msg)
        values = self.read(tuple((0, n) for n in self.shape))
        return values if dtype is None else values.astype(dtype, copy=False)

    def __repr__(self) -> str:
        """Describe address, shape and layout; nothing from the metadata."""
        where = os.path.basename(self.path) if self.path else self._source.name
        return (
            f"<MlaArray {where!r} shape={self.shape} dtype={self.dtype} "
            f"chunks={self.chunks} blocks={self.blocks}>"
        )

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

    def _edit(self, selection: OuterSelection, values: Any) -> EditReport:
        """Replace elements in the file, and follow it."""
        if self._mode != "r+":
            msg = (
                f"{self._source.name}: opened for reading, it takes no values. To fix: (1) "
                "MlaArray(path, mode='r+') edits it; (2) mlarray_xr.create and to_mla make new ones"
            )
            raise TypeError(msg)
        values = np.asanyarray(values)  # before the turn: other threads may read this array for it
        with self._turn:
            edited = edit_frame(self._source, selection, values)
            self.close()
            self._source, self._header, self._metadata = edited.source, edited.header, None
        return edited.report

    def _fill(self, box: Box, out: NDArray[Any], *, threads: int | None) -> None:
        """Fill a checked buffer with a checked box."""
        if is_empty(box):
            return
        try:
            reader = reader_of(self._source, check=self._checksums)
            if isinstance(self._source, BytesSource):
                self._reader = reader  # readers of memory live as long as somebody holds them
            reader.read(box, out, threads=threads)
        except SourceChanged:
            self.close()
            raise
        except FormatError:
            # An edit under way changes what is mapped, which may look like damage.
            self._source.check()
            raise
