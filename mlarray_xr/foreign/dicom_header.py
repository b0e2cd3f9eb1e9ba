"""One DICOM file before its pixels are read: series, pixel data, frames, and what is kept."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError
from mlarray_xr.foreign.dicom_frames import FRAME_KEYWORDS, frames_of
from mlarray_xr.foreign.dicom_pixels import BoundedFile, PixelData, PixelFormat

if TYPE_CHECKING:
    from mlarray_xr.foreign.dicom_frames import Frame
    from mlarray_xr.format.metadata import Json
    from mlarray_xr.storage.source import LocalSource

__all__ = ["DicomFile", "ObjectWithoutPixels", "read_header"]

_KEPT = (
    "Modality",
    "Manufacturer",
    "BodyPartExamined",
    "KVP",
    "MagneticFieldStrength",
    "RepetitionTime",
    "EchoTime",
    "FlipAngle",
    "SliceThickness",
    "SpacingBetweenSlices",
    "PhotometricInterpretation",
    "BitsStored",
    "PixelPaddingValue",
    "WindowCenter",
    "WindowWidth",
    "RescaleType",
    "Units",
    "DoseUnits",
    "DoseGridScaling",
)
"""All that is copied from a header. None of it identifies a patient."""

_READ = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "PlanarConfiguration",
    "NumberOfFrames",
    "BitsAllocated",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
_PIXELS = {
    0x7FE00010: "PixelData",
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
}
_MAGIC, _MAGIC_AT = b"DICM", 128
_SUFFIXES = (".dcm", ".dicom", ".ima")
_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
_LONG_VRS = {"OB", "OW", "OF", "OD", "OV", "UN"}
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = {True: "1.2.840.10008.1.2.1", False: "1.2.840.10008.1.2.2"}
_TEXT_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DicomFile:
    """One file with pixels."""

    pixels: PixelData
    """Where the frames lie."""
    frames: tuple[Frame, ...]
    """Places and order of the frames."""
    series_uid: str
    """Series Instance UID."""
    series_number: str
    """Series Number, empty where there is none."""
    description: str = field(repr=False)
    """Series Description, for the list to choose from; it is not kept."""
    instance_uid: str
    """SOP Instance UID."""
    facts: dict[Any, Json]
    """What is kept of the header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectWithoutPixels:
    """A DICOM file that is no image, such as a report or a plan, or is cut off before it shows."""

    path: str
    """The file."""
    series_uid: str
    """Series Instance UID; empty for a directory of files."""


def read_header(source: LocalSource) -> DicomFile | ObjectWithoutPixels | None:
    """Read a file up to its pixels; None when it is no DICOM file.

    Only the elements that are needed are taken in: no name, date of birth or other element that
    identifies a patient.

    Raises
    ------
    ConversionError
        When the file is damaged, or of a kind that is not read.
    MissingDependencyError
        When pydicom, or a decoder for the pixels, is not installed.
    """
    try:
        with BoundedFile(source.open(), size=source.size) as file:
            head = file.peek(_MAGIC_AT + len(_MAGIC))
            if head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] != _MAGIC:
                _check_name(source.path)
                return None
            return _read(file, source)
    except (ConversionError, MissingDependencyError) as error:
        raise type(error)(f"{source.path}: {error}") from error
    except MlaError:
        raise
    except Exception as error:  # pydicom meets damage with errors of many kinds
        raise ConversionError(f"{source.path}: the DICOM header is broken: {error}") from error


def _check_name(path: str) -> None:
    """Refuse files that are DICOM by name only: a slice would be missing, and nobody would know."""
    if path.lower().endswith(_SUFFIXES):
        raise ConversionError(
            "by its name this is a DICOM file, and the mark at byte 128 is missing: it is damaged, "
            "or has no preamble. To fix: remove it, or write it anew, such as with dcmconv"
        )


def _read(file: BoundedFile, source: LocalSource) -> DicomFile | ObjectWithoutPixels:
    """Parse an open DICOM file."""
    header, element = _header(file)
    meta = header.file_meta
    if element is None:
        _check_without_pixels(header, meta)
        uid = str(header.get("SeriesInstanceUID") or "")
        return ObjectWithoutPixels(path=source.path, series_uid=uid)
    tag, vr, length = element
    if vr is not None and vr not in _LONG_VRS:
        raise ConversionError(f"pixels of value representation {vr!r}")
    if str(header.get("SOPClassUID", "")) == _SEGMENTATION:
        raise ConversionError(
            "segmentation objects are not read: their frames are planes of several segments"
        )
    implicit, little = header.original_encoding
    guessed = _IMPLICIT if implicit else _EXPLICIT[bool(little)]
    n_frames = int(header.get("NumberOfFrames") or 1)
    tables = [header.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths")]
    pixels = PixelData(
        source=source,
        format=_pixel_format(header, _PIXELS[tag]),
        n_frames=n_frames,
        transfer_syntax=str(meta.get("TransferSyntaxUID") or guessed),
        offset=file.tell() + (8 if vr is None else 12),
        length=length,
        vr=vr or "OW",
        offset_table=(tables[0], tables[1]) if tables[0] and tables[1] else None,
    )
    pixels.check(file)
    return DicomFile(
        pixels=pixels,
        frames=frames_of(header, n_frames=n_frames, name=os.path.basename(source.path)),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        series_number=_text(header.get("SeriesNumber")),
        description=_text(header.get("SeriesDescription")),
        instance_uid=str(header.get("SOPInstanceUID") or ""),
        facts=_facts(header),
    )


def _header(file: BoundedFile) -> tuple[Any, tuple[int, str | None, int] | None]:
    """Return the header, and tag, representation and length of the pixels, which are up next."""
    try:
        from pydicom.datadict import tag_for_keyword
        from pydicom.filereader import read_partial
        from pydicom.tag import Tag
    except ImportError as error:
        raise MissingDependencyError(
            "DICOM files need pydicom, which is not installed. "
            'To fix: pip install "mlarray-xr[dicom]"'
        ) from error
    found: list[tuple[int, str | None, int]] = []

    def is_pixels(tag: int, vr: str | None, length: int) -> bool:
        if int(tag) in _PIXELS:
            found.append((int(tag), vr, length))
        return bool(found)

    tags = [tag_for_keyword(keyword) for keyword in {*_KEPT, *_READ, *FRAME_KEYWORDS}]
    header = read_partial(
        file,
        stop_when=is_pixels,
        specific_tags=[Tag(tag) for tag in tags if tag is not None],
    )
    return header, found[0] if found else None


def _check_without_pixels(header: Any, meta: Any) -> None:
    """Accept objects that have no pixels; refuse images that were cut off before theirs."""
    is_directory = str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY
    if "Rows" in header or not ("SeriesInstanceUID" in header or is_directory):
        raise ConversionError("the file ends before its pixels: it is truncated or damaged")


def _pixel_format(header: Any, keyword: str) -> PixelFormat:
    """Return size and type of the pixels."""
    for required in ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation"):
        if header.get(required) in (None, ""):
            raise ConversionError(f"the header states no {required}")
    bits = int(header.BitsAllocated)
    stored = int(header.get("BitsStored") or bits)
    return PixelFormat(
        rows=int(header.Rows),
        columns=int(header.Columns),
        samples=int(header.get("SamplesPerPixel") or 1),
        planar=int(header.get("PlanarConfiguration") or 0),
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=int(header.get("HighBit", stored - 1)),
        is_signed=bool(header.get("PixelRepresentation") or 0),
        photometric=str(header.PhotometricInterpretation),
        keyword=keyword,
    )


def _facts(header: Any) -> dict[Any, Json]:
    """Return the elements that are kept, as plain values."""
    facts = {keyword: _plain(header.get(keyword)) for keyword in _KEPT}
    return {keyword: value for keyword, value in facts.items() if value not in (None, "", [])}


def _plain(value: Any) -> Json:
    """Return a number, a short text, or a list of them."""
    if value is None or isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return int(value)
    try:
        number = float(value)
    except TypeError:
        return [_plain(item) for item in list(value)[:_TEXT_CHARACTERS]]
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """Return a short printable text."""
    text = "" if value is None else str(value)
    return "".join(c for c in text if c.isprintable())[:_TEXT_CHARACTERS]
