"""Transports against servers on loopback: what they answer, ask for, and raise."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import TYPE_CHECKING, Any

import fsspec
import obstore.store
import pytest

from mlarray_xr.errors import (
    MissingDependencyError,
    SourceChanged,
    SourceDenied,
    SourceError,
    SourceTimeout,
)
from mlarray_xr.storage.remote_source import RemoteAddress, remote_address
from mlarray_xr.storage.retry import RetryLater, with_retries
from mlarray_xr.storage.transport import Piece, open_transport
from mlarray_xr.storage.transport_failures import Asked
from mlarray_xr.storage.transport_fsspec import FsspecTransport
from mlarray_xr.storage.transport_obstore import ObstoreTransport
from tests.range_server import Faults, RangeServer
from tests.s3_server import S3Server, s3_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

DATA = bytes(range(256)) * 1000
SIZE = len(DATA)
THROUGH_FSSPEC = {"size_policy": "head"}  # an option that obstore has nothing for
NAMES = ("x.mla", "a folder/ü+x%41.mla")


@pytest.fixture
def server() -> Iterator[RangeServer]:
    objects = {**dict.fromkeys(NAMES, DATA), "small": DATA[:50], "empty": b""}
    # Names as Azure and Google address them: container or bucket first.
    with RangeServer({**objects, "box/x.mla": DATA, "box/empty": b""}) as running:
        yield running


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server(dict.fromkeys(NAMES, DATA)) as running:
        yield running


def address_of(server: RangeServer, name: str = "x.mla", **options: Any) -> RemoteAddress:
    return remote_address(server.url(name), storage_options=options)


def fetch_of(
    server: RangeServer, options: Mapping[str, Any], *, timeout_s: float = 10.0
) -> Callable[[], Piece]:
    transport = open_transport(address_of(server, **options), timeout_s=timeout_s)
    return lambda: transport.fetch(100, 300)


CLIENTS = pytest.mark.parametrize("options", [{}, THROUGH_FSSPEC], ids=["obstore", "fsspec"])


@CLIENTS
@pytest.mark.parametrize("name", NAMES)
def test_http_answers_exactly_what_was_asked_for(
    server: RangeServer, name: str, options: dict[str, Any]
) -> None:
    transport = open_transport(address_of(server, name, **options))
    for start, stop in [(0, 1), (0, SIZE), (17, 4242), (SIZE - 1, SIZE)]:
        piece = transport.fetch(start, stop)
        assert type(piece.data) is bytes
        assert (piece.start, piece.data) == (start, DATA[start:stop])
    tail = transport.fetch_tail(100)
    assert (tail.start, tail.size, tail.data) == (SIZE - 100, SIZE, DATA[-100:])
    assert tail.etag is not None
    assert transport.fetch(5, 9, etag=tail.etag).data == DATA[5:9]


def test_obstore_makes_one_request_each_and_reports_size_and_etag(server: RangeServer) -> None:
    transport = open_transport(address_of(server))
    server.reset_counts()
    piece, tail = transport.fetch(10, 20), transport.fetch_tail(64)
    assert (piece.size, tail.size) == (SIZE, SIZE)
    assert piece.etag == tail.etag
    assert [one.range for one in server.counts().log] == ["bytes=10-19", "bytes=-64"]


def test_nothing_is_asked_on_opening(server: RangeServer) -> None:
    for options in ({}, THROUGH_FSSPEC):
        open_transport(address_of(server, **options))
    assert server.counts().requests == 0


@CLIENTS
def test_the_end_of_the_object_ends_a_piece(server: RangeServer, options: dict[str, Any]) -> None:
    small = open_transport(address_of(server, "small", **options))
    piece, tail = small.fetch(0, 8192), small.fetch_tail(65536)
    assert (piece.data, piece.size) == (DATA[:50], 50)
    assert (tail.data, tail.start, tail.size) == (DATA[:50], 0, 50)
    with pytest.raises(SourceError, match="ends before them"):
        small.fetch(60, 70)
    with pytest.raises(SourceChanged, match="replaced or truncated"):
        small.fetch(20, 70, etag=tail.etag)
    empty = open_transport(address_of(server, "empty", **options))
    assert empty.fetch_tail(100) == Piece(
        data=b"", start=0, size=0, etag=empty.fetch_tail(100).etag
    )
    with pytest.raises(SourceError, match="ends before them"):
        empty.fetch(0, 100)


def test_strong_validators_are_sent_and_a_difference_is_a_change(server: RangeServer) -> None:
    transport = open_transport(address_of(server))
    etag = transport.fetch_tail(8).etag
    server.reset_counts()
    transport.fetch(0, 8, etag=etag)
    server.put("x.mla", DATA[::-1])
    with pytest.raises(SourceChanged, match=r"x\.mla: bytes 0 to 8 .*412.*To fix"):
        transport.fetch(0, 8, etag=etag)
    assert [one.headers["if-match"] for one in server.counts().log] == [etag, etag]


def test_weak_validators_are_compared_and_never_sent(server: RangeServer) -> None:
    server.etags = "weak"
    transport = open_transport(address_of(server))
    etag = transport.fetch_tail(8).etag
    assert etag is not None
    assert etag.startswith("W/")
    assert transport.fetch(0, 8, etag=etag).data == DATA[:8]
    server.put("x.mla", DATA[::-1])
    with pytest.raises(SourceChanged, match="its validator was"):
        transport.fetch(0, 8, etag=etag)
    assert not any("if-match" in one.headers for one in server.counts().log)


@pytest.mark.parametrize("etag", [None, "*"])
def test_without_validator_nothing_is_compared(server: RangeServer, etag: str | None) -> None:
    server.etags = "none"
    transport = open_transport(address_of(server))
    assert (transport.fetch_tail(8).etag or "").startswith('W/"changed 1')
    server.put("x.mla", DATA[::-1])
    assert transport.fetch(0, 8, etag=etag).data == DATA[::-1][:8]
    assert not any("if-match" in one.headers for one in server.counts().log)


@CLIENTS
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_to_be_tried_again(
    server: RangeServer, options: dict[str, Any], status: int
) -> None:
    fetch = fetch_of(server, options)
    server.faults = Faults(fail_first=1, fail_status=status)
    with pytest.raises(RetryLater, match=rf"bytes 100 to 300 were asked for.*{status}"):
        fetch()
    assert fetch().data == DATA[100:300]
    assert server.counts().requests == 2


def test_fsspec_hands_on_what_the_server_wants_to_wait(server: RangeServer) -> None:
    fetch = fetch_of(server, THROUGH_FSSPEC)
    server.faults = Faults(fail_first=1, retry_after_s=7)
    with pytest.raises(RetryLater) as caught:
        fetch()
    assert caught.value.retry_after_s == 7


@CLIENTS
def test_a_cut_body_is_to_be_tried_again(server: RangeServer, options: dict[str, Any]) -> None:
    fetch = fetch_of(server, options)
    server.faults = Faults(cut_first=1)
    with pytest.raises(RetryLater):
        fetch()
    assert fetch().data == DATA[100:300]


@CLIENTS
def test_a_silent_server_ends_as_timeout(server: RangeServer, options: dict[str, Any]) -> None:
    fetch = fetch_of(server, options, timeout_s=0.3)
    server.faults = Faults(stall_first=2)
    with pytest.raises(SourceTimeout, match=r"no answer came in 0\.3 s \(tried 2 times\)"):
        with_retries(fetch, retries=1, on_retry=lambda: None, sleep=lambda _: None)


@pytest.mark.parametrize("faults", [Faults(wrong_range=True), Faults(short_by=10)])
def test_another_range_than_asked_for_is_no_answer(server: RangeServer, faults: Faults) -> None:
    fetch = fetch_of(server, {})
    server.faults = faults
    with pytest.raises(RetryLater, match="another range"):
        fetch()


@CLIENTS
def test_a_dead_server_is_to_be_tried_again(options: dict[str, Any]) -> None:
    with RangeServer({"x.mla": DATA}) as server:
        fetch = fetch_of(server, options)
    with pytest.raises(RetryLater):
        fetch()


@CLIENTS
@pytest.mark.parametrize("status", [401, 403])
def test_denied(server: RangeServer, options: dict[str, Any], status: int) -> None:
    fetch = fetch_of(server, options)
    server.faults = Faults(deny=status)
    with pytest.raises(SourceDenied, match=rf"denied \({status}.*To fix") as caught:
        fetch()
    assert isinstance(caught.value, PermissionError)


@CLIENTS
def test_missing(server: RangeServer, options: dict[str, Any]) -> None:
    transport = open_transport(address_of(server, "nothing", **options))
    with pytest.raises(FileNotFoundError) as caught:
        transport.fetch(0, 10)
    assert caught.value.filename == server.url("nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        transport.fetch_tail(10)


@CLIENTS
def test_servers_without_ranges_are_refused_before_the_download(
    options: dict[str, Any],
) -> None:
    with RangeServer({"x.mla": bytes(64 << 20)}, faults=Faults(ignore_range=True)) as server:
        fetch = fetch_of(server, options)
        with pytest.raises(SourceError, match=r"no Range support.*To fix") as caught:
            fetch()
        assert not isinstance(caught.value, RetryLater)
        assert server.counts().requests == 1
        assert server.counts().bytes_sent < 16 << 20


@contextmanager
def answering(head: str, body: bytes) -> Iterator[str]:
    """Serve the same bytes to everybody, true to no standard; yields the address."""

    class Answering(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(65536)
            told = f"HTTP/1.1 206 Partial Content\r\n{head}Content-Length: {len(body)}\r\n\r\n"
            with suppress(OSError):
                self.request.sendall(told.encode() + body)

    with ThreadingTCPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/x.mla"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("head", "n_bytes", "found"),
    [
        ("Content-Range: bytes 0-99/64000000\r\n", 64_000_000, "the server sent more"),
        ("Content-Range: bytes 0-99/200\r\n", 99, "cut after 99 bytes"),
        ("Content-Range: bytes 0-99/*\r\n", 100, "CONTENT_RANGE"),
        ("Content-Range: bytes 9-108/200\r\n", 100, "another range"),
        ("", 100, "To fix"),
    ],
)
def test_answers_true_to_no_standard(head: str, n_bytes: int, found: str) -> None:
    with answering(head, bytes(n_bytes)) as url, pytest.raises(SourceError, match=found):
        open_transport(remote_address(url), timeout_s=5).fetch(0, 100)


SIGNED = "?X-Amz-Signature=TOPSECRET&sig=TOPSECRET"


@CLIENTS
@pytest.mark.parametrize(
    "faults",
    [
        Faults(deny=403),
        Faults(fail_first=9),
        Faults(fail_first=9, fail_status=418),
        Faults(cut_every=1),
        Faults(stall_first=9),
        Faults(ignore_range=True),
    ],
)
def test_no_error_shows_a_secret(
    server: RangeServer, options: dict[str, Any], faults: Faults
) -> None:
    url = f"{server.url('x.mla')}{SIGNED}".replace("//", "//user:TOPSECRET@", 1)
    address = remote_address(url, storage_options={"headers": {"X-Token": "TOPSECRET"}, **options})
    server.faults = faults
    transport = open_transport(address, timeout_s=0.3)
    with pytest.raises(SourceError) as caught:
        transport.fetch(0, 100)
    assert "TOPSECRET" not in f"{caught.value!r} {caught.value} {transport!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


class GenericError(Exception):
    """Stands for what obstore raises for most failures."""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("GET s3://b: status code: 400 Bad Request: <Code>ExpiredToken</Code>", SourceDenied),
        ("GET http://h: status code: 503 Busy: see http://169.254.169.254", RetryLater),
        ("PUT http://169.254.169.254/latest/api/token, kind: Connect", SourceDenied),
        ("kind: Connect, invalid peer certificate: UnknownIssuer", SourceError),
        ("kind: Connect, ConnectionReset", RetryLater),
    ],
)
def test_what_obstore_says_in_words_only(text: str, kind: type[Exception]) -> None:
    transport = open_transport(remote_address("https://h/x"))
    assert isinstance(transport, ObstoreTransport)
    asked = Asked(name="https://h/x", what="bytes 0 to 9")
    found = transport._failure(asked, GenericError(text), is_tail=False)
    assert type(found) is kind


def test_queries_users_and_headers_reach_the_server(server: RangeServer) -> None:
    url = f"{server.url('x.mla')}{SIGNED}".replace("//", "//user:pass@", 1)
    address = remote_address(url, storage_options={"headers": {"X-Token": "T"}})
    assert open_transport(address).fetch(0, 9).data == DATA[:9]
    (one,) = server.counts().log
    assert one.query == SIGNED[1:]
    assert one.headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert one.headers["x-token"] == "T"


def test_many_threads_share_a_transport_in_parallel(server: RangeServer) -> None:
    transport = open_transport(address_of(server))
    server.faults = Faults(latency_s=0.3)
    with ThreadPoolExecutor(32) as pool:
        pieces = list(pool.map(lambda at: transport.fetch(at, at + 100), range(32)))
    assert [piece.data for piece in pieces] == [DATA[at : at + 100] for at in range(32)]
    assert server.counts().peak_in_flight == 32


def test_files_of_one_server_share_connections(server: RangeServer) -> None:
    for _ in range(10):
        for name in ("x.mla", "small"):
            open_transport(address_of(server, name)).fetch(0, 10)
    # A connection that is not yet back in the pool makes the client open another one.
    assert server.counts().connections < 10


@pytest.mark.parametrize("name", NAMES)
def test_s3(s3: S3Server, name: str) -> None:
    for options in (s3.storage_options, {**s3.storage_options, "config_kwargs": {}}):
        transport = open_transport(remote_address(s3.url(name), storage_options=options))
        tail = transport.fetch_tail(100)
        assert (tail.data, tail.size) == (DATA[-100:], SIZE)
        assert transport.fetch(7, 77, etag=tail.etag).data == DATA[7:77]


def test_s3_and_its_signed_url_notice_a_replacement(s3: S3Server) -> None:
    s3.put("changing", DATA)
    for address in (
        remote_address(s3.url("changing"), storage_options=s3.storage_options),
        remote_address(s3.signed_url("changing")),
    ):
        transport = open_transport(address)
        s3.put("changing", DATA)
        etag = transport.fetch_tail(8).etag
        s3.put("changing", DATA[::-1])
        with pytest.raises(SourceChanged):
            transport.fetch(0, 8, etag=etag)


def test_missing_in_s3(s3: S3Server) -> None:
    for url in (s3.url("nothing"), "s3://no-such-bucket/x.mla"):
        transport = open_transport(remote_address(url, storage_options=s3.storage_options))
        with pytest.raises(FileNotFoundError):
            transport.fetch_tail(10)


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return monkeypatch


def s3_on(server: RangeServer, **options: Any) -> RemoteAddress:
    endpoint = {"endpoint_url": server.url("")[:-1]}
    return remote_address("s3://box/x.mla", storage_options={**endpoint, **options})


def test_credentials_of_the_environment(
    server: RangeServer, bare_environment: pytest.MonkeyPatch
) -> None:
    bare_environment.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    bare_environment.setenv("AWS_SECRET_ACCESS_KEY", "dummy")
    open_transport(s3_on(server)).fetch(0, 9)
    bare_environment.setenv("AWS_ACCESS_KEY_ID", "CHANGED")
    open_transport(s3_on(server)).fetch(0, 9)
    first, second = (one.headers["authorization"] for one in server.counts().log)
    assert "Credential=FROMENV/" in first
    assert "Credential=CHANGED/" in second


@pytest.mark.parametrize("profile", [None, "work"])
def test_credentials_of_profile_files(
    server: RangeServer,
    bare_environment: pytest.MonkeyPatch,
    tmp_path: Path,
    profile: str | None,
) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text(
        f"[{profile or 'default'}]\naws_access_key_id=PROFILE\naws_secret_access_key=dummy\n"
    )
    open_transport(s3_on(server, profile=profile)).fetch(0, 9)
    (one,) = server.counts().log
    assert "Credential=PROFILE/" in one.headers["authorization"]


def test_no_credentials_anywhere(server: RangeServer, bare_environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceDenied, match=r"no credentials.*anon=True"):
        open_transport(s3_on(server))
    assert open_transport(s3_on(server, anon=True)).fetch(0, 9).data == DATA[:9]
    (one,) = server.counts().log
    assert "authorization" not in one.headers
    bare_environment.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(SourceDenied, match=r"no credentials.*anon=True"):
        open_transport(s3_on(server, region="another"))
    with pytest.raises(MissingDependencyError, match="pip install boto3"):
        open_transport(s3_on(server, profile="p"))


@pytest.mark.usefixtures("bare_environment")
def test_google(server: RangeServer) -> None:
    options = {
        "token": "anon",
        "endpoint_url": server.url("")[:-1],
        "client_options": {"allow_http": True},
    }
    transport = open_transport(remote_address("gs://box/x.mla", storage_options=options))
    assert transport.fetch_tail(64).data == DATA[-64:]
    assert transport.fetch(3, 9).data == DATA[3:9]
    assert server.counts().requests == 2


@pytest.mark.usefixtures("bare_environment")
def test_azure_has_no_suffix_ranges(server: RangeServer) -> None:
    options = {"account_name": "a", "anon": True, "endpoint": server.url("")[:-1]}
    address = remote_address("az://box/x.mla", storage_options=options)
    tail = open_transport(address).fetch_tail(64)
    assert (tail.data, tail.size) == (DATA[-64:], SIZE)
    assert [(one.method, one.range) for one in server.counts().log] == [
        ("HEAD", None),
        ("GET", f"bytes={SIZE - 64}-{SIZE - 1}"),
    ]
    empty = remote_address("az://box/empty", storage_options=options)
    assert open_transport(empty).fetch_tail(64).size == 0


def test_memory_and_filesystems_of_the_caller() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/transport/x.mla", DATA)
    for address in (
        remote_address("memory://transport/x.mla"),
        remote_address("/transport/x.mla", store=memory),
    ):
        transport = open_transport(address)
        tail = transport.fetch_tail(64)
        assert (tail.data, tail.size) == (DATA[-64:], SIZE)
        assert transport.fetch(3, 9).data == DATA[3:9]
    memory.pipe("/transport/x.mla", DATA)
    assert transport.fetch_tail(64).etag != tail.etag
    memory.rm("/transport", recursive=True)
    with pytest.raises(FileNotFoundError):
        transport.fetch(0, 9)


def test_obstore_stores_of_the_caller(tmp_path: Path) -> None:
    (tmp_path / "x.mla").write_bytes(DATA)
    local = obstore.store.LocalStore(tmp_path)
    memory = obstore.store.MemoryStore()
    obstore.put(memory, "x.mla", DATA)
    for store in (local, memory):
        address = RemoteAddress(url="x.mla", store=store, digest="")
        transport = open_transport(address)
        tail = transport.fetch_tail(64)
        assert (tail.data, tail.size) == (DATA[-64:], SIZE)
        assert transport.fetch(3, 9, etag=tail.etag).data == DATA[3:9]
        with pytest.raises(SourceChanged):
            transport.fetch(3, 9, etag='"other"')
    with pytest.raises(FileNotFoundError):
        open_transport(RemoteAddress(url="no", store=memory, digest="")).fetch(0, 1)


@pytest.mark.parametrize(
    ("url", "options", "found"),
    [
        ("nosuchprotocol://a/x", {}, "knows no protocol 'nosuchprotocol'"),
        ("github://x/y", {"org": "o"}, "fsspec refused"),
        ("https://h/x", {"client_options": {"tiemout": "1s"}}, "obstore refused"),
        ("s3://b/x", {"key": "only"}, "obstore refused"),
        ("az://c/x", {"anon": True}, "obstore refused"),
    ],
)
@pytest.mark.usefixtures("bare_environment")
def test_options_that_a_client_refuses(url: str, options: dict[str, Any], found: str) -> None:
    with pytest.raises(SourceError, match=found):
        open_transport(remote_address(url, storage_options=options))


def test_classes_without_free_options_decide_by_their_signature() -> None:
    class Narrow(fsspec.AbstractFileSystem):  # type: ignore[misc]
        def __init__(self, *, folder: str = "") -> None:
            super().__init__()

    fsspec.register_implementation("narrow", Narrow, clobber=True)
    with pytest.raises(SourceError, match=r"unknown key 'flodor'.*folder"):
        open_transport(remote_address("narrow://x", storage_options={"flodor": "a"}))
    assert isinstance(
        open_transport(remote_address("narrow://x", storage_options={"folder": "a"})),
        FsspecTransport,
    )


def test_obstore_in_the_guise_of_fsspec_is_refused() -> None:
    from obstore.fsspec import FsspecStore

    with pytest.raises(SourceError, match="store= is a FsspecStore"):
        open_transport(RemoteAddress(url="b/x.mla", store=FsspecStore("s3"), digest=""))


@pytest.mark.parametrize(
    ("url", "module"),
    [("https://only-once/x", "obstore.store"), ("memory://x", "fsspec")],
)
def test_missing_clients_are_named(url: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "mlarray-xr\[remote\]"'):
        open_transport(remote_address(url))


def test_missing_filesystems_are_named() -> None:
    if "gcsfs" in sys.modules:
        pytest.skip("gcsfs is there")
    address = remote_address("gs://b/x", storage_options={"project": "p"})
    with pytest.raises(MissingDependencyError, match=r"gcsfs.*'spawn' or 'forkserver'"):
        open_transport(address)


FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def answer_in_child(address: RemoteAddress, answers: Any) -> None:
    """Say what a transport of this process reads, or why it does not."""
    try:
        transport = open_transport(pickle.loads(pickle.dumps(address)), timeout_s=5)
        tail = transport.fetch_tail(64)
        answers.send((type(transport).__name__, transport.fetch(3, 9).data, tail.data))
    except Exception as error:
        answers.send((type(error).__name__, str(error)))


def in_forked_child(target: Callable[..., None], *arguments: Any) -> Any:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=target, args=(*arguments, there))
    with warnings.catch_warnings():
        # Python 3.12 warns of threads beside a fork: what is tested here.
        warnings.simplefilter("ignore", DeprecationWarning)
        child.start()
    try:
        assert here.poll(30), "the child hangs"
        return here.recv()
    finally:
        child.kill()
        child.join()


@FORK
def test_forked_children_read_through_fsspec(server: RangeServer, s3: S3Server) -> None:
    http = address_of(server)
    assert isinstance(open_transport(http), ObstoreTransport)
    open_transport(http).fetch(0, 9)
    expected = ("FsspecTransport", DATA[3:9], DATA[-64:])
    assert in_forked_child(answer_in_child, http) == expected
    pytest.importorskip("s3fs")
    for options in (
        s3.storage_options,
        {
            "access_key_id": "key",
            "secret_access_key": "secret",
            "endpoint": s3.endpoint_url,
            "region": "eu-central-1",
        },
    ):
        address = remote_address(s3.url("x.mla"), storage_options=options)
        assert in_forked_child(answer_in_child, address) == expected


@FORK
def test_forked_children_renew_filesystems_of_the_caller(s3: S3Server) -> None:
    pytest.importorskip("s3fs")
    filesystem = fsspec.filesystem("s3", **s3.storage_options)
    address = remote_address("images/x.mla", store=filesystem)
    open_transport(address).fetch(0, 9)
    expected = ("FsspecTransport", DATA[3:9], DATA[-64:])
    assert in_forked_child(answer_in_child, address) == expected


@FORK
def test_forked_children_refuse_instead_of_hanging(server: RangeServer) -> None:
    transport = open_transport(address_of(server))
    transport.fetch(0, 9)
    kind, text = in_forked_child(fetch_in_child, transport)
    assert (kind, "To fix" in text) == ("SourceError", True)
    store = obstore.store.HTTPStore(server.url(""), client_options={"allow_http": True})
    address = remote_address("x.mla", store=store)
    kind, text = in_forked_child(answer_in_child, address)
    assert kind == "SourceError"
    assert "'spawn' or 'forkserver'" in text


def fetch_in_child(transport: ObstoreTransport, answers: Any) -> None:
    """Use a transport of the parent."""
    try:
        answers.send(("data", transport.fetch(0, 9).data))
    except Exception as error:
        answers.send((type(error).__name__, str(error)))


@FORK
def test_a_fork_before_the_first_use_keeps_obstore(server: RangeServer) -> None:
    script = f"""
import os, sys
from mlarray_xr.storage.remote_source import remote_address
from mlarray_xr.storage.transport import open_transport
assert not {{"obstore", "fsspec"}} & set(sys.modules), "imported too early"
child = os.fork()
transport = open_transport(remote_address({server.url("x.mla")!r}))
assert type(transport).__name__ == "ObstoreTransport"
assert len(transport.fetch(0, 9).data) == 9
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
