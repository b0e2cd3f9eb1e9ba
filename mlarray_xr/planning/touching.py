"""How many chunks or blocks a window touches on average: exact counts, axis by axis.

Let cells of `size` elements begin at 0 on an axis of n elements, and let a window of p elements
begin at every offset o = 0 .. n - p equally often. Element x lies in cell floor(x / size), so the
window touches ``floor((o + p - 1) / size) - floor(o / size) + 1`` cells. With

    Q(m) = floor(0 / size) + ... + floor((m - 1) / size) = size q (q - 1) / 2 + q r,

where m = q size + r, the mean over all offsets is

    (Q(n) - Q(p - 1) - Q(n - p + 1)) / (n - p + 1) + 1.

Blocks restart at every chunk border. Element x is then in block
``floor(x / chunk) k + floor((x mod chunk) / size)`` with k = ceil(chunk / size) blocks per chunk,
and Q is summed in the same way. Offsets of different axes are independent, so the mean over an
array is the product over its axes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["expected_blocks", "expected_chunks", "touched_along"]


def touched_along(extent: int, window: int, size: Any, *, chunk: int | None = None) -> Any:
    """Return how many cells a window touches along one axis, mean over its offsets.

    Parameters
    ----------
    extent
        Elements of the axis, at least 1.
    window
        Elements of the window; a longer one than the axis is as long as the axis.
    size : int or ndarray of float64
        Elements of a cell; an array gives one answer for each. Integers are summed exactly.
    chunk
        Where cells begin anew, elements; None is never.

    Examples
    --------
    >>> touched_along(100, 10, 10)  # nine offsets of ten reach into a second cell
    1.89010989010989
    >>> touched_along(100, 100, 30, chunk=50)
    4.0
    """
    window = min(window, extent)
    n_offsets = extent - window + 1
    last, before, first = (_sum_of_numbers(m, size, chunk) for m in (extent, window - 1, n_offsets))
    return (last - before - first) / n_offsets + 1


def expected_chunks(shape: Sequence[int], window: Sequence[int], chunks: Sequence[int]) -> float:
    """Return how many chunks a window touches, mean over its offsets.

    Examples
    --------
    >>> expected_chunks((64, 512, 512), (1, 512, 512), (1, 512, 512))
    1.0
    """
    along = zip(shape, window, chunks, strict=True)
    return float(math.prod(touched_along(n, p, c) for n, p, c in along))


def expected_blocks(
    shape: Sequence[int], window: Sequence[int], chunks: Sequence[int], blocks: Sequence[int]
) -> float:
    """Return how many blocks a window touches, mean over its offsets.

    Examples
    --------
    >>> expected_blocks((64, 512, 512), (1, 512, 512), (1, 512, 512), (1, 64, 64))
    64.0
    """
    along = zip(shape, window, chunks, blocks, strict=True)
    return float(math.prod(touched_along(n, p, b, chunk=c) for n, p, c, b in along))


def _sum_of_numbers(count: int, size: Any, chunk: int | None) -> Any:
    """Return the sum of the cell numbers of the first elements of an axis."""
    if chunk is None:
        return _sum_of_quotients(count, size)
    per_chunk = -(-chunk // size)
    whole, rest = divmod(count, chunk)
    return (
        per_chunk * _sum_of_quotients(count, chunk)
        + whole * _sum_of_quotients(chunk, size)
        + _sum_of_quotients(rest, size)
    )


def _sum_of_quotients(count: Any, size: Any) -> Any:
    """Return the sum of floor(x / size) over x from 0 to below count."""
    whole = count // size
    return size * (whole * (whole - 1) // 2) + whole * (count - whole * size)
