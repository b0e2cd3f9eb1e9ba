"""Training files: twenty volumes of different sizes, in every format that loaders read."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import mlarray
import numpy as np

from benchmarks.data import make_values
from mlarray_xr import to_mla

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.size import Size

__all__ = ["DEFAULT", "MAPPED", "NIFTI", "REFERENCE", "TrainingFiles", "planned_for", "write_files"]

REFERENCE, DEFAULT = "MLArray(values).save", "to_mla(values)"
MAPPED, NIFTI = "numpy.save", "NIfTI, gzip"
_SHAPES = {
    "full": (
        (160, 160, 160),
        (160, 224, 224),
        (208, 256, 208),
        (256, 288, 256),
        (320, 320, 320),
    ),
    "smoke": ((40, 44, 48), (48, 40, 44)),
}
_EDGES = {"full": (64, 96, 128), "smoke": (24,)}
# Every shape is there several times, turned over: other values at every place, as noisy as before.
_TURNS = {"full": ((), (0,), (1, 2), (0, 1, 2)), "smoke": ((),)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFiles:
    """The volumes, and the folders that hold all of them in one format each."""

    shapes: tuple[tuple[int, int, int], ...]
    """Extents of each volume, array order; equal ones follow each other."""
    edges: tuple[int, ...]
    """Edges of the cubic patches."""
    folders: dict[str, Path]
    """By format."""

    def paths(self, kind: str) -> list[Path]:
        """Return the files of one format, in the order of `shapes`."""
        return sorted(self.folders[kind].iterdir())

    def values(self, number: int) -> NDArray[Any]:
        """Return the true values of a volume, mapped."""
        values: NDArray[Any] = np.load(self.paths(MAPPED)[number], mmap_mode="r")
        return values

    @property
    def voxels(self) -> int:
        """Voxels of all volumes."""
        return sum(a * b * c for a, b, c in self.shapes)


def planned_for(edge: int, prefer: str = "balanced") -> str:
    """Return what files are called that `to_mla` wrote for a patch."""
    preferred = "" if prefer == "balanced" else f', prefer="{prefer}"'
    return f"to_mla(patch={edge}{preferred})"


def write_files(folder: Path, size: Size, *, with_nifti: bool) -> TrainingFiles:
    """Write every volume in every format; the same values everywhere.

    Parameters
    ----------
    folder
        Does not exist yet; gets a folder for each format.
    size
        Decides how many volumes there are and how large they are.
    with_nifti
        Whether NIfTI is one of the formats, which takes long to write.
    """
    edges = _EDGES[size.name]
    writers = dict(_writers(edges, with_nifti=with_nifti))
    folders = {kind: folder / str(number) for number, kind in enumerate(writers)}
    for each in folders.values():
        each.mkdir(parents=True)
    shapes = []
    for shape in _SHAPES[size.name]:
        values = make_values(shape, "int16")
        for turn in _TURNS[size.name]:
            turned = np.ascontiguousarray(np.flip(values, turn))
            for kind, (suffix, write) in writers.items():
                write(turned, folders[kind] / f"{len(shapes):04}.{suffix}")
            shapes.append(shape)
    return TrainingFiles(shapes=tuple(shapes), edges=edges, folders=folders)


def copied(path: Path, folder: Path, count: int) -> list[Path]:
    """Copy a file many times and return the copies."""
    folder.mkdir()
    paths = [folder / f"{number:04}{path.suffix}" for number in range(count)]
    for each in paths:
        shutil.copyfile(path, each)
    return paths


def _writers(
    edges: tuple[int, ...], *, with_nifti: bool
) -> Iterator[tuple[str, tuple[str, Callable[[NDArray[Any], Path], object]]]]:
    """Yield every format with its suffix and what writes it."""
    yield MAPPED, ("npy", lambda values, path: np.save(path, values))
    yield REFERENCE, ("mla", lambda values, path: mlarray.MLArray(values).save(path))
    yield DEFAULT, ("mla", to_mla)
    for edge, prefer in product(edges, ("balanced", "speed")):
        yield planned_for(edge, prefer), ("mla", partial(to_mla, patch=edge, prefer=prefer))
    if with_nifti:
        yield NIFTI, ("nii.gz", _write_nifti)


def _write_nifti(values: NDArray[Any], path: Path) -> None:
    """Write NIfTI, its axes in the order of the array."""
    import nibabel

    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
