"""The rules of the reference package: parity with it, numbers that stay pinned, every refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import blosc2
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlarray_xr.errors import LayoutError
from mlarray_xr.planning.reference_rules import STRATEGIES, reference_layout

if TYPE_CHECKING:
    from collections.abc import Callable

HALVING, GROWING = STRATEGIES
# Shape, which of its axes are spatial, patch, item size.
Request: TypeAlias = tuple[tuple[int, ...], list[bool], tuple[int, ...], int]
Answer: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]

# Requests and what releases 0.0.53 and 0.0.54 answer to them: chunks and blocks, or the name of the
# error. The first rows are the published table, the next usual volumes, the rest drawn at random.
PINNED = Path(__file__).parent / "data" / "reference_layouts.json"


def pinned_rows() -> list[dict[str, Any]]:
    table = json.loads(PINNED.read_text(encoding="utf-8"))
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def record_installed_release() -> None:
    """Write the answers of the installed release of ``mlarray`` into its column of the table.

    Run ``python -m tests.test_reference_rules`` with 0.0.53 and again with 0.0.54 installed.
    """
    from mlarray import MLArray, __version__

    rows = pinned_rows()
    for row in rows:
        mask = [axis in row["spatial"] for axis in range(len(row["shape"]))]
        size = row["itemsize"]
        try:
            answer = MLArray.comp_blosc2_params(row["shape"], row["patch"], mask, size)
        except (IndexError, RuntimeError) as error:
            answer = type(error).__name__
        row[f"mlarray-{__version__}"] = answer
    lines = [json.dumps(list(row.values()), separators=(",", ":")) for row in rows]
    columns = json.dumps(list(rows[0]))
    table = ",\n".join(lines)
    PINNED.write_text(f'{{"columns": {columns},\n"rows": [\n{table}\n]}}\n', encoding="utf-8")


def reference_rule(strategy: str) -> Callable[..., tuple[list[int], list[int]]]:
    # Imported on use: release 0.0.53, which records its answers here, has no such module.
    from mlarray import blosc2_layout_strategies as rules

    rule: Callable[..., tuple[list[int], list[int]]] = {
        HALVING: rules.comp_blosc2_params_baseline,
        GROWING: rules.comp_blosc2_params_spatial_only_magnitude,
    }[strategy]
    return rule


def nests(chunks: list[int], blocks: list[int]) -> bool:
    return all(block <= chunk for chunk, block in zip(chunks, blocks, strict=True))


def answer_of_the_reference(strategy: str, request: Request) -> Answer | None:
    """Return what the installed reference answers; None where Blosc2 could not use it."""
    shape, mask, patch, size = request
    try:
        chunks, blocks = reference_rule(strategy)(shape, patch, mask, bytes_per_pixel=size)
    except (IndexError, RuntimeError):
        return None
    return (tuple(chunks), tuple(blocks)) if nests(chunks, blocks) else None


def answer_of_ours(strategy: str, request: Request) -> Answer | None:
    shape, mask, patch, size = request
    spatial = tuple(axis for axis, is_spatial in enumerate(mask) if is_spatial)
    try:
        return reference_layout(strategy, shape, size, patch=patch, spatial=spatial)
    except LayoutError:
        return None


PUBLISHED: list[tuple[tuple[int, ...], int, tuple[int, ...], Answer | None, Answer]] = [
    ((512, 512), 4, (192, 192), ((320, 320), (64, 64)), ((320, 320), (80, 80))),
    ((512, 512), 4, (256, 256), ((448, 448), (64, 64)), ((400, 400), (80, 80))),
    (
        (128, 512, 512),
        4,
        (192, 192, 192),
        ((80, 64, 64), (16, 16, 16)),
        ((54, 54, 80), (18, 18, 20)),
    ),
    (
        (128, 512, 512),
        2,
        (192, 192, 192),
        ((128, 80, 64), (32, 16, 16)),
        ((66, 72, 120), (22, 24, 24)),
    ),
    (
        (128, 512, 512),
        1,
        (192, 192, 192),
        ((128, 160, 64), (32, 32, 16)),
        ((84, 90, 150), (28, 30, 30)),
    ),
    (
        (4, 128, 256, 256),
        4,
        (192, 192, 192),
        ((4, 80, 32, 32), (4, 16, 8, 8)),
        ((1, 54, 54, 80), (1, 18, 18, 20)),
    ),
    (
        (10, 4, 64, 128, 128),
        4,
        (192, 192, 192),
        None,
        ((1, 1, 64, 54, 80), (1, 1, 18, 18, 20)),
    ),
    (
        (60, 512, 512),
        4,
        (1, 512, 512),
        ((1, 512, 512), (1, 64, 64)),
        ((6, 2, 512), (6, 2, 512)),
    ),
]


@pytest.mark.parametrize(("shape", "itemsize", "patch", "halving", "growing"), PUBLISHED)
def test_the_published_table_of_the_reference(
    shape: tuple[int, ...],
    itemsize: int,
    patch: tuple[int, ...],
    halving: Answer | None,
    growing: Answer,
) -> None:
    mask = [axis >= len(shape) - len(patch) for axis in range(len(shape))]
    request = (shape, mask, patch, itemsize)
    assert answer_of_ours(HALVING, request) == halving
    assert answer_of_ours(GROWING, request) == growing


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_recorded_answers_of_both_releases_stay_ours(strategy: str) -> None:
    wrong, answered, refused = [], 0, 0
    for row in pinned_rows():
        mask = [axis in row["spatial"] for axis in range(len(row["shape"]))]
        request = (tuple(row["shape"]), mask, tuple(row["patch"]), row["itemsize"])
        recorded = row[strategy]
        usable = not isinstance(recorded, str) and nests(*recorded)
        answered, refused = answered + usable, refused + (not usable)
        expected = tuple(map(tuple, recorded)) if usable else None
        ours = answer_of_ours(strategy, request)
        if ours != expected:
            wrong.append((request, recorded, ours))
    assert not wrong
    assert answered > 250
    assert refused > 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_blosc2_takes_every_recorded_answer_we_give_and_none_that_we_refuse(strategy: str) -> None:
    for row in pinned_rows():
        if isinstance(row[strategy], str) or math.prod(row["shape"]) * row["itemsize"] > 2**30:
            continue
        chunks, blocks = row[strategy]
        wanted = {"dtype": f"V{row['itemsize']}", "chunks": chunks, "blocks": blocks}
        if nests(chunks, blocks):
            array = blosc2.uninit(row["shape"], **wanted)
            assert (array.chunks, array.blocks) == (tuple(chunks), tuple(blocks))
        else:
            with pytest.raises(ValueError, match="blocks cannot be greater than chunks"):
                blosc2.uninit(row["shape"], **wanted)


extent = st.one_of(st.sampled_from([1, 2, 3, 7, 64]), st.integers(1, 100), st.integers(1, 3000))
patch_extent = st.one_of(
    st.sampled_from([1, 2, 32, 64, 128, 192]), st.integers(1, 40), st.integers(1, 700)
)
itemsize = st.one_of(
    st.integers(1, 16), st.sampled_from([24, 100, 255]), st.sampled_from([13_108, 26_214, 30_000])
)


@st.composite
def requests_for_halving(draw: st.DrawFn) -> Request:
    mask = [True] * draw(st.sampled_from([2, 3]))
    if draw(st.booleans()):
        mask.insert(draw(st.integers(0, len(mask))), False)
    shape = tuple(draw(extent) for _ in mask)
    patch = tuple(draw(patch_extent) for spatial in mask if spatial)
    return shape, mask, patch, draw(itemsize)


@st.composite
def requests_for_growing(draw: st.DrawFn) -> Request:
    mask = draw(st.lists(st.booleans(), min_size=1, max_size=6).filter(any))
    shape = tuple(draw(extent) for _ in mask)
    patch = tuple(draw(patch_extent) for spatial in mask if spatial)
    return shape, mask, patch, draw(itemsize)


@given(request=requests_for_halving())
@settings(max_examples=800, deadline=None)
@example(request=((60, 512, 512), [True] * 3, (1, 512, 512), 4))
@example(request=((512, 60, 512), [True] * 3, (512, 1, 512), 4))
@example(request=((561, 341), [True] * 2, (16, 192), 4))
@example(request=((150, 150), [True] * 2, (64, 64), 4))
@example(request=((9, 3, 100, 100), [True, False, True, True], (5, 64, 64), 3))
@example(request=((100, 26_214, 100), [True, False, True], (64, 64), 1))
@example(request=((100, 26_215, 100), [True, False, True], (64, 64), 1))
@example(request=((2000, 2000), [True] * 2, (2**46, 2**10 + 1), 1))
def test_the_rule_of_0_0_53_is_that_of_the_reference(request: Request) -> None:
    assert answer_of_ours(HALVING, request) == answer_of_the_reference(HALVING, request)


@given(request=requests_for_growing())
@settings(max_examples=800, deadline=None)
@example(request=((60, 512, 512), [True] * 3, (1, 512, 512), 4))
@example(request=((7, 100, 100, 100), [False, True, True, True], (2, 3, 5), 2))
@example(request=((300, 300), [True, True], (1, 1), 1))
@example(request=((100_000,), [True], (2**46,), 1))
@example(request=((3,) * 16, [True] * 16, (192,) * 16, 4))
def test_the_rule_of_0_0_54_is_that_of_the_reference(request: Request) -> None:
    assert answer_of_ours(GROWING, request) == answer_of_the_reference(GROWING, request)


@given(request=requests_for_halving(), strategy=st.sampled_from(STRATEGIES))
@settings(max_examples=300, deadline=None)
def test_layouts_nest_and_hold_plain_integers(request: Request, strategy: str) -> None:
    shape, mask, _, size = request
    answer = answer_of_ours(strategy, request)
    if answer is None:
        return
    for n, chunk, block, spatial in zip(shape, *answer, mask, strict=True):
        assert (type(chunk), type(block)) == (int, int)
        assert 1 <= block <= chunk <= n
        assert spatial or chunk == block == (n if strategy == HALVING else 1)
    assert math.prod(answer[1]) * size <= 26_214


REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"shape": (0, 9)}, STRATEGIES, r"the rule holds positive extents only"),
    ({"patch": (64, 0)}, STRATEGIES, r"the rule holds positive extents only"),
    ({"itemsize": 0}, STRATEGIES, r"of 0-byte elements .* positive extents only"),
    ({"patch": (), "spatial": ()}, STRATEGIES, r"holds no array without a spatial axis"),
    ({"shape": (), "patch": (), "spatial": ()}, STRATEGIES, r"without a spatial axis"),
    ({"patch": (64,) * 3}, STRATEGIES, r"patch \(64, 64, 64\) on axes \(0, 1\); .* one entry per"),
    ({"spatial": (1, 0)}, STRATEGIES, r"on axes \(1, 0\); spatial axes must be ascending"),
    ({"spatial": (0, 2)}, STRATEGIES, r"ascending axis numbers of the shape"),
    ({"spatial": (0, 0)}, STRATEGIES, r"ascending axis numbers of the shape"),
    ({"patch": (64, 2**46 + 1)}, STRATEGIES, r"holds patch extents up to 70368744177664"),
    (
        {"shape": (9,) * 3, "patch": (2**21,) * 3, "spatial": (0, 1, 2)},
        (HALVING,),
        r"counts bytes in 64-bit integers, which overflow",
    ),
    ({"patch": (64,), "spatial": (1,)}, (HALVING,), r"2 or 3 spatial axes and at most one other"),
    (
        {"shape": (9,) * 4, "patch": (64,) * 4, "spatial": (0, 1, 2, 3)},
        (HALVING,),
        r"2 or 3 spatial axes and at most one other",
    ),
    (
        {"shape": (2, 3, 90, 90), "spatial": (2, 3)},
        (HALVING,),
        r"strategy='mlarray-0.0.53' was asked for shape \(2, 3, 90, 90\) of 4-byte elements with "
        r"patch \(64, 64\) on axes \(2, 3\); the rule holds 2 or 3 spatial axes and at most one",
    ),
    (
        {"shape": (7000, 90, 90), "spatial": (1, 2)},
        (HALVING,),
        r"other axes, \(7000,\) here, and one voxel with all of them takes 28000 bytes where",
    ),
    ({"itemsize": 26_215}, (HALVING,), r"takes 26215 bytes where a block holds 26214"),
    (
        {"shape": (588, 548), "patch": (512, 1)},
        (HALVING,),
        r"never along an axis with a patch of 1, and only such axes are left",
    ),
    (
        {"shape": (561, 341), "patch": (16, 192)},
        (HALVING,),
        r"makes blocks \(16, 256\) in chunks \(32, 85\), and a block must fit its chunk",
    ),
    ({"itemsize": 6554}, (GROWING,), r"starts with 2 per spatial axis, \(2, 2\) here, .* 26214"),
    ({"itemsize": 30_000, "shape": (1, 1)}, (GROWING,), r"starts with .*, \(1, 1\) here"),
]


@pytest.mark.parametrize(("change", "strategies", "message"), REFUSED)
def test_what_a_rule_does_not_hold_is_refused(
    change: dict[str, Any], strategies: tuple[str, ...], message: str
) -> None:
    asked: dict[str, Any] = {"shape": (90, 90), "itemsize": 4, "patch": (64, 64), "spatial": (0, 1)}
    for strategy in strategies:
        with pytest.raises(LayoutError, match=rf"{message}.*To fix: leave out strategy="):
            reference_layout(strategy, **(asked | change))


def test_unknown_strategies_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"strategy='auto' is not known; give one of \('mlarray-"):
        reference_layout("auto", (9, 9), 4, patch=(4, 4), spatial=(0, 1))


if __name__ == "__main__":
    record_installed_release()
