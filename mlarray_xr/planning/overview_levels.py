"""How coarse each overview of an array is, and which of them a wish for a spacing means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LARGEST_COARSEST",
    "check_level_count",
    "choose_level",
    "level_shape",
    "plan_levels",
    "steps_between",
]

LARGEST_COARSEST = 256
"""No spatial axis of the coarsest automatic level is longer, voxels: it fits a screen whole."""

# Coarser than this many times the finest spacing, an axis waits until the others have caught up:
# halving it or not would leave voxels as far from cubes.
_MUCH_COARSER = math.sqrt(2)
_ROUNDING = 1 + 1e-9


def plan_levels(
    extents: Sequence[int],
    *,
    spacing: Sequence[float],
    spatial: Sequence[int],
    levels: int | Literal["auto"],
) -> tuple[tuple[int, ...], ...]:
    """Decide the factors of each overview, so that voxels become cubes before they become large.

    From each level to the next an axis is halved when it is spatial, longer than one voxel, and
    its spacing then is at most sqrt(2) times the finest one of the axes longer than one voxel.

    Parameters
    ----------
    extents
        Extents of the array, array order.
    spacing
        Distance between neighbours along each spatial axis; where one is not above 0 and finite,
        all count as equal.
    spatial
        Numbers of the spatial axes, in the order of `spacing`.
    levels
        How many levels there are beside the array itself; fewer come back when every spatial axis
        is one voxel long before. ``"auto"`` stops as soon as no spatial axis is longer than 256.

    Returns
    -------
    tuple of tuple of int
        For each level the factor along every axis, relative to the array: powers of two.

    Raises
    ------
    ValueError
        When `levels` is no number from 0 on and not ``"auto"``, or there is not one spacing per
        spatial axis.

    Examples
    --------
    >>> plan_levels((40, 512, 512), spacing=(5, 1, 1), spatial=(0, 1, 2), levels="auto")
    ((1, 2, 2),)
    >>> plan_levels((40, 512, 512), spacing=(4, 1, 1), spatial=(0, 1, 2), levels=3)
    ((1, 2, 2), (1, 4, 4), (2, 8, 8))
    """
    check_level_count(levels)
    if len(spacing) != len(spatial):
        msg = f"{len(spacing)} spacings for {len(spatial)} spatial axes: one each is needed"
        raise ValueError(msg)
    known = all(0 < step < math.inf for step in spacing)
    steps = dict(zip(spatial, spacing if known else (1.0,) * len(spatial), strict=True))
    planned: list[tuple[int, ...]] = []
    factors = (1,) * len(extents)
    while isinstance(levels, str) or len(planned) < levels:
        shape = level_shape(extents, factors)
        if isinstance(levels, str) and all(shape[axis] <= LARGEST_COARSEST for axis in steps):
            break
        left = {axis: step * factors[axis] for axis, step in steps.items() if shape[axis] > 1}
        if not left:
            break
        bound = min(left.values()) * _MUCH_COARSER * _ROUNDING
        halved = {axis for axis, step in left.items() if step <= bound}
        factors = tuple(f * 2 if axis in halved else f for axis, f in enumerate(factors))
        planned.append(factors)
    return tuple(planned)


def check_level_count(levels: object) -> None:
    """Refuse what is no number of levels.

    Raises
    ------
    ValueError
        When it is neither ``"auto"`` nor a whole number from 0 on.
    """
    is_number = type(levels) is int and levels >= 0
    if not is_number and not (isinstance(levels, str) and levels == "auto"):
        msg = f"levels={levels!r} is neither 'auto' nor a whole number from 0 on"
        raise ValueError(msg)


def level_shape(extents: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Return the extents of a level: a last cell that is not full counts as well.

    Examples
    --------
    >>> level_shape((5, 8), (2, 4))
    (3, 2)
    """
    return tuple(-(-n // f) for n, f in zip(extents, factors, strict=True))


def steps_between(factors: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return the factors of each level relative to the level before it.

    Examples
    --------
    >>> steps_between([(1, 2), (2, 4)])
    ((1, 2), (2, 2))
    """
    before: Sequence[int] = (1,) * len(factors[0]) if factors else ()
    steps = []
    for now in factors:
        steps.append(tuple(f // b for f, b in zip(now, before, strict=True)))
        before = now
    return tuple(steps)


def choose_level(spacings: Sequence[Sequence[float]], *, wanted: Sequence[float | None]) -> int:
    """Return the coarsest level that is nowhere coarser than asked; 0 when none is that fine.

    Parameters
    ----------
    spacings
        Of each level from 0 on, along each spatial axis.
    wanted
        The largest spacing along each of these axes; None where any will do.

    Examples
    --------
    >>> choose_level([(1, 0.5), (1, 1), (2, 2)], wanted=(1.5, 1.5))
    1
    """
    chosen = 0
    for level, spacing in enumerate(spacings):
        pairs = zip(spacing, wanted, strict=True)
        if all(most is None or step <= most * _ROUNDING for step, most in pairs):
            chosen = level
    return chosen
