"""Axis labels of a file and dimension names of xarray, and the way back."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlarray_xr.format.metadata import SPATIAL_LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Axes", "axis_labels_for", "plan_dims"]

_GENERIC = "spatial"
_DIM_OF_LABEL = {
    "spatial_x": "x",
    "spatial_y": "y",
    "spatial_z": "z",
    "temporal": "time",
    "channel": "channel",
    "components": "component",
}
_LABEL_OF_DIM = {dim: label for label, dim in _DIM_OF_LABEL.items()}
_ASSUMED = ("z", "y", "x")
_NAME_CHARACTERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Names and roles of the axes of one array, in array order.

    Parameters
    ----------
    dims : tuple of str
        One unique name per array axis.
    spatial : tuple of int
        Positions of the spatial array axes, ascending. Spacing, direction and affine have one
        entry or column for each of them.
    labels : tuple of str or None
        The labels as stored in the file; None when the file names no axes.
    assumed : bool
        Whether the names of the spatial dimensions are a guess: the file does not say which is x.

    Examples
    --------
    >>> axes = plan_dims(["temporal", "spatial_z", "spatial_y", "spatial_x"], 4)
    >>> axes.dims, axes.spatial_dims
    (('time', 'z', 'y', 'x'), ('z', 'y', 'x'))
    """

    dims: tuple[str, ...]
    spatial: tuple[int, ...]
    labels: tuple[str, ...] | None
    assumed: bool

    @property
    def spatial_dims(self) -> tuple[str, ...]:
        """Names of the spatial dimensions, array order."""
        return tuple(self.dims[axis] for axis in self.spatial)


def plan_dims(axis_labels: Sequence[str] | None, ndim: int) -> Axes:
    """Name the dimensions of an array after the axis labels of its file.

    ``spatial_x`` becomes ``x``, ``temporal`` becomes ``time``, ``components`` becomes
    ``component``. Other labels are kept as far as they can be names: at most 64 letters, digits and
    underscores. Names that occur more than once are numbered. Up to three axes that are labelled
    ``spatial`` and nothing more are taken for the trailing ones of (z, y, x), as are the trailing
    axes of an array without labels; ``assumed`` tells. Data are never reordered.

    Parameters
    ----------
    axis_labels : sequence of str or None
        One label per array axis. A list of another length names nothing and counts as None.
    ndim : int
        Number of array axes.

    Examples
    --------
    >>> plan_dims(None, 4).dims
    ('dim_0', 'z', 'y', 'x')
    >>> plan_dims(["energy", "my axis", "energy"], 3).dims
    ('energy_0', 'my_axis', 'energy_1')
    """
    if axis_labels is None or len(axis_labels) != ndim:
        n_named = min(ndim, len(_ASSUMED))
        numbered = tuple(f"dim_{axis}" for axis in range(ndim - n_named))
        return Axes(
            dims=numbered + _trailing(n_named),
            spatial=tuple(range(ndim)),
            labels=None,
            assumed=ndim > 0,
        )
    labels = tuple(axis_labels)
    spatial = tuple(axis for axis, label in enumerate(labels) if label in SPATIAL_LABELS)
    is_generic = all(labels[axis] == _GENERIC for axis in spatial)
    assumed = bool(spatial) and is_generic and len(spatial) <= len(_ASSUMED)
    names = [_name(label, axis) for axis, label in enumerate(labels)]
    if assumed:
        for axis, name in zip(spatial, _trailing(len(spatial)), strict=True):
            names[axis] = name
    return Axes(dims=_unique(names), spatial=spatial, labels=labels, assumed=assumed)


def axis_labels_for(dims: Sequence[str]) -> tuple[str, ...]:
    """Return the axis labels under which dimensions of these names are stored.

    Examples
    --------
    >>> axis_labels_for(["time", "z", "y", "x", "energy"])
    ('temporal', 'spatial_z', 'spatial_y', 'spatial_x', 'energy')
    """
    return tuple(_LABEL_OF_DIM.get(dim, dim) for dim in dims)


def _trailing(n: int) -> tuple[str, ...]:
    """Return the last n of z, y, x."""
    return _ASSUMED[len(_ASSUMED) - n :]


def _name(label: str, axis: int) -> str:
    """Turn one label into a name; uniqueness is not its business."""
    clean = re.sub("[^0-9A-Za-z_]", "_", _DIM_OF_LABEL.get(label, label)[:_NAME_CHARACTERS])
    return clean or f"dim_{axis}"


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Add numbers to names that occur more than once, around those that occur once."""
    count = Counter(names)
    taken = {name for name, n in count.items() if n == 1}
    result = []
    for name in names:
        unique = name
        if count[name] > 1:
            suffixes = (f"_{number}" for number in itertools.count())
            numbered = (name[: _NAME_CHARACTERS - len(suffix)] + suffix for suffix in suffixes)
            unique = next(candidate for candidate in numbered if candidate not in taken)
            taken.add(unique)
        result.append(unique)
    return tuple(result)
