"""LayoutPlot: what of the chunks and blocks of a file a patch touches, drawn as SVG."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.attributes import read_metadata
from mlarray_xr.errors import LayoutError
from mlarray_xr.html_table import printable
from mlarray_xr.opened_file import whole_file_of
from mlarray_xr.placement import file_positions
from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.planning.grid import box_shape, surrounding_blocks
from mlarray_xr.planning.layout import Basis, Layout
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.publication import published
from mlarray_xr.template import stored_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["LayoutPlot", "plot_layout"]

_SIDE_PX = 360
_MARGIN_PX = 12
_LINE_PX = 18
_TEXT_WIDTH_PX = 420
_MOST_LINES = 400
"""Lines of a grid along one axis; finer grids are left out, they would be a grey area."""

_CHUNK_FILL, _BLOCK_FILL = "#dbe9f6", "#8fbbdd"
_CHUNK_LINE, _BLOCK_LINE, _PATCH_LINE = "#24405e", "#7f9bb5", "#c8501e"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlot:
    """A patch in the middle of a file, what reading it touches, and a picture of both."""

    dims: tuple[str, ...]
    """Names of the axes."""
    shape: tuple[int, ...]
    """Extents of the array."""
    chunks: tuple[int, ...]
    """Extents of a chunk."""
    blocks: tuple[int, ...]
    """Extents of a block."""
    itemsize: int
    """Bytes of an element."""
    box: Box
    """The patch."""
    plane: tuple[int, int]
    """Axes that run down and to the right in the picture."""
    mean_amplification: float
    """Decoded over wanted bytes, mean over all places where the patch can be."""

    @property
    def n_chunks(self) -> int:
        """Chunks that the patch touches."""
        return math.prod(
            (stop - 1) // c - start // c + 1
            for (start, stop), c in zip(self.box, self.chunks, strict=True)
        )

    @property
    def n_blocks(self) -> int:
        """Blocks that are decoded for the patch."""
        count = 1
        for (start, stop), c, b in zip(self.box, self.chunks, self.blocks, strict=True):
            # Blocks restart at every chunk border.
            first, last = (x // c * -(-c // b) + x % c // b for x in (start, stop - 1))
            count *= last - first + 1
        return count

    @property
    def wanted_bytes(self) -> int:
        """Bytes of the patch."""
        return math.prod(box_shape(self.box)) * self.itemsize

    @property
    def decoded_bytes(self) -> int:
        """Bytes of these blocks."""
        return self.n_blocks * math.prod(self.blocks) * self.itemsize

    @property
    def amplification(self) -> float:
        """Decoded over wanted bytes."""
        return self.decoded_bytes / self.wanted_bytes

    def __str__(self) -> str:
        """Return the numbers as a few lines."""
        return "\n".join(self._lines())

    def _repr_svg_(self) -> str:
        """Return the picture for notebooks."""
        window = self._window()
        scale = _SIDE_PX / max(stop - start for start, stop in window)
        height, width = ((stop - start) * scale for start, stop in window)
        lines = self._lines()
        total_width = max(width, _TEXT_WIDTH_PX) + 2 * _MARGIN_PX
        total_height = height + _LINE_PX * len(lines) + 3 * _MARGIN_PX
        texts = "".join(
            f'<text x="{_MARGIN_PX}" y="{height + 2 * _MARGIN_PX + _LINE_PX * (i + 0.6):.1f}">'
            f"{printable(line)}</text>"
            for i, line in enumerate(lines)
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{total_width:.0f}" '
            f'height="{total_height:.0f}" font-family="sans-serif" font-size="12" fill="#111">'
            '<rect width="100%" height="100%" fill="#fff"/>'
            f'<g transform="translate({_MARGIN_PX} {_MARGIN_PX})">'
            f"{self._drawn(window, scale)}</g>{texts}</svg>"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture into an SVG file, replacing it.

        Raises
        ------
        ValueError
            When the name does not end in ``.svg``.
        """
        name = os.fspath(path)
        if not name.lower().endswith(".svg"):
            raise ValueError(f"{name!r} does not end in .svg, which is what is written")
        with published(os.path.abspath(name), overwrite=True) as file:
            file.write(self._repr_svg_().encode())

    def _lines(self) -> list[str]:
        """Return the numbers in words."""
        patch = _named(self.dims, box_shape(self.box))
        down, right = (self.dims[axis] for axis in self.plane)
        return [
            f"patch {patch} in the middle of {_named(self.dims, self.shape)}",
            f"touches {self.n_chunks} chunks of {_times(self.chunks)}",
            f"decodes {self.n_blocks} blocks of {_times(self.blocks)}",
            f"{in_words(self.decoded_bytes)} for {in_words(self.wanted_bytes)}: "
            f"{self.amplification:.2f} times, anywhere {self.mean_amplification:.2f} in the mean",
            f"drawn: {down} downward, {right} to the right",
        ]

    def _window(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return what of the plane is drawn: the touched chunks and their neighbours."""
        down, right = (
            (
                max(0, (self.box[axis][0] // c - 1) * c),
                min(self.shape[axis], ((self.box[axis][1] - 1) // c + 2) * c),
            )
            for axis in self.plane
            for c in (self.chunks[axis],)
        )
        return down, right

    def _drawn(self, window: tuple[tuple[int, int], tuple[int, int]], scale: float) -> str:
        """Return areas and lines, in pixels from the window's corner."""
        shapes = {"shape": self.shape, "chunks": self.chunks}
        touched = surrounding_blocks(self.box, **shapes, blocks=self.chunks)
        decoded = surrounding_blocks(self.box, **shapes, blocks=self.blocks)
        areas = [
            (tuple((0, n) for n in self.shape), f'fill="#fff" stroke="{_CHUNK_LINE}"'),
            (touched, f'fill="{_CHUNK_FILL}"'),
            (decoded, f'fill="{_BLOCK_FILL}"'),
        ]
        drawn = [self._rectangle(box, window, scale, style) for box, style in areas]
        drawn.append(self._grid(touched, window, scale, is_fine=True))
        whole = tuple((0, n) for n in self.shape)
        drawn.append(self._grid(whole, window, scale, is_fine=False))
        style = f'fill="none" stroke="{_PATCH_LINE}" stroke-width="2.5"'
        drawn.append(self._rectangle(self.box, window, scale, style))
        return "".join(drawn)

    def _rectangle(
        self, box: Box, window: tuple[tuple[int, int], tuple[int, int]], scale: float, style: str
    ) -> str:
        """Return the part of a box in the window."""
        (top, bottom), (left, right) = (
            tuple((min(max(edge, start), stop) - start) * scale for edge in box[axis])
            for axis, (start, stop) in zip(self.plane, window, strict=True)
        )
        return (
            f'<rect x="{left:.2f}" y="{top:.2f}" width="{right - left:.2f}" '
            f'height="{bottom - top:.2f}" {style}/>'
        )

    def _grid(
        self,
        box: Box,
        window: tuple[tuple[int, int], tuple[int, int]],
        scale: float,
        *,
        is_fine: bool,
    ) -> str:
        """Return the borders of chunks, or of blocks, of a part of the plane, as one path."""
        spans = [
            (max(box[axis][0], start), min(box[axis][1], stop))
            for axis, (start, stop) in zip(self.plane, window, strict=True)
        ]
        borders = [
            _borders(*span, chunk=self.chunks[axis], block=self.blocks[axis] if is_fine else None)
            for axis, span in zip(self.plane, spans, strict=True)
        ]
        if max(map(len, borders)) > _MOST_LINES:
            return ""
        (top, bottom), (left, right) = (
            tuple((edge - start) * scale for edge in span)
            for span, (start, _) in zip(spans, window, strict=True)
        )
        rows = [(y - window[0][0]) * scale for y in borders[0]]
        columns = [(x - window[1][0]) * scale for x in borders[1]]
        path = "".join(f"M{left:.2f} {y:.2f}H{right:.2f}" for y in rows)
        path += "".join(f"M{x:.2f} {top:.2f}V{bottom:.2f}" for x in columns)
        stroke, thickness = (_BLOCK_LINE, 0.6) if is_fine else (_CHUNK_LINE, 1.2)
        return f'<path d="{path}" fill="none" stroke="{stroke}" stroke-width="{thickness}"/>'


def plot_layout(
    array: xr.DataArray, patch: Sizes, *, plane: tuple[str, str] | None = None
) -> LayoutPlot:
    """Draw which chunks and blocks of its file a patch in the middle of an array touches.

    Parameters
    ----------
    array
        The whole of an `.mla` file, loaded or not; no voxel is read.
    patch
        As of `plan_layout`: a size for all spatial axes, one per axis, or by dimension.
    plane
        Dimensions that run down and to the right; the last two are the default.

    Raises
    ------
    LayoutError
        When the array is not all of a file, has one axis or no voxels, or the patch or the plane
        does not fit it.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> array = np.zeros((64, 64, 64), "int16")
    >>> _ = mlarray_xr.to_mla(array, "drawn.mla", chunks=32, blocks=16)
    >>> plot = plot_layout(mlarray_xr.open_mla("drawn.mla"), 16)
    >>> plot.n_chunks, plot.n_blocks, plot.amplification
    (8, 8, 8.0)
    """
    basis, chunks, blocks = _stored(array)
    if array.ndim < 2 or 0 in array.shape:
        raise LayoutError(f"an array of shape {array.shape} has no plane to draw")
    layout = Layout(chunks=chunks, blocks=blocks, basis=basis)
    dims = tuple(map(str, array.dims))
    window = basis.patch_window(patch)
    box = tuple(((n - p) // 2, (n - p) // 2 + p) for n, p in zip(array.shape, window, strict=True))
    return LayoutPlot(
        dims=dims,
        shape=array.shape,
        chunks=chunks,
        blocks=blocks,
        itemsize=array.dtype.itemsize,
        box=box,
        plane=_plane_axes(dims, plane),
        mean_amplification=layout.cost(patch).amplification,
    )


def _stored(array: xr.DataArray) -> tuple[Basis, tuple[int, ...], tuple[int, ...]]:
    """Return what a layout is for, chunks and blocks of an array that is all of a file.

    Raises
    ------
    LayoutError
        When it is not, as far as one can tell of an array that has been loaded since.
    """
    file = whole_file_of(array)
    if file is not None:
        basis = Basis(
            shape=file.shape,
            itemsize=file.dtype.itemsize,
            dims=tuple(map(str, array.dims)),
            spatial=stored_axes(file.metadata, file.ndim).spatial,
        )
        return basis, file.chunks, file.blocks
    layout, described = stored_layout(array), read_metadata(array.attrs)
    positions = [file_positions(array, str(dim)) for dim in array.dims]
    is_whole = described is not None and described[1] == array.shape
    is_flipped = any(along is not None and along.flat[0] != 0 for along in positions)
    if layout is None or layout.basis is None or not is_whole or is_flipped:
        raise LayoutError(
            "chunks and blocks are known of whole files only, and this array is a part of one, "
            "computed, or from elsewhere. To fix: mlarray_xr.open_mla(path).mla.plot_layout(patch)"
        )
    return layout.basis, layout.chunks, layout.blocks


def _plane_axes(dims: tuple[str, ...], plane: Sequence[str] | None) -> tuple[int, int]:
    """Return the numbers of the drawn axes."""
    if plane is None:
        return len(dims) - 2, len(dims) - 1
    if len(plane) != 2 or len({*plane} & {*dims}) != 2:
        raise LayoutError(f"plane={tuple(plane)} is not two different ones of the axes {dims}")
    return dims.index(plane[0]), dims.index(plane[1])


def _borders(start: int, stop: int, *, chunk: int, block: int | None) -> list[int]:
    """Return where chunks, or blocks, begin strictly inside a span; one more than is drawn."""
    step = block or chunk
    found = []
    for first in range(start // chunk * chunk, stop, chunk):
        for border in range(first, min(first + chunk, stop), step):
            if start < border:
                found.append(border)
            if len(found) > _MOST_LINES:
                return found
    return found


def _named(dims: tuple[str, ...], sizes: tuple[int, ...]) -> str:
    """Return sizes with the names of their axes."""
    return ", ".join(f"{dim} {size}" for dim, size in zip(dims, sizes, strict=True))


def _times(sizes: tuple[int, ...]) -> str:
    """Return extents."""
    return " x ".join(map(str, sizes))
