"""What a person does who wants to see what is in a file: ours, and what one would do without."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mlarray_xr.explore.html_preview import html_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["MATPLOTLIB", "OURS", "ROADS", "WHOLE_PLANES"]

OURS = "da.mla in a notebook"
MATPLOTLIB = "isel(...).values and imshow"
WHOLE_PLANES = "isel(...).values alone"


def _html(array: xr.DataArray) -> None:
    """Show three planes and the facts."""
    if html_of(array).count("<img") != array.ndim:
        msg = f"an array of {array.shape} has not all of its planes"
        raise RuntimeError(msg)


def _planes(array: xr.DataArray) -> list[NDArray[object]]:
    """Read the three central planes."""
    return [array.isel({dim: n // 2}).to_numpy() for dim, n in array.sizes.items()]


def _matplotlib(array: xr.DataArray) -> None:
    """Draw them as a notebook does."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, array.ndim, figsize=(9, 3))
    for each, plane in zip(axes, _planes(array), strict=True):
        each.imshow(plane, cmap="gray")
    figure.savefig(io.BytesIO(), format="png")
    plt.close(figure)


ROADS: dict[str, Callable[[xr.DataArray], object]] = {
    OURS: _html,
    MATPLOTLIB: _matplotlib,
    WHOLE_PLANES: _planes,
}
