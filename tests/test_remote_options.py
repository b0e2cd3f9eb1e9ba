"""Which client serves an address, and how its options are spelled for it."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import fsspec
import obstore.store
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.remote_dialects import DIALECTS
from mlarray_xr.storage.remote_options import ClientPlan, forked_plan, plan_client
from mlarray_xr.storage.remote_source import remote_address

S3 = "s3://bucket/folder/x.mla"


def plan(url: str, **options: Any) -> ClientPlan:
    return plan_client(remote_address(url, storage_options=options))


def config(url: str, **options: Any) -> dict[str, Any]:
    found = plan(url, **options)
    assert found.client == "obstore"
    return dict(found.config)


@pytest.mark.parametrize(
    ("url", "client", "place", "path"),
    [
        (S3, "obstore", "bucket", "folder/x.mla"),
        ("s3a://bucket/x y+ü.mla", "obstore", "bucket", "x y+ü.mla"),
        ("gs://bucket/x.mla", "obstore", "bucket", "x.mla"),
        ("gcs://bucket/x.mla", "obstore", "bucket", "x.mla"),
        ("az://container/x.mla", "obstore", "container", "x.mla"),
        ("abfss://box@acct.dfs.core.windows.net/a/x.mla", "obstore", "box", "a/x.mla"),
        ("https://host/a/x.mla", "obstore", "https://host", "a/x.mla"),
        ("HTTP://host:80/x.mla", "obstore", "HTTP://host:80", "x.mla"),
        ("https://host/a%20b/x.mla", "obstore", "https://host/a%20b/x.mla", ""),
        ("https://host/a//x.mla", "obstore", "https://host/a//x.mla", ""),
        ("https://host/x.mla?sig=1", "obstore", "https://host/x.mla?sig=1", ""),
        ("s3://bucket/a//x.mla", "fsspec", "s3://bucket/a//x.mla", ""),
        ("memory://a/x.mla", "fsspec", "memory://a/x.mla", ""),
        ("ftp://host/x.mla", "fsspec", "ftp://host/x.mla", ""),
        ("simplecache::s3://bucket/x.mla", "fsspec", "simplecache::s3://bucket/x.mla", ""),
    ],
)
def test_client_and_place(url: str, client: str, place: str, path: str) -> None:
    found = plan(url)
    assert (found.client, found.place, found.path) == (client, place, path)


@pytest.mark.parametrize("url", ["x.mla", "s3://bucket", "s3://bucket/", "https:///x.mla"])
def test_what_names_no_object_is_refused(url: str) -> None:
    with pytest.raises(SourceError, match="To fix"):
        plan(url)


BOTH_SPELLINGS = [
    (
        {
            "key": "K",
            "secret": "S",
            "token": "T",
            "endpoint_url": "https://e",
            "client_kwargs": {"region_name": "r"},
            "requester_pays": True,
        },
        {
            "access_key_id": "K",
            "aws_secret_access_key": "S",
            "AWS_SESSION_TOKEN": "T",
            "endpoint": "https://e",
            "region": "r",
            "request_payer": True,
        },
    ),
    ({"client_kwargs": {"endpoint_url": "https://e"}}, {"aws_endpoint_url": "https://e"}),
    ({"anon": True}, {"skip_signature": True}),
    ({"anon": False, "key": None}, {}),
]


@pytest.mark.parametrize(("of_fsspec", "of_obstore"), BOTH_SPELLINGS)
def test_both_spellings_mean_the_same(
    of_fsspec: dict[str, Any], of_obstore: dict[str, Any]
) -> None:
    assert config(S3, **of_fsspec) == config(S3, **of_obstore)


def test_spelling_of_s3() -> None:
    assert config(S3, key="K", secret="S", anon=False) == {
        "access_key_id": "K",
        "secret_access_key": "S",
    }


def test_spelling_of_google() -> None:
    assert config("gs://b/x", token="anon") == {"skip_signature": True}
    assert config("gs://b/x", token="me.json") == {"application_credentials": "me.json"}
    assert plan("gs://b/x", token="google_default").client == "fsspec"


def test_spelling_of_azure() -> None:
    url = "abfs://box@acct.dfs.core.windows.net/x.mla"
    assert config(url, sas_token="s=1") == {"account_name": "acct", "sas_key": "s=1"}
    assert config("az://box/x", account_name="a", account_key="k", anon=False) == {
        "account_name": "a",
        "account_key": "k",
    }


@pytest.mark.parametrize(
    "options", [{"headers": {"A": "b"}}, {"client_kwargs": {"headers": {"A": "b"}}}]
)
def test_headers_of_http(options: dict[str, Any]) -> None:
    assert dict(plan("https://h/x", **options).client_options) == {"default_headers": {"A": "b"}}


def test_user_in_a_url_becomes_a_header() -> None:
    found = plan("https://user:pass%20word@h/x")
    assert (found.place, found.path) == ("https://h", "x")
    headers = dict(found.client_options)["default_headers"]
    assert headers == {"Authorization": "Basic dXNlcjpwYXNzIHdvcmQ="}


@pytest.mark.parametrize(
    ("url", "options", "allows"),
    [
        ("http://h/x", {}, True),
        ("https://h/x", {}, False),
        (S3, {"endpoint_url": "http://h"}, True),
        (S3, {"endpoint_url": "https://h"}, False),
        (S3, {}, False),
    ],
)
def test_plain_http_is_allowed_where_asked_for(
    url: str, options: dict[str, Any], allows: bool
) -> None:
    assert dict(plan(url, **options).client_options).get("allow_http", False) is allows


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (S3, {"key": "K", "config_kwargs": {}}),
        (S3, {"client_kwargs": {"verify": False}}),
        ("https://h/x", {"auth": "A"}),
        ("https://h/x", {"client_kwargs": {"trust_env": True}}),
        ("az://c/x", {"connection_string": "C"}),
        ("gs://b/x", {"project": "p"}),
    ],
)
def test_what_obstore_lacks_goes_to_fsspec_unchanged(url: str, options: dict[str, Any]) -> None:
    found = plan(url, **options)
    assert found.client == "fsspec"
    assert dict(found.config) == options


@pytest.mark.parametrize(
    ("url", "key", "meant"),
    [
        (S3, "sceret", "secret"),
        (S3, "endpoint_ulr", "endpoint_url"),
        ("https://h/x", "header", "headers"),
        ("gs://b/x", "tokn", "token"),
        ("az://c/x", "acount_name", "account_name"),
    ],
)
def test_unknown_keys_are_refused_with_what_was_meant(url: str, key: str, meant: str) -> None:
    with pytest.raises(SourceError, match=rf"unknown key '{key}'.*mean.*\b{meant}\b.*To fix"):
        plan(url, **{key: "SECRETVALUE"})
    with pytest.raises(SourceError) as caught:
        plan(url, **{key: "SECRETVALUE"})
    assert "SECRETVALUE" not in str(caught.value)


def test_one_option_in_two_spellings_is_refused() -> None:
    with pytest.raises(SourceError, match="'access_key_id' twice"):
        plan(S3, key="A", access_key_id="B")


def test_a_mixture_that_fsspec_would_pass_over_is_refused() -> None:
    with pytest.raises(SourceError, match=r"no option access_key_id.*To fix"):
        plan(S3, access_key_id="A", config_kwargs={})


@pytest.mark.parametrize("url", [S3, "gs://b/x", "az://c/x", "https://h/x", "ftp://h/x"])
@given(secret=st.text(alphabet="ABCDEFGHJKLMNPQRST", min_size=8, max_size=20))
def test_no_repr_shows_a_secret(url: str, secret: str) -> None:
    name = {"s3": "secret", "gs": "bearer_token", "az": "account_key"}.get(url[:2], "headers")
    value: Any = {"Authorization": secret} if name == "headers" else secret
    address = remote_address(f"{url}?sig={secret}", storage_options={name: value})
    found = plan_client(address)
    assert secret not in f"{found!r} {found} {address.name}"
    assert found.secrets == (secret,)


def test_a_plan_follows_from_the_pickled_address() -> None:
    address = remote_address(S3, storage_options={"key": "K", "secret": "S"})
    assert plan_client(pickle.loads(pickle.dumps(address))) == plan_client(address)
    assert plan_client(address) != plan(S3, key="K", secret="other")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        (S3, {"key": "K", "secret": "S", "client_kwargs": {"region_name": "r"}}),
        (S3, {"anon": True, "endpoint_url": "http://e"}),
        (S3, {"profile": "p", "requester_pays": True, "token": "T"}),
        ("gs://b/x", {"token": "anon"}),
        ("gs://b/x", {"token": "me.json", "endpoint_url": "https://e"}),
        ("az://c/x", {"account_name": "a", "sas_token": "s"}),
        ("az://c/x", {"account_name": "a", "anon": True}),
        ("https://h/x?q=1", {"headers": {"A": "b"}}),
    ],
)
def test_forked_children_get_the_options_back_as_fsspec_spells_them(
    url: str, options: dict[str, Any]
) -> None:
    found = forked_plan(plan(url, **options))
    assert (found.client, found.url, dict(found.config)) == ("fsspec", url, options)


def test_forked_children_refuse_what_fsspec_cannot_be_told() -> None:
    with pytest.raises(SourceError, match=r"role_arn.*'spawn' or 'forkserver'"):
        forked_plan(plan(S3, role_arn="arn"))


def test_stores_of_the_caller() -> None:
    of_obstore = obstore.store.S3Store("b", skip_signature=True)
    assert plan_client(remote_address("x.mla", store=of_obstore)).client == "obstore"
    assert plan_client(remote_address("x", store=fsspec.filesystem("memory"))).client == "fsspec"
    with pytest.raises(SourceError, match="store= is a dict"):
        plan_client(remote_address("x", store={}))


@pytest.mark.parametrize(
    ("protocol", "store"),
    [
        ("s3", obstore.store.S3Store),
        ("gs", obstore.store.GCSStore),
        ("az", obstore.store.AzureStore),
    ],
)
def test_obstore_knows_every_name_of_the_table(protocol: str, store: Any) -> None:
    ours = {"credential_provider", "profile"}
    assert not [name for name in DIALECTS[protocol].obstore - ours if is_unknown(store, name)]


def is_unknown(store: Any, name: str) -> bool:
    try:
        store("b", config={name: "true"})
    except Exception as error:
        return type(error).__name__ == "UnknownConfigurationKeyError"
    return False


def test_fsspec_knows_every_name_that_goes_there_for_s3() -> None:
    s3fs = pytest.importorskip("s3fs")
    base = {"use_listings_cache", "listings_expiry_time", "max_paths", "skip_instance_cache"}
    known = set(inspect.signature(s3fs.S3FileSystem.__init__).parameters) | base | {"batch_size"}
    assert DIALECTS["s3"].fsspec_only - {"profile"} <= known
