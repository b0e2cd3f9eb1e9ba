"""DICOM series: SimpleITK is the oracle of order and geometry, pydicom and NumPy of values."""

from __future__ import annotations

import itertools
import os
import pickle
import random
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from mlarray_xr import open_mla, to_mla
from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError, SourceChanged
from mlarray_xr.foreign.dicom import open_image
from mlarray_xr.foreign.dicom_pixels import PixelData, PixelFormat
from tests import dicom_kit as kit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from mlarray_xr.foreign.image import ForeignImage

sitk: Any = SimpleITK
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def voxels(shape: tuple[int, ...] = (5, 6, 7), dtype: str = "i2") -> NDArray[Any]:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(5)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def smooth(dtype: str = "i2") -> NDArray[Any]:
    """Voxels that do not grow when they are compressed."""
    info, ramp = np.iinfo(dtype), np.linspace(0, 1, 5 * 40 * 50)
    return (info.min + (int(info.max) - int(info.min)) * ramp).astype(dtype).reshape(5, 40, 50)


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def everything(values: Any) -> NDArray[Any]:
    read: NDArray[Any] = values[tuple(slice(0, n) for n in values.shape)]
    return read


def first_voxel(path: Path) -> NDArray[Any]:
    values = opened(path).values
    return values[(slice(0, 1),) * len(values.shape)]


def refusal(path: Path, dataset: str | None = None) -> str:
    with pytest.raises(ConversionError) as caught:
        opened(path, dataset)
    return str(caught.value)


def affine_of(opened_image: ForeignImage) -> NDArray[np.float64]:
    return np.array(opened_image.metadata.spatial.affine, np.float64)


def record_of(opened_image: ForeignImage) -> dict[str, Any]:
    record: Any = opened_image.metadata.extra.get("mlarray_xr", {})
    return dict(record)


def check_against_itk(folder: Path) -> None:
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    found = sitk.ReadImage(names)
    wanted = np.eye(4)
    scaled = np.array(found.GetDirection()).reshape(3, 3) * found.GetSpacing()
    wanted[:3, :3], wanted[:3, 3] = scaled[:, ::-1], found.GetOrigin()
    ours = opened(folder)
    np.testing.assert_array_equal(everything(ours.values), sitk.GetArrayFromImage(found))
    np.testing.assert_allclose(affine_of(ours), wanted, atol=1e-5)
    assert ours.metadata.spatial.coord_system == "LPS+"


# ---- geometry


@pytest.mark.parametrize(
    ("orientation", "labels"),
    [
        (kit.AXIAL, "zyx"),
        (kit.CORONAL, "yzx"),
        (kit.SAGITTAL, "xzy"),
        ((-1, 0, 0, 0, -1, 0), "zyx"),
        ((1, 0, 0, 0, 0.8, 0.6), "zyx"),
    ],
)
def test_slices_are_ordered_and_placed_as_by_itk(
    tmp_path: Path, orientation: tuple[float, ...], labels: str
) -> None:
    kit.series(tmp_path, voxels(), orientation=orientation)
    check_against_itk(tmp_path)
    assert opened(tmp_path).metadata.spatial.axis_labels == tuple(f"spatial_{x}" for x in labels)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    gap=st.floats(0.1, 9),
    spacing=st.tuples(st.floats(0.1, 4), st.floats(0.1, 4)),
    is_reversed=st.booleans(),
    count=st.integers(2, 5),
)
def test_any_orientation_is_that_of_itk(
    tmp_path_factory: pytest.TempPathFactory,
    quaternion: tuple[float, ...],
    gap: float,
    spacing: tuple[float, float],
    is_reversed: bool,
    count: int,
) -> None:
    a, b, c, d = np.array(quaternion) / np.linalg.norm(quaternion)
    row = (a * a + b * b - c * c - d * d, 2 * (b * c + a * d), 2 * (b * d - a * c))
    column = (2 * (b * c - a * d), a * a - b * b + c * c - d * d, 2 * (c * d + a * b))
    step = gap * np.cross(row, column) * (-1 if is_reversed else 1)
    folder = tmp_path_factory.mktemp("series")
    kit.series(
        folder,
        voxels((count, 4, 3)),
        orientation=(*row, *column),
        step=step,
        spacing=(round(spacing[0], 6), round(spacing[1], 6)),
    )
    check_against_itk(folder)


def test_positions_of_a_tilted_gantry_are_kept(tmp_path: Path) -> None:
    step = np.array([0.0, 0.7, 2.5])
    kit.series(tmp_path, voxels(), step=step)
    affine = affine_of(opened(tmp_path))
    np.testing.assert_allclose(affine[:3, 0], step, atol=1e-12)
    np.testing.assert_allclose(affine[:3, 3], (-10, -20, 30))


def test_rows_and_columns_have_each_their_spacing(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels(), spacing=(0.5, 0.75))
    affine = affine_of(opened(tmp_path))
    np.testing.assert_array_equal(affine[:3, 1], (0, 0.5, 0))
    np.testing.assert_array_equal(affine[:3, 2], (0.75, 0, 0))


@pytest.mark.parametrize("is_stated", [True, False])
def test_a_lone_slice_is_as_thick_as_stated(tmp_path: Path, is_stated: bool) -> None:
    def change(stored: Dataset, k: int) -> None:
        if not is_stated:
            del stored.SliceThickness

    kit.series(tmp_path, voxels((1, 6, 7)), change=change)
    found = opened(tmp_path)
    assert found.values.shape == (1, 6, 7)
    assert affine_of(found)[2, 0] == (2.0 if is_stated else 1.0)


def test_images_without_a_place_are_a_plane_or_numbered_frames(tmp_path: Path) -> None:
    pixels = voxels((3, 6, 7))
    for k in range(3):
        stored = kit.image(pixels[k], series="1.2.3", number=9 - k)
        stored.PixelSpacing = [0.5, 0.25]
        stored.save_as(tmp_path / f"{k}.dcm", enforce_file_format=True)
    found = opened(tmp_path)
    assert found.metadata.spatial.axis_labels == ("frame", "spatial_y", "spatial_x")
    assert found.metadata.spatial.spacing == (0.5, 0.25)
    np.testing.assert_array_equal(everything(found.values), pixels[::-1])
    plane = opened(tmp_path / "1.dcm")
    assert plane.metadata.spatial.axis_labels == ("spatial_y", "spatial_x")
    assert plane.metadata.spatial.coord_system is None
    np.testing.assert_array_equal(everything(plane.values), pixels[1])


# ---- what makes no volume


def test_a_missing_slice_is_named_by_its_neighbours(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    (tmp_path / "017.dcm").unlink()
    message = refusal(tmp_path)
    assert "010.dcm and 024.dcm are 5.0000 mm apart, and others 2.5000 mm" in message


@pytest.mark.parametrize(
    ("at", "shift", "is_fine"), [(2, 0.005, True), (2, 0.2, False), (4, 0.5, False)]
)
def test_slices_must_be_evenly_spaced(tmp_path: Path, at: int, shift: float, is_fine: bool) -> None:
    def change(stored: Dataset, k: int) -> None:
        if k == at:
            x, y, z = stored.ImagePositionPatient
            stored.ImagePositionPatient = [x, y, z + shift]

    kit.series(tmp_path, voxels(), change=change)
    if is_fine:
        assert opened(tmp_path).values.shape == (5, 6, 7)
    else:
        assert "unevenly spaced" in refusal(tmp_path)


def test_small_gaps_that_add_up_are_noticed(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        z = 30 + 2.5 * k + 0.04 * max(k - 15, 0)
        stored.ImagePositionPatient = [-10, -20, z]

    kit.series(tmp_path, voxels((31, 2, 2)), change=change)
    assert "no affine describes the stack" in refusal(tmp_path)


def test_a_slice_beside_the_others_is_named(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        if k == 3:
            stored.ImagePositionPatient = [-6, -20, 30 + 2.5 * k]

    kit.series(tmp_path, voxels(), change=change)
    assert "slice 024.dcm lies" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 0, 0.8, 0.6], "024.dcm has the orientation"),
        ("PixelSpacing", [0.5, 0.8], "024.dcm has the pixel spacing (0.5, 0.8)"),
        ("PixelSpacing", None, "024.dcm state no spacing"),
        ("ImagePositionPatient", None, "024.dcm state no position"),
        ("PixelRepresentation", 0, "024.dcm has PixelFormat"),
        ("PixelSpacing", [0.5], "PixelSpacing holds (0.5,), where 2 finite numbers"),
        ("SamplesPerPixel", 2, "024.dcm: these numbers describe no pixels"),
        ("HighBit", 14, "024.dcm: the 16 bits of a sample end at bit 14"),
        ("Rows", None, "024.dcm: the header states no Rows"),
    ],
)
def test_an_odd_slice_is_named(tmp_path: Path, keyword: str, value: Any, words: str) -> None:
    def change(stored: Dataset, k: int) -> None:
        if k == 3 and value is None:
            delattr(stored, keyword)
        elif k == 3:
            setattr(stored, keyword, value)

    kit.series(tmp_path, voxels(), change=change)
    assert words in refusal(tmp_path)


def test_slices_of_another_size_are_named(tmp_path: Path) -> None:
    uid = kit.series(tmp_path, voxels())
    kit.series(tmp_path, voxels((1, 8, 7)), uid=uid, prefix="odd")
    message = refusal(tmp_path)
    assert "1 of 6 files differ" in message
    assert "odd003.dcm has PixelFormat(rows=8" in message


def test_an_orientation_of_no_unit_vectors_is_refused(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels(), orientation=(1, 0, 0, 1, 0, 0), step=np.array([0, 0, 2.5]))
    assert "no pair of perpendicular unit vectors" in refusal(tmp_path)


def test_copies_are_named(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "010.dcm").read_bytes())
    assert "010.dcm and copy.dcm are the same image" in refusal(tmp_path)


def test_one_slice_twice_is_named(tmp_path: Path) -> None:
    uid = kit.series(tmp_path, voxels())
    kit.series(tmp_path, voxels((1, 6, 7)), uid=uid, prefix="twice")
    message = refusal(tmp_path)
    assert "2 images are at one place, 003.dcm, twice003.dcm, and 1 at each of 4" in message


def test_a_series_twice_is_no_series_in_time(tmp_path: Path) -> None:
    uid = kit.series(tmp_path, voxels())
    kit.series(tmp_path, voxels(), uid=uid, prefix="twice")
    assert "images are there twice" in refusal(tmp_path)


def test_nothing_orders_images_without_place_and_number(tmp_path: Path) -> None:
    for name in "ab":
        stored = kit.image(voxels()[0], series="1.2.3", number=4)
        stored.save_as(tmp_path / f"{name}.dcm", enforce_file_format=True)
    assert "a.dcm and b.dcm state no position, and the same number" in refusal(tmp_path)


# ---- several volumes


@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "AcquisitionTime", "number"])
def test_volumes_of_one_place_follow_in_time(tmp_path: Path, keyword: str) -> None:
    whole = voxels((3, 5, 6, 7))
    uid = str(pydicom.uid.generate_uid())
    for t in (2, 0, 1):

        def change(stored: Dataset, k: int, t: int = t) -> None:
            if keyword == "TemporalPositionIdentifier":
                stored.TemporalPositionIdentifier = t + 1
                stored.AcquisitionTime = f"1000{9 - t:02}"
            elif keyword == "AcquisitionTime":
                stored.AcquisitionTime = f"10{k:02}{t:02}.250"
            else:
                stored.InstanceNumber = 100 * k + t

        kit.series(tmp_path, whole[t], uid=uid, prefix=f"{9 - t}", change=change)
    found = opened(tmp_path)
    assert found.metadata.spatial.axis_labels == (
        "temporal",
        "spatial_z",
        "spatial_y",
        "spatial_x",
    )
    np.testing.assert_array_equal(everything(found.values), whole)
    np.testing.assert_array_equal(found.values[1:3, 2:4, 1:5, 0:7], whole[1:3, 2:4, 1:5, 0:7])


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoTime", (2.0, 9.0)),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"])),
    ],
)
def test_echoes_and_phases_are_no_series_in_time(
    tmp_path: Path, keyword: str, values: tuple[Any, Any]
) -> None:
    uid = str(pydicom.uid.generate_uid())
    for t in range(2):

        def change(stored: Dataset, k: int, t: int = t) -> None:
            stored.InstanceNumber = 10 * t + k
            setattr(stored, keyword, values[t])

        kit.series(tmp_path, voxels(), uid=uid, prefix=str(t), change=change)
    assert "of several kinds" in refusal(tmp_path)


def test_frames_of_an_enhanced_file_are_put_in_order(tmp_path: Path) -> None:
    whole = voxels((2, 4, 6, 7))
    order = list(itertools.product(range(2), range(4)))
    random.Random(3).shuffle(order)
    kit.enhanced(tmp_path / "mf.dcm", whole, order)
    found = opened(tmp_path / "mf.dcm")
    np.testing.assert_array_equal(everything(found.values), whole)
    assert affine_of(found).tolist() == [
        [0, 0, 0.75, -10],
        [0, 0.5, 0, -20],
        [2.5, 0, 0, 30],
        [0, 0, 0, 1],
    ]
    assert record_of(found)["attrs"] == {"rescale_slope": 2.0, "rescale_intercept": 0.0}
    folder = opened(tmp_path)
    assert folder.values.shape == found.values.shape


def test_functional_groups_must_be_as_many_as_frames(tmp_path: Path) -> None:
    whole = voxels((1, 4, 6, 7))
    kit.enhanced(tmp_path / "mf.dcm", whole, [(0, k) for k in range(4)])
    stored = pydicom.dcmread(tmp_path / "mf.dcm")
    stored.PerFrameFunctionalGroupsSequence = stored.PerFrameFunctionalGroupsSequence[:2]
    stored.save_as(tmp_path / "mf.dcm")
    assert "2 functional groups for 4 frames" in refusal(tmp_path / "mf.dcm")


def test_planes_of_a_dose_lie_where_their_offsets_say() -> None:
    found = opened(SHIPPED / "rtdose.dcm")
    stored = pydicom.dcmread(SHIPPED / "rtdose.dcm")
    offsets = np.array(stored.GridFrameOffsetVector, float)
    wanted = stored.ImagePositionPatient[2] + offsets - offsets[0]
    affine = affine_of(found)
    np.testing.assert_allclose(affine[2, 3] + affine[2, 0] * np.arange(15), wanted)
    assert found.metadata.source["dicom"]["DoseGridScaling"] > 0  # type: ignore[call-overload,index,operator]


# ---- values


@pytest.mark.parametrize("name", sorted(p.name for p in SHIPPED.glob("*.dcm")))
def test_pydicoms_own_files_read_as_by_pydicom(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wanted = pydicom.dcmread(SHIPPED / name).pixel_array
        except Exception:  # no pixels, no decoder, or damage
            with pytest.raises((ConversionError, MissingDependencyError)):
                everything(opened(SHIPPED / name).values)
            return
        if name.startswith(("liver", "image_dfl")):
            assert "not read" in refusal(SHIPPED / name)
            return
        found = everything(opened(SHIPPED / name).values)
    np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    assert found.dtype == wanted.dtype.newbyteorder("=")


@pytest.mark.parametrize(
    ("syntax", "dtype"),
    [
        *itertools.product(
            (ImplicitVRLittleEndian, ExplicitVRBigEndian), ("i1", "u1", "i2", "u2", "i4", "u4")
        ),
        *itertools.product((RLELossless, JPEGLSLossless), ("u1", "i2", "u2")),
    ],
)
def test_integers_survive_every_encoding(tmp_path: Path, dtype: str, syntax: Any) -> None:
    whole = smooth(dtype) if syntax == JPEGLSLossless else voxels(dtype=dtype)

    def change(stored: Dataset, k: int) -> None:
        if syntax.is_encapsulated:
            stored.compress(syntax)
            return
        stored.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            stored.PixelData = np.ascontiguousarray(whole[k].astype(f">{dtype}")).tobytes()
            stored["PixelData"].VR = "OW" if np.dtype(dtype).itemsize > 1 else "OB"

    kit.series(tmp_path, whole, change=change)
    found = opened(tmp_path).values
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(everything(found), whole)


def test_bits_that_do_not_count_are_dropped(tmp_path: Path) -> None:
    whole = np.random.default_rng(1).integers(-2048, 2048, (3, 6, 7)).astype("i2")

    def change(stored: Dataset, k: int) -> None:
        overlay = np.random.default_rng(k).integers(0, 16, (6, 7)).astype("u2") << 12
        stored.PixelData = ((whole[k].view("u2") & 0x0FFF) | overlay).tobytes()
        stored.BitsStored, stored.HighBit = 12, 11

    kit.series(tmp_path, whole, change=change)
    np.testing.assert_array_equal(everything(opened(tmp_path).values), whole)


@pytest.mark.parametrize(("keyword", "dtype"), [("Float", "f4"), ("DoubleFloat", "f8")])
def test_floats_are_kept(tmp_path: Path, keyword: str, dtype: str) -> None:
    whole = np.random.default_rng(1).normal(size=(3, 6, 7)).astype(dtype)

    def change(stored: Dataset, k: int) -> None:
        del stored.PixelData, stored.PixelRepresentation, stored.BitsStored, stored.HighBit
        stored.BitsAllocated = 8 * whole.itemsize
        setattr(stored, f"{keyword}PixelData", whole[k].tobytes())

    kit.series(tmp_path, whole, change=change)
    found = opened(tmp_path).values
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(everything(found), whole)


@pytest.mark.parametrize("planar", [0, 1])
def test_colours_are_a_last_axis(tmp_path: Path, planar: int) -> None:
    whole = voxels((3, 6, 7, 3), "u1")

    def change(stored: Dataset, k: int) -> None:
        stored.PlanarConfiguration = planar
        stored.PixelData = (whole[k].transpose(2, 0, 1) if planar else whole[k]).tobytes()

    kit.series(tmp_path, whole, change=change)
    found = opened(tmp_path)
    assert found.metadata.spatial.axis_labels == (
        "spatial_z",
        "spatial_y",
        "spatial_x",
        "channel",
    )
    np.testing.assert_array_equal(everything(found.values), whole)
    assert record_of(found)["coords"]["channel"]["values"] == ["R", "G", "B"]


def test_rescaling_is_told_and_not_done(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.RescaleSlope, stored.RescaleIntercept = 2, -1024

    kit.series(tmp_path, voxels(), change=change)
    found = opened(tmp_path)
    np.testing.assert_array_equal(everything(found.values), voxels())
    assert record_of(found)["attrs"] == {"rescale_slope": 2.0, "rescale_intercept": -1024.0}


def test_rescaling_per_slice_is_a_coordinate(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.RescaleSlope, stored.RescaleIntercept = 0.5 * k + 1, 0

    kit.series(tmp_path, voxels(), orientation=kit.SAGITTAL, change=change)
    coords = record_of(opened(tmp_path))["coords"]
    along = (coords["rescale_slope"]["dims"], coords["rescale_slope"]["values"])
    assert along == (["x"], [1.0, 1.5, 2.0, 2.5, 3.0])
    assert coords["rescale_intercept"]["values"] == [0.0] * 5


@pytest.mark.parametrize("is_per_slice", [True, False])
def test_rescaling_of_several_volumes(tmp_path: Path, is_per_slice: bool) -> None:
    uid = str(pydicom.uid.generate_uid())
    for t in range(2):

        def change(stored: Dataset, k: int, t: int = t) -> None:
            stored.TemporalPositionIdentifier = t
            stored.RescaleSlope, stored.RescaleIntercept = 1 + t + k * is_per_slice, 0

        kit.series(tmp_path, voxels(), uid=uid, prefix=str(t), change=change)
    if is_per_slice:
        assert "differ along time and slices" in refusal(tmp_path)
    else:
        slope = record_of(opened(tmp_path))["coords"]["rescale_slope"]
        assert (slope["dims"], slope["values"]) == (["time"], [1.0, 2.0])


# ---- which series, and what is kept


def test_one_of_several_series_is_chosen_by_uid_or_number(tmp_path: Path) -> None:
    uids = []
    for number, dtype in ((3, "i2"), (8, "u2")):

        def change(stored: Dataset, k: int, number: int = number) -> None:
            stored.SeriesNumber, stored.SeriesDescription = number, f"Thorax {number}"

        whole = voxels((number, 6, 7), dtype)
        uids.append(kit.series(tmp_path, whole, prefix=dtype, change=change))
    message = refusal(tmp_path)
    assert f"dataset={uids[1]!r}: series 8, CT, 8 images of 6 x 7, 'Thorax 8'" in message
    for secret in ("Doe", "4711", "1970", "Hospital"):
        assert secret not in message
    assert opened(tmp_path, uids[0]).values.dtype == np.int16
    assert opened(tmp_path, "8").values.shape == (8, 6, 7)
    assert "'9' is none of them" in refusal(tmp_path, "9")


def test_nothing_that_identifies_a_patient_is_kept(tmp_path: Path) -> None:
    uid = kit.series(tmp_path, voxels())
    found = opened(tmp_path)
    assert found.metadata.source == {
        "dicom": {
            "Modality": "CT",
            "Manufacturer": "ACME",
            "SliceThickness": 2.0,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsStored": 16,
        }
    }
    told = repr(found) + repr(found.metadata.to_dict())
    for secret in ("Doe", "4711", "1970", "Hospital"):
        assert secret not in told
        assert secret.encode() not in pickle.dumps(found.values)
    assert uid not in repr(found.metadata.to_dict())


def test_what_slices_say_differently_is_not_kept(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.KVP, stored.WindowCenter, stored.WindowWidth = 120, 40 + k, [400, 2000]

    kit.series(tmp_path, voxels(), change=change)
    facts: Any = opened(tmp_path).metadata.source["dicom"]
    assert facts["KVP"] == 120.0
    assert facts["WindowWidth"] == [400.0, 2000.0]
    assert "WindowCenter" not in facts


def test_other_files_are_passed_over_and_folders_not_searched(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "short").write_bytes(b"")
    (tmp_path / ".hidden.dcm").write_bytes(b"no DICOM")
    for name in ("rtplan.dcm", "test-SR.dcm"):
        (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
    kit.series(tmp_path / "deeper", voxels())
    assert opened(tmp_path).values.shape == (5, 6, 7)


def test_folders_without_images_say_how_many_files_they_have(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "plan").write_bytes((SHIPPED / "rtplan.dcm").read_bytes())
    assert "2 files are no DICOM files or have no pixels" in refusal(tmp_path)
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "nowhere")


# ---- damage and lies


def test_a_file_that_is_dicom_by_name_only_is_named(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    (tmp_path / "024.dcm").write_bytes(bytes(3000))
    assert "024.dcm: by its name this is a DICOM file" in refusal(tmp_path)


@pytest.mark.parametrize("cut", [300, 900, -40])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    kit.series(tmp_path, voxels())
    whole = (tmp_path / "024.dcm").read_bytes()
    (tmp_path / "024.dcm").write_bytes(whole[:cut])
    assert "024.dcm" in refusal(tmp_path)


def test_truncated_fragments_are_noticed_on_opening(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.compress(RLELossless)

    kit.series(tmp_path, voxels(), change=change)
    whole = (tmp_path / "024.dcm").read_bytes()
    (tmp_path / "024.dcm").write_bytes(whole[:-30])
    assert "024.dcm: the compressed pixel data break off" in refusal(tmp_path)
    # Some writers leave out the delimiter at the end; nothing is missing then.
    (tmp_path / "024.dcm").write_bytes(whole[:-8])
    np.testing.assert_array_equal(everything(opened(tmp_path).values), voxels())


def test_damaged_fragments_are_noticed_on_reading(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.compress(JPEGLSLossless)

    kit.series(tmp_path, smooth(), change=change)
    whole = bytearray((tmp_path / "024.dcm").read_bytes())
    at = whole.rfind(b"\xff\xd8\xff")
    whole[at + 2 : at + 30] = bytes(28)
    (tmp_path / "024.dcm").write_bytes(whole)
    values = opened(tmp_path).values
    np.testing.assert_array_equal(values[0:3, 0:40, 0:50], smooth()[:3])
    with pytest.raises(ConversionError, match=r"024\.dcm: frame 0 cannot be decoded"):
        everything(values)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("Rows", 65535), ("Columns", 65535), ("NumberOfFrames", 10**9), ("NumberOfFrames", -1)],
)
@pytest.mark.parametrize("is_packed", [True, False])
def test_sizes_that_the_file_cannot_hold_are_refused(
    tmp_path: Path, keyword: str, value: int, is_packed: bool
) -> None:
    def change(stored: Dataset, k: int) -> None:
        if is_packed:
            stored.compress(RLELossless)
        setattr(stored, keyword, value)
        stored.BitsAllocated = stored.BitsStored = 32
        stored.HighBit = 31
        stored.Rows = max(stored.Rows, 60000)

    kit.series(tmp_path, voxels((1, 6, 7)), change=change)
    with pytest.raises(ConversionError):
        first_voxel(tmp_path)


def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.compress(JPEGLSLossless)

    kit.series(tmp_path, smooth(), change=change)
    path = tmp_path / "003.dcm"
    whole = bytearray(path.read_bytes())
    at = whole.index(b"\xff\xf7")
    assert whole[at + 5 : at + 9] == b"\x00\x28\x00\x32"
    whole[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    path.write_bytes(whole)
    with pytest.raises(ConversionError, match="compressed bytes claim to hold 8589672450 bytes"):
        opened(tmp_path).values[0:1, 0:6, 0:7]


def test_a_box_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    box = struct.pack(">I4s4s", 12, b"jP  ", b"\r\n\x87\n") + struct.pack(">I4s", 0, b"ftyp")
    stored = kit.image(voxels()[0], series="1.2.3")
    stored.file_meta.TransferSyntaxUID = JPEG2000Lossless
    stored.PixelData = pydicom.encaps.encapsulate([box + bytes(40)])
    stored["PixelData"].is_undefined_length = True
    stored.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(ConversionError, match="JP2 file without a codestream"):
        first_voxel(tmp_path)


def test_deflated_files_are_refused_before_they_are_inflated(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    kit.series(tmp_path, voxels(), change=change)
    with mock.patch("zlib.decompress", side_effect=AssertionError):
        assert "deflated as a whole" in refusal(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_mutated_files_read_or_raise_our_errors(tmp_path: Path) -> None:
    rng = random.Random(11)
    kit.series(tmp_path / "plain", voxels((1, 6, 7)))
    kit.enhanced(tmp_path / "mf.dcm", voxels((1, 3, 6, 7)), [(0, k) for k in range(3)])
    names = ["MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_jp2klossless.dcm"]
    seeds = [(SHIPPED / name).read_bytes() for name in names]
    seeds += [(tmp_path / "mf.dcm").read_bytes(), (tmp_path / "plain/003.dcm").read_bytes()]
    target = tmp_path / "mutated.dcm"
    n_refused = 0
    for _ in range(250):
        data = bytearray(rng.choice(seeds))
        if rng.random() < 0.2:
            del data[rng.randrange(140, len(data)) :]
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(132, min(len(data), 3000))
            data[at : at + 1] = rng.choice((b"\xff", b"\0", bytes([rng.randrange(256)])))
        target.write_bytes(data)
        try:
            everything(opened(target).values)
        except MlaError:
            n_refused += 1
    assert 0 < n_refused < 250


# ---- laziness, processes, dependencies


def test_opening_decodes_nothing_and_a_box_decodes_each_slice_once(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    with mock.patch.object(PixelData, "read", autospec=True, side_effect=PixelData.read) as read:
        values = opened(tmp_path).values
        assert read.call_count == 0
        np.testing.assert_array_equal(values[1:4, 2:3, 0:7], voxels()[1:4, 2:3])
        assert [Path(call.args[0].source.path).name for call in read.call_args_list] == [
            "010.dcm",
            "017.dcm",
            "024.dcm",
        ]
        assert values[2:2, 0:6, 0:7].shape == (0, 6, 7)
        assert read.call_count == 3
    with pytest.raises(IndexError):
        values[0:6, 0:6, 0:7]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_box_is_that_of_numpy(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "boxes"
    whole = voxels((2, 3, 4, 5))
    if not folder.exists():
        folder.mkdir()
        kit.enhanced(folder / "mf.dcm", whole, list(itertools.product(range(2), range(3))))
    pairs = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in whole.shape]
    box = tuple(slice(*pair) for pair in pairs)
    np.testing.assert_array_equal(opened(folder).values[box], whole[box])


def test_arrays_travel_as_small_addresses(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels((60, 6, 7)))
    values: Any = opened(tmp_path).values
    packed = pickle.dumps(values)
    assert len(packed) < 2000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(everything(again), voxels((60, 6, 7)))
    assert again.__dask_tokenize__() == values.__dask_tokenize__()
    assert opened(tmp_path).values.__dask_tokenize__() == values.__dask_tokenize__()  # type: ignore[attr-defined]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    values: Any = opened(tmp_path).values
    token, packed = values.__dask_tokenize__(), pickle.dumps(values)
    kit.series(tmp_path / "new", voxels())
    stored = pydicom.dcmread(tmp_path / "010.dcm")
    stored.KVP = 99
    stored.save_as(tmp_path / "010.dcm")
    with pytest.raises(SourceChanged, match=r"010\.dcm"):
        everything(values)
    with pytest.raises(SourceChanged, match="changed since it was opened"):
        everything(pickle.loads(packed))
    assert opened(tmp_path).values.__dask_tokenize__() != token  # type: ignore[attr-defined]


def test_threads_and_forked_children_read_alike(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels())
    values = pickle.loads(pickle.dumps(opened(tmp_path).values))
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: everything(values), range(8)):
            np.testing.assert_array_equal(read, voxels())
    if hasattr(os, "fork"):
        # Python warns of forks beside threads; those of the pool have ended.
        child = os.fork()
        if child == 0:
            os._exit(int(not np.array_equal(everything(values), voxels())))
        assert os.waitpid(child, 0)[1] == 0


def test_a_series_becomes_a_file(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.RescaleSlope, stored.RescaleIntercept = k + 1, 0

    kit.series(tmp_path / "in", voxels(), change=change)
    found = opened(tmp_path / "in")
    to_mla(found.values, tmp_path / "out.mla", metadata=found.metadata)
    array = open_mla(tmp_path / "out.mla")
    np.testing.assert_array_equal(array, voxels())
    np.testing.assert_allclose(array.z, 30 + 2.5 * np.arange(5))
    np.testing.assert_allclose(array.x, -10 + 0.75 * np.arange(7))
    np.testing.assert_array_equal(array.rescale_slope, np.arange(1.0, 6.0))
    assert array.mla.coord_system == "LPS+"
    np.testing.assert_allclose(array.mla.affine_in("LPS"), affine_of(found))


def test_a_missing_decoder_is_named(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.compress(RLELossless)
        stored.file_meta.TransferSyntaxUID = HTJ2KLossless

    kit.series(tmp_path, voxels((1, 6, 7)), change=change)
    decoder = get_decoder(HTJ2KLossless)
    with (
        mock.patch.object(type(decoder), "is_available", False),
        mock.patch.object(type(decoder), "missing_dependencies", ["pylibjpeg - requires it"]),
        pytest.raises(MissingDependencyError, match="pylibjpeg - requires it"),
    ):
        opened(tmp_path)


def test_encodings_of_films_are_refused(tmp_path: Path) -> None:
    def change(stored: Dataset, k: int) -> None:
        stored.compress(RLELossless)
        stored.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML

    kit.series(tmp_path, voxels((1, 6, 7)), change=change)
    assert "are not read" in refusal(tmp_path)


def test_a_missing_pydicom_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kit.series(tmp_path, voxels((1, 6, 7)))
    monkeypatch.setitem(sys.modules, "pydicom.datadict", None)
    with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[dicom\]"):
        opened(tmp_path)


def test_pixel_formats_know_their_type() -> None:
    bits = PixelFormat(
        rows=3, columns=5, bits_allocated=1, bits_stored=1, high_bit=0, is_signed=False
    )
    assert bits.dtype == np.dtype("u1")
    assert bits.stored_bytes(2) == 4


def test_no_frames_lie_on_another(tmp_path: Path) -> None:
    kit.series(tmp_path, voxels((2, 3, 4)), step=np.array([5.0, 0, 0]))
    assert "are 0.0000 mm apart" in refusal(tmp_path)
