"""What the operating system says of the caches: read, bounded, not yet judged.

Nothing here raises because of what a machine says or hides: what cannot be read is left out.

The share of a core is the size of a cache over the cores that share it on the hardware, whoever
uses them. The hyperthreads of a core are one core, since they take turns. Neither a CPU set nor a
CPU quota makes the share larger: neighbours work on the other cores, in the same cache. Therefore
no cgroup is read; the CPU set only tells, as the affinity of this process, which cores to ask for.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

__all__ = [
    "CACHES_VARIABLE",
    "CacheShare",
    "MachineCaches",
    "configured_caches",
    "parse_powershell",
    "parse_sysctl",
    "read_linux",
    "read_machine",
]

CACHES_VARIABLE = "MLARRAY_XR_CACHES"

_SYSFS = "/sys/devices/system/cpu"
_CPU_FOLDER = re.compile(r"cpu([0-9]{1,4})")
_SYSFS_SIZE = re.compile(r"([0-9]{1,9})([KMG]?)")
_SYSFS_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_CPU_RANGE = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
# A core has four or five caches, a processor two or three kinds of cores, in runs of several CPUs.
# 24 CPUs take 3 to 4 ms.
_MOST_CACHES = 8
_MOST_CPUS = 24
# Linux is built for at most as many; POWER runs 8 threads on a core.
_MOST_SHARING = 8192
_MOST_THREADS = 8

_SYSCTL = ("/usr/sbin/sysctl", "hw")
_SYSCTL_LINE = re.compile(r"^(hw\.[a-z0-9_.]{1,60}): ([0-9]{1,12})$", re.MULTILINE)
_MOST_PERFORMANCE_LEVELS = 8

_POWERSHELL = r"System32\WindowsPowerShell\v1.0\powershell.exe"
_POWERSHELL_QUERY = (
    "Get-CimInstance Win32_Processor | ForEach-Object "
    "{ 'cpu,{0},{1},{2}' -f $_.NumberOfCores,$_.L2CacheSize,$_.L3CacheSize }; "
    "Get-CimInstance Win32_CacheMemory -Filter 'Level=3' | ForEach-Object "
    "{ 'l1,{0},{1}' -f $_.CacheType,$_.InstalledSize }"
)
_PROCESSOR_LINE = re.compile(r"^cpu,([0-9]{1,6}),([0-9]{0,9}),([0-9]{0,9})\r?$", re.MULTILINE)
_L1_LINE = re.compile(r"^l1,([0-9]{0,4}),([0-9]{1,9})\r?$", re.MULTILINE)
_DATA_CACHE = "4"

_MOST_FILE_BYTES = 4096
_MOST_OUTPUT_BYTES = 1 << 18
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShare:
    """One cache and the cores that work in it.

    Examples
    --------
    >>> CacheShare(size_bytes=33554432, cores=8).per_core_bytes
    4194304
    """

    size_bytes: int
    """Size of the whole cache."""
    cores: int = 1
    """How many cores share it, at least 1."""

    @property
    def per_core_bytes(self) -> int:
        """The part of one core."""
        return self.size_bytes // self.cores


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineCaches:
    """What a machine says of the caches of its cores.

    Examples
    --------
    >>> MachineCaches(origin="Linux sysfs, 0 of 0 CPUs", cores=()).cores
    ()
    """

    origin: str
    """Who said so, in a few words."""
    cores: tuple[Mapping[int, CacheShare], ...]
    """Of cores of every kind, the data or unified caches by level, 1 to 3."""


def configured_caches() -> str | None:
    """Return what the environment variable ``MLARRAY_XR_CACHES`` says; None if unset or blank.

    Examples
    --------
    >>> isinstance(configured_caches(), str | None)
    True
    """
    return os.environ.get(CACHES_VARIABLE, "").strip() or None


def read_machine() -> MachineCaches:
    """Ask the operating system for the caches of the cores that this process may use.

    Linux answers in a few milliseconds. macOS and Windows are asked by a command of their own,
    Windows in about a second, both for at most 5 seconds.

    Examples
    --------
    >>> isinstance(read_machine(), MachineCaches)
    True
    """
    system = sys.platform
    if system == "linux":
        return read_linux(_SYSFS, usable=_usable_cpus())
    if system == "darwin":
        return parse_sysctl(_output_of(_SYSCTL))
    if system == "win32":
        program = os.path.join(os.environ.get("SYSTEMROOT", r"C:\Windows"), _POWERSHELL)
        query = (program, "-NoProfile", "-NonInteractive", "-Command", _POWERSHELL_QUERY)
        return parse_powershell(_output_of(query))
    return MachineCaches(origin=f"no known way to ask {system}", cores=())


def read_linux(root: str, *, usable: Collection[int] | None = None) -> MachineCaches:
    """Read the caches from a folder like ``/sys/devices/system/cpu``.

    A list of sharing CPUs is believed in full, also where it names CPUs that a container hides:
    they exist and work in the same cache. Where it is missing, all CPUs share the third level and
    nobody the others. A core takes the others to run as many threads as itself, so that on a hybrid
    processor the share of a small core comes out smaller than it is. Of more than 24 CPUs 24 are
    asked, evenly spread from the first to the last.

    Parameters
    ----------
    root
        The folder that holds ``cpu0/cache/index0/size`` and the like.
    usable
        Numbers of the CPUs that the process may use; None, or none that the folder knows, is all.

    Examples
    --------
    >>> read_linux("nowhere")
    MachineCaches(origin='Linux sysfs, 0 of 0 CPUs', cores=())
    """
    try:
        names = os.listdir(root)
    except OSError:
        names = []
    listed = {int(match[1]) for match in map(_CPU_FOLDER.fullmatch, names) if match}
    chosen = sorted(listed.intersection(listed if usable is None else usable) or listed)
    cores = (_read_core(f"{root}/cpu{cpu}/cache", n_cpus=len(listed)) for cpu in _spread(chosen))
    return MachineCaches(
        origin=f"Linux sysfs, {len(chosen)} of {len(listed)} CPUs",
        cores=tuple(core for core in cores if core),
    )


def parse_sysctl(text: str) -> MachineCaches:
    r"""Return the caches that the output of ``sysctl hw`` on macOS tells.

    A performance level is a kind of core. Where nothing tells how many CPUs share a cache, all
    cores share the last level and nobody the others.

    Examples
    --------
    >>> parse_sysctl("hw.physicalcpu: 4\nhw.l1dcachesize: 32768\n").cores
    ({1: CacheShare(size_bytes=32768, cores=1)},)
    """
    numbers = {name: int(number) for name, number in _SYSCTL_LINE.findall(text)}
    levels = [f"hw.perflevel{number}." for number in range(_MOST_PERFORMANCE_LEVELS)]
    kinds = [kind for kind in levels if f"{kind}l1dcachesize" in numbers] or ["hw."]
    cores = (_sysctl_core(numbers, kind) for kind in kinds)
    return MachineCaches(origin="macOS sysctl", cores=tuple(core for core in cores if core))


def parse_powershell(text: str) -> MachineCaches:
    r"""Return the caches that the answers of Windows' management classes tell.

    They are sums over all cores of a processor, in KiB, so that a core gets the average. A first
    level that is not told apart holds instructions in one half, as on nearly every processor.

    Parameters
    ----------
    text
        A line ``cpu,cores,L2,L3`` for every ``Win32_Processor``, and a line ``l1,type,size`` for
        every ``Win32_CacheMemory`` of the first level; type 4 is data.

    Examples
    --------
    >>> parse_powershell("cpu,8,4096,16384\nl1,5,512\n").cores[0][1].per_core_bytes
    32768
    """
    processors = _PROCESSOR_LINE.findall(text)
    n_cores = sum(int(number) for number, _, _ in processors)
    l1_caches = [(kind, int(size)) for kind, size in _L1_LINE.findall(text)]
    data_kib = sum(size for kind, size in l1_caches if kind == _DATA_CACHE)
    totals_kib = {
        1: data_kib or sum(size for _, size in l1_caches) // 2,
        2: sum(int(size or 0) for _, size, _ in processors),
        3: sum(int(size or 0) for _, _, size in processors),
    }
    core = {
        level: CacheShare(size_bytes=size << 10, cores=n_cores)
        for level, size in totals_kib.items()
        if size and n_cores
    }
    return MachineCaches(origin="Windows CIM", cores=(core,) if core else ())


def _usable_cpus() -> frozenset[int] | None:
    """Return the CPUs of this process, which a CPU set limits too; None where nobody knows."""
    try:
        return frozenset(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return None


def _spread(cpus: Sequence[int]) -> list[int]:
    """Return a bounded number of CPUs, from the first to the last at even distances."""
    n_asked = min(len(cpus), _MOST_CPUS)
    return [cpus[i * (len(cpus) - 1) // max(1, n_asked - 1)] for i in range(n_asked)]


def _read_core(folder: str, *, n_cpus: int) -> dict[int, CacheShare]:
    """Read the caches of one CPU by level."""
    found: dict[int, tuple[int, int | None]] = {}
    for number in range(_MOST_CACHES):
        cache = f"{folder}/index{number}"
        level = _read(f"{cache}/level")
        if level not in {"1", "2", "3"} or _read(f"{cache}/type") not in {"Data", "Unified"}:
            continue
        size = _SYSFS_SIZE.fullmatch(_read(f"{cache}/size"))
        n_bytes = int(size[1]) * _SYSFS_FACTORS[size[2]] if size else 0
        if n_bytes:
            found.setdefault(int(level), (n_bytes, _count(_read(f"{cache}/shared_cpu_list"))))
    threads = (found[1][1] if 1 in found else None) or 1
    if threads > _MOST_THREADS:
        threads = 1
    return {
        level: CacheShare(
            size_bytes=n_bytes,
            cores=_cores(sharing or (n_cpus if level == 3 else 1), threads=threads),
        )
        for level, (n_bytes, sharing) in found.items()
    }


def _read(path: str) -> str:
    """Return the beginning of a small file; nothing where that is not possible."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_MOST_FILE_BYTES).decode("ascii", errors="replace").strip()
    except OSError:
        return ""


def _count(cpu_list: str) -> int | None:
    """Count the CPUs of a list such as ``0-3,8-11``; None if it is not one."""
    total = 0
    for piece in cpu_list.split(","):
        match = _CPU_RANGE.fullmatch(piece)
        if match is None:
            return None
        total += max(0, int(match[2] or match[1]) - int(match[1]) + 1)
    return min(total, _MOST_SHARING) or None


def _cores(sharing: int, *, threads: int) -> int:
    """Return the cores that so many CPUs are."""
    return -(-sharing // threads)


def _sysctl_core(numbers: Mapping[str, int], kind: str) -> dict[int, CacheShare]:
    """Return the caches of one kind of core by level."""
    names = {1: "l1dcachesize", 2: "l2cachesize", 3: "l3cachesize"}
    # Kinds of cores that share a third level need not repeat it.
    sizes = {level: numbers.get(kind + name) for level, name in names.items()}
    sizes[3] = sizes[3] or numbers.get("hw.l3cachesize")
    n_cores = numbers.get("hw.physicalcpu") or 1
    threads = max(1, (numbers.get("hw.logicalcpu") or 1) // n_cores)
    last = max((level for level, size in sizes.items() if size), default=1)
    core = {}
    for level, size in sizes.items():
        sharing = numbers.get(f"{kind}cpusperl{level}")
        all_cores = n_cores if level == last and level > 1 else 1
        if size:
            cores = _cores(sharing, threads=threads) if sharing else all_cores
            core[level] = CacheShare(size_bytes=size, cores=cores)
    return core


def _output_of(command: Sequence[str]) -> str:
    """Return the beginning of what a command prints; nothing where it fails or takes too long."""
    try:
        # Into a file: a pipe has no bound, and a child of the command could keep it open.
        with tempfile.TemporaryFile() as output:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=_TIMEOUT_S,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            output.seek(0)
            return output.read(_MOST_OUTPUT_BYTES).decode("ascii", errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
