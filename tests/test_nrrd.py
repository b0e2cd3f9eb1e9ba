"""NRRD files: pynrrd is the oracle of values and fields, SimpleITK (Teem) that of positions."""

from __future__ import annotations

import bz2
import gzip
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest import mock

import nrrd
import numpy as np
import pytest
import SimpleITK
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import MlaArray, open_mla, to_mla
from mlarray_xr.errors import ConversionError, GeometryError, MlaError, SourceError
from mlarray_xr.foreign import packed
from mlarray_xr.foreign.nrrd import open_image, write_image
from mlarray_xr.foreign.nrrd_header import NrrdHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.foreign.image import ForeignImage

sitk: Any = SimpleITK
"""Its functions are not annotated."""

TYPES = ("i1", "u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">u4", "<i8", ">u8", "<f4", ">f4", ">f8")
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
}
SHAPE = (5, 4, 3)
OBLIQUE = np.array([[0.4, -0.3, 0.1], [0.2, 0.5, -0.6], [0.3, 0.1, 2.0]])
OBLIQUE_FIELDS = {
    "space": "left-posterior-superior",
    "space directions": " ".join(f"({','.join(map(repr, row))})" for row in OBLIQUE.tolist()),
    "space origin": "(-10.5,20.25,7)",
}


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "<i2") -> NDArray[Any]:
    rng = np.random.default_rng(2)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    native = np.dtype(dtype).newbyteorder("=")
    return rng.integers(info.min, info.max, shape, native).astype(dtype)


def header_text(
    values: NDArray[Any], fields: Mapping[str, str], *, encoding: str = "raw", more: str = ""
) -> bytes:
    names = {"i": "int", "u": "uint", "f": "float"}
    name = f"{names[values.dtype.kind]}{values.dtype.itemsize * 8}"
    stated = {
        "type": {"float32": "float", "float64": "double"}.get(name, name),
        "dimension": str(values.ndim),
        "sizes": " ".join(map(str, reversed(values.shape))),
        "endian": "big" if values.dtype.str[0] == ">" else "little",
        "encoding": encoding,
    }
    # A world is stated before what lies in it.
    first = {k: v for k, v in fields.items() if k in ("space", "space dimension")}
    lines = [f"{k}: {v}" for k, v in {**first, **stated, **fields}.items()]
    return "\n".join(["NRRD0005", *lines]).encode() + b"\n" + more.encode() + b"\n"


def save(
    path: Path,
    values: NDArray[Any],
    fields: Mapping[str, str] = {},
    *,
    encoding: str = "raw",
    more: str = "",
) -> bytes:
    text = header_text(values, fields, encoding=encoding, more=more)
    path.write_bytes(text + ENCODINGS[encoding](values.tobytes()))
    return text


def opened(path: Path) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=None)


def whole(image: ForeignImage) -> NDArray[Any]:
    return image.values[tuple(slice(0, n) for n in image.values.shape)]


def converted(path: Path, mla: Path) -> MlaArray:
    image = opened(path)
    to_mla(image.values, mla, metadata=image.metadata, mode="w")
    return MlaArray(mla)


def labelled(path: Path, tmp_path: Path) -> xr.DataArray:
    converted(path, tmp_path / "labelled.mla")
    return open_mla(tmp_path / "labelled.mla").load()


def written(array: xr.DataArray | MlaArray, tmp_path: Path) -> Path:
    to_mla(array, tmp_path / "written.mla", mode="w")
    write_image(MlaArray(tmp_path / "written.mla"), str(tmp_path / "written.nrrd"), mode="w")
    return tmp_path / "written.nrrd"


def text_of(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return NrrdHeader.read(file).text


def lps_affine(image: Any) -> NDArray[np.float64]:
    """Return SimpleITK's affine, index (x, y, z) to LPS."""
    size = image.GetDimension()
    affine = np.eye(size + 1)
    affine[:size, size] = image.GetOrigin()
    directions = np.asarray(image.GetDirection()).reshape(size, size)
    affine[:size, :size] = directions * image.GetSpacing()
    return affine


def same_place(path: Path, array: xr.DataArray, *, atol: float = 1e-9) -> None:
    """Compare with what SimpleITK reads, whose indices are those of the array in reverse."""
    found = lps_affine(sitk.ReadImage(str(path)))
    size = len(found) - 1
    ours = np.asarray(array.mla.affine)
    if array.mla.coord_system == "RAS+":
        ours = np.diag([-1, -1, 1, 1]) @ ours
    np.testing.assert_allclose(ours, found[:, [*range(size)[::-1], size]], rtol=0, atol=atol)


# ---- values


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    dtype=st.sampled_from(TYPES),
    encoding=st.sampled_from(sorted(ENCODINGS)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple),
)
def test_files_come_back_byte_for_byte(
    dtype: str, encoding: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    values = voxels(shape, dtype)
    text = save(tmp_path / "a.nrrd", values, encoding=encoding)
    image = opened(tmp_path / "a.nrrd")
    assert image.values.dtype == values.dtype
    np.testing.assert_array_equal(whole(image), values)
    array = converted(tmp_path / "a.nrrd", tmp_path / "a.mla")
    write_image(array, str(tmp_path / "b.nrrd"), mode="w")
    assert text_of(tmp_path / "b.nrrd") == text
    found, fields = nrrd.read(str(tmp_path / "b.nrrd"), index_order="C")
    assert fields["encoding"] == encoding
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)
    if encoding == "raw":
        assert (tmp_path / "b.nrrd").read_bytes() == (tmp_path / "a.nrrd").read_bytes()


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("dtype", TYPES)
def test_files_of_pynrrd_are_read(dtype: str, encoding: str, tmp_path: Path) -> None:
    values = voxels(dtype=dtype)
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), values, {"encoding": encoding}, index_order="C")
    np.testing.assert_array_equal(whole(opened(path)), values)


@pytest.mark.parametrize("packs", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", "float64"])
def test_files_of_itk_are_read_and_come_back(dtype: str, packs: bool, tmp_path: Path) -> None:
    made = sitk.GetImageFromArray(voxels(dtype=dtype))
    made.SetSpacing((0.5, 0.75, 2.0))
    made.SetOrigin((-10, 20, 30.5))
    made.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    sitk.WriteImage(made, str(tmp_path / "a.nrrd"), packs)
    array = converted(tmp_path / "a.nrrd", tmp_path / "a.mla")
    np.testing.assert_array_equal(array[...], sitk.GetArrayFromImage(made))
    same_place(tmp_path / "a.nrrd", open_mla(tmp_path / "a.mla"))
    write_image(array, str(tmp_path / "b.nrrd"), mode="w-")
    assert text_of(tmp_path / "b.nrrd") == text_of(tmp_path / "a.nrrd")
    back = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(made))
    assert back.GetDirection() == made.GetDirection()


def test_large_packed_voxels_go_through_the_scratch_folder(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), encoding="bzip2")
    (tmp_path / "scratch").mkdir()
    with mock.patch.object(packed, "_IN_MEMORY_BYTES", 0):
        image = open_image(
            str(tmp_path / "a.nrrd"), scratch_dir=str(tmp_path / "scratch"), dataset=None
        )
    assert len(os.listdir(tmp_path / "scratch")) == 1
    np.testing.assert_array_equal(whole(image), voxels())


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("signed char", "i1"),
        ("uchar", "u1"),
        ("Unsigned Char", "u1"),
        ("short int", "<i2"),
        ("unsigned short int", "<u2"),
        ("signed  int", "<i4"),
        ("uint32_t", "<u4"),
        ("longlong", "<i8"),
        ("unsigned long long int", "<u8"),
        ("float", "<f4"),
        ("DOUBLE", "<f8"),
    ],
)
def test_types_have_many_names(name: str, code: str, tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels((3, 2), code), {"type": name})
    assert opened(tmp_path / "a.nrrd").values.dtype == np.dtype(code)


# ---- where the data are


def detached(tmp_path: Path, data: bytes, **fields: str) -> Path:
    stated = {"data file": "a.raw", **{k.replace("_", " "): v for k, v in fields.items()}}
    encoding = stated.pop("encoding", "raw")
    text = header_text(voxels(), stated, encoding=encoding).removesuffix(b"\n")
    (tmp_path / "a.nhdr").write_bytes(text)
    (tmp_path / "a.raw").write_bytes(data)
    return tmp_path / "a.nhdr"


@pytest.mark.parametrize(
    ("fields", "before", "after"),
    [
        ({}, b"", b""),
        ({"byte_skip": "7"}, b"7 bytes", b"more"),
        ({"byteskip": "-1"}, b"anything\n", b""),
        ({"byte_skip": "-4"}, b"anything\n", b"end"),
        ({"line_skip": "2"}, b"one\ntwo\n", b""),
        ({"lineskip": "1", "byte skip": "3"}, b"one\n\n\n\n", b""),
    ],
)
def test_detached_data_become_attached(
    fields: dict[str, str], before: bytes, after: bytes, tmp_path: Path
) -> None:
    path = detached(tmp_path, before + voxels().tobytes() + after, **fields)
    np.testing.assert_array_equal(whole(opened(path)), voxels())
    write_image(converted(path, tmp_path / "a.mla"), str(tmp_path / "b.nrrd"), mode="w-")
    found, header = nrrd.read(str(tmp_path / "b.nrrd"), index_order="C")
    np.testing.assert_array_equal(found, voxels())
    assert not {"data file", "byte skip", "line skip", "byteskip", "lineskip"} & {*header}


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_bytes_are_skipped_after_unpacking(encoding: str, tmp_path: Path) -> None:
    data = b"line\n" + ENCODINGS[encoding](b"head" + voxels().tobytes())
    path = detached(tmp_path, data, encoding=encoding, line_skip="1", byte_skip="4")
    np.testing.assert_array_equal(whole(opened(path)), voxels())


def test_long_lines_are_skipped(tmp_path: Path) -> None:
    before = bytes(200_000) + b"\n" + b"x" * 65_535 + b"\n"
    path = detached(tmp_path, before + voxels().tobytes(), line_skip="2")
    np.testing.assert_array_equal(whole(opened(path)), voxels())
    for n in ("2000", "-1", "x"):
        path = detached(tmp_path, before + voxels().tobytes(), line_skip=n)
        with pytest.raises(ConversionError, match=r"a\.nhdr.*skip"):
            opened(path)


def test_data_may_be_in_a_folder_below(tmp_path: Path) -> None:
    path = detached(tmp_path, b"", data_file="below/data of a.raw")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/data of a.raw").write_bytes(voxels().tobytes())
    np.testing.assert_array_equal(whole(opened(path)), voxels())


@pytest.mark.parametrize(
    "name",
    [
        "../a.raw",
        "below/../../a.raw",
        "..\\a.raw",
        "/etc/passwd",
        "C:\\a.raw",
        "C:a.raw",
        "\\\\server\\a.raw",
        "a\0.raw",
    ],
)
def test_data_elsewhere_are_not_read(name: str, tmp_path: Path) -> None:
    path = detached(tmp_path, voxels().tobytes(), data_file=name)
    with pytest.raises(ConversionError, match=r"a\.nhdr: data file: .*leads out of the folder"):
        opened(path)


@pytest.mark.parametrize("name", ["LIST", "LIST 2", "SKIPLIST", "a%03d.raw 1 3 1", "a%d.raw 1 3 1"])
def test_many_files_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"several files.*To fix"):
        opened(detached(tmp_path, voxels().tobytes(), data_file=name))


def test_data_that_are_no_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError):
        opened(detached(tmp_path, b"", data_file="pipe"))
    with pytest.raises(FileNotFoundError):
        opened(detached(tmp_path, b"", data_file="nothing"))


# ---- geometry


@pytest.mark.parametrize("space", ["left-posterior-superior", "RAS", "left anterior superior"])
def test_positions_are_those_of_itk(space: str, tmp_path: Path) -> None:
    # SimpleITK knows no shears.
    turned = np.linalg.qr(OBLIQUE)[0] * [[0.5], [0.7], [2]]
    rows = " ".join(f"({','.join(map(repr, row))})" for row in turned.tolist())
    fields = {"space": space, "space directions": rows, "space origin": "(-10.5,20.25,7)"}
    save(tmp_path / "a.nrrd", voxels(), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.mla.coord_system == ("LPS+" if space.startswith("left-") else "RAS+")
    same_place(tmp_path / "a.nrrd", array)
    # A crop needs a new header, in the world of the old one.
    crop = array[1:4, ::2]
    path = written(crop, tmp_path)
    same_place(path, crop)
    assert nrrd.read_header(str(path))["space"].startswith(space[0].replace("R", "r"))
    np.testing.assert_array_equal(nrrd.read(str(path), index_order="C")[0], crop)


def test_sheared_axes_come_back(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    np.testing.assert_array_equal(array.mla.affine[:3, :3], OBLIQUE.T[:, ::-1])
    path = written(array.transpose("x", "z", "y"), tmp_path)
    again = labelled(path, tmp_path)
    assert again.dims == ("x", "z", "y")
    np.testing.assert_array_equal(again.transpose(*array.dims).mla.affine, array.mla.affine)
    np.testing.assert_array_equal(again.transpose(*array.dims), array)


def test_dimensions_are_named_after_the_world_axes(tmp_path: Path) -> None:
    fields = {
        "space": "left-posterior-superior",
        "space directions": "(0,0,2) (-1,0,0) (0,3,0)",
        "space origin": "(5,6,7)",
        "space units": '"mm" "cm" "um"',
    }
    save(tmp_path / "a.nrrd", voxels(), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.dims == ("y", "x", "z")
    np.testing.assert_array_equal(array.x, 5 - np.arange(4.0))
    np.testing.assert_array_equal(array.z, 7 + 2 * np.arange(3.0))
    assert {d: array[d].attrs["units"] for d in "xyz"} == {"x": "mm", "y": "cm", "z": "um"}
    assert "axes_assumed" not in array.attrs
    header = nrrd.read_header(str(written(array[1:], tmp_path)))
    assert header["space units"] == ["mm", "cm", "um"]


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed"])
def test_other_worlds_keep_their_name(space: str, tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), {**OBLIQUE_FIELDS, "space": space})
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.mla.coord_system == space
    assert nrrd.read_header(str(written(array[1:], tmp_path)))["space"] == space


def test_a_world_without_a_name_assumes_names(tmp_path: Path) -> None:
    fields = {"space dimension": "3", **OBLIQUE_FIELDS}
    del fields["space"]
    save(tmp_path / "a.nrrd", voxels(), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert (array.dims, array.mla.coord_system) == (("z", "y", "x"), None)
    assert "axes_assumed" in array.attrs
    np.testing.assert_array_equal(array.mla.affine[:3, :3], OBLIQUE.T[:, ::-1])
    header = nrrd.read_header(str(written(array[1:], tmp_path)))
    assert header["space dimension"] == 3
    assert "space" not in header


def test_names_of_dimensions_survive_without_a_world(tmp_path: Path) -> None:
    made = xr.DataArray(voxels(), dims=("x", "z", "y"))
    assert labelled(written(made, tmp_path), tmp_path).dims == made.dims
    made = made.assign_coords(x=2.0 * np.arange(5), z=np.arange(4.0), y=np.arange(3.0))
    again = labelled(written(made, tmp_path), tmp_path)
    assert again.dims == made.dims
    np.testing.assert_array_equal(again.mla.affine, made.mla.affine)


@pytest.mark.parametrize("centerings", [None, "cell cell cell", "node node node"])
def test_spacings_alone_are_a_geometry(centerings: str | None, tmp_path: Path) -> None:
    fields = {"spacings": "0.5 0.75 2", "axis mins": "-3 4 5", "kinds": "domain domain domain"}
    if centerings is not None:
        fields["centerings"] = centerings
    save(tmp_path / "a.nrrd", voxels(), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.mla.spacing == {"z": 2.0, "y": 0.75, "x": 0.5}
    same_place(tmp_path / "a.nrrd", array)
    crop = array[1:]
    again = labelled(written(crop, tmp_path), tmp_path)
    np.testing.assert_array_equal(again.mla.affine, crop.mla.affine)


@pytest.mark.parametrize(
    "fields",
    [{}, {"spacings": "nan 1 2", "kinds": "space domain space"}, {"kinds": "??? none domain"}],
)
def test_nothing_is_made_up_where_nothing_is_stated(fields: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), fields)
    image = opened(tmp_path / "a.nrrd")
    assert image.metadata.spatial.affine is None
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    header = nrrd.read_header(str(written(array[1:], tmp_path)))
    assert not {name for name in header if name.startswith("space")}


def test_a_world_without_directions_is_none(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), {"space": "LAS", "spacings": "1 2 3"})
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.mla.coord_system is None
    assert array.mla.spacing == {"z": 3.0, "y": 2.0, "x": 1.0}
    assert "axes_assumed" in array.attrs


def test_time_may_be_an_axis_of_the_world(tmp_path: Path) -> None:
    fields = {
        "space": "LPST",
        "space directions": "(1,0,0,0) (0,2,0,0) (0,0,3,0) (0,0,0,0.5)",
        "space origin": "(1,2,3,10)",
        "space units": '"mm" "mm" "mm" "s"',
    }
    save(tmp_path / "a.nrrd", voxels((2, 5, 4, 3)), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert (array.dims, array.mla.coord_system) == (("time", "z", "y", "x"), "LPS+")
    np.testing.assert_array_equal(array.time, [10.0, 10.5])
    assert array.time.attrs["units"] == "s"
    assert array.mla.origin == (1.0, 2.0, 3.0)
    fields["space directions"] = "(1,0,0,0) (0,2,0,0) (0,0,3,1) (0,0,0,0.5)"
    save(tmp_path / "a.nrrd", voxels((2, 5, 4, 3)), fields)
    with pytest.raises(ConversionError, match="space and time at once"):
        opened(tmp_path / "a.nrrd")


def test_a_plane_in_space_knows_where_it_lies(tmp_path: Path) -> None:
    directions = "(0,0,2) (3,0,0)"
    fields = {"space": "RAS", "space directions": directions, "space origin": "(5,6,7)"}
    text = save(tmp_path / "a.nrrd", voxels((4, 3)), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.dims == ("x", "z")
    np.testing.assert_array_equal(array.x, 5 + 3 * np.arange(4.0))
    assert text_of(written(array, tmp_path)) == text
    path = written(array[1:], tmp_path)
    found = sitk.ReadImage(str(path))
    assert found.GetSize() == (3, 3, 1)
    np.testing.assert_allclose(found.GetOrigin(), (-8, -6, 7))


def test_a_slice_of_a_volume_becomes_a_volume_of_one_slice(tmp_path: Path) -> None:
    turned = np.linalg.qr(OBLIQUE)[0] * [[0.5], [0.7], [2]]
    rows = " ".join(f"({','.join(map(repr, row))})" for row in turned.tolist())
    save(tmp_path / "a.nrrd", voxels(), {**OBLIQUE_FIELDS, "space directions": rows})
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    dim = array.dims[0]
    found = sitk.ReadImage(str(written(array[3], tmp_path)))
    expected = sitk.ReadImage(str(tmp_path / "a.nrrd"))[:, :, 3:4]
    np.testing.assert_allclose(lps_affine(found), lps_affine(expected), atol=1e-9)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found)[0], array.isel({dim: 3}))


def test_flat_images_of_itk(tmp_path: Path) -> None:
    made = sitk.GetImageFromArray(voxels((4, 3)))
    made.SetSpacing((0.5, 2))
    made.SetOrigin((3, 4))
    sitk.WriteImage(made, str(tmp_path / "a.nrrd"))
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.dims == ("y", "x")
    same_place(tmp_path / "a.nrrd", array)
    same_place(written(array[1:], tmp_path), array[1:])


def test_a_geometry_that_is_none_is_refused(tmp_path: Path) -> None:
    array = converted_nan(tmp_path)
    with pytest.raises(GeometryError, match="To fix"):
        write_image(array, str(tmp_path / "a.nrrd"), mode="w-")
    assert not (tmp_path / "a.nrrd").exists()


def converted_nan(tmp_path: Path) -> MlaArray:
    from mlarray_xr.format.metadata import Metadata, Spatial

    spatial = Spatial(spacing=(1, float("nan"), 1))
    to_mla(voxels(), tmp_path / "nan.mla", metadata=Metadata(spatial=spatial, has_array=True))
    return MlaArray(tmp_path / "nan.mla")


# ---- other axes


@pytest.mark.parametrize(
    ("kind", "dim"),
    [
        ("list", "channel"),
        ("RGB-color", "channel"),
        ("RGB", "channel"),
        ("time", "time"),
        ("vector", "component"),
        ("3-vector", "component"),
        ("3D-symmetric-matrix", "component"),
    ],
)
@pytest.mark.parametrize("at", [0, 3])
def test_axes_are_named_after_their_kind(kind: str, dim: str, at: int, tmp_path: Path) -> None:
    kinds = ["domain"] * 3
    kinds.insert(at, kind)
    directions = ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
    directions.insert(at, "none")
    fields = {
        "space": "left-posterior-superior",
        "space directions": " ".join(directions),
        "kinds": " ".join(kinds),
    }
    save(tmp_path / "a.nrrd", voxels((2, 3, 4, 5)), fields)
    expected = ["x", "y", "z"]
    expected.insert(at, dim)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.dims == tuple(expected[::-1])
    # ITK reads one such axis, whatever header we make for it.
    path = written(array.isel(x=slice(1, None)), tmp_path)
    assert sitk.ReadImage(str(path)).GetNumberOfComponentsPerPixel() == array.sizes[dim]
    assert labelled(path, tmp_path).dims == array.dims


def test_axes_are_named_after_their_label(tmp_path: Path) -> None:
    fields = {"labels": '"energy" "" "x" "b value!"', "kinds": "list space domain list"}
    save(tmp_path / "a.nrrd", voxels((2, 3, 4, 5)), fields)
    assert labelled(tmp_path / "a.nrrd", tmp_path).dims == ("channel", "y", "x", "energy")
    save(tmp_path / "a.nrrd", voxels(), {"labels": '"z" "x" "Y"'})
    assert labelled(tmp_path / "a.nrrd", tmp_path).dims == ("y", "x", "z")


def test_four_axes_of_which_nothing_is_known(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels((2, 3, 4, 5)))
    assert labelled(tmp_path / "a.nrrd", tmp_path).dims == ("dim_0", "z", "y", "x")


@pytest.mark.parametrize(("centering", "first"), [("???", 10.0), ("node", 10.0), ("cell", 11.25)])
def test_positions_along_other_axes(centering: str, first: float, tmp_path: Path) -> None:
    fields = {
        "kinds": "domain domain domain list",
        "labels": '"" "" "" "time"',
        "units": '"mm" "mm" "mm" "s"',
        "spacings": "1 1 1 2.5",
        "axis mins": "nan nan nan 10",
        "centerings": f"??? ??? ??? {centering}",
    }
    save(tmp_path / "a.nrrd", voxels((3, 5, 4, 3)), fields)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    np.testing.assert_array_equal(array.time, first + 2.5 * np.arange(3))
    assert array.time.attrs["units"] == "s"
    assert array.x.attrs["units"] == "mm"
    again = labelled(written(array[1:], tmp_path), tmp_path)
    xr.testing.assert_identical(again.time, array.time[1:])
    with pytest.raises(ConversionError, match="not evenly spaced"):
        written(array.assign_coords(time=[0.0, 1.0, 5.0]), tmp_path)


# ---- header


KEYS = (
    "# made by a test\n"
    "DWMRI_b-value:=1000\n"
    "measurement frame: (1,0,0) (0,1,0) (0,0,1)\n"
    "Name: of := a key\n"
    'content: a "head" of Doe, J\u00e4n\n'
    "sample units: HU\n"
    "Segment0_ID:=Segment_1\n"
)


def test_what_others_stated_survives(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS, encoding="bzip2", more=KEYS)
    image = opened(tmp_path / "a.nrrd")
    source: Any = image.metadata.source["nrrd"]
    assert source["keys"]["DWMRI_b-value"] == "1000"
    assert source["content"] == 'a "head" of Doe, J\u00e4n'
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert array.name == "labels"
    assert "Doe" not in repr(array) + array._repr_html_()
    path = written(array[1:].astype("float32").assign_attrs(array.attrs), tmp_path)
    assert all(line in text_of(path).decode() for line in KEYS.splitlines())
    before, after = nrrd.read_header(str(tmp_path / "a.nrrd")), nrrd.read_header(str(path))
    different = {k for k in before if str(before[k]) != str(after[k])}
    assert different == {"type", "sizes", "space origin"}


def test_the_frame_of_measurement_belongs_to_its_world(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS, more=KEYS)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    path = written(array[1:].assign_attrs(coord_system="scanner-xyz"), tmp_path)
    assert b"measurement frame" not in text_of(path)


def test_headers_survive_xarray(tmp_path: Path) -> None:
    text = save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS, encoding="gzip", more=KEYS)
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    assert text_of(written(array, tmp_path)) == text


def test_lines_may_end_as_on_windows(tmp_path: Path) -> None:
    text = header_text(voxels(), OBLIQUE_FIELDS, more=KEYS).replace(b"\n", b"\r\n")
    (tmp_path / "a.nrrd").write_bytes(text + voxels().tobytes())
    array = labelled(tmp_path / "a.nrrd", tmp_path)
    np.testing.assert_array_equal(array, voxels())
    assert text_of(written(array, tmp_path)) == text
    np.testing.assert_array_equal(nrrd.read(str(written(array[1:], tmp_path)))[0].T, voxels()[1:])


@pytest.mark.parametrize(
    "entry",
    [None, 3, {}, {"header": "!!"}, {"header": "AAAA"}, {"header": ["a"]}, {"header": "A" * 10**7}],
)
def test_a_stored_header_that_is_none_does_no_harm(entry: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS)
    image = opened(tmp_path / "a.nrrd")
    metadata = replace(image.metadata, extra={"nrrd": entry})
    to_mla(image.values, tmp_path / "a.mla", metadata=metadata)
    write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "b.nrrd"), mode="w-")
    np.testing.assert_array_equal(whole(opened(tmp_path / "b.nrrd")), voxels())
    assert opened(tmp_path / "b.nrrd").metadata.spatial == image.metadata.spatial


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": "3 4 6"},
        {"type": "float"},
        {"endian": "big"},
        {"space": "scanner-xyz"},
        {"space origin": "(0,0,0)"},
        {"space origin": "none such"},
        {"encoding": "hex"},
    ],
)
def test_a_stored_header_of_another_array_is_not_believed(
    change: dict[str, str], tmp_path: Path
) -> None:
    save(tmp_path / "a.nrrd", voxels(), OBLIQUE_FIELDS)
    image = opened(tmp_path / "a.nrrd")
    lie = NrrdHeader(text=header_text(voxels(), {**OBLIQUE_FIELDS, **change}))
    metadata = replace(image.metadata, extra={"nrrd": lie.to_json()})
    to_mla(image.values, tmp_path / "a.mla", metadata=metadata)
    write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "b.nrrd"), mode="w-")
    found = opened(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(whole(found), voxels())
    assert found.metadata.spatial == image.metadata.spatial


def test_a_stored_header_cannot_move_the_data(tmp_path: Path) -> None:
    text = header_text(voxels(), {})
    with pytest.raises(ConversionError, match="cuts the header in two"):
        NrrdHeader(text=text + b"more\n\n")


# ---- writing


def test_other_arrays_are_packed_as_slicer_does(tmp_path: Path) -> None:
    path = written(xr.DataArray(voxels(), dims=("z", "y", "x")), tmp_path)
    found, header = nrrd.read(str(path), index_order="C")
    np.testing.assert_array_equal(found, voxels())
    assert (header["encoding"], header["endian"]) == ("gzip", "little")
    assert header["kinds"] == ["domain"] * 3
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), voxels())
    with mock.patch("time.time", return_value=1e9):
        again = written(xr.DataArray(voxels(), dims=("z", "y", "x")), tmp_path)
    assert again.read_bytes() == path.read_bytes()


def test_booleans_become_bytes(tmp_path: Path) -> None:
    values = voxels() > 0
    path = written(xr.DataArray(values, dims=("z", "y", "x")), tmp_path)
    found, _ = nrrd.read(str(path), index_order="C")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("values", [np.zeros((2, 3), "f2"), np.zeros(3, "c8"), np.zeros((3, 0))])
def test_what_nrrd_lacks_is_refused(values: NDArray[Any], tmp_path: Path) -> None:
    to_mla(values, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match=r"NRRD cannot hold.*astype"):
        write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "a.nrrd"), mode="w-")
    assert not (tmp_path / "a.nrrd").exists()


def test_existing_targets_are_kept_unless_told(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla")
    array, target = MlaArray(tmp_path / "a.mla"), tmp_path / "a.nrrd"
    target.write_text("precious")
    with pytest.raises(FileExistsError):
        write_image(array, str(target), mode="w-")
    before = sorted(tmp_path.iterdir())
    with (
        mock.patch.object(MlaArray, "read", side_effect=OSError("disk on fire")),
        pytest.raises(OSError, match="disk on fire"),
    ):
        write_image(array, str(target), mode="w")
    assert sorted(tmp_path.iterdir()) == before
    assert target.read_text() == "precious"
    write_image(array, str(target), mode="w")
    np.testing.assert_array_equal(whole(opened(target)), voxels())


def test_one_file_is_written(tmp_path: Path) -> None:
    to_mla(voxels(), tmp_path / "a.mla")
    with pytest.raises(ConversionError, match=r"\.nrrd"):
        write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "a.nhdr"), mode="w-")


# ---- hostile files


def test_a_nrrd_file_holds_one_array(tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels())
    with pytest.raises(ConversionError, match=r"dataset='b'.*leave it out"):
        open_image(str(tmp_path / "a.nrrd"), scratch_dir=None, dataset="b")


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
@pytest.mark.parametrize("kept", [0, 3, 9, 60, -1, -9])
def test_truncated_files_are_refused(encoding: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    save(path, voxels(), encoding=encoding)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConversionError, match=r"a\.nrrd"):
        whole(opened(path))


@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_a_small_file_cannot_ask_for_much(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    for sizes in ("30000 30000 30000", "9" * 30 + " 1 1", "9" * 5000 + " 1 1"):
        save(path, voxels(), {"sizes": sizes}, encoding=encoding)
        with pytest.raises(ConversionError, match=r"a\.nrrd.*(truncated|sizes)"):
            opened(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dimension": "0", "sizes": ""},
        {"dimension": "17", "sizes": "1 " * 17},
        {"dimension": "2"},
        {"sizes": "3 4 0"},
        {"sizes": "3 -4 -5"},
        {"sizes": "3 4 five"},
        {"type": "block"},
        {"type": "no such"},
        {"endian": "middle"},
        {"encoding": "ascii"},
        {"encoding": "hex"},
        {"encoding": "no such"},
        {"byte skip": "1e3"},
        {"byte skip": "9" * 20},
        {"byte skip": "-999999"},
        {"kinds": "domain domain"},
        {"labels": '"a" "b'},
        {"spacings": "1 2"},
        {"spacings": "1 2 three"},
        {"spacings": "1 2 inf"},
        {"spacings": "1 2 3", "axis mins": "inf 0 0"},
        {"space": "LPS", "space directions": "(1,0,0) (0,1,0)"},
        {"space": "LPS", "space directions": "(1,0) (0,1) (1,1)"},
        {"space": "LPS", "space directions": "(1,0,0) (0,nan,0) (0,0,1)"},
        {"space": "LPS", "space directions": "(1,0,0) (0,inf,0) (0,0,1)"},
        {"space": "LPS", "space directions": "(1,0,0) (0,1,0) (0,0,1"},
        {"space": "LPS", "space directions": "(1,0,0) (0,1,0) (0,0,x)"},
        {"space": "LPS", "space directions": "(1,0,0) (0,1,0) (0,0,1)", "space origin": "(1,2)"},
        {"space": "LPST", "space directions": "(1,0,0) (0,1,0) (0,0,1)"},
        {"space": "LPST", "space directions": "() (0,1,0) (0,0,1)"},
    ],
)
def test_broken_headers_are_refused(change: dict[str, str], tmp_path: Path) -> None:
    save(tmp_path / "a.nrrd", voxels(), change)
    with pytest.raises(ConversionError, match=r"a\.nrrd"):
        opened(tmp_path / "a.nrrd")


@pytest.mark.parametrize("name", ["type", "dimension", "sizes", "encoding", "endian"])
def test_fields_that_are_needed_are_missed_once(name: str, tmp_path: Path) -> None:
    lines = header_text(voxels(), {}).split(b"\n")
    without = [line for line in lines if not line.startswith(name.encode())]
    (tmp_path / "a.nrrd").write_bytes(b"\n".join(without) + voxels().tobytes())
    with pytest.raises(ConversionError, match=name):
        opened(tmp_path / "a.nrrd")
    twice = [*lines[:1], *(line for line in lines[1:-2] for _ in range(2)), b"", b""]
    (tmp_path / "a.nrrd").write_bytes(b"\n".join(twice) + voxels().tobytes())
    with pytest.raises(ConversionError, match="twice"):
        opened(tmp_path / "a.nrrd")


def test_headers_without_an_end_are_not_read_for_ever(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + b"# comment\n" * 500_000)
    with pytest.raises(ConversionError, match="no empty line"):
        opened(tmp_path / "a.nrrd")


def test_positions_of_long_axes_are_left_out(tmp_path: Path) -> None:
    values = np.zeros(3 << 20, "u1")
    save(tmp_path / "a.nrrd", values, {"kinds": "list", "spacings": "2"}, encoding="gzip")
    assert "mlarray_xr" not in opened(tmp_path / "a.nrrd").metadata.extra


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    encoding=st.sampled_from(sorted(ENCODINGS)),
)
def test_damaged_files_open_or_raise_our_errors(
    changes: list[tuple[int, bytes]], encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.nrrd"
    fields = {**OBLIQUE_FIELDS, "kinds": "domain domain domain", "labels": '"a" "b" "c"'}
    save(path, voxels(), fields, encoding=encoding)
    data = bytearray(path.read_bytes())
    for at, change in changes:
        data[at : at + len(change)] = change
    path.write_bytes(data)
    try:
        image = opened(path)
        to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata, mode="w")
        write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "b.nrrd"), mode="w")
    except (MlaError, FileNotFoundError):
        return
    np.testing.assert_array_equal(whole(opened(tmp_path / "b.nrrd")), whole(image))
