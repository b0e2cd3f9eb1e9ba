"""mla verify: check files against the checksums that were recorded when they were written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mlarray_xr.cli_arguments import add_storage_options, count
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.verification import verify_files

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.verification import VerifyReport

__all__ = ["add_verify"]


def add_verify(commands: Commands) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser("verify", help="compare files with their checksums")
    command.add_argument(
        "paths", nargs="+", metavar="PATH", help="a file, a URL, or a folder of .mla files"
    )
    command.add_argument("--jobs", type=count, metavar="N", help="files at a time")
    command.add_argument(
        "--require-checksums", action="store_true", help="fail files whose state is unknown"
    )
    add_storage_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> Outcome:
    """Check files."""
    reports = list(
        verify_files(
            options.paths, jobs=options.jobs, storage_options=dict(options.storage_options)
        )
    )
    bad = [r for r in reports if not r.passes(require_checksums=options.require_checksums)]
    failures = tuple(f"{report.path}: {_what(report)}" for report in bad)
    if not reports:
        failures = ("no .mla file is there",)
    return Outcome(text=_json(reports) if options.json else _text(reports), failures=failures)


def _what(report: VerifyReport) -> str:
    """Return in one line what is wrong with a file."""
    reasons = list(report.reasons[:1])
    if report.n_damaged:
        first = report.damaged[0]
        reasons.append(f"{report.n_damaged} of {report.n_chunks} chunks, first in box {first.box}")
    return ": ".join([report.state, *reasons])


def _text(reports: Sequence[VerifyReport]) -> str:
    """Return one line per file that is ok, all that is known of the others, and counts."""
    lines = [f"{each.path}: ok" if each.state == "ok" else str(each) for each in reports]
    counts = Counter(each.state for each in reports)
    lines.append(f"{len(reports)} files: {', '.join(f'{n} {s}' for s, n in counts.items())}")
    return "\n".join(lines) if reports else ""


def _json(reports: Sequence[VerifyReport]) -> str:
    """Return all reports, and counts by state."""
    counts = Counter(each.state for each in reports)
    return to_json({"files": [each.to_dict() for each in reports], "counts": dict(counts)})
