"""The labels of a Zarr array: names of dimensions, attributes, and the coordinates beside it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import read_metadata
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.labelled import (
    check_values,
    coordinate_names,
    decoded_coordinate,
    is_storable,
    labelled_metadata,
)
from mlarray_xr.foreign.zarr_store import (
    ZarrArray,
    ZarrNode,
    ZarrStore,
    chunk_keys,
    is_member_name,
)
from mlarray_xr.record import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["array_of", "dimension_names", "labelled_image"]

_V2_DIMS = "_ARRAY_DIMENSIONS"
_MAX_COORDINATE_BYTES = 256 << 20


def array_of(store: ZarrStore, node: ZarrNode) -> ZarrArray:
    """Return the lazy array of a node.

    Raises
    ------
    ConversionError
        When its elements cannot be converted, or reading it could run code.
    """
    with store.opened(node) as array:
        shape, dtype = tuple(array.shape), np.dtype(array.dtype)
    check_values(shape, dtype)
    return ZarrArray(store=store, name=node.name, digest=node.digest, shape=shape, dtype=dtype)


def labelled_image(store: ZarrStore, node: ZarrNode) -> ForeignImage:
    """Return an array with the labels that xarray reads and writes.

    Dimensions are named by ``dimension_names`` (format 3) or the attribute ``_ARRAY_DIMENSIONS``
    (format 2); coordinates are the arrays of the same group that are named like a dimension or
    listed in an attribute ``coordinates``.

    Raises
    ------
    ConversionError
        As `array_of` and `labelled_metadata`.
    """
    values = array_of(store, node)
    return ForeignImage(values=values, metadata=_metadata(store, node, values))


def dimension_names(node: ZarrNode, ndim: int) -> list[str | None]:
    """Return the names of the dimensions; None where there is none."""
    named = node.document if node.zarr_format == 3 else node.attributes
    names = named.get("dimension_names" if node.zarr_format == 3 else _V2_DIMS)
    if type(names) is not list or len(names) != ndim:
        return [None] * ndim
    return [name if type(name) is str and name else None for name in names]


def _metadata(store: ZarrStore, node: ZarrNode, values: ZarrArray) -> Metadata:
    """Return the metadata of an array."""
    dims = dimension_names(node, len(values.shape))
    group, _, own = node.name.rpartition("/")
    coords = {}
    for name in _coordinate_names(store, node, dims):
        found = store.node(f"{group}/{name}".lstrip("/"))
        if found is not None and found.is_array and is_storable(name, found.shape):
            coordinate = _coordinate(store, found, name)
            if coordinate is not None and {*coordinate.dims} <= {*dims}:
                coords[name] = coordinate
    return labelled_metadata(
        shape=values.shape,
        dims=dims,
        attrs=_attributes(node, values.dtype),
        coords=coords,
        name=own or None,
        file_format="zarr",
    )


def _coordinate_names(store: ZarrStore, node: ZarrNode, dims: Sequence[str | None]) -> list[str]:
    """Return the names under which the coordinates of an array may be stored."""
    group, _, own = node.name.rpartition("/")
    parent = store.node(group) if own else None
    if parent is None:
        return []
    names = coordinate_names([dim for dim in dims if dim is not None], node.attributes)
    names += coordinate_names((), parent.attributes)
    stored = read_metadata(node.attributes)
    if stored is not None:
        # Those with a space in their name cannot be listed in an attribute.
        names += Record.of(stored[0], shape=stored[1]).coords
    return [name for name in dict.fromkeys(names) if name != own and is_member_name(name)]


def _coordinate(store: ZarrStore, node: ZarrNode, name: str) -> xr.Variable | None:
    """Return a coordinate; None where its elements are neither numbers nor texts."""
    dims = [dim for dim in dimension_names(node, len(node.shape)) if dim is not None]
    with warnings.catch_warnings():
        # zarr-python warns that texts of fixed size are not standardised.
        warnings.simplefilter("ignore")
        with store.opened(node) as array:
            if array.size * array.dtype.itemsize > _MAX_COORDINATE_BYTES:
                raise ConversionError(f"the coordinate {name!r} takes {array.nbytes} bytes")
            key = tuple(slice(0, n) for n in array.shape)
            store.check_stored(chunk_keys(array, node.name, key))
            values = _plain_values(array[key])
    if values is None or len(dims) != values.ndim:
        return None
    return decoded_coordinate(name, dims, values, _attributes(node, values.dtype))


def _plain_values(values: Any) -> NDArray[Any] | None:
    """Return numbers or texts as an array; None for anything else."""
    found = np.asarray(values)
    if found.dtype.kind in "biufU":
        return found
    texts = found.astype(object)
    return texts if all(type(text) is str for text in texts.flat) else None


def _attributes(node: ZarrNode, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return the user's attributes; xarray writes ``_FillValue`` of floats as base64 of 8 bytes."""
    attrs = {name: value for name, value in node.attributes.items() if name != _V2_DIMS}
    text = attrs.get("_FillValue")
    if dtype.kind == "f" and isinstance(text, str):
        with contextlib.suppress(binascii.Error, struct.error):
            (attrs["_FillValue"],) = struct.unpack("<d", base64.b64decode(text))
    return attrs
