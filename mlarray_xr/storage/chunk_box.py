"""One Blosc2 N-D chunk by itself: decoded as far as a key needs it, and encoded."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError, LayoutError
from mlarray_xr.format.block_layout import head_bytes, mini_chunk, parse_block_layout
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, stands_alone
from mlarray_xr.storage.chunk_pick import plan_pick
from mlarray_xr.storage.chunks import decode_mini_chunk, decode_whole_chunk
from mlarray_xr.storage.encode import released_gil
from mlarray_xr.storage.libblosc2 import decode_blocks, native_library
from mlarray_xr.storage.tiles import tile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.block_layout import BlockLayout
    from mlarray_xr.format.chunk_form import ChunkForm
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.storage.chunk_pick import DecodeBlocks, Pick

__all__ = [
    "chunk_layout",
    "constant_value",
    "decode_bytes",
    "decode_fetched",
    "decode_picked",
    "encode_bytes",
    "encode_chunk",
]

_ZEROS, _NANS, _REPEATED, _UNINITIALISED = 1, 2, 3, 4
_SPECIAL_SHIFT, _SPECIAL_MASK = 4, 0x70
_MOST_CALLS = 2


def chunk_layout(head: bytes, form: ChunkForm, *, room: int, name: str) -> BlockLayout:
    """Parse and check the first bytes of a chunk that stands alone.

    In a frame, chunks of nothing but zeros or NaN are entries of the chunk table. Alone they are 32
    bytes that say so: their layout is that of a chunk of one repeated value.

    Parameters
    ----------
    head
        The first `head_bytes` of the chunk, or all that there are.
    form
        Of the chunk.
    room
        The most bytes that the chunk can have.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When it cannot be a chunk of this form.
    """
    if len(head) >= CHUNK_HEADER_BYTES and _special(head) in (_ZEROS, _NANS, _UNINITIALISED):
        (stored_bytes,) = struct.unpack_from("<i", head, 12)
        if stored_bytes != CHUNK_HEADER_BYTES:
            msg = f"{name}: a chunk without values claims {stored_bytes} bytes: it is damaged"
            raise ChunkError(msg)
        as_repeated = bytearray(head[:CHUNK_HEADER_BYTES])
        as_repeated[31] = as_repeated[31] & ~_SPECIAL_MASK | _REPEATED << _SPECIAL_SHIFT
        length = CHUNK_HEADER_BYTES + form.typesize
        struct.pack_into("<i", as_repeated, 12, length)
        head, room = bytes(as_repeated), length
    return parse_block_layout(head, form.header, number=None, room=room, name=name)


def constant_value(stored: bytes, dtype: np.dtype[Any], *, name: str) -> NDArray[Any]:
    """Return the one value, 0-d, of a chunk whose layout is of the kind ``"value"``.

    Parameters
    ----------
    stored
        The chunk's bytes, checked by `chunk_layout`; what follows them is not looked at.
    dtype
        Type of the elements.
    name
        What to call the chunk in errors.

    Raises
    ------
    ChunkError
        When values that are no numbers are said to be NaN.
    """
    special = _special(stored)
    if special == _REPEATED:
        return np.frombuffer(stored, dtype, 1, CHUNK_HEADER_BYTES)[0, ...]
    if special != _NANS:
        return np.zeros((), dtype)
    if dtype.kind not in "fc":
        msg = f"{name}: a chunk of {dtype} is said to be NaN: it is damaged"
        raise ChunkError(msg)
    return np.full((), np.nan, dtype)


def decode_picked(
    stored: NDArray[np.uint8], form: ChunkForm, pick: Pick, *, dtype: np.dtype[Any], name: str
) -> NDArray[Any]:
    """Decode what a pick needs of a chunk that is there as a whole, without the GIL.

    Parameters
    ----------
    stored
        The chunk's bytes; others may follow, as its own header tells its length.
    form
        Of the chunk.
    pick
        What is wanted; see `mlarray_xr.storage.chunk_pick.plan_pick`.
    dtype
        Type of the elements.
    name
        What to call the chunk in errors.

    Returns
    -------
    numpy.ndarray
        What is wanted; it may be read-only, and refer to `stored`.

    Raises
    ------
    ChunkError
        When the chunk is damaged.
    """
    head = stored[: head_bytes(form.header)].tobytes()
    layout = chunk_layout(head, form, room=len(stored), name=name)
    if layout.kind == "value":
        first_value = stored[: CHUNK_HEADER_BYTES + form.typesize].tobytes()
        value = constant_value(first_value, dtype, name=name)
        return pick.values(lambda first, last: _repeated(value, form, last - first), dtype)
    decode = _decoder(stored, layout, form, pick.numbers, name=name)
    return pick.values(lambda first, last: decode(first, last).view(dtype), dtype)


def decode_fetched(
    payloads: Sequence[bytes],
    layout: BlockLayout,
    form: ChunkForm,
    pick: Pick,
    *,
    dtype: np.dtype[Any],
    name: str,
) -> NDArray[Any]:
    """Decode what a pick needs of a chunk of which only blocks were fetched.

    Parameters
    ----------
    payloads
        The stored bytes of each block of the pick.
    layout
        Of the chunk; divisible.
    form, pick, dtype, name
        As for `decode_picked`.

    Raises
    ------
    ChunkError
        When a block is damaged.
    """

    def decode(first: int, last: int) -> NDArray[Any]:
        if layout.kind == "raw":
            return np.frombuffer(b"".join(payloads[first:last]), dtype)
        mini = mini_chunk(layout, payloads[first:last])
        return decode_mini_chunk(mini, form.header, name=name).view(dtype)

    return pick.values(decode, dtype)


def encode_chunk(values: NDArray[Any], form: ChunkForm, codec: Codec) -> bytes:
    """Encode one chunk to the bytes that a file of the same layout and codec has for it.

    Parameters
    ----------
    values
        The elements, of the shape of the chunk, any strides.
    form
        Of the chunk.
    codec
        Compression; a lossy one needs values that are native floating point numbers.

    Raises
    ------
    LayoutError
        When values or codec do not fit.
    """
    if values.shape != form.chunks or values.dtype.itemsize != form.typesize:
        msg = (
            f"{values.dtype} values of shape {values.shape} are no chunk of {form.chunks} with "
            f"{form.typesize} bytes per element"
        )
        raise LayoutError(msg)
    import blosc2

    params = _parameters(codec, values.dtype, form.header.blocksize)
    tiles = np.empty(math.prod(form.grid) * math.prod(form.blocks), values.dtype)
    with released_gil():
        tile(codec.truncated(values), tiles, chunks=form.chunks, blocks=form.blocks)
        return bytes(blosc2.compress2(tiles.view(np.uint8), cparams=params))


def decode_bytes(stored: NDArray[np.uint8], form: ChunkForm, *, name: str) -> NDArray[np.uint8]:
    """Decode a whole chunk to the bytes of its elements in C order, 1-D.

    Parameters
    ----------
    stored, form, name
        As for `decode_picked`.

    Raises
    ------
    ChunkError
        When the chunk is damaged.
    """
    dtype = form.dtype
    head = stored[:CHUNK_HEADER_BYTES].tobytes()
    if len(head) == CHUNK_HEADER_BYTES and _special(head) == _NANS and form.typesize in (4, 8):
        dtype = np.dtype(f"<f{form.typesize}")  # the only elements that C-Blosc2 makes NaN of
    values = decode_picked(stored, form, plan_pick((), form), dtype=dtype, name=name)
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def encode_bytes(values: NDArray[np.uint8], form: ChunkForm, codec: Codec) -> bytes:
    """Encode a whole chunk from the bytes of its elements in C order.

    Parameters
    ----------
    values
        The bytes, 1-D, contiguous.
    form
        Of the chunk.
    codec
        Compression; lossless, as bytes do not tell what they mean.

    Raises
    ------
    LayoutError
        When these are not as many bytes as the chunk has, or the codec is a lossy one.
    """
    if values.nbytes != form.nbytes:
        msg = (
            f"{values.nbytes} bytes are no chunk of {form.chunks} with {form.typesize} bytes per "
            f"element, which has {form.nbytes}"
        )
        raise LayoutError(msg)
    # As elements without a meaning: a lossy codec refuses them.
    return encode_chunk(values.view(form.dtype).reshape(form.chunks), form, codec)


def _repeated(value: NDArray[Any], form: ChunkForm, n_blocks: int) -> NDArray[Any]:
    """Return blocks of one value."""
    return np.broadcast_to(value, (n_blocks, *form.blocks))


def _decoder(
    stored: NDArray[np.uint8],
    layout: BlockLayout,
    form: ChunkForm,
    numbers: NDArray[np.int64],
    *,
    name: str,
) -> DecodeBlocks:
    """Return what decodes blocks of these numbers of a chunk that is there as a whole."""
    header = form.header
    if layout.kind == "whole":
        tiles = decode_whole_chunk(stored[: layout.cbytes].tobytes(), header, name=name)
        return lambda first, last: tiles[numbers[first:last]]
    if layout.kind == "raw":
        raw = stored[CHUNK_HEADER_BYTES : layout.cbytes].reshape(form.n_blocks, header.blocksize)
        return lambda first, last: raw[numbers[first:last]].reshape(-1).view(form.dtype)
    if native_library() is None or not stands_alone(layout.head):
        return lambda first, last: _decode_mini(
            stored, layout, form, numbers[first:last], name=name
        )
    buffer = np.empty(0, form.dtype)

    def decode(first: int, last: int) -> NDArray[Any]:
        nonlocal buffer
        runs = _runs(numbers[first:last])
        if len(runs) > _MOST_CALLS:
            return _decode_mini(stored, layout, form, numbers[first:last], name=name)
        n_items = (last - first) * math.prod(form.blocks)
        if len(buffer) < n_items:
            buffer = np.empty(n_items, form.dtype)
        _decode_runs(stored, layout, form, runs, buffer, name=name)
        return buffer[:n_items]

    return decode


def _decode_mini(
    stored: NDArray[np.uint8],
    layout: BlockLayout,
    form: ChunkForm,
    numbers: NDArray[np.int64],
    *,
    name: str,
) -> NDArray[Any]:
    """Decode blocks as a chunk of nothing else: of many it is one call."""
    starts, stops = layout.spans(numbers)
    spans = zip(starts.tolist(), stops.tolist(), strict=True)
    mini = mini_chunk(layout, [stored[start:stop].tobytes() for start, stop in spans])
    return decode_mini_chunk(mini, form.header, name=name)


def _decode_runs(
    stored: NDArray[np.uint8],
    layout: BlockLayout,
    form: ChunkForm,
    runs: list[tuple[int, int]],
    out: NDArray[Any],
    *,
    name: str,
) -> None:
    """Decode runs of neighbours from where they are."""
    header = form.header
    reason = decode_blocks(
        stored.ctypes.data,
        out.ctypes.data,
        stored_bytes=layout.cbytes,
        runs=runs,
        # The C library counts in bytes where an element has more than its header can say.
        block_items=header.blocksize // (header.typesize if header.typesize < 256 else 1),
        block_bytes=header.blocksize,
    )
    if reason is not None:
        msg = f"{name}: {reason}: the chunk is damaged; others can still be read"
        raise ChunkError(msg)


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return first and length of each run of consecutive numbers, which are ascending."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    edges = [0, *breaks.tolist(), len(numbers)]
    return [(int(numbers[a]), b - a) for a, b in itertools.pairwise(edges) if b > a]


@lru_cache(maxsize=64)
def _parameters(codec: Codec, dtype: np.dtype[Any], blocksize: int) -> dict[str, Any]:
    """Return what `blosc2.compress2` wants, as plain values.

    It would turn a `blosc2.CParams` into them for every chunk, which takes 0.2 ms and the GIL.
    """
    import blosc2

    params = codec.cparams(dtype.itemsize, dtype=dtype)
    return asdict(blosc2.CParams(**params, blocksize=blocksize))


def _special(head: bytes) -> int:
    """Return the code of a chunk that is no streams: 0 is none."""
    return (head[31] >> _SPECIAL_SHIFT) & 7
