"""Settings of remote reads: one value per process, changed by `configure`.

One of the package's few pieces of state. Forked children keep what was configured; spawned ones
and workers of a cluster start with the defaults.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlarray_xr.planning.byte_amount import parse_bytes

__all__ = ["BlockReads", "ReadSettings", "configure", "read_settings"]

BlockReads = Literal["auto", "blocks", "chunks"]
_BLOCK_READS = ("auto", "blocks", "chunks")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSettings:
    """How remote files are read by one process."""

    cache_bytes: int = 256 << 20
    """Most bytes of encoded blocks that are kept in memory; 0 keeps none."""
    decoded_cache_bytes: int = 64 << 20
    """Most bytes of decoded blocks that are kept for thin boxes read one after another; 0 keeps
    none."""
    cache_dir: str | None = None
    """Folder of the disk cache; None keeps nothing on disk."""
    cache_dir_bytes: int = 10 << 30
    """Most bytes of the disk cache."""
    max_concurrency: int = 64
    """Most requests under way at the same time."""
    retries: int = 3
    """How often a request that failed is sent again."""
    timeout_s: float = 60.0
    """Seconds after which a request that is not answered has failed."""
    block_reads: BlockReads = "auto"
    """Whether the blocks that are touched are fetched (fewest bytes), or whole chunks (fewest
    requests), or what is faster by an estimate."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (
            ("cache_bytes", 0),
            ("decoded_cache_bytes", 0),
            ("cache_dir_bytes", 1),
            ("max_concurrency", 1),
            ("retries", 0),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                msg = f"{name}={value!r}: a whole number, at least {least}, is needed"
                raise ValueError(msg)
        if not isinstance(self.timeout_s, int | float) or not 0 < self.timeout_s < float("inf"):
            msg = f"timeout_s={self.timeout_s!r}: a number of seconds above 0 is needed"
            raise ValueError(msg)
        if self.block_reads not in _BLOCK_READS:
            msg = f"block_reads={self.block_reads!r}: one of {', '.join(_BLOCK_READS)} is needed"
            raise ValueError(msg)


_settings = ReadSettings()


def read_settings() -> ReadSettings:
    """Return the settings of this process."""
    return _settings


def configure(
    *,
    cache_bytes: int | str | None = None,
    decoded_cache_bytes: int | str | None = None,
    cache_dir: str | os.PathLike[str] | Literal[False] | None = None,
    cache_dir_bytes: int | str | None = None,
    max_concurrency: int | None = None,
    retries: int | None = None,
    timeout_s: float | None = None,
    block_reads: BlockReads | None = None,
) -> ReadSettings:
    """Change how this process reads remote files; what is left out stays as it is.

    Reads under way take it up with their next request.

    Parameters
    ----------
    cache_bytes
        Most bytes of encoded blocks kept in memory, shared by all files, as a number or a text such
        as ``"1 GB"``; 0 keeps none. At first 256 MiB.
    decoded_cache_bytes
        Most bytes of decoded blocks, of local files too, kept for slices and other thin boxes that
        are read one after another; 0 keeps none. At first 64 MiB.
    cache_dir
        Folder of a disk cache, made when it is not there; False is none, as at first.
    cache_dir_bytes
        Most bytes of the disk cache, at first 10 GiB.
    max_concurrency
        Most requests under way at the same time, at first 64.
    retries
        How often a request that failed for what may pass is sent again, at first 3.
    timeout_s
        Seconds after which a request without answer has failed, at first 60.
    block_reads : {"auto", "blocks", "chunks"}
        What of a chunk is fetched: the blocks that are touched (fewest bytes), all of it (fewest
        requests), or what is faster by an estimate, as at first.

    Returns
    -------
    ReadSettings
        What holds now.

    Raises
    ------
    ValueError
        When a value is out of its range; nothing has changed then.

    Examples
    --------
    >>> import mlarray_xr
    >>> mlarray_xr.configure(cache_bytes="512 MiB").cache_bytes
    536870912
    """
    global _settings
    changed: dict[str, Any] = {
        "cache_bytes": _amount(cache_bytes),
        "decoded_cache_bytes": _amount(decoded_cache_bytes),
        "cache_dir_bytes": None if cache_dir_bytes is None else parse_bytes(cache_dir_bytes),
        "max_concurrency": max_concurrency,
        "retries": retries,
        "timeout_s": timeout_s,
        "block_reads": block_reads,
    }
    settings = replace(_settings, **{k: v for k, v in changed.items() if v is not None})
    if cache_dir is not None:
        folder = os.path.abspath(os.path.expanduser(os.fspath(cache_dir))) if cache_dir else None
        settings = replace(settings, cache_dir=folder)
    _settings = settings
    return settings


def _amount(amount: int | str | None) -> int | None:
    """Return a number of bytes, which may be 0."""
    return amount if amount is None or amount == 0 else parse_bytes(amount)
