"""What attributes can carry: metadata as one hidden JSON text, and plain values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import MetadataError
from mlarray_xr.format.metadata import Metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LAYOUT_ATTR",
    "METADATA_ATTR",
    "OWN_ATTRS",
    "HiddenText",
    "is_name",
    "metadata_text",
    "plain_value",
    "read_metadata",
    "shown_text",
]

METADATA_ATTR = "mla_metadata"
LAYOUT_ATTR = "mla_layout"
OWN_ATTRS = frozenset(
    {
        "affine",
        "axes_assumed",
        "coord_system",
        LAYOUT_ATTR,
        METADATA_ATTR,
        "spacing",
        "spatial_coords",
        "spatial_dims",
    }
)
"""Attributes that describe the file; every other attribute belongs to the user."""

_PAIRS = "__pairs__"
_SHOWN_CHARACTERS = 128
_NAME_CHARACTERS = 256


class HiddenText(list[str]):
    """One text as an attribute value that is written to netCDF and Zarr but never printed.

    xarray prints attributes with ``str``, in HTML in full length, and the text may identify a
    patient. A subclass of ``str`` cannot hide it: NumPy, and through it netCDF4, stores what
    ``str`` returns, and h5py refuses subclasses. A list of one ``str`` is a legal attribute for
    netCDF4, h5netcdf and Zarr alike, whatever its own ``repr`` is.

    Examples
    --------
    >>> text = HiddenText(['{"PatientName": "Doe"}'])
    >>> print(text, repr(text), f"{text}")
    <22 characters> <22 characters> <22 characters>
    >>> text[0]
    '{"PatientName": "Doe"}'
    """

    def __repr__(self) -> str:
        """Tell the size only."""
        return f"<{sum(map(len, self))} characters>"

    __str__ = __repr__


def metadata_text(metadata: Metadata, *, shape: tuple[int, ...]) -> HiddenText:
    """Encode metadata, and the shape of the array it describes, as ASCII JSON without any loss.

    Dicts with keys other than text become ``{"__pairs__": [[key, value], ...]}``. NaN and
    infinities are bare words, as Python's ``json`` reads and writes them.

    Examples
    --------
    >>> text = metadata_text(Metadata(source={1: "a"}), shape=(4,))
    >>> metadata, shape = read_metadata({"mla_metadata": text})
    >>> metadata.source, shape
    ({1: 'a'}, (4,))
    """
    values = metadata.to_dict()
    values["unknown"] = metadata.unknown
    values["shape"] = list(shape)
    return HiddenText([json.dumps(_tagged(values), separators=(",", ":"))])


def read_metadata(attrs: Mapping[Any, Any]) -> tuple[Metadata, tuple[int, ...]] | None:
    """Decode the metadata among attributes, and the shape of the array it described.

    None when there is none. The text is found as written here, as netCDF returns it (a string) and
    as Zarr does (a list).

    Raises
    ------
    MetadataError
        When the text is not what `metadata_text` writes.
    """
    found = attrs.get(METADATA_ATTR)
    if found is None:
        return None
    text = found[0] if isinstance(found, list) and len(found) == 1 else found
    try:
        values = _untagged(json.loads(text))
        unknown, shape = values.pop("unknown"), tuple(map(int, values.pop("shape")))
        metadata = replace(Metadata.from_dict(values), unknown=unknown)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise MetadataError(
            f"attribute {METADATA_ATTR!r} does not hold the metadata of a file "
            f"({type(error).__name__}). Remove it: del array.attrs[{METADATA_ATTR!r}]"
        ) from error
    return metadata, shape


def plain_value(value: object) -> Any:
    """Return an attribute value as plain data that a file can hold.

    NumPy scalars become Python's, arrays and tuples become lists.

    Raises
    ------
    TypeError
        When the value, or one inside it, is nothing of the kind.

    Examples
    --------
    >>> plain_value({"bvals": np.array([0.0, 1000.0]), "n": np.int16(2)})
    {'bvals': [0.0, 1000.0], 'n': 2}
    """
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufU":
        value = value.tolist()
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: plain_value(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is not plain data")


def is_name(name: object) -> bool:
    """Tell whether something can name a variable, dimension, coordinate or attribute.

    Names in a file are printed as they are, so they are short and hold no control characters.

    Examples
    --------
    >>> is_name("b-value"), is_name(chr(27) + "[2J")
    (True, False)
    """
    return type(name) is str and 0 < len(name) <= _NAME_CHARACTERS and name.isprintable()


def shown_text(text: str) -> str:
    """Return free text as a short printable attribute: other characters become question marks.

    Examples
    --------
    >>> shown_text("RAS" + chr(0))
    'RAS?'
    """
    return "".join(c if c.isprintable() else "?" for c in text[:_SHOWN_CHARACTERS])


def _tagged(value: Any) -> Any:
    """Replace dicts that JSON cannot hold by tagged lists of pairs."""
    if type(value) is list:
        return [_tagged(item) if type(item) in {dict, list} else item for item in value]
    if type(value) is not dict:
        return value
    if _PAIRS in value or any(type(key) is not str for key in value):
        return {_PAIRS: [[key, _tagged(item)] for key, item in value.items()]}
    return {key: _tagged(item) for key, item in value.items()}


def _untagged(value: Any) -> Any:
    """Restore what `_tagged` replaced."""
    if type(value) is list:
        return [_untagged(item) if type(item) in {dict, list} else item for item in value]
    if type(value) is not dict:
        return value
    if value.keys() == {_PAIRS}:
        return {key: _untagged(item) for key, item in value[_PAIRS]}
    return {key: _untagged(item) for key, item in value.items()}
