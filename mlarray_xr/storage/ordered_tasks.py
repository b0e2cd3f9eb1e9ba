"""Tasks that run side by side in threads while their results are used in order."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from mlarray_xr.storage.read_pool import available_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

__all__ = ["run_ordered"]

Result = TypeVar("Result")


def run_ordered(tasks: Iterable[Callable[[], Result]]) -> Generator[Result]:
    """Run tasks in threads and yield results in order, keeping one more than threads under way.

    No thread idles while a result is used, and no more than that many results wait.
    """
    threads = available_threads()
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
