"""The memory of a write: bounded by its limit, however large the array is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlarray
import numpy as np
import pytest

import mlarray_xr

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="resets the peak of /proc, which only Linux has"
)

ROOT = Path(__file__).parents[1]
SHAPE = (640, 500, 1000)
LIMIT_BYTES = 64_000_000
# Graph, threads, and what the allocator keeps: with the limit one process takes 20 to 50 MB in all,
# without it 90 to 120.
MARGIN_BYTES = 15_000_000

WRITE = """
import json, os, sys
import dask
import dask.array as da
import numpy as np
import mlarray_xr


class Ramp:
    '''Values that depend on their position, made when they are taken.'''

    def __init__(self, shape):
        self.shape, self.dtype = shape, np.dtype("<i2")
        self.ndim, self.size = len(shape), int(np.prod(shape))

    def __dask_tokenize__(self):
        return "ramp", self.shape

    def __getitem__(self, key):
        z, y, x = (np.arange(*along.indices(n), dtype="<i2") for along, n in zip(key, self.shape))
        return z[:, None, None] + (y // 8)[:, None] + x // 16


def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return used("VmRSS")


def used(name):
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(name))
    return int(line.split()[1]) * 1024


def main():
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    way, path, limit, shape = json.loads(sys.argv[1])
    options = {"chunks": 100, "blocks": 50, "codec": "lz4-1", "resume": way == "resumable"}
    source = Ramp(tuple(shape))
    chunks = (200 if way == "cluster" else 100, 100, 500)
    lazy = da.from_array(source, chunks=chunks, inline_array=True)
    warm = np.zeros((200, 200, 200), "<i2")
    if way == "cluster":
        from distributed import Client, LocalCluster

        with (
            LocalCluster(
                n_workers=2,
                threads_per_worker=1,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=0,
            ) as cluster,
            Client(cluster) as client,
        ):
            mlarray_xr.to_mla(da.from_array(warm, chunks=100), path, **options)
            before = {**client.run(reset), "client": reset()}
            mlarray_xr.to_mla(lazy, path, mode="w", memory_limit=limit, **options)
            after = {**client.run(used, "VmHWM"), "client": used("VmHWM")}
        print(max(after[worker] - before[worker] for worker in before))
        return
    with dask.config.set(scheduler="threads"):
        subject = lazy if way == "threads" else source
        mlarray_xr.to_mla(da.from_array(warm, chunks=100), path, **options)
        mlarray_xr.to_mla(warm, path, mode="w", **options)
        before = reset()
        mlarray_xr.to_mla(subject, path, mode="w", memory_limit=limit, **options)
        print(used("VmHWM") - before)


if __name__ == "__main__":
    main()
"""


def peak_bytes(way: str, path: Path) -> int:
    """Write in a process of its own, and return how much its memory grew at most."""
    script = path.with_name("write.py")
    script.write_text(WRITE)
    asked = json.dumps([way, str(path), LIMIT_BYTES, SHAPE])
    done = subprocess.run(
        [sys.executable, str(script), asked], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def slab(start: int, stop: int) -> Any:
    z, y, x = np.arange(start, stop), np.arange(SHAPE[1]) // 8, np.arange(SHAPE[2]) // 16
    return (z[:, None, None] + y[:, None] + x).astype("i2")


@pytest.mark.parametrize("way", ["direct", "resumable", "threads", "cluster"])
def test_a_limit_bounds_the_memory_of_a_write(tmp_path: Path, way: str) -> None:
    path = tmp_path / "large.mla"
    assert np.prod(SHAPE) * 2 == 10 * LIMIT_BYTES
    peak = peak_bytes(way, path)
    assert peak <= LIMIT_BYTES + MARGIN_BYTES
    array, theirs = mlarray_xr.MlaArray(path), mlarray.MLArray.open(str(path))
    assert array.shape == SHAPE
    for start in (0, 310, 630):
        np.testing.assert_array_equal(array[start : start + 10], slab(start, start + 10))
        np.testing.assert_array_equal(theirs[start : start + 10], slab(start, start + 10))
    assert [found.name for found in tmp_path.iterdir() if found.suffix != ".py"] == ["large.mla"]
