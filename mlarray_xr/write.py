"""to_mla: arrays and labelled arrays become `.mla` files."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import xarray as xr

from mlarray_xr.dask_caches import caches_for_write
from mlarray_xr.dask_overviews import delayed_after
from mlarray_xr.dask_write import delayed_mapping
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.file_write import SUFFIX, file_name, prepare_file
from mlarray_xr.overviews import build_overviews, check_level_targets, method_for
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.planning.layout_request import LayoutRequest
from mlarray_xr.planning.overview_levels import check_level_count
from mlarray_xr.planning.reduction import check_reducible
from mlarray_xr.prepared import delayed_report, run_all
from mlarray_xr.region_write import prepare_region
from mlarray_xr.remote_write import object_address, prepare_object
from mlarray_xr.subject import variables_of
from mlarray_xr.template import template_layout

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.nodes import ClusterCaches
    from mlarray_xr.planning.region import Region
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.prepared import PreparedWrite
    from mlarray_xr.progress import Shown

__all__ = ["to_mla"]


def to_mla(
    obj: Any,
    path: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    layout: Layout | Preset | None = None,
    template: Any = None,
    caches: CacheSizes | ClusterCaches | Mapping[str, int | str] | str | None = None,
    codec: str | Codec | CodecChoice = "auto",
    lossy: bool = False,
    prefer: Preference = "balanced",
    mode: Literal["w-", "w", "r+"] = "w-",
    region: Region | Literal["auto"] | None = None,
    metadata: Metadata | None = None,
    block_index: bool | None = None,
    levels: int | Literal["auto"] | None = None,
    align_chunks: bool = True,
    compute: bool = True,
    resume: bool = False,
    memory_limit: int | str | None = None,
    progress: Shown = None,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> Any:
    """Write an array to one `.mla` file, which appears complete or not at all.

    Every task encodes whole chunks of the file and leaves them as a checksummed segment in
    ``<name>.mla.parts/`` beside the target; the last one joins the segments, reads samples back,
    forces the file to disk and gives it its name. No voxel passes through scheduler or client, an
    error leaves the target as it was, and of two writers of one file one succeeds. The same values,
    layout and caches it was planned for, codec and parts give the same bytes, whatever computes
    them. The reference package reads
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
        The target, ending in ``.mla``; for several variables a folder. Or the URL of an object
        (``s3://``, ``gs://``, ``az://``, what fsspec can write to), which appears complete or not
        at all as well: S3 gets pieces from all workers by way of s3fs, other stores whole files
        that are put together in Dask's ``temporary-directory``.
    patch
        Window that will be read most, elements: one number for every spatial axis, one entry per
        spatial or per array axis, or a mapping from dimension. Decides chunks and blocks, as
        `plan_layout` does. ``"default"`` is 192 per spatial axis, None leaves the choice to Blosc2.
    chunks, blocks
        Explicit shapes instead of `patch`, elements, array order.
    layout
        What `plan_layout` returned; or ``"frames"``, ``"series"`` or ``"balanced"``, for arrays
        with axes that are not spatial: the whole space at one time, all times of one voxel, both.
    template
        Take chunks, blocks and patch of another file instead, clipped to the array: a path, an
        `MlaArray`, or an array that was opened from one.
    caches
        Cache sizes of the cores that will read: ``"cluster"``, the least of all nodes of the active
        distributed client, and without one those of this machine, which is the default; what
        `cluster_caches` returned; or what `plan_layout` takes. A cluster without workers is waited
        for, 30 s at most. The sizes and where they come from are recorded in the file.
    codec
        Compression, such as ``"lz4hc-8"`` or ``"zstd-1-bitshuffle"``, or what `choose_codec` chose
        for similar values. ``"auto"`` tries lossless codecs on samples, as `choose_codec` does; of
        a Dask array on its middle, which is computed for that beforehand.
    lossy
        Whether `codec` may lose bits of floating point numbers, as ``"zstd-1-shuffle-trunc12"``
        does, which keeps 12 bits of the mantissa. ``"auto"`` is lossless in any case.
    prefer
        What ``codec="auto"`` looks for: ``"speed"``, ``"balanced"`` or ``"size"``.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it, ``"r+"`` writes into it, with
        the layout, codec and metadata that it has. Each is safe also for the file that `obj` is
        read from.
    region
        With ``"r+"`` what is replaced: slices by dimension, whole dimensions otherwise; slices in
        array order; ``"auto"``, where the coordinates are those of the file; None is the array.
        Readers see all of the old values or all of the new ones. One writer at a time.
    metadata
        Written instead of what the object itself says.
    block_index
        Whether the file tells in one place where the blocks of all chunks stand, which takes about
        0.04 % of it and spares readers of remote files a round trip. None: of URLs.
    levels
        How many overviews are made of the file when it is complete, as `build_overviews` does:
        coarser levels in files beside it. ``"auto"``: until one fits a screen. None makes none. The
        values of `obj` are computed once. With ``mode="w"`` levels of before are replaced.
    align_chunks
        Whether Dask chunks with borders inside a chunk of the file are rechunked, and what a
        region leaves of a chunk is read and written again; False refuses both.
    compute
        False returns a Delayed; the target is claimed at once.
    resume
        Keep what is done when the write fails, and begin with what an earlier one of the same
        values, layout, codec and metadata left. Parts whose checksums are right are not computed
        again. Of URLs those on S3 can be resumed; what is done is noted in ``<name>.mla.parts/``.
    memory_limit
        Memory that the parts under way in one process may take, bytes or a text such as ``"2GB"``;
        parts are made small enough. What the tasks that produce them hold comes on top.
    progress
        Called with the number of chunks done and of all chunks, from time to time and at the end;
        True shows a bar, False none. None shows one when the call takes longer than a second, in
        notebooks and terminals. Dask's own progress bars work as well.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

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
        When no layout satisfies the request, chunks do not fit, or parts not the memory; when the
        codec is unknown, or lossy without ``lossy=True`` or for this type.
    SourceError
        When a store cannot be reached, or refuses; `SourceDenied` when the credentials may not
        read and write there.

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
    bounds: dict[str, Any] = {
        "resume": resume,
        "memory_limit": None if memory_limit is None else parse_bytes(memory_limit),
    }
    way: dict[str, Any] = {"align_chunks": align_chunks, "compute": compute, **bounds}
    like = object_address(path, mode=mode, storage_options=storage_options, store=store)
    write: Callable[[Any, str], PreparedWrite]
    if mode == "r+":
        _check_kept((patch, chunks, blocks, layout, template, caches, codec, metadata, block_index))
        write = partial(prepare_region, region=region, **way)
    else:
        _check_new(mode, region)
        kept = layout if template is None else _copied(template, layout)
        write = partial(
            prepare_file,
            request=_request(caches, patch=patch, chunks=chunks, blocks=blocks, layout=kept),
            codec=codec,
            lossy=lossy,
            prefer=prefer,
            overwrite=mode == "w",
            metadata=metadata,
            block_index=like is not None if block_index is None else block_index,
            **way,
        )
    if like is not None:
        write = partial(prepare_object, prepare=write, like=like, overwrite=mode == "w", **bounds)
    is_local = like is None
    if levels is None:
        return _written(obj, path, write, is_local=is_local, compute=compute, progress=progress)
    _check_leveled(path, mode=mode, is_local=is_local)
    new: dict[str, Any] = {"levels": levels, "overwrite": mode == "w"}
    write = partial(_prepared_for_levels, write=write, **new)
    done = _written(obj, path, write, is_local=True, compute=compute, progress=progress)
    return _with_levels(done, **new, compute=compute, progress=progress)


def _check_kept(decided: tuple[object, ...]) -> None:
    """Refuse options that an existing file has decided."""
    defaults = ("default", None, None, None, None, None, "auto", None, None)
    for value, default in zip(decided, defaults, strict=True):
        is_default = value is None if default is None else isinstance(value, str)
        if not is_default or value != default:
            msg = (
                "mode='r+': layout, codec and metadata are those of the file. To fix: leave out "
                "patch, chunks, blocks, layout, template, caches, codec and metadata"
            )
            raise ConversionError(msg)


def _request(
    caches: CacheSizes | ClusterCaches | Mapping[str, int | str] | str | None,
    *,
    patch: Sizes | Literal["default"] | None,
    chunks: Sizes | None,
    blocks: Sizes | None,
    layout: Layout | Preset | None,
) -> LayoutRequest:
    """Return what is asked of the layout; nobody is asked for caches that have no say."""
    request = LayoutRequest(patch=patch, chunks=chunks, blocks=blocks, layout=layout)
    if caches is None and not request.goes_by_caches:
        return request
    return replace(request, caches=caches_for_write(caches))


def _copied(template: Any, layout: object) -> Layout:
    """Return the layout of another file, when it is the only one that is given."""
    if layout is not None:
        raise LayoutError(
            f"layout={layout!r} and template={template!r} exclude each other; give one of them"
        )
    return template_layout(template)


def _check_new(mode: str, region: object) -> None:
    """Refuse modes that there are not, and a region of a file that is not there yet."""
    if mode not in ("w-", "w") or region is not None:
        msg = (
            f"mode={mode!r}, region={region!r}: modes are 'w-' (refuse an existing file), 'w' "
            "(replace it) and 'r+' (write into it), which alone takes a region"
        )
        raise ValueError(msg)


def _written(
    obj: Any,
    path: str | os.PathLike[str],
    write: Callable[[Any, str], PreparedWrite],
    *,
    is_local: bool,
    compute: bool,
    progress: Shown,
) -> Any:
    """Write an object, or tell how that is done later."""
    if isinstance(obj, xr.Dataset) and len(obj.data_vars) != 1:
        folder = os.fsdecode(path)
        return _write_variables(
            obj, folder, write, is_local=is_local, compute=compute, progress=progress
        )
    prepared = write(obj, file_name(path) if is_local else os.fsdecode(path))
    if not compute:
        return delayed_report(prepared)
    (report,) = run_all([prepared], progress)
    return report


def _check_leveled(
    path: str | os.PathLike[str], *, mode: Literal["w-", "w", "r+"], is_local: bool
) -> None:
    """Refuse overviews of what is not written whole, or not here."""
    if mode == "r+" or not is_local:
        msg = (
            f"{os.fsdecode(path).partition('?')[0]}, mode={mode!r}: overviews are made of whole "
            "local files. To fix: leave levels out; after the write, and before an upload, "
            "mlarray_xr.build_overviews(path, mode='w') makes them"
        )
        raise ConversionError(msg)


def _prepared_for_levels(
    obj: Any,
    path: str,
    *,
    write: Callable[[Any, str], PreparedWrite],
    levels: int | Literal["auto"],
    overwrite: bool,
) -> PreparedWrite:
    """Prepare a write of which overviews will be made, unless they cannot be."""
    check_level_count(levels)
    check_level_targets(path, overwrite=overwrite)
    prepared = write(obj, path)
    with prepared.cleaned_up():
        subject = prepared.subject
        dtype = subject.values.dtype
        check_reducible(dtype, method_for(subject.metadata, dtype))
    return prepared


def _with_levels(
    done: Any,
    *,
    levels: int | Literal["auto"],
    overwrite: bool,
    compute: bool,
    progress: Shown,
) -> Any:
    """Make overviews of what was written, or tell how that is done later; return its reports."""
    if not compute:
        build = partial(_with_levels, levels=levels, overwrite=overwrite, compute=True)
        return delayed_after(partial(build, progress=False), done)
    for report in done.values() if isinstance(done, dict) else [done]:
        mode: Literal["w", "w-"] = "w" if overwrite else "w-"
        build_overviews(report.path, levels=levels, mode=mode, progress=progress)
    return done


def _write_variables(
    dataset: xr.Dataset,
    folder: str,
    write: Callable[[Any, str], PreparedWrite],
    *,
    is_local: bool,
    compute: bool,
    progress: Shown,
) -> Any:
    """Write every variable of a dataset to a file of its name in a folder."""
    arrays = variables_of(dataset)
    for name in arrays:
        if os.path.basename(name) != name or name.startswith(".") or not name:
            msg = f"variable {name!r}: no name for a file. To fix: ds.rename(...)"
            raise ConversionError(msg)
    if is_local:
        os.makedirs(folder, exist_ok=True)
    prepared: list[PreparedWrite] = []
    try:
        for name, array in arrays.items():
            place = f"{folder.rstrip('/')}/{name}{SUFFIX}"
            path = file_name(os.path.join(folder, name + SUFFIX)) if is_local else place
            prepared.append(write(array, path))
    except BaseException:
        for one in prepared:
            one.give_up()
        raise
    if compute:
        return dict(zip(arrays, run_all(prepared, progress), strict=True))
    return delayed_mapping({n: delayed_report(p) for n, p in zip(arrays, prepared, strict=True)})
