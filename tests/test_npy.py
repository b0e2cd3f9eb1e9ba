"""NumPy's files: NumPy is the oracle, of what is read and of every byte that is written."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlarray_xr import MlaArray, open_mla, to_mla
from mlarray_xr.errors import ConversionError, MlaError, SourceChanged
from mlarray_xr.foreign import packed
from mlarray_xr.foreign.npy import open_image, write_image
from mlarray_xr.foreign.packed import PackedArray
from mlarray_xr.foreign.raw import RawArray
from tests.strategies import boxes, dtypes, shapes, values_of

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.foreign.image import ForeignImage

VALUES = values_of((5, 6, 7), np.dtype("<i2"), 4)


def opened(path: Path, dataset: str | None = None) -> ForeignImage:
    return open_image(str(path), scratch_dir=None, dataset=dataset)


def whole(image: ForeignImage) -> NDArray[Any]:
    return image.values[tuple(slice(0, n) for n in image.values.shape)]


def written(array: Any, tmp_path: Path) -> Path:
    to_mla(array, tmp_path / "a.mla", mode="w")
    write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "written.npy"), mode="w")
    return tmp_path / "written.npy"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data(), fortran=st.booleans())
def test_arrays_come_back(data: st.DataObject, fortran: bool, tmp_path: Path) -> None:
    shape, dtype = data.draw(shapes()), data.draw(dtypes())
    values = values_of(shape, dtype, 3)
    np.save(tmp_path / "a.npy", values.copy(order="F" if fortran else "C"))
    image = opened(tmp_path / "a.npy")
    assert (image.values.shape, image.values.dtype) == (shape, values.dtype)
    key = tuple(slice(*pair) for pair in data.draw(boxes(shape)))
    np.testing.assert_array_equal(image.values[key], values[key])
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata, mode="w")
    write_image(MlaArray(tmp_path / "a.mla"), str(tmp_path / "b.npy"), mode="w")
    np.save(tmp_path / "c.npy", values)
    assert (tmp_path / "b.npy").read_bytes() == (tmp_path / "c.npy").read_bytes()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_are_read(version: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, VALUES, version=version)
    np.testing.assert_array_equal(whole(opened(tmp_path / "a.npy")), VALUES)


def test_files_are_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    image = opened(tmp_path / "a.npy")
    assert isinstance(image.values, RawArray)
    assert len(pickle.dumps(image.values)) < 1000
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    with pytest.raises(SourceChanged):
        whole(image)


def test_names_of_dimensions_are_assumed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    image = opened(tmp_path / "a.npy")
    to_mla(image.values, tmp_path / "a.mla", metadata=image.metadata)
    array = open_mla(tmp_path / "a.mla")
    assert array.dims == ("z", "y", "x")
    assert "axes_assumed" in array.attrs


# ---- archives


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_of_archives_are_read(save: Any, fortran: bool, tmp_path: Path) -> None:
    big = VALUES.astype(">f8")
    save(tmp_path / "a.npz", first=np.zeros(3), second=np.asfortranarray(big) if fortran else big)
    image = opened(tmp_path / "a.npz", "second")
    assert type(image.values) is (RawArray if save is np.savez else PackedArray)
    assert image.values.dtype == big.dtype
    np.testing.assert_array_equal(whole(image), big)
    np.testing.assert_array_equal(whole(opened(tmp_path / "a.npz", "first")), np.zeros(3))


def test_the_only_array_needs_no_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "A.NPZ.npz", VALUES)
    os.rename(tmp_path / "A.NPZ.npz", tmp_path / "A.NPZ")
    np.testing.assert_array_equal(whole(opened(tmp_path / "A.NPZ")), VALUES)


def test_large_compressed_arrays_go_through_the_scratch_folder(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", VALUES)
    (tmp_path / "scratch").mkdir()
    with mock.patch.object(packed, "_IN_MEMORY_BYTES", 0):
        image = open_image(
            str(tmp_path / "a.npz"), scratch_dir=str(tmp_path / "scratch"), dataset="arr_0"
        )
    assert len(os.listdir(tmp_path / "scratch")) == 1
    np.testing.assert_array_equal(whole(image), VALUES)


def test_arrays_are_chosen_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ct=VALUES, labels=VALUES)
    for dataset in (None, "pet", "ct.npy", "../ct"):
        with pytest.raises(ConversionError, match=r"a\.npz.*2 arrays: 'ct', 'labels'.*dataset="):
            opened(tmp_path / "a.npz", dataset)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ConversionError, match="0 arrays"):
        opened(tmp_path / "b.npz")
    np.save(tmp_path / "c.npy", VALUES)
    with pytest.raises(ConversionError, match=r"dataset='ct'.*leave it out"):
        opened(tmp_path / "c.npy", "ct")


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_of_others_are_refused(packing: int, tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, VALUES)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
        archive.writestr("a.npy", file.getvalue())
    with pytest.raises(ConversionError, match=r"numpy\.savez_compressed"):
        opened(tmp_path / "a.npz")


# ---- writing


@pytest.mark.parametrize("dtype", ["?", "u1", ">i4", "<f2", "c8", "M8[ns]", "m8[s]", "S3", "U2"])
def test_written_files_are_those_of_numpy(dtype: str, tmp_path: Path) -> None:
    values = values_of((4, 3), np.dtype(dtype), 5)
    path = written(values, tmp_path)
    np.save(tmp_path / "numpy.npy", values)
    assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()


def test_labels_have_no_place(tmp_path: Path) -> None:
    made = xr.DataArray(VALUES, dims=("x", "time", "y"), coords={"x": np.arange(5.0)})
    np.testing.assert_array_equal(np.load(written(VALUES, tmp_path)), made)


def test_existing_targets_are_kept_unless_told(tmp_path: Path) -> None:
    to_mla(VALUES, tmp_path / "a.mla")
    array, target = MlaArray(tmp_path / "a.mla"), tmp_path / "a.npy"
    target.write_text("precious")
    with pytest.raises(FileExistsError):
        write_image(array, str(target), mode="w-")
    with (
        mock.patch.object(MlaArray, "read", side_effect=OSError("disk on fire")),
        pytest.raises(OSError, match="disk on fire"),
    ):
        write_image(array, str(target), mode="w")
    assert target.read_text() == "precious"
    write_image(array, str(target), mode="w")
    np.testing.assert_array_equal(np.load(target), VALUES)
    with pytest.raises(ConversionError, match=r"\.npy"):
        write_image(array, str(tmp_path / "a.npz"), mode="w")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mla", "a.npy"]


# ---- hostile files


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def test_objects_are_never_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.array([Evil()], object))
    np.savez("a.npz", np.array([Evil()], object))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ConversionError, match=rf"{name}.*object"):
            opened(tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def with_header(path: Path, header: str, data: bytes = bytes(64)) -> Path:
    text = header.encode() + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data)
    return path


@pytest.mark.parametrize(
    ("descr", "shape"),
    [
        ("'<i2'", "(33,)"),
        ("'<i2'", f"({2**62}, {2**62})"),
        ("'<i2'", f"(0, {2**62}, {2**62})"),
        ("'<i2'", f"({10**30},)"),
        ("'<i2'", "(-1,)"),
        ("'<i2'", "(-1, -1)"),
        ("'<i2'", "(1.5,)"),
        ("'<i2'", "5"),
        ("'<i2'", "(" + "1," * 70 + ")"),
        ("'|S0'", f"({2**60},)"),
        ("'|V0'", f"({2**60},)"),
        ("'|O'", "(2,)"),
        ("[('a', '<i2'), ('b', '<f4')]", "(2,)"),
        ("('<i2', (3,))", "(2,)"),
        ("'no such'", "(2,)"),
        ("__import__('os').mkdir('pwned')", "(2,)"),
        ("(" * 200 + ")" * 200, "(2,)"),
        ("[" * 4000, "(2,)"),
    ],
)
def test_headers_that_are_none_are_refused(
    descr: str, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"
    path = with_header(tmp_path / "a.npy", header)
    with pytest.raises(ConversionError, match=r"a\.npy"):
        opened(path)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, "a.npy")
    with pytest.raises(ConversionError, match=r"a\.npz"):
        opened(tmp_path / "a.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kept", [0, 5, 9, 60, 128, -1])
def test_truncated_files_are_refused(kept: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "b.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:kept])
    with pytest.raises(ConversionError, match=r"b\.npy"):
        opened(tmp_path / "b.npy")


def test_a_member_ends_where_the_archive_says(tmp_path: Path) -> None:
    header = "{'descr': '<i2', 'fortran_order': False, 'shape': (40,)}"
    path = with_header(tmp_path / "a.npy", header)
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "a.npz", "w", packing) as archive:
            archive.write(path, "a.npy")
            archive.writestr("b.npy", bytes(1000))
        with pytest.raises(ConversionError, match="truncated"):
            opened(tmp_path / "a.npz", "a")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    changes=st.lists(
        st.tuples(st.integers(0, 700), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    name=st.sampled_from(["a.npy", "stored.npz", "packed.npz"]),
)
def test_damaged_files_open_or_raise_our_errors(
    changes: list[tuple[int, bytes]], name: str, tmp_path: Path
) -> None:
    small = VALUES[:2]
    np.save(tmp_path / "a.npy", small)
    np.savez(tmp_path / "stored.npz", small)
    np.savez_compressed(tmp_path / "packed.npz", small)
    data = bytearray((tmp_path / name).read_bytes())
    for at, change in changes:
        at %= len(data)
        data[at : at + len(change)] = change
    (tmp_path / name).write_bytes(data)
    try:
        found = whole(opened(tmp_path / name))
    except MlaError:
        return
    assert found.nbytes <= 1100 * len(data)
