"""The chain of pages in a TIFF file, walked before anybody trusts it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    import io

__all__ = ["count_pages"]

_CLASSIC, _BIG = 42, 43


def count_pages(file: io.BufferedIOBase, *, file_bytes: int, has_wide_offsets: bool) -> int:
    r"""Return the number of pages, which must be followed by an end.

    tifffile goes round and round in a ring of more than 100 pages, and takes a chain that breaks
    off for a whole one. TIFF 6.0 section 2 and the BigTIFF proposal say where the offsets are.

    Parameters
    ----------
    file
        The open file.
    file_bytes
        Its size.
    has_wide_offsets
        Whether offsets of a classic TIFF take 8 bytes, as Hamamatsu's do.

    Raises
    ------
    ConversionError
        When it is no TIFF, or the chain is broken.

    Examples
    --------
    >>> import io
    >>> one_page = b"II*\0" + struct.pack("<IHI", 8, 0, 0)
    >>> count_pages(io.BytesIO(one_page), file_bytes=14, has_wide_offsets=False)
    1
    """
    file.seek(0)
    head = file.read(8)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) == 8 else None
    if version not in (_CLASSIC, _BIG):
        raise ConversionError(f"not a TIFF file: it starts with {head[:4]!r}")
    is_big = version == _BIG
    number = struct.Struct(f"{order}Q" if is_big else f"{order}H")
    offset = struct.Struct(f"{order}Q" if is_big or has_wide_offsets else f"{order}I")
    entry_bytes = 20 if is_big else 12
    seen: set[int] = set()
    at = _number(file, 8 if is_big else 4, offset)
    while at:
        if at in seen or at >= file_bytes:
            raise ConversionError(
                f"the chain of pages is broken after page {len(seen) - 1}: the next is at {at} in "
                f"a file of {file_bytes} bytes. It is truncated or damaged"
            )
        seen.add(at)
        n_entries = _number(file, at, number)
        at = _number(file, at + number.size + n_entries * entry_bytes, offset)
    return len(seen)


def _number(file: io.BufferedIOBase, at: int, kind: struct.Struct) -> int:
    """Read one number, which must be in the file."""
    # Positions beyond 2**63 are no positions to the system.
    file.seek(min(at, 1 << 62))
    data = file.read(kind.size)
    if len(data) < kind.size:
        raise ConversionError(
            f"the file ends before byte {at + kind.size}, where its list of pages goes on: it is "
            "truncated or damaged"
        )
    return int(kind.unpack(data)[0])
