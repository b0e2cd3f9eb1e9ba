"""Conditional requests of HTTP: whether what a client has, or expects, is still so."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Version", "choose_status"]

_TAG = re.compile(r'(?:W/)?"[^"]*"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Which state of an object is there now."""

    etag: str
    """Strong entity tag, with its quotes."""
    modified_s: int | None = None
    """Seconds since 1970 of the last change; None where there is no such time."""

    @property
    def headers(self) -> dict[str, str]:
        """What every answer about the object says; a copy may be kept but has to be checked."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if self.modified_s is not None:
            headers["Last-Modified"] = formatdate(self.modified_s, usegmt=True)
        return headers

    def suits_range(self, condition: str | None) -> bool:
        """Tell whether the Range of a request with this If-Range header counts (RFC 9110, 13.1.5).

        A time is a weak validator here, since a file may change twice in a second: only the tag
        counts.
        """
        return condition is None or condition.strip() == self.etag


def choose_status(headers: Mapping[str, str], version: Version) -> Literal[200, 304, 412]:
    """Return the status that the conditions of a GET or HEAD request lead to.

    In the order of RFC 9110, 13.2.2; conditions that cannot be read are left out of account.

    Parameters
    ----------
    headers
        Of the request, names in lower case.
    version
        What is there.

    Examples
    --------
    >>> now = Version(etag='"b"')
    >>> choose_status({"if-none-match": '"b"'}, now), choose_status({"if-match": '"a"'}, now)
    (304, 412)
    """
    if "if-match" in headers:
        # A weak tag never satisfies If-Match.
        if not _names(headers["if-match"], (version.etag,)):
            return 412
    elif _is_older(version, headers.get("if-unmodified-since")) is False:
        return 412
    if "if-none-match" in headers:
        tags = (version.etag, f"W/{version.etag}")
        return 304 if _names(headers["if-none-match"], tags) else 200
    return 304 if _is_older(version, headers.get("if-modified-since")) else 200


def _names(text: str, tags: tuple[str, ...]) -> bool:
    """Tell whether a list of tags has one of some."""
    return text.strip() == "*" or any(tag in tags for tag in _TAG.findall(text))


def _is_older(version: Version, text: str | None) -> bool | None:
    """Tell whether the object is no younger than a time; None when that cannot be said."""
    if text is None or version.modified_s is None:
        return None
    try:
        time = parsedate_to_datetime(text)
        if time.tzinfo is None:
            time = time.replace(tzinfo=datetime.UTC)
        return version.modified_s <= time.timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
