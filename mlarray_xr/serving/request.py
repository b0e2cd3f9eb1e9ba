"""What is asked for over HTTP, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mlarray_xr.serving.url_path import segments_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Request"]

_PER_HEADER = len(": \r\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The head of a request.

    Examples
    --------
    >>> Request(method="GET", raw_path="/raw/a%20b.mla", headers={}).segments
    ('raw', 'a b.mla')
    """

    method: str
    """As it was sent."""
    raw_path: str
    """Path as it was sent, encoded, without the query."""
    headers: Mapping[str, str]
    """By their names in lower case; several of one name joined by commas."""

    n_bytes: int = 0
    """How long path and headers were, about."""

    @classmethod
    def of_scope(cls, scope: Mapping[str, Any]) -> Self:
        """Read the scope of an ASGI server."""
        values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        lengths = (len(name) + len(value) + _PER_HEADER for name, value in scope["headers"])
        return cls(
            method=scope["method"],
            raw_path=scope["raw_path"].decode("latin-1"),
            headers={name: ", ".join(each) for name, each in values.items()},
            n_bytes=len(scope["raw_path"]) + sum(lengths),
        )

    @property
    def segments(self) -> tuple[str, ...] | None:
        """Decoded segments of the path; None where one is no plain name."""
        return segments_of(self.raw_path)

    @property
    def has_body(self) -> bool:
        """Whether something follows the headers."""
        length = self.headers.get("content-length", "0").strip()
        return length != "0" or "transfer-encoding" in self.headers
