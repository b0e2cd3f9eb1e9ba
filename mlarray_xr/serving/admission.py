"""Who is answered: host names against DNS rebinding, and the origins whose pages may read."""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mlarray_xr.serving.answer import Answer, text_answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.serving.request import Request

__all__ = ["ANY_ORIGIN", "Admission", "is_loopback", "parse_origin"]

ANY_ORIGIN = "*"

_METHODS = "GET, HEAD, OPTIONS"
_LOOPBACK_NAME = "localhost"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/\s,]+)(?::[0-9]{0,5})?")
_PORTS = {"http": 80, "https": 443}
_MOST_HEAD_BYTES = 16 << 10
_MOST_PATH_BYTES = 8 << 10
_ALLOWED_HEADERS = (
    "Range, If-Match, If-None-Match, If-Range, If-Modified-Since, If-Unmodified-Since, "
    "Cache-Control, Pragma"
)
_EXPOSED_HEADERS = "Accept-Ranges, Content-Length, Content-Range, ETag, Last-Modified"
_PREFLIGHT_AGE_S = "600"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """Which requests are answered, and which pages may read the answers.

    A page of another site may send a browser here, but the browser gives it nothing to read unless
    its origin is allowed: those of this machine always are. A site that lets its own name point to
    this machine sends that name as the host, and is refused.

    Examples
    --------
    >>> here = Admission(bound_host="127.0.0.1")
    >>> here.knows_host("localhost:8765"), here.knows_host("evil.example:8765")
    (True, False)
    >>> here.allows("http://localhost:3000"), here.allows("https://evil.example")
    (True, False)
    """

    bound_host: str
    """What the server listens on."""
    origins: frozenset[str] = frozenset()
    """Allowed besides those of this machine, as `parse_origin` returns them; ``*`` is any."""
    machine_names: frozenset[str] = field(init=False)
    """What others may call this machine, where the server listens on all of its addresses."""

    def __post_init__(self) -> None:
        """Ask once for the names: a name server may have to be asked."""
        names = _machine_names() if _is_unspecified(self.bound_host) else frozenset()
        object.__setattr__(self, "machine_names", names)

    def refusal(self, request: Request) -> Answer | None:
        """Return why a request is not answered; None when it is."""
        if len(request.raw_path) > _MOST_PATH_BYTES:
            return text_answer(414, "the address is too long")
        if request.n_bytes > _MOST_HEAD_BYTES:
            return text_answer(431, "the headers are too large")
        if not self.knows_host(request.headers.get("host", "")):
            return text_answer(421, "this server has another name")
        if request.method not in _METHODS.split(", "):
            refused = {"Allow": _METHODS, "Connection": "close"}
            return text_answer(405, "files can be read, nothing else", headers=refused)
        if request.has_body:
            return text_answer(413, "no content is taken", headers={"Connection": "close"})
        if request.method == "OPTIONS":
            return self._preflight(request)
        return None

    def knows_host(self, text: str) -> bool:
        """Tell whether a Host header names this server.

        A name that an attacker owns can point here, an address cannot: where the server listens on
        all addresses, any address is right, and the machine's own names.
        """
        found = _HOST.fullmatch(text)
        if found is None:
            return False
        host = found.group(1).strip("[]").lower()
        # Clients keep the scope of an address to themselves (RFC 6874).
        if host == self.bound_host.partition("%")[0].lower() or is_loopback(host):
            return True
        if not _is_unspecified(self.bound_host):
            return False
        return _address(host) is not None or host in self.machine_names

    def allows(self, origin: str) -> bool:
        """Tell whether pages of an origin may read."""
        if ANY_ORIGIN in self.origins or origin in self.origins:
            return True
        try:
            host = urlsplit(parse_origin(origin)).hostname or ""
        except ValueError:
            return False
        return is_loopback(host)

    def headers(self, request: Request) -> dict[str, str]:
        """Return what every answer to a request says."""
        headers = {
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Vary": "Origin",
        }
        origin = request.headers.get("origin")
        if origin is not None and self.allows(origin):
            headers["Access-Control-Allow-Origin"] = (
                ANY_ORIGIN if ANY_ORIGIN in self.origins else origin
            )
            headers["Access-Control-Expose-Headers"] = _EXPOSED_HEADERS
            # Pages of another origin that may read need not be of the same site.
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        return headers

    def _preflight(self, request: Request) -> Answer:
        """Answer what a browser asks before it lets a page ask."""
        asked: Mapping[str, str] = request.headers
        headers = {"Allow": _METHODS}
        if "origin" not in asked or "access-control-request-method" not in asked:
            return Answer(status=204, headers=headers)
        if not self.allows(asked["origin"]):
            return text_answer(403, "pages of this origin may not read here")
        headers |= {
            "Access-Control-Allow-Methods": _METHODS,
            "Access-Control-Allow-Headers": _ALLOWED_HEADERS,
            "Access-Control-Max-Age": _PREFLIGHT_AGE_S,
        }
        if asked.get("access-control-request-private-network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return Answer(status=204, headers=headers)


def parse_origin(text: str) -> str:
    """Return an origin as browsers spell it; ``*`` stands for any.

    Raises
    ------
    ValueError
        When it is none.

    Examples
    --------
    >>> parse_origin("https://Neuroglancer-Demo.appspot.com:443/")
    'https://neuroglancer-demo.appspot.com'
    """
    if text == ANY_ORIGIN:
        return text
    parts = urlsplit(text)
    is_bare = parts.path in ("", "/") and not (parts.query or parts.fragment)
    has_host = parts.hostname is not None and "@" not in parts.netloc and text.isprintable()
    if not is_bare or not has_host or parts.scheme not in ("http", "https") or " " in text:
        msg = f"{text!r} is no origin. To fix: https://host or http://host:port, or * for any"
        raise ValueError(msg)
    port = parts.port  # raises when it is no number
    shown = "" if port in (None, _PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{_browsers_host(parts.hostname or '')}{shown}"


def _browsers_host(host: str) -> str:
    """Return a host as browsers write it: addresses in short, names in ASCII (RFC 3492).

    Raises
    ------
    ValueError
        When a name cannot be written so.
    """
    address = _address(host)
    if address is not None:
        return f"[{address.compressed}]" if address.version == 6 else address.compressed
    # Letter by letter, as browsers do: Python's own encoding makes "ss" of a sharp s.
    plain = unicodedata.normalize("NFKC", "".join(letter.lower() for letter in host))
    labels = (
        label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"
        for label in plain.split(".")
    )
    return ".".join(labels)


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine for itself alone.

    Examples
    --------
    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1")
    (True, True, True)
    >>> is_loopback("0.0.0.0"), is_loopback("127.0.0.1.evil.example")
    (False, False)
    """
    address = _address(host)
    return host.lower() == _LOOPBACK_NAME or (address is not None and address.is_loopback)


def _is_unspecified(host: str) -> bool:
    """Tell whether a host stands for all addresses of a machine."""
    address = _address(host)
    return address is not None and address.is_unspecified


def _machine_names() -> frozenset[str]:
    """Return what this machine is called: by itself, by name servers, and in its own network."""
    name = socket.gethostname().lower()
    return frozenset({name, socket.getfqdn().lower(), f"{name.partition('.')[0]}.local"})


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a host is; None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
