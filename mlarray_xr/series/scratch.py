"""Scratch arrays: as large as the disk, shared by processes, gone when the block ends.

``mlarray_xr-scratch-<id>`` is a folder that one process owns; ``<the same>.owner.json`` beside it
says which. The record is there before the folder and goes after it, so there is never a folder of
which nothing is known.
"""

from __future__ import annotations

import contextlib
import errno
import math
import operator
import os
import re
import shutil
import stat
import tempfile
import uuid
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.storage.json_record import create_record, read_record, remove_file
from mlarray_xr.storage.process_identity import is_dead, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

__all__ = ["ScratchArray", "scratch"]

_PREFIX = "mlarray_xr-scratch-"
_OWNER = ".owner.json"
_VALUES = "values.raw"
# Also what a process left that died while it made the record.
_RECORD = re.compile(rf"({_PREFIX}[0-9a-f]{{32}}){re.escape(_OWNER)}(\.[0-9a-f]{{32}}\.tmp)?")


class ScratchArray:
    """An array in a file that `scratch` made: an address, which every process maps for itself.

    Index it and assign to it as to a NumPy array: basic indexing gives views, `numpy.asarray` a
    view of everything. It pickles as its address; forked and spawned processes see the same
    bytes. After the block has ended every access raises `ValueError`; the bytes of a view that is
    still held leave the disk with it.

    Parameters
    ----------
    path
        Absolute path of the file.
    shape, dtype
        What it holds, in C order.
    """

    __slots__ = ("_map", "dtype", "path", "shape")

    def __init__(self, path: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.path, self.shape, self.dtype = path, shape, dtype
        self._map: NDArray[Any] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        """Return the extent of the first axis."""
        return len(self._values())

    def __getitem__(self, key: Any) -> Any:
        """Index as NumPy does."""
        return self._values()[key]

    def __setitem__(self, key: Any, values: Any) -> None:
        """Assign as NumPy does, in the file."""
        self._values()[key] = values

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Return a view of everything; a copy in another type, or where one is asked for."""
        return np.array(self._values(), dtype=dtype, copy=copy)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return the address."""
        return ScratchArray, (self.path, self.shape, self.dtype)

    def __repr__(self) -> str:
        """Describe it without touching the file."""
        return f"<ScratchArray shape={self.shape} dtype={self.dtype} {in_words(self.nbytes)}>"

    def _values(self) -> NDArray[Any]:
        """Return the map of the file, made when this process first needs it."""
        if not os.path.exists(self.path):
            self._map = None
            msg = (
                f"{self.path}: the scratch array is gone: its block has ended. To fix: use it, or "
                "copy what is needed of it, inside of `with scratch(...)`"
            )
            raise ValueError(msg)
        if self._map is None:
            if self.nbytes == 0:  # nothing to map
                return np.empty(self.shape, self.dtype)
            self._map = np.asarray(np.memmap(self.path, self.dtype, "r+", shape=self.shape))
        return self._map


@contextlib.contextmanager
def scratch(
    shape: int | Sequence[int], dtype: DTypeLike, *, folder: str | os.PathLike[str] | None = None
) -> Iterator[ScratchArray]:
    """Have an array of zeros on disk while the block runs, for data that are derived and dropped.

    The file takes the space of what is written to it. It is removed when the block ends, after an
    exception and Ctrl-C too. What processes of this machine left that were killed is removed by
    the next call in the same folder.

    Parameters
    ----------
    shape, dtype
        Of the array; any fixed-size type.
    folder
        Where, an existing folder; by default that for temporary files, which may be small or in
        memory. To share the array with other machines, a folder that they have too.

    Yields
    ------
    ScratchArray
        To be indexed and assigned to; may be sent to other processes.

    Raises
    ------
    OSError
        When the disk has not that much space (``errno.ENOSPC``), or the folder cannot be used.
    TypeError, ValueError
        When the type has no fixed size, or an extent is negative.

    Examples
    --------
    >>> with scratch((300, 4, 4), "float32", folder=".") as smooth:
    ...     smooth[7] = 1.5
    ...     print(smooth, smooth[6:8, 0, 0])
    <ScratchArray shape=(300, 4, 4) dtype=float32 18.75 KiB> [0.  1.5]
    """
    element, extents = np.dtype(dtype), _extents(shape)
    if element.hasobject or not element.itemsize:
        msg = f"dtype {element} has no fixed size. To fix: numbers, or texts of a length ('U8')"
        raise TypeError(msg)
    within = os.path.abspath(tempfile.gettempdir() if folder is None else os.fspath(folder))
    _sweep(within)
    n_bytes = math.prod(extents) * element.itemsize
    _check_space(within, n_bytes)
    private = os.path.join(within, _PREFIX + uuid.uuid4().hex)
    owner, path = os.getpid(), os.path.join(private, _VALUES)
    try:
        create_record(private + _OWNER, this_process())
        os.mkdir(private, mode=0o700)
        with open(path, "xb") as file:
            file.truncate(n_bytes)
        yield ScratchArray(path, extents, element)
    finally:
        if os.getpid() == owner:  # a child that was forked inside leaves the block too
            _remove(private, private + _OWNER)


def _extents(shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return a shape as a tuple, checked."""
    given = [shape] if isinstance(shape, SupportsIndex) else shape
    extents = tuple(map(operator.index, given))
    if min(extents, default=0) < 0:
        msg = f"shape {extents} has negative extents"
        raise ValueError(msg)
    return extents


def _check_space(folder: str, n_bytes: int) -> None:
    """Refuse what the disk cannot hold: writing to a map would then end the process."""
    free_bytes = shutil.disk_usage(folder).free
    if n_bytes > free_bytes:
        msg = (
            f"a scratch array of {in_words(n_bytes)} is more than the {in_words(free_bytes)} that "
            f"are free in {folder}. To fix: folder= on a larger disk"
        )
        raise OSError(errno.ENOSPC, msg)


def _sweep(folder: str) -> None:
    """Remove what dead processes of this user left in a folder."""
    with os.scandir(folder) as entries:
        records = [found for entry in entries if (found := _RECORD.fullmatch(entry.name))]
    for found in records:
        record = os.path.join(folder, found[0])
        owner = read_record(record) if _is_ours(record, stat.S_ISREG) else None
        if owner is not None and is_dead(owner):
            _remove(os.path.join(folder, found[1]), record)


def _remove(private: str, record: str) -> None:
    """Remove a scratch folder, then its record; nothing that is not as scratch makes it."""
    with contextlib.suppress(OSError):
        if _is_ours(private, stat.S_ISDIR):
            remove_file(os.path.join(private, _VALUES))
            os.rmdir(private)
    if not os.path.lexists(private):
        with contextlib.suppress(OSError):
            remove_file(record)


def _is_ours(path: str, is_kind: Any) -> bool:
    """Tell whether something is there, of a kind, no link, and this user's."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    # Anybody may leave names in a folder for temporary files, links to other places among them.
    return is_kind(found.st_mode) and (not hasattr(os, "getuid") or found.st_uid == os.getuid())
