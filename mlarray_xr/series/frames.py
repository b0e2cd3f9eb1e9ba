"""Frames of a series one after the other, read ahead in batches of bounded memory."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.opened_file import file_of
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.series.axis import series_dim, with_orig_volume
from mlarray_xr.series.originals import positions_in, stored_series

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from concurrent.futures import Future

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["BatchPlan", "frames", "plan_batches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """Which frames are read together, and what that takes.

    Examples
    --------
    >>> chunk_of_frame = np.arange(10) // 4
    >>> plan = plan_batches(10, frame_bytes=100, memory_bytes=1500, places=[chunk_of_frame])
    >>> plan.batches, plan.peak_bytes
    (((0, 4), (4, 8), (8, 10)), 1200)
    """

    batches: tuple[tuple[int, int], ...]
    """First frame and the one after the last, in order, without gaps."""
    read_ahead: int
    """Batches that are read while one is used."""
    n_at_once: int
    """Batches in memory at most: one that is used, the one before, which a loop still holds, and
    those read ahead."""
    frame_bytes: int
    """Bytes of one frame."""

    @property
    def peak_bytes(self) -> int:
        """Bytes of all batches in memory at most."""
        longest = max((stop - start for start, stop in self.batches), default=0)
        return longest * self.n_at_once * self.frame_bytes


def frames(
    array: xr.DataArray,
    *,
    dim: str | None = None,
    read_ahead: int = 1,
    memory_limit: int | str = "256 MiB",
) -> Generator[xr.DataArray, None, None]:
    """Iterate over the frames of a series, each in memory; the next ones are read meanwhile.

    As many frames are read together as fit the limit, whole chunks of the file (parts of a Dask
    array) where these fit, whole blocks otherwise, so that nothing is decoded twice. All batches
    together, the one in use and the one that the loop has not let go of included, stay within
    the limit, but for two frames, which there always are. A frame is a view of its batch: who
    keeps one keeps that, unless it is ``frame.copy()``. What tasks of a Dask graph hold while they
    compute counts on top, and so do decoded blocks that are cached.

    Parameters
    ----------
    array
        From a file, from Dask, or in memory; frames of the latter are views.
    dim
        The dimension that frames lie along; see `mlarray_xr.series.axis.series_dim`.
    read_ahead
        Batches that a thread of their own reads while one is used; 0 reads when asked.
    memory_limit
        Bytes, or text such as ``"1 GiB"``.

    Yields
    ------
    xarray.DataArray
        One frame, without `dim`, with ``orig_volume``. An error of a read comes in its turn,
        after the frames of all batches before. Closing the generator ends the thread.

    Raises
    ------
    ValueError
        At once: when the limit is no amount, `read_ahead` is negative, or it is not clear which
        dimension is meant or which frames these are.

    Examples
    --------
    >>> import mlarray_xr, xarray as xr
    >>> _ = mlarray_xr.to_mla(xr.DataArray(np.eye(3), dims=("time", "x")), "eye.mla")
    >>> for frame in frames(mlarray_xr.open_mla("eye.mla")[::2]):
    ...     print(int(frame.orig_volume), frame.values)
    0 [1. 0. 0.]
    2 [0. 0. 1.]
    """
    along = series_dim(array, dim)
    if read_ahead < 0:
        msg = f"read_ahead={read_ahead} is negative. To fix: 0 reads each batch when it is needed"
        raise ValueError(msg)
    numbered = with_orig_volume(array, along)
    n = numbered.sizes[along]
    plan = plan_batches(
        n,
        frame_bytes=numbered.size // max(n, 1) * numbered.dtype.itemsize,
        memory_bytes=parse_bytes(memory_limit),
        places=_places(numbered, along),
        read_ahead=read_ahead,
        # Dask holds the parts of a batch and puts them together in another array.
        n_copies=1 if numbered.chunks is None else 2,
    )
    return _iterate(numbered, along, plan)


def plan_batches(
    n_frames: int,
    *,
    frame_bytes: int,
    memory_bytes: int,
    places: Sequence[NDArray[np.intp]] = (),
    read_ahead: int = 1,
    n_copies: int = 1,
) -> BatchPlan:
    """Decide which frames to read together.

    Parameters
    ----------
    n_frames, frame_bytes
        Number of frames, and the size of each.
    memory_bytes
        What all batches may take together.
    places
        For each frame the chunk that it is in, then the block: batches end where one ends, if its
        frames fit a batch.
    read_ahead
        Batches to read ahead; fewer where not even single frames fit.
    n_copies
        Times that a batch is in memory while it is read.
    """
    in_all = max(1, memory_bytes // max(1, frame_bytes))
    ahead = min(read_ahead, max(0, in_all - 1 - n_copies))
    n_at_once = ahead + 1 + n_copies
    n_most = max(1, in_all // n_at_once)
    return BatchPlan(
        batches=tuple(_packed(0, n_frames, n_most, places)),
        read_ahead=ahead,
        n_at_once=n_at_once,
        frame_bytes=frame_bytes,
    )


def _packed(
    start: int, stop: int, n_most: int, places: Sequence[NDArray[np.intp]]
) -> Iterator[tuple[int, int]]:
    """Cut a range into pieces of at most `n_most`, between different places where these fit."""
    if not places:
        cuts = [*range(start, stop, n_most), stop]
        yield from pairwise(cuts)
        return
    changes = np.flatnonzero(np.diff(places[0][start:stop])) + start + 1
    cuts = [start, *changes.tolist(), stop] if stop > start else [start]
    first = start
    for begin, end in pairwise(cuts):
        if end - first <= n_most:
            continue
        if begin > first:
            yield first, begin
        first = begin
        if end - begin > n_most:
            yield from _packed(begin, end, n_most, places[1:])
            first = end
    if first < stop:
        yield first, stop


def _places(array: xr.DataArray, dim: str) -> list[NDArray[np.intp]]:
    """Return for each frame what it shares with others: chunk and block, or part of Dask."""
    if array.chunks is not None:
        lengths = array.chunks[array.dims.index(dim)]
        return [np.repeat(np.arange(len(lengths)), lengths)]
    file = file_of(array)
    series = None if file is None else stored_series(array, dim)
    if file is None or series is None:
        return []
    axis = series.dims.index(dim)
    positions = positions_in(series, array)
    chunk, block = max(1, file.chunks[axis]), max(1, file.blocks[axis])
    # Blocks begin anew with each chunk.
    per_chunk = -(-chunk // block)
    return [positions // chunk, positions // chunk * per_chunk + positions % chunk // block]


def _iterate(array: xr.DataArray, dim: str, plan: BatchPlan) -> Generator[xr.DataArray, None, None]:
    """Iterate over the frames of a plan."""
    batches = _read_ahead if plan.read_ahead else _read_now
    with contextlib.closing(batches(array, dim, plan)) as read:
        for batch in read:
            for k in range(batch.sizes[dim]):
                yield batch.isel({dim: k})


def _read_now(
    array: xr.DataArray, dim: str, plan: BatchPlan
) -> Generator[xr.DataArray, None, None]:
    """Read each batch when it is asked for."""
    for batch in plan.batches:
        yield _read(array, dim, batch)


def _read_ahead(
    array: xr.DataArray, dim: str, plan: BatchPlan
) -> Generator[xr.DataArray, None, None]:
    """Read batches in order in a thread, so many ahead of the one that is used."""
    waiting, process = iter(plan.batches), os.getpid()
    pool = ThreadPoolExecutor(1, thread_name_prefix="mlarray_xr-frames")

    def begin() -> None:
        """Start one more read; in this context, which may name a Dask client."""
        if (batch := next(waiting, None)) is not None:
            run = contextvars.copy_context().run
            reads.append(pool.submit(partial(run, _read, array, dim, batch)))

    reads: deque[Future[xr.DataArray]] = deque()
    try:
        for _ in range(plan.read_ahead):
            begin()
        while reads:
            if os.getpid() != process:
                msg = (
                    "these frames were begun in another process, whose thread reads them. To fix: "
                    "call frames() in this one"
                )
                raise RuntimeError(msg)
            done = reads.popleft().result()
            begin()
            yield done
            del done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(array: xr.DataArray, dim: str, batch: tuple[int, int]) -> xr.DataArray:
    """Read the frames of one batch."""
    return array.isel({dim: slice(*batch)}).compute()
