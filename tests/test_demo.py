"""The demo, and the phantom that it writes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlarray_xr import MlaArray, convert, open_mla, to_mla
from mlarray_xr.errors import ConversionError, FormatError
from mlarray_xr.explore import demo
from mlarray_xr.explore.demo import run_demo
from mlarray_xr.explore.phantom import phantom_part

if TYPE_CHECKING:
    from pathlib import Path

SHAPE = (24, 30, 36)


def whole(shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> np.ndarray[Any, Any]:
    return phantom_part(tuple((0, n) for n in shape), shape=shape, seed=seed)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    cuts=st.tuples(*[st.lists(st.integers(0, 40), max_size=3)] * 3),
    seed=st.integers(0, 3),
)
@settings(max_examples=40)
def test_any_parts_make_the_same_phantom(
    shape: tuple[int, int, int], cuts: tuple[list[int], ...], seed: int
) -> None:
    found = np.full(shape, -1, np.int16)
    edges = [sorted({0, n, *(c for c in cut if c < n)}) for cut, n in zip(cuts, shape, strict=True)]
    spans = [list(itertools.pairwise(e)) for e in edges]
    for box in itertools.product(*spans):
        part = phantom_part(box, shape=shape, seed=seed)
        found[tuple(slice(*span) for span in box)] = part
    np.testing.assert_array_equal(found, whole(shape, seed))


def test_large_parts_fit_together() -> None:
    shape = (9, 200, 333)
    expected = whole(shape)
    for y in (0, 67, 101):
        for x in (0, 13, 130):
            part = phantom_part(((2, 8), (y, 199), (x, 330)), shape=shape)
            np.testing.assert_array_equal(part, expected[2:8, y:199, x:330])


def test_the_phantom_looks_like_a_head() -> None:
    values = whole((64, 64, 64))
    assert values.dtype == np.int16
    assert values.min() == 0
    assert 500 < values.max() < 2048
    # Background around, tissue inside, dark ventricles, and noise everywhere inside.
    assert values[0].max() == values[:, 0].max() == values[:, :, 0].max() == 0
    assert 0.2 < (values > 0).mean() < 0.7
    assert values[34, 32, 27] < values[34, 32, 40]
    assert len(np.unique(values[24:40, 40:48, 24:40])) > 100
    assert not np.array_equal(values, whole((64, 64, 64), seed=1))


def test_the_phantom_ends_where_it_ends() -> None:
    with pytest.raises(IndexError, match="extent 24"):
        phantom_part(((0, 25), (0, 1), (0, 1)), shape=SHAPE)
    assert phantom_part(((3, 3), (0, 1), (0, 1)), shape=SHAPE).shape == (0, 1, 1)


def test_the_demo_writes_what_it_says(tmp_path: Path) -> None:
    report = run_demo(output_dir=tmp_path / "new", shape=SHAPE, patch=10, n_patches=12)
    array = open_mla(report.path)
    np.testing.assert_array_equal(array, whole())
    assert array.mla.coord_system == "RAS+"
    assert array.mla.spacing == pytest.approx({"z": 1.2, "y": 0.9, "x": 0.9})
    np.testing.assert_allclose([array[d].mean() for d in "zyx"], 0, atol=1e-9)
    assert array.mla.layout is not None
    assert (report.shape, report.dtype, report.patch) == (SHAPE, "int16", (10, 10, 10))
    assert report.mean == pytest.approx(whole().mean())
    assert (report.n_patches, report.n_checked) == (12, 8)
    assert report.nbytes == whole().nbytes
    assert report.file_bytes == (tmp_path / "new" / "demo.mla").stat().st_size
    with Image.open(report.picture or "") as picture:
        assert np.asarray(picture).std() > 10
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["demo.mla", "demo.png"]
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines] == [
        *("volume", "file", "ratio", "write", "open", "mean", "patches", "checked", "picture")
    ]
    assert "24 x 30 x 36 int16" in lines[0]


def test_the_demo_takes_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (12, 13, 14, 5), np.uint8)
    nib.save(nib.Nifti1Image(values, np.diag([1.0, 2, 3, 1])), tmp_path / "a.nii.gz")
    convert(tmp_path / "a.nii.gz", tmp_path / "a.mla")
    for name in ("a.nii.gz", "a.mla"):
        report = run_demo(input=tmp_path / name, output_dir=tmp_path / "out", patch=8, n_patches=9)
        np.testing.assert_array_equal(MlaArray(report.path)[...], values)
        assert report.patch == (8, 8, 8, 1)
        assert report.mean == pytest.approx(values.mean())
        convert(report.path, tmp_path / "back.nii", mode="w")
        back: Any = nib.load(tmp_path / "back.nii")
        np.testing.assert_array_equal(back.affine, np.diag([1.0, 2, 3, 1]))


def test_the_demo_does_not_overwrite_its_input(tmp_path: Path) -> None:
    to_mla(whole(), tmp_path / "demo.mla")
    before = (tmp_path / "demo.mla").read_bytes()
    with pytest.raises(ConversionError, match="overwrite its input"):
        run_demo(input=tmp_path / "demo.mla", output_dir=tmp_path)
    assert (tmp_path / "demo.mla").read_bytes() == before


@pytest.mark.parametrize("values", [np.zeros((3, 4), "complex64"), np.zeros((0, 4))])
def test_the_demo_refuses_what_it_cannot_show(values: np.ndarray[Any, Any], tmp_path: Path) -> None:
    to_mla(values, tmp_path / "a.mla")
    with pytest.raises(ConversionError, match="real numbers"):
        run_demo(input=tmp_path / "a.mla", output_dir=tmp_path)


def test_the_demo_notices_a_wrong_voxel(tmp_path: Path) -> None:
    read = MlaArray.read

    def wrong(self: MlaArray, box: Any, **options: Any) -> Any:
        values = read(self, box, **options)
        values.flat[0] += 1
        return values

    with (
        mock.patch.object(MlaArray, "read", wrong),
        pytest.raises(FormatError, match="differs from what was written"),
    ):
        run_demo(output_dir=tmp_path, shape=(8, 9, 10), patch=4, n_patches=2)


def test_without_pillow_there_is_no_picture(tmp_path: Path) -> None:
    with mock.patch.dict("sys.modules", {"PIL": None}):
        report = run_demo(output_dir=tmp_path, shape=(8, 9, 10), patch=4, n_patches=2)
    assert report.picture is None
    assert "it needs Pillow" in str(report)
    assert not (tmp_path / "demo.png").exists()


def test_patches_lie_inside_and_everywhere() -> None:
    boxes = demo._random_boxes((9, 5, 40), ("temporal", "spatial_y", "spatial_x"), patch=8, n=500)
    assert {tuple(b - a for a, b in box) for box in boxes} == {(1, 5, 8)}
    starts = np.array([[a for a, _ in box] for box in boxes])
    assert starts.min(axis=0).tolist() == [0, 0, 0]
    assert starts.max(axis=0).tolist() == [8, 0, 32]
