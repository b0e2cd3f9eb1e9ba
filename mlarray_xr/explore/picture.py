"""The door to Pillow: arrays of pixels as PNG, resized, and with text on them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mlarray_xr.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray

__all__ = ["Anchor", "png_bytes", "resized", "written_on"]

Anchor: TypeAlias = Literal["left", "right", "centre"]

_HALO = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) != (0, 0))
_FASTEST_DEFLATE = 1


def png_bytes(pixels: NDArray[np.uint8]) -> bytes:
    r"""Encode pixels as a PNG file.

    Parameters
    ----------
    pixels
        (rows, columns) grey or (rows, columns, 3) red, green and blue, uint8.

    Raises
    ------
    MissingDependencyError
        When Pillow is not installed.
    ValueError
        When the pixels have another type or shape, or there are none.

    Examples
    --------
    >>> png_bytes(np.zeros((4, 6), np.uint8))[:8]
    b'\x89PNG\r\n\x1a\n'
    """
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_picture or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise ValueError(
            f"pixels of shape {pixels.shape} and type {pixels.dtype}: uint8 of shape "
            "(rows, columns) or (rows, columns, 3) is needed"
        )
    file = io.BytesIO()
    image = _pillow().fromarray(np.ascontiguousarray(pixels))
    # The smallest of a noisy plane is 5 % smaller and takes four times as long.
    image.save(file, format="PNG", compress_level=_FASTEST_DEFLATE)
    return file.getvalue()


def resized(
    pixels: NDArray[np.uint8], *, shape: tuple[int, int], smooth: Literal["linear", "nearest"]
) -> NDArray[np.uint8]:
    """Return pixels on another number of rows and columns.

    Parameters
    ----------
    pixels
        (rows, columns) or (rows, columns, 3), uint8.
    shape
        Rows and columns of the result, at least 1.
    smooth : {"linear", "nearest"}
        Linear averages where it shrinks; nearest keeps the colours of labels.

    Examples
    --------
    >>> resized(np.array([[0, 9]], np.uint8), shape=(2, 4), smooth="nearest")
    array([[0, 0, 9, 9],
           [0, 0, 9, 9]], dtype=uint8)
    """
    pillow = _pillow()
    how = pillow.Resampling.BILINEAR if smooth == "linear" else pillow.Resampling.NEAREST
    image = pillow.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((shape[1], shape[0]), how))


def written_on(
    pixels: NDArray[np.uint8], texts: Sequence[tuple[tuple[float, float], str, Anchor]]
) -> NDArray[np.uint8]:
    """Return pixels with white texts in Pillow's own font on them, outlined in black.

    Parameters
    ----------
    pixels
        (rows, columns) or (rows, columns, 3), uint8.
    texts
        Row and column of the text's vertical middle, the text, and what of it is at the column.
    """
    _, draw, font = _pillow(), _draw(), _font()
    image = _pillow().fromarray(np.ascontiguousarray(pixels))
    pen: Any = draw.Draw(image)
    white = 255 if pixels.ndim == 2 else (255, 255, 255)
    black = 0 if pixels.ndim == 2 else (0, 0, 0)
    for (row, column), text, anchor in texts:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        shift = {"left": 0.0, "centre": (right - left) / 2, "right": right - left}[anchor]
        place = (round(column - shift - left), round(row - (bottom + top) / 2))
        for x, y in _HALO:
            pen.text((place[0] + x, place[1] + y), text, fill=black, font=font)
        pen.text(place, text, fill=white, font=font)
    return np.asarray(image)


def _pillow() -> ModuleType:
    """Return Pillow's module for images."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "pictures need Pillow, which is not installed. "
            'To fix: pip install "mlarray-xr[preview]"'
        ) from error
    return Image


def _draw() -> ModuleType:
    """Return Pillow's module for drawing."""
    from PIL import ImageDraw

    return ImageDraw


def _font() -> Any:
    """Return the font that comes with Pillow."""
    from PIL import ImageFont

    return ImageFont.load_default()
