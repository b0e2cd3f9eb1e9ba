"""Writing: a NumPy volume to one file, the same codec and layout."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

import mlarray
import numpy as np

from benchmarks.report import Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, to_mla

if TYPE_CHECKING:
    from benchmarks.data import Volume, Workplace
    from benchmarks.size import Size

__all__ = ["run"]

_NAME = "writing"
_MOST_REPEATS = 5
_OURS = "mlarray_xr.to_mla"
_REFERENCE = "MLArray(values).save"


def run(workplace: Workplace) -> list[Table]:
    """Return one table of write rates."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    volumes = [workplace.volume("int16"), workplace.volume("float32")]
    return [
        Table(
            name=_NAME,
            title="Writing a volume from memory",
            about=(
                f"Shape {size.shape}, LZ4HC 8 with byte shuffle, the reference package's "
                f"layout, MB of voxels per second over {size.repeats} repeats. Ours forces the "
                "file to disk and renames it; the reference package does neither."
            ),
            rows=tuple(row for volume in volumes for row in _rows(volume, size)),
        )
    ]


def _rows(volume: Volume, size: Size) -> list[Row]:
    """Return the rows of one volume."""
    values, layout = volume.values, MlaArray(volume.path).layout
    mine, theirs = (volume.folder / name for name in ("ours.mla", "theirs.mla"))

    def write_ours(repeat: int) -> None:  # noqa: ARG001 - every repeat does the same
        to_mla(values, mine, chunks=layout.chunks, blocks=layout.blocks, codec="lz4hc-8", mode="w")

    def write_theirs(repeat: int) -> None:  # noqa: ARG001
        mlarray.MLArray(values).save(theirs)

    jobs = {_OURS: write_ours, _REFERENCE: write_theirs}
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    for path in (mine, theirs):
        if not np.array_equal(MlaArray(path)[...], values):
            msg = f"{path.name} holds wrong values"
            raise RuntimeError(msg)
    rows = []
    for name, samples in found.items():
        rates = [values.nbytes / seconds / 1e6 for seconds in samples.wall]
        rows.append(
            Row(
                case=str(values.dtype),
                contender=name,
                unit="MB/s",
                median=statistics.median(rates),
                best=max(rates),
                cpu=samples.cpu_median * 1e3,
                ratio=samples.ratio_to(found[_OURS]) if name == _REFERENCE else None,
                others=samples.others,
            )
        )
    return rows
