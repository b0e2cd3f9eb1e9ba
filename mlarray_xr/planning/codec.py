"""The compression of a file as one value: codec, level and filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from mlarray_xr.errors import LayoutError

__all__ = ["DEFAULT_CODEC", "Codec", "CodecParams"]

_CODEC_IDS = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}
_FILTER_IDS = {"none": 0, "shuffle": 1, "bitshuffle": 2}
_LEVELS = {str(level): level for level in range(10)}
_DEFAULT_FILTER = "shuffle"
_AUTO_SPLIT = 3
_FILTER_SLOTS = 6
_MAX_ITEMSIZE = 255


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
    """One of the lossless codecs that every Blosc2 reader has, with its level and filter.

    Parameters
    ----------
    name : {"blosclz", "lz4", "lz4hc", "zlib", "zstd"}
        The codec.
    level : int
        From 0 (stored) to 9 (smallest).
    filter : {"none", "shuffle", "bitshuffle"}
        What regroups the bytes or bits of the elements before the codec sees them.

    Raises
    ------
    LayoutError
        If a name or the level is not one of those above.

    Examples
    --------
    >>> Codec.parse("zstd-1-bitshuffle")
    Codec(name='zstd', level=1, filter='bitshuffle')
    >>> str(Codec(name="lz4hc", level=8))
    'lz4hc-8'
    """

    name: str
    level: int
    filter: str = _DEFAULT_FILTER

    def __post_init__(self) -> None:
        """Refuse unknown names and levels."""
        if self.name not in _CODEC_IDS:
            raise LayoutError(f"codec {self.name!r} is not one of {', '.join(_CODEC_IDS)}")
        if type(self.level) is not int or self.level not in _LEVELS.values():
            raise LayoutError(f"codec level {self.level!r} is not an integer from 0 to 9")
        if self.filter not in _FILTER_IDS:
            raise LayoutError(f"filter {self.filter!r} is not one of {', '.join(_FILTER_IDS)}")

    @classmethod
    def parse(cls, text: str) -> Codec:
        """Return the codec that ``"name-level"`` or ``"name-level-filter"`` spells.

        Without a filter it is ``shuffle``.

        Parameters
        ----------
        text : str
            For example ``"lz4hc-8"`` or ``"zstd-1-bitshuffle"``.

        Raises
        ------
        LayoutError
            If the text has another form or names something unknown.

        Examples
        --------
        >>> Codec.parse("lz4hc-8") == DEFAULT_CODEC
        True
        """
        name, *rest = text.split("-")
        if len(rest) not in (1, 2) or rest[0] not in _LEVELS:
            raise LayoutError(
                f"codec {text!r} is not spelled 'name-level' or 'name-level-filter', such as "
                f"'lz4hc-8' or 'zstd-1-bitshuffle'; names: {', '.join(_CODEC_IDS)}; "
                f"levels: 0 to 9; filters: {', '.join(_FILTER_IDS)}"
            )
        chosen = rest[1] if rest[1:] else _DEFAULT_FILTER
        return cls(name=name, level=_LEVELS[rest[0]], filter=chosen)

    def __str__(self) -> str:
        """Spell the codec as `parse` reads it; the filter only if it is not ``shuffle``."""
        spelled = f"{self.name}-{self.level}"
        return spelled if self.filter == _DEFAULT_FILTER else f"{spelled}-{self.filter}"

    def cparams(self, itemsize: int) -> CodecParams:
        """Return the parameters of ``blosc2.CParams`` for elements of `itemsize` bytes.

        All values are plain ints, fresh on every call. ``blosc2.CParams(**params)`` turns them into
        the enumerations that Blosc2 functions want; pass that object on, as
        ``blosc2.compress2`` takes no plain ints. Encoding is single-threaded: the bytes are then
        reproducible, and parallelism belongs to the caller.

        Parameters
        ----------
        itemsize : int
            Bytes per element, from 1 to 255: Blosc2 does not read back files of larger ones.

        Raises
        ------
        LayoutError
            If the item size is outside that range.

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
        return CodecParams(
            codec=_CODEC_IDS[self.name],
            clevel=self.level,
            typesize=itemsize,
            nthreads=1,
            splitmode=_AUTO_SPLIT,
            filters=[0] * (_FILTER_SLOTS - 1) + [_FILTER_IDS[self.filter]],
            filters_meta=[0] * _FILTER_SLOTS,
        )


DEFAULT_CODEC = Codec(name="lz4hc", level=8)
"""What the reference package writes by default: LZ4HC, level 8, after a byte shuffle."""
