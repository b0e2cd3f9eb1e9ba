"""HDF5 files: h5py is the oracle of values, NumPy of geometry; other files are never reached."""

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
from mlarray_xr.foreign.hdf5 import Hdf5Array, open_image
from mlarray_xr.foreign.hdf5_file import check_self_contained, is_hdf5
from mlarray_xr.foreign.labelled import labelled_metadata
from tests.strategies import NUMBERS, boxes, layouts, shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import xarray as xr

    from mlarray_xr.foreign.image import ForeignImage

RAW = np.arange(4 * 5 * 6, dtype="<u2").reshape(4, 5, 6)
WHOLE = (slice(0, 4), slice(0, 5), slice(0, 6))


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def converted(image: ForeignImage, path: Path) -> xr.DataArray:
    to_mla(image.values, path, metadata=image.metadata, mode="w")
    return attach_coords(open_mla(path))


def slices(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in box)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file.create_dataset("data", data=RAW, chunks=(2, 3, 4), compression="gzip")
    return tmp_path / "raw.h5"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_values_come_back_in_every_type_and_box(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(shapes(min_dims=1))
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS)))
    values = values_of(shape, dtype, 3)
    chunks = data.draw(layouts(shape))[0] if values.size and data.draw(st.booleans()) else None
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=values, chunks=chunks)
    image = opened(tmp_path / "a.h5")
    assert (image.values.shape, image.values.dtype) == (shape, dtype)
    box = data.draw(boxes(shape))
    found = image.values[slices(box)]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values[slices(box)])
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata, mode="w")
    written = MlaArray(tmp_path / "a.mla")
    assert written.dtype == dtype
    np.testing.assert_array_equal(written[...], values)


def test_arrays_without_axes_keep_their_byte_order(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.array(7, ">i4")
    found = opened(tmp_path / "a.h5").values[()]
    assert (found.shape, found.dtype, int(found)) == ((), np.dtype(">i4"), 7)


def test_enumerations_are_their_numbers(tmp_path: Path) -> None:
    kind = h5py.enum_dtype({"air": 0, "bone": 2}, basetype="<i2")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.array([[0, 2]], "<i2"), dtype=kind)
    values = opened(tmp_path / "a.h5").values
    assert values.dtype == np.dtype("<i2")
    assert values.dtype.metadata is None
    assert values[slice(0, 1), slice(0, 2)].tolist() == [[0, 2]]


def test_dimension_scales_are_coordinates(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("ct", data=RAW)
        for axis, (dim, step) in enumerate({"z": 2.5, "y": 0.5, "x": -0.25}.items()):
            file[dim] = 1 + step * np.arange(RAW.shape[axis])
            file[dim].make_scale(dim)
            file[dim].attrs["units"] = "mm"
            a.dims[axis].attach_scale(file[dim])
    image = opened(tmp_path / "a.h5")
    found = converted(image, tmp_path / "a.mla")
    assert (found.name, found.dims) == ("ct", ("z", "y", "x"))
    np.testing.assert_array_equal(found, RAW)
    np.testing.assert_array_equal(found.z, [1, 3.5, 6, 8.5])
    np.testing.assert_array_equal(found.x, 1 - 0.25 * np.arange(6))
    assert found.y.attrs["units"] == "mm"
    assert found.mla.spacing == {"z": 2.5, "y": 0.5, "x": 0.25}


def test_labels_name_dimensions_and_other_scales_stay_beside_them(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", data=RAW[0])
        a.dims[0].label = "channel"
        file["names"] = ["DAPI", "GFP", "a", "b", "c"]
        file["names"].make_scale("names")
        a.dims[0].attach_scale(file["names"])
    found = converted(opened(tmp_path / "a.h5"), tmp_path / "a.mla")
    assert found.dims == ("channel", "dim_1")
    assert found.names.values.tolist() == ["DAPI", "GFP", "a", "b", "c"]


def test_files_of_netcdf4_have_their_labels(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.h5", "w") as file:
        file.createDimension("time", 2)
        file.createDimension("x", 3)
        time = file.createVariable("time", "i4", ("time",))
        time[:] = [0, 36]
        time.units = "hours since 2026-01-01"
        file.createVariable("a", "f4", ("time", "x"))[:] = 7
    found = converted(opened(tmp_path / "a.h5"), tmp_path / "a.mla")
    assert found.dims == ("time", "x")
    assert found.time.values.astype("M8[h]").astype(str).tolist() == [
        "2026-01-01T00",
        "2026-01-02T12",
    ]


def test_element_size_is_the_spacing(raw: Path, tmp_path: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["data"].attrs["element_size_um"] = [0.5, 0.25, 0.125]
    image = opened(raw)
    assert image.metadata.spatial.spacing == (0.5, 0.25, 0.125)
    assert image.metadata.spatial.axis_labels is None
    found = converted(image, tmp_path / "a.mla")
    assert found.z.attrs["units"] == "um"
    np.testing.assert_array_equal(found.y, 0.25 * np.arange(5))


@pytest.mark.parametrize("size", [[1, 2], [1, 2, 0], [1, 2, np.nan], "large", b"x", 3])
def test_element_sizes_that_are_none_stay_attributes(size: Any, raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["data"].attrs["element_size_um"] = size
    metadata = opened(raw).metadata
    assert metadata.spatial.spacing is None
    assert "element_size_um" in metadata.extra["mlarray_xr"]["attrs"]  # type: ignore[index,call-overload,operator]


def test_axistags_name_the_axes(tmp_path: Path) -> None:
    tags = '{"axes": [{"key": "z"}, {"key": "y"}, {"key": "x"}, {"key": "c"}]}'
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("exported_data", data=RAW[..., None])
        a.attrs["axistags"] = tags
        a.attrs["element_size_um"] = [3.0, 2.0, 1.0]
    spatial = opened(tmp_path / "a.h5").metadata.spatial
    assert spatial.axis_labels == ("spatial_z", "spatial_y", "spatial_x", "channel")
    assert (spatial.spacing, spatial.axis_units) == ((3.0, 2.0, 1.0), ["um", "um", "um", ""])


@pytest.mark.parametrize(
    "tags", ["", "{", "[]", '{"axes": 3}', '{"axes": [{}]}', '{"axes": [{"key": "x"}]}', b"\xff"]
)
def test_broken_axistags_name_nothing(tags: Any, raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["data"].attrs["axistags"] = tags
    assert opened(raw).metadata.spatial.axis_labels is None


AFFINE = np.array([[0, 0, 2.5, -1], [-2, 0, 0, 5], [0, 1.5, 0, 7], [0, 0, 0, 1]])


def nifreeze(path: Path, **members: Any) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["Format"], file.attrs["Version"] = "NFDH5", np.uint16(1)
        file["0/dataobj"] = np.arange(120, dtype="f4").reshape(2, 3, 4, 5)
        file["0/affine"] = AFFINE
        file["0/brainmask"] = np.ones((2, 3, 4), bool)
        for name, value in members.items():
            if name in file["0"]:
                del file["0"][name]
            file["0"][name] = value


def test_nifreeze_series_have_affine_and_gradients(tmp_path: Path) -> None:
    gradients = np.arange(20.0).reshape(5, 4)
    nifreeze(tmp_path / "dwi.h5", gradients=gradients)
    image = opened(tmp_path / "dwi.h5")
    assert image.metadata.spatial.affine == tuple(map(tuple, AFFINE.tolist()))
    found = converted(image, tmp_path / "a.mla")
    assert found.dims == ("y", "z", "x", "time")
    assert found.mla.coord_system == "RAS+"
    np.testing.assert_array_equal(found.mla.affine, AFFINE)
    np.testing.assert_array_equal(found.bval, gradients[:, 3])
    np.testing.assert_array_equal(found.bvec_y, gradients[:, 1])


def test_nifreeze_pet_series_have_frame_times(tmp_path: Path) -> None:
    nifreeze(tmp_path / "pet.h5", midframe=np.array([1.0, 4, 9, 16, 25]))
    found = converted(opened(tmp_path / "pet.h5"), tmp_path / "a.mla")
    assert found.time.values.tolist() == [1, 4, 9, 16, 25]
    assert found.time.attrs["units"] == "s"


def test_other_arrays_of_nifreeze_share_the_affine(tmp_path: Path) -> None:
    nifreeze(tmp_path / "dwi.h5")
    mask = opened(tmp_path / "dwi.h5", "0/brainmask")
    assert (mask.values.dtype, mask.values.shape) == (np.dtype(bool), (2, 3, 4))
    assert mask.metadata.spatial.affine == tuple(map(tuple, AFFINE.tolist()))


@pytest.mark.parametrize(
    "member",
    [
        {"affine": np.eye(3)},
        {"affine": np.array([[b"x"] * 4] * 4)},
        {"affine": h5py.ExternalLink("raw.h5", "/data")},
        {"affine": h5py.SoftLink("/nowhere")},
        {"gradients": np.zeros((4, 4))},
        {"gradients": h5py.ExternalLink("raw.h5", "/data")},
        {"dataobj": h5py.ExternalLink("raw.h5", "/data")},
    ],
)
def test_broken_nifreeze_files_are_refused(
    member: dict[str, Any], raw: Path, tmp_path: Path
) -> None:
    nifreeze(tmp_path / "dwi.h5", **member)
    with pytest.raises(ConversionError, match=r"dwi\.h5"):
        opened(tmp_path / "dwi.h5")


def test_attributes_are_plain(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        attrs = file["data"].attrs
        attrs["text"], attrs["bytes"] = "µm", np.bytes_(b"old")
        attrs["one"], attrs["many"] = np.array([3]), np.array([1.5, 2.5])
        attrs["names"] = ["a", "b"]
        attrs["spacing"], attrs["affine"] = [1.0, 2.0, 3.0], "nonsense"
    assert opened(raw).metadata.extra["mlarray_xr"] == {
        "name": "data",
        "attrs": {
            "text": "µm",
            "bytes": "old",
            "one": 3,
            "many": [1.5, 2.5],
            "names": ["a", "b"],
            "hdf5_spacing": [1.0, 2.0, 3.0],
            "hdf5_affine": "nonsense",
        },
    }


def test_attributes_that_cannot_be_kept_are_told(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["data"].attrs["where"] = file["data"].ref
        file["data"].attrs["nothing"] = h5py.Empty("f4")
    with pytest.warns(MlaWarning, match="where|nothing"):
        metadata = opened(raw).metadata
    assert metadata.extra == {"mlarray_xr": {"name": "data"}}


def test_several_arrays_are_listed(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["g/mask"] = np.ones((4, 5), bool)
        file["times"] = np.arange(4.0)
        file["text"] = "no array"
    with pytest.raises(ConversionError, match=r"'/data' \(4, 5, 6\) uint16.*'/g/mask' \(4, 5\)"):
        opened(raw)
    assert opened(raw, "g").values.shape == (4, 5)
    assert opened(raw, "/g//mask").values.shape == (4, 5)
    assert opened(raw, "times").values.shape == (4,)


@pytest.mark.parametrize("name", ["../raw", "g/../data", ".", "a\\b", "a\nb", "nowhere", "data/x"])
def test_names_lead_nowhere_else(name: str, raw: Path) -> None:
    with pytest.raises(ConversionError, match=r"dataset=|holds no"):
        opened(raw, name)


def linked(file: Any) -> None:
    file["a"] = h5py.ExternalLink("raw.h5", "/data")


def linked_softly(file: Any) -> None:
    file["other"] = h5py.ExternalLink("raw.h5", "/")
    file["a"] = h5py.SoftLink("/other/data")


def linked_in_circles(file: Any) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("a")


def stored_outside(file: Any) -> None:
    file.create_dataset("a", shape=(4, 5), dtype="u1", external=[("raw.h5", 0, 20)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout(shape=RAW.shape, dtype=RAW.dtype)
    layout[:] = h5py.VirtualSource("raw.h5", "data", shape=RAW.shape)
    file.create_virtual_dataset("a", layout)


@pytest.mark.parametrize(
    "make", [linked, linked_softly, linked_in_circles, stored_outside, virtual]
)
def test_other_files_are_not_reached(
    make: Callable[[Any], None], raw: Path, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "b.h5", "w") as file:
        make(file)
    with pytest.raises(ConversionError, match=r"b\.h5.*(link|other files)"):
        opened(tmp_path / "b.h5", "a")
    with pytest.raises(ConversionError, match=r"b\.h5"):
        opened(tmp_path / "b.h5")
    with pytest.raises(ConversionError, match=r"b\.h5.*(link|other files)"):
        check_self_contained(str(tmp_path / "b.h5"))


def test_scales_are_not_reached_in_other_files_either(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file.create_dataset("z", shape=(4,), dtype="u1", external=[("secret.bin", 0, 4)])
        file["z"].make_scale("z")
        file["data"].dims[0].attach_scale(file["z"])
    with pytest.raises(ConversionError, match="lie in other files"):
        opened(raw)


def test_links_inside_the_file_are_followed(raw: Path) -> None:
    with h5py.File(raw, "a") as file:
        file["g/soft"] = h5py.SoftLink("../data")
        file["g/here"] = h5py.SoftLink("/data")
        file["loop"] = file["/"]
    np.testing.assert_array_equal(opened(raw, "g/here").values[WHOLE], RAW)
    np.testing.assert_array_equal(opened(raw, "loop/loop/g/here").values[WHOLE], RAW)
    np.testing.assert_array_equal(opened(raw).values[WHOLE], RAW)
    with pytest.raises(ConversionError, match="holds no"):  # HDF5 has no parent folders
        opened(raw, "g/soft")
    with pytest.raises(ConversionError):
        check_self_contained(str(raw))


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(3, [("a", "i4")]),
        np.array([b"ab", b"c"]),
        np.zeros((2, 3), np.longdouble),
        np.array(["a", "b"], h5py.string_dtype()),
        np.array([np.arange(2), np.arange(3)], object),
    ],
)
def test_elements_without_a_place_are_refused(values: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kind = h5py.vlen_dtype("i4") if values.dtype == object and len(values) == 2 else None
        is_text = h5py.check_string_dtype(values.dtype) is not None
        file.create_dataset("a", data=values, dtype=None if is_text else kind)
        file.create_dataset("b", dtype="i4")
        file["c"] = np.dtype("i4")
    with pytest.raises(ConversionError, match="no array of numbers"):
        opened(tmp_path / "a.h5")
    with pytest.raises(ConversionError, match="elements of type"):
        opened(tmp_path / "a.h5", "a")
    for name in "bc":
        with pytest.raises(ConversionError, match=r"is no array|no array of numbers"):
            opened(tmp_path / "a.h5", name)


def test_claims_cost_nothing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        a = file.create_dataset("a", shape=(2**20, 2**20, 2**19), dtype="u4", chunks=(1, 64, 64))
        file.create_dataset("z", shape=(2**20,), dtype="f8", chunks=(64,)).make_scale("z")
        file.create_dataset("x", shape=(2**40,), dtype="f8", chunks=(64,)).make_scale("x")
        a.dims[0].attach_scale(file["z"])
        a.dims[2].attach_scale(file["x"])
        file.create_dataset("b", shape=(2**50, 2**12), dtype="u4", chunks=(64, 64))
    with pytest.warns(MlaWarning, match="'/x'.*left out"):
        image = opened(tmp_path / "a.h5", "a")
    assert not image.values[slice(2**19, 2**19 + 2), slice(5, 7), slice(0, 3)].any()
    with pytest.raises(ConversionError, match="beyond any machine"):
        opened(tmp_path / "a.h5", "b")


@pytest.mark.parametrize("part", [0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused(part: float, raw: Path, tmp_path: Path) -> None:
    data = raw.read_bytes()
    (tmp_path / "b.h5").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ConversionError, match=r"b\.h5"):
        opened(tmp_path / "b.h5")


def test_damaged_chunks_are_told(raw: Path) -> None:
    with h5py.File(raw) as file:
        info = file["data"].id.get_chunk_info(0)
    data = bytearray(raw.read_bytes())
    data[info.byte_offset : info.byte_offset + info.size] = bytes(info.size)
    raw.write_bytes(data)
    values = opened(raw).values
    assert values[slice(2, 4), slice(3, 5), slice(4, 6)].tolist() == RAW[2:, 3:, 4:].tolist()
    with pytest.raises(ConversionError, match=r"raw\.h5.*'/data' cannot be read"):
        values[WHOLE]


def test_user_blocks_are_skipped(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
        file["a"] = RAW
    assert is_hdf5(str(tmp_path / "a.h5"))
    np.testing.assert_array_equal(opened(tmp_path / "a.h5").values[WHOLE], RAW)
    (tmp_path / "b.h5").write_bytes(bytes(5000))
    assert not is_hdf5(str(tmp_path / "b.h5"))


def test_missing_files_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "a.h5")
    with pytest.raises(MlaError, match="directory"):
        opened(tmp_path)
    with pytest.raises(MlaError, match="URL"):
        open_image("s3://bucket/a.h5", scratch_dir=None, dataset=None)


def test_addresses_are_small_and_know_a_changed_file(raw: Path) -> None:
    values = opened(raw).values
    assert isinstance(values, Hdf5Array)
    data = pickle.dumps(values)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again == values
    assert again.__dask_tokenize__() == opened(raw).values.__dask_tokenize__()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again[WHOLE], RAW)
    with h5py.File(raw, "w") as file:
        file["data"] = RAW[::-1]
    with pytest.raises(SourceChanged):
        again[WHOLE]
    assert opened(raw).values.__dask_tokenize__() != values.__dask_tokenize__()  # type: ignore[attr-defined]


def test_threads_read_side_by_side(raw: Path) -> None:
    values = opened(raw).values
    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(
            pool.map(lambda i: values[slice(i % 4, 4), *WHOLE[1:]], range(64))
        ):
            np.testing.assert_array_equal(found, RAW[i % 4 :])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_open_the_file_again(method: str, raw: Path) -> None:
    values = opened(raw).values
    values[WHOLE]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map(values.__getitem__, [WHOLE] * 4):
            np.testing.assert_array_equal(found, RAW)


def test_without_h5py_the_extra_is_named(raw: Path) -> None:
    with (
        mock.patch.dict("sys.modules", {"h5py": None}),
        pytest.raises(MissingDependencyError, match=r"mlarray-xr\[hdf5\]"),
    ):
        opened(raw)


@pytest.mark.parametrize(
    "attrs",
    [
        {"mla_metadata": "nonsense"},
        {"mla_metadata": 3},
        {"spatial_dims": "z y x", "affine": "broken"},
        {"spatial_dims": "x x", "affine": [1.0] * 9},
    ],
)
def test_what_others_write_under_our_names_is_refused_when_broken(attrs: dict[str, Any]) -> None:
    with pytest.raises(ConversionError, match="geometry is broken"):
        labelled_metadata(
            shape=(2, 3, 4),
            dims=["z", "y", "x"],
            attrs=attrs,
            coords={},
            name=None,
            file_format="hdf5",
        )


def test_dimensions_of_one_name_are_refused() -> None:
    with pytest.raises(ConversionError, match="cannot be told apart"):
        labelled_metadata(
            shape=(2, 2), dims=["x", "x"], attrs={}, coords={}, name=None, file_format="hdf5"
        )
