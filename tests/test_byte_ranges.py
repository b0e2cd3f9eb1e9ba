"""Byte ranges: every span in one, as few and as short as the limits allow."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.planning.byte_ranges import GAP_BYTES, RANGE_BYTES, affordable_gap, plan_ranges

SPANS = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 80)), max_size=40)


def planned(spans: list[tuple[int, int]], **limits: int) -> list[tuple[int, int, list[int]]]:
    """Plan spans given by first byte and length."""
    table: Any = np.array(spans, np.int64).reshape(-1, 2)
    ranges = plan_ranges(table[:, 0], table.sum(axis=1), **limits)
    return [(start, stop, numbers.tolist()) for start, stop, numbers in ranges]


@given(SPANS, st.integers(0, 40), st.integers(1, 200))
def test_every_span_lies_whole_in_exactly_one_range(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    ranges = planned(spans, gap_bytes=gap, range_bytes=most)
    assert sorted(n for _, _, numbers in ranges for n in numbers) == list(range(len(spans)))
    for start, stop, numbers in ranges:
        inside = [(spans[n][0], sum(spans[n])) for n in numbers]
        assert start == min(first for first, _ in inside)
        assert stop == max(end for _, end in inside)


@given(SPANS, st.integers(0, 40), st.integers(1, 200))
def test_limits_hold_and_no_two_ranges_could_have_been_one(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    ranges = planned(spans, gap_bytes=gap, range_bytes=most)
    for start, stop, numbers in ranges:
        assert stop - start <= max(most, *(spans[n][1] for n in numbers))
        end = start
        for first, length in sorted(spans[n] for n in numbers):
            assert first - end <= gap
            end = max(end, first + length)
    for (start, stop, _), (next_start, next_stop, numbers) in itertools.pairwise(ranges):
        assert start <= next_start
        # Going through the spans in order, the first of the next range did not fit any more.
        first_stop = sum(spans[numbers[0]])
        assert next_start - stop > gap or max(first_stop, stop) - start > most
        assert next_start - stop > gap or max(next_stop, stop) - start > most


@given(SPANS, st.integers(0, 40), st.integers(1, 200))
def test_the_order_of_the_spans_changes_no_range(
    spans: list[tuple[int, int]], gap: int, most: int
) -> None:
    spans = [*dict(spans).items()]  # of spans that begin together either may be the first
    there = planned(spans, gap_bytes=gap, range_bytes=most)
    back = planned(spans[::-1], gap_bytes=gap, range_bytes=most)
    assert [pair[:2] for pair in there] == [pair[:2] for pair in back]


def test_a_gap_as_large_as_allowed_is_read_over_and_a_larger_one_is_not() -> None:
    assert planned([(0, 10), (15, 5)], gap_bytes=5) == [(0, 20, [0, 1])]
    assert planned([(0, 10), (15, 5)], gap_bytes=4) == [(0, 10, [0]), (15, 20, [1])]


def test_a_range_is_as_long_as_allowed_and_no_longer() -> None:
    spans = [(0, 10), (10, 10), (20, 10)]
    assert planned(spans, range_bytes=20) == [(0, 20, [0, 1]), (20, 30, [2])]
    assert planned(spans, range_bytes=30) == [(0, 30, [0, 1, 2])]


def test_a_span_that_is_too_long_is_a_range_of_its_own() -> None:
    assert planned([(0, 10), (10, 100), (110, 10)], range_bytes=50) == [
        (0, 10, [0]), (10, 110, [1]), (110, 120, [2]),
    ]  # fmt: skip


@pytest.mark.parametrize("most", [1, 50, 1000])
def test_bytes_that_are_fetched_anyway_are_not_fetched_again(most: int) -> None:
    """Hostile chunks name the same long span for every block."""
    spans = [(7, 100)] * 20 + [(30, 5)]
    assert planned(spans, range_bytes=most) == [(7, 107, list(range(21)))]


def test_by_default_close_spans_share_requests_of_a_few_megabytes() -> None:
    assert planned([(0, 10), (10 + GAP_BYTES, 10)]) == [(0, GAP_BYTES + 20, [0, 1])]
    assert len(planned([(0, 10), (11 + GAP_BYTES, 10)])) == 2
    blocks = [(n * 100_000, 100_000) for n in range(200)]
    assert len(planned(blocks)) == -(-200 // (RANGE_BYTES // 100_000))


def test_no_spans_need_no_request() -> None:
    assert planned([]) == []


def test_offsets_of_large_objects_are_exact() -> None:
    far = 1 << 60
    assert planned([(far, 3), (far + 3, 4)]) == [(far, far + 7, [0, 1])]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 20_000)), min_size=1, max_size=40))
def test_joining_adds_an_eighth_at_most_and_as_many_gaps_as_that_allows(
    spans: list[tuple[int, int]],
) -> None:
    table = np.array(spans, np.int64)
    starts, stops = table[:, 0], table.sum(axis=1)
    gap = affordable_gap(starts, stops)
    assert 0 <= gap <= GAP_BYTES
    limits = {"range_bytes": 1 << 30}
    wanted = sum(length for _, length in spans)
    alone = sum(stop - start for start, stop, _ in planned(spans, gap_bytes=0, **limits))
    there = sum(stop - start for start, stop, _ in planned(spans, gap_bytes=gap, **limits))
    assert there - alone <= wanted / 8
    more = sorted(
        b - a
        for (_, a, _), (b, _, _) in itertools.pairwise(planned(spans, gap_bytes=gap, **limits))
    )
    if more and more[0] <= GAP_BYTES:
        larger = planned(spans, gap_bytes=more[0], **limits)
        assert sum(stop - start for start, stop, _ in larger) - alone > wanted / 8


def test_one_span_has_no_gaps() -> None:
    assert affordable_gap(np.array([5]), np.array([9])) == 0
    assert affordable_gap(np.array([], np.int64), np.array([], np.int64)) == 0
