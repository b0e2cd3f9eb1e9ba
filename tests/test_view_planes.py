"""The planes of a viewer, equal to NumPy's: levels, strides, flips, labels, and what is read."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from mlarray_xr.errors import ConversionError
from mlarray_xr.explore.label_overlay import LabelOverlay, plan_overlay
from mlarray_xr.explore.plane_cache import PlaneCache
from mlarray_xr.explore.plane_picture import image_layer, label_layer, shade
from mlarray_xr.explore.plane_source import PlaneSource, Raster
from mlarray_xr.explore.readout import describe_voxel
from mlarray_xr.explore.scene import scene_of
from mlarray_xr.explore.viewer_state import ViewerState, first_state

if TYPE_CHECKING:
    from collections.abc import Sequence

RNG = np.random.default_rng(7)
VALUES = RNG.integers(-500, 500, (2, 37, 50, 61)).astype(np.int16)
DIMS = ("time", "z", "y", "x")


def source_of(array: xr.DataArray, *levels: xr.DataArray, limit: int = 1 << 24) -> PlaneSource:
    cache = PlaneCache(limit_bytes=limit)
    return PlaneSource([array, *levels], scene=scene_of(array), cache=cache, name="image")


def state_of(array: xr.DataArray, *, size_px: int = 128) -> ViewerState:
    return first_state(scene_of(array), size_px=size_px, window=(0, 1))


def expected(values: np.ndarray, state: ViewerState, raster: Raster) -> np.ndarray:
    """The voxels at the middles of the samples of a raster, by NumPy alone."""
    dims, seen = state.scene.dims, state.visible
    index: list[Any] = list(state.position)
    axes = (seen.rows, seen.columns)
    for axis, (first, last), count in zip(axes, raster.extent, raster.values.shape, strict=False):
        step = int(last - first) // count
        index[axis] = np.arange(count) * step + int(first) + step // 2
    grid = np.ix_(*[np.atleast_1d(at) for at in index])
    plane: np.ndarray = values[grid]
    hidden = tuple(axis for axis in range(len(dims)) if axis not in axes)
    plane = plane.squeeze(hidden)
    return plane if seen.rows < seen.columns else plane.swapaxes(0, 1)


def written(path: Path, values: np.ndarray = VALUES, dims: Sequence[str] = DIMS) -> str:
    chunks, blocks = (1, 16, 32, 32)[-values.ndim :], (1, 8, 16, 16)[-values.ndim :]
    mlarray_xr.to_mla(xr.DataArray(values, dims=dims), path, chunks=chunks, blocks=blocks)
    return str(path)


@pytest.fixture
def stored(tmp_path: Path) -> str:
    return written(tmp_path / "series.mla")


def remote_copy(path: str) -> str:
    """The address of a copy in a file system that only serves ranges of bytes."""
    fsspec = pytest.importorskip("fsspec")
    address = f"memory://view/{Path(path).name}"
    with fsspec.open(address, "wb") as file:
        file.write(Path(path).read_bytes())
    return address


def opened_ways(path: str) -> dict[str, xr.DataArray]:
    lazy = mlarray_xr.open_mla(path)
    dask = mlarray_xr.open_mla(path, chunks={})
    return {
        "lazy": lazy,
        "selected": lazy.isel(z=slice(3, 30), x=slice(None, None, -1)),
        "transposed": lazy.transpose("x", "time", "z", "y"),
        "dask": dask,
        "computed": dask * 2 + 1,
        "in memory": lazy.load(),
        "float": lazy.load().where(lazy > -100).astype("float32"),
        "bool": lazy.load() > 0,
        "plane": lazy.isel(time=1, z=4),
        "file object": mlarray_xr.open_mla(io.BytesIO(Path(path).read_bytes())),
        "remote": mlarray_xr.open_mla(remote_copy(path)),
    }


@pytest.mark.parametrize(
    "way",
    [
        "lazy",
        "selected",
        "transposed",
        "dask",
        "computed",
        "in memory",
        "float",
        "bool",
        "plane",
        "file object",
        "remote",
    ],
)
def test_planes_are_those_of_numpy_however_the_array_was_opened(stored: str, way: str) -> None:
    array = opened_ways(stored)[way]
    source, state, values = source_of(array), state_of(array), array.to_numpy()
    for plane in state.scene.planes:
        for zoom in (0.4, 1, 3, 9):
            shown = state.on_plane(plane.name).zoomed(zoom).scrolled(-2)
            raster = source.plane(shown.visible)
            np.testing.assert_array_equal(raster.values, expected(values, shown, raster))
            assert raster.values.size
    index = tuple(n // 3 for n in array.shape)
    np.testing.assert_array_equal(source.value(index), values[index])


def test_far_away_every_second_or_fourth_voxel_is_shown(stored: str) -> None:
    array = mlarray_xr.open_mla(stored)
    source, state = source_of(array), state_of(array, size_px=64)
    assert source.plane(state.visible).values.shape == (50, 61)
    far = source.plane(state.zoomed(0.25).visible)
    assert far.coarseness == 4
    np.testing.assert_array_equal(far.values, VALUES[0, 18, 2::4, 2::4])
    assert far.extent == ((0, 48), (0, 60))


def test_overviews_are_shown_far_away_and_the_image_near_by() -> None:
    image = xr.DataArray(VALUES[0], dims=DIMS[1:])
    half = xr.DataArray(np.full((19, 25, 31), 7, np.int16), dims=DIMS[1:])
    quarter = xr.DataArray(np.full((19, 13, 16), 9, np.int16), dims=DIMS[1:])
    other = xr.DataArray(np.zeros((5, 5, 5), np.int16), dims=DIMS[1:])
    source, state = source_of(image, half, other, quarter), state_of(image, size_px=64)
    assert (source.plane(state.visible).values == VALUES[0, 18]).all()
    medium = source.plane(state.zoomed(0.5).visible)
    assert (medium.values == 7).all()
    assert (medium.coarseness, medium.extent) == (2, ((0, 50), (0, 62)))
    far = source.plane(state.zoomed(0.25).visible)
    assert (far.values == 9).all()
    assert (far.coarseness, far.extent) == (4, ((0, 52), (0, 64)))
    assert source.value((18, 3, 4)) == VALUES[0, 18, 3, 4]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Extents of everything that is read of files, in order."""
    found: list[tuple[int, ...]] = []
    select = mlarray_xr.MlaArray.select

    def counted(array: mlarray_xr.MlaArray, selection: Any) -> Any:
        values = select(array, selection)
        found.append(values.shape)
        return values

    monkeypatch.setattr(mlarray_xr.MlaArray, "select", counted)
    return found


def test_each_block_is_read_once_while_scrolling(stored: str, reads: list[tuple[int, ...]]) -> None:
    array = mlarray_xr.open_mla(stored)
    source, state = source_of(array), state_of(array)
    for z in range(37):
        source.plane(state.moved({"z": z}).visible)
    assert reads == [(1, thick, 50, 61) for thick in (8, 8, 8, 8, 5)]


def test_what_was_read_ahead_is_not_read_again(stored: str, reads: list[tuple[int, ...]]) -> None:
    array = mlarray_xr.open_mla(stored)
    source, state = source_of(array), state_of(array).moved({"z": 7})
    source.plane(state.visible)
    source.read_ahead(state.visible, heading=1)
    assert len(reads) == 2
    for z in range(16):
        source.plane(state.moved({"z": z}).visible)
    source.read_ahead(state.visible, heading=-1)  # there is nothing before the first slab
    assert len(reads) == 2


def test_slabs_stay_within_the_cache(stored: str) -> None:
    array = mlarray_xr.open_mla(stored)
    limit = 8 * 50 * 61 * 2 * 3
    cache = PlaneCache(limit_bytes=limit)
    source = PlaneSource([array], scene=scene_of(array), cache=cache, name="image")
    state = state_of(array)
    for z in (0, 5, 9, 36):
        shown = state.moved({"z": z})
        np.testing.assert_array_equal(source.plane(shown.visible).values, VALUES[0, z])
        assert 0 < cache.kept_bytes <= limit


def test_colours_are_shown_as_they_are(tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (9, 20, 30, 3)).astype(np.uint8)
    path = written(tmp_path / "colours.mla", values, ("z", "y", "x", "component"))
    array = mlarray_xr.open_mla(path)
    source, state = source_of(array), state_of(array)
    raster = source.plane(state.visible)
    layer = image_layer(raster, window=state.window)
    assert layer.kind == "colours"
    np.testing.assert_array_equal(layer.pixels, values[4])
    turned = source.plane(state.on_plane("z, y").visible)
    np.testing.assert_array_equal(turned.values, values[:, :, 15])
    np.testing.assert_array_equal(source.value((1, 2, 3)), values[1, 2, 3])


def test_of_complex_numbers_the_magnitude_is_shown() -> None:
    array = xr.DataArray(VALUES[0, 0] + 1j * VALUES[0, 1], dims=("y", "x"))
    raster = source_of(array).plane(state_of(array).visible)
    np.testing.assert_array_equal(raster.values, np.abs(array.to_numpy()))


@pytest.mark.parametrize("kind", ["?", "u1", "i1", "i2", "u4", "i8", "u8", "f2", "f4", "f8"])
def test_shades_rise_from_black_to_white(kind: str) -> None:
    values = np.array([[0, 1, 2, 60, 100, 120]]).astype(kind)
    shades = shade(values, window=(1, 101))
    wanted = np.clip((values.astype(float) - 1) / 100 * 255, 0, 255)
    assert np.abs(shades - wanted).max() <= 1
    assert shades.dtype == np.uint8


def test_what_is_no_number_is_black() -> None:
    values = np.array([[np.nan, -np.inf, np.inf, 5]])
    assert shade(values, window=(0, 5)).tolist() == [[0, 0, 0, 255]]


def test_large_numbers_keep_their_differences() -> None:
    values = np.array([[10**9, 10**9 + 1, 10**9 + 2]])
    assert shade(values, window=(10**9, 10**9 + 2)).tolist() == [[0, 127, 255]]


@pytest.mark.parametrize("kind", ["?", "u1", "i1", "i2", "u8", "i8"])
def test_labels_become_numbers_of_colours(kind: str) -> None:
    values = np.array([[-3, 0, 1, 5, 255, 256, 511]]).astype("i8")
    if kind in ("?", "u1", "i1"):
        values = np.array([[0, 1, 5, 100]])
    typed = values.astype(kind)
    numbers = label_layer(Raster(values=typed, extent=((0, 1), (0, 7)), coarseness=1)).pixels
    signed = typed.astype(object).ravel().tolist()
    assert numbers.ravel().tolist() == [(int(v) - 1) % 255 + 1 if v > 0 else 0 for v in signed]


def overlay(image: xr.DataArray, labels: xr.DataArray) -> LabelOverlay:
    onto = plan_overlay(image, labels, scene_of(image))
    return LabelOverlay(source_of(labels), onto=onto, shape=labels.shape)


def placed(values: np.ndarray, *, spacing: float, origin: float) -> xr.DataArray:
    """A volume with world coordinates, z y x."""
    coords = {d: origin + spacing * np.arange(n) for d, n in zip("zyx", values.shape, strict=True)}
    return xr.DataArray(values, dims=tuple("zyx"), coords=coords)


def test_labels_on_the_grid_lie_on_the_same_voxels() -> None:
    image = xr.DataArray(VALUES, dims=DIMS)
    labels = xr.DataArray((VALUES[0] > 0).astype(np.uint8), dims=DIMS[1:])
    state = state_of(image).moved({"time": 1})
    shown = overlay(image, labels).plane(state)
    assert shown is not None
    np.testing.assert_array_equal(shown.values, labels[18].to_numpy())
    np.testing.assert_array_equal(shown.extent, ((0, 50), (0, 61)))
    assert overlay(image, labels).value((1, 2, 3, 4)) == labels[2, 3, 4]


@pytest.mark.parametrize("step", [1, -1])
def test_labels_on_another_grid_are_the_nearest_in_the_world(step: int) -> None:
    image = placed(VALUES[0], spacing=1.0, origin=0.0)
    numbers = RNG.integers(0, 9, (12, 12, 12)).astype(np.uint8)
    labels = placed(numbers, spacing=2.5, origin=10.0)[:, ::step, ::step]
    shown = overlay(image, labels)
    state = state_of(image)
    for z in range(37):
        world = np.array([(z, y, x) for y in range(50) for x in range(61)], float)
        nearest = np.floor((world - 10.0) / 2.5 + 0.5).astype(int)
        inside = ((nearest >= 0) & (nearest < 12)).all(axis=1)
        wanted = np.where(inside, numbers[tuple(nearest.clip(0, 11).T)], 0).reshape(50, 61)
        raster = shown.plane(state.moved({"z": z}))
        found = np.zeros((50, 61), np.uint8) if raster is None else drawn(raster, (50, 61))
        np.testing.assert_array_equal(found, wanted)
        value = shown.value((z, 20, 20))
        assert (value or 0) == wanted[20, 20]


def drawn(raster: Raster, shape: tuple[int, int]) -> np.ndarray:
    """What a canvas shows of a raster in the middle of each voxel of the image, 0 beside it."""
    index = []
    for n, count, (first, last) in zip(shape, raster.values.shape, raster.extent, strict=True):
        # On an edge between two samples the later one along the labels counts, as when rounding.
        at = (np.arange(n) + 0.5 - first) / (last - first) * count
        index.append(np.floor(np.round(at, 9)).astype(int))
    rows, columns = np.meshgrid(*index, indexing="ij")
    n_rows, n_columns = raster.values.shape
    inside = (rows >= 0) & (rows < n_rows) & (columns >= 0) & (columns < n_columns)
    found = raster.values[rows.clip(0, n_rows - 1), columns.clip(0, n_columns - 1)]
    return np.where(inside, found, 0).astype(np.uint8)


def test_labels_computed_from_the_image_lie_on_it(tmp_path: Path) -> None:
    affine = [[0, 0, -2, 90], [0, 2, 0, -120], [3, 0, 0, -70], [0, 0, 0, 1]]
    for oblique in (False, True):
        turn = np.eye(4)
        if oblique:
            turn[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
        path = tmp_path / f"{oblique}.mla"
        metadata = mlarray_xr.Metadata.from_dict(
            {"spatial": {"affine": (turn @ affine).tolist(), "coord_system": "RAS"}}
        )
        mlarray_xr.to_mla(VALUES[0], path, metadata=metadata)
        image = mlarray_xr.open_mla(path)
        for labels in (image > 0, (image > 0)[::2, 3:, ::-1]):
            labels = labels.copy()
            labels.attrs.clear()
            onto = plan_overlay(image, labels, scene_of(image))
            wanted = [(1.0, 0), (1.0, 0), (1.0, 0)]
            if labels.shape != image.shape:
                wanted = [(0.5, 0), (1.0, -3), (-1.0, 60)]
            found = [(axis.scale, axis.offset) for axis in onto]
            np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_labels_that_cannot_be_placed_are_refused() -> None:
    image = placed(VALUES[0], spacing=1.0, origin=0.0)
    scene = scene_of(image)
    with pytest.raises(ConversionError, match="whole numbers"):
        plan_overlay(image, image.astype(float), scene)
    bare = xr.DataArray(np.zeros((3, 4, 5), np.uint8), dims=tuple("zyx"))
    with pytest.raises(ConversionError, match="dimension 'z' differs"):
        plan_overlay(image, bare, scene)
    turned = [[0.6, 0.8, 0, 0], [-0.8, 0.6, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    attrs = {"spatial_dims": "z y x", "affine": np.asarray(turned, float).ravel().tolist()}
    index = {dim: np.arange(n) for dim, n in zip("zyx", bare.shape, strict=True)}
    with pytest.raises(ConversionError, match="rotated"):
        plan_overlay(image, bare.assign_coords(index).assign_attrs(attrs), scene)
    slice_of = placed(np.zeros((3, 4, 5), np.uint8), spacing=1, origin=0).assign_attrs(
        {"spatial_dims": "z y x", "affine": np.eye(4).ravel().tolist()}
    )
    with pytest.raises(ConversionError, match="one slice across 'z'"):
        plan_overlay(image, slice_of.isel(z=0), scene)


def test_labels_of_another_patient_system_are_turned_or_refused() -> None:
    affine = np.eye(4).ravel().tolist()
    index = {dim: np.arange(4) for dim in "xyz"}
    image = xr.DataArray(np.zeros((4, 4, 4)), coords=index).assign_attrs(
        {"spatial_dims": "x y z", "affine": affine, "coord_system": "RAS"}
    )
    labels = image.astype("uint8").assign_attrs(image.attrs | {"coord_system": "LPS"})
    onto = plan_overlay(image, labels, scene_of(image))
    assert [axis.scale for axis in onto] == [-1, -1, 1]
    with pytest.raises(ConversionError, match="coordinate system"):
        plan_overlay(image, labels.assign_attrs(coord_system="scanner"), scene_of(image))


def test_the_readout_names_index_world_value_and_label() -> None:
    affine = [[0, 0, -2, 90], [0, 2, 0, -120], [2, 0, 0, -70], [0, 0, 0, 1]]
    attrs: dict[str, Any] = {"spatial_dims": "z y x", "affine": np.ravel(affine).tolist()}
    attrs |= {"coord_system": "RAS", "spatial_coords": "voxel index"}
    coords: dict[str, Any] = {dim: np.arange(n) for dim, n in (("z", 4), ("y", 5), ("x", 6))}
    image = xr.DataArray(
        np.zeros((2, 4, 5, 6), np.int16),
        dims=("time", "z", "y", "x"),
        coords={**coords, "time": [0.0, 2.5], "name": ("time", ["a", "Jane Doe"])},
        attrs=attrs,
    )
    for dim in "zyx":
        image[dim].attrs["spacing_units"] = "mm"
    text = describe_voxel(image, (1, 2, 3, 4), value=np.int16(-7), label=2)
    assert text.splitlines() == [
        "index  time=1  z=2  y=3  x=4",
        "time = 2.5",
        "world (RAS, mm)  x = 82  y = -114  z = -66",
        "value  -7  label  2",
    ]
    assert "Jane" not in text


@pytest.mark.parametrize(
    ("affine", "system", "world"),
    [
        (np.diag([4, 3, 2, 1]), "scanner", "world (scanner)  z = 4  y = 6  x = 6"),
        (np.diag([4, 3, 2, 1])[[2, 0, 1, 3]], "", "world  x = 6  z = 4  y = 6"),
        (np.diag([4, 3, 2, 1])[[2, 1, 0, 3]], "LPS", "world (LPS)  x = 6  y = 6  z = 4"),
        (
            [[1, 1, 0, 0], [-1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            "",
            "world  axis 0 = 3  axis 1 = 1  axis 2 = 3",
        ),
        (
            [[1, 0, 0, 123456.75], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
            "",
            "world  z = 123457.75  y = 2  x = 3",
        ),
    ],
)
def test_the_readout_names_world_axes_after_what_runs_along_them(
    affine: Any, system: str, world: str
) -> None:
    attrs: dict[str, Any] = {"spatial_dims": "z y x", "affine": np.ravel(affine).tolist()}
    attrs |= {"spatial_coords": "voxel index"} | ({"coord_system": system} if system else {})
    coords = {dim: np.arange(n) for dim, n in (("z", 4), ("y", 5), ("x", 6))}
    image = xr.DataArray(np.zeros((4, 5, 6)), coords=coords, attrs=attrs)
    assert describe_voxel(image, (1, 2, 3), value=0.0).splitlines()[1] == world


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.int32(123456789), "123456789"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "1"),
        (np.float32(0.1), "0.1"),
        (np.float64(-1234567.0), "-1.23457e+06"),
        (np.array([1, 20, 255], np.uint8), "1  20  255"),
    ],
)
def test_the_readout_tells_every_digit_of_whole_numbers(value: Any, text: str) -> None:
    coords = {"time": [1_600_000_000, 1_600_000_001]}
    image = xr.DataArray(np.zeros((2, 3)), dims=("time", "x"), coords=coords)
    lines = describe_voxel(image, (1, 2), value=value).splitlines()
    assert lines[-1] == f"value  {text}"
    assert "time = 1600000001" in lines


def test_a_state_and_its_slices_agree_with_the_crosshair() -> None:
    array = xr.DataArray(VALUES, dims=DIMS)
    state = replace(state_of(array).picked(3.7, 9.2), has_labels=False)
    assert source_of(array).value(state.position) == VALUES[0, 18, 3, 9]
