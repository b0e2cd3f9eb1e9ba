"""ForeignImage: what opening a file of another format gives, the same for every format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["ForeignImage", "LazyArray"]


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
