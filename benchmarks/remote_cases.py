"""The operations on a served array that the remote benchmark counts and times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data import random_boxes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from benchmarks.data import Box
    from benchmarks.remote_readers import RemoteReader

__all__ = ["AGAIN", "LARGE", "OPEN", "POINTS", "SMALL", "RemoteCase", "patch_box", "remote_cases"]

OPEN, SMALL, LARGE, POINTS, AGAIN = "open", "small patch", "large patch", "points", "again"
"""Which operation is which, whatever its size."""
_POINTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCase:
    """One operation; both functions get the array and the number of the repeat."""

    kind: str
    """One of the names above, or another one."""
    title: str
    """What reports call it."""
    prepare: Callable[[RemoteReader, int], object]
    """Comes before it."""
    act: Callable[[RemoteReader, int], object]
    """Does it."""


def remote_cases(shape: tuple[int, ...], *, edges: tuple[int, int]) -> list[RemoteCase]:
    """Return the operations on an array of a shape, with patches of two edges."""
    small, large = edges
    read_small = partial(_read_patch, shape, small)
    open_and_read = partial(_open_and, read_small)
    return [
        RemoteCase(kind=OPEN, title="open", prepare=_nothing, act=_open),
        RemoteCase(kind=SMALL, title=f"{small} cubed", prepare=_open, act=read_small),
        RemoteCase(
            kind="open and patch",
            title=f"open and {small} cubed",
            prepare=_nothing,
            act=open_and_read,
        ),
        RemoteCase(
            kind=LARGE,
            title=f"{large} cubed",
            prepare=_open,
            act=partial(_read_patch, shape, large),
        ),
        RemoteCase(
            kind=POINTS,
            title=f"{_POINTS} points",
            prepare=_open,
            act=partial(_pick_points, shape),
        ),
        RemoteCase(kind="slice", title="one slice", prepare=_open, act=partial(_read_slice, shape)),
        RemoteCase(kind=AGAIN, title=f"{small} cubed again", prepare=open_and_read, act=read_small),
    ]


def patch_box(shape: tuple[int, ...], edge: int, repeat: int) -> Box:
    """Return the patch that one repeat reads."""
    return random_boxes(shape, edge=edge, count=1, seed=repeat)[0]


def _nothing(reader: RemoteReader, repeat: int) -> None:
    """Leave the array as the operation before left it."""


def _open(reader: RemoteReader, repeat: int) -> None:  # noqa: ARG001
    """Open the array."""
    reader.open()


def _open_and(
    then: Callable[[RemoteReader, int], object], reader: RemoteReader, repeat: int
) -> object:
    """Open the array and do something with it."""
    reader.open()
    return then(reader, repeat)


def _read_patch(shape: tuple[int, ...], edge: int, reader: RemoteReader, repeat: int) -> object:
    """Read a patch."""
    return reader.read(patch_box(shape, edge, repeat))


def _pick_points(shape: tuple[int, ...], reader: RemoteReader, repeat: int) -> object:
    """Read uniformly random points."""
    rng = np.random.default_rng([_POINTS, repeat])
    points: list[NDArray[np.int64]] = [rng.integers(0, n, _POINTS) for n in shape]
    return reader.pick(points)


def _read_slice(shape: tuple[int, ...], reader: RemoteReader, repeat: int) -> object:
    """Read a slice of the first axis, another one in every repeat."""
    at = repeat * 37 % shape[0]
    return reader.read(((at, at + 1), *((0, n) for n in shape[1:])))
