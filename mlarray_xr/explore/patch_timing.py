"""Reading random patches of a file: what the model of the layout predicts, and what a clock says.

The model was fitted to one machine. How much slower or faster this one is, small reads near the
patches tell, made by one thread in turns with the patches: machines that others use change their
speed many times in a second. What is left between a patch and its prediction is what the model
misses of its layout.
"""

from __future__ import annotations

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
from mlarray_xr.explore.machine_speed import fitted_speed, mean_parts, window_parts
from mlarray_xr.explore.patch_boxes import probe_boxes, random_boxes, random_voxels, touched_by
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.sizes import patch_extents
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.gather import allocate
from mlarray_xr.storage.slab_cache import nothing_kept

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.explore.machine_speed import MachineSpeed
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Basis, Layout
    from mlarray_xr.planning.read_cost import ReadCost
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["PatchTiming", "time_patches"]

Clock: TypeAlias = Callable[[], float]
_ReadBox: TypeAlias = Callable[["Box"], object]

_USUAL_COUNT, _MOST_COUNT = 200, 100_000
# What is kept of every read is one number.
_MOST_READS = 1_000_000
_N_WARM_UP = 16
_N_PROBES = 200
# Each of the four kinds of probes gets so much of the time of the patches.
_PROBE_SHARE = 1 / 8
# Long enough for the caches to be those of one kind of reads, too short for the machine to change.
_TURN_SECONDS, _TURN_READS = 2e-3, 100
# Reads that take this many times the median of their box met something else: a cold disk.
_UNUSUAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchTiming:
    """Predicted and measured time of a patch at random offsets, and what it touches.

    Predictions are means over all offsets, of one thread. Of what was measured the mean is
    comparable with them; median and quartiles tell how far patches differ. The time of one patch
    is the mean of its reads, without those that took more than three times their median.
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
    speed: MachineSpeed
    """How much slower than the machine of the model this one is, by what small reads took."""
    scaled_ms: float
    """Predicted time on this machine."""
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
    def machine_factor(self) -> float:
        """Predicted time on this machine over that on the machine of the model."""
        return self.scaled_ms / self.predicted_ms

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
            "calls_factor": self.speed.calls,
            "decode_factor": self.speed.decode,
            "copy_factor": self.speed.copy,
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

    A voxel near each patch and a few patches are read to warm up, for an eighth of the time each.
    Then patches take turns with four kinds of small reads near them, of at most 8 blocks or chunks,
    which together take half the time of the patches. All of them go to one buffer.

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
        Threads per patch; the small reads are made by one.
    seed
        The same seed gives the same patches and small reads.
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
    boxes = random_boxes(array.shape, window, count=count or _USUAL_COUNT, seed=seed)
    kinds = _probes(array, layout, window, seed=seed)
    sizes = (math.prod(box_shape(box)) for kind in kinds for box in kind)
    out = allocate((max(math.prod(window), *sizes),), array.dtype)

    alone, read = partial(_read, array, out, threads=1), partial(_read, array, out, threads=threads)
    patches = _TimedReads(boxes, read, share=1.0)
    probes = [_TimedReads(kind, alone, share=_PROBE_SHARE) for kind in kinds]
    with nothing_kept():
        _warm_up(kinds[0], alone, seconds=seconds / 8, clock=clock)
        _warm_up(boxes[:_N_WARM_UP], read, seconds=seconds / 8, clock=clock)
        _take_turns(patches, probes, seconds=seconds, at_least=count or 1, clock=clock)

    speed = fitted_speed(
        [mean_parts(reads.done, layout) for reads in probes],
        [statistics.fmean(reads.usual_ms()) for reads in probes],
    )
    touched = [touched_by(box, chunks=array.chunks, blocks=array.blocks) for box in patches.done]
    each = patches.usual_ms()
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    return PatchTiming(
        window=window,
        dtype=str(array.dtype),
        threads=threads,
        count=len(each),
        n_reads=len(patches.times),
        predicted=layout.cost(window),
        speed=speed,
        scaled_ms=speed.milliseconds(window_parts(window, layout)),
        chunks=statistics.fmean(n for n, _ in touched),
        blocks=statistics.fmean(n for _, n in touched),
        mean_ms=statistics.fmean(each),
        median_ms=middle,
        quartiles_ms=(low, high),
    )


class _TimedReads:
    """Boxes that are read in rounds, a turn at a time, and the seconds of every read."""

    def __init__(self, boxes: list[Box], read: _ReadBox, *, share: float) -> None:
        self._boxes, self._read, self._share = boxes, read, share
        self.times = numbers("d")
        self.spent = 0.0

    @property
    def done(self) -> list[Box]:
        """Boxes that were read at least once."""
        return self._boxes[: len(self.times)]

    @property
    def is_full(self) -> bool:
        """Whether there are as many reads as are kept."""
        return len(self.times) >= _MOST_READS

    @property
    def had(self) -> float:
        """Time spent, over what is due."""
        return self.spent / self._share

    def take_turn(self, *, seconds: float, clock: Clock) -> None:
        """Read for a moment, at least one box."""
        begin = clock()
        for _ in range(min(_TURN_READS, _MOST_READS - len(self.times))):
            box = self._boxes[len(self.times) % len(self._boxes)]
            start = clock()
            self._read(box)
            stop = clock()
            self.times.append(stop - start)
            if stop - begin >= seconds:
                break
        self.spent += clock() - begin

    def usual_ms(self) -> list[float]:
        """Return the mean time of every box, without reads that took unusually long."""
        n = len(self._boxes)
        each = (self.times[i::n] for i in range(len(self.done)))
        medians = ((times, statistics.median(times)) for times in each)
        return [
            statistics.fmean(t for t in times if t <= _UNUSUAL * median) * 1e3
            for times, median in medians
        ]


def _take_turns(
    patches: _TimedReads,
    probes: list[_TimedReads],
    *,
    seconds: float,
    at_least: int,
    clock: Clock,
) -> None:
    """Read patches until a time is spent and so many were read, and probes in between."""
    for reads in probes:
        reads.take_turn(seconds=_TURN_SECONDS, clock=clock)
    while not patches.is_full and (patches.spent < seconds or len(patches.times) < at_least):
        due = min((p for p in (patches, *probes) if not p.is_full), key=lambda reads: reads.had)
        left = seconds - patches.spent if due is patches else math.inf
        due.take_turn(seconds=min(_TURN_SECONDS, left), clock=clock)


def _probes(
    array: MlaArray, layout: Layout, window: tuple[int, ...], *, seed: int
) -> list[list[Box]]:
    """Return small boxes near random patches, by kind."""
    voxels = random_voxels(array.shape, window, count=_N_PROBES, seed=seed)
    probes = [
        probe_boxes(voxel, shape=array.shape, layout=layout, itemsize=array.dtype.itemsize)
        for voxel in voxels
    ]
    return [list(kind) for kind in zip(*probes, strict=True)]


def _read(array: MlaArray, out: NDArray[Any], box: Box, *, threads: int) -> None:
    """Read a box into the beginning of a buffer."""
    shape = box_shape(box)
    array.read(box, out=out[: math.prod(shape)].reshape(shape), threads=threads)


def _warm_up(boxes: list[Box], read: _ReadBox, *, seconds: float, clock: Clock) -> None:
    """Read boxes, so many as there is time for: chunks are checked at their first use."""
    begin = clock()
    for box in boxes:
        read(box)
        if clock() - begin >= seconds:
            break


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
