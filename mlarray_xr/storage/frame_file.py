"""Opening a frame: the few reads that give header and metadata, each checked before the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ChunkError, FormatError, MetadataError, SourceChanged
from mlarray_xr.format.chunk import check_index
from mlarray_xr.format.limits import DEFAULT_LIMITS
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.format.metadata_codec import decode_fixed_metadata, decode_metadata
from mlarray_xr.format.trailer import METADATA_NAME
from mlarray_xr.storage.chunks import decode_chunk
from mlarray_xr.storage.frame_sections import read_entry, read_sections, reading, slices
from mlarray_xr.storage.remote_file import remote_file
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.source import BytesSource

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.frame_sections import FrameSections, RandomAccess
    from mlarray_xr.storage.remote_source import Source

__all__ = [
    "FrameFile",
    "chunk_offsets",
    "open_frame",
    "read_header",
    "read_index",
    "read_payload",
    "special_codes",
]

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


def open_frame(source: Source) -> FrameFile:
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
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=name)
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
    return read_sections(slices(frame.data), len(frame), name=name).header


def read_index(source: Source) -> tuple[FrameHeader, NDArray[np.int64]]:
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
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=source.name)
        header = sections.header
        if 0 in header.shape:
            return header, np.zeros(0, np.int64)
        stored = read(header.index_start, sections.trailer_start)
    what = f"{source.name}: chunk index"
    decoded = decode_chunk(stored, max_nbytes=8 * header.n_chunks, name=what)
    return header, chunk_offsets(decoded, header, name=source.name)


def read_payload(
    source: Source, header: FrameHeader, *, start: int, stop: int
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
    if isinstance(source, RemoteSource):
        first = header.header_len
        return np.frombuffer(remote_file(source).read(first + start, first + stop), np.uint8)
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


def _metadata(read: RandomAccess, sections: FrameSections, *, name: str) -> Metadata | None:
    """Decode the metadata of either place it may stand in; None when there is none."""
    header = sections.header
    if METADATA_NAME in sections.entries:
        what = f"{name}: metadata entry {METADATA_NAME!r}"
        max_nbytes = DEFAULT_LIMITS.value_bytes
        value = read_entry(read, sections, METADATA_NAME, max_nbytes=max_nbytes, what=what)
        return decode_metadata(value, shape=header.shape)
    if header.fixed_metadata is not None:
        return decode_fixed_metadata(read(*header.fixed_metadata), shape=header.shape)
    return None
