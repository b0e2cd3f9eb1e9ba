"""Overviews: three coarser levels of a local file, made from what is on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import xarray as xr

from benchmarks.contenders.zarr_store import CHUNK, store_path
from benchmarks.report import Goal, Row, Skip, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray
from mlarray_xr.overview_files import find_levels
from mlarray_xr.overviews import build_overviews

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.data import Volume, Workplace

__all__ = ["run"]

OURS, XARRAY, NGFF, READING = (
    "ours",
    "xarray coarsen + to_zarr",
    "ngff-zarr, bin shrink",
    "reading the file once",
)
_LEVELS = 3
_MOST_REPEATS = 3
_GOALS = {XARRAY: 3, NGFF: 1}


def run(workplace: Workplace) -> list[Table]:
    """Return one table: seconds for all levels of an int16 volume."""
    volume = workplace.volume("int16")
    size = replace(workplace.size, repeats=min(workplace.size.repeats, _MOST_REPEATS))
    jobs: dict[str, Callable[[int], object]] = {
        OURS: lambda _: build_overviews(volume.path, levels=_LEVELS, mode="w"),
        XARRAY: lambda _: _coarsen(volume),
        READING: lambda _: MlaArray(volume.path)[...],
    }
    skips = []
    try:
        jobs[NGFF] = _ngff_job(volume)
    except ImportError as error:
        skips.append(Skip(contender=NGFF, reason=str(error)))
    taken = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s)
    _check(volume)
    gigabytes = volume.values.nbytes / 1e9
    rows = [
        Row(
            case=f"{_LEVELS} levels of {gigabytes:.2f} GB, {gigabytes / samples.median:.2f} GB/s",
            contender=name,
            unit="s",
            median=samples.median,
            best=samples.best,
            ratio=None if name == OURS else samples.ratio_to(taken[OURS]),
            goal=Goal(of="ratio", relation=">=", bound=_GOALS[name]) if name in _GOALS else None,
            others=samples.others,
        )
        for name, samples in taken.items()
    ]
    return [
        Table(
            name="overviews",
            title="Overviews of a local file",
            about=(
                f"Seconds to make {_LEVELS} coarser levels, means of 2 x 2 x 2 voxels each, of an "
                f"int16 volume of shape {volume.values.shape}, files in the page cache. The Zarr "
                f"store that xarray and ngff-zarr read has the codec of the file and chunks of "
                f"{CHUNK} cubed; they compute with Dask's threads. xarray makes each level from "
                "the rounded one before, in one graph."
            ),
            rows=tuple(rows),
            skips=tuple(skips),
        )
    ]


def _check(volume: Volume) -> None:
    """Compare both first levels with NumPy on a corner: the time of wrong values means nothing."""
    corner = volume.values[:32, :32, :32].astype(np.float64)
    wanted = np.rint(corner.reshape(16, 2, 16, 2, 16, 2).mean(axis=(1, 3, 5)))
    level = find_levels(MlaArray(volume.path))[1]
    theirs = xr.open_zarr(volume.folder / "coarse" / "level1.zarr", consolidated=False).image
    for found in (level[:16, :16, :16], theirs[:16, :16, :16].to_numpy()):
        if not np.array_equal(found, wanted):
            msg = "a first level holds wrong values"
            raise RuntimeError(msg)


def _coarsen(volume: Volume) -> None:
    """Make the levels as users of xarray do, in one graph."""
    import zarr

    folder = volume.folder / "coarse"
    store = zarr.open_array(store_path(volume, is_sharded=False), mode="r")
    values = da.from_array(store, chunks=(4 * CHUNK,) * 3)
    level = xr.DataArray(values, dims=("z", "y", "x"), name="image")
    encoding = {"compressors": store.compressors, "chunks": (CHUNK,) * 3}
    writes = []
    for number in range(1, _LEVELS + 1):
        means = level.coarsen(z=2, y=2, x=2, boundary="pad").mean()
        level = means.round().astype(volume.values.dtype)
        path = folder / f"level{number}.zarr"
        chunked = level.chunk(dict.fromkeys("zyx", 2 * CHUNK))
        writes.append(
            chunked.to_dataset().to_zarr(
                path,
                mode="w",
                encoding={"image": encoding},
                consolidated=False,
                compute=False,
            )
        )
    dask.compute(*writes)


def _ngff_job(volume: Volume) -> Callable[[int], Any]:
    """Return what makes the levels with ngff-zarr.

    Raises
    ------
    ImportError
        When it is not installed.
    """
    import ngff_zarr
    import zarr

    def job(repeat: int) -> None:
        store = zarr.open_array(store_path(volume, is_sharded=False), mode="r")
        image = ngff_zarr.to_ngff_image(
            da.from_array(store, chunks=(4 * CHUNK,) * 3), dims=("z", "y", "x")
        )
        levels = ngff_zarr.to_multiscales(
            image,
            scale_factors=[2**level for level in range(1, _LEVELS + 1)],
            method=ngff_zarr.Methods.DASK_BIN_SHRINK,
            chunks=CHUNK,
        )
        # The first time, which is not counted, the volume itself is written as well.
        ngff_zarr.to_ngff_zarr(
            volume.folder / "ngff.zarr",
            levels,
            overwrite=repeat == 0,
            start_level=min(repeat, 1),
            consolidate_metadata=False,
        )

    return job
