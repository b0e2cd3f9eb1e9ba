"""Viewing: from slice to slice of a huge volume, as fast as somebody turns a wheel."""

from __future__ import annotations

import io
import shutil
import statistics
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data import make_values
from benchmarks.report import Goal, Row, Skip, Table, timed_row
from benchmarks.timing import time_paired
from benchmarks.viewing_browser import scroll_in_browser, why_not_here
from mlarray_xr import configure, create, open_mla
from mlarray_xr.explore.view import view
from mlarray_xr.overviews import build_overviews
from mlarray_xr.storage.read_settings import read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import xarray as xr

    from benchmarks.data import Workplace
    from benchmarks.timing import Samples
    from mlarray_xr.explore.viewer_state import ViewerState

__all__ = ["run"]

_MOST_REPEATS = 3
_CANVAS_PX = 512
_PATIENCE_S = 120
_TEN_A_SECOND = Goal(of="median", relation="<=", bound=100)
OURS = "view(), overviews, reads ahead"


def run(workplace: Workplace) -> list[Table]:
    """Return one table: milliseconds per slice, and the slowest slice, by viewer and by hand."""
    is_full = workplace.size.name == "full"
    edge, n_slices = (2048, 64) if is_full else (256, 8)
    folder = workplace.folder / "viewing"
    folder.mkdir()
    bare, levelled = folder / "bare.mla", folder / "levelled.mla"
    _write_band(bare, edge=edge, thick=2 * n_slices)
    shutil.copyfile(bare, levelled)
    build_overviews(levelled)
    slowest: dict[str, list[float]] = {}

    def scrolled(path: Path, name: str, *, read_ahead: bool) -> Callable[[int], object]:
        def job(repeat: int) -> None:
            taken = _scroll(open_mla(path), n_slices, read_ahead=read_ahead)
            slowest.setdefault(name, []).append(max(taken) * bool(repeat))

        return job

    jobs = {
        OURS: scrolled(levelled, OURS, read_ahead=True),
        "view(), overviews": scrolled(levelled, "view(), overviews", read_ahead=False),
        "view(), reads ahead": scrolled(bare, "view(), reads ahead", read_ahead=True),
        "view()": scrolled(bare, "view()", read_ahead=False),
        "isel and Matplotlib": lambda _: _by_hand(open_mla(bare), n_slices),
    }
    before = read_settings().decoded_cache_bytes
    configure(decoded_cache_bytes="64 MiB")  # as users have it
    try:
        repeats = min(workplace.size.repeats, _MOST_REPEATS)
        found = time_paired(jobs, repeats=repeats, patience_s=workplace.size.patience_s)
    finally:
        configure(decoded_cache_bytes=before)
    looked_at = {"view(), reads ahead": bare} | ({OURS: levelled} if is_full else {})
    shown, skips = _in_browser(looked_at, n_slices)
    per_slice = {name: samples.divided(n_slices) for name, samples in found.items()}
    return [
        Table(
            name="viewing",
            title="Looking at a huge volume",
            about=(
                f"From slice to slice of a {edge}-cubed int16 file in its default layout, "
                f"{n_slices} slices from the middle on, each {edge} x {edge}, shown on "
                f"{_CANVAS_PX} pixels: from the turn of the wheel until the bytes for the browser "
                "are ready; every run begins with nothing in memory but the page cache; "
                "in JupyterLab until it is drawn there, mean over the slices. By hand "
                "means `array.isel(z=z).values` drawn by Matplotlib as PNG of the same size. Where "
                "nobody looks the file holds zeros."
            ),
            rows=(*_rows(per_slice), *_worst(slowest), *shown),
            skips=tuple(skips),
        )
    ]


def _in_browser(files: dict[str, Path], n_slices: int) -> tuple[list[Row], list[Skip]]:
    """Return the time from a turn of the wheel until the slice is on the screen."""
    reason = why_not_here()
    if reason is not None:
        return [], [Skip(contender="a browser", reason=reason)]
    rows = []
    for name, path in files.items():
        taken = scroll_in_browser(path, n_slices=n_slices, folder=path.with_suffix(".lab"))
        rows.append(
            Row(
                case="next slice, in JupyterLab",
                contender=name,
                unit="ms",
                median=1e3 * statistics.mean(taken),
                best=1e3 * min(taken),
                goal=_TEN_A_SECOND,
            )
        )
    return rows, []


def _write_band(path: Path, *, edge: int, thick: int) -> None:
    """Write a cube that holds a scan in its middle slices and zeros elsewhere."""
    tile = make_values((thick, edge // 4, edge // 4), "int16")
    with create(path, shape=(edge,) * 3, dtype="int16", dims=("z", "y", "x")) as writer:
        first = edge // 2
        writer[first : first + thick] = np.tile(tile, (1, 4, 4))


class _Arrived:
    """A canvas and controls that only notice when a plane is there."""

    widget = None

    def __init__(self) -> None:
        self.arrived = threading.Event()

    def send(self, content: dict[str, Any], pixels: Sequence[Any] = ()) -> None:
        """Take a message as the kernel would, before it travels."""
        if content["kind"] != "plane":
            raise ValueError(content)
        for array in pixels:
            memoryview(array).cast("B")
        self.arrived.set()

    def show(self, state: ViewerState) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Close nothing."""


def _scroll(array: xr.DataArray, n_slices: int, *, read_ahead: bool) -> list[float]:
    """Turn the wheel as soon as each slice is there; return the seconds of each."""
    viewer = view(array, window=(0, 700), size_px=_CANVAS_PX, read_ahead=read_ahead)
    screen = _Arrived()
    viewer.attach(screen, screen)
    taken = []
    for number in range(n_slices):
        begin = time.perf_counter()
        screen.arrived.clear()
        viewer.take_input({"scroll": 1 if number else 0, "number": number})
        if not screen.arrived.wait(_PATIENCE_S):
            msg = f"slice {number} did not arrive"
            raise TimeoutError(msg)
        taken.append(time.perf_counter() - begin)
    viewer.close()
    return taken


def _by_hand(array: xr.DataArray, n_slices: int) -> None:
    """Draw slice after slice as a notebook without the viewer would."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_CANVAS_PX / 100,) * 2, dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    first = array.sizes["z"] // 2
    picture = axes.imshow(array.isel(z=first).values, cmap="gray", vmin=0, vmax=700)
    for z in range(first, first + n_slices):
        picture.set_data(array.isel(z=z).values)
        figure.savefig(io.BytesIO(), format="png")


def _rows(found: dict[str, Samples]) -> list[Row]:
    """Return the time of a slice by each contender."""
    rows = []
    for name, samples in found.items():
        is_ours = name.startswith("view()")
        mine = None if is_ours else found[OURS]
        goal = _TEN_A_SECOND if is_ours else None
        rows.append(timed_row("next slice", name, samples, mine=mine, goal=goal))
    return rows


def _worst(slowest: dict[str, list[float]]) -> list[Row]:
    """Return the slowest slice of a run, the first one included, by each viewer."""
    return [
        Row(
            case="slowest slice",
            contender=name,
            unit="ms",
            median=1e3 * statistics.median(times[1:]),
            best=1e3 * min(times[1:]),
        )
        for name, times in slowest.items()
    ]
