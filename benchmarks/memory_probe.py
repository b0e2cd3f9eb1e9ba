"""A new process that opens one file and prints how much memory that added, bytes, as JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

import mlarray_xr
from benchmarks.contenders import ours

_STATM = Path("/proc/self/statm")


def main(path: str) -> None:
    """Measure after the same steps with a small file, which import and allocate what stays."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.mla"
        mlarray_xr.to_mla(np.zeros((64, 64, 64), np.int16), small)
        _steps(small)
        before = _resident()
        added = {what: after - before for what, after in _steps(Path(path)).items()}
    print(json.dumps(added))


def _steps(path: Path) -> dict[str, int]:
    """Return the resident bytes after each step; everything stays open meanwhile."""
    found = {}
    whole = ours.open_dataset(path)
    found["xarray.open_dataset"] = _resident()
    lazy = ours.open_dataset(path, chunks={})
    found["xarray.open_dataset, chunks={}"] = _resident()
    middle = {dim: slice(n // 2, n // 2 + 64) for dim, n in whole.sizes.items()}
    for dataset in (whole, lazy):
        if dataset.isel(middle).compute()[next(iter(dataset.data_vars))].any():
            msg = f"{path} should hold zeros"
            raise RuntimeError(msg)
    found["and one patch of 64 cubed read from both"] = _resident()
    return found


def _resident() -> int:
    """Return this process's resident memory, bytes."""
    return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(sys.argv[1])
