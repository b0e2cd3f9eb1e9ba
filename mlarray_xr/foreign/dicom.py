"""DICOM: a folder with a series of slices, or one file of one or many frames."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.axes import axis_labels_for
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.dicom_series import Series, read_series, read_series_again
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.reopened import Reopened
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.planning.grid import check_box
from mlarray_xr.record import Record, StoredCoordinate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Json

__all__ = ["DicomArray", "open_image"]

_KEY = "dicom"
_SPATIAL = "zyx"
_SCALING = ("rescale_slope", "rescale_intercept")
_RGB = {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
"""Colours that pydicom gives as red, green and blue."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DicomArray:
    """The stored numbers of one series, read slice by slice; an address, no open file."""

    path: str
    """Absolute path of the folder or file."""
    uid: str
    """Series Instance UID."""
    digest: str
    """Of the identities of the files."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements, native byte order."""
    chunks: tuple[int, ...]
    """Shape of what is decoded at once: a slice."""
    series: Reopened[Series] = field(repr=False)
    """Where the frames lie; each process reads the headers for itself."""

    @classmethod
    def of(cls, series: Series, *, path: str) -> DicomArray:
        """Return the array of a series."""
        again = partial(read_series_again, path, series.uid, series.digest)
        frame_shape, shape = series.format.frame_shape, series.shape
        return cls(
            path=path,
            uid=series.uid,
            digest=series.digest,
            shape=shape,
            dtype=series.format.dtype,
            chunks=(1,) * (len(shape) - len(frame_shape)) + frame_shape,
            series=Reopened(again, value=series),
        )

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box: one slice with start and stop per axis, no step.

        Raises
        ------
        IndexError
            When the box reaches outside the array.
        SourceChanged
            When a file changed since the series was opened.
        ConversionError
            When a slice cannot be decoded.
        """
        box = check_box([(along.start, along.stop) for along in key], self.shape)
        out = np.empty([stop - start for start, stop in box], self.dtype)
        if out.size == 0:
            return out
        series = self.series.get()
        n_leading = len(self.shape) - len(series.format.frame_shape)
        inner = tuple(slice(*pair) for pair in box[n_leading:])
        slices = out.reshape((-1, *out.shape[n_leading:]))
        places = itertools.product(*(range(*pair) for pair in box[:n_leading]))
        for place, part in zip(places, slices, strict=True):
            number = np.ravel_multi_index(place, self.shape[:n_leading]) if place else 0
            pixels, frame = series.frames[number]
            part[...] = pixels.read(frame.index)[inner]
        return out

    def __dask_tokenize__(self) -> tuple[str, ...]:
        """Return an identity that is the same in every process and changes when a file does."""
        return ("mlarray_xr.DicomArray", self.path, self.uid, self.digest)


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a DICOM series without reading pixels.

    Slices ascend along the normal of the image plane, as ITK orders them; axes are slice, row,
    column, named z, y, x after the world axis that each mostly runs along (so axial slices give z,
    y, x). Several images at each place become volumes along ``time``, in the order of temporal
    position, trigger time, acquisition time or number. Images without a place become ``frame``, y,
    x. Colours have a last axis ``channel``. The affine is that of the positions, in LPS and mm: a
    tilted gantry shears it.

    The stored numbers are kept: signed where the header says so, bits above Bits Stored dropped.
    Rescale slope and intercept are attributes, or where they differ (PET) coordinates along the
    slices or volumes. Luminance and colour differences are given as RGB, as pydicom does. Of the
    headers only a short list of technical elements is kept in ``source``; none identifies a
    patient. Segmentation objects, deflated files, and samples that do not end at bit 0 are refused.

    Parameters
    ----------
    path
        A file, or a folder that holds the files of a series. Folders in it are not searched; files
        that are no DICOM images are passed over.
    scratch_dir
        Not needed: every slice is decoded from where it lies.
    dataset
        Series Instance UID, or Series Number where one series has it, of a folder with several.

    Raises
    ------
    ConversionError
        When a file is damaged, there are several series, which the message lists, or slices differ
        in size, type, orientation or spacing, are missing, unevenly spaced or there twice.
    FileNotFoundError
        When nothing is there.
    MissingDependencyError
        When pydicom is not installed, or nothing that decodes these pixels.

    Examples
    --------
    >>> from pydicom.data import get_testdata_file
    >>> image = open_image(
    ...     get_testdata_file("CT_small.dcm", download=False), scratch_dir=None, dataset=None
    ... )
    >>> image.values.shape, image.metadata.spatial.coord_system
    ((1, 128, 128), 'LPS+')
    >>> image.values[0:1, 0:1, 0:3]
    array([[[175, 180, 166]]], dtype=int16)
    """
    del scratch_dir
    whole = os.path.abspath(os.path.expanduser(path))
    series = read_series(whole, dataset)
    try:
        metadata = _describe(series)
    except ConversionError as error:
        raise ConversionError(f"{whole}: {error}") from error
    return ForeignImage(values=DicomArray.of(series, path=whole), metadata=metadata)


def _describe(series: Series) -> Metadata:
    """Return the metadata of a series."""
    stack, is_colour = series.stack, series.format.is_colour
    dims = stack.dims + (("channel",) if is_colour else ())
    attrs, coords = _scaling(series)
    if is_colour and series.format.photometric in _RGB:
        coords["channel"] = StoredCoordinate(dims=("channel",), values=np.array(list("RGB")))
    is_placed = stack.affine is not None
    units: list[Json] = ["mm" if dim in _SPATIAL else "" for dim in dims]
    return Metadata(
        source={_KEY: dict(series.facts)},
        extra=Record(attrs=attrs, coords=coords).added_to({}),
        spatial=Spatial(
            affine=stack.affine,
            spacing=None if is_placed else stack.spacing,
            axis_labels=axis_labels_for(dims),
            coord_system="LPS+" if is_placed else None,
            axis_units=units if is_placed or stack.spacing else None,
        ),
        has_array=True,
        image_meta_format="dicom",
    )


def _scaling(series: Series) -> tuple[dict[str, Any], dict[str, StoredCoordinate]]:
    """Return slope and intercept as attributes, or as coordinates of the axis they differ along."""
    stated = [frame.scaling for _, frame in series.frames]
    if not any(stated):
        return {}, {}
    numbers = np.array([pair or (1.0, 0.0) for pair in stated])
    numbers = numbers.reshape(series.stack.n_volumes, -1, 2)
    if (numbers == numbers[0, 0]).all():
        return dict(zip(_SCALING, numbers[0, 0].tolist(), strict=True)), {}
    dims = series.stack.dims
    if (numbers == numbers[:1]).all():
        dim, along = dims[-3], numbers[0]
    elif (numbers == numbers[:, :1]).all():
        dim, along = dims[0], numbers[:, 0]
    else:
        raise ConversionError(
            "rescale slope and intercept differ along time and slices, and coordinates have one "
            "axis. To fix: convert each volume from a folder of its own"
        )
    return {}, {
        name: StoredCoordinate(dims=(dim,), values=np.ascontiguousarray(along[:, at]))
        for at, name in enumerate(_SCALING)
    }
