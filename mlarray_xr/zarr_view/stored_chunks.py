"""StoredChunks: the bytes of the chunks of one file, by their places in the chunk grid."""

from __future__ import annotations

import itertools
import os
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.chunk import repeated_chunk
from mlarray_xr.storage.frame_file import read_payload
from mlarray_xr.storage.remote_file import remote_file
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.source import LocalSource
from mlarray_xr.zarr_view.chunk_table import ChunkTable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray

__all__ = ["StoredChunks"]


# Copying more than this takes as long as handing it to a thread, many times over.
_AT_ONCE_BYTES = 4 << 20


class StoredChunks:
    """The chunks of one file as they are stored in it; pickles as the address of the file.

    Parameters
    ----------
    file
        Whose chunks they are.
    """

    def __init__(self, file: MlaArray) -> None:
        self.file = file
        self.source = file._source  # noqa: SLF001 - bytes, where the array gives values
        self._header = file._header  # noqa: SLF001

    def __getstate__(self) -> MlaArray:
        """Return the file: the table is read again where it is needed."""
        return self.file

    def __setstate__(self, file: MlaArray) -> None:
        """Restore from the file."""
        self.__init__(file)  # type: ignore[misc]

    @cached_property
    def table(self) -> ChunkTable:
        """Where the chunks lie; read when it is first needed."""
        return ChunkTable.read(self.source)

    @cached_property
    def odd(self) -> frozenset[int]:
        """The numbers of chunks of NaN, where the fill value is zero."""
        return frozenset(self.table.odd(self.file.dtype).tolist())

    @cached_property
    def _is_there(self) -> NDArray[np.bool_]:
        """Whether there is a chunk at each place of the grid, or the fill value."""
        there: NDArray[np.bool_] = self.table.special == 0
        there[list(self.odd)] = True
        return there.reshape(self.table.grid)

    @property
    def is_remote(self) -> bool:
        """Whether bytes come from a server."""
        return isinstance(self.source, RemoteSource)

    def place(self, position: tuple[int, ...]) -> tuple[int, int] | bytes | None:
        """Return first and last byte in the file of the chunk at a place of the grid.

        The bytes themselves of a chunk that the file has no payload of; None where the chunk is
        the fill value, or outside the grid.

        Raises
        ------
        ChunkError
            When it is a chunk of NaN in an array of a type that has none.
        """
        grid = self.table.grid
        if len(position) != len(grid) or any(
            not 0 <= i < n for i, n in zip(position, grid, strict=True)
        ):
            return None
        number = int(np.ravel_multi_index(position, grid)) if grid else 0
        if number in self.odd:
            if self.file.dtype.kind not in "fc":
                msg = f"{self.source.name}: chunk {number} is of NaN, which {self.file.dtype} lacks"
                raise ChunkError(msg)
            return repeated_chunk(np.array(np.nan, self.file.dtype).tobytes(), self._header)
        if self.table.special[number]:
            return None
        start = int(self.table.starts[number])
        return start, start + int(self.table.lengths[number])

    def read(self, start: int, stop: int) -> bytes:
        """Read bytes of the payload of a file, wherever it is.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        """
        first = self._header.header_len
        data = read_payload(self.source, self._header, start=start - first, stop=stop - first)
        if isinstance(self.source, LocalSource):
            self.source.check()  # somebody may write over it: no bytes of two versions
        return data.tobytes()

    def read_cached(self, start: int, stop: int) -> bytearray | None:
        """Read bytes of a local file that the system has in memory, without waiting for a disk.

        None where it has not all of them there, where they are many, or where it does not tell.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        """
        if stop - start > _AT_ONCE_BYTES or not isinstance(self.source, LocalSource):
            return None
        if not hasattr(os, "RWF_NOWAIT"):
            return None
        data = bytearray(stop - start)
        with self.source.open() as file:
            try:
                count = os.preadv(file.fileno(), [data], start, os.RWF_NOWAIT)
            except OSError:  # nothing is there, or the file system cannot tell
                return None
            self.source.check_stat(os.fstat(file.fileno()))
        return data if count == len(data) else None

    def request(self, start: int, stop: int) -> Future[bytes]:
        """Begin to fetch bytes of a remote file."""
        assert isinstance(self.source, RemoteSource)
        return remote_file(self.source).request(start, stop)

    def positions(self, beginning: tuple[int, ...]) -> Iterator[int]:
        """Yield what may follow the beginning of a position: chunks are there behind each."""
        grid = self.table.grid
        is_inside = all(0 <= i < n for i, n in zip(beginning, grid, strict=False))
        if len(beginning) >= len(grid) or not is_inside:
            return
        below = self._is_there[beginning]
        rest = tuple(range(1, below.ndim))
        yield from np.flatnonzero(below.any(axis=rest)).tolist()

    def all_positions(self) -> Iterator[tuple[int, ...]]:
        """Yield the positions of all chunks that are there, in C order."""
        grid = self.table.grid
        for position, is_there in zip(
            itertools.product(*map(range, grid)), self._is_there.reshape(-1).tolist(), strict=True
        ):
            if is_there:
                yield position
