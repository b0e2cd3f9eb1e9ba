"""The compression of a file as one value: codec, level, filter and, if asked for, kept bits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.html_table import facts_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["DEFAULT_CODEC", "Codec", "CodecParams"]

_CODEC_IDS = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}
_FILTER_IDS = {"none": 0, "shuffle": 1, "bitshuffle": 2}
_LEVELS = {str(level): level for level in range(10)}
_DEFAULT_FILTER = "shuffle"
_AUTO_SPLIT = 3
_FILTER_SLOTS = 6
_MAX_ITEMSIZE = 255
_TRUNC_PREC = 4
_TRUNCATION = re.compile(r"trunc([1-9][0-9]?)")
# Bits of the mantissa of the types that Blosc2 truncates, without the one that is not stored.
_MANTISSA_BITS = {np.dtype(np.float32): 23, np.dtype(np.float64): 52}
_MOST_KEPT_BITS = max(_MANTISSA_BITS.values()) - 1

_PARTIAL = "Blosc2 reads parts of such chunks back wrong; parts are what patches are read from"
_ZFP = (
    "it loses bits, and encoding chunks one by one, as parallel writing does, gives wrong values "
    "without an error; '...-truncN' is the lossy compression that works"
)
_PLUGIN = "its decoder is a plugin that a reader would have to load and trust"
_REASONS = {
    **dict.fromkeys(("dict", "dictionary", "delta"), _PARTIAL),
    **dict.fromkeys(("zfp", "zfp_acc", "zfp_prec", "zfp_rate"), _ZFP),
    **dict.fromkeys(("grok", "htj2k", "j2k", "openhtj2k", "openzl"), _PLUGIN),
    **dict.fromkeys(("trunc", "trunc_prec"), "say how many bits are kept: '...-truncN'"),
    "bytedelta": "Blosc2 replaces its parameter and drops it for bytes; it gained 6 % on scans",
    "int_trunc": "it loses bits of integers",
    "ndlz": "it encodes 2-D bytes only",
}


class CodecParams(TypedDict):
    """Compression parameters as plain numbers, named as ``blosc2.CParams`` names them."""

    codec: int
    clevel: int
    typesize: int
    nthreads: int
    splitmode: int
    filters: list[int]
    filters_meta: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One of the codecs that every Blosc2 reader has, with its level and filter.

    Lossless, unless `mantissa_bits` says how much of floating point numbers is kept.

    Parameters
    ----------
    name : {"blosclz", "lz4", "lz4hc", "zlib", "zstd"}
        The codec.
    level : int
        From 0 (stored) to 9 (smallest).
    filter : {"none", "shuffle", "bitshuffle"}
        What regroups the bytes or bits of the elements before the codec sees them.
    mantissa_bits : int or None
        None keeps every bit. A number keeps that many stored bits of the mantissa and clears the
        others: values move toward zero by less than ``2 ** -mantissa_bits`` of themselves. For
        float32 (1 to 22) and float64 (1 to 51) in native byte order.

    Raises
    ------
    LayoutError
        If a name, the level or the number of bits is not one of those above; of codecs and filters
        that Blosc2 has and this package refuses, the message gives the reason.

    Examples
    --------
    >>> Codec.parse("zstd-1-bitshuffle")
    Codec(name='zstd', level=1, filter='bitshuffle', mantissa_bits=None)
    >>> str(Codec(name="lz4hc", level=8))
    'lz4hc-8'
    >>> Codec.parse("zstd-1-shuffle-trunc12").is_lossy
    True
    """

    name: str
    level: int
    filter: str = _DEFAULT_FILTER
    mantissa_bits: int | None = None

    def __post_init__(self) -> None:
        """Refuse unknown names, levels and numbers of bits."""
        if self.name not in _CODEC_IDS:
            raise LayoutError(_unknown("codec", self.name, _CODEC_IDS))
        if type(self.level) is not int or self.level not in _LEVELS.values():
            raise LayoutError(f"codec level {self.level!r} is not an integer from 0 to 9")
        if self.filter not in _FILTER_IDS:
            raise LayoutError(_unknown("filter", self.filter, _FILTER_IDS))
        bits = self.mantissa_bits
        if bits is not None and (type(bits) is not int or not 1 <= bits <= _MOST_KEPT_BITS):
            raise LayoutError(f"{bits!r} kept mantissa bits are not an integer from 1 to 51")

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Return the codec that a text spells.

        It is ``"name-level"``, ``"name-level-filter"`` or ``"name-level-filter-truncN"``. Without a
        filter it is ``shuffle``. ``truncN`` keeps N mantissa bits: such a codec is lossy, and
        `to_mla` wants ``lossy=True`` with it.

        Parameters
        ----------
        text : str
            For example ``"lz4hc-8"``, ``"zstd-1-bitshuffle"`` or ``"zstd-1-shuffle-trunc12"``.

        Raises
        ------
        LayoutError
            If the text has another form, or names something unknown or refused.

        Examples
        --------
        >>> Codec.parse("lz4hc-8") == DEFAULT_CODEC
        True
        """
        name, *rest = text.split("-")
        for part in (name, *rest):
            if part.lower() in _REASONS:
                raise LayoutError(f"codec {text!r}: {part!r} is refused: {_REASONS[part.lower()]}")
        kept = _TRUNCATION.fullmatch(rest[2]) if len(rest) == 3 else None
        if len(rest) not in (1, 2, 3) or rest[0] not in _LEVELS or (len(rest) == 3 and not kept):
            raise LayoutError(
                f"codec {text!r} is not spelled 'name-level', 'name-level-filter' or "
                "'name-level-filter-truncN', such as 'lz4hc-8', 'zstd-1-bitshuffle' or "
                f"'zstd-1-shuffle-trunc12'; names: {', '.join(_CODEC_IDS)}; levels: 0 to 9; "
                f"filters: {', '.join(_FILTER_IDS)}"
            )
        return cls(
            name=name,
            level=_LEVELS[rest[0]],
            filter=rest[1] if rest[1:] else _DEFAULT_FILTER,
            mantissa_bits=int(kept[1]) if kept else None,
        )

    def __str__(self) -> str:
        """Spell the codec as `parse` reads it, as short as possible."""
        spelled = f"{self.name}-{self.level}"
        if self.mantissa_bits is not None:
            return f"{spelled}-{self.filter}-trunc{self.mantissa_bits}"
        return spelled if self.filter == _DEFAULT_FILTER else f"{spelled}-{self.filter}"

    def _repr_html_(self) -> str:
        """Return a table for notebooks."""
        facts = (
            ("codec", f"{self.name}, level {self.level}"),
            ("filter", self.filter),
            ("kept", f"{self.mantissa_bits} mantissa bits" if self.is_lossy else "every bit"),
        )
        return facts_table(facts)

    @property
    def is_lossy(self) -> bool:
        """Whether reading gives other values than were written."""
        return self.mantissa_bits is not None

    def cparams(self, itemsize: int, *, dtype: np.dtype[Any] | None = None) -> CodecParams:
        """Return the parameters of ``blosc2.CParams`` for elements of `itemsize` bytes.

        All values are plain ints, fresh on every call. ``blosc2.CParams(**params)`` turns them into
        the enumerations that Blosc2 functions want; pass that object on, as
        ``blosc2.compress2`` takes no plain ints. Encoding is single-threaded: the bytes are then
        reproducible, and parallelism belongs to the caller.

        Parameters
        ----------
        itemsize : int
            Bytes per element, from 1 to 255: Blosc2 does not read back files of larger ones.
        dtype : numpy.dtype, optional
            Type of the elements; a lossy codec needs it, as Blosc2 sees bytes only and would cut
            integers, complex numbers and foreign byte orders anywhere.

        Raises
        ------
        LayoutError
            If the item size is outside that range, or a lossy codec does not fit the type.

        Examples
        --------
        >>> DEFAULT_CODEC.cparams(2)["filters"]
        [0, 0, 0, 0, 0, 1]
        """
        if not 1 <= itemsize <= _MAX_ITEMSIZE:
            raise LayoutError(
                f"elements of {itemsize} bytes cannot be stored; Blosc2 reads back 1 to "
                f"{_MAX_ITEMSIZE} bytes per element; use a smaller dtype"
            )
        filters, filters_meta = [0] * _FILTER_SLOTS, [0] * _FILTER_SLOTS
        filters[-1] = _FILTER_IDS[self.filter]
        if self.mantissa_bits is not None:
            self._check_truncates(dtype)
            # Filters run from first to last: bits are cleared before bytes or bits are regrouped.
            filters[-2], filters_meta[-2] = _TRUNC_PREC, self.mantissa_bits
        return CodecParams(
            codec=_CODEC_IDS[self.name],
            clevel=self.level,
            typesize=itemsize,
            nthreads=1,
            splitmode=_AUTO_SPLIT,
            filters=filters,
            filters_meta=filters_meta,
        )

    def truncated(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the values as they will be read: a copy with bits cleared, or `values` itself.

        Blosc2 clears the bits too, but not in chunks that do not compress. NaN stays NaN: those
        whose only set bits would be cleared are made quiet ones.

        Parameters
        ----------
        values : numpy.ndarray
            Any shape; of a lossy codec native float32 or float64.

        Raises
        ------
        LayoutError
            If a lossy codec does not fit the type.

        Examples
        --------
        >>> Codec.parse("zstd-1-shuffle-trunc2").truncated(np.float32([1.3, -1.3, 7.9]))
        array([ 1.25, -1.25,  7.  ], dtype=float32)
        """
        if self.mantissa_bits is None:
            return values
        n_bits = self._check_truncates(values.dtype)
        bits = np.array(values, order="C").view(f"u{values.dtype.itemsize}")
        bits[np.isnan(values)] |= bits.dtype.type(1 << (n_bits - 1))
        bits &= ~bits.dtype.type((1 << (n_bits - self.mantissa_bits)) - 1)
        return bits.view(values.dtype)

    def _check_truncates(self, dtype: np.dtype[Any] | None) -> int:
        """Return the mantissa bits of a type, refusing those that cannot be truncated."""
        n_bits = None if dtype is None else _MANTISSA_BITS.get(dtype)
        if n_bits is None or self.mantissa_bits is None or self.mantissa_bits >= n_bits:
            raise LayoutError(
                f"codec '{self}' keeps {self.mantissa_bits} mantissa bits, which {dtype} cannot "
                "lose: native float32 has 23, float64 52, other types none. To fix: leave "
                "'-truncN' away, or use a smaller N"
            )
        return n_bits


def _unknown(what: str, name: object, known: dict[str, int]) -> str:
    """Say that a name is not a codec or filter, and why not where it is one of Blosc2's."""
    reason = _REASONS.get(name.lower()) if isinstance(name, str) else None
    because = f": {name!r} is refused: {reason}" if reason else ""
    return f"{what} {name!r} is not one of {', '.join(known)}{because}"


DEFAULT_CODEC = Codec(name="lz4hc", level=8)
"""What the reference package writes by default: LZ4HC, level 8, after a byte shuffle."""
