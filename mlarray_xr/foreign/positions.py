"""Positions along an axis that is not spatial, where a format knows only start and step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.record import Record

__all__ = ["MAX_POSITIONS", "EvenAxis", "even_axis"]

MAX_POSITIONS = 1 << 20
"""Longer axes get no coordinate: headers claim any extent, positions are stored one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenAxis:
    """Evenly spaced positions: start + step * index, in float64.

    Examples
    --------
    >>> EvenAxis(start=1, step=0.5, unit="s").positions(3)
    array([1. , 1.5, 2. ])
    """

    start: float
    """Position of the first sample."""
    step: float
    """Distance to the next one."""
    unit: str | None
    """Unit of both, None where unknown."""

    def positions(self, n: int) -> NDArray[np.float64]:
        """Return the positions of the first n samples."""
        return self.start + self.step * np.arange(n, dtype=np.float64)


def even_axis(record: Record, dim: str) -> EvenAxis | None:
    """Return start and step of the coordinate of a dimension; None without one of numbers.

    Raises
    ------
    ConversionError
        When its positions are not evenly spaced, to a thousandth of a step.
    """
    found = record.coords.get(dim)
    if found is None or found.values.dtype.kind not in "iuf" or not found.values.size:
        return None
    values = found.values.astype(np.float64)
    step = float(values[-1] - values[0]) / (values.size - 1) if values.size > 1 else 1.0
    if not np.allclose(values, values[0] + step * np.arange(values.size), atol=abs(step) * 1e-3):
        raise ConversionError(
            f"the positions along {dim!r} are not evenly spaced, and the format holds start and "
            f"step only. To fix: write the array without them, array.drop_vars({dim!r})"
        )
    unit = found.attrs.get("units")
    return EvenAxis(start=float(values[0]), step=step, unit=unit if type(unit) is str else None)
