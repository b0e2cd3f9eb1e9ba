"""Shards: Zarr's objects of many chunks, and the table that tells where each is.

Zarr's codec ``sharding_indexed`` (https://zarr-specs.readthedocs.io/en/latest/v3/codecs/
sharding-indexed): chunks in any order, then for every chunk of the shard in C order its start and
its length, little-endian 64-bit numbers, all ones where there is none; then their CRC32C.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ChunkError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "CHECKSUM_BYTES",
    "decode_shard_table",
    "encode_shard_table",
    "shard_members",
    "shard_table_bytes",
]

CHECKSUM_BYTES = 4
_ENTRY_BYTES = 16
_ABSENT = np.uint64(2**64 - 1)


def shard_table_bytes(n_chunks: int, *, has_checksum: bool = True) -> int:
    """Return how long the table of a shard of so many chunks is.

    Examples
    --------
    >>> shard_table_bytes(4)
    68
    """
    return _ENTRY_BYTES * n_chunks + (CHECKSUM_BYTES if has_checksum else 0)


def encode_shard_table(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    """Return the table of a shard, checksum included.

    Parameters
    ----------
    starts, lengths
        Of every chunk of the shard in C order, bytes; negative where there is none.
    """
    entries = np.stack([starts, lengths], axis=-1).astype("<i8")
    body = entries.tobytes()  # negative ones are all ones: -1
    return body + _checksum(body)


def decode_shard_table(
    data: bytes, *, n_chunks: int, shard_bytes: int, has_checksum: bool, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return start and length of every chunk of a shard; -1 where there is none.

    Parameters
    ----------
    data
        The table as it is stored.
    n_chunks
        Number of chunks of the shard.
    shard_bytes
        Bytes of the shard.
    has_checksum
        Whether it ends with a checksum.
    name
        What to call the shard in errors.

    Raises
    ------
    ChunkError
        When the table is damaged: chunks reach outside the shard, or share bytes.

    Examples
    --------
    >>> table = encode_shard_table(np.array([0, -1]), np.array([9, -1]))
    >>> starts, lengths = decode_shard_table(
    ...     table, n_chunks=2, shard_bytes=45, has_checksum=True, name="shard c/0"
    ... )
    >>> starts.tolist(), lengths.tolist()
    ([0, -1], [9, -1])
    """
    body = data[: _ENTRY_BYTES * n_chunks]
    if len(data) != shard_table_bytes(n_chunks, has_checksum=has_checksum):
        raise ChunkError(f"{name}: {len(data)} bytes are no table of {n_chunks} chunks: damaged")
    if has_checksum and _checksum(body) != data[len(body) :]:
        raise ChunkError(f"{name}: the checksum of its table is wrong: it is damaged")
    entries = np.frombuffer(body, "<u8").reshape(-1, 2)
    is_there = (entries != _ABSENT).all(axis=1)
    starts, lengths = entries[is_there].T
    room = np.uint64(shard_bytes)
    is_inside = (lengths <= room) & (starts <= room - np.minimum(lengths, room))
    # Honest chunks share no bytes; others would be as many copies of the same ones.
    order = np.argsort(starts, kind="stable")
    ends = starts[order] + lengths[order]
    if not is_inside.all() or (ends[:-1] > starts[order][1:]).any():
        raise ChunkError(f"{name}: its table says that chunks overlap or end outside: damaged")
    table = np.full((n_chunks, 2), -1, np.int64)
    table[is_there] = entries[is_there].astype(np.int64)
    return table[:, 0], table[:, 1]


def shard_members(
    position: tuple[int, ...], *, per_shard: tuple[int, ...], grid: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the chunks of an array that are in a shard, and their places in its table.

    Parameters
    ----------
    position
        Of the shard in the grid of shards.
    per_shard
        Number of chunks of a shard along each axis.
    grid
        Number of chunks of the array along each axis.

    Returns
    -------
    numbers, places : numpy.ndarray
        C-order numbers in the array, and in the shard. A shard at the edge has fewer of the first
        than places.

    Examples
    --------
    >>> shard_members((0, 1), per_shard=(2, 2), grid=(3, 3))
    (array([2, 5]), array([0, 2]))
    """
    inside = [range(min(m, n - i * m)) for i, m, n in zip(position, per_shard, grid, strict=True)]
    local = np.array(list(itertools.product(*inside)), np.int64).reshape(-1, len(position))
    first = np.array(position, np.int64) * np.array(per_shard, np.int64)
    return _numbers(local + first, grid), _numbers(local, per_shard)


def _numbers(positions: NDArray[np.int64], grid: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the C-order numbers of positions in a grid, (n, axes)."""
    steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    return np.asarray(positions @ np.array(steps, np.int64), np.int64)


def _checksum(data: bytes) -> bytes:
    """Return the CRC32C of a table as it follows it."""
    import google_crc32c  # zarr-python needs it as well

    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
