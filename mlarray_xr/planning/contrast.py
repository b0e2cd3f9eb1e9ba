"""Contrast: which values a picture shows as black and as white, and which arrays are labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = [
    "chunk_window",
    "coloured",
    "looks_like_labels",
    "plan_window",
    "recorded_window",
    "shaded",
]

_PERCENTILES = (0.5, 99.5)
_CHUNK_PERCENTILES = (1.0, 99.0)
_MOST_RANKED = 1 << 16
_MOST_LABELS = 32
_VALUES_PER_LABEL = 2

_BLACK, _GREY = (0, 0, 0), (96, 96, 96)
# Okabe and Ito's colours, which colour-blind people tell apart, then five of Paul Tol's light ones.
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (119, 170, 221),
    (238, 136, 102),
    (187, 204, 51),
    (68, 187, 153),
    (255, 170, 187),
)


def plan_window(samples: Iterable[NDArray[Any]]) -> tuple[float, float]:
    """Return the values that a picture of these samples shows as black and as white.

    The percentiles 0.5 and 99.5 of what is finite, or of some of it that are evenly spread where
    there are more than 65 536 values; least and greatest where these are the same; a
    value that is the only one is in the middle.

    Parameters
    ----------
    samples
        Values, of any shape.

    Returns
    -------
    tuple of float
        The first is below the second; 0 and 1 where nothing is finite.

    Examples
    --------
    >>> plan_window([np.arange(1001)])
    (5.0, 995.0)
    >>> plan_window([np.full(9, 7)])
    (0.0, 14.0)
    """
    parts = [np.asarray(sample, np.float64).ravel() for sample in samples]
    finite = [part[np.isfinite(part)] for part in parts]
    known = np.concatenate(finite) if finite else np.empty(0)
    if not known.size:
        return 0.0, 1.0
    # Sorting all values of three planes takes longer than reading them.
    some = known[:: max(1, known.size // _MOST_RANKED)]
    low, high = map(float, np.percentile(some, _PERCENTILES))
    if low == high:
        low, high = float(known.min()), float(known.max())
    if low == high:
        half = abs(low) or 1.0
        low, high = low - half, low + half
    return low, high


def recorded_window(low: object, high: object) -> tuple[float, float] | None:
    """Return the window between two numbers that a file states; None where they are none.

    Parameters
    ----------
    low, high
        A pair of percentiles, or least and greatest value: whatever the file holds there.

    Examples
    --------
    >>> recorded_window(-900, 1200.5)
    (-900.0, 1200.5)
    >>> recorded_window(None, None) is recorded_window(0, float("nan")) is None
    True
    """
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    try:
        pair = float(low), float(high)
    except OverflowError:
        return None
    return pair if pair[0] < pair[1] and math.isfinite(pair[1] - pair[0]) else None


def chunk_window(
    least: NDArray[Any], greatest: NDArray[Any], nonzero: NDArray[Any]
) -> tuple[float, float] | None:
    """Return a window from the value ranges of chunks, passing over those of a single value.

    The percentile 1 of the least and the percentile 99 of the greatest values, so that a few
    chunks with metal or noise do not darken the others. None where all chunks hold one value.

    Parameters
    ----------
    least, greatest, nonzero
        Columns of `mlarray_xr.format.integrity.ChunkStatistics`.

    Examples
    --------
    >>> chunk_window(np.array([0, 0, 2]), np.array([0, 9, 8]), np.array([0, 5, 5]))
    (0.02, 8.99)
    """
    varied = (nonzero > 0) & (least < greatest) & np.isfinite(least) & np.isfinite(greatest)
    if not varied.any():
        return None
    low = float(np.percentile(least[varied].astype(np.float64), _CHUNK_PERCENTILES[0]))
    high = float(np.percentile(greatest[varied].astype(np.float64), _CHUNK_PERCENTILES[1]))
    return (low, high) if low < high else None


def looks_like_labels(samples: Iterable[NDArray[Any]]) -> bool:
    """Tell whether values are few, small whole numbers from 0 on, as those of segmentations are.

    Parameters
    ----------
    samples
        Values, of any shape.

    Examples
    --------
    >>> looks_like_labels([np.array([0, 1, 3], np.uint8)]), looks_like_labels([np.array([0, 90])])
    (True, False)
    """
    found: set[int] = set()
    for sample in samples:
        if sample.dtype.kind not in "bui":
            return False
        if sample.size and (sample.min() < 0 or sample.max() > _MOST_LABELS * _VALUES_PER_LABEL):
            return False
        found.update(np.unique(sample).tolist())
    if 0 not in found or not 1 < len(found) <= _MOST_LABELS:
        return False
    return max(found) <= _VALUES_PER_LABEL * (len(found) - 1)


def shaded(values: NDArray[Any], window: tuple[float, float]) -> NDArray[np.uint8]:
    """Return values as shades of grey; what is not finite is black.

    Parameters
    ----------
    values
        Real numbers, of any shape.
    window
        The values that are black and white, the first below the second.

    Examples
    --------
    >>> shaded(np.array([-1.0, 5.0, 10.0, np.nan]), (0.0, 10.0))
    array([  0, 127, 255,   0], dtype=uint8)
    """
    low, high = window
    with np.errstate(over="ignore", invalid="ignore"):
        part = (np.asarray(values, np.float64) - low) / (high - low)
    return (np.nan_to_num(part, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1) * 255).astype(np.uint8)


def coloured(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return labels as colours of a fixed palette: 0 is black, negative ones are grey.

    Parameters
    ----------
    labels
        Whole numbers, of any shape; fractions are cut off, what is not finite counts as 0.

    Returns
    -------
    numpy.ndarray
        One axis more, of red, green and blue.

    Examples
    --------
    >>> coloured(np.array([0, 1, 13, -1])).tolist()
    [[0, 0, 0], [230, 159, 0], [230, 159, 0], [96, 96, 96]]
    """
    if labels.dtype.kind not in "biu":
        labels = np.nan_to_num(labels, nan=0.0, posinf=0.0, neginf=0.0)
    # An index into the palette: black, one for each of the labels in turn, grey.
    turn = np.where(labels > 0, (np.maximum(labels, 1) - 1) % len(_PALETTE) + 1, 0)
    index = np.where(labels < 0, len(_PALETTE) + 1, turn).astype(np.intp)
    return np.array([_BLACK, *_PALETTE, _GREY], np.uint8)[index]
