"""Slots: memory that is filled again once nobody holds the batch in it any more.

One of the package's few pieces of state: the slots of this process, and what it has mapped of those
of its workers. The first touch of every page of new memory takes a third as long as decoding, and
two threads wait for each other there. Between processes it is worse: PyTorch makes a shared file
for each batch, sends its descriptor through a socket, and both sides touch every page. A slot is
made, sent and touched once. The last byte of a shared one says whether the parent has a batch in
it.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["PackedSlot", "pack_slot", "shared_memory", "take_slot", "unpack_slot"]

# Of all slots of a process; batches beyond that are PyTorch's.
_MOST_BYTES = 96 << 20
_TAIL_BYTES = 64

_lock = threading.Lock()
# By address.
_slots: dict[int, _Slot] = {}
# Of the parent: what it has mapped, by worker and number.
_mapped: dict[tuple[int, int], NDArray[np.uint8]] = {}


class _Slot:
    """One slot, as the process that fills it sees it."""

    def __init__(self, number: int, n_bytes: int, *, is_shared: bool) -> None:
        self.number, self.is_shared = number, is_shared
        make = shared_memory if is_shared else torch.empty
        self.whole = make((n_bytes + _TAIL_BYTES,), dtype=torch.uint8)
        self.content = self.whole.numpy()
        self.content[-1] = 0
        self.is_known = self.is_sent = False
        self._lent: weakref.ref[NDArray[Any]] | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes that fit."""
        return len(self.content) - _TAIL_BYTES

    @property
    def is_free(self) -> bool:
        """Whether neither this process nor its parent holds the last batch any more."""
        is_held_here = self._lent is not None and self._lent() is not None
        return not is_held_here and not (self.is_sent and self.content[-1])

    def lend(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> torch.Tensor:
        """Return a tensor in the slot."""
        values = _values(self.content, shape, dtype)
        self._lent, self.is_sent = weakref.ref(values), False
        return torch.from_numpy(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSlot:
    """A batch on its way to the parent: where it lies."""

    worker: int
    """Number of the worker's process."""
    number: int
    """Of its slot."""
    whole: torch.Tensor | None
    """The slot itself when it is sent for the first time."""
    shape: tuple[int, ...]
    """Extents of the batch."""
    dtype: np.dtype[Any]
    """Type of the elements."""


def take_slot(
    shape: tuple[int, ...], dtype: np.dtype[Any], *, is_shared: bool
) -> torch.Tensor | None:
    """Return memory for a batch in a free slot of this process; None when there is none.

    Parameters
    ----------
    shape, dtype
        Of the batch.
    is_shared
        Whether it will be sent to the parent.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    with _lock:  # two threads must not find the same slot free
        slots = [*_slots.values()]
        fitting = (s for s in slots if s.is_shared == is_shared and s.n_bytes >= n_bytes)
        slot = next((each for each in fitting if each.is_free), None)
        if slot is None:
            if n_bytes + sum(each.n_bytes for each in slots) > _MOST_BYTES:
                return None
            slot = _Slot(len(slots), n_bytes, is_shared=is_shared)
            _slots[slot.whole.data_ptr()] = slot
        return slot.lend(shape, dtype)


def pack_slot(tensor: torch.Tensor) -> PackedSlot | None:
    """Return what the parent needs to find a batch; None when it goes PyTorch's way.

    From now on the slot is the parent's until that lets go of the batch. It is sent once: of a
    batch that has two names, one could be let go while the other is in use.
    """
    slot = _slots.get(tensor.data_ptr())
    if slot is None or slot.is_sent or not slot.is_shared:
        return None
    if not tensor.is_contiguous() or tensor.nbytes > slot.n_bytes:
        return None
    whole = None if slot.is_known else slot.whole
    slot.content[-1], slot.is_sent, slot.is_known = 1, True, True
    dtype = torch.empty(0, dtype=tensor.dtype).numpy().dtype
    return PackedSlot(
        worker=os.getpid(),
        number=slot.number,
        whole=whole,
        shape=tuple(tensor.shape),
        dtype=dtype,
    )


def unpack_slot(packed: PackedSlot) -> torch.Tensor:
    """Return the batch; when the last tensor of it is gone, the worker may fill the slot again."""
    key = (packed.worker, packed.number)
    if packed.whole is not None:
        _forget_at_the_end_of(packed.worker)
        _mapped[key] = packed.whole.numpy()
    content = _mapped[key]
    values = _values(content, packed.shape, packed.dtype)
    # Not at exit: there may be tensors that outlive it.
    weakref.finalize(values, _let_go, content, os.getpid()).atexit = False
    return torch.from_numpy(values)


def shared_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return uninitialised memory that processes share, as `default_collate` makes it."""
    none = torch.empty(0, dtype=dtype)
    storage = none._typed_storage()._new_shared(math.prod(shape))  # noqa: SLF001 - not public
    return none.new(storage).resize_(shape)


def _values(
    content: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return an array in a slot, an object of its own whose end can be waited for."""
    n_bytes = math.prod(shape) * dtype.itemsize
    values: NDArray[Any] = content[:n_bytes].view(dtype).reshape(shape)
    return values


def _let_go(content: NDArray[np.uint8], process: int) -> None:
    """Tell the worker that a batch is gone, unless only a forked copy of it is."""
    if os.getpid() == process:
        content[-1] = 0


def _forget_at_the_end_of(worker: int) -> None:
    """Unmap the slots of a worker when nobody holds its process any more."""
    if any(number == worker for number, _ in list(_mapped)):
        return  # said before
    for process in multiprocessing.active_children():
        if process.pid == worker:
            weakref.finalize(process, _forget_worker, worker).atexit = False


def _forget_worker(worker: int) -> None:
    """Unmap the slots of a worker."""
    for key in list(_mapped):
        if key[0] == worker:
            _mapped.pop(key, None)


def _forget_after_fork() -> None:
    """Start without slots in a forked child: those of the parent are not its own."""
    global _lock, _slots, _mapped
    _lock, _slots, _mapped = threading.Lock(), {}, {}


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
