"""NetCDF files: xarray and netCDF4 are the oracles; stored numbers stay as they are stored."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import MlaArray, open_mla, to_mla
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.errors import (
    ConversionError,
    MissingDependencyError,
    MlaError,
    MlaWarning,
    SourceChanged,
)
from mlarray_xr.foreign.netcdf import NetcdfArray, open_image
from tests.strategies import boxes, shapes, values_of

if TYPE_CHECKING:
    from pathlib import Path

    from mlarray_xr.foreign.image import ForeignImage

FORMATS = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA", "NETCDF4")
CLASSIC = ("i1", "<i2", "<i4", "<f4", "<f8")
RAW = np.arange(4 * 5 * 6, dtype="<i2").reshape(4, 5, 6)
WHOLE = (slice(0, 4), slice(0, 5), slice(0, 6))


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def converted(image: ForeignImage, path: Path) -> xr.DataArray:
    to_mla(image.values, path, metadata=image.metadata, mode="w")
    return attach_coords(open_mla(path))


def labelled() -> xr.DataArray:
    return xr.DataArray(
        RAW,
        dims=("time", "y", "x"),
        coords={
            "time": np.array(["2026-01-01", "2026-01-02", "2026-01-05", "2026-02-01"], "M8[ns]"),
            "y": ("y", 3 - 0.5 * np.arange(5), {"units": "mm"}),
            "x": ("x", 0.25 * np.arange(6), {"units": "mm"}),
            "bval": ("time", [0, 700, 1000, 2000], {"units": "s/mm2"}),
            "site": ("time", ["a", "bc", "µ", "d"]),
            "age": 3.5,
        },
        attrs={"institute": "somewhere", "window": [-100.0, 200.0], "number": 7},
        name="ct",
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    labelled().to_netcdf(tmp_path / "ct.nc")
    return tmp_path / "ct.nc"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_values_come_back_in_every_format_and_box(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(shapes(min_dims=1, min_side=1))
    form: Any = data.draw(st.sampled_from(FORMATS))
    names = ("u1", "<u8", ">i2", ">f8", *CLASSIC) if form == "NETCDF4" else CLASSIC
    dtype = np.dtype(data.draw(st.sampled_from(names)))
    values = values_of(shape, dtype, 3)
    with netCDF4.Dataset(tmp_path / "a.nc", "w", format=form) as file:
        for axis, n in enumerate(shape):
            is_open = axis == 0 and data.draw(st.booleans())
            file.createDimension(f"d{axis}", None if is_open else n)
        dims = [f"d{axis}" for axis in range(len(shape))]
        order = "big" if dtype.byteorder == ">" else "little"
        endian: Any = order if form == "NETCDF4" else "native"
        with mock.patch("warnings.warn"):  # netCDF4 warns that it does what it is told
            file.createVariable("a", dtype, dims, endian=endian)[...] = values
    image = opened(tmp_path / "a.nc")
    assert image.values.shape == shape
    assert image.values.dtype.newbyteorder("=") == dtype.newbyteorder("=")
    assert form != "NETCDF4" or image.values.dtype == dtype
    box = data.draw(boxes(shape))
    key = tuple(slice(a, b) for a, b in box)
    found = image.values[key]
    assert found.dtype == image.values.dtype
    np.testing.assert_array_equal(found, values[key])
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata, mode="w")
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], values)


@pytest.mark.parametrize("form", ["NETCDF3_64BIT", "NETCDF4"])
def test_labels_come_back(form: Any, tmp_path: Path) -> None:
    labelled().to_netcdf(tmp_path / "a.nc", format=form)
    found = converted(opened(tmp_path / "a.nc"), tmp_path / "a.mla")
    expected = labelled()
    assert (found.name, found.dims) == (expected.name, expected.dims)
    np.testing.assert_array_equal(found, expected)
    assert {*found.coords} == {*expected.coords}
    for name in expected.coords:
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.y.attrs["units"] == "mm"
    assert found.bval.attrs == {"units": "s/mm2"}
    assert found.mla.spacing == {"y": 0.5, "x": 0.25}
    assert {"institute": "somewhere", "window": [-100, 200], "number": 7}.items() <= (
        found.attrs.items()
    )


def test_files_written_from_mla_have_their_metadata_back(tmp_path: Path) -> None:
    to_mla(labelled().drop_vars(["site"]), tmp_path / "a.mla")
    array = open_mla(tmp_path / "a.mla")
    array.to_netcdf(tmp_path / "a.nc")
    image = opened(tmp_path / "a.nc")
    assert image.metadata == array.mla.metadata
    flipped = array[:, ::-1]
    flipped.to_netcdf(tmp_path / "b.nc")
    found = converted(opened(tmp_path / "b.nc"), tmp_path / "b.mla")
    np.testing.assert_array_equal(found.mla.affine, flipped.mla.affine)


def test_stored_numbers_are_neither_scaled_nor_masked(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("x", 3)
        a = file.createVariable("a", "i2", ("x",), fill_value=-1)
        a.scale_factor, a.add_offset, a.valid_max, a._Unsigned = 0.5, 10.0, np.int16(5), "true"
        a.set_auto_maskandscale(False)
        a[:] = [-1, 4, 9]
    image = opened(tmp_path / "a.nc")
    assert image.values.dtype == np.int16
    assert image.values[(slice(0, 3),)].tolist() == [-1, 4, 9]
    found = converted(image, tmp_path / "a.mla")
    wanted = {"scale_factor": 0.5, "add_offset": 10, "valid_max": 5, "_FillValue": -1}
    assert wanted.items() <= found.attrs.items()


def test_times_that_are_voxels_stay_numbers(tmp_path: Path) -> None:
    times = np.array([["2026-01-01", "2026-01-03"]], "M8[ns]")
    xr.DataArray(times, dims=("y", "x"), name="t").to_netcdf(tmp_path / "a.nc")
    image = opened(tmp_path / "a.nc")
    assert image.values[slice(0, 1), slice(0, 2)].tolist() == [[0, 2]]
    assert converted(image, tmp_path / "a.mla").attrs["units"].startswith("days since")


def test_calendars_that_numpy_lacks_stay_numbers(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("time", 2)
        time = file.createVariable("time", "f8", ("time",))
        time.units, time.calendar, time[:] = "days since 2000-01-01", "360_day", [0, 59]
        file.createVariable("a", "f4", ("time",))[:] = 7
    found = converted(opened(tmp_path / "a.nc"), tmp_path / "a.mla")
    assert found.time.values.tolist() == [0, 59]
    assert found.time.attrs["calendar"] == "360_day"


def test_plain_units_of_time_are_no_time_spans(tmp_path: Path) -> None:
    xr.DataArray([7, 8], dims="time", coords={"time": ("time", [0.0, 0.5], {"units": "s"})}).rename(
        "a"
    ).to_netcdf(tmp_path / "a.nc")
    found = converted(opened(tmp_path / "a.nc"), tmp_path / "a.mla")
    assert (found.time.values.tolist(), found.time.attrs) == ([0, 0.5], {"units": "s"})


def test_variables_in_groups_see_the_dimensions_around_them(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("x", 3)
        file.createVariable("x", "f8", ("x",))[:] = [1, 3, 5]
        group = file.createGroup("scan").createGroup("one")
        group.createDimension("y", 2)
        group.createVariable("a", "f4", ("y", "x"))[:] = 7
        group.createVariable("b", "i4", ("y", "x"))[:] = 8
    with pytest.raises(ConversionError, match=r"'scan/one/a' \(2, 3\).*'scan/one/b'"):
        opened(tmp_path / "a.nc", "scan")
    found = converted(opened(tmp_path / "a.nc", "scan/one/a"), tmp_path / "a.mla")
    assert found.dims == ("y", "x")
    assert found.x.values.tolist() == [1, 3, 5]


def test_coordinates_are_no_candidates(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("x", 3)
        file.createDimension("n", 2)
        file.createVariable("x", "f8", ("x",)).bounds = "x_bounds"
        file.createVariable("x_bounds", "f8", ("x", "n"))
        file.createVariable("lat", "f8", ("x", "n"))
        file.createVariable("crs", "i4", ())
        a = file.createVariable("a", "i2", ("x", "n"))
        a.grid_mapping, a.coordinates = "crs", "lat"
    with pytest.warns(MlaWarning, match="'lat'.*left out"):
        image = opened(tmp_path / "a.nc")
    assert image.metadata.extra["mlarray_xr"]["name"] == "a"  # type: ignore[index,call-overload]


@pytest.mark.parametrize("name", ["../ct", "a/../ct", ".", "a\\b", "nowhere", "ct/x"])
def test_names_lead_nowhere_else(name: str, raw: Path) -> None:
    with pytest.raises(ConversionError, match=r"dataset=|holds no"):
        opened(raw, name)


def test_elements_without_a_place_are_refused(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("x", 3)
        kinds: dict[str, Any] = {
            "text": str,
            "char": "S1",
            "record": file.createCompoundType(np.dtype([("a", "i4")]), "record_t"),
            "ragged": file.createVLType("i4", "ragged_t"),
        }
        for name, kind in kinds.items():
            file.createVariable(name, kind, ("x",))
        number = file.createEnumType("u1", "number_t", {"air": 0})
        file.createVariable("tissue", number, ("x",))
    for name in kinds:
        with pytest.raises(ConversionError, match="elements of type"):
            opened(tmp_path / "a.nc", name)
    assert opened(tmp_path / "a.nc").values.dtype == np.uint8


@pytest.mark.parametrize("form", FORMATS)
def test_truncated_files_are_refused(form: Any, tmp_path: Path) -> None:
    array = xr.DataArray(RAW + 1, dims=("z", "y", "x"), name="a", attrs={"title": "something"})
    array.to_netcdf(tmp_path / "a.nc", format=form, engine="netcdf4", unlimited_dims=["z"])
    data = (tmp_path / "a.nc").read_bytes()
    np.testing.assert_array_equal(opened(tmp_path / "a.nc").values[WHOLE], RAW + 1)
    for n in {0, 3, 4, 20, 100, len(data) // 2, len(data) - 4, len(data) - 1}:
        (tmp_path / "b.nc").write_bytes(data[:n])
        with pytest.raises(ConversionError, match=r"b\.nc"):
            opened(tmp_path / "b.nc")


def test_other_files_are_not_reached(raw: Path, tmp_path: Path) -> None:
    for name, link in {
        "link": h5py.ExternalLink("ct.nc", "/ct"),
        "soft": h5py.SoftLink("/nowhere"),
    }.items():
        path = tmp_path / f"{name}.nc"
        path.write_bytes(raw.read_bytes())
        with h5py.File(path, "a") as file:
            file["other"] = link
        with pytest.raises(ConversionError, match=rf"{name}\.nc.*(link|holds no)"):
            opened(path)
    with h5py.File(raw, "a") as file:
        file.create_dataset("other", shape=(4,), dtype="u1", external=[("secret", 0, 4)])
    with pytest.raises(ConversionError, match="lie in other files"):
        opened(raw, "ct")


def test_groups_inside_themselves_do_not_hang(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["loop"] = file["/"]
    with pytest.raises(ConversionError, match="second name of a group"):
        opened(raw)


def test_claims_cost_nothing(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("y", 2**30)
        file.createDimension("x", 2**29)
        file.createVariable("y", "f8", ("y",), chunksizes=(64,))
        file.createVariable("a", "i2", ("y", "x"), chunksizes=(64, 64), fill_value=3)
    with pytest.warns(MlaWarning, match="'y'.*left out"):
        image = opened(tmp_path / "a.nc")
    assert image.values[slice(2**29, 2**29 + 1), slice(7, 9)].tolist() == [[3, 3]]


def test_addresses_are_small_and_know_a_changed_file(raw: Path) -> None:
    values = opened(raw).values
    assert isinstance(values, NetcdfArray)
    data = pickle.dumps(values)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.__dask_tokenize__() == values.__dask_tokenize__()
    np.testing.assert_array_equal(again[WHOLE], RAW)
    (labelled() + 1).to_netcdf(raw)
    with pytest.raises(SourceChanged):
        again[WHOLE]


def test_threads_read_side_by_side_with_xarray(raw: Path) -> None:
    values = opened(raw).values
    # Opening a file through xarray in several threads crashes the library; reading does not.
    with xr.open_dataset(raw, engine="netcdf4", cache=False) as dataset:

        def read(i: int) -> Any:
            if i % 3 == 0:
                return dataset.ct[i % 4 :].values
            return values[slice(i % 4, 4), *WHOLE[1:]]

        with ThreadPoolExecutor(8) as pool:
            for i, found in enumerate(pool.map(read, range(48))):
                np.testing.assert_array_equal(found, RAW[i % 4 :])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_open_the_file_again(method: str, raw: Path) -> None:
    values = opened(raw).values
    values[WHOLE]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map(values.__getitem__, [WHOLE] * 4):
            np.testing.assert_array_equal(found, RAW)


def test_other_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "a.nc")
    (tmp_path / "a.nc").write_text("no NetCDF")
    with pytest.raises(ConversionError, match=r"a\.nc"):
        opened(tmp_path / "a.nc")
    for address in ("https://server/a.nc", "file:///a.nc"):
        with pytest.raises(MlaError, match="URL"):
            open_image(address, scratch_dir=None, dataset=None)


def test_without_netcdf4_the_extra_is_named(raw: Path) -> None:
    with (
        mock.patch.dict("sys.modules", {"netCDF4": None}),
        pytest.raises(MissingDependencyError, match=r"mlarray-xr\[netcdf\]"),
    ):
        opened(raw)
