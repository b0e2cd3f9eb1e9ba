"""The text files beside an exported NIfTI image: gradients and BIDS, true for what is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.bids_sidecar import json_text
from mlarray_xr.foreign.bids_timing import (
    with_directions,
    with_slice_times,
    with_times,
    with_volumes,
)
from mlarray_xr.foreign.gradient_files import axis_turn, gradient_text, turned_bvecs
from mlarray_xr.foreign.nifti_header import NiftiHeader
from mlarray_xr.foreign.nifti_series import BVECS, bids_of, first_time
from mlarray_xr.record import Record, stored_axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.array import MlaArray
    from mlarray_xr.format.metadata import Metadata

__all__ = ["sidecar_texts"]

_SPATIAL_AXES = 3
"""Of a NIfTI image; the next one counts the volumes."""


def sidecar_texts(array: MlaArray, header: NiftiHeader, order: Sequence[int]) -> dict[str, str]:
    """Return the text files that belong beside an exported image, by suffix; empty without any.

    They say of the array what the coordinates say that it has now: after a selection of volumes
    those volumes, after a flip or a transpose the b-vectors along the new axes. Numbers read back
    to the same bits.

    Parameters
    ----------
    array
        What is exported.
    header
        The header that is written.
    order
        The axes of the array in the order of the image: spatial ones first.

    Raises
    ------
    ConversionError
        When the array lies in other than whole turns to the image that the b-vectors belong to.
    """
    metadata = array.metadata
    export = _Export(
        record=Record.of(metadata, shape=array.shape),
        dims=_dims(array, order),
        header=header,
        original=NiftiHeader.from_json(metadata.extra.get("nifti")),
        affine=_original_affine(metadata),
    )
    texts = export.gradients()
    bids = bids_of(metadata)
    if bids is not None:
        texts[".json"] = json_text(export.updated(bids))
    return texts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Export:
    """An array on its way to NIfTI, as far as sidecars need to know it."""

    record: Record
    """What the array says of itself."""
    dims: tuple[str | None, ...]
    """Names of the axes of the image; None where the array has no such axis."""
    header: NiftiHeader
    """What is written."""
    original: NiftiHeader | None
    """The header of the file that the array came from."""
    affine: NDArray[np.float64] | None
    """The affine that directions refer to; None is the one that is written."""

    def gradients(self) -> dict[str, str]:
        """Return the texts of the gradient table, as far as there is one."""
        texts = {}
        bval = self._along("bval", 3)
        if bval is not None:
            texts[".bval"] = gradient_text([bval])
        bvec = [self._along(name, 3) for name in BVECS]
        rows = [row for row in bvec if row is not None]
        if len(rows) == len(BVECS):
            texts[".bvec"] = gradient_text(self._turned(np.stack(rows)))
        return texts

    def updated(self, bids: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object, true for the array."""
        shape, turn = self.header.shape, self._turn()
        before = shape if self.original is None else self.original.shape
        bids = self._with_frames(bids, before)
        bids = with_directions(bids, turn)
        if "SliceTiming" not in bids:
            return bids
        slices = next(
            ((a, v) for a in range(3) if (v := self._along("slice_time", a)) is not None), None
        )
        default = self.header.slice_axis
        if slices is not None:
            return with_slice_times(bids, axis=slices[0], times=slices[1], default=default)
        is_same = turn is not None and np.array_equal(turn, np.eye(3)) and before[:3] == shape[:3]
        if is_same and "slice_time" not in self.record.coords:
            return bids
        return with_slice_times(bids, axis=None, times=np.zeros(0), default=default)

    def _with_frames(self, bids: Mapping[str, Any], before: Sequence[int]) -> dict[str, Any]:
        """Return the JSON object, true for the volumes that are left of an image of that shape."""
        n_original = before[3] if len(before) > _SPATIAL_AXES else 1
        n = self.header.shape[3] if len(self.header.shape) > _SPATIAL_AXES else 1
        volumes = self._frame("orig_volume")
        numbers = None
        if volumes is not None and np.isfinite(volumes).all():
            numbers = volumes.astype(np.int64).tolist()
        kept = dict(bids)
        if volumes is not None or n != n_original:
            kept = with_volumes(bids, volumes=numbers, n_original=n_original)
        times, durations = self._frame("time"), self._frame("frame_duration")
        if times is None or not self._is_in_seconds("time"):
            return kept
        # Which volumes they were may be forgotten while their times are known.
        begin = "VolumeTiming" if "VolumeTiming" in bids else "FrameTimesStart"
        for field, values in ((begin, times), ("FrameDuration", durations)):
            if field in bids and values is not None:
                kept.setdefault(field, values.tolist())
        return with_times(kept, times=times, durations=durations, start=first_time(self.header))

    def _along(self, name: str, axis: int) -> NDArray[np.float64] | None:
        """Return a coordinate of numbers along an axis of the image."""
        found = self.record.coords.get(name)
        dim = self.dims[axis]
        if (
            found is None
            or dim is None
            or found.dims != (dim,)
            or found.values.dtype.kind not in "iuf"
        ):
            return None
        return found.values.astype(np.float64)

    def _frame(self, name: str) -> NDArray[np.float64] | None:
        """Return a coordinate along the volumes, also of the only one that is left."""
        found = self.record.coords.get(name)
        if found is not None and not found.dims and found.values.dtype.kind in "iuf":
            return np.atleast_1d(found.values).astype(np.float64)
        return self._along(name, 3)

    def _is_in_seconds(self, name: str) -> bool:
        """Tell whether a coordinate has the unit of BIDS."""
        return self.record.coords[name].attrs.get("units") == "s"

    def _turn(self) -> NDArray[np.float64] | None:
        """Return how the axes were permuted and flipped since directions were stated."""
        after = self.header.affine
        return axis_turn(after if self.affine is None else self.affine, after)

    def _turned(self, bvec: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return b-vectors along the axes that are written."""
        turn, after = self._turn(), self.header.affine
        before = after if self.affine is None else self.affine
        if turn is None:
            raise ConversionError(
                "the b-vectors are along the axes of the original image, and those of this array "
                "are neither permuted nor flipped ones of it. To fix: write an array that knows "
                "nothing of that image, array.drop_attrs(), with its geometry as coordinates and "
                "b-vectors along its own axes, or none"
            )
        return turned_bvecs(bvec, turn, before=before, after=after)


def _dims(array: MlaArray, order: Sequence[int]) -> tuple[str | None, ...]:
    """Return the dimension along each of the first four axes of the image."""
    axes = stored_axes(array.metadata, array.ndim)
    written = [axes.dims[axis] for axis in order]
    n_spatial = sum(axis in axes.spatial for axis in order)
    missing = [None] * (_SPATIAL_AXES - n_spatial)
    dims = [*written[:n_spatial], *missing, *written[n_spatial:], None]
    return tuple(dims[: _SPATIAL_AXES + 1])


def _original_affine(metadata: Metadata) -> NDArray[np.float64] | None:
    """Return the affine of the file that directions refer to, index to RAS+; None where unknown."""
    header = NiftiHeader.from_json(metadata.extra.get("nifti"))
    if header is not None:
        try:
            return header.affine
        except ConversionError:
            return None
    source: Any = metadata.source.get("nifreeze")
    try:
        affine = np.asarray(source["affine"], np.float64)
    except (KeyError, OverflowError, TypeError, ValueError):
        return None
    return affine if affine.shape == (4, 4) else None
