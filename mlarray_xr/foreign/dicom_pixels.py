"""The pixel data of one DICOM file: their format, where they lie, and one frame decoded."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaError
from mlarray_xr.foreign.codestream import check_expansion, claimed_pixels

if TYPE_CHECKING:
    from io import FileIO

    from numpy.typing import NDArray

    from mlarray_xr.storage.source import LocalSource

__all__ = ["BoundedFile", "PixelData", "PixelFormat"]

_FLOATS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
_MOST_SIDE = (1 << 16) - 1
_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_MOST_FRAMES = 1 << 18
_MOST_FRAGMENTS = 1 << 22
_UNDEFINED = 0xFFFFFFFF


class BoundedFile(io.BufferedReader):
    """A file of which nobody reads more at once than it has, nor all of it without saying so.

    pydicom reads as many bytes as a header claims, and inflates whole files before it looks.
    """

    def __init__(self, raw: FileIO, *, size: int) -> None:
        super().__init__(raw)
        self._size = size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most `size` bytes; without a number it is the rest of a deflated file."""
        if size is None or size < 0:
            raise ConversionError(
                "the file is deflated as a whole, and is not read: its true size cannot be known. "
                "To fix: write it uncompressed, such as with dcmconv +te"
            )
        return super().read(min(size, self._size))


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelFormat:
    """Size and type of the frames of one file, as group 0028 states them (PS3.3 C.7.6.3).

    Raises
    ------
    ConversionError
        When the numbers make no sense together, or samples do not lie in the low bits.

    Examples
    --------
    >>> ct = PixelFormat(
    ...     rows=512, columns=512, bits_allocated=16, bits_stored=12, high_bit=11, is_signed=True
    ... )
    >>> ct.dtype, ct.frame_shape
    (dtype('int16'), (512, 512))
    """

    rows: int
    """Rows of a frame."""
    columns: int
    """Columns of a frame."""
    samples: int = 1
    """Samples per pixel: 1, or 3 of a colour."""
    planar: int = 0
    """Whether the samples of a pixel are apart in the file."""
    bits_allocated: int
    """Bits that a sample takes."""
    bits_stored: int
    """Bits of them that count, the lowest ones."""
    high_bit: int
    """Number of the highest bit that counts."""
    is_signed: bool
    """Pixel Representation."""
    photometric: str = "MONOCHROME2"
    """Photometric Interpretation in the file."""
    keyword: str = "PixelData"
    """Name of the element that holds the pixels."""

    def __post_init__(self) -> None:
        """Check that the numbers agree."""
        is_float = self.keyword in _FLOATS
        sides_fit = all(1 <= side <= _MOST_SIDE for side in (self.rows, self.columns))
        bits_fit = self.bits_allocated in {1, 8, 16, 32, 64}
        if not is_float:
            bits_fit &= 1 <= self.bits_stored <= self.bits_allocated
        if not sides_fit or not bits_fit or self.samples not in (1, 3):
            raise ConversionError(f"these numbers describe no pixels: {self}")
        if not is_float and self.high_bit != self.bits_stored - 1:
            raise ConversionError(
                f"the {self.bits_stored} bits of a sample end at bit {self.high_bit}, not at "
                f"{self.bits_stored - 1}: they are not the lowest ones, and are not read"
            )

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the samples, native byte order; bits become uint8."""
        if self.keyword in _FLOATS:
            return np.dtype(_FLOATS[self.keyword])
        sign = "i" if self.is_signed else "u"
        return np.dtype(f"{sign}{max(self.bits_allocated // 8, 1)}")

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Shape of a frame: rows, columns, and samples where there are several."""
        return (self.rows, self.columns) + (() if self.samples == 1 else (self.samples,))

    @property
    def is_colour(self) -> bool:
        """Whether pixels have three samples."""
        return self.samples == 3

    def stored_bytes(self, n_frames: int) -> int:
        """Return what frames take in a file without compression, bytes."""
        bits = math.prod(self.frame_shape) * self.bits_allocated * n_frames
        # PS3.3 C.7.6.3.1.2: two pixels share their two colour differences.
        return -(-(bits * 2 // 3 if self.photometric == "YBR_FULL_422" else bits) // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelData:
    """Where the frames of one file lie."""

    source: LocalSource
    """The file."""
    format: PixelFormat
    """Size and type of a frame."""
    n_frames: int
    """Number of frames, at most 2**18: none of them is free to list."""
    transfer_syntax: str
    """UID of the encoding."""
    offset: int
    """Position of the value of the pixel data element."""
    length: int
    """Stated bytes of the value; 0xFFFFFFFF where fragments follow."""
    vr: str
    """Value representation of the element."""
    offset_table: tuple[bytes, bytes] | None = None
    """The extended offset table and its lengths, as stored."""

    def check(self, file: BoundedFile) -> None:
        """Check, without decoding, that all frames can be there.

        Raises
        ------
        ConversionError
            When the file is too short, or its encoding is not read.
        MissingDependencyError
            When no installed package decodes it.
        """
        decoder = _decoder(self.transfer_syntax)
        if not 1 <= self.n_frames <= _MOST_FRAMES:
            raise ConversionError(f"{self.n_frames} frames, where 1 to {_MOST_FRAMES} are read")
        if not decoder.is_encapsulated:
            wanted = self.format.stored_bytes(self.n_frames)
            there = min(self.length, self.source.size - self.offset)
            if self.length == _UNDEFINED or wanted > there:
                raise ConversionError(
                    f"{self.n_frames} frames of {self.format.frame_shape} need {wanted} bytes, and "
                    f"{max(there, 0)} are there: the file is truncated or damaged"
                )
            return
        if self.length != _UNDEFINED:
            raise ConversionError("compressed pixel data in one piece, where fragments are needed")
        n_fragments = self._count_fragments(file)
        if n_fragments < self.n_frames:
            raise ConversionError(
                f"{n_fragments} fragments cannot hold {self.n_frames} frames: the file is "
                "truncated or damaged"
            )

    def read(self, index: int) -> NDArray[Any]:
        """Read and decode one frame; colours as RGB.

        Raises
        ------
        ConversionError
            When it cannot be decoded.
        SourceChanged
            When the file changed since it was opened.
        """
        where = f"{self.source.path}: frame {index}"
        try:
            with BoundedFile(self.source.open(), size=self.source.size) as file:
                file.seek(self.offset)
                values = self._decoded(file, index)
        except ConversionError as error:
            raise ConversionError(f"{where}: {error}") from error
        except MlaError:
            raise
        except Exception as error:  # every decoder has errors of its own
            raise ConversionError(f"{where} cannot be decoded: {error}") from error
        if (values.shape, values.dtype) != (self.format.frame_shape, self.format.dtype):
            raise ConversionError(
                f"{where} decodes to {values.shape} of {values.dtype}, and the header says "
                f"{self.format.frame_shape} of {self.format.dtype}"
            )
        return values

    def _decoded(self, file: BoundedFile, index: int) -> NDArray[Any]:
        """Decode a frame of an open file."""
        from pydicom.encaps import encapsulate, get_frame

        stream: io.BufferedIOBase = file
        decoder, n_frames = _decoder(self.transfer_syntax), self.n_frames
        if decoder.is_encapsulated:
            data = get_frame(
                file, index, number_of_frames=n_frames, extended_offsets=self.offset_table
            )
            pixels = max(self.format.rows * self.format.columns, claimed_pixels(data) or 0)
            pixel_bytes = self.format.samples * self.format.dtype.itemsize
            check_expansion(pixels * pixel_bytes, encoded_bytes=len(data))
            stream, index, n_frames = io.BytesIO(encapsulate([data], has_bot=False)), 0, 1
        values, _ = decoder.as_array(
            stream,
            index=index,
            rows=self.format.rows,
            columns=self.format.columns,
            samples_per_pixel=self.format.samples,
            planar_configuration=self.format.planar,
            bits_allocated=self.format.bits_allocated,
            bits_stored=self.format.bits_stored,
            pixel_representation=int(self.format.is_signed),
            photometric_interpretation=self.format.photometric,
            number_of_frames=n_frames,
            pixel_keyword=self.format.keyword,
            pixel_vr=self.vr,
        )
        decoded: NDArray[Any] = values.astype(values.dtype.newbyteorder("="), copy=False)
        return decoded

    def _count_fragments(self, file: BoundedFile) -> int:
        """Walk over the fragments, which must be whole (PS3.5 A.4); the first is a table."""
        at, count = self.offset, -1
        while count < _MOST_FRAGMENTS:
            file.seek(at)
            head = file.read(8)
            # Files that just end after a whole fragment are common enough.
            if not head and count > 0:
                return count
            if len(head) < 8:
                break
            group, element, length = struct.unpack("<HHL", head)
            tag = group << 16 | element
            if tag == _END:
                return count
            if tag != _ITEM or at + 8 + length > self.source.size:
                break
            at, count = at + 8 + length, count + 1
        raise ConversionError(
            f"the compressed pixel data break off at byte {at} of {self.source.size}: the file is "
            "truncated or damaged"
        )


def _decoder(transfer_syntax: str) -> Any:
    """Return pydicom's decoder of an encoding."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    name = UID(transfer_syntax).name
    try:
        decoder = get_decoder(transfer_syntax)
    except NotImplementedError as error:
        raise ConversionError(f"pixels encoded as {name} are not read") from error
    if not decoder.is_available:
        raise MissingDependencyError(
            f"pixels encoded as {name} need one of these, none of which is installed: "
            f"{'; '.join(decoder.missing_dependencies)}. To fix: install one, such as with pip "
            "install python-gdcm"
        )
    return decoder
