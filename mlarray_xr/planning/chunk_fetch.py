"""How much of a stored chunk is fetched for some of its blocks, and blocks nobody asked for."""

from __future__ import annotations

import math
from typing import Literal

__all__ = ["plan_chunk_fetch", "plan_even_blocks"]

# A chunk of 4 MiB is stored in one or two: it arrives before a second request, which has to wait
# for the answer of the first, would.
_WHOLE_BYTES = 4 << 20
_BLOCK_BYTES = 64 << 10


def plan_chunk_fetch(
    *, chunk_bytes: int, n_blocks: int, n_wanted: int
) -> Literal["chunk", "blocks"]:
    """Choose between one request for a chunk, and one for its block table and more for blocks.

    Parameters
    ----------
    chunk_bytes
        Decoded bytes of the chunk.
    n_blocks, n_wanted
        Number of its blocks, and of those that are needed.

    Examples
    --------
    >>> plan_chunk_fetch(chunk_bytes=1 << 20, n_blocks=64, n_wanted=1)
    'chunk'
    >>> plan_chunk_fetch(chunk_bytes=64 << 20, n_blocks=64, n_wanted=1)
    'blocks'
    """
    is_small = chunk_bytes <= _WHOLE_BYTES
    return "chunk" if is_small or 2 * n_wanted >= n_blocks else "blocks"


def plan_even_blocks(chunks: tuple[int, ...], *, itemsize: int) -> tuple[int, ...]:
    """Return blocks of at most 64 KiB: the longest axis is halved until they fit.

    Which blocks these are is part of what is stored: chunks do not tell the shape of their blocks.

    Parameters
    ----------
    chunks
        Extents of a chunk, array order.
    itemsize
        Bytes of an element.

    Examples
    --------
    >>> plan_even_blocks((64, 64, 64), itemsize=2)
    (32, 32, 32)
    >>> plan_even_blocks((5, 1000), itemsize=8)
    (5, 1000)
    """
    blocks = list(chunks)
    while max(blocks, default=1) > 1 and math.prod(blocks) * itemsize > _BLOCK_BYTES:
        longest = blocks.index(max(blocks))
        blocks[longest] = -(-blocks[longest] // 2)
    return tuple(blocks)
