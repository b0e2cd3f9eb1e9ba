"""What an HTTP server of byte ranges answers, well or with faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Literal
from urllib.parse import unquote

ETags = Literal["strong", "weak", "none"]

NOTHING = memoryview(b"")


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong; requests and bodies are counted from when the faults are set."""

    latency_s: float = 0.0
    """Wait before every answer, in seconds."""
    connection_latency_s: float = 0.0
    """Wait before the first answer on every new connection, in seconds."""
    bytes_per_second: float | None = None
    """Of the bodies of one connection."""
    ignore_range: bool = False
    """Answer 200 with the whole object, as a server without ranges does."""
    ignore_suffix: bool = False
    """Do so for `bytes=-n` alone."""
    deny: int = 0
    """Status (401 or 403) of every answer, 0 for none."""
    fail_first: int = 0
    """So many requests are answered with `fail_status`."""
    fail_every: int = 0
    """Every so many requests, one is; 1 is every one."""
    fail_status: int = 503
    retry_after_s: float | None = None
    """Sent as Retry-After with `fail_status`."""
    stall_first: int = 0
    """So many requests get no answer, until the client or the server closes."""
    cut_first: int = 0
    """So many bodies end after half of their bytes, and the connection with them."""
    cut_every: int = 0
    """Every so many bodies, one does."""
    corrupt: int | None = None
    """Offset in the object of a byte sent inverted."""
    wrong_range: bool = False
    """Answer the range one byte off the one asked for, and say so in Content-Range."""
    short_by: int = 0
    """Answer so many bytes fewer than asked for, and say so in Content-Range."""
    replace_after: int | None = None
    """So many requests see the object as it was, later ones see `replacement`."""
    replacement: bytes | None = None
    """By default the inverted bytes."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What is served under a name."""

    data: bytes
    tag: str
    """Of its ETag, without quotes."""
    modified: str
    """Last-Modified."""


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request; header names in lower case, the body is never read."""

    method: str
    name: str
    query: str
    headers: dict[str, str]
    keep_alive: bool

    @classmethod
    def parse(cls, head: bytes) -> Request | None:
        """Read the head of a request; None where it is not one."""
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            return None
        method, target, version = words
        path, _, query = target.partition("?")
        pairs = (line.partition(":") for line in lines if line)
        headers = {key.strip().lower(): value.strip() for key, _, value in pairs}
        closing = headers.get("connection", "").lower() == "close" or version != "HTTP/1.1"
        return cls(method, unquote(path.removeprefix("/")), query, headers, not closing)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back, before any cut."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: memoryview = NOTHING

    def head(self, *, keep_alive: bool) -> bytes:
        """Return the status line and the headers."""
        headers = {
            "Date": formatdate(usegmt=True),
            "Content-Length": str(len(self.body)),
            "Connection": "keep-alive" if keep_alive else "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return (start, stop) of a Range header in `size` bytes; (size, size) where there are none.

    None is what RFC 9110 lets a server ignore: another unit, several ranges, no numbers.
    """
    unit, _, numbers = text.partition("=")
    first, dash, last = numbers.partition("-")
    if unit != "bytes" or not dash or not (first + last).isdigit():
        return None
    if not first:
        return max(0, size - int(last)), size
    start, stop = int(first), int(last) + 1 if last else size
    if last and stop <= start:
        return None
    return (start, min(stop, size)) if start < size else (size, size)


def _selected(asked: str | None, size: int, faults: Faults) -> tuple[int, int] | None:
    """Return the bytes to answer, None for the whole object with status 200."""
    ignored = faults.ignore_range or (faults.ignore_suffix and (asked or "").startswith("bytes=-"))
    part = None if asked is None or ignored else parse_range(asked, size)
    if part is None or part[0] >= part[1]:
        return part
    start, stop = part
    if faults.wrong_range:
        shift = -1 if start else 1
        start, stop = start + shift, min(stop + shift, size)
    return start, stop - min(faults.short_by, stop - start - 1)


def _corrupted(body: memoryview, start: int, offset: int | None) -> memoryview:
    """Return a body that begins at `start` of its object, the byte at `offset` inverted."""
    if offset is None or not start <= offset < start + len(body):
        return body
    flipped = bytearray(body)
    flipped[offset - start] ^= 0xFF
    return memoryview(flipped)


def answer(request: Request, found: StoredObject | None, etags: ETags, faults: Faults) -> Answer:
    """Return the answer about an object, where nothing fails."""
    if request.method not in {"GET", "HEAD"}:
        return Answer(405, {"Allow": "GET, HEAD"})
    if found is None:
        return Answer(404)
    tags = {"strong": f'"{found.tag}"', "weak": f'W/"{found.tag}"', "none": ""}
    wanted = [tag.strip() for tag in request.headers.get("if-match", "*").split(",")]
    # RFC 9110 13.1.1: a weak tag never satisfies If-Match.
    if "*" not in wanted and (etags != "strong" or tags["strong"] not in wanted):
        return Answer(412)
    headers = {"Content-Type": "application/octet-stream", "Last-Modified": found.modified}
    if not faults.ignore_range:
        headers["Accept-Ranges"] = "bytes"
    if etags != "none":
        headers["ETag"] = tags[etags]
    size = len(found.data)
    # Ranges are of GET alone (RFC 9110 14.2).
    asked = request.headers.get("range") if request.method == "GET" else None
    part = _selected(asked, size, faults)
    if part is None:
        return Answer(200, headers, _corrupted(memoryview(found.data), 0, faults.corrupt))
    start, stop = part
    if start >= stop:
        return Answer(416, {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    body = memoryview(found.data)[start:stop]
    return Answer(206, headers, _corrupted(body, start, faults.corrupt))


def is_hit(number: int, first: int, every: int) -> bool:
    """Say whether a fault hits the `number`-th request or body, counted from 1."""
    return number <= first or (every > 0 and number % every == 0)
