"""Epochs of a loader, and RadiObject's loader in another Python.

Run as a program it reads commands from standard input, one JSON value a line; it then needs
radiobject, torch and nothing of this project.
"""

from __future__ import annotations

import gc
import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, DataLoader

__all__ = ["Epochs"]


class Epochs:
    """A loader, taken epoch by epoch; its workers start with the first one and stay.

    Parameters
    ----------
    loader
        A `torch.utils.data.DataLoader`, or what iterates like one.
    passed
        Batches at the start of an epoch that are not measured: those that workers read ahead, and
        one more for each of them, unless given.
    """

    def __init__(self, loader: Any, *, passed: int | None = None) -> None:
        ahead = loader.num_workers * (1 + (loader.prefetch_factor or 0))
        self._loader, self._passed = loader, ahead if passed is None else passed
        self._batches: Any = None
        self.patches = 0

    def prepare(self, repeat: int) -> None:  # noqa: ARG002 - every epoch is like the others
        """Begin an epoch and pass its first batches."""
        self._batches = iter(self._loader)
        for _ in range(self._passed):
            next(self._batches)

    def act(self, repeat: int) -> None:  # noqa: ARG002
        """Take the rest of the epoch, and count its patches."""
        self.patches = sum(_length(batch) for batch in self._batches)


def _length(batch: Any) -> int:
    """Return the number of patches in a batch."""
    image = batch["image"]
    return len(image["data"] if isinstance(image, dict) else image)


class _RadiObject:
    """The volumes as TileDB arrays; those of equal extents are one collection, as it demands."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._collections: list[Any] = []
        self._epochs: Epochs | None = None

    def write(self, paths: list[str]) -> None:
        """Write one collection for each shape, of NumPy files in order."""
        import nibabel
        import radiobject
        from radiobject.ctx import SliceOrientation, TileConfig, WriteConfig

        tile = TileConfig(orientation=SliceOrientation.ISOTROPIC)
        radiobject.configure(write=WriteConfig(tile=tile))
        self._folder.mkdir(parents=True, exist_ok=True)
        shapes = [np.load(path, mmap_mode="r").shape for path in paths]
        for number, (_, group) in enumerate(
            groupby(zip(shapes, paths, strict=True), lambda x: x[0])
        ):
            niftis = []
            for _, path in group:
                nifti = self._folder.parent / f"{Path(path).stem}_CT.nii"
                nibabel.save(nibabel.Nifti1Image(np.load(path), np.eye(4)), nifti)
                niftis.append((nifti, Path(path).stem))
            uri = str(self._folder / str(number))
            collection = radiobject.VolumeCollection.from_niftis(uri, niftis, reorient=False)
            self._collections.append(collection)
            for nifti, _ in niftis:
                nifti.unlink()

    def open(self, edge: int, of_each: int, workers: int, batch_size: int) -> None:
        """Make the loader anew."""
        from radiobject.ml.utils.worker_init import worker_init_fn

        self._epochs = None
        gc.collect()
        # As its create_training_dataloader does, which takes volumes of one shape only and whose
        # workers, forked, wait for ever.
        loader = DataLoader(
            self._dataset(edge, of_each),
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            worker_init_fn=worker_init_fn if workers else None,
            drop_last=True,
        )
        self._epochs = Epochs(loader)

    def sums(self, edge: int) -> list[tuple[int, list[int], int]]:
        """Return number of the volume, start and sum of a patch of each volume."""
        found = []
        for number, sample in enumerate(self._dataset(edge, 1)):
            start = [int(a) for a in sample["patch_start"]]
            found.append((number, start, int(sample["image"].sum())))
        return found

    def prepare(self, repeat: int) -> None:
        """Begin an epoch."""
        assert self._epochs is not None
        self._epochs.prepare(repeat)

    def act(self, repeat: int) -> None:
        """Take the rest of it."""
        assert self._epochs is not None
        self._epochs.act(repeat)

    def patches(self) -> int:
        """Return the patches of that."""
        assert self._epochs is not None
        return self._epochs.patches

    def _dataset(self, edge: int, of_each: int) -> ConcatDataset[Any]:
        """Return its datasets of all collections, one after another."""
        from radiobject.ml import DatasetConfig, LoadingMode, VolumeCollectionDataset

        config = DatasetConfig(
            loading_mode=LoadingMode.PATCH, patch_size=(edge,) * 3, patches_per_volume=of_each
        )
        return ConcatDataset([VolumeCollectionDataset(c, config) for c in self._collections])


def _obey() -> None:
    """Carry out commands until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr
    reader = _RadiObject(Path(sys.argv[1]))
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(getattr(reader, command)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    _obey()
