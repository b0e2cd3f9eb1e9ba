"""CountsFile: foreground counts of one mask, kept in a folder so that they are made once.

Content: magic ``mlxf``, crc32 of all that follows (4 bytes), version (1), digest of what was
counted (32), number of classes (4) and of rows (8), then the columns (`mlarray_xr.format.column`)
label, first row of each class ``<i8``, part ``<i4`` and count ``<i4``. Numbers are big-endian. What
is not exactly this, or cannot be true of the mask, is counted again.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import struct
import sys
import types
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import FormatError, MlaWarning
from mlarray_xr.format.column import decode_column, encode_column, take_unsigned
from mlarray_xr.format.cursor import Cursor
from mlarray_xr.ml.class_counts import ClassCounts
from mlarray_xr.planning.foreground import MAX_LABELS
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mlarray_xr.ml.foreground_parts import ForegroundParts
    from mlarray_xr.planning.foreground import Foreground

__all__ = ["CountsFile", "counts_file"]

_MAGIC = b"mlxf"
_VERSION = 1
_SUFFIX = ".foreground"
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsFile:
    """Where counts are kept; an address, nothing stays open.

    The name is a digest of the mask's version and of what counts as foreground, so that files of
    masks that were replaced are never read again. Any number of processes may read and write it.
    """

    folder: str
    """Made when something is written."""
    digest: str
    """What was counted: 64 hexadecimal digits."""

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(self.folder, self.digest + _SUFFIX)

    def read(self, sizes: NDArray[np.int64], dtype: np.dtype[Any]) -> ClassCounts | None:
        """Return the counts; None when they are not there, or not whole.

        Parameters
        ----------
        sizes
            Places in each part of the mask, which bound what is believed.
        dtype
            Type of the labels, native byte order.
        """
        try:
            if not os.path.isfile(self.path):  # a pipe would be waited for
                return None
            with open(self.path, "rb") as file:
                data = file.read(_MAX_BYTES + 1)
            return _decoded(data, digest=self.digest, sizes=sizes, dtype=dtype)
        except (OSError, FormatError):
            return None

    def write(self, counts: ClassCounts) -> None:
        """Keep counts, in place of any that are there; warns when that is not possible."""
        data = _encoded(counts, digest=self.digest)
        if len(data) > _MAX_BYTES:
            return
        try:
            os.makedirs(self.folder, exist_ok=True)
            with published(self.path, overwrite=True) as file:
                file.write(data)
        except OSError as error:
            msg = (
                f"{self.folder}: foreground counts are not kept there ({error.strerror}); every "
                "process counts anew. To fix: give a folder that can be written"
            )
            warnings.warn(msg, MlaWarning, stacklevel=2)


def counts_file(folder: str, parts: ForegroundParts) -> CountsFile | None:
    """Return where counts of a mask are kept; None when a predicate has no lasting name."""
    described = _described(parts.foreground, parts.array.dtype)
    if described is None:
        return None
    what = (_VERSION, parts.array.__dask_tokenize__(), parts.axes, described)
    digest = hashlib.sha256(repr(what).encode()).hexdigest()
    return CountsFile(folder=os.path.abspath(os.path.expanduser(folder)), digest=digest)


def _described(foreground: Foreground, dtype: np.dtype[Any]) -> tuple[Any, ...] | None:
    """Return what counts as foreground as plain values; weights change no count."""
    if foreground.predicate is not None:
        return _named(foreground.predicate)
    limit = foreground.limit_of(dtype)
    if limit is not None:
        return "above", float(limit) if dtype.kind == "f" else limit
    labels = foreground.labels_of(dtype)
    return "classes", "balanced" if labels is None else tuple(labels.tolist())


def _named(predicate: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return name and source of a function that a module defines; None of any other.

    Scripts all have the same name, so what they define has none that lasts.
    """
    if not isinstance(predicate, types.FunctionType) or predicate.__module__ == "__main__":
        return None
    module = sys.modules.get(predicate.__module__)
    if getattr(module, predicate.__qualname__, None) is not predicate:
        return None
    with contextlib.suppress(OSError):
        return (
            "predicate",
            predicate.__module__,
            predicate.__qualname__,
            inspect.getsource(predicate),
        )
    return None


def _encoded(counts: ClassCounts, *, digest: str) -> bytes:
    """Return the content of the file."""
    labels = counts.labels
    body = b"".join(
        [
            bytes([_VERSION]),
            bytes.fromhex(digest),
            struct.pack(">IQ", len(labels), len(counts.parts)),
            encode_column(labels, labels.dtype.newbyteorder("<").str),
            encode_column(counts.starts, "<i8"),
            encode_column(counts.parts, "<i4"),
            encode_column(counts.counts, "<i4"),
        ]
    )
    return _MAGIC + struct.pack(">I", zlib.crc32(body)) + body


def _decoded(
    data: bytes, *, digest: str, sizes: NDArray[np.int64], dtype: np.dtype[Any]
) -> ClassCounts | None:
    """Return counts that can be true; None of others. `FormatError` where bytes are missing."""
    cursor = Cursor(data, what="foreground counts")
    cursor.expect(_MAGIC)
    if take_unsigned(cursor, 4) != zlib.crc32(memoryview(data)[cursor.position :]):
        return None
    cursor.expect(bytes([_VERSION]) + bytes.fromhex(digest))
    n_labels, n_rows = take_unsigned(cursor, 4), take_unsigned(cursor, 8)
    if n_labels > min(MAX_LABELS, n_rows) or n_rows > n_labels * len(sizes):
        return None
    labels = decode_column(cursor, dtype.newbyteorder("<"), n_labels).astype(dtype)
    starts = decode_column(cursor, np.dtype("<i8"), n_labels + 1)
    parts, counts = (decode_column(cursor, np.dtype("<i4"), n_rows) for _ in range(2))
    is_whole = cursor.position == len(data) and starts[0] == 0 and starts[-1] == n_rows
    if not is_whole or not _ascend(labels) or not _ascend(starts):
        return None
    if ((parts < 0) | (parts >= len(sizes))).any():
        return None
    numbers = np.repeat(np.arange(n_labels) * len(sizes), np.diff(starts)) + parts
    if not _ascend(numbers) or ((counts < 1) | (counts > sizes[parts])).any():
        return None
    before = np.append(0, np.cumsum(counts, dtype=np.int64))
    return ClassCounts(labels=labels, starts=starts, parts=parts, before=before)


def _ascend(numbers: NDArray[Any]) -> bool:
    """Tell whether each number is larger than the one before."""
    return bool((numbers[1:] > numbers[:-1]).all())
