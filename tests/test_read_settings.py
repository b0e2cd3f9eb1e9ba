"""Settings of remote reads: what is accepted, what changes, and where it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from mlarray_xr.storage import read_settings as module
from mlarray_xr.storage.read_settings import ReadSettings, configure, read_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _settings_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_settings", ReadSettings())


DEFAULTS = {
    "cache_bytes": 256 << 20,
    "decoded_cache_bytes": 64 << 20,
    "cache_dir": None,
    "cache_dir_bytes": 10 << 30,
    "max_concurrency": 64,
    "retries": 3,
    "timeout_s": 60.0,
    "block_reads": "auto",
}
CHANGES: list[tuple[str, Any, Any]] = [
    ("cache_bytes", 5, 5),
    ("cache_bytes", 0, 0),
    ("cache_bytes", "1.5 GB", 1_500_000_000),
    ("decoded_cache_bytes", "2 GiB", 2 << 30),
    ("decoded_cache_bytes", 0, 0),
    ("cache_dir_bytes", "3 MiB", 3 << 20),
    ("max_concurrency", 1, 1),
    ("retries", 0, 0),
    ("timeout_s", 0.5, 0.5),
    ("timeout_s", 5, 5),
    ("block_reads", "blocks", "blocks"),
    ("block_reads", "chunks", "chunks"),
]
REFUSED: list[tuple[str, Any]] = [
    ("cache_bytes", -1),
    ("cache_bytes", "much"),
    ("cache_bytes", "-1 GB"),
    ("decoded_cache_bytes", -1),
    ("decoded_cache_bytes", "none"),
    ("cache_dir_bytes", 0),
    ("cache_dir_bytes", "0 GB"),
    ("max_concurrency", 0),
    ("max_concurrency", 1.5),
    ("max_concurrency", "8"),
    ("max_concurrency", True),
    ("retries", -1),
    ("retries", 2.0),
    ("timeout_s", 0),
    ("timeout_s", -1.0),
    ("timeout_s", float("inf")),
    ("timeout_s", float("nan")),
    ("timeout_s", "60"),
    ("block_reads", "some"),
    ("block_reads", True),
]


def test_at_first_the_defaults_hold() -> None:
    assert asdict(read_settings()) == DEFAULTS


@pytest.mark.parametrize(("name", "value", "expected"), CHANGES)
def test_a_change_leaves_the_rest_as_it_is(name: str, value: Any, expected: Any) -> None:
    configure(retries=7, timeout_s=9.0)
    before = asdict(read_settings())
    changed = configure(**{name: value})
    assert changed is read_settings()
    assert asdict(changed) == before | {name: expected}


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_out_of_range_changes_nothing(name: str, value: Any, tmp_path: Path) -> None:
    before = read_settings()
    others: dict[str, Any] = {"cache_bytes": 1, "retries": 1, "cache_dir": tmp_path}
    with pytest.raises(ValueError, match=r"needed|amount of memory") as caught:
        configure(**others | {name: value})
    assert repr(value) in str(caught.value)
    assert read_settings() is before


def test_without_arguments_nothing_changes() -> None:
    before = configure(retries=5)
    assert configure() == before


def test_the_folder_is_absolute_and_may_be_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configure(cache_dir="sub").cache_dir == os.fspath(tmp_path / "sub")
    assert configure(retries=1).cache_dir == os.fspath(tmp_path / "sub")
    assert not (tmp_path / "sub").exists()
    assert configure(cache_dir=False).cache_dir is None
    assert configure(cache_dir=tmp_path / "a" / ".." / "b").cache_dir == os.fspath(tmp_path / "b")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setenv("USERPROFILE", os.fspath(tmp_path))
    assert configure(cache_dir="~/c").cache_dir == os.fspath(tmp_path / "c")


def test_what_holds_cannot_be_changed_in_place() -> None:
    settings = read_settings()
    with pytest.raises(AttributeError):
        settings.retries = 1  # type: ignore[misc]
    assert replace(settings, retries=1) != settings


FORK = """
import os
from mlarray_xr.storage.read_settings import configure, read_settings
configure(retries=9)
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert read_settings().retries == 9
else:
    kept = read_settings().retries
    configure(retries=1)
    os._exit(0 if kept == 9 else 1)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_keeps_the_settings_and_changes_only_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=30)


def test_another_process_starts_with_the_defaults() -> None:
    configure(retries=9)
    code = "from mlarray_xr.storage.read_settings import *; print(read_settings().retries)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=30)
    assert done.stdout.split() == [b"3"]
