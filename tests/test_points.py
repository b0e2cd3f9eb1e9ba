"""Values at points: nearest and linear, inside and outside, of files, of Dask and of memory."""

from __future__ import annotations

import itertools
import math
import pickle
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mlarray_xr
from mlarray_xr import dask_points as dask_points_module
from mlarray_xr import points as points_module
from mlarray_xr.errors import GeometryError
from mlarray_xr.labelled_points import points_of
from mlarray_xr.planning.point_plan import plan_points
from mlarray_xr.points import point_axes, read_points

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.planning.selection import PointSelection

SHAPE = (3, 9, 8, 7)
SPATIAL = (1, 2, 3)
DEFAULTS: dict[str, Any] = {
    "space": "index",
    "method": "nearest",
    "outside": "raise",
    "fill_value": None,
}


def volume(dtype: str = "int16") -> NDArray[Any]:
    return np.random.default_rng(1).integers(0, 1000, SHAPE).astype(dtype)


def read_of(values: NDArray[Any]) -> Callable[[PointSelection], NDArray[Any]]:
    """Read from an array in memory, slowly and surely."""

    def read(selection: PointSelection) -> NDArray[Any]:
        axes = [axis for axis, p in enumerate(selection.points) if p is not None]
        moved = np.moveaxis(values, axes, range(len(axes)))
        picked: NDArray[Any] = moved[tuple(p for p in selection.points if p is not None)]
        return picked

    return read


def sample(values: NDArray[Any], points: Any, **options: Any) -> NDArray[Any]:
    plan = plan_points(
        points,
        shape=values.shape,
        dtype=values.dtype,
        axes=tuple(range(values.ndim)),
        **{"method": "nearest", "outside": "raise", "fill_value": None, **options},
    )
    return read_points(plan, read_of(values))


def interpolated(values: NDArray[Any], point: NDArray[Any]) -> Any:
    """Interpolate one point along the first axes, corner by corner."""
    total = np.zeros(values.shape[len(point) :])
    for corner in itertools.product((0, 1), repeat=len(point)):
        index = [math.floor(x) + up for x, up in zip(point, corner, strict=True)]
        weight = math.prod(
            x - math.floor(x) if up else 1 - (x - math.floor(x))
            for x, up in zip(point, corner, strict=True)
        )
        if weight:
            total = total + weight * values[tuple(index)].astype(float)
    return total


def of(array: xr.DataArray, points: Any, **options: Any) -> xr.DataArray:
    return points_of(array, points, **{**DEFAULTS, **options})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of 3 channels whose spatial axes are oblique to nothing and spaced unevenly."""
    array = xr.DataArray(
        volume(),
        dims=("channel", "z", "y", "x"),
        coords={
            "z": 10 + 3.0 * np.arange(9),
            "y": -5 + 0.7 * np.arange(8),
            "x": 2 + 0.3 * np.arange(7),
        },
    )
    mlarray_xr.to_mla(array, tmp_path / "v.mla", chunks=(2, 4, 5, 4), blocks=(1, 2, 3, 4))
    return tmp_path / "v.mla"


@pytest.fixture(params=["lazy", "memory", "dask"])
def image(request: pytest.FixtureRequest, path: Path) -> xr.DataArray:
    array = mlarray_xr.open_mla(path)
    if request.param == "memory":
        return array.load()
    return array.chunk(channel=2, z=4, y=3, x=-1) if request.param == "dask" else array


RNG = np.random.default_rng(7)
INSIDE = RNG.uniform(0, np.array(SHAPE)[1:] - 1, (40, 3))


def test_nearest_keeps_order_duplicates_and_channels(image: xr.DataArray) -> None:
    points = np.concatenate((INSIDE, INSIDE[:5], INSIDE[::-1]))
    found = of(image, points)
    assert found.dims == ("point", "channel")
    assert found.dtype == np.dtype("int16")
    z, y, x = np.rint(points).astype(int).T
    np.testing.assert_array_equal(found.values, volume()[:, z, y, x].T)
    assert found.name == image.name
    assert found.attrs == image.attrs
    assert "z" not in found.coords


def test_linear_is_what_the_corners_say(image: xr.DataArray) -> None:
    found = of(image, INSIDE, method="linear")
    moved = np.moveaxis(volume(), 0, -1)
    assert found.dtype == np.dtype("float64")
    np.testing.assert_allclose(found.values, [interpolated(moved, p) for p in INSIDE], rtol=1e-12)


def test_all_axes_may_be_points(image: xr.DataArray) -> None:
    points = RNG.uniform(0, np.array(SHAPE) - 1, (30, 4))
    found = of(image, points, method="linear")
    assert found.dims == ("point",)
    np.testing.assert_allclose(found, [interpolated(volume(), p) for p in points], rtol=1e-12)


@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_world_positions_are_those_of_voxels(image: xr.DataArray, method: Any) -> None:
    indices = RNG.integers(0, np.array(SHAPE)[1:], (50, 3))
    # The last voxel centres are where rounding would lead outside.
    indices[0] = np.array(SHAPE)[1:] - 1
    world = image.mla.index_to_world(indices)
    found = of(image, world, space="world", method=method)
    np.testing.assert_array_equal(found.values, volume()[:, *indices.T].T)


def test_world_positions_follow_what_was_done_to_the_array(image: xr.DataArray) -> None:
    part = image.isel(z=slice(8, 1, -2), y=slice(2, None), x=3)
    world = image.mla.index_to_world([(4, 3, 3), (2, 7, 3), (4, 3, 4)])
    found = of(part, world, space="world", outside="drop")
    np.testing.assert_array_equal(found, volume()[:, [4, 2], [3, 7], [3, 3]].T)
    assert found.point_number.values.tolist() == [0, 1]
    assert float(found.x) == pytest.approx(2.9)
    with pytest.raises(IndexError, match="number 2"):
        of(part, world, space="world")


@pytest.mark.parametrize("points", [[], np.zeros((0, 3)), np.zeros((0, 3), int)])
@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_no_points_are_fine(image: xr.DataArray, points: Any, method: Any) -> None:
    for outside in ("raise", "drop"):
        for space in ("index", "world"):
            found = of(image, points, method=method, outside=outside, space=space)
            assert found.shape == (0, 3)
            assert found.values.dtype == ("int16" if method == "nearest" else "float64")


def test_outside_points_are_refused_filled_or_dropped(image: xr.DataArray) -> None:
    points = np.array([(1, 1, 1), (9, 0, 0), (2, 3, 4), (0, -1, 0), (np.nan, 0, 0), (8, 7, 6)])
    good = np.array([0, 2, 5])
    expected = volume()[:, *points[good].astype(int).T].T
    with pytest.raises(IndexError, match=r"3 of 6 points .* number 1 at index \[9.0, 0.0, 0.0\]"):
        of(image, points)
    dropped = of(image, points, outside="drop")
    np.testing.assert_array_equal(dropped, expected)
    np.testing.assert_array_equal(dropped.point_number, good)
    filled = of(image, points, outside="fill", fill_value=-7)
    assert filled.dtype == np.dtype("int16")
    np.testing.assert_array_equal(filled[good], expected)
    assert (np.delete(filled.values, good, axis=0) == -7).all()
    filled = of(image, points, outside="fill", method="linear")
    np.testing.assert_array_equal(filled[good], expected)
    assert np.isnan(np.delete(filled.values, good, axis=0)).all()


def test_when_all_points_are_outside(image: xr.DataArray) -> None:
    points = [(50, 0, 0), (-3, 0, 0)]
    assert of(image, points, outside="drop").values.shape == (0, 3)
    filled = of(image, points, outside="fill", fill_value=4)
    np.testing.assert_array_equal(filled, np.full((2, 3), 4))


def test_a_dask_result_is_lazy_and_reads_only_touched_parts(path: Path) -> None:
    image = mlarray_xr.open_mla(path).chunk(channel=2, z=4, y=3, x=-1)
    loaded: list[Any] = []

    def watch(part: NDArray[Any], block_id: Any = None) -> NDArray[Any]:
        if block_id is not None:
            loaded.append(block_id)
        return part

    watched = image.copy(
        data=image.data.map_blocks(watch, dtype=image.dtype, meta=image.data._meta)
    )
    loaded.clear()
    points = [(0, 0, 0), (3, 2, 6), (8, 7, 1), (0, 0, 0), (7, 3, 3)]
    found = of(watched, points)
    assert found.chunks == ((5,), (2, 1))
    assert not loaded
    with dask.config.set(scheduler="synchronous"):
        values = found.values
    np.testing.assert_array_equal(values, volume()[:, *np.transpose(points)].T)
    touched = {(z // 4, y // 3) for z, y, _ in points}
    assert sorted(loaded) == sorted((c, a, b, 0) for a, b in touched for c in (0, 1))
    picks = [key for key in dict(found.__dask_graph__()) if str(key[0]).startswith("points-pick")]
    assert len(picks) == 2 * len(touched)


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask_schedulers_agree(path: Path, scheduler: str) -> None:
    image = mlarray_xr.open_mla(path).chunk(channel=2, z=4, y=3, x=-1)
    points = np.concatenate((INSIDE, [(0, 0, 99.0)]))
    lazy = of(image, points, method="linear", outside="fill", fill_value=-1)
    expected = of(image.load(), points, method="linear", outside="fill", fill_value=-1)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        np.testing.assert_array_equal(lazy.values, expected.values)


def test_a_lazy_result_has_one_name_and_pickles(path: Path) -> None:
    image = mlarray_xr.open_mla(path).chunk(z=4)
    first, again = of(image, INSIDE), of(image, INSIDE)
    assert first.data.name == again.data.name
    assert first.data.name != of(image, INSIDE[1:]).data.name
    assert first.data.name != of(image, INSIDE, method="linear").data.name
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(first)), first)


@pytest.mark.parametrize("outside", ["fill", "drop"])
@pytest.mark.parametrize("method", ["nearest", "linear"])
def test_batches_change_nothing(
    image: xr.DataArray, method: Any, outside: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = RNG.uniform(-2, np.array(SHAPE)[1:] + 1, (60, 3))
    options = {"method": method, "outside": outside}
    if outside == "fill":
        options["fill_value"] = 3
    expected = of(image, points, **options).load()
    monkeypatch.setattr(points_module, "_VOXELS_AT_ONCE", 56)
    monkeypatch.setattr(dask_points_module, "_VOXELS_AT_ONCE", 56)
    found = of(image, points, **options)
    xr.testing.assert_identical(found.load(), expected)


def test_parts_of_unknown_extent_are_refused(path: Path) -> None:
    flat = mlarray_xr.open_mla(path).chunk(z=4).data.reshape(-1)
    array = xr.DataArray(flat[flat > 500], dims="x")
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        of(array, [[1]])


@given(
    points=hnp.arrays("f8", (6, 2), elements=st.floats(-3, 8, width=16)),
    method=st.sampled_from(["nearest", "linear"]),
)
def test_what_is_inside(points: NDArray[Any], method: Any) -> None:
    values = np.random.default_rng(2).normal(size=(4, 6))
    found = sample(values, points, method=method, outside="fill", fill_value=-99)
    for point, value in zip(points, found, strict=True):
        if method == "nearest":
            inside = all(-0.5 <= x < n - 0.5 for x, n in zip(point, (4, 6), strict=True))
            expected = values[tuple(round(x) for x in point)] if inside else -99
        else:
            inside = all(0 <= x <= n - 1 for x, n in zip(point, (4, 6), strict=True))
            expected = interpolated(values, point) if inside else -99
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_ties_go_to_the_even_index() -> None:
    assert sample(np.arange(6), [[-0.5], [0.5], [1.5], [2.5], [4.4999]]).tolist() == [0, 0, 2, 2, 4]


def test_integers_never_count_from_the_end() -> None:
    for dtype in ("int8", "int64", "uint16"):
        points = np.array([[0], [5]], dtype)
        assert sample(np.arange(6), points).tolist() == [0, 5]
    with pytest.raises(IndexError):
        sample(np.arange(6), [[-1]])


def test_nan_and_infinity_stay_where_they_have_weight() -> None:
    values = np.array([[1.0, np.nan, 3.0], [np.inf, 5.0, -np.inf], [7.0, 8.0, 9.0]])
    points = [(0, 0), (0, 0.5), (0, 2), (0.5, 0), (2, 1.5), (1, 1), (1.5, 2), (2, 2), (1, 0)]
    found = sample(values, points, method="linear")
    inf, nan = np.inf, np.nan
    np.testing.assert_array_equal(found, [1, nan, 3, inf, 8.5, 5, -inf, 9, inf])
    wide = np.array([[np.inf, -np.inf]])
    assert np.isnan(sample(wide, [(0, 0.5)], method="linear")[0])


@pytest.mark.parametrize("dtype", ["?", "u1", ">i4", "f2", "f4", "f8", "c8", "c16"])
def test_linear_results_are_double(dtype: str) -> None:
    values = np.array([0, 1, 1]).astype(dtype)
    found = sample(values, [[0.25], [1.0]], method="linear")
    assert found.dtype == ("complex128" if dtype.startswith("c") else "float64")
    assert found.tolist() == [0.25, 1.0]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("u1", 256), ("u1", -1), ("i2", 0.5), ("i2", np.nan), ("f4", 1e300), ("f4", 1j), ("?", 2),
     ("f8", "x"), ("S2", b"abc"), ("i2", [1]), ("i2", None), ("M8[ns]", 3.5), ("i2", np.inf)],
)  # fmt: skip
def test_a_fill_value_has_to_fit(dtype: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"fill"):
        sample(np.zeros(4, dtype), [[1]], outside="fill", fill_value=value)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("u1", 255), ("i2", 3.0), ("f4", 0.1), ("f4", np.inf), ("c8", 1j), ("?", True), ("f2", None),
     ("S2", b"ab"), ("M8[ns]", np.datetime64("NaT")), ("c16", None), ("i2", np.int64(7))],
)  # fmt: skip
def test_a_fill_value_that_fits(dtype: str, value: Any) -> None:
    found = sample(np.zeros(4, dtype), [[9]], outside="fill", fill_value=value)
    expected = np.array([np.nan if value is None else value]).astype(dtype)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.dtype(dtype)


def test_what_is_refused() -> None:
    values = np.zeros((4, 5))
    for options, error, words in (
        ({"method": "cubic"}, ValueError, "'nearest' and 'linear'"),
        ({"outside": "clip"}, ValueError, "'raise', 'fill' or 'drop'"),
        ({"outside": "drop", "fill_value": 0}, ValueError, "no effect"),
        ({"points": [1, 2]}, ValueError, r"single point is \[\[...\]\]"),
        ({"points": [[1, 2, 3]]}, ValueError, r"\(n, 2\)"),
        ({"points": [["a", "b"]]}, TypeError, "integers or floats"),
        ({"points": [[True, False]]}, TypeError, "integers or floats"),
    ):
        with pytest.raises(error, match=words):
            sample(values, **{"points": [[1, 1]], **options})
    with pytest.raises(TypeError, match="method='nearest'"):
        sample(np.zeros(3, "M8[s]"), [[1]], method="linear")


def test_the_columns_tell_the_axes() -> None:
    with pytest.raises(ValueError, match=r"s in \[3, 4\]"):
        point_axes([[1, 2]], spatial=SPATIAL, ndim=4)
    with pytest.raises(ValueError, match="do not fit"):
        point_axes([1, 2, 3], spatial=SPATIAL, ndim=4)
    with pytest.raises(ValueError, match="do not fit"):
        point_axes([], spatial=(), ndim=0)
    axes, points = point_axes([], spatial=(), ndim=2)
    assert (axes, points.shape) == ((0, 1), (0, 2))


def test_a_plan_says_what_comes_out() -> None:
    about: dict[str, Any] = {"shape": (4, 5, 6), "dtype": np.dtype("i2"), "axes": (0, 2)}
    about |= {"method": "linear", "points": [(0, 0), (9, 9), (3, 5)], "fill_value": None}
    dropped = plan_points(**about, outside="drop")
    assert (dropped.result_shape, dropped.n_kept, dropped.voxels_per_point) == ((2, 5), 2, 4)
    filled = plan_points(**about, outside="fill")
    assert (filled.result_shape, filled.n_kept, filled.other_axes) == ((3, 5), 2, (1,))


def test_arrays_without_a_place_in_the_world() -> None:
    array = xr.DataArray(np.arange(12).reshape(3, 4), dims=("a", "b"))
    assert of(array, [(2, 3)]).values.tolist() == [11]
    with pytest.raises(GeometryError):
        of(array, [(2, 3)], space="world")


def test_a_single_voxel_has_no_points(path: Path) -> None:
    voxel = mlarray_xr.open_mla(path).isel(z=1, y=2, x=3)
    with pytest.raises(ValueError, match="has none"):
        of(voxel, [(13, -3.6, 2.9)], space="world")


def test_names_that_stand_in_the_way() -> None:
    array = xr.DataArray(np.zeros((3, 4)), dims=("point", "x"))
    with pytest.raises(ValueError, match="rename"):
        of(array, [(1, 1)])
    with pytest.raises(ValueError, match="'index' or 'world'"):
        of(array.rename(point="y"), [(1, 1)], space="voxel")
    with pytest.raises(ValueError, match="one column per world axis"):
        of(
            xr.DataArray(np.zeros(3), dims="x", coords={"x": [0.0, 1, 2]}),
            [(1, 1)],
            space="world",
        )
