"""Execution of a notebook of the documentation, in a folder of its own."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbclient
import nbformat

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbformat import NotebookNode

__all__ = ["DOCS", "SMOKE", "execute", "notebook_paths", "read"]

DOCS = Path(__file__).parents[1] / "docs"
"""Where the notebooks are, in notebooks/, and the pictures, in images/."""

SMOKE: dict[str, dict[str, Any]] = {
    "training-patches": {"N_SUBJECTS": 3, "EXTENT": 48, "PATCH": 16, "N_STEPS": 12},
    "distributed-preprocessing": {"N_SUBJECTS": 2, "EXTENT": 48},
    "exploring-a-huge-volume": {"EXTENT": 384},
}
"""Per notebook, the parameters that make it small enough for a test."""

_LONGEST_CELL_SECONDS = 600


def notebook_paths(folder: Path = DOCS / "notebooks") -> list[Path]:
    """Return the notebooks of the documentation, in the order of `SMOKE`."""
    return [folder / f"{name}.ipynb" for name in SMOKE]


def read(path: Path) -> NotebookNode:
    """Read a notebook."""
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


def execute(
    notebook: NotebookNode, *, folder: Path, parameters: Mapping[str, Any] | None = None
) -> NotebookNode:
    """Run all cells in a new kernel and return the notebook with their outputs.

    Parameters
    ----------
    notebook
        It stays as it is.
    folder
        Working directory of the kernel; files of the notebook go there.
    parameters
        What is assigned after the cell tagged ``parameters``, in the kernel alone.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        When a cell fails; the message holds the traceback.
    """
    running = copy.deepcopy(notebook)
    if parameters:
        running.cells.insert(_parameter_cell(running) + 1, _assignments(parameters))
    client = nbclient.NotebookClient(
        running,
        timeout=_LONGEST_CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    # Without the start-up files and the history of whoever runs this.
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / ".ipython")})
    if parameters:
        del running.cells[_parameter_cell(running) + 1]
    return running


def _parameter_cell(notebook: NotebookNode) -> int:
    """Return the position of the cell that holds the parameters."""
    (found,) = (
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())
    )
    return found


def _assignments(parameters: Mapping[str, Any]) -> NotebookNode:
    """Return a cell that assigns the parameters."""
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    cell: NotebookNode = nbformat.v4.new_code_cell("\n".join(lines))
    return cell
