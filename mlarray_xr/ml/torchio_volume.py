"""ImageVolume: one file as TorchIO has images, (channels, i, j, k) and an affine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.scaling import Scaling
from mlarray_xr.ml.subject_record import absolute_address
from mlarray_xr.ml.volume import Volume
from mlarray_xr.planning.padding import Padding
from mlarray_xr.planning.patch_place import PatchPlace

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.grid import Box

__all__ = ["ImageVolume", "Values"]

Values: TypeAlias = Literal["stored", "scaled"]
"""Numbers as the file stores them, or what slope and intercept make of them."""

_SPATIAL_AXES = 3

_TAKEN_AS = {"bool": "uint8", "uint16": "int32", "uint32": "int64"}
"""What TorchIO makes of types that torch computes little with; see `check_uint_to_int` there."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageVolume:
    """The address of one file with four axes: channels, and three in the order of its array.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="uint16").reshape(2, 3, 4), "image.mla")
    >>> volume = ImageVolume.open("image.mla")
    >>> volume.shape, volume.dtype
    ((1, 2, 3, 4), dtype('int32'))
    >>> volume.read(((0, 1), (1, 2), (0, 2), (2, 4))).tolist()
    [[[[14, 15], [18, 19]]]]
    """

    volume: Volume
    """The file."""
    shape: tuple[int, int, int, int]
    """Channels, and the extents of three axes; those that the file lacks are 1."""
    dtype: np.dtype[Any]
    """Type of what is read, in the byte order of this machine."""
    affine: NDArray[np.float64]
    """4 x 4: index to world, in RAS where the file says RAS or LPS."""
    scaling: Scaling
    """What the stored numbers mean."""

    @property
    def is_segmentation(self) -> bool:
        """Whether the file says that it holds labels."""
        return self.volume.array.metadata.is_seg is True

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        channel: Channel = "auto",
        values: Values = "stored",
        threads: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ImageVolume:
        """Open a file; header and metadata are read, no voxel.

        Parameters
        ----------
        path
            A path or URL.
        channel
            The axis of the channels, by name or number; None when there is none. ``"auto"`` takes
            the one named ``channel`` or ``component``, else the only one that is not spatial.
        values
            ``"scaled"`` applies slope and intercept of NIfTI and DICOM, as TorchIO does.
        threads, storage_options
            See `mlarray_xr.MlaArray`.

        Raises
        ------
        FileNotFoundError, FormatError, SourceError
            As `mlarray_xr.MlaArray`.
        ConversionError
            When the array has more axes than TorchIO, or elements that torch does not know.
        GeometryError
            When the stored geometry does not fit the axes.
        """
        if values not in get_args(Values):
            raise ValueError(f"values={values!r}: choose one of {get_args(Values)}")
        volume = Volume(
            absolute_address(path),
            channel=channel,
            threads=threads,
            storage_options=storage_options,
        )
        found = _time_as_channel(volume) if channel == "auto" else None
        if found is not None:
            volume = Volume(
                volume.address, channel=found, threads=threads, storage_options=storage_options
            )
        _check_axes(volume)
        scaling = Scaling.of(volume) if values == "scaled" else Scaling()
        i, j, k = (*volume.space.extents, 1, 1)[:_SPATIAL_AXES]
        return cls(
            volume=volume,
            shape=(volume.n_channels, i, j, k),
            dtype=_type_read(volume, scaling),
            affine=_affine(volume),
            scaling=scaling,
        )

    def read(self, box: Box) -> NDArray[Any]:
        """Read a box of all four axes that lies inside and is not empty, into new memory."""
        channels, *spatial = box
        extents = self.volume.space.extents
        along = spatial[: len(extents)]
        place = PatchPlace(
            start=tuple(start for start, _ in along),
            shape=tuple(stop - start for start, stop in along),
            extents=extents,
        )
        is_scaled = bool(self.scaling.steps)
        dtype = self.volume.dtype if is_scaled else self.dtype
        values = np.empty((self.shape[0], *place.shape), dtype)
        self.volume.read(place, values, padding=Padding(), value=0)
        if is_scaled:
            values = self.scaling.applied(values, box=((0, self.shape[0]), *along))
        missing = _SPATIAL_AXES - len(extents)
        return values.reshape(values.shape + (1,) * missing)[slice(*channels)]


def _time_as_channel(volume: Volume) -> str | None:
    """Return the only axis that is neither spatial nor the channel's, which may be that."""
    if volume.channel_axis is not None:
        return None
    others = [dim for i, dim in enumerate(volume.space.dims) if i not in volume.space.spatial]
    return others[0] if len(others) == 1 else None


def _check_axes(volume: Volume) -> None:
    """Make sure that there are at most three axes beside the channels, all of them spatial."""
    space = volume.space
    if len(space.spatial) == len(space.dims) <= _SPATIAL_AXES:
        return
    spatial = tuple(space.dims[axis] for axis in space.spatial)
    raise ConversionError(
        f"{volume.address}: beside the channels there are the axes {space.dims} of extents "
        f"{space.extents}, of which {spatial} are spatial; TorchIO has three spatial axes and no "
        "others. To fix: (1) channel= names the axis that becomes the channels; (2) write the "
        "other axes to files of their own: mlarray_xr.open_mla(path).isel(...)"
    )


def _type_read(volume: Volume, scaling: Scaling) -> np.dtype[Any]:
    """Return the type that TorchIO gets."""
    stored = volume.dtype
    if stored.kind not in "biufc" or stored.itemsize > np.dtype("c16").itemsize:
        raise ConversionError(f"{volume.address}: torch has no elements of type {stored}")
    if scaling.steps:
        empty = np.empty((0,) * (1 + len(volume.space.dims)), stored)
        return scaling.applied(empty, box=((0, 0),) * empty.ndim).dtype
    return np.dtype(_TAKEN_AS.get(stored.name, stored))


def _affine(volume: Volume) -> NDArray[np.float64]:
    """Return the geometry with three columns, in the order of the array's axes.

    A plane of a volume has that of the volume. Others of fewer axes lie in the first world axes.
    """
    geometry = volume.geometry
    size = len(geometry.dims)
    if size > _SPATIAL_AXES:
        raise ConversionError(
            f"{volume.address}: the geometry has the axes {geometry.dims}; TorchIO has three"
        )
    stored = np.array(geometry.affine)
    affine = np.eye(_SPATIAL_AXES + 1)
    affine[:size, :size] = stored[:size, :size]
    affine[:size, -1] = stored[:size, -1]
    return affine
