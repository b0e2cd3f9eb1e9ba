"""PatchSampler: in which order an epoch takes its samples, and which of them this rank takes."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch.distributed
from torch.utils.data import Sampler

from mlarray_xr.planning.draw import check_seed
from mlarray_xr.planning.epoch_order import grouped_order, plan_epoch_order, plan_share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlarray_xr.ml.torch_dataset import PatchDataset

__all__ = ["EpochSampler", "PatchSampler", "process_rank"]


class PatchSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs: every epoch has an order and patches of its own.

    Each iteration is one epoch, and the next one follows by itself; `set_epoch` says which comes
    next, as with `torch.utils.data.DistributedSampler`. Ranks take different samples.

    Parameters
    ----------
    dataset
        What is sampled.
    shuffle
        Whether the order is drawn; otherwise it is that of the collection.
    seed
        Of the order; the dataset's unless given.
    rank, world_size
        Of this process; those of `torch.distributed` where that is in use, else 0 and 1.
    even
        Whether every rank takes equally many, fewer than `world_size` samples being left out of an
        epoch; training in step needs that.
    window
        Samples within which those that touch the same chunk follow each other; 1 leaves the order
        as it was drawn. Which samples an epoch has does not change.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import PatchDataset, RandomPatches
    >>> _ = mlarray_xr.to_mla(np.zeros((9, 9, 9), "int16"), "sampled.mla")
    >>> dataset = PatchDataset(["sampled.mla"], sampling=RandomPatches(4, patches_per_volume=3))
    >>> sampler = PatchSampler(dataset, shuffle=False)
    >>> list(sampler), list(sampler)
    ([(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1), (1, 2)])
    """

    def __init__(
        self,
        dataset: PatchDataset,
        *,
        shuffle: bool = True,
        seed: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        even: bool = True,
        window: int = 1,
    ) -> None:
        self.dataset, self.shuffle, self.even, self.window = dataset, shuffle, even, window
        self.seed = dataset.samples.seed if seed is None else check_seed(seed)
        self.rank, self.world_size = process_rank(rank, world_size)
        if window < 1:
            msg = f"window={window}: at least 1 is needed"
            raise ValueError(msg)
        self.epoch = 0
        self._skipped = 0

    def set_epoch(self, epoch: int, *, skip: int = 0) -> None:
        """Say which epoch comes next, and how many samples of it this rank has seen already."""
        self.epoch = check_seed(epoch, name="epoch")
        self._skipped = check_seed(skip, name="skip")

    def __len__(self) -> int:
        """Return the number of samples that this rank takes of the next epoch."""
        n = len(self.dataset)
        share = plan_share(range(n), rank=self.rank, world_size=self.world_size, even=self.even)
        return max(len(share) - self._skipped, 0)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the samples of an epoch; the next call is the next epoch."""
        epoch, skipped = self.epoch, self._skipped
        self.epoch, self._skipped = epoch + 1, 0
        for index in islice(self.order(epoch), skipped, None):
            yield epoch, index

    def order(self, epoch: int) -> Iterator[int]:
        """Yield the samples that this rank takes of an epoch, in order."""
        order = plan_epoch_order(
            len(self.dataset), seed=self.seed, epoch=epoch, shuffle=self.shuffle
        )
        share = plan_share(order, rank=self.rank, world_size=self.world_size, even=self.even)
        if self.window == 1:
            return iter(share)
        samples = self.dataset.samples
        return grouped_order(
            share, window=self.window, key=lambda index: samples.chunk_of(index, epoch=epoch)
        )


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) pairs from a sampler of plain numbers: each iteration is an epoch.

    Parameters
    ----------
    sampler
        Such as `torch.utils.data.WeightedRandomSampler` or `DistributedSampler`.

    Examples
    --------
    >>> from torch.utils.data import SequentialSampler
    >>> sampler = EpochSampler(SequentialSampler(range(2)))
    >>> list(sampler), list(sampler)
    ([(0, 0), (0, 1)], [(1, 0), (1, 1)])
    """

    def __init__(self, sampler: Sampler[Any]) -> None:
        self.sampler = sampler
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next, also to the sampler if it wants to know."""
        self.epoch = check_seed(epoch, name="epoch")
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the samples of an epoch; the next call is the next epoch."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        for key in self.sampler:
            yield key if isinstance(key, tuple) else (epoch, int(key))


def process_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and number of processes, as given or as `torch.distributed` has them.

    Raises
    ------
    ValueError
        When there is no such rank.
    """
    is_running = torch.distributed.is_available() and torch.distributed.is_initialized()
    if world_size is None:
        world_size = torch.distributed.get_world_size() if is_running else 1
    if rank is None:
        rank = torch.distributed.get_rank() if is_running else 0
    if not 0 <= rank < world_size:
        msg = f"rank={rank} of world_size={world_size}: ranks go from 0 to world_size - 1"
        raise ValueError(msg)
    return rank, world_size
