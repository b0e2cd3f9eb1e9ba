"""Copying compressed chunks between files and Zarr stores, and the plain ways through xarray."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from benchmarks.report import Goal, Row, Table
from benchmarks.timing import time_paired
from mlarray_xr import MlaArray, to_mla
from mlarray_xr.zarr import B2ndCodec, from_zarr, to_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.data import Workplace
    from benchmarks.timing import Samples

__all__ = ["run"]

COPIED, ONE_SHARD, PLAIN, OUR_CODEC = (
    "to_zarr",
    'to_zarr, shards="file"',
    "xarray to_zarr, zarr's default codec",
    "xarray to_zarr, the codec of the file",
)
BACK, PLAIN_BACK = "from_zarr", "xr.open_zarr, then to_mla"
_FASTER = Goal(of="ratio", relation=">=", bound=1.0)
_MOST_REPEATS = 3


def run(workplace: Workplace) -> list[Table]:
    """Return one table: seconds for an int16 volume."""
    volume = workplace.volume("int16")
    folder, repeats = volume.folder, min(workplace.size.repeats, _MOST_REPEATS)
    out = {name: folder / f"out{number}.zarr" for number, name in enumerate((COPIED, ONE_SHARD))}
    jobs: dict[str, Callable[[int], object]] = {
        COPIED: lambda _: to_zarr(volume.path, out[COPIED], mode="w"),
        ONE_SHARD: lambda _: to_zarr(volume.path, out[ONE_SHARD], mode="w", shards="file"),
        PLAIN: lambda _: _through_xarray(volume.path, folder / "plain-copy.zarr"),
        OUR_CODEC: lambda _: _through_xarray(
            volume.path, folder / "coded.zarr", serializer=B2ndCodec.of(MlaArray(volume.path))
        ),
    }
    there = time_paired(jobs, repeats=repeats, patience_s=workplace.size.patience_s)
    _check(volume.values, out[COPIED], out[ONE_SHARD])
    jobs = {
        BACK: lambda _: from_zarr(out[COPIED], folder / "back.mla", mode="w"),
        PLAIN_BACK: lambda _: to_mla(
            xr.open_zarr(out[COPIED], chunks={}).image,
            folder / "recoded.mla",
            mode="w",
            **_layout(volume.path),
        ),
    }
    back = time_paired(jobs, repeats=repeats, patience_s=workplace.size.patience_s)
    if not np.array_equal(MlaArray(folder / "back.mla")[...], volume.values):
        msg = "what came back differs"
        raise RuntimeError(msg)
    megabytes = volume.values.nbytes / 1e6
    rows = [
        *_rows(f"{megabytes:.0f} MB to Zarr", there, mine=COPIED),
        *_rows(f"{megabytes:.0f} MB from Zarr", back, mine=BACK),
    ]
    return [
        Table(
            name="zarr-copying",
            title="Copying to Zarr and back",
            about=(
                "Seconds for an int16 volume in the layout of the file, on the local disk. Ours "
                "copies the compressed chunks; both plain ways decode and encode with Dask's "
                "threads."
            ),
            rows=tuple(rows),
        )
    ]


def _rows(case: str, taken: dict[str, Samples], *, mine: str) -> list[Row]:
    """Return the rows of one direction."""
    return [
        Row(
            case=case,
            contender=name,
            unit="s",
            median=samples.median,
            best=samples.best,
            ratio=None if name == mine else samples.ratio_to(taken[mine]),
            goal=_FASTER if name in (PLAIN, OUR_CODEC, PLAIN_BACK) else None,
            others=samples.others,
        )
        for name, samples in taken.items()
    ]


def _layout(path: Path) -> dict[str, tuple[int, ...]]:
    """Return chunks and blocks of a file, as `to_mla` takes them."""
    file = MlaArray(path)
    return {"chunks": file.chunks, "blocks": file.blocks}


def _through_xarray(path: Path, folder: Path, *, serializer: B2ndCodec | None = None) -> None:
    """Write as users of xarray do."""
    shutil.rmtree(folder, ignore_errors=True)
    dataset = xr.open_dataset(path, engine="mlarray", chunks={})
    encoding: dict[str, object] = {"chunks": MlaArray(path).chunks}
    if serializer is not None:
        encoding |= {"serializer": serializer, "compressors": None}
    for variable in dataset.variables.values():
        variable.encoding.clear()
    dataset.to_zarr(folder, zarr_format=3, consolidated=False, encoding={"image": encoding})


def _check(values: np.ndarray, *folders: Path) -> None:
    """Compare the copies: the time of wrong values means nothing."""
    for folder in folders:
        found = xr.open_zarr(folder, chunks=None).image[:20, :20, :20].values
        if not np.array_equal(found, values[:20, :20, :20]):
            msg = f"{folder} holds wrong values"
            raise RuntimeError(msg)
