"""Streamed arrays: a packed source is unpacked once, written once, and never whole in memory."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import blosc2
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import MlaArray, convert, to_mla
from mlarray_xr.errors import ConversionError, SourceChanged
from mlarray_xr.foreign import packed, recipe, streamed
from mlarray_xr.foreign.packed import PackedArray, PackedStream
from mlarray_xr.foreign.raw import local_source
from mlarray_xr.foreign.streamed import StreamedArray
from mlarray_xr.planning import write_plan
from mlarray_xr.planning.write_plan import plan_streamed_parts
from tests.strategies import dtypes, shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Order = Literal["C", "F"]
ROOT = Path(__file__).parents[1]
SHAPE = (6, 7, 8, 20)
SERIES = np.random.default_rng(3).integers(0, 900, SHAPE).astype(">i2")


def packed_array(
    path: Path, values: NDArray[Any], order: Order = "F", *, scratch: Path | None = None
) -> StreamedArray:
    path.write_bytes(gzip.compress(values.tobytes(order=order)))
    stream = PackedStream(
        source=local_source(path),
        packing="gzip",
        dtype=values.dtype,
        shape=values.shape,
        order=order,
    )
    return StreamedArray(stream, scratch_dir=None if scratch is None else str(scratch))


def cut(values: NDArray[Any], axis: int, extents: tuple[int, ...]) -> list[NDArray[Any]]:
    return np.split(values, np.cumsum(extents)[:-1], axis=axis)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Return the path of a series of small frames, bytes swapped."""
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(SERIES.dtype)
    nib.save(nib.Nifti1Image(SERIES, np.eye(4), header), tmp_path / "bold.nii.gz")
    return tmp_path / "bold.nii.gz"


@pytest.fixture
def small_slabs() -> Iterator[None]:
    """Cut small arrays into several slabs."""
    with (
        mock.patch.object(write_plan, "_SLAB_BYTES", 2000),
        mock.patch.object(streamed, "_BEGINNING_BYTES", 5000),
    ):
        yield


@pytest.fixture
def never_whole(small_slabs: None) -> Iterator[None]:
    """Fail where an array is unpacked as a whole."""
    with mock.patch.object(StreamedArray, "unpacked", side_effect=AssertionError("unpacked")):
        yield


@given(data=st.data(), order=st.sampled_from(["C", "F"]), begins=st.booleans())
def test_slabs_are_those_of_the_array(
    data: st.DataObject, order: Order, begins: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape = data.draw(shapes().filter(lambda shape: math.prod(shape) > 1))
    values = values_of(shape, data.draw(dtypes()), 1)
    array = packed_array(tmp_path_factory.getbasetemp() / "slabs.gz", values, order)
    n = shape[array.axis]
    borders = sorted(data.draw(st.sets(st.integers(1, n - 1))) if n > 1 else ())
    extents = tuple(int(e) for e in np.diff([0, *borders, n]))
    expected = cut(values, array.axis, extents)
    if begins:
        n_first = data.draw(st.integers(1, len(extents)))
        first = array.beginning(extents, n=n_first)
        np.testing.assert_array_equal(first, np.concatenate(expected[:n_first], array.axis))
        del first
    found = list(array.slabs(extents))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "order", "axis"),
    [
        ((2, 3, 4), "F", 2),
        ((2, 3, 4), "C", 0),
        ((2, 3, 1, 1), "F", 1),
        ((1, 3, 4), "C", 1),
        ((5,), "F", 0),
    ],
)
def test_slabs_lie_along_the_slowest_axis(
    shape: tuple[int, ...], order: Order, axis: int, tmp_path: Path
) -> None:
    array = packed_array(tmp_path / "a.gz", np.zeros(shape, "u1"), order)
    assert (array.axis, array.shape, array.dtype) == (axis, shape, np.dtype("u1"))


def test_the_beginning_is_unpacked_once(tmp_path: Path, small_slabs: None) -> None:
    array = packed_array(tmp_path / "a.gz", SERIES)
    extents = (3,) * 6 + (2,)
    with mock.patch.object(PackedStream, "runs", autospec=True, side_effect=PackedStream.runs) as r:
        assert array.beginning(extents, n=9).shape == (6, 7, 8, 6)  # of 5000 bytes at most
        assert array.beginning(extents, n=1).shape == (6, 7, 8, 3)
        found = list(array.slabs(extents))
        np.testing.assert_array_equal(np.concatenate(found, 3), SERIES)
        assert r.call_count == 2
        assert [slab.shape[3] for slab in array.slabs((12, 8))] == [12, 8]
        assert r.call_count == 3


def test_what_was_begun_is_closed(tmp_path: Path) -> None:
    array = packed_array(tmp_path / "a.gz", SERIES)
    n_open = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    array.beginning((10, 10), n=1)
    list(itertools.islice(array.slabs((10, 10)), 1))
    array.beginning((10, 10), n=1)
    array.close()
    array.close()
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == n_open


def test_the_whole_is_unpacked_once_where_the_scratch_folder_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_IN_MEMORY_BYTES", 0)
    (tmp_path / "scratch").mkdir()
    array = packed_array(tmp_path / "a.gz", SERIES, scratch=tmp_path / "scratch")
    seen = [array.is_whole]
    np.testing.assert_array_equal(array.unpacked(), SERIES)
    assert [*seen, array.is_whole] == [False, True]
    assert array.unpacked() is array.unpacked()
    assert len(list((tmp_path / "scratch").iterdir())) == 1


@given(data=st.data())
def test_slabs_are_whole_chunks_within_the_memory(data: st.DataObject) -> None:
    shape = data.draw(shapes())
    chunks = tuple(data.draw(st.integers(1, n + 2)) for n in shape)
    axis = data.draw(st.integers(0, max(0, len(shape) - 1)))
    limit = data.draw(st.none() | st.integers(1, 4000))
    with (
        mock.patch.object(write_plan, "_SLAB_BYTES", 100),
        mock.patch.object(write_plan, "_LARGEST_BYTES", 500),
    ):
        parts = plan_streamed_parts(
            shape, chunks, itemsize=2, in_flight=3, axis=axis, memory_limit=limit
        )
    room = 500 if limit is None else min(500, limit // 9)
    if parts is None:
        if math.prod(shape) > 1:
            row = math.prod(shape) // shape[axis] * 2
            assert shape[axis] <= max(chunks[axis], 100 // row) or chunks[axis] * row > room
        return
    along = parts.extents[axis]
    whole = tuple((n,) for n in shape)
    assert parts.extents == (*whole[:axis], along, *whole[axis + 1 :])
    assert len(along) > 1
    assert sum(along) == shape[axis]
    assert all(extent % chunks[axis] == 0 for extent in along[:-1])
    assert parts.largest_bytes <= room
    assert limit is None or parts.peak_bytes <= limit


@pytest.mark.parametrize("codec", ["auto", "zstd-1"])
def test_a_series_is_converted_without_ever_being_whole(
    codec: str, series: Path, tmp_path: Path, never_whole: None
) -> None:
    report = convert(series, tmp_path / "a.mla", chunks=(6, 7, 8, 3), codec=codec, verify=True)
    assert report is not None
    assert (report.choice is not None) == (codec == "auto")
    array = MlaArray(tmp_path / "a.mla")
    assert array.dtype == SERIES.dtype
    np.testing.assert_array_equal(array[...], SERIES)
    assert sorted(os.listdir(tmp_path)) == ["a.mla", "bold.nii.gz"]


def test_the_chunks_are_those_of_any_other_way(
    series: Path, tmp_path: Path, never_whole: None
) -> None:
    layout: dict[str, Any] = {"chunks": (3, 7, 8, 2), "blocks": (3, 4, 8, 1), "codec": "lz4-1"}
    convert(series, tmp_path / "a.mla", **layout)
    to_mla(SERIES, tmp_path / "b.mla", **layout)
    ours, plain = (blosc2.open(str(tmp_path / f"{name}.mla"), mode="r") for name in "ab")
    assert ours.schunk.nchunks == 20
    for number in range(20):
        assert ours.schunk.get_chunk(number) == plain.schunk.get_chunk(number)


@pytest.mark.parametrize("fortran", [False, True])
def test_archives_of_numpy_stream_along_the_axis_that_is_slowest_there(
    fortran: bool, tmp_path: Path, never_whole: None
) -> None:
    values = np.asarray(SERIES, order="F" if fortran else "C")
    np.savez_compressed(tmp_path / "a.npz", values)
    convert(tmp_path / "a.npz", tmp_path / "a.mla", chunks=(2, 7, 8, 2), verify=True)
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], SERIES)


def test_the_codec_is_chosen_by_the_first_slabs(
    tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.zeros((8, 8, 8, 40), "i2")
    values[..., :10] = np.random.default_rng(1).integers(0, 4000, (8, 8, 8, 10))
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    nib.save(nib.Nifti1Image(values[..., ::-1], np.eye(4)), tmp_path / "b.nii.gz")
    chunks = (8, 8, 8, 2)
    n_tried = []
    for name in "ab":
        report = convert(tmp_path / f"{name}.nii.gz", tmp_path / f"{name}.mla", chunks=chunks)
        assert report is not None
        assert report.choice is not None
        assert report.choice.trials
        n_tried.append(report.choice.trials[0].nbytes)
    # Slabs of zeros tell nothing of a codec: the second series was unpacked as a whole for that.
    np.testing.assert_array_equal(MlaArray(tmp_path / "b.mla")[...], values[..., ::-1])
    monkeypatch.setattr(StreamedArray, "unpacked", lambda _: pytest.fail("unpacked"))
    convert(tmp_path / "a.nii.gz", tmp_path / "c.mla", chunks=chunks)
    with pytest.raises(pytest.fail.Exception):
        convert(tmp_path / "b.nii.gz", tmp_path / "d.mla", chunks=chunks)
    assert all(n_tried)


@pytest.mark.parametrize(
    "options",
    [
        {"resume": True},
        {"memory_limit": 14_000},  # less than nine slabs of a chunk, more than nine chunks
        {"chunks": (2, 2, 2, 20)},
    ],
    ids=["resume", "memory_limit", "chunks"],
)
def test_what_cannot_be_streamed_is_unpacked_first(
    options: dict[str, Any], series: Path, tmp_path: Path, small_slabs: None
) -> None:
    with mock.patch.object(StreamedArray, "slabs", side_effect=AssertionError("streamed")):
        convert(
            series,
            tmp_path / "a.mla",
            verify=True,
            **{"chunks": (3, 3, 3, 4), "codec": "zstd-1", **options},
        )
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], SERIES)
    assert sorted(os.listdir(tmp_path)) == ["a.mla", "bold.nii.gz"]


@pytest.mark.parametrize("at", [-1, -6, 9000, "cut"])
@pytest.mark.parametrize("library", ["zlib", "isal"])
def test_a_damaged_end_fails_before_anything_is_published(
    at: int | str, library: str, series: Path, tmp_path: Path, never_whole: None
) -> None:
    data = bytearray(series.read_bytes())
    if isinstance(at, str):
        del data[-1:]
    else:
        data[at] ^= 0x40
    series.write_bytes(data)
    hidden = {"isal": None} if library == "zlib" else {}
    with (
        mock.patch.dict(sys.modules, hidden),
        pytest.raises(ConversionError, match=r"bold\.nii\.gz: the packed voxels are damaged"),
    ):
        convert(series, tmp_path / "a.mla", chunks=(6, 7, 8, 2), codec="lz4-1")
    assert os.listdir(tmp_path) == ["bold.nii.gz"]


def test_a_source_that_changes_meanwhile_fails(
    series: Path, tmp_path: Path, never_whole: None
) -> None:
    def touching(done: int, total: int) -> None:
        del done, total
        os.utime(series, ns=(1, 1))

    with pytest.raises(SourceChanged):
        convert(series, tmp_path / "a.mla", chunks=(6, 7, 8, 2), progress=touching)
    assert os.listdir(tmp_path) == ["bold.nii.gz"]


@pytest.mark.parametrize("resume", [False, True])
def test_verify_unpacks_again_and_finds_the_slab_that_differs(
    resume: bool, series: Path, tmp_path: Path, never_whole: None
) -> None:
    def altered(values: StreamedArray, path: str, **options: Any) -> Any:
        wrong = SERIES.copy()
        wrong[0, 0, 0, 13] ^= 1
        return to_mla(wrong, path, **options)

    layout: dict[str, Any] = {"chunks": (6, 7, 8, 2), "codec": "lz4-1"}
    with mock.patch.object(recipe, "to_mla", altered):
        if resume:  # complete, and only compared
            convert(series, tmp_path / "a.mla", resume=True, **layout)
        with pytest.raises(ConversionError, match=r"box \(\(0, 6\), .*, \(12, 14\)\) is not that"):
            convert(series, tmp_path / "a.mla", resume=resume, verify=True, **layout)
    assert (tmp_path / "a.mla").exists() == resume


def test_progress_counts_slabs_as_they_are_written_and_compared(
    series: Path, tmp_path: Path, never_whole: None
) -> None:
    tell = mock.Mock()
    convert(series, tmp_path / "a.mla", chunks=(3, 7, 8, 2), verify=True, progress=tell)
    told = [call.args for call in tell.call_args_list]
    assert {total for _, total in told} == {40}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (40, 40)
    assert len({done for done, _ in told}) == 21


def test_small_volumes_of_one_slab_are_unpacked_in_memory(tmp_path: Path) -> None:
    values = SERIES[..., 0]
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    with mock.patch.object(PackedArray, "to_numpy", autospec=True) as whole:
        whole.side_effect = lambda array: array.stream.to_memory()
        convert(tmp_path / "a.nii.gz", tmp_path / "a.mla")
    assert whole.called
    np.testing.assert_array_equal(MlaArray(tmp_path / "a.mla")[...], values)


CONVERT = """
import json, os, sys
import mlarray_xr


def written():
    with open("/proc/self/io") as file:
        counts = dict(line.split(":") for line in file)
    return int(counts["wchar"])


def used(name):
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
small, large, target, options = json.loads(sys.argv[1])
mlarray_xr.convert(small, target, verify=True, **options)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
resident, before = used("VmRSS"), written()
report = mlarray_xr.convert(large, target, mode="w", **options)
print(json.dumps([report.file_bytes, written() - before, used("VmHWM") - resident]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")
def test_converting_a_series_costs_one_write_and_the_memory_of_some_slabs(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).integers(0, 500, (64, 64, 40, 4), "i2")
    member = gzip.compress(frames.tobytes(order="F"), 1)
    for name, repeats in (("small", 1), ("large", 160)):
        header = nib.Nifti1Header()
        header.set_data_dtype("i2")
        header.set_data_shape((64, 64, 40, 4 * repeats))
        header["magic"], header["vox_offset"] = b"n+1", 352
        leading = gzip.compress(header.binaryblock + bytes(4))
        (tmp_path / f"{name}.nii.gz").write_bytes(leading + member * repeats)
    paths = [str(tmp_path / f"{name}.nii.gz") for name in ("small", "large")]
    # Noise that does not compress: a scratch file would double what is written.
    asked = json.dumps([*paths, str(tmp_path / "a.mla"), {"layout": "frames"}])
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, asked],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    file_bytes, n_written, n_resident = json.loads(done.stdout)
    assert file_bytes > 80e6
    assert n_written <= 1.1 * file_bytes + 1e6
    # Of 210 MB: the beginning, slabs of 8 MiB being filled, encoded and waiting, compressed ones.
    assert n_resident <= 90e6
