"""A new process that looks at one file, and prints how much memory that took at most, bytes.

Everything counts, pages of the mapped file included. Linux only.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

import mlarray_xr
from benchmarks.preview_roads import ROADS

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


def main(road: str, path: str) -> None:
    """Measure after the same steps with a small file, which import and allocate what stays."""
    look = ROADS[road]
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.mla"
        mlarray_xr.to_mla(np.zeros((64, 64, 64), np.int16), small)
        look(mlarray_xr.open_mla(small))
    before = _used("VmRSS")
    _RESET.write_text("5", encoding="ascii")  # the peak begins anew
    look(mlarray_xr.open_mla(path))
    print(_used("VmHWM") - before)


def _used(name: str) -> int:
    """Return an amount of memory of this process, bytes."""
    text = _STATUS.read_text(encoding="ascii").partition(f"{name}:")[2]
    return int(text.split()[0]) << 10


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
