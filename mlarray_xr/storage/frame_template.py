"""Frame template: header and trailer of a frame as python-blosc2 writes them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from mlarray_xr.format.block_index import BLOCK_INDEX_NAME
from mlarray_xr.format.integrity import INTEGRITY_NAME
from mlarray_xr.format.planning_entry import PLANNING_NAME, encode_planning
from mlarray_xr.format.trailer import METADATA_NAME
from mlarray_xr.storage.planning_record import planning_facts

if TYPE_CHECKING:
    from mlarray_xr.storage.encode import FramePlan

__all__ = ["frame_template"]


def frame_template(
    plan: FramePlan, metadata: bytes, integrity: bytes, block_index: bytes = b""
) -> tuple[bytes, bytes]:
    """Return header and trailer of a frame, written by python-blosc2 itself.

    An in-memory frame of uninitialised chunks has them byte for byte, but for two lengths. Entries
    that are given as no bytes are left out.
    """
    import blosc2

    empty = blosc2.uninit(
        plan.shape,
        dtype=plan.dtype,
        chunks=plan.layout.chunks,
        blocks=plan.layout.blocks,
        cparams=plan.cparams(),
        dparams=blosc2.DParams(nthreads=1),  # stored, and otherwise this machine's number of cores
        contiguous=True,
    )
    if (empty.chunks, empty.blocks) != (plan.layout.chunks, plan.layout.blocks):
        msg = f"Blosc2 made chunks {empty.chunks} of {empty.blocks} where {plan.layout} was asked"
        raise ValueError(msg)
    empty.schunk.vlmeta[METADATA_NAME] = metadata
    if integrity:
        empty.schunk.vlmeta[INTEGRITY_NAME] = integrity
    if block_index:
        empty.schunk.vlmeta[BLOCK_INDEX_NAME] = block_index
    planning = planning_facts(plan.layout)
    if planning is not None:
        empty.schunk.vlmeta[PLANNING_NAME] = encode_planning(planning)
    frame = empty.to_cframe()
    (header_len,) = struct.unpack_from(">i", frame, 11)
    (trailer_len,) = struct.unpack_from(">I", frame, len(frame) - 22)
    return frame[:header_len], frame[-trailer_len:]
