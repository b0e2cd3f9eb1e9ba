"""Reading HTML in tests: a page is taken apart, and refused where it could do harm."""

from __future__ import annotations

import base64
from html.parser import HTMLParser

__all__ = ["Page", "parsed"]

_ALONE = {"br", "img"}
_TAGS = {"div", "span", "img", "br", "p", "code", "table", "caption", "thead", "tbody"}
_TAGS |= {"tr", "td", "th"}
_ATTRIBUTES = {"style", "src", "alt"}


class Page(HTMLParser):
    """Collects cells, texts and pictures; checks that tags nest, and which there are."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.texts: list[str] = []
        self.pictures: list[bytes] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _TAGS
        assert {name for name, _ in attrs} <= _ATTRIBUTES
        if tag == "img":
            head, _, data = (dict(attrs)["src"] or "").partition(",")
            assert head == "data:image/png;base64"
            self.pictures.append(base64.b64decode(data, validate=True))
        if tag in ("td", "th"):
            self.cells.append("")
        if tag not in _ALONE:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    @property
    def facts(self) -> dict[str, str]:
        """The cells of a table of names and values."""
        return dict(zip(self.cells[::2], self.cells[1::2], strict=True))


def parsed(html: str) -> Page:
    """Take a page apart."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page
