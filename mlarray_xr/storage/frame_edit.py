"""Changing a frame in place, by appending: a kill at any moment leaves the old array or the new.

Behind the old end of the frame are written the touched chunks, a chunk table and a trailer::

    header | payload | old table | old trailer | new chunks | new table | new trailer

When these are on disk, one write of 31 bytes in the header turns to them. What lay between is then
part of the payload that no chunk uses, which the format allows. Until that write every reader sees
the old array, because readers go by the header and ignore what follows the frame.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import SourceChanged
from mlarray_xr.storage.editable import EditableFrame
from mlarray_xr.storage.encode import encode_index
from mlarray_xr.storage.frame_lock import frame_lock
from mlarray_xr.storage.publication import naming
from mlarray_xr.storage.random_access import RandomAccessFile
from mlarray_xr.storage.segments import copy_segment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.storage.encode import EncodedChunk
    from mlarray_xr.storage.segments import Segment
    from mlarray_xr.storage.source import LocalSource

__all__ = ["FrameEdit", "editing"]

# From the length of the frame to the length of its payload: one sector of any disk, so one write
# of it is done whole or not at all.
_TURN_AT, _TURN_STOP = 16, 47
_FRAME_LEN_AT, _PAYLOAD_LEN_AT = 16, 39


@contextlib.contextmanager
def editing(source: LocalSource) -> Iterator[FrameEdit]:
    """Change chunks of a file inside the block; without `FrameEdit.finish` nothing is changed.

    Other packages are kept out by C-Blosc2's lock; of this one the caller must be the only writer.

    Parameters
    ----------
    source
        The file, as it was when it was decided what to write.

    Raises
    ------
    SourceChanged
        When it is another file by now.
    TargetBusy
        When somebody else holds the lock.
    ConversionError
        When chunks cannot be made that are compressed as its header says.
    OSError
        When it cannot be written.
    """
    target = os.path.realpath(source.path)
    with frame_lock(target), RandomAccessFile(target, mode="r+") as file:
        source.check_stat(file.stat())
        edit = FrameEdit(file, EditableFrame(file, source), source)
        try:
            with naming(target):
                yield edit
        except BaseException:
            edit.undo()
            raise


class FrameEdit:
    """New chunks of one frame: added in any order, each at most once, then `finish`.

    Parameters
    ----------
    file
        The open file, which nobody else writes.
    frame
        What it is before.
    source
        The same file, pinned before.
    """

    def __init__(self, file: RandomAccessFile, frame: EditableFrame, source: LocalSource) -> None:
        self.frame: EditableFrame = frame
        self.source: LocalSource = source
        """The file, pinned: from `finish` on as it is then."""
        self.header: FrameHeader = frame.header
        """The header: until `finish` that of before."""
        self._file = file
        self._offsets, self._lengths = frame.offsets.copy(), frame.lengths.copy()
        self._changed: list[NDArray[Any]] = []
        self._position = frame.header.frame_len
        self._has_written = self._is_turning = False

    @property
    def n_chunks(self) -> int:
        """Number of chunks that were added."""
        return sum(map(len, self._changed))

    @property
    def appended_bytes(self) -> int:
        """Bytes that were written; 0 before `finish`."""
        n_bytes = self.header.frame_len - self.frame.header.frame_len
        return n_bytes + _TURN_STOP - _TURN_AT if n_bytes else 0

    @property
    def wasted_bytes(self) -> int:
        """Bytes of the payload that no chunk uses."""
        return max(0, self.header.payload_len - int(self._lengths.sum()))

    def append(self, chunks: Iterable[EncodedChunk]) -> None:
        """Add chunks."""
        for chunk in chunks:
            self._has_written = True
            self._file.write(chunk.data, at=self._position)
            self._record(chunk.entry.reshape(1), n_bytes=len(chunk.data))

    def adopt(self, segments: Sequence[Segment]) -> None:
        """Add the chunks of segments.

        Raises
        ------
        OSError
            When the disk is full, or a segment is shorter than it was.
        """
        for segment in segments:
            self._has_written = True
            copy_segment(segment, target=self._file.fileno(), position=self._position, page_bytes=1)
            self._record(segment.entries, n_bytes=segment.payload_bytes)

    def finish(self) -> int:
        """Make the file the array with the new chunks; return the bytes of its frame.

        Raises
        ------
        SourceChanged
            When somebody who takes no locks wrote the file meanwhile.
        """
        frame, header = self.frame, self.frame.header
        if not self._changed:
            return header.frame_len
        payload_len = self._position - header.header_len
        changed = np.concatenate(self._changed)
        tail = encode_index(self._offsets) + frame.new_trailer(changed, payload_len=payload_len)
        self._file.write(tail, at=self._position)
        total = self._position + len(tail)
        # What an edit that was killed left behind the frame may have been longer.
        self._file.truncate(total)
        self._file.sync()
        self._is_turning = True
        self._turn(frame_len=total, payload_len=payload_len)
        self.header = replace(header, frame_len=total, payload_len=payload_len)
        found = self._file.stat()
        self.source = replace(
            self.source, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino
        )
        return total

    def undo(self) -> None:
        """Remove what was added, unless the file already means it, or may."""
        head = self.frame.head
        with contextlib.suppress(OSError):
            is_ours = self._has_written and not self._is_turning
            if is_ours and self._file.read(0, len(head)) == head:
                self._file.truncate(self.source.size)
                # The array is what it was: those who opened it before may go on.
                self._file.set_modified(self.source.mtime_ns)

    def _record(self, entries: NDArray[Any], *, n_bytes: int) -> None:
        """Note where chunks are; their offsets count from the current position."""
        numbers, special = entries["number"], entries["special"].astype(np.int64)
        start = self._position - self.frame.header.header_len
        self._offsets[numbers] = np.where(special, (special - 128) << 56, start + entries["offset"])
        self._lengths[numbers] = entries["length"]
        self._changed.append(entries)
        self._position += n_bytes

    def _turn(self, *, frame_len: int, payload_len: int) -> None:
        """Make the header mean what was appended."""
        frame, file = self.frame, self._file
        if file.stat().st_size != frame_len or file.read(0, len(frame.head)) != frame.head:
            msg = (
                f"{frame.name}: another program wrote the file while it was edited; nothing was "
                "changed. To fix: let one program write it, or open it there with locking=True"
            )
            raise SourceChanged(msg)
        head = bytearray(frame.head)
        struct.pack_into(">Q", head, _FRAME_LEN_AT, frame_len)
        struct.pack_into(">q", head, _PAYLOAD_LEN_AT, payload_len)
        # Clocks of file systems are coarse: readers that opened the file just now would not notice.
        file.set_modified(self.source.mtime_ns + 1)
        file.write(bytes(head[_TURN_AT:_TURN_STOP]), at=_TURN_AT)
        file.sync()
