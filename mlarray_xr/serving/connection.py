"""Connections that nobody can hold for ever: time limits that uvicorn does not have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.h11_impl import H11Protocol as _Protocol
else:
    _Protocol = object  # uvicorn is imported when a server is started

__all__ = ["BoundedConnection", "Limits", "bounded_protocol"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client, and all of them together, may take."""

    n_requests: int = 256
    """Requests that are answered at one time, 503 beyond, and half of the connections: more are
    closed at once."""
    head_bytes: int = 16 << 10
    """Of the first line and the headers of a request."""
    first_wait_s: float = 10.0
    """How long a connection may wait for its first complete request, seconds."""
    wait_s: float = 60.0
    """How long it may wait for the next one, seconds."""
    stall_s: float = 60.0
    """How long a client may take for what the server has in memory for it, seconds: a piece of a
    file of 256 KiB, or a chunk."""
    finish_s: int = 2
    """How long answers under way may go on when the server ends, seconds."""


class BoundedConnection(_Protocol):
    """What is added to uvicorn's protocol: a connection is dropped when its client dawdles.

    uvicorn has a time limit between requests only: a client that sends a byte of a header now and
    then, or takes nothing of an answer, would keep its connection.
    """

    limits: Limits
    """Set by `bounded_protocol`."""
    _waiting: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; drop connections that are far too many."""
        super().connection_made(transport)
        if len(self.connections) > 2 * self.limits.n_requests:
            transport.abort()
        self._wait(self.limits.first_wait_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop(self._waiting)
        self._stop(self._stalled)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or for the end of a connection that is closing."""
        self._wait(self.limits.wait_s)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Begin to wait for the client to take what is there."""
        super().pause_writing()
        self._stop(self._stalled)
        self._stalled = self.loop.call_later(self.limits.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop waiting."""
        super().resume_writing()
        self._stop(self._stalled)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; in the middle of an answer there is no place for another one."""
        if self._is_answering():
            self.transport.abort()
        else:
            super().send_400_response(msg)

    def _is_answering(self) -> bool:
        """Tell whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self, wait_s: float) -> None:
        """Give the client time for its next request."""
        self._stop(self._waiting)
        self._waiting = self.loop.call_later(wait_s, self._give_up)

    def _give_up(self) -> None:
        """Drop a connection on which nothing is being answered; what was not taken is lost."""
        if not self._is_answering():
            self.transport.abort()

    def _stop(self, timer: asyncio.TimerHandle | None) -> None:
        """Stop a timer."""
        if timer is not None:
            timer.cancel()


def bounded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP/1.1 protocol with limits on how long a client may dawdle."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    return type("BoundedProtocol", (BoundedConnection, H11Protocol), {"limits": limits})
