"""The layout of the file that an array came from, whatever it is opened as."""

from __future__ import annotations

from typing import Any

import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.caches import detect_caches
from mlarray_xr.planning.layout import Basis, Layout

__all__ = ["stored_layout", "template_layout"]


def stored_layout(array: xr.DataArray) -> Layout | None:
    """Return the layout of the file that an array was opened from; None for other arrays.

    Examples
    --------
    >>> stored_layout(xr.DataArray([1, 2])) is None
    True
    """
    encoding = array.encoding
    if "chunks" not in encoding or "blocks" not in encoding:
        return None
    chunks, blocks = tuple(encoding["chunks"]), tuple(encoding["blocks"])
    # The encoding keeps the order of the file; only this entry names its axes.
    dims = tuple(encoding.get("preferred_chunks", ()))
    if len(dims) == len(chunks) and sorted(map(str, dims)) == sorted(map(str, array.dims)):
        order = [dims.index(dim) for dim in array.dims]
        chunks, blocks = (tuple(sizes[i] for i in order) for sizes in (chunks, blocks))
    basis = None
    if len(chunks) == array.ndim:  # nothing was selected by number
        basis = Basis(
            shape=array.shape,
            itemsize=array.dtype.itemsize,
            caches=detect_caches(),
            dims=tuple(map(str, array.dims)),
        )
    return Layout(chunks=chunks, blocks=blocks, basis=basis)


def template_layout(template: Any) -> Layout:
    """Return the layout of a file that is named, opened, or the origin of an xarray object.

    Parameters
    ----------
    template
        A path, an `MlaArray`, a DataArray, or a Dataset of one variable.

    Raises
    ------
    LayoutError
        When an xarray object is none of a file.
    """
    if isinstance(template, xr.Dataset) and len(template.data_vars) == 1:
        (template,) = template.data_vars.values()
    if isinstance(template, xr.Dataset | xr.DataArray):
        found = stored_layout(template) if isinstance(template, xr.DataArray) else None
        if found is None:
            raise LayoutError(
                "template: not one array that was opened from an .mla file, or it was computed "
                "since. To fix: give the path of the file"
            )
        return found
    return (template if isinstance(template, MlaArray) else MlaArray(template)).layout
