"""The viewer in a real JupyterLab and a real browser, both on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import xarray as xr

import mlarray_xr
from tests.jupyterlab import Visit, run_jupyterlab, visit, why_not, write_notebook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Page

REASON = why_not("jupyterlab")
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"{REASON}")

NOTEBOOK = """
import mlarray_xr
from mlarray_xr.explore.view import view
viewer = view(
    mlarray_xr.open_mla("brain.mla"), labels=mlarray_xr.open_mla("labels.mla"), window=(0, 255)
)
viewer
"""
VALUES = np.broadcast_to(20 * np.arange(12, dtype=np.int16)[:, None, None], (12, 40, 60)).copy()
VALUES[:, :20, 30:] += 10
AFFINE = [[0, 0, -2, 90], [0, 2, 0, -40], [4, 0, 0, -70], [0, 0, 0, 1]]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """A notebook with the viewer, run."""
    folder, state = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("state")
    write_files(folder)
    write_notebook(folder / "viewer.ipynb", [NOTEBOOK])
    with run_jupyterlab(folder, state=state) as (url, token), visit() as seen:
        seen.open_notebook(url, token, "viewer.ipynb")
        seen.page.wait_for_selector(".mla-viewer[data-drawn]")
        yield seen


def write_files(folder: Path) -> None:
    """An image of which every slice has its own grey, and labels in a corner of it."""
    attrs = {"spatial_dims": "z y x", "affine": np.ravel(AFFINE).tolist(), "coord_system": "RAS"}
    index = {dim: np.arange(n) for dim, n in zip("zyx", VALUES.shape, strict=True)}
    image = xr.DataArray(VALUES, coords=index, attrs={**attrs, "spatial_coords": "voxel index"})
    labels = xr.zeros_like(image, dtype=np.uint8)
    labels[:, 30:, :10] = 1
    mlarray_xr.to_mla(image, folder / "brain.mla", chunks=(4, 20, 20), blocks=(2, 10, 10))
    mlarray_xr.to_mla(labels, folder / "labels.mla")


def pixel(page: Page, x: int, y: int) -> list[int]:
    """Read a pixel of the canvas back."""
    script = (
        "([x, y]) => { const canvas = document.querySelector('.mla-viewer canvas');"
        "const scale = canvas.width / canvas.clientWidth;"
        "return [...canvas.getContext('2d').getImageData(x * scale, y * scale, 1, 1).data] }"
    )
    found = page.evaluate(script, [x, y])
    return [int(value) for value in found]


def wait_for_grey(page: Page, grey: int) -> None:
    """Wait until a place without labels has a grey value."""
    page.wait_for_function(
        "grey => { const canvas = document.querySelector('.mla-viewer canvas');"
        "const scale = canvas.width / canvas.clientWidth;"
        "const data = canvas.getContext('2d').getImageData(200 * scale, 200 * scale, 1, 1).data;"
        "return Math.abs(data[0] - grey) <= 1 }",
        arg=grey,
    )


def test_planes_are_drawn_upright_with_labels_over_them(seen: Visit) -> None:
    # 60 columns of 2 mm fill 512 pixels; 40 rows fill 341, the last of them at the top.
    wait_for_grey(seen.page, 120)
    assert pixel(seen.page, 400, 300)[0] == 130  # the first rows and last columns: below, right
    assert pixel(seen.page, 400, 200)[0] == 120
    red, green, blue, _ = pixel(seen.page, 30, 120)  # labels of the last rows, first columns
    assert red > green + 40
    assert red > blue + 40
    assert pixel(seen.page, 256, 60)[:3] == [0, 0, 0]  # beside the image


def test_wheel_slider_and_keys_go_from_slice_to_slice(seen: Visit) -> None:
    page = seen.page
    canvas = page.locator(".mla-viewer canvas")
    canvas.scroll_into_view_if_needed()
    canvas.hover(position={"x": 200, "y": 200})
    page.mouse.wheel(0, 200)
    wait_for_grey(page, 8 * 20)
    readout = page.locator(".widget-readout").first
    assert readout.text_content() == "8"
    page.locator(".mla-viewer").focus()
    page.keyboard.press("ArrowUp")
    wait_for_grey(page, 9 * 20)
    readout.fill("3")
    readout.press("Enter")
    wait_for_grey(page, 3 * 20)
    page.locator(".noUi-handle").first.focus()
    page.keyboard.press("ArrowRight")
    wait_for_grey(page, 4 * 20)


def test_a_click_tells_index_world_and_value(seen: Visit) -> None:
    page = seen.page
    per_voxel = 512 / 60
    # Column 45 and row 10, from below: the last row is at the top.
    place = {"x": 45.5 * per_voxel, "y": 256 - (10.5 - 20) * per_voxel}
    page.locator(".mla-viewer canvas").click(position=place)  # type: ignore[arg-type]
    page.wait_for_selector(".mla-readout:has-text('value')")
    at = 4
    assert (page.locator(".mla-readout").text_content() or "").splitlines() == [
        f"index  z={at}  y=10  x=45",
        "world (RAS)  x = 0  y = -20  z = -54",
        f"value  {VALUES[at, 10, 45]}  label  0",
    ]
    page.locator(".widget-dropdown select").select_option("sagittal")
    page.wait_for_function("document.querySelector('.widget-readout').offsetParent === null")
    readouts = page.locator(".widget-readout:visible")
    assert readouts.first.text_content() == "45"
    page.locator(".widget-dropdown select").select_option("axial")
    wait_for_grey(page, 4 * 20)


def test_zooming_with_the_wheel_keeps_the_place_below_the_pointer(seen: Visit) -> None:
    page = seen.page
    page.locator(".mla-viewer canvas").hover(position={"x": 200, "y": 200})
    before = page.evaluate("document.querySelector('.mla-viewer').dataset.drawn")
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    page.wait_for_function(
        "before => Number(document.querySelector('.mla-viewer').dataset.drawn) > before",
        arg=int(before),
    )
    wait_for_grey(page, 4 * 20)
    page.locator("button", has_text="fit").click()
    wait_for_grey(page, 4 * 20)


def test_nothing_went_wrong_and_nothing_left_this_machine(seen: Visit) -> None:
    assert seen.complaints == []
