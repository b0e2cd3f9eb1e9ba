"""BIDS JSON beside an image: read strictly, and written."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

from mlarray_xr.errors import ConversionError, MlaError
from mlarray_xr.foreign.sidecar_files import read_text
from mlarray_xr.format.limits import DEFAULT_LIMITS, expand_plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["json_text", "read_json"]


def read_json(paths: Sequence[str]) -> dict[str, Any] | None:
    """Read JSON files into one object: fields of later files override those of earlier ones.

    Returns
    -------
    dict or None
        Plain data; None without files.

    Raises
    ------
    ConversionError
        When one is no JSON object, has a field twice, or NaN, infinities or more than the metadata
        of an `.mla` file holds.

    Examples
    --------
    >>> with open("bold.json", "w") as file:
    ...     _ = file.write('{"RepetitionTime": 0.8}')
    >>> read_json(["bold.json"])
    {'RepetitionTime': 0.8}
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            found = json.loads(
                read_text(path),
                object_pairs_hook=_object,
                parse_constant=_refuse,
                parse_float=_finite,
            )
            if type(found) is not dict:
                raise TypeError(f"{type(found).__name__} where an object is needed")  # noqa: TRY301
            merged.update(cast("dict[str, Any]", expand_plain(found, limits=DEFAULT_LIMITS)))
        except ConversionError:
            raise
        except (MlaError, RecursionError, TypeError, ValueError) as error:
            raise ConversionError(
                f"{path}: no JSON object that can be kept: {error or type(error).__name__}. To "
                "fix: (1) correct it; (2) rename it, and it is not read"
            ) from error
    return merged if paths else None


def json_text(bids: Mapping[str, Any]) -> str:
    r"""Return a JSON file.

    Raises
    ------
    ConversionError
        When what a file says is BIDS is nothing that JSON can hold.

    Examples
    --------
    >>> json_text({"RepetitionTime": 0.8})
    '{\n  "RepetitionTime": 0.8\n}\n'
    """
    try:
        return json.dumps(bids, indent=2, allow_nan=False) + "\n"
    except (RecursionError, TypeError, ValueError) as error:
        raise ConversionError(
            f'what source["bids"] of the file holds is no JSON object: {error}. To fix: write the '
            "array with metadata of your own, to_mla(..., metadata=...)"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object of which no field occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {name[:64]!r} occurs twice")
        found[name] = value
    return found


def _refuse(text: str) -> Any:
    """Refuse the words that Python takes for numbers and JSON does not know."""
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    """Read a number; one that float64 does not reach is refused."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:32]} is beyond float64")
    return value
