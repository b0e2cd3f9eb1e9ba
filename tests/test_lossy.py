"""Lossy writing: what was asked for is lost and nothing else, whoever writes and reads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import blosc2
import dask
import dask.array as da
import mlarray
import numpy as np
import pytest

from mlarray_xr import MlaArray, to_mla, verify
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.format.metadata import Metadata, Stats
from mlarray_xr.planning.codec import Codec
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CODEC = Codec.parse("zstd-1-shuffle-trunc7")
LAYOUT: dict[str, Any] = {"chunks": (16, 16, 16), "blocks": (8, 8, 16)}


def awkward(dtype: str) -> NDArray[Any]:
    """Return chunks of noise, which do not compress, of NaN, of zeros and of special values."""
    values = np.random.default_rng(3).normal(0, 100, (40, 33, 21)).astype(dtype)
    values[:16, :16, :16] = np.nan
    values[16:32, :16, :16] = 0
    limits = np.finfo(dtype)
    special = [np.nan, -np.nan, np.inf, -np.inf, -0.0, limits.max, limits.smallest_subnormal]
    values[32, 16, : len(special)] = special
    # A NaN of which truncation would make infinity.
    least_nan = limits.max.view(f"u{values.itemsize}") + 2
    values[0, 0, 0] = np.array(least_nan).view(dtype)
    return values


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_every_reader_reads_the_truncated_values(tmp_path: Path, dtype: str) -> None:
    values, path = awkward(dtype), tmp_path / "lossy.mla"
    before = values.tobytes()
    report = to_mla(values, path, codec=str(CODEC), lossy=True, **LAYOUT)
    assert values.tobytes() == before
    expected = CODEC.truncated(values).tobytes()
    assert expected != before
    for found in (
        blosc2.open(str(path))[...],
        mlarray.MLArray.open(path)[...],
        mlarray.MLArray.load(path)[...],
        MlaArray(path)[...],
    ):
        assert np.asarray(found).tobytes() == expected
    assert verify(path).state == "ok"
    assert report.codec == CODEC
    assert "zstd-1-shuffle-trunc7" in str(report)


def test_the_file_says_how_many_bits_it_keeps(tmp_path: Path) -> None:
    path = tmp_path / "lossy.mla"
    to_mla(awkward("f4"), path, codec=CODEC, lossy=True, **LAYOUT)
    stored = blosc2.open(str(path)).schunk.cparams
    assert stored.filters[4:] == [blosc2.Filter.TRUNC_PREC, blosc2.Filter.SHUFFLE]
    assert stored.filters_meta[4] == CODEC.mantissa_bits
    assert MlaArray(path).info()["filters"] == ["trunc_prec", "shuffle"]


def test_recorded_ranges_are_those_of_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "lossy.mla"
    to_mla(awkward("f4")[32:], path, codec=CODEC, lossy=True, **LAYOUT)
    integrity = read_integrity(source_of(path))
    assert integrity is not None
    assert integrity.statistics is not None
    least = np.fmin.reduce(MlaArray(path)[:16, :16, :16], axis=None)
    assert integrity.statistics.least[0] == least
    assert least == CODEC.truncated(least.reshape(1))[0]


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_tasks_lose_the_same_bits(tmp_path: Path, scheduler: str) -> None:
    values = awkward("f4")
    paths = [tmp_path / name for name in ("whole.mla", "tasks.mla", "again.mla")]
    whole, tasks, again = paths
    to_mla(values, whole, codec=CODEC, lossy=True, **LAYOUT)
    with dask.config.set(scheduler=scheduler):
        to_mla(da.from_array(values, chunks=-1), tasks, codec=CODEC, lossy=True, **LAYOUT)
    to_mla(MlaArray(whole), again, codec=CODEC, lossy=True, **LAYOUT)
    assert whole.read_bytes() == tasks.read_bytes()
    assert MlaArray(again)[...].tobytes() == CODEC.truncated(values).tobytes()


@pytest.mark.parametrize("dtype", ["i2", "u1", "?", "c8", ">f4", "f2"])
def test_types_that_cannot_lose_bits_are_refused_before_anything_is_written(
    tmp_path: Path, dtype: str
) -> None:
    with pytest.raises(LayoutError, match=r"keeps 7 mantissa bits, which .* cannot lose"):
        to_mla(np.zeros((4, 4), dtype), tmp_path / "no.mla", codec=CODEC, lossy=True)
    assert os.listdir(tmp_path) == []


def test_a_write_that_kept_other_bits_is_not_resumed(tmp_path: Path) -> None:
    def fails(block: NDArray[Any]) -> NDArray[Any]:
        raise OSError("the disk is full")

    path = tmp_path / "lossy.mla"
    wanted: dict[str, Any] = {"resume": True, "lossy": True, **LAYOUT}
    values = da.from_array(awkward("f4"), chunks=-1).map_blocks(
        fails, meta=np.empty((0,) * 3, "f4")
    )
    with pytest.raises(OSError, match="the disk is full"):
        to_mla(values, path, codec=CODEC, **wanted)
    with pytest.raises(ConversionError, match="codec"):
        to_mla(values, path, codec="zstd-1-shuffle-trunc8", **wanted)


def test_a_lossy_file_stays_one_when_it_is_edited(tmp_path: Path) -> None:
    path, values = tmp_path / "lossy.mla", awkward("f8")
    to_mla(values, path, codec=CODEC, lossy=True, **LAYOUT)
    array = MlaArray(path, mode="r+")
    array[20:30, 3:30, 5] = values[20:30, 3:30, 5] = np.pi
    assert MlaArray(path)[...].tobytes() == CODEC.truncated(values).tobytes()
    assert verify(path).state == "ok"


def test_more_bits_take_more_room(tmp_path: Path) -> None:
    values, sizes = np.random.default_rng(0).normal(0, 1, (64, 64, 64)).astype("f4"), []
    for codec in ("zstd-1-shuffle-trunc4", "zstd-1-shuffle-trunc12", "zstd-1"):
        path = tmp_path / f"{codec}.mla"
        sizes.append(to_mla(values, path, codec=codec, lossy=True).file_bytes)
    assert sizes[0] < 0.6 * sizes[1] < 0.6 * 0.8 * sizes[2]


@pytest.mark.parametrize("is_lossy", [False, True])
def test_statistics_of_other_values_are_not_kept(tmp_path: Path, is_lossy: bool) -> None:
    stated = Stats(min=0.0, max=1.0)
    codec = str(CODEC) if is_lossy else "zstd-1"
    path, metadata = tmp_path / "a.mla", Metadata(has_array=True, stats=stated)
    to_mla(awkward("f4"), path, codec=codec, lossy=is_lossy, metadata=metadata)
    assert MlaArray(path).metadata.stats == (Stats() if is_lossy else stated)
