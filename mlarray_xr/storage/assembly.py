"""Assembly: encoded chunks become one frame, in any order, checked before it is published."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.trailer import METADATA_NAME
from mlarray_xr.storage.encode import encode_index
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlarray_xr.storage.encode import EncodedChunk, FramePlan

__all__ = ["FrameWriter"]

_FRAME_LEN_AT = 16
_PAYLOAD_LEN_AT = 39


class FrameWriter:
    """Writes one frame into a new file: chunks in any order, each exactly once, then `finish`.

    Parameters
    ----------
    file
        An empty file on disk, open for writing; see `mlarray_xr.storage.publication`.
    plan
        What is written.
    metadata
        The encoded metadata entry.
    """

    def __init__(self, file: BinaryIO, *, plan: FramePlan, metadata: bytes) -> None:
        self._file, self._plan = file, plan
        self._header, self._trailer = _template(plan, metadata)
        n_chunks = int(np.prod(plan.chunk_grid, dtype=np.int64)) if 0 not in plan.shape else 0
        self._offsets = np.zeros(n_chunks, np.int64)
        self._is_written = np.zeros(n_chunks, np.bool_)
        self._payload_len = 0
        file.write(self._header)

    def append(self, chunks: Iterable[EncodedChunk]) -> None:
        """Add chunks to the frame.

        Raises
        ------
        ValueError
            When a chunk was added before.
        """
        for chunk in chunks:
            if self._is_written[chunk.number]:
                msg = f"chunk {chunk.number} was written before"
                raise ValueError(msg)
            if chunk.special:
                self._offsets[chunk.number] = (chunk.special - 128) << 56
            else:
                self._offsets[chunk.number] = self._payload_len
                self._file.write(chunk.data)
                self._payload_len += len(chunk.data)
            self._is_written[chunk.number] = True

    def finish(self) -> int:
        """Write chunk table, trailer and final header, and open the frame as a reader would.

        Returns
        -------
        int
            Bytes of the frame.

        Raises
        ------
        ValueError
            When chunks are missing.
        FormatError
            When the frame does not read back.
        """
        if not self._is_written.all():
            missing = np.flatnonzero(~self._is_written)
            msg = f"{len(missing)} chunks were never written, the first is {missing[0]}"
            raise ValueError(msg)
        index = encode_index(self._offsets) if len(self._offsets) else b""
        total = len(self._header) + self._payload_len + len(index) + len(self._trailer)
        header = bytearray(self._header)
        struct.pack_into(">Q", header, _FRAME_LEN_AT, total)
        struct.pack_into(">q", header, _PAYLOAD_LEN_AT, self._payload_len)
        self._file.write(index + self._trailer)
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        found = open_frame(source_of(self._file.name)).header
        if (found.shape, found.dtype_str) != (self._plan.shape, self._plan.dtype.str):
            msg = (
                f"{self._plan.shape} was written, {found.shape} reads back: the disk may be failing"
            )
            raise FormatError(msg)
        return total


def _template(plan: FramePlan, metadata: bytes) -> tuple[bytes, bytes]:
    """Return header and trailer of a frame, written by python-blosc2 itself.

    An in-memory frame of uninitialised chunks has them byte for byte, but for two lengths.
    """
    import blosc2

    empty = blosc2.uninit(
        plan.shape,
        dtype=plan.dtype,
        chunks=plan.layout.chunks,
        blocks=plan.layout.blocks,
        cparams=plan.cparams(),
        contiguous=True,
    )
    if (empty.chunks, empty.blocks) != (plan.layout.chunks, plan.layout.blocks):
        msg = f"Blosc2 made chunks {empty.chunks} of {empty.blocks} where {plan.layout} was asked"
        raise ValueError(msg)
    empty.schunk.vlmeta[METADATA_NAME] = metadata
    frame = empty.to_cframe()
    (header_len,) = struct.unpack_from(">i", frame, 11)
    (trailer_len,) = struct.unpack_from(">I", frame, len(frame) - 22)
    return frame[:header_len], frame[-trailer_len:]
