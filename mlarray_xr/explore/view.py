"""An interactive slice viewer for notebooks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mlarray_xr.explore.label_overlay import LabelOverlay, plan_overlay
from mlarray_xr.explore.plane_cache import PlaneCache
from mlarray_xr.explore.plane_source import PlaneSource
from mlarray_xr.explore.preview import contrast_of
from mlarray_xr.explore.readout import describe_voxel
from mlarray_xr.explore.scene import scene_of
from mlarray_xr.explore.slice_canvas import SliceCanvas
from mlarray_xr.explore.viewer import Viewer
from mlarray_xr.explore.viewer_controls import ViewerControls
from mlarray_xr.explore.viewer_state import first_state
from mlarray_xr.foreign.nifti import NIFTI_SUFFIXES, open_nifti
from mlarray_xr.overview_files import levels_of
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.read import open_mla

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr

    from mlarray_xr.explore.scene import Scene

__all__ = ["view", "view_file"]

_LEAST_PX, _MOST_PX = 64, 4096


def view(
    array: xr.DataArray,
    *,
    labels: xr.DataArray | None = None,
    plane: str | None = None,
    size_px: int = 512,
    window: tuple[float, float] | None = None,
    cache_bytes: int | str = "256 MiB",
    read_ahead: bool = True,
) -> Viewer:
    """Show an array plane by plane in a notebook, with sliders, labels and a crosshair.

    Only what is visible is read, as coarse as it is shown: from overviews where there are some,
    at full resolution near by. The kernel needs no display; grey values of the plane are all that
    travels to the browser, and nothing of them is saved with the notebook.

    Parameters
    ----------
    array
        Two dimensions or more of numbers, named by text; lazy, remote, Dask or loaded. A last axis
        of three uint8 that is not spatial holds colours.
    labels
        Whole numbers shown in colours over it: on its grid, or on another one that is parallel to
        it in the world; then the nearest label is shown.
    plane
        Which plane is shown first: ``"axial"``, ``"coronal"`` or ``"sagittal"`` where the file
        says RAS or LPS, otherwise its rows and columns such as ``"y, x"``.
    size_px
        Height and width of the canvas, 64 to 4096.
    window
        Values shown as black and as white; from the file's statistics unless given.
    cache_bytes
        Most bytes of planes that are kept.
    read_ahead
        Whether planes that will be wanted next are read before they are.

    Returns
    -------
    Viewer
        Shown by a notebook as the value of a cell; ``.widget`` is the widget itself.

    Raises
    ------
    ConversionError
        When the array cannot be shown, or labels do not fit it.
    MissingDependencyError
        When anywidget or ipywidgets is not installed.
    ValueError
        When a parameter makes no sense.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> viewer = view(xr.DataArray(np.zeros((4, 5, 6)), dims=("z", "y", "x")), plane="z, x")
    >>> viewer.state.plane.rows, viewer.state.position
    ('z', (2, 2, 3))
    >>> viewer.close()
    """
    if type(size_px) is not int or not _LEAST_PX <= size_px <= _MOST_PX:
        raise ValueError(
            f"size_px={size_px!r}: a number of pixels from {_LEAST_PX} to {_MOST_PX} is needed"
        )
    scene = scene_of(array)
    cache = PlaneCache(limit_bytes=parse_bytes(cache_bytes))
    state = first_state(scene, size_px=size_px, window=_shades(array, window), plane=plane)
    viewer = Viewer(
        state,
        image=PlaneSource(levels_of(array), scene=scene, cache=cache, name="image"),
        labels=None if labels is None else _overlay(array, labels, scene, cache),
        describe=lambda position, value, label: describe_voxel(
            array, position, value=value, label=label
        ),
        cache=cache,
        reads_ahead=read_ahead,
    )
    canvas = SliceCanvas(viewer.take_input)
    viewer.attach(canvas, ViewerControls(viewer, canvas.widget, has_labels=labels is not None))
    return viewer


def view_file(
    path: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Viewer:
    """Show an `.mla` or NIfTI file, and labels of another one over it; see `view`.

    Parameters
    ----------
    path
        A local path or a URL.
    labels
        Another one.
    storage_options
        How to get at URLs.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((4, 5), "int16"), "shown.mla")
    >>> viewer = view_file("shown.mla")
    >>> viewer.state.scene.shape
    (4, 5)
    >>> viewer.close()
    """
    over = None if labels is None else _opened(labels, storage_options)
    return view(_opened(path, storage_options), labels=over)


def _opened(
    path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None
) -> xr.DataArray:
    """Return the lazy array of a file."""
    if os.fspath(path).lower().endswith(NIFTI_SUFFIXES):
        return open_nifti(path)
    return open_mla(path, storage_options=storage_options)


def _shades(array: xr.DataArray, window: tuple[float, float] | None) -> tuple[float, float]:
    """Return the values shown as black and as white: those asked for, or what suits the array."""
    if window is None:
        return (0.0, 1.0) if array.dtype.kind == "b" else contrast_of(array)
    low, high = window
    return float(low), float(high)


def _overlay(
    array: xr.DataArray, labels: xr.DataArray, scene: Scene, cache: PlaneCache
) -> LabelOverlay:
    """Return what reads the labels that lie on an image."""
    planes = scene_of(labels, may_hold_colours=False)
    onto = plan_overlay(array, labels, scene)
    source = PlaneSource(levels_of(labels), scene=planes, cache=cache, name="labels")
    return LabelOverlay(source, onto=onto, shape=labels.shape)
