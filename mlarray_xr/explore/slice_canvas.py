"""The canvas of the slice viewer in a notebook: a door to anywidget."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

__all__ = ["SliceCanvas"]

_MODULE = Path(__file__).with_suffix(".js")
_STYLE = Path(__file__).with_suffix(".css")


class SliceCanvas:
    """Sends planes to the browser and receives what the user does there.

    Planes travel as messages, never as state: state is saved with notebooks, voxels must not be.
    The JavaScript is part of the package; the browser fetches nothing else.

    Parameters
    ----------
    on_input
        Called with the content of each message from the browser, in the thread of the kernel.

    Raises
    ------
    MissingDependencyError
        When anywidget is not installed.
    """

    def __init__(self, on_input: Callable[[dict[str, Any]], None]) -> None:
        self.widget = _any_widget()
        """The widget itself."""
        # The kernel's own queue takes messages from any thread; a lock keeps them whole in others.
        self._lock = threading.Lock()
        self.widget.on_msg(lambda _widget, content, _buffers: on_input(content))

    def send(self, content: dict[str, Any], pixels: Sequence[NDArray[Any]] = ()) -> None:
        """Send a message and arrays as bytes, from any thread; dropped once it is closed."""
        with self._lock:
            if self.widget.comm is not None:
                self.widget.send(content, buffers=[array.data.cast("B") for array in pixels])

    def close(self) -> None:
        """Remove the canvas from all its places."""
        with self._lock:
            self.widget.close()


def _any_widget() -> Any:
    """Return a new widget with our JavaScript and style."""
    try:
        from anywidget import AnyWidget
    except ImportError as error:
        raise MissingDependencyError(
            "the viewer needs anywidget, which is not installed. "
            'To fix: pip install "mlarray-xr[jupyter]"'
        ) from error

    class MlaSliceCanvas(AnyWidget):
        """The widget by the name under which notebooks keep it."""

        _esm = _MODULE.read_text(encoding="utf-8")
        _css = _STYLE.read_text(encoding="utf-8")

    return MlaSliceCanvas()
