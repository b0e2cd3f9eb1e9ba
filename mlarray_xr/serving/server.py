"""A server of files in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlarray_xr.errors import MissingDependencyError
from mlarray_xr.serving.admission import Admission, parse_origin
from mlarray_xr.serving.app import ServingApp
from mlarray_xr.serving.catalogue import Catalogue
from mlarray_xr.serving.connection import Limits, bounded_protocol

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import uvicorn

    from mlarray_xr.serving.served_chunks import Encoding

__all__ = ["RunningServer", "run_server", "served"]

_WILDCARDS = ("0.0.0.0", "::")
_HOSTS = "127.0.0.1 for this machine alone, 0.0.0.0 for the whole network, or an address of its own"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningServer:
    """A server that answers."""

    address: str
    """URL of the list of files, with a slash at its end."""
    catalogue: Catalogue
    """What it shows."""
    thread: threading.Thread = field(repr=False)
    """Runs until the server ends."""
    server: uvicorn.Server = field(repr=False)
    """What runs in it."""

    @property
    def n_connections(self) -> int:
        """How many clients are connected."""
        return len(self.server.server_state.connections)


@contextlib.contextmanager
def run_server(
    paths: Sequence[str | os.PathLike[str]],
    *,
    port: int = 0,
    host: str = "127.0.0.1",
    allow_origins: Sequence[str] = (),
    encoding: Encoding = "blosc",
    overviews: bool = True,
    limits: Limits | None = None,
) -> Iterator[RunningServer]:
    """Show files over HTTP while a block runs: byte by byte, and as Zarr; nothing can be changed.

    Parameters
    ----------
    paths
        Local files, and folders whose ``.mla`` files are shown.
    port
        Where it listens; 0 takes a free one.
    host
        Address or name that it listens on. Others than those of the loopback can be reached by
        everybody in the network, without any password.
    allow_origins
        Origins whose pages may read besides those of this machine, such as
        ``"https://neuroglancer-demo.appspot.com"``; ``"*"`` is any.
    encoding : {"blosc", "gzip", "zstd", "none"}
        How chunks are packed for Zarr.
    overviews
        Whether overviews are shown as levels of the Zarr hierarchy.
    limits
        What clients may take.

    Yields
    ------
    RunningServer
        Listening.

    Raises
    ------
    FileNotFoundError
        When nothing is at a path.
    FormatError
        When a file is no `.mla` file.
    MissingDependencyError
        When uvicorn or zarr are not installed.
    OSError
        When the port is taken, or there is no such host or address here.
    ValueError
        When an origin is none.

    Examples
    --------
    >>> import json, urllib.request
    >>> import mlarray_xr, numpy as np
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "served.mla")
    >>> with run_server(["served.mla"]) as server:
    ...     with urllib.request.urlopen(server.address + "zarr/served.mla/zarr.json") as answer:
    ...         print(json.load(answer)["node_type"])
    group
    """
    _check_libraries()
    limits = limits or Limits()
    catalogue = Catalogue(paths)
    admission = Admission(bound_host=host, origins=frozenset(map(parse_origin, allow_origins)))
    app = ServingApp(
        catalogue=catalogue,
        admission=admission,
        encoding=encoding,
        overviews=overviews,
        n_requests=limits.n_requests,
    )
    try:
        with _listening(host, port) as listener:
            server = _server(app, limits)
            thread = threading.Thread(
                target=_run, args=(server, listener), name="mla-serve", daemon=True
            )
            thread.start()
            try:
                yield RunningServer(
                    address=_address(host, listener),
                    catalogue=catalogue,
                    thread=thread,
                    server=server,
                )
            finally:
                server.should_exit = True
                thread.join()
    finally:
        app.close()


@contextlib.contextmanager
def served(
    paths: Sequence[str | os.PathLike[str]],
    *,
    port: int = 0,
    allow_origins: Sequence[str] = (),
    encoding: Encoding = "blosc",
    overviews: bool = True,
) -> Iterator[str]:
    """Show files on this machine alone while a block runs; gives the address.

    Parameters
    ----------
    paths, port, allow_origins, encoding, overviews
        See `run_server`.

    Yields
    ------
    str
        URL of the list of files, with a slash at its end.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> _ = mlarray_xr.to_mla(np.arange(6).reshape(2, 3), "near.mla")
    >>> with served(["near.mla"]) as address:
    ...     int(mlarray_xr.open_mla(address + "raw/near.mla")[1, 2])
    5
    """
    with run_server(
        paths, port=port, allow_origins=allow_origins, encoding=encoding, overviews=overviews
    ) as server:
        yield server.address


def _check_libraries() -> None:
    """Refuse to begin without the libraries that are needed later."""
    try:
        import uvicorn  # noqa: F401
        import zarr  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"serving files needs {error.name}, which is not installed. To fix: pip install "
            '"mlarray-xr[serve]"'
        ) from error


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens."""
    try:
        # An empty name would be one of this machine, whichever.
        found = socket.getaddrinfo(host or ".", port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise OSError(
            f"host {host!r} is no address or name that is known here: {reason}. To fix: {_HOSTS}"
        ) from error
    family, _, _, _, where = found[0]
    try:
        # With the scope of an IPv6 address, if it has one.
        return socket.create_server(where, family=family)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.ENODEV):
            raise OSError(
                f"host {host!r} is no address of this machine: {error.strerror}. To fix: {_HOSTS}"
            ) from error
        raise OSError(
            f"port {port} of {host} cannot be listened on: {error.strerror}. To fix: another port, "
            "or 0 for a free one"
        ) from error


def _address(host: str, listener: socket.socket) -> str:
    """Return the URL of a listening socket; of one on all addresses by the machine's name."""
    name = socket.gethostname() if host in _WILDCARDS else host
    shown = f"[{name.replace('%', '%25')}]" if ":" in name else name
    return f"http://{shown}:{listener.getsockname()[1]}/"


def _server(app: ServingApp, limits: Limits) -> uvicorn.Server:
    """Return a server that is not running yet."""
    import uvicorn

    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=bounded_protocol(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        # What clients do wrong is no news.
        log_level="critical",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=math.ceil(limits.wait_s),
        timeout_graceful_shutdown=limits.finish_s,
        h11_max_incomplete_event_size=limits.head_bytes,
    )
    return uvicorn.Server(config)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    """Serve until the server is told to end, then drop the connections that did not."""

    async def serve() -> None:
        await server.serve(sockets=[listener])
        for connection in list(server.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)

    asyncio.run(serve())
