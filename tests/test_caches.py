"""Cache sizes: what a dozen machines say, what is believed of it, and what users give instead."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning import cache_probes, caches
from mlarray_xr.planning.cache_probes import (
    MachineCaches,
    parse_powershell,
    parse_sysctl,
    read_linux,
    read_machine,
)
from mlarray_xr.planning.caches import (
    CacheSizes,
    caches_from,
    detect_caches,
    effective_caches,
    smallest_caches,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

KIB, MIB = 1 << 10, 1 << 20
NOTHING_KNOWN = (32 * KIB, 512 * KIB, 1_441_792)

# Of one CPU the caches: level, type, size, the CPUs that share it.
Cpu = list[tuple[int, str, str, str]]
Tree = dict[int, Cpu]


def cpu(l1: str, l2: str | None, l3: str | None, *, shared: tuple[str, str, str]) -> Cpu:
    sizes = zip((1, 2, 3), (l1, l2, l3), shared, strict=True)
    found = [
        (level, "Data" if level == 1 else "Unified", size, cpus)
        for level, size, cpus in sizes
        if size
    ]
    return [(1, "Instruction", "64K", shared[0]), *found]


def write_tree(root: Path, tree: Tree) -> str:
    root.mkdir(parents=True, exist_ok=True)
    for name in ("cpufreq", "cpuidle", "cpu0x"):
        (root / name).mkdir()
    for number, found in tree.items():
        for index, (level, kind, size, shared) in enumerate(found):
            folder = root / f"cpu{number}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            contents = {"level": str(level), "type": kind, "size": size, "shared_cpu_list": shared}
            for file, text in contents.items():
                (folder / file).write_text(f"{text}\n", encoding="utf-8")
    return str(root)


def hybrid() -> Tree:
    """Eight cores of two threads, and sixteen of one thread, four to a second level."""
    tree = {}
    for number in range(16):
        pair = f"{number // 2 * 2}-{number // 2 * 2 + 1}"
        tree[number] = cpu("48K", "2048K", "36864K", shared=(pair, pair, "0-31"))
    for number in range(16, 32):
        four = f"{number // 4 * 4}-{number // 4 * 4 + 3}"
        tree[number] = cpu("32K", "4096K", "36864K", shared=(str(number), four, "0-31"))
    return tree


def laptop_with_island() -> Tree:
    """Two threads on each of two cores, and two more cores that the third level does not reach."""
    tree = {
        number: cpu("48K", "2048K", "12288K", shared=(pair, pair, "0-3"))
        for number, pair in enumerate(("0-1", "0-1", "2-3", "2-3"))
    }
    island = {n: cpu("32K", "2048K", None, shared=(str(n), "4-5", "")) for n in (4, 5)}
    return {**tree, **island}


def epyc() -> Tree:
    """64 cores of two threads, eight to a third level."""
    tree = {}
    for number in range(128):
        core, first = number % 64, number % 64 // 8 * 8
        pair = f"{core},{core + 64}"
        eight = f"{first}-{first + 7},{first + 64}-{first + 71}"
        tree[number] = cpu("32K", "512K", "32768K", shared=(pair, pair, eight))
    return tree


def uniform(n: int, l1: str, l2: str, l3: str | None = None, *, threads: int = 1) -> Tree:
    """Cores with a second level of their own, all in one third level."""
    tree = {}
    for number in range(n):
        first = number // threads * threads
        core = f"{first}-{first + threads - 1}" if threads > 1 else str(number)
        tree[number] = cpu(l1, l2, l3, shared=(core, core, f"0-{n - 1}"))
    return tree


def cluster() -> Tree:
    """Four small cores with one second level and nothing beyond."""
    return {n: cpu("32K", "1024K", None, shared=(str(n), "0-3", "")) for n in range(4)}


LINUX: dict[str, tuple[Tree, tuple[int, int, int]]] = {
    "Intel desktop, hybrid": (hybrid(), (32 * KIB, 1 * MIB, 36 * MIB // 32)),
    "Intel laptop, cores without L3": (laptop_with_island(), (32 * KIB, 1 * MIB, 6 * MIB)),
    "AMD EPYC, eight CCX": (epyc(), (32 * KIB, 512 * KIB, 4 * MIB)),
    # The share for which the reference package plans.
    "Skylake server": (uniform(56, "32K", "1024K", "39424K", threads=2), (32768, MIB, 1_441_792)),
    "L2 above the share of L3": (
        uniform(56, "48K", "2048K", "107520K"),
        (49_152, 2 * MIB, 2 * MIB),
    ),
    "2-vCPU VM": (uniform(2, "48K", "2048K", "307200K"), (48 * KIB, 2 * MIB, 8 * MIB)),
    "ARM server without L3": (uniform(80, "64K", "1024K"), (64 * KIB, MIB, MIB)),
    "ARM board, shared L2": (cluster(), (32 * KIB, 256 * KIB, 256 * KIB)),
    "Graviton": (uniform(64, "64K", "1024K", "32768K"), (64 * KIB, MIB, MIB)),
    "POWER, eight threads": (uniform(64, "32K", "1M", "40M", threads=8), (32 * KIB, MIB, 5 * MIB)),
    "CPUs without caches": ({0: [], 1: []}, NOTHING_KNOWN),
    "container with masked /sys": ({}, NOTHING_KNOWN),
}


def levels(sizes: CacheSizes) -> tuple[int, int, int]:
    return sizes.l1_bytes, sizes.l2_bytes, sizes.l3_bytes


@pytest.mark.parametrize("machine", LINUX)
def test_linux_machines(machine: str, tmp_path: Path) -> None:
    tree, expected = LINUX[machine]
    found = effective_caches(read_linux(write_tree(tmp_path / "cpu", tree)))
    assert levels(found) == expected
    assert found.provenance.startswith(f"Linux sysfs, {sum(map(bool, tree.values()))} of")


@pytest.mark.parametrize(
    "cgroup",
    [
        {},
        {"cpu.max": "200000 100000\n", "cpuset.cpus.effective": "0-63\n"},
        {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"},
    ],
    ids=["no cgroup", "quota of 2 CPUs, version 2", "quota of 2 CPUs, version 1"],
)
@pytest.mark.parametrize("usable", [None, {4, 5, 6, 7}, {40}], ids=["all", "4 of 64", "1 of 64"])
def test_a_container_has_the_share_of_its_cores(
    cgroup: dict[str, str], usable: set[int] | None, tmp_path: Path
) -> None:
    root = write_tree(tmp_path / "devices/system/cpu", uniform(64, "48K", "1280K", "110592K"))
    for name, text in cgroup.items():
        (tmp_path / "fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs/cgroup" / name).write_text(text)
    found = effective_caches(read_linux(root, usable=usable))
    assert levels(found) == (48 * KIB, 1280 * KIB, 108 * MIB // 64)
    assert f"{len(usable or range(64))} of 64 CPUs" in found.provenance


def test_only_cores_that_the_process_may_use_are_asked(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "cpu", hybrid())
    big = effective_caches(read_linux(root, usable=range(16)))
    assert levels(big) == (48 * KIB, 2 * MIB, 36 * MIB // 16)
    # A container may number its CPUs otherwise than the system does.
    assert read_linux(root, usable={100, 200}) == read_linux(root)
    assert read_linux(root, usable=()) == read_linux(root)


def test_large_machines_are_asked_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = uniform(200, "48K", "1024K")
    tree[0] = cpu("48K", "512K", None, shared=("0", "0", ""))
    tree[199] = cpu("24K", "1024K", None, shared=("199", "199", ""))
    root = write_tree(tmp_path / "cpu", tree)
    paths: list[str] = []
    read = cache_probes._read

    def counted(path: str) -> str:
        paths.append(path)
        return read(path)

    monkeypatch.setattr(cache_probes, "_read", counted)
    assert levels(effective_caches(read_linux(root))) == (24 * KIB, 512 * KIB, 512 * KIB)
    assert len({path.split("/cache/")[0] for path in paths}) == 24
    assert len(paths) < 24 * 8 * 4


def test_provenance_says_what_was_found_and_changed(tmp_path: Path) -> None:
    def said(name: str, tree: Tree) -> str:
        return effective_caches(read_linux(write_tree(tmp_path / name, tree))).provenance

    assert said("vm", LINUX["2-vCPU VM"][0]) == (
        "Linux sysfs, 2 of 2 CPUs: L1 48 KiB; L2 2 MiB; "
        "L3 300 MiB shared by 2 cores, clamped to 8 MiB"
    )
    assert said("spr", LINUX["L2 above the share of L3"][0]).endswith(
        "L3 105 MiB shared by 56 cores, raised to that of L2"
    )
    assert said("arm", LINUX["ARM server without L3"][0]).endswith("L2 1 MiB; no L3")
    assert said("masked", {}) == (
        "Linux sysfs, 0 of 0 CPUs: L1 unknown, taken as 32 KiB; "
        "L2 unknown, taken as 512 KiB; L3 unknown, taken as 1.375 MiB"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("48K", 48 * KIB),
        ("49152", 48 * KIB),
        ("48K\n", 48 * KIB),
        ("1M", 128 * KIB),
        ("266240K", 128 * KIB),
        ("999999999G", 128 * KIB),
        ("1K", 16 * KIB),
        *(
            (junk, 32 * KIB)
            for junk in ("0K", "0", "", "K", "-48K", "48 K", "48k", "48KiB", "1e3K")
        ),
        *((junk, 32 * KIB) for junk in ("\u0664\u0668K", "48K\x00", "\ufeff48K", "\U0001f4a9")),
        ("9" * 5000 + "K", 32 * KIB),
        ("48K" + " " * 5000 + "x", 48 * KIB),
        ("0" * 9000 + "48K", 32 * KIB),
    ],
)
def test_sizes_as_files_tell_them(text: str, expected: int, tmp_path: Path) -> None:
    tree = {0: [(1, "Data", text, "0")]}
    assert effective_caches(read_linux(write_tree(tmp_path / "cpu", tree))).l1_bytes == expected


@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        ("0", 8 * MIB),
        ("1", 8 * MIB),
        ("0-1", 4 * MIB),
        ("0,1", 4 * MIB),
        # A container hides CPUs, but they are at work in the same cache.
        ("0-3", 2 * MIB),
        ("0-999999", MIB),
        # Unreadable: all CPUs that are listed.
        *((junk, 4 * MIB) for junk in ("", "x", "5-1", "-1", "0-", "0-1,", "0--1", "0-9999999")),
        ("0," * 5000, 4 * MIB),
    ],
)
def test_lists_of_sharing_cpus_as_files_tell_them(
    shared: str, expected: int, tmp_path: Path
) -> None:
    tree = {n: cpu("32K", "512K", "8192K", shared=(str(n), str(n), shared)) for n in range(2)}
    assert effective_caches(read_linux(write_tree(tmp_path / "cpu", tree))).l3_bytes == expected


def test_a_first_level_shared_by_all_makes_no_core_of_many_threads(tmp_path: Path) -> None:
    tree = {n: cpu("32K", "512K", "65536K", shared=("0-31", str(n), "0-31")) for n in range(32)}
    assert effective_caches(read_linux(write_tree(tmp_path / "cpu", tree))).l3_bytes == 2 * MIB


def test_caches_of_other_kinds_are_passed_over(tmp_path: Path) -> None:
    found: Cpu = [
        (1, "Instruction", "16K", "0"),
        (1, "Data", "48K", "0"),
        (4, "Unified", "128M", "0"),
        (0, "Data", "20K", "0"),
        (2, "Trace", "300K", "0"),
        (2, "Unified", "1024K", "0"),
        # A level that is told twice counts once.
        (2, "Unified", "512K", "0"),
    ]
    sizes = effective_caches(read_linux(write_tree(tmp_path / "cpu", {0: found})))
    assert levels(sizes) == (48 * KIB, MIB, MIB)


@pytest.mark.parametrize("file", ["level", "type", "size", "shared_cpu_list"])
def test_files_that_cannot_be_read_are_passed_over(file: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "cpu", uniform(2, "48K", "2048K", "4096K"))
    for path in (tmp_path / "cpu").glob(f"cpu*/cache/index3/{file}"):
        path.unlink()
        path.mkdir()
    expected = 2 * MIB
    found = effective_caches(read_linux(root))
    assert levels(found) == (48 * KIB, 2 * MIB, expected)
    assert ("no L3" in found.provenance) == (file != "shared_cpu_list")


def test_a_second_level_that_is_hidden_is_unknown(tmp_path: Path) -> None:
    tree = {0: cpu("48K", None, "4096K", shared=("0", "", "0"))}
    found = effective_caches(read_linux(write_tree(tmp_path / "cpu", tree)))
    assert levels(found) == (48 * KIB, 512 * KIB, 4 * MIB)
    assert "L2 unknown, taken as 512 KiB" in found.provenance


def test_a_root_that_is_a_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpu").write_text("0")
    assert levels(effective_caches(read_linux(str(tmp_path / "cpu")))) == NOTHING_KNOWN


APPLE_M1 = """\
hw.ncpu: 8
hw.perflevel0.physicalcpu: 4
hw.perflevel0.logicalcpu: 4
hw.perflevel0.l1icachesize: 196608
hw.perflevel0.l1dcachesize: 131072
hw.perflevel0.l2cachesize: 12582912
hw.perflevel0.cpusperl2: 4
hw.perflevel0.name: Performance
hw.perflevel1.physicalcpu: 4
hw.perflevel1.logicalcpu: 4
hw.perflevel1.l1icachesize: 131072
hw.perflevel1.l1dcachesize: 65536
hw.perflevel1.l2cachesize: 4194304
hw.perflevel1.cpusperl2: 4
hw.cpufamily: -634136515
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.cachelinesize: 128
hw.l1icachesize: 131072
hw.l1dcachesize: 65536
hw.l2cachesize: 4194304
hw.nperflevels: 2
hw.targettype: J313
"""
# One kind of core, in a release that tells who shares a cache.
INTEL_MAC = """\
hw.physicalcpu: 8
hw.logicalcpu: 16
hw.perflevel0.l1dcachesize: 32768
hw.perflevel0.l2cachesize: 262144
hw.perflevel0.l3cachesize: 16777216
hw.perflevel0.cpusperl2: 2
hw.perflevel0.cpusperl3: 16
hw.l1dcachesize: 32768
hw.l2cachesize: 262144
hw.l3cachesize: 16777216
"""


def without(text: str, *words: str) -> str:
    return "".join(
        line for line in text.splitlines(keepends=True) if not any(word in line for word in words)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(APPLE_M1, (64 * KIB, MIB, MIB), id="Apple M1"),
        # All eight cores might share the 4 MiB.
        pytest.param(without(APPLE_M1, "perflevel"), (64 * KIB, *[512 * KIB] * 2), id="macOS 11"),
        pytest.param(INTEL_MAC, (32 * KIB, 256 * KIB, 2 * MIB), id="Intel Mac"),
        pytest.param(
            without(INTEL_MAC, "perflevel"), (32 * KIB, 256 * KIB, 2 * MIB), id="old Intel Mac"
        ),
        pytest.param(
            without(INTEL_MAC, "perflevel0.l3", "cpusperl"),
            (32 * KIB, 256 * KIB, 2 * MIB),
            id="Intel Mac, in part",
        ),
        pytest.param(without(APPLE_M1, "l2"), (64 * KIB, *NOTHING_KNOWN[1:]), id="L1 only"),
        pytest.param("hw.l1dcachesize: 0\nhw.l2cachesize: 0\n", NOTHING_KNOWN, id="zeros"),
        pytest.param("hw.l1dcachesize: " + "9" * 9999, NOTHING_KNOWN, id="huge"),
        pytest.param("sysctl: unknown oid 'hw'\n", NOTHING_KNOWN, id="refused"),
        pytest.param("", NOTHING_KNOWN, id="silent"),
    ],
)
def test_macos_machines(text: str, expected: tuple[int, int, int]) -> None:
    found = effective_caches(parse_sysctl(text))
    assert levels(found) == expected
    assert found.provenance.startswith("macOS sysctl: L1 ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "cpu,8,4096,16384\r\nl1,5,512\r\n", (32 * KIB, 512 * KIB, 2 * MIB), id="unified L1"
        ),
        pytest.param(
            "cpu,6,7680,18432\r\nl1,3,192\r\nl1,4,288\r\n",
            (48 * KIB, 1280 * KIB, 3 * MIB),
            id="data L1",
        ),
        pytest.param(
            "cpu,16,16384,32768\r\ncpu,16,16384,32768\r\nl1,5,1024\r\nl1,5,1024\r\n",
            (32 * KIB, MIB, 2 * MIB),
            id="two sockets",
        ),
        pytest.param("cpu,2,,307200\r\n", (32 * KIB, 512 * KIB, 8 * MIB), id="VM"),
        pytest.param("cpu,4,2048,0\r\nl1,5,256\r\n", (32 * KIB, *[512 * KIB] * 2), id="ARM, no L3"),
        pytest.param("cpu,0,4096,16384\r\n", NOTHING_KNOWN, id="no cores"),
        pytest.param("l1,4,256\r\n", NOTHING_KNOWN, id="no processor"),
        pytest.param("Get-CimInstance : Access denied\r\n", NOTHING_KNOWN, id="refused"),
        pytest.param("cpu,8," + "9" * 9999 + ",\r\n", NOTHING_KNOWN, id="huge"),
        pytest.param("", NOTHING_KNOWN, id="silent"),
    ],
)
def test_windows_machines(text: str, expected: tuple[int, int, int]) -> None:
    found = effective_caches(parse_powershell(text))
    assert levels(found) == expected
    assert found.provenance.startswith("Windows CIM: L1 ")


def check_believable(machine: MachineCaches) -> None:
    sizes = effective_caches(machine)
    assert 16 * KIB <= sizes.l1_bytes <= 128 * KIB
    assert 256 * KIB <= sizes.l2_bytes <= 2 * MIB
    assert MIB <= sizes.l3_bytes <= 8 * MIB or sizes.l3_bytes == sizes.l2_bytes
    assert CacheSizes.from_plain(json.loads(json.dumps(sizes.to_plain()))) == sizes
    assert len(sizes.provenance) < 300


JUNK = st.binary(max_size=40) | st.text("0123456789-,KMG \n", max_size=30).map(str.encode)
FILES = {
    "level": JUNK | st.sampled_from([b"1\n", b"2\n", b"3\n"]),
    "type": JUNK | st.sampled_from([b"Data\n", b"Unified\n"]),
    "size": JUNK | st.integers(0, 10**10).map(lambda n: b"%dK\n" % n),
    "shared_cpu_list": JUNK | st.integers(0, 10**7).map(lambda n: b"0-%d\n" % n),
}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.fixed_dictionaries(FILES), max_size=4), max_size=3),
    st.none() | st.sets(st.integers(-5, 5)),
)
def test_no_tree_raises_or_leads_astray(
    tree: list[list[dict[str, bytes]]], usable: set[int] | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        for number, found in enumerate(tree):
            for index, files in enumerate(found):
                folder = Path(root, f"cpu{number}", "cache", f"index{index}")
                folder.mkdir(parents=True)
                for name, content in files.items():
                    (folder / name).write_bytes(content)
        check_believable(read_linux(root, usable=usable))


NUMBERS = st.integers(-1, 10**13).map(str) | st.text(max_size=5)
SYSCTL_NAMES = [
    f"hw.{kind}{name}"
    for kind in ("", "perflevel0.", "perflevel1.")
    for name in ("l1dcachesize", "l2cachesize", "l3cachesize", "cpusperl2", "physicalcpu")
]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SYSCTL_NAMES), NUMBERS).map(": ".join)))
def test_no_answer_of_macos_raises_or_leads_astray(lines: list[str]) -> None:
    check_believable(parse_sysctl("\n".join(lines)))


CIM_LINES = st.tuples(st.just("cpu"), NUMBERS, NUMBERS, NUMBERS) | st.tuples(
    st.just("l1"), st.sampled_from(["3", "4", "5", ""]), NUMBERS
)


@settings(deadline=None)
@given(st.lists(CIM_LINES.map(",".join)))
def test_no_answer_of_windows_raises_or_leads_astray(lines: list[str]) -> None:
    check_believable(parse_powershell("\r\n".join(lines)))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Answer every command as two systems would, and keep the commands."""
    commands: list[tuple[str, ...]] = []

    def answer(command: Iterable[str]) -> str:
        commands.append(tuple(command))
        return APPLE_M1 + "cpu,8,4096,16384\n"

    monkeypatch.setattr(cache_probes, "_output_of", answer)
    return commands


@pytest.mark.parametrize(
    ("platform", "origin", "program"),
    [
        ("darwin", "macOS sysctl", "/usr/sbin/sysctl"),
        ("win32", "Windows CIM", "powershell.exe"),
        ("wasi", "no known way to ask wasi", None),
    ],
)
def test_every_system_is_asked_in_its_way(
    platform: str,
    origin: str,
    program: str | None,
    asked: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    found = read_machine()
    assert found.origin == origin
    assert bool(found.cores) == bool(program)
    # By its full path: one that merely has the name may lie in the working folder.
    assert [command[0].endswith(program or "") for command in asked] == [True] * bool(program)
    assert all(len(command[0]) > len("powershell.exe") for command in asked)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
def test_this_linux_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_machine()
    assert found.origin.startswith("Linux sysfs, ")
    check_believable(found)
    monkeypatch.delattr(os, "sched_getaffinity")
    check_believable(read_machine())


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('hw.ncpu: 8')", "hw.ncpu: 8"),
        ("print('before'); raise SystemExit(1)", "before"),
        ("import sys; sys.stdout.buffer.write(b'\\xff9')", "\ufffd9"),
        ("import sys; sys.stderr.write('unknown oid')", ""),
    ],
)
def test_commands_answer_in_text(code: str, expected: str) -> None:
    assert cache_probes._output_of((sys.executable, "-c", code)).strip() == expected


def test_commands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = "import sys; sys.stdout.write('x' * 10**6)"
    assert cache_probes._output_of((sys.executable, "-c", flood)) == "x" * (256 * KIB)
    assert cache_probes._output_of(("/nowhere/sysctl", "hw")) == ""
    monkeypatch.setattr(cache_probes, "_TIMEOUT_S", 0.1)
    assert cache_probes._output_of((sys.executable, "-c", "import time; time.sleep(60)")) == ""


DETECTED = CacheSizes(l1_bytes=48 * KIB, l2_bytes=2 * MIB, l3_bytes=3 * MIB, provenance="a machine")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Be on a known machine, and return what sets the environment variable."""
    core = {
        level: cache_probes.CacheShare(size_bytes=size)
        for level, size in enumerate(levels(DETECTED), start=1)
    }
    known = MachineCaches(origin="a machine", cores=(core,))
    monkeypatch.setattr(caches, "read_machine", lambda: known)
    monkeypatch.delenv("MLARRAY_XR_CACHES", raising=False)
    return lambda text: monkeypatch.setenv("MLARRAY_XR_CACHES", text)


GIVEN = {
    "l1=32KiB,l2=1MiB,l3=2MiB": (32 * KIB, MIB, 2 * MIB),
    " L3 = 2 MiB , l1=32768,l2=1 MiB ": (32 * KIB, MIB, 2 * MIB),
    "l1=64KiB": (64 * KIB, 2 * MIB, 3 * MIB),
    "l3=64MiB": (48 * KIB, 2 * MIB, 64 * MIB),
    "l2=512KiB,l3=1.5MiB": (48 * KIB, 512 * KIB, 1536 * KIB),
    # What was not given gives way.
    "l3=1MiB": (48 * KIB, MIB, MIB),
    "l3=20KiB": (20 * KIB,) * 3,
    "l1=4MiB": (4 * MIB,) * 3,
    "l1=16KiB,l3=16KiB": (16 * KIB,) * 3,
    "l1=1,l2=1,l3=1099511627776": (1, 1, 1 << 40),
}


@pytest.mark.parametrize("text", GIVEN)
def test_the_environment_goes_before_the_machine(text: str, machine: Callable[[str], None]) -> None:
    machine(text)
    found = detect_caches()
    assert levels(found) == GIVEN[text]
    assert "MLARRAY_XR_CACHES" in found.provenance
    assert ("a machine" in found.provenance) == (text.lower().count("=") < 3)


@pytest.mark.parametrize("text", GIVEN)
def test_a_text_and_a_mapping_give_the_same(text: str, machine: Callable[[str], None]) -> None:
    pairs = [piece.split("=") for piece in text.split(",")]
    assert levels(caches_from(text)) == GIVEN[text]
    assert caches_from(dict(pairs)) == caches_from(text)
    assert "caches=" in caches_from(text).provenance


def test_numbers_are_bytes(machine: Callable[[str], None]) -> None:
    assert levels(caches_from({"l1": 1000, "l3": 4 * MIB})) == (1000, 2 * MIB, 4 * MIB)


@pytest.mark.parametrize("text", ["", "  "])
def test_a_blank_environment_is_none(text: str, machine: Callable[[str], None]) -> None:
    machine(text)
    assert detect_caches() == DETECTED
    assert caches_from(None) == caches_from("local") == caches_from(" LOCAL ") == DETECTED


def test_arguments_go_before_the_environment(machine: Callable[[str], None]) -> None:
    machine("l1=16KiB,l3=5MiB")
    assert levels(caches_from("l3=7MiB")) == (16 * KIB, 2 * MIB, 7 * MIB)
    assert levels(caches_from("local")) == (16 * KIB, 2 * MIB, 5 * MIB)
    assert caches_from(DETECTED) is DETECTED


def test_nothing_is_asked_when_all_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> MachineCaches:
        raise AssertionError

    monkeypatch.setattr(caches, "read_machine", refuse)
    everything = "l1=32KiB,l2=1MiB,l3=2MiB"
    monkeypatch.setenv("MLARRAY_XR_CACHES", everything)
    assert detect_caches() == caches_from(everything) == caches_from("l1=32KiB,l2=1MiB,l3=2MiB")
    assert caches_from("l1=1KiB").l3_bytes == 2 * MIB


MALFORMED = [
    "32KiB",
    "l1",
    "l1=",
    "l1=32KiB,",
    "l1=32KiB;l2=1MiB",
    "l4=1MiB",
    "L=1MiB",
    "l1_bytes=1",
    "l1=32KiB,L1=32KiB",
    "l1=many",
    "l1=0",
    "l1=-1KiB",
    "l1=nan",
    "l1=1e99TB",
    "l3=2TiB",
    "l1=1=2",
    "l1=2MiB,l2=1MiB",
    "l1=2MiB,l3=1MiB",
    "cluster",
    "l1=" + "9" * 5000,
]


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_texts_are_refused_with_a_way_out(
    text: str, machine: Callable[[str], None]
) -> None:
    machine(text)
    with pytest.raises(LayoutError, match=r"^MLARRAY_XR_CACHES .*To fix: such as 'l1=32KiB"):
        detect_caches()
    with pytest.raises(LayoutError, match=r"^caches= .*To fix: such as 'l1=32KiB") as caught:
        caches_from(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "value",
    [
        "",
        {},
        {"l1": True},
        {"l1": 32768.0},
        {"l1": None},
        {"l1": [1]},
        {"l1": 10**5000},
        {"l1": 0},
        {"l1": 1, "L1": 1},
        {1: 32768},
        {"l2": "1MiB", "l1": "2MiB"},
        [1, 2, 3],
        (32768, 1 << 20, 1 << 21),
        32768,
        10**5000,
        True,
        b"l1=32KiB",
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_arguments_are_refused(value: Any, machine: Callable[[str], None]) -> None:
    with pytest.raises(LayoutError, match=r"caches= .*To fix: ") as caught:
        caches_from(value)
    assert len(str(caught.value)) < 400


def test_sizes_read_well() -> None:
    assert str(DETECTED) == "L1 48 KiB, L2 2 MiB, L3 3 MiB (a machine)"
    odd = CacheSizes(l1_bytes=1000, l2_bytes=1_441_792, l3_bytes=3 << 30)
    assert str(odd) == "L1 1000 B, L2 1.375 MiB, L3 3 GiB (given)"


def test_sizes_are_compared_without_their_provenance() -> None:
    again = CacheSizes(l1_bytes=48 * KIB, l2_bytes=2 * MIB, l3_bytes=3 * MIB)
    assert again == DETECTED
    assert hash(again) == hash(DETECTED)
    assert pickle.loads(pickle.dumps(DETECTED)).provenance == "a machine"


PLAIN = {"l1_bytes": 32768, "l2_bytes": 1 << 20, "l3_bytes": 1 << 21, "provenance": "a file"}


def test_plain_values_round_trip() -> None:
    found = CacheSizes.from_plain(json.loads(json.dumps(PLAIN)))
    assert found.to_plain() == PLAIN
    assert CacheSizes.from_plain({**PLAIN, "l4_bytes": "x", "zz": {}}).to_plain() == PLAIN
    bare = {name: size for name, size in PLAIN.items() if name != "provenance"}
    assert CacheSizes.from_plain(bare).provenance == "given"


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        32768.0,
        "32768",
        [1],
        {},
        (1 << 40) + 1,
        10**5000,
        -(10**5000),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["l1_bytes", "l2_bytes", "l3_bytes"])
def test_hostile_sizes_are_refused(name: str, value: Any) -> None:
    hostile = {**PLAIN, "l1_bytes": 1, "l3_bytes": 1 << 40, name: value}
    with pytest.raises(LayoutError, match=f"{name} .*To fix: "):
        CacheSizes.from_plain(hostile)


@pytest.mark.parametrize(
    "mapping", [None, [], "l1=32KiB", 7, 10**5000, [[10**5000]], b"{}"], ids=type
)
def test_what_is_no_mapping_is_refused(mapping: Any) -> None:
    with pytest.raises(LayoutError, match="To fix: "):
        CacheSizes.from_plain(mapping)


@pytest.mark.parametrize("missing", ["l1_bytes", "l2_bytes", "l3_bytes"])
def test_missing_and_descending_sizes_are_refused(missing: str) -> None:
    with pytest.raises(LayoutError, match=missing):
        CacheSizes.from_plain({name: value for name, value in PLAIN.items() if name != missing})
    with pytest.raises(LayoutError, match="descend"):
        CacheSizes.from_plain({**PLAIN, "l1_bytes": 1 << 30})
    with pytest.raises(LayoutError, match="descend"):
        CacheSizes.from_plain({**PLAIN, "l3_bytes": 1 << 19})


@pytest.mark.parametrize("provenance", [None, 1, b"x", ["x"], {"x": 1}], ids=type)
def test_a_provenance_is_a_text(provenance: Any) -> None:
    with pytest.raises(LayoutError, match="provenance"):
        CacheSizes.from_plain({**PLAIN, "provenance": provenance})


@pytest.mark.parametrize("provenance", ["x" * 1001, "two\nlines", "\x1b[2J", "\ud800"])
def test_a_provenance_is_one_short_line(provenance: str) -> None:
    with pytest.raises(LayoutError, match="provenance"):
        CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3, provenance=provenance)
    found = CacheSizes.from_plain({**PLAIN, "provenance": provenance}).provenance
    assert found.isprintable()
    assert len(found) == min(len(provenance), 1000)


SIZES = st.builds(
    lambda three, line: CacheSizes(
        **dict(zip(("l1_bytes", "l2_bytes", "l3_bytes"), sorted(three), strict=True)),
        provenance=line,
    ),
    st.tuples(*[st.integers(1, 1 << 40)] * 3),
    st.text("abc", max_size=1000),
)


@given(st.lists(SIZES, min_size=1, max_size=6))
def test_the_smallest_is_the_minimum_of_every_level(every: list[CacheSizes]) -> None:
    smallest = smallest_caches(iter(every))
    assert levels(smallest) == tuple(map(min, zip(*map(levels, every), strict=True)))
    assert smallest == smallest_caches(reversed(every)) == smallest_caches([smallest, *every])
    distinct = len(set(map(levels, every)))
    counted = f"smallest of {len(every)}, {distinct} distinct: "
    assert smallest.provenance.startswith(counted if distinct > 1 else every[0].provenance)


def test_the_smallest_names_every_origin_once() -> None:
    names = ("laptop", "server", "server")
    every = [
        CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3 + i, provenance=name)
        for i, name in enumerate(names)
    ]
    assert smallest_caches(every).provenance == "smallest of 3, 3 distinct: laptop | server"
    assert all(smallest_caches(some) == every[0] for some in itertools.permutations(every))


def test_the_smallest_of_equals_is_the_first() -> None:
    names = ("laptop", "server", "server")
    every = [CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3, provenance=name) for name in names]
    assert smallest_caches(iter(every)) is every[0]
    assert smallest_caches(every[2:]) is every[2]


def test_the_smallest_of_none_is_refused() -> None:
    with pytest.raises(LayoutError, match="To fix: "):
        smallest_caches([])
