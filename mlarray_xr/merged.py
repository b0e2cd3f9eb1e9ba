"""Merged: the array of a file as it will be when a region of it has been replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.planning.assignment import fit_dtype
from mlarray_xr.storage.job import part_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.planning.grid import Box

__all__ = ["Merged"]


class Merged:
    """New values inside a box, those of a file around it; sliced box by box.

    Parameters
    ----------
    old
        The file.
    values
        Of the box's shape: anything that can be sliced.
    box
        What they replace.
    """

    def __init__(self, old: MlaArray, values: Any, box: Box) -> None:
        self._old, self._values, self._box = old, values, box
        self.dtype: np.dtype[Any] = old.dtype
        self.shape: tuple[int, ...] = old.shape

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box that has some in common with the one that is replaced."""
        wanted = tuple((piece.start, piece.stop) for piece in key)
        common = tuple(
            (max(a, c), min(b, d)) for (a, b), (c, d) in zip(wanted, self._box, strict=True)
        )
        new = fit_dtype(part_of(self._values, _relative(common, self._box)), self.dtype)
        if common == wanted:
            return new
        out = self._old.read(wanted)
        out[tuple(slice(*pair) for pair in _relative(common, wanted))] = new
        return out


def _relative(box: Box, frame: Box) -> Box:
    """Return a box as it is counted from another one's beginning."""
    return tuple((a - start, b - start) for (a, b), (start, _) in zip(box, frame, strict=True))
