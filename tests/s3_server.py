"""An S3 server on loopback (moto), and what a client has to know to read from it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

REGION = "eu-central-1"

ENVIRONMENT = {
    # The address of a cloud's instance metadata is never asked for credentials.
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ACCESS_KEY_ID": "environment",
    "AWS_SECRET_ACCESS_KEY": "environment",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
HIDDEN = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    """One bucket of a running server."""

    endpoint_url: str
    bucket: str
    client: Any = field(repr=False)
    """Of boto3, to put, replace and delete objects."""

    @property
    def storage_options(self) -> dict[str, Any]:
        """Return dummy credentials, endpoint and region in the spelling of fsspec (s3fs)."""
        return {
            "key": "key",
            "secret": "secret",
            "endpoint_url": self.endpoint_url,
            "client_kwargs": {"region_name": REGION},
        }

    def url(self, key: str) -> str:
        """Return the `s3://` address of an object, there or not."""
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Add or replace an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=data)

    def delete(self, key: str) -> None:
        """Remove an object."""
        self.client.delete_object(Bucket=self.bucket, Key=key)

    def signed_url(self, key: str) -> str:
        """Return an `http://` address with credentials in its query, good for an hour."""
        url: str = self.client.generate_presigned_url(
            "get_object", Params={"Bucket": self.bucket, "Key": key}
        )
        return url


@contextmanager
def s3_server(
    objects: Mapping[str, bytes] | None = None, *, bucket: str = "images"
) -> Iterator[S3Server]:
    """Run a server with one bucket of objects; meanwhile the environment has dummy credentials."""
    import boto3
    from moto.server import ThreadedMotoServer

    with mock.patch.dict(os.environ, ENVIRONMENT):
        for name in HIDDEN:
            os.environ.pop(name, None)
        running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        try:
            endpoint_url = "http://{}:{}".format(*running.get_host_and_port())
            # moto keeps its buckets per process, not per server.
            urlopen(Request(f"{endpoint_url}/moto-api/reset", method="POST")).close()
            client = boto3.client(
                "s3",
                aws_access_key_id="key",
                aws_secret_access_key="secret",
                endpoint_url=endpoint_url,
                region_name=REGION,
            )
            client.create_bucket(
                Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}
            )
            server = S3Server(endpoint_url=endpoint_url, bucket=bucket, client=client)
            for key, data in (objects or {}).items():
                server.put(key, data)
            yield server
            client.close()
        finally:
            running.stop()
