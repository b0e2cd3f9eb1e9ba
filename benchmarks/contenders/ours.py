"""MlaArray, with one thread or the default pool, into reused or fresh buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from benchmarks.contenders import Contender
from mlarray_xr import MlaArray

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["FRESH", "NAMES", "ONE_THREAD", "POOL", "open_dataset", "prepare"]

ONE_THREAD = "ours, 1 thread"
POOL = "ours, default threads"
FRESH = "ours, 1 thread, fresh buffers"
NAMES = (ONE_THREAD, POOL, FRESH)


def prepare(volume: Volume) -> list[Contender]:
    """Return the three ways of reading the file itself."""

    def reused(threads: int | None) -> Read:
        array = MlaArray(volume.path, threads=threads)
        buffers: dict[tuple[int, ...], NDArray[Any]] = {}

        def read(box: Box) -> NDArray[Any]:
            shape = tuple(stop - start for start, stop in box)
            if shape not in buffers:
                buffers[shape] = np.empty(shape, array.dtype)
            return array.read(box, out=buffers[shape])

        return read

    return [
        Contender(name=ONE_THREAD, open_reader=lambda: reused(1)),
        Contender(name=POOL, open_reader=lambda: reused(None)),
        Contender(name=FRESH, open_reader=lambda: MlaArray(volume.path, threads=1).read),
    ]


def open_dataset(path: Path, *, chunks: Any = None) -> xr.Dataset:
    """Open a file as an xarray user does."""
    return xr.open_dataset(path, engine="mlarray", chunks=chunks)
