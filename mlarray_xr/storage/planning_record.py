"""The layout of a file: its shapes, what it was planned for, and who decided."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.access import Window
from mlarray_xr.planning.caches import CacheSizes, detect_caches
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Basis, Layout

if TYPE_CHECKING:
    from mlarray_xr.format.frame import FrameHeader
    from mlarray_xr.format.metadata import Metadata

__all__ = ["checked_planning", "file_layout", "planning_facts", "recorded_windows"]

_LONGEST_RULE = 40
_MOST_WINDOWS = 100


def planning_facts(layout: Layout) -> dict[str, Any] | None:
    """Return what a file records of how its layout was decided; None when shapes were given."""
    basis = layout.basis
    if basis is None or basis.rule == "given":
        return None
    facts: dict[str, Any] = {"rule": basis.rule}
    if basis.rule == "searched":
        facts["caches"] = (basis.caches or detect_caches()).to_plain()
        facts["remote"] = basis.remote
    if 0 < len(basis.windows) <= _MOST_WINDOWS:
        facts["access"] = [[list(window.shape), window.weight] for window in basis.windows]
    return facts


def checked_planning(facts: dict[str, Any] | None, *, ndim: int) -> dict[str, Any]:
    """Return what a file records of its layout, without what is not what it should be.

    Parameters
    ----------
    facts
        As decoded, from a file that may be hostile.
    ndim
        Number of axes of the array.
    """
    found: dict[str, Any] = {}
    facts = facts or {}
    rule, access = facts.get("rule"), facts.get("access")
    if isinstance(rule, str) and rule.isprintable() and len(rule) <= _LONGEST_RULE:
        found["rule"] = rule
    with contextlib.suppress(KeyError, LayoutError):
        found["caches"] = CacheSizes.from_plain(facts["caches"]).to_plain()
    if isinstance(access, list) and len(access) <= _MOST_WINDOWS:
        windows = [window for pair in access if (window := _window(pair, ndim)) is not None]
        found["access"] = [[list(window.shape), window.weight] for window in windows]
    if facts.get("remote") is True:
        found["remote"] = True
    return found


def recorded_windows(planning: dict[str, Any]) -> tuple[Window, ...]:
    """Return the windows that a checked record has."""
    return tuple(
        Window(shape=tuple(shape), weight=weight) for shape, weight in planning.get("access", ())
    )


def file_layout(header: FrameHeader, metadata: Metadata, planning: dict[str, Any]) -> Layout:
    """Return the layout of a file, as this machine reads it.

    Parameters
    ----------
    header
        The checked header.
    metadata
        Names the spatial axes, and the patch the file was written for.
    planning
        What the file records of its layout, checked.
    """
    ndim = len(header.shape)
    labels = metadata.spatial.axis_labels
    is_named = labels is None or len(labels) == ndim
    spatial = metadata.spatial.spatial_axes(ndim=ndim) if is_named else tuple(range(ndim))
    patch = metadata.blosc2.patch_size
    if patch is not None and (len(patch) != len(spatial) or min(patch, default=0) < 1):
        patch = None
    windows = tuple(
        Window(shape=tuple(min(p, n) for p, n in zip(shape, header.shape, strict=True)), weight=w)
        for shape, w in planning.get("access", ())
        if 0 not in header.shape
    )
    if patch is not None and not windows and 0 not in header.shape:
        along = dict(zip(spatial, patch, strict=True))
        extents = (min(along.get(axis, 1), n) for axis, n in enumerate(header.shape))
        windows = (Window(shape=tuple(extents)),)
    facts = header.facts()
    basis = Basis(
        shape=header.shape,
        itemsize=header.typesize,
        spatial=spatial,
        rule=planning.get("rule", "given"),
        windows=windows,
        codec=_codec(header),
        ratio=max(1.0, facts["ratio"]),
        remote=planning.get("remote", False),
    )
    return Layout(chunks=header.chunks, blocks=header.blocks, patch=patch, basis=basis)


def _window(pair: Any, ndim: int) -> Window | None:
    """Return a recorded window; None when it is none."""
    try:
        shape, weight = pair
        extents = tuple(shape)
        is_shape = len(extents) == ndim and all(type(n) is int and n > 0 for n in extents)
        return Window(shape=extents, weight=float(weight)) if is_shape else None
    except (TypeError, ValueError, OverflowError, LayoutError):
        return None


def _codec(header: FrameHeader) -> Codec | None:
    """Return the default codec of a file; None when it is none of those that are modelled."""
    name = "-".join([header.codec_name, str(header.level), *(header.filter_names[:1] or ["none"])])
    try:
        return Codec.parse(name)
    except LayoutError:
        return None
