"""`mla view`: the viewer from the terminal, in a real browser, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from tests.jupyterlab import PATIENCE_S, end, visit, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("ipywidgets")

from mlarray_xr.cli_view import add_view
from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.explore.view_page import _environment, run_view_page

REASON = why_not("voila", "ipykernel")
needs_browser = pytest.mark.skipif(REASON is not None, reason=f"{REASON}")
COMMAND = (
    "import argparse, sys\n"
    "from mlarray_xr.cli_view import add_view\n"
    "parser = argparse.ArgumentParser()\n"
    "add_view(parser.add_subparsers(required=True))\n"
    "options = parser.parse_args()\n"
    "print(*options.run(options).failures, file=sys.stderr)"
)


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_view(parser.add_subparsers(required=True))
    return parser.parse_args(["view", *arguments])


def write_file(folder: Path) -> str:
    values = np.full((4, 8, 8), 50, np.uint8)
    values[2] = 200
    path = folder / 'it\'s "here".mla'
    mlarray_xr.to_mla(xr.DataArray(values, dims=("z", "y", "x")), path)
    mlarray_xr.to_mla(values > 100, folder / "labels.mla")
    return str(path)


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it prints."""
    (folder / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "view", *arguments, "--no-browser"],
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        end(process)
        process.communicate()


@needs_browser
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_is_shown_until_somebody_ends_it(tmp_path: Path, signal_number: int) -> None:
    path = write_file(tmp_path)
    with running(tmp_path, path, "--labels", "labels.mla") as (process, url):
        assert url.startswith("http://127.0.0.1:")
        if signal_number == signal.SIGINT:
            with visit() as seen:
                seen.page.goto(url)
                seen.page.wait_for_selector(".mla-viewer[data-drawn]")
                script = (
                    "() => [...document.querySelector('.mla-viewer canvas')"
                    ".getContext('2d').getImageData(100, 100, 1, 1).data]"
                )
                red, green, _, _ = seen.page.evaluate(script)
                assert red > green + 40  # the labels of the middle slice
                assert seen.complaints == []
        process.send_signal(signal_number)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, errors.strip()) == (0, "")
        assert list((tmp_path / "tmp").iterdir()) == []


@needs_browser
def test_the_address_is_a_secret_and_the_arguments_do_not_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib.request

    (tmp_path / "voila.json").write_text('{"Voila": {"ip": "0.0.0.0", "token": ""}}')
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    with run_view_page("1 + 1") as page:
        bare, _, token = page.url.partition("?token=")
        with urllib.request.urlopen(bare, timeout=PATIENCE_S) as answer:
            assert "/login" in answer.url
        assert token
        arguments: Any = page.server.args
        assert not any(token in argument for argument in arguments)
    assert page.server.poll() is not None


def test_settings_of_the_user_do_not_outrank_those_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pytest.importorskip("jupyter_core.paths")
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / "mine"))
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    assert paths.jupyter_config_path()[0] == str(tmp_path / "config")
    assert str(tmp_path / "mine") not in paths.jupyter_config_path()


def test_a_port_that_somebody_listens_on_is_refused_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it was started"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(OSError, match=rf"port {port}.*To fix: another port")
        with refused, run_view_page("1", port=port):
            pytest.fail("it ran")


def test_without_voila_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[view\]"), run_view_page("1"):
        pytest.fail("it ran")


def test_what_cannot_be_shown_is_told_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlarray_xr.cli_view.run_view_page", lambda *_, **__: pytest.fail("it was started")
    )
    options = options_of(str(tmp_path / "none.mla"))
    with pytest.raises(FileNotFoundError):
        options.run(options)
    mlarray_xr.to_mla(xr.DataArray(np.zeros(5), dims="x"), tmp_path / "line.mla")
    options = options_of(str(tmp_path / "line.mla"))
    with pytest.raises(ConversionError, match="no picture"):
        options.run(options)


@pytest.mark.parametrize("port", ["-1", "70000", "x", "8.5", ""])
def test_ports_that_are_none_are_refused(port: str) -> None:
    with pytest.raises(SystemExit):
        options_of("a.mla", "--port", port)


def test_port_0_is_a_free_one_as_without_it() -> None:
    assert options_of("a.mla", "--port", "0").port == options_of("a.mla").port == 0
