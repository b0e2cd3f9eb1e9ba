"""The form of one Blosc2 N-D chunk that stands alone, without the frame it was made for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from mlarray_xr.errors import LayoutError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES
from mlarray_xr.format.frame import MAX_NDIM, MAX_PADDED_CHUNK_BYTES, FrameHeader

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

__all__ = ["ChunkForm", "Chunked"]

# Elements are moved, not looked at: numbers of their size are copied much faster than others.
_PLAIN_TYPES = {1: "|u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: "<c16"}
_FRAME_VERSION = 2


class Chunked(Protocol):
    """What has a type, chunks and blocks: a file, its header, an array of Blosc2."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, with their byte order."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents of a chunk, array order; 0 along axes without extent."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Extents of a block, array order; 0 along axes without extent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkForm:
    """Element size, shape and block shape of a chunk: what its bytes alone do not tell.

    Parameters
    ----------
    typesize : int
        Bytes of one element.
    chunks, blocks : sequence of int
        Extents of the chunk and of its blocks, array order; blocks need not divide the chunk.

    Raises
    ------
    LayoutError
        If these are not numbers of the right size, or a padded chunk exceeds Blosc2's limit.

    Examples
    --------
    >>> form = ChunkForm(typesize=2, chunks=[10, 6], blocks=[4, 6])
    >>> form.n_blocks, form.header.chunksize
    (3, 144)
    """

    typesize: int
    """Bytes of one element."""
    chunks: tuple[int, ...]
    """Extents of the chunk, array order."""
    blocks: tuple[int, ...]
    """Extents of a block, array order; at most the chunk's."""
    header: FrameHeader = field(init=False, repr=False, compare=False)
    """The header of a frame of this chunk alone, for everything that works on frames."""

    def __post_init__(self) -> None:
        """Refuse what is no chunk: the numbers come from files of others."""
        object.__setattr__(self, "chunks", _extents(self.chunks, "chunks"))
        object.__setattr__(self, "blocks", _extents(self.blocks, "blocks"))
        typesize, chunks, blocks = self.typesize, self.chunks, self.blocks
        if type(typesize) is not int or not 0 < typesize <= MAX_PADDED_CHUNK_BYTES:
            msg = f"a typesize of {typesize!r} is not a number of bytes"
            raise LayoutError(msg)
        if len(chunks) != len(blocks) or any(b > c for b, c in zip(blocks, chunks, strict=True)):
            msg = f"blocks {blocks} do not fit into chunks {chunks}, axis by axis"
            raise LayoutError(msg)
        padded = math.prod(self.grid) * math.prod(blocks) * typesize
        if padded > MAX_PADDED_CHUNK_BYTES:
            msg = (
                f"chunks {chunks} of blocks {blocks} and {typesize} bytes per element take "
                f"{padded} bytes, the limit is {MAX_PADDED_CHUNK_BYTES}. To fix: use smaller chunks"
            )
            raise LayoutError(msg)
        object.__setattr__(self, "header", _header(self, padded_bytes=padded))

    @classmethod
    def of(cls, array: Chunked) -> ChunkForm:
        """Return the form of the chunks of an array; where it has no extent, they are 1 long."""
        return cls(
            typesize=array.dtype.itemsize,
            chunks=tuple(max(1, n) for n in array.chunks),
            blocks=tuple(max(1, n) for n in array.blocks),
        )

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of blocks along each axis."""
        return tuple(-(-c // b) for c, b in zip(self.chunks, self.blocks, strict=True))

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return math.prod(self.grid)

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk's elements, without what pads its blocks."""
        return math.prod(self.chunks) * self.typesize

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type to move elements as, whatever they mean."""
        return self.header.dtype

    def spread(self, shape: tuple[int, ...]) -> ChunkForm:
        """Return the form of the same bytes as a chunk of further axes, of extent 1 each.

        Raises
        ------
        LayoutError
            When `shape` is not `chunks` with such axes put in.

        Examples
        --------
        >>> ChunkForm(typesize=2, chunks=(10, 6), blocks=(4, 6)).spread((1, 10, 6)).blocks
        (1, 4, 6)
        """
        if shape == self.chunks:
            return self
        blocks, axis = [], 0
        for extent in shape:
            if axis < len(self.chunks) and extent == self.chunks[axis]:
                blocks.append(self.blocks[axis])
                axis += 1
            elif extent == 1:
                blocks.append(1)
            else:
                axis = len(self.chunks) + 1
                break
        if axis != len(self.chunks):
            msg = (
                f"the chunk grid has chunks of shape {shape}, the codec is configured for "
                f"{self.chunks}. To fix: give both the same chunks"
            )
            raise LayoutError(msg)
        return ChunkForm(typesize=self.typesize, chunks=shape, blocks=tuple(blocks))


def _extents(extents: Sequence[int], what: str) -> tuple[int, ...]:
    """Return extents as a tuple, refusing everything but positive integers."""
    is_list = isinstance(extents, list | tuple) and len(extents) <= MAX_NDIM
    if not is_list or not all(type(n) is int and 0 < n < 1 << 31 for n in extents):
        msg = f"{what} {str(extents)[:200]} are not at most {MAX_NDIM} positive integers"
        raise LayoutError(msg)
    return tuple(extents)


def _header(form: ChunkForm, *, padded_bytes: int) -> FrameHeader:
    """Return the header of a frame of one chunk; what only readers of files use is empty."""
    return FrameHeader(
        header_len=0,
        frame_len=CHUNK_HEADER_BYTES + padded_bytes,
        payload_len=CHUNK_HEADER_BYTES + padded_bytes,
        typesize=form.typesize,
        blocksize=math.prod(form.blocks) * form.typesize,
        chunksize=padded_bytes,
        has_vlmeta=False,
        version=_FRAME_VERSION,
        codec=0,
        level=0,
        filters=(0,) * 6,
        filters_meta=(0,) * 6,
        uses_dictionary=False,
        shape=form.chunks,
        chunks=form.chunks,
        blocks=form.blocks,
        dtype_str=_PLAIN_TYPES.get(form.typesize, f"|V{form.typesize}"),
        fixed_metadata=None,
    )
