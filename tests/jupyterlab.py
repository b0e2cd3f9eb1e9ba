"""A real JupyterLab on this machine, driven by a headless browser.

Tests of the viewer and the pictures of the notebooks use it. Server and browser live in a `with`
block, keep everything in a folder that is given, and are gone afterwards. Nothing that is not on
127.0.0.1 can be reached from the browser; what was tried is told.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from playwright.sync_api import Page

__all__ = [
    "Visit",
    "browser_path",
    "free_port",
    "run_jupyterlab",
    "visit",
    "why_not",
    "write_notebook",
]

PATIENCE_S = 60
"""How long anything may take on a slow machine."""

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SETTINGS = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}


def browser_path() -> str | None:
    """Return the browser of this machine, None without one."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def why_not(*modules: str) -> str | None:
    """Return why a browser cannot be driven here, None when it can."""
    import importlib.util

    for module in ("playwright", "anywidget", "ipywidgets", *modules):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
    return None if browser_path() else f"none of {', '.join(_BROWSERS)} is installed"


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_notebook(path: Path, cells: Sequence[str]) -> None:
    """Write a notebook of code cells."""
    code: list[dict[str, Any]] = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "source": source,
            "metadata": {},
            "outputs": [],
            "execution_count": None,
        }
        for number, source in enumerate(cells)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = {
        "cells": code,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(notebook), encoding="utf-8")


@contextlib.contextmanager
def run_jupyterlab(folder: Path, *, state: Path) -> Iterator[tuple[str, str]]:
    """Run JupyterLab over a folder; yield its address and its token.

    Parameters
    ----------
    folder
        Where notebooks are opened from, and kernels started.
    state
        An empty folder for what Jupyter keeps: settings, workspaces, connection files, its log.
    """
    port, token = free_port(), secrets.token_hex(16)
    settings = state / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(_SETTINGS))
    kept = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"]
    environment = os.environ | {name: str(state / place) for name, place in kept.items()}
    with (state / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_answer(f"{url}/api/status?token={token}", server, state / "log.txt")
            yield url, token
        finally:
            end(server)


def wait_for_answer(url: str, server: subprocess.Popen[Any], log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10):
            return
        time.sleep(0.1)
    raise TimeoutError(f"no answer; exit status {server.poll()}:\n{log.read_text()[-4000:]}")


def end(server: subprocess.Popen[Any]) -> None:
    """End a server, by force where it does not listen; its kernels end with it."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A page in a browser and what it complained about."""

    page: Page
    """Playwright's page."""
    complaints: list[str] = field(default_factory=list)
    """Errors on the console, uncaught ones, and requests that would have left this machine."""

    def open_notebook(self, url: str, token: str, name: str) -> None:
        """Open a notebook in JupyterLab and run all of its cells."""
        self.page.goto(f"{url}/lab/tree/{name}?token={token}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "window.jupyterapp?.shell.currentWidget"
            "?.sessionContext?.session?.kernel?.status === 'idle'"
        )
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


@contextlib.contextmanager
def visit(*, width: int = 1200, height: int = 1000) -> Iterator[Visit]:
    """Open a browser with one page."""
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(_BROWSERS)} is installed")
    rules = "MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    # Without a graphics card: newer ones draw WebGL in software only when they are told to.
    software = "--enable-unsafe-swiftshader"
    arguments = ["--no-sandbox", "--disable-dev-shm-usage", software]
    arguments.append(f"--host-resolver-rules={rules}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(1000 * PATIENCE_S)
            seen = Visit(page=page)
            _listen(seen)
            yield seen
        finally:
            browser.close()


def _listen(seen: Visit) -> None:
    """Note what goes wrong on a page."""

    def on_request(request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            seen.complaints.append(f"request: {request.url}")

    def on_console(message: Any) -> None:
        if message.type == "error":
            seen.complaints.append(f"console: {message.text}")

    seen.page.on("request", on_request)
    seen.page.on("console", on_console)
    seen.page.on("pageerror", lambda error: seen.complaints.append(f"uncaught: {error}"))
