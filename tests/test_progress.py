"""Progress bars: who sees one, who does not, and what callbacks are told."""

from __future__ import annotations

import io
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr
from typing import TYPE_CHECKING, Any
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.diagnostics.progress import ProgressBar

import mlarray_xr
from mlarray_xr import progress as progress_module
from mlarray_xr.cli import main
from mlarray_xr.errors import MissingDependencyError
from mlarray_xr.foreign.collection import convert_folder
from mlarray_xr.progress import is_notebook, shown_progress
from mlarray_xr.verification import verify_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Stream(io.StringIO):
    """Standard error that is a terminal, or is none."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is too short for a bar."""
    monkeypatch.setattr(progress_module, "_DELAY_SECONDS", 0.0)


def shown(progress: Any = None, *, is_terminal: bool = True) -> str:
    """Return what a call of two chunks shows."""
    stream = Stream(is_terminal=is_terminal)
    with redirect_stderr(stream), shown_progress(progress, unit="chunk") as tell:
        if tell is not None:
            tell(1, 2)
            tell(2, 2)
    return stream.getvalue()


def test_a_callback_is_called_as_it_is() -> None:
    seen: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        seen.append((done, total))

    with shown_progress(tell, unit="file") as given:
        assert given is tell


def test_nothing_is_shown_where_nobody_looks() -> None:
    assert shown(is_terminal=False) == ""
    assert shown(progress=False, is_terminal=False) == ""


def test_a_bar_that_is_asked_for_is_shown_anywhere() -> None:
    assert "chunk" in shown(progress=True, is_terminal=False)


def test_a_terminal_shows_a_bar_unless_told_otherwise() -> None:
    assert "chunk" in shown()
    assert shown(progress=False) == ""


def test_short_calls_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "_DELAY_SECONDS", 3600.0)
    assert shown().strip() == ""


def test_other_threads_and_processes_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(shown).result() == ""
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    assert shown() == ""


def test_who_watches_with_a_bar_of_dask_sees_no_second_one() -> None:
    with ProgressBar(out=None):
        assert shown() == ""
    assert "chunk" in shown()


def test_without_tqdm_only_who_asks_for_a_bar_is_refused() -> None:
    with mock.patch.dict(sys.modules, {"tqdm": None}):
        assert shown() == ""
        with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[progress\]"):
            shown(progress=True)


@pytest.mark.parametrize("has_widgets", [True, False])
def test_notebooks_show_a_widget_where_they_have_widgets(
    has_widgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    interactive: Any = types.ModuleType("IPython")
    interactive.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    widget: Any = types.ModuleType("tqdm.notebook")
    widget.tqdm = mock.MagicMock()
    monkeypatch.setitem(sys.modules, "IPython", interactive)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", widget)
    found = progress_module._has
    monkeypatch.setattr(
        progress_module, "_has", lambda name: has_widgets if name == "ipywidgets" else found(name)
    )
    assert is_notebook()
    assert ("chunk" in shown()) is not has_widgets
    assert widget.tqdm.called is has_widgets


@pytest.mark.parametrize("stream", [None, object()])
def test_writes_succeed_where_standard_error_is_none(
    stream: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    mlarray_xr.to_mla(np.zeros(4), tmp_path / "a.mla")


def test_a_plain_interpreter_is_no_notebook() -> None:
    assert not is_notebook()


def test_long_calls_show_one_bar_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    bar = progress_module._bar

    def counted(unit: str, *, delay_seconds: float) -> Any:
        begun.append(unit)
        return bar(unit, delay_seconds=delay_seconds)

    monkeypatch.setattr(progress_module, "_bar", counted)
    values = np.arange(512, dtype="int16").reshape(8, 8, 8)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "scan.npy", values)
    calls: dict[str, tuple[Callable[[], object], list[str]]] = {
        "write": (lambda: mlarray_xr.to_mla(values, tmp_path / "a.mla", chunks=4), ["chunk"]),
        "dask": (
            lambda: mlarray_xr.to_mla(
                da.from_array(values, chunks=4), tmp_path / "b.mla", chunks=4
            ),
            ["chunk"],
        ),
        "convert": (
            lambda: mlarray_xr.convert(tmp_path / "in" / "scan.npy", tmp_path / "c.mla"),
            ["chunk"],
        ),
        "folder": (lambda: convert_folder(tmp_path / "in", tmp_path / "out"), ["B"]),
        "verify": (lambda: list(verify_folder(tmp_path)), ["file"]),
        "command": (
            lambda: main(["convert", str(tmp_path / "in" / "scan.npy"), str(tmp_path / "d.mla")]),
            ["chunk"],
        ),
    }
    for name, (call, units) in calls.items():
        begun.clear()
        with redirect_stderr(Stream(is_terminal=True)):
            call()
        assert begun == units, name


def test_variables_of_a_dataset_are_counted_together(tmp_path: Path) -> None:
    values = np.zeros((8, 8), "int16")
    dataset = xr.Dataset({"a": (("y", "x"), values), "b": (("y", "x"), da.from_array(values))})
    seen: list[tuple[int, int]] = []
    mlarray_xr.to_mla(
        dataset, tmp_path / "both", chunks=4, progress=lambda *pair: seen.append(pair)
    )
    assert {total for _, total in seen} == {8}
    assert max(done for done, _ in seen) == 8
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
