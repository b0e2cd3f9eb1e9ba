"""Resampling: the right place, exact where nothing moves between voxels, never twice."""

from __future__ import annotations

import builtins
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import dask
import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.processing import resample_from_to
from scipy import ndimage
from scipy.spatial.transform import Rotation

import mlarray_xr
from mlarray_xr.errors import GeometryError, MissingDependencyError
from mlarray_xr.geometry import Geometry
from mlarray_xr.series.gradients import without_b0
from mlarray_xr.series.originals import original_frame
from mlarray_xr.series.resampling import plan_index_map, resample_frame, resampled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (5, 10, 12, 14)
DIMS = ("time", "z", "y", "x")
BVALS = [0.0, 1000.0, 1000.0, 0.0, 1000.0]
KINDS = ("lazy", "dask", "memory", "dask derived")
# Columns are z, y, x of the array; rows are the axes of the world, in another order.
ALIGNED = np.array([[0, 0, 2.0, -5], [0, 1.5, 0, 7], [3.0, 0, 0, 1], [0, 0, 0, 1]])


def turn(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> Any:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


OBLIQUE = turn((20, -15, 30), (3, -4, 5)) @ ALIGNED
MOTION = np.stack(
    [
        turn((0, 0, 0), (0, 0, 0)),
        turn((0, 0, 0), (0.7, -0.3, 0.2)),
        turn((3, -2, 4), (0.5, 0.4, -0.9)),
        turn((0, 5, 0), (0, 0, 0)),
        turn((-4, 1, 2), (-1.5, 0.1, 0.6)),
    ]
)


def smooth(dtype: str = "float64") -> NDArray[Any]:
    noise = np.random.default_rng(5).normal(size=SHAPE)
    values: NDArray[Any] = 100 * ndimage.gaussian_filter(noise, (0, 1.5, 1.5, 1.5))
    return values.astype(dtype)


def write(path: Path, values: NDArray[Any], affine: NDArray[np.float64] = OBLIQUE) -> str:
    metadata_attrs = {
        "spatial_dims": "z y x",
        "spatial_coords": "voxel index",
        "affine": affine.ravel().tolist(),
        "coord_system": "RAS",
    }
    coords = {
        "bval": ("time", BVALS),
        **{d: np.arange(n) for d, n in zip("zyx", SHAPE[1:], strict=True)},
    }
    array = xr.DataArray(values, dims=DIMS, coords=coords, attrs=metadata_attrs, name="dwi")
    mlarray_xr.to_mla(array, path, chunks=(1, 10, 12, 14), blocks=(1, 10, 12, 14))
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("resampling") / "dwi.mla", smooth())


def opened(path: str, kind: str) -> xr.DataArray:
    array = mlarray_xr.open_mla(path, chunks={} if "dask" in kind else None)
    if kind == "memory":
        return array.compute()
    return array + 0 if "derived" in kind else array


def expected_frame(
    frame: NDArray[Any],
    motion: NDArray[np.float64],
    *,
    affine: NDArray[np.float64] = OBLIQUE,
    order: int = 3,
    fill_value: float = 0,
) -> NDArray[Any]:
    """Resample eagerly, each voxel by its position."""
    places = np.stack(np.meshgrid(*map(np.arange, frame.shape), indexing="ij"), axis=-1)
    world = places @ affine[:3, :3].T + affine[:3, 3]
    moved = world @ motion[:3, :3].T + motion[:3, 3]
    inverse = np.linalg.inv(affine)
    index = moved @ inverse[:3, :3].T + inverse[:3, 3]
    found: NDArray[Any] = ndimage.map_coordinates(
        frame, np.moveaxis(index, -1, 0), order=order, mode="constant", cval=fill_value
    )
    return found


# --- right -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1, 3, 5])
def test_frames_are_read_where_motion_took_them(path: str, kind: str, order: int) -> None:
    found = resampled(opened(path, kind), MOTION, order=order, fill_value=-1)
    assert not found.variable._in_memory
    assert (found.dims, found.shape, found.dtype.name) == (DIMS, SHAPE, "float64")
    assert (found.chunks is not None) == (kind == "dask")
    values = found.values
    assert np.array_equal(values[0], smooth()[0])
    for k in range(1, 5):
        expected = expected_frame(smooth()[k], MOTION[k], order=order, fill_value=-1)
        # Voxels on the last plane may be called outside for rounding.
        close = np.isclose(values[k], expected, atol=1e-6)
        assert close.mean() > 0.995
        assert close[1:-1, 1:-1, 1:-1].mean() > 0.999


def test_nibabel_agrees(path: str) -> None:
    found = resampled(opened(path, "lazy"), MOTION)
    for k in (1, 2):
        # What lies at motion @ p lies, once the frame is moved back, at p.
        moved_back = nib.Nifti1Image(smooth()[k], np.linalg.inv(MOTION[k]) @ OBLIQUE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = resample_from_to(moved_back, (SHAPE[1:], OBLIQUE), order=3)
        assert np.allclose(found[k].values, expected.get_fdata(), atol=1e-6)


def test_a_point_is_found_where_motion_says(tmp_path: Path) -> None:
    """The direction of motion: from the reference to the frame."""
    values = np.zeros(SHAPE)
    frame_index = np.array([6, 5, 7])
    values[1][tuple(frame_index)] = 1
    array = mlarray_xr.open_mla(write(tmp_path / "point.mla", values))
    world = array[1].mla.index_to_world(frame_index)
    shift = array[1].mla.index_to_world(np.add(frame_index, [0, 1, -2])) - world
    motion = np.stack([np.eye(4)] * 5)
    motion[1, :3, 3] = shift
    found = resampled(array, motion)[1].values
    assert np.argwhere(found).tolist() == [(frame_index - [0, 1, -2]).tolist()]


@pytest.mark.parametrize("dtype", ["u1", ">i2", "i4", "u8", "f2", "f4", ">f8", "c8", "?"])
@pytest.mark.parametrize("order", [0, 3])
def test_nothing_moved_is_nothing_changed(tmp_path: Path, dtype: str, order: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**62, SHAPE, dtype="u8")
    stored = (values % 199).astype(dtype) if np.dtype(dtype).kind in "fc" else values.astype(dtype)
    array = mlarray_xr.open_mla(write(tmp_path / "any.mla", stored))
    found = resampled(array, [np.eye(4)] * 5, order=order)
    assert found.dtype == np.dtype(dtype)
    assert np.array_equal(found.values, stored)
    half = resampled(array[:1], MOTION[1:2], order=order).values
    assert half.dtype == np.dtype(dtype)
    assert half.any()


@given(shift=st.tuples(st.integers(-11, 11), st.integers(-13, 13), st.integers(-15, 15)))
@settings(max_examples=30)
def test_whole_voxels_are_moved_exactly(path: str, shift: tuple[int, int, int]) -> None:
    motion = np.eye(4)
    motion[:3, 3] = OBLIQUE[:3, :3] @ shift
    found = resampled(mlarray_xr.open_mla(path)[2:3], [motion], fill_value=-7).values[0]
    padded = np.pad(smooth()[2], [(20, 20)] * 3, constant_values=-7)
    window = tuple(slice(20 + s, 20 + s + n) for s, n in zip(shift, SHAPE[1:], strict=True))
    assert np.array_equal(found, padded[window])


def test_whole_numbers_are_rounded_and_kept_in_range() -> None:
    frame = np.array([0, 0, 0, 255, 255, 255, 0, 0], "u1")
    moved = resample_frame(frame, np.array([[1, 0.5]]), shape=(8,), order=3, fill_value=0)
    exact = ndimage.affine_transform(frame.astype("f8"), np.eye(1), [0.5], mode="constant")
    assert exact.max() > 255
    assert moved.tolist() == np.clip(np.rint(exact), 0, 255).tolist()


@pytest.mark.parametrize(
    "matrix",
    [
        [[0, 1, 0, 0], [-1, 0, 0, 11], [0, 0, 1, 0]],
        [[1, 0, 0, 0.25], [0, 1, 0, 0], [0, 0, 1, 0]],
    ],
)
def test_rounding_puts_no_plane_outside(matrix: Any) -> None:
    """SciPy calls an index of -1e-17 outside."""
    frame = np.random.default_rng(0).normal(size=(12, 12, 5))
    exact = np.asarray(matrix, dtype=np.float64)
    noisy = exact + np.where(exact == np.rint(exact), -1e-12, 0)
    noisy[:, -1] -= 1e-12
    expected = resample_frame(frame, exact, shape=frame.shape, order=1, fill_value=np.nan)
    found = resample_frame(frame, noisy, shape=frame.shape, order=1, fill_value=np.nan)
    assert np.allclose(found, expected, equal_nan=True)
    assert np.isnan(found).sum() <= 60


# --- grids -------------------------------------------------------------------------------------

CROPS: dict[str, dict[str, Any]] = {
    "crop": {"z": slice(2, 8), "x": slice(3, None)},
    "stride": {"y": slice(None, None, 2)},
    "flip": {"x": slice(None, None, -1), "z": slice(8, 1, -3)},
    "plane": {"z": 4},
    "line": {"z": 4, "x": 3},
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("kind", ["lazy", "dask"])
def test_a_crop_takes_what_lies_outside_of_it(path: str, crop: str, kind: str) -> None:
    whole = resampled(opened(path, "lazy"), MOTION).compute()
    array = opened(path, kind).isel(CROPS[crop])
    found = resampled(array, MOTION)
    assert found.dims == array.dims
    assert np.allclose(found.values, whole.isel(CROPS[crop]).values, atol=1e-9)
    assert np.allclose(found.mla.affine, array.mla.affine)


@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_keep_their_order_and_names(path: str, kind: str) -> None:
    whole = resampled(opened(path, "lazy"), MOTION).compute()
    array = opened(path, kind).transpose("x", "time", "z", "y").rename(z="slice", time="volume")
    found = resampled(array, MOTION)
    assert found.dims == ("x", "volume", "slice", "y")
    expected = whole.transpose("x", "time", "z", "y").values
    assert np.allclose(found.values, expected, atol=1e-9)


def test_positions_of_an_aligned_file_are_those_of_its_coordinates(tmp_path: Path) -> None:
    array = mlarray_xr.open_mla(write(tmp_path / "aligned.mla", smooth(), ALIGNED))
    assert array.x.dtype == np.float64
    found = resampled(array, MOTION)
    expected = expected_frame(smooth()[2], MOTION[2], affine=ALIGNED)
    assert np.isclose(found[2].values, expected, atol=1e-6).mean() > 0.995


def test_planes_and_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    values = ndimage.gaussian_filter(rng.normal(size=(3, 2, 9, 8)), (0, 0, 1, 1))
    coords = {"y": 2.0 * np.arange(9), "x": 1.5 * np.arange(8)}
    array = xr.DataArray(values, dims=("time", "channel", "y", "x"), coords=coords)
    motion = np.stack([np.eye(3)] * 3)
    motion[:, :2, 2] = np.array([[0, 0], [0.5, 0], [2.0, -1.5]])
    mlarray_xr.to_mla(array, tmp_path / "planes.mla")
    for source in (array, mlarray_xr.open_mla(tmp_path / "planes.mla")):
        for view in (source, source.isel(channel=[1, 0])):
            found = resampled(view, motion, order=1)
            original = view.values
            assert np.array_equal(found[0].values, original[0])
            assert np.allclose(
                found[1, :, :-1], 0.75 * original[1, :, :-1] + original[1, :, 1:] / 4
            )
            assert np.array_equal(found[2, :, :-1, 1:], original[2, :, 1:, :-1])


# --- lazy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lazy", "dask"])
def test_only_what_is_asked_for_is_read(path: str, kind: str) -> None:
    with mlarray_xr.measure() as measured:
        found = resampled(without_b0(opened(path, kind)), MOTION[2:])
        cut = found.isel(time=slice(1, 3)).transpose("time", "x", "y", "z")
        assert measured.stats.bytes_useful == 0
        cut.isel(time=1).values  # noqa: B018
        assert measured.stats.bytes_useful == 10 * 12 * 14 * 8


def indexers() -> st.SearchStrategy[dict[str, Any]]:
    def along(n: int) -> st.SearchStrategy[Any]:
        lists = st.lists(st.integers(-n, n - 1), max_size=4)
        ends = st.integers(0, n) | st.none()
        slices = st.builds(slice, ends, ends, st.sampled_from([1, 2]))
        return st.integers(-n, n - 1) | lists | slices

    choices = {d: along(n) for d, n in zip(DIMS, SHAPE, strict=True)}
    return st.fixed_dictionaries({}, optional=choices)


@settings(max_examples=40)
@given(first=indexers(), is_pointwise=st.booleans())
def test_indexing_is_that_of_the_computed_array(
    path: str, first: dict[str, Any], is_pointwise: bool
) -> None:
    lazy = resampled(mlarray_xr.open_mla(path), MOTION, order=1)
    whole = WHOLE.setdefault(path, lazy.compute())
    if is_pointwise:
        points = {d: xr.DataArray([0, 1, 1], dims="point") for d in first if d in ("time", "x")}
        first = {**first, **points}
    found, expected = lazy.isel(first), whole.isel(first)
    assert found.dims == expected.dims
    assert np.array_equal(found.values, expected.values)


WHOLE: dict[str, xr.DataArray] = {}


@pytest.mark.parametrize("kind", KINDS)
def test_it_pickles(path: str, kind: str) -> None:
    found = resampled(opened(path, kind), MOTION)
    again = pickle.loads(pickle.dumps(found))
    assert np.array_equal(again[2].values, found[2].values)


def test_what_a_task_carries_is_small(path: str) -> None:
    found = resampled(mlarray_xr.open_mla(path), MOTION)
    assert len(pickle.dumps(found.variable._data)) < 12_000


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_dask_computes_one_frame_per_task(path: str, scheduler: str) -> None:
    found = resampled(opened(path, "dask"), MOTION)
    assert found.chunks == ((1,) * 5, (10,), (12,), (14,))
    with dask.config.set(scheduler=scheduler, num_workers=2):
        values = found[1:4].compute().values
    assert np.array_equal(values, resampled(opened(path, "lazy"), MOTION)[1:4].values)


def test_threads_share_it(path: str) -> None:
    found = resampled(mlarray_xr.open_mla(path), MOTION)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda k: found[k % 5].values, range(20)))
    assert all(np.array_equal(values[k], values[k % 5]) for k in range(20))


def test_it_can_be_written_and_assigned_to(path: str, tmp_path: Path) -> None:
    found = resampled(mlarray_xr.open_mla(path), MOTION)
    expected = found.values
    mlarray_xr.to_mla(found, tmp_path / "moved.mla")
    assert np.array_equal(mlarray_xr.open_mla(tmp_path / "moved.mla").values, expected)
    found[0, 0, 0, 0] = 99
    assert float(found[0, 0, 0, 0]) == 99
    assert np.array_equal(mlarray_xr.open_mla(path).values, smooth())


def test_stored_statistics_are_not_those_of_the_result(path: str) -> None:
    found = resampled(mlarray_xr.open_mla(path), MOTION)
    assert "blocks" not in found.encoding


# --- never twice -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunked", [False, True])
def test_resampling_again_starts_from_the_originals(path: str, kind: str, chunked: bool) -> None:
    array = without_b0(opened(path, kind))
    once = resampled(array, MOTION[[1, 2, 4]])
    if chunked:
        once = once.chunk({"time": 2})
    again = resampled(once[::-1], [np.eye(4)] * 3)
    assert again.orig_volume.values.tolist() == [4, 2, 1]
    assert np.array_equal(again.values, smooth()[[4, 2, 1]])
    other = resampled(again[:, 2:, ::2], MOTION[[2, 1, 4]])
    expected = resampled(array[::-1], MOTION[[2, 1, 4]])[:, 2:, ::2]
    assert np.allclose(other.values, expected.values, atol=1e-9)


def test_originals_are_behind_what_was_resampled(path: str) -> None:
    for kind in ("lazy", "dask"):
        moved = resampled(without_b0(opened(path, kind)), MOTION[:3])
        assert np.array_equal(original_frame(moved, 3).values, smooth()[3])
        assert original_frame(moved, 3).attrs == mlarray_xr.open_mla(path).attrs


@pytest.mark.parametrize("kind", ["lazy", "dask"])
def test_values_that_lost_their_originals_are_refused(path: str, kind: str) -> None:
    moved = resampled(opened(path, kind), MOTION)
    for lost in (moved.compute(), moved * 2):
        with pytest.raises(ValueError, match=r"blur them twice\. To fix"):
            resampled(lost, MOTION)
    accepted = moved.compute()
    del accepted.attrs["resampled"]
    assert resampled(accepted, MOTION).shape == SHAPE


def test_a_scaled_series_is_resampled_as_it_is_now(path: str) -> None:
    for kind in ("lazy", "dask"):
        found = resampled(opened(path, kind) * 2, MOTION)
        expected = resampled(opened(path, "lazy"), MOTION)
        assert np.allclose(found.values, 2 * expected.values)


# --- motion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_goes_by_the_number_of_the_original_frame(path: str, kind: str) -> None:
    array = without_b0(opened(path, kind))[::-1]
    by_number = dict(enumerate(MOTION))
    found = resampled(array, by_number)
    assert np.array_equal(found.values, resampled(array, MOTION[[4, 2, 1]]).values)
    del by_number[2]
    with pytest.raises(ValueError, match=r"no matrix for orig_volume \[2\]"):
        resampled(array, by_number)


@pytest.mark.parametrize(
    ("motion", "words"),
    [
        (MOTION[:4], r"\(4, 4, 4\) does not fit 5 frames"),
        (np.stack([np.eye(3)] * 5), r"\(5, 3, 3\) does not fit"),
        (MOTION * np.nan, r"orig_volume \[0, 1, 2, 3, 4\] are no affines"),
        (MOTION * [[1], [1], [1], [2]], "no affines"),
    ],
)
def test_motion_that_makes_no_sense_is_refused(path: str, motion: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        resampled(mlarray_xr.open_mla(path), motion)


@pytest.mark.parametrize("order", [-1, 6, 1.5])
def test_orders_that_there_are_not_are_refused(path: str, order: Any) -> None:
    with pytest.raises(ValueError, match="no order of a spline"):
        resampled(mlarray_xr.open_mla(path), MOTION, order=order)


def test_fill_values_must_fit_the_type(tmp_path: Path) -> None:
    array = mlarray_xr.open_mla(write(tmp_path / "bytes.mla", smooth("u1")))
    for fill_value in (-1, 0.5, np.nan, 256):
        with pytest.raises(ValueError, match="To fix"):
            resampled(array, MOTION, fill_value=fill_value)
    assert resampled(array, MOTION, fill_value=255.0)[4].values.max() == 255


def test_no_frames(path: str) -> None:
    found = resampled(mlarray_xr.open_mla(path)[:0], np.zeros((0, 4, 4)))
    assert found.values.shape == (0, *SHAPE[1:])


def test_positions_must_be_known() -> None:
    unplaced = xr.DataArray(smooth(), dims=DIMS)
    with pytest.raises(GeometryError, match="positions are unknown"):
        resampled(unplaced, MOTION)
    flat = Geometry(dims=("x",), affine=((0.0, 1.0), (0.0, 1.0)), units=(None,))
    with pytest.raises(GeometryError, match="no index belongs"):
        plan_index_map(flat, flat, np.eye(2))


def test_texts_are_not_interpolated() -> None:
    array = xr.DataArray([["a", "b"]], dims=("time", "x"), coords={"x": [0.0, 1.0]})
    with pytest.raises(TypeError, match="numbers are needed"):
        resampled(array, [np.eye(2)])


def test_without_scipy_the_extra_is_named(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refuse(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "scipy":
            raise ImportError(name)
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r'pip install "mlarray-xr\[series\]"'):
        resampled(mlarray_xr.open_mla(path), MOTION)


@pytest.mark.parametrize("order", [2, 3])
def test_nan_is_not_spread_over_a_frame(order: int) -> None:
    values = np.ones((6, 6))
    values[2, 2] = np.nan
    half = np.array([[1.0, 0, 0.5], [0, 1, 0]])
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        resample_frame(values, half, shape=(6, 6), order=order, fill_value=0)
    near = resample_frame(values, half, shape=(6, 6), order=1, fill_value=0)
    assert 0 < np.isnan(near).sum() <= 4
    whole = np.array([[1.0, 0, 1], [0, 1, 0]])
    moved = resample_frame(values, whole, shape=(6, 6), order=order, fill_value=0)
    assert np.isnan(moved).sum() == 1
