"""The suite: every benchmark by name, run in one temporary folder."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import (
    cluster_writing,
    dask_reads,
    decode_rate,
    encode_rate,
    layouts,
    opening,
    overviews,
    patches,
    points,
    previewing,
    remote,
    series,
    training,
    viewing,
    writing,
    zarr_copying,
    zarr_reading,
    zarr_virtual,
)
from benchmarks.data import Workplace
from mlarray_xr.storage.slab_cache import nothing_kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from benchmarks.report import Table
    from benchmarks.size import Size

__all__ = ["BENCHMARKS", "run_suite"]

BENCHMARKS: dict[str, Callable[[Workplace], Iterable[Table]]] = {
    "patches": patches.run,
    "dask": dask_reads.run,
    "opening": opening.run,
    "decode-rate": decode_rate.run,
    "writing": writing.run,
    "cluster-writing": cluster_writing.run,
    "encode-rate": encode_rate.run,
    "layouts": layouts.run,
    "remote": remote.run,
    "points": points.run,
    "training": training.run,
    "series": series.run,
    "overviews": overviews.run,
    "previewing": previewing.run,
    "viewing": viewing.run,
    "zarr-reading": zarr_reading.run,
    "zarr-virtual": zarr_virtual.run,
    "zarr-copying": zarr_copying.run,
}


def run_suite(size: Size, *, names: list[str]) -> Iterator[Table]:
    """Run some benchmarks and yield each table when it is ready; all files are removed after.

    Decoded blocks are not kept: thin boxes are read again and again, and would be copied from
    memory.
    """
    with (
        nothing_kept(),
        tempfile.TemporaryDirectory(prefix="mlarray-xr-benchmarks-") as folder,
    ):
        workplace = Workplace(folder=Path(folder), size=size)
        for name in names:
            yield from BENCHMARKS[name](workplace)
