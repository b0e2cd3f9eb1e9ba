"""Encoding: array values to the chunks of a file, one at a time, the same bytes everywhere."""

from __future__ import annotations

import contextlib
import math
import threading
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.format.block_index import block_check, fits_block_index
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, RAW_FLAG
from mlarray_xr.planning.grid import box_shape, chunk_boxes, touched_chunks
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
    "adopt_chunk",
    "encode_index",
    "encode_part",
    "released_gil",
]

ZEROS, NANS = 1, 2
"""Blosc2's codes of chunks without payload."""
STORABLE_KINDS = "biufcmMSUV"
_WITH_RANGE = "biuf"
_LARGEST_WITH_RANGE = 8
_LONG_ROW_BYTES = 64

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
    has_block_index: bool = False
    """Whether the trailer tells where blocks stand in every chunk; see
    `mlarray_xr.format.block_index`."""

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

    @property
    def n_chunks(self) -> int:
        """Number of chunks: none of an empty array."""
        return 0 if 0 in self.shape else math.prod(self.chunk_grid)

    @property
    def has_range(self) -> bool:
        """Whether smallest and largest value of chunks are recorded: of numbers up to 8 bytes."""
        return self.dtype.kind in _WITH_RANGE and self.dtype.itemsize <= _LARGEST_WITH_RANGE

    @property
    def entry_dtype(self) -> np.dtype[Any]:
        """Type of what is recorded of every chunk: where it is stored, its checksum, its values."""
        fields: list[tuple[str, Any]] = [
            ("number", "<i8"),
            ("offset", "<i8"),
            ("length", "<i4"),
            ("special", "u1"),
            ("crc32", "<u4"),
        ]
        if self.has_range:
            fields += [("least", self.dtype), ("greatest", self.dtype), ("nonzero", "<i8")]
        if n := self.n_indexed_blocks:
            columns = [
                ("head", "u1", CHUNK_HEADER_BYTES),
                ("starts", "<i4", n),
                ("checks", "<u2", n),
            ]
            fields += [(name, (kind, (length,))) for name, kind, length in columns]
        return np.dtype(fields)

    @property
    def n_indexed_blocks(self) -> int:
        """Number of blocks of a chunk as the block index has them; 0 where none is written."""
        n_blocks = math.prod(self.layout.block_grid)
        fits = self.has_block_index and fits_block_index(self.n_chunks, n_blocks)
        return n_blocks if fits else 0

    def numbers_in(self, box: Box) -> NDArray[np.int64]:
        """Return the numbers of the chunks of a part, in C order of the grid."""
        return touched_chunks(box, chunks=self.layout.chunks, grid=self.chunk_grid)

    def cparams(self) -> blosc2.CParams:
        """Return python-blosc2's compression parameters.

        One thread: with two, the same chunk gave 36 different byte strings in 40 runs.
        """
        import blosc2

        itemsize = self.dtype.itemsize
        blocksize = math.prod(self.layout.blocks) * itemsize
        return blosc2.CParams(**self.codec.cparams(itemsize, dtype=self.dtype), blocksize=blocksize)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedChunk:
    """One chunk as it goes into a file."""

    entry: NDArray[Any]
    """Its record, 0-d, of the plan's `entry_dtype`; the offset is not yet known."""
    data: bytes
    """Stored bytes; empty for a chunk of zeros or NaN, which lives in the index alone."""


def encode_part(values: NDArray[Any], box: Box, plan: FramePlan) -> Iterator[EncodedChunk]:
    """Encode the chunks of a part, a box that starts on chunk borders, one after another.

    Parameters
    ----------
    values
        The elements of the box, array order, of the plan's dtype.
    box
        Where they belong; each stop is on a chunk border or at the array's end.
    plan
        What to encode to.

    Yields
    ------
    EncodedChunk
        In C order of the chunk grid within the part.

    Raises
    ------
    ConversionError
        When values and box do not fit each other or the plan.
    """
    if values.shape != box_shape(box) or values.dtype != plan.dtype:
        msg = f"{values.dtype} values of shape {values.shape} for box {box} of {plan.dtype}"
        raise ConversionError(msg)
    # As plain values: python-blosc2 would turn a CParams into them for every chunk, which took
    # 0.2 ms and the GIL.
    params, entry_dtype = asdict(plan.cparams()), plan.entry_dtype
    tiles = np.empty(math.prod(plan.layout.padded_chunk), plan.dtype)
    whole = _row_buffer(values, plan)
    pieces = chunk_boxes(box, chunks=plan.layout.chunks)
    for number, (_, piece) in zip(plan.numbers_in(box).tolist(), pieces, strict=True):
        # The ellipsis keeps a 0-d array an array: a scalar would lose its byte order.
        inside: tuple[Any, ...] = (
            *(slice(a - start, b - start) for (a, b), (start, _) in zip(piece, box, strict=True)),
            ...,
        )
        entry = np.zeros((), entry_dtype)
        entry["number"] = number
        with released_gil():
            chunk = values[inside]
            if whole is not None:
                corner: tuple[Any, ...] = (*map(slice, box_shape(piece)), ...)
                whole[corner][...] = chunk
                chunk = whole[corner]
            # Of a lossy codec: range, checksum and file are of the values that will be read.
            chunk = plan.codec.truncated(chunk)
            tile(chunk, tiles, chunks=plan.layout.chunks, blocks=plan.layout.blocks)
            data = _encode_chunk(chunk, tiles, params, entry)
        yield EncodedChunk(entry=entry, data=data)


def adopt_chunk(data: bytes, values: NDArray[Any], box: Box, plan: FramePlan) -> EncodedChunk:
    """Record a chunk that was encoded elsewhere as `encode_part` records those that it encodes.

    Parameters
    ----------
    data
        Its stored bytes, which have been checked.
    values
        The elements that they decode to inside the array, of the shape of the box and the plan's
        dtype.
    box
        Where it belongs.
    plan
        What it becomes a part of.
    """
    entry = np.zeros((), plan.entry_dtype)
    (entry["number"],) = plan.numbers_in(box)
    if _is_recorded_nan(values, values, entry):
        return EncodedChunk(entry=entry, data=b"")
    return EncodedChunk(entry=entry, data=_recorded(data, entry))


def _row_buffer(values: NDArray[Any], plan: FramePlan) -> NDArray[Any] | None:
    """Return room for a chunk of values whose rows are long; others are not read by rows.

    Reading a chunk in one piece, row by row, and putting it in order in the cache, takes 4/5 of the
    time of doing both at once (int16 and float32, chunks of 1 MiB). Of values in Fortran order, or
    of three frames of a series, it takes twice to five times as long.
    """
    chunks = plan.layout.chunks
    itemsize = plan.dtype.itemsize
    if values.ndim and (values.strides[-1] != itemsize or chunks[-1] * itemsize < _LONG_ROW_BYTES):
        return None
    extents = [min(n, c) for n, c in zip(values.shape, chunks, strict=True)]
    return np.empty(extents, plan.dtype)


def _encode_chunk(
    values: NDArray[Any], tiles: NDArray[Any], params: dict[str, Any], entry: NDArray[Any]
) -> bytes:
    """Return the stored bytes of a chunk, and fill its record."""
    if _is_recorded_nan(values, tiles, entry):
        return b""
    return _recorded(_compress(tiles, params), entry)


def _is_recorded_nan(values: NDArray[Any], tiles: NDArray[Any], entry: NDArray[Any]) -> bool:
    """Record the values of a chunk; tell whether it is one of NaN, which is recorded as well."""
    if "least" not in (entry.dtype.names or ()):
        return False
    _fill_range(values, tiles, entry)
    if not _is_nan_chunk(values, entry["least"]):
        return False
    entry["special"] = NANS
    return True


def _recorded(data: bytes, entry: NDArray[Any]) -> bytes:
    """Record how a chunk is encoded, and return what is stored of it: nothing of one of zeros."""
    special = (data[31] >> 4) & 7
    if special == ZEROS:
        entry["special"] = ZEROS
        return b""
    entry["length"], entry["crc32"] = len(data), zlib.crc32(data)
    if "starts" in (entry.dtype.names or ()):
        _fill_blocks(data, entry)
    return data


def _fill_blocks(data: bytes, entry: NDArray[Any]) -> None:
    """Record where blocks stand in a chunk, and the checksum of each; nothing where none do."""
    if data[2] & RAW_FLAG or (data[31] >> 4) & 7:
        return
    starts = np.frombuffer(data, "<i4", entry["starts"].size, CHUNK_HEADER_BYTES)
    stops = np.append(starts[1:], len(data))
    if (starts > stops).any():
        return  # several threads encoded it; one puts blocks one after another
    entry["head"] = np.frombuffer(data, np.uint8, CHUNK_HEADER_BYTES)
    entry["starts"] = starts
    entry["checks"] = [
        block_check(data[start:stop])
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    ]


def _fill_range(values: NDArray[Any], tiles: NDArray[Any], entry: NDArray[Any]) -> None:
    """Record smallest, largest and number of non-zero values; NaN has no order and is not zero.

    The block-major copy is contiguous and in the cache: three passes over it cost less than one
    over a strided view. Its padding of zeros is in the way of the range only, at the array's edge.
    """
    seen = tiles if tiles.size == values.size else values
    least, greatest = seen.min(), seen.max()
    if values.dtype.kind == "f" and np.isnan(least):
        least, greatest = np.fmin.reduce(seen, axis=None), np.fmax.reduce(seen, axis=None)
    entry["least"], entry["greatest"] = least, greatest
    # Comparing floats first is three times as fast as counting them; NaN differs from zero.
    entry["nonzero"] = np.count_nonzero(tiles != 0 if tiles.dtype.kind == "f" else tiles)


def _is_nan_chunk(values: NDArray[Any], least: Any) -> bool:
    """Tell whether a chunk is what C-Blosc2 makes of its code for NaN, bit for bit.

    It knows the native byte order and two sizes only, and one of the many bit patterns of NaN.
    """
    dtype = values.dtype
    if dtype.kind != "f" or dtype.itemsize not in (4, 8) or not dtype.isnative:
        return False
    if not np.isnan(least):
        return False
    bits = np.dtype(f"u{dtype.itemsize}")
    return bool((values.view(bits) == np.array(np.nan, dtype).view(bits)).all())


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
    return _compress(little, asdict(params))


@contextlib.contextmanager
def released_gil() -> Iterator[None]:
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


def _compress(data: NDArray[Any], params: dict[str, Any]) -> bytes:
    """Compress a buffer as one Blosc2 chunk."""
    import blosc2

    return bytes(blosc2.compress2(data.view(np.uint8), cparams=params))
