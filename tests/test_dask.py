"""`from_mla`: what Dask reads is what NumPy holds, lazily, and under one name everywhere."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
import tracemalloc
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.dask import from_mla
from mlarray_xr.planning.codec import DEFAULT_CODEC
from mlarray_xr.planning.grid import box_shape
from mlarray_xr.planning.layout import Layout
from mlarray_xr.storage.assembly import FrameWriter
from mlarray_xr.storage.encode import EncodedChunk, FramePlan
from mlarray_xr.storage.mapped import MappedReader
from tests.strategies import stored

if TYPE_CHECKING:
    from pathlib import Path

    from distributed import Client
    from numpy.typing import NDArray

    from tests.strategies import Stored

SHAPE = (30, 26, 22)
CHUNKS = (8, 10, 22)
BLOCKS = (4, 5, 11)
VALUES = np.random.default_rng(1).integers(0, 1000, SHAPE, np.uint16)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.mla"
    mlarray_xr.to_mla(VALUES, path, chunks=CHUNKS, blocks=BLOCKS)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Boxes that were decoded."""
    boxes: list[Any] = []
    read = MappedReader.read

    def counted(self: MappedReader, box: Any, out: NDArray[Any], *, threads: int | None) -> None:
        boxes.append(box)
        read(self, box, out, threads=threads)

    monkeypatch.setattr(MappedReader, "read", counted)
    return boxes


def sparse(path: Path, *, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> None:
    """Write a file of zeros without making them."""
    plan = FramePlan(
        shape=shape,
        dtype_str=np.dtype(dtype).str,
        layout=Layout(chunks=chunks, blocks=tuple(min(n, 32) for n in chunks)),
        codec=DEFAULT_CODEC,
    )
    small = path.with_name("small.mla")
    mlarray_xr.to_mla(np.zeros(1, "u1"), small, mode="w")
    metadata = mlarray_xr.MlaArray(small).metadata
    from mlarray_xr.format.metadata_codec import encode_metadata

    entries = np.zeros(plan.n_chunks, plan.entry_dtype)
    entries["number"], entries["special"] = np.arange(plan.n_chunks), 1
    with path.open("x+b") as file:
        writer = FrameWriter(file, plan=plan, metadata=encode_metadata(metadata), n_parts=1)
        writer.append(EncodedChunk(entry=entry, data=b"") for entry in entries[:, None])
        writer.finish()


FORMS: dict[str, tuple[Any, Any]] = {
    "default": ("auto", ((30,), (26,), (22,))),
    "file": ("file", ((8, 8, 8, 6), (10, 10, 6), (22,))),
    "int": (16, ((16, 14), (16, 10), (16, 6))),
    "tuple": ((16, 10, 22), ((16, 14), (10, 10, 6), (22,))),
    "nested": (((10, 20), (26,), (11, 11)), ((10, 20), (26,), (11, 11))),
    "mapping": ({0: 8}, ((8, 8, 8, 6), (26,), (22,))),
    "whole": (-1, ((30,), (26,), (22,))),
}


@pytest.mark.parametrize(("chunks", "expected"), FORMS.values(), ids=list(FORMS))
def test_every_form_of_chunks(volume: Path, chunks: Any, expected: Any) -> None:
    array = from_mla(volume, chunks=chunks)
    assert array.chunks == expected
    assert (array.shape, array.dtype) == (SHAPE, np.uint16)
    assert isinstance(array._meta, np.ndarray)
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), VALUES)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_equals_numpy_under_every_scheduler(volume: Path, scheduler: str) -> None:
    array = from_mla(volume, chunks="file")
    with dask.config.set(scheduler=scheduler, num_workers=2):
        np.testing.assert_array_equal(array.compute(), VALUES)
        np.testing.assert_array_equal(
            array[::-2, 3, [5, 1, 1]].compute(), VALUES[::-2, 3][:, [5, 1, 1]]
        )
        assert int(array.sum().compute()) == int(VALUES.sum())


def test_equals_numpy_on_a_cluster(volume: Path, cluster: Client) -> None:
    array = from_mla(volume, chunks="file")
    np.testing.assert_array_equal(array.compute(), VALUES)
    assert int((array + 1).max().compute()) == int(VALUES.max()) + 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=stored(min_dims=1), inline=st.booleans(), chunks=st.sampled_from(["auto", "file", -1])
)
def test_any_array_equals_numpy(content: Stored, inline: bool, chunks: Any, tmp_path: Path) -> None:
    path = tmp_path / "any.mla"
    mlarray_xr.to_mla(content.values, path, chunks=content.chunks, blocks=content.blocks, mode="w")
    array = from_mla(path, chunks=chunks, inline_array=inline)
    actual = array.compute(scheduler="synchronous")
    assert actual.dtype == content.values.dtype
    np.testing.assert_array_equal(actual, content.values)


def test_an_array_without_axes(tmp_path: Path) -> None:
    path = tmp_path / "scalar.mla"
    mlarray_xr.to_mla(np.float32(2.5), path)
    for chunks in ("auto", "file", -1):
        array = from_mla(path, chunks=chunks)
        assert (array.shape, array.dtype, float(array.compute())) == ((), np.float32, 2.5)


def test_accepts_an_open_array_and_bytes(volume: Path) -> None:
    for address in (mlarray_xr.MlaArray(volume), volume.read_bytes(), str(volume)):
        np.testing.assert_array_equal(from_mla(address, chunks="file")[3:9].compute(), VALUES[3:9])


def test_wrong_chunks_are_refused(volume: Path) -> None:
    with pytest.raises(ValueError, match=r"[Cc]hunks"):
        from_mla(volume, chunks=((10, 10), (26,), (22,)))
    with pytest.raises(FileNotFoundError, match=r"missing\.mla"):
        from_mla(volume.with_name("missing.mla"))


def test_the_name_is_deterministic_and_changes_with_the_file(volume: Path) -> None:
    name = from_mla(volume).name
    assert from_mla(str(volume)).name == name
    code = "import sys; from mlarray_xr.dask import from_mla; print(from_mla(sys.argv[1]).name)"
    other = subprocess.run(
        [sys.executable, "-c", code, str(volume)], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == name
    assert from_mla(volume, chunks="file").name != name
    mlarray_xr.to_mla(VALUES + 1, volume, mode="w")
    assert from_mla(volume).name != name


def test_building_a_graph_reads_no_voxel(volume: Path, reads: list[Any]) -> None:
    array = from_mla(volume, chunks="file")
    graph = (array[2:20, ::3].astype("f4") * 2).mean(axis=0).rechunk(5)
    pickle.loads(pickle.dumps(graph))
    assert reads == []
    graph.compute(scheduler="synchronous")
    assert reads != []


def test_slicing_decodes_only_what_is_needed(volume: Path, reads: list[Any]) -> None:
    array = from_mla(volume, chunks="file")
    expected = VALUES[9, 12:15, 1:21:2]
    np.testing.assert_array_equal(array[9, 12:15, 1:21:2].compute(scheduler="threads"), expected)
    assert len(reads) == 1
    assert math.prod(box_shape(reads[0])) <= 1 * 3 * 20


@pytest.mark.parametrize("inline", [True, False])
def test_graphs_pickle_small(volume: Path, inline: bool) -> None:
    array = from_mla(volume, chunks="file", inline_array=inline)
    assert array.npartitions == 12
    assert len(pickle.dumps(array)) < 20_000
    one_task = pickle.dumps(mlarray_xr.MlaArray(volume))
    assert len(one_task) < 2_000


def test_chunk_size_of_the_configuration_is_honoured(tmp_path: Path) -> None:
    path = tmp_path / "zeros.mla"
    sparse(path, shape=(640, 640, 640), chunks=(64, 64, 64), dtype="u2")
    for text, nbytes in (("1MiB", 2**20), ("8MiB", 8 * 2**20)):
        with dask.config.set({"array.chunk-size": text}):
            for array in (from_mla(path), xr.open_dataset(path, chunks={})["image"].data):
                assert math.prod(array.chunksize) * 2 <= nbytes
                assert math.prod(array.chunksize) * 2 > nbytes // 3
                assert_whole_chunks(array.chunks, (64, 64, 64))


def assert_whole_chunks(parts: Any, chunks: tuple[int, ...]) -> None:
    for extents, chunk in zip(parts, chunks, strict=True):
        assert all(border % chunk == 0 for border in itertools.accumulate(extents[:-1]))


def test_half_a_terabyte_opens_in_few_tasks_and_no_memory(tmp_path: Path, reads: list[Any]) -> None:
    path = tmp_path / "huge.mla"
    sparse(path, shape=(8192, 8192, 8192), chunks=(256, 256, 256), dtype="u1")
    assert path.stat().st_size < 1_000_000
    reads.clear()  # writing reads samples back
    tracemalloc.start()
    opened = xr.open_dataset(path, chunks={})["image"].data
    arrays = [opened, from_mla(path)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 * 2**20
    assert reads == []
    for array in arrays:
        assert array.npartitions <= 5000
        assert_whole_chunks(array.chunks, (256, 256, 256))
    corner = opened[8190:, 4000, :3].compute()
    np.testing.assert_array_equal(corner, np.zeros((2, 3), "u1"))
    assert sum(math.prod(box_shape(box)) for box in reads) == 6


def test_the_module_does_not_shadow_dask() -> None:
    code = (
        "import mlarray_xr.dask, dask, dask.array; "
        "assert hasattr(dask, 'compute') and mlarray_xr.dask is not dask; "
        "assert dask.array.ones(3).sum().compute() == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arithmetic_between_a_file_and_a_dask_array(volume: Path) -> None:
    other = da.arange(22, chunks=5)
    np.testing.assert_array_equal((from_mla(volume) + other).compute(), VALUES + np.arange(22))
