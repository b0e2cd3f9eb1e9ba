"""Served files in neuroglancer and NiiVue, in a real browser: they have what was written."""

from __future__ import annotations

import contextlib
import io
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import mlarray_xr
from mlarray_xr.serving.server import served
from tests.browser_viewers import (
    Answers,
    Neuroglancer,
    NiiVue,
    Pages,
    open_pages,
    state_of,
    take_picture,
    write_head,
)
from tests.viewer_bundles import UnreachableRegistryError, why_not

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from numpy.typing import NDArray

    from mlarray_xr.serving.served_chunks import Encoding

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"{REASON}")

SHAPE = (40, 96, 112)
SPACING_MM = (2.0, 0.75, 0.75)
CHUNKS = (16, 48, 48)
WINDOW = (0, 1400)
SITE = "https://viewer.example"
SLICE = 21
ROW, COLUMN = 40.0625, 50.0625
"""What is in the middle of the screen; so no pixel's middle is where two voxels meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A file and what is in it."""

    path: Path
    fine: NDArray[np.int16]
    coarse: NDArray[np.int16]
    """Its overview: half as many rows and columns, but as many of the thick slices."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Head:
    path = tmp_path_factory.mktemp("served") / "head.mla"
    fine = write_head(path, shape=SHAPE, spacing_mm=SPACING_MM, chunks=CHUNKS)
    coarse = mlarray_xr.open_mla(path.with_name("head.level1.mla")).values
    assert coarse.shape == (40, 48, 56)
    return Head(path=path, fine=fine, coarse=coarse)


@pytest.fixture(scope="module")
def opened() -> Iterator[Pages]:
    try:
        with open_pages() as pages:
            yield pages
    except UnreachableRegistryError as error:
        pytest.skip(str(error))


@pytest.fixture
def pages(opened: Pages) -> Pages:
    """Give the browser to one test, which finds complaints of its own alone."""
    opened.seen.complaints.clear()
    return opened


@pytest.fixture
def viewer(pages: Pages) -> Iterator[Neuroglancer]:
    """Give neuroglancer to one test, and check that nothing went wrong in it."""
    yield Neuroglancer(pages=pages)
    assert pages.seen.complaints == []


@pytest.fixture
def answers(pages: Pages, head: Head) -> Iterator[Answers]:
    """Serve the head from another origin than the page's; note what is asked for."""
    with served([head.path]) as address:
        answers = Answers(url=f"{address}zarr/head.mla")
        answers.listen(pages.seen.page)
        yield answers


def slice_state(url: str, *, zoom: float) -> dict[str, Any]:
    """Return the state that shows one slice, `zoom` voxels per pixel."""
    n_z, n_y, n_x = SHAPE
    return state_of(url, spacing_mm=SPACING_MM, window=WINDOW) | {
        "position": [COLUMN - n_x / 2, ROW - n_y / 2, SLICE + 0.5 - n_z / 2],
        "crossSectionScale": zoom,
        "layout": "xy",
        "showAxisLines": False,
        "showScaleBar": False,
    }


def greys(values: NDArray[np.int16], shape: tuple[int, ...], *, zoom: float) -> NDArray[np.float64]:
    """Return what a slice should look like when its middle is where the state says."""
    places = [
        np.floor(middle + (np.arange(n) + 0.5 - n / 2) * zoom).astype(int)
        for n, middle in zip(shape, (ROW, COLUMN), strict=True)
    ]
    inside = [(at >= 0) & (at < n) for at, n in zip(places, SHAPE[1:], strict=True)]
    step = SHAPE[1] // values.shape[0]
    rows, columns = (at[is_in] // step for at, is_in in zip(places, inside, strict=True))
    low, high = WINDOW
    seen = np.zeros(shape)
    bright = (values[np.ix_(rows, columns)] - low) / (high - low)
    seen[np.ix_(*inside)] = 255 * np.clip(bright, 0, 1)
    return seen


def test_a_slice_is_drawn_from_the_voxels_of_the_file(
    viewer: Neuroglancer, answers: Answers, head: Head
) -> None:
    state = slice_state(answers.url, zoom=0.25)
    with urllib.request.urlopen(answers.url.removesuffix("zarr/head.mla")) as page_of_files:
        (layer,) = state["layers"]
        assert f"<code>{layer['source']}</code>" in page_of_files.read().decode()
    viewer.show(state)
    drawn = viewer.plane()
    assert len(np.unique(drawn)) > 100
    np.testing.assert_allclose(drawn, greys(head.fine[SLICE], drawn.shape, zoom=0.25), atol=1)

    rows, columns = np.mgrid[: SHAPE[1], : SHAPE[2]]
    positions = np.stack([columns, rows, np.full_like(rows, SLICE)], axis=-1) + 0.5
    found = viewer.values((positions - np.array(SHAPE[::-1]) / 2).reshape(-1, 3))
    np.testing.assert_array_equal(found.reshape(rows.shape), head.fine[SLICE])

    chunks = answers.chunks("image")
    keys = {got.url.partition("/c/")[2] for got in chunks}
    assert keys == {f"1/{row}/{column}" for row in range(2) for column in range(3)}
    page = viewer.pages.url
    assert not answers.url.startswith(page)
    for got in answers.all:
        assert got.status == 200
        assert got.headers["access-control-allow-origin"] in ("*", page)


def test_far_away_the_overview_is_drawn_and_no_chunk_of_the_file_is_read(
    viewer: Neuroglancer, answers: Answers, head: Head
) -> None:
    viewer.show(slice_state(answers.url, zoom=2))
    drawn = viewer.plane()
    np.testing.assert_allclose(drawn, greys(head.coarse[SLICE], drawn.shape, zoom=2), atol=1)
    assert answers.chunks("level1/image")
    assert not answers.chunks("image")


def test_the_value_below_the_mouse_is_told(
    viewer: Neuroglancer, answers: Answers, head: Head
) -> None:
    viewer.show(slice_state(answers.url, zoom=0.25))
    height, width = viewer.plane().shape
    voxels = [(40, 50), (10, 30), (60, 35), (30, 80)]
    assert len({int(head.fine[SLICE, row, column]) for row, column in voxels}) == len(voxels)
    for row, column in voxels:
        viewer.hover(height / 2 + 4 * (row + 0.5 - ROW), width / 2 + 4 * (column + 0.5 - COLUMN))
        viewer.wait_for_told(int(head.fine[SLICE, row, column]))


def test_niivue_has_every_voxel_at_its_place_in_the_world(
    pages: Pages, answers: Answers, head: Head
) -> None:
    viewer = NiiVue(pages=pages)
    viewer.show(answers.url)
    np.testing.assert_array_equal(viewer.voxels(), head.fine)
    affine = np.diag([*SPACING_MM[::-1], 1])
    affine[:3, 3] = [
        -step * (n - 1) / 2 for n, step in zip(SHAPE[::-1], SPACING_MM[::-1], strict=True)
    ]
    np.testing.assert_allclose(viewer.affine(), affine)
    # It asks whether this is Zarr 2 first, and the browser complains about each answer.
    missing = [got.url for got in answers.all if got.status != 200]
    assert missing == [f"{answers.url}/.zattrs", f"{answers.url}/.zarray"]
    assert len(pages.seen.complaints) == len(missing)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "none"])
def test_other_encodings_are_understood(
    viewer: Neuroglancer, head: Head, encoding: Encoding
) -> None:
    with served([head.path], encoding=encoding) as address:
        viewer.show(slice_state(f"{address}zarr/head.mla", zoom=0.25))
        drawn = viewer.plane()
    np.testing.assert_allclose(drawn, greys(head.fine[SLICE], drawn.shape, zoom=0.25), atol=1)


@pytest.mark.parametrize("allowed", [(), (SITE,)])
def test_the_page_of_another_site_reads_only_when_it_was_allowed(
    pages: Pages, head: Head, allowed: tuple[str, ...]
) -> None:
    browser = pages.seen.page.context.browser
    assert browser is not None
    # What a user is asked when a site wants to read from this machine.
    context = browser.new_context(permissions=["local-network-access"])
    with contextlib.closing(context), served([head.path], allow_origins=allowed) as address:
        page = context.new_page()
        page.route(f"{SITE}/**", lambda route: route.fulfill(content_type="text/html", body=""))
        page.goto(f"{SITE}/")
        status = page.evaluate(
            "(url) => fetch(url).then((got) => got.status).catch(() => null)",
            f"{address}zarr/head.mla/zarr.json",
        )
    assert status == (200 if allowed else None)


def test_the_picture_of_the_documentation_has_four_panels(viewer: Neuroglancer) -> None:
    with Image.open(io.BytesIO(take_picture(viewer, shape=(40, 48, 40)))) as png:
        picture = np.asarray(png.convert("L"))
    for rows in (slice(90, 350), slice(420, 680)):
        for columns in (slice(50, 450), slice(550, 950)):
            panel = picture[rows, columns]
            assert np.ptp(panel) > 100
            assert 0.1 < (panel > 20).mean() < 0.9
