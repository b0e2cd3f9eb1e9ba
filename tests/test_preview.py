"""preview: what is in the picture, and how little is read for it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any
from unittest import mock

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from PIL import Image

from mlarray_xr import Metadata, MlaArray, convert, create, measure, open_mla, to_mla
from mlarray_xr.cli_preview import add_preview
from mlarray_xr.errors import ConversionError, FormatError, MissingDependencyError
from mlarray_xr.explore.picture import written_on
from mlarray_xr.explore.preview import contrast_of, preview
from mlarray_xr.format.metadata import Stats
from mlarray_xr.overviews import build_overviews

if TYPE_CHECKING:
    from pathlib import Path

SPACING = {"z": 3.0, "y": 1.0, "x": 1.0}
TEXT_PX = 16
GAP_PX = 8


def volume(shape: tuple[int, int, int] = (20, 40, 60), dtype: str = "int16") -> xr.DataArray:
    """Return a volume with a bright corner at the first index of every axis."""
    values = np.full(shape, 10, dtype)
    values[: shape[0] // 4, : shape[1] // 4, : shape[2] // 4] = 100
    values[shape[0] // 2] = values[0]
    values[:, shape[1] // 2] = values[:, 0]
    values[:, :, shape[2] // 2] = values[:, :, 0]
    coords = {d: SPACING[d] * np.arange(n) for d, n in zip("zyx", shape, strict=True)}
    return xr.DataArray(values, dims=("z", "y", "x"), coords=coords)


def pixels(path: Path, mode: str = "L") -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", mode)
        return np.asarray(picture)


def panels(path: Path, widths: list[int]) -> list[np.ndarray[Any, Any]]:
    """Cut the planes out of a picture."""
    found, left = [], GAP_PX
    for width in widths:
        found.append(pixels(path)[TEXT_PX:-TEXT_PX, left : left + width])
        left += width + GAP_PX
    return found


def test_proportions_follow_the_spacing(tmp_path: Path) -> None:
    size = preview(volume(), tmp_path / "a.png", size_px=120)
    # Extents are z 60, y 40, x 60: planes (y, x), (z, x) and (z, y) at two pixels per unit.
    assert size == (120 + 120 + 80 + 4 * GAP_PX, 120 + 2 * TEXT_PX)
    assert pixels(tmp_path / "a.png").shape == size[::-1]
    axial, coronal, sagittal = panels(tmp_path / "a.png", [120, 120, 80])
    assert axial[80 + TEXT_PX :].max() == 0
    for plane, height in ((axial, 80), (coronal, 120), (sagittal, 120)):
        assert plane[height // 8, plane.shape[1] // 8] > 200
        assert plane[height * 7 // 8, plane.shape[1] * 7 // 8] < 50


@pytest.mark.parametrize("dtype", ["uint8", ">i2", "float32", "complex64", "float16"])
def test_every_kind_of_number_has_a_picture(dtype: str, tmp_path: Path) -> None:
    preview(volume().astype(dtype), tmp_path / "a.png", size_px=64)
    assert len(np.unique(pixels(tmp_path / "a.png")[TEXT_PX:-TEXT_PX])) > 2


@pytest.mark.parametrize(("system", "anterior_is_last"), [("RAS+", True), ("LPS", False)])
def test_superior_and_anterior_are_up(system: str, anterior_is_last: bool, tmp_path: Path) -> None:
    array = volume().transpose("x", "y", "z")
    array = array.assign_coords({d: np.arange(float(n)) for d, n in array.sizes.items()})
    to_mla(array.assign_attrs(coord_system=system), tmp_path / "a.mla")
    width, _ = preview(tmp_path / "a.mla", tmp_path / "a.png", size_px=60)
    assert width == 40 + 60 + 60 + 4 * GAP_PX
    sagittal, coronal, axial = panels(tmp_path / "a.png", [40, 60, 60])
    for plane, height, is_flipped in (
        (sagittal, 20, True),
        (coronal, 20, True),
        (axial, 40, anterior_is_last),
    ):
        ends = plane[[height // 8, height * 7 // 8], plane.shape[1] // 8]
        first, last = ends[::-1] if is_flipped else ends
        assert first > 200
        assert last < 50


def test_all_sources_give_the_same_picture(tmp_path: Path) -> None:
    values = volume().values.T
    nib.save(
        nib.Nifti1Image(np.ascontiguousarray(values), np.diag([1, 1, 3, 1])), tmp_path / "a.nii"
    )

    convert(tmp_path / "a.nii", tmp_path / "a.mla")
    sources: dict[str, Any] = {
        "nifti": str(tmp_path / "a.nii"),
        "mla": tmp_path / "a.mla",
        "array": MlaArray(tmp_path / "a.mla"),
        "bytes": MlaArray((tmp_path / "a.mla").read_bytes()),
        "dask": open_mla(tmp_path / "a.mla", chunks={}),
    }
    for name, source in sources.items():
        preview(source, tmp_path / f"{name}.png", size_px=64)
    expected = (tmp_path / "nifti.png").read_bytes()
    assert all((tmp_path / f"{name}.png").read_bytes() == expected for name in sources)


def test_masks_and_labels_have_colours(tmp_path: Path) -> None:
    masks = {
        "bool": volume() > 50,
        "few": (volume() > 50).astype("uint8") * 2,
        "named": volume().rename("labels"),
    }
    to_mla(volume().astype("float32"), tmp_path / "a.mla")
    for name, mask in masks.items():
        preview(mask, tmp_path / f"{name}.png", size_px=64)
        # Without the white of letters and captions.
        inside = pixels(tmp_path / f"{name}.png", "RGB")[2 * TEXT_PX : 4 * TEXT_PX, GAP_PX:40]
        assert (inside.max(axis=2) > inside.min(axis=2)).any(), name


def test_only_blocks_of_three_planes_are_read(tmp_path: Path) -> None:
    shape = (64, 64, 64)
    values = np.random.default_rng(0).integers(0, 900, shape, np.int16)
    to_mla(values, tmp_path / "a.mla", chunks=32, blocks=16)
    boxes = []
    fill = MlaArray._fill

    def counted(self: MlaArray, box: Any, out: Any, *, threads: int | None) -> None:
        boxes.append(box)
        fill(self, box, out, threads=threads)

    with mock.patch.object(MlaArray, "_fill", counted):
        preview(tmp_path / "a.mla", tmp_path / "a.png", size_px=64)
    # Whole blocks, each of them once for each plane.
    assert sum(int(np.prod([b - a for a, b in box])) for box in boxes) == 3 * 64 * 64 * 16
    assert all(a % 16 == b % 16 == 0 for box in boxes for a, b in box)


def test_large_files_are_sampled(tmp_path: Path) -> None:
    shape = (1500, 1600, 1700)
    with create(
        tmp_path / "a.mla", shape=shape, dtype="int16", chunks=50, blocks=25, codec="lz4-1"
    ) as writer:
        writer[600:900, 650:950, 700:1000] = np.full((300, 300, 300), 7, np.int16)
    with measure() as measured:
        preview(tmp_path / "a.mla", tmp_path / "a.png", size_px=128)
    assert 100 < measured.stats.blocks_decoded <= 3 * 256
    picture = pixels(tmp_path / "a.png")
    axial = picture[TEXT_PX : TEXT_PX + 113, GAP_PX : GAP_PX + 128]
    assert axial[56, 63] > 100
    assert axial[20, 20] == 0
    # It says that it is coarse, in the corner where there is nothing else.
    assert picture[-TEXT_PX:, -100:].max() > 200


def test_overviews_are_read_instead(tmp_path: Path) -> None:
    rows, columns = np.indices((2000, 2100), dtype=np.int32)
    plane = ((rows // 500 + columns // 500) % 2 * 900 + rows % 7).astype(np.int16)
    to_mla(plane, tmp_path / "a.mla", chunks=32, blocks=16)
    preview(tmp_path / "a.mla", tmp_path / "coarse.png", size_px=128)
    build_overviews(tmp_path / "a.mla")
    with measure() as measured:
        preview(tmp_path / "a.mla", tmp_path / "sharp.png", size_px=128)
    assert 0 < measured.stats.bytes_useful <= 2 * 263 * 250
    expected = np.kron(np.indices((4, 5)).sum(axis=0) % 2 * 255, np.ones((500, 500)))[:, :2100]
    (sharp,) = panels(tmp_path / "sharp.png", [128])
    (coarse,) = panels(tmp_path / "coarse.png", [128])
    wanted = np.asarray(Image.fromarray(expected.astype(np.uint8)).resize((128, 122)))
    errors = [np.abs(np.subtract(found, wanted, dtype=int)).mean() for found in (sharp, coarse)]
    assert errors[0] < 12 < errors[1]


def test_letters_stand_at_the_edges(tmp_path: Path) -> None:
    to_mla(volume().assign_attrs(coord_system="LPS"), tmp_path / "a.mla")
    with mock.patch("mlarray_xr.explore.preview.written_on", side_effect=written_on) as writing:
        preview(tmp_path / "a.mla", tmp_path / "a.png", size_px=120)
    texts = writing.call_args.args[1]
    at = {(text, column < 130): (row, column) for (row, column), text, _ in texts}
    # Of the axial plane: up is anterior, left is the patient's right.
    assert at["A", True][0] < at["R", True][0] == at["L", True][0] < at["P", True][0]
    assert at["R", True][1] < at["A", True][1] < at["L", True][1]
    assert {text for (text, _) in at} >= {"A", "P", "R", "L", "S", "I", "y, x  z=10"}
    preview(volume(), tmp_path / "unknown.png", size_px=120)
    assert (pixels(tmp_path / "unknown.png") != pixels(tmp_path / "a.png")).any()


def test_contrast_is_what_the_file_says(tmp_path: Path) -> None:
    array = volume().astype("float32")
    assert contrast_of(array) == (10, 100)
    to_mla(array, tmp_path / "ranges.mla", chunks=10, blocks=5)
    low, high = contrast_of(open_mla(tmp_path / "ranges.mla"))
    assert (low, high) == (10, 100)
    stated = Metadata(stats=Stats(percentile_min=-3, percentile_max=50, min=-9, max=900))
    with create(
        tmp_path / "stated.mla", shape=array.shape, dtype="float32", metadata=stated
    ) as writer:
        writer[...] = array.values
    assert contrast_of(open_mla(tmp_path / "stated.mla")) == (-3, 50)
    # What was computed from it has other values.
    assert contrast_of(open_mla(tmp_path / "stated.mla") * 2) == (20, 200)
    assert contrast_of(open_mla(tmp_path / "stated.mla", chunks={})) == (-3, 50)


def test_long_axes_are_read_with_a_stride(tmp_path: Path) -> None:
    read = []
    made = xr.DataArray(np.broadcast_to(np.int16(3), (4000, 4000)), dims=("y", "x"))
    to_numpy = xr.DataArray.to_numpy

    def counted(self: xr.DataArray) -> Any:
        read.append(self.shape)
        return to_numpy(self)

    with mock.patch.object(xr.DataArray, "to_numpy", counted):
        preview(made, tmp_path / "a.png", size_px=100)
    assert read == [(200, 200)]


def test_spacings_that_no_picture_has_are_not_followed(tmp_path: Path) -> None:
    array = volume().assign_coords(z=1e6 * np.arange(20))
    assert preview(array, tmp_path / "a.png", size_px=60)[0] == 60 + 60 + 40 + 4 * GAP_PX


def test_other_axes_show_their_first_entry(tmp_path: Path) -> None:
    still = volume()
    moving = xr.concat([still, still * 0], dim="time").transpose("z", "time", "y", "x")
    preview(still, tmp_path / "a.png", size_px=64)
    preview(moving, tmp_path / "b.png", size_px=64)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_plane_is_one_panel(tmp_path: Path) -> None:
    size = preview(xr.DataArray(np.eye(20), dims=("y", "x")), tmp_path / "a.png", size_px=40)
    assert size == (40 + 2 * GAP_PX, 40 + 2 * TEXT_PX)


@pytest.mark.parametrize("value", [0, 7, -3, np.nan, np.inf])
def test_constant_and_unknown_values_do_no_harm(value: float, tmp_path: Path) -> None:
    preview(xr.DataArray(np.full((9, 9), value), dims=("y", "x")), tmp_path / "a.png", size_px=40)
    expected = 127 if np.isfinite(value) else 0
    np.testing.assert_array_equal(panels(tmp_path / "a.png", [40])[0], expected)


def test_gaps_in_the_values_are_black(tmp_path: Path) -> None:
    array = volume(dtype="float32")
    array[:, 30:, :] = np.nan
    preview(array, tmp_path / "a.png", size_px=120)
    axial = panels(tmp_path / "a.png", [120])[0][:80]
    assert axial[70].max() == 0
    assert axial[5, 5] > 200


@pytest.mark.parametrize(
    "array",
    [np.zeros(5), np.zeros(()), np.zeros((0, 4)), np.zeros((3, 3), "M8[s]"), np.full((3, 3), "a")],
)
def test_what_has_no_picture_is_refused(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="no picture"):
        preview(xr.DataArray(array), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_tiny_pictures_and_broken_files_are_refused(tmp_path: Path) -> None:
    for size in (3, 5000, 40.5, True):
        with pytest.raises(ValueError, match=f"size_px={size}"):
            preview(volume(), tmp_path / "a.png", size_px=size)  # type: ignore[arg-type]
    (tmp_path / "a.mla").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        preview(tmp_path / "a.mla", tmp_path / "a.png")


def test_without_pillow_the_extra_is_named(tmp_path: Path) -> None:
    with (
        mock.patch.dict("sys.modules", {"PIL": None}),
        pytest.raises(MissingDependencyError, match=r"mlarray-xr\[preview\]"),
    ):
        preview(volume(), tmp_path / "a.png")


def run(*arguments: str) -> Any:
    """Run the command as `mla` would."""
    parser = argparse.ArgumentParser()
    add_preview(parser.add_subparsers(required=True))
    options = parser.parse_args(["preview", *arguments])
    return options.run(options)


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    to_mla(volume(), tmp_path / "a.mla")
    file, picture = str(tmp_path / "a.mla"), str(tmp_path / "b.PNG")
    outcome = run(file, "-o", picture, "--size", "64")
    assert outcome.text == f"{picture}: 203 x 96 pixels"
    with Image.open(picture) as image:
        assert image.size == (203, 96)
    found = json.loads(run(file, "--output", picture, "--json").text)
    assert found == {"path": picture, "width_px": 715, "height_px": 288}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["a.mla"], "-o"),
        (["a.mla", "-o", "a.jpg"], ".png"),
        (["a.mla", "-o", "a.mla"], ".png"),
        (["a.mla", "-o", "a.png", "--size", "8"], "32 to 4096"),
        (["a.mla", "-o", "a.png", "--size", "1e9"], "above 0"),
        (["a.mla", "-o", "a.png", "--size", "64,64"], "one number"),
    ],
)
def test_the_command_refuses_nonsense(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
    assert reason in capsys.readouterr().err


def test_only_pictures_are_written(tmp_path: Path) -> None:
    path = tmp_path / "f.mla"
    to_mla(np.ones((4, 4, 4), "int16"), path)
    with pytest.raises(ValueError, match=r"does not end in \.png"):
        preview(path, path)
    assert MlaArray(path).shape == (4, 4, 4)
