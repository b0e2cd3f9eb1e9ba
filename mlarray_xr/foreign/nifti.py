"""NIfTI files: opened as labelled arrays, converted to `.mla` and back without losing a bit."""

from __future__ import annotations

import gzip
import itertools
import math
import os
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from mlarray_xr.array import MlaArray
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import ConversionError, FormatError
from mlarray_xr.foreign.nifti_header import NiftiHeader
from mlarray_xr.foreign.nifti_metadata import describe, header_for
from mlarray_xr.planning.codec import DEFAULT_CODEC
from mlarray_xr.storage.publication import published
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Sizes
    from mlarray_xr.write import WriteReport

__all__ = ["NIFTI_SUFFIXES", "mla_to_nifti", "nifti_to_mla", "open_nifti"]

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")

_MAX_GZIP_RATIO = 1100
_SLAB_BYTES = 64 << 20
_GZIP_LEVEL = 6


def open_nifti(path: str | os.PathLike[str]) -> xr.DataArray:
    """Open a NIfTI file as a DataArray of the stored numbers, in the file's index order i, j, k.

    Nothing is reordered or scaled: ``scl_slope`` and ``scl_inter`` are attributes. Spatial
    dimensions are named x, y, z after the world axis that they mostly run along, the fourth is
    ``time`` (``spectral`` if its unit is Hz, ppm or rad/s), the fifth ``component``. The geometry
    is that of the sform, else of the qform, else nibabel's, in RAS+. Uncompressed files are mapped
    and read when needed; ``.nii.gz`` is read whole.

    Parameters
    ----------
    path
        A NIfTI-1 or NIfTI-2 file: ``.nii``, ``.nii.gz``, or either file of an ``.hdr``/``.img``
        pair.

    Returns
    -------
    xarray.DataArray
        Ready for ``.mla`` and `to_mla`.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    ConversionError
        When the file is damaged, not NIfTI, or holds colours or extended precision.
    MissingDependencyError
        When nibabel is not installed.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> voxels = np.arange(24, dtype="int16").reshape(2, 3, 4)
    >>> nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 3, 4, 1])), "head.nii")
    >>> array = open_nifti("head.nii")
    >>> array.dims, array.mla.spacing
    (('x', 'y', 'z'), {'x': 2.0, 'y': 3.0, 'z': 4.0})
    """
    values, metadata = _open(path)
    dataset = dataset_from(values, _Described(values, metadata))
    array = next(iter(dataset.data_vars.values()))
    array.encoding = {}
    return array


def nifti_to_mla(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    codec: str | Codec = DEFAULT_CODEC,
    mode: Literal["w-", "w"] = "w-",
) -> WriteReport:
    """Convert a NIfTI file; `mla_to_nifti` gives the same voxels and header back.

    Parameters
    ----------
    src
        As `open_nifti`.
    dst, patch, chunks, blocks, codec, mode
        As `mlarray_xr.to_mla`.

    Raises
    ------
    ConversionError, FileExistsError, LayoutError
        As `open_nifti` and `mlarray_xr.to_mla`.
    """
    values, metadata = _open(src)
    return to_mla(
        values,
        dst,
        patch=patch,
        chunks=chunks,
        blocks=blocks,
        codec=codec,
        mode=mode,
        metadata=metadata,
    )


def mla_to_nifti(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    mode: Literal["w-", "w"] = "w-",
) -> None:
    """Convert an `.mla` file to NIfTI, a bounded number of voxels at a time.

    A file that came from NIfTI and still has its shape, type and geometry gets its header back byte
    for byte. Otherwise a header is made from the geometry. Spatial dimensions become i, j, k in the
    order of the array, followed by ``time`` and the others: arrays that have, say, time first are
    transposed, and the affine with them. A plane of a volume becomes a volume of one slice.
    Booleans become uint8. The file appears complete or not at all.

    Parameters
    ----------
    src
        The `.mla` file.
    dst
        Ends in ``.nii``, ``.nii.gz`` (level 6, reproducible), or ``.hdr`` or ``.img`` for a pair.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.

    Raises
    ------
    GeometryError
        When a header is needed and the geometry is not 3-D, not invertible, or does not say that it
        is RAS or LPS.
    ConversionError
        When NIfTI has no such type or shape, or positions in time are not evenly spaced.
    FileExistsError
        When the target exists and `mode` is ``"w-"``.

    Examples
    --------
    >>> import filecmp, nibabel, numpy as np
    >>> nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), "uint8"), np.eye(4)), "ones.nii")
    >>> _ = nifti_to_mla("ones.nii", "ones.mla")
    >>> mla_to_nifti("ones.mla", "again.nii")
    >>> filecmp.cmp("ones.nii", "again.nii", shallow=False)
    True
    """
    if mode not in ("w-", "w"):
        raise ValueError(f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)")
    header_path, voxel_path, suffix = _paths(dst)
    array = MlaArray(src)
    if not array.metadata.has_array:
        raise FormatError(f"{src}: the file holds metadata only, no array to convert")
    header, order = header_for(array)
    is_single = header_path == voxel_path
    leading, offset = header.leading_bytes(single=is_single)
    with ExitStack() as stack:
        if not is_single:
            # Published last, so that a header never stands without its voxels.
            head = stack.enter_context(published(header_path, overwrite=mode == "w"))
            head.write(leading)
            leading = bytes(offset)
        file = stack.enter_context(published(voxel_path, overwrite=mode == "w"))
        if suffix == ".nii.gz":
            stack.enter_context(
                packed := gzip.GzipFile("", "wb", fileobj=file, compresslevel=_GZIP_LEVEL, mtime=0)
            )
            file = cast("BinaryIO", packed)
        file.write(leading)
        for slab in _slabs(array, order):
            file.write(slab)


@dataclass(frozen=True, slots=True)
class _Described:
    """An array in memory with what `dataset_from` asks of a file."""

    values: NDArray[Any]
    metadata: Metadata

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, which are also those of the one chunk and block."""
        return self.values.shape

    chunks = blocks = shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.values.dtype


def _open(path: str | os.PathLike[str]) -> tuple[NDArray[Any], Metadata]:
    """Return voxels, mapped where possible, and metadata of a NIfTI file."""
    header_path, voxel_path, _ = _paths(path)
    try:
        with _opened(header_path) as file:
            header = NiftiHeader.read(file, single=header_path == voxel_path)
        return _voxels(voxel_path, header), describe(header)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConversionError(f"{header_path}: the file is damaged or truncated") from error
    except ConversionError as error:
        raise ConversionError(f"{header_path}: {error}") from error


def _paths(path: str | os.PathLike[str]) -> tuple[str, str, str]:
    """Return the absolute paths of header and voxels, and the suffix in lower case."""
    whole = os.path.abspath(os.path.expanduser(os.fspath(path)))
    suffix = next((s for s in NIFTI_SUFFIXES if whole.lower().endswith(s)), None)
    if suffix is None:
        raise ConversionError(
            f"{whole}: the name of a NIfTI file ends in {', '.join(NIFTI_SUFFIXES)}"
        )
    if suffix in (".hdr", ".img"):
        return f"{whole[:-4]}.hdr", f"{whole[:-4]}.img", suffix
    return whole, whole, suffix


def _opened(path: str) -> io.BufferedIOBase:
    """Open a file for reading, decompressing it when its name says so."""
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def _voxels(path: str, header: NiftiHeader) -> NDArray[Any]:
    """Return the stored numbers: a read-only map of a plain file, a new array of a packed one."""
    shape, dtype, offset = header.shape, header.dtype, header.voxel_offset
    nbytes, file_bytes = math.prod(shape) * dtype.itemsize, os.stat(path).st_size
    is_packed = path.lower().endswith(".gz")
    if offset + nbytes > file_bytes * (_MAX_GZIP_RATIO if is_packed else 1):
        raise ConversionError(
            f"shape {shape} of {dtype} from byte {offset} needs {offset + nbytes} bytes, the file "
            f"{path} has {file_bytes}: it is truncated, or the header is wrong"
        )
    if nbytes == 0:
        return np.zeros(shape, dtype)
    if not is_packed:
        return np.memmap(path, dtype, "r", offset, shape, order="F")
    flat = np.empty(math.prod(shape), dtype)
    with _opened(path) as file:
        file.seek(offset)
        n_read, buffer = 0, cast("memoryview", flat.view(np.uint8))
        while n := file.readinto(buffer[n_read:]):
            n_read += n
    if n_read < nbytes:
        raise ConversionError(f"the file ends after {n_read} of {nbytes} bytes of voxels")
    return flat.reshape(shape, order="F")


def _slabs(array: MlaArray, order: list[int]) -> Iterator[bytes]:
    """Read an array in Fortran order of its reordered axes, at most 64 MiB or a line at a time."""
    for box in _slab_boxes(array, order):
        values = array.read(box)
        stored = values.view(np.uint8) if values.dtype == bool else values
        yield stored.transpose(order).tobytes(order="F")


def _slab_boxes(array: MlaArray, order: list[int]) -> Iterator[Box]:
    """Cut an array into boxes that follow one another in Fortran order of its reordered axes."""
    if 0 in array.shape:
        return
    steps = [1] * array.ndim
    room = _SLAB_BYTES // array.dtype.itemsize
    for axis in order:
        chunk, n = array.chunks[axis], array.shape[axis]
        whole_chunks = room // chunk * chunk
        steps[axis] = min(n, max(1, whole_chunks or room))
        room //= n
    ranges = [range(0, array.shape[axis], steps[axis]) for axis in reversed(order)]
    for starts in itertools.product(*ranges):
        at = dict(zip(reversed(order), starts, strict=True))
        yield tuple((at[a], min(at[a] + steps[a], n)) for a, n in enumerate(array.shape))
