"""nifreeze's files, written as nifreeze writes them: what was written is the oracle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import h5py
import nibabel as nib
import numpy as np
import pytest

from mlarray_xr import MlaArray, convert, open_mla, to_mla
from mlarray_xr.errors import ConversionError, MlaWarning
from mlarray_xr.foreign.hdf5 import open_image

if TYPE_CHECKING:
    from pathlib import Path

    from mlarray_xr.foreign.image import ForeignImage

N = 7
SPACE = (4, 5, 3)
AFFINE = np.array([[0, 0, 2.5, -1], [-2, 0, 0, 5], [0, 1.5, 0, 7], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).normal(size=(*SPACE, N)).astype("f4")
MASK = np.random.default_rng(1).random(SPACE) > 0.5
GRADIENTS = np.random.default_rng(2).normal(size=(N, 4)).astype("f4")
MOTION = np.random.default_rng(3).normal(size=(N, 4, 4))
MIDFRAME = np.array([5.0, 20, 45, 90, 210, 600, 0.1 + 0.2])


def save(path: Path, *, version: int = 1, kind: str = "NFDH5", **members: Any) -> Path:
    """Write a file as `BaseDataset.to_filename` and `PET.to_filename` do."""
    with h5py.File(path, "w") as file:
        file.attrs["Format"], file.attrs["Version"] = kind, np.uint16(version)
        group = file.create_group("/0")
        group.attrs["Type"] = "pet" if kind == "EMC/PET" else "base dataset"
        if "gradients" in members:
            file.attrs["Type"] = "dmri"
        group["affine"], group["brainmask"] = AFFINE, MASK
        if version == 1:
            group.create_dataset("dataobj", data=VALUES, compression="gzip")
        else:
            stored = group.create_dataset("dataobj", data=np.moveaxis(VALUES, -1, 0))
            stored.attrs["volume_axis"] = 0
        for name, value in members.items():
            if name in group:
                del group[name]
            if value is not None:
                group[name] = value
    return path


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def dwi(path: Path, *, version: int = 1) -> Path:
    members: Any = {"gradients": GRADIENTS, "bzero": VALUES[..., 0], "motion_affines": MOTION}
    return save(path, version=version, **members)


@pytest.mark.parametrize("version", [1, 2])
def test_a_diffusion_series_keeps_order_geometry_and_gradients(
    version: int, tmp_path: Path
) -> None:
    convert(dwi(tmp_path / "a.h5", version=version), tmp_path / "a.mla", verify=True)
    found = open_mla(tmp_path / "a.mla")
    dims = ("y", "z", "x")
    assert found.dims == ((*dims, "time") if version == 1 else ("time", *dims))
    np.testing.assert_array_equal(found.transpose(*dims, "time"), VALUES)
    np.testing.assert_array_equal(found.mla.affine, AFFINE)
    assert found.mla.coord_system == "RAS+"
    assert found.x.attrs["units"] == "mm"
    for name, column in zip(("bvec_x", "bvec_y", "bvec_z", "bval"), GRADIENTS.T, strict=True):
        np.testing.assert_array_equal(found[name], column)
        assert found[name].dims == ("time",)
        assert found[name].dtype == np.dtype("float64")
    assert found.orig_volume.values.tolist() == [*range(N)]
    assert "volume_axis" not in found.attrs
    picked = found.isel(time=[5, 2])
    assert picked.orig_volume.values.tolist() == [5, 2]
    np.testing.assert_array_equal(picked.bval, GRADIENTS[[5, 2], 3])


@pytest.mark.parametrize("version", [1, 2])
def test_everything_else_is_kept_as_plain_data(version: int, tmp_path: Path) -> None:
    convert(dwi(tmp_path / "a.h5", version=version), tmp_path / "a.mla")
    found: Any = MlaArray(tmp_path / "a.mla").metadata.source["nifreeze"]
    assert (found["format"], found["version"], found["type"]) == ("NFDH5", version, "dmri")
    np.testing.assert_array_equal(found["motion_affines"], MOTION)
    np.testing.assert_array_equal(found["affine"], AFFINE)
    assert {*found} == {"format", "version", "type", "motion_affines", "affine"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_pet_series_has_times_and_duration(version: int, tmp_path: Path) -> None:
    save(
        tmp_path / "a.h5", version=version, kind="EMC/PET", midframe=MIDFRAME, total_duration=900.5
    )
    convert(tmp_path / "a.h5", tmp_path / "a.mla")
    found = open_mla(tmp_path / "a.mla")
    assert found.time.values.tobytes() == MIDFRAME.tobytes()
    assert found.time.attrs["units"] == "s"
    source: Any = MlaArray(tmp_path / "a.mla").metadata.source["nifreeze"]
    assert (source["total_duration"], source["type"]) == (900.5, "pet")
    assert source["format"] == "EMC/PET"


@pytest.mark.parametrize("version", [1, 2])
def test_mask_and_reference_become_files_beside(version: int, tmp_path: Path) -> None:
    convert(dwi(tmp_path / "a.h5", version=version), tmp_path / "a.mla")
    names = ["a.bzero.mla", "a.h5", "a.mask.mla", "a.mla"]
    assert sorted(os.listdir(tmp_path)) == names
    mask, bzero = open_mla(tmp_path / "a.mask.mla"), open_mla(tmp_path / "a.bzero.mla")
    assert (mask.name, mask.dtype, mask.dims) == ("brainmask", np.dtype(bool), ("y", "z", "x"))
    np.testing.assert_array_equal(mask, MASK)
    np.testing.assert_array_equal(bzero, VALUES[..., 0])
    np.testing.assert_array_equal(mask.mla.affine, AFFINE)
    image = opened(tmp_path / "a.h5")
    assert image.companions["mask"].metadata.is_seg is True
    assert image.companions["bzero"].metadata.is_seg is not True


def test_a_series_without_companions_stands_alone(tmp_path: Path) -> None:
    image = opened(save(tmp_path / "a.h5", brainmask=None))
    assert not image.companions
    assert not opened(save(tmp_path / "b.h5"), "0/dataobj").companions
    assert not opened(save(tmp_path / "c.h5"), "0/brainmask").companions


def test_the_version_tells_where_the_attribute_does_not(tmp_path: Path) -> None:
    save(tmp_path / "a.h5", version=2, dataobj=np.moveaxis(VALUES, -1, 0))
    assert opened(tmp_path / "a.h5").metadata.spatial.axis_labels is not None
    convert(tmp_path / "a.h5", tmp_path / "a.mla")
    assert open_mla(tmp_path / "a.mla").dims == ("time", "y", "z", "x")


def test_gradients_may_stand_in_rows(tmp_path: Path) -> None:
    save(tmp_path / "a.h5", gradients=GRADIENTS.T)
    convert(tmp_path / "a.h5", tmp_path / "a.mla")
    np.testing.assert_array_equal(open_mla(tmp_path / "a.mla").bval, GRADIENTS[:, 3])


@pytest.mark.parametrize("version", [1, 2])
def test_a_diffusion_series_goes_on_to_nifti(version: int, tmp_path: Path) -> None:
    convert(dwi(tmp_path / "a.h5", version=version), tmp_path / "a.mla")
    convert(tmp_path / "a.mla", tmp_path / "a.nii.gz", verify=True)
    found: Any = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(found.dataobj, VALUES)
    np.testing.assert_allclose(found.affine, AFFINE)
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "a.bval"), GRADIENTS[:, 3])
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "a.bvec"), GRADIENTS[:, :3].T)
    flipped = open_mla(tmp_path / "a.mla").isel(y=slice(None, None, -1), time=slice(2, 4))
    to_mla(flipped, tmp_path / "b.mla")
    convert(tmp_path / "b.mla", tmp_path / "b.nii")
    # The first axis is flipped, and FSL flips it again because the handedness changed.
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "b.bvec"), GRADIENTS[2:4, :3].T)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"brainmask": np.ones((3, 3, 3), bool)}, r"brainmask.*\(3, 3, 3\).*dataset='0/dataobj'"),
        ({"bzero": h5py.ExternalLink("other.h5", "/data")}, "link"),
        ({"brainmask": h5py.SoftLink("/0")}, "brainmask"),
        ({"gradients": GRADIENTS[:5]}, r"gradients.*\(5, 4\)"),
        ({"gradients": GRADIENTS * np.nan}, "NaN"),
        ({"midframe": MIDFRAME[:3]}, "midframe"),
        ({"affine": np.full((4, 4), np.inf)}, "affine"),
        ({"affine": None}, "affine"),
    ],
)
def test_what_does_not_fit_the_series_is_refused(
    members: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save(tmp_path / "a.h5", **members)
    with pytest.raises(ConversionError, match=message) as caught:
        convert(tmp_path / "a.h5", tmp_path / "a.mla")
    assert "a.h5" in str(caught.value)
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("axis", [1, -1, "x"])
def test_unknown_volume_axes_are_refused(axis: Any, tmp_path: Path) -> None:
    with h5py.File(save(tmp_path / "a.h5", version=2), "r+") as file:
        file["0/dataobj"].attrs["volume_axis"] = axis
    with pytest.raises(ConversionError, match="volume_axis"):
        opened(tmp_path / "a.h5")


@pytest.mark.parametrize("value", [np.zeros((600, 600)), np.array([b"text"])])
def test_members_that_metadata_cannot_hold_are_told(value: Any, tmp_path: Path) -> None:
    save(tmp_path / "a.h5", eddy_xfms=value)
    with pytest.warns(MlaWarning, match="eddy_xfms.*left out"):
        image = opened(tmp_path / "a.h5")
    source: Any = image.metadata.source["nifreeze"]
    assert "eddy_xfms" not in source


def test_endless_members_are_refused(tmp_path: Path) -> None:
    members: Any = {f"m{number}": 1 for number in range(100)}
    save(tmp_path / "a.h5", **members)
    with pytest.raises(ConversionError, match="members"):
        opened(tmp_path / "a.h5")


@pytest.mark.parametrize("version", [0, 3, 99])
def test_unknown_versions_are_plain_hdf5(version: int, tmp_path: Path) -> None:
    with h5py.File(save(tmp_path / "a.h5"), "r+") as file:
        file.attrs["Version"] = np.uint16(version)
    with pytest.raises(ConversionError, match="dataset="):
        opened(tmp_path / "a.h5")
