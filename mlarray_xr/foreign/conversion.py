"""convert: from one file format to another, by the names of the files."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

from mlarray_xr.dask_caches import caches_for_write
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.case import Case
from mlarray_xr.foreign.comparison import Comparison, find_difference
from mlarray_xr.foreign.formats import FORMATS, MLA, format_of_source, format_of_target
from mlarray_xr.foreign.recipe import Recipe, opened, share_of
from mlarray_xr.foreign.scratch import scratch_folder
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.progress import shown_progress
from mlarray_xr.storage.remote_source import remote_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.array import MlaArray
    from mlarray_xr.foreign.formats import Format
    from mlarray_xr.planning.access import Preset
    from mlarray_xr.planning.caches import CacheSizes
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.nodes import ClusterCaches
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.progress import Shown
    from mlarray_xr.report import WriteReport
    from mlarray_xr.storage.job import Progress

__all__ = ["convert"]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    layout: Preset | None = None,
    caches: CacheSizes | ClusterCaches | Mapping[str, int | str] | str | None = None,
    codec: str | Codec = "auto",
    mode: Literal["w-", "w"] = "w-",
    source_format: str | None = None,
    dataset: str | None = None,
    resume: bool = False,
    verify: bool = False,
    memory_limit: int | str | None = None,
    progress: Shown = None,
) -> WriteReport | None:
    """Convert one image to the format that the name of the target asks for.

    What is read: NIfTI (``.nii``, ``.nii.gz``, ``.hdr``/``.img``), NRRD (``.nrrd``, ``.nhdr``),
    NumPy (``.npy``, ``.npz``), HDF5 (``.h5``, ``.hdf5``, ``.nwb``), NetCDF (``.nc``, ``.nc4``),
    Zarr and OME-Zarr (``.zarr``), TIFF (``.tif``, ``.tiff``, a folder of numbered planes), DICOM (a
    folder with a series, ``.dcm``), and ``.mla``, ``.mb2nd`` and ``.b2nd`` files for another layout
    or codec. What is written from `.mla`: NIfTI, ``.nrrd``, ``.npy`` and ``.zarr``. Voxels are
    never scaled, cast or reordered but for what `write_image` of a format says; geometry,
    attributes and headers are kept as far as the formats allow.

    Sources are read part by part. Those that are packed in one piece, such as ``.nii.gz``, are
    unpacked once, while what was unpacked before is encoded, where slabs along their slowest axis
    (runs of frames of a NIfTI series) are whole chunks and fit into memory; ``codec="auto"`` then
    goes by the first slabs. Otherwise, and with `resume` or an active distributed client, those of
    more than 64 MiB are unpacked to a folder beside the target first, which is removed at the end.
    The client's workers, which must see the files, then read and encode the parts.

    Parameters
    ----------
    src, dst
        Local paths; their suffixes tell the formats.
    patch, chunks, blocks, layout, caches, codec
        Layout and compression of an `.mla` target, as in `to_mla`.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it. Replacing the source is safe.
    source_format
        Format of the source, where its name does not tell: ``"nifti"``, ``"nrrd"``, ``"npy"``,
        ``"hdf5"``, ``"netcdf"``, ``"zarr"``, ``"tiff"``, ``"dicom"`` or ``"mla"``.
    dataset
        Which array, in sources that hold several: path of an HDF5 dataset, NetCDF variable or Zarr
        array, level of a pyramid, DICOM series; see the message that lists them.
    resume
        Keep what is done when the conversion fails, and begin with what an earlier one left. The
        target records its source; one that is a complete conversion of the same source, as it is
        now, is left as it is, and one of an earlier state of it is replaced.
    verify
        Read the target back and compare it with the source, bit by bit. A target that differs is
        removed.
    memory_limit
        Memory that the parts under way in one process may take, bytes or a text such as ``"2GB"``.
    progress
        Called with the number of chunks of the `.mla` file done and of all; verifying counts each
        again. True, False and None as in `mlarray_xr.to_mla`.

    Returns
    -------
    WriteReport or None
        None when the target is no `.mla` file, or was complete already.

    Raises
    ------
    ConversionError
        When there is no way between the two formats, the source is damaged or holds several
        arrays, the target cannot hold it, the target differs from it, or what was left behind is
        the beginning of another conversion.
    FileNotFoundError, FileExistsError
        When the source is missing, or the target exists and `mode` is ``"w-"``.
    TargetBusy
        When another conversion to the same target is under way.
    GeometryError
        When NIfTI needs to know where the voxels are, and the source does not say.
    MissingDependencyError
        When the library of a format is not installed; the message names the extra.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> np.save("scan.npy", np.zeros((32, 64, 64), "int16"))
    >>> report = mlarray_xr.convert("scan.npy", "scan.mla", chunks=32, codec="zstd-1", verify=True)
    >>> report.n_chunks, str(report.codec)
    (4, 'zstd-1')
    """
    if mode not in ("w-", "w"):
        raise ValueError(f"mode={mode!r} is not 'w-' (refuse an existing file) or 'w' (replace it)")
    source, target = _absolute(src), _absolute(dst)
    if not os.path.lexists(source):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), source)
    read, written = format_of_source(source, source_format), format_of_target(target)
    if read is None or written is None or MLA not in (read, written):
        raise ConversionError(_no_way(source, target))
    recipe = Recipe(
        patch=patch,
        chunks=chunks,
        blocks=blocks,
        layout=layout,
        caches=None if caches is None else caches_for_write(caches),
        codec=codec,
        dataset=dataset,
        verify=verify,
        memory_limit=None if memory_limit is None else parse_bytes(memory_limit),
    )
    case = Case(source=source, target=target, format=read)
    with shown_progress(progress, unit="chunk") as tell:
        if written is not MLA:
            _export(case, written, recipe, mode=mode, resume=resume, progress=tell)
            return None
        if not resume:
            return recipe.run(case, overwrite=mode == "w", progress=tell)
        step, origin = recipe.plan(case.measured(), overwrite=mode == "w", resume=True)
        if step == "skip":
            if verify:
                recipe.check(case)
            return None
        return recipe.run(
            case, overwrite=step == "replace", origin=origin, keeps=True, progress=tell
        )


def _export(
    case: Case,
    written: Format,
    recipe: Recipe,
    *,
    mode: Literal["w-", "w"],
    resume: bool,
    progress: Progress | None,
) -> None:
    """Convert an `.mla` file to another format."""
    if resume or replace(recipe, verify=False, memory_limit=None) != Recipe():
        raise ConversionError(
            f"{case.target}: patch, chunks, blocks, layout, caches, codec, dataset or resume were "
            f"given, and {written.name} files have none of them. To fix: leave them out"
        )
    assert written.write_image is not None
    array = cast("MlaArray", opened(case, scratch_dir=None, dataset=None).values)
    n = int(array.info()["n_chunks"])
    steps = 2 if recipe.verify else 1
    shown = share_of(progress, begin=0, length=n, overall=steps * n)
    written.write_image(array, case.target, mode=mode, progress=shown)
    if not recipe.verify:
        return
    with scratch_folder(case.target, None, keeps=False) as scratch:
        found = written.open_image(case.target, scratch_dir=scratch, dataset=None).values
        order = tuple(written.axis_order(array))
        box = find_difference(
            Comparison(source=array, target=found, order=order),
            chunks=array.chunks,
            memory_limit=recipe.memory_limit,
            progress=share_of(progress, begin=n, length=n, overall=steps * n),
        )
    if box is not None:
        raise ConversionError(
            f"{case.target}: box {box} of {case.source} is not what was written. To fix: remove "
            "it, check disk and memory of this machine, and convert again"
        )


def _absolute(path: str | os.PathLike[str]) -> str:
    """Return an absolute path.

    Raises
    ------
    ConversionError
        When it is a URL.
    """
    text = os.fsdecode(path)
    if "://" in text:
        name = remote_address(text).name
        raise ConversionError(f"{name}: local files are converted, not URLs. To fix: download it")
    return os.path.abspath(os.path.expanduser(text))


def _no_way(source: str, target: str) -> str:
    """Return the message that lists the ways there are."""
    read = [suffix for each in FORMATS for suffix in each.suffixes]
    written = [suffix for each in FORMATS for suffix in each.written_suffixes]
    return (
        f"{source} -> {target}: no way between the two. To fix: convert to .mla from "
        f"{', '.join(read)}, a folder of DICOM slices or numbered TIFF files; or from "
        f"{', '.join(MLA.suffixes)} to {', '.join(written)}. A folder of images is for "
        "mlarray_xr.convert_folder, or mla convert FOLDER FOLDER"
    )
