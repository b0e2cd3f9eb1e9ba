"""Sampling: which patches an epoch takes of a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.foreground import Foreground
    from mlarray_xr.planning.patch_place import PatchPlace
    from mlarray_xr.planning.sample_space import SampleSpace

__all__ = ["Find", "Sampling"]

Find: TypeAlias = "Callable[[Foreground, np.random.Generator], tuple[int, ...] | None]"
"""Draws an element of the foreground of a volume, by its index; None when there is none."""


class Sampling(Protocol):
    """Decides where patches lie; a value, equal for equal parameters."""

    @property
    def n_per_volume(self) -> int | None:
        """Patches of every volume in an epoch; None when that follows from its extents."""

    def count(self, space: SampleSpace) -> int:
        """Return how many patches of a volume an epoch takes."""

    def place(self, space: SampleSpace, *, number: int, draw: Draw, find: Find) -> PatchPlace:
        """Return where patch `number` of a volume lies; chance comes from `draw` alone."""
