"""What a transport answers: one piece of an object; and what every transport can be asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Piece", "Transport", "dated_validator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The answer to one request."""

    data: bytes
    """The bytes asked for, never more; a copy of their own, which pins no larger buffer."""
    start: int
    """Where they begin in the object."""
    size: int | None
    """Bytes of the whole object, where the answer says so."""
    etag: str | None
    """Validator of the object, where the answer says so; weak ones keep their prefix ``W/``."""
    n_requests: int = 1
    """Requests that it took."""


def dated_validator(changed_s: float) -> str | None:
    """Return a weak validator made of the time of change, Unix seconds; None of the epoch itself.

    Clients give the epoch where a server tells no time. A second is what HTTP tells.

    Examples
    --------
    >>> dated_validator(1_700_000_000.25), dated_validator(0)
    ('W/"changed 1700000000"', None)
    """
    return f'W/"changed {int(changed_s)}"' if changed_s > 0 else None


class Transport(Protocol):
    """Reads byte ranges of one object; one of them serves many threads at a time."""

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        """Return the bytes of ``start <= position < stop``, with one request and no retry.

        Bytes past the end of the object are left out, when the answer tells where the end is.
        With `etag` the object is pinned: another validator, or a missing byte, is
        `SourceChanged`.
        """

    def fetch_tail(self, n_bytes: int) -> Piece:
        """Return the last bytes of the object, or all of a smaller one."""
