"""NumPy objects in a pickle: inert stubs until the whole pickle has been checked."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.pickle_machine import SYMBOLS, Dtype, Refused, Symbol, Unfinished

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["ARRAY_SYMBOLS", "Latin", "PickledArray", "Stretch", "StubArray"]

_MOST_DIMS: Final = 32
_MOST_BYTES: Final = 2**63
_DTYPE: Final = re.compile(r"[iu][1248]|f[248]|b1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PickledArray:
    """An array in a pickle: what it is, and where its bytes are."""

    dtype: str
    """Type of the elements as NumPy spells it, byte order as stored."""
    shape: tuple[int, ...]
    """Extents."""
    order: str
    """``"C"`` or ``"F"``."""
    raw: bytes | tuple[int, int]
    """The bytes of a small array; start and stop in the file of a large one."""

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def load(self, read: Callable[[int, int], bytes]) -> NDArray[Any]:
        """Return the array, new and in native byte order.

        Parameters
        ----------
        read
            Returns the bytes of the file from start to stop.

        Raises
        ------
        MetadataError
            When the file has become shorter.
        """
        raw = self.raw if isinstance(self.raw, bytes) else read(*self.raw)
        if len(raw) != self.nbytes:
            raise MetadataError(f"{len(raw)} bytes where an array of {self.nbytes} must be")
        dtype = np.dtype(self.dtype)
        flat = np.frombuffer(raw, dtype).astype(dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.order == "F" else "C")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Bytes that stay in the file."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Latin:
    """Bytes as protocol 2 spells them: one character each, encoded when they are needed."""

    text: str

    def __len__(self) -> int:
        return len(self.text)


class StubArray(Unfinished):
    """A NumPy array; `numpy._core.multiarray._reconstruct` leaves the rest to BUILD."""

    __slots__ = ("dtype", "order", "raw", "shape")

    def __init__(self) -> None:
        self.dtype: Dtype | None = None
        self.shape: tuple[int, ...] = ()
        self.order = "C"
        self.raw: bytes | Stretch | Latin = b""

    def build(self, state: Any) -> None:
        """Take the state tuple of `numpy.ndarray.__setstate__`."""
        match state:
            case (int(), tuple(shape), Dtype() as dtype, bool(is_fortran), raw):
                self.fill(raw, dtype, shape, order="F" if is_fortran else "C")
            case _:
                raise Refused("a NumPy array with an unknown state")

    def fill(self, raw: object, dtype: Dtype, shape: tuple[Any, ...], *, order: str) -> None:
        """Check that shape, type and bytes agree."""
        if not isinstance(raw, bytes | Stretch | Latin):
            raise Refused(f"a NumPy array of {type(raw).__name__}, not of bytes")
        if not _DTYPE.fullmatch(dtype.code) or not dtype.order:
            raise Refused(f"a NumPy array of type {dtype.code[:20]!a}")
        is_shape = len(shape) <= _MOST_DIMS and all(type(n) is int and n >= 0 for n in shape)
        itemsize = int(dtype.code[1:])
        if not is_shape or math.prod(shape) * itemsize != len(raw):
            raise Refused(f"{len(raw)} bytes for a NumPy array of another size")
        if math.prod(n or 1 for n in shape) * itemsize >= _MOST_BYTES:
            raise Refused("an empty NumPy array of extents that no memory has")
        self.raw, self.dtype, self.shape, self.order = raw, dtype, shape, order

    def described(self) -> PickledArray:
        """Return the array as a value."""
        if self.dtype is None:
            raise Refused("a NumPy array without its state")
        raw: bytes | tuple[int, int]
        match self.raw:
            case bytes() as raw:
                pass
            case Stretch(start=start, stop=stop):
                raw = (start, stop)
            case Latin(text=text):
                raw = _latin_bytes(text)
        dtype = f"{self.dtype.order}{self.dtype.code}"
        return PickledArray(dtype=dtype, shape=self.shape, order=self.order, raw=raw)


def _latin_bytes(text: str) -> bytes:
    """Encode text of one byte per character."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Refused("text that stands for bytes and is not Latin-1") from error


def _reduce_array(args: tuple[Any, ...]) -> object:
    """`_reconstruct`: an empty array, which BUILD fills."""
    if len(args) == 3 and args[0] is _NDARRAY and args[1] == (0,):
        return StubArray()
    raise Refused("a NumPy array of an unknown class")


def _reduce_buffer(args: tuple[Any, ...]) -> object:
    """`_frombuffer`: an array of protocol 5."""
    match args:
        case (raw, Dtype() as dtype, tuple(shape), "C" | "F" as order):
            array = StubArray()
            array.fill(raw, dtype, shape, order=order)
            return array
    raise Refused("a NumPy array of unknown arguments")


def _reduce_scalar(args: tuple[Any, ...]) -> object:
    """`scalar`: the Python number that a NumPy one equals."""
    match args:
        case (Dtype(order="<" | ">") as dtype, bytes() | Latin() as raw) if _DTYPE.fullmatch(
            dtype.code
        ) and len(raw) == int(dtype.code[1:]):
            stored = raw if isinstance(raw, bytes) else _latin_bytes(raw.text)
            return np.frombuffer(stored, np.dtype(f"{dtype.order}{dtype.code}"))[0].item()
    raise Refused("a NumPy scalar that is no number")


def _reduce_encode(args: tuple[Any, ...]) -> object:
    """`_codecs.encode`: bytes as protocol 2 spells them."""
    match args:
        case (str(text), "latin1"):
            return Latin(text=text)
    raise Refused("an encoding other than that of bytes")


def _reduce_bytes(args: tuple[Any, ...]) -> object:
    """`bytes`: none, as protocol 2 spells them."""
    if args:
        raise Refused("bytes with arguments")
    return b""


def _reduce_default_dict(args: tuple[Any, ...]) -> object:
    """`collections.defaultdict`: a dict."""
    if len(args) > 1 or any(arg is not _FACTORY and arg is not None for arg in args):
        raise Refused("a defaultdict of something other than a plain type")
    return {}


def _refuse_call(args: tuple[Any, ...]) -> object:
    """Refuse to make an object of a class that may only be named."""
    raise Refused(f"a call with {len(args)} arguments of a class that may only be named")


_NDARRAY: Final = Symbol(reduce=_refuse_call)
_FACTORY: Final = Symbol(reduce=_refuse_call)
_NUMPY: Final = ("numpy._core", "numpy.core")
_BUILTINS: Final = ("builtins", "__builtin__")

ARRAY_SYMBOLS: Final = {
    **SYMBOLS,
    ("numpy", "ndarray"): _NDARRAY,
    ("_codecs", "encode"): Symbol(reduce=_reduce_encode),
    ("collections", "defaultdict"): Symbol(reduce=_reduce_default_dict),
    **{(f"{core}.multiarray", "_reconstruct"): Symbol(reduce=_reduce_array) for core in _NUMPY},
    **{(f"{core}.multiarray", "scalar"): Symbol(reduce=_reduce_scalar) for core in _NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): Symbol(reduce=_reduce_buffer) for core in _NUMPY},
    **{(module, "bytes"): Symbol(reduce=_reduce_bytes) for module in _BUILTINS},
    **{(m, name): _FACTORY for m in _BUILTINS for name in ("list", "dict", "int", "long", "float")},
}
