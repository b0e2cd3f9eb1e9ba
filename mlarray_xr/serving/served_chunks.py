"""Chunks as they are served: a grid of moderate size, in a codec that every viewer has."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from mlarray_xr.errors import MissingDependencyError
from mlarray_xr.foreign.zarr_group import ImageForm

if TYPE_CHECKING:
    from mlarray_xr.array import MlaArray

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

    Parts are whole blocks that divide the chunk, so that nothing is decoded for two of them, as
    long as such parts are small enough; where a block is too large, it is split.

    Parameters
    ----------
    shape
        Extents of the array.
    chunks, blocks
        Extents of chunk and block of the file, array order.
    itemsize
        Bytes of one element.
    most_bytes
        Most bytes of a decoded chunk; one element is the smallest.

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
    while math.prod(served) * itemsize > most_bytes and max(served, default=1) > 1:
        smaller = {
            axis: fewer
            for axis, extent in enumerate(served)
            if (fewer := _fewer_blocks(extent, shape[axis], chunks[axis], blocks[axis]))
        }
        axis = max(smaller or range(len(served)), key=served.__getitem__)
        served[axis] = smaller.get(axis, -(-served[axis] // 2))
    return tuple(served)


def served_form(file: MlaArray, *, encoding: Encoding) -> ImageForm:
    """Return how a file is served as Zarr: little-endian, chunks packed one by one.

    Raises
    ------
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
    return ImageForm(
        chunks=plan_served_chunks(
            file.shape, chunks=file.chunks, blocks=file.blocks, itemsize=file.dtype.itemsize
        ),
        fill_value=False if file.dtype.kind == "b" else 0,
        serializer=BytesCodec(endian="little"),
        compressors=compressors[encoding],
    )


def read_chunk(
    file: MlaArray, index: tuple[int, ...], *, chunks: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[Any]]:
    """Read a chunk of the grid that is served, as Zarr wants it: whole and little-endian.

    Parameters
    ----------
    file
        The file.
    index
        Place in the grid, inside it.
    chunks
        Extents of a served chunk.

    Returns
    -------
    numpy.ndarray
        Of the extents of a chunk, zeros beyond the edge of the array.
    """
    box = tuple(
        (i * c, min((i + 1) * c, n)) for i, c, n in zip(index, chunks, file.shape, strict=True)
    )
    # The threads of the server are the parallelism.
    values = file.read(box, threads=1)
    little = values.astype(file.dtype.newbyteorder("<"), copy=False)
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


def _fewer_blocks(extent: int, n: int, chunk: int, block: int) -> int | None:
    """Return the next smaller number of whole blocks that makes a grid; None without one."""
    if n <= chunk:  # one chunk: any number of blocks begins a grid
        fewer = -(-extent // (2 * block)) * block
        return fewer if fewer < extent else None
    if chunk % block:
        return None
    count = chunk // block
    small = [i for i in range(1, math.isqrt(count) + 1) if not count % i]
    divisors = {*small, *(count // i for i in small)}
    return max((d * block for d in divisors if d * block < extent), default=None)
