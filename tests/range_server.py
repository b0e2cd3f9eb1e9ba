"""An HTTP server of byte ranges on loopback that counts what it does and fails as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from tests.range_answer import Answer, ETags, Faults, Request, StoredObject, answer, is_hit

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Counts", "Exchange", "Faults", "RangeServer"]

PIECE_BYTES = 128 << 10
"""Most bytes of a body written before the server looks whether the client still takes them."""
RATE_STEP_S = 0.02
"""Of a body sent slowly: one piece in this time at most."""
SEND_BUFFER_BYTES = 256 << 10
"""Of one connection: small, so that `bytes_sent` of a refused body is close to what travelled."""
EPOCH = 1_700_000_000
"""Last-Modified of the first object, in Unix seconds; every later one is a second younger."""
INVERTED = bytes(255 - value for value in range(256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request as it came and the status of its answer (0: stalled)."""

    method: str
    name: str
    range: str | None
    status: int
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of the request, names in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a server did since it started or since `reset_counts`."""

    requests: int
    bytes_sent: int
    """Of bodies alone."""
    connections: int
    peak_in_flight: int
    """Most requests that waited for the end of their answer at one time."""
    log: tuple[Exchange, ...] = field(repr=False)
    """In the order of the answers."""

    @property
    def ranges(self) -> list[tuple[str, str, str | None, int]]:
        """(method, name, range, status) of every exchange."""
        return [(one.method, one.name, one.range, one.status) for one in self.log]


class RangeServer:
    """StoredObjects served over HTTP/1.1 from a thread of its own, on a free port of loopback.

    `faults` may be set while it runs; this starts their counting anew.

    Examples
    --------
    >>> from urllib.request import Request, urlopen
    >>> with RangeServer({"a.mla": b"abcdef"}) as server:
    ...     with urlopen(Request(server.url("a.mla"), headers={"Range": "bytes=-2"})) as answer:
    ...         print(answer.status, answer.read())
    206 b'ef'
    >>> server.counts().ranges
    [('GET', 'a.mla', 'bytes=-2', 206)]
    """

    def __init__(
        self,
        objects: Mapping[str, bytes] | None = None,
        *,
        faults: Faults | None = None,
        etags: ETags = "strong",
    ) -> None:
        self.etags = etags
        self._lock = threading.RLock()
        self._objects: dict[str, StoredObject] = {}
        self._puts = 0
        for name, data in (objects or {}).items():
            self.put(name, data)
        self.faults = faults or Faults()
        self.reset_counts()
        self._in_flight = 0
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = Future()
        self._thread = threading.Thread(target=self._run, name="range-server", daemon=True)
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        loop, stopped, _port = self._started.result()
        loop.call_soon_threadsafe(stopped.set)
        self._thread.join()

    @property
    def port(self) -> int:
        return self._started.result()[2]

    def url(self, name: str) -> str:
        """Return the address of an object, there or not."""
        return f"http://127.0.0.1:{self.port}/{quote(name)}"

    def put(self, name: str, data: bytes) -> None:
        """Add or replace an object; its ETag follows from the bytes, its date is always new."""
        tag = hashlib.blake2b(data, digest_size=12).hexdigest()
        with self._lock:
            modified = formatdate(EPOCH + self._puts, usegmt=True)
            self._objects[name] = StoredObject(bytes(data), tag, modified)
            self._puts += 1

    def delete(self, name: str) -> None:
        """Remove an object: 404 from now on."""
        with self._lock:
            del self._objects[name]

    def truncate(self, name: str, size: int) -> None:
        """Keep the first `size` bytes of an object."""
        self.put(name, self.data(name)[:size])

    def data(self, name: str) -> bytes:
        """Return the bytes of an object."""
        with self._lock:
            return self._objects[name].data

    @property
    def faults(self) -> Faults:
        with self._lock:
            return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._lock:
            self._faults = faults
            self._asked = self._bodies = 0

    def counts(self) -> Counts:
        """Return what happened so far."""
        with self._lock:
            return Counts(
                requests=self._requests,
                bytes_sent=self._bytes_sent,
                connections=self._opened,
                peak_in_flight=self._peak,
                log=tuple(self._log),
            )

    def reset_counts(self) -> None:
        """Count from zero; open connections are not counted again."""
        with self._lock:
            self._requests = self._bytes_sent = self._opened = self._peak = 0
            self._log: list[Exchange] = []

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except OSError as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _listen(self) -> None:
        """Serve until told to stop, then drop every connection."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        server = await asyncio.start_server(self._connected, sock=listener)
        stopped = asyncio.Event()
        self._started.set_result(
            (asyncio.get_running_loop(), stopped, listener.getsockname()[1]),
        )
        await stopped.wait()
        server.close()
        while self._connections:
            open_now = dict(self._connections)
            for task, writer in open_now.items():
                task.cancel()
                writer.transport.abort()
            await asyncio.gather(*open_now, return_exceptions=True)
            # `connection_lost` of the aborted transports, and connections accepted meanwhile.
            await asyncio.sleep(0)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start serving a connection."""
        with self._lock:
            self._opened += 1
        writer.transport.set_write_buffer_limits(high=0)
        # Otherwise the body of an answer waits 40 ms for the client to confirm its head.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        try:
            await asyncio.sleep(self.faults.connection_latency_s)
            goes_on = True
            while goes_on:
                request = Request.parse(await reader.readuntil(b"\r\n\r\n"))
                if request is None:
                    writer.write(Answer(400).head(keep_alive=False))
                    return
                goes_on = await self._exchange(request, reader, writer)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # the client went away
        finally:
            writer.close()

    async def _exchange(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one request; say whether the connection goes on."""
        number, faults = self._arrived(request.name)
        try:
            await asyncio.sleep(faults.latency_s)
            if number <= faults.stall_first:
                self._record(request, 0)
                await reader.read()
                return False
            reply = self._decide(request, number, faults)
            self._record(request, reply.status)
            writer.write(reply.head(keep_alive=request.keep_alive))
            if request.method == "HEAD":
                return request.keep_alive
            is_cut = reply.status in {200, 206} and self._is_cut(faults)
            n_bytes = len(reply.body) // 2 if is_cut else len(reply.body)
            await self._send(reply.body[:n_bytes], writer, faults.bytes_per_second)
            return request.keep_alive and not is_cut
        finally:
            with self._lock:
                self._in_flight -= 1

    def _arrived(self, name: str) -> tuple[int, Faults]:
        """Count a request; return its number since the faults were set, and the faults."""
        with self._lock:
            self._requests += 1
            self._asked += 1
            self._in_flight += 1
            self._peak = max(self._peak, self._in_flight)
            faults = self._faults
            is_due = faults.replace_after is not None and self._asked == faults.replace_after + 1
            if is_due and name in self._objects:
                new = faults.replacement
                self.put(name, self.data(name).translate(INVERTED) if new is None else new)
            return self._asked, faults

    def _decide(self, request: Request, number: int, faults: Faults) -> Answer:
        """Return the answer to the `number`-th request."""
        if faults.deny:
            return Answer(faults.deny)
        if is_hit(number, faults.fail_first, faults.fail_every):
            wait = faults.retry_after_s
            return Answer(faults.fail_status, {} if wait is None else {"Retry-After": f"{wait:g}"})
        with self._lock:
            found = self._objects.get(request.name)
        return answer(request, found, self.etags, faults)

    def _is_cut(self, faults: Faults) -> bool:
        """Count a body; say whether it is to be cut."""
        with self._lock:
            self._bodies += 1
            return is_hit(self._bodies, faults.cut_first, faults.cut_every)

    def _record(self, request: Request, status: int) -> None:
        with self._lock:
            self._log.append(
                Exchange(
                    method=request.method,
                    name=request.name,
                    range=request.headers.get("range"),
                    status=status,
                    query=request.query,
                    headers=request.headers,
                )
            )

    async def _send(
        self, body: memoryview, writer: asyncio.StreamWriter, rate: float | None
    ) -> None:
        """Write a body at `rate` bytes per second, as fast as it is taken for None."""
        clock = asyncio.get_running_loop().time
        began = clock()
        step = PIECE_BYTES if rate is None else max(1, min(PIECE_BYTES, int(rate * RATE_STEP_S)))
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            if rate is not None:
                await asyncio.sleep(began + (start + len(piece)) / rate - clock())
            # Counted before: a client that has the last byte finds it counted.
            with self._lock:
                self._bytes_sent += len(piece)
            writer.write(piece)
            await writer.drain()
