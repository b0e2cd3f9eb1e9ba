"""The command ``mla``: look at files, plan, convert, verify and time them, and see it at work."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

from mlarray_xr.cli_bench import add_bench
from mlarray_xr.cli_convert import add_convert
from mlarray_xr.cli_demo import add_demo
from mlarray_xr.cli_info import add_info
from mlarray_xr.cli_overviews import add_overviews
from mlarray_xr.cli_plan import add_plan
from mlarray_xr.cli_preview import add_preview
from mlarray_xr.cli_serve import add_serve
from mlarray_xr.cli_text import line_of, show
from mlarray_xr.cli_verify import add_verify
from mlarray_xr.cli_view import add_view
from mlarray_xr.errors import MlaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["main"]

_OK, _FAILED, _INTERRUPTED = 0, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the name of the program; None takes those of the process.

    Returns
    -------
    int
        0 when all went well, 1 when something did not (one line on stderr for each), 2 for wrong
        usage, 130 when it was interrupted.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "uint8"), "zeros.mla")
    >>> main(["convert", "zeros.mla", "packed.mla", "--codec", "zstd-9", "--json"])
    {"path": ...}
    0
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        with _warnings_as_lines():
            outcome = options.run(options)
    except (MlaError, OSError) as error:
        _complain(f"error: {line_of(error)}")
        return _FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    if outcome.text:
        show(outcome.text, sys.stdout)
    for failure in outcome.failures:
        _complain(f"error: {line_of(failure)}")
    return _FAILED if outcome.failures else _OK


def _parser() -> argparse.ArgumentParser:
    """Return the grammar of the command line."""
    parser = argparse.ArgumentParser(prog="mla", description="Work with .mla files.")
    parser.add_argument("--version", action="version", version=f"mla {version('mlarray-xr')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_info,
        add_convert,
        add_verify,
        add_plan,
        add_bench,
        add_overviews,
        add_preview,
        add_view,
        add_serve,
        add_demo,
    ):
        add(commands)
    return parser


def _complain(text: str) -> None:
    """Print a line on stderr."""
    show(f"mla: {text}", sys.stderr)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show each warning at the end, once, on a line, without the code that gave it."""
    with warnings.catch_warnings(record=True) as caught:
        try:
            yield
        finally:
            for text in dict.fromkeys(line_of(str(each.message)) for each in caught):
                _complain(f"warning: {text}")


if __name__ == "__main__":
    sys.exit(main())
