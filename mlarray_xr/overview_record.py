"""What the file of an overview says of itself, and the identity of the file it was made from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from mlarray_xr.format.integrity import INTEGRITY_NAME
from mlarray_xr.storage.frame_sections import read_sections, reading

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.storage.frame_sections import FrameSections, RandomAccess
    from mlarray_xr.storage.remote_source import Source

__all__ = ["Method", "OverviewRecord", "content_identity"]

Method = Literal["mean", "mode"]

# Inside our own entry, which is made anew when a user writes what was computed from a level: that
# is no level any more.
_ENTRY, _KEY = "mlarray_xr", "overview"
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_MOST_AXES = 16
_LARGEST_FACTOR = 1 << 62
# Chunk table, metadata and checksums of 100 000 chunks; of more the first and the last ones.
_DIGESTED_BYTES = 4 << 20
_SAMPLES, _SAMPLE_BYTES = 8, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRecord:
    """Which level of what a file is.

    Raises
    ------
    ValueError
        By the constructor, when an entry is not what it has to be.

    Examples
    --------
    >>> record = OverviewRecord(level=1, factors=(1, 2, 2), method="mean", of="0" * 32)
    >>> record.added_to({"site": 3})["mlarray_xr"]["overview"]["factors"]
    [1, 2, 2]
    """

    level: int
    """From 1 on; 0 is the file itself."""
    factors: tuple[int, ...]
    """How many voxels of the file make one, along every axis."""
    method: Method
    """What a voxel is of those that it stands for."""
    of: str
    """`content_identity` of the file that the level was made from."""

    def __post_init__(self) -> None:
        """Refuse what no level says of itself."""
        numbers = (self.level, *self.factors)
        is_plain = all(type(n) is int and 1 <= n <= _LARGEST_FACTOR for n in numbers)
        if not is_plain or len(self.factors) > _MOST_AXES:
            msg = f"level {self.level!r} of factors {self.factors!r}: whole numbers from 1 on"
            raise ValueError(msg)
        if self.method not in get_args(Method) or not _IDENTITY.fullmatch(self.of):
            msg = f"method {self.method!r} of {self.of!r}: 'mean' or 'mode', and 32 hex digits"
            raise ValueError(msg)

    @classmethod
    def found_in(cls, metadata: Metadata) -> Self | None:
        """Return what a file says; None when it says nothing, or nothing that makes sense."""
        entry = metadata.extra.get(_ENTRY)
        found: Any = entry.get(_KEY) if type(entry) is dict else None
        try:
            return cls(
                level=found["level"],
                factors=tuple(found["factors"]),
                method=found["method"],
                of=found["of"],
            )
        except (KeyError, TypeError, ValueError):
            return None

    def added_to(self, extra: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return free-form data with this in our entry of it, in place of an earlier one."""
        entry = extra.get(_ENTRY)
        said = {
            "level": self.level,
            "factors": list(self.factors),
            "method": self.method,
            "of": self.of,
        }
        return {**extra, _ENTRY: {**(entry if type(entry) is dict else {}), _KEY: said}}


def content_identity(source: Source) -> str:
    """Return what a copy of a file shares with it, and a file that replaces it does not.

    A digest of all that is not payload: header, chunk table, metadata and checksums (of more than
    4 MiB of them the first and the last 2 MiB). Of files without checksums samples of the payload
    count as well.

    Raises
    ------
    FormatError
        When the frame is damaged.
    SourceChanged
        When the file changed since the source was made.
    """
    digest = hashlib.blake2b(digest_size=16)
    with reading(source) as (read, size):
        sections = read_sections(read, size, name=source.name)
        header = sections.header
        digest.update(read(0, header.header_len))
        start, stop = header.index_start, header.frame_len
        half = _DIGESTED_BYTES // 2
        if stop - start > _DIGESTED_BYTES:
            digest.update(read(start, start + half))
            start = stop - half
        digest.update(read(start, stop))
        if INTEGRITY_NAME not in sections.entries:
            for sample in _payload_samples(read, sections):
                digest.update(sample)
    return digest.hexdigest()


def _payload_samples(read: RandomAccess, sections: FrameSections) -> list[bytes]:
    """Return some pieces of the payload, evenly apart."""
    header = sections.header
    room = max(0, header.payload_len - _SAMPLE_BYTES)
    starts = [header.header_len + room * i // (_SAMPLES - 1) for i in range(_SAMPLES)]
    return [read(start, min(start + _SAMPLE_BYTES, header.index_start)) for start in starts]
