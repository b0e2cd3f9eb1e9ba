"""Thin boxes: NumPy's slices are the oracle, whatever blocks and special chunks they go through."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import MlaArray, to_mla
from mlarray_xr.storage import mapped, thin_boxes
from mlarray_xr.storage.frame_file import open_frame
from mlarray_xr.storage.libblosc2 import native_library
from mlarray_xr.storage.mapped import MappedReader
from mlarray_xr.storage.source import source_of
from mlarray_xr.storage.thin_boxes import is_thin, read_thin
from tests.frame_kit import make_frame
from tests.strategies import filled_boxes, stored

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.strategies import Stored

pytestmark = pytest.mark.skipif(native_library() is None, reason="needs the C library")

RNG = np.random.default_rng(2)


def key_of(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


@given(one=stored(min_dims=1, min_side=1), data=st.data())
def test_every_box_that_counts_as_thin_is_that_of_the_array(
    one: Stored, data: st.DataObject
) -> None:
    box = data.draw(filled_boxes(one.values.shape))
    threads = data.draw(st.sampled_from([None, 1, 3]))
    frame = make_frame(one.values, chunks=one.chunks, blocks=one.blocks)
    reader = MappedReader(source_of(frame))
    with (
        mock.patch.object(thin_boxes, "_LEAST_BYTES", 0),
        mock.patch.object(thin_boxes, "_SHORT_ROW_BYTES", 1 << 30),
        mock.patch.object(mapped, "read_thin", side_effect=read_thin) as taken,
    ):
        out: NDArray[Any] = np.empty([b - a for a, b in box], one.values.dtype)
        reader.read(box, out, threads=threads)
        assert taken.called == is_thin(box, reader.header)
    np.testing.assert_array_equal(out, one.values[key_of(box)])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (((0, 64), (0, 64), (0, 40), (7, 8)), True),
        (((0, 64), (0, 64), (0, 40), (7, 9)), True),  # rows of one element in each block
        (((0, 1), (0, 1), (0, 40), (0, 300)), False),  # small
        (((0, 64), (32, 64), (0, 40), (7, 8)), True),  # from the border of a block
        (((0, 64), (40, 60), (0, 40), (7, 8)), True),  # within a block
        (((0, 64), (16, 64), (0, 40), (7, 8)), False),  # from the middle of one block into another
    ],
)
def test_frames_of_a_series_are_thin(
    box: tuple[tuple[int, int], ...], expected: bool, tmp_path: Path
) -> None:
    to_mla(
        np.zeros((64, 64, 40, 300), "i2"),
        tmp_path / "a.mla",
        chunks=(64, 64, 40, 3),
        blocks=(64, 32, 40, 1),
        codec="lz4-1",
    )
    assert is_thin(box, open_frame(source_of(str(tmp_path / "a.mla"))).header) is expected


@pytest.mark.parametrize("dtype", ["i2", "f4", ">i2", "f8", "?"])
def test_frames_and_planes_of_mixed_chunks_are_read(dtype: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 2 if dtype == "?" else 99, (70, 66, 40, 7)).astype(dtype)
    values[:32, :, :, 3] = 0
    values[32:, :, :, 4] = values.dtype.type(1)
    if values.dtype.kind == "f":
        values[..., 5] = np.nan
    to_mla(values, tmp_path / "a.mla", chunks=(32, 33, 40, 2), blocks=(16, 32, 24, 1))
    with mock.patch.object(mapped, "read_thin", side_effect=read_thin) as taken:
        array = MlaArray(tmp_path / "a.mla")
        for k in range(7):
            np.testing.assert_array_equal(array[..., k], values[..., k])
        assert taken.call_count == 7


def test_frames_are_read_by_many_threads(tmp_path: Path) -> None:
    values = RNG.integers(0, 999, (64, 64, 40, 12)).astype("i2")
    to_mla(values, tmp_path / "a.mla", chunks=(64, 64, 40, 3), blocks=(16, 64, 40, 1))
    array = MlaArray(tmp_path / "a.mla")
    with ThreadPoolExecutor(6) as pool:
        for k, frame in enumerate(pool.map(lambda k: array[..., k % 12], range(120))):
            np.testing.assert_array_equal(frame, values[..., k % 12])
