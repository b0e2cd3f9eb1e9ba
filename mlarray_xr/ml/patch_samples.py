"""PatchSamples: which patch of which subject a sample is, and how it gets into memory."""

from __future__ import annotations

import bisect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.subject_record import named_errors
from mlarray_xr.ml.subject_volumes import SubjectVolumes
from mlarray_xr.ml.volume import Volume
from mlarray_xr.planning.draw import Draw, check_seed
from mlarray_xr.planning.foreground_patches import ForegroundPatches
from mlarray_xr.planning.padding import Padding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from mlarray_xr.ml.subject_record import SubjectRecord
    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.patch_place import PatchPlace
    from mlarray_xr.planning.sample_space import SampleSpace
    from mlarray_xr.planning.sampling import Sampling

__all__ = ["PatchSamples", "PlannedSample"]

_OPENING_THREADS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSample:
    """A sample before it is read."""

    record: SubjectRecord
    """The subject."""
    volumes: SubjectVolumes
    """Its files."""
    place: PatchPlace
    """Where the patch lies."""
    draw: Draw
    """Which sample it is."""


class PatchSamples:
    """All samples of an epoch, as a function from their number to memory; without torch.

    Parameters
    ----------
    collection
        The subjects: a `Collection`, or what `Collection.from_files` takes.
    sampling
        Which patches are taken of a volume.
    image
        Modalities whose channels, one after another, are the image; the only one unless given.
    mask
        Modalities that are the mask.
    label
        Column of the collection's table.
    padding
        What surrounds volumes that are smaller than the patch.
    seed
        Of all chance.
    dtype
        Type of images; the stored one unless given.
    channel
        The axis of channels, see `mlarray_xr.ml.volume.Volume`.
    storage_options
        How to get at URLs.
    index_folder
        Where to keep what was found out about foreground, see `Volume`.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.planning.random_patches import RandomPatches
    >>> for name in ("a.mla", "b.mla"):
    ...     _ = mlarray_xr.to_mla(np.ones((9, 9, 9), "int16"), name)
    >>> samples = PatchSamples(["a.mla", "b.mla"], sampling=RandomPatches(4))
    >>> planned = samples.plan(1, epoch=0)
    >>> len(samples), planned.record.subject, planned.place.shape
    (2, 'b', (4, 4, 4))
    """

    def __init__(
        self,
        collection: Collection | Mapping[str, Any] | Sequence[str],
        *,
        sampling: Sampling,
        image: str | Sequence[str] | None = None,
        mask: str | Sequence[str] | None = None,
        label: str | None = None,
        padding: Padding | None = None,
        seed: int = 0,
        dtype: DTypeLike | None = None,
        channel: Channel = "auto",
        storage_options: Mapping[str, Any] | None = None,
        index_folder: str | None = None,
    ) -> None:
        if not isinstance(collection, Collection):
            collection = Collection.from_files(collection)
        self.records = collection.records
        self.sampling = sampling
        self.image = _modalities(collection, image, mask=mask)
        self.mask = () if mask is None else _modalities(collection, mask, mask=None)
        self.label = label
        if isinstance(sampling, ForegroundPatches) and len(self.mask) > 1:
            msg = (
                f"foreground in which of the masks {self.mask}? To fix: one mask, or one file "
                "with a channel for each"
            )
            raise LayoutError(msg)
        self.padding = Padding() if padding is None else padding
        self.seed = check_seed(seed)
        self.dtype = None if dtype is None else np.dtype(dtype)
        self._volume = partial(
            Volume,
            channel=channel,
            threads=1,
            storage_options=storage_options,
            index_folder=index_folder,
        )
        self._ends: list[int] | None = None
        self._opened: dict[int, SubjectVolumes] = {}
        self._check_labels()

    def __getstate__(self) -> dict[str, Any]:
        """Return everything but what was opened."""
        return {**vars(self), "_opened": {}}

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        if self.sampling.n_per_volume is not None:
            return len(self.records) * self.sampling.n_per_volume
        ends = self._sample_ends()
        return ends[-1] if ends else 0

    def volumes(self, number: int) -> SubjectVolumes:
        """Return the files of the subject of a number, opened and compared with each other.

        Raises
        ------
        MlaError, OSError
            When one cannot be opened, or they do not lie on the same grid.
        """
        opened = self._opened.get(number)
        if opened is None:
            record = self.records[number]
            opened = SubjectVolumes(
                record.subject,
                {name: self._volume(record.file(name)) for name in (*self.image, *self.mask)},
            )
            self._opened[number] = opened
        return opened

    def plan(self, index: int, *, epoch: int) -> PlannedSample:
        """Decide where a patch lies; the same for equal numbers, whoever asks.

        Raises
        ------
        IndexError
            When there is no such sample.
        """
        if not 0 <= index < len(self):
            msg = f"sample {index} was asked for, an epoch has {len(self)}"
            raise IndexError(msg)
        number, within = self._locate(index)
        record, volumes = self.records[number], self.volumes(number)
        name = (*self.mask, *self.image)[0]
        draw = Draw(seed=self.seed, epoch=epoch, index=index)
        with named_errors(record.subject, name, volumes[name].address):
            place = self.sampling.place(
                volumes.space, number=within, draw=draw, find=volumes[name].find
            )
        return PlannedSample(record=record, volumes=volumes, place=place, draw=draw)

    def chunk_of(self, index: int, *, epoch: int) -> tuple[str, tuple[int, ...]]:
        """Return file and grid position of the chunk that the middle of a patch lies in."""
        planned = self.plan(index, epoch=epoch)
        volume = planned.volumes[self.image[0]]
        chunks = list(volume.array.chunks)
        if volume.channel_axis is not None:
            del chunks[volume.channel_axis]
        middles = ((start + stop) // 2 for start, stop in planned.place.inside)
        return volume.address, tuple(m // c for m, c in zip(middles, chunks, strict=True))

    def buffer(self, planned: PlannedSample, *, kind: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and type of the memory for ``"image"`` or ``"mask"`` of a sample."""
        names, volumes = self._named(kind), planned.volumes
        dtype = self.dtype if kind == "image" and self.dtype is not None else volumes.dtype(names)
        return (volumes.n_channels(names), *planned.place.shape), dtype

    def read(self, planned: PlannedSample, out: NDArray[Any], *, kind: str) -> None:
        """Read the image or the mask of a sample into memory of the shape that `buffer` says.

        Raises
        ------
        MlaError, OSError
            When a file cannot be read; the message names subject, file and box.
        """
        planned.volumes.read(
            planned.place,
            out,
            names=self._named(kind),
            padding=self.padding,
            value=self.padding.value if kind == "image" else self.padding.mask_value,
        )

    def facts(self, planned: PlannedSample) -> dict[str, Any]:
        """Return what a sample says besides voxels: where it lies, whose it is, and its label."""
        place, record, first = planned.place, planned.record, planned.volumes[self.image[0]]
        found = {
            "affine": first.affine_at(place),
            "coord_system": first.coord_system,
            "axes": np.array(_affine_columns(first.space, place), np.int64),
            "box": np.array(place.box, np.int64),
            "valid": np.array(place.valid, np.int64),
            "subject": record.subject,
            "index": planned.draw.index,
        }
        return found if self.label is None else {**found, "label": record.labels[self.label]}

    def _named(self, kind: str) -> tuple[str, ...]:
        """Return the modalities of the image or the mask."""
        return self.image if kind == "image" else self.mask

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the number of the subject of a sample, and which of its patches it is."""
        n = self.sampling.n_per_volume
        if n is not None:
            return divmod(index, n)
        ends = self._sample_ends()
        number = bisect.bisect_right(ends, index)
        return number, index - (ends[number - 1] if number else 0)

    def _sample_ends(self) -> list[int]:
        """Return the number of samples up to each subject; opens every file once."""
        if self._ends is None:
            with ThreadPoolExecutor(_OPENING_THREADS) as pool:
                counts = pool.map(self._count, range(len(self.records)))
                self._ends = list(accumulate(counts))
        return self._ends

    def _count(self, number: int) -> int:
        """Return the number of samples of a subject."""
        return self.sampling.count(self.volumes(number).space)

    def _check_labels(self) -> None:
        """Refuse subjects without the label, before one of them meets others in a batch."""
        if self.label is None:
            return
        missing = [r.subject for r in self.records if r.labels.get(self.label) is None]
        if missing:
            msg = (
                f"label {self.label!r} is missing of {len(missing)} of {len(self.records)} "
                f"subjects: {', '.join(missing[:10])}. To fix: Collection.join(..., "
                "missing='fill', fill_value=...) or missing='drop'"
            )
            raise ConversionError(msg)


def _affine_columns(space: SampleSpace, place: PatchPlace) -> list[int]:
    """Return for each axis of a sample which column of its affine it is; -1 of none."""
    columns = {axis: column for column, axis in enumerate(space.spatial)}
    return [columns.get(axis, -1) for axis in range(space.ndim) if axis not in place.dropped]


def _modalities(
    collection: Collection, wanted: str | Sequence[str] | None, *, mask: object
) -> tuple[str, ...]:
    """Return the modalities that were asked for, or the only one there is."""
    known = collection.modalities
    if wanted is None:
        taken = (mask,) if isinstance(mask, str) else tuple(mask or ())  # type: ignore[arg-type]
        left = [name for name in known if name not in taken]
        if len(left) != 1:
            msg = f"image= is needed: which of the modalities {tuple(left)} are the image?"
            raise LayoutError(msg)
        return (left[0],)
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        msg = f"modalities {unknown or names} were asked for; the collection has {known}"
        raise LayoutError(msg)
    return names
