"""Every benchmark runs at its smoke size, reads true values and reports every row; no time."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import itertools
import math
import platform
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import contenders
from benchmarks.contenders import ours, reference
from benchmarks.data import Workplace, make_values, random_boxes
from benchmarks.machine import Machine, cpu_count, describe_machine
from benchmarks.report import Goal, Row, Table, render
from benchmarks.size import FULL, SMOKE
from benchmarks.suite import BENCHMARKS, run_suite
from benchmarks.timing import Samples, time_paired
from benchmarks.training import MINE, RATES
from benchmarks.training_plot import draw_training, is_rates
from benchmarks.training_readers import MEMORY_MAP, MEMORY_MAP_COPY, MLARRAY, OURS, RADIOBJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.contenders import Contender

MACHINE = Machine(facts=(("CPUs", "2"),), versions=(("numpy", "2"),))


@pytest.fixture(scope="module")
def tables() -> Iterator[list[Table]]:
    # Contenders begin with a collected heap: that of a whole test run takes a second to collect.
    gc.collect()
    gc.freeze()
    yield list(run_suite(SMOKE, names=list(BENCHMARKS)))
    gc.unfreeze()


def rows_of(tables: list[Table], name: str) -> list[Row]:
    return [row for table in tables if table.name == name for row in table.rows]


def test_every_benchmark_reports_under_the_name_that_repeats_it(tables: list[Table]) -> None:
    assert {table.name for table in tables} == set(BENCHMARKS)
    assert len({table.title for table in tables}) == len(tables)


def test_all_numbers_are_finite_and_positive(tables: list[Table]) -> None:
    rows = [row for table in tables for row in table.rows]
    assert len(rows) > 50
    for row in rows:
        if row.unit != "MB":
            assert row.median > 0, row
        assert math.isfinite(row.best), row


def test_patches_compare_every_type_edge_and_way_of_reading(tables: list[Table]) -> None:
    rows = rows_of(tables, "patches")
    for edge in SMOKE.edges:
        for way in ("1 thread", "1 thread, fresh buffers", "default threads", "2 Python threads"):
            case = f"{edge} cubed, {way}"
            found = [row.contender for row in rows if row.case == case]
            assert len(found) == 4, case  # ours and the reference, for both types
            assert found.count(reference.NAME) == 2, case


def test_other_formats_take_part_or_are_listed_as_missing(tables: list[Table]) -> None:
    others = [table for table in tables if table.title.endswith("other formats")]
    assert len(others) == 2
    expected = {
        name
        for module in contenders.OPTIONAL
        for name in importlib.import_module(f"benchmarks.contenders.{module}").NAMES
    }
    for table in others:
        timed = {row.contender for row in table.rows} - {ours.POOL}
        missing = {skip.contender for skip in table.skips}
        assert timed | missing == expected
        assert not timed & missing
        assert len(table.rows) == len(SMOKE.edges) * (1 + len(timed))


def test_dask_compares_all_operations_and_one_zarr_store_carries_the_goal(
    tables: list[Table],
) -> None:
    comparison, scaling, stores = (table for table in tables if table.name == "dask")
    for table in (comparison, stores):
        held = [row.case for row in table.rows if row.goal]
        wanted = 0 if table.skips else 1
        assert [held.count(case) for case in ("max", "mean", "load")] == [wanted] * 3
    assert len(stores.rows) == (0 if stores.skips else 3 * 4)
    assert len(scaling.rows) == 2 * cpu_count()


def test_opening_reports_times_tasks_and_on_linux_bytes_and_memory(tables: list[Table]) -> None:
    rows = rows_of(tables, "opening")
    cases = {row.case for row in rows}
    assert {"open", "open the cube"} <= cases
    (tasks,) = (row for row in rows if row.unit == "tasks")
    assert tasks.is_met
    if sys.platform == "linux":
        assert {"read while opening", "memory added, sparse file"} <= cases
        assert all(row.is_met for row in rows if row.unit in ("KiB", "MB"))


def test_decode_rate_reports_both_types(tables: list[Table]) -> None:
    found = [row.case for row in rows_of(tables, "decode-rate")]
    assert found == ["int16"] * 9 + ["float32"] * 9


def test_writing_compares_time_size_and_reading_of_every_type(tables: list[Table]) -> None:
    found = [row.case for row in rows_of(tables, "writing")]
    names = ["int16", "float32"]
    assert found[:4] == [name for name in names for _ in range(2)]
    chosen = found[4:]
    whats = ("write", "size", "patches")
    for case, (name, what) in zip(
        chosen[::2], itertools.product([*names, "uint8"], whats), strict=True
    ):
        assert case.startswith(f"{name} (")
        assert case.endswith(f"), {what}")
    assert chosen[::2] == chosen[1::2]


def test_writing_on_a_cluster_is_held_against_zarr(tables: list[Table]) -> None:
    found = [(row.case, row.contender) for row in rows_of(tables, "cluster-writing")]
    for contender in ("mlarray_xr.to_mla", "to_zarr v3, sharded", "speed-up over 1 worker"):
        assert ("2 workers", contender) in found
    assert ("2 workers", "share of assembly, fsync included") in found


def test_encoding_is_held_against_the_codec_alone(tables: list[Table]) -> None:
    found = [row.case for row in rows_of(tables, "encode-rate")]
    assert found == ["lz4hc-8", "zstd-1", "lz4-5-bitshuffle"]


def test_training_compares_ours_on_every_file_and_says_who_is_missing(tables: list[Table]) -> None:
    rates = [table for table in tables if is_rates(table)]
    assert [table.title for table in rates] == [RATES.format(workers) for workers in (0, 2)]
    for table in rates:
        assert [row.case for row in table.rows if row.contender == MINE] == [
            f"24 cubed, {layout}" for layout in OURS
        ]
        assert {row.contender for row in table.rows if row.ratio is not None} == {
            MLARRAY, MEMORY_MAP, MEMORY_MAP_COPY,
        }  # fmt: skip
        assert [skip.contender for skip in table.skips] == [RADIOBJECT]
    costs = {row.case for row in rows_of(tables, "training") if row.unit in ("MB", "ms")}
    assert "first batch of 8 files, 2 workers" in costs
    if sys.platform == "linux":
        assert "memory of each worker, 24 cubed, 2 workers" in costs


def test_the_picture_of_training_has_a_bar_for_every_loader(
    tables: list[Table], tmp_path: Path
) -> None:
    rates = [table for table in tables if is_rates(table)]
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        draw_training(rates, path)
    text = paths[0].read_text(encoding="utf-8")
    for name in (MLARRAY, MEMORY_MAP, *(f"{MINE}, {layout}" for layout in OURS)):
        assert f">{name}<" in text
    assert text == paths[1].read_text(encoding="utf-8")


def test_the_temporary_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[Path] = []

    def look(workplace: Workplace) -> list[Table]:
        seen.append(workplace.folder)
        assert workplace.volume("int16").path.is_file()
        return []

    monkeypatch.setitem(BENCHMARKS, "look", look)
    assert list(run_suite(SMOKE, names=["look"])) == []
    assert seen[0].parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_values_are_deterministic_ten_bit_and_compress_about_two_to_one(tmp_path: Path) -> None:
    values = make_values(SMOKE.shape, "int16")
    np.testing.assert_array_equal(values, make_values(SMOKE.shape, "int16"))
    assert 512 <= values.max() < 1024
    assert values.min() >= 0
    assert 1.7 < Workplace(folder=tmp_path, size=SMOKE).volume("int16").ratio < 2.5


def test_boxes_are_the_same_for_the_same_seed_and_fit() -> None:
    boxes = random_boxes((40, 50, 60), edge=40, count=9, seed=3)
    assert boxes == random_boxes((40, 50, 60), edge=40, count=9, seed=3)
    assert boxes != random_boxes((40, 50, 60), edge=40, count=9, seed=4)
    for box in boxes:
        assert [stop - start for start, stop in box] == [40, 40, 40]
        assert all(a >= 0 and b <= n for (a, b), n in zip(box, (40, 50, 60), strict=True))


def test_a_contender_that_reads_wrong_values_is_refused(tmp_path: Path) -> None:
    volume = Workplace(folder=tmp_path, size=SMOKE).volume("int16")
    wrong = dataclasses.replace(volume, values=volume.values + 1)
    (contender,) = contenders.prepare(volume, modules=("reference",))[0]
    with pytest.raises(RuntimeError, match="reads wrong values"):
        contenders.check(contender, wrong)


def test_a_missing_library_is_a_skip_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.contenders import hdf5_file

    def prepare(volume: object) -> list[Contender]:
        msg = "No module named 'h5py'"
        raise ImportError(msg)

    monkeypatch.setattr(hdf5_file, "prepare", prepare)
    volume = Workplace(folder=tmp_path, size=SMOKE).volume("int16")
    found, skips = contenders.prepare(volume, modules=("hdf5_file",))
    assert found == []
    assert [(skip.contender, skip.reason) for skip in skips] == [
        (hdf5_file.NAMES[0], "No module named 'h5py'")
    ]


def test_contenders_take_turns_and_the_warm_up_is_not_counted() -> None:
    calls: list[tuple[str, int]] = []

    def job(name: str) -> Callable[[int], object]:
        return lambda repeat: calls.append((name, repeat))

    found = time_paired({"a": job("a"), "b": job("b")}, repeats=2)
    assert calls == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert {name: len(samples.wall) for name, samples in found.items()} == {"a": 2, "b": 2}


def test_ratios_are_medians_of_pairs() -> None:
    mine = Samples(wall=(1.0, 2.0, 4.0), cpu=(1.0, 1.0, 1.0))
    theirs = Samples(wall=(3.0, 2.0, 8.0), cpu=(1.0, 1.0, 1.0))
    assert theirs.ratio_to(mine) == 2.0
    assert (mine.median, mine.best, mine.divided(2).median) == (2.0, 1.0, 1.0)


def test_goals_are_judged_on_the_number_they_are_about() -> None:
    at_least = Goal(of="ratio", relation=">=", bound=2)
    at_most = Goal(of="median", relation="<=", bound=3)
    row = Row(case="c", contender="x", unit="ms", median=3.5, best=1, ratio=2.0, goal=at_least)
    assert row.is_met
    assert not dataclasses.replace(row, ratio=1.99).is_met
    assert not dataclasses.replace(row, goal=at_most).is_met
    assert dataclasses.replace(row, goal=None).is_met is None
    with pytest.raises(ValueError, match="not measured"):
        dataclasses.replace(row, ratio=None)
    with pytest.raises(ValueError, match="not all finite"):
        dataclasses.replace(row, median=math.nan)


def test_the_page_names_commands_goals_and_what_is_missing(tables: list[Table]) -> None:
    page = render(tables, machine=MACHINE, size=FULL)
    for name in BENCHMARKS:
        assert f"    python -m benchmarks --only {name}\n" in page
    goal = Goal(of="ratio", relation=">=", bound=2)
    row = Row(case="c", contender="x", unit="ms", median=2.5, best=1, ratio=1.5, goal=goal)
    table = Table(name="dask", title="T", about="A.", rows=(row,))
    page = render([table], machine=MACHINE, size=FULL)
    assert [cell.strip() for cell in page.splitlines()[-1].split("|")[1:-1]] == [
        "c", "x", "2.50 ms", "1 ms", "", "1.50x", ">= 2x", "**no**",
    ]  # fmt: skip


def test_the_machine_is_described_without_names_or_paths() -> None:
    text = str(describe_machine())
    assert "numpy" in text
    assert (platform.node() or "no name") not in text
    assert "/home" not in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--smoke",
        "--only",
        "writing",
        "--write",
        str(page),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Benchmarks\n")
    assert "## Writing a volume from memory" in text
    assert "--smoke --only writing" in textwrap.dedent(done.stdout)
