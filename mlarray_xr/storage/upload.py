"""Uploads: a finished local file becomes one object of a store, complete or not at all.

Object stores show an object when its last byte has arrived and been acknowledged. Where a protocol
of fsspec promises less (memory, SFTP, HDFS), the file travels under another name and is renamed.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlarray_xr.errors import (
    ConversionError,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceTimeout,
)
from mlarray_xr.storage.remote_options import plan_client
from mlarray_xr.storage.transport import open_transport
from mlarray_xr.storage.transport_failures import Asked
from mlarray_xr.storage.transport_fsspec import FsspecTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.storage.remote_source import RemoteAddress
    from mlarray_xr.storage.transport_obstore import ObstoreTransport

__all__ = [
    "ObjectState",
    "ObjectStore",
    "StagedUpload",
    "existing_object",
    "open_store",
    "upload_file",
    "writing",
]

# A slow connection needs minutes for what one request may hold.
_TIMEOUT_S = 600.0
# What a conditional request sends at once, and holds in memory: larger objects need several.
_LARGEST_CONDITIONAL_BYTES = 64 << 20
_LEAST_REQUEST_BYTES = 16 << 20
# S3 takes 10 000 requests for one object.
_MOST_REQUESTS = 9_000
_AT_ONCE = 4
# Protocols of fsspec that show an object when it is complete, as object stores do.
_ATOMIC = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "r2"}
_DENIED = {"PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError"}
_MISSING = {"NotFoundError"}
_EXISTING = {"AlreadyExistsError", "PreconditionError"}
_UNSUPPORTED = {"NotSupportedError", "NotImplementedError"}
_VALIDATORS = ("ETag", "etag", "e_tag")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """What a store says of one of its objects."""

    size: int
    """Bytes."""
    etag: str | None
    """Validator; None where the store has none."""


class ObjectStore(Protocol):
    """One place in a store, that has an object or not."""

    def state(self) -> ObjectState | None:
        """Return what is there; None when nothing is."""

    def put(self, path: str, *, overwrite: bool) -> str | None:
        """Upload a local file, all of it or nothing; return the validator if the answer has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedUpload:
    """What becomes of a file that is written to a temporary folder for a store; picklable."""

    address: RemoteAddress
    """Where the object will be."""
    folder: str
    """The temporary folder, which holds nothing else."""
    overwrite: bool
    """Whether an object that is there is replaced."""

    def send(self, path: str) -> None:
        """Upload the finished file, and remove the folder; see `upload_file`.

        Where the store does not take it the file stays: making it may have taken hours.
        """
        try:
            upload_file(path, self.address, overwrite=self.overwrite)
        except SourceError as error:
            kept = f"{self.folder}-kept"  # out of the way of whoever cleans up after the error
            os.rename(self.folder, kept)
            file = os.path.join(kept, os.path.basename(path))
            msg = f"{error}. The finished file is kept as {file}: upload it by other means"
            raise type(error)(msg) from error
        self.clean_up()

    def clean_up(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def upload_file(path: str, address: RemoteAddress, *, overwrite: bool) -> None:
    """Make a local file an object, and compare what the store has then.

    Parameters
    ----------
    path
        The file, complete.
    address
        Where the object will be.
    overwrite
        Whether an object that is there is replaced, which readers see in one step.

    Raises
    ------
    FileExistsError
        When an object is there and `overwrite` is False.
    SourceChanged
        When the object is not what was sent: somebody else wrote it at the same time.
    SourceDenied
        When the credentials may not write there.
    SourceError
        When the store refuses, or cannot be reached.
    """
    store = open_store(address)
    if not overwrite and store.state() is not None:
        raise existing_object(address.name)
    etag = store.put(path, overwrite=overwrite)
    found, size = store.state(), os.path.getsize(path)
    is_same = found is not None and found.size == size
    if found is not None and etag is not None and found.etag is not None:
        is_same = is_same and found.etag == etag
    if not is_same:
        msg = (
            f"{address.name}: {size} bytes with etag {etag} were written, the store has "
            f"{'nothing' if found is None else f'{found.size} with {found.etag}'}. Somebody else "
            "wrote the object at the same time. To fix: let one write it, and write it again"
        )
        raise SourceChanged(msg)


def existing_object(name: str) -> FileExistsError:
    """Return the error for an object that must not be replaced."""
    return FileExistsError(
        f"{name}: the object exists. To fix: (1) mode='w' replaces it; (2) choose another name"
    )


def open_store(address: RemoteAddress) -> ObjectStore:
    """Return the place of an object; nothing is asked of the server yet.

    Raises
    ------
    ConversionError
        When objects cannot be written there, whoever asks.
    SourceError, MissingDependencyError
        As `mlarray_xr.storage.transport.open_transport`.
    """
    plan = plan_client(address)
    if plan.protocol == "http" or "::" in plan.url:
        msg = (
            f"{address.name}: files are not written to web servers, or through chained URLs. To "
            "fix: give the URL of an object store (s3://, gs://, az://), or write a local file"
        )
        raise ConversionError(msg)
    transport = open_transport(address, timeout_s=_TIMEOUT_S)
    if isinstance(transport, FsspecTransport):
        is_atomic = bool(_ATOMIC & {plan.protocol, *_protocols(transport.filesystem)})
        return _FsspecPlace(transport=transport, is_atomic=is_atomic)
    # Of the two classes that open_transport makes, this is the other one.
    client: Any = transport
    has_own_store = plan.store is None
    return _ObstorePlace(transport=_with_retries(client) if has_own_store else client)


@contextlib.contextmanager
def writing(name: str, *, secrets: tuple[str, ...] = ()) -> Iterator[None]:
    """Say errors of clients in the words of this package while the block writes.

    Parameters
    ----------
    name
        The URL without secrets.
    secrets
        Texts that no message may show.
    """
    try:
        yield
    except (ConversionError, SourceError):
        raise
    except Exception as error:
        asked = Asked(name=name, what="bytes", secrets=secrets)
        raise _failure(asked, error) from None


def _failure(asked: Asked, error: Exception) -> Exception:
    """Return an error of a client in the words of this package."""
    kind, told = type(error).__name__, asked.shown(str(error).partition("\n\nDebug source")[0])
    found = f"{kind}: {told}"
    if isinstance(error, PermissionError) or kind in _DENIED or "status: 401" in str(error):
        return SourceDenied(
            f"{asked.name}: writing was denied ({found}). To fix: give credentials in "
            "storage_options that may read and write there"
        )
    if isinstance(error, FileExistsError) or kind in _EXISTING:
        return existing_object(asked.name)
    if isinstance(error, FileNotFoundError) or kind in _MISSING:
        return FileNotFoundError(
            f"{asked.name}: there is no such bucket, container or folder ({found}). To fix: make "
            "it first, or check the URL and the endpoint in storage_options"
        )
    if isinstance(error, TimeoutError):
        return SourceTimeout(f"{asked.name}: no answer came in time. To fix: try again later")
    return SourceError(
        f"{asked.name}: could not be written ({found}). To fix: check the URL and storage_options"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObstorePlace:
    """A place in a store of obstore."""

    transport: ObstoreTransport

    def state(self) -> ObjectState | None:
        """Return what is there; None when nothing is."""
        import obstore

        place = self.transport
        try:
            found = obstore.head(place.store, place.path)
        except Exception as error:
            if isinstance(error, FileNotFoundError) or type(error).__name__ in _MISSING:
                return None
            raise _failure(self._asked, error) from None
        return ObjectState(size=found["size"], etag=found["e_tag"])

    def put(self, path: str, *, overwrite: bool) -> str | None:
        """Upload a local file in one request, or in parts that appear together."""
        import obstore

        place, size = self.transport, os.path.getsize(path)
        chunk_size = max(_LEAST_REQUEST_BYTES, -(-size // _MOST_REQUESTS))
        with writing(place.name, secrets=place.secrets):
            # A condition and several requests exclude each other in obstore 0.12.
            if not overwrite and size <= _LARGEST_CONDITIONAL_BYTES:
                try:
                    done = obstore.put(place.store, place.path, Path(path), mode="create")
                except Exception as error:
                    if type(error).__name__ not in _UNSUPPORTED:
                        raise
                else:
                    return done["e_tag"]
            if not overwrite and self.state() is not None:
                raise existing_object(place.name)
            done = obstore.put(
                place.store,
                place.path,
                Path(path),
                chunk_size=chunk_size,
                max_concurrency=_AT_ONCE,
            )
        return done["e_tag"]

    @property
    def _asked(self) -> Asked:
        """What failures name."""
        return Asked(name=self.transport.name, what="bytes", secrets=self.transport.secrets)


@dataclass(frozen=True, slots=True, kw_only=True)
class _FsspecPlace:
    """A place in a filesystem of fsspec."""

    transport: FsspecTransport
    is_atomic: bool

    def state(self) -> ObjectState | None:
        """Return what is there; None when nothing is."""
        filesystem, path = self.transport.filesystem, self.transport.path
        with writing(self.transport.name, secrets=self.transport.secrets):
            filesystem.invalidate_cache()
            try:
                found = filesystem.info(path)
            except FileNotFoundError:
                return None
            if found.get("type") == "directory":
                msg = f"{self.transport.name}: a folder has this name. To fix: choose another one"
                raise SourceError(msg)
            etag = next((found[key] for key in _VALIDATORS if found.get(key)), None)
            return ObjectState(size=int(found["size"]), etag=etag)

    def put(self, path: str, *, overwrite: bool) -> str | None:
        """Upload a local file, under another name first where it could be seen growing."""
        filesystem, target = self.transport.filesystem, self.transport.path
        with writing(self.transport.name, secrets=self.transport.secrets):
            if self.is_atomic:
                condition = {} if overwrite or not _takes_mode(filesystem) else {"mode": "create"}
                filesystem.put_file(path, target, **condition)
                return None
            temporary = f"{target}.{uuid.uuid4().hex}.tmp"
            try:
                filesystem.put_file(path, temporary)
                self._check_free(overwrite=overwrite)
                _rename(filesystem, temporary, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    filesystem.rm_file(temporary)
                raise
        return None

    def _check_free(self, *, overwrite: bool) -> None:
        """Refuse an object that must not be replaced."""
        if not overwrite and self.state() is not None:
            raise existing_object(self.transport.name)


def _protocols(filesystem: Any) -> tuple[str, ...]:
    """Return the names of the protocols that a filesystem serves."""
    told = filesystem.protocol
    return (told,) if isinstance(told, str) else tuple(told)


def _rename(filesystem: Any, path: str, target: str) -> None:
    """Give an object another name, in place of any that has it."""
    owner = next(base for base in type(filesystem).__mro__ if "mv" in vars(base))
    if owner.__module__ != "fsspec.spec":
        filesystem.mv(path, target)
        return
    # The common `mv` copies as well, and takes brackets in names for patterns.
    filesystem.cp_file(path, target)
    filesystem.rm_file(path)


def _takes_mode(filesystem: Any) -> bool:
    """Tell whether a filesystem can refuse an existing object in the request that makes it."""
    method = getattr(filesystem, "_put_file", None) or filesystem.put_file
    return "mode" in inspect.signature(method).parameters


def _with_retries(transport: ObstoreTransport) -> ObstoreTransport:
    """Return a transport whose client tries again: one that reads leaves that to its readers."""
    store = transport.store
    again: dict[str, Any] = {
        "config": store.config,
        "client_options": store.client_options,
        "retry_config": {"max_retries": 5, "retry_timeout": timedelta(seconds=_TIMEOUT_S)},
        "credential_provider": store.credential_provider,
    }
    return replace(transport, store=type(store)(**again))
