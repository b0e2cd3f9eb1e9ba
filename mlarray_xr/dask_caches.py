"""The cache sizes of a cluster: every worker is asked, and the weakest node decides.

Workers that join later are not known to a layout. What is believed of a cache is bounded, and so is
the loss on a node with smaller ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlarray_xr.dask import has_client, scheduler_client
from mlarray_xr.errors import (
    LayoutError,
    MissingDependencyError,
    MlaError,
    MlaWarning,
    SourceError,
)
from mlarray_xr.planning.caches import CacheSizes, caches_from, detect_caches, smallest_caches
from mlarray_xr.planning.nodes import ClusterCaches, NodeCaches, least_memory
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from distributed import Client

__all__ = ["caches_for_write", "cluster_caches"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_LONGEST_NAME = 255
_MOST_ASKED = 32  # every question is a connection to the scheduler that the client keeps
_FIX = "give the cache sizes, such as caches='l1=32KiB,l2=1MiB,l3=2MiB'"
_ASYNCHRONOUS = (
    "the workers were asked from the event loop of their asynchronous client, which would wait for "
    f"itself. To fix: ask from a thread, await asyncio.to_thread(...); or {_FIX}"
)
_SAME_RELEASE = f"To fix: install the same release of mlarray-xr as here on all workers; or {_FIX}"


def cluster_caches(client: Client | None = None, *, timeout_seconds: float = 30) -> ClusterCaches:
    """Ask every worker of a cluster for the caches of its machine.

    Busy workers answer too; those that die meanwhile, or stay silent until the timeout, are left
    out. A cluster without workers, such as an adaptive one, is given a task to start one for.
    Workers that join later are not known: ask again.

    Parameters
    ----------
    client
        Of the cluster; None is the one that a compute here would use. Where that is none, because
        computes run in threads or processes of this machine or this is a task on a worker, the
        answer is this machine as one node of no workers.
    timeout_seconds
        How long to wait for a first worker, and again for the answers.

    Returns
    -------
    ClusterCaches
        A node is what its workers see as a machine: they share host name and boot id.

    Warns
    -----
    MlaWarning
        If no worker came or answered in time: the caches are those of this machine, and say so.

    Raises
    ------
    MissingDependencyError
        If a worker cannot run the probe: the package is missing there, or of another release.
    LayoutError
        If the environment variable ``MLARRAY_XR_CACHES`` of a worker is malformed.
    SourceError
        If the client is closed, or asynchronous and used from its event loop; if the scheduler does
        not answer, or a worker answers what cannot be true.
    TypeError
        If `client` is no client.

    Examples
    --------
    Without a cluster, this machine is the only node:

    >>> found = cluster_caches()
    >>> found.nodes[0].workers
    0
    >>> found.smallest == detect_caches()
    True
    """
    asked = _active_client() if client is None else client
    if asked is None:
        return _this_machine()
    _check_usable(asked)
    try:
        with _first_worker(asked, timeout_seconds):
            answers = asked.sync(_ask_all, asked, timeout_seconds)
    except OSError as error:
        msg = f"the scheduler of {asked!r} does not answer: {error}. To fix: connect anew; or"
        raise SourceError(f"{msg} {_FIX}") from error
    if answers:
        workers = [_node(address, answer) for address, answer in answers.items()]
        return ClusterCaches(nodes=_nodes(workers))
    msg = (
        f"no worker answered, {timeout_seconds:g} s were given: the caches are those of this "
        f"machine. To fix: wait for workers; or {_FIX}"
    )
    warnings.warn(msg, MlaWarning, stacklevel=2)
    return _this_machine("no worker answered, this machine instead: ")


def caches_for_write(
    caches: CacheSizes | ClusterCaches | Mapping[str, int | str] | str | None,
) -> CacheSizes:
    """Return the cache sizes that an argument ``caches=`` of a write stands for.

    Parameters
    ----------
    caches
        ``"cluster"`` or None for the smallest of the cluster that a compute here would use, without
        one for those of this machine; None as well for one that cannot be asked, with a warning;
        what :func:`cluster_caches` returned; or what
        :func:`~mlarray_xr.planning.caches.caches_from` takes.

    Raises
    ------
    LayoutError, MissingDependencyError, SourceError
        As :func:`cluster_caches` and :func:`~mlarray_xr.planning.caches.caches_from`.

    Examples
    --------
    >>> caches_for_write("cluster") == caches_for_write("local")
    True
    >>> caches_for_write("l1=32KiB,l2=1MiB,l3=2MiB").l3_bytes
    2097152
    """
    if isinstance(caches, ClusterCaches):
        return caches.smallest
    is_asked_for = isinstance(caches, str) and caches.strip().lower() == "cluster"
    if caches is not None and not is_asked_for:
        return caches_from(caches)
    try:
        return cluster_caches().smallest
    except MlaError as error:
        if is_asked_for:
            raise
        # A write that nobody wants to go to a cluster must not fail for one.
        warnings.warn(f"planned for this machine: {error}", MlaWarning, stacklevel=4)
        return detect_caches()


def _active_client() -> Client | None:
    """Return the client of the cluster that a compute here would use."""
    try:
        client: Client | None = scheduler_client() if has_client() else None
    except RuntimeError as error:  # Dask's, of an asynchronous client in its event loop
        raise SourceError(_ASYNCHRONOUS) from error
    return client


def _check_usable(client: Any) -> None:
    """Refuse what cannot be asked, or not from here."""
    from distributed import Client

    if not isinstance(client, Client):
        kind = type(client).__name__
        raise TypeError(f"client is a {kind}. To fix: give Client(cluster), or None for the active")
    if client.asynchronous:
        raise SourceError(_ASYNCHRONOUS)
    if client.status == "closed":
        raise SourceError(f"the client is closed. To fix: connect anew; or {_FIX}")


@contextlib.contextmanager
def _first_worker(client: Client, timeout_seconds: float) -> Iterator[None]:
    """Make a cluster without workers start one, and keep it while the block runs."""
    if client.nthreads():
        yield
        return
    # Adaptive clusters start workers for tasks alone, and keep those that hold a result.
    wanted = client.submit(socket.gethostname, pure=False)
    try:
        with contextlib.suppress(TimeoutError):
            wanted.exception(timeout=timeout_seconds)
        yield
    finally:
        wanted.cancel()


async def _ask_all(client: Client, timeout_seconds: float) -> dict[str, Any]:
    """Ask all workers at the same time; leave out those that die or stay silent."""
    slots = asyncio.Semaphore(_MOST_ASKED)

    async def ask(address: str) -> Any:
        # One by one: a single question to all has no answer until the last one gives it.
        async with slots:
            return (await client.run(_probe, workers=[address], on_error="return"))[address]

    asked = {asyncio.ensure_future(ask(address)): address for address in await client.nthreads()}
    if not asked:
        return {}
    answered, silent = await asyncio.wait(asked, timeout=timeout_seconds)
    for question in silent:
        question.cancel()
    answers = {asked[question]: question.exception() or question.result() for question in answered}
    return {a: answer for a, answer in answers.items() if not isinstance(answer, OSError)}


async def _probe(dask_worker: Any = None) -> dict[str, Any]:
    """Describe the machine of a worker, on that worker."""
    # On Windows detection takes a second, which heartbeats cannot spare.
    here = await asyncio.to_thread(_here)
    threads = max(1, dask_worker.state.nthreads)
    limit = dask_worker.memory_manager.memory_limit
    return {**here, "threads": threads, "memory_bytes": limit // threads if limit else None}


def _here() -> dict[str, Any]:
    """Describe the machine of this process."""
    try:
        with open(_BOOT_ID, encoding="ascii") as file:
            boot = file.read(_LONGEST_NAME).strip()
    except OSError:
        boot = ""
    return {"host": socket.gethostname(), "boot": boot, "caches": detect_caches().to_plain()}


def _this_machine(remark: str = "") -> ClusterCaches:
    """Return this machine as the only node, with a remark before where its numbers come from."""
    here = _here()
    here["caches"]["provenance"] = remark + here["caches"]["provenance"]
    node = _node("here", {**here, "threads": available_threads(), "memory_bytes": None})
    return ClusterCaches(nodes=(replace(node, workers=0),))


def _node(address: str, answer: Any) -> NodeCaches:
    """Return what a worker answered as a node of one worker."""
    if isinstance(answer, LayoutError):
        raise LayoutError(f"worker {address}: {answer}") from answer
    if isinstance(answer, Exception):
        # Dask does not keep the class of every error; nothing but a missing import is known.
        msg = f"worker {address} cannot tell its caches: {repr(answer)[:300]}. {_SAME_RELEASE}"
        raise MissingDependencyError(msg) from answer
    try:
        return NodeCaches(
            host=answer["host"],
            boot=answer["boot"],
            workers=1,
            threads=answer["threads"],
            memory_bytes=answer["memory_bytes"],
            caches=CacheSizes.from_plain(answer["caches"]),
        )
    except (LayoutError, LookupError, TypeError) as error:
        msg = f"worker {address} does not tell its caches: {repr(error)[:300]}. {_SAME_RELEASE}"
        raise SourceError(msg) from error


def _nodes(workers: Sequence[NodeCaches]) -> tuple[NodeCaches, ...]:
    """Group workers by the machine they see."""
    machines: dict[tuple[str, str], list[NodeCaches]] = {}
    for worker in workers:
        machines.setdefault((worker.host, worker.boot), []).append(worker)
    return tuple(_merged(machines[machine]) for machine in sorted(machines))


def _merged(workers: Sequence[NodeCaches]) -> NodeCaches:
    """Return workers of one machine as one node."""
    # Where equal sizes differ in provenance, a file must not depend on who answered first.
    caches = sorted((worker.caches for worker in workers), key=lambda one: one.provenance)
    return NodeCaches(
        host=workers[0].host,
        boot=workers[0].boot,
        workers=len(workers),
        threads=sum(worker.threads for worker in workers),
        memory_bytes=least_memory(workers),
        caches=smallest_caches(caches),
    )
