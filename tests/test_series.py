"""Series: which axis, which frame, folds, gradients, and originals, under every selection."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import SourceChanged
from mlarray_xr.opened_file import file_of
from mlarray_xr.series.axis import picked, series_dim, with_orig_volume
from mlarray_xr.series.folds import leave_one_out
from mlarray_xr.series.gradients import gradient_table, only_b0, shells, without_b0
from mlarray_xr.series.originals import original_frame, sources_of, stored_series
from mlarray_xr.series.resampling import resampled
from tests.package_source import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (9, 4, 5, 6)
DIMS = ("time", "z", "y", "x")
BVALS = [0.0, 1000.0, 5.0, 2000.0, 995.0, 0.0, 2010.0, 1005.0, 990.0]
KINDS = ("lazy", "dask", "memory", "engine", "engine dask")


def voxels(shape: tuple[int, ...] = SHAPE) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-999, 999, shape).astype("int16")


def series(*, numbers: list[int] | None = None, with_bvals: bool = True) -> xr.DataArray:
    rng = np.random.default_rng(1)
    coords: dict[str, Any] = {}
    if with_bvals:
        coords["bval"] = ("time", BVALS)
        coords |= {f"bvec_{axis}": ("time", rng.normal(size=9)) for axis in "xyz"}
    if numbers is not None:
        coords["orig_volume"] = ("time", np.asarray(numbers, dtype=np.int64))
    return xr.DataArray(voxels(), dims=DIMS, coords=coords, name="dwi")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = str(tmp_path_factory.mktemp("series") / "dwi.mla")
    mlarray_xr.to_mla(series(), target, chunks=(2, 4, 5, 6), blocks=(1, 4, 5, 6))
    return target


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file that holds no coordinate along its frames."""
    target = str(tmp_path_factory.mktemp("bare") / "bare.mla")
    mlarray_xr.to_mla(series(with_bvals=False), target, chunks=(2, 4, 5, 6), blocks=(1, 4, 5, 6))
    return target


def opened(path: str, kind: str) -> xr.DataArray:
    if kind == "memory":
        return mlarray_xr.open_mla(path).compute()
    chunks: dict[str, int] | None = {} if "dask" in kind else None
    if "engine" in kind:
        return xr.open_dataset(path, engine="mlarray", chunks=chunks)["dwi"]
    return mlarray_xr.open_mla(path, chunks=chunks)


def is_lazy(array: xr.DataArray) -> bool:
    return not array.variable._in_memory


# --- which axis --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "expected"),
    [
        (("time", "z", "y", "x"), "time"),
        (("z", "y", "x", "volume"), "volume"),
        (("time", "energy", "y", "x"), "time"),
        (("channel", "echo", "z", "y", "x", "component"), "echo"),
    ],
)
def test_the_series_dimension_is_found(dims: tuple[str, ...], expected: str) -> None:
    array = xr.DataArray(np.zeros((2,) * len(dims)), dims=dims)
    assert series_dim(array) == expected
    assert series_dim(array.to_dataset(name="a")) == expected
    assert series_dim(array, "y") == "y"


@pytest.mark.parametrize("dims", [("z", "y", "x"), ("energy", "echo", "y", "x")])
def test_an_unclear_series_dimension_is_refused(dims: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="To fix: give dim="):
        series_dim(xr.DataArray(np.zeros((2,) * len(dims)), dims=dims))


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'volume' is no dimension"):
        series_dim(series(), "volume")


def test_renamed_spatial_dimensions_stay_spatial(path: str) -> None:
    assert series_dim(mlarray_xr.open_mla(path).rename(z="slice", time="volume")) == "volume"


def test_a_file_without_axis_names_has_a_series_dimension_too(tmp_path: Path) -> None:
    mlarray_xr.to_mla(voxels(), tmp_path / "plain.mla")
    array = mlarray_xr.open_mla(tmp_path / "plain.mla")
    assert (array.dims[0], series_dim(array)) == ("dim_0", "dim_0")


# --- which frame -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_numbered_by_their_place_in_the_file(path: str, kind: str) -> None:
    array = opened(path, kind)
    cut = array.isel(time=[7, 2, 3], z=slice(1, 3))
    assert with_orig_volume(array, "time").orig_volume.values.tolist() == list(range(9))
    assert with_orig_volume(cut, "time").orig_volume.values.tolist() == [7, 2, 3]
    assert with_orig_volume(cut[::-1], "time").bval.values.tolist() == [BVALS[k] for k in (3, 2, 7)]


@pytest.mark.parametrize("key", [[7, 2, 3], slice(None, None, -1), slice(1, 8, 3)])
def test_lazy_indexing_tells_frames_without_any_coordinate(bare_path: str, key: Any) -> None:
    array = mlarray_xr.open_mla(bare_path)
    assert "time" not in array.coords
    for cut in (array.isel(time=key), array.isel(time=key, x=[1, 4]).rename(time="volume")):
        found = with_orig_volume(cut, series_dim(cut)).orig_volume
        assert found.values.tolist() == np.arange(9)[key].tolist()


def test_frames_that_cannot_be_told_are_not_numbered(bare_path: str) -> None:
    cut = mlarray_xr.open_mla(bare_path, chunks={}).isel(time=[7, 2, 3])
    with pytest.raises(ValueError, match=r"3 of the 9 frames .* nothing tells which"):
        with_orig_volume(cut, "time")


def test_reversed_frames_are_never_taken_for_those_of_the_file(
    bare_path: str, tmp_path: Path
) -> None:
    backwards = {"time": slice(None, None, -1)}
    with pytest.raises(ValueError, match="nothing tells which"):
        with_orig_volume(mlarray_xr.open_mla(bare_path, chunks={}).isel(backwards), "time")
    turned = mlarray_xr.open_mla(bare_path).isel(backwards).transpose("time", "x", "y", "z")
    assert with_orig_volume(turned, "time").orig_volume.values.tolist() == list(range(9))[::-1]
    # Loaded values are numbered from 0, and what is resampled are these values.
    placed = series(with_bvals=False).assign_coords(
        {dim: 2.0 * np.arange(n) for dim, n in zip("zyx", SHAPE[1:], strict=True)}
    )
    mlarray_xr.to_mla(placed, tmp_path / "placed.mla")
    loaded = mlarray_xr.open_mla(tmp_path / "placed.mla").load().isel(backwards)
    assert with_orig_volume(loaded, "time").orig_volume.values.tolist() == list(range(9))
    still = resampled(loaded, [np.eye(4)] * 9)
    assert (still.values == loaded.values).all()


def test_datasets_are_numbered_by_the_arrays_of_files(path: str) -> None:
    frames = mlarray_xr.open_mla(path)
    weights = xr.DataArray(np.arange(9), dims="time")
    dataset = xr.Dataset(
        {"weights": weights, "series": frames.isel(time=[5, 4, 3, 2, 1, 0, 6, 7, 8])}
    )
    numbered = with_orig_volume(dataset, "time")
    assert numbered.orig_volume.values.tolist() == [5, 4, 3, 2, 1, 0, 6, 7, 8]


def test_an_index_of_times_tells_frames(tmp_path: Path) -> None:
    timed = series(with_bvals=False).assign_coords(time=2.5 * np.arange(9))
    mlarray_xr.to_mla(timed, tmp_path / "timed.mla")
    array = mlarray_xr.open_mla(tmp_path / "timed.mla", chunks={}).sel(time=slice(5.0, 11.0))
    assert with_orig_volume(array, "time").orig_volume.values.tolist() == [2, 3, 4]


def test_numbers_of_the_original_series_are_kept_through_a_file(tmp_path: Path) -> None:
    kept = [1, 3, 4, 6, 7, 8, 10, 11, 12]
    mlarray_xr.to_mla(series(numbers=kept), tmp_path / "kept.mla")
    for kind in KINDS:
        array = opened(str(tmp_path / "kept.mla"), kind)[2:]
        assert with_orig_volume(array, "time").orig_volume.values.tolist() == kept[2:]
        if kind != "memory":
            assert (original_frame(array, 3).values == voxels()[1]).all()
            with pytest.raises(IndexError, match="no frame with orig_volume 2"):
                original_frame(array, 2)


def test_arrays_from_elsewhere_are_numbered_now() -> None:
    array = with_orig_volume(series()[4:], "time")
    assert array.orig_volume.values.tolist() == [0, 1, 2, 3, 4]
    stacked = xr.concat([array[0].drop_vars("orig_volume")] * 2, dim="repeat")
    assert with_orig_volume(stacked, "repeat").orig_volume.values.tolist() == [0, 1]


def test_something_else_of_that_name_is_refused() -> None:
    with pytest.raises(ValueError, match="one integer for each frame"):
        with_orig_volume(series().assign_coords(orig_volume=3), "time")


def test_datasets_are_numbered_as_their_arrays(path: str) -> None:
    dataset = xr.open_dataset(path, engine="mlarray", chunks={}).isel(time=[8, 1])
    found = with_orig_volume(dataset, "time")
    assert found.orig_volume.values.tolist() == [8, 1]
    assert found.bval.values.tolist() == [BVALS[8], BVALS[1]]
    empty = with_orig_volume(xr.Dataset(coords={"t": ("time", [3, 4])}), "time")
    assert empty.orig_volume.values.tolist() == [0, 1]


def selections() -> st.SearchStrategy[list[tuple[str, Any]]]:
    """Draw steps of a chain: a dimension, and indices that are taken modulo what is left."""
    along = st.sampled_from(["time", "time", "z", "x"])
    numbers = st.lists(st.integers(0, 30), min_size=1, max_size=6)
    runs = st.tuples(st.integers(0, 30), st.integers(0, 30), st.sampled_from([-2, -1, 1, 2]))
    return st.lists(st.tuples(along, numbers | runs), max_size=4)


def chosen(key: Any, n: int) -> Any:
    if isinstance(key, list):
        return [k % n for k in key]
    first, last = sorted((key[0] % n, key[1] % n))
    if key[2] > 0:
        return slice(first, last + 1, key[2])
    return slice(last, first - 1 if first else None, key[2])


@settings(max_examples=30)
@given(steps=selections(), kind=st.sampled_from(KINDS))
def test_every_chain_of_selections_keeps_the_numbers(
    path: str, steps: list[tuple[str, Any]], kind: str
) -> None:
    array = with_orig_volume(opened(path, kind), "time")
    expected = voxels()
    numbers = np.arange(9)
    for dim, key in steps:
        wanted, axis = chosen(key, array.sizes[dim]), DIMS.index(dim)
        array = array.isel({dim: wanted})
        expected = expected[(slice(None),) * axis + (wanted,)]
        numbers = numbers[wanted] if dim == "time" else numbers
    assert array.orig_volume.values.tolist() == numbers.tolist()
    assert np.array_equal(array.isel(time=-1).values, expected[-1])
    if kind != "memory":
        assert is_lazy(array)
        forgotten = with_orig_volume(array.drop_vars("orig_volume"), "time")
        assert forgotten.orig_volume.values.tolist() == numbers.tolist()
        number = int(numbers[-1])
        assert np.array_equal(original_frame(array, number).values, voxels()[number])
    assert np.array_equal(array.values, expected)


# --- views -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", [[0, 2, 5], [3, 4, 5], [5, 0, 0], []])
def test_picked_frames_are_views(path: str, kind: str, positions: list[int]) -> None:
    array = opened(path, kind)
    view = picked(array, "time", positions)
    if kind == "memory" and positions == [3, 4, 5]:
        assert np.shares_memory(view.values, array.values)
    else:
        assert is_lazy(view)
    assert np.array_equal(view.values, voxels()[positions])
    assert np.array_equal(pickle.loads(pickle.dumps(view)).values, voxels()[positions])


def test_writing_to_a_picked_view_leaves_the_array_alone() -> None:
    array = series()
    view = picked(array, "time", [0, 2])
    view[0, 0, 0, 0] = 77
    assert view.values[0, 0, 0, 0] == 77
    assert np.array_equal(array.values, voxels())


def test_picked_from_a_loaded_file_copies_nothing(path: str) -> None:
    array = mlarray_xr.open_mla(path)
    array.values  # noqa: B018 - xarray keeps what was read
    assert is_lazy(picked(array, "time", [0, 2]))


# --- folds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_held_out_once(path: str, kind: str) -> None:
    array = opened(path, kind)
    folds = list(leave_one_out(array))
    assert len(folds) == 9
    for k, (train, held_out) in enumerate(folds):
        assert is_lazy(train) or k in (0, 8)
        assert np.array_equal(train.values, np.delete(voxels(), k, axis=0))
        assert np.array_equal(held_out.values, voxels()[k])
        assert train.orig_volume.values.tolist() == [n for n in range(9) if n != k]
        assert int(held_out.orig_volume) == k


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_folds_of_a_dataset(path: str, scheduler: str) -> None:
    dataset = xr.open_dataset(path, engine="mlarray").chunk({"time": 2})
    dataset["mask"] = xr.ones_like(dataset.dwi[0], dtype=bool)
    chosen = without_b0(dataset)
    with dask.config.set(scheduler=scheduler):
        for train, held_out in leave_one_out(chosen):
            left = [k for k in (1, 3, 4, 6, 7, 8) if k != held_out.orig_volume]
            assert train.mask.dims == ("z", "y", "x")
            assert np.array_equal(train.dwi.values, voxels()[left])
            assert np.array_equal(held_out.dwi.values, voxels()[int(held_out.orig_volume)])


def test_an_unclear_dimension_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="give dim="):
        leave_one_out(series()[0])


MEMORY_PROBE = """
import sys, tracemalloc
import numpy as np, xarray as xr, mlarray_xr
from mlarray_xr.series.folds import leave_one_out
from mlarray_xr.series.gradients import without_b0

kind, path = sys.argv[1:]
if kind == "memory":
    array = xr.DataArray(np.ones((40, 16, 128, 128), "f4"), dims=("time", "z", "y", "x"))
else:
    array = mlarray_xr.open_mla(path)
    array = array.chunk({"time": 1}) if kind == "dask" else array
frame_bytes = array[0].nbytes
if kind != "memory":
    array = without_b0(array)

def written():
    fields = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return int(fields["wchar"])

for train, held_out in leave_one_out(array):  # what is imported on first use is not counted
    held_out.values
    break
before = written()
tracemalloc.start()
n = 0
for train, held_out in leave_one_out(array):
    if kind != "dask" or n < 5:  # each read costs the graph of all frames
        assert float(held_out.values[0, 0, 0]) == 1
    assert train.sizes["time"] == array.sizes["time"] - 1
    n += 1
peak = tracemalloc.get_traced_memory()[1]
print(n, written() - before, peak / frame_bytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="no count of written bytes here")
@pytest.mark.parametrize("kind", ["lazy", "dask", "memory"])
def test_a_leave_one_out_loop_writes_nothing_and_holds_two_frames(
    tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "ones.mla"
    bval = ("time", [0.0, *[1000.0] * 39])
    ones = xr.DataArray(np.ones((40, 16, 128, 128), "f4"), dims=DIMS, coords={"bval": bval})
    mlarray_xr.to_mla(ones, target, chunks=(1, 16, 128, 128), blocks=(1, 16, 128, 128))
    names = sorted(os.listdir(tmp_path))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEMORY_PROBE, kind, str(target)],
        cwd=tmp_path,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    n, n_written, peak_frames = done.stdout.split()
    assert int(n) == (40 if kind == "memory" else 39)
    # Threads wake each other through pipes of some bytes.
    assert int(n_written) < 1000
    assert float(peak_frames) < 2.5
    assert sorted(os.listdir(tmp_path)) == names


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_table_follows_selections(path: str, kind: str) -> None:
    expected = np.stack(
        [*(series().coords[f"bvec_{a}"].values for a in "xyz"), np.asarray(BVALS)], axis=1
    )
    array = opened(path, kind)
    assert gradient_table(array).dtype == np.float64
    assert np.array_equal(gradient_table(array), expected)
    assert np.array_equal(gradient_table(without_b0(array)[::-1]), expected[[8, 7, 6, 4, 3, 1]])
    assert np.array_equal(gradient_table(array.isel(time=4)), expected[[4]])


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_chosen_by_b_value(path: str, kind: str) -> None:
    array = opened(path, kind)
    cases: list[tuple[xr.DataArray, list[int]]] = [
        (without_b0(array), [1, 3, 4, 6, 7, 8]),
        (only_b0(array), [0, 2, 5]),
        (without_b0(array, most_b0=4.0), [1, 2, 3, 4, 6, 7, 8]),
        (only_b0(array, most_b0=0.0), [0, 5]),
    ]
    for view, expected in cases:
        assert view.orig_volume.values.tolist() == expected
        assert np.array_equal(view.values, voxels()[expected])
    found = {b: shell.orig_volume.values.tolist() for b, shell in shells(array).items()}
    assert found == {997.5: [1, 4, 7, 8], 2005.0: [3, 6]}
    wide = {b: shell.sizes["time"] for b, shell in shells(array, width=1000.0).items()}
    assert wide == {1002.5: 6}
    assert shells(only_b0(array)) == {}


def test_an_exact_limit_counts_as_b0() -> None:
    array = xr.DataArray(np.arange(3), dims="time", coords={"bval": ("time", [50.0, 50.1, 0.0])})
    assert only_b0(array).values.tolist() == [0, 2]


def test_missing_gradients_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['bvec_x', 'bvec_y', 'bvec_z', 'bval'\] are needed"):
        gradient_table(series(with_bvals=False))
    with pytest.raises(ValueError, match=r"\['bval'\] are needed"):
        without_b0(series(with_bvals=False))
    with pytest.raises(ValueError, match=r"b-values of frames \[2\] are NaN"):
        shells(series().assign_coords(bval=("time", [0, 1, np.nan, *[3] * 6])))


# --- originals ---------------------------------------------------------------------------------

DERIVED: dict[str, Callable[[xr.DataArray], xr.DataArray]] = {
    "as opened": lambda a: a,
    "without b0": without_b0,
    "cropped and flipped": lambda a: a[::-1, 1:3, ::2],
    "one frame": lambda a: a.isel(time=3),
    "transposed": lambda a: a.transpose("x", "time", "y", "z"),
    "renamed": lambda a: a.rename(time="volume", z="slice"),
}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "memory"])
@pytest.mark.parametrize("derived", DERIVED)
def test_the_original_frame_is_that_of_the_file(path: str, kind: str, derived: str) -> None:
    array = DERIVED[derived](opened(path, kind))
    frame = original_frame(array, 2)
    assert is_lazy(frame)
    assert np.array_equal(frame.values, voxels()[2])
    assert int(frame.orig_volume) == 2
    assert float(frame.bval) == BVALS[2]
    assert frame.dims == (("slice", "y", "x") if derived == "renamed" else ("z", "y", "x"))
    assert frame.name == "dwi"


def test_what_dask_derived_still_knows_its_file(path: str) -> None:
    array = mlarray_xr.open_mla(path, chunks={})
    mask = array[0] > 0
    for derived in (array * 2, array.astype("f4").mean("time"), array.where(mask), array + array):
        assert np.array_equal(original_frame(derived, 8).values, voxels()[8])


def test_what_has_no_file_or_several_says_so(path: str, bare_path: str) -> None:
    dasks = [mlarray_xr.open_mla(p, chunks={}) for p in (path, bare_path)]
    for array in (series(), mlarray_xr.open_mla(path) * 2, dasks[0] + dasks[1]):
        with pytest.raises(ValueError, match="one is needed"):
            original_frame(array, 0)
    for number in (9, -1):
        with pytest.raises(IndexError, match="9 frames, 0 to 8"):
            original_frame(dasks[0], number)


def test_a_volume_has_no_frames(tmp_path: Path) -> None:
    mlarray_xr.to_mla(series()[0].drop_vars("bval"), tmp_path / "volume.mla")
    with pytest.raises(ValueError, match="0 series in files"):
        original_frame(mlarray_xr.open_mla(tmp_path / "volume.mla"), 0)


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    target = tmp_path / "dwi.mla"
    mlarray_xr.to_mla(series(), target)
    array = without_b0(mlarray_xr.open_mla(target))
    frame = original_frame(array, 0)
    assert np.array_equal(frame.values, voxels()[0])
    mlarray_xr.to_mla(series() * 0, target, mode="w")
    with pytest.raises(SourceChanged):
        original_frame(array, 0).values  # noqa: B018


def test_original_frames_pickle_small(path: str) -> None:
    frame = original_frame(without_b0(mlarray_xr.open_mla(path)), 0)
    data = pickle.dumps(frame.variable._data)
    assert len(data) < 4000
    assert np.array_equal(pickle.loads(pickle.dumps(frame)).values, voxels()[0])


@pytest.mark.parametrize(
    "change",
    [lambda a: a * 2, lambda a: a.where(a > 0), lambda a: a.max("time"), lambda a: a.load()],
)
def test_changed_values_are_not_taken_for_stored_ones(
    path: str, change: Callable[[xr.DataArray], xr.DataArray]
) -> None:
    for kind in ("lazy", "dask"):
        changed = change(opened(path, kind))
        assert file_of(changed) is None
        assert stored_series(changed, "time") is None


@pytest.mark.parametrize(
    "select",
    [lambda a: a[[5, 1]], lambda a: a[::-1], lambda a: a.transpose(), lambda a: a.chunk(time=1)],
)
def test_selected_values_are_stored_ones(
    path: str, select: Callable[[xr.DataArray], xr.DataArray]
) -> None:
    array = select(mlarray_xr.open_mla(path, chunks={}))
    assert sources_of(array)[1]
    stored = stored_series(array, "time")
    assert stored is not None
    assert np.array_equal(stored.values, voxels())


def test_decoded_values_are_not_taken_for_stored_ones(path: str) -> None:
    dataset = xr.open_dataset(path, engine="mlarray")
    dataset.dwi.attrs["scale_factor"] = 2.0
    assert stored_series(xr.decode_cf(dataset).dwi, "time") is None
