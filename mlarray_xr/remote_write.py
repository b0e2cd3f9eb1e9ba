"""Writing to object stores: a write that is decided as that of a file is turned to an object."""

from __future__ import annotations

import contextlib
import math
import os
import re
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask_write import folder_of_tasks, workers_without
from mlarray_xr.errors import ConversionError, LayoutError, SourceError
from mlarray_xr.file_write import SUFFIX
from mlarray_xr.planning.write_plan import recut
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.multipart import MultipartUpload, begin_upload, has_multipart
from mlarray_xr.storage.multipart_job import MOST_PARTS, MultipartJob
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.upload import StagedUpload, existing_object, open_store
from mlarray_xr.storage.upload_notes import note_plan, noted_plan, remove_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["check_remote", "is_remote", "plan_pieces", "prepare_object"]


_WRITE_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _NotedUpload:
    """An upload that an earlier write has left, as it was noted."""

    upload: MultipartUpload
    extents: Any
    fingerprint: Mapping[str, Any]


def is_remote(path: object, *, storage_options: Mapping[str, Any] | None, store: Any) -> bool:
    """Tell whether a target is an object of a store.

    Raises
    ------
    SourceError
        When options were given for a file that is not remote.
    """
    if store is not None or is_url(path):
        return True
    if storage_options:
        msg = (
            f"{path}: storage_options={sorted(storage_options)} were given for a file that is not "
            "remote. To fix: leave them out, or give a URL"
        )
        raise SourceError(msg)
    return False


def check_remote(path: object, *, mode: str) -> None:
    """Refuse what has no meaning for objects, which are written once and whole.

    Raises
    ------
    ConversionError
        When the object is to be changed in place.
    """
    if mode == "r+":
        msg = (
            f"{remote_address(str(path)).name}: mode='r+' writes into a file, and objects of a "
            "store are replaced as a whole. To fix: (1) mode='w'; (2) write the region into a "
            "local file and upload that"
        )
        raise ConversionError(msg)


def prepare_object(
    obj: Any,
    path: str,
    *,
    prepare: Callable[[Any, str], PreparedWrite],
    overwrite: bool,
    resume: bool,
    memory_limit: int | None,
    storage_options: Mapping[str, Any] | None,
    store: Any,
) -> PreparedWrite:
    """Plan the write of one object, and begin it.

    Layout, codec and parts are those of a local file. Where a store takes pieces from many
    processes, tasks send them; elsewhere the file is put together in a temporary folder and
    uploaded whole.

    Parameters
    ----------
    obj
        As of `mlarray_xr.to_mla`.
    path
        The URL, or a path in `store`.
    prepare
        Plans the write of a local file and claims it.
    overwrite
        Whether an object that is there is replaced.
    resume
        Whether to use what an earlier write has sent, and to note what this one does.
    memory_limit
        Bytes that the parts of one process may take.
    storage_options, store
        How to get at the URL, as `mlarray_xr.MlaArray` takes them.

    Raises
    ------
    ConversionError
        When the object would not be named as an `.mla` file, or cannot be expressed in one; when
        there is nothing to resume but another write, or the store does not take pieces.
    FileExistsError
        When an object is there and is not to be replaced.
    LayoutError
        When the store takes no more pieces than parts that are larger than the memory.
    SourceError
        When the store cannot be reached, or workers do not see the temporary folder.
    """
    address = remote_address(path, storage_options=storage_options, store=store)
    if not address.url.endswith(SUFFIX):
        msg = f"{address.name}: the name must end in {SUFFIX!r}: other readers go by it"
        raise ConversionError(msg)
    takes_pieces = has_multipart(address)
    if resume and not takes_pieces:
        msg = (
            f"{address.name}: resume=True goes on with the pieces that a store has, and this one "
            "takes whole files only. To fix: (1) leave it out; (2) S3 takes pieces when s3fs is "
            "installed; (3) write a local file with resume=True and upload that"
        )
        raise ConversionError(msg)
    if not overwrite and open_store(address).state() is not None:
        raise existing_object(address.name)
    folder = tempfile.mkdtemp(prefix="mlarray-xr-", dir=folder_of_tasks())
    upload = StagedUpload(address=address, folder=folder, overwrite=overwrite)
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(upload.clean_up)
        prepared = prepare(obj, os.path.join(folder, f"object{SUFFIX}"))
        if takes_pieces:
            return _in_pieces(prepared, address, overwrite=overwrite, memory_limit=memory_limit)
        if prepared.uses_tasks:
            _check_sharing(address.name, folder)
        unfinished.pop_all()
    return replace(prepared, path=address.name, upload=upload)


def _in_pieces(
    prepared: PreparedWrite, address: RemoteAddress, *, overwrite: bool, memory_limit: int | None
) -> PreparedWrite:
    """Turn a write to a folder, which is not needed then, into one that sends pieces."""
    job = prepared.job
    parts = plan_pieces(job.parts, most=MOST_PARTS)
    if memory_limit is not None and len(parts) < len(job.parts) and parts.peak_bytes > memory_limit:
        msg = (
            f"{address.name}: a store takes {MOST_PARTS} pieces, so {len(job.parts)} parts have to "
            f"become {len(parts)}, which need {parts.peak_bytes} bytes of memory_limit="
            f"{memory_limit}. To fix: (1) raise the limit; (2) write a local file and upload it"
        )
        raise LayoutError(msg)
    fresh = partial(
        MultipartJob,
        plan=job.plan,
        metadata=job.metadata,
        overwrite=overwrite,
        keeps=prepared.keeps,
    )
    noted = _noted(address)
    if noted is not None and not prepared.keeps:
        noted.upload.abort()
        remove_notes(address)
    if noted is None or not prepared.keeps:
        sending = fresh(upload=begin_upload(address), parts=parts)
        missing = tuple(range(len(parts)))
        if prepared.keeps:
            _note(sending, prepared.fingerprint)
    else:
        _check_same(noted, prepared.fingerprint)
        chunks = job.plan.layout.chunks
        cut = recut(parts, noted.extents, chunks=chunks, folder=f"{address.name}.parts")
        sending = fresh(upload=noted.upload, parts=cut)
        missing = sending.missing()
    return replace(prepared, upload=sending, path=address.name, missing=missing)


def _note(job: MultipartJob, fingerprint: Mapping[str, Any]) -> None:
    """Note what is written, so that a later write can go on with it."""
    noted = {
        "fingerprint": fingerprint,
        "parts": job.parts.extents,
        "upload_id": job.upload.upload_id,
        "write_id": job.upload.write_id,
    }
    try:
        note_plan(job.upload.address, noted)
    except BaseException:
        job.upload.abort()
        raise


def _noted(address: RemoteAddress) -> _NotedUpload | None:
    """Return the upload that an earlier write has left; None when none is left."""
    noted = noted_plan(address) or {}
    upload_id, write_id = noted.get("upload_id"), noted.get("write_id")
    if not isinstance(upload_id, str) or not _WRITE_ID.fullmatch(str(write_id)):
        return None
    upload = MultipartUpload(address=address, upload_id=upload_id, write_id=str(write_id))
    if upload.etags() is None:
        return None
    found = noted.get("fingerprint")
    return _NotedUpload(
        upload=upload,
        extents=noted.get("parts"),
        fingerprint=found if isinstance(found, dict) else {},
    )


def _check_same(noted: _NotedUpload, fingerprint: Mapping[str, Any]) -> None:
    """Refuse to mix the work of two plans."""
    then, now = noted.fingerprint, fingerprint
    names = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if names:
        msg = (
            f"{noted.upload.address.name}.parts: holds the beginning of another write: "
            f"{', '.join(names)} differ. To fix: (1) resume with what was written then; "
            "(2) resume=False starts over"
        )
        raise ConversionError(msg)


def plan_pieces(parts: Parts, *, most: int) -> Parts:
    """Return parts of which there are not more than a number, by joining neighbours.

    Parameters
    ----------
    parts
        How an array is cut.
    most
        The greatest number of parts.

    Examples
    --------
    >>> parts = Parts(extents=((4, 4, 4, 4, 2), (6, 6)), in_flight=2, itemsize=1)
    >>> plan_pieces(parts, most=6).extents
    ((8, 8, 2), (6, 6))
    """
    extents = list(parts.extents)
    while math.prod(map(len, extents)) > most:
        axis = max(range(len(extents)), key=lambda axis: len(extents[axis]))
        along = extents[axis]
        extents[axis] = tuple(sum(along[i : i + 2]) for i in range(0, len(along), 2))
    return replace(parts, extents=tuple(extents))


def _check_sharing(name: str, folder: str) -> None:
    """Make sure that all workers see a folder of this machine."""
    unseen = workers_without(folder)
    if unseen:
        msg = (
            f"{name}: this store takes whole files only, which are put together in {folder} "
            f"first, and {len(unseen)} workers do not see that folder: {', '.join(unseen[:3])}. "
            "To fix: (1) dask.config.set({'temporary-directory': a folder that all workers "
            "share}); (2) write to a local path and upload that file"
        )
        raise SourceError(msg)
