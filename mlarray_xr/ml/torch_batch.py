"""Batches: patches read side by side into one tensor, and collated without a copy."""

from __future__ import annotations

from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from mlarray_xr.errors import ConversionError
from mlarray_xr.ml.torch_slots import (
    PackedSlot,
    pack_slot,
    shared_memory,
    take_slot,
    unpack_slot,
)
from mlarray_xr.storage.read_pool import run_shared, sharing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlarray_xr.ml.patch_samples import PatchSamples, PlannedSample

__all__ = ["collate_patches", "read_samples"]

_VOXELS = ("image", "mask")
_SMALL_BYTES = 16 << 10
_NUMPY_TYPES = {
    torch.from_numpy(np.empty(0, code)).dtype
    for code in ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"]
}


def read_samples(
    samples: PatchSamples,
    planned: Sequence[PlannedSample],
    *,
    threads: int | None,
    is_pinned: bool,
    is_collated: bool,
) -> list[dict[str, Any]]:
    """Read samples, those of equal shape into one piece of memory, in parallel.

    Parameters
    ----------
    samples
        Where they come from.
    planned
        Which ones.
    threads
        Threads that read; None takes the free CPUs, one in a worker of a DataLoader.
    is_pinned
        Whether the memory is pinned, for fast copies to a GPU.
    is_collated
        Whether the tensors will be collated as they are: in a worker they then lie in memory that
        it shares with its parent.

    Raises
    ------
    MlaError, OSError
        The first error of a read.
    """
    found = [samples.facts(each) for each in planned]
    tasks: list[Callable[[], None]] = []
    in_worker = get_worker_info() is not None
    for kind in _VOXELS[: 2 if samples.mask else 1]:
        needs = [samples.buffer(each, kind=kind) for each in planned]
        together = len({*needs}) == 1
        groups = (
            [(range(len(planned)), needs[0])]
            if together
            else [(range(i, i + 1), need) for i, need in enumerate(needs)]
        )
        for numbers, (shape, dtype) in groups:
            batch = _memory(
                (len(numbers), *shape),
                dtype,
                is_pinned=is_pinned and not in_worker,
                is_shared=is_collated and in_worker,
            )
            values = batch.numpy()
            for row, number in enumerate(numbers):
                one, place = planned[number], planned[number].place
                tasks.append(partial(samples.read, one, values[row], kind=kind))
                found[number][kind] = batch[row].reshape(shape[0], *place.sample_shape)
    with sharing() as share:
        run_shared(tasks, threads=threads or (1 if in_worker else share))
    for each in found:
        for name, value in each.items():
            if isinstance(value, np.ndarray):
                each[name] = torch.from_numpy(value)
    return found


def collate_patches(batch: Sequence[Any]) -> Any:
    """Collate samples as PyTorch does; patches that were read side by side are not copied.

    Parameters
    ----------
    batch
        Samples with the same keys, or what else a transform made of them.

    Returns
    -------
    dict
        Tensors with a first axis for the samples; lists of texts. Of what is no dict, what
        `torch.utils.data.default_collate` makes.

    Raises
    ------
    ConversionError
        When samples have different shapes; the message names subjects.
    """
    if not all(isinstance(each, dict) for each in batch):
        return _collate_others(batch)
    joined = {name: _joined([each.get(name) for each in batch]) for name in _VOXELS}
    ready = {name: tensor for name, tensor in joined.items() if tensor is not None}
    rest = [{name: v for name, v in each.items() if name not in ready} for each in batch]
    try:
        collated: dict[str, Any] = default_collate(rest)
    except RuntimeError as error:
        shapes = {str(e.get("subject")): tuple(np.shape(e.get("image", ()))) for e in rest}
        if len({*shapes.values()}) < 2:
            raise
        msg = (
            f"samples of different shapes cannot be one batch: {shapes}. To fix: (1) a patch_size "
            "that is the same for all; (2) batch_size=1; (3) a collate_fn of your own"
        )
        raise ConversionError(msg) from error
    return _Batch({name: ready.get(name, collated.get(name)) for name in batch[0]})


def _collate_others(batch: Sequence[Any]) -> Any:
    """Collate what a transform made of samples, where that is no dict."""
    if any(isinstance(each, list) and each and isinstance(each[0], dict) for each in batch):
        msg = (
            "the transform makes several samples of one. To fix: "
            "collate_fn=monai.data.list_data_collate, which makes one batch of all of them"
        )
        raise ConversionError(msg)
    return default_collate(list(batch))


class _Batch(dict[str, Any]):
    """A batch, which leaves a worker in a way of its own."""


def _reduced(batch: _Batch) -> tuple[Any, ...]:
    """Return what makes a batch again in the parent of a worker: a plain dict.

    Voxels stay in their slots, and small tensors travel as bytes: each tensor that PyTorch sends
    costs a shared file, its descriptor through a socket, and a map.
    """
    parts: dict[str, Any] = {}
    for name, value in batch.items():
        part = value
        if _is_plain(value):
            packed = pack_slot(value) if value.nbytes else None
            part = packed or (value.numpy() if value.nbytes <= _SMALL_BYTES else value)
        parts[name] = part
    return _unpacked, (parts,)


def _is_plain(value: Any) -> bool:
    """Tell tensors that are an array of NumPy's and nothing more: others know how they travel."""
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in _NUMPY_TYPES
        and not (value.requires_grad or value.is_conj() or value.is_neg())
    )


def _unpacked(parts: dict[str, Any]) -> dict[str, Any]:
    """Return a batch as it was packed."""
    batch: dict[str, Any] = {}
    for name, part in parts.items():
        value = part
        if isinstance(part, PackedSlot):
            value = unpack_slot(part)
        elif isinstance(part, np.ndarray):
            value = torch.from_numpy(part)
        batch[name] = value
    return batch


# Between processes only: copies and plain pickles of a batch stay what they are.
ForkingPickler.register(_Batch, _reduced)


def _joined(parts: Sequence[Any]) -> torch.Tensor | None:
    """Return the tensor whose rows some tensors are, one after another; None if they are not."""
    first = parts[0]
    if not isinstance(first, torch.Tensor) or type(first) is not torch.Tensor:
        return None
    size, address = first.numel() * first.element_size(), first.data_ptr()
    storage = first.untyped_storage()
    fits = all(
        type(part) is torch.Tensor
        and part.shape == first.shape
        and part.dtype == first.dtype
        and part.is_contiguous()
        and not part.requires_grad
        and part.untyped_storage().data_ptr() == storage.data_ptr()
        and part.data_ptr() == address + row * size
        for row, part in enumerate(parts)
    )
    if not fits or storage.nbytes() != len(parts) * size:
        return None
    return first.as_strided((len(parts), *first.shape), (first.numel(), *first.stride()))


def _memory(
    shape: tuple[int, ...], dtype: np.dtype[Any], *, is_pinned: bool, is_shared: bool
) -> torch.Tensor:
    """Return uninitialised memory for a batch."""
    try:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError as error:
        msg = f"{dtype} is no type of PyTorch. To fix: name another one, such as dtype='float32'"
        raise ConversionError(msg) from error
    if is_pinned:
        return torch.empty(shape, dtype=kind, pin_memory=True)
    slot = take_slot(shape, dtype, is_shared=is_shared)
    if slot is not None:
        return slot
    return shared_memory(shape, kind) if is_shared else torch.empty(shape, dtype=kind)
