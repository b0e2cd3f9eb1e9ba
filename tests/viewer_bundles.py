"""Bundles of viewers from the npm registry: made once, served to a browser.

What they are made of is in ``browser_viewers/``; they are kept in ``.viewers/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

from tests.jupyterlab import browser_path

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UnreachableRegistryError", "serve_bundles", "why_not"]

_SOURCES = Path(__file__).parent / "browser_viewers"
_KEPT = Path(__file__).parents[1] / ".viewers"

_INSTALL = ("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
"""No package needs a script of its own to be run."""
_SOON_TOLD = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000")
"""Without a network the answer should not take minutes."""

_PATIENCE_S = 300
"""How long npm may take on a slow line."""

_UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT", "ENETUNREACH", "ENOTCACHED")
"""What npm calls a registry that cannot be reached."""


class UnreachableRegistryError(Exception):
    """The npm registry cannot be reached: bundles cannot be made now."""


def why_not() -> str | None:
    """Return why viewers cannot be bundled and opened here, None when they can."""
    import importlib.util

    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    if browser_path() is None:
        return "no Chromium is installed"
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    return f"{missing[0]} is not installed: apt-get install nodejs npm" if missing else None


def _bundle() -> Path:
    """Return the folder with the pages of the viewers, made when it is not there.

    Raises
    ------
    UnreachableRegistryError
        When their packages cannot be loaded now.
    """
    sources = sorted(path for path in _SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    made = _KEPT / digest[:16]
    if made.is_dir():
        return made
    _KEPT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_KEPT) as name:
        folder = Path(name)
        for path in sources:
            shutil.copy(path, folder)
        _run(*_INSTALL, *_SOON_TOLD, folder=folder)
        _run("node", "build.js", "pages", folder=folder)
        try:
            os.replace(folder / "pages", made)
        except OSError:
            if not made.is_dir():  # otherwise another process was faster
                raise
    return made


def _run(*command: str, folder: Path) -> None:
    """Run a command in a folder."""
    ended = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
    if ended.returncode:
        for word in _UNREACHABLE:
            if word in ended.stderr:
                raise UnreachableRegistryError(f"npm reaches no registry: {word}")
        raise RuntimeError(f"{command}: exit status {ended.returncode}\n{ended.stderr[:4000]}")


class _Quiet(SimpleHTTPRequestHandler):
    """Serves files without telling."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve_bundles() -> Iterator[str]:
    """Serve the pages of the viewers from a port of their own; yield the address."""
    handler = partial(_Quiet, directory=str(_bundle()))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
