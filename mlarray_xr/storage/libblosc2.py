"""The door to the C library: reads that run without the GIL, straight into the caller's buffer.

python-blosc2's own slicing holds the GIL for the whole call, so two Python threads that read
through it are slower than one. Its wheel also ships the plain shared library, whose calls release
the GIL when made through `ctypes`.

Only opaque pointers cross this door, no C structure is described, so it does not depend on their
layout. The library is a copy of its own: pointers never go to or come from python-blosc2.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mlarray_xr.errors import ChunkError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["NativeHandle", "decode_blocks", "native_library"]

_FILE_NAMES = ("libblosc2.so", "libblosc2.dylib", "libblosc2.dll", "blosc2.dll")
_OLDEST_MAJOR = 3
_SWITCH = "MLARRAY_XR_NATIVE"


@cache
def native_library() -> ctypes.CDLL | None:
    """Return the shared library that ships with python-blosc2, or None where it cannot be used.

    Chosen once per process. ``MLARRAY_XR_NATIVE=0`` in the environment switches it off. Finding
    it does not import python-blosc2, which would cost a quarter of a second.
    """
    if os.environ.get(_SWITCH, "1") == "0":
        return None
    spec = importlib.util.find_spec("blosc2")
    roots = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    for root in roots:
        for file_name in _FILE_NAMES:
            path = Path(root) / "lib" / file_name
            if path.is_file() and (library := _load(path)) is not None:
                return library
    return None


def _load(path: Path) -> ctypes.CDLL | None:
    """Load the library and declare the calls used; None when it is too old or different."""
    try:
        library = ctypes.CDLL(os.fspath(path))
        version = library.blosc2_get_version_string
        version.restype = ctypes.c_char_p
        if int(version().split(b".")[0]) < _OLDEST_MAJOR:
            return None
        pointer, out_pointer = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        library.b2nd_from_cframe.argtypes = [pointer, ctypes.c_int64, ctypes.c_bool, out_pointer]
        library.b2nd_get_slice_cbuffer.argtypes = [pointer] * 5 + [ctypes.c_int64]
        library.b2nd_free.argtypes = [pointer]
        length = ctypes.c_int32
        library.blosc2_getitem.argtypes = [pointer, length, length, length, pointer, length]
        library.blosc2_error_string.argtypes = [ctypes.c_int]
        library.blosc2_error_string.restype = ctypes.c_char_p
        library.blosc2_init()
    except (OSError, AttributeError, ValueError):
        return None
    return library


class NativeHandle:
    """One C array over a mapped frame, used by one thread at a time.

    Each handle has its own decompression context with one thread, so handles are safe in forked
    children. The frame's bytes stay referenced for as long as the handle lives.

    Parameters
    ----------
    frame
        The checked frame, uint8, exactly its length.
    ndim
        Number of axes.
    name
        What to call the file in errors.
    """

    __slots__ = ("_array", "_extents", "_frame", "_library", "_name")

    def __init__(self, frame: NDArray[np.uint8], *, ndim: int, name: str) -> None:
        library = native_library()
        if library is None:
            msg = "the C library is not available"
            raise RuntimeError(msg)
        self._library, self._frame, self._name = library, frame, name
        self._extents = ctypes.c_int64 * max(ndim, 1)
        self._array = ctypes.c_void_p()
        code = library.b2nd_from_cframe(
            frame.ctypes.data, frame.nbytes, False, ctypes.byref(self._array)
        )
        if code:
            msg = f"{name}: the C library refuses the frame: {self._reason(code)}"
            raise ChunkError(msg)

    def read_slab(
        self, start: tuple[int, ...], stop: tuple[int, ...], out: NDArray[np.generic]
    ) -> None:
        """Decode the box from `start` to `stop` into the C-contiguous `out`.

        The C call does not check bounds and first zeroes `out.nbytes` bytes: the caller has
        checked the box and gives every thread a contiguous range of its own.
        """
        shape = tuple(b - a for a, b in zip(start, stop, strict=True))
        code = self._library.b2nd_get_slice_cbuffer(
            self._array,
            self._extents(*start),
            self._extents(*stop),
            out.ctypes.data,
            self._extents(*shape),
            out.nbytes,
        )
        if code:
            msg = (
                f"{self._name}: reading from {start} to {stop} failed: {self._reason(code)}. "
                "A chunk in this box is damaged; other boxes can still be read"
            )
            raise ChunkError(msg)

    def __del__(self) -> None:
        """Free the C array."""
        if getattr(self, "_array", None):
            self._library.b2nd_free(self._array)

    def _reason(self, code: int) -> str:
        """Return the library's words for an error code."""
        return f"{self._library.blosc2_error_string(code).decode()} ({code})"


def decode_blocks(
    chunk: int | bytes,
    out_address: int,
    *,
    stored_bytes: int,
    runs: Iterable[tuple[int, int]],
    block_items: int,
    block_bytes: int,
) -> str | None:
    """Decode some blocks of one chunk without the GIL, from any number of threads.

    `blosc2_getitem` keeps its state on the stack, takes no lock and starts no thread. It knows no
    frame: chunks of plugin codecs and filters, which look for its metadata, must not get here, nor
    those of which Blosc2 decodes parts wrongly.

    Parameters
    ----------
    chunk
        The checked chunk, or its address in memory that stays as it is.
    out_address
        Where the blocks go, one after another.
    stored_bytes
        Bytes of the chunk, its header included.
    runs
        First block and number of blocks of each run of neighbours: one call for each.
    block_items
        Elements of a block, of the size that the chunk's header says.
    block_bytes
        Bytes of a block.

    Returns
    -------
    str or None
        Which run cannot be decoded, and why.
    """
    library = native_library()
    if library is None:
        msg = "the C library is not available"
        raise RuntimeError(msg)
    decode = library.blosc2_getitem
    for first, n_blocks in runs:
        wanted = n_blocks * block_bytes
        found = decode(
            chunk, stored_bytes, first * block_items, n_blocks * block_items, out_address, wanted
        )
        if found != wanted:
            reason = library.blosc2_error_string(found).decode()
            return f"{n_blocks} blocks from block {first}: {reason} ({found})"
        out_address += wanted
    return None
