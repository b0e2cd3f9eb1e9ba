"""Entries of this package in the trailer: checksums, places of blocks, how a layout was planned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import FormatError
from mlarray_xr.format.block_index import (
    BLOCK_INDEX_NAME,
    decode_block_index,
    most_block_index_bytes,
)
from mlarray_xr.format.integrity import INTEGRITY_NAME, decode_integrity
from mlarray_xr.format.planning_entry import PLANNING_BYTES, PLANNING_NAME, decode_planning
from mlarray_xr.format.trailer import largest_table, unpack_bytes
from mlarray_xr.storage.frame_sections import read_entry, read_sections, reading

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.format.block_index import BlockIndex
    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.storage.remote_source import Source

__all__ = ["read_block_index", "read_integrity", "read_planning", "recorded_integrity"]


def read_integrity(source: Source) -> Integrity | None:
    """Return what the writer recorded of the chunks of a source.

    Returns
    -------
    Integrity or None
        None when the file has no such entry, or one of a later version, or about another number
        of chunks.

    Raises
    ------
    FormatError
        When the frame or the entry is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    what = f"{source.name}: integrity entry"
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=source.name)
        if INTEGRITY_NAME not in sections.entries:
            return None
        header = sections.header
        max_nbytes = largest_table(header.n_chunks)
        value = read_entry(read, sections, INTEGRITY_NAME, max_nbytes=max_nbytes, what=what)
    return decode_integrity(unpack_bytes(value, name=what), header, name=source.name)


def read_planning(source: Source) -> dict[str, Any] | None:
    """Return what the writer recorded of how the layout was decided.

    None when there is nothing, or nothing that can be read.

    Raises
    ------
    FormatError
        When the frame is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    what = f"{source.name}: layout entry"
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=source.name)
        if PLANNING_NAME not in sections.entries:
            return None
        try:
            value = read_entry(
                read, sections, PLANNING_NAME, max_nbytes=2 * PLANNING_BYTES, what=what
            )
            return decode_planning(unpack_bytes(value, name=what))
        except FormatError:
            return None  # nothing depends on it


def recorded_integrity(source: Source, header: FrameHeader) -> Integrity:
    """Return the checksums of a source, refusing files that have none for this array."""
    integrity = read_integrity(source)
    if integrity is None:
        found = "no checksums for its chunks"
    elif differences := integrity.differences(header):
        found = f"checksums of another array: {'; '.join(differences)}"
    else:
        return integrity
    msg = (
        f"{source.name}: chunks were to be compared with their checksums, the file has {found}. "
        "To fix: (1) read without the comparison; (2) write the file again with mlarray_xr"
    )
    raise FormatError(msg)


def read_block_index(source: Source, offsets: NDArray[np.int64]) -> BlockIndex | None:
    """Return where blocks stand in the chunks of a source, if the writer recorded it.

    None when there is nothing, when chunks were written again since, and when it cannot be read:
    chunks tell the same themselves.

    Parameters
    ----------
    source
        What to read; pinned.
    offsets
        Its checked chunk table.

    Raises
    ------
    FormatError
        When the frame is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    what = f"{source.name}: block index"
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=source.name)
        max_nbytes = most_block_index_bytes(sections.header)
        if BLOCK_INDEX_NAME not in sections.entries or max_nbytes is None:
            return None
        try:
            value = read_entry(read, sections, BLOCK_INDEX_NAME, max_nbytes=max_nbytes, what=what)
            content = unpack_bytes(value, name=what)
            return decode_block_index(content, sections.header, offsets, name=source.name)
        except FormatError:
            return None
