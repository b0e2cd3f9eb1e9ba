"""Frame ends: what stands before and after the chunks of a frame, once all of them are known."""

from __future__ import annotations

import struct
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.format.block_index import BlockIndex, encode_block_index
from mlarray_xr.format.integrity import ChunkStatistics, Integrity, encode_integrity
from mlarray_xr.storage.encode import encode_index
from mlarray_xr.storage.frame_template import frame_template

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.storage.encode import FramePlan

__all__ = ["frame_ends"]

_FRAME_LEN_AT = 16
_PAYLOAD_LEN_AT = 39


def frame_ends(
    plan: FramePlan,
    metadata: bytes,
    table: NDArray[Any],
    *,
    payload_len: int,
) -> tuple[bytes, bytes]:
    """Return the header of a frame, and the chunk index with the trailer.

    Parameters
    ----------
    plan
        What is written.
    metadata
        The encoded metadata entry.
    table
        The records of all chunks by number; offsets count from the end of the header.
    payload_len
        Bytes between header and index, gaps included.
    """
    special = table["special"].astype(np.int64)
    offsets = np.where(special, (special - 128) << 56, table["offset"])
    index = encode_index(offsets) if len(offsets) else b""
    integrity = encode_integrity(_integrity(plan, table, payload_len=payload_len))
    blocks = _block_index(table, offsets) if plan.n_indexed_blocks else b""
    plain, trailer = frame_template(plan, metadata, integrity, blocks)
    header = bytearray(plain)
    total = len(header) + payload_len + len(index) + len(trailer)
    struct.pack_into(">Q", header, _FRAME_LEN_AT, total)
    struct.pack_into(">q", header, _PAYLOAD_LEN_AT, payload_len)
    return bytes(header), index + trailer


def _block_index(table: NDArray[Any], offsets: NDArray[np.int64]) -> bytes:
    """Return the encoded index of where blocks stand."""
    index = BlockIndex(heads=table["head"], starts=table["starts"], checks=table["checks"])
    return encode_block_index(index, offsets)


def _integrity(plan: FramePlan, table: NDArray[Any], *, payload_len: int) -> Integrity:
    """Return what is recorded of all chunks."""
    columns = {name: np.ascontiguousarray(table[name]) for name in plan.entry_dtype.names or ()}
    statistics = None
    if plan.has_range:
        statistics = ChunkStatistics(
            least=columns["least"], greatest=columns["greatest"], nonzero=columns["nonzero"]
        )
    return Integrity(
        shape=plan.shape,
        chunks=plan.layout.chunks,
        blocks=plan.layout.blocks,
        dtype_str=plan.dtype.str,
        payload_len=payload_len,
        crc32=columns["crc32"],
        length=columns["length"],
        special=columns["special"],
        statistics=statistics,
        writer=f"mlarray_xr {version('mlarray-xr')}",
    )
