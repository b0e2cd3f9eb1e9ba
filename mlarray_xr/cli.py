"""The command ``mla``: look at files, convert them, and see the package at work."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import GeometryError, MlaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.array import MlaArray
    from mlarray_xr.report import WriteReport

__all__ = ["main"]

_OK, _FAILED = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Parameters
    ----------
    argv
        Arguments without the name of the program; None takes those of the process.

    Returns
    -------
    int
        0 when all went well, 1 when it did not (one line on stderr says why), 2 for wrong usage.

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
        text = options.run(options)
    except (MlaError, OSError) as error:
        _show(f"mla: error: {_line(error)}", sys.stderr)
        return _FAILED
    _show(text, sys.stdout)
    return _OK


def _parser() -> argparse.ArgumentParser:
    """Return the grammar of the command line."""
    parser = argparse.ArgumentParser(prog="mla", description="Work with .mla files.")
    parser.add_argument("--version", action="version", version=f"mla {version('mlarray-xr')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    info = commands.add_parser("info", help="describe a file without reading a voxel")
    info.add_argument("file", metavar="FILE")
    info.add_argument(
        "--metadata", action="store_true", help="also print all metadata: it may identify a patient"
    )
    info.set_defaults(run=_info)

    convert = commands.add_parser("convert", help="convert between NIfTI and .mla, or rewrite")
    convert.add_argument("src", metavar="SRC")
    convert.add_argument("dst", metavar="DST")
    convert.add_argument(
        "--patch", type=_sizes, metavar="N|A,B,C", help="window to lay the file out for, voxels"
    )
    convert.add_argument("--codec", metavar="NAME-LEVEL", help="such as lz4hc-8 or zstd-1")
    convert.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    convert.set_defaults(run=_convert)

    demo = commands.add_parser("demo", help="write, open, compute and read on this machine")
    demo.add_argument("--input", metavar="FILE", help="NIfTI or .mla; default: a phantom")
    demo.add_argument("--output-dir", default="mla-demo", metavar="DIR", help="default: mla-demo")
    demo.add_argument(
        "--shape", type=_shape, default=(256, 256, 256), metavar="Z,Y,X", help="of the phantom"
    )
    demo.add_argument("--patch", type=_size, default=64, metavar="N", help="voxels per axis")
    demo.set_defaults(run=_demo)

    for command in (info, convert, demo):
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _info(options: argparse.Namespace) -> str:
    """Describe a file."""
    from mlarray_xr.array import MlaArray

    array = MlaArray(options.file)
    facts = {**array.info(), **_labels(array)}
    if options.metadata:
        facts["metadata"] = {**array.metadata.to_dict(), "unknown": array.metadata.unknown}
    if options.json:
        return _json(facts)
    sizes = [f"{dim} {n}" for dim, n in zip(facts["dims"], facts["shape"], strict=True)]
    steps = [
        f"{dim} {step if step is None else format(step, 'g')} {unit or ''}".rstrip()
        for (dim, step), unit in zip(facts["spacing"].items(), facts["units"].values(), strict=True)
    ]
    megabytes = (facts["nbytes"] / 1e6, facts["file_bytes"] / 1e6, facts["ratio"])
    counts = [f"{name} {n} keys" for name, n in facts["metadata_keys"].items()]
    rows = (
        ("path", facts["path"]),
        ("shape", ", ".join(sizes) + (" (names assumed)" if facts["axes_assumed"] else "")),
        ("dtype", facts["dtype"]),
        ("size", "{:.1f} MB in {:.1f} MB, ratio {:.2f}".format(*megabytes)),
        ("chunks", f"{facts['chunks']}, {facts['n_chunks']} of {facts['chunk_bytes']} bytes"),
        ("blocks", f"{facts['blocks']} of {facts['block_bytes']} bytes"),
        ("codec", " ".join([f"{facts['codec']}-{facts['level']}", *facts["filters"]])),
        ("spacing", ", ".join(steps) or "not stated"),
        ("world", f"{facts['coord_system'] or 'not stated'}, {facts['orientation']}"),
        ("metadata", ", ".join(counts)),
        ("reader", facts["reader"]),
    )
    table = "\n".join(f"{name:<9} {value}" for name, value in rows)
    return f"{table}\n{_json(facts['metadata'], indent=2)}" if options.metadata else table


def _labels(array: MlaArray) -> dict[str, Any]:
    """Return names and geometry, and of free-form metadata the sizes only."""
    from mlarray_xr.attributes import shown_text
    from mlarray_xr.record import stored_axes, stored_geometry

    metadata = array.metadata
    axes = stored_axes(metadata, array.ndim)
    facts: dict[str, Any] = {
        "dims": list(axes.dims),
        "axes_assumed": axes.assumed,
        "has_array": metadata.has_array,
        "is_seg": metadata.is_seg,
        "spacing": {},
        "units": {},
        "coord_system": None,
        "orientation": "not stated",
        "metadata_keys": {
            name: len(getattr(metadata, name)) for name in ("source", "extra", "unknown")
        },
    }
    try:
        geometry = stored_geometry(metadata, axes)
    except GeometryError:
        return {**facts, "orientation": "for another number of axes"}
    if geometry.is_stored:
        facts["spacing"] = dict(zip(geometry.dims, geometry.spacing, strict=True))
        facts["units"] = dict(zip(geometry.dims, geometry.units, strict=True))
        facts["orientation"] = "oblique" if geometry.world_axes() is None else "axis-aligned"
    if geometry.coord_system is not None:
        facts["coord_system"] = shown_text(geometry.coord_system)
    return facts


def _convert(options: argparse.Namespace) -> str:
    """Convert a file."""
    from mlarray_xr.foreign.conversion import convert
    from mlarray_xr.planning.codec import DEFAULT_CODEC

    report = convert(
        options.src,
        options.dst,
        patch="default" if options.patch is None else options.patch,
        codec=options.codec or DEFAULT_CODEC,
        mode="w" if options.overwrite else "w-",
    )
    if report is not None:
        return _json(_report_facts(report)) if options.json else str(report)
    path, file_bytes = os.path.abspath(options.dst), os.path.getsize(options.dst)
    return _json({"path": path, "file_bytes": file_bytes}) if options.json else path


def _report_facts(report: WriteReport) -> dict[str, Any]:
    """Return a report as plain values."""
    facts = dataclasses.asdict(report)
    layout = facts.pop("layout")
    return {**facts, **layout, "codec": str(report.codec), "ratio": report.ratio}


def _demo(options: argparse.Namespace) -> str:
    """Run the demo."""
    from mlarray_xr.explore.demo import run_demo

    report = run_demo(
        input=options.input,
        output_dir=options.output_dir,
        shape=options.shape,
        patch=options.patch,
    )
    return _json(dataclasses.asdict(report)) if options.json else str(report)


def _sizes(text: str) -> int | tuple[int, ...]:
    """Read one extent for all axes, or one per axis."""
    entries = text.split(",")
    if not all(entry.strip().isdecimal() and int(entry) > 0 for entry in entries):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or A,B,C with numbers above 0")
    sizes = tuple(map(int, entries))
    return sizes[0] if len(sizes) == 1 else sizes


def _size(text: str) -> int:
    """Read one extent."""
    size = _sizes(text)
    if not isinstance(size, int):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number above 0")
    return size


def _shape(text: str) -> tuple[int, int, int]:
    """Read three extents."""
    match _sizes(text):
        case (z, y, x):
            return z, y, x
    raise argparse.ArgumentTypeError(f"{text!r} is not Z,Y,X with numbers above 0")


def _json(facts: dict[str, Any], *, indent: int | None = None) -> str:
    """Return JSON that every parser reads: ASCII, and null for what is not finite."""
    return json.dumps(_finite(facts), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Replace numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(error: Exception) -> str:
    """Return what an error says as one line that no terminal takes for a command."""
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{os.fspath(error.filename)}: {error.strerror}"
    return "".join(c if c.isprintable() else " " for c in text)


def _show(text: str, stream: Any) -> None:
    """Print with what the terminal's encoding has, and nothing that it takes for a command."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    print(shown.encode(encoding, "backslashreplace").decode(encoding), file=stream)


if __name__ == "__main__":
    sys.exit(main())
