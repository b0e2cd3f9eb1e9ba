"""TorchIO on `.mla` files, against TorchIO on NIfTI files and on tensors in memory."""

from __future__ import annotations

import copy
import importlib
import pickle
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.torchio import (
    FileTensor,
    Foreground,
    ForegroundSampler,
    open_image,
    read_mla,
    subjects_dataset,
)
from mlarray_xr.ml.torchio_volume import ImageVolume
from tests.range_server import RangeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (40, 36, 30)
ALIGNED = np.array([[2, 0, 0, -10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]], float)
FLIPPED = np.array([[-1, 0, 0, 90], [0, 0, 1.5, -126], [0, 2, 0, -72], [0, 0, 0, 1]], float)
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.2, -0.3, 0.4) @ np.diag([1.5, 2, 2.5]), [5, -7, 11]
)
AFFINES = {"aligned": ALIGNED, "flipped": FLIPPED, "oblique": OBLIQUE}


def voxels(shape: tuple[int, ...] = SHAPE, dtype: str = "int16") -> NDArray[Any]:
    rng = np.random.default_rng(7)
    return rng.integers(0, 100, shape).astype(dtype)


def blobs() -> NDArray[np.uint8]:
    """Return a mask of two labels: a ball in the middle, one at the border."""
    i, j, k = np.indices(SHAPE)
    ball = (i - 20) ** 2 + (j - 18) ** 2 + (k - 15) ** 2 < 40
    corner = i + j + k < 6
    return np.asarray(ball + 2 * corner, np.uint8)


def save_nifti(
    path: Path,
    values: NDArray[Any],
    affine: NDArray[np.float64] = ALIGNED,
    *,
    scaling: tuple[float, float] | None = None,
) -> Path:
    image = nib.Nifti1Image(values, affine)
    if values.ndim == 5:
        image.header.set_intent("vector")  # else ITK takes the fifth axis for another dimension
    nib.save(image, path)
    if scaling is not None:  # in the header alone: nibabel would change the voxels
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, *scaling)
        path.write_bytes(content)
    return path


def converted(nifti: Path) -> Path:
    target = nifti.with_suffix(".mla")
    mlarray_xr.convert(nifti, target, chunks=16, blocks=8, mode="w")
    return target


def location(patch: tio.Subject) -> list[int]:
    """Return first and last indices of a patch, as TorchIO notes them."""
    found = patch[tio.LOCATION]
    assert isinstance(found, torch.Tensor)
    return found.tolist()


def read_bytes(image: tio.Image) -> int:
    """Return how many bytes were read of the file of an image, by this process."""
    return tensor_of(image).volume.volume.array.stats().bytes_useful


def tensor_of(image: tio.Image) -> FileTensor:
    assert isinstance(image.data, FileTensor)
    return image.data


def is_read(subject: tio.Subject, name: str) -> bool:
    """Tell whether an image of a subject was read whole."""
    return tensor_of(subject.get_image(name)).is_read


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    nifti = {"t1": voxels(), "seg": blobs()}
    return {
        name: converted(save_nifti(tmp_path / f"{name}.nii", values, OBLIQUE))
        for name, values in nifti.items()
    }


@pytest.fixture
def subject(paths: dict[str, Path]) -> tio.Subject:
    return tio.Subject(
        t1=open_image(paths["t1"]), seg=open_image(paths["seg"], kind="label"), age=45
    )


@pytest.fixture
def in_memory() -> tio.Subject:
    return tio.Subject(
        t1=tio.ScalarImage(tensor=voxels()[None], affine=OBLIQUE),
        seg=tio.LabelMap(tensor=blobs()[None], affine=OBLIQUE),
        age=45,
    )


# The same image as TorchIO reads from NIfTI


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_an_image_is_the_one_that_torchio_reads_from_the_source(
    tmp_path: Path, affine: NDArray[np.float64], dtype: str
) -> None:
    nifti = save_nifti(tmp_path / "a.nii", voxels(dtype=dtype), affine)
    expected, image = tio.ScalarImage(nifti), open_image(converted(nifti))
    assert isinstance(image, tio.ScalarImage)
    assert image.shape == expected.shape
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-4)
    assert image.orientation == expected.orientation
    assert image.data.dtype == expected.data.dtype
    assert torch.equal(image.data, expected.data)
    canonical, wanted = tio.ToCanonical()(image), tio.ToCanonical()(expected)
    assert torch.equal(canonical.data, wanted.data)
    np.testing.assert_allclose(canonical.affine, wanted.affine, atol=1e-4)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("order", ["zyx", "yxz"])
def test_the_order_of_the_axes_is_kept_and_the_affine_says_it(
    tmp_path: Path, affine: NDArray[np.float64], order: str
) -> None:
    nifti = save_nifti(tmp_path / "a.nii", voxels(), affine)
    array = mlarray_xr.open_mla(converted(nifti)).transpose(*order)
    mlarray_xr.to_mla(array, tmp_path / "b.mla", chunks=16)
    image = open_image(tmp_path / "b.mla")
    assert image.spatial_shape == array.shape
    canonical, wanted = tio.ToCanonical()(image), tio.ToCanonical()(tio.ScalarImage(nifti))
    assert torch.equal(canonical.data, wanted.data)
    np.testing.assert_allclose(canonical.affine, wanted.affine, atol=1e-4)


def test_files_in_lps_have_an_affine_in_ras(tmp_path: Path) -> None:
    coords = {dim: 2.0 * np.arange(n) + 5 for dim, n in zip("zyx", (4, 5, 6), strict=True)}
    array = xr.DataArray(voxels((4, 5, 6)), dims=("z", "y", "x"), coords=coords)
    mlarray_xr.to_mla(array.assign_attrs(coord_system="LPS"), tmp_path / "lps.mla")
    image = open_image(tmp_path / "lps.mla")
    assert image.orientation_str == "SPL"
    assert image.origin == (-5.0, -5.0, 5.0)
    assert image.spacing == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("shape", [(12, 10, 8, 5), (12, 10, 8, 1, 3)], ids=["4-D", "5-D"])
def test_time_and_components_are_channels_as_torchio_has_them(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    nifti = save_nifti(tmp_path / "a.nii", voxels(shape, "float32"))
    expected = tio.ScalarImage(nifti)
    expected.load()
    path = converted(nifti)
    if len(shape) == 5:
        mlarray_xr.to_mla(mlarray_xr.open_mla(path).isel(time=0), tmp_path / "b.mla")
        path = tmp_path / "b.mla"
    image = open_image(path)
    patch = image[2:6, 3:9, 1:2]
    assert torch.equal(patch.data, expected[2:6, 3:9, 1:2].data)
    assert read_bytes(image) == patch.data.nbytes
    assert torch.equal(image.data, expected.data)
    np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5)


def test_the_channel_axis_may_be_anywhere_and_may_be_named(tmp_path: Path) -> None:
    values = voxels((6, 3, 7, 8))
    mlarray_xr.to_mla(xr.DataArray(values, dims=("z", "energy", "y", "x")), tmp_path / "a.mla")
    mlarray_xr.to_mla(values, tmp_path / "b.mla")
    for image in (
        open_image(tmp_path / "a.mla"),
        open_image(tmp_path / "a.mla", channel="energy"),
        open_image(tmp_path / "b.mla", channel=1),
    ):
        assert image.shape == (3, 6, 7, 8)
        assert np.array_equal(image[1:3, :, 2:3].numpy(), values.swapaxes(0, 1)[:, 1:3, :, 2:3])


def test_images_of_two_dimensions_have_a_third_of_one_voxel(tmp_path: Path) -> None:
    nifti = save_nifti(tmp_path / "volume.nii", voxels(), OBLIQUE)
    whole = mlarray_xr.open_mla(converted(nifti))
    mlarray_xr.to_mla(whole.isel(z=7), tmp_path / "plane.mla")
    plane, volume = open_image(tmp_path / "plane.mla"), tio.ScalarImage(nifti)
    expected = volume[:, :, 7:8]
    assert plane.is_2d()
    assert torch.equal(plane.data, expected.data)
    np.testing.assert_allclose(plane.affine, expected.affine, atol=1e-4)
    mlarray_xr.to_mla(voxels((9, 8)), tmp_path / "flat.mla")
    flat = tio.Subject(image=open_image(tmp_path / "flat.mla"))
    (patch,) = tio.UniformSampler((4, 4, 1))(flat, num_patches=1)
    assert patch.image.shape == (1, 4, 4, 1)
    assert np.array_equal(flat.image.affine, np.eye(4))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
def test_scaled_values_are_those_that_torchio_reads(tmp_path: Path, dtype: str) -> None:
    nifti = save_nifti(tmp_path / "a.nii", voxels(dtype=dtype), scaling=(0.5, -1024))
    expected = tio.ScalarImage(nifti)
    path = converted(nifti)
    image, stored = open_image(path, values="scaled"), open_image(path)
    assert image.data.dtype == expected.data.dtype
    assert expected.data.is_floating_point()
    patch = image[3:9, 4:8, 2:12].data
    assert patch.dtype == expected.data.dtype
    torch.testing.assert_close(patch, expected[3:9, 4:8, 2:12].data)
    assert not tensor_of(image).is_read
    torch.testing.assert_close(image.data.clone(), expected.data)
    assert np.array_equal(stored.numpy()[0], voxels(dtype=dtype))


def test_scaling_may_vary_along_an_axis(tmp_path: Path) -> None:
    values = voxels((5, 6, 7))
    slope, intercept = np.arange(1.0, 6), -np.arange(5.0)
    array = xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords={"rescale_slope": ("z", slope), "rescale_intercept": ("z", intercept)},
    )
    mlarray_xr.to_mla(array, tmp_path / "a.mla")
    image = open_image(tmp_path / "a.mla", values="scaled")
    expected = values * slope[:, None, None] + intercept[:, None, None]
    assert np.array_equal(image[1:4, :, 2:5].numpy()[0], expected[1:4, :, 2:5].astype("float32"))


def test_files_without_a_scaling_keep_their_type(tmp_path: Path) -> None:
    mlarray_xr.to_mla(voxels((4, 5, 6)), tmp_path / "a.mla")
    assert open_image(tmp_path / "a.mla", values="scaled").data.dtype == torch.int16


def test_a_slope_that_is_no_number_is_refused(tmp_path: Path) -> None:
    array = xr.DataArray(
        voxels((4, 5)), dims=("y", "x"), attrs={"scl_slope": "steep", "scl_inter": 0}
    )
    mlarray_xr.to_mla(array, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match=r"(?s)a\.mla.*steep.*values='stored'"):
        open_image(tmp_path / "a.mla", values="scaled")


def test_booleans_are_whole_numbers(tmp_path: Path) -> None:
    mlarray_xr.to_mla(blobs() > 0, tmp_path / "a.mla")
    image = open_image(tmp_path / "a.mla", kind="label")
    assert image.data.dtype == torch.uint8
    assert isinstance(image, tio.LabelMap)
    assert image.count_nonzero() == np.count_nonzero(blobs())


def test_the_file_says_what_kind_of_image_it_is(tmp_path: Path) -> None:
    metadata = mlarray_xr.Metadata(is_seg=True)
    mlarray_xr.to_mla(blobs(), tmp_path / "seg.mla", metadata=metadata)
    assert type(open_image(tmp_path / "seg.mla")) is tio.LabelMap
    assert type(open_image(tmp_path / "seg.mla", kind="intensity")) is tio.ScalarImage
    assert open_image(tmp_path / "seg.mla", kind="sampling_map").type == tio.SAMPLING_MAP


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 3, 4, 5, 6), "int16"), r"dim_0.*three spatial axes.*channel="),
        (np.zeros((2, 3, 4, 5), "int16"), r"dim_0.*three spatial axes.*channel="),
        (np.zeros((2, 3), "M8[s]"), r"torch has no elements of type datetime64"),
    ],
)
def test_what_torchio_cannot_hold_is_refused(
    tmp_path: Path, values: NDArray[Any], words: str
) -> None:
    mlarray_xr.to_mla(values, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match=rf"(?s)a\.mla.*{words}"):
        open_image(tmp_path / "a.mla")


@pytest.mark.parametrize("wrong", [{"kind": "mask"}, {"values": "real"}])
def test_choices_are_checked(paths: dict[str, Path], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose one of"):
        open_image(paths["t1"], **wrong)


# What is read


def test_nothing_is_read_to_describe_an_image(paths: dict[str, Path]) -> None:
    image = open_image(paths["t1"])
    assert image.shape == (1, *SHAPE)
    assert image.spatial_shape == SHAPE
    assert (image.num_channels, image.itemsize, image.memory) == (1, 2, 2 * 40 * 36 * 30)
    assert image.path == paths["t1"]
    for value in (image.affine, image.spacing, image.orientation, image.origin, image.bounds):
        assert len(value) in (2, 3, 4)
    assert "ShortTensor" in repr(image)
    assert "t1.mla" in repr(image.data)
    assert (len(image.data), image.data.device.type, image.data.is_meta) == (1, "cpu", False)
    assert not image.is_2d()
    assert read_bytes(image) == 0


def first(sampler: Callable[..., Iterator[tio.Subject]], subject: tio.Subject) -> tio.Subject:
    return next(sampler(subject, num_patches=1))


TAKE: dict[str, Callable[[tio.Subject], tio.Subject]] = {
    "UniformSampler": partial(first, tio.UniformSampler(8)),
    "GridSampler": lambda subject: tio.GridSampler(subject, 8, 4)[5],
    "Crop": tio.Crop((30, 2, 20, 8, 11, 11)),
    "CropOrPad": tio.CropOrPad(8, location="random"),
    "index": lambda subject: subject[3:11, 4:12, 5:13],
}


@pytest.mark.parametrize("take", TAKE.values(), ids=TAKE)
def test_a_patch_is_all_that_is_read(
    take: Callable[[tio.Subject], tio.Subject], subject: tio.Subject, in_memory: tio.Subject
) -> None:
    torch.manual_seed(1)
    patch = take(subject)
    torch.manual_seed(1)
    expected = take(in_memory)
    assert patch.spatial_shape == (8, 8, 8)
    for name in ("t1", "seg"):
        image, wanted = patch.get_image(name), expected.get_image(name)
        assert type(image.data) is torch.Tensor
        assert torch.equal(image.data, wanted.data)
        np.testing.assert_allclose(image.affine, wanted.affine, atol=1e-4)
        assert read_bytes(subject.get_image(name)) == image.data.nbytes
        assert not is_read(subject, name)
    assert patch.age == 45


def test_patches_of_a_url_fetch_and_decode_the_blocks_they_touch(paths: dict[str, Path]) -> None:
    with RangeServer({"t1.mla": paths["t1"].read_bytes()}) as server:
        image = open_image(server.url("t1.mla"))
        assert image.path is None
        with mlarray_xr.measure() as measured:
            patch = tio.Crop((8, 16, 16, 12, 16, 6))(image)
        tensor_of(image).volume.volume.array.close()
    assert np.array_equal(patch.numpy()[0], voxels()[8:24, 16:24, 16:24])
    assert measured.stats.blocks_decoded == 2
    assert measured.stats.bytes_decoded == 2 * 8**3 * 2


def test_sampling_by_label_reads_the_mask_once_and_patches_of_the_image(
    subject: tio.Subject, in_memory: tio.Subject
) -> None:
    sampler = tio.LabelSampler(8, label_probabilities={0: 1, 1: 3})
    torch.manual_seed(1)
    patches = list(sampler(subject, num_patches=5))
    torch.manual_seed(1)
    expected = list(sampler(in_memory, num_patches=5))
    for patch, wanted in zip(patches, expected, strict=True):
        assert location(patch) == location(wanted)
        assert torch.equal(patch.t1.data, wanted.t1.data)
        assert torch.equal(patch.seg.data, wanted.seg.data)
    assert read_bytes(subject.seg) == blobs().nbytes
    assert read_bytes(subject.t1) == 5 * 8**3 * 2


def test_sampling_by_weight_reads_the_map_once(paths: dict[str, Path]) -> None:
    weights = open_image(paths["seg"], kind="sampling_map")
    subject = tio.Subject(t1=open_image(paths["t1"]), weights=weights)
    torch.manual_seed(2)
    patches = list(tio.WeightedSampler(8, "weights")(subject, num_patches=6))
    for patch in patches:
        i, j, k = location(patch)[:3]
        assert blobs()[i + 4, j + 4, k + 4] > 0
    assert read_bytes(subject.weights) == blobs().nbytes
    assert read_bytes(subject.t1) == 6 * 8**3 * 2


# The tensor


@given(data=st.data())
def test_slicing_a_tensor_equals_slicing_what_the_file_holds(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "sliced.mla"
    values = voxels((2, 9, 8, 7))
    if not path.exists():
        mlarray_xr.to_mla(xr.DataArray(values, dims=("channel", "z", "y", "x")), path, chunks=4)
    tensor = FileTensor(ImageVolume.open(path))
    # One ellipsis at most: with several, torch 2.13 reads past the end of the shape and may crash.
    index = st.integers(-12, 12) | st.slices(12).filter(lambda found: found.step in (None, 1))
    before, after = (st.lists(index, max_size=n) for n in (5, 2))
    several = st.builds(lambda a, b: (*a, ..., *b), before, after) | before.map(tuple)
    key: Any = data.draw(several | index)
    try:
        expected = torch.from_numpy(values)[key]
    except IndexError:
        with pytest.raises(IndexError):
            tensor[key]
        return
    assert torch.equal(tensor[key], expected)
    assert tensor.is_read == (... in key if isinstance(key, tuple) else key is ...)


OPERATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "negative": lambda tensor: -tensor,
    "any": lambda tensor: torch.any(tensor < 0),
    "stack": lambda tensor: torch.stack([tensor, tensor]),
    "cat": lambda tensor: torch.cat((tensor, tensor), dim=1),
    "cat_one": lambda tensor: torch.cat([tensor]),
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy()),
    "asarray": lambda tensor: torch.from_numpy(np.asarray(tensor)),
    "as_tensor": torch.as_tensor,
    "mask": lambda tensor: tensor[tensor > 50],
    "steps": lambda tensor: tensor[:, ::2, 1:],
    "list": lambda tensor: tensor[[0]],
    "float": lambda tensor: tensor.float(),
    "type": lambda tensor: tensor.type(torch.float64),
    "to": lambda tensor: tensor.to(torch.device("cpu"), dtype=torch.int32),
    "pad": lambda tensor: torch.nn.functional.pad(tensor, (1, 1)),
    "unbind": lambda tensor: next(iter(tensor)),
    "where": lambda tensor: torch.where(condition=tensor > 3, input=tensor, other=0),
    "pin": lambda tensor: tensor.contiguous(),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_operations_work_on_what_the_file_holds(
    operation: Callable[[torch.Tensor], Any], paths: dict[str, Path]
) -> None:
    tensor, _ = read_mla(paths["t1"])
    expected = operation(torch.from_numpy(voxels()[None]))
    assert torch.equal(operation(tensor), expected)


def test_a_tensor_reads_its_file_once_and_keeps_changes(paths: dict[str, Path]) -> None:
    image = open_image(paths["t1"])
    assert image.data.sum() == voxels().sum()
    assert image.data.max() == 99
    image.data[0, 0, 0, 0] = -5
    image.data.add_(1)
    assert read_bytes(image) == voxels().nbytes
    expected = voxels() + 1
    expected[0, 0, 0] = -4
    for same in (image, copy.copy(image), copy.deepcopy(image), pickle.loads(pickle.dumps(image))):
        assert np.array_equal(same.numpy()[0], expected)
    assert np.array_equal(image[0:1].numpy()[0], expected[:1])


def test_copies_and_pickles_hold_the_address(subject: tio.Subject) -> None:
    assert len(pickle.dumps(subject)) < 4000
    for same in (
        copy.deepcopy(subject),
        pickle.loads(pickle.dumps(subject)),
        tio.Subject(t1=copy.copy(subject.t1), seg=copy.copy(subject.seg)),
    ):
        assert not is_read(same, "t1")
        assert torch.equal(same.t1[:3].data, torch.from_numpy(voxels()[None, :3]))
        np.testing.assert_array_equal(same.t1.affine, subject.t1.affine)
    assert not is_read(subject, "t1")


def test_the_reader_serves_images_made_without_open_image(paths: dict[str, Path]) -> None:
    image = tio.ScalarImage(paths["t1"], reader=read_mla)
    assert image.shape == (1, *SHAPE)
    assert read_bytes(image) == 0
    image.unload()
    assert np.array_equal(image[:2].numpy()[0], voxels()[:2])
    opened = open_image(paths["t1"], values="scaled")
    opened.unload()
    opened.load()
    assert not tensor_of(opened).is_read
    both = tio.ScalarImage([paths["t1"], paths["t1"]], reader=read_mla)
    assert both.shape == (2, *SHAPE)


# Foreground


def test_patches_lie_around_foreground_and_no_mask_is_read_whole(subject: tio.Subject) -> None:
    torch.manual_seed(3)
    sampler = ForegroundSampler(8, "seg", foreground=Foreground(classes={1: 1, 2: 1}))
    patches = list(sampler(subject, num_patches=60))
    assert all(patch.seg.data.any() for patch in patches)
    at_corner = sum(location(patch)[:3] == [0, 0, 0] for patch in patches)
    assert 10 < at_corner < 50
    for patch in patches:
        a, b, c, d, e, f = location(patch)
        assert np.array_equal(patch.t1.numpy()[0], voxels()[a:d, b:e, c:f])
    assert not is_read(subject, "seg")
    torch.manual_seed(3)
    again = first(sampler, subject)
    assert location(again) == location(patches[0])


def test_a_share_of_the_patches_lies_anywhere(subject: tio.Subject) -> None:
    torch.manual_seed(4)
    patches = ForegroundSampler((8, 4, 8), probability=0.25)(subject, num_patches=80)
    shares = [bool(patch.seg.data.any()) for patch in patches]
    assert 10 < sum(shares) < 60


def test_a_label_map_that_was_changed_is_not_sampled_by_its_file(subject: tio.Subject) -> None:
    changed = tio.RandomFlip(flip_probability=1)(subject)
    with pytest.raises(ValueError, match=r"'seg' is not as its file has it.*LabelSampler"):
        first(ForegroundSampler(8), changed)
    with pytest.raises(KeyError, match="lesion is not among"):
        first(ForegroundSampler(8, "lesion"), subject)


# Datasets, queues, workers


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    files: dict[str, dict[str, str]] = {}
    for number in range(3):
        for name, values in {"t1": voxels() + number, "seg": blobs()}.items():
            target = tmp_path / f"p{number}_{name}.mla"
            mlarray_xr.to_mla(values, target, chunks=16)
            files.setdefault(f"p{number}", {})[name] = str(target)
    return Collection.from_files(files).join({"p0": 40, "p1": 50, "p2": 60})


def test_a_collection_becomes_lazy_subjects(collection: Collection) -> None:
    dataset = subjects_dataset(collection, labels=["seg"])
    assert len(dataset) == 3
    assert [subject["subject"] for subject in dataset.dry_iter()] == ["p0", "p1", "p2"]
    subject = dataset[1]
    assert type(subject.t1) is tio.ScalarImage
    assert type(subject.seg) is tio.LabelMap
    assert 50 in subject.values()
    assert not is_read(subject, "t1")
    only = subjects_dataset(collection, images=["seg"])
    assert only[0].get_images_names() == ["seg"]


def test_modalities_and_names_are_checked(collection: Collection, paths: dict[str, Path]) -> None:
    with pytest.raises(ConversionError, match="'p0' has no 't2', only"):
        subjects_dataset(collection, images=["t1", "t2"])
    for name in ("shape", "subject"):
        taken = Collection.from_files({"p": {name: str(paths["t1"])}})
        with pytest.raises(ValueError, match=f"cannot hold '{name}'"):
            subjects_dataset(taken)


def patch_subjects(queue: tio.Queue, *, batch_size: int) -> list[str]:
    """Return, of all batches, the subjects, after comparing every patch with the arrays."""
    subjects = []
    for batch in tio.SubjectsLoader(queue, batch_size=batch_size):
        for number, name in enumerate(batch["subject"]):
            a, b, c, d, e, f = batch[tio.LOCATION][number].tolist()
            expected = voxels()[a:d, b:e, c:f] + int(name[1])
            assert np.array_equal(batch["t1"][tio.DATA][number, 0].numpy(), expected)
            assert np.array_equal(batch["seg"][tio.DATA][number, 0].numpy(), blobs()[a:d, b:e, c:f])
            subjects.append(name)
    return subjects


@pytest.mark.parametrize(
    "sampler",
    [tio.UniformSampler(8), tio.LabelSampler(8, "seg"), ForegroundSampler(8, "seg")],
    ids=lambda sampler: type(sampler).__name__,
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_queue_runs(collection: Collection, sampler: Any, num_workers: int) -> None:
    dataset = subjects_dataset(collection, labels=["seg"])
    assert dataset[0].t1[:1].shape  # a parent that has read before it forks
    queue = tio.Queue(
        dataset, max_length=12, samples_per_volume=4, sampler=sampler, num_workers=num_workers
    )
    assert len(queue) == 12
    for _epoch in range(2):
        assert sorted(patch_subjects(queue, batch_size=3)) == ["p0"] * 4 + ["p1"] * 4 + ["p2"] * 4


def one_patch(subject: tio.Subject) -> tio.Subject:
    """Take a patch and augment it: what a worker does for every subject it is given."""
    patch = first(ForegroundSampler(8, "seg"), subject)
    return tio.RandomFlip(axes=(0, 1, 2))(patch)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_take_patches(collection: Collection, method: str) -> None:
    dataset = subjects_dataset(collection, labels=["seg"], transform=one_patch)
    assert dataset[0].seg.data.any()
    loader = tio.SubjectsLoader(
        dataset, batch_size=3, num_workers=1, multiprocessing_context=method, timeout=60
    )
    (batch,) = loader
    assert batch["t1"][tio.DATA].shape == (3, 1, 8, 8, 8)
    assert batch["seg"][tio.DATA].flatten(1).any(dim=1).all()


def test_whole_subjects_collate(collection: Collection) -> None:
    (batch,) = tio.SubjectsLoader(subjects_dataset(collection), batch_size=3)
    assert np.array_equal(batch["t1"][tio.DATA][2, 0].numpy(), voxels() + 2)


# Inference and transforms


@pytest.mark.parametrize("mode", ["crop", "average", "hann"])
@pytest.mark.parametrize("padding_mode", [None, "edge"])
def test_a_grid_is_put_together_again(
    subject: tio.Subject, mode: str, padding_mode: str | None
) -> None:
    sampler = tio.GridSampler(subject, (16, 12, 10), (4, 4, 2), padding_mode=padding_mode)
    aggregator = tio.GridAggregator(sampler, overlap_mode=mode)
    for batch in tio.SubjectsLoader(sampler, batch_size=4):  # type: ignore[arg-type]
        aggregator.add_batch(batch["t1"][tio.DATA].float(), batch[tio.LOCATION])
    result = aggregator.get_output_tensor()
    torch.testing.assert_close(result, torch.from_numpy(voxels()[None]).float())
    assert not is_read(subject, "t1")


TRANSFORMS = [
    tio.RandomFlip(axes=(0, 1, 2), flip_probability=1),
    tio.RandomAffine(scales=0.2, degrees=20),
    tio.ZNormalization(),
    tio.Resample(3),
    tio.RescaleIntensity((0, 1)),
    tio.ToCanonical(),
    tio.Pad(2),
    tio.RandomNoise(),
    tio.RandomElasticDeformation(max_displacement=2),
    tio.OneHot(num_classes=3),
    tio.Compose([tio.ToCanonical(), tio.RandomGamma(), tio.CropOrPad(12)]),
]


@pytest.mark.parametrize("is_whole", [False, True], ids=["patch", "whole"])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.name)
def test_transforms_do_what_they_do_in_memory(
    transform: tio.Transform, is_whole: bool, subject: tio.Subject, in_memory: tio.Subject
) -> None:
    subject.t1.affine = in_memory.t1.affine  # to the last bit: float32 in NIfTI
    subject.seg.affine = in_memory.seg.affine
    results = []
    for whole in (subject, in_memory):
        torch.manual_seed(5)
        given = whole if is_whole else whole[4:20, 5:21, 6:22]
        results.append(transform(given))
    found, expected = results
    for name in ("t1", "seg"):
        image, wanted = found.get_image(name), expected.get_image(name)
        assert torch.equal(image.data, wanted.data)
        assert image.data.dtype == wanted.data.dtype
        np.testing.assert_array_equal(image.affine, wanted.affine)


# Around


def test_a_missing_torchio_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchio", None)
    monkeypatch.delitem(sys.modules, "mlarray_xr.ml.torchio")
    with pytest.raises(MissingDependencyError, match=r"pip install mlarray-xr\[torchio\]"):
        importlib.import_module("mlarray_xr.ml.torchio")
