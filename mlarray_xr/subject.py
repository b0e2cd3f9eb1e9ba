"""Subject: what is to be written, told apart from what it was given as."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import METADATA_ATTR
from mlarray_xr.dask import has_client, is_dask
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import ConversionError, MlaWarning
from mlarray_xr.format.metadata import Metadata
from mlarray_xr.storage.encode import STORABLE_KINDS
from mlarray_xr.storage.job import Streamed

__all__ = ["Subject", "subject_of", "variables_of"]

_TOKEN_BYTES = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """The values to write, lazy where they are, and the metadata they stand for."""

    values: Any
    """A NumPy array, a Dask array, what can be sliced box by box, or what comes slab by slab."""
    metadata: Metadata
    """What the object itself says."""

    def __post_init__(self) -> None:
        """Refuse what a type string and a shape of integers cannot express."""
        values = self.values
        if values.dtype.names is not None or values.dtype.kind not in STORABLE_KINDS:
            msg = (
                f"arrays of type {values.dtype} cannot be written: numbers, booleans, dates and "
                "strings of fixed size can. To fix: convert with .astype(...)"
            )
            raise ConversionError(msg)
        if isinstance(getattr(values, "_meta", values), np.ma.MaskedArray):
            msg = "a masked array: its mask has no place in a file. To fix: array.filled(value)"
            raise ConversionError(msg)
        if not all(n >= 0 for n in values.shape):
            msg = f"extents of {values.shape} are unknown. To fix: array.compute_chunk_sizes()"
            raise ConversionError(msg)

    @property
    def is_dask(self) -> bool:
        """Whether the values are a Dask array."""
        return is_dask(self.values)

    @property
    def has_address(self) -> bool:
        """Whether the values can be sent to workers as an address."""
        return not isinstance(self.values, np.ndarray) and hasattr(self.values, "__dask_tokenize__")

    @property
    def goes_to_workers(self) -> bool:
        """Whether a cluster is active, and reads the values by their address."""
        return self.has_address and has_client()

    def token(self) -> str:
        """Return what changes when the values do, so that only work on the same ones is resumed.

        The name of a Dask array, the identity of a file, or a digest of an array in memory, which
        a mapped one counts as: what it maps may change without a trace.

        Raises
        ------
        ConversionError
            When nothing tells.
        """
        values = self.values
        if self.is_dask:
            return str(values.name)
        if isinstance(values, np.ndarray):
            return _digest(values)
        if self.has_address:
            return repr(values.__dask_tokenize__())
        msg = (
            f"resume=True: nothing tells whether this {type(values).__name__} is what was written "
            "before. To fix: (1) open it with chunks={} as a Dask array; (2) resume=False"
        )
        raise ConversionError(msg)


def subject_of(obj: Any) -> Subject:
    """Return what an object given by a user means.

    Parameters
    ----------
    obj
        A DataArray, a Dataset of one variable, a Dask array, an `MlaArray`, anything with shape,
        dtype and slicing, or anything NumPy takes; a `Subject` is returned as it is.

    Raises
    ------
    ConversionError
        When it is text, or of a type that no file holds.
    """
    if isinstance(obj, Subject):
        return obj
    if isinstance(obj, xr.Dataset):
        (obj,) = variables_of(obj).values()
    if isinstance(obj, xr.DataArray):
        data = obj.variable._data  # noqa: SLF001 - .data would load a lazy array whole
        lazy = data if is_dask(data) or isinstance(data, np.ndarray) else _LazyVariable(obj)
        return Subject(values=lazy, metadata=metadata_of(obj))
    if isinstance(obj, MlaArray):
        return Subject(values=obj, metadata=obj.metadata)
    if isinstance(obj, str | bytes):
        msg = f"{obj[:80]!r}: an array is needed, not text. To fix: mlarray_xr.convert takes paths"
        raise ConversionError(msg)
    is_taken = is_dask(obj) or isinstance(obj, Streamed) or _is_sliceable(obj)
    values = obj if is_taken else np.asanyarray(obj)
    return Subject(values=values, metadata=Metadata(has_array=True))


def variables_of(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return the variables of a dataset, and warn of what files have no place for."""
    arrays = {str(name): array for name, array in dataset.data_vars.items()}
    if not arrays:
        msg = "a Dataset without variables: there is no array to write"
        raise ConversionError(msg)
    kept = {name for array in arrays.values() for name in array.coords}
    # What the engine itself puts on a dataset is in the variable's metadata.
    left = [
        name for name in (*dataset.attrs, *(set(dataset.coords) - kept)) if name != METADATA_ATTR
    ]
    if left:
        msg = (
            f"attributes and coordinates {sorted(map(str, left))} of the Dataset are not stored: "
            "a file holds one variable. To fix: put them on the variable"
        )
        warnings.warn(msg, MlaWarning, stacklevel=5)
    return arrays


def _is_sliceable(obj: Any) -> bool:
    """Tell whether an object is an array that is read when sliced: HDF5, Zarr and the like."""
    if isinstance(obj, np.ndarray | np.generic | pd.Series | pd.Index):
        return False
    has_type = isinstance(getattr(obj, "dtype", None), np.dtype) and hasattr(obj, "shape")
    return has_type and hasattr(obj, "__getitem__")


def _digest(values: np.ndarray[Any, Any]) -> str:
    """Return a digest of an array in memory, some megabytes at a time."""
    digest = hashlib.blake2b(repr((values.shape, values.dtype.str)).encode(), digest_size=16)
    step = max(
        1, _TOKEN_BYTES // max(1, values.nbytes // max(1, len(values) if values.ndim else 1))
    )
    rows = np.atleast_1d(values)
    for start in range(0, len(rows), step):
        digest.update(np.ascontiguousarray(rows[start : start + step]).tobytes())
    return digest.hexdigest()


class _LazyVariable:
    """A lazy DataArray as something that can be sliced part by part."""

    def __init__(self, source: xr.DataArray) -> None:
        self._source = source.variable
        self.shape, self.dtype = source.shape, source.dtype
        self.ndim, self.size = source.ndim, source.size

    def __getitem__(self, key: tuple[Any, ...]) -> Any:
        return self._source[key].to_numpy()
