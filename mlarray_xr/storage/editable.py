"""EditableFrame: what must be known of a frame to replace some of its chunks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ChunkError, ConversionError, LayoutError
from mlarray_xr.format.chunk import CHUNK_HEADER_BYTES, check_chunks
from mlarray_xr.format.frame import FOOTER_BYTES
from mlarray_xr.format.integrity import INTEGRITY_NAME, chunk_place, encode_integrity
from mlarray_xr.format.limits import DEFAULT_LIMITS
from mlarray_xr.format.metadata import Stats
from mlarray_xr.format.metadata_codec import decode_metadata, encode_metadata
from mlarray_xr.format.trailer import (
    METADATA_NAME,
    encode_trailer,
    pack_bytes,
    parse_trailer,
    trailer_length,
)
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.storage.chunks import decode_chunk, decode_values
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.frame_file import read_index, special_codes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.integrity import Integrity
    from mlarray_xr.storage.random_access import RandomAccessFile
    from mlarray_xr.storage.source import LocalSource

__all__ = ["EditableFrame", "plan_of"]

_NAN = 2
# First bytes of metadata as releases from 0.0.49 on write it.
_BYTES_TAGS = (0xC4, 0xC5, 0xC6)
_TRUNCATION = "trunc_prec"
# Of the lossless ones new chunks need only what regroups bytes.
_KNOWN_FILTERS = frozenset({"shuffle", "bitshuffle", "bytedelta", _TRUNCATION})


class EditableFrame:
    """A frame as it is on disk: everything but the voxels, checked.

    Parameters
    ----------
    file
        The open file.
    source
        The same file, pinned.

    Raises
    ------
    FormatError
        When header, chunk table or trailer are damaged.
    ConversionError
        When chunks cannot be made that are compressed as its header says.
    """

    def __init__(self, file: RandomAccessFile, source: LocalSource) -> None:
        header, offsets = read_index(source)
        name, stop = source.name, header.frame_len
        footer = file.read(stop - FOOTER_BYTES, stop)
        length = trailer_length(footer, header, value_bytes=DEFAULT_LIMITS.value_bytes, name=name)
        self._trailer = file.read(stop - length, stop)
        spans = parse_trailer(self._trailer, header, name=name)
        self._entries = {entry: self._trailer[slice(*span)] for entry, span in spans.items()}
        integrity = read_integrity(source)
        if integrity is not None and integrity.differences(header):
            integrity = None  # about an array of another shape: it says nothing of these chunks
        self._file, self._integrity = file, integrity
        self.name: str = name
        self.header: FrameHeader = header
        self.head: bytes = file.read(0, header.header_len)
        self.offsets: NDArray[np.int64] = offsets
        self.lengths: NDArray[np.int64] = self._stored_lengths()
        self.plan: FramePlan = plan_of(header, name=name)

    @property
    def _has_proof(self) -> bool:
        """Whether no other program has changed chunks since their checksums were recorded."""
        recorded = self._integrity
        return recorded is not None and recorded.payload_len == self.header.payload_len

    def _stored_lengths(self) -> NDArray[np.int64]:
        """Return how many bytes each chunk takes in the file."""
        if self._integrity is not None and self._has_proof:
            return self._integrity.length.astype(np.int64)
        lengths = np.zeros(len(self.offsets), np.int64)
        for number in np.flatnonzero(self.offsets >= 0).tolist():
            at = self.header.header_len + int(self.offsets[number])
            head = self._file.read(at, at + CHUNK_HEADER_BYTES)
            lengths[number] = np.frombuffer(head, "<i4", 1, 12)[0]
        return lengths

    def read_chunk(self, number: int, out: NDArray[Any]) -> None:
        """Fill zeros with the elements of one chunk, after all checks that reading makes.

        By plain reads: a reader would see that the file grows, and refuse.

        Raises
        ------
        ChunkError
            When the chunk is damaged.
        """
        header, offset, length = self.header, int(self.offsets[number]), int(self.lengths[number])
        position, box = chunk_place(number, header)
        what = f"{self.name}: chunk {number} (grid position {position}, box {box})"
        code = int(special_codes(self.offsets[number : number + 1])[0])
        stored, fault = b"", None
        if offset >= 0 and not CHUNK_HEADER_BYTES <= length <= header.payload_len - offset:
            fault = f"it claims {length} bytes"
        elif offset >= 0:
            at = header.header_len + offset
            stored = self._file.read(at, at + length)
        elif code == _NAN and header.dtype.kind != "f":
            fault = f"NaN of type {header.dtype}"
        if fault is None and self._integrity is not None and self._has_proof:
            fault = self._integrity.fault(number, stored, special=code)
        if fault is not None:
            msg = (
                f"{what} is damaged, or was changed by another program: {fault}. To fix: write "
                "all of its box; the elements around a smaller one cannot be kept"
            )
            raise ChunkError(msg)
        if stored:
            payload = np.frombuffer(stored, np.uint8)
            check_chunks(payload, np.array([number]), np.array([0]), header, name=self.name)
            decode_values(stored, out, chunks=header.chunks, blocks=header.blocks, name=what)
        elif code == _NAN:
            out[...] = np.nan

    def new_trailer(self, changed: NDArray[Any], *, payload_len: int) -> bytes:
        """Return the trailer with what new chunks change in it: checksums and statistics.

        Parameters
        ----------
        changed
            The records of the new chunks, of the plan's `entry_dtype`.
        payload_len
            The new length of the payload.
        """
        entries = dict(self._entries)
        if self._integrity is not None:
            updated = self._updated(self._integrity, changed, payload_len)
            entries[INTEGRITY_NAME] = _encode_entry(encode_integrity(updated))
        metadata = self._metadata_without_stats()
        if metadata is not None:
            entries[METADATA_NAME] = _encode_entry(metadata)
        return self._trailer if entries == self._entries else encode_trailer(entries)

    def _updated(self, integrity: Integrity, changed: NDArray[Any], payload_len: int) -> Integrity:
        """Return what is recorded of the chunks after some of them changed."""
        numbers = changed["number"]

        def column(old: NDArray[Any], name: str) -> NDArray[Any]:
            new = old.copy()
            new[numbers] = changed[name]
            return new

        ranges = integrity.statistics
        if ranges is not None:
            ranges = replace(
                ranges,
                least=column(ranges.least, "least"),
                greatest=column(ranges.greatest, "greatest"),
                nonzero=column(ranges.nonzero, "nonzero"),
            )
        # Another length than the payload's says that other programs changed chunks. The payload
        # only grows here, so what is not above the old length is not the new one.
        stale_len = min(integrity.payload_len, self.header.payload_len)
        return replace(
            integrity,
            payload_len=payload_len if self._has_proof else stale_len,
            crc32=column(integrity.crc32, "crc32"),
            length=column(integrity.length, "length"),
            special=column(integrity.special, "special"),
            statistics=ranges,
        )

    def _metadata_without_stats(self) -> bytes | None:
        """Return the metadata without statistics of the old values; None when none are stated.

        Entries of releases before 0.0.49 stay as they are: in the newer form those releases could
        not read them.
        """
        stored = self._entries.get(METADATA_NAME)
        if stored is None:
            return None
        limit, what = DEFAULT_LIMITS.value_bytes, f"{self.name}: metadata entry"
        value = decode_chunk(stored, max_nbytes=limit, name=what).tobytes()
        if value[0] not in _BYTES_TAGS:
            return None
        metadata = decode_metadata(value, shape=self.header.shape)
        if metadata.stats == Stats():
            return None
        return encode_metadata(replace(metadata, stats=Stats()))


def plan_of(header: FrameHeader, *, name: str) -> FramePlan:
    """Return what new chunks of a file must be like.

    Raises
    ------
    ConversionError
        When chunks cannot be made that are compressed as its header says.
    """
    return FramePlan(
        shape=header.shape,
        dtype_str=header.dtype_str,
        layout=Layout(chunks=header.chunks, blocks=header.blocks),
        codec=_codec_of(header, name=name),
    )


def _codec_of(header: FrameHeader, *, name: str) -> Codec:
    """Return the codec of new chunks: that of the header, less what only helps to compress."""
    names, kept = header.filter_names, None
    used = [m for f, m in zip(header.filters, header.filters_meta, strict=True) if f]
    truncated = [meta for f, meta in zip(names, used, strict=True) if f == _TRUNCATION]
    problem = "it asks for a dictionary" if header.uses_dictionary else None
    if not set(names) <= _KNOWN_FILTERS or len(truncated) > 1:
        problem = f"it asks for filters {', '.join(names)}"
    if problem is None:
        try:
            kept = Codec(
                name=header.codec_name,
                level=header.level,
                filter=next((f for f in reversed(names) if f.endswith("shuffle")), "none"),
                mantissa_bits=truncated[0] if truncated else None,
            )
            kept.cparams(header.typesize, dtype=header.dtype)
        except LayoutError as error:
            problem = str(error)
    if problem is not None or kept is None:
        msg = (
            f"{name}: no chunks are made here that are compressed as its header says: {problem}. "
            "To fix: write the file again, mlarray_xr.to_mla(array, path, mode='w')"
        )
        raise ConversionError(msg)
    return kept


def _encode_entry(content: bytes) -> bytes:
    """Return bytes as the value of an entry: a Blosc2 chunk that holds a msgpack byte string."""
    import blosc2

    return bytes(blosc2.compress2(pack_bytes(content), typesize=1, nthreads=1))
