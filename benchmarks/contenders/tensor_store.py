"""TensorStore: the stores that zarr-python wrote, read by TensorStore's own C++ threads."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import Contender, slices
from benchmarks.contenders.zarr_store import store_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from benchmarks.contenders import Read
    from benchmarks.data import Box, Volume

__all__ = ["NAMES", "prepare"]

NAMES = ("tensorstore, 64-cubed chunks", "tensorstore, 64-cubed chunks, sharded")


def prepare(volume: Volume) -> list[Contender]:
    """Return readers of both stores."""
    tensorstore: Any = importlib.import_module("tensorstore")

    def open_reader(*, is_sharded: bool) -> Read:
        path = str(store_path(volume, is_sharded=is_sharded))
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        array = tensorstore.open(spec, read=True).result()

        def read(box: Box) -> NDArray[Any]:
            patch: NDArray[Any] = array[slices(box)].read().result()
            return patch

        return read

    return [
        Contender(name=NAMES[0], open_reader=lambda: open_reader(is_sharded=False)),
        Contender(name=NAMES[1], open_reader=lambda: open_reader(is_sharded=True)),
    ]
