"""h5py with hdf5plugin's Blosc2 filter: 64-cubed chunks, the same codec as the file."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Contender, slices
from benchmarks.contenders.zarr_store import CHUNK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["NAMES", "prepare"]

NAMES = ("h5py + hdf5plugin Blosc2",)


def prepare(volume: Volume) -> list[Contender]:
    """Write the file and return its reader."""
    h5py: Any = importlib.import_module("h5py")
    hdf5plugin: Any = importlib.import_module("hdf5plugin")
    path, name = volume.folder / "volume.h5", "image"
    with h5py.File(path, "w") as file:
        codec = hdf5plugin.Blosc2(cname="lz4hc", clevel=8, filters=hdf5plugin.Blosc2.SHUFFLE)
        file.create_dataset(
            name, data=volume.values, chunks=(CHUNK,) * volume.values.ndim, compression=codec
        )

    def open_reader() -> Read:
        dataset = h5py.File(path, "r")[name]

        def read(box: Box) -> NDArray[Any]:
            patch: NDArray[Any] = dataset[slices(box)]
            return patch

        return read

    return [Contender(name=NAMES[0], open_reader=open_reader)]
