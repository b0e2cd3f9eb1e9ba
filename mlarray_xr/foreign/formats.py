"""The formats that are read and written: which file is of which, and who opens it."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign import dicom, hdf5, netcdf, nifti, npy, nrrd, tiff, zarr
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.nifti_metadata import header_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlarray_xr.storage.job import Progress

__all__ = [
    "FORMATS",
    "MLA",
    "Format",
    "format_named",
    "format_of_source",
    "format_of_target",
    "is_dicom_file",
    "is_dicom_name",
    "is_zarr_folder",
    "split_name",
]

_ZARR_DOCUMENTS = ("zarr.json", ".zarray", ".zgroup")
_DICOM_SUFFIXES = ("", ".dcm", ".dicom", ".ima")
_DICOM_MAGIC = struct.Struct("128x4s")


class Opener(Protocol):
    """What opens a file of a format."""

    def __call__(self, path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
        """Open one array lazily; unpack into `scratch_dir` what cannot be read where it lies."""


class Writer(Protocol):
    """What writes a file of a format."""

    def __call__(
        self, array: MlaArray, path: str, *, mode: Literal["w-", "w"], progress: Progress | None
    ) -> None:
        """Write an array; ``"w-"`` refuses an existing target."""


class FilesBeside(Protocol):
    """What tells which files of their own belong to an image."""

    def __call__(self, path: str) -> Iterable[str]:
        """Return their paths; no voxel is read."""


class AxisOrder(Protocol):
    """What tells how a writer transposes."""

    def __call__(self, array: MlaArray) -> Sequence[int]:
        """Return the axes of the array in the order in which the written file has them."""


def _as_it_is(array: MlaArray) -> Sequence[int]:
    """Return the axes of an array that is written without transposing."""
    return range(array.ndim)


def _nothing_beside(path: str) -> Iterable[str]:
    """Return the files beside an image that stands alone."""
    del path
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A file format, and the functions that read and write it."""

    name: str
    """Short, lower case: what users choose it by."""
    suffixes: tuple[str, ...]
    """Endings of names, lower case, the longest first."""
    open_image: Opener
    """Opens a file."""
    write_image: Writer | None = None
    """Writes a file; None where that is not offered."""
    written_suffixes: tuple[str, ...] = ()
    """Endings of the names of files that can be written."""
    axis_order: AxisOrder = _as_it_is
    """Order of the axes in files that `write_image` makes."""
    files_beside: FilesBeside = _nothing_beside
    """Sidecars and masks of an image, which have names of their own."""


def _open_mla(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open an `.mla` file of any generation."""
    del scratch_dir
    if dataset is not None:
        raise ConversionError(
            f"{path}: dataset={dataset!r} was asked for, and the file holds one array. "
            "To fix: leave it out"
        )
    array = MlaArray(path)
    if not array.metadata.has_array:
        raise ConversionError(f"{path}: the file holds metadata only, no array")
    return ForeignImage(values=array, metadata=array.metadata)


def _nifti_order(array: MlaArray) -> Sequence[int]:
    """Return the axes of an array as NIfTI has them: spatial ones first."""
    return header_for(array)[1]


MLA = Format(name="mla", suffixes=(".mb2nd", ".b2nd", ".mla"), open_image=_open_mla)
"""What everything else is converted to and from."""

FORMATS = (
    MLA,
    Format(
        name="nifti",
        suffixes=(".nii.gz", ".nii", ".hdr", ".img"),
        open_image=nifti.open_image,
        write_image=nifti.write_image,
        written_suffixes=(".nii.gz", ".nii", ".hdr", ".img"),
        axis_order=_nifti_order,
        files_beside=nifti.files_beside,
    ),
    Format(
        name="nrrd",
        suffixes=(".nrrd", ".nhdr"),
        open_image=nrrd.open_image,
        write_image=nrrd.write_image,
        written_suffixes=(".nrrd",),
    ),
    Format(
        name="npy",
        suffixes=(".npy", ".npz"),
        open_image=npy.open_image,
        write_image=npy.write_image,
        written_suffixes=(".npy",),
    ),
    Format(name="hdf5", suffixes=(".hdf5", ".h5", ".nwb"), open_image=hdf5.open_image),
    Format(name="netcdf", suffixes=(".nc4", ".nc"), open_image=netcdf.open_image),
    Format(
        name="zarr",
        suffixes=(".ome.zarr", ".zarr.zip", ".zarr"),
        open_image=zarr.open_image,
        write_image=zarr.write_image,
        written_suffixes=(".ome.zarr", ".zarr"),
    ),
    Format(
        name="tiff",
        suffixes=(".ome.tiff", ".ome.tif", ".tiff", ".tif"),
        open_image=tiff.open_image,
    ),
    Format(name="dicom", suffixes=(".dicom", ".dcm", ".ima"), open_image=dicom.open_image),
)
"""Everything that can be read."""


def split_name(name: str) -> tuple[str, Format | None]:
    """Split the name of a file into what comes before the suffix of its format, and the format.

    Examples
    --------
    >>> stem, found = split_name("sub-01_T1w.nii.gz")
    >>> stem, found.name
    ('sub-01_T1w', 'nifti')
    >>> split_name("notes.txt")
    ('notes.txt', None)
    """
    lower = name.lower()
    for each in FORMATS:
        for suffix in each.suffixes:
            if lower.endswith(suffix) and len(lower) > len(suffix):
                return name[: -len(suffix)], each
    return name, None


def format_named(name: str) -> Format:
    """Return the format of a name.

    Raises
    ------
    ConversionError
        When there is none; the message lists them.

    Examples
    --------
    >>> format_named("nrrd").suffixes
    ('.nrrd', '.nhdr')
    """
    found = next((each for each in FORMATS if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in FORMATS)
        raise ConversionError(f"{name!r} is no format that is read. To fix: one of {names}")
    return found


def format_of_source(path: str, name: str | None = None) -> Format | None:
    """Return the format of a file or folder: the one that is named, else what it looks like.

    Parameters
    ----------
    path
        By its suffix; without a known one by what is in it.
    name
        Of the format, when it is known better.

    Returns
    -------
    Format or None
        None when nothing tells.

    Raises
    ------
    ConversionError
        When no format has that name.
    """
    if name is not None:
        return format_named(name)
    found = split_name(os.path.basename(path))[1]
    if found is not None:
        return found
    if os.path.isfile(path):
        return format_named("dicom") if is_dicom_file(path) else None
    return _folder_format(path) if os.path.isdir(path) else None


def format_of_target(path: str) -> Format | None:
    """Return the format that the name of a target asks for, None when it is not written."""
    found = split_name(os.path.basename(path))[1]
    if found is None or found is MLA:
        return found if path.endswith(".mla") else None
    return found if path.lower().endswith(found.written_suffixes) else None


def is_zarr_folder(path: str) -> bool:
    """Tell a folder that holds a Zarr array or group."""
    return any(os.path.isfile(os.path.join(path, name)) for name in _ZARR_DOCUMENTS)


def is_dicom_name(name: str) -> bool:
    """Tell names that DICOM files have: no suffix, a usual one, or numbers as in a UID."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix in _DICOM_SUFFIXES or suffix[1:].isdecimal()


def is_dicom_file(path: str) -> bool:
    """Tell a file that starts as the standard says: 128 bytes, then ``DICM`` (PS3.10, 7.1)."""
    try:
        with open(path, "rb") as file:
            head = file.read(_DICOM_MAGIC.size)
    except OSError:
        return False
    return len(head) == _DICOM_MAGIC.size and _DICOM_MAGIC.unpack(head) == (b"DICM",)


def _folder_format(path: str) -> Format | None:
    """Return the format of a folder that is one image, by what is in it."""
    if is_zarr_folder(path):
        return format_named("zarr")
    names = sorted(name for name in os.listdir(path) if not name.startswith("."))
    formats = {name: split_name(name)[1] for name in names}
    for name, found in formats.items():
        is_candidate = is_dicom_name(name) and (found is None or found.name == "dicom")
        if is_candidate and is_dicom_file(os.path.join(path, name)):
            return format_named("dicom")
    is_tiff = any(found is not None and found.name == "tiff" for found in formats.values())
    return format_named("tiff") if is_tiff else None
