"""The layout of the file that an array came from, whatever it is opened as."""

from __future__ import annotations

from typing import Any

import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import read_metadata
from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.layout import Basis, Layout
from mlarray_xr.record import stored_axes

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
    if sorted(map(str, dims)) != sorted(map(str, array.dims)):
        return Layout(chunks=chunks, blocks=blocks)  # an axis was selected by number, or renamed
    order = [dims.index(dim) for dim in array.dims]
    chunks, blocks = (tuple(sizes[i] for i in order) for sizes in (chunks, blocks))
    basis = Basis(
        shape=array.shape, itemsize=array.dtype.itemsize, dims=tuple(map(str, array.dims))
    )
    return Layout(chunks=chunks, blocks=blocks, patch=_patch(array, dims), basis=basis)


def _patch(array: xr.DataArray, dims: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the patch that the file of an array was written for, in the order of the array."""
    described = read_metadata(array.attrs)
    patch = None if described is None else described[0].blosc2.patch_size
    if described is None or patch is None:
        return None
    spatial = stored_axes(described[0], len(dims)).spatial
    if len(patch) != len(spatial):
        return None
    along = {dims[axis]: size for axis, size in zip(spatial, patch, strict=True)}
    return tuple(along[dim] for dim in array.dims if dim in along)


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
        if found is None or found.basis is None:
            raise LayoutError(
                "template: not one array with the axes of the .mla file that it was opened from, "
                "or it was computed since. To fix: give the path of the file"
            )
        return found
    return (template if isinstance(template, MlaArray) else MlaArray(template)).layout
