"""Where the axes of a NRRD file run in space, and how a geometry is stated there."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from mlarray_xr.axes import plan_dims
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.nrrd_fields import NrrdSpace, space_name
from mlarray_xr.geometry import Geometry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.foreign.nrrd_fields import NrrdAxis, Vector
    from mlarray_xr.foreign.nrrd_header import NrrdHeader

__all__ = ["Placement", "placement_of", "space_of"]

_SPATIAL_KINDS: Final = ("domain", "space")
_WITH_TIME: Final = "-time"
_XYZ: Final = "xyz"
_RAS: Final = "right-anterior-superior"
_LPS: Final = "left-posterior-superior"
_LAS: Final = "left-anterior-superior"
_SYSTEMS: Final = {_RAS: "RAS+", _LPS: "LPS+", _LAS: "RAS+"}
"""Coordinate system by world. LAS is no system that others know: its first axis is turned."""

_WORLDS: Final = {"RAS": _RAS, "RAS+": _RAS, "LPS": _LPS, "LPS+": _LPS}
_RANKS: Final = {"right-up": 2, "right-down": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The axes of a NRRD file in array order, slowest first, and those of them that are spatial."""

    axes: tuple[NrrdAxis, ...]
    """All axes; time that was an axis of the world is an axis of its own."""
    spatial: tuple[int, ...]
    """Positions of the spatial axes."""
    names: tuple[str, ...] | None
    """Names of the spatial axes, None where the header says neither what the world is nor them."""
    volume: Geometry | None
    """Geometry of the spatial axes; of a plane in space that of a volume, its normal last."""


def placement_of(header: NrrdHeader) -> Placement:
    """Find the spatial axes and their geometry.

    With ``space directions`` those axes are spatial that have one. Without, those of kind
    ``domain`` or ``space`` and those without a kind are; ``spacings`` and ``axis mins`` give a
    geometry without a world, in which the first sample lies half a spacing behind ``axis mins``
    unless ``centerings`` says ``node``, as ITK has it. Origins that are not stated are zero.

    Raises
    ------
    ConversionError
        When vectors do not fit the space or each other, or spacings are infinite.
    """
    space, axes = _without_time(header.space, header.axes[::-1])
    spatial = tuple(i for i, axis in enumerate(axes) if _is_spatial(axis, axes))
    placed = [axes[i] for i in spatial]
    is_oriented = any(axis.direction for axis in axes)
    if is_oriented:
        affine = _oriented(space, placed)
    else:
        # A world in which no axis has a direction does not tell where the voxels lie.
        space, affine = NrrdSpace(), _spaced(placed)
    names = _names(space, placed, affine)
    volume = None
    if affine is not None:
        dims = names or (*plan_dims(None, len(placed)).dims, "z")[: len(affine) - 1]
        if space.name == _LAS:
            affine[0] *= -1
        volume = Geometry(
            dims=dims,
            # Adding zero turns the -0.0 of a turned zero back into 0.0.
            affine=tuple(tuple(row) for row in (affine + 0.0).tolist()),
            units=_units(space, placed, affine),
            coord_system=_SYSTEMS.get(space.name, space.name) or None,
        )
    return Placement(
        axes=axes,
        spatial=spatial,
        names=None if names is None else names[: len(spatial)],
        volume=volume,
    )


def space_of(geometry: Geometry, *, like: NrrdHeader | None) -> tuple[NrrdSpace, dict[str, Vector]]:
    """Return the world to state for a geometry, and the direction of every dimension.

    Parameters
    ----------
    geometry
        RAS and LPS become the worlds of that name, or that of `like` when it is one of them or
        LAS. Other systems that NRRD knows are named, all others are not.
    like
        An earlier header of the array.
    """
    if not geometry.is_stored or not geometry.dims:
        return NrrdSpace(), {}
    rank, system = len(geometry.dims), geometry.coord_system or ""
    name = _WORLDS.get(system, "") if rank == len(_XYZ) else ""
    if name:
        name = like.space.name if like and like.space.name in _SYSTEMS else name
        geometry = geometry.in_system(_SYSTEMS[name].rstrip("+"))
    affine = np.asarray(geometry.affine, np.float64)
    if name == _LAS:
        affine[0] *= -1
    if not name and _RANKS.get(space_name(system), len(_XYZ)) == rank:
        name = space_name(system).removesuffix(_WITH_TIME)
    columns = [tuple(column) for column in (affine + 0.0).T[:, :-1].tolist()]
    units = [""] * rank
    for axis, unit in zip(_world_axes(affine), geometry.units, strict=True):
        units[axis] = unit or ""
    space = NrrdSpace(name=name, origin=columns[-1], units=tuple(units))
    return space, dict(zip(geometry.dims, columns[:-1], strict=True))


def _without_time(
    space: NrrdSpace, axes: Sequence[NrrdAxis]
) -> tuple[NrrdSpace, tuple[NrrdAxis, ...]]:
    """Take time out of a world of space and time."""
    if not space.name.endswith(_WITH_TIME):
        return space, tuple(axes)
    found = []
    for axis in axes:
        *along, step = axis.direction or (math.nan,)
        if axis.direction is None:
            found.append(axis)
        elif step == 0:
            found.append(replace(axis, direction=tuple(along)))
        elif not any(along):
            start = space.origin[-1] if space.origin else math.nan
            unit = space.units[-1] if space.units else axis.unit
            stated = replace(axis, kind="time", direction=None, centering="node", unit=unit)
            found.append(replace(stated, spacing=step, minimum=start))
        else:
            raise ConversionError(f"an axis runs through space and time at once: {axis.direction}")
    name, origin = space.name.removesuffix(_WITH_TIME), space.origin and space.origin[:-1]
    return NrrdSpace(name=name, origin=origin, units=space.units[:-1]), tuple(found)


def _is_spatial(axis: NrrdAxis, axes: Sequence[NrrdAxis]) -> bool:
    """Tell whether an axis runs through space."""
    if any(other.direction for other in axes):
        return axis.direction is not None
    is_spaced = not math.isnan(axis.spacing) or all(math.isnan(other.spacing) for other in axes)
    return axis.kind in _SPATIAL_KINDS or (not axis.kind and is_spaced)


def _oriented(space: NrrdSpace, placed: Sequence[NrrdAxis]) -> NDArray[np.float64] | None:
    """Return the affine of directions; None when they are too few or too many for one."""
    directions = [axis.direction or () for axis in placed]
    rank = _RANKS.get(space.name, len(_XYZ)) if space.name else len(directions[0])
    origin = space.origin or (0.0,) * rank
    if {len(vector) for vector in (*directions, origin)} != {rank}:
        found = [len(vector) for vector in directions]
        raise ConversionError(
            f"space directions of {found} and an origin of {len(origin)} numbers were found, and "
            f"the space {space.name!r} has {rank} dimensions"
        )
    if len(directions) == 2 and rank == len(_XYZ):
        normal = np.cross(*np.asarray(directions))
        length = float(np.linalg.norm(normal))
        directions.append(tuple((normal / (length or 1.0)).tolist()))
    if len(directions) != rank:
        return None
    affine = np.eye(rank + 1)
    affine[:-1] = np.column_stack([*directions, origin])
    return affine


def _spaced(placed: Sequence[NrrdAxis]) -> NDArray[np.float64] | None:
    """Return the affine of spacings, the fastest axis along the first of the world."""
    if not placed or any(math.isnan(axis.spacing) for axis in placed):
        return None
    last = len(placed)
    affine = np.zeros((last + 1, last + 1))
    affine[last, last] = 1
    for column, axis in enumerate(placed):
        row = last - 1 - column
        half = 0.0 if axis.centering == "node" else axis.spacing / 2
        affine[row, column] = axis.spacing
        affine[row, last] = 0.0 if math.isnan(axis.minimum) else axis.minimum + half
    if not np.isfinite(affine).all():
        raise ConversionError("spacings or axis mins are infinite")
    return affine


def _names(
    space: NrrdSpace, placed: Sequence[NrrdAxis], affine: NDArray[np.float64] | None
) -> tuple[str, ...] | None:
    """Name axes after the axes of a known world that they run along, else as they are labelled."""
    if affine is not None and space.name:
        return tuple(_XYZ[axis] for axis in _world_axes(affine))
    labels = tuple(axis.label.lower() for axis in placed)
    is_known = 0 < len(labels) == len({*labels}) and {*labels} <= {*_XYZ}
    if not is_known or (affine is not None and len(affine) - 1 != len(labels)):
        return None
    return labels


def _units(
    space: NrrdSpace, placed: Sequence[NrrdAxis], affine: NDArray[np.float64]
) -> tuple[str | None, ...]:
    """Return the unit along every column: that of the world, else of the axis."""
    along = _world_axes(affine)
    if len(space.units) == len(along) and placed[0].direction:
        return tuple(space.units[axis] or None for axis in along)
    units = [axis.unit or None for axis in placed]
    return (*units, None)[: len(along)]


def _world_axes(affine: NDArray[np.float64]) -> tuple[int, ...]:
    """Return the world axis that each column mostly runs along, every one once."""
    n = len(affine) - 1
    if n > len(_XYZ):
        return tuple(reversed(range(n)))
    columns = np.abs(affine[:-1, :-1])
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(columns, axis=0)
        shares = np.divide(columns, lengths, out=np.zeros_like(columns), where=lengths > 0)
    # Of equals the first: the last axis, whose neighbours lie together, is x.
    orders = [order[::-1] for order in itertools.permutations(range(n))]
    return max(orders, key=lambda order: sum(shares[row, i] for i, row in enumerate(order)))
