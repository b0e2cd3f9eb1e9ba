"""NetCDF files, 3 and 4: one variable of a file, lazily, as the numbers that are stored.

Nothing of CF is applied to the variable: ``scale_factor``, ``add_offset`` and ``_FillValue`` are
attributes. To its coordinates it is, so that times are times.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.foreign.hdf5_file import check_self_contained, is_hdf5
from mlarray_xr.foreign.image import ForeignImage
from mlarray_xr.foreign.labelled import (
    check_values,
    choose_dataset,
    coordinate_names,
    dataset_parts,
    decoded_coordinate,
    is_storable,
    labelled_metadata,
)
from mlarray_xr.storage.source import LocalSource, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Metadata

__all__ = ["NetcdfArray", "open_image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetcdfArray:
    """One variable of a NetCDF file: an address; each read opens the file and closes it.

    Opening takes about a millisecond. The library serves one thread at a time, in the whole
    process: reads take the locks under which xarray uses it.
    """

    source: LocalSource
    """The file, pinned."""
    variable: str
    """Name of the variable, after those of its groups."""
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
            with _opened(self.source.path) as file:
                return np.asarray(_item(file, self.variable)[key], self.dtype)
        except (IndexError, KeyError, OSError, RuntimeError, ValueError) as error:
            raise ConversionError(
                f"{self.source.path}: variable {self.variable!r} cannot be read at {key}: {error}. "
                "It is damaged, or its filter is not installed. To fix: copy the file again"
            ) from error

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.NetcdfArray", *self.source.token, self.variable)


def open_image(path: str, *, scratch_dir: str | None, dataset: str | None) -> ForeignImage:
    """Open a variable of a NetCDF file; reads its attributes and coordinates only.

    Parameters
    ----------
    path
        A local file.
    scratch_dir
        Unused: variables are read where they lie.
    dataset
        Name of the variable, ``"group/variable"`` in a group. By default the only one of two or
        more axes that is no coordinate.

    Raises
    ------
    FileNotFoundError
        When no file is there.
    ConversionError
        When it is no NetCDF file or a damaged one, the variable has elements that cannot be
        converted, the file refers to others, or there are several variables and none was chosen.
    MissingDependencyError
        When netCDF4, or h5py for files of NetCDF 4, is not installed.

    Examples
    --------
    >>> import xarray as xr
    >>> array = xr.DataArray(np.zeros((4, 5), "int16"), dims=("y", "x"), name="ct")
    >>> array.assign_coords(y=[0.0, 2, 4, 6], x=[0.0, 1, 2, 3, 4]).to_netcdf("ct.nc")
    >>> image = open_image("ct.nc", scratch_dir=None, dataset=None)
    >>> image.values.dtype, image.metadata.spatial.affine
    (dtype('int16'), ((2.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
    """
    del scratch_dir
    source = source_of(path)
    assert isinstance(source, LocalSource)
    if is_hdf5(source.path):
        check_self_contained(source.path)
    try:
        with _opened(source.path) as file:
            _check_length(file, source.size)
            name = _chosen(file, dataset)
            found = _item(file, name)
            check_values(found.shape, _dtype(found))
            values = NetcdfArray(
                source=source, variable=name, shape=found.shape, dtype=_dtype(found)
            )
            return ForeignImage(values=values, metadata=_metadata(found))
    except (IndexError, KeyError, OSError, RuntimeError, ValueError) as error:
        raise ConversionError(f"{source.path}: {error}") from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """Open a file and hold the library's locks; nothing is masked, scaled or joined to texts."""
    from xarray.backends.locks import HDF5_LOCK, NETCDFC_LOCK, combine_locks

    try:
        import netCDF4
    except ImportError as error:
        raise MissingDependencyError(
            "NetCDF files need netCDF4, which is not installed. "
            'To fix: pip install "mlarray-xr[netcdf]"'
        ) from error
    with combine_locks([NETCDFC_LOCK, HDF5_LOCK]), netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        file.set_auto_chartostring(False)
        yield file


def _check_length(file: Any, size: int) -> None:
    """Refuse a truncated file of NetCDF 3: the library reads zeros where it ends.

    Header and elements, each padded to four bytes, make up the file (the format's specification).
    """
    if not file.data_model.startswith("NETCDF3"):
        return
    count = 8 if file.data_model.endswith("DATA") else 4
    offset = 4 if file.data_model == "NETCDF3_CLASSIC" else 8
    header = 16 + 3 * count + sum(2 * count + _padded(len(name)) for name in file.dimensions)
    header += _attributes_bytes(file, count)
    elements = 0
    for name, found in file.variables.items():
        header += _padded(len(name)) + (3 + found.ndim) * count + 4 + offset
        header += 4 + _attributes_bytes(found, count)
        elements += found.size * found.dtype.itemsize
    if size < header + elements:
        raise ConversionError(
            f"the file has {size} bytes, its variables need {elements} after {header} of header: "
            "it is truncated. To fix: copy it again"
        )


def _attributes_bytes(item: Any, count: int) -> int:
    """Return how many bytes the attributes of a file or variable of NetCDF 3 take at least."""
    total = count
    for name in item.ncattrs():
        value = item.getncattr(name)
        length = len(value) if isinstance(value, str) else np.asarray(value).nbytes
        total += count + _padded(len(name)) + 4 + count + _padded(length)
    return total


def _padded(n_bytes: int) -> int:
    """Round up to four bytes."""
    return -(-n_bytes // 4) * 4


def _item(file: Any, name: str) -> Any:
    """Return the variable or group of that name."""
    found = file
    for part in dataset_parts(name):
        members = {} if _is_variable(found) else {**found.groups, **found.variables}
        if part not in members:
            raise ConversionError(
                f"the file holds no {name!r}. To fix: dataset= is one of {sorted(members)[:20]}"
            )
        found = members[part]
    return found


def _is_variable(item: Any) -> bool:
    """Tell variables from groups; both have the attributes that a file gives them."""
    import netCDF4

    return isinstance(item, netCDF4.Variable)


def _dtype(variable: Any) -> np.dtype[Any]:
    """Return the type of the elements; an object type where each has a length of its own."""
    has_lengths = variable.dtype is str or variable._isvlen  # noqa: SLF001 - says nothing else
    dtype: np.dtype[Any] = np.dtype(object if has_lengths else variable.dtype)
    return dtype


def _chosen(file: Any, dataset: str | None) -> str:
    """Return the name of the variable that is meant."""
    start = "" if dataset is None else "/".join(dataset_parts(dataset))
    found = _item(file, start)
    if _is_variable(found):
        return start
    candidates = {}
    pending = [(start, found)]
    while pending:
        path, group = pending.pop()
        pending += [(f"{path}/{name}".strip("/"), item) for name, item in group.groups.items()]
        used = _coordinates_of_others(group)
        for name, item in group.variables.items():
            with contextlib.suppress(ConversionError):
                check_values(item.shape, _dtype(item))
                if name not in used:
                    candidates[f"{path}/{name}".strip("/")] = (item.shape, _dtype(item))
    return choose_dataset(candidates)


def _coordinates_of_others(group: Any) -> set[str]:
    """Return the variables of a group that describe another: coordinates, bounds, mappings."""
    used = set()
    for name, item in group.variables.items():
        attrs = _attributes(item)
        used |= {other for other in coordinate_names(item.dimensions, attrs) if other != name}
        used |= {name} & {*item.dimensions}
        used |= {str(attrs[key]) for key in ("bounds", "grid_mapping") if key in attrs}
    return used


def _attributes(variable: Any) -> dict[str, Any]:
    """Return the attributes of a variable."""
    return {name: variable.getncattr(name) for name in variable.ncattrs()}


def _metadata(found: Any) -> Metadata:
    """Return the metadata of a variable."""
    attrs = _attributes(found)
    coords = {}
    for name in coordinate_names(found.dimensions, attrs):
        stored = _in_scope(found.group(), name)
        if stored is not None and stored.name != found.name:
            coordinate = _coordinate(name, stored)
            if coordinate is not None:
                coords[name] = coordinate
    return labelled_metadata(
        shape=found.shape,
        dims=found.dimensions,
        attrs=attrs,
        coords=coords,
        name=found.name,
        file_format="netcdf",
    )


def _in_scope(group: Any, name: str) -> Any:
    """Return a variable of a group or the groups around it, None where there is none."""
    while group is not None:
        if name in group.variables:
            return group.variables[name]
        group = group.parent
    return None


def _coordinate(name: str, stored: Any) -> xr.Variable | None:
    """Return a coordinate; None where it has no place in a file."""
    dtype = _dtype(stored)
    is_text = stored.dtype is str
    shape = stored.shape[:-1] if dtype == "S1" else stored.shape
    if not (is_text or dtype.kind in "biufS") or not is_storable(name, shape):
        return None
    return decoded_coordinate(name, stored.dimensions, stored[...], _attributes(stored))
