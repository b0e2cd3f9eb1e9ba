"""The table that explains a layout: its numbers are those of the costs, its text lines up."""

from __future__ import annotations

import html
import math
import pickle
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.byte_amount import parse_bytes
from mlarray_xr.planning.caches import CacheSizes
from mlarray_xr.planning.explanation import Explanation
from mlarray_xr.planning.grid import plan_part
from mlarray_xr.planning.layout import Layout
from mlarray_xr.planning.layout_plan import plan_layout

if TYPE_CHECKING:
    from mlarray_xr.planning.read_cost import ReadCost

CACHES = CacheSizes(l1_bytes=32 << 10, l2_bytes=1 << 20, l3_bytes=2 << 20)
NUMBERS = {"chunks": "chunks", "blocks": "blocks", "times wanted": "amplification"}


def table_of(explanation: Explanation) -> list[dict[str, str]]:
    return [dict(zip(explanation.headings, row, strict=True)) for row in explanation.rows]


def check_row(row: dict[str, str], cost: ReadCost) -> None:
    """Compare a row with a cost, as closely as three digits allow."""
    shape = tuple(map(int, row["shape"].split("x"))) if row["shape"] != "()" else ()
    assert shape == cost.window
    for column, name in NUMBERS.items():
        assert float(row[column]) == pytest.approx(getattr(cost, name), rel=5.1e-3)
    assert float(row["ms"]) == pytest.approx(cost.milliseconds, rel=5.1e-3)
    held, level = row["held"].removesuffix(")").split(" (")
    amounts = {row["decoded"]: cost.decoded_bytes, held: cost.working_set_bytes}
    for text, n_bytes in amounts.items():
        assert abs(parse_bytes(text) - n_bytes) <= 1e-3 * n_bytes + 2
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 2 << 20, "memory": math.inf}
    assert cost.working_set_bytes <= sizes[level]
    smaller = [size for size in sizes.values() if size < sizes[level]]
    assert cost.working_set_bytes > max(smaller, default=0)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Draw layouts of up to three axes that are planned or given."""
    shape = tuple(draw(st.lists(st.integers(1, 300), max_size=3)))
    dtype = draw(st.sampled_from(["u1", "i2", "f8"]))
    options: dict[str, Any] = draw(
        st.fixed_dictionaries({"patch": st.integers(1, 200)})
        | st.fixed_dictionaries({"chunks": st.integers(30, 99), "blocks": st.integers(5, 99)})
    )
    return plan_layout(shape, dtype, caches=CACHES, **options)


@given(layout=layouts())
@settings(max_examples=75)
def test_every_number_is_that_of_the_cost(layout: Layout) -> None:
    basis = layout.basis
    assert basis is not None
    shape = basis.shape
    rows = table_of(layout.explain())
    windows = [window.shape for window in basis.windows]
    slices = [(*shape[:i], 1, *shape[i + 1 :]) for i, n in enumerate(shape) if n > 1]
    expected = [*windows, *slices, shape]
    assert len(rows) == len(expected)
    for row, window in zip(rows, expected, strict=True):
        check_row(row, layout.cost(window))


@given(layout=layouts())
@settings(max_examples=25)
def test_chunks_blocks_edges_and_tasks_are_counted(layout: Layout) -> None:
    assert layout.basis is not None
    shape, itemsize = layout.basis.shape, layout.basis.itemsize
    text = str(layout.explain())
    n_chunks = math.prod(-(-n // c) for n, c in zip(shape, layout.chunks, strict=True))
    stored = n_chunks * layout.chunk_bytes(itemsize)
    edges = stored / (math.prod(shape) * itemsize) - 1
    assert f"chunks {layout.chunks} of " in text
    assert f": {n_chunks} of them, edges add {edges:.0%}".replace("%", " %") in text
    assert f"blocks {layout.blocks} of " in text
    assert f": {math.prod(layout.block_grid)} in a chunk" in text
    patches = [window.shape for window in layout.basis.windows]
    patch = patches[0] if len(patches) == 1 else None
    part = plan_part(shape, layout.chunks, itemsize=itemsize, patch=patch)
    n_tasks = math.prod(-(-n // p) for n, p in zip(shape, part, strict=True))
    assert str(part) in text.splitlines()[-2]
    assert re.search(rf"\b{n_tasks}\b", text.splitlines()[-2])


@given(layout=layouts())
@settings(max_examples=25)
def test_columns_line_up(layout: Layout) -> None:
    explanation = layout.explain()
    lines = repr(explanation).splitlines()
    first = len(explanation.head)
    table = lines[first : len(lines) - len(explanation.foot)]
    assert len(table) == 1 + len(explanation.rows)
    ends = []
    for line, row in zip(table, [explanation.headings, *explanation.rows], strict=True):
        assert line == line.rstrip()
        # The first two columns begin where those above begin, the others end there.
        name, shape, *others = row
        assert line.startswith(name)
        starts = line.index(shape, len(name))
        at, line_ends = starts + len(shape), [starts]
        for cell in others:
            at = line.index(cell, at) + len(cell)
            line_ends.append(at)
        ends.append(line_ends)
        assert at == len(line)
    assert all(line_ends == ends[0] for line_ends in ends)


def test_the_text_says_it_in_words() -> None:
    layout = plan_layout(
        (60, 512, 512), "f4", chunks=(1, 512, 512), blocks=(1, 64, 64), caches=CACHES
    )
    first, second, titles = repr(layout.explain((1, 512, 512))).splitlines()[:3]
    assert first == "chunks (1, 512, 512) of 1 MiB: 60 of them, edges add 0 %"
    assert second == "blocks (1, 64, 64) of 16 KiB: 64 in a chunk"
    assert " ".join(titles.split()) == "read shape chunks blocks decoded times wanted held ms"
    rows = table_of(layout.explain((1, 512, 512)))
    assert [row["read"] for row in rows][1:3] == ["slice of axis 0", "slice of axis 1"]
    assert rows[0]["read"] == "patch"
    assert rows[0]["decoded"] == "1 MiB"
    assert rows[0]["held"] == "1 MiB (L2)"
    assert rows[-1]["read"] == "everything"
    assert rows[-1]["decoded"] == "60 MiB"
    assert str(layout.explain()).endswith("caches L1 32 KiB, L2 1 MiB, L3 2 MiB (given)")


def test_edges_are_counted() -> None:
    layout = plan_layout((10, 10), "u1", chunks=8, blocks=8)
    assert "4 of them, edges add 156 %" in str(layout.explain())


def test_axes_with_names_are_called_by_them() -> None:
    layout = plan_layout((6, 7, 8), "i2", dims=("time", "y", "x"), patch=3)
    names = [row["read"] for row in table_of(layout.explain())]
    assert names == ["patch", "slice of time", "slice of y", "slice of x", "everything"]


def test_any_patch_may_be_explained() -> None:
    layout = plan_layout((6, 70, 80), "i2", dims=("time", "y", "x"), patch=3)
    assert table_of(layout.explain(9))[0]["shape"] == "1x9x9"
    assert table_of(layout.explain({"x": 4, "y": 5}))[0]["shape"] == "1x5x4"
    assert table_of(layout.explain())[0]["shape"] == "1x3x3"
    with pytest.raises(LayoutError, match=r"patch holds 0"):
        layout.explain(0)


def test_every_window_is_a_row() -> None:
    access: Any = [((1, -1, -1), 1), ((-1, 1, 1), 9)]
    rows = table_of(plan_layout((6, 70, 80), "i2", access=access).explain())
    windows, slices = ["1x70x80", "6x1x1"], ["1x70x80", "6x1x80", "6x70x1"]
    assert [row["shape"] for row in rows] == [*windows, *slices, "6x70x80"]


@pytest.mark.parametrize("shape", [(0,), (4, 0, 9), (0, 0)])
def test_empty_arrays_have_no_table(shape: tuple[int, ...]) -> None:
    layout = plan_layout(shape, "i2", caches=CACHES)
    explanation = layout.explain()
    assert explanation.rows == ()
    assert str(explanation).splitlines() == [
        f"chunks {shape} of 0 B: 0 of them, edges add 0 %",
        f"blocks {shape} of 0 B: 0 in a chunk",
        f"caches {CACHES}",
    ]
    assert "<table" not in explanation._repr_html_()
    assert "<table" not in layout._repr_html_()


def test_scalars_are_explained() -> None:
    rows = table_of(plan_layout((), "f8", caches=CACHES).explain())
    assert [row["read"] for row in rows] == ["everything"]
    check_row(rows[0], plan_layout((), "f8", caches=CACHES).cost("default"))


def test_large_amounts_have_large_units() -> None:
    layout = plan_layout((10**6, 10**6, 10**3), "f8", chunks=500, blocks=100, caches=CACHES)
    assert "e+" not in str(layout.explain())


def test_a_layout_of_no_array_has_nothing_to_explain() -> None:
    bare = Layout(chunks=(3, 4), blocks=(3, 2))
    with pytest.raises(LayoutError, match=r"does not say of which array it is. To fix: take it"):
        bare.explain()
    assert bare._repr_html_() == "<code>Layout(chunks=(3, 4), blocks=(3, 2), patch=None)</code>"


class Tags(HTMLParser):
    """Collects the tags and the text of a page, and checks that they nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_notebooks_show_the_same_table() -> None:
    layout = plan_layout((6, 70, 80), "i2", patch=3, caches=CACHES)
    explanation = layout.explain()
    page = layout._repr_html_()
    assert page == explanation._repr_html_()
    cells = [*explanation.headings, *(cell for row in explanation.rows for cell in row)]
    assert parsed(page).cells == cells
    for line in (*explanation.head, *explanation.foot):
        assert html.escape(line) in page


HOSTILE = "<script>alert('1')</script><img src=x onerror=\"a\">&amp;</p></div>"


def test_hostile_text_is_escaped() -> None:
    caches = CacheSizes(l1_bytes=1 << 15, l2_bytes=1 << 20, l3_bytes=1 << 21, provenance=HOSTILE)
    layout = plan_layout((6, 70), "i2", patch=3, dims=(HOSTILE, "x"), caches=caches)
    tags = parsed(layout._repr_html_())
    assert set(tags.tags) == {"div", "p", "br", "table", "thead", "tbody", "tr", "th", "td"}
    assert f"slice of {HOSTILE}" in tags.cells
    assert HOSTILE in str(layout.explain())


def test_names_that_do_not_print_leave_the_table_a_table() -> None:
    layout = plan_layout((6, 70), "i2", patch=3, dims=("a\nb\x1b[2J", "x"))
    explanation = layout.explain()
    text = str(explanation)
    lines = len(explanation.head) + len(explanation.foot) + len(explanation.rows) + 1
    assert len(text.splitlines()) == lines
    assert text.replace("\n", "").isprintable()


def test_an_explanation_is_a_value() -> None:
    explanation = plan_layout((6, 70), "i2", patch=3).explain()
    assert pickle.loads(pickle.dumps(explanation)) == explanation
    assert explanation == plan_layout((6, 70), "i2", patch=3).explain()
    other = Explanation(head=("a",), rows=(("1", "22"), ("333", "4")), foot=(), headings=("x", "y"))
    assert repr(other) == "a\nx    y\n1    22\n333  4"
