"""The header of a Blosc2 contiguous frame: parsed and checked before any C code sees the file.

Layout facts and the check list follow C-Blosc2's ``README_CFRAME_FORMAT.rst`` and
``README_B2ND_METALAYER.rst``, corrected where files and library disagree with the text
(chunk offsets count from the *end* of the header).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.cursor import Cursor

__all__ = ["FIXED_METADATA_NAME", "FOOTER_BYTES", "FrameHeader", "header_length", "parse_header"]

FIXED_METADATA_NAME = "med_blosc2"
FOOTER_BYTES = 23
MIN_TRAILER_BYTES = 35
MAX_HEADER_BYTES = 1 << 20
MAX_NDIM = 16
MAX_PADDED_CHUNK_BYTES = (1 << 31) - 33
_FIRST_BYTES = b"\x9e\xa8b2frame\x00"
_MAP_AT = 87
_CODEC_NAMES = {0: "blosclz", 1: "lz4", 2: "lz4hc", 4: "zlib", 5: "zstd"}
_FILTER_NAMES = {
    1: "shuffle",
    2: "bitshuffle",
    3: "delta",
    4: "trunc_prec",
    32: "ndcell",
    33: "ndmean",
    35: "bytedelta",
    36: "int_trunc",
}
# The ids of plugins do not fit the four bits; another byte has them.
_PLUGIN_CODECS = (6, 15)
_DTYPE = re.compile(
    r"[<>|=]?(b1|i[1248]|u[1248]|f[248]|c8|c16|f16|c32"
    r"|[mM]8(\[\d{0,9}[a-zA-Z]{1,2}\])?|[SUV]\d{1,6})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHeader:
    """What a checked frame header says: geometry of the array and extents of the sections."""

    header_len: int
    """Bytes of the header; chunk offsets count from here."""
    frame_len: int
    """Bytes of the whole frame; the file may be longer, never shorter."""
    payload_len: int
    """Bytes of the section that holds the chunks, gaps included."""
    typesize: int
    """Bytes of one element."""
    blocksize: int
    """Uncompressed bytes of one block."""
    chunksize: int
    """Uncompressed bytes of one chunk, padded to whole blocks."""
    has_vlmeta: bool
    """Whether the trailer holds entries."""
    version: int
    """Frame format version, 1 to 3."""
    codec: int
    """Default codec id; each chunk header governs itself."""
    level: int
    """Default compression level."""
    filters: tuple[int, ...]
    """Default filter pipeline, six ids."""
    filters_meta: tuple[int, ...]
    """The parameter of each of these filters."""
    uses_dictionary: bool
    """Whether the blocks of a chunk share a dictionary by default."""
    shape: tuple[int, ...]
    """Extents of the array, array order."""
    chunks: tuple[int, ...]
    """Extents of a chunk, array order; may exceed the shape."""
    blocks: tuple[int, ...]
    """Extents of a block, array order; need not divide the chunk."""
    dtype_str: str
    """NumPy type string of the elements."""
    fixed_metadata: tuple[int, int] | None
    """Byte span of the `med_blosc2` metalayer of the predecessor format, if there."""

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the elements."""
        return np.dtype(self.dtype_str)

    @property
    def chunk_grid(self) -> tuple[int, ...]:
        """Number of chunks along each axis."""
        return tuple(-(-n // c) if n else 0 for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def n_chunks(self) -> int:
        """Number of chunks of the grid."""
        return math.prod(self.chunk_grid)

    @property
    def index_start(self) -> int:
        """First byte of the index chunk."""
        return self.header_len + self.payload_len

    def facts(self) -> dict[str, Any]:
        """Return layout, sizes in bytes and compression as plain values, fit for JSON."""
        nbytes = math.prod(self.shape) * self.typesize
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype),
            "nbytes": nbytes,
            "file_bytes": self.frame_len,
            "ratio": round(nbytes / self.frame_len, 3),
            "chunks": list(self.chunks),
            "blocks": list(self.blocks),
            "n_chunks": self.n_chunks,
            "chunk_bytes": self.chunksize,
            "block_bytes": self.blocksize,
            "codec": self.codec_name,
            "level": self.level,
            "filters": list(self.filter_names),
            "frame_version": self.version,
        }

    @property
    def codec_name(self) -> str:
        """Name of the default codec, or its id."""
        return _CODEC_NAMES.get(self.codec, f"codec {self.codec}")

    @property
    def filter_names(self) -> tuple[str, ...]:
        """Names of the default filters that do something, in order."""
        return tuple(_FILTER_NAMES.get(f, f"filter {f}") for f in self.filters if f)


def header_length(first: bytes, *, file_size: int, name: str) -> int:
    """Return the header's length from a file's first bytes, refusing what is not a frame.

    Parameters
    ----------
    first
        At least the first 15 bytes of the file, fewer only when it is shorter.
    file_size
        Bytes of the file.
    name
        What to call the file in errors.
    """
    count = len(_FIRST_BYTES)
    if not first.startswith(_FIRST_BYTES):
        is_cut = first and _FIRST_BYTES.startswith(first[:count])
        msg = (
            f"{name}: not {'the whole of ' if is_cut else ''}an .mla file: it holds {file_size} "
            f"bytes and starts with {first[:count].hex(' ') or 'nothing'} where a Blosc2 frame "
            f"starts with {_FIRST_BYTES.hex(' ')}. To fix: (1) check the path; (2) convert other "
            "formats with `mla convert`"
        )
        raise FormatError(msg)
    cursor = Cursor(first, position=len(_FIRST_BYTES), what=name)
    header_len = cursor.i32()
    if not _MAP_AT <= header_len <= min(file_size, MAX_HEADER_BYTES):
        msg = f"{name}: a header of {header_len} bytes cannot be in a file of {file_size} bytes"
        raise FormatError(msg)
    return header_len


def parse_header(head: bytes, *, file_size: int, name: str = "frame") -> FrameHeader:
    """Parse and check a frame header so that the C library may be given the frame.

    Parameters
    ----------
    head
        Exactly the header's bytes, see `header_length`.
    file_size
        Bytes of the whole file.
    name
        What to call the file in errors.

    Raises
    ------
    FormatError
        When any field is out of place, inconsistent or unsupported.
    """
    header_len = header_length(head, file_size=file_size, name=name)
    cursor = Cursor(head[:header_len], position=15, what=name)
    frame_len = cursor.integer(0xCF, 8, signed=False)
    _require(
        header_len + MIN_TRAILER_BYTES <= frame_len <= file_size,
        f"{name}: the header claims {frame_len} bytes, the file holds {file_size}: it is truncated",
    )
    cursor.expect(b"\xa4")
    flags, frame_type, codec_byte, _ = cursor.take(4)
    version = flags & 0x0F
    supported = 1 <= version <= 3 and (flags >> 4) & 3 == 1 and not flags & 0x80 and not frame_type
    _require(
        supported,
        f"{name}: frame flags {flags:#04x}, type {frame_type}: only contiguous frames of version "
        "1 to 3 with 64-bit offsets and fixed blocks are read",
    )
    nbytes, payload_len = cursor.i64(), cursor.i64()
    typesize, blocksize, chunksize = cursor.i32(), cursor.i32(), cursor.i32()
    cursor.i16()
    cursor.i16()
    vlmeta_flag = cursor.take(1)
    _require(vlmeta_flag in (b"\xc2", b"\xc3"), f"{name}: byte 68 is {vlmeta_flag.hex()}, no flag")
    cursor.expect(b"\xd8\x06")
    pipeline = cursor.take(16)
    sizes_ok = nbytes >= 0 <= payload_len <= frame_len and typesize > 0 <= min(blocksize, chunksize)
    _require(
        sizes_ok,
        f"{name}: impossible sizes: nbytes {nbytes}, payload {payload_len}, element {typesize}, "
        f"block {blocksize}, chunk {chunksize}",
    )
    layers = _metalayers(cursor, name=name)
    b2nd_start, b2nd_stop = layers["b2nd"]
    shape, chunks, blocks, dtype_str = _parse_b2nd(head[b2nd_start:b2nd_stop], name=name)
    header = FrameHeader(
        header_len=header_len,
        frame_len=frame_len,
        payload_len=payload_len,
        typesize=typesize,
        blocksize=blocksize,
        chunksize=chunksize,
        has_vlmeta=vlmeta_flag == b"\xc3",
        version=version,
        codec=pipeline[6] if codec_byte & 0x0F in _PLUGIN_CODECS else codec_byte & 0x0F,
        level=codec_byte >> 4,
        filters=tuple(pipeline[:6]),
        filters_meta=tuple(pipeline[8:14]),
        uses_dictionary=bool(pipeline[14] & 1),
        shape=shape,
        chunks=chunks,
        blocks=blocks,
        dtype_str=dtype_str,
        fixed_metadata=layers.get(FIXED_METADATA_NAME),
    )
    _check_geometry(header, nbytes=nbytes, variable_chunks=bool(flags & 0x40), name=name)
    return header


def _require(condition: bool, message: str) -> None:
    """Raise `FormatError` with `message` unless `condition` holds."""
    if not condition:
        raise FormatError(message)


def _metalayers(cursor: Cursor, *, name: str) -> dict[str, tuple[int, int]]:
    """Return the byte span of each fixed metalayer; only the two that hold plain data are allowed.

    Every other name (`LazyArray`, `proxy-source`, `b2o`, ...) changes what Blosc2 builds, runs or
    opens: python-blosc2 before 4.14.1 executed source text found under one of them.
    """
    found = cursor.names()
    map_end = cursor.position
    names = {layer for layer, _ in found}
    _require(
        names in ({"b2nd"}, {"b2nd", FIXED_METADATA_NAME}),
        f"{name}: metalayers {sorted(names)} found, only 'b2nd' (with {FIXED_METADATA_NAME!r}) is "
        "an array: lazy expressions, proxies and other Blosc2 objects are refused",
    )
    spans = {}
    for layer, offset in found:
        _require(
            offset >= map_end, f"{name}: metalayer {layer!r} at byte {offset} overlaps the map"
        )
        value = Cursor(cursor.data, position=min(offset, len(cursor.data)), what=name)
        length = value.integer(0xC6, 4, signed=False)
        start = value.position
        value.take(length)
        spans[layer] = (start, start + length)
    return spans


def _parse_b2nd(
    content: bytes, *, name: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], str]:
    """Return shape, chunks, blocks and type string of the `b2nd` metalayer."""
    cursor = Cursor(content, what=f"{name}: b2nd metalayer")
    cursor.expect(b"\x97\x00")
    ndim = cursor.take(1)[0]
    _require(ndim <= MAX_NDIM, f"{name}: {ndim} axes, at most {MAX_NDIM} are possible")
    # A list of 16 is really tagged a0: the writer adds the length to 0x90.
    list_tag = bytes([0x90 + ndim])
    cursor.expect(list_tag)
    shape = tuple(cursor.i64() for _ in range(ndim))
    cursor.expect(list_tag)
    chunks = tuple(cursor.i32() for _ in range(ndim))
    cursor.expect(list_tag)
    blocks = tuple(cursor.i32() for _ in range(ndim))
    cursor.expect(b"\x00")
    length = cursor.integer(0xDB, 4, signed=False)
    text = cursor.take(length) if length <= 64 else b""
    dtype_str = text.decode("ascii", "replace")
    _require(
        bool(_DTYPE.fullmatch(dtype_str)),
        f"{name}: element type {dtype_str!r} ({length} bytes) is not supported: numbers, booleans, "
        "dates and fixed-size strings are; objects and structured types are refused",
    )
    _require(cursor.position == len(content), f"{name}: bytes follow the b2nd metalayer")
    extents_ok = all(0 <= n < 1 << 62 for n in shape) and min((*chunks, *blocks), default=0) >= 0
    _require(extents_ok, f"{name}: impossible shape {shape}, chunks {chunks} or blocks {blocks}")
    return shape, chunks, blocks, dtype_str


def _check_geometry(header: FrameHeader, *, nbytes: int, variable_chunks: bool, name: str) -> None:
    """Check that shape, chunks, blocks, element size and section sizes agree with each other."""
    try:
        itemsize = header.dtype.itemsize
    except TypeError as error:
        msg = f"{name}: element type {header.dtype_str!r} is not one NumPy knows"
        raise FormatError(msg) from error
    _require(
        itemsize == header.typesize > 0,
        f"{name}: type {header.dtype_str} has {itemsize} bytes, the frame says {header.typesize}",
    )
    _require(
        math.prod(header.shape) * itemsize < 1 << 63,
        f"{name}: shape {header.shape} of {header.dtype_str} exceeds 2^63 bytes",
    )
    if 0 in header.shape:
        _require(
            nbytes == header.payload_len == 0,
            f"{name}: shape {header.shape} is empty, yet {nbytes} bytes are stored",
        )
        _require(
            all(c > 0 for n, c in zip(header.shape, header.chunks, strict=True) if n),
            f"{name}: chunks {header.chunks} of nothing for shape {header.shape}",
        )
        return
    _require(not variable_chunks, f"{name}: chunks of variable size are not an N-D array")
    grid = [-(-c // b) * b if b else 0 for c, b in zip(header.chunks, header.blocks, strict=True)]
    fits = all(0 < b <= c for c, b in zip(header.chunks, header.blocks, strict=True))
    padded = math.prod(grid) * itemsize
    _require(
        fits and padded == header.chunksize <= MAX_PADDED_CHUNK_BYTES,
        f"{name}: chunks {header.chunks} of blocks {header.blocks} need {padded} bytes, the frame "
        f"says {header.chunksize}",
    )
    _require(
        header.blocksize == math.prod(header.blocks) * itemsize,
        f"{name}: blocks {header.blocks} of {header.dtype_str} are not {header.blocksize} bytes",
    )
    n_chunks = header.n_chunks
    _require(
        nbytes == n_chunks * header.chunksize and 8 * n_chunks < 1 << 31,
        f"{name}: {n_chunks} chunks of {header.chunksize} bytes are not the {nbytes} bytes stored",
    )
