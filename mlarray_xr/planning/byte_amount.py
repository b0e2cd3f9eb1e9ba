"""Amounts of memory as people write them."""

from __future__ import annotations

__all__ = ["in_words", "parse_bytes"]

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def parse_bytes(amount: int | str) -> int:
    """Return a number of bytes from a number or a text such as ``"2 GB"`` or ``"512MiB"``.

    Raises
    ------
    ValueError
        When the text is neither, or the number is not positive.

    Examples
    --------
    >>> parse_bytes("1.5 GiB")
    1610612736
    """
    number, factor = amount, 1
    if isinstance(amount, str):
        text = amount.strip().lower()
        unit = next((u for u in sorted(_UNITS, key=len, reverse=True) if text.endswith(u)), "")
        number, factor = text.removesuffix(unit).strip(), _UNITS.get(unit, 1)
    try:
        n_bytes = int(float(number) * factor)
    except (TypeError, ValueError, OverflowError):
        n_bytes = 0
    if n_bytes < 1:
        msg = f"{amount!r} is no amount of memory: give bytes, or a text such as '2GB' or '512MiB'"
        raise ValueError(msg)
    return n_bytes


def in_words(n_bytes: int) -> str:
    """Return a number of bytes as people write it.

    Examples
    --------
    >>> in_words(1536), in_words(7)
    ('1.5 KiB', '7 B')
    """
    units = (
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    )
    unit, name = next((pair for pair in units if n_bytes >= pair[0]), (1, "B"))
    return f"{n_bytes / unit:.4g} {name}"
