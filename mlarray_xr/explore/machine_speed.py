"""How much slower than the machine of the model this one is: at calls, decoding and copying.

Three factors, since machines and data differ in more than one: Python and the C library's visit to
a chunk are one, the decoder at the bytes of this very file the second, memory the third. They are
those with which the model explains a few kinds of small reads best. Where these kinds are too much
alike to tell factors apart, as in files with one block per chunk, all are one factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlarray_xr.explore.patch_boxes import touched_by
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.read_cost import expected_cost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlarray_xr.planning.grid import Box
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.read_cost import ReadModel

__all__ = ["MachineSpeed", "Parts", "fitted_speed", "mean_parts", "window_parts"]

Parts: TypeAlias = tuple[float, float, float]
"""Modelled time of calls, decoding and copying, ms."""

# One factor is worth so much squared relative error: far less than a read that tells.
_ALIKE = 1e-3
# Of a factor over the common one: what is beyond is noise.
_LEAST, _MOST = 0.25, 4.0
_SWEEPS, _SETTLED = 5000, 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """Measured over modelled times: above 1 on a slower machine, or with slower data."""

    calls: float
    """Of a read, and of every chunk that is looked at."""
    decode: float
    """Of decoding."""
    copy: float
    """Of copying what is wanted."""

    def milliseconds(self, parts: Parts) -> float:
        """Return the time on this machine of what was modelled.

        Examples
        --------
        >>> MachineSpeed(calls=2.0, decode=1.0, copy=3.0).milliseconds((0.5, 0.25, 0.125))
        1.625
        """
        calls, decode, copy = parts
        return calls * self.calls + decode * self.decode + copy * self.copy


def window_parts(window: tuple[int, ...], layout: Layout) -> Parts:
    """Return the parts of the modelled time of a window, means over all offsets."""
    basis = layout.basis
    assert basis is not None
    calls, decode, copy = (
        expected_cost(
            window,
            shape=basis.shape,
            chunks=layout.chunks,
            blocks=layout.blocks,
            itemsize=basis.itemsize,
            model=model,
        ).milliseconds
        for model in _split(basis.model)
    )
    return calls, decode, copy


def mean_parts(boxes: Sequence[Box], layout: Layout) -> Parts:
    """Return the parts of the modelled time of boxes inside the array, mean over them."""
    basis = layout.basis
    assert basis is not None
    chunks, blocks = layout.chunks, layout.blocks
    touched = np.array([touched_by(box, chunks=chunks, blocks=blocks) for box in boxes])
    shapes = np.array([box_shape(box) for box in boxes])
    cuts = [touched_by(box[-1:], chunks=chunks[-1:], blocks=blocks[-1:])[1] for box in boxes]
    calls, decode, copy = (
        float(
            np.mean(
                model.read_time_ns(
                    n_chunks=touched[:, 0],
                    n_blocks=touched[:, 1],
                    chunk_grid=math.prod(layout.block_grid),
                    block_bytes=math.prod(blocks) * basis.itemsize,
                    wanted_bytes=shapes.prod(axis=1) * basis.itemsize,
                    n_runs=shapes[:, :-1].prod(axis=1) * cuts,
                )
            )
            / 1e6
        )
        for model in _split(basis.model)
    )
    return calls, decode, copy


def fitted_speed(modelled: Sequence[Parts], measured_ms: Sequence[float]) -> MachineSpeed:
    """Return the factors that explain some kinds of reads best.

    Least squares of relative errors, with a little for factors that are alike, each from 0.25 to 4
    times the common one.

    Parameters
    ----------
    modelled
        Parts of each kind of read.
    measured_ms
        The time of each, above 0.

    Examples
    --------
    >>> speed = fitted_speed([(1.0, 2.0, 0.0), (1.0, 2.0, 4.0)], [6.0, 14.0])
    >>> round(speed.calls, 3), round(speed.decode, 3), round(speed.copy, 3)
    (2.0, 2.0, 2.0)
    """
    table, times = np.array(modelled), np.array(measured_ms)
    common = float(times.sum() / table.sum())
    relative = table * (common / times)[:, None]
    # Both sums of squares in one system, of which the answer is the only minimum.
    matrix = relative.T @ relative + _ALIKE * np.eye(table.shape[1])
    target = relative.sum(axis=0) + _ALIKE
    calls, decode, copy = (common * factor for factor in _bounded_solution(matrix, target))
    return MachineSpeed(calls=calls, decode=decode, copy=copy)


def _bounded_solution(matrix: Any, target: Any) -> list[float]:
    """Return the bounded minimum of a quadratic, axis by axis until it stands."""
    rows, wanted = matrix.tolist(), target.tolist()
    factors = [1.0] * len(wanted)
    for _ in range(_SWEEPS):
        before = list(factors)
        for axis, row in enumerate(rows):
            others = (
                sum(a * x for a, x in zip(row, factors, strict=True)) - row[axis] * factors[axis]
            )
            factors[axis] = min(max((wanted[axis] - others) / row[axis], _LEAST), _MOST)
        if math.dist(before, factors) < _SETTLED:
            break
    return factors


def _split(model: ReadModel) -> tuple[ReadModel, ReadModel, ReadModel]:
    """Return models of calls, decoding and copying alone, whose times add up to the whole."""
    nothing = replace(
        model,
        read_ns=0.0,
        chunk_ns=0.0,
        scan_ns=0.0,
        block_ns=0.0,
        decode_ns_per_byte=0.0,
        copy_ns_per_byte=0.0,
        run_ns=0.0,
    )
    calls = replace(model, decode_ns_per_byte=0.0, copy_ns_per_byte=0.0, run_ns=0.0)
    decode = replace(nothing, decode_ns_per_byte=model.decode_ns_per_byte)
    copy = replace(nothing, copy_ns_per_byte=model.copy_ns_per_byte, run_ns=model.run_ns)
    return calls, decode, copy
