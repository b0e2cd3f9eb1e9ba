"""Frames taken apart and put together again, for tests that damage one thing at a time."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# name: first byte of the value, its bytes. All are big-endian.
HEADER_FIELDS = {
    "header_len": (11, 4),
    "frame_len": (16, 8),
    "nbytes": (30, 8),
    "payload_len": (39, 8),
    "typesize": (48, 4),
    "blocksize": (53, 4),
    "chunksize": (58, 4),
    "threads_in": (63, 2),
    "threads_out": (66, 2),
    "map_size": (89, 2),
    "map_count": (92, 2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sections:
    """The four sections of a frame; `joined` corrects the two lengths that depend on them."""

    header: bytes
    payload: bytes
    index: bytes
    trailer: bytes

    def joined(self) -> bytes:
        header = bytearray(self.header)
        total = sum(map(len, (self.header, self.payload, self.index, self.trailer)))
        struct.pack_into(">Q", header, 16, total)
        struct.pack_into(">q", header, 39, len(self.payload))
        return bytes(header) + self.payload + self.index + self.trailer

    def with_index(self, index: bytes) -> Sections:
        return replace(self, index=index)


def sections_of(frame: bytes) -> Sections:
    (header_len,) = struct.unpack_from(">i", frame, 11)
    (frame_len,) = struct.unpack_from(">Q", frame, 16)
    (payload_len,) = struct.unpack_from(">q", frame, 39)
    (trailer_len,) = struct.unpack_from(">I", frame, frame_len - 22)
    index_at, trailer_at = header_len + payload_len, frame_len - trailer_len
    return Sections(
        header=frame[:header_len],
        payload=frame[header_len:index_at],
        index=frame[index_at:trailer_at],
        trailer=frame[trailer_at:frame_len],
    )


def offsets_of(sections: Sections) -> NDArray[np.int64]:
    """Return the chunk table."""
    decoded: bytes = blosc2.decompress2(sections.index)
    return np.frombuffer(decoded, "<i8").copy()


def encoded_index(offsets: NDArray[np.int64]) -> bytes:
    data: bytes = blosc2.compress2(np.ascontiguousarray(offsets, "<i8"), typesize=8, nthreads=1)
    return data


def special_chunk(nbytes: int, code: int, value: bytes = b"", *, typesize: int = 8) -> bytes:
    """Return a chunk without streams: zeros, NaN, a repeated value, uninitialised."""
    header = bytearray(32)
    header[:4] = (5, 1, 5, typesize)
    struct.pack_into("<3i", header, 4, nbytes, nbytes, 32 + len(value))
    header[31] = code << 4
    return bytes(header) + value


def replaced(data: bytes, at: int, value: bytes) -> bytes:
    """Return the bytes with others written over them."""
    assert 0 <= at <= len(data) - len(value)
    return data[:at] + value + data[at + len(value) :]


def make_frame(
    values: Any,
    *,
    chunks: tuple[int, ...] | None = None,
    blocks: tuple[int, ...] | None = None,
    entries: dict[str, Any] | None = None,
    **cparams: Any,
) -> bytes:
    """Return the frame of an array, made by python-blosc2 in memory."""
    array = blosc2.asarray(
        np.asarray(values),
        chunks=chunks,
        blocks=blocks,
        contiguous=True,
        cparams=cparams or {"codec": blosc2.Codec.LZ4},
    )
    for name, value in (entries or {}).items():
        array.schunk.vlmeta[name] = value
    frame: bytes = array.to_cframe()
    return frame


def write_b2nd(
    path: Path,
    values: Any,
    *,
    chunks: tuple[int, ...] | None = None,
    blocks: tuple[int, ...] | None = None,
    **cparams: Any,
) -> Path:
    """Write an array as a plain Blosc2 file."""
    path.write_bytes(make_frame(values, chunks=chunks, blocks=blocks, **cparams))
    return path
