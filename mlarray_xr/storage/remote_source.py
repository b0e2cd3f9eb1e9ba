"""Remote sources: picklable addresses of objects behind a URL, pinned by size and validator."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.source import BytesSource, LocalSource

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RemoteAddress", "RemoteSource", "Source", "remote_address"]

# What stands before the host, in each URL of a chain such as "zip://a.mla::https://user@host/b".
_USER = re.compile(r"://[^/]*@")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteAddress:
    """Where an object is and how to get in; nothing is known of it yet.

    Options may hold secrets: they are pickled with the address, since workers need them, and are
    never shown.
    """

    url: str
    """The URL, or a path inside `store`."""
    digest: str
    """Of options and store: addresses that differ in them share nothing."""
    options: tuple[tuple[str, Any], ...] = field(default=(), compare=False)
    """Storage options as they were given, sorted by name."""
    store: Any = field(default=None, compare=False)
    """A ready obstore store or fsspec filesystem, or None."""

    @property
    def name(self) -> str:
        """The URL without query and user, which may be secrets."""
        return _USER.sub("://", self.url.partition("?")[0])

    def __repr__(self) -> str:
        """Return the name: the URL may hold secrets, and from a digest short ones are guessed."""
        return f"RemoteAddress({self.name!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSource:
    """One version of a remote object, pinned by its size and, where it has one, its validator."""

    address: RemoteAddress
    """Where it is."""
    size: int
    """Bytes of the object."""
    etag: str | None
    """Validator that the server gave; None where it gives none."""
    ends: str = ""
    """Digest of the first and the last bytes, where there is no strong validator: they hold the
    table of all chunks, and most often their checksums."""

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self.address.name

    @property
    def token(self) -> tuple[str | int, ...]:
        """URL, size, validators, and a digest of the options."""
        return (self.address.url, self.size, self.etag or "", self.ends, self.address.digest)

    def check(self) -> None:
        """Nothing to compare: every answer of the server is compared when it arrives."""


Source: TypeAlias = LocalSource | BytesSource | RemoteSource


def remote_address(
    url: str, *, storage_options: Mapping[str, Any] | None = None, store: Any = None
) -> RemoteAddress:
    """Return the address of an object.

    Parameters
    ----------
    url
        The URL; with `store` a path inside it.
    storage_options
        As fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem; it has to be picklable.

    Raises
    ------
    SourceError
        When both are given, or the store cannot be pickled.
    """
    if store is not None and storage_options:
        msg = (
            f"{RemoteAddress(url=url, digest='').name}: storage_options={sorted(storage_options)} "
            "and store= were both given. To fix: a store brings its own options, leave the others "
            "out"
        )
        raise SourceError(msg)
    if not all(isinstance(name, str) for name in storage_options or {}):
        msg = f"storage_options has the names {list(storage_options or {})}. To fix: texts only"
        raise SourceError(msg)
    options = tuple(sorted((storage_options or {}).items()))
    described = json.dumps(options, sort_keys=True, default=repr).encode()
    if store is not None:
        described += _described(store)
    digest = hashlib.sha256(described).hexdigest()
    return RemoteAddress(url=url, digest=digest, options=options, store=store)


def _described(store: object) -> bytes:
    """Describe how a store is made; its pickle differs from one time to the next."""
    try:
        pickle.dumps(store)  # that it reaches other processes shows only in trying
        made_from = store.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
        return json.dumps(made_from, sort_keys=True, default=_described_part).encode()
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        msg = (
            f"store={type(store).__name__} cannot be pickled ({error}), other processes could not "
            "use it. To fix: give a URL and storage_options, or a store that can be"
        )
        raise SourceError(msg) from error


def _described_part(value: object) -> str:
    """Return a text for what JSON does not know."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return pickle.dumps(value).hex()
