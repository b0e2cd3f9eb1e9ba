"""What a metadata value may cost, and the one walk that holds every decoded value to it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from mlarray_xr.errors import MetadataError

if TYPE_CHECKING:
    from mlarray_xr.format.metadata import Json

__all__ = ["DEFAULT_LIMITS", "Limits", "expand_plain"]

# Python hashes an int modulo 2**61 - 1: wider keys can be made to collide by the million.
_WIDEST_INT_KEY: Final = 2**64
_LEAVES: Final = frozenset({str, int, float, bool, type(None)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that decoding one metadata value may cost; every number is a positive int.

    Parameters
    ----------
    value_bytes
        Bytes of the stored value, bytes after decompression, and bytes of all text and integers
        of the result, where shared values count every time they occur.
    opcodes
        Steps of the pickle decoder.
    depth
        Nesting of dicts and lists; the root counts as one.
    nodes
        Entries of all dicts and lists together, where shared values count every time they occur.
    int_bytes
        Width of one integer; 255 is also the most the decoder knows.

    Raises
    ------
    ValueError
        By the constructor, when a limit is not a positive int.

    Examples
    --------
    >>> Limits(depth=500).depth
    500
    """

    value_bytes: int = 32 * 2**20
    opcodes: int = 5_000_000
    depth: int = 200
    nodes: int = 2_000_000
    int_bytes: int = 255

    def __post_init__(self) -> None:
        """Check that every limit is a positive int."""
        for field in fields(self):
            number = getattr(self, field.name)
            if type(number) is not int or number < 1:
                raise ValueError(
                    f"Limits.{field.name} must be a positive int, found {number!r}. "
                    f"To fix: leave it out to use {field.default}."
                )


DEFAULT_LIMITS: Final = Limits()


def expand_plain(value: object, *, limits: Limits) -> Json:
    """Copy `value` into fresh dicts and lists that share nothing and hold plain leaves only.

    Tuples become lists. The walk is iterative, so neither cycles nor deep nesting exhaust the
    interpreter, and shared references are counted every time they occur.

    Raises
    ------
    MetadataError
        When a leaf is not exactly str, int, float, bool or None, a key is none of these or an
        int wider than 64 bit, or a limit is passed.

    Examples
    --------
    >>> expand_plain({"labels": ("a", "b")}, limits=DEFAULT_LIMITS)
    {'labels': ['a', 'b']}
    """
    plain: Json = _Expansion(limits).copy(value)
    return plain


class _Expansion:
    """One walk and what it has spent so far."""

    __slots__ = ("_bytes", "_limits", "_nodes", "_pending", "_texts")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._nodes = 0
        self._bytes = 0
        # Equal texts become one object, so that equal values also pickle to equal bytes.
        self._texts: dict[str, str] = {}
        self._pending: list[tuple[Any, Any, int]] = []

    def copy(self, value: object) -> Any:
        """Copy `value`, filling each new container when its turn comes."""
        root = self._place(value, depth=1)
        while self._pending:
            old, new, depth = self._pending.pop()
            self._nodes += len(old)
            if self._nodes > self._limits.nodes:
                raise _over("nodes", self._limits.nodes, "entries in all dicts and lists")
            if isinstance(new, dict):
                for key, item in old.items():
                    new[self._key(key)] = self._place(item, depth=depth + 1)
            else:
                new.extend([self._place(item, depth=depth + 1) for item in old])
        return root

    def _place(self, value: Any, *, depth: int) -> Any:
        """Return the leaf itself, or an empty container that is filled later."""
        kind = type(value)
        if kind in _LEAVES:
            return self._spend(value)
        if kind not in {dict, list, tuple}:
            raise MetadataError(
                f"metadata may hold dict, list, str, int, float, bool and None only, found "
                f"{kind.__name__}. To fix: convert the value before it is stored."
            )
        if depth > self._limits.depth:
            raise _over("depth", self._limits.depth, "nested dicts and lists")
        new: Any = {} if kind is dict else []
        self._pending.append((value, new, depth))
        return new

    def _key(self, key: Any) -> Any:
        """Return the key; refuse what is not plain, or could be chosen to collide."""
        if type(key) not in _LEAVES:
            raise MetadataError(
                f"metadata keys must be str, int, float, bool or None, found "
                f"{type(key).__name__}. To fix: use text keys."
            )
        if type(key) is int and abs(key) >= _WIDEST_INT_KEY:
            raise MetadataError(
                f"integer metadata keys must fit 64 bit, found {key.bit_length()} bit. "
                "To fix: use text keys."
            )
        return self._spend(key)

    def _spend(self, leaf: Any) -> Any:
        """Return the leaf; count the bytes it takes wherever the result is written out."""
        if type(leaf) is str:
            self._bytes += len(leaf)
            leaf = self._texts.setdefault(leaf, leaf)
        elif type(leaf) is int:
            width = leaf.bit_length() // 8 + 1
            if width > self._limits.int_bytes:
                raise _over("int_bytes", self._limits.int_bytes, f"bytes in one int ({width})")
            self._bytes += width
        if self._bytes > self._limits.value_bytes:
            raise _over("value_bytes", self._limits.value_bytes, "bytes of text and integers")
        return leaf


def _over(name: str, limit: int, what: str) -> MetadataError:
    """Build the error for a passed limit."""
    return MetadataError(
        f"metadata may hold at most {limit} {what}, found more. "
        f"To fix: raise Limits.{name} if the file is trusted."
    )
