"""Failures of requests in words: what was asked, what came back, what to do; without secrets."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from mlarray_xr.errors import SourceChanged, SourceDenied, SourceError
from mlarray_xr.storage.retry import RetryLater

if TYPE_CHECKING:
    from mlarray_xr.storage.piece import Piece

__all__ = ["Asked", "is_validator"]

# RFC 9110, section 15, and RFC 6585: what may pass by itself.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
# What object stores answer, with status 400, to credentials that are out of date.
STALE_CREDENTIALS = frozenset({"ExpiredToken", "InvalidToken", "TokenRefreshRequired"})
URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*://)(?:[^\s/@\"'<>]*@)?([^\s?\"'<>]*)(?:\?[^\s\"'<>]*)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request, as its failure names it. Methods make errors; `checked` raises them."""

    name: str
    """The URL without secrets."""
    what: str
    """Such as ``bytes 0 to 100``."""
    etag: str | None = None
    """Validator that the object was opened with."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts that no message may show."""

    @property
    def text(self) -> str:
        """How every message begins."""
        return f"{self.name}: {self.what} were asked for"

    def missing(self, code: str = "") -> FileNotFoundError:
        """Return what says that there is no such object."""
        found = f"No such object ({code})" if code else "No such object"
        return FileNotFoundError(errno.ENOENT, found, self.name)

    def denied(self, found: str) -> SourceDenied:
        """Return what says that the server wants other credentials."""
        return SourceDenied(
            f"{self.text}, access was denied ({found}). To fix: give credentials in "
            "storage_options, or anon=True for public data; some stores also say so of objects "
            "that are missing"
        )

    def changed(self, found: str) -> SourceChanged:
        """Return what says that the object is not the one that was opened."""
        return SourceChanged(
            f"{self.text} of the object that was opened, {found}. It was replaced or truncated "
            "meanwhile. To fix: open it again"
        )

    def no_ranges(self) -> SourceError:
        """Return what says that the server has only whole objects to give."""
        return SourceError(
            f"{self.text}, the server has no Range support and began to send the whole object. "
            "To fix: download the file, or serve it by a server with byte ranges"
        )

    def too_long(self) -> SourceError:
        """Return what says that more came than was asked for."""
        return SourceError(
            f"{self.text}, the server sent more. To fix: serve the file by a server with byte "
            "ranges as in RFC 9110"
        )

    def cut(self, n_found: int) -> RetryLater:
        """Return what says that the body ended early."""
        return RetryLater(f"{self.text}, the answer was cut after {n_found} bytes")

    def unreachable(self, found: str) -> RetryLater:
        """Return what says that the connection could not be made, or broke."""
        return RetryLater(f"{self.text}, {self.shown(found)}")

    def late(self, timeout_s: float) -> RetryLater:
        """Return what says that no answer came in time."""
        return RetryLater(f"{self.text}, no answer came in {timeout_s:g} s", timed_out=True)

    def other(self, found: str) -> SourceError:
        """Return what says it in the client's own words."""
        return SourceError(
            f"{self.text}: {self.shown(found)}. To fix: check the URL and storage_options"
        )

    def status(
        self, status: int, *, code: str = "", retry_after_s: float | None = None
    ) -> SourceError | FileNotFoundError:
        """Return what an HTTP status means; `code` is the name that an object store gives it."""
        names = {known.value: known.phrase for known in HTTPStatus}
        found = " ".join(part for part in (str(status), names.get(status, ""), code) if part)
        if status in (404, 410):
            return self.missing(code)
        if status in (401, 403) or code in STALE_CREDENTIALS:
            return self.denied(found)
        if status == HTTPStatus.PRECONDITION_FAILED:
            return self.changed("but its validator is another one (status 412)")
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self.etag is not None:
            return self.changed("but it ends before them (status 416)")
        if status in PASSING:
            text = f"{self.text}, the server answered {found}"
            return RetryLater(text, retry_after_s=retry_after_s)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return SourceError(f"{self.text}, the object ends before them. To fix: check the file")
        return self.other(f"the server answered {found}")

    def checked(self, piece: Piece, start: int, stop: int) -> Piece:
        """Return the answer when it is what was asked for, of the object that was opened.

        Raises
        ------
        SourceChanged
            When another version answered, or a pinned object is too short.
        SourceError
            When the answer has other bytes; a `RetryLater` when it has too few.
        """
        if is_validator(self.etag) and is_validator(piece.etag) and piece.etag != self.etag:
            raise self.changed(f"its validator was {self.etag} and is {piece.etag}")
        found = piece.start + len(piece.data)
        if found > stop:
            raise self.too_long()
        if piece.start != start:
            raise self.unreachable(f"the server sent bytes {piece.start} to {found}")
        if found < stop and piece.size is not None and piece.size <= start:
            raise self.status(416)
        if found < stop and found != piece.size:
            raise self.cut(len(piece.data))
        if found < stop and self.etag is not None:
            raise self.changed(f"but it ends at byte {piece.size}")
        return piece

    def shown(self, text: str) -> str:
        """Take queries, users and secrets out of a text of somebody else, and cut it short."""
        plain = URL.sub(r"\1\2", text)
        for secret in self.secrets:
            plain = plain.replace(secret, "***")
        return " ".join(plain.split())[:300]


def is_validator(etag: str | None) -> bool:
    """Tell whether a validator tells one version from another: ``*`` matches every one."""
    return etag is not None and etag.strip() not in ("", "*")
