"""The bytes of a file in the world of Zarr: a store, references to byte ranges, copies, codecs."""

from __future__ import annotations

from mlarray_xr.errors import MissingDependencyError

try:
    import zarr.abc.codec  # noqa: F401 - what follows needs it, and says it less well
except ImportError as error:
    raise MissingDependencyError(
        'mlarray_xr.zarr needs zarr-python 3, which is not installed. To fix: pip install "mlarray-'
        'xr[zarr]"'
    ) from error

from mlarray_xr.zarr_view.array_codec import B2ndCodec
from mlarray_xr.zarr_view.chunk_codec import B2ndChunkCodec
from mlarray_xr.zarr_view.numcodec import B2ndNumcodec
from mlarray_xr.zarr_view.parser import MlaParser
from mlarray_xr.zarr_view.store import MlaStore, as_store
from mlarray_xr.zarr_view.zarr_export import to_zarr
from mlarray_xr.zarr_view.zarr_import import from_zarr

__all__ = [
    "B2ndChunkCodec",
    "B2ndCodec",
    "B2ndNumcodec",
    "MlaParser",
    "MlaStore",
    "as_store",
    "from_zarr",
    "to_zarr",
]
