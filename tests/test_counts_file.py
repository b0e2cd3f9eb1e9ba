"""Foreground counts kept in a folder: read back, found damaged or false, and made again."""

from __future__ import annotations

import inspect
import os
import struct
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mlarray_xr import MlaArray
from mlarray_xr.errors import MlaWarning
from mlarray_xr.ml import counts_file as module
from mlarray_xr.ml.class_counts import ClassCounts
from mlarray_xr.ml.counts_file import CountsFile, counts_file
from mlarray_xr.ml.foreground_index import ForegroundIndex
from mlarray_xr.ml.foreground_parts import ForegroundParts
from mlarray_xr.planning.foreground import Foreground
from tests.frame_kit import make_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MASK = np.random.default_rng(1).integers(0, 4, (12, 10), "u1")
BALANCED = Foreground(classes="balanced")
AXES = (0, 1)


def is_two(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(values == 2)


def made_here() -> Callable[[NDArray[Any]], NDArray[np.bool_]]:
    def is_inner(values: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(values == 2)

    return is_inner


def array_of(values: NDArray[Any] = MASK) -> MlaArray:
    """Return an array in a file without statistics: counting is all there is."""
    return MlaArray(make_frame(values, chunks=(5, 4), blocks=(5, 2)))


def index_in(folder: Path, foreground: Foreground = BALANCED, **options: Any) -> ForegroundIndex:
    given = {"array": array_of(), **options}
    array = given.pop("array")
    return ForegroundIndex(array, foreground, folder=str(folder), **{"axes": AXES, **given})


def place_in(folder: Path, foreground: Foreground = BALANCED) -> CountsFile:
    found = counts_file(str(folder), ForegroundParts(array_of(), foreground, axes=AXES))
    assert found is not None
    return found


def drawn(index: ForegroundIndex, n_draws: int = 30) -> list[tuple[int, ...] | None]:
    rng = np.random.default_rng(0)
    return [index.find(rng) for _ in range(n_draws)]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """List the number of parts of every pass that counts."""
    found: list[int] = []
    count = ForegroundParts.count

    def counted(self: ForegroundParts, parts: NDArray[np.int64]) -> ClassCounts:
        found.append(len(parts))
        return count(self, parts)

    monkeypatch.setattr(ForegroundParts, "count", counted)
    return found


def test_the_next_process_does_not_count(tmp_path: Path, passes: list[int]) -> None:
    folder = tmp_path / "not yet" / "there"
    first = drawn(index_in(folder))
    assert names_in(folder) == [os.path.basename(place_in(folder).path)]
    assert drawn(index_in(folder)) == first == drawn(index_in(tmp_path / "other"))
    assert passes == [9, 9]


@pytest.mark.parametrize("dtype", ["?", "u1", ">i2", "<i8", "<f2", ">f8"])
@pytest.mark.parametrize(
    "foreground", [Foreground(), BALANCED, Foreground(classes={1: 1, 3: 2})], ids=str
)
def test_every_kind_of_label_comes_back(
    tmp_path: Path, passes: list[int], dtype: str, foreground: Foreground
) -> None:
    array = array_of((MASK > 0).astype(dtype) if dtype == "?" else MASK.astype(dtype))
    first, second = (drawn(index_in(tmp_path, foreground, array=array)) for _ in range(2))
    assert first == second
    assert passes == [9]


def test_a_mask_without_foreground_is_kept_too(tmp_path: Path, passes: list[int]) -> None:
    array = array_of(np.zeros_like(MASK))
    assert [drawn(index_in(tmp_path, array=array), 1) for _ in range(2)] == [[None], [None]]
    assert passes == [9]


def test_other_masks_axes_and_foregrounds_have_their_own(tmp_path: Path, passes: list[int]) -> None:
    for foreground in (Foreground(), Foreground(threshold=1), Foreground(classes={1: 1}), BALANCED):
        drawn(index_in(tmp_path, foreground), 1)
    drawn(index_in(tmp_path, axes=(0,)), 1)
    drawn(index_in(tmp_path, array=array_of(MASK[::-1])), 1)
    assert len(passes) == len(names_in(tmp_path)) == 6
    # The same in other words, and other weights of the same labels.
    for foreground in (Foreground(threshold=0.5), Foreground(classes={1: 7})):
        drawn(index_in(tmp_path, foreground), 1)
    assert len(passes) == 6


def test_only_predicates_with_a_lasting_name_are_kept(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        drawn(index_in(tmp_path, Foreground(predicate=is_two)))
    assert (passes, len(names_in(tmp_path))) == ([9], 1)
    monkeypatch.setattr(inspect, "getsource", lambda _: "another release of it")
    drawn(index_in(tmp_path, Foreground(predicate=is_two)))
    assert (passes, len(names_in(tmp_path))) == ([9, 9], 2)
    main: Any = made_here()
    main.__module__ = "__main__"
    passing: list[Any] = [lambda values: values == 2, made_here(), main, np.isfinite]
    for predicate in passing:
        drawn(index_in(tmp_path, Foreground(predicate=predicate)))
    assert len(names_in(tmp_path)) == 2


def test_damage_anywhere_is_counted_again(tmp_path: Path, passes: list[int]) -> None:
    first = drawn(index_in(tmp_path))
    path = Path(place_in(tmp_path).path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 7)]
    damaged += [
        whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :] for at in range(0, len(whole), 5)
    ]
    damaged += [whole + b"\0", b"", b"\x93NUMPY", os.urandom(5000)]
    for number, data in enumerate(damaged, 2):
        path.write_bytes(data)
        assert drawn(index_in(tmp_path), 5) == first[:5]
        assert len(passes) == number
        assert path.read_bytes() == whole


def sealed(body: bytes) -> bytes:
    return b"mlxf" + struct.pack(">I", zlib.crc32(body)) + body


def counts_like(**changes: Any) -> ClassCounts:
    """Return counts of the mask that are true but for what is changed."""
    parts = ForegroundParts(array_of(), BALANCED, axes=AXES)
    true = parts.count(np.arange(9))
    columns = {name: getattr(true, name).copy() for name in ("labels", "starts", "parts", "before")}
    for name, change in changes.items():
        columns[name] = change(columns[name])
    return ClassCounts(**columns)


def put(at: int, value: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def changed(column: NDArray[Any]) -> NDArray[Any]:
        column[at] = value
        return column

    return changed


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": lambda labels: labels[::-1]},
        {"labels": put(0, 2)},
        {"starts": put(1, 0)},
        {"starts": put(1, 2**62)},
        {"starts": put(1, -(2**62))},
        {"starts": put(-1, 3)},
        {"parts": put(0, -1)},
        {"parts": put(0, 9)},
        {"parts": lambda parts: parts[::-1]},
        {"parts": put(1, 0)},
        {"before": put(1, 0)},
        {"before": lambda before: before * 30},
    ],
)
def test_what_cannot_be_true_is_counted_again(
    tmp_path: Path, passes: list[int], changes: dict[str, Any]
) -> None:
    place = place_in(tmp_path)
    place.write(counts_like(**changes))
    passes.clear()
    assert drawn(index_in(tmp_path)) == drawn(index_in(tmp_path / "other"))
    assert passes == [9, 9]


@pytest.mark.parametrize(
    ("n_labels", "n_rows"), [(2**32 - 1, 2**40), (4096, 2**63), (3, 2**64 - 1), (0, 0), (3, 1)]
)
def test_sizes_that_are_claimed_are_not_believed(
    tmp_path: Path, n_labels: int, n_rows: int
) -> None:
    place = place_in(tmp_path)
    column = struct.pack(">BI", 1, 40) + zlib.compress(b"\0" * 10_000_000)[:40]
    head = bytes([1]) + bytes.fromhex(place.digest) + struct.pack(">IQ", n_labels, n_rows)
    Path(place.path).write_bytes(sealed(head + 4 * column))
    assert place.read(np.full(9, 20), np.dtype("u1")) is None


def test_counts_that_became_false_are_counted_again(tmp_path: Path, passes: list[int]) -> None:
    place = place_in(tmp_path)
    false = counts_like(before=lambda before: np.arange(len(before)))
    place.write(false)
    passes.clear()
    assert drawn(index_in(tmp_path)) is not None
    assert passes == [9]
    kept = place.read(np.full(9, 20), np.dtype("u1"))
    assert kept is not None
    assert kept.counts.tolist() == counts_like().counts.tolist()


def test_a_folder_that_cannot_be_used_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.warns(MlaWarning, match="are not kept there"):
        drawn(index_in(tmp_path / "taken"))
    os.mkfifo(place_in(tmp_path).path)
    monkeypatch.setattr(module, "_MAX_BYTES", 10)  # nothing is small enough to be kept
    assert drawn(index_in(tmp_path)) == drawn(index_in(tmp_path / "other"))


def test_what_is_larger_than_the_limit_is_not_kept(
    tmp_path: Path, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(index_in(tmp_path))
    monkeypatch.setattr(module, "_MAX_BYTES", 10)
    drawn(index_in(tmp_path))
    drawn(index_in(tmp_path / "none"))
    assert passes == [9, 9, 9]
    assert not (tmp_path / "none").exists()


def test_many_may_write_at_once(tmp_path: Path) -> None:
    expected = drawn(index_in(tmp_path / "alone"))
    found: list[Any] = []
    start = threading.Barrier(8)

    def race() -> None:
        index = index_in(tmp_path)
        start.wait()
        found.append(drawn(index))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
    assert len(names_in(tmp_path)) == 2  # the counts, and the folder "alone"
