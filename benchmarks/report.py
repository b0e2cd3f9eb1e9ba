"""Report: frozen rows and tables, and the Markdown page made of them."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.load import DISTURBED

if TYPE_CHECKING:
    from benchmarks.machine import Machine
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["Goal", "Row", "Skip", "Table", "render", "render_table", "timed_row"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound that a row is held to."""

    of: Literal["ratio", "median"]
    """Which number of the row."""
    relation: Literal[">=", "<="]
    """On which side of the bound it should be."""
    bound: float
    """In the unit of that number."""

    def is_met(self, value: float) -> bool:
        """Tell whether a value is on the right side."""
        return value >= self.bound if self.relation == ">=" else value <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One contender in one case."""

    case: str
    """What was done."""
    contender: str
    """Who did it."""
    unit: str
    """Of `median` and `best`."""
    median: float
    """Median over the repeats."""
    best: float
    """Best repeat."""
    cpu: float | None = None
    """Median CPU milliseconds; None where it says nothing."""
    ratio: float | None = None
    """How many times faster ours was: median of the repeats' own ratios."""
    goal: Goal | None = None
    """What the row is held to."""
    others: tuple[float, ...] = ()
    """Share of all CPUs that other programs used during each repeat, 0..1."""

    def __post_init__(self) -> None:
        """Refuse numbers that are none, and a goal for a number that is not there."""
        numbers = [n for n in (self.median, self.best, self.cpu, self.ratio) if n is not None]
        if not all(math.isfinite(n) for n in numbers):
            msg = f"{self.case}, {self.contender}: {numbers} are not all finite"
            raise ValueError(msg)
        if self.goal and self.goal.of == "ratio" and self.ratio is None:
            msg = f"{self.case}, {self.contender}: a goal for a ratio that was not measured"
            raise ValueError(msg)

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        value = self.ratio if self.goal.of == "ratio" else self.median
        return value is not None and self.goal.is_met(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """A contender that could not take part."""

    contender: str
    """Who."""
    reason: str
    """Why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of one benchmark."""

    name: str
    """What `--only` calls the benchmark."""
    title: str
    """Heading."""
    about: str
    """One paragraph: what was read, by whom, and what the numbers mean."""
    rows: tuple[Row, ...]
    """In the order of the report."""
    skips: tuple[Skip, ...] = ()
    """Who is missing."""


def timed_row(
    case: str,
    contender: str,
    samples: Samples,
    *,
    mine: Samples | None = None,
    goal: Goal | None = None,
) -> Row:
    """Return a row in milliseconds, compared with ours where that is given."""
    return Row(
        case=case,
        contender=contender,
        unit="ms",
        median=samples.median * 1e3,
        best=samples.best * 1e3,
        cpu=samples.cpu_median * 1e3,
        ratio=None if mine is None else samples.ratio_to(mine),
        goal=goal,
        others=samples.others,
    )


_HEAD = ("case", "contender", "median", "best", "CPU", "ours is faster by", "goal", "met")


def render(tables: list[Table], *, machine: Machine, size: Size) -> str:
    """Return the Markdown page of a run."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `python -m benchmarks`: the numbers of a table come from one run, all tables",
        "from one machine. Contenders take turns within each repeat. `median` and `best` are over",
        f"{size.repeats} repeats; `ours is faster by` is the median of the ratios of each repeat,",
        "so that a busy moment counts for both. `CPU` is the CPU time of all threads, which other",
        "programs on the machine change little. Everything that was timed was first compared",
        "with the true values. Files were in the page cache. A repeat during which other programs",
        f"used more than {100 * DISTURBED:.0f} % of the CPUs is taken again, for at most "
        f"{size.patience_s:g} s per",
        "comparison; each section says how busy the machine was.",
        "",
        "Goals on ratios of parallel reads are meant for 2 idle CPUs.",
        "",
        "## Machine",
        "",
        *(f"* {key}: {value}" for key, value in machine.facts),
        "",
        "| library | version |",
        "|---|---|",
        *(f"| {name} | {version} |" for name, version in machine.versions),
    ]
    for table in tables:
        lines += ["", render_table(table, size=size)]
    return "\n".join(lines) + "\n"


def render_table(table: Table, *, size: Size) -> str:
    """Return one benchmark as Markdown: heading, what it is, how to repeat it, rows."""
    smoke = " --smoke" if size.name == "smoke" else ""
    cells = [_HEAD, *(_cells(row, is_judged=not smoke) for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEAD))]
    padded = [[c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in cells]
    rule = ["-" * width for width in widths]
    lines = [
        f"## {table.title}",
        "",
        table.about,
        "",
        f"    python -m benchmarks{smoke} --only {table.name}",
        "",
        *("| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]]),
    ]
    others = [share for row in table.rows for share in row.others]
    if others:
        usual, most = (f"{100 * f(others):.0f} %" for f in (statistics.median, max))
        lines += ["", f"Other programs used {usual} of the CPUs meanwhile (median; most {most})."]
    if table.skips:
        lines += ["", *(f"* left out: {skip.contender}: {skip.reason}" for skip in table.skips)]
    return "\n".join(lines)


def _cells(row: Row, *, is_judged: bool) -> tuple[str, ...]:
    """Return the texts of a row; goals are for the full size."""
    met = goal = ""
    if row.goal and is_judged:
        met = "yes" if row.is_met else "**no**"
        unit = "x" if row.goal.of == "ratio" else f" {row.unit}"
        goal = f"{row.goal.relation} {row.goal.bound:g}{unit}"
    return (
        row.case,
        row.contender,
        f"{_number(row.median)} {row.unit}",
        f"{_number(row.best)} {row.unit}",
        "" if row.cpu is None else f"{_number(row.cpu)} ms",
        "" if row.ratio is None else f"{_number(row.ratio)}x",
        goal,
        met,
    )


def _number(value: float) -> str:
    """Return three significant digits, whole numbers as they are."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(digits, 4)}f}"
