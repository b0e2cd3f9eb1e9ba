"""zarr-python: a store of 64-cubed chunks, plain and sharded, the same codec as the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Contender, slices

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["CHUNK", "NAMES", "prepare", "store_path"]

CHUNK = 64
NAMES = ("zarr, 64-cubed chunks", "zarr, 64-cubed chunks, sharded")


def prepare(volume: Volume) -> list[Contender]:
    """Return readers of both stores."""
    import zarr

    def open_reader(path: Path) -> Read:
        array: Any = zarr.open_array(path, mode="r")

        def read(box: Box) -> NDArray[Any]:
            patch: NDArray[Any] = array[slices(box)]
            return patch

        return read

    plain, sharded = (store_path(volume, is_sharded=s) for s in (False, True))
    return [
        Contender(name=NAMES[0], open_reader=lambda: open_reader(plain)),
        Contender(name=NAMES[1], open_reader=lambda: open_reader(sharded)),
    ]


def store_path(volume: Volume, *, is_sharded: bool) -> Path:
    """Return a Zarr 3 store of the volume, written on first use."""
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle

    path = volume.folder / ("sharded.zarr" if is_sharded else "plain.zarr")
    if not path.exists():
        ndim = volume.values.ndim
        array = zarr.create_array(
            path,
            shape=volume.values.shape,
            dtype=volume.values.dtype,
            chunks=(CHUNK,) * ndim,
            shards=(4 * CHUNK,) * ndim if is_sharded else None,
            compressors=BloscCodec(
                typesize=volume.values.itemsize,
                cname="lz4hc",
                clevel=8,
                shuffle=BloscShuffle.shuffle,
            ),
        )
        array[...] = volume.values
    return path
