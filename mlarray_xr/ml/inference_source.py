"""InferenceSource: the files of one subject as a model is shown them, patch by patch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import LayoutError
from mlarray_xr.ml.subject_record import SubjectRecord
from mlarray_xr.ml.subject_volumes import SubjectVolumes
from mlarray_xr.ml.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.padding import Padding
    from mlarray_xr.planning.patch_place import PatchPlace

__all__ = ["InferenceSource", "inference_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceSource:
    """Volumes on one grid, whose channels, one after another, are the input."""

    volumes: SubjectVolumes
    """The files."""
    names: tuple[str, ...]
    """Modalities whose channels, one after another, are the input."""
    padding: Padding
    """What surrounds them."""

    @property
    def n_channels(self) -> int:
        """Channels of the input."""
        return self.volumes.n_channels(self.names)

    @property
    def first(self) -> Volume:
        """The volume whose metadata the prediction gets."""
        return self.volumes[self.names[0]]

    def read(self, places: Sequence[PatchPlace], out: NDArray[Any]) -> None:
        """Read patches, one after another.

        Parameters
        ----------
        places
            Where they lie.
        out
            (n, n_channels, *patch), of a type that those of the files can be cast to without
            changing their kind.

        Raises
        ------
        MlaError
            When one cannot be read; the message names subject, file and box.
        """
        for place, patch in zip(places, out, strict=True):
            self.volumes.read(
                place, patch, names=self.names, padding=self.padding, value=self.padding.value
            )


def inference_source(
    volume: str | os.PathLike[str] | Volume | SubjectRecord,
    *,
    image: str | Sequence[str] | None,
    channel: Channel,
    padding: Padding,
    storage_options: Mapping[str, Any] | None,
) -> InferenceSource:
    """Return what is meant by an address, a volume, or modalities of a subject.

    Parameters
    ----------
    volume
        One of these.
    image
        Modalities of a subject; the only one unless given.
    channel, storage_options
        As of `Volume`; of a `Volume` its own.
    padding
        What surrounds it.

    Raises
    ------
    LayoutError
        When a subject has several modalities to choose from, or axes differ that are not spatial.
    GeometryError
        When they do not lie on one grid.
    ConversionError
        When the subject lacks one.
    """
    if isinstance(volume, SubjectRecord):
        names = _modalities(volume, image)
        volumes = {
            name: Volume(volume.file(name), channel=channel, storage_options=storage_options)
            for name in names
        }
        return InferenceSource(
            volumes=SubjectVolumes(volume.subject, volumes), names=names, padding=padding
        )
    if not isinstance(volume, Volume):
        volume = Volume(os.fspath(volume), channel=channel, storage_options=storage_options)
    volumes = {"image": volume}
    return InferenceSource(
        volumes=SubjectVolumes(volume.address, volumes), names=tuple(volumes), padding=padding
    )


def _modalities(record: SubjectRecord, image: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the modalities of a subject that are the input."""
    if isinstance(image, str):
        return (image,)
    names = tuple(record.files if image is None else image)
    if len(names) != 1 and image is None:
        msg = f"subject {record.subject!r} has {names}. To fix: image= says which are the input"
        raise LayoutError(msg)
    return names
