"""NumPy: an uncompressed file, mapped; the patch is copied out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders import Contender, slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["NAMES", "prepare"]

NAMES = ("numpy.memmap copy (uncompressed)",)


def prepare(volume: Volume) -> list[Contender]:
    """Write the file and return its reader."""
    path = volume.folder / "volume.npy"
    np.save(path, volume.values)

    def open_reader() -> Read:
        mapped = np.load(path, mmap_mode="r")

        def read(box: Box) -> NDArray[Any]:
            return np.array(mapped[slices(box)])

        return read

    return [Contender(name=NAMES[0], open_reader=open_reader)]
