"""ForeignImage: what opening a file of another format gives, the same for every format."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["ForeignImage", "LazyArray", "companion_path"]


class LazyArray(Protocol):
    """Values that are read box by box; an address that pickles small, never an open file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, array order."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements, as stored."""

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box: one slice with start and stop per axis, no step.

        Called from many threads and processes at the same time.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignImage:
    """The voxels and the metadata of a file of another format."""

    values: LazyArray
    """The stored numbers, never scaled, cast or reordered."""
    metadata: Metadata
    """Axis labels, geometry, attributes and coordinates, in the schema's words."""
    companions: Mapping[str, ForeignImage] = field(default_factory=dict)
    """Images on the same grid that belong to this one, such as ``"mask"``, by name."""


def companion_path(target: str, name: str) -> str:
    """Return the path of the file that a companion becomes, beside the target.

    Examples
    --------
    >>> companion_path("/data/sub-01_dwi.mla", "mask")
    '/data/sub-01_dwi.mask.mla'
    """
    stem, suffix = os.path.splitext(target)
    return f"{stem}.{name}{suffix}"
