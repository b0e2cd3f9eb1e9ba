"""mla view: look at a file in the browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from typing import TYPE_CHECKING, Any

from mlarray_xr.cli_arguments import add_storage_options, port
from mlarray_xr.cli_signals import ends_cleanly
from mlarray_xr.cli_text import Outcome, show
from mlarray_xr.explore.view import view_file
from mlarray_xr.explore.view_page import run_view_page
from mlarray_xr.storage.address import is_url

if TYPE_CHECKING:
    import argparse

    from mlarray_xr.cli_arguments import Commands

__all__ = ["add_view"]


def add_view(commands: Commands) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "view",
        help="look at a file in the browser",
        description="Open the slice viewer in the default browser. Ctrl-C ends it. Only this "
        "machine can reach it, and only with the address that is printed.",
    )
    command.add_argument("file", metavar="FILE", help="a path or a URL of an .mla file, or NIfTI")
    command.add_argument("--labels", metavar="FILE", help="labels shown over it")
    command.add_argument("--no-browser", action="store_true", help="print the address only")
    command.add_argument("--port", type=port, default=0, metavar="N", help="default: a free one")
    add_storage_options(command)
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> Outcome:
    """Serve the viewer until somebody ends it."""
    asked: dict[str, Any] = {
        "path": _complete(options.file),
        "labels": None if options.labels is None else _complete(options.labels),
        "storage_options": dict(options.storage_options) if options.storage_options else None,
    }
    # What cannot be shown is told here, rather than on the page.
    view_file(**asked).close()
    arguments = ", ".join(f"{name}={value!r}" for name, value in asked.items())
    code = f"from mlarray_xr.explore.view import view_file\nview_file({arguments})"
    failures: tuple[str, ...] = ()
    with ends_cleanly(), run_view_page(code, port=options.port) as page:
        show(f"{page.url}\nCtrl-C ends it", sys.stdout)
        sys.stdout.flush()
        if not options.no_browser:
            webbrowser.open(page.url)
        status = page.server.wait()
        failures = (f"the server of the viewer ended by itself: {status}",)
    return Outcome(text="", failures=failures)


def _complete(name: str) -> str:
    """Return a path that holds in another folder; URLs are complete."""
    return name if is_url(name) else os.path.abspath(name)
