"""mla serve: show files to browsers' viewers and other programs over HTTP."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mlarray_xr.cli_arguments import port
from mlarray_xr.cli_signals import ends_cleanly
from mlarray_xr.cli_text import Outcome, show, to_json
from mlarray_xr.serving.admission import is_loopback, parse_origin
from mlarray_xr.serving.index_page import index_facts
from mlarray_xr.serving.served_chunks import ENCODINGS
from mlarray_xr.serving.server import run_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.serving.server import RunningServer

__all__ = ["add_serve"]

_USUAL_PORT = 8765
_LOOPBACK = "127.0.0.1"
_MOST_SHOWN = 20
_LOOK_S = 1.0


def add_serve(commands: Commands) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser(
        "serve",
        help="show files to viewers in the browser over HTTP",
        description="Serve files, read-only: byte by byte with ranges, and as Zarr with codecs "
        "that every viewer has. Ctrl-C ends it. Only this machine can reach it, unless --host "
        "says otherwise.",
    )
    command.add_argument("paths", nargs="+", metavar="PATH", help=".mla files, or folders of them")
    command.add_argument(
        "--port",
        type=port,
        default=_USUAL_PORT,
        metavar="N",
        help=f"default: {_USUAL_PORT}; 0 takes a free one",
    )
    command.add_argument(
        "--host", default=_LOOPBACK, help=f"address to listen on; default: {_LOOPBACK}"
    )
    command.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        dest="allow_origins",
        help="a site whose pages may read the files, such as "
        "https://neuroglancer-demo.appspot.com; * is any; pages of this machine always may",
    )
    command.add_argument(
        "--encoding",
        choices=ENCODINGS,
        default=ENCODINGS[0],
        help=f"how chunks are packed for Zarr; default: {ENCODINGS[0]}",
    )
    command.add_argument(
        "--no-overviews", action="store_true", help="leave overviews out of the Zarr hierarchies"
    )
    command.add_argument("--json", action="store_true", help="print JSON, on one line")
    command.set_defaults(run=_run)


def _origin(text: str) -> str:
    """Read an origin."""
    try:
        return parse_origin(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _run(options: argparse.Namespace) -> Outcome:
    """Serve files until somebody ends it."""
    failures: tuple[str, ...] = ()
    with (
        ends_cleanly(),
        run_server(
            options.paths,
            port=options.port,
            host=options.host,
            allow_origins=options.allow_origins,
            encoding=options.encoding,
            overviews=not options.no_overviews,
        ) as server,
    ):
        if not is_loopback(options.host):
            warning = f"everybody who can reach {options.host} can read these files: no password"
            show(f"mla: warning: {warning}", sys.stderr)
        if unnamed := server.catalogue.unnamed:
            show(_unnamed_text(unnamed), sys.stderr)
        show(_json(server) if options.json else _text(server), sys.stdout)
        sys.stdout.flush()
        while server.thread.is_alive():
            server.thread.join(_LOOK_S)  # Windows tells of Ctrl-C between two of them only
        failures = ("the server ended by itself",)
    return Outcome(text="", failures=failures)


def _text(server: RunningServer) -> str:
    """Return the address, and the names of the first files."""
    files = server.catalogue.listed()
    lines = [server.address, *(f"  {file.name}" for file in files[:_MOST_SHOWN])]
    if len(files) > _MOST_SHOWN:
        lines.append(f"  and {len(files) - _MOST_SHOWN} more")
    return "\n".join([*lines, "Ctrl-C ends it"])


def _unnamed_text(paths: Sequence[str]) -> str:
    """Return a warning of files that are not shown."""
    more = f" and {len(paths) - _MOST_SHOWN} more" if len(paths) > _MOST_SHOWN else ""
    shown = ", ".join(map(ascii, paths[:_MOST_SHOWN]))
    count = "1 file is" if len(paths) == 1 else f"{len(paths)} files are"
    return (
        f"mla: warning: {count} not shown: {shown}{more}: such names cannot be served. To fix: "
        "rename them"
    )


def _json(server: RunningServer) -> str:
    """Return the address and all files."""
    files = index_facts(server.catalogue.listed())
    return to_json({"address": server.address, "files": files})
