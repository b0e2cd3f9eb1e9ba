"""Where the voxels of an array lie: the affine of its spatial axes, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from mlarray_xr.axes import Axes
    from mlarray_xr.format.metadata import Json, Spatial

__all__ = ["Geometry", "names_patient_axes"]

_OFF_AXIS = 1e-5
"""How far, in spacings, an axis may lean from a world axis and still count as aligned with it."""

_FLAT = 1e-8
"""Directions whose smallest singular value is below this span no volume."""

_UNIT_CHARACTERS = 64
_HANDEDNESS = {"RAS": "RAS", "RAS+": "RAS", "LPS": "LPS", "LPS+": "LPS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The affine of an array's spatial axes: array index to world position.

    Nothing is implied about units, handedness or the order of the world axes beyond what
    ``coord_system`` says.

    Parameters
    ----------
    dims : tuple of str
        Names of the s spatial dimensions; the columns of the affine are in this order.
    affine : tuple of tuple of float
        (s + 1) x (s + 1). Column j is the step of one voxel along ``dims[j]``, the last column the
        position of the voxel with index 0. Rows are world axes.
    units : tuple of (str or None)
        Unit of the spacing along each dimension; None where unknown.
    coord_system : str or None
        The file's own name for its world axes, such as ``"RAS"`` or ``"LPS+"``.
    is_stored : bool
        False when nothing is known and the affine is the identity for want of a better one.

    Raises
    ------
    GeometryError
        When the affine is not square with one column per dimension and one for the origin, or
        there is not one unit per dimension.

    Examples
    --------
    >>> geometry = Geometry(
    ...     dims=("y", "x"), affine=((2, 0, 10), (0, 0.5, 20), (0, 0, 1)), units=("mm", "mm")
    ... )
    >>> geometry.spacing, geometry.origin
    ((2.0, 0.5), (10, 20))
    >>> geometry.moved(start=(1, 0), step=(2, 1), order=(1, 0)).affine
    ((0.0, 4.0, 12.0), (0.5, 0.0, 20.0), (0.0, 0.0, 1.0))
    """

    dims: tuple[str, ...]
    affine: tuple[tuple[float, ...], ...]
    units: tuple[str | None, ...]
    coord_system: str | None = None
    is_stored: bool = True

    def __post_init__(self) -> None:
        """Check that dimensions, affine and units agree."""
        size = len(self.dims) + 1
        if len(self.affine) != size or any(len(row) != size for row in self.affine):
            found = f"{len(self.affine)} rows of {sorted({len(row) for row in self.affine})}"
            raise GeometryError(
                f"the affine for dimensions {self.dims} has {found} entries; "
                f"give {size} rows of {size}"
            )
        if len(self.units) != len(self.dims):
            raise GeometryError(
                f"{len(self.units)} units were given for dimensions {self.dims}; "
                "give one per dimension, None where unknown"
            )

    @classmethod
    def from_spatial(cls, spatial: Spatial, *, axes: Axes) -> Geometry:
        """Read the geometry out of the stored numbers; missing parts are ones, zeros, identity.

        Raises
        ------
        GeometryError
            When the numbers are for another count of spatial axes than the array has.

        Examples
        --------
        >>> from mlarray_xr.axes import plan_dims
        >>> from mlarray_xr.format.metadata import Spatial
        >>> Geometry.from_spatial(Spatial(spacing=(3, 1)), axes=plan_dims(None, 2)).affine
        ((3.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
        """
        size = len(axes.spatial)
        parts = (spatial.spacing, spatial.origin, spatial.direction, spatial.affine)
        affine = np.eye(size + 1)
        try:
            if spatial.affine is not None:
                affine = _floats(spatial.affine, (size + 1, size + 1))
            else:
                spacing = _floats(spatial.spacing or (1,) * size, (size,))
                direction = _floats(spatial.direction or np.eye(size), (size, size))
                affine[:size, size] = _floats(spatial.origin or (0,) * size, (size,))
                with np.errstate(all="ignore"):
                    affine[:size, :size] = direction * spacing
        except ValueError as error:
            raise GeometryError(
                f"the stored geometry does not fit the {size} spatial axes {axes.spatial_dims}: "
                f"{spatial}"
            ) from error
        return cls(
            dims=axes.spatial_dims,
            affine=_rows(affine),
            units=_units(spatial.axis_units, axes),
            coord_system=spatial.coord_system,
            is_stored=size > 0 and any(part is not None for part in parts),
        )

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Linear part of the affine, s x s: world axes by dimensions."""
        matrix: NDArray[np.float64] = self._array()[:-1, :-1]
        return matrix

    @property
    def origin(self) -> tuple[float, ...]:
        """World position of the voxel with index 0, one entry per world axis."""
        return tuple(row[-1] for row in self.affine[:-1])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each dimension: lengths of the columns, never < 0."""
        return tuple(math.hypot(*column) for column in self.matrix.T.tolist())

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vector of each dimension as a column, s x s; zeros where the spacing is zero."""
        matrix, spacing = self.matrix, np.asarray(self.spacing)
        direction = np.zeros_like(matrix)
        with np.errstate(all="ignore"):
            np.divide(matrix, spacing, out=direction, where=spacing != 0)
        return direction

    @property
    def is_invertible(self) -> bool:
        """Whether every world position belongs to one array index, up to rounding."""
        if not np.isfinite(self._array()).all() or not np.isfinite(self.spacing).all():
            return False
        if not self.dims:
            return True
        return bool(np.linalg.svd(self.direction, compute_uv=False)[-1] > _FLAT)

    def world_axes(self) -> tuple[int, ...] | None:
        """Return the world axis that each dimension runs along, or None when one is oblique.

        A dimension counts as aligned when it leans by at most 1e-5 of its spacing. Geometries with
        NaN, infinite or zero spacing are aligned with nothing.

        Examples
        --------
        >>> Geometry(
        ...     dims=("z", "y"), affine=((0, 2, 5), (-1, 0, 5), (0, 0, 1)), units=(None, None)
        ... ).world_axes()
        (1, 0)
        """
        if not self.dims or not self.is_invertible:
            return None if self.dims else ()
        lengths = np.abs(self.matrix)
        along = lengths.argmax(axis=0)
        if sorted(along.tolist()) != list(range(len(self.dims))):
            return None
        lengths[along, np.arange(len(self.dims))] = 0
        if (lengths > _OFF_AXIS * np.asarray(self.spacing)).any():
            return None
        return tuple(along.tolist())

    def coordinate(self, axis: int, length: int) -> NDArray[np.float64]:
        """Return the world positions of the voxel centres along one aligned dimension, 1-D float64.

        One formula, so that files of the same numbers have bit-identical coordinates.

        Raises
        ------
        GeometryError
            When the geometry is oblique.
        """
        world = self.world_axes()
        if world is None:
            raise GeometryError(
                f"dimension {self.dims[axis]!r} has no 1-D world coordinate: the geometry is "
                "oblique or degenerate. Use the affine on voxel indices instead"
            )
        row = self.affine[world[axis]]
        with np.errstate(over="ignore"):
            return row[-1] + row[axis] * np.arange(length, dtype=np.float64)

    def moved(
        self, *, start: Sequence[float], step: Sequence[float], order: Sequence[int]
    ) -> Geometry:
        """Return the geometry of a crop, stride, flip or transpose of this array.

        Parameters
        ----------
        start, step : sequence of float
            Per dimension of this geometry: index here of the voxel with index 0 there, and how far
            its neighbour is.
        order : sequence of int
            Dimension k there is dimension ``order[k]`` here; a permutation.
        """
        affine = self._array().copy()
        size = len(self.dims)
        with np.errstate(all="ignore"):
            for axis, first in enumerate(start):
                # A column of NaN must not spread to the origin of a view that did not move.
                if first != 0:
                    affine[:size, size] += affine[:size, axis] * first
            affine[:size, :size] *= np.asarray(step, dtype=np.float64)
        affine[:, :size] = affine[:, list(order)]
        return replace(
            self,
            dims=tuple(self.dims[axis] for axis in order),
            units=tuple(self.units[axis] for axis in order),
            # Adding zero turns the -0.0 of a flipped zero back into 0.0.
            affine=_rows(affine + 0.0),
        )

    def without(self, dims: Sequence[str]) -> Geometry | None:
        """Return the geometry of the other dimensions alone, or None when they need all rows.

        Dimensions can go when as many world axes are constant along all that remain.
        """
        kept = [axis for axis, dim in enumerate(self.dims) if dim not in dims]
        if len(kept) == len(self.dims):
            return self
        limits = _OFF_AXIS * np.asarray(self.spacing)[kept]
        with np.errstate(invalid="ignore"):
            is_constant = (np.abs(self.matrix[:, kept]) <= limits).all(axis=1)
        rows = np.flatnonzero(~is_constant).tolist()
        if len(rows) != len(kept):
            return None
        last = len(self.dims)
        return replace(
            self,
            dims=tuple(self.dims[axis] for axis in kept),
            units=tuple(self.units[axis] for axis in kept),
            affine=_rows(self._array()[np.ix_([*rows, last], [*kept, last])]),
        )

    def in_system(self, coord_system: str) -> Geometry:
        """Return the same positions with world axes named ``"RAS"`` or ``"LPS"``.

        Raises
        ------
        GeometryError
            When the geometry is not 3-D or does not say that it is RAS or LPS.

        Examples
        --------
        >>> ras = Geometry(
        ...     dims=("x", "y", "z"),
        ...     affine=((1, 0, 0, 5), (0, 1, 0, 6), (0, 0, 1, 7), (0, 0, 0, 1)),
        ...     units=("mm", "mm", "mm"),
        ...     coord_system="RAS+",
        ... )
        >>> ras.in_system("LPS").origin
        (-5.0, -6.0, 7.0)
        """
        wanted = _HANDEDNESS.get(coord_system)
        current = _HANDEDNESS.get(self.coord_system or "")
        if wanted is None:
            raise GeometryError(f"{coord_system!r} was asked for; ask for 'RAS' or 'LPS'")
        if current is None or len(self.dims) != 3:
            raise GeometryError(
                f"{coord_system} was asked for of a geometry with {len(self.dims)} spatial "
                f"dimensions and coord_system {self.coord_system!r}; only 3-D geometries that say "
                "RAS or LPS can be converted. If you know the system, state it: "
                "array.attrs['coord_system'] = 'RAS'"
            )
        if wanted == current:
            return self
        affine = self._array().copy()
        affine[:2] *= -1
        # Adding zero turns the -0.0 of a flipped zero back into 0.0.
        return replace(self, affine=_rows(affine + 0.0), coord_system=coord_system)

    def same_grid(self, other: Geometry, *, atol: float) -> bool:
        """Tell whether both have the same dimensions, world and, within `atol`, affine."""
        systems = [_HANDEDNESS.get(g.coord_system or "", g.coord_system) for g in (self, other)]
        if self.dims != other.dims or systems[0] != systems[1]:
            return False
        return bool(np.allclose(self._array(), other._array(), rtol=0, atol=atol))

    def index_to_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map array indices (..., s), in the order of `dims`, to world positions (..., s)."""
        indices = np.asarray(points, dtype=np.float64)
        world: NDArray[np.float64] = indices @ self.matrix.T + np.asarray(self.origin)
        return world

    def world_to_index(self, points: ArrayLike) -> NDArray[np.float64]:
        """Map world positions (..., s) to fractional array indices (..., s), in order of `dims`.

        Raises
        ------
        GeometryError
            When positions do not determine indices: zero, NaN or linearly dependent directions.
        """
        if not self.is_invertible:
            raise GeometryError(
                f"no index belongs to a world position: spacing {self.spacing} and the direction "
                "span no volume. Correct the geometry where the file was made"
            )
        offsets = np.asarray(points, dtype=np.float64) - np.asarray(self.origin)
        indices: NDArray[np.float64] = offsets @ np.linalg.inv(self.matrix).T
        return indices

    def _array(self) -> NDArray[np.float64]:
        """Return the affine as an array."""
        return np.asarray(self.affine, dtype=np.float64)


def names_patient_axes(coord_system: str | None) -> bool:
    """Tell whether a coordinate system says that the world axes are x, y and z of a patient.

    Examples
    --------
    >>> names_patient_axes("LPS+"), names_patient_axes("scanner")
    (True, False)
    """
    return coord_system in _HANDEDNESS


def _floats(numbers: object, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Convert stored numbers of a known shape; integers beyond float64 become infinite."""
    exact = np.asarray(numbers, dtype=object)
    if exact.shape != shape:
        raise ValueError(f"shape {exact.shape} where {shape} is needed")
    return np.asarray([_float(number) for number in exact.flat], np.float64).reshape(shape)


def _float(number: float) -> float:
    """Convert one number, an int of any size included."""
    try:
        return float(number)
    except OverflowError:
        return math.copysign(math.inf, number)


def _rows(affine: NDArray[np.float64]) -> tuple[tuple[float, ...], ...]:
    """Turn a matrix into nested tuples."""
    return tuple(tuple(row) for row in affine.tolist())


def _units(axis_units: Json, axes: Axes) -> tuple[str | None, ...]:
    """Find a unit per spatial axis in a field of which the format says nothing."""
    if isinstance(axis_units, str):
        found: list[object] = [axis_units] * len(axes.spatial)
    elif isinstance(axis_units, list) and len(axis_units) == len(axes.dims):
        found = [axis_units[axis] for axis in axes.spatial]
    elif isinstance(axis_units, list) and len(axis_units) == len(axes.spatial):
        found = list(axis_units)
    else:
        found = [None] * len(axes.spatial)
    return tuple(_unit(unit) for unit in found)


def _unit(unit: object) -> str | None:
    """Accept a short printable text as unit."""
    if isinstance(unit, str) and unit.isprintable() and 0 < len(unit) <= _UNIT_CHARACTERS:
        return unit
    return None
