"""HDF5 files: one dataset of a file, lazily, with the labels that are known to be used there.

What is understood: dimension scales (HDF5's own specification), ``element_size_um`` (ilastik and
PlantSeg: voxel size z, y, x in micrometres), ``axistags`` (vigra, which ilastik writes), and
nifreeze's files (see `mlarray_xr.foreign.nifreeze`).
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.hdf5_file import (
    attributes,
    check_storage,
    explained,
    links,
    opened,
    resolved,
)
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.labelled import (
    check_values,
    choose_dataset,
    dataset_parts,
    decoded_coordinate,
    is_storable,
    labelled_metadata,
)
from mlarray_xr.foreign.nifreeze import (
    SERIES,
    companion_datasets,
    is_nifreeze,
    nifreeze_affine,
    nifreeze_coords,
    nifreeze_dims,
    nifreeze_source,
)
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Json, Metadata

__all__ = ["Hdf5Array", "open_image"]

_UNUSED_SCALE = "This is a netCDF dimension but not a netCDF variable"
_VIGRA_DIMS = {"x": "x", "y": "y", "z": "z", "t": "time", "c": "channel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Array:
    """One dataset of an HDF5 file: an address; each read opens the file and closes it.

    Opening takes a third of a millisecond. In return there is no handle that a thread, a fork or a
    pickle could carry along; HDF5 itself lets one thread read at a time.
    """

    source: LocalSource
    """The file, pinned."""
    dataset: str
    """Path of the dataset inside the file, without links."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements, byte order as stored."""

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box.

        Raises
        ------
        SourceChanged
            When the file was replaced since it was opened.
        ConversionError
            When a chunk of the box is damaged or its filter is not installed.
        """
        self.source.check()
        try:
            with opened(self.source.path) as file:
                # HDF5 gives scalars for arrays without axes.
                return np.asarray(file[self.dataset][key], self.dtype)
        except (KeyError, OSError, RuntimeError, ValueError) as error:
            raise ConversionError(
                f"{self.source.path}: dataset {self.dataset!r} cannot be read at {key}: {error}. "
                "It is damaged, or its filter is not installed. To fix: (1) copy the file again; "
                "(2) pip install hdf5plugin, and import it"
            ) from error

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.Hdf5Array", *self.source.token, self.dataset)


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a dataset of an HDF5 file; reads its attributes and scales, none of its elements.

    Parameters
    ----------
    path
        A local file.
    scratch_dir
        Unused: datasets are read where they lie.
    dataset
        Path of the dataset inside the file. By default the only one of two or more axes, of
        nifreeze's files the series with its companions ``"mask"`` and ``"bzero"``.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    ConversionError
        When it is no HDF5 file or a damaged one, the dataset has elements that cannot be converted
        or lies partly in another file, or there are several and none was chosen.
    MissingDependencyError
        When h5py is not installed.

    Examples
    --------
    >>> import h5py
    >>> with h5py.File("cells.h5", "w") as file:
    ...     raw = file.create_dataset("raw", data=np.zeros((4, 5, 6), "uint16"))
    ...     raw.attrs["element_size_um"] = [0.5, 0.25, 0.25]
    >>> image = open_image("cells.h5", scratch_dir=None, dataset=None)
    >>> image.values.shape, image.metadata.spatial.spacing
    ((4, 5, 6), (0.5, 0.25, 0.25))
    """
    del scratch_dir
    source = source_of(path)
    assert isinstance(source, LocalSource)
    with explained(source.path), opened(source.path) as file:
        found = _own_dataset(file, _chosen(file, dataset))
        image = _image(source, file, found)
        if dataset is not None:
            return image
        companions = {
            name: _image(source, file, volume)
            for name, volume in companion_datasets(file, found).items()
        }
    if "mask" in companions:
        mask = companions["mask"]
        companions["mask"] = replace(mask, metadata=replace(mask.metadata, is_seg=True))
    return replace(image, companions=companions)


def _image(source: LocalSource, file: Any, found: Any) -> ForeignImage:
    """Return the address of a dataset and its metadata."""
    check_values(found.shape, found.dtype)
    name, dtype = found.name, np.dtype(found.dtype.str)
    values = Hdf5Array(source=source, dataset=name, shape=found.shape, dtype=dtype)
    return ForeignImage(values=values, metadata=_metadata(file, found))


def _chosen(file: Any, dataset: str | None) -> str:
    """Return the path of the dataset that is meant."""
    start = "/" if dataset is None else resolved(file, dataset_parts(dataset))
    if hasattr(file[start], "shape"):
        return start
    if dataset is None and is_nifreeze(file):
        return resolved(file, SERIES)
    prefix = start.rstrip("/") + "/"
    candidates = {}
    for name, item in links(file):
        shape = getattr(item, "shape", None)
        if shape is None or item.is_scale or not name.startswith(prefix):
            continue
        with contextlib.suppress(ConversionError, TypeError):
            check_values(shape, item.dtype)
            candidates[name] = (shape, item.dtype)
    return choose_dataset(candidates)


def _own_dataset(file: Any, name: str) -> Any:
    """Return a dataset all of whose elements are in the file."""
    found = file[name]
    if getattr(found, "shape", None) is None:
        raise ConversionError(f"{name!r} is no array. To fix: choose another with dataset=")
    check_storage(found)
    return found


def _metadata(file: Any, found: Any) -> Metadata:
    """Return the metadata of a dataset."""
    attrs = attributes(found)
    dims, coords = _scales(found)
    tags = _vigra_dims(attrs, found.ndim)
    affine = nifreeze_affine(file, found)
    if affine is not None:
        tags = nifreeze_dims(file, found, affine)
        coords |= nifreeze_coords(file, found)
        attrs.pop("volume_axis", None)
    metadata = labelled_metadata(
        shape=found.shape,
        dims=[dim or tag for dim, tag in zip(dims, tags, strict=True)],
        attrs=attrs,
        coords=coords,
        name=found.name.rpartition("/")[2],
        file_format="hdf5",
    )
    if affine is not None and found.ndim == 4:
        metadata = replace(metadata, source={**metadata.source, "nifreeze": nifreeze_source(file)})
    spatial = metadata.spatial
    if spatial.affine is not None:
        return metadata
    along, size = spatial.spatial_axes(ndim=found.ndim), _element_size(attrs)
    if affine is not None:
        rows = tuple(map(tuple, affine.tolist()))
        lengths: list[Json] = ["mm" if axis in along else "" for axis in range(found.ndim)]
        spatial = replace(spatial, affine=rows, coord_system="RAS+", axis_units=lengths)
    elif size is not None and len(along) == len(size):
        units: list[Json] = ["um" if axis in along else "" for axis in range(found.ndim)]
        spatial = replace(spatial, spacing=size, axis_units=units)
    return replace(metadata, spatial=spatial)


def _scales(found: Any) -> tuple[list[str | None], dict[str, xr.Variable]]:
    """Return the names of the dimensions, and the coordinates that dimension scales give."""
    dims: list[str | None] = []
    coords = {}
    for axis in found.dims:
        scales = {scale.name.rpartition("/")[2]: scale for scale in axis.values()}
        dim = axis.label or next(iter(scales), None)
        dims.append(dim)
        for name, scale in scales.items():
            values = _scale_values(scale)
            if values is not None:
                coords[name] = decoded_coordinate(name, [str(dim)], values, attributes(scale))
    return dims, coords


def _scale_values(scale: Any) -> NDArray[Any] | None:
    """Return the positions along a dimension; None where a scale does nothing but name it."""
    import h5py

    title = scale.attrs.get("NAME", b"")
    title = title.decode("latin-1") if isinstance(title, bytes) else str(title)
    is_text = h5py.check_string_dtype(scale.dtype) is not None
    if title.startswith(_UNUSED_SCALE) or not (is_text or scale.dtype.kind in "biuf"):
        return None
    if scale.ndim != 1 or not is_storable(scale.name, scale.shape):
        return None
    check_storage(scale)
    return np.asarray(scale.asstr()[...] if is_text else scale[...])


def _vigra_dims(attrs: Mapping[str, Any], ndim: int) -> Sequence[str | None]:
    """Return the names that the attribute ``axistags`` gives, one per axis or None."""
    try:
        keys = [axis["key"] for axis in json.loads(attrs["axistags"])["axes"]]
        names = [_VIGRA_DIMS[key] for key in keys]
    except (KeyError, RecursionError, TypeError, ValueError):
        return [None] * ndim
    return names if len({*names}) == len(names) == ndim else [None] * ndim


def _element_size(attrs: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the attribute ``element_size_um``: three lengths, array order, micrometres."""
    try:
        size = tuple(map(float, attrs["element_size_um"]))
    except (KeyError, TypeError, ValueError):
        return None
    is_size = len(size) == 3 and all(math.isfinite(length) and length > 0 for length in size)
    return size if is_size else None
