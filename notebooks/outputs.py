"""Outputs as they are committed: no trace of the machine, and a picture for what needs a kernel."""

from __future__ import annotations

import base64
import json
import re
import socket
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from nbformat import NotebookNode

__all__ = ["HTML", "PICTURE_SUFFIXES", "machine_traces", "pictures", "tagged_cells", "tidy"]

HTML = "text/html"
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURE_SUFFIXES = {"image/svg+xml": ".svg", "image/png": ".png"}

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in a repr
_TRACE = re.compile(
    r"(?<![\w.:/])/(?:tmp|root|home|Users|work|var|opt|usr)/[\w./-]*"  # paths
    rf"|{_ADDRESS.pattern}"
    rf"|\b{re.escape(socket.gethostname())}\b"
)


def tagged_cells(notebook: NotebookNode, kind: str) -> dict[str, int]:
    """Return the positions of the cells with a tag such as ``picture:NAME``, by this name."""
    return {
        tag.removeprefix(f"{kind}:"): position
        for position, cell in enumerate(notebook.cells)
        for tag in cell.metadata.get("tags", ())
        if tag.startswith(f"{kind}:")
    }


def tidy(notebook: NotebookNode, *, folder: Path, screenshots: Mapping[str, bytes]) -> NotebookNode:
    """Make an executed notebook fit to be committed; changes and returns it.

    Parameters
    ----------
    notebook
        After `execute`.
    folder
        Where it ran; its name is removed from the outputs, which leaves relative paths.
    screenshots
        PNG files of the cells tagged ``widget:NAME``, by name, shown instead of the widget.
        Widgets without one, such as progress bars, leave nothing behind.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    widgets = {position: name for name, position in tagged_cells(notebook, "widget").items()}
    code_cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    for count, cell in enumerate(code_cells, start=1):
        cell.execution_count = count
    for position, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags"})
        if cell.cell_type != "code":
            continue
        kept = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        picture = screenshots.get(widgets.get(position, ""))
        if picture is not None:
            kept.append(_picture_output(picture))
        cell.outputs = [_impersonal(output, folder) for output in _joined(kept)]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
    return notebook


def machine_traces(notebook: NotebookNode) -> list[str]:
    """Return what in the outputs tells where they were made: paths, names, addresses."""
    return [
        found
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for found in _TRACE.findall(json.dumps(_texts(output)))
    ]


def pictures(notebook: NotebookNode) -> Iterator[tuple[str, bytes]]:
    """Iterate over the pictures among the outputs of tagged cells: file name and content."""
    for kind in ("picture", "widget"):
        for name, position in tagged_cells(notebook, kind).items():
            for output in notebook.cells[position].outputs:
                for mime, suffix in PICTURE_SUFFIXES.items():
                    if mime in output.get("data", {}):
                        yield f"{name}{suffix}", _decoded(output.data[mime], mime)


def _picture_output(png: bytes) -> NotebookNode:
    """Return an output that shows a picture."""
    data = {"image/png": base64.b64encode(png).decode(), "text/plain": ["<the viewer>"]}
    output: NotebookNode = nbformat.v4.new_output("display_data", data=data)
    return output


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join the pieces in which a stream arrived: how many they are is chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        stream = output.get("name")  # other outputs have none
        if joined and stream is not None and stream == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _impersonal(output: NotebookNode, folder: Path) -> NotebookNode:
    """Return an output whose texts name files relative to the folder, and no addresses."""
    plain = _ADDRESS.sub("", json.dumps(output))
    for name in {str(folder), str(folder.resolve())}:
        plain = plain.replace(f"{name}/", "").replace(name, ".")
    impersonal: NotebookNode = nbformat.from_dict(json.loads(plain))
    return impersonal


def _texts(output: NotebookNode) -> list[object]:
    """Return the texts of an output; those of pictures are numbers."""
    data = output.get("data", {})
    return [output.get("text", ""), *(data[mime] for mime in data if not mime.endswith("/png"))]


def _decoded(value: str, mime: str) -> bytes:
    """Return the content of a picture that a notebook holds as text."""
    return base64.b64decode(value) if mime == "image/png" else value.encode()
