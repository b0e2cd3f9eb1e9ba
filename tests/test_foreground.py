"""Foreground: what counts, that each element is equally likely, and how little is read for it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr import MlaArray
from mlarray_xr.errors import LayoutError, SourceChanged
from mlarray_xr.file_array import FileArray
from mlarray_xr.ml import foreground_parts
from mlarray_xr.ml.foreground_index import ForegroundIndex
from mlarray_xr.ml.foreground_parts import ForegroundParts
from mlarray_xr.planning.draw import Draw
from mlarray_xr.planning.foreground import MAX_LABELS, Foreground
from mlarray_xr.planning.foreground_patches import ForegroundPatches
from mlarray_xr.planning.random_patches import RandomPatches
from mlarray_xr.planning.sample_space import SampleSpace
from tests.frame_kit import make_frame
from tests.range_server import RangeServer
from tests.remote_kit import settings
from tests.strategies import layouts, shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mlarray_xr.format.integrity import ChunkStatistics
    from mlarray_xr.ml.class_counts import ClassCounts

SHAPE = (13, 11, 9)
LAYOUT: dict[str, Any] = {"chunks": (5, 4, 6), "blocks": (2, 4, 3)}
PART = 5 * 4 * 6
SECONDS = 60
MASKS = ("?", "u1", "i1", "<i2", ">i2", "<u4", "<i8", "<u8", "<f2", "<f4", ">f8")
BALANCED = Foreground(classes="balanced")


def is_odd(values: NDArray[Any]) -> NDArray[np.bool_]:
    return np.asarray(values % 2 == 1)


def blobs(dtype: str = "u1", *, seed: int = 0, share: float = 0.1) -> NDArray[Any]:
    """Return a mask of labels 1 to 3 in the first two thirds of the array, 0 elsewhere."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 4, SHAPE) * (rng.random(SHAPE) < share)
    values[9:] = 0
    return values.astype(dtype)


def written(folder: Path, values: NDArray[Any], name: str = "m.mla", **options: Any) -> MlaArray:
    mlarray_xr.to_mla(values, folder / name, mode="w", **{**LAYOUT, **options})
    return MlaArray(folder / name)


def bare(values: NDArray[Any], **options: Any) -> MlaArray:
    """Return an array in a file without statistics."""
    return MlaArray(make_frame(values, **{**LAYOUT, **options}))


def index_of(array: MlaArray, foreground: Foreground, **options: Any) -> ForegroundIndex:
    return ForegroundIndex(array, foreground, **{"axes": tuple(range(array.ndim)), **options})


def bytes_read(array: MlaArray) -> int:
    return array.stats().bytes_useful


def places(mask: NDArray[np.bool_]) -> set[tuple[int, ...]]:
    return set(map(tuple, np.argwhere(mask).tolist()))


def by_label(values: NDArray[Any], foreground: Foreground) -> dict[Any, NDArray[np.bool_]]:
    """Return the elements of each class that an array holds: by NumPy, all at once."""
    match foreground:
        case Foreground(classes="balanced"):
            masks = {label: values == label for label in np.unique(values[values > 0]).tolist()}
        case Foreground(classes=tuple(pairs)):
            masks = {label: values == label for label, _ in pairs}
        case Foreground(predicate=None, threshold=threshold):
            masks = {True: values > (threshold or 0)}
        case _:
            assert foreground.predicate is not None
            masks = {True: foreground.predicate(values)}
    return {label: mask for label, mask in masks.items() if mask.any()}


@dataclass
class Ranks:
    """Instead of chance: the class and the element whose turn it is."""

    number: int
    rank: int
    total: int = 0

    def choice(self, n: int, p: Any) -> int:
        assert len(p) == n
        return self.number

    def integers(self, low: int, high: int) -> int:
        self.total = int(high - low)
        return low + min(self.rank, self.total - 1)


def all_found(index: ForegroundIndex, number: int) -> list[tuple[int, ...]]:
    """Return what an index finds for every value that chance may have, of one class, sorted."""
    ranks = Ranks(number, 0)
    found: list[Any] = [index.find(ranks)]  # type: ignore[arg-type]
    for rank in range(1, ranks.total):
        ranks.rank = rank
        found.append(index.find(ranks))  # type: ignore[arg-type]
    return sorted(found)


def chi_square(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Return how many standard deviations too far counts are from what is expected.

    Wilson and Hilferty's approximation of the distribution of chi-square.
    """
    freedom = len(counts) - 1
    scaled = float(((counts - expected) ** 2 / expected).sum()) / freedom
    spread = 2 / (9 * freedom)
    return float((scaled ** (1 / 3) - 1 + spread) / spread**0.5)


def check_uniform(
    index: ForegroundIndex, wanted: dict[tuple[int, ...], float], *, n_draws: int = 1500
) -> None:
    """Compare draws with the probability of every element there is, listed exhaustively."""
    rng = np.random.default_rng(11)
    counts = dict.fromkeys(wanted, 0)
    for _ in range(n_draws):
        found = index.find(rng)
        assert found is not None
        counts[found] += 1
    observed = np.array([counts[place] for place in wanted])
    assert chi_square(observed, np.array([*wanted.values()]) * n_draws) < 4


def evenly(masks: dict[Any, NDArray[np.bool_]], weights: dict[Any, float]) -> dict[Any, float]:
    """Return the probability of each element when classes have weights."""
    total = sum(weights[label] for label in masks)
    return {
        place: weights[label] / total / int(mask.sum())
        for label, mask in masks.items()
        for place in sorted(places(mask))
    }


def counting_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of parts of every pass that counts."""
    passes: list[int] = []
    count = ForegroundParts.count

    def counted(self: ForegroundParts, parts: NDArray[np.int64]) -> ClassCounts:
        passes.append(len(parts))
        return count(self, parts)

    monkeypatch.setattr(ForegroundParts, "count", counted)
    return passes


class TestForeground:
    def test_values_above_0_unless_said_otherwise(self) -> None:
        values = np.array([-1.0, 0.0, 0.5, np.nan, 7.0])
        assert Foreground().mask(values).tolist() == [False, False, True, False, True]
        assert Foreground(threshold=-1).mask(values).tolist() == [False, True, True, False, True]

    @pytest.mark.parametrize(
        ("dtype", "threshold"),
        [("u1", 300), ("u1", -5), ("i8", 2.0**53), ("u1", 1.5), ("f2", 1e9), ("u8", -np.inf)],
    )
    def test_any_threshold_suits_any_type(self, dtype: str, threshold: float) -> None:
        exact = [0, 1, 2, 100] + ([2**53, 2**53 + 1] if dtype == "i8" else [])
        found = Foreground(threshold=threshold).mask(np.array(exact, dtype))
        assert found.tolist() == [value > threshold for value in exact]

    @pytest.mark.parametrize(
        "parameters",
        [
            {"threshold": 1, "classes": "balanced"},
            {"threshold": float("nan")},
            {"classes": "all"},
            {"classes": {}},
            {"classes": {1: 0}},
            {"classes": {1: -1, 2: 2}},
            {"classes": {1: float("inf")}},
            {"classes": {float("nan"): 1}},
            {"classes": {2**70: 1}},
            {"classes": {"liver": 1}},
            {"classes": [1, 2]},
            {"classes": dict.fromkeys(range(MAX_LABELS + 1), 1)},
            {"predicate": "above"},
        ],
        ids=lambda parameters: str(parameters)[:40],
    )
    def test_refuses_what_makes_no_sense(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"foreground by|threshold|classes|predicate|labels"):
            Foreground(**parameters)

    def test_is_a_value_however_it_is_spelt(self) -> None:
        numpys: Any = {np.uint8(2): 1, 1.0: 3}
        one = Foreground(classes=numpys)
        assert one == Foreground(classes={1: 3.0, 2: 1.0}) == Foreground(classes=((2, 1), (1, 3)))
        assert len({one, pickle.loads(pickle.dumps(one)), Foreground(), BALANCED}) == 3

    def test_a_predicate_gives_one_flag_for_each_value(self) -> None:
        wrong: Any
        for wrong in (np.any, np.negative, np.argwhere):
            with pytest.raises(ValueError, match="return a bool array of the same shape"):
                Foreground(predicate=wrong).mask(np.arange(4))

    @pytest.mark.parametrize("dtype", MASKS)
    def test_counts_the_labels_that_numpy_counts(self, dtype: str) -> None:
        rng = np.random.default_rng(2)
        top = 2 if dtype == "?" else 100
        values = rng.integers(0, top, (9, 8, 7)).astype(dtype)
        if dtype in ("<i2", "<i8", "<f4"):
            values[0] = -3
        if dtype in ("<u4", "<i8", "<f4"):
            values[1] = 2**24
        if values.dtype.kind == "f":
            values[2, 0], values[3, 0, 0] = np.nan, 0.5
        labels, counts = np.unique(values[values > 0], return_counts=True)
        found_labels, found_counts = BALANCED.count(values)
        assert found_labels.tolist() == labels.tolist()
        assert found_counts.tolist() == counts.tolist()
        assert found_labels.dtype == np.dtype(dtype).newbyteorder("=")

    def test_too_many_labels_are_an_image(self) -> None:
        with pytest.raises(ValueError, match="an image rather than a mask"):
            BALANCED.count(np.arange(MAX_LABELS + 2))


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[Any], dict[str, Any], Foreground, tuple[int, ...]]:
    shape = draw(shapes(min_dims=1, max_dims=4, min_side=1, max_side=6))
    dtype = np.dtype(draw(st.sampled_from(MASKS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    least = draw(st.sampled_from([0, 0, 1, -2 if dtype.kind in "if" else 0]))
    greatest = draw(st.sampled_from([0, 1, 1, 3]))
    values = rng.integers(least, max(least, greatest), shape, endpoint=True)
    values[tuple(slice(0, n) for n in draw(shapes(max_dims=len(shape), max_side=6)))] = least
    chunks, blocks = draw(layouts(shape))
    axes = tuple(i for i in range(len(shape)) if draw(st.booleans())) or (0,)
    foreground = draw(
        st.sampled_from(
            [
                Foreground(),
                Foreground(threshold=1),
                Foreground(threshold=0.5),
                Foreground(threshold=-1.5),
                BALANCED,
                Foreground(classes={0: 1, 1: 1, 77: 1}),
                Foreground(classes={-2: 1, 3: 2, 0.5: 1, 300: 1}),
                Foreground(predicate=is_odd),
            ]
        )
    )
    if dtype.kind == "b":
        foreground = Foreground() if foreground.predicate else foreground
    return values.astype(dtype), {"chunks": chunks, "blocks": blocks}, foreground, axes


class TestIndex:
    @given(case=cases(), has_statistics=st.booleans(), n_elements=st.sampled_from([1, 7, 1 << 21]))
    def test_every_element_stands_for_one_draw(
        self, case: Any, has_statistics: bool, n_elements: int
    ) -> None:
        values, layout, foreground, axes = case
        reduced = tuple(i for i in range(values.ndim) if i not in axes)
        expected = by_label(values, foreground)
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(foreground_parts, "_PIECE_ELEMENTS", n_elements)
            array = written(Path(folder), values, **layout) if has_statistics else None
            index = index_of(array or bare(values, **layout), foreground, axes=axes)
            if not expected:
                assert index.find(np.random.default_rng(0)) is None
            for number, label in enumerate(sorted(expected)):
                found = all_found(index, number)
                assert len(found) == len(set(found))
                assert set(found) == places(np.asarray(expected[label].any(axis=reduced)))

    @pytest.mark.parametrize("has_statistics", [True, False])
    @pytest.mark.parametrize(
        ("dtype", "foreground", "weights"),
        [
            ("u1", Foreground(), {True: 1}),
            ("<i2", Foreground(threshold=1), {True: 1}),
            ("<i8", Foreground(predicate=is_odd), {True: 1}),
            ("u1", Foreground(classes={1: 0.5, 3: 0.5}), {1: 0.5, 3: 0.5}),
            (">i2", Foreground(classes={0: 2, 2: 6, 9: 100}), {0: 2, 2: 6}),
            ("<f4", BALANCED, {1: 1, 2: 1, 3: 1}),
            ("?", BALANCED, {1: 1}),
        ],
        ids=str,
    )
    def test_matches_exhaustive_sampling(
        self,
        tmp_path: Path,
        dtype: str,
        foreground: Foreground,
        weights: dict[Any, float],
        has_statistics: bool,
    ) -> None:
        values = blobs(dtype)
        array = written(tmp_path, values) if has_statistics else bare(values)
        expected = evenly(by_label(values, foreground), weights)
        check_uniform(index_of(array, foreground), expected)

    def test_rare_labels_are_as_likely_as_others(self, tmp_path: Path) -> None:
        values = blobs()
        values[values == 3] = 0
        values[12, 10, 8] = 3
        index = index_of(written(tmp_path, values), Foreground(classes={1: 1, 2: 1, 3: 1}))
        rng = np.random.default_rng(0)
        drawn = [values[index.find(rng)] for _ in range(900)]
        labels, counts = np.unique(drawn, return_counts=True)
        assert labels.tolist() == [1, 2, 3]
        assert chi_square(counts, np.full(3, 300.0)) < 4

    def test_nothing_ignored_is_balanced(self, tmp_path: Path) -> None:
        values = blobs("<i2")
        values[12] = -1
        rng, index = np.random.default_rng(0), index_of(written(tmp_path, values), BALANCED)
        assert {int(values[index.find(rng)]) for _ in range(200)} == {1, 2, 3}

    def test_classes_without_weight_or_without_elements_are_never_drawn(
        self, tmp_path: Path
    ) -> None:
        values = np.where(blobs() > 0, 1, 0).astype("u1")
        array = written(tmp_path, values)
        absent: list[dict[float, float]] = [{1: 0.0, 2: 1.0}, {5: 1.0}, {-1: 1, 300: 1, 0.5: 1}]
        for classes in absent:
            assert (
                index_of(array, Foreground(classes=classes)).find(np.random.default_rng(0)) is None
            )

    @pytest.mark.parametrize(("share", "n_counted"), [(0.1, 0), (0.98, 1)])
    def test_nan_is_not_foreground(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, n_counted: int
    ) -> None:
        values = blobs("<f4", share=1.0)
        rng = np.random.default_rng(4)
        values[:9][rng.random((9, 11, 9)) < share] = np.nan
        values[10:] = np.nan
        passes = counting_passes(monkeypatch)
        index = index_of(written(tmp_path, values), Foreground())
        check_uniform(index, evenly({True: values > 0}, {True: 1}), n_draws=600)
        assert len(passes) == n_counted

    @pytest.mark.parametrize("chunks", [(1, 5, 4, 6), (3, 5, 4, 6)])
    def test_an_element_of_any_channel_counts_once(
        self, tmp_path: Path, chunks: tuple[int, ...]
    ) -> None:
        labels = blobs(share=0.4)
        values = np.stack([labels == 1, labels > 0, labels == 3]).astype("u1")
        array = written(tmp_path, values, chunks=chunks, blocks=(1, 5, 4, 6))
        index = index_of(array, Foreground(), axes=(1, 2, 3))
        assert all_found(index, 0) == sorted(places(labels > 0))
        last = index_of(
            written(tmp_path, labels[..., None], chunks=(5, 4, 6, 1), blocks=(5, 4, 6, 1)),
            BALANCED,
            axes=(0, 1, 2),
        )
        assert all_found(last, 2) == sorted(places(labels == 3))

    @pytest.mark.parametrize(
        ("axes", "dtype", "error"),
        [
            ((), "u1", LayoutError),
            ((1, 0), "u1", LayoutError),
            ((0, 3), "u1", LayoutError),
            ((0, 1, 2), "<c8", TypeError),
            ((0, 1, 2), "<M8[s]", TypeError),
        ],
    )
    def test_refuses_axes_and_types_that_are_none(
        self, axes: tuple[int, ...], dtype: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error, match=r"no foreground|no mask"):
            ForegroundIndex(bare(np.zeros(SHAPE, dtype)), Foreground(), axes=axes)

    def test_an_empty_array_has_no_foreground(self, tmp_path: Path) -> None:
        mlarray_xr.to_mla(np.zeros((0, 4), "u1"), tmp_path / "empty.mla")
        with pytest.raises(LayoutError):
            index_of(MlaArray(tmp_path / "empty.mla"), Foreground())


class TestReads:
    @pytest.mark.parametrize(
        ("dtype", "foreground"),
        [
            ("u1", Foreground()),
            ("<i2", Foreground(threshold=0.7)),
            ("<f8", Foreground()),
            ("?", BALANCED),
            ("u1", Foreground(threshold=-1)),
            ("i1", Foreground(classes={1: 1, 0: 3})),
        ],
    )
    def test_one_chunk_a_draw_and_no_pass_where_statistics_suffice(
        self, tmp_path: Path, dtype: str, foreground: Foreground
    ) -> None:
        values = (blobs() > 0).astype(dtype)
        array = written(tmp_path, values)
        index, rng = index_of(array, foreground), np.random.default_rng(0)
        for n_draws in range(1, 30):
            assert values[index.find(rng)] >= 0
            assert bytes_read(array) <= n_draws * PART * array.dtype.itemsize

    def test_a_mask_without_foreground_is_not_read(self, tmp_path: Path) -> None:
        array = written(tmp_path, blobs())
        for foreground in (Foreground(threshold=3), Foreground(classes={7: 1})):
            assert index_of(array, foreground).find(np.random.default_rng(0)) is None
        assert bytes_read(array) == 0

    def test_a_mask_full_of_foreground(self, tmp_path: Path) -> None:
        values = np.full(SHAPE, 2, "u1")
        array = written(tmp_path, values)
        for foreground in (Foreground(), Foreground(threshold=1.5), BALANCED):
            assert len(set(all_found(index_of(array, foreground), 0))) == values.size

    def test_labels_are_counted_once_and_only_where_there_may_be_some(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = np.zeros(SHAPE, "u1")
        values[6:8, 5, 7] = 2, 3  # one chunk of the 18
        values[0, 0, 0] = 1  # told by the statistics, and counted with the others
        values[10:, 8:, 6:] = 9  # of no label that is asked for
        passes = counting_passes(monkeypatch)
        array, rng = written(tmp_path, values), np.random.default_rng(0)
        index = index_of(array, Foreground(classes={1: 1, 2: 1, 3: 1}))
        assert index.find(rng) is not None
        assert passes == [2]
        assert bytes_read(array) <= 3 * PART
        for _ in range(20):
            index.find(rng)
        assert passes == [2]
        assert bytes_read(array) <= 23 * PART

    def test_files_without_statistics_are_counted_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = blobs("<i2")
        mlarray.MLArray(values, patch_size=8).save(str(tmp_path / "theirs.mla"))
        array = MlaArray(tmp_path / "theirs.mla")
        passes = counting_passes(monkeypatch)
        index = index_of(array, Foreground())
        assert all_found(index, 0) == sorted(places(values > 0))
        assert len(passes) == 1

    @pytest.mark.parametrize("n_elements", [1, 40, 1 << 21])
    def test_no_more_than_a_piece_is_held(
        self, monkeypatch: pytest.MonkeyPatch, n_elements: int
    ) -> None:
        monkeypatch.setattr(foreground_parts, "_PIECE_ELEMENTS", n_elements)
        held: list[int] = []
        read = FileArray.read

        def watched(self: FileArray, box: Any, **options: Any) -> NDArray[Any]:
            values = read(self, box, **options)
            held.append(values.size)
            return values

        monkeypatch.setattr(FileArray, "read", watched)
        assert index_of(bare(blobs()), BALANCED).find(np.random.default_rng(0))
        assert max(held) <= max(n_elements, 2 * 4 * 3)

    def test_a_remote_mask_is_not_fetched_whole(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 200, (64, 64, 64), "u1")
        mlarray_xr.to_mla(values, tmp_path / "m.mla", chunks=16, blocks=16)
        data = (tmp_path / "m.mla").read_bytes()
        with settings(), RangeServer({"m.mla": data}) as server:
            array = MlaArray(server.url("m.mla"))
            found = index_of(array, Foreground()).find(np.random.default_rng(5))
            assert array.stats().bytes_fetched < len(data) / 3
            local = index_of(MlaArray(data), Foreground()).find(np.random.default_rng(5))
            assert found == local
            fourth = index_of(array, Foreground(classes={4: 1}))
            assert len(set(all_found(fourth, 0))) == np.count_nonzero(values == 4)


class TestWhatChanges:
    def test_edits_keep_the_statistics_right(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = blobs()
        array = written(tmp_path, values)
        MlaArray(array.path, mode="r+").write(((3, 13), (0, 6), (2, 9)), 0)
        MlaArray(array.path, mode="r+")[11, 9, 3] = 4
        now = MlaArray(array.path)
        passes = counting_passes(monkeypatch)
        index = index_of(now, Foreground())
        assert all_found(index, 0) == sorted(places(now[...] > 0))
        assert not passes

    def test_statistics_of_files_that_others_edited_are_not_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = written(tmp_path, blobs()).path
        theirs = blosc2.open(path, mode="a")
        theirs[:5] = np.zeros((5, 11, 9), "u1")
        theirs[12, 10, 8] = np.uint8(1)
        del theirs
        array = MlaArray(path)
        assert array.chunk_statistics() is None
        passes = counting_passes(monkeypatch)
        index = index_of(array, Foreground())
        assert all_found(index, 0) == sorted(places(array[...] > 0))
        assert passes == [18]

    def test_a_file_that_changes_meanwhile_is_an_error(self, tmp_path: Path) -> None:
        array = written(tmp_path, blobs())
        index = index_of(array, Foreground())
        index.find(np.random.default_rng(0))
        written(tmp_path, blobs(seed=1))
        with pytest.raises(SourceChanged):
            index.find(np.random.default_rng(0))

    @pytest.mark.parametrize("dtype", ["u1", "<f4"])
    @pytest.mark.parametrize("wrong", ["less", "more", "elsewhere", "impossible"])
    def test_statistics_that_lie_are_found_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, wrong: str
    ) -> None:
        values = (blobs() > 0).astype(dtype)
        array = written(tmp_path, values)
        told = array.chunk_statistics()
        assert told is not None
        nonzero = {
            "less": np.minimum(told.nonzero, 1),
            "more": np.where(told.nonzero > 0, told.nonzero + 1, 0),
            "elsewhere": told.nonzero[::-1],
            "impossible": told.nonzero - 1,
        }[wrong]
        ranges = told
        if wrong == "elsewhere":
            ranges = replace(told, least=told.least[::-1], greatest=told.greatest[::-1])
        lies = replace(ranges, nonzero=nonzero)

        def lying(self: FileArray) -> ChunkStatistics:
            return lies

        monkeypatch.setattr(FileArray, "chunk_statistics", lying)
        index, rng = index_of(array, Foreground()), np.random.default_rng(0)
        for _ in range(60):
            assert values[index.find(rng)] > 0

    def test_a_predicate_that_changes_its_mind_is_an_error(self, tmp_path: Path) -> None:
        chance = np.random.default_rng(0)

        def moody(values: NDArray[Any]) -> NDArray[np.bool_]:
            return np.asarray(chance.random(values.shape) < chance.random())

        index = index_of(written(tmp_path, blobs(share=1.0)), Foreground(predicate=moody))
        with pytest.raises(ValueError, match="another foreground than was counted"):
            [index.find(np.random.default_rng(0)) for _ in range(20)]

    def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(self, tmp_path: Path) -> None:
        values = blobs("<f4", share=0.4)
        values[::2] = np.nan
        for foreground in (Foreground(), BALANCED):
            array = written(tmp_path, values)
            one, other = (index_of(array, foreground) for _ in range(2))
            draws = [Draw(seed=1, epoch=0, index=i) for i in range(40)]
            forward = [one.find(draw.generator()) for draw in draws]
            backward = [other.find(draw.generator()) for draw in reversed(draws)]
            assert forward == backward[::-1]

    def test_threads_count_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        passes = counting_passes(monkeypatch)
        values = blobs()
        index, start = index_of(bare(values), BALANCED), threading.Barrier(8)
        found: list[Any] = []

        def draw(seed: int) -> None:
            start.wait()
            rng = np.random.default_rng(seed)
            found.extend(index.find(rng) for _ in range(20))

        threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(passes) == 1
        assert len(found) == 160
        assert set(found) <= places(values > 0)

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_forked_child_waits_for_no_thread_of_its_parent(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counting, go_on, parent = threading.Event(), threading.Event(), os.getpid()
        count = ForegroundParts.count

        def slow(self: ForegroundParts, parts: NDArray[np.int64]) -> ClassCounts:
            if os.getpid() == parent:
                counting.set()
                assert go_on.wait(SECONDS)
            return count(self, parts)

        monkeypatch.setattr(ForegroundParts, "count", slow)
        index, found = index_of(bare(blobs()), BALANCED), []
        thread = threading.Thread(target=lambda: found.append(index.find(np.random.default_rng(0))))
        thread.start()
        assert counting.wait(SECONDS)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=lambda: sender.send(index.find(np.random.default_rng(0))))
        child.start()
        try:
            assert receiver.poll(SECONDS)
        finally:
            go_on.set()
            child.kill()
        thread.join()
        child.join()
        assert found == [receiver.recv()]


@dataclass
class Finder:
    """Stands for the index of a volume: one element, or nothing."""

    element: tuple[int, ...] | None
    asked: list[Foreground] = field(default_factory=list)

    def __call__(self, foreground: Foreground, rng: np.random.Generator) -> tuple[int, ...] | None:
        self.asked.append(foreground)
        return self.element


SPACE = SampleSpace(dims=("z", "y", "x"), extents=(40, 50, 60), spatial=(0, 1, 2))


class TestPatches:
    @given(
        element=st.tuples(*(st.integers(0, n - 1) for n in SPACE.extents)),
        patch=st.tuples(*(st.integers(1, 70) for _ in range(3))),
        seed=st.integers(0, 2**64 - 1),
    )
    def test_hold_the_element_and_nothing_outside(
        self, element: tuple[int, ...], patch: tuple[int, ...], seed: int
    ) -> None:
        draw = Draw(seed=seed, epoch=0, index=0)
        place = ForegroundPatches(patch).place(SPACE, number=0, draw=draw, find=Finder(element))
        for at, size, n, (start, stop) in zip(
            element, patch, SPACE.extents, place.inside, strict=True
        ):
            assert start <= at < stop
            assert stop - start == min(size, n)
            if size // 2 <= at <= n - size:
                assert at - start == size // 2

    @pytest.mark.parametrize(
        ("probability", "least", "most"), [(0, 0, 0), (0.33, 330, 420), (1, 1000, 1000)]
    )
    def test_are_as_often_around_foreground_as_asked(
        self, probability: float, least: int, most: int
    ) -> None:
        finder, wanted = Finder((3, 3, 3)), Foreground(threshold=4)
        sampling = ForegroundPatches(8, foreground=wanted, probability=probability)
        starts = [
            sampling.place(SPACE, number=0, draw=Draw(seed=0, epoch=0, index=i), find=finder).start
            for i in range(1000)
        ]
        assert least <= len(finder.asked) <= most
        assert set(finder.asked) <= {wanted}
        assert starts.count((0, 0, 0)) >= len(finder.asked)
        assert len(set(starts)) > 0.9 * (1000 - len(finder.asked))

    def test_are_anywhere_in_volumes_without(self) -> None:
        draws = [Draw(seed=0, epoch=0, index=i) for i in range(2000)]
        around, anywhere = ForegroundPatches((30, 50, 50)), RandomPatches((30, 50, 50))
        for sampling in (around, anywhere):
            starts = np.array(
                [
                    sampling.place(SPACE, number=0, draw=draw, find=Finder(None)).start
                    for draw in draws
                ]
            )
            counts = np.bincount(starts[:, 0] * 11 + starts[:, 2], minlength=121)
            assert chi_square(counts, np.full(121, 2000 / 121)) < 4

    def test_follow_from_the_draw(self, tmp_path: Path) -> None:
        array = written(tmp_path, blobs())
        space = SampleSpace(dims=("z", "y", "x"), extents=SHAPE, spatial=(0, 1, 2))
        sampling = ForegroundPatches(4, foreground=BALANCED, probability=0.5, patches_per_volume=3)
        assert pickle.loads(pickle.dumps(sampling)) == sampling
        assert sampling.count(space) == sampling.n_per_volume == 3

        def starts(epoch: int) -> list[tuple[int, ...]]:
            index = index_of(array, BALANCED)

            def find(foreground: Foreground, rng: np.random.Generator) -> Any:
                return index.find(rng)

            draws = [Draw(seed=3, epoch=epoch, index=i) for i in range(20)]
            return [sampling.place(space, number=0, draw=d, find=find).start for d in draws]

        assert starts(0) == starts(0) != starts(1)

    def test_of_two_axes(self, tmp_path: Path) -> None:
        values = np.zeros((30, 40), "u1")
        values[7, 39] = 1
        mlarray_xr.to_mla(values, tmp_path / "flat.mla", chunks=8, blocks=4)
        index = index_of(MlaArray(tmp_path / "flat.mla"), Foreground())
        space = SampleSpace(dims=("y", "x"), extents=(30, 40), spatial=(0, 1))
        draw = Draw(seed=0, epoch=0, index=0)
        place = ForegroundPatches({"y": 6, "x": 8}).place(
            space, number=0, draw=draw, find=lambda _, rng: index.find(rng)
        )
        assert place.box == ((4, 10), (32, 40))

    @pytest.mark.parametrize(
        "parameters",
        [{"probability": 1.1}, {"probability": float("nan")}, {"patches_per_volume": 0}],
    )
    def test_refuse_what_is_no_chance_and_no_count(self, parameters: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"from 0 to 1|patches_per_volume"):
            ForegroundPatches(8, **parameters)
