"""PlaneSamples: which voxels of a plane a small picture needs, within bounded work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["AxisGrid", "PlaneLimits", "PlaneSamples", "plan_plane"]

_VOXELS_PER_PX = 2
_WIDEST = 4
"""Neighbours along an axis that are averaged where samples are far apart: less noise, no block."""

_SHRINK = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisGrid:
    """How an axis is cut into chunks, and each of them into blocks."""

    chunk: int
    """Voxels of a chunk, at least 1."""
    block: int
    """Voxels of a block, at least 1."""

    def block_starts(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return where the blocks begin that positions lie in; each chunk begins a new one."""
        chunks = positions // self.chunk * self.chunk
        return chunks + (positions - chunks) // self.block * self.block

    def block_stops(self, positions: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return where these blocks end, whatever the extent of the axis."""
        next_chunk = (positions // self.chunk + 1) * self.chunk
        return np.minimum(self.block_starts(positions) + self.block, next_chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneLimits:
    """How much one plane may touch."""

    most_chunks: int
    """Chunks."""
    most_blocks: int
    """Blocks, of all chunks together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlaneSamples:
    """Positions along the two axes of a plane; what is read is their outer product."""

    rows: NDArray[np.intp]
    """Positions along the first axis, (samples, neighbours that are averaged)."""
    columns: NDArray[np.intp]
    """Positions along the second axis, likewise."""
    is_coarse: bool
    """Whether there is less than one sample for a pixel because more would be too much work."""
    n_skipped: int
    """Of how many voxels of the plane one was read; 1 when all are."""


def plan_plane(
    extents: tuple[int, int],
    *,
    pixels: tuple[int, int],
    grids: tuple[AxisGrid, AxisGrid] | None = None,
    limits: PlaneLimits | None = None,
) -> PlaneSamples:
    """Choose evenly spaced voxels of a plane, one or two for a pixel where the limits allow it.

    Where they do not, samples are as far apart, in pixels, as they have to be, and each is a small
    group of neighbours inside one block, which is decoded anyway.

    Parameters
    ----------
    extents
        Voxels along the two axes, at least 1.
    pixels
        Of the picture, along the same axes.
    grids
        Of the chunks and blocks along the same axes; None when there are none.
    limits
        How much may be touched; None is no limit, and so it is without grids.

    Raises
    ------
    LayoutError
        When the extents, pixels or limits are below 1.

    Examples
    --------
    >>> samples = plan_plane((100, 1000), pixels=(50, 500))
    >>> len(samples.rows), len(samples.columns), samples.is_coarse
    (100, 1000, False)
    >>> samples = plan_plane(
    ...     (1 << 20, 1 << 20),
    ...     pixels=(256, 256),
    ...     grids=(AxisGrid(chunk=64, block=16), AxisGrid(chunk=64, block=16)),
    ...     limits=PlaneLimits(most_chunks=16, most_blocks=64),
    ... )
    >>> samples.rows.shape, samples.is_coarse
    ((4, 4), True)
    """
    least = min(*extents, *pixels)
    if limits is not None:
        least = min(least, limits.most_chunks, limits.most_blocks)
    if least < 1:
        raise LayoutError(
            f"a plane of {extents} voxels on {pixels} pixels, within {limits}: all of these "
            "numbers have to be at least 1"
        )
    density = float(_VOXELS_PER_PX)
    firsts = _spread_over(extents, pixels, density)
    while not _fits(firsts, grids, limits) and any(len(first) > 1 for first in firsts):
        density *= _SHRINK
        firsts = _spread_over(extents, pixels, density)
    is_coarse = any(
        len(first) < min(n, px) for first, n, px in zip(firsts, extents, pixels, strict=True)
    )
    if is_coarse and grids is not None:
        rows, columns = map(_widened, firsts, grids, extents)
    else:
        rows, columns = (first[:, None] for first in firsts)
    return PlaneSamples(
        rows=rows,
        columns=columns,
        is_coarse=is_coarse,
        n_skipped=max(1, math.prod(extents) // (rows.size * columns.size)),
    )


def _spread_over(
    extents: tuple[int, int], pixels: tuple[int, int], density: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return evenly spaced positions along both axes, at most so many for a pixel."""
    rows, columns = (_spread(n, density * px) for n, px in zip(extents, pixels, strict=True))
    return rows, columns


def _spread(extent: int, most: float) -> NDArray[np.intp]:
    """Return at most so many evenly spaced positions, at least one, as far from both ends."""
    step = math.ceil(extent / max(1, math.floor(most)))
    count = -(-extent // step)
    return np.arange(count) * step + (extent - 1 - (count - 1) * step) // 2


def _fits(
    firsts: tuple[NDArray[np.intp], NDArray[np.intp]],
    grids: tuple[AxisGrid, AxisGrid] | None,
    limits: PlaneLimits | None,
) -> bool:
    """Tell whether samples touch no more chunks and blocks than they may."""
    if grids is None or limits is None:
        return True
    n_chunks = n_blocks = 1
    for first, grid in zip(firsts, grids, strict=True):
        n_chunks *= len(np.unique(first // grid.chunk))
        n_blocks *= len(np.unique(grid.block_starts(first)))
    return bool(n_chunks <= limits.most_chunks and n_blocks <= limits.most_blocks)


def _widened(first: NDArray[np.intp], grid: AxisGrid, extent: int) -> NDArray[np.intp]:
    """Return positions with neighbours in the same block, an equal number for each.

    Where two of them lie in one block, there are no neighbours: groups must not overlap.
    """
    begin, stop = grid.block_starts(first), np.minimum(grid.block_stops(first), extent)
    is_alone = len(np.unique(begin)) == len(first)
    width = min(_WIDEST, int((stop - begin).min())) if is_alone else 1
    start = np.clip(first - width // 2, begin, stop - width)
    return start[:, None] + np.arange(width)
