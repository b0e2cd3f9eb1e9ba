"""The list of the files that are served, for people and for programs."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING

from mlarray_xr.serving.answer import Answer
from mlarray_xr.serving.url_path import url_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.serving.catalogue import ServedFile
    from mlarray_xr.serving.request import Request

__all__ = ["answer_index", "index_facts"]

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
    "<td><code>zarr3://{base}{zarr}</code></td></tr>"
)
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
    headers = {"Cache-Control": "no-store"}
    accepted = request.headers.get("accept", "")
    if "application/json" in accepted and "text/html" not in accepted:
        headers["Content-Type"] = "application/json"
        return Answer(status=200, headers=headers, body=json.dumps({"files": facts}).encode())
    base = escape(f"http://{request.headers.get('host', '')}")
    rows = (_ROW.format(base=base, **{k: escape(v) for k, v in row.items()}) for row in facts)
    count = "No .mla file is there yet." if not facts else f"{len(facts)} in all."
    headers |= {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
    }
    page = _PAGE.format(count=count, rows="\n".join(rows))
    return Answer(status=200, headers=headers, body=page.encode())
