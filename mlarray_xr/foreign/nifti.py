"""NIfTI files: opened as labelled arrays, converted to `.mla` and back without losing a bit."""

from __future__ import annotations

import gzip
import os
import warnings
import zlib
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np

from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import ConversionError, MlaError, MlaWarning
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.nifti_header import NiftiHeader
from mlarray_xr.foreign.nifti_metadata import describe, header_for
from mlarray_xr.foreign.nifti_series import read_sidecars
from mlarray_xr.foreign.nifti_sidecars import sidecar_texts
from mlarray_xr.foreign.packed import PackedArray, PackedStream, unpacked
from mlarray_xr.foreign.raw import RawArray, local_source, raw_slabs
from mlarray_xr.foreign.sidecar_files import find_sidecars, mask_file
from mlarray_xr.storage.publication import published

if TYPE_CHECKING:
    import io
    from collections.abc import Collection, Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.storage.job import Progress
    from mlarray_xr.storage.source import LocalSource

__all__ = [
    "NIFTI_SUFFIXES",
    "files_beside",
    "open_image",
    "open_nifti",
    "write_image",
]

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr", ".img")

_GZIP_LEVEL = 6
_SERIES_NDIM = 4


def open_nifti(path: str | os.PathLike[str]) -> xr.DataArray:
    """Open a NIfTI file as a DataArray of the stored numbers, in the file's index order i, j, k.

    Nothing is reordered or scaled: ``scl_slope`` and ``scl_inter`` are attributes. Spatial
    dimensions are named x, y, z after the world axis that they mostly run along, the fourth is
    ``time`` (``spectral`` if its unit is Hz, ppm or rad/s), the fifth ``component``. The geometry
    is that of the sform, else of the qform, else nibabel's, in RAS+. Uncompressed files are mapped
    and read when needed; ``.nii.gz`` is read whole. What `find_sidecars` finds beside the file
    becomes coordinates along the volumes and slices.

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
        When the file is damaged, not NIfTI, or holds colours or extended precision, or a sidecar
        does not fit it.
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
    voxels, metadata, _ = _open(path, scratch_dir=None)
    values = voxels.to_numpy()
    dataset = dataset_from(values, _Described(values, metadata))
    array = attach_coords(next(iter(dataset.data_vars.values())))
    array.encoding = {}
    return array


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a NIfTI file as voxels that are read box by box, in the file's index order i, j, k.

    Labels, geometry, coordinates and header are those of `open_nifti`. Uncompressed files are
    mapped for every read. A brain mask beside a series, on the same grid, is its companion
    ``"mask"``.

    Parameters
    ----------
    path
        As `open_nifti`.
    scratch_dir
        Where the voxels of a ``.nii.gz`` of more than 64 MiB are unpacked, at once, for others to
        read too; the caller removes the folder. None unpacks into memory on the first read.
    dataset
        None: a NIfTI file holds one array.

    Raises
    ------
    ConversionError
        As `open_nifti`, or when a dataset is asked for.
    FileNotFoundError, MissingDependencyError
        As `open_nifti`.

    Warns
    -----
    MlaWarning
        When a brain mask is left out because it is on another grid.

    Examples
    --------
    >>> import nibabel, numpy as np
    >>> voxels = np.arange(24, dtype="int16").reshape(2, 3, 4)
    >>> nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 3, 4, 1])), "head.nii")
    >>> image = open_image("head.nii", scratch_dir=None, dataset=None)
    >>> image.values[0:2, 0:1, 0:1].ravel(), image.metadata.spatial.axis_labels
    (array([ 0, 12], dtype=int16), ('spatial_x', 'spatial_y', 'spatial_z'))
    """
    if dataset is not None:
        raise ConversionError(
            f"{path}: dataset={dataset!r} was asked for, and a NIfTI file holds one array. "
            "To fix: leave it out"
        )
    voxels, metadata, header = _open(path, scratch_dir=scratch_dir)
    mask = _mask(_stem(path), header, scratch_dir=scratch_dir)
    companions = {} if mask is None else {"mask": mask}
    return ForeignImage(values=voxels, metadata=metadata, companions=companions)


def files_beside(path: str) -> Iterator[str]:
    """Yield the paths of the files of their own that belong to an image.

    Examples
    --------
    >>> open("scan.json", "wb").close()
    >>> [os.path.basename(name) for name in files_beside("scan.nii.gz")]
    ['scan.json']
    """
    stem = _stem(path)
    # Where it is not clear which files apply, opening the image says so.
    with suppress(ConversionError):
        yield from find_sidecars(stem).paths()
    mask = mask_file(stem)
    if mask is not None and _is_series(path):
        yield mask


def write_image(
    array: MlaArray, path: str, *, mode: Literal["w-", "w"], progress: Progress | None = None
) -> None:
    """Write an array as NIfTI, a bounded number of voxels at a time.

    A file that came from NIfTI and still has its shape, type and geometry gets its header back byte
    for byte. Otherwise a header is made from the geometry. Spatial dimensions become i, j, k in the
    order of the array, followed by ``time`` and the others: arrays that have, say, time first are
    transposed, and the affine with them. A plane of a volume becomes a volume of one slice.
    Booleans become uint8. The file appears complete or not at all.

    Gradients and the BIDS object go beside it, as `sidecar_texts` makes them; they appear first,
    so that an image that is there has its own. Files of these names beside the target are treated
    as the target is; those for which the array has nothing stay as they are.

    Parameters
    ----------
    array
        The array of an `.mla` file.
    path
        Ends in ``.nii``, ``.nii.gz`` (level 6, reproducible), or ``.hdr`` or ``.img`` for a pair.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it.
    progress
        Called with the number of parts written and of all parts.

    Raises
    ------
    GeometryError
        When a header is needed and the geometry is not 3-D, not invertible, or does not say that it
        is RAS or LPS.
    ConversionError
        When NIfTI has no such type or shape, or positions in time are not evenly spaced and no
        BIDS object tells them.
    FileExistsError
        When the target, or a file that goes beside it, exists and `mode` is ``"w-"``.

    Examples
    --------
    >>> import filecmp, mlarray_xr, nibabel, numpy as np
    >>> nibabel.save(nibabel.Nifti1Image(np.ones((2, 3, 4), "uint8"), np.eye(4)), "ones.nii")
    >>> image = open_image("ones.nii", scratch_dir=None, dataset=None)
    >>> _ = mlarray_xr.to_mla(image.values, "ones.mla", metadata=image.metadata)
    >>> write_image(mlarray_xr.MlaArray("ones.mla"), "again.nii", mode="w-")
    >>> filecmp.cmp("ones.nii", "again.nii", shallow=False)
    True
    """
    header_path, voxel_path, suffix = _paths(path)
    header, order = header_for(array)
    texts = sidecar_texts(array, header, order)
    _check_strangers(_stem(path), texts, mode=mode)
    is_single = header_path == voxel_path
    leading, offset = header.leading_bytes(single=is_single)
    with ExitStack() as stack:
        if not is_single:
            # Published last, so that a header never stands without its voxels.
            head = stack.enter_context(published(header_path, overwrite=mode == "w"))
            head.write(leading)
            leading = bytes(offset)
        file = stack.enter_context(published(voxel_path, overwrite=mode == "w"))
        for ending, text in texts.items():
            beside = published(_stem(path) + ending, overwrite=mode == "w")
            stack.enter_context(beside).write(text.encode())
        if suffix == ".nii.gz":
            stack.enter_context(
                packed := gzip.GzipFile("", "wb", fileobj=file, compresslevel=_GZIP_LEVEL, mtime=0)
            )
            file = cast("BinaryIO", packed)
        file.write(leading)
        for slab in raw_slabs(array, order, progress=progress):
            file.write(slab)


def _check_strangers(stem: str, texts: Collection[str], *, mode: str) -> None:
    """Refuse, or warn of, gradients beside the image that would be taken for its own."""
    found = [stem + ending for ending in (".bval", ".bvec") if ending not in texts]
    found = [path for path in found if os.path.lexists(path)]
    if not found:
        return
    msg = (
        f"{', '.join(found)}: would be taken for the gradients of this image, which has none. "
        "To fix: (1) remove them; (2) choose another name"
    )
    if mode == "w-":
        raise FileExistsError(f"{msg}; (3) mode='w' writes the image and leaves them")
    warnings.warn(msg, MlaWarning, stacklevel=4)


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


def _open(
    path: str | os.PathLike[str], *, scratch_dir: str | None
) -> tuple[RawArray | PackedArray, Metadata, NiftiHeader]:
    """Return voxels, metadata and header of a NIfTI file."""
    header_path, voxel_path, _ = _paths(path)
    # Pinned before the header is read: voxels of another file are refused afterwards.
    source = local_source(voxel_path)
    with _explained(header_path):
        header = _read_header(header_path, single=header_path == voxel_path)
        stored = _stored(source, header)
        sidecars = read_sidecars(_stem(path), header)
    with _explained(header_path):
        metadata = describe(header, sidecars)
    if isinstance(stored, PackedStream):
        return unpacked(stored, scratch_dir=scratch_dir), metadata, header
    return stored, metadata, header


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Name the file in errors."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConversionError(f"{path}: the file is damaged or truncated") from error
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def _read_header(path: str, *, single: bool) -> NiftiHeader:
    """Read the header of a file."""
    with _opened(path) as file:
        return NiftiHeader.read(file, single=single)


def _is_series(path: str) -> bool:
    """Tell a file of four axes; damaged files are none."""
    header_path, voxel_path, _ = _paths(path)
    try:
        with _explained(header_path):
            header = _read_header(header_path, single=header_path == voxel_path)
            return len(header.shape) == _SERIES_NDIM
    except (MlaError, OSError):
        return False


def _mask(stem: str, header: NiftiHeader, *, scratch_dir: str | None) -> ForeignImage | None:
    """Return the brain mask beside a series."""
    path = mask_file(stem) if len(header.shape) == _SERIES_NDIM else None
    if path is None:
        return None
    voxels, metadata, found = _open(path, scratch_dir=scratch_dir)
    is_same_grid = found.shape == header.shape[:3] and np.allclose(
        found.affine, header.affine, rtol=1e-5, atol=1e-4
    )
    if is_same_grid and found.dtype.kind in "iu":
        return ForeignImage(values=voxels, metadata=replace(metadata, is_seg=True))
    warnings.warn(
        f"{path}: shape {found.shape}, type {found.dtype}: no mask of whole numbers on the grid of "
        f"{stem}, {header.shape[:3]}. It is left out",
        MlaWarning,
        stacklevel=2,
    )
    return None


def _stem(path: str | os.PathLike[str]) -> str:
    """Return the absolute path without the suffix."""
    _, voxel_path, suffix = _paths(path)
    return voxel_path[: -len(suffix)]


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


def _stored(source: LocalSource, header: NiftiHeader) -> RawArray | PackedStream:
    """Return where the stored numbers lie; the file is long enough for them."""
    if source.path.lower().endswith(".gz"):
        return PackedStream(
            source=source,
            packing="gzip",
            dtype=header.dtype,
            shape=header.shape,
            order="F",
            skip=header.voxel_offset,
        )
    return RawArray(
        source=source,
        dtype=header.dtype,
        shape=header.shape,
        order="F",
        offset=header.voxel_offset,
    )
