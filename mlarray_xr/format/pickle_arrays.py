"""Pickles of plain values and NumPy arrays, read without unpickling; arrays stay where they are.

What nnU-Net keeps beside its preprocessed images. Large arrays are described, not read, so that
a file of many megabytes costs a few small reads until somebody wants them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.limits import Limits
from mlarray_xr.format.pickle_machine import STEPS, PickleMachine, Refused, decoded_text
from mlarray_xr.format.pickle_numpy import ARRAY_SYMBOLS, PickledArray, Stretch, StubArray

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ARRAY_LIMITS", "decode_array_pickle"]

ARRAY_LIMITS: Final = Limits(opcodes=500_000, nodes=200_000, depth=32)
"""A thousand classes with their locations need less than a tenth of it."""

_WINDOW_BYTES: Final = 4096
_LARGE_BYTES: Final = 4096
_NAME_BYTES: Final = 128
_MOST_TUPLE_KEYS: Final = 4096
_MOST_KEY_PARTS: Final = 256


def decode_array_pickle(
    read: Callable[[int, int], bytes], *, size: int, limits: Limits = ARRAY_LIMITS
) -> dict[Any, Any]:
    r"""Decode a pickle of plain values and arrays into fresh dicts, lists and `PickledArray`.

    Tuples become lists, except in keys; ordered and default dicts become dicts, NumPy scalars
    Python's. Arrays may take as many bytes as the file has, all together.

    Parameters
    ----------
    read
        Returns the bytes of the file from start to stop.
    size
        Bytes of the file.
    limits
        What everything but the arrays may cost.

    Raises
    ------
    MetadataError
        When the file is damaged, something in it is not on the accept list, or a limit is passed.

    Examples
    --------
    >>> data = b"\x80\x04}\x8c\x07spacing]G\x3f\xf8" + bytes(6) + b"as."
    >>> decode_array_pickle(lambda start, stop: data[start:stop], size=len(data))
    {'spacing': [1.5]}
    """
    try:
        return _Values(limits, size).copy(_Machine(read, size, limits=limits).run())
    except Refused as found:
        raise MetadataError(
            f"a pickle of plain values and NumPy arrays is needed, found {found}. Nothing in it "
            "was executed. To fix: write it again with plain values and arrays of numbers."
        ) from found


class _Machine(PickleMachine):
    """The pickle machine over a file, a small window of it in memory."""

    __slots__ = ("_read", "_tuple_keys", "_window", "_window_start")

    def __init__(self, read: Callable[[int, int], bytes], size: int, *, limits: Limits) -> None:
        super().__init__(b"", limits=limits, steps=_STEPS, symbols=ARRAY_SYMBOLS)
        self.size = size
        self._read = read
        self._window = b""
        self._window_start = 0
        self._tuple_keys = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes; a file that has become shorter is refused."""
        start, stop = self.skip(count)
        if stop > self._window_start + len(self._window):
            self._window = self._read(start, min(self.size, max(stop, start + _WINDOW_BYTES)))
            self._window_start = start
        taken = self._window[start - self._window_start : stop - self._window_start]
        if len(taken) != count:
            raise Refused(f"{len(taken)} bytes where {count} were to be read")
        return taken

    def push_bytes(self, width: int) -> None:
        """BINBYTES and its like: small ones as they are, of large ones where they are."""
        count = self.uint(width)
        if count <= _LARGE_BYTES:
            self.push(self.take(count))
            return
        start, stop = self.skip(count)
        self.push(Stretch(start=start, stop=stop))

    def push_global(self) -> None:
        """GLOBAL: a class reference as two lines of text."""
        self.push_symbol(self._line(), self._line())

    def _line(self) -> str:
        """Return the next line of text, without its end."""
        line = bytearray()
        while len(line) <= _NAME_BYTES:
            byte = self.take(1)
            if byte == b"\n":
                return decoded_text(bytes(line), encoding="utf-8")
            line += byte
        raise Refused(f"the name of a class of more than {_NAME_BYTES} bytes")

    def check_key(self, key: object) -> None:
        """Refuse dict keys that are not plain; regions are tuples of whole numbers."""
        if type(key) is not tuple:
            super().check_key(key)
            return
        self._tuple_keys += 1
        # Hashes of tuples can be made to collide: few cannot make a dict crawl.
        if self._tuple_keys > _MOST_TUPLE_KEYS or len(key) > _MOST_KEY_PARTS:
            raise Refused(f"more than {_MOST_TUPLE_KEYS} tuples as dict keys, or a long one")
        for part in key:
            if type(part) is not int:
                raise Refused(f"a dict key with a {type(part).__name__} in a tuple")
            super().check_key(part)


class _Values:
    """One walk that copies what the machine has built, and what it has spent so far."""

    __slots__ = ("_arrays", "_left_bytes", "_limits", "_nodes", "_pending")

    def __init__(self, limits: Limits, size: int) -> None:
        self._limits = limits
        self._left_bytes = size
        self._nodes = 0
        self._arrays: dict[int, PickledArray] = {}
        self._pending: list[tuple[Any, Any, int]] = []

    def copy(self, root: dict[Any, Any]) -> dict[Any, Any]:
        """Copy everything; neither cycles nor deep nesting exhaust the interpreter."""
        result: dict[Any, Any] = self._place(root, depth=1)
        while self._pending:
            old, new, depth = self._pending.pop()
            self._nodes += len(old)
            if self._nodes > self._limits.nodes:
                raise Refused(f"more than {self._limits.nodes} entries in all dicts and lists")
            if isinstance(new, dict):
                new.update((key, self._place(item, depth=depth + 1)) for key, item in old.items())
            else:
                new.extend(self._place(item, depth=depth + 1) for item in old)
        return result

    def _place(self, value: Any, *, depth: int) -> Any:
        """Return a leaf, or an empty container that is filled later."""
        if value is None or type(value) in {str, int, float, bool}:
            return value
        if type(value) is StubArray:
            return self._array(value)
        if type(value) not in {dict, list, tuple}:
            raise Refused(f"a {type(value).__name__} on its own")
        if depth > self._limits.depth:
            raise Refused(f"more than {self._limits.depth} nested dicts and lists")
        new: Any = {} if type(value) is dict else []
        self._pending.append((value, new, depth))
        return new

    def _array(self, array: StubArray) -> PickledArray:
        """Describe an array, one that is shared once; all together fit the file."""
        found = self._arrays.get(id(array))
        if found is None:
            self._left_bytes -= len(array.raw)
            if self._left_bytes < 0:
                raise Refused("arrays of more bytes than the file has")
            found = self._arrays[id(array)] = array.described()
        return found


_STEPS: Final = {
    **STEPS,
    # bytes
    0x43: lambda machine: machine.push_bytes(1),
    0x42: lambda machine: machine.push_bytes(4),
    0x8E: lambda machine: machine.push_bytes(8),
    0x96: lambda machine: machine.push_bytes(8),
    # protocols 2 and 3
    0x63: _Machine.push_global,
    0x71: lambda machine: machine.put(machine.uint(1)),
    0x72: lambda machine: machine.put(machine.uint(4)),
}
