"""Writing to object stores: a write that is decided as that of a file is turned to an object."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask_write import folder_of_tasks, workers_without
from mlarray_xr.errors import ConversionError, LayoutError, SourceError
from mlarray_xr.file_write import SUFFIX
from mlarray_xr.planning.write_plan import recut
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.multipart import begin_upload, has_multipart
from mlarray_xr.storage.multipart_job import MOST_PARTS, MultipartJob
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.upload import StagedUpload, existing_object, open_store
from mlarray_xr.storage.upload_notes import NotedUpload, note_upload, noted_upload, remove_notes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["object_address", "plan_pieces", "prepare_object"]


def object_address(
    path: object, *, mode: str, storage_options: Mapping[str, Any] | None, store: Any
) -> RemoteAddress | None:
    """Return the address of a target in a store; None when the target is a local file.

    Parameters
    ----------
    path
        The target as it was named: a path, a URL, or a path in `store`.
    mode
        How it is written.
    storage_options, store
        How to get at the URL, as `mlarray_xr.MlaArray` takes them.

    Raises
    ------
    ConversionError
        When an object is to be changed in place: they are written once and whole.
    SourceError
        When options were given for a file that is not remote.
    """
    if store is None and not is_url(path):
        if storage_options:
            msg = (
                f"{path}: storage_options={sorted(storage_options)} were given for a file that is "
                "not remote. To fix: leave them out, or give a URL"
            )
            raise SourceError(msg)
        return None
    address = remote_address(str(path), storage_options=storage_options, store=store)
    if mode == "r+":
        msg = (
            f"{address.name}: mode='r+' writes into a file, and objects of a store are replaced "
            "as a whole. To fix: (1) mode='w'; (2) write the region into a local file and upload "
            "that"
        )
        raise ConversionError(msg)
    return address


def prepare_object(
    obj: Any,
    path: str,
    *,
    prepare: Callable[[Any, str], PreparedWrite],
    like: RemoteAddress,
    overwrite: bool,
    resume: bool,
    memory_limit: int | None,
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
    like
        An address in the same store.
    overwrite
        Whether an object that is there is replaced.
    resume
        Whether to use what an earlier write has sent, and to note what this one does.
    memory_limit
        Bytes that the parts of one process may take.

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
    address = replace(like, url=path)
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
    noted = noted_upload(address)
    if noted is not None and not prepared.keeps:
        noted.upload.abort()
        remove_notes(address)
    if noted is None or not prepared.keeps or noted.upload.etags() is None:
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
    noted = NotedUpload(upload=job.upload, extents=job.parts.extents, fingerprint=fingerprint)
    try:
        note_upload(noted)
    except BaseException:
        job.upload.abort()
        raise


def _check_same(noted: NotedUpload, fingerprint: Mapping[str, Any]) -> None:
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
    >>> from mlarray_xr.planning.write_plan import Parts
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
