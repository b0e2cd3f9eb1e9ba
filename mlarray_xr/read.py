"""open_mla: one file as a labelled array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import xarray as xr

from mlarray_xr.backend import MlaBackendEntrypoint
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["open_mla"]


def open_mla(
    path: Any,
    *,
    chunks: int | str | Mapping[Any, Any] | None = None,
    variable: str | None = None,
    checksums: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> xr.DataArray:
    """Open a file as a lazy DataArray in world coordinates.

    The same as ``xarray.open_dataset(path, engine="mlarray", chunks=chunks)[name]``, with the
    coordinates that need no index (such as b-values along time), which the engine cannot restore.

    Parameters
    ----------
    path
        A local path, a URL, a file's bytes, or a binary file object.
    chunks
        None: lazy without Dask. ``{}``: Dask, parts of whole file chunks sized for a task.
        ``"auto"``, numbers and mappings as in `xarray.open_dataset`.
    variable
        Name of the array instead of ``"image"`` or ``"labels"``.
    checksums
        Whether each chunk is compared with its checksum when it is first read; files without
        checksums are then refused.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Returns
    -------
    xarray.DataArray
        Dimensions in array order, never transposed.

    Raises
    ------
    FormatError
        When the file is damaged or hostile, or holds metadata only.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.ones((4, 6, 8), "uint8"), "ones.mla")
    >>> array = mlarray_xr.open_mla("ones.mla")
    >>> array.dims, int(array.isel(z=0).sum())
    (('z', 'y', 'x'), 48)
    """
    dataset = xr.open_dataset(
        path,
        engine=MlaBackendEntrypoint,
        chunks=chunks,
        variable=variable,
        checksums=checksums,
        storage_options=storage_options,
        store=store,
    )
    names = list(dataset.data_vars)
    if not names:
        msg = "the file holds metadata only, no array. To fix: read MlaArray(path).metadata"
        raise FormatError(msg)
    array = dataset[names[0]]
    array = attach_coords(array)
    array.set_close(dataset.close)
    return array
