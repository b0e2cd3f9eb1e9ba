from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import MlaWarning
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.record import Record, StoredCoordinate
from tests.fake_file import ZYX, image, image_of, opened, reopened, rich

OBLIQUE = ((0.5, 0.0, 0.1, -10.0), (0.0, 0.75, 0.0, 20.0), (0.0, 0.05, 2.0, 30.5), (0, 0, 0, 1))


def test_aligned_geometry_gives_positions_of_voxel_centres() -> None:
    array = image_of(rich(), (2, 3, 4, 5))
    np.testing.assert_array_equal(array.z, 10 + 3.0 * np.arange(3))
    np.testing.assert_array_equal(array.x, 30.125 + 0.5 * np.arange(5))
    assert array.z.attrs == {
        "long_name": "voxel centre along z",
        "spatial_dim": "z",
        "axis": "Z",
        "units": "mm",
    }
    assert "channel" not in array.coords
    assert array.attrs["spatial_coords"] == "world position"


def test_image_and_mask_of_the_same_numbers_have_identical_coordinates() -> None:
    triple = image((4, 5), spacing=(0.1, 0.7), origin=(0.3, -11.7))
    affine = image((4, 5), affine=((0.1, 0, 0.3), (0, 0.7, -11.7), (0, 0, 1)))
    xr.testing.assert_identical(triple.coords.to_dataset(), affine.coords.to_dataset())
    assert (triple + affine).shape == (4, 5)


@pytest.mark.parametrize(
    "spatial",
    [
        {},
        {"affine": OBLIQUE},
        {"spacing": (math.nan, 0, -1)},
        {"spacing": (math.inf, 1, 1)},
        {"spacing": (1e-20, 1, 1), "origin": (1e6, 0, 0)},
        {"spacing": (1e308, 1, 1), "origin": (1e308, 0, 0)},
    ],
)
def test_coordinates_that_would_lie_are_indices(spatial: dict[str, Any]) -> None:
    array = image((4, 5, 6), **spatial)
    assert array.attrs["spatial_coords"] == "voxel index"
    for dim, n in array.sizes.items():
        assert isinstance(array.indexes[dim], pd.RangeIndex)
        np.testing.assert_array_equal(array[dim], np.arange(n))
    assert ("affine" in array.attrs) is bool(spatial)
    if "spacing" in spatial:
        np.testing.assert_array_equal(array.attrs["spacing"], np.abs(spatial["spacing"]))


def test_an_extent_beyond_memory_is_described() -> None:
    metadata = Metadata(spatial=Spatial(spacing=(1, 1)), has_array=True)
    values = np.broadcast_to(np.int16(0), (2**40, 3))
    dataset = opened(metadata, values.shape, lazy=values)
    assert dataset.sizes["y"] == 2**40
    assert dataset["image"][2**39 :].mla.origin == (2**39, 0)


def test_geometry_from_coordinates_alone() -> None:
    coords = {"z": 5 + 0.3 * np.arange(7), "y": [4.0], "x": 3.5 - 0.1 * np.arange(6)}
    array = xr.DataArray(np.zeros((2, 7, 1, 6)), coords=coords, dims=("time", "z", "y", "x"))
    spatial = metadata_of(array).spatial
    assert spatial.axis_labels == ("temporal", *ZYX)
    assert spatial.affine == ((0.3, 0, 0, 5), (0, 1, 0, 4), (0, 0, -0.1, 3.5), (0, 0, 0, 1))
    xr.testing.assert_equal(reopened(array).coords["z"], array.coords["z"])


@pytest.mark.parametrize("system", ["RAS", "LPS+"])
def test_patient_axes_are_x_y_z_in_any_array_order(system: str) -> None:
    coords = {"z": 5 + 3.0 * np.arange(4), "y": 4 - 2.0 * np.arange(3), "x": 0.5 * np.arange(2)}
    array = xr.DataArray(
        np.zeros((4, 3, 2)), coords, ("z", "y", "x"), attrs={"coord_system": system}
    )
    wanted = [[0, 0, 0.5, 0], [0, -2, 0, 4], [3, 0, 0, 5], [0, 0, 0, 1]]
    assert array.mla.affine.tolist() == wanted
    assert array.mla.coord_system == system
    again = reopened(array)
    assert again.mla.affine_in("RAS").tolist() == array.mla.affine_in("RAS").tolist()
    for dim in coords:
        np.testing.assert_allclose(again[dim], array[dim])


@pytest.mark.parametrize("z", [[0.0, 1, 5], [1, 2, 3], ["a", "b", "c"], None])
def test_coordinates_that_are_no_geometry_are_stored_as_they_are(z: Any) -> None:
    coords: dict[str, Any] = {"x": [1.0, 2.0]} if z is None else {"z": z, "x": [1.0, 2.0]}
    if z == [1, 2, 3]:
        coords["x"] = [4, 8]
    array = xr.DataArray(np.zeros((3, 2)), coords=coords, dims=("z", "x"))
    assert metadata_of(array).spatial.affine is None
    xr.testing.assert_equal(reopened(array).coords["x"], array.coords["x"])
    if z is not None:
        xr.testing.assert_equal(reopened(array).coords["z"], array.coords["z"])


@pytest.mark.parametrize(
    "values",
    [
        np.arange(3),
        np.array([0.1, math.nan, math.inf]),
        np.array([0.1, 0.2, 0.3], "float32"),
        np.array(["a", "bcd", ""]),
        np.array([True, False, True]),
        np.array(["2026-01-02", "NaT", "1969-12-31T23:59:59.123456789"], "M8[ns]"),
        np.array([1, 2, 3], "m8[s]"),
        np.array([0, 2**64 - 1, 5], "uint64"),
    ],
)
def test_coordinates_survive_bit_by_bit(values: Any) -> None:
    coords = {"time": ("time", values, {"units": "s"}), "b": ("time", values[::-1]), "s": values[1]}
    array = xr.DataArray(np.zeros((3, 2)), coords=coords, dims=("time", "x"))
    back = attach_coords(reopened(array))
    if len(np.unique(values)) == 3:
        assert back.b.dtype == array.b.dtype
        xr.testing.assert_equal(back.b, array.b)
    assert back.s.dtype == array.s.dtype
    xr.testing.assert_equal(back.s, array.s)
    assert back.time.attrs == {"units": "s"}
    np.testing.assert_array_equal(back.time, array.time)


@pytest.mark.parametrize("dim", ["time", "z"])
def test_coordinates_without_an_index_follow_selections(dim: str) -> None:
    values = np.array([0.0, 700.0, 1000.0, 700.0])
    array = xr.DataArray(
        np.zeros((4, 4)), coords={"b": (dim, values), "z": 3.0 * np.arange(4)}, dims=("time", "z")
    )
    back = reopened(array)
    assert "b" not in back.coords
    np.testing.assert_array_equal(attach_coords(back).b, values)
    view = back.isel({dim: slice(None, 0, -2)})
    np.testing.assert_array_equal(attach_coords(view).b, values[:0:-2])
    np.testing.assert_array_equal(attach_coords(reopened(view)).b, values[:0:-2])
    assert attach_coords(back.isel({dim: 2})).b == 1000


@pytest.mark.parametrize("chunks", [{}, {"time": 1}, {"time": 3, "z": 1}])
def test_restored_coordinates_leave_dask_chunks_consistent(chunks: Any) -> None:
    coords = {"time": [5, 6, 7, 9], "b": ("time", [1, 2, 3, 4]), "z": [1.0, 2.0], "s": 3}
    array = xr.DataArray(np.zeros((4, 2)), coords=coords, dims=("time", "z"))
    back = reopened(array).to_dataset(name="image").chunk(chunks)
    assert back["image"].chunks is not None
    assert back.chunks["time"] == back["image"].chunks[0]
    assert "b" not in back.coords


@pytest.mark.parametrize(
    ("name", "value"),
    [("lat", (("y", "x"), np.zeros((2, 3)))), ("c", (("y",), [1j, 2j])), ("o", ("y", [None, "a"]))],
)
def test_coordinates_that_no_file_holds_are_named(name: str, value: Any) -> None:
    array = xr.DataArray(np.zeros((2, 3)), coords={name: value}, dims=("y", "x"))
    with pytest.warns(MlaWarning, match=f"{name!r} is not stored"):
        assert metadata_of(array).extra == {}


@pytest.mark.parametrize(
    "entry",
    [
        3,
        {"name": 3, "dims": "zyx", "attrs": [], "coords": 1, "plane": []},
        {"name": "", "dims": ["y", "y"], "coords": {"": {}, "a": 3, "b": {"dims": []}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "O", "values": [1, 2], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "i8", "values": [1], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "i8", "values": [[1, 2]], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "i1", "values": [999, 2], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "U", "values": [1, 2], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "i8", "values": ["1", "2"], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "f4", "values": [1e300, 2], "attrs": {}}}},
        {"coords": {"y": {"dims": ["y"], "dtype": "f1", "values": [1.0, 2.0], "attrs": {}}}},
        *(
            {"coords": {"y": {"dims": ["y"], "dtype": kind, "values": [2**62, 1], "attrs": {}}}}
            for kind in ("M8[0ns]", "M8[7s]", "M8[9999Y]", "m8[9999W]", "M8[Y]", "M8[D]", "M8")
        ),
        {"plane": {"dims": ["y", "x", "z"], "affine": [[[1]] * 4] * 4}},
        {"plane": {"dims": ["y", "x", "z"], "affine": [["1"] * 4] * 4}},
        {"plane": {"dims": [str(i) for i in range(99)], "affine": [[1] * 100] * 100}},
        {"coords": {"s": {"dims": [], "dtype": "U", "values": "x" * (1 << 25), "attrs": {}}}},
        {"coords": {"b": {"dims": ["q"], "dtype": "i8", "values": [1, 2], "attrs": {}}}},
        {"dims": ["a b", "x"], "plane": {"dims": ["y", "x", "z"], "affine": [[1]]}},
        {"plane": {"dims": ["y", "x", "y"], "affine": [[1.0] * 4] * 4}},
        {"plane": {"dims": ["y", "x", "a b"], "affine": [[1.0] * 4] * 4}},
    ],
)
def test_a_strange_entry_of_ours_is_left_out(entry: Any) -> None:
    array = image_of(Metadata(has_array=True, extra={"mlarray_xr": entry}), (2, 3))
    xr.testing.assert_identical(
        array.drop_attrs(), image_of(Metadata(has_array=True), (2, 3)).drop_attrs()
    )


@pytest.mark.parametrize("n", [2000, 3])
def test_coordinates_have_one_bound_in_memory(n: int) -> None:
    values = ["x" * 4000] + [""] * 1999
    entry = {"dims": ["y"], "dtype": "U", "values": values, "attrs": {}}
    coords = {f"c{i}": entry for i in range(200)}
    metadata = Metadata(has_array=True, extra={"mlarray_xr": {"coords": coords}})  # type: ignore[dict-item]
    tracemalloc.start()
    found = Record.of(metadata, shape=(n, 3)).coords
    array = image_of(metadata, (n, 3))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(found) == (["c0", "c1"] if n == 2000 else [])
    assert array.shape == (n, 3)
    assert peak_bytes < 160 << 20


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("value", [2**63 - 1, 2**62, -(2**63)])
def test_any_time_that_numpy_holds_opens(unit: str, value: int) -> None:
    entry = {"dims": ["y"], "dtype": f"M8[{unit}]", "values": [value, 1], "attrs": {}}
    metadata = Metadata(has_array=True, extra={"mlarray_xr": {"coords": {"y": entry}}})  # type: ignore[dict-item]
    array = image_of(metadata, (2, 3))
    assert repr(array)
    assert array.y.values.astype("i8").tolist() == [value, 1]


def test_the_entry_replaces_itself_and_nothing_else() -> None:
    extra = Record(name="a", attrs={"b": 1}).added_to({"other": 2})
    assert Record(name="c").added_to(extra) == {"other": 2, "mlarray_xr": {"name": "c"}}
    assert Record().added_to(extra) == {"other": 2}


def test_a_coordinate_of_two_dimensions_has_no_entry() -> None:
    with pytest.raises(TypeError, match="2 dimensions"):
        StoredCoordinate(dims=("y", "x"), values=np.zeros((2, 2))).to_entry()


def test_files_concatenate_along_a_new_dimension() -> None:
    cohort = [image((4, 5), affine=((1, 0.5, 0), (0, 1, 0), (0, 0, 1))) for _ in range(3)]
    stack = xr.concat([array.to_dataset() for array in cohort], "case")["image"]
    assert stack.sizes == {"case": 3, "y": 4, "x": 5}
    assert isinstance(stack.indexes["y"], pd.RangeIndex)
    np.testing.assert_array_equal(stack.mla.affine, cohort[0].mla.affine)
