"""The notebooks run, in small; those that are committed were run, in full, and tell no secrets."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from notebooks.outputs import machine_traces, pictures, tagged_cells, tidy
from notebooks.run import DOCS, SMOKE, notebook_paths, read
from tests.package_source import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMITTED = notebook_paths()
GALLERY = DOCS / "gallery.md"
MOST_BYTES = 400_000


def code_cells(notebook: Any) -> Iterator[Any]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def kinds(notebook: Any) -> list[tuple[str, set[str]]]:
    """Return for every code cell its source, and of which kinds its outputs are."""
    return [
        (
            cell.source,
            {
                kind
                for output in cell.outputs
                for kind in output.get("data", {output.get("name", output.output_type): None})
            },
        )
        for cell in code_cells(notebook)
        # A picture of a widget is taken by a browser.
        if not any(tag.startswith("widget:") for tag in cell.metadata.get("tags", ()))
    ]


@pytest.mark.parametrize("name", SMOKE)
def test_a_notebook_runs_in_small_and_shows_what_the_committed_one_shows(
    name: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "notebooks", "--smoke", "--no-screenshots", "--only", name]
    done = subprocess.run(
        [*command, "--into", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    in_small = read(tmp_path / "notebooks" / f"{name}.ipynb")
    in_full = read(DOCS / "notebooks" / f"{name}.ipynb")
    assert kinds(in_small) == kinds(in_full)
    assert [cell.source for cell in in_small.cells] == [cell.source for cell in in_full.cells]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert len(outputs) > len(counts) / 2
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_is_small_and_tells_nothing_of_the_machine(path: Path) -> None:
    assert path.stat().st_size < MOST_BYTES
    assert not machine_traces(read(path))
    assert "widget-view" not in path.read_text(encoding="utf-8")


def test_traces_of_the_machine_are_found(tmp_path: Path) -> None:
    from nbformat import v4

    def notebook(text: str) -> Any:
        shown = v4.new_output("stream", name="stdout", text=text)
        return v4.new_notebook(cells=[v4.new_code_cell("print(it)", outputs=[shown])])

    for text in ("/tmp/xyz/a.mla", "<Thing at 0x7f00>", 'File "/usr/lib/python3/x.py"'):
        assert machine_traces(notebook(text)), text
    assert not machine_traces(notebook("study/a.mla, 4 MB/s, https://example.org/tmp/x"))
    inside = tidy(notebook(f"{tmp_path}/study/a.mla"), folder=tmp_path, screenshots={})
    assert inside.cells[0].outputs[0].text == "study/a.mla"


def test_the_pictures_come_from_the_notebooks() -> None:
    shown = {name: content for path in COMMITTED for name, content in pictures(read(path))}
    assert len(shown) > 5
    for name, content in shown.items():
        assert (DOCS / "images" / name).read_bytes() == content, name


def test_every_picture_of_a_notebook_is_in_the_gallery() -> None:
    page = GALLERY.read_text(encoding="utf-8")
    entries = re.findall(r"^!\[(.+)\]\(images/([\w.]+)\)\n\n(.+)$", page, re.MULTILINE)
    assert len(entries) == page.count("![")
    named = {
        name
        for path in COMMITTED
        for kind in ("picture", "widget")
        for name in tagged_cells(read(path), kind)
    }
    assert named <= {file_name.partition(".")[0] for _, file_name, _ in entries}
    for _, file_name, caption in entries:
        assert (DOCS / "images" / file_name).is_file()
        assert caption.endswith(".")


def test_a_notebook_is_a_page_of_markdown_with_room_for_outputs() -> None:
    pytest.importorskip("mkdocs")
    from notebooks.pages import markdown_of

    notebook = {
        "cells": [
            {"cell_type": "markdown", "source": ["# Title\n", "[there](there.md)"]},
            {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": "2"}}]},
            {"cell_type": "code", "source": "pass", "outputs": []},
        ]
    }
    assert markdown_of(notebook) == (
        "# Title\n[there](there.md)\n\n"
        "```python\n1 + 1\n```\n\n"
        '<div class="notebook-output" data-cell="1"></div>\n\n'
        "```python\npass\n```"
    )
