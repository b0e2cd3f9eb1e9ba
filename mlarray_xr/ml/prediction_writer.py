"""PredictionWriter: means of predictions in the type of the result, or as labels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.creation import ArrayWriter
    from mlarray_xr.planning.grid import Box

__all__ = ["PredictionWriter", "result_type"]

_LABEL_TYPES = ("uint8", "int16", "int32")
_SCRATCH_ELEMENTS = 1 << 20


def result_type(dtype: np.dtype[Any] | None, *, n_channels: int, argmax: bool) -> np.dtype[Any]:
    """Return the type of a result, the usual one when none is asked for.

    Raises
    ------
    ConversionError
        When it holds no predictions, or not all labels; when there are no labels to tell apart.

    Examples
    --------
    >>> result_type(None, n_channels=300, argmax=True)
    dtype('int16')
    """
    if argmax and n_channels == 1:
        msg = "argmax of one channel would be label 0 everywhere. To fix: n_channels of the model"
        raise ConversionError(msg)
    if dtype is None:
        fitting = (name for name in _LABEL_TYPES if n_channels - 1 <= np.iinfo(name).max)
        return np.dtype(next(fitting) if argmax else "float32")
    if dtype.kind not in ("iu" if argmax else "fiu"):
        wanted = "labels: an integer type" if argmax else "predictions: a float or integer type"
        msg = f"dtype={dtype} for {wanted} is needed"
        raise ConversionError(msg)
    if argmax and n_channels - 1 > np.iinfo(dtype).max:
        msg = f"dtype={dtype} does not hold the labels 0 to {n_channels - 1}"
        raise ConversionError(msg)
    return dtype


class PredictionWriter:
    """Puts finished boxes into the file.

    Parameters
    ----------
    out
        The file: with channels first when it has one axis more than the boxes.
    argmax
        Whether it holds labels.
    subject
        What errors call the volume.
    """

    def __init__(self, out: ArrayWriter, *, argmax: bool, subject: str) -> None:
        self._out, self._argmax, self._subject = out, argmax, subject

    def write(self, box: Box, means: NDArray[Any]) -> None:
        """Write the means of a box.

        Parameters
        ----------
        box
            Where, axes of the volume.
        means
            (C, *extents of the box), floats; changed.

        Raises
        ------
        ConversionError
            When the type of the file cannot hold them, or they are NaN where labels are asked for.
        """
        key = tuple(slice(*pair) for pair in box)
        try:
            if self._argmax:
                self._out[key] = self._labels(means)
                return
            # One channel after another: of the chunks of each, whole layers are written at once.
            for channel, values in enumerate(means):
                place = (channel, *key) if self._out.ndim > len(key) else key
                self._out[place] = self._fitted(values)
        except ConversionError as error:
            msg = f"{self._subject}, box {box}: {error}"
            raise ConversionError(msg) from error

    def _labels(self, means: NDArray[Any]) -> NDArray[Any]:
        """Return the channel of the greatest mean."""
        labels = np.empty(means.shape[1:], self._out.dtype)
        rows = max(1, _SCRATCH_ELEMENTS // math.prod((len(means), *means.shape[2:])))
        for first in range(0, len(labels), rows):
            part = means[:, first : first + rows]
            if np.isnan(part).any():
                msg = "the mean of the predictions is NaN, no label follows. To fix: the model"
                raise ConversionError(msg)
            labels[first : first + rows] = part.argmax(axis=0)
        return labels

    def _fitted(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values of integer types rounded; floats as they are, the file takes those."""
        dtype = self._out.dtype
        if dtype.kind == "f":
            return values
        np.rint(values, out=values)
        info, least, greatest = np.iinfo(dtype), values.min(), values.max()
        # Below the next power of two: the greatest integer itself may not be a float. NaN is not.
        if not (least >= info.min and greatest < float(info.max) + 1):
            msg = (
                f"means from {least:g} to {greatest:g} do not fit {dtype}. To fix: (1) another "
                "dtype=; (2) an activation that gives numbers in its range"
            )
            raise ConversionError(msg)
        return values.astype(dtype)
