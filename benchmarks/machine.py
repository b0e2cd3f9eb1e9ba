"""The machine a run was made on: what a reader needs to judge the numbers, and no names."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Machine", "cpu_count", "describe_machine"]

_LIBRARIES = (
    "mlarray-xr",
    "mlarray",
    "blosc2",
    "numpy",
    "xarray",
    "dask",
    "zarr",
    "numcodecs",
    "tensorstore",
    "h5py",
    "hdf5plugin",
    "obstore",
    "fsspec",
    "cloud-volume",
    "torch",
    "torchio",
    "monai",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a report says about the machine."""

    facts: tuple[tuple[str, str], ...]
    """Name and value, in order."""
    versions: tuple[tuple[str, str], ...]
    """Library and version."""


def cpu_count() -> int:
    """Return the CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> Machine:
    """Read CPU, memory, system and versions; call it before the run, for the load is in it."""
    facts = [
        ("CPUs", f"{cpu_count()} x {_cpu_model()}"),
        ("memory", _memory()),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
    ]
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        facts.append(("load before the run", f"{load:.2f} (other programs, 1 minute average)"))
    return Machine(
        facts=tuple(facts), versions=tuple((name, _version(name)) for name in _LIBRARIES)
    )


def _cpu_model() -> str:
    """Return the first CPU's name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory() -> str:
    """Return the physical memory."""
    if not hasattr(os, "sysconf"):
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def _version(name: str) -> str:
    """Return an installed version."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed" if name != "mlarray-xr" else "from the source tree"
