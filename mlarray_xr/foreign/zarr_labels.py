"""The labels of a Zarr array: names of dimensions, attributes, and the coordinates beside it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import struct
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

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
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.record import StoredCoordinate

__all__ = ["array_of", "dimension_names", "labelled_image"]

_V2_DIMS, _FILL = "_ARRAY_DIMENSIONS", "_FillValue"
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
    listed in an attribute ``coordinates``. Those that the metadata of a file, among the attributes,
    describe come in the order of the file, and as they were in it if nobody changed them since.

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
    coords, recorded = {}, _recorded(node)
    for name in _coordinate_names(store, node, dims, recorded):
        found = store.node(f"{group}/{name}".lstrip("/"))
        if found is not None and found.is_array and is_storable(name, found.shape):
            coordinate = _coordinate(store, found, name, recorded.get(name))
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


def _recorded(node: ZarrNode) -> dict[str, StoredCoordinate]:
    """Return the coordinates of the file that an array came from; nothing of other arrays."""
    stored = read_metadata(node.attributes)
    return {} if stored is None else Record.of(stored[0], shape=stored[1]).coords


def _coordinate_names(
    store: ZarrStore,
    node: ZarrNode,
    dims: Sequence[str | None],
    recorded: Mapping[str, StoredCoordinate],
) -> list[str]:
    """Return the names under which the coordinates of an array may be stored, in their order."""
    group, _, own = node.name.rpartition("/")
    parent = store.node(group) if own else None
    if parent is None:
        return []
    # Attributes list them in alphabetical order, and none with a space in its name.
    names = [*recorded]
    names += coordinate_names([dim for dim in dims if dim is not None], node.attributes)
    names += coordinate_names((), parent.attributes)
    return [name for name in dict.fromkeys(names) if name != own and is_member_name(name)]


def _coordinate(
    store: ZarrStore, node: ZarrNode, name: str, recorded: StoredCoordinate | None
) -> xr.Variable | None:
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
    attrs = _attributes(node, values.dtype)
    decoded = decoded_coordinate(name, dims, values, attrs)
    # What CF would decode may have been stored like that: numbers with the units of a time.
    for found in (xr.Variable(dims, values, attrs), decoded):
        if recorded is not None and _is_unchanged(found, recorded):
            return xr.Variable(recorded.dims, recorded.values, recorded.attrs)
    return decoded


def _is_unchanged(found: xr.Variable, recorded: StoredCoordinate) -> bool:
    """Tell whether a coordinate says what is recorded of it."""
    # xarray adds a fill value to floats, and others to those with a space in their name.
    added = {_FILL, "coordinates"} - recorded.attrs.keys()
    attrs = {name: value for name, value in found.attrs.items() if name not in added}
    kinds = {found.dtype.kind.replace("O", "U"), recorded.values.dtype.kind}
    if len(kinds) > 1 or found.dims != recorded.dims or attrs != recorded.attrs:
        return False
    has_nan = bool(kinds & {*"fmM"})
    return np.array_equal(found.values, recorded.values, equal_nan=has_nan)


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
    text = attrs.get(_FILL)
    if dtype.kind == "f" and isinstance(text, str):
        with contextlib.suppress(binascii.Error, struct.error):
            (attrs[_FILL],) = struct.unpack("<d", base64.b64decode(text))
    return attrs
