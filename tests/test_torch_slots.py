"""Slots are filled again when nobody holds their batch any more, and never before."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from torch.utils.data import DataLoader, Dataset

import mlarray_xr
from mlarray_xr.ml import torch_slots
from mlarray_xr.ml.torch import PatchDataset, RandomPatches, collate_patches
from mlarray_xr.ml.torch_slots import pack_slot, take_slot, unpack_slot

if TYPE_CHECKING:
    from pathlib import Path

INT16 = np.dtype("int16")


class Batches(RuleBasedStateMachine):
    """A worker and its parent in one process: batches are filled, sent, held and dropped."""

    filled: Bundle[Any] = Bundle("filled")
    sent: Bundle[Any] = Bundle("sent")
    held: Bundle[Any] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        torch_slots._slots.clear()
        torch_slots._mapped.clear()
        self.expected: dict[int, tuple[torch.Tensor, int]] = {}
        self.n_made = 0

    def keep(self, tensor: torch.Tensor, mark: int) -> int:
        self.n_made += 1
        self.expected[self.n_made] = (tensor, mark)
        return self.n_made

    @rule(target=filled, n=st.sampled_from([10, 10, 10, 500]), mark=st.integers(1, 9999))
    def fill(self, n: int, mark: int) -> int:
        tensor = take_slot((2, n), INT16, is_shared=True)
        assert tensor is not None
        tensor.fill_(mark)
        return self.keep(tensor, mark)

    @rule(target=sent, key=consumes(filled))
    def send(self, key: int) -> Any:
        tensor, mark = self.expected.pop(key)
        packed = pack_slot(tensor)
        assert packed is not None
        assert pack_slot(tensor) is None  # the same under a second name
        assert pack_slot(tensor[:1]) is None
        return packed, mark

    @rule(target=held, parcel=consumes(sent))
    def receive(self, parcel: Any) -> int:
        packed, mark = parcel
        return self.keep(unpack_slot(packed), mark)

    @rule(key=consumes(held), keeps_view=st.booleans())
    def drop(self, key: int, keeps_view: bool) -> None:
        tensor, mark = self.expected.pop(key)
        if keeps_view:
            self.keep(tensor[1:], mark)

    @rule(key=consumes(filled))
    def drop_unsent(self, key: int) -> None:
        del self.expected[key]

    @invariant()
    def every_batch_holds_what_was_put_there(self) -> None:
        assert all((tensor == mark).all() for tensor, mark in self.expected.values())


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.fixture
def no_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_slots, "_slots", {})
    monkeypatch.setattr(torch_slots, "_mapped", {})


def test_one_slot_serves_batches_that_are_let_go(no_slots: None) -> None:
    addresses = set()
    for _ in range(5):
        tensor = take_slot((3, 4), INT16, is_shared=True)
        assert tensor is not None
        addresses.add(tensor.data_ptr())
        packed = pack_slot(tensor)
        assert packed is not None
        del tensor
        batch = unpack_slot(packed)
        del batch
    assert len(addresses) == len(torch_slots._slots) == 1


def test_slots_have_a_limit(no_slots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_slots, "_MOST_BYTES", 1000)
    held = [take_slot((200,), INT16, is_shared=True) for _ in range(3)]
    assert [tensor is None for tensor in held] == [False, False, True]
    held.clear()
    assert take_slot((200,), INT16, is_shared=True) is not None


def test_what_lies_in_no_slot_is_not_packed(no_slots: None) -> None:
    tensor = take_slot((4, 4), INT16, is_shared=True)
    assert tensor is not None
    assert pack_slot(torch.zeros(4)) is None
    assert pack_slot(tensor.t()) is None
    assert pack_slot(tensor[1:]) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_copy_of_a_batch_does_not_let_it_go(no_slots: None) -> None:
    tensor = take_slot((10,), INT16, is_shared=True)
    assert tensor is not None
    packed = pack_slot(tensor)
    assert packed is not None
    del tensor
    held = [unpack_slot(packed)]
    context = multiprocessing.get_context("fork")
    child = context.Process(target=held.clear)
    child.start()
    child.join()
    assert child.exitcode == 0
    (slot,) = torch_slots._slots.values()
    assert not slot.is_free
    held.clear()
    assert slot.is_free


class Indices(Dataset[Any]):
    """Samples that say which they are, read through a dataset of patches."""

    def __init__(self, dataset: PatchDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


@pytest.fixture
def dataset(tmp_path: Path) -> PatchDataset:
    rng = np.random.default_rng(0)
    mlarray_xr.to_mla(rng.integers(0, 999, (40, 40, 40), np.int16), tmp_path / "a.mla")
    sampling = RandomPatches(16, patches_per_volume=64)
    return PatchDataset([str(tmp_path / "a.mla")], sampling=sampling)


@pytest.mark.parametrize("is_wrapped", [False, True])
def test_batches_that_are_held_stay_what_they_were(dataset: PatchDataset, is_wrapped: bool) -> None:
    loader: DataLoader[Any] = DataLoader(
        Indices(dataset) if is_wrapped else dataset,
        batch_size=4,
        num_workers=1,
        collate_fn=collate_patches,
    )
    for _ in range(2):
        held = list(loader)
        for batch in held:
            assert type(batch) is dict
            for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                assert torch.equal(image, dataset[index]["image"])
        del held, batch, image
        gc.collect()
        for batch in loader:  # each let go before the next
            assert torch.equal(batch["image"][3], dataset[int(batch["index"][3])]["image"])


def test_batches_of_this_process_stay_what_they_were_while_threads_read(
    dataset: PatchDataset,
) -> None:
    expected = [dataset[index]["image"].clone() for index in range(64)]

    def work(first: int) -> bool:
        held = []
        for begin in range(first, 64, 8):
            keys = range(begin, min(begin + 4, 64))
            held.append((keys, collate_patches(dataset.__getitems__([*keys]))["image"]))
            if len(held) > 3:
                del held[0]
            for numbers, images in held:
                pairs = zip(numbers, images, strict=True)
                if not all(torch.equal(image, expected[number]) for number, image in pairs):
                    return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [*range(8)] * 6))


def test_two_threads_never_get_one_slot(no_slots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        first = take_slot((10,), INT16, is_shared=False)
    del first
    lend, gate = torch_slots._Slot.lend, threading.Barrier(2)

    def slow(self: Any, shape: Any, dtype: Any) -> torch.Tensor:
        with contextlib.suppress(threading.BrokenBarrierError):
            gate.wait(0.2)  # the other thread has found the same slot by now, if it can
        return lend(self, shape, dtype)

    monkeypatch.setattr(torch_slots._Slot, "lend", slow)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: take_slot((10,), INT16, is_shared=False), range(2)))
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].data_ptr() != found[1].data_ptr()


def doubled(samples: Any) -> Any:
    batch = collate_patches(samples)
    batch["target"] = batch["image"]
    batch["first"] = batch["image"][:1]
    return batch


def test_a_batch_may_hold_a_tensor_twice(dataset: PatchDataset) -> None:
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=4, num_workers=1, collate_fn=doubled)
    held = []
    for batch in loader:
        del batch["image"], batch["first"]
        held.append(batch)
    for batch in held:
        for index, image in zip(batch["index"].tolist(), batch["target"], strict=True):
            assert torch.equal(image, dataset[index]["image"])


def test_slots_are_unmapped_when_their_worker_is_gone(
    dataset: PatchDataset, no_slots: None
) -> None:
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=collate_patches, persistent_workers=True
    )
    for batch in loader:
        assert batch["image"].shape[0] == 4
    assert len({worker for worker, _ in torch_slots._mapped}) == 2
    del loader, batch
    gc.collect()
    assert not torch_slots._mapped


def test_batches_of_this_process_pickle_as_they_are(dataset: PatchDataset) -> None:
    batch = collate_patches(dataset.__getitems__([0, 1]))
    copied = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copied["image"], batch["image"])
    assert copied["subject"] == batch["subject"]
