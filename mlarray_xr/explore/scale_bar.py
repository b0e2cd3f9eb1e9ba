"""ScaleBar: a round length that fits a picture, and how many pixels it is."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["ScaleBar", "plan_bar"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleBar:
    """A line of known length."""

    length_px: int
    """Pixels of the line, at least 1."""
    text: str
    """Length and unit."""


def plan_bar(*, longest_px: float, px_per_unit: float, unit: str) -> ScaleBar:
    """Return the bar of the largest 1, 2 or 5 times a power of ten that is not longer.

    Parameters
    ----------
    longest_px
        Pixels that there are for it, above 0.
    px_per_unit
        Pixels per unit of length, above 0.
    unit
        Name of the unit.

    Examples
    --------
    >>> plan_bar(longest_px=128, px_per_unit=2, unit="mm")
    ScaleBar(length_px=100, text='50 mm')
    """
    longest = longest_px / px_per_unit
    power = 10.0 ** math.floor(math.log10(longest))
    # Rounding may put the power itself above what there is room for.
    fitting = [factor * power for factor in (1, 2, 5) if factor * power <= longest]
    length = max(fitting, default=power)
    return ScaleBar(length_px=max(1, round(length * px_per_unit)), text=f"{length:g} {unit}")
