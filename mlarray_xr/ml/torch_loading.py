"""Loading: how samples become batches, which every loader hands to `DataLoader` alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch.utils.data import DataLoader, Sampler

from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.ml.collection import Collection
from mlarray_xr.ml.torch_batch import collate_patches
from mlarray_xr.ml.torch_sampler import EpochSampler, PatchSampler
from mlarray_xr.planning.foreground import Foreground
from mlarray_xr.planning.foreground_patches import ForegroundPatches
from mlarray_xr.planning.random_patches import RandomPatches
from mlarray_xr.planning.slices import WholeVolume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd

    from mlarray_xr.ml.torch_dataset import PatchDataset
    from mlarray_xr.planning.sampling import Sampling
    from mlarray_xr.planning.sizes import Sizes

__all__ = ["Loading", "labelled", "random_sampling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """What `DataLoader` is told besides dataset and sampler; see there."""

    batch_size: int
    num_workers: int
    pin_memory: bool
    persistent_workers: bool = False
    drop_last: bool = False
    prefetch_factor: int | None = None
    generator: torch.Generator | None = None
    collate_fn: Callable[[Sequence[dict[str, Any]]], Any] | None = None
    multiprocessing_context: str | None = None

    def loader(
        self, dataset: PatchDataset, *, sampler: Sampler[Any] | None, repeats: bool = False
    ) -> DataLoader[Any]:
        """Make the loader.

        Parameters
        ----------
        dataset, sampler
            Of what, and in which order.
        repeats
            Whether every epoch takes the same patches.

        Raises
        ------
        ValueError
            When there are too few samples for one batch and smaller ones are dropped.
        """
        if sampler is not None and not repeats and not isinstance(sampler, PatchSampler):
            sampler = EpochSampler(sampler)
        n = len(dataset) if sampler is None else len(sampler)  # type: ignore[arg-type]
        if self.drop_last and n < self.batch_size:
            msg = (
                f"{n} samples are no batch of {self.batch_size}, and smaller ones are dropped: the "
                "loader would be empty. To fix: (1) more patches_per_volume; (2) a smaller "
                "batch_size; (3) drop_last=False"
            )
            raise ValueError(msg)
        has_workers = self.num_workers > 0
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=dataset.pin_memory,
            persistent_workers=self.persistent_workers and has_workers,
            drop_last=self.drop_last,
            prefetch_factor=self.prefetch_factor if has_workers else None,
            generator=self.generator,
            collate_fn=self.collate_fn or collate_patches,
            multiprocessing_context=self.multiprocessing_context if has_workers else None,
        )

    @property
    def pins(self) -> bool:
        """Whether memory is pinned: when asked for, and a device is there that it helps."""
        return self.pin_memory and torch.cuda.is_available()


def labelled(
    collection: Collection | Mapping[str, Any] | Sequence[str],
    labels: str | Mapping[str, Any] | pd.Series[Any] | None,
) -> tuple[Collection, str | None]:
    """Return the collection with its labels, and the name of their column.

    Raises
    ------
    ConversionError
        When the labels are a table of several columns.
    """
    if not isinstance(collection, Collection):
        collection = Collection.from_files(collection)
    if labels is None or isinstance(labels, str):
        return collection, labels
    if hasattr(labels, "columns"):
        msg = (
            f"labels is a table of the columns {list(labels.columns)}: which one? To fix: "
            "Collection.join(table), and labels= its column"
        )
        raise ConversionError(msg)
    name = str(getattr(labels, "name", None) or "label")
    return collection.join(labels, name=name), name


def random_sampling(
    sampling: Sampling | None,
    patch_size: Sizes | None,
    patches_per_volume: int,
    foreground: bool | float | Mapping[float, float] | Foreground = False,
) -> Sampling:
    """Return which patches are meant by a sampling, or by the parameters of a loader.

    Raises
    ------
    LayoutError
        When parameters contradict each other.
    """
    is_around = not (_is_number(foreground) and foreground == 0)
    if sampling is not None:
        if patch_size is not None or patches_per_volume != 1 or is_around:
            msg = (
                "sampling= says which patches; patch_size, patches_per_volume and "
                "foreground_sampling were given as well. To fix: leave them out"
            )
            raise LayoutError(msg)
        return sampling
    if patch_size is None:
        if patches_per_volume != 1 or is_around:
            msg = (
                f"patches_per_volume={patches_per_volume} and foreground_sampling={foreground!r} "
                "without patch_size: give one"
            )
            raise LayoutError(msg)
        return WholeVolume()
    if not is_around:
        return RandomPatches(patch_size, patches_per_volume=patches_per_volume)
    return ForegroundPatches(
        patch_size,
        foreground=_foreground(foreground),
        probability=float(foreground) if _is_number(foreground) else 1.0,
        patches_per_volume=patches_per_volume,
    )


def _foreground(wanted: bool | float | Mapping[float, float] | Foreground) -> Foreground:
    """Return what counts as foreground."""
    if isinstance(wanted, Foreground):
        return wanted
    if isinstance(wanted, Mapping):
        return Foreground(classes=wanted)
    if _is_number(wanted):
        return Foreground()
    msg = (
        f"foreground_sampling={wanted!r}: True, a share, weights by label or a Foreground is needed"
    )
    raise LayoutError(msg)


def _is_number(value: object) -> TypeGuard[float]:
    """Tell numbers, NumPy's included."""
    return isinstance(value, Real)
