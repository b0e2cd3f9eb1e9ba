"""Plane requests: what is read to show a plane at a zoom, and where its samples lie."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlarray_xr.planning.grid import surrounding_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box

__all__ = ["Level", "PlaneRequest", "Slab", "VisiblePlane", "level_factors", "plan_plane"]

_SLACK = 1.2
"""Voxels may be left out as long as 1 / 1.2 samples are left for a pixel."""

_WHOLE_SAMPLES = 512
"""An axis of at most so many samples is read whole, so that moving along it reads nothing."""

_STEP_SAMPLES = 128
"""Along longer axes, what is read begins and ends at multiples of so many samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution of an image: the image itself or a coarser overview of it."""

    shape: tuple[int, ...]
    """Extents, array order."""
    factors: tuple[int, ...]
    """Voxels of the image along each axis that one voxel here stands for."""
    chunks: tuple[int, ...]
    """Extents of what is stored together; ones where nothing is known."""
    blocks: tuple[int, ...]
    """Extents of what is decoded together, inside a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisiblePlane:
    """What a canvas shows, in voxels of the image: voxel i covers i to i + 1."""

    rows: int
    """Axis that runs down the canvas."""
    columns: int
    """Axis that runs across it."""
    position: tuple[int, ...]
    """Index along every axis; those of rows and columns do not matter."""
    visible: tuple[tuple[float, float], tuple[float, float]]
    """First and last edge along rows and columns that the canvas shows; may lie outside."""
    voxels_per_px: tuple[float, float]
    """Along rows and columns."""
    scroll: int
    """Axis along which the neighbours are wanted next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Parallel planes that are read together, since they are decoded together: hashable."""

    level: int
    """Which level is read."""
    box: Box
    """What is read of it: one (start, stop) pair per axis."""
    strides: tuple[int, ...]
    """Every how many voxels a sample is taken, the middle one of them; 1 but for rows, columns."""

    def slices(self) -> tuple[slice, ...]:
        """Return what selects the samples from the level."""
        return tuple(
            slice(start + step // 2, stop, step)
            for (start, stop), step in zip(self.box, self.strides, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneRequest:
    """One plane of a slab, and where its samples lie in the image."""

    slab: Slab
    """What is read."""
    index: tuple[int | slice, ...]
    """Selects the plane from the slab."""
    is_transposed: bool
    """Whether the plane then has columns before rows."""
    extent: tuple[tuple[int, int], tuple[int, int]]
    """Edges of the first and the last sample along rows and columns, voxels of the image."""


def level_factors(shape: Sequence[int], level_shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return by which power of two each axis of an overview is coarser; None when by none.

    Examples
    --------
    >>> level_factors((100, 65, 3), (50, 17, 3))
    (2, 4, 1)
    >>> level_factors((100, 65), (30, 65)) is None
    True
    """
    factors = []
    for n, coarse in zip(shape, level_shape, strict=True):
        factor = 1
        while -(-n // factor) > coarse:
            factor *= 2
        if -(-n // factor) != coarse:
            return None
        factors.append(factor)
    return tuple(factors)


def plan_plane(
    levels: Sequence[Level], seen: VisiblePlane, *, itemsize: int, slab_bytes: int
) -> PlaneRequest:
    """Decide what is read to show a plane.

    The coarsest level that still has a sample for every pixel; of it every second, fourth, ...
    voxel where there are more; whole blocks across the plane, since these are decoded anyway.

    Parameters
    ----------
    levels
        The image, then its overviews, finest first.
    seen
        What is shown.
    itemsize
        Bytes of a sample.
    slab_bytes
        Most bytes of a slab; a single plane is read whatever it takes.

    Examples
    --------
    >>> level = Level(
    ...     shape=(100, 2048, 2048), factors=(1, 1, 1), chunks=(64, 512, 512), blocks=(16, 64, 64)
    ... )
    >>> seen = VisiblePlane(
    ...     rows=1,
    ...     columns=2,
    ...     position=(70, 0, 0),
    ...     visible=((0, 2048), (0, 2048)),
    ...     voxels_per_px=(4, 4),
    ...     scroll=0,
    ... )
    >>> request = plan_plane([level], seen, itemsize=2, slab_bytes=1 << 25)
    >>> request.slab.box, request.slab.strides, request.index[0]
    (((64, 80), (0, 2048), (0, 2048)), (1, 4, 4), 6)
    """
    across = (seen.rows, seen.columns)
    number = _choose_level(levels, seen)
    level = levels[number]
    strides = [1] * len(level.shape)
    box = [
        (at, at + 1)
        for at in (
            min(max(p // f, 0), n - 1)
            for p, f, n in zip(seen.position, level.factors, level.shape, strict=True)
        )
    ]
    for axis, edges, per_px in zip(across, seen.visible, seen.voxels_per_px, strict=True):
        n, factor = level.shape[axis], level.factors[axis]
        strides[axis] = _stride(per_px / factor, n)
        box[axis] = _whole_steps((edges[0] / factor, edges[1] / factor), n, strides[axis])
    plane = Slab(level=number, box=tuple(box), strides=tuple(strides))
    slab = _thickened(plane, level, seen, room=slab_bytes // itemsize)
    index: list[int | slice] = [
        start - first for (start, _), (first, _) in zip(box, slab.box, strict=True)
    ]
    extent = []
    for axis in across:
        index[axis] = slice(None)
        taken = slab.slices()[axis]
        count = len(range(taken.start, taken.stop, taken.step))
        start, factor = box[axis][0], level.factors[axis]
        extent.append((start * factor, (start + count * strides[axis]) * factor))
    return PlaneRequest(
        slab=slab,
        index=tuple(index),
        is_transposed=seen.rows > seen.columns,
        extent=(extent[0], extent[1]),
    )


def _choose_level(levels: Sequence[Level], seen: VisiblePlane) -> int:
    """Return the coarsest level that has a sample for every pixel."""
    rows, columns = (_SLACK * per_px for per_px in seen.voxels_per_px)
    fine = [
        number
        for number, level in enumerate(levels)
        if level.factors[seen.rows] <= max(rows, 1)
        and level.factors[seen.columns] <= max(columns, 1)
    ]
    return max(fine, default=0)


def _stride(voxels_per_px: float, n: int) -> int:
    """Return a power of two, so that zooming a little reads nothing else; at most the extent."""
    wanted = min(_SLACK * voxels_per_px, n)
    return 1 << int(math.log2(wanted)) if wanted >= 1 else 1


def _whole_steps(edges: tuple[float, float], n: int, stride: int) -> tuple[int, int]:
    """Return what is read along an axis of which some is visible, so that panning reads little."""
    if n <= _WHOLE_SAMPLES * stride:
        return 0, n
    step = _STEP_SAMPLES * stride
    last = (n - 1) // step
    first = min(max(math.floor(edges[0] / step), 0), last)
    stop = min(max(math.ceil(edges[1] / step), first + 1), last + 1)
    start, end = first * step, min(stop * step, n)
    # A rest too short for a sample in its middle is read with the step before it.
    return (start if start + stride // 2 < end else start - step), end


def _thickened(plane: Slab, level: Level, seen: VisiblePlane, *, room: int) -> Slab:
    """Add the planes that lie in the same blocks, as far as there is room for their samples."""
    sizes = [
        len(range(*part.indices(n))) for part, n in zip(plane.slices(), level.shape, strict=True)
    ]
    left = max(1, room // math.prod(sizes))
    around = surrounding_blocks(
        plane.box, shape=level.shape, chunks=level.chunks, blocks=level.blocks
    )
    hidden = [a for a in range(len(level.shape)) if a not in (seen.rows, seen.columns)]
    box = list(plane.box)
    for axis in sorted(hidden, key=lambda a: (a != seen.scroll, a)):
        (start, stop), at = around[axis], plane.box[axis][0]
        thick = min(stop - start, left)
        first = start + (at - start) // thick * thick
        box[axis] = (first, min(first + thick, stop))
        left //= thick
    return replace(plane, box=tuple(box))
