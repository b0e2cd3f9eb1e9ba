"""Writing to object stores: a write that is decided as that of a file is turned to an object."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask_write import folder_of_tasks, workers_without
from mlarray_xr.errors import ConversionError, LayoutError, SourceError
from mlarray_xr.file_write import SUFFIX
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.multipart import begin_upload, has_multipart
from mlarray_xr.storage.multipart_job import MOST_PARTS, MultipartJob
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.upload import StagedUpload, existing_object, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.planning.write_plan import Parts
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["check_remote", "is_remote", "plan_pieces", "prepare_object"]


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


def check_remote(path: object, *, mode: str, resume: bool) -> None:
    """Refuse what has no meaning for objects, which are written once and whole.

    Raises
    ------
    ConversionError
        When the object is to be changed in place, or its write to be resumed.
    """
    name = remote_address(str(path)).name
    if mode == "r+":
        msg = (
            f"{name}: mode='r+' writes into a file, and objects of a store are replaced as a "
            "whole. To fix: (1) mode='w'; (2) write the region into a local file and upload that"
        )
        raise ConversionError(msg)
    if resume:
        msg = (
            f"{name}: resume=True keeps what a failed write has done beside its target, and a "
            "failed write leaves nothing in a store. To fix: (1) leave it out; (2) write a local "
            "file with resume=True and upload that"
        )
        raise ConversionError(msg)


def prepare_object(
    obj: Any,
    path: str,
    *,
    prepare: Callable[[Any, str], PreparedWrite],
    overwrite: bool,
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
    memory_limit
        Bytes that the parts of one process may take.
    storage_options, store
        How to get at the URL, as `mlarray_xr.MlaArray` takes them.

    Raises
    ------
    ConversionError
        When the object would not be named as an `.mla` file, or cannot be expressed in one.
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
    if not overwrite and open_store(address).state() is not None:
        raise existing_object(address.name)
    folder = tempfile.mkdtemp(prefix="mlarray-xr-", dir=folder_of_tasks())
    upload = StagedUpload(address=address, folder=folder, overwrite=overwrite)
    with contextlib.ExitStack() as unfinished:
        unfinished.callback(upload.clean_up)
        prepared = prepare(obj, os.path.join(folder, f"object{SUFFIX}"))
        if has_multipart(address):
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
    sending = MultipartJob(
        upload=begin_upload(address),
        plan=job.plan,
        parts=parts,
        metadata=job.metadata,
        overwrite=overwrite,
    )
    return replace(prepared, upload=sending, path=address.name, missing=tuple(range(len(parts))))


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
