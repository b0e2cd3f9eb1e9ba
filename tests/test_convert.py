"""convert: every way between formats, and what is said where there is none."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from mlarray_xr import MlaArray, convert
from mlarray_xr.errors import ConversionError, FormatError

FIXTURES = Path(__file__).parent / "data" / "mla"


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(1).integers(0, 1000, (10, 12, 14), np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_nifti_to_mla_and_back(scan: Path, tmp_path: Path) -> None:
    report = convert(scan, tmp_path / "scan.mla", patch=8, codec="zstd-1")
    assert report is not None
    assert (report.shape, str(report.codec)) == ((10, 12, 14), "zstd-1")
    assert convert(str(tmp_path / "scan.mla"), str(tmp_path / "scan.nii")) is None
    expected: Any = nib.load(scan)
    found: Any = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(found.dataobj, expected.dataobj)
    assert found.header == expected.header


def test_mla_to_another_layout_keeps_voxels_and_metadata(scan: Path, tmp_path: Path) -> None:
    convert(scan, tmp_path / "a.mla")
    report = convert(tmp_path / "a.mla", tmp_path / "b.mla", chunks=(4, 6, 7), blocks=(2, 3, 7))
    assert report is not None
    before, after = MlaArray(tmp_path / "a.mla"), MlaArray(tmp_path / "b.mla")
    assert (after.chunks, after.blocks) == ((4, 6, 7), (2, 3, 7))
    np.testing.assert_array_equal(after[...], before[...])
    assert after.metadata.source == before.metadata.source
    assert after.metadata.extra == before.metadata.extra
    assert after.metadata.spatial == before.metadata.spatial


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.mb2nd")), ids=lambda p: p.parent.name)
def test_the_predecessor_is_rewritten(path: Path, tmp_path: Path) -> None:
    convert(path, tmp_path / "new.mla")
    before, after = MlaArray(path), MlaArray(tmp_path / "new.mla")
    np.testing.assert_array_equal(after[...], before[...])
    assert after.metadata.spatial == before.metadata.spatial


def test_a_plain_blosc2_array_becomes_an_mla_file(tmp_path: Path) -> None:
    import blosc2

    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    blosc2.asarray(values, urlpath=str(tmp_path / "plain.b2nd"))
    convert(tmp_path / "plain.b2nd", tmp_path / "plain.mla")
    np.testing.assert_array_equal(MlaArray(tmp_path / "plain.mla")[...], values)


def test_a_file_may_replace_itself(scan: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.mla"
    convert(scan, target)
    expected = MlaArray(target)[...]
    convert(target, target, chunks=5, mode="w")
    assert MlaArray(target).chunks == (5, 5, 5)
    np.testing.assert_array_equal(MlaArray(target)[...], expected)


@pytest.mark.parametrize(
    "names", [("scan.nii.gz", "a.mla"), ("a.mla", "b.mla"), ("a.mla", "b.nii")]
)
def test_existing_targets_are_kept(names: tuple[str, str], scan: Path, tmp_path: Path) -> None:
    if names[0] == "a.mla":
        convert(scan, tmp_path / "a.mla")
    (tmp_path / names[1]).write_text("precious")
    with pytest.raises(FileExistsError):
        convert(tmp_path / names[0], tmp_path / names[1])
    assert (tmp_path / names[1]).read_text() == "precious"


@pytest.mark.parametrize(
    ("src", "dst"),
    [("a.nii", "b.nii"), ("a.mla", "b.zarr"), ("a.txt", "b.mla"), ("a.mla", "b.b2nd"), ("a", "b")],
)
def test_unknown_ways_list_the_known_ones(src: str, dst: str) -> None:
    with pytest.raises(ConversionError, match=r"no way.*\.mb2nd.*\.nii\.gz"):
        convert(src, dst)


@pytest.mark.parametrize("option", [{"patch": 8}, {"chunks": 4}, {"blocks": 2}, {"codec": "lz4-1"}])
def test_nifti_has_no_layout(option: dict[str, Any], scan: Path, tmp_path: Path) -> None:
    convert(scan, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match="leave them out"):
        convert(tmp_path / "a.mla", tmp_path / "b.nii", **option)
    assert not (tmp_path / "b.nii").exists()


def test_files_without_an_array_are_refused(tmp_path: Path) -> None:
    path = next(p for p in FIXTURES.rglob("*.mla") if not MlaArray(p).metadata.has_array)
    for name in ("a.mla", "a.nii"):
        with pytest.raises((ConversionError, FormatError), match="metadata only"):
            convert(path, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_sources_are_missing(tmp_path: Path) -> None:
    for src, dst in (("a.nii", "a.mla"), ("a.mla", "b.mla"), ("a.mla", "a.nii")):
        with pytest.raises(FileNotFoundError):
            convert(tmp_path / src, tmp_path / dst)


def test_a_nifti_file_may_have_a_name_in_capitals(scan: Path, tmp_path: Path) -> None:
    shutil.copy(scan, tmp_path / "SCAN.NII.GZ")
    convert(tmp_path / "SCAN.NII.GZ", tmp_path / "a.mla")
    with xr.open_dataset(tmp_path / "a.mla", engine=mlarray_xr.backend.MlaBackendEntrypoint) as ds:
        assert ds.sizes == {"x": 10, "y": 12, "z": 14}
