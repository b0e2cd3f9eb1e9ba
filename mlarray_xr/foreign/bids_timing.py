"""Times in BIDS JSON: what it says of volumes and slices, and how that follows a selection.

Fields and their meaning: BIDS 1.10, "Task (including resting state) imaging data" (RepetitionTime,
VolumeTiming, SliceTiming, SliceEncodingDirection, PhaseEncodingDirection), "Positron Emission
Tomography" (FrameTimesStart, FrameDuration).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = [
    "frame_durations",
    "frame_times",
    "slice_axis",
    "slice_times",
    "with_directions",
    "with_slice_times",
    "with_times",
    "with_volumes",
]

_PER_VOLUME = (
    "DecayCorrectionFactor",
    "FlipAngle",
    "FrameDuration",
    "FrameTimesStart",
    "LabelingDuration",
    "PostLabelingDelay",
    "PromptRate",
    "RandomRate",
    "RepetitionTimePreparation",
    "ScatterFraction",
    "SinglesRate",
    "VolumeTiming",
)
"""Fields that may have an entry for each volume (BIDS 1.10, PET and ASL)."""

_AXES = "ijk"
_DIRECTIONS = {axis + sign for axis in _AXES for sign in ("", "-")}


def frame_times(bids: Mapping[str, Any], *, n: int, start: float) -> NDArray[np.float64] | None:
    """Return when each volume began, s: VolumeTiming, else FrameTimesStart, else multiples of TR.

    Parameters
    ----------
    bids
        The JSON object.
    n
        Volumes of the image.
    start
        Time of the first volume where only RepetitionTime is known, s.

    Returns
    -------
    array of float64 or None
        Shape (n,); None where nothing is said.

    Raises
    ------
    ConversionError
        When there is another count of numbers, or one occurs twice.

    Examples
    --------
    >>> frame_times({"RepetitionTime": 0.5}, n=3, start=0)
    array([0. , 0.5, 1. ])
    """
    for field in ("VolumeTiming", "FrameTimesStart"):
        if field in bids:
            times = _numbers(bids, field, n, "volume")
            if len(np.unique(times)) < n:
                raise ConversionError(f"{field} has one time twice. To fix: correct it")
            return times
    if "RepetitionTime" not in bids:
        return None
    repetition = bids["RepetitionTime"]
    if not _is_number(repetition) or repetition <= 0:
        raise ConversionError(
            f"RepetitionTime is {str(repetition)[:32]!r} where a positive number is needed. To "
            "fix: correct it"
        )
    with np.errstate(over="ignore"):
        times = start + float(repetition) * np.arange(n, dtype=np.float64)
    if not np.isfinite(times).all() or len(np.unique(times)) < n:
        raise ConversionError(
            f"RepetitionTime {repetition!r} gives times that float64 does not tell apart. To fix: "
            "correct it"
        )
    return times


def frame_durations(bids: Mapping[str, Any], *, n: int) -> NDArray[np.float64] | None:
    """Return how long each volume took, s, as FrameDuration says; None where it does not.

    Raises
    ------
    ConversionError
        When there is another count of numbers.
    """
    return _numbers(bids, "FrameDuration", n, "volume") if "FrameDuration" in bids else None


def slice_axis(bids: Mapping[str, Any], *, default: int) -> tuple[int, bool]:
    """Return the axis of the slices, and whether the times are those of the last slice first.

    Raises
    ------
    ConversionError
        When SliceEncodingDirection is none of i, j, k, i-, j- and k-.

    Examples
    --------
    >>> slice_axis({"SliceEncodingDirection": "j-"}, default=2)
    (1, True)
    """
    direction = bids.get("SliceEncodingDirection", _AXES[default])
    if type(direction) is not str or direction not in _DIRECTIONS:
        raise ConversionError(
            f"SliceEncodingDirection is {str(direction)[:32]!r} and not one of "
            f"{', '.join(sorted(_DIRECTIONS))}. To fix: correct it"
        )
    return _AXES.index(direction[0]), direction.endswith("-")


def slice_times(
    bids: Mapping[str, Any], *, shape: Sequence[int], default: int = 2
) -> tuple[int, NDArray[np.float64]] | None:
    """Return the axis of the slices and when each was acquired, s, in the order of the array.

    Parameters
    ----------
    bids
        The JSON object.
    shape
        Of the image, three extents at least.
    default
        The axis where SliceEncodingDirection is missing.

    Raises
    ------
    ConversionError
        When there is another count of numbers than of slices.

    Examples
    --------
    >>> slice_times({"SliceTiming": [0, 0.5], "SliceEncodingDirection": "k-"}, shape=(4, 4, 2))
    (2, array([0.5, 0. ]))
    """
    if "SliceTiming" not in bids:
        return None
    axis, is_reversed = slice_axis(bids, default=default)
    times = _numbers(bids, "SliceTiming", shape[axis], f"slice along {_AXES[axis]}")
    return axis, times[::-1] if is_reversed else times


def with_volumes(
    bids: Mapping[str, Any], *, volumes: Sequence[int] | None, n_original: int
) -> dict[str, Any]:
    """Return the object for a selection of volumes: lists with an entry for each follow.

    Parameters
    ----------
    bids
        The JSON object of the original series.
    volumes
        Numbers of the original volumes; None drops the lists.
    n_original
        Volumes of the original series.

    Examples
    --------
    >>> with_volumes({"FrameDuration": [5, 10, 20]}, volumes=[2, 0], n_original=3)
    {'FrameDuration': [20, 5]}
    """
    kept = dict(bids)
    for field in _PER_VOLUME:
        found = bids.get(field)
        if type(found) is not list or len(found) != n_original:
            continue
        if volumes is None or any(not 0 <= number < n_original for number in volumes):
            del kept[field]
        else:
            kept[field] = [found[number] for number in volumes]
    return kept


def with_times(
    bids: Mapping[str, Any],
    *,
    times: NDArray[np.float64],
    durations: NDArray[np.float64] | None,
    start: float,
) -> dict[str, Any]:
    """Return the object with these times, s, where it says others.

    Times that are no multiples of RepetitionTime become VolumeTiming in its place: BIDS allows
    one of the two. An object that says nothing of times is left as it is.

    Parameters
    ----------
    bids
        The JSON object.
    times, durations
        When each volume began, and how long it took; None is not known.
    start
        As in `frame_times`.

    Examples
    --------
    >>> with_times({"RepetitionTime": 2.0}, times=np.array([0.0, 6.0]), durations=None, start=0)
    {'VolumeTiming': [0.0, 6.0]}
    """
    kept = dict(bids)
    if durations is not None and "FrameDuration" in bids:
        found = bids["FrameDuration"]
        kept["FrameDuration"] = found if _is_equal(found, durations) else durations.tolist()
    if "FrameTimesStart" in bids and "VolumeTiming" not in bids:
        found = bids["FrameTimesStart"]
        kept["FrameTimesStart"] = found if _is_equal(found, times) else times.tolist()
        return kept
    if not {"VolumeTiming", "RepetitionTime"} & bids.keys():
        return kept
    try:
        found = frame_times(bids, n=times.size, start=start)
    except ConversionError:
        found = None
    if found is None or not np.array_equal(found, times):
        kept.pop("RepetitionTime", None)
        kept["VolumeTiming"] = times.tolist()
    return kept


def with_slice_times(
    bids: Mapping[str, Any], *, axis: int | None, times: NDArray[np.float64], default: int
) -> dict[str, Any]:
    """Return the object with the times of the slices along an axis; without them when it is None.

    Parameters
    ----------
    bids
        The JSON object.
    axis
        Of the image, 0 to 2; None where it has no slices any more.
    times
        One for each slice, s, in the order of the array.
    default
        The axis that is meant where SliceEncodingDirection is missing.

    Examples
    --------
    >>> with_slice_times({"SliceTiming": [0, 1]}, axis=1, times=np.array([1.0]), default=2)
    {'SliceTiming': [1.0], 'SliceEncodingDirection': 'j'}
    """
    kept = dict(bids)
    if axis is None:
        kept.pop("SliceTiming", None)
        kept.pop("SliceEncodingDirection", None)
        return kept
    try:
        is_reversed = slice_axis(bids, default=default)[1]
    except ConversionError:
        is_reversed = False
    ordered = times[::-1] if is_reversed else times
    if not _is_equal(bids.get("SliceTiming"), ordered):
        kept["SliceTiming"] = ordered.tolist()
    if axis != default or "SliceEncodingDirection" in bids:
        kept["SliceEncodingDirection"] = _AXES[axis] + "-" * is_reversed
    return kept


def with_directions(bids: Mapping[str, Any], turn: NDArray[np.float64] | None) -> dict[str, Any]:
    """Return the object for an image whose axes were permuted or flipped.

    Parameters
    ----------
    bids
        The JSON object.
    turn
        As `axis_turn` returns it: None drops PhaseEncodingDirection.

    Examples
    --------
    >>> flipped = np.diag([1.0, -1, 1])
    >>> with_directions({"PhaseEncodingDirection": "j-"}, flipped)
    {'PhaseEncodingDirection': 'j'}
    """
    kept = dict(bids)
    direction = bids.get("PhaseEncodingDirection")
    if type(direction) is not str or direction not in _DIRECTIONS:
        return kept
    if turn is None:
        del kept["PhaseEncodingDirection"]
        return kept
    column = turn[:, _AXES.index(direction[0])]
    axis = int(np.abs(column).argmax())
    is_reversed = (column[axis] < 0) != direction.endswith("-")
    kept["PhaseEncodingDirection"] = _AXES[axis] + "-" * bool(is_reversed)
    return kept


def _numbers(bids: Mapping[str, Any], field: str, n: int, what: str) -> NDArray[np.float64]:
    """Return a list of n finite numbers."""
    found = bids[field]
    if type(found) is not list or len(found) != n or not all(map(_is_number, found)):
        shown = f"{len(found)} entries" if type(found) is list else type(found).__name__
        raise ConversionError(
            f"{field} needs {n} finite numbers, one for each {what} of the image, and has {shown}. "
            "To fix: (1) correct the JSON file; (2) rename it, and it is not read"
        )
    return np.asarray(found, np.float64)


def _is_equal(found: object, values: NDArray[np.float64]) -> bool:
    """Tell whether a list has these very numbers."""
    if type(found) is not list or not all(map(_is_number, found)):
        return False
    return np.array_equal(np.asarray(found, np.float64), values)


def _is_number(value: Any) -> bool:
    """Tell finite numbers; booleans are none, and neither are integers beyond float64."""
    if type(value) is int:
        return abs(value) < 2**1023
    return type(value) is float and math.isfinite(value)
