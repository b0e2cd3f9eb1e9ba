"""Remote files for tests: settings of their own, and files as others write them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np

from mlarray_xr.format.block_index import (
    BLOCK_INDEX_NAME,
    BlockIndex,
    block_check,
    encode_block_index,
)
from mlarray_xr.storage import handles, read_settings, remote_file, retry, slab_cache
from mlarray_xr.storage.block_cache import block_cache
from mlarray_xr.storage.frame_file import read_index
from mlarray_xr.storage.read_settings import configure
from mlarray_xr.storage.source import source_of
from tests.frame_kit import make_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest
    from numpy.typing import NDArray

__all__ = [
    "BLOCKS",
    "CHUNKS",
    "VOLUME",
    "fast_retries",
    "settings",
    "volume_frame",
    "with_block_index",
]

VOLUME = np.random.default_rng(3).integers(0, 60, (80, 72, 64), np.int16)
CHUNKS, BLOCKS = (40, 36, 32), (10, 12, 16)
"""8 chunks of 24 blocks of 3840 bytes."""


@contextmanager
def settings(**changes: Any) -> Iterator[None]:
    """Read by other settings, with nothing open and nothing cached; put everything back.

    Decoded blocks are not kept unless that is asked for: every read is seen by the server.
    """
    before = read_settings.read_settings()
    forget()
    try:
        configure(**{"decoded_cache_bytes": 0, **changes})
        yield
    finally:
        read_settings._settings = before
        forget()


def forget() -> None:
    """Close what is open and drop what is cached, as a new process has it."""
    handles._open.clear()
    remote_file._open.clear()
    block_cache().clear()
    slab_cache._forget_after_fork()


def fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait next to nothing before a request is sent again."""
    monkeypatch.setattr(retry, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(retry, "LONGEST_DELAY_S", 0.01)


def volume_frame(values: NDArray[Any] = VOLUME, **cparams: Any) -> bytes:
    return make_frame(values, chunks=CHUNKS, blocks=BLOCKS, **cparams)


def with_block_index(frame: bytes) -> bytes:
    """Add the block index to a frame, from its chunks as they lie there."""
    array = blosc2.ndarray_from_cframe(frame, copy=True)
    plain = array.to_cframe()
    header, offsets = read_index(source_of(plain))
    n_blocks = header.chunksize // header.blocksize
    heads = np.zeros((len(offsets), 32 + 4 * n_blocks), np.uint8)
    for number in np.flatnonzero(offsets >= 0).tolist():
        first = header.header_len + int(offsets[number])
        stored = plain[first : first + heads.shape[1]]
        heads[number, : len(stored)] = np.frombuffer(stored, np.uint8)
        if stored[2] & 2 or stored[31] >> 4:  # voxels, or a value, where others have the table
            heads[number, 32:] = 0
    starts = np.ascontiguousarray(heads[:, 32:]).view("<i4").reshape(-1, n_blocks)
    checks = np.zeros(starts.shape, np.uint16)
    for number in np.flatnonzero(starts.any(axis=1)).tolist():
        first = header.header_len + int(offsets[number])
        stored = plain[first : first + int(heads[number, 12:16].view("<i4")[0])]
        edges = np.sort([*starts[number], len(stored)])
        stops = edges[np.searchsorted(edges, starts[number], side="right")]
        checks[number] = [
            block_check(stored[a:b]) for a, b in zip(starts[number], stops, strict=True)
        ]
    index = BlockIndex(heads=heads[:, :32].copy(), starts=starts, checks=checks)
    array.schunk.vlmeta[BLOCK_INDEX_NAME] = encode_block_index(index, offsets)
    indexed: bytes = array.to_cframe()
    np.testing.assert_array_equal(read_index(source_of(indexed))[1], offsets)
    return indexed
