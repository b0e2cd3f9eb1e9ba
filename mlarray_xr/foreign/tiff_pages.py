"""The pages of one TIFF image: where their strips and tiles lie, and how a box is read."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, MissingDependencyError
from mlarray_xr.foreign.codestream import check_expansion, claimed_pixels

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from tifffile import TiffPage, TiffPageSeries

    from mlarray_xr.planning.grid import Box

__all__ = ["PageTable"]

_PAGE_AXES = 5
"""tifffile's normal form of a page: planar samples, depth, rows, columns, interleaved samples."""

Extents = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PageTable:
    """Addresses of all parts of one image in one file: plain values, no open file.

    Examples
    --------
    >>> import numpy as np, tifffile
    >>> tifffile.imwrite("a.tif", np.arange(24, dtype="u2").reshape(2, 3, 4))
    >>> with open("a.tif", "rb") as file, tifffile.TiffFile(file) as tiff:
    ...     table = PageTable.of(tiff.series[0], file_bytes=440)
    ...     table.read(file, ((1, 2), (0, 2), (3, 4)))
    array([[[15],
            [19]]], dtype=uint16)
    """

    shape: tuple[int, ...]
    """Extents of the image: those that count pages, then those of a page."""
    dtype: np.dtype[Any]
    """Type of the elements, native byte order."""
    n_leading: int
    """How many axes of `shape` count pages."""
    page: Extents
    """Shape of a page in tifffile's normal form."""
    segment: Extents
    """Shape of a strip or tile in the same form; one planar sample, all interleaved ones."""
    offsets: NDArray[np.int64]
    """Position in the file, (pages, segments); (pages, 1) for plain pages."""
    counts: NDArray[np.int64]
    """Stored bytes, same shape."""
    stored_dtype: np.dtype[Any] | None
    """Type in the file where pages are plain: not compressed, each in one piece; else None."""
    decode: Callable[..., Any]
    """tifffile's decoder of a segment; keeps no file open."""
    jpeg_tables: tuple[bytes | None, ...]
    """Per page, the tables that its JPEG segments share; empty where there are none."""
    jpeg_header: bytes | None
    """What precedes each JPEG segment of Hamamatsu files."""
    nodata: float
    """What segments that were never written are filled with: GDAL's, or 0."""

    @classmethod
    def of(cls, series: TiffPageSeries, *, file_bytes: int) -> PageTable:
        """Collect the addresses of a series, or of one level of it.

        Raises
        ------
        ConversionError
            When pages are missing or elsewhere, do not make up the shape, or reach beyond the file.
        MissingDependencyError
            When the compression needs imagecodecs.
        """
        keyframe = series.keyframe
        if keyframe.dtype is None or series.transform is not None:
            raise ConversionError(
                f"samples of {keyframe.bitspersample} bits and format {keyframe.sampleformat} are "
                "not read"
            )
        shape, page = tuple(map(int, series.shape)), _extents(keyframe.shaped)
        n_leading = _leading_axes(shape, page)
        plain_start = series.dataoffset
        n_pages = math.prod(shape[:n_leading])
        if plain_start is None:
            pages = _pages(series, n_pages)
            offsets, counts = _addresses(pages)
            is_plain = keyframe.is_final and _is_in_one_piece(offsets, counts)
            tables = tuple(each.jpegtables for each in pages)
        else:
            size = math.prod(page) * keyframe.dtype.itemsize
            _check_end(plain_start + size * n_pages, file_bytes)
            offsets = (plain_start + size * np.arange(n_pages, dtype=np.int64))[:, np.newaxis]
            counts, is_plain, tables = np.full_like(offsets, size), True, ()
        if is_plain:
            offsets, counts = offsets[:, :1], counts.sum(axis=1, keepdims=True)
        table = cls(
            shape=shape,
            dtype=keyframe.dtype.newbyteorder("="),
            n_leading=n_leading,
            page=page,
            segment=page if is_plain else _segment(keyframe),
            offsets=offsets,
            counts=counts,
            stored_dtype=keyframe.dtype.newbyteorder(keyframe.parent.byteorder)
            if is_plain
            else None,
            decode=keyframe.decode,
            jpeg_tables=tables if any(tables) else (),
            jpeg_header=keyframe.jpegheader,
            nodata=keyframe.nodata,
        )
        table._check(file_bytes)
        return table

    def read(self, file: io.BufferedIOBase, box: Box) -> NDArray[Any]:
        """Read a box, one (start, stop) per axis of `shape`, from the file the table was made of.

        Raises
        ------
        ConversionError
            When a part of it is damaged.
        """
        lengths = [stop - start for start, stop in box]
        out = np.empty(lengths, self.dtype)
        if out.size == 0:
            return out
        leading, inner = box[: self.n_leading], self._page_box(box[self.n_leading :])
        parts = out.reshape((-1, *(stop - start for start, stop in inner)))
        pages = itertools.product(*(range(start, stop) for start, stop in leading))
        if self.stored_dtype is not None:
            for at, part in zip(pages, parts, strict=True):
                self._copy_plain(file, self._page_number(at), inner, part)
            return out
        for at, part in zip(pages, parts, strict=True):
            self._decode_page(file, self._page_number(at), inner, part)
        return out

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape, along the axes of `shape`, of what is decoded at once."""
        sizes = iter([step for step, n in zip(self.segment, self.page, strict=True) if n != 1])
        inner = (next(sizes) if n != 1 else 1 for n in self.shape[self.n_leading :])
        return (*(1,) * self.n_leading, *inner)

    @property
    def _grid(self) -> Extents:
        """How many segments a page has along each of its axes."""
        pairs = zip(self.page, self.segment, strict=True)
        return _extents([-(-n // step) for n, step in pairs])

    def _check(self, file_bytes: int) -> None:
        """Refuse addresses that are too few, lie outside the file or cannot be decoded."""
        wanted = 1 if self.stored_dtype is not None else math.prod(self._grid)
        if self.offsets.shape[1] != wanted:
            raise ConversionError(
                f"a page has {self.offsets.shape[1]} strips or tiles where its size needs {wanted}"
            )
        with np.errstate(over="ignore"):
            outside = (self.offsets < 0) | (self.counts < 0)
            outside |= self.offsets > file_bytes - self.counts
        outside |= (self.offsets == 0) != (self.counts == 0)
        if self.stored_dtype is not None:
            nbytes = math.prod(self.page) * self.dtype.itemsize
            outside |= (self.counts < nbytes) | (self.offsets == 0)
        if outside.any():
            page, segment = np.argwhere(outside)[0].tolist()
            offset, count = (int(a[page, segment]) for a in (self.offsets, self.counts))
            raise ConversionError(
                f"page {page}, part {segment} lies at bytes {offset} to {offset + count} of a file "
                f"of {file_bytes}: it is truncated or damaged"
            )
        try:
            self.decode(None, 0)
        except Exception as error:  # tifffile says so in several ways
            if "imagecodecs" in str(error):
                raise MissingDependencyError(
                    f"this compression needs imagecodecs ({error}). To fix: pip install "
                    "'mlarray-xr[tiff]'"
                ) from error
            raise ConversionError(f"this kind of TIFF is not read: {error}") from error

    def _page_number(self, at: Sequence[int]) -> int:
        """Return the page that an index into the leading axes means."""
        return int(np.ravel_multi_index(at, self.shape[: self.n_leading])) if at else 0

    def _page_box(self, box: Box) -> Box:
        """Express a box of the axes of a page in tifffile's normal form."""
        ranges = iter(
            [pair for pair, n in zip(box, self.shape[self.n_leading :], strict=True) if n != 1]
        )
        return tuple(next(ranges) if n != 1 else (0, 1) for n in self.page)

    def _copy_plain(self, file: io.BufferedIOBase, page: int, box: Box, out: NDArray[Any]) -> None:
        """Copy a box of a plain page out of the whole rows that it touches.

        Not mapped: a map of a cold file read ten rows of each page with 1.1 GB of read-ahead.
        """
        planar, depth, (first, last), columns, samples = box
        rows = np.empty((last - first, *self.page[3:]), self.stored_dtype)
        row_bytes = rows[:1].nbytes
        for i, j in itertools.product(range(*planar), range(*depth)):
            row = (i * self.page[1] + j) * self.page[2] + first
            file.seek(int(self.offsets[page, 0]) + row * row_bytes)
            if file.readinto(rows.data) < rows.nbytes:
                raise ConversionError(f"the file ends inside page {page}")
            out[i - planar[0], j - depth[0]] = rows[:, slice(*columns), slice(*samples)]

    def _decode_page(self, file: io.BufferedIOBase, page: int, box: Box, out: NDArray[Any]) -> None:
        """Decode the segments of a page that a box touches, each once, and copy what is asked."""
        for number, at in self._touched(box):
            values = self._decoded(file, page, number)
            starts = [i * step for i, step in zip(at, self.segment, strict=True)]
            overlap = [
                (max(first, start), min(last, start + step, n))
                for (first, last), start, step, n in zip(
                    box, starts, self.segment, self.page, strict=True
                )
            ]
            target = tuple(
                slice(a - first, b - first) for (a, b), (first, _) in zip(overlap, box, strict=True)
            )
            wanted = tuple(
                slice(a - start, b - start) for (a, b), start in zip(overlap, starts, strict=True)
            )
            if values is None:
                out[target] = self.nodata
                continue
            found = values[wanted]
            if found.shape != out[target].shape:
                raise ConversionError(
                    f"page {page}, part {number} holds {values.shape[1:]} samples, too few for "
                    f"{tuple(b - a for a, b in overlap)[1:]}: it is damaged"
                )
            out[target] = found

    def _touched(self, box: Box) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield number and grid position of the segments that a box of a page touches."""
        ranges = [
            range(first // step, -(-last // step))
            for (first, last), step in zip(box, self.segment, strict=True)
        ]
        for at in itertools.product(*ranges):
            yield int(np.ravel_multi_index(at, self._grid)), at

    def _decoded(self, file: io.BufferedIOBase, page: int, number: int) -> NDArray[Any] | None:
        """Read and decode one segment; None for one that was never written."""
        offset, count = int(self.offsets[page, number]), int(self.counts[page, number])
        if count == 0:
            return None
        where = f"page {page}, part {number}"
        file.seek(offset)
        data = file.read(count)
        pixel_bytes = self.page[-1] * self.dtype.itemsize
        claimed = max(math.prod(self.segment[:-1]), claimed_pixels(data) or 0)
        check_expansion(claimed * pixel_bytes, encoded_bytes=count)
        options: dict[str, Any] = {}
        if self.jpeg_tables:
            options["jpegtables"] = self.jpeg_tables[page]
        if self.jpeg_header is not None:
            options["jpegheader"] = self.jpeg_header
        try:
            values, _, _ = self.decode(data, number, **options)
        except Exception as error:  # every codec has errors of its own
            raise ConversionError(f"{where} cannot be decoded: {error}") from error
        if values.dtype != self.dtype:
            if not (values.dtype == np.uint8 and self.dtype == np.bool_):
                raise ConversionError(f"{where} decodes to {values.dtype}, not {self.dtype}")
            values = values.astype(bool)
        decoded: NDArray[Any] = values[np.newaxis]
        return decoded


def _extents(sizes: Sequence[int]) -> Extents:
    """Return five sizes as Python integers."""
    first, second, third, fourth, fifth = map(int, sizes)
    return first, second, third, fourth, fifth


def _leading_axes(shape: tuple[int, ...], page: Extents) -> int:
    """Return how many axes of an image count its pages; the others are those of a page."""
    wanted = [n for n in page if n != 1]
    for n_leading in range(len(shape) + 1):
        if [n for n in shape[n_leading:] if n != 1] == wanted:
            return n_leading
    raise ConversionError(
        f"the image is said to be {shape}, and its pages are {page}: an axis would run across "
        "pages and rows"
    )


def _check_end(end: int, file_bytes: int) -> None:
    """Refuse pages in one piece that go on after the end of the file."""
    if end > file_bytes:
        raise ConversionError(
            f"the pages reach to byte {end} of a file of {file_bytes}: it is truncated or damaged"
        )


def _segment(keyframe: TiffPage) -> Extents:
    """Return the shape of a strip or tile in the normal form of a page."""
    _, _, _, columns, samples = keyframe.shaped
    if keyframe.is_tiled:
        sizes = (keyframe.tiledepth, keyframe.tilelength, keyframe.tilewidth)
    else:
        sizes = (1, keyframe.rowsperstrip, columns)
    if min(sizes) < 1:
        raise ConversionError(f"strips or tiles of {sizes} samples")
    return _extents((1, *sizes, samples))


def _pages(series: TiffPageSeries, n_pages: int) -> list[Any]:
    """Return the pages of a series; all must be there, in this file."""
    found = [page for page in series if page is not None]
    if len(found) != n_pages or len(series) != n_pages:
        raise ConversionError(
            f"{n_pages} pages make up {tuple(series.shape)}, and {len(found)} are in the file. To "
            "fix: write a complete file, such as with bfconvert"
        )
    if any(page.parent is not series.keyframe.parent for page in found):
        raise ConversionError("the image is spread over several files. To fix: join them")
    return found


def _addresses(pages: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions and sizes of all segments, (pages, segments) each."""
    try:
        offsets = np.array([page.dataoffsets for page in pages], np.int64)
        counts = np.array([page.databytecounts for page in pages], np.int64)
    except (OverflowError, ValueError) as error:
        raise ConversionError("the pages of the image have unlike strips or tiles") from error
    if offsets.shape != counts.shape or offsets.ndim != 2 or not offsets.shape[1]:
        raise ConversionError("the positions and sizes of strips or tiles differ in number")
    return offsets, counts


def _is_in_one_piece(offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
    """Tell whether the segments of each page follow one another without a gap."""
    return bool((offsets[:, 1:] == offsets[:, :-1] + counts[:, :-1]).all())
