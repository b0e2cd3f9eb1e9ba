"""Blosc2 chunks as bytes: their headers, the table of their offsets, and what makes them safe."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ChunkError, FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = [
    "CHUNK_HEADER_BYTES",
    "RAW_FLAG",
    "ChunkHeader",
    "are_chunk_heads",
    "check_chunks",
    "check_index",
    "check_index_header",
    "damaged_chunk",
    "is_chunk_head",
    "parse_chunk_header",
    "repeated_chunk",
    "stands_alone",
]

CHUNK_HEADER_BYTES = 32
_CHUNK_VERSION = (5, 1)
_EXTENDED = 0x05
RAW_FLAG = 0x02
_SPECIAL_REPEAT = 3
_SPECIAL_SHIFT = 4
_DICTIONARY = 0x01
# Byte 31 without special code and dictionary: a lazy chunk is looked for in another file, an
# instrumented one decodes to timings. Byte 30 announces blocks of variable size.
_FOREIGN_FLAGS = 0x8E
_CODEC_FORMATS = (0, 1, 3, 4)
_PLUGIN_FORMAT = 6
# NDLZ and ZFP are compiled in. For every other id C-Blosc2 starts a Python interpreter that imports
# a package of the codec's name, from the current directory if one lies there.
_PLUGINS = (32, 33, 34, 35)
_FILTERS = (0, 1, 2, 3, 4, 32, 33, 35, 36)
_KNOWN_FILTERS = frozenset(_FILTERS)
_DELTA = 3
# None, shuffle, bitshuffle, truncated precision.
_SELF_CONTAINED = {0, 1, 2, 4}
_PLAIN_FILTERS = (0, 1, 2)
# By byte: `np.isin` takes 0.3 ms, more than the first patch of a file needs for all else.
_IS_CODEC_FORMAT, _IS_PLUGIN, _IS_FILTER = (
    np.isin(np.arange(256), known) for known in (_CODEC_FORMATS, _PLUGINS, _FILTERS)
)
_SPECIAL_TOP_BYTES = (0x81, 0x82, 0x84)
# The table itself: 2^24 chunks of 1 MiB are 16 TiB of voxels. Checking it takes three times its
# bytes: a larger claim is a memory bomb.
_MAX_INDEX_BYTES = 1 << 27
_GATHER_BLOCKS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkHeader:
    """The first 32 bytes of a chunk, as far as reading needs them."""

    typesize: int
    """Bytes of one element, 1 when it is more than 255."""
    nbytes: int
    """Uncompressed bytes."""
    cbytes: int
    """Stored bytes, this header included."""
    is_raw: bool
    """Whether the uncompressed bytes follow the header as they are."""
    special: int
    """0 normal, 1 zeros, 2 NaN, 3 repeated value, 4 uninitialised."""


def parse_chunk_header(chunk: bytes, *, max_nbytes: int, name: str) -> ChunkHeader:
    """Parse the header of a chunk that is given whole, bounding what decoding it may allocate.

    Raises
    ------
    FormatError
        When it is no chunk, claims another length than it has, or decodes to more than
        `max_nbytes` bytes.
    """
    if len(chunk) < CHUNK_HEADER_BYTES:
        msg = f"{name}: {len(chunk)} bytes are no Blosc2 chunk, its header alone has 32"
        raise FormatError(msg)
    nbytes, _, cbytes = (int(n) for n in np.frombuffer(chunk, "<i4", 3, 4))
    if not _is_plain(chunk) or cbytes != len(chunk):
        msg = (
            f"{name}: a chunk of version {chunk[0]} and codec format {chunk[2] >> 5} claims "
            f"{cbytes} bytes, {len(chunk)} are stored: it is damaged, or of a refused kind"
        )
        raise FormatError(msg)
    if not 0 < nbytes <= max_nbytes:
        msg = f"{name}: decodes to {nbytes} bytes, the limit is {max_nbytes}"
        raise FormatError(msg)
    special, is_raw = (chunk[31] >> _SPECIAL_SHIFT) & 7, bool(chunk[2] & RAW_FLAG)
    if is_raw and not special and cbytes != CHUNK_HEADER_BYTES + nbytes:
        msg = f"{name}: {nbytes} raw bytes do not fit a chunk of {cbytes} bytes: damaged"
        raise FormatError(msg)
    return ChunkHeader(
        typesize=chunk[3], nbytes=nbytes, cbytes=cbytes, is_raw=is_raw, special=special
    )


def check_index_header(head: bytes, header: FrameHeader, *, index_bytes: int, name: str) -> None:
    """Check the first 32 bytes of the index chunk against the frame it belongs to.

    Parameters
    ----------
    head
        The first 32 bytes of the index chunk.
    header
        The frame's header.
    index_bytes
        Bytes between the payload and the trailer: exactly the index chunk.
    name
        What to call the file in errors.

    Raises
    ------
    FormatError
        When the chunk is not the table that the header promises.
    """
    wanted = 8 * header.n_chunks
    if index_bytes < CHUNK_HEADER_BYTES or len(head) < CHUNK_HEADER_BYTES:
        msg = f"{name}: {index_bytes} bytes are left for the chunk index, at least 32 are needed"
        raise FormatError(msg)
    nbytes, _, cbytes = (int(n) for n in np.frombuffer(head, "<i4", 3, 4))
    is_table = _is_plain(head) and head[3] == 8 and nbytes == wanted
    if not is_table or cbytes != index_bytes:
        msg = (
            f"{name}: the chunk index holds {nbytes} bytes in {cbytes}, "
            f"{header.n_chunks} chunks need {wanted} bytes in {index_bytes}: damaged or not N-D"
        )
        raise FormatError(msg)
    if wanted > _MAX_INDEX_BYTES:
        msg = f"{name}: {header.n_chunks} chunks exceed the limit of {_MAX_INDEX_BYTES // 8}"
        raise FormatError(msg)


def check_index(offsets: NDArray[np.int64], header: FrameHeader, *, name: str) -> None:
    """Check the decoded chunk table: every entry is a known special code or lies in the payload.

    Raises
    ------
    ChunkError
        Naming the first chunk whose entry is impossible.
    """
    special = offsets < 0
    codes = (offsets.view(np.uint64) >> np.uint64(56)).astype(np.uint8)
    plain = (offsets & np.int64((1 << 56) - 1)) == 0
    inside = offsets <= header.payload_len - CHUNK_HEADER_BYTES
    good = np.where(special, plain & np.isin(codes, _SPECIAL_TOP_BYTES), inside)
    if not good.all():
        chunk = int(np.argmin(good))
        msg = (
            f"{name}: chunk {chunk} points to byte {int(offsets[chunk])} of a payload of "
            f"{header.payload_len} bytes: the chunk index is damaged"
        )
        raise ChunkError(msg)


def check_chunks(
    payload: NDArray[np.uint8],
    numbers: NDArray[np.int64],
    offsets: NDArray[np.int64],
    header: FrameHeader,
    *,
    name: str,
) -> NDArray[np.bool_]:
    """Check stored chunks before their first decoding, all at once.

    Parameters
    ----------
    payload
        The frame's payload section, starting at the end of the header.
    numbers
        Chunk numbers, for errors.
    offsets
        Byte offset of each of these chunks in `payload`; none of them special.
    header
        The frame's header.
    name
        What to call the file in errors.

    Returns
    -------
    numpy.ndarray
        One bool per chunk: True where only decoding it whole gives the right bytes. Blosc2's
        partial decoding is wrong for the DELTA filter and for dictionaries.

    Raises
    ------
    ChunkError
        Naming the first damaged chunk.
    """
    heads = payload[offsets[:, None] + np.arange(CHUNK_HEADER_BYTES)]
    sizes = heads[:, 4:16].copy().view("<i4")
    nbytes, cbytes = sizes[:, 0], sizes[:, 2]
    good = are_chunk_heads(heads, room=len(payload) - offsets, header=header)
    streams = good & ((heads[:, 2] & RAW_FLAG) == 0) & ((heads[:, 31] >> _SPECIAL_SHIFT) & 7 == 0)
    good[streams] = _block_starts_ok(payload, offsets[streams], cbytes[streams], header)
    if not good.all():
        bad = int(np.argmin(good))
        raise damaged_chunk(
            int(numbers[bad]), int(nbytes[bad]), int(cbytes[bad]), header=header, name=name
        )
    uses_dictionary = (heads[:, 31] & _DICTIONARY) != 0
    return np.asarray((heads[:, 16:22] == _DELTA).any(axis=1) | uses_dictionary)


def are_chunk_heads(
    heads: NDArray[np.uint8], *, room: NDArray[np.int64], header: FrameHeader
) -> NDArray[np.bool_]:
    """Tell for each chunk header whether it can be that of a stored chunk of a frame.

    Parameters
    ----------
    heads
        The first 32 bytes of each chunk, (n, 32).
    room
        The most bytes that each can have.
    header
        The frame's header.
    """
    sizes = heads[:, 4:16].copy().view("<i4")
    nbytes, blocksize, cbytes = sizes[:, 0], sizes[:, 1], sizes[:, 2]
    special, raw = (heads[:, 31] >> _SPECIAL_SHIFT) & 7, (heads[:, 2] & RAW_FLAG) != 0
    element = header.typesize if header.typesize <= 255 else 1
    repeat = special == _SPECIAL_REPEAT
    length_ok = (cbytes >= CHUNK_HEADER_BYTES) & (cbytes <= room)
    length_ok &= ~raw | repeat | (cbytes == CHUNK_HEADER_BYTES + nbytes)
    length_ok &= ~repeat | (cbytes == CHUNK_HEADER_BYTES + header.typesize)
    return np.asarray(
        _are_known(heads)
        & (heads[:, 3] == element)
        & (nbytes == header.chunksize)
        & (blocksize == header.blocksize)
        & ((special == 0) | repeat)
        & length_ok
    )


def is_chunk_head(head: bytes, *, room: int, header: FrameHeader) -> bool:
    """Tell of one chunk header what `are_chunk_heads` tells of many: a tenth of its 40 us.

    Parameters
    ----------
    head
        The first 32 bytes of the chunk, or more.
    room
        The most bytes that it can have.
    header
        The frame's header.
    """
    nbytes, blocksize, cbytes = struct.unpack_from("<iii", head, 4)
    flags, special = head[2], (head[31] >> _SPECIAL_SHIFT) & 7
    codec_format, repeats = flags >> 5, special == _SPECIAL_REPEAT
    element = header.typesize if header.typesize <= 255 else 1
    if repeats:
        has_length = cbytes == CHUNK_HEADER_BYTES + header.typesize
    else:
        has_length = not flags & RAW_FLAG or cbytes == CHUNK_HEADER_BYTES + nbytes
    is_plugin = codec_format == _PLUGIN_FORMAT and head[22] in _PLUGINS
    return (
        tuple(head[:2]) == _CHUNK_VERSION
        and flags & _EXTENDED == _EXTENDED
        and (codec_format in _CODEC_FORMATS or is_plugin)
        and _KNOWN_FILTERS.issuperset(head[16:22])
        and not head[30]
        and not head[31] & _FOREIGN_FLAGS
        and (head[3], nbytes, blocksize) == (element, header.chunksize, header.blocksize)
        and (repeats or not special)
        and CHUNK_HEADER_BYTES <= cbytes <= room
        and has_length
    )


def stands_alone(head: bytes) -> bool:
    """Tell whether the blocks of a checked chunk decode without each other and without the frame.

    Those of plugins, of ``delta``, of ``bytedelta`` and of a dictionary do not.
    """
    is_plugin = head[2] >> 5 == _PLUGIN_FORMAT
    return not is_plugin and not head[31] & _DICTIONARY and set(head[16:22]) <= _SELF_CONTAINED


def repeated_chunk(value: bytes, header: FrameHeader) -> bytes:
    """Return a chunk of a frame of which all elements are the same, as Blosc2 would store it.

    Parameters
    ----------
    value
        The bytes of one element.
    header
        The frame's header.
    """
    sizes = np.array(
        [header.chunksize, header.blocksize, CHUNK_HEADER_BYTES + len(value)], "<i4"
    ).tobytes()
    element = header.typesize if header.typesize <= 255 else 1
    first = bytes((*_CHUNK_VERSION, _EXTENDED, element))
    tail = bytes((*[0] * 15, _SPECIAL_REPEAT << _SPECIAL_SHIFT))
    return first + sizes + tail + value


def damaged_chunk(
    number: int | None, nbytes: int, cbytes: int, *, header: FrameHeader, name: str
) -> ChunkError:
    """Return the error of a chunk whose header or table of blocks is impossible.

    Without a number it is the chunk that `name` names.
    """
    which = "it"
    if number is not None:
        where = tuple(int(i) for i in np.unravel_index(number, header.chunk_grid or (1,)))
        which = f"chunk {number} (grid position {where})"
    return ChunkError(
        f"{name}: {which} is damaged: it claims {nbytes} bytes in {cbytes} stored, "
        f"{header.chunksize} are right, or does not begin as a chunk of this array does. Other "
        "chunks can still be read"
    )


def _is_plain(head: bytes) -> bool:
    """Tell whether a chunk is of a kind that decodes the same in parts and as a whole.

    C-Blosc2 looks up the entries of the chunk index one by one. Where a filter or a dictionary
    depends on what comes before, it would see other offsets than those that were checked.
    """
    is_known = bool(_are_known(np.frombuffer(head, np.uint8, CHUNK_HEADER_BYTES)[None])[0])
    is_builtin = head[2] >> 5 != _PLUGIN_FORMAT and not head[31] & _DICTIONARY
    return is_known and is_builtin and set(head[16:22]) <= set(_PLAIN_FILTERS)


def _are_known(heads: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell for each chunk header whether it is of a kind that decodes without side effects."""
    flags, formats = heads[:, 2], heads[:, 2] >> 5
    is_plugin = (formats == _PLUGIN_FORMAT) & _IS_PLUGIN[heads[:, 22]]
    return np.asarray(
        (heads[:, :2] == _CHUNK_VERSION).all(axis=1)
        & ((flags & _EXTENDED) == _EXTENDED)
        & (_IS_CODEC_FORMAT[formats] | is_plugin)
        & _IS_FILTER[heads[:, 16:22]].all(axis=1)
        & (heads[:, 30] == 0)
        & ((heads[:, 31] & _FOREIGN_FLAGS) == 0)
    )


def _block_starts_ok(
    payload: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    cbytes: NDArray[np.int32],
    header: FrameHeader,
) -> NDArray[np.bool_]:
    """Tell for each chunk whether all its block streams start inside it."""
    n_blocks = header.chunksize // header.blocksize
    first = CHUNK_HEADER_BYTES + 4 * n_blocks
    result = cbytes >= first
    fit = np.flatnonzero(result)
    # One gather for many small tables; large tables are looked at in place, one by one.
    step = max(1, _GATHER_BLOCKS // n_blocks)
    for begin in range(0, len(fit), step):
        rows = fit[begin : begin + step]
        if len(rows) == 1:
            at = int(offsets[rows[0]])
            starts = payload[at + CHUNK_HEADER_BYTES : at + first].view("<i4")[None]
        else:
            table = np.arange(CHUNK_HEADER_BYTES, first)
            starts = payload[offsets[rows, None] + table].view("<i4")
        result[rows] = ((starts >= first) & (starts < cbytes[rows, None])).all(axis=1)
    return result
