"""The plot of the layouts: how many times as fast ours is, case by case."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.report import Table

__all__ = ["draw_layouts"]

_INCHES_PER_CASE = 0.19
_BAR, _LINE = "#3f51b5", "#e65100"


def draw_layouts(times: Table, path: Path) -> None:
    """Draw the ratios of the table of times as bars, and write them as SVG.

    Parameters
    ----------
    times
        Its rows come in pairs: ours, and the best of the others with the ratio.
    path
        Where the picture goes.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    best = [row for row in times.rows if row.ratio is not None]
    best.sort(key=lambda row: row.ratio or 0)
    with mpl.rc_context({"svg.hashsalt": "layouts", "font.size": 8, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(9, 1 + _INCHES_PER_CASE * len(best)))
        axes.barh(
            [f"{row.case}  ({row.contender})" for row in best],
            [row.ratio or 0 for row in best],
            color=_BAR,
        )
        axes.axvline(1, color=_LINE)
        axes.set_xlabel("times as fast as the best of the others, named in parentheses")
        axes.margins(y=0.01)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        path.parent.mkdir(exist_ok=True)
        # Without a date the same numbers give the same file.
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
