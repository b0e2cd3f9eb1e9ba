"""mla bench: read random patches of a file, and compare with what the model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlarray_xr.array import MlaArray
from mlarray_xr.cli_arguments import count, seconds, sizes
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.explore.patch_timing import time_patches

if TYPE_CHECKING:
    import argparse

    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.explore.patch_timing import PatchTiming

__all__ = ["add_bench", "timing_table"]


def add_bench(commands: Commands) -> None:
    """Add the command to the grammar."""
    bench = commands.add_parser(
        "bench",
        help="time random patches of a file beside what its layout predicts",
        description="Read patches at random offsets, and compare what they touch and how long they "
        "take with what the model of the layout predicts.",
    )
    bench.add_argument("file", metavar="FILE")
    bench.add_argument(
        "--patch",
        type=sizes,
        metavar="N|A,B,C",
        help="voxels per spatial axis or per axis; default: what the file was written for, else "
        "192, inside the array",
    )
    bench.add_argument(
        "--count",
        type=count,
        metavar="N",
        help="different patches, each read at least once; default: 200 if there is time",
    )
    bench.add_argument(
        "--seconds", type=seconds, default=2.0, metavar="S", help="how long; default: 2"
    )
    bench.add_argument(
        "--threads", type=count, default=1, metavar="N", help="threads per patch; default: 1"
    )
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(run=_run)


def timing_table(timing: PatchTiming) -> str:
    """Return the numbers for people, a row each."""
    patches = (
        f"{'x'.join(map(str, timing.window))} {timing.dtype}, {timing.count} at random offsets"
    )
    readers = "1 thread" if timing.threads == 1 else f"{timing.threads} threads"
    expected, speed, (low, high) = timing.predicted, timing.speed, timing.quartiles_ms
    rows = (
        ("patch", patches),
        ("reads", f"{timing.n_reads} by {readers}"),
        ("chunks", f"{_short(timing.chunks)} touched, {_short(expected.chunks)} predicted"),
        ("blocks", f"{_short(timing.blocks)} touched, {_short(expected.blocks)} predicted"),
        (
            "decoded",
            f"{timing.amplification:.2f} times what is wanted, "
            f"{expected.amplification:.2f} predicted",
        ),
        ("predicted", f"{_short(timing.predicted_ms)} ms on the machine of the model, 1 thread"),
        (
            "",
            f"{_short(timing.scaled_ms)} ms on this one: calls take {speed.calls:.2f}, decoding "
            f"{speed.decode:.2f}, copying {speed.copy:.2f} times as long",
        ),
        ("measured", f"{_short(timing.mean_ms)} ms, mean of the patches"),
        (
            "",
            f"{_short(timing.median_ms)} ms, their median; half of them "
            f"{_short(low)} to {_short(high)} ms",
        ),
        ("ratio", f"{timing.ratio:.2f}, measured mean over predicted on this machine"),
    )
    return "\n".join(f"{name:<10}{text}" for name, text in rows)


def _run(options: argparse.Namespace) -> Outcome:
    """Time patches."""
    array = MlaArray(options.file)
    timing = time_patches(
        array,
        options.patch,
        seconds=options.seconds,
        count=options.count,
        threads=options.threads,
    )
    if options.json:
        return Outcome(text=to_json({"path": array.path, **timing.to_plain()}))
    return Outcome(text=f"{'file':<10}{array.path}\n{timing_table(timing)}")


def _short(number: float) -> str:
    """Return a number with three digits, whole from 100 on."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
