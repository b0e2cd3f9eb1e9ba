"""Picks: which blocks of a chunk a NumPy key touches, and how they become what it selects."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from mlarray_xr.planning.selection import OuterSelection, plan_selection, plan_vectorized

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.chunk_form import ChunkForm
    from mlarray_xr.planning.selection import PointSelection

__all__ = ["DecodeBlocks", "Pick", "plan_pick"]

_Selector: TypeAlias = "slice | NDArray[np.intp]"

# Decoded blocks stay in the cache until they are copied to their place, and the memory they take is
# had again without asking the system: decoding chunks of 1 MiB at once took twice as long.
_GROUP_BYTES = 256 << 10


class DecodeBlocks(Protocol):
    """What decodes some of the blocks of a pick."""

    def __call__(self, first: int, last: int) -> NDArray[Any]:
        """Return the blocks from one to before another, (n, *blocks), until the next call."""


class Pick(Protocol):
    """Some blocks of a chunk, and what is made of them."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """C-order numbers of the blocks, ascending."""

    def values(self, decode: DecodeBlocks, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return what is selected, of a type, from blocks that are decoded one after another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _OuterPick:
    """Positions along every axis, crossed with each other."""

    numbers: NDArray[np.int64]
    """C-order numbers of the blocks, ascending."""
    counts: tuple[int, ...]
    """Number of blocks that are touched along each axis."""
    blocks: tuple[int, ...]
    """Extents of a block."""
    selectors: tuple[_Selector, ...]
    """What is wanted along each axis of the touched blocks put together."""
    shape: tuple[int, ...]
    """Shape of the result."""

    def values(self, decode: DecodeBlocks, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Put blocks together in array order and take what is wanted."""
        if not len(self.numbers):
            return np.empty(self.shape, dtype)
        # What a single block has too much along its axis is not even copied.
        inside, outside = _cut(self.counts, self.selectors)
        lengths = [
            b if cut == slice(None) else len(range(b)[cut])
            for b, cut in zip(self.blocks, inside, strict=True)
        ]
        whole = np.empty([n * k for n, k in zip(self.counts, lengths, strict=True)], dtype)
        order = [axis for i in range(len(lengths)) for axis in (i, len(lengths) + i)]
        split = whole.reshape([(*self.counts, *lengths)[axis] for axis in order])
        for first, last, place in _groups(self.counts, math.prod(self.blocks) * dtype.itemsize):
            counts = [len(range(n)[s]) for n, s in zip(self.counts, place, strict=True)]
            tiles = decode(first, last).reshape((*counts, *self.blocks))
            # The ellipses keep a 0-d array an array.
            target: tuple[Any, ...] = (*(part for s in place for part in (s, slice(None))), ...)
            source: tuple[Any, ...] = (*(slice(None) for _ in counts), *inside, ...)
            split[target] = tiles[source].transpose(order)
        plain: tuple[Any, ...] = (
            *(s if isinstance(s, slice) else slice(None) for s in outside),
            ...,
        )
        taken: NDArray[Any] = whole[plain]
        for axis, selector in enumerate(outside):
            if not isinstance(selector, slice):
                taken = taken.take(selector, axis)
        return taken.reshape(self.shape)


def _cut(
    counts: tuple[int, ...], selectors: tuple[_Selector, ...]
) -> tuple[list[slice], list[_Selector]]:
    """Divide what is selected into that inside of single blocks, and that of blocks together."""
    inside: list[slice] = []
    outside: list[_Selector] = []
    for n, selector in zip(counts, selectors, strict=True):
        if n == 1 and isinstance(selector, slice):
            inside.append(selector)
            outside.append(slice(None))
        else:
            inside.append(slice(None))
            outside.append(selector)
    return inside, outside


def _groups(
    counts: tuple[int, ...], block_bytes: int
) -> Iterator[tuple[int, int, tuple[slice, ...]]]:
    """Yield runs of blocks that are boxes in their grid, none larger than is good, in order.

    The first one is the largest.
    """
    most = max(1, _GROUP_BYTES // block_bytes)
    axis, rest = len(counts), 1
    while axis and rest * counts[axis - 1] <= most:
        axis -= 1
        rest *= counts[axis]
    whole = (slice(None),) * (len(counts) - axis)
    if not axis:
        yield 0, rest, whole
        return
    step = min(max(1, most // rest), counts[axis - 1])
    first = 0
    for outer in itertools.product(*map(range, counts[: axis - 1])):
        for start in range(0, counts[axis - 1], step):
            run = slice(start, min(start + step, counts[axis - 1]))
            last = first + (run.stop - run.start) * rest
            yield first, last, (*(slice(i, i + 1) for i in outer), run, *whole)
            first = last


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _PointPick:
    """Single elements."""

    numbers: NDArray[np.int64]
    """C-order numbers of the blocks, ascending."""
    blocks: tuple[int, ...]
    """Extents of a block."""
    places: tuple[NDArray[np.intp], ...]
    """Of each element, which of the blocks it lies in, and where inside along each axis."""
    shape: tuple[int, ...]
    """Shape of the result."""

    def values(self, decode: DecodeBlocks, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Take elements from their blocks."""
        tiles = decode(0, len(self.numbers)).reshape((-1, *self.blocks))
        picked: NDArray[Any] = tiles[self.places].astype(dtype, copy=False)
        return picked.reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _RearrangedPick:
    """A pick whose result is spread over other axes."""

    pick: Pick
    """What is picked."""
    order: tuple[int, ...]
    """How its axes are permuted."""
    spread: tuple[int, ...]
    """Shape of that, ready for broadcasting."""
    shape: tuple[int, ...]
    """Shape of the result."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """C-order numbers of the blocks, ascending."""
        return self.pick.numbers

    def values(self, decode: DecodeBlocks, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Take what is picked, and spread it."""
        found = self.pick.values(decode, dtype)
        if found.ndim == len(self.order):
            found = found.transpose(self.order)
        return np.broadcast_to(found.reshape(self.spread), self.shape)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _IndexedPick:
    """What NumPy makes of a key, from a whole chunk."""

    pick: Pick
    """The whole chunk."""
    key: tuple[Any, ...]
    """NumPy's key."""

    @property
    def numbers(self) -> NDArray[np.int64]:
        """C-order numbers of the blocks, ascending."""
        return self.pick.numbers

    def values(self, decode: DecodeBlocks, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Put the chunk together and index it."""
        found: NDArray[Any] = self.pick.values(decode, dtype)[self.key]
        return found


def plan_pick(key: Any, form: ChunkForm) -> Pick:
    """Plan which blocks of a chunk are decoded for a key, and what becomes of them.

    Parameters
    ----------
    key
        What indexes the chunk, as NumPy means it. Index arrays that are an outer product (those of
        `numpy.ix_`) touch the blocks of that; others only those with elements in them, or, crossed
        with slices, all.
    form
        Of the chunk.

    Raises
    ------
    IndexError
        When the key does not fit the chunk.

    Examples
    --------
    >>> from mlarray_xr.format.chunk_form import ChunkForm
    >>> form = ChunkForm(typesize=1, chunks=(8, 8), blocks=(4, 4))
    >>> plan_pick((slice(0, 5), 6), form).numbers
    array([1, 3])
    >>> plan_pick((np.array([0, 7]), np.array([0, 7])), form).numbers
    array([0, 3])
    """
    entries = key if isinstance(key, tuple) else (key,)
    if _are_points(entries, form.chunks):
        return _points(entries, form, shape=entries[0].shape)
    if len(entries) == len(form.chunks) and entries and all(map(_is_index_array, entries)):
        plan = plan_vectorized(entries, form.chunks)
        return _RearrangedPick(
            pick=_selected(plan.selection, form),
            order=plan.order,
            spread=plan.spread,
            shape=plan.shape,
        )
    selection = plan_selection(entries, form.chunks)
    if isinstance(selection, OuterSelection) or None not in selection.points:
        return _selected(selection, form)
    return _IndexedPick(pick=plan_pick((), form), key=entries)


def _are_points(entries: tuple[Any, ...], extents: tuple[int, ...]) -> bool:
    """Tell whether a key is lists of positions inside the chunk, equally long, one per axis.

    They are an outer product as well where nothing changes along all axes but one; looking for that
    takes longer than decoding a block, and the blocks are the same.
    """
    return (
        len(entries) == len(extents) > 1
        and all(_is_index_array(k) and k.ndim == 1 and len(k) for k in entries)
        and len({len(k) for k in entries}) == 1
        and all(k.min() >= 0 and k.max() < n for k, n in zip(entries, extents, strict=True))
    )


def _is_index_array(entry: Any) -> bool:
    """Tell whether an entry of a key is an array of positions."""
    return isinstance(entry, np.ndarray) and entry.dtype.kind in "iu"


def _selected(selection: OuterSelection | PointSelection, form: ChunkForm) -> Pick:
    """Return the pick of a selection that has positions, or points, along all axes."""
    if isinstance(selection, OuterSelection):
        return _outer(selection, form)
    points = [p for p in selection.points if p is not None]
    return _points(points, form, shape=selection.points_shape)


def _outer(selection: OuterSelection, form: ChunkForm) -> _OuterPick:
    """Return the pick of crossed positions."""
    numbers = np.zeros((), np.int64)
    counts, selectors = [], []
    for positions, block, n in zip(selection.axes, form.blocks, form.grid, strict=True):
        touched, selector = _along(positions, block)
        numbers = numbers[..., None] * n + touched
        counts.append(len(touched))
        selectors.append(selector)
    return _OuterPick(
        numbers=numbers.reshape(-1),
        counts=tuple(counts),
        blocks=form.blocks,
        selectors=tuple(selectors),
        shape=selection.shape,
    )


def _along(positions: range | NDArray[np.intp], block: int) -> tuple[NDArray[np.int64], _Selector]:
    """Return the blocks that positions along an axis touch, and where they are in those."""
    if len(positions) == 0:
        return np.zeros(0, np.int64), slice(0, 0)
    if isinstance(positions, range) and (0 < positions.step <= block or len(positions) == 1):
        low = positions[0] // block
        origin = low * block
        inside = slice(positions[0] - origin, positions[-1] + 1 - origin, max(positions.step, 1))
        return np.arange(low, positions[-1] // block + 1), inside
    wanted = np.asarray(positions, np.int64)
    touched, ranks = np.unique(wanted // block, return_inverse=True)
    return touched, (ranks * block + wanted % block).astype(np.intp)


def _points(
    points: Sequence[NDArray[np.intp]], form: ChunkForm, *, shape: tuple[int, ...]
) -> _PointPick:
    """Return the pick of single elements."""
    numbers = np.zeros(len(points[0]), np.int64)
    for along, block, n in zip(points, form.blocks, form.grid, strict=True):
        numbers = numbers * n + along // block
    touched, ranks = np.unique(numbers, return_inverse=True)
    inside = [along % block for along, block in zip(points, form.blocks, strict=True)]
    return _PointPick(numbers=touched, blocks=form.blocks, places=(ranks, *inside), shape=shape)
