"""What it costs to read a window: a model of one thread that reads a local or a remote file.

A read of a window that touches K chunks and M blocks of B bytes, and wants W bytes in R runs, takes

    read + K (chunk + scan N) + M B decode (1 + spill) + W copy + R run,

where N is the number of blocks of a chunk: the C library looks at each of them. A run is what is
contiguous in the window and in a block; it ends with the block along the last axis. What is decoded
of a chunk stands in a buffer of its own before it is copied; ``spill`` grows with every doubling of
that buffer beyond each level of the cache, and of a block beyond the first.

The constants were fitted to 1080 reads: random cubes, slices and slabs of an int16 and a float32
volume in 60 layouts, by one thread of an x86-64 server with 48 KiB, 2 MiB and a large third level.
The model misses single times by 11 % (root mean square) and ranks them with a Spearman correlation
of 0.995. Penalties beyond the second level are assumptions: no such machine was measured. Only
ratios of costs decide, so that slower machines get the same layouts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.codec import DEFAULT_CODEC
from mlarray_xr.planning.codec_cost import WITH_COSTS, decode_cost
from mlarray_xr.planning.touching import expected_blocks, expected_chunks, touched_along

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec

__all__ = ["ReadCost", "ReadModel", "expected_cost", "read_model", "size_penalty"]

_READ_NS = 21_000.0
_CHUNK_NS = 2_050.0
_SCAN_NS = 97.0
_DECODE_NS_PER_BYTE = 0.18
_COPY_NS_PER_BYTE = 0.068
_RUN_NS = 4.0
# Added to the rate of decoding with every doubling beyond a level.
_BEYOND_L1, _BEYOND_L2, _BEYOND_L3 = 0.08, 0.20, 0.50
_LARGE_BLOCK = 0.08

# A link of 20 ms and 80 MB/s per connection, 32 requests at a time; two requests of a chunk, and
# ranges of blocks of which most are neighbours.
_REMOTE_CHUNK_NS = 1_250_000.0
_REMOTE_BLOCK_NS = 60_000.0
_REMOTE_NS_PER_BYTE = 2.0

# What is not known before a file is written.
_USUAL_RATIO = 2.0
# Measured: files grow by 1 to 4 % with every halving of blocks below 128 KiB. Below 16 KiB they
# grow faster, and a file is kept much longer than a patch takes.
_LARGE_ENOUGH_BYTES, _GROWTH = 128 << 10, 0.02
_SMALL_BYTES, _FAST_GROWTH = 16 << 10, 0.25
# Measured: of blocks of 16 KiB those with one axis 16 times another make files up to 6 % larger.
_THIN_GROWTH = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadModel:
    """The constants of the model for one machine, one codec and one way to the bytes."""

    read_ns: float
    """Of every read."""
    chunk_ns: float
    """Of every chunk that is touched."""
    scan_ns: float
    """Of every block in such a chunk."""
    block_ns: float
    """Of every block that is decoded, besides its bytes: what a network adds."""
    decode_ns_per_byte: float
    """Of every decoded byte."""
    copy_ns_per_byte: float
    """Of every byte that is wanted."""
    run_ns: float
    """Of every contiguous run that is copied."""
    caches: CacheSizes
    """Of the core that reads."""

    def read_time_ns(
        self,
        *,
        n_chunks: Any,
        n_blocks: Any,
        chunk_grid: Any,
        block_bytes: Any,
        wanted_bytes: Any,
        n_runs: Any,
    ) -> Any:
        """Return the time of a read, ns; arrays give one time for each combination.

        Parameters
        ----------
        n_chunks, n_blocks
            Chunks and blocks that are touched.
        chunk_grid
            Blocks in a chunk.
        block_bytes
            Bytes of a block.
        wanted_bytes
            Bytes of the window.
        n_runs
            Contiguous runs of the window that lie in one block.
        """
        decoded = n_blocks * block_bytes
        return (
            self.read_ns
            + n_chunks * (self.chunk_ns + self.scan_ns * chunk_grid)
            + n_blocks * self.block_ns
            + decoded * self.decode_ns_per_byte * (1 + self._spill(decoded / n_chunks, block_bytes))
            + wanted_bytes * self.copy_ns_per_byte
            + n_runs * self.run_ns
        )

    def _spill(self, buffer_bytes: Any, block_bytes: Any) -> Any:
        """Return by which part decoding is slower because a cache is too small."""
        caches = self.caches
        return (
            _BEYOND_L1 * _doublings(buffer_bytes / caches.l1_bytes)
            + _BEYOND_L2 * _doublings(buffer_bytes / caches.l2_bytes)
            + _BEYOND_L3 * _doublings(buffer_bytes / caches.l3_bytes)
            + _LARGE_BLOCK * _doublings(block_bytes / caches.l1_bytes)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCost:
    """What a window costs, mean over its offsets."""

    window: tuple[int, ...]
    """Extents of the window inside the array, elements, array order."""
    chunks: float
    """Chunks that are touched."""
    blocks: float
    """Blocks that are decoded."""
    decoded_bytes: float
    """Bytes of these blocks."""
    wanted_bytes: int
    """Bytes of the window."""
    working_set_bytes: float
    """Bytes that are decoded of one chunk before they are copied."""
    milliseconds: float
    """Modelled time of one thread."""

    @property
    def amplification(self) -> float:
        """Decoded over wanted bytes."""
        return self.decoded_bytes / self.wanted_bytes if self.wanted_bytes else 1.0


def read_model(
    caches: CacheSizes,
    *,
    codec: Codec | None = None,
    itemsize: int,
    ratio: float | None = None,
    remote: bool = False,
) -> ReadModel:
    """Return the model for a machine and a codec.

    Parameters
    ----------
    caches
        Of the core that reads.
    codec
        Compression; None counts as the default of the format, one whose speed is not known as the
        most similar one.
    itemsize
        Bytes of an element.
    ratio
        Decoded over stored bytes; None is 2.
    remote
        Whether the bytes come through a network.
    """
    ratio = ratio or _USUAL_RATIO
    known = codec if codec in WITH_COSTS else _likest(codec)
    usual = decode_cost(DEFAULT_CODEC, itemsize=4, ratio=_USUAL_RATIO)
    relative = decode_cost(known, itemsize=itemsize, ratio=ratio) / usual
    return ReadModel(
        read_ns=_READ_NS,
        chunk_ns=_CHUNK_NS + _REMOTE_CHUNK_NS * remote,
        scan_ns=_SCAN_NS,
        block_ns=_REMOTE_BLOCK_NS * remote,
        decode_ns_per_byte=_DECODE_NS_PER_BYTE * relative + _REMOTE_NS_PER_BYTE * remote / ratio,
        copy_ns_per_byte=_COPY_NS_PER_BYTE,
        run_ns=_RUN_NS,
        caches=caches,
    )


def expected_cost(
    window: Sequence[int],
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    blocks: Sequence[int],
    itemsize: int,
    model: ReadModel,
) -> ReadCost:
    """Return what a window at a random offset costs.

    Parameters
    ----------
    window
        Extents, elements, array order; clipped to the array.
    shape, chunks, blocks
        Of the array, without empty axes.
    itemsize
        Bytes of an element.
    model
        What things cost.
    """
    inside = tuple(min(p, n) for p, n in zip(window, shape, strict=True))
    n_chunks = expected_chunks(shape, inside, chunks)
    n_blocks = expected_blocks(shape, inside, chunks, blocks)
    block_bytes = math.prod(blocks) * itemsize
    wanted_bytes = math.prod(inside) * itemsize
    time_ns = model.read_time_ns(
        n_chunks=n_chunks,
        n_blocks=n_blocks,
        chunk_grid=math.prod(-(-c // b) for c, b in zip(chunks, blocks, strict=True)),
        block_bytes=block_bytes,
        wanted_bytes=wanted_bytes,
        n_runs=_runs(inside, shape=shape, chunks=chunks, blocks=blocks),
    )
    return ReadCost(
        window=inside,
        chunks=n_chunks,
        blocks=n_blocks,
        decoded_bytes=n_blocks * block_bytes,
        wanted_bytes=wanted_bytes,
        working_set_bytes=n_blocks * block_bytes / n_chunks,
        milliseconds=float(time_ns) / 1e6,
    )


def _runs(
    window: Sequence[int], *, shape: Sequence[int], chunks: Sequence[int], blocks: Sequence[int]
) -> float:
    """Return how many contiguous runs of a window lie in one block, mean over its offsets."""
    if not window:
        return 1.0
    cut = touched_along(shape[-1], window[-1], blocks[-1], chunk=chunks[-1])
    return float(math.prod(window[:-1]) * cut)


def size_penalty(block_bytes: Any, thinness: Any = 0.0) -> Any:
    """Return how much larger a file is than with large cubes; blocks are compressed one by one.

    Parameters
    ----------
    block_bytes
        Bytes of a block.
    thinness
        How many times its shortest axis has to be doubled to be as long as its longest.

    Examples
    --------
    >>> float(size_penalty(128 << 10)), float(size_penalty(16 << 10, 2))
    (1.0, 1.08)
    """
    return (
        1
        + _THIN_GROWTH * thinness
        + _GROWTH * _doublings(_LARGE_ENOUGH_BYTES / block_bytes)
        + _FAST_GROWTH * _doublings(_SMALL_BYTES / block_bytes)
    )


def _doublings(ratio: Any) -> Any:
    """Return how many times 1 has to be doubled to reach a ratio; 0 below 1."""
    return np.log2(np.maximum(ratio, 1.0))


def _likest(codec: Codec | None) -> Codec:
    """Return the codec with known costs that decodes most like another one."""
    if codec is None:
        return DEFAULT_CODEC
    by_filter = [known for known in WITH_COSTS if known.filter == codec.filter]
    same = [known for known in by_filter if (known.name == "zstd") == (codec.name == "zstd")]
    return (same or by_filter or [DEFAULT_CODEC])[0]
