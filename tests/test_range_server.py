"""The server of byte ranges that other tests measure with: its answers, faults and counts."""

from __future__ import annotations

import gc
import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.range_server import Faults, RangeServer

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = bytes(range(256)) * 4
NAME = "folder/a b.mla"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer({NAME: DATA}) as running:
        yield running


def ask(
    server: RangeServer,
    part: str | None = None,
    *,
    name: str = NAME,
    method: str = "GET",
    if_match: str | None = None,
    connection: http.client.HTTPConnection | None = None,
) -> Reply:
    """Send one request, on a connection of its own unless one is given."""
    headers = {"Range": f"bytes={part}"} if part is not None else {}
    if if_match is not None:
        headers["If-Match"] = if_match
    own = connection or connect(server)
    try:
        own.request(method, server.url(name).split(str(server.port))[1], headers=headers)
        answer = own.getresponse()
        return Reply(status=answer.status, headers=answer.headers, body=answer.read())
    finally:
        if connection is None:
            own.close()


def connect(server: RangeServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)


@pytest.mark.parametrize(
    ("part", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("10-19", 10, 20),
        ("1000-5000", 1000, 1024),
        ("1000-", 1000, 1024),
        ("-7", 1017, 1024),
        ("-5000", 0, 1024),
        ("0-", 0, 1024),
    ],
)
def test_a_range_answers_its_bytes_and_says_where_they_are(
    server: RangeServer, part: str, start: int, stop: int
) -> None:
    reply = ask(server, part)
    assert (reply.status, reply.body) == (206, DATA[start:stop])
    assert reply.headers["Content-Range"] == f"bytes {start}-{stop - 1}/1024"
    assert reply.headers["Content-Length"] == str(stop - start)
    assert reply.headers["Accept-Ranges"] == "bytes"
    assert server.counts().ranges == [("GET", NAME, f"bytes={part}", 206)]
    assert server.counts().bytes_sent == stop - start


@pytest.mark.parametrize("part", ["1024-", "5000-6000", "-0"])
def test_a_range_outside_the_object_is_416(server: RangeServer, part: str) -> None:
    reply = ask(server, part)
    assert (reply.status, reply.body) == (416, b"")
    assert reply.headers["Content-Range"] == "bytes */1024"


@pytest.mark.parametrize("part", [None, "", "-", "5", "9-3", "0-1,4-5", "x-y"])
def test_no_range_or_one_not_understood_is_the_whole_object(
    server: RangeServer, part: str | None
) -> None:
    reply = ask(server, part)
    assert (reply.status, reply.body) == (200, DATA)
    assert "Content-Range" not in reply.headers


def test_head_says_the_size_and_sends_no_body(server: RangeServer) -> None:
    reply = ask(server, "0-3", method="HEAD")
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["Content-Length"] == "1024"
    assert server.counts().bytes_sent == 0


def test_missing_objects_and_other_methods_are_refused(server: RangeServer) -> None:
    assert ask(server, name="b.mla").status == 404
    assert ask(server, method="DELETE").status == 405
    server.delete(NAME)
    assert ask(server).status == 404


def test_if_match_holds_for_the_same_strong_tag_alone(server: RangeServer) -> None:
    tag = ask(server).headers["ETag"]
    assert tag.startswith('"')
    assert ask(server, "0-3", if_match=tag).status == 206
    assert ask(server, "0-3", if_match="*").status == 206
    assert ask(server, "0-3", if_match=f'"other", {tag}').status == 206
    assert ask(server, "0-3", if_match='"other"').status == 412
    assert ask(server, "0-3", if_match=f"W/{tag}").status == 412
    server.put(NAME, DATA[::-1])
    assert ask(server, "0-3", if_match=tag).status == 412
    assert server.counts().log[-1].headers["if-match"] == tag


def test_weak_tags_never_match_and_no_tags_can_be_had() -> None:
    with RangeServer({NAME: DATA}, etags="weak") as server:
        tag = ask(server).headers["ETag"]
        assert tag.startswith('W/"')
        assert ask(server, "0-3", if_match=tag).status == 412
        server.etags = "none"
        assert "ETag" not in ask(server).headers
        assert ask(server, "0-3", if_match=tag).status == 412


def test_a_truncated_object_has_another_size_tag_and_date(server: RangeServer) -> None:
    before = ask(server, method="HEAD").headers
    server.truncate(NAME, 100)
    after = ask(server)
    assert after.body == server.data(NAME) == DATA[:100]
    assert after.headers["ETag"] != before["ETag"]
    assert after.headers["Last-Modified"] != before["Last-Modified"]


def test_connections_are_kept_and_counted(server: RangeServer) -> None:
    with closing(connect(server)) as connection:
        for start in range(5):
            reply = ask(server, f"{start}-{start}", connection=connection)
            assert reply.body == DATA[start : start + 1]
    ask(server)
    counts = server.counts()
    assert (counts.connections, counts.requests, counts.peak_in_flight) == (2, 6, 1)
    server.reset_counts()
    assert (server.counts().requests, server.counts().log) == (0, ())


def test_what_is_not_http_is_400(server: RangeServer) -> None:
    with closing(connect(server)) as connection:
        connection.connect()
        connection.sock.sendall(b"nonsense\r\n\r\n")
        assert connection.sock.recv(100).startswith(b"HTTP/1.1 400 ")


def test_requests_wait_for_the_latency_together(server: RangeServer) -> None:
    server.faults = Faults(latency_s=0.2, connection_latency_s=0.1)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda start: ask(server, f"{start}-"), range(8)))
    assert time.monotonic() - began >= 0.3
    assert [reply.body for reply in replies] == [DATA[start:] for start in range(8)]
    assert server.counts().peak_in_flight == 8


def test_a_body_takes_its_time(server: RangeServer) -> None:
    server.faults = Faults(bytes_per_second=10_000)
    began = time.monotonic()
    assert ask(server).body == DATA
    assert time.monotonic() - began >= 0.1


def test_failures_hit_the_first_and_every_nth_request(server: RangeServer) -> None:
    server.faults = Faults(fail_first=1, fail_every=3, fail_status=500, retry_after_s=2)
    replies = [ask(server, "0-3") for _ in range(6)]
    assert [reply.status for reply in replies] == [500, 206, 500, 206, 206, 500]
    assert replies[0].headers["Retry-After"] == "2"
    server.faults = Faults(fail_first=1)
    assert [ask(server, "0-3").status for _ in range(2)] == [503, 206]


@pytest.mark.parametrize("status", [401, 403])
def test_denied_requests(server: RangeServer, status: int) -> None:
    server.faults = Faults(deny=status)
    assert [ask(server, "0-3").status, ask(server, method="HEAD").status] == [status, status]


def test_bodies_are_cut_in_the_middle(server: RangeServer) -> None:
    server.faults = Faults(cut_first=1, cut_every=3)
    for is_cut in (True, False, True, False):
        if is_cut:
            with pytest.raises(http.client.IncompleteRead) as cut:
                ask(server, "0-99")
            assert cut.value.partial == DATA[:50]
        else:
            assert ask(server, "0-99").body == DATA[:100]
    assert server.counts().bytes_sent == 300


def test_one_byte_of_the_object_is_corrupt(server: RangeServer) -> None:
    server.faults = Faults(corrupt=20)
    assert ask(server, "19-21").body == bytes([19, 20 ^ 0xFF, 21])
    assert ask(server, "0-19").body == DATA[:20]
    assert ask(server).body[20] == 20 ^ 0xFF


def test_wrong_and_short_ranges_say_so(server: RangeServer) -> None:
    server.faults = Faults(wrong_range=True)
    reply = ask(server, "10-19")
    assert (reply.body, reply.headers["Content-Range"]) == (DATA[9:19], "bytes 9-18/1024")
    assert ask(server, "0-9").body == DATA[1:11]
    server.faults = Faults(short_by=3)
    reply = ask(server, "10-19")
    assert (reply.body, reply.headers["Content-Range"]) == (DATA[10:17], "bytes 10-16/1024")


def test_a_server_without_ranges_counts_what_it_sent() -> None:
    big = bytes(64 << 20)
    with RangeServer({NAME: big}, faults=Faults(ignore_range=True)) as server:
        with closing(connect(server)) as connection:
            connection.request("GET", "/folder/a%20b.mla", headers={"Range": "bytes=0-3"})
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Accept-Ranges"]) == (200, None)
            answer.close()
        assert server.counts().bytes_sent < len(big) // 2


def test_a_server_without_suffixes_has_other_ranges(server: RangeServer) -> None:
    server.faults = Faults(ignore_suffix=True)
    assert ask(server, "0-3").status == 206
    assert ask(server, "-3").status == 200
    assert server.counts().bytes_sent == 4 + len(DATA)


def test_a_stalled_request_is_never_answered(server: RangeServer) -> None:
    server.faults = Faults(stall_first=1)
    with closing(connect(server)) as connection:
        connection.timeout = 0.2
        with pytest.raises(TimeoutError):
            ask(server, "0-3", connection=connection)
    assert ask(server, "0-3").status == 206
    assert [status for *_, status in server.counts().ranges] == [0, 206]


def test_an_object_is_replaced_under_its_readers(server: RangeServer) -> None:
    server.faults = Faults(replace_after=2)
    replies = [ask(server, "1-2") for _ in range(4)]
    assert [reply.body for reply in replies] == [b"\1\2"] * 2 + [b"\xfe\xfd"] * 2
    tags = [reply.headers["ETag"] for reply in replies]
    assert tags[0] == tags[1] != tags[2] == tags[3]
    server.faults = Faults(replace_after=0, replacement=b"new")
    assert ask(server).body == b"new"


def test_the_query_is_no_part_of_the_name(server: RangeServer) -> None:
    with closing(connect(server)) as connection:
        connection.request("GET", "/folder/a%20b.mla?signature=1")
        assert connection.getresponse().read() == DATA
    assert server.counts().log[0].query == "signature=1"


def test_it_stops_with_clients_connected_and_requests_unanswered() -> None:
    threads = threading.active_count()
    with RangeServer({NAME: DATA}, faults=Faults(latency_s=60)) as server:
        idle, waiting = connect(server), connect(server)
        idle.connect()
        waiting.request("GET", "/")
        while not server.counts().requests:
            time.sleep(0.001)
    with pytest.raises(ConnectionError):
        waiting.getresponse()
    for connection in (idle, waiting):
        connection.close()
    gc.collect()
    assert threading.active_count() == threads
