"""Writing into an existing file: a region of it is replaced, all at once or not at all."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.dask import from_address, thread_memory_bytes, warn_of_many_tasks
from mlarray_xr.dask_write import merged_array
from mlarray_xr.errors import ConversionError
from mlarray_xr.merged import Merged
from mlarray_xr.planning.assignment import fit_dtype
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.region import check_region_borders, plan_outer_box, plan_region
from mlarray_xr.planning.write_plan import check_chunk_borders, plan_parts
from mlarray_xr.prepared import LARGER_PARTS, claim_write, parts_in_flight
from mlarray_xr.read import open_mla
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.edit import local_source
from mlarray_xr.storage.editable import plan_of
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.source import source_of
from mlarray_xr.subject import subject_of

if TYPE_CHECKING:
    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.region import Region
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.subject import Subject

__all__ = ["prepare_region"]


def prepare_region(
    obj: Any,
    path: str,
    *,
    region: Region | Literal["auto"] | None,
    align_chunks: bool,
    compute: bool,
    resume: bool,
    memory_limit: int | None,
) -> PreparedWrite:
    """Plan the write of a region, and claim its file.

    Chunks that the region touches in part keep what is around it, which is read from the file.

    Parameters
    ----------
    obj
        As of `to_mla`.
    path
        The file.
    region
        What is replaced, see `plan_region`; ``"auto"`` is where the coordinates of the object are
        those of the file.
    align_chunks
        Whether the region, and the chunks of a Dask array, may cut chunks of the file.
    compute, resume, memory_limit
        As of `to_mla`.

    Raises
    ------
    FileNotFoundError, FormatError
        When there is no such file.
    ConversionError
        When the file's type cannot hold the values, its compression is not made here, or the
        dimensions are others.
    LayoutError
        When chunks are cut that must not be, or the parts do not fit the memory.
    IndexError, ValueError
        When the region reaches outside the array, or the values have another shape.
    """
    began = time.time()
    target = os.path.realpath(path)
    source = local_source(source_of(target))
    plan = plan_of(open_frame(source).header, name=path)
    old, subject = MlaArray(target), subject_of(obj)
    dims = _common_dims(subject, old)
    box = plan_region(
        _located(obj, target) if region == "auto" else region,
        dims=dims,
        shape=old.shape,
        values_shape=tuple(subject.values.shape),
    )
    fit_dtype(np.empty(0, subject.values.dtype), old.dtype)
    outer = plan_outer_box(box, shape=old.shape, chunks=old.chunks)
    if not align_chunks:
        _check_borders(subject, old, box=box, outer=outer, dims=dims)
    uses_tasks = subject.is_dask or not compute or subject.goes_to_workers
    merged = _merged(subject, old, box=box, outer=outer, uses_tasks=uses_tasks)
    parts = plan_parts(
        box_shape(outer),
        plan.layout,
        itemsize=plan.dtype.itemsize,
        in_flight=parts_in_flight(uses_tasks=uses_tasks),
        source_chunks=merged.chunks if uses_tasks else None,
        memory_limit=memory_limit,
        thread_bytes=thread_memory_bytes() if uses_tasks else None,
    )
    if uses_tasks:
        warn_of_many_tasks(len(parts), fix=LARGER_PARTS)
    return claim_write(
        replace(subject, values=merged),
        path=path,
        target=target,
        plan=plan,
        parts=replace(parts, origin=tuple(pair[0] for pair in outer)),
        metadata=b"",
        overwrite=True,
        resume=resume,
        uses_tasks=uses_tasks,
        choice=None,
        began=began,
        token=repr((subject.token(), box, old.__dask_tokenize__())) if resume else None,
        into=source,
        region=box,
    )


def _check_borders(
    subject: Subject, old: MlaArray, *, box: Box, outer: Box, dims: tuple[str, ...]
) -> None:
    """Refuse a region, and chunks of a Dask array, that cut chunks of the file."""
    check_region_borders(box, outer, dims)
    if subject.is_dask:
        start = tuple(pair[0] for pair in box)
        check_chunk_borders(subject.values.chunks, old.chunks, dims, origin=start)


def _merged(subject: Subject, old: MlaArray, *, box: Box, outer: Box, uses_tasks: bool) -> Any:
    """Return the values, and what the file has around them in the chunks that they touch."""
    values = subject.values
    if not uses_tasks:
        return Merged(old, values, box)
    if not subject.is_dask:
        values = from_address(values, chunks=tuple((n,) for n in values.shape))
    return merged_array(values, old, box=box, outer=outer)


def _common_dims(subject: Subject, old: MlaArray) -> tuple[str, ...]:
    """Return the dimensions of a file, and make sure that those of the values are the same."""
    found = stored_axes(old.metadata, old.ndim)
    given = stored_axes(subject.metadata, len(subject.values.shape))
    if given.dims != found.dims and not (given.assumed or found.assumed):
        msg = (
            f"values with dimensions {given.dims} for a file with {found.dims}. To fix: "
            f"array.transpose{found.dims}, or .rename(...)"
        )
        raise ConversionError(msg)
    return found.dims


def _located(obj: Any, path: str) -> dict[str, slice]:
    """Return where the coordinates of a labelled array are those of a file."""
    array = next(iter(obj.data_vars.values())) if isinstance(obj, xr.Dataset) else obj
    if not isinstance(array, xr.DataArray):
        msg = f"region='auto' needs a DataArray with coordinates, got {type(obj).__name__}"
        raise ConversionError(msg)
    target = open_mla(path)
    region = {}
    for dim, n in array.sizes.items():
        if dim not in array.indexes or dim not in target.indexes:
            continue
        found = target.indexes[dim].get_indexer(array.indexes[dim])
        if (found != found[:1] + np.arange(n)).any() or (found < 0).any():
            msg = (
                f"region='auto': the coordinates along {dim!r} are not a run of those of {path}. "
                "To fix: say where, region={...: slice(start, stop)}"
            )
            raise ConversionError(msg)
        region[str(dim)] = slice(int(found[0]), int(found[0]) + n) if n else slice(0, 0)
    return region
