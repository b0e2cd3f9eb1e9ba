"""Alignment: whether the files of a subject lie on the same voxels, by what they say of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr.errors import GeometryError
from mlarray_xr.ml.subject_record import named_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlarray_xr.geometry import Geometry
    from mlarray_xr.ml.volume import Volume

__all__ = ["check_aligned"]

# Of a voxel.
_APART = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """The voxels of one file."""

    name: str
    """Modality and file."""
    dims: tuple[str, ...]
    """Spatial dimensions, array order."""
    extents: tuple[int, ...]
    """Voxels along each."""
    geometry: Geometry
    """Where they lie."""


def check_aligned(subject: str, volumes: Mapping[str, Volume], *, atol: float = 1e-3) -> None:
    """Refuse volumes of a subject whose voxels do not lie at the same places.

    Channels, time and other axes that are not spatial may differ.

    Parameters
    ----------
    subject
        What to call it in errors.
    volumes
        By modality; each is compared with the first.
    atol
        How far entries of the affines may differ, in units of the world.

    Raises
    ------
    GeometryError
        When spatial dimensions, their extents, coordinate systems or affines differ.
    MlaError, FileNotFoundError
        When a file cannot be opened; the message names subject, modality and file.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.volume import Volume
    >>> for name, extent in (("ct", 8), ("seg", 7)):
    ...     _ = mlarray_xr.to_mla(np.zeros((4, 6, extent), "int16"), f"{name}.mla")
    >>> check_aligned("a", {name: Volume(f"{name}.mla") for name in ("ct", "seg")})
    Traceback (most recent call last):
    ...
    mlarray_xr.errors.GeometryError: subject 'a': 'seg' (seg.mla) has 7 voxels along 'x',
    'ct' (ct.mla) has 8. ...
    """
    grids = [_grid(subject, modality, volume) for modality, volume in volumes.items()]
    for grid in grids[1:]:
        difference = _difference(grids[0], grid, atol=atol)
        if difference is not None:
            raise GeometryError(
                f"subject {subject!r}: {difference}. To fix: (1) resample one to the grid of the "
                "other; (2) when only the stated geometry is wrong, correct it in the file"
            )


def _grid(subject: str, modality: str, volume: Volume) -> _Grid:
    """Open a volume, and return its voxels."""
    with named_errors(subject, modality, volume.address):
        space = volume.space
        return _Grid(
            name=f"{modality!r} ({volume.address})",
            dims=tuple(space.dims[axis] for axis in space.spatial),
            extents=tuple(space.extents[axis] for axis in space.spatial),
            geometry=volume.geometry,
        )


def _difference(first: _Grid, other: _Grid, *, atol: float) -> str | None:
    """Describe how two grids differ; None when they are one."""
    if first.dims != other.dims:
        return f"{other.name} has the spatial axes {other.dims}, {first.name} has {first.dims}"
    for dim, wanted, found in zip(first.dims, first.extents, other.extents, strict=True):
        if wanted != found:
            return f"{other.name} has {found} voxels along {dim!r}, {first.name} has {wanted}"
    ours, theirs = first.geometry, other.geometry
    if ours.same_grid(theirs, atol=atol):
        return _corner_difference(first, other)
    if ours.is_stored != theirs.is_stored:
        silent, speaking = (first, other) if theirs.is_stored else (other, first)
        return f"{silent.name} does not say where its voxels lie, {speaking.name} does"
    if ours.same_grid(replace(theirs, coord_system=ours.coord_system), atol=atol):
        systems = f"{theirs.coord_system!r}, {first.name} in {ours.coord_system!r}"
        return f"{other.name} lies in the coordinate system {systems}"
    return _affine_difference(first, other, atol=atol)


def _corner_difference(first: _Grid, other: _Grid) -> str | None:
    """Describe how far corners of two grids are apart, when that is more than a tenth of a voxel.

    Steps that differ by little add up along an axis.
    """
    corners = np.array(list(itertools.product(*((0, n - 1) for n in first.extents))))
    index = dict(zip(first.dims, corners.T, strict=True))
    nothing = np.zeros(len(corners))
    columns = np.stack([index.get(dim, nothing) for dim in first.geometry.dims], axis=1)
    ours, theirs = (grid.geometry.index_to_world(columns) for grid in (first, other))
    apart = float(np.linalg.norm(ours - theirs, axis=1).max())
    if apart <= _APART * min(first.geometry.spacing):
        return None
    return f"{other.name} has a corner {apart:g} away from that of {first.name}"


def _affine_difference(first: _Grid, other: _Grid, *, atol: float) -> str:
    """Describe the first column in which two affines differ: a step, or else the origin."""
    ours, theirs = np.array(first.geometry.affine), np.array(other.geometry.affine)
    if ours.shape != theirs.shape:
        dims = f"{other.geometry.dims}, {first.name} over {first.geometry.dims}"
        return f"{other.name} has an affine over {dims}"
    with np.errstate(all="ignore"):
        column = int((~(np.abs(ours - theirs) <= atol)).any(axis=0).argmax())
    is_origin = column == len(ours) - 1
    what = "origin" if is_origin else f"step along {first.geometry.dims[column]!r}"
    found, wanted = (tuple(affine[:-1, column].tolist()) for affine in (theirs, ours))
    return f"{other.name} has the {what} {found}, {first.name} has {wanted}"
