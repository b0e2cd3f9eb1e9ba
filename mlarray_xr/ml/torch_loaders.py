"""Loaders: DataLoaders for training, segmentation, validation and inference, in one call each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlarray_xr.ml.torch_dataset import PatchDataset
from mlarray_xr.ml.torch_loading import Loading, labelled, random_sampling
from mlarray_xr.ml.torch_sampler import PatchSampler
from mlarray_xr.planning.grid_patches import GridPatches
from mlarray_xr.planning.slices import WholeVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    import torch
    from numpy.typing import DTypeLike
    from torch.utils.data import DataLoader, Sampler

    from mlarray_xr.ml.collection import Collection
    from mlarray_xr.ml.volume import Channel
    from mlarray_xr.planning.foreground import Foreground
    from mlarray_xr.planning.grid_patches import Overlap
    from mlarray_xr.planning.padding import Padding
    from mlarray_xr.planning.sampling import Sampling
    from mlarray_xr.planning.sizes import Sizes

__all__ = [
    "create_inference_dataloader",
    "create_segmentation_dataloader",
    "create_training_dataloader",
    "create_validation_dataloader",
]


def create_training_dataloader(
    collection: Collection | Mapping[str, Any] | Sequence[str],
    *,
    patch_size: Sizes | None = None,
    labels: str | Mapping[str, Any] | pd.Series[Any] | None = None,
    image: str | Sequence[str] | None = None,
    batch_size: int = 4,
    patches_per_volume: int = 1,
    num_workers: int = 4,
    pin_memory: bool = True,
    persistent_workers: bool = True,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    padding: Padding | None = None,
    dtype: DTypeLike | None = None,
    channel: Channel = "auto",
    window: int = 1,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = True,
    sampler: Sampler[Any] | None = None,
    generator: torch.Generator | None = None,
    collate_fn: Callable[[Sequence[dict[str, Any]]], Any] | None = None,
    prefetch_factor: int | None = None,
    multiprocessing_context: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> DataLoader[Any]:
    """Load random patches, shuffled, others in every epoch.

    Parameters
    ----------
    collection
        The subjects: a `Collection`, or what `Collection.from_files` takes.
    patch_size
        Extents of the patches: one for every spatial axis, one per axis, or by dimension; None
        takes volumes whole.
    labels
        Column of the collection's table, or labels by subject; they become ``batch["label"]``.
    image
        Modalities whose channels, one after another, are the image; the only one unless given.
    batch_size, num_workers, pin_memory, persistent_workers, drop_last, generator, prefetch_factor
        As of `torch.utils.data.DataLoader`. Memory is pinned where there is a CUDA device, and
        workers persist where there are any.
    patches_per_volume
        Patches of each volume in an epoch.
    transform
        Called with each sample, see `PatchDataset`.
    seed
        Of order and patches: equal seeds give equal batches, whatever the number of workers.
    sampling
        Which patches, instead of `patch_size` and `patches_per_volume`.
    padding, dtype, channel, storage_options
        As of `PatchDataset`.
    window, rank, world_size
        As of `PatchSampler`.
    sampler
        Instead of `PatchSampler`; yields numbers of samples, or (epoch, number).
    collate_fn
        Makes a batch of samples.
    multiprocessing_context
        ``"fork"``, ``"spawn"`` or ``"forkserver"``.

    Returns
    -------
    torch.utils.data.DataLoader
        ``loader.sampler.set_epoch`` says which epoch comes next; without, they follow each other.

    Raises
    ------
    ValueError
        When there are too few samples for one batch.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import create_training_dataloader
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "train.mla")
    >>> loader = create_training_dataloader(
    ...     ["train.mla"], patch_size=16, patches_per_volume=8, num_workers=0
    ... )
    >>> [tuple(batch["image"].shape) for batch in loader]
    [(4, 1, 16, 16, 16), (4, 1, 16, 16, 16)]
    """
    loading = Loading(
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers,
        drop_last=drop_last,
        prefetch_factor=prefetch_factor,
        generator=generator,
        collate_fn=collate_fn,
        multiprocessing_context=multiprocessing_context,
    )
    collection, label = labelled(collection, labels)
    dataset = PatchDataset(
        collection,
        sampling=random_sampling(sampling, patch_size, patches_per_volume),
        image=image,
        label=label,
        transform=transform,
        padding=padding,
        seed=seed,
        dtype=dtype,
        channel=channel,
        storage_options=storage_options,
        pin_memory=loading.pins,
    )
    if sampler is None:
        sampler = PatchSampler(dataset, rank=rank, world_size=world_size, window=window)
    return loading.loader(dataset, sampler=sampler)


def create_segmentation_dataloader(
    collection: Collection | Mapping[str, Any],
    *,
    mask: str | Sequence[str],
    patch_size: Sizes | None = None,
    image: str | Sequence[str] | None = None,
    foreground_sampling: bool | float | Mapping[float, float] | Foreground = False,
    batch_size: int = 4,
    patches_per_volume: int = 1,
    num_workers: int = 4,
    pin_memory: bool = True,
    persistent_workers: bool = True,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    padding: Padding | None = None,
    dtype: DTypeLike | None = None,
    channel: Channel = "auto",
    window: int = 1,
    rank: int | None = None,
    world_size: int | None = None,
    drop_last: bool = True,
    sampler: Sampler[Any] | None = None,
    generator: torch.Generator | None = None,
    collate_fn: Callable[[Sequence[dict[str, Any]]], Any] | None = None,
    prefetch_factor: int | None = None,
    multiprocessing_context: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    index_folder: str | None = None,
) -> DataLoader[Any]:
    """Load random patches of images and masks, on request around foreground.

    Parameters
    ----------
    mask
        Modalities that are the mask; ``batch["mask"]`` keeps their type.
    foreground_sampling
        True: every patch is centred on an element of the mask above 0. A number: so large a share
        of the patches. A mapping: labels and their weights. A `Foreground`: what it says.
    index_folder
        As of `PatchDataset`.
    collection, patch_size, image, batch_size, patches_per_volume, num_workers, pin_memory, \
persistent_workers, transform, seed, sampling, padding, dtype, channel, window, rank, \
world_size, drop_last, sampler, generator, collate_fn, prefetch_factor, multiprocessing_context, \
storage_options
        As of `create_training_dataloader`.

    Returns
    -------
    torch.utils.data.DataLoader
        Batches with ``image`` and ``mask``.

    Raises
    ------
    ValueError
        When there are too few samples for one batch.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import create_segmentation_dataloader
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "t1.mla")
    >>> _ = mlarray_xr.to_mla(np.eye(40, dtype="uint8")[None].repeat(40, 0), "tumour.mla")
    >>> loader = create_segmentation_dataloader(
    ...     {"sub-1": {"t1": "t1.mla", "tumour": "tumour.mla"}},
    ...     mask="tumour",
    ...     patch_size=16,
    ...     patches_per_volume=4,
    ...     foreground_sampling=True,
    ...     num_workers=0,
    ... )
    >>> bool(next(iter(loader))["mask"].amax(dim=(1, 2, 3, 4)).all())
    True
    """
    loading = Loading(
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=persistent_workers,
        drop_last=drop_last,
        prefetch_factor=prefetch_factor,
        generator=generator,
        collate_fn=collate_fn,
        multiprocessing_context=multiprocessing_context,
    )
    dataset = PatchDataset(
        collection,
        sampling=random_sampling(sampling, patch_size, patches_per_volume, foreground_sampling),
        image=image,
        mask=mask,
        transform=transform,
        padding=padding,
        seed=seed,
        dtype=dtype,
        channel=channel,
        storage_options=storage_options,
        index_folder=index_folder,
        pin_memory=loading.pins,
    )
    if sampler is None:
        sampler = PatchSampler(dataset, rank=rank, world_size=world_size, window=window)
    return loading.loader(dataset, sampler=sampler)


def create_validation_dataloader(
    collection: Collection | Mapping[str, Any] | Sequence[str],
    *,
    patch_size: Sizes | None = None,
    labels: str | Mapping[str, Any] | pd.Series[Any] | None = None,
    image: str | Sequence[str] | None = None,
    mask: str | Sequence[str] | None = None,
    batch_size: int = 4,
    patches_per_volume: int = 1,
    num_workers: int = 4,
    pin_memory: bool = True,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    seed: int = 0,
    sampling: Sampling | None = None,
    padding: Padding | None = None,
    dtype: DTypeLike | None = None,
    channel: Channel = "auto",
    sampler: Sampler[Any] | None = None,
    generator: torch.Generator | None = None,
    collate_fn: Callable[[Sequence[dict[str, Any]]], Any] | None = None,
    multiprocessing_context: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> DataLoader[Any]:
    """Load the same patches in every epoch, in the order of the collection, the last batch too.

    Parameters
    ----------
    mask
        Modalities that are the mask.
    collection, patch_size, labels, image, batch_size, patches_per_volume, num_workers, \
pin_memory, transform, seed, sampling, padding, dtype, channel, sampler, generator, \
collate_fn, multiprocessing_context, storage_options
        As of `create_training_dataloader`.

    Returns
    -------
    torch.utils.data.DataLoader
        Without shuffling.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import create_validation_dataloader
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "validate.mla")
    >>> loader = create_validation_dataloader(["validate.mla"], patch_size=16, num_workers=0)
    >>> next(iter(loader))["subject"]
    ['validate']
    """
    loading = Loading(
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=generator,
        collate_fn=collate_fn,
        multiprocessing_context=multiprocessing_context,
    )
    collection, label = labelled(collection, labels)
    dataset = PatchDataset(
        collection,
        sampling=random_sampling(sampling, patch_size, patches_per_volume),
        image=image,
        mask=mask,
        label=label,
        transform=transform,
        padding=padding,
        seed=seed,
        dtype=dtype,
        channel=channel,
        storage_options=storage_options,
        pin_memory=loading.pins,
    )
    return loading.loader(dataset, sampler=sampler, repeats=True)


def create_inference_dataloader(
    collection: Collection | Mapping[str, Any] | Sequence[str],
    *,
    patch_size: Sizes | None = None,
    overlap: Overlap = 0,
    image: str | Sequence[str] | None = None,
    batch_size: int = 1,
    num_workers: int = 4,
    pin_memory: bool = True,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    padding: Padding | None = None,
    dtype: DTypeLike | None = None,
    channel: Channel = "auto",
    sampler: Sampler[Any] | None = None,
    generator: torch.Generator | None = None,
    collate_fn: Callable[[Sequence[dict[str, Any]]], Any] | None = None,
    multiprocessing_context: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> DataLoader[Any]:
    """Load volumes whole, or as windows that cover them, in the order of the collection.

    Parameters
    ----------
    patch_size
        Extents of the windows; None loads volumes whole.
    overlap
        Of neighbouring windows, see `GridPatches`.
    collection, image, batch_size, num_workers, pin_memory, transform, padding, dtype, channel, \
sampler, generator, collate_fn, multiprocessing_context, storage_options
        As of `create_training_dataloader`.

    Returns
    -------
    torch.utils.data.DataLoader
        Without shuffling. `Aggregator` puts predictions of windows together again.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> from mlarray_xr.ml.torch import create_inference_dataloader
    >>> _ = mlarray_xr.to_mla(np.ones((40, 40, 40), "int16"), "infer.mla")
    >>> loader = create_inference_dataloader(["infer.mla"], patch_size=32, num_workers=0)
    >>> len(loader)
    8
    """
    loading = Loading(
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        generator=generator,
        collate_fn=collate_fn,
        multiprocessing_context=multiprocessing_context,
    )
    dataset = PatchDataset(
        collection,
        sampling=WholeVolume() if patch_size is None else GridPatches(patch_size, overlap=overlap),
        image=image,
        transform=transform,
        padding=padding,
        dtype=dtype,
        channel=channel,
        storage_options=storage_options,
        pin_memory=loading.pins,
    )
    return loading.loader(dataset, sampler=sampler, repeats=True)
