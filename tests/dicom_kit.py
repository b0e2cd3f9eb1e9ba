"""Synthetic DICOM files, written with pydicom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import format_number_as_ds

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def image(pixels: NDArray[Any], *, series: str, number: int = 1) -> Dataset:
    """Return an image without a place: (rows, columns) or (rows, columns, 3)."""
    stored = Dataset()
    stored.file_meta = FileMetaDataset()
    stored.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stored.SOPClassUID = stored.file_meta.MediaStorageSOPClassUID = CTImageStorage
    stored.SOPInstanceUID = stored.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    stored.SeriesInstanceUID = series
    stored.StudyInstanceUID = stored.FrameOfReferenceUID = generate_uid(entropy_srcs=[series])
    stored.PatientName, stored.PatientID = "Doe^Jane", "4711-secret"
    stored.PatientBirthDate, stored.InstitutionName = "19700101", "Secret Hospital"
    stored.Modality, stored.Manufacturer = "CT", "ACME"
    stored.SeriesNumber, stored.InstanceNumber = 3, number
    stored.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    put_pixels(stored, pixels)
    return stored


def put_pixels(stored: Dataset, pixels: NDArray[Any]) -> None:
    """Set pixel data, and the elements that describe them, of one frame."""
    colour = pixels.ndim == 3
    stored.Rows, stored.Columns = pixels.shape[:2]
    stored.SamplesPerPixel = 3 if colour else 1
    stored.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        stored.PlanarConfiguration = 0
    stored.BitsAllocated = stored.BitsStored = 8 * pixels.dtype.itemsize
    stored.HighBit = stored.BitsStored - 1
    stored.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    stored.PixelData = data + b"\0" * (len(data) % 2)
    stored["PixelData"].VR = "OW"


def series(
    folder: Path,
    voxels: NDArray[Any],
    *,
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, ...] = (-10.0, -20.0, 30.0),
    step: NDArray[np.float64] | None = None,
    spacing: tuple[float, float] = (0.5, 0.75),
    uid: str | None = None,
    prefix: str = "",
    change: Callable[[Dataset, int], None] | None = None,
) -> str:
    """Write (slice, row, column) voxels, a file per slice, in another order of names.

    `change` is called on every data set before it is written. Returns the Series Instance UID.
    """
    folder.mkdir(exist_ok=True)
    uid = uid or str(generate_uid())
    along = np.asarray(orientation)
    if step is None:
        step = 2.5 * np.cross(along[:3], along[3:])
    for k, pixels in enumerate(voxels):
        stored = image(pixels, series=uid, number=k + 1)
        position = np.asarray(origin) + k * step
        stored.ImageOrientationPatient = [format_number_as_ds(float(x)) for x in orientation]
        stored.ImagePositionPatient = [format_number_as_ds(float(x)) for x in position]
        stored.PixelSpacing = list(spacing)
        stored.SliceThickness = 2.0
        if change is not None:
            change(stored, k)
        name = f"{prefix}{(k * 7 + 3) % 101:03}.dcm"
        stored.save_as(folder / name, enforce_file_format=True)
    return uid


def enhanced(
    path: Path, voxels: NDArray[Any], order: list[tuple[int, int]], *, per_frame_scale: bool = False
) -> None:
    """Write (time, slice, row, column) voxels as one file whose frames are in the given order."""
    stored = image(voxels[0, 0], series=str(generate_uid()))
    stored.NumberOfFrames = len(order)
    stored.PixelData = b"".join(voxels[t, k].tobytes() for t, k in order)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.75], 2.0
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    stored.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for t, k in order:
        group, content, position, values = Dataset(), Dataset(), Dataset(), Dataset()
        content.TemporalPositionIndex = t + 1
        position.ImagePositionPatient = [-10, -20, 30 + 2.5 * k]
        values.RescaleIntercept, values.RescaleSlope = 0, (k + 1 if per_frame_scale else 2)
        group.FrameContentSequence = Sequence([content])
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    stored.PerFrameFunctionalGroupsSequence = Sequence(groups)
    stored.save_as(path, enforce_file_format=True)
