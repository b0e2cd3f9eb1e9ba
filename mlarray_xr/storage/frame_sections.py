"""The sections of a frame: where they are, read and checked one after the other.

Whatever a frame is read from, this is the one road to its header, its trailer and its entries.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlarray_xr.errors import FormatError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, check_index_header
from mlarray_xr.format.frame import FOOTER_BYTES, header_length, parse_header
from mlarray_xr.format.limits import DEFAULT_LIMITS
from mlarray_xr.format.trailer import largest_value, parse_trailer, trailer_length
from mlarray_xr.storage.chunks import decode_chunk
from mlarray_xr.storage.remote_file import remote_file
from mlarray_xr.storage.remote_source import RemoteSource
from mlarray_xr.storage.source import BytesSource

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.remote_source import Source

__all__ = ["FrameSections", "RandomAccess", "read_entry", "read_sections", "reading", "slices"]

_FIRST_READ_BYTES = 4096
_KEPT_READS = 4


class RandomAccess(Protocol):
    """Reads a range of bytes."""

    def __call__(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, fewer only at the end of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSections:
    """The sections of a frame that has been checked as far as its outline goes."""

    header: FrameHeader
    """The checked frame header."""
    trailer_start: int
    """First byte of the trailer."""
    entries: dict[str, tuple[int, int]]
    """Byte span of the value of each entry, in the file."""


@contextlib.contextmanager
def reading(source: Source) -> Iterator[tuple[RandomAccess, int]]:
    """Give what reads ranges of a source, and its size."""
    if isinstance(source, BytesSource):
        yield slices(memoryview(source.data)), len(source.data)
        return
    if isinstance(source, RemoteSource):
        yield remote_file(source).read, source.size
        return
    with source.open() as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        try:
            yield _ReadAhead(read), source.size
        except FormatError:
            source.check()  # an edit since looks like damage
            raise


def slices(data: memoryview) -> RandomAccess:
    """Return what copies ranges of bytes in memory."""
    return lambda start, stop: bytes(data[start:stop])


class _ReadAhead:
    """Reads 4 KiB where less is wanted, and answers from what it read last where it can."""

    def __init__(self, read: RandomAccess) -> None:
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

    def __init__(self, read: RandomAccess, start: int, length: int) -> None:
        self._read, self._start, self._length = read, start, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, piece: slice) -> bytes:
        return self._read(self._start + piece.start, self._start + piece.stop)


def read_sections(read: RandomAccess, size: int, *, name: str) -> FrameSections:
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
    return FrameSections(header=header, trailer_start=trailer_start, entries=entries)


def read_entry(
    read: RandomAccess, sections: FrameSections, entry: str, *, max_nbytes: int, what: str
) -> bytes:
    """Read and decode the value of an entry that is there."""
    start, stop = sections.entries[entry]
    limit = largest_value(max_nbytes)
    if stop - start > limit:
        msg = f"{what}: it takes {stop - start} bytes in the trailer, the limit is {limit}"
        raise FormatError(msg)
    return decode_chunk(read(start, stop), max_nbytes=max_nbytes, name=what).tobytes()
