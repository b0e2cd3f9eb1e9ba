"""What is asked for over HTTP, as a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mlarray_xr.serving.url_path import segments_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Request"]

_PER_HEADER = len(": \r\n")
_GROUPS = "/zarr/"
# How clients write a target that they would send a proxy (RFC 9112, 3.2.2).
_ABSOLUTE = re.compile(r"http://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)


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
        """Read the scope of an ASGI server; of an absolute target its own host counts."""
        values: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        lengths = (len(name) + len(value) + _PER_HEADER for name, value in scope["headers"])
        headers = {name: ", ".join(each) for name, each in values.items()}
        raw_path = scope["raw_path"].decode("latin-1")
        if (absolute := _ABSOLUTE.fullmatch(raw_path)) is not None:
            headers["host"], raw_path = absolute.group(1), absolute.group(2) or "/"
        return cls(
            method=scope["method"],
            raw_path=raw_path,
            headers=headers,
            n_bytes=len(scope["raw_path"]) + sum(lengths),
        )

    @property
    def segments(self) -> tuple[str, ...] | None:
        """Decoded segments of the path; None where one is no plain name.

        A group of Zarr may be written as a folder, with a slash at its end.
        """
        is_group = self.raw_path.startswith(_GROUPS)
        return segments_of(self.raw_path.removesuffix("/") if is_group else self.raw_path)

    @property
    def has_body(self) -> bool:
        """Whether something follows the headers."""
        length = self.headers.get("content-length", "0").strip()
        return length != "0" or "transfer-encoding" in self.headers
