"""Editing a file in place, by appending: a kill at any moment leaves the old array or the new one.

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
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import SourceChanged, SourceError
from mlarray_xr.planning.assignment import fit_values, plan_chunk_selections
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.storage.editable import EditableFrame
from mlarray_xr.storage.encode import encode_index, encode_part
from mlarray_xr.storage.frame_lock import frame_lock
from mlarray_xr.storage.job import run_ordered
from mlarray_xr.storage.random_access import RandomAccessFile
from mlarray_xr.storage.source import BytesSource, LocalSource
from mlarray_xr.storage.staging import owned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.assignment import ChunkSelection
    from mlarray_xr.planning.selection import OuterSelection
    from mlarray_xr.storage.encode import EncodedChunk

__all__ = ["EditReport", "Edited", "check_mode", "edit_frame"]

# From the length of the frame to the length of its payload: one sector of any disk, so one write
# of it is done whole or not at all.
_TURN_AT, _TURN_STOP = 16, 47
_FRAME_LEN_AT, _PAYLOAD_LEN_AT = 16, 39


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """What an edit did.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((64, 64), "u1"), "edited.mla", chunks=32, blocks=16)
    >>> array = mlarray_xr.MlaArray("edited.mla", mode="r+")
    >>> report = array.write(((0, 40), (0, 32)), 7)
    >>> report.n_chunks_rewritten, report.n_chunks_read
    (2, 1)
    """

    bytes_written: int
    """Bytes that were written to disk."""
    n_chunks_rewritten: int
    """Number of chunks that were touched, each written anew."""
    n_chunks_read: int
    """How many of them were read first, because only a part of them was given."""
    wasted_bytes: int
    """Bytes of the file that nothing uses, of this edit and all before it."""
    seconds: float
    """Wall time."""
    file_bytes: int
    """Bytes of the file now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A file after an edit."""

    source: LocalSource
    """The file, pinned anew."""
    header: FrameHeader
    """Its header."""
    report: EditReport
    """What was done."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Appended:
    """What stands behind the old end of a frame."""

    header: FrameHeader
    n_chunks: int
    n_read: int
    live_bytes: int


def edit_frame(source: LocalSource | BytesSource, selection: OuterSelection, values: Any) -> Edited:
    """Replace elements of a file in place.

    Only chunks that are touched are written; those that are touched in part are read, compared
    with their checksum and patched. They are encoded in several threads, as the header of the file
    says, and no more than one chunk per thread is in memory. Checksums and value ranges are kept
    up to date in files that have them; the statistics of the metadata are removed, as they are of
    the old values. All else of the file stays as it is, byte for byte.

    Parameters
    ----------
    source
        A local file, pinned: what it was when the selection was made.
    selection
        The elements.
    values
        What they become: anything that `fit_values` takes.

    Raises
    ------
    SourceChanged
        When it is another file by now.
    TargetBusy
        When somebody else writes or edits it.
    ConversionError
        When the values do not fit the array's type, or new chunks cannot be compressed as the
        others are.
    ValueError
        When they do not broadcast to the selection.
    ChunkError
        When a chunk that must be read is damaged.
    SourceError
        When the file is held in memory.
    OSError
        When it cannot be written; it then is what it was.
    """
    begin = time.perf_counter()
    source = _local(source)
    target = os.path.realpath(source.path)
    with owned(target), frame_lock(target), RandomAccessFile(target, mode="r+") as file:
        source.check_stat(file.stat())
        frame = EditableFrame(file, source)
        fitted = fit_values(values, selection, frame.header.dtype)
        if not fitted.size:
            done = _Appended(
                header=frame.header, n_chunks=0, n_read=0, live_bytes=int(frame.lengths.sum())
            )
            return Edited(source=source, header=frame.header, report=_report(frame, done, begin))
        try:
            # What an edit that was killed left behind the frame is of no use.
            file.truncate(frame.header.frame_len)
            done = _append(file, frame, selection, fitted)
            file.sync()
        except BaseException:
            with contextlib.suppress(OSError):
                file.truncate(frame.header.frame_len)
            raise
        _turn(file, frame, done.header)
        found = file.stat()
    edited = replace(source, size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino)
    return Edited(source=edited, header=done.header, report=_report(frame, done, begin))


def _local(source: LocalSource | BytesSource) -> LocalSource:
    """Return a source that can be edited; refuse bytes in memory."""
    if isinstance(source, BytesSource):
        msg = f"{source.name}: bytes in memory are not edited. To fix: open the file by its path"
        raise SourceError(msg)
    return source


def check_mode(mode: str, source: LocalSource | BytesSource) -> None:
    """Refuse modes of opening that there are not, and to edit what cannot be."""
    if mode not in ("r", "r+"):
        msg = f"mode={mode!r} is not 'r' (read) or 'r+' (edit in place)"
        raise ValueError(msg)
    if mode == "r+":
        _local(source)


def _report(frame: EditableFrame, done: _Appended, begin: float) -> EditReport:
    """Say what was done since a time."""
    appended = done.header.frame_len - frame.header.frame_len
    return EditReport(
        bytes_written=appended + _TURN_STOP - _TURN_AT if appended else 0,
        n_chunks_rewritten=done.n_chunks,
        n_chunks_read=done.n_read,
        wasted_bytes=max(0, done.header.payload_len - done.live_bytes),
        seconds=time.perf_counter() - begin,
        file_bytes=done.header.frame_len,
    )


def _append(
    file: RandomAccessFile, frame: EditableFrame, selection: OuterSelection, values: NDArray[Any]
) -> _Appended:
    """Write new chunks, chunk table and trailer behind the frame; return the header to be."""
    header = frame.header
    position, n_read = header.frame_len, 0
    offsets, lengths, entries = frame.offsets.copy(), frame.lengths.copy(), []
    tasks = _tasks(frame, selection, values)
    for chunk, is_read in run_ordered(tasks):
        number, special = int(chunk.entry["number"]), int(chunk.entry["special"])
        offsets[number] = (special - 128) << 56 if special else position - header.header_len
        lengths[number] = len(chunk.data)
        file.write(chunk.data, at=position)
        position += len(chunk.data)
        n_read += is_read
        entries.append(chunk.entry)
    index = encode_index(offsets)
    payload_len = position - header.header_len
    changed = np.array(entries, frame.plan.entry_dtype)
    trailer = frame.new_trailer(changed, payload_len=payload_len)
    file.write(index + trailer, at=position)
    total = position + len(index) + len(trailer)
    return _Appended(
        header=replace(header, frame_len=total, payload_len=payload_len),
        n_chunks=len(entries),
        n_read=n_read,
        live_bytes=int(lengths.sum()),
    )


def _tasks(
    frame: EditableFrame, selection: OuterSelection, values: NDArray[Any]
) -> Iterator[partial[tuple[EncodedChunk, bool]]]:
    """Yield what encodes each touched chunk."""
    header = frame.header
    for piece in plan_chunk_selections(selection, shape=header.shape, chunks=header.chunks):
        yield partial(_rewritten, frame, piece, values)


def _rewritten(
    frame: EditableFrame, piece: ChunkSelection, values: NDArray[Any]
) -> tuple[EncodedChunk, bool]:
    """Encode one chunk with its new elements, and tell whether the old ones were read."""
    chunk = np.zeros(box_shape(piece.box), frame.header.dtype)
    if not piece.is_whole:
        frame.read_chunk(int(frame.plan.numbers_in(piece.box)[0]), chunk)
    chunk[piece.chunk_key] = values[piece.values_key]
    (encoded,) = encode_part(chunk, piece.box, frame.plan)
    return encoded, not piece.is_whole


def _turn(file: RandomAccessFile, frame: EditableFrame, header: FrameHeader) -> None:
    """Make the appended array the one that the header means.

    Raises
    ------
    SourceChanged
        When somebody who takes no locks wrote the file meanwhile.
    """
    if file.stat().st_size != header.frame_len or file.read(0, len(frame.head)) != frame.head:
        msg = (
            f"{frame.name}: another program wrote the file while it was edited; nothing was "
            "changed. To fix: let one program write it, or open it there with locking=True"
        )
        raise SourceChanged(msg)
    head = bytearray(frame.head)
    struct.pack_into(">Q", head, _FRAME_LEN_AT, header.frame_len)
    struct.pack_into(">q", head, _PAYLOAD_LEN_AT, header.payload_len)
    file.write(bytes(head[_TURN_AT:_TURN_STOP]), at=_TURN_AT)
    file.sync()
