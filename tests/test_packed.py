"""Packed streams: unpacked once, to memory or to a scratch file, and checked to the last byte."""

from __future__ import annotations

import bz2
import gzip
import itertools
import math
import os
import pickle
import sys
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import dask.base
import numpy as np
import pytest

from mlarray_xr.errors import AllocationError, ConversionError, SourceChanged
from mlarray_xr.foreign import packed
from mlarray_xr.foreign.packed import PackedArray, PackedStream, unpacked
from mlarray_xr.foreign.raw import RawArray, local_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

Packing = Literal["gzip", "bzip2", "zip"]
PACKINGS: tuple[Packing, ...] = ("gzip", "bzip2", "zip")
LIBRARIES = ("zlib", "isal")
SHAPE = (20, 30, 40)
VALUES = np.random.default_rng(5).integers(-99, 99, SHAPE, np.int16).astype(">i2")
WHOLE = tuple(slice(0, n) for n in SHAPE)


def pack(path: Path, packing: Packing, data: bytes, *, before: bytes = b"") -> None:
    if packing == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside", data)
        return
    done = gzip.compress(data) if packing == "gzip" else bz2.compress(data)
    path.write_bytes(before + done)


def stream_of(path: Path, packing: Packing = "gzip", **changes: Any) -> PackedStream:
    stated = {"dtype": VALUES.dtype, "shape": SHAPE, "order": "C", "member": "inside", **changes}
    return PackedStream(source=local_source(path), packing=packing, **stated)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """Gunzip with the standard library, or with ISA-L."""
    if request.param == "isal":
        pytest.importorskip("isal")
        yield request.param
        return
    with mock.patch.dict(sys.modules, {"isal": None}):
        yield request.param


@pytest.fixture(
    params=[("gzip", "isal"), *((packing, "zlib") for packing in PACKINGS)], ids="-".join
)
def stream(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PackedStream]:
    packing, library = request.param
    pack(tmp_path / "a.packed", packing, VALUES.tobytes())
    if library == "isal":
        pytest.importorskip("isal")
    hidden = {} if library == "isal" else {"isal": None}
    with mock.patch.dict(sys.modules, hidden):
        yield stream_of(tmp_path / "a.packed", packing)


@pytest.fixture
def small_pieces() -> Iterator[None]:
    with (
        mock.patch.object(packed, "_PIECE_BYTES", 1000),
        mock.patch.object(packed, "_IN_MEMORY_BYTES", 100),
    ):
        yield


@pytest.mark.parametrize("scratch", [True, False])
def test_boxes_are_those_of_the_array(
    stream: PackedStream, scratch: bool, tmp_path: Path, small_pieces: None
) -> None:
    array = unpacked(stream, scratch_dir=str(tmp_path) if scratch else None)
    assert type(array) is (RawArray if scratch else PackedArray)
    assert (array.shape, array.dtype) == (SHAPE, VALUES.dtype)
    np.testing.assert_array_equal(array[WHOLE], VALUES)
    np.testing.assert_array_equal(np.asarray(array, np.float32), VALUES.astype(np.float32))
    key = (slice(3, 9), slice(0, 30), slice(7, 8))
    np.testing.assert_array_equal(array[key], VALUES[key])


@pytest.mark.parametrize("packing", ["gzip", "bzip2"])
def test_what_comes_before_is_left_out(
    packing: Packing, tmp_path: Path, small_pieces: None
) -> None:
    path = tmp_path / "a.packed"
    pack(path, packing, bytes(2345) + VALUES.tobytes(order="F"), before=b"a header")
    array = unpacked(stream_of(path, packing, start=8, skip=2345, order="F"), scratch_dir=None)
    np.testing.assert_array_equal(array[WHOLE], VALUES)


@pytest.mark.parametrize("padding", [0, 1, 70_000])
def test_streams_may_have_several_members(tmp_path: Path, library: str, padding: int) -> None:
    data, zeros = VALUES.tobytes(), bytes(padding)
    members = [gzip.compress(data[:999]), zeros, gzip.compress(data[999:]), zeros]
    (tmp_path / "a.gz").write_bytes(b"".join(members))
    np.testing.assert_array_equal(PackedArray(stream_of(tmp_path / "a.gz"))[WHOLE], VALUES)


def test_whatever_follows_the_voxels_is_no_gzip_member(tmp_path: Path, library: str) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(VALUES.tobytes()) + b"more")
    with pytest.raises(ConversionError, match="damaged"):
        stream_of(tmp_path / "a.gz").to_memory()


@pytest.mark.parametrize("sizes", [[48000], [1, 47999], [16000, 16000, 16000], [47999, 1]])
def test_runs_are_as_long_as_they_were_asked_for(
    stream: PackedStream, sizes: list[int], small_pieces: None
) -> None:
    runs = list(stream.runs(iter(sizes)))
    assert [run.size for run in runs] == sizes
    assert b"".join(run.tobytes() for run in runs) == VALUES.tobytes()
    assert not any(np.shares_memory(a, b) for a, b in itertools.pairwise(runs))


def test_small_arrays_need_no_scratch_file(stream: PackedStream, tmp_path: Path) -> None:
    assert isinstance(unpacked(stream, scratch_dir=str(tmp_path / "nowhere")), PackedArray)


def test_the_scratch_file_is_found_again(
    stream: PackedStream, tmp_path: Path, small_pieces: None
) -> None:
    (tmp_path / "scratch").mkdir()
    scratch = str(tmp_path / "scratch")
    first = unpacked(stream, scratch_dir=scratch)
    (name,) = os.listdir(scratch)
    assert os.path.getsize(os.path.join(scratch, name)) == VALUES.nbytes
    with mock.patch.object(PackedStream, "runs", side_effect=AssertionError("unpacked again")):
        again = unpacked(stream, scratch_dir=scratch)
    assert again == first
    os.unlink(os.path.join(scratch, name))
    fresh = unpacked(stream, scratch_dir=scratch)
    assert os.listdir(scratch) == [name]
    assert fresh != first
    assert dask.base.tokenize(fresh) == dask.base.tokenize(first)


def test_another_source_gets_another_scratch_file(tmp_path: Path, small_pieces: None) -> None:
    (tmp_path / "scratch").mkdir()
    for n in range(2):
        pack(tmp_path / "a.gz", "gzip", (VALUES + n).astype(">i2").tobytes())
        os.utime(tmp_path / "a.gz", ns=(n, n))
        array = unpacked(stream_of(tmp_path / "a.gz"), scratch_dir=str(tmp_path / "scratch"))
        np.testing.assert_array_equal(array[WHOLE], VALUES + n)
    assert len(os.listdir(tmp_path / "scratch")) == 2


def test_a_failure_leaves_no_scratch_file(tmp_path: Path, small_pieces: None) -> None:
    (tmp_path / "scratch").mkdir()
    pack(tmp_path / "a.gz", "gzip", VALUES.tobytes()[:-1])
    with pytest.raises(ConversionError, match="ends after 47999 of 48000 bytes"):
        unpacked(stream_of(tmp_path / "a.gz"), scratch_dir=str(tmp_path / "scratch"))
    assert not os.listdir(tmp_path / "scratch")


def test_who_unpacks_at_the_same_time_reads_the_first_file(
    tmp_path: Path, small_pieces: None
) -> None:
    pack(tmp_path / "a.gz", "gzip", VALUES.tobytes())
    (tmp_path / "scratch").mkdir()
    stream, scratch = stream_of(tmp_path / "a.gz"), str(tmp_path / "scratch")
    with ThreadPoolExecutor(4) as pool:
        arrays = list(pool.map(lambda _: unpacked(stream, scratch_dir=scratch), range(4)))
    assert len(os.listdir(scratch)) == 1
    for array in arrays:
        np.testing.assert_array_equal(array[WHOLE], VALUES)


def test_memory_is_filled_once_however_many_ask(stream: PackedStream) -> None:
    array = PackedArray(stream)
    real, calls = PackedStream.runs, []

    def counted(self: PackedStream, sizes: Iterable[int]) -> Any:
        calls.append(self)
        return real(self, sizes)

    with mock.patch.object(PackedStream, "runs", counted), ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: array[WHOLE], range(8)):
            np.testing.assert_array_equal(found, VALUES)
    assert len(calls) == 1


def test_the_address_pickles_small_and_unpacks_again(stream: PackedStream) -> None:
    array = PackedArray(stream)
    array.to_numpy()
    sent = pickle.dumps(array)
    assert len(sent) < 1000
    found = pickle.loads(sent)
    assert dask.base.tokenize(found) == dask.base.tokenize(array)
    np.testing.assert_array_equal(found[WHOLE], VALUES)


def test_unpacking_to_a_file_takes_little_memory(tmp_path: Path) -> None:
    shape = (96, 1024, 1024)
    with gzip.open(tmp_path / "a.gz", "wb", compresslevel=1) as file:
        for _ in range(shape[0]):
            file.write(bytes(1 << 20))
    stream = stream_of(tmp_path / "a.gz", dtype=np.dtype("u1"), shape=shape)
    tracemalloc.start()
    try:
        array = unpacked(stream, scratch_dir=str(tmp_path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(array, RawArray)
    assert peak < 16 << 20


@pytest.mark.parametrize("at", [-1, -6, 100, 5000])
def test_flipped_bits_are_found(stream: PackedStream, at: int) -> None:
    with open(stream.source.path, "r+b") as file:
        data = bytearray(file.read())
        # The last bytes of a zip file are its directory, not the stream.
        data[at if stream.packing != "zip" else abs(at) + 60] ^= 0x10
        file.seek(0)
        file.write(data)
    changed = stream_of_again(stream)
    with pytest.raises(ConversionError, match=r"a\.packed: the packed voxels are damaged"):
        changed.to_memory()


@pytest.mark.parametrize("kept", [0, 5, 3000, -1, -9])
def test_truncated_streams_are_refused(stream: PackedStream, kept: int) -> None:
    with open(stream.source.path, "rb") as file:
        data = file.read()
    with open(stream.source.path, "wb") as file:
        file.write(data[:kept])
    with pytest.raises(ConversionError, match="truncated"):
        stream_of_again(stream).to_memory()


def stream_of_again(stream: PackedStream) -> PackedStream:
    stated = {name: getattr(stream, name) for name in stream.__dataclass_fields__}
    return PackedStream(**{**stated, "source": local_source(stream.source.path)})


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_small_file_cannot_ask_for_much(packing: Packing, tmp_path: Path) -> None:
    pack(tmp_path / "a.packed", packing, bytes(100))
    with pytest.raises(ConversionError, match="truncated, or the header is wrong"):
        stream_of(tmp_path / "a.packed", packing, shape=(2**20, 2**20))
    with pytest.raises(ConversionError, match="truncated, or the header is wrong"):
        stream_of(tmp_path / "a.packed", packing, skip=2**40)
    with pytest.raises(ConversionError, match="truncated, or the header is wrong"):
        stream_of(tmp_path / "a.packed", packing, shape=(0,), start=10**6)


@pytest.mark.parametrize("packing", PACKINGS)
def test_zeros_that_pack_best_are_within_the_bound(packing: Packing, tmp_path: Path) -> None:
    shape = (32 << 20,)
    pack(tmp_path / "a.packed", packing, bytes(shape[0]))
    array = stream_of(tmp_path / "a.packed", packing, dtype=np.dtype("u1"), shape=shape)
    assert not array.to_memory().any()


def test_a_bomb_unpacks_to_what_the_header_says(tmp_path: Path, small_pieces: None) -> None:
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    (tmp_path / "a.gz").write_bytes(data)
    (tmp_path / "scratch").mkdir()
    stream = stream_of(tmp_path / "a.gz")
    unpacked(stream, scratch_dir=str(tmp_path / "scratch"))
    (name,) = os.listdir(tmp_path / "scratch")
    assert (tmp_path / "scratch" / name).stat().st_size == math.prod(SHAPE) * 2


def test_too_much_for_memory_names_a_way_out(tmp_path: Path) -> None:
    pack(tmp_path / "a.bz2", "bzip2", bytes(64 << 20))
    with (
        mock.patch.object(np, "empty", side_effect=MemoryError),
        pytest.raises(AllocationError, match=r"a\.bz2.*To fix"),
    ):
        stream_of(tmp_path / "a.bz2", "bzip2").to_memory()


def test_changed_files_are_not_unpacked(stream: PackedStream) -> None:
    os.utime(stream.source.path, ns=(1, 1))
    with pytest.raises(SourceChanged):
        PackedArray(stream)[WHOLE]


def test_a_change_while_unpacking_is_seen(stream: PackedStream) -> None:
    runs = stream.runs([1000, stream.nbytes - 1000])
    next(runs)
    os.utime(stream.source.path, ns=(1, 1))
    with pytest.raises(SourceChanged):
        for _ in runs:
            pass


def test_errors_of_the_disk_stay_what_they_are(stream: PackedStream) -> None:
    with (
        mock.patch.object(PackedStream, "_runs", side_effect=OSError(5, "Input/output error")),
        pytest.raises(OSError, match="Input/output") as caught,
    ):
        list(stream.runs([stream.nbytes]))
    assert type(caught.value) is OSError


def test_empty_arrays_need_no_byte(tmp_path: Path) -> None:
    pack(tmp_path / "a.gz", "gzip", b"")
    found: NDArray[Any] = PackedArray(stream_of(tmp_path / "a.gz", shape=(3, 0))).to_numpy()
    assert (found.shape, found.dtype) == ((3, 0), VALUES.dtype)
