"""What ``DataArray.mla`` offers on a series: frames, gradients and motion, all as lazy views."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import numpy as np
    import xarray as xr
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SeriesMethods"]


class SeriesMethods:
    """The methods of `MlaAccessor` for arrays with a time axis or another series of volumes.

    The series dimension is ``time``, or else the only one that is neither spatial nor of channels;
    `dim` names another. ``orig_volume`` along it is the number of each frame in the file.
    """

    _array: xr.DataArray

    def frames(
        self, *, dim: str | None = None, read_ahead: int = 1, memory_limit: int | str = "256 MiB"
    ) -> Generator[xr.DataArray, None, None]:
        """Iterate over the frames of a series in memory; see `mlarray_xr.series.frames`."""
        # At their use here and below: this module is imported with the package.
        from mlarray_xr.series.frames import frames

        return frames(self._array, dim=dim, read_ahead=read_ahead, memory_limit=memory_limit)

    def original_frame(self, orig_volume: int, *, dim: str | None = None) -> xr.DataArray:
        """Return a frame as the file holds it, lazily, whatever was selected or derived since."""
        from mlarray_xr.series.originals import original_frame

        return original_frame(self._array, orig_volume, dim=dim)

    def resampled(
        self,
        motion: ArrayLike | Mapping[int, ArrayLike],
        *,
        order: int = 3,
        dim: str | None = None,
        fill_value: float = 0,
    ) -> xr.DataArray:
        """Return every frame moved back by its motion, lazily, from the frames of the file."""
        from mlarray_xr.series.resampling import resampled

        return resampled(self._array, motion, order=order, dim=dim, fill_value=fill_value)

    @property
    def gradient_table(self) -> NDArray[np.float64]:
        """Direction and b-value of every frame, (n, 4) float64: bvec_x, bvec_y, bvec_z, bval."""
        from mlarray_xr.series.gradients import gradient_table

        return gradient_table(self._array)

    def without_b0(self, *, most_b0: float = 50.0, dim: str | None = None) -> xr.DataArray:
        """Return the frames whose b-value is above `most_b0` (s/mm2), lazily."""
        from mlarray_xr.series.gradients import without_b0

        return without_b0(self._array, most_b0=most_b0, dim=dim)

    def only_b0(self, *, most_b0: float = 50.0, dim: str | None = None) -> xr.DataArray:
        """Return the frames whose b-value is at most `most_b0` (s/mm2), lazily."""
        from mlarray_xr.series.gradients import only_b0

        return only_b0(self._array, most_b0=most_b0, dim=dim)

    def shells(
        self, *, most_b0: float = 50.0, width: float = 100.0, dim: str | None = None
    ) -> dict[float, xr.DataArray]:
        """Return the frames of each shell of b-values, lazily, by their median b-value."""
        from mlarray_xr.series.gradients import shells

        return shells(self._array, most_b0=most_b0, width=width, dim=dim)
