"""The entry of a file that says how its layout was decided; plain data, written once.

It is an entry of its own beside the metadata, because it describes the chunks and not the image: a
program that writes other chunks does not carry it along. Its value is JSON text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PLANNING_BYTES", "PLANNING_NAME", "decode_planning", "encode_planning"]

PLANNING_NAME = "mlarray_xr.layout"
PLANNING_BYTES = 64 << 10
"""Longest text that is read."""

_VERSION = 1


def encode_planning(facts: Mapping[str, Any]) -> bytes:
    """Encode the entry: the same facts give the same bytes.

    Examples
    --------
    >>> encode_planning({"rule": "searched"})
    b'{"rule": "searched", "version": 1}'
    """
    return json.dumps({**facts, "version": _VERSION}, sort_keys=True).encode()


def decode_planning(data: bytes) -> dict[str, Any] | None:
    """Decode the entry; None when it is damaged, too long, or of a later version.

    The content comes from a file: whoever uses it checks what it is.

    Examples
    --------
    >>> decode_planning(b'{"rule": "searched", "version": 1}')
    {'rule': 'searched'}
    """
    if len(data) > PLANNING_BYTES:
        return None
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.pop("version", None) != _VERSION:
        return None
    return found
