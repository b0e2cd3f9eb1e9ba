"""Files that the remote benchmark serves, all of the same values, codec, chunks and blocks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from mlarray_xr import MlaArray, to_mla
from mlarray_xr.format.block_layout import parse_block_layout
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.data import Box, Volume

__all__ = ["stored_block_bytes", "write_served"]

_PLAIN_EDGE = 64


def write_served(volume: Volume, folder: Path) -> None:
    """Write `volume.mla`, `indexed.mla` and three Zarr stores into a new folder.

    The layout is the one that the reference package chooses, the codec LZ4HC 8 with byte shuffle.
    """
    folder.mkdir()
    layout = MlaArray(volume.path).layout
    chunks, blocks = layout.chunks, layout.blocks
    for name, has_index in (("volume.mla", False), ("indexed.mla", True)):
        to_mla(
            volume.values,
            folder / name,
            chunks=chunks,
            blocks=blocks,
            codec="lz4hc-8",
            block_index=has_index,
        )
    # A shard is a whole number of its inner chunks.
    shard = tuple(-(-c // b) * b for c, b in zip(chunks, blocks, strict=True))
    whole = tuple(-(-n // b) * b for n, b in zip(volume.values.shape, blocks, strict=True))
    plain = (_PLAIN_EDGE,) * volume.values.ndim
    for store, inner, outer in (
        ("plain.zarr", plain, None),
        ("sharded.zarr", blocks, shard),
        ("one.zarr", blocks, whole),
    ):
        array = zarr.create_array(
            folder / store,
            shape=volume.values.shape,
            dtype=volume.values.dtype,
            chunks=inner,
            shards=outer,
            compressors=BloscCodec(
                typesize=volume.values.itemsize, cname="lz4hc", clevel=8, shuffle="shuffle"
            ),
        )
        array[...] = volume.values


def stored_block_bytes(path: Path, box: Box) -> int:
    """Return the stored bytes of all blocks that a box touches, from the file itself.

    Parameters
    ----------
    path
        Of a local file whose chunks all have compressed blocks.
    box
        Start and stop per axis.
    """
    stored = path.read_bytes()
    header, offsets = read_index(source_of(stored))
    n_bytes = 0
    grids = [range(a // c, -(-b // c)) for (a, b), c in zip(box, header.chunks, strict=True)]
    counts = [-(-c // b) for c, b in zip(header.chunks, header.blocks, strict=True)]
    for position in np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, len(grids)):
        number = int(np.ravel_multi_index(position, header.chunk_grid))
        first = header.header_len + int(offsets[number])
        layout = parse_block_layout(
            stored[first : first + 32 + 4 * math.prod(counts)],
            header,
            number=number,
            room=len(stored) - first,
            name=path.name,
        )
        touched = []
        for i, (start, stop), c, b in zip(position, box, header.chunks, header.blocks, strict=True):
            inside = max(start - i * c, 0), min(stop - i * c, c)
            touched.append(range(inside[0] // b, -(-inside[1] // b)))
        blocks = np.ravel_multi_index(np.meshgrid(*touched, indexing="ij"), counts).reshape(-1)
        starts, stops = layout.spans(blocks)
        n_bytes += int((stops - starts).sum())
    return n_bytes
