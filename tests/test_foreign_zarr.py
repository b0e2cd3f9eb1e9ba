"""Zarr and OME-Zarr: zarr-python and xarray are the oracles, NumPy that of positions."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import Metadata, MlaArray, open_mla, to_mla
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import (
    ConversionError,
    FormatError,
    MissingDependencyError,
    MlaError,
    MlaWarning,
    SourceChanged,
)
from mlarray_xr.foreign import ome
from mlarray_xr.foreign import zarr as foreign_zarr
from mlarray_xr.foreign.ngff import Multiscale
from mlarray_xr.foreign.zarr import open_image, write_image
from mlarray_xr.foreign.zarr_store import ZarrArray, ZarrStore
from mlarray_xr.format.metadata import Spatial, Stats
from mlarray_xr.record import stored_axes, stored_geometry
from tests.strategies import NUMBERS, boxes, layouts, shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlarray_xr.foreign.image import ForeignImage

TIMES = ("<M8[ns]", "<m8[s]")
RAW = np.arange(1, 4 * 5 * 6 + 1, dtype="<u2").reshape(4, 5, 6)
WHOLE = (slice(0, 4), slice(0, 5), slice(0, 6))


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def opened_ome(path: Path, dataset: str | None = None) -> ForeignImage:
    return ome.open_image(str(path), scratch_dir=None, dataset=dataset)


def all_of(image: ForeignImage) -> Any:
    return image.values[tuple(slice(0, n) for n in image.values.shape)]


def converted(image: ForeignImage, path: Path) -> xr.DataArray:
    to_mla(image.values, path, metadata=image.metadata, mode="w")
    return attach_coords(open_mla(path))


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "raw.zarr", data=RAW, chunks=(2, 3, 4))
    return tmp_path / "raw.zarr"


def labelled(**coords: Any) -> xr.DataArray:
    return xr.DataArray(
        np.arange(2 * 3 * 4 * 5, dtype="int16").reshape(2, 3, 4, 5),
        dims=("time", "z", "y", "x"),
        coords={
            "time": ("time", [0.5, 2.0], {"units": "s"}),
            "z": ("z", 2.5 * np.arange(3) - 7, {"units": "mm"}),
            "y": ("y", 0.5 * np.arange(4), {"units": "mm"}),
            "x": ("x", 3 - 0.25 * np.arange(5), {"units": "mm"}),
            **coords,
        },
        attrs={"note": "hello", "window": [1, 2.5]},
        name="ct",
    )


# Reading


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_values_come_back_in_every_type_and_box(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(shapes(min_dims=1, max_side=5))
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS + TIMES)))
    values = values_of(shape, dtype, 3)
    chunks, _ = data.draw(layouts(shape))
    form: Any = data.draw(st.sampled_from([2, 3]))
    shards = None
    if form == 3 and data.draw(st.booleans()):
        shards = tuple(n * data.draw(st.integers(1, 3)) for n in chunks)
    zarr.create_array(
        tmp_path / "a.zarr",
        data=values,
        chunks=chunks,
        shards=shards,
        zarr_format=form,
        order=data.draw(st.sampled_from("CF")) if form == 2 else None,
        overwrite=True,
    )
    image = opened(tmp_path / "a.zarr")
    expected = dtype if form == 2 else dtype.newbyteorder("=")
    assert (image.values.shape, image.values.dtype) == (shape, expected)
    key = tuple(slice(a, b) for a, b in data.draw(boxes(shape)))
    found = image.values[key]
    assert found.dtype == expected
    np.testing.assert_array_equal(found, values[key])
    assert image.metadata == Metadata(has_array=True)
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata, mode="w")
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], values)


@pytest.mark.parametrize("form", [2, 3])
def test_arrays_without_axes(form: Any, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=np.array(7, ">i4"), zarr_format=form)
    found = opened(tmp_path / "a.zarr").values[()]
    assert (found.shape, int(found)) == ((), 7)


@pytest.mark.parametrize("form", [2, 3])
def test_labels_that_xarray_writes_come_back(form: Any, tmp_path: Path) -> None:
    array = labelled(
        when=("time", np.array(["2026-01-01", "2026-01-03"], "M8[ns]")),
        took=("time", np.array([1, 3], "m8[s]")),
        bval=("time", [0, 1000]),
        site=("time", np.array(["a", "µ"], object)),
        age=3.5,
    )
    array.to_dataset().to_zarr(tmp_path / "a.zarr", zarr_format=form, consolidated=False)
    found = converted(opened(tmp_path / "a.zarr"), tmp_path / "a.mla")
    expected = xr.open_dataset(tmp_path / "a.zarr", engine="zarr", consolidated=False).ct
    assert (found.name, found.dims, {*found.coords}) == ("ct", expected.dims, {*expected.coords})
    np.testing.assert_array_equal(found, expected)
    for name in expected.coords:
        np.testing.assert_array_equal(found[name].astype(expected[name].dtype), expected[name])
    assert found.z.attrs["units"] == "mm"
    assert found.mla.spacing == {"z": 2.5, "y": 0.5, "x": 0.25}
    assert (found.attrs["note"], found.attrs["window"]) == ("hello", [1, 2.5])


@pytest.mark.parametrize("form", [2, 3])
def test_fixed_texts_and_missing_values(form: Any, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=form)
    with mock.patch("warnings.warn"):  # zarr warns that texts of fixed size are not standardised
        names = group.create_array("names", data=np.array(["ab", "c"]), **dims(form, "x"))
    a = group.create_array("a", data=np.array([1.5, 2]), **dims(form, "x"))
    a.attrs.update({"coordinates": "names", "_FillValue": "AAAAAAAA8D8=", "scale_factor": 2.0})
    assert names.shape == (2,)
    image = opened(tmp_path / "a.zarr")
    assert all_of(image).tolist() == [1.5, 2]
    found = converted(image, tmp_path / "a.mla")
    assert found.names.values.tolist() == ["ab", "c"]
    assert (found.attrs["_FillValue"], found.attrs["scale_factor"]) == (1, 2)


def dims(form: int, *names: str) -> dict[str, Any]:
    if form == 3:
        return {"dimension_names": names}
    return {"attributes": {"_ARRAY_DIMENSIONS": list(names)}}


def test_dimensions_may_be_named_in_part(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=RAW, dimension_names=("z", None, "x"))
    assert converted(opened(tmp_path / "a.zarr"), tmp_path / "a.mla").dims == ("z", "dim_1", "x")


def test_coordinates_that_do_not_fit_are_told(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("a", data=RAW, dimension_names=("z", "y", "x"))
    group.create_array("z", data=np.arange(3.0), dimension_names=("z",))
    group.create_array("y", data=np.ones((5, 6)), dimension_names=("y", "x"))
    group.create_array("x", data=np.arange(6.0), dimension_names=("other",))
    with pytest.warns(MlaWarning) as told:
        metadata = opened(tmp_path / "a.zarr", "a").metadata
    assert sorted(str(w.message)[:14] for w in told) == ["coordinate 'y'", "coordinate 'z'"]
    assert metadata.extra == {"mlarray_xr": {"name": "a"}}


def test_several_arrays_are_listed(raw: Path, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("raw", data=RAW)
    group.create_array("times", data=np.arange(4.0))
    assert opened(tmp_path / "a.zarr").values.shape == RAW.shape
    group.create_group("g").create_array("mask", data=RAW > 3)
    with pytest.raises(ConversionError, match=r"'raw' \(4, 5, 6\) uint16, 'g/mask'"):
        opened(tmp_path / "a.zarr")
    np.testing.assert_array_equal(all_of(opened(tmp_path / "a.zarr", "/g/")), RAW > 3)
    np.testing.assert_array_equal(all_of(opened(tmp_path / "a.zarr", "raw")), RAW)


@pytest.mark.parametrize("name", ["../raw.zarr", "a/../..", ".", "a\\b", "a\0b", "nowhere", "c"])
def test_names_lead_nowhere_else(name: str, raw: Path) -> None:
    with pytest.raises(ConversionError, match=r"raw\.zarr.*dataset="):
        opened(raw, name)


@pytest.mark.parametrize("kind", ["stored", "deflated"])
def test_zip_files_are_stores(kind: str, raw: Path, tmp_path: Path) -> None:
    labelled().to_dataset().to_zarr(tmp_path / "a.zarr", consolidated=False)
    method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
        for path in sorted((tmp_path / "a.zarr").rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path / "a.zarr"))
    image, expected = opened(tmp_path / "a.zip"), opened(tmp_path / "a.zarr")
    assert image.metadata == expected.metadata
    np.testing.assert_array_equal(all_of(image), labelled())
    (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes() + b"\0")
    with pytest.raises(SourceChanged):
        all_of(image)


def test_big_members_of_a_zip_file_are_not_unpacked(raw: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(raw / "zarr.json", "zarr.json")
        archive.writestr("c/0/0/0", bytes(1000))
    values = opened(tmp_path / "a.zip").values
    with (
        mock.patch("mlarray_xr.foreign.zarr_store._MAX_CHUNK_BYTES", 999),
        pytest.raises(ConversionError, match="1000 bytes"),
    ):
        values[WHOLE]
    with (
        mock.patch("mlarray_xr.foreign.zarr_store._MAX_DOCUMENT_BYTES", 99),
        pytest.raises(ConversionError, match=r"zarr\.json.*at most 99"),
    ):
        opened(tmp_path / "a.zip")


def test_what_is_no_store_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "a.zarr")
    (tmp_path / "a.txt").write_text("no store")
    with pytest.raises(ConversionError, match="neither a folder nor a zip file"):
        opened(tmp_path / "a.txt")
    with pytest.raises(ConversionError, match="no array or group"):
        opened(tmp_path)
    with pytest.raises(MlaError, match="URL"):
        open_image("s3://bucket/a.zarr", scratch_dir=None, dataset=None)


# Hostile stores


def with_pickle_filter(path: Path) -> None:
    zarr.create_array(path, data=RAW, zarr_format=2)
    edited(path / ".zarray", lambda d: d.update(filters=[{"id": "pickle", "protocol": 4}]))


def with_pickle_codec(path: Path) -> None:
    zarr.create_array(path, data=RAW, chunks=(1, 1, 1), shards=(4, 5, 6))

    def change(document: dict[str, Any]) -> None:
        codecs = document["codecs"][0]["configuration"]["codecs"]
        codecs.append({"name": "numcodecs.pickle", "configuration": {}})

    edited(path / "zarr.json", change)


def of_objects(path: Path) -> None:
    array = zarr.create_array(path, shape=(3,), dtype=str, zarr_format=2)
    array[:] = np.array(["a", "b", "c"], object)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (with_pickle_filter, "could run any code"),
        (with_pickle_codec, "could run any code"),
        (of_objects, "elements of type"),
    ],
)
def test_objects_are_refused(make: Callable[[Path], None], why: str, tmp_path: Path) -> None:
    make(tmp_path / "a.zarr")
    with (
        mock.patch.object(numcodecs.Pickle, "decode", side_effect=AssertionError("decoded")),
        pytest.raises(ConversionError, match=rf"a\.zarr.*{why}"),
    ):
        opened(tmp_path / "a.zarr")


def test_coordinates_are_never_unpickled(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("a", data=RAW[0], attributes={"_ARRAY_DIMENSIONS": ["y", "x"]})
    with_pickle_filter(tmp_path / "a.zarr" / "b")
    shutil.move(tmp_path / "a.zarr" / "b", tmp_path / "a.zarr" / "y")
    edited(tmp_path / "a.zarr/y/.zarray", lambda d: d.update(shape=[5], chunks=[5]))
    with pytest.raises(ConversionError, match="could run any code"):
        opened(tmp_path / "a.zarr", "a")


@pytest.mark.parametrize("link", ["folder", "document", "chunk", "shard folder", "pipe"])
def test_links_are_not_followed(link: str, raw: Path, tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "g", mode="w")
    inside = tmp_path / "g" / "a"
    if link == "folder":
        inside.symlink_to(raw)
    else:
        shutil.copytree(raw, inside)
    if link == "document":
        (inside / "zarr.json").unlink()
        (inside / "zarr.json").symlink_to(raw / "zarr.json")
    if link == "chunk":
        (inside / "c/0/0/0").unlink()
        (inside / "c/0/0/0").symlink_to(raw / "c/0/0/0")
    if link == "shard folder":
        shutil.rmtree(inside / "c/0")
        (inside / "c/0").symlink_to(raw / "c/0")
    if link == "pipe":
        (inside / "c/0/0/0").unlink()
        os.mkfifo(inside / "c/0/0/0")
    with pytest.raises(ConversionError, match="link or a device"):
        all_of(opened(tmp_path / "g", "a"))


def test_a_link_to_the_store_is_followed(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "link.zarr").symlink_to(raw)
    np.testing.assert_array_equal(all_of(opened(tmp_path / "link.zarr")), RAW)


@pytest.mark.parametrize("form", [2, 3])
def test_claims_cost_nothing(form: Any, tmp_path: Path) -> None:
    for name, shape, chunks in (
        ("a", (2**20, 2**20, 2**20), (64, 64, 64)),
        ("b", (2**45, 2**20), (64, 64)),
        ("c", (2**40,), (2**40,)),
    ):
        zarr.create_array(
            tmp_path / name, shape=shape, chunks=chunks, dtype="u2", fill_value=3, zarr_format=form
        )
    found = opened(tmp_path / "a").values[slice(2**19, 2**19 + 2), slice(5, 7), slice(0, 3)]
    assert (found == 3).all()
    with pytest.raises(ConversionError, match="beyond any machine"):
        opened(tmp_path / "b")
    with pytest.raises(ConversionError, match="more than 4 GiB"):
        opened(tmp_path / "c")


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [4, -5, 6]},
        {"shape": "4"},
        {"shape": [4, 5]},
        {"shape": None},
        {"data_type": "int17"},
        {"data_type": {"name": "string"}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 1, 1]}}},
        {"chunk_grid": 3},
        {"codecs": []},
        {"codecs": [{"name": "unheard"}]},
        {"zarr_format": 4},
        {"attributes": []},
        {"fill_value": "what"},
        {"dimension_names": ["x", "x", "x"]},
    ],
)
def test_broken_documents_are_told(change: dict[str, Any], raw: Path) -> None:
    edited(raw / "zarr.json", lambda document: document.update(change))
    with pytest.raises(ConversionError, match=r"raw\.zarr"):
        all_of(opened(raw))


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"a"', "[" * 100_000, "\x00", "nul"])
def test_documents_that_are_no_json_are_told(text: str, raw: Path) -> None:
    (raw / "zarr.json").write_text(text)
    with pytest.raises(ConversionError, match=r"raw\.zarr.*no JSON"):
        opened(raw)


def test_damaged_chunks_are_told(raw: Path) -> None:
    chunk = raw / "c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-5])
    image = opened(raw)
    np.testing.assert_array_equal(
        image.values[slice(2, 4), slice(3, 5), slice(4, 6)], RAW[2:, 3:, 4:]
    )
    with pytest.raises(ConversionError, match=r"raw\.zarr: the store is damaged"):
        all_of(image)


# Addresses


def test_addresses_are_small_and_know_a_changed_store(raw: Path) -> None:
    values = opened(raw).values
    assert isinstance(values, ZarrArray)
    data = pickle.dumps(values)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.__dask_tokenize__() == values.__dask_tokenize__()
    np.testing.assert_array_equal(again[WHOLE], RAW)
    zarr.open_array(raw, mode="r+").attrs["new"] = 1
    assert opened(raw).values.__dask_tokenize__() != values.__dask_tokenize__()  # type: ignore[attr-defined]
    with pytest.raises(SourceChanged):
        again[WHOLE]
    shutil.rmtree(raw)
    with pytest.raises(SourceChanged):
        again[WHOLE]


def test_threads_read_side_by_side(raw: Path) -> None:
    values = opened(raw).values
    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: values[slice(i % 4, 4), *WHOLE[1:]], range(64))
        for i, found in enumerate(read):
            np.testing.assert_array_equal(found, RAW[i % 4 :])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_open_the_store_again(method: str, raw: Path) -> None:
    values = opened(raw).values
    values[WHOLE]
    with multiprocessing.get_context(method).Pool(2) as pool:
        for found in pool.map(values.__getitem__, [WHOLE] * 4):
            np.testing.assert_array_equal(found, RAW)


# Writing


def written(array: Any, folder: Path, metadata: Metadata | None = None, **layout: Any) -> MlaArray:
    to_mla(array, folder / "in.mla", mode="w", metadata=metadata, **layout)
    file = MlaArray(folder / "in.mla")
    write_image(file, str(folder / "out.zarr"), mode="w")
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_files_come_back_from_zarr(data: st.DataObject, tmp_path: Path) -> None:
    shape = data.draw(shapes(max_side=5))
    dtype = np.dtype(data.draw(st.sampled_from(NUMBERS + TIMES)))
    values = values_of(shape, dtype, 5)
    chunks, blocks = data.draw(layouts(shape))
    names = data.draw(st.permutations(["x", "y", "z", "time", "channel", "energy level"]))
    coords: dict[Any, Any] = {}
    for dim, n in zip(names, shape, strict=False):
        kind = data.draw(st.sampled_from(["none", "float", "time", "text", "aux"]))
        if kind == "float":
            coords[dim] = (dim, 3 - 0.7 * np.arange(n), {"units": "mm"})
        elif kind == "time":
            coords[dim] = (dim, np.arange(n).astype("M8[D]").astype("M8[ns]"))
        elif kind == "text":
            coords[dim] = (dim, np.array([f"n{i}" for i in range(n)], "U3"))
        elif kind == "aux":
            coords[f"aux {dim}"] = (dim, np.arange(n) ** 2)
    coords["a scalar"] = 3.5
    array = xr.DataArray(values, dims=names[: len(shape)], coords=coords, attrs={"a": 1})
    with mock.patch("warnings.warn"):  # of geometry that only some dimensions have
        file = written(array, tmp_path, chunks=chunks, blocks=blocks)
        image = opened(tmp_path / "out.zarr")
        assert image.metadata == metadata_of(open_mla(file.path))
    assert image.values.dtype == dtype.newbyteorder("=")
    np.testing.assert_array_equal(all_of(image), values)


def test_xarray_reads_what_is_written(tmp_path: Path) -> None:
    array = labelled(site=("time", ["a", "µ"]), bval=("time", [0, 7]), age=("age", 3.5)[1])
    file = written(array, tmp_path, patch=2)
    found = xr.open_dataset(tmp_path / "out.zarr", engine="zarr", consolidated=False).ct
    np.testing.assert_array_equal(found, array)
    assert {*found.coords} == {*array.coords}
    for name in array.coords:
        np.testing.assert_array_equal(found[name].astype(array[name].dtype), array[name])
    assert found.attrs["note"] == "hello"
    np.testing.assert_array_equal(found.mla.affine, open_mla(file.path).mla.affine)
    stored = zarr.open_array(tmp_path / "out.zarr/ct", mode="r")
    assert stored.chunks == tuple(map(min, file.chunks, file.shape))
    assert stored.metadata.zarr_format == 3
    assert stored.fill_value == 0


def test_what_xarray_did_to_it_is_seen(tmp_path: Path) -> None:
    file = written(labelled(), tmp_path)
    dataset = xr.open_dataset(tmp_path / "out.zarr", engine="zarr", consolidated=False)
    flipped = dataset.isel(z=slice(None, None, -1), x=slice(1, None))
    flipped.drop_encoding().to_zarr(tmp_path / "flipped.zarr", consolidated=False)
    found = converted(opened(tmp_path / "flipped.zarr"), tmp_path / "b.mla")
    expected = open_mla(file.path)[:, ::-1, :, 1:]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.mla.affine, expected.mla.affine)


OBLIQUE = ((0.8, -0.6, 0.0, 3.0), (0.6, 0.8, 0.0, 4.0), (0.0, 0.0, 2.0, 5.0), (0.0, 0.0, 0.0, 1.0))


def test_everything_but_statistics_survives(tmp_path: Path) -> None:
    metadata = Metadata(
        source={"PatientName": "Doe", 3: [1, None]},
        extra={"site": {"a": float("inf")}},
        spatial=Spatial(affine=OBLIQUE, coord_system="LPS+", axis_units=["mm", "mm", "mm"]),
        stats=Stats(min=1, max=9),
        is_seg=True,
        has_array=True,
        image_meta_format="nrrd",
    )
    file = written(RAW, tmp_path, metadata=metadata)
    image = opened(tmp_path / "out.zarr")
    assert image.metadata == replace(file.metadata, stats=Stats())
    assert "ome" not in zarr.open_group(tmp_path / "out.zarr", mode="r").attrs
    assert zarr.open_array(tmp_path / "out.zarr/labels", mode="r").shape == RAW.shape


def test_parts_are_small(tmp_path: Path) -> None:
    to_mla(RAW, tmp_path / "in.mla", chunks=(2, 2, 3), blocks=(1, 2, 3))
    file = MlaArray(tmp_path / "in.mla")
    read: list[int] = []
    real = MlaArray.read

    def counted(array: MlaArray, box: Any) -> Any:
        values = real(array, box)
        read.append(values.nbytes)
        return values

    with (
        mock.patch.object(foreign_zarr, "plan_part", return_value=(2, 2, 3)),
        mock.patch.object(MlaArray, "read", counted),
    ):
        write_image(file, str(tmp_path / "out.zarr"), mode="w-")
    assert (len(read), max(read)) == (12, 24)
    np.testing.assert_array_equal(all_of(opened(tmp_path / "out.zarr")), RAW)


def test_existing_targets_are_kept_unless_told(tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="mode='w'"):
        write_image(file, str(tmp_path / "out.zarr"), mode="w-")
    to_mla(RAW + 1, tmp_path / "in.mla", mode="w")
    write_image(MlaArray(tmp_path / "in.mla"), str(tmp_path / "out.zarr"), mode="w")
    np.testing.assert_array_equal(all_of(opened(tmp_path / "out.zarr")), RAW + 1)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    (tmp_path / "link.zarr").symlink_to("out.zarr")
    write_image(file := MlaArray(tmp_path / "in.mla"), str(tmp_path / "link.zarr"), mode="w")
    assert (tmp_path / "link.zarr").is_symlink()
    with pytest.raises(FileNotFoundError, match="makedirs"):
        write_image(file, str(tmp_path / "no/out.zarr"), mode="w")


def test_only_stores_and_empty_folders_are_replaced(tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    (tmp_path / "photos").mkdir()
    write_image(file, str(tmp_path / "photos"), mode="w")
    shutil.rmtree(tmp_path / "photos")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_text("precious")
    (tmp_path / "note").write_text("precious")
    for name in ("photos", "note"):
        with pytest.raises(ConversionError, match="neither"):
            write_image(file, str(tmp_path / name), mode="w")
    assert (tmp_path / "photos/holiday.jpg").read_text() == "precious"
    shutil.move(tmp_path / "in.mla", tmp_path / "out.zarr/in.mla")
    with pytest.raises(ConversionError, match="contains the file that is read"):
        write_image(MlaArray(tmp_path / "out.zarr/in.mla"), str(tmp_path / "out.zarr"), mode="w")


@pytest.mark.parametrize("mode", ["w-", "w"])
def test_a_failure_leaves_things_as_they_were(mode: Any, tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    target = tmp_path / ("out.zarr" if mode == "w" else "new.zarr")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for name in ("mlarray_xr.array.MlaArray.read", "zarr.Group.create_array", "os.fsync"):
        with (
            mock.patch(name, side_effect=OSError("disk on fire")),
            pytest.raises(OSError, match="disk on fire"),
        ):
            write_image(file, str(target), mode=mode)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_failed_rename_puts_the_old_store_back(tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    real = os.rename

    def failing(src: Any, dst: Any) -> None:
        if str(src).endswith(".tmp"):
            raise OSError(5, "disk on fire")
        real(src, dst)

    with mock.patch("os.rename", failing), pytest.raises(OSError, match="disk on fire"):
        write_image(file, str(tmp_path / "out.zarr"), mode="w")
    np.testing.assert_array_equal(all_of(opened(tmp_path / "out.zarr")), RAW)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mla", "out.zarr"]


def test_somebody_else_may_be_faster(tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    real = MlaArray.read

    def slow(array: MlaArray, box: Any) -> Any:
        (tmp_path / "new.zarr").mkdir(exist_ok=True)
        (tmp_path / "new.zarr/precious").touch()
        return real(array, box)

    with mock.patch.object(MlaArray, "read", slow), pytest.raises(FileExistsError):
        write_image(file, str(tmp_path / "new.zarr"), mode="w-")
    assert (tmp_path / "new.zarr/precious").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_zarr_cannot_hold_is_refused(tmp_path: Path) -> None:
    for name, array in {
        "text": np.array(["a", "b"]),
        "dim": xr.DataArray([1.0, 2], dims="x/y"),
        "name": xr.DataArray([1.0, 2], dims="x", name="scan/7"),
        "coordinate": xr.DataArray([1.0, 2], dims="x", coords={"zarr.json": ("x", [1, 2])}),
    }.items():
        to_mla(array, tmp_path / f"{name}.mla")
        with pytest.raises(ConversionError, match=r"cannot be converted|cannot name"):
            write_image(MlaArray(tmp_path / f"{name}.mla"), str(tmp_path / "a.zarr"), mode="w-")
    file = written(RAW, tmp_path)
    wrong: Any = "a"
    with pytest.raises(ValueError, match="mode='a'"):
        write_image(file, str(tmp_path / "a.zarr"), mode=wrong)
    with pytest.raises(ConversionError, match="URL"):
        write_image(file, "s3://bucket/a.zarr", mode="w")
    empty: Any = mock.Mock(metadata=Metadata(), path="a.mla")
    with pytest.raises(FormatError, match="metadata only"):
        write_image(empty, str(tmp_path / "a.zarr"), mode="w-")
    assert not (tmp_path / "a.zarr").exists()


def test_without_zarr_the_extra_is_named(raw: Path, tmp_path: Path) -> None:
    file = written(RAW, tmp_path)
    with mock.patch.dict("sys.modules", {"zarr": None}):
        with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[zarr\]"):
            opened(raw)
        with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[zarr\]"):
            write_image(file, str(tmp_path / "new.zarr"), mode="w-")


# OME-Zarr

AXES = [
    {"name": "t", "type": "time", "unit": "second"},
    {"name": "c", "type": "channel"},
    *({"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"),
]


def level(path: str, scale: Any, translation: Any = None) -> dict[str, Any]:
    changes = [{"type": "scale", "scale": scale}]
    if translation is not None:
        changes.append({"type": "translation", "translation": translation})
    return {"path": path, "coordinateTransformations": changes}


def image_group(
    parent: Path | zarr.Group, name: str, *, version: str = "0.5", **more: Any
) -> zarr.Group:
    """Make an image of two levels, 5-D."""
    form: Any = 3 if version == "0.5" else 2
    if not isinstance(parent, zarr.Group):
        parent = zarr.open_group(parent, mode="w", zarr_format=form)
    group = parent.create_group(name) if name else parent
    described: dict[str, Any] = {
        "axes": AXES,
        "datasets": [
            level("0", [0.5, 1, 3, 0.25, 0.25], [0, 0, -7, 1, 2]),
            level("1", [0.5, 1, 3, 0.5, 0.5], [0, 0, -7, 1.125, 2.125]),
        ],
        **more,
    }
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [described]}
    else:
        group.attrs["multiscales"] = [{"version": version, **described}]
    for path, n in (("0", 4), ("1", 2)):
        values = np.arange(2 * 3 * n * n, dtype="u1").reshape(2, 1, 3, n, n)
        group.create_array(path, data=values)
    return group


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("open_any", [opened, opened_ome])
def test_levels_lie_where_the_metadata_says(version: str, open_any: Any, tmp_path: Path) -> None:
    group = image_group(tmp_path / "a.zarr", "", version=version)
    image = open_any(tmp_path / "a.zarr")
    found = converted(image, tmp_path / "a.mla")
    assert found.dims == ("time", "channel", "z", "y", "x")
    first: Any = group["0"]
    np.testing.assert_array_equal(found, first[...])
    np.testing.assert_array_equal(found.time, [0, 0.5])
    np.testing.assert_array_equal(found.z, -7 + 3.0 * np.arange(3))
    np.testing.assert_array_equal(found.x, 2 + 0.25 * np.arange(4))
    assert (found.time.attrs["units"], found.y.attrs["units"]) == ("s", "um")
    assert "channel" not in found.coords
    assert image.metadata.is_seg is None
    coarse = converted(open_any(tmp_path / "a.zarr", "1"), tmp_path / "b.mla")
    assert coarse.shape == (2, 1, 3, 2, 2)
    np.testing.assert_array_equal(coarse.y, [1.125, 1.625])


def test_transformations_of_the_image_follow_those_of_the_level(tmp_path: Path) -> None:
    changes = [
        {"type": "identity"},
        {"type": "scale", "scale": [10, 1, 2, 2, 2]},
        {"type": "translation", "translation": [1, 0, 0, 0, 0.5]},
    ]
    image_group(tmp_path / "a.zarr", "", coordinateTransformations=changes)
    found = converted(opened(tmp_path / "a.zarr"), tmp_path / "a.mla")
    np.testing.assert_array_equal(found.time, [1, 6])
    np.testing.assert_array_equal(found.z, -14 + 6.0 * np.arange(3))
    np.testing.assert_array_equal(found.x, 4.5 + 0.5 * np.arange(4))


@pytest.mark.parametrize("version", ["0.1", "0.3"])
def test_early_versions_know_no_positions(version: str, tmp_path: Path) -> None:
    axes = {"axes": list("tczyx")} if version == "0.3" else {}
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((1, 2, 3, 4, 5), "u1"))
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}], **axes}]
    spatial = opened(tmp_path / "a.zarr").metadata.spatial
    assert spatial == Spatial(
        axis_labels=("temporal", "channel", "spatial_z", "spatial_y", "spatial_x")
    )


def test_other_names_of_axes_are_kept(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    axes = [{"name": "energy", "unit": "eV"}, *({"name": n, "type": "space"} for n in "ji")]
    described = {"axes": axes, "datasets": [level("s0", [2, 3, 4], [1, 0, 0])]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [described]}
    group.create_array("s0", data=np.zeros((2, 3, 4), "u1"), attributes={"note": 1, "affine": 2})
    found = converted(opened(tmp_path / "a.zarr"), tmp_path / "a.mla")
    assert found.dims == ("energy", "j", "i")
    assert found.energy.values.tolist() == [1, 3]
    assert found.energy.attrs["units"] == "eV"
    assert found.mla.spacing == {"j": 3, "i": 4}
    assert (found.attrs["note"], found.attrs["zarr_affine"]) == (1, 2)


def test_segmentations_are_found_by_name(tmp_path: Path) -> None:
    group = image_group(tmp_path / "a.zarr", "")
    labels = group.create_group("labels", attributes={"ome": {"labels": ["cells"]}})
    cells = image_group(labels, "cells")
    described: Any = cells.attrs["ome"]
    cells.attrs["ome"] = {**described, "image-label": {}}
    assert opened(tmp_path / "a.zarr").metadata.is_seg is None
    for name in ("labels/cells", "labels/cells/0", "labels"):
        assert opened(tmp_path / "a.zarr", name).metadata.is_seg is True
    assert opened(tmp_path / "a.zarr", "labels/cells/1").values.shape[-1] == 2
    assert opened(tmp_path / "a.zarr/labels/cells").metadata.is_seg is True


def test_images_of_a_series_are_listed(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.attrs["bioformats2raw.layout"] = 3
    root.create_group("OME")
    image_group(root, "0", version="0.4")
    assert opened(tmp_path / "a.zarr").values.shape[-1] == 4
    image_group(root, "1", version="0.4")
    with pytest.raises(ConversionError, match=r"'0' \(2, 1, 3, 4, 4\) image, '1'.*dataset='0'"):
        opened(tmp_path / "a.zarr")
    assert opened(tmp_path / "a.zarr", "1").values.shape[-1] == 4
    assert opened(tmp_path / "a.zarr", "1/1").values.shape[-1] == 2


def test_wells_of_a_plate_are_listed(tmp_path: Path) -> None:
    root = zarr.open_group(tmp_path / "a.zarr", mode="w")
    root.attrs["ome"] = {"version": "0.5", "plate": {"wells": [{"path": "A/1"}]}}
    row = root.create_group("A")
    for column in "12":
        image_group(row.create_group(column), "0")
    with pytest.raises(ConversionError, match=r"'A/1/0' .*'A/2/0'"):
        opened(tmp_path / "a.zarr")
    assert opened(tmp_path / "a.zarr", "A/2").values.shape[-1] == 4


def test_several_images_of_one_group_are_listed(tmp_path: Path) -> None:
    group = image_group(tmp_path / "a.zarr", "")
    described: Any = group.attrs["ome"]
    (first,) = described["multiscales"]
    second = {**first, "datasets": [first["datasets"][1]]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [first, second]}
    with pytest.raises(ConversionError, match=r"2 images.*\['0', '1'\]"):
        opened(tmp_path / "a.zarr")
    assert opened(tmp_path / "a.zarr", "1").values.shape[-1] == 2


def test_arrays_beside_an_image_have_no_axes(tmp_path: Path) -> None:
    image_group(tmp_path / "a.zarr", "").create_array("table", data=RAW)
    with pytest.raises(ConversionError, match="'table' is no level"):
        opened(tmp_path / "a.zarr", "table")
    zarr.open_group(tmp_path / "b.zarr", mode="w").create_array("a", data=RAW)
    with pytest.raises(ConversionError, match="no multiscale image"):
        opened_ome(tmp_path / "b.zarr")
    with pytest.raises(ConversionError, match="nothing named 'c'"):
        opened_ome(tmp_path / "b.zarr", "c")


SCALE = [1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"axes": AXES[1:]},
        {"axes": [*AXES[:4], AXES[3]]},
        {"axes": [*AXES[:4], {"name": "w w", "type": "space"}]},
        {"axes": [*AXES[:4], {"name": 3}]},
        {"axes": [*AXES[:4], {"type": "space"}]},
        {"axes": [*AXES[:4], 3]},
        {"axes": 3},
        {"axes": None},
        {"datasets": []},
        {"datasets": {}},
        {"datasets": [3]},
        {"datasets": [{}]},
        {"datasets": [{"path": "nowhere"}]},
        {"datasets": [{"path": "../a.zarr/0"}]},
        {"datasets": [level("0", SCALE[1:])]},
        {"datasets": [level("0", ["1"] * 5)]},
        {"datasets": [level("0", [True] * 5)]},
        {"datasets": [level("0", [0, 1, 1, 1, 1])]},
        {"datasets": [level("0", [float("nan"), 1, 1, 1, 1])]},
        {"datasets": [level("0", [10**400, 1, 1, 1, 1])]},
        {"datasets": [level("0", "11111")]},
        {"datasets": [level("0", SCALE, 3)]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]},
        {"datasets": [{"path": "0", "coordinateTransformations": [{"scale": SCALE}]}]},
        {
            "datasets": [
                {"path": "0", "coordinateTransformations": [{"type": "scale", "path": "s"}]}
            ]
        },
        {"datasets": [{"path": "0", "coordinateTransformations": 3}]},
        {"coordinateTransformations": [{"type": "translation", "translation": [1]}]},
        {"version": "0.6.dev1"},
        {"version": ["0.4"]},
    ],
)
def test_broken_metadata_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    image_group(tmp_path / "a.zarr", "", **change)
    with pytest.raises(ConversionError, match=r"a\.zarr"):
        opened(tmp_path / "a.zarr")


@pytest.mark.parametrize("described", [3, [3], [None], {"a": 1}, "text"])
def test_multiscales_of_other_types_are_told(described: Any) -> None:
    with pytest.raises(ConversionError, match="broken"):
        Multiscale.all_of({"ome": {"version": "0.5", "multiscales": described}})


@pytest.mark.parametrize(
    ("dims", "is_ome"),
    [
        ("zyx", True),
        ("xyz", True),
        ("yx", True),
        ("tczyx", True),
        ("ezyx", True),
        ("cyx", True),
        ("tcyx", True),
        ("ctyx", False),
        ("zyxt", False),
        ("eczyx", False),
        ("x", False),
        ("tc", False),
    ],
)
def test_files_are_ome_images_where_they_can_be(dims: str, is_ome: bool, tmp_path: Path) -> None:
    names = [{"t": "time", "c": "channel", "e": "energy"}.get(dim, dim) for dim in dims]
    shape = range(2, 2 + len(dims))
    coords: dict[Any, Any] = {
        dim: (dim, 5 + (i + 0.5) * np.arange(n), {"units": "mm"})
        for i, (dim, n) in enumerate(zip(names, shape, strict=True))
        if dim in {"x", "y", "z"}
    }
    if "t" in dims:
        coords["time"] = ("time", 1 + 0.5 * np.arange(shape[dims.index("t")]), {"units": "ms"})
    array = xr.DataArray(np.ones(shape, "u1"), dims=names, coords=coords)
    written(array, tmp_path)
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert ("ome" in group.attrs) is is_ome
    if not is_ome:
        return
    # Without our own metadata, what remains is what other readers see.
    edited(tmp_path / "out.zarr/image/zarr.json", lambda d: d.update(attributes={}))
    found = converted(opened_ome(tmp_path / "out.zarr"), tmp_path / "b.mla")
    assert found.dims == array.dims
    for dim, (_, values, attrs) in coords.items():
        np.testing.assert_array_equal(found[dim], values)
        assert found[dim].attrs["units"] == attrs["units"]


def test_stored_dimension_names_are_those_of_the_axes(tmp_path: Path) -> None:
    written(labelled(), tmp_path)
    group: Any = zarr.open_group(tmp_path / "out.zarr", mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert [axis["name"] for axis in image["axes"]] == ["time", "z", "y", "x"]
    assert group["ct"].metadata.dimension_names == ("time", "z", "y", "x")
    assert image["axes"][0] == {"name": "time", "type": "time", "unit": "second"}
    assert image["datasets"][0]["path"] == "ct"


def test_uneven_times_have_no_scale(tmp_path: Path) -> None:
    array = labelled().isel(time=[0, 1, 1]).assign_coords(time=[0.0, 1, 5])
    written(array, tmp_path)
    group: Any = zarr.open_group(tmp_path / "out.zarr", mode="r")
    (changes,) = (
        d["coordinateTransformations"] for d in group.attrs["ome"]["multiscales"][0]["datasets"]
    )
    assert changes[0]["scale"][0] == 1
    found = converted(opened_ome(tmp_path / "out.zarr"), tmp_path / "b.mla")
    assert found.time.values.tolist() == [0, 1, 5]


def test_the_store_is_listed_without_its_links(raw: Path, tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "g", mode="w").create_group("a")
    (tmp_path / "g/b").symlink_to(raw)
    assert ZarrStore.at(str(tmp_path / "g")).members("") == ["a"]


@given(
    dims=st.permutations(("x", "y", "z")),
    world=st.permutations((0, 1, 2)),
    steps=st.tuples(*[st.sampled_from((0.5, -0.75, 2.0))] * 3),
    system=st.sampled_from(("RAS", "LPS+")),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_others_find_every_voxel_of_a_patient_where_it_is(
    dims: list[str], world: list[int], steps: tuple[float, ...], system: str, tmp_path: Path
) -> None:
    """Read as OME-NGFF alone, with scales above zero and orientations, without our own metadata."""
    affine = np.zeros((4, 4))
    affine[-1, -1] = 1
    affine[world, range(3)], affine[:3, -1] = steps, (5.0, -7.0, 11.0)
    spatial = Spatial(
        affine=tuple(map(tuple, affine.tolist())),
        axis_labels=tuple(f"spatial_{dim}" for dim in dims),
        coord_system=system,
    )
    volume = Metadata(spatial=spatial, has_array=True)
    wanted = stored_geometry(volume, stored_axes(volume, 3))
    shutil.rmtree(tmp_path / "a.zarr", ignore_errors=True)
    to_mla(np.zeros((2, 3, 4), "u1"), tmp_path / "a.mla", metadata=volume, mode="w")
    write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "a.zarr"), mode="w-")
    group: Any = zarr.open_group(tmp_path / "a.zarr", mode="r+")
    del group["image"].attrs["mla_metadata"]
    (described,) = group.attrs["ome"]["multiscales"]
    scale, *_ = described["datasets"][0]["coordinateTransformations"]
    assert min(scale["scale"]) > 0
    found = opened_ome(tmp_path / "a.zarr").metadata
    there = stored_geometry(found, stored_axes(found, 3))
    assert there.dims == wanted.dims
    np.testing.assert_allclose(there.in_system("RAS").affine, wanted.in_system("RAS").affine)
