"""Boxes of a file's voxels, decoded from bytes in memory: nobody who writes over it ends us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.planning.grid import box_shape, chunk_boxes
from mlarray_xr.storage.chunk_pick import plan_pick
from mlarray_xr.zarr_view.chunk_reading import read_chunk_sync

if TYPE_CHECKING:
    from zarr.abc.store import RangeByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.zarr_view.stored_chunks import StoredChunks

__all__ = ["read_box"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoredChunk:
    """One chunk of a file, as what reads chunks of Zarr asks for its bytes."""

    stored: StoredChunks
    """The chunks of the file."""
    position: tuple[int, ...]
    """Place in the chunk grid."""

    def get_sync(
        self, *, prototype: BufferPrototype, byte_range: RangeByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes, or some of them; None when the chunk is the fill value."""
        place = self.stored.place(self.position)
        if place is None:
            return None
        size = len(place) if isinstance(place, bytes) else place[1] - place[0]
        start, stop = (0, size) if byte_range is None else (byte_range.start, byte_range.end)
        stop = min(stop, size)
        if isinstance(place, bytes):
            return prototype.buffer.from_bytes(place[start:stop])
        return prototype.buffer.from_bytes(self.stored.read(place[0] + start, place[0] + stop))


def read_box(stored: StoredChunks, box: Box) -> np.ndarray[Any, np.dtype[Any]]:
    """Read a box of an array: of large chunks only the blocks that it touches.

    A mapped file that another program shortens ends the process that looks at it: the bytes are
    read, not mapped, and decoded from memory.

    Parameters
    ----------
    stored
        The chunks of the file.
    box
        Inside the array, not empty.

    Returns
    -------
    numpy.ndarray
        Of the extents of the box and the type of the file.

    Raises
    ------
    ChunkError
        When a chunk is damaged.
    SourceChanged
        When the file changed since it was opened: never values of two versions.

    Examples
    --------
    >>> import mlarray_xr
    >>> from mlarray_xr.zarr_view.stored_chunks import StoredChunks
    >>> _ = mlarray_xr.to_mla(np.arange(64).reshape(8, 8), "boxed.mla", chunks=4, blocks=4)
    >>> read_box(StoredChunks(mlarray_xr.MlaArray("boxed.mla")), ((3, 5), (0, 2)))
    array([[24, 25],
           [32, 33]])
    """
    from zarr.core.buffer import default_buffer_prototype

    file, form = stored.file, ChunkForm.of(stored.file)
    values = np.empty(box_shape(box), file.dtype)
    for position, part in chunk_boxes(box, chunks=form.chunks):
        origin = [i * c for i, c in zip(position, form.chunks, strict=True)]
        inside = tuple(slice(a - o, b - o) for (a, b), o in zip(part, origin, strict=True))
        target = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(part, box, strict=True))
        found = read_chunk_sync(
            _StoredChunk(stored=stored, position=position),
            default_buffer_prototype(),
            form,
            plan_pick(inside, form),
            dtype=file.dtype,
        )
        values[target] = stored.table.fill_value(file.dtype) if found is None else found
    stored.source.check()  # of chunks without payload no byte was read, so nothing was compared
    return values
