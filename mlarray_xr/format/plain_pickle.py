"""Metadata of releases from 0.0.49 on: a gzipped pickle, read without unpickling.

See `mlarray_xr.format.pickle_machine` for how. Of classes only those are accepted that genuine
files hold.
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.limits import expand_plain
from mlarray_xr.format.pickle_machine import (
    STEPS,
    SYMBOLS,
    Dtype,
    PickleMachine,
    Refused,
    Symbol,
    decoded_text,
)

if TYPE_CHECKING:
    from mlarray_xr.format.limits import Limits
    from mlarray_xr.format.metadata import Json

__all__ = ["decode_pickle"]

# Genuine files hold one member. Each further one costs a copy of what follows it.
_MOST_GZIP_MEMBERS: Final = 64


def decode_pickle(data: bytes, *, limits: Limits) -> dict[Any, Json]:
    r"""Decode a gzipped pickle of plain values into fresh dicts and lists; tuples become lists.

    Raises
    ------
    MetadataError
        When the gzip stream is damaged, an opcode, class or value is not on the accept list, the
        root is no dict, or a limit is passed.

    Examples
    --------
    >>> import gzip
    >>> from mlarray_xr.format.limits import DEFAULT_LIMITS
    >>> decode_pickle(gzip.compress(b"\x80\x04}\x8c\x01aK\x01s."), limits=DEFAULT_LIMITS)
    {'a': 1}
    """
    try:
        pickled = _gunzip(data, limits=limits)
        root = PickleMachine(pickled, limits=limits, steps=STEPS, symbols=_SYMBOLS).run()
    except Refused as found:
        raise MetadataError(
            f"the metadata must be a gzipped pickle of plain values, found {found}. To fix: write "
            "the file again with plain dict, list, str, int, float, bool and None as metadata."
        ) from found
    return expand_plain(root, limits=limits)  # type: ignore[return-value]


def _gunzip(data: bytes, *, limits: Limits) -> bytes:
    """Decompress every gzip member within `limits.value_bytes`."""
    parts: list[bytes] = []
    left = limits.value_bytes
    rest = data
    for _ in range(_MOST_GZIP_MEMBERS):
        member = zlib.decompressobj(wbits=31)
        try:
            # One byte more than allowed tells a full value from one that goes on.
            part = member.decompress(rest, left + 1)
        except zlib.error as error:
            raise Refused(f"a damaged gzip stream ({error})") from error
        left -= len(part)
        if left < 0:
            raise Refused(f"more than {limits.value_bytes} bytes, the limit Limits.value_bytes")
        if not member.eof:
            raise Refused("a gzip stream that breaks off")
        parts.append(part)
        rest = member.unused_data.lstrip(b"\0")
        if not rest:
            return b"".join(parts)
    raise Refused(f"more than {_MOST_GZIP_MEMBERS} gzip members")


def _reduce_list(args: tuple[Any, ...]) -> object:
    """`mlarray.meta._FrozenList`: the list it wraps."""
    if len(args) == 1 and type(args[0]) is list:
        return args[0]
    raise Refused("a _FrozenList of something other than one list")


def _reduce_dict(args: tuple[Any, ...]) -> object:
    """`mlarray.meta._FrozenDict`: the dict it wraps."""
    if len(args) == 1 and type(args[0]) is dict:
        return args[0]
    raise Refused("a _FrozenDict of something other than one dict")


def _reduce_scalar(args: tuple[Any, ...]) -> object:
    """`numpy` scalars that pass for plain values in the reference: float64 and str_."""
    match args:
        case (Dtype(code="f8", order="<" | ">" as order), bytes(raw)) if len(raw) == 8:
            return struct.unpack(f"{order}d", raw)[0]
        case (Dtype(code=code, order="<" | ">" as order), bytes(raw)) if code == (
            f"U{len(raw) // 4}"
        ):
            encoding = "utf-32-be" if order == ">" else "utf-32-le"
            return decoded_text(raw, encoding=encoding).rstrip("\0")
    raise Refused("a NumPy scalar that is neither float64 nor str_")


_SYMBOLS: Final = {
    **SYMBOLS,
    ("mlarray.meta", "_FrozenList"): Symbol(reduce=_reduce_list),
    ("mlarray.meta", "_FrozenDict"): Symbol(reduce=_reduce_dict),
    ("numpy._core.multiarray", "scalar"): Symbol(reduce=_reduce_scalar),
    ("numpy.core.multiarray", "scalar"): Symbol(reduce=_reduce_scalar),
}
