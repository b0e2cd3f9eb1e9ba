"""Raw voxels: a map of the file is the oracle of boxes, NumPy's own bytes that of slabs."""

from __future__ import annotations

import itertools
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any, Literal
from unittest import mock

import dask.base
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import MlaArray, to_mla
from mlarray_xr.errors import ConversionError, SourceChanged, SourceError
from mlarray_xr.foreign import raw
from mlarray_xr.foreign.raw import RawArray, local_source, raw_slabs
from tests.strategies import boxes, dtypes, shapes, values_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

Order = Literal["C", "F"]


def written(path: Path, values: NDArray[Any], *, order: Order = "C", offset: int = 0) -> RawArray:
    path.write_bytes(bytes(offset) + values.tobytes(order=order) + b"more")
    return RawArray(
        source=local_source(path),
        dtype=values.dtype,
        shape=values.shape,
        order=order,
        offset=offset,
    )


def numbers(shape: tuple[int, ...] = (5, 6, 7), dtype: str = "<i2") -> NDArray[Any]:
    return values_of(shape, np.dtype(dtype), 3)


def key_of(box: tuple[tuple[int, int], ...]) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in box)


@given(data=st.data(), order=st.sampled_from(["C", "F"]), offset=st.integers(0, 9))
def test_boxes_are_those_of_the_array(
    data: st.DataObject, order: Order, offset: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shape, dtype = data.draw(shapes()), data.draw(dtypes())
    values = values_of(shape, dtype, 1)
    path = tmp_path_factory.getbasetemp() / "boxes.raw"
    array = written(path, values, order=order, offset=offset)
    box = key_of(data.draw(boxes(shape)))
    found = array[box]
    assert type(found) is np.ndarray
    assert found.dtype == dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, values[box])
    np.testing.assert_array_equal(array.to_numpy(), values)
    np.testing.assert_array_equal(np.asarray(array), values)


def test_a_box_is_no_view_of_the_file(tmp_path: Path) -> None:
    array = written(tmp_path / "a.raw", numbers())
    found = array[key_of(((1, 3), (0, 6), (0, 7)))]
    base: Any = found
    while base is not None:
        assert not isinstance(base, np.memmap)
        base = base.base
    whole = array.to_numpy()
    assert isinstance(whole, np.memmap)
    assert not whole.flags.writeable


def test_nothing_stays_open(tmp_path: Path) -> None:
    array = written(tmp_path / "a.raw", numbers())
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    for _ in range(20):
        array[key_of(((0, 5), (0, 6), (0, 7)))]
    after = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    assert len(after) == len(before)


@pytest.mark.parametrize("kept", [0, 1, 419, 429])
def test_files_that_are_too_short_are_refused(kept: int, tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(bytes(kept))
    source = local_source(tmp_path / "a.raw")
    with pytest.raises(ConversionError, match=rf"430 bytes.*a\.raw has {kept}.*truncated"):
        RawArray(source=source, dtype=np.dtype("<i2"), shape=(5, 6, 7), order="C", offset=10)
    with pytest.raises(ConversionError, match="truncated"):
        RawArray(source=source, dtype=np.dtype("u1"), shape=(2**40, 2**40), order="C")
    with pytest.raises(ConversionError, match="truncated"):
        RawArray(source=source, dtype=np.dtype("u1"), shape=(0,), order="C", offset=-1)


@pytest.mark.parametrize("change", ["replaced", "truncated", "touched", "removed"])
def test_changed_files_are_not_read(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    array = written(path, numbers())
    if change == "replaced":
        (tmp_path / "b.raw").write_bytes(path.read_bytes())
        os.replace(tmp_path / "b.raw", path)
    elif change == "truncated":
        os.truncate(path, 100)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    else:
        path.unlink()
    with pytest.raises(SourceChanged):
        array[key_of(((0, 1), (0, 1), (0, 1)))]


def test_a_change_during_a_read_is_seen(tmp_path: Path) -> None:
    array = written(tmp_path / "a.raw", numbers())
    whole = array.to_numpy()

    def late(_: RawArray) -> NDArray[Any]:
        os.utime(tmp_path / "a.raw", ns=(1, 1))
        return whole

    with mock.patch.object(RawArray, "to_numpy", late), pytest.raises(SourceChanged):
        array[key_of(((0, 1), (0, 1), (0, 1)))]


def test_the_address_pickles_small_and_reads_again(tmp_path: Path) -> None:
    values = numbers((50, 60, 70))
    array = written(tmp_path / "a.raw", values)
    sent = pickle.dumps(array)
    assert len(sent) < 1000
    assert pickle.loads(sent) == array
    np.testing.assert_array_equal(pickle.loads(sent).to_numpy(), values)


def total(array: RawArray) -> int:
    return int(array[tuple(slice(0, n) for n in array.shape)].sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_processes_read_it(method: str, tmp_path: Path) -> None:
    values = numbers()
    array = written(tmp_path / "a.raw", values)
    with get_context(method).Pool(1) as pool:
        assert pool.apply(total, (array,)) == total(array) == values.sum()


def test_threads_read_it(tmp_path: Path) -> None:
    values = numbers((40, 30, 20))
    array = written(tmp_path / "a.raw", values, order="F")
    keys = [key_of(((i, i + 7), (j, j + 9), (0, 20))) for i in range(33) for j in range(0, 21, 3)]
    with ThreadPoolExecutor(8) as pool:
        for key, found in zip(keys, pool.map(array.__getitem__, keys), strict=True):
            np.testing.assert_array_equal(found, values[key])


def test_tokens_follow_file_and_array(tmp_path: Path) -> None:
    array = written(tmp_path / "a.raw", numbers())
    token = dask.base.tokenize(array)
    assert token == dask.base.tokenize(pickle.loads(pickle.dumps(array)))
    os.utime(tmp_path / "a.raw", ns=(1, 1))
    changes: list[dict[str, Any]] = [
        {"source": local_source(tmp_path / "a.raw")},
        {"dtype": np.dtype("<u2")},
        {"shape": (7, 6, 5)},
        {"order": "F"},
        {"offset": 2},
        {"identity": ("elsewhere", 3)},
    ]
    stated = {name: getattr(array, name) for name in array.__dataclass_fields__}
    tokens = {dask.base.tokenize(RawArray(**{**stated, **change})) for change in changes}
    assert len(tokens | {token}) == len(changes) + 1


def test_only_regular_files_are_pinned(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SourceError):
            local_source(path)
    with pytest.raises(FileNotFoundError):
        local_source(tmp_path / "nothing")


def test_raw_arrays_become_mla_files(tmp_path: Path) -> None:
    values = numbers((20, 30, 40), ">f4")
    for order in ("C", "F"):
        array = written(tmp_path / f"{order}.raw", values, order=order)
        to_mla(array, tmp_path / f"{order}.mla", patch=8)
        np.testing.assert_array_equal(MlaArray(tmp_path / f"{order}.mla")[...], values)


@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple),
    chunks=st.lists(st.integers(1, 8), min_size=4, max_size=4),
    seed=st.integers(0, 23),
    slab_bytes=st.integers(2, 200),
)
def test_slabs_are_the_array_in_fortran_order(
    shape: tuple[int, ...], chunks: list[int], seed: int, slab_bytes: int
) -> None:
    values = numbers(shape)
    fake: Any = mock.Mock(shape=shape, ndim=len(shape), dtype=values.dtype)
    fake.chunks = tuple(chunks[: len(shape)])
    fake.read = lambda box: values[key_of(box)]
    orders = list(itertools.permutations(range(len(shape))))
    order = list(orders[seed % len(orders)])
    with mock.patch.object(raw, "_SLAB_BYTES", slab_bytes):
        slabs = list(raw_slabs(fake, order))
    assert b"".join(slabs) == values.transpose(order).tobytes(order="F")
    assert max(map(len, slabs)) <= slab_bytes


def test_an_array_without_axes_is_one_slab(tmp_path: Path) -> None:
    to_mla(np.array(7, ">i4"), tmp_path / "a.mla")
    assert list(raw_slabs(MlaArray(tmp_path / "a.mla"), ())) == [b"\0\0\0\7"]
