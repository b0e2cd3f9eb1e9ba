"""`mla serve`: what it prints, how it ends, and what it refuses."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mlarray_xr
from mlarray_xr.cli_serve import add_serve
from mlarray_xr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_S = 60
VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
COMMAND = (
    "import argparse, sys\n"
    "from mlarray_xr.cli_serve import add_serve\n"
    "parser = argparse.ArgumentParser()\n"
    "add_serve(parser.add_subparsers(required=True))\n"
    "options = parser.parse_args()\n"
    "print(*options.run(options).failures, file=sys.stderr, end='')"
)


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_serve(parser.add_subparsers(required=True))
    return parser.parse_args(["serve", *arguments])


@contextlib.contextmanager
def running(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study").mkdir()
    mlarray_xr.to_mla(VALUES, tmp_path / "ct.mla")
    mlarray_xr.to_mla(VALUES, tmp_path / "study" / "a b.mla")
    return tmp_path


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_files_are_served_until_somebody_ends_it(folder: Path, signal_number: int) -> None:
    with running(folder, "ct.mla", "study") as process:
        address = first_line(process)
        assert address.startswith("http://127.0.0.1:")
        assert address.endswith("/")
        with urllib.request.urlopen(f"{address}raw/ct.mla", timeout=PATIENCE_S) as answer:
            assert answer.read() == (folder / "ct.mla").read_bytes()
        shown = [first_line(process) for _ in range(3)]
        assert shown == ["  ct.mla", "  study/a b.mla", "Ctrl-C ends it"]
        process.send_signal(signal_number)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output, errors) == (0, "", "")


def test_it_ends_while_clients_wait(folder: Path) -> None:
    with running(folder, "ct.mla") as process:
        port = int(first_line(process).rstrip("/").rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /raw/ct.mla HT")
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, errors) == (0, "")


def test_programs_are_told_in_json(folder: Path) -> None:
    with running(folder, ".", "--json") as process:
        found = json.loads(first_line(process))
        assert found["files"] == [
            {"name": "ct.mla", "raw": "/raw/ct.mla", "zarr": "/zarr/ct.mla/"},
            {
                "name": "study/a b.mla",
                "raw": "/raw/study/a%20b.mla",
                "zarr": "/zarr/study/a%20b.mla/",
            },
        ]
        url = found["address"].rstrip("/") + found["files"][1]["raw"]
        np.testing.assert_array_equal(mlarray_xr.open_mla(url).values, VALUES)


def test_many_files_are_not_all_printed(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"{number:02}.mla").write_bytes(b"x")
    with running(tmp_path, ".") as process:
        lines = [first_line(process) for _ in range(23)]
    assert lines[20:] == ["  19.mla", "  and 5 more", "Ctrl-C ends it"]


def test_files_that_cannot_be_named_are_told(folder: Path) -> None:
    (folder / "study" / "new\nline.mla").write_bytes(b"x")
    with running(folder, "study", "--json") as process:
        assert [file["name"] for file in json.loads(first_line(process))["files"]] == ["a b.mla"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    path = str(folder / "study" / "new\nline.mla")
    assert errors == (
        f"mla: warning: 1 file is not shown: {path!a}: such names cannot be served. To fix: "
        "rename them\n"
    )


def test_options_are_taken(folder: Path) -> None:
    origin = "https://viewer.example"
    options = ["--encoding", "none", "--no-overviews", "--allow-origin", f"{origin}/"]
    with running(folder, "ct.mla", *options) as process:
        request = urllib.request.Request(
            f"{first_line(process)}zarr/ct.mla/image/c/0/0/0", headers={"Origin": origin}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            assert answer.read() == VALUES.tobytes()
            assert answer.headers["Access-Control-Allow-Origin"] == origin


def test_who_lets_others_in_is_warned(folder: Path) -> None:
    with running(folder, "ct.mla", "--host", "0.0.0.0") as process:
        address = first_line(process)
        assert address.startswith(f"http://{socket.gethostname()}:")
        port = address.rstrip("/").rpartition(":")[2]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE_S) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert errors == (
        "mla: warning: everybody who can reach 0.0.0.0 can read these files: no password\n"
    )


def test_a_port_that_somebody_listens_on_is_one_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = options_of(str(folder / "ct.mla"), "--port", str(port))
        with pytest.raises(OSError, match=rf"port {port} .*To fix: another port") as refused:
            options.run(options)
    assert "\n" not in str(refused.value)


def test_a_host_that_is_none_is_one_line(folder: Path) -> None:
    options = options_of(str(folder / "ct.mla"), "--port", "0", "--host", "nosuchhost.invalid")
    with pytest.raises(OSError, match=r"host 'nosuchhost.invalid' is no .*To fix:") as refused:
        options.run(options)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_served_is_told_before_anything_is_started(tmp_path: Path) -> None:
    options = options_of(str(tmp_path / "none.mla"), "--port", "0")
    with pytest.raises(FileNotFoundError):
        options.run(options)
    (tmp_path / "text.mla").write_text("no frame")
    options = options_of(str(tmp_path / "text.mla"), "--port", "0")
    with pytest.raises(FormatError):
        options.run(options)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["ct.mla", "--port", "70000"],
        ["ct.mla", "--port", "-1"],
        ["ct.mla", "--allow-origin", "viewer.example"],
        ["ct.mla", "--encoding", "pickle"],
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        options_of(*arguments)
    assert "error:" in capsys.readouterr().err
