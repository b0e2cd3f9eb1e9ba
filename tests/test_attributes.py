from __future__ import annotations

import io
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr

from mlarray_xr.attributes import OWN_ATTRS, HiddenText, metadata_text, plain_value, read_metadata
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import MetadataError, MlaWarning
from mlarray_xr.format.metadata import Metadata
from tests.fake_file import as_text, image, image_of, opened, reopened, rich

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "Doe^Jane"


def test_everything_survives_but_nothing_is_printed() -> None:
    dataset = opened(rich(), (2, 3, 4, 5))
    array = dataset["image"]
    assert as_text(metadata_of(array)) == as_text(rich())
    for obj in (dataset, array, array.variable, xr.DataTree(dataset)):
        assert SECRET not in repr(obj) + obj._repr_html_()
    assert SECRET not in f"{array.attrs}"
    info = io.StringIO()
    dataset.info(info)
    assert SECRET not in info.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda array: pickle.loads(pickle.dumps(array)),
        lambda array: array.copy(deep=True),
        lambda array: array.chunk({"z": 2}),
        lambda array: array.chunk().compute(),
        lambda array: array.to_dataset(name="image")["image"],
        lambda array: array.isel(z=slice(None)),
        lambda array: array.transpose(),
        lambda array: array * 2,
        lambda array: array.where(array > 3),
        lambda array: xr.concat([array.to_dataset(name="image")] * 2, "case")["image"][0],
    ],
)
def test_hidden_text_survives_xarray(change: Any) -> None:
    array = change(image_of(rich(), (2, 3, 4, 5)))
    described = read_metadata(array.attrs)
    assert SECRET not in repr(array) + array._repr_html_()
    assert described is not None
    assert as_text(described[0]) == as_text(rich())


@pytest.mark.parametrize("kwargs", [{"engine": "netcdf4"}, {"format": "NETCDF4_CLASSIC"}])
def test_netcdf_keeps_metadata_and_geometry(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    array = image_of(rich(), (2, 3, 4, 5))
    array.to_netcdf(tmp_path / "a.nc", **kwargs)
    with xr.open_dataarray(tmp_path / "a.nc") as back:
        expected = metadata_of(array.drop_encoding())
        assert as_text(metadata_of(back.load())) == as_text(expected)


def test_h5py_stores_the_text(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    text = image_of(rich(), (2, 3, 4, 5)).attrs["mla_metadata"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["mla_metadata"] = text
        assert list(file.attrs["mla_metadata"]) == list(text)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_zarr_keeps_metadata_and_geometry(tmp_path: Path, zarr_format: Any) -> None:
    array = image_of(rich(), (2, 3, 4, 5)).drop_encoding()
    array.to_dataset().to_zarr(tmp_path / "a.zarr", zarr_format=zarr_format, consolidated=False)
    back = xr.open_zarr(tmp_path / "a.zarr", chunks=None, consolidated=False)["image"]
    assert as_text(metadata_of(back.load())) == as_text(metadata_of(array))


def test_attributes_are_flat() -> None:
    attrs = image_of(rich(), (2, 3, 4, 5)).attrs
    assert attrs.keys() <= OWN_ATTRS
    assert attrs["spatial_dims"] == "z y x"
    assert attrs["spacing"] == [3, 0.75, 0.5]
    assert attrs["affine"] == [3, 0, 0, 10, 0, 0.75, 0, -20.5, 0, 0, 0.5, 30.125, 0, 0, 0, 1]
    assert attrs["coord_system"] == "LPS"
    assert "axes_assumed" not in attrs


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"shape":[1],"unknown":{},"nonsense":1}', 3])
def test_a_damaged_attribute_is_named(text: Any) -> None:
    with pytest.raises(MetadataError, match=r"del array\.attrs"):
        metadata_of(xr.DataArray(0, attrs={"mla_metadata": text}))


def test_hidden_text_is_one_text() -> None:
    text = metadata_text(rich(), shape=(2,))
    assert isinstance(text, HiddenText)
    assert len(text) == 1
    assert text[0].isascii()


def test_user_attributes_survive() -> None:
    attrs = {"units": "HU", "n": np.int16(3), "bvals": np.array([0.0, 1000.0]), "d": {"a": [1]}}
    array = image((4, 5)).assign_attrs(attrs)
    back = reopened(array)
    assert {k: v for k, v in back.attrs.items() if k not in OWN_ATTRS} == plain_value(attrs)
    assert as_text(metadata_of(back)) == as_text(metadata_of(array))


def test_attributes_that_no_file_holds_are_named() -> None:
    array = image((4, 5)).assign_attrs(thing=object())
    with pytest.warns(MlaWarning, match="'thing' is not stored"):
        assert metadata_of(array).extra == {}


def test_a_stored_attribute_cannot_pose_as_ours() -> None:
    extra = {"mlarray_xr": {"attrs": {"affine": [9.0], "ok": 1}}}
    attrs = image_of(Metadata(has_array=True, extra=extra), (2, 2)).attrs  # type: ignore[arg-type]
    assert "affine" not in attrs
    assert attrs["ok"] == 1
