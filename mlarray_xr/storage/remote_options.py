"""From an address to a client: which library serves it, and its options in that one's spelling."""

from __future__ import annotations

import base64
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.remote_dialects import DIALECTS, PROTOCOLS, Dialect

if TYPE_CHECKING:
    from mlarray_xr.storage.remote_source import RemoteAddress

__all__ = ["ClientPlan", "forked_plan", "plan_client"]

# Parts of a path that obstore sends unchanged; it quotes and refuses others in its own way.
PLAIN_PATH = re.compile(r"(?:[A-Za-z0-9_~-][A-Za-z0-9._~-]*/)*[A-Za-z0-9_~-][A-Za-z0-9._~-]*")
# Options whose names have one of these hold what no message may show.
SECRET = re.compile("key|secret|token|pass|cred|auth|header|sas|cookie|user|sign|connection|proxy")
SHORTEST_SECRET = 6
# Under `client_kwargs` of s3fs: what botocore and obstore both have.
BOTOCORE_NAMES = {
    "endpoint_url": "endpoint",
    "region_name": "region",
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "token",
}
# fsspec's spelling of obstore's options, for forked children.
TO_FSSPEC: Mapping[str, Mapping[str, str]] = {
    "s3": {value: key for key, value in DIALECTS["s3"].fsspec.items()},
    "gs": {
        "service_account": "token",
        "application_credentials": "token",
        "base_url": "endpoint_url",
    },
    "az": {
        "account_name": "account_name",
        "account_key": "account_key",
        "sas_key": "sas_token",
        "skip_signature": "anon",
        "tenant_id": "tenant_id",
        "client_id": "client_id",
        "client_secret": "client_secret",
    },
    "http": {},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """Which client serves an address, and what it is given. Shows no secrets."""

    client: Literal["obstore", "fsspec"]
    """The library."""
    protocol: str
    """Kind of store, such as ``s3``, ``gs``, ``az``, ``http`` or ``memory``."""
    name: str
    """The URL without secrets."""
    place: str = field(repr=False)
    """Bucket, container or base URL for obstore; the whole URL for fsspec."""
    path: str = field(repr=False)
    """Path of the object in `place`; with a store of the caller, in that store."""
    url: str = field(repr=False)
    """The URL as it was given."""
    digest: str = field(repr=False)
    """Of the options: stands for them in comparisons."""
    config: tuple[tuple[str, Any], ...] = field(default=(), repr=False, compare=False)
    """Options in the spelling of the client."""
    client_options: tuple[tuple[str, Any], ...] = field(default=(), repr=False, compare=False)
    """Options of obstore's HTTP client."""
    store: Any = field(default=None, repr=False, compare=False)
    """Store or filesystem of the caller, or None."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts of the options that no message may show, longest first."""
        texts = _secrets({**dict(self.config), **dict(self.client_options)}, is_hidden=False)
        return tuple(sorted(set(texts), key=lambda text: (-len(text), text)))


def plan_client(address: RemoteAddress) -> ClientPlan:
    """Choose the client of an address and translate its options; looks at values only.

    Raises
    ------
    SourceError
        When the URL cannot be one of an object, or an option is unknown, given twice, or spelled
        for obstore next to one that only fsspec has.
    """
    if address.store is not None:
        return _plan_store(address)
    scheme, mark, rest = address.url.partition("://")
    if not mark:
        msg = f"{address.name}: not a URL. To fix: begin with s3://, gs://, az://, https:// or so"
        raise SourceError(msg)
    protocol = PROTOCOLS.get(scheme.lower(), scheme.lower())
    options = {key: value for key, value in address.options if value is not None}
    through_fsspec = ClientPlan(
        client="fsspec",
        protocol=protocol,
        name=address.name,
        place=address.url,
        path="",
        url=address.url,
        digest=address.digest,
        config=tuple(options.items()),
    )
    if protocol not in DIALECTS or "::" in scheme:
        return through_fsspec
    place, path, implied = _locate(address, protocol, rest)
    config = _translated(address, protocol, options)
    if config is None or not _is_path_of_obstore(path, protocol):
        _refuse_mixture(address, DIALECTS[protocol], options)
        return through_fsspec
    client_options = config.pop("client_options", {})
    headers = {**implied.pop("headers", {}), **config.pop("headers", {})}
    if headers:
        headers |= client_options.get("default_headers", {})
        client_options = {**client_options, "default_headers": headers}
    if f"{config.get('endpoint', address.url)}".lower().startswith("http://"):
        client_options = {"allow_http": True, **client_options}
    return replace(
        through_fsspec,
        client="obstore",
        place=place,
        path=path,
        config=tuple(sorted((implied | config).items())),
        client_options=tuple(sorted(client_options.items())),
    )


def forked_plan(plan: ClientPlan) -> ClientPlan:
    """Return the plan of the same object through fsspec, for a child in which obstore hangs.

    Raises
    ------
    SourceError
        When an option cannot be said to fsspec, or the store itself is one of obstore.
    """
    advice = "To fix: start processes with multiprocessing's 'spawn' or 'forkserver'"
    if plan.store is not None:
        msg = (
            f"{plan.name}: an obstore store does not work in a process forked from one that used "
            f"obstore. {advice}, or give storage_options instead of the store"
        )
        raise SourceError(msg)
    names, options, lost = TO_FSSPEC[plan.protocol], {}, []
    for key, value in (*plan.config, *plan.client_options):
        if key in names:
            options[names[key]] = value
        elif key == "region":
            options["client_kwargs"] = {"region_name": value}
        elif key == "default_headers" and plan.protocol == "http":
            options["headers"] = value
        elif key == "skip_signature":
            options |= {"token": "anon"} if value else {}
        elif key != "allow_http":
            lost.append(key)
    if lost:
        msg = (
            f"{plan.name}: obstore does not work in a process forked from one that used it, and "
            f"fsspec has nothing for the options {', '.join(lost)}. {advice}"
        )
        raise SourceError(msg)
    return replace(
        plan,
        client="fsspec",
        place=plan.url,
        path="",
        config=tuple(options.items()),
        client_options=(),
    )


def _plan_store(address: RemoteAddress) -> ClientPlan:
    """Plan for a store or filesystem of the caller."""
    modules = {base.__module__ for base in type(address.store).__mro__}
    client: Literal["obstore", "fsspec"]
    # obstore's own fsspec filesystem would hang in forked children without anybody's knowing.
    if "fsspec.spec" in modules and "obstore.fsspec" not in modules:
        client = "fsspec"
    elif "obstore.store" in modules:
        client = "obstore"
    else:
        msg = (
            f"{address.name}: store= is a {type(address.store).__name__}. To fix: give an obstore "
            "store or an fsspec filesystem"
        )
        raise SourceError(msg)
    return ClientPlan(
        client=client,
        protocol="store",
        name=address.name,
        place="",
        path=address.url,
        url=address.url,
        digest=address.digest,
        store=address.store,
    )


def _locate(address: RemoteAddress, protocol: str, rest: str) -> tuple[str, str, dict[str, Any]]:
    """Split a URL into place, path, and what it says of options."""
    host, _, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if not host or not path:
        msg = f"{address.name}: names no object. To fix: give a URL with a path"
        raise SourceError(msg)
    if protocol == "az" and at:
        # abfs[s]://container@account.dfs.core.windows.net/path
        return user, path, {"account_name": host.partition(".")[0]}
    if protocol != "http":
        return host, path, {}
    implied: dict[str, Any] = {}
    if at:
        # obstore drops the user of a URL without a word.
        told = base64.b64encode(unquote(user).encode()).decode()
        implied = {"headers": {"Authorization": f"Basic {told}"}}
    base = f"{address.url.partition('://')[0]}://{host}"
    # One client per server serves all its files; a query belongs to the base, and other paths are
    # safe there.
    return (base, path, implied) if PLAIN_PATH.fullmatch(path) else (f"{base}/{path}", "", implied)


def _is_path_of_obstore(path: str, protocol: str) -> bool:
    """Tell whether obstore can name the object: it knows no empty or relative parts."""
    return protocol == "http" or not {"", ".", ".."} & set(path.split("/"))


def _translated(
    address: RemoteAddress, protocol: str, options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return options as obstore spells them, or None where only fsspec does what they say."""
    dialect = DIALECTS[protocol]
    unknown = [key for key in options if not _is_known(dialect, key)]
    if unknown:
        raise _unknown_option(address, dialect, unknown[0])
    found: list[tuple[str, Any]] = []
    for key, value in options.items():
        name = dialect.obstore_name(key)
        if key == "client_options" and isinstance(value, Mapping):
            found.append((key, dict(value)))
        elif name is not None:
            found.append((name, value))
        else:
            judged = _judged(protocol, key, value)
            if judged is None:
                return None
            found.extend(judged.items())
    config = dict(found)
    if len(config) < len(found):
        names = [name for name, _ in found]
        twice = next(name for name in names if names.count(name) > 1)
        msg = (
            f"{address.name}: storage_options={sorted(options)} say {twice!r} twice. "
            "To fix: leave one spelling of it"
        )
        raise SourceError(msg)
    return {name: value for name, value in config.items() if value is not False}


def _is_known(dialect: Dialect, key: str) -> bool:
    """Tell whether either library has the option."""
    known = key == "client_options" or key in dialect.judged or key in dialect.fsspec_only
    return known or dialect.obstore_name(key) is not None


def _judged(protocol: str, key: str, value: Any) -> dict[str, Any] | None:
    """Translate an option that obstore understands for some values; None for the others."""
    if protocol == "gs" and key == "token" and isinstance(value, str):
        if value == "anon":
            return {"skip_signature": True}
        return {"application_credentials": value} if value.endswith(".json") else None
    if key == "headers" and isinstance(value, Mapping):
        return {"headers": dict(value)}
    if key == "client_kwargs" and isinstance(value, Mapping):
        if protocol == "http" and set(value) <= {"headers"}:
            return {"headers": dict(value.get("headers", {}))}
        if protocol == "s3" and set(value) <= set(BOTOCORE_NAMES):
            return {BOTOCORE_NAMES[name]: told for name, told in value.items() if told is not None}
    return None


def _refuse_mixture(address: RemoteAddress, dialect: Dialect, options: Mapping[str, Any]) -> None:
    """Refuse obstore's spelling where fsspec will be asked: it would pass over it in silence."""
    of_fsspec = dialect.judged | dialect.fsspec_only | set(dialect.fsspec)
    # Names that both libraries have in common mean the same.
    shared = set(TO_FSSPEC[PROTOCOLS[address.url.partition("://")[0].lower()]].items())
    of_fsspec |= {mine for theirs, mine in shared if theirs == mine}
    mixed = sorted(set(options) - of_fsspec)
    if mixed:
        msg = (
            f"{address.name}: fsspec has to serve this address, and has no option "
            f"{', '.join(mixed)}, which is obstore's spelling. To fix: give all storage_options as "
            "fsspec spells them"
        )
        raise SourceError(msg)


def _unknown_option(address: RemoteAddress, dialect: Dialect, key: str) -> SourceError:
    """Name what was meant, perhaps."""
    near = difflib.get_close_matches(key, dialect.accepted, n=3)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    return SourceError(
        f"{address.name}: storage_options has an unknown key {key!r}.{meant} "
        f"To fix: use some of {', '.join(dialect.accepted)}"
    )


def _secrets(value: Any, *, is_hidden: bool) -> list[str]:
    """Return the texts in a value that are secret, or in secret options inside it."""
    if isinstance(value, Mapping):
        return [
            text
            for key, inner in value.items()
            for text in _secrets(
                inner, is_hidden=is_hidden or SECRET.search(str(key).lower()) is not None
            )
        ]
    if isinstance(value, (list, tuple)):
        return [text for inner in value for text in _secrets(inner, is_hidden=is_hidden)]
    is_secret = is_hidden and isinstance(value, str) and len(value) >= SHORTEST_SECRET
    return [value] if is_secret else []
