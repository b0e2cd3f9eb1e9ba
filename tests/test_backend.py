"""The xarray engine: opening, chunks, laziness, identity, and all that xarray asks of one."""

from __future__ import annotations

import asyncio
import copy
import inspect
import io
import itertools
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import mlarray
import numpy as np
import pytest
import xarray as xr
from dask.base import is_dask_collection
from xarray.core import indexing

import mlarray_xr
from mlarray_xr.backend import MlaBackendEntrypoint
from mlarray_xr.errors import FormatError, SourceChanged, SourceError
from mlarray_xr.storage import handles
from mlarray_xr.storage.handles import open_readers
from mlarray_xr.storage.mapped import MappedReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

VALUES = np.random.default_rng(3).integers(0, 500, (20, 18, 16), np.int16)
CHUNKS = (8, 6, 16)


def write(path: Path, values: NDArray[Any] = VALUES, **kwargs: Any) -> Path:
    coords = {"z": 2.5 * np.arange(20), "y": 0.5 * np.arange(18), "x": 0.5 * np.arange(16)}
    array = xr.DataArray(values, dims=("z", "y", "x"), coords=coords, attrs={"units": "HU"})
    keywords: dict[str, Any] = {"chunks": CHUNKS, "blocks": (4, 3, 8), **kwargs}
    mlarray_xr.to_mla(array, path, **keywords)
    return path


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write(tmp_path / "volume.mla")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Boxes that were decoded in this process."""
    boxes: list[Any] = []
    read = MappedReader.read

    def counted(self: MappedReader, box: Any, out: NDArray[Any], *, threads: int | None) -> None:
        boxes.append(box)
        read(self, box, out, threads=threads)

    monkeypatch.setattr(MappedReader, "read", counted)
    return boxes


def open_volume(path: Any, **kwargs: Any) -> xr.Dataset:
    return xr.open_dataset(path, engine="mlarray", **kwargs)


# The engine


def test_the_engine_is_registered_and_described() -> None:
    engine = xr.backends.list_engines()["mlarray"]
    assert type(engine).__name__ == MlaBackendEntrypoint.__name__
    assert "MLArray" in engine.description
    assert engine.url.startswith("https://")


@pytest.mark.parametrize("name", ["open_dataset", "open_groups_as_dict", "open_datatree"])
def test_declared_parameters_are_those_of_the_signature(name: str) -> None:
    parameters = inspect.signature(getattr(MlaBackendEntrypoint, name)).parameters
    assert MlaBackendEntrypoint.open_dataset_parameters == tuple(parameters)[1:]
    own = list(parameters.values())[2:]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in own)


class PathLike:
    def __init__(self, path: str | bytes) -> None:
        self._path = path

    def __fspath__(self) -> Any:
        return self._path


GUESSES: list[tuple[Any, bool]] = [
    ("a.mla", True),
    ("/none/a.MLA", True),
    ("old.mb2nd", True),
    ("s3://bucket/a.mla", True),
    (Path("a.mla"), True),
    (PathLike("a.mla"), True),
    (PathLike(b"a.mla"), True),
    ("a\udcff.mla", True),
    ("a\0.mla", True),
    ("a.mla/", False),
    ("a.mla.gz", False),
    ("a.b2nd", False),
    ("a.nc", False),
    ("", False),
    (".", False),
    (b"a.mla", False),
    (memoryview(b"a.mla"), False),
    (io.BytesIO(b"a.mla"), False),
    (3, False),
    (None, False),
    (["a.mla"], False),
    (object(), False),
]


@pytest.mark.parametrize(("address", "expected"), GUESSES, ids=repr)
def test_guessing_goes_by_the_name_alone(
    address: Any, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untouched(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(args)

    with monkeypatch.context() as patch:
        for name in ("stat", "open"):
            patch.setattr(os, name, untouched)
        patch.setattr("builtins.open", untouched)
        guess = MlaBackendEntrypoint().guess_can_open(address)
    assert guess is expected


def test_files_open_without_naming_the_engine(volume: Path) -> None:
    for address in (volume, str(volume)):
        with xr.open_dataset(address) as dataset:
            np.testing.assert_array_equal(dataset["image"], VALUES)


def test_unknown_keywords_are_refused(volume: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'patch'"):
        open_volume(volume, patch=64)
    with pytest.raises(TypeError, match="unexpected keyword argument 'concat_characters'"):
        open_volume(volume, concat_characters=False)


@pytest.mark.parametrize(
    "keywords",
    [
        {"decode_cf": False},
        {"decode_cf": True},
        {"decode_times": False, "decode_timedelta": False},
        {"mask_and_scale": False, "decode_coords": "all"},
    ],
    ids=str,
)
def test_decoding_keywords_change_nothing(volume: Path, keywords: Any) -> None:
    xr.testing.assert_identical(open_volume(volume, **keywords), open_volume(volume))


# Addresses


def test_every_kind_of_address(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(volume.parent))
    monkeypatch.chdir(volume.parent)
    expected = open_volume(volume).load()
    data = volume.read_bytes()
    with volume.open("rb") as file:
        file.read(7)
        addresses: list[Any] = [
            str(volume),
            PathLike(str(volume)),
            "~/volume.mla",
            "volume.mla",
            Path("volume.mla"),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
        ]
        opened = [open_volume(address) for address in addresses]
    monkeypatch.chdir("/")
    for dataset in opened:
        xr.testing.assert_identical(dataset.load(), expected)


def test_what_is_not_there_or_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.mla"):
        open_volume(tmp_path / "none.mla")
    with pytest.raises(SourceError, match="a directory"):
        open_volume(tmp_path)
    with pytest.raises(SourceError, match="knows no protocol 'gopher'"):
        open_volume("gopher://example.org/a.mla")
    with pytest.raises(TypeError, match="got int"):
        open_volume(3)
    with pytest.raises(FormatError, match="bytes in memory"):
        open_volume(b"")
    (tmp_path / "text.mla").write_text("no frame")
    with pytest.raises(FormatError, match=r"text\.mla"):
        xr.open_dataset(tmp_path / "text.mla")


# The functions of xarray


def test_open_and_load_functions(volume: Path) -> None:
    dataset = open_volume(volume)
    assert list(dataset.data_vars) == ["image"]
    assert dataset["image"].attrs["units"] == "HU"
    array = xr.open_dataarray(volume, engine="mlarray")
    assert (array.name, array.dims) == ("image", ("z", "y", "x"))
    assert array.dtype == np.dtype("i2")
    np.testing.assert_allclose(array["z"], 2.5 * np.arange(20))
    for loaded in (xr.load_dataset(volume)["image"], xr.load_dataarray(volume)):
        assert loaded.variable._in_memory
        np.testing.assert_array_equal(loaded, VALUES)


def test_trees_and_groups(volume: Path) -> None:
    expected = open_volume(volume)
    tree = xr.open_datatree(volume, engine="mlarray", chunks={})
    xr.testing.assert_identical(tree.to_dataset().compute(), expected.compute())
    tree.close()
    groups = xr.open_groups(volume, engine="mlarray", variable="ct")
    assert list(groups) == ["/"]
    np.testing.assert_array_equal(groups["/"]["ct"], VALUES)


def cohort(folder: Path) -> list[Path]:
    return [write(folder / f"case{i}.mla", VALUES + np.int16(i)) for i in range(3)]


@pytest.mark.parametrize("parallel", [False, True])
def test_many_files_nested(tmp_path: Path, parallel: bool) -> None:
    paths = cohort(tmp_path)
    for files in (paths, str(tmp_path / "*.mla")):
        with xr.open_mfdataset(
            files,
            engine="mlarray",
            combine="nested",
            concat_dim="case",
            join="exact",
            parallel=parallel,
        ) as dataset:
            assert dataset["image"].dims == ("case", "z", "y", "x")
            assert is_dask_collection(dataset["image"])
            expected = np.stack([VALUES + i for i in range(3)])
            np.testing.assert_array_equal(dataset["image"], expected)


@pytest.mark.parametrize("parallel", [False, True])
def test_many_files_by_coords(tmp_path: Path, parallel: bool) -> None:
    paths = cohort(tmp_path)

    def named(dataset: xr.Dataset) -> xr.Dataset:
        return dataset.expand_dims(case=[Path(dataset.encoding["source"]).stem])

    with xr.open_mfdataset(paths, preprocess=named, join="exact", parallel=parallel) as dataset:
        assert list(dataset["case"].values) == ["case0", "case1", "case2"]
        np.testing.assert_array_equal(dataset["image"].sel(case="case2"), VALUES + 2)


def test_open_mla_is_the_same(volume: Path, tmp_path: Path) -> None:
    expected = open_volume(volume)["image"]
    array = mlarray_xr.open_mla(volume)
    assert not array.variable._in_memory
    xr.testing.assert_identical(array, expected)
    renamed = mlarray_xr.open_mla(str(volume), chunks={}, variable="ct")
    assert renamed.name == "ct"
    assert renamed.chunks is not None
    array.close()


# Variables


def test_names_and_dropping(volume: Path) -> None:
    assert list(open_volume(volume, variable="ct").data_vars) == ["ct"]
    assert "y" not in open_volume(volume, drop_variables=["y", "absent"]).coords
    assert "z" not in open_volume(volume, drop_variables="z").coords
    assert list(open_volume(volume, drop_variables="image").data_vars) == []
    with pytest.raises(ValueError, match=r"variable='z' is the name of a dimension"):
        open_volume(volume, variable="z")


def test_a_segmentation_is_called_labels(tmp_path: Path) -> None:
    path = tmp_path / "seg.mla"
    meta = mlarray.Meta(is_seg=mlarray.MetaIsSeg(True))
    mlarray.MLArray(np.ones((4, 5, 6), "u1"), meta=meta).save(str(path))
    assert xr.open_dataarray(path).name == "labels"
    assert mlarray_xr.open_mla(path).name == "labels"


def test_a_file_of_metadata_only_has_no_variables() -> None:
    path = Path(__file__).parent / "data" / "mla" / "0.0.54" / "meta_only_spatial.mla"
    dataset = open_volume(path)
    assert list(dataset.variables) == []
    with pytest.raises(FormatError, match="metadata only"):
        mlarray_xr.open_mla(path)


# Chunks


def borders(extents: tuple[int, ...]) -> list[int]:
    return list(itertools.accumulate(extents))[:-1]


def assert_whole_file_chunks(array: xr.DataArray, chunks: tuple[int, ...] = CHUNKS) -> None:
    assert array.chunks is not None
    for extents, chunk in zip(array.chunks, chunks, strict=True):
        assert [border % chunk for border in borders(extents)] == [0] * (len(extents) - 1)


def test_no_chunks_no_dask(volume: Path) -> None:
    array = open_volume(volume)["image"]
    assert array.chunks is None
    assert set(array.encoding) >= {"preferred_chunks", "chunks", "blocks"}
    assert (array.encoding["chunks"], array.encoding["blocks"]) == (CHUNKS, (4, 3, 8))


@pytest.mark.parametrize("size", ["1B", "6kB", "100kB", "128MiB"])
@pytest.mark.parametrize("chunks", [{}, {"z": None}])
def test_preferred_chunks_are_whole_file_chunks(volume: Path, size: str, chunks: Any) -> None:
    with dask.config.set({"array.chunk-size": size}):
        array = open_volume(volume, chunks=chunks)["image"]
    preferred = array.encoding["preferred_chunks"]
    assert list(preferred) == ["z", "y", "x"]
    assert_whole_file_chunks(array)
    assert array.data.chunksize == tuple(preferred.values())
    np.testing.assert_array_equal(array.compute(scheduler="synchronous"), VALUES)


@pytest.mark.parametrize("size", ["6kB", "128MiB"])
def test_auto_chunks_do_not_split_file_chunks(volume: Path, size: str) -> None:
    with dask.config.set({"array.chunk-size": size}):
        assert_whole_file_chunks(open_volume(volume, chunks="auto")["image"])


def test_other_forms_of_chunks(volume: Path) -> None:
    with dask.config.set({"array.chunk-size": "6kB"}):
        assert open_volume(volume, chunks=-1)["image"].chunks == ((20,), (18,), (16,))
        multiple = open_volume(volume, chunks={"z": 16})["image"]
        assert multiple.chunks == ((16, 4), (18,), (16,))
        for chunks in (10, {"z": 10}):
            with pytest.warns(UserWarning, match="separate the stored chunks"):
                split = open_volume(volume, chunks=chunks)["image"]
            np.testing.assert_array_equal(split.compute(scheduler="synchronous"), VALUES)


def test_parts_below_a_file_chunk_are_never_preferred(tmp_path: Path) -> None:
    path = write(tmp_path / "one.mla", chunks=(20, 18, 16))
    with dask.config.set({"array.chunk-size": "1kB"}):
        assert open_volume(path, chunks={})["image"].data.npartitions == 1


def test_inline_arrays_have_no_root_task(volume: Path) -> None:
    with dask.config.set({"array.chunk-size": "6kB"}):
        shared = open_volume(volume, chunks={})["image"]
        inline = open_volume(volume, chunks={}, inline_array=True)["image"]
    assert len(inline.data.dask) == len(shared.data.dask) - 1
    np.testing.assert_array_equal(inline.compute(scheduler="synchronous"), VALUES)


# Laziness


def test_opening_and_indexing_read_nothing(volume: Path, reads: list[Any]) -> None:
    dataset = open_volume(volume)
    points = xr.DataArray([1, 5, 9], dims="points")
    chain = dataset["image"][::-2].isel(y=[3, 1, 1]).transpose("x", "y", "z")
    steps = [chain, chain.isel(x=points, z=points), chain.isel(y=0)[2:4], chain[:0]]
    assert "image" in repr(dataset)
    assert "image" in dataset._repr_html_()
    for array in (dataset["image"], *steps):
        assert not array.variable._in_memory
    assert reads == []
    expected = VALUES[::-2][:, [3, 1, 1]].transpose(2, 1, 0)
    np.testing.assert_array_equal(steps[0], expected)
    np.testing.assert_array_equal(steps[1], expected[[1, 5, 9], :, [1, 5, 9]])
    np.testing.assert_array_equal(steps[2], expected[2:4, 0])
    assert reads != []


def test_a_plane_reads_a_plane(volume: Path, reads: list[Any]) -> None:
    plane = open_volume(volume)["image"].isel(z=5)
    np.testing.assert_array_equal(plane, VALUES[5])
    assert reads == [((5, 6), (0, 18), (0, 16))]


@pytest.mark.parametrize("step", [-1, -2, 3])
def test_empty_slices_of_strided_arrays(volume: Path, step: int, reads: list[Any]) -> None:
    array = open_volume(volume)["image"][::step]
    for empty in (array[0:0], array[5:2], array[0:0, 3], array[0:0].transpose()):
        assert empty.values.size == 0
        assert empty.dtype == np.int16
    assert array[0:0].shape == (0, 18, 16)
    assert reads == []


def test_loaded_values_are_cached_and_writable(volume: Path, reads: list[Any]) -> None:
    dataset = open_volume(volume)
    assert isinstance(dataset["image"].variable._data, indexing.MemoryCachedArray)
    dataset["image"][3].load()
    assert not dataset["image"].variable._in_memory
    dataset["image"].load()
    count = len(reads)
    assert dataset["image"].values[0, 0, 0] == VALUES[0, 0, 0]
    dataset["image"].values[0, 0, 0] = -7
    assert int(dataset["image"][0, 0, 0]) == -7
    assert len(reads) == count
    assert int(open_volume(volume)["image"][0, 0, 0]) == VALUES[0, 0, 0]
    fresh = open_volume(volume, cache=False)["image"]
    assert fresh.values is not fresh.values
    assert not fresh.variable._in_memory


@pytest.mark.parametrize(
    "selection",
    [
        lambda a: a.transpose("x", "z", "y"),
        lambda a: a.isel(z=xr.DataArray([0, 1], dims="p"), y=xr.DataArray([0, 1], dims="p")),
        lambda a: a.isel(z=xr.DataArray([[0], [1]], dims=("p", "q"))),
        lambda a: a.isel(y=[1, 1]),
    ],
)
def test_results_of_every_kind_of_selection_are_writable(
    volume: Path, selection: Callable[[xr.DataArray], xr.DataArray]
) -> None:
    loaded = selection(open_volume(volume)["image"]).load()
    loaded.values[...] = -1
    assert (loaded == -1).all()


async def test_loading_asynchronously(volume: Path) -> None:
    one, other = open_volume(volume), open_volume(volume, cache=False)
    await asyncio.gather(one.load_async(), other["image"][::-1].load_async())
    assert one["image"].variable._in_memory
    np.testing.assert_array_equal(one["image"], VALUES)
    crop = await open_volume(volume)["image"].isel(z=[1, 0]).load_async()
    np.testing.assert_array_equal(crop, VALUES[[1, 0]])


def test_eight_threads_read_one_dataset(volume: Path) -> None:
    dataset = open_volume(volume, cache=False)

    def read(number: int) -> bool:
        z = number % 20
        crop = dataset["image"].isel(z=slice(z, None, -1), y=[number % 18, 0]).values
        return bool((crop == VALUES[z::-1][:, [number % 18, 0]]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


# Handles, copies and identity


def test_closing_releases_and_reading_reopens(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handles, "_open", OrderedDict())
    dataset = open_volume(volume, cache=False)
    np.testing.assert_array_equal(dataset["image"][0], VALUES[0])
    assert open_readers() == 1
    dataset.close()
    dataset.close()
    assert open_readers() == 0
    np.testing.assert_array_equal(dataset["image"][1], VALUES[1])
    assert open_readers() == 1
    with open_volume(volume) as other:
        np.testing.assert_array_equal(other["image"], VALUES)
    assert open_readers() == 0


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_stay_lazy(volume: Path, duplicate: Any, reads: list[Any]) -> None:
    dataset = open_volume(volume)
    twin = duplicate(dataset)
    assert not twin["image"].variable._in_memory
    assert reads == []
    xr.testing.assert_identical(twin, dataset)
    assert reads != []
    xr.testing.assert_identical(duplicate(dataset.load()), twin)


def test_pickles_are_addresses(volume: Path) -> None:
    assert len(pickle.dumps(open_volume(volume))) < 10_000
    assert len(pickle.dumps(open_volume(volume, chunks={}))) < 10_000
    with dask.config.set({"array.chunk-size": "1B"}):
        assert len(pickle.dumps(open_volume(volume, chunks={}))) < 10_000
    assert len(pickle.dumps(open_volume(volume).load())) > VALUES.nbytes


NAMES = """
import sys, xarray as xr
print(xr.open_dataset(sys.argv[1], chunks={})["image"].data.name)
print(xr.open_dataset(sys.argv[1])["image"].chunk({"z": 8}).data.name)
"""


def names_of(path: Path) -> list[str]:
    return [
        xr.open_dataset(str(path), chunks={})["image"].data.name,
        xr.open_dataset(str(path))["image"].chunk({"z": 8}).data.name,
    ]


def test_names_are_the_same_everywhere_until_the_file_is_rewritten(volume: Path) -> None:
    names = names_of(volume)
    assert names_of(volume) == names
    other = subprocess.run(
        [sys.executable, "-c", NAMES, str(volume)], capture_output=True, text=True, check=True
    )
    assert other.stdout.split() == names
    write(volume, VALUES + np.int16(1), mode="w")
    assert not set(names_of(volume)) & set(names)


@pytest.mark.parametrize("chunks", [None, {}])
@pytest.mark.parametrize("warm", [False, True])
def test_a_file_replaced_under_a_lazy_dataset(volume: Path, chunks: Any, warm: bool) -> None:
    old = open_volume(volume, chunks=chunks)
    if warm:
        old["image"][0].compute(scheduler="synchronous")
    write(volume, VALUES + np.int16(1), mode="w")
    with pytest.raises(SourceChanged, match=r"volume\.mla: the file changed.*Open it again"):
        old["image"][1].compute(scheduler="synchronous")
    np.testing.assert_array_equal(open_volume(volume)["image"][1], VALUES[1] + 1)
    volume.unlink()
    with pytest.raises(SourceChanged, match="is gone"):
        old["image"][1].compute(scheduler="synchronous")


def test_a_file_truncated_under_a_lazy_dataset(volume: Path) -> None:
    old = open_volume(volume)
    old["image"][0].values  # noqa: B018 - maps the file
    os.truncate(volume, 600)
    with pytest.raises(SourceChanged, match="the file changed"):
        old["image"][1].load()
    with pytest.raises(FormatError, match=r"volume\.mla"):
        open_volume(volume)


def test_opening_imports_no_dask_and_no_blosc2(tmp_path: Path) -> None:
    path = tmp_path / "plain.mla"
    mlarray_xr.to_mla(VALUES, path)  # xarray itself imports dask.array for coordinates of floats
    code = (
        "import sys, xarray as xr; import mlarray_xr.backend; "
        "ds = xr.open_dataset(sys.argv[1], engine=mlarray_xr.backend.MlaBackendEntrypoint); "
        "print([m for m in ('blosc2', 'dask.array', 'distributed', 'torch') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
