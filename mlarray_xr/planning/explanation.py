"""Explanation: what a layout means for reads, as a table for people."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.planning.grid import plan_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.read_cost import ReadCost

__all__ = ["Explanation", "explained"]

_HEADINGS = ("read", "shape", "chunks", "blocks", "decoded", "times wanted", "held", "ms")


class _Shapes(Protocol):
    """The shapes of a layout."""

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extents of a chunk."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Extents of a block."""

    @property
    def padded_chunk(self) -> tuple[int, ...]:
        """Extents of a chunk of whole blocks."""


class _Array(Protocol):
    """The array that a layout is for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """A table that shows itself: as text, and in notebooks as HTML."""

    head: tuple[str, ...]
    """Lines before the table."""
    rows: tuple[tuple[str, ...], ...]
    """Columns as in `headings`."""
    foot: tuple[str, ...]
    """Lines after the table."""
    headings: tuple[str, ...] = _HEADINGS
    """Titles of the columns."""

    def __repr__(self) -> str:
        table = [self.headings, *self.rows] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join([*self.head, *lines, *self.foot])

    def _repr_html_(self) -> str:
        """Return the table as HTML."""
        titles = "".join(f"<th>{html.escape(title)}</th>" for title in self.headings)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        before = "<br>".join(map(html.escape, self.head))
        after = "<br>".join(map(html.escape, self.foot))
        table = f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>"
        return f"<div><p>{before}</p>{table if self.rows else ''}<p>{after}</p></div>"


def explained(
    shapes: _Shapes,
    array: _Array,
    *,
    caches: CacheSizes,
    dims: tuple[str, ...] | None,
    windows: Iterable[tuple[str, tuple[int, ...]]],
    cost_of: Callable[[tuple[int, ...]], ReadCost],
) -> Explanation:
    """Explain a layout.

    Parameters
    ----------
    shapes
        Of chunks and blocks.
    array
        What they are for.
    caches
        Of the core that reads.
    dims
        Names of the axes.
    windows
        Names and shapes of what is read, besides slices and everything.
    cost_of
        Returns what a window costs.
    """
    shape, itemsize = array.shape, array.itemsize
    chunk_bytes = math.prod(shapes.padded_chunk) * itemsize
    block_bytes = math.prod(shapes.blocks) * itemsize
    empty = 0 in shape
    n_chunks = 0 if empty else _cells(shape, shapes.chunks)
    wanted = math.prod(shape) * itemsize
    padding = 0.0 if empty else n_chunks * chunk_bytes / wanted - 1
    per_chunk = 0 if empty else _cells(shapes.chunks, shapes.blocks)
    head = (
        f"chunks {shapes.chunks} of {in_words(chunk_bytes)}: {n_chunks} of them, "
        f"edges add {padding:.0%}".replace("%", " %"),
        f"blocks {shapes.blocks} of {in_words(block_bytes)}: {per_chunk} in a chunk",
    )
    if empty:
        return Explanation(head=head, rows=(), foot=(f"caches {caches}",))
    named = list(windows)
    named += [
        (f"slice of {_axis_name(dims, axis)}", _slice(shape, axis))
        for axis, n in enumerate(shape)
        if n > 1
    ]
    named.append(("everything", shape))
    rows = tuple(_row(name, cost_of(window), caches) for name, window in named)
    patch = named[0][1] if named[0][0] == "patch" else None
    part = plan_part(shape, shapes.chunks, itemsize=itemsize, patch=patch)
    foot = (
        f"a full read by Dask: parts of {part}, tasks: {_cells(shape, part)}",
        f"caches {caches}",
    )
    return Explanation(head=head, rows=rows, foot=foot)


def _row(name: str, cost: ReadCost, caches: CacheSizes) -> tuple[str, ...]:
    """Return one row of the table."""
    held = cost.working_set_bytes
    levels = (("L1", caches.l1_bytes), ("L2", caches.l2_bytes), ("L3", caches.l3_bytes))
    level = next((name for name, size in levels if held <= size), "memory")
    return (
        name,
        "x".join(map(str, cost.window)) or "()",
        _short(cost.chunks),
        _short(cost.blocks),
        in_words(round(cost.decoded_bytes)),
        f"{cost.amplification:.2f}",
        f"{in_words(round(held))} ({level})",
        _short(cost.milliseconds),
    )


def _axis_name(dims: tuple[str, ...] | None, axis: int) -> str:
    """Return how an axis is called in a table."""
    if dims is None:
        return f"axis {axis}"
    return dims[axis] if dims[axis].isprintable() else ascii(dims[axis])


def _slice(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the shape of a slice."""
    return (*shape[:axis], 1, *shape[axis + 1 :])


def _cells(shape: tuple[int, ...], size: tuple[int, ...]) -> int:
    """Return how many cells cover an array."""
    return math.prod(-(-n // c) for n, c in zip(shape, size, strict=True))


def _short(number: float) -> str:
    """Return a number with three digits, whole from 100 on."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"
