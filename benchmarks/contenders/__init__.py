"""Contenders: one module for each way of reading the same volume."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import Box
from benchmarks.report import Skip

if TYPE_CHECKING:
    from benchmarks.data import Volume

__all__ = ["Contender", "Read", "check", "prepare", "slices"]

Read = Callable[[Box], NDArray[Any]]

OPTIONAL = ("zarr_store", "tensor_store", "hdf5_file", "memory_map")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way of reading a volume."""

    name: str
    """What reports call it."""
    open_reader: Callable[[], Read]
    """Opens it once more: every reading thread has its own reader."""


class _Module(Protocol):
    """What every module here offers."""

    NAMES: tuple[str, ...]

    def prepare(self, volume: Volume) -> list[Contender]:
        """Write this way's copy of the volume; `ImportError` when its library is missing."""


def prepare(volume: Volume, *, modules: tuple[str, ...]) -> tuple[list[Contender], list[Skip]]:
    """Return the contenders of some modules, and those whose library is not installed.

    Every contender has been compared with the true values.
    """
    found: list[Contender] = []
    skips: list[Skip] = []
    for module_name in modules:
        module = cast("_Module", importlib.import_module(f"benchmarks.contenders.{module_name}"))
        try:
            contenders = module.prepare(volume)
        except ImportError as error:
            skips += [Skip(contender=name, reason=str(error)) for name in module.NAMES]
            continue
        for contender in contenders:
            check(contender, volume)
        found += contenders
    return found, skips


def check(contender: Contender, volume: Volume) -> None:
    """Compare an odd box, the last corner and the middle with the true values.

    Raises
    ------
    RuntimeError
        When one differs: its time would mean nothing.
    """
    read = contender.open_reader()
    shape = volume.values.shape
    boxes: list[Box] = [
        tuple((1, min(n, 18)) for n in shape),
        tuple((n - min(n, 23), n) for n in shape),
        tuple((n // 3, n // 3 * 2) for n in shape),
    ]
    for box in boxes:
        if not np.array_equal(read(box), volume.values[slices(box)]):
            msg = f"{contender.name} reads wrong values from {box}"
            raise RuntimeError(msg)


def slices(box: Box) -> tuple[slice, ...]:
    """Return a box as an index."""
    return tuple(slice(start, stop) for start, stop in box)
