"""Regions: which box of an existing file new values replace, and which chunks that touches."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.grid import box_shape, check_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box

__all__ = [
    "Region",
    "RimPiece",
    "check_region_borders",
    "plan_outer_box",
    "plan_region",
    "plan_rim",
]

Region: TypeAlias = "Mapping[str, slice] | Sequence[slice | tuple[int, int]]"
"""Slices by dimension, all of those that are not named; or one per axis, array order."""

RimPiece: TypeAlias = "tuple[int, Box | None, Box | None]"
"""An axis, and the boxes before and after what is joined so far along it."""


def plan_region(
    region: Region | None,
    *,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    values_shape: tuple[int, ...],
) -> Box:
    """Return the box that a region means, and make sure that the values have its shape.

    Parameters
    ----------
    region
        Slices by dimension, or one per axis; None is the whole array.
    dims, shape
        Names and extents of the file's axes.
    values_shape
        Extents of what is written there.

    Raises
    ------
    IndexError
        When it reaches outside the array: regions are not clipped.
    ValueError
        When it names other dimensions, has steps, or the values have another shape.

    Examples
    --------
    >>> plan_region({"z": slice(2, 4)}, dims=("z", "x"), shape=(9, 5), values_shape=(2, 5))
    ((2, 4), (0, 5))
    """
    entries: list[Any]
    if region is None:
        entries = [slice(None)] * len(dims)
    elif isinstance(region, Mapping):
        unknown = sorted(set(map(str, region)) - set(dims))
        if unknown:
            msg = f"region names {unknown}, the file has dimensions {dims}. To fix: name those"
            raise ValueError(msg)
        entries = [region.get(dim, slice(None)) for dim in dims]
    else:
        entries = list(region)
    if len(entries) != len(shape):
        msg = f"region {region!r} has {len(entries)} entries, the file has axes {dims}"
        raise ValueError(msg)
    pairs = [_pair(entry, extent=n) for entry, n in zip(entries, shape, strict=True)]
    box = check_box(pairs, shape)
    if box_shape(box) != tuple(values_shape):
        sizes = (
            ", ".join(
                f"{dim} {found} for {start}:{stop}"
                for dim, (start, stop), found in itertools.zip_longest(dims, box, values_shape)
                if stop - start != found
            )
            if len(values_shape) == len(dims)
            else f"{len(values_shape)} axes for {dims}"
        )
        msg = (
            f"values of shape {tuple(values_shape)} for a region of shape {box_shape(box)}: "
            f"{sizes}. To fix: region= with the slices that the values come from"
        )
        raise ValueError(msg)
    return box


def _pair(entry: Any, *, extent: int) -> tuple[int, int]:
    """Return start and stop of one entry."""
    if not isinstance(entry, slice):
        start, stop = entry
        return start, stop
    if entry.step not in (None, 1):
        msg = f"region with step {entry.step}: whole boxes are written. To fix: slices without step"
        raise ValueError(msg)
    return (
        0 if entry.start is None else entry.start,
        extent if entry.stop is None else entry.stop,
    )


def plan_outer_box(box: Box, *, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Box:
    """Return the whole chunks that a box touches; an empty box touches none and is returned.

    Examples
    --------
    >>> plan_outer_box(((3, 5), (0, 2)), shape=(9, 5), chunks=(4, 2))
    ((0, 8), (0, 2))
    """
    if any(start == stop for start, stop in box):
        return box
    return tuple(
        (start // chunk * chunk, min(-(-stop // chunk) * chunk, n))
        for (start, stop), n, chunk in zip(box, shape, chunks, strict=True)
    )


def plan_rim(box: Box, outer: Box) -> list[RimPiece]:
    """Return what joins a box to a larger one, axis by axis, the last axis first.

    Examples
    --------
    >>> plan_rim(((3, 5), (0, 2)), ((0, 8), (0, 2)))
    [(1, None, None), (0, ((0, 3), (0, 2)), ((5, 8), (0, 2)))]
    """
    pieces: list[RimPiece] = []
    joined = list(box)
    for axis in reversed(range(len(box))):
        (start, stop), (first, last) = box[axis], outer[axis]
        before, after = (
            (*joined[:axis], pair, *joined[axis + 1 :]) if pair[0] < pair[1] else None
            for pair in ((first, start), (stop, last))
        )
        pieces.append((axis, before, after))
        joined[axis] = outer[axis]
    return pieces


def check_region_borders(box: Box, outer: Box, dims: tuple[str, ...]) -> None:
    """Refuse a box with borders inside a chunk of the file.

    Raises
    ------
    LayoutError
        Naming the axis and the chunks around.
    """
    for axis, (inner, whole) in enumerate(zip(box, outer, strict=True)):
        if inner != whole and inner[0] < inner[1]:
            msg = (
                f"region {inner[0]}:{inner[1]} along {dims[axis]!r} (axis {axis}) cuts chunks of "
                f"the file, which span {whole[0]}:{whole[1]}. To fix: (1) align_chunks=True keeps "
                f"what is around it; (2) write {whole[0]}:{whole[1]}"
            )
            raise LayoutError(msg)
