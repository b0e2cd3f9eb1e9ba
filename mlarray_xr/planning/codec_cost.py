"""What codecs cost to read and to write: a model, fitted once, the same on every machine.

Fitted to 26 arrays that were written with 27 codecs and read back in patches by one thread of an
x86-64 server: MRI, CT, labels, masks, z-scored and continuous scans, maps, photographs, complex
images and series, of 1 to 8 bytes per element.

*Reading*, ns per decoded byte, where ``r`` is stored over decoded bytes::

    flat + hump * r * (1 - r) + unfiltering

A codec is busiest with data that it halves: what does not compress is copied, and what compresses
well is few and long copies. Relative speeds of the codecs on one array are missed by 22 % (root
mean square over 28 arrays), by a factor of 2.3 at worst.

*Writing*, ns per decoded byte, is one number per codec, level and filter: the geometric mean over
the arrays. Single arrays differ from it by a factor of 1.7 (root mean square), by 11 at worst: how
long a search takes depends on what there is to find.

Only ratios of costs are used, so that the unit does not matter.
"""

from __future__ import annotations

from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec

__all__ = ["WITH_COSTS", "decode_cost", "encode_cost"]

# (flat, hump) by decoder and filter. LZ4 and LZ4HC share their decoder.
_DECODING = {
    ("lz4", "none"): (0.43, 2.25),
    ("lz4", "shuffle"): (0.51, 0.78),
    ("lz4", "bitshuffle"): (0.51, 0.0),
    ("zstd", "none"): (1.10, 5.4),
    ("zstd", "shuffle"): (0.66, 4.8),
    ("zstd", "bitshuffle"): (0.81, 2.0),
}
# By filter and bytes per element, beyond what is in the table above; other sizes count as the next
# smaller one. Some sizes have no vector code in C-Blosc2: its shuffle of single bytes, which
# changes nothing, costs more to undo than LZ4.
_UNFILTERING = {
    "none": {1: 0.0},
    "shuffle": {1: 1.4, 2: 0.0, 3: 0.8, 4: 0.0, 5: 0.8, 8: 0.0},
    "bitshuffle": {1: 1.0, 2: 0.46, 4: 0.31, 8: 0.16},
}
# By codec and level, then filter. Blosc2's LZ4 level 9 is LZ4 as others know it (lower levels look
# for fewer matches), its LZ4HC level 1 is LZ4's medium strategy, its ZSTD levels 1, 3 and 5 are
# Zstandard's 1, 5 and 9.
_ENCODING = {
    ("lz4", 9): {"none": 1.6, "shuffle": 1.5, "bitshuffle": 1.6},
    ("lz4hc", 1): {"none": 3.7, "shuffle": 3.0, "bitshuffle": 2.9},
    ("lz4hc", 5): {"none": 9.4, "shuffle": 8.8, "bitshuffle": 7.1},
    ("zstd", 1): {"none": 2.5, "shuffle": 3.0, "bitshuffle": 2.5},
    ("zstd", 3): {"none": 6.4, "shuffle": 6.7, "bitshuffle": 4.6},
    ("zstd", 5): {"none": 9.3, "shuffle": 18.8, "bitshuffle": 6.8},
    (DEFAULT_CODEC.name, DEFAULT_CODEC.level): {DEFAULT_CODEC.filter: 15.4},
}

WITH_COSTS = tuple(
    Codec(name=name, level=level, filter=filter_)
    for (name, level), by_filter in _ENCODING.items()
    for filter_ in by_filter
)
"""The codecs whose costs are known."""


def decode_cost(codec: Codec, *, itemsize: int, ratio: float) -> float:
    """Return the modelled time of reading, ns per decoded byte.

    Parameters
    ----------
    codec : Codec
        One of `WITH_COSTS`.
    itemsize : int
        Bytes per element.
    ratio : float
        Decoded over stored bytes; below 1 counts as 1.

    Examples
    --------
    >>> decode_cost(Codec.parse("lz4-9-none"), itemsize=4, ratio=1.0)
    0.43
    """
    flat, hump = _DECODING["zstd" if codec.name == "zstd" else "lz4", codec.filter]
    stored = min(1.0, 1 / ratio)
    by_size = _UNFILTERING[codec.filter]
    nearest = max(size for size in by_size if size <= itemsize)
    return flat + hump * stored * (1 - stored) + by_size[nearest]


def encode_cost(codec: Codec) -> float:
    """Return the modelled time of writing, ns per decoded byte, with one of `WITH_COSTS`.

    Examples
    --------
    >>> encode_cost(DEFAULT_CODEC)
    15.4
    """
    return _ENCODING[codec.name, codec.level][codec.filter]
