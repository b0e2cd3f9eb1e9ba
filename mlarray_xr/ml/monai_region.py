"""Regions of interest as MONAI users spell them, turned into boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mlarray_xr.planning.grid import check_box, is_empty

if TYPE_CHECKING:
    from mlarray_xr.planning.grid import Box

__all__ = ["Roi", "plan_roi"]

Roi: TypeAlias = "Mapping[str, Any] | Sequence[Any]"
"""(start, stop) pairs or slices: by dimension, or one per axis; None is an axis whole."""


def plan_roi(
    roi: Roi | None,
    *,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    spatial: tuple[int, ...],
    channel: int | None,
) -> Box:
    """Return the box that a region of interest means.

    Parameters
    ----------
    roi
        By dimension, or one entry per spatial axis, per axis but that of the channels, or per axis.
        What it does not name is whole, and so is None.
    dims, shape
        Names and extents of the file's axes.
    spatial
        Which of them are spatial.
    channel
        Which of them holds channels, if any.

    Raises
    ------
    IndexError
        When it reaches outside the array: regions are not clipped.
    ValueError
        When it is empty, names other dimensions, has steps or another number of entries.

    Examples
    --------
    >>> file = {"dims": ("channel", "y", "x"), "shape": (2, 40, 50), "spatial": (1, 2)}
    >>> plan_roi({"x": (10, 20)}, **file, channel=0)
    ((0, 2), (0, 40), (10, 20))
    >>> plan_roi([(0, 8), slice(40, None)], **file, channel=0)
    ((0, 2), (0, 8), (40, 50))
    """
    if roi is None:
        return tuple((0, n) for n in shape)
    given = dict(_by_axis(roi, dims=dims, spatial=spatial, channel=channel))
    pairs = [_pair(given.get(axis), extent=n) for axis, n in enumerate(shape)]
    box = check_box(pairs, shape)
    if is_empty(box):
        msg = f"roi {roi!r} holds no voxel of {dict(zip(dims, shape, strict=True))}"
        raise ValueError(msg)
    return box


def _by_axis(
    roi: Roi, *, dims: tuple[str, ...], spatial: tuple[int, ...], channel: int | None
) -> list[tuple[int, Any]]:
    """Return the entries of a region, each with its axis."""
    if isinstance(roi, Mapping):
        unknown = [name for name in roi if name not in dims]
        if unknown:
            msg = f"roi names {unknown}, the file has dimensions {dims}. To fix: name those"
            raise ValueError(msg)
        return [(dims.index(dim), entry) for dim, entry in roi.items()]
    entries = list(roi)
    every = range(len(dims))
    for axes in (spatial, [axis for axis in every if axis != channel], every):
        if len(entries) == len(axes):
            return list(zip(axes, entries, strict=True))
    msg = (
        f"roi has {len(entries)} entries for the dimensions {dims}, {len(spatial)} of them "
        "spatial. To fix: one (start, stop) per spatial axis, or a mapping by dimension"
    )
    raise ValueError(msg)


def _pair(entry: Any, *, extent: int) -> tuple[Any, Any]:
    """Return start and stop of one entry."""
    if entry is None:
        return 0, extent
    if not isinstance(entry, slice):
        start, stop = entry
        return start, stop
    if entry.step not in (None, 1):
        msg = f"roi with step {entry.step}: every voxel of a region is read. To fix: Spacingd"
        raise ValueError(msg)
    return (
        0 if entry.start is None else entry.start,
        extent if entry.stop is None else entry.stop,
    )
