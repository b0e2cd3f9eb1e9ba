"""What is answered to a request: a status, headers, and bytes in memory or in a file."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.errors import SourceChanged
from mlarray_xr.serving.byte_range import parse_range
from mlarray_xr.serving.conditions import choose_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping
    from concurrent.futures import Executor

    from mlarray_xr.serving.conditions import Version
    from mlarray_xr.serving.request import Request
    from mlarray_xr.storage.source import LocalSource

    Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

__all__ = [
    "Answer",
    "FilePart",
    "busy_answer",
    "checked_answer",
    "ranged_answer",
    "send_answer",
    "text_answer",
    "unreadable_answer",
]

_PIECE_BYTES = 256 << 10
"""Most bytes of a file that are in memory for one client."""
_RETRY = {"Retry-After": "1"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """Bytes of a pinned file, read when they are sent."""

    source: LocalSource
    """The file."""
    start: int
    """First byte."""
    stop: int
    """Byte after the last one."""

    def __len__(self) -> int:
        """Return the number of bytes."""
        return self.stop - self.start

    def read(self, offset: int) -> bytes:
        """Return the piece at an offset, not longer than `_PIECE_BYTES`.

        The file is open for as long as that takes: slow clients hold none.

        Raises
        ------
        SourceChanged
            When it is another file by now, or was changed while it was read.
        """
        n_bytes = min(_PIECE_BYTES, len(self) - offset)
        with self.source.open() as file:
            file.seek(self.start + offset)
            piece = file.read(n_bytes)
            self.source.check_stat(os.fstat(file.fileno()))
        if len(piece) < n_bytes:
            raise SourceChanged(f"{self.source.name}: ends at byte {self.start + len(piece)}")
        return piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is answered to a request."""

    status: int
    """Of HTTP."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Without the length, which is that of the body."""
    body: bytes | FilePart = b""
    """What follows; of HEAD requests only its length counts."""


def text_answer(status: int, text: str, *, headers: Mapping[str, str] | None = None) -> Answer:
    """Return a line of text, such as the reason of a refusal."""
    kind = {"Content-Type": "text/plain; charset=utf-8"}
    return Answer(status=status, headers={**kind, **(headers or {})}, body=f"{text}\n".encode())


def busy_answer() -> Answer:
    """Refuse for now, since too much is under way."""
    return text_answer(503, "the server is busy: try again", headers=_RETRY)


def unreadable_answer(error: OSError) -> Answer:
    """Return what is answered when a file cannot be read: another moment helps only sometimes.

    Examples
    --------
    >>> unreadable_answer(PermissionError()).status, unreadable_answer(TimeoutError()).status
    (403, 503)
    """
    if isinstance(error, SourceChanged):
        return text_answer(503, "the file changed just now", headers=_RETRY)
    denied = (error, error.__cause__)
    if any(isinstance(each, PermissionError) for each in denied):
        return text_answer(403, "the file cannot be read: the server may not open it")
    return text_answer(503, "the file cannot be read")


def checked_answer(request: Request, version: Version) -> Answer | None:
    """Return the answer when the conditions of a request decide it: 304 or 412; None otherwise."""
    status = choose_status(request.headers, version)
    return None if status == 200 else Answer(status=status, headers=version.headers)


def ranged_answer(
    request: Request, version: Version, body: bytes | FilePart, *, content_type: str
) -> Answer:
    """Return an object, or the range of it that a request asks for."""
    size = len(body)
    headers = {"Content-Type": content_type, "Accept-Ranges": "bytes", **version.headers}
    asked = request.headers.get("range")
    # Ranges are of GET alone (RFC 9110, 14.2).
    if request.method != "GET" or not version.suits_range(request.headers.get("if-range")):
        asked = None
    try:
        part = parse_range(asked, size)
    except IndexError as error:
        return text_answer(416, str(error), headers={"Content-Range": f"bytes */{size}"})
    if part is None:
        return Answer(status=200, headers=headers, body=body)
    start, stop = part
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    if isinstance(body, FilePart):
        first = body.start
        cut: bytes | FilePart = FilePart(source=body.source, start=first + start, stop=first + stop)
    else:
        cut = body[start:stop]
    return Answer(status=206, headers=headers, body=cut)


async def send_answer(
    answer: Answer,
    *,
    method: str,
    headers: Mapping[str, str],
    receive: Receive,
    send: Send,
    threads: Executor,
) -> None:
    """Send an answer through an ASGI server; of a file piece by piece, as fast as it is taken.

    A file that changes meanwhile ends the answer, and the connection with it, before its end.

    Parameters
    ----------
    answer
        What is sent.
    method
        Of the request.
    headers
        Sent with those of the answer.
    receive, send
        Of the ASGI server.
    threads
        Where files are read.
    """
    part = answer.body
    if method == "HEAD":
        await send(_start(answer, headers))
        await send(_piece(b""))
    elif isinstance(part, bytes):
        await send(_start(answer, headers))
        await send(_piece(part))
    else:
        try:
            first = await _read(part, 0, threads)
        except OSError as error:
            _log.warning("%s", error)
            refusal = unreadable_answer(error)
            await send_answer(
                refusal, method=method, headers=headers, receive=receive, send=send, threads=threads
            )
            return
        await send(_start(answer, headers))
        await _send_part(part, first, receive=receive, send=send, threads=threads)


async def _send_part(
    part: FilePart, piece: bytes, *, receive: Receive, send: Send, threads: Executor
) -> None:
    """Send a part of a file, of which the first piece is there, until nobody takes it."""
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        sent = len(piece)
        await send(_piece(piece, is_last=sent == len(part)))
        while sent < len(part) and not gone.done():
            piece = await _read(part, sent, threads)
            sent += len(piece)
            await send(_piece(piece, is_last=sent == len(part)))
    except OSError as error:
        # An answer that is left unfinished makes the server close the connection.
        _log.warning("%s; an answer was cut off", error)
    finally:
        gone.cancel()


async def _read(part: FilePart, offset: int, threads: Executor) -> bytes:
    """Read a piece in a thread."""
    return await asyncio.get_running_loop().run_in_executor(threads, part.read, offset)


async def _until_gone(receive: Receive) -> None:
    """Wait until the client is gone, or has all."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _piece(body: bytes, *, is_last: bool = True) -> dict[str, Any]:
    """Return a piece of a body as ASGI wants it."""
    return {"type": "http.response.body", "body": body, "more_body": not is_last}


def _start(answer: Answer, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the head of an answer as ASGI wants it."""
    every = {**answer.headers, **headers}
    if answer.status not in (204, 304):
        every["Content-Length"] = str(len(answer.body))
    encoded = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in every.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": encoded}
