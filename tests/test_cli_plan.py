"""The commands plan and bench: what they print beside what the library says, and every refusal."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import mlarray_xr
from mlarray_xr import Metadata, MlaArray, plan_layout, to_mla
from mlarray_xr.cli import main
from mlarray_xr.cli_bench import timing_table
from mlarray_xr.cli_info import planned_text
from mlarray_xr.explore import patch_timing
from mlarray_xr.explore.machine_speed import MachineSpeed
from mlarray_xr.explore.patch_timing import PatchTiming
from mlarray_xr.format.metadata import Spatial
from mlarray_xr.planning.caches import CacheSizes, detect_caches
from mlarray_xr.storage.planning_record import planning_facts

if TYPE_CHECKING:
    from pathlib import Path

CACHES = "l1=32KiB,l2=1MiB,l3=2MiB"
SHAPE = (48, 96, 96)
CODEC = "zstd-1"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLARRAY_XR_CACHES", CACHES)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


def values(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 300, shape).astype("int16")


def extents(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def write(name: str = "scan.mla", **options: Any) -> MlaArray:
    to_mla(values(), name, codec=CODEC, mode="w", **options)
    return MlaArray(name)


def write_series() -> MlaArray:
    labels = ("temporal", "spatial_z", "spatial_y", "spatial_x")
    metadata = Metadata(spatial=Spatial(axis_labels=labels), has_array=True)
    to_mla(values((10, 16, 24, 32)), "series.mla", codec=CODEC, patch=8, metadata=metadata)
    return MlaArray("series.mla")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    facts = json.loads(run(capsys, *arguments, "--json"), parse_constant=pytest.fail)
    assert isinstance(facts, dict)
    return facts


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mla: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


SERIES = ("--dims", "time,z,y,x")
REQUESTS: list[tuple[str, list[str], dict[str, Any]]] = [
    ("512,512,512", ["--patch", "128"], {"patch": 128}),
    ("60,512,512", ["--patch", "1,512,512"], {"patch": (1, 512, 512)}),
    ("512", [], {}),
    ("4,60,256,256", ["--patch", "32", *SERIES], {"patch": 32, "dims": ("time", "z", "y", "x")}),
    ("40,64,64,64", ["--layout", "series", *SERIES], {"layout": "series", "dims": [*"tzyx"]}),
    (
        "128,128,128",
        ["--access", "64,64,64:10", "--access=-1,1,1"],
        {"access": [((64, 64, 64), 10), ((-1, 1, 1), 1)]},
    ),
    ("128,128", ["--chunks", "32"], {"chunks": 32}),
    ("128,128", ["--chunks", "64,32", "--blocks", "8"], {"chunks": (64, 32), "blocks": 8}),
    ("128,512,512", ["--patch", "64", "--codec", "zstd-9"], {"patch": 64, "codec": "zstd-9"}),
    (
        "128,512,512",
        ["--patch", "64", "--caches", "l1=16KiB,l2=256KiB,l3=1MiB"],
        {"patch": 64, "caches": "l1=16KiB,l2=256KiB,l3=1MiB"},
    ),
    ("128,512,512", ["--patch", "64", "--remote"], {"patch": 64, "remote": True}),
    *(
        ("128,512,512", ["--strategy", rule], {"strategy": rule})
        for rule in ("mlarray-0.0.53", "mlarray-0.0.54")
    ),
]


def test_the_requests_make_different_layouts() -> None:
    found = {repr(plan_layout(extents(shape), "i2", **kw)) for shape, _, kw in REQUESTS[3:]}
    assert len(found) > len(REQUESTS[3:]) - 2


@pytest.mark.parametrize(("shape", "arguments", "expected"), REQUESTS)
def test_a_shape_gets_the_layout_that_the_library_plans(
    shape: str,
    arguments: list[str],
    expected: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = plan_layout(extents(shape), "int16", **expected)
    basis = layout.basis
    assert basis is not None
    text = run(capsys, "plan", shape, "int16", *arguments)
    decided = planning_facts(layout)
    head = "as given" if decided is None else f"planned {planned_text(decided)}"
    table = repr(layout.explain()).replace("slice of t ", "slice of time ")
    first, rest = text.split("\n", 1)
    assert first == f"array {extents(shape)} of int16"
    assert rest.split() == f"{head}\n{table}".split()
    facts = run_json(capsys, "plan", shape, "int16", *arguments)
    assert (facts["shape"], facts["dtype"]) == (list(extents(shape)), "int16")
    assert (tuple(facts["chunks"]), tuple(facts["blocks"])) == (layout.chunks, layout.blocks)
    assert facts["patch"] == (None if layout.patch is None else list(layout.patch))
    assert facts["codec"] == expected.get("codec")
    assert facts["remote"] == expected.get("remote", False)
    assert facts["rule"] == basis.rule
    assert CacheSizes.from_plain(facts["caches"]) == (basis.caches or detect_caches())
    assert len(facts["reads"]) == len(basis.windows)
    for read, window in zip(facts["reads"], basis.windows, strict=True):
        cost = layout.cost(window.shape)
        assert (read["window"], read["weight"]) == (list(window.shape), window.weight)
        for name in ("chunks", "blocks", "decoded_bytes", "amplification", "milliseconds"):
            assert read[name] == getattr(cost, name)


@pytest.mark.parametrize("name", ["float32", "<f8", "uint8", "i2", "bool", "complex64", "i2,f4"])
def test_types_are_those_of_numpy(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_json(capsys, "plan", "128,128,128", name, "--patch", "32")
    assert facts["dtype"] == str(np.dtype(name))
    assert tuple(facts["blocks"]) == plan_layout((128, 128, 128), name, patch=32).blocks


WRITTEN: dict[str, dict[str, Any]] = {
    "cubes": {"patch": 32},
    "slices": {"chunks": (1, 96, 96), "blocks": (1, 96, 96)},
    "uneven": {"chunks": (31, 50, 96), "blocks": (7, 50, 11)},
    "whole": {"chunks": SHAPE, "blocks": SHAPE},
    "reference": {"layout": plan_layout(SHAPE, "i2", strategy="mlarray-0.0.54")},
}


@pytest.mark.parametrize("patch", ["32", "1,96,96", "48,8,8"])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_file_is_judged_by_what_both_layouts_cost(
    written: str, patch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    array = write(**WRITTEN[written])
    window = (32, 32, 32) if patch == "32" else extents(patch)
    planned = plan_layout(SHAPE, "int16", patch=window, codec=CODEC)
    facts = run_json(capsys, "plan", "scan.mla", "--patch", patch)
    assert facts["path"] == array.path
    assert (facts["shape"], facts["dtype"]) == (list(SHAPE), "int16")
    assert tuple(facts["file"]["chunks"]) == array.chunks
    assert tuple(facts["file"]["blocks"]) == array.blocks
    assert tuple(facts["planned"]["chunks"]) == planned.chunks
    assert tuple(facts["planned"]["blocks"]) == planned.blocks
    assert facts["file"]["codec"] == facts["planned"]["codec"] == CODEC
    (mine,), (other,) = facts["file"]["reads"], facts["planned"]["reads"]
    assert mine["window"] == other["window"] == list(window)
    assert mine["milliseconds"] == array.layout.cost(window).milliseconds
    assert facts["gain"]["time"] == mine["milliseconds"] / other["milliseconds"]
    assert facts["gain"]["decoded"] == mine["decoded_bytes"] / other["decoded_bytes"]
    assert other["decoded_bytes"] == planned.cost(window).decoded_bytes
    assert facts["is_good"] == (facts["gain"]["time"] < 1.1)
    assert facts["is_good"] == facts["verdict"].startswith("good as it is")
    assert (facts["command"] is None) == facts["is_good"]
    if not facts["is_good"]:
        words = f"mla convert {array.path} NEW.mla --patch {patch} --codec {CODEC}"
        assert facts["command"] == words
        assert f"{facts['gain']['time']:.1f} times faster by the model" in facts["verdict"]


def test_some_files_are_good_and_some_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = {}
    for name, options in WRITTEN.items():
        write(**options)
        for patch in ("32", "1,96,96"):
            facts = run_json(capsys, "plan", "scan.mla", "--patch", patch)
            verdicts[name, patch] = facts["is_good"]
    assert verdicts["cubes", "32"]
    assert verdicts["slices", "1,96,96"]
    assert not verdicts["slices", "32"]
    assert not verdicts["cubes", "1,96,96"]
    assert not verdicts["whole", "32"]


def test_the_text_shows_both_tables_the_verdict_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    array = write(patch=32)
    text = run(capsys, "plan", "scan.mla", "--patch", "1,96,96")
    first, *_ = text.splitlines()
    assert first == f"file {array.path}, {SHAPE} of int16"
    facts = run_json(capsys, "plan", "scan.mla", "--patch", "1,96,96")
    for side in ("file", "planned"):
        assert f"chunks {tuple(facts[side]['chunks'])} of" in text
        assert f"blocks {tuple(facts[side]['blocks'])} of" in text
    assert text.count("1x96x96") == 5  # a patch and a slice in each table, and who planned
    assert "planned for 1x96x96, searched" in text
    assert "slice of y" in text
    assert text.endswith(f"\n\n{facts['verdict']}\n  {facts['command']}\n")
    good = run(capsys, "plan", "scan.mla", "--patch", "32")
    assert "mla convert" not in good
    assert "\ngood as it is: the planned layout would be 0 % faster\n" in good


def test_the_verdict_tells_more_and_less_decoded(capsys: pytest.CaptureFixture[str]) -> None:
    write(chunks=(1, 1, 96), blocks=(1, 1, 8))
    more = run_json(capsys, "plan", "scan.mla", "--patch", "32,32,32")
    assert more["gain"]["decoded"] < 1 / 1.1
    assert more["verdict"].endswith(f"decodes {1 / more['gain']['decoded']:.1f} times more")
    write(chunks=(48, 96, 96), blocks=(1, 96, 96))
    less = run_json(capsys, "plan", "scan.mla", "--patch", "48,8,8")
    assert less["verdict"].endswith(f"decodes {less['gain']['decoded']:.1f} times less")
    write(chunks=(1, 8, 96), blocks=(1, 8, 96))
    same = run_json(capsys, "plan", "scan.mla", "--patch", "48,96,96")
    assert same["verdict"].endswith("decodes as much")


@pytest.mark.parametrize("patch", ["1,96,96", "16"])
def test_the_command_makes_a_file_that_is_good(
    patch: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a 'b").mkdir()
    name = "a 'b/scan 1.mla"
    write(name, chunks=(8, 96, 11), blocks=(8, 96, 11))
    facts = run_json(capsys, "plan", name, "--patch", patch)
    program, *arguments = shlex.split(facts["command"])
    assert program == "mla"
    run(capsys, *arguments)
    made = MlaArray("NEW.mla")
    assert (list(made.chunks), list(made.blocks)) == (
        facts["planned"]["chunks"],
        facts["planned"]["blocks"],
    )
    assert run_json(capsys, "plan", "NEW.mla", "--patch", patch)["is_good"]
    # What the new file was written for is what it is judged by.
    again = run_json(capsys, "plan", "NEW.mla")
    assert again["file"]["reads"][0]["window"] == facts["file"]["reads"][0]["window"]
    assert again["is_good"]


@pytest.mark.parametrize(
    "options",
    [
        ["--patch", "1,96,96", "--remote", "--caches", "l1=16KiB,l2=256KiB,l3=1MiB"],
        ["--patch", "1,96,96", "--remote"],
        ["--patch", "16", "--strategy", "mlarray-0.0.54"],
        ["--access", "1,-1,-1:3", "--access=16,16,16:1"],
    ],
    ids=str,
)
def test_what_convert_is_not_told_is_written_by_a_call(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(chunks=(48, 8, 96), blocks=(48, 8, 96))
    facts = run_json(capsys, "plan", "scan.mla", *options)
    exec(facts["command"], {"mlarray_xr": mlarray_xr})
    made = MlaArray("NEW.mla")
    assert list(made.chunks) == facts["planned"]["chunks"]
    assert list(made.blocks) == facts["planned"]["blocks"]
    np.testing.assert_array_equal(made[...], values())
    if "--caches" in options:
        for side in ("file", "planned"):
            assert facts[side]["caches"]["l2_bytes"] == 256 << 10
    if "--remote" in options:
        assert facts["file"]["remote"] is facts["planned"]["remote"] is True
        assert facts["file"]["reads"][0]["milliseconds"] > 1.25  # one chunk of a slow link


def test_windows_count_by_their_weight(capsys: pytest.CaptureFixture[str]) -> None:
    write(chunks=(16, 16, 16), blocks=(8, 8, 8))
    arguments = ("--access", "1,-1,-1:3", "--access=16,16,16:0.5")
    facts = run_json(capsys, "plan", "scan.mla", *arguments)
    for name, gain in (("milliseconds", "time"), ("decoded_bytes", "decoded")):
        sums = [
            3 * facts[side]["reads"][0][name] + 0.5 * facts[side]["reads"][1][name]
            for side in ("file", "planned")
        ]
        assert facts["gain"][gain] == pytest.approx(sums[0] / sums[1])
    assert [read["weight"] for read in facts["file"]["reads"]] == [3, 0.5]
    text = run(capsys, "plan", "scan.mla", *arguments)
    assert "for 1x96x96 (weight 3) and 16x16x16 (weight 0.5), searched" in text


def test_without_a_patch_a_file_is_judged_by_its_own_or_the_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(patch=24)
    facts = run_json(capsys, "plan", "scan.mla")
    assert facts["file"]["reads"][0]["window"] == [24, 24, 24]
    assert facts["planned"]["patch"] == facts["file"]["patch"] == [24, 24, 24]
    write(chunks=(1, 96, 5))
    facts = run_json(capsys, "plan", "scan.mla")
    assert facts["file"]["patch"] is None
    assert facts["file"]["reads"][0]["window"] == list(SHAPE)
    assert facts["planned"]["patch"] == [192, 192, 192]
    assert facts["command"] == f"mla convert {MlaArray('scan.mla').path} NEW.mla --codec {CODEC}"


def test_patches_of_a_series_have_an_entry_per_spatial_axis_or_per_axis(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_series()
    short = run_json(capsys, "plan", "series.mla", "--patch", "8,24,32")
    long = run_json(capsys, "plan", "series.mla", "--patch", "1,8,24,32")
    assert short["file"]["reads"][0]["window"] == [1, 8, 24, 32]
    assert short["planned"] == long["planned"]
    other = run_json(capsys, "plan", "series.mla", "--patch", "10,1,1,1")
    assert other["file"]["reads"][0]["window"] == [10, 1, 1, 1]
    assert other["command"].endswith(f" NEW.mla --patch 10,1,1,1 --codec {CODEC}")
    text = run(capsys, "plan", "series.mla", "--layout", "series")
    assert "planned for 10x1x1x1, searched" in text
    assert "slice of time" in text


def test_a_plain_blosc2_file_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    import blosc2

    blosc2.asarray(values(), urlpath="plain.b2nd", mode="w", chunks=(8, 8, 8), blocks=(4, 4, 4))
    facts = run_json(capsys, "plan", "plain.b2nd", "--patch", "32")
    assert facts["file"]["chunks"] == [8, 8, 8]
    assert not facts["is_good"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["512,512"], r"shape without a type. To fix: mla plan 512,512 int16"),
        (["missing.mla"], "missing.mla: No such file"),
        (["512x512"], "512x512: No such file"),
        (["."], "directory"),
        (["gopher://example.org/a.mla"], "knows no protocol"),
        (["scan.mla", "int16"], "'scan.mla' is no shape"),
        (["512,x", "int16"], "'512,x' is no shape"),
        (["512,-1", "int16"], "is no shape"),
        (["0,5", "int16"], "is no shape"),
        (["9" * 5000, "int16"], "is no shape"),
        (["99999999999999999999", "int16"], "longest axis"),
        (["9223372036854775807,9223372036854775807", "int8"], "give smaller chunks"),
        (["5,5", "int99"], "'int99' is no type"),
        (["5,5", "1" * 50 + "i4"], "is no type"),
        (["5,5", "object"], "holds objects"),
        (["5,5", "V0"], "no bytes to store"),
        (["5,5", "int16", "--patch", "5,5,5"], "3 entries"),
        (["5,5", "int16", "--patch", "5", "--chunks", "5"], "exclude each other"),
        (["5,5", "int16", "--blocks", "5"], "without chunks"),
        (["5,5", "int16", "--access", "5:1"], "does not describe the 2 axes"),
        (["5,5", "int16", "--dims", "z,y,x"], "name 3 axes"),
        (["5,5", "int16", "--layout", "frames"], "is for series"),
        (["5,5", "int16", "--caches", "l4=5"], "l4"),
        (["5,5", "int16", "--caches", "l1=5MiB,l2=1MiB"], "ascend"),
        (["5,5", "int16", "--codec", "rar-1"], "rar"),
        (["5,5", "int16", "--access", "5,5:1", "--strategy", "mlarray-0.0.53"], "one patch"),
        (["scan.mla", "--dims", "z,y,x", "--chunks", "5"], "--dims, --chunks were given"),
        (["scan.mla", "--codec", "zstd-1"], "a file has its own"),
        (["scan.mla", "--blocks", "5"], "a file has its own"),
        (["scan.mla", "--patch", "5,5"], "2 entries"),
        (["scan.mla", "--patch", "5", "--access", "5,5,5:1"], "exclude each other"),
        (["scan.mla", "--layout", "series"], "is for series"),
        (["scan.mla", "--caches", "large"], "caches="),
        (["empty.mla"], r"shape \(0, 5\) has no patches"),
        (["scalar.mla"], r"shape \(\) has no patches"),
        (["bad.mla"], "bad.mla: not an .mla file"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(chunks=(8, 96, 96))
    to_mla(np.zeros((0, 5)), "empty.mla")
    to_mla(np.zeros(()), "scalar.mla")
    (tmp_path / "bad.mla").write_bytes(b"no array")
    assert re.search(message, fail(capsys, "plan", *arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan"],
        ["plan", "5,5", "int16", "more"],
        ["plan", "5,5", "int16", "--patch", "0"],
        ["plan", "5,5", "int16", "--access", "5,5:0"],
        ["plan", "5,5", "int16", "--access", "5,5:nan"],
        ["plan", "5,5", "int16", "--access", "5,5:"],
        ["plan", "5,5", "int16", "--access", "5,0"],
        ["plan", "5,5", "int16", "--access", "5,-2"],
        ["plan", "5,5", "int16", "--access", ":3"],
        ["plan", "5,5", "int16", "--dims", "y,y"],
        ["plan", "5,5", "int16", "--dims", "y,"],
        ["plan", "5,5", "int16", "--layout", "rows"],
        ["plan", "5,5", "int16", "--strategy", "mlarray-1"],
        ["bench"],
        ["bench", "a.mla", "b.mla"],
        ["bench", "a.mla", "--patch", "x"],
        ["bench", "a.mla", "--seconds", "0"],
        ["bench", "a.mla", "--seconds", "inf"],
        ["bench", "a.mla", "--seconds", "soon"],
        ["bench", "a.mla", "--count", "0"],
        ["bench", "a.mla", "--threads", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: mla" in printed.err


@pytest.mark.parametrize("written", WRITTEN)
def test_bench_prints_what_was_predicted_and_measured(
    written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    array = write(**WRITTEN[written])
    options = ("--patch", "9,10,11", "--count", "5", "--seconds", "0.01")
    facts = run_json(capsys, "bench", "scan.mla", *options)
    cost = array.layout.cost((9, 10, 11))
    assert facts["path"] == array.path
    assert facts["window"] == [9, 10, 11]
    assert facts["count"] == 5
    assert facts["n_reads"] >= 5
    assert facts["threads"] == 1
    assert facts["predicted_ms"] == cost.milliseconds
    assert (facts["predicted_chunks"], facts["predicted_blocks"]) == (cost.chunks, cost.blocks)
    assert facts["scaled_ms"] == pytest.approx(facts["predicted_ms"] * facts["machine_factor"])
    factors = [facts[f"{part}_factor"] for part in ("calls", "decode", "copy")]
    assert min(factors) <= facts["machine_factor"] <= max(factors)
    assert facts["ratio"] == facts["mean_ms"] / facts["scaled_ms"]
    text = run(capsys, "bench", "scan.mla", *options)
    assert text.startswith(
        f"file      {array.path}\npatch     9x10x11 int16, 5 at random offsets\n"
    )
    assert text.splitlines()[-1].startswith("ratio ")


def test_bench_without_options_reads_what_the_file_was_written_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def time_patches(array: MlaArray, patch: Any, **options: Any) -> Any:
        given.append((patch, options))
        return patch_timing.time_patches(array, patch, **{**options, "seconds": 0.001})

    monkeypatch.setattr("mlarray_xr.cli_bench.time_patches", time_patches)
    write_series()
    facts = run_json(capsys, "bench", "series.mla")
    assert given == [(None, {"seconds": 2.0, "count": None, "threads": 1})]
    assert facts["window"] == [1, 8, 8, 8]
    run(capsys, "bench", "series.mla", "--threads", "2", "--seconds", "0.5", "--count", "3")
    assert given[1] == (None, {"seconds": 0.5, "count": 3, "threads": 2})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mla"], "No such file"),
        (["scan.mla", "--patch", "97"], "does not fit"),
        (["scan.mla", "--patch", "5,5"], "2 entries"),
        (["scan.mla", "--count", "100001"], "1 to 100000"),
        (["empty.mla"], "no patches"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(chunks=(8, 96, 96))
    to_mla(np.zeros((0, 5)), "empty.mla")
    assert message in fail(capsys, "bench", *arguments)


def known() -> PatchTiming:
    layout = plan_layout((64, 64), "u1", chunks=(32, 32), blocks=(16, 16), caches=CACHES)
    return PatchTiming(
        window=(20, 20),
        dtype="uint8",
        threads=1,
        count=10,
        n_reads=40,
        predicted=layout.cost((20, 20)),
        speed=MachineSpeed(calls=2.0, decode=1.5, copy=0.75),
        scaled_ms=layout.cost((20, 20)).milliseconds * 2,
        chunks=2.5,
        blocks=5.0,
        mean_ms=layout.cost((20, 20)).milliseconds * 3,
        median_ms=0.25,
        quartiles_ms=(0.125, 0.5),
    )


def test_the_table_says_what_is_predicted_and_measured() -> None:
    text = timing_table(known())
    for words in (
        "20x20 uint8, 10 at random offsets",
        "40 by 1 thread",
        "2.5 touched, 2.0",
        "5 touched, 4.",
        "3.20 times what is wanted, 2.",
        "calls take 2.00, decoding 1.50, copying 0.75 times as long",
        "0.25 ms, their median; half of them 0.125 to 0.5 ms",
        "ratio     1.50, measured mean over predicted on this machine",
    ):
        assert words in text
    assert all(len(line) <= 100 for line in text.splitlines())
    text = timing_table(replace(known(), threads=4, blocks=12345.678, mean_ms=2345.678))
    assert "reads     40 by 4 threads" in text
    assert "blocks    12346 touched" in text
    assert "measured  2346 ms" in text


def info_rows(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, str]:
    lines = run(capsys, "info", name).splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_info_shows_what_was_planned(capsys: pytest.CaptureFixture[str]) -> None:
    write(patch=(1, 48, 48))
    rows = info_rows(capsys, "scan.mla")
    assert rows["patch"] == "[1, 48, 48]"
    assert rows["planned"] == "for 1x48x48, searched"
    assert rows["caches"] == "L1 32 KiB, L2 1 MiB, L3 2 MiB (MLARRAY_XR_CACHES)"
    assert run_json(capsys, "info", "scan.mla")["patch"] == [1, 48, 48]
    write(layout=plan_layout(SHAPE, "i2", patch=32, strategy="mlarray-0.0.54"))
    rows = info_rows(capsys, "scan.mla")
    assert rows["planned"] == "for 32x32x32, by mlarray-0.0.54"
    assert "caches" not in rows
    write(patch=None)
    rows = info_rows(capsys, "scan.mla")
    assert rows["planned"] == "by Blosc2"
    assert not {"caches", "patch"} & rows.keys()


def test_info_of_files_that_record_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    write(chunks=(8, 96, 96))
    assert not {"planned", "caches", "patch"} & info_rows(capsys, "scan.mla").keys()
    assert run_json(capsys, "info", "scan.mla")["patch"] is None


CACHE_FACTS = {"l1_bytes": 32768, "l2_bytes": 1 << 20, "l3_bytes": 1 << 21, "provenance": "lab"}


@pytest.mark.parametrize(
    ("planned", "expected"),
    [
        ({"rule": "searched"}, {"planned": "searched"}),
        ({"remote": True}, {"planned": "read through a network"}),
        ({"access": []}, {}),
        ({"caches": CACHE_FACTS}, {"caches": "L1 32 KiB, L2 1 MiB, L3 2 MiB (lab)"}),
        (
            {"access": [[[1, 64], 1.0], [[64, 1], 0.5]], "rule": "searched", "remote": True},
            {
                "planned": "for 1x64 (weight 1) and 64x1 (weight 0.5), searched, read through a "
                "network"
            },
        ),
        (
            {"access": [[[n, 1], 2.0] for n in range(1, 101)]},
            {"planned": "for 1x1 (weight 2) and 2x1 (weight 2) and 3x1 (weight 2) and 97 more"},
        ),
    ],
)
def test_info_shows_no_more_than_is_recorded(
    planned: dict[str, Any],
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(chunks=(8, 96, 96))
    info = MlaArray.info
    monkeypatch.setattr(MlaArray, "info", lambda array: {**info(array), "planned": planned})
    rows = info_rows(capsys, "scan.mla")
    assert {name: rows[name] for name in ("planned", "caches") if name in rows} == expected


def test_windows_without_axes_are_named() -> None:
    assert planned_text({"access": [[[], 1.0]], "rule": "searched"}) == "for (), searched"
