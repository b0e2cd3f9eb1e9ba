"""The OME-NGFF metadata of an image and its overviews: axes, scales, translations, orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import GeometryError
from mlarray_xr.foreign.ngff import OPPOSITE, TOWARD_RAS, UNITS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlarray_xr.geometry import Geometry

__all__ = ["multiscales_of"]

_KINDS = {"time": "time", "channel": "channel"}
_RANKS = {"time": 0, "space": 2}
"""Order of the types of axes; channels and all others come between these."""

_UNEVEN = 1e-6
"""How far, in steps, times may be from even ones and still count as such."""

_NAMES_OF_UNITS = {unit: name for name, unit in UNITS.items()}


def multiscales_of(
    *,
    dims: Sequence[str],
    levels: Mapping[str, Geometry],
    coords: Mapping[Any, Any],
) -> dict[str, Any] | None:
    """Return the attributes of version 0.5 for an image; None where it has no such.

    NGFF wants time, then channels or another axis, then two or three spatial axes, and knows
    nothing of oblique images. Where the geometry says that it is RAS or LPS, spatial axes tell
    which way their positions grow (RFC 4, https://ngff.openmicroscopy.org/rfc/4), and positions
    that would fall along an axis are counted the other way round: many viewers take no negative
    scale.

    Parameters
    ----------
    dims
        Dimensions of the array.
    levels
        The geometry of each level by the path of its array inside the group, finest first.
    coords
        Coordinates by name, with ``values`` and ``attrs``; that of an evenly spaced time counts.

    Examples
    --------
    >>> from mlarray_xr.geometry import Geometry
    >>> plane = Geometry(
    ...     dims=("y", "x"), affine=((2, 0, 5), (0, 3, 0), (0, 0, 1)), units=("mm", "mm")
    ... )
    >>> found = multiscales_of(dims=("y", "x"), levels={"image": plane}, coords={})
    >>> found["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    [{'type': 'scale', 'scale': [2.0, 3.0]}, {'type': 'translation', 'translation': [5.0, 0.0]}]
    """
    finest = next(iter(levels.values()))
    kinds = ["space" if dim in finest.dims else _KINDS.get(dim) for dim in dims]
    ranks = [_RANKS.get(kind or "", 1) for kind in kinds]
    is_regular = ranks == sorted(ranks) and max(ranks.count(0), ranks.count(1)) <= 1
    if not is_regular or not 2 <= ranks.count(2) <= 3:
        return None
    if any(level.is_stored and level.world_axes() is None for level in levels.values()):
        return None
    axes, signs = [], []
    for dim, kind in zip(dims, kinds, strict=True):
        _, step, unit = _place(dim, finest, coords)
        toward = _growth(dim, finest)
        signs.append(-1 if toward is not None and step < 0 else 1)
        if toward is not None and step < 0:
            toward = OPPOSITE[toward]
        name = _NAMES_OF_UNITS.get(unit or "", unit if unit in UNITS else None)
        anatomical = None if toward is None else {"type": "anatomical", "value": toward}
        known = {"name": dim, "type": kind, "unit": name, "orientation": anatomical}
        axes.append({key: value for key, value in known.items() if value is not None})
    datasets = []
    for path, level in levels.items():
        places = [_place(dim, level, coords) for dim in dims]
        translation = [s * start + 0.0 for s, (start, _, _) in zip(signs, places, strict=True)]
        scale = [s * float(step) for s, (_, step, _) in zip(signs, places, strict=True)]
        changes: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
        if any(translation):
            changes.append({"type": "translation", "translation": translation})
        datasets.append({"path": path, "coordinateTransformations": changes})
    return {"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}}


def _place(
    dim: str, geometry: Geometry, coords: Mapping[Any, Any]
) -> tuple[float, float, str | None]:
    """Return position of index 0, step and unit along a dimension; those of an index otherwise."""
    world = geometry.world_axes()
    if dim in geometry.dims:
        if not geometry.is_stored or world is None:
            return 0.0, 1.0, None
        axis = geometry.dims.index(dim)
        row = geometry.affine[world[axis]]
        return row[-1], row[axis], geometry.units[axis]
    return _run(coords[dim]) if dim in coords and _KINDS.get(dim) == "time" else (0.0, 1.0, None)


def _growth(dim: str, geometry: Geometry) -> str | None:
    """Return which way the positions along a spatial dimension grow in a patient."""
    try:
        patient = geometry.in_system("RAS")
    except GeometryError:
        return None
    world, axes = geometry.world_axes(), patient.world_axes()
    if dim not in geometry.dims or not geometry.is_stored or world is None or axes is None:
        return None
    axis = geometry.dims.index(dim)
    toward = TOWARD_RAS[axes[axis]]
    # In RAS positions grow that way; in LPS those of two axes grow the other way.
    is_same = geometry.affine[world[axis]][axis] * patient.affine[axes[axis]][axis] > 0
    return toward if is_same else OPPOSITE[toward]


def _run(coordinate: Any) -> tuple[float, float, str | None]:
    """Return start, step and unit of an evenly spaced coordinate; those of an index otherwise."""
    values = coordinate.values
    if values.dtype.kind in "iuf" and values.ndim == 1 and values.size > 1:
        start, step = float(values[0]), float(values[1]) - float(values[0])
        if not np.array_equal(values, start + step * np.arange(values.size)):
            step = (float(values[-1]) - start) / (values.size - 1)
        even = start + step * np.arange(values.size)
        # Times that were computed, such as TR/2 + k TR, are off by their rounding.
        if step and np.abs(values - even).max() <= _UNEVEN * abs(step):
            unit = coordinate.attrs.get("units")
            return start, step, unit if isinstance(unit, str) else None
    return 0.0, 1.0, None
