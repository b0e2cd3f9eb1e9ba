"""Whatever is selected, in whatever order, a file gives what the NumPy-backed array gives."""

from __future__ import annotations

import contextlib
import inspect
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import xarray as xr
from dask.base import is_dask_collection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xarray.tests.conftest import time_unit, use_dask  # noqa: F401 - fixtures of those tests
from xarray.tests.test_backends import DatasetIOBase

import mlarray_xr
from mlarray_xr.backend import MlaBackendEntrypoint
from tests.strategies import Stored, isel_of, stored
from tests.xarray_store import StoreEntrypoint, save

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from distributed import Client

# Importing xarray's tests turns this on, for every other test of the run as well.
xr.set_options(warn_for_unclosed_files=False)

DIMS = ("a", "b", "c", "d")
STEPS = ("isel", "isel", "isel", "transpose")


@contextlib.contextmanager
def file_of(content: Stored) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "image.mla"
        array = xr.DataArray(content.values, dims=DIMS[: content.values.ndim])
        mlarray_xr.to_mla(
            array,
            path,
            chunks=content.chunks,
            blocks=content.blocks,
        )
        yield path


def opened(address: Any, **kwargs: Any) -> xr.DataArray:
    """Open without coordinates: what they hold is not what is compared here."""
    dataset = xr.open_dataset(address, engine=MlaBackendEntrypoint, **kwargs)
    return dataset["image"].drop_vars(list(dataset.coords)).drop_attrs()


def expected_of(content: Stored, actual: xr.DataArray) -> xr.DataArray:
    return xr.DataArray(content.values, dims=actual.dims, name="image")


def assert_same(actual: xr.DataArray, expected: xr.DataArray) -> None:
    assert actual.dtype == expected.dtype
    xr.testing.assert_identical(actual.compute(), expected)


def is_scalar(indexer: Any) -> bool:
    return not isinstance(indexer, slice) and np.ndim(indexer) == 0


def step(
    data: st.DataObject, actual: xr.DataArray, expected: xr.DataArray
) -> tuple[xr.DataArray, xr.DataArray]:
    """Do one random thing to both arrays."""
    if data.draw(st.sampled_from(STEPS)) == "transpose":
        order = data.draw(st.permutations(actual.dims))
        return actual.transpose(*order), expected.transpose(*order)
    indexers = data.draw(isel_of(expected))
    if actual.ndim and all(is_scalar(indexer) for indexer in indexers.values()):
        # xarray 2026.9 fails, with every engine, to take one element of a transposed lazy array.
        indexers = dict(list(indexers.items())[: actual.ndim - 1])
    actual, expected = actual.isel(indexers), expected.isel(indexers)
    # The dimensions of the next points are called vec_0, vec_1, ... again: xarray refuses to mix.
    older = {dim: f"{dim}_" for dim in actual.dims if str(dim).startswith("vec_")}
    return actual.rename(older), expected.rename(older)


def lazy_from_path(path: Path) -> xr.DataArray:
    return opened(path)


def lazy_from_bytes(path: Path) -> xr.DataArray:
    return opened(path.read_bytes())


def lazy_from_pickle(path: Path) -> xr.DataArray:
    restored: xr.DataArray = pickle.loads(pickle.dumps(opened(str(path), cache=False)))
    return restored


@pytest.mark.parametrize("source", [lazy_from_path, lazy_from_bytes, lazy_from_pickle])
@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow])
@given(content=stored(max_dims=4), data=st.data())
def test_chains_of_selections_stay_lazy_and_agree_with_numpy(
    source: Callable[[Path], xr.DataArray], content: Stored, data: st.DataObject
) -> None:
    with file_of(content) as path:
        actual = source(path)
        expected = expected_of(content, actual)
        assert not actual.variable._in_memory
        for _ in range(data.draw(st.integers(1, 4), label="steps")):
            actual, expected = step(data, actual, expected)
            assert not actual.variable._in_memory
        assert_same(actual, expected)
        actual.load()
        assert actual.variable._in_memory
        assert actual.ndim == 0 or actual.values.flags.writeable


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(content=stored(max_dims=3), data=st.data())
def test_selections_pickle_on_the_way(content: Stored, data: st.DataObject) -> None:
    with file_of(content) as path:
        actual = opened(path)
        expected = expected_of(content, actual)
        for _ in range(2):
            actual, expected = step(data, actual, expected)
            actual = pickle.loads(pickle.dumps(actual))
            assert not actual.variable._in_memory
        assert_same(actual, expected)


def dask_chain(content: Stored, data: st.DataObject, *, chunks: Any) -> None:
    with file_of(content) as path:
        actual = opened(path, chunks=chunks)
        expected = expected_of(content, actual)
        for _ in range(data.draw(st.integers(1, 3), label="steps")):
            actual, expected = step(data, actual, expected)
            assert is_dask_collection(actual)
        assert_same(actual, expected)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(content=stored(min_dims=1, max_dims=3), data=st.data())
def test_dask_chains_agree_with_numpy(scheduler: str, content: Stored, data: st.DataObject) -> None:
    import dask.config

    chunks = data.draw(st.sampled_from([{}, "auto", -1]), label="chunks")
    with dask.config.set(scheduler=scheduler):
        dask_chain(content, data, chunks=chunks)


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(content=stored(min_side=1), data=st.data())
def test_single_elements_agree_with_numpy(content: Stored, data: st.DataObject) -> None:
    with file_of(content) as path:
        actual = opened(path)
        indexers = {
            dim: data.draw(st.integers(-n, n - 1), label=str(dim))
            for dim, n in actual.sizes.items()
        }
        assert_same(actual.isel(indexers), expected_of(content, actual).isel(indexers))


VOLUME = Stored(
    np.random.default_rng(5).integers(0, 1000, (11, 9, 10), np.int16), (4, 9, 3), (2, 4, 3)
)
SELECTIONS: dict[str, dict[str, Any]] = {
    "basic": {"a": slice(None, None, -2), "c": 3},
    "outer": {"a": [5, -1, 5], "b": slice(1, 8, 3)},
    "points": {"a": xr.DataArray([1, 10], dims="p"), "c": xr.DataArray([0, 9], dims="p")},
}


@pytest.mark.parametrize("indexers", SELECTIONS.values(), ids=list(SELECTIONS))
def test_selections_agree_on_a_cluster(cluster: Client, indexers: dict[str, Any]) -> None:
    with file_of(VOLUME) as path:
        actual = opened(path, chunks={})
        expected = expected_of(VOLUME, actual)
        assert_same(actual.isel(indexers).transpose(...), expected.isel(indexers))
        remote = cluster.submit(_load, opened(path, cache=False), indexers, pure=False)
        xr.testing.assert_identical(remote.result(), expected.isel(indexers))


def _load(array: xr.DataArray, indexers: dict[str, Any]) -> xr.DataArray:
    return array.isel(indexers).load()


def test_selections_agree_with_dask_processes() -> None:
    import dask.config

    settings = {"scheduler": "processes", "num_workers": 2, "array.chunk-size": "300B"}
    with file_of(VOLUME) as path, dask.config.set(settings):
        for indexers in SELECTIONS.values():
            actual = opened(path, chunks={})
            assert actual.chunks == ((4, 4, 3), (9,), (3, 3, 3, 1))
            assert_same(actual.isel(indexers), expected_of(VOLUME, actual).isel(indexers))


class MlaIO:
    """What xarray's own backend tests write and read through."""

    chunks: ClassVar[Any] = None

    @contextlib.contextmanager
    def create_store(self) -> Iterator[None]:
        yield pytest.skip("datasets are written by a function, there is no AbstractDataStore")

    def save(self, dataset: xr.Dataset, path: str, **kwargs: Any) -> None:
        save(dataset, path, **kwargs)

    @contextlib.contextmanager
    def open(self, path: str, **kwargs: Any) -> Iterator[xr.Dataset]:
        kwargs.setdefault("chunks", self.chunks)
        with xr.open_dataset(path, engine=StoreEntrypoint, **kwargs) as dataset:
            yield dataset


STRINGS = "a file holds fixed-size strings only, neither objects nor StringDType"
REFUSED = {
    "test_roundtrip_object_dtype": STRINGS,
    "test_roundtrip_stringdtype_data": STRINGS,
    "test_roundtrip_stringdtype_nulls": STRINGS,
    "test_roundtrip_stringdtype_with_na_object": STRINGS,
    "test_roundtrip_string_encoded_characters": "expects the character encoding of netCDF",
}
"""Tests of what the format cannot hold. They run, and must fail."""


def _failing(name: str, reason: str) -> Callable[..., None]:
    @pytest.mark.xfail(reason=reason, strict=True)
    def test(self: DatasetIOBase) -> None:
        getattr(DatasetIOBase, name)(self)

    return test


class MlaIOWithoutStrings(MlaIO):
    pass


for _name, _reason in REFUSED.items():
    setattr(MlaIOWithoutStrings, _name, _failing(_name, _reason))


class TestXarrayOwn(MlaIOWithoutStrings, DatasetIOBase):
    pass


class TestXarrayOwnWithDask(MlaIOWithoutStrings, DatasetIOBase):
    chunks: ClassVar[Any] = {}

    def test_dataset_caching(self) -> None:
        with self.roundtrip(xr.Dataset({"foo": ("x", [5, 6, 7])})) as actual:
            assert list(actual["foo"].values) == [5, 6, 7]
            assert not actual["foo"].variable._in_memory


def test_more_than_forty_of_the_upstream_tests_run_unchanged() -> None:
    unchanged = [
        (case, name)
        for case in (TestXarrayOwn, TestXarrayOwnWithDask)
        for name, function in inspect.getmembers(case, inspect.isfunction)
        if name.startswith("test_") and function is getattr(DatasetIOBase, name)
    ]
    assert len(unchanged) > 60
