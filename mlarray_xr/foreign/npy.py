"""NumPy's own files: ``.npy``, and the arrays inside an ``.npz``. They hold numbers, no labels."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.packed import PackedStream, unpacked
from mlarray_xr.foreign.raw import RawArray, local_source, raw_slabs
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.storage.encode import STORABLE_KINDS
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    import io
    from typing import IO

    from mlarray_xr.array import MlaArray
    from mlarray_xr.storage.job import Progress
    from mlarray_xr.storage.source import LocalSource

__all__ = ["open_image", "write_image"]

_ARRAY, _ARCHIVE = ".npy", ".npz"
_SHOWN = 20
_MAX_NDIM = 64
_MAX_NBYTES = 2**62
_LOCAL_HEADER = struct.Struct("<26x2H")
"""Of a member of a zip file: lengths of its name and of what follows it."""

_ENCRYPTED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _NpyHeader:
    """What a `.npy` file says before its elements."""

    dtype: np.dtype[Any]
    """Type of the elements."""
    shape: tuple[int, ...]
    """Extents."""
    order: Literal["C", "F"]
    """Order of the elements."""
    nbytes: int
    """Bytes of the header."""


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open an array that NumPy saved as voxels that are read box by box.

    Arrays in Fortran order are read as they lie. Nothing is unpickled: arrays of objects are
    refused.

    Parameters
    ----------
    path
        A ``.npy`` file, or an ``.npz`` of `numpy.savez` or `numpy.savez_compressed`.
    scratch_dir
        Where a compressed array of more than 64 MiB is unpacked, at once, for others to read too;
        the caller removes the folder. None unpacks into memory on the first read.
    dataset
        Name of the array in an ``.npz``; not needed when there is one only.

    Raises
    ------
    ConversionError
        When the file is damaged or hostile, holds objects or records, or the dataset is not there.
    FileNotFoundError
        When no file is there.

    Examples
    --------
    >>> import numpy as np
    >>> np.save("six.npy", np.arange(6).reshape(2, 3))
    >>> open_image("six.npy", scratch_dir=None, dataset=None).values[1:2, 0:3]
    array([[3, 4, 5]])
    >>> np.savez_compressed("two.npz", first=np.zeros(3), second=np.ones((2, 2)))
    >>> open_image("two.npz", scratch_dir=None, dataset="second").values[0:1, 0:2]
    array([[1., 1.]])
    """
    source = local_source(path)
    is_archive = source.path.lower().endswith(_ARCHIVE)
    metadata = Metadata(has_array=True)
    try:
        stored = _in_archive(source, dataset) if is_archive else _alone(source, dataset)
    except (zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise ConversionError(f"{source.path}: the file is damaged: {error}") from error
    except ConversionError as error:
        raise ConversionError(f"{source.path}: {error}") from error
    if isinstance(stored, PackedStream):
        return ForeignImage(values=unpacked(stored, scratch_dir=scratch_dir), metadata=metadata)
    return ForeignImage(values=stored, metadata=metadata)


def write_image(
    array: MlaArray, path: str, *, mode: Literal["w-", "w"], progress: Progress | None = None
) -> None:
    """Write the numbers of an array as a ``.npy`` file, a bounded number of them at a time.

    Labels, geometry and metadata have no place in it and are left out. The bytes are those that
    `numpy.save` writes. The file appears complete or not at all.

    Parameters
    ----------
    array
        The array of an `.mla` file.
    path
        Ends in ``.npy``.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.
    progress
        Called with the number of parts written and of all parts.

    Raises
    ------
    ConversionError
        For other suffixes.
    FileExistsError
        When the target exists and `mode` is ``"w-"``.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6).reshape(2, 3), "six.mla")
    >>> write_image(mlarray_xr.MlaArray("six.mla"), "six.npy", mode="w")
    >>> np.load("six.npy")
    array([[0, 1, 2],
           [3, 4, 5]])
    """
    target = os.path.abspath(os.path.expanduser(path))
    if not target.lower().endswith(_ARRAY):
        raise ConversionError(
            f"{target}: one array is written, and the name of its file ends in {_ARRAY!r}. "
            "To fix: choose such a name"
        )
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    with published(target, overwrite=mode == "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
        order = tuple(reversed(range(array.ndim)))
        for slab in raw_slabs(array, order, progress=progress):
            file.write(slab)


def _alone(source: LocalSource, dataset: str | None) -> RawArray:
    """Return the array of a `.npy` file."""
    if dataset is not None:
        raise ConversionError(
            f"dataset={dataset!r} was asked for, and a .npy file holds one array. "
            "To fix: leave it out"
        )
    with source.open() as file:
        header = _read_header(file)
    return RawArray(
        source=source,
        dtype=header.dtype,
        shape=header.shape,
        order=header.order,
        offset=header.nbytes,
    )


def _in_archive(source: LocalSource, dataset: str | None) -> RawArray | PackedStream:
    """Return one array of an `.npz` file."""
    with source.open() as file, zipfile.ZipFile(file) as archive:
        member = _chosen(archive, dataset)
        with archive.open(member) as stream:
            header = _read_header(stream)
        file.seek(member.header_offset)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    needed = header.nbytes + math.prod(header.shape) * header.dtype.itemsize
    if needed > member.file_size:
        raise ConversionError(
            f"{member.filename} needs {needed} bytes for {header.shape} of {header.dtype} and has "
            f"{member.file_size}: it is truncated, or the header is wrong. To fix: save it again"
        )
    if member.compress_type != zipfile.ZIP_STORED:
        return PackedStream(
            source=source,
            packing="zip",
            dtype=header.dtype,
            shape=header.shape,
            order=header.order,
            skip=header.nbytes,
            member=member.filename,
        )
    start = member.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
    return RawArray(
        source=source,
        dtype=header.dtype,
        shape=header.shape,
        order=header.order,
        offset=start + header.nbytes,
    )


def _chosen(archive: zipfile.ZipFile, dataset: str | None) -> zipfile.ZipInfo:
    """Return the member that holds the array asked for."""
    names = [name.removesuffix(_ARRAY) for name in archive.namelist() if name.endswith(_ARRAY)]
    name = names[0] if dataset is None and len(names) == 1 else dataset
    if name is None or name not in names:
        wanted = "no dataset" if dataset is None else f"dataset={dataset!r}"
        example = f". To fix: choose one, dataset={names[0]!r}" if names else ""
        raise ConversionError(
            f"{wanted} was asked for, and the file holds {len(names)} arrays: "
            f"{', '.join(map(repr, names[:_SHOWN]))}{example}"
        )
    member = archive.getinfo(name + _ARRAY)
    if member.header_offset < 0:
        raise ConversionError(f"{member.filename} starts before the file: the file is damaged")
    is_known = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if member.flag_bits & _ENCRYPTED or not is_known:
        raise ConversionError(
            f"{member.filename} is encrypted or packed as NumPy never does. To fix: save it with "
            "numpy.savez_compressed"
        )
    return member


def _read_header(file: IO[bytes] | io.FileIO) -> _NpyHeader:
    """Read what comes before the elements, and refuse what is no array of plain elements."""
    stream: Any = file
    try:
        version = np.lib.format.read_magic(stream)
        # Version 3 is version 2 with names of fields in UTF-8, and there are no fields here.
        is_first = version[0] == 1
        read = (
            np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(stream)
    except OSError:
        raise
    except Exception as error:  # NumPy parses Python's syntax: anything may come out of it
        raise ConversionError(f"the header is broken: {error}") from error
    if dtype.hasobject or dtype.names or dtype.subdtype or dtype.kind not in STORABLE_KINDS:
        raise ConversionError(
            f"elements of type {dtype} cannot be converted: numbers, booleans, dates and strings "
            "of fixed size can. To fix: save array.astype(...), or one field of a record"
        )
    size = math.prod(n for n in shape if n) * dtype.itemsize
    if len(shape) > _MAX_NDIM or min(shape, default=0) < 0 or not 0 < size < _MAX_NBYTES:
        raise ConversionError(
            f"{len(shape)} dimensions of {shape[:_SHOWN]} of {dtype} are no array"
        )
    return _NpyHeader(
        dtype=dtype, shape=shape, order="F" if is_fortran else "C", nbytes=stream.tell()
    )
