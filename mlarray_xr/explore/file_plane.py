"""One plane of a file: wanted rows and columns, with each touched block decoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.planning.grid import box_shape, surrounding_blocks
from mlarray_xr.planning.plane_samples import AxisGrid
from mlarray_xr.planning.selection import PointSelection

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray

__all__ = ["axis_grid", "equal_runs", "read_plane"]

_PIECE_BYTES = 4 << 20
_POINTS_AT_ONCE = 1 << 17


def axis_grid(file: MlaArray, axis: int) -> AxisGrid:
    """Return how an axis of a file is cut into chunks and blocks."""
    return AxisGrid(chunk=max(1, file.chunks[axis]), block=max(1, file.blocks[axis]))


def read_plane(
    file: MlaArray,
    *,
    axes: tuple[int, int],
    position: Sequence[int],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
) -> NDArray[Any]:
    """Read the outer product of some rows and columns of a plane.

    Neighbouring columns are read as boxes of whole blocks, 4 MiB of them at a time, because they
    are decoded anyway: of thinner boxes the second reading would fill the cache of decoded slabs.
    Columns with blocks between them are read as points.

    Parameters
    ----------
    file
        Of at least two axes.
    axes
        Those of the rows and of the columns.
    position
        Index along every axis; those of `axes` are not looked at.
    rows, columns
        Ascending positions inside the array, at least one of each.

    Returns
    -------
    numpy.ndarray
        (rows, columns), type of the array.

    Examples
    --------
    >>> import mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(24).reshape(2, 3, 4), "plane.mla")
    >>> read_plane(
    ...     mlarray_xr.MlaArray("plane.mla"),
    ...     axes=(1, 2),
    ...     position=(1, 0, 0),
    ...     rows=np.array([0, 2]),
    ...     columns=np.array([1, 3]),
    ... )
    array([[13, 15],
           [21, 23]])
    """
    out = np.empty((len(rows), len(columns)), file.dtype)
    starts = axis_grid(file, axes[1]).block_starts(columns)
    stops = axis_grid(file, axes[1]).block_stops(columns)
    if (starts[1:] > stops[:-1]).any():
        _read_points(file, axes, position, rows, columns, out)
    else:
        _read_boxes(file, axes, position, rows, columns, out)
    return out


def _read_points(
    file: MlaArray,
    axes: tuple[int, int],
    position: Sequence[int],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    out: NDArray[Any],
) -> None:
    """Read voxels one by one, so many rows at a time."""
    most = max(1, _POINTS_AT_ONCE // len(columns))
    for some in equal_runs(axis_grid(file, axes[0]).block_starts(rows), most=most):
        shape = (len(rows[some]), len(columns))
        along = {axes[0]: rows[some, None], axes[1]: columns}
        points = [
            np.broadcast_to(along.get(axis, np.intp(index)), shape).ravel()
            for axis, index in enumerate(position)
        ]
        selection = PointSelection(
            points=tuple(points),
            ranges=(None,) * file.ndim,
            points_shape=shape,
            points_at=0,
        )
        out[some] = file.select(selection)


def _read_boxes(
    file: MlaArray,
    axes: tuple[int, int],
    position: Sequence[int],
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    out: NDArray[Any],
) -> None:
    """Read boxes of whole blocks and pick from them what is wanted."""
    starts = axis_grid(file, axes[1]).block_starts(columns)
    per_voxel = file.dtype.itemsize
    for axis, block in enumerate(file.blocks):
        per_voxel *= 1 if axis == axes[1] else block
    most = max(1, _PIECE_BYTES // per_voxel)
    buffer = np.empty(0, file.dtype)
    for down in equal_runs(axis_grid(file, axes[0]).block_starts(rows), most=1):
        # Columns are at most a block apart, so as many of them lie in no longer a run of voxels.
        for across in equal_runs(starts // most, most=1):
            wanted = [(index, index + 1) for index in position]
            wanted[axes[0]] = int(rows[down][0]), int(rows[down][-1]) + 1
            wanted[axes[1]] = int(columns[across][0]), int(columns[across][-1]) + 1
            box = surrounding_blocks(
                tuple(wanted), shape=file.shape, chunks=file.chunks, blocks=file.blocks
            )
            size = int(np.prod(box_shape(box)))
            if size > buffer.size:
                buffer = np.empty(size, file.dtype)
            values = file.read(box, out=buffer[:size].reshape(box_shape(box)))
            plane = values[
                tuple(
                    slice(None) if axis in axes else index - start
                    for axis, (index, (start, _)) in enumerate(zip(position, box, strict=True))
                )
            ]
            plane = plane if axes[0] < axes[1] else plane.T
            picked = np.ix_(rows[down] - box[axes[0]][0], columns[across] - box[axes[1]][0])
            out[down, across] = plane[picked]


def equal_runs(numbers: NDArray[np.intp], *, most: int) -> Iterator[slice]:
    """Yield slices of runs of equal numbers, joined while they have at most so many entries.

    Examples
    --------
    >>> list(equal_runs(np.array([0, 0, 4, 4, 4, 8]), most=4))
    [slice(0, 2, None), slice(2, 6, None)]
    """
    ends = [*(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
    start = 0
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        if following is None or following - start > most:
            yield slice(start, end)
            start = end
