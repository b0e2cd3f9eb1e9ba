"""The frames of one DICOM file: where each lies in the patient, and what tells it from others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FRAME_KEYWORDS", "ORDER_KEYS", "Frame", "frames_of", "numbers_of"]

FRAME_KEYWORDS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "GridFrameOffsetVector",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionDateTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "InstanceNumber",
    "ImageType",
    "EchoTime",
)
"""The elements that `frames_of` looks at."""

ORDER_KEYS = ("temporal position", "trigger time", "acquisition time", "instance number", "frame")
"""What may order images of one place, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image of rows and columns."""

    name: str
    """File, and number of the frame in it."""
    index: int
    """Number of the frame in its file."""
    position: tuple[float, ...] | None = None
    """Centre of the first pixel, mm, LPS."""
    orientation: tuple[float, ...] | None = None
    """Unit vectors along a row, then along a column, LPS: the six numbers of the standard."""
    spacing: tuple[float, ...] | None = None
    """Distance between rows, then between columns, mm."""
    thickness: float | None = None
    """Distance to the next slice as stated, mm."""
    scaling: tuple[float, float] | None = None
    """Rescale slope and intercept."""
    kind: tuple[str, ...] = ()
    """What images of one volume share: image type and echo time."""
    order: Mapping[str, float | str] = field(default_factory=dict)
    """Values of some of `ORDER_KEYS`."""


def frames_of(header: Any, *, n_frames: int, name: str) -> tuple[Frame, ...]:
    """Return the frames of a file.

    Enhanced objects state places per frame or for all frames in functional groups (PS3.3 C.7.6.16),
    doses as offsets along the normal (C.8.8.3.2). Other files of several frames state no places.

    Parameters
    ----------
    header
        A pydicom Dataset.
    n_frames
        Number of frames.
    name
        Of the file, for messages.

    Raises
    ------
    ConversionError
        When an element holds no numbers, or there are not as many as frames.
    """
    shared = _first(header, "SharedFunctionalGroupsSequence")
    groups = header.get("PerFrameFunctionalGroupsSequence") or ()
    if groups and len(groups) != n_frames:
        raise ConversionError(f"{len(groups)} functional groups for {n_frames} frames")
    offsets = _offsets(header, n_frames)
    frames = []
    for index in range(n_frames):
        found = _Lookup(header, shared, groups[index] if groups else None)
        is_placed = n_frames == 1 or bool(groups) or offsets is not None
        orientation = found.numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        position = found.numbers("PlanePositionSequence", "ImagePositionPatient", 3)
        if offsets is not None and position is not None and orientation is not None:
            normal = np.cross(orientation[:3], orientation[3:])
            position = tuple((np.asarray(position) + offsets[index] * normal).tolist())
        frames.append(
            Frame(
                name=name if n_frames == 1 else f"{name} frame {index}",
                index=index,
                position=position if is_placed else None,
                orientation=orientation if is_placed else None,
                spacing=found.numbers("PixelMeasuresSequence", "PixelSpacing", 2),
                thickness=found.thickness(),
                scaling=found.scaling(),
                kind=found.kind(),
                order=found.order(index),
            )
        )
    return tuple(frames)


def numbers_of(header: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Return the numbers of an element, None when it is absent or empty."""
    value = header.get(keyword)
    if value is None or value == "":
        return None
    try:
        numbers = tuple(map(float, np.atleast_1d(value).tolist()))
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{keyword} holds no numbers") from error
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ConversionError(f"{keyword} holds {numbers}, where {count} finite numbers are needed")
    return numbers


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Where the elements of one frame may stand: in its group, the shared one, or the header."""

    header: Any
    shared: Any
    group: Any

    def item(self, sequence: str, keyword: str) -> Any:
        """Return the data set that holds an element of this frame."""
        for group in (self.group, self.shared):
            found = None if group is None else _first(group, sequence)
            if found is not None and keyword in found:
                return found
        return self.header

    def value(self, sequence: str, keyword: str) -> Any:
        """Return the value of an element of this frame, or None."""
        return self.item(sequence, keyword).get(keyword)

    def numbers(self, sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        """Return the numbers of an element of this frame."""
        return numbers_of(self.item(sequence, keyword), keyword, count)

    def thickness(self) -> float | None:
        """Return how far the next slice is said to be."""
        for keyword in ("SpacingBetweenSlices", "SliceThickness"):
            found = self.numbers("PixelMeasuresSequence", keyword, 1)
            if found is not None and found[0] > 0:
                return found[0]
        return None

    def scaling(self) -> tuple[float, float] | None:
        """Return slope and intercept."""
        sequence = "PixelValueTransformationSequence"
        slope = _alone(self.numbers(sequence, "RescaleSlope", 1))
        intercept = _alone(self.numbers(sequence, "RescaleIntercept", 1))
        if slope is None and intercept is None:
            return None
        return 1.0 if slope is None else slope, intercept or 0.0

    def kind(self) -> tuple[str, ...]:
        """Return image type and echo time."""
        echo = self.value("MREchoSequence", "EffectiveEchoTime") or self.header.get("EchoTime")
        types = np.atleast_1d(self.header.get("ImageType") or "").tolist()
        return (*map(str, types), f"echo time {echo}" if echo else "")

    def order(self, index: int) -> dict[str, float | str]:
        """Return what may tell this image from others of the same place."""
        content, header = "FrameContentSequence", self.header
        is_alone = self.group is None
        moment = self.value(content, "FrameAcquisitionDateTime") or header.get(
            "AcquisitionDateTime"
        )
        if not moment and is_alone and header.get("AcquisitionTime"):
            moment = f"{header.get('AcquisitionDate') or ''}{header.get('AcquisitionTime')}"
        temporal = _alone(self.numbers(content, "TemporalPositionIndex", 1))
        if temporal is None:
            temporal = _alone(numbers_of(header, "TemporalPositionIdentifier", 1))
        values: dict[str, float | str | None] = {
            "temporal position": temporal,
            "trigger time": _alone(numbers_of(header, "TriggerTime", 1)),
            "acquisition time": str(moment) if moment else None,
            "instance number": _alone(numbers_of(header, "InstanceNumber", 1)),
            "frame": float(index),
        }
        return {key: value for key, value in values.items() if value is not None}


def _alone(numbers: tuple[float, ...] | None) -> float | None:
    """Return the only number of an element."""
    return None if numbers is None else numbers[0]


def _first(header: Any, sequence: str) -> Any:
    """Return the first item of a sequence, or None."""
    items: Any = header.get(sequence) or ()
    return items[0] if len(items) else None


def _offsets(header: Any, n_frames: int) -> tuple[float, ...] | None:
    """Return how far along the normal the planes of a dose lie from its position, mm."""
    if "GridFrameOffsetVector" not in header or n_frames == 1:
        return None
    offsets = numbers_of(header, "GridFrameOffsetVector", n_frames)
    # The first one is zero where they are offsets; else they are coordinates of the planes.
    return None if offsets is None else tuple(offset - offsets[0] for offset in offsets)
