"""Viewers from the npm registry in a headless browser, beside a server of data.

``python -m tests.browser_viewers --screenshot FILE`` takes the picture of the documentation.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import tempfile
import urllib.parse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from PIL import Image

import mlarray_xr
from mlarray_xr.explore.phantom import phantom_part
from mlarray_xr.serving.server import served
from tests.jupyterlab import visit
from tests.viewer_bundles import serve_bundles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from playwright.sync_api import Page, Response

    from tests.jupyterlab import Visit

__all__ = [
    "Answers",
    "Neuroglancer",
    "NiiVue",
    "Pages",
    "open_pages",
    "state_of",
    "take_picture",
    "write_head",
]

_SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }"

_PICTURE_SHAPE = (240, 288, 240)
_PICTURE_PLACE = (0.1, 0.02, 0.05)
"""Between -0.5 and 0.5 along x, y and z: ventricles and deep nuclei are there."""
_UPRIGHT = [1, 0, 0, 0]
_FROM_ABOVE = [0.342, 0.781, -0.479, -0.21]
"""Quaternions: y and z point up, not down; seen from where x, y and z are large."""
_PICTURE_SHADER = """
#uicontrol invlerp normalized(range=[0, 1500])
#uicontrol invlerp projected(range=[300, 1900])
void main() { emitGrayscale(VOLUME_RENDERING ? projected() : normalized()); }
"""

_READY = """
() => {
  const layers = window.viewer?.layerManager.managedLayers ?? [];
  const failed = layers.flatMap((layer) => layer.layer?.dataSources ?? [])
    .map((source) => source.loadState?.error).find((error) => error !== undefined);
  if (failed !== undefined) throw failed;
  return layers.length > 0 && viewer.isReady();
}
"""

_PLANE = """
() => {
  const { display } = viewer;
  const panel = [...display.panels].find((panel) => panel.sliceView !== undefined);
  display.draw(); // the browser forgets what is on the canvas when this task ends
  const { width, height } = panel.renderViewport;
  return {
    png: display.canvas.toDataURL().split(",")[1],
    box: [panel.canvasRelativeClippedLeft, panel.canvasRelativeClippedTop, width, height],
  };
}
"""

_VOXELS = """
() => {
  const { img, hdr } = viewer.volumes[0];
  const bytes = new Uint8Array(img.buffer, img.byteOffset, img.byteLength);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return { bytes: btoa(text), type: img.constructor.name, shape: hdr.dims.slice(1, 4).reverse() };
}
"""

_VALUES = """
(positions) => {
  const { layer } = viewer.layerManager.managedLayers[0];
  const nothing = { pickedRenderLayer: null };
  return positions.map((position) => layer.getValueAt(Float32Array.from(position), nothing));
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a page was answered by one server."""

    url: str
    """Address of the server."""
    all: list[Response] = field(default_factory=list)
    """In the order in which they came."""

    def listen(self, page: Page) -> None:
        """Note the answers that a page gets from now on."""
        page.on("response", lambda got: self.all.append(got) if self._is_ours(got) else None)

    def chunks(self, path: str) -> list[Response]:
        """Return the answers about chunks of an array."""
        return [got for got in self.all if got.url.startswith(f"{self.url}/{path}/c/")]

    def _is_ours(self, got: Response) -> bool:
        """Whether this server gave an answer."""
        return got.url.startswith(f"{self.url}/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """A browser, and where it finds the viewers."""

    seen: Visit
    """The page that is open, and what it complained about."""
    url: str
    """Address of the server of the bundles."""


@contextlib.contextmanager
def open_pages(*, width: int = 1000, height: int = 700) -> Iterator[Pages]:
    """Open a browser for the viewers."""
    with serve_bundles() as url, visit(width=width, height=height) as seen:
        yield Pages(seen=seen, url=url)


@dataclass(frozen=True, slots=True, kw_only=True)
class NiiVue:
    """NiiVue in the page."""

    pages: Pages
    """Where it is opened."""

    def show(self, url: str) -> None:
        """Load the page and the finest level of an OME-Zarr image, and wait until it is there."""
        page = self.pages.seen.page
        page.goto(f"{self.pages.url}/niivue.html")
        page.wait_for_function("window.load !== undefined")
        page.evaluate("(url) => window.load(url, 0)", url)
        page.wait_for_function("!viewer.volumes[0].zarrHelper.isUpdating")

    def voxels(self) -> NDArray[np.int16]:
        """Return the voxels that it has, along z, y and x."""
        found = self.pages.seen.page.evaluate(_VOXELS)
        assert found["type"] == "Int16Array"
        return np.frombuffer(base64.b64decode(found["bytes"]), "<i2").reshape(found["shape"])

    def affine(self) -> NDArray[np.float64]:
        """Return the affine from voxels to millimetres, both in the order x, y, z."""
        return np.array(self.pages.seen.page.evaluate("viewer.volumes[0].hdr.affine"), np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuroglancer:
    """Neuroglancer in the page."""

    pages: Pages
    """Where it is opened."""

    def show(self, state: Mapping[str, Any]) -> None:
        """Load the page with a state, as a link would, and wait until all of it is drawn."""
        page = self.pages.seen.page
        page.goto("about:blank")  # of an address with another state alone nothing is loaded
        page.goto(f"{self.pages.url}/neuroglancer.html#!{urllib.parse.quote(json.dumps(state))}")
        page.wait_for_function(_READY, polling=100)

    def plane(self) -> NDArray[np.uint8]:
        """Return the grey values of the one cross-section on the screen: rows and columns.

        Raises
        ------
        AssertionError
            When it has colours.
        """
        found = self.pages.seen.page.evaluate(_PLANE)
        with Image.open(io.BytesIO(base64.b64decode(found["png"]))) as picture:
            canvas = np.asarray(picture.convert("RGB"))
        left, top, width, height = found["box"]
        plane = canvas[top : top + height, left : left + width]
        assert (plane == plane[..., :1]).all()
        return plane[..., 0]

    def values(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what the first layer has at positions, NaN where nothing was loaded."""
        found = self.pages.seen.page.evaluate(_VALUES, positions.tolist())
        return np.array([np.nan if value is None else value for value in found], np.float64)

    def hover(self, down: float, right: float) -> None:
        """Move the mouse over a place of the cross-section, pixels from its upper left corner."""
        page = self.pages.seen.page
        left, top, _, _ = page.evaluate(_PLANE)["box"]
        canvas = page.locator("canvas").first.bounding_box()
        assert canvas is not None
        page.mouse.move(canvas["x"] + left + right, canvas["y"] + top + down)

    def wait_for_told(self, value: int) -> None:
        """Wait until the viewer says that this is the value below the mouse."""
        self.pages.seen.page.wait_for_function(
            "(text) => document.querySelector('.neuroglancer-layer-item-value')"
            "?.textContent === text",
            arg=str(value),
        )


def state_of(
    url: str, *, spacing_mm: Sequence[float], window: tuple[float, float]
) -> dict[str, Any]:
    """Return the state that shows a Zarr group from black to white.

    Parameters
    ----------
    url
        Address of the group.
    spacing_mm
        Along z, y and x: lengths are told in voxels, whose size the state has to say.
    window
        Values that are black and white.
    """
    layer = {
        "type": "image",
        "name": url.rpartition("/")[2],
        "source": f"{url}/|zarr3:",
        "opacity": 1,
        "blend": "default",
        "shader": _SHADER,
        "shaderControls": {"normalized": {"range": list(window)}},
    }
    steps = zip("xyz", reversed(spacing_mm), strict=True)
    return {
        "layers": [layer],
        "dimensions": {dim: [step / 1000, "m"] for dim, step in steps},
        "crossSectionBackgroundColor": "#000000",
        "projectionBackgroundColor": "#000000",
        "showDefaultAnnotations": False,
    }


def write_head(
    path: Path,
    *,
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    chunks: tuple[int, int, int] | None = None,
) -> NDArray[np.int16]:
    """Write a head and one overview of it; return its voxels.

    Parameters
    ----------
    path
        Of the file. The middle of the head is the origin of the world.
    shape, spacing_mm, chunks
        Along z, y and x.
    """
    z, y, x = shape
    values = phantom_part(((0, z), (0, y), (0, x)), shape=shape)
    places = {
        dim: (dim, step * (np.arange(n) - (n - 1) / 2), {"units": "mm"})
        for dim, n, step in zip("zyx", shape, spacing_mm, strict=True)
    }
    image = xr.DataArray(values, dims=("z", "y", "x"), coords=places)
    mlarray_xr.to_mla(image, path, chunks=chunks)
    mlarray_xr.build_overviews(path, levels=1)
    return values


def take_picture(viewer: Neuroglancer, *, shape: tuple[int, int, int] = _PICTURE_SHAPE) -> bytes:
    """Return the PNG of a head in the viewer: three planes, and a projection of all of it."""
    spacing_mm = (0.75, 0.75, 0.75)
    zoom = shape[0] / _PICTURE_SHAPE[0]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "head.mla"
        write_head(path, shape=shape, spacing_mm=spacing_mm)
        with served([path]) as address:
            url = f"{address}zarr/head.mla"
            state = state_of(url, spacing_mm=spacing_mm, window=(0, 1500))
            state |= {
                "position": [u * n for u, n in zip(_PICTURE_PLACE, reversed(shape), strict=True)],
                "layout": "4panel",
                "crossSectionScale": 0.83 * zoom,
                "crossSectionOrientation": _UPRIGHT,
                "projectionScale": 300 * zoom,
                "projectionOrientation": _FROM_ABOVE,
                "showSlices": False,
            }
            state["layers"][0] |= {
                "shader": _PICTURE_SHADER,
                "volumeRendering": "max",
                "volumeRenderingDepthSamples": 512,
            }
            viewer.show(state)
            viewer.pages.seen.page.evaluate("viewer.display.draw()")
            return viewer.pages.seen.page.screenshot()


def main() -> None:
    """Take the picture of the documentation."""
    parser = argparse.ArgumentParser(prog="python -m tests.browser_viewers")
    parser.add_argument("--screenshot", type=Path, required=True, metavar="FILE", help="a PNG")
    target = parser.parse_args().screenshot
    with open_pages(width=1000, height=800) as pages:
        png = take_picture(Neuroglancer(pages=pages))
    if pages.seen.complaints:
        raise SystemExit(f"the browser complains: {pages.seen.complaints}")
    target.write_bytes(png)


if __name__ == "__main__":
    main()
