"""Viewing in a real browser: a wheel is turned in JupyterLab until the slice is on the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.jupyterlab import run_jupyterlab, visit, why_not, write_notebook

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["scroll_in_browser", "why_not_here"]

# Each turn waits until the plane that answers it has been drawn.
_SCROLL = """
async (turns) => {
  const root = document.querySelector(".mla-viewer");
  const canvas = root.querySelector("canvas");
  const taken = [];
  for (let turn = 0; turn < turns; turn++) {
    const before = root.dataset.drawn;
    const begin = performance.now();
    canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100, cancelable: true }));
    while (root.dataset.drawn === before) await new Promise(requestAnimationFrame);
    taken.push(performance.now() - begin);
  }
  return taken;
}
"""


def why_not_here() -> str | None:
    """Return why there is no browser to scroll in, None when there is one."""
    return why_not("jupyterlab")


def scroll_in_browser(path: Path, *, n_slices: int, folder: Path) -> list[float]:
    """Return the seconds of each turn of a wheel in a notebook that shows a file."""
    state = folder / "state"
    state.mkdir(parents=True)
    code = (
        "from mlarray_xr import open_mla\nfrom mlarray_xr.explore.view import view\n"
        f"view(open_mla({str(path)!r}), window=(0, 700))"
    )
    write_notebook(folder / "scroll.ipynb", [code])
    with run_jupyterlab(folder, state=state) as (url, token), visit() as seen:
        seen.open_notebook(url, token, "scroll.ipynb")
        seen.page.wait_for_selector(".mla-viewer[data-drawn]")
        taken = seen.page.evaluate(_SCROLL, n_slices)
        if seen.complaints:
            raise RuntimeError(str(seen.complaints))
    return [milliseconds / 1e3 for milliseconds in taken]
