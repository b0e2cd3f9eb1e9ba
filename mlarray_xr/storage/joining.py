"""Joining: finished parts move to their places in the new file while others are still encoded.

What waits until the last task is read from disk again, in large writes; what is copied at once is
still in memory. The **prefix** is the beginning of the new file up to the first part that is
missing. The task that ends that part copies it, and all that follow and are there.

The prefix saves time and proves nothing: it is forgotten when a write is resumed, and used only if
it has exactly the length that the segments in their order have. How far it is stands at its own
beginning, where the header comes last: a record beside it could tell of another file, which a task
that outlived its client still fills.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import struct
import uuid
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.storage.frame_template import frame_template
from mlarray_xr.storage.json_record import remove_file
from mlarray_xr.storage.segments import (
    PAGE_BYTES,
    begin_to_write_back,
    copy_segment,
    find_segments,
    parts_on_disk,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.segments import Segment
    from mlarray_xr.storage.staging import Staging

__all__ = ["Prefix", "forget_prefix", "join_ready", "take_prefix"]

_EXTENT = struct.Struct("<QQ")  # parts, where the last one ends
_RECORD = struct.Struct("<16sI")  # with a checksum; no header is shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """How much of the new file there is."""

    n_parts: int = 0
    """Number of parts."""
    stop: int = 0
    """Where the last one ends, bytes from the beginning of the file; 0 when there is none."""


def join_ready(staging: Staging, plan: FramePlan, *, part: int, parts: Parts) -> None:
    """Copy a part to its place if it is the first that is missing there, and those that follow.

    Nothing is raised: what is not copied here is copied at the end.

    Parameters
    ----------
    staging
        Whose write it is.
    plan
        What is written.
    part
        Number of the part that was written just now.
    parts
        All parts, several.
    """
    with contextlib.suppress(OSError):
        if _prefix_at(_path(staging)).n_parts != part:
            return  # whoever copies the first one that is missing looks for this one, too
        with _locked(_path(staging), is_new=True) as descriptor:
            if descriptor is None:
                return
            boxes, header = parts.boxes(), frame_template(plan, b"", b"")[0]
            while _extend(staging, plan, boxes, descriptor, header_len=len(header)):
                pass


def take_prefix(staging: Staging) -> tuple[str, Prefix] | None:
    """Return the new file as far as it is there, under a name that no task knows; or None."""
    with (
        contextlib.suppress(OSError),
        _locked(_path(staging), is_new=False) as descriptor,
    ):
        if descriptor is not None:
            taken = staging.path(f".{uuid.uuid4().hex}.tmp")
            os.rename(_path(staging), taken)
            return taken, _recorded(descriptor)
    return None


def forget_prefix(staging: Staging) -> None:
    """Remove what there is of the new file, because segments may be damaged since."""
    remove_file(_path(staging))


def _extend(
    staging: Staging,
    plan: FramePlan,
    boxes: Sequence[Box],
    descriptor: int,
    *,
    header_len: int,
) -> bool:
    """Copy all parts that follow without a gap; tell whether there were any."""
    before = prefix = _recorded(descriptor)
    named = parts_on_disk(staging)
    run = itertools.takewhile(named.__contains__, range(prefix.n_parts, len(boxes)))
    numbers = {part: plan.numbers_in(boxes[part]) for part in run}
    found = find_segments(staging, plan, numbers=numbers, check=False)
    for part in itertools.takewhile(found.__contains__, numbers):
        prefix = _copied(found[part], prefix, descriptor, header_len=header_len)
    if prefix == before:
        return False
    # A task that ends from here on sees that its part is the first one missing; one that ended
    # before is found by looking once more.
    extent = _EXTENT.pack(prefix.n_parts, prefix.stop)
    os.pwrite(descriptor, _RECORD.pack(extent, zlib.crc32(extent)), 0)
    return True


def _copied(segment: Segment, prefix: Prefix, descriptor: int, *, header_len: int) -> Prefix:
    """Copy one segment behind the prefix, and return the prefix with it."""
    end = prefix.stop or header_len
    if segment.payload_bytes:
        start = end + -end % PAGE_BYTES
        copy_segment(segment, target=descriptor, position=start, page_bytes=PAGE_BYTES)
        end = start + segment.payload_bytes
        begin_to_write_back(descriptor, start, end)
    return Prefix(n_parts=prefix.n_parts + 1, stop=end)


def _prefix_at(path: str) -> Prefix:
    """Return how far the prefix of this name is."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return Prefix()
    try:
        return _recorded(descriptor)
    finally:
        os.close(descriptor)


def _recorded(descriptor: int) -> Prefix:
    """Return how far a prefix is, as it says itself; one that was begun just now is empty."""
    found = os.pread(descriptor, _RECORD.size, 0)
    if len(found) == _RECORD.size:
        extent, checksum = _RECORD.unpack(found)
        if zlib.crc32(extent) == checksum:
            n_parts, stop = _EXTENT.unpack(extent)
            return Prefix(n_parts=n_parts, stop=stop)
    return Prefix()


def _path(staging: Staging) -> str:
    """Return the path of the prefix."""
    return staging.path(f"joined.{staging.write_id}.tmp")


@contextlib.contextmanager
def _locked(path: str, *, is_new: bool) -> Iterator[int | None]:
    """Open a file for one process at a time; None where there are no locks, or it has gone."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if is_new else 0), 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                yield descriptor
                return
        yield None
    finally:
        os.close(descriptor)
