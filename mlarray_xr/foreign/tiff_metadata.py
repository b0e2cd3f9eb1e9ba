"""What a TIFF image says about its axes and sizes, in the words of the schema."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.axes import axis_labels_for
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.record import Record, StoredCoordinate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlarray_xr.format.metadata import Json

__all__ = ["Calibration", "describe", "imagej_calibration", "unit_name"]

_KEY = "tiff"
_DIM_OF_LETTER = {"T": "time", "C": "channel", "Z": "z", "Y": "y", "X": "x"}
_UNNAMED = "IQ"
"""Letters by which tifffile says that it does not know what an axis means."""

_SPELLINGS = {
    "um": ("um", "µm", "μm", "\\u00b5m", "micron", "microns", "micrometer"),
    "mm": ("mm", "millimeter"),
    "nm": ("nm", "nanometer"),
    "s": ("s", "sec", "second", "seconds"),
    "ms": ("ms", "msec"),
    "min": ("min", "minute", "minutes"),
}
_UNIT_OF_SPELLING = {text: unit for unit, texts in _SPELLINGS.items() for text in texts}
_NO_UNITS = {"", "pixel", "pixels", "inch", "inches", "reference frame"}
"""Inches are what ImageJ makes of the dots per inch for a printer."""

_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Distances between neighbours, by axis letter, as the program that wrote the file states them.

    Examples
    --------
    >>> Calibration(steps={"X": 0.5}, units={"X": "um"}).steps["X"]
    0.5
    """

    steps: Mapping[str, float] = field(default_factory=dict)
    """Spacing along X, Y and Z, interval along T; letters without a known one are absent."""
    units: Mapping[str, str] = field(default_factory=dict)
    """Unit of each step."""
    channels: tuple[str, ...] = ()
    """Names of the channels, or nothing."""


def unit_name(text: object) -> str | None:
    """Return the usual name of a unit; None for pixels, inches and what is no unit.

    Examples
    --------
    >>> unit_name("micron"), unit_name("cm"), unit_name("pixel")
    ('um', 'cm', None)
    """
    if not isinstance(text, str) or text.strip().lower() in _NO_UNITS:
        return None
    name = text.strip()
    found = _UNIT_OF_SPELLING.get(name.lower(), name)
    return found if found.isprintable() and len(found) <= _NAME_CHARACTERS else None


def imagej_calibration(
    description: Mapping[str, Any], *, per_unit: tuple[float, float] | None
) -> Calibration:
    """Return sizes of an ImageJ hyperstack.

    ImageJ states the distance of slices only where it is not 1 (``FileSaver``), in the unit of the
    pixels. Without a unit nothing is known.

    Parameters
    ----------
    description
        Keys and values of the image description.
    per_unit
        Pixels per unit along X and Y, the resolution tags.

    Examples
    --------
    >>> imagej_calibration({"unit": "micron", "spacing": 2.0}, per_unit=(4.0, 4.0)).steps
    {'X': 0.25, 'Y': 0.25, 'Z': 2.0}
    """
    steps, units = {}, {}
    unit = unit_name(description.get("unit"))
    if unit is not None and per_unit is not None and min(per_unit) > 0:
        steps = {"X": 1 / per_unit[0], "Y": 1 / per_unit[1]}
        slices = description.get("spacing", 1.0)
        if isinstance(slices, int | float) and 0 < abs(slices) < math.inf:
            steps["Z"] = abs(float(slices))
        units = dict.fromkeys(steps, unit)
    interval = description.get("finterval")
    if isinstance(interval, int | float) and 0 < interval < math.inf:
        steps["T"] = float(interval)
        units["T"] = unit_name(description.get("tunit")) or "s"
    return Calibration(steps=steps, units=units)


def describe(
    axes: str,
    shape: Sequence[int],
    *,
    calibration: Calibration,
    base_shape: Sequence[int],
    source: dict[Any, Json],
) -> Metadata:
    """Return the metadata of an image.

    A stack whose third axis nobody names is stored with the label ``spatial`` for it, rows and
    columns: it opens as z, y, x, which are said to be assumed.

    Parameters
    ----------
    axes
        One tifffile letter per axis.
    shape
        Extents of the image, or of the level of a pyramid that it is.
    calibration
        Of the base of the pyramid.
    base_shape
        Extents of the base. Levels cover the same area, so that the centre of their first pixel
        lies inside the image.
    source
        What is worth keeping of the file's own words.

    Examples
    --------
    >>> pixels = Calibration(steps={"X": 0.5, "Y": 0.5}, units={"X": "um", "Y": "um"})
    >>> describe(
    ...     "YX", (50, 40), calibration=pixels, base_shape=(100, 80), source={}
    ... ).spatial.spacing
    (1.0, 1.0)
    """
    dims, steps = _dims(axes), calibration.steps
    labels = axis_labels_for(dims)
    is_assumed = _is_unnamed_stack(axes)
    if is_assumed:
        labels = tuple(
            "spatial" if letter in _UNNAMED + "YX" else label
            for letter, label in zip(axes, labels, strict=True)
        )
    factors = {
        letter: _factor(base, n) for letter, base, n in zip(axes, base_shape, shape, strict=True)
    }
    spatial = [letter for letter in axes if letter in "ZYX"]
    is_known = bool(spatial) and not is_assumed and all(letter in steps for letter in spatial)
    shifts = [(factors[letter] - 1) / 2 * steps.get(letter, 0) for letter in spatial]
    units: list[Json] = [calibration.units.get(letter, "") for letter in axes]
    stated: dict[Any, Json] = {
        letter: [steps[letter], calibration.units[letter]] for letter in steps
    }
    record = Record(coords=_coords(axes, shape, calibration))
    return Metadata(
        source={_KEY: {**source, "axes": axes, **({"steps": stated} if stated else {})}},
        extra=record.added_to({}),
        spatial=Spatial(
            spacing=tuple(steps[letter] * factors[letter] for letter in spatial)
            if is_known
            else None,
            origin=tuple(shifts) if is_known and any(shifts) else None,
            axis_labels=labels,
            axis_units=units if is_known else None,
        ),
        has_array=True,
        image_meta_format="tiff",
    )


def _dims(axes: str) -> tuple[str, ...]:
    """Name the axes; letters that stand for nothing in particular stay as they are."""
    samples = "sample" if "C" in axes else "channel"
    return tuple({**_DIM_OF_LETTER, "S": samples}.get(letter, letter) for letter in axes)


def _is_unnamed_stack(axes: str) -> bool:
    """Tell stacks of planes along an axis of unknown meaning."""
    planes = axes.replace("S", "").replace("C", "")
    return len(planes) == 3 and planes[0] in _UNNAMED and planes[1:] == "YX"


def _factor(base: int, n: int) -> float:
    """Return how many pixels of the base a pixel of a level covers.

    A whole number where the rounding of sizes up or down explains the rest.
    """
    whole = round(base / n) if n else 1
    if whole and n in (base // whole, -(-base // whole)):
        return float(whole)
    return base / n if n else 1.0


def _coords(
    axes: str, shape: Sequence[int], calibration: Calibration
) -> dict[str, StoredCoordinate]:
    """Return the coordinates of time and channel where they are known."""
    coords = {}
    sizes = dict(zip(axes, shape, strict=True))
    if axes.count("T") == 1 and "T" in calibration.steps:
        coords["time"] = StoredCoordinate(
            dims=("time",),
            values=calibration.steps["T"] * np.arange(sizes["T"], dtype=np.float64),
            attrs={"units": calibration.units["T"]},
        )
    names = calibration.channels
    is_usable = len({*names}) == len(names) and all(
        name.isprintable() and len(name) <= _NAME_CHARACTERS for name in names
    )
    if names and axes.count("C") == 1 and sizes["C"] == len(names) and is_usable:
        coords["channel"] = StoredCoordinate(dims=("channel",), values=np.array(names))
    return coords
