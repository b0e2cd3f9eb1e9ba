"""Training loaders: ours, plain datasets over other readers, TorchIO, MONAI, RadiObject."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import mlarray
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks import radiobject_loading
from benchmarks.contenders import slices
from benchmarks.radiobject_loading import Epochs
from benchmarks.report import Skip
from benchmarks.training_files import DEFAULT, MAPPED, NIFTI, REFERENCE, planned_for
from mlarray_xr.ml.torch import create_training_dataloader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack

    from numpy.typing import NDArray

    from benchmarks.training_files import TrainingFiles

__all__ = [
    "BATCH",
    "MEMORY_MAP",
    "MEMORY_MAP_COPY",
    "MLARRAY",
    "MONAI",
    "OURS",
    "RADIOBJECT",
    "TORCHIO",
    "EpochSize",
    "Loader",
    "local_loaders",
    "nifti_loaders",
    "our_loader",
    "radiobject_process",
]

BATCH = 4
OURS = {
    "the reference's file": REFERENCE,
    "default layout": DEFAULT,
    "layout for the patch": "patch",
    "layout for the patch, fast codec": "speed",
}
"""What ours reads in each of the cases that it is compared in."""

MLARRAY = "Dataset over MLArray.open"
MEMORY_MAP, MEMORY_MAP_COPY = "Dataset over a memory map", "Dataset over a memory map, copying"
TORCHIO, MONAI = "TorchIO, .nii.gz", "MONAI, .nii.gz"
RADIOBJECT = "RadiObject, isotropic tiles"
# Patches taken of a volume each time it is read, where a library keeps it for so long.
_KEPT = 10
# An interpreter with RadiObject and torch: its requirements would not fit all of ours for ever.
_OTHER_PYTHON = "MLARRAY_XR_RADIOBJECT_PYTHON"


class Loader(Protocol):
    """Batches of random patches, epoch after epoch."""

    def prepare(self, repeat: int) -> None:
        """Begin an epoch and pass its first batches."""

    def act(self, repeat: int) -> None:
        """Take the rest of the epoch."""

    @property
    def patches(self) -> int:
        """Patches in that rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSize:
    """What one epoch is."""

    edge: int
    """Of the cubic patches, voxels."""
    patches_per_volume: int
    """Patches of each volume."""
    workers: int
    """Processes that read; 0 for none."""


class _PlainDataset(Dataset[dict[str, Any]]):
    """What one writes without a library: random patches of arrays that are kept open.

    Parameters
    ----------
    open_array
        Opens a file as something that boxes are read from with slices.
    take
        Makes a patch of what such a slice returns.
    paths, shapes
        The files, and the extents of each.
    size
        Of the patches.
    """

    def __init__(
        self,
        open_array: Callable[[Path], Any],
        take: Callable[[Any], NDArray[Any]],
        paths: Sequence[Path],
        shapes: Sequence[tuple[int, ...]],
        size: EpochSize,
    ) -> None:
        self._open_array, self._take = open_array, take
        self._paths, self._shapes = paths, shapes
        self._edge, self._of_each = size.edge, size.patches_per_volume
        # Filled by the process that reads: forked workers open files of their own.
        self._opened: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._paths) * self._of_each

    def __getitem__(self, index: int) -> dict[str, Any]:
        number = index // self._of_each
        return {"image": torch.from_numpy(self.read(number, self.start(index)))[None]}

    def start(self, index: int) -> list[int]:
        """Return where the patch of an index begins."""
        rooms = [n - self._edge + 1 for n in self._shapes[index // self._of_each]]
        starts: list[int] = np.random.default_rng(index).integers(0, rooms).tolist()
        return starts

    def read(self, number: int, start: Sequence[int]) -> NDArray[Any]:
        """Return a patch."""
        if number not in self._opened:
            self._opened[number] = self._open_array(self._paths[number])
        box = tuple(slice(a, a + self._edge) for a in start)
        return self._take(self._opened[number][box])


def our_loader(paths: Sequence[Path], size: EpochSize) -> DataLoader[Any]:
    """Return our loader of some files."""
    return create_training_dataloader(
        [str(path) for path in paths],
        patch_size=size.edge,
        batch_size=BATCH,
        patches_per_volume=size.patches_per_volume,
        num_workers=size.workers,
        pin_memory=False,
    )


def local_loaders(files: TrainingFiles, size: EpochSize) -> dict[str, Epochs]:
    """Return ours, by what it reads, and plain datasets; each compared with the true values."""
    kinds = {
        "patch": planned_for(size.edge),
        "speed": planned_for(size.edge, "speed"),
    }
    found = {}
    for name, kind in OURS.items():
        paths = files.paths(kinds.get(kind, kind))
        _check_ours(files, our_loader(paths, _alone(size)))
        found[name] = Epochs(our_loader(paths, size))
    for name, kind, open_array, take in (
        (MLARRAY, REFERENCE, mlarray.MLArray.open, np.asarray),
        # Copied when written to: PyTorch warns of tensors over memory that cannot be.
        (MEMORY_MAP, MAPPED, partial(np.load, mmap_mode="c"), np.asarray),
        (MEMORY_MAP_COPY, MAPPED, partial(np.load, mmap_mode="r"), np.array),
    ):
        paths = files.paths(kind)
        make = partial(_PlainDataset, open_array, take, paths, files.shapes, size)
        _check_plain(files, name, make())
        found[name] = Epochs(_data_loader(make(), workers=size.workers))
    return found


def nifti_loaders(files: TrainingFiles, size: EpochSize) -> tuple[dict[str, Epochs], list[Skip]]:
    """Return TorchIO's and MONAI's ways: a patch of each volume read, and several."""
    found: dict[str, Epochs] = {}
    skips = []
    paths = [str(path) for path in files.paths(NIFTI)]
    for name, make in ((TORCHIO, _torchio), (MONAI, _monai)):
        try:
            for of_each in (1, _KEPT):
                each = name if of_each == 1 else f"{name}, {of_each} patches of each"
                found[each] = make(paths, size, of_each)
        except ImportError as error:
            skips.append(Skip(contender=name, reason=str(error)))
    return found, skips


def radiobject_process(
    files: TrainingFiles, folder: Path, stack: ExitStack
) -> tuple[Callable[[EpochSize], Loader] | None, list[Skip]]:
    """Start RadiObject's Python, let it write its arrays, and return what makes loaders there.

    Parameters
    ----------
    files
        What it reads the volumes of.
    folder
        Where it writes.
    stack
        Ends the process.
    """
    python = os.environ.get(_OTHER_PYTHON)
    if python is None:
        reason = f"{_OTHER_PYTHON} names no Python that has it and torch"
        return None, [Skip(contender=RADIOBJECT, reason=reason)]
    command = [python, str(Path(radiobject_loading.__file__)), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    stack.callback(process.communicate)
    _ask(process, "write", [str(path) for path in files.paths(MAPPED)])
    _check_radiobject(files, process)

    def make(size: EpochSize) -> Loader:
        _ask(process, "open", size.edge, size.patches_per_volume, size.workers, BATCH)
        return _Elsewhere(process)

    return make, []


class _Elsewhere:
    """A loader in another process, one at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    @property
    def patches(self) -> int:
        return int(_ask(self._process, "patches"))

    def prepare(self, repeat: int) -> None:
        _ask(self._process, "prepare", repeat)

    def act(self, repeat: int) -> None:
        _ask(self._process, "act", repeat)


def _ask(process: subprocess.Popen[str], command: str, *arguments: Any) -> Any:
    """Return the answer to a command."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([command, arguments]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def _data_loader(dataset: Dataset[Any], *, workers: int, **how: Any) -> DataLoader[Any]:
    """Return PyTorch's own loader, as one sets it up for training."""
    kept = {"persistent_workers": True} if workers else {}
    return DataLoader(
        dataset,
        **{"batch_size": BATCH, "shuffle": True, "drop_last": True, **kept, **how},
        num_workers=workers,
    )


def _torchio(paths: list[str], size: EpochSize, of_each: int) -> Epochs:
    """Return TorchIO's loader: a queue where several patches are taken of each volume."""
    tio: Any = importlib.import_module("torchio")
    subjects = [tio.Subject(image=tio.ScalarImage(path)) for path in paths]
    sampler = tio.UniformSampler(size.edge)
    if of_each > 1:
        queue = tio.Queue(
            tio.SubjectsDataset(subjects),
            max_length=of_each * len(paths),
            samples_per_volume=of_each,
            sampler=sampler,
            num_workers=size.workers,
        )
        return Epochs(tio.SubjectsLoader(queue, batch_size=BATCH, num_workers=0), passed=0)
    # A transform that takes one patch, which then is all that workers hand over.
    dataset = tio.SubjectsDataset(subjects, transform=lambda subject: next(sampler(subject)))
    loader = tio.SubjectsLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=size.workers)
    return Epochs(loader, passed=0)


def _monai(paths: list[str], size: EpochSize, of_each: int) -> Epochs:
    """Return MONAI's loader: transforms that read a volume and take patches of it."""
    monai: Any = importlib.import_module("monai.transforms")
    data: Any = importlib.import_module("monai.data")
    transform = monai.Compose(
        [
            monai.LoadImaged("image"),
            monai.EnsureChannelFirstd("image"),
            monai.RandSpatialCropSamplesd(
                "image", [size.edge] * 3, num_samples=of_each, random_size=False
            ),
        ]
    )
    dataset = data.Dataset([{"image": path} for path in paths], transform)
    # Of each volume comes a list of patches, which the batch is made of.
    loader = data.DataLoader(
        dataset,
        batch_size=BATCH if of_each == 1 else 1,
        shuffle=True,
        num_workers=size.workers,
    )
    return Epochs(loader, passed=0)


def _alone(size: EpochSize) -> EpochSize:
    """Return the same epoch without workers."""
    return EpochSize(edge=size.edge, patches_per_volume=BATCH, workers=0)


def _check_ours(files: TrainingFiles, loader: DataLoader[Any]) -> None:
    """Compare a batch with the true values."""
    batch = next(iter(loader))
    for image, box, subject in zip(batch["image"], batch["box"], batch["subject"], strict=True):
        true = files.values(int(subject))[slices(box.tolist())]
        if not np.array_equal(image[0].numpy(), true):
            msg = f"our loader reads wrong values from {box.tolist()} of {subject}"
            raise RuntimeError(msg)


def _check_plain(files: TrainingFiles, name: str, dataset: _PlainDataset) -> None:
    """Compare the last patch with the true values."""
    index, number = len(dataset) - 1, len(files.shapes) - 1
    patch = dataset[index]["image"][0].numpy()
    box = tuple((a, a + n) for a, n in zip(dataset.start(index), patch.shape, strict=True))
    if not np.array_equal(patch, files.values(number)[slices(box)]):
        msg = f"{name} reads wrong values from {box}"
        raise RuntimeError(msg)


def _check_radiobject(files: TrainingFiles, process: subprocess.Popen[str]) -> None:
    """Compare the sums of patches with those of the true values."""
    edge = files.edges[0]
    for number, start, total in _ask(process, "sums", edge):
        box = tuple((a, a + edge) for a in start)
        if int(files.values(number)[slices(box)].sum(dtype=np.int64)) != total:
            msg = f"{RADIOBJECT} reads wrong values from {box} of {number}"
            raise RuntimeError(msg)
