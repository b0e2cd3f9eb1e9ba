"""Padding: what surrounds a volume that is smaller than the patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box

__all__ = ["PadMode", "Padding"]

PadMode = Literal["constant", "edge", "reflect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """How patches are filled up outside the array; images and masks by the same rule.

    Examples
    --------
    >>> import numpy as np
    >>> patch = np.array([0, 0, 1, 2, 3, 0])
    >>> Padding(mode="reflect").fill(patch, valid=((2, 5),), value=0)
    >>> patch
    array([3, 2, 1, 2, 3, 2])
    """

    mode: PadMode = "constant"
    """``"constant"``; ``"edge"``: the outermost element; ``"reflect"``: mirrored there. As
    `numpy.pad` has them."""
    value: float = 0
    """What surrounds images with ``"constant"``."""
    mask_value: float = 0
    """What surrounds masks with ``"constant"``."""

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in get_args(PadMode):
            msg = f"padding mode={self.mode!r}: choose one of {get_args(PadMode)}"
            raise ValueError(msg)

    def fill(self, out: NDArray[Any], *, valid: Box, value: float) -> None:
        """Fill a patch outside the part that holds data, in place.

        Parameters
        ----------
        out
            Its last axes are those of the patch.
        valid
            Start and stop of what holds data, along each of these axes; not empty.
        value
            What ``"constant"`` puts there.

        Raises
        ------
        LayoutError
            When the type of the patch cannot hold the value.
        """
        first = out.ndim - len(valid)
        # Axis by axis: what an earlier axis filled is data for the next one.
        region: list[slice] = [slice(None)] * first + [slice(a, b) for a, b in valid]
        for axis, (start, stop) in enumerate(valid, start=first):
            outside = np.r_[0:start, stop : out.shape[axis]]
            target: list[Any] = list(region)
            if len(outside):
                target[axis] = outside
                if self.mode == "constant":
                    out[tuple(target)] = _held(value, out.dtype)
                else:
                    out[tuple(target)] = self._mirrored(out, region, axis, outside)
            region[axis] = slice(None)

    def _mirrored(
        self, out: NDArray[Any], region: list[slice], axis: int, outside: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Return the elements that stand for those outside along an axis."""
        start, stop = region[axis].start, region[axis].stop
        if self.mode == "edge":
            along = np.clip(outside, start, stop - 1)
        else:
            period = max(2 * (stop - start - 1), 1)
            offset = (outside - start) % period
            along = start + np.minimum(offset, period - offset) if stop - start > 1 else start
            along = np.broadcast_to(along, outside.shape)
        source: list[Any] = list(region)
        source[axis] = along
        mirrored: NDArray[Any] = out[tuple(source)]
        return mirrored


def _held(value: float, dtype: np.dtype[Any]) -> float:
    """Return a value that a type holds."""
    with np.errstate(all="ignore"):
        held = np.asarray(value).astype(dtype).item()
    if held == value or (dtype.kind == "f" and not math.isinf(held)):
        return value
    msg = (
        f"padding value {value!r} is none of {dtype}. To fix: another value, mode='edge', or "
        "dtype='float32'"
    )
    raise LayoutError(msg)
