"""Plane: the voxels of a plane that a small picture needs, read within bounded work and memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.explore.file_plane import axis_grid, equal_runs, read_plane
from mlarray_xr.opened_file import file_of, whole_file_of
from mlarray_xr.overview_files import find_levels
from mlarray_xr.placement import file_positions
from mlarray_xr.planning.plane_request import level_factors
from mlarray_xr.planning.plane_samples import AxisGrid, PlaneLimits, plan_plane
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.counters import ReadStats

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.explore.central_planes import CentralPlanes, PlaneView

__all__ = ["Plane", "levels_behind", "read_planes"]

# Of a plane of 256 pixels; larger pictures may touch more. Measured on two cores: 256 scattered
# blocks of 16 KiB take 30 ms when they are first touched, 32 MiB of neighbouring ones 20 ms.
_LOCAL = PlaneLimits(most_chunks=256, most_blocks=2048)
_REMOTE = PlaneLimits(most_chunks=64, most_blocks=256)
_USUAL_PX = 256
_DECODED_BYTES = 32 << 20
_CHUNKS_AT_ONCE = 96
_BYTES_AT_ONCE = 8 << 20
_ENOUGH_VOXELS_PER_PX = 0.75


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plane:
    """The samples of one plane, rows from the top of the picture."""

    samples: NDArray[Any]
    """(rows, neighbours, columns, neighbours), type of the array."""
    level: int
    """Which overview they are from; 0 is the array itself."""
    is_coarse: bool
    """Whether there are fewer samples than pixels because more would have been too much work."""
    n_skipped: int
    """Of how many voxels of that level one was read."""

    def means(self) -> NDArray[np.float64]:
        """Return the mean of each group of neighbours, of complex ones that of their size."""
        samples = np.abs(self.samples) if self.samples.dtype.kind == "c" else self.samples
        with np.errstate(invalid="ignore", over="ignore"):
            means: NDArray[np.float64] = samples.mean(axis=(1, 3), dtype=np.float64)
        return means

    def middles(self) -> NDArray[Any]:
        """Return the middle of each group of neighbours, as it is stored."""
        _, height, _, width = self.samples.shape
        return self.samples[:, height // 2, :, width // 2]


def levels_behind(array: xr.DataArray) -> tuple[MlaArray, ...]:
    """Return the file that an array is the whole of, and its overviews; nothing of other arrays."""
    file = whole_file_of(array)
    return () if file is None else find_levels(file)


def read_planes(
    array: xr.DataArray,
    planes: CentralPlanes,
    *,
    levels: tuple[MlaArray, ...],
    size_px: int,
) -> list[Plane]:
    """Read what a picture of these planes needs.

    Of a whole `.mla` file from the coarsest overview that has about a voxel per pixel, and for
    256 pixels at most 256 chunks and 32 MiB of blocks of each plane (64 chunks of a remote file).
    A file that nobody in this process has read yet is let go of after each plane, so that no more
    of it than that is mapped at a time.

    Parameters
    ----------
    array
        Any array; a Dask array that is not a whole file is computed, plane by plane.
    planes
        Of this array.
    levels
        What lies behind it, from `levels_behind`.
    size_px
        Pixels along the longest side of any plane.
    """
    scale = planes.px_per_unit(size_px)
    return [
        _read_view(array, view, levels=levels, pixels=view.size_px(scale), size_px=size_px)
        for view in planes.views
    ]


def _read_view(
    array: xr.DataArray,
    view: PlaneView,
    *,
    levels: tuple[MlaArray, ...],
    pixels: tuple[int, int],
    size_px: int,
) -> Plane:
    """Read one plane."""
    dims = [str(dim) for dim in array.dims]
    axes = dims.index(view.rows), dims.index(view.columns)
    level = _level(levels, axes, pixels)
    file = levels[level] if levels else file_of(array)
    shape = levels[level].shape if levels else array.shape
    grids = None
    if file is not None:
        down, across = (
            axis_grid(file, axis) if levels else _selected_grid(array, dims[axis], file)
            for axis in axes
        )
        grids = down, across
    samples = plan_plane(
        (shape[axes[0]], shape[axes[1]]),
        pixels=pixels,
        grids=grids,
        limits=None if file is None else _limits(file, size_px),
    )
    rows, columns = samples.rows.ravel(), samples.columns.ravel()
    if levels:
        # Which voxel of a coarser level stands for the one in the middle of the array.
        factors = level_factors(levels[0].shape, shape) or (1,) * len(shape)
        position = [
            min(view.position.get(dim, 0) // factor, n - 1)
            for dim, factor, n in zip(dims, factors, shape, strict=True)
        ]
        values = _read_and_let_go(levels[level], axes, position, rows, columns)
    else:
        values = _read_selected(array, view, rows, columns)
    grouped = values.reshape(*samples.rows.shape, *samples.columns.shape)
    return Plane(
        samples=grouped[::-1] if view.is_flipped else grouped,
        level=level,
        is_coarse=samples.is_coarse,
        n_skipped=samples.n_skipped,
    )


def _level(levels: tuple[MlaArray, ...], axes: tuple[int, int], pixels: tuple[int, int]) -> int:
    """Return the coarsest level with about a voxel per pixel along both axes."""
    enough = [
        number
        for number, level in enumerate(levels)
        if all(
            level.shape[axis] >= min(levels[0].shape[axis], _ENOUGH_VOXELS_PER_PX * px)
            for axis, px in zip(axes, pixels, strict=True)
        )
    ]
    return max(enough, default=0)


def _limits(file: MlaArray, size_px: int) -> PlaneLimits:
    """Return how much of a file may be touched for one plane of a picture."""
    usual = _REMOTE if is_url(file.path) else _LOCAL
    more = max(1.0, size_px / _USUAL_PX) ** 2
    in_bytes = _DECODED_BYTES // (math.prod(file.blocks) * file.dtype.itemsize)
    return PlaneLimits(
        most_chunks=round(usual.most_chunks * more),
        most_blocks=max(1, round(min(usual.most_blocks, in_bytes) * more)),
    )


def _selected_grid(array: xr.DataArray, dim: str, file: MlaArray) -> AxisGrid:
    """Return the grid of a file along a dimension of a selection of it, in steps of the selection.

    Where it is not known how the selection lies in the file, every voxel may be in its own chunk.
    """
    dims = stored_axes(file.metadata, file.ndim).dims
    positions = file_positions(array, dim) if dim in dims else None
    if positions is None or positions.ndim != 1:
        return AxisGrid(chunk=1, block=1)
    grid = axis_grid(file, dims.index(dim))
    step = max(1, math.ceil(float(np.abs(np.diff(positions)).max(initial=1.0))))
    return AxisGrid(chunk=max(1, grid.chunk // step), block=max(1, grid.block // step))


def _read_and_let_go(
    file: MlaArray,
    axes: tuple[int, int],
    position: list[int],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> NDArray[Any]:
    """Read from a file, and let go of it every few rows if nobody has read it before.

    Pages of a mapped file count as memory of the process while it is mapped: 45 MB for a block of
    each of 256 chunks. Mapping it again takes a millisecond.
    """
    is_fresh = file.path is not None and not is_url(file.path) and file.stats() == ReadStats()
    down, across = (axis_grid(file, axis) for axis in axes)
    starts = down.block_starts(rows)
    n_chunks = len(np.unique(rows // down.chunk)) * len(np.unique(columns // across.chunk))
    n_blocks = len(np.unique(starts)) * len(np.unique(across.block_starts(columns)))
    n_bytes = n_blocks * math.prod(file.blocks) * file.dtype.itemsize
    n_parts = max(n_chunks / _CHUNKS_AT_ONCE, n_bytes / _BYTES_AT_ONCE, 1) if is_fresh else 1
    out = np.empty((len(rows), len(columns)), file.dtype)
    for some in equal_runs(starts, most=math.ceil(len(rows) / n_parts)):
        try:
            out[some] = read_plane(
                file, axes=axes, position=position, rows=rows[some], columns=columns
            )
        finally:
            if is_fresh:
                file.close()
    return out


def _read_selected(
    array: xr.DataArray, view: PlaneView, rows: NDArray[np.intp], columns: NDArray[np.intp]
) -> NDArray[Any]:
    """Read from whatever the array is made of."""
    wanted = {view.rows: _as_slice(rows), view.columns: _as_slice(columns)}
    plane = array.isel({**view.position, **wanted})
    values: NDArray[Any] = plane.to_numpy()
    return values if plane.dims == (view.rows, view.columns) else values.T


def _as_slice(positions: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Return evenly spaced positions as a slice, which every kind of array reads faster."""
    steps = np.diff(positions)
    if len(steps) and (steps != steps[0]).any():
        return positions
    step = int(steps[0]) if len(steps) else 1
    return slice(int(positions[0]), int(positions[-1]) + 1, step)
