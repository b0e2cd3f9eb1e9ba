"""Zarr folders that have their name only when they are complete and on disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError
from mlarray_xr.storage.publication import check_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["check_apart", "published_folder"]

_ROOT_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup")

_SHOWN_NAME_BYTES = 160
"""Of the target's name in that of the temporary folder: names are 255 bytes long at most."""


@contextlib.contextmanager
def published_folder(path: str, *, overwrite: bool, source: str | None) -> Iterator[str]:
    """Give the name of a folder beside the target; it gets that name when the block ends well.

    It is called ``.NAME.<32 digits>.tmp``. A process that is killed leaves it behind: nobody but
    its owner knows that no other process, maybe on another machine, is still filling it.

    Parameters
    ----------
    path
        The target.
    overwrite
        Whether a Zarr store, or an empty folder, may be replaced.
    source
        What is read meanwhile, which must not be replaced; None is nothing on disk.

    Raises
    ------
    FileExistsError
        When the target exists and is not to be replaced.
    ConversionError
        When it is to be replaced and is no Zarr store, or contains the source.

    Examples
    --------
    >>> with published_folder("letters.zarr", overwrite=False, source=None) as folder:
    ...     os.mkdir(folder)
    ...     os.mkdir(os.path.join(folder, "image"))
    >>> os.listdir("letters.zarr")
    ['image']
    """
    target = os.path.abspath(os.path.expanduser(path))
    if overwrite:
        target = os.path.realpath(target)  # a link stays a link to what is replaced
    if overwrite and os.path.lexists(target):
        _check_replaceable(target, source)
        parent = os.path.dirname(target)
    else:
        target, parent = check_target(target, overwrite=False)
    name = os.fsencode(os.path.basename(target))[:_SHOWN_NAME_BYTES].decode(errors="ignore")
    temporary = os.path.join(parent, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in (*files, ""):
                _force_to_disk(os.path.join(folder, name))
        _rename(temporary, target, overwrite=overwrite)
        _force_to_disk(parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_apart(folder: str, sources: Iterable[str]) -> None:
    """Refuse to replace a folder that contains what is being read, be it as a link.

    Parameters
    ----------
    folder
        The folder, which need not exist.
    sources
        Paths of files that are read.

    Raises
    ------
    ConversionError
        When one of them is inside.
    """
    folder = os.path.expanduser(folder)
    for source in sources if os.path.isdir(folder) else ():
        whole = os.path.abspath(source)
        for path in (Path(whole), Path(os.path.realpath(whole))):
            if any(os.path.exists(up) and os.path.samefile(up, folder) for up in path.parents):
                raise ConversionError(
                    f"{folder} contains the file that is read, {path}. To fix: write elsewhere"
                )


def _check_replaceable(target: str, source: str | None) -> None:
    """Refuse to replace, and so delete, what is no Zarr store, or what is being read."""
    if source is not None:
        check_apart(target, [source])
    is_store = any(os.path.isfile(os.path.join(target, name)) for name in _ROOT_DOCUMENTS)
    if not is_store and not (os.path.isdir(target) and not os.listdir(target)):
        raise ConversionError(
            f"{target}: mode='w' replaces Zarr stores and empty folders, and this is neither. "
            "To fix: choose another name, or remove it yourself"
        )


def _rename(temporary: str, target: str, *, overwrite: bool) -> None:
    """Move a finished folder to its name, and one that had the name out of the way."""
    aside = f"{temporary}.old"
    is_replaced = overwrite and os.path.lexists(target)
    if is_replaced:
        os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except OSError as error:
        if is_replaced:
            os.rename(aside, target)
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY):
            msg = f"{target}: somebody made it meanwhile. To fix: choose another name"
            raise FileExistsError(msg) from error
        raise
    if is_replaced:
        shutil.rmtree(aside)


def _force_to_disk(path: str) -> None:
    """Wait until a file or folder is on disk."""
    if os.path.isdir(path) and not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders.
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)
