"""Sliders, drop-down and buttons of the slice viewer: a door to ipywidgets."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from mlarray_xr.explore.viewer import Viewer
    from mlarray_xr.explore.viewer_state import ViewerState

__all__ = ["ViewerControls"]

_ZOOM = 1.5
_WINDOW_STEPS = 200


class ViewerControls:
    """The controls above the canvas: they show the state, and change it.

    Parameters
    ----------
    viewer
        Whose state it is.
    canvas
        The widget below.
    has_labels
        Whether there are labels to show or hide.

    Raises
    ------
    MissingDependencyError
        When ipywidgets is not installed.
    """

    def __init__(self, viewer: Viewer, canvas: Any, *, has_labels: bool) -> None:
        widgets, state = _ipywidgets(), viewer.state
        self._viewer = viewer
        self._is_showing = False
        self._plane = widgets.Dropdown(
            options=[plane.name for plane in state.scene.planes], layout={"width": "140px"}
        )
        self._positions = {
            dim: widgets.IntSlider(min=0, max=n - 1, description=dim, layout={"width": "400px"})
            for dim, n in zip(state.scene.dims, state.scene.shape, strict=True)
        }
        low, high = state.window
        self._window = widgets.FloatRangeSlider(
            value=(low, high),
            min=low - (high - low),
            max=high + 2 * (high - low),
            step=(high - low) / _WINDOW_STEPS,
            description="window",
            readout_format=".4g",
            layout={"width": "400px"},
        )
        self._labels = widgets.Checkbox(description="labels", indent=False)
        self._opacity = widgets.FloatSlider(min=0, max=1, step=0.05, description="opacity")
        self._watch()
        self.show(state)
        rows = [widgets.HBox([self._plane, *self._buttons(widgets)]), *self._positions.values()]
        rows += [] if state.scene.has_colours else [self._window]
        rows += [widgets.HBox([self._opacity, self._labels])] if has_labels else []
        self.widget = widgets.VBox([*rows, canvas])
        """Controls and canvas."""

    def show(self, state: ViewerState) -> None:
        """Show a state, without taking that for a wish of the user."""
        self._is_showing = True
        try:
            self._plane.value = state.plane.name
            for dim, at in zip(state.scene.dims, state.position, strict=True):
                is_shown = dim in (state.plane.rows, state.plane.columns)
                self._positions[dim].value = at
                self._positions[dim].layout.display = "none" if is_shown else None
            low, high = state.window
            self._window.min, self._window.max = (
                min(self._window.min, low),
                max(self._window.max, high),
            )
            self._window.value = (low, high)
            self._labels.value, self._opacity.value = state.has_labels, state.opacity
        finally:
            self._is_showing = False

    def close(self) -> None:
        """Remove the controls."""
        self.widget.close()

    def _watch(self) -> None:
        """Change the state when the user changes a control."""
        self._on(self._plane, lambda state, name: state.on_plane(name))
        for dim, slider in self._positions.items():
            self._on(slider, partial(_moved, dim))
        self._on(self._window, _windowed)
        self._on(self._labels, lambda state, shown: replace(state, has_labels=shown))
        self._on(self._opacity, lambda state, share: replace(state, opacity=share))

    def _on(self, control: Any, change: Callable[[ViewerState, Any], ViewerState]) -> None:
        """Change the state when the value of a control changes."""

        def follow(event: dict[str, Any]) -> None:
            if not self._is_showing:
                self._viewer.show(change(self._viewer.state, event["new"]))

        control.observe(follow, names="value")

    def _buttons(self, widgets: ModuleType) -> list[Any]:
        """Return the buttons that zoom."""
        changes: list[tuple[str, str, Callable[[ViewerState], ViewerState]]] = [
            ("+", "larger", lambda state: state.zoomed(_ZOOM)),
            ("\N{MINUS SIGN}", "smaller", lambda state: state.zoomed(1 / _ZOOM)),
            ("fit", "all of the plane", lambda state: state.fitted()),
        ]
        buttons = []
        for text, tip, change in changes:
            button = widgets.Button(description=text, tooltip=tip, layout={"width": "48px"})
            button.on_click(partial(self._click, change))
            buttons.append(button)
        return buttons

    def _click(self, change: Callable[[ViewerState], ViewerState], _button: Any) -> None:
        """Change the state when a button is pressed."""
        self._viewer.show(change(self._viewer.state))


def _moved(dim: str, state: ViewerState, index: int) -> ViewerState:
    """Return the state at another index along one dimension."""
    return state.moved({dim: index})


def _windowed(state: ViewerState, pair: tuple[float, float]) -> ViewerState:
    """Return the state with another window; two handles at one place are none."""
    return state.windowed(*pair) if pair[0] < pair[1] else state


def _ipywidgets() -> Any:
    """Return ipywidgets."""
    try:
        import ipywidgets
    except ImportError as error:
        raise MissingDependencyError(
            "the viewer needs ipywidgets, which is not installed. "
            'To fix: pip install "mlarray-xr[jupyter]"'
        ) from error
    return ipywidgets
