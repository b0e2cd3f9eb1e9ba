"""Sizes: the spellings of extents that users may choose from, as one integer per axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "DEFAULT_PATCH",
    "Sizes",
    "patch_extents",
    "sizes_per_axis",
    "spatial_axes",
    "whole_number",
    "window_extents",
]

# One size for every axis, one per axis, or one per dimension name.
Sizes: TypeAlias = int | Sequence[int] | Mapping[str, int]
DEFAULT_PATCH = 192

_SPATIAL_NAMES = frozenset({"x", "y", "z"})
_WHOLE = -1


def whole_number(value: object, name: str, *, least: int) -> int:
    """Return a plain int of at least `least`.

    Raises
    ------
    LayoutError
        When it is none.

    Examples
    --------
    >>> whole_number(3, "patch", least=1)
    3
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise LayoutError(f"{name} holds {value!r}; every size must be an integer >= {least}")
    return int(value)


def spatial_axes(dims: Sequence[str] | None, ndim: int) -> tuple[int, ...]:
    """Return the axes that are spatial by name; all of them without names.

    Examples
    --------
    >>> spatial_axes(("time", "y", "x"), 3)
    (1, 2)
    """
    return tuple(
        axis
        for axis in range(ndim)
        if dims is None or dims[axis] in _SPATIAL_NAMES or dims[axis].startswith("spatial")
    )


def sizes_per_axis(
    sizes: Sizes, name: str, *, missing: tuple[int, ...], dims: Sequence[str] | None
) -> tuple[int, ...]:
    """Express sizes as one per axis.

    Parameters
    ----------
    sizes
        One for every axis, one per axis, or a mapping by dimension.
    name
        What they are called, for errors.
    missing
        What serves dimensions that a mapping lacks.
    dims
        Names of the axes.

    Raises
    ------
    LayoutError
        When they do not match the axes, or are not positive integers.

    Examples
    --------
    >>> sizes_per_axis({"y": 3}, "chunks", missing=(7, 7), dims=("y", "x"))
    (3, 7)
    """
    if isinstance(sizes, Mapping):
        named = _by_dimension(sizes, name, dims)
        given = {dim: whole_number(n, name, least=1) for dim, n in sizes.items()}
        return tuple(given.get(dim, n) for dim, n in zip(named, missing, strict=True))
    if not isinstance(sizes, Sequence):
        return (whole_number(sizes, name, least=1),) * len(missing)
    if len(sizes) != len(missing):
        raise LayoutError(
            f"{name}={tuple(sizes)} has {len(sizes)} entries for {len(missing)} axes; "
            "give one per axis, one int for all, or a mapping by dimension name"
        )
    return tuple(whole_number(n, name, least=1) for n in sizes)


def patch_extents(
    patch: Sizes | str | None,
    *,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    dims: Sequence[str] | None,
) -> tuple[int, ...]:
    """Express every spelling of a patch as one positive extent per array axis.

    Axes that are not spatial have 1 unless the patch says otherwise: one channel, one time.

    Parameters
    ----------
    patch
        ``"default"``, one size for every spatial axis, one per spatial axis, one per array axis,
        or a mapping by dimension.
    shape, dims
        Of the array.
    axes
        The spatial ones.

    Raises
    ------
    LayoutError
        When it is none of these.

    Examples
    --------
    >>> patch_extents((64, 32), shape=(4, 99, 99), axes=(1, 2), dims=None)
    (1, 64, 32)
    """
    usual = tuple(DEFAULT_PATCH if axis in axes else 1 for axis in range(len(shape)))
    if isinstance(patch, str):
        if patch != "default":
            raise LayoutError(f"patch={patch!r} is no patch; give 'default', sizes or None")
        return usual
    if isinstance(patch, Mapping):
        return sizes_per_axis(patch, "patch", missing=usual, dims=dims)
    if not isinstance(patch, Sequence):
        size = whole_number(patch, "patch", least=1)
        return tuple(size if axis in axes else 1 for axis in range(len(shape)))
    given = tuple(whole_number(n, "patch", least=1) for n in patch)
    if len(given) == len(axes):
        placed = dict(zip(axes, given, strict=True))
        return tuple(placed.get(axis, 1) for axis in range(len(shape)))
    if len(given) != len(shape):
        raise LayoutError(
            f"patch={given} has {len(given)} entries for {len(axes)} spatial axes of "
            f"{len(shape)}; give one entry per spatial axis or one per axis"
        )
    return given


def window_extents(
    window: Sizes, *, shape: tuple[int, ...], dims: Sequence[str] | None
) -> tuple[int, ...]:
    """Express the shape of an access as one positive extent per array axis.

    Parameters
    ----------
    window
        One entry per array axis, or a mapping by dimension in which what is missing is whole; -1
        is the whole axis.
    shape, dims
        Of the array.

    Raises
    ------
    LayoutError
        When it is neither.

    Examples
    --------
    >>> window_extents({"z": 1}, shape=(60, 512, 512), dims=("z", "y", "x"))
    (1, 512, 512)
    """
    if isinstance(window, Mapping):
        named = _by_dimension(window, "access", dims)
        entries: Iterable[object] = [window.get(dim, _WHOLE) for dim in named]
    elif isinstance(window, Sequence) and len(window) == len(shape):
        entries = window
    else:
        raise LayoutError(
            f"access window {window!r} does not describe the {len(shape)} axes of {shape}; give "
            "one size per axis, or a mapping by dimension name; -1 is the whole axis"
        )
    return tuple(
        max(n, 1) if size == _WHOLE else whole_number(size, "access", least=1)
        for size, n in zip(entries, shape, strict=True)
    )


def _by_dimension(sizes: Mapping[str, int], name: str, dims: Sequence[str] | None) -> Sequence[str]:
    """Return the names of the axes, of which a mapping may name some."""
    if dims is None:
        raise LayoutError(f"{name}={dict(sizes)} goes by dimension name; give dims= as well")
    unknown = [dim for dim in sizes if dim not in dims]
    if unknown:
        raise LayoutError(f"{name} names {unknown}; the dimensions are {tuple(dims)}")
    return dims
