"""NIfTI series with sidecars: the oracle is what was written beside them, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import Metadata, MlaArray, convert, convert_folder, open_mla, to_mla
from mlarray_xr.errors import ConversionError, MlaError, MlaWarning
from mlarray_xr.foreign.bids_sidecar import read_json
from mlarray_xr.foreign.bids_timing import frame_times, slice_times
from mlarray_xr.foreign.case import Case
from mlarray_xr.foreign.formats import format_named
from mlarray_xr.foreign.gradient_files import (
    axis_turn,
    gradient_text,
    parse_bvals,
    parse_bvecs,
    turned_bvecs,
)
from mlarray_xr.foreign.nifti import open_image, open_nifti
from mlarray_xr.foreign.sidecar_files import find_sidecars
from mlarray_xr.record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

N = 6
SHAPE = (4, 5, 3, N)
AFFINE = np.array([[-2, 0, 0, 90], [0, 2.5, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]], float)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.3, 0.4) @ np.diag([1.5, 2, 2.5]), [5, -7, 11]
)
BVAL = np.array([0, 1000.1, 2000, 1000, 0.30000000000000004, 2995])
BVEC = np.random.default_rng(3).normal(size=(3, N))
BIDS: dict[str, Any] = {
    "RepetitionTime": 0.8,
    "SliceTiming": [0.0, 0.4, 0.1],
    "PhaseEncodingDirection": "j-",
    "InstitutionName": "Université",
    "Nested": {"a": [1, 2.5, None, True]},
    "EchoTime": 1e-3,
}
PET: dict[str, Any] = {
    "FrameTimesStart": [0, 10, 30, 60, 120, 300],
    "FrameDuration": [10, 20, 30, 60, 180, 600],
    "DecayCorrectionFactor": [1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
}


def save(path: Path, shape: tuple[int, ...] = SHAPE, affine: NDArray[Any] = AFFINE) -> Path:
    values = np.random.default_rng(1).integers(0, 1000, shape, np.int16)
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + suffix)


def text(values: NDArray[np.float64]) -> str:
    return "\n".join(" ".join(map(repr, row)) for row in np.atleast_2d(values).tolist())


def series(
    path: Path, *, bids: dict[str, Any] | None = None, affine: NDArray[Any] = AFFINE
) -> Path:
    """Write a series with all its sidecars."""
    save(path, affine=affine)
    beside(path, ".bval").write_text(text(BVAL))
    beside(path, ".bvec").write_text(text(BVEC))
    beside(path, ".json").write_text(json.dumps(BIDS if bids is None else bids))
    return path


def bids_of(path: Path) -> Any:
    return MlaArray(path).metadata.source["bids"]


def loaded(path: Path) -> Any:
    return json.loads(beside(path, ".json").read_text())


def test_sidecars_become_coordinates(tmp_path: Path) -> None:
    convert(series(tmp_path / "dwi.nii.gz"), tmp_path / "dwi.mla")
    found = open_mla(tmp_path / "dwi.mla")
    np.testing.assert_array_equal(found.bval, BVAL)
    for name, row in zip(("bvec_x", "bvec_y", "bvec_z"), BVEC, strict=True):
        np.testing.assert_array_equal(found[name], row)
        assert found[name].dims == ("time",)
    np.testing.assert_array_equal(found.orig_volume, np.arange(N))
    np.testing.assert_array_equal(found.time, 0.8 * np.arange(N))
    assert (found.time.attrs["units"], found.bval.attrs["units"]) == ("s", "s/mm2")
    assert found.slice_time.dims == ("z",)
    assert found.slice_time.values.tolist() == BIDS["SliceTiming"]
    assert bids_of(tmp_path / "dwi.mla") == BIDS


def test_nifti_opened_as_an_array_has_them_too(tmp_path: Path) -> None:
    found = open_nifti(series(tmp_path / "dwi.nii"))
    np.testing.assert_array_equal(found.bval, BVAL)
    to_mla(found[..., 2:4], tmp_path / "two.mla")
    np.testing.assert_array_equal(open_mla(tmp_path / "two.mla").bval, BVAL[2:4])


def test_a_series_alone_has_numbers_of_volumes_only(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.nii"), tmp_path / "a.mla")
    metadata = MlaArray(tmp_path / "a.mla").metadata
    assert "bids" not in metadata.source
    assert {*Record.of(metadata, shape=SHAPE).coords} == {"time", "orig_volume"}
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    assert sorted(os.listdir(tmp_path)) == ["a.mla", "a.nii", "b.nii"]
    assert (tmp_path / "a.nii").read_bytes() == (tmp_path / "b.nii").read_bytes()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".img"])
def test_sidecars_come_back(suffix: str, tmp_path: Path) -> None:
    source = series(tmp_path / "a.nii")
    (tmp_path / "out").mkdir()
    back = tmp_path / "out" / f"b{suffix}"
    convert(source, tmp_path / "a.mla")
    convert(tmp_path / "a.mla", back, verify=True)
    stem = back.with_suffix("").with_suffix("")
    assert np.loadtxt(stem.with_suffix(".bval")).tobytes() == BVAL.tobytes()
    assert np.loadtxt(stem.with_suffix(".bvec")).tobytes() == BVEC.tobytes()
    assert json.loads(stem.with_suffix(".json").read_text()) == BIDS
    if suffix == ".nii":
        assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("bids", [BIDS, PET, {"VolumeTiming": [0, 1.5, 2, 7, 8, 9.25]}])
def test_files_come_back_byte_for_byte_whatever_tells_the_times(
    bids: dict[str, Any], tmp_path: Path
) -> None:
    source = series(tmp_path / "a.nii", bids=bids)
    convert(source, tmp_path / "a.mla")
    to_mla(open_mla(tmp_path / "a.mla"), tmp_path / "b.mla", patch=4)
    convert(tmp_path / "b.mla", tmp_path / "c.nii")
    assert (tmp_path / "c.nii").read_bytes() == source.read_bytes()
    assert loaded(tmp_path / "c.nii") == bids


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_selection_of_volumes_takes_its_rows_along(data: st.DataObject, tmp_path: Path) -> None:
    folder = tmp_path / "round"
    shutil.rmtree(folder, ignore_errors=True)
    bids = data.draw(st.sampled_from([BIDS, PET, {"VolumeTiming": [0, 1.5, 2, 7, 8, 9.25]}]))
    convert(series(folder / "a.nii.gz", bids=bids), folder / "a.mla")
    picked = data.draw(st.lists(st.integers(0, N - 1), min_size=1, unique=True))
    whole = open_mla(folder / "a.mla")
    to_mla(whole.isel(time=picked), folder / "b.mla")
    convert(folder / "b.mla", folder / "b.nii.gz")
    convert(folder / "b.nii.gz", folder / "c.mla")
    found, expected = open_mla(folder / "c.mla"), open_mla(folder / "b.mla")
    np.testing.assert_array_equal(found, whole.values[..., picked])
    np.testing.assert_array_equal(expected.orig_volume, picked)
    np.testing.assert_array_equal(expected.bval, BVAL[picked])
    names = ["bval", "bvec_x", "bvec_y", "bvec_z", "time"]
    for name in [*names, *(["frame_duration"] if bids is PET else [])]:
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name
    if bids is PET:
        factors = [PET["DecayCorrectionFactor"][number] for number in picked]
        assert bids_of(folder / "c.mla")["DecayCorrectionFactor"] == factors


def test_times_off_the_repetition_time_are_told_one_by_one(tmp_path: Path) -> None:
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    whole = open_mla(tmp_path / "a.mla")
    to_mla(whole[..., whole.bval.values > 500], tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    found = loaded(tmp_path / "b.nii")
    assert found["VolumeTiming"] == (0.8 * np.array([1, 2, 3, 5])).tolist()
    assert "RepetitionTime" not in found
    written: Any = nib.load(tmp_path / "b.nii")
    assert written.header["pixdim"][4] == 0


def test_one_volume_keeps_what_is_its_own(tmp_path: Path) -> None:
    convert(series(tmp_path / "a.nii", bids=PET), tmp_path / "a.mla")
    to_mla(open_mla(tmp_path / "a.mla")[..., 2], tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    found = {"FrameTimesStart": [30], "FrameDuration": [30], "DecayCorrectionFactor": [1.3]}
    assert loaded(tmp_path / "b.nii") == found
    assert not (tmp_path / "b.bval").exists()


def in_world(bvec: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    """Return b-vectors along the world's axes, as FSL's convention says."""
    sign = np.diag([-1.0 if np.linalg.det(affine[:3, :3]) > 0 else 1.0, 1, 1])
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    turned: NDArray[Any] = axes @ sign @ bvec
    return turned


@pytest.mark.parametrize("affine", [AFFINE, OBLIQUE, AFFINE @ np.diag([-1, 1, 1, 1])])
@pytest.mark.parametrize(
    ("flips", "dims"),
    [
        ((1, 1, 1), "xyz"),
        ((-1, 1, 1), "xyz"),
        ((1, -1, 1), "xyz"),
        ((1, 1, 1), "yxz"),
        ((-1, 1, -1), "zxy"),
    ],
)
def test_directions_point_where_they_pointed(
    affine: NDArray[Any], flips: tuple[int, ...], dims: str, tmp_path: Path
) -> None:
    convert(series(tmp_path / "a.nii", affine=affine), tmp_path / "a.mla")
    whole = open_mla(tmp_path / "a.mla")
    spatial = whole.dims[:3]
    named = dict(zip("xyz", spatial, strict=True))
    moved = whole[tuple(slice(None, None, flip) for flip in flips)]
    to_mla(moved.transpose("time", *(named[dim] for dim in dims)), tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    written: Any = nib.load(tmp_path / "b.nii")
    found = np.loadtxt(tmp_path / "b.bvec")
    np.testing.assert_allclose(in_world(found, written.affine), in_world(BVEC, affine), atol=1e-6)
    np.testing.assert_array_equal(np.sort(np.abs(found), axis=0), np.sort(np.abs(BVEC), axis=0))
    bids = loaded(tmp_path / "b.nii")
    axis = dims.index("y")
    sign = "-" if flips[1] > 0 else ""
    assert bids["PhaseEncodingDirection"] == "ijk"[axis] + sign
    found_axis, times = slice_times(bids, shape=written.shape) or (-1, np.zeros(0))
    assert found_axis == dims.index("z")
    assert times.tolist() == BIDS["SliceTiming"][:: flips[2]]


def test_directions_of_other_axes_are_refused(tmp_path: Path) -> None:
    assert axis_turn(AFFINE, OBLIQUE) is None
    assert axis_turn(AFFINE, np.full((4, 4), np.nan)) is None
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    array = open_mla(tmp_path / "a.mla")
    turned = array.drop_vars(["x", "y", "z"]).drop_attrs()
    turned.attrs = {
        **array.attrs,
        "affine": OBLIQUE.ravel().tolist(),
        "spatial_coords": "voxel index",
    }
    turned = turned.assign_coords({dim: np.arange(array.sizes[dim]) for dim in "xyz"})
    to_mla(turned, tmp_path / "b.mla")
    with pytest.raises(ConversionError, match=r"b-vectors.*drop_attrs"):
        convert(tmp_path / "b.mla", tmp_path / "b.nii")
    assert not (tmp_path / "b.nii").exists()
    free = array.drop_attrs().assign_attrs(coord_system="RAS")
    to_mla(free.drop_vars(["bvec_x", "bvec_y", "bvec_z"]), tmp_path / "c.mla")
    convert(tmp_path / "c.mla", tmp_path / "c.nii")
    assert not (tmp_path / "c.bvec").exists()


def test_turning_keeps_every_bit() -> None:
    turn = axis_turn(AFFINE, AFFINE)
    assert turn is not None
    kept = turned_bvecs(BVEC, turn, before=AFFINE, after=AFFINE)
    assert kept.tobytes() == BVEC.tobytes()


def test_no_file_is_written_that_is_not_read(tmp_path: Path) -> None:
    array = open_nifti(series(tmp_path / "a.nii", bids=PET))
    nan = ("time", np.full(N, np.nan))
    to_mla(array.assign_coords(bval=nan), tmp_path / "b.mla")
    with pytest.raises(ConversionError, match="NaN"):
        convert(tmp_path / "b.mla", tmp_path / "b.nii")
    to_mla(array.assign_coords(orig_volume=nan), tmp_path / "c.mla")
    convert(tmp_path / "c.mla", tmp_path / "c.nii")
    times = {name: PET[name] for name in ("FrameTimesStart", "FrameDuration")}
    assert loaded(tmp_path / "c.nii") == times


def test_times_are_known_when_the_numbers_of_volumes_are_not(tmp_path: Path) -> None:
    to_mla(open_nifti(series(tmp_path / "a.nii", bids=PET))[..., [1, 4]], tmp_path / "a.mla")
    array = MlaArray(tmp_path / "a.mla")
    values = array.metadata.to_dict()
    del values["extra"]["mlarray_xr"]["coords"]["orig_volume"]
    to_mla(array, tmp_path / "b.mla", metadata=Metadata.from_dict(values))
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    expected = {"FrameTimesStart": [10, 120], "FrameDuration": [20, 180]}
    assert loaded(tmp_path / "b.nii") == expected


@given(table=st.lists(st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 4)))
def test_text_keeps_every_bit(table: list[tuple[float, ...]]) -> None:
    columns = np.array(table, np.float64).reshape(-1, 4).T
    if table:
        assert parse_bvecs(gradient_text(columns[:3]), n=len(table)).tobytes() == (
            columns[:3].tobytes()
        )
    assert parse_bvals(gradient_text(columns[3:]), n=len(table)).tobytes() == columns[3].tobytes()


@pytest.mark.parametrize("direction", ["i", "i-", "j", "j-", "k", "k-"])
def test_slice_times_lie_along_their_axis(direction: str, tmp_path: Path) -> None:
    axis = "ijk".index(direction[0])
    times = np.linspace(0, 1, SHAPE[axis]).tolist()
    bids = {"SliceTiming": times, "SliceEncodingDirection": direction}
    convert(series(tmp_path / "a.nii", bids=bids), tmp_path / "a.mla")
    found = open_mla(tmp_path / "a.mla").slice_time
    assert found.dims == ("xyz"[axis],)
    assert found.values.tolist() == (times[::-1] if direction.endswith("-") else times)
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    assert loaded(tmp_path / "b.nii") == bids


def test_without_slices_there_are_no_slice_times(tmp_path: Path) -> None:
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    to_mla(open_mla(tmp_path / "a.mla").isel(z=1), tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    assert "SliceTiming" not in loaded(tmp_path / "b.nii")
    to_mla(open_mla(tmp_path / "a.mla").isel(z=slice(1, 3)), tmp_path / "c.mla")
    convert(tmp_path / "c.mla", tmp_path / "c.nii")
    assert loaded(tmp_path / "c.nii")["SliceTiming"] == [0.4, 0.1]


def test_the_slice_axis_of_the_header_counts_where_json_is_silent(tmp_path: Path) -> None:
    image: Any = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    image.header.set_dim_info(slice=1)
    nib.save(image, tmp_path / "a.nii")
    (tmp_path / "a.json").write_text('{"SliceTiming": [1, 2, 3, 4, 5]}')
    assert open_nifti(tmp_path / "a.nii").slice_time.dims == ("y",)


def test_b_vectors_may_stand_in_columns(tmp_path: Path) -> None:
    save(tmp_path / "a.nii")
    (tmp_path / "a.bvec").write_text("\n" + text(BVEC.T).replace(" ", "\t  ") + "\r\n\n")
    (tmp_path / "a.bval").write_text("\ufeff" + text(BVAL).replace(" ", "\n"))
    found = open_nifti(tmp_path / "a.nii")
    np.testing.assert_array_equal(found.bvec_y, BVEC[1])
    np.testing.assert_array_equal(found.bval, BVAL)


DAMAGED: list[tuple[str, str | bytes, str]] = [
    (".bval", "0 1000", "6 in one row.*1 rows of 2"),
    (".bval", "", "nothing was found"),
    (".bval", "1 2 3\n4 5 6", "2 rows of 3"),
    (".bval", "0 1 2 3 4 nan", "'nan'"),
    (".bval", "0 1 2 3 4 1e999", "beyond float64"),
    (".bval", "0 1 2 3 4 1_0", "'1_0'"),
    (".bval", "0 1 2 3 4 \u0661", "finite numbers"),
    (".bval", "0,1,2,3,4,5", "finite numbers"),
    (".bval", b"\xff\xfe0 1", "UTF-8"),
    (".bval", " " * (4 << 20) + "1", "bytes"),
    (".bvec", "1 2 3 4 5 6\n1 2 3 4 5 6", "3 rows of 6"),
    (".bvec", "1 2 3 4 5\n" * 3, "3 rows of 5"),
    (".bvec", "1 2 3 4 5 6\n1 2 3 4 5\n1 2", "rows of 2, 5, 6"),
    (".json", "", "JSON"),
    (".json", "[]", "list"),
    (".json", '[["a", 1]]', "list"),
    (".json", '{"a": NaN}', "NaN"),
    (".json", '{"a": 1e999}', "beyond float64"),
    (".json", '{"a": 1, "a": 2}', "occurs twice"),
    (".json", "[" * 100_000, "JSON"),
    (".json", '{"a":' * 300 + "1" + "}" * 300, "nested"),
    (".json", '{"a": ' + "9" * 5000 + "}", "JSON"),
    (".json", '{"VolumeTiming": [1, 2]}', "VolumeTiming.*6.*2 entries"),
    (".json", '{"VolumeTiming": [1, 2, 3, 4, 5, 5]}', "twice"),
    (".json", '{"VolumeTiming": [1, 2, 3, 4, 5, null]}', "VolumeTiming"),
    (".json", '{"VolumeTiming": [1, 2, 3, 4, 5, true]}', "VolumeTiming"),
    (".json", '{"FrameDuration": 3}', "FrameDuration.*int"),
    (".json", '{"RepetitionTime": "2"}', "RepetitionTime"),
    (".json", '{"RepetitionTime": 0}', "RepetitionTime"),
    (".json", '{"SliceTiming": [1, 2]}', "SliceTiming needs 3.*2 entries"),
    (".json", '{"SliceTiming": [1, 2, 3], "SliceEncodingDirection": "z"}', "'z'"),
]


@pytest.mark.parametrize(("suffix", "content", "message"), DAMAGED)
def test_what_does_not_fit_is_refused_by_name(
    suffix: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    save(tmp_path / "a.nii")
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / f"a{suffix}").write_bytes(data)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(tmp_path / "a.nii", tmp_path / "a.mla")
    assert str(tmp_path / f"a{suffix}") in str(caught.value)
    assert not (tmp_path / "a.mla").exists()


def test_links_to_nothing_and_devices_are_told(tmp_path: Path) -> None:
    save(tmp_path / "a.nii")
    (tmp_path / "a.bval").symlink_to(tmp_path / "annexed")
    with pytest.raises(ConversionError, match=r"a\.bval"):
        open_nifti(tmp_path / "a.nii")
    (tmp_path / "a.bval").unlink()
    os.mkfifo(tmp_path / "a.bval")
    with pytest.raises(MlaError, match=r"a\.bval"):
        open_nifti(tmp_path / "a.nii")
    (tmp_path / "a.bval").unlink()
    (tmp_path / "a.json").mkdir()
    assert "bval" not in open_nifti(tmp_path / "a.nii").coords


def test_texts_that_are_no_text_are_refused_or_kept(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "\\ud800", "\\u0000": "b"}')
    save(tmp_path / "a.nii")
    expected = read_json([str(tmp_path / "a.json")])
    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "b.nii")
    assert loaded(tmp_path / "b.nii") == expected


def test_volumes_have_their_json_and_nothing_more(tmp_path: Path) -> None:
    save(tmp_path / "t1.nii", SHAPE[:3])
    (tmp_path / "t1.json").write_text('{"EchoTime": 0.03, "RepetitionTime": 2, "SliceTiming": [1]}')
    (tmp_path / "t1.bval").write_text("0 1 2")
    convert(tmp_path / "t1.nii", tmp_path / "t1.mla")
    metadata = MlaArray(tmp_path / "t1.mla").metadata
    assert metadata.source["bids"] == loaded(tmp_path / "t1.nii")
    assert not Record.of(metadata, shape=SHAPE[:3]).coords
    convert(tmp_path / "t1.mla", tmp_path / "again.nii")
    assert loaded(tmp_path / "again.nii") == loaded(tmp_path / "t1.nii")


def dataset(root: Path) -> Path:
    """Write a BIDS dataset with fields at every level; return its image."""
    image = save(root / "sub-1" / "dwi" / "sub-1_acq-a_dwi.nii.gz")
    files = {
        "dataset_description.json": {"Name": "none of it"},
        "dwi.json": {"EchoTime": 1, "A": "root"},
        "acq-a_dwi.json": {"EchoTime": 2},
        "acq-b_dwi.json": {"EchoTime": 3},
        "bold.json": {"EchoTime": 4},
        "sub-1/sub-1_dwi.json": {"B": "subject"},
        "sub-1/dwi/sub-1_acq-a_dwi.json": {"C": "file", "A": "nearest"},
        "../dwi.json": {"Outside": True},
    }
    for name, fields in files.items():
        (root / name).write_text(json.dumps(fields))
    (root / "dwi.bval").write_text(text(BVAL))
    (root / "dwi.bvec").write_text(text(BVEC))
    (root / "sub-1" / "sub-1_dwi.bval").write_text(text(BVAL + 1))
    return image


def test_files_of_parent_folders_apply_and_the_nearest_wins(tmp_path: Path) -> None:
    image = dataset(tmp_path / "study")
    convert(image, tmp_path / "a.mla")
    expected = {"EchoTime": 2, "A": "nearest", "B": "subject", "C": "file"}
    assert bids_of(tmp_path / "a.mla") == expected
    found = open_mla(tmp_path / "a.mla")
    np.testing.assert_array_equal(found.bval, BVAL + 1)
    np.testing.assert_array_equal(found.bvec_z, BVEC[2])
    (tmp_path / "study" / "dataset_description.json").unlink()
    alone = find_sidecars(str(image).removesuffix(".nii.gz"))
    assert [Path(path).name for path in alone.paths()] == ["sub-1_acq-a_dwi.json"]


def test_two_files_that_apply_alike_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "study"
    image = dataset(root)
    (root / "sub-1_dwi.json").write_text("{}")
    with pytest.raises(ConversionError, match=r"both acq-a_dwi.json and sub-1_dwi.json apply"):
        convert(image, tmp_path / "a.mla")
    report = convert_folder(root, tmp_path / "mla")
    assert len(report.failed) == 1
    assert "BIDS allows one" in report.failed[0].reason


def case_of(image: Path) -> Case:
    return Case(source=str(image), target="a.mla", format=format_named("nifti"))


def test_sidecars_are_files_of_the_case(tmp_path: Path) -> None:
    image = dataset(tmp_path / "study")
    before = case_of(image).measured()
    names = [os.path.relpath(path, tmp_path) for path in before.files()]
    assert "study/dwi.json" in names
    assert "study/sub-1/sub-1_dwi.bval" in names
    assert before.nbytes > image.stat().st_size
    (tmp_path / "study" / "dwi.json").write_text('{"EchoTime": 11}')
    assert case_of(image).measured().content != before.content


def test_a_changed_sidecar_converts_again(tmp_path: Path) -> None:
    source = series(tmp_path / "raw" / "a.nii")
    assert len(convert_folder(tmp_path / "raw", tmp_path / "mla").converted) == 1
    assert len(convert_folder(tmp_path / "raw", tmp_path / "mla").skipped) == 1
    beside(source, ".bval").write_text(text(BVAL + 5))
    assert len(convert_folder(tmp_path / "raw", tmp_path / "mla").converted) == 1
    np.testing.assert_array_equal(open_mla(tmp_path / "mla" / "a.mla").bval, BVAL + 5)


def test_files_beside_a_target_are_replaced_only_when_told(tmp_path: Path) -> None:
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    (tmp_path / "b.bvec").write_text("precious")
    with pytest.raises(FileExistsError, match=r"b\.bvec"):
        convert(tmp_path / "a.mla", tmp_path / "b.nii")
    assert sorted(path.name for path in tmp_path.glob("b.*")) == ["b.bvec"]
    assert (tmp_path / "b.bvec").read_text() == "precious"
    convert(tmp_path / "a.mla", tmp_path / "b.nii", mode="w")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "b.bvec"), BVEC)


def test_gradients_of_another_image_are_not_left_to_an_image_without(tmp_path: Path) -> None:
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "out.nii")
    to_mla(open_mla(tmp_path / "a.mla").isel(time=0, drop=True), tmp_path / "plain.mla")
    (tmp_path / "out.nii").unlink()
    with pytest.raises(FileExistsError, match=r"out\.bval, .*out\.bvec: would be taken"):
        convert(tmp_path / "plain.mla", tmp_path / "out.nii")
    with pytest.warns(MlaWarning, match=r"out\.bval, .*out\.bvec: would be taken"):
        convert(tmp_path / "plain.mla", tmp_path / "out.nii", mode="w")


def test_lines_without_end_are_not_collected() -> None:
    with pytest.raises(ConversionError, match="more than 4 lines of numbers"):
        parse_bvals("0\n" * 1000, n=4)


def test_times_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConversionError, match="gives times that float64 does not tell apart"):
        frame_times({"RepetitionTime": 1e308}, n=4, start=0.0)


def test_a_failure_leaves_no_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(series(tmp_path / "a.nii"), tmp_path / "a.mla")
    before = sorted(os.listdir(tmp_path))

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError("disk")

    monkeypatch.setattr("mlarray_xr.foreign.nifti.raw_slabs", fail)
    with pytest.raises(OSError, match="disk"):
        convert(tmp_path / "a.mla", tmp_path / "b.nii.gz")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("entry", [7, [1], {"a": float("nan")}, {"RepetitionTime": "x"}])
def test_stored_objects_that_are_none_do_no_harm(entry: Any, tmp_path: Path) -> None:
    convert(save(tmp_path / "a.nii"), tmp_path / "a.mla")
    array = MlaArray(tmp_path / "a.mla")
    values = array.metadata.to_dict()
    values["source"]["bids"] = entry
    to_mla(array, tmp_path / "b.mla", metadata=Metadata.from_dict(values))
    if entry == 7 or type(entry) is list:
        convert(tmp_path / "b.mla", tmp_path / "b.nii")
        assert not (tmp_path / "b.json").exists()
    elif "a" in entry:
        with pytest.raises(ConversionError, match="no JSON object"):
            convert(tmp_path / "b.mla", tmp_path / "b.nii")
    else:
        convert(tmp_path / "b.mla", tmp_path / "b.nii")
        assert loaded(tmp_path / "b.nii")["VolumeTiming"] == [0, 1, 2, 3, 4, 5]


def test_arrays_with_a_gradient_table_write_it(tmp_path: Path) -> None:
    array = open_nifti(save(tmp_path / "a.nii")).drop_attrs()
    array.attrs["coord_system"] = "RAS"
    rows = zip(("bval", "bvec_x", "bvec_y", "bvec_z"), [BVAL, *BVEC], strict=True)
    array = array.assign_coords({name: ("time", row) for name, row in rows})
    to_mla(array, tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "b.bvec"), BVEC)
    assert not (tmp_path / "b.json").exists()


def test_an_axis_order_that_only_looks_alike_is_not_believed(tmp_path: Path) -> None:
    convert(save(tmp_path / "a.nii", (4, 4, 4, 4)), tmp_path / "a.mla")
    to_mla(open_mla(tmp_path / "a.mla").transpose("time", "x", "y", "z"), tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    found: Any = nib.load(tmp_path / "b.nii")
    np.testing.assert_array_equal(found.dataobj, MlaArray(tmp_path / "a.mla")[...])


MASKS = ["sub-1_dwi_mask.nii.gz", "sub-1_dwi_mask.nii", "sub-1_desc-brain_mask.nii.gz"]


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_on_the_same_grid_is_a_companion(name: str, tmp_path: Path) -> None:
    image = save(tmp_path / "sub-1_dwi.nii.gz")
    mask = np.random.default_rng(2).integers(0, 2, SHAPE[:3], np.uint8)
    nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / name)
    companions = open_image(str(image), scratch_dir=None, dataset=None).companions
    assert companions["mask"].metadata.is_seg is True
    assert str(tmp_path / name) in [*case_of(image).files()]
    convert(image, tmp_path / "a.mla")
    found = open_mla(tmp_path / "a.mask.mla")
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_array_equal(found.mla.affine, AFFINE)
    assert found.name == "labels"


@pytest.mark.parametrize(
    ("shape", "dtype", "affine"),
    [((4, 5, 4), "u1", AFFINE), (SHAPE[:3], "f4", AFFINE), (SHAPE[:3], "u1", OBLIQUE)],
)
def test_masks_of_other_grids_are_left_out(
    shape: tuple[int, ...], dtype: str, affine: NDArray[Any], tmp_path: Path
) -> None:
    image = save(tmp_path / "dwi.nii")
    nib.save(nib.Nifti1Image(np.zeros(shape, dtype), affine), tmp_path / "dwi_mask.nii")
    with pytest.warns(MlaWarning, match="left out"):
        assert not open_image(str(image), scratch_dir=None, dataset=None).companions


def test_a_mask_that_is_there_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    image = save(tmp_path / "raw" / "dwi.nii")
    nib.save(nib.Nifti1Image(np.ones(SHAPE[:3], np.uint8), AFFINE), tmp_path / "raw/dwi_mask.nii")
    (tmp_path / "dwi.mask.mla").write_text("precious")
    with pytest.raises(FileExistsError, match=r"dwi\.mask\.mla"):
        convert(image, tmp_path / "dwi.mla")
    assert not (tmp_path / "dwi.mla").exists()
    assert (tmp_path / "dwi.mask.mla").read_text() == "precious"
    convert(image, tmp_path / "dwi.mla", mode="w")
    assert int(open_mla(tmp_path / "dwi.mask.mla").sum()) == 60


def test_a_changed_mask_converts_the_series_again(tmp_path: Path) -> None:
    image = save(tmp_path / "raw" / "dwi.nii")
    mask = tmp_path / "raw" / "dwi_mask.nii"
    for value, n_converted in ((1, 2), (1, 0), (3, 2)):
        if n_converted:
            nib.save(nib.Nifti1Image(np.full(SHAPE[:3], value, np.uint8), AFFINE), mask)
        report = convert_folder(tmp_path / "raw", tmp_path / "mla")
        assert (len(report.converted), len(report.failed)) == (n_converted, 0)
        assert int(open_mla(tmp_path / "mla" / "dwi.mask.mla").max()) == value
    assert image.exists()


def test_volumes_have_no_companions(tmp_path: Path) -> None:
    image = save(tmp_path / "t1.nii", SHAPE[:3])
    save(tmp_path / "t1_mask.nii", SHAPE[:3])
    assert not open_image(str(image), scratch_dir=None, dataset=None).companions
    assert [*case_of(image).files()] == [str(image)]
