"""NIfTI files: nibabel is the oracle of what is read, the bytes of the file of what comes back."""

from __future__ import annotations

import gzip
import importlib.resources
import os
import shutil
import struct
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import mlarray
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.nifti1 import Nifti1Extension

from mlarray_xr import MlaArray, convert, open_mla, to_mla
from mlarray_xr.errors import (
    ConversionError,
    GeometryError,
    MissingDependencyError,
    MlaError,
    MlaWarning,
    SourceChanged,
)
from mlarray_xr.foreign import packed
from mlarray_xr.foreign.nifti import (
    open_image,
    open_nifti,
    write_image,
)
from mlarray_xr.foreign.nifti_header import NiftiHeader
from mlarray_xr.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

ALIGNED = np.array([[2, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], float)
FLIPPED = np.array([[-1, 0, 0, 90], [0, 0, 1.5, -126], [0, 2, 0, -72], [0, 0, 0, 1]], float)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.3, 0.4) @ np.diag([1.5, 2, 2.5]), [5, -7, 11]
)
SHEARED = np.array([[1, 0.3, 0.1, 3], [0, 1.2, 0.2, 4], [0.1, 0, 2, 5], [0, 0, 0, 1]], float)
SHAPE = (6, 7, 5)
NIBABEL_FILES = sorted(Path(nib.__file__).parent.joinpath("tests/data").glob("*.nii*"))
MNI = importlib.resources.files("nilearn.datasets").joinpath(
    "data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
)


def voxels(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind in "fc":
        return rng.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, np.dtype(dtype).newbyteorder("=")).astype(dtype)


def image(
    shape: tuple[int, ...] = SHAPE,
    dtype: str = "<i2",
    affine: np.ndarray[Any, Any] | None = ALIGNED,
    *,
    kind: Any = nib.Nifti1Image,
    codes: tuple[int, int] = (1, 1),
) -> Any:
    header = kind.header_class(endianness=dtype[0] if dtype[0] in "<>" else "<")
    header.set_data_dtype(dtype)
    made = kind(voxels(shape, dtype), affine, header=header)
    if affine is not None:
        made.header.set_sform(affine, codes[0])
        made.header.set_qform(affine, codes[1])
    made.header.set_slope_inter(1, 0)
    return made


def scaled() -> Any:
    made = nib.Nifti1Image(np.arange(210.0).reshape(SHAPE), ALIGNED)
    made.set_data_dtype(np.int16)
    made.header.set_slope_inter(0.5, -7)
    return made


def with_time() -> Any:
    made = image((*SHAPE, 9), "<i2")
    made.header.set_xyzt_units("mm", "msec")
    made.header["pixdim"][4] = 2500
    made.header["toffset"] = 100
    return made


def with_extension() -> Any:
    made = image()
    made.header.extensions.append(Nifti1Extension("comment", b"made by a test"))
    made.header["descrip"] = b"a head"
    return made


def different_forms() -> Any:
    made = image(affine=OBLIQUE, codes=(4, 0))
    made.header.set_qform(ALIGNED, 1)
    return made


def formless() -> Any:
    made = image()
    made.header.set_sform(None, 0)
    made.header.set_qform(None, 0)
    return made


CASES: dict[str, Callable[[], Any]] = {
    "int16": image,
    "scaled": scaled,
    "float32": lambda: image(dtype="<f4"),
    "float64": lambda: image(dtype="<f8"),
    "uint8": lambda: image(dtype="|u1"),
    "uint16": lambda: image(dtype="<u2"),
    "int64": lambda: image(dtype="<i8"),
    "complex128": lambda: image(dtype="<c16"),
    "complex64": lambda: image(dtype="<c8"),
    "big_endian": lambda: image(dtype=">i2"),
    "big_endian_float": lambda: image((*SHAPE, 3), dtype=">f4"),
    "time": with_time,
    "vectors": lambda: image((*SHAPE, 1, 3), dtype="<f4"),
    "seven": lambda: image((3, 2, 4, 2, 3, 1, 2)),
    "plane": lambda: image((6, 7), affine=ALIGNED),
    "oblique_plane": lambda: image((6, 7), affine=OBLIQUE),
    "line": lambda: image((6,)),
    "nifti2": lambda: image(kind=nib.Nifti2Image),
    "nifti2_big_endian": lambda: image(dtype=">u2", kind=nib.Nifti2Image, affine=OBLIQUE),
    "flipped": lambda: image(affine=FLIPPED),
    "oblique": lambda: image(affine=OBLIQUE),
    "sheared": lambda: image(affine=SHEARED, codes=(2, 0)),
    "sform_only": lambda: image(affine=OBLIQUE, codes=(2, 0)),
    "qform_only": lambda: image(affine=OBLIQUE, codes=(0, 1)),
    "different_forms": different_forms,
    "formless": formless,
    "extension": with_extension,
}


@pytest.fixture(params=sorted(CASES))
def case(request: pytest.FixtureRequest) -> Any:
    return CASES[request.param]()


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def stored(path: Path) -> tuple[np.ndarray[Any, Any], Any]:
    """Return what nibabel finds in a file: the raw numbers and the image."""
    found: Any = nib.load(path)
    if isinstance(found, nib.Cifti2Image):
        found = nib.Nifti2Image.from_filename(path)
    return np.asarray(found.dataobj.get_unscaled()), found


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_come_back_byte_for_byte(case: Any, suffix: str, tmp_path: Path) -> None:
    source, target, back = (tmp_path / name for name in (f"a{suffix}", "b.mla", f"c{suffix}"))
    nib.save(case, source)
    report = convert(source, target)
    assert report is not None
    expected, _ = stored(source)
    assert report.shape == expected.shape
    np.testing.assert_array_equal(MlaArray(target)[...], expected)
    convert(target, back)
    assert unpacked(back) == unpacked(source)


def test_opened_files_say_what_nibabel_says(case: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.nii"
    nib.save(case, source)
    expected, found = stored(source)
    array = open_nifti(source)
    assert array.dtype == expected.dtype
    np.testing.assert_array_equal(array.values, expected)
    spatial = [d for d in array.dims if d in ("x", "y", "z")]
    assert array.dims[: len(spatial)] == tuple(spatial)
    assert len(spatial) == min(3, array.ndim)
    np.testing.assert_array_equal(array.mla.affine, found.affine)
    assert array.mla.coord_system == "RAS+"


def test_the_file_opens_as_the_nifti_does(case: Any, tmp_path: Path) -> None:
    nib.save(case, tmp_path / "a.nii")
    convert(tmp_path / "a.nii", tmp_path / "b.mla")
    found, expected = open_mla(tmp_path / "b.mla"), open_nifti(tmp_path / "a.nii")
    # They differ in the layout, of which only the file tells.
    found.attrs.pop("mla_metadata"), expected.attrs.pop("mla_metadata")
    xr.testing.assert_identical(found.load(), expected)


def test_headers_survive_xarray(case: Any, tmp_path: Path) -> None:
    nib.save(case, tmp_path / "a.nii")
    to_mla(open_nifti(tmp_path / "a.nii"), tmp_path / "b.mla")
    to_mla(open_mla(tmp_path / "b.mla"), tmp_path / "c.mla", patch=4)
    convert(tmp_path / "c.mla", tmp_path / "d.nii")
    assert (tmp_path / "d.nii").read_bytes() == (tmp_path / "a.nii").read_bytes()


def test_the_reference_package_reads_it(case: Any, tmp_path: Path) -> None:
    nib.save(case, tmp_path / "a.nii")
    convert(tmp_path / "a.nii", tmp_path / "b.mla")
    reference = mlarray.MLArray(tmp_path / "b.mla")
    np.testing.assert_array_equal(np.asarray(reference[...]), stored(tmp_path / "a.nii")[0])


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_images_are_read_and_written_box_by_box(case: Any, suffix: str, tmp_path: Path) -> None:
    source, scratch = tmp_path / f"a{suffix}", tmp_path / "scratch"
    scratch.mkdir()
    nib.save(case, source)
    expected, _ = stored(source)
    with mock.patch.object(packed, "_IN_MEMORY_BYTES", 0):
        opened = open_image(str(source), scratch_dir=str(scratch), dataset=None)
    assert bool(os.listdir(scratch)) is (suffix == ".nii.gz")
    box = tuple(slice(n // 2, n) for n in expected.shape)
    np.testing.assert_array_equal(opened.values[box], expected[box])
    assert opened.values.dtype == expected.dtype
    to_mla(opened.values, tmp_path / "b.mla", metadata=opened.metadata)
    write_image(MlaArray(tmp_path / "b.mla"), str(tmp_path / f"c{suffix}"), mode="w-")
    assert unpacked(tmp_path / f"c{suffix}") == unpacked(source)


def test_a_nifti_file_holds_one_array(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    with pytest.raises(ConversionError, match=r"dataset='b'.*leave it out"):
        open_image(str(tmp_path / "a.nii"), scratch_dir=None, dataset="b")


def test_voxels_of_a_replaced_file_are_not_read(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    opened = open_image(str(tmp_path / "a.nii"), scratch_dir=None, dataset=None)
    nib.save(image(dtype="<u2"), tmp_path / "a.nii")
    with pytest.raises(SourceChanged):
        opened.values[tuple(slice(0, n) for n in SHAPE)]


def test_long_axes_of_nothing_get_no_positions(tmp_path: Path) -> None:
    nib.save(image((2, 3, 4, 5), kind=nib.Nifti2Image), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<5q", data, 16, 4, 0, 1, 1, 2**50)
    struct.pack_into("<d", data, 104 + 4 * 8, 2.5)
    (tmp_path / "a.nii").write_bytes(data)
    opened = open_image(str(tmp_path / "a.nii"), scratch_dir=None, dataset=None)
    assert opened.values.shape == (0, 1, 1, 2**50)
    assert not Record.of(opened.metadata, shape=opened.values.shape).coords


@pytest.mark.parametrize("path", NIBABEL_FILES, ids=lambda path: path.name)
def test_the_files_of_nibabel_come_back(path: Path, tmp_path: Path) -> None:
    back = tmp_path / path.name
    convert(path, tmp_path / "a.mla")
    convert(tmp_path / "a.mla", back)
    assert unpacked(back) == unpacked(path)
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], stored(path)[0])


def test_there_are_files_of_nibabel() -> None:
    assert len(NIBABEL_FILES) >= 8


def test_the_mni_template_from_scanner_to_dask_and_back(tmp_path: Path) -> None:
    with importlib.resources.as_file(MNI) as path:
        shutil.copy(path, tmp_path / "mni.nii.gz")
    expected, found = stored(tmp_path / "mni.nii.gz")
    convert(tmp_path / "mni.nii.gz", tmp_path / "mni.mla", patch=64)
    array = open_mla(tmp_path / "mni.mla", chunks={})
    assert array.shape == (197, 233, 189)
    assert array.chunks is not None
    assert float(array.mean()) == pytest.approx(expected.mean(), rel=1e-12)
    np.testing.assert_array_equal(array.mla.affine, found.affine)
    assert int(array.sel(x=0, y=-18, z=10, method="nearest")) == expected[98, 116, 82]
    convert(tmp_path / "mni.mla", tmp_path / "back.nii.gz")
    assert unpacked(tmp_path / "back.nii.gz") == unpacked(tmp_path / "mni.nii.gz")


@pytest.mark.parametrize("affine", [ALIGNED, FLIPPED, OBLIQUE, SHEARED])
def test_slices_lie_where_nibabel_puts_them(affine: np.ndarray[Any, Any], tmp_path: Path) -> None:
    nib.save(image(affine=affine, codes=(2, 0)), tmp_path / "a.nii")
    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    array, found = open_mla(tmp_path / "a.mla"), stored(tmp_path / "a.nii")[1]
    for key in [np.s_[2:5, 1:, :], np.s_[::2, 1:6:3, ::4], np.s_[3:4, :, 2:]]:
        expected = found.slicer[key]
        np.testing.assert_allclose(array[key].mla.affine, expected.affine, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(array[key].values, expected.dataobj)


@pytest.mark.parametrize("affine", [ALIGNED, FLIPPED, OBLIQUE])
def test_voxels_have_the_world_positions_of_nibabel(
    affine: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    nib.save(image(affine=affine), tmp_path / "a.nii")
    array, found = open_nifti(tmp_path / "a.nii"), stored(tmp_path / "a.nii")[1]
    points = np.array([[0, 0, 0], [5, 6, 4], [1, 2, 3]])
    world = apply_affine(found.affine, points)
    np.testing.assert_allclose(array.mla.index_to_world(points), world)
    for point, position in zip(points, world, strict=True):
        assert int(array.mla.sel_world(position[None])[0]) == array.values[tuple(point)]


def test_dimensions_are_named_after_the_world_axes(tmp_path: Path) -> None:
    nib.save(image(affine=FLIPPED), tmp_path / "a.nii")
    array = open_nifti(tmp_path / "a.nii")
    assert array.dims == ("x", "z", "y")
    np.testing.assert_allclose(array.x, 90 - np.arange(6.0))
    np.testing.assert_allclose(array.z, -72 + 2 * np.arange(7.0))


def test_time_is_a_coordinate_and_scaling_an_attribute(tmp_path: Path) -> None:
    nib.save(with_time(), tmp_path / "time.nii")
    array = open_nifti(tmp_path / "time.nii")
    assert array.dims == ("x", "y", "z", "time")
    np.testing.assert_array_equal(array.time, 100 + 2500 * np.arange(9.0))
    assert array.time.attrs["units"] == "ms"
    assert array.x.attrs["units"] == "mm"
    nib.save(scaled(), tmp_path / "scaled.nii")
    array = open_nifti(tmp_path / "scaled.nii")
    assert array.dtype == np.int16
    assert (array.scl_slope, array.scl_inter) == (0.5, -7.0)
    values = stored(tmp_path / "scaled.nii")[1].get_fdata()
    np.testing.assert_allclose(array * array.scl_slope + array.scl_inter, values)


def test_a_spectrum_is_not_time(tmp_path: Path) -> None:
    made = image((*SHAPE, 4))
    made.header.set_xyzt_units("mm", "ppm")
    nib.save(made, tmp_path / "a.nii")
    assert open_nifti(tmp_path / "a.nii").dims == ("x", "y", "z", "spectral")


def test_plain_files_are_mapped(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    base: Any = open_nifti(tmp_path / "a.nii").values
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_free_text_is_kept_and_not_printed(tmp_path: Path) -> None:
    nib.save(with_extension(), tmp_path / "a.nii")
    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    array = open_mla(tmp_path / "a.mla")
    assert array.mla.metadata.source["nifti"]["descrip"] == "a head"
    assert "a head" not in repr(array) + array._repr_html_()


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_pairs_come_back(kind: Any, tmp_path: Path) -> None:
    made = image(kind=kind)
    made.header.extensions.append(Nifti1Extension("comment", b"of a pair"))
    nib.save(made, tmp_path / "a.img")
    convert(tmp_path / "a.hdr", tmp_path / "a.mla")
    convert(tmp_path / "a.img", tmp_path / "b.mla")
    assert (tmp_path / "a.mla").read_bytes() == (tmp_path / "b.mla").read_bytes()
    convert(tmp_path / "a.mla", tmp_path / "c.img")
    for suffix in (".hdr", ".img"):
        assert (tmp_path / f"c{suffix}").read_bytes() == (tmp_path / f"a{suffix}").read_bytes()


def test_voxels_of_a_pair_may_start_late(tmp_path: Path) -> None:
    made = image(kind=nib.Nifti1Pair)
    nib.save(made, tmp_path / "a.img")
    header, data = bytearray((tmp_path / "a.hdr").read_bytes()), (tmp_path / "a.img").read_bytes()
    struct.pack_into("<f", header, 108, 64)
    (tmp_path / "a.hdr").write_bytes(header)
    (tmp_path / "a.img").write_bytes(bytes(64) + data)
    convert(tmp_path / "a.hdr", tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "b.hdr")
    assert (tmp_path / "b.hdr").read_bytes() == header
    assert (tmp_path / "b.img").read_bytes() == bytes(64) + data


@pytest.mark.parametrize("suffixes", [(".hdr", ".nii"), (".nii", ".hdr"), (".nii", ".nii.gz")])
@pytest.mark.parametrize("version", [1, 2])
def test_single_files_and_pairs_become_each_other(
    suffixes: tuple[str, str], version: int, tmp_path: Path
) -> None:
    pair, single = (nib.Nifti1Pair, nib.Nifti1Image), (nib.Nifti2Pair, nib.Nifti2Image)
    made = image((6, 7, 5, 3), kind=(pair, single)[version - 1][suffixes[0] == ".nii"])
    made.header.extensions.append(Nifti1Extension("comment", b"here and there"))
    source, back = tmp_path / f"a{suffixes[0]}", tmp_path / f"b{suffixes[1]}"
    nib.save(made, source)
    convert(source, tmp_path / "a.mla")
    convert(tmp_path / "a.mla", back)
    (expected, before), (found, after) = stored(source), stored(back)
    np.testing.assert_array_equal(found, expected)
    assert after.header.extensions == before.header.extensions
    different = {
        name
        for name, value in before.header.items()
        if value.tobytes() != after.header[name].tobytes()
    }
    assert different <= {"magic", "vox_offset"}


def test_long_extensions_are_left_out_with_a_warning(tmp_path: Path) -> None:
    made = image()
    made.header.extensions.append(Nifti1Extension("comment", bytes(2 << 20)))
    nib.save(made, tmp_path / "a.nii")
    with pytest.warns(MlaWarning, match="extensions"):
        convert(tmp_path / "a.nii", tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    found, after = stored(tmp_path / "b.nii")
    np.testing.assert_array_equal(found, stored(tmp_path / "a.nii")[0])
    assert not after.header.extensions
    assert (tmp_path / "b.nii").stat().st_size < 10_000


def labelled(
    dims: tuple[str, ...] = ("x", "y", "z"), *, dtype: str = "int16", **coords: Any
) -> xr.DataArray:
    sizes = {"x": 6, "y": 7, "z": 5, "time": 3, "channel": 2}
    made = xr.DataArray(voxels(tuple(sizes[d] for d in dims), dtype), dims=dims)
    positions = {"x": 2.0 * np.arange(6) - 4, "y": 3.0 * np.arange(7), "z": 9 - 1.5 * np.arange(5)}
    made = made.assign_coords({d: p for d, p in positions.items() if d in dims} | coords)
    made.attrs["coord_system"] = "RAS"
    return made


def exported(array: xr.DataArray, tmp_path: Path, name: str = "out.nii") -> Any:
    to_mla(array, tmp_path / "out.mla", mode="w")
    convert(tmp_path / "out.mla", tmp_path / name)
    return stored(tmp_path / name)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i4", "float32", ">f8", "complex64"])
def test_headers_are_made_from_the_geometry(dtype: str, tmp_path: Path) -> None:
    array = labelled(dtype=dtype)
    found, made = exported(array, tmp_path)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(made.affine, array.mla.affine)
    np.testing.assert_allclose(made.get_qform(), array.mla.affine, atol=1e-5)
    assert (made.dataobj.slope, made.dataobj.inter) == (1, 0)


def test_lps_becomes_ras(tmp_path: Path) -> None:
    array = labelled().assign_attrs(coord_system="LPS+")
    _, made = exported(array, tmp_path)
    np.testing.assert_allclose(made.affine, np.diag([-1, -1, 1, 1]) @ array.mla.affine)


@pytest.mark.parametrize("dims", [("time", "x", "y", "z"), ("x", "channel", "y", "time", "z")])
def test_spatial_axes_come_first_then_time(dims: tuple[str, ...], tmp_path: Path) -> None:
    array = labelled(dims)
    order = ["x", "y", "z", *sorted({"time", "channel"} & {*dims}, key="time channel".find)]
    found, made = exported(array, tmp_path)
    np.testing.assert_array_equal(found, array.transpose(*order))
    np.testing.assert_allclose(made.affine, array.mla.affine)


def test_spatial_axes_keep_their_order(tmp_path: Path) -> None:
    nib.save(image(affine=OBLIQUE), tmp_path / "a.nii")
    array = open_nifti(tmp_path / "a.nii").transpose("z", "x", "y")
    found, made = exported(array, tmp_path)
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(made.affine, array.mla.affine, atol=1e-5)


def test_time_and_units_are_written(tmp_path: Path) -> None:
    array = labelled(("x", "y", "z", "time"), time=("time", [3.0, 5.5, 8.0], {"units": "s"}))
    for dim in "xyz":
        array[dim].attrs["units"] = "um"
    _, made = exported(array, tmp_path)
    assert made.header.get_xyzt_units() == ("micron", "sec")
    assert (made.header["pixdim"][4], made.header["toffset"]) == (2.5, 3)


def test_uneven_time_is_refused(tmp_path: Path) -> None:
    array = labelled(("x", "y", "z", "time"), time=[0.0, 1.0, 10.0])
    with pytest.raises(ConversionError, match="not evenly spaced"):
        exported(array, tmp_path)


def test_booleans_become_bytes(tmp_path: Path) -> None:
    array = labelled().astype(bool).assign_attrs(coord_system="RAS")
    found, _ = exported(array, tmp_path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, array)


def test_types_that_nifti_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"float16.*astype"):
        exported(labelled(dtype="float16"), tmp_path)


def test_an_unknown_world_is_refused(tmp_path: Path) -> None:
    array = labelled()
    del array.attrs["coord_system"]
    with pytest.raises(GeometryError, match="coord_system"):
        exported(array, tmp_path)
    flat = xr.DataArray(np.zeros((3, 4, 5)), dims=("x", "y", "z"), attrs={"coord_system": "RAS"})
    with pytest.raises(GeometryError, match="unknown"):
        exported(flat, tmp_path)


def test_a_plane_of_a_volume_becomes_a_volume_of_one_slice(tmp_path: Path) -> None:
    nib.save(image(affine=OBLIQUE), tmp_path / "a.nii")
    whole = open_nifti(tmp_path / "a.nii")
    found, made = exported(whole.isel(z=3), tmp_path)
    assert found.shape == (6, 7, 1)
    expected = stored(tmp_path / "a.nii")[1].slicer[:, :, 3:4]
    np.testing.assert_allclose(made.affine, expected.affine, atol=1e-5)
    np.testing.assert_array_equal(found, expected.dataobj)


def test_a_crop_keeps_what_is_still_true_of_the_header(tmp_path: Path) -> None:
    source = scaled()
    source.header["descrip"] = b"a head"
    source.header.set_xyzt_units("mm")
    nib.save(source, tmp_path / "a.nii")
    _, made = exported(open_nifti(tmp_path / "a.nii")[1:4, ::2], tmp_path)
    whole = stored(tmp_path / "a.nii")[1]
    expected = whole.slicer[1:4, ::2]
    np.testing.assert_allclose(made.affine, expected.affine)
    np.testing.assert_allclose(made.get_fdata(), expected.get_fdata())
    assert made.header["descrip"] == b"a head"
    assert made.header["sform_code"] == whole.header["sform_code"]
    assert made.header.get_xyzt_units()[0] == "mm"


def test_scaling_that_was_applied_is_not_applied_again(tmp_path: Path) -> None:
    nib.save(scaled(), tmp_path / "a.nii")
    array = open_nifti(tmp_path / "a.nii")
    values = (array * 2).astype("int16")
    values.attrs = {k: v for k, v in array.attrs.items() if not k.startswith("scl_")}
    found, made = exported(values, tmp_path)
    assert (made.dataobj.slope, made.dataobj.inter) == (1, 0)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    "entry", [None, 3, {}, {"header": "!!", "extensions": ""}, {"header": "AAAA", "extensions": 1}]
)
def test_a_stored_header_that_is_none_does_no_harm(entry: Any, tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    array = open_nifti(tmp_path / "a.nii")
    metadata = array.mla.metadata
    to_mla(array, tmp_path / "a.mla", metadata=replace(metadata, extra={"nifti": entry}))
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    found, made = stored(tmp_path / "b.nii")
    np.testing.assert_array_equal(found, array)
    np.testing.assert_allclose(made.affine, array.mla.affine)


def test_a_stored_header_of_another_array_is_not_believed(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    nib.save(image(affine=OBLIQUE), tmp_path / "b.nii")
    one, other = open_nifti(tmp_path / "a.nii"), open_nifti(tmp_path / "b.nii")
    extra = other.mla.metadata.extra
    to_mla(one, tmp_path / "a.mla", metadata=replace(one.mla.metadata, extra=extra))
    convert(tmp_path / "a.mla", tmp_path / "c.nii")
    np.testing.assert_allclose(stored(tmp_path / "c.nii")[1].affine, ALIGNED)


def test_long_axes_need_nifti_2(tmp_path: Path) -> None:
    made = xr.DataArray(np.zeros((40_000, 1, 1), "uint8"), dims=("x", "y", "z"))
    made = made.assign_coords(x=np.arange(40_000.0), y=[0.0], z=[0.0])
    found, loaded = exported(made.assign_attrs(coord_system="RAS"), tmp_path)
    assert isinstance(loaded, nib.Nifti2Image)
    assert found.shape == made.shape


def test_packed_files_are_reproducible(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "b.nii.gz")
    with mock.patch("time.time", return_value=1e9):
        convert(tmp_path / "a.mla", tmp_path / "c.nii.gz")
    assert (tmp_path / "b.nii.gz").read_bytes() == (tmp_path / "c.nii.gz").read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.hdr"])
def test_existing_targets_are_kept_unless_told(name: str, tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "in.nii")
    convert(tmp_path / "in.nii", tmp_path / "in.mla")
    (tmp_path / name).write_text("precious")
    with pytest.raises(FileExistsError, match="mode='w'"):
        convert(tmp_path / "in.mla", tmp_path / name)
    assert (tmp_path / name).read_text() == "precious"
    convert(tmp_path / "in.mla", tmp_path / name, mode="w")
    np.testing.assert_array_equal(stored(tmp_path / name)[0], MlaArray(tmp_path / "in.mla")[...])
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "in.nii")
    convert(tmp_path / "in.nii", tmp_path / "in.mla")
    before = sorted(tmp_path.iterdir())
    for name in ("a.nii", "a.nii.gz", "a.img"):
        with (
            mock.patch.object(MlaArray, "read", side_effect=OSError("disk on fire")),
            pytest.raises(OSError, match="disk on fire"),
        ):
            convert(tmp_path / "in.mla", tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_modes_are_refused(tmp_path: Path) -> None:
    wrong: Any = "a"
    with pytest.raises(ValueError, match="mode='a'"):
        convert(tmp_path / "a.mla", tmp_path / "a.nii", mode=wrong)


def test_analyze_is_refused(tmp_path: Path) -> None:
    nib.save(nib.AnalyzeImage(voxels(SHAPE, "<i2"), ALIGNED), tmp_path / "a.img")
    with pytest.raises(ConversionError, match=r"a\.hdr.*Analyze"):
        open_nifti(tmp_path / "a.img")


@pytest.mark.parametrize("code", [0, 1, 128, 1536, 2048, 2304, 999])
def test_colours_and_extended_precision_are_refused(code: int, tmp_path: Path) -> None:
    nib.save(image(dtype="<c8"), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<2h", data, 70, code, 128)
    (tmp_path / "b.nii").write_bytes(data + bytes(3360))
    with pytest.raises(ConversionError, match=r"b\.nii.*type|broken"):
        open_nifti(tmp_path / "b.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 3, 100, 348, 360, 500])
def test_truncated_files_are_refused(suffix: str, kept: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    nib.save(image(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConversionError, match=r"a\.nii"):
        open_nifti(path)


def test_a_packed_file_that_ends_early_is_refused(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write((tmp_path / "a.nii").read_bytes()[:-2])
    with pytest.raises(ConversionError, match="ends after 418 of 420 bytes"):
        open_nifti(tmp_path / "a.nii.gz")


def test_a_small_file_cannot_ask_for_much_memory(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<8h", data, 40, 3, 30_000, 30_000, 30_000, 1, 1, 1, 1)
    for name, content in (("b.nii", bytes(data)), ("b.nii.gz", gzip.compress(bytes(data)))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConversionError, match="truncated, or the header is wrong"):
            open_nifti(tmp_path / name)


def test_shapes_beyond_any_machine_are_refused_even_without_voxels(tmp_path: Path) -> None:
    nib.save(image(kind=nib.Nifti2Image), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    struct.pack_into("<4q", data, 16, 3, 0, 2**40, 2**40)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ConversionError, match="are no array"):
        open_nifti(tmp_path / "a.nii")


def test_arrays_without_voxels_come_back(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())[:352]
    struct.pack_into("<4h", data, 40, 3, 4, 0, 5)
    (tmp_path / "a.nii").write_bytes(data)
    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    assert MlaArray(tmp_path / "a.mla").shape == (4, 0, 5)
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    assert (tmp_path / "b.nii").read_bytes() == data


def test_names_must_agree_with_the_header(tmp_path: Path) -> None:
    nib.save(image(kind=nib.Nifti1Pair), tmp_path / "a.img")
    os.rename(tmp_path / "a.hdr", tmp_path / "b.nii")
    with pytest.raises(ConversionError, match="rename"):
        open_nifti(tmp_path / "b.nii")
    with pytest.raises(FileNotFoundError):
        open_nifti(tmp_path / "a.img")
    with pytest.raises(ConversionError, match=r"ends in \.nii"):
        open_nifti(tmp_path / "a.mgz")


def test_without_nibabel_the_extra_is_named(tmp_path: Path) -> None:
    nib.save(image(), tmp_path / "a.nii")
    with (
        mock.patch.dict("sys.modules", {"nibabel": None}),
        pytest.raises(MissingDependencyError, match=r"mlarray-xr\[nifti\]"),
    ):
        open_nifti(tmp_path / "a.nii")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 351), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    form=st.sampled_from([(1, 1), (0, 1), (0, 0)]),
)
def test_damaged_headers_open_or_raise_our_errors(
    changes: list[tuple[int, bytes]], form: tuple[int, int], tmp_path: Path
) -> None:
    nib.save(image(codes=form), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for at, change in changes:
        data[at : at + len(change)] = change
    (tmp_path / "b.nii").write_bytes(data)
    try:
        array = open_nifti(tmp_path / "b.nii")
        assert array.nbytes <= len(data)
        to_mla(array, tmp_path / "b.mla", mode="w")
        convert(tmp_path / "b.mla", tmp_path / "c.nii", mode="w")
    except MlaError:
        return
    with (tmp_path / "c.nii").open("rb") as file:
        found = NiftiHeader.read(file, single=True)
    assert found.shape[: array.ndim] == array.shape
