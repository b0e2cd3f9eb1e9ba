"""The door to obstore: byte ranges of S3, Google Cloud Storage, Azure and HTTP, in parallel.

Clients are shared by the files of one server, since connections (and their TLS handshakes) belong
to a client; the cache of them and the mark of the process that used obstore are the only state.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MissingDependencyError, SourceDenied, SourceError
from mlarray_xr.storage.piece import Piece, dated_validator
from mlarray_xr.storage.transport_failures import Asked, is_validator

if TYPE_CHECKING:
    from obstore import GetOptions

    from mlarray_xr.storage.remote_options import ClientPlan

__all__ = ["ObstoreTransport", "is_unusable_after_fork", "open_obstore"]

LONGEST_CONNECT_S = 10.0
STATUS = re.compile(r"status code: (\d{3})")
CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
REASON = re.compile(r'(?:message|error): "([^"]{1,120})"')
BROKEN = re.compile(r"kind: (Connect|Request|Interrupted|Decode|Unknown)\b")
# Errors that other stores than those behind HTTP raise, by what HTTP would say.
STATUS_OF_KIND = {
    "FileNotFoundError": 404,
    "NotFoundError": 404,
    "PermissionDeniedError": 403,
    "UnauthenticatedError": 401,
    "PreconditionError": 412,
}
# Trying again does not mend these.
LASTING = ("certificate", "BadScheme")
# Where obstore asks for credentials when there are none.
METADATA_SERVICES = ("//169.254.169.254", "//metadata.google.internal", "//169.254.170.2")
# Where obstore looks for credentials by itself, besides the metadata service of a machine.
S3_CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


class _FirstUse:
    """The process that used obstore first; its forked children inherit the mark."""

    pid: int | None = None


def is_unusable_after_fork() -> bool:
    """Tell whether this process was forked from one that had used obstore.

    Its runtime (tokio) lost its threads in the fork: every request would wait for ever.
    """
    return _FirstUse.pid not in (None, os.getpid())


@dataclass(frozen=True, slots=True, kw_only=True)
class ObstoreTransport:
    """One object behind an obstore store."""

    name: str
    """The URL without secrets."""
    store: Any = field(repr=False)
    """The store."""
    path: str = field(repr=False)
    """The object in it."""
    secrets: tuple[str, ...] = field(repr=False)
    """Texts that no message may show."""
    timeout_s: float
    """Seconds for one request."""
    has_suffixes: bool
    """Whether the protocol can be asked for the last bytes."""
    pid: int
    """The process that opened it."""

    def fetch(self, start: int, stop: int, *, etag: str | None = None) -> Piece:
        """Return the bytes from `start` to `stop`; see `Transport`."""
        asked = self._asked(f"bytes {start} to {stop}", etag)
        options: GetOptions = {"range": (start, stop)}
        # A weak validator never matches If-Match (RFC 9110, section 13.1.1): it is only compared.
        if etag is not None and is_validator(etag) and not etag.startswith("W/"):
            options["if_match"] = etag
        return asked.checked(self._get(asked, options, limit=stop - start), start, stop)

    def fetch_tail(self, n_bytes: int) -> Piece:
        """Return the last bytes; Azure is asked for the size first, a request more."""
        asked = self._asked(f"the last {n_bytes} bytes", None)
        if not self.has_suffixes:
            size = self._size(asked)
            tail = self.fetch(max(0, size - n_bytes), size) if size else _empty()
            return replace(tail, n_requests=2 if size else 1)
        try:
            piece = self._get(asked, {"range": {"suffix": n_bytes}}, limit=n_bytes)
        except _EmptyObject:
            return _empty()
        size = piece.start + len(piece.data) if piece.size is None else piece.size
        return asked.checked(piece, max(0, size - n_bytes), size)

    def _get(self, asked: Asked, options: GetOptions, *, limit: int) -> Piece:
        """Make one request."""
        import obstore

        self._refuse_fork()
        try:
            result = obstore.get(self.store, self.path, options=options)
            start, stop = result.range
            meta = result.meta
            # A stream, since `bytes()` would hold whatever a server cares to send.
            parts: list[bytes] = []
            for part in result.stream(min_chunk_size=max(1, min(limit, stop - start))):
                parts.append(bytes(part))
                if sum(map(len, parts)) > limit:
                    break
        except Exception as error:
            raise self._failure(asked, error, is_tail="suffix" in str(options["range"])) from None
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        etag = meta["e_tag"] or dated_validator(meta["last_modified"].timestamp())
        return Piece(data=data, start=start, size=meta["size"], etag=etag)

    def _size(self, asked: Asked) -> int:
        """Ask for the size of the object."""
        import obstore

        self._refuse_fork()
        try:
            return int(obstore.head(self.store, self.path)["size"])
        except Exception as error:
            raise self._failure(asked, error, is_tail=False) from None

    def _asked(self, what: str, etag: str | None) -> Asked:
        """Describe a request."""
        return Asked(name=self.name, what=what, etag=etag, secrets=self.secrets)

    def _refuse_fork(self) -> None:
        """Refuse to wait for ever."""
        if self.pid != os.getpid():
            msg = (
                f"{self.name}: opened in another process than this one, which was forked from it. "
                "To fix: send the address and open it here"
            )
            raise SourceError(msg)

    def _failure(self, asked: Asked, error: Exception, *, is_tail: bool) -> Exception:
        """Say an error of obstore in the words of this package.

        obstore tells kinds apart by class where it has one, else only in its text, a debug print
        of its error (obstore 0.12).
        """
        kind, text = type(error).__name__, str(error)
        # What follows the status is the body of the answer, which may say anything.
        if any(address in text.partition("status code: ")[0] for address in METADATA_SERVICES):
            return asked.denied("no credentials, and no metadata service of a cloud gave any")
        if (told := STATUS.search(text)) is not None:
            if is_tail and told[1] == "416":
                return _EmptyObject(asked.text)
            code = CODE.search(text)
            return asked.status(int(told[1]), code=code[1] if code else "")
        if kind in STATUS_OF_KIND:
            return asked.status(STATUS_OF_KIND[kind])
        if kind == "NotSupportedError" or "NotPartial" in text:
            return asked.no_ranges()
        return self._broken(asked, text)

    def _broken(self, asked: Asked, text: str) -> Exception:
        """Say what kept an answer from coming, or from coming whole."""
        if "kind: Timeout" in text:
            return asked.late(self.timeout_s)
        if "UnexpectedRange" in text:
            return asked.unreachable("the server sent another range")
        if (broken := BROKEN.search(text)) and not any(word in text for word in LASTING):
            reason = REASON.search(text)
            return asked.unreachable(
                "the connection failed: " + (reason[1] if reason else broken[1].lower())
            )
        return asked.other(text.partition("\n\nDebug source")[0])


class _EmptyObject(SourceError):
    """The last bytes of nothing were asked for (status 416)."""


def _empty() -> Piece:
    """Return all of an object without bytes."""
    return Piece(data=b"", start=0, size=0, etag=None)


def open_obstore(plan: ClientPlan, *, timeout_s: float) -> ObstoreTransport:
    """Return the transport of an object that obstore serves.

    Raises
    ------
    MissingDependencyError
        When obstore is not installed.
    SourceDenied
        When there are no credentials for S3 anywhere.
    SourceError
        When obstore refuses an option.
    """
    if plan.store is None:
        shared = replace(plan, path="", url="", name=plan.name.partition("://")[0] + "://")
        try:
            store = _shared_store(shared, timeout_s, _environment())
        except SourceError as error:
            raise type(error)(f"{plan.name}: {error}") from None
    else:
        store = plan.store
    if _FirstUse.pid is None:
        _FirstUse.pid = os.getpid()
    kinds = {base.__name__ for base in type(store).__mro__}
    is_azure = "AzureStore" in kinds or ".core.windows.net" in plan.place
    return ObstoreTransport(
        store=store,
        path=plan.path,
        name=plan.name,
        secrets=plan.secrets,
        timeout_s=timeout_s,
        has_suffixes=not is_azure,
        pid=os.getpid(),
    )


def _environment() -> tuple[tuple[str, str], ...]:
    """Return the variables from which obstore and boto3 take settings."""
    prefixes = ("AWS_", "AZURE_", "GOOGLE_")
    return tuple(sorted(pair for pair in os.environ.items() if pair[0].startswith(prefixes)))


@lru_cache(maxsize=64)
def _shared_store(
    plan: ClientPlan, timeout_s: float, environment: tuple[tuple[str, str], ...]
) -> Any:
    """Make the client of a place; connections are pooled in it, as many as there are threads."""
    try:
        from obstore.store import AzureStore, GCSStore, HTTPStore, S3Store
    except ImportError as error:
        msg = (
            f"obstore reads {plan.protocol} addresses and is not installed. "
            'To fix: pip install "mlarray-xr[remote]"'
        )
        raise MissingDependencyError(msg) from error
    config = dict(plan.config)
    client_options: Any = {
        "timeout": timedelta(seconds=timeout_s),
        "connect_timeout": timedelta(seconds=min(timeout_s, LONGEST_CONNECT_S)),
        **dict(plan.client_options),
    }
    # The readers try again themselves: counters are exact, and one limit holds.
    retry_config: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout_s)}
    if plan.protocol == "s3":
        config |= _s3_credentials(config, dict(environment))
        if _plain_endpoint(dict(environment)) and "endpoint" not in config:
            client_options.setdefault("allow_http", True)
    provider = config.pop("credential_provider", None)
    stores = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
    try:
        if plan.protocol == "http":
            return HTTPStore(plan.place, client_options=client_options, retry_config=retry_config)
        return stores[plan.protocol](
            plan.place,
            config=config,
            client_options=client_options,
            retry_config=retry_config,
            credential_provider=provider,
        )
    except Exception as error:
        asked = Asked(name=plan.place, what="a client", secrets=plan.secrets)
        found = asked.shown(str(error).partition("\n\nDebug source")[0])
        msg = f"obstore refused the options: {found}. To fix: check storage_options"
        raise SourceError(msg) from None


def _plain_endpoint(environment: dict[str, str]) -> bool:
    """Tell whether the environment names an endpoint without TLS."""
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
    told = next((environment[name] for name in names if environment.get(name)), "")
    return told.lower().startswith("http://")


def _s3_credentials(config: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """Return what has to be added so that requests are signed as boto3 would.

    Options go first, then the environment. Profile files are read with boto3, where it is
    installed, as is the metadata service of cloud machines; without boto3 obstore asks the latter.
    """
    profile = config.pop("profile", None)
    given = {"access_key_id", "skip_signature", "credential_provider", "web_identity_token_file"}
    if profile is None and (given & set(config) or any(map(environment.get, S3_CREDENTIALS))):
        return {}
    try:
        from boto3.session import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if profile is not None:
            msg = f"profile={profile!r} needs boto3. To fix: pip install boto3"
            raise MissingDependencyError(msg) from error
        if environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            raise SourceDenied(NO_CREDENTIALS) from None
        return {}
    try:
        session = Session(profile_name=profile)
        provider = Boto3CredentialProvider(session)
    except ValueError:
        raise SourceDenied(NO_CREDENTIALS) from None
    except Exception as error:
        msg = f"boto3 found no credentials: {error}. To fix: check profile and profile files"
        raise SourceDenied(msg) from None
    region = {"region": session.region_name} if session.region_name else {}
    return {**region, **config, "credential_provider": provider}


NO_CREDENTIALS = (
    "no credentials were found for S3. To fix: give key and secret in storage_options, set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or pass anon=True for public data"
)
