"""Layouts: the planned one beside those of the reference package and of Blosc2, case by case."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.data import make_values
from benchmarks.report import Goal, Row, Table, timed_row
from benchmarks.timing import time_paired
from mlarray_xr import Layout, MlaArray, plan_layout, to_mla
from mlarray_xr.errors import LayoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.data import Box, Workplace
    from benchmarks.timing import Samples

__all__ = ["CASES", "TIMES", "Case", "run"]

TIMES = "Layouts: time per patch"
_NAME = "layouts"
_OURS = "mlarray_xr"
_RULES = ("mlarray-0.0.53", "mlarray-0.0.54", "Blosc2")
_CODEC = "lz4hc-8"
_SEED = 4
_AXES = ("z", "y", "x")
_TYPES = {"u1": np.uint8, "i2": np.int16, "f4": np.float32, "f8": np.float64}
_BYTES_PER_REPEAT = 24 << 20
_NOT_MORE = Goal(of="ratio", relation=">=", bound=1.0)
_SIZE = Goal(of="ratio", relation=">=", bound=1 / 1.1)
_SLICES = Goal(of="ratio", relation=">=", bound=1 / 0.6)
_RANKED = Goal(of="median", relation=">=", bound=0.9)
_PLANNED = Goal(of="median", relation="<=", bound=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One array and the patch that is read from it."""

    shape: tuple[int, ...]
    """Extents of the array."""
    type: str
    """Short name of the element type."""
    patch: tuple[int, ...]
    """One entry per spatial axis or per axis, as a user would give it."""
    dims: tuple[str, ...] | None = None
    """Names of the axes, where some are not spatial."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        shape, patch = ("x".join(map(str, sizes)) for sizes in (self.shape, self.patch))
        named = "" if self.dims is None else f" ({', '.join(self.dims)})"
        return f"{shape} {self.type}{named}, patch {patch}"

    @property
    def window(self) -> tuple[int, ...]:
        """What is read, one entry per axis, inside the array."""
        wanted = self.patch
        if len(wanted) < len(self.shape):
            spatial = iter(self.patch)
            assert self.dims is not None
            wanted = tuple(next(spatial) if dim in _AXES else 1 for dim in self.dims)
        return tuple(min(p, n) for p, n in zip(wanted, self.shape, strict=True))

    @property
    def is_flat(self) -> bool:
        """Whether slices or slabs of a volume are read: little along one axis only."""
        dims = self.dims or _AXES[: len(self.shape)]
        spatial = [p for p, dim in zip(self.window, dims, strict=True) if dim in _AXES]
        return len(spatial) == len(_AXES) and 8 * min(spatial) <= max(spatial)


_CHANNELS, _LAST, _SERIES = ("channel", *_AXES), (*_AXES, "channel"), ("time", *_AXES)
CASES = tuple(
    Case(shape=shape, type=name, patch=patch, dims=dims)
    for shape, dims, types, patches in (
        ((1024, 1024), None, ("u1", "f4"), ((128, 128), (256, 256), (64, 512))),
        ((3, 768, 768), ("channel", "y", "x"), ("u1",), ((256, 256), (3, 256, 256))),
        ((128, 192, 192), None, ("u1", "i2", "f4", "f8"), ((32,) * 3, (64,) * 3, (128,) * 3)),
        ((60, 256, 256), None, ("i2", "f4"), ((1, 256, 256), (1, 128, 128), (1, 64, 64))),
        ((60, 256, 256), None, ("f4",), ((60, 1, 256), (60, 256, 1), (4, 256, 256))),
        ((60, 256, 256), None, ("i2", "f4"), ((8, 128, 128), (16, 128, 128), (48, 48, 48))),
        ((24, 320, 320), None, ("i2", "f8"), ((1, 320, 320), (8, 96, 96), (24, 64, 64))),
        ((4, 64, 128, 128), _CHANNELS, ("f4",), ((64, 64, 64), (4, 64, 64, 64), (1, 128, 128))),
        ((64, 128, 128, 3), _LAST, ("u1",), ((48, 48, 48), (32, 64, 64, 3))),
        ((40, 32, 64, 64), _SERIES, ("i2",), ((32, 64, 64), (40, 8, 8, 8), (1, 64, 64))),
    )
    for name in types
    for patch in patches
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """What a case gave, by contender."""

    case: Case
    layouts: dict[str, Layout]
    samples: dict[str, Samples]
    sizes: dict[str, int]

    def amplification(self, name: str) -> float:
        """Return the expected read amplification of a layout."""
        return self.layouts[name].cost(self.case.window).amplification

    def predicted_ms(self, name: str) -> float:
        """Return the modelled time of a patch."""
        return self.layouts[name].cost(self.case.window).milliseconds


def run(workplace: Workplace) -> Iterator[Table]:
    """Yield the tables of amplification, time, size, and of what the model is worth."""
    cases = CASES[:: workplace.size.every_layout_case]
    measured = [_measure(case, workplace) for case in cases]
    about = (
        f"{len(cases)} cases; all files are written with {_CODEC} and read by one thread at random "
        "offsets, the same for every layout. Compared with the best of: "
        f"{', '.join(_RULES)} (where they have an answer)."
    )
    yield Table(
        name=_NAME,
        title="Layouts: read amplification",
        about=f"Bytes decoded over bytes wanted, mean over all offsets (exact). {about}",
        rows=tuple(row for found in measured for row in _amplification_rows(found)),
    )
    yield Table(
        name=_NAME,
        title=TIMES,
        about=f"Milliseconds per patch. {about}",
        rows=tuple(row for found in measured for row in _time_rows(found)),
    )
    yield Table(
        name=_NAME,
        title="Layouts: size of the file",
        about=f"Megabytes. {about}",
        rows=tuple(row for found in measured for row in _size_rows(found)),
    )
    yield _summary(measured, about=about)


def layouts_of(case: Case) -> dict[str, Layout]:
    """Return the layouts of all contenders that have one."""
    found = {_OURS: plan_layout(case.shape, case.type, patch=case.patch, dims=case.dims)}
    spatial = case.patch
    if case.dims is not None and len(spatial) == len(case.shape):
        spatial = tuple(p for p, d in zip(case.patch, case.dims, strict=True) if d in _AXES)
    for rule in ("mlarray-0.0.53", "mlarray-0.0.54"):
        try:
            found[rule] = plan_layout(
                case.shape, case.type, patch=spatial, dims=case.dims, strategy=rule
            )
        except LayoutError:
            continue
    found["Blosc2"] = plan_layout(case.shape, case.type, patch=None, dims=case.dims)
    return found


def _measure(case: Case, workplace: Workplace) -> _Measured:
    """Write the array in every layout, and read patches."""
    values = _values(case)
    layouts = layouts_of(case)
    paths = {name: workplace.folder / f"{_NAME}-{name}.mla" for name in layouts}
    for name, layout in layouts.items():
        to_mla(
            values,
            paths[name],
            chunks=layout.chunks,
            blocks=layout.blocks,
            codec=_CODEC,
            mode="w",
        )
    sizes = {name: path.stat().st_size for name, path in paths.items()}
    count = _count(case)
    size = workplace.size
    jobs = {name: _job(path, case, count=count) for name, path in paths.items()}
    samples = time_paired(jobs, repeats=size.repeats, patience_s=size.patience_s / 10)
    return _Measured(
        case=case,
        layouts=layouts,
        samples={name: found.divided(count) for name, found in samples.items()},
        sizes=sizes,
    )


def _values(case: Case) -> Any:
    """Return an array like a scan; along axes that are not spatial scans follow each other."""
    scan = make_values(case.shape, "float32" if case.type[0] == "f" else "int16")
    return (scan >> 2 if case.type == "u1" else scan).astype(_TYPES[case.type])


def _count(case: Case) -> int:
    """Return how many patches one repeat reads."""
    wanted = math.prod(case.window) * np.dtype(_TYPES[case.type]).itemsize
    return max(4, min(200, _BYTES_PER_REPEAT // (wanted + (1 << 16))))


def _job(path: Path, case: Case, *, count: int) -> Callable[[int], None]:
    """Return what reads patches of one file with one thread."""
    array = MlaArray(path, threads=1)
    out = np.empty(case.window, array.dtype)

    def read(repeat: int) -> None:
        for box in _boxes(case, count=count, seed=repeat):
            array.read(box, out=out)

    return read


def _boxes(case: Case, *, count: int, seed: int) -> list[Box]:
    """Return patches at random offsets, the same for the same seed."""
    rng = np.random.default_rng([_SEED, seed])
    starts = [
        rng.integers(0, n - p, endpoint=True, size=count).tolist()
        for n, p in zip(case.shape, case.window, strict=True)
    ]
    return [
        tuple((s, s + p) for s, p in zip(corner, case.window, strict=True))
        for corner in zip(*starts, strict=True)
    ]


def _amplification_rows(found: _Measured) -> list[Row]:
    """Compare what is decoded."""
    mine = found.amplification(_OURS)
    theirs = {name: found.amplification(name) for name in found.layouts if name != _OURS}
    best = min(theirs, key=lambda name: theirs[name])
    return [
        _number(found.case.name, _OURS, mine, unit="times"),
        _number(
            found.case.name,
            best,
            theirs[best],
            unit="times",
            ratio=theirs[best] / mine,
            goal=_NOT_MORE,
        ),
    ]


def _time_rows(found: _Measured) -> list[Row]:
    """Compare the times."""
    mine = found.samples[_OURS]
    others = {name: s for name, s in found.samples.items() if name != _OURS}
    best = min(others, key=lambda name: others[name].median)
    return [
        timed_row(found.case.name, _OURS, mine),
        timed_row(found.case.name, best, others[best], mine=mine, goal=_NOT_MORE),
    ]


def _size_rows(found: _Measured) -> list[Row]:
    """Compare the sizes."""
    mine = found.sizes[_OURS]
    theirs = {name: n for name, n in found.sizes.items() if name != _OURS}
    best = min(theirs, key=lambda name: theirs[name])
    return [
        _number(found.case.name, _OURS, mine / 1e6, unit="MB"),
        _number(
            found.case.name,
            best,
            theirs[best] / 1e6,
            unit="MB",
            ratio=theirs[best] / mine,
            goal=_SIZE,
        ),
    ]


def _summary(measured: list[_Measured], *, about: str) -> Table:
    """Add up the slices and slabs, and compare predicted with measured times."""
    flat = [found for found in measured if found.case.is_flat]
    rows = []
    if flat:
        mine = sum(found.samples[_OURS].median for found in flat) * 1e3
        rows.append(_number(f"{len(flat)} slices and slabs", _OURS, mine, unit="ms"))
        for rule in _RULES:
            total = sum(_or_best(found, rule) for found in flat) * 1e3
            row = _number(
                f"{len(flat)} slices and slabs",
                rule,
                total,
                unit="ms",
                ratio=total / mine,
                goal=_SLICES,
            )
            rows.append(row)
    predicted = [found.predicted_ms(name) for found in measured for name in found.samples]
    taken = [found.samples[name].median for found in measured for name in found.samples]
    correlation = statistics.correlation(_ranks(predicted), _ranks(taken))
    rows.append(_number("model against time", "Spearman", correlation, unit="", goal=_RANKED))
    slowest = max(_planning_ms(found.case) for found in measured)
    rows.append(_number("planning, slowest case", _OURS, slowest, unit="ms", goal=_PLANNED))
    return Table(name=_NAME, title="Layouts: in sum", about=about, rows=tuple(rows))


def _or_best(found: _Measured, rule: str) -> float:
    """Return the time of a rule; where it has no answer, that of the best other rule."""
    if rule in found.samples:
        return found.samples[rule].median
    return min(s.median for name, s in found.samples.items() if name != _OURS)


def _planning_ms(case: Case) -> float:
    """Return how long it takes to plan a case."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        plan_layout(case.shape, case.type, patch=case.patch, dims=case.dims)
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e3


def _ranks(values: list[float]) -> list[float]:
    """Return the rank of every value; equal ones share the mean of theirs."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def _number(
    case: str,
    contender: str,
    value: float,
    *,
    unit: str,
    ratio: float | None = None,
    goal: Goal | None = None,
) -> Row:
    """Return a row of one number."""
    return Row(
        case=case, contender=contender, unit=unit, median=value, best=value, ratio=ratio, goal=goal
    )
