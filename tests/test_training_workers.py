"""Loader workers of every kind, each in a process of its own with a time limit."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest

import mlarray_xr

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 120
FEW_CPUS = "ignore:This DataLoader will create:UserWarning"

START = """
import sys

import torch

import mlarray_xr
from mlarray_xr.ml.torch import collate_patches, create_training_dataloader
from mlarray_xr.storage.handles import open_readers
from mlarray_xr.storage.read_pool import available_threads


class Seen:
    '''What a worker found when its first sample came.'''

    def __call__(self, sample):
        info = torch.utils.data.get_worker_info()
        sample["readers"] = open_readers()
        sample["worker"] = -1 if info is None else info.id
        sample["torch_threads"] = torch.get_num_threads()
        return sample


def loader(num_workers, **more):
    return create_training_dataloader(
        sys.argv[1:], patch_size=16, patches_per_volume=6, num_workers=num_workers, seed=3, **more
    )


def memory():
    # Private and shared, bytes, without mapped files.
    status = open("/proc/self/status").read()
    return sum(
        1024 * int(status.partition(name)[2].split()[0]) for name in ("RssAnon:", "RssShmem:")
    )


def with_memory(samples):
    return {**collate_patches(samples), "memory": memory()}


def found(batches):
    return [
        (index, box.tolist(), int(image.sum()))
        for batch in batches
        for index, box, image in zip(batch["index"].tolist(), batch["box"], batch["image"])
    ]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("workers")
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.mla" for i in range(2)]
    for path in paths:
        mlarray_xr.to_mla(rng.integers(0, 999, (40, 40, 40), np.int16), path, patch=16)
    return [str(path) for path in paths]


def run(code: str, files: list[str], tmp_path: Path) -> None:
    """Run a script that ends with `main()`, as spawned processes need it."""
    script = tmp_path / "script.py"
    body = textwrap.indent(textwrap.dedent(code), "    ")
    script.write_text(f"{START}\n\ndef main():{body}\n\nif __name__ == '__main__':\n    main()\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", FEW_CPUS, str(script), *files],
        timeout=SECONDS,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_after_the_parent_has_read(method: str, files: list[str], tmp_path: Path) -> None:
    code = f"""
        whole = [mlarray_xr.MlaArray(path, threads=4) for path in sys.argv[1:]]
        assert all(array[:].shape == (40, 40, 40) for array in whole)
        own = loader(0)
        first, second = found(own), found(own)
        workers = loader(2, multiprocessing_context={method!r}, transform=Seen())
        batches = list(workers)
        assert found(batches) == first
        assert {{int(w) for batch in batches for w in batch["worker"]}} == {{0, 1}}
        # None was inherited: a worker has those it has opened, two at most.
        assert max(int(n) for batch in batches for n in batch["readers"]) <= 2
        assert found(workers) == second  # the same workers, the next epoch
        whole[0][:3]
        del workers
    """
    run(code, files, tmp_path)


def test_workers_beside_dask_in_one_process(files: list[str], tmp_path: Path) -> None:
    code = """
        import dask

        from mlarray_xr.dask import from_mla

        array = from_mla(sys.argv[1])
        with dask.config.set(scheduler="threads", num_workers=4):
            total = int(array.sum().compute())
            workers = loader(2, multiprocessing_context="fork", persistent_workers=False)
            for _ in range(3):
                assert len(found(workers)) == 12
                assert int(array.sum().compute()) == total
    """
    run(code, files, tmp_path)


def test_workers_that_are_forked_while_other_threads_read(files: list[str], tmp_path: Path) -> None:
    code = """
        import threading

        array, stop = mlarray_xr.MlaArray(sys.argv[1], threads=2), threading.Event()

        def read():
            while not stop.is_set():
                array[:]

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                assert len(found(loader(2, multiprocessing_context="fork"))) == 12
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    """
    run(code, files, tmp_path)


def test_a_worker_s_error_names_subject_file_and_box(files: list[str], tmp_path: Path) -> None:
    code = """
        import os

        workers = loader(1, multiprocessing_context="fork")
        with open(sys.argv[1], "r+b") as file:
            file.truncate(os.path.getsize(sys.argv[1]) // 2)
        try:
            found(workers)
        except mlarray_xr.errors.MlaError as error:
            assert "subject '0'" in str(error) and "0.mla" in str(error), error
        else:
            raise AssertionError("nothing was noticed")
    """
    damaged = tmp_path / "0.mla"
    with open(files[0], "rb") as file:
        damaged.write_bytes(file.read())
    run(code, [str(damaged), files[1]], tmp_path)


def test_streams_share_batches_among_workers(files: list[str], tmp_path: Path) -> None:
    code = """
        from torch.utils.data import DataLoader

        from mlarray_xr.ml.torch import IterablePatchDataset

        dataset = loader(0).dataset
        stream = IterablePatchDataset(dataset, batch_size=4)
        plain = found(stream)
        workers = DataLoader(stream, batch_size=None, num_workers=2)
        assert found(workers) == plain
    """
    run(code, files, tmp_path)


def test_memory_of_a_worker_does_not_grow_with_the_volume(tmp_path: Path) -> None:
    path = tmp_path / "large.mla"
    # 512 MiB of voxels, of which most chunks are stored as nothing but zeros.
    with mlarray_xr.create(path, shape=(512, 1024, 1024), dtype="uint8", patch=64) as out:
        out[200:264, 200:264, 200:264] = 7
    code = """
        batches = create_training_dataloader(
            sys.argv[1:], patch_size=96, patches_per_volume=48, num_workers=1,
            multiprocessing_context="fork", collate_fn=with_memory,
        )
        used = [batch["memory"] for batch in batches]
        batch_bytes = 4 * 96**3
        assert max(used) - memory() <= batch_bytes + 100e6, (memory(), used)
    """
    run(code, [str(path)], tmp_path)
