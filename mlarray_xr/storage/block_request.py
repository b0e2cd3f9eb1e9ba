"""Blocks of chunks: what boxes and points ask of a reader, and how it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BlockReader", "ChunkBlocks", "Take"]

Take: TypeAlias = Callable[[int, "NDArray[Any]"], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkBlocks:
    """Some blocks of one chunk."""

    chunk: int
    """C-order number of the chunk in the grid."""
    blocks: NDArray[np.int64]
    """Numbers of the blocks in the padded chunk, C order of its grid of blocks; ascending."""


class BlockReader(Protocol):
    """Decodes whole blocks."""

    def read_blocks(
        self, wanted: Iterable[ChunkBlocks], take: Take, *, threads: int | None
    ) -> None:
        """Call ``take(i, values)`` once for the i-th request, in any order, from any thread.

        `values` has the shape ``(n, *blocks)``, blocks at the edge of the chunk are padded; it is
        C-contiguous, of the array's dtype, and valid during the call only.
        """
