"""open_mla: one file as a labelled array."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr

from mlarray_xr.array import MlaArray
from mlarray_xr.backend import MlaBackendEntrypoint
from mlarray_xr.coordinates import attach_coords
from mlarray_xr.errors import FormatError
from mlarray_xr.overview_siblings import find_levels, level_path
from mlarray_xr.planning.overview_levels import choose_level
from mlarray_xr.record import stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["open_mla"]


def open_mla(
    path: Any,
    *,
    chunks: int | str | Mapping[Any, Any] | None = None,
    level: int | None = None,
    spacing: float | Mapping[str, float] | None = None,
    variable: str | None = None,
    checksums: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> xr.DataArray:
    """Open a file as a lazy DataArray in world coordinates.

    The same as ``xarray.open_dataset(path, engine="mlarray", chunks=chunks)[name]``, with the
    coordinates that need no index (such as b-values along time), which the engine cannot restore.

    Parameters
    ----------
    path
        A local path, a URL, a file's bytes, or a binary file object.
    chunks
        None: lazy without Dask. ``{}``: Dask, parts of whole file chunks sized for a task.
        ``"auto"``, numbers and mappings as in `xarray.open_dataset`.
    level
        Which overview to open instead, see `build_overviews`; 0 is the file itself.
    spacing
        The coarsest level whose voxels are nowhere further apart than this, in the units of the
        file, or the file itself where none is that fine: one number for all spatial dimensions, or
        a mapping from those that matter.
    variable
        Name of the array instead of ``"image"`` or ``"labels"``.
    checksums
        Whether each chunk is compared with its checksum when it is first read; files without
        checksums are then refused.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Returns
    -------
    xarray.DataArray
        Dimensions in array order, never transposed.

    Raises
    ------
    FileNotFoundError
        When no file is there, or not this level of it; the message says which there are.
    FormatError
        When the file is damaged or hostile, or holds metadata only.
    ValueError
        When `level` or `spacing` make no sense, or both are given.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.ones((4, 6, 8), "uint8"), "ones.mla")
    >>> array = mlarray_xr.open_mla("ones.mla")
    >>> array.dims, int(array.isel(z=0).sum())
    (('z', 'y', 'x'), 48)
    """
    if level is not None or spacing is not None:
        file = MlaArray(path, checksums=checksums, storage_options=storage_options, store=store)
        wanted = _level(file, find_levels(file), level=level, spacing=spacing)
        path = path if wanted == 0 else level_path(path, wanted)
    dataset = xr.open_dataset(
        path,
        engine=MlaBackendEntrypoint,
        chunks=chunks,
        variable=variable,
        checksums=checksums,
        storage_options=storage_options,
        store=store,
    )
    names = list(dataset.data_vars)
    if not names:
        msg = "the file holds metadata only, no array. To fix: read MlaArray(path).metadata"
        raise FormatError(msg)
    array = dataset[names[0]]
    array = attach_coords(array)
    array.set_close(dataset.close)
    return array


def _level(
    file: MlaArray,
    levels: Sequence[MlaArray],
    *,
    level: int | None,
    spacing: float | Mapping[str, float] | None,
) -> int:
    """Return which level is meant."""
    if level is None:
        return _level_by_spacing(levels, spacing)
    if spacing is not None or type(level) is not int or level < 0:
        msg = (
            f"level={level!r}, spacing={spacing!r}: one of them is needed, a level is a whole "
            "number from 0 on"
        )
        raise ValueError(msg)
    if level >= len(levels):
        there = (
            "no overviews, level 0 alone" if len(levels) == 1 else f"levels 0 to {len(levels) - 1}"
        )
        msg = (
            f"{file.path}: level {level} was asked for, there are {there}. To fix: "
            "mlarray_xr.build_overviews(path, levels=..., mode='w')"
        )
        raise FileNotFoundError(msg)
    return level


def _level_by_spacing(
    levels: Sequence[MlaArray], spacing: float | Mapping[str, float] | None
) -> int:
    """Return the coarsest level that is nowhere coarser than asked."""
    axes = stored_axes(levels[0].metadata, levels[0].ndim)
    asked: dict[str, Any] = dict.fromkeys(axes.spatial_dims, spacing)
    if isinstance(spacing, Mapping):
        asked = dict(spacing)
    for dim, most in asked.items():
        is_length = isinstance(most, int | float) and 0 < most < math.inf
        if dim not in axes.spatial_dims or not is_length:
            msg = (
                f"spacing={spacing!r}: numbers above 0 are needed, for some of the spatial "
                f"dimensions {axes.spatial_dims} or one for all"
            )
            raise ValueError(msg)
    found = [stored_geometry(one.metadata, axes).spacing for one in levels]
    n_axes = len(axes.spatial_dims)
    wanted = [asked.get(dim) for dim in axes.spatial_dims]
    return choose_level([each[:n_axes] for each in found], wanted=wanted)
