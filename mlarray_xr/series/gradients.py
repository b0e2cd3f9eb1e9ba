"""Diffusion gradients along a series, and the frames that were taken with some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.coordinates import attach_coords
from mlarray_xr.series.axis import Series, picked, series_dim, with_orig_volume

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["gradient_table", "only_b0", "shells", "without_b0"]

_BVAL = "bval"
_BVEC = ("bvec_x", "bvec_y", "bvec_z")


def gradient_table(array: xr.DataArray) -> NDArray[np.float64]:
    """Return direction and b-value of every frame, as the coordinates hold them.

    Parameters
    ----------
    array
        With coordinates ``bvec_x``, ``bvec_y``, ``bvec_z`` (FSL's: axes of the image) and ``bval``
        (s/mm2), or from a file that holds them. Any selection of frames, or a single one.

    Returns
    -------
    numpy.ndarray
        (n, 4) float64, one row per frame: bvec_x, bvec_y, bvec_z, bval.

    Raises
    ------
    ValueError
        When coordinates are missing.

    Examples
    --------
    >>> import xarray as xr
    >>> along_x = {"bvec_x": 1.0, "bvec_y": 0.0, "bvec_z": 0.0, "bval": 1000.0}
    >>> gradient_table(xr.DataArray([7, 8], dims="x", coords=along_x))
    array([[   1.,    0.,    0., 1000.]])
    """
    attached = attach_coords(array)
    names = (*_BVEC, _BVAL)
    missing = [name for name in names if name not in attached.coords]
    if missing:
        raise _missing(attached, missing)
    columns = [np.atleast_1d(attached.coords[name].values) for name in names]
    return np.stack(columns, axis=1).astype(np.float64)


def without_b0(obj: Series, *, most_b0: float = 50.0, dim: str | None = None) -> Series:
    """Return a lazy view of the diffusion-weighted frames; ``orig_volume`` tells which.

    Parameters
    ----------
    obj : xarray.DataArray or xarray.Dataset
        A series with b-values.
    most_b0
        Frames with at most this b-value, s/mm2, are b0; 50 is what nifreeze takes.
    dim
        The dimension that its frames lie along.

    Raises
    ------
    ValueError
        When b-values are missing or NaN, or it is not clear which frames these are.

    Examples
    --------
    >>> import xarray as xr
    >>> bval = ("time", [0.0, 5.0, 1000.0, 0.0, 2000.0])
    >>> series = xr.DataArray(np.arange(5), dims="time", coords={"bval": bval})
    >>> without_b0(series).orig_volume.values, only_b0(series).orig_volume.values
    (array([2, 4]), array([0, 1, 3]))
    """
    numbered, along, bvals = _with_bvals(obj, dim)
    return picked(numbered, along, np.flatnonzero(bvals > most_b0))


def only_b0(obj: Series, *, most_b0: float = 50.0, dim: str | None = None) -> Series:
    """Return a lazy view of the frames without diffusion weighting; see `without_b0`."""
    numbered, along, bvals = _with_bvals(obj, dim)
    return picked(numbered, along, np.flatnonzero(bvals <= most_b0))


def shells(
    obj: Series, *, most_b0: float = 50.0, width: float = 100.0, dim: str | None = None
) -> dict[float, Series]:
    """Return lazy views of the diffusion-weighted frames, one for each shell.

    Parameters
    ----------
    obj : xarray.DataArray or xarray.Dataset
        A series with b-values.
    most_b0
        Frames with at most this b-value, s/mm2, are in no shell.
    width
        Where neighbouring b-values differ by more than this, s/mm2, a new shell begins. Within 100
        FSL's eddy counts them as one shell.
    dim
        The dimension that its frames lie along.

    Returns
    -------
    dict
        By median b-value, ascending; frames in their own order.

    Raises
    ------
    ValueError
        As `without_b0`.

    Examples
    --------
    >>> import xarray as xr
    >>> bval = ("time", [0.0, 1005.0, 2000.0, 995.0, 1000.0])
    >>> series = xr.DataArray(np.arange(5), dims="time", coords={"bval": bval})
    >>> {b: shell.values.tolist() for b, shell in shells(series).items()}
    {1000.0: [1, 3, 4], 2000.0: [2]}
    """
    numbered, along, bvals = _with_bvals(obj, dim)
    weighted = np.flatnonzero(bvals > most_b0)
    ascending = weighted[np.argsort(bvals[weighted], kind="stable")]
    breaks = np.flatnonzero(np.diff(bvals[ascending]) > width) + 1
    groups = [group for group in np.split(ascending, breaks) if len(group)]
    return {
        float(np.median(bvals[group])): picked(numbered, along, np.sort(group)) for group in groups
    }


def _with_bvals(obj: Series, dim: str | None) -> tuple[Series, str, NDArray[np.float64]]:
    """Return a numbered series, the dimension of its frames, and their b-values."""
    along = series_dim(obj, dim)
    numbered = with_orig_volume(obj, along)
    if _BVAL not in numbered.coords or numbered.coords[_BVAL].dims != (along,):
        raise _missing(numbered, [_BVAL])
    bvals = np.asarray(numbered.coords[_BVAL].values, dtype=np.float64)
    if np.isnan(bvals).any():
        frames = np.flatnonzero(np.isnan(bvals)).tolist()
        msg = f"the b-values of frames {frames} are NaN. To fix: assign them, or leave these out"
        raise ValueError(msg)
    return numbered, along, bvals


def _missing(obj: xr.DataArray | xr.Dataset, names: list[str]) -> ValueError:
    """Say which coordinates are missing."""
    return ValueError(
        f"{names} are needed, one number for each frame, among the coordinates "
        f"{sorted(map(str, obj.coords))} of dims {tuple(obj.sizes)}. To fix: (1) open the file "
        "with open_mla, which restores them; (2) assign_coords(bval=('time', [...]), ...)"
    )
