"""The central planes of an array as pictures, read within bounded work."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from xarray.core.indexing import LazilyIndexedArray

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import read_metadata
from mlarray_xr.backend import MlaBackendArray
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import MetadataError
from mlarray_xr.explore.central_planes import plan_central_planes
from mlarray_xr.explore.picture import png_bytes, resized, written_on
from mlarray_xr.explore.plane_reading import levels_behind, read_planes
from mlarray_xr.explore.scale_bar import plan_bar
from mlarray_xr.foreign.nifti import NIFTI_SUFFIXES, open_nifti
from mlarray_xr.opened_file import file_of
from mlarray_xr.planning.contrast import (
    chunk_window,
    coloured,
    looks_like_labels,
    plan_window,
    recorded_window,
    shaded,
)
from mlarray_xr.read import open_mla
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.explore.central_planes import PlaneView
    from mlarray_xr.explore.picture import Anchor
    from mlarray_xr.explore.plane_reading import Plane
    from mlarray_xr.explore.scale_bar import ScaleBar

__all__ = [
    "LARGEST_PX",
    "SMALLEST_PX",
    "Drawing",
    "DrawnPlane",
    "contrast_of",
    "draw_planes",
    "preview",
]

_GAP_PX = 8
_TEXT_PX = 16
SMALLEST_PX, LARGEST_PX = 32, 4096
"""Bounds of the longest side of a plane, pixels."""

_BAR_SHARE = 0.4
_BAR_HEIGHT_PX = 3
_SAMPLE_PX = 64
_MOST_CHUNKS = 1 << 20
_LABEL_NAMES = frozenset({"labels", "label", "mask", "seg", "segmentation"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnPlane:
    """One plane, ready to be shown."""

    view: PlaneView
    """Which plane, and how it lies on the screen."""
    pixels: NDArray[np.uint8]
    """(rows, columns) grey or (rows, columns, 3) colours."""
    n_skipped: int
    """Of how many voxels one was read for want of time; 1 when the picture is as sharp as it is
    large."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawing:
    """The planes of an array, at one scale and contrast."""

    planes: tuple[DrawnPlane, ...]
    """One to three."""
    bar: ScaleBar
    """A length at their scale."""
    n_overviews: int
    """How many coarser levels lie beside the file of the array."""

    @property
    def n_skipped(self) -> int:
        """The largest of the planes."""
        return max(plane.n_skipped for plane in self.planes)


def preview(
    source: str | os.PathLike[str] | MlaArray | xr.DataArray,
    dst: str | os.PathLike[str],
    *,
    size_px: int = 256,
) -> tuple[int, int]:
    """Draw the central planes across three axes side by side into a PNG file, replacing it.

    Reads from overviews where there are some, and otherwise so few voxels of these planes that it
    takes a moment from a file of any size; the picture then says that it is coarse. Proportions
    follow the spacing, grey values the percentiles 0.5 and 99.5, labels have colours. Superior, or
    else anterior, is up where the file says RAS or LPS, and letters stand at the edges; otherwise
    rows run down in array order. Of further axes, such as time, the first entry is shown.

    Parameters
    ----------
    source
        An `.mla` or NIfTI file, an `MlaArray`, or a DataArray.
    dst
        The PNG file.
    size_px
        Pixels along the longest side of a plane, 32 to 4096.

    Returns
    -------
    tuple of int
        Width and height of the picture, pixels.

    Raises
    ------
    ConversionError
        When there are fewer than two axes, no voxels, or voxels that are no numbers.
    MissingDependencyError
        When Pillow is not installed.
    ValueError
        When the size is another number, or `dst` does not end in ``.png``.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6000, dtype="int16").reshape(10, 20, 30), "ramp.mla")
    >>> preview("ramp.mla", "ramp.png", size_px=90)
    (272, 92)
    """
    name = os.fspath(dst)
    if not name.lower().endswith(".png"):
        msg = f"{name!r} does not end in .png, which is what is written"
        raise ValueError(msg)
    drawing = draw_planes(_opened(source), size_px=size_px)
    picture = _side_by_side(drawing)
    encoded = png_bytes(picture)
    with published(os.path.abspath(name), overwrite=True) as file:
        file.write(encoded)
    return picture.shape[1], picture.shape[0]


def contrast_of(array: xr.DataArray) -> tuple[float, float]:
    """Return the values that pictures of an array show as black and as white.

    From what the file of the array says of its values, if it does: percentiles or extremes in the
    metadata, or the ranges of its chunks; otherwise from samples of the central planes.

    Parameters
    ----------
    array
        Anything that has a picture; a Dask array that is not a file is computed for it in part.

    Returns
    -------
    tuple of float
        The first is below the second.

    Raises
    ------
    ConversionError
        When the array has no picture.

    Examples
    --------
    >>> contrast_of(xr.DataArray(np.arange(4096).reshape(64, 64), dims=("y", "x")))
    (20.475, 4074.525)
    """
    planes = plan_central_planes(array)
    file = file_of(array)
    recorded = None if file is None else _recorded_contrast(file)
    if recorded is not None:
        return recorded
    sampled = read_planes(array, planes, levels=levels_behind(array), size_px=_SAMPLE_PX)
    return plan_window(plane.means() for plane in sampled)


def draw_planes(array: xr.DataArray, *, size_px: int) -> Drawing:
    """Read and draw the central planes of an array.

    Parameters
    ----------
    array
        At least 2-D; a Dask array that is not a whole file is computed, plane by plane.
    size_px
        Pixels along the longest side of a plane, 32 to 4096.

    Raises
    ------
    ConversionError, MissingDependencyError, ValueError
        As `preview`.
    """
    if type(size_px) is not int or not SMALLEST_PX <= size_px <= LARGEST_PX:
        raise ValueError(
            f"size_px={size_px!r}: a number of pixels from {SMALLEST_PX} to {LARGEST_PX} is needed"
        )
    planned = plan_central_planes(array)
    scale = planned.px_per_unit(size_px)
    levels = levels_behind(array)
    read = read_planes(array, planned, levels=levels, size_px=size_px)
    pixels = _pixels(array, read)
    drawn = tuple(
        DrawnPlane(
            view=view,
            pixels=resized(
                one, shape=view.size_px(scale), smooth="linear" if one.ndim == 2 else "nearest"
            ),
            n_skipped=plane.n_skipped if plane.is_coarse else 1,
        )
        for view, plane, one in zip(planned.views, read, pixels, strict=True)
    )
    # Left of the letter in the middle of the first plane's lower edge.
    longest_px = _BAR_SHARE * drawn[0].pixels.shape[1]
    bar = plan_bar(longest_px=longest_px, px_per_unit=scale, unit=planned.unit)
    return Drawing(planes=drawn, bar=bar, n_overviews=max(0, len(levels) - 1))


def _opened(source: str | os.PathLike[str] | MlaArray | xr.DataArray) -> xr.DataArray:
    """Return what is shown as a lazy DataArray."""
    if isinstance(source, xr.DataArray):
        return source
    if isinstance(source, MlaArray):
        lazy = LazilyIndexedArray(MlaBackendArray(source))
        return next(iter(dataset_from(lazy, source).data_vars.values()), xr.DataArray())
    if os.fspath(source).lower().endswith(NIFTI_SUFFIXES):
        return open_nifti(source)
    return open_mla(source)


def _recorded_contrast(file: MlaArray) -> tuple[float, float] | None:
    """Return the window that a file gives, None where it gives none."""
    stats = file.metadata.stats
    window = _stated_percentiles(file) or recorded_window(stats.min, stats.max)
    n_chunks = math.prod(-(-n // c) for n, c in zip(file.shape, file.chunks, strict=True))
    if window is not None or n_chunks > _MOST_CHUNKS:
        return window
    ranges = file.chunk_statistics()
    if ranges is None:
        return None
    return chunk_window(ranges.least, ranges.greatest, ranges.nonzero)


def _stated_percentiles(file: MlaArray) -> tuple[float, float] | None:
    """Return the percentiles that a file states."""
    stats = file.metadata.stats
    return recorded_window(stats.percentile_min, stats.percentile_max)


def _pixels(array: xr.DataArray, planes: list[Plane]) -> list[NDArray[np.uint8]]:
    """Return planes as colours or greys, all of them with the same contrast."""
    if _are_labels(array, planes):
        return [coloured(plane.middles()) for plane in planes]
    means = [plane.means() for plane in planes]
    file = file_of(array)
    stated = None if file is None else _stated_percentiles(file)
    window = stated or plan_window(means)
    return [shaded(plane, window) for plane in means]


def _are_labels(array: xr.DataArray, planes: list[Plane]) -> bool:
    """Tell whether an array holds labels: as its file says, by its name, or by its values."""
    try:
        described = read_metadata(array.attrs)
    except MetadataError:
        described = None
    is_seg = None if described is None else described[0].is_seg
    if is_seg is not None:
        return is_seg and array.dtype.kind in "biuf"
    if array.name in _LABEL_NAMES and array.dtype.kind in "biu":
        return True
    return looks_like_labels([plane.middles() for plane in planes])


def _side_by_side(drawing: Drawing) -> NDArray[np.uint8]:
    """Put planes next to each other, with captions above, letters on them and the bar below."""
    panels = [plane.pixels for plane in drawing.planes]
    height = max(len(panel) for panel in panels) + 2 * _TEXT_PX
    width = sum(panel.shape[1] + _GAP_PX for panel in panels) + _GAP_PX
    picture = np.zeros((height, width, *panels[0].shape[2:]), np.uint8)
    texts: list[tuple[tuple[float, float], str, Anchor]] = []
    left = _GAP_PX
    for plane in drawing.planes:
        rows, columns = plane.pixels.shape[:2]
        picture[_TEXT_PX : _TEXT_PX + rows, left : left + columns] = plane.pixels
        texts.append(((_TEXT_PX / 2, left), plane.view.caption, "left"))
        texts += _letters(plane, left)
        left += columns + _GAP_PX
    middle = height - _TEXT_PX // 2
    stop = _GAP_PX + drawing.bar.length_px
    picture[middle - _BAR_HEIGHT_PX // 2 :][:_BAR_HEIGHT_PX, _GAP_PX:stop] = 255
    texts.append(((middle, stop + _GAP_PX), drawing.bar.text, "left"))
    if drawing.n_skipped > 1:
        note = f"coarse: 1 of {drawing.n_skipped} voxels"
        texts.append(((middle, width - _GAP_PX), note, "right"))
    return written_on(picture, texts)


def _letters(plane: DrawnPlane, left: int) -> list[tuple[tuple[float, float], str, Anchor]]:
    """Return the letters at the edges of a plane that begins at a column of the picture."""
    edges = plane.view.edges
    if edges is None:
        return []
    rows, columns = plane.pixels.shape[:2]
    middle, centre = _TEXT_PX + rows / 2, left + columns / 2
    return [
        ((_TEXT_PX + _TEXT_PX / 2, centre), edges.top, "centre"),
        ((rows + _TEXT_PX / 2, centre), edges.bottom, "centre"),
        ((middle, left + 2), edges.left, "left"),
        ((middle, left + columns - 2), edges.right, "right"),
    ]
