"""Writing to object stores: a write that is decided as that of a file is turned to an object."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask_write import folder_of_tasks, workers_without
from mlarray_xr.errors import ConversionError, SourceError
from mlarray_xr.file_write import SUFFIX
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.upload import StagedUpload, existing_object, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["check_remote", "is_remote", "prepare_object"]


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
    path: object,
    *,
    prepare: Callable[[Any, str], PreparedWrite],
    overwrite: bool,
    storage_options: Mapping[str, Any] | None,
    store: Any,
) -> PreparedWrite:
    """Plan the write of one object, and begin it.

    Layout, codec and parts are those of a local file, which is put together in a temporary folder
    and uploaded: see `mlarray_xr.storage.upload`.

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
    storage_options, store
        How to get at the URL, as `mlarray_xr.MlaArray` takes them.

    Raises
    ------
    ConversionError
        When the object would not be named as an `.mla` file, or cannot be expressed in one.
    FileExistsError
        When an object is there and is not to be replaced.
    SourceError
        When the store cannot be reached, or workers do not see the temporary folder.
    """
    address = remote_address(str(path), storage_options=storage_options, store=store)
    if not address.url.endswith(SUFFIX):
        msg = f"{address.name}: the name must end in {SUFFIX!r}: other readers go by it"
        raise ConversionError(msg)
    if not overwrite and open_store(address).state() is not None:
        raise existing_object(address.name)
    return _staged(obj, address, prepare=prepare, overwrite=overwrite)


def _staged(
    obj: Any,
    address: RemoteAddress,
    *,
    prepare: Callable[[Any, str], PreparedWrite],
    overwrite: bool,
) -> PreparedWrite:
    """Plan the write of a local file that is uploaded when it is complete."""
    folder = tempfile.mkdtemp(prefix="mlarray-xr-", dir=folder_of_tasks())
    upload = StagedUpload(address=address, folder=folder, overwrite=overwrite)
    try:
        prepared = prepare(obj, os.path.join(folder, f"object{SUFFIX}"))
        if prepared.uses_tasks:
            _check_sharing(address.name, folder)
    except BaseException:
        upload.clean_up()
        raise
    return replace(prepared, path=address.name, upload=upload)


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
