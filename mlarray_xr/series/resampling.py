"""Frames in the place of the reference: read where motion took them, always from the originals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from xarray.core import indexing

from mlarray_xr.attributes import METADATA_ATTR
from mlarray_xr.errors import GeometryError, MissingDependencyError
from mlarray_xr.placement import geometry_of
from mlarray_xr.planning.assignment import fit_dtype
from mlarray_xr.series.axis import ORIG_VOLUME, is_numbered, series_dim, with_orig_volume
from mlarray_xr.series.originals import FromStored, positions_in, stored_series

if TYPE_CHECKING:
    from types import ModuleType

    import xarray as xr
    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.geometry import Geometry

__all__ = ["ResampledFrames", "plan_index_map", "resample_frame", "resampled"]

_RESAMPLED = "resampled"
"""Attribute of arrays whose values were interpolated."""

_WHOLE = 1e-6
"""Voxels: an index this close to an integer is that integer, as everywhere in the package."""

_MAX_ORDER = 5


def resampled(
    array: xr.DataArray,
    motion: ArrayLike | Mapping[int, ArrayLike],
    *,
    order: int = 3,
    dim: str | None = None,
    fill_value: float = 0,
) -> xr.DataArray:
    """Return a series in the place of a reference, given where each frame lay; a lazy view.

    The value at a world position p of the result is that of frame k at ``motion[k] @ p``, as ITK
    and nitransforms define it. Frames are read from the file, also outside of a crop, and of an
    array that was resampled before the originals are taken: nothing is interpolated twice. Of
    values that are in no file, those of `array` are.

    Parameters
    ----------
    array
        A series whose grid is the grid of the result; selections of frames and crops allowed.
    motion
        For s spatial dimensions either (n, s + 1, s + 1), one matrix for each frame of `array`, or
        a mapping from ``orig_volume`` to matrices (s + 1, s + 1). World position in the reference
        to world position in the frame; world axes and units are those of the file.
    order
        Of the spline, 0 (nearest; for labels) to 5. Whole voxels are moved without interpolating.
    dim
        The dimension that frames lie along.
    fill_value
        What lies outside of a frame gets.

    Returns
    -------
    xarray.DataArray
        Shape, type and coordinates of `array`; whole numbers are rounded and kept in range. A
        frame is computed when it is asked for, with about 16 bytes per voxel. With Dask, one task
        for each frame. Gradient directions are those of the frames as they were taken.

    Raises
    ------
    GeometryError
        When positions are unknown.
    MissingDependencyError
        When SciPy is not installed.
    TypeError, ValueError
        When motion, order or fill value make no sense, or `array` holds values that were resampled
        and no longer knows the originals; when a frame that is read holds NaN or infinity, and the
        order is above 1.

    Examples
    --------
    >>> import xarray as xr
    >>> profile = xr.DataArray(
    ...     [[0.0, 1, 4, 9], [16, 25, 36, 49]], dims=("time", "x"), coords={"x": [0.0, 2, 4, 6]}
    ... )
    >>> moved = resampled(profile, [np.eye(2), [[1, 2], [0, 1]]])
    >>> moved.values
    array([[ 0.,  1.,  4.,  9.], [25., 36., 49.,  0.]])
    """
    _scipy_ndimage()
    if order not in range(_MAX_ORDER + 1):
        msg = f"order={order!r} is no order of a spline. To fix: 0 (nearest) to {_MAX_ORDER}"
        raise ValueError(msg)
    along = series_dim(array, dim)
    numbered = with_orig_volume(array, along)
    if numbered.dtype.kind not in "biufc" or numbered.dtype.char in "gG":
        msg = f"values of type {numbered.dtype} cannot be interpolated; numbers are needed"
        raise TypeError(msg)
    found = stored_series(numbered, along) if is_numbered(array, along) else None
    if found is not None and not {*found.dims} <= {along, *_frame_geometry(found, along).dims}:
        found = None  # which of its channels these are, nothing tells
    stored = _bare(numbered if found is None else found)
    if _RESAMPLED in stored.attrs:
        msg = (
            "these values were resampled before, and the originals are no longer known: doing it "
            "again would blur them twice. To fix: (1) resample the series that was opened; (2) if "
            f"these are your originals, del array.attrs[{_RESAMPLED!r}]"
        )
        raise ValueError(msg)
    frames = ResampledFrames(
        numbered, stored, motion, dim=along, order=order, fill_value=fill_value
    )
    lazy: Any = indexing.CopyOnWriteArray(cast("Any", indexing.LazilyIndexedArray(frames)))
    view = numbered.copy(deep=False, data=lazy).drop_encoding()
    view = view.assign_attrs({_RESAMPLED: f"spline of order {order}"})
    if array.chunks is None or stored.chunks is not None:
        return view  # a task of Dask must not compute another graph
    return view.chunk({**dict.fromkeys(view.dims, -1), along: 1})


class ResampledFrames(FromStored):
    """The frames behind `resampled`, for xarray's lazy indexing; thread-safe and picklable.

    Parameters
    ----------
    array
        Numbered series with the grid of the result.
    stored
        Numbered series that frames are read from.
    motion, order, fill_value
        See `resampled`.
    dim
        The dimension that frames lie along, in both.
    """

    def __init__(
        self,
        array: xr.DataArray,
        stored: xr.DataArray,
        motion: ArrayLike | Mapping[int, ArrayLike],
        *,
        dim: str,
        order: int,
        fill_value: float,
    ) -> None:
        self.stored, self.shape, self.dtype = stored, array.shape, stored.dtype
        target, source = _frame_geometry(array, dim), _frame_geometry(stored, dim)
        if {*target.dims} != {*source.dims}:
            msg = f"frames lie along {source.dims}, the result would along {target.dims}"
            raise GeometryError(msg)
        numbers = array.coords[ORIG_VOLUME].values
        self._maps = np.array(
            [plan_index_map(source, target, m) for m in _matrices(motion, numbers, target)]
        ).reshape(-1, len(target.dims), len(target.dims) + 1)
        self._positions = positions_in(stored, array)
        self._dim, self._dims, self._spatial = dim, array.dims, target.dims
        self._order = order
        is_whole = isinstance(fill_value, float) and fill_value.is_integer()
        self._fill_value = fit_dtype(
            np.asarray(int(fill_value) if is_whole else fill_value), self.dtype
        )[()]

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Compute what an xarray indexer selects, frame by frame."""
        if isinstance(key, indexing.VectorizedIndexer):
            support = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, support, self._outer)
        return self._outer(key.tuple)

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Compute integers, slices and 1-D arrays, each along its own axis."""
        axis = self._dims.index(self._dim)
        rest = key[:axis] + key[axis + 1 :]
        wanted = np.arange(self.shape[axis])[key[axis]]
        if not np.ndim(wanted):
            return _outer_of(self._frame(int(wanted)), rest)
        frame_shape = self.shape[:axis] + self.shape[axis + 1 :]
        shape = _outer_of(np.broadcast_to(np.zeros((), "?"), frame_shape), rest).shape
        out = np.empty((len(wanted), *shape), self.dtype)
        for k, number in enumerate(wanted if out.size else ()):
            out[k] = _outer_of(self._frame(int(number)), rest)
        return np.moveaxis(out, 0, sum(np.ndim(k) > 0 or isinstance(k, slice) for k in key[:axis]))

    def _frame(self, k: int) -> NDArray[Any]:
        """Return one frame of the result, whole, in the order of its dimensions."""
        sizes = {d: n for d, n in zip(self._dims, self.shape, strict=True) if d != self._dim}
        others = [dim for dim in sizes if dim not in self._spatial]
        frame = self.stored.variable.isel({self._dim: int(self._positions[k])})
        dims = [*frame.dims, *(dim for dim in self._spatial if dim not in frame.dims)]
        values = frame.to_numpy()[(..., *(None,) * (len(dims) - frame.ndim))]
        values = np.transpose(values, [dims.index(dim) for dim in (*others, *self._spatial)])
        shape = tuple(sizes.get(dim, 1) for dim in self._spatial)
        out = np.empty((*values.shape[: len(others)], *shape), self.dtype)
        for place in np.ndindex(*values.shape[: len(others)]):
            out[place] = resample_frame(
                values[place],
                self._maps[k],
                shape=shape,
                order=self._order,
                fill_value=self._fill_value,
            )
        here = [*others, *(dim for dim in self._spatial if dim in sizes)]
        out = out.reshape([sizes[dim] for dim in here])
        return np.transpose(out, [here.index(dim) for dim in sizes])


def plan_index_map(source: Geometry, target: Geometry, motion: ArrayLike) -> NDArray[np.float64]:
    """Return the affine from indices of the result to indices of a frame.

    Parameters
    ----------
    source
        Where the frame lies.
    target
        Where the result lies; same dimensions, whose order both sides of the map have.
    motion
        (s + 1, s + 1); world position in the result to world position in the frame.

    Returns
    -------
    numpy.ndarray
        (s, s + 1) float64; the last column is the index that index 0 comes from.

    Raises
    ------
    GeometryError
        When no index belongs to a position in the frame.
    """
    source.world_to_index(source.origin)  # says what is wrong with it
    columns = [*(source.dims.index(dim) for dim in target.dims), -1]
    place = np.asarray(source.affine)[:, columns]
    moved = np.asarray(motion, np.float64) @ np.asarray(target.affine)
    index_map: NDArray[np.float64] = np.linalg.solve(place, moved)[:-1]
    return index_map


def resample_frame(
    values: NDArray[Any],
    index_map: NDArray[np.float64],
    *,
    shape: tuple[int, ...],
    order: int,
    fill_value: Any,
) -> NDArray[Any]:
    """Return the values of a frame at the indices that a map tells.

    Parameters
    ----------
    values
        The frame: numbers, as many axes as the map has rows.
    index_map
        From `plan_index_map`.
    shape
        Extents of the result.
    order
        Of the spline, 0 to 5.
    fill_value
        What lies outside of the frame gets.

    Examples
    --------
    >>> back = np.array([[1.0, 0.5]])
    >>> resample_frame(np.array([0.0, 2, 4]), back, shape=(3,), order=1, fill_value=-1)
    array([ 1.,  3., -1.])
    """
    # Rounding must put no voxel of the first or last plane outside.
    longest = np.maximum(np.asarray(shape, dtype=np.float64) - 1, 0)
    matrix, offset = index_map[:, :-1] * (longest > 0), index_map[:, -1]
    whole, start = np.rint(matrix), np.rint(offset)
    is_whole = np.abs(matrix - whole) @ longest + np.abs(offset - start) <= _WHOLE
    if is_whole.all() and not (whole - np.diag(np.diag(whole))).any():
        steps = np.diag(whole).astype(np.int64)
        return _moved(values, steps, start.astype(np.int64), shape=shape, fill_value=fill_value)
    if order > 1 and values.dtype.kind in "fc" and not np.isfinite(values).all():
        msg = (
            f"a frame holds NaN or infinity, which a spline of order {order} spreads over all of "
            "it. To fix: (1) order=1 or order=0; (2) array.fillna(0) before"
        )
        raise ValueError(msg)
    # Types that SciPy does not interpolate go through one that holds all their values.
    via = {"?": "u1", "e": "f4"}.get(values.dtype.char, values.dtype.newbyteorder("="))
    moved: NDArray[Any] = _scipy_ndimage().affine_transform(
        values.astype(via, copy=False),
        np.where(is_whole[:, None], whole, matrix),
        np.where(is_whole, start, offset),
        output_shape=shape,
        output=np.dtype(via),
        order=order,
        mode="constant",
        cval=fill_value,
    )
    return moved.astype(values.dtype, copy=False)


def _moved(
    values: NDArray[Any],
    steps: NDArray[np.int64],
    start: NDArray[np.int64],
    *,
    shape: tuple[int, ...],
    fill_value: Any,
) -> NDArray[Any]:
    """Return the values at whole indices, exactly."""
    indices = [s + step * np.arange(n) for s, step, n in zip(start, steps, shape, strict=True)]
    inside = [(i >= 0) & (i < n) for i, n in zip(indices, values.shape, strict=True)]
    out = np.full(shape, fill_value, values.dtype)
    out[np.ix_(*inside)] = values[np.ix_(*(i[k] for i, k in zip(indices, inside, strict=True)))]
    return out


def _outer_of(values: NDArray[Any], key: tuple[Any, ...]) -> NDArray[Any]:
    """Select integers, slices and 1-D arrays, each along its own axis."""
    for axis in reversed(range(len(key))):  # the last first: integers remove axes
        values = values[(slice(None),) * axis + (key[axis],)]
    return values


def _matrices(
    motion: ArrayLike | Mapping[int, ArrayLike], numbers: NDArray[np.int64], target: Geometry
) -> NDArray[np.float64]:
    """Return one checked matrix for each frame, (n, s + 1, s + 1)."""
    size = len(target.dims) + 1
    if isinstance(motion, Mapping):
        missing = [number for number in numbers.tolist() if number not in motion]
        if missing:
            msg = (
                f"motion names no matrix for {ORIG_VOLUME} {missing}. To fix: give one for each "
                f"frame; numpy.eye({size}) leaves it where it is"
            )
            raise ValueError(msg)
        found = np.asarray([motion[number] for number in numbers.tolist()], dtype=np.float64)
    else:
        found = np.asarray(motion, dtype=np.float64)
    if found.size == 0 and not len(numbers):
        return np.zeros((0, size, size))
    if found.shape != (len(numbers), size, size):
        msg = (
            f"motion of shape {found.shape} does not fit {len(numbers)} frames along "
            f"{target.dims}. To fix: one matrix for each, {(len(numbers), size, size)}, or a "
            f"mapping from {ORIG_VOLUME} to matrices {(size, size)}"
        )
        raise ValueError(msg)
    is_affine = np.isfinite(found).all(axis=(1, 2)) & (found[:, -1] == np.eye(size)[-1]).all(axis=1)
    if not is_affine.all():
        msg = (
            f"the matrices of {ORIG_VOLUME} {numbers[~is_affine].tolist()} are no affines. To fix: "
            f"finite numbers, and {np.eye(size)[-1].tolist()} as last row"
        )
        raise ValueError(msg)
    return found


def _frame_geometry(series: xr.DataArray, dim: str) -> Geometry:
    """Return where the frames of a series lie."""
    geometry = geometry_of(series.isel({dim: slice(0, 1)}))
    found = geometry.without([dim])
    if found is None:
        msg = f"frames along {dim!r} have no place of their own: it shares world axes with others"
        raise GeometryError(msg)
    return found


def _bare(series: xr.DataArray) -> xr.DataArray:
    """Return a series without the text of its metadata, which needs not travel with tasks."""
    return series.drop_attrs(deep=False).assign_attrs(
        {name: value for name, value in series.attrs.items() if name != METADATA_ATTR}
    )


def _scipy_ndimage() -> ModuleType:
    """Import SciPy's n-dimensional images."""
    try:
        from scipy import ndimage
    except ImportError as error:
        msg = 'resampling needs SciPy. To fix: pip install "mlarray-xr[series]"'
        raise MissingDependencyError(msg) from error
    module: ModuleType = ndimage
    return module
