"""Predictions put together again: against the sum over the whole volume in NumPy."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.format.metadata import Boxes, Metadata, Spatial, Stats
from mlarray_xr.ml.aggregator import Aggregator
from mlarray_xr.ml.overlap_mean import OverlapMean
from mlarray_xr.ml.volume import Volume
from mlarray_xr.planning.grid_patches import GridPatches, PatchGrid
from mlarray_xr.planning.padding import Padding
from mlarray_xr.planning.patch_weights import Weighting, axis_weights
from tests.prediction_kit import SAMPLING, SHAPE, VALUES, WEIGHTINGS, labelled, read, written

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray


@st.composite
def grids(draw: st.DrawFn, *, max_overlap: float = 1.0) -> PatchGrid:
    """Draw grids in 1 to 4 dimensions, of volumes smaller and larger than the patch."""
    ndim = draw(st.integers(1, 4))
    shape = tuple(draw(st.integers(1, 6)) for _ in range(ndim))
    least = [max(1, round(size * (1 - max_overlap))) for size in shape]
    return PatchGrid(
        extents=tuple(draw(st.integers(1, 11)) for _ in range(ndim)),
        shape=shape,
        steps=tuple(draw(st.integers(low, size)) for low, size in zip(least, shape, strict=True)),
    )


def mean_of(
    grid: PatchGrid, weighting: Weighting, predictions: list[NDArray[Any]]
) -> NDArray[np.float64]:
    """Add up everything in arrays of the whole volume, and divide."""
    weights = np.ones(())
    for size in grid.shape:
        weights = np.multiply.outer(weights, axis_weights(weighting, size).astype(np.float64))
    total = np.zeros((len(predictions[0]), *grid.extents))
    count = np.zeros(grid.extents)
    for place, values in zip(grid, predictions, strict=True):
        inside, valid = (tuple(slice(*pair) for pair in box) for box in (place.inside, place.valid))
        total[:, *inside] += values[:, *valid] * weights[valid]
        count[inside] += weights[valid]
    return total / count


def random_predictions(grid: PatchGrid, *, n_channels: int, seed: int) -> list[NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n_channels, *grid.shape)) for _ in range(len(grid))]


def patches_of(source: Path, sampling: GridPatches) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield boxes and patches, (C, *patch), as a model would get them."""
    volume = Volume(str(source))
    for place in sampling.plan_windows(volume.space):
        patch = np.empty((volume.n_channels, *place.shape), volume.dtype)
        volume.read(place, patch, padding=Padding(), value=0)
        yield place.box, patch


# The mean


@given(
    grid=grids(),
    weighting=st.sampled_from(WEIGHTINGS),
    n_channels=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_the_mean_is_that_of_the_whole_volume(
    grid: PatchGrid, weighting: Weighting, n_channels: int, seed: int
) -> None:
    predictions = random_predictions(grid, n_channels=n_channels, seed=seed)
    expected = mean_of(grid, weighting, predictions)
    for dtype, atol in (("float64", 1e-13), ("float32", 1e-6)):
        mean = OverlapMean(grid, weighting, n_channels=n_channels, dtype=dtype)
        found = np.full((n_channels, *grid.extents), np.nan)
        for number, values in enumerate(predictions):
            for box, finished in mean.add(number, values):
                key = (slice(None), *(slice(*pair) for pair in box))
                assert np.isnan(found[key]).all()  # everything leaves once
                found[key] = finished
        np.testing.assert_allclose(found, expected, rtol=0, atol=10 * atol)


def test_what_is_held_does_not_grow_with_the_first_axis() -> None:
    held = []
    for length in (40, 4000):
        grid = PatchGrid(extents=(length, 24, 20), shape=(16, 8, 8), steps=(8, 4, 4))
        patch = np.ones((2, *grid.shape), np.float32)
        mean = OverlapMean(grid, "gaussian", n_channels=2, dtype="float32")
        assert mean.nbytes == 2 * 16 * 24 * 20 * 4
        tracemalloc.start()
        for number in range(len(grid) if length == 40 else 500):
            for _ in mean.add(number, patch):
                pass
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(held) < 2 * patch.nbytes + 20_000


def test_rows_are_those_of_the_first_axis_with_several_patches() -> None:
    grid = PatchGrid(extents=(3, 400, 10), shape=(3, 8, 5), steps=(3, 4, 5))
    assert OverlapMean(grid, "hann", n_channels=1, dtype="float32").nbytes == 3 * 8 * 10 * 4


# Reassembly


@settings(max_examples=30)
@given(
    data=st.data(),
    weights=st.sampled_from(WEIGHTINGS),
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"]),
    overlap=st.sampled_from([0, 0.25, 0.5, 0.75]),
    n_channels=st.integers(1, 3),
)
def test_predictions_that_repeat_the_volume_give_it_back(
    data: st.DataObject, weights: Weighting, dtype: str, overlap: float, n_channels: int
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 11), min_size=1, max_size=4), label="shape"))
    patch = tuple(data.draw(st.integers(1, 8), label="patch") for _ in shape)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    whole = (n_channels, *shape)
    if dtype.startswith("float"):
        values = rng.normal(size=whole).astype(dtype)
    else:
        info = np.iinfo(dtype)
        values = rng.integers(info.min, info.max, whole, dtype, endpoint=True)
    dims = ("channel", "time", "z", "y", "x")
    array = xr.DataArray(values, dims=("channel", *dims[len(dims) - len(shape) :]))
    sampling = GridPatches(patch, overlap=overlap)
    with tempfile.TemporaryDirectory() as folder:
        source, target = written(Path(folder), array), Path(folder, "target.mla")
        with Aggregator(
            target,
            source=str(source),
            sampling=sampling,
            n_channels=n_channels,
            weights=weights,
            dtype=dtype,
        ) as aggregator:
            for box, values_there in patches_of(source, sampling):
                aggregator.add(box, values_there)
        found = read(target)
    assert found.dtype == dtype
    expected = values if n_channels > 1 else values[0]
    if dtype.startswith("float"):
        # A voxel of four dimensions may be the sum of hundreds of patches.
        tolerance = 1e-6 if overlap <= 0.5 else 1e-5
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(found, expected)


def test_batches_are_patches_one_after_another(tmp_path: Path) -> None:
    source = written(tmp_path, VALUES)
    boxes, patches = zip(*patches_of(source, SAMPLING), strict=True)
    for name, size in (("one", 1), ("five", 5)):
        with Aggregator(
            tmp_path / f"{name}.mla", source=str(source), sampling=SAMPLING
        ) as aggregator:
            for first in range(0, len(boxes), size):
                batch = slice(first, first + size)
                aggregator.add(np.array(boxes[batch]), np.stack(patches[batch]))
        assert aggregator.report is not None
        assert (aggregator.report.shape, aggregator.nbytes) == (SHAPE, 0)
    assert (tmp_path / "one.mla").read_bytes() == (tmp_path / "five.mla").read_bytes()
    np.testing.assert_allclose(read(tmp_path / "one.mla"), VALUES, rtol=1e-6)


@pytest.mark.parametrize("n_channels", [2, 5, 300])
def test_labels_are_the_channels_of_the_greatest_means(tmp_path: Path, n_channels: int) -> None:
    source, sampling = written(tmp_path, np.zeros((9, 7), "u1")), GridPatches(5, overlap=0.5)
    grid = sampling.plan_windows(Volume(str(source)).space)
    predictions = random_predictions(grid, n_channels=n_channels, seed=1)
    target = tmp_path / "labels.mla"
    with Aggregator(
        target, source=str(source), sampling=sampling, n_channels=n_channels, argmax=True
    ) as aggregator:
        for place, values in zip(grid, predictions, strict=True):
            aggregator.add(place.box, values)
    array = mlarray_xr.MlaArray(target)
    assert array.dtype == (np.uint8 if n_channels <= 256 else np.int16)
    assert array.metadata.is_seg is True
    assert mlarray_xr.open_mla(target).name == "labels"
    np.testing.assert_array_equal(array[...], mean_of(grid, "gaussian", predictions).argmax(axis=0))


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0.4, 1.6, 2.5, 3.5], "uint8", [0, 2, 2, 4]),
        ([-0.4, -1.6, 127.4, -128.4], "int8", [0, -2, 127, -128]),
        ([2**40 + 1, -(2**52), 0, 1], "int64", [2**40 + 1, -(2**52), 0, 1]),
        ([0.5, 1e-3, 65504, 0], "float16", np.array([0.5, 1e-3, 65504, 0], np.float16)),
        ([True, False, True, True], "uint8", [1, 0, 1, 1]),
    ],
)
def test_means_are_rounded_to_integers(
    tmp_path: Path, values: Any, dtype: str, expected: Any
) -> None:
    with aggregator_for(tmp_path, np.zeros(4, "u1"), patch=4, dtype=dtype) as aggregator:
        aggregator.add([(0, 4)], [values])
    assert read(tmp_path / "target.mla").tolist() == list(expected)


def aggregator_for(folder: Path, values: Any, *, patch: int, **options: Any) -> Aggregator:
    source = written(folder, values)
    return Aggregator(
        folder / "target.mla", source=str(source), sampling=GridPatches(patch), **options
    )


@pytest.mark.parametrize(
    ("values", "options", "found"),
    [
        ([0, 1, 255.6, 0], {"dtype": "uint8"}, "means from 0 to 256 do not fit uint8"),
        ([0, -0.6, 1, 0], {"dtype": "uint16"}, "means from -1 to 1 do not fit uint16"),
        ([0, np.nan, 1, 0], {"dtype": "int16"}, "do not fit int16"),
        ([0, 2.0**63, 1, 0], {"dtype": "int64"}, "do not fit int64"),
        ([0, 2.0**64, 1, 0], {"dtype": "uint64"}, "do not fit uint64"),
        ([0, 1e6, 0, 0], {"dtype": "float16"}, "too large"),
        ([[0, 1, 2, np.nan], [0] * 4], {"argmax": True, "n_channels": 2}, "NaN"),
    ],
)
def test_means_that_the_type_cannot_hold_end_the_file(
    tmp_path: Path, values: Any, options: dict[str, Any], found: str
) -> None:
    with (
        pytest.raises(ConversionError, match=rf"^sub-07, box \(\(0, 4\),\): .*{found}"),
        aggregator_for(
            tmp_path, np.zeros(4, "u1"), patch=4, subject="sub-07", **options
        ) as aggregator,
    ):
        aggregator.add([(0, 4)], values if "argmax" in options else [values])
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "complex64"},
        {"dtype": "bool"},
        {"dtype": "float32", "argmax": True, "n_channels": 2},
        {"dtype": "int8", "argmax": True, "n_channels": 129},
        {"argmax": True},
        {"n_channels": 0},
    ],
)
def test_results_that_cannot_be(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises((ConversionError, LayoutError)):
        aggregator_for(tmp_path, VALUES, patch=8, **options)


def test_weights_that_there_are_not(tmp_path: Path) -> None:
    aggregator = aggregator_for(tmp_path, VALUES, patch=8, weights="cosine")
    with pytest.raises(ValueError, match="weights='cosine'"), aggregator:
        pytest.fail("it does not begin")
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


def test_an_aggregator_that_lost_its_place_takes_nothing_more(tmp_path: Path) -> None:
    aggregator = aggregator_for(tmp_path, np.zeros(4, "u1"), patch=4, dtype="uint8")

    def go_on() -> None:
        with aggregator:
            with pytest.raises(ConversionError, match="do not fit"):
                aggregator.add([(0, 4)], [[256] * 4])
            with pytest.raises(ValueError, match="not begun, or ended"):
                aggregator.add([(0, 4)], [[255] * 4])

    with pytest.raises(ConversionError, match=r"patch 0 of 1, .* missing"):
        go_on()
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


# What the file says


OBLIQUE = Spatial(
    spacing=(2.0, 1.0, 0.5),
    origin=(5.0, 6.0, 7.0),
    direction=((0.6, 0.8, 0.0), (-0.8, 0.6, 0.0), (0.0, 0.0, 1.0)),
    coord_system="LPS",
)
SOURCES: dict[str, Any] = {
    "unlabelled": (VALUES, {}),
    "labelled": (labelled(VALUES, dims=("z", "y", "x"), site="A"), {}),
    "oblique": (VALUES, {"metadata": Metadata(spatial=OBLIQUE, source={"PatientID": "7"})}),
    "channels first": (labelled(VALUES, dims=("channel", "y", "x")), {}),
    "channels last": (labelled(VALUES, dims=("y", "x", "channel")), {}),
    "times": (labelled(VALUES, dims=("time", "y", "x")).assign_coords(b=("time", range(20))), {}),
}


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_the_result_lies_where_the_volume_does(tmp_path: Path, name: str, n_channels: int) -> None:
    values, options = SOURCES[name]
    source, target = written(tmp_path, values, patch=6, **options), tmp_path / "target.mla"
    grid = GridPatches(100).plan_windows(Volume(str(source)).space)
    with Aggregator(
        target, source=str(source), sampling=GridPatches(100), n_channels=n_channels
    ) as aggregator:
        aggregator.add(grid[0].box, np.ones((n_channels, *grid.shape)))
    before, after = mlarray_xr.open_mla(source), mlarray_xr.open_mla(target)
    if "channel" in before.dims:
        before = before.isel(channel=0, drop=True)
    if n_channels > 1:
        assert after.dims == ("channel", *before.dims)
        after = after.isel(channel=1, drop=True)
    assert after.dims == before.dims
    assert after.coords.to_dataset().identical(before.coords.to_dataset())
    np.testing.assert_array_equal(after.mla.affine, before.mla.affine)
    left = {"mla_metadata"} | ({"axes_assumed"} if name == "unlabelled" else set())
    assert {k: v for k, v in after.attrs.items() if k not in left} == {
        k: v for k, v in before.attrs.items() if k not in left
    }
    assert after.name == "image"
    stored = [mlarray_xr.MlaArray(path).metadata for path in (source, target)]
    assert stored[0].source == stored[1].source
    assert stored[0].blosc2.patch_size == stored[1].blosc2.patch_size
    assert (after.to_numpy() == 1).all()


def test_statistics_go_and_boxes_stay(tmp_path: Path) -> None:
    boxes = Boxes(bboxes=(((0, 3), (1, 4), (2, 5)),), labels=("lesion",))
    metadata = Metadata(stats=Stats(max=3000), bbox=boxes, is_seg=True)
    with aggregator_for_all(tmp_path, metadata=metadata) as aggregator:
        add_ones(aggregator)
    found = mlarray_xr.MlaArray(tmp_path / "target.mla").metadata
    assert (found.stats, found.bbox, found.is_seg) == (Stats(), boxes, False)


def aggregator_for_all(folder: Path, *, metadata: Metadata | None = None) -> Aggregator:
    source = written(folder, VALUES, metadata=metadata)
    return Aggregator(
        folder / "target.mla", source=str(source), sampling=SAMPLING, subject="sub-07"
    )


BOXES = [place.box for place in PatchGrid(extents=SHAPE, shape=(8, 8, 8), steps=(4, 4, 4))]
ONES = np.ones((1, 8, 8, 8), np.float32)


def add_ones(aggregator: Aggregator, boxes: Iterable[Any] = BOXES) -> None:
    for box in boxes:
        aggregator.add(box, ONES)


def fail_in_the_middle(aggregator: Aggregator) -> None:
    with aggregator:
        add_ones(aggregator, BOXES[:20])
        raise KeyboardInterrupt


# Predictions that do not belong


@pytest.mark.parametrize(
    ("boxes", "found"),
    [
        ([*BOXES[:7], BOXES[5]], r"patch 5 of 32, box .* came twice; sub-07: patch 7 of 32, box"),
        ([*BOXES[:7], BOXES[9]], r"sub-07: patch 9 of 32, box .* came too early; .* 7 of 32"),
        ([BOXES[1]], r"patch 1 of 32, .* came too early; .* patch 0 of 32, .* is due"),
        ([*BOXES, BOXES[0]], r"patch 0 of 32, .* came twice; all patches were there"),
        ([((1, 9), (0, 8), (0, 8))], r"sub-07: box \(\(1, 9\), .* is no patch of this grid"),
        (BOXES[:-1], r"was not written: sub-07: patch 31 of 32, .* missing"),
        ([], r"was not written: sub-07: patch 0 of 32, .* missing"),
    ],
)
def test_patches_come_once_and_in_order(tmp_path: Path, boxes: Any, found: str) -> None:
    with (
        pytest.raises(ConversionError, match=found),
        aggregator_for_all(tmp_path) as aggregator,
    ):
        add_ones(aggregator, boxes)
    assert aggregator.report is None
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla"}


@pytest.mark.parametrize(
    ("box", "prediction", "found"),
    [
        (BOXES[0], ONES[0], r"sub-07: patch 0 of 32, .* shape \(8, 8, 8\)"),
        (BOXES[0], ONES[:, :7], r"sub-07: patch 0 of 32, .* shape \(1, 7, 8, 8\)"),
        (BOXES[0], np.ones((2, 8, 8, 8)), r"shape \(2, 8, 8, 8\).* shape \(1, 8, 8, 8\)"),
        (BOXES[0], ONES.astype("c8"), "type complex64"),
        (BOXES[0], ONES.astype("U1"), "type <U1"),
        ([BOXES[0]], [ONES, ONES], r"sub-07: boxes of shape \(1, 3, 2\) for .* \(2, 1, 8, 8, 8\)"),
        (BOXES[0][:2], ONES, r"sub-07: boxes of shape \(2, 2\)"),
        (BOXES[0], 1.0, r"sub-07: patch 0 of 32, .* shape \(\)"),
        ([BOXES[0]], 1.0, r"boxes of shape \(1, 3, 2\) for predictions of shape \(\)"),
        (3, ONES, r"boxes of shape \(\)"),
    ],
)
def test_predictions_have_the_shape_of_the_patch(
    tmp_path: Path, box: Any, prediction: Any, found: str
) -> None:
    with (
        pytest.raises(ConversionError, match=found),
        aggregator_for_all(tmp_path) as aggregator,
    ):
        aggregator.add(box, prediction)
    assert not (tmp_path / "target.mla").exists()


def test_an_error_leaves_nothing_and_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "target.mla"
    target.write_bytes(b"before")
    source = written(tmp_path, VALUES)
    with pytest.raises(FileExistsError), Aggregator(target, source=str(source), sampling=SAMPLING):
        pytest.fail("it does not begin")
    aggregator = Aggregator(target, source=str(source), sampling=SAMPLING, mode="w")
    with pytest.raises(KeyboardInterrupt):
        fail_in_the_middle(aggregator)
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"source.mla", "target.mla"}


def test_an_aggregator_takes_patches_in_its_block_only(tmp_path: Path) -> None:
    aggregator = aggregator_for_all(tmp_path)
    with pytest.raises(ValueError, match="not begun, or ended"):
        aggregator.add(BOXES[0], ONES)
    with aggregator:
        assert aggregator.nbytes == 8 * 17 * 9 * 4
        add_ones(aggregator)
    with pytest.raises(ValueError, match="not begun, or ended"):
        aggregator.add(BOXES[0], ONES)
    with pytest.raises(ConversionError, match=r"must end in '.mla'"):
        Aggregator(tmp_path / "target.nii", source=str(tmp_path / "source.mla"), sampling=SAMPLING)
