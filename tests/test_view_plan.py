"""What a viewer decides without reading: requests, states, and what it keeps."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mlarray_xr.errors import ConversionError
from mlarray_xr.explore.plane_cache import PlaneCache
from mlarray_xr.explore.plane_worker import LatestWins
from mlarray_xr.explore.scene import scene_of
from mlarray_xr.explore.viewer_state import ViewerState, first_state
from mlarray_xr.planning.plane_request import Level, VisiblePlane, level_factors, plan_plane

if TYPE_CHECKING:
    from collections.abc import Callable

VOLUME = xr.DataArray(
    np.zeros((3, 20, 30, 40), np.int8),
    dims=("time", "z", "y", "x"),
    coords={"z": 5.0 * np.arange(20), "y": 1.0 * np.arange(30), "x": 0.5 * np.arange(40)},
)
STATE = first_state(scene_of(VOLUME), size_px=200, window=(0, 1))
floats = st.floats(-1e9, 1e9, allow_nan=False)


@st.composite
def requests(draw: st.DrawFn) -> tuple[list[Level], VisiblePlane, int]:
    """Levels of an array, what is seen of it, and how many samples a slab may have."""
    shape = tuple(draw(st.lists(st.integers(1, 3000), min_size=2, max_size=4)))
    levels = []
    for doublings in range(draw(st.integers(0, 3)) + 1):
        factors = tuple(draw(st.sampled_from([1 << doublings, 1])) for _ in shape)
        chunks = tuple(draw(st.integers(1, 600)) for _ in shape)
        levels.append(
            Level(
                shape=tuple(-(-n // f) for n, f in zip(shape, factors, strict=True)),
                factors=factors,
                chunks=chunks,
                blocks=tuple(draw(st.integers(1, c)) for c in chunks),
            )
        )
    rows, columns, *_ = draw(st.permutations(range(len(shape))))
    edges = st.tuples(floats, floats).map(lambda pair: (min(pair), max(pair)))
    scales = st.floats(1e-3, 1e6)
    seen = VisiblePlane(
        rows=rows,
        columns=columns,
        position=tuple(draw(st.integers(0, n - 1)) for n in shape),
        visible=(draw(edges), draw(edges)),
        voxels_per_px=(draw(scales), draw(scales)),
        scroll=draw(st.sampled_from(range(len(shape)))),
    )
    return levels, seen, draw(st.integers(1, 1 << 22))


@given(requests())
def test_a_request_is_inside_has_samples_and_holds_the_position(
    asked: tuple[list[Level], VisiblePlane, int],
) -> None:
    levels, seen, room = asked
    request = plan_plane(levels, seen, itemsize=2, slab_bytes=2 * room)
    level = levels[request.slab.level]
    counts = []
    for axis, (start, stop) in enumerate(request.slab.box):
        n, factor, stride = level.shape[axis], level.factors[axis], request.slab.strides[axis]
        taken = request.slab.slices()[axis]
        samples = range(taken.start, taken.stop, taken.step)
        counts.append(len(samples))
        assert 0 <= start < stop <= n
        assert samples
        assert samples[-1] < n
        if axis in (seen.rows, seen.columns):
            first, last = request.extent[axis == seen.columns]
            assert (first, last) == (start * factor, (start + len(samples) * stride) * factor)
        else:
            index = request.index[axis]
            assert isinstance(index, int)
            assert start + index == min(seen.position[axis] // factor, n - 1)
            assert index < stop - start
            assert stride == 1
    plane = counts[seen.rows] * counts[seen.columns]
    assert math.prod(counts) <= max(room, plane)


@given(requests())
def test_what_is_visible_is_read_with_a_sample_for_nearly_every_pixel(
    asked: tuple[list[Level], VisiblePlane, int],
) -> None:
    levels, seen, _ = asked
    request = plan_plane(levels, seen, itemsize=1, slab_bytes=1 << 20)
    level = levels[request.slab.level]
    for axis, edges, per_px, extent in zip(
        (seen.rows, seen.columns), seen.visible, seen.voxels_per_px, request.extent, strict=True
    ):
        n = level.shape[axis] * level.factors[axis]
        per_sample = request.slab.strides[axis] * level.factors[axis]
        low, high = (min(max(edge, 0), n) for edge in edges)
        assert extent[0] <= low or low >= n - per_sample
        # Up to half a sample is left away at the end of the image.
        assert extent[1] >= high - per_sample
        assert per_sample <= max(1.2 * per_px, 1, level.factors[axis] if level is levels[0] else 1)


def test_far_away_an_overview_is_read_and_near_by_a_box_of_the_image() -> None:
    def level(n: int, factor: int) -> Level:
        return Level(shape=(n,) * 3, factors=(factor,) * 3, chunks=(64,) * 3, blocks=(16,) * 3)

    levels = [level(2048, 1), level(1024, 2), level(512, 4), level(256, 8)]
    state = first_state(
        replace(
            scene_of(xr.DataArray(np.zeros((1, 1, 1)), dims=("z", "y", "x"))), shape=(2048,) * 3
        ),
        size_px=512,
        window=(0, 1),
    )
    far = plan_plane(levels, state.visible, itemsize=2, slab_bytes=1 << 25)
    assert (far.slab.level, far.slab.box) == (2, ((256, 272), (0, 512), (0, 512)))
    near = state.looked((1000, 300), 1.0)
    close = plan_plane(levels, near.visible, itemsize=2, slab_bytes=1 << 25)
    assert (close.slab.level, close.slab.strides) == (0, (1, 1, 1))
    assert close.slab.box == ((1024, 1040), (640, 1280), (0, 640))


def test_the_same_slab_serves_all_slices_of_a_block_and_small_moves() -> None:
    level = Level(
        shape=(64, 4000, 4000), factors=(1,) * 3, chunks=(64, 512, 512), blocks=(32, 64, 64)
    )
    seen = VisiblePlane(
        rows=1, columns=2, position=(0, 0, 0), visible=((700, 1200), (650, 1160)),
        voxels_per_px=(1, 1), scroll=0,
    )  # fmt: skip
    slabs = {
        plan_plane(
            [level],
            replace(seen, position=(z, 0, 0), visible=((700 + z, 1200 + z), (650 + z, 1160 + z))),
            itemsize=2,
            slab_bytes=1 << 26,
        ).slab
        for z in range(64)
    }
    assert [slab.box[0] for slab in sorted(slabs, key=lambda s: s.box)] == [(0, 32), (32, 64)]


@pytest.mark.parametrize(
    ("shape", "coarse", "factors"),
    [
        ((5, 9), (5, 9), (1, 1)),
        ((5, 9), (3, 3), (2, 4)),
        ((5, 9), (1, 9), (8, 1)),
        ((9,), (4,), None),
    ],
)
def test_factors_follow_from_extents(
    shape: tuple[int, ...], coarse: tuple[int, ...], factors: tuple[int, ...] | None
) -> None:
    assert level_factors(shape, coarse) == factors


changes = st.one_of(
    st.builds(lambda dim, at: lambda s: s.moved({dim: at}), st.sampled_from(VOLUME.dims), floats),
    st.builds(lambda steps: lambda s: s.scrolled(steps), st.integers(-(2**40), 2**40)),
    st.builds(lambda r, c: lambda s: s.picked(r, c), floats, floats),
    st.builds(
        lambda r, c, z: lambda s: s.looked((r, c), z), floats, floats, st.floats(-1e300, 1e300)
    ),
    st.builds(lambda f: lambda s: s.zoomed(f), st.floats(0, 1e100)),
    st.builds(lambda name: lambda s: s.on_plane(name), st.sampled_from(["y, x", "z, x", "z, y"])),
    st.just(lambda s: s.fitted()),
)


@given(st.lists(changes, max_size=12))
def test_no_transition_leaves_the_image(made: list[Callable[[ViewerState], ViewerState]]) -> None:
    state = STATE
    for change in made:
        state = change(state)  # checks itself
        rows, columns = state.extents
        assert 0 <= state.centre[0] <= rows
        assert 0 <= state.centre[1] <= columns
        assert 0 <= state.crosshair[0] < rows
        assert state.zooms[0] <= state.px_per_unit <= state.zooms[1]
        seen = state.visible
        assert seen.scroll not in (seen.rows, seen.columns)
        assert all(edges[0] < edges[1] for edges in seen.visible)


def test_a_click_moves_what_the_other_planes_show() -> None:
    state = STATE.scrolled(-4).picked(12.9, 31.2)
    assert state.position == (0, 6, 12, 31)
    assert (state.has_crosshair, state.crosshair) == (True, (12, 31))
    other = state.on_plane("z, x")
    assert (other.position, other.crosshair, other.scroll) == (state.position, (6, 31), "y")


def test_time_is_not_what_the_wheel_moves() -> None:
    assert STATE.scroll == "z"
    assert STATE.scrolled(3).position == (0, 13, 15, 20)
    moved = STATE.moved({"time": 2})
    assert (moved.scroll, moved.heading) == ("time", 1)
    assert moved.scrolled(-1).scroll == "z"
    assert moved.scrolled(-1).heading == -1


def test_proportions_follow_the_spacing() -> None:
    side = STATE.on_plane("z, x")
    assert side.spacing == (5.0, 0.5)
    assert side.px_per_unit == 200 / (20 * 5.0)
    assert side.visible.voxels_per_px == (0.1, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"position": (0, 0, 0, 40)},
        {"centre": (math.nan, 0.0)},
        {"px_per_unit": 0.0},
        {"window": (1.0, 1.0)},
        {"window": (0.0, math.inf)},
    ],
)
def test_a_state_that_shows_nothing_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"window|nothing can be shown"):
        replace(STATE, **change)  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no dimension 'w'"):
        STATE.moved({"w": 1})
    with pytest.raises(ValueError, match=r"there is no plane 'axial'.*'y, x'"):
        STATE.on_plane("axial")


@pytest.mark.parametrize(
    ("shape", "kind"), [((5,), "f4"), ((0, 5), "f4"), ((5, 5), "U3"), ((5, 3), "M8[s]")]
)
def test_what_has_no_plane_is_refused(shape: tuple[int, ...], kind: str) -> None:
    with pytest.raises(ConversionError, match="has no picture"):
        scene_of(xr.DataArray(np.zeros(shape, kind)))


def test_patients_stand_upright() -> None:
    affine = [[0, 0, -2, 90], [0, 2, 0, -120], [2, 0, 0, -70], [0, 0, 0, 1]]
    attrs: dict[str, object] = {"spatial_dims": "z y x", "affine": np.ravel(affine).tolist()}
    attrs |= {"coord_system": "RAS", "spatial_coords": "voxel index"}
    coords = {dim: np.arange(n) for dim, n in (("z", 4), ("y", 5), ("x", 6))}
    scene = scene_of(xr.DataArray(np.zeros((4, 5, 6)), coords=coords, attrs=attrs))
    assert [plane.name for plane in scene.planes] == ["axial", "coronal", "sagittal"]
    axial, coronal, _ = scene.planes
    assert (axial.rows, axial.columns, axial.is_flipped) == ("y", "x", True)
    assert (axial.row_letters, axial.column_letters) == (("P", "A"), ("R", "L"))
    assert (coronal.rows, coronal.is_flipped, coronal.row_letters) == ("z", True, ("I", "S"))


def test_planes_that_would_have_one_name_are_named_after_their_dimensions() -> None:
    affine = [[0, -1, 1, 0], [0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]  # y and x at 45 degrees
    attrs: dict[str, object] = {"spatial_dims": "z y x", "affine": np.ravel(affine).tolist()}
    attrs |= {"coord_system": "RAS", "spatial_coords": "voxel index"}
    coords = {dim: np.arange(n) for dim, n in (("z", 4), ("y", 5), ("x", 6))}
    scene = scene_of(xr.DataArray(np.zeros((4, 5, 6)), coords=coords, attrs=attrs))
    assert [plane.name for plane in scene.planes] == ["axial", "z, x", "z, y"]
    assert [scene.plane(plane.name) for plane in scene.planes] == list(scene.planes)


def test_dimensions_that_are_not_named_by_text_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"dimensions \[0\].*rename\(\{0: "):
        scene_of(xr.DataArray(np.zeros((4, 5)), dims=(0, "x")))


@pytest.mark.parametrize(
    ("dims", "shape", "kind", "has_colours"),
    [
        (("y", "x", "component"), (4, 5, 3), "u1", True),
        (("z", "y", "x", "rgb"), (4, 5, 6, 3), "u1", True),
        (("y", "x", "component"), (4, 5, 3), "u2", False),
        (("y", "x", "component"), (4, 5, 4), "u1", False),
        (("z", "y", "x"), (4, 5, 3), "u1", False),
    ],
)
def test_colours_are_a_last_axis_of_three_bytes(
    dims: tuple[str, ...], shape: tuple[int, ...], kind: str, has_colours: bool
) -> None:
    scene = scene_of(xr.DataArray(np.zeros(shape, kind), dims=dims))
    assert scene.has_colours is has_colours
    assert scene.dims == (dims[:-1] if has_colours else dims)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), max_size=40), st.integers(0, 100))
def test_the_cache_stays_below_its_limit_and_drops_what_was_used_longest_ago(
    asked: list[tuple[int, int]], limit: int
) -> None:
    sizes = dict(reversed(asked))
    cache = PlaneCache(limit_bytes=limit)
    kept: dict[int, int] = {}
    for key, _ in asked:
        fresh: list[int] = []
        values = cache.get(key, lambda k=key, f=fresh: f.append(1) or np.zeros(sizes[k], np.uint8))  # type: ignore[misc]
        assert values.nbytes == sizes[key]
        assert bool(fresh) is (key not in kept)
        kept.pop(key, None)
        if sizes[key] <= limit:
            kept[key] = sizes[key]
        while sum(kept.values()) > limit:
            kept.pop(next(iter(kept)))
        assert cache.kept_bytes == sum(kept.values()) <= limit
        assert all((other in cache) is (other in kept) for other in range(10))


def test_an_array_that_is_being_read_is_not_read_twice() -> None:
    cache, may_go, reads = PlaneCache(limit_bytes=100), threading.Event(), []

    def read() -> np.ndarray:
        reads.append(1)
        may_go.wait(60)
        return np.ones(3)

    got: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: got.append(cache.get("k", read))) for _ in range(4)]
    for thread in threads:
        thread.start()
    may_go.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert all(values is got[0] for values in got)


def test_a_read_that_fails_is_tried_again() -> None:
    cache = PlaneCache(limit_bytes=100)

    def fail() -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cache.get("k", fail)
    assert "k" not in cache
    assert cache.get("k", lambda: np.ones(2)).size == 2


def test_only_the_newest_of_waiting_jobs_is_done() -> None:
    worker, may_go, started, done = (
        LatestWins(name="test"),
        threading.Event(),
        threading.Event(),
        [],
    )

    def slow() -> None:
        started.set()
        may_go.wait(60)
        done.append((0, worker.is_stale))

    worker.submit(slow)
    assert started.wait(60)
    for number in (1, 2, 3):
        worker.submit(lambda n=number: done.append((n, worker.is_stale)))  # type: ignore[misc]
    may_go.set()
    worker.wait(60)
    assert done == [(0, True), (3, False)]
    worker.submit(lambda: done.append((4, worker.is_stale)))
    worker.wait(60)
    assert done[-1] == (4, False)


def test_a_job_that_fails_does_not_take_the_waiting_one_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, may_go, started = LatestWins(name="test"), threading.Event(), threading.Event()
    failed: list[type[BaseException]] = []
    done: list[int] = []
    monkeypatch.setattr(threading, "excepthook", lambda told: failed.append(told.exc_type))

    def fail() -> None:
        started.set()
        may_go.wait(60)
        raise OSError("gone")

    worker.submit(fail)
    assert started.wait(60)
    running = next(thread for thread in threading.enumerate() if thread.name == "test")
    worker.submit(lambda: done.append(1))
    may_go.set()
    worker.wait(60)
    running.join(60)
    assert (done, failed) == ([1], [OSError])
    worker.submit(lambda: done.append(2))
    worker.wait(60)
    assert done == [1, 2]
