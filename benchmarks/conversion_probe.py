"""A new process that converts one file and prints what that wrote and took, bytes, as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

import mlarray_xr

_IO = Path("/proc/self/io")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def main(source: str) -> None:
    """Convert a small file first, which imports what stays."""
    with tempfile.TemporaryDirectory() as folder:
        small, target = Path(folder) / "small.nii.gz", Path(folder) / "small.mla"
        nib.save(nib.Nifti1Image(np.zeros((8, 8, 8, 8), np.int16), np.eye(4)), small)
        mlarray_xr.convert(small, target, layout="frames")
        _CLEAR.write_text("5", encoding="ascii")
        resident, written = _status("VmRSS"), _written()
        report = mlarray_xr.convert(source, target, layout="frames", mode="w")
        assert report is not None
        found = {
            "file": report.file_bytes,
            "written": _written() - written,
            "memory": _status("VmHWM") - resident,
        }
    print(json.dumps(found))


def _written() -> int:
    """Return the bytes that this process has written so far, wherever to."""
    return int(_IO.read_text(encoding="ascii").partition("wchar:")[2].split()[0])


def _status(name: str) -> int:
    """Return an amount of memory of this process, bytes."""
    return int(_STATUS.read_text(encoding="ascii").partition(f"{name}:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main(sys.argv[1])
