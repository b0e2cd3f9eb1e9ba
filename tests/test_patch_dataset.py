"""Patches as PyTorch sees them, against slices of the arrays that were written."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, default_collate

import mlarray_xr
from mlarray_xr.errors import ChunkError, ConversionError, GeometryError, LayoutError, MlaError
from mlarray_xr.ml.torch import (
    Collection,
    ForegroundPatches,
    IterablePatchDataset,
    Padding,
    PatchDataset,
    PatchSampler,
    RandomPatches,
    Slices2D,
    WholeVolume,
    create_inference_dataloader,
    create_segmentation_dataloader,
    create_training_dataloader,
    create_validation_dataloader,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# PyTorch says so on machines with fewer CPUs than workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SHAPES = {"a": (20, 31, 24), "b": (24, 18, 40), "c": (7, 26, 26)}


def image_of(subject: str) -> NDArray[np.int16]:
    rng = np.random.default_rng(ord(subject))
    return rng.integers(-1000, 1000, SHAPES[subject], np.int16)


def mask_of(subject: str) -> NDArray[np.uint8]:
    return (image_of(subject) > 900).astype(np.uint8)


def labelled(values: NDArray[Any], *, spacing: tuple[float, ...] = (2.0, 1.0, 0.5)) -> xr.DataArray:
    coords = {
        dim: 10 + step * np.arange(n)
        for dim, step, n in zip("zyx", spacing, values.shape, strict=True)
    }
    array = xr.DataArray(values, dims=("z", "y", "x"), coords=coords)
    return array.assign_attrs(coord_system="RAS")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    for subject in SHAPES:
        (folder / subject).mkdir()
        mlarray_xr.to_mla(labelled(image_of(subject)), folder / subject / "ct.mla", patch=8)
        mlarray_xr.to_mla(labelled(mask_of(subject)), folder / subject / "seg.mla", patch=8)
    return folder


@pytest.fixture(scope="module")
def collection(folder: Path) -> Collection:
    found = Collection.from_folder(str(folder))
    return found.join({"a": 1.5, "b": 2.5, "c": 3.5})


def expected_patch(
    values: NDArray[Any], box: NDArray[np.int64], *, mode: Any = "constant"
) -> NDArray[Any]:
    """Return a box of an array that may reach outside, as NumPy pads."""
    around = [
        (max(-start, 0), max(stop - n, 0))
        for (start, stop), n in zip(box.tolist(), values.shape, strict=True)
    ]
    padded = np.pad(values, around, mode=mode)
    return padded[
        tuple(
            slice(start + before, stop + before)
            for (start, stop), (before, _) in zip(box.tolist(), around, strict=True)
        )
    ]


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("patch", [8, (12, 16, 9), (30, 30, 30), {"z": 1}])
def test_samples_are_slices_of_image_and_mask(
    collection: Collection, patch: Any, mode: Any
) -> None:
    dataset = PatchDataset(
        collection,
        sampling=RandomPatches(patch, patches_per_volume=3),
        image="ct",
        mask="seg",
        label="label",
        padding=Padding(mode=mode),
    )
    assert len(dataset) == 9
    for index, sample in enumerate(dataset):
        subject, box = sample["subject"], sample["box"].numpy()
        assert subject == "abc"[index // 3]
        assert sample["index"] == index
        assert sample["label"] == {"a": 1.5, "b": 2.5, "c": 3.5}[subject]
        image, mask = sample["image"], sample["mask"]
        assert (image.dtype, mask.dtype) == (torch.int16, torch.uint8)
        np.testing.assert_array_equal(
            image[0].numpy(), expected_patch(image_of(subject), box, mode=mode)
        )
        np.testing.assert_array_equal(
            mask[0].numpy(), expected_patch(mask_of(subject), box, mode=mode)
        )
        valid = sample["valid"].numpy()
        inside = np.clip(box, 0, np.array(SHAPES[subject])[:, None])
        np.testing.assert_array_equal(valid, inside - box[:, :1])
        world = sample["affine"].numpy() @ np.array([1, 2, 3, 1])
        at = (np.array([1, 2, 3]) + box[:, 0]) * (2.0, 1.0, 0.5) + 10
        np.testing.assert_allclose(np.sort(world[:3]), np.sort(at))


def samples_of(loader: Any) -> list[tuple[int, list[list[int]], float]]:
    """Return what tells samples apart, in order."""
    found = []
    for batch in loader:
        sums = batch["image"].double().flatten(1).sum(1)
        for index, box, total in zip(batch["index"], batch["box"], sums, strict=True):
            found.append((int(index), box.tolist(), float(total)))
    return found


def test_epochs_differ_repeat_and_resume(collection: Collection) -> None:
    def loader(**more: Any) -> Any:
        return create_training_dataloader(
            collection, image="ct", patch_size=8, patches_per_volume=4, num_workers=0, **more
        )

    one = loader(seed=4)
    first, second, third = (samples_of(one) for _ in range(3))
    assert len(first) == 12
    assert first != second != third
    assert {box for _, (box, *_), _ in map(tuple_of, first)}
    again = loader(seed=4)
    assert [samples_of(again) for _ in range(3)] == [first, second, third]
    resumed = loader(seed=4)
    resumed.sampler.set_epoch(2)
    assert samples_of(resumed) == third
    resumed.sampler.set_epoch(1, skip=8)
    assert samples_of(resumed) == second[8:]
    assert samples_of(loader(seed=5)) != first


def tuple_of(found: tuple[int, list[list[int]], float]) -> tuple[int, tuple[Any, ...], float]:
    index, box, total = found
    return index, tuple(map(tuple, box)), total


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(collection: Collection, n_workers: int) -> None:
    def epochs(num_workers: int) -> list[Any]:
        loader = create_segmentation_dataloader(
            collection,
            image="ct",
            mask="seg",
            patch_size=8,
            patches_per_volume=5,
            foreground_sampling=0.5,
            batch_size=4,
            num_workers=num_workers,
        )
        return [samples_of(loader) for _ in range(2)]

    assert epochs(n_workers) == epochs(0)


def test_an_epoch_that_is_set_reaches_running_workers(collection: Collection) -> None:
    dataset = PatchDataset(
        collection, sampling=RandomPatches(8, patches_per_volume=4), image="ct", seed=2
    )
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=4, num_workers=1, persistent_workers=True
    )
    found = []
    for epoch in (0, 5, 0):
        dataset.set_epoch(epoch)
        found.append(samples_of(loader))
    assert found[0] == found[2] != found[1]
    assert found[1] == [
        (i, dataset[(5, i)]["box"].tolist(), float(dataset[(5, i)]["image"].double().sum()))
        for i in range(12)
    ]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("window", [1, 4])
def test_ranks_see_every_sample_once(collection: Collection, world_size: int, window: int) -> None:
    dataset = PatchDataset(collection, sampling=RandomPatches(8, patches_per_volume=5), image="ct")
    ranks = [
        PatchSampler(dataset, rank=rank, world_size=world_size, even=False, window=window)
        for rank in range(world_size)
    ]
    taken = [key for sampler in ranks for key in sampler]
    assert sorted(taken) == [(0, i) for i in range(15)]
    distributed: list[list[int]] = [
        list(DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=False))
        for rank in range(world_size)
    ]
    assert {index for share in distributed for index in share} == {*range(15)}


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_stream_gives_every_sample_of_its_rank_once(
    collection: Collection, n_workers: int
) -> None:
    dataset = PatchDataset(collection, sampling=RandomPatches(8, patches_per_volume=5), image="ct")
    found = []
    for rank in range(2):
        stream = IterablePatchDataset(
            dataset, batch_size=3, rank=rank, world_size=2, drop_last=False
        )
        loader: DataLoader[Any] = DataLoader(stream, batch_size=None, num_workers=n_workers)

        def epoch(batches: Any) -> list[Any]:
            return [(batch["index"].tolist(), batch["box"].tolist()) for batch in batches]

        first, second = epoch(loader), epoch(loader)
        assert first != second
        for again in (first, second):
            stream.set_epoch(0 if again is first else 1)
            assert epoch(stream) == again
        assert len(first) == len(stream)
        found += [index for indices, _ in first for index in indices]
    # Both ranks take seven of the fifteen.
    assert len(found) == len({*found} & {*range(15)}) == 14


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_epochs_reach_the_workers_of_a_copy(collection: Collection, copied: Any) -> None:
    dataset = copied(
        PatchDataset(collection, sampling=RandomPatches(8, patches_per_volume=4), image="ct")
    )
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=4, num_workers=1, persistent_workers=True
    )
    found = []
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        found.append(samples_of(loader))
    assert found[0] != found[1]


def test_samplers_of_plain_numbers_have_epochs(collection: Collection) -> None:
    loader: Any = create_training_dataloader(
        collection,
        image="ct",
        patch_size=8,
        patches_per_volume=4,
        num_workers=0,
        sampler=SequentialSampler(range(8)),
    )
    first, second = samples_of(loader), samples_of(loader)
    assert [index for index, *_ in first] == [index for index, *_ in second] == list(range(8))
    assert first != second
    loader.sampler.set_epoch(0)
    assert samples_of(loader) == first


def test_windows_bring_patches_of_a_chunk_together(collection: Collection) -> None:
    dataset = PatchDataset(collection, sampling=RandomPatches(4, patches_per_volume=40), image="ct")

    def changes(window: int) -> int:
        order = list(PatchSampler(dataset, window=window).order(0))
        chunks = [dataset.samples.chunk_of(index, epoch=0) for index in order]
        assert sorted(order) == list(range(120))
        return sum(a != b for a, b in itertools.pairwise(chunks))

    found = [changes(window) for window in (1, 8, 32, 120)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 2


def test_batches_are_not_copied(collection: Collection) -> None:
    dataset = PatchDataset(
        collection.select(modalities=["ct"]), sampling=RandomPatches(8, patches_per_volume=2)
    )
    samples = dataset.__getitems__([0, 1, 2, 3])
    batch = next(
        iter(
            create_training_dataloader(
                collection, image="ct", patch_size=8, patches_per_volume=2, num_workers=0
            )
        )
    )
    assert batch["image"].shape == (4, 1, 8, 8, 8)
    collate = create_training_dataloader(
        collection, image="ct", patch_size=8, patches_per_volume=2, num_workers=0
    ).collate_fn
    joined = collate(samples)
    assert joined["image"].data_ptr() == samples[0]["image"].data_ptr()
    plain = default_collate(samples)
    assert joined.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(joined[name], value) if torch.is_tensor(value) else joined[name] == value
    # What was changed on the way is copied.
    samples[1]["image"] = samples[1]["image"].flip(1)
    assert torch.equal(collate(samples)["image"], default_collate(samples)["image"])


def test_batches_of_ragged_samples_name_the_subjects(collection: Collection) -> None:
    loader = create_validation_dataloader(collection, image="ct", num_workers=0)
    with pytest.raises(ConversionError, match=r"'c': \(1, 7, 26, 26\)"):
        next(iter(loader))


def test_loaders_that_would_be_empty_are_refused(collection: Collection) -> None:
    with pytest.raises(ValueError, match="3 samples are no batch of 4"):
        create_training_dataloader(collection, image="ct", patch_size=8)
    loader = create_training_dataloader(
        collection, image="ct", patch_size=8, drop_last=False, num_workers=0
    )
    assert len(next(iter(loader))["subject"]) == 3


def test_validation_repeats_and_inference_covers(collection: Collection) -> None:
    loader = create_validation_dataloader(
        collection, image="ct", patch_size=8, patches_per_volume=2, num_workers=0, labels="label"
    )
    assert samples_of(loader) == samples_of(loader)
    assert len(samples_of(loader)) == 6
    windows = create_inference_dataloader(
        collection, image="ct", patch_size=8, overlap=0.5, num_workers=0
    )
    seen = {subject: np.zeros(shape, bool) for subject, shape in SHAPES.items()}
    for batch in windows:
        box = batch["box"][0].tolist()
        seen[batch["subject"][0]][tuple(slice(max(a, 0), b) for a, b in box)] = True
    assert all(found.all() for found in seen.values())


def test_ranks_share_validation_through_a_sampler(collection: Collection) -> None:
    def loader(rank: int) -> Any:
        sampler: Any = DistributedSampler(
            range(6),  # type: ignore[arg-type]
            num_replicas=2,
            rank=rank,
            shuffle=False,
        )
        return create_validation_dataloader(
            collection,
            image="ct",
            patch_size=8,
            patches_per_volume=2,
            num_workers=0,
            sampler=sampler,
        )

    ranks = [loader(rank) for rank in range(2)]
    found = [samples_of(each) for each in ranks]
    assert sorted(index for share in found for index, *_ in share) == list(range(6))
    assert [samples_of(each) for each in ranks] == found


def test_slices_lack_their_dimension(collection: Collection) -> None:
    dataset = PatchDataset(collection, sampling=Slices2D("y"), image="ct", mask="seg")
    assert len(dataset) == 31 + 18 + 26
    sample = dataset[31 + 4]
    assert sample["subject"] == "b"
    np.testing.assert_array_equal(sample["image"][0].numpy(), image_of("b")[:, 4])
    np.testing.assert_array_equal(sample["mask"][0].numpy(), mask_of("b")[:, 4])
    slab = PatchDataset(collection, sampling=Slices2D("y", thickness=3), image="ct")[0]
    assert slab["image"].shape == (1, 20, 3, 24)


def test_channels_come_first_wherever_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.random((12, 10, 3, 11)).astype(np.float32)
    array = xr.DataArray(values, dims=("z", "y", "channel", "x"))
    mlarray_xr.to_mla(array, tmp_path / "last.mla")
    mlarray_xr.to_mla(array.transpose("channel", ...), tmp_path / "first.mla")
    mlarray_xr.to_mla(array[:, :, 0], tmp_path / "none.mla")
    files = {name: str(tmp_path / f"{name}.mla") for name in ("last", "first", "none")}
    dataset = PatchDataset(
        {"s": files}, sampling=RandomPatches(6), image=["none", "last", "first"], dtype="float64"
    )
    sample = dataset[0]
    assert sample["image"].dtype == torch.float64
    (z, _), (y, _), (x, _) = sample["box"].tolist()
    inside = np.moveaxis(values, 2, 0)[:, z : z + 6, y : y + 6, x : x + 6]
    np.testing.assert_array_equal(sample["image"], np.concatenate([inside[:1], inside, inside]))
    with pytest.raises(LayoutError, match="image= is needed"):
        PatchDataset({"s": files}, sampling=RandomPatches(6))


def test_channels_may_be_named_by_number(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 5, dtype=np.int16).reshape(2, 3, 4, 5)
    mlarray_xr.to_mla(values, tmp_path / "plain.mla")
    path = [str(tmp_path / "plain.mla")]
    four = PatchDataset(path, sampling=WholeVolume())[0]
    assert four["image"].shape == (1, 2, 3, 4, 5)
    assert four["affine"].shape == (5, 5)
    three = PatchDataset(path, sampling=WholeVolume(), channel=0)[0]
    np.testing.assert_array_equal(three["image"], values)
    assert three["affine"].shape == (4, 4)
    with pytest.raises(MlaError, match="channel='w'"):
        PatchDataset(path, sampling=WholeVolume(), channel="w")[0]


def test_series_keep_their_time_axis(tmp_path: Path) -> None:
    values = np.arange(5 * 6 * 7 * 8, dtype=np.int16).reshape(5, 6, 7, 8)
    array = xr.DataArray(values, dims=("time", "z", "y", "x"))
    mlarray_xr.to_mla(array, tmp_path / "series.mla")
    path = [str(tmp_path / "series.mla")]
    whole_time = PatchDataset(path, sampling=RandomPatches(4))[0]
    assert whole_time["image"].shape == (1, 5, 4, 4, 4)
    frame = PatchDataset(path, sampling=Slices2D("time"))[2]
    np.testing.assert_array_equal(frame["image"][0], values[2])


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", ">f4", "f8", "f2", "?", "<u2", "i8"])
def test_stored_types_are_kept(tmp_path: Path, dtype: str) -> None:
    values = (np.arange(60).reshape(3, 4, 5) % 100).astype(dtype)
    mlarray_xr.to_mla(values, tmp_path / "typed.mla")
    image = PatchDataset([str(tmp_path / "typed.mla")], sampling=RandomPatches((3, 4, 5)))[0][
        "image"
    ]
    assert image.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(image[0].numpy(), values)


def test_types_that_pytorch_lacks_are_refused(tmp_path: Path) -> None:
    values = np.zeros((3, 4), "S3")
    mlarray_xr.to_mla(values, tmp_path / "text.mla")
    dataset = PatchDataset([str(tmp_path / "text.mla")], sampling=WholeVolume())
    with pytest.raises(ConversionError, match="dtype="):
        dataset[0]


def test_errors_name_subject_file_and_box(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.mla"
    content = bytearray((folder / "a" / "ct.mla").read_bytes())
    header = mlarray_xr.MlaArray(path.write_bytes(content) and path).info()
    assert header["n_chunks"]
    # The frame header and the index stay whole; every chunk's header is overwritten.
    offsets = [i for i in range(len(content) - 32) if content[i : i + 2] == b"\x05\x01"]
    for offset in offsets:
        content[offset + 4 : offset + 16] = b"\xff" * 12
    path.write_bytes(content)
    dataset = PatchDataset({"patient": {"ct": str(path)}}, sampling=RandomPatches(8))
    with pytest.raises((ChunkError, MlaError), match=r"subject 'patient', .*broken\.mla"):
        dataset[0]
    missing = PatchDataset({"gone": {"ct": str(tmp_path / "gone.mla")}}, sampling=RandomPatches(8))
    with pytest.raises(FileNotFoundError) as caught:
        missing[0]
    notes = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "'gone'" in notes
    assert "gone.mla" in notes


def test_an_error_of_a_transform_says_what_it_met(collection: Collection) -> None:
    def fail(sample: dict[str, Any]) -> None:
        raise KeyError("no such key")

    dataset = PatchDataset(collection, sampling=RandomPatches(8), image="ct", transform=fail)
    with pytest.raises(KeyError) as caught:
        dataset[1]
    assert "subject 'b'" in caught.value.__notes__[0]


def double(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"].float() * 2}


@pytest.mark.parametrize("n_workers", [0, 1])
def test_transforms_see_every_sample(collection: Collection, n_workers: int) -> None:
    batches = create_training_dataloader(
        collection,
        image="ct",
        patch_size=8,
        patches_per_volume=4,
        transform=double,
        num_workers=n_workers,
    )
    for batch in batches:
        assert batch["image"].dtype == torch.float32
        for image, subject, box in zip(batch["image"], batch["subject"], batch["box"], strict=True):
            expected = expected_patch(image_of(subject), box.numpy())
            np.testing.assert_array_equal(image[0], expected * 2.0)


def jitter(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"] + torch.rand(sample["image"].shape)}


class Shift:
    """What a random transform of MONAI does."""

    def __init__(self) -> None:
        self.R = np.random.RandomState()

    def set_random_state(self, seed: int) -> None:
        self.R = np.random.RandomState(seed)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": sample["image"] + self.R.uniform()}


@pytest.mark.parametrize("transform", [jitter, Shift()])
def test_what_transforms_draw_follows_from_the_sample(
    collection: Collection, transform: Any
) -> None:
    def epochs(num_workers: int) -> list[Any]:
        loader = create_training_dataloader(
            collection,
            image="ct",
            patch_size=8,
            patches_per_volume=4,
            transform=transform,
            num_workers=num_workers,
        )
        return [samples_of(loader) for _ in range(2)]

    first, second = epochs(0)
    assert epochs(2) == epochs(0) == [first, second]
    plain = create_training_dataloader(
        collection, image="ct", patch_size=8, patches_per_volume=4, num_workers=0
    )
    drawn = [
        with_chance[2] - total[2]
        for with_chance, total in zip(first, samples_of(plain), strict=True)
    ]
    assert len({round(total, 6) for total in drawn}) == len(drawn)


def test_a_transform_leaves_the_generator_of_the_process_alone(collection: Collection) -> None:
    dataset = PatchDataset(collection, sampling=RandomPatches(8), image="ct", transform=jitter)
    before = torch.get_rng_state()
    assert not torch.equal(dataset[0]["image"], dataset[(1, 0)]["image"])
    assert torch.equal(torch.get_rng_state(), before)


def test_volumes_that_do_not_lie_on_the_same_grid_are_refused(folder: Path, tmp_path: Path) -> None:
    moved = labelled(mask_of("a"), spacing=(2.0, 1.0, 0.6))
    mlarray_xr.to_mla(moved, tmp_path / "moved.mla")
    files = {"ct": str(folder / "a" / "ct.mla"), "seg": str(tmp_path / "moved.mla")}
    dataset = PatchDataset({"a": files}, sampling=RandomPatches(8), image="ct", mask="seg")
    with pytest.raises(GeometryError, match=r"subject 'a'.*moved\.mla"):
        dataset[0]
    mlarray_xr.to_mla(labelled(mask_of("b")), tmp_path / "other.mla")
    files["seg"] = str(tmp_path / "other.mla")
    dataset = PatchDataset({"a": files}, sampling=RandomPatches(8), image="ct", mask="seg")
    with pytest.raises(MlaError, match="subject 'a'"):
        dataset[0]


@pytest.mark.parametrize(
    ("dtype", "wanted"), [("u2", "i2"), ("u2", "u1"), ("f8", "i2"), ("i2", "f2")]
)
def test_types_that_cannot_hold_the_values_are_refused(
    tmp_path: Path, dtype: str, wanted: str
) -> None:
    mlarray_xr.to_mla(np.full((3, 4, 5), 40000).astype(dtype), tmp_path / "a.mla")
    dataset = PatchDataset([str(tmp_path / "a.mla")], sampling=RandomPatches(2), dtype=wanted)
    with pytest.raises(ConversionError, match=r"subject 'a'.* was asked for, the file has"):
        dataset[0]


@pytest.mark.parametrize(
    ("dtype", "value"), [("u2", -1024), ("u1", 256), ("i2", 0.5), ("i2", np.nan), ("f4", 1e300)]
)
def test_paddings_that_a_type_cannot_hold_are_refused(
    tmp_path: Path, dtype: str, value: float
) -> None:
    mlarray_xr.to_mla(np.zeros((3, 4, 5), dtype), tmp_path / "a.mla")
    dataset = PatchDataset(
        [str(tmp_path / "a.mla")], sampling=RandomPatches(8), padding=Padding(value=value)
    )
    with pytest.raises(LayoutError, match=r"subject 'a'.*padding value"):
        dataset[0]


def as_bfloat16(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": sample["image"].to(torch.bfloat16)}


def as_pair(sample: dict[str, Any]) -> tuple[Any, Any]:
    return sample["image"], sample["subject"]


@pytest.mark.parametrize("n_workers", [0, 1])
def test_batches_of_other_kinds(collection: Collection, n_workers: int) -> None:
    def first(transform: Any) -> Any:
        return next(
            iter(
                create_training_dataloader(
                    collection,
                    image="ct",
                    patch_size=4,
                    patches_per_volume=4,
                    num_workers=n_workers,
                    transform=transform,
                )
            )
        )

    assert first(as_bfloat16)["image"].dtype == torch.bfloat16
    image, subjects = first(as_pair)
    assert image.shape == (4, 1, 4, 4, 4)
    assert set(subjects) <= set("abc")


def as_list(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [sample, sample]


def test_several_samples_of_one_name_the_way_out(collection: Collection) -> None:
    loader = create_validation_dataloader(
        collection, image="ct", patch_size=4, num_workers=0, transform=as_list
    )
    with pytest.raises(ConversionError, match="list_data_collate"):
        next(iter(loader))


def test_contradictions_are_refused(collection: Collection) -> None:
    with pytest.raises(LayoutError, match="sampling= says which"):
        create_training_dataloader(
            collection, image="ct", patch_size=8, sampling=RandomPatches(4), num_workers=0
        )
    with pytest.raises(LayoutError, match="without patch_size"):
        create_segmentation_dataloader(
            collection, image="ct", mask="seg", foreground_sampling=True, num_workers=0
        )
    with pytest.raises(LayoutError, match=r"foreground_sampling='0\.33'"):
        create_segmentation_dataloader(
            collection,
            mask="seg",
            patch_size=4,
            foreground_sampling="0.33",  # type: ignore[arg-type]
            num_workers=0,
        )
    with pytest.raises(ConversionError, match="which one"):
        create_training_dataloader(
            collection, image="ct", patch_size=8, labels=collection.table, num_workers=0
        )
    with pytest.raises(LayoutError, match="which of the masks"):
        PatchDataset(collection, sampling=ForegroundPatches(4), image="ct", mask=["seg", "ct"])


@pytest.mark.parametrize("share", [0.25, np.float32(0.25)])
def test_shares_of_foreground_are_what_they_say(collection: Collection, share: Any) -> None:
    loader: Any = create_segmentation_dataloader(
        collection,
        image="ct",
        mask="seg",
        patch_size=4,
        patches_per_volume=2,
        foreground_sampling=share,
        num_workers=0,
    )
    assert loader.dataset.samples.sampling.probability == 0.25


def test_labels_may_be_a_named_series(collection: Collection) -> None:
    labels = collection.table["label"].rename("age")
    loader = create_training_dataloader(
        collection, image="ct", patch_size=4, patches_per_volume=2, labels=labels, num_workers=0
    )
    assert set(next(iter(loader))["label"].tolist()) <= {1.5, 2.5, 3.5}


def test_missing_labels_are_found_before_the_first_batch(collection: Collection) -> None:
    partly = collection.join({"a": 1, "b": 2}, name="grade", missing="fill")
    with pytest.raises(ConversionError, match="'grade' is missing of 1 of 3 subjects: c"):
        PatchDataset(partly, sampling=RandomPatches(8), image="ct", label="grade")


@pytest.mark.parametrize("key", [9, -10, (0, 99), (3, -1)])
def test_samples_that_are_not_there(collection: Collection, key: Any) -> None:
    dataset = PatchDataset(collection, sampling=RandomPatches(8, patches_per_volume=3), image="ct")
    with pytest.raises(IndexError):
        dataset[key]


def test_a_dataset_pickles_to_addresses(collection: Collection) -> None:
    dataset = PatchDataset(
        collection, sampling=RandomPatches(8, patches_per_volume=3), image="ct", mask="seg"
    )
    dataset.set_epoch(4)
    first = dataset[0]
    stored = pickle.dumps(dataset)
    assert len(stored) < 6000
    other = pickle.loads(stored)
    assert other.epoch == 4
    assert torch.equal(other[0]["image"], first["image"])


def test_thousands_of_files_are_opened_as_they_come(folder: Path) -> None:
    path = str(folder / "a" / "ct.mla")
    files = {f"s{i:04}": {"ct": path} for i in range(2000)}
    loader = create_training_dataloader(files, patch_size=8, num_workers=0)
    dataset: Any = loader.dataset
    next(iter(loader))
    assert len(dataset.samples._opened) == 4


def test_the_loop_needs_neither_dask_nor_zarr(folder: Path) -> None:
    code = (
        "import json, sys\n"
        "from mlarray_xr.ml.torch import create_training_dataloader\n"
        "files = [sys.argv[1]]\n"
        "loader = create_training_dataloader(files, patch_size=8, patches_per_volume=4,"
        " num_workers=0)\n"
        "assert next(iter(loader))['image'].shape == (4, 1, 8, 8, 8)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(folder / "a" / "ct.mla")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    loaded = {module.partition(".")[0] for module in json.loads(done.stdout)}
    assert "torch" in loaded
    assert not loaded & {"dask", "distributed", "zarr", "monai", "torchio"}
