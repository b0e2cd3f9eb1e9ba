"""The xarray engine ``mlarray``. Every xarray user imports this module, so it stays light."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from mlarray_xr.array import MlaArray
from mlarray_xr.dask import array_chunk_bytes
from mlarray_xr.dataset import dataset_from
from mlarray_xr.overview_siblings import find_levels
from mlarray_xr.planning.selection import plan_outer, plan_vectorized
from mlarray_xr.storage.address import is_url
from mlarray_xr.storage.read_pool import submit_read

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["MlaBackendArray", "MlaBackendEntrypoint"]

_SUFFIXES = (".mla", ".mb2nd")


class MlaBackendArray(BackendArray):
    """An `MlaArray` behind xarray's lazy indexing; thread-safe and picklable.

    Parameters
    ----------
    array
        What to read from.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from xarray.core.indexing import LazilyIndexedArray
    >>> _ = mlarray_xr.to_mla(np.arange(6).reshape(2, 3), "lazy.mla")
    >>> lazy = LazilyIndexedArray(MlaBackendArray(mlarray_xr.MlaArray("lazy.mla")))
    >>> lazy.shape
    (2, 3)
    """

    def __init__(self, array: MlaArray) -> None:
        self.file = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read what an xarray indexer selects."""
        # An empty slice of a reversed lazy array fails inside xarray's own slice arithmetic
        # (xarray 2026.9, every backend): its normal form does not.
        entries = tuple(
            slice(0, 0, 1) if isinstance(k, slice) and not len(range(*k.indices(n))) else k
            for k, n in zip(key.tuple, self.shape, strict=True)
        )
        normal = type(key)(entries)
        is_vectorized = isinstance(key, indexing.VectorizedIndexer)
        return indexing.explicit_indexing_adapter(
            normal,
            self.shape,
            indexing.IndexingSupport.VECTORIZED,
            self._vectorized if is_vectorized else self._outer,
        )

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        """Read in a thread: waiting and decoding release the GIL.

        Not one of the event loop's, of which there are few more than CPUs: many selections of a
        remote file wait for their requests at the same time.
        """
        return await asyncio.wrap_future(submit_read(partial(self.__getitem__, key)))

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return the identity of the file."""
        return self.file.__dask_tokenize__()

    def _outer(self, key: tuple[Any, ...]) -> Any:
        """Read integers, slices and 1-D arrays, each along its own axis."""
        return self.file.select(plan_outer(key, self.shape))

    def _vectorized(self, key: tuple[np.ndarray, ...]) -> Any:
        """Read one broadcastable index array per axis."""
        plan = plan_vectorized(key, self.shape)
        values = self.file.select(plan.selection)
        spread = values.transpose(plan.order).reshape(plan.spread)
        # A broadcast view is read-only, and what a user has loaded must not be.
        return spread if spread.shape == plan.shape else np.broadcast_to(spread, plan.shape).copy()


class MlaBackendEntrypoint(BackendEntrypoint):
    """Opens `.mla` files with ``xarray.open_dataset(path, engine="mlarray")``.

    Examples
    --------
    >>> import numpy as np, xarray as xr, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((2, 3, 4), "int16"), "volume.mla")
    >>> dict(xr.open_dataset("volume.mla", engine="mlarray").sizes)
    {'z': 2, 'y': 3, 'x': 4}
    """

    description = "Open MLArray files (.mla) and other Blosc2 arrays (.b2nd, .mb2nd)"
    url = "https://pypi.org/project/mlarray-xr/"
    supports_groups = True
    # Written out: xarray detects parameters only for registered engines. A test compares it with
    # the signature.
    open_dataset_parameters = (
        "filename_or_obj",
        "mask_and_scale",
        "decode_times",
        "decode_timedelta",
        "decode_coords",
        "drop_variables",
        "variable",
        "checksums",
        "storage_options",
        "store",
    )

    def guess_can_open(self, filename_or_obj: object) -> bool:
        """Tell by the suffix whether this engine opens the file; never touches it."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        name = os.fsdecode(filename_or_obj)
        # The query of a URL may be a signature.
        plain = name.partition("?")[0] if is_url(name) else name
        return plain.lower().endswith(_SUFFIXES)

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: bool | None = None,  # noqa: ARG002 - there is no CF encoding to decode
        decode_times: Any = None,  # noqa: ARG002
        decode_timedelta: Any = None,  # noqa: ARG002
        decode_coords: Any = None,  # noqa: ARG002
        drop_variables: str | Iterable[str] | None = None,
        variable: str | None = None,
        checksums: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        store: Any = None,
    ) -> xr.Dataset:
        """Open a file as a dataset with one lazy variable.

        Parameters
        ----------
        filename_or_obj
            A local path, a URL, a file's bytes, or a binary file object.
        mask_and_scale, decode_times, decode_timedelta, decode_coords
            Accepted and without effect: voxels are returned as they are stored.
        drop_variables
            Names of variables to leave out.
        variable
            Name of the data variable instead of ``"image"`` (``"labels"`` for segmentations).
        checksums
            Whether each chunk is compared with its checksum when it is first read.
        storage_options
            How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
        store
            A ready obstore store or fsspec filesystem, in which `filename_or_obj` is a path.

        Returns
        -------
        xarray.Dataset
            See the data model in the documentation.

        Raises
        ------
        FormatError
            When the file is damaged, hostile or not an `.mla` file.
        ValueError
            When `variable` is the name of a dimension.
        """
        array = MlaArray(
            filename_or_obj, checksums=checksums, storage_options=storage_options, store=store
        )
        return _dataset(array, variable=variable, drop_variables=drop_variables)

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: bool | None = None,  # noqa: ARG002 - as of open_dataset
        decode_times: Any = None,  # noqa: ARG002
        decode_timedelta: Any = None,  # noqa: ARG002
        decode_coords: Any = None,  # noqa: ARG002
        drop_variables: str | Iterable[str] | None = None,
        variable: str | None = None,
        checksums: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        store: Any = None,
    ) -> dict[str, xr.Dataset]:
        """Open a file as the only group of a tree, or with its overviews as ``/level0`` and so on.

        Parameters as in `open_dataset`.
        """
        array = MlaArray(
            filename_or_obj, checksums=checksums, storage_options=storage_options, store=store
        )
        opened = partial(_dataset, variable=variable, drop_variables=drop_variables)
        levels = find_levels(array)
        if len(levels) == 1:
            return {"/": opened(array)}
        groups = {f"/level{number}": opened(level) for number, level in enumerate(levels)}
        return {"/": xr.Dataset(), **groups}

    def open_datatree(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: bool | None = None,
        decode_times: Any = None,
        decode_timedelta: Any = None,
        decode_coords: Any = None,
        drop_variables: str | Iterable[str] | None = None,
        variable: str | None = None,
        checksums: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        store: Any = None,
    ) -> xr.DataTree:
        """Open a file as a tree of one node, or with its overviews as ``/level0`` and so on.

        Parameters as in `open_dataset`.
        """
        # Private, but the one way that keeps `close` on the tree; its own engines use it too.
        from xarray.backends.common import datatree_from_dict_with_io_cleanup

        groups = self.open_groups_as_dict(
            filename_or_obj,
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            decode_timedelta=decode_timedelta,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            variable=variable,
            checksums=checksums,
            storage_options=storage_options,
            store=store,
        )
        return datatree_from_dict_with_io_cleanup(groups)


def _dataset(
    array: MlaArray, *, variable: str | None, drop_variables: str | Iterable[str] | None
) -> xr.Dataset:
    """Describe a file as a dataset of one lazy variable, which is closed with it."""
    dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables or ()
    dataset = dataset_from(
        indexing.LazilyIndexedArray(MlaBackendArray(array)),
        array,
        variable=variable,
        drop_variables=tuple(dropped),
        part_bytes=array_chunk_bytes(),
    )
    if array.path is not None:
        # xarray would put the whole URL there, whose query may be a signature, and of overviews
        # the path of the file that they are of.
        dataset.encoding["source"] = array.path
    dataset.set_close(array.close)
    return dataset
