"""What notebooks show of an array: pictures and facts, no patient, and never a traceback."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from mlarray_xr import Metadata, create, open_mla, to_mla
from mlarray_xr.explore.html_preview import html_of
from mlarray_xr.overviews import build_overviews
from tests.html_page import parsed

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "DOE^JOHN"
HOSTILE = '<script>alert("1")</script>'


def volume(coord_system: str | None = "LPS") -> xr.DataArray:
    shape = {"z": 20, "y": 40, "x": 60}
    values = np.random.default_rng(0).normal(500, 90, tuple(shape.values())).astype(np.int16)
    coords = {
        dim: xr.Variable(dim, (3.0 if dim == "z" else 1.0) * np.arange(n), {"units": "mm"})
        for dim, n in shape.items()
    }
    attrs = {} if coord_system is None else {"coord_system": coord_system}
    return xr.DataArray(values, dims=tuple(shape), coords=coords, attrs=attrs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    to_mla(volume(), tmp_path / "a.mla", chunks=(10, 20, 30), blocks=(5, 10, 15))
    return tmp_path / "a.mla"


def test_planes_letters_and_facts_are_shown(path: Path) -> None:
    page = parsed(html_of(open_mla(path)))
    sizes = [Image.open(io.BytesIO(picture)).size for picture in page.pictures]
    assert sizes == [(256, 171), (256, 256), (171, 256)]
    letters = [text for text in page.texts if len(text) == 1]
    assert letters == ["A", "P", "R", "L", "S", "I", "R", "L", "S", "I", "A", "P"]
    assert "20 mm" in page.texts
    assert "y, x  z=10" in page.texts
    facts = page.facts
    assert facts["shape"] == "z 20, y 40, x 60"
    assert facts["type"] == "int16, 93.75 KiB"
    assert facts["spacing"] == "z 3 mm, y 1 mm, x 1 mm"
    assert facts["world"] == "LPS"
    assert facts["chunks"].startswith("10 x 20 x 30, ")
    assert facts["blocks"].startswith("5 x 10 x 15, ")
    assert facts["overviews"] == "none"
    assert "ratio" in facts["stored"]
    assert "part of" not in facts
    assert "Dask" not in facts


def test_whatever_is_in_hand_is_shown(path: Path) -> None:
    opened = open_mla(path)
    for array in (opened, open_mla(path, chunks={}), volume(), opened[::2, 5:], opened.T):
        assert len(parsed(html_of(array)).pictures) == 3
    plane = parsed(html_of(opened[4]))
    assert len(plane.pictures) == 1
    assert plane.facts["part of"] == "20 x 40 x 60"
    assert [text for text in plane.texts if len(text) == 1] == ["A", "P", "R", "L"]
    unknown = parsed(html_of(volume(None)))
    assert not any(len(text) == 1 for text in unknown.texts)


def test_overviews_are_counted(tmp_path: Path) -> None:
    to_mla(np.arange(700 * 700, dtype=np.int32).reshape(700, 700), tmp_path / "a.mla")
    build_overviews(tmp_path / "a.mla", levels=2)
    assert parsed(html_of(open_mla(tmp_path / "a.mla"))).facts["overviews"] == "2"


def test_large_files_say_that_they_are_coarse(tmp_path: Path) -> None:
    with create(
        tmp_path / "a.mla", shape=(1500, 1600, 1700), dtype="int16", chunks=50, blocks=25
    ) as writer:
        writer[0, 0, 0] = 1
    text = " ".join(parsed(html_of(open_mla(tmp_path / "a.mla"))).texts)
    assert "coarse: 1 of" in text
    assert "build_overviews(path)" in text


def test_nothing_of_the_patient_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / SECRET
    folder.mkdir()
    metadata = Metadata(source={"PatientName": SECRET}, extra={"note": SECRET})
    with create(
        folder / f"{SECRET}.mla", shape=(20, 30, 40), dtype="uint8", metadata=metadata
    ) as writer:
        writer[...] = np.random.default_rng(0).integers(0, 99, (20, 30, 40), np.uint8)
    array = open_mla(folder / f"{SECRET}.mla").rename(SECRET)
    array.attrs["PatientName"] = SECRET
    array = array.assign_coords(patient=SECRET)
    shown = [html_of(array), html_of(array[2:]), html_of(array.compute())]
    os.remove(folder / f"{SECRET}.mla")
    shown.append(html_of(array))
    assert len(parsed(shown[0]).pictures) == 3
    assert not parsed(shown[-1]).pictures
    for html in shown:
        assert SECRET not in html
        assert str(folder) not in html


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    array = xr.DataArray(np.random.default_rng(0).random((8, 9, 10)), dims=(HOSTILE, "y", "x"))
    page = parsed(html_of(array))
    assert len(page.pictures) == 3
    assert HOSTILE in page.facts["shape"]
    hostile = volume().assign_attrs(coord_system=HOSTILE)
    for dim in "zyx":
        hostile[dim].attrs["units"] = HOSTILE
    to_mla(array, tmp_path / "a.mla")
    for each in (hostile, open_mla(tmp_path / "a.mla")):
        html = html_of(each)
        assert "<script" not in html
        parsed(html)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros(()),
        np.zeros((0, 4)),
        np.full((3, 3), "a"),
        np.zeros((3, 3), "M8[s]"),
        np.zeros((3, 3), [("a", "i2")]),
        np.full((3, 3), None),
        np.full((3, 3), np.nan),
    ],
)
def test_every_array_has_a_page(array: np.ndarray[Any, Any]) -> None:
    facts = parsed(html_of(xr.DataArray(array))).facts
    assert str(array.dtype) in facts["type"]


def test_dask_is_not_asked_to_compute(path: Path) -> None:
    ran = []

    def computed(block: Any) -> Any:
        ran.append(block.shape)
        return block

    opened = open_mla(path, chunks={})
    lazy = opened.copy(data=opened.data.map_blocks(computed, meta=np.zeros(0, np.int16)))
    page = parsed(html_of(lazy))
    assert ran == []
    assert page.pictures == []
    assert page.facts["Dask"] == "1 parts of z 20, y 40, x 60"
    assert any("Dask has not computed" in text for text in page.texts)


def test_files_that_change_are_told_of(path: Path) -> None:
    array, lazy = open_mla(path), open_mla(path, chunks={})
    to_mla(volume() + 1, path, mode="w")
    for each in (array, lazy):
        page = parsed(html_of(each))
        assert page.pictures == []
        assert page.facts["shape"] == "z 20, y 40, x 60"
        assert any("SourceChanged" in text for text in page.texts)


def test_damaged_chunks_are_told_of(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    middle = len(stored) // 2
    stored[200:middle] = bytes(middle - 200)
    path.write_bytes(stored)
    page = parsed(html_of(open_mla(path)))
    assert page.pictures == []
    assert any("ChunkError" in text for text in page.texts)


def test_stale_overviews_are_told_of(tmp_path: Path) -> None:
    values = np.arange(700 * 700, dtype=np.int32).reshape(700, 700)
    to_mla(values, tmp_path / "a.mla")
    build_overviews(tmp_path / "a.mla")
    to_mla(values + 1, tmp_path / "a.mla", mode="w")
    page = parsed(html_of(open_mla(tmp_path / "a.mla")))
    assert len(page.pictures) == 1
    assert page.facts["overviews"] == "none"
    assert any("do not belong" in text for text in page.texts)


def test_without_pillow_there_are_the_facts(path: Path) -> None:
    with mock.patch.dict("sys.modules", {"PIL": None}):
        page = parsed(html_of(open_mla(path)))
    assert page.pictures == []
    assert page.facts["shape"] == "z 20, y 40, x 60"
    assert any("mlarray-xr[preview]" in text for text in page.texts)


def test_no_error_of_ours_comes_out(path: Path) -> None:
    for name in ("draw_planes", "_facts", "_planes"):
        with mock.patch(
            f"mlarray_xr.explore.html_preview.{name}", side_effect=RuntimeError(SECRET)
        ):
            html = html_of(open_mla(path))
        assert SECRET not in html
        assert "RuntimeError" in html
        assert parsed(html).facts["shape"] == "z 20, y 40, x 60"
