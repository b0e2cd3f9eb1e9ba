"""Pictures that only a browser can take: of HTML outputs, and of the viewer in JupyterLab."""

from __future__ import annotations

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from notebooks.outputs import HTML, PICTURE_SUFFIXES, tagged_cells
from tests.jupyterlab import run_jupyterlab, visit, write_notebook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbformat import NotebookNode
    from playwright.sync_api import FloatRect, Locator, Page

    from tests.jupyterlab import Visit

__all__ = ["LAB_TAG", "take_screenshots"]

LAB_TAG = "lab"
"""Of the cells that are run again in JupyterLab, up to the one that shows a widget."""

_DRAWN = "document.querySelector('.mla-viewer')?.dataset.drawn > 0"
_TOLD = "document.querySelector('.mla-readout').textContent !== ''"
_STILL_MS = 500
_MOST_SHOTS = 60


def take_screenshots(notebook: NotebookNode, *, folder: Path) -> dict[str, bytes]:
    """Take the pictures of tagged cells that are not among their outputs.

    Parameters
    ----------
    notebook
        After it was executed.
    folder
        Where it ran: what it wrote is there. JupyterLab runs the cells tagged ``lab`` once more.

    Returns
    -------
    dict
        PNG files by name: for ``picture:NAME`` the HTML output, for ``widget:NAME`` the widget,
        and as ``NAME_in_jupyterlab`` the window around it.
    """
    taken = {}
    for name, position in tagged_cells(notebook, "picture").items():
        kinds = [output.get("data", {}) for output in notebook.cells[position].outputs]
        for data in kinds:
            if HTML in data and not PICTURE_SUFFIXES.keys() & data.keys():
                taken[name] = _picture_of_html(data[HTML])
    widgets = tagged_cells(notebook, "widget")
    if widgets:
        (name,) = widgets  # one viewer per notebook
        taken |= _pictures_of_widget(notebook, name, folder)
    return taken


def _picture_of_html(text: str) -> bytes:
    """Return what a browser shows of an output."""
    with visit(width=900) as seen:
        seen.page.set_content(f'<div id="output" style="display: inline-block">{text}</div>')
        png = _shot_when_still(seen.page, seen.page.locator("#output").screenshot)
    _check_complaints(seen)
    return png


def _pictures_of_widget(notebook: NotebookNode, name: str, folder: Path) -> dict[str, bytes]:
    """Run the tagged cells in JupyterLab; return the last output, and the window."""
    cells = [
        cell.source
        for cell in notebook.cells
        if {LAB_TAG, f"widget:{name}"} & set(cell.metadata.get("tags", ()))
    ]
    with _lab_notebook(folder, cells) as seen:
        seen.page.evaluate("window.jupyterapp.commands.execute('application:toggle-left-area')")
        seen.page.wait_for_function(_DRAWN)
        seen.page.locator(".mla-viewer canvas").click()  # puts the crosshair in the middle
        seen.page.wait_for_function(_TOLD)
        output = seen.page.locator(".jp-OutputArea-output:has(.mla-viewer)")
        area, canvas = (_box(place) for place in (output, seen.page.locator(".mla-viewer canvas")))
        area["width"] = canvas["x"] + canvas["width"] - area["x"]
        shot = _shot_when_still(seen.page, partial(seen.page.screenshot, clip=area))
        seen.page.locator(".jp-Cell").last.evaluate("(cell) => cell.scrollIntoView()")
        window = _shot_when_still(seen.page, seen.page.screenshot)
    _check_complaints(seen)
    return {name: shot, f"{name}_in_jupyterlab": window}


@contextlib.contextmanager
def _lab_notebook(folder: Path, cells: list[str]) -> Iterator[Visit]:
    """Open a notebook of these cells in JupyterLab and run it; yield the page."""
    path = folder / "viewer.ipynb"
    write_notebook(path, cells)
    try:
        with (
            tempfile.TemporaryDirectory() as state,
            run_jupyterlab(folder, state=Path(state)) as (url, token),
            visit(width=1000, height=900) as seen,
        ):
            seen.open_notebook(url, token, path.name)
            yield seen
    finally:
        path.unlink()


def _box(place: Locator) -> FloatRect:
    """Return where something is on the page."""
    box = place.bounding_box()
    if box is None:
        raise RuntimeError(f"{place} is not to be seen")
    return box


def _shot_when_still(page: Page, shoot: Callable[[], bytes]) -> bytes:
    """Return a screenshot when two in a row are equal."""
    last = shoot()
    for _ in range(_MOST_SHOTS):
        page.wait_for_timeout(_STILL_MS)
        png = shoot()
        if png == last:
            return png
        last = png
    raise TimeoutError(f"the page still changes after {_MOST_SHOTS * _STILL_MS / 1000:g} s")


def _check_complaints(seen: Visit) -> None:
    """Refuse pictures of a page that something is wrong with."""
    if seen.complaints:
        raise RuntimeError(f"the browser complains: {seen.complaints}")
