"""Editing a file in place: elements of a selection are replaced, and what that cost is told."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import SourceError
from mlarray_xr.planning.assignment import fit_values, plan_chunk_selections
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.storage.encode import encode_part
from mlarray_xr.storage.frame_edit import editing
from mlarray_xr.storage.ordered_tasks import run_ordered
from mlarray_xr.storage.source import BytesSource, LocalSource
from mlarray_xr.storage.staging import owned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.assignment import ChunkSelection
    from mlarray_xr.planning.selection import OuterSelection
    from mlarray_xr.storage.editable import EditableFrame
    from mlarray_xr.storage.encode import EncodedChunk
    from mlarray_xr.storage.remote_source import Source

__all__ = ["EditReport", "Edited", "check_mode", "edit_frame", "local_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditReport:
    """What an edit did.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((64, 64), "u1"), "edited.mla", chunks=32, blocks=16)
    >>> array = mlarray_xr.MlaArray("edited.mla", mode="r+")
    >>> report = array.write(((0, 40), (0, 32)), 7)
    >>> report.n_chunks_rewritten, report.n_chunks_read
    (2, 1)
    """

    bytes_written: int
    """Bytes that were written to disk."""
    n_chunks_rewritten: int
    """Number of chunks that were touched, each written anew."""
    n_chunks_read: int
    """How many of them were read first, because only a part of them was given."""
    wasted_bytes: int
    """Bytes of the file that nothing uses, of this edit and all before it."""
    seconds: float
    """Wall time."""
    file_bytes: int
    """Bytes of the file now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A file after an edit."""

    source: LocalSource
    """The file, pinned anew."""
    header: FrameHeader
    """Its header."""
    report: EditReport
    """What was done."""


def edit_frame(source: Source, selection: OuterSelection, values: Any) -> Edited:
    """Replace elements of a file in place.

    Only chunks that are touched are written; those that are touched in part are read, compared
    with their checksum and patched. They are encoded in several threads, as the header of the file
    says, and no more than one chunk per thread is in memory. Checksums and value ranges are kept
    up to date in files that have them; the statistics of the metadata are removed, as they are of
    the old values. All else of the file stays as it is, byte for byte.

    Parameters
    ----------
    source
        A local file, pinned: what it was when the selection was made.
    selection
        The elements.
    values
        What they become: anything that `fit_values` takes.

    Raises
    ------
    SourceChanged
        When it is another file by now.
    TargetBusy
        When somebody else writes or edits it.
    ConversionError
        When the values do not fit the array's type, or new chunks cannot be compressed as the
        others are.
    ValueError
        When they do not broadcast to the selection.
    ChunkError
        When a chunk that must be read is damaged.
    SourceError
        When the file is held in memory or is remote.
    OSError
        When it cannot be written; it then is what it was.
    """
    begin = time.perf_counter()
    source, n_read = local_source(source), 0
    with owned(os.path.realpath(source.path)), editing(source) as edit:
        fitted = fit_values(values, selection, edit.header.dtype)
        with contextlib.closing(run_ordered(_tasks(edit.frame, selection, fitted))) as encoded:
            for chunk, is_read in encoded:
                edit.append([chunk])
                n_read += is_read
        file_bytes = edit.finish()
    report = EditReport(
        bytes_written=edit.appended_bytes,
        n_chunks_rewritten=edit.n_chunks,
        n_chunks_read=n_read,
        wasted_bytes=edit.wasted_bytes,
        seconds=time.perf_counter() - begin,
        file_bytes=file_bytes,
    )
    return Edited(source=edit.source, header=edit.header, report=report)


def local_source(source: Source) -> LocalSource:
    """Return a source that can be edited.

    Raises
    ------
    SourceError
        When it is bytes in memory, or a remote object.
    """
    if not isinstance(source, LocalSource):
        what = "bytes in memory" if isinstance(source, BytesSource) else "remote objects"
        msg = f"{source.name}: {what} are not edited. To fix: open a local file by its path"
        raise SourceError(msg)
    return source


def check_mode(mode: str, source: Source) -> None:
    """Refuse modes of opening that there are not, and to edit what cannot be."""
    if mode not in ("r", "r+"):
        msg = f"mode={mode!r} is not 'r' (read) or 'r+' (edit in place)"
        raise ValueError(msg)
    if mode == "r+":
        local_source(source)


def _tasks(
    frame: EditableFrame, selection: OuterSelection, values: NDArray[Any]
) -> Iterator[partial[tuple[EncodedChunk, bool]]]:
    """Yield what encodes each touched chunk."""
    header = frame.header
    for piece in plan_chunk_selections(selection, shape=header.shape, chunks=header.chunks):
        yield partial(_rewritten, frame, piece, values)


def _rewritten(
    frame: EditableFrame, piece: ChunkSelection, values: NDArray[Any]
) -> tuple[EncodedChunk, bool]:
    """Encode one chunk with its new elements, and tell whether the old ones were read."""
    chunk = np.zeros(box_shape(piece.box), frame.header.dtype)
    if not piece.is_whole:
        frame.read_chunk(int(frame.plan.numbers_in(piece.box)[0]), chunk)
    chunk[piece.chunk_key] = values[piece.values_key]
    (encoded,) = encode_part(chunk, piece.box, frame.plan)
    return encoded, not piece.is_whole
