"""GridPatches: patches that cover a volume, side by side or overlapping, in the order of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.patch_place import PatchPlace
from mlarray_xr.planning.random_patches import sizes_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.sample_space import SampleSpace
    from mlarray_xr.planning.sampling import Find
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["GridPatches", "Overlap", "PatchGrid"]

Overlap: TypeAlias = "float | Sequence[float] | Mapping[str, float]"
"""Floats from 0 to below 1 are shares of the patch, integers are voxels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """The patches of one volume, in C order: those of the last axis follow each other.

    Their places are computed when they are asked for: a grid of millions takes no memory.

    Examples
    --------
    >>> grid = PatchGrid(extents=(10, 3), shape=(4, 5), steps=(3, 5))
    >>> len(grid), grid[1].start, [place.box[0] for place in grid]
    (3, (3, -1), [(0, 4), (3, 7), (6, 10)])
    """

    extents: tuple[int, ...]
    """Of the sampled axes of the volume, voxels."""
    shape: tuple[int, ...]
    """Extents of a patch."""
    steps: tuple[int, ...]
    """Voxels from one patch to the next along each axis; the last one is moved inside."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of patches along each axis."""
        return tuple(
            max(-(-(n - size) // step), 0) + 1
            for n, size, step in zip(self.extents, self.shape, self.steps, strict=True)
        )

    def __len__(self) -> int:
        """Return the number of patches."""
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[PatchPlace]:
        """Iterate over the places in order."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, number: int) -> PatchPlace:
        """Return the place of a patch.

        Raises
        ------
        IndexError
            When there are fewer patches.
        """
        return PatchPlace(
            start=tuple(
                self.start(axis, index) for axis, index in enumerate(self.position(number))
            ),
            shape=self.shape,
            extents=self.extents,
        )

    def position(self, number: int) -> tuple[int, ...]:
        """Return which patch along each axis a patch is."""
        if not 0 <= number < len(self):
            msg = f"patch {number} of a grid of {len(self)}"
            raise IndexError(msg)
        position = []
        for count in reversed(self.counts):
            number, index = divmod(number, count)
            position.append(index)
        return tuple(reversed(position))

    def start(self, axis: int, index: int) -> int:
        """Return where the patches of a position along an axis begin, voxels.

        Along axes that are shorter than the patch there is one, with the volume in its middle.
        """
        room = self.extents[axis] - self.shape[axis]
        return min(index * self.steps[axis], room) if room >= 0 else -(-room // 2)

    def starts(self, axis: int) -> tuple[int, ...]:
        """Return all of these starts along one axis."""
        return tuple(self.start(axis, index) for index in range(self.counts[axis]))

    def find(self, box: Box) -> int | None:
        """Return the number of the patch that fills a box; None when there is none."""
        number = 0
        for axis, (start, stop) in enumerate(box):
            starts = self.starts(axis)
            if start not in starts or stop - start != self.shape[axis]:
                return None
            number = number * len(starts) + starts.index(start)
        return number


@dataclass(frozen=True, slots=True)
class GridPatches:
    """Patches that cover every voxel of a volume, the same ones in every epoch.

    Along each axis they follow each other at one distance; the last one is moved inside. A volume
    that is smaller than the patch along an axis is padded there on both sides. MONAI's
    ``sliding_window_inference`` and TorchIO's ``GridSampler`` take the same places, but where their
    overlaps round differently.

    Raises
    ------
    LayoutError
        When the overlap is neither shares nor voxels.

    Examples
    --------
    >>> from mlarray_xr.planning.sample_space import SampleSpace
    >>> space = SampleSpace(dims=("z", "y", "x"), extents=(40, 99, 64), spatial=(0, 1, 2))
    >>> sampling = GridPatches(64, overlap=0.5)
    >>> sampling.count(space)
    3
    >>> [place.box[1] for place in sampling.plan_windows(space)]
    [(0, 64), (32, 96), (35, 99)]
    """

    patch: Sizes | Callable[[SampleSpace], Sizes]
    """Extents, as `SampleSpace.patch_extents` takes them, or a function that gives them for a
    volume."""
    overlap: Overlap = field(default=0, kw_only=True)
    """What neighbours share: one number for every spatial axis, one per spatial axis or per axis,
    or a mapping by dimension. A float is a share of the patch, rounded to voxels; an integer is
    voxels."""

    def __post_init__(self) -> None:
        """Check the numbers as far as they need no volume."""
        for entry in _entries(self.overlap):
            _check_overlap(entry)

    @property
    def n_per_volume(self) -> None:
        """None: it follows from the extents."""
        return

    def count(self, space: SampleSpace) -> int:
        """Return how many patches cover a volume."""
        return len(self.plan_windows(space))

    def place(
        self,
        space: SampleSpace,
        *,
        number: int,
        draw: Draw,  # noqa: ARG002 - nothing is left to chance
        find: Find,  # noqa: ARG002
    ) -> PatchPlace:
        """Return where a patch lies."""
        return self.plan_windows(space)[number]

    def plan_windows(self, space: SampleSpace) -> PatchGrid:
        """Return the patches of a volume.

        Raises
        ------
        LayoutError
            When patch or overlap do not fit its axes.
        """
        shape = sizes_in(space, self.patch)
        overlaps = _per_axis(space, self.overlap)
        return PatchGrid(
            extents=space.extents,
            shape=shape,
            steps=tuple(
                size - _voxels(overlap, size=size, extent=n, dim=dim)
                for overlap, size, n, dim in zip(
                    overlaps, shape, space.extents, space.dims, strict=True
                )
            ),
        )


def _entries(overlap: Overlap) -> tuple[object, ...]:
    """Return the numbers of an overlap, however they are given."""
    if isinstance(overlap, Mapping):
        return tuple(overlap.values())
    return tuple(overlap) if isinstance(overlap, Sequence) else (overlap,)


def _check_overlap(entry: object) -> None:
    """Refuse what is neither a share nor a number of voxels."""
    is_voxels = isinstance(entry, int | np.integer) and not isinstance(entry, bool) and entry >= 0
    is_share = isinstance(entry, float | np.floating) and 0 <= entry < 1
    if not (is_voxels or is_share):
        msg = f"overlap holds {entry!r}; give shares (floats, 0 <= share < 1) or voxels (integers)"
        raise LayoutError(msg)


def _per_axis(space: SampleSpace, overlap: Overlap) -> tuple[float, ...]:
    """Return an overlap for each axis; 0 for those it does not speak of."""
    if isinstance(overlap, Mapping):
        unknown = [dim for dim in overlap if dim not in space.dims]
        if unknown:
            raise LayoutError(f"overlap names {unknown}; the dimensions are {space.dims}")
        return tuple(overlap.get(dim, 0) for dim in space.dims)
    if not isinstance(overlap, Sequence):
        overlap = (overlap,) * len(space.spatial)
    if len(overlap) == space.ndim:
        return tuple(overlap)
    if len(overlap) != len(space.spatial):
        raise LayoutError(
            f"overlap={tuple(overlap)} has {len(overlap)} entries for the dimensions {space.dims}, "
            f"{len(space.spatial)} of them spatial; give one per spatial axis or one per axis"
        )
    given = dict(zip(space.spatial, overlap, strict=True))
    return tuple(given.get(axis, 0) for axis in range(space.ndim))


def _voxels(overlap: float, *, size: int, extent: int, dim: str) -> int:
    """Return the voxels that neighbours along an axis share, fewer than the patch has."""
    if size >= extent:
        return 0  # one patch is all there is
    if not isinstance(overlap, int | np.integer):
        return min(round(size * overlap), size - 1)
    if overlap >= size:
        raise LayoutError(
            f"an overlap of {overlap} voxels along {dim!r}, where the patch has {size}. To fix: "
            "(1) a larger patch; (2) less overlap there, as a mapping by dimension"
        )
    return int(overlap)
