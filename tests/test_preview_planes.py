"""What a plane of a preview reads: the right voxels, few of them, and little memory."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr import MlaArray, create, measure, open_mla, to_mla
from mlarray_xr.errors import LayoutError
from mlarray_xr.explore.central_planes import plan_central_planes
from mlarray_xr.explore.file_plane import read_plane
from mlarray_xr.explore.plane_reading import levels_behind, read_planes
from mlarray_xr.explore.scale_bar import plan_bar
from mlarray_xr.overviews import build_overviews
from mlarray_xr.planning.contrast import coloured, looks_like_labels, plan_window, shaded
from mlarray_xr.planning.plane_samples import AxisGrid, PlaneLimits, plan_plane
from mlarray_xr.storage.handles import open_readers
from tests.range_server import RangeServer
from tests.remote_kit import settings

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray


@st.composite
def planes(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a file's geometry, and what is wanted of a plane of it."""
    ndim = draw(st.integers(2, 4))
    extents = st.lists(st.integers(1, 13), min_size=ndim, max_size=ndim).map(tuple)
    shape, chunks = draw(extents), draw(extents)
    blocks = tuple(draw(st.integers(1, c)) for c in chunks)
    axes = tuple(draw(st.permutations(range(ndim)))[:2])
    position = tuple(draw(st.integers(0, n - 1)) for n in shape)
    rows, columns = (
        sorted(draw(st.sets(st.integers(0, shape[axis] - 1), min_size=1))) for axis in axes
    )
    return locals()


@given(planes())
def test_a_plane_of_a_file_is_what_numpy_picks(wanted: dict[str, Any]) -> None:
    shape, axes, position = wanted["shape"], wanted["axes"], wanted["position"]
    values = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    file = MlaArray(_bytes(values, wanted["chunks"], wanted["blocks"]))
    rows, columns = np.array(wanted["rows"]), np.array(wanted["columns"])
    found = read_plane(file, axes=axes, position=position, rows=rows, columns=columns)
    key = tuple(slice(None) if axis in axes else index for axis, index in enumerate(position))
    plane = values[key] if axes[0] < axes[1] else values[key].T
    np.testing.assert_array_equal(found, plane[np.ix_(rows, columns)])


def _bytes(values: NDArray[Any], chunks: tuple[int, ...], blocks: tuple[int, ...]) -> bytes:
    """Return a plain Blosc2 frame, which may have chunks that exceed the array."""
    import blosc2

    array = blosc2.asarray(values, chunks=chunks, blocks=blocks, cparams=blosc2.CParams(nthreads=1))
    frame = array.to_cframe()
    assert isinstance(frame, bytes)
    return frame


@given(
    extents=st.tuples(st.integers(1, 900), st.integers(1, 900)),
    pixels=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    chunks=st.tuples(st.integers(1, 99), st.integers(1, 99)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    limits=st.builds(
        PlaneLimits, most_chunks=st.integers(1, 300), most_blocks=st.integers(1, 3000)
    ),
)
def test_samples_are_spread_and_stay_within_the_limits(
    extents: tuple[int, int],
    pixels: tuple[int, int],
    chunks: tuple[int, int],
    shares: tuple[float, float],
    limits: PlaneLimits,
) -> None:
    grids = tuple(
        AxisGrid(chunk=c, block=max(1, round(c * share)))
        for c, share in zip(chunks, shares, strict=True)
    )
    samples = plan_plane(extents, pixels=pixels, grids=grids, limits=limits)  # type: ignore[arg-type]
    n_chunks = n_blocks = 1
    for positions, grid, n, px in zip(
        (samples.rows, samples.columns), grids, extents, pixels, strict=True
    ):
        flat = positions.ravel()
        assert flat[0] >= 0
        assert flat[-1] < n
        assert (np.diff(flat) > 0).all()
        numbers = np.array([(x // grid.chunk, x % grid.chunk // grid.block) for x in flat])
        n_chunks *= len({int(chunk) for chunk, _ in numbers})
        n_blocks *= len({(int(chunk), int(block)) for chunk, block in numbers})
        if positions.shape[1] > 1:
            assert samples.is_coarse
            grouped = numbers.reshape(*positions.shape, 2)
            assert (grouped == grouped[:, :1]).all()
        elif len(flat) > 1:
            assert len({*np.diff(flat).tolist()}) == 1
        # Both ends are equally far from the samples.
        assert abs(int(positions[0, 0]) - (n - 1 - int(positions[-1, -1]))) <= 2 * grid.block
        if not samples.is_coarse:
            assert min(n, px) <= len(flat) <= max(n if n < px else 2 * px, px)
    assert n_chunks <= limits.most_chunks
    assert n_blocks <= limits.most_blocks


def test_limits_of_nothing_are_refused() -> None:
    with pytest.raises(LayoutError, match="at least 1"):
        plan_plane((5, 5), pixels=(0, 5))
    grid = AxisGrid(chunk=1, block=1)
    limits = PlaneLimits(most_chunks=1, most_blocks=0)
    with pytest.raises(LayoutError, match="most_blocks=0"):
        plan_plane((5, 5), pixels=(5, 5), grids=(grid, grid), limits=limits)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 50 GB, zeros but for a cube in the middle."""
    path = tmp_path_factory.mktemp("large") / "a.mla"
    shape = (2048, 3584, 3584)
    with create(
        path, shape=shape, dtype="int16", chunks=128, blocks=32, codec="lz4-1-shuffle"
    ) as writer:
        noise = np.random.default_rng(0).integers(0, 999, (256, 256, 256), np.int16)
        writer[tuple(slice(n // 2 - 128, n // 2 + 128) for n in shape)] = noise
    return path


def read(array: xr.DataArray, size_px: int = 256) -> list[Any]:
    planned = plan_central_planes(array)
    return read_planes(array, planned, levels=levels_behind(array), size_px=size_px)


def test_a_file_of_any_size_takes_few_blocks(large: Path) -> None:
    with measure() as measured:
        found = read(open_mla(large))
    assert all(plane.is_coarse for plane in found)
    assert all(plane.samples.shape[1] > 1 < plane.samples.shape[3] for plane in found)
    assert 3 * 128 < measured.stats.blocks_decoded <= 3 * 256
    # The noise in the middle is seen.
    assert all(200 < plane.means().max() < 999 for plane in found)
    # A lazy selection is held to the same: here all of the file but its first planes.
    part = open_mla(large)[1:, 1:, 1:]
    assert [plane.samples.size for plane in read(part)] == [p.samples.size for p in found]
    plane = open_mla(large)[1024]
    assert read(plane)[0].is_coarse
    crop = open_mla(large)[900:1100, 1700:1900, 1700:1900]
    assert not any(plane.is_coarse for plane in read(crop))


MEMORY_SCRIPT = """
import pathlib, re, sys
import numpy as np, blosc2, PIL.Image, PIL.ImageDraw, mlarray_xr
from mlarray_xr.explore.html_preview import html_of

def used(name):
    return int(re.search(name + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

small = mlarray_xr.to_mla(np.zeros((64, 64, 64), "int16"), sys.argv[2])
html_of(mlarray_xr.open_mla(sys.argv[2]))
before = used("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
assert html_of(mlarray_xr.open_mla(sys.argv[1])).count("<img") == 3
print(used("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_preview_of_50_gb_takes_little_memory(large: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", MEMORY_SCRIPT, str(large), str(tmp_path / "small.mla")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30_000


def test_a_file_that_nobody_reads_is_let_go_of(large: Path) -> None:
    MlaArray(large).close()
    before = open_readers()
    read(open_mla(large))
    assert open_readers() == before
    # Somebody who reads it keeps it open, and what was counted.
    array = MlaArray(large)
    array[0, 0, :5]
    read(open_mla(large))
    assert open_readers() == before + 1
    assert array.stats().bytes_useful > 10
    array.close()


def test_a_remote_file_takes_few_blocks(tmp_path: Path) -> None:
    with create(
        tmp_path / "a.mla", shape=(640, 650, 660), dtype="uint8", chunks=32, blocks=16
    ) as writer:
        for start in range(0, 640, 32):
            middle = slice(start, start + 32), slice(320, 352), slice(320, 352)
            writer[middle] = np.random.default_rng(start).integers(0, 99, (32, 32, 32), np.uint8)
    with settings(), RangeServer({"a.mla": (tmp_path / "a.mla").read_bytes()}) as server:
        array = open_mla(server.url("a.mla"))
        with measure() as measured:
            found = read(array)
    assert all(plane.is_coarse for plane in found)
    assert 0 < measured.stats.blocks_decoded <= 3 * 64
    assert measured.stats.bytes_fetched < 3 * 64 * 16**3


def test_the_middle_of_an_overview_is_that_of_the_file(tmp_path: Path) -> None:
    values = np.zeros((161, 600, 610), np.int16)
    values[80] = 1000
    values[:, 300] += 500
    to_mla(values, tmp_path / "a.mla", chunks=64, blocks=16)
    build_overviews(tmp_path / "a.mla")
    found = read(open_mla(tmp_path / "a.mla"), size_px=128)
    assert found[0].level > 0
    axial, coronal, _ = (plane.means() for plane in found)
    assert axial.mean() > 200
    assert coronal.mean() > 100


def test_bars_are_round_and_fit() -> None:
    for power in range(-9, 9):
        for factor in (1, 1.99, 2, 4.9, 5, 9.999):
            bar = plan_bar(longest_px=100, px_per_unit=100 / (factor * 10.0**power), unit="mm")
            assert 39 <= bar.length_px <= 100
            assert float(bar.text.split()[0]) <= factor * 10.0**power * (1 + 1e-9)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30))
def test_every_value_has_a_shade(numbers: list[float]) -> None:
    values = np.array(numbers)
    low, high = plan_window([values])
    assert low < high
    if np.isfinite(high - low):
        shades = shaded(values, (low, high))
        order = np.argsort(values[np.isfinite(values)])
        assert (np.diff(shades[np.isfinite(values)][order].astype(int)) >= 0).all()
        assert not shades[~np.isfinite(values)].any()


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "uint64", "float32", ">i2"])
def test_every_label_has_a_colour(dtype: str) -> None:
    labels = np.array([0, 1, 2, 13, 100]).astype(dtype)
    colours = coloured(labels)
    assert colours.shape == (5, 3)
    assert not colours[0].any()
    assert colours[1:].any(axis=1).all()
    if dtype != "bool":
        assert (colours[1] == colours[3]).all()
        assert (colours[1] != colours[2]).any()


def test_images_do_not_look_like_labels() -> None:
    generator = np.random.default_rng(0)
    assert not looks_like_labels([generator.integers(0, 4000, 999)])
    assert not looks_like_labels([np.arange(5.0)])
    assert not looks_like_labels([np.array([0, 255], np.uint8)])
    assert not looks_like_labels([np.array([-1, 0, 1])])
    assert not looks_like_labels([np.zeros(9, int)])
    assert looks_like_labels([np.arange(4), np.zeros(3, int)])
