"""A new process that trains on nothing: how soon the first batch is there, what memory it takes.

``python -m benchmarks.training_probe first|memory EDGE WORKERS FILE...`` prints a number as JSON:
seconds, or bytes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.training_readers import EpochSize, our_loader

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["first_batch_s", "most_memory"]

_BATCHES = 24
_LOOK_S = 0.002


def first_batch_s(paths: list[Path], *, edge: int, workers: int) -> float:
    """Return the seconds from the list of files to the first batch."""
    begin = time.perf_counter()
    loader = our_loader(paths, EpochSize(edge=edge, patches_per_volume=1, workers=workers))
    next(iter(loader))
    return time.perf_counter() - begin


def most_memory(paths: list[Path], *, edge: int, workers: int) -> int:
    """Return the most private memory that the process which reads had more than before, bytes."""
    size = EpochSize(edge=edge, patches_per_volume=4 * _BATCHES // len(paths), workers=workers)
    loader = our_loader(paths, size)
    # A forked worker begins with what its parent has.
    before = _private_bytes(os.getpid())
    batches = iter(loader)
    readers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    with _watched(readers or [os.getpid()]) as most:
        for batch in batches:
            del batch
    return max(most) - before


@contextmanager
def _watched(processes: list[int]) -> Iterator[list[int]]:
    """Note the private memory of processes again and again while a block runs."""
    seen = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(_LOOK_S):
            seen[0] = max(seen[0], *(_private_bytes(process) for process in processes))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()


def _private_bytes(process: int) -> int:
    """Return the resident memory of a process that no file stands behind."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def main(what: str, edge: str, workers: str, *paths: str) -> None:
    """Print one number."""
    measure = {"first": first_batch_s, "memory": most_memory}[what]
    print(json.dumps(measure([*map(Path, paths)], edge=int(edge), workers=int(workers))))


if __name__ == "__main__":
    main(*sys.argv[1:])
