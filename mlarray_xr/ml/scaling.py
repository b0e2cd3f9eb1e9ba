"""Scaling: what stored numbers mean, where a file says so by slope and intercept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.record import Record, stored_axes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.ml.volume import Volume
    from mlarray_xr.planning.grid import Box

__all__ = ["Scaling"]

_NAMES = (("scl_slope", "scl_inter"), ("rescale_slope", "rescale_intercept"))
"""Names under which converted NIfTI and DICOM files keep slope and intercept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaling:
    """Slope and intercept of one file, the same for all elements or varying along one axis.

    Examples
    --------
    >>> import mlarray_xr, xarray as xr
    >>> from mlarray_xr.ml.volume import Volume
    >>> ct = xr.DataArray(np.full((2, 3), 1000, "int16"), dims=("y", "x"))
    >>> ct.attrs.update(rescale_slope=1.0, rescale_intercept=-1024.0)
    >>> _ = mlarray_xr.to_mla(ct, "ct.mla")
    >>> Scaling.of(Volume("ct.mla")).applied(np.int16([[[1000]]]), box=((0, 1), (0, 1), (0, 1)))
    array([[[-24.]]], dtype=float32)
    """

    steps: tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...] = ()
    """Factor and offset, one after another. Each has as many axes as a patch with its channels,
    of extent 1 where it does not vary."""

    @classmethod
    def of(cls, volume: Volume) -> Scaling:
        """Find what a file states; no voxel is read.

        Raises
        ------
        ConversionError
            When slope or intercept are stated and are no numbers.
        """
        array, space = volume.array, volume.space
        record = Record.of(array.metadata, shape=array.shape)
        dims = stored_axes(array.metadata, array.ndim).dims
        channel = volume.channel_axis
        ordered = ("" if channel is None else dims[channel], *space.dims)
        try:
            found = [[_numbers(record, name, ordered) for name in pair] for pair in _NAMES]
        except (TypeError, ValueError) as error:
            raise ConversionError(
                f"{volume.address}: slope or intercept is no number ({error}). "
                "To fix: values='stored' takes the numbers as they are"
            ) from error
        stated = [(a, b) for a, b in found if a is not None and b is not None]
        return cls(steps=tuple((a, b) for a, b in stated if (a != 1).any() or (b != 0).any()))

    def applied(self, stored: NDArray[Any], *, box: Box) -> NDArray[Any]:
        """Return the values of a patch, computed in float64.

        Parameters
        ----------
        stored
            A patch, channels first.
        box
            Where it lies, channels first.

        Returns
        -------
        numpy.ndarray
            float64 where float64 is stored, else float32, which is what ITK makes of such files.
        """
        values = stored
        for factor, offset in self.steps:
            values = values * _within(factor, box) + _within(offset, box)
        return values.astype(np.float64 if stored.dtype == np.float64 else np.float32, copy=False)


def _numbers(record: Record, name: str, dims: tuple[str, ...]) -> NDArray[np.float64] | None:
    """Return an attribute, or a coordinate along one of the axes; None without any."""
    if name in record.attrs:
        return np.full((1,) * len(dims), float(record.attrs[name]))
    coordinate = record.coords.get(name)
    if coordinate is None or not coordinate.dims:
        return None
    shape = [1] * len(dims)
    shape[dims.index(coordinate.dims[0])] = -1
    return coordinate.values.astype(np.float64).reshape(shape)


def _within(numbers: NDArray[np.float64], box: Box) -> NDArray[np.float64]:
    """Return the numbers that belong to a box."""
    spans = zip(numbers.shape, box, strict=True)
    return numbers[tuple(slice(*span) if n > 1 else slice(None) for n, span in spans)]
