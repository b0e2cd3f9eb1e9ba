"""Choosing a codec from trials: sizes are measured, speeds are modelled, nothing is timed.

A rule over timings would choose differently on a busy machine, and two workers would write two
different files. So only the sizes come from the data at hand; `planning.codec_cost` has the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from mlarray_xr.errors import LayoutError
from mlarray_xr.html_table import grid_table
from mlarray_xr.planning.codec import DEFAULT_CODEC, Codec
from mlarray_xr.planning.codec_cost import WITH_COSTS, decode_cost, encode_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout

__all__ = [
    "CodecChoice",
    "CodecTrial",
    "Preference",
    "choose_codec_from",
    "choose_codec_unseen",
    "plan_candidates",
    "plan_samples",
    "shortlist",
]

Preference: TypeAlias = Literal["speed", "balanced", "size"]

_EXPONENTS: dict[Preference, tuple[float, float]] = {
    "speed": (1.0, 1 / 6),
    "balanced": (1 / 3, 1 / 6),
    "size": (0.0, 1 / 100),
}
"""Powers of modelled cost of reading and of writing in the score, to which size counts once."""
_SLOWEST_READING: dict[Preference, float] = {"speed": 1.05, "balanced": 1.6, "size": math.inf}
"""Highest cost of reading against the reference codec; the other bounds are against it too."""
_SLOWEST_WRITING: dict[Preference, float] = {"speed": 0.6, "balanced": 0.6, "size": math.inf}
_LARGEST = 1.1
_MUCH_FASTER_READING = 0.5
_SHORTLIST = 6
# Shared by three to six samples: of few chunks more of each is needed to stand for the array.
_ALL_SAMPLES_BYTES = 3 << 19
_FEWEST_SHARES, _MOST_SHARES = 3, 6
# Of the array's extent, in the middle: beyond it scans show air.
_SAMPLED_SHARE = 0.8
_LEAP = 1009
_HEADINGS = ("codec", "ratio", "read ns/B", "write ns/B", "tried")
_UNSEEN: dict[Preference, tuple[Codec, Codec]] = {
    # Of single bytes, of larger elements.
    "speed": (Codec(name="lz4", level=9, filter="none"), Codec(name="lz4", level=9)),
    "balanced": (Codec(name="zstd", level=1, filter="none"), Codec(name="zstd", level=1)),
    "size": (Codec(name="zstd", level=3, filter="none"), Codec(name="zstd", level=3)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTrial:
    """What one codec made of some samples.

    Parameters
    ----------
    codec : Codec
        The candidate.
    itemsize : int
        Bytes per element.
    nbytes : int
        Decoded bytes of the samples it saw; a candidate given up early saw fewer.
    stored_bytes : int
        Bytes of their chunks as stored.

    Raises
    ------
    LayoutError
        If the costs of the codec are not known, or a number is not positive.

    Examples
    --------
    >>> trial = CodecTrial(codec=Codec.parse("lz4hc-8"), itemsize=2, nbytes=4000, stored_bytes=2000)
    >>> trial.ratio, round(trial.decode_cost, 3), trial.encode_cost
    (2.0, 0.705, 15.4)
    """

    codec: Codec
    itemsize: int
    nbytes: int
    stored_bytes: int

    def __post_init__(self) -> None:
        """Refuse what the model says nothing about."""
        if self.codec not in WITH_COSTS:
            known = ", ".join(map(str, WITH_COSTS))
            raise LayoutError(f"the costs of codec '{self.codec}' are not known; known are {known}")
        if min(self.itemsize, self.nbytes, self.stored_bytes) < 1:
            raise LayoutError(
                f"a trial of '{self.codec}' made {self.nbytes} bytes of {self.itemsize}-byte "
                f"elements {self.stored_bytes} bytes; all numbers must be positive"
            )

    @property
    def ratio(self) -> float:
        """Decoded over stored bytes."""
        return self.nbytes / self.stored_bytes

    @property
    def decode_cost(self) -> float:
        """Modelled time of reading, ns per decoded byte."""
        return decode_cost(self.codec, itemsize=self.itemsize, ratio=self.ratio)

    @property
    def encode_cost(self) -> float:
        """Modelled time of writing, ns per decoded byte."""
        return encode_cost(self.codec)

    def merged(self, other: CodecTrial) -> CodecTrial:
        """Return the trial of the same codec on the samples of both."""
        return CodecTrial(
            codec=self.codec,
            itemsize=self.itemsize,
            nbytes=self.nbytes + other.nbytes,
            stored_bytes=self.stored_bytes + other.stored_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecChoice:
    """A chosen codec and why.

    Examples
    --------
    >>> from mlarray_xr.planning.codec_choice import CodecTrial, choose_codec_from
    >>> sizes = {"lz4hc-8": 500_000, "zstd-1": 350_000, "lz4-9-bitshuffle": 390_000}
    >>> trials = [
    ...     CodecTrial(codec=Codec.parse(name), itemsize=2, nbytes=10**6, stored_bytes=size)
    ...     for name, size in sizes.items()
    ... ]
    >>> print(choose_codec_from(trials, prefer="balanced").explain())
    lz4-9-bitshuffle (balanced): 22 % smaller than lz4hc-8; modelled reading 0.73x, writing 9.6x
      codec                 ratio  read ns/B  write ns/B     tried
    * lz4-9-bitshuffle       2.56       0.97         1.6   1.00 MB
      lz4hc-8                2.00       0.71        15.4   1.00 MB
      zstd-1                 2.86       1.75         3.0   1.00 MB
    """

    codec: Codec
    """What to write with."""
    prefer: Preference
    """What was asked for."""
    trials: tuple[CodecTrial, ...]
    """What was tried, best first; none when there was nothing to try on."""
    reason: str
    """Why this one."""

    def __str__(self) -> str:
        """Return the codec and the reason on one line."""
        return f"{self.codec} ({self.prefer}): {self.reason}"

    def explain(self) -> str:
        """Return the reason and a table of the trials, best first."""
        if not self.trials:
            return str(self)
        head = f"  {'codec':20s} {'ratio':>6s}  read ns/B  write ns/B     tried"
        rows = (
            f"{'*' if trial.codec == self.codec else ' '} {trial.codec!s:20s} {trial.ratio:6.2f}  "
            f"{trial.decode_cost:9.2f}  {trial.encode_cost:10.1f}  {trial.nbytes / 1e6:5.2f} MB"
            for trial in self.trials
        )
        return "\n".join((str(self), head, *rows))

    def _repr_html_(self) -> str:
        """Return the table of `explain` for notebooks."""
        rows = [
            (
                f"{trial.codec}{' (chosen)' if trial.codec == self.codec else ''}",
                f"{trial.ratio:.2f}",
                f"{trial.decode_cost:.2f}",
                f"{trial.encode_cost:.1f}",
                f"{trial.nbytes / 1e6:.2f} MB",
            )
            for trial in self.trials
        ]
        return grid_table(_HEADINGS, rows, title=str(self))

    def to_json(self) -> dict[str, Any]:
        """Return the choice as plain values: below 2 kB of JSON."""
        return {
            "codec": str(self.codec),
            "prefer": self.prefer,
            "reason": self.reason,
            "trials": [[str(t.codec), t.nbytes, t.stored_bytes] for t in self.trials],
        }


def plan_candidates(itemsize: int, *, prefer: Preference) -> tuple[Codec, ...]:
    """Return the codecs worth trying, the reference package's default first.

    Left out are the byte shuffle of single bytes, which changes nothing and is slow to undo, and
    levels that are too slow to write for what is preferred.

    Examples
    --------
    >>> [str(codec) for codec in plan_candidates(1, prefer="speed")][:4]
    ['lz4hc-8', 'lz4-9-none', 'lz4-9-bitshuffle', 'lz4hc-1-none']
    """
    check_preference(prefer)
    slowest = _SLOWEST_WRITING[prefer] * encode_cost(DEFAULT_CODEC)
    candidates = (
        codec
        for codec in WITH_COSTS
        if codec != DEFAULT_CODEC and encode_cost(codec) <= slowest
        if codec.filter != "shuffle" or itemsize > 1
    )
    return (DEFAULT_CODEC, *candidates)


def plan_samples(
    shape: tuple[int, ...], layout: Layout, *, itemsize: int, n: int = 16, seed: int = 0
) -> tuple[Box, ...]:
    """Return boxes to try codecs on: the middle of chunks spread over an array.

    The first is in the central chunk. The others follow an additive recurrence with the powers of
    the generalised golden ratio, which fills every number of axes evenly [1]_.

    Parameters
    ----------
    shape : tuple of int
        Extents of the array.
    layout : Layout
        Chunks and blocks.
    itemsize : int
        Bytes per element.
    n : int
        How many boxes at most, each in another chunk.
    seed : int
        Where the sequence starts.

    Returns
    -------
    tuple of Box
        Whole blocks of one chunk each, up to 256 KiB, where there are fewer than six chunks up to
        512 KiB: six samples are 1.5 MiB at most. Of a larger block a part. None of an empty array.

    References
    ----------
    .. [1] M. Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018.

    Examples
    --------
    >>> from mlarray_xr.planning.layout import Layout
    >>> layout = Layout(chunks=(64, 64), blocks=(16, 16))
    >>> plan_samples((640, 640), layout, itemsize=2, n=3)
    (((320, 384), (320, 384)), ((192, 256), (64, 128)), ((64, 128), (384, 448)))
    """
    if 0 in shape:
        return ()
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (len(shape) + 1))
    steps = root ** -np.arange(1.0, len(shape) + 1)
    seen: dict[tuple[int, ...], None] = {}
    for i in (0, *range(1 + _LEAP * seed, _LEAP * seed + 8 * n)):
        at = 0.5 + _SAMPLED_SHARE * ((0.5 + i * steps) % 1 - 0.5)
        seen[tuple(int(f * e) // c for f, e, c in zip(at, shape, layout.chunks, strict=True))] = (
            None
        )
        if len(seen) == n:
            break
    limit = _ALL_SAMPLES_BYTES // min(max(len(seen), _FEWEST_SHARES), _MOST_SHARES)
    limit //= itemsize
    return tuple(_middle(position, shape, layout, limit) for position in seen)


def _middle(position: tuple[int, ...], shape: tuple[int, ...], layout: Layout, limit: int) -> Box:
    """Return blocks in the middle of a chunk, together of at most so many elements."""
    starts = [i * c for i, c in zip(position, layout.chunks, strict=True)]
    extents = [min(c, n - s) for c, n, s in zip(layout.chunks, shape, starts, strict=True)]
    taken = list(extents)
    while math.prod(taken) > limit:
        # Blocks are halved only when there is a single one along every axis.
        blocks = [-(-t // b) for t, b in zip(taken, layout.blocks, strict=True)]
        axis = blocks.index(max(blocks))
        if blocks[axis] > 1:
            taken[axis] = blocks[axis] // 2 * layout.blocks[axis]
        else:
            axis = taken.index(max(taken))
            taken[axis] = -(-taken[axis] // 2)
    box = []
    for start, extent, size, block in zip(starts, extents, taken, layout.blocks, strict=True):
        first = start + (extent - size) // 2 // block * block
        box.append((first, first + size))
    return tuple(box)


def choose_codec_from(trials: Sequence[CodecTrial], *, prefer: Preference) -> CodecChoice:
    """Choose the codec whose trial has the smallest product of size and powers of modelled costs.

    The score is ``stored_bytes * decode_cost ** a * encode_cost ** b``: ``a`` is 1 for speed, 1/3
    for balanced, 0 for size; ``b`` is 1/6, for size 1/100. Unless size is preferred, a codec must
    keep three bounds against the reference, which is LZ4HC 8 with a byte shuffle. It costs at most
    1.6 times as much to read (1.05 for speed) and 0.6 times as much to write, and it is at most
    10 % larger unless it costs half as much to read. The reference is chosen when nothing keeps
    them. Trials that saw fewer bytes than others were given up and do not compete.

    Parameters
    ----------
    trials : sequence of CodecTrial
        In any order, all of one item size; the reference's must be among those that saw all.
    prefer : {"speed", "balanced", "size"}
        What counts.

    Raises
    ------
    LayoutError
        If the reference was not tried, or `prefer` is something else.
    """
    check_preference(prefer)
    ranked = _ranked(trials, prefer)
    best, reference = ranked[0], _reference(trials)
    if best.codec == reference.codec:
        reason = "nothing tried is better than what the reference package writes"
    else:
        change = best.stored_bytes / reference.stored_bytes - 1
        reads = reference.decode_cost / best.decode_cost
        writes = reference.encode_cost / best.encode_cost
        larger = "larger" if change > 0 else "smaller"
        reason = (
            f"{100 * abs(change):.0f} % {larger} than {reference.codec}; "
            f"modelled reading {reads:.2g}x, writing {writes:.2g}x"
        )
    return CodecChoice(codec=best.codec, prefer=prefer, trials=tuple(ranked), reason=reason)


def choose_codec_unseen(itemsize: int, *, prefer: Preference, reason: str) -> CodecChoice:
    """Return a codec that suits most data, for arrays whose samples say nothing."""
    check_preference(prefer)
    codec = _UNSEEN[prefer][itemsize > 1]
    return CodecChoice(codec=codec, prefer=prefer, trials=(), reason=reason)


def shortlist(trials: Sequence[CodecTrial], *, prefer: Preference) -> tuple[Codec, ...]:
    """Return the codecs to go on with after the first samples: the reference and the best six."""
    best = [t.codec for t in _ranked(trials, prefer)[:_SHORTLIST]]
    return (DEFAULT_CODEC, *(codec for codec in best if codec != DEFAULT_CODEC))


def check_preference(prefer: str) -> None:
    """Refuse an unknown preference.

    Raises
    ------
    LayoutError
        If it is not one of speed, balanced and size.
    """
    if prefer not in get_args(Preference):
        raise LayoutError(f"prefer={prefer!r} is not one of {', '.join(get_args(Preference))}")


def _reference(trials: Sequence[CodecTrial]) -> CodecTrial:
    """Return the trial that the others are compared with."""
    most = max((trial.nbytes for trial in trials), default=0)
    for trial in trials:
        if trial.codec == DEFAULT_CODEC and trial.nbytes == most:
            return trial
    raise LayoutError(f"'{DEFAULT_CODEC}' was not tried on all samples; others are compared to it")


def _ranked(trials: Sequence[CodecTrial], prefer: Preference) -> list[CodecTrial]:
    """Return the trials, best first; those that do not compete last."""
    reference = _reference(trials)
    of_reading, of_writing = _EXPONENTS[prefer]

    def rank(trial: CodecTrial) -> tuple[Any, ...]:
        score = math.log(trial.stored_bytes / trial.nbytes)
        score += of_reading * math.log(trial.decode_cost)
        score += of_writing * math.log(trial.encode_cost)
        is_last = prefer != "size" and not _keeps_bounds(trial, reference, prefer)
        ties = (trial.decode_cost, trial.encode_cost, str(trial.codec))
        return (-trial.nbytes, is_last and trial is not reference, is_last, score, *ties)

    return sorted(trials, key=rank)


def _keeps_bounds(trial: CodecTrial, reference: CodecTrial, prefer: Preference) -> bool:
    """Tell whether a codec is an answer for those who do not care about size alone."""
    size = reference.ratio / trial.ratio
    reading = trial.decode_cost / reference.decode_cost
    writing = trial.encode_cost / reference.encode_cost
    is_small = size <= _LARGEST or reading <= _MUCH_FASTER_READING
    is_fast = reading <= _SLOWEST_READING[prefer] and writing <= _SLOWEST_WRITING[prefer]
    return is_small and is_fast
