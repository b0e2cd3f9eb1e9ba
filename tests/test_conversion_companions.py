"""Companions of an image: files beside the target, complete before it is and gone when it fails."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest

from mlarray_xr import MlaArray, convert, to_mla
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign import recipe
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.format.metadata import Metadata

if TYPE_CHECKING:
    from pathlib import Path

SERIES = np.random.default_rng(3).integers(0, 900, (6, 7, 8, 20)).astype("i2")
MASK = SERIES[..., 0] > 400


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a series that has a mask, whatever its format says."""
    nib.save(nib.Nifti1Image(SERIES, np.eye(4)), tmp_path / "bold.nii.gz")
    real = recipe.opened

    def opened(*args: Any, **options: Any) -> ForeignImage:
        mask = ForeignImage(values=MASK, metadata=Metadata(has_array=True, is_seg=True))
        return replace(real(*args, **options), companions={"mask": mask})

    monkeypatch.setattr(recipe, "opened", opened)
    return tmp_path / "bold.nii.gz"


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {"bold.nii.gz"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_mask_becomes_a_file_beside_the_target(
    resume: bool, series: Path, tmp_path: Path
) -> None:
    convert(series, tmp_path / "a.mla", resume=resume, verify=True, chunks=(6, 7, 8, 2))
    assert names(tmp_path) == {"a.mla", "a.mask.mla"}
    mask = MlaArray(tmp_path / "a.mask.mla")
    np.testing.assert_array_equal(mask[...], MASK)
    assert mask.metadata.is_seg is True
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], SERIES)


def test_a_mask_that_is_in_the_way_is_kept_and_refused_first(series: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mask.mla").write_text("precious")
    for resume in (False, True):
        with pytest.raises(FileExistsError):
            convert(series, tmp_path / "a.mla", resume=resume)
        assert (tmp_path / "a.mask.mla").read_text() == "precious"
        assert "a.mla" not in names(tmp_path)
    convert(series, tmp_path / "a.mla", mode="w")
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mask.mla")[...], MASK)


def test_a_series_that_fails_leaves_no_mask(series: Path, tmp_path: Path) -> None:
    data = bytearray(series.read_bytes())
    data[-1] ^= 1
    series.write_bytes(data)
    with pytest.raises(ConversionError, match="damaged"):
        convert(series, tmp_path / "a.mla", chunks=(6, 7, 8, 2))
    assert not names(tmp_path)


def test_a_conversion_that_is_resumed_finds_its_mask(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = to_mla

    def failing(values: Any, path: str, **options: Any) -> Any:
        if not path.endswith(".mask.mla"):
            raise OSError(28, "No space left on device")
        return real(values, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(recipe, "to_mla", failing)
        with pytest.raises(OSError, match="No space"):
            convert(series, tmp_path / "a.mla", resume=True)
    written = os.stat(tmp_path / "a.mask.mla").st_ino
    convert(series, tmp_path / "a.mla", resume=True)
    assert os.stat(tmp_path / "a.mask.mla").st_ino == written
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], SERIES)
