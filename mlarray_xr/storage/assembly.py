"""Assembly: encoded chunks become one frame that appears under its name complete or not at all."""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from typing import TYPE_CHECKING, Self

import numpy as np

from mlarray_xr.errors import FormatError
from mlarray_xr.format.trailer import METADATA_NAME
from mlarray_xr.storage.encode import encode_index
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from mlarray_xr.storage.encode import EncodedChunk, FramePlan

__all__ = ["FrameWriter"]

_FRAME_LEN_AT = 16
_PAYLOAD_LEN_AT = 39


class FrameWriter:
    """Writes one frame into a temporary file beside the target and publishes it on success.

    Chunks may come in any order, each exactly once. `publish` checks that none is missing, writes
    the chunk table and the trailer, reopens the file as a reader would, forces it to disk and
    renames it. Leaving the ``with`` block without `publish` removes the temporary file.

    Parameters
    ----------
    path
        The target.
    plan
        What is written.
    metadata
        The encoded metadata entry.
    overwrite
        Whether an existing target may be replaced.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        When there is no folder for the target, or a folder in its place.
    FileExistsError
        At once, or by `publish` when somebody else made the target meanwhile.
    """

    def __init__(self, path: str, *, plan: FramePlan, metadata: bytes, overwrite: bool) -> None:
        self._path, self._plan, self._overwrite = path, plan, overwrite
        if not overwrite and os.path.lexists(path):
            raise _exists(path)
        folder = os.path.dirname(path)
        if not os.path.isdir(folder or "."):
            msg = f"{path}: the folder does not exist. To fix: os.makedirs({folder!r})"
            raise FileNotFoundError(msg)
        if os.path.isdir(path):
            msg = f"{path}: a folder has this name. To fix: (1) remove it; (2) choose another name"
            raise IsADirectoryError(msg)
        self._header, self._trailer = _template(plan, metadata)
        n_chunks = int(np.prod(plan.chunk_grid, dtype=np.int64)) if 0 not in plan.shape else 0
        self._offsets = np.zeros(n_chunks, np.int64)
        self._is_written = np.zeros(n_chunks, np.bool_)
        self._payload_len = 0
        # Without the target's name: a name of the greatest length leaves no room for a suffix.
        self._temporary = os.path.join(folder, f".{uuid.uuid4().hex}.mla.tmp")

    def __enter__(self) -> Self:
        """Create the temporary file."""
        self._file = open(self._temporary, "xb")
        self._file.write(self._header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close and remove the temporary file; after `publish` there is none."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)

    def append(self, chunks: Iterable[EncodedChunk]) -> None:
        """Add chunks to the frame.

        Raises
        ------
        ValueError
            When a chunk was added before.
        """
        for chunk in chunks:
            if self._is_written[chunk.number]:
                msg = f"chunk {chunk.number} of {self._path} was written before"
                raise ValueError(msg)
            if chunk.special:
                self._offsets[chunk.number] = (chunk.special - 128) << 56
            else:
                self._offsets[chunk.number] = self._payload_len
                self._file.write(chunk.data)
                self._payload_len += len(chunk.data)
            self._is_written[chunk.number] = True

    def publish(self) -> int:
        """Complete the frame and give it its name.

        Returns
        -------
        int
            Bytes of the file.

        Raises
        ------
        ValueError
            When chunks are missing.
        FileExistsError
            When the target exists and must not be replaced.
        """
        if not self._is_written.all():
            missing = np.flatnonzero(~self._is_written)
            msg = f"{len(missing)} chunks of {self._path} were never written, first {missing[0]}"
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
        os.fsync(self._file.fileno())
        self._file.close()
        self._check()
        self._rename()
        return total

    def _check(self) -> None:
        """Open the finished file as a reader would."""
        found = open_frame(source_of(self._temporary)).header
        if (found.shape, found.dtype_str) != (self._plan.shape, self._plan.dtype.str):
            msg = f"{self._path}: wrote {self._plan.shape}, found {found.shape} on reading it back"
            raise FormatError(msg)

    def _rename(self) -> None:
        """Move the file to its name, atomically, and force the directory to disk."""
        if self._overwrite:
            os.replace(self._temporary, self._path)
        else:
            try:
                # Unlike a rename, a link refuses an existing target atomically.
                os.link(self._temporary, self._path)
            except FileExistsError:
                raise _exists(self._path) from None
            except OSError:
                # File systems without hard links: the check and the rename are two steps.
                if os.path.lexists(self._path):
                    raise _exists(self._path) from None
                os.rename(self._temporary, self._path)
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _exists(path: str) -> FileExistsError:
    """Return the error for a target that must not be replaced."""
    return FileExistsError(f"{path}: the file exists. To fix: (1) mode='w' replaces it; (2) rename")


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
