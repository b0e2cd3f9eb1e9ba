"""RandomPatches: patches anywhere in a volume, each place equally likely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.planning.patch_place import PatchPlace, place_from
from mlarray_xr.planning.sizes import Sizes, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.sample_space import SampleSpace
    from mlarray_xr.planning.sampling import Find

__all__ = ["RandomPatches", "place_anywhere", "sizes_in"]


@dataclass(frozen=True, slots=True)
class RandomPatches:
    """Patches at uniformly drawn places, all inside the volume; new ones in every epoch.

    A volume that is smaller than the patch along an axis is padded there on both sides.

    Examples
    --------
    >>> from mlarray_xr.planning.draw import Draw
    >>> from mlarray_xr.planning.sample_space import SampleSpace
    >>> space = SampleSpace(dims=("z", "y", "x"), extents=(40, 99, 99), spatial=(0, 1, 2))
    >>> sampling = RandomPatches(64, patches_per_volume=2)
    >>> draw = Draw(seed=0, epoch=0, index=0)
    >>> place = sampling.place(space, number=0, draw=draw, find=lambda *_: None)
    >>> place.box[0], place.shape
    ((-12, 52), (64, 64, 64))
    """

    patch: Sizes | Callable[[SampleSpace], Sizes]
    """Extents, as `SampleSpace.patch_extents` takes them, or a function that gives them for a
    volume."""
    patches_per_volume: int = 1
    """Patches of each volume in an epoch."""

    def __post_init__(self) -> None:
        """Check the count."""
        whole_number(self.patches_per_volume, "patches_per_volume", least=1)

    @property
    def n_per_volume(self) -> int:
        """Patches of every volume in an epoch."""
        return self.patches_per_volume

    def count(self, space: SampleSpace) -> int:  # noqa: ARG002 - of every volume the same
        """Return how many patches of a volume an epoch takes."""
        return self.patches_per_volume

    def place(
        self,
        space: SampleSpace,
        *,
        number: int,  # noqa: ARG002 - the draw tells samples apart
        draw: Draw,
        find: Find,  # noqa: ARG002 - any place will do
    ) -> PatchPlace:
        """Return where a patch lies."""
        return place_anywhere(space, shape=sizes_in(space, self.patch), rng=draw.generator())


def sizes_in(space: SampleSpace, patch: Sizes | Callable[[SampleSpace], Sizes]) -> tuple[int, ...]:
    """Return the extents of patches of a volume."""
    return space.patch_extents(patch(space) if callable(patch) else patch)


def place_anywhere(
    space: SampleSpace, *, shape: tuple[int, ...], rng: np.random.Generator
) -> PatchPlace:
    """Place a patch uniformly among all places inside."""
    rooms = (max(n - size, 0) + 1 for n, size in zip(space.extents, shape, strict=True))
    # Ten times as fast as `rng.integers`, and uniform to 2**-53.
    start = [
        int(share * room)
        for share, room in zip(rng.random(space.ndim).tolist(), rooms, strict=True)
    ]
    return place_from(start, shape=shape, extents=space.extents)
