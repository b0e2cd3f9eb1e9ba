"""Multipart uploads: many processes send pieces of one S3 object, which appears at the end.

What a process gets is the address and the identity of the upload, never a connection. An upload
that is not completed is invisible, and is paid for until it is aborted; buckets can do that by a
lifecycle rule (``AbortIncompleteMultipartUpload``).

s3fs makes the requests: obstore 0.12 has multipart uploads of one process only.
"""

from __future__ import annotations

import base64
import hashlib
import os
import uuid
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError, SourceDenied, SourceError
from mlarray_xr.storage.remote_options import forked_plan, plan_client
from mlarray_xr.storage.transport_fsspec import open_fsspec
from mlarray_xr.storage.upload import existing_object, writing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.storage.remote_options import ClientPlan
    from mlarray_xr.storage.remote_source import RemoteAddress
    from mlarray_xr.storage.transport_fsspec import FsspecTransport

__all__ = [
    "LAST_NUMBER",
    "LEAST_BYTES",
    "MultipartUpload",
    "UploadEnded",
    "begin_upload",
    "has_multipart",
    "s3_request",
]

# Amazon S3, "Multipart upload limits": pieces of 5 MiB to 5 GiB, the last one may be smaller. A
# part of a write has a few hundred MiB at most, or one chunk, which is smaller than 2 GiB.
LEAST_BYTES = 5 << 20
LAST_NUMBER = 10_000
_WRITE_ID = "mlarray-xr-write"
_TIMEOUT_S = 600.0
_ABORTS = 3


class UploadEnded(SourceError):
    """Raised when an upload was completed or aborted meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MultipartUpload:
    """The address of one upload; picklable, sent to every worker. Pieces may be sent twice."""

    address: RemoteAddress
    """Where the object will be."""
    upload_id: str
    """The store's name of the upload."""
    write_id: str
    """Names the write: stands in the metadata of the object."""

    def put(self, number: int, data: bytes) -> str:
        """Send a piece, in place of any of that number, and return its validator.

        Parameters
        ----------
        number
            From 1 to `LAST_NUMBER`: pieces stand in this order.
        data
            At least `LEAST_BYTES`, unless it is the last piece.

        Raises
        ------
        UploadEnded
            When the upload was completed or aborted.
        SourceError
            When the store cannot be reached, or got other bytes than were sent.
        """
        # The store compares the checksum before it answers.
        checksum = hashlib.md5(data, usedforsecurity=False).digest()
        told = self._call(
            "upload_part",
            UploadId=self.upload_id,
            PartNumber=number,
            Body=data,
            ContentMD5=base64.b64encode(checksum).decode(),
        )
        return str(told["ETag"])

    def etags(self) -> dict[int, str] | None:
        """Return number and validator of the pieces that the store has; None after the end."""
        found: dict[int, str] = {}
        marker = 0
        while True:
            try:
                told = self._call("list_parts", UploadId=self.upload_id, PartNumberMarker=marker)
            except UploadEnded:
                return None
            found |= {piece["PartNumber"]: piece["ETag"] for piece in told.get("Parts", [])}
            if not told.get("IsTruncated"):
                return found
            marker = told["NextPartNumberMarker"]

    def complete(self, etags: Mapping[int, str], *, overwrite: bool) -> None:
        """Let the object appear, all of it at once.

        Parameters
        ----------
        etags
            Number and validator of every piece.
        overwrite
            Whether an object that is there is replaced.

        Raises
        ------
        FileExistsError
            When an object is there and `overwrite` is False.
        UploadEnded
            When the upload was aborted.
        SourceError
            When the store has other pieces than these.
        """
        pieces = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
        asked = {"UploadId": self.upload_id, "MultipartUpload": {"Parts": pieces}}
        if overwrite:
            self._call("complete_multipart_upload", **asked)
            return
        try:
            self._call("complete_multipart_upload", **asked, IfNoneMatch="*")
        except _Unconditional:
            # Compatible stores, and botocore before 1.35: the check and the rest are two steps.
            if self.exists():
                raise existing_object(self.address.name) from None
            self._call("complete_multipart_upload", **asked)

    def abort(self) -> None:
        """Give the upload up: the store forgets all pieces.

        Pieces that arrive at the same moment may survive one request, says the documentation.
        """
        for _ in range(_ABORTS):
            try:
                self._call("abort_multipart_upload", UploadId=self.upload_id)
            except UploadEnded:
                return

    def exists(self) -> bool:
        """Tell whether an object is there, whoever wrote it."""
        return self._object() is not None

    def is_complete(self) -> bool:
        """Tell whether the object that is there is the one of this upload."""
        try:
            found = self._object()
        except SourceDenied:
            # S3 says so of a missing object to those who may not list the bucket.
            return False
        return found is not None and found.get("Metadata", {}).get(_WRITE_ID) == self.write_id

    def _object(self) -> Mapping[str, Any] | None:
        """Return what the store says of the object; None when there is none."""
        try:
            found: Mapping[str, Any] = self._call("head_object")
        except UploadEnded:
            return None
        return found

    def _call(self, method: str, **arguments: Any) -> Any:
        """Make one request; s3fs tries again where that may help."""
        return s3_request(self.address, method, **arguments)


class _Unconditional(SourceError):
    """The store, or the library, knows no conditions here."""


def has_multipart(address: RemoteAddress) -> bool:
    """Tell whether processes can share the upload of an object: S3, with s3fs installed."""
    plan = _plan(address)
    if plan is None:
        return False
    try:
        return hasattr(_client(plan, os.getpid()).filesystem, "call_s3")
    except MissingDependencyError:
        return False


def begin_upload(address: RemoteAddress) -> MultipartUpload:
    """Begin the upload of an object of an address for which `has_multipart` is true.

    Raises
    ------
    SourceDenied
        When the credentials may not write there.
    FileNotFoundError
        When there is no such bucket.
    SourceError
        When the store cannot be reached.
    """
    write_id = uuid.uuid4().hex
    told = s3_request(address, "create_multipart_upload", Metadata={_WRITE_ID: write_id})
    return MultipartUpload(address=address, upload_id=told["UploadId"], write_id=write_id)


def _plan(address: RemoteAddress) -> ClientPlan | None:
    """Return how s3fs reaches an address; None when it does not."""
    plan = plan_client(address)
    if plan.store is not None:
        return plan if plan.client == "fsspec" else None
    if plan.protocol != "s3":
        return None
    if plan.client == "fsspec":
        return plan
    try:
        # The same translation that a forked child needs, in which obstore does not work.
        return forked_plan(plan)
    except SourceError:
        return None


@lru_cache(maxsize=16)
def _client(plan: ClientPlan, pid: int) -> FsspecTransport:  # noqa: ARG001 - part of the key
    """Return the client of this process: making one takes 0.2 s."""
    return open_fsspec(plan, timeout_s=_TIMEOUT_S)


def s3_request(address: RemoteAddress, method: str, *, suffix: str = "", **arguments: Any) -> Any:
    """Make one request of S3, and return its answer.

    Parameters
    ----------
    address
        Of the object that is asked for; of those that begin with its name in a listing.
    method
        As botocore spells it, such as ``upload_part``.
    suffix
        What follows the name of the object.
    arguments
        As botocore spells them.

    Raises
    ------
    UploadEnded
        When there is no such upload, or no such object.
    FileExistsError
        When the request is for the case that there is none, and there is one.
    SourceError
        When the store refuses or cannot be reached.
    """
    plan = _plan(address)
    if plan is None:
        msg = f"{address.name}: s3fs does not serve this address"
        raise SourceError(msg)
    client = _client(plan, os.getpid())
    bucket, _, key = client.path.partition("/")
    if method == "list_objects_v2":
        arguments["Prefix"] = key + suffix
    elif method != "delete_objects":
        arguments["Key"] = key + suffix
    with writing(address.name, secrets=plan.secrets):
        try:
            return client.filesystem.call_s3(method, Bucket=bucket, **arguments)
        except Exception as error:
            code = _code(error)
            if code in ("NoSuchUpload", "NoSuchKey") or (method, code) == ("head_object", "404"):
                msg = f"{address.name}: the upload was completed or given up meanwhile"
                raise UploadEnded(msg) from None
            if code in ("NotImplemented", "501", "ParamValidationError"):
                msg = f"{address.name}: {method} was asked for with {sorted(arguments)}: {code}"
                raise _Unconditional(msg) from None
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                raise existing_object(address.name) from None
            raise


def _code(error: Exception) -> str:
    """Return S3's name of an error, or the one of its class."""
    cause = error.__cause__ or error
    response = getattr(cause, "response", None)
    told = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(told or type(cause).__name__)
