"""ForegroundPatches: patches around what matters, or anywhere, by chance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlarray_xr.planning.foreground import Foreground
from mlarray_xr.planning.patch_place import PatchPlace, place_around
from mlarray_xr.planning.random_patches import place_anywhere, sizes_in
from mlarray_xr.planning.sizes import Sizes, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.sample_space import SampleSpace
    from mlarray_xr.planning.sampling import Find

__all__ = ["ForegroundPatches"]


@dataclass(frozen=True, slots=True)
class ForegroundPatches:
    """Patches with a foreground element in their middle, all inside the volume.

    Of every class each element is equally likely to be the one. Near the border the patch is moved
    inside, so that the element is in it and not in its middle. Volumes without foreground give
    patches as `RandomPatches` does.

    Raises
    ------
    ValueError
        When the probability is none, or the count no whole number from 1.

    Examples
    --------
    >>> from mlarray_xr.planning.draw import Draw
    >>> from mlarray_xr.planning.sample_space import SampleSpace
    >>> space = SampleSpace(dims=("z", "y", "x"), extents=(40, 99, 99), spatial=(0, 1, 2))
    >>> sampling = ForegroundPatches(16)
    >>> draw = Draw(seed=0, epoch=0, index=0)
    >>> sampling.place(space, number=0, draw=draw, find=lambda *_: (20, 50, 2)).box
    ((12, 28), (42, 58), (0, 16))
    """

    patch: Sizes | Callable[[SampleSpace], Sizes]
    """Extents, as `SampleSpace.patch_extents` takes them, or a function that gives them for a
    volume."""
    foreground: Foreground = field(default=Foreground(), kw_only=True)
    """What patches are drawn around."""
    probability: float = field(default=1.0, kw_only=True)
    """Of a patch around foreground, 0 to 1; the others are anywhere. nnU-Net takes 0.33."""
    patches_per_volume: int = field(default=1, kw_only=True)
    """Patches of each volume in an epoch."""

    def __post_init__(self) -> None:
        """Check probability and count."""
        if not 0 <= self.probability <= 1:
            msg = f"probability={self.probability!r}: a number from 0 to 1 is needed"
            raise ValueError(msg)
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
        find: Find,
    ) -> PatchPlace:
        """Return where a patch lies."""
        shape, rng = sizes_in(space, self.patch), draw.generator()
        centre = find(self.foreground, rng) if rng.random() < self.probability else None
        if centre is None:
            return place_anywhere(space, shape=shape, rng=rng)
        return place_around(centre, shape=shape, extents=space.extents)
