"""Files as they are: bytes with ranges and conditions, which our own reader takes as a remote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlarray_xr.serving.answer import FilePart, checked_answer, ranged_answer
from mlarray_xr.serving.conditions import Version

if TYPE_CHECKING:
    from mlarray_xr.serving.answer import Answer
    from mlarray_xr.serving.request import Request
    from mlarray_xr.storage.source import LocalSource

__all__ = ["answer_raw"]

_NS_PER_S = 10**9


def answer_raw(request: Request, source: LocalSource) -> Answer:
    """Answer a GET or HEAD request for the bytes of a file, pinned for this one answer."""
    version = Version(
        etag=f'"{source.size:x}-{source.mtime_ns:x}-{source.inode:x}"',
        modified_s=source.mtime_ns // _NS_PER_S,
    )
    whole = FilePart(source=source, start=0, stop=source.size)
    return checked_answer(request, version) or ranged_answer(
        request, version, whole, content_type="application/octet-stream"
    )
