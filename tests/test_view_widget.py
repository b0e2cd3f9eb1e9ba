"""The viewer without a browser: what it sends, what it takes, and what it does in which order."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from mlarray_xr.errors import ConversionError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mlarray_xr.explore.viewer import Viewer

pytest.importorskip("anywidget")
pytest.importorskip("ipywidgets")

from mlarray_xr.explore.view import view

VALUES = np.arange(12 * 20 * 30, dtype=np.int16).reshape(12, 20, 30)
IMAGE = xr.DataArray(VALUES, dims=("z", "y", "x"))
PATIENCE_S = 60


class Recorder:
    """A canvas that keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[dict[str, Any], list[bytes]]] = []
        self.threads: set[int] = set()

    def send(self, content: dict[str, Any], pixels: Sequence[np.ndarray] = ()) -> None:
        self.sent.append((content, [array.tobytes() for array in pixels]))
        self.threads.add(threading.get_ident())

    def close(self) -> None:
        self.sent.clear()

    def last(self, kind: str) -> dict[str, Any]:
        return [content for content, _ in self.sent if content["kind"] == kind][-1]

    @property
    def pixels(self) -> np.ndarray:
        """The image of the last plane, levels of grey."""
        content, buffers = [sent for sent in self.sent if sent[0]["kind"] == "plane"][-1]
        return np.frombuffer(buffers[0], np.uint8).reshape(content["layers"][0]["shape"])


@contextlib.contextmanager
def viewing(array: xr.DataArray, **options: Any) -> Iterator[tuple[Viewer, Recorder]]:
    """A viewer whose canvas is replaced."""
    viewer = view(array, **{"window": (0, 7199), "size_px": 120, **options})
    recorder = Recorder()
    assert viewer._controls is not None
    viewer.attach(recorder, viewer._controls)
    yield viewer, recorder
    viewer.close()


def act(viewer: Viewer, **content: Any) -> None:
    """Do what a browser does, and wait until it is shown."""
    viewer.take_input(content)
    viewer.wait(PATIENCE_S)


def sliders(viewer: Viewer) -> dict[str, Any]:
    assert viewer._controls is not None
    return viewer._controls._positions  # type: ignore[no-any-return, attr-defined]


def test_a_canvas_that_opens_gets_the_middle_plane() -> None:
    with viewing(IMAGE) as (viewer, recorder):
        act(viewer, opened=True, number=1)
        content = recorder.last("plane")
        wanted = VALUES[6].astype(float) / 7199 * 255
        assert np.abs(recorder.pixels - wanted).max() <= 1
        assert content["number"] == 1
        assert content["caption"] == "y, x  z 6 / 11"
        assert content["view"] == {"centre": (10.0, 15.0), "zoom": 4.0}
        assert content["crosshair"] is None
        assert recorder.threads.isdisjoint({threading.get_ident()})


def test_wheel_slider_and_drop_down_change_the_same_state() -> None:
    with viewing(IMAGE) as (viewer, recorder):
        act(viewer, scroll=3, number=1)
        assert (viewer.state.position[0], sliders(viewer)["z"].value) == (9, 9)
        sliders(viewer)["z"].value = 2
        viewer.wait(PATIENCE_S)
        assert viewer.state.position[0] == 2
        assert recorder.last("plane")["caption"] == "y, x  z 2 / 11"
        assert viewer._controls is not None
        viewer._controls._plane.value = "z, x"  # type: ignore[attr-defined]
        viewer.wait(PATIENCE_S)
        assert recorder.last("plane")["layers"][0]["shape"] == (12, 30)
        shown = {dim: slider.layout.display for dim, slider in sliders(viewer).items()}
        assert shown == {"z": "none", "y": None, "x": "none"}


def test_a_click_says_what_is_there_and_moves_the_sliders() -> None:
    with viewing(IMAGE, labels=(IMAGE > 4000).astype("uint8")) as (viewer, recorder):
        act(viewer, pick=[4.2, 7.9], number=1)
        assert viewer.state.position == (6, 4, 7)
        assert {dim: s.value for dim, s in sliders(viewer).items()} == {"z": 6, "y": 4, "x": 7}
        text = recorder.last("readout")["text"]
        assert text.splitlines() == ["index  z=6  y=4  x=7", f"value  {VALUES[6, 4, 7]}  label  0"]
        assert recorder.last("plane")["crosshair"] == (4, 7)


def test_another_window_reads_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with viewing(IMAGE) as (viewer, recorder):
        act(viewer, number=1)
        monkeypatch.setattr(xr.DataArray, "to_numpy", lambda self: pytest.fail("read again"))
        viewer.show(viewer.state.windowed(0, 100))
        viewer.wait(PATIENCE_S)
        assert "failure" not in {content["kind"] for content, _ in recorder.sent}
        assert (
            recorder.pixels == np.clip(VALUES[6].astype(float) * 2.55, 0, 255) // 1
        ).mean() > 0.99


def test_labels_can_be_hidden_and_faded() -> None:
    with viewing(IMAGE, labels=(IMAGE > 4000).astype("uint8")) as (viewer, recorder):
        act(viewer, number=1)
        assert [layer["kind"] for layer in recorder.last("plane")["layers"]] == ["grey", "labels"]
        controls: Any = viewer._controls
        controls._opacity.value = 0.25
        viewer.wait(PATIENCE_S)
        assert recorder.last("plane")["opacity"] == 0.25
        controls._labels.value = False
        viewer.wait(PATIENCE_S)
        assert [layer["kind"] for layer in recorder.last("plane")["layers"]] == ["grey"]


def test_labels_of_three_slices_are_not_taken_for_colours() -> None:
    image = xr.DataArray(np.zeros((9, 8, 3), np.int16), dims=("row", "column", "slice"))
    labels = xr.zeros_like(image, dtype=np.uint8)
    labels[:, :, 1] = 7
    with viewing(image, labels=labels) as (viewer, recorder):
        act(viewer, pick=[1, 1], number=1)
        assert {content["kind"] for content, _ in recorder.sent} == {"plane", "readout"}
        viewer.show(viewer.state.on_plane("row, column").moved({"slice": 1}))
        viewer.wait(PATIENCE_S)
        content, (_, colours) = [sent for sent in recorder.sent if sent[0]["kind"] == "plane"][-1]
        assert [layer["kind"] for layer in content["layers"]] == ["grey", "labels"]
        assert set(colours) == {7}


def test_zooming_here_moves_the_browser_and_an_older_look_of_it_is_ignored() -> None:
    with viewing(IMAGE) as (viewer, recorder):
        act(viewer, number=1)
        epoch = recorder.last("plane")["epoch"]
        act(viewer, look=[3, 4, 8.0], epoch=epoch, number=2)
        assert (viewer.state.centre, viewer.state.px_per_unit) == ((3, 4), 8.0)
        assert recorder.last("plane")["epoch"] == epoch
        viewer.show(viewer.state.zoomed(2))
        viewer.wait(PATIENCE_S)
        assert recorder.last("plane")["epoch"] == epoch + 1
        act(viewer, look=[9, 9, 4.0], epoch=epoch, number=3)
        assert viewer.state.px_per_unit == 16.0
        assert recorder.last("plane")["number"] == 3


@pytest.mark.parametrize(
    "content",
    [
        {"scroll": "far"},
        {"scroll": None},
        {"look": [1, 2]},
        {"look": [float("nan"), 1, 1]},
        {"look": "abc"},
        {"pick": [float("inf"), 1]},
        {"pick": {"row": 1}},
        {"number": "many"},
        {},
    ],
)
def test_messages_that_make_no_sense_change_nothing(content: dict[str, Any]) -> None:
    with viewing(IMAGE) as (viewer, recorder):
        before = viewer.state
        act(viewer, epoch=0, **{"number": 4, **content})
        assert viewer.state == before
        assert recorder.last("plane")


def test_of_many_moves_the_last_is_shown() -> None:
    started, may_go = threading.Event(), threading.Event()

    class Slow(Recorder):
        def send(self, content: dict[str, Any], pixels: Sequence[np.ndarray] = ()) -> None:
            super().send(content, pixels)
            started.set()
            may_go.wait(PATIENCE_S)

    with viewing(IMAGE) as (viewer, _):
        slow = Slow()
        assert viewer._controls is not None
        viewer.attach(slow, viewer._controls)
        viewer.take_input({"number": 1})
        assert started.wait(PATIENCE_S)
        for number in range(2, 7):
            viewer.take_input({"scroll": 1, "number": number})
        may_go.set()
        viewer.wait(PATIENCE_S)
        assert [content["number"] for content, _ in slow.sent] == [1, 6]
        assert slow.last("plane")["caption"] == "y, x  z 11 / 11"


def test_what_cannot_be_read_is_said_and_the_viewer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "here.mla"
    mlarray_xr.to_mla(IMAGE, path, chunks=(4, 20, 30), blocks=(4, 20, 30))
    with viewing(mlarray_xr.open_mla(path), read_ahead=False) as (viewer, recorder):
        act(viewer, number=1)
        mlarray_xr.to_mla(IMAGE + 1, path, mode="w")
        act(viewer, scroll=5, number=2)
        failure = recorder.last("failure")
        assert failure["text"].startswith("SourceChanged: this plane cannot be read")
        assert "here" not in failure["text"]  # paths may have names of patients
        assert failure["number"] == 2
        act(viewer, scroll=-5, number=3)
        assert recorder.last("plane")["number"] == 3


def test_what_comes_next_is_read_ahead(tmp_path: Path) -> None:
    mlarray_xr.to_mla(IMAGE, tmp_path / "a.mla", chunks=(4, 20, 30), blocks=(2, 20, 30))
    array = mlarray_xr.open_mla(tmp_path / "a.mla")
    kept = {}
    for read_ahead in (False, True):
        with viewing(array, read_ahead=read_ahead) as (viewer, _):
            act(viewer, scroll=-1, number=1)
            kept[read_ahead] = viewer._cache.kept_bytes
    assert kept == {False: 2 * 20 * 30 * 2, True: 4 * 20 * 30 * 2}


def test_nothing_is_kept_once_the_last_canvas_is_gone() -> None:
    with viewing(IMAGE) as (viewer, _):
        act(viewer, opened=True, number=1)
        act(viewer, opened=True, number=1)
        act(viewer, closed=True)
        assert viewer._cache.kept_bytes
        act(viewer, closed=True)
        assert not viewer._cache.kept_bytes
        act(viewer, opened=True, number=1)
        assert viewer._cache.kept_bytes


def test_the_state_that_notebooks_save_holds_no_voxel() -> None:
    viewer = view(xr.DataArray(np.full((4, 5, 6), 12321), dims=("z", "y", "x")), window=(0, 2))
    viewer.take_input({"opened": True, "number": 1})
    viewer.wait(PATIENCE_S)
    assert viewer._canvas is not None
    state = viewer._canvas.widget.get_state()  # type: ignore[attr-defined]
    assert not any(isinstance(value, bytes | memoryview) for value in state.values())
    assert "12321" not in str({key: value for key, value in state.items() if key != "_esm"})
    viewer.close()
    assert viewer._repr_mimebundle_() == {"text/plain": "a closed viewer"}


def test_a_notebook_shows_the_widget() -> None:
    viewer = view(IMAGE, window=(0, 1))
    bundle = viewer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == viewer.widget.model_id
    viewer.close()


def test_the_window_comes_from_the_values() -> None:
    viewer = view(IMAGE)
    low, high = viewer.state.window
    assert 0 <= low < 400
    assert 6800 < high <= 7199
    viewer.close()
    asked = view(IMAGE, window=np.array([0, 1]))  # type: ignore[arg-type]
    assert asked.state.window == (0.0, 1.0)
    assert asked.state == asked.state.fitted()
    asked.close()
    switch = view(IMAGE > 5)
    assert switch.state.window == (0.0, 1.0)
    switch.close()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"size_px": 10}, ValueError, "64 to 4096"),
        ({"size_px": 100.5}, ValueError, "64 to 4096"),
        ({"window": (1, 2, 3)}, ValueError, "too many values"),
        ({"labels": IMAGE.astype("uint8").rename(z=0)}, ConversionError, "rename"),
        ({"window": (3, 3)}, ValueError, "the first value must be below"),
        ({"plane": "axial"}, ValueError, "there is no plane 'axial'"),
        ({"labels": IMAGE.astype(float)}, ConversionError, "whole numbers"),
        ({"cache_bytes": "much"}, ValueError, "no amount of memory"),
    ],
)
def test_what_makes_no_sense_is_refused(
    options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        view(IMAGE, **options)


@pytest.mark.parametrize("missing", ["anywidget", "ipywidgets"])
def test_without_the_widgets_it_says_what_to_install(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import numpy, xarray\n"
        "from mlarray_xr.errors import MissingDependencyError\n"
        "from mlarray_xr.explore.view import view\n"
        "try: view(xarray.DataArray(numpy.ones((3, 4))))\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the viewer needs " in done.stdout
    assert 'pip install "mlarray-xr[jupyter]"' in done.stdout
    assert issubclass(MissingDependencyError, ImportError)
