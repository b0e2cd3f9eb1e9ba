"""The door to fsspec: every other protocol, filesystems of the caller, and forked children.

fsspec answers with bytes alone. A validator is seen once, with the size, in `fetch_tail`; a
replacement between two requests is noticed by what the bytes decode to, not by the transport.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError, SourceError
from mlarray_xr.storage.piece import Piece, dated_validator
from mlarray_xr.storage.transport_failures import Asked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.storage.remote_options import ClientPlan

__all__ = ["FsspecTransport", "open_fsspec"]

# What the filesystems call the validator, and the time of change where they have none.
VALIDATORS = ("ETag", "etag", "e_tag")
TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "created")
# s3fs keeps 10 connections otherwise, fewer than there are reading threads.
S3_CONNECTIONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class FsspecTransport:
    """One object in an fsspec filesystem."""

    name: str
    """The URL without secrets."""
    filesystem: Any = field(repr=False)
    """The filesystem."""
    path: str = field(repr=False)
    """The object in it."""
    secrets: tuple[str, ...] = field(repr=False)
    """Texts that no message may show."""
    timeout_s: float
    """Seconds for one request; filesystems without an event loop have limits of their own."""

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        """Return the bytes from `start` to `stop`; see `Transport`.

        A short answer costs a request more, for the size: it may have met the object's end.
        """
        asked = self._asked(f"bytes {start} to {stop}", etag)
        data = self._read(asked, start, stop)
        if len(data) > stop - start:
            raise asked.no_ranges()
        if len(data) == stop - start:
            return Piece(data=data, start=start, size=None, etag=None)
        size, found = self._look_up(asked)
        return asked.checked(Piece(data=data, start=start, size=size, etag=found), start, stop)

    def fetch_tail(self, n_bytes: int) -> Piece:
        """Return the last bytes, the size and a validator: two requests."""
        asked = self._asked(f"the last {n_bytes} bytes", None)
        size, etag = self._look_up(asked)
        start = max(0, size - n_bytes)
        data = self._read(asked, start, size) if size else b""
        n_requests = 2 if size else 1
        piece = Piece(data=data, start=start, size=size, etag=etag, n_requests=n_requests)
        return asked.checked(piece, start, size)

    def _read(self, asked: Asked, start: int, stop: int) -> bytes:
        """Make one request."""
        try:
            return bytes(
                self.filesystem.cat_file(self.path, start=start, end=stop, **self._limit())
            )
        except Exception as error:
            raise self._failure(asked, error) from None

    def _look_up(self, asked: Asked) -> tuple[int, str | None]:
        """Ask for size and validator."""
        try:
            info = self.filesystem.info(self.path, **self._limit())
        except Exception as error:
            raise self._failure(asked, error) from None
        if info.get("type") == "directory":
            raise asked.missing("it is a folder")
        if not isinstance(size := info.get("size"), int):
            raise asked.other("the server does not say how large the object is")
        return size, _validator(info)

    def _limit(self) -> dict[str, float]:
        """Return the timeout for filesystems with an event loop, which accept one per call."""
        return {"timeout": self.timeout_s} if self.filesystem.async_impl else {}

    def _asked(self, what: str, etag: str | None) -> Asked:
        """Describe a request."""
        return Asked(name=self.name, what=what, etag=etag, secrets=self.secrets)

    def _failure(self, asked: Asked, error: Exception) -> Exception:
        """Say an error of fsspec, or of a library below it, in the words of this package."""
        if isinstance(error, _NoRanges):
            return asked.no_ranges()
        if isinstance(error, FileNotFoundError):
            return asked.missing()
        if isinstance(error, (IsADirectoryError, NotADirectoryError)):
            return asked.missing(type(error).__name__)
        if isinstance(error, PermissionError):
            return asked.denied(type(error).__name__)
        if isinstance(error, TimeoutError):
            return asked.late(self.timeout_s)
        status = _status(error)
        if status is not None:
            return asked.status(status, retry_after_s=_retry_after_s(error))
        library = type(error).__module__.partition(".")[0]
        told = f"{type(error).__name__}: {error}"
        if isinstance(error, ConnectionError) or library in ("aiohttp", "urllib3", "requests"):
            return asked.unreachable(told)
        if type(error).__name__ in ("EndpointConnectionError", "ConnectionClosedError"):
            return asked.unreachable(told)
        return asked.other(told)


def open_fsspec(plan: ClientPlan, *, timeout_s: float) -> FsspecTransport:
    """Return the transport of an object that fsspec serves.

    Raises
    ------
    MissingDependencyError
        When fsspec, or what it needs for the protocol, is not installed.
    SourceError
        When the protocol is unknown, or its filesystem refuses an option.
    """
    try:
        import fsspec
    except ImportError as error:
        msg = (
            f"{plan.name}: fsspec reads this address and is not installed. "
            'To fix: pip install "mlarray-xr[remote]"'
        )
        raise MissingDependencyError(msg) from error
    if plan.store is not None:
        filesystem, path = _of_this_process(plan), plan.path
    else:
        options = dict(plan.config)
        if "::" not in plan.url:
            options = _checked_options(plan, options)
        asked = Asked(name=plan.name, what="a filesystem", secrets=plan.secrets)
        try:
            # A filesystem of its own: shared ones answer `info` from listings of any age, and
            # those of a parent process do not survive a fork.
            filesystem, path = fsspec.core.url_to_fs(
                plan.url, **{**options, "skip_instance_cache": True}
            )
        except ImportError as error:
            raise _missing(plan, error) from error
        except Exception as error:
            found = asked.shown(f"{type(error).__name__}: {error}")
            msg = f"{plan.name}: fsspec refused: {found}. To fix: check storage_options"
            raise SourceError(msg) from None
    return FsspecTransport(
        filesystem=filesystem,
        path=path,
        name=plan.name,
        secrets=plan.secrets,
        timeout_s=timeout_s,
    )


def _of_this_process(plan: ClientPlan) -> Any:
    """Return the filesystem of the caller, made anew when this process was forked meanwhile."""
    filesystem = plan.store
    if getattr(filesystem, "_pid", os.getpid()) == os.getpid():
        return filesystem
    return type(filesystem)(
        *filesystem.storage_args, **{**filesystem.storage_options, "skip_instance_cache": True}
    )


def _checked_options(plan: ClientPlan, options: Mapping[str, Any]) -> dict[str, Any]:
    """Check options against the class of the protocol, and add what reads here need."""
    import fsspec

    protocol = plan.url.partition("://")[0]
    try:
        made = fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise _missing(plan, error) from error
    except ValueError:
        msg = (
            f"{plan.name}: fsspec knows no protocol {protocol!r}. To fix: use s3, gs, az, https, "
            "or one of fsspec.available_protocols()"
        )
        raise SourceError(msg) from None
    if made.__module__ == "obstore.fsspec":
        msg = (
            f"{plan.name}: fsspec was told to use obstore for {protocol!r}, which cannot serve "
            "this address or this process. To fix: leave out obstore.fsspec.register"
        )
        raise SourceError(msg)
    parameters = inspect.signature(made.__init__).parameters
    free = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    names = [name for name in parameters if name != "self"]
    unknown = [] if free else sorted(set(options) - set(names))
    if unknown:
        msg = (
            f"{plan.name}: storage_options has an unknown key {unknown[0]!r}. To fix: use some of "
            f"{', '.join(names)}"
        )
        raise SourceError(msg)
    if plan.protocol == "s3":
        told = {"max_pool_connections": S3_CONNECTIONS, **options.get("config_kwargs", {})}
        return {**options, "config_kwargs": told}
    if plan.protocol == "http":
        told = {"raise_for_status": _refuse_whole_object, **options.get("client_kwargs", {})}
        return {**options, "client_kwargs": told}
    return dict(options)


class _NoRanges(Exception):
    """A range was asked for, and the whole object began to arrive."""


async def _refuse_whole_object(response: Any) -> None:
    """Refuse an answer before its body is read: fsspec would download all of it."""
    if response.status == 200 and "Range" in response.request_info.headers:
        raise _NoRanges


def _missing(plan: ClientPlan, error: ImportError) -> MissingDependencyError:
    """Name what to install."""
    return MissingDependencyError(
        f"{plan.name}: fsspec has no filesystem for it here ({error}). To fix: install that; in "
        "forked children of a process that has used obstore fsspec is needed, so starting "
        "processes with multiprocessing's 'spawn' or 'forkserver' avoids it"
    )


def _validator(info: Mapping[str, Any]) -> str | None:
    """Return the validator of an object, or a weak one made of its time of change."""
    told = next((info[key] for key in VALIDATORS if info.get(key)), None)
    if told is not None:
        return str(told)
    changed = next((info[key] for key in TIMES if info.get(key)), None)
    if isinstance(changed, str):  # as HTTP tells it: obstore makes the same of it
        with contextlib.suppress(ValueError):
            return dated_validator(parsedate_to_datetime(changed).timestamp())
    return None if changed is None else f'W/"{changed}"'


def _status(error: Exception) -> int | None:
    """Return the HTTP status of an error of aiohttp, botocore or Google's client."""
    # gcsfs says `code`; aiohttp has both, and warns of the latter.
    told = getattr(error, "status" if hasattr(error, "status") else "code", None)
    if isinstance(told, int) and 100 <= told < 600:
        return told
    response = getattr(error.__cause__ or error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    return None


def _retry_after_s(error: Exception) -> float | None:
    """Return the seconds that a server asked to wait (RFC 9110, section 10.2.3)."""
    headers = getattr(error, "headers", None) or {}
    told = headers.get("Retry-After", "")
    return float(told) if told.isdecimal() else None
