"""What `dataset_from` needs of a file, without a file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.dataset import dataset_from, metadata_of
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats, Storage

if TYPE_CHECKING:
    import xarray as xr


ZYX = ("spatial_z", "spatial_y", "spatial_x")


@dataclass(frozen=True, kw_only=True)
class FakeFile:
    metadata: Metadata
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("int16"))

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(min(n, max(4, n >> 8)) for n in self.shape)

    blocks = chunks


def opened(
    metadata: Metadata, shape: tuple[int, ...], *, lazy: Any = None, **kwargs: Any
) -> xr.Dataset:
    """Open a file that holds 0, 1, 2... in C order, unless `lazy` is its data."""
    file = FakeFile(metadata=metadata, shape=shape)
    if lazy is None:
        lazy = np.arange(np.prod(shape, dtype=int), dtype="int16").reshape(shape)
    return dataset_from(lazy, file, **kwargs)


def image(shape: tuple[int, ...], **spatial: Any) -> xr.DataArray:
    """Open a file of which only the spatial fields matter."""
    metadata = Metadata(spatial=Spatial(**spatial), has_array=True)
    return opened(metadata, shape)["image"]


def image_of(metadata: Metadata, shape: tuple[int, ...]) -> xr.DataArray:
    (variable,) = opened(metadata, shape).data_vars.values()
    return variable


def reopened(array: xr.DataArray) -> xr.DataArray:
    return image_of(metadata_of(array), array.shape)


def as_text(metadata: Metadata) -> str:
    """NaN equals NaN in text."""
    return repr((metadata.to_dict(), metadata.unknown))


def rich() -> Metadata:
    return Metadata(
        source={"PatientName": "Doe^Jane", "nested": [{"deep": math.nan}], 3: "int key"},
        extra={"__pairs__": 1, "site": {"a": []}},
        spatial=Spatial(
            spacing=(3, 0.75, 0.5),
            origin=(10, -20.5, 30.125),
            axis_labels=("channel", *ZYX),
            coord_system="LPS",
            axis_units=["", "mm", "mm", "mm"],
        ),
        stats=Stats(min=0, max=9),
        bbox=Boxes(bboxes=(((0, 1), (0, 1), (0, 1)),)),
        blosc2=Storage(patch_size=(4, 4, 4)),
        has_array=True,
        unknown={"foo": [1]},
    )
