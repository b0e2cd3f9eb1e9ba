from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from mlarray_xr.attributes import read_metadata
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import GeometryError, MlaWarning
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats
from tests.fake_file import ZYX, as_text, image, image_of, opened, reopened, rich

DATA = Path(__file__).parent / "data" / "mla"
OBLIQUE = ((0.5, 0.0, 0.1, -10.0), (0.0, 0.75, 0.0, 20.0), (0.0, 0.05, 2.0, 30.5), (0, 0, 0, 1))


def fixtures() -> list[tuple[str, Metadata, tuple[int, ...]]]:
    found = []
    for path in sorted(DATA.rglob("*.json")):
        case = json.loads(path.read_text(encoding="utf-8"))
        if "normalized" in case:
            case["normalized"]["spatial"].pop("shape")
            shape = case["array"]["shape"] if case["array"] else (0,)
            metadata = Metadata.from_dict(case["normalized"])
            found.append((f"{path.parent.name}/{path.stem}", metadata, tuple(shape)))
    return found


FIXTURES = fixtures()


def test_there_are_fixtures() -> None:
    assert len(FIXTURES) > 100


@pytest.mark.parametrize(
    ("metadata", "shape"), [f[1:] for f in FIXTURES], ids=[f[0] for f in FIXTURES]
)
def test_metadata_of_every_generation_survives_opening(
    metadata: Metadata, shape: tuple[int, ...]
) -> None:
    if metadata.has_array:
        assert as_text(metadata_of(image_of(metadata, shape))) == as_text(metadata)
        return
    dataset = opened(metadata, shape)
    described = read_metadata(dataset.attrs)
    assert not dataset.variables
    assert described is not None
    assert as_text(described[0]) == as_text(metadata)


@pytest.mark.parametrize(
    ("labels", "dims"),
    [
        (("spatial", "spatial", "spatial"), ("z", "y", "x")),
        (("a", "a", "a"), ("a_0", "a_1", "a_2")),
        (("", "a/b\0c", "x" * 5000), ("dim_0", "a_b_c", "x" * 64)),
        (("image", "labels", "spatial_x"), ("image", "labels", "x")),
    ],
)
def test_strange_labels_open_and_survive(labels: tuple[str, ...], dims: tuple[str, ...]) -> None:
    metadata = Metadata(spatial=Spatial(axis_labels=labels), has_array=True)
    array = image_of(metadata, (2, 3, 4))
    assert array.dims == dims
    assert array.name not in dims
    assert as_text(metadata_of(array)) == as_text(metadata)


def test_assumed_axes_are_said_and_never_stored_as_known() -> None:
    array = image((2, 3, 4), spacing=(1, 2, 3))
    assert array.attrs["axes_assumed"] == "the file does not name z, y, x"
    moved = array.transpose("x", "y", "z")
    labels = metadata_of(moved).spatial.axis_labels
    assert labels == ("spatial", "spatial", "spatial")
    assert reopened(moved).dims == ("x", "y", "z")
    assert metadata_of(array[0]).spatial.axis_labels is None


def test_names_that_no_terminal_should_see_are_left_out() -> None:
    bad, long = "\x1b[2J", "n" * 1_000_000
    coordinate = {"dims": [], "dtype": "i8", "values": 1, "attrs": {bad: 1, long: 1}}
    for name in (bad, long, "a\nb"):
        entry = {
            "name": name,
            "dims": [name, "x"],
            "attrs": {name: 1},
            "coords": {name: coordinate, "ok": coordinate},
        }
        dataset = opened(Metadata(has_array=True, extra={"mlarray_xr": entry}), (2, 3))  # type: ignore[dict-item]
        assert list(dataset.data_vars) == ["image"]
        assert dataset["image"].dims == ("y", "x")
        assert dataset["ok"].attrs == {}
        shown = repr(dataset) + repr(dataset["image"]) + repr(dataset["ok"])
        assert "\x1b" not in shown
        assert len(shown) < 5000


def test_names_that_reading_leaves_out_are_said_when_writing() -> None:
    array = image((2, 3)).assign_attrs({"\x1b": 1}).assign_coords({"n" * 257: 1})
    with pytest.warns(MlaWarning) as caught:
        assert metadata_of(array).extra == {}
    assert len(caught) == 2


def test_names() -> None:
    assert list(opened(Metadata(has_array=True), (2,)).data_vars) == ["image"]
    assert list(opened(Metadata(has_array=True, is_seg=True), (2,)).data_vars) == ["labels"]
    assert list(opened(Metadata(has_array=True), (2,), variable="ct").data_vars) == ["ct"]
    assert reopened(xr.DataArray([1, 2], dims="x", name="ct")).name == "ct"
    with pytest.raises(ValueError, match="name of a dimension"):
        opened(Metadata(has_array=True), (2,), variable="x")


def test_variables_can_be_left_out() -> None:
    metadata = Metadata(spatial=Spatial(spacing=(1, 1)), has_array=True)
    dataset = opened(metadata, (2, 3), drop_variables=("image", "nothing"))
    assert list(dataset.variables) == ["y", "x"]
    assert list(opened(metadata, (2, 3), drop_variables=("x",)).coords) == ["y"]


def test_encoding_tells_layout_and_parts() -> None:
    array = image_of(rich(), (2, 9, 9, 9))
    assert array.encoding["chunks"] == array.encoding["blocks"] == (2, 4, 4, 4)
    parts = array.encoding["preferred_chunks"]
    assert list(parts) == list(array.dims)
    assert all(parts[d] % 4 == 0 or parts[d] == n for d, n in array.sizes.items())


def test_a_selection_drops_what_describes_the_whole() -> None:
    array = image_of(rich(), (2, 3, 4, 5))
    for view in (array[:, 1:], array[..., ::-1], array.transpose(), array[0]):
        metadata = metadata_of(view)
        assert metadata.bbox == Boxes()
        assert metadata.stats == Stats()
        assert repr(metadata.source) == repr(rich().source)
        assert metadata.unknown == rich().unknown


def test_arithmetic_keeps_everything_but_statistics() -> None:
    metadata = metadata_of(image_of(rich(), (2, 3, 4, 5)) * 2)
    assert metadata.stats == Stats()
    assert metadata.spatial == rich().spatial
    assert metadata.bbox == rich().bbox


def test_a_crop_has_its_own_geometry() -> None:
    array = image_of(rich(), (2, 3, 4, 5))
    spatial = metadata_of(array[:, 1:, ::-1, ::2]).spatial
    expected = ((3, 0, 0, 13), (0, -0.75, 0, -18.25), (0, 0, 1, 30.125), (0, 0, 0, 1))
    assert spatial.affine == expected
    assert spatial.spacing is None
    assert spatial.axis_labels == rich().spatial.axis_labels
    assert spatial.axis_units == rich().spatial.axis_units


def test_a_plane_keeps_the_schema_in_two_dimensions_and_the_volume_in_our_entry() -> None:
    plane = image_of(rich(), (2, 3, 4, 5)).isel(y=1)
    metadata = metadata_of(plane)
    assert metadata.spatial.affine == ((3, 0, 10), (0, 0.5, 30.125), (0, 0, 1))
    assert metadata.spatial.axis_units == ["", "mm", "mm"]
    back = reopened(plane)
    assert back.mla.geometry.dims == ("z", "x", "y")
    np.testing.assert_array_equal(back.mla.affine, plane.mla.affine)
    assert back.y == plane.y == -19.75
    assert as_text(metadata_of(back)) == as_text(metadata)


def test_an_oblique_plane_keeps_the_volume_in_our_entry_only() -> None:
    plane = image((4, 5, 6), affine=OBLIQUE).isel(x=3).transpose("y", "z")
    assert metadata_of(plane).spatial.affine is None
    back = reopened(plane)
    np.testing.assert_allclose(back.mla.affine, plane.mla.affine, atol=1e-12)
    assert as_text(metadata_of(back)) == as_text(metadata_of(plane))


def test_a_volume_that_contradicts_the_schema_is_ignored() -> None:
    metadata = metadata_of(image_of(rich(), (2, 3, 4, 5)).isel(y=1))
    metadata.extra["mlarray_xr"]["plane"]["affine"][0][0] = 99.0  # type: ignore[index,call-overload]
    assert image_of(metadata, (2, 3, 5)).mla.geometry.dims == ("z", "x")


def test_an_average_of_aligned_slices_loses_their_world_axis() -> None:
    mean = image_of(rich(), (2, 3, 4, 5)).mean("z")
    assert metadata_of(mean).spatial.affine == ((0.75, 0, -20.5), (0, 0.5, 30.125), (0, 0, 1))


def test_an_average_of_oblique_slices_says_what_to_do() -> None:
    mean = image((4, 5, 6), affine=OBLIQUE).mean("z")
    with pytest.raises(GeometryError, match="assign_coords"):
        metadata_of(mean)
    stated = metadata_of(mean.assign_coords(z=1.5))
    assert stated.extra["mlarray_xr"]["plane"]["dims"] == ["y", "x", "z"]  # type: ignore[index,call-overload]
    assert metadata_of(mean.drop_attrs()).spatial.affine is None


def test_uneven_slices_are_refused() -> None:
    array = image((6, 5), spacing=(1, 1))
    with pytest.raises(GeometryError, match="not evenly spaced"):
        metadata_of(array.isel(y=[0, 1, 3]))
    with pytest.raises(GeometryError, match="not evenly spaced"):
        metadata_of(array.isel(y=[2, 2]))


def test_a_new_spatial_axis_without_positions_is_said() -> None:
    stack = xr.concat([image((4, 5), spacing=(1, 2))] * 3, "z")
    with pytest.warns(MlaWarning, match=r"positions along \['z'\]"):
        assert metadata_of(stack).spatial.affine is None


SPATIALS: list[dict[str, Any]] = [
    {"spacing": (3, 0.75, 0.5), "origin": (1, 2, 3)},
    {"spacing": (3, 0.75, 0.5), "axis_labels": ZYX},
    {"affine": OBLIQUE, "axis_labels": ZYX},
    {"affine": OBLIQUE},
]


@pytest.mark.parametrize("spatial", SPATIALS)
@pytest.mark.parametrize(
    "names", [{"z": "x", "x": "z"}, {"z": "y", "y": "x", "x": "z"}, {"z": "depth"}]
)
def test_the_geometry_stays_with_the_data_when_dimensions_are_renamed(
    spatial: dict[str, Any], names: dict[str, str]
) -> None:
    array = image((4, 5, 6), **spatial)
    renamed = array.rename(names)
    np.testing.assert_array_equal(renamed.mla.affine, array.mla.affine)
    assert renamed.mla.geometry.dims == renamed.dims
    cropped = array[1:, ::2, ::-1]
    np.testing.assert_array_equal(renamed[1:, ::2, ::-1].mla.affine, cropped.mla.affine)
    for view, expected in ((renamed, array), (renamed[1:, ::2, ::-1], cropped)):
        back = reopened(view)
        assert back.dims == renamed.dims
        np.testing.assert_array_equal(back.mla.affine, expected.mla.affine)
        assert as_text(metadata_of(back)) == as_text(metadata_of(view))
    np.testing.assert_allclose(
        reopened(renamed[2]).mla.affine, array[2].mla.affine, rtol=0, atol=1e-12
    )


def test_renaming_says_of_the_axes_what_the_new_names_say() -> None:
    array = image((4, 5, 6), spacing=(3, 2, 1), axis_labels=ZYX)
    swapped = metadata_of(array.rename(z="x", x="z")).spatial
    assert swapped.axis_labels == ("spatial_x", "spatial_y", "spatial_z")
    depth = metadata_of(array.rename(z="depth")).spatial
    assert depth.axis_labels == ("spatial", "spatial_y", "spatial_x")


def test_renamed_dimensions_that_cannot_be_told_apart_are_refused() -> None:
    array = image((4, 5, 6), affine=OBLIQUE).rename(z="x", x="z").drop_vars("x")
    with pytest.raises(GeometryError, match="told apart"):
        _ = array.mla.affine
    with pytest.raises(GeometryError, match="told apart"):
        metadata_of(array)


def test_a_coordinate_computed_from_a_spatial_one_does_not_pose_as_it() -> None:
    array = image((4, 5, 6), spacing=(3, 2, 1))
    more = array.assign_coords(z_um=1000 * array.z.assign_attrs(array.z.attrs))
    more.z_um.attrs.update(array.z.attrs)
    np.testing.assert_array_equal(more.mla.affine, array.mla.affine)
    np.testing.assert_array_equal(more[2].mla.affine, array[2].mla.affine)
    assert "spatial_dim" not in metadata_of(more).extra["mlarray_xr"]["coords"]["z_um"]["attrs"]  # type: ignore[index,call-overload,operator]


@pytest.mark.parametrize("spatial", SPATIALS)
def test_without_a_spatial_dimension_there_is_no_geometry(spatial: dict[str, Any]) -> None:
    array = image((4, 5, 6), **spatial)
    mean = array.mean(("z", "y", "x"), keep_attrs=True)
    bare = array.drop_vars(["z", "y", "x"]).rename(z="a", y="b", x="c")
    for lost in (mean, bare):
        with pytest.raises(GeometryError, match="positions are unknown"):
            _ = lost.mla.geometry
        with pytest.warns(MlaWarning, match="none of the dimensions"):
            assert metadata_of(lost).spatial.affine is None


def test_a_voxel_keeps_its_place() -> None:
    voxel = image((4, 5, 6), affine=OBLIQUE)[1, 2, 3]
    np.testing.assert_allclose(reopened(voxel).mla.affine, voxel.mla.affine, atol=1e-12)


def test_any_names_of_dimensions_survive() -> None:
    array = xr.DataArray(np.zeros((1, 2, 3, 4)), dims=("my axis", "spatial_x", "é", "dim_3"))
    back = reopened(array)
    assert back.dims == array.dims
    assert metadata_of(back).spatial == metadata_of(array).spatial


def test_an_edited_coordinate_system_is_stored() -> None:
    array = image_of(rich(), (2, 3, 4, 5))
    assert metadata_of(array.assign_attrs(coord_system="RAS")).spatial.coord_system == "RAS"
    del array.attrs["coord_system"]
    assert metadata_of(array).spatial.coord_system is None


def test_a_coordinate_system_is_shown_clean_and_stored_as_it_was() -> None:
    dirty = "RAS\0" + "x" * 5000
    metadata = Metadata(spatial=Spatial(coord_system=dirty), has_array=True)
    array = image_of(metadata, (2, 3))
    assert array.attrs["coord_system"] == "RAS?" + "x" * 124
    assert metadata_of(array).spatial.coord_system == dirty


def test_edited_units_are_stored() -> None:
    array = image((2, 3), spacing=(1, 2))
    array.y.attrs["units"] = "um"
    assert metadata_of(array).spatial.axis_units == ["um", ""]


def test_edited_affine_attributes_are_checked_and_stored() -> None:
    array = image((4, 5, 6), affine=OBLIQUE)
    scaled = [2 * number for number in array.attrs["affine"][:12]] + [0, 0, 0, 1]
    affine = metadata_of(array.assign_attrs(affine=scaled)).spatial.affine
    np.testing.assert_array_equal(np.asarray(affine)[:3], 2 * np.asarray(OBLIQUE)[:3])
    with pytest.raises(GeometryError, match="4 x 4"):
        metadata_of(array.assign_attrs(affine=[1.0, 2.0]))


def test_a_zero_dimensional_array_is_described() -> None:
    metadata = Metadata(has_array=True, source={"a": 1})
    array = image_of(metadata, ())
    assert array.dims == ()
    assert as_text(metadata_of(array)) == as_text(metadata)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_arrays_are_described(shape: tuple[int, ...]) -> None:
    metadata = Metadata(has_array=True, spatial=Spatial(spacing=(2, 3)))
    assert as_text(metadata_of(image_of(metadata, shape))) == as_text(metadata)
