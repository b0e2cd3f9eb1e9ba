"""SubjectVolumes: files of one subject that lie on one grid, as patches are read from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.ml.alignment import check_aligned
from mlarray_xr.ml.subject_record import named_errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.ml.volume import Volume
    from mlarray_xr.planning.padding import Padding
    from mlarray_xr.planning.patch_place import PatchPlace
    from mlarray_xr.planning.sample_space import SampleSpace

__all__ = ["SubjectVolumes"]


class SubjectVolumes:
    """Volumes by modality, opened and compared with each other.

    Parameters
    ----------
    subject
        What to call it in errors.
    volumes
        By modality; at least one.

    Raises
    ------
    GeometryError
        When they do not lie on one grid.
    LayoutError
        When axes differ that are not spatial.
    MlaError, OSError
        When one cannot be opened.
    """

    def __init__(self, subject: str, volumes: Mapping[str, Volume]) -> None:
        check_aligned(subject, volumes)
        sizes = {
            name: dict(zip(volume.space.dims, volume.space.extents, strict=True))
            for name, volume in volumes.items()
        }
        (first, wanted), *others = sizes.items()
        for name, found in others:
            if list(found.items()) != list(wanted.items()):
                msg = (
                    f"subject {subject!r}: {name!r} has {found}, {first!r} has {wanted}. To fix: "
                    "volumes with the same axes besides channels"
                )
                raise LayoutError(msg)
        self.subject, self._volumes = subject, volumes

    def __getitem__(self, name: str) -> Volume:
        """Return the volume of a modality."""
        return self._volumes[name]

    @property
    def space(self) -> SampleSpace:
        """The axes that patches are cut from: those of the first volume, and of all."""
        return next(iter(self._volumes.values())).space

    def n_channels(self, names: Sequence[str]) -> int:
        """Return the number of channels of some modalities together."""
        return sum(self[name].n_channels for name in names)

    def dtype(self, names: Sequence[str]) -> np.dtype[Any]:
        """Return the type that holds the elements of some modalities, in native byte order."""
        return np.result_type(*(self[name].dtype for name in names))

    def read(
        self,
        place: PatchPlace,
        out: NDArray[Any],
        *,
        names: Sequence[str],
        padding: Padding,
        value: float,
    ) -> None:
        """Read the channels of some modalities, one after another.

        Parameters
        ----------
        place
            Where the patch lies.
        out
            (channels, *place.shape), of a type that those of the files can be cast to without
            changing their kind.
        names
            The modalities.
        padding, value
            What surrounds volumes that are smaller.

        Raises
        ------
        MlaError, OSError
            When a file cannot be read; the message names subject, modality, file and box.
        """
        done = 0
        for name in names:
            volume = self[name]
            with named_errors(self.subject, name, volume.address, box=place.box):
                part = out[done : done + volume.n_channels]
                volume.read(place, part, padding=padding, value=value)
            done += volume.n_channels
