"""What `to_mla` takes: datasets of several variables, and arrays that are read when sliced."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import mlarray_xr
from mlarray_xr.errors import ConversionError, TargetBusy
from mlarray_xr.subject import subject_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

VALUES = np.random.default_rng(3).integers(-90, 90, (20, 18, 16), np.int16)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def case(values: Any = VALUES) -> xr.Dataset:
    coords = {dim: 0.5 * np.arange(n) for dim, n in zip("zyx", VALUES.shape, strict=True)}
    image = xr.DataArray(values, dims=("z", "y", "x"), coords=coords)
    return xr.Dataset({"ct": image, "mask": (image > 0).astype("u1"), "plane": image[3]})


# Datasets of several variables


@pytest.mark.parametrize("lazy", [False, True])
def test_a_dataset_becomes_a_folder_of_files(tmp_path: Path, lazy: bool) -> None:
    dataset = case(da.from_array(VALUES, chunks=(7, 18, 5)) if lazy else VALUES)
    folder = tmp_path / "case"
    reports = mlarray_xr.to_mla(dataset, folder, patch=8)
    assert list(reports) == ["ct", "mask", "plane"]
    assert names_in(folder) == ["ct.mla", "mask.mla", "plane.mla"]
    assert reports["ct"].path == str(folder / "ct.mla")
    opened = xr.open_mfdataset(str(folder / "*.mla"), engine="mlarray", join="outer")
    for name in ("ct", "mask"):
        xr.testing.assert_equal(opened[name].compute(), dataset[name].compute())


def test_variables_that_share_a_source_read_it_once(tmp_path: Path) -> None:
    calls, lock = [], threading.Lock()

    def count(block: NDArray[Any], block_id: Any = None) -> NDArray[Any]:
        with lock:
            calls.append(block_id)
        return block

    meta = np.empty((0, 0, 0), "i2")
    source = da.from_array(VALUES, chunks=(10, 18, 16)).map_blocks(count, dtype="i2", meta=meta)
    image = xr.DataArray(source, dims=("z", "y", "x"))
    with dask.config.set(scheduler="synchronous"):
        mlarray_xr.to_mla(
            xr.Dataset({"a": image, "b": image + 1}), tmp_path / "case", codec="lz4-1"
        )
    assert len(calls) == 2


def test_the_delayed_of_a_dataset_gives_all_reports(tmp_path: Path) -> None:
    later = mlarray_xr.to_mla(case(), tmp_path / "case", patch=8, compute=False)
    assert names_in(tmp_path / "case") == ["ct.mla.parts", "mask.mla.parts", "plane.mla.parts"]
    with pytest.raises(TargetBusy, match=str(os.getpid())):
        mlarray_xr.to_mla(case(), tmp_path / "case", patch=8)
    reports = later.compute()
    assert {name: report.shape for name, report in reports.items()} == {
        name: array.shape for name, array in case().data_vars.items()
    }
    assert names_in(tmp_path / "case") == ["ct.mla", "mask.mla", "plane.mla"]


def test_a_variable_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    dataset = case().assign(wrong=("z", np.array([object()] * 20)))
    with pytest.raises(ConversionError, match="type object"):
        mlarray_xr.to_mla(dataset, tmp_path / "case")
    assert names_in(tmp_path / "case") == []


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden", ""])
def test_names_that_are_no_files_are_refused(tmp_path: Path, name: str) -> None:
    dataset = case().rename(ct=name)
    with pytest.raises(ConversionError, match="no name for a file"):
        mlarray_xr.to_mla(dataset, tmp_path / "case")
    assert names_in(tmp_path) == []


# Arrays that are read when they are sliced


class Counted:
    """An array that notes the boxes that are read."""

    def __init__(self, values: NDArray[Any]) -> None:
        self._values, self.boxes = values, list[Any]()
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        self.boxes.append(key)
        part: NDArray[Any] = self._values[key]
        return part


def test_a_lazy_array_is_read_part_by_part_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.planning.write_plan._PART_BYTES", 1)
    source = Counted(VALUES)
    mlarray_xr.to_mla(source, tmp_path / "a.mla", chunks=(8, 9, 16), codec="lz4-1")
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], VALUES)
    assert len(source.boxes) == 6
    assert sum(VALUES[box].size for box in source.boxes) == VALUES.size


def on_disk_hdf5(folder: Path) -> Any:
    return h5py.File(folder / "a.h5", "w").create_dataset("image", data=VALUES)


def on_disk_zarr(folder: Path) -> Any:
    array = zarr.create_array(folder / "a.zarr", shape=VALUES.shape, chunks=(5, 5, 5), dtype="i2")
    array[...] = VALUES
    return array


def on_disk_memmap(folder: Path) -> Any:
    np.save(folder / "a.npy", VALUES)
    return np.load(folder / "a.npy", mmap_mode="r")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "hdf5": on_disk_hdf5,
    "zarr": on_disk_zarr,
    "memmap": on_disk_memmap,
    "series": lambda _: pd.Series(VALUES.ravel()),
    "index": lambda _: pd.Index(VALUES.ravel()),
    "scalar": lambda _: np.float32(3.5),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=list(SOURCES))
def test_arrays_of_other_libraries(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    source = make(tmp_path)
    mlarray_xr.to_mla(source, tmp_path / "a.mla")
    np.testing.assert_array_equal(
        mlarray_xr.MlaArray(tmp_path / "a.mla")[...], np.asarray(source)[()]
    )


# What tells that values are the same


def test_tokens_change_with_the_values(tmp_path: Path) -> None:
    def token(obj: Any) -> str:
        return subject_of(obj).token()

    assert token(VALUES) == token(VALUES.copy()) == token(np.asfortranarray(VALUES))
    changed = VALUES.copy()
    changed[-1, -1, -1] += 1
    assert token(changed) != token(VALUES) != token(VALUES.view("u2"))
    assert token(VALUES) != token(VALUES.reshape(18, 20, 16))
    lazy = da.from_array(VALUES, chunks=5)
    assert token(lazy) == token(da.from_array(VALUES, chunks=5)) != token(lazy + 1)
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path)
    before = token(mlarray_xr.MlaArray(path))
    assert before == token(mlarray_xr.MlaArray(path))
    mlarray_xr.to_mla(changed, path, mode="w")
    assert before != token(mlarray_xr.MlaArray(path))
    mapped = on_disk_memmap(tmp_path)
    assert token(mapped) == token(VALUES) != token(mapped[1:])


def test_resuming_what_nothing_identifies_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="nothing tells whether this Counted"):
        mlarray_xr.to_mla(Counted(VALUES), tmp_path / "a.mla", resume=True)
    assert names_in(tmp_path) == []


def test_a_lazy_array_without_axes(tmp_path: Path) -> None:
    source = h5py.File(tmp_path / "a.h5", "w").create_dataset("x", data=np.array(7, ">i4"))
    mlarray_xr.to_mla(source, tmp_path / "a.mla")
    array = mlarray_xr.MlaArray(tmp_path / "a.mla")
    assert (array.dtype.str, array[()]) == (">i4", 7)
