"""Decoding of single chunks: metadata values, the chunk index, and chunks that need it whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, parse_chunk_header, stands_alone
from mlarray_xr.storage.libblosc2 import decode_blocks, native_library
from mlarray_xr.storage.tiles import tile, untile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = [
    "decode_checked_chunk",
    "decode_chunk",
    "decode_mini_chunk",
    "decode_values",
    "decode_whole_chunk",
]

_REPEATED = 3
_NAN = 2
_PLUGIN_FORMAT = 6
# None, shuffle, bitshuffle, delta, truncated precision: they need no frame.
_FRAMELESS = frozenset((0, 1, 2, 3, 4))


def decode_chunk(chunk: bytes, *, max_nbytes: int, name: str) -> NDArray[np.uint8]:
    """Return the uncompressed bytes of a metadata value or chunk index, at most the limit.

    Chunks stored raw are decoded without python-blosc2, whose import costs a quarter of a second;
    nearly every metadata entry is stored raw, because it is compressed already.

    Parameters
    ----------
    chunk
        The chunk's bytes, header included, exactly.
    max_nbytes
        Largest result accepted, bytes.
    name
        What to call the chunk in errors.

    Raises
    ------
    FormatError
        When the header is damaged or claims more than the limit.
    ChunkError
        When the content cannot be decoded.
    """
    header = parse_chunk_header(chunk, max_nbytes=max_nbytes, name=name)
    if header.special == _REPEATED:
        value = np.frombuffer(chunk, np.uint8, offset=CHUNK_HEADER_BYTES)
        if not len(value) or header.nbytes % len(value):
            msg = f"{name}: {len(value)} bytes cannot be repeated to fill {header.nbytes}"
            raise ChunkError(msg)
        return np.tile(value, header.nbytes // len(value))
    if header.special == _NAN:
        msg = f"{name}: a chunk of NaN is no table and no text"
        raise ChunkError(msg)
    if header.special:
        return np.zeros(header.nbytes, np.uint8)
    if header.is_raw:
        return np.frombuffer(chunk, np.uint8, offset=CHUNK_HEADER_BYTES)
    return decode_checked_chunk(chunk, nbytes=header.nbytes, name=name)


def decode_checked_chunk(chunk: bytes, *, nbytes: int, name: str) -> NDArray[np.uint8]:
    """Return the uncompressed bytes of a chunk whose header has been checked.

    Parameters
    ----------
    chunk
        The chunk's bytes, header included, exactly.
    nbytes
        Bytes that it decodes to.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When the content cannot be decoded.
    """
    import blosc2

    decoded = np.empty(nbytes, np.uint8)
    try:
        blosc2.decompress2(chunk, dst=decoded, nthreads=1)
    except (RuntimeError, ValueError, TypeError) as error:
        msg = f"{name}: the chunk of {len(chunk)} bytes cannot be decoded: {error}"
        raise ChunkError(msg) from error
    return decoded


def decode_values(
    chunk: bytes, out: NDArray[Any], *, chunks: tuple[int, ...], blocks: tuple[int, ...], name: str
) -> None:
    """Put the elements of a whole chunk, whose header has been checked, into array order.

    Parameters
    ----------
    chunk
        The chunk's bytes, header included, exactly.
    out
        Where they go, of any strides; smaller than `chunks` at the array's edge.
    chunks, blocks
        Shapes of chunk and block, array order.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When the content cannot be decoded.
    """
    padded = (-(-c // b) * b for c, b in zip(chunks, blocks, strict=True))
    nbytes = math.prod(padded) * out.dtype.itemsize
    tiles = decode_checked_chunk(chunk, nbytes=nbytes, name=name)
    untile(tiles.view(out.dtype), out, chunks=chunks, blocks=blocks)


def decode_mini_chunk(mini: bytes, header: FrameHeader, *, name: str) -> NDArray[Any]:
    """Return the blocks of a mini chunk, (n, *blocks); the GIL is released where possible.

    Parameters
    ----------
    mini
        See `mlarray_xr.format.block_layout`.
    header
        The header of the frame that the blocks come from.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When a block cannot be decoded.
    """
    nbytes = int.from_bytes(mini[4:8], "little")
    n_blocks = nbytes // header.blocksize
    if native_library() is None or not stands_alone(mini):
        decoded = decode_checked_chunk(mini, nbytes=nbytes, name=name)
    else:
        decoded = np.empty(nbytes, np.uint8)
        reason = decode_blocks(
            np.frombuffer(mini, np.uint8).ctypes.data,
            decoded.ctypes.data,
            stored_bytes=len(mini),
            runs=[(0, n_blocks)],
            # The C library counts in bytes where an element has more than its header can say.
            block_items=header.blocksize // (header.typesize if header.typesize < 256 else 1),
            block_bytes=header.blocksize,
        )
        if reason is not None:
            msg = f"{name}: {reason}: the chunk is damaged; others can still be read"
            raise ChunkError(msg)
    return decoded.view(header.dtype).reshape(n_blocks, *header.blocks)


def decode_whole_chunk(stored: bytes, header: FrameHeader, *, name: str) -> NDArray[Any]:
    """Return all blocks of a chunk whose blocks depend on each other, (n, *blocks).

    Parameters
    ----------
    stored
        The chunk's bytes, exactly; its header has been checked.
    header
        The frame's header.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When the content cannot be decoded.
    """
    shape = (header.chunksize // header.blocksize, *header.blocks)
    needs_array = stored[2] >> 5 == _PLUGIN_FORMAT or not _FRAMELESS.issuperset(stored[16:22])
    if not needs_array:
        tiles = decode_checked_chunk(stored, nbytes=header.chunksize, name=name)
        return tiles.view(header.dtype).reshape(shape)
    import blosc2

    # They look up shape or type of the array: an array of this one chunk tells them.
    array = blosc2.empty(header.chunks, header.dtype, chunks=header.chunks, blocks=header.blocks)
    try:
        array.schunk.update_chunk(0, stored)
        values = np.asarray(array[...])
    except (RuntimeError, ValueError) as error:
        msg = f"{name}: the chunk of {len(stored)} bytes cannot be decoded: {error}"
        raise ChunkError(msg) from error
    tiles = np.empty(math.prod(shape), header.dtype)
    tile(values, tiles, chunks=header.chunks, blocks=header.blocks)
    return tiles.reshape(shape)
