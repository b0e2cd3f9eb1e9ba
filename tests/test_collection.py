"""convert_folder: a file for every image, whatever fails, however often it is started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

import mlarray
import nibabel as nib
import nilearn
import numpy as np
import pytest

from mlarray_xr import MlaArray
from mlarray_xr.cli import main
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign import collection
from mlarray_xr.foreign.case import Case
from mlarray_xr.foreign.case_folder import Obstacle
from mlarray_xr.foreign.collection import CollectionReport, convert_folder
from mlarray_xr.foreign.formats import format_named
from mlarray_xr.foreign.recipe import Recipe
from tests import dicom_kit
from tests.format_kit import MAKERS, VOXELS, make

if TYPE_CHECKING:
    from distributed import Client

ROOT = Path(__file__).parent.parent
DAMAGED = {
    "cut.nii.gz": b"\x1f\x8b\x08\x00\x00",
    "cut_nrrd.nrrd": b"NRRD0004\ntype: int16\n",
    "cut_npy.npy": b"\x93NUMPY\x01\x00",
    "cut_npz.npz": b"PK",
    "cut_h5.h5": b"\x89HDF\r\n",
    "cut_nc.nc": b"CDF\x01",
    "cut_tif.tif": b"II*\x00",
    "slices/cut_dcm.dcm": bytes(128) + b"DICM" + bytes(4),
    "cut_mla.mla": b"\x9e\xa8b2frame",
}
DAMAGED_SOURCES = {name.removesuffix("/cut_dcm.dcm") for name in DAMAGED}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder with one image of every format, each in a folder of its own."""
    for name in MAKERS:
        make(name, tmp_path / "raw" / name.replace(".", "-"))
    (tmp_path / "raw" / "notes.txt").write_text("no image")
    return tmp_path / "raw"


def files_in(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    found = {p.as_posix(): p.stat() for p in folder.rglob("*.mla")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def reasons(report: CollectionReport) -> dict[str, str]:
    return {os.path.basename(each.source): each.reason for each in report.failed}


def test_every_format_becomes_a_file_of_the_same_name(raw: Path, tmp_path: Path) -> None:
    report = convert_folder(raw, tmp_path / "out", verify=True)
    stems = {name: name.split(".")[0] for name in MAKERS}
    expected = sorted(f"{name.replace('.', '-')}/{stem}.mla" for name, stem in stems.items())
    assert files_in(tmp_path / "out") == expected
    assert not report.failed
    assert {each.path for each in report.converted} == {str(tmp_path / "out" / n) for n in expected}
    for each in report.converted:
        np.testing.assert_array_equal(MlaArray(each.path)[...], VOXELS)
    assert report.nbytes == len(MAKERS) * VOXELS.nbytes
    assert report.file_bytes == sum(os.path.getsize(each.path) for each in report.converted)
    assert f"{len(MAKERS)} converted, 0 complete already, 0 failed" in str(report)


def test_a_cluster_makes_the_same_files(
    raw: Path, tmp_path: Path, cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = {name: content for name, content in DAMAGED.items() if "/" not in name}
    for name, content in damaged.items():
        (raw / name).write_bytes(content)
    go = partial(convert_folder, raw, codec="zstd-1", chunks=(3, 5, 6), verify=True)
    by_files = go(tmp_path / "by_files")
    monkeypatch.setattr(collection, "_LARGE_BYTES", 0)
    by_parts = go(tmp_path / "by_parts")
    assert reasons(by_files) == reasons(by_parts)
    assert reasons(by_files).keys() == damaged.keys()
    names = files_in(tmp_path / "by_files")
    assert names == files_in(tmp_path / "by_parts")
    assert len(names) == len(by_parts.converted) == len(MAKERS)
    for name in names:
        np.testing.assert_array_equal(MlaArray(tmp_path / "by_files" / name)[...], VOXELS)
        np.testing.assert_array_equal(MlaArray(tmp_path / "by_parts" / name)[...], VOXELS)


@pytest.mark.parametrize("large_bytes", [0, 64 << 20])
def test_damaged_files_are_named_and_the_others_converted(
    large_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_LARGE_BYTES", large_bytes)
    source = make("a.npy", tmp_path / "raw").parent
    make("a.nii.gz", source / "last")
    (source / "slices").mkdir()
    for name, content in DAMAGED.items():
        (source / name).write_bytes(content)
    report = convert_folder(source, tmp_path / "out")
    assert reasons(report).keys() == DAMAGED_SOURCES
    assert all(reasons(report).values())
    assert files_in(tmp_path / "out") == ["a.mla", "last/a.mla"]
    assert "9 failed" in report.summary()
    assert str(report).count("\n  failed: ") == 9


def test_the_command_reports_damage_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    for name in ("cut.nii.gz", "cut_tif.tif"):
        (source / name).write_bytes(DAMAGED[name])
    assert main(["convert", str(source), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "1 converted, 0 complete already, 2 failed" in printed.out
    lines = printed.err.splitlines()
    assert [line.split(": ")[:3] for line in lines] == [
        ["mla", "error", str(source / name)] for name in ("cut.nii.gz", "cut_tif.tif")
    ]
    (source / "cut.nii.gz").unlink()
    (source / "cut_tif.tif").unlink()
    assert main(["convert", str(source), str(tmp_path / "out"), "--resume", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["skipped"] == [str(tmp_path / "out" / "a.mla")]
    assert facts["converted"] == facts["failed"] == []


def test_starting_again_does_what_is_left(tmp_path: Path) -> None:
    source, out = tmp_path / "raw", tmp_path / "out"
    for name in ("a.npy", "a.nii"):
        make(name, source / name[2:])
    assert len(convert_folder(source, out, codec="zstd-1").converted) == 2
    before = identities(out)
    again = convert_folder(source, out, codec="zstd-1", verify=True)
    assert len(again.skipped) == 2
    assert identities(out) == before
    np.save(source / "npy" / "a.npy", VOXELS + 1)
    (changed,) = convert_folder(source, out, codec="zstd-1").converted
    assert changed.path == str(out / "npy" / "a.mla")
    np.testing.assert_array_equal(MlaArray(changed.path)[...], VOXELS + 1)
    other = convert_folder(source, out, codec="zstd-3").converted
    assert [str(each.codec) for each in other] == ["zstd-3", "zstd-3"]


def test_what_is_there_already_is_refused_or_replaced_as_asked(tmp_path: Path) -> None:
    source, out = make("a.npy", tmp_path / "raw").parent, tmp_path / "out"
    convert_folder(source, out)
    refused = convert_folder(source, out, resume=False)
    assert "the file exists. To fix" in reasons(refused)["a.npy"]
    assert len(convert_folder(source, out, resume=False, mode="w").converted) == 1
    (out / "a.mla").write_text("precious")
    assert "does not say that it was made of" in reasons(convert_folder(source, out))["a.npy"]
    assert (out / "a.mla").read_text() == "precious"
    assert len(convert_folder(source, out, mode="w").converted) == 1
    np.testing.assert_array_equal(MlaArray(out / "a.mla")[...], VOXELS)


def test_verify_finds_what_was_changed_since(tmp_path: Path) -> None:
    source, out = tmp_path / "raw", tmp_path / "out"
    for name in ("a.npy", "a.nii"):
        make(name, source / name[2:])
    convert_folder(source, out, codec="zstd-1")
    MlaArray(out / "nii" / "a.mla", mode="r+")[1, 2, 3] = -7
    assert len(convert_folder(source, out, codec="zstd-1").skipped) == 2
    report = convert_folder(source, out, codec="zstd-1", verify=True)
    assert report.skipped == (str(out / "npy" / "a.mla"),)
    assert "is not that of" in reasons(report)["a.nii"]


def test_a_missing_library_is_told_for_every_file_that_needs_it(tmp_path: Path) -> None:
    for name in ("a.npy", "a.h5", "a.tif"):
        make(name, tmp_path / "raw" / name[2:])
    hidden: dict[str, Any] = dict.fromkeys(("h5py", "tifffile"))
    with mock.patch.dict(sys.modules, hidden):
        report = convert_folder(tmp_path / "raw", tmp_path / "out")
    assert [each.path for each in report.converted] == [str(tmp_path / "out" / "npy" / "a.mla")]
    assert "mlarray-xr[hdf5]" in reasons(report)["a.h5"]
    assert "mlarray-xr[tiff]" in reasons(report)["a.tif"]


def test_names_that_clash_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    for name in ("a.npy", "a.nii"):
        make(name, tmp_path / "raw")
    with pytest.raises(ConversionError, match=r"a\.mla: .*a\.nii, .*a\.npy.*--from"):
        convert_folder(tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = convert_folder(tmp_path / "raw", tmp_path / "out", source_format="nifti")
    assert len(report.converted) == 1


def test_only_links_to_files_inside_are_followed(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    make("a.npy", tmp_path / "elsewhere")
    (source / "inside.npy").symlink_to(source / "a.npy")
    (source / "outside.npy").symlink_to(tmp_path / "elsewhere" / "a.npy")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "broken.npy").symlink_to(tmp_path / "nothing")
    (source / "loop").symlink_to(source)
    report = convert_folder(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == ["a.mla", "inside.mla"]
    left_out = {os.path.basename(each.source): each.reason for each in report.left_out}
    assert left_out.keys() == {"outside.npy", "folder", "broken.npy", "loop"}
    assert "outside the folder" in left_out["outside.npy"]
    assert "4 links not followed" in report.summary()


def test_what_is_hidden_staged_or_a_target_is_no_source(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    make("a.npy", source / ".hidden")
    make("a.npy", source / "b.mla.parts")
    shutil.copy(source / "a.npy", source / ".a.npy")
    assert len(convert_folder(source, source / "out").converted) == 1
    assert len(convert_folder(source, source / "out").skipped) == 1
    assert files_in(source / "out") == ["a.mla"]
    # Into itself: the files that are there are not converted into themselves.
    assert len(convert_folder(source / "out", source / "out").converted) == 0


def test_slices_are_one_image_and_volumes_are_many(tmp_path: Path) -> None:
    source = tmp_path / "raw"
    for k in range(2):
        dicom_kit.series(source.joinpath(f"s{k}") if k else source, VOXELS + k)
    make("a.npy", source)
    for k in range(2):
        make("a.tif", source / "volumes").rename(source / "volumes" / f"v{k}.tif")
    make("planes", source)
    report = convert_folder(source, tmp_path / "out")
    assert files_in(tmp_path / "out") == [
        *("a.mla", "planes.mla", "raw.mla", "s1.mla", "volumes/v0.mla", "volumes/v1.mla")
    ]
    assert not report.failed
    np.testing.assert_array_equal(MlaArray(tmp_path / "out" / "s1.mla")[...], VOXELS + 1)


def test_a_pair_is_one_image_and_either_file_changes_it(tmp_path: Path) -> None:
    source, out = make("a.img", tmp_path / "raw").parent, tmp_path / "out"
    assert len(convert_folder(source, out).converted) == 1
    with (source / "a.img").open("r+b") as voxels:
        voxels.write(b"\xff\xff")
    assert len(convert_folder(source, out).converted) == 1
    assert MlaArray(out / "a.mla")[0, 0, 0] == -1


def test_a_source_that_vanishes_is_reported(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    make("a.nii", source / "b")
    measured = Case.measured

    def vanished(case: Case) -> Case:
        if case.format is format_named("npy"):
            os.unlink(case.source)
        return measured(case)

    with mock.patch.object(Case, "measured", vanished):
        report = convert_folder(source, tmp_path / "out")
    assert reasons(report) == {"a.npy": "No such file or directory"}
    assert len(report.converted) == 1


def test_errors_of_the_program_itself_are_reported_with_their_type(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    with mock.patch.object(Recipe, "run", side_effect=ZeroDivisionError("by zero")):
        report = convert_folder(source, tmp_path / "out")
    assert reasons(report) == {"a.npy": "ZeroDivisionError: by zero"}


def test_another_thread_may_be_importing_dask(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    with mock.patch.dict(sys.modules, {"dask.array": ModuleType("dask.array")}):
        report = convert_folder(source, tmp_path / "out")
    assert not report.failed


def test_progress_counts_bytes_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.npy", "a.nii", "a.h5"):
        source = make(name, tmp_path / "raw" / name[2:]).parent.parent
    (source / "cut_nrrd.nrrd").write_bytes(DAMAGED["cut_nrrd.nrrd"])
    sizes = sorted(p.stat().st_size for p in source.rglob("*") if p.is_file())
    monkeypatch.setattr(collection, "_LARGE_BYTES", sizes[-1])
    told: list[tuple[int, int]] = []
    go = partial(convert_folder, source, tmp_path / "out", chunks=4, verify=True)
    go(progress=lambda *counts: told.append(counts))
    assert {total for _, total in told} == {sum(sizes)}
    done = [n for n, _ in told]
    assert done == sorted(done)
    assert done[-1] == sum(sizes)
    # The large one is told part by part.
    assert len(set(done)) > len(sizes)


@pytest.mark.parametrize("jobs", [1, 3])
def test_memory_is_shared_by_the_files_under_way(jobs: int, tmp_path: Path) -> None:
    for k in range(4):
        make("a.npy", tmp_path / "raw" / str(k))
    limits = []
    run = Recipe.run

    def noted(recipe: Any, case: Case, **options: Any) -> Any:
        limits.append(recipe.memory_limit)
        return run(recipe, case, **options)

    with mock.patch.object(Recipe, "run", noted):
        convert_folder(tmp_path / "raw", tmp_path / "out", jobs=jobs, memory_limit="300MB")
    assert limits == [300_000_000 // jobs] * 4


def test_few_files_at_a_time_fit_little_memory() -> None:
    assert collection._plan_jobs(1 << 30, None)[0] in (1, 2)
    assert collection._plan_jobs(1, None) == (1, 1)
    assert collection._plan_jobs(None, 5) == (5, None)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path / "raw").parent
    with pytest.raises(ValueError, match="mode='a'"):
        convert_folder(source, tmp_path / "out", mode="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="jobs=0"):
        convert_folder(source, tmp_path / "out", jobs=0)
    with pytest.raises(FileNotFoundError):
        convert_folder(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(NotADirectoryError):
        convert_folder(source / "a.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_long_reports_are_cut() -> None:
    failed = tuple(Obstacle(source=str(n), reason="bad") for n in range(25))
    lines = str(CollectionReport(target="/out", failed=failed)).splitlines()
    assert lines[-2:] == ["  failed: 19: bad", "  and 5 more"]


def real_volumes(folder: Path) -> None:
    """Copy the volumes that come with nibabel and nilearn."""
    folder.mkdir(parents=True)
    (folder / "nibabel").mkdir()
    tests = Path(nib.__file__).parent / "tests" / "data"
    for name in ("anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii"):
        shutil.copy(tests / name, folder / "nibabel" / name)
    templates = Path(nilearn.__file__).parent / "datasets" / "data"
    for path in sorted(templates.glob("*.nii.gz"))[:2]:
        shutil.copy(path, folder)


def large_volume(path: Path) -> None:
    """Write 64 MiB of which a third is noise and the rest a hole."""
    shape = (256, 512, 256)
    values = np.lib.format.open_memmap(path, "w+", "<i2", shape)
    values[::3] = np.random.default_rng(3).integers(0, 500, (86, 512, 256), np.int16)


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mlarray_xr.cli", *map(str, arguments)]


def ended(group: int) -> bool:
    """Tell whether no process of a group is left, within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    return False


def stopped_midway(arguments: list[str], signal_number: int, *, staging: Path) -> tuple[int, str]:
    """Run a command until some parts of a file lie in its staging folder, and stop it there."""
    run = subprocess.Popen(
        arguments, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    try:
        while len(list(staging.glob("*.seg"))) < 3:
            assert run.poll() is None, f"ended before it could be stopped: {run.stderr}"
            time.sleep(0.002)
        run.send_signal(signal_number)
        _, errors = run.communicate(timeout=60)
        # The workers end with the process that started them, however that ended.
        assert ended(run.pid)
    finally:
        run.kill()
    return run.returncode, errors


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """Real volumes, and one that is large enough to be shared by all workers."""
    real_volumes(tmp_path / "raw")
    large_volume(tmp_path / "raw" / "large.npy")
    (tmp_path / "raw" / "damaged.nrrd").write_bytes(DAMAGED["cut_nrrd.nrrd"])
    return tmp_path / "raw"


def test_a_killed_run_on_a_cluster_is_resumed_verified_and_read_by_the_reference(
    collected: Path, tmp_path: Path
) -> None:
    out, staging = tmp_path / "out", tmp_path / "out" / "large.mla.parts"
    options = ("--scheduler", "local:2", "--codec", "zstd-5", "--patch", 32)
    convert = command("convert", collected, out, *options, "--memory-limit", "16MB", "--resume")
    code, _ = stopped_midway(convert, signal.SIGKILL, staging=staging)
    assert code == -signal.SIGKILL
    assert not (out / "large.mla").exists()
    before, n_staged = identities(out), len(list(staging.glob("*.seg")))
    assert len(before) == len(list(collected.rglob("*.nii*")))

    done = subprocess.run([*convert, "--json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"error: {collected / 'damaged.nrrd'}: " in done.stderr
    facts = json.loads(done.stdout)
    assert sorted(facts["skipped"]) == sorted(before)
    (large,) = facts["converted"]
    assert 0 < large["n_resumed_chunks"] < large["n_chunks"]
    assert n_staged >= 3
    # What was finished has not been written again, and nothing else is left.
    assert before.items() <= identities(out).items()
    assert {Path(name).suffix for name in files_in(out)} == {".mla"}

    assert main(["verify", str(out), "--jobs", "2", "--require-checksums"]) == 0
    for path in collected.rglob("*.nii*"):
        image: Any = nib.load(path)
        target = (out / path.relative_to(collected).parent / path.name.split(".")[0]).with_suffix(
            ".mla"
        )
        theirs = mlarray.MLArray.open(str(target))
        np.testing.assert_array_equal(theirs[...], image.dataobj.get_unscaled())
        assert np.asarray(theirs[...]).dtype == image.get_data_dtype()
    theirs = mlarray.MLArray.open(str(out / "large.mla"))
    np.testing.assert_array_equal(theirs[...], np.load(collected / "large.npy", mmap_mode="r"))


@pytest.mark.parametrize(("scheduler", "resume"), [("threads", True), ("local:2", False)])
def test_an_interrupt_leaves_nothing_half(scheduler: str, resume: bool, tmp_path: Path) -> None:
    source, target = tmp_path / "large.npy", tmp_path / "large.mla"
    large_volume(source)
    options = ("--scheduler", scheduler, "--codec", "zstd-5", "--memory-limit", "16MB")
    convert = command("convert", source, target, *options, *["--resume"][: int(resume)])
    staging = tmp_path / "large.mla.parts"
    code, errors = stopped_midway(convert, signal.SIGINT, staging=staging)
    assert (code, errors) == (130, "mla: interrupted\n")
    assert not target.exists()
    if resume:
        assert list(staging.glob("*.seg"))
        assert not (staging / "owner.json").exists()
    else:
        assert [path.name for path in tmp_path.iterdir()] == ["large.npy"]


def test_an_interrupt_lets_small_files_under_way_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(6):
        make("a.npy", tmp_path / "raw" / str(k))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_folder(tmp_path / "raw", tmp_path / "out", jobs=2, progress=stop)
    names = files_in(tmp_path / "out")
    assert 0 < len(names) < 6
    assert {Path(name).name for name in names} == {"a.mla"}
    for name in names:
        np.testing.assert_array_equal(MlaArray(tmp_path / "out" / name)[...], VOXELS)
