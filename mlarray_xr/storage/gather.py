"""Gathering: the outer product of indices read through boxes, in bounded memory."""

from __future__ import annotations

import itertools
import math
import os
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlarray_xr.errors import AllocationError
from mlarray_xr.planning.grid import box_shape, plan_part
from mlarray_xr.planning.selection import plan_runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.selection import OuterSelection

__all__ = ["Fill", "allocate", "check_out", "gather_outer"]

_GATHER_BYTES = 64 << 20
_GUARD_FROM_BYTES = 1 << 30

Selector = slice | np.ndarray


class Fill(Protocol):
    """What a gathering reads through."""

    def __call__(self, box: Box, out: NDArray[Any]) -> None:
        """Fill the C-contiguous `out` with the elements of a box inside the array."""


def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an empty array, refusing one that cannot fit this machine's memory.

    A few hundred bytes of file may honestly hold terabytes of zeros, and systems that overcommit
    would grant the memory and kill the process later.

    Raises
    ------
    AllocationError
        When the array is larger than the physical memory.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > _GUARD_FROM_BYTES and hasattr(os, "sysconf"):
        physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if nbytes > physical:
            msg = (
                f"reading shape {shape} of {dtype} needs {nbytes} bytes, this machine has "
                f"{physical}. To fix: (1) read boxes; (2) use chunks= and Dask"
            )
            raise AllocationError(msg)
    return np.empty(shape, dtype)


def check_out(out: NDArray[Any], *, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Refuse a buffer that the decoder cannot fill in place.

    Raises
    ------
    TypeError, ValueError
        When it is no array, has another shape or type, or is not C-contiguous and writable.
    """
    if not hasattr(out, "flags"):
        msg = f"out must be a NumPy array, got {type(out).__name__}"
        raise TypeError(msg)
    if out.shape != shape or out.dtype != dtype:
        msg = (
            f"out of shape {out.shape} and type {out.dtype} given for a box of shape {shape} "
            f"and type {dtype}. To fix: np.empty({shape}, {dtype.str!r})"
        )
        raise ValueError(msg)
    if not out.flags.c_contiguous or not out.flags.writeable:
        msg = "out must be C-contiguous and writable. To fix: read into np.empty and copy"
        raise ValueError(msg)


def gather_outer(selection: OuterSelection, header: FrameHeader, fill: Fill) -> NDArray[Any]:
    """Read the outer product of one index list per axis.

    Elements between wanted ones closer than a block are read besides them, since they are decoded
    anyway, never more than 64 MiB at once; a selection that is a box is read straight into place.

    Parameters
    ----------
    selection
        What to read.
    header
        Of the frame that is read.
    fill
        Reads boxes.

    Returns
    -------
    numpy.ndarray
        Of the selection's shape.
    """
    lengths = tuple(len(positions) for positions in selection.axes)
    out = allocate(lengths, header.dtype)
    if 0 in lengths:
        return out.reshape(selection.shape)
    steps = [p.step if isinstance(p, range) else 0 for p in selection.axes]
    if all(step == 1 or n == 1 for step, n in zip(steps, lengths, strict=True)):
        fill(tuple((int(p[0]), int(p[-1]) + 1) for p in selection.axes), out)
        return out.reshape(selection.shape)
    pieces = _pieces(range(len(lengths)), selection.axes, header)
    for combination in itertools.product(*pieces):
        box = tuple(pair for pair, _, _ in combination)
        values = np.empty(box_shape(box), header.dtype)
        fill(box, values)
        wanted = _crossed([local for _, _, local in combination])
        out[_crossed([target for _, target, _ in combination])] = values[wanted]
    return out.reshape(selection.shape)


def _pieces(
    axes: Sequence[int], positions: Sequence[range | NDArray[np.intp]], header: FrameHeader
) -> list[list[tuple[tuple[int, int], Selector, Selector]]]:
    """Return what to read along each of these axes, so that no box is more than 64 MiB."""
    limit = plan_part(
        header.shape, header.chunks, itemsize=header.typesize, target_bytes=_GATHER_BYTES
    )
    return [
        list(_axis_pieces(wanted, gap=header.blocks[axis], longest=limit[axis]))
        for axis, wanted in zip(axes, positions, strict=True)
    ]


def _axis_pieces(
    positions: range | NDArray[np.intp], *, gap: int, longest: int
) -> Iterator[tuple[tuple[int, int], Selector, Selector]]:
    """Yield what to read along one axis: start/stop, where it goes, and what of it is wanted."""
    wanted = np.asarray(positions, np.intp)
    order = np.argsort(wanted, kind="stable")
    ordered = wanted[order]
    for run_start, run_stop in plan_runs(positions, gap=gap):
        for start in range(run_start, run_stop, longest):
            stop = min(start + longest, run_stop)
            first, last = np.searchsorted(ordered, (start, stop))
            if first < last:
                local = ordered[first:last] - start
                yield (start, stop), _as_slice(order[first:last]), _as_slice(local)


def _as_slice(indices: NDArray[np.intp]) -> Selector:
    """Return equally spaced indices as a slice: NumPy copies slices much faster."""
    if len(indices) == 1:
        return slice(int(indices[0]), int(indices[0]) + 1)
    step = int(indices[1] - indices[0])
    if step == 0 or (np.diff(indices) != step).any():
        return indices
    stop = int(indices[-1]) + (1 if step > 0 else -1)
    return slice(int(indices[0]), stop if stop >= 0 else None, step)


def _crossed(selectors: list[Selector]) -> tuple[Any, ...]:
    """Return a key that selects the outer product of slices and index arrays."""
    if all(isinstance(s, slice) for s in selectors):
        return tuple(selectors)
    return np.ix_(*[_positions(s) if isinstance(s, slice) else s for s in selectors])


def _positions(piece: slice) -> NDArray[np.intp]:
    """Return the positions of a slice that `_as_slice` made."""
    step = piece.step or 1
    stop = piece.stop if piece.stop is not None else -1
    return np.arange(piece.start, stop, step)
