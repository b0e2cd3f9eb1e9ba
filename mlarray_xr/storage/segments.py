"""Segments: the immutable, checksummed file that each write task leaves.

::

    chunk, chunk, ...   the stored chunks of one part, one after another
    zeros               up to a multiple of 4096 bytes, so that whole pages can be shared
    entries             one record per chunk (`FramePlan.entry_dtype`)
    footer              magic, write id, part number, lengths, checksum of entries and footer

A segment gets its name when it is complete. Names are unique to the attempt, so tasks that run
twice cannot collide; whichever is found first is used, and they hold the same bytes anyway.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.storage.publication import naming

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from mlarray_xr.storage.encode import EncodedChunk, FramePlan
    from mlarray_xr.storage.staging import Staging

__all__ = [
    "PAGE_BYTES",
    "Segment",
    "begin_to_write_back",
    "copy_segment",
    "find_segments",
    "parts_on_disk",
    "write_segment",
]

PAGE_BYTES = 4096
_SUFFIX = ".seg"
_MAGIC = b"MLASEG01"
_FOOTER = struct.Struct("<8s16sQQII")  # magic, write id, part, payload bytes, entries, crc32
_CHECK_BYTES = 8 << 20
_COPY_BYTES = 1 << 26
_CANNOT_CLONE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """One complete segment on disk."""

    path: str
    """Absolute path."""
    part: int
    """Number of the part."""
    payload_bytes: int
    """Bytes of the stored chunks, which begin at the file's first byte."""
    entries: NDArray[Any]
    """Records of the chunks; offsets count from the file's first byte."""


def write_segment(
    chunks: Iterable[EncodedChunk], *, staging: Staging, plan: FramePlan, part: int
) -> Segment:
    """Write the chunks of one part to a new segment; no more than one of them is in memory.

    Parameters
    ----------
    chunks
        In the order of the part.
    staging
        Where, and of which write.
    plan
        What is written.
    part
        Number of the part.

    Raises
    ------
    OSError
        When the disk is full, or the folder is gone; nothing is left then.
    """
    name = f"{part:010d}.{uuid.uuid4().hex}"
    temporary, path = staging.path(f"{name}.tmp"), staging.path(name + _SUFFIX)
    entries: list[NDArray[Any]] = []
    position = 0
    try:
        with naming(path), open(temporary, "xb") as file:
            for chunk in chunks:
                entry = chunk.entry.copy()
                entry["offset"] = position
                position += file.write(chunk.data)
                entries.append(entry)
            table = np.array(entries, plan.entry_dtype)
            file.write(bytes(-position % PAGE_BYTES))
            file.write(_closing(table, staging.write_id, part=part, payload_bytes=position))
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return Segment(path=path, part=part, payload_bytes=position, entries=table)


def find_segments(
    staging: Staging, plan: FramePlan, *, numbers: dict[int, NDArray[np.int64]], check: bool
) -> dict[int, Segment]:
    """Return the first good segment of every part that has one.

    Torn and foreign files are passed over: their parts count as not written.

    Parameters
    ----------
    staging
        Where to look, and for which write.
    plan
        What is written.
    numbers
        The chunks of every part by its number.
    check
        Whether to compare every chunk with its checksum: of what another process left. What this
        write left just now needs it not. Damaged segments are removed, because whoever joins the
        segments without this check could prefer one to its replacement.

    Raises
    ------
    OSError
        When the disk fails.
    """
    found: dict[int, Segment] = {}
    for name in _segment_names(staging.folder):
        part = name.partition(".")[0]
        if part.isdecimal() and int(part) not in numbers:
            continue  # unread: of thousands only a few may be looked for
        segment = _read_segment(staging.path(name), staging.write_id, plan)
        if segment is None or segment.part in found or segment.part not in numbers:
            continue
        if not np.array_equal(segment.entries["number"], numbers[segment.part]):
            continue
        if check and not _is_intact(segment):
            os.unlink(segment.path)
            continue
        found[segment.part] = segment
    return found


def copy_segment(segment: Segment, *, target: int, position: int, page_bytes: int) -> None:
    """Copy a segment's payload into an open file, in the kernel where it can.

    Parameters
    ----------
    segment
        What is copied.
    target
        Descriptor of the file.
    position
        Where the payload begins there.
    page_bytes
        Whole pages of this size are copied, zeros included: file systems that share pages share
        nothing less. 1 copies no more than the payload.
    """
    n_bytes = segment.payload_bytes + -segment.payload_bytes % page_bytes
    with open(segment.path, "rb", buffering=0) as source:
        done = 0
        while done < n_bytes:
            count = _copy_range(source.fileno(), target, done, position + done, n_bytes - done)
            if not count:
                msg = f"{segment.path}: ends after {done} of {n_bytes} bytes: it was changed"
                raise OSError(msg)
            done += count


def begin_to_write_back(descriptor: int, start: int, stop: int) -> None:
    """Have the system bring a range of an open file to disk already, so that fsync waits for less.

    Linux does that when it is told that a range is not needed. It keeps what is not on disk yet.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, stop - start, os.POSIX_FADV_DONTNEED)


def parts_on_disk(staging: Staging) -> set[int]:
    """Return the numbers of the parts that have a segment, by the names of files alone."""
    with contextlib.suppress(FileNotFoundError):
        names = _segment_names(staging.folder)
        return {int(number) for name in names if (number := name.partition(".")[0]).isdecimal()}
    return set()


def _segment_names(folder: str) -> list[str]:
    """Return the names of the files that may be segments, in order."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.endswith(_SUFFIX) and e.is_file())


def _closing(table: NDArray[Any], write_id: str, *, part: int, payload_bytes: int) -> bytes:
    """Return entries and footer."""
    body = table.tobytes()
    head = (_MAGIC, bytes.fromhex(write_id), part, payload_bytes, len(table))
    crc = zlib.crc32(_FOOTER.pack(*head, 0), zlib.crc32(body))
    return body + _FOOTER.pack(*head, crc)


def _read_segment(path: str, write_id: str, plan: FramePlan) -> Segment | None:
    """Read the records of a segment; None when it is not a whole one of this write."""
    itemsize = plan.entry_dtype.itemsize
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _FOOTER.size))
            footer = file.read(_FOOTER.size)
            if len(footer) < _FOOTER.size:
                return None
            magic, owner, part, payload_bytes, count, _ = _FOOTER.unpack(footer)
            start = payload_bytes + -payload_bytes % PAGE_BYTES
            is_whole = size == start + count * itemsize + _FOOTER.size
            if (magic, owner) != (_MAGIC, bytes.fromhex(write_id)) or not is_whole:
                return None
            file.seek(start)
            table = np.frombuffer(file.read(count * itemsize), plan.entry_dtype)
    except OSError:
        return None
    if _closing(table, write_id, part=part, payload_bytes=payload_bytes)[-len(footer) :] != footer:
        return None
    ends = np.cumsum(table["length"], dtype=np.int64)
    is_gapless = np.array_equal(table["offset"], ends - table["length"])
    if not is_gapless or (table["length"] < 0).any() or ends[-1:].sum() != payload_bytes:
        return None
    return Segment(path=path, part=part, payload_bytes=payload_bytes, entries=table)


def _is_intact(segment: Segment) -> bool:
    """Compare every stored chunk of a segment with its checksum, and what follows with zeros."""
    with open(segment.path, "rb") as file:
        for entry in segment.entries:
            if not entry["special"] and _checksum(file, int(entry["length"])) != entry["crc32"]:
                return False
        # Whole pages go into the file, whose bytes are to depend on what was written alone.
        return not any(file.read(-segment.payload_bytes % PAGE_BYTES))


def _checksum(file: Any, length: int) -> int:
    """Return the crc32 of the next bytes of a file."""
    crc = 0
    while length:
        piece = file.read(min(length, _CHECK_BYTES))
        if not piece:
            return -1
        crc, length = zlib.crc32(piece, crc), length - len(piece)
    return crc


def _copy_range(source: int, target: int, start: int, position: int, n_bytes: int) -> int:
    """Copy a range between two files; return how many bytes."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, n_bytes, start, position)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
    data = os.pread(source, min(n_bytes, _COPY_BYTES), start)
    return os.pwrite(target, data, position) if data else 0
