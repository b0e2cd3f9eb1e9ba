"""mla info: describe a file without reading a voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.array import MlaArray
from mlarray_xr.attributes import shown_text
from mlarray_xr.cli_arguments import add_storage_options
from mlarray_xr.cli_text import Outcome, to_json
from mlarray_xr.errors import GeometryError
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.record import stored_axes, stored_geometry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from mlarray_xr.cli_arguments import Commands

__all__ = ["add_info", "planned_text"]

_MOST_WINDOWS = 3


def add_info(commands: Commands) -> None:
    """Add the command to the grammar."""
    info = commands.add_parser("info", help="describe a file without reading a voxel")
    info.add_argument("file", metavar="FILE", help="a path or a URL")
    info.add_argument(
        "--metadata", action="store_true", help="also print all metadata: it may identify a patient"
    )
    add_storage_options(info)
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_run)


def planned_text(planned: Mapping[str, Any]) -> str:
    """Say what a layout was planned for and who decided; nothing where nothing is known.

    Parameters
    ----------
    planned
        As in `mlarray_xr.MlaArray.info`.

    Examples
    --------
    >>> planned_text({"rule": "searched", "access": [[[1, 256, 256], 1.0]]})
    'for 1x256x256, searched'
    >>> planned_text({"rule": "mlarray-0.0.54"})
    'by mlarray-0.0.54'
    """
    windows = planned.get("access", [])
    shown = ["x".join(map(str, shape)) or "()" for shape, _ in windows[:_MOST_WINDOWS]]
    if len(windows) > 1:
        pairs = zip(shown, windows, strict=False)
        shown = [f"{text} (weight {weight:.3g})" for text, (_, weight) in pairs]
    if len(windows) > _MOST_WINDOWS:
        shown.append(f"{len(windows) - _MOST_WINDOWS} more")
    words = [f"for {' and '.join(shown)}"] if shown else []
    if "rule" in planned:
        rule = planned["rule"]
        words.append(rule if rule == "searched" else f"by {rule}")
    if planned.get("remote"):
        words.append("read through a network")
    return ", ".join(words)


def _run(options: argparse.Namespace) -> Outcome:
    """Describe a file."""
    array = MlaArray(options.file, storage_options=dict(options.storage_options))
    patch = array.layout.patch
    facts = {**array.info(), **_labels(array), "patch": None if patch is None else list(patch)}
    if options.metadata:
        facts["metadata"] = {**array.metadata.to_dict(), "unknown": array.metadata.unknown}
    if options.json:
        return Outcome(text=to_json(facts))
    table = "\n".join(f"{name:<9} {value}" for name, value in _rows(facts))
    if options.metadata:
        table += f"\n{to_json(facts['metadata'], indent=2)}"
    return Outcome(text=table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the facts in words."""
    sizes = [f"{dim} {n}" for dim, n in zip(facts["dims"], facts["shape"], strict=True)]
    steps = [
        f"{dim} {step if step is None else format(step, 'g')} {unit or ''}".rstrip()
        for (dim, step), unit in zip(facts["spacing"].items(), facts["units"].values(), strict=True)
    ]
    megabytes = (facts["nbytes"] / 1e6, facts["file_bytes"] / 1e6, facts["ratio"])
    counts = [f"{name} {n} keys" for name, n in facts["metadata_keys"].items()]
    return [
        ("path", facts["path"]),
        ("shape", ", ".join(sizes) + (" (names assumed)" if facts["axes_assumed"] else "")),
        ("dtype", facts["dtype"]),
        ("size", "{:.1f} MB in {:.1f} MB, ratio {:.2f}".format(*megabytes)),
        ("chunks", f"{facts['chunks']}, {facts['n_chunks']} of {facts['chunk_bytes']} bytes"),
        ("blocks", f"{facts['blocks']} of {facts['block_bytes']} bytes"),
        *_planning_rows(facts),
        ("codec", " ".join([f"{facts['codec']}-{facts['level']}", *facts["filters"]])),
        ("spacing", ", ".join(steps) or "not stated"),
        ("world", f"{facts['coord_system'] or 'not stated'}, {facts['orientation']}"),
        ("metadata", ", ".join(counts)),
        ("reader", facts["reader"]),
    ]


def _planning_rows(facts: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return what the file records of how its layout was decided, as far as it does."""
    planned = facts["planned"]
    caches = planned.get("caches")
    rows = [
        ("patch", facts["patch"]),
        ("planned", planned_text(planned)),
        ("caches", None if caches is None else CacheSizes.from_plain(caches)),
    ]
    return [(name, value) for name, value in rows if value]


def _labels(array: MlaArray) -> dict[str, Any]:
    """Return names and geometry, and of free-form metadata the sizes only."""
    metadata = array.metadata
    axes = stored_axes(metadata, array.ndim)
    facts: dict[str, Any] = {
        "dims": list(axes.dims),
        "axes_assumed": axes.assumed,
        "has_array": metadata.has_array,
        "is_seg": metadata.is_seg,
        "spacing": {},
        "units": {},
        "coord_system": None,
        "orientation": "not stated",
        "metadata_keys": {
            name: len(getattr(metadata, name)) for name in ("source", "extra", "unknown")
        },
    }
    try:
        geometry = stored_geometry(metadata, axes)
    except GeometryError:
        return {**facts, "orientation": "for another number of axes"}
    if geometry.is_stored:
        facts["spacing"] = dict(zip(geometry.dims, geometry.spacing, strict=True))
        facts["units"] = dict(zip(geometry.dims, geometry.units, strict=True))
        facts["orientation"] = "oblique" if geometry.world_axes() is None else "axis-aligned"
    if geometry.coord_system is not None:
        facts["coord_system"] = shown_text(geometry.coord_system)
    return facts
