"""Addresses and sources of remote objects: what tells them apart, and what they never show."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore, S3Store

from mlarray_xr.errors import SourceError
from mlarray_xr.storage.remote_source import RemoteAddress, RemoteSource, remote_address

SECRET = "hunter2"
WITH_SECRETS: list[tuple[str, dict[str, Any] | None]] = [
    ("s3://bucket/a.mla", {"key": "me", "secret": SECRET}),
    ("s3://bucket/a.mla", {"client_kwargs": {"nested": [{"token": SECRET}]}}),
    (f"https://host/a.mla?X-Amz-Signature={SECRET}", None),
    (f"https://host/a.mla?path=http://x/y&sig={SECRET}", None),
    (f"https://me:{SECRET}@host:8080/a.mla", None),
    (f"https://me:p@{SECRET}@host/a.mla", None),
    (f"https://{SECRET}@host/a.mla", None),
    (f"https://me:{SECRET}@host", None),
    (f"zip://a.mla::https://me:{SECRET}@host/b.zip", None),
    (f"simplecache::https://me:{SECRET}@host/a.mla?x={SECRET}", {"https": {"auth": SECRET}}),
]


def source(address: RemoteAddress, **changes: Any) -> RemoteSource:
    return replace(RemoteSource(address=address, size=10, etag='"tag"'), **changes)


@pytest.mark.parametrize(("url", "options"), WITH_SECRETS)
def test_no_secret_is_shown(url: str, options: dict[str, Any] | None) -> None:
    address = remote_address(url, storage_options=options)
    pinned = source(address)
    for shown in (address.name, pinned.name, repr(address), repr(pinned), f"{address} {pinned}"):
        assert SECRET not in shown
    assert SECRET not in address.digest
    assert address.name in repr(pinned)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://bucket/deep/a.mla", "s3://bucket/deep/a.mla"),
        ("s3://bucket/user@site/a.mla", "s3://bucket/user@site/a.mla"),
        ("https://u:p@host:80/a.mla?q=1", "https://host:80/a.mla"),
        ("zip://a.mla::https://u:p@host/b.zip", "zip://a.mla::https://host/b.zip"),
        ("https://host", "https://host"),
        ("deep/path@site/a.mla", "deep/path@site/a.mla"),
    ],
)
def test_the_name_keeps_host_and_path(url: str, name: str) -> None:
    assert remote_address(url).name == name
    assert source(remote_address(url)).name == name


def test_a_secret_store_is_not_shown() -> None:
    store = S3Store("bucket", access_key_id="me", secret_access_key=SECRET, region="r")
    address = remote_address("a.mla", store=store)
    assert SECRET not in repr(source(address)) + address.digest + address.name


DIFFERENT = [
    remote_address("s3://b/a.mla"),
    remote_address("s3://b/b.mla"),
    remote_address("s3://b/a.mla?versionId=1"),
    remote_address("s3://b/a.mla", storage_options={"anon": True}),
    remote_address("s3://b/a.mla", storage_options={"anon": False}),
    remote_address("s3://b/a.mla", storage_options={"anon": "True"}),
    remote_address("s3://b/a.mla", storage_options={"client_kwargs": {"region_name": "x"}}),
    remote_address("s3://b/a.mla", storage_options={"client_kwargs": {"region_name": "y"}}),
    remote_address("s3://b/a.mla", store=MemoryFileSystem()),
    remote_address(
        "s3://b/a.mla",
        store=S3Store("b", access_key_id="k", secret_access_key="s", region="r"),
    ),
    remote_address(
        "s3://b/a.mla",
        store=S3Store("b", access_key_id="k", secret_access_key="t", region="r"),
    ),
]


def test_addresses_that_differ_share_nothing() -> None:
    assert len(set(DIFFERENT)) == len(DIFFERENT)
    assert len({source(address) for address in DIFFERENT}) == len(DIFFERENT)
    assert len({source(address).token for address in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("address", DIFFERENT)
def test_addresses_survive_pickling(address: RemoteAddress) -> None:
    pinned = source(address)
    back = pickle.loads(pickle.dumps(pinned))
    assert (back, hash(back), back.token) == (pinned, hash(pinned), pinned.token)
    assert back.address.options == address.options
    assert type(back.address.store) is type(address.store)
    assert len(pickle.dumps(pinned)) < 2000


OPTIONS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    max_size=5,
)


@given(OPTIONS, OPTIONS)
def test_equal_options_in_any_order_are_one_address(
    options: dict[str, Any], others: dict[str, Any]
) -> None:
    backwards = dict(reversed(options.items()))
    address = remote_address("s3://b/a.mla", storage_options=options)
    assert address == remote_address("s3://b/a.mla", storage_options=backwards)
    assert dict(address.options) == options
    other = remote_address("s3://b/a.mla", storage_options=others)
    # repr, since True equals 1 and yet is another option
    assert (address == other) == (repr(sorted(options.items())) == repr(sorted(others.items())))


def test_no_options_are_the_same_as_empty_ones() -> None:
    assert remote_address("s3://b/a") == remote_address("s3://b/a", storage_options={})


def test_options_that_are_objects_are_told_apart() -> None:
    def address(provider: object) -> RemoteAddress:
        return remote_address("s3://b/a", storage_options={"credential_provider": provider})

    one, two = object(), object()
    assert address(one) == address(one)
    assert address(one) != address(two)


def test_equal_stores_are_one_address() -> None:
    def address() -> RemoteAddress:
        store = S3Store("b", access_key_id="k", secret_access_key="s", region="r")
        return remote_address("a.mla", store=store)

    assert address() == address()


def test_a_store_brings_its_own_options() -> None:
    with pytest.raises(SourceError, match=r"storage_options=\['secret'\] and store=") as caught:
        remote_address(
            f"s3://me:{SECRET}@b/a?x={SECRET}",
            storage_options={"secret": SECRET},
            store=MemoryFileSystem(),
        )
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("store", [threading.Lock(), lambda: None])
def test_a_store_that_cannot_reach_other_processes_is_refused(store: object) -> None:
    with pytest.raises(SourceError, match="cannot be pickled"):
        remote_address("a.mla", store=store)


def test_versions_of_an_object_are_different_sources() -> None:
    pinned = source(remote_address("s3://b/a.mla"))
    versions = [pinned, replace(pinned, size=11), replace(pinned, etag='"new"'),
                replace(pinned, etag=None)]  # fmt: skip
    assert len(set(versions)) == len({each.token for each in versions}) == 4
    for each in versions:
        each.check()


def test_an_obstore_store_in_memory_is_no_address() -> None:
    """Its content would not follow it to other processes; obstore says so itself."""
    with pytest.raises(SourceError, match="cannot be pickled"):
        remote_address("a.mla", store=MemoryStore())
