"""`mode="r+"`: edits in place, after which every reader finds the old array or the new one."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import dask.array as da
import mlarray
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

import mlarray_xr
from mlarray_xr import MlaArray
from mlarray_xr.errors import (
    ChunkError,
    ConversionError,
    SourceChanged,
    SourceError,
)
from mlarray_xr.format.metadata import Spatial, Stats
from mlarray_xr.storage.frame_entries import read_integrity
from mlarray_xr.storage.source import source_of
from tests.frame_kit import sections_of
from tests.strategies import dtypes, filled_boxes, keys, layouts, mixed_shapes, values_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

SHAPE = (20, 18)
VALUES = np.random.default_rng(5).integers(-500, 500, SHAPE, np.int16)
NEW = np.random.default_rng(6).integers(-500, 500, (10, 10), np.int16)
METADATA = mlarray_xr.Metadata(
    source={"name": "someone"},
    spatial=Spatial(spacing=(2.0, 0.5)),
    stats=Stats(max=500.0, mean=0.5),
    has_array=True,
)
BOX = ((5, 15), (4, 14))
SECONDS = 60
CODECS = ["lz4-1", "lz4hc-8", "zstd-1-bitshuffle", "blosclz-5", "zlib-3-none"]


def written(folder: Path, values: Any = VALUES, **options: Any) -> Path:
    given: dict[str, Any] = {"chunks": 8, "blocks": 4, "codec": "lz4-5", "metadata": METADATA}
    mlarray_xr.to_mla(values, folder / "e.mla", **{**given, **options})
    return folder / "e.mla"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path)


def edited(values: NDArray[Any] = VALUES) -> NDArray[Any]:
    """Return what the array is after the edit that most tests here make."""
    result = values.copy()
    result[5:15, 4:14] = NEW
    return result


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def statistics_of(values: NDArray[Any], chunks: tuple[int, ...]) -> list[tuple[Any, Any, int]]:
    """Return smallest, greatest and number of non-zero elements of each chunk, from NumPy."""
    grid = tuple(-(-n // max(c, 1)) for n, c in zip(values.shape, chunks, strict=True))
    found = []
    for position in np.ndindex(*grid):
        box: tuple[Any, ...] = tuple(
            slice(i * c, (i + 1) * c) for i, c in zip(position, chunks, strict=True)
        )
        part = values[(*box, ...)]
        found.append((part.min(), part.max(), int(np.count_nonzero(part))))
    return found


def assert_sound(path: Path, values: NDArray[Any]) -> None:
    """Compare a file with the array that it should hold, by every reader and by its own record."""
    array = MlaArray(path)
    assert (array.dtype, array.shape) == (values.dtype, values.shape)
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(blosc2.open(str(path), mode="r")[...], values)
    np.testing.assert_array_equal(mlarray.MLArray.open(str(path))[...], values)
    assert mlarray_xr.verify(path, decode=True).state == "ok"
    record = read_integrity(source_of(path))
    assert record is not None
    if record.statistics is not None and values.dtype.kind in "biuf":
        columns = record.statistics
        recorded = zip(columns.least, columns.greatest, columns.nonzero.tolist(), strict=True)
        assert list(recorded) == statistics_of(values, array.chunks) * (values.size > 0)


# Whatever is assigned


def chunk_counts(
    box: tuple[tuple[int, int], ...], shape: tuple[int, ...], chunks: tuple[int, ...]
) -> tuple[int, int]:
    """Return how many chunks a box touches, and how many of them it covers."""
    touched = whole = 1
    for (start, stop), n, c in zip(box, shape, chunks, strict=True):
        firsts = [first for first in range(0, n, c or 1) if first < stop and start < first + c]
        touched *= len(firsts)
        whole *= sum(start <= first and min(first + c, n) <= stop for first in firsts)
    return touched, whole


class Editing(RuleBasedStateMachine):
    """Assign to a file and to a NumPy array, and compare what every reader finds."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.last_bytes = 0

    @initialize(data=st.data(), shape=mixed_shapes(), dtype=dtypes())
    def begin(self, data: st.DataObject, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        chunks, blocks = data.draw(layouts(tuple((n + 1) // 2 for n in shape)))
        codec = data.draw(st.sampled_from(CODECS))
        self.values = values_of(shape, dtype, data.draw(st.integers(0, 99)))
        self.path = Path(self._folder.name) / "e.mla"
        options: dict[str, Any] = {"chunks": chunks, "blocks": blocks, "codec": codec}
        mlarray_xr.to_mla(self.values, self.path, **options)
        self.array = MlaArray(self.path, mode="r+")

    @rule(data=st.data(), seed=st.integers(0, 2**16), kind=st.sampled_from(["array", "row", "one"]))
    def assign(self, data: st.DataObject, seed: int, kind: str) -> None:
        key = data.draw(keys(self.values.shape))
        shape = self.values[key].shape
        wanted = {"array": shape, "row": shape[-1:], "one": ()}[kind]
        values: Any = values_of(wanted, self.values.dtype, seed)
        if seed % 5 == 0:
            values = np.zeros_like(values)
        self.values[key] = values
        self.array[key] = values
        self._check()

    @rule(data=st.data(), seed=st.integers(0, 2**16))
    def write_a_box(self, data: st.DataObject, seed: int) -> None:
        shape, chunks = self.values.shape, self.array.chunks
        pairs = data.draw(filled_boxes(shape))
        inside: tuple[Any, ...] = (*(slice(*pair) for pair in pairs), ...)
        new = values_of(self.values[inside].shape, self.values.dtype, seed)
        report = self.array.write(pairs, new)
        self.values[inside] = new
        touched, whole = chunk_counts(pairs, shape, chunks)
        assert (report.n_chunks_rewritten, report.n_chunks_read) == (touched, touched - whole)
        assert report.file_bytes == self.path.stat().st_size
        assert (report.bytes_written > 0) == (touched > 0)
        self._check()

    @rule()
    def open_again(self) -> None:
        self.array.close()
        self.array = MlaArray(self.path, mode="r+")

    @rule()
    def send(self) -> None:
        self.array = pickle.loads(pickle.dumps(self.array))

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        key = data.draw(keys(self.values.shape))
        np.testing.assert_array_equal(self.array[key], self.values[key])

    def _check(self) -> None:
        size = self.path.stat().st_size
        assert size >= self.last_bytes
        self.last_bytes = size
        assert_sound(self.path, self.values)
        assert names_in(self.path.parent) == ["e.mla"]

    def teardown(self) -> None:
        self._folder.cleanup()


def test_the_file_becomes_what_was_assigned() -> None:
    run_state_machine_as_test(Editing, settings=settings(max_examples=60, stateful_step_count=12))


# What an edit costs and what it leaves alone


def test_the_report_says_what_the_edit_cost(path: Path) -> None:
    before, metadata = path.read_bytes(), MlaArray(path).metadata
    array = MlaArray(path, mode="r+")
    report = array.write(BOX, NEW)
    after = path.read_bytes()
    assert (report.n_chunks_rewritten, report.n_chunks_read) == (4, 4)
    assert (report.file_bytes, report.bytes_written) == (len(after), len(after) - len(before) + 31)
    # But for 31 bytes of the header all stays where it is, byte for byte.
    assert after[: len(before)] == before[:16] + after[16:47] + before[47:]
    assert metadata.stats.max == 500.0
    assert array.metadata == replace(metadata, stats=Stats())
    record = read_integrity(source_of(path))
    assert record is not None
    payload_bytes = len(sections_of(after).payload)
    assert report.wasted_bytes == payload_bytes - int(record.length.sum())
    again = array.write(((0, 16), (0, 12)), 7)
    assert (again.n_chunks_rewritten, again.n_chunks_read) == (4, 2)
    assert again.wasted_bytes > report.wasted_bytes
    mlarray_xr.to_mla(array, path, mode="w", chunks=8, blocks=4, codec="lz4-5")
    assert path.stat().st_size < len(after)
    assert MlaArray(path, mode="r+").write(BOX, 0).wasted_bytes < again.wasted_bytes


def test_an_edit_of_nothing_writes_nothing(path: Path) -> None:
    before, array = path.stat(), MlaArray(path, mode="r+")
    report = array.write(((3, 3), (0, 5)), 7)
    assert (report.bytes_written, report.n_chunks_rewritten) == (0, 0)
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)
    assert array.metadata.stats == METADATA.stats


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_chunks_become_nan_and_numbers_again(tmp_path: Path, dtype: str) -> None:
    values = np.arange(20, dtype=dtype)
    path = written(tmp_path, values, metadata=None)
    array = MlaArray(path, mode="r+")
    for key, new in ((slice(None), np.nan), (slice(3, 10), 1), (slice(8, 16), np.inf), (9, np.nan)):
        array[key] = new
        values[key] = new
        np.testing.assert_array_equal(MlaArray(path)[...], values)
        np.testing.assert_array_equal(blosc2.open(str(path), mode="r")[...], values)
        assert mlarray_xr.verify(path, decode=True).state == "ok"


def test_a_link_is_followed(path: Path) -> None:
    link = path.with_name("link.mla")
    link.symlink_to(path.name)
    MlaArray(link, mode="r+").write(BOX, NEW)
    assert link.is_symlink()
    assert_sound(path, edited())
    assert names_in(path.parent) == ["e.mla", "link.mla"]


def test_values_may_be_computed_from_the_array_itself(path: Path) -> None:
    array = MlaArray(path, mode="r+")
    array[...] = da.from_array(array, chunks=5) * 2
    array[...] = array
    expected = VALUES * 2
    assert_sound(path, expected)


# Files of others


OTHERS = sorted(
    path
    for folder in (Path(__file__).parent / "data" / "mla").iterdir()
    for path in folder.iterdir()
    if path.suffix in (".mla", ".mb2nd", ".b2nd") and path.with_suffix(".npy").exists()
)


@pytest.mark.parametrize("original", OTHERS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_files_of_other_writers_are_edited(original: Path, tmp_path: Path) -> None:
    path, values = tmp_path / original.name, np.load(original.with_suffix(".npy"))
    path.write_bytes(original.read_bytes())
    metadata = MlaArray(path).metadata
    array = MlaArray(path, mode="r+")
    key = (..., slice(1, 3))
    new = np.ones((), values.dtype)
    values[key] = new
    array[key] = new
    np.testing.assert_array_equal(MlaArray(path)[...], values)
    np.testing.assert_array_equal(blosc2.open(str(path), mode="r")[...], values)
    assert repr(array.metadata) in map(repr, (metadata, replace(metadata, stats=Stats())))
    assert mlarray_xr.verify(path).state == "unknown"
    if original.parent.name.startswith("0.0.54"):
        np.testing.assert_array_equal(mlarray.MLArray.open(str(path))[...], values)


def test_chunks_of_other_programs_stay_unproved(path: Path) -> None:
    values = VALUES.copy()
    for i, key in enumerate([(slice(0, 9), slice(0, 9)), (slice(0, 2), slice(0, 2))]):
        theirs = blosc2.open(str(path), mode="a")
        theirs[0:12, 8:18] = np.full((12, 10), i)
        values[0:12, 8:18] = i
        del theirs
        assert mlarray_xr.verify(path).state == "unknown"
        MlaArray(path, mode="r+")[key] = 77
        values[key] = 77
        np.testing.assert_array_equal(MlaArray(path)[...], values)
        np.testing.assert_array_equal(blosc2.open(str(path), mode="r")[...], values)
        assert mlarray_xr.verify(path).state == "unknown"


@pytest.mark.parametrize(
    "cparams",
    [
        {"filters": [blosc2.Filter.DELTA], "filters_meta": [0]},
        {"codec": blosc2.Codec.LZ4, "filters": [blosc2.Filter.NDCELL], "filters_meta": [4]},
    ],
)
def test_what_cannot_be_compressed_alike_is_refused(
    tmp_path: Path, cparams: dict[str, Any]
) -> None:
    path = tmp_path / "d.b2nd"
    blosc2.asarray(VALUES, chunks=(8, 8), blocks=(4, 4), cparams=cparams, urlpath=str(path))
    before = path.read_bytes()
    with pytest.raises(ConversionError, match=r"no chunks are made here.*mode='w'"):
        MlaArray(path, mode="r+")[0] = 1
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["d.b2nd"]


def test_around_a_damaged_chunk_nothing_is_invented(path: Path) -> None:
    data, record = bytearray(path.read_bytes()), read_integrity(source_of(path))
    assert record is not None
    data[len(sections_of(bytes(data)).header) + 40] ^= 1
    path.write_bytes(data)
    array, other = MlaArray(path, mode="r+"), MlaArray(path)
    with pytest.raises(ChunkError, match=r"chunk 0 .*write all of its box"):
        array[:, :4] = 1
    assert path.read_bytes() == data
    array[:8, :8] = 1
    with pytest.raises(SourceChanged):
        other[0]
    expected = VALUES.copy()
    expected[:8, :8] = 1
    assert_sound(path, expected)


# What is refused


def test_errors_say_what_to_do(path: Path) -> None:
    before = path.read_bytes()
    reading, array = MlaArray(path), MlaArray(path, mode="r+")
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: reading.__setitem__(0, 1), TypeError, r"opened for reading.*mode='r\+'"),
        (lambda: reading.write(BOX, NEW), TypeError, r"opened for reading.*mode='r\+'"),
        (lambda: MlaArray(path, mode="w"), ValueError, r"mode='w' is not 'r'"),  # type: ignore[arg-type]
        (lambda: MlaArray(before, mode="r+"), SourceError, "bytes in memory are not edited"),
        (lambda: MlaArray("gopher://a/b.mla", mode="r+"), SourceError, "gopher"),
        (lambda: MlaArray(path.parent, mode="r+"), SourceError, "a directory"),
        (lambda: array.__setitem__(0, 1 << 20), ConversionError, "do not fit int16"),
        (lambda: array.__setitem__(0, 1.5), ConversionError, r"astype\('<i2'\)"),
        (lambda: array.__setitem__(0, np.zeros(3, "i2")), ValueError, "do not broadcast"),
        (lambda: array.__setitem__(([0, 1], [0, 1]), 0), IndexError, "single points"),
        (lambda: array.__setitem__(20, 0), IndexError, "out of bounds"),
        (lambda: array.write(((0, 21), (0, 1)), 0), IndexError, "21"),
        (lambda: array.write(BOX, np.ma.masked_array(NEW, True)), ConversionError, "mask"),
    ]
    for action, error, message in cases:
        with pytest.raises(error, match=message):
            action()
    assert path.read_bytes() == before
    np.testing.assert_array_equal(array[...], VALUES)
    array.write(BOX, NEW)
    with pytest.raises(SourceChanged, match="Open it again"):
        reading[0]
    path.write_bytes(before)
    with pytest.raises(SourceChanged, match="Open it again"):
        array.write(BOX, NEW)
    assert names_in(path.parent) == ["e.mla"]


AS_NOBODY = """
import os, sys
from mlarray_xr import MlaArray
MlaArray(sys.argv[2], mode="r+")[0] = 5  # imports everything, which nobody may not
if os.geteuid() == 0:
    os.seteuid(65534)
array = MlaArray(sys.argv[1], mode="r+")
for number in (1, 2):
    try:
        array[0] = number
        print("done")
    except PermissionError as error:
        print("refused")
"""


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no users on this system")
@pytest.mark.parametrize("read_only", ["file", "folder", "nothing"])
def test_permissions(path: Path, read_only: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "e.mla"
        target.write_bytes(path.read_bytes())
        target.chmod(0o444 if read_only == "file" else 0o666)
        folder.chmod(0o555 if read_only == "folder" else 0o777)
        command = [sys.executable, "-c", AS_NOBODY, str(target), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        word = "done" if read_only == "nothing" else "refused"
        assert done.stdout.split() == [word] * 2, done.stderr
        assert names_in(folder) == ["e.mla"]
        folder.chmod(0o777)
        expected = VALUES.copy()
        if read_only == "nothing":
            expected[0] = 2
        assert_sound(target, expected)
