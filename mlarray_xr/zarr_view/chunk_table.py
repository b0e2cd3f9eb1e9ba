"""Where the chunks of a file lie in it, as other programs that read byte ranges want to know it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.format.block_layout import most_chunk_bytes
from mlarray_xr.storage.frame_file import read_index, special_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.storage.remote_source import Source

__all__ = ["ChunkTable"]

_NAN = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkTable:
    """The byte ranges of all chunks of one file, in C order of the chunk grid.

    Examples
    --------
    >>> import mlarray_xr
    >>> from mlarray_xr.storage.source import source_of
    >>> values = np.zeros((16, 16), "int16")
    >>> values[:8, :8] = 7
    >>> _ = mlarray_xr.to_mla(values, "corner.mla", chunks=8, blocks=8)
    >>> table = ChunkTable.read(source_of("corner.mla"))
    >>> table.grid, table.special.tolist()
    ((2, 2), [0, 1, 1, 1])
    """

    grid: tuple[int, ...]
    """Number of chunks along each axis; 0 along an axis without extent."""
    starts: NDArray[np.int64]
    """First byte of each chunk in the file; 0 of those without payload."""
    lengths: NDArray[np.int64]
    """The most bytes that each takes: up to the next one, which another program may have moved
    away. Its own header tells how many it does take. 0 of those without payload."""
    special: NDArray[np.uint8]
    """What chunks without payload hold: 1 zeros, 2 NaN, 4 nothing yet, read as zeros; 0 of the
    others."""

    @classmethod
    def read(cls, source: Source) -> ChunkTable:
        """Read the chunk table of a file: neither metadata nor voxels.

        Raises
        ------
        FormatError
            When the frame or its table is damaged.
        SourceChanged
            When the file changed since the source was made.
        """
        header, offsets = read_index(source)
        is_stored = offsets >= 0
        # An extent ends where the next one begins, or with the payload.
        edges = np.append(np.unique(offsets[is_stored]), np.int64(header.payload_len))
        following = edges[np.searchsorted(edges, offsets, side="right") % len(edges)]
        lengths = np.minimum(following - offsets, most_chunk_bytes(header)) if len(offsets) else 0
        return cls(
            grid=header.chunk_grid,
            starts=np.where(is_stored, offsets + header.header_len, 0),
            lengths=np.where(is_stored, lengths, 0),
            special=special_codes(offsets),
        )

    def fill_value(self, dtype: np.dtype[Any]) -> float | int | bool:
        """Return what a reader shall take for chunks that it does not find, as plain data.

        Zero, but for a file that has chunks of NaN and none of zeros.
        """
        has_nan = bool((self.special == _NAN).any()) and dtype.kind == "f"
        if has_nan and not np.isin(self.special, (1, 4)).any():
            return float("nan")
        return False if dtype.kind == "b" else 0

    def odd(self, dtype: np.dtype[Any]) -> NDArray[np.int64]:
        """Return the numbers of the chunks without payload that `fill_value` is not right for."""
        if self.fill_value(dtype) == 0:
            return np.flatnonzero(self.special == _NAN)
        return np.zeros(0, np.int64)
