"""An unconverted file through an installed package, its entry points and the zarr-python there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

zarr = pytest.importorskip("zarr")

IMAGE = Path(__file__).parent / "data" / "mla" / "0.0.54" / "img3d.mla"


def test_reads_a_file_of_the_reference_package() -> None:
    from mlarray_xr.zarr import as_store

    expected = np.load(IMAGE.with_suffix(".npy"))
    image: Any = zarr.open_array(as_store(IMAGE), path="image", mode="r")
    np.testing.assert_array_equal(image[...], expected)
    np.testing.assert_array_equal(image[1:3, ::2, 5], expected[1:3, ::2, 5])
    points = tuple(np.arange(3) for _ in expected.shape)
    np.testing.assert_array_equal(image.vindex[points], expected[points])


def test_writes_what_it_reads_back(tmp_path: Path) -> None:
    values = np.arange(24**3, dtype=np.int16).reshape(24, 24, 24)
    codec = {"name": "mlarray_xr.b2nd", "configuration": {"chunks": [8, 24, 24]}}
    array: Any = zarr.create_array(
        str(tmp_path / "a.zarr"),
        data=values,
        chunks=(8, 24, 24),
        serializer=codec,
        compressors=None,
    )
    np.testing.assert_array_equal(array[5:19, 3, ::3], values[5:19, 3, ::3])
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a.zarr"))[...], values)
