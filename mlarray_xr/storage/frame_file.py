"""Opening a frame: the few reads that give header and metadata, each checked before the next."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlarray_xr.errors import ChunkError, FormatError, MetadataError, SourceChanged
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, check_index, check_index_header
from mlarray_xr.format.frame import FOOTER_BYTES, header_length, parse_header
from mlarray_xr.format.integrity import INTEGRITY_NAME, decode_integrity
from mlarray_xr.format.limits import DEFAULT_LIMITS
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import decode_fixed_metadata, decode_metadata
from mlarray_xr.format.planning_entry import PLANNING_BYTES, PLANNING_NAME, decode_planning
from mlarray_xr.format.trailer import (
    METADATA_NAME,
    largest_table,
    largest_value,
    parse_trailer,
    trailer_length,
    unpack_bytes,
)
from mlarray_xr.storage.chunks import decode_chunk
from mlarray_xr.storage.source import BytesSource, LocalSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity

__all__ = [
    "FrameFile",
    "chunk_offsets",
    "open_frame",
    "read_header",
    "read_index",
    "read_integrity",
    "read_payload",
    "read_planning",
    "special_codes",
]

_FIRST_READ_BYTES = 4096
_KEPT_READS = 4
_PLAIN_SUFFIX = ".b2nd"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFile:
    """What opening a file gives without reading a voxel."""

    header: FrameHeader
    """The checked frame header."""
    metadata: Metadata
    """Decoded metadata; empty for a plain Blosc2 array."""
    has_metadata: bool
    """False for a plain `.b2nd` without a metadata entry."""


class _RandomAccess(Protocol):
    """Reads a range of bytes."""

    def __call__(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, fewer only at the end of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sections:
    """The sections of a frame that has been checked as far as its outline goes."""

    header: FrameHeader
    """The checked frame header."""
    trailer_start: int
    """First byte of the trailer."""
    entries: dict[str, tuple[int, int]]
    """Byte span of the value of each entry, in the file."""


def open_frame(source: LocalSource | BytesSource) -> FrameFile:
    """Read and check header, trailer and metadata of a source: no voxel.

    Of a usual file that is less than 64 KiB, in at most five reads; metadata may be larger, up to
    its limit. Of other entries only the first five bytes are looked at.

    Raises
    ------
    FormatError
        When the file is not a complete, safe frame, or has no metadata although it is not named
        `.b2nd`.
    SourceChanged
        When the file changed since the source was made.
    """
    name = source.name
    with _reading(source) as (read, size):
        sections = _sections(read, size, name=name)
        try:
            metadata = _metadata(read, sections, name=name)
        except MetadataError as error:
            msg = f"{name}: {error}"
            raise MetadataError(msg) from error
    is_plain = isinstance(source, BytesSource) or name.endswith(_PLAIN_SUFFIX)
    if metadata is None and not is_plain:
        msg = (
            f"{name}: a Blosc2 array without {METADATA_NAME!r} metadata: not an .mla file. "
            f"To fix: name it *{_PLAIN_SUFFIX} if it is a plain Blosc2 array"
        )
        raise FormatError(msg)
    return FrameFile(
        header=sections.header,
        metadata=Metadata(has_array=True) if metadata is None else metadata,
        has_metadata=metadata is not None,
    )


def read_header(frame: NDArray[np.uint8], *, name: str) -> FrameHeader:
    """Parse and check the header of mapped bytes, and that trailer and index fit them."""
    return _sections(_slices(frame.data), len(frame), name=name).header


def read_index(source: LocalSource | BytesSource) -> tuple[FrameHeader, NDArray[np.int64]]:
    """Read and check header, trailer and chunk table of a source: neither metadata nor voxels.

    Returns
    -------
    header : FrameHeader
        The checked frame header.
    offsets : numpy.ndarray
        See `chunk_offsets`; empty for an empty array.

    Raises
    ------
    FormatError
        When the frame or its table is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    with _reading(source) as (read, size):
        sections = _sections(read, size, name=source.name)
        header = sections.header
        if 0 in header.shape:
            return header, np.zeros(0, np.int64)
        stored = read(header.index_start, sections.trailer_start)
    what = f"{source.name}: chunk index"
    decoded = decode_chunk(stored, max_nbytes=8 * header.n_chunks, name=what)
    return header, chunk_offsets(decoded, header, name=source.name)


def read_payload(
    source: LocalSource | BytesSource, header: FrameHeader, *, start: int, stop: int
) -> NDArray[np.uint8]:
    """Return a range of the payload by plain reads: a truncated file is an error, no signal.

    Parameters
    ----------
    source
        What to read; pinned.
    header
        Its checked header.
    start, stop
        Where, counted from the payload's first byte.

    Raises
    ------
    SourceChanged
        When the file changed since the source was made.
    OSError
        When the disk does not give the bytes.
    """
    if isinstance(source, BytesSource):
        return np.frombuffer(source.data, np.uint8)[header.header_len :][start:stop]
    data = np.empty(stop - start, np.uint8)
    with source.open() as file:
        file.seek(header.header_len + start)
        left = data.data
        while left:
            count = file.readinto(left)
            if not count:
                msg = f"{source.name}: it became shorter while it was read. Open it again"
                raise SourceChanged(msg)
            left = left[count:]
    return data


def chunk_offsets(
    decoded: NDArray[np.uint8], header: FrameHeader, *, name: str
) -> NDArray[np.int64]:
    """Check the decoded chunk table of a frame that has chunks.

    Parameters
    ----------
    decoded
        The bytes of the table.
    header
        The checked header of the same frame.
    name
        What to call the file in errors.

    Returns
    -------
    numpy.ndarray
        Offset of each chunk in the payload, or the negative code of one without payload.

    Raises
    ------
    ChunkError
        When the table is damaged.
    """
    if len(decoded) != 8 * header.n_chunks:
        msg = f"{name}: chunk index: {len(decoded)} bytes, {header.n_chunks} chunks need 8 each"
        raise ChunkError(msg)
    offsets = decoded.view("<i8").astype(np.int64, copy=False)
    check_index(offsets, header, name=name)
    return offsets


def special_codes(offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return for each entry of a chunk table Blosc2's code of a chunk without payload, or 0."""
    codes = (offsets.view(np.uint64) >> np.uint64(56)).astype(np.uint8) & np.uint8(0x7F)
    return np.where(offsets < 0, codes, np.uint8(0))


def read_integrity(source: LocalSource | BytesSource) -> Integrity | None:
    """Return what the writer recorded of the chunks of a source.

    Returns
    -------
    Integrity or None
        None when the file has no such entry, or one of a later version, or about another number
        of chunks.

    Raises
    ------
    FormatError
        When the frame or the entry is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    what = f"{source.name}: integrity entry"
    with _reading(source) as (read, size):
        sections = _sections(read, size, name=source.name)
        if INTEGRITY_NAME not in sections.entries:
            return None
        header = sections.header
        max_nbytes = largest_table(header.n_chunks)
        value = _entry(read, sections, INTEGRITY_NAME, max_nbytes=max_nbytes, what=what)
    return decode_integrity(unpack_bytes(value, name=what), header, name=source.name)


def read_planning(source: LocalSource | BytesSource) -> dict[str, Any] | None:
    """Return what the writer recorded of how the layout was decided.

    None when there is nothing, or nothing that can be read.

    Raises
    ------
    FormatError
        When the frame is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    what = f"{source.name}: layout entry"
    with _reading(source) as (read, size):
        sections = _sections(read, size, name=source.name)
        if PLANNING_NAME not in sections.entries:
            return None
        try:
            value = _entry(read, sections, PLANNING_NAME, max_nbytes=2 * PLANNING_BYTES, what=what)
            return decode_planning(unpack_bytes(value, name=what))
        except FormatError:
            return None  # nothing depends on it


@contextlib.contextmanager
def _reading(source: LocalSource | BytesSource) -> Iterator[tuple[_RandomAccess, int]]:
    """Give what reads ranges of a source, and its size."""
    if isinstance(source, BytesSource):
        yield _slices(memoryview(source.data)), len(source.data)
        return
    with source.open() as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        yield _ReadAhead(read), source.size


def _slices(data: memoryview) -> _RandomAccess:
    """Return what copies ranges of bytes in memory."""
    return lambda start, stop: bytes(data[start:stop])


class _ReadAhead:
    """Reads 4 KiB where less is wanted, and answers from what it read last where it can."""

    def __init__(self, read: _RandomAccess) -> None:
        self._read = read
        self._kept: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_READS)

    def __call__(self, start: int, stop: int) -> bytes:
        for first, data in self._kept:
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        data = self._read(start, max(stop, start + _FIRST_READ_BYTES))
        self._kept.append((start, data))
        return data[: stop - start]


class _Trailer:
    """The trailer as `parse_trailer` takes it: read where it is looked at."""

    def __init__(self, read: _RandomAccess, start: int, length: int) -> None:
        self._read, self._start, self._length = read, start, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, piece: slice) -> bytes:
        return self._read(self._start + piece.start, self._start + piece.stop)


def _sections(read: _RandomAccess, size: int, *, name: str) -> _Sections:
    """Read and check header, trailer map and the head of the index."""
    first = read(0, min(size, _FIRST_READ_BYTES))
    header_len = header_length(first, file_size=size, name=name)
    head = first[:header_len] if header_len <= len(first) else read(0, header_len)
    header = parse_header(head, file_size=size, name=name)
    # Of a small trailer this one read is all that is needed, footer included.
    read(max(header_len, header.frame_len - _FIRST_READ_BYTES), header.frame_len)
    footer = read(header.frame_len - FOOTER_BYTES, header.frame_len)
    length = trailer_length(footer, header, value_bytes=DEFAULT_LIMITS.value_bytes, name=name)
    trailer_start = header.frame_len - length
    if 0 not in header.shape:
        index_head = read(header.index_start, header.index_start + CHUNK_HEADER_BYTES)
        index_bytes = trailer_start - header.index_start
        check_index_header(index_head, header, index_bytes=index_bytes, name=name)
    spans = parse_trailer(_Trailer(read, trailer_start, length), header, name=name)
    entries = {
        entry: (trailer_start + start, trailer_start + stop)
        for entry, (start, stop) in spans.items()
    }
    return _Sections(header=header, trailer_start=trailer_start, entries=entries)


def _metadata(read: _RandomAccess, sections: _Sections, *, name: str) -> Metadata | None:
    """Decode the metadata of either place it may stand in; None when there is none."""
    header = sections.header
    if METADATA_NAME in sections.entries:
        what = f"{name}: metadata entry {METADATA_NAME!r}"
        max_nbytes = DEFAULT_LIMITS.value_bytes
        value = _entry(read, sections, METADATA_NAME, max_nbytes=max_nbytes, what=what)
        return decode_metadata(value, shape=header.shape)
    if header.fixed_metadata is not None:
        return decode_fixed_metadata(read(*header.fixed_metadata), shape=header.shape)
    return None


def _entry(
    read: _RandomAccess, sections: _Sections, entry: str, *, max_nbytes: int, what: str
) -> bytes:
    """Read and decode the value of an entry that is there."""
    start, stop = sections.entries[entry]
    limit = largest_value(max_nbytes)
    if stop - start > limit:
        msg = f"{what}: it takes {stop - start} bytes in the trailer, the limit is {limit}"
        raise FormatError(msg)
    return decode_chunk(read(start, stop), max_nbytes=max_nbytes, name=what).tobytes()
