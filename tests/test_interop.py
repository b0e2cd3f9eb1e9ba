"""Files written here open in the reference package and mean the same there, and the other way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlarray
import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats
from tests.strategies import values_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZYX = ("spatial_z", "spatial_y", "spatial_x")
OBLIQUE = (
    (0.8, -0.6, 0.0),
    (0.6, 0.8, 0.0),
    (0.0, 0.0, 1.0),
)
AFFINE = (
    (0.0, -1.2, 0.3, -7.5),
    (0.5, 0.0, 0.0, 12.0),
    (0.0, 0.1, 2.5, 3.25),
    (0.0, 0.0, 0.0, 1.0),
)


def theirs(path: Path) -> list[mlarray.MLArray]:
    return [
        mlarray.MLArray.open(str(path)),
        mlarray.MLArray.load(str(path)),
        mlarray.MLArray.load(str(path), compressed=False),
    ]


def assert_same_spatial(found: mlarray.MLArray, expected: Spatial) -> None:
    spatial = found.meta.spatial
    for name in ("spacing", "origin", "direction", "affine"):
        value = getattr(expected, name)
        actual = getattr(spatial, name)
        assert (actual is None) == (value is None), name
        if value is not None:
            np.testing.assert_array_equal(np.asarray(actual), np.asarray(value))
    labels = None if spatial.axis_labels is None else tuple(map(str, spatial.axis_labels))
    assert labels == expected.axis_labels
    system = spatial.coord_system
    assert (None if system is None else str(getattr(system, "value", system))) == (
        expected.coord_system
    )


WRITTEN: dict[str, tuple[tuple[int, ...], Spatial]] = {
    "3-D with affine": ((6, 7, 8), Spatial(affine=AFFINE, axis_labels=ZYX, coord_system="LPS")),
    "3-D with spacing": (
        (6, 7, 8),
        Spatial(
            spacing=(2.5, 0.5, 0.75),
            origin=(-10.0, 4, 0.125),
            direction=OBLIQUE,
            axis_labels=ZYX,
            coord_system="RAS",
        ),
    ),
    "3-D without anything": ((6, 7, 8), Spatial()),
    "2-D": ((9, 10), Spatial(spacing=(0.5, 0.25), axis_labels=ZYX[1:])),
    "1-D": ((9,), Spatial()),
    "channels last": (
        (9, 10, 3),
        Spatial(spacing=(0.5, 0.25), axis_labels=(*ZYX[1:], "channel")),
    ),
    "channels first": ((4, 5, 6, 7), Spatial(axis_labels=("channel", *ZYX))),
    "4-D time": (
        (3, 5, 6, 7),
        Spatial(spacing=(2.0, 1.0, 1.0), origin=(0, 0, 0), axis_labels=("temporal", *ZYX)),
    ),
    "own label": ((3, 6, 7), Spatial(axis_labels=("energy", *ZYX[1:]), coord_system=None)),
    "own units": (
        (6, 7),
        Spatial(spacing=(1.0, 2.0), axis_labels=ZYX[1:], axis_units=["mm", "mm"]),
    ),
    "empty": ((0, 5), Spatial()),
    "no axes": ((), Spatial()),
    "five axes": ((2, 3, 4, 2, 3), Spatial()),
}


@pytest.mark.parametrize(("shape", "spatial"), WRITTEN.values(), ids=list(WRITTEN))
def test_the_reference_reads_what_is_written_here(
    tmp_path: Path, shape: tuple[int, ...], spatial: Spatial
) -> None:
    path = tmp_path / "ours.mla"
    values = values_of(shape, np.dtype("i2"), 4)
    metadata = Metadata(spatial=spatial, source={"modality": "CT", "n": [1, 2.5, None]})
    mlarray_xr.to_mla(values, path, metadata=metadata)
    for found in theirs(path):
        assert (tuple(found.shape), found.dtype) == (values.shape, values.dtype)
        np.testing.assert_array_equal(np.asarray(found.to_numpy()), values)
        assert_same_spatial(found, spatial)
        assert found.meta.source.data == metadata.source
        if spatial.affine is not None:
            np.testing.assert_array_equal(np.asarray(found.affine), spatial.affine)


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "u2", "<i4", ">i4", "u8", "f2", "f4", ">f8", "c8", "c16", "M8[ns]", "S4", "U3"],
)
def test_the_reference_reads_every_type(tmp_path: Path, dtype: str) -> None:
    values = values_of((11, 5), np.dtype(dtype), 1)
    mlarray_xr.to_mla(values, tmp_path / "a.mla", chunks=4, blocks=3)
    for found in theirs(tmp_path / "a.mla"):
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(np.asarray(found.to_numpy()), values)


@pytest.mark.parametrize(
    "codec", ["lz4hc-8", "zstd-3-bitshuffle", "zstd-0", "blosclz-1-none", "zlib-1", "lz4-9"]
)
def test_the_reference_reads_every_codec(tmp_path: Path, codec: str) -> None:
    values = values_of((20, 30, 10), np.dtype("f4"), 1)
    values[5:12] = 0
    mlarray_xr.to_mla(values, tmp_path / "a.mla", codec=codec, chunks=(7, 8, 5), blocks=(3, 4, 5))
    for found in theirs(tmp_path / "a.mla"):
        np.testing.assert_array_equal(np.asarray(found.to_numpy()), values)
        np.testing.assert_array_equal(np.asarray(found[3:9, ::2, 4]), values[3:9, ::2, 4])


def test_the_reference_reads_everything_else_that_metadata_holds(tmp_path: Path) -> None:
    path = tmp_path / "labels.mla"
    metadata = Metadata(
        source={"uid": "1.2.3", "nested": {"a": [True, None, "é"]}},
        extra={"site": 3},
        stats=Stats(min=0.0, max=4.0, mean=1.5),
        bbox=Boxes(
            bboxes=(((0, 2), (1, 3), (0, 1)),),
            scores=(0.5,),
            labels=("lesion",),
        ),
        is_seg=True,
        image_meta_format="nifti",
    )
    mlarray_xr.to_mla(values_of((4, 5, 6), np.dtype("u1"), 0), path, metadata=metadata)
    for found in theirs(path):
        meta = found.meta
        assert (meta.source.data, meta.extra.data) == (metadata.source, metadata.extra)
        assert (meta.stats.min, meta.stats.max, meta.stats.mean) == (0.0, 4.0, 1.5)
        assert meta.bbox.bboxes == [[[0, 2], [1, 3], [0, 1]]]
        assert (meta.bbox.scores, meta.bbox.labels) == ([0.5], ["lesion"])
        assert meta.is_seg.is_seg is True
        assert meta._image_meta_format.image_meta_format == "nifti"
        assert meta._has_array.has_array is True
    assert mlarray_xr.open_mla(path).name == "labels"


def saved(path: Path, values: NDArray[Any], **kwargs: Any) -> mlarray.MLArray:
    array = mlarray.MLArray(values, **kwargs)
    array.save(str(path))
    return array


SAVED: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "plain": ((6, 7, 8), {}),
    "spacing": ((6, 7, 8), {"spacing": [2.5, 0.5, 0.75], "origin": [-1.0, 2.0, 3.5]}),
    "direction": ((6, 7, 8), {"spacing": [1, 2, 3], "direction": OBLIQUE}),
    "affine": ((6, 7, 8), {"affine": AFFINE}),
    "labels": ((3, 6, 7), {"axis_labels": ["channel", *ZYX[1:]], "spacing": [0.5, 0.25]}),
    "time": ((3, 4, 5, 6), {"axis_labels": ["temporal", *ZYX]}),
    "source": ((6, 7), {"meta": {"patient": "x", "list": [1, [2, None]]}}),
    "patch": ((40, 50, 60), {"patch_size": 16}),
    "patch list": ((40, 50, 60), {"patch_size": [8, 16, 32]}),
    "no patch": ((40, 50, 60), {"patch_size": None}),
    "chunks": ((9, 10), {"patch_size": None, "chunk_size": [4, 5], "block_size": [2, 5]}),
    "codec": ((40, 50), {"cparams": {"codec": 5, "clevel": 2}}),
}


@pytest.mark.parametrize(("shape", "keywords"), SAVED.values(), ids=list(SAVED))
def test_files_of_the_reference_open_here(
    tmp_path: Path, shape: tuple[int, ...], keywords: dict[str, Any]
) -> None:
    path = tmp_path / "theirs.mla"
    values = values_of(shape, np.dtype("f4"), 2)
    written = saved(path, values, **keywords)
    array = mlarray_xr.MlaArray(path)
    np.testing.assert_array_equal(array[...], values)
    assert_same_spatial(written, array.metadata.spatial)
    assert array.metadata.source == written.meta.source.data
    opened = xr.open_dataset(path)["image"]
    np.testing.assert_array_equal(opened, values)
    if keywords:
        np.testing.assert_allclose(opened.mla.affine, np.asarray(written.affine), atol=1e-12)


def test_every_public_part_of_their_metadata_opens_here(tmp_path: Path) -> None:
    path = tmp_path / "theirs.mla"
    meta = mlarray.Meta(
        source=mlarray.MetaSource({"uid": "1.2", "keys": {"a": 1}}),
        extra=mlarray.MetaExtra({"site": 3}),
        spatial=mlarray.MetaSpatial(spacing=[1.0, 2.0, 3.0], coord_system="LPS"),
        stats=mlarray.MetaStatistics(min=0.0, max=9.0, percentile_min=0.5, percentile_min_key=0.05),
        bbox=mlarray.MetaBbox(bboxes=[[[0, 1], [2, 3], [0, 4]]], scores=[0.25], labels=[7]),
        is_seg=mlarray.MetaIsSeg(False),
    )
    saved(path, values_of((4, 5, 6), np.dtype("i4"), 3), meta=meta)
    found = mlarray_xr.MlaArray(path).metadata
    assert (found.source, found.extra) == ({"uid": "1.2", "keys": {"a": 1}}, {"site": 3})
    assert (found.spatial.spacing, found.spatial.coord_system) == ((1.0, 2.0, 3.0), "LPS")
    assert (found.stats.min, found.stats.max, found.stats.percentile_min_key) == (0.0, 9.0, 0.05)
    assert found.bbox == Boxes(bboxes=(((0, 1), (2, 3), (0, 4)),), scores=(0.25,), labels=(7,))
    assert found.is_seg is False
    assert found.has_array


def test_their_ways_of_making_arrays_open_here(tmp_path: Path) -> None:
    path = tmp_path / "created.mla"
    created = mlarray.MLArray.create(str(path), shape=(20, 30), dtype=np.dtype("i2"))
    created[:10] = 7
    created.close()
    expected = np.zeros((20, 30), "i2")
    expected[:10] = 7
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path)[...], expected)
    for name, make in (("zeros", mlarray.MLArray.zeros), ("ones", mlarray.MLArray.ones)):
        target = tmp_path / f"{name}.mla"
        make((40, 50), np.dtype("f4")).save(str(target))
        np.testing.assert_array_equal(mlarray_xr.MlaArray(target)[...], getattr(np, name)((40, 50)))


ROUND_TRIPS = ["affine3d", "ch4d_first", "coord_units", "img2d", "multi5d", "stats_extra"]
ROUND_TRIPS += ["extra_data_key", "int_keys", "nan_inf_meta", "tuple_meta", "custom_axis_labels"]


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize("chunks", [None, {}])
def test_metadata_survive_a_round_trip_through_xarray(
    tmp_path: Path, name: str, chunks: Any
) -> None:
    source = Path(__file__).parent / "data" / "mla" / "0.0.54" / f"{name}.mla"
    before = mlarray_xr.MlaArray(source)
    mlarray_xr.to_mla(xr.open_dataset(source, chunks=chunks), tmp_path / "copy.mla")
    after = mlarray_xr.MlaArray(tmp_path / "copy.mla")
    np.testing.assert_array_equal(after[...], before[...])
    assert after.dtype == before.dtype
    expected, found = before.metadata.to_dict(), after.metadata.to_dict()
    for metadata in (expected, found):
        metadata.pop("blosc2")
    assert repr(found) == repr(expected)


def test_resaving_by_the_reference_keeps_what_only_we_know(tmp_path: Path) -> None:
    ours, resaved = tmp_path / "ours.mla", tmp_path / "resaved.mla"
    array = xr.DataArray(
        values_of((3, 5, 6), np.dtype("i2"), 0),
        dims=("time", "y", "x"),
        coords={"time": np.array(["2026-01-01", "2026-01-02", "2026-02-01"], "M8[ns]")},
        attrs={"units": "HU", "window": [40.0, 400.0]},
        name="perfusion",
    )
    mlarray_xr.to_mla(array, ours)
    entry = mlarray_xr.MlaArray(ours).metadata.extra["mlarray_xr"]
    for compressed in (True, False):
        mlarray.MLArray.load(str(ours), compressed=compressed).save(str(resaved))
        assert mlarray_xr.MlaArray(resaved).metadata.extra["mlarray_xr"] == entry
        again = mlarray_xr.open_mla(resaved)
        assert (again.name, again.dims) == ("perfusion", array.dims)
        assert (again.attrs["units"], again.attrs["window"]) == ("HU", [40.0, 400.0])
        np.testing.assert_array_equal(again["time"], array["time"])
        np.testing.assert_array_equal(again, array)
        resaved.unlink()


def test_appending_in_place_by_the_reference_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(np.zeros((8, 8), "i2"), path, chunks=4, blocks=2)
    edited = mlarray.MLArray.open(str(path), mode="a", mmap_mode=None)
    edited[:3] = 5
    edited.meta.source.data["edited"] = True
    edited.close()
    expected = np.zeros((8, 8), "i2")
    expected[:3] = 5
    array = mlarray_xr.MlaArray(path)
    np.testing.assert_array_equal(array[...], expected)
    assert array.metadata.source == {"edited": True}
