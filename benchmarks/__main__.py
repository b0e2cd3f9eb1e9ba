"""Run the benchmarks: ``python -m benchmarks [--smoke] [--only NAME] [--write PAGE]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import layouts
from benchmarks.layout_plot import draw_layouts
from benchmarks.machine import describe_machine
from benchmarks.report import render, render_table
from benchmarks.size import FULL, SMOKE
from benchmarks.suite import BENCHMARKS, run_suite
from benchmarks.training_plot import draw_training, is_rates


def main() -> None:
    """Print every table when it is ready, and write the page where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small volumes, two repeats")
    parser.add_argument(
        "--only",
        choices=BENCHMARKS,
        action="append",
        metavar="NAME",
        help=f"one of {', '.join(BENCHMARKS)}; may be given several times",
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="Markdown page to write, and images/ beside it"
    )
    options = parser.parse_args()
    size = SMOKE if options.smoke else FULL
    machine = describe_machine()
    tables = []
    for table in run_suite(size, names=options.only or list(BENCHMARKS)):
        print(render_table(table, size=size), end="\n\n", flush=True)
        tables.append(table)
    if options.write:
        options.write.write_text(render(tables, machine=machine, size=size), encoding="utf-8")
        images = options.write.parent / "images"
        for table in tables:
            if table.title == layouts.TIMES:
                draw_layouts(table, images / "layouts.svg")
        if rates := [table for table in tables if is_rates(table)]:
            draw_training(rates, images / "training.svg")


if __name__ == "__main__":
    main()
