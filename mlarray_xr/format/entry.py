"""What single entries of the metadata may be, and the one wording of their errors."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import MetadataError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "check_entries",
    "check_entry",
    "check_square",
    "is_box",
    "is_box_label",
    "is_dict",
    "is_extent",
    "is_number",
    "is_text",
    "refusal",
]


def check_entry(name: str, value: object, wanted: str, is_valid: Callable[[Any], bool]) -> None:
    """Refuse a value that is neither None nor valid."""
    if value is not None and not is_valid(value):
        raise refusal(name, f"{wanted} or None", type(value).__name__)


def check_entries(name: str, value: Any, wanted: str, is_valid: Callable[[Any], bool]) -> None:
    """Refuse what is neither None nor a tuple of valid entries."""
    if value is None:
        return
    if type(value) is not tuple:
        raise refusal(name, f"a tuple of {wanted} or None", type(value).__name__)
    for i, entry in enumerate(value):
        if not is_valid(entry):
            raise refusal(name, wanted, f"{type(entry).__name__} at [{i}]")


def check_square(name: str, value: Any) -> None:
    """Refuse what is neither None nor a square of numbers."""
    check_entries(name, value, "rows of numbers", is_vector)
    if value is not None and any(len(row) != len(value) for row in value):
        lengths = reprlib.repr([len(row) for row in value])
        raise refusal(name, "as many columns as rows", f"{len(value)} rows of {lengths} columns")


def is_number(value: object) -> bool:
    """Tell plain numbers, bools included as in the reference, that fit 64 bit when integer."""
    if type(value) is int:
        return -(2**63) <= value < 2**64
    return type(value) in {float, bool}


def is_vector(value: object) -> bool:
    """Tell tuples of numbers."""
    return type(value) is tuple and all(is_number(item) for item in value)


def is_text(value: object) -> bool:
    """Tell texts."""
    return type(value) is str


def is_dict(value: object) -> bool:
    """Tell dicts."""
    return type(value) is dict


def is_extent(value: object) -> bool:
    """Tell array extents."""
    return type(value) is int and 0 <= value < 2**63


def is_box(value: object) -> bool:
    """Tell tuples of (low, high) pairs; the reference refuses bools here."""
    return type(value) is tuple and all(
        is_vector(pair) and len(pair) == 2 and bool not in map(type, pair) for pair in value
    )


def is_box_label(value: object) -> bool:
    """Tell texts and numbers; the reference refuses bools here."""
    return is_text(value) or (is_number(value) and type(value) is not bool)


def refusal(name: str, wanted: str, found: str) -> MetadataError:
    """Build the error for an entry that the schema does not allow; no value is shown."""
    return MetadataError(
        f"metadata entry {name} must be {wanted}, found {found}. "
        "To fix: correct the entry with the program that wrote it."
    )
