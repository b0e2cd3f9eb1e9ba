"""The OME-XML of a TIFF file: what it may claim, and what it says about sizes and channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.tiff_metadata import Calibration, unit_name

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["OmeXml"]

_MOST_LABELS = 1 << 20
"""Bound of an axis that an annotation splits off another."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OmeXml:
    """A checked OME-XML document of one file.

    Attribute names and defaults are those of the OME schema 2016-06: sizes are in µm and times in
    s where no unit is stated.

    Examples
    --------
    >>> ome = OmeXml.parse(
    ...     '<OME><Image><Pixels SizeX="5" SizeY="4" SizeZ="1" SizeC="1" SizeT="1" '
    ...     'PhysicalSizeX="0.5" PhysicalSizeY="250" PhysicalSizeYUnit="nm"/></Image></OME>',
    ...     file_name="a.ome.tif",
    ...     n_pages=1,
    ... )
    >>> ome.calibration(0, n_images=1)
    Calibration(steps={'X': 0.5, 'Y': 250.0}, units={'X': 'um', 'Y': 'nm'}, channels=())
    """

    pixels: tuple[ElementTree.Element, ...]
    """The Pixels elements, one per image."""

    @classmethod
    def parse(cls, text: str, *, file_name: str, n_pages: int) -> OmeXml:
        """Parse and check a document before tifffile acts on it.

        tifffile makes lists as long as the document says, and opens the files that it names.

        Raises
        ------
        ConversionError
            When it is no XML, declares entities, belongs to several files, or claims more planes
            than there are pages.
        """
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ConversionError("the OME-XML declares a document type, which OME files do not")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ConversionError(f"the OME-XML is broken: {error}") from error
        _check_one_file(root, file_name)
        _check_labels(root)
        ome = cls(pixels=tuple(_children(root, "Image", "Pixels")))
        for pixels in ome.pixels:
            _check_planes(pixels, n_pages)
        return ome

    def calibration(self, index: int, *, n_images: int) -> Calibration:
        """Return sizes, units and channel names of an image; nothing where it is not clear whose.

        Parameters
        ----------
        index, n_images
            Number of the image, and of all that tifffile found.
        """
        if len(self.pixels) != n_images:
            return Calibration()
        attributes = self.pixels[index].attrib
        steps, units = {}, {}
        for axis, name, default in (
            ("X", "PhysicalSizeX", "um"),
            ("Y", "PhysicalSizeY", "um"),
            ("Z", "PhysicalSizeZ", "um"),
            ("T", "TimeIncrement", "s"),
        ):
            step = _positive(attributes.get(name))
            unit = unit_name(attributes.get(f"{name}Unit", default))
            if step is not None and unit is not None:
                steps[axis], units[axis] = step, unit
        names = [each.get("Name", "") for each in _children(self.pixels[index], "Channel")]
        return Calibration(steps=steps, units=units, channels=tuple(names) if all(names) else ())


def _children(element: ElementTree.Element, *path: str) -> Iterator[ElementTree.Element]:
    """Yield descendants by names without name space."""
    for child in element:
        if _name(child) == path[0]:
            if len(path) == 1:
                yield child
            else:
                yield from _children(child, *path[1:])


def _name(element: ElementTree.Element) -> str:
    """Return the name of an element without name space."""
    return element.tag.rpartition("}")[2]


def _check_one_file(root: ElementTree.Element, file_name: str) -> None:
    """Refuse documents that are elsewhere, or speak of other files."""
    if next(_children(root, "BinaryOnly"), None) is not None:
        raise ConversionError(
            "the OME metadata is in another file, which this one names. To fix: join them into one "
            "file, such as with bfconvert"
        )
    own = root.get("UUID")
    for uuid in _children(root, "Image", "Pixels", "TiffData", "UUID"):
        name = uuid.get("FileName", file_name)
        if uuid.text != own and name.lower() != file_name.lower():
            raise ConversionError(
                f"the image is spread over several OME-TIFF files, such as {name!r}. To fix: join "
                "them into one file, such as with bfconvert"
            )


def _check_planes(pixels: ElementTree.Element, n_pages: int) -> None:
    """Refuse counts that the pages of the file cannot make true."""
    sizes = {axis: _integer(pixels.get(f"Size{axis}")) for axis in "XYZCT"}
    channels = list(_children(pixels, "Channel"))
    samples = _integer(channels[0].get("SamplesPerPixel", "1")) if channels else 1
    planes = sizes["Z"] * sizes["C"] * sizes["T"]
    if planes > n_pages * samples:
        raise ConversionError(
            f"the OME-XML speaks of {planes} planes of {samples} samples, and the file has "
            f"{n_pages} pages: planes are missing"
        )
    for data in _children(pixels, "TiffData"):
        for key, value in data.attrib.items():
            if _integer(value, least=0) > max(n_pages, planes):
                raise ConversionError(
                    f"TiffData {key}={value!r} in the OME-XML, and the file has {n_pages} pages"
                )


def _check_labels(root: ElementTree.Element) -> None:
    """Refuse annotations that split an axis into more parts than any image has."""
    for element in root.iter():
        if "Start" not in element.attrib or not _name(element)[:-1].endswith("Along"):
            continue
        try:
            start, end, step = (
                float(element.get(key, default))
                for key, default in (("Start", ""), ("End", ""), ("Step", "1"))
            )
            count = (end - start) / step
        except (ArithmeticError, ValueError):
            count = math.inf
        if not abs(count) < _MOST_LABELS:
            raise ConversionError(f"{_name(element)} in the OME-XML has no sensible range")


def _integer(text: str | None, *, least: int = 1) -> int:
    """Return a count."""
    if text is None or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ConversionError(f"{text!r} in the OME-XML where a count is needed")
    if int(text) < least:
        raise ConversionError(f"{text!r} in the OME-XML where at least {least} is needed")
    return int(text)


def _positive(text: str | None) -> float | None:
    """Return a finite positive number, or None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
