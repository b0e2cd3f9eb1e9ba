"""Writing: a NumPy volume to one file by one process, and what the file is worth afterwards."""

from __future__ import annotations

import statistics
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import mlarray
import numpy as np

from benchmarks.data import random_boxes
from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, to_mla

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.data import TypeName, Volume, Workplace
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_MOST_REPEATS = 5
_OURS = "mlarray_xr.to_mla"
_REFERENCE = "MLArray(values).save"
_SAME_CODEC_GOAL = 0.95
# Times as fast to write, times as small, and times as fast to read patches from.
_AUTO_GOALS: dict[TypeName, tuple[float, float, float | None]] = {
    "int16": (4.0, 1.25, None),
    "float32": (1.5, 3.0, 0.95),
    "uint8": (4.0, 1.0, 1.5),
}


def run(workplace: Workplace) -> list[Table]:
    """Return a table of the reference's codec and one of the chosen codec."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    volumes = [workplace.volume(name) for name in _AUTO_GOALS]
    disk = "Ours forces the file to disk and renames it; the reference package does neither."
    return [
        Table(
            name="writing",
            title="Writing a volume from memory, the same codec",
            about=(
                f"Shape {size.shape}, LZ4HC 8 with byte shuffle, the reference package's "
                f"layout, MB of voxels per second over {size.repeats} repeats. {disk}"
            ),
            rows=tuple(row for volume in volumes[:2] for row in _same_codec(volume, size)),
        ),
        Table(
            name="writing",
            title='Writing a volume from memory, codec="auto"',
            about=(
                f"Shape {size.shape}, the layout of the reference package; ours chooses the codec "
                "by trial, which the time includes. `write` is MB of voxels per second, `size` the "
                "compression ratio, `patches` GB per second of cubes of "
                f"{size.edges[1]} read by one thread with mlarray_xr from either file. "
                f"{disk}"
            ),
            rows=tuple(
                row for name in _AUTO_GOALS for row in _auto(workplace.volume(name), name, size)
            ),
        ),
    ]


def _same_codec(volume: Volume, size: Size) -> list[Row]:
    """Return the rows of one volume."""
    paths = _paths(volume)
    found = _timed_writes(volume, paths, size, codec="lz4hc-8")
    goal = Goal(of="ratio", relation=">=", bound=_SAME_CODEC_GOAL)
    return [_write_row(str(volume.values.dtype), name, volume, found, goal) for name in found]


def _auto(volume: Volume, type_name: TypeName, size: Size) -> list[Row]:
    """Return the rows of one volume: time to write, size, time to read."""
    paths = _paths(volume)
    found = _timed_writes(volume, paths, size, codec="auto")
    goals = [
        None if bound is None else Goal(of="ratio", relation=">=", bound=bound)
        for bound in _AUTO_GOALS[type_name]
    ]
    info = MlaArray(paths[_OURS]).info()
    chosen = "-".join([info["codec"], str(info["level"]), *(info["filters"] or ["none"])])
    case = f"{type_name} ({chosen})"
    rows = [_write_row(f"{case}, write", name, volume, found, goals[0]) for name in found]
    ratios = {name: volume.values.nbytes / path.stat().st_size for name, path in paths.items()}
    for name, ratio in ratios.items():
        is_reference = name == _REFERENCE
        rows.append(
            Row(
                case=f"{case}, size",
                contender=name,
                unit=":1",
                median=ratio,
                best=ratio,
                ratio=ratios[_OURS] / ratio if is_reference else None,
                goal=goals[1] if is_reference else None,
            )
        )
    return rows + _patch_rows(f"{case}, patches", paths, volume, size, goals[2])


def _paths(volume: Volume) -> dict[str, Path]:
    """Return where the contenders write."""
    return {_OURS: volume.folder / "ours.mla", _REFERENCE: volume.folder / "theirs.mla"}


def _timed_writes(
    volume: Volume, paths: dict[str, Path], size: Size, *, codec: str
) -> dict[str, Samples]:
    """Write with both contenders, and check what they wrote."""
    values, layout = volume.values, MlaArray(volume.path).layout

    def write_ours(repeat: int) -> None:  # noqa: ARG001 - every repeat does the same
        shapes = {"chunks": layout.chunks, "blocks": layout.blocks}
        to_mla(values, paths[_OURS], **shapes, codec=codec, mode="w")

    def write_theirs(repeat: int) -> None:  # noqa: ARG001
        mlarray.MLArray(values).save(paths[_REFERENCE])

    jobs = {_OURS: write_ours, _REFERENCE: write_theirs}
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    for path in paths.values():
        if not np.array_equal(MlaArray(path)[...], values):
            msg = f"{path.name} holds wrong values"
            raise RuntimeError(msg)
    return found


def _write_row(
    case: str, name: str, volume: Volume, found: dict[str, Samples], goal: Goal | None
) -> Row:
    """Return the row of one contender's times to write."""
    rates = [volume.values.nbytes / seconds / 1e6 for seconds in found[name].wall]
    is_reference = name == _REFERENCE
    return Row(
        case=case,
        contender=name,
        unit="MB/s",
        median=statistics.median(rates),
        best=max(rates),
        cpu=found[name].cpu_median * 1e3,
        ratio=found[name].ratio_to(found[_OURS]) if is_reference else None,
        goal=goal if is_reference else None,
        others=found[name].others,
    )


def _patch_rows(
    case: str, paths: dict[str, Path], volume: Volume, size: Size, goal: Goal | None
) -> list[Row]:
    """Return the rows of reading patches from either file with the same reader."""
    edge = size.edges[1]
    arrays = {name: MlaArray(path, threads=1) for name, path in paths.items()}
    count = size.patches(edge)
    out = np.empty((edge,) * 3, volume.values.dtype)

    def read(name: str, repeat: int) -> None:
        for box in random_boxes(volume.values.shape, edge=edge, count=count, seed=repeat):
            arrays[name].read(box, out=out)

    jobs = {name: partial(read, name) for name in arrays}
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    rows = []
    for name, samples in found.items():
        rates = [out.nbytes * count / seconds / 1e9 for seconds in samples.wall]
        is_reference = name == _REFERENCE
        rows.append(
            Row(
                case=case,
                contender=name,
                unit="GB/s",
                median=statistics.median(rates),
                best=max(rates),
                cpu=samples.cpu_median * 1e3,
                ratio=samples.ratio_to(found[_OURS]) if is_reference else None,
                goal=goal if is_reference else None,
                others=samples.others,
            )
        )
    return rows
