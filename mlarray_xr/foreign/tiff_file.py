"""One TIFF file: which images it holds, and one of them as a lazy array."""

from __future__ import annotations

import io
import math
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError
from mlarray_xr.foreign.reopened import Reopened
from mlarray_xr.foreign.tiff_chain import count_pages
from mlarray_xr.foreign.tiff_metadata import Calibration, describe, imagej_calibration
from mlarray_xr.foreign.tiff_ome import OmeXml
from mlarray_xr.foreign.tiff_pages import PageTable
from mlarray_xr.planning.grid import check_box

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from tifffile import TiffFile, TiffPage, TiffPageSeries

    from mlarray_xr.format.metadata import Json, Metadata
    from mlarray_xr.storage.source import LocalSource

__all__ = ["TiffArray", "TiffImage", "read_image"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffImage:
    """One image of a file, or one level of a pyramid, before anything of its pixels is read."""

    name: str
    """How `dataset` names it: number of the image, and of the level where there are several."""
    table: PageTable
    """Where its pages lie."""
    axes: str
    """One tifffile letter per axis."""
    metadata: Metadata
    """Axis labels, geometry and coordinates."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TiffArray:
    """The pixels of one image in one file, read box by box; an address, no open file."""

    source: LocalSource
    """The file."""
    name: str
    """Name of the image."""
    shape: tuple[int, ...]
    """Extents, array order."""
    dtype: np.dtype[Any]
    """Type of the elements, native byte order."""
    chunks: tuple[int, ...]
    """Shape of what is decoded at once: a strip or tile of one page."""
    table: Reopened[PageTable] = field(repr=False)
    """Where the pages lie; each process finds it out for itself."""

    @classmethod
    def of(cls, image: TiffImage, source: LocalSource) -> TiffArray:
        """Return the array of an image that `read_image` found."""
        return cls(
            source=source,
            name=image.name,
            shape=image.table.shape,
            dtype=image.table.dtype,
            chunks=image.table.chunks,
            table=Reopened(partial(_read_table, source, image.name), value=image.table),
        )

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[Any]:
        """Return the elements of a box: one slice with start and stop per axis, no step.

        Raises
        ------
        IndexError
            When the box reaches outside the image.
        SourceChanged
            When the file changed since it was opened.
        ConversionError
            When a part of it is damaged.
        """
        box = check_box([(along.start, along.stop) for along in key], self.shape)
        with _named(self.source.path), io.BufferedReader(self.source.open()) as file:
            return self.table.get().read(file, box)

    def __dask_tokenize__(self) -> tuple[str | int, ...]:
        """Return an identity that is the same in every process and changes when the file does."""
        return ("mlarray_xr.TiffArray", *self.source.token, self.name)


def read_image(source: LocalSource, dataset: str | None) -> TiffImage:
    """Find the image, or the level of a pyramid, of this name in a file; None: the only one.

    Raises
    ------
    ConversionError
        When the file is damaged, no TIFF or spread over others, or there are several images and
        `dataset` names none of them.
    MissingDependencyError
        When tifffile or imagecodecs is needed and not installed.
    """
    with _named(source.path), _opened(source) as (tiff, n_pages):
        ome = _ome_xml(tiff, n_pages)
        series = tiff.series
        _check_kind(tiff, series)
        name, number, level = _choose(series, dataset)
        _check_declared(level)
        base = series[number]
        if ome is not None:
            calibration = ome.calibration(number, n_images=len(series))
        else:
            calibration = _imagej(tiff, base)
        return TiffImage(
            name=name,
            table=PageTable.of(level, file_bytes=source.size),
            axes=level.axes,
            metadata=describe(
                level.axes,
                level.shape,
                calibration=calibration,
                base_shape=base.shape if base.axes == level.axes else level.shape,
                source=_facts(level),
            ),
        )


def _choose(
    series: Sequence[TiffPageSeries], dataset: str | None
) -> tuple[str, int, TiffPageSeries]:
    """Return name, number of the image, and the image or the level of it that was asked for."""
    found = {}
    for number, base in enumerate(series):
        for at, level in enumerate(base.levels):
            name = f"{number}/{at}" if len(base.levels) > 1 else f"{number}"
            found[name] = (name, number, level)
    if not found:
        raise ConversionError("the TIFF file holds no image")
    if dataset is None and len(found) == 1:
        return next(iter(found.values()))
    if dataset is not None and dataset in found:
        return found[dataset]
    asked = "one must be chosen" if dataset is None else f"there is no {dataset!r}"
    listed = "".join(
        f"\n  dataset={name!r}: shape {level.shape} of {level.dtype}, axes {level.axes}"
        for name, _, level in found.values()
    )
    raise ConversionError(
        f"the file holds {len(found)} images or levels of a pyramid, and {asked}. To fix: pass one "
        f"of{listed}"
    )


def _read_table(source: LocalSource, name: str) -> PageTable:
    """Find the pages of an image again."""
    return read_image(source, name).table


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Say which file an error is about."""
    try:
        yield
    except (ConversionError, MissingDependencyError) as error:
        raise type(error)(f"{path}: {error}") from error


@contextmanager
def _opened(source: LocalSource) -> Iterator[tuple[TiffFile, int]]:
    """Open a TIFF file and nothing but this file; what tifffile raises becomes ConversionError.

    Yields the file and its number of pages.
    """
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise MissingDependencyError(
            "TIFF files need tifffile, which is not installed. "
            'To fix: pip install "mlarray-xr[tiff]"'
        ) from error
    name = os.path.basename(source.path)
    try:
        with io.BufferedReader(source.open()) as file:
            n_pages = count_pages(
                file, file_bytes=source.size, has_wide_offsets=name.lower().endswith(".ndpi")
            )
            file.seek(0)
            # Formats with pages in other files are left out: a file must not name what is read.
            with TiffFile(
                cast("Any", file), name=name, _multifile=False, is_mmstack=False, is_ndtiff=False
            ) as tiff:
                yield tiff, n_pages
    except MlaError:
        raise
    except Exception as error:  # tifffile meets damage with errors of many kinds
        raise ConversionError(f"not a TIFF file that can be read: {error!r}") from error


def _check_kind(tiff: TiffFile, series: Sequence[TiffPageSeries]) -> None:
    """Refuse what tifffile takes for plain pages because their description does not fit them."""
    kinds = {each.kind for each in series}
    for is_kind, name in ((tiff.is_ome, "ome"), (tiff.is_imagej, "imagej")):
        if is_kind and kinds and not kinds & {"shaped", "ome", name}:
            raise ConversionError(
                f"the {name} description does not fit the pages of the file: it is truncated or "
                "damaged"
            )


def _check_declared(level: TiffPageSeries) -> None:
    """Refuse fewer pages than the shape needs that tifffile wrote into the description."""
    from tifffile.tifffile import shaped_description_metadata

    text = level.keyframe.shaped_description if level.kind == "shaped" else None
    if text is not None:
        declared = shaped_description_metadata(text)["shape"]
        if math.prod(declared) != math.prod(level.get_shape(False)):
            raise ConversionError(
                f"the description says {tuple(declared)}, and the pages make up "
                f"{tuple(level.shape)}: the file is truncated or damaged"
            )


def _ome_xml(tiff: TiffFile, n_pages: int) -> OmeXml | None:
    """Return the checked OME-XML of a file that has one."""
    text = tiff.ome_metadata if tiff.is_ome else None
    if text is None:
        return None
    return OmeXml.parse(text, file_name=tiff.filename, n_pages=n_pages)


def _imagej(tiff: TiffFile, series: TiffPageSeries) -> Calibration:
    """Return the sizes of an ImageJ stack; nothing for other files."""
    description = tiff.imagej_metadata if series.kind == "imagej" else None
    if description is None:
        return Calibration()
    return imagej_calibration(description, per_unit=_per_unit(series.keyframe))


def _per_unit(page: TiffPage) -> tuple[float, float] | None:
    """Return the resolution tags: pixels per unit along X and Y."""
    found = [page.tags.valueof(name) for name in ("XResolution", "YResolution")]
    try:
        x, y = (numerator / denominator for numerator, denominator in found)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return x, y


def _facts(level: TiffPageSeries) -> dict[str, Json]:
    """Return what is kept of the file's own words: nothing that anybody typed in."""
    page = level.keyframe
    facts: dict[str, Json] = {"kind": level.kind}
    for name in ("photometric", "compression"):
        value: Any = getattr(page, name)
        facts[name] = getattr(value, "name", str(value)).lower()
    resolution = _per_unit(page)
    if resolution is not None:
        facts["pixels_per_unit_xy"] = list(resolution)
        unit: Any = page.tags.valueof("ResolutionUnit", 2)
        facts["resolution_unit"] = getattr(unit, "name", str(unit)).lower()
    return facts
