"""Open, read and write `.mla` files with xarray and Dask.

Importing this package registers the accessor ``DataArray.mla``; everything else is imported when
it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import mlarray_xr.accessor  # noqa: F401 - registers DataArray.mla

if TYPE_CHECKING:
    from mlarray_xr.array import MlaArray
    from mlarray_xr.creation import create
    from mlarray_xr.dask_caches import cluster_caches
    from mlarray_xr.foreign.collection import convert_folder
    from mlarray_xr.foreign.conversion import convert
    from mlarray_xr.format.metadata import Metadata
    from mlarray_xr.overviews import build_overviews
    from mlarray_xr.planning.caches import CacheSizes, detect_caches
    from mlarray_xr.planning.layout import Layout
    from mlarray_xr.planning.layout_plan import plan_layout
    from mlarray_xr.read import open_mla
    from mlarray_xr.report import WriteReport
    from mlarray_xr.series.folds import leave_one_out
    from mlarray_xr.series.scratch import scratch
    from mlarray_xr.storage.counters import ReadStats, measure, stats
    from mlarray_xr.storage.read_settings import configure
    from mlarray_xr.storage.trial import choose_codec
    from mlarray_xr.verification import verify
    from mlarray_xr.write import to_mla

__all__ = [
    "CacheSizes",
    "Layout",
    "Metadata",
    "MlaArray",
    "ReadStats",
    "WriteReport",
    "build_overviews",
    "choose_codec",
    "cluster_caches",
    "configure",
    "convert",
    "convert_folder",
    "create",
    "detect_caches",
    "leave_one_out",
    "measure",
    "open_mla",
    "plan_layout",
    "scratch",
    "stats",
    "to_mla",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "CacheSizes": "mlarray_xr.planning.caches",
    "Layout": "mlarray_xr.planning.layout",
    "Metadata": "mlarray_xr.format.metadata",
    "MlaArray": "mlarray_xr.array",
    "ReadStats": "mlarray_xr.storage.counters",
    "WriteReport": "mlarray_xr.report",
    "build_overviews": "mlarray_xr.overviews",
    "choose_codec": "mlarray_xr.storage.trial",
    "cluster_caches": "mlarray_xr.dask_caches",
    "configure": "mlarray_xr.storage.read_settings",
    "convert": "mlarray_xr.foreign.conversion",
    "convert_folder": "mlarray_xr.foreign.collection",
    "create": "mlarray_xr.creation",
    "detect_caches": "mlarray_xr.planning.caches",
    "leave_one_out": "mlarray_xr.series.folds",
    "measure": "mlarray_xr.storage.counters",
    "open_mla": "mlarray_xr.read",
    "plan_layout": "mlarray_xr.planning.layout_plan",
    "scratch": "mlarray_xr.series.scratch",
    "stats": "mlarray_xr.storage.counters",
    "to_mla": "mlarray_xr.write",
    "verify": "mlarray_xr.verification",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        msg = f"module 'mlarray_xr' has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *_HOMES])
