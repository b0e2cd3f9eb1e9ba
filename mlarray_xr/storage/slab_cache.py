"""The slab cache: decoded blocks around thin boxes that are read one after another.

One of the package's few pieces of state, bounded, forgotten after a fork. Someone who looks at
slice after slice decodes the same blocks each time: the second slice of the same blocks is read
with all that these blocks hold, and the following ones are copied from there. Boxes that are as
thick as a block, such as patches, never get here.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.planning.grid import box_shape, surrounding_blocks
from mlarray_xr.storage.read_settings import configure, read_settings

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from numpy.typing import NDArray

    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.storage.gather import Fill

__all__ = ["nothing_kept", "read_nearby"]

_Slab: TypeAlias = "tuple[Hashable, Box]"
_MOST_SEEN = 256

_lock = threading.Lock()
_kept: OrderedDict[_Slab, NDArray[Any]] = OrderedDict()
_kept_bytes = 0
# Slabs that one box was read of.
_seen: OrderedDict[_Slab, None] = OrderedDict()


def read_nearby(
    file: Hashable, header: FrameHeader, box: Box, out: NDArray[Any], fill: Fill
) -> bool:
    """Fill `out` with the elements of a box, from what was decoded lately where that has them.

    Parameters
    ----------
    file
        What is read, and which version of it.
    header
        Of that file.
    box
        Inside the array, not empty.
    out
        C-contiguous, of the box's shape and the array's dtype.
    fill
        Reads boxes of the file.

    Returns
    -------
    bool
        Whether the file was read.
    """
    is_thin = any(stop - start < b for (start, stop), b in zip(box, header.blocks, strict=True))
    limit = read_settings().decoded_cache_bytes
    if _kept_bytes > limit:  # it was lowered
        _trim(limit)
    if not is_thin or not limit:
        fill(box, out)
        return True
    around = surrounding_blocks(box, shape=header.shape, chunks=header.chunks, blocks=header.blocks)
    n_bytes = math.prod(box_shape(around)) * header.typesize
    if n_bytes > limit or around == box:
        fill(box, out)
        return True
    slab = (file, around)
    values, is_known = _look_up(slab)
    if values is None and not is_known:
        fill(box, out)
        return True
    is_read = values is None
    if values is None:
        values = np.empty(box_shape(around), header.dtype)
        fill(around, values)
        _keep(slab, values)
        _trim(limit)
    out[...] = values[
        tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(box, around, strict=True))
    ]
    return is_read


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
    """Keep nothing while a block runs, in all threads: what is timed is decoded every time."""
    before = read_settings().decoded_cache_bytes
    configure(decoded_cache_bytes=0)
    try:
        yield
    finally:
        configure(decoded_cache_bytes=before)


def _look_up(slab: _Slab) -> tuple[NDArray[Any] | None, bool]:
    """Return a slab if it is kept, and whether a box of it was read before; now one was."""
    with _lock:
        values = _kept.get(slab)
        if values is not None:
            _kept.move_to_end(slab)
            return values, True
        is_known = slab in _seen
        _seen[slab] = None
        _seen.move_to_end(slab)
        if len(_seen) > _MOST_SEEN:
            _seen.popitem(last=False)
        return None, is_known


def _keep(slab: _Slab, values: NDArray[Any]) -> None:
    """Keep a slab, which another thread may have kept meanwhile."""
    global _kept_bytes
    with _lock:
        _kept_bytes += values.nbytes - (_kept[slab].nbytes if slab in _kept else 0)
        _kept[slab] = values


def _trim(limit: int) -> None:
    """Drop the slabs that were not used for longest until the others fit."""
    global _kept_bytes
    with _lock:
        while _kept_bytes > limit:
            _kept_bytes -= _kept.popitem(last=False)[1].nbytes


def _forget_after_fork() -> None:
    """Start afresh in a forked child, whose memory is counted for itself."""
    global _lock, _kept, _kept_bytes, _seen
    _lock, _kept, _kept_bytes, _seen = threading.Lock(), OrderedDict(), 0, OrderedDict()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
