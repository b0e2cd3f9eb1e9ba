"""What remote reads may cost: requests and bytes, as a server counts them. No times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.data import make_values
from benchmarks.remote_files import stored_block_bytes
from mlarray_xr import MlaArray, to_mla
from tests.range_server import Faults, RangeServer
from tests.remote_kit import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from mlarray_xr.planning.grid import Box
    from tests.range_server import Counts

SHAPE, CHUNKS, BLOCKS = (224, 256, 200), (66, 72, 120), (22, 24, 24)
"""Chunks and blocks as the reference package chooses them for a larger volume."""
PATCHES: list[Box] = [
    ((30, 94), (70, 134), (33, 97)),
    ((0, 64),) * 3,
    ((160, 224), (192, 256), (136, 200)),
    ((66, 130), (72, 136), (120, 184)),
]
LARGE: Box = ((40, 168), (60, 188), (50, 178))


@pytest.fixture(scope="module")
def values() -> NDArray[np.int16]:
    return make_values(SHAPE, "int16")


@pytest.fixture(scope="module")
def path(values: NDArray[np.int16], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "indexed.mla"
    to_mla(values, path, chunks=CHUNKS, blocks=BLOCKS, codec="lz4hc-8", block_index=True)
    return path


@pytest.fixture
def server(path: Path) -> Iterator[RangeServer]:
    with settings(), RangeServer({"a.mla": path.read_bytes()}) as server:
        yield server


def counted(server: RangeServer, act: Callable[[], object]) -> Counts:
    server.reset_counts()
    act()
    return server.counts()


def cut(values: NDArray[np.int16], box: Box) -> NDArray[np.int16]:
    return values[tuple(slice(start, stop) for start, stop in box)]


def test_opening_takes_two_requests_and_at_most_80_kilobytes(server: RangeServer) -> None:
    done = counted(server, lambda: MlaArray(server.url("a.mla")))
    assert done.requests == 2
    assert done.bytes_sent <= 80_000
    assert {method for method, *_ in done.ranges} == {"GET"}


@pytest.mark.parametrize("box", [*PATCHES, LARGE])
def test_a_patch_takes_hardly_more_than_the_bytes_of_its_blocks(
    server: RangeServer, values: NDArray[np.int16], path: Path, box: Box
) -> None:
    array = MlaArray(server.url("a.mla"))
    needed = stored_block_bytes(path, box)
    found = []
    done = counted(server, lambda: found.append(array.read(box)))
    np.testing.assert_array_equal(found[0], cut(values, box))
    assert needed <= done.bytes_sent <= 1.15 * needed


def test_no_request_waits_for_the_answer_of_another(server: RangeServer) -> None:
    array = MlaArray(server.url("a.mla"))
    server.faults = Faults(latency_s=0.25)
    done = counted(server, lambda: array.read(PATCHES[0]))
    assert done.peak_in_flight == done.requests > 1


def test_what_was_read_once_takes_no_request(server: RangeServer) -> None:
    array = MlaArray(server.url("a.mla"))
    points = np.random.default_rng(1).integers(0, min(SHAPE), (3, 100))
    array.read(PATCHES[0])
    array[tuple(points)]
    for act in (
        lambda: array.read(PATCHES[0]),
        lambda: array.read(((40, 60), (80, 100), (40, 60))),
        lambda: array[tuple(points)],
        lambda: MlaArray.read(array, PATCHES[0], threads=1),
    ):
        assert counted(server, act).requests == 0


def test_points_take_hardly_more_than_the_bytes_of_their_blocks(
    server: RangeServer, values: NDArray[np.int16], path: Path
) -> None:
    array = MlaArray(server.url("a.mla"))
    rng = np.random.default_rng(2)
    points = np.stack([rng.integers(0, n, 100) for n in SHAPE])
    places = {
        tuple(
            (p % c // b * b + p // c * c).item()
            for p, c, b in zip(row, CHUNKS, BLOCKS, strict=True)
        )
        for row in points.T
    }
    needed = sum(stored_block_bytes(path, tuple((p, p + 1) for p in place)) for place in places)
    found = []
    done = counted(server, lambda: found.append(array[tuple(points)]))
    np.testing.assert_array_equal(found[0], values[tuple(points)])
    assert needed <= done.bytes_sent <= 1.15 * needed
    assert done.requests <= len(places)
