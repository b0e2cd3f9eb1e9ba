"""Ways of reading values at points from a local file: ours, and what else people have for it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

from benchmarks.contenders import slices
from benchmarks.report import Skip
from mlarray_xr import MlaArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.data import Volume

__all__ = [
    "BLOSC2",
    "CLOUDVOLUME",
    "OURS",
    "ZARR_CHUNKS",
    "ZARR_SHARDED",
    "PointContender",
    "point_contenders",
]

OURS, BLOSC2 = "ours", "blosc2 fancy index"
ZARR_SHARDED, ZARR_CHUNKS = "zarr vindex, shard = chunk", "zarr vindex, same chunks"
CLOUDVOLUME = "CloudVolume, warm LRU"
_CLOUDVOLUME_EDGE = 64
_CACHE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class PointContender:
    """One way of reading points."""

    name: str
    """What reports call it."""
    pick: Callable[[NDArray[np.int64]], Any]
    """Reads the points of (axes, n) indices, into an array or a mapping by point."""
    most_points: int
    """More would take minutes."""


def point_contenders(volume: Volume) -> tuple[list[PointContender], list[Skip]]:
    """Return the ways of reading the points of a volume, each compared with the true values.

    Raises
    ------
    RuntimeError
        When one reads wrong values: its time would mean nothing.
    """
    array, opened = MlaArray(volume.path), blosc2.open(volume.path, mode="r")
    found = [
        PointContender(name=OURS, pick=lambda p: array[tuple(p)], most_points=10**9),
        PointContender(name=BLOSC2, pick=lambda p: opened[tuple(p)], most_points=10**7),
        *_zarr(volume, array),
    ]
    skips: list[Skip] = []
    try:
        found.append(_cloudvolume(volume))
    except ImportError as error:
        skips.append(Skip(contender=CLOUDVOLUME, reason=str(error)))
    points = np.random.default_rng(0).integers(
        0, min(volume.values.shape), (volume.values.ndim, 50)
    )
    for contender in found:
        values = contender.pick(points)
        if isinstance(values, dict):
            values = [np.asarray(values[p]).item() for p in zip(*points.tolist(), strict=True)]
        if not np.array_equal(values, volume.values[tuple(points)]):
            msg = f"{contender.name} reads wrong values"
            raise RuntimeError(msg)
    return found, skips


def _zarr(volume: Volume, array: MlaArray) -> list[PointContender]:
    """Write two stores of the file's chunks, codec and, in shards, blocks."""
    import zarr
    from zarr.codecs import BloscCodec

    chunks, blocks = array.chunks, array.blocks
    shard = tuple(-(-c // b) * b for c, b in zip(chunks, blocks, strict=True))
    found = []
    for name, inner, outer in ((ZARR_SHARDED, blocks, shard), (ZARR_CHUNKS, chunks, None)):
        store = zarr.create_array(
            volume.folder / f"{name}.zarr",
            shape=volume.values.shape,
            dtype=volume.values.dtype,
            chunks=inner,
            shards=outer,
            compressors=BloscCodec(
                typesize=volume.values.itemsize, cname="lz4hc", clevel=8, shuffle="shuffle"
            ),
        )
        store[...] = volume.values
        found.append(_vindex(name, store))
    return found


def _vindex(name: str, store: Any) -> PointContender:
    """Return what reads points of a Zarr array."""
    return PointContender(name=name, pick=lambda p: store.vindex[tuple(p)], most_points=10**5)


def _cloudvolume(volume: Volume) -> PointContender:
    """Write a Neuroglancer Precomputed volume, and read all of it into the cache."""
    cloudvolume: Any = importlib.import_module("cloudvolume")
    path, extents = volume.folder / "precomputed", volume.values.shape
    info = cloudvolume.CloudVolume.create_new_info(
        num_channels=1,
        layer_type="image",
        data_type=str(volume.values.dtype),
        encoding="raw",
        resolution=[1, 1, 1],
        voxel_offset=[0, 0, 0],
        volume_size=extents,
        chunk_size=[min(_CLOUDVOLUME_EDGE, n) for n in extents],
    )
    written = cloudvolume.CloudVolume(f"file://{path}", info=info, compress=False, progress=False)
    written.commit_info()
    written[...] = volume.values[..., None]
    layer = cloudvolume.CloudVolume(f"file://{path}", lru_bytes=_CACHE_BYTES, progress=False)
    layer[slices(tuple((0, n) for n in extents))]

    def pick(points: NDArray[np.int64]) -> Any:
        return layer.scattered_points(points.T.tolist())

    return PointContender(name=CLOUDVOLUME, pick=pick, most_points=10**4)
