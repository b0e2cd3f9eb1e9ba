"""Read random patches from several files in threads, each thread into one buffer that it reuses."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import mlarray_xr

PATCH = (64, 64, 64)
THREADS = 4
PATCHES_PER_THREAD = 50


def make_files(folder: Path) -> list[Path]:
    """Write three volumes whose chunks and blocks suit the patch."""
    paths = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 200, (128, 160, 160), np.int16)
        paths.append(folder / f"volume_{seed}.mla")
        mlarray_xr.to_mla(values, paths[-1], patch=PATCH, codec="lz4-5")
    return paths


def read_patches(arrays: list[mlarray_xr.MlaArray], seed: int) -> float:
    """Read patches of one thread; return the mean of their means."""
    rng = np.random.default_rng(seed)
    buffer = np.empty(PATCH, arrays[0].dtype)
    total = 0.0
    for _ in range(PATCHES_PER_THREAD):
        array = arrays[rng.integers(len(arrays))]
        starts = [int(rng.integers(0, n - p + 1)) for n, p in zip(array.shape, PATCH, strict=True)]
        box = [(start, start + p) for start, p in zip(starts, PATCH, strict=True)]
        # One thread per read: the threads of the pool are the parallelism.
        array.read(box, out=buffer, threads=1)
        total += float(buffer.mean())
    return total / PATCHES_PER_THREAD


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arrays = [mlarray_xr.MlaArray(path) for path in make_files(Path(folder))]
        begin = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            means = list(pool.map(lambda seed: read_patches(arrays, seed), range(THREADS)))
        seconds = time.perf_counter() - begin
        n_patches = THREADS * PATCHES_PER_THREAD
        print(f"{n_patches} patches of {PATCH} in {seconds:.2f} s")
        print(f"mean value {np.mean(means):.2f}")


if __name__ == "__main__":
    main()
