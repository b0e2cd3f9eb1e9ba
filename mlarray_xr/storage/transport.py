"""Transports: byte ranges of one remote object, through the client that fits its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlarray_xr.storage.piece import Piece, Transport
from mlarray_xr.storage.remote_options import forked_plan, plan_client
from mlarray_xr.storage.transport_fsspec import open_fsspec
from mlarray_xr.storage.transport_obstore import is_unusable_after_fork, open_obstore

if TYPE_CHECKING:
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["Piece", "Transport", "open_transport"]


def open_transport(address: RemoteAddress, *, timeout_s: float = 60.0) -> Transport:
    """Return a transport for an object; nothing is asked of the server yet.

    obstore serves ``s3``, ``gs``, ``az`` and ``http`` as far as it understands the options, fsspec
    everything else. fsspec also serves the forked children of a process that has used obstore,
    whose runtime does not survive a fork.

    Parameters
    ----------
    address
        Where the object is.
    timeout_s
        Seconds for one request from connecting to its last byte.

    Raises
    ------
    SourceError
        When the URL or an option makes no sense.
    SourceDenied
        When there are no credentials for S3 anywhere.
    MissingDependencyError
        When the client is not installed.

    Notes
    -----
    Credentials come from the options, else from the environment. For S3, profile files are read
    when boto3 is installed. What is left is the metadata service of cloud machines, so public data
    needs ``anon=True``.

    Validators: obstore sends strong ones with every request, and every answer is compared. fsspec
    shows them in `fetch_tail` alone. Azure has no suffix ranges and fsspec none either: their
    `fetch_tail` takes two requests.
    """
    plan = plan_client(address)
    if plan.client == "obstore" and is_unusable_after_fork():
        plan = forked_plan(plan)
    if plan.client == "obstore":
        return open_obstore(plan, timeout_s=timeout_s)
    return open_fsspec(plan, timeout_s=timeout_s)
