"""Addresses as users give them: local paths, URLs, and files in memory."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.remote_file import pin_remote
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.storage.remote_source import Source

__all__ = ["is_url", "local_path", "open_address"]

# A single letter is a drive.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
_LOCAL = re.compile(r"(file|local)://", re.IGNORECASE)


def is_url(address: object) -> bool:
    """Tell whether an address is the URL of a remote object.

    Examples
    --------
    >>> is_url("s3://bucket/ct.mla"), is_url("ct.mla"), is_url("file:///data/ct.mla")
    (True, False, False)
    """
    return isinstance(address, str) and bool(_URL.match(address)) and not _LOCAL.match(address)


def open_address(
    address: object, *, storage_options: Mapping[str, Any] | None = None, store: Any = None
) -> Source:
    """Return the pinned source that an address stands for; of a URL, after two requests.

    Parameters
    ----------
    address
        A path (``~``, relative ones and ``file://`` allowed), a URL, a file's bytes, or a binary
        file object, which is read whole.
    storage_options
        How to get at a URL, as fsspec or obstore spell it.
    store
        A ready obstore store or fsspec filesystem, in which `address` is a path.

    Raises
    ------
    FileNotFoundError
        When nothing is there.
    SourceError
        When it cannot be read, or options were given for what is not remote.
    """
    if store is not None:
        if not isinstance(address, str):
            msg = f"store= needs a path inside it, got {type(address).__name__}"
            raise TypeError(msg)
        return pin_remote(remote_address(address, storage_options=storage_options, store=store))
    if isinstance(address, str) and is_url(address):
        return pin_remote(remote_address(address, storage_options=storage_options))
    if storage_options:
        shown = address if isinstance(address, str | os.PathLike) else type(address).__name__
        msg = (
            f"{shown}: storage_options={sorted(storage_options)} were given for a file that is not "
            "remote. To fix: leave them out, or give a URL"
        )
        raise SourceError(msg)
    return source_of(local_path(address) if isinstance(address, str) else address)


def local_path(address: str) -> str:
    """Return the path of a ``file://`` URL; anything else as it is.

    Raises
    ------
    SourceError
        When it names another host.

    Examples
    --------
    >>> local_path("file:///data/ct%201.mla"), local_path("ct.mla")
    ('/data/ct 1.mla', 'ct.mla')
    """
    if not _LOCAL.match(address):
        return address
    url = address
    rest = url.partition("://")[2]
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost"):
        msg = f"{url}: names the host {host!r}; files of other hosts are not read"
        raise SourceError(msg)
    return unquote(slash + path)
