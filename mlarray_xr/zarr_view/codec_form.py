"""What the codecs of this package are configured with, as JSON has it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.format.chunk_form import ChunkForm
from mlarray_xr.planning.chunk_fetch import plan_even_blocks
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec

__all__ = ["ARRAY_CODEC", "CHUNK_CODEC", "codec_of", "configuration_of", "extents_of", "form_of"]

ARRAY_CODEC = "mlarray_xr.b2nd"
"""Name of the codec from arrays to bytes."""
CHUNK_CODEC = "mlarray_xr.b2nd_chunk"
"""Name of the codec from bytes to bytes, and of that for Zarr 2."""


def configuration_of(
    data: Mapping[str, Any],
    *,
    name: str,
    known: frozenset[str],
    needed: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Return the configuration in a codec's JSON.

    Raises
    ------
    LayoutError
        When it is that of another codec, or says what this one does not know.
    """
    configuration = data.get("configuration") or {}
    if data.get("name") != name or not isinstance(configuration, Mapping):
        msg = f"{str(dict(data))[:200]} does not configure the codec {name!r}"
        raise LayoutError(msg)
    unknown = sorted(map(str, configuration.keys() - known))
    if unknown:
        msg = (
            f"codec {name!r} is configured with {str(unknown)[:200]}; known are {sorted(known)}. "
            "To fix: a newer version of mlarray_xr may know them"
        )
        raise LayoutError(msg)
    if missing := sorted(needed - configuration.keys()):
        msg = f"codec {name!r} is configured without {missing}"
        raise LayoutError(msg)
    return dict(configuration)


def extents_of(extents: object) -> tuple[int, ...] | None:
    """Return chunks or blocks as a tuple of plain integers, None as it is.

    Raises
    ------
    LayoutError
        When they are no list of integers.
    """
    if extents is None:
        return None
    entries = extents if isinstance(extents, list | tuple) else (extents,)
    if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in entries):
        msg = f"chunks or blocks {str(extents)[:200]} are no list of integers"
        raise LayoutError(msg)
    return tuple(int(n) for n in entries)


def codec_of(text: object) -> Codec:
    """Return the compression that a configuration spells, or the default one.

    Raises
    ------
    LayoutError
        When it is none.
    """
    if text is None:
        return DEFAULT_CODEC
    if not isinstance(text, str):
        msg = f"codec {str(text)[:200]} is not a text such as 'lz4hc-8'"
        raise LayoutError(msg)
    return Codec.parse(text)


@lru_cache(maxsize=256, typed=True)
def form_of(
    typesize: int,
    chunks: tuple[int, ...] | None,
    blocks: tuple[int, ...] | None,
    shape: tuple[int, ...],
) -> tuple[ChunkForm, ChunkForm]:
    """Return the form of a chunk as it was encoded, and as an array of `shape`.

    Parameters
    ----------
    typesize
        Bytes of an element.
    chunks
        Extents of the chunk, None for those of `shape`.
    blocks
        Extents of a block, None for those of `plan_even_blocks`.
    shape
        Of the chunk in its array, which may have more axes of extent 1.

    Raises
    ------
    LayoutError
        When these do not fit each other.
    """
    extents = shape if chunks is None else chunks
    inner = plan_even_blocks(extents, itemsize=typesize) if blocks is None else blocks
    form = ChunkForm(typesize=typesize, chunks=extents, blocks=inner)
    return form, form.spread(shape)
