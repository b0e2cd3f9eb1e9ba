"""TIFF files and folders: tifffile and SimpleITK are the oracles of values, NumPy of boxes."""

from __future__ import annotations

import logging
import os
import pickle
import random
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import SimpleITK
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import open_mla, to_mla
from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError, SourceChanged
from mlarray_xr.foreign.codestream import claimed_pixels
from mlarray_xr.foreign.tiff import open_image
from mlarray_xr.foreign.tiff_folder import find_stacks
from mlarray_xr.foreign.tiff_metadata import unit_name
from mlarray_xr.foreign.tiff_ome import OmeXml

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.foreign.image import ForeignImage

sitk: Any = SimpleITK
ZYX = ("spatial_z", "spatial_y", "spatial_x")


def pixels(shape: tuple[int, ...] = (4, 3, 40, 33), dtype: str = "u2") -> NDArray[Any]:
    rng = np.random.default_rng(3)
    if np.dtype(dtype).kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if np.dtype(dtype).kind in "fc":
        return rng.normal(size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype, endpoint=True)


def write(path: Path, data: NDArray[Any], **options: Any) -> Path:
    """Write one image; options of the file itself are those that `TiffWriter` knows."""
    known = ("bigtiff", "byteorder", "imagej", "ome")
    of_file = {key: options.pop(key) for key in known if key in options}
    if data.ndim > 1:
        options.setdefault("photometric", "minisblack")
    with tifffile.TiffWriter(path, **of_file) as writer:
        writer.write(data, **options)
    return path


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def everything(values: Any) -> NDArray[Any]:
    read: NDArray[Any] = values[tuple(slice(0, n) for n in values.shape)]
    return read


def refusal(path: Path, dataset: str | None = None) -> str:
    with pytest.raises(ConversionError) as caught:
        opened(path, dataset)
    return str(caught.value)


def coords_of(image: ForeignImage) -> dict[str, Any]:
    record: Any = image.metadata.extra["mlarray_xr"]
    return dict(record["coords"])


# ---- values

LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain strips": {"rowsperstrip": 7, "metadata": None},
    "big-endian": {"byteorder": ">", "bigtiff": True},
    "ImageJ": {"imagej": True, "metadata": {"axes": "TZYX"}},
    "OME": {"ome": True, "metadata": {"axes": "TZYX"}},
    "deflate": {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
    "zstd tiles": {"compression": "zstd", "tile": (16, 32)},
    "lzw": {"compression": "lzw", "byteorder": ">"},
    "plain tiles": {"tile": (16, 16)},
    "lzma": {"compression": "lzma", "metadata": None},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_every_layout_reads_as_by_tifffile(tmp_path: Path, layout: str, dtype: str) -> None:
    if layout == "ImageJ" and dtype == "i2":
        pytest.skip("ImageJ has no signed integers")
    data = pixels(dtype=dtype)
    path = write(tmp_path / "a.tif", data, **LAYOUTS[layout])
    values: Any = opened(path).values
    wanted = tifffile.imread(path)
    assert (values.shape, values.dtype) == (wanted.shape, np.dtype(dtype))
    np.testing.assert_array_equal(everything(values), wanted)
    np.testing.assert_array_equal(wanted.reshape(data.shape), data)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(layout=st.sampled_from(sorted(LAYOUTS)), data=st.data())
def test_any_box_is_that_of_numpy(
    tmp_path_factory: pytest.TempPathFactory, layout: str, data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / f"box {layout}.tif"
    if not path.exists():
        write(path, pixels(), **LAYOUTS[layout])
    values = opened(path).values
    pairs = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in values.shape]
    box = tuple(slice(*pair) for pair in pairs)
    np.testing.assert_array_equal(values[box], pixels().reshape(values.shape)[box])


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "labels"),
    [
        ((40, 33), "bool", {}, ZYX[1:]),
        ((40, 33), "bool", {"compression": "packbits"}, ZYX[1:]),
        ((40, 33), "c16", {}, ZYX[1:]),
        ((50,), "u1", {}, ZYX[2:]),
        ((40, 32, 3), "u1", {"photometric": "rgb"}, (*ZYX[1:], "channel")),
        (
            (40, 32, 3),
            "u1",
            {"photometric": "rgb", "compression": "jpeg", "tile": (16, 16)},
            (*ZYX[1:], "channel"),
        ),
        (
            (40, 32, 3),
            "u1",
            {"photometric": "rgb", "compression": "jpeg2000", "tile": (16, 16)},
            (*ZYX[1:], "channel"),
        ),
        (
            (3, 40, 32),
            "u2",
            {"photometric": "rgb", "planarconfig": "separate", "compression": "zlib"},
            ("channel", *ZYX[1:]),
        ),
        (
            (4, 40, 32, 3),
            "u1",
            {"photometric": "rgb", "compression": "zlib"},
            ("spatial", "spatial", "spatial", "channel"),
        ),
        (
            (2, 20, 40, 32),
            "u1",
            {"volumetric": True, "tile": (16, 16, 16), "compression": "zlib"},
            ("Q", *ZYX),
        ),
    ],
)
def test_kinds_of_pixels(
    tmp_path: Path,
    shape: tuple[int, ...],
    dtype: str,
    options: dict[str, Any],
    labels: tuple[str, ...],
) -> None:
    path = write(tmp_path / "a.tif", pixels(shape, dtype), **options)
    image = opened(path)
    assert image.metadata.spatial.axis_labels == labels
    wanted = tifffile.imread(path)
    assert image.values.dtype == wanted.dtype
    np.testing.assert_array_equal(everything(image.values), wanted)
    inner = tuple(slice(n // 3, n) for n in shape)
    np.testing.assert_array_equal(image.values[inner], wanted[inner])


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_stacks_read_as_by_itk(tmp_path: Path, compression: str | None) -> None:
    path = write(tmp_path / "a.tif", pixels((4, 40, 33)), compression=compression, metadata=None)
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(everything(opened(path).values), found)


def test_tiles_that_were_never_written_hold_what_gdal_says(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"

    def tiles() -> Any:
        yield np.full((16, 16), 5, "u1")
        yield None
        yield np.full((16, 16), 6, "u1")
        yield None

    with tifffile.TiffWriter(path) as writer:
        writer.write(
            tiles(),
            shape=(32, 32),
            dtype="u1",
            tile=(16, 16),
            compression="zlib",
            photometric="minisblack",
            metadata=None,
            extratags=[(42113, 2, 2, "9", True)],
        )
    found = everything(opened(path).values)
    np.testing.assert_array_equal(found, tifffile.imread(path))
    assert set(np.unique(found[:, 16:])) == {9}


# ---- axes and sizes


def test_imagej_states_sizes_and_times(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        pixels((2, 4, 3, 10, 11)),
        imagej=True,
        resolution=(4, 2),
        metadata={"axes": "TZCYX", "unit": "micron", "spacing": 1.5, "finterval": 0.25},
    )
    image = opened(path)
    spatial = image.metadata.spatial
    assert spatial.axis_labels == ("temporal", "spatial_z", "channel", "spatial_y", "spatial_x")
    assert spatial.spacing == (1.5, 0.5, 0.25)
    assert spatial.axis_units == ["s", "um", "", "um", "um"]
    assert coords_of(image)["time"]["values"] == [0.0, 0.25]
    assert coords_of(image)["time"]["attrs"] == {"units": "s"}


@pytest.mark.parametrize("unit", [None, "pixel", "inch"])
def test_dots_per_inch_are_no_sizes(tmp_path: Path, unit: str | None) -> None:
    metadata = {"axes": "ZYX"} if unit is None else {"axes": "ZYX", "unit": unit}
    path = write(
        tmp_path / "a.tif", pixels((4, 10, 11)), imagej=True, resolution=(72, 72), metadata=metadata
    )
    image = opened(path)
    assert image.metadata.spatial.spacing is None
    facts: Any = image.metadata.source["tiff"]
    assert facts["pixels_per_unit_xy"] == [72.0, 72.0]


def test_slices_of_imagej_are_one_unit_apart_unless_stated(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        pixels((4, 10, 11)),
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "ZYX", "unit": "mm"},
    )
    assert opened(path).metadata.spatial.spacing == (1.0, 0.5, 0.5)


def test_ome_states_sizes_times_and_channels(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ome.tif",
        pixels((2, 3, 4, 10, 11)),
        ome=True,
        metadata={
            "axes": "TCZYX",
            "PhysicalSizeX": 250,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.5,
            "PhysicalSizeZ": 2,
            "PhysicalSizeZUnit": "µm",
            "TimeIncrement": 40,
            "TimeIncrementUnit": "ms",
            "Channel": {"Name": ["DAPI", "GFP", "RFP"]},
        },
    )
    image = opened(path)
    spatial = image.metadata.spatial
    assert spatial.axis_labels == ("temporal", "channel", *ZYX)
    assert spatial.spacing == (2.0, 0.5, 250.0)
    assert spatial.axis_units == ["ms", "", "um", "um", "nm"]
    coords = coords_of(image)
    assert coords["time"]["values"] == [0.0, 40.0]
    assert coords["channel"]["values"] == ["DAPI", "GFP", "RFP"]
    np.testing.assert_array_equal(everything(image.values), pixels((2, 3, 4, 10, 11)))


def test_a_size_that_is_not_stated_leaves_no_geometry(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.ome.tif",
        pixels((4, 10, 11)),
        ome=True,
        metadata={"axes": "ZYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
    )
    image = opened(path)
    assert image.metadata.spatial.spacing is None
    facts: Any = image.metadata.source["tiff"]
    assert facts["steps"] == {"X": [0.25, "um"], "Y": [0.25, "um"]}


def test_letters_without_a_meaning_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels((4, 10, 11)), metadata={"axes": "PYX"})
    assert opened(path).metadata.spatial.axis_labels == ("P", "spatial_y", "spatial_x")


def test_samples_beside_channels_have_a_name_of_their_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        pixels((2, 10, 11, 3), "u1"),
        photometric="rgb",
        metadata={"axes": "CYXS"},
    )
    labels = opened(path).metadata.spatial.axis_labels
    assert labels == ("channel", "spatial_y", "spatial_x", "sample")


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("\\u00B5m", "um"),
        ("μm", "um"),
        ("sec", "s"),
        ("Å", "Å"),
        ("reference frame", None),
        (3, None),
    ],
)
def test_units_have_one_name(text: Any, unit: str | None) -> None:
    assert unit_name(text) == unit


# ---- several images


def pyramid(path: Path) -> NDArray[Any]:
    base = pixels((3, 128, 151), "u1")
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            base,
            subifds=2,
            tile=(32, 32),
            photometric="minisblack",
            metadata={
                "axes": "ZYX",
                "PhysicalSizeX": 0.5,
                "PhysicalSizeY": 0.5,
                "PhysicalSizeZ": 2,
            },
        )
        for step in (2, 4):
            level = base[:, ::step, ::step]
            writer.write(level, subfiletype=1, tile=(32, 32), photometric="minisblack")
    return base


def test_levels_of_a_pyramid_are_chosen_and_lie_half_a_pixel_off(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    base = pyramid(path)
    assert "dataset='0/1': shape (3, 64, 76) of uint8, axes ZYX" in refusal(path)
    assert "there is no '7'" in refusal(path, "7")
    for at, step in enumerate((1, 2, 4)):
        image = opened(path, f"0/{at}")
        np.testing.assert_array_equal(everything(image.values), base[:, ::step, ::step])
        assert image.metadata.spatial.spacing == (2.0, 0.5 * step, 0.5 * step)
        shift = (step - 1) / 2 * 0.5
        assert image.metadata.spatial.origin == (None if step == 1 else (0.0, shift, shift))


def test_one_of_several_images_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for shape in ((10, 11), (5, 6)):
            writer.write(pixels(shape), photometric="minisblack")
    assert "holds 2 images or levels" in refusal(path)
    np.testing.assert_array_equal(everything(opened(path, "1").values), pixels((5, 6)))


def test_an_image_that_is_not_read_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels((10, 11)), photometric="minisblack", metadata=None)
        writer.write(pixels((5, 6)), compression="zlib", photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[1].tags["Compression"].valueoffset  # type: ignore[union-attr]
    data[at : at + 2] = struct.pack("<H", 64999)
    path.write_bytes(data)
    np.testing.assert_array_equal(everything(opened(path, "0/0").values), pixels((10, 11)))
    assert "64999" in refusal(path, "0/1")


# ---- folders


def numbered(folder: Path, numbers: Any, **options: Any) -> NDArray[Any]:
    folder.mkdir(exist_ok=True)
    stack = pixels((len(numbers), 20, 11))
    for plane, number in zip(stack, numbers, strict=True):
        write(folder / f"slice_{number}.tif", plane, **options)
    return stack


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "rowsperstrip": 3}])
def test_numbered_planes_are_a_stack(tmp_path: Path, options: dict[str, Any]) -> None:
    stack = numbered(tmp_path, range(8, 12), **options)
    (tmp_path / "readme.txt").write_text("not a plane")
    (tmp_path / "._slice_9.tif").write_bytes(b"of another system")
    image = opened(tmp_path)
    np.testing.assert_array_equal(everything(image.values), stack)
    np.testing.assert_array_equal(image.values[1:3, 4:9, 2:5], stack[1:3, 4:9, 2:5])
    assert image.metadata.spatial.axis_labels == ("spatial",) * 3
    again = pickle.loads(pickle.dumps(image.values))
    np.testing.assert_array_equal(again[3:4, 0:20, 0:11], stack[3:4])


def test_planes_of_colour_keep_their_samples(tmp_path: Path) -> None:
    stack = pixels((3, 20, 11, 3), "u1")
    for k, plane in enumerate(stack):
        write(tmp_path / f"{k}.tiff", plane, photometric="rgb")
    image = opened(tmp_path)
    assert image.metadata.spatial.axis_labels == ("spatial", "spatial", "spatial", "channel")
    np.testing.assert_array_equal(everything(image.values), stack)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (pixels((20, 12)), "((20, 12), 'uint16', 'YX')"),
        (pixels((20, 11), "u1"), "((20, 11), 'uint8', 'YX')"),
        (pixels((2, 20, 11)), "the file holds a stack, QYX of (2, 20, 11)"),
    ],
)
def test_an_odd_plane_is_named(tmp_path: Path, odd: NDArray[Any], words: str) -> None:
    numbered(tmp_path, range(4))
    write(tmp_path / "slice_2.tif", odd)
    message = refusal(tmp_path)
    assert "slice_2.tif" in message
    assert words in message


def test_a_missing_plane_is_named_by_its_neighbours(tmp_path: Path) -> None:
    numbered(tmp_path, [8, 9, 11, 12])
    assert "missing between 'slice_9.tif' and 'slice_11.tif'" in refusal(tmp_path)


def test_stacks_in_one_folder_are_chosen_by_pattern(tmp_path: Path) -> None:
    for channel in (1, 2):
        for z in range(3):
            write(tmp_path / f"c{channel}_z{z}.tif", pixels((20, 11)) + np.uint16(channel))
    assert "dataset='c2_z*.tif': 3 files" in refusal(tmp_path)
    found = opened(tmp_path, "c2_z*.tif").values
    np.testing.assert_array_equal(found[1:2, 0:20, 0:11][0], pixels((20, 11)) + np.uint16(2))
    (tmp_path / "empty").mkdir()
    assert "holds 0 stacks" in refusal(tmp_path / "empty")


def test_numbers_order_names() -> None:
    assert find_stacks(["a2.tif", "a10.tif", "a6.tif"]) == {
        "a*.tif": ["a2.tif", "a6.tif", "a10.tif"]
    }
    assert find_stacks(["alone.tif"]) == {"alone.tif": ["alone.tif"]}
    with pytest.raises(ConversionError, match=r"'a01\.tif' and 'a1\.tif' have the same number"):
        find_stacks(["a01.tif", "a1.tif", "a2.tif"])


# ---- laziness and processes


def test_a_box_reads_the_parts_it_touches_and_no_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), compression="zlib", tile=(16, 16))
    values: Any = opened(path).values
    table = values.table.get()
    decode = mock.Mock(side_effect=table.decode)
    with mock.patch.object(type(table), "decode", decode):
        values[1:3, 2:3, 15:17, 0:16]
        assert sorted(call.args[1] for call in decode.call_args_list) == [0, 0, 3, 3]
        decode.reset_mock()
        assert values[1:1, 0:3, 0:40, 0:33].shape == (0, 3, 40, 33)
        assert not decode.called
    with pytest.raises(IndexError):
        values[0:5, 0:3, 0:40, 0:33]


def test_a_box_of_a_plain_file_reads_its_rows_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels((30, 200, 100)))
    values: Any = opened(path).values
    with path.open("rb") as file:
        counted = mock.Mock(wraps=file)
        found = values.table.get().read(counted, ((6, 8), (5, 7), (3, 4)))
    np.testing.assert_array_equal(found, pixels((30, 200, 100))[6:8, 5:7, 3:4])
    rows = [call.args[0].nbytes for call in counted.readinto.call_args_list]
    assert rows == [2 * 100 * 2] * 2


def test_arrays_travel_as_small_addresses(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels((200, 20, 11)), compression="zlib")
    for k in range(60):
        (tmp_path / "folder").mkdir(exist_ok=True)
        write(tmp_path / "folder" / f"{k}.tif", pixels((20, 11)))
    for where in (path, tmp_path / "folder"):
        values: Any = opened(where).values
        packed = pickle.dumps(values)
        assert len(packed) < 2000
        again = pickle.loads(packed)
        np.testing.assert_array_equal(everything(again), everything(values))
        assert again.__dask_tokenize__() == values.__dask_tokenize__()
        assert opened(where).values.__dask_tokenize__() == values.__dask_tokenize__()  # type: ignore[attr-defined]


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels())
    values: Any = opened(path).values
    token, packed = values.__dask_tokenize__(), pickle.dumps(values)
    os.utime(path, ns=(1, 1))
    for each in (values, pickle.loads(packed)):
        with pytest.raises(SourceChanged, match=r"a\.tif"):
            everything(each)
    assert opened(path).values.__dask_tokenize__() != token  # type: ignore[attr-defined]


def test_a_changed_plane_is_noticed(tmp_path: Path) -> None:
    numbered(tmp_path, range(4))
    values: Any = opened(tmp_path).values
    packed = pickle.dumps(values)
    write(tmp_path / "other.tif", pixels((20, 11)))
    np.testing.assert_array_equal(everything(pickle.loads(packed)), everything(values))
    os.utime(tmp_path / "slice_2.tif", ns=(1, 1))
    with pytest.raises(SourceChanged, match=r"slice_2\.tif"):
        everything(values)
    with pytest.raises(SourceChanged, match="changed since they were opened"):
        everything(pickle.loads(packed))


def test_threads_and_forked_children_read_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), compression="zlib")
    values = pickle.loads(pickle.dumps(opened(path).values))
    with ThreadPoolExecutor(4) as pool:
        for read in pool.map(lambda _: everything(values), range(8)):
            np.testing.assert_array_equal(read, pixels())
    if hasattr(os, "fork"):
        child = os.fork()
        if child == 0:
            os._exit(int(not np.array_equal(everything(values), pixels())))
        assert os.waitpid(child, 0)[1] == 0


def test_a_stack_becomes_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        pixels(),
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "TZYX", "unit": "um", "spacing": 3, "finterval": 2},
    )
    image = opened(path)
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata)
    array = open_mla(tmp_path / "a.mla")
    assert array.dims == ("time", "z", "y", "x")
    np.testing.assert_array_equal(array, pixels())
    np.testing.assert_array_equal(array.time, 2.0 * np.arange(4))
    np.testing.assert_array_equal(array.z, 3.0 * np.arange(3))
    np.testing.assert_array_equal(array.x, 0.5 * np.arange(33))
    assert array.x.attrs["units"] == "um"


# ---- damage and lies


def ome_xml(**changes: str) -> str:
    sizes = {"SizeX": "11", "SizeY": "10", "SizeZ": "4", "SizeC": "1", "SizeT": "1"} | changes
    inner = changes.pop("inner", "")
    sizes.pop("inner", None)
    attributes = " ".join(f'{key}="{value}"' for key, value in sizes.items())
    return (
        '<OME UUID="urn:uuid:1"><Image><Pixels DimensionOrder="XYZCT" Type="uint16" '
        f"{attributes}>{inner}</Pixels></Image></OME>"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ome_xml(SizeT="1000000000000"), "planes are missing"),
        (ome_xml(SizeZ="-4"), "where a count is needed"),
        (ome_xml(SizeZ="0"), "at least 1"),
        (ome_xml(SizeZ="5"), "5 planes of 1 samples, and the file has 4 pages"),
        (ome_xml(inner='<TiffData IFD="0" PlaneCount="999999999"/>'), "PlaneCount='999999999'"),
        (ome_xml(inner='<TiffData FirstT="77"/>'), "FirstT='77'"),
        (
            ome_xml(inner='<TiffData><UUID FileName="../../secret.tif">x</UUID></TiffData>'),
            "several OME-TIFF files, such as '../../secret.tif'",
        ),
        ("<OME><BinaryOnly MetadataFile='a.xml'/></OME>", "in another file"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><OME/>", "document type"),
        ("<OME><Image></OME>", "broken"),
        (
            "<OME><StructuredAnnotations><XMLAnnotation><Value><Modulo>"
            "<ModuloAlongT Start='0' End='1e18'/></Modulo></Value></XMLAnnotation>"
            "</StructuredAnnotations></OME>",
            "ModuloAlongT",
        ),
    ],
)
def test_lies_of_ome_are_refused_before_tifffile_sees_them(text: str, words: str) -> None:
    with pytest.raises(ConversionError) as caught:
        OmeXml.parse(text, file_name="a.ome.tif", n_pages=4)
    assert words in str(caught.value)


def test_ome_may_name_the_file_itself() -> None:
    for uuid in (
        '<UUID FileName="old name.tif">urn:uuid:1</UUID>',
        '<UUID FileName="A.ome.tif">urn:uuid:2</UUID>',
    ):
        text = ome_xml(inner=f'<TiffData IFD="0" PlaneCount="4">{uuid}</TiffData>')
        assert len(OmeXml.parse(text, file_name="a.ome.tif", n_pages=4).pixels) == 1


def test_a_file_of_several_is_refused_and_the_others_not_opened(tmp_path: Path) -> None:
    text = ome_xml(
        SizeT="2",
        inner='<TiffData IFD="0" PlaneCount="4"/>'
        '<TiffData FirstT="1" IFD="0" PlaneCount="4"><UUID FileName="b.tif">urn:uuid:2</UUID>'
        "</TiffData>",
    )
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, pixels((4, 10, 11)), description=text, metadata=None, photometric="minisblack"
    )
    write(tmp_path / "b.tif", pixels((4, 10, 11)))
    assert "spread over several OME-TIFF files, such as 'b.tif'" in refusal(path)


@pytest.mark.parametrize("cut", [4, 100, 400, -3000])
@pytest.mark.parametrize("layout", ["plain", "deflate", "ImageJ", "zstd tiles"])
def test_truncated_files_are_noticed_on_opening(tmp_path: Path, cut: int, layout: str) -> None:
    path = write(tmp_path / "a.tif", pixels(), **LAYOUTS[layout])
    path.write_bytes(path.read_bytes()[:cut])
    with mock.patch.object(logging.getLogger("tifffile"), "disabled", True):
        assert "a.tif" in refusal(path)


@pytest.mark.parametrize("target", [0, 150])
def test_a_ring_of_pages_is_refused(tmp_path: Path, target: int) -> None:
    path = write(tmp_path / "a.tif", pixels((300, 4, 4)), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        end, back = tiff.pages.next_page_offset, tiff.pages[target].offset
    assert end is not None
    data = bytearray(path.read_bytes())
    data[end : end + 4] = struct.pack("<I", back)
    path.write_bytes(data)
    assert "the chain of pages is broken after page 299" in refusal(path)


@pytest.mark.parametrize(
    ("metadata", "options"), [({"axes": "ZYX"}, {"imagej": True}), ({}, {"truncate": True})]
)
def test_stacks_behind_one_page_must_be_whole(
    tmp_path: Path, metadata: dict[str, str], options: dict[str, bool]
) -> None:
    path, data = tmp_path / "a.tif", pixels((8, 40, 33))
    write(path, data, metadata=metadata, **options)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].dataoffsets[0]
    if "imagej" in options:
        # ImageJ writes one page for stacks beyond 4 GiB.
        head = tiff.pages.first
        whole = bytearray(path.read_bytes()[: at + data.nbytes])
        end = head.offset + 2 + 12 * len(head.tags)
        whole[end : end + 4] = bytes(4)
        path.write_bytes(whole)
    np.testing.assert_array_equal(everything(opened(path).values), data)
    path.write_bytes(path.read_bytes()[: at + data.nbytes // 2])
    with mock.patch.object(logging.getLogger("tifffile"), "disabled", True):
        assert "truncated" in refusal(path)


def test_fewer_pages_than_described_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for plane in pixels((3, 40, 33)):
            writer.write(
                plane,
                compression="zlib",
                photometric="minisblack",
                metadata=None,
                description='{"shape": [5, 40, 33]}',
            )
    with mock.patch.object(logging.getLogger("tifffile"), "disabled", True):
        assert "the description says (5, 40, 33)" in refusal(path)


def test_a_damaged_part_leaves_the_others(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), compression="zlib", metadata=None)
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[5].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[at : at + 40] = bytes(40)
    path.write_bytes(data)
    values = opened(path).values
    np.testing.assert_array_equal(values[6:12, 0:40, 0:33], pixels().reshape(12, 40, 33)[6:])
    with pytest.raises(ConversionError, match=r"a\.tif: page 5, part 0 cannot be decoded"):
        everything(values)


@pytest.mark.parametrize("compression", ["zlib", "zstd", "jpeg2000"])
def test_gigabytes_in_a_few_bytes_are_not_decoded(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / "a.tif", pixels((64, 64), "u1"), compression=compression, metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags  # type: ignore[union-attr]
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            at, value = tags[name].valueoffset, struct.pack("<I", 1 << 20)
            data[tags[name].offset + 2 : tags[name].offset + 4] = struct.pack("<H", 4)
            data[at : at + 4] = value
    path.write_bytes(data)
    values = opened(path).values
    assert values.shape == (1 << 20, 1 << 20)
    with pytest.raises(ConversionError, match="compressed bytes claim to hold"):
        values[0:4, 0:4]


def test_a_codestream_of_another_size_is_not_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels((64, 64), "u1"), compression="jpeg2000", metadata=None)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8 : at + 16] = struct.pack(">2I", 1 << 20, 1 << 20)
    path.write_bytes(data)
    with pytest.raises(ConversionError, match=f"claim to hold {1 << 40} bytes"):
        opened(path).values[0:4, 0:4]


@pytest.mark.parametrize("marker", ["c0", "c2", "f7"])
def test_sizes_of_codestreams_are_found_behind_other_segments(marker: str) -> None:
    stream = f"ffd8 ffe0 0004 0000 ff ffdb 0003 00 ff{marker} 000b 08 0010 0020 01 01 11 00"
    assert claimed_pixels(bytes.fromhex(stream)) == 512
    assert claimed_pixels(bytes.fromhex(stream)[:20]) is None
    assert claimed_pixels(b"anything else") is None


def test_mutated_files_read_or_raise_our_errors(tmp_path: Path) -> None:
    rng = random.Random(5)
    layouts = ("plain", "deflate", "zstd tiles", "ImageJ", "OME", "plain strips")
    seeds = [
        write(tmp_path / "seed.tif", pixels((4, 2, 20, 17)), **LAYOUTS[layout]).read_bytes()
        for layout in layouts
    ]
    colour = pixels((32, 32, 3), "u1")
    options = {"photometric": "rgb", "tile": (16, 16)}
    seeds += [
        write(tmp_path / "seed.tif", colour, compression=each, **options).read_bytes()
        for each in ("jpeg", "jpeg2000")
    ]
    target = tmp_path / "mutated.tif"
    n_refused = 0
    with mock.patch.object(logging.getLogger("tifffile"), "disabled", True):
        for _ in range(400):
            data = bytearray(rng.choice(seeds))
            if rng.random() < 0.2:
                del data[rng.randrange(8, len(data)) :]
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(4, min(len(data), 700))
                size = rng.choice((1, 1, 4))
                data[at : at + size] = rng.choice((b"\xff", b"\0", b"\x01")) * size
            target.write_bytes(data)
            try:
                values = opened(target).values
                values[tuple(slice(0, min(n, 40)) for n in values.shape)]
            except MlaError:
                n_refused += 1
    assert 0 < n_refused < 400


def test_what_is_no_tiff_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"PNG, really" * 9)
    assert "not a TIFF file" in refusal(tmp_path / "a.tif")
    (tmp_path / "empty.tif").write_bytes(b"")
    assert "not a TIFF file" in refusal(tmp_path / "empty.tif")
    with pytest.raises(FileNotFoundError):
        opened(tmp_path / "nowhere.tif")


# ---- dependencies


def test_a_missing_tifffile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", pixels())
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingDependencyError, match=r"mlarray-xr\[tiff\]"):
        opened(path)


def test_a_missing_imagecodecs_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", pixels(), compression="zlib")

    def unavailable(*_: Any) -> None:
        raise ValueError("<COMPRESSION.ZSTD: 50000> requires the 'imagecodecs' package")

    with (
        mock.patch.object(tifffile.TiffPage, "decode", unavailable),
        pytest.raises(MissingDependencyError, match=r"imagecodecs.*mlarray-xr\[tiff\]"),
    ):
        opened(path)
