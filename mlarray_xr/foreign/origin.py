"""Origin: what a file was converted from, as it says itself, so that nothing is done twice.

The record is ``extra["mlarray_xr"]["origin"]``. It holds digests: names of files may be names of
patients.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import MlaError

if TYPE_CHECKING:
    from mlarray_xr.foreign.case import Case
    from mlarray_xr.format.metadata import Metadata

__all__ = ["Origin", "Step", "origin_of", "plan_step", "recorded_origin", "with_origin"]

_KEY, _ENTRY = "mlarray_xr", "origin"
_DIGEST_BYTES = 16

Step = Literal["convert", "replace", "skip", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a conversion starts from: 32 hexadecimal digits each."""

    place: str
    """Of the path of the source."""
    content: str
    """Of names, sizes and modification times of its files."""
    request: str
    """Of what was asked for: layout, codec, dataset."""

    def to_dict(self) -> dict[str, str]:
        """Return the record."""
        return asdict(self)


def origin_of(case: Case, *, request: str) -> Origin:
    """Return the origin of a conversion.

    A copy that keeps modification times has the same content at another place.

    Parameters
    ----------
    case
        What is converted, measured.
    request
        What is asked for, as text.
    """
    place = _digest(os.path.realpath(case.source))
    return Origin(place=place, content=case.content, request=_digest(request))


def recorded_origin(path: str) -> Origin | None:
    """Return the origin that a file records; None without one, or when it cannot be read."""
    try:
        entry = MlaArray(path).metadata.extra.get(_KEY)
    except (MlaError, OSError):
        return None
    record = entry.get(_ENTRY) if type(entry) is dict else None
    if type(record) is not dict or {*record} != {"place", "content", "request"}:
        return None
    texts = {str(name): value for name, value in record.items() if type(value) is str}
    return Origin(**texts) if len(texts) == len(record) else None


def with_origin(metadata: Metadata, origin: Origin) -> Metadata:
    """Return metadata that record an origin, in place of an earlier one."""
    found = metadata.extra.get(_KEY)
    entry: dict[Any, Any] = {**found} if type(found) is dict else {}
    entry[_ENTRY] = origin.to_dict()
    return replace(metadata, extra={**metadata.extra, _KEY: entry})


def plan_step(
    wanted: Origin, found: Origin | None, *, exists: bool, overwrite: bool, resume: bool
) -> Step:
    """Decide what happens to a target.

    Parameters
    ----------
    wanted
        Of the conversion that is asked for.
    found
        What an existing target records.
    exists
        Whether there is a target.
    overwrite
        Whether any target may be replaced.
    resume
        Whether complete conversions are left as they are.

    Returns
    -------
    {"convert", "replace", "skip", "refuse"}
        A target that records the same content and request is complete, wherever its source was
        then. One that records the same place has an outdated content or request. Any other is
        somebody else's, and refused.

    Examples
    --------
    >>> then = Origin(place="p", content="c", request="r")
    >>> now = Origin(place="p", content="changed", request="r")
    >>> plan_step(now, then, exists=True, overwrite=False, resume=True)
    'replace'
    """
    if not exists:
        return "convert"
    if resume and found is not None:
        if (found.content, found.request) == (wanted.content, wanted.request):
            return "skip"
        if found.place == wanted.place:
            return "replace"
    return "replace" if overwrite else "refuse"


def _digest(text: str) -> str:
    """Return 32 hexadecimal digits."""
    return hashlib.blake2b(os.fsencode(text), digest_size=_DIGEST_BYTES).hexdigest()
