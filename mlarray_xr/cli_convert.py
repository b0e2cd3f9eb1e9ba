"""mla convert: one image or a folder of them, by threads, processes or a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Any

from mlarray_xr.cli_arguments import count, memory, scheduler, sizes
from mlarray_xr.cli_text import Outcome, report_facts, to_json
from mlarray_xr.dask import connected, local_cluster
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.collection import convert_folder
from mlarray_xr.foreign.conversion import convert
from mlarray_xr.foreign.formats import FORMATS, MLA, format_of_target
from mlarray_xr.planning.access import PRESETS

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.foreign.collection import CollectionReport

__all__ = ["add_convert"]


def add_convert(commands: Commands) -> None:
    """Add the command to the grammar."""
    read = ", ".join(suffix for each in FORMATS for suffix in each.suffixes)
    written = ", ".join(suffix for each in FORMATS for suffix in each.written_suffixes)
    command = commands.add_parser(
        "convert",
        help="convert images to .mla and back, or a folder of images",
        description="Convert an image to .mla, .mla to another format or layout, or every image "
        "below a folder to .mla. Suffixes tell the formats.",
        epilog=f"Reads {read}, and folders with DICOM slices or numbered TIFF files. Writes .mla, "
        f"and from .mla {written}. Exits with 1 when something failed.",
    )
    command.add_argument("src", metavar="SRC", help="a file, or a folder")
    command.add_argument(
        "dst", metavar="DST", help="a file; for a folder of images a folder, which is made"
    )
    _add_options(command)
    command.set_defaults(run=_run)


def _add_options(command: argparse.ArgumentParser) -> None:
    """Add what may be left out."""
    command.add_argument(
        "--patch", type=sizes, metavar="N|A,B,C", help="window to lay the file out for, voxels"
    )
    command.add_argument(
        "--layout", choices=PRESETS, help="how a series is read, instead of a patch"
    )
    command.add_argument(
        "--caches",
        metavar="l1=32KiB,...",
        help="of the cores that will read; default: this machine's, or the least of the cluster's",
    )
    command.add_argument(
        "--codec", default="auto", metavar="NAME-LEVEL", help="such as zstd-1; default: by trial"
    )
    command.add_argument(
        "--from",
        dest="source_format",
        choices=[each.name for each in FORMATS],
        metavar="FORMAT",
        help="where names do not tell; of a folder, images of this format only",
    )
    command.add_argument("--dataset", metavar="NAME", help="which array, of files with several")
    command.add_argument("--overwrite", action="store_true", help="replace what exists")
    command.add_argument(
        "--resume", action="store_true", help="keep what is done, and go on where a run ended"
    )
    command.add_argument(
        "--verify", action="store_true", help="read back and compare with the source, bit by bit"
    )
    command.add_argument(
        "--memory-limit",
        type=memory,
        metavar="2GB",
        help="for the parts under way; of a cluster at an address, in each of its processes",
    )
    command.add_argument(
        "--jobs", type=count, metavar="N", help="of a folder: small files at a time"
    )
    command.add_argument(
        "--scheduler",
        type=scheduler,
        default="threads",
        metavar="WHERE",
        help="threads (default), local:N for N processes, or the address of a Dask scheduler",
    )
    command.add_argument("--json", action="store_true", help="print JSON")


def _run(options: argparse.Namespace) -> Outcome:
    """Convert an image or a folder of images."""
    is_collection = os.path.isdir(options.src) and format_of_target(options.dst) is None
    with _computing_on(options.scheduler):
        if is_collection:
            return _convert_folder(options)
        return _convert_file(options)


def _convert_file(options: argparse.Namespace) -> Outcome:
    """Convert one image."""
    if options.jobs is not None:
        raise ConversionError(
            f"{options.src}: --jobs is for folders of images, and this is one. To fix: leave it out"
        )
    report = convert(options.src, options.dst, **_shared(options))
    if report is not None:
        return Outcome(text=to_json(report_facts(report)) if options.json else str(report))
    path = os.path.abspath(options.dst)
    if options.json:
        return Outcome(text=to_json({"path": path, "file_bytes": _bytes_of(path)}))
    is_skipped = format_of_target(path) is MLA
    return Outcome(text=f"{path}: complete already" if is_skipped else path)


def _convert_folder(options: argparse.Namespace) -> Outcome:
    """Convert a folder of images."""
    report = convert_folder(options.src, options.dst, **_shared(options), jobs=options.jobs)
    failures = tuple(f"{each.source}: {each.reason}" for each in report.failed)
    if not (report.converted or report.skipped or failures):
        failures = (f"{options.src}: no image is there that is read",)
    text = to_json(_collection_facts(report)) if options.json else report.summary()
    return Outcome(text=text, failures=failures)


def _bytes_of(path: str) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    if not os.path.isdir(path):
        return os.path.getsize(path)
    return sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(path)
        for name in names
    )


def _shared(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that files and folders share."""
    limit = options.memory_limit
    if limit is not None and isinstance(options.scheduler, int):
        limit //= options.scheduler
    return {
        "patch": "default" if options.patch is None else options.patch,
        "layout": options.layout,
        "caches": options.caches,
        "codec": options.codec,
        "mode": "w" if options.overwrite else "w-",
        "source_format": options.source_format,
        "dataset": options.dataset,
        "resume": options.resume,
        "verify": options.verify,
        "memory_limit": limit,
    }


def _collection_facts(report: CollectionReport) -> dict[str, Any]:
    """Return the report of a folder as plain values."""
    return {
        "target": report.target,
        "converted": [report_facts(each) for each in report.converted],
        "skipped": list(report.skipped),
        "failed": [dataclasses.asdict(each) for each in report.failed],
        "left_out": [dataclasses.asdict(each) for each in report.left_out],
        "seconds": report.seconds,
    }


@contextlib.contextmanager
def _computing_on(where: str | int | None) -> Iterator[None]:
    """Compute in threads, in processes of this machine, or on a cluster."""
    if where is None:
        yield
        return
    # On Ctrl-C asyncio would tell of coroutines of Dask that nobody waits for any more.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if isinstance(where, int):
        with local_cluster(where):
            yield
    else:
        with connected(where):
            yield
