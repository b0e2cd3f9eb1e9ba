"""IterablePatchDataset: patches as a stream of ready batches."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from mlarray_xr.ml.torch_batch import collate_patches
from mlarray_xr.ml.torch_sampler import PatchSampler
from mlarray_xr.planning.draw import check_seed
from mlarray_xr.planning.sizes import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mlarray_xr.ml.torch_dataset import PatchDataset

__all__ = ["IterablePatchDataset"]

_MOST_WORKERS = 128


class IterablePatchDataset(IterableDataset[Any]):
    """Batches of an epoch, one after another; workers and ranks share them without duplicates.

    Workers take turns batch by batch, so the order does not depend on how many there are. Give it
    to ``DataLoader(stream, batch_size=None)``, which passes batches on as they are.

    Parameters
    ----------
    dataset
        Where samples come from.
    batch_size
        Samples of a batch.
    shuffle, seed, rank, world_size, window
        As of `PatchSampler`.
    drop_last
        Whether the last batch is left out when it is smaller.
    collate_fn
        Makes a batch of samples.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import IterablePatchDataset, PatchDataset, RandomPatches
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "stream.mla")
    >>> dataset = PatchDataset(["stream.mla"], sampling=RandomPatches(16, patches_per_volume=5))
    >>> stream = IterablePatchDataset(dataset, batch_size=2)
    >>> [tuple(batch["image"].shape) for batch in stream]
    [(2, 1, 16, 16, 16), (2, 1, 16, 16, 16)]
    """

    def __init__(
        self,
        dataset: PatchDataset,
        *,
        batch_size: int = 4,
        shuffle: bool = True,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        window: int = 1,
        drop_last: bool = True,
        collate_fn: Callable[[Sequence[dict[str, Any]]], Any] = collate_patches,
    ) -> None:
        self.dataset = dataset
        self.batch_size = whole_number(batch_size, "batch_size", least=1)
        self.drop_last, self.collate_fn = drop_last, collate_fn
        self.sampler = PatchSampler(
            dataset, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size, window=window
        )
        # The next epoch of every worker, in shared memory: also those made for it anew go on.
        n_counters = 1 + _MOST_WORKERS * (_MOST_WORKERS + 1) // 2
        self._epochs = torch.zeros(n_counters, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the stream; a copy has epochs of its own, which its workers see."""
        vars(self).update(state)
        if not self._epochs.is_shared():
            self._epochs.share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, here and in workers; later ones follow by themselves."""
        self._epochs[:] = check_seed(epoch, name="epoch")

    def __len__(self) -> int:
        """Return the number of batches that this rank takes of an epoch."""
        n, size = len(self.sampler), self.batch_size
        return n // size if self.drop_last else -(-n // size)

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches of an epoch that are this worker's; the next call is the next epoch."""
        worker = get_worker_info()
        own, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        # Workers of one loader count alike; loaders with more or fewer of them, apart.
        counter = 0 if worker is None else 1 + step * (step - 1) // 2 + own
        epoch = int(self._epochs[counter])
        self._epochs[counter] += 1
        order = self.sampler.order(epoch)
        for number in range(len(self)):
            keys = [(epoch, index) for index in islice(order, self.batch_size)]
            if number % step == own:
                yield self.collate_fn(self.dataset.__getitems__(keys))
