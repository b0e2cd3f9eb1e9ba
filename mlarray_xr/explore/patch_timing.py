"""Reading random patches of a file: what the model of the layout predicts, and what a clock says.

The model was fitted to one machine. How much slower or faster this one is, a few whole chunks of
the same file tell, read by one thread: their time over the modelled one is the machine's factor.
What is left between a patch and its prediction is what the model misses of its layout.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from array import array as numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.sizes import patch_extents
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.gather import allocate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Basis, Layout
    from mlarray_xr.planning.read_cost import ReadCost
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["PatchTiming", "chunk_boxes_of", "random_boxes", "time_patches", "touched_by"]

Clock: TypeAlias = Callable[[], float]
_ReadBox: TypeAlias = Callable[["Box"], object]

_USUAL_COUNT, _MOST_COUNT = 200, 100_000
# What is kept of every read is one number.
_MOST_READS = 1_000_000
_N_WARM_UP = 16
_N_CHUNKS, _N_TRIED_CHUNKS, _CHUNKS_BYTES = 16, 64, 64 << 20
# So that one pass that the system disturbed, such as the first, has no say.
_CHUNK_PASSES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchTiming:
    """Predicted and measured time of a patch at random offsets, and what it touches.

    Predictions are means over all offsets, of one thread. Of what was measured the mean is
    comparable with them; median and quartiles tell how far patches differ. The time of one patch
    is its median over several reads.
    """

    window: tuple[int, ...]
    """Extents of a patch, array order."""
    dtype: str
    """Type of the elements."""
    threads: int
    """Threads of a measured read."""
    count: int
    """How many different patches were read."""
    n_reads: int
    """How often one of them was read."""
    predicted: ReadCost
    """Mean over all offsets: exact counts, and the time on the machine of the model."""
    machine_factor: float
    """Measured over modelled time of whole chunks: above 1 on a slower machine."""
    chunks: float
    """Chunks that the patches touch, counted; their mean."""
    blocks: float
    """Blocks that the patches touch, counted; their mean."""
    mean_ms: float
    """Measured time of a patch, mean over the patches."""
    median_ms: float
    """Median over the patches."""
    quartiles_ms: tuple[float, float]
    """First and third quartile over the patches."""

    @property
    def predicted_ms(self) -> float:
        """Predicted time on the machine of the model."""
        return self.predicted.milliseconds

    @property
    def scaled_ms(self) -> float:
        """Predicted time on this machine."""
        return self.predicted_ms * self.machine_factor

    @property
    def ratio(self) -> float:
        """Measured mean over the time that is predicted on this machine."""
        return self.mean_ms / self.scaled_ms

    @property
    def amplification(self) -> float:
        """Decoded over wanted bytes of the patches, counted."""
        return self.predicted.amplification * self.blocks / self.predicted.blocks

    def to_plain(self) -> dict[str, Any]:
        """Return all numbers as plain values, fit for JSON."""
        return {
            "window": list(self.window),
            "dtype": self.dtype,
            "threads": self.threads,
            "count": self.count,
            "n_reads": self.n_reads,
            "predicted_chunks": self.predicted.chunks,
            "predicted_blocks": self.predicted.blocks,
            "predicted_amplification": self.predicted.amplification,
            "predicted_ms": self.predicted_ms,
            "chunks": self.chunks,
            "blocks": self.blocks,
            "amplification": self.amplification,
            "machine_factor": self.machine_factor,
            "scaled_ms": self.scaled_ms,
            "mean_ms": self.mean_ms,
            "median_ms": self.median_ms,
            "quartiles_ms": list(self.quartiles_ms),
            "ratio": self.ratio,
        }


def time_patches(
    array: MlaArray,
    patch: Sizes | str | None = None,
    *,
    seconds: float = 2.0,
    count: int | None = None,
    threads: int = 1,
    seed: int = 0,
    clock: Clock = time.perf_counter,
) -> PatchTiming:
    """Read patches at random offsets and compare their time with what the model predicts.

    Whole chunks are read first, at most 16 of together 64 MiB, then a few patches to warm up, for a
    quarter of the time each, then patches in rounds. All of them go to one buffer, as large as a
    patch or a chunk.

    Parameters
    ----------
    array
        What is read.
    patch
        As of `mlarray_xr.plan_layout`, inside the array. ``"default"`` and None, the patch that the
        file was written for or else the default, are clipped to the array.
    seconds
        How long patches are read.
    count
        How many different patches; each is then read at least once, however long it takes. None is
        200, or as many as there is time for.
    threads
        Threads per patch; chunks are read by one.
    seed
        The same seed gives the same patches and chunks.
    clock
        Tells the time, seconds.

    Raises
    ------
    LayoutError
        When the array is empty or has no axes, the patch does not fit in, or `count` or `seconds`
        are out of range.
    AllocationError
        When a patch is larger than the machine's memory.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((40, 50), "uint8"), "zeros.mla", chunks=20, blocks=10)
    >>> timing = time_patches(mlarray_xr.MlaArray("zeros.mla"), (10, 10), count=5, seconds=0.01)
    >>> timing.window, timing.count, timing.predicted.chunks
    ((10, 10), 5, 1.85...)
    """
    if not 0 < seconds < math.inf:
        raise LayoutError(f"seconds={seconds!r} is no time to read in. To fix: a number above 0")
    if count is not None and not 1 <= count <= _MOST_COUNT:
        raise LayoutError(
            f"count={count} patches were asked for. To fix: 1 to {_MOST_COUNT} different ones; "
            "seconds= reads them again"
        )
    layout = array.layout
    window = _window(array, layout, patch)
    itemsize = array.dtype.itemsize
    chunks = chunk_boxes_of(array.shape, window, layout, itemsize=itemsize, seed=seed)
    sizes = [math.prod(shape) for shape in (window, *map(box_shape, chunks))]
    out = allocate((max(sizes),), array.dtype)

    read_alone = partial(_read, array, out, threads=1)
    factor = _machine_factor(layout, chunks, read_alone, seconds=seconds / 4, clock=clock)
    read = partial(_read, array, out, threads=threads)
    boxes = random_boxes(array.shape, window, count=count or _USUAL_COUNT, seed=seed)
    _timed(boxes[:_N_WARM_UP], read, seconds=seconds / 4, at_least=1, clock=clock)
    times = _timed(boxes, read, seconds=seconds, at_least=count or 1, clock=clock)
    read_boxes = boxes[: len(times)]
    touched = [touched_by(box, chunks=array.chunks, blocks=array.blocks) for box in read_boxes]
    each = [statistics.median(times[i :: len(boxes)]) * 1e3 for i in range(len(read_boxes))]
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    return PatchTiming(
        window=window,
        dtype=str(array.dtype),
        threads=threads,
        count=len(read_boxes),
        n_reads=len(times),
        predicted=layout.cost(window),
        machine_factor=factor,
        chunks=statistics.fmean(n for n, _ in touched),
        blocks=statistics.fmean(n for _, n in touched),
        mean_ms=statistics.fmean(each),
        median_ms=middle,
        quartiles_ms=(low, high),
    )


def random_boxes(
    shape: Sequence[int], window: Sequence[int], *, count: int, seed: int
) -> list[Box]:
    """Return boxes of one shape, at offsets of which each is as likely as any other.

    Parameters
    ----------
    shape, window
        Of the array and of a box that fits in; array order.
    count
        How many.
    seed
        The same seed gives the same boxes.

    Examples
    --------
    >>> random_boxes((10, 1), (10, 1), count=1, seed=0)
    [((0, 10), (0, 1))]
    """
    rng = np.random.default_rng(seed)
    last = np.subtract(shape, window)
    starts = rng.integers(0, last, (count, len(window)), endpoint=True).tolist()
    return [tuple((a, a + p) for a, p in zip(start, window, strict=True)) for start in starts]


def touched_by(box: Box, *, chunks: Sequence[int], blocks: Sequence[int]) -> tuple[int, int]:
    """Count the chunks and the blocks that a box touches; blocks begin anew in every chunk.

    Examples
    --------
    >>> touched_by(((9, 11), (0, 5)), chunks=(10, 10), blocks=(5, 5))
    (2, 2)
    """
    n_chunks = n_blocks = 1
    for (start, stop), chunk, block in zip(box, chunks, blocks, strict=True):
        per_chunk = -(-chunk // block)
        (first, low), (last, high) = divmod(start, chunk), divmod(stop - 1, chunk)
        n_chunks *= last - first + 1
        n_blocks *= (last - first) * per_chunk + high // block - low // block + 1
    return n_chunks, n_blocks


def chunk_boxes_of(
    shape: tuple[int, ...], window: tuple[int, ...], layout: Layout, *, itemsize: int, seed: int
) -> list[Box]:
    """Return the boxes of a few chunks, different ones, at most 16 and together at most 64 MiB.

    They are those of random voxels of random patches: what the patches decode compresses as they
    do. They end where the array does. Of a chunk that is larger the first blocks are taken; of a
    block that is larger, the block.
    """
    extents = _limited(layout, itemsize=itemsize)
    affordable = _CHUNKS_BYTES // (math.prod(extents) * itemsize)
    rng = np.random.default_rng(seed)
    starts = rng.integers(
        0, np.subtract(shape, window), (_N_TRIED_CHUNKS, len(shape)), endpoint=True
    )
    voxels = starts + rng.integers(0, window, starts.shape)
    corners = dict.fromkeys(map(tuple, (voxels // layout.chunks * layout.chunks).tolist()))
    return [
        tuple((a, min(a + e, n)) for a, e, n in zip(corner, extents, shape, strict=True))
        for corner in list(corners)[: max(1, min(_N_CHUNKS, affordable))]
    ]


def _limited(layout: Layout, *, itemsize: int) -> tuple[int, ...]:
    """Return the extents of a chunk, or of so many of its blocks as are read at once."""
    counts = list(layout.block_grid)

    def extents() -> tuple[int, ...]:
        sizes = (k * b for k, b in zip(counts, layout.blocks, strict=True))
        return tuple(min(size, c) for size, c in zip(sizes, layout.chunks, strict=True))

    while math.prod(extents()) * itemsize > _CHUNKS_BYTES and max(counts) > 1:
        axis = counts.index(max(counts))
        counts[axis] = -(-counts[axis] // 2)
    return extents()


def _read(array: MlaArray, out: NDArray[Any], box: Box, *, threads: int) -> None:
    """Read a box into the beginning of a buffer."""
    shape = box_shape(box)
    array.read(box, out=out[: math.prod(shape)].reshape(shape), threads=threads)


def _machine_factor(
    layout: Layout, chunks: list[Box], read: _ReadBox, *, seconds: float, clock: Clock
) -> float:
    """Return the measured over the modelled time of whole chunks."""
    modelled = sum(_chunk_seconds(layout, box) for box in chunks)
    at_least = _CHUNK_PASSES * len(chunks)
    times = _timed(chunks, read, seconds=seconds, at_least=at_least, clock=clock)
    measured = sum(statistics.median(times[i :: len(chunks)]) for i in range(len(chunks)))
    return measured / modelled


def _chunk_seconds(layout: Layout, box: Box) -> float:
    """Return the modelled time of a box that begins where a chunk does, and ends in it."""
    basis = layout.basis
    assert basis is not None
    extents = box_shape(box)
    along = [-(-n // b) for n, b in zip(extents, layout.blocks, strict=True)]
    time_ns = basis.model.read_time_ns(
        n_chunks=1,
        n_blocks=math.prod(along),
        chunk_grid=math.prod(layout.block_grid),
        block_bytes=math.prod(layout.blocks) * basis.itemsize,
        wanted_bytes=math.prod(extents) * basis.itemsize,
        n_runs=math.prod(extents[:-1]) * along[-1],
    )
    return float(time_ns) / 1e9


def _timed(
    boxes: list[Box],
    read: _ReadBox,
    *,
    seconds: float,
    at_least: int,
    clock: Clock,
) -> numbers[float]:
    """Read boxes in rounds until a time is spent, and return the seconds of every read."""
    times = numbers("d")
    begin = clock()
    for box in itertools.islice(itertools.cycle(boxes), _MOST_READS):
        start = clock()
        read(box)
        stop = clock()
        times.append(stop - start)
        if stop - begin >= seconds and len(times) >= at_least:
            break
    return times


def _window(array: MlaArray, layout: Layout, patch: Sizes | str | None) -> tuple[int, ...]:
    """Return the extents of a patch that fits in the array."""
    name, shape = array.path or "the array in memory", array.shape
    if not shape or 0 in shape:
        raise LayoutError(
            f"{name}: an array of shape {shape} has no patches to read. To fix: take one that has "
            "axes and is not empty"
        )
    assert layout.basis is not None
    basis = _named(array, layout.basis)
    if patch is None:
        return basis.windows[0].shape if basis.windows else basis.patch_window("default")
    if isinstance(patch, str):
        return basis.patch_window(patch)
    window = patch_extents(patch, shape=shape, axes=basis.axes, dims=basis.dims)
    for axis, (p, n) in enumerate(zip(window, shape, strict=True)):
        if p > n:
            raise LayoutError(
                f"{name}: patch {window} does not fit in {shape}: {p} along axis {axis} of {n}. "
                f"To fix: at most {n} there"
            )
    return window


def _named(array: MlaArray, basis: Basis) -> Basis:
    """Return what a layout is for, with the names of the axes."""
    axes = stored_axes(array.metadata, array.ndim)
    return replace(basis, dims=axes.dims, spatial=axes.spatial)
