"""A file's labels as a Zarr 3 group: coordinates, attributes, and an array without values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from mlarray_xr.coordinates import attach_coords
from mlarray_xr.dataset import dataset_from
from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.foreign.labelled import MAX_COORDINATE_LENGTH
from mlarray_xr.foreign.multiscales import multiscales_of
from mlarray_xr.foreign.zarr_store import is_member_name
from mlarray_xr.record import stored_axes, stored_geometry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.array import MlaArray

__all__ = ["ImageForm", "add_image", "add_multiscales", "zarr_attributes"]

_FILL_VALUE = "_FillValue"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageForm:
    """How the chunks of an image are stored."""

    chunks: tuple[int, ...]
    """Extents of a chunk, array order, at least 1 each."""
    fill_value: float | int | bool
    """What chunks that are not there hold."""
    serializer: Any = "auto"
    """The codec of zarr-python that makes bytes of a chunk; ``"auto"`` is its own."""
    compressors: Any = None
    """The codec of zarr-python that packs these bytes, or None."""
    shards: tuple[int, ...] | None = None
    """Extents of a shard, whole chunks; None for one object per chunk."""


def add_image(store: Any, array: MlaArray, form: ImageForm, *, group: str = "") -> str:
    """Write group, coordinates and the array of a file into a store, but none of its voxels.

    Zarr 3 has one byte order: big-endian numbers become the machine's.

    Parameters
    ----------
    store
        A folder, or a store of zarr-python that can be written.
    array
        The file.
    form
        How its chunks will be stored.
    group
        Path of the group in the store; the root by default.

    Returns
    -------
    str
        Path of the array in the store.

    Raises
    ------
    ConversionError
        When names of the file cannot be names in Zarr.
    MissingDependencyError
        When zarr is not installed.
    """
    zarr = _zarr()
    labelled = _labelled(array)
    path = f"{group}/{labelled.name}".lstrip("/")
    with warnings.catch_warnings():
        # Names with spaces cannot be listed as coordinates; they are in our metadata.
        warnings.simplefilter("ignore", xr.SerializationWarning)
        _coordinates(labelled).to_zarr(
            store, group=group or None, mode="a", zarr_format=3, consolidated=False
        )
    zarr.open_group(store, mode="r+", use_consolidated=False).create_array(
        path,
        shape=array.shape,
        chunks=form.chunks,
        shards=form.shards,
        dtype=array.dtype.newbyteorder("="),
        serializer=form.serializer,
        compressors=form.compressors,
        fill_value=form.fill_value,
        dimension_names=stored_axes(array.metadata, array.ndim).dims,
        attributes=zarr_attributes(labelled.attrs),
    )
    return path


def add_multiscales(store: Any, levels: Mapping[str, MlaArray]) -> None:
    """Say in the attributes of the root where the levels of an image lie, where NGFF allows it.

    Parameters
    ----------
    store
        As of `add_image`.
    levels
        The levels by the paths of their arrays, finest first.
    """
    described = {}
    for path, level in levels.items():
        axes = stored_axes(level.metadata, level.ndim)
        described[path] = stored_geometry(level.metadata, axes)
    finest = next(iter(levels.values()))
    ome = multiscales_of(
        dims=stored_axes(finest.metadata, finest.ndim).dims,
        levels=described,
        coords=_coordinates(_labelled(finest)).coords,
    )
    group = _zarr().open_group(store, mode="r+", use_consolidated=False)
    group.update_attributes(ome or {})


def zarr_attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the attributes of a variable without the one that xarray does not read as it is.

    In Zarr it takes ``_FillValue`` for its own encoding of one, and fails. The attribute stays in
    the metadata of the file, which are an attribute as well.
    """
    return {str(name): value for name, value in attrs.items() if name != _FILL_VALUE}


def _zarr() -> Any:
    """Return zarr-python."""
    try:
        import zarr
    except ImportError as error:
        raise MissingDependencyError(
            'Zarr needs zarr-python 3, which is not installed. To fix: pip install "mlarray-xr'
            '[zarr]"'
        ) from error
    return zarr


def _labelled(array: MlaArray) -> xr.DataArray:
    """Return a file's labels, all of its coordinates included, on a stand-in for its values."""
    stand_in = np.broadcast_to(np.zeros((), np.bool_), array.shape)
    dataset = dataset_from(stand_in, array)
    labelled = attach_coords(next(iter(dataset.data_vars.values())))
    names = {labelled.name, *labelled.dims, *labelled.coords}
    wrong = sorted(str(name) for name in names if not is_member_name(name))
    if wrong:
        raise ConversionError(
            f"{wrong} cannot name arrays in Zarr. To fix: rename the array, its dimensions or its "
            "coordinates"
        )
    return labelled


def _coordinates(labelled: xr.DataArray) -> xr.Dataset:
    """Return the coordinates of a file as Zarr can hold them."""
    coords = xr.Dataset(coords=labelled.coords)
    too_long = [name for name in coords.coords if coords[name].size > MAX_COORDINATE_LENGTH]
    # Texts of fixed size have no specification in Zarr 3.
    text_type = np.dtypes.StringDType()
    texts = {name: c.astype(text_type) for name, c in coords.coords.items() if c.dtype.kind == "U"}
    return coords.assign_coords(texts).drop_vars(too_long)
