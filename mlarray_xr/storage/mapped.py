"""MappedReader: fills boxes of a file that is mapped once per process (or held in memory)."""

from __future__ import annotations

import math
import mmap
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.chunk import check_chunks
from mlarray_xr.format.integrity import chunk_place
from mlarray_xr.planning.grid import (
    box_shape,
    chunk_boxes,
    is_empty,
    plan_pieces,
    plan_slabs,
    touched_chunks,
)
from mlarray_xr.storage.chunks import decode_checked_chunk, decode_chunk
from mlarray_xr.storage.counters import Tally
from mlarray_xr.storage.frame_entries import recorded_integrity
from mlarray_xr.storage.frame_file import chunk_offsets, read_header, special_codes
from mlarray_xr.storage.libblosc2 import NativeHandle, native_library
from mlarray_xr.storage.mapped_blocks import MappedBlocks
from mlarray_xr.storage.portable import PortableHandle
from mlarray_xr.storage.read_pool import run_shared, sharing
from mlarray_xr.storage.source import BytesSource, LocalSource
from mlarray_xr.storage.thin_boxes import is_thin, read_thin
from mlarray_xr.storage.tiles import untile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.block_request import ChunkBlocks, Take

__all__ = ["MappedReader"]

# One patch of 64 cubed (0.5 MiB of int16) gains nothing from a second thread, 128 cubed does. Even
# one thread is faster slab by slab (5 % at 192 cubed): the C library zeroes a buffer before it
# fills it, and what it has just zeroed is still in the cache.
_SLAB_BYTES = 1 << 20
# What the C library zeroes and fills row by row of a block should be in the cache. Of larger boxes
# even slabs are not: decoding small pieces aside and copying them is up to 1.5 times as fast.
_STAGED_BYTES = 16 << 20
_PIECE_BYTES = 1 << 20
_CHECK_AT_ONCE = 1 << 14
# Entries of the table that stand for chunks of NaN and for chunks without content.
_NAN = -0x7E << 56
_UNINITIALISED = -0x7C << 56


class _Handle(Protocol):
    """An open array of one process, used by one thread at a time."""

    def read_slab(
        self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[np.generic]
    ) -> None:
        """Decode the box from `start` to `stop` into the C-contiguous `out`."""


class _ChunkTable:
    """The decoded chunk index and what is known of each chunk so far."""

    def __init__(self, offsets: NDArray[np.int64], grid: tuple[int, ...]) -> None:
        self.offsets = offsets
        self.grid = grid
        self.is_checked = np.zeros(len(offsets), np.bool_)
        # The same flags as an N-D array: the box of chunks a read touches is one small slice.
        self.is_checked_grid = self.is_checked.reshape(grid)
        self.is_whole_only = np.zeros(len(offsets), np.bool_)
        self.has_whole_only = False


class MappedReader:
    """Fills boxes of one local file (or of bytes in memory); safe to share among threads.

    The file is mapped once. Every thread that reads takes a light C array over the map from a
    stack and puts it back, so there are as many as reads ever ran side by side. Reads check the
    file's identity before and after, check each chunk at its first use, and release the GIL where
    the C library is available.

    Parameters
    ----------
    source
        What to read; pinned.
    check
        Whether to compare each chunk with its checksum at its first use. Without, checksums are
        not even looked for.

    Raises
    ------
    SourceChanged
        When the file is not the one the source was made for.
    FormatError
        When the frame is damaged, or has no checksums to compare with.
    """

    def __init__(self, source: LocalSource | BytesSource, *, check: bool = False) -> None:
        self.source = source
        mapped = _map(source)
        self.header: FrameHeader = read_header(mapped, name=source.name)
        self._frame = mapped[: self.header.frame_len]
        self._payload = self._frame[self.header.header_len : self.header.index_start]
        self._handles: deque[_Handle] = deque()
        self._table: _ChunkTable | None = None
        self._lock = threading.Lock()
        self.tally = Tally()
        self._is_native = native_library() is not None
        self._integrity = recorded_integrity(source, self.header) if check else None

    def read(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Fill `out` with the elements of a box.

        Parameters
        ----------
        box
            Start/stop per axis, inside the array (not checked here).
        out
            C-contiguous, of the box's shape and the array's dtype.
        threads
            Threads to use, the caller's included; None shares the CPUs with other reads under
            way and leaves small boxes to one thread.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        ChunkError
            When a chunk of the box is damaged.
        """
        if is_empty(box):
            return
        self.source.check()
        self._fill(box, out, threads=threads)
        self.source.check()

    def read_blocks(
        self, wanted: Iterable[ChunkBlocks], take: Take, *, threads: int | None
    ) -> None:
        """Decode blocks; see `mlarray_xr.storage.block_request.BlockReader`.

        Raises
        ------
        SourceChanged
            When the file changed since it was opened.
        ChunkError
            When a chunk is damaged.
        """
        self.source.check()
        self._blocks().read_blocks(wanted, take, threads=threads)
        self.source.check()

    def _blocks(self) -> MappedBlocks:
        """Return what decodes whole blocks."""
        return MappedBlocks(
            self._payload,
            header=self.header,
            check=self._checked,
            fill=partial(self._fill_rows, threads=1),
            tally=self.tally,
            name=self.source.name,
        )

    def _fill(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Fill `out` with the elements of a box that is not empty."""
        if self._is_native and is_thin(box, self.header):
            read_thin(box, out, header=self.header, reader=self._blocks(), threads=threads)
        else:
            self._fill_rows(box, out, threads=threads)

    def _fill_rows(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Fill `out` with the elements of a box as the C library does, row by row."""
        self._check_chunks(box)
        if self._chunk_table().has_whole_only:
            self._read_chunks(box, out, threads=threads)
        elif out.nbytes >= _STAGED_BYTES:
            self._read_pieces(box, out, threads=threads)
        else:
            self._read_slabs(box, out, threads=threads)

    def _read_slabs(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Decode a box in slabs shared among threads."""
        n_slabs = max(threads or 1, out.nbytes // _SLAB_BYTES)
        if n_slabs < 2:
            self._read_slab(box, out)
            return
        flat, position, tasks = out.reshape(-1), 0, []
        for slab in plan_slabs(
            box, chunks=self.header.chunks, blocks=self.header.blocks, n_slabs=n_slabs
        ):
            size = math.prod(box_shape(slab))
            tasks.append(partial(self._read_slab, slab, flat[position : position + size]))
            position += size
        with sharing() as share:
            run_shared(tasks, threads=min(threads or share, len(tasks)))

    def _read_slab(self, box: Box, out: NDArray[np.generic]) -> None:
        """Decode a box into a contiguous range with one handle."""
        handle = self._take_handle()
        try:
            start, stop = tuple(zip(*box, strict=True)) or ((), ())
            handle.read_slab(start, stop, out.reshape(box_shape(box)))
        finally:
            self._handles.append(handle)

    def _take_handle(self) -> _Handle:
        """Return an idle handle, or a new one."""
        try:
            return self._handles.pop()
        except IndexError:
            kind = NativeHandle if self._is_native else PortableHandle
            return kind(self._frame, ndim=len(self.header.shape), name=self.source.name)

    def _chunk_table(self) -> _ChunkTable:
        """Return the chunk table, decoded on first use.

        Two threads may both decode it; the first one wins, so that what is learnt of its chunks
        stays known.
        """
        if self._table is None:
            header, name = self.header, f"{self.source.name}: chunk index"
            trailer_len = int.from_bytes(self._frame[-22:-18].tobytes(), "big")
            stored = self._frame[header.index_start : header.frame_len - trailer_len].tobytes()
            decoded = decode_chunk(stored, max_nbytes=8 * header.n_chunks, name=name)
            offsets = chunk_offsets(decoded, header, name=self.source.name)
            table = _ChunkTable(offsets, header.chunk_grid)
            with self._lock:
                self._table = self._table or table
        return self._table

    def _check_chunks(self, box: Box) -> None:
        """Check the chunks that a box touches, each at its first use."""
        table, chunks = self._chunk_table(), self.header.chunks
        touched = tuple(
            slice(start // c, (stop - 1) // c + 1)
            for (start, stop), c in zip(box, chunks, strict=True)
        )
        if table.is_checked_grid[touched].all():
            return
        self._check_numbers(touched_chunks(box, chunks=chunks, grid=table.grid))

    def _checked(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return table entries of chunks, checked, and whether they only decode as a whole."""
        table = self._chunk_table()
        if not table.is_checked[numbers].all():
            self._check_numbers(np.unique(numbers))
        return table.offsets[numbers], table.is_whole_only[numbers]

    def _check_numbers(self, numbers: NDArray[np.int64]) -> None:
        """Check those of different chunks that have not been."""
        table = self._chunk_table()
        fresh = numbers[~table.is_checked[numbers]]
        for begin in range(0, len(fresh), _CHECK_AT_ONCE):
            batch = fresh[begin : begin + _CHECK_AT_ONCE]
            stored = batch[table.offsets[batch] >= 0]
            whole = check_chunks(
                self._payload, stored, table.offsets[stored], self.header, name=self.source.name
            )
            table.is_whole_only[stored] = whole
            if self._integrity is not None:
                self._compare(batch, self._integrity)
            special = batch[self._is_misread(table.offsets[batch])]
            table.is_whole_only[special] = True
            # Never reset: another thread may have found such a chunk meanwhile.
            if whole.any() or len(special):
                table.has_whole_only = True
            table.is_checked[batch] = True

    def _compare(self, numbers: NDArray[np.int64], integrity: Integrity) -> None:
        """Compare chunks, whose headers have been checked, with what was written."""
        offsets = self._chunk_table().offsets[numbers]
        codes = special_codes(offsets)
        # Of a chunk without payload the code is all there is.
        suspects = (offsets >= 0) | (codes != integrity.special[numbers])
        for number, offset, code in zip(
            numbers[suspects].tolist(),
            offsets[suspects].tolist(),
            codes[suspects].tolist(),
            strict=True,
        ):
            fault = integrity.fault(number, self._stored(offset).data, special=code)
            if fault is not None:
                position, box = chunk_place(number, self.header)
                msg = (
                    f"{self.source.name}: chunk {number} (grid position {position}, box {box}) is "
                    f"damaged, or was changed by another program: {fault}. Other chunks can still "
                    "be read"
                )
                raise ChunkError(msg)

    def _stored(self, offset: int) -> NDArray[np.uint8]:
        """Return the stored bytes of a checked chunk; none of a chunk without payload."""
        if offset < 0:
            return self._payload[:0]
        cbytes = int(self._payload[offset + 12 : offset + 16].view("<i4")[0])
        return self._payload[offset : offset + cbytes]

    def _is_misread(self, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Tell which chunks without payload C-Blosc2 (3.3.5) does not read as they are meant.

        Of uninitialised ones it returns whatever the memory held, and it knows one byte order and
        two sizes of NaN.
        """
        dtype = self.header.dtype
        knows_nan = dtype.kind != "f" or (dtype.isnative and dtype.itemsize in (4, 8))
        is_misread: NDArray[np.bool_] = offsets == _UNINITIALISED
        return is_misread if knows_nan else is_misread | (offsets == _NAN)

    def _read_pieces(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Read a large box in pieces that are decoded aside and copied to their place."""
        pieces = plan_pieces(
            box,
            chunks=self.header.chunks,
            blocks=self.header.blocks,
            n_elements=_PIECE_BYTES // self.header.typesize,
        )
        with sharing() as share:
            tasks = (partial(self._read_aside, p, out[_inside(p, box)]) for p in pieces)
            run_shared(tasks, threads=threads or share)

    def _read_aside(self, box: Box, out: NDArray[np.generic]) -> None:
        """Read a box into a buffer of its own and copy it to a view of any strides."""
        values = np.empty(box_shape(box), self.header.dtype)
        self._read_slab(box, values)
        out[...] = values

    def _read_chunks(self, box: Box, out: NDArray[np.generic], *, threads: int | None) -> None:
        """Read a box chunk by chunk, for files with chunks that only decode right as a whole."""

        def tasks() -> Iterator[Callable[[], None]]:
            for position, part in chunk_boxes(box, chunks=self.header.chunks):
                yield partial(self._read_chunk, position, part, out[_inside(part, box)])

        with sharing() as share:
            run_shared(tasks(), threads=share if threads is None else threads)

    def _read_chunk(self, position: tuple[int, ...], part: Box, out: NDArray[np.generic]) -> None:
        """Read the part of a box that lies in one chunk into a view of any strides."""
        header, table = self.header, self._chunk_table()
        number = int(np.ravel_multi_index(position, table.grid)) if position else 0
        offset = int(table.offsets[number])
        if not table.is_whole_only[number]:
            self._read_aside(part, out)
        elif offset < 0:
            out[...] = np.nan if offset == _NAN else np.zeros((), header.dtype)
        else:
            stored = self._stored(offset).tobytes()
            name = f"{self.source.name}: chunk {number}"
            tiles = decode_checked_chunk(stored, nbytes=header.chunksize, name=name)
            whole = np.empty(header.chunks, header.dtype)
            untile(tiles.view(header.dtype), whole, chunks=header.chunks, blocks=header.blocks)
            firsts = [i * c for i, c in zip(position, header.chunks, strict=True)]
            out[...] = whole[
                tuple(slice(a - o, b - o) for (a, b), o in zip(part, firsts, strict=True))
            ]


def _inside(part: Box, box: Box) -> tuple[Any, ...]:
    """Return the key of a part in an array that holds the box; an array even where it is 0-d."""
    return (*(slice(a - o, b - o) for (a, b), (o, _) in zip(part, box, strict=True)), ...)


def _map(source: LocalSource | BytesSource) -> NDArray[np.uint8]:
    """Return a source's bytes: the map of a local file, or the bytes themselves."""
    if isinstance(source, BytesSource):
        return np.frombuffer(source.data, np.uint8)
    with source.open() as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(mapped, np.uint8)
