"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlarray
import nibabel as nib
import numpy as np
import pytest

import mlarray_xr
from mlarray_xr import Metadata, MlaArray, cli_convert, to_mla
from mlarray_xr.cli import main
from mlarray_xr.foreign.formats import FORMATS
from mlarray_xr.format.metadata import Spatial

if TYPE_CHECKING:
    from distributed import Client

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    made = nib.Nifti1Image(np.arange(720, dtype="int16").reshape(8, 9, 10), np.diag([1, 2, 3, 1]))
    made.header["descrip"] = b"John Doe"
    made.header.set_xyzt_units("mm")
    nib.save(made, tmp_path / "scan.nii")
    names = [str(tmp_path / "scan.nii"), str(tmp_path / "scan.mla")]
    assert main(["convert", *names, "--codec", "zstd-1"]) == 0
    return tmp_path / "scan.mla"


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mlarray_xr.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_info_tells_what_is_in_a_file(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["info", str(scan)]) == 0
    printed = capsys.readouterr()
    facts = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    assert printed.err == ""
    assert facts["path"] == str(scan)
    assert facts["shape"] == "x 8, y 9, z 10"
    assert facts["dtype"] == "int16"
    assert facts["spacing"] == "x 1 mm, y 2 mm, z 3 mm"
    assert facts["world"] == "RAS+, axis-aligned"
    assert facts["codec"] == "zstd-1 shuffle"
    assert facts["metadata"] == "source 1 keys, extra 2 keys, unknown 0 keys"
    assert facts["reader"] in ("native", "portable")
    assert facts["patch"] == "[192, 192, 192]"
    assert facts["planned"] == "for 8x9x10, searched"
    assert facts["caches"].startswith("L1 ")
    assert "Doe" not in printed.out


def test_info_reads_no_voxel(
    scan: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MlaArray, "_fill", lambda *_args, **_options: pytest.fail("it read"))
    assert main(["info", str(scan), "--json", "--metadata"]) == 0
    assert capsys.readouterr().out


def test_info_as_json(scan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["info", str(scan), "--json"]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed)
    assert facts["shape"] == [8, 9, 10]
    assert facts["dims"] == ["x", "y", "z"]
    assert facts["spacing"] == {"x": 1.0, "y": 2.0, "z": 3.0}
    assert facts["units"] == {"x": "mm", "y": "mm", "z": "mm"}
    assert facts["orientation"] == "axis-aligned"
    assert facts["metadata_keys"] == {"source": 1, "extra": 2, "unknown": 0}
    assert facts["patch"] == [192, 192, 192]
    assert facts["planned"]["access"] == [[[8, 9, 10], 1.0]]
    assert "metadata" not in facts
    assert "Doe" not in printed


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_metadata_are_printed_when_asked_for(
    option: list[str], scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["info", str(scan), "--metadata", *option]) == 0
    printed = capsys.readouterr().out
    facts = json.loads(printed[printed.index("{") :])
    metadata = facts["metadata"] if option else facts
    assert metadata["source"]["nifti"]["descrip"] == "John Doe"
    assert metadata["unknown"] == {}


def test_what_json_and_terminals_do_not_have_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spatial = Spatial(spacing=(float("nan"), float("inf")), coord_system="\x1b[31mRAS")
    metadata = Metadata(spatial=spatial, source={"\x1b": "\x1b"}, has_array=True)
    to_mla(np.zeros((2, 3)), tmp_path / "a.mla", metadata=metadata)
    for options in ([], ["--json"], ["--metadata"], ["--json", "--metadata"]):
        assert main(["info", str(tmp_path / "a.mla"), *options]) == 0
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        if "--json" in options:
            facts = json.loads(printed, parse_constant=pytest.fail)
            assert facts["spacing"] == {"y": None, "x": None}
            assert facts["orientation"] == "oblique"


@pytest.mark.parametrize("path", sorted((ROOT / "tests/data/mla").rglob("*.m*")), ids=str)
def test_info_describes_files_of_every_release(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if path.suffix not in (".mla", ".mb2nd"):
        pytest.skip("not an array file")
    assert main(["info", str(path)]) == 0
    assert main(["info", str(path), "--json"]) == 0
    table, line = capsys.readouterr().out.rsplit('{"path"', 1)
    assert table.startswith("path")
    assert json.loads('{"path"' + line)["reader"]


def test_convert_reports_and_refuses_to_overwrite(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(scan), str(tmp_path / "b.mla"), "--patch", "4,5,6"]
    capsys.readouterr()
    assert main([*arguments, "--codec", "zstd-3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["codec"], facts["shape"], facts["patch"]) == ("zstd-3", [8, 9, 10], [4, 5, 6])
    assert facts["file_bytes"] == (tmp_path / "b.mla").stat().st_size
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mla: error: ")
    assert printed.err.count("\n") == 1
    assert main([*arguments, "--overwrite"]) == 0
    assert str(tmp_path / "b.mla") in capsys.readouterr().out
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], MlaArray(scan)[...])


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_convert_to_nifti_names_the_file(
    options: list[str], scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "back.nii"
    capsys.readouterr()
    assert main(["convert", str(scan), str(target), *options]) == 0
    printed = capsys.readouterr().out
    assert target.read_bytes() == (tmp_path / "scan.nii").read_bytes()
    if options:
        assert json.loads(printed) == {"path": str(target), "file_bytes": target.stat().st_size}
    else:
        assert printed == f"{target}\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_demo_prints_its_report(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["demo", "--shape", "8,9,10", "--patch", "4", "--output-dir", str(tmp_path)]
    assert main([*arguments, *options]) == 0
    printed = capsys.readouterr().out
    if options:
        assert json.loads(printed)["shape"] == [8, 9, 10]
    else:
        assert "8 x 9 x 10 int16" in printed
    assert MlaArray(tmp_path / "demo.mla").shape == (8, 9, 10)


def test_demo_takes_a_file(scan: Path, tmp_path: Path) -> None:
    assert main(["demo", "--input", str(scan), "--output-dir", str(tmp_path / "out")]) == 0
    expected = MlaArray(scan)[...]
    np.testing.assert_array_equal(MlaArray(tmp_path / "out" / "demo.mla")[...], expected)


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", "missing.mla"],
        ["info", "."],
        ["info", "{bad}"],
        ["convert", "missing.nii", "a.mla"],
        ["convert", "{bad}", "b.mla"],
        ["convert", "a.nii", "b.txt"],
        ["convert", "{good}", "b.mla", "--codec", "rar-1"],
        ["convert", "{good}", "b.mla", "--patch", "4,4"],
        ["convert", "{good}", "b.nii", "--patch", "4"],
        ["convert", "{good}", "b.nii", "--resume"],
        ["convert", "{good}", "b.mla", "--jobs", "2"],
        ["convert", "empty", "b"],
        ["convert", "missing", "b"],
        ["verify", "missing.mla"],
        ["verify", "{bad}"],
        ["verify", "empty"],
        ["demo", "--input", "missing.mla"],
    ],
)
def test_failures_are_one_line_and_exit_code_1(
    arguments: list[str],
    scan: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.mla").write_bytes(b"not\nan\x1barray")
    (tmp_path / "empty").mkdir()
    capsys.readouterr()
    filled = [a.format(bad="bad.mla", good=scan.name) for a in arguments]
    assert main(filled) == 1
    printed = capsys.readouterr()
    # Of many files, what became of each is a result.
    assert printed.out == "" or arguments[0] == "verify" or "empty" in arguments
    assert printed.err.startswith("mla: error: ")
    assert printed.err.count("\n") == 1
    assert "\x1b" not in printed.out + printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["info"],
        ["info", "a", "b"],
        ["convert", "a"],
        ["convert", "a", "b", "--patch", "0"],
        ["convert", "a", "b", "--patch", "-3"],
        ["convert", "a", "b", "--patch", "4,x"],
        ["convert", "a", "b", "--from", "gif"],
        ["convert", "a", "b", "--jobs", "0"],
        ["convert", "a", "b", "--memory-limit", "lots"],
        ["convert", "a", "b", "--scheduler", "local"],
        ["convert", "a", "b", "--scheduler", "local:0"],
        ["convert", "a", "b", "--scheduler", "local:-1"],
        ["convert", "a", "b", "--scheduler", "local:2.5"],
        ["convert", "a", "b", "--scheduler", "4"],
        ["convert", "a", "b", "--scheduler", "processes"],
        ["convert", "a", "b", "--scheduler", "10.0.0.1:8786"],
        ["convert", "a", "b", "--scheduler", "http://10.0.0.1:8786"],
        ["verify"],
        ["verify", "a", "--jobs", "0"],
        ["demo", "--shape", "4,5"],
        ["demo", "--patch", "4,5"],
        ["demo", "--fast"],
    ],
)
def test_wrong_usage_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "usage: mla" in printed.err


def test_help_and_version_are_exit_code_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mla {mlarray_xr.__version__}\n"
    for command in ([], ["info"], ["convert"], ["verify"], ["plan"], ["bench"], ["demo"]):
        assert main([*command, "--help"]) == 0
        assert "usage: mla" in capsys.readouterr().out


def test_help_names_every_format_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    words = {word.strip(",.[]()") for word in capsys.readouterr().out.split()}
    for each in FORMATS:
        assert {suffix[1:] for suffix in (*each.suffixes, *each.written_suffixes)} <= words
    assert {"--scheduler", "--resume", "--verify", "--jobs", "--memory-limit", "--from"} <= words


def test_convert_on_a_cluster_somewhere(
    scan: Path, tmp_path: Path, cluster: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    address = cluster.scheduler_info()["address"]
    arguments = ["convert", str(scan), str(tmp_path / "b.mla"), "--scheduler", address]
    capsys.readouterr()
    assert main([*arguments, "--patch", "4", "--codec", "zstd-1", "--verify", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["workers"] > 0
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], MlaArray(scan)[...])
    # The cluster is somebody else's and goes on.
    assert cluster.submit(sum, (1, 2)).result() == 3


def test_a_cluster_that_does_not_answer(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import dask.config

    arguments = ["convert", str(scan), str(tmp_path / "b.mla"), "--scheduler", "tcp://127.0.0.1:1"]
    capsys.readouterr()
    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}):
        assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("mla: error: tcp://127.0.0.1:1: no Dask scheduler answers there")
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "b.mla").exists()


def test_memory_is_shared_by_local_processes() -> None:
    parse = cli_convert._shared
    options = {"patch": None, "codec": "auto", "overwrite": False, "source_format": None}
    options |= {"dataset": None, "resume": True, "verify": False, "layout": None, "caches": None}
    for scheduler, share in ((None, 1000), (4, 250), ("tcp://10.0.0.1:8786", 1000)):
        given = Namespace(**options, memory_limit=1000, scheduler=scheduler)
        assert parse(given)["memory_limit"] == share


def test_convert_again_says_that_nothing_was_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5), "uint8"))
    arguments = ["convert", str(tmp_path / "a.npy"), str(tmp_path / "a.mla"), "--resume"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.mla'}: complete already\n"


def test_convert_to_a_folder_tells_its_bytes(
    scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["convert", str(scan), str(tmp_path / "out.zarr"), "--verify", "--json"]) == 0
    sizes = [path.stat().st_size for path in (tmp_path / "out.zarr").rglob("*") if path.is_file()]
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"path": str(tmp_path / "out.zarr"), "file_bytes": sum(sizes)}


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    """A folder with a sound file, one with a flipped bit, and one without checksums."""
    values = np.arange(4096, dtype="uint16").reshape(64, 64)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("flipped", "sound"):
        to_mla(values, folder / f"{name}.mla", chunks=(32, 32), codec="zstd-1")
    data = bytearray((folder / "flipped.mla").read_bytes())
    header_bytes = int.from_bytes(data[11:15], "big")
    data[header_bytes + 40] ^= 1
    (folder / "flipped.mla").write_bytes(data)
    mlarray.MLArray(values).save(str(folder / "theirs.mla"))
    return folder


def test_verify_tells_chunk_and_box_of_damage(
    checked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(checked), "--jobs", "2"]) == 1
    printed = capsys.readouterr()
    assert f"{checked / 'sound.mla'}: ok\n" in printed.out
    assert f"{checked / 'flipped.mla'}: damaged\n" in printed.out
    assert re.search(r"chunk \d at \(\d, \d\), box \(\(\d+, \d+\), \(\d+, \d+\)\): ", printed.out)
    assert f"{checked / 'theirs.mla'}: unknown\n" in printed.out
    assert printed.out.endswith("3 files: 1 damaged, 1 ok, 1 unknown\n")
    assert printed.err.startswith(f"mla: error: {checked / 'flipped.mla'}: damaged: 1 of 4 chunks,")
    assert printed.err.count("\n") == 1


def test_verify_as_json_and_strictly(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(checked), "--require-checksums", "--json"]) == 1
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert facts["counts"] == {"damaged": 1, "ok": 1, "unknown": 1}
    (damaged,) = (entry for entry in facts["files"] if entry["state"] == "damaged")
    assert np.shape(damaged["damaged"][0]["box"]) == (2, 2)
    assert printed.err.count("\n") == 2
    sound = str(checked / "sound.mla")
    assert main(["verify", sound, sound, "--require-checksums"]) == 0
    assert capsys.readouterr().err == ""


def test_names_in_a_file_are_no_commands_to_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = {"mlarray_xr": {"name": "\x1b[2J", "dims": ["\x1b[2J", "a\nb"]}}
    path = tmp_path / "\x1b[2J.mla"
    to_mla(np.zeros((2, 3)), path, metadata=Metadata(extra=extra, has_array=True))  # type: ignore[arg-type]
    capsys.readouterr()
    assert main(["info", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "y 2, x 3" in printed
    assert "\\x1b[2J.mla" in printed
    assert "\x1b" not in printed


def test_output_is_what_the_terminal_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    to_mla(np.zeros((2, 3)), tmp_path / "größe.mla")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["info", str(tmp_path / "größe.mla")]) == 0
    stream.flush()
    buffer: Any = stream.buffer
    assert b"gr\\xf6\\xdfe.mla" in buffer.getvalue()


def test_as_a_process(scan: Path, tmp_path: Path) -> None:
    done = shell("info", str(scan), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["shape"] == [8, 9, 10]
    done = shell("info", str(tmp_path / "missing.mla"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("mla: error: ")
    assert "Traceback" not in done.stderr
    assert shell("fly").returncode == 2


def test_the_demo_as_a_process_says_nothing_else(tmp_path: Path) -> None:
    done = shell("demo", "--shape", "8,9,10", "--patch", "4", "--output-dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("volume")
