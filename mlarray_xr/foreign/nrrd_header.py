"""The header of a NRRD file: its text, byte for byte, and what the fields say.

Where the format is silent, Teem's own reader (nrrd/parseNrrd.c) is followed. The text is parsed
here because nothing in it is trusted, and because it comes back unchanged.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.nrrd_fields import (
    NrrdAxis,
    NrrdSpace,
    dtype_code,
    format_floats,
    format_texts,
    format_vector,
    parse_floats,
    parse_integer,
    parse_texts,
    parse_vectors,
    parse_words,
    space_name,
    type_name,
)

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from mlarray_xr.format.metadata import Json

    T = TypeVar("T")

__all__ = ["NrrdHeader", "plan_header"]

Encoding = Literal["raw", "gzip", "bzip2"]

_MAX_HEADER_BYTES: Final = 4 << 20
_MAX_NDIM: Final = 16
_MAGIC: Final = re.compile(rb"NRRD(00\.01|000[1-6])\r?\n")
_END: Final = re.compile(rb"\n\r?\n")

_NAMES: Final = (
    "content number type blocksize dimension space spacedimension sizes spacings thicknesses "
    "axismins axismaxs spacedirections centers centerings kinds labels units min max oldmin oldmax "
    "endian encoding lineskip byteskip sampleunits spaceunits spaceorigin measurementframe "
    "datafile"
)
"""Names of fields, lower case, without the spaces that some are written with."""

_FIELDS: Final = frozenset(_NAMES.split())

_PLACE_OF_DATA: Final = frozenset({"datafile", "lineskip", "byteskip"})
_OF_ANY_ARRAY: Final = frozenset({"content", "oldmin", "oldmax", "sampleunits"})
"""Fields that stay true when the array is cropped, turned or stored as another type."""

_BYTE_ORDERS: Final = {"little": "<", "big": ">"}
_ENCODINGS: Final[dict[str, Encoding]] = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}
_PREAMBLE: Final = (
    b"# Complete NRRD file format specification at:",
    b"# http://teem.sourceforge.net/nrrd/format.html",
)


class _Line(NamedTuple):
    """One line of a header."""

    raw: bytes
    """The bytes, without the end of the line."""
    name: str = ""
    """Name of the field, lower case without spaces; empty for everything else."""
    key: str = ""
    """The user's own name; empty for everything else."""
    value: str = ""
    """Text of field or key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NrrdHeader:
    r"""A NRRD header as the bytes of its file, the empty line that ends it included.

    Raises
    ------
    ConversionError
        By the constructor, when the text is no NRRD header.

    Examples
    --------
    >>> text = b"NRRD0004\ntype: short\ndimension: 2\nsizes: 3 4\nendian: little\n\n"
    >>> header = NrrdHeader(text=text)
    >>> header.dtype, [axis.size for axis in header.axes]
    (dtype('int16'), [3, 4])
    """

    text: bytes
    """The header, magic first."""
    lines: tuple[_Line, ...] = field(init=False, repr=False, compare=False)
    """The lines after the magic that are not empty."""
    fields: dict[str, str] = field(init=False, repr=False, compare=False)
    """Text of the fields by name, lower case without spaces."""

    def __post_init__(self) -> None:
        """Find the fields."""
        if _MAGIC.match(self.text) is None:
            raise ConversionError("the file does not begin with a NRRD header, NRRD0001 to 6")
        end = _END.search(self.text)
        if end is not None and end.end() != len(self.text):
            raise ConversionError("an empty line cuts the header in two")
        lines = tuple(map(_line, filter(bytes.strip, self.text.split(b"\n")[1:])))
        fields: dict[str, str] = {}
        for line in lines:
            if line.name in fields:
                raise ConversionError(f"the header states {line.name!r} twice")
            if line.name:
                fields[line.name] = line.value
        object.__setattr__(self, "lines", lines)
        object.__setattr__(self, "fields", fields)

    @classmethod
    def read(cls, file: io.FileIO) -> NrrdHeader:
        """Read the header from the start of a file.

        Raises
        ------
        ConversionError
            When it is none, or does not end.
        """
        start = file.read(_MAX_HEADER_BYTES)
        if _MAGIC.match(start) is None:
            raise ConversionError("the file does not begin with a NRRD header, NRRD0001 to 6")
        end = _END.search(start)
        if end is not None:
            return cls(text=start[: end.end()])
        # The header of data in another file needs no empty line.
        if len(start) < _MAX_HEADER_BYTES and "datafile" in (header := cls(text=start)).fields:
            return header
        raise ConversionError(
            f"no empty line ends the header within {len(start)} bytes: the file is truncated"
        )

    @classmethod
    def from_json(cls, entry: object) -> NrrdHeader | None:
        """Read back what `to_json` returns; None when it is anything else, or of no use."""
        try:
            packed = entry["header"]  # type: ignore[index]
            if len(packed) > 2 * _MAX_HEADER_BYTES:
                return None
            header = cls(text=base64.b64decode(packed, validate=True))
            is_usable = bool(header.encoding and header.space)
        except (binascii.Error, ConversionError, KeyError, TypeError, ValueError):
            return None
        return header if is_usable else None

    def to_json(self) -> Json:
        """Return the bytes as plain data."""
        return {"header": base64.b64encode(self.text).decode("ascii")}

    def to_dict(self) -> Json:
        """Return fields, and the user's keys and values, as plain data."""
        found: dict[Any, Json] = dict(self.fields)
        return {**found, "keys": {line.key: line.value for line in self.lines if line.key}}

    def attached(self) -> bytes:
        """Return the header of a file in which the data follow at once."""
        if not _PLACE_OF_DATA & self.fields.keys() and _END.search(self.text):
            return self.text
        magic = self.text.split(b"\n")[0].rstrip(b"\r")
        kept = [line.raw for line in self.lines if line.name not in _PLACE_OF_DATA]
        return b"\n".join([magic, *kept, b"", b""])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers, with the byte order of the file.

        Raises
        ------
        ConversionError
            For blocks, unknown types, and types of several bytes whose order is not stated.
        """
        name, endian = self._stated("type"), self.fields.get("endian", "").lower()
        code = dtype_code(name)
        if code is None:
            raise ConversionError(
                f"voxels of type {name[:80]!r} cannot be converted: integers of 8 to 64 bits, "
                "float and double can. To fix: save it as one of these"
            )
        if not code.endswith("1") and endian not in _BYTE_ORDERS:
            raise ConversionError(f"endian: {endian[:80]!r} is neither 'little' nor 'big'")
        return np.dtype(_BYTE_ORDERS.get(endian, "|") + code)

    @property
    def encoding(self) -> Encoding:
        """How the data are packed.

        Raises
        ------
        ConversionError
            For text, hexadecimal and unknown encodings.
        """
        name = self._stated("encoding").lower()
        if name not in _ENCODINGS:
            raise ConversionError(
                f"encoding: {name[:80]!r}: raw, gzip and bzip2 are read, numbers as text are not. "
                "To fix: save it in 3D Slicer, or with unu save -f nrrd -e gzip"
            )
        return _ENCODINGS[name]

    @property
    def axes(self) -> tuple[NrrdAxis, ...]:
        """All axes in the order of the file, that of neighbours first.

        Raises
        ------
        ConversionError
            When there is not one entry per axis, or a number is broken.
        """
        n = parse_integer("dimension", self._stated("dimension"))
        sizes = [parse_integer("sizes", word) for word in self._stated("sizes").split()]
        if not 1 <= n <= _MAX_NDIM or len(sizes) != n or min(sizes) < 1:
            raise ConversionError(
                f"dimension: {n}, sizes: {sizes[:_MAX_NDIM]}: one positive extent is needed for "
                f"each of 1 to {_MAX_NDIM} axes"
            )
        kinds = self._list("kinds", parse_words, n, "")
        labels = self._list("labels", parse_texts, n, "")
        units = self._list("units", parse_texts, n, "")
        directions = self._list(
            "spacedirections", partial(parse_vectors, "space directions"), n, None
        )
        spacings = self._list("spacings", partial(parse_floats, "spacings"), n, math.nan)
        minima = self._list("axismins", partial(parse_floats, "axis mins"), n, math.nan)
        spelling = "centers" if "centers" in self.fields else "centerings"
        centerings = self._list(spelling, parse_words, n, "")
        return tuple(
            NrrdAxis(
                size=sizes[i],
                kind=kinds[i],
                label=labels[i],
                unit=units[i],
                direction=directions[i],
                spacing=spacings[i],
                minimum=minima[i],
                centering=centerings[i],
            )
            for i in range(n)
        )

    @property
    def space(self) -> NrrdSpace:
        """The world.

        Raises
        ------
        ConversionError
            When a number is broken.
        """
        parse = partial(parse_vectors, "space origin")
        (origin,) = self._list("spaceorigin", parse, 1, None)
        return NrrdSpace(
            name=space_name(self.fields.get("space", "")),
            origin=origin,
            units=parse_texts(self.fields.get("spaceunits", "")),
        )

    def skip(self, name: Literal["lineskip", "byteskip"]) -> int:
        """Return how many lines or bytes come before the data.

        Raises
        ------
        ConversionError
            When it is no number.
        """
        return parse_integer(name, self.fields.get(name, "0"))

    def _stated(self, name: str) -> str:
        """Return the text of a field that must be there."""
        if name not in self.fields:
            raise ConversionError(f"the header does not state {name!r}")
        return self.fields[name]

    def _list(
        self, name: str, parse: Callable[[str], Sequence[T]], n: int, default: T
    ) -> Sequence[T]:
        """Return what a field says of every axis; the default where it is not there."""
        if name not in self.fields:
            return (default,) * n
        found = parse(self.fields[name])
        if len(found) != n:
            raise ConversionError(f"{name}: {len(found)} entries were found, {n} are needed")
        return found


def plan_header(
    *,
    base: NrrdHeader | None,
    dtype: np.dtype[Any],
    axes: Sequence[NrrdAxis],
    space: NrrdSpace,
) -> NrrdHeader:
    """Make a header for an array; what belongs to no array in particular is taken from `base`.

    That is comments, keys with values, ``content``, ``sample units``, ``old min`` and ``old max``,
    the encoding (gzip without a base), and while the space is the same the measurement frame.

    Raises
    ------
    ConversionError
        When NRRD has no such type or shape.
    """
    kind = type_name(dtype.str[1:])
    shape = tuple(axis.size for axis in reversed(axes))
    if kind is None or not 1 <= len(axes) <= _MAX_NDIM or 0 in shape:
        raise ConversionError(
            f"NRRD cannot hold an array of shape {shape} and type {dtype}: it has integers of 8 to "
            f"64 bits, float32 and float64, and 1 to {_MAX_NDIM} axes of one element or more. "
            "To fix: convert with .astype(...)"
        )
    endian = "big" if dtype.str[0] == ">" else "little"
    fields = {"type": kind, **_fields_of(axes, space), "endian": endian}
    fields["encoding"] = base.encoding if base else "gzip"
    stated = [f"{name}: {text}".encode() for name, text in fields.items() if text]
    has_space = any(axis.direction for axis in axes)
    is_same_space = base is not None and has_space and base.space.name == space.name
    followed = _OF_ANY_ARRAY | ({"measurementframe"} if is_same_space else set())
    kept = base.lines if base else ()
    lines = [
        b"NRRD0005",
        *([line.raw for line in kept if line.raw.startswith(b"#")] if base else _PREAMBLE),
        *stated,
        *(line.raw for line in kept if line.name in followed),
        *(line.raw for line in kept if line.key),
    ]
    return NrrdHeader(text=b"\n".join([*lines, b"", b""]))


def _fields_of(axes: Sequence[NrrdAxis], space: NrrdSpace) -> dict[str, str]:
    """Return what is stated of axes and world, in the order that readers need."""
    directions = [axis.direction for axis in axes]
    rank = max((len(direction) for direction in directions if direction), default=0)
    fields = {"dimension": str(len(axes))}
    if rank:
        fields |= {"space": space.name} if space.name else {"space dimension": str(rank)}
    fields |= {
        "sizes": " ".join(str(axis.size) for axis in axes),
        "spacings": format_floats([axis.spacing for axis in axes]),
        "axis mins": format_floats([axis.minimum for axis in axes]),
        "kinds": " ".join(axis.kind or "???" for axis in axes),
        "labels": format_texts([axis.label for axis in axes]),
        "units": format_texts([axis.unit for axis in axes]),
    }
    if rank:
        fields |= {
            "space directions": " ".join(map(format_vector, directions)),
            "space units": format_texts(space.units),
            "space origin": format_vector(space.origin),
        }
    return fields


def _line(raw: bytes) -> _Line:
    """Parse a line as Teem does: a field when its name is one, else a key with a value."""
    raw = raw.rstrip(b"\r")
    text = raw.decode("utf-8", "replace")
    if text.startswith("#"):
        return _Line(raw=raw)
    before, separator, value = text.partition(": ")
    name = before.replace(" ", "").lower()
    if separator and name in _FIELDS:
        return _Line(raw=raw, name=name, value=value.strip())
    key, separator, value = text.partition(":=")
    return _Line(raw=raw, key=key, value=value) if separator and key else _Line(raw=raw)
