"""The viewer as a page of its own: a small server on this machine that Voilà runs."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ViewPage", "run_view_page"]

_HERE = "127.0.0.1"
_PATIENCE_S = 60.0
_LOG_CHARACTERS = 2000
_KERNEL = "mlarray-xr-view"
# What the viewer needs; others that happen to be installed may not suit Voilà.
_EXTENSIONS = (
    "@jupyter-widgets/jupyterlab-manager",
    "@voila-dashboards/widgets-manager8",
    "anywidget",
)
# Voilà's own template fetches icons from the internet; this one is the same without them.
_TEMPLATE = """\
{%- extends 'voila/templates/lab/index.html.j2' -%}
{% import "spinner.macro.html.j2" as spinner %}
{%- block notebook_css -%}
{% if frontend == "voila" %}{{ resources.include_js("static/voila-style.js") }}{% endif %}
{{ spinner.css() }}
<style>.jp-mod-noOutputs.jp-mod-noInput { display: none; }</style>
{{ super.super() }}
{%- endblock notebook_css -%}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewPage:
    """A page that is being served."""

    url: str
    """Address with its token: whoever knows it may look."""
    server: subprocess.Popen[bytes]
    """The process that serves it."""


@contextlib.contextmanager
def run_view_page(code: str, *, port: int = 0) -> Iterator[ViewPage]:
    """Serve what a cell of Python code shows, on this machine alone, while a block runs.

    Everything that the server keeps lies in a temporary folder that only this user can read, and
    goes with it.

    Parameters
    ----------
    code
        Run in a fresh kernel of this Python whenever the page is opened.
    port
        Where it listens; 0 takes a free one.

    Raises
    ------
    MissingDependencyError
        When Voilà is not installed.
    OSError
        When the port is taken, or the server does not start.
    """
    if importlib.util.find_spec("voila") is None:
        raise MissingDependencyError(
            "viewing from the terminal needs Voilà, which is not installed. "
            'To fix: pip install "mlarray-xr[view]", or view in a notebook'
        )
    port, token = _free_port(port), secrets.token_urlsafe(24)
    with tempfile.TemporaryDirectory(prefix="mlarray-xr-view-") as name:
        folder = Path(name)
        _fill(folder, code, port=port, token=token)
        log = folder / "log.txt"
        with log.open("wb") as output:
            server = subprocess.Popen(
                [sys.executable, "-m", "voila", str(folder / "view.ipynb")],
                env=_environment(folder),
                cwd=folder,
                stdout=output,
                stderr=output,
                # Ctrl-C is for us: we end the server ourselves.
                start_new_session=True,
            )
            try:
                _wait(server, port, log)
                yield ViewPage(url=f"http://{_HERE}:{port}/?token={token}", server=server)
            finally:
                _end(server)


def _fill(folder: Path, code: str, *, port: int, token: str) -> None:
    """Write notebook, kernel, template and settings; the token is in none of the arguments."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": _KERNEL,
        "language": "python",
    }
    cell: dict[str, Any] = {"cell_type": "code", "id": "view", "source": code, "outputs": []}
    cell |= {"metadata": {}, "execution_count": None}
    notebook = {
        "cells": [cell],
        "metadata": {"kernelspec": {**spec, "name": _KERNEL}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    settings = {
        "Voila": {
            "ip": _HERE,
            "port": port,
            "port_retries": 0,
            "token": token,
            "open_browser": False,
            "connection_dir_root": str(folder),
        },
        "VoilaConfiguration": {
            "template": "mlarray-xr",
            "extension_allowlist": _EXTENSIONS,
            "show_tracebacks": True,
        },
    }
    template = {"base_template": "lab", "mimetypes": {"text/html": True}}
    texts = {
        "view.ipynb": json.dumps(notebook),
        f"share/kernels/{_KERNEL}/kernel.json": json.dumps(spec),
        "share/voila/templates/mlarray-xr/conf.json": json.dumps(template),
        "share/voila/templates/mlarray-xr/index.html.j2": _TEMPLATE,
        "config/voila.json": json.dumps(settings),
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment of the server: Jupyter keeps everything in the folder."""
    found = os.environ.get("JUPYTER_PATH", "")
    return os.environ | {
        "JUPYTER_PATH": os.pathsep.join(filter(None, (str(folder / "share"), found))),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        # Settings on the user's path would outrank ours: address and token among them.
        "JUPYTER_CONFIG_PATH": str(folder / "config"),
        "JUPYTER_NO_CONFIG": "",
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }


def _free_port(asked: int) -> int:
    """Return a port that nobody listens on now, any for 0: another's server gets no token."""
    with socket.socket() as probe:
        if os.name == "posix":  # elsewhere the option shares a port that somebody listens on
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HERE, asked))
        except OSError as error:
            raise OSError(
                f"the viewer was to listen on port {asked}, which cannot be had: "
                f"{error.strerror}. To fix: another port"
            ) from error
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server listens: asking it for the page would run the notebook."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((_HERE, port), timeout=1):
            return
        time.sleep(0.05)
    said = log.read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    raise OSError(
        f"the server of the viewer did not start on port {port} (exit status {server.poll()}). "
        f"To fix: another port. It said: {said}"
    )


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server; its kernels notice and end, too."""
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
