"""How fsspec and obstore spell the options of each kind of store: tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DIALECTS", "PROTOCOLS", "Dialect"]

PROTOCOLS: Mapping[str, str] = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "abfs": "az",
    "abfss": "az",
    "http": "http",
    "https": "http",
}


def names_in(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# Parameters of fsspec's own base classes.
EVERY_FSSPEC = names_in(
    "asynchronous loop batch_size use_listings_cache listings_expiry_time max_paths "
    "skip_instance_cache default_block_size default_fill_cache default_cache_type"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The options of one kind of store."""

    fsspec: Mapping[str, str] = field(default_factory=dict)
    """fsspec's spelling of what obstore understands, to obstore's."""
    obstore: frozenset[str] = frozenset()
    """obstore's own spelling."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further spellings of obstore."""
    prefixes: tuple[str, ...] = ()
    """What obstore lets a name begin with."""
    judged: frozenset[str] = frozenset()
    """fsspec's options that obstore understands for some values only."""
    fsspec_only: frozenset[str] = frozenset()
    """fsspec's options that obstore has nothing for."""

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every name, sorted."""
        mine = {"client_options", *self.fsspec, *self.obstore, *self.aliases}
        return tuple(sorted(mine | self.judged | self.fsspec_only))

    def obstore_name(self, name: str) -> str | None:
        """Return obstore's first spelling of an option, or None."""
        if name in self.fsspec:
            return self.fsspec[name]
        plain = name.lower()
        for prefix in self.prefixes:
            plain = plain.removeprefix(prefix)
        plain = self.aliases.get(plain, plain)
        return plain if plain in self.obstore else None


# s3fs 2026.9, gcsfs 2026.9, adlfs 2026.8 and fsspec.implementations.http; obstore 0.12.
DIALECTS: Mapping[str, Dialect] = {
    "s3": Dialect(
        fsspec={
            "key": "access_key_id",
            "secret": "secret_access_key",
            "token": "token",
            "anon": "skip_signature",
            "endpoint_url": "endpoint",
            "requester_pays": "request_payer",
            "profile": "profile",
        },
        obstore=names_in(
            "access_key_id secret_access_key token endpoint region skip_signature request_payer "
            "virtual_hosted_style_request role_arn role_session_name web_identity_token_file "
            "endpoint_url_sts imdsv1_fallback metadata_endpoint container_credentials_relative_uri "
            "container_credentials_full_uri container_authorization_token_file unsigned_payload "
            "credential_provider profile"
        ),
        aliases={
            "session_token": "token",
            "default_region": "region",
            "endpoint_url": "endpoint",
            "sts_endpoint": "endpoint_url_sts",
        },
        prefixes=("aws_",),
        judged=frozenset({"client_kwargs"}),
        fsspec_only=EVERY_FSSPEC
        | names_in(
            "use_ssl version_aware config_kwargs s3_additional_kwargs session username password "
            "cache_regions max_concurrency fixed_upload_size local_expiry_check"
        ),
    ),
    "gs": Dialect(
        fsspec={"anon": "skip_signature", "endpoint_url": "base_url"},
        obstore=names_in(
            "service_account service_account_key application_credentials bearer_token base_url "
            "skip_signature credential_provider"
        ),
        aliases={"service_account_path": "service_account"},
        prefixes=("google_",),
        judged=frozenset({"token"}),
        fsspec_only=EVERY_FSSPEC
        | names_in(
            "project access block_size consistency cache_timeout secure_serialize "
            "check_connection requests_timeout requester_pays session_kwargs timeout "
            "default_location version_aware"
        ),
    ),
    "az": Dialect(
        fsspec={"anon": "skip_signature", "sas_token": "sas_key"},
        obstore=names_in(
            "account_name account_key sas_key token skip_signature tenant_id client_id "
            "client_secret authority_host endpoint use_emulator use_fabric_endpoint "
            "use_azure_cli msi_endpoint object_id msi_resource_id federated_token_file "
            "credential_provider"
        ),
        aliases={"sas_token": "sas_key", "bearer_token": "token", "access_key": "account_key"},
        prefixes=("azure_storage_", "azure_"),
        fsspec_only=EVERY_FSSPEC
        | names_in(
            "connection_string credential account_host request_session socket_timeout blocksize "
            "location_mode version_aware assume_container_exists max_concurrency "
            "connection_timeout read_timeout exclude_managed_identity"
        ),
    ),
    "http": Dialect(
        judged=frozenset({"headers", "client_kwargs"}),
        fsspec_only=EVERY_FSSPEC
        | names_in(
            "simple_links block_size same_scheme size_policy cache_type cache_options get_client "
            "encoded auth cookies params ssl timeout proxy proxy_auth allow_redirects "
            "max_redirects"
        ),
    ),
}
