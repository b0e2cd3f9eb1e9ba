"""Addresses as users give them: which are local, which remote, and which are refused."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlarray_xr.errors import SourceError
from mlarray_xr.storage import address as module
from mlarray_xr.storage.address import is_url, open_address
from mlarray_xr.storage.remote_source import RemoteAddress, RemoteSource
from mlarray_xr.storage.source import BytesSource, LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable

URLS = [
    "s3://bucket/a.mla", "S3://bucket/a.mla", "gs://b/a", "az://b/a", "abfs://b/a",
    "https://host/a.mla?sig=1", "http://127.0.0.1:80/a", "memory://a", "simplecache::s3://b/a",
    "zip://a.mla::file:///tmp/b.zip", "s3+x.y-z://b/a",
]  # fmt: skip
NO_URLS: list[object] = [
    "a.mla", "/tmp/a.mla", "~/a.mla", "s3:/bucket/a", "://a", "1s3://a", "./s3://a", "", "C:/a",
    "C://a", "C:\\a", "file:///a", "FILE:///a", "local:///a", b"s3://a", Path("s3://a"), None,
]  # fmt: skip


@pytest.mark.parametrize("address", URLS)
def test_urls(address: str) -> None:
    assert is_url(address)


@pytest.mark.parametrize("address", NO_URLS)
def test_everything_else_is_no_url(address: object) -> None:
    assert not is_url(address)


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[RemoteAddress]:
    """Instead of asking servers, note what would be asked."""
    noted: list[RemoteAddress] = []

    def pin(address: RemoteAddress) -> RemoteSource:
        noted.append(address)
        return RemoteSource(address=address, size=1, etag=None)

    monkeypatch.setattr(module, "pin_remote", pin)
    return noted


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_pinned_with_its_options(url: str, pinned: list[RemoteAddress]) -> None:
    found = open_address(url, storage_options={"anon": True})
    assert isinstance(found, RemoteSource)
    assert [found.address] == pinned
    assert (found.address.url, found.address.options) == (url, (("anon", True),))


def test_with_a_store_the_address_is_a_path_in_it(pinned: list[RemoteAddress]) -> None:
    open_address("deep/a.mla", store=Path())
    open_address("file:///a", store=Path())
    assert [(a.url, a.store) for a in pinned] == [("deep/a.mla", Path()), ("file:///a", Path())]


@pytest.mark.parametrize("address", [Path("a.mla"), b"bytes", io.BytesIO(b"x")])
def test_a_store_needs_a_path(address: object, pinned: list[RemoteAddress]) -> None:
    with pytest.raises(TypeError, match="store= needs a path inside it, got"):
        open_address(address, store=Path())
    assert pinned == []


def test_a_store_and_options_are_too_much(pinned: list[RemoteAddress]) -> None:
    with pytest.raises(SourceError, match="both given"):
        open_address("a.mla", store=Path(), storage_options={"anon": True})
    assert pinned == []


SPELLINGS: dict[str, Callable[[Path], Any]] = {
    "text": os.fspath,
    "path": lambda path: path,
    "relative": lambda path: path.name,
    "file url": lambda path: f"file://{path}",
    "file url of this host": lambda path: f"FILE://localhost{path}",
    "local url": lambda path: f"local://{path}",
    "quoted": lambda path: path.as_uri(),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_local_path(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned: list[RemoteAddress]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "ä b+c.mla"
    path.write_bytes(b"content")
    found = open_address(SPELLINGS[spelling](path))
    assert isinstance(found, LocalSource)
    assert (found.path, found.size) == (os.fspath(path), 7)
    assert pinned == []


@pytest.mark.parametrize("address", [b"content", bytearray(b"content"), io.BytesIO(b"content")])
def test_files_in_memory(address: object) -> None:
    found = open_address(address)
    assert isinstance(found, BytesSource)
    assert found.data == b"content"


@pytest.mark.parametrize("address", ["a.mla", Path("a.mla"), "file:///a.mla", b"\x9e", "C://a"])
def test_options_of_what_is_not_remote_are_refused(
    address: object, pinned: list[RemoteAddress]
) -> None:
    with pytest.raises(SourceError, match=r"\['secret'\] were given for a file that is not remote"):
        open_address(address, storage_options={"secret": "hunter2"})
    assert pinned == []


def test_empty_options_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.mla").write_bytes(b"x")
    assert isinstance(open_address(tmp_path / "a.mla", storage_options={}), LocalSource)


def test_files_of_other_hosts_are_refused() -> None:
    with pytest.raises(SourceError, match="names the host 'server'"):
        open_address("file://server/share/a.mla")


@pytest.mark.parametrize("address", ["gone.mla", "file:///gone/a.mla"])
def test_a_missing_file(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_address(address)


@pytest.mark.parametrize("address", [None, 5, ["a.mla"], io.StringIO("text")])
def test_what_is_no_address(address: object) -> None:
    with pytest.raises(TypeError):
        open_address(address)
