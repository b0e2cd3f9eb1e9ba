"""Files of named arrays: which array is meant, and its labels in the schema's words.

What HDF5, NetCDF and Zarr files have in common. The bytes stay with the modules of the formats.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from mlarray_xr.attributes import METADATA_ATTR, OWN_ATTRS, is_name
from mlarray_xr.axes import plan_dims
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import ConversionError, MlaError, MlaWarning
from mlarray_xr.placement import INDEX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlarray_xr.format.metadata import Metadata

__all__ = [
    "MAX_COORDINATE_LENGTH",
    "check_values",
    "choose_dataset",
    "coordinate_names",
    "dataset_parts",
    "decoded_coordinate",
    "is_storable",
    "labelled_metadata",
    "plain_attributes",
]

MAX_COORDINATE_LENGTH = 1 << 24
"""Longest coordinate that is read: a file may claim any extent."""

_KINDS = "biufcmM"
_LARGEST_ITEMSIZE = {"f": 8, "c": 16}
_MAX_NBYTES = 2**62
_SHOWN = 20
_STALE_ATTRS = ("coordinates", "_ARRAY_DIMENSIONS")
"""Attributes that name other arrays of a file, which do not come along."""


def dataset_parts(dataset: str) -> tuple[str, ...]:
    """Split the name of an array inside a file, which may lead nowhere else.

    Raises
    ------
    ConversionError
        When the name has parts ``.`` or ``..``, backslashes or control characters.

    Examples
    --------
    >>> dataset_parts("/t0/raw")
    ('t0', 'raw')
    """
    parts = tuple(part for part in dataset.split("/") if part)
    if not dataset.isprintable() or "\\" in dataset or {".", ".."} & {*parts}:
        raise ConversionError(
            f"dataset={dataset!r} is no name of an array inside a file: names are separated by "
            "'/', and none of them is '.' or '..'. To fix: name it from the root, 'group/array'"
        )
    return parts


def choose_dataset(candidates: Mapping[str, tuple[tuple[int, ...], object]]) -> str:
    """Return the one array that is an image: the only one, or the only one of two or more axes.

    Parameters
    ----------
    candidates
        Shape and type by name.

    Raises
    ------
    ConversionError
        When there is none, or there are several: the message lists them.

    Examples
    --------
    >>> choose_dataset({"raw": ((4, 5, 6), "uint8"), "times": ((4,), "float64")})
    'raw'
    """
    images = [name for name, (shape, _) in candidates.items() if len(shape) > 1]
    found = images or list(candidates)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConversionError(
            "the file holds no array of numbers or booleans. Texts, records, references and lists "
            "of varying length cannot be converted"
        )
    shown = [f"{name!r} {candidates[name][0]} {candidates[name][1]}" for name in found[:_SHOWN]]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise ConversionError(
        f"the file holds {len(found)} arrays: {', '.join(shown)}{more}. To fix: choose one, "
        f"dataset={found[0]!r}"
    )


def check_values(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    way_out: str = "save it as these, or choose another array with dataset=",
) -> None:
    """Refuse arrays that have no place both in an `.mla` file and in others.

    Parameters
    ----------
    shape, dtype
        Of the array.
    way_out
        What to do when the type is refused.

    Raises
    ------
    ConversionError
        When the elements are neither numbers, booleans nor times, or no address reaches the last.
    """
    largest = _LARGEST_ITEMSIZE.get(dtype.kind, 8)
    if dtype.names is not None or dtype.kind not in _KINDS or dtype.itemsize > largest:
        raise ConversionError(
            f"elements of type {dtype} cannot be converted: booleans, integers, times, floats of "
            f"at most 64 and complex numbers of at most 128 bits can. To fix: {way_out}"
        )
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > _MAX_NBYTES:
        raise ConversionError(f"shape {shape} of {dtype} is beyond any machine: the file is broken")


def coordinate_names(dims: Sequence[str], attrs: Mapping[str, Any]) -> list[str]:
    """Return the names under which an array's coordinates are stored, if they are.

    CF: those named like a dimension, and those that the attribute ``coordinates`` lists.
    """
    listed = attrs.get("coordinates")
    names = [*dims, *(listed.split() if isinstance(listed, str) else ())]
    return list(dict.fromkeys(names))


def is_storable(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether an array of this shape can be read and kept as a coordinate.

    Warns
    -----
    MlaWarning
        When it cannot: a file holds coordinates of one axis, of at most 2**24 entries.
    """
    if len(shape) < 2 and math.prod(shape) <= MAX_COORDINATE_LENGTH:
        return True
    _warn_of_loss(name, f"of shape {shape} has more than one axis or {MAX_COORDINATE_LENGTH} rows")
    return False


def decoded_coordinate(
    name: str, dims: Sequence[str], values: Any, attrs: Mapping[str, Any]
) -> xr.Variable:
    """Return a coordinate as CF means it: times, texts, scaled numbers; else the stored numbers.

    Calendars of other worlds, of which NumPy knows nothing, stay numbers with their attributes.
    """
    raw = xr.Variable(dims, values, {key: _plain(value) for key, value in attrs.items()})
    try:
        with warnings.catch_warnings():
            # xarray warns of what it cannot decode, which then stays as it is.
            warnings.simplefilter("ignore")
            # Plain units of time, such as "s", are units and no request for NumPy's time spans.
            decoded = xr.decode_cf(xr.Dataset({name: raw}), decode_timedelta="dtype" in attrs)
            variable = decoded.variables[name].load()
    except (ArithmeticError, AttributeError, ImportError, KeyError, TypeError, ValueError):
        return raw
    is_object = variable.dtype == object and not all(type(v) is str for v in variable.values.flat)
    return raw if is_object else xr.Variable(variable.dims, variable.values, variable.attrs)


def plain_attributes(attrs: Mapping[str, Any], *, file_format: str) -> dict[str, Any]:
    """Return attributes as plain as they can be; those named like ours get the format in front.

    Unless ours are among them: then xarray wrote an array that came from an `.mla` file.
    Attributes that name other arrays of a file are left out.

    Examples
    --------
    >>> plain_attributes({"spacing": np.array([0.5]), "units": b"HU"}, file_format="hdf5")
    {'hdf5_spacing': np.float64(0.5), 'units': 'HU'}
    """
    is_ours = METADATA_ATTR in attrs or "spatial_dims" in attrs
    kept = {}
    for name, value in attrs.items():
        is_false_friend = name in OWN_ATTRS and not is_ours
        if name not in _STALE_ATTRS:
            kept[f"{file_format}_{name}" if is_false_friend else name] = _plain(value)
    return kept


def labelled_metadata(
    *,
    shape: tuple[int, ...],
    dims: Sequence[str | None],
    attrs: Mapping[str, Any],
    coords: Mapping[str, xr.Variable],
    name: str | None,
    file_format: str,
) -> Metadata:
    """Return the metadata that names, attributes and coordinates of an array stand for.

    The rules are those of `metadata_of`: float coordinates of x, y and z are the geometry. Arrays
    that came from an `.mla` file through xarray get their metadata back. Attributes that are named
    like ours but are not get the format's name in front.

    Parameters
    ----------
    shape
        Extents, array order.
    dims
        One name per axis; None where the file names none.
    attrs, coords
        As found. Coordinates that do not fit the array are left out.
    name
        Name of the array.
    file_format
        Such as ``"hdf5"``.

    Raises
    ------
    ConversionError
        When what another file wrote under our names is broken.

    Warns
    -----
    MlaWarning
        When an attribute or a coordinate cannot be stored.

    Examples
    --------
    >>> found = labelled_metadata(
    ...     shape=(3,),
    ...     dims=["x"],
    ...     attrs={"scanner": "A"},
    ...     coords={"x": xr.Variable("x", [1.0, 1.5, 2.0])},
    ...     name="ct",
    ...     file_format="netcdf",
    ... )
    >>> found.spatial.affine, found.extra["mlarray_xr"]["name"]
    (((0.5, 1.0), (0.0, 1.0)), 'ct')
    """
    named = _dims(dims)
    kept = plain_attributes(attrs, file_format=file_format)
    # Stands for the values: it has a shape and takes one byte.
    values = np.broadcast_to(np.zeros((), np.bool_), shape)
    array = xr.DataArray(values, dims=named, name=name if is_name(name) else None, attrs=kept)
    array = array.assign_coords(_fitting(coords, dict(zip(named, shape, strict=True)), kept))
    try:
        metadata = metadata_of(array)
    except MlaError as error:
        raise ConversionError(
            f"what the attributes say of the geometry is broken: {error}"
        ) from error
    if any(dim is not None for dim in dims) or METADATA_ATTR in kept:
        return metadata
    return replace(metadata, spatial=replace(metadata.spatial, axis_labels=None))


def _dims(names: Sequence[str | None]) -> tuple[str, ...]:
    """Name all dimensions; those without a name as in a file without labels."""
    assumed = plan_dims(None, len(names)).dims
    is_free = all(name is None for name in names)
    dims = tuple(
        (free if is_free else f"dim_{axis}") if name is None else name
        for axis, (name, free) in enumerate(zip(names, assumed, strict=True))
    )
    if not all(map(is_name, dims)) or len({*dims}) < len(dims):
        raise ConversionError(
            f"dimensions named {dims} cannot be told apart. To fix: rename them in the file"
        )
    return dims


def _plain(value: Any) -> Any:
    """Return texts for bytes, and values for arrays of one: formats differ in both."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "SO":
            value = np.asarray([_plain(item) for item in value.flat] or [""]).reshape(value.shape)
        return value[()] if value.ndim == 0 else value[0] if value.shape == (1,) else value
    return value


def _fitting(
    coords: Mapping[str, xr.Variable], sizes: Mapping[str, int], attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the coordinates that fit an array; indices of axes too long to store are made up."""
    fitting: dict[str, Any] = {}
    for name, found in coords.items():
        is_index = found.dims == (name,) or name not in sizes
        if is_index and all(sizes.get(str(dim)) == n for dim, n in found.sizes.items()):
            fitting[name] = found
        else:
            _warn_of_loss(name, f"over {dict(found.sizes)} does not fit the array")
    if attrs.get("spatial_coords") == INDEX:
        for dim in _long_axes(str(attrs.get("spatial_dims", "")).split(), sizes):
            fitting.setdefault(dim, (dim, pd.RangeIndex(sizes[dim])))
    return fitting


def _long_axes(dims: Iterable[str], sizes: Mapping[str, int]) -> list[str]:
    """Return the dimensions whose coordinates would not have been written."""
    return [dim for dim in dims if sizes.get(dim, 0) > MAX_COORDINATE_LENGTH]


def _warn_of_loss(name: str, why: str) -> None:
    """Say that a coordinate is left out."""
    warnings.warn(f"coordinate {name!r} {why}: it is left out", MlaWarning, stacklevel=4)
