"""Metadata of releases from 0.0.49 on: a gzipped pickle, read without unpickling.

A loop over an accept list of opcodes builds plain values. Nothing is imported, called or
instantiated: the few class references that genuine files hold become inert symbols, and only
REDUCE and BUILD may consume them.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.limits import expand_plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlarray_xr.format.limits import Limits
    from mlarray_xr.format.metadata import Json

__all__ = ["decode_pickle"]

_PROTO: Final = 0x80
_NEWEST_PROTOCOL: Final = 5
_STOP: Final = 0x2E
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
    root = _Machine(_gunzip(data, limits=limits), limits=limits).run()
    if type(root) is not dict:
        raise _refusal(f"a {type(root).__name__} where the root dict must be")
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
            raise _refusal(f"a damaged gzip stream ({error})") from error
        left -= len(part)
        if left < 0:
            raise _refusal(f"more than {limits.value_bytes} bytes, the limit Limits.value_bytes")
        if not member.eof:
            raise _refusal("a gzip stream that breaks off")
        parts.append(part)
        rest = member.unused_data.lstrip(b"\0")
        if not rest:
            return b"".join(parts)
    raise _refusal(f"more than {_MOST_GZIP_MEMBERS} gzip members")


def _refusal(found: str) -> MetadataError:
    """Build the error for bytes that are not a safe pickle of plain values."""
    return MetadataError(
        f"the metadata must be a gzipped pickle of plain values, found {found}. To fix: write the "
        "file again with plain dict, list, str, int, float, bool and None as metadata."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Symbol:
    """An accepted class reference: inert, and only good for REDUCE."""

    reduce: Callable[[tuple[object, ...]], object]


class _Dtype:
    """A NumPy dtype between its REDUCE and its BUILD, which fills in the byte order.

    Mutable because genuine pickles fetch it from the memo, where BUILD must have reached it.
    """

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    def build(self, state: object) -> None:
        """Take the byte order from the state tuple of `numpy.dtype.__setstate__`."""
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise _refusal("a NumPy dtype with an unknown state")
        self.order = ">" if state[1] == ">" else "<"


def _reduce_list(args: tuple[object, ...]) -> object:
    """`mlarray.meta._FrozenList`: the list it wraps."""
    if len(args) == 1 and type(args[0]) is list:
        return args[0]
    raise _refusal("a _FrozenList of something other than one list")


def _reduce_dict(args: tuple[object, ...]) -> object:
    """`mlarray.meta._FrozenDict`: the dict it wraps."""
    if len(args) == 1 and type(args[0]) is dict:
        return args[0]
    raise _refusal("a _FrozenDict of something other than one dict")


def _reduce_ordered_dict(args: tuple[object, ...]) -> object:
    """`collections.OrderedDict`: a dict, which keeps its order anyway."""
    if args:
        raise _refusal("an OrderedDict with arguments")
    return {}


def _reduce_dtype(args: tuple[object, ...]) -> object:
    """`numpy.dtype`: a stub that only a scalar may consume."""
    if [type(arg) for arg in args] == [str, bool, bool]:
        return _Dtype(str(args[0]))
    raise _refusal("a NumPy dtype with unknown arguments")


def _reduce_scalar(args: tuple[object, ...]) -> object:
    """`numpy` scalars that pass for plain values in the reference: float64 and str_."""
    match args:
        case (_Dtype(code="f8", order="<" | ">" as order), bytes(raw)) if len(raw) == 8:
            return struct.unpack(f"{order}d", raw)[0]
        case (_Dtype(code=code, order="<" | ">" as order), bytes(raw)) if code == (
            f"U{len(raw) // 4}"
        ):
            return _text(raw, encoding="utf-32-be" if order == ">" else "utf-32-le").rstrip("\0")
    raise _refusal("a NumPy scalar that is neither float64 nor str_")


def _text(raw: bytes, *, encoding: str) -> str:
    """Decode text; lone surrogates are legal data."""
    try:
        return raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise _refusal(f"text that is not {encoding}") from error


_SYMBOLS: Final = {
    ("mlarray.meta", "_FrozenList"): _Symbol(reduce=_reduce_list),
    ("mlarray.meta", "_FrozenDict"): _Symbol(reduce=_reduce_dict),
    ("collections", "OrderedDict"): _Symbol(reduce=_reduce_ordered_dict),
    ("numpy", "dtype"): _Symbol(reduce=_reduce_dtype),
    ("numpy._core.multiarray", "scalar"): _Symbol(reduce=_reduce_scalar),
    ("numpy.core.multiarray", "scalar"): _Symbol(reduce=_reduce_scalar),
}


class _Machine:
    """The pickle machine over the accept list: a stack, the stacks below marks, and a memo."""

    __slots__ = ("_at", "_below_marks", "_data", "_limits", "_memo", "_stack")

    def __init__(self, data: bytes, *, limits: Limits) -> None:
        self._data = data
        self._limits = limits
        self._at = 0
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: list[Any] = []

    def run(self) -> object:
        """Execute the whole pickle and return its one object, still unchecked inside."""
        if self.uint(1) != _PROTO or self.uint(1) > _NEWEST_PROTOCOL:
            raise _refusal(f"no pickle of protocol 2 to {_NEWEST_PROTOCOL}")
        for _ in range(self._limits.opcodes):
            opcode = self.uint(1)
            if opcode == _STOP:
                return self._finish()
            step = _STEPS.get(opcode)
            if step is None:
                raise _refusal(f"the refused pickle opcode 0x{opcode:02x} at byte {self._at - 1}")
            step(self)
        raise _refusal(f"more than {self._limits.opcodes} pickle opcodes, the limit Limits.opcodes")

    def _finish(self) -> object:
        """Return the result when it is the only thing left."""
        if self._at != len(self._data):
            raise _refusal(f"{len(self._data) - self._at} bytes after the end of the pickle")
        if self._below_marks or len(self._stack) != 1:
            raise _refusal("a pickle that does not end with exactly one object")
        return self._stack[0]

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, checked before anything is sliced."""
        end = self._at + count
        if end > len(self._data):
            raise _refusal(f"a length of {count} bytes with {len(self._data) - self._at} left")
        raw = self._data[self._at : end]
        self._at = end
        return raw

    def uint(self, width: int) -> int:
        """Return the next little-endian unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def push(self, item: object) -> None:
        """Put one object on top of the stack."""
        self._stack.append(item)

    def pop(self) -> Any:
        """Take the top of the stack, never reaching below a mark."""
        if not self._stack:
            raise _refusal("a pickle that takes from an empty stack")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        if not self._below_marks:
            raise _refusal("a pickle without the mark it refers to")
        items = self._stack
        self._stack = self._below_marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        """Return the top of the stack, which must be exactly of `kind`."""
        if not self._stack or type(self._stack[-1]) is not kind:
            raise _refusal(f"a pickle that fills a {kind.__name__} where there is none")
        return self._stack[-1]

    def frame(self) -> None:
        """FRAME: a length that must fit; the frame itself needs no buffer."""
        length = self.uint(8)
        if length > len(self._data) - self._at:
            raise _refusal(f"a pickle frame of {length} bytes with fewer left")

    def push_int(self, width: int) -> None:
        """LONG1: a signed integer of `width` bytes."""
        if width > self._limits.int_bytes:
            raise _refusal(f"an integer of {width} bytes, over the limit Limits.int_bytes")
        self.push(int.from_bytes(self.take(width), "little", signed=True))

    def mark(self) -> None:
        """MARK: begin a stack of its own."""
        self._below_marks.append(self._stack)
        self._stack = []

    def push_tuple(self, count: int) -> None:
        """TUPLE1 to TUPLE3: the top `count` objects."""
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        """APPEND and APPENDS: add to the list on top."""
        self._top(list).extend(items)

    def set_items(self, items: list[Any]) -> None:
        """SETITEM and SETITEMS: add key and value pairs to the dict on top."""
        target = self._top(dict)
        if len(items) % 2:
            raise _refusal("a dict key without a value")
        for key, item in zip(items[::2], items[1::2], strict=True):
            if type(key) not in {str, int, float, bool, type(None)}:
                raise _refusal(f"a dict key of type {type(key).__name__}")
            # Wider integers can be chosen to share one hash, which makes a dict crawl.
            if type(key) is int and key.bit_length() > 64:
                raise _refusal(f"an integer dict key of {key.bit_length()} bit, over 64")
            target[key] = item

    def memoize(self) -> None:
        """MEMOIZE: remember the top of the stack under the next number."""
        if not self._stack:
            raise _refusal("a pickle that takes from an empty stack")
        self._memo.append(self._stack[-1])

    def recall(self, index: int) -> None:
        """BINGET and LONG_BINGET: push what was remembered."""
        if index >= len(self._memo):
            raise _refusal(f"memo entry {index} of {len(self._memo)}")
        self.push(self._memo[index])

    def find_symbol(self) -> None:
        """STACK_GLOBAL: an accepted (module, name) pair becomes its symbol; nothing is imported."""
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise _refusal("a class reference without a name")
        symbol = _SYMBOLS.get((module, name))
        if symbol is None:
            raise _refusal(f"the refused class or function {module[:60]!a} {name[:60]!a}")
        self.push(symbol)

    def reduce(self) -> None:
        """REDUCE: what a symbol makes of its arguments."""
        args, symbol = self.pop(), self.pop()
        if type(symbol) is not _Symbol or type(args) is not tuple:
            raise _refusal("a call of something other than an accepted class")
        self.push(symbol.reduce(args))

    def build(self) -> None:
        """BUILD: the second half of a NumPy dtype."""
        state = self.pop()
        self._top(_Dtype).build(state)


def _push(read: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    """Make the step that pushes what `read` returns."""
    return lambda machine: machine.push(read(machine))


_STEPS: Final[dict[int, Callable[[_Machine], None]]] = {
    0x95: _Machine.frame,
    # values
    0x4E: lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    0x4A: _push(lambda machine: int.from_bytes(machine.take(4), "little", signed=True)),
    0x4B: _push(lambda machine: machine.uint(1)),
    0x4D: _push(lambda machine: machine.uint(2)),
    0x8A: lambda machine: machine.push_int(machine.uint(1)),
    0x47: _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    0x8C: _push(lambda machine: _text(machine.take(machine.uint(1)), encoding="utf-8")),
    0x58: _push(lambda machine: _text(machine.take(machine.uint(4)), encoding="utf-8")),
    0x43: _push(lambda machine: machine.take(machine.uint(1))),
    0x42: _push(lambda machine: machine.take(machine.uint(4))),
    # containers
    0x7D: lambda machine: machine.push({}),
    0x5D: lambda machine: machine.push([]),
    0x29: lambda machine: machine.push(()),
    0x28: _Machine.mark,
    0x73: lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    0x75: lambda machine: machine.set_items(machine.pop_to_mark()),
    0x61: lambda machine: machine.append([machine.pop()]),
    0x65: lambda machine: machine.append(machine.pop_to_mark()),
    0x74: _push(lambda machine: tuple(machine.pop_to_mark())),
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    # memo
    0x94: _Machine.memoize,
    0x68: lambda machine: machine.recall(machine.uint(1)),
    0x6A: lambda machine: machine.recall(machine.uint(4)),
    # symbols
    0x93: _Machine.find_symbol,
    0x52: _Machine.reduce,
    0x62: _Machine.build,
}
