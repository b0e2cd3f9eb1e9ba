"""The list of the files that are served, for people and for programs."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from mlarray_xr.serving.answer import Answer, text_answer
from mlarray_xr.serving.url_path import url_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.serving.catalogue import ServedFile
    from mlarray_xr.serving.request import Request

__all__ = ["answer_group", "answer_index", "index_facts"]

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>mla serve</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem; color: #222; background: #fff; }}
td, th {{ padding: 0.2rem 1rem 0.2rem 0; text-align: left; }}
code {{ user-select: all; }}
</style>
</head>
<body>
<h1>Files</h1>
<p>{count}</p>
<table>
<thead><tr><th>File</th><th>Zarr</th><th>Source for neuroglancer</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</body>
</html>
"""
_ROW = (
    '<tr><td><a href="{raw}">{name}</a></td><td><a href="{zarr}zarr.json">{zarr}</a></td>'
    "<td><code>{base}{zarr}|zarr3:</code></td></tr>"
)
_GROUP = """\
<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{name}</title></head>
<body>
<p>{name} is a Zarr 3 group: programs begin to read it at <a href="{zarr}zarr.json">zarr.json</a>.
</p>
<p>Source for neuroglancer: <code>{base}{zarr}|zarr3:</code></p>
</body>
</html>
"""
# Nothing is loaded or run, and no page shows this one as a part of itself.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


def index_facts(files: Sequence[ServedFile]) -> list[dict[str, str]]:
    """Return names and the paths of the addresses of files.

    Examples
    --------
    >>> from mlarray_xr.serving.catalogue import ServedFile
    >>> index_facts([ServedFile(name="a b.mla", path="/data/a b.mla", folder="/data")])
    [{'name': 'a b.mla', 'raw': '/raw/a%20b.mla', 'zarr': '/zarr/a%20b.mla/'}]
    """
    paths = {file.name: url_path(file.name) for file in files}
    return [
        {"name": name, "raw": f"/raw/{path}", "zarr": f"/zarr/{path}/"}
        for name, path in paths.items()
    ]


def answer_index(request: Request, files: Sequence[ServedFile]) -> Answer:
    """Answer with a page, or with JSON to those who accept it and no page."""
    facts = index_facts(files)
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/html" not in accepted:
        headers = {"Cache-Control": "no-store", "Content-Type": "application/json"}
        return Answer(status=200, headers=headers, body=json.dumps({"files": facts}).encode())
    rows = (
        _ROW.format(base=_base(request), **{k: escape(v) for k, v in row.items()}) for row in facts
    )
    count = "No .mla file is there yet." if not facts else f"{len(facts)} in all."
    return _page(_PAGE.format(count=count, rows="\n".join(rows)))


def answer_group(request: Request, file: ServedFile) -> Answer:
    """Answer who asks for a file as Zarr, and for no key of it: people, with a page.

    Programs get what they get of stores of objects, in which a group itself is nothing.
    """
    if "text/html" not in request.headers.get("accept", ""):
        return text_answer(404, "this is a Zarr 3 group: programs begin to read it at zarr.json")
    (facts,) = index_facts([file])
    texts = {name: escape(text) for name, text in facts.items()}
    return _page(_GROUP.format(base=_base(request), **texts))


def _base(request: Request) -> str:
    """Return the beginning of the addresses here, as the client writes it, as markup."""
    return escape(f"http://{request.headers.get('host', '')}")


def _page(markup: str) -> Answer:
    """Return a page."""
    headers = {
        "Cache-Control": "no-store",
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
    }
    return Answer(status=200, headers=headers, body=markup.encode())
