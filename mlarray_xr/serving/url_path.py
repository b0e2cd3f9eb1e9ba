"""Names of files as paths of URLs: what comes from outside is split before it is decoded."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote, unquote_to_bytes

__all__ = ["is_servable_name", "segments_of", "url_path"]

_REFUSED = ("", ".", "..")
_UNFIT = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Categories of characters that break lines, hide, turn the direction, or are none."""
_MOST_SEGMENTS = 64
_MOST_NAME_SEGMENTS = 48
"""Leaves room for the key of a chunk behind the name."""


def segments_of(raw_path: str) -> tuple[str, ...] | None:
    """Return the decoded segments of the path of a URL; None where one could be no plain name.

    Decoding comes after splitting: what was encoded cannot become a separator.

    Parameters
    ----------
    raw_path
        As it was sent, without the query.

    Examples
    --------
    >>> segments_of("/raw/a%20folder/ct.mla")
    ('raw', 'a folder', 'ct.mla')
    >>> segments_of("/raw/%2e%2e/secret") is segments_of("/raw/..%2fsecret") is None
    True
    """
    if raw_path.count("/") > _MOST_SEGMENTS:
        return None
    try:
        segments = [
            unquote_to_bytes(segment).decode("utf-8")
            for segment in raw_path.removeprefix("/").split("/")
        ]
    except UnicodeError:
        return None
    return tuple(segments) if all(map(_is_plain, segments)) else None


def is_servable_name(name: str) -> bool:
    r"""Tell whether a file can be asked for under a name: the way back of `url_path` exists.

    Examples
    --------
    >>> is_servable_name("folder/ct.mla"), is_servable_name("folder/..")
    (True, False)
    >>> is_servable_name("a\nb.mla")
    False
    """
    segments = name.split("/")
    return len(segments) <= _MOST_NAME_SEGMENTS and all(map(_is_plain, segments))


def url_path(name: str) -> str:
    """Return a name with everything encoded that has a meaning in URLs, but its slashes.

    Examples
    --------
    >>> url_path("a folder/100%.mla")
    'a%20folder/100%25.mla'
    """
    return quote(name, safe="/")


def _is_plain(segment: str) -> bool:
    """Tell whether a segment is a name on every system, and fit to be shown."""
    has_separator = "/" in segment or "\\" in segment
    is_fit = all(unicodedata.category(letter) not in _UNFIT for letter in segment)
    return segment not in _REFUSED and not has_separator and is_fit
