from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

import mlarray_xr.accessor
from mlarray_xr.dataset import metadata_of
from mlarray_xr.errors import GeometryError
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.planning.layout import Layout
from tests.fake_file import image, opened

if TYPE_CHECKING:
    from numpy.typing import NDArray

OBLIQUE = ((0.5, 0.0, 0.1, -10.0), (0.1, 0.75, 0.0, 20.0), (0.0, 0.05, 2.0, 30.5), (0, 0, 0, 1))
SHEARED = ((1.0, 0.4, 0.0, 1.0), (0.0, 1.0, 0.3, 2.0), (0.0, 0.0, 1.0, 3.0), (0, 0, 0, 1))
PERMUTED = ((0, 0.1, 0, -170.3), (-0.7, 0, 0, 99.9), (0, 0, 2.5, 0.001), (0, 0, 0, 1))
ROTATED_2D = ((0.8, -0.6, 5.0), (0.6, 0.8, 6.0), (0, 0, 1))
GEOMETRIES: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((7, 6, 8), {"spacing": (3.0, 0.7, 0.1), "origin": (10, -20.3, 30.123)}),
    ((7, 6, 8), {"affine": PERMUTED}),
    ((7, 6, 8), {"affine": OBLIQUE}),
    ((7, 6, 8), {"affine": SHEARED}),
    ((7, 6, 8), {}),
    ((7, 9), {"affine": ROTATED_2D}),
    ((7, 9), {"spacing": (0.3, 0.9)}),
    ((3, 7, 9), {"spacing": (0.3, 0.9), "axis_labels": ("channel", "spatial_x", "spatial_y")}),
]


def numbered(shape: tuple[int, ...], spatial: dict[str, Any]) -> xr.DataArray:
    """Open a file whose values are their own flat index."""
    metadata = Metadata(spatial=Spatial(**spatial), has_array=True)
    values = np.arange(np.prod(shape)).reshape(shape)
    return opened(metadata, shape, lazy=values)["image"]


def world_by_value(array: xr.DataArray, view: xr.DataArray) -> NDArray[np.float64]:
    """Return where the file says that the voxels of a view are: values are flat indices."""
    index = np.stack(np.unravel_index(view.values.ravel().astype(int), array.shape), axis=-1)
    spatial = [array.dims.index(dim) for dim in array.mla.geometry.dims]
    affine = array.mla.affine
    world: NDArray[np.float64] = index[:, spatial] @ affine[:-1, :-1].T + affine[:-1, -1]
    return world


def world_by_affine(view: xr.DataArray) -> NDArray[np.float64]:
    """Return where the affine of a view says that its voxels are."""
    grid = np.indices(view.shape).reshape(view.ndim, view.size).T
    dims = view.mla.geometry.dims
    columns = [
        grid[:, view.dims.index(dim)] if dim in view.dims else np.zeros(len(grid)) for dim in dims
    ]
    affine = view.mla.affine
    world: NDArray[np.float64] = np.stack(columns, axis=-1) @ affine[:-1, :-1].T + affine[:-1, -1]
    return world


def steps(draw: st.DrawFn, view: xr.DataArray) -> xr.DataArray:
    """Apply one random operation."""
    kind = draw(st.sampled_from(["slice", "slice", "int", "transpose", "none"]))
    if kind == "transpose":
        return view.transpose(*draw(st.permutations(view.dims)))
    if kind == "none" or not view.dims:
        change = draw(
            st.sampled_from(
                [
                    lambda array: pickle.loads(pickle.dumps(array)),
                    lambda array: array.chunk().compute() if array.ndim else array,
                    lambda array: array + 0,
                    lambda array: array.astype("float64"),
                ]
            )
        )
        result: xr.DataArray = change(view)
        return result
    dim = draw(st.sampled_from(view.dims))
    n = view.sizes[dim]
    if kind == "int":
        return view.isel({dim: draw(st.integers(-n, n - 1))})
    index = draw(st.slices(n))
    assume(len(range(*index.indices(n))) > 0)
    return view.isel({dim: index})


@given(st.data(), st.sampled_from(GEOMETRIES))
def test_the_affine_is_true_after_any_chain(
    data: st.DataObject, case: tuple[tuple[int, ...], dict[str, Any]]
) -> None:
    array = numbered(*case)
    view = array
    for _ in range(data.draw(st.integers(1, 6))):
        view = data.draw(st.composite(steps)(view))
    np.testing.assert_allclose(world_by_affine(view), world_by_value(array, view), atol=1e-6)
    assert set(view.mla.geometry.dims) == set(array.mla.geometry.dims)


@given(st.data(), st.sampled_from([case for case in GEOMETRIES if case[1]]))
def test_the_affine_of_any_view_survives_a_file(
    data: st.DataObject, case: tuple[tuple[int, ...], dict[str, Any]]
) -> None:
    view = numbered(*case)
    for _ in range(data.draw(st.integers(1, 4))):
        view = data.draw(st.composite(steps)(view))
    (back,) = opened(metadata_of(view), view.shape).data_vars.values()
    assert back.dims == view.dims
    assert back.mla.geometry.dims == view.mla.geometry.dims
    np.testing.assert_allclose(back.mla.affine, view.mla.affine, atol=1e-12)
    assert metadata_of(back) == metadata_of(view)


@given(st.data(), st.sampled_from(GEOMETRIES[:3]))
def test_attributes_may_be_lost_where_coordinates_are_positions(
    data: st.DataObject, case: tuple[tuple[int, ...], dict[str, Any]]
) -> None:
    array = numbered(*case)
    view = data.draw(st.composite(steps)(array)).drop_attrs(deep=False)
    if array.attrs["spatial_coords"] == "voxel index":
        with pytest.raises(GeometryError, match="positions are unknown"):
            _ = view.mla.affine
        return
    for dim, start, step in zip(
        view.mla.geometry.dims, view.mla.origin, np.diag(view.mla.affine), strict=False
    ):
        np.testing.assert_allclose(view[dim], start + step * np.arange(view.sizes[dim]))


def test_columns_follow_the_array_and_rows_the_file() -> None:
    array = numbered((7, 6, 8), {"affine": OBLIQUE})
    view = array.transpose("x", "z", "y").isel(z=2)
    assert view.mla.geometry.dims == ("x", "y", "z")
    np.testing.assert_allclose(view.mla.affine[:, 0], np.asarray(OBLIQUE)[:, 2])
    np.testing.assert_allclose(view.mla.affine[:, 3], np.asarray(OBLIQUE) @ [2, 0, 0, 1])


def test_spacing_origin_direction_and_system() -> None:
    array = image((4, 5), spacing=(2, 3), origin=(7, 8), coord_system="LPS")
    assert array.mla.spacing == {"y": 2, "x": 3}
    assert array.mla.origin == (7, 8)
    np.testing.assert_array_equal(array.mla.direction, np.eye(2))
    np.testing.assert_array_equal(array[:, ::-1].mla.direction, [[1, 0], [0, -1]])
    assert array.mla.coord_system == "LPS"
    assert array.drop_attrs(deep=False).mla.coord_system is None


def test_the_affine_handed_out_is_the_callers() -> None:
    array = image((4, 5), spacing=(2, 3))
    array.mla.affine[...] = 0
    assert array.mla.affine[0, 0] == 2


def test_ras_and_lps_are_one_call_away() -> None:
    array = image((4, 5, 6), affine=OBLIQUE, coord_system="RAS+")[::-1]
    flip = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_array_equal(array.mla.affine_in("LPS"), flip @ array.mla.affine)
    np.testing.assert_array_equal(array.mla.affine_in("RAS"), array.mla.affine)
    with pytest.raises(GeometryError, match="state it"):
        image((4, 5, 6), affine=OBLIQUE).mla.affine_in("RAS")


def test_metadata_and_layout_are_those_of_the_file() -> None:
    array = image((4, 9), spacing=(2, 3))
    assert array.mla.metadata == Metadata(spatial=Spatial(spacing=(2, 3)), has_array=True)
    assert array[1:].mla.layout == Layout(chunks=(4, 4), blocks=(4, 4))
    plain = xr.DataArray(np.zeros(3), dims="x")
    assert plain.mla.metadata is None
    assert plain.mla.layout is None


@pytest.mark.parametrize("affine", [PERMUTED, OBLIQUE])
def test_points_map_through_the_view_in_hand(affine: Any) -> None:
    array = numbered((7, 6, 8), {"affine": affine})
    view = array.isel(y=4)[::-1, 1::2]
    points = view.mla.index_to_world([[0, 0], [3, 2]])
    expected = array.mla.index_to_world([[6, 4, 1], [3, 4, 5]])
    np.testing.assert_allclose(points, expected)
    np.testing.assert_allclose(view.mla.world_to_index(points), [[0, 0, 0], [3, 2, 0]], atol=1e-9)


@pytest.mark.parametrize("case", GEOMETRIES)
def test_world_selection_finds_the_voxels(case: tuple[tuple[int, ...], dict[str, Any]]) -> None:
    array = numbered(*case)
    view = array.transpose()[::-1]
    spatial = [view.dims.index(dim) for dim in view.mla.geometry.dims]
    index = np.array([[0] * view.ndim, [2] * view.ndim])
    near = view.mla.index_to_world(index[:, spatial] + 0.3)
    found = view.mla.sel_world(near)
    rows = [view.isel(dict(zip(view.dims, row, strict=True))).values for row in index]
    picked = found.isel(channel=[0, 2]) if "channel" in found.dims else found
    values = (
        picked.values
        if "channel" not in found.dims
        else np.diag(picked.transpose("points", "channel"))
    )
    np.testing.assert_array_equal(values, rows)
    with pytest.raises(KeyError, match=r"1 of 3 .* number 2"):
        view.mla.sel_world(np.concatenate([near, near[:1] + 1e3]))


def test_world_selection_stays_on_the_plane() -> None:
    plane = numbered((7, 6, 8), {"affine": OBLIQUE}).isel(z=3)
    on = plane.mla.index_to_world([[1, 2, 0], [3, 4, 0.4]])
    np.testing.assert_array_equal(plane.mla.sel_world(on, dim="p"), [plane[1, 2], plane[3, 4]])
    with pytest.raises(KeyError):
        plane.mla.sel_world(plane.mla.index_to_world([[1, 2, 1]]))


def test_scattered_voxels_have_no_affine() -> None:
    found = numbered((7, 6, 8), {"affine": OBLIQUE}).mla.sel_world([[-10, 20, 30.5]])
    with pytest.raises(GeometryError, match="points form no grid"):
        _ = found.mla.affine


@pytest.mark.parametrize("spatial", [{"spacing": (1, 2)}, {"affine": ROTATED_2D}])
def test_means_of_neighbours_lie_between_them(spatial: dict[str, Any]) -> None:
    array = image((8, 8), **spatial)
    coarse = array.coarsen(y=2, x=4).mean()
    expected = array.mla.index_to_world([[0.5, 1.5], [2.5, 5.5]])
    np.testing.assert_allclose(coarse.mla.index_to_world([[0, 0], [1, 1]]), expected)


def test_new_positions_are_the_new_geometry() -> None:
    array = image((4, 5), spacing=(1, 2)).assign_coords(y=100 + 5.0 * np.arange(4))
    assert array.mla.spacing == {"y": 5, "x": 2}
    assert array.mla.origin == (100, 0)


@pytest.mark.parametrize(
    "array",
    [
        xr.DataArray(np.zeros((2, 3)), dims=("y", "x")),
        xr.DataArray(np.zeros((2, 3)), dims=("y", "x"), coords={"y": [0.0, 1.0]}),
        xr.DataArray(np.zeros(3), dims="x", coords={"x": [1, 2, 3]}),
        xr.DataArray(np.zeros(3), dims="x", coords={"x": ["a", "b", "c"]}),
        xr.DataArray(np.zeros(3), dims="t", coords={"t": [0.0, 1.0, 2.0]}),
        image((4, 5), affine=ROTATED_2D).drop_vars("y"),
        image((4, 5), affine=ROTATED_2D).assign_coords(y=["a", "b", "c", "d"]),
        image((4, 5), affine=ROTATED_2D).stack(p=("y", "x")),
        image((4, 5), affine=ROTATED_2D).max("y"),
    ],
)
def test_unknown_positions_are_an_error_that_says_what_to_do(array: xr.DataArray) -> None:
    with pytest.raises(GeometryError, match=r"positions are unknown|points form no grid"):
        _ = array.mla.affine


def test_the_accessor_never_fails_before_it_is_asked() -> None:
    assert isinstance(xr.DataArray(3).mla, mlarray_xr.accessor.MlaAccessor)
