"""Levels beside a file: NumPy is the oracle of values, the file's own voxels that of positions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlarray
import numpy as np
import pytest
import xarray as xr

from mlarray_xr import MlaArray, create, measure, open_mla, to_mla
from mlarray_xr.errors import ConversionError
from mlarray_xr.format.metadata import Metadata, Spatial
from mlarray_xr.overview_files import find_levels, level_path, levels_of
from mlarray_xr.overview_record import OverviewRecord
from mlarray_xr.overviews import build_overviews
from mlarray_xr.placement import geometry_of
from mlarray_xr.planning.reduction import reduce_mean, reduce_mode

if TYPE_CHECKING:
    from distributed import Client

SHAPE = (21, 34, 50)
VALUES = np.random.default_rng(1).integers(-900, 3000, SHAPE).astype("int16")
OBLIQUE = (
    (0.9, -0.2, 0.3, 5.0),
    (0.1, 1.1, -0.2, -7.0),
    (-0.3, 0.2, 0.8, 11.0),
    (0.0, 0.0, 0.0, 1.0),
)
ALIGNED = {"z": 2 + 1.25 * np.arange(21), "y": 5 - 0.5 * np.arange(34), "x": 0.5 * np.arange(50)}
FACTORS = ((1, 2, 2), (2, 4, 4))


def image(values: np.ndarray[Any, Any] = VALUES) -> xr.DataArray:
    return xr.DataArray(values, dims=("z", "y", "x"), coords=ALIGNED, name="image")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "ct.mla"
    to_mla(image(), path, chunks=(5, 8, 16), blocks=(5, 4, 8))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def levels_in(path: Path | str) -> list[np.ndarray[Any, Any]]:
    return [level[...] for level in find_levels(MlaArray(path))]


def assert_levels(path: Path, wanted: tuple[np.ndarray[Any, Any], ...]) -> None:
    found = levels_in(path)[1:]
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# Values, whoever computes them


def test_levels_are_the_means_of_the_file(scan: Path) -> None:
    reports = build_overviews(scan, levels=2)
    assert_levels(scan, reduce_mean(VALUES, FACTORS))
    assert [report.path for report in reports] == [level_path(scan, 1), level_path(scan, 2)]
    assert [report.shape for report in reports] == [(21, 17, 25), (11, 9, 13)]
    assert names(scan.parent) == ["ct.level1.mla", "ct.level2.mla", "ct.mla"]


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_every_scheduler_writes_the_same_bytes(scan: Path, scheduler: str) -> None:
    build_overviews(scan, levels=2)
    wanted = [Path(level_path(scan, level)).read_bytes() for level in (1, 2)]
    delayed = build_overviews(scan, levels=2, mode="w", compute=False)
    reports = delayed.compute(scheduler=scheduler)
    assert [Path(report.path).read_bytes() for report in reports] == wanted


def test_a_cluster_writes_the_same_bytes(scan: Path, cluster: Client) -> None:
    build_overviews(scan, levels=2)
    wanted = [Path(level_path(scan, level)).read_bytes() for level in (1, 2)]
    done: list[tuple[int, int]] = []
    build_overviews(scan, levels=2, mode="w", progress=lambda *numbers: done.append(numbers))
    assert [Path(level_path(scan, level)).read_bytes() for level in (1, 2)] == wanted
    assert done[-1][0] == done[-1][1] > 1
    assert cluster.scheduler_info()["workers"]


@pytest.mark.parametrize("method", ["auto", "mean", "mode"])
@pytest.mark.parametrize("dtype", ["?", "uint8", ">i2", "float32", "float64", "complex64"])
def test_types_and_methods(tmp_path: Path, dtype: str, method: Any) -> None:
    values = (VALUES % 5).astype(dtype)
    to_mla(values, tmp_path / "a.mla", chunks=(8, 8, 16), blocks=(8, 8, 8))
    if method == "mode" and np.dtype(dtype).kind == "c":
        with pytest.raises(ConversionError, match="method='mean'"):
            build_overviews(tmp_path / "a.mla", levels=1, method=method)
        return
    build_overviews(tmp_path / "a.mla", levels=1, method=method)
    is_mode = method == "mode" or (method == "auto" and dtype == "?")
    reduce = reduce_mode if is_mode else reduce_mean
    assert_levels(tmp_path / "a.mla", reduce(values, [(2, 2, 2)]))


def test_segmentations_get_modes_and_stay_segmentations(tmp_path: Path) -> None:
    labels = (VALUES % 3).astype("uint8")
    to_mla(labels, tmp_path / "a.mla", metadata=Metadata(is_seg=True))
    build_overviews(tmp_path / "a.mla", levels=1)
    assert_levels(tmp_path / "a.mla", reduce_mode(labels, [(2, 2, 2)]))
    assert open_mla(tmp_path / "a.mla", level=1).name == "labels"


def test_types_of_no_mean_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    texts = np.array([["a", "b"], ["c", "d"]])
    with pytest.raises(ConversionError, match="no such thing"):
        to_mla(texts, tmp_path / "a.mla", levels=1)
    assert names(tmp_path) == []


def test_time_and_channels_are_never_reduced(tmp_path: Path) -> None:
    series = xr.DataArray(
        np.arange(3 * 2 * 8 * 8, dtype="int32").reshape(3, 2, 8, 8),
        dims=("time", "channel", "y", "x"),
        coords={"time": [0.0, 2.0, 4.0], "bval": ("time", [0.0, 1000.0, 1000.0])},
    )
    to_mla(series, tmp_path / "a.mla")
    build_overviews(tmp_path / "a.mla", levels=2)
    coarse = open_mla(tmp_path / "a.mla", level=2)
    assert dict(coarse.sizes) == {"time": 3, "channel": 2, "y": 2, "x": 2}
    np.testing.assert_array_equal(coarse.bval, [0, 1000, 1000])


def test_uneven_positions_become_means_and_others_along_them_are_left_out(tmp_path: Path) -> None:
    stack = image().assign_coords(z=np.arange(21.0) ** 2, slice_time=("z", np.arange(21.0)))
    to_mla(stack[:, :, :20].drop_vars(["y", "x"]), tmp_path / "a.mla")
    build_overviews(tmp_path / "a.mla", levels=2)
    coarse = open_mla(tmp_path / "a.mla", level=1)
    np.testing.assert_array_equal(coarse.z[:2], [0.5, 6.5])
    assert "slice_time" not in coarse.coords
    coarser = open_mla(tmp_path / "a.mla", level=2)
    # Of 21 positions the last cell has one.
    np.testing.assert_array_equal(coarser.z, [3.5, 31.5, 91.5, 183.5, 307.5, 400])


# Positions


def centres_of_cells(file: MlaArray, level: xr.DataArray, factors: tuple[int, ...]) -> None:
    """Compare each voxel of a level with the mean position of those it stands for, where whole."""
    fine, coarse = geometry_of(open_mla(file.path)), geometry_of(level)
    for index in itertools.product((0, 1, 3), repeat=3):
        members = [
            [i * f + offset for i, f, offset in zip(index, factors, offsets, strict=True)]
            for offsets in itertools.product(*(range(f) for f in factors))
        ]
        wanted = fine.index_to_world(members).mean(axis=0)
        np.testing.assert_allclose(coarse.index_to_world(index), wanted, atol=1e-9)


@pytest.mark.parametrize(
    "spatial",
    [
        Spatial(affine=OBLIQUE),
        Spatial(spacing=(1.5, 1, 1), origin=(3, 2, 1)),
        Spatial(spacing=(1.5, 1, 1), direction=((0, 1, 0), (-1, 0, 0), (0, 0, 1))),
        Spatial(origin=(3, 2, 1), coord_system="RAS+"),
        Spatial(),
    ],
)
def test_voxels_of_levels_lie_in_the_middle_of_their_cells(
    tmp_path: Path, spatial: Spatial
) -> None:
    to_mla(VALUES, tmp_path / "a.mla", metadata=Metadata(spatial=spatial))
    build_overviews(tmp_path / "a.mla", levels=3)
    file, *levels = find_levels(MlaArray(tmp_path / "a.mla"))
    for number, level in enumerate(levels, 1):
        record = OverviewRecord.found_in(level.metadata)
        assert record is not None
        opened = open_mla(tmp_path / "a.mla", level=number)
        if max(record.factors) <= 4:
            centres_of_cells(file, opened, record.factors)
        assert geometry_of(opened).coord_system == spatial.coord_system


def test_a_plane_of_a_volume_stays_in_its_place(tmp_path: Path) -> None:
    to_mla(VALUES, tmp_path / "a.mla", metadata=Metadata(spatial=Spatial(affine=OBLIQUE)))
    to_mla(open_mla(tmp_path / "a.mla").isel(z=7), tmp_path / "plane.mla")
    build_overviews(tmp_path / "plane.mla", levels=1)
    fine, coarse = levels_of(open_mla(tmp_path / "plane.mla"))
    assert geometry_of(coarse).dims == ("y", "x", "z")
    np.testing.assert_allclose(
        geometry_of(coarse).index_to_world((2, 3, 0)),
        geometry_of(fine).index_to_world((4.5, 6.5, 0)),
    )


def test_metadata_of_the_original_image_stays_with_the_file(tmp_path: Path) -> None:
    stated = Metadata(
        source={"PatientName": "Doe"}, extra={"site": 3}, image_meta_format="dicom", is_seg=False
    )
    to_mla(VALUES, tmp_path / "a.mla", metadata=stated)
    build_overviews(tmp_path / "a.mla", levels=1)
    metadata = MlaArray(level_path(tmp_path / "a.mla", 1)).metadata
    assert metadata.source == {}
    assert metadata.extra["site"] == 3
    assert b"Doe" not in Path(level_path(tmp_path / "a.mla", 1)).read_bytes()


def test_the_reference_package_reads_levels(scan: Path) -> None:
    build_overviews(scan, levels=1)
    found = mlarray.MLArray.open(level_path(scan, 1))
    np.testing.assert_array_equal(found[...], reduce_mean(VALUES, FACTORS)[0])
    np.testing.assert_allclose(np.diag(found.affine), [1.25, -1, 1, 1])


# One pass, bounded


def test_the_file_is_read_once(scan: Path) -> None:
    with measure() as measured:
        build_overviews(scan, levels=2)
    assert measured.stats.bytes_useful == VALUES.nbytes


def test_parts_of_one_value_are_not_read_and_the_graph_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "huge.mla"
    box = np.arange(300, dtype="int16")
    with create(path, shape=(3072, 3072, 3072), dtype="int16", chunks=128, blocks=32) as out:
        out[100:300, 1000:1200, 2000:2300] = box
        out[2500:2560, 5:70, 1000:1100] = 7
        out[3071, 3071, 3071:] = 9
    with measure() as measured:
        build_overviews(path)
    assert measured.stats.bytes_useful < 1 << 28
    levels = find_levels(MlaArray(path))
    assert [level.shape[0] for level in levels] == [3072, 1536, 768, 384, 192]
    np.testing.assert_array_equal(
        levels[1].read(((50, 150), (500, 600), (1000, 1150))),
        reduce_mean(np.broadcast_to(box, (200, 200, 300)), [(2, 2, 2)])[0],
    )
    assert levels[1].read(((1250, 1280), (3, 35), (500, 550))).min() == 7
    assert levels[1][-1, -1, -1] == round(9 / 8)
    assert not levels[4][:, -5].any()
    delayed = build_overviews(path, mode="w", compute=False)
    assert len(delayed.dask) < 100


@pytest.mark.parametrize("air", [-1024, 0, np.nan])
def test_constants_are_what_reading_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, air: float
) -> None:
    values = np.full((64, 64, 61), air, "int16" if air == air else "float32")
    values[3, 4, 5] = 9
    to_mla(values, tmp_path / "a.mla", chunks=16, blocks=8)
    monkeypatch.setattr("mlarray_xr.planning.grid._SMALLEST_PART_BYTES", 1 << 12)
    monkeypatch.setattr("mlarray_xr.planning.overview_parts._PIECE_BYTES", 1 << 12)
    found = []
    for statistics in (MlaArray.chunk_statistics, lambda _: None):
        monkeypatch.setattr(MlaArray, "chunk_statistics", statistics)
        with measure() as measured:
            build_overviews(tmp_path / "a.mla", levels=2, mode="w")
        files = [Path(level_path(tmp_path / "a.mla", level)).read_bytes() for level in (1, 2)]
        found.append((files, measured.stats.bytes_useful))
    (with_statistics, n_read), (without, n_all) = found
    assert with_statistics == without
    assert n_read * 4 < n_all == values.nbytes
    assert_levels(tmp_path / "a.mla", reduce_mean(values, [(2, 2, 2), (4, 4, 4)]))
