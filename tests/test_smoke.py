"""The shortest proof that an installed package works, with its core dependencies alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

import mlarray_xr

IMAGE = Path(__file__).parent / "data" / "mla" / "0.0.54" / "img3d.mla"


def test_reads_a_file_of_the_reference_package() -> None:
    expected = np.load(IMAGE.with_suffix(".npy"))
    array = mlarray_xr.MlaArray(IMAGE)
    assert (array.shape, array.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_array_equal(array[...], expected)
    np.testing.assert_array_equal(array[1:3, ::2, -1], expected[1:3, ::2, -1])


def test_opens_as_a_dataset_by_entry_point_name() -> None:
    expected = np.load(IMAGE.with_suffix(".npy"))
    with xr.open_dataset(IMAGE, engine="mlarray", chunks={}) as dataset:
        (image,) = dataset.data_vars.values()
        np.testing.assert_array_equal(image.compute().values, expected)


def test_writes_what_it_reads_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-1000, 1000, (20, 30, 40), np.int16)
    volume = xr.DataArray(values, dims=("z", "y", "x"), coords={"z": 2.5 * np.arange(20)})
    target = tmp_path / "volume.mla"
    mlarray_xr.to_mla(volume.chunk({"z": 8}), target, patch=16)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(target)[...], values)
    with xr.open_dataset(target, engine="mlarray") as dataset:
        (image,) = dataset.data_vars.values()
        np.testing.assert_array_equal(image.values, values)
        np.testing.assert_allclose(image["z"].values, volume["z"].values)
