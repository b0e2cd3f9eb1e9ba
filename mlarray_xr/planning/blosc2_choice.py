"""The layout that Blosc2 itself would choose on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mlarray_xr.planning.codec import Codec

__all__ = ["blosc2_layout"]


def blosc2_layout(
    shape: tuple[int, ...], itemsize: int, *, codec: Codec
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunks and blocks as `blosc2.compute_chunks_blocks` does.

    It goes by the caches that Blosc2 finds on this machine and by the codec, not by what will be
    read, and may differ between releases of Blosc2.

    Parameters
    ----------
    shape
        Extents of the array.
    itemsize
        Bytes of an element.
    codec
        Compression.

    Examples
    --------
    >>> from mlarray_xr.planning.codec import DEFAULT_CODEC
    >>> blosc2_layout((4, 5), 2, codec=DEFAULT_CODEC)
    ((4, 5), (4, 5))
    """
    import blosc2

    params = codec.cparams(itemsize)
    chunks, blocks = blosc2.compute_chunks_blocks(
        shape,
        dtype=np.dtype(f"V{itemsize}"),
        cparams={"codec": blosc2.Codec(params["codec"]), "clevel": codec.level},
    )
    return tuple(map(int, chunks)), tuple(map(int, blocks))
