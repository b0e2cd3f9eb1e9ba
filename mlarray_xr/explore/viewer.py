"""The viewer behind the canvas: what the user does becomes a state, a state becomes pictures."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mlarray_xr.explore.plane_picture import image_layer, label_layer
from mlarray_xr.explore.plane_worker import LatestWins

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.explore.label_overlay import LabelOverlay
    from mlarray_xr.explore.plane_cache import PlaneCache
    from mlarray_xr.explore.plane_picture import Layer
    from mlarray_xr.explore.plane_source import PlaneSource
    from mlarray_xr.explore.viewer_state import ViewerState

__all__ = ["Canvas", "Controls", "Viewer"]

_MOST_STEPS = 1 << 32
_FAILURE = "this plane cannot be read. To see why: array.isel(...).load() in Python"


class Canvas(Protocol):
    """Where pictures are shown."""

    def send(self, content: dict[str, Any], pixels: Sequence[NDArray[Any]] = ()) -> None:
        """Send a message and arrays as bytes, from any thread."""

    def close(self) -> None:
        """Remove the canvas."""


class Controls(Protocol):
    """What shows the state besides the canvas, and what holds both."""

    widget: Any
    """Controls and canvas."""

    def show(self, state: ViewerState) -> None:
        """Show a state, in the thread of the user."""

    def close(self) -> None:
        """Remove the controls."""


class Viewer:
    """Shows an image plane by plane; made by `mlarray_xr.explore.view.view`.

    Planes are read in a thread of their own: of states that follow each other faster than they can
    be read, only the last is. Another thread reads ahead in the direction of the last move.

    Parameters
    ----------
    state
        What is shown first.
    image
        Planes of the image.
    labels
        Labels over it, if any.
    describe
        Says what is known of a voxel: position, value and label.
    cache
        Forgotten when the last canvas is closed.
    reads_ahead
        Whether the following planes are read before they are asked for.
    """

    def __init__(
        self,
        state: ViewerState,
        *,
        image: PlaneSource,
        labels: LabelOverlay | None,
        describe: Callable[[Sequence[int], Any, int | None], str],
        cache: PlaneCache,
        reads_ahead: bool,
    ) -> None:
        self._state = state
        self._image, self._labels = image, labels
        self._describe, self._cache, self._reads_ahead = describe, cache, reads_ahead
        self._canvas: Canvas | None = None
        self._controls: Controls | None = None
        self._answered, self._epoch, self._n_open = 0, 0, 0
        self._drawing = LatestWins(name="mlarray_xr viewer")
        self._ahead = LatestWins(name="mlarray_xr viewer, ahead")

    def attach(self, canvas: Canvas, controls: Controls) -> None:
        """Take the things that the viewer is shown with."""
        self._canvas, self._controls = canvas, controls

    @property
    def widget(self) -> Any:
        """What a notebook shows: a widget that others, such as boxes, can hold; None if closed."""
        return None if self._controls is None else self._controls.widget

    @property
    def state(self) -> ViewerState:
        """What is shown now."""
        return self._state

    def show(self, state: ViewerState) -> None:
        """Show another state of the same image, such as ``viewer.state.moved({"z": 5})``.

        Examples
        --------
        >>> import numpy as np, xarray as xr
        >>> from mlarray_xr.explore.view import view
        >>> viewer = view(xr.DataArray(np.zeros((4, 5, 6)), dims=("z", "y", "x")))
        >>> viewer.show(viewer.state.moved({"z": 3}))
        >>> viewer.state.position
        (3, 2, 3)
        >>> viewer.close()
        """
        old, self._state = self._state, state
        if old == state:
            return
        if (old.plane, old.centre, old.px_per_unit) != (
            state.plane,
            state.centre,
            state.px_per_unit,
        ):
            self._epoch += 1  # what the browser pans and zooms follows this one
        self._present()

    def take_input(self, content: dict[str, Any]) -> None:
        """Follow what the user did on the canvas: one message may hold several things.

        Messages that make no sense are answered and change nothing.
        """
        if content.get("closed"):
            self._n_open -= 1
            if self._n_open <= 0:
                self._drawing.submit(self._cache.clear)  # after what is being read now
            return
        if content.get("opened"):
            self._n_open += 1
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            self._state = self._followed(content)
        with contextlib.suppress(TypeError, ValueError):
            self._answered = max(self._answered, int(content.get("number", 0)))
        self._present()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until everything asked for is drawn and read.

        Raises
        ------
        TimeoutError
            When that takes longer.
        """
        self._drawing.wait(timeout_s)
        self._ahead.wait(timeout_s)

    def close(self) -> None:
        """Remove the viewer from the notebook and forget what was read."""
        for shown in (self._canvas, self._controls):
            if shown is not None:
                shown.close()
        self._canvas = self._controls = None
        self._drawing.submit(self._cache.clear)  # after what is being read now

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """Show the widget where a notebook shows the viewer."""
        if self.widget is None:
            return {"text/plain": "a closed viewer"}
        return self.widget._repr_mimebundle_(**options)

    def _followed(self, content: dict[str, Any]) -> ViewerState:
        """Return the state after what the user did."""
        state = self._state
        if "look" in content and content.get("epoch") == self._epoch:
            row, column, zoom = map(float, content["look"])
            if not all(map(math.isfinite, (row, column, zoom))):
                raise ValueError(f"look: {content['look']}")
            state = state.looked((row, column), zoom)
        if "scroll" in content:
            state = state.scrolled(max(-_MOST_STEPS, min(int(content["scroll"]), _MOST_STEPS)))
        if "pick" in content:
            row, column = map(float, content["pick"])
            state = state.picked(row, column)
        return state

    def _present(self) -> None:
        """Show the present state on the controls, and draw it."""
        if self._controls is not None:
            self._controls.show(self._state)
        self._drawing.submit(partial(self._draw, self._state, self._epoch, self._answered))

    def _draw(self, state: ViewerState, epoch: int, number: int) -> None:
        """Read and send a plane, then what is said of the voxel at the crosshair."""
        canvas = self._canvas
        if canvas is None:
            return
        try:
            layers, coarseness = self._layers(state)
            content = _facts(state, coarseness)
            content |= {"kind": "plane", "epoch": epoch, "number": number}
            content["layers"] = [layer.facts for layer in layers]
            canvas.send(content, [layer.pixels for layer in layers])
            if self._reads_ahead and not self._drawing.is_stale:
                self._ahead.submit(partial(self._read_ahead, state))
            if state.has_crosshair and not self._drawing.is_stale:
                canvas.send({"kind": "readout", "text": self._text(state)})
        except Exception as error:  # whatever a file, a server or a Dask task raises is told
            # Without its message: that has the path of the file, and paths have names of patients.
            text = f"{type(error).__name__}: {_FAILURE}"
            canvas.send({"kind": "failure", "number": number, "text": text})

    def _layers(self, state: ViewerState) -> tuple[list[Layer], int]:
        """Return the pictures of a state, and how coarse the image's is."""
        raster = self._image.plane(state.visible)
        layers = [image_layer(raster, window=state.window)]
        if self._labels is not None and state.has_labels:
            labels = self._labels.plane(state)
            layers += [] if labels is None else [label_layer(labels)]
        return layers, raster.coarseness

    def _text(self, state: ViewerState) -> str:
        """Return what is known of the voxel at the crosshair."""
        label = None if self._labels is None else self._labels.value(state.position)
        return self._describe(state.position, self._image.value(state.position), label)

    def _read_ahead(self, state: ViewerState) -> None:
        """Read what comes next, unless the user went elsewhere meanwhile."""
        if state != self._state:
            return
        # What fails here fails again, and is shown, when it is asked for.
        with contextlib.suppress(Exception):
            self._image.read_ahead(state.visible, heading=state.heading)
            if self._labels is not None and state.has_labels:
                self._labels.read_ahead(state)


def _facts(state: ViewerState, coarseness: int) -> dict[str, Any]:
    """Return what a canvas has to know of a state, plain values."""
    plane = state.plane
    hidden = [
        f"{dim} {at} / {n - 1}"
        for dim, at, n in zip(state.scene.dims, state.position, state.scene.shape, strict=True)
        if dim not in (plane.rows, plane.columns)
    ]
    caption = "  ".join([plane.name, *hidden, *([f"1/{coarseness}"] if coarseness > 1 else [])])
    return {
        "size_px": state.size_px,
        "spacing": state.spacing,
        "unit": state.scene.unit,
        "is_flipped": plane.is_flipped,
        "row_letters": plane.row_letters,
        "column_letters": plane.column_letters,
        "caption": caption,
        "view": {"centre": state.centre, "zoom": state.px_per_unit},
        "zooms": state.zooms,
        "crosshair": state.crosshair if state.has_crosshair else None,
        "opacity": state.opacity,
    }
