"""mla demo: see the package at work on this machine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mlarray_xr.cli_arguments import shape, size
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.explore.demo import run_demo

if TYPE_CHECKING:
    import argparse

    from mlarray_xr.cli_arguments import Commands

__all__ = ["add_demo"]


def add_demo(commands: Commands) -> None:
    """Add the command to the grammar."""
    demo = commands.add_parser("demo", help="write, open, compute and read on this machine")
    demo.add_argument("--input", metavar="FILE", help="an image or .mla file; default: a phantom")
    demo.add_argument("--output-dir", default="mla-demo", metavar="DIR", help="default: mla-demo")
    demo.add_argument(
        "--shape", type=shape, default=(256, 256, 256), metavar="Z,Y,X", help="of the phantom"
    )
    demo.add_argument("--patch", type=size, default=64, metavar="N", help="voxels per axis")
    demo.add_argument("--json", action="store_true", help="print JSON")
    demo.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> Outcome:
    """Run the demo."""
    report = run_demo(
        input=options.input,
        output_dir=options.output_dir,
        shape=options.shape,
        patch=options.patch,
    )
    return Outcome(text=to_json(dataclasses.asdict(report)) if options.json else str(report))
