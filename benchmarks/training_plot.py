"""The plot of the training benchmark: patches per second of every loader."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.training import MINE, RATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.report import Row, Table

__all__ = ["draw_training", "is_rates"]

_INCHES_PER_LOADER = 0.5
_COLOURS = ("#9fa8da", "#5c6bc0", "#1a237e")
_OTHER_COLOURS = ("#ffcc80", "#fb8c00", "#bf360c")


def is_rates(table: Table) -> bool:
    """Tell whether a table is one of those that are drawn."""
    return table.title.startswith(RATES.partition("{")[0])


def draw_training(rates: Sequence[Table], path: Path) -> None:
    """Draw the rates as bars, a panel for each patch size, and write them as SVG.

    Parameters
    ----------
    rates
        The tables of rates, one for each number of workers.
    path
        Where the picture goes.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    edges = list(dict.fromkeys(_edge(row) for row in rates[0].rows))
    with mpl.rc_context({"svg.hashsalt": "training", "font.size": 8, "svg.fonttype": "none"}):
        heights = [len({_loader(r) for t in rates for r in t.rows if _edge(r) == e}) for e in edges]
        figure, panels = plt.subplots(
            len(edges),
            figsize=(9, 1 + _INCHES_PER_LOADER * sum(heights)),
            height_ratios=heights,
            sharex=True,
            squeeze=False,
        )
        for axes, edge in zip(panels[:, 0], edges, strict=True):
            _draw_edge(axes, rates, edge)
        panels[-1, 0].set_xlabel("patches per second, logarithmic")
        path.parent.mkdir(exist_ok=True)
        # Without a date the same numbers give the same file.
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)


def _draw_edge(axes: object, rates: Sequence[Table], edge: str) -> None:
    """Draw the bars of one patch size: one group for each loader, one bar for each table."""
    by_table = [{_loader(r): r.median for r in t.rows if _edge(r) == edge} for t in rates]
    loaders = sorted(
        {name for table in by_table for name in table},
        key=lambda name: max(table.get(name, 0) for table in by_table),
    )
    width = 0.8 / len(rates)
    for number, shown in enumerate(by_table):
        at = [(loaders.index(n) + (number - len(rates) / 2 + 0.5) * width, n) for n in shown]
        colours = [
            (_COLOURS if n.startswith(MINE) else _OTHER_COLOURS)[number % len(_COLOURS)]
            for _, n in at
        ]
        axes.barh([y for y, _ in at], list(shown.values()), width, color=colours)
        for y, name in at:
            axes.text(shown[name] * 1.03, y, _words(shown[name]), va="center", fontsize=6)
    axes.set_xscale("log")
    axes.set_xlim(left=min(rate for table in by_table for rate in table.values()) / 2)
    axes.set_yticks(range(len(loaders)), loaders)
    bars = ", ".join(table.title.rpartition(", ")[2] for table in rates)
    axes.set_title(f"patches of {edge} cubed; bars from below: {bars}", loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _words(rate: float) -> str:
    """Return a rate with three digits, at least."""
    return f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"


def _edge(row: Row) -> str:
    """Return the edge of the patches of a row."""
    return row.case.partition(" ")[0]


def _loader(row: Row) -> str:
    """Return who is shown: ours by what it reads, others read the same in every case."""
    if row.contender != MINE:
        return row.contender
    return f"{MINE}, {row.case.partition(', ')[2]}"
