"""mla overviews: make coarser levels of files, beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.cli_arguments import count
from mlarray_xr.cli_text import Outcome, line_of, report_facts, to_json
from mlarray_xr.errors import MlaError
from mlarray_xr.overviews import build_overviews

if TYPE_CHECKING:
    import argparse

    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.report import WriteReport

__all__ = ["add_overviews"]


def add_overviews(commands: Commands) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser("overviews", help="make coarser levels of files, beside them")
    command.add_argument("files", nargs="+", metavar="FILE", help="a local .mla file")
    command.add_argument(
        "--levels",
        type=count,
        metavar="N",
        help="how many; without it until no spatial axis is longer than 256 voxels",
    )
    command.add_argument(
        "--method",
        choices=("mean", "mode"),
        help="without it the mode of labels, the mean of all else",
    )
    command.add_argument("--overwrite", action="store_true", help="replace levels that are there")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> Outcome:
    """Make overviews of files, and go on with the next where that fails."""
    done: list[tuple[str, tuple[WriteReport, ...]]] = []
    failures = []
    for file in options.files:
        try:
            reports = build_overviews(
                file,
                levels=options.levels or "auto",
                method=options.method or "auto",
                mode="w" if options.overwrite else "w-",
            )
        except (MlaError, OSError) as error:
            failures.append(f"{file}: {line_of(error)}")
            continue
        done.append((file, reports))
    if options.json:
        return Outcome(text="\n".join(to_json(_facts(*one)) for one in done), failures=(*failures,))
    return Outcome(text="\n".join(_text(*one) for one in done), failures=(*failures,))


def _facts(file: str, reports: tuple[WriteReport, ...]) -> dict[str, Any]:
    """Return what was made of a file as plain values."""
    return {"path": file, "levels": [report_facts(report) for report in reports]}


def _text(file: str, reports: tuple[WriteReport, ...]) -> str:
    """Say what was made of a file."""
    if not reports:
        return f"{file}: no spatial axis is so long that overviews would help"
    lines = [
        f"  level {level}  {'x'.join(map(str, report.shape))}  {report.file_bytes / 1e6:.1f} MB"
        for level, report in enumerate(reports, 1)
    ]
    return "\n".join([f"{file}: {max(report.seconds for report in reports):.2f} s", *lines])
