"""What `dataset_from` needs of a file, without a file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from mlarray_xr.dataset import dataset_from
from mlarray_xr.format.metadata import Metadata, Spatial

if TYPE_CHECKING:
    import xarray as xr

    from mlarray_xr.array import MlaArray


@dataclass(frozen=True, kw_only=True)
class FakeFile:
    metadata: Metadata
    shape: tuple[int, ...]
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("int16"))

    @property
    def chunks(self) -> tuple[int, ...]:
        return tuple(min(n, 4) for n in self.shape)

    blocks = chunks


def opened(metadata: Metadata, shape: tuple[int, ...], **kwargs: Any) -> xr.Dataset:
    """Open a file that holds 0, 1, 2... in C order."""
    file = cast("MlaArray", FakeFile(metadata=metadata, shape=shape))
    values = np.arange(np.prod(shape, dtype=int), dtype="int16").reshape(shape)
    return dataset_from(values, file, **kwargs)


def image(shape: tuple[int, ...], **spatial: Any) -> xr.DataArray:
    """Open a file of which only the spatial fields matter."""
    metadata = Metadata(spatial=Spatial(**spatial), has_array=True)
    return opened(metadata, shape)["image"]
