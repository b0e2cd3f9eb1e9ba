"""MlaArray: a lazy, picklable, NumPy-like view of the array in one file."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from mlarray_xr.errors import MlaError
from mlarray_xr.file_array import FileArray
from mlarray_xr.planning.assignment import outer_only
from mlarray_xr.planning.grid import box_shape, check_box
from mlarray_xr.planning.point_plan import plan_points
from mlarray_xr.planning.selection import OuterSelection, plan_selection
from mlarray_xr.points import check_space, point_axes, read_points, world_indices
from mlarray_xr.record import stored_axes, stored_geometry
from mlarray_xr.storage.address import open_address
from mlarray_xr.storage.edit import check_mode, edit_frame
from mlarray_xr.storage.frame_entries import read_planning
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.frame_lock import ProcessLock
from mlarray_xr.storage.libblosc2 import native_library
from mlarray_xr.storage.planning_record import checked_planning, file_layout
from mlarray_xr.storage.read_pool import check_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.point_plan import Method, Outside
    from mlarray_xr.points import Space
    from mlarray_xr.storage.edit import EditReport
    from mlarray_xr.storage.remote_source import Source

__all__ = ["MlaArray"]

_State: TypeAlias = "tuple[Source, FrameHeader, int | None, str, bool]"


class MlaArray(FileArray):
    """The array in one `.mla` file: an address that reads what is asked for, when it is asked.

    Opening reads and checks the header and the metadata, no voxel. The object holds no open file:
    it pickles in less than 2 kB, works in threads and in forked or spawned processes, and every
    process keeps its own bounded cache of mapped files. A file that is replaced or truncated
    raises `SourceChanged` instead of mixing old and new.

    Parameters
    ----------
    path
        A local path, a URL (``s3://``, ``gs://``, ``az://``, ``https://``, whatever fsspec knows),
        a file's bytes, or a binary file object (which is read whole). `.mla` files of every
        release, `.mb2nd` files and plain Blosc2 arrays named `.b2nd` are accepted.
    threads
        Threads per read. None shares the CPUs with other reads under way and leaves small boxes
        to one thread; 1 never starts a thread.
    mode : {"r", "r+"}
        ``"r+"`` edits in place: ``array[key] = values`` and `write`; threads then take turns.
    checksums
        Whether each chunk is compared with its checksum when it is first read; files without
        checksums are then refused.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them. They
        travel with the array to other processes.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    FormatError
        When the file is damaged, hostile or not an `.mla` file.
    SourceError
        When the path is a directory, the object cannot be had, or what is not a local file is to
        be edited.

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

    __slots__ = ("_metadata", "_mode")

    def __init__(
        self,
        path: object,
        *,
        threads: int | None = None,
        mode: Literal["r", "r+"] = "r",
        checksums: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        store: Any = None,
    ) -> None:
        check_threads(threads)
        source = open_address(path, storage_options=storage_options, store=store)
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
        source, header, threads, self._mode, checksums = state
        self._metadata = metadata
        # Reads of a file that nobody edits through this object need not wait for each other.
        turn: contextlib.AbstractContextManager[Any] = (
            contextlib.nullcontext() if self._mode == "r" else ProcessLock()
        )
        super().__init__(source, header, threads=threads, checksums=checksums, turn=turn)

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

    def points(
        self,
        points: ArrayLike,
        *,
        space: Space = "index",
        method: Method = "nearest",
        outside: Outside = "raise",
        fill_value: Any = None,
    ) -> NDArray[Any]:
        """Read the values at points, each block that they touch once.

        Parameters
        ----------
        points
            (n, s) numbers, in any order, repeats allowed. ``"index"``: one column for each spatial
            axis, or for each axis, array order. ``"world"``: one column per world axis.
        space : {"index", "world"}
            What the columns are; world positions go through the affine of the metadata.
        method : {"nearest", "linear"}
            What fractions of an index mean: the nearest voxel (half to even), or linear
            interpolation in float64, which needs 0 to n - 1.
        outside : {"raise", "fill", "drop"}
            What becomes of points outside the array.
        fill_value
            What they get with ``"fill"``; NaN for floats unless given.

        Returns
        -------
        numpy.ndarray
            (n, ...): values in the order of the points, of axes without a column whole.

        Raises
        ------
        IndexError
            When points are outside and `outside` is ``"raise"``.
        GeometryError
            When world positions do not determine indices.
        TypeError, ValueError
            When points, method or fill value make no sense.

        Examples
        --------
        >>> import numpy as np, mlarray_xr
        >>> _ = mlarray_xr.to_mla(np.arange(24).reshape(2, 3, 4), "points.mla")
        >>> mlarray_xr.MlaArray("points.mla").points([(1, 2, 3), (0, 0, 1)])
        array([23,  1])
        """
        check_space(space)
        axes = stored_axes(self.metadata, self.ndim)
        if space == "world":
            geometry = stored_geometry(self.metadata, axes)
            along, indices = axes.spatial, world_indices(points, geometry=geometry)
        else:
            along, indices = point_axes(points, spatial=axes.spatial, ndim=self.ndim)
        plan = plan_points(
            indices,
            shape=self.shape,
            dtype=self.dtype,
            axes=along,
            method=method,
            outside=outside,
            fill_value=fill_value,
            n_removed=indices.shape[1] - len(along),
        )
        return read_points(plan, self.select)

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

    def __repr__(self) -> str:
        """Describe address, shape and layout; nothing from the metadata."""
        where = os.path.basename(self.path) if self.path else self._source.name
        return (
            f"<MlaArray {where!r} shape={self.shape} dtype={self.dtype} "
            f"chunks={self.chunks} blocks={self.blocks}>"
        )

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
