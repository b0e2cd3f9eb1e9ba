"""Hook of mkdocs: notebooks of the documentation are pages, with the outputs that they hold.

A page is made from Markdown like all others, so that mkdocs checks its links and finds its
headings. Outputs are put in afterwards: they are HTML already. Nothing is executed.
"""

from __future__ import annotations

import base64
import html
import json
import re
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["markdown_of", "on_files", "on_page_content", "on_page_read_source"]

SUFFIX = ".ipynb"
PLACE = re.compile(r'<div class="notebook-output" data-cell="(\d+)"></div>')


class _NotebookFile(File):
    """A notebook that mkdocs takes for a page."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, /, *, config: MkDocsConfig) -> Files:
    """Make pages of the notebooks."""
    for found in list(files):
        if found.src_uri.endswith(SUFFIX):
            files.remove(found)
            files.append(
                _NotebookFile(
                    found.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls
                )
            )
    return files


def on_page_read_source(*, page: Page, config: MkDocsConfig) -> str | None:  # noqa: ARG001
    """Return the Markdown of a notebook; None leaves other pages to mkdocs."""
    if not page.file.src_uri.endswith(SUFFIX):
        return None
    return markdown_of(json.loads(page.file.content_string))


def on_page_content(content: str, /, *, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Put the outputs where the Markdown left room for them."""
    if not page.file.src_uri.endswith(SUFFIX):
        return content
    cells = json.loads(page.file.content_string)["cells"]

    def outputs_of(match: re.Match[str]) -> str:
        return "\n".join(_as_html(cells[int(match[1])]["outputs"]))

    return PLACE.sub(outputs_of, content)


def markdown_of(notebook: dict[str, Any]) -> str:
    """Return text and code of a notebook as Markdown, with a place for the outputs of each cell."""
    parts = []
    for position, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        if cell["outputs"]:
            parts.append(f'<div class="notebook-output" data-cell="{position}"></div>')
    return "\n\n".join(parts)


def _as_html(outputs: list[dict[str, Any]]) -> Iterator[str]:
    """Iterate over the outputs of a cell in HTML, each in its richest form."""
    for output in outputs:
        data = {"text/plain": output["text"]} if "text" in output else output["data"]
        for mime in ("text/html", "image/svg+xml", "image/png", "text/plain"):
            if mime in data:
                text = "".join(data[mime])
                break
        else:
            continue
        if mime == "text/plain":
            yield f"<pre><code>{html.escape(text)}</code></pre>"
        elif mime == "text/html":
            # Apart from the page, whose style sheet would go before that of the output.
            apart = text.replace(":root", ":host")
            yield f'<div><template shadowrootmode="open">{apart}</template></div>'
        else:
            content = text if mime == "image/png" else base64.b64encode(text.encode()).decode()
            yield f'<p><img alt="output of the cell" src="data:{mime};base64,{content}"></p>'
