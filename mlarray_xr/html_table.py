"""Compact HTML tables for notebooks: everything escaped, no scripts, no style sheets."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["facts_table", "grid_table", "printable"]

_LEFT = "text-align:left;vertical-align:top"
_RIGHT = "text-align:right"
_SHOWN_CHARACTERS = 256


def facts_table(facts: Iterable[tuple[str, str]], *, title: str = "") -> str:
    """Return a table of names and values, as HTML.

    Parameters
    ----------
    facts
        Pairs of texts; those without a value are left out.
    title
        What stands above.

    Examples
    --------
    >>> facts_table([("dtype", "int16"), ("name", "<b>")])
    '<table ...<td style="...">&lt;b&gt;</td></tr></tbody></table>'
    """
    rows = "".join(
        f'<tr><th style="{_LEFT}">{printable(name)}</th>'
        f'<td style="{_LEFT}">{printable(value)}</td></tr>'
        for name, value in facts
        if value
    )
    return f"{_begin(title)}<tbody>{rows}</tbody></table>"


def grid_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, n_names: int = 1, title: str = ""
) -> str:
    """Return a table with headings, as HTML.

    Parameters
    ----------
    headings
        Of the columns.
    rows
        As many texts each.
    n_names
        How many of the first columns are names; the others are numbers.
    title
        What stands above.

    Examples
    --------
    >>> grid_table(("codec", "ratio"), [("zstd-1", "2.4")])
    '<table ...<thead>...<td style="text-align:right">2.4</td></tr></tbody></table>'
    """
    styles = [_LEFT if column < n_names else _RIGHT for column in range(len(headings))]
    head = _cells("th", headings, styles)
    body = "".join(f"<tr>{_cells('td', row, styles)}</tr>" for row in rows)
    return f"{_begin(title)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def printable(text: str) -> str:
    """Return text as HTML that shows it, cut at 256 characters, control characters as marks.

    Examples
    --------
    >>> printable("<script>" + chr(0))
    '&lt;script&gt;?'
    """
    shown = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return html.escape("".join(c if c.isprintable() else "?" for c in shown))


def _begin(title: str) -> str:
    """Return the beginning of a table; its text has the colour of the page, light or dark."""
    caption = f'<caption style="{_LEFT}">{printable(title)}</caption>' if title else ""
    return f'<table style="color:inherit">{caption}'


def _cells(tag: str, texts: Sequence[str], styles: Sequence[str]) -> str:
    """Return the cells of a row."""
    return "".join(
        f'<{tag} style="{style}">{printable(text)}</{tag}>'
        for text, style in zip(texts, styles, strict=True)
    )
