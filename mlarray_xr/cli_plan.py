"""mla plan: which layout suits an array that will be written, and whether that of a file does."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.array import MlaArray
from mlarray_xr.cli_arguments import access, names, sizes
from mlarray_xr.cli_info import planned_text
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.access import PRESETS
from mlarray_xr.planning.caches import caches_from, detect_caches
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.planning.reference_rules import STRATEGIES
from mlarray_xr.record import stored_axes
from mlarray_xr.storage.planning_record import planning_facts

if TYPE_CHECKING:
    from mlarray_xr.cli_arguments import Commands
    from mlarray_xr.planning.layout import Basis, Layout
    from mlarray_xr.planning.read_cost import ReadCost

__all__ = ["add_plan"]

_LARGEST_EXTENT = 2**63 - 1
_NEW_FILE = "NEW.mla"
# Less than this is within what the model misses.
_WORTH_IT = 1.1
_DECIDED_BY_THE_FILE = ("dims", "codec", "chunks", "blocks")


def add_plan(commands: Commands) -> None:
    """Add the command to the grammar."""
    plan = commands.add_parser(
        "plan",
        help="find the layout that reads fastest, and judge that of a file",
        description="Find chunks and blocks for an array of a shape and a type. Of a file, say "
        "whether its layout suits what is read, and what would gain.",
    )
    plan.add_argument(
        "target", metavar="FILE|SHAPE", help="a file; or extents, such as 512,512,512"
    )
    plan.add_argument("dtype", nargs="?", metavar="DTYPE", help="after a shape: such as int16")
    _add_reads(plan)
    _add_array(plan)
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_run)


def _add_reads(plan: argparse.ArgumentParser) -> None:
    """Add what says how the array is read."""
    plan.add_argument(
        "--patch",
        type=sizes,
        metavar="N|A,B,C",
        help="window that is read, voxels per spatial axis or per axis; default: what the file was "
        "written for, else 192",
    )
    plan.add_argument(
        "--access",
        type=access,
        action="append",
        metavar="WINDOW:WEIGHT",
        help="one of several windows and how often it is read, such as 64,64,64:10; -1 is a whole "
        "axis: --access=-1,1,1:2",
    )
    plan.add_argument("--layout", choices=PRESETS, help="how a series is read")
    plan.add_argument(
        "--caches",
        metavar="SIZES",
        help="of the cores that read, such as l1=32KiB,l2=1MiB,l3=2MiB; default: of this machine",
    )
    plan.add_argument("--remote", action="store_true", help="read through a network")
    plan.add_argument("--strategy", choices=STRATEGIES, help="plan as that release does")


def _add_array(plan: argparse.ArgumentParser) -> None:
    """Add what a file knows by itself."""
    plan.add_argument(
        "--dims",
        type=names,
        metavar="z,y,x",
        help="of a shape: names of the axes; x, y, z are spatial",
    )
    plan.add_argument("--codec", metavar="NAME-LEVEL", help="of a shape: such as zstd-1")
    plan.add_argument(
        "--chunks", type=sizes, metavar="N|A,B,C", help="of a shape: explain these chunks"
    )
    plan.add_argument(
        "--blocks", type=sizes, metavar="N|A,B,C", help="of a shape: and these blocks"
    )


def _run(options: argparse.Namespace) -> Outcome:
    """Plan for an array, or judge a file."""
    return _judge(options) if options.dtype is None else _plan(options)


def _plan(options: argparse.Namespace) -> Outcome:
    """Plan for an array of a shape and a type."""
    shape, dtype = _shape(options.target), _dtype(options.dtype)
    layout = plan_layout(
        shape,
        dtype,
        patch="default" if options.patch is None else options.patch,
        dims=options.dims,
        access=options.access,
        layout=options.layout,
        chunks=options.chunks,
        blocks=options.blocks,
        caches=options.caches,
        codec=options.codec,
        remote=options.remote,
        strategy=options.strategy,
    )
    if options.json:
        facts = {"shape": list(shape), "dtype": str(dtype), **_layout_facts(layout)}
        return Outcome(text=to_json(facts))
    return Outcome(text=f"array {shape} of {dtype}\n{_layout_text(layout)}")


def _judge(options: argparse.Namespace) -> Outcome:
    """Compare the layout of a file with the one that would be planned."""
    comparison = _compare(_opened(options), options)
    path = comparison.path
    command = None if comparison.is_good else _command(comparison, options)
    if options.json:
        facts = {
            "path": path,
            "shape": list(comparison.array.shape),
            "dtype": str(comparison.array.dtype),
            "file": _layout_facts(comparison.file),
            "planned": _layout_facts(comparison.planned),
            "gain": {"time": comparison.time_gain, "decoded": comparison.decoded_gain},
            "is_good": comparison.is_good,
            "verdict": str(comparison),
            "command": command,
        }
        return Outcome(text=to_json(facts))
    lines = [
        f"file {path}, {comparison.array.shape} of {comparison.array.dtype}",
        repr(comparison.file.explain()),
        "",
        _layout_text(comparison.planned),
        "",
        str(comparison),
    ]
    return Outcome(text="\n".join(lines if command is None else [*lines, f"  {command}"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """The layout of a file beside the one that would be planned; its text is the verdict."""

    array: MlaArray
    """The file."""
    file: Layout
    """Its layout, for what is read."""
    planned: Layout
    """The layout that would be planned, with the ratio of the file."""

    @property
    def path(self) -> str:
        """Path of the file."""
        return self.array.path or ""

    @property
    def time_gain(self) -> float:
        """Modelled time with the file's layout over that with the planned one."""
        return _total(self.file, "milliseconds") / _total(self.planned, "milliseconds")

    @property
    def decoded_gain(self) -> float:
        """Decoded bytes with the file's layout over those with the planned one."""
        return _total(self.file, "decoded_bytes") / _total(self.planned, "decoded_bytes")

    @property
    def is_good(self) -> bool:
        """Whether the file may stay as it is."""
        return self.time_gain < _WORTH_IT

    def __str__(self) -> str:
        if self.is_good:
            gain = max(0.0, self.time_gain - 1)
            return f"good as it is: the planned layout would be {100 * gain:.0f} % faster"
        return (
            f"the planned layout is {self.time_gain:.1f} times faster by the model, and decodes "
            f"{_less(self.decoded_gain)}"
        )


def _opened(options: argparse.Namespace) -> MlaArray:
    """Open the file, unless what is asked is not for files."""
    target = options.target
    if not os.path.lexists(target) and _is_shape(target):
        raise LayoutError(
            f"{target}: no such file, and a shape without a type. To fix: mla plan {target} int16"
        )
    given = [f"--{name}" for name in _DECIDED_BY_THE_FILE if getattr(options, name) is not None]
    if given:
        raise LayoutError(
            f"{target}: {', '.join(given)} were given, and a file has its own. To fix: leave them "
            "out, or give a shape and a type"
        )
    array = MlaArray(target)
    if not array.shape or 0 in array.shape:
        raise LayoutError(
            f"{target}: an array of shape {array.shape} has no patches to read. To fix: take one "
            "that has axes and is not empty"
        )
    return array


def _compare(array: MlaArray, options: argparse.Namespace) -> _Comparison:
    """Plan for what is read, and put both layouts on one basis."""
    file = array.layout
    assert file.basis is not None
    axes = stored_axes(array.metadata, array.ndim)
    planned = plan_layout(
        array.shape,
        array.dtype,
        patch=_patch(file, options),
        dims=axes.dims,
        spatial=axes.spatial,
        access=_access(file, options),
        layout=options.layout,
        caches=caches_from(options.caches),
        codec=file.basis.codec,
        remote=options.remote,
        strategy=options.strategy,
    )
    assert planned.basis is not None
    basis = replace(planned.basis, ratio=file.basis.ratio)
    return _Comparison(
        array=array,
        file=replace(file, basis=replace(basis, rule=file.basis.rule)),
        planned=replace(planned, basis=basis),
    )


def _patch(file: Layout, options: argparse.Namespace) -> Any:
    """Return the patch that is asked for; without one that of the file, else the default."""
    if options.patch is not None:
        return options.patch
    if options.access is not None or options.layout is not None:
        return "default"
    return file.patch or "default"


def _access(file: Layout, options: argparse.Namespace) -> Any:
    """Return the windows that are asked for; with nothing asked those of a file without a patch."""
    asked = (options.patch, options.access, options.layout, options.strategy, file.patch)
    if all(option is None for option in asked) and _basis(file).windows:
        return [(window.shape, window.weight) for window in _basis(file).windows]
    return options.access


def _command(comparison: _Comparison, options: argparse.Namespace) -> str:
    """Return what makes a file of the planned layout."""
    path, planned = comparison.path, comparison.planned
    basis = _basis(planned)
    windows = _access(comparison.array.layout, options)
    if options.remote or windows is not None or options.strategy is not None:
        return (
            f"mlarray_xr.to_mla(mlarray_xr.open_mla({path!r}), {_NEW_FILE!r}, "
            f"chunks={planned.chunks}, blocks={planned.blocks})"
        )
    patch = _patch(comparison.file, options)
    words = ["mla", "convert", path, _NEW_FILE]
    if patch != "default":
        entries = (patch,) if isinstance(patch, int) else patch
        words += ["--patch", ",".join(map(str, entries))]
    if options.layout is not None:
        words += ["--layout", options.layout]
    if options.caches is not None:
        words += ["--caches", options.caches]
    if basis.codec is not None:
        words += ["--codec", str(basis.codec)]
    return shlex.join(words)


def _shape(text: str) -> tuple[int, ...]:
    """Read extents."""
    if not _is_shape(text):
        raise LayoutError(
            f"{text!r} is no shape. To fix: extents and a type, such as mla plan 512,512,512 "
            "int16; or a file, without a type"
        )
    extents = sizes(text)
    shape = (extents,) if isinstance(extents, int) else extents
    if max(shape) > _LARGEST_EXTENT:
        raise LayoutError(f"{text} exceeds {_LARGEST_EXTENT}, which is the longest axis of a file")
    return shape


def _is_shape(text: str) -> bool:
    """Tell whether a text is extents."""
    try:
        sizes(text)
    except (argparse.ArgumentTypeError, ValueError):
        return False
    return True


def _dtype(text: str) -> np.dtype[Any]:
    """Read the type of the elements."""
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError) as error:
        raise LayoutError(
            f"{text!r} is no type that NumPy knows. To fix: such as int16, float32 or uint8"
        ) from error
    if dtype.hasobject:
        raise LayoutError(f"{text!r} holds objects, which are not stored. To fix: such as int16")
    return dtype


def _less(gain: float) -> str:
    """Say how many bytes are decoded, in comparison."""
    if gain >= _WORTH_IT:
        return f"{gain:.1f} times less"
    return "as much" if gain > 1 / _WORTH_IT else f"{1 / gain:.1f} times more"


def _layout_text(layout: Layout) -> str:
    """Return who decided a layout and for what, and its table."""
    facts = planning_facts(layout)
    decided = "as given" if facts is None else f"planned {planned_text(facts)}"
    return f"{decided}\n{layout.explain()}"


def _layout_facts(layout: Layout) -> dict[str, Any]:
    """Return a layout, and what reading with it costs, as plain values."""
    basis = _basis(layout)
    return {
        "chunks": list(layout.chunks),
        "blocks": list(layout.blocks),
        "patch": layout.patch and list(layout.patch),
        "rule": basis.rule,
        "codec": basis.codec and str(basis.codec),
        "caches": (basis.caches or detect_caches()).to_plain(),
        "remote": basis.remote,
        "reads": [
            {
                **dataclasses.asdict(cost),
                "amplification": cost.amplification,
                "weight": window.weight,
            }
            for window, cost in zip(basis.windows, _costs(layout), strict=True)
        ],
    }


def _total(layout: Layout, name: str) -> float:
    """Return what all windows cost of something, by their weights."""
    pairs = zip(_basis(layout).windows, _costs(layout), strict=True)
    return sum(window.weight * float(getattr(cost, name)) for window, cost in pairs)


def _costs(layout: Layout) -> list[ReadCost]:
    """Return what the windows of a layout cost."""
    return [layout.cost(window.shape) for window in _basis(layout).windows]


def _basis(layout: Layout) -> Basis:
    """Return what a layout is for, which is known of files and of what was planned."""
    assert layout.basis is not None
    return layout.basis
