"""What the fields of a NRRD header hold, as values, and the text that they are written as.

Names are those of the format, http://teem.sourceforge.net/nrrd/format.html, and of Teem's own
tables (nrrd/enumsNrrd.c), on which 3D Slicer and ITK are built: not case sensitive.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mlarray_xr.errors import ConversionError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "NrrdAxis",
    "NrrdSpace",
    "Vector",
    "dtype_code",
    "format_floats",
    "format_texts",
    "format_vector",
    "parse_floats",
    "parse_integer",
    "parse_texts",
    "parse_vectors",
    "parse_words",
    "space_name",
    "type_name",
]

Vector = tuple[float, ...]

_SHOWN: Final = 80
_UNKNOWN: Final = ("???", "none")
_QUOTED: Final = re.compile(r'"((?:\\"|[^"])*)"')
_VECTOR: Final = re.compile(r"none|\([^()]*\)")

_TYPES: Final = {
    "i1": "signed char|int8|int8_t",
    "u1": "unsigned char|uchar|uint8|uint8_t",
    "i2": "short|short int|signed short|signed short int|int16|int16_t",
    "u2": "unsigned short|ushort|unsigned short int|uint16|uint16_t",
    "i4": "int|signed int|int32|int32_t",
    "u4": "unsigned int|uint|uint32|uint32_t",
    "i8": "long long int|longlong|long long|signed long long|signed long long int|int64|int64_t",
    "u8": "unsigned long long int|ulonglong|unsigned long long|uint64|uint64_t",
    "f4": "float",
    "f8": "double",
}
_CODES: Final = {name: code for code, names in _TYPES.items() for name in names.split("|")}

_SPACES: Final = (
    "right-anterior-superior",
    "left-anterior-superior",
    "left-posterior-superior",
    "scanner-xyz",
    "3D-right-handed",
    "3D-left-handed",
    "right-up",
    "right-down",
)
_SHORT: Final = {
    "ras": "right-anterior-superior",
    "las": "left-anterior-superior",
    "lps": "left-posterior-superior",
}
_SHORT_WITH_TIME: Final = {f"{short}t": f"{name}-time" for short, name in _SHORT.items()}
_SPACE_NAMES: Final = {
    **{
        re.sub("[ -]", "", name.lower()): name
        for base in _SPACES
        for name in (base, f"{base}-time")
    },
    **_SHORT,
    **_SHORT_WITH_TIME,
    "scannerxyzt": "scanner-xyz-time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NrrdAxis:
    """What a header says of one axis; NaN and empty texts where it says nothing."""

    size: int
    """Extent."""
    kind: str = ""
    """What the axis is, lower case, such as ``"domain"`` or ``"list"``."""
    label: str = ""
    """A name, free text."""
    unit: str = ""
    """Unit of spacing and minimum, free text."""
    direction: Vector | None = None
    """Step to the next sample in world space; None for axes that do not run through it."""
    spacing: float = math.nan
    """Step of an axis without a direction."""
    minimum: float = math.nan
    """Where an axis without a direction starts."""
    centering: str = ""
    """``"cell"`` when it starts half a step before the first sample, ``"node"`` when at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NrrdSpace:
    """What a header says of the world; empty where it says nothing."""

    name: str = ""
    """Name of the world, such as ``"left-posterior-superior"``."""
    origin: Vector | None = None
    """Position of the first sample."""
    units: tuple[str, ...] = ()
    """Unit along each axis of the world, free text."""


def dtype_code(name: str) -> str | None:
    """Return NumPy's type, without byte order, for the name of one; None for others.

    Examples
    --------
    >>> dtype_code("Unsigned Short"), dtype_code("block")
    ('u2', None)
    """
    return _CODES.get(" ".join(name.lower().split()))


def type_name(code: str) -> str | None:
    """Return the name that Teem writes for NumPy's type without byte order; None for others."""
    return _TYPES[code].split("|")[0] if code in _TYPES else None


def space_name(text: str) -> str:
    """Return the usual spelling of the name of a world, nothing for unknown ones.

    Examples
    --------
    >>> space_name("LPS"), space_name("Right Anterior Superior"), space_name("moon")
    ('left-posterior-superior', 'right-anterior-superior', '')
    """
    return _SPACE_NAMES.get(re.sub("[ -]", "", text.lower()), "")


def parse_integer(name: str, text: str) -> int:
    """Parse the integer in a field; `ConversionError` names the field when there is none."""
    try:
        return int(text)
    except ValueError as error:
        raise ConversionError(f"{name}: {text[:_SHOWN]!r} is no integer") from error


def parse_words(text: str) -> tuple[str, ...]:
    """Parse words, lower case, unknown ones empty."""
    return tuple("" if word in _UNKNOWN else word for word in text.lower().split())


def parse_texts(text: str) -> tuple[str, ...]:
    r"""Parse texts in quotes.

    Examples
    --------
    >>> parse_texts('"" "R>L" "6\\" tube"')
    ('', 'R>L', '6" tube')
    """
    return tuple(found.replace('\\"', '"') for found in _QUOTED.findall(text))


def parse_floats(name: str, text: str) -> Vector:
    """Parse numbers, NaN and infinity included; `ConversionError` names the field."""
    try:
        return tuple(map(float, text.split()))
    except ValueError as error:
        raise ConversionError(f"{name}: {text[:_SHOWN]!r} are no numbers") from error


def parse_vectors(name: str, text: str) -> tuple[Vector | None, ...]:
    """Parse vectors; None for ``none`` and for those that are NaN throughout.

    Raises
    ------
    ConversionError
        When the text is anything else, or holds infinity, or NaN beside numbers.

    Examples
    --------
    >>> parse_vectors("space directions", "none (1,0) (0, 2.5)")
    (None, (1.0, 0.0), (0.0, 2.5))
    """
    if _VECTOR.sub("", text).strip():
        raise ConversionError(f"{name}: {text[:_SHOWN]!r} are no vectors")
    vectors = []
    for found in _VECTOR.findall(text):
        inside = "" if found == "none" else found.strip("()").replace(",", " ")
        vector = parse_floats(name, inside)
        is_absent = all(map(math.isnan, vector))
        if not is_absent and not all(map(math.isfinite, vector)):
            raise ConversionError(f"{name}: {found[:_SHOWN]!r} holds NaN or infinity")
        vectors.append(None if is_absent else vector)
    return tuple(vectors)


def format_floats(numbers: Sequence[float]) -> str:
    """Write numbers that come back the same; nothing when all are NaN."""
    return "" if all(map(math.isnan, numbers)) else " ".join(map(repr, numbers))


def format_vector(vector: Vector | None) -> str:
    """Write a vector that comes back the same."""
    return "none" if vector is None else f"({','.join(map(repr, vector))})"


def format_texts(texts: Sequence[str]) -> str:
    """Write texts in quotes; nothing when all are empty."""
    escaped = [text.replace('"', '\\"') for text in texts]
    return " ".join(f'"{text}"' for text in escaped) if any(texts) else ""
