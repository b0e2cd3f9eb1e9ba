"""The pipeline of a frame: how its chunks are compressed, as far as the header says.

Bytes 25 to 28 and 71 to 85 of the header (C-Blosc2, ``README_CFRAME_FORMAT.rst``). They are
defaults for chunks that are added; every chunk says for itself how it was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Pipeline", "codec_name", "filter_name", "parse_pipeline"]

_CODECS = {0: "blosclz", 1: "lz4", 2: "lz4hc", 4: "zlib", 5: "zstd"}
_FILTERS = {
    1: "shuffle",
    2: "bitshuffle",
    3: "delta",
    4: "trunc_prec",
    32: "ndcell",
    33: "ndmean",
    35: "bytedelta",
    36: "int_trunc",
}
# Exact, and of one chunk alone. The others round, need the place of the chunk in the array, or
# (delta) are not read back from disk by C-Blosc2 itself.
_REPEATABLE_FILTERS = (0, 1, 2, 35)
# Ids of plugins do not fit the four bits; byte 77 holds them.
_PLUGIN_CODECS = (6, 15)
_MAX_LEVEL = 9
_MAX_ITEMSIZE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Codec and filters that a frame's header names for its chunks.

    Examples
    --------
    >>> plain = Pipeline(
    ...     codec=5,
    ...     level=1,
    ...     split_mode=3,
    ...     filters=(0, 0, 0, 0, 0, 1),
    ...     filters_meta=(0, 0, 0, 0, 0, 0),
    ...     uses_dictionary=False,
    ... )
    >>> str(plain), plain.obstacle(2)
    ('zstd-1-shuffle', None)
    """

    codec: int
    """Blosc2's id."""
    level: int
    """Compression level."""
    split_mode: int
    """How blocks are split into streams, 1 to 4."""
    filters: tuple[int, ...]
    """Ids of the six filters."""
    filters_meta: tuple[int, ...]
    """The parameter of each."""
    uses_dictionary: bool
    """Whether the blocks of a chunk share a dictionary."""

    def __str__(self) -> str:
        """Name codec, level and filters."""
        used = [filter_name(number) for number in self.filters if number]
        return "-".join([codec_name(self.codec), str(self.level), *(used or ["none"])])

    def obstacle(self, itemsize: int) -> str | None:
        """Say why chunks cannot be added that are compressed like this; None when they can.

        Parameters
        ----------
        itemsize
            Bytes of an element.
        """
        if self.codec not in _CODECS or not 0 <= self.level <= _MAX_LEVEL:
            return f"codec {self.codec} of level {self.level} is a plugin's, or unknown"
        if self.uses_dictionary:
            return "blocks share a dictionary, which python-blosc2 does not read back from disk"
        for number in self.filters:
            if number not in _REPEATABLE_FILTERS:
                return f"filter {filter_name(number)!r} rounds values, or is not made here"
        if not 1 <= itemsize <= _MAX_ITEMSIZE:
            return f"elements of {itemsize} bytes are not read back by Blosc2"
        return None

    def cparams(self, itemsize: int) -> dict[str, Any]:
        """Return the arguments of ``blosc2.CParams``, plain numbers.

        One thread: with two the same chunk gives different bytes.
        """
        return {
            "codec": self.codec,
            "clevel": self.level,
            "typesize": itemsize,
            "nthreads": 1,
            "splitmode": self.split_mode,
            "filters": list(self.filters),
            "filters_meta": list(self.filters_meta),
        }


def parse_pipeline(head: bytes) -> Pipeline:
    """Return the pipeline in a frame header that has been checked.

    Parameters
    ----------
    head
        At least the first 87 bytes of the frame.
    """
    codec = head[27] & 0x0F
    return Pipeline(
        codec=head[77] if codec in _PLUGIN_CODECS else codec,
        level=head[27] >> 4,
        split_mode=(head[28] & 3) + 1,
        filters=tuple(head[71:77]),
        filters_meta=tuple(head[79:85]),
        uses_dictionary=bool(head[85] & 1),
    )


def codec_name(number: int) -> str:
    """Return the name of a codec.

    Examples
    --------
    >>> codec_name(2), codec_name(34)
    ('lz4hc', 'codec 34')
    """
    return _CODECS.get(number, f"codec {number}")


def filter_name(number: int) -> str:
    """Return the name of a filter."""
    return _FILTERS.get(number, f"filter {number}")
