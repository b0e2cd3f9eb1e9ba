"""``DataArray.mla``: the spatial side of an array, whatever was done to it since it was opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from mlarray_xr.accessor_series import SeriesMethods
from mlarray_xr.accessor_views import ViewMethods
from mlarray_xr.attributes import read_metadata
from mlarray_xr.placement import geometry_of

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.geometry import Geometry
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.codec_choice import CodecChoice, Preference
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.point_plan import Method, Outside
    from mlarray_xr.planning.region import Region
    from mlarray_xr.planning.sizes import Sizes
    from mlarray_xr.points import Space
    from mlarray_xr.progress import Shown

__all__ = ["MlaAccessor"]


@xr.register_dataarray_accessor("mla")
class MlaAccessor(SeriesMethods, ViewMethods):
    """Geometry, metadata, series, pictures and writing of a DataArray, as ``array.mla``.

    The geometry is that of the array in hand: it follows slices, strides, flips, transposes and
    integer selections, is computed when asked for, and cannot go stale. Columns of the affine are
    the array's spatial dimensions in its own order, then those that an integer selection removed;
    rows are the world axes of the file.

    Parameters
    ----------
    array
        Any DataArray. Arrays without our attributes take their geometry from floating
        coordinates x, y and z.

    Examples
    --------
    >>> volume = xr.DataArray(
    ...     np.zeros((4, 8, 8), "int16"),
    ...     dims=("z", "y", "x"),
    ...     coords={"z": 10 + 3.0 * np.arange(4), "y": 0.5 * np.arange(8), "x": 0.5 * np.arange(8)},
    ... )
    >>> volume.mla.spacing
    {'z': 3.0, 'y': 0.5, 'x': 0.5}
    >>> volume[::2, ::-1].mla.origin
    (10.0, 3.5, 0.0)
    """

    def __init__(self, array: xr.DataArray) -> None:
        self._array = array

    @property
    def geometry(self) -> Geometry:
        """Affine, units and coordinate system of the array as it is now."""
        return geometry_of(self._array)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Array index to world position, (s + 1) x (s + 1) float64; a new array every time."""
        return np.array(self.geometry.affine)

    @property
    def spacing(self) -> dict[str, float]:
        """Distance between neighbours along each spatial dimension."""
        geometry = self.geometry
        return dict(zip(geometry.dims, geometry.spacing, strict=True))

    @property
    def origin(self) -> tuple[float, ...]:
        """World position of the first voxel."""
        return self.geometry.origin

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vectors of the spatial dimensions as columns."""
        return self.geometry.direction

    @property
    def coord_system(self) -> str | None:
        """Name of the world axes as the file states it, None where it does not."""
        return self.geometry.coord_system

    @property
    def metadata(self) -> Metadata | None:
        """Metadata of the file that the array came from, as stored; None for other arrays."""
        described = read_metadata(self._array.attrs)
        return None if described is None else described[0]

    @property
    def layout(self) -> Layout | None:
        """Chunks and blocks of the file that the array came from, None for other arrays."""
        from mlarray_xr.template import stored_layout

        return stored_layout(self._array)

    def affine_in(self, coord_system: Literal["RAS", "LPS"]) -> NDArray[np.float64]:
        """Return the affine with world axes of another system.

        Raises
        ------
        GeometryError
            When the array is not 3-D or does not say whether it is RAS or LPS.
        """
        return np.array(self.geometry.in_system(coord_system).affine)

    def index_to_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map indices into this array to world positions.

        Parameters
        ----------
        points
            (..., s) or fewer columns: trailing dimensions, those removed by an integer selection
            among them, count as index 0.

        Returns
        -------
        numpy.ndarray
            (..., s) float64.
        """
        indices, geometry = np.asarray(points, dtype=np.float64), self.geometry
        missing = [(0, 0)] * (indices.ndim - 1) + [(0, len(geometry.dims) - indices.shape[-1])]
        return geometry.index_to_world(np.pad(indices, missing))

    def world_to_index(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map world positions (..., s) to fractional indices (..., s) into this array.

        The columns of removed dimensions tell how far, in voxels, a position is off the plane.

        Raises
        ------
        GeometryError
            When spacing and direction are degenerate.
        """
        return self.geometry.world_to_index(points)

    def sel_world(self, points: ArrayLike, *, dim: str = "points") -> xr.DataArray:
        """Select the voxels nearest to world positions, in one vectorised read.

        Parameters
        ----------
        points
            (n, s) world positions.
        dim
            Name of the new dimension.

        Raises
        ------
        KeyError
            When a position is outside the array.
        """
        geometry = self.geometry
        nearest = np.rint(geometry.world_to_index(points)).astype(np.int64)
        sizes = [self._array.sizes.get(name, 1) for name in geometry.dims]
        outside = ((nearest < 0) | (nearest >= sizes)).any(axis=1)
        if outside.any():
            first = int(outside.argmax())
            raise KeyError(
                f"{int(outside.sum())} of {len(nearest)} positions are outside the array, the "
                f"first is number {first}: {np.asarray(points)[first].tolist()}. Leave them out"
            )
        return self._array.isel(
            {
                name: xr.DataArray(nearest[:, axis], dims=dim)
                for axis, name in enumerate(geometry.dims)
                if name in self._array.dims
            }
        )

    def points(
        self,
        points: ArrayLike,
        *,
        space: Space = "index",
        method: Method = "nearest",
        outside: Outside = "raise",
        fill_value: Any = None,
    ) -> xr.DataArray:
        """Read the values at points, in one grouped read; of a Dask array lazily, part by part.

        Parameters
        ----------
        points
            (n, s) numbers, in any order, repeats allowed. ``"index"``: one column for each spatial
            dimension of the array in hand, or for each dimension, in its order. ``"world"``: one
            column per world axis.
        space : {"index", "world"}
            What the columns are.
        method : {"nearest", "linear"}
            What fractions of an index mean: the nearest voxel (half to even), or linear
            interpolation in float64, which needs 0 to n - 1.
        outside : {"raise", "fill", "drop"}
            What becomes of points outside the array.
        fill_value
            What they get with ``"fill"``; NaN for floats unless given.

        Returns
        -------
        xarray.DataArray
            Dimension ``point`` first, in the order given; then the dimensions without a column,
            whole, with their coordinates. Where points are dropped, ``point_number`` tells which
            are left.

        Raises
        ------
        IndexError
            When points are outside and `outside` is ``"raise"``.
        GeometryError
            When world positions do not determine indices.
        TypeError, ValueError
            When points, method or fill value make no sense.

        Examples
        --------
        >>> volume = xr.DataArray(np.arange(24).reshape(2, 3, 4), dims=("z", "y", "x"))
        >>> volume.mla.points([(1, 2, 3), (0, 0, 0.5)], method="linear").values
        array([23. ,  0.5])
        """
        # At its use: this module is imported with the package.
        from mlarray_xr.labelled_points import points_of

        return points_of(
            self._array,
            points,
            space=space,
            method=method,
            outside=outside,
            fill_value=fill_value,
        )

    def to_mla(
        self,
        path: str | os.PathLike[str],
        *,
        patch: Sizes | Literal["default"] | None = "default",
        chunks: Sizes | None = None,
        blocks: Sizes | None = None,
        codec: str | Codec | CodecChoice = "auto",
        lossy: bool = False,
        prefer: Preference = "balanced",
        levels: int | Literal["auto"] | None = None,
        mode: Literal["w-", "w", "r+"] = "w-",
        region: Region | Literal["auto"] | None = None,
        align_chunks: bool = True,
        compute: bool = True,
        resume: bool = False,
        memory_limit: int | str | None = None,
        progress: Shown = None,
        block_index: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
        store: Any = None,
    ) -> Any:
        """Write the array to one `.mla` file or object; see `mlarray_xr.to_mla`."""
        # At its use: writing needs Blosc2 and Dask, and this module is imported with the package.
        from mlarray_xr.write import to_mla

        return to_mla(
            self._array,
            path,
            patch=patch,
            chunks=chunks,
            blocks=blocks,
            codec=codec,
            lossy=lossy,
            prefer=prefer,
            levels=levels,
            mode=mode,
            region=region,
            align_chunks=align_chunks,
            compute=compute,
            resume=resume,
            memory_limit=memory_limit,
            progress=progress,
            block_index=block_index,
            storage_options=storage_options,
            store=store,
        )
