"""PatchPlace: where one patch lies in an array that may be smaller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box

__all__ = ["PatchPlace", "place_around", "place_from"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchPlace:
    """A patch that reaches outside the array where that is smaller; then the rest is padding.

    Examples
    --------
    >>> place = place_from((5, 0), shape=(4, 8), extents=(20, 6))
    >>> place.box, place.inside, place.valid
    (((5, 9), (-1, 7)), ((5, 9), (0, 6)), ((0, 4), (1, 7)))
    """

    start: tuple[int, ...]
    """Array index of the patch's first element; below 0 where it begins with padding."""
    shape: tuple[int, ...]
    """Extents of the patch."""
    extents: tuple[int, ...]
    """Extents of the array."""
    dropped: tuple[int, ...] = ()
    """Axes of extent 1 that a sample leaves out: those across a 2-D slice."""

    box: Box = field(init=False)
    """Start and stop along each axis, array indices; may reach outside the array."""
    inside: Box = field(init=False)
    """The part of the box that the array has."""

    def __post_init__(self) -> None:
        """Check that the patch touches the array."""
        axes = tuple(zip(self.start, self.shape, self.extents, strict=True))
        set_field = object.__setattr__
        set_field(self, "box", tuple([(a, a + size) for a, size, _ in axes]))
        set_field(self, "inside", tuple([(max(a, 0), min(a + size, n)) for a, size, n in axes]))
        if any(start >= stop for start, stop in self.inside):
            msg = f"a patch of {self.shape} at {self.start} holds nothing of {self.extents}"
            raise ValueError(msg)
        if any(self.shape[axis] != 1 for axis in self.dropped):
            msg = f"axes {self.dropped} of a patch of {self.shape} cannot be left out"
            raise ValueError(msg)

    @property
    def valid(self) -> Box:
        """The part that the array has in indices of the patch."""
        return tuple(
            (a - first, b - first) for (a, b), first in zip(self.inside, self.start, strict=True)
        )

    @property
    def is_inside(self) -> bool:
        """Whether the array holds the whole patch."""
        return self.inside == self.box

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Extents of the patch in a sample."""
        return tuple(n for axis, n in enumerate(self.shape) if axis not in self.dropped)


def place_from(
    start: Sequence[int], *, shape: tuple[int, ...], extents: tuple[int, ...]
) -> PatchPlace:
    """Place a patch at a first index, moved inside; in the middle along axes that are too short."""
    return PatchPlace(
        start=tuple(
            min(max(first, 0), n - size) if size <= n else -((size - n) // 2)
            for first, size, n in zip(start, shape, extents, strict=True)
        ),
        shape=shape,
        extents=extents,
    )


def place_around(
    centre: Sequence[int], *, shape: tuple[int, ...], extents: tuple[int, ...]
) -> PatchPlace:
    """Place a patch around an element, moved inside as far as it has to be.

    Examples
    --------
    >>> place_around((50, 1), shape=(8, 8), extents=(99, 99)).start
    (46, 0)
    """
    start = [index - size // 2 for index, size in zip(centre, shape, strict=True)]
    return place_from(start, shape=shape, extents=extents)
