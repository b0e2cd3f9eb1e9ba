"""Upload notes: what a resumable upload has done, in small objects beside its target.

``<name>.mla.parts/plan.json`` says what is written by which upload. ``<name>.mla.parts/00007.rec``
has the records of the chunks in piece 7; it is noted when the store has that piece, and counts as
long as the store has it unchanged. All of them are removed when the object is complete.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import SourceDenied
from mlarray_xr.storage.multipart import MultipartUpload, s3_request
from mlarray_xr.storage.portions import Portion
from mlarray_xr.storage.retry import with_retries
from mlarray_xr.storage.transport import open_transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.storage.encode import FramePlan
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = [
    "NotedUpload",
    "note_portion",
    "note_upload",
    "noted_portions",
    "noted_upload",
    "remove_notes",
]

_FOLDER = ".parts/"
_PLAN = _FOLDER + "plan.json"
_WRITE_ID = re.compile("[0-9a-f]{32}")
_MAGIC = b"MLAREC01"
_HEAD = struct.Struct("<8s16sQQQ")  # magic, write id, number of the piece, its size, entries
_CHECK = struct.Struct("<I")
_MOST_PLAN_BYTES = 64 << 20
_AT_ONCE = 16
_TIMEOUT_S = 60.0
_RETRIES = 5
# Of one request: S3 lists and deletes as many.
_MOST_KEYS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class NotedUpload:
    """What is written by which upload."""

    upload: MultipartUpload
    """The upload; it may have ended."""
    extents: Any
    """Along every axis the extents of the parts; of a note that was read anything."""
    fingerprint: Mapping[str, Any]
    """What must be equal for the work of two writes to be mixed."""


def note_upload(noted: NotedUpload) -> None:
    """Note what is written, in place of what was noted before."""
    plan = {
        "fingerprint": noted.fingerprint,
        "parts": noted.extents,
        "upload_id": noted.upload.upload_id,
        "write_id": noted.upload.write_id,
    }
    s3_request(noted.upload.address, "put_object", suffix=_PLAN, Body=json.dumps(plan).encode())


def noted_upload(address: RemoteAddress) -> NotedUpload | None:
    """Return what was noted of a target; None when it is nothing, or cannot be read."""
    data = _object(address, _PLAN, most_bytes=_MOST_PLAN_BYTES)
    try:
        plan = json.loads(data or b"")
    except (ValueError, RecursionError):
        return None
    found = plan if isinstance(plan, dict) else {}
    upload_id, write_id = str(found.get("upload_id")), str(found.get("write_id"))
    fingerprint = found.get("fingerprint")
    if not isinstance(fingerprint, dict) or not _WRITE_ID.fullmatch(write_id):
        return None
    upload = MultipartUpload(address=address, upload_id=upload_id, write_id=write_id)
    return NotedUpload(upload=upload, extents=found.get("parts"), fingerprint=fingerprint)


def note_portion(upload: MultipartUpload, portion: Portion) -> None:
    """Note that the store has a portion."""
    head = _HEAD.pack(
        _MAGIC,
        bytes.fromhex(upload.write_id),
        portion.number,
        portion.size,
        len(portion.entries),
    )
    body = head + portion.entries.tobytes()
    # The validator is no part of the record: with it in the checksum, the store proves the match.
    check = _CHECK.pack(zlib.crc32(body, zlib.crc32(portion.etag.encode())))
    s3_request(upload.address, "put_object", suffix=_name(portion.number), Body=body + check)


def noted_portions(upload: MultipartUpload, plan: FramePlan) -> list[Portion]:
    """Return the portions that were noted, and that the store has as they were noted."""
    etags = upload.etags() or {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = pool.map(lambda pair: _noted(upload, plan, *pair), sorted(etags.items()))
        return [portion for portion in found if portion is not None]


def remove_notes(address: RemoteAddress) -> None:
    """Remove all notes."""
    while True:
        told = s3_request(address, "list_objects_v2", suffix=_FOLDER, MaxKeys=_MOST_KEYS)
        keys = [{"Key": found["Key"]} for found in told.get("Contents", [])]
        if not keys:
            return
        told = s3_request(address, "delete_objects", Delete={"Objects": keys, "Quiet": True})
        if refused := told.get("Errors"):
            msg = (
                f"{address.name}: {len(refused)} notes of a write could not be removed: "
                f"{refused[0].get('Code')}. To fix: allow to delete objects, or remove them"
            )
            raise SourceDenied(msg)


def _name(number: int) -> str:
    """Return what follows the name of the target in that of a record."""
    return f"{_FOLDER}{number:05d}.rec"


def _noted(upload: MultipartUpload, plan: FramePlan, number: int, etag: str) -> Portion | None:
    """Return one portion; None when it was not noted, or is another one by now."""
    itemsize = plan.entry_dtype.itemsize
    most_bytes = _HEAD.size + _CHECK.size + plan.n_chunks * itemsize
    data = _object(upload.address, _name(number), most_bytes=most_bytes)
    if data is None or len(data) < _HEAD.size + _CHECK.size:
        return None
    body, check = data[: -_CHECK.size], data[-_CHECK.size :]
    magic, write_id, noted, size, count = _HEAD.unpack_from(body)
    named = (_MAGIC, bytes.fromhex(upload.write_id), number)
    is_whole = len(body) == _HEAD.size + count * itemsize
    if (magic, write_id, noted) != named or not is_whole:
        return None
    if _CHECK.pack(zlib.crc32(body, zlib.crc32(etag.encode()))) != check:
        return None
    entries = np.frombuffer(body, plan.entry_dtype, count, _HEAD.size)
    ends = np.cumsum(entries["length"], dtype=np.int64)
    is_gapless = np.array_equal(entries["offset"], ends - entries["length"])
    is_inside = ((entries["number"] >= 0) & (entries["number"] < plan.n_chunks)).all()
    if not count or not is_gapless or not is_inside or ends[-1] != size:
        return None
    return Portion(number=number, size=size, entries=entries, etag=etag)


def _object(address: RemoteAddress, suffix: str, *, most_bytes: int) -> bytes | None:
    """Return a small object; None when it is not there, or larger than it can honestly be."""
    beside = replace(address, url=address.url + suffix)
    transport = open_transport(beside, timeout_s=_TIMEOUT_S)
    try:
        piece = with_retries(
            lambda: transport.fetch_tail(most_bytes), retries=_RETRIES, on_retry=lambda: None
        )
    except (FileNotFoundError, SourceDenied):
        # S3 says the latter of a missing object to those who may not list the bucket.
        return None
    return piece.data if piece.size == len(piece.data) else None
