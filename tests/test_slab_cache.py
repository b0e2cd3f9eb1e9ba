"""Thin boxes read one after another: right values, few decodings, bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import MlaArray, configure, to_mla
from mlarray_xr.errors import SourceChanged
from mlarray_xr.planning.grid import box_shape, surrounding_blocks
from mlarray_xr.storage import slab_cache
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.slab_cache import read_nearby
from mlarray_xr.storage.source import source_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box

SHAPE = (23, 30, 17)
VALUES = np.random.default_rng(0).integers(0, 1000, SHAPE).astype("int16")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    slab_cache._forget_after_fork()
    yield
    configure(decoded_cache_bytes="64 MiB")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slabs") / "v.mla"
    to_mla(VALUES, path, chunks=(10, 11, 8), blocks=(4, 11, 5))
    return path


class Counted:
    """Reads of an array in memory, and which boxes they were."""

    def __init__(self) -> None:
        self.boxes: list[Box] = []

    def __call__(self, box: Box, out: NDArray[Any]) -> None:
        self.boxes.append(box)
        out[...] = VALUES[tuple(slice(*pair) for pair in box)]


def slice_box(z: int) -> Box:
    return ((z, z + 1), (0, SHAPE[1]), (0, SHAPE[2]))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    pairs = []
    for n in SHAPE:
        start = draw(st.integers(0, n - 1))
        pairs.append((start, draw(st.integers(start + 1, n))))
    return tuple(pairs)


@given(asked=st.lists(boxes(), min_size=1, max_size=12), limit=st.sampled_from([0, 900, 1 << 20]))
def test_every_box_has_the_values_of_the_file(path: Path, asked: list[Box], limit: int) -> None:
    configure(decoded_cache_bytes=limit)
    array = MlaArray(path)
    for box in [*asked, *asked]:
        np.testing.assert_array_equal(array.read(box), VALUES[tuple(slice(*p) for p in box)])
    assert sum(values.nbytes for values in slab_cache._kept.values()) <= limit


@given(box=boxes())
def test_the_surroundings_are_the_blocks_that_are_touched(box: Box) -> None:
    around = surrounding_blocks(box, shape=SHAPE, chunks=(10, 11, 8), blocks=(4, 11, 5))
    for (start, stop), (low, high), n, c, b in zip(
        box, around, SHAPE, (10, 11, 8), (4, 11, 5), strict=True
    ):
        numbers = [i // c * 100 + i % c // b for i in range(n)]
        touched = set(numbers[start:stop])
        assert list(range(low, high)) == [i for i in range(n) if numbers[i] in touched]


def test_the_slices_of_a_row_of_blocks_are_decoded_twice_at_most(path: Path) -> None:
    header = open_frame(source_of(path)).header
    counted = Counted()
    for z in range(SHAPE[0]):
        out = np.empty(box_shape(slice_box(z)), "int16")
        is_read = read_nearby("file", header, slice_box(z), out, counted)
        np.testing.assert_array_equal(out[0], VALUES[z])
        assert is_read == (z in (0, 1, 4, 5, 8, 9, 10, 11, 14, 15, 18, 19, 20, 21))
    assert counted.boxes[1] == ((0, 4), (0, 30), (0, 17))
    assert len(counted.boxes) == 14


def test_another_version_of_a_file_shares_nothing(path: Path) -> None:
    header = open_frame(source_of(path)).header
    out = np.empty(box_shape(slice_box(0)), "int16")
    for version in ("old", "new"):
        counted = Counted()
        for _ in range(3):
            read_nearby(version, header, slice_box(0), out, counted)
        assert counted.boxes == [slice_box(0), ((0, 4), (0, 30), (0, 17))]


@pytest.mark.parametrize("box", [((0, 4), (0, 11), (0, 5)), ((1, 9), (3, 20), (2, 17))])
def test_boxes_as_thick_as_blocks_are_not_kept(path: Path, box: Box) -> None:
    header = open_frame(source_of(path)).header
    counted = Counted()
    for _ in range(3):
        assert read_nearby("file", header, box, np.empty(box_shape(box), "int16"), counted)
    assert counted.boxes == [box] * 3
    assert not slab_cache._kept


def test_a_file_that_was_replaced_is_noticed_although_nothing_is_read(tmp_path: Path) -> None:
    path = tmp_path / "v.mla"
    to_mla(VALUES, path, chunks=(10, 11, 8), blocks=(4, 11, 5))
    array = MlaArray(path)
    for _ in range(3):
        np.testing.assert_array_equal(array[5], VALUES[5])
    assert len(slab_cache._kept) == 1
    to_mla(VALUES + 1, path, mode="w")
    with pytest.raises(SourceChanged):
        array[5]


def test_an_edit_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "v.mla"
    to_mla(VALUES, path, chunks=(10, 11, 8), blocks=(4, 11, 5))
    array = MlaArray(path, mode="r+")
    for value in (7, 8, 9):
        for _ in range(3):
            array[5, 3] = value
            assert (array[5, 3] == value).all()
            np.testing.assert_array_equal(array[6], VALUES[6])


def test_threads_read_slices_of_different_rows(path: Path) -> None:
    array = MlaArray(path)
    order = np.random.default_rng(1).permutation(np.repeat(np.arange(SHAPE[0]), 10)).tolist()
    with ThreadPoolExecutor(8) as pool:
        for z, values in zip(order, pool.map(array.__getitem__, order), strict=True):
            np.testing.assert_array_equal(values, VALUES[z])


def test_what_is_seen_and_kept_is_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab_cache, "_MOST_SEEN", 5)
    configure(decoded_cache_bytes=5000)
    header = open_frame(source_of(path)).header
    for z in [z for z in range(SHAPE[0]) for _ in range(2)]:
        read_nearby("file", header, slice_box(z), np.empty((1, 30, 17), "int16"), Counted())
        assert len(slab_cache._seen) <= 5
        assert sum(values.nbytes for values in slab_cache._kept.values()) <= 5000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_start_with_nothing(path: Path) -> None:
    array = MlaArray(path)
    for _ in range(3):
        array[5]
    assert slab_cache._kept
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(len(slab_cache._kept)))
    child.start()
    assert queue.get() == 0
    child.join()
