"""The caches of a cluster: every worker is asked, the weakest node decides, and all may be late."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import itertools
import os
import pickle
import socket
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import dask.config
import pytest
from distributed import Client, LocalCluster, wait, worker_client
from distributed.comm.core import CommClosedError
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import dask_caches
from mlarray_xr.dask_caches import caches_for_write, cluster_caches
from mlarray_xr.errors import (
    LayoutError,
    MissingDependencyError,
    MlaWarning,
    SourceError,
)
from mlarray_xr.planning.caches import CacheSizes, detect_caches
from mlarray_xr.planning.nodes import ClusterCaches, NodeCaches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE = socket.gethostname()
KIB, MIB = 1 << 10, 1 << 20
LAPTOP = "l1=48KiB,l2=1MiB,l3=3MiB"
SERVER = "l1=32KiB,l2=2MiB,l3=4MiB"


def levels(caches: CacheSizes) -> tuple[int, int, int]:
    return caches.l1_bytes, caches.l2_bytes, caches.l3_bytes


# On workers


def the_module() -> Any:
    """Return the genuine one again after it was patched and removed."""
    return importlib.import_module("mlarray_xr.dask_caches")


def disguise(host: str, caches: str, boot: str = "") -> None:
    """Let this process be on another machine."""
    os.environ["MLARRAY_XR_CACHES"] = caches
    real = the_module()._here

    def elsewhere() -> dict[str, Any]:
        here = real()
        return {**here, "host": host, "boot": boot}

    the_module()._here = elsewhere


def hide_the_module() -> None:
    sys.modules["mlarray_xr.dask_caches"] = None  # type: ignore[assignment]


def undisguise() -> None:
    os.environ.pop("MLARRAY_XR_CACHES", None)
    sys.modules.pop("mlarray_xr.dask_caches", None)  # the next one that is imported is genuine


def die_when_asked() -> None:
    the_module()._here = partial(os._exit, 1)


def set_caches(text: str) -> None:
    os.environ["MLARRAY_XR_CACHES"] = text


def wait_for(path: Path, number: int) -> None:
    while not path.exists():
        time.sleep(0.01)


async def never(dask_worker: Any = None) -> None:
    await asyncio.sleep(3600)


async def die(dask_worker: Any = None) -> None:
    raise CommClosedError


async def never_the_first(dask_worker: Any = None) -> Any:
    if dask_worker.name == 0:
        await never()
    return await genuine_probe(dask_worker=dask_worker)


genuine_probe = dask_caches._probe


@pytest.fixture
def two(cluster: Client) -> Iterator[tuple[Client, list[str]]]:
    """Two worker processes, each of which may be disguised."""
    yield cluster, sorted(cluster.nthreads())
    cluster.run(undisguise)


@contextlib.contextmanager
def started(n_workers: int, *, processes: bool = False, **options: Any) -> Iterator[Any]:
    """Start a cluster of its own, which is not the one of other computes."""
    where = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    limits = {"threads_per_worker": 2, "memory_limit": 0}
    with (
        LocalCluster(
            n_workers=n_workers, processes=processes, **where, **{**limits, **options}
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def _inside() -> Iterator[Client]:
    with started(2) as client:
        yield client


@pytest.fixture
def inside(_inside: Client) -> Iterator[Client]:
    """Two workers inside this process, which is where to compute."""
    with _inside.as_current():
        yield _inside


# A cluster


def test_equal_machines_are_one_node_and_count_as_this_one(cluster: Client) -> None:
    found = cluster_caches(cluster)
    assert [(node.host, node.workers, node.threads) for node in found.nodes] == [(HERE, 2, 4)]
    # A file records all of it, and must not depend on where its layout was decided.
    assert found.smallest.to_plain() == detect_caches().to_plain()


def test_the_weakest_node_decides(two: tuple[Client, list[str]]) -> None:
    client, (first, second) = two
    client.run(disguise, "server", SERVER, workers=[first])
    client.run(disguise, "laptop", LAPTOP, workers=[second])
    found = cluster_caches(client)
    assert [(node.host, levels(node.caches)) for node in found.nodes] == [
        ("laptop", (48 * KIB, MIB, 3 * MIB)),
        ("server", (32 * KIB, 2 * MIB, 4 * MIB)),
    ]
    assert levels(found.smallest) == (32 * KIB, MIB, 3 * MIB)
    assert found.smallest.provenance == "smallest of 2, 2 distinct: MLARRAY_XR_CACHES"
    assert caches_for_write(None) == caches_for_write("Cluster ") == found.smallest


def test_workers_of_a_node_may_differ(two: tuple[Client, list[str]]) -> None:
    client, (first, second) = two
    client.run(set_caches, LAPTOP, workers=[first])
    client.run(set_caches, SERVER, workers=[second])
    (node,) = cluster_caches(client).nodes
    assert levels(node.caches) == (32 * KIB, MIB, 3 * MIB)
    assert (node.host, node.workers, node.threads) == (HERE, 2, 4)


@pytest.mark.parametrize(("boots", "n_nodes"), [(("a", "b"), 2), (("a", "a"), 1), (("", ""), 1)])
def test_machines_of_one_name_are_told_apart(
    two: tuple[Client, list[str]], boots: tuple[str, str], n_nodes: int
) -> None:
    client, addresses = two
    for address, boot in zip(addresses, boots, strict=True):
        client.run(disguise, "node", LAPTOP, boot, workers=[address])
    found = cluster_caches(client)
    assert [node.boot for node in found.nodes] == sorted(set(boots))
    assert len(found.nodes) == n_nodes
    assert found.smallest.provenance == "MLARRAY_XR_CACHES"


def test_memory_is_that_of_a_thread() -> None:
    with started(2, memory_limit="3GiB", threads_per_worker=3) as client:
        found = cluster_caches(client)
    assert [(node.workers, node.threads) for node in found.nodes] == [(2, 6)]


def test_busy_workers_answer(inside: Client, tmp_path: Path) -> None:
    release = tmp_path / "release"
    running = [inside.submit(wait_for, release, number) for number in range(8)]
    try:
        assert cluster_caches(inside).nodes[0].workers == 2
        assert not any(future.done() for future in running)
    finally:
        release.touch()
        wait(running)


# Which cluster


# Dask of 2025 warns of a scheduler that is not the client's.
@pytest.mark.filterwarnings("ignore:Running on a single-machine scheduler:UserWarning")
def test_the_cluster_of_a_compute_is_asked(inside: Client) -> None:
    assert cluster_caches().nodes[0].workers == 2
    with dask.config.set(scheduler="threads"):
        assert cluster_caches().nodes[0].workers == 0
        assert cluster_caches(inside).nodes[0].workers == 2


@pytest.mark.parametrize("scheduler", ["synchronous", "threads", "processes"])
def test_without_a_cluster_it_is_this_machine(
    scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLARRAY_XR_CACHES", LAPTOP)
    with dask.config.set(scheduler=scheduler):
        found = cluster_caches()
        assert caches_for_write(None) == caches_for_write("cluster") == found.smallest
    (node,) = found.nodes
    assert (node.host, node.workers, node.memory_bytes) == (HERE, 0, None)
    assert node.threads >= 1
    assert found.smallest.to_plain() == detect_caches().to_plain()


def test_machines_may_have_no_boot_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(dask_caches, "_BOOT_ID", str(tmp_path / "boot_id"))
    assert cluster_caches().nodes[0].boot == ""
    (tmp_path / "boot_id").write_text("f00\n")
    assert cluster_caches().nodes[0].boot == "f00"


def ask_from_a_task() -> tuple[int, int, CacheSizes]:
    with worker_client() as client:
        all_workers = sum(node.workers for node in cluster_caches(client).nodes)
    return sum(node.workers for node in cluster_caches().nodes), all_workers, caches_for_write(None)


def test_a_task_knows_its_machine_alone(two: tuple[Client, list[str]]) -> None:
    client, (first, second) = two
    client.run(set_caches, LAPTOP, workers=[first])
    client.run(set_caches, SERVER, workers=[second])
    asked = client.submit(ask_from_a_task, workers=[second], pure=False).result()
    assert asked == (0, 2, CacheSizes(l1_bytes=32 * KIB, l2_bytes=2 * MIB, l3_bytes=4 * MIB))


async def test_asynchronous_clients_are_asked_from_a_thread() -> None:
    where = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    async with (
        LocalCluster(
            n_workers=1, processes=False, asynchronous=True, memory_limit=0, **where
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        for ask in (
            cluster_caches,
            partial(cluster_caches, client),
            partial(caches_for_write, "cluster"),
        ):
            with pytest.raises(SourceError, match=r"event loop.*To fix: ask from a thread"):
                ask()
            assert await asyncio.to_thread(ask)
        with pytest.warns(MlaWarning, match="planned for this machine: .*event loop"):
            assert caches_for_write(None) == detect_caches()
        found = await asyncio.to_thread(cluster_caches, client)
    assert [node.workers for node in found.nodes] == [1]


def test_what_is_no_open_client_is_refused() -> None:
    with pytest.raises(TypeError, match=r"client is a str\. To fix: give Client\(cluster\)"):
        cluster_caches("tcp://127.0.0.1:8786")  # type: ignore[arg-type]
    with started(0) as client:
        with pytest.raises(TypeError, match="client is a LocalCluster"):
            cluster_caches(client.cluster)
        client.close()
        with pytest.raises(SourceError, match=r"the client is closed\. To fix: connect anew"):
            cluster_caches(client)


# Workers that come, go, or fail


def test_workers_that_join_later_are_found_by_asking_again() -> None:
    with started(1) as client:
        assert cluster_caches(client).nodes[0].workers == 1
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert cluster_caches(client).nodes[0].workers == 2


@pytest.mark.parametrize("timeout_seconds", [0, 0.2])
def test_without_workers_it_is_this_machine_and_says_so(timeout_seconds: float) -> None:
    with started(0) as client:
        with pytest.warns(MlaWarning, match=r"no worker answered.*To fix: .*caches='l1=32KiB"):
            found = cluster_caches(client, timeout_seconds=timeout_seconds)
        # The next worker would begin with what is left. The scheduler hears of it a moment later.
        deadline = time.monotonic() + 30
        while client.run_on_scheduler(left_tasks) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.run_on_scheduler(left_tasks) == 0
    assert [(node.host, node.workers) for node in found.nodes] == [(HERE, 0)]
    assert found.smallest == detect_caches()
    assert found.smallest.provenance == (
        f"no worker answered, this machine instead: {detect_caches().provenance}"
    )


def left_tasks(dask_scheduler: Any = None) -> int:
    return len(dask_scheduler.tasks)


def test_adaptive_clusters_start_a_worker() -> None:
    with started(0) as client:
        client.cluster.adapt(minimum=0, maximum=1, interval="50ms")
        assert [node.workers for node in cluster_caches(client, timeout_seconds=60).nodes] == [1]


def test_workers_that_die_are_left_out() -> None:
    with started(2, processes=True, silence_logs=60) as client:
        first, second = sorted(client.nthreads())
        client.run(disguise, "alive", LAPTOP, workers=[first])
        client.run(die_when_asked, workers=[second])
        # Its nanny starts another one, of which nobody knew when the question was asked.
        assert [(node.host, node.workers) for node in cluster_caches(client).nodes] == [
            ("alive", 1)
        ]


def test_silent_workers_are_left_out(inside: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_caches, "_probe", never_the_first)
    assert cluster_caches(inside, timeout_seconds=3).nodes[0].workers == 1


@pytest.mark.parametrize("probe", [never, die])
def test_when_no_worker_answers_it_is_this_machine(
    probe: Any, inside: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_caches, "_probe", probe)
    with pytest.warns(MlaWarning, match=r"no worker answered, 0\.5 s were given"):
        assert cluster_caches(inside, timeout_seconds=0.5).nodes[0].workers == 0


def test_many_workers_take_turns(inside: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_caches, "_MOST_ASKED", 1)
    assert cluster_caches(inside).nodes[0].workers == 2


def test_workers_without_this_module_are_an_error(two: tuple[Client, list[str]]) -> None:
    client, (first, _) = two
    client.run(hide_the_module, workers=[first])
    with pytest.raises(
        MissingDependencyError, match=r"To fix: install .* on all workers"
    ) as caught:
        cluster_caches(client)
    assert f"worker {first} " in str(caught.value)


def test_malformed_settings_of_a_worker_are_an_error(two: tuple[Client, list[str]]) -> None:
    client, (_, second) = two
    client.run(set_caches, "l4=1MiB", workers=[second])
    with pytest.raises(LayoutError, match=r"MLARRAY_XR_CACHES names the level.*To fix: ") as caught:
        cluster_caches(client)
    assert str(caught.value).startswith(f"worker {second}: ")


ANSWER = {
    "host": "node",
    "boot": "",
    "threads": 1,
    "memory_bytes": None,
    "caches": CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3).to_plain(),
}


@pytest.mark.parametrize(
    "answer",
    [
        {**ANSWER, "host": None},
        {**ANSWER, "host": "a\nb"},
        {**ANSWER, "host": "a" * 10**6},
        {**ANSWER, "boot": b""},
        {**ANSWER, "threads": 0},
        {**ANSWER, "threads": 10**5000},
        {**ANSWER, "memory_bytes": -(10**5000)},
        {**ANSWER, "memory_bytes": "1GiB"},
        {**ANSWER, "caches": {"l1_bytes": 1 << 50, "l2_bytes": 1 << 50, "l3_bytes": 1 << 50}},
        {**ANSWER, "caches": None},
        {name: ANSWER[name] for name in ("host", "boot", "threads", "caches")},
        {},
        None,
        [10**5000],
        "x" * 10**6,
    ],
    ids=itertools.count(),
)
def test_answers_that_cannot_be_true_are_an_error(answer: Any) -> None:
    assert dask_caches._node("tcp://a:1", ANSWER).workers == 1
    with pytest.raises(SourceError, match=r"^worker tcp://a:1 does not tell .*To fix: ") as caught:
        dask_caches._node("tcp://a:1", answer)
    assert len(str(caught.value)) < 700


# Values

SIZES = st.lists(st.integers(1, 1 << 40), min_size=3, max_size=3).map(
    lambda three: CacheSizes(l1_bytes=min(three), l2_bytes=sorted(three)[1], l3_bytes=max(three))
)
WORKERS = st.builds(
    NodeCaches,
    host=st.sampled_from("ab"),
    boot=st.sampled_from(("", "1")),
    workers=st.just(1),
    threads=st.integers(1, 64),
    memory_bytes=st.none() | st.integers(1, 1 << 50),
    caches=SIZES,
)


@given(st.lists(WORKERS, min_size=1, max_size=8), st.randoms())
def test_no_worker_is_lost_and_no_order_matters(workers: list[NodeCaches], random: Any) -> None:
    found = ClusterCaches(nodes=dask_caches._nodes(workers))
    assert levels(found.smallest) == tuple(
        map(min, zip(*(levels(worker.caches) for worker in workers), strict=True))
    )
    assert sum(node.workers for node in found.nodes) == len(workers)
    assert sum(node.threads for node in found.nodes) == sum(worker.threads for worker in workers)
    machines = [(node.host, node.boot) for node in found.nodes]
    assert machines == sorted({(worker.host, worker.boot) for worker in workers})
    shuffled = random.sample(workers, k=len(workers))
    again = ClusterCaches(nodes=dask_caches._nodes(shuffled))
    assert again == found
    assert again.smallest.to_plain() == found.smallest.to_plain()


def node(**changes: Any) -> NodeCaches:
    sizes = CacheSizes(l1_bytes=32 * KIB, l2_bytes=MIB, l3_bytes=3 * MIB // 2)
    fields = {"host": "gpu01", "boot": "f00", "workers": 2, "threads": 8, "memory_bytes": None}
    return NodeCaches(**{**fields, "caches": sizes, **changes})


def test_values_are_picklable_and_hashable() -> None:
    found = ClusterCaches(nodes=(node(), node(host="gpu02")))
    assert pickle.loads(pickle.dumps(found)) == found
    assert hash(pickle.loads(pickle.dumps(found))) == hash(found)
    assert "f00" not in repr(found.nodes[0])


def test_what_a_layout_is_planned_for_may_be_given() -> None:
    found = ClusterCaches(nodes=(node(),))
    assert caches_for_write(found) == found.smallest == caches_for_write(found.smallest)
    assert levels(caches_for_write({"l1": "1KiB", "l2": 2048, "l3": "4KiB"})) == (1024, 2048, 4096)
    assert caches_for_write("local") == detect_caches()
    with pytest.raises(LayoutError, match=r"^caches= .*To fix: "):
        caches_for_write("clusters")


def test_the_table_reads_well() -> None:
    found = ClusterCaches(nodes=(node(workers=1, threads=1), node(host="b", memory_bytes=3 << 30)))
    assert str(found) == repr(found)
    lines = [line.split("  ") for line in str(found).splitlines()]
    assert lines[0] == ["2 nodes, 3 workers, 9 threads"]
    rows = [[cell.strip() for cell in line if cell] for line in lines[1:]]
    assert rows == [
        ["node", "workers", "threads", "memory per thread", "L1", "L2", "L3"],
        ["gpu01", "1", "1", "unlimited", "32 KiB", "1 MiB", "1.5 MiB"],
        ["b", "2", "8", "3 GiB", "32 KiB", "1 MiB", "1.5 MiB"],
        ["smallest: L1 32 KiB, L2 1 MiB, L3 1.5 MiB (given)"],
    ]
    assert str(ClusterCaches(nodes=(node(workers=1, threads=1),))).startswith(
        "1 node, 1 worker, 1 thread\n"
    )


def test_a_notebook_shows_no_markup_of_a_host() -> None:
    sizes = CacheSizes(l1_bytes=1, l2_bytes=2, l3_bytes=3, provenance="<b>&")
    shown = ClusterCaches(
        nodes=(node(host="<script>alert(1)</script>", caches=sizes),)
    )._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "(&lt;b&gt;&amp;)" in shown
    assert shown.count("<tr>") == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "a\nb"},
        {"host": 7},
        {"host": "a" * 256},
        {"boot": None},
        {"workers": -1},
        {"workers": True},
        {"threads": 0},
        {"threads": 1.5},
        {"threads": None},
        {"memory_bytes": 0},
        {"memory_bytes": "3GiB"},
    ],
    ids=str,
)
def test_what_cannot_be_a_node_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LayoutError, match=f"{next(iter(changes))} .*To fix: "):
        node(**changes)


def test_a_cluster_of_nothing_is_refused() -> None:
    with pytest.raises(LayoutError, match=r"no node.*To fix: "):
        ClusterCaches(nodes=())
