"""The Range header of HTTP: which bytes of an object are asked for."""

from __future__ import annotations

import re

__all__ = ["parse_range"]

_ONE_RANGE = re.compile(r"([0-9]*)\s*-\s*([0-9]*)")
_MOST_DIGITS = 18
_BEYOND = 10**_MOST_DIGITS


def parse_range(text: str | None, size: int) -> tuple[int, int] | None:
    """Return start and stop of the bytes that a Range header asks for.

    Several ranges, and units other than bytes, are left out of account, which RFC 9110 (14.2)
    allows: the whole object is the answer. Many small ranges would cost more than they fetch.

    Parameters
    ----------
    text
        The header; None without one.
    size
        Bytes of the object.

    Returns
    -------
    tuple of int or None
        Inside the object, never empty; None for the whole object.

    Raises
    ------
    IndexError
        When no byte of the object is asked for, or the range makes no sense: 416 is the answer.

    Examples
    --------
    >>> parse_range("bytes=2-3", 10), parse_range("bytes=8-", 10), parse_range("bytes=-3", 10)
    ((2, 4), (8, 10), (7, 10))
    >>> parse_range("bytes=0-1,4-5", 10) is None
    True
    """
    unit, _, numbers = (text or "").partition("=")
    if unit.strip().lower() != "bytes" or "," in numbers:
        return None
    found = _ONE_RANGE.fullmatch(numbers.strip())
    if found is None or found.group(0) == "-" or not any(found.groups()):
        raise IndexError(f"{text!r:.80} is no range of bytes")
    first, last = (None if not each else _number(each) for each in found.groups())
    if first is None:
        start, stop = max(0, size - (last or 0)), size
    elif last is not None and last < first:
        raise IndexError(f"{text!r:.80} ends before it begins")
    else:
        start, stop = first, size if last is None else min(last + 1, size)
    if start >= stop:
        raise IndexError(f"{text!r:.80} holds none of {size} bytes")
    return start, stop


def _number(digits: str) -> int:
    """Read a number; of one that no object is as long as, a large one."""
    return int(digits) if len(digits) <= _MOST_DIGITS else _BEYOND
