"""Writing on a cluster: a Dask array from its workers to one file, against Zarr shards."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from zarr.codecs import BloscCodec

from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, to_mla
from mlarray_xr.dask import from_mla
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    import dask.array as da

    from benchmarks.data import Volume, Workplace
    from benchmarks.size import Size
    from benchmarks.timing import Samples

__all__ = ["run"]

_MOST_REPEATS = 5
_OURS = "mlarray_xr.to_mla"
_ZARR = "to_zarr v3, sharded"
_ZARR_GOAL = 1.5
_ASSEMBLY_GOAL = 10.0
# The codec of both: what is compared is the way to the disk.
_OUR_CODEC = "zstd-1"


def run(workplace: Workplace) -> list[Table]:
    """Return one table: against Zarr, the share of assembly, and how it scales with workers."""
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    volume = workplace.volume("int16")
    rows = []
    counts = [n for n in (1, 2, 4, 8, 16) if n <= max(2, available_threads())]
    alone: Samples | None = None
    for n_workers in counts:
        with (
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            Client(cluster),
        ):
            found, shares = _timed(volume, size, with_zarr=n_workers == 2)
        alone = alone or found[_OURS]
        rows += _rows(volume, found, shares, n_workers=n_workers, alone=alone)
    return [
        Table(
            name="cluster-writing",
            title="Writing a Dask array from the processes of a cluster",
            about=(
                f"Shape {size.shape} int16, read from an .mla file, one added, written with "
                "ZSTD 1 and byte shuffle by LocalCluster processes of one thread each; Zarr has "
                "the same chunks, in shards of the same parts. MB of voxels per second over "
                f"{size.repeats} repeats. Ours checks what it wrote and forces it to disk."
            ),
            rows=tuple(rows),
        )
    ]


def _timed(
    volume: Volume, size: Size, *, with_zarr: bool
) -> tuple[dict[str, Samples], list[float]]:
    """Write with all contenders; return times, and the share of assembly in each write."""
    layout = MlaArray(volume.path).layout
    array = from_mla(volume.path) + np.int16(1)
    shards = tuple(array.chunksize)
    ours, store = volume.folder / "cluster.mla", volume.folder / "cluster.zarr"
    shares: list[float] = []

    def write_ours(repeat: int) -> None:  # noqa: ARG001 - every repeat does the same
        report = to_mla(
            array, ours, chunks=layout.chunks, blocks=layout.blocks, codec=_OUR_CODEC, mode="w"
        )
        shares.append(100 * report.assembly_seconds / report.seconds)

    jobs: dict[str, Any] = {_OURS: write_ours}
    if with_zarr:
        jobs[_ZARR] = partial(_write_zarr, array, store, layout.chunks, shards)
    found = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    values = volume.values + np.int16(1)
    if not np.array_equal(MlaArray(ours)[...], values):
        msg = "the cluster wrote wrong values"
        raise RuntimeError(msg)
    if with_zarr and not np.array_equal(zarr.open_array(f"{store}/image")[...], values):
        msg = "Zarr holds wrong values"
        raise RuntimeError(msg)
    return found, shares


def _write_zarr(
    array: da.Array,
    store: Any,
    chunks: tuple[int, ...],
    shards: tuple[int, ...],
    repeat: int,  # noqa: ARG001
) -> None:
    """Write a Dask array with xarray to a new Zarr store."""
    shutil.rmtree(store, ignore_errors=True)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=2)
    # A shard is a whole number of chunks, also at the end of an axis.
    whole = tuple(-(-s // c) * c for s, c in zip(shards, chunks, strict=True))
    encoding = {"image": {"chunks": chunks, "shards": whole, "compressors": (codec,)}}
    image = xr.DataArray(array.rechunk(whole), dims=("z", "y", "x"), name="image")
    image.to_dataset().to_zarr(store, encoding=encoding, zarr_format=3, consolidated=False)


def _rows(
    volume: Volume,
    found: dict[str, Samples],
    shares: list[float],
    *,
    n_workers: int,
    alone: Samples,
) -> list[Row]:
    """Return the rows of one number of workers."""
    case = f"{n_workers} worker" if n_workers == 1 else f"{n_workers} workers"
    rows = []
    for name, samples in found.items():
        rates = [volume.values.nbytes / seconds / 1e6 for seconds in samples.wall]
        is_zarr = name == _ZARR
        rows.append(
            Row(
                case=case,
                contender=name,
                unit="MB/s",
                median=statistics.median(rates),
                best=max(rates),
                ratio=samples.ratio_to(found[_OURS]) if is_zarr else None,
                goal=Goal(of="ratio", relation=">=", bound=_ZARR_GOAL) if is_zarr else None,
                others=samples.others,
            )
        )
    speedup = alone.median / found[_OURS].median
    rows.append(
        Row(case=case, contender="speed-up over 1 worker", unit="x", median=speedup, best=speedup)
    )
    rows.append(
        Row(
            case=case,
            contender="share of assembly, fsync included",
            unit="%",
            median=statistics.median(shares),
            best=min(shares),
            goal=Goal(of="median", relation="<=", bound=_ASSEMBLY_GOAL),
        )
    )
    return rows
