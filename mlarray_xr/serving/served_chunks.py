"""Chunks as they are served: a grid of moderate size, in a codec that every viewer has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.foreign.zarr_group import ImageForm
from mlarray_xr.serving.stored_box import read_box

if TYPE_CHECKING:
    from mlarray_xr.array import MlaArray
    from mlarray_xr.zarr_view.stored_chunks import StoredChunks

__all__ = [
    "ENCODINGS",
    "Encoding",
    "encode_chunk",
    "plan_served_chunks",
    "read_chunk",
    "served_form",
]

Encoding: TypeAlias = Literal["blosc", "gzip", "zstd", "none"]
ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
"""How chunks may be packed: the codecs that zarr-python and browsers' viewers share."""

_MOST_CHUNK_BYTES = 4 << 20
_MOST_DECODED_BYTES = 64 << 20
"""Of the blocks that one chunk is put together from."""
_FAST = 1
_LARGEST_WORD = 8
_NEEDED = (
    'serving files as Zarr needs zarr and numcodecs, which are not installed. To fix: pip install "'
    'mlarray-xr[serve]"'
)


def plan_served_chunks(
    shape: tuple[int, ...],
    *,
    chunks: tuple[int, ...],
    blocks: tuple[int, ...],
    itemsize: int,
    most_bytes: int = _MOST_CHUNK_BYTES,
) -> tuple[int, ...]:
    """Choose the chunks that an array is served in: those of the file, or parts of them.

    Parts are whole blocks that divide the chunk, so that nothing is decoded for two of them. No
    block is split, however large it is: it would be decoded again for each of its pieces. Where
    whole blocks do not divide the chunk, some are decoded for two parts along an axis.

    Parameters
    ----------
    shape
        Extents of the array.
    chunks, blocks
        Extents of chunk and block of the file, array order.
    itemsize
        Bytes of one element.
    most_bytes
        Most bytes of a decoded chunk; one block is the smallest.

    Returns
    -------
    tuple of int
        Extents, at least 1 each.

    Examples
    --------
    >>> plan_served_chunks((512, 512, 512), chunks=(64, 64, 64), blocks=(16, 16, 16), itemsize=2)
    (64, 64, 64)
    >>> plan_served_chunks((512, 512, 512), chunks=(256, 256, 256), blocks=(32,) * 3, itemsize=2)
    (128, 128, 128)
    """
    served = [max(1, min(c, n)) for c, n in zip(chunks, shape, strict=True)]
    chunks, blocks = (tuple(max(1, n) for n in extents) for extents in (chunks, blocks))
    while math.prod(served) * itemsize > most_bytes:
        smaller = {
            axis: fewer
            for axis, extent in enumerate(served)
            if (fewer := _fewer_blocks(extent, shape[axis], chunks[axis], blocks[axis]))
        }
        if not smaller:
            break
        axis = max(smaller, key=served.__getitem__)
        served[axis] = smaller[axis]
    return tuple(served)


def served_form(file: MlaArray, *, encoding: Encoding) -> ImageForm:
    """Return how a file is served as Zarr: little-endian, chunks packed one by one.

    Raises
    ------
    ConversionError
        When a chunk would be put together from more than 64 MiB of blocks.
    MissingDependencyError
        When zarr is not installed.
    """
    try:
        from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec
    except ImportError as error:
        raise MissingDependencyError(_NEEDED) from error
    blosc = BloscCodec(
        typesize=_shuffled_bytes(file.dtype),
        cname="lz4",
        clevel=_FAST,
        shuffle="shuffle",
        blocksize=0,
    )
    compressors = {
        "blosc": (blosc,),
        "gzip": (GzipCodec(level=_FAST),),
        "zstd": (ZstdCodec(level=_FAST, checksum=False),),
        "none": None,
    }
    chunks = plan_served_chunks(
        file.shape, chunks=file.chunks, blocks=file.blocks, itemsize=file.dtype.itemsize
    )
    _check_decoded(file, chunks)
    return ImageForm(
        chunks=chunks,
        fill_value=False if file.dtype.kind == "b" else 0,
        serializer=BytesCodec(endian="little"),
        compressors=compressors[encoding],
    )


def read_chunk(
    stored: StoredChunks, index: tuple[int, ...], *, chunks: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[Any]]:
    """Read a chunk of the grid that is served, as Zarr wants it: whole and little-endian.

    Parameters
    ----------
    stored
        The chunks of the file.
    index
        Place in the grid, inside it.
    chunks
        Extents of a served chunk.

    Returns
    -------
    numpy.ndarray
        Of the extents of a chunk, zeros beyond the edge of the array.

    Raises
    ------
    ChunkError
        When a chunk of the file is damaged.
    SourceChanged
        When the file is another one by now.
    """
    file = stored.file
    box = tuple(
        (i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, file.shape, strict=True)
    )
    little = read_box(stored, box).astype(file.dtype.newbyteorder("<"), copy=False)
    if little.shape == chunks:
        return little
    padded = np.zeros(chunks, little.dtype)
    padded[tuple(slice(stop - start) for start, stop in box)] = little
    return padded


def encode_chunk(values: np.ndarray[Any, np.dtype[Any]], *, encoding: Encoding) -> bytes:
    """Pack a chunk as `served_form` says: the same values give the same bytes off the main thread.

    Raises
    ------
    MissingDependencyError
        When numcodecs is not installed.
    """
    try:
        from numcodecs import Blosc, GZip, Zstd
    except ImportError as error:
        raise MissingDependencyError(_NEEDED) from error
    # Truth values, times and complex numbers are not numbers to all codecs.
    plain = np.ascontiguousarray(values).reshape(-1).view(f"<u{_shuffled_bytes(values.dtype)}")
    raw = plain.view(np.uint8)
    match encoding:
        case "blosc":
            packed = Blosc(cname="lz4", clevel=_FAST, shuffle=Blosc.SHUFFLE).encode(plain)
        case "gzip":
            packed = GZip(level=_FAST).encode(raw)
        case "zstd":
            packed = Zstd(level=_FAST).encode(raw)
        case "none":
            packed = raw.tobytes()
    return bytes(packed)


def _shuffled_bytes(dtype: np.dtype[Any]) -> int:
    """Return how many bytes Blosc takes for one number: of complex ones a half."""
    return min(dtype.itemsize, _LARGEST_WORD)


def _check_decoded(file: MlaArray, served: tuple[int, ...]) -> None:
    """Refuse files of which far more is decoded for a chunk than is served."""
    if 0 in file.shape:
        return
    n_bytes = file.dtype.itemsize
    for extent, n, chunk, block in zip(served, file.shape, file.chunks, file.blocks, strict=True):
        is_aligned = n <= chunk or not chunk % extent
        n_bytes *= (-(-extent // block) + (not is_aligned)) * block
    if n_bytes > _MOST_DECODED_BYTES:
        msg = (
            f"chunks {served} of blocks {file.blocks} and {file.dtype} take {n_bytes} decoded "
            f"bytes each, the limit is {_MOST_DECODED_BYTES}. To fix: write a copy with smaller "
            "blocks"
        )
        raise ConversionError(msg)


def _fewer_blocks(extent: int, n: int, chunk: int, block: int) -> int | None:
    """Return the next smaller number of whole blocks that makes a grid; None without one."""
    if n <= chunk or chunk % block:  # any number of blocks begins a grid; of others none fits it
        fewer = -(-extent // (2 * block)) * block
        return fewer if fewer < extent else None
    count = chunk // block
    small = [i for i in range(1, math.isqrt(count) + 1) if not count % i]
    divisors = {*small, *(count // i for i in small)}
    return max((d * block for d in divisors if d * block < extent), default=None)
