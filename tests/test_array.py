"""MlaArray answers every key and box as NumPy does, in bounded memory, or says why not."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import AllocationError, MlaError, SourceChanged
from mlarray_xr.format.chunk import check_chunks
from mlarray_xr.storage import handles, mapped
from mlarray_xr.storage.chunks import decode_chunk
from mlarray_xr.storage.handles import most_open_files, open_readers
from tests.frame_kit import encoded_index, make_frame, offsets_of, sections_of, write_b2nd
from tests.stored_metadata import DATA
from tests.test_selection import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

IMAGE = DATA / "mla" / "0.0.54" / "img3d.mla"
DTYPES = (
    "|b1", "|i1", "|u1", "<i2", ">i2", "<u4", "<i8", ">u8", "<f2", "<f4", ">f4", "<f8", ">f8",
    "<c8", ">c8", "<c16", "<M8[ns]", "<m8[s]", ">M8[D]", "|S5", "<U3", ">U3",
)  # fmt: skip
# Shape, chunks, blocks: odd everything, chunks beyond the shape, blocks that do not divide chunks.
LAYOUTS: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((), (), ()),
    ((1,), (1,), (1,)),
    ((17,), (5,), (2,)),
    ((64,), (64,), (18,)),
    ((9, 11), (4, 7), (3, 2)),
    ((6, 8, 10, 2), (6, 8, 2, 10), (3, 4, 2, 5)),
    ((7, 9, 5), (4, 6, 3), (3, 2, 2)),
    ((5, 1, 4, 3, 6), (2, 1, 3, 3, 4), (2, 1, 2, 1, 3)),
    ((3, 40, 50), (1, 40, 50), (1, 7, 11)),
)


def random_values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    random = np.random.default_rng(seed)
    kind, n = np.dtype(dtype).kind, math.prod(shape)
    if kind == "S":
        flat: NDArray[Any] = random.integers(65, 91, (n, 5), np.uint8).view("S5")[:, 0]
    elif kind == "U":
        flat = np.array(["ab\U0001f600", "", "z"])[random.integers(0, 3, n)]
    elif kind in "mM":
        flat = random.integers(-(10**6), 10**6, n).view(f"{kind}8[s]")
    elif kind == "c":
        flat = random.standard_normal(n) + 1j * random.standard_normal(n)
    elif kind == "f":
        flat = random.standard_normal(n)
    else:
        flat = random.integers(0, 127, n)
    return flat.astype(dtype).reshape(shape)


def assert_same(found: Any, expected: Any) -> None:
    """Compare type, shape, dtype and bytes."""
    assert isinstance(found, np.ndarray) == isinstance(expected, np.ndarray)
    assert np.shape(found) == np.shape(expected)
    assert np.asarray(found).dtype == np.asarray(expected).dtype
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[NDArray[Any], MlaArray]]:
    folder = tmp_path_factory.mktemp("layouts")
    found = {}
    for i, (shape, chunks, blocks) in enumerate(LAYOUTS):
        values = random_values(shape, "<i4", i)
        path = write_b2nd(folder / f"{i}.b2nd", values, chunks=chunks, blocks=blocks)
        found[i] = (values, MlaArray(path))
    return found


def whole(array: MlaArray) -> tuple[tuple[int, int], ...]:
    return tuple((0, n) for n in array.shape)


@pytest.mark.parametrize("i", range(len(LAYOUTS)))
def test_layouts_are_what_was_asked(
    files: dict[int, tuple[NDArray[Any], MlaArray]], i: int
) -> None:
    values, array = files[i]
    assert (array.shape, array.chunks, array.blocks) == LAYOUTS[i]
    assert (array.layout.chunks, array.layout.blocks) == LAYOUTS[i][1:]
    assert (array.ndim, array.size, array.nbytes) == (values.ndim, values.size, values.nbytes)
    assert_same(array[...], values)
    assert_same(array.read(whole(array)), values)


@given(st.integers(0, len(LAYOUTS) - 1), st.data())
def test_boxes_read_like_numpy_slices(
    files: dict[int, tuple[NDArray[Any], MlaArray]], i: int, data: st.DataObject
) -> None:
    values, array = files[i]
    box = []
    for n in values.shape:
        start = data.draw(st.integers(0, n))
        box.append((start, data.draw(st.integers(start, n))))
    key: tuple[Any, ...] = tuple(slice(a, b) for a, b in box)
    expected = values[(*key, ...)]
    out = np.full(expected.shape, -1, "<i4")
    threads = data.draw(st.sampled_from([None, 1, 2, 7]))
    assert array.read(box, out=out, threads=threads) is out
    np.testing.assert_array_equal(out, expected)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[int, ...]], MlaArray]:
    """Give an array of numbers of any shape, with odd chunks and blocks."""
    folder = tmp_path_factory.mktemp("shapes")
    known: dict[tuple[int, ...], MlaArray] = {}

    def make(shape: tuple[int, ...]) -> MlaArray:
        if shape not in known:
            values = np.arange(math.prod(shape)).reshape(shape)
            chunks = tuple((4, 3, 5, 2)[axis] for axis in range(len(shape)))
            blocks = tuple((3, 2, 2, 1)[axis] for axis in range(len(shape)))
            options = {} if 0 in shape else {"chunks": chunks, "blocks": blocks}
            path = folder / f"{'-'.join(map(str, shape))}.b2nd"
            known[shape] = MlaArray(write_b2nd(path, values, **options))
        return known[shape]

    return make


@settings(max_examples=300)
@given(keys())
def test_keys_read_what_numpy_reads(
    made: Callable[[tuple[int, ...]], MlaArray], case: tuple[tuple[int, ...], Any]
) -> None:
    shape, key = case
    values, array = np.arange(math.prod(shape)).reshape(shape), made(shape)
    try:
        expected = values[key]
    except IndexError:
        with pytest.raises(IndexError):
            array[key]
        return
    try:
        found = array[key]
    except IndexError:
        # NumPy lets positions pass unchecked where nothing is selected.
        assert np.size(expected) == 0
        return
    assert_same(found, expected)


@pytest.mark.parametrize(
    "key",
    [(), Ellipsis, 1, -1, (1, 2, 3), (1, 2, 3, Ellipsis), (np.array(1), 2, 3), [0], np.array([3])],
    ids=repr,
)
def test_scalars_and_arrays_come_back_as_in_numpy(
    files: dict[int, tuple[NDArray[Any], MlaArray]], key: Any
) -> None:
    values, array = files[6]
    assert_same(array[key], values[key])


def test_a_0d_array_reads_as_numpy_reads_it(
    files: dict[int, tuple[NDArray[Any], MlaArray]],
) -> None:
    values, array = files[0]
    assert_same(array[()], values[()])
    assert_same(array[...], values[...])
    assert_same(array.read(()), values)
    assert int(np.asarray(array)) == int(values)
    with pytest.raises(IndexError):
        array[0]


# Shape, chunks, blocks: chunks that are read many at a time, and chunks decoded one by one.
SMALL = ((9, 11), (4, 7), (3, 2))
LARGE = ((400, 500), (370, 410), (90, 77))
SIZES = pytest.mark.parametrize("size", [SMALL, LARGE], ids=["small", "large"])
Size = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@SIZES
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type(tmp_path: Path, dtype: str, size: Size) -> None:
    shape, chunks, blocks = size
    values = random_values(shape, dtype)
    array = MlaArray(write_b2nd(tmp_path / "t.b2nd", values, chunks=chunks, blocks=blocks))
    assert array.dtype == np.dtype(dtype)
    assert array.dtype.str == np.dtype(dtype).str
    assert_same(array[...], values)
    assert_same(array[2:7, ::-3], values[2:7, ::-3])
    assert_same(array[[1, 3], [0, 10]], values[[1, 3], [0, 10]])
    assert_same(array[4, 5], values[4, 5])
    assert_same(array.read(((1, 8), (2, 9)), threads=2), values[1:8, 2:9])


def test_elements_wider_than_255_bytes(tmp_path: Path) -> None:
    values = np.array([f"{i:>100}" for i in range(35)]).reshape(5, 7)
    array = MlaArray(write_b2nd(tmp_path / "wide.b2nd", values, chunks=(3, 4), blocks=(2, 3)))
    assert array.dtype.itemsize == 400
    assert_same(array[1:4, ::2], values[1:4, ::2])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (4, 0, 3)])
def test_empty_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, "<f4")
    array = MlaArray(write_b2nd(tmp_path / "e.b2nd", values))
    keys: tuple[Any, ...] = (..., slice(None), slice(0, 3), [], (..., slice(None, None, -1)))
    for key in keys:
        assert_same(array[key], values[key])
    assert array.info()["n_chunks"] == 0
    assert len(array) == shape[0]
    assert_same(np.asarray(array), values)


@pytest.mark.parametrize("ndim", [1, 3, 8, 16])
def test_up_to_sixteen_axes(tmp_path: Path, ndim: int) -> None:
    shape = (1,) * max(ndim - 3, 0) + (2, 3, 4)[:ndim]
    values = np.arange(math.prod(shape), dtype="<i2").reshape(shape)
    array = MlaArray(write_b2nd(tmp_path / "n.b2nd", values))
    assert_same(array[...], values)
    assert_same(array[..., -1], values[..., -1])


CPARAMS: dict[str, dict[str, Any]] = {
    "zstd dictionary": {"codec": blosc2.Codec.ZSTD, "use_dict": True},
    "lz4 dictionary": {"codec": blosc2.Codec.LZ4, "use_dict": True},
    "delta": {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]},
    "delta shuffle": {
        "filters": [blosc2.Filter.DELTA, blosc2.Filter.SHUFFLE],
        "filters_meta": [0, 0],
    },
    "bitshuffle": {"filters": [blosc2.Filter.BITSHUFFLE], "filters_meta": [0]},
    "bytedelta": {
        "filters": [blosc2.Filter.SHUFFLE, blosc2.Filter.BYTEDELTA],
        "filters_meta": [0, 2],
    },
    "nothing": {"filters": [blosc2.Filter.NOFILTER], "clevel": 0},
    "zlib": {"codec": blosc2.Codec.ZLIB},
    "blosclz split": {
        "codec": blosc2.Codec.BLOSCLZ,
        "splitmode": blosc2.SplitMode.ALWAYS_SPLIT,
    },
    "lz4hc": {"codec": blosc2.Codec.LZ4HC, "clevel": 9},
}  # fmt: skip


@pytest.mark.parametrize("chunks", [(25, 50, 11), (50, 50, 14)], ids=["small", "large"])
@pytest.mark.parametrize("name", CPARAMS)
def test_codecs_and_filters_read_exactly(
    tmp_path: Path, name: str, chunks: tuple[int, ...]
) -> None:
    values = np.cumsum(random_values((60, 50, 20), "<i4") % 3, axis=1, dtype="<i4")
    path = write_b2nd(
        tmp_path / "c.b2nd", values, chunks=chunks, blocks=(10, 20, 11), **CPARAMS[name]
    )
    array = MlaArray(path)
    assert_same(array[...], values)
    random = np.random.default_rng(1)
    for threads in (None, 1, 2, 7):
        box = [tuple(sorted(random.integers(0, n + 1, 2).tolist())) for n in values.shape]
        expected = values[tuple(slice(a, b) for a, b in box)]
        assert_same(array.read(box, threads=threads), np.ascontiguousarray(expected))
    assert_same(array[5, ::7, [3, 1]], values[5, ::7, [3, 1]])


def test_chunks_of_both_kinds_in_one_file(tmp_path: Path) -> None:
    values = np.cumsum(random_values((4000,), "<i4") % 3, dtype="<i4")
    plain = sections_of(make_frame(values, chunks=(500,), blocks=(50,)))
    filters: dict[str, Any] = {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]}
    delta = sections_of(make_frame(values, chunks=(500,), blocks=(50,), **filters))
    offsets = offsets_of(plain)
    offsets[1::2] = offsets_of(delta)[1::2] + len(plain.payload)
    mixed = plain.__class__(
        header=plain.header,
        payload=plain.payload + delta.payload,
        index=encoded_index(offsets),
        trailer=plain.trailer,
    )
    (tmp_path / "mixed.b2nd").write_bytes(mixed.joined())
    for start in range(0, 4000, 250):
        array = MlaArray(tmp_path / "mixed.b2nd")
        assert_same(array[start : start + 700], values[start : start + 700])
        array.close()


def test_zfp_frames_read_as_blosc2_reads_them(tmp_path: Path) -> None:
    values = random_values((40, 50), "<f4")
    codec = {"codec": blosc2.Codec.ZFP_ACC, "codec_meta": 3, "filters": [], "filters_meta": []}
    array = blosc2.asarray(
        values, chunks=(20, 25), blocks=(10, 12), urlpath=str(tmp_path / "z.b2nd"), cparams=codec
    )
    found = MlaArray(tmp_path / "z.b2nd")
    np.testing.assert_array_equal(found[...], array[...])
    np.testing.assert_array_equal(found[3:30, 7:9], array[3:30, 7:9])


@SIZES
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2", "|u1", ">i4"])
@pytest.mark.parametrize("kind", ["zeros", "repeated", "nan"])
def test_special_chunks(tmp_path: Path, dtype: str, kind: str, size: Size) -> None:
    if kind == "nan" and np.dtype(dtype).kind != "f":
        dtype = "<f4"
    shape, chunks, blocks = size
    options = {"dtype": dtype, "chunks": chunks, "blocks": blocks}
    options["urlpath"] = str(tmp_path / "s.b2nd")
    if kind == "repeated":
        value: float = 7
        blosc2.full(shape, value, **options)
    else:
        value = np.nan if kind == "nan" else 0
        (blosc2.nans if kind == "nan" else blosc2.zeros)(shape, **options)
    array = MlaArray(tmp_path / "s.b2nd")
    expected = np.full(shape, value, dtype)
    for key in (Ellipsis, (slice(2, 8), slice(1, 9)), (slice(None, None, 2), [1, 9, 1])):
        np.testing.assert_array_equal(array[key], expected[key])
    assert array[...].dtype == np.dtype(dtype)


@pytest.mark.parametrize("size", [SMALL, ((300, 400), (40, 60), (30, 40)), LARGE])
def test_uninitialised_chunks_read_as_zeros_never_as_memory(tmp_path: Path, size: Size) -> None:
    shape, chunks, blocks = size
    path = str(tmp_path / "u.b2nd")
    blosc2.uninit(shape, dtype="<f4", chunks=chunks, blocks=blocks, urlpath=path)
    for _ in range(3):
        secrets = [np.full(n, 123, np.uint8) for n in (64, 500, 4800, 10_000, 50_000) * 50]
        del secrets
        array = MlaArray(path)
        out = np.full(shape, 5, "<f4")
        assert not array.read(whole(array), out=out).any()
        assert not array[::3, 5:7].any()
        array.close()


def test_uninitialised_chunks_beside_stored_ones(tmp_path: Path) -> None:
    path = str(tmp_path / "u.b2nd")
    array = blosc2.uninit((100,), dtype="<i4", chunks=(10,), blocks=(5,), urlpath=path)
    array[30:50] = np.arange(30, 50, dtype="<i4")
    expected = np.zeros(100, "<i4")
    expected[30:50] = np.arange(30, 50)
    assert_same(MlaArray(path)[...], expected)
    assert_same(MlaArray(path)[25:45], expected[25:45])


OUT_MISTAKES: dict[str, tuple[NDArray[Any], str]] = {
    "shape": (np.empty((9, 7, 5), "<i4"), "given for a box of shape"),
    "flat": (np.empty(7 * 9 * 5, "<i4"), "given for a box of shape"),
    "type": (np.empty((7, 9, 5), "<f4"), "and type"),
    "byte order": (np.empty((7, 9, 5), ">i4"), "and type"),
    "order": (np.empty((7, 9, 5), "<i4", order="F"), "C-contiguous"),
    "strided": (np.empty((7, 9, 10), "<i4")[:, :, ::2], "C-contiguous"),
    "reversed": (np.empty((7, 9, 5), "<i4")[::-1], "C-contiguous"),
}


@pytest.mark.parametrize("mistake", OUT_MISTAKES)
def test_buffers_that_cannot_be_filled_are_refused(
    files: dict[int, tuple[NDArray[Any], MlaArray]], mistake: str
) -> None:
    out, match = OUT_MISTAKES[mistake]
    array = files[6][1]
    with pytest.raises(ValueError, match=match):
        array.read(whole(array), out=out)


def test_read_only_buffers_are_refused(
    files: dict[int, tuple[NDArray[Any], MlaArray]],
) -> None:
    array, out = files[6][1], np.zeros((7, 9, 5), "<i4")
    out.setflags(write=False)
    with pytest.raises(ValueError, match="writable"):
        array.read(whole(array), out=out)
    assert not out.any()


def test_nothing_beside_the_buffer_is_written(
    files: dict[int, tuple[NDArray[Any], MlaArray]],
) -> None:
    values, array = files[8]
    guarded = np.full(values.size + 2000, -7, "<i4")
    out = guarded[1000:-1000].reshape(values.shape)
    for threads in (1, 2, 7):
        array.read(whole(array), out=out, threads=threads)
        np.testing.assert_array_equal(out, values)
        assert (guarded[:1000] == -7).all()
        assert (guarded[-1000:] == -7).all()


def test_large_reads_are_the_same_on_any_number_of_threads(tmp_path: Path) -> None:
    values = np.cumsum(random_values((130, 140, 150), "<i4") % 7, axis=2, dtype="<i4")
    array = MlaArray(
        write_b2nd(tmp_path / "l.b2nd", values, chunks=(64, 65, 66), blocks=(20, 21, 22))
    )
    box = ((3, 129), (1, 140), (5, 149))
    expected = values[3:129, 1:140, 5:149]
    for threads in (None, 1, 2, 3, 7, 32):
        np.testing.assert_array_equal(array.read(box, threads=threads), expected)


def test_the_number_of_threads_is_checked(tmp_path: Path) -> None:
    for threads in (0, -1):
        with pytest.raises(ValueError, match="at least 1 is needed"):
            MlaArray(IMAGE, threads=threads)


def test_it_behaves_like_a_numpy_array() -> None:
    expected = np.load(IMAGE.with_suffix(".npy"))
    array = MlaArray(IMAGE)
    assert len(array) == len(expected)
    for found, row in zip(iter(array), expected, strict=True):
        assert_same(found, row)
    assert_same(np.asarray(array), expected)
    assert_same(np.asarray(array, dtype="f8"), expected.astype("f8"))
    assert_same(np.array(array, copy=True), expected)
    assert float(np.mean(np.asarray(array))) == float(np.mean(expected))
    with pytest.raises(ValueError, match="always copied"):
        np.array(array, copy=False)
    with pytest.raises(ValueError, match="always copied"):
        array.__array__(copy=False)


def test_length_of_a_0d_array(files: dict[int, tuple[NDArray[Any], MlaArray]]) -> None:
    with pytest.raises(TypeError, match="without axes"):
        len(files[0][1])


def test_repr_and_info_show_no_metadata() -> None:
    path = DATA / "mla" / "0.0.54" / "bigmeta.mla"
    array = MlaArray(path)
    shown = repr(array) + json.dumps(array.info())
    metadata = array.metadata.to_dict()
    assert metadata["source"] or metadata["extra"]
    for key in (*metadata["source"], *metadata["extra"]):
        assert str(key) not in shown
    assert repr(array).startswith("<MlaArray 'bigmeta.mla' shape=")
    assert str(path.parent) not in repr(array)


def test_closing_and_reading_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handles, "_open", OrderedDict())
    values = random_values((9, 11), "<i4")
    path = write_b2nd(tmp_path / "c.b2nd", values, chunks=(4, 7), blocks=(3, 2))
    with MlaArray(path) as array:
        assert open_readers() == 0
        assert_same(array[...], values)
        assert open_readers() == 1
    assert open_readers() == 0
    array.close()
    assert_same(array[2], values[2])
    other = MlaArray(path)
    assert_same(other[3], values[3])
    assert open_readers() == 1
    array.close()
    assert_same(other[3], values[3])
    other.close()


def test_pickles_are_small_and_equal() -> None:
    expected = np.load(IMAGE.with_suffix(".npy"))
    array = MlaArray(IMAGE, threads=3)
    array[...]
    data = pickle.dumps(array)
    assert len(data) < 2000
    for other in (pickle.loads(data), copy.copy(array), copy.deepcopy(array)):
        assert (other.shape, other.dtype, other.chunks, other.blocks) == (
            array.shape, array.dtype, array.chunks, array.blocks
        )  # fmt: skip
        assert (other.path, other.threads, other.info()) == (array.path, 3, array.info())
        assert other.metadata.to_dict() == array.metadata.to_dict()
        assert other.__dask_tokenize__() == array.__dask_tokenize__()
        assert_same(other[...], expected)


def test_arrays_in_memory_pickle_with_their_bytes() -> None:
    array = MlaArray(IMAGE.read_bytes())
    other = pickle.loads(pickle.dumps(array))
    assert_same(other[...], array[...])
    assert other.__dask_tokenize__() == array.__dask_tokenize__()


TOKEN_SCRIPT = """
import sys
from mlarray_xr.array import MlaArray
print(MlaArray(sys.argv[1]).__dask_tokenize__())
"""


def run_python(
    script: str, *arguments: object, cwd: Path | None = None, timeout: int = 60
) -> subprocess.CompletedProcess[str]:
    root = os.fspath(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "random"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )


def test_tokens_are_the_same_in_every_process_and_change_with_the_file(tmp_path: Path) -> None:
    path = write_b2nd(tmp_path / "t.b2nd", random_values((9,), "<i4"))
    here = MlaArray(path).__dask_tokenize__()
    found = {run_python(TOKEN_SCRIPT, "t.b2nd", cwd=tmp_path).stdout.strip() for _ in range(2)}
    assert found == {repr(here)}
    write_b2nd(path, random_values((9,), "<i4", 1))
    os.utime(path, ns=(0, 12345))
    assert MlaArray(path).__dask_tokenize__() != here
    in_memory = MlaArray(IMAGE.read_bytes()).__dask_tokenize__()
    assert in_memory == MlaArray(IMAGE.read_bytes()).__dask_tokenize__() != here


def test_a_result_larger_than_memory_is_refused_at_once() -> None:
    array = MlaArray(DATA / "hostile" / "legit_zeros_huge.mla")
    assert array.nbytes == 320 * 10**9
    for read in (
        lambda: np.asarray(array),
        lambda: array[...],
        lambda: array.read(whole(array)),
        lambda: array[::-1],
        lambda: array[np.arange(200_000)],
    ):
        with pytest.raises(AllocationError, match="To fix"):
            read()
        with pytest.raises(MemoryError):
            read()
    assert array[199_998:, 199_999].tolist() == [0.0, 0.0]
    assert not array[[0, 199_999], [5, 7]].any()


def replace_file(path: Path) -> None:
    other = write_b2nd(
        path.with_suffix(".new"), random_values((200, 60), "<i4", 1), chunks=(20, 60)
    )
    other.replace(path)


def rewrite_in_place(path: Path) -> None:
    other = make_frame(random_values((200, 60), "<i4", 1), chunks=(20, 60))
    with path.open("r+b") as stream:
        stream.write(other)
    os.utime(path, ns=(1, 1))


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": replace_file,
    "rewritten": rewrite_in_place,
    "truncated": lambda path: os.truncate(path, 300),
    "emptied": lambda path: os.truncate(path, 0),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "deleted": Path.unlink,
    "a directory": become_a_directory,
}


@pytest.mark.parametrize("was_read", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_never_read_as_the_old_one(
    tmp_path: Path, change: str, was_read: bool
) -> None:
    values = random_values((200, 60), "<i4")
    path = write_b2nd(tmp_path / "c.b2nd", values, chunks=(20, 60), blocks=(5, 60))
    array = MlaArray(path)
    if was_read:
        assert_same(array[:20], values[:20])
    CHANGES[change](path)
    for key in (slice(0, 5), Ellipsis, (slice(None, None, 50), 3), ([1, 150], [2, 3])):
        with pytest.raises(SourceChanged, match=r"c\.b2nd: .*Open it again"):
            array[key]
    restored = pickle.loads(pickle.dumps(array))
    with pytest.raises(SourceChanged):
        restored[...]
    with pytest.raises((MlaError, FileNotFoundError)):
        assert restored.metadata


def test_a_new_array_reads_a_replaced_file(tmp_path: Path) -> None:
    path = write_b2nd(tmp_path / "r.b2nd", random_values((200, 60), "<i4"), chunks=(20, 60))
    old = MlaArray(path)
    old[...]
    replace_file(path)
    assert_same(MlaArray(path)[...], random_values((200, 60), "<i4", 1))
    with pytest.raises(SourceChanged):
        old[...]


TRUNCATED_SCRIPT = """
import os, sys
from mlarray_xr.array import MlaArray
from mlarray_xr.errors import SourceChanged
path = sys.argv[1]
array = MlaArray(path)
array[:1]
os.truncate(path, int(sys.argv[2]))
for _ in range(3):
    try:
        array[...]
    except SourceChanged:
        print("changed")
del array
"""


@pytest.mark.parametrize("size", [0, 4096, 8192])
def test_truncation_under_a_map_is_told_not_a_crash(tmp_path: Path, size: int) -> None:
    path = write_b2nd(tmp_path / "t.b2nd", random_values((200, 60), "<i4"), chunks=(20, 60))
    assert path.stat().st_size > 10_000
    done = run_python(TRUNCATED_SCRIPT, path, size)
    assert (done.returncode, done.stdout.split()) == (0, ["changed"] * 3), done.stderr


def test_open_files_are_bounded(tmp_path: Path) -> None:
    values = random_values((5,), "<i4")
    data = make_frame(values)
    arrays = []
    for i in range(most_open_files() + 20):
        (tmp_path / f"{i}.b2nd").write_bytes(data)
        arrays.append(MlaArray(tmp_path / f"{i}.b2nd"))
    for array in arrays:
        assert_same(array[...], values)
        assert open_readers() <= most_open_files()
    for array in arrays:
        array.close()


MANY_SCRIPT = """
import os, resource, sys
from pathlib import Path
from mlarray_xr.array import MlaArray
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
data, folder = Path(sys.argv[1]).read_bytes(), Path(sys.argv[1]).parent
arrays = []
for i in range(400):
    (folder / f"{i}.b2nd").write_bytes(data)
    arrays.append(MlaArray(folder / f"{i}.b2nd"))
for _ in range(2):
    for array in arrays:
        assert array[...].tolist() == [1, 2, 3]
print(len(os.listdir("/proc/self/fd")) < 200 if os.path.isdir("/proc/self/fd") else True)
"""


def test_more_files_than_descriptors(tmp_path: Path) -> None:
    path = write_b2nd(tmp_path / "first.b2nd", np.array([1, 2, 3], "<i4"))
    done = run_python(MANY_SCRIPT, path)
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr


GATHER_SCRIPT = """
import resource, sys, threading
import numpy as np
from mlarray_xr.array import MlaArray
array = MlaArray(sys.argv[1])
key = eval(sys.argv[2], {"np": np})
array[(slice(0, 1),) * array.ndim]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = array[key]
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
assert not result.any()
print(grown - result.nbytes)
"""


@pytest.mark.parametrize(
    "key",
    [
        "np.s_[::2, ::2, ::2]",
        "np.s_[::-1, 5:900:3, ::7]",
        "np.s_[[0, 999, 500, 3], ::2, ::2]",
        "np.s_[[0, 999], [999, 0], ::2]",
        "np.s_[[0, 60, 0, 60], [0, 60, 60, 0], :]",
        "np.s_[[0, 60], :, [0, 60]]",
        "np.s_[[0, 60], ::100, ::100]",
    ],
)
def test_gathering_takes_little_more_memory_than_its_result(tmp_path: Path, key: str) -> None:
    path = tmp_path / "zeros.b2nd"
    blosc2.zeros((1000,) * 3, dtype="<i2", chunks=(128,) * 3, blocks=(64,) * 3, urlpath=str(path))
    done = run_python(GATHER_SCRIPT, path, key)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 << 20


def test_points_of_one_block_do_not_read_the_whole_range_at_once(tmp_path: Path) -> None:
    path, cube = str(tmp_path / "long.b2nd"), (64, 64, 64)
    blosc2.zeros((64, 64, 50_000), dtype="<f4", chunks=cube, blocks=cube, urlpath=path)
    done = run_python(GATHER_SCRIPT, path, "np.s_[[0, 63], [0, 63], :]")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 << 20


def test_first_reads_at_once_agree_on_which_chunks_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.cumsum(random_values((4000,), "<i4") % 3, dtype="<i4")
    options: dict[str, Any] = {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]}
    path = write_b2nd(tmp_path / "d.b2nd", values, chunks=(500,), blocks=(50,), **options)
    array = MlaArray(path)
    both_decode = threading.Barrier(2)
    finished = threading.Event()
    n_decoded = itertools.count()

    def decode_side_by_side(*arguments: Any, **options: Any) -> Any:
        """Let both threads be inside the decoding of the table, and one of them leave late."""
        turn = next(n_decoded)
        if turn < 2:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_decode.wait(2)
        if turn == 1:
            finished.wait(2)
        return decode_chunk(*arguments, **options)

    def check_then_let_go(*arguments: Any, **options: Any) -> Any:
        result = check_chunks(*arguments, **options)
        finished.set()
        time.sleep(0.2)
        return result

    monkeypatch.setattr(mapped, "decode_chunk", decode_side_by_side)
    monkeypatch.setattr(mapped, "check_chunks", check_then_let_go)
    boxes = [(120, 270), (1620, 1770)]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda box: array.read((box,), threads=1), boxes))
    for (start, stop), out in zip(boxes, found, strict=True):
        assert_same(out, values[start:stop])


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_large_boxes_read_in_pieces_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    monkeypatch.setattr("mlarray_xr.storage.mapped._STAGED_BYTES", 1)
    monkeypatch.setattr("mlarray_xr.storage.mapped._PIECE_BYTES", 1 << 9)
    values = random_values((37, 29, 23), "<i4")
    array = MlaArray(write_b2nd(tmp_path / "p.b2nd", values, chunks=(16, 9, 10), blocks=(5, 4, 3)))
    assert_same(array.read(((0, 37), (0, 29), (0, 23)), threads=threads), values)
    assert_same(array.read(((3, 30), (7, 8), (1, 22)), threads=threads), values[3:30, 7:8, 1:22])
