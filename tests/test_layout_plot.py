"""plot_layout: its numbers are what a reader counts, and its picture is sound SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr import MlaArray, create, measure, open_mla, to_mla
from mlarray_xr.errors import LayoutError
from mlarray_xr.explore.layout_plot import LayoutPlot, plot_layout

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plot") / "a.mla"
    values = np.random.default_rng(0).integers(0, 999, (70, 90, 110), np.int16)
    to_mla(values, path, chunks=(20, 30, 40), blocks=(8, 16, 40))
    return path


def pairs(svg: str, tag: str) -> list[dict[str, str]]:
    return [
        dict(each.attrib) for each in ElementTree.fromstring(svg).iter() if each.tag.endswith(tag)
    ]


@pytest.mark.parametrize("patch", [1, 16, (33, 20, 64), {"x": 50, "y": 7, "z": 70}, 999])
def test_numbers_are_those_that_a_reader_counts(path: Path, patch: object) -> None:
    plot = plot_layout(open_mla(path), patch)  # type: ignore[arg-type]
    points = np.stack(np.meshgrid(*map(np.arange, *zip(*plot.box, strict=True)), indexing="ij"), -1)
    with measure() as measured:
        values = MlaArray(path).points(points.reshape(-1, 3))
    assert plot.n_blocks == measured.stats.blocks_decoded
    assert plot.decoded_bytes == measured.stats.bytes_decoded
    assert plot.wanted_bytes == values.nbytes
    assert plot.amplification == measured.stats.amplification
    assert plot.n_chunks == len(np.unique(points.reshape(-1, 3) // (20, 30, 40), axis=0))


@settings(max_examples=50)
@given(
    axes=st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20)),
        min_size=2,
        max_size=3,
    ),
    fine=st.integers(0, 5),
)
def test_counts_are_exact_for_every_geometry(
    axes: list[tuple[int, int, int, int]], fine: int
) -> None:
    shape, chunks, blocks, starts = [], [], [], []
    for extent, chunk, block, start in axes:
        shape.append(extent)
        chunks.append(chunk)
        blocks.append(min(chunk, block))
        starts.append(min(start, extent) - 1)
    box = tuple((a, min(a + 1 + fine, n)) for a, n in zip(starts, shape, strict=True))
    plot = LayoutPlot(
        dims=tuple("tzyx"[-len(shape) :]),
        shape=tuple(shape),
        chunks=tuple(chunks),
        blocks=tuple(blocks),
        itemsize=2,
        box=box,
        plane=(0, 1),
        mean_amplification=1.0,
    )
    voxels = np.stack(np.meshgrid(*map(np.arange, *zip(*box, strict=True)), indexing="ij"), -1)
    voxels = voxels.reshape(-1, len(shape))
    at = voxels // chunks
    assert plot.n_chunks == len(np.unique(at, axis=0))
    within = np.concatenate([at, voxels % chunks // blocks], axis=1)
    assert plot.n_blocks == len(np.unique(within, axis=0))
    ElementTree.fromstring(plot._repr_svg_())


def test_the_picture_holds_patch_blocks_and_chunks(path: Path) -> None:
    plot = plot_layout(open_mla(path, chunks={}), 20, plane=("z", "x"))
    svg = plot._repr_svg_()
    rectangles = pairs(svg, "rect")
    background, array, touched, decoded, patch = rectangles
    assert background["fill"] == "#fff"
    # One scale for both directions: the chunks in reach are 20 to 60 by 0 to 110 voxels.
    scale = 360 / 110
    for found, size in ((patch, (20, 20)), (decoded, (28, 40)), (touched, (40, 40))):
        assert float(found["height"]) == pytest.approx(size[0] * scale, abs=0.02)
        assert float(found["width"]) == pytest.approx(size[1] * scale, abs=0.02)
    assert float(array["width"]) == pytest.approx(360)
    texts = "".join(ElementTree.fromstring(svg).itertext())
    for line in str(plot).splitlines():
        assert line in texts
    assert len(pairs(svg, "path")) == 2


def test_names_are_escaped(tmp_path: Path) -> None:
    array = xr.DataArray(np.zeros((8, 9)), dims=("<script>", "x"))
    to_mla(array, tmp_path / "a.mla")
    opened = open_mla(tmp_path / "a.mla")
    plot = plot_layout(opened.rename({opened.dims[0]: "<script>"}), 4)
    svg = plot._repr_svg_()
    assert "<script" not in svg
    assert "<script> 1" in "".join(ElementTree.fromstring(svg).itertext())


def test_the_picture_is_saved(path: Path, tmp_path: Path) -> None:
    plot = plot_layout(open_mla(path), 20)
    plot.save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == plot._repr_svg_()
    with pytest.raises(ValueError, match=r"\.svg"):
        plot.save(tmp_path / "a.png")


def test_fine_grids_are_left_out(tmp_path: Path) -> None:
    with create(
        tmp_path / "a.mla", shape=(5000, 5000), dtype="uint8", chunks=1000, blocks=2
    ) as writer:
        writer[0, 0] = 1
    svg = plot_layout(open_mla(tmp_path / "a.mla"), 4000)._repr_svg_()
    assert len(svg) < 20_000


def test_what_is_no_whole_file_is_refused(path: Path) -> None:
    opened = open_mla(path)
    flipped = opened[::-1]
    for array in (opened[1:], opened[1:].compute(), flipped, flipped.compute(), opened + 1):
        with pytest.raises(LayoutError, match="To fix"):
            plot_layout(array, 8)
    with pytest.raises(LayoutError, match="plane"):
        plot_layout(opened, 8, plane=("z", "t"))
    with pytest.raises(LayoutError, match="plane"):
        plot_layout(opened, 8, plane=("z", "z"))
    with pytest.raises(LayoutError):
        plot_layout(opened, 0)
    assert plot_layout(opened.compute(), 8) == plot_layout(opened, 8)
