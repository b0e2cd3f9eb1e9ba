"""How the frames of a DICOM series stack up: their order, and the affine of the volume.

PS3.3 C.7.6.2.1.1 gives the position of a pixel; here as in ITK slices ascend along the normal, the
cross product of the row and the column direction. Columns of the affine are slice, row, column.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.dicom_frames import ORDER_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.foreign.dicom_frames import Frame

__all__ = ["Stack", "plan_stack"]

_SAME_DIRECTION = 1e-4
_SAME_SPACING = 1e-4
"""Relative; decimal strings have 16 characters, and many writers use six."""

_SAME_PLACE = 0.01
"""Images closer than this part of a pixel are at one place."""

_GAP_RATIO, _GAP_MM = 0.02, 0.01
"""How far a gap may be from the usual one: the larger of both, but never a quarter of it."""

_OFF_LINE = 0.1
"""How far, in gaps, a slice may lie from where even steps put it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Frames in the order of an array, and where that array lies."""

    order: tuple[int, ...]
    """Numbers of the frames: volume after volume, in each slice after slice."""
    n_volumes: int
    """Volumes of the same place, one after another in time."""
    n_slices: int
    """Slices of a volume."""
    affine: tuple[tuple[float, ...], ...] | None
    """(slice, row, column) to mm in LPS, 4 x 4; None where places are not known."""
    spacing: tuple[float, ...] | None
    """Between rows and between columns, mm, where all frames state the same."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes: places are named after the world axis that they mostly run along."""
        if self.affine is None:
            return ("y", "x") if len(self.order) == 1 else ("frame", "y", "x")
        return (("time",) if self.n_volumes > 1 else ()) + _world_names(self.affine)


def plan_stack(frames: Sequence[Frame]) -> Stack:
    """Decide how frames of one size make up an array.

    Frames of the same place are volumes one after another, in the order of the first of
    `ORDER_KEYS` that tells them apart everywhere. The step from slice to slice is that of the
    positions, so that a tilted gantry gives a sheared affine. Frames without a place follow one
    another by number.

    Raises
    ------
    ConversionError
        When orientation or spacing differ, slices are missing, unevenly spaced or there twice, or
        it is not clear how frames of the same place differ. The message names files.

    Examples
    --------
    >>> from mlarray_xr.foreign.dicom_frames import Frame
    >>> frames = [
    ...     Frame(
    ...         name=f"{z}.dcm",
    ...         index=0,
    ...         position=(-8, -9, z),
    ...         orientation=(1, 0, 0, 0, 1, 0),
    ...         spacing=(0.5, 0.5),
    ...     )
    ...     for z in (30, 10, 20)
    ... ]
    >>> stack = plan_stack(frames)
    >>> stack.order, stack.dims
    ((1, 2, 0), ('z', 'y', 'x'))
    >>> stack.affine[2]
    (10.0, 0.0, 0.0, 10.0)
    """
    if all(frame.position is None or frame.orientation is None for frame in frames):
        return _without_places(frames)
    for keyword in ("position", "orientation", "spacing"):
        lacking = [frame.name for frame in frames if getattr(frame, keyword) is None]
        if lacking:
            raise ConversionError(f"{_listed(lacking)} state no {keyword}, and others do")
    orientation = _orientation(frames)
    spacing = _common_spacing(frames)
    if spacing is None:
        raise ConversionError(_odd_spacing(frames))
    places = _places(frames, orientation, min(spacing))
    _check_counts(frames, places)
    ordered = _in_time(frames, places)
    positions = np.array([frames[place[0]].position for place in ordered], np.float64)
    normal = np.cross(orientation[:3], orientation[3:])
    if len(places) > 1:
        _check_gaps(frames, ordered, positions, normal)
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    else:
        step = normal * (frames[0].thickness or 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = step, positions[0]
    affine[:3, 1], affine[:3, 2] = orientation[3:] * spacing[0], orientation[:3] * spacing[1]
    return Stack(
        order=tuple(place[volume] for volume in range(len(ordered[0])) for place in ordered),
        n_volumes=len(ordered[0]),
        n_slices=len(ordered),
        # Adding zero turns -0.0 into 0.0.
        affine=tuple(tuple(row) for row in (affine + 0.0).tolist()),
        spacing=spacing,
    )


def _without_places(frames: Sequence[Frame]) -> Stack:
    """Order frames by the numbers of images, and of frames in one file."""
    numbers = [
        (float(frame.order.get("instance number", 0)), float(frame.order.get("frame", 0)))
        for frame in frames
    ]
    order = sorted(range(len(frames)), key=numbers.__getitem__)
    for before, after in itertools.pairwise(order):
        if numbers[before] == numbers[after]:
            raise ConversionError(
                f"{frames[before].name} and {frames[after].name} state no position, and the same "
                "number: nothing orders them"
            )
    return Stack(
        order=tuple(order),
        n_volumes=1,
        n_slices=len(frames),
        affine=None,
        spacing=_common_spacing(frames),
    )


def _orientation(frames: Sequence[Frame]) -> NDArray[np.float64]:
    """Return the six numbers that all frames share, as two unit vectors."""
    all_numbers = np.array([frame.orientation for frame in frames], np.float64)
    odd = np.abs(all_numbers - all_numbers[0]).max(axis=1) > _SAME_DIRECTION
    if odd.any():
        name = frames[int(odd.argmax())].name
        raise ConversionError(
            f"{name} has the orientation {all_numbers[odd.argmax()].tolist()}, and "
            f"{frames[0].name} {all_numbers[0].tolist()}: they are no stack of parallel slices. To "
            "fix: convert each orientation from a folder of its own"
        )
    along_row, along_column = all_numbers[0, :3], all_numbers[0, 3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if np.abs(np.subtract(lengths, 1)).max() > 0.01 or abs(along_row @ along_column) > 0.01:
        raise ConversionError(
            f"{frames[0].name}: the orientation {all_numbers[0].tolist()} is no pair of "
            "perpendicular unit vectors"
        )
    return np.concatenate([along_row / lengths[0], along_column / lengths[1]])


def _common_spacing(frames: Sequence[Frame]) -> tuple[float, ...] | None:
    """Return the spacing that all frames share, or None."""
    first = frames[0].spacing
    if first is None or min(first) <= 0:
        return None
    is_same = all(
        frame.spacing is not None and np.allclose(frame.spacing, first, rtol=_SAME_SPACING, atol=0)
        for frame in frames
    )
    return first if is_same else None


def _odd_spacing(frames: Sequence[Frame]) -> str:
    """Say which frame has another spacing than the first."""
    first = frames[0]
    odd = next((f for f in frames if f.spacing is not None and f.spacing != first.spacing), first)
    return f"{odd.name} has the pixel spacing {odd.spacing}, and {first.name} {first.spacing}"


def _places(
    frames: Sequence[Frame], orientation: NDArray[np.float64], pixel: float
) -> list[list[int]]:
    """Group frames by position, ascending along the normal."""
    positions = np.array([frame.position for frame in frames], np.float64)
    distances = positions @ np.cross(orientation[:3], orientation[3:])
    order = np.argsort(distances, kind="stable").tolist()
    places: list[list[int]] = []
    for number in order:
        is_new = (
            not places
            or np.abs(positions[number] - positions[places[-1][0]]).max() > _SAME_PLACE * pixel
        )
        if is_new:
            places.append([])
        places[-1].append(number)
    return places


def _check_counts(frames: Sequence[Frame], places: list[list[int]]) -> None:
    """Refuse places with more or fewer images than the others."""
    counts = Counter(map(len, places))
    if len(counts) == 1:
        return
    usual = counts.most_common(1)[0][0]
    odd = next(place for place in places if len(place) != usual)
    names = [frames[number].name for number in odd]
    raise ConversionError(
        f"{len(odd)} images are at one place, {_listed(names)}, and {usual} at each of "
        f"{counts[usual]} others: images are missing or there twice"
    )


def _in_time(frames: Sequence[Frame], places: list[list[int]]) -> list[list[int]]:
    """Order the frames of each place, everywhere by the same key."""
    if len(places[0]) == 1:
        return places
    for place in places:
        _check_kinds(frames, place)
    for key in ORDER_KEYS:
        values: list[list[Any]] = [[frames[n].order.get(key) for n in place] for place in places]
        if all(None not in here and len({*here}) == len(here) for here in values):
            pairs = zip(values, places, strict=True)
            return [[n for _, n in sorted(zip(*pair, strict=True))] for pair in pairs]
    names = _listed([frames[number].name for number in places[0]])
    raise ConversionError(
        f"{len(places[0])} images are at each place, such as {names}, and none of "
        f"{', '.join(ORDER_KEYS)} orders them everywhere: images are there twice"
    )


def _check_kinds(frames: Sequence[Frame], place: list[int]) -> None:
    """Refuse images of one place that differ in more than time."""
    kinds = {frames[number].kind for number in place}
    if len(kinds) > 1:
        raise ConversionError(
            f"{_listed([frames[number].name for number in place])} are at one place and of several "
            f"kinds, {' and '.join(sorted(str(kind) for kind in kinds))}: no series in time. To "
            "fix: convert each kind from a folder of its own"
        )


def _check_gaps(
    frames: Sequence[Frame],
    places: list[list[int]],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> None:
    """Refuse slices that are missing, or not at even steps on a line."""
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    tolerance = min(max(_GAP_RATIO * usual, _GAP_MM), usual / 4)
    odd = np.abs(gaps - usual) > tolerance
    if odd.any() or usual <= 0:
        at = int(odd.argmax())
        before, after = (frames[places[i][0]].name for i in (at, at + 1))
        raise ConversionError(
            f"slices {before} and {after} are {gaps[at]:.4f} mm apart, and others "
            f"{usual:.4f} mm: slices are missing or unevenly spaced ({int(odd.sum())} such gaps). "
            "To fix: add the missing files, or convert even parts from folders of their own"
        )
    even = np.linspace(positions[0], positions[-1], len(positions))
    offsets = np.linalg.norm(positions - even, axis=1)
    if offsets.max() > _OFF_LINE * usual:
        name = frames[places[int(offsets.argmax())][0]].name
        raise ConversionError(
            f"slice {name} lies {offsets.max():.4f} mm from where even steps of {usual:.4f} mm put "
            "it: no affine describes the stack"
        )


def _world_names(affine: tuple[tuple[float, ...], ...]) -> tuple[str, str, str]:
    """Name each axis after the world axis that it mostly runs along, each name once."""
    matrix = np.abs(np.asarray(affine)[:3, :3])
    matrix /= np.linalg.norm(matrix, axis=0)
    # The first of equal ones is that of axial slices.
    best = max(
        ((2, 1, 0), (2, 0, 1), (1, 2, 0), (1, 0, 2), (0, 2, 1), (0, 1, 2)),
        key=lambda along: round(float(sum(matrix[along[i], i] for i in range(3))), 6),
    )
    first, second, third = ("xyz"[axis] for axis in best)
    return first, second, third


def _listed(names: Sequence[str]) -> str:
    """Name a few files."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} others"
