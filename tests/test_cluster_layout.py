"""Layouts of writes on a cluster: planned for its nodes, in parts that fit its workers."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster

import mlarray_xr
from mlarray_xr.dask import from_mla, thread_memory_bytes, warn_of_many_tasks
from mlarray_xr.errors import MlaWarning
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.write_plan import plan_parts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VALUES = np.random.default_rng(0).integers(0, 99, (24, 96, 96)).astype("int16")
SMALL = CacheSizes(l1_bytes=16 << 10, l2_bytes=256 << 10, l3_bytes=1 << 20)
MIXED = ("l1=48KiB,l2=256KiB,l3=4MiB", "l1=16KiB,l2=1MiB,l3=1MiB")


@contextlib.contextmanager
def cluster(**options: Any) -> Iterator[Client]:
    where = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    settings = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, **where, **options}
    with LocalCluster(**settings) as started, Client(started) as client:
        yield client


def set_caches(text: str) -> None:
    os.environ["MLARRAY_XR_CACHES"] = text


@pytest.fixture(scope="module")
def mixed() -> Iterator[Client]:
    """Two processes that believe to be on different machines."""
    with cluster() as client:
        for address, text in zip(client.nthreads(), MIXED, strict=True):
            client.run(set_caches, text, workers=[address])
        yield client


@pytest.mark.parametrize("caches", [None, "cluster"])
def test_a_write_is_planned_for_the_least_of_the_nodes_and_says_so(
    tmp_path: Path, mixed: Client, caches: str | None
) -> None:
    lazy = da.from_array(VALUES, chunks=(12, 96, 96))
    report = mlarray_xr.to_mla(lazy, tmp_path / "a.mla", patch=32, caches=caches)
    recorded = mlarray_xr.MlaArray(tmp_path / "a.mla").info()["planned"]
    assert CacheSizes.from_plain(recorded["caches"]) == SMALL
    assert recorded["rule"] == "searched"
    assert recorded["access"] == [[[24, 32, 32], 1.0]]
    assert report.layout == mlarray_xr.plan_layout(VALUES.shape, "int16", patch=32, caches=SMALL)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], VALUES)


def test_given_caches_go_before_those_of_the_cluster(tmp_path: Path, mixed: Client) -> None:
    given = {"l1": "32KiB", "l2": "1MiB", "l3": "2MiB"}
    for name, caches in (("a.mla", given), ("b.mla", mlarray_xr.cluster_caches(mixed))):
        mlarray_xr.to_mla(VALUES, tmp_path / name, patch=32, caches=caches)
    first, second = (
        mlarray_xr.MlaArray(tmp_path / name).info()["planned"]["caches"]["l2_bytes"]
        for name in ("a.mla", "b.mla")
    )
    assert (first, second) == (1 << 20, SMALL.l2_bytes)


def test_nobody_is_asked_when_caches_have_no_say(
    tmp_path: Path, mixed: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlarray_xr.write.caches_for_write", lambda _: 1 / 0)
    given = mlarray_xr.plan_layout(VALUES.shape, "int16", patch=8)
    mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", chunks=(8, 8, 8), blocks=(4, 4, 4))
    mlarray_xr.to_mla(VALUES, tmp_path / "b.mla", layout=given)
    mlarray_xr.to_mla(VALUES, tmp_path / "c.mla", template=tmp_path / "b.mla")
    mlarray_xr.to_mla(VALUES, tmp_path / "d.mla", patch=None)
    with pytest.raises(ZeroDivisionError):
        mlarray_xr.to_mla(VALUES, tmp_path / "e.mla")


def test_a_folder_is_converted_for_the_nodes_of_the_cluster(tmp_path: Path, mixed: Client) -> None:
    (tmp_path / "raw").mkdir()
    for name in "ab":
        np.save(tmp_path / "raw" / f"{name}.npy", VALUES)
    report = mlarray_xr.convert_folder(tmp_path / "raw", tmp_path / "mla", patch=32)
    assert len(report.converted) == 2
    for one in report.converted:
        recorded = mlarray_xr.MlaArray(one.path).info()["planned"]
        assert CacheSizes.from_plain(recorded["caches"]) == SMALL


def test_memory_of_workers_is_shared_by_their_threads() -> None:
    with cluster(n_workers=1, processes=False, threads_per_worker=2, memory_limit="600MB"):
        assert thread_memory_bytes() == 300_000_000
    with cluster(n_workers=1, processes=False):
        assert thread_memory_bytes() is None
    assert thread_memory_bytes() is None


@pytest.mark.parametrize(
    ("thread_bytes", "largest"), [(None, 128 << 20), (1 << 40, 128 << 20), (300 << 20, 50 << 20)]
)
def test_half_of_the_memory_of_a_thread_is_for_its_part(
    thread_bytes: int | None, largest: int
) -> None:
    layout = Layout(chunks=(64, 64, 64), blocks=(16, 16, 16))
    found = plan_parts((2048,) * 3, layout, itemsize=2, in_flight=2, thread_bytes=thread_bytes)
    assert largest / 2 <= found.largest_bytes <= largest
    assert all(n % 64 == 0 for along in found.extents for n in along)


def test_one_chunk_at_a_time_is_the_least_whatever_the_memory() -> None:
    layout = Layout(chunks=(64, 64, 64), blocks=(16, 16, 16))
    found = plan_parts((128,) * 3, layout, itemsize=2, in_flight=2, thread_bytes=1)
    assert found.largest_bytes == 64**3 * 2


def test_many_tasks_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(MlaWarning, match=r"100001 tasks: .*To fix: smaller worries"):
        warn_of_many_tasks(100_001, fix="smaller worries")
    warn_of_many_tasks(100_000, fix="nothing")
    mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", chunks=(8, 8, 8), blocks=(8, 8, 8))
    monkeypatch.setattr("mlarray_xr.dask._MOST_TASKS", 100)
    with pytest.warns(MlaWarning, match=r"432 tasks: .*array\.chunk-size"):
        from_mla(tmp_path / "a.mla", chunks="file")
    from_mla(tmp_path / "a.mla")
