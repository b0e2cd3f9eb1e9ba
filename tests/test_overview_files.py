"""Which files are levels of which: what survives copying, what does not, and who opens them."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from mlarray_xr import MlaArray, open_mla, to_mla
from mlarray_xr.cli_overviews import add_overviews
from mlarray_xr.errors import ConversionError, LayoutError, MlaWarning, SourceChanged, TargetBusy
from mlarray_xr.foreign.case_folder import find_cases
from mlarray_xr.ml.collection import Collection
from mlarray_xr.overview_files import find_levels, level_path, levels_of
from mlarray_xr.overview_record import OverviewRecord
from mlarray_xr.overview_siblings import names_level
from mlarray_xr.overview_write import OverviewWrite
from mlarray_xr.overviews import build_overviews
from mlarray_xr.planning.reduction import reduce_mean
from mlarray_xr.storage.job import WriteJob
from tests.range_server import RangeServer

SHAPE = (21, 34, 50)
VALUES = np.random.default_rng(1).integers(-900, 3000, SHAPE).astype("int16")
FACTORS = ((2, 2, 2), (4, 4, 4))


def image(values: Any = VALUES) -> xr.DataArray:
    coords = {dim: 0.5 * np.arange(n) for dim, n in zip("zyx", SHAPE, strict=True)}
    return xr.DataArray(values, dims=("z", "y", "x"), coords=coords)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "ct.mla"
    to_mla(image(), path, chunks=(5, 8, 16), blocks=(5, 4, 8))
    build_overviews(path, levels=2)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


ALL = ["ct.level1.mla", "ct.level2.mla", "ct.mla"]


def assert_levels(path: Path, values: Any = VALUES) -> None:
    found = [level[...] for level in find_levels(MlaArray(path))]
    assert len(found) == 3
    for one, other in zip(found, (values, *reduce_mean(values, FACTORS)), strict=True):
        np.testing.assert_array_equal(one, other)


# Names and identities


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("a/ct.mla", "a/ct.level2.mla"),
        ("ct.case1.mla", "ct.case1.level2.mla"),
        ("ct.b2nd", "ct.level2.mla"),
        ("s3://bucket/a.b/ct.mla", "s3://bucket/a.b/ct.level2.mla"),
        ("https://host/ct.mla?sig=a.mla", "https://host/ct.level2.mla?sig=a.mla"),
        ("simplecache::s3://b/ct.mla", "simplecache::s3://b/ct.level2.mla"),
        ("zip://ct.mla::https://h/a.zip?x=1", "zip://ct.level2.mla::https://h/a.zip?x=1"),
    ],
)
def test_names_of_levels(path: str, wanted: str) -> None:
    assert level_path(path, 2) == wanted
    assert level_path(path, 0) == path


@pytest.mark.parametrize("name", ["ct.mla", "ct.level0.mla", "ct.level1.mla.gz", "level1.mla"])
def test_other_names_are_no_levels(name: str) -> None:
    assert names_level("a/ct.level12.mla")
    assert not names_level(name)


def test_copies_keep_their_levels(scan: Path, tmp_path: Path) -> None:
    shutil.copytree(scan.parent, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert_levels(tmp_path / "elsewhere" / "ct.mla")


@pytest.mark.parametrize(
    "change", ["replaced", "replaced by equal bytes elsewhere", "edited", "moved"]
)
def test_levels_of_other_content_are_left_out_with_one_warning(scan: Path, change: str) -> None:
    if change == "replaced":
        to_mla(image(VALUES[::-1]), scan, mode="w", chunks=(5, 8, 16), blocks=(5, 4, 8))
    elif change == "edited":
        MlaArray(scan, mode="r+")[0, 0, 0] = 1
    elif change == "moved":
        to_mla(image().assign_coords(z=1 + 0.5 * np.arange(21)), scan, mode="w")
    else:
        scan.write_bytes(scan.read_bytes())
        assert_levels(scan)
        return
    with pytest.warns(MlaWarning, match=r"build_overviews\(path, mode='w'\)") as caught:
        assert len(find_levels(MlaArray(scan))) == 1
    assert len(caught) == 1
    build_overviews(scan, levels=2, mode="w")
    assert_levels(scan, MlaArray(scan)[...])


def test_content_without_checksums_is_told_apart(scan: Path, tmp_path: Path) -> None:
    import mlarray

    paths = [tmp_path / f"{number}.mla" for number in range(2)]
    for number, path in enumerate(paths):
        noise = np.random.default_rng(number).integers(0, 1 << 16, (64, 64, 64), "uint16")
        mlarray.MLArray(noise).save(path)
    build_overviews(paths[0], levels=1)
    level = Path(level_path(paths[0], 1))
    shutil.copyfile(paths[0], tmp_path / "copy.mla")
    shutil.copyfile(level, tmp_path / "copy.level1.mla")
    assert len(find_levels(MlaArray(tmp_path / "copy.mla"))) == 2
    shutil.copyfile(level, level_path(paths[1], 1))
    with pytest.warns(MlaWarning, match="other content"):
        assert len(find_levels(MlaArray(paths[1]))) == 1


@pytest.mark.parametrize("foreign", ["array", "text", "other level"])
def test_files_that_are_no_levels_are_left_out(scan: Path, foreign: str) -> None:
    second = scan.parent / "ct.level2.mla"
    if foreign == "array":
        to_mla(np.zeros((4, 4)), second, mode="w")
    elif foreign == "text":
        second.write_text("not a level")
    else:
        shutil.copyfile(scan.parent / "ct.level1.mla", second)
    with pytest.warns(MlaWarning, match=r"level 2 beside it is left out.*ct\.level2\.mla"):
        assert [level.shape for level in find_levels(MlaArray(scan))] == [SHAPE, (11, 17, 25)]


def test_a_level_that_lies_about_its_shape_is_left_out(scan: Path) -> None:
    record = OverviewRecord.found_in(MlaArray(level_path(scan, 1)).metadata)
    assert record is not None
    extra = record.added_to({})
    metadata = MlaArray(scan).metadata
    from dataclasses import replace

    for liar in (np.zeros((3, 3, 3), "int16"), np.zeros((11, 17, 25), "int32")):
        to_mla(liar, level_path(scan, 1), mode="w", metadata=replace(metadata, extra=extra))
        with pytest.warns(MlaWarning, match="is not that of"):
            assert len(find_levels(MlaArray(scan))) == 1


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"overview": 3},
        {"overview": {"level": 1}},
        {"overview": {"level": True, "factors": [2], "method": "mean", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": [2] * 99, "method": "mean", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": ["2"], "method": "mean", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": 2, "method": "mean", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": [0], "method": "mean", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": [2], "method": "run", "of": "0" * 32}},
        {"overview": {"level": 1, "factors": [2], "method": "mean", "of": "/etc/passwd"}},
        {"overview": {"level": 1, "factors": [2], "method": [], "of": []}},
    ],
)
def test_records_that_make_no_sense_are_none(entry: Any) -> None:
    from mlarray_xr.format.metadata import Metadata

    assert OverviewRecord.found_in(Metadata(extra={"mlarray_xr": entry})) is None


def test_what_is_computed_from_a_level_is_none(scan: Path, tmp_path: Path) -> None:
    to_mla(open_mla(scan, level=1) * 2, tmp_path / "twice.mla")
    assert OverviewRecord.found_in(MlaArray(tmp_path / "twice.mla").metadata) is None


# Writing


def test_levels_that_are_there_are_refused_and_replaced_when_asked(scan: Path) -> None:
    with pytest.raises(FileExistsError, match=r"ct\.level1\.mla.*mode='w'"):
        build_overviews(scan, levels=2)
    assert len(build_overviews(scan, levels=1, mode="w")) == 1
    assert names(scan.parent) == ["ct.level1.mla", "ct.mla"]
    assert build_overviews(scan, mode="w") == ()
    assert names(scan.parent) == ["ct.mla"]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_files_that_do_not_say_that_they_are_levels_are_never_touched(
    scan: Path, level: int
) -> None:
    other = Path(level_path(scan, level))
    other.unlink(missing_ok=True)
    to_mla(np.zeros((4, 4)), other)
    before = other.read_bytes()
    if level < 3:
        with pytest.raises(FileExistsError, match="move it away"):
            build_overviews(scan, levels=2, mode="w")
    else:
        with pytest.raises(FileExistsError, match="level 3 of anything"):
            build_overviews(scan, levels=3, mode="w")
    assert other.read_bytes() == before


def test_files_behind_a_gap_are_not_touched_either(scan: Path) -> None:
    Path(level_path(scan, 1)).unlink()
    Path(level_path(scan, 2)).write_text("mine")
    with pytest.raises(FileExistsError, match="level 2 of anything"):
        build_overviews(scan, levels=2, mode="w")
    assert Path(level_path(scan, 2)).read_text() == "mine"


def test_files_of_too_many_parts_are_refused(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlarray_xr.overviews._MOST_PARTS", 0)
    with pytest.raises(LayoutError, match="more than 0"):
        build_overviews(scan, levels=2, mode="w")
    assert_levels(scan)


def test_a_level_has_no_levels(scan: Path) -> None:
    with pytest.raises(ConversionError, match="level 1 of another file"):
        build_overviews(level_path(scan, 1))


@pytest.mark.parametrize("url", ["s3://bucket/ct.mla", "https://host/ct.mla?secret=1"])
def test_remote_files_are_refused(url: str) -> None:
    with pytest.raises(ConversionError, match="before the file is uploaded") as error:
        build_overviews(url)
    assert "secret" not in str(error.value)
    with pytest.raises(ConversionError, match="local files"):
        to_mla(VALUES, url, levels=1)


@pytest.mark.parametrize(
    "options", [{"method": "median"}, {"mode": "r+"}, {"levels": -1}, {"levels": "all"}]
)
def test_options_that_make_no_sense_are_refused(scan: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build_overviews(scan, **options)


def test_a_failure_leaves_no_half_level(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [Path(level_path(scan, level)).read_bytes() for level in (1, 2)]
    monkeypatch.setattr(OverviewWrite, "write_part", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_overviews(scan, levels=2, mode="w")
    assert names(scan.parent) == ALL
    assert [Path(level_path(scan, level)).read_bytes() for level in (1, 2)] == before


def test_what_is_published_before_a_failure_is_a_true_beginning(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_overviews(scan, mode="w")
    finish = WriteJob.finish

    def fails_at_the_second(job: WriteJob, records: Any) -> Any:
        if job.staging.target.endswith("level2.mla"):
            raise OSError("disk full")
        return finish(job, records)

    monkeypatch.setattr(WriteJob, "finish", fails_at_the_second)
    with pytest.raises(OSError, match="disk full"):
        build_overviews(scan, levels=2)
    assert names(scan.parent) == ["ct.level1.mla", "ct.mla"]
    _, level = find_levels(MlaArray(scan))
    np.testing.assert_array_equal(level[...], reduce_mean(VALUES, FACTORS)[0])


def test_a_file_that_is_replaced_meanwhile_gets_no_levels(
    scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_overviews(scan, mode="w")
    write_part = OverviewWrite.write_part

    def replaces_the_file(write: OverviewWrite, task: Any) -> Any:
        records = write_part(write, task)
        to_mla(image(VALUES // 2), scan, mode="w")
        return records

    monkeypatch.setattr(OverviewWrite, "write_part", replaces_the_file)
    with pytest.raises(SourceChanged):
        build_overviews(scan, levels=2)
    assert names(scan.parent) == ["ct.mla"]


def test_two_writers_of_levels_are_one(scan: Path) -> None:
    delayed = build_overviews(scan, levels=2, mode="w", compute=False)
    with pytest.raises(TargetBusy):
        build_overviews(scan, levels=2, mode="w")
    assert len(delayed.compute()) == 2
    assert names(scan.parent) == ALL


# to_mla


def test_arrays_are_written_with_their_levels(tmp_path: Path) -> None:
    report = to_mla(image(), tmp_path / "ct.mla", levels=2)
    assert report.path == str(tmp_path / "ct.mla")
    assert names(tmp_path) == ALL
    assert_levels(tmp_path / "ct.mla")


@pytest.mark.parametrize("compute", [True, False])
def test_values_of_a_graph_are_computed_once(tmp_path: Path, *, compute: bool) -> None:
    calls = []

    def block(values: Any) -> Any:
        calls.append(values.shape)
        return values

    source = da.from_array(VALUES, chunks=(8, 34, 50)).map_blocks(
        block, dtype=VALUES.dtype, meta=VALUES[:0]
    )
    done = to_mla(image(source), tmp_path / "ct.mla", levels=2, codec="lz4-1", compute=compute)
    if not compute:
        assert not (tmp_path / "ct.mla").exists()
        done = done.compute()
    assert done.path == str(tmp_path / "ct.mla")
    assert len(calls) == 3
    assert_levels(tmp_path / "ct.mla")


def test_datasets_get_levels_of_every_variable(tmp_path: Path) -> None:
    both = xr.Dataset({"a": image(), "b": image(VALUES // 2)})
    assert set(to_mla(both, tmp_path / "all", levels=2)) == {"a", "b"}
    assert_levels(tmp_path / "all" / "a.mla")
    assert_levels(tmp_path / "all" / "b.mla", VALUES // 2)


def test_a_replaced_file_gets_new_levels(scan: Path) -> None:
    to_mla(image(VALUES // 3), scan, mode="w", levels=2)
    assert_levels(scan, VALUES // 3)


def test_levels_in_the_way_are_refused_before_anything_is_written(scan: Path) -> None:
    scan.unlink()
    with pytest.raises(FileExistsError, match=r"ct\.level1\.mla"):
        to_mla(image(), scan, levels=2)
    assert not scan.exists()
    Path(level_path(scan, 2)).write_text("mine")
    with pytest.raises(FileExistsError, match=r"ct\.level2\.mla"):
        to_mla(image(), scan, levels=2, mode="w")
    assert names(scan.parent) == ["ct.level1.mla", "ct.level2.mla"]


def test_regions_have_no_levels(scan: Path) -> None:
    with pytest.raises(ConversionError, match="whole local files"):
        to_mla(VALUES, scan, mode="r+", levels=2)


# Opening


def test_levels_are_opened_by_number(scan: Path) -> None:
    for level, wanted in enumerate((VALUES, *reduce_mean(VALUES, FACTORS))):
        found = open_mla(scan, level=level)
        np.testing.assert_array_equal(found, wanted)
        assert found.mla.spacing == dict.fromkeys("zyx", 0.5 * 2**level)


@pytest.mark.parametrize(
    ("spacing", "level"),
    [(0.1, 0), (0.5, 0), (1, 1), (1.9, 1), (50, 2), ({"x": 1.2}, 1), ({"x": 9, "z": 0.5}, 0)],
)
def test_levels_are_opened_by_spacing(scan: Path, spacing: Any, level: int) -> None:
    found = open_mla(scan, spacing=spacing, chunks={})
    assert found.shape == find_levels(MlaArray(scan))[level].shape


def test_levels_that_are_not_there_are_named(scan: Path) -> None:
    with pytest.raises(FileNotFoundError, match="level 3 was asked for, there are levels 0 to 2"):
        open_mla(scan, level=3)
    build_overviews(scan, mode="w")
    with pytest.raises(FileNotFoundError, match="level 0 alone"):
        open_mla(scan, level=1)


@pytest.mark.parametrize(
    "options",
    [
        {"level": -1},
        {"level": True},
        {"level": 1, "spacing": 1},
        {"spacing": 0},
        {"spacing": np.nan},
        {"spacing": {"t": 1.0}},
        {"spacing": {"x": "far"}},
    ],
)
def test_wishes_that_make_no_sense_are_refused(scan: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"level=|spacing="):
        open_mla(scan, **options)


def test_a_file_in_memory_is_alone(scan: Path) -> None:
    assert len(find_levels(MlaArray(scan.read_bytes()))) == 1
    assert open_mla(scan.read_bytes(), level=0).shape == SHAPE
    assert open_mla(scan.read_bytes(), spacing=99).shape == SHAPE


def test_trees_have_a_child_for_each_level(scan: Path) -> None:
    with xr.open_datatree(scan, engine="mlarray", chunks={}) as tree:
        assert list(tree.children) == ["level0", "level1", "level2"]
        assert not tree.data_vars
        np.testing.assert_array_equal(tree["level2/image"], reduce_mean(VALUES, FACTORS)[1])
        assert tree["level1"].encoding["source"] == level_path(scan, 1)
    groups = xr.open_groups(scan, engine="mlarray")
    assert [groups[f"/level{k}"].sizes["z"] for k in range(3)] == [21, 11, 6]


@pytest.mark.parametrize("chunks", [None, {}])
def test_levels_of_an_array_are_lazy_as_it_is(scan: Path, chunks: Any) -> None:
    opened = open_mla(scan, chunks=chunks, variable="ct")
    first, *others = levels_of(opened)
    assert first is opened
    for level, wanted in zip(others, reduce_mean(VALUES, FACTORS), strict=True):
        assert (level.chunks is None) == (chunks is None)
        assert level.name == "ct"
        np.testing.assert_array_equal(level, wanted)
        assert len(levels_of(level)) == 1
    assert len(levels_of(opened[1:])) == 1


def test_remote_levels_are_found_and_only_when_asked_for(scan: Path) -> None:
    with RangeServer({name: (scan.parent / name).read_bytes() for name in ALL}) as server:
        url = server.url("ct.mla")
        open_mla(url).mean()
        assert {name for _, name, *_ in server.counts().ranges} == {"ct.mla"}
        np.testing.assert_array_equal(open_mla(url, level=2), reduce_mean(VALUES, FACTORS)[1])
        with pytest.raises(FileNotFoundError, match="levels 0 to 2"):
            open_mla(url, level=3)


# Command line


def run(*arguments: str) -> Any:
    parser = argparse.ArgumentParser()
    add_overviews(parser.add_subparsers(required=True))
    options = parser.parse_args(["overviews", *arguments])
    return options.run(options)


def test_the_command_makes_levels_and_goes_on_after_failures(scan: Path, tmp_path: Path) -> None:
    other = tmp_path / "pet.mla"
    to_mla(image(VALUES // 2), other)
    outcome = run(str(scan), str(other), str(tmp_path / "none.mla"), "--levels", "1", "--json")
    (facts,) = map(json.loads, outcome.text.splitlines())
    assert facts["path"] == str(other)
    assert [level["shape"] for level in facts["levels"]] == [[11, 17, 25]]
    assert [failure.partition(":")[0] for failure in outcome.failures] == [
        str(scan),
        str(tmp_path / "none.mla"),
    ]
    outcome = run(str(scan), "--overwrite", "--levels", "1", "--method", "mode")
    assert "level 1  11x17x25" in outcome.text
    assert "no spatial axis is so long" in run(str(scan), "--overwrite").text


def test_levels_are_no_images_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    to_mla(np.ones((16, 16, 16), "int16"), folder / "ct.mla", levels=1)
    to_mla(np.ones((4, 4, 4), "int16"), folder / "their.level1.mla")
    assert Path(level_path(folder / "ct.mla", 1)).exists()
    cases = find_cases(str(folder), str(tmp_path / "out")).cases
    assert {Path(case.source).name for case in cases} == {"ct.mla", "their.level1.mla"}
    found = Collection.from_folder(folder, pattern="{subject}.mla")
    assert set(found.subjects) == {"ct", "their.level1"}


def test_a_file_that_is_no_level_is_kept_however_the_path_is_spelled(tmp_path: Path) -> None:
    to_mla(np.ones((8, 8), "int16"), tmp_path / "ct.mla")
    to_mla(np.ones((2, 8), "int16"), tmp_path / "ct.level1.mla")
    with pytest.raises(FileExistsError):
        build_overviews((tmp_path / "ct.mla").as_uri(), levels=1, mode="w")
    assert MlaArray(tmp_path / "ct.level1.mla").shape == (2, 8)


@pytest.mark.parametrize("kind", ["folder", "fifo", "long name"])
def test_what_cannot_be_opened_is_left_out(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".mla" if kind == "long name" else "e.mla")
    shutil.copy(write_small(tmp_path), path)
    if kind == "folder":
        Path(level_path(path, 1)).mkdir()
    elif kind == "fifo":
        os.mkfifo(level_path(path, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(find_levels(MlaArray(path))) == 1
    assert [each.category for each in caught] == ([] if kind == "long name" else [MlaWarning])


def write_small(folder: Path) -> Path:
    """Write a small file and return its path."""
    to_mla(np.ones((8, 8), "int16"), folder / "small.mla")
    return folder / "small.mla"
