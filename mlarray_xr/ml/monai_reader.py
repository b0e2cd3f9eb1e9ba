"""MlaReader: how MONAI's `LoadImage` reads `.mla` files, whole or a region of interest."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from monai.data.image_reader import ImageReader
from monai.utils.enums import MetaKeys, PatchKeys, SpaceKeys
from monai.utils.misc import ensure_tuple

from mlarray_xr.errors import GeometryError
from mlarray_xr.geometry import names_patient_axes
from mlarray_xr.ml.monai_region import plan_roi
from mlarray_xr.ml.scaling import Scaling
from mlarray_xr.ml.volume import Volume
from mlarray_xr.record import stored_axes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from monai.config.type_definitions import PathLike
    from numpy.typing import NDArray

    from mlarray_xr.geometry import Geometry
    from mlarray_xr.ml.monai_region import Roi
    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.grid import Box

__all__ = ["MlaReader"]

Space: TypeAlias = Literal["RAS", "LPS"]

_SUFFIXES = (".mla", ".mb2nd", ".b2nd")
_NO_CHANNEL = float("nan")
_UNKNOWN_SPACE = "unknown"
_SAME_GRID_MM = 1e-3


@dataclass(frozen=True, kw_only=True)
class MlaReader(ImageReader):
    """Reads `.mla` files for `monai.transforms.LoadImage` and `LoadImaged`.

    Voxels come in the order of the file's axes, as stored; nothing is transposed. The affine takes
    an index of what was read to a world position, in RAS where the file says RAS or LPS. Of a
    region of interest only the blocks that it touches are decoded, and affine and
    ``spatial_shape`` are those of the region. Several files become channels of one image.

    ``original_channel_dim`` is the axis named ``channel`` or ``component``, else the only one that
    is not spatial, such as time.

    Parameters
    ----------
    roi
        What to read: (start, stop) pairs or slices, by dimension or one per spatial axis, in array
        order; None is everything. `LoadMlad` takes one per sample.
    channel_dim
        The axis of the channels, by name or number, where it is not found as above;
        ``"no_channel"`` when there is none. nnU-Net's `.b2nd` files need ``channel_dim=0``.
    values : {"stored", "scaled"}
        ``"scaled"`` applies slope and intercept of NIfTI and DICOM, as MONAI's readers of these
        do; ``"stored"`` keeps numbers and type.
    assumed_space
        What the world axes are in files that do not say so. Without, such an affine is as stored
        and ``meta["space"]`` is what the file says, or ``"unknown"``; `Orientationd` then refuses.
    threads
        Threads of one read, see `mlarray_xr.MlaArray`; 1 suits loaders with workers.
    storage_options
        How to get at URLs, see `mlarray_xr.MlaArray`; `LoadImage` then needs ``expanduser=False``.

    Examples
    --------
    >>> import mlarray_xr, numpy as np
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(2, 3, 4), "image.mla")
    >>> reader = MlaReader(roi={"x": (1, 3)})
    >>> voxels, meta = reader.get_data(reader.read("image.mla"))
    >>> voxels.shape, voxels.dtype, meta["location"].tolist()
    ((2, 3, 2), dtype('int16'), [0, 0, 1])
    """

    roi: Roi | None = None
    channel_dim: str | int | None = None
    values: Literal["stored", "scaled"] = "stored"
    assumed_space: Space | None = None
    threads: int | None = None
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.values not in ("stored", "scaled"):
            raise ValueError(f"values={self.values!r}: choose 'stored' or 'scaled'")
        if self.assumed_space not in (None, "RAS", "LPS"):
            raise ValueError(f"assumed_space={self.assumed_space!r}: choose 'RAS' or 'LPS'")

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Tell whether all names end in ``.mla``, ``.mb2nd`` or ``.b2nd``."""
        names = [os.fspath(name).lower() for name in ensure_tuple(filename)]
        return all(name.endswith(_SUFFIXES) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Volume | list[Volume]:
        """Open one file or several; no voxel is read.

        Raises
        ------
        TypeError
            When options are given: the reader's own are those of its constructor.
        FileNotFoundError, FormatError, SourceError
            As `mlarray_xr.MlaArray`.
        """
        if kwargs:
            raise TypeError(f"MlaReader.read takes no {sorted(kwargs)}. To fix: MlaReader(roi=...)")
        volumes = [self._opened(name) for name in ensure_tuple(data)]
        return volumes if len(volumes) > 1 else volumes[0]

    def get_data(self, img: Volume | Sequence[Volume]) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read what `read` opened.

        Parameters
        ----------
        img
            One volume or several; several are stacked as a new first axis, or joined along their
            channel axis.

        Returns
        -------
        tuple
            The voxels, and what MONAI calls the meta: ``affine``, ``original_affine``,
            ``spatial_shape``, ``space``, ``original_channel_dim`` and ``location``:
            where the region starts in the file, spatial axes.

        Raises
        ------
        IndexError, ValueError
            When the region is not inside the file.
        GeometryError
            When several files do not lie on the same grid.
        """
        volumes = ensure_tuple(img)
        arrays, metas = zip(*map(self._loaded, volumes), strict=True)
        for volume, meta in zip(volumes, metas, strict=True):
            _check_same_grid(volumes[0], metas[0], volume, meta)
        meta = metas[0]
        if len(arrays) == 1:
            return arrays[0], meta
        channel = meta[MetaKeys.ORIGINAL_CHANNEL_DIM]
        if channel != channel:  # NaN: none
            return np.stack(arrays), {**meta, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
        return np.concatenate(arrays, axis=channel), meta

    def _opened(self, name: PathLike) -> Volume:
        """Open one file."""
        spelled: dict[Any, Channel] = {None: "auto", "no_channel": None}
        channel = spelled.get(self.channel_dim, self.channel_dim)
        volume = Volume(
            os.fspath(name),
            channel=channel,
            threads=self.threads,
            storage_options=self.storage_options,
        )
        _ = volume.space  # a file that is no array is refused here, where LoadImage expects it
        return volume

    def _loaded(self, volume: Volume) -> tuple[NDArray[Any], dict[str, Any]]:
        """Read one file."""
        array, axes = volume.array, stored_axes(volume.array.metadata, volume.array.ndim)
        spatial = tuple(axis for axis in axes.spatial if axis != volume.channel_axis)
        channel = self._channel(volume, spatial)
        box = plan_roi(
            self.roi, dims=axes.dims, shape=array.shape, spatial=spatial, channel=channel
        )
        geometry = self._geometry(volume)
        starts = [start for start, _ in box]
        affine = _affine_at(geometry, dict(zip(axes.dims, starts, strict=True)))
        values = array.read(box).astype(volume.dtype, copy=False)
        if self.values == "scaled":
            values = _scaled(values, volume, box)
        return values, {
            str(MetaKeys.AFFINE): affine,
            str(MetaKeys.ORIGINAL_AFFINE): affine.copy(),
            str(MetaKeys.SPATIAL_SHAPE): np.array([box[a][1] - box[a][0] for a in spatial]),
            str(MetaKeys.SPACE): _space(geometry),
            str(MetaKeys.ORIGINAL_CHANNEL_DIM): _NO_CHANNEL if channel is None else channel,
            str(PatchKeys.LOCATION): np.array([box[a][0] for a in spatial]),
        }

    def _channel(self, volume: Volume, spatial: tuple[int, ...]) -> int | None:
        """Return the axis that MONAI takes for the channels."""
        others = [axis for axis in range(volume.array.ndim) if axis not in spatial]
        if volume.channel_axis is None and self.channel_dim is None and len(others) == 1:
            return others[0]
        return volume.channel_axis

    def _geometry(self, volume: Volume) -> Geometry:
        """Return the geometry in RAS, if need be by what is assumed of the file."""
        geometry = volume.geometry
        if self.assumed_space is None or names_patient_axes(geometry.coord_system):
            return geometry
        stated = replace(geometry, coord_system=self.assumed_space)
        return stated.in_system("RAS") if len(stated.dims) == 3 else stated


def _space(geometry: Geometry) -> str:
    """Return what MONAI knows a system by, else what the file says."""
    if names_patient_axes(geometry.coord_system):
        return str(SpaceKeys((geometry.coord_system or "").rstrip("+")))
    return geometry.coord_system or _UNKNOWN_SPACE


def _affine_at(geometry: Geometry, starts: Mapping[str, int]) -> NDArray[np.float64]:
    """Return the affine of a region that starts there."""
    size = len(geometry.dims)
    moved = geometry.moved(
        start=[starts.get(dim, 0) for dim in geometry.dims], step=[1] * size, order=range(size)
    )
    return np.array(moved.affine, dtype=np.float64)


def _scaled(values: NDArray[Any], volume: Volume, box: Box) -> NDArray[Any]:
    """Apply slope and intercept where the file states them."""
    scaling, channel = Scaling.of(volume), volume.channel_axis
    if channel is None:
        alone: NDArray[Any] = scaling.applied(values[None], box=((0, 1), *box))[0]
        return alone
    first = (box[channel], *box[:channel], *box[channel + 1 :])
    return np.moveaxis(scaling.applied(np.moveaxis(values, channel, 0), box=first), 0, channel)


def _check_same_grid(
    first: Volume, wanted: Mapping[str, Any], volume: Volume, found: Mapping[str, Any]
) -> None:
    """Make sure that a file can be beside the first one, channel by channel."""
    keys = (MetaKeys.ORIGINAL_CHANNEL_DIM, MetaKeys.SPATIAL_SHAPE, MetaKeys.SPACE, MetaKeys.AFFINE)
    for key in keys:
        there, here = wanted[key], found[key]
        if not _agree(there, here):
            msg = (
                f"{volume.address} cannot be a channel beside {first.address}: {key} is "
                f"{_plain(here)} and there {_plain(there)}. To fix: resample one onto the other"
            )
            raise GeometryError(msg)


def _agree(one: Any, other: Any) -> bool:
    """Tell whether texts are equal, or numbers within a tolerance."""
    if isinstance(one, str) or np.shape(one) != np.shape(other):
        return bool(np.array_equal(one, other))
    return np.allclose(one, other, rtol=0, atol=_SAME_GRID_MM, equal_nan=True)


def _plain(value: Any) -> Any:
    """Return what prints in one line."""
    return value.tolist() if isinstance(value, np.ndarray) else value
