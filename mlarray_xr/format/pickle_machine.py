"""The pickle machine over an accept list: builds plain values, imports and calls nothing.

What a decoder accepts is its table of steps and its table of symbols. Class references become
inert symbols, and only REDUCE and BUILD may consume them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.format.limits import Limits

__all__ = [
    "STEPS",
    "SYMBOLS",
    "Dtype",
    "PickleMachine",
    "Refused",
    "Steps",
    "Symbol",
    "Symbols",
    "Unfinished",
    "decoded_text",
]

_PROTO: Final = 0x80
_NEWEST_PROTOCOL: Final = 5
_STOP: Final = 0x2E
# Wider integers can be chosen to share one hash, which makes a dict crawl.
_MOST_KEY_BITS: Final = 64


class Refused(Exception):
    """Raised inside a decoder, which says what it wanted; the message is what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbol:
    """An accepted class reference: inert, and only good for REDUCE."""

    reduce: Callable[[tuple[Any, ...]], object]
    """Makes a plain value of its arguments."""


class Unfinished:
    """What REDUCE has made and BUILD fills in.

    Mutable because genuine pickles fetch it from the memo, where BUILD must have reached it.
    """

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Take the state; `Refused` when it is not of the known form."""
        raise NotImplementedError


class Dtype(Unfinished):
    """A NumPy dtype between its REDUCE and its BUILD, which fills in the byte order."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    def build(self, state: Any) -> None:
        """Take the byte order from the state tuple of `numpy.dtype.__setstate__`."""
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("a NumPy dtype with an unknown state")
        self.order = ">" if state[1] == ">" else "<"


class PickleMachine:
    """A stack, the stacks below marks, and a memo.

    Parameters
    ----------
    data
        The pickle.
    limits
        What it may cost.
    steps
        What each accepted opcode does.
    symbols
        The accepted (module, name) pairs.
    """

    __slots__ = (
        "_below_marks",
        "_data",
        "_limits",
        "_memo",
        "_reduced_bytes",
        "_stack",
        "_steps",
        "_symbols",
        "at",
        "size",
    )

    def __init__(self, data: bytes, *, limits: Limits, steps: Steps, symbols: Symbols) -> None:
        self._data = data
        self._limits = limits
        self._steps = steps
        self._symbols = symbols
        self.size = len(data)
        self.at = 0
        self._reduced_bytes = 0
        self._stack: list[Any] = []
        self._below_marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> dict[Any, Any]:
        """Execute the whole pickle and return its one object, a dict, still unchecked inside.

        Raises
        ------
        Refused
            When an opcode, class or value is not on the accept list, or a limit is passed.
        """
        if self.uint(1) != _PROTO or self.uint(1) > _NEWEST_PROTOCOL:
            raise Refused(f"no pickle of protocol 2 to {_NEWEST_PROTOCOL}")
        for _ in range(self._limits.opcodes):
            opcode = self.uint(1)
            if opcode == _STOP:
                return self._finish()
            step = self._steps.get(opcode)
            if step is None:
                raise Refused(f"the refused pickle opcode 0x{opcode:02x} at byte {self.at - 1}")
            step(self)
        raise Refused(f"more than {self._limits.opcodes} pickle opcodes, the limit Limits.opcodes")

    def _finish(self) -> dict[Any, Any]:
        """Return the result when it is the only thing left, and a dict."""
        if self.at != self.size:
            raise Refused(f"{self.size - self.at} bytes after the end of the pickle")
        if self._below_marks or len(self._stack) != 1:
            raise Refused("a pickle that does not end with exactly one object")
        root = self._stack[0]
        if type(root) is not dict:
            raise Refused(f"a {type(root).__name__} where the root dict must be")
        return root

    def skip(self, count: int) -> tuple[int, int]:
        """Pass over the next `count` bytes and return where they start and stop."""
        start, stop = self.at, self.at + count
        if stop > self.size:
            raise Refused(f"a length of {count} bytes with {self.size - start} left")
        self.at = stop
        return start, stop

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes, checked before anything is sliced."""
        start, stop = self.skip(count)
        return self._data[start:stop]

    def uint(self, width: int) -> int:
        """Return the next little-endian unsigned integer of `width` bytes."""
        return int.from_bytes(self.take(width), "little")

    def push(self, item: object) -> None:
        """Put one object on top of the stack."""
        self._stack.append(item)

    def pop(self) -> Any:
        """Take the top of the stack, never reaching below a mark."""
        if not self._stack:
            raise Refused("a pickle that takes from an empty stack")
        return self._stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        if not self._below_marks:
            raise Refused("a pickle without the mark it refers to")
        items = self._stack
        self._stack = self._below_marks.pop()
        return items

    def _top(self, kind: type) -> Any:
        """Return the top of the stack, which must be exactly of `kind`."""
        if not self._stack or type(self._stack[-1]) is not kind:
            raise Refused(f"a pickle that fills a {kind.__name__} where there is none")
        return self._stack[-1]

    def frame(self) -> None:
        """FRAME: a length that must fit; the frame itself needs no buffer."""
        length = self.uint(8)
        if length > self.size - self.at:
            raise Refused(f"a pickle frame of {length} bytes with fewer left")

    def push_int(self, width: int) -> None:
        """LONG1: a signed integer of `width` bytes."""
        if width > self._limits.int_bytes:
            raise Refused(f"an integer of {width} bytes, over the limit Limits.int_bytes")
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
            raise Refused("a dict key without a value")
        for key, item in zip(items[::2], items[1::2], strict=True):
            self.check_key(key)
            target[key] = item

    def check_key(self, key: object) -> None:
        """Refuse dict keys that are not plain, or could be chosen to collide."""
        if type(key) not in {str, int, float, bool, type(None)}:
            raise Refused(f"a dict key of type {type(key).__name__}")
        if type(key) is int and key.bit_length() > _MOST_KEY_BITS:
            raise Refused(f"an integer dict key of {key.bit_length()} bit, over {_MOST_KEY_BITS}")

    def memoize(self) -> None:
        """MEMOIZE: remember the top of the stack under the next number."""
        self.put(len(self._memo))

    def put(self, index: int) -> None:
        """BINPUT and LONG_BINPUT: remember the top of the stack under a number."""
        if not self._stack:
            raise Refused("a pickle that takes from an empty stack")
        self._memo[index] = self._stack[-1]

    def recall(self, index: int) -> None:
        """BINGET and LONG_BINGET: push what was remembered."""
        if index not in self._memo:
            raise Refused(f"memo entry {index} of {len(self._memo)}")
        self.push(self._memo[index])

    def stack_global(self) -> None:
        """STACK_GLOBAL: the (module, name) pair on the stack."""
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise Refused("a class reference without a name")
        self.push_symbol(module, name)

    def push_symbol(self, module: str, name: str) -> None:
        """Push the symbol of an accepted (module, name) pair; nothing is imported."""
        symbol = self._symbols.get((module, name))
        if symbol is None:
            raise Refused(f"the refused class or function {module[:60]!a} {name[:60]!a}")
        self.push(symbol)

    def reduce(self) -> None:
        """REDUCE: what a symbol makes of its arguments."""
        args, symbol = self.pop(), self.pop()
        if type(symbol) is not Symbol or type(args) is not tuple:
            raise Refused("a call of something other than an accepted class")
        # One memoized buffer can be decoded again and again.
        self._reduced_bytes += sum(len(arg) for arg in args if type(arg) is bytes)
        if self._reduced_bytes > self._limits.value_bytes:
            raise Refused("more bytes of NumPy scalars than the limit Limits.value_bytes")
        self.push(symbol.reduce(args))

    def build(self) -> None:
        """BUILD: the second half of a NumPy object."""
        state = self.pop()
        if not self._stack or not isinstance(self._stack[-1], Unfinished):
            raise Refused("a pickle that fills in an object where there is none")
        self._stack[-1].build(state)


Steps: TypeAlias = "Mapping[int, Callable[[Any], None]]"
Symbols: TypeAlias = "Mapping[tuple[str, str], Symbol]"


def decoded_text(raw: bytes, *, encoding: str) -> str:
    """Decode text; lone surrogates are legal data."""
    try:
        return raw.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise Refused(f"text that is not {encoding}") from error


def _push(read: Callable[[PickleMachine], object]) -> Callable[[PickleMachine], None]:
    """Make the step that pushes what `read` returns."""
    return lambda machine: machine.push(read(machine))


def _reduce_ordered_dict(args: tuple[Any, ...]) -> object:
    """`collections.OrderedDict`: a dict, which keeps its order anyway."""
    if args:
        raise Refused("an OrderedDict with arguments")
    return {}


def _reduce_dtype(args: tuple[Any, ...]) -> object:
    """`numpy.dtype`: a stub that only scalars and arrays may consume."""
    if [type(arg) for arg in args] == [str, bool, bool]:
        return Dtype(args[0])
    raise Refused("a NumPy dtype with unknown arguments")


SYMBOLS: Final[Symbols] = {
    ("collections", "OrderedDict"): Symbol(reduce=_reduce_ordered_dict),
    ("numpy", "dtype"): Symbol(reduce=_reduce_dtype),
}
"""What every decoder accepts."""

STEPS: Final[Steps] = {
    0x95: PickleMachine.frame,
    # values
    0x4E: lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    0x4A: _push(lambda machine: int.from_bytes(machine.take(4), "little", signed=True)),
    0x4B: _push(lambda machine: machine.uint(1)),
    0x4D: _push(lambda machine: machine.uint(2)),
    0x8A: lambda machine: machine.push_int(machine.uint(1)),
    0x47: _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    0x8C: _push(lambda machine: decoded_text(machine.take(machine.uint(1)), encoding="utf-8")),
    0x58: _push(lambda machine: decoded_text(machine.take(machine.uint(4)), encoding="utf-8")),
    0x43: _push(lambda machine: machine.take(machine.uint(1))),
    0x42: _push(lambda machine: machine.take(machine.uint(4))),
    # containers
    0x7D: lambda machine: machine.push({}),
    0x5D: lambda machine: machine.push([]),
    0x29: lambda machine: machine.push(()),
    0x28: PickleMachine.mark,
    0x73: lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    0x75: lambda machine: machine.set_items(machine.pop_to_mark()),
    0x61: lambda machine: machine.append([machine.pop()]),
    0x65: lambda machine: machine.append(machine.pop_to_mark()),
    0x74: _push(lambda machine: tuple(machine.pop_to_mark())),
    0x85: lambda machine: machine.push_tuple(1),
    0x86: lambda machine: machine.push_tuple(2),
    0x87: lambda machine: machine.push_tuple(3),
    # memo
    0x94: PickleMachine.memoize,
    0x68: lambda machine: machine.recall(machine.uint(1)),
    0x6A: lambda machine: machine.recall(machine.uint(4)),
    # symbols
    0x93: PickleMachine.stack_global,
    0x52: PickleMachine.reduce,
    0x62: PickleMachine.build,
}
"""What every decoder accepts: what protocols 4 and 5 need for plain values."""
