"""The DICOM series in a folder or file: found, chosen, checked and put in order."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import ConversionError, SourceChanged
from mlarray_xr.foreign.dicom_geometry import Stack, plan_stack
from mlarray_xr.foreign.dicom_header import DicomFile, ObjectWithoutPixels, read_header
from mlarray_xr.foreign.raw import local_source
from mlarray_xr.foreign.reopened import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlarray_xr.foreign.dicom_frames import Frame
    from mlarray_xr.foreign.dicom_pixels import PixelData, PixelFormat
    from mlarray_xr.format.metadata import Json

__all__ = ["Series", "read_series", "read_series_again"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Series:
    """One series, ready to be read: plain values, no open file."""

    uid: str
    """Series Instance UID."""
    digest: str
    """Of the identities of its files, in order of their names."""
    format: PixelFormat
    """Size and type of every frame."""
    stack: Stack
    """Order and place of the frames."""
    frames: tuple[tuple[PixelData, Frame], ...]
    """All frames in the order of the stack, each with the file that it is in."""
    facts: dict[Any, Json]
    """What is kept of the headers, where all files say the same."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the array: volumes, slices, rows, columns, samples; absent ones left out."""
        n_leading = len(self.stack.dims) - 2
        leading = (self.stack.n_volumes, self.stack.n_slices)[2 - n_leading :]
        return (*leading, *self.format.frame_shape)


def read_series(path: str, dataset: str | None) -> Series:
    """Find the series at a path, and put the one that was asked for in order.

    Parameters
    ----------
    path
        A folder, of which files that are no DICOM images are passed over, or a file.
    dataset
        Series Instance UID or Series Number; None where there is one series only.

    Raises
    ------
    ConversionError
        When there is no such series, or its files do not make up one array.
    """
    files = _files(path)
    chosen = _choose(files, dataset, path=path)
    try:
        return _in_order(chosen)
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error


def read_series_again(path: str, uid: str, digest: str) -> Series:
    """Read a series in another process; its files must be the same.

    Raises
    ------
    SourceChanged
        When they are not.
    """
    series = read_series(path, uid)
    if series.digest != digest:
        raise SourceChanged(f"{path}: files of series {uid} changed since it was opened")
    return series


def _files(path: str) -> list[DicomFile]:
    """Read the headers of a file, or of all files in a folder in order of their names."""
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            paths = sorted(
                entry.path
                for entry in entries
                if entry.is_file() and not entry.name.startswith(".")
            )
    else:
        paths = [path]
    headers = [read_header(local_source(each)) for each in paths]
    found = [file for file in headers if isinstance(file, DicomFile)]
    others = [file for file in headers if isinstance(file, ObjectWithoutPixels)]
    n_ignored = len(headers) - len(found)
    if not found:
        raise ConversionError(
            f"{path}: no DICOM image is there; {n_ignored} files are no DICOM files or have no "
            "pixels. To fix: name the folder that holds the slices; folders in it are not searched"
        )
    uids = {file.series_uid for file in found}
    for other in others:
        if other.series_uid in uids:
            raise ConversionError(
                f"{other.path}: the file has no pixels, and others of its series have: it is "
                "truncated or damaged"
            )
    _logger.info("%s: %d DICOM images, %d other files passed over", path, len(found), n_ignored)
    return found


def _choose(files: Sequence[DicomFile], dataset: str | None, *, path: str) -> list[DicomFile]:
    """Return the files of the series that was asked for, or of the only one."""
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        series.setdefault(file.series_uid, []).append(file)
    numbered = [uid for uid, found in series.items() if found[0].series_number == dataset]
    if dataset is None and len(series) == 1:
        return list(files)
    if dataset in series:
        return series[dataset]
    if dataset and len(numbered) == 1:
        return series[numbered[0]]
    asked = "one must be chosen" if dataset is None else f"{dataset!r} is none of them, or several"
    raise ConversionError(
        f"{path}: {len(series)} series are there, and {asked}. To fix: pass one of"
        + "".join(f"\n  dataset={uid!r}: {_described(found)}" for uid, found in series.items())
    )


def _described(files: Sequence[DicomFile]) -> str:
    """Describe a series to choose from, without words on the patient."""
    first = files[0]
    n_frames = sum(file.pixels.n_frames for file in files)
    rows, columns = first.pixels.format.rows, first.pixels.format.columns
    number = f"series {first.series_number}, " if first.series_number else ""
    return (
        f"{number}{first.facts.get('Modality', 'no modality')}, {n_frames} images of "
        f"{rows} x {columns}, {first.description!r}"
    )


def _in_order(files: Sequence[DicomFile]) -> Series:
    """Check that the files of a series belong together, and put their frames in order."""
    _check_alike(files)
    _check_once(files)
    frames = [(file.pixels, frame) for file in files for frame in file.frames]
    stack = plan_stack([frame for _, frame in frames])
    return Series(
        uid=files[0].series_uid,
        digest=digest_of(file.pixels.source for file in files),
        format=files[0].pixels.format,
        stack=stack,
        frames=tuple(frames[number] for number in stack.order),
        facts=_common([file.facts for file in files]),
    )


def _check_alike(files: Sequence[DicomFile]) -> None:
    """Refuse series whose files differ in size or type."""
    formats = Counter(file.pixels.format for file in files)
    if len(formats) == 1:
        return
    usual = formats.most_common(1)[0][0]
    odd = [file for file in files if file.pixels.format != usual]
    raise ConversionError(
        f"{len(odd)} of {len(files)} files differ from the others: "
        f"{os.path.basename(odd[0].pixels.source.path)} has {odd[0].pixels.format}, and others "
        f"have {usual}"
    )


def _check_once(files: Sequence[DicomFile]) -> None:
    """Refuse series with copies of a file."""
    names: dict[str, str] = {}
    for file in files:
        name = os.path.basename(file.pixels.source.path)
        if file.instance_uid and file.instance_uid in names:
            raise ConversionError(
                f"{names[file.instance_uid]} and {name} are the same image. To fix: remove one"
            )
        names[file.instance_uid] = name


def _common(facts: Sequence[Mapping[Any, Json]]) -> dict[Any, Json]:
    """Return what all files say alike."""
    first, *others = facts
    return {
        key: value
        for key, value in first.items()
        if all(other.get(key) == value for other in others)
    }
