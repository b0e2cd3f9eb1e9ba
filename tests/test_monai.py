"""MONAI: its NibabelReader on the NIfTI file is the oracle of what the reader gives for the `.mla`.

Volumes whose values are a linear function of the world position tell whether an affine is still
true after a transform.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import torch
import xarray as xr
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_obj import set_track_meta
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import list_data_collate, pad_list_data_collate
from monai.transforms.compose import Compose
from monai.transforms.croppad.dictionary import RandSpatialCropd
from monai.transforms.intensity.dictionary import RandGaussianNoised
from monai.transforms.io.array import LoadImage, SaveImage
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.post.dictionary import Invertd
from monai.transforms.spatial.array import Orientation
from monai.transforms.spatial.dictionary import Orientationd, RandFlipd, RandRotate90d, Spacingd
from monai.transforms.utility.dictionary import EnsureChannelFirstd

import mlarray_xr
from mlarray_xr.errors import ConversionError, GeometryError, LayoutError
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.ml.monai import AsMetaTensord, LoadMlad, MlaReader
from mlarray_xr.ml.torch import (
    GridPatches,
    PatchDataset,
    RandomPatches,
    Slices2D,
    create_segmentation_dataloader,
    create_training_dataloader,
)
from tests.package_source import ROOT
from tests.range_server import RangeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# MONAI 1.6 says so where pydicom is installed, and of every Orientation without labels.
pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),
    pytest.mark.filterwarnings("ignore:monai.transforms.spatial:FutureWarning"),
]

SHAPE = (12, 10, 9)
ALIGNED = np.array([[2, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], float)
FLIPPED = np.array([[-1, 0, 0, 90], [0, 0, 1.5, -126], [0, 2, 0, -72], [0, 0, 0, 1]], float)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.3, 0.4) @ np.diag([-1.5, 2, 2.5]), [5, -7, 11]
)
AFFINES = {"aligned": ALIGNED, "flipped": FLIPPED, "oblique": OBLIQUE}
TO_RAS = np.diag([-1.0, -1, 1, 1])
XYZ = ("spatial_x", "spatial_y", "spatial_z")


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(5).integers(0, 120, shape).astype(dtype)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_pair(affine: NDArray[Any], shape: tuple[int, ...] = SHAPE) -> None:
    """Write ``a.nii`` and ``a.mla`` of the same image."""
    nib.save(nib.Nifti1Image(voxels(shape), affine), "a.nii")
    mlarray_xr.convert("a.nii", "a.mla", patch=4)


def write(
    name: str,
    values: NDArray[Any],
    *,
    labels: tuple[str, ...] | None = XYZ,
    affine: NDArray[Any] | None = ALIGNED,
    system: str | None = "RAS",
) -> str:
    """Write a file with blocks of few voxels."""
    rows = None if affine is None else tuple(map(tuple, affine.tolist()))
    spatial = Spatial(axis_labels=labels, affine=rows, coord_system=system)
    mlarray_xr.to_mla(values, name, metadata=Metadata(spatial=spatial), patch=4, mode="w")
    return name


def loaded(name: Any, **options: Any) -> Any:
    return LoadImage(reader=MlaReader(**options), dtype=None)(name)


def world_ramp(shape: tuple[int, ...], affine: NDArray[Any]) -> NDArray[np.float64]:
    """Return a volume whose value is x + 3 y + 7 z of the world position."""
    at = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    ramp: NDArray[np.float64] = nib.affines.apply_affine(affine, at) @ np.array([1.0, 3.0, 7.0])
    return ramp


def assert_in_place(image: MetaTensor, *, border: int = 0, atol: float = 1e-6) -> None:
    """Make sure that each voxel of a world ramp lies where its affine says."""
    expected = world_ramp(tuple(image.shape[1:]), image.affine.numpy())
    inner = (slice(border, -border or None),) * expected.ndim
    np.testing.assert_allclose(image[0].numpy()[inner], expected[inner], atol=atol)


def assert_same_image(found: Any, wanted: Any, atol: float = 0) -> None:
    assert isinstance(found, MetaTensor)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=atol)
    np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-6)
    assert found.meta["space"] == wanted.meta["space"] == "RAS"


# --- the reader


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_converted_file_loads_and_reorients_like_the_nifti_file(
    folder: Path, affine: NDArray[Any]
) -> None:
    write_pair(affine)
    ours, theirs = LoadImage(reader=MlaReader())("a.mla"), LoadImage()("a.nii")
    assert_same_image(ours, theirs)
    for key in ("original_affine", "spatial_shape", "original_channel_dim"):
        np.testing.assert_array_equal(ours.meta[key], theirs.meta[key])
    assert ours.meta["filename_or_obj"] == "a.mla"

    steps = [
        EnsureChannelFirstd("image"),
        Orientationd("image", axcodes="RAS"),
        Spacingd("image", pixdim=(1.5, 1.5, 1.5)),
    ]
    reader: Any = MlaReader()  # MONAI takes instances, too, and types classes only
    load = LoadImaged("image", reader=reader)
    ours = Compose([load, steps[0], steps[1]])({"image": "a.mla"})["image"]
    theirs = Compose([LoadImaged("image"), steps[0], steps[1]])({"image": "a.nii"})["image"]
    assert nib.aff2axcodes(ours.affine.numpy()) == ("R", "A", "S")
    assert_same_image(ours, theirs)
    ours = Compose([load, *steps])({"image": "a.mla"})["image"]
    theirs = Compose([LoadImaged("image"), *steps])({"image": "a.nii"})["image"]
    assert_same_image(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 9, 3)], ids=["plane", "time series"])
def test_other_nifti_files_load_alike(folder: Path, shape: tuple[int, ...]) -> None:
    write_pair(ALIGNED, shape)
    load = LoadImage(reader=MlaReader(), ensure_channel_first=True)
    ours, theirs = load("a.mla"), LoadImage(ensure_channel_first=True)("a.nii")
    assert_same_image(ours, theirs)
    assert tuple(ours.meta["spatial_shape"]) == shape[:3]


def test_reorienting_is_undone_by_invertd(folder: Path) -> None:
    write_pair(FLIPPED)
    steps = Compose(
        [LoadMlad("image", ensure_channel_first=True), Orientationd("image", axcodes="RAS")]
    )
    turned = steps({"image": "a.mla"})
    assert tuple(turned["image"].shape[1:]) != SHAPE
    back = Invertd("image", transform=steps, orig_keys="image")(turned)["image"]
    np.testing.assert_array_equal(back[0].numpy(), voxels())
    np.testing.assert_allclose(back.affine, FLIPPED)


def test_files_in_lps_and_reversed_order_load_in_ras_untransposed(folder: Path) -> None:
    write_pair(OBLIQUE)
    lps = (TO_RAS @ OBLIQUE)[:, [2, 1, 0, 3]]
    write("b.mla", voxels().transpose(2, 1, 0), labels=XYZ[::-1], affine=lps, system="LPS+")
    ours = LoadImage(reader=MlaReader())("b.mla")
    np.testing.assert_array_equal(ours.numpy(), voxels().transpose(2, 1, 0))
    np.testing.assert_allclose(ours.affine, OBLIQUE[:, [2, 1, 0, 3]])
    to_ras = Orientation("RAS")
    assert_same_image(to_ras(ours[None]), to_ras(LoadImage()("a.nii")[None]))


@pytest.mark.parametrize(("system", "space"), [("scanner", "scanner"), (None, "unknown")])
def test_an_unknown_world_is_not_called_ras(folder: Path, system: str | None, space: str) -> None:
    write("a.mla", voxels(), system=system)
    image = loaded("a.mla")
    np.testing.assert_array_equal(image.affine, ALIGNED)
    assert image.meta["space"] == space
    with pytest.raises(ValueError, match=space):
        Orientation("RAS")(image[None])


@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_what_an_unknown_world_is_can_be_stated(folder: Path, space: str) -> None:
    write("a.mla", voxels(), system=None)
    image = loaded("a.mla", assumed_space=space)
    np.testing.assert_array_equal(image.affine, TO_RAS @ ALIGNED if space == "LPS" else ALIGNED)
    assert image.meta["space"] == "RAS"
    write("b.mla", voxels(), system="LPS")
    write("plane.mla", voxels((12, 10)), labels=XYZ[:2], affine=np.eye(3), system=None)
    assert loaded("plane.mla", assumed_space=space).meta["space"] == space
    known = loaded("b.mla", assumed_space="RAS")
    np.testing.assert_array_equal(known.affine, TO_RAS @ ALIGNED)


def test_slope_and_intercept_are_applied_on_request(folder: Path) -> None:
    image = nib.Nifti1Image(np.arange(60.0).reshape(3, 4, 5), ALIGNED)
    image.set_data_dtype(np.int16)
    image.header.set_slope_inter(0.5, -7)
    nib.save(image, "a.nii")
    mlarray_xr.convert("a.nii", "a.mla")
    theirs = LoadImage()("a.nii")
    assert_same_image(LoadImage(reader=MlaReader(values="scaled"))("a.mla"), theirs)
    np.testing.assert_array_equal(loaded("a.mla", values="scaled", roi={"x": (1, 3)}), theirs[1:3])
    assert loaded("a.mla").dtype == torch.int16
    stored: Any = nib.load("a.nii")
    np.testing.assert_array_equal(loaded("a.mla"), stored.dataobj.get_unscaled())
    write("many.mla", voxels((*SHAPE, 2)), labels=(*XYZ, "channel"))
    plain = loaded("many.mla", values="scaled")  # which states none
    np.testing.assert_array_equal(plain.numpy(), voxels((*SHAPE, 2)))


@pytest.mark.parametrize(
    ("stored", "read"), [(">i2", torch.int16), ("<u2", torch.int32), ("u1", torch.uint8)]
)
def test_the_stored_type_is_kept_unless_a_cast_is_asked_for(
    folder: Path, stored: str, read: torch.dtype
) -> None:
    write("a.mla", voxels(dtype=stored))
    assert loaded("a.mla").dtype == read  # MONAI itself widens uint16
    assert LoadImage(reader=MlaReader())("a.mla").dtype == torch.float32
    np.testing.assert_array_equal(loaded("a.mla").numpy(), voxels())


# --- channels


@pytest.mark.parametrize(
    ("shape", "labels", "channel"),
    [
        ((2, *SHAPE), ("channel", *XYZ), 0),
        ((*SHAPE, 2), (*XYZ, "components"), 3),
        ((*SHAPE, 2), (*XYZ, "temporal"), 3),
        ((2, 3, *SHAPE), ("temporal", "channel", *XYZ), 1),
    ],
)
def test_the_channel_axis_is_named(
    folder: Path, shape: tuple[int, ...], labels: tuple[str, ...], channel: int
) -> None:
    write("a.mla", voxels(shape), labels=labels)
    image = loaded("a.mla")
    np.testing.assert_array_equal(image.numpy(), voxels(shape))
    assert image.meta["original_channel_dim"] == channel
    assert tuple(image.meta["spatial_shape"]) == SHAPE
    np.testing.assert_array_equal(image.affine, ALIGNED)
    first = LoadImage(reader=MlaReader(), ensure_channel_first=True)("a.mla")
    np.testing.assert_array_equal(first.numpy(), np.moveaxis(voxels(shape), channel, 0))


def test_the_channel_axis_can_be_stated(folder: Path) -> None:
    blosc2.asarray(voxels((2, *SHAPE)), urlpath="case.b2nd")  # as nnU-Net writes
    image = loaded("case.b2nd", channel_dim=0)
    assert image.meta["original_channel_dim"] == 0
    assert tuple(image.meta["spatial_shape"]) == SHAPE
    np.testing.assert_array_equal(image.affine, np.eye(4))
    write("film.mla", voxels((*SHAPE, 2)), labels=(*XYZ, "temporal"))
    film = LoadImage(reader=MlaReader(channel_dim="no_channel"), ensure_channel_first=True)
    assert film("film.mla").shape == (1, *SHAPE, 2)
    with pytest.raises(RuntimeError, match="channel='energy' is no axis"):
        loaded("film.mla", channel_dim="energy")


def test_several_files_become_channels(folder: Path) -> None:
    for name in ("t1", "t2"):
        write(f"{name}.mla", voxels() + len(name), affine=OBLIQUE)
        nib.save(nib.Nifti1Image(voxels() + len(name), OBLIQUE), f"{name}.nii")
    ours = LoadImage(reader=MlaReader())(["t1.mla", "t2.mla"])
    theirs = LoadImage()(["t1.nii", "t2.nii"])
    assert_same_image(ours, theirs)
    assert ours.meta["original_channel_dim"] == theirs.meta["original_channel_dim"] == 0

    write("four.mla", voxels((*SHAPE, 2)), labels=(*XYZ, "channel"))
    both = loaded(["four.mla", "four.mla"], roi={"channel": (1, 2)})
    assert both.meta["original_channel_dim"] == 3
    np.testing.assert_array_equal(both.numpy(), voxels((*SHAPE, 2))[..., [1, 1]])


def test_files_on_other_grids_are_no_channels(folder: Path) -> None:
    write("a.mla", voxels())
    write("moved.mla", voxels(), affine=ALIGNED + np.eye(4, k=3))
    write("small.mla", voxels((12, 10, 8)))
    write("elsewhere.mla", voxels(), system="scanner")
    write("many.mla", voxels((*SHAPE, 2)), labels=(*XYZ, "channel"))
    for name, what in (
        ("moved.mla", "affine"),
        ("small.mla", "spatial_shape"),
        ("elsewhere.mla", "space"),
        ("many.mla", "original_channel_dim"),
    ):
        with pytest.raises(GeometryError, match=rf"{name} cannot be a channel beside .*: {what}"):
            loaded(["a.mla", name])


# --- regions of interest


@pytest.mark.parametrize(
    ("roi", "key"),
    [
        ({"z": (2, 5)}, np.s_[:, :, :, 2:5]),
        ({"x": slice(3, None), "channel": (1, 2)}, np.s_[1:2, 3:]),
        ([(1, 4), None, slice(2, 3)], np.s_[:, 1:4, :, 2:3]),
        (np.array([(1, 4), (0, 10), (2, 3)]), np.s_[:, 1:4, :, 2:3]),
        ([(1, 2), (0, 12), (5, 6), (0, 9)], np.s_[1:2, :, 5:6]),
    ],
)
def test_regions_hold_the_voxels_and_the_affine_of_the_region(
    folder: Path, roi: Any, key: Any
) -> None:
    values = voxels((2, *SHAPE))
    write("a.mla", values, labels=("channel", *XYZ), affine=OBLIQUE)
    image = loaded("a.mla", roi=roi)
    np.testing.assert_array_equal(image.numpy(), values[key])
    starts = image.meta["location"]
    np.testing.assert_allclose(image.affine[:, 3], OBLIQUE @ [*starts, 1])
    np.testing.assert_array_equal(image.affine[:, :3], OBLIQUE[:, :3])
    np.testing.assert_array_equal(image.meta["original_affine"], image.affine)
    assert tuple(image.meta["spatial_shape"]) == tuple(image.shape[1:])


def test_only_the_region_is_read_and_of_a_url_fetched_and_decoded(folder: Path) -> None:
    values = voxels((64, 64, 64))
    mlarray_xr.to_mla(values, "a.mla", chunks=(32, 32, 32), blocks=(8, 8, 8))
    reader = MlaReader(roi=[(0, 8), (8, 16), (20, 28)])  # the third axis straddles two blocks
    volume = reader.read("a.mla")
    assert not isinstance(volume, list)
    assert volume.array.stats().bytes_useful == 0
    region, _ = reader.get_data(volume)
    np.testing.assert_array_equal(region, values[:8, 8:16, 20:28])
    assert volume.array.stats().bytes_useful == region.nbytes

    with (
        RangeServer({"a.mla": (folder / "a.mla").read_bytes()}) as server,
        mlarray_xr.measure() as measured,
    ):
        load = LoadImage(reader=reader, dtype=None, expanduser=False)
        remote = load(server.url("a.mla"))
        sample = LoadMlad("image")({"image": server.url("a.mla"), "roi": reader.roi})
    np.testing.assert_array_equal(remote.numpy(), region)
    np.testing.assert_array_equal(sample["image"].numpy(), region)
    assert measured.stats.blocks_decoded == 2 * 2


def test_a_saved_region_lies_where_it_was(folder: Path) -> None:
    """The file that MONAI writes of a region is the oracle of its affine."""
    lps = TO_RAS @ OBLIQUE
    write("a.mla", world_ramp(SHAPE, OBLIQUE), affine=lps, system="LPS")
    load = LoadImage(
        reader=MlaReader(roi={"y": (3, 8)}), dtype=np.float64, ensure_channel_first=True
    )
    save = SaveImage("out", separate_folder=False, output_dtype=np.float64, print_log=False)
    save(load("a.mla"))
    written: Any = nib.load("out/a_trans.nii.gz")
    assert written.shape == (12, 5, 9)
    np.testing.assert_allclose(
        written.get_fdata(), world_ramp(written.shape, written.affine), atol=1e-4
    )


@pytest.mark.parametrize(
    ("roi", "error", "message"),
    [
        ({"x": (5, 13)}, IndexError, "does not fit the extent 12"),
        ([(-1, 3), None, None], IndexError, "-1:3 on axis 0"),
        ({"x": (3, 3)}, ValueError, "holds no voxel"),
        ({"time": (0, 1)}, ValueError, r"names \['time'\]"),
        ({"x": slice(0, 8, 2)}, ValueError, "step 2"),
        ([(0, 1)], ValueError, "1 entries for the dimensions"),
    ],
)
def test_regions_that_cannot_be_read_are_refused(
    folder: Path, roi: Any, error: type[Exception], message: str
) -> None:
    write("a.mla", voxels())
    with pytest.raises(error, match=message):
        loaded("a.mla", roi=roi)


# --- among MONAI's own readers


def test_a_registered_reader_serves_its_own_suffixes(folder: Path) -> None:
    write_pair(ALIGNED)
    load = LoadImaged(["ours", "theirs"])
    load.register(MlaReader())
    both = load({"ours": "a.mla", "theirs": "a.nii"})
    assert_same_image(both["ours"], both["theirs"])
    assert "location" in both["ours"].meta
    assert "location" not in both["theirs"].meta


@pytest.mark.parametrize(
    ("names", "fits"),
    [
        ("a.mla", True),
        ("b/A.MLA", True),
        (["a.b2nd", "b.mb2nd"], True),
        (["a.mla", "a.nii.gz"], False),
        ("a.mla.nii.gz", False),
        ("mla", False),
    ],
)
def test_suffixes(names: Any, fits: bool) -> None:
    assert MlaReader().verify_suffix(names) is fits


@pytest.mark.parametrize("reader", [MlaReader, "mlarray_xr.ml.monai.MlaReader"])
def test_a_reader_can_be_named_with_its_options(folder: Path, reader: Any) -> None:
    write("a.mla", voxels())
    image = LoadImage(reader=reader, roi={"z": (0, 2)})("a.mla")
    assert tuple(image.shape) == (12, 10, 2)


def test_a_missing_file_and_wrong_options_are_errors(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        MlaReader().read("absent.mla")
    with pytest.raises(TypeError, match="level"):
        MlaReader().read("a.mla", level=2)
    with pytest.raises(ValueError, match="values='hu'"):
        MlaReader(values="hu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="assumed_space='RAI'"):
        MlaReader(assumed_space="RAI")  # type: ignore[arg-type]
    write("empty.mla", np.zeros((0, 4, 4), "u1"))
    with pytest.raises(LayoutError, match="no patch"):
        MlaReader().read("empty.mla")


def test_readers_pickle(folder: Path) -> None:
    reader = MlaReader(roi={"x": (0, 2)}, channel_dim=0, threads=1)
    assert pickle.loads(pickle.dumps(reader)) == reader


# --- a region per sample


def test_each_sample_states_its_region(folder: Path) -> None:
    write("image.mla", voxels(), affine=FLIPPED)
    write("label.mla", voxels(dtype="u1"), affine=FLIPPED)
    load = LoadMlad(["image", "label"], dtype=None, reader=MlaReader(threads=1))
    files = {"image": "image.mla", "label": "label.mla"}
    for roi in ({"x": (2, 9)}, [(0, 4), (4, 8), (5, 9)]):
        sample = load({**files, "roi": roi, "id": 7})
        for key in files:
            wanted = loaded(files[key], roi=roi)
            assert_same_image(sample[key], wanted)
            assert sample[key].meta.keys() == wanted.meta.keys()
        assert sample["id"] == 7
    assert tuple(load(files)["image"].shape) == SHAPE
    front = LoadMlad("image", ensure_channel_first=True)({"image": ["image.mla", "image.mla"]})
    assert tuple(front["image"].shape) == (2, *SHAPE)
    assert front["image"].dtype == torch.float32
    with pytest.raises(KeyError, match="label"):
        load({"image": "image.mla"})
    assert LoadMlad("label", allow_missing_keys=True)({"id": 7}) == {"id": 7}


@pytest.fixture
def untracked() -> Iterator[None]:
    set_track_meta(False)
    yield
    set_track_meta(True)


def test_without_tracking_tensors_are_plain(folder: Path, untracked: None) -> None:
    write("a.mla", voxels())
    image = LoadMlad("image")({"image": "a.mla"})["image"]
    assert type(image) is torch.Tensor


def test_pipelines_with_the_reader_run_in_workers(folder: Path) -> None:
    for number in range(4):
        write(f"{number}.mla", voxels() + number, affine=FLIPPED)
    steps = Compose(
        [
            LoadMlad("image", ensure_channel_first=True),
            Orientationd("image", axcodes="RAS"),
            RandSpatialCropd("image", roi_size=(4, 4, 4), random_size=False),
        ]
    )
    files = [{"image": f"{number}.mla", "roi": {"x": (0, 6)}} for number in range(4)]
    LoadMlad("image")(files[0])  # a parent that has read before it forks
    loader = DataLoader(Dataset(files, steps), batch_size=2, num_workers=2, timeout=60)
    batches = [batch["image"] for batch in loader]
    assert [tuple(batch.shape) for batch in batches] == [(2, 1, 4, 4, 4)] * 2
    assert batches[0].affine.shape == (2, 4, 4)
    assert batches[1].meta["filename_or_obj"] == ["2.mla", "3.mla"]


# --- samples of our datasets


def ramp_dataset(transform: Any, sampling: Any = None, affine: Any = OBLIQUE) -> PatchDataset:
    """Return patches of a world ramp, and of its signs as mask."""
    ramp = world_ramp((24, 22, 20), affine)
    write("ramp.mla", ramp, affine=TO_RAS @ affine, system="LPS")
    write("sign.mla", (ramp > 40).astype("u2"), affine=TO_RAS @ affine, system="LPS")
    return PatchDataset(
        {"ramp": {"ct": "ramp.mla", "organ": "sign.mla"}},
        sampling=sampling or RandomPatches((8, 10, 12), patches_per_volume=4),
        image="ct",
        mask="organ",
        transform=transform,
        seed=3,
    )


def test_patches_become_meta_tensors(folder: Path) -> None:
    plain = ramp_dataset(None)
    sample, turned = plain[1], AsMetaTensord(["image", "mask"])(plain[1])
    assert turned.keys() == sample.keys() - {"affine", "axes", "coord_system"}
    image, mask = turned["image"], turned["mask"]
    assert isinstance(image, MetaTensor)
    assert isinstance(mask, MetaTensor)
    np.testing.assert_array_equal(image.numpy(), sample["image"].numpy())
    np.testing.assert_array_equal(mask.numpy(), sample["mask"].numpy())
    assert (image.dtype, mask.dtype) == (torch.float64, torch.int32)
    np.testing.assert_array_equal(image.affine, sample["affine"])
    assert_in_place(image)
    assert image.meta["original_channel_dim"] == 0
    assert tuple(image.meta["spatial_shape"]) == (8, 10, 12)
    assert image.meta["location"].tolist() == sample["box"][:, 0].tolist()
    assert (image.meta["filename_or_obj"], image.meta["space"]) == ("ramp", "RAS")
    image.affine[0, 3] += 1
    assert mask.affine[0, 3] == sample["affine"][0, 3]
    with pytest.raises(KeyError, match="mask"):
        AsMetaTensord(["image", "mask"])({k: v for k, v in sample.items() if k != "mask"})


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_dict_transforms_keep_patches_where_they_are(folder: Path, affine: NDArray[Any]) -> None:
    keys = ["image", "mask"]
    steps = Compose(
        [
            AsMetaTensord(keys),
            Orientationd(keys, axcodes="RAS"),
            RandFlipd(keys, prob=1, spatial_axis=1),
            RandRotate90d(keys, prob=1, spatial_axes=(0, 2)),
        ]
    )
    for sample in ramp_dataset(steps, affine=affine):
        assert_in_place(sample["image"])
        np.testing.assert_array_equal(sample["mask"], sample["image"] > 40)
    resampled = Compose([steps, Spacingd(keys, pixdim=(1, 1, 1), mode=("bilinear", "nearest"))])
    for sample in ramp_dataset(resampled, affine=affine):
        assert_in_place(sample["image"], border=3, atol=1e-3)
        assert sample["mask"].shape == sample["image"].shape


@pytest.mark.parametrize("dim", ["x", "y", "z"])
def test_a_slice_has_the_affine_of_its_plane(folder: Path, dim: str) -> None:
    dataset = ramp_dataset(AsMetaTensord("image"), sampling=Slices2D(dim), affine=FLIPPED)
    image = dataset[5]["image"]
    assert image.ndim == 3
    assert tuple(image.affine.shape) == (3, 3)
    gone = "xyz".index(dim)
    row = int(np.abs(FLIPPED[:3, gone]).argmax())
    expected = np.delete(np.delete(FLIPPED, row, axis=0), gone, axis=1)
    np.testing.assert_array_equal(image.affine, expected)
    resampled: Any = Spacingd("image", pixdim=(0.5, 0.5))({"image": image})["image"]
    np.testing.assert_allclose(resampled.pixdim, [0.5, 0.5])


def test_the_axis_that_a_slice_lacks_is_not_guessed(folder: Path) -> None:
    coords = {"z": [5.0], "y": 2.0 * np.arange(4), "x": 3.0 * np.arange(5)}
    flat = xr.DataArray(np.zeros((1, 4, 5), "i2"), dims=("z", "y", "x"), coords=coords)
    mlarray_xr.to_mla(flat.assign_attrs(coord_system="RAS"), "flat.mla")
    dataset = PatchDataset(["flat.mla"], sampling=Slices2D("y"), transform=AsMetaTensord("image"))
    image = dataset[2]["image"]
    assert tuple(image.shape) == (1, 1, 5)
    assert [row[-1] for row in image.affine.tolist()[:-1]] == [0.0, 5.0]
    assert image.affine[0, 1] == 3


def test_axes_that_are_not_spatial_are_refused(folder: Path) -> None:
    series = xr.DataArray(np.zeros((3, 4, 5, 6), "i2"), dims=("time", "z", "y", "x"))
    mlarray_xr.to_mla(series, "series.mla")
    to_meta = AsMetaTensord("image")
    with pytest.raises(ConversionError, match="not spatial"):
        PatchDataset(["series.mla"], sampling=RandomPatches(2), transform=to_meta)[0]
    frames = PatchDataset(["series.mla"], sampling=Slices2D("time"), transform=to_meta)
    assert tuple(frames[1]["image"].affine.shape) == (4, 4)


@pytest.mark.parametrize("size", [8, 40])
@pytest.mark.parametrize("n_workers", [0, 1])
def test_meta_tensors_stay_what_they_are(folder: Path, size: int, n_workers: int) -> None:
    mlarray_xr.to_mla(np.zeros((40, 40, 40), "i2"), "zeros.mla")
    loader = create_training_dataloader(
        ["zeros.mla"],
        patch_size=size,
        patches_per_volume=4,
        num_workers=n_workers,
        transform=AsMetaTensord("image"),
    )
    assert isinstance(next(iter(loader))["image"], MetaTensor)


@pytest.mark.parametrize("collate", [list_data_collate, pad_list_data_collate])
@pytest.mark.parametrize("n_workers", [0, 2])
def test_loaders_collate_transformed_patches(folder: Path, n_workers: int, collate: Any) -> None:
    ramp_dataset(None)
    keys = ["image", "mask"]
    loader = create_segmentation_dataloader(
        {"ramp": {"ct": "ramp.mla", "organ": "sign.mla"}},
        image="ct",
        mask="organ",
        patch_size=(8, 10, 12),
        patches_per_volume=4,
        batch_size=2,
        num_workers=n_workers,
        transform=Compose([AsMetaTensord(keys), RandGaussianNoised("image", prob=1)]),
        collate_fn=collate,
    )
    batches = list(loader)
    assert len(batches) == 2
    for batch in batches:
        assert tuple(batch["image"].shape) == (2, 1, 8, 10, 12)
        assert batch["mask"].affine.shape == (2, 4, 4)
        assert batch["subject"] == ["ramp", "ramp"]


def test_workers_of_monai_loaders_draw_other_random_numbers(folder: Path) -> None:
    write("zeros.mla", np.zeros(SHAPE, "f4"))
    dataset = PatchDataset(
        ["zeros.mla"],
        sampling=RandomPatches(4, patches_per_volume=4),
        transform=Compose([AsMetaTensord("image"), RandGaussianNoised("image", prob=1)]),
    )
    noise = [batch["image"] for batch in DataLoader(dataset, batch_size=2, num_workers=2)]
    assert len(torch.unique(torch.cat(noise).flatten(1), dim=0)) == 4


def test_patches_of_different_shapes_are_padded_by_monai(folder: Path) -> None:
    write("a.mla", voxels((8, 8, 8)))
    write("b.mla", voxels((8, 6, 8)))
    dataset = PatchDataset(
        ["a.mla", "b.mla"], sampling=GridPatches({"x": 8}), transform=AsMetaTensord("image")
    )
    batch = pad_list_data_collate([dataset[0], dataset[1]])
    assert tuple(batch["image"].shape) == (2, 1, 8, 8, 8)


# --- without MONAI, and all together


def test_without_monai_the_error_names_the_extra() -> None:
    code = (
        "import sys; sys.modules['monai'] = None\n"
        "import mlarray_xr.errors\n"
        "try: import mlarray_xr.ml.monai\n"
        "except mlarray_xr.errors.MissingDependencyError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install mlarray-xr[monai]" in done.stdout
