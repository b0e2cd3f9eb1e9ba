"""Tables of reports, layouts, codecs and counters: the same numbers as their text, and safe."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mlarray_xr import MlaArray, measure, stats, to_mla
from mlarray_xr.html_table import facts_table, grid_table, printable
from mlarray_xr.planning.codec import Codec
from mlarray_xr.planning.codec_choice import CodecTrial, choose_codec_from, choose_codec_unseen
from mlarray_xr.storage.counters import ReadStats
from tests.html_page import parsed

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert('1')</script><img src=x onerror=\"a\">&amp;</td>"


def test_hostile_text_is_text() -> None:
    page = parsed(facts_table([(HOSTILE, HOSTILE), ("left out", "")], title=HOSTILE))
    assert page.cells == [HOSTILE, HOSTILE]
    assert HOSTILE in page.texts
    page = parsed(grid_table((HOSTILE, "b"), [(HOSTILE, "2"), ("c", HOSTILE)], title=HOSTILE))
    assert page.cells == [HOSTILE, "b", HOSTILE, "2", "c", HOSTILE]


def test_long_and_unprintable_text_is_cut_and_marked() -> None:
    assert printable("a\nb\x1b[2J") == "a?b?[2J"
    assert printable("<" * 999) == "&lt;" * 256 + "…"


def test_a_report_of_a_write_is_a_table(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (40, 50, 60), np.int16)
    report = to_mla(values, tmp_path / "<b>.mla", chunks=20, blocks=10)
    facts = parsed(report._repr_html_()).facts
    assert facts["file"] == "<b>.mla"
    assert str(tmp_path) not in report._repr_html_()
    assert facts["written"] == f"{report.n_chunks} chunks"
    assert f"ratio {report.ratio:.2f}" in facts["stored"]
    assert facts["layout"] == "chunks (20, 20, 20) of blocks (10, 10, 10)"
    assert str(report.codec) in facts["codec"]
    assert "region" not in facts
    part = replace(report, region=((0, 20), (0, 50), (20, 60)), n_resumed_chunks=2)
    facts = parsed(part._repr_html_()).facts
    assert facts["region"] == "0:20, 0:50, 20:60"
    assert facts["written"].endswith("2 of them resumed")


def test_counters_are_a_table(tmp_path: Path) -> None:
    to_mla(np.zeros((4, 5), np.int16), tmp_path / "a.mla")
    with measure() as measured:
        MlaArray(tmp_path / "a.mla")[:]
    for counted in (measured, measured.stats, ReadStats(), stats()):
        text = str(counted)
        facts = parsed(counted._repr_html_()).facts
        assert [f"{name:<16} {value}" for name, value in facts.items()] == text.splitlines()
    assert parsed(measured._repr_html_()).facts["useful"] == "40 B"


def test_codecs_are_tables() -> None:
    facts = parsed(Codec.parse("zstd-1-shuffle-trunc12")._repr_html_()).facts
    assert facts == {"codec": "zstd, level 1", "filter": "shuffle", "kept": "12 mantissa bits"}
    assert parsed(Codec.parse("lz4-5-none")._repr_html_()).facts["kept"] == "every bit"
    sizes = {"lz4hc-8": 500_000, "zstd-1": 350_000, "lz4-9-bitshuffle": 390_000}
    trials = [
        CodecTrial(codec=Codec.parse(name), itemsize=2, nbytes=10**6, stored_bytes=size)
        for name, size in sizes.items()
    ]
    choice = choose_codec_from(trials, prefer="balanced")
    page = parsed(choice._repr_html_())
    assert str(choice) in page.texts
    rows = np.array(page.cells).reshape(4, 5).tolist()
    assert rows[1][:2] == ["lz4-9-bitshuffle (chosen)", "2.56"]
    assert {row[0] for row in rows[2:]} == {"lz4hc-8", "zstd-1"}
    unseen = choose_codec_unseen(2, prefer="speed", reason=HOSTILE)
    assert any(HOSTILE in text for text in parsed(unseen._repr_html_()).texts)
