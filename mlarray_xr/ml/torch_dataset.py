"""PatchDataset: patches as a map-style dataset of PyTorch."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch.utils.data import Dataset

from mlarray_xr.ml.patch_samples import PatchSamples
from mlarray_xr.ml.torch_batch import read_samples
from mlarray_xr.planning.draw import check_seed
from mlarray_xr.storage.read_pool import check_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import SupportsIndex

    from numpy.typing import DTypeLike

    from mlarray_xr.ml.collection import Collection
    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.draw import Draw
    from mlarray_xr.planning.padding import Padding
    from mlarray_xr.planning.sampling import Sampling

__all__ = ["PatchDataset", "SampleKey"]

SampleKey: TypeAlias = "SupportsIndex | tuple[int, int]"
"""The number of a sample in the current epoch, or (epoch, number)."""

# Places are drawn from stream 0.
_TRANSFORM = 1
_MONAI_SEEDS = 2**32


class PatchDataset(Dataset[dict[str, Any]]):
    """Patches of the volumes of a collection, each read from its file when it is asked for.

    Sample ``(epoch, i)`` is the same whoever reads it: it depends on seed, epoch and i, not on
    workers, order or earlier samples. It holds no open file: fork, spawn and forkserver all work.

    Parameters
    ----------
    collection
        The subjects: a `Collection`, or what `Collection.from_files` takes, such as a list of
        paths.
    sampling
        Which patches: `RandomPatches`, `ForegroundPatches`, `GridPatches`, `Slices2D` or
        `WholeVolume`.
    image
        Modalities whose channels, one after another, are the image; the only one unless given.
    mask
        Modalities that are the mask.
    label
        Column of the collection's table that becomes ``sample["label"]``.
    transform
        Called with each sample; what it returns is the sample. Dict transforms of MONAI fit. What
        it draws from PyTorch's generator, or as MONAI's random transforms do, follows from the
        sample, too.
    padding
        What surrounds volumes that are smaller than the patch; zeros unless given.
    seed
        Of all chance.
    dtype
        Type of images; the stored one unless given.
    channel
        The axis that becomes the first one: name or number; by name where there is one.
    storage_options
        How to get at URLs, see `mlarray_xr.MlaArray`.
    index_folder
        A folder for what was found out about the foreground of files without statistics.
    threads
        Threads that read the samples of a batch; None takes the free CPUs, one in a worker.
    pin_memory
        Whether batches that this process reads itself go to pinned memory.

    Raises
    ------
    LayoutError
        When modalities are unknown.
    ConversionError
        When labels are missing.

    Notes
    -----
    A sample is a dict: ``image`` (C, *patch), in the stored type; ``mask`` likewise, when asked
    for; ``label``, when asked for; ``affine`` (s + 1, s + 1), float64, patch index to world of the
    s spatial axes, RAS where the file says RAS or LPS; ``coord_system``, which says so; ``axes``,
    for each axis of the image but the first its column in the affine, -1 where it is not spatial;
    ``box`` (n, 2), start and stop along each axis, which may reach outside; ``valid`` (n, 2), the
    part of the patch that holds data; ``subject``; ``index``.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import PatchDataset, RandomPatches
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "ct.mla")
    >>> dataset = PatchDataset(["ct.mla"], sampling=RandomPatches(16, patches_per_volume=8))
    >>> sample = dataset[3]
    >>> len(dataset), tuple(sample["image"].shape), sample["subject"]
    (8, (1, 16, 16, 16), 'ct')
    """

    def __init__(
        self,
        collection: Collection | Mapping[str, Any] | Sequence[str],
        *,
        sampling: Sampling,
        image: str | Sequence[str] | None = None,
        mask: str | Sequence[str] | None = None,
        label: str | None = None,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        padding: Padding | None = None,
        seed: int = 0,
        dtype: DTypeLike | None = None,
        channel: Channel = "auto",
        storage_options: Mapping[str, Any] | None = None,
        index_folder: str | None = None,
        threads: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        check_threads(threads)
        self.samples = PatchSamples(
            collection,
            sampling=sampling,
            image=image,
            mask=mask,
            label=label,
            padding=padding,
            seed=seed,
            dtype=dtype,
            channel=channel,
            storage_options=storage_options,
            index_folder=index_folder,
        )
        self.transform, self.threads, self.pin_memory = transform, threads, pin_memory
        # In shared memory: workers that are running see what `set_epoch` says.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the dataset; a copy has an epoch of its own, which its workers see."""
        vars(self).update(state)
        if not self._epoch.is_shared():
            self._epoch.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch of samples that are asked for by number alone."""
        return int(self._epoch.item())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch samples are of, here and in workers of this dataset."""
        self._epoch[0] = check_seed(epoch, name="epoch")

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> Any:
        """Return a sample by number, or by (epoch, number).

        Raises
        ------
        IndexError
            When there is no such sample.
        MlaError, OSError
            When a file cannot be read; the message names subject, file and box.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[SampleKey]) -> list[Any]:
        """Return several samples, read side by side; PyTorch asks for batches this way."""
        epoch = self.epoch
        planned = []
        for key in keys:
            of, index = key if isinstance(key, tuple) else (epoch, self._from_start(key))
            planned.append(self.samples.plan(index, epoch=of))
        found = read_samples(
            self.samples,
            planned,
            threads=self.threads,
            is_pinned=self.pin_memory,
            is_collated=self.transform is None,
        )
        if self.transform is None:
            return found
        pairs = zip(found, planned, strict=True)
        return [self._transformed(sample, each.draw) for sample, each in pairs]

    def __iter__(self) -> Iterator[Any]:
        """Yield the samples of the current epoch, in order."""
        return (self[index] for index in range(len(self)))

    def _from_start(self, key: SupportsIndex) -> int:
        """Return the number of a sample that may be counted from the end."""
        index = operator.index(key)
        return index + len(self) if index < 0 else index

    def _transformed(self, sample: dict[str, Any], draw: Draw) -> Any:
        """Apply the transform, its chance being the sample's; an error says which that was."""
        assert self.transform is not None
        subject, index, box = sample["subject"], sample["index"], sample["box"].tolist()
        seed = int(draw.generator(stream=_TRANSFORM).integers(_MONAI_SEEDS))
        set_random_state = getattr(self.transform, "set_random_state", None)
        if set_random_state is not None:  # a random transform of MONAI
            set_random_state(seed=seed)
        before = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(seed)
            return self.transform(sample)
        except Exception as error:
            error.add_note(f"in the transform of sample {index}, subject {subject!r}, box {box}")
            raise
        finally:
            torch.default_generator.set_state(before)
