"""Metadata of a prediction: that of the volume it was made of, with channels of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import dataset_from, metadata_of

if TYPE_CHECKING:
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.ml.volume import Volume

__all__ = ["prediction_metadata"]


def prediction_metadata(volume: Volume, *, n_channels: int | None, is_seg: bool) -> Metadata:
    """Return what to store of an array that lies on the grid of a volume.

    Geometry, coordinates, attributes and source stay; statistics and the name of the variable do
    not, and the channel axis gives way to another one, which comes first.

    Parameters
    ----------
    volume
        The volume.
    n_channels
        Channels of the prediction; None for none.
    is_seg
        Whether its voxels are labels.

    Raises
    ------
    GeometryError
        When the geometry of the volume does not fit its axes.

    Examples
    --------
    >>> import mlarray_xr
    >>> from mlarray_xr.ml.volume import Volume
    >>> _ = mlarray_xr.to_mla(np.zeros((2, 3, 4), "int16"), "scan.mla")
    >>> prediction_metadata(Volume("scan.mla"), n_channels=5, is_seg=False).spatial.axis_labels
    ('channel', 'spatial', 'spatial', 'spatial')
    """
    blank = np.broadcast_to(np.zeros((), bool), volume.array.shape)
    (described,) = dataset_from(blank, volume.array).data_vars.values()
    # Without the encoding the values count as new ones.
    array = attach_coords(described).drop_encoding().rename(None)
    if volume.channel_axis is not None:
        array = array.isel({array.dims[volume.channel_axis]: 0}, drop=True)
    if n_channels is not None:
        name = "prediction" if "channel" in {*array.dims, *array.coords} else "channel"
        array = array.expand_dims({name: n_channels})
    return replace(metadata_of(array), is_seg=is_seg)
