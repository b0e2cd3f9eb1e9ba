"""Test data: volumes that look like MRI to a codec, written by the reference package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import mlarray
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.size import Size

__all__ = ["Box", "Volume", "Workplace", "make_values", "random_boxes"]

Box = tuple[tuple[int, int], ...]
TypeName = Literal["int16", "float32", "uint8"]

_SEED = 20_240_229
_PEAK = 700.0
_NOISE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """One volume: its values and the file that holds them."""

    values: NDArray[Any]
    """The oracle every contender is compared with."""
    path: Path
    """The file, in the reference package's default layout."""
    folder: Path
    """Where contenders put their copies."""

    @property
    def ratio(self) -> float:
        """Decoded bytes over bytes of the file."""
        return self.values.nbytes / self.path.stat().st_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """A temporary folder and the volumes made in it so far."""

    folder: Path
    """Removed by whoever made it."""
    size: Size
    """How large the volumes are."""
    _volumes: dict[str, Volume] = field(default_factory=dict)

    def volume(self, type_name: TypeName) -> Volume:
        """Return the volume of one type, made on first use."""
        if type_name not in self._volumes:
            folder = self.folder / type_name
            folder.mkdir()
            values, path = make_values(self.size.shape, type_name), folder / "volume.mla"
            mlarray.MLArray(values).save(path)
            self._volumes[type_name] = Volume(values=values, path=path, folder=folder)
        return self._volumes[type_name]


def make_values(shape: tuple[int, ...], type_name: TypeName) -> NDArray[Any]:
    """Return smooth tissue in an ellipsoid, dark air around it, and noise everywhere.

    The int16 values use about 10 bits; float32 is the same scan scaled to mean 0 and deviation 1,
    as training pipelines store it; uint8 are labels, compact regions of a few classes. The same
    arguments give the same values everywhere.
    """
    rng = np.random.default_rng(_SEED)
    if type_name == "uint8":
        return _labels(rng, shape)
    values = np.zeros(shape, np.float32)
    for grid, weight in ((3, 0.35), (9, 0.25)):
        values += np.float32(weight) * _smooth(rng, shape, grid)
    values += np.float32(0.5)
    values *= np.float32(_PEAK) * _inside(shape)
    rows = max(1, (1 << 22) // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        slab = values[start : start + rows]
        slab += np.float32(_NOISE) * rng.standard_normal(slab.shape, np.float32)
        np.abs(slab, out=slab)
    scan = np.rint(values, out=values).astype(np.int16)
    if type_name == "int16":
        return scan
    mean, deviation = scan.mean(dtype=np.float64), scan.std(dtype=np.float64)
    scaled: NDArray[np.float32] = ((scan - mean) / deviation).astype(np.float32)
    return scaled


def random_boxes(shape: tuple[int, ...], *, edge: int, count: int, seed: int) -> list[Box]:
    """Return cubes of one edge anywhere in an array, the same for the same seed."""
    rng = np.random.default_rng([_SEED, edge, seed])
    starts = [rng.integers(0, n - edge, endpoint=True, size=count).tolist() for n in shape]
    return [tuple((s, s + edge) for s in corner) for corner in zip(*starts, strict=True)]


def _labels(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return background and five classes with smooth borders."""
    coarse = _smooth(rng, shape, 7) + np.float32(0.4) * _smooth(rng, shape, 17)
    classes = np.digitize(coarse, np.quantile(coarse[::8, ::8, ::8], (0.55, 0.7, 0.8, 0.9, 0.96)))
    classes *= _inside(shape)
    return classes.astype(np.uint8)


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], grid: int) -> NDArray[np.float32]:
    """Return a coarse random grid interpolated linearly to a shape, values in 0..1."""
    field_values = rng.random((grid,) * len(shape), np.float32)
    for axis, extent in enumerate(shape):
        at = np.linspace(0, grid - 1, extent)
        weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid))).astype(np.float32)
        field_values = np.moveaxis(np.tensordot(weights, field_values, (1, axis)), 0, axis)
    return field_values


def _inside(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which voxels lie in the ellipsoid that fills most of the volume."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    parts = [((x - n / 2) / (0.46 * n)) ** 2 for x, n in zip(axes, shape, strict=True)]
    distance: NDArray[np.float64] = sum(parts[1:], start=parts[0])
    return distance < 1
