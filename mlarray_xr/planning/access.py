"""Access patterns: which windows of an array are read, and how often."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.sizes import window_extents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.sizes import Sizes

__all__ = ["PRESETS", "Preset", "Window", "preset_windows", "windows_of"]

Preset: TypeAlias = Literal["frames", "series", "balanced"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window that is read at random offsets.

    Raises
    ------
    LayoutError
        When the weight is not a positive number.
    """

    shape: tuple[int, ...]
    """Elements along every axis, inside the array."""
    weight: float = 1.0
    """How often it is read, beside others."""

    def __post_init__(self) -> None:
        """Refuse weights that weigh nothing."""
        if not 0 < self.weight < math.inf:
            raise LayoutError(
                f"access window {self.shape} has weight {self.weight!r}; a weight is a positive "
                "number: how often the window is read, beside others"
            )


def windows_of(
    access: Sequence[tuple[Sizes, float]],
    *,
    shape: tuple[int, ...],
    dims: Sequence[str] | None,
) -> tuple[Window, ...]:
    """Return the windows of an access pattern.

    Parameters
    ----------
    access
        Pairs of a window and its weight.
    shape, dims
        Of the array.

    Raises
    ------
    LayoutError
        When a window does not fit the axes, or there is none.

    Examples
    --------
    >>> windows_of([((64, 64), 10), ((1, -1), 1)], shape=(512, 512), dims=None)
    (Window(shape=(64, 64), weight=10.0), Window(shape=(1, 512), weight=1.0))
    """
    if not access:
        raise LayoutError(
            f"access={access!r} holds no window; give pairs of a shape and a weight, such as "
            "[((64, 64, 64), 10), ((1, -1, -1), 1)]"
        )
    found = []
    for pair in access:
        try:
            window, weight = pair
            number = float(weight)
        except (TypeError, ValueError, OverflowError):
            raise LayoutError(
                f"access holds {pair!r}; give pairs of a shape and a weight, such as "
                "[((64, 64, 64), 10), ((1, -1, -1), 1)]"
            ) from None
        extents = window_extents(window, shape=shape, dims=dims)
        inside = tuple(min(p, max(n, 1)) for p, n in zip(extents, shape, strict=True))
        found.append(Window(shape=inside, weight=number))
    return tuple(found)


def preset_windows(
    preset: str, *, shape: tuple[int, ...], spatial: tuple[int, ...]
) -> tuple[Window, ...]:
    """Return the windows of a named pattern for series: arrays with axes that are not spatial.

    ``"frames"`` reads the whole space at one time, ``"series"`` all times of one voxel,
    ``"balanced"`` both, weighted so that each wants as many bytes as the other.

    Parameters
    ----------
    preset
        The name.
    shape
        Of the array.
    spatial
        Numbers of the spatial axes.

    Raises
    ------
    LayoutError
        When there is no such pattern, or no axis that is not spatial.

    Examples
    --------
    >>> preset_windows("series", shape=(100, 64, 64), spatial=(1, 2))
    (Window(shape=(100, 1, 1), weight=1.0),)
    """
    if preset not in PRESETS:
        raise LayoutError(f"layout={preset!r} is no preset; there are {', '.join(PRESETS)}")
    if len(spatial) in (0, len(shape)):
        raise LayoutError(
            f"layout={preset!r} is for series, and of {shape} all axes are alike; name the axes "
            "(dims=('time', 'z', 'y', 'x')), or give access="
        )
    whole = tuple(max(n, 1) for n in shape)
    frame = tuple(n if axis in spatial else 1 for axis, n in enumerate(whole))
    series = tuple(1 if axis in spatial else n for axis, n in enumerate(whole))
    if preset == "frames":
        return (Window(shape=frame),)
    if preset == "series":
        return (Window(shape=series),)
    return (
        Window(shape=frame, weight=1 / math.prod(frame)),
        Window(shape=series, weight=1 / math.prod(series)),
    )
