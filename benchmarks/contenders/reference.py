"""The reference package: MLArray.open, which maps the file and slices through python-blosc2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlarray

from benchmarks.contenders import Contender, slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["NAME", "NAMES", "prepare"]

NAME = "MLArray.open"
NAMES = (NAME,)


def prepare(volume: Volume) -> list[Contender]:
    """Return the reference's way of reading the file."""

    def open_reader() -> Read:
        array = mlarray.MLArray.open(volume.path)

        def read(box: Box) -> NDArray[Any]:
            patch: NDArray[Any] = array[slices(box)]
            return patch

        return read

    return [Contender(name=NAME, open_reader=open_reader)]
