"""NRRD files, the format of 3D Slicer and ITK: read box by box, and written."""

from __future__ import annotations

import bz2
import gzip
import math
import ntpath
import os
import posixpath
import re
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal, cast

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.nrrd_header import NrrdHeader
from mlarray_xr.foreign.nrrd_metadata import describe, header_for
from mlarray_xr.foreign.packed import PackedStream, unpacked
from mlarray_xr.foreign.raw import RawArray, local_source, raw_slabs
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    from typing import BinaryIO

    from mlarray_xr.array import MlaArray
    from mlarray_xr.storage.job import Progress
    from mlarray_xr.storage.source import LocalSource

__all__ = ["open_image", "write_image"]

_TARGET = ".nrrd"
_GZIP_LEVEL = 6
_PIECE_BYTES = 1 << 16
_MANY_FILES = re.compile(r"LIST\b|SKIPLIST\b|.*%\d*[du]")
"""Data in several files: a list of names, or a pattern with numbers."""


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    r"""Open a NRRD file as voxels that are read box by box.

    The axes are those of the file in reverse, so that nothing is reordered: NRRD lists the axis
    whose neighbours lie together first, arrays have it last. A volume of 3D Slicer with axes
    (x, y, z) has dimensions (z, y, x). In spaces with a name, spatial dimensions are named after
    the world axis that they mostly run along. Other axes are named after their label, else
    ``time``, ``channel`` or ``component`` after their kind. RAS and LPS stay what they are, LAS
    becomes RAS by turning the first world axis. The header is kept and comes back byte for byte
    with `write_image`.

    Parameters
    ----------
    path
        A ``.nrrd`` or ``.nhdr`` file with raw, gzip or bzip2 data, in the same file or in one
        other file beside or below it.
    scratch_dir
        Where packed voxels of more than 64 MiB are unpacked, at once, for others to read too; the
        caller removes the folder. None unpacks into memory on the first read.
    dataset
        None: a NRRD file holds one array.

    Raises
    ------
    ConversionError
        When the file is damaged, hostile or not NRRD, when its voxels are blocks, text or in
        several files, or a dataset is asked for.
    FileNotFoundError
        When a file is not there.

    Examples
    --------
    >>> header = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 3 2\nencoding: raw\n\n"
    >>> with open("six.nrrd", "wb") as file:
    ...     _ = file.write(header + bytes(range(6)))
    >>> image = open_image("six.nrrd", scratch_dir=None, dataset=None)
    >>> image.values[0:2, 0:3]
    array([[0, 1, 2],
           [3, 4, 5]], dtype=uint8)
    """
    if dataset is not None:
        raise ConversionError(
            f"{path}: dataset={dataset!r} was asked for, and a NRRD file holds one array. "
            "To fix: leave it out"
        )
    source = local_source(path)
    try:
        with source.open() as file:
            header = NrrdHeader.read(file)
        stored = _stored(source, header)
        metadata = describe(header)
    except ConversionError as error:
        raise ConversionError(f"{source.path}: {error}") from error
    if isinstance(stored, PackedStream):
        return ForeignImage(values=unpacked(stored, scratch_dir=scratch_dir), metadata=metadata)
    return ForeignImage(values=stored, metadata=metadata)


def write_image(
    array: MlaArray, path: str, *, mode: Literal["w-", "w"], progress: Progress | None = None
) -> None:
    """Write an array as NRRD, a bounded number of voxels at a time.

    A file that came from NRRD and still has its shape, type and geometry gets its header back byte
    for byte, the encoding included; data that were in another file follow it. Otherwise a header
    is made from the geometry, in the world that the array states (RAS, LPS or another that NRRD
    knows); without a geometry there is none in the file either. Axes are listed in reverse, so that
    nothing is transposed. A plane of a volume becomes a volume of one slice, booleans become uint8.
    Comments, keys and values of an earlier header are kept. The file appears complete or not at
    all.

    Parameters
    ----------
    array
        The array of an `.mla` file.
    path
        Ends in ``.nrrd``. Voxels are packed with gzip (level 6, reproducible) unless an earlier
        header says otherwise.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.
    progress
        Called with the number of parts written and of all parts.

    Raises
    ------
    ConversionError
        When NRRD has no such type or shape, when positions along an axis that is not spatial are
        not evenly spaced, or for other suffixes.
    GeometryError
        When the geometry holds NaN or infinity.
    FileExistsError
        When the target exists and `mode` is ``"w-"``.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6, dtype="uint8").reshape(2, 3), "six.mla")
    >>> write_image(mlarray_xr.MlaArray("six.mla"), "six.nrrd", mode="w")
    >>> open_image("six.nrrd", scratch_dir=None, dataset=None).values[1:2, 0:3]
    array([[3, 4, 5]], dtype=uint8)
    """
    target = os.path.abspath(os.path.expanduser(path))
    if not target.lower().endswith(_TARGET):
        raise ConversionError(
            f"{target}: NRRD files with their voxels inside are written, and their names end in "
            f"{_TARGET!r}. To fix: choose such a name"
        )
    header = header_for(array)
    with ExitStack() as stack:
        file = stack.enter_context(published(target, overwrite=mode == "w"))
        file.write(header.attached())
        if header.encoding == "gzip":
            packed: Any = gzip.GzipFile("", "wb", fileobj=file, compresslevel=_GZIP_LEVEL, mtime=0)
            file = stack.enter_context(packed)
        elif header.encoding == "bzip2":
            file = cast("BinaryIO", stack.enter_context(bz2.BZ2File(file, "wb")))
        order = tuple(reversed(range(array.ndim)))
        for slab in raw_slabs(array, order, progress=progress):
            file.write(slab)


def _stored(source: LocalSource, header: NrrdHeader) -> RawArray | PackedStream:
    """Return where the voxels lie; the file is long enough for them."""
    name = header.fields.get("datafile")
    holder = source if name is None else _data_source(source, name)
    start = _after_lines(
        holder, header.skip("lineskip"), start=len(header.text) if name is None else 0
    )
    skip, dtype = header.skip("byteskip"), header.dtype
    shape = tuple(axis.size for axis in reversed(header.axes))
    if header.encoding != "raw":
        return PackedStream(
            source=holder,
            packing=header.encoding,
            dtype=dtype,
            shape=shape,
            order="C",
            start=start,
            skip=skip,
        )
    # -1: the voxels end where the file ends; -2: a byte before it.
    nbytes = math.prod(shape) * dtype.itemsize
    offset = start + skip if skip >= 0 else holder.size - nbytes + skip + 1
    if skip < 0 and offset < start:
        raise ConversionError(
            f"shape {shape} of {dtype} needs {nbytes} bytes at the end of {holder.path}, which has "
            f"{holder.size}: it is truncated, or the header is wrong. To fix: copy it again"
        )
    return RawArray(source=holder, dtype=dtype, shape=shape, order="C", offset=offset)


def _data_source(source: LocalSource, name: str) -> LocalSource:
    """Pin the file that a header names, which is beside or below it."""
    if _MANY_FILES.match(name):
        raise ConversionError(
            f"data file: {name[:80]!r}: voxels in several files are not read. To fix: join them, "
            "unu save -f nrrd -i IN -o OUT"
        )
    parts = re.split(r"[/\\]", name)
    is_absolute = posixpath.isabs(name) or ntpath.isabs(name) or ntpath.splitdrive(name)[0]
    if is_absolute or ".." in parts or not name.isprintable() or not name:
        raise ConversionError(
            f"data file: {name[:80]!r} leads out of the folder of the header, and such files are "
            "not read. To fix: move the data beside the header, and state their name alone"
        )
    return local_source(os.path.join(os.path.dirname(source.path), name))


def _after_lines(source: LocalSource, n_lines: int, *, start: int) -> int:
    """Return where the line after so many lines starts."""
    if n_lines < 0:
        raise ConversionError(f"line skip: {n_lines} lines cannot be left out")
    with source.open() as file:
        file.seek(start)
        while n_lines:
            piece = file.read(_PIECE_BYTES)
            if not piece:
                raise ConversionError(f"line skip: {n_lines} more lines than {source.path} has")
            ends = [found.end() for found in re.finditer(rb"\n", piece)][:n_lines]
            n_lines -= len(ends)
            start += len(piece) if n_lines else ends[-1]
    return start
