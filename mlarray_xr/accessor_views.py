"""What ``DataArray.mla`` shows: a preview in notebooks, a viewer, and the layout on a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.explore.layout_plot import LayoutPlot
    from mlarray_xr.explore.viewer import Viewer
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["ViewMethods"]


class ViewMethods:
    """The methods of `MlaAccessor` for looking at an array."""

    _array: xr.DataArray

    def view(
        self,
        *,
        labels: xr.DataArray | None = None,
        plane: str | None = None,
        size_px: int = 512,
        window: tuple[float, float] | None = None,
        cache_bytes: int | str = "256 MiB",
        read_ahead: bool = True,
    ) -> Viewer:
        """Show the array plane by plane in a notebook; see `mlarray_xr.explore.view`."""
        # At their use here and below: this module is imported with the package.
        from mlarray_xr.explore.view import view

        return view(
            self._array,
            labels=labels,
            plane=plane,
            size_px=size_px,
            window=window,
            cache_bytes=cache_bytes,
            read_ahead=read_ahead,
        )

    def plot_layout(self, patch: Sizes) -> LayoutPlot:
        """Draw which chunks and blocks of the file a patch touches."""
        from mlarray_xr.explore.layout_plot import plot_layout

        return plot_layout(self._array, patch)

    def _repr_html_(self) -> str:
        """Return three planes through the middle, and what is known of the array."""
        from mlarray_xr.explore.html_preview import html_of

        return html_of(self._array)
