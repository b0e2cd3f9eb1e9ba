"""to_mla: arrays and labelled arrays become `.mla` files."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from mlarray_xr.dask import has_client
from mlarray_xr.dask_write import choose_on_worker, delayed_mapping
from mlarray_xr.errors import ConversionError
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import plan_layout
from mlarray_xr.planning.write_plan import parse_bytes
from mlarray_xr.prepared import delayed_report, prepare, run_all
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.encode import FramePlan
from mlarray_xr.storage.job import part_of
from mlarray_xr.storage.publication import check_target
from mlarray_xr.storage.trial import choose_codec_for
from mlarray_xr.subject import Subject, subject_of, variables_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.layout import Layout, Sizes
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.storage.job import Progress

__all__ = ["to_mla"]

_SUFFIX = ".mla"


def to_mla(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    codec: str | Codec = "auto",
    prefer: Preference = "balanced",
    mode: Literal["w-", "w"] = "w-",
    metadata: Metadata | None = None,
    align_chunks: bool = True,
    compute: bool = True,
    resume: bool = False,
    memory_limit: int | str | None = None,
    progress: Progress | None = None,
) -> Any:
    """Write an array to one `.mla` file, which appears complete or not at all.

    Every task encodes whole chunks of the file and leaves them as a checksummed segment in
    ``<name>.mla.parts/`` beside the target; the last one joins the segments, reads samples back,
    forces the file to disk and gives it its name. No voxel passes through scheduler or client, an
    error leaves the target as it was, and of two writers of one file one succeeds. The same values,
    layout, codec and parts give the same bytes, whatever computes them. The reference package reads
    the result: releases 0.0.49 to 0.0.54, of files that state a coordinate system 0.0.54 only,
    because older ones refuse that field.

    Parameters
    ----------
    obj
        A DataArray, a Dataset, a Dask array, an `MlaArray`, whatever has shape, dtype and slicing
        (HDF5 and Zarr arrays, memory maps), or anything NumPy takes. Labels, geometry and
        attributes of xarray objects are stored. A Dataset of several variables becomes a folder
        with a file for each, which `xarray.open_mfdataset` opens again.
    path
        The target, ending in ``.mla``; for several variables a folder.
    patch
        Window that will be read most, elements: one number for every spatial axis, one entry per
        spatial axis, or a mapping from dimension. Decides chunks and blocks. ``"default"`` is 192
        per spatial axis, None the whole array.
    chunks, blocks
        Explicit shapes instead of `patch`, elements, array order.
    codec
        Compression, such as ``"lz4hc-8"`` or ``"zstd-1-bitshuffle"``. ``"auto"`` tries lossless
        codecs on samples, as `choose_codec` does; of a Dask array on its middle, which is computed
        for that beforehand.
    prefer
        What ``codec="auto"`` looks for: ``"speed"``, ``"balanced"`` or ``"size"``.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it. Replacing the file that `obj` is
        read from is safe.
    metadata
        Written instead of what the object itself says.
    align_chunks
        Whether Dask chunks with borders inside a chunk of the file are rechunked; False refuses
        them.
    compute
        False returns a Delayed; the target is claimed at once.
    resume
        Keep what is done when the write fails, and begin with what an earlier one of the same
        values, layout, codec and metadata left. Parts whose checksums are right are not computed
        again.
    memory_limit
        Memory that the parts under way in one process may take, bytes or a text such as ``"2GB"``;
        parts are made small enough. What the tasks that produce them hold comes on top.
    progress
        Called with the number of chunks done and of all chunks, from time to time and at the end.
        Dask's own progress bars work as well.

    Returns
    -------
    WriteReport, dict or dask.delayed.Delayed
        Bytes, chunks, ratio, seconds, workers, layout and codec; of several variables a mapping
        from name to report; with ``compute=False`` a Delayed of it.

    Raises
    ------
    FileExistsError
        When the target exists and `mode` is ``"w-"``.
    TargetBusy
        When another writer is at work on the target: a FileExistsError that names it.
    ConversionError
        When the object cannot be expressed (object types, another suffix), or what was left behind
        is the beginning of another write.
    LayoutError
        When no layout satisfies the request, chunks do not fit, or parts not the memory.

    Examples
    --------
    >>> import numpy as np, xarray as xr, mlarray_xr
    >>> volume = xr.DataArray(
    ...     np.zeros((8, 16, 16), "int16"),
    ...     dims=("z", "y", "x"),
    ...     coords={"z": 2.0 * np.arange(8), "y": 0.5 * np.arange(16), "x": 0.5 * np.arange(16)},
    ... )
    >>> report = mlarray_xr.to_mla(volume, "volume.mla", patch=8)
    >>> xr.open_dataset("volume.mla", engine="mlarray").image.mla.spacing
    {'z': 2.0, 'y': 0.5, 'x': 0.5}
    """
    if mode not in ("w-", "w"):
        msg = f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)"
        raise ValueError(msg)
    write = partial(
        _prepared,
        patch=patch,
        chunks=chunks,
        blocks=blocks,
        codec=codec,
        prefer=prefer,
        overwrite=mode == "w",
        metadata=metadata,
        align_chunks=align_chunks,
        compute=compute,
        resume=resume,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
    )
    if isinstance(obj, xr.Dataset) and len(obj.data_vars) != 1:
        return _write_variables(obj, os.fsdecode(path), write, compute=compute, progress=progress)
    prepared = write(subject_of(obj), _file_name(path))
    if not compute:
        return delayed_report(prepared)
    (report,) = run_all([prepared], progress)
    return report


def _prepared(
    subject: Subject,
    path: str,
    *,
    patch: Sizes | Literal["default"] | None,
    chunks: Sizes | None,
    blocks: Sizes | None,
    codec: str | Codec,
    prefer: Preference,
    overwrite: bool,
    metadata: Metadata | None,
    align_chunks: bool,
    compute: bool,
    resume: bool,
    memory_limit: int | None,
) -> PreparedWrite:
    """Plan the write of one file, and claim its target."""
    began = time.time()
    target, _ = check_target(path, overwrite=overwrite)
    described = subject.metadata if metadata is None else metadata
    axes = stored_axes(described, len(subject.values.shape))
    layout = plan_layout(
        subject.values.shape,
        subject.values.dtype,
        patch=patch,
        dims=axes.dims,
        spatial=axes.spatial,
        chunks=chunks,
        blocks=blocks,
    )
    choice = _choice(subject, layout, prefer) if codec == "auto" else None
    plan = FramePlan(
        shape=tuple(subject.values.shape),
        dtype_str=subject.values.dtype.str,
        layout=layout,
        codec=_codec(codec) if choice is None else choice.codec,
    )
    uses_tasks = subject.is_dask or not compute or (subject.has_address and has_client())
    return prepare(
        subject,
        path=path,
        target=target,
        plan=plan,
        metadata=described,
        dims=axes.dims,
        overwrite=overwrite,
        align_chunks=align_chunks,
        resume=resume,
        memory_limit=memory_limit,
        uses_tasks=uses_tasks,
        choice=choice,
        began=began,
    )


def _choice(subject: Subject, layout: Layout, prefer: Preference) -> CodecChoice:
    """Choose a codec by trial."""
    if subject.is_dask:
        return choose_on_worker(subject.values, layout, prefer=prefer)
    return choose_codec_for(
        partial(part_of, subject.values),
        shape=tuple(subject.values.shape),
        dtype=subject.values.dtype,
        layout=layout,
        prefer=prefer,
    )


def _codec(codec: str | Codec) -> Codec:
    """Return the codec that was named."""
    return Codec.parse(codec) if isinstance(codec, str) else codec


def _write_variables(
    dataset: xr.Dataset,
    folder: str,
    write: Callable[[Subject, str], PreparedWrite],
    *,
    compute: bool,
    progress: Progress | None,
) -> Any:
    """Write every variable of a dataset to a file of its name in a folder."""
    arrays = variables_of(dataset)
    for name in arrays:
        if os.path.basename(name) != name or name.startswith(".") or not name:
            msg = f"variable {name!r}: no name for a file. To fix: ds.rename(...)"
            raise ConversionError(msg)
    os.makedirs(folder, exist_ok=True)
    prepared: list[PreparedWrite] = []
    try:
        for name, array in arrays.items():
            path = _file_name(os.path.join(folder, name + _SUFFIX))
            prepared.append(write(subject_of(array), path))
    except BaseException:
        for one in prepared:
            one.give_up()
        raise
    if compute:
        return dict(zip(arrays, run_all(prepared, progress), strict=True))
    return delayed_mapping({n: delayed_report(p) for n, p in zip(arrays, prepared, strict=True)})


def _file_name(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a target that the reference package would open."""
    target = os.fsdecode(path)
    if "://" in target:
        msg = f"{target}: URLs cannot be written. To fix: write a local file and upload it"
        raise ConversionError(msg)
    if not target.endswith(_SUFFIX):
        msg = f"{target}: the name must end in {_SUFFIX!r}: other readers go by it"
        raise ConversionError(msg)
    return os.path.abspath(os.path.expanduser(target))
