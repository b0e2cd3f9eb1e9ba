"""Which side of a patient the ends of an axis show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import GeometryError

if TYPE_CHECKING:
    from mlarray_xr.geometry import Geometry

__all__ = ["letters"]

_SIDES = (("L", "R"), ("P", "A"), ("I", "S"))
"""Letters toward negative and positive positions along each world axis of RAS."""


def letters(geometry: Geometry, dim: str) -> tuple[str, str] | None:
    """Return the letters of a patient's sides at the first and at the last index along a dimension.

    Of an oblique dimension the side that it points to most. Left and right, posterior and anterior,
    inferior and superior are the patient's own.

    Parameters
    ----------
    geometry
        Of the array.
    dim
        One of its dimensions.

    Returns
    -------
    tuple of str or None
        None where the geometry does not say that it is RAS or LPS, is not 3-D, knows no such
        dimension, or the dimension points nowhere.

    Examples
    --------
    >>> from mlarray_xr.geometry import Geometry
    >>> lps = Geometry(
    ...     dims=("z", "y", "x"),
    ...     affine=((0, 0, 0.5, 0), (0, 0.5, 0, 0), (3, 0, 0, 0), (0, 0, 0, 1)),
    ...     units=("mm", "mm", "mm"),
    ...     coord_system="LPS",
    ... )
    >>> letters(lps, "x"), letters(lps, "y"), letters(lps, "z")
    (('R', 'L'), ('A', 'P'), ('I', 'S'))
    """
    try:
        patient = geometry.in_system("RAS")
    except GeometryError:
        return None
    if not geometry.is_stored or dim not in patient.dims:
        return None
    along = patient.direction[:, patient.dims.index(dim)]
    if not np.isfinite(along).all() or not along.any():
        return None
    side = int(np.abs(along).argmax())
    negative, positive = _SIDES[side]
    return (negative, positive) if along[side] > 0 else (positive, negative)
