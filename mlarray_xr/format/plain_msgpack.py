"""Metadata of releases up to 0.0.48: one msgpack value in the dialect of python-blosc2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.limits import expand_plain

if TYPE_CHECKING:
    from mlarray_xr.format.limits import Limits
    from mlarray_xr.format.metadata import Json

__all__ = ["decode_msgpack"]


def decode_msgpack(data: bytes, *, limits: Limits) -> Json:
    r"""Decode one msgpack value into plain dicts and lists.

    A list that starts with ``"__tuple__"`` is how python-blosc2 spells a tuple: it comes back as
    a list without that mark. Integer keys, NaN and infinities are legal.

    Raises
    ------
    MetadataError
        When `data` is no single complete value, holds bytes, timestamps or extension types, or
        passes a limit.

    Examples
    --------
    >>> from mlarray_xr.format.limits import DEFAULT_LIMITS
    >>> decode_msgpack(b"\x81\xa1a\x92\x01\x02", limits=DEFAULT_LIMITS)
    {'a': [1, 2]}
    """
    if len(data) > limits.value_bytes:
        raise _refusal(f"{len(data)} bytes, over the limit of {limits.value_bytes}")
    spent = 0

    def count(container: Any) -> Any:
        """Stop a bomb while it is built: a container of one byte takes 64 bytes of memory."""
        nonlocal spent
        spent += len(container)
        if spent > limits.nodes:
            raise _refusal(f"more than {limits.nodes} entries, the limit")
        return container

    def drop_tuple_mark(items: list[Any]) -> Any:
        """Count a list and take the mark of a tuple off."""
        count(items)
        return items[1:] if items and items[0] == "__tuple__" else items

    try:
        value = msgpack.unpackb(
            data,
            list_hook=drop_tuple_mark,
            object_hook=count,
            ext_hook=_refuse_extension,
            strict_map_key=False,
            max_array_len=min(limits.nodes, len(data)),
            max_map_len=min(limits.nodes, len(data)),
        )
    except MetadataError:
        raise
    # MemoryError: nested array headers reserve their items before any item is read.
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise _refusal(f"{type(error).__name__} ({error})") from error
    except msgpack.UnpackException as error:
        raise _refusal(f"{type(error).__name__} ({error})") from error
    return expand_plain(value, limits=limits)


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    """Refuse extension types: they embed frames and references to other files."""
    raise _refusal(f"extension type {code} of {len(data)} bytes")


def _refusal(found: str) -> MetadataError:
    """Build the error for a value that is not safe, complete msgpack."""
    return MetadataError(
        f"the metadata must be one plain msgpack value, found {found}. "
        "To fix: write the file again with the program that made it."
    )
