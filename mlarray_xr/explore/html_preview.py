"""What a notebook shows of an array: its central planes and its facts, and nothing of a patient."""

from __future__ import annotations

import base64
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.attributes import shown_text
from mlarray_xr.errors import MissingDependencyError, MlaError, MlaWarning
from mlarray_xr.explore.central_planes import known_geometry
from mlarray_xr.explore.picture import png_bytes
from mlarray_xr.explore.preview import draw_planes
from mlarray_xr.html_table import facts_table, printable
from mlarray_xr.opened_file import file_of, whole_file_of
from mlarray_xr.planning.byte_amount import in_words
from mlarray_xr.storage.address import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable

    import xarray as xr

    from mlarray_xr.array import MlaArray
    from mlarray_xr.explore.preview import Drawing, DrawnPlane

__all__ = ["html_of"]

_SIZE_PX = 256
_MOST_BLOCK_BYTES = 64 << 20
"""Of larger blocks even three take longer to decode than one waits for a picture."""

_BOX = "display:flex;flex-wrap:wrap;gap:8px;align-items:flex-start"
_LETTER = (
    "position:absolute;color:#fff;font:bold 12px sans-serif;line-height:1;"
    "text-shadow:1px 1px 1px #000,-1px -1px 1px #000,1px -1px 1px #000,-1px 1px 1px #000"
)
_SMALL = "font:12px sans-serif;line-height:1.4"
_PLACES = {
    "top": "top:3px;left:50%;transform:translateX(-50%)",
    "bottom": "bottom:3px;left:50%;transform:translateX(-50%)",
    "left": "left:3px;top:50%;transform:translateY(-50%)",
    "right": "right:3px;top:50%;transform:translateY(-50%)",
}


def html_of(array: xr.DataArray) -> str:
    """Return the central planes of an array and a table of its facts, as HTML for a notebook.

    Planes are shown of `.mla` files, of lazy selections of them, and of arrays in memory; nothing
    that Dask would have to compute is computed. Nothing of free-form metadata, attributes or names
    of variables and files is shown. What goes wrong is shown and never raised.

    Parameters
    ----------
    array
        Any array.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.arange(6000, dtype="int16").reshape(10, 20, 30), "shown.mla")
    >>> html_of(mlarray_xr.open_mla("shown.mla")).count("<img")
    3
    """
    drawing, note = _drawing(array)
    try:
        planes = "" if drawing is None else _planes(drawing)
        table = facts_table(_facts(array, drawing))
    except Exception as error:  # a notebook shows a traceback instead of the array
        planes, note = "", f"not all could be shown: {type(error).__name__}"
        table = facts_table([("shape", _sizes(array)), ("type", str(array.dtype))])
    line = f'<div style="{_SMALL}">{printable(note)}</div>' if note else ""
    return f'<div><div style="{_BOX}">{planes}<div>{table}</div></div>{line}</div>'


def _drawing(array: xr.DataArray) -> tuple[Drawing | None, str]:
    """Return the picture of an array, if it has one, and what there is to say about it."""
    obstacle = _obstacle(array)
    if obstacle:
        return None, obstacle
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", MlaWarning)
            drawing = draw_planes(array, size_px=_SIZE_PX)
    except MissingDependencyError:
        return (
            None,
            'no picture: Pillow is not installed. To fix: pip install "mlarray-xr[preview]"',
        )
    except (MlaError, OSError) as error:
        # What the error says may hold the name of the file, and that the name of a patient.
        return None, f"no picture: reading the array fails with {type(error).__name__}"
    except Exception as error:  # a notebook shows a traceback instead of the array
        return None, f"no picture: {type(error).__name__}"
    notes = []
    if any(issubclass(each.category, MlaWarning) for each in caught):
        notes.append("overviews beside the file do not belong to it and were not used")
    if drawing.n_skipped > 1:
        notes.append(f"coarse: 1 of {drawing.n_skipped} voxels")
        file = whole_file_of(array)
        if file is not None and file.path is not None and not is_url(file.path):
            notes.append("mlarray_xr.build_overviews(path) makes it sharp")
    return drawing, "; ".join(notes)


def _obstacle(array: xr.DataArray) -> str:
    """Say why an array is not drawn, before anything is read; nothing when it may be."""
    if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "biufc":
        return "no picture: two axes and some numbers are needed"
    file = file_of(array)
    if file is not None:
        block_bytes = math.prod(file.blocks) * file.dtype.itemsize
        if block_bytes > _MOST_BLOCK_BYTES:
            return f"no picture: one block of the file is {in_words(block_bytes)}"
        return ""
    if array.chunks is not None:
        return "no picture: Dask has not computed these values"
    if not isinstance(array.variable._data, np.ndarray):  # noqa: SLF001 - `data` would read it all
        return "no picture: these values are neither loaded nor those of an .mla file"
    return ""


def _planes(drawing: Drawing) -> str:
    """Return all planes; the first has the scale bar."""
    first, *others = drawing.planes
    bar = (
        f'<div style="position:absolute;left:8px;bottom:6px;width:{drawing.bar.length_px}px;'
        'height:3px;background:#fff;box-shadow:0 0 2px #000"></div>'
        f'<span style="{_LETTER};left:8px;bottom:12px;font-weight:normal">'
        f"{printable(drawing.bar.text)}</span>"
    )
    return _plane(first, over=bar) + "".join(_plane(plane, over="") for plane in others)


def _plane(plane: DrawnPlane, *, over: str) -> str:
    """Return one plane with its letters and caption."""
    height, width = plane.pixels.shape[:2]
    encoded = base64.b64encode(png_bytes(plane.pixels)).decode()
    size = f"width:{width}px;height:{height}px"
    edges = plane.view.edges
    letters = (
        ""
        if edges is None
        else "".join(
            f'<span style="{_LETTER};{place}">{getattr(edges, side)}</span>'
            for side, place in _PLACES.items()
        )
    )
    caption = printable(plane.view.caption)
    return (
        f'<div><div style="position:relative;background:#000;{size}">'
        f'<img alt="plane {caption}" style="display:block;margin:0;max-width:none;{size}" '
        f'src="data:image/png;base64,{encoded}">{letters}{over}</div>'
        f'<div style="{_SMALL}">{caption}</div></div>'
    )


def _facts(array: xr.DataArray, drawing: Drawing | None) -> Iterable[tuple[str, str]]:
    """Yield what is known of an array; of its file only numbers."""
    yield "shape", _sizes(array)
    yield "type", f"{array.dtype}, {in_words(array.nbytes)}"
    yield from _world(array)
    if array.chunks is not None:
        n_parts = math.prod(map(len, array.chunks))
        largest = (max(sizes, default=0) for sizes in array.chunks)
        named = zip(map(str, array.dims), largest, strict=True)
        yield "Dask", f"{n_parts} parts of " + ", ".join(f"{dim} {n}" for dim, n in named)
    file = file_of(array)
    if file is not None:
        yield from _stored(file, is_whole=whole_file_of(array) is not None)
    if drawing is not None and whole_file_of(array) is not None:
        yield "overviews", str(drawing.n_overviews or "none")


def _world(array: xr.DataArray) -> Iterable[tuple[str, str]]:
    """Yield where an array lies."""
    geometry = known_geometry(array)
    if geometry is None:
        return
    steps = [
        f"{dim} {step:.4g} {unit or ''}".strip()
        for dim, step, unit in zip(geometry.dims, geometry.spacing, geometry.units, strict=True)
        if dim in array.dims
    ]
    yield "spacing", ", ".join(steps)
    system = shown_text(geometry.coord_system or "not stated")
    yield "world", f"{system}, oblique" if geometry.world_axes() is None else system


def _stored(file: MlaArray, *, is_whole: bool) -> Iterable[tuple[str, str]]:
    """Yield how a file is stored."""
    facts: dict[str, Any] = file.info()
    if not is_whole:
        yield "part of", " x ".join(map(str, file.shape))
    yield "stored", f"{in_words(facts['file_bytes'])}, ratio {facts['ratio']:.3g}"
    chunks, blocks = (" x ".join(map(str, shape)) for shape in (file.chunks, file.blocks))
    yield "chunks", f"{chunks}, {in_words(facts['chunk_bytes'])} each"
    yield "blocks", f"{blocks}, {in_words(facts['block_bytes'])} each"
    yield "codec", " ".join([f"{facts['codec']}-{facts['level']}", *facts["filters"]])


def _sizes(array: xr.DataArray) -> str:
    """Return names and extents of the dimensions."""
    return ", ".join(f"{dim} {size}" for dim, size in array.sizes.items())
