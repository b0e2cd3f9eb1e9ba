"""mla preview: the central planes of a file as a picture."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mlarray_xr.array import MlaArray
from mlarray_xr.cli_arguments import add_storage_options, size
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.explore.preview import LARGEST_PX, SMALLEST_PX, preview

if TYPE_CHECKING:
    from mlarray_xr.cli_arguments import Commands

__all__ = ["add_preview"]

_SUFFIX = ".png"
_USUAL_PX = 256


def add_preview(commands: Commands) -> None:
    """Add the command to the grammar."""
    command = commands.add_parser("preview", help="draw the central planes of a file as a PNG")
    command.add_argument("file", metavar="FILE", help="a path or a URL of an .mla file, or NIfTI")
    command.add_argument(
        "-o",
        "--output",
        type=_png,
        required=True,
        metavar="PNG",
        help="the picture; one that is there is replaced",
    )
    command.add_argument(
        "--size",
        type=_pixels,
        default=_USUAL_PX,
        metavar="PX",
        help=f"pixels along the longest side of a plane, {SMALLEST_PX} to {LARGEST_PX}; "
        f"default: {_USUAL_PX}",
    )
    add_storage_options(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=_run)


def _png(text: str) -> str:
    """Read the name of a picture."""
    if not text.lower().endswith(_SUFFIX):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {_SUFFIX}: PNG is written")
    return text


def _pixels(text: str) -> int:
    """Read the size of a plane."""
    wanted = size(text)
    if not SMALLEST_PX <= wanted <= LARGEST_PX:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of pixels from {SMALLEST_PX} to {LARGEST_PX}"
        )
    return wanted


def _run(options: argparse.Namespace) -> Outcome:
    """Draw a file."""
    source: str | MlaArray = options.file
    if options.storage_options:
        source = MlaArray(options.file, storage_options=dict(options.storage_options))
    width, height = preview(source, options.output, size_px=options.size)
    path = os.path.abspath(options.output)
    if options.json:
        return Outcome(text=to_json({"path": path, "width_px": width, "height_px": height}))
    return Outcome(text=f"{path}: {width} x {height} pixels")
