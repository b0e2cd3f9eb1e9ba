"""The door to Pillow: three slices of a volume as one picture."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.core.indexing import LazilyIndexedArray

from mlarray_xr.array import MlaArray
from mlarray_xr.backend import MlaBackendArray
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import ConversionError, GeometryError, MissingDependencyError
from mlarray_xr.foreign.nifti import NIFTI_SUFFIXES, open_nifti
from mlarray_xr.placement import geometry_of
from mlarray_xr.read import open_mla
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

    from mlarray_xr.geometry import Geometry

__all__ = ["preview"]

_GAP_PX = 8
_TEXT_PX = 16
_LEAST_PX = 32
_BAR_SHARE = 0.5
_PERCENTILES = (0.5, 99.5)
_VOXELS_PER_PX = 2
_LEFT_RIGHT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """One plane of an array and how it is shown."""

    rows: str
    columns: str
    position: dict[str, int]
    """Index along every other dimension."""
    extent: tuple[float, float]
    """Height and width, in units of the spacing."""
    is_flipped: bool
    """Whether the last row is at the top."""
    caption: str


def preview(
    source: str | os.PathLike[str] | MlaArray | xr.DataArray,
    dst: str | os.PathLike[str],
    *,
    size_px: int = 256,
) -> tuple[int, int]:
    """Draw the central planes across three axes side by side into a PNG file, replacing it.

    Reads these planes and no more, with a stride where there are more than two voxels per pixel.
    Proportions follow the spacing, grey values the percentiles 0.5 and 99.5. Superior, or else
    anterior, is up where the file says RAS or LPS; otherwise rows run down in array order. Of
    further axes, such as time, the first entry is shown.

    Parameters
    ----------
    source
        An `.mla` or NIfTI file, an `MlaArray`, or a DataArray.
    dst
        The PNG file.
    size_px
        Pixels along the longest side of a plane, at least 32.

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

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6000, dtype="int16").reshape(10, 20, 30), "ramp.mla")
    >>> preview("ramp.mla", "ramp.png", size_px=90)
    (272, 92)
    """
    if size_px < _LEAST_PX:
        raise ValueError(f"size_px={size_px}: at least {_LEAST_PX} pixels are needed")
    image, draw = _pillow()
    array = _opened(source)
    views, unit = _plan_views(array)
    planes = [_read(array, view, size_px=size_px) for view in views]
    shades = _shades(planes)
    scale = size_px / max(max(view.extent) for view in views)
    panels = []
    for shade, view in zip(shades, views, strict=True):
        height, width = (max(1, round(n * scale)) for n in view.extent)
        panels.append(image.fromarray(shade).resize((width, height), image.Resampling.BILINEAR))
    width = sum(panel.width + _GAP_PX for panel in panels) + _GAP_PX
    height = max(panel.height for panel in panels) + 2 * _TEXT_PX
    picture = image.new("L", (width, height))
    pen, left = draw.Draw(picture), _GAP_PX
    for panel, view in zip(panels, views, strict=True):
        pen.text((left, 2), view.caption, fill=255)
        picture.paste(panel, (left, _TEXT_PX))
        left += panel.width + _GAP_PX
    length = _round_length(_BAR_SHARE * size_px / scale)
    bar_px = round(length * scale)
    pen.rectangle((_GAP_PX, height - 8, _GAP_PX + bar_px, height - 6), fill=255)
    pen.text((2 * _GAP_PX + bar_px, height - _TEXT_PX + 2), f"{length:g} {unit}", fill=255)
    with published(os.path.abspath(os.fspath(dst)), overwrite=True) as file:
        picture.save(file, format="PNG")
    return width, height


def _opened(source: str | os.PathLike[str] | MlaArray | xr.DataArray) -> xr.DataArray:
    """Return what is shown as a lazy DataArray that can be shown at all."""
    if isinstance(source, xr.DataArray):
        array = source
    elif isinstance(source, MlaArray):
        lazy = LazilyIndexedArray(MlaBackendArray(source))
        array = next(iter(dataset_from(lazy, source).data_vars.values()), xr.DataArray())
    elif os.fspath(source).lower().endswith(NIFTI_SUFFIXES):
        array = open_nifti(source)
    else:
        array = open_mla(source)
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "biufc":
        raise ConversionError(
            f"an array of shape {array.shape} and type {array.dtype} has no picture: two axes and "
            "some numbers are needed"
        )
    return array


def _plan_views(array: xr.DataArray) -> tuple[list[_View], str]:
    """Decide which planes are shown, and the unit of their extents."""
    dims = [str(dim) for dim in array.dims]
    geometry = _geometry(array)
    spacing: dict[str, float] = {}
    flipped: set[str] = set()
    unit = "voxels"
    if geometry is not None:
        spacing = dict(zip(geometry.dims, geometry.spacing, strict=True))
        flipped = _pointing_up(geometry)
        unit = next(iter(geometry.units)) or "units"
    spatial = [dim for dim in dims if dim in spacing]
    shown = (spatial if len(spatial) > 1 else dims)[-3:]
    extents = {dim: array.sizes[dim] * _usable(spacing.get(dim, 1.0)) for dim in shown}
    views = []
    for pair in reversed(list(combinations(shown, 2))):
        is_named = all(dim in ("x", "y", "z") for dim in pair)
        columns, rows = sorted(pair) if is_named else reversed(pair)
        position = {dim: 0 for dim in dims if dim not in pair}
        across = {dim: array.sizes[dim] // 2 for dim in shown if dim not in pair}
        text = "".join(f"  {dim}={index}" for dim, index in across.items())
        views.append(
            _View(
                rows=rows,
                columns=columns,
                position={**position, **across},
                extent=(extents[rows], extents[columns]),
                is_flipped=rows in flipped,
                caption=f"{rows}, {columns}{text}",
            )
        )
    return views, unit


def _geometry(array: xr.DataArray) -> Geometry | None:
    """Return the geometry of an array, None without one that proportions can follow."""
    try:
        geometry = geometry_of(array)
    except GeometryError:
        return None
    return geometry if geometry.is_stored else None


def _pointing_up(geometry: Geometry) -> set[str]:
    """Return the dimensions whose last entry belongs at the top: superior or anterior."""
    try:
        direction = geometry.in_system("RAS").direction
    except GeometryError:
        return set()
    along = np.abs(direction).argmax(axis=0)
    return {
        dim
        for axis, dim in enumerate(geometry.dims)
        if along[axis] != _LEFT_RIGHT and direction[along[axis], axis] > 0
    }


def _usable(spacing: float) -> float:
    """Return a spacing that a picture can have."""
    return spacing if math.isfinite(spacing) and spacing > 0 else 1.0


def _read(array: xr.DataArray, view: _View, *, size_px: int) -> NDArray[np.float64]:
    """Read one plane, rows by columns, with at most two voxels for a pixel along an axis."""
    strides = {
        dim: slice(None, None, max(1, array.sizes[dim] // (_VOXELS_PER_PX * size_px)))
        for dim in (view.rows, view.columns)
    }
    plane = array.isel({**view.position, **strides})
    values: Any = plane.to_numpy()
    if plane.dims != (view.rows, view.columns):
        values = values.T
    if view.is_flipped:
        values = values[::-1]
    return np.asarray(np.abs(values) if values.dtype.kind == "c" else values, np.float64)


def _shades(planes: list[NDArray[np.float64]]) -> list[NDArray[np.uint8]]:
    """Map values to grey, the same for all planes; what is not finite is black."""
    known = np.concatenate([plane[np.isfinite(plane)] for plane in planes])
    low, high = np.percentile(known, _PERCENTILES) if known.size else (0.0, 0.0)
    if low == high and known.size:
        low, high = known.min(), known.max()
    # A constant picture is grey.
    span = high - low or 2 * (abs(low) or 1.0)
    base = low if high > low else low - span / 2
    return [
        (np.nan_to_num((plane - base) / span, posinf=0.0, neginf=0.0).clip(0, 1) * 255).astype(
            np.uint8
        )
        for plane in planes
    ]


def _round_length(longest: float) -> float:
    """Return the largest 1, 2 or 5 times a power of ten that is not longer."""
    power = 10.0 ** math.floor(math.log10(longest))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= longest)


def _pillow() -> tuple[ModuleType, ModuleType]:
    """Return Pillow's modules for images and for drawing."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingDependencyError(
            "pictures need Pillow, which is not installed. "
            'To fix: pip install "mlarray-xr[preview]"'
        ) from error
    return Image, ImageDraw
