"""What files record of how their layout was decided: plain, ignored when damaged, of no harm."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import blosc2
import mlarray
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import mlarray_xr
from mlarray_xr.errors import LayoutError
from mlarray_xr.format.planning_entry import (
    PLANNING_BYTES,
    PLANNING_NAME,
    decode_planning,
    encode_planning,
)
from mlarray_xr.planning.access import Window
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout
from mlarray_xr.storage.planning_record import checked_planning, planning_facts
from tests.frame_kit import make_frame

if TYPE_CHECKING:
    from pathlib import Path

CACHES = CacheSizes(l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=2 << 20)
SPELLED = "l1=32KiB,l2=1MiB,l3=2MiB"
VALUES = np.random.default_rng(5).integers(-99, 99, (20, 30, 40), "i2")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def planned_of(path: Any) -> dict[str, Any]:
    planned = mlarray_xr.MlaArray(path).info()["planned"]
    assert isinstance(planned, dict)
    return planned


def entries_of(path: Path) -> dict[str, Any]:
    """Return the metadata entries of a file, as python-blosc2 reads them."""
    array = blosc2.open(str(path), mode="r")  # owns what its entries are read from
    return {name: array.schunk.vlmeta[name] for name in array.schunk.vlmeta}


# ---------------------------------------------------------------------------------------------
# What files say


def test_a_file_says_what_it_was_planned_for(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, patch=(8, 9, 10), caches=SPELLED)
    assert planned_of(path) == {
        "rule": "searched",
        "caches": {**CACHES.to_plain(), "provenance": "caches="},
        "access": [[[8, 9, 10], 1.0]],
    }
    json.dumps(mlarray_xr.MlaArray(path).info())


@pytest.mark.parametrize("request_", [{}, {"patch": 7}, {"layout": "frames"}, {"layout": "series"}])
def test_every_plan_of_a_search_is_told(request_: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    series = xr.DataArray(VALUES, dims=("time", "y", "x"))
    report = mlarray_xr.to_mla(series, path, caches=SPELLED, **request_)
    basis = report.layout.basis
    planned = planned_of(path)
    assert planned["rule"] == "searched"
    assert CacheSizes.from_plain(planned["caches"]) == CACHES
    assert planned["access"] == [[list(window.shape), window.weight] for window in basis.windows]
    assert "remote" not in planned


def test_planned_layouts_are_told_of_whoever_planned_them(tmp_path: Path) -> None:
    layouts = {
        "network": plan_layout(VALUES.shape, "i2", patch=8, caches=CACHES, remote=True),
        "windows": plan_layout(
            VALUES.shape, "i2", access=[((1, -1, -1), 3), ((8, 8, 8), 0.5)], caches=CACHES
        ),
        "rule": plan_layout(VALUES.shape, "i2", strategy="mlarray-0.0.54", caches=CACHES),
    }
    found = {}
    for name, layout in layouts.items():
        mlarray_xr.to_mla(VALUES, tmp_path / f"{name}.mla", layout=layout)
        found[name] = planned_of(tmp_path / f"{name}.mla")
    assert found["network"]["remote"] is True
    assert found["network"]["caches"] == CACHES.to_plain()
    assert found["windows"]["access"] == [[[1, 30, 40], 3.0], [[8, 8, 8], 0.5]]
    assert found["rule"] == {"rule": "mlarray-0.0.54", "access": [[[20, 30, 40], 1.0]]}


def test_a_choice_of_blosc2_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, patch=None)
    assert planned_of(path) == {"rule": "Blosc2"}


@pytest.mark.parametrize("request_", [{"chunks": 10, "blocks": 5}, {"chunks": 10}])
def test_given_shapes_are_nothing_to_tell_of(request_: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, **request_)
    assert PLANNING_NAME not in entries_of(path)
    assert planned_of(path) == {}


def test_layouts_by_hand_are_nothing_to_tell_of(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, layout=Layout(chunks=(10, 10, 10), blocks=(5, 5, 5)))
    assert PLANNING_NAME not in entries_of(path)
    assert planned_of(path) == {}


def test_files_of_others_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray.MLArray(VALUES).save(str(path))
    assert planned_of(path) == {}


def test_empty_arrays_tell_as_well_and_scalars_have_nothing_to_tell(tmp_path: Path) -> None:
    mlarray_xr.to_mla(np.zeros((0, 4), "f4"), tmp_path / "empty.mla", caches=SPELLED)
    planned = planned_of(tmp_path / "empty.mla")
    assert planned["rule"] == "searched"
    assert CacheSizes.from_plain(planned["caches"]) == CACHES
    mlarray_xr.to_mla(np.zeros((), "f4"), tmp_path / "scalar.mla", caches=SPELLED)
    assert planned_of(tmp_path / "scalar.mla") == {}


def test_the_entry_is_small_and_the_same_for_the_same_write(tmp_path: Path) -> None:
    for name in "ab":
        mlarray_xr.to_mla(VALUES, tmp_path / f"{name}.mla", patch=8, caches=SPELLED, codec="lz4-1")
    assert (tmp_path / "a.mla").read_bytes() == (tmp_path / "b.mla").read_bytes()
    assert len(entries_of(tmp_path / "a.mla")[PLANNING_NAME]) < 400


def test_the_reference_reads_the_file_and_finds_its_own_entry(tmp_path: Path) -> None:
    mlarray_xr.to_mla(VALUES, tmp_path / "planned.mla", patch=8, caches=SPELLED)
    mlarray_xr.to_mla(VALUES, tmp_path / "given.mla", chunks=10, blocks=5)
    planned, given_ = (entries_of(tmp_path / f"{name}.mla") for name in ("planned", "given"))
    assert set(planned) - set(given_) == {PLANNING_NAME}
    assert isinstance(planned[PLANNING_NAME], bytes)
    own = planned["mlarray"]
    text = own if isinstance(own, str) else json.dumps(own, default=repr)
    assert "searched" not in text
    assert "l1_bytes" not in text
    theirs = mlarray.MLArray.open(str(tmp_path / "planned.mla"))
    np.testing.assert_array_equal(theirs[...], VALUES)
    layout = mlarray_xr.MlaArray(tmp_path / "planned.mla").layout
    assert tuple(theirs.meta.blosc2.chunk_size) == layout.chunks
    assert tuple(theirs.meta.blosc2.patch_size) == (8, 8, 8)


@pytest.mark.parametrize("n_windows", [100, 5_000, 20_000])
def test_a_pattern_of_many_windows_is_written_and_opened(n_windows: int, tmp_path: Path) -> None:
    windows = tuple(Window(shape=(1 + i % 20, 9, 1), weight=1 + i) for i in range(n_windows))
    layout = plan_layout(VALUES.shape, "i2", patch=8, caches=CACHES)
    assert layout.basis is not None
    layout = replace(layout, basis=replace(layout.basis, windows=windows))
    path = tmp_path / "many.mla"
    mlarray_xr.to_mla(VALUES, path, layout=layout)
    np.testing.assert_array_equal(mlarray_xr.MlaArray(path)[...], VALUES)
    planned = planned_of(path)
    if n_windows == 100:
        assert planned["access"] == [[list(window.shape), window.weight] for window in windows]


# ---------------------------------------------------------------------------------------------
# The entry

plans = st.fixed_dictionaries(
    {"rule": st.sampled_from(["searched", "Blosc2", "mlarray-0.0.54"])},
    optional={
        "access": st.lists(
            st.tuples(st.lists(st.integers(1, 10**9), max_size=4), st.floats(1e-9, 1e9)).map(list)
        ),
        "remote": st.booleans(),
    },
)


@given(facts=plans)
def test_what_is_encoded_comes_back(facts: dict[str, Any]) -> None:
    assert decode_planning(encode_planning(facts)) == facts


def test_the_same_facts_give_the_same_bytes() -> None:
    one = encode_planning({"rule": "searched", "remote": False})
    assert one == encode_planning({"remote": False, "rule": "searched"})


def test_facts_of_plans_come_back() -> None:
    layout = plan_layout((20, 30), "i2", patch=8, caches=CACHES, remote=True)
    facts = planning_facts(layout)
    assert facts is not None
    decoded = decode_planning(encode_planning(facts))
    assert checked_planning(decoded, ndim=2) == {
        "rule": "searched",
        "caches": CACHES.to_plain(),
        "access": [[[8, 8], 1.0]],
        "remote": True,
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b'"version"',
        b"{}",
        b'{"version": 2}',
        b'{"version": null}',
        b'{"version": "1"}',
        b'{"version": [1]}',
        b'{"rule": "searched"}',
        b"\xff\xfe\x00",
        b"\xc3\x28",
        b"[" * 60_000,
        b'{"a":' * 12_000 + b"1" + b"}" * 12_000,
        b'{"version": 1, "rule": ' + b"9" * 60_000 + b"}",
        b'{"version": 1, "x": "' + b"y" * PLANNING_BYTES + b'"}',
        b'{"version": 1' + b"0" * 30_000 + b"}",
    ],
    ids=lambda data: str(data[:12]),
)
def test_damaged_entries_are_none(data: bytes) -> None:
    assert decode_planning(data) is None


HUGE = 10**400

FIELDS: list[dict[str, Any]] = [
    {"rule": 3},
    {"rule": None},
    {"rule": ["searched"]},
    {"rule": "x" * 41},
    {"rule": "a\nb"},
    {"rule": "\x1b[2J"},
    {"rule": "\ud800"},
    {"caches": None},
    {"caches": []},
    {"caches": "l1=32KiB"},
    {"caches": {"l1_bytes": "32768", "l2_bytes": 1, "l3_bytes": 1}},
    {"caches": {"l1_bytes": 2, "l2_bytes": 1, "l3_bytes": 0}},
    {"caches": {"l1_bytes": 1, "l2_bytes": HUGE, "l3_bytes": HUGE}},
    {"caches": {"l1_bytes": 1.0, "l2_bytes": 2, "l3_bytes": 3}},
    {"caches": {"l1_bytes": 1, "l2_bytes": 2, "l3_bytes": 3, "provenance": [1]}},
    {"remote": "yes"},
    {"remote": 1},
    {"access": None},
    {"access": {"a": 1}},
    {"access": "ab"},
    {"access": [[[1, 1], 1.0]] * 101},
]
WINDOWS: list[Any] = [
    None,
    3,
    "ab",
    [],
    [[1, 1]],
    [[1, 1], 1, 1],
    [[1], 1],
    [[1, 1, 1], 1],
    [[1, 0], 1],
    [[1, -1], 1],
    [[1, 1.0], 1],
    [[1, True], 1],
    [["1", "1"], 1],
    [[[1], [1]], 1],
    [None, 1],
    [{"a": 1, "b": 2}, 1],
    [[1, 1], 0],
    [[1, 1], -3],
    [[1, 1], None],
    [[1, 1], "often"],
    [[1, 1], [1]],
    [[1, 1], HUGE],
    [[1, 1], -HUGE],
    [[1, 1], float("nan")],
    [[1, 1], float("inf")],
]


@pytest.mark.parametrize("facts", FIELDS, ids=str)
def test_fields_that_are_not_what_they_should_be_are_left_out(facts: dict[str, Any]) -> None:
    assert checked_planning(facts, ndim=2) == {}


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: str(window)[:30])
def test_windows_that_are_none_are_left_out(window: Any) -> None:
    sound = [[1, 2], 3.0]
    found = checked_planning({"access": [window, sound]}, ndim=2)
    assert found == {"access": [sound]}


def test_unknown_fields_are_left_out() -> None:
    assert checked_planning({"rule": "searched", "more": 1}, ndim=2) == {"rule": "searched"}
    assert checked_planning(None, ndim=2) == checked_planning({}, ndim=0) == {}


def test_hostile_provenance_is_one_line_that_prints() -> None:
    plain = {**CACHES.to_plain(), "provenance": "a\nb\x1b[2J" + "x" * 10_000}
    found = checked_planning({"caches": plain}, ndim=2)["caches"]
    assert found["provenance"].isprintable()
    assert len(found["provenance"]) <= 1000


@given(facts=st.dictionaries(st.sampled_from(["rule", "caches", "access", "remote"]), json_values))
def test_any_json_is_checked(facts: dict[str, Any]) -> None:
    found = checked_planning(json.loads(json.dumps(facts)), ndim=2)
    assert set(found) <= {"rule", "caches", "access", "remote"}
    json.dumps(found, allow_nan=False)


# ---------------------------------------------------------------------------------------------
# Hostile files


def hostile(entry: Any) -> bytes:
    return make_frame(
        VALUES, chunks=(10, 15, 20), blocks=(5, 5, 10), entries={PLANNING_NAME: entry}
    )


def entry_of(facts: Any) -> bytes:
    return json.dumps({"version": 1, **facts}).encode()


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"{",
        b"[" * 60_000,
        b"[" * 1_000_000,
        b'{"version": 1, "rule": "' + b"x" * 1_000_000 + b'"}',
        np.random.default_rng(0).bytes(1_000_000),
        b'{"version": 2, "rule": "searched"}',
        b'{"version": 1, "rule": ' + b"9" * 5000 + b"}",
        entry_of({"access": [[[1, 1, 1], HUGE]]}),
        entry_of({"access": [[[HUGE, 1, 1], 1]]}),
        entry_of({"access": [[[1] * 20_000, 1]] * 2}),
        entry_of({"caches": {"l1_bytes": HUGE, "l2_bytes": HUGE, "l3_bytes": HUGE}}),
        entry_of({"caches": "x", "rule": {}, "access": 3, "remote": []}),
        "text",
        3,
        ["a", 1],
        {"version": 1, "rule": "searched"},
        None,
    ],
    ids=lambda entry: str(entry)[:24],
)
def test_hostile_entries_say_nothing_and_harm_nothing(entry: Any) -> None:
    array = mlarray_xr.MlaArray(hostile(entry))
    assert "rule" not in array.info()["planned"]
    assert array.layout.chunks == (10, 15, 20)
    assert array.layout.explain().rows
    np.testing.assert_array_equal(array[...], VALUES)


def test_what_is_sound_of_an_entry_is_told() -> None:
    entry = entry_of({"rule": "searched", "caches": 3, "access": [[[1, 2, 3], 4], 5]})
    planned = mlarray_xr.MlaArray(hostile(entry)).info()["planned"]
    assert planned == {"rule": "searched", "access": [[[1, 2, 3], 4.0]]}


# ---------------------------------------------------------------------------------------------
# The layout of a file


def test_a_file_knows_its_layout_and_what_reading_costs(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    report = mlarray_xr.to_mla(VALUES, path, patch=(8, 9, 10), caches=SPELLED, codec="zstd-1")
    layout = mlarray_xr.MlaArray(path).layout
    assert layout == report.layout
    assert layout.patch == (8, 9, 10)
    assert layout.cost().window == (8, 9, 10)
    assert layout.cost().amplification == report.layout.cost().amplification
    assert layout.basis is not None
    assert layout.basis.codec == Codec.parse("zstd-1")
    assert layout.basis.rule == "searched"
    ratio = VALUES.nbytes / path.stat().st_size
    assert layout.basis.ratio == pytest.approx(max(1, ratio), abs=1e-3)


def test_files_of_others_know_what_reading_costs(tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray.MLArray(VALUES).save(str(path))
    array = mlarray_xr.MlaArray(path)
    assert array.layout.cost(8).window == (8, 8, 8)
    assert array.layout.explain().rows
    plain = mlarray_xr.MlaArray(make_frame(VALUES, chunks=(20, 30, 40), blocks=(7, 7, 7)))
    with pytest.raises(LayoutError, match="planned for no patch"):
        plain.layout.cost()
    assert plain.layout.cost(8).blocks > 1


def test_chunks_that_exceed_the_array_are_counted(tmp_path: Path) -> None:
    """Blosc2 stores them so; the blocks outside hold nothing and are never read."""
    small = np.arange(60, dtype="i2").reshape(6, 10)
    path = tmp_path / "a.b2nd"
    path.write_bytes(make_frame(small, chunks=(6, 16), blocks=(4, 4)))
    layout = mlarray_xr.MlaArray(path).layout
    assert layout.chunks == (6, 16)
    cost = layout.cost((6, 10))
    assert (cost.chunks, cost.blocks) == (1, 6)
    assert layout.explain().rows


@pytest.mark.parametrize("codec", ["blosclz-9-bitshuffle", "zlib-2", "lz4hc-3-none", "zstd-5"])
def test_every_codec_is_modelled(codec: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(VALUES, path, codec=codec, patch=8)
    layout = mlarray_xr.MlaArray(path).layout
    assert layout.basis is not None
    assert layout.basis.codec == Codec.parse(codec)
    assert layout.cost().milliseconds > 0


def test_filters_that_are_not_modelled_leave_the_codec_unknown() -> None:
    frame = make_frame(
        VALUES,
        chunks=(10, 15, 20),
        blocks=(5, 5, 10),
        codec=blosc2.Codec.ZSTD,
        filters=[blosc2.Filter.DELTA, blosc2.Filter.SHUFFLE],
    )
    layout = mlarray_xr.MlaArray(frame).layout
    assert layout.basis is not None
    assert layout.basis.codec is None
    assert layout.cost(8).milliseconds > 0


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0)])
def test_files_of_scalars_and_nothing_are_explained(shape: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "a.mla"
    mlarray_xr.to_mla(np.zeros(shape, "f4"), path)
    array = mlarray_xr.MlaArray(path)
    assert array.layout.chunks == shape
    assert len(array.layout.explain().rows) == (0 if 0 in shape else 1)
    array.info()
