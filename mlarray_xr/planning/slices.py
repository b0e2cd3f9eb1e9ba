"""Slices2D and WholeVolume: what is taken in order instead of at random."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.patch_place import PatchPlace, place_from
from mlarray_xr.planning.sizes import whole_number

if TYPE_CHECKING:
    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.sample_space import SampleSpace
    from mlarray_xr.planning.sampling import Find

__all__ = ["Slices2D", "WholeVolume"]


@dataclass(frozen=True, slots=True)
class Slices2D:
    """Every slice of a volume across one dimension, or slabs of several slices.

    A sample of one slice lacks the dimension: (C, y, x) across z. Slabs keep it.

    Examples
    --------
    >>> from mlarray_xr.planning.draw import Draw
    >>> from mlarray_xr.planning.sample_space import SampleSpace
    >>> space = SampleSpace(dims=("z", "y", "x"), extents=(40, 99, 98), spatial=(0, 1, 2))
    >>> draw = Draw(seed=0, epoch=0, index=0)
    >>> place = Slices2D("y").place(space, number=5, draw=draw, find=lambda *_: None)
    >>> place.box, place.sample_shape
    (((0, 40), (5, 6), (0, 98)), (40, 98))
    """

    dim: str = "z"
    """The dimension across the slices."""
    thickness: int = 1
    """Slices of a slab."""
    step: int = 1
    """From one slab to the next; the last one is moved inside."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        whole_number(self.thickness, "thickness", least=1)
        whole_number(self.step, "step", least=1)

    @property
    def n_per_volume(self) -> None:
        """None: it follows from the extents."""
        return

    def count(self, space: SampleSpace) -> int:
        """Return how many slabs cover a volume."""
        room = space.extents[self._axis(space)] - self.thickness
        return max(-(-room // self.step), 0) + 1

    def place(
        self,
        space: SampleSpace,
        *,
        number: int,
        draw: Draw,  # noqa: ARG002 - nothing is left to chance
        find: Find,  # noqa: ARG002
    ) -> PatchPlace:
        """Return where a slab lies."""
        axis = self._axis(space)
        start, shape = [0] * space.ndim, list(space.extents)
        start[axis], shape[axis] = number * self.step, self.thickness
        place = place_from(start, shape=tuple(shape), extents=space.extents)
        return replace(place, dropped=(axis,)) if self.thickness == 1 else place

    def _axis(self, space: SampleSpace) -> int:
        """Return the axis across the slices."""
        if self.dim not in space.dims:
            msg = f"slices across {self.dim!r} were asked for; the dimensions are {space.dims}"
            raise LayoutError(msg)
        return space.dims.index(self.dim)


@dataclass(frozen=True, slots=True)
class WholeVolume:
    """Each volume whole, one sample an epoch.

    Examples
    --------
    >>> WholeVolume().n_per_volume
    1
    """

    @property
    def n_per_volume(self) -> int:
        """One."""
        return 1

    def count(self, space: SampleSpace) -> int:  # noqa: ARG002 - of every volume the same
        """Return one."""
        return 1

    def place(
        self,
        space: SampleSpace,
        *,
        number: int,  # noqa: ARG002 - there is one
        draw: Draw,  # noqa: ARG002 - nothing is left to chance
        find: Find,  # noqa: ARG002
    ) -> PatchPlace:
        """Return where the volume lies."""
        return place_from([0] * space.ndim, shape=space.extents, extents=space.extents)
