"""Layouts that are given: Layout values, templates, and writing a file anew for other patches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import mlarray
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import ConversionError, LayoutError
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout
from tests.frame_kit import write_b2nd

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CACHES = "l1=32KiB,l2=1MiB,l3=2MiB"
SHAPE = (24, 60, 70)
VALUES = np.random.default_rng(8).integers(-999, 999, SHAPE, "i2")


def volume(values: Any = VALUES) -> xr.DataArray:
    return xr.DataArray(
        values,
        dims=("z", "y", "x"),
        coords={
            "z": 3.0 * np.arange(values.shape[0]) - 7,
            "y": 0.5 * np.arange(values.shape[1]),
            "x": 0.5 * np.arange(values.shape[2]) + 2,
        },
        name="image",
        attrs={"modality": "CT", "subject": {"id": 7, "notes": ["a", "b"]}},
    )


def series() -> xr.DataArray:
    return xr.DataArray(VALUES, dims=("time", "y", "x"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file for patches of eight, of which nobody would think without being told."""
    target = tmp_path / "source.mla"
    mlarray_xr.to_mla(
        volume(), target, layout=Layout(chunks=(24, 30, 33), blocks=(6, 10, 11), patch=(7, 8, 9))
    )
    return target


def shapes_of(path: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    array = mlarray_xr.MlaArray(path)
    return array.chunks, array.blocks


# ---------------------------------------------------------------------------------------------
# layout=


def test_a_layout_is_written_as_it_is(path: Path) -> None:
    array = mlarray_xr.MlaArray(path)
    assert (array.chunks, array.blocks) == ((24, 30, 33), (6, 10, 11))
    assert array.metadata.blosc2.chunk_size == (24, 30, 33)
    assert array.metadata.blosc2.block_size == (6, 10, 11)
    assert array.metadata.blosc2.patch_size == (7, 8, 9)
    np.testing.assert_array_equal(array[...], VALUES)
    theirs = mlarray.MLArray.open(str(path))
    np.testing.assert_array_equal(theirs[...], VALUES)
    assert tuple(theirs.meta.blosc2.patch_size) == (7, 8, 9)


def test_a_planned_layout_gives_the_bytes_of_its_request(tmp_path: Path) -> None:
    layout = plan_layout(SHAPE, "i2", patch=16, dims=("z", "y", "x"), caches=CACHES, codec="lz4-1")
    mlarray_xr.to_mla(volume(), tmp_path / "a.mla", layout=layout, codec="lz4-1")
    mlarray_xr.to_mla(volume(), tmp_path / "b.mla", patch=16, caches=CACHES, codec="lz4-1")
    assert (tmp_path / "a.mla").read_bytes() == (tmp_path / "b.mla").read_bytes()


@pytest.mark.parametrize("preset", ["frames", "series", "balanced"])
def test_presets_are_written(preset: Any, tmp_path: Path) -> None:
    report = mlarray_xr.to_mla(series(), tmp_path / "a.mla", layout=preset, caches=CACHES)
    expected = plan_layout(SHAPE, "i2", layout=preset, dims=("time", "y", "x"), caches=CACHES)
    assert shapes_of(tmp_path / "a.mla") == (expected.chunks, expected.blocks)
    assert report.layout == expected
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], VALUES)


def test_a_report_explains_its_layout(tmp_path: Path) -> None:
    report = mlarray_xr.to_mla(series(), tmp_path / "a.mla", layout="frames", caches=CACHES)
    assert report.layout.cost().window == (1, 60, 70)
    assert "slice of time" in str(report.layout.explain())


def test_layouts_of_dask_arrays_cut_their_parts(tmp_path: Path) -> None:
    values = da.from_array(VALUES, chunks=(5, 60, 70))
    layout = Layout(chunks=(8, 20, 70), blocks=(4, 10, 35))
    mlarray_xr.to_mla(values, tmp_path / "a.mla", layout=layout, codec="lz4-1")
    assert shapes_of(tmp_path / "a.mla") == (layout.chunks, layout.blocks)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "a.mla")[...], VALUES)


def test_every_variable_gets_the_layout_clipped_to_it(tmp_path: Path) -> None:
    dataset = xr.Dataset({"image": volume(), "small": volume(VALUES[:5]).rename(z="s")})
    layout = Layout(chunks=(24, 30, 33), blocks=(6, 10, 11))
    mlarray_xr.to_mla(dataset, tmp_path / "folder", layout=layout)
    assert shapes_of(tmp_path / "folder" / "image.mla") == ((24, 30, 33), (6, 10, 11))
    assert shapes_of(tmp_path / "folder" / "small.mla") == ((5, 30, 33), (5, 10, 11))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 8}, r"layout=.*patch.* exclude each other"),
        ({"patch": None}, r"layout=.*patch.* exclude each other"),
        ({"chunks": 8, "blocks": 8}, r"layout=.*chunks.* exclude each other"),
        ({"template": "x.mla"}, r"layout=.* and template='x.mla' exclude each other"),
    ],
)
def test_a_layout_is_given_alone(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    layout = Layout(chunks=(8, 8, 8), blocks=(8, 8, 8))
    with pytest.raises(LayoutError, match=message):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", layout=layout, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "frames"},
        {"layout": Layout(chunks=(9, 9, 9), blocks=(9, 9, 9))},
        {"template": "x.mla"},
        {"caches": CACHES},
        {"patch": 3},
        {"patch": None},
        {"chunks": 3},
    ],
)
def test_a_file_that_is_written_into_keeps_its_layout(options: dict[str, Any], path: Path) -> None:
    with pytest.raises(ConversionError, match=r"mode='r\+': layout, codec and metadata are those"):
        mlarray_xr.to_mla(volume(), path, mode="r+", **options)
    assert shapes_of(path) == ((24, 30, 33), (6, 10, 11))


def test_a_layout_of_another_number_of_axes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"has 2 axes, and the array of \(24, 60, 70\) has 3"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", layout=Layout(chunks=(8, 8), blocks=(8, 8)))
    assert list(tmp_path.iterdir()) == []


def test_created_files_take_layouts_and_presets(tmp_path: Path) -> None:
    layout = Layout(chunks=(8, 20, 70), blocks=(4, 10, 35))
    with mlarray_xr.create(
        tmp_path / "a.mla", shape=SHAPE, dtype="i2", layout=layout, codec="lz4-1"
    ) as canvas:
        canvas[...] = VALUES
    assert shapes_of(tmp_path / "a.mla") == (layout.chunks, layout.blocks)
    with mlarray_xr.create(
        tmp_path / "b.mla",
        shape=SHAPE,
        dtype="i2",
        dims=("time", "y", "x"),
        layout="frames",
        caches=CACHES,
    ) as canvas:
        canvas[...] = VALUES
    expected = plan_layout(SHAPE, "i2", layout="frames", dims=("time", "y", "x"), caches=CACHES)
    assert shapes_of(tmp_path / "b.mla")[0] == expected.chunks
    np.testing.assert_array_equal(mlarray_xr.MlaArray(tmp_path / "b.mla")[...], VALUES)


# ---------------------------------------------------------------------------------------------
# template=

TEMPLATES: dict[str, Callable[[Path], Any]] = {
    "path": lambda path: path,
    "text": str,
    "MlaArray": mlarray_xr.MlaArray,
    "bytes": lambda path: path.read_bytes(),
    "open_mla": mlarray_xr.open_mla,
    "lazy": lambda path: mlarray_xr.open_mla(path, chunks={}),
    "dataset": lambda path: xr.open_dataset(path, engine="mlarray"),
    "slice": lambda path: mlarray_xr.open_mla(path).isel(z=slice(3, 9)),
}


@pytest.mark.parametrize("spelling", list(TEMPLATES))
def test_every_spelling_of_a_template(spelling: str, path: Path, tmp_path: Path) -> None:
    template = TEMPLATES[spelling](path)
    target = tmp_path / "target.mla"
    mlarray_xr.to_mla(VALUES.astype("f4"), target, template=template)
    assert shapes_of(target) == shapes_of(path)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(target)[...], VALUES)


@pytest.mark.parametrize("spelling", ["path", "MlaArray", "bytes"])
def test_the_patch_of_a_template_goes_with_it(spelling: str, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.mla"
    mlarray_xr.to_mla(volume(), target, template=TEMPLATES[spelling](path))
    assert mlarray_xr.MlaArray(target).metadata.blosc2.patch_size == (7, 8, 9)


def test_a_template_is_clipped_to_the_array(path: Path, tmp_path: Path) -> None:
    mlarray_xr.to_mla(VALUES[:4, :35], tmp_path / "a.mla", template=path)
    assert shapes_of(tmp_path / "a.mla") == ((4, 30, 33), (4, 10, 11))


def test_a_file_may_be_its_own_template(path: Path) -> None:
    opened = mlarray_xr.open_mla(path)
    mlarray_xr.to_mla(opened + 1, path, template=path, mode="w")
    assert shapes_of(path) == ((24, 30, 33), (6, 10, 11))
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path)[...], VALUES + 1)


def test_files_of_others_are_templates(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.mla"
    mlarray.MLArray(VALUES).save(str(theirs))
    plain = write_b2nd(tmp_path / "plain.b2nd", VALUES, chunks=(24, 60, 35), blocks=(7, 8, 9))
    for template in (theirs, plain):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", template=template, mode="w")
        assert shapes_of(tmp_path / "a.mla") == shapes_of(template)
    assert mlarray_xr.MlaArray(tmp_path / "a.mla").info()["planned"] == {}


def test_a_template_that_exceeds_its_own_array_is_clipped(tmp_path: Path) -> None:
    small = np.zeros((6, 10), "i2")
    template = write_b2nd(tmp_path / "a.b2nd", small, chunks=(6, 16), blocks=(4, 4))
    mlarray_xr.to_mla(small, tmp_path / "a.mla", template=template)
    assert shapes_of(tmp_path / "a.mla") == ((6, 10), (4, 4))


def test_a_template_of_the_transposed_array_is_transposed(path: Path, tmp_path: Path) -> None:
    """Or refused: its chunks belong to other axes."""
    turned = mlarray_xr.open_mla(path).transpose("x", "z", "y")
    try:
        mlarray_xr.to_mla(turned, tmp_path / "a.mla", template=turned)
    except LayoutError:
        return
    assert shapes_of(tmp_path / "a.mla") == ((33, 24, 30), (11, 6, 10))


@pytest.mark.parametrize(
    "template",
    [
        volume(),
        xr.Dataset(),
        xr.Dataset({"a": volume(), "b": volume()}),
        volume().to_dataset(),
    ],
    ids=["array", "empty", "two", "dataset"],
)
def test_templates_that_are_of_no_file_are_refused(template: Any, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"template: not one array with the axes .* To fix"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", template=template)
    assert list(tmp_path.iterdir()) == []


def test_a_template_of_another_number_of_axes_is_refused(path: Path, tmp_path: Path) -> None:
    wrong = r"has 3 axes, and the array of \(60, 70\) has 2|not one array with the axes"
    for template in (path, mlarray_xr.open_mla(path), mlarray_xr.open_mla(path).isel(z=0)):
        with pytest.raises(LayoutError, match=wrong):
            mlarray_xr.to_mla(VALUES[0], tmp_path / "a.mla", template=template)


def test_templates_that_are_not_there_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", template=tmp_path / "missing.mla")


@pytest.mark.parametrize("options", [{"patch": 8}, {"patch": None}, {"chunks": 8}, {"blocks": 8}])
def test_a_template_is_given_alone(options: dict[str, Any], path: Path, tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match=r"(template|layout)=.* exclude each other"):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", template=path, **options)


def test_a_hostile_template_gives_shapes_and_nothing_else(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mla"
    mlarray_xr.to_mla(VALUES, damaged, chunks=10, blocks=5)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(mlarray_xr.errors.FormatError):
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", template=damaged)


# ---------------------------------------------------------------------------------------------
# da.mla.layout


def test_opened_arrays_know_the_layout_of_their_file(path: Path) -> None:
    layout = mlarray_xr.open_mla(path).mla.layout
    assert (layout.chunks, layout.blocks) == shapes_of(path)
    assert layout.cost(8).window == (8, 8, 8)
    assert layout.cost({"z": 1, "y": 60, "x": 70}).window == (1, 60, 70)
    names = [row[0] for row in layout.explain().rows]
    assert names == ["slice of z", "slice of y", "slice of x", "everything"]


def test_what_was_selected_by_number_leaves_shapes_that_are_of_no_array(path: Path) -> None:
    layout = mlarray_xr.open_mla(path).isel(z=0).mla.layout
    assert (layout.chunks, layout.blocks) == shapes_of(path)
    with pytest.raises(LayoutError, match="does not say of which array it is"):
        layout.explain()


def test_the_layout_of_a_transposed_array_is_not_that_of_other_axes(path: Path) -> None:
    """Its chunks are counted along the axes they are of, or of no array."""
    layout = mlarray_xr.open_mla(path).transpose("x", "z", "y").mla.layout
    if layout is not None and layout.basis is not None:
        assert layout.chunks == (33, 24, 30)
        assert layout.blocks == (11, 6, 10)


def test_other_arrays_have_none() -> None:
    assert volume().mla.layout is None


# ---------------------------------------------------------------------------------------------
# Writing a file anew for other patches


def check_same(found: xr.DataArray, expected: xr.DataArray) -> None:
    """Compare all but the attribute that has everything, the layout among it."""
    without = {"mla_metadata": ""}
    xr.testing.assert_identical(found.assign_attrs(without), expected.assign_attrs(without))


@pytest.mark.parametrize("lazily", [False, True])
def test_a_file_is_written_anew_for_another_patch(lazily: bool, path: Path, tmp_path: Path) -> None:
    target = tmp_path / "anew.mla"
    opened = mlarray_xr.open_mla(path, chunks={} if lazily else None)
    report = mlarray_xr.to_mla(opened, target, patch=(1, 60, 70), caches=CACHES)
    expected = plan_layout(SHAPE, "i2", patch=(1, 60, 70), dims=("z", "y", "x"), caches=CACHES)
    assert report.layout == expected
    assert shapes_of(target) == (expected.chunks, expected.blocks) != shapes_of(path)
    before, after = mlarray_xr.MlaArray(path), mlarray_xr.MlaArray(target)
    np.testing.assert_array_equal(after[...], before[...])
    assert after.dtype == before.dtype
    assert after.metadata.blosc2.patch_size == (1, 60, 70)
    assert replace(before.metadata, blosc2=after.metadata.blosc2) == after.metadata
    check_same(mlarray_xr.open_mla(target), opened)
    assert mlarray_xr.verify(target).state == "ok"


def test_a_file_is_written_anew_in_its_place(path: Path) -> None:
    before = mlarray_xr.open_mla(path).load()
    mlarray_xr.to_mla(mlarray_xr.open_mla(path), path, patch=16, caches=CACHES, mode="w")
    check_same(mlarray_xr.open_mla(path), before)
    assert mlarray_xr.MlaArray(path).metadata.blosc2.patch_size == (16, 16, 16)
    assert mlarray_xr.MlaArray(path).info()["planned"]["access"] == [[[16, 16, 16], 1.0]]


def test_a_plan_of_before_is_not_told_of_new_shapes(path: Path) -> None:
    mlarray_xr.to_mla(VALUES, path, patch=8, mode="w")
    assert mlarray_xr.MlaArray(path).info()["planned"]
    mlarray_xr.to_mla(mlarray_xr.open_mla(path), path, chunks=10, blocks=5, mode="w")
    assert mlarray_xr.MlaArray(path).info()["planned"] == {}


def test_writing_into_a_file_keeps_what_it_was_planned_for(tmp_path: Path) -> None:
    target = tmp_path / "a.mla"
    mlarray_xr.to_mla(volume(), target, patch=8, caches=CACHES, codec="lz4-1")
    before = mlarray_xr.MlaArray(target).info()["planned"]
    assert before["rule"] == "searched"
    mlarray_xr.to_mla(volume(VALUES + 1), target, mode="r+")
    assert mlarray_xr.MlaArray(target).info()["planned"] == before
    array = mlarray_xr.MlaArray(target, mode="r+")
    array[:3] = 5
    assert mlarray_xr.MlaArray(target).info()["planned"] == before


@given(data=st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_layout_of_any_array_is_written_and_read(data: st.DataObject, tmp_path: Path) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 20), max_size=4)))
    values = np.arange(int(np.prod(shape)), dtype="i4").reshape(shape)
    chunks = tuple(data.draw(st.integers(1, 30)) for _ in shape)
    blocks = tuple(data.draw(st.integers(1, c)) for c in chunks)
    target = tmp_path / "any.mla"
    layout = Layout(chunks=chunks, blocks=blocks)
    report = mlarray_xr.to_mla(values, target, layout=layout, codec="lz4-1", mode="w")
    assert shapes_of(target) == (report.layout.chunks, report.layout.blocks)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(target)[...], values)


def test_the_caches_of_a_write_are_those_it_is_told(tmp_path: Path) -> None:
    given_ = CacheSizes(l1_bytes=1 << 14, l2_bytes=1 << 18, l3_bytes=1 << 20)
    by_level = {"l1": 1 << 14, "l2": "256KiB", "l3": "1MiB"}
    spellings: list[Any] = [given_, "l1=16KiB,l2=256KiB,l3=1MiB", by_level]
    for caches in spellings:
        mlarray_xr.to_mla(VALUES, tmp_path / "a.mla", caches=caches, mode="w")
        planned = mlarray_xr.MlaArray(tmp_path / "a.mla").info()["planned"]
        assert CacheSizes.from_plain(planned["caches"]) == given_
    with pytest.raises(LayoutError, match=r"caches= names the level 'l4'"):
        mlarray_xr.to_mla(VALUES, tmp_path / "b.mla", caches={"l4": 3})
