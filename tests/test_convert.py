"""convert: every way between formats, and what is said where there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import nibabel as nib
import nrrd
import numpy as np
import pytest
import xarray as xr
import zarr

from mlarray_xr import MlaArray, convert, to_mla
from mlarray_xr.backend import MlaBackendEntrypoint
from mlarray_xr.errors import (
    ConversionError,
    FormatError,
    GeometryError,
    MissingDependencyError,
    TargetBusy,
)
from mlarray_xr.foreign import packed, raw, recipe
from mlarray_xr.foreign import zarr as foreign_zarr
from mlarray_xr.foreign.formats import FORMATS
from mlarray_xr.foreign.raw import RawArray
from tests.format_kit import MAKERS, VOXELS, make

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client
    from numpy.typing import NDArray

FIXTURES = Path(__file__).parent / "data" / "mla"
KNOW_WHERE_THEY_ARE = {"a.nii", "a.nii.gz", "a.img", "slices"}


def voxels_of_nifti(path: Path) -> NDArray[Any]:
    image: Any = nib.load(path)
    return np.asarray(image.dataobj)


def voxels_of_zarr(path: Path) -> NDArray[Any]:
    arrays: Any = zarr.open_group(path, mode="r").arrays()
    (found,) = (array[...] for _, array in arrays if array.ndim == 3)
    return np.asarray(found)


READERS: dict[str, Callable[[Path], NDArray[Any]]] = {
    "out.nii": voxels_of_nifti,
    "out.nii.gz": voxels_of_nifti,
    "out.img": voxels_of_nifti,
    "out.nrrd": lambda path: nrrd.read(str(path), index_order="C")[0],
    "out.npy": np.load,
    "out.zarr": voxels_of_zarr,
    "out.ome.zarr": voxels_of_zarr,
}


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    values = np.random.default_rng(1).integers(0, 1000, (10, 12, 14), np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_nifti_to_mla_and_back(scan: Path, tmp_path: Path) -> None:
    report = convert(scan, tmp_path / "scan.mla", patch=8, codec="zstd-1")
    assert report is not None
    assert (report.shape, str(report.codec)) == ((10, 12, 14), "zstd-1")
    assert convert(str(tmp_path / "scan.mla"), str(tmp_path / "scan.nii")) is None
    expected: Any = nib.load(scan)
    found: Any = nib.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(found.dataobj, expected.dataobj)
    assert found.header == expected.header


def test_mla_to_another_layout_keeps_voxels_and_metadata(scan: Path, tmp_path: Path) -> None:
    convert(scan, tmp_path / "a.mla")
    report = convert(tmp_path / "a.mla", tmp_path / "b.mla", chunks=(4, 6, 7), blocks=(2, 3, 7))
    assert report is not None
    before, after = MlaArray(tmp_path / "a.mla"), MlaArray(tmp_path / "b.mla")
    assert (after.chunks, after.blocks) == ((4, 6, 7), (2, 3, 7))
    np.testing.assert_array_equal(after[...], before[...])
    assert after.metadata.source == before.metadata.source
    assert after.metadata.extra == before.metadata.extra
    assert after.metadata.spatial == before.metadata.spatial


@pytest.mark.parametrize("path", sorted(FIXTURES.rglob("*.mb2nd")), ids=lambda p: p.parent.name)
def test_the_predecessor_is_rewritten(path: Path, tmp_path: Path) -> None:
    convert(path, tmp_path / "new.mla")
    before, after = MlaArray(path), MlaArray(tmp_path / "new.mla")
    np.testing.assert_array_equal(after[...], before[...])
    assert after.metadata.spatial == before.metadata.spatial


def test_a_plain_blosc2_array_becomes_an_mla_file(tmp_path: Path) -> None:
    import blosc2

    values = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    blosc2.asarray(values, urlpath=str(tmp_path / "plain.b2nd"))
    convert(tmp_path / "plain.b2nd", tmp_path / "plain.mla")
    np.testing.assert_array_equal(MlaArray(tmp_path / "plain.mla")[...], values)


def test_a_file_may_replace_itself(scan: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.mla"
    convert(scan, target)
    expected = MlaArray(target)[...]
    convert(target, target, chunks=5, mode="w")
    assert MlaArray(target).chunks == (5, 5, 5)
    np.testing.assert_array_equal(MlaArray(target)[...], expected)


@pytest.mark.parametrize(
    "names", [("scan.nii.gz", "a.mla"), ("a.mla", "b.mla"), ("a.mla", "b.nii")]
)
def test_existing_targets_are_kept(names: tuple[str, str], scan: Path, tmp_path: Path) -> None:
    if names[0] == "a.mla":
        convert(scan, tmp_path / "a.mla")
    (tmp_path / names[1]).write_text("precious")
    with pytest.raises(FileExistsError):
        convert(tmp_path / names[0], tmp_path / names[1])
    assert (tmp_path / names[1]).read_text() == "precious"


@pytest.mark.parametrize(
    ("src", "dst"),
    [("a.nii", "b.nii"), ("a.mla", "b.tif"), ("a.txt", "b.mla"), ("a.mla", "b.b2nd"), ("a", "b")],
)
def test_unknown_ways_list_the_known_ones(tmp_path: Path, src: str, dst: str) -> None:
    (tmp_path / src).write_text("something")
    with pytest.raises(ConversionError, match=r"no way.*\.mb2nd.*\.nii\.gz"):
        convert(tmp_path / src, tmp_path / dst)


@pytest.mark.parametrize("option", [{"patch": 8}, {"chunks": 4}, {"blocks": 2}, {"codec": "lz4-1"}])
def test_nifti_has_no_layout(option: dict[str, Any], scan: Path, tmp_path: Path) -> None:
    convert(scan, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match="leave them out"):
        convert(tmp_path / "a.mla", tmp_path / "b.nii", **option)
    assert not (tmp_path / "b.nii").exists()


def test_files_without_an_array_are_refused(tmp_path: Path) -> None:
    path = next(p for p in FIXTURES.rglob("*.mla") if not MlaArray(p).metadata.has_array)
    for name in ("a.mla", "a.nii"):
        with pytest.raises((ConversionError, FormatError), match="metadata only"):
            convert(path, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_sources_are_missing(tmp_path: Path) -> None:
    for src, dst in (("a.nii", "a.mla"), ("a.mla", "b.mla"), ("a.mla", "a.nii"), ("a", "a.mla")):
        with pytest.raises(FileNotFoundError, match="No such file or directory"):
            convert(tmp_path / src, tmp_path / dst)


def test_a_nifti_file_may_have_a_name_in_capitals(scan: Path, tmp_path: Path) -> None:
    shutil.copy(scan, tmp_path / "SCAN.NII.GZ")
    convert(tmp_path / "SCAN.NII.GZ", tmp_path / "a.mla")
    with xr.open_dataset(tmp_path / "a.mla", engine=MlaBackendEntrypoint) as ds:
        assert ds.sizes == {"x": 10, "y": 12, "z": 14}


def test_every_format_has_a_source_here() -> None:
    suffixes = {s for each in FORMATS for s in each.suffixes if f"a{s}" in MAKERS}
    tested = {each.name for each in FORMATS if suffixes.intersection(each.suffixes)}
    assert tested | {"dicom"} == {each.name for each in FORMATS}
    written = {s for each in FORMATS for s in each.written_suffixes}
    assert written == {".hdr", *(name.removeprefix("out") for name in READERS)}


@pytest.mark.parametrize("name", MAKERS)
def test_every_source_reaches_every_target_bit_by_bit(name: str, tmp_path: Path) -> None:
    source = make(name, tmp_path / "in")
    report = convert(source, tmp_path / "v.mla", chunks=(4, 5, 7), codec="zstd-1", verify=True)
    assert report is not None
    assert report.n_chunks == 2 * 2 * 2
    assert MlaArray(tmp_path / "v.mla").dtype == VOXELS.dtype
    np.testing.assert_array_equal(MlaArray(tmp_path / "v.mla")[...], VOXELS)
    for target, read in READERS.items():
        if name not in KNOW_WHERE_THEY_ARE and target.endswith((".nii", ".nii.gz", ".img")):
            with pytest.raises(GeometryError, match="RAS or LPS"):
                convert(tmp_path / "v.mla", tmp_path / target, verify=True)
            continue
        convert(tmp_path / "v.mla", tmp_path / target, verify=True)
        np.testing.assert_array_equal(read(tmp_path / target), VOXELS)
    assert not list(tmp_path.glob("*.parts"))


def test_sources_are_read_by_the_workers_of_a_cluster(
    cluster: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if it were too large for memory: unpacked once, into the scratch folder.
    monkeypatch.setattr(packed, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(packed.PackedStream, "to_memory", lambda _: pytest.fail("in memory"))
    for name in ("a.nii.gz", "a.npz", "a.h5", "a.ome.zarr", "planes", "slices"):
        target = tmp_path / f"{name}.mla"
        report = convert(make(name, tmp_path), target, chunks=(2, 5, 12), verify=True)
        assert report is not None
        assert report.workers > 0
        np.testing.assert_array_equal(MlaArray(target)[...], VOXELS)
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("a.nii.gz", "nibabel", "nifti"),
        ("a.h5", "h5py", "hdf5"),
        ("a.nc", "netCDF4", "netcdf"),
        ("a3.zarr", "zarr", "zarr"),
        ("a.ome.zarr", "zarr", "zarr"),
        ("a.tif", "tifffile", "tiff"),
        ("slices", "pydicom", "dicom"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    name: str, library: str, extra: str, tmp_path: Path
) -> None:
    source = make(name, tmp_path)
    hidden = {each: None for each in sys.modules if each.split(".")[0] == library}
    with (
        mock.patch.dict(sys.modules, hidden | {library: None}),
        pytest.raises(MissingDependencyError, match=rf"{library}.*mlarray-xr\[{extra}\]"),
    ):
        convert(source, tmp_path / "v.mla")
    assert not list(tmp_path.glob("v.mla*"))


@pytest.mark.parametrize(("name", "library"), [("out.nii", "nibabel"), ("out.zarr", "zarr")])
def test_a_library_may_be_missing_for_writing(name: str, library: str, tmp_path: Path) -> None:
    convert(make("a.nii", tmp_path), tmp_path / "v.mla")
    hidden = {each: None for each in sys.modules if each.split(".")[0] == library}
    with (
        mock.patch.dict(sys.modules, hidden | {library: None}),
        pytest.raises(MissingDependencyError, match="pip install"),
    ):
        convert(tmp_path / "v.mla", tmp_path / name)
    assert not (tmp_path / name).exists()


def altered(obj: Any, path: str, **options: Any) -> Any:
    """Write one wrong voxel."""
    values = np.array(obj[(slice(None),) * len(obj.shape)])
    values.flat[77] ^= 1
    return to_mla(values, path, **options)


def test_verify_notices_a_wrong_voxel_and_removes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make("a.npy", tmp_path)
    monkeypatch.setattr(recipe, "to_mla", altered)
    convert(source, tmp_path / "unnoticed.mla")
    with pytest.raises(ConversionError, match=r"box \(\(0, .* is not that of .*a\.npy"):
        convert(source, tmp_path / "v.mla", verify=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "unnoticed.mla"]


def test_verify_notices_a_wrong_voxel_in_what_is_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(make("a.npy", tmp_path), tmp_path / "v.mla")
    read = RawArray.__getitem__

    def wrong(self: RawArray, key: Any) -> Any:
        values = read(self, key).copy()
        values.flat[-1] ^= 1
        return values

    monkeypatch.setattr(RawArray, "__getitem__", wrong)
    with pytest.raises(ConversionError, match=r"out\.npy: box .* is not what was written"):
        convert(tmp_path / "v.mla", tmp_path / "out.npy", verify=True)


def test_what_is_meant_to_differ_is_not_compared(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path, VOXELS.astype("float32"))
    with pytest.raises(ConversionError, match="drops some"):
        convert(source, tmp_path / "v.mla", codec="zstd-1-trunc8", verify=True)
    convert(source, tmp_path / "v.mla")
    with pytest.raises(ConversionError, match="replaces its own source"):
        convert(tmp_path / "v.mla", tmp_path / "v.mla", mode="w", verify=True)


def assert_complete(told: list[tuple[int, int]], *, total: int) -> None:
    assert {n for _, n in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)


def test_progress_counts_chunks_and_verifying_counts_them_again(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path)
    for verify, total in ((False, 8), (True, 16)):
        tell = mock.Mock()
        go = partial(convert, source, tmp_path / "v.mla", chunks=(3, 5, 6), mode="w")
        go(verify=verify, progress=tell)
        assert_complete([call.args for call in tell.call_args_list], total=total)


@pytest.mark.parametrize("name", READERS)
def test_progress_is_told_of_what_is_written_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several slabs and parts of a small array.
    monkeypatch.setattr(raw, "_SLAB_BYTES", VOXELS.nbytes // 4)
    monkeypatch.setattr(foreign_zarr, "_PART_BYTES", VOXELS.nbytes // 4)
    convert(make("a.nii", tmp_path), tmp_path / "v.mla", chunks=(2, 5, 12))
    for verify, total in ((False, 6), (True, 12)):
        tell = mock.Mock()
        convert(tmp_path / "v.mla", tmp_path / name, mode="w", verify=verify, progress=tell)
        told = [call.args for call in tell.call_args_list]
        assert_complete(told, total=total)
        assert len({done for done, _ in told}) >= 3


def failing_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the voxels unreadable after some reads."""
    read, counts = RawArray.__getitem__, iter(range(n))

    def limited(self: RawArray, key: Any) -> Any:
        if next(counts, None) is None:
            raise OSError(5, "Input/output error")
        return read(self, key)

    monkeypatch.setattr(RawArray, "__getitem__", limited)


def test_resuming_begins_with_what_was_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make("a.npy", tmp_path, np.arange(64 << 10, dtype="uint16").reshape(16, 64, 64))
    go = partial(convert, source, tmp_path / "v.mla", chunks=(4, 16, 16), codec="lz4-1")
    with monkeypatch.context() as limited:
        failing_after(5, limited)
        with pytest.raises(OSError, match="Input/output"):
            go(resume=True, memory_limit=64 << 10)
    assert len(list((tmp_path / "v.mla.parts").glob("*.seg"))) >= 1
    report = go(resume=True, memory_limit=64 << 10)
    assert report is not None
    assert 0 < report.n_resumed_chunks < report.n_chunks
    np.testing.assert_array_equal(MlaArray(tmp_path / "v.mla")[...], np.load(source))
    assert not list(tmp_path.glob("*.parts"))


def test_resuming_leaves_what_is_complete_and_replaces_what_is_outdated(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path)
    go = partial(convert, source, tmp_path / "v.mla", resume=True)
    assert go() is not None
    before = (tmp_path / "v.mla").stat()
    assert go() is None
    assert go(verify=True) is None
    assert (tmp_path / "v.mla").stat() == before
    assert go(chunks=5) is not None
    np.save(source, VOXELS + 1)
    assert go(chunks=5) is not None
    np.testing.assert_array_equal(MlaArray(tmp_path / "v.mla")[...], VOXELS + 1)
    other = make("a.nii", tmp_path)
    with pytest.raises(FileExistsError, match=r"does not say that it was made of .*a\.nii"):
        convert(other, tmp_path / "v.mla", resume=True)
    assert convert(other, tmp_path / "v.mla", resume=True, mode="w") is not None


def test_resuming_compares_what_is_complete_when_asked(tmp_path: Path) -> None:
    source = make("a.npy", tmp_path)
    convert(source, tmp_path / "v.mla", resume=True, codec="zstd-1")
    array = MlaArray(tmp_path / "v.mla", mode="r+")
    array[0, 0, 0] = -1
    with pytest.raises(ConversionError, match=r"box .* is not that of"):
        convert(source, tmp_path / "v.mla", resume=True, codec="zstd-1", verify=True)


DIES = """
import os, sys
from mlarray_xr.foreign.origin import Origin
from mlarray_xr.foreign.scratch import scratch_folder
origin = Origin(place="0" * 32, content="1" * 32, request="2" * 32)
with scratch_folder(sys.argv[1], origin, keeps=sys.argv[2] == "keeps"):
    os._exit(0)
"""


@pytest.mark.parametrize(
    ("kept", "resume"), [("keeps", False), ("keeps", True), ("not", False), ("not", True)]
)
def test_what_a_dead_process_left_is_kept_only_where_it_can_be_used(
    kept: str, resume: bool, tmp_path: Path
) -> None:
    source, target = make("a.npy", tmp_path), tmp_path / "v.mla"
    subprocess.run([sys.executable, "-c", DIES, str(target), kept], check=True)
    (left,) = tmp_path.glob("*.parts")
    if kept == "keeps" and resume:
        with pytest.raises(ConversionError, match=r"the beginning of another.*content was '1111"):
            convert(source, target, resume=True)
        assert left.exists()
        return
    assert convert(source, target, resume=resume) is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "v.mla"]


def test_two_conversions_to_one_target_do_not_meet(tmp_path: Path) -> None:
    from mlarray_xr.foreign.scratch import scratch_folder

    source = make("a.npy", tmp_path)
    with (
        scratch_folder(str(tmp_path / "v.mla"), None, keeps=False),
        pytest.raises(TargetBusy, match="is writing it"),
    ):
        convert(source, tmp_path / "v.mla")


@pytest.mark.parametrize(
    "options", [{"resume": True}, {"dataset": "a"}, {"chunks": 4}, {"codec": "lz4-1"}]
)
def test_what_a_target_does_not_have_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    convert(make("a.nii", tmp_path), tmp_path / "v.mla")
    with pytest.raises(ConversionError, match="leave them out"):
        convert(tmp_path / "v.mla", tmp_path / "out.zarr", **options)
    assert not (tmp_path / "out.zarr").exists()


def test_what_a_source_does_not_have_is_refused(tmp_path: Path) -> None:
    for name in ("a.nii", "a.mla", "a.npy"):
        with pytest.raises(ConversionError, match=r"dataset='t0'"):
            convert(make(name, tmp_path), tmp_path / "v.mla", dataset="t0")
    with pytest.raises(ConversionError, match="not URLs"):
        convert("s3://bucket/a.nii", tmp_path / "v.mla")
    with pytest.raises(ConversionError, match="'gif' is no format"):
        convert(tmp_path / "a.nii", tmp_path / "v.mla", source_format="gif")
    with pytest.raises(ValueError, match="mode='a'"):
        convert(tmp_path / "a.nii", tmp_path / "v.mla", mode="a")  # type: ignore[arg-type]


def test_a_name_that_does_not_tell_can_be_helped(tmp_path: Path) -> None:
    make("a.npy", tmp_path).rename(tmp_path / "nameless.npy.bak")
    slices = make("slices", tmp_path)
    (one, *_) = sorted(slices.iterdir())
    one.rename(tmp_path / "IM0001")
    with pytest.raises(ConversionError, match="no way"):
        convert(tmp_path / "nameless.npy.bak", tmp_path / "v.mla")
    convert(tmp_path / "nameless.npy.bak", tmp_path / "v.mla", source_format="npy")
    np.testing.assert_array_equal(MlaArray(tmp_path / "v.mla")[...], VOXELS)
    convert(tmp_path / "IM0001", tmp_path / "one.mla")
    assert MlaArray(tmp_path / "one.mla").shape[-2:] == VOXELS.shape[-2:]


MEASURED = """
import pathlib, re, sys
import numpy as np, mlarray_xr
import nibabel, zarr, mlarray_xr.storage.trial
values = np.lib.format.open_memmap("big.npy", "w+", "int16", (768, 512, 512))
values[::96, 7, :] = np.arange(512)
del values
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
mlarray_xr.to_mla(np.zeros((2, 3)), "warm.mla")
before = peak()
mlarray_xr.convert("big.npy", "big.mla", memory_limit="96MB", codec="lz4-1")
mlarray_xr.convert("big.mla", "out.npy", verify=True, memory_limit="96MB")
mlarray_xr.convert("big.mla", "out.zarr")
print(peak() - before)
"""


def test_memory_is_bounded_both_ways(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    command = [sys.executable, "-W", "error", "-c", MEASURED.replace("\\\\", "\\")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source_kib = (tmp_path / "big.npy").stat().st_size >> 10
    assert source_kib > 380_000
    assert int(done.stdout) < source_kib * 0.75
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy", mmap_mode="r")[96, 7], np.arange(512)
    )
