"""Encoding: array values to the chunks of a file, one at a time, the same bytes everywhere."""

from __future__ import annotations

import contextlib
import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.grid import box_shape, chunk_boxes
from mlarray_xr.storage.tiles import tile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import blosc2
    from numpy.typing import NDArray

    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout

__all__ = [
    "STORABLE_KINDS",
    "EncodedChunk",
    "FramePlan",
    "encode_index",
    "encode_part",
]

_ZEROS = 1
STORABLE_KINDS = "biufcmMSUV"

_gil_lock = threading.Lock()
_gil_users = 0
_gil_before = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FramePlan:
    """Everything that decides the bytes of a file's chunks; picklable, sent to workers."""

    shape: tuple[int, ...]
    """Extents of the array, array order."""
    dtype_str: str
    """NumPy type string of the elements."""
    layout: Layout
    """Chunks and blocks."""
    codec: Codec
    """Compression."""

    def __post_init__(self) -> None:
        """Refuse types that a frame cannot hold."""
        dtype = np.dtype(self.dtype_str)
        if dtype.kind not in STORABLE_KINDS or dtype.itemsize == 0:
            msg = (
                f"arrays of type {dtype} cannot be written: numbers, booleans, dates and strings "
                "of fixed size can. To fix: convert with .astype(...)"
            )
            raise ConversionError(msg)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return np.dtype(self.dtype_str)

    @property
    def chunk_grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.layout.chunks, strict=True))

    def cparams(self) -> blosc2.CParams:
        """Return python-blosc2's compression parameters.

        One thread: with two, the same chunk gave 36 different byte strings in 40 runs.
        """
        import blosc2

        itemsize = self.dtype.itemsize
        blocksize = math.prod(self.layout.blocks) * itemsize
        return blosc2.CParams(**self.codec.cparams(itemsize), blocksize=blocksize)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """One chunk as it goes into a file."""

    number: int
    """C-order number in the chunk grid."""
    data: bytes
    """Stored bytes; empty for a special chunk."""
    special: int
    """Blosc2's code for a chunk without payload (1 zeros), else 0."""


def encode_part(values: NDArray[Any], box: Box, plan: FramePlan) -> list[EncodedChunk]:
    """Encode the chunks of a part: a box that starts on chunk borders.

    Parameters
    ----------
    values
        The elements of the box, array order, of the plan's dtype.
    box
        Where they belong; each stop is on a chunk border or at the array's end.
    plan
        What to encode to.

    Returns
    -------
    list of EncodedChunk
        In C order of the chunk grid within the part.

    Raises
    ------
    ConversionError
        When values and box do not fit each other or the plan.
    """
    if values.shape != box_shape(box) or values.dtype != plan.dtype:
        msg = f"{values.dtype} values of shape {values.shape} for box {box} of {plan.dtype}"
        raise ConversionError(msg)
    with _released_gil():
        return [
            _encode_chunk(values, box, position, piece, plan)
            for position, piece in chunk_boxes(box, chunks=plan.layout.chunks)
        ]


def _encode_chunk(
    values: NDArray[Any], box: Box, position: tuple[int, ...], piece: Box, plan: FramePlan
) -> EncodedChunk:
    """Encode the one chunk at a grid position; `piece` is the part of the box inside it."""
    number = int(np.ravel_multi_index(position, plan.chunk_grid)) if position else 0
    # The ellipsis keeps a 0-d array an array: a scalar would lose its byte order.
    inside: tuple[Any, ...] = (
        *(slice(a - start, b - start) for (a, b), (start, _) in zip(piece, box, strict=True)),
        ...,
    )
    tiles = tile(values[inside], chunks=plan.layout.chunks, blocks=plan.layout.blocks)
    data = _compress(tiles, plan.cparams())
    special = (data[31] >> 4) & 7
    if special == _ZEROS:
        return EncodedChunk(number=number, data=b"", special=special)
    return EncodedChunk(number=number, data=data, special=0)


def encode_index(offsets: NDArray[np.int64]) -> bytes:
    """Encode the chunk table with the parameters C-Blosc2's ``frame.c`` uses."""
    import blosc2

    params = blosc2.CParams(
        codec=blosc2.Codec.BLOSCLZ,
        clevel=5,
        typesize=8,
        blocksize=16384,
        nthreads=1,
        splitmode=blosc2.SplitMode.NEVER_SPLIT,
        filters=[blosc2.Filter.NOFILTER] * 5 + [blosc2.Filter.SHUFFLE],
        filters_meta=[0] * 6,
    )
    little = np.ascontiguousarray(offsets, "<i8")
    return _compress(little, params)


@contextlib.contextmanager
def _released_gil() -> Iterator[None]:
    """Let python-blosc2 compress without the GIL inside the block.

    The switch belongs to the process; it costs others nothing but a little speed on tiny blocks.
    It stays on until the last of several blocks that overlap in time has ended.
    """
    import blosc2

    global _gil_users, _gil_before
    with _gil_lock:
        _gil_users += 1
        if _gil_users == 1:
            _gil_before = blosc2.set_releasegil(True)
    try:
        yield
    finally:
        with _gil_lock:
            _gil_users -= 1
            if _gil_users == 0:
                blosc2.set_releasegil(_gil_before)


def _compress(data: NDArray[Any], params: blosc2.CParams) -> bytes:
    """Compress a buffer as one Blosc2 chunk."""
    import blosc2

    return bytes(blosc2.compress2(data.view(np.uint8), cparams=params))
