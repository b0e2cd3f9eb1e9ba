"""The door to Dask: `.mla` files as Dask arrays, and the cluster that computes them."""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
import warnings
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, TypeVar

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import MlaWarning, SourceError
from mlarray_xr.planning.grid import plan_part
from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
    from concurrent.futures import Executor, Future

    import dask.array as da
    from distributed import Client

__all__ = ["from_mla"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_HERE = "127.0.0.1:0"
# A scheduler handles some thousand tasks a second, and a graph of more is slow to build and send.
_MOST_TASKS = 100_000


def from_mla(
    path: object,
    chunks: str | int | tuple[Any, ...] | Mapping[int, Any] = "auto",
    *,
    inline_array: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    store: Any = None,
) -> da.Array:
    """Open a file as a lazy Dask array, one task per part, without xarray.

    Nothing but the header is read. Every task reads its part through this process's cache of
    mapped files and releases the GIL, so Dask's threads decode in parallel; what travels to
    workers is the address, less than 2 kB.

    Parameters
    ----------
    path
        Anything `MlaArray` accepts, or an `MlaArray`.
    chunks
        ``"auto"``: parts of whole file chunks near Dask's ``array.chunk-size`` (128 MiB unless
        configured), smaller for small arrays. ``"file"``: one file chunk per part. Anything else
        goes to Dask as it is: extents, tuples of extents, a mapping from axis, -1 for one part.
    inline_array
        Whether tasks hold the address themselves instead of depending on one root task. Files
        in memory are always one root task.
    storage_options
        How to get at a URL: credentials, endpoint and such, as fsspec or obstore spell them.
    store
        A ready obstore store or fsspec filesystem, in which `path` is a path.

    Returns
    -------
    dask.array.Array
        Of the file's shape and dtype. Its name is the same in every process and changes when the
        file does.

    Raises
    ------
    FileNotFoundError, FormatError, SourceError
        As `MlaArray`.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.dask import from_mla
    >>> _ = mlarray_xr.to_mla(np.arange(24).reshape(4, 6), "lazy.mla", chunks=(2, 3))
    >>> int(from_mla("lazy.mla", chunks="file").sum().compute())
    276
    """
    import dask.array as da
    import numpy as np

    array = path
    if not isinstance(array, MlaArray):
        array = MlaArray(path, storage_options=storage_options, store=store)
    wanted: Any = chunks
    if isinstance(chunks, str) and chunks in ("auto", "file"):
        # No part is smaller than one file chunk, so a target of nothing is one chunk per part.
        target = array_chunk_bytes() if chunks == "auto" else 0
        wanted = plan_part(
            array.shape, array.chunks, itemsize=array.dtype.itemsize, target_bytes=target
        )
        n_tasks = math.prod(-(-n // p) for n, p in zip(array.shape, wanted, strict=True))
        warn_of_many_tasks(n_tasks, fix="chunks= larger, or Dask's array.chunk-size")
    lazy: da.Array = da.from_array(
        array,
        chunks=wanted,
        asarray=True,
        lock=False,
        # The bytes of a file in memory would travel with every task.
        inline_array=inline_array and array.path is not None,
        meta=np.empty((0,) * array.ndim, array.dtype),
    )
    return lazy


def warn_of_many_tasks(n_tasks: int, *, fix: str) -> None:
    """Warn of a graph of more than 100 000 tasks.

    Parameters
    ----------
    n_tasks
        Number of parts.
    fix
        Which setting makes parts larger.
    """
    if n_tasks > _MOST_TASKS:
        msg = (
            f"{n_tasks} tasks: more than {_MOST_TASKS} take minutes to build and schedule. "
            f"To fix: {fix}"
        )
        warnings.warn(msg, MlaWarning, stacklevel=3)


def array_chunk_bytes() -> int | None:
    """Return Dask's ``array.chunk-size`` in bytes, None as long as Dask has not been imported.

    Opening a file without ``chunks=`` must not import Dask; the default is the same 128 MiB.
    """
    if "dask.config" not in sys.modules:
        return None
    from dask.config import get
    from dask.utils import parse_bytes

    return int(parse_bytes(get("array.chunk-size", "128MiB")))


def from_address(array: Any, *, chunks: tuple[tuple[int, ...], ...]) -> da.Array:
    """Return a Dask array of anything that can be sliced; its address travels with every task."""
    import dask.array as da
    import numpy as np

    lazy: da.Array = da.from_array(
        array,
        chunks=chunks,
        asarray=True,
        lock=False,
        inline_array=not isinstance(array, np.ndarray),
        meta=np.empty((0,) * len(array.shape), array.dtype),
    )
    return lazy


def has_client() -> bool:
    """Tell whether work should go to a distributed cluster, without importing Dask.

    Inside a task of one it should not: the task is the share of its worker.
    """
    if "distributed" not in sys.modules or scheduler_client() is None:
        return False
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return True
    return False


@contextlib.contextmanager
def embedded_cluster() -> Iterator[Client]:
    """Run a distributed cluster inside this process: one worker, a thread per usable CPU.

    While it runs it is the scheduler of every compute. Nothing listens beyond this machine.
    """
    import dask.config
    from distributed import Client, LocalCluster

    quiet = {
        # Arrays in memory reach the worker through memory: sending them is no mistake here.
        "distributed.admin.large-graph-warning-threshold": "1TiB",
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=1,
            threads_per_worker=available_threads(),
            processes=False,
            # None would listen on the default port on all interfaces, and warn when it is taken.
            dashboard_address=_HERE,
            worker_dashboard_address=_HERE,
            # The worker would count, and pause for, the memory of the program around it.
            memory_limit=0,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


@contextlib.contextmanager
def local_cluster(n_workers: int) -> Iterator[Client]:
    """Run a distributed cluster of single-threaded processes on this machine.

    While it runs it is the scheduler of every compute. Nothing listens beyond this machine, and
    nothing is logged but what is critical. The processes end with the block, and with the process
    that started them, however that ends.

    Parameters
    ----------
    n_workers
        Number of processes.
    """
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            # None would listen on the default port on all interfaces, and warn when it is taken.
            dashboard_address=_HERE,
            worker_dashboard_address=_HERE,
            # Mapped files count as a worker's memory, and it would be paused or killed for them.
            # What it really needs is bounded by the parts under way.
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(_ignore_interrupts)
        yield client


def _ignore_interrupts() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the one that is in charge."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Client]:
    """Make the cluster at an address the scheduler of every compute while the block runs.

    Parameters
    ----------
    address
        Of its scheduler, such as ``"tcp://10.0.0.1:8786"``.

    Raises
    ------
    SourceError
        When nothing answers there.
    """
    from distributed import Client

    try:
        client = Client(address)
    except (OSError, ValueError) as error:
        msg = f"{address}: no Dask scheduler answers there: {error}. To fix: start one, or wait"
        raise SourceError(msg) from error
    with client:
        yield client


def run_tasks(
    function: Callable[[Item], Result], items: Sequence[Item], *, jobs: int | None = None
) -> Generator[tuple[int, Future[Result]]]:
    """Call a function for each item, on the cluster of the active client or in threads here.

    Parameters
    ----------
    function
        Picklable, as the items are. May run twice for an item when a worker dies.
    items
        What it is called with.
    jobs
        Calls under way at the same time; None keeps every thread busy.

    Yields
    ------
    number, future
        Of each item, as they finish. What has not begun is cancelled when the iterator is closed.
    """
    executor, most = _executor(jobs)
    remaining = enumerate(items)
    numbers: dict[Future[Result], int] = {}
    try:
        while True:
            while len(numbers) < most and (following := next(remaining, None)) is not None:
                numbers[executor.submit(function, following[1])] = following[0]
            if not numbers:
                return
            for future in wait(numbers, return_when=FIRST_COMPLETED).done:
                yield numbers.pop(future), future
    finally:
        for future in numbers:
            future.cancel()
        # Of a cluster the shutdown would wait for tasks that nobody needs.
        executor.shutdown(wait=isinstance(executor, ThreadPoolExecutor))


def _executor(jobs: int | None) -> tuple[Executor, int]:
    """Return where tasks run, and how many are submitted at the same time."""
    if has_client():
        client = scheduler_client()
        # One waits for each that runs, so that no worker idles while a result is looked at.
        most = jobs or 2 * max(1, sum(client.nthreads().values()))
        return client.get_executor(pure=False), most
    most = jobs or available_threads()
    return ThreadPoolExecutor(most), most


def scheduler_client() -> Any:
    """Return the distributed client a compute here would use, None for a local scheduler."""
    import dask.base

    owner = getattr(dask.base.get_scheduler(), "__self__", None)
    return owner if type(owner).__module__.split(".")[0] == "distributed" else None


def thread_memory_bytes() -> int | None:
    """Return the least memory per thread of the active cluster's workers; None without limits."""
    client = scheduler_client()
    if client is None or client.asynchronous:
        return None
    # Some releases tell of five workers unless they are asked for all.
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limited = [worker for worker in workers if worker["memory_limit"]]
    return min((w["memory_limit"] // w["nthreads"] for w in limited), default=None)


def is_dask(obj: object) -> bool:
    """Tell whether an object is a Dask array, without importing Dask."""
    # Nothing is one as long as another thread is still importing it, when it has no Array yet.
    return isinstance(obj, getattr(sys.modules.get("dask.array"), "Array", ()))
