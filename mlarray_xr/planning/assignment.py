"""Assignment: what ``array[key] = values`` does to each chunk, decided before anything is written.

Values are taken as NumPy takes them, with one difference: nothing is lost without a word. What
the array's type cannot hold is refused, where NumPy would wrap, cut or overflow.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.selection import PointSelection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.selection import Indices, OuterSelection

__all__ = ["ChunkSelection", "fit_dtype", "fit_values", "outer_only", "plan_chunk_selections"]

_INTEGERS = frozenset("biu")
_FLOATS = frozenset("fc")
_NUMBERS = _INTEGERS | _FLOATS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkSelection:
    """What a selection takes of one chunk."""

    position: tuple[int, ...]
    """Position of the chunk in the grid."""
    box: Box
    """The chunk; it ends where the array does."""
    chunk_key: tuple[Any, ...]
    """Which elements of the chunk, as a NumPy key."""
    values_key: tuple[Any, ...]
    """Which of the selection's elements these are, as a key to the array `fit_values` returns."""
    is_whole: bool
    """Whether it is every element of the chunk."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _AxisPiece:
    """The same along one axis."""

    index: int
    pair: tuple[int, int]
    inside: slice | Indices
    outside: slice | Indices
    is_whole: bool


def outer_only(selection: OuterSelection | PointSelection) -> OuterSelection:
    """Return a selection that is one list of positions per axis.

    Raises
    ------
    IndexError
        When it is points: several index arrays, or a mask of several axes.
    """
    if isinstance(selection, PointSelection):
        msg = (
            "single points (several index arrays, or a mask of several axes) are not assigned "
            "here. To fix: read the box that holds them, change it, write it back"
        )
        raise IndexError(msg)
    return selection


def plan_chunk_selections(
    selection: OuterSelection, *, shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Iterator[ChunkSelection]:
    """Iterate over the chunks that a selection touches, in C order of the grid.

    Examples
    --------
    >>> from mlarray_xr.planning.selection import plan_selection
    >>> selection = plan_selection((slice(3, 9),), (10,))
    >>> for found in plan_chunk_selections(selection, shape=(10,), chunks=(4,)):
    ...     print(found.position, found.chunk_key[0], found.values_key[0], found.is_whole)
    (0,) slice(3, 4, 1) slice(0, 1, None) False
    (1,) slice(0, 4, 1) slice(1, 5, None) True
    (2,) slice(0, 1, 1) slice(5, 6, None) False
    """
    along = [
        list(_axis_pieces(positions, chunk=chunk, extent=extent))
        for positions, chunk, extent in zip(selection.axes, chunks, shape, strict=True)
    ]
    for pieces in itertools.product(*along):
        yield ChunkSelection(
            position=tuple(piece.index for piece in pieces),
            box=tuple(piece.pair for piece in pieces),
            chunk_key=_crossed([piece.inside for piece in pieces]),
            values_key=_crossed([piece.outside for piece in pieces]),
            is_whole=all(piece.is_whole for piece in pieces),
        )


def fit_values(values: Any, selection: OuterSelection, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values in the array's type, one for every element of a selection.

    Accepted is what the type holds: whole numbers in its range, whatever integer type they have;
    floats, which may be rounded to a shorter type but not become infinite; texts and times that
    lose nothing.

    Parameters
    ----------
    values
        A number, or anything NumPy takes that broadcasts to the selection.
    selection
        Where the values go.
    dtype
        Type of the array.

    Returns
    -------
    numpy.ndarray
        With one axis for each of the array's; a view of repeated elements where it was broadcast.

    Raises
    ------
    ConversionError
        When the array's type cannot hold the values.
    ValueError
        When they do not broadcast to the selection.

    Examples
    --------
    >>> from mlarray_xr.planning.selection import plan_selection
    >>> selection = plan_selection((slice(0, 3), 1), (4, 4))
    >>> fit_values(7, selection, np.dtype("uint8")).tolist()
    [[7], [7], [7]]
    """
    if isinstance(values, np.ma.MaskedArray):
        msg = "a masked array: its mask has no place in a file. To fix: array.filled(value)"
        raise ConversionError(msg)
    fitted = fit_dtype(np.asarray(values), dtype)
    # NumPy takes values with more axes than the selection when those have the extent 1.
    while fitted.ndim > len(selection.shape) and fitted.shape[0] == 1:
        fitted = fitted[0]
    try:
        spread = np.broadcast_to(fitted, selection.shape)
    except ValueError:
        msg = f"values of shape {np.shape(values)} do not broadcast to shape {selection.shape}"
        raise ValueError(msg) from None
    return spread.reshape([len(positions) for positions in selection.axes])


def fit_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return values in another type.

    Raises
    ------
    ConversionError
        When it cannot hold them.
    """
    if values.dtype == dtype:
        return values
    kinds = (values.dtype.kind, dtype.kind)
    if set(kinds) <= _INTEGERS:
        _check_range(values, dtype)
        return values.astype(dtype)
    is_number = kinds[0] in _NUMBERS and kinds[1] in _FLOATS
    is_same = kinds[0] == kinds[1] and kinds[0] in "mMSU"
    if not (is_number or is_same) or not np.can_cast(values.dtype, dtype, "same_kind"):
        msg = (
            f"values of type {values.dtype} are not stored as {dtype}: that would lose some of "
            f"what they say. To fix: values.astype({dtype.str!r}), if that is meant"
        )
        raise ConversionError(msg)
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.astype(dtype)
    if is_number:
        is_kept = bool((np.isfinite(cast) == np.isfinite(values)).all())
    else:
        is_kept = np.array_equal(cast.astype(values.dtype), values, equal_nan=kinds[0] in "mM")
    if not is_kept:
        msg = f"some values of type {values.dtype} are too large, long or fine for {dtype}"
        raise ConversionError(msg)
    return cast


def _check_range(values: NDArray[Any], dtype: np.dtype[Any]) -> None:
    """Refuse whole numbers outside the range of an integer type or bool."""
    if not values.size:
        return
    found = int(values.min()), int(values.max())
    info = None if dtype.kind == "b" else np.iinfo(dtype)
    least, greatest = (0, 1) if info is None else (int(info.min), int(info.max))
    if found[0] < least or found[1] > greatest:
        msg = (
            f"values from {found[0]} to {found[1]} do not fit {dtype}, which holds {least} to "
            f"{greatest}. To fix: (1) np.clip; (2) write a file of a wider type"
        )
        raise ConversionError(msg)


def _axis_pieces(positions: range | Indices, *, chunk: int, extent: int) -> Iterator[_AxisPiece]:
    """Cut the positions along one axis at the borders of chunks."""
    if not len(positions):
        return iter(())
    if isinstance(positions, range):
        return _range_pieces(positions, chunk=chunk, extent=extent)
    return _array_pieces(positions, chunk=chunk, extent=extent)


def _range_pieces(positions: range, *, chunk: int, extent: int) -> Iterator[_AxisPiece]:
    """Cut a range, without making a list of it."""
    count = len(positions)
    rising = positions if positions.step > 0 else positions[::-1]
    for index in range(rising[0] // chunk, rising[-1] // chunk + 1):
        start, stop = index * chunk, min((index + 1) * chunk, extent)
        first, last = (
            min(max(0, -((rising.start - edge) // rising.step)), count) for edge in (start, stop)
        )
        if first == last:
            continue
        inside = slice(rising[first] - start, rising[last - 1] - start + 1, rising.step)
        outside = slice(first, last)
        if positions.step < 0:
            end = count - 1 - last
            outside = slice(count - 1 - first, end if end >= 0 else None, -1)
        yield _AxisPiece(
            index=index,
            pair=(start, stop),
            inside=inside,
            outside=outside,
            is_whole=last - first == stop - start,
        )


def _array_pieces(positions: Indices, *, chunk: int, extent: int) -> Iterator[_AxisPiece]:
    """Cut positions in any order; of repeated ones the order stays, as the last one counts."""
    order = np.argsort(positions // chunk, kind="stable")
    index_of = positions[order] // chunk
    for places in np.split(order, np.flatnonzero(np.diff(index_of)) + 1):
        index = int(positions[places[0]]) // chunk
        start, stop = index * chunk, min((index + 1) * chunk, extent)
        inside = positions[places] - start
        yield _AxisPiece(
            index=index,
            pair=(start, stop),
            inside=inside,
            outside=places,
            is_whole=len(np.unique(inside)) == stop - start,
        )


def _crossed(selectors: list[slice | Indices]) -> tuple[Any, ...]:
    """Return a key that selects the outer product; the ellipsis keeps a 0-d array an array."""
    if all(isinstance(each, slice) for each in selectors):
        return (*selectors, ...)
    return np.ix_(*[_positions(s) if isinstance(s, slice) else s for s in selectors])


def _positions(piece: slice) -> Indices:
    """Return the positions of a slice that was cut from a range."""
    stop = piece.stop if piece.stop is not None else -1
    return np.arange(piece.start, stop, piece.step or 1)
