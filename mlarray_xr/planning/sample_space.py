"""SampleSpace: the axes of a volume that patches are cut from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.sizes import Sizes, whole_number

__all__ = ["SampleSpace"]

_WHOLE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSpace:
    """Names and extents of the axes, array order; the channel axis is left out.

    Examples
    --------
    >>> space = SampleSpace(
    ...     dims=("time", "z", "y", "x"), extents=(9, 60, 80, 80), spatial=(1, 2, 3)
    ... )
    >>> space.patch_extents(32), space.patch_extents({"time": 1, "z": 16})
    ((9, 32, 32, 32), (1, 16, 80, 80))
    """

    dims: tuple[str, ...]
    """One name per axis."""
    extents: tuple[int, ...]
    """Elements along each axis."""
    spatial: tuple[int, ...]
    """Positions of the spatial axes among `dims`."""

    def __post_init__(self) -> None:
        """Check that there is something to take patches from."""
        if len(self.dims) != len(self.extents) or not {*self.spatial} <= {*range(len(self.dims))}:
            msg = f"dims {self.dims}, extents {self.extents} and spatial {self.spatial} disagree"
            raise ValueError(msg)
        if not self.dims or 0 in self.extents:
            msg = f"no patch can be taken of an array of extents {self.extents}"
            raise LayoutError(msg)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.dims)

    def patch_extents(self, patch: Sizes) -> tuple[int, ...]:
        """Express every spelling of a patch as one positive extent per axis.

        Parameters
        ----------
        patch
            One size for every spatial axis, one per spatial axis, one per axis, or a mapping by
            dimension. What it does not name is taken whole, and so is -1.

        Raises
        ------
        LayoutError
            When it is none of these.
        """
        if hasattr(patch, "tolist"):  # of NumPy
            patch = patch.tolist()
        if isinstance(patch, Mapping):
            unknown = [dim for dim in patch if dim not in self.dims]
            if unknown:
                raise LayoutError(f"patch names {unknown}; the dimensions are {self.dims}")
            given = {self.dims.index(dim): size for dim, size in patch.items()}
        elif not isinstance(patch, Sequence):
            given = dict.fromkeys(self.spatial, patch)
        elif len(patch) in (len(self.spatial), self.ndim):
            axes = self.spatial if len(patch) == len(self.spatial) else range(self.ndim)
            given = dict(zip(axes, patch, strict=True))
        else:
            raise LayoutError(
                f"patch={tuple(patch)} has {len(patch)} entries for the dimensions {self.dims}, "
                f"{len(self.spatial)} of them spatial; give one per spatial axis or one per axis"
            )
        return tuple(
            n if given.get(axis, _WHOLE) == _WHOLE else whole_number(given[axis], "patch", least=1)
            for axis, n in enumerate(self.extents)
        )
