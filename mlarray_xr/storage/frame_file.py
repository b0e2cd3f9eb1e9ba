"""Opening a frame: the few reads that give header and metadata, each checked before the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlarray_xr.errors import FormatError, MetadataError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, check_index_header
from mlarray_xr.format.frame import FOOTER_BYTES, header_length, parse_header
from mlarray_xr.format.limits import DEFAULT_LIMITS
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import decode_fixed_metadata, decode_metadata
from mlarray_xr.format.trailer import METADATA_NAME, parse_trailer, trailer_length
from mlarray_xr.storage.chunks import decode_chunk
from mlarray_xr.storage.source import BytesSource, LocalSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader

__all__ = ["FrameFile", "open_frame", "read_header"]

_FIRST_READ_BYTES = 4096
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


def open_frame(source: LocalSource | BytesSource) -> FrameFile:
    """Read and check header, trailer and metadata of a source: no voxel.

    Of a usual file that is less than 64 KiB; metadata may be larger, up to its limit.

    Raises
    ------
    FormatError
        When the file is not a complete, safe frame, or has no metadata although it is not named
        `.b2nd`.
    SourceChanged
        When the file changed since the source was made.
    """
    if isinstance(source, BytesSource):
        data = source.data
        return _open(
            lambda start, stop: data[start:stop], len(data), name=source.name, is_unnamed=True
        )
    with source.open() as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return _open(read, source.size, name=source.name)


def read_header(frame: NDArray[np.uint8], *, name: str) -> FrameHeader:
    """Parse and check the header of mapped bytes, and that trailer and index fit them."""
    return _header_and_trailer(
        lambda start, stop: frame[start:stop].tobytes(), len(frame), name=name
    )[0]


def _header_and_trailer(read: _RandomAccess, size: int, *, name: str) -> tuple[FrameHeader, bytes]:
    """Return the checked header and the trailer's bytes."""
    first = read(0, min(size, _FIRST_READ_BYTES))
    header_len = header_length(first, file_size=size, name=name)
    head = first[:header_len] if header_len <= len(first) else read(0, header_len)
    header = parse_header(head, file_size=size, name=name)
    footer = read(header.frame_len - FOOTER_BYTES, header.frame_len)
    length = trailer_length(footer, header, value_bytes=DEFAULT_LIMITS.value_bytes, name=name)
    trailer_start = header.frame_len - length
    if 0 not in header.shape:
        index_head = read(header.index_start, header.index_start + CHUNK_HEADER_BYTES)
        index_bytes = trailer_start - header.index_start
        check_index_header(index_head, header, index_bytes=index_bytes, name=name)
    return header, read(trailer_start, header.frame_len)


def _open(read: _RandomAccess, size: int, *, name: str, is_unnamed: bool = False) -> FrameFile:
    """Read header, trailer and metadata through one byte-range function."""
    header, trailer = _header_and_trailer(read, size, name=name)
    try:
        metadata = _metadata(read, header, trailer, name=name)
    except MetadataError as error:
        msg = f"{name}: {error}"
        raise MetadataError(msg) from error
    if metadata is not None:
        return FrameFile(header=header, metadata=metadata, has_metadata=True)
    if is_unnamed or name.endswith(_PLAIN_SUFFIX):
        return FrameFile(header=header, metadata=Metadata(has_array=True), has_metadata=False)
    msg = (
        f"{name}: a Blosc2 array without {METADATA_NAME!r} metadata: not an .mla file. "
        f"To fix: name it *{_PLAIN_SUFFIX} if it is a plain Blosc2 array"
    )
    raise FormatError(msg)


def _metadata(
    read: _RandomAccess, header: FrameHeader, trailer: bytes, *, name: str
) -> Metadata | None:
    """Decode the metadata of either place it may stand in; None when there is none."""
    entries = parse_trailer(trailer, header, name=name)
    if METADATA_NAME in entries:
        start, stop = entries[METADATA_NAME]
        what = f"{name}: metadata entry {METADATA_NAME!r}"
        limit = DEFAULT_LIMITS.value_bytes
        value = decode_chunk(trailer[start:stop], max_nbytes=limit, name=what).tobytes()
        return decode_metadata(value, shape=header.shape)
    if header.fixed_metadata is not None:
        return decode_fixed_metadata(read(*header.fixed_metadata), shape=header.shape)
    return None
