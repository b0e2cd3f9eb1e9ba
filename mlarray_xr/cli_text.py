"""What the command line prints: text that no terminal takes for a command, and JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import TextIO

    from mlarray_xr.report import WriteReport

__all__ = ["Outcome", "line_of", "report_facts", "show", "to_json"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command has to say when it is done."""

    text: str
    """For stdout; nothing is printed when it is empty."""
    failures: tuple[str, ...] = ()
    """What went wrong with one of many things, a line each for stderr; any is exit code 1."""


def show(text: str, stream: TextIO) -> None:
    r"""Print with what the terminal's encoding has, and nothing that it takes for a command.

    Examples
    --------
    >>> import sys
    >>> show("a\x1b[2Jb", sys.stdout)
    a\x1b[2Jb
    """
    encoding = getattr(stream, "encoding", None) or "ascii"
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def line_of(error: Exception | str) -> str:
    r"""Return what an error says as one line.

    Examples
    --------
    >>> line_of(ValueError("damaged:\n  twice"))
    'damaged:   twice'
    """
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return "".join(c if c.isprintable() else " " for c in text)


def to_json(facts: dict[str, Any], *, indent: int | None = None) -> str:
    """Return JSON that every parser reads: ASCII, and null for what is not finite.

    Examples
    --------
    >>> to_json({"ratio": float("nan")})
    '{"ratio": null}'
    """
    return json.dumps(_finite(facts), indent=indent, allow_nan=False)


def report_facts(report: WriteReport) -> dict[str, Any]:
    """Return the report of a write as plain values."""
    facts = dataclasses.asdict(report)
    layout = facts.pop("layout")
    facts["choice"] = None if report.choice is None else str(report.choice)
    return {**facts, **layout, "codec": str(report.codec), "ratio": report.ratio}


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
