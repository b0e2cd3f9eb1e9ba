"""The door to nibabel: a NIfTI header as the bytes of its file, and what they say."""

from __future__ import annotations

import base64
import binascii
import logging
import math
import struct
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlarray_xr.errors import ConversionError, MissingDependencyError, MlaWarning
from mlarray_xr.foreign.positions import EvenAxis

if TYPE_CHECKING:
    import io
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mlarray_xr.format.metadata import Json

__all__ = ["TIME_UNITS", "NiftiHeader", "plan_header", "spatial_names"]

TIME_UNITS = ("s", "ms", "us")
"""Units of the fourth axis when it is time; the others are Hz, ppm and rad/s."""

_UNITS = {1: "m", 2: "mm", 3: "um", 8: "s", 16: "ms", 24: "us", 32: "Hz", 40: "ppm", 48: "rad/s"}
_UNIT_CODES: dict[str | None, int] = {unit: code for code, unit in _UNITS.items()}
_SPACE_BITS, _TIME_BITS = 0b000111, 0b111000

_SIZES = (348, 540)
_MAGIC_AT = {348: 344, 540: 4}
_OFFSET_FIELD = {348: ("f", 108), 540: ("q", 168)}
_VERSION = {348: b"1", 540: b"2"}
_ALIGNMENT = 16
_MAX_EXTENSION_BYTES = 1 << 20
_MAX_NDIM = 7
_MAX_SIZE = 2**59
_MAX_NIFTI1_EXTENT = 32767
_EXTENDED_PRECISION = (1536, 2048)
_ALIGNED_ANATOMY = 2
_FATAL = 40
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NiftiHeader:
    """A NIfTI-1 or NIfTI-2 header, of one file or of a pair, byte for byte.

    Parameters
    ----------
    block
        The 348 or 540 bytes of the header.
    extensions
        What follows it: up to the voxels in a single file, up to its end in an ``.hdr``. None when
        that was too long to be kept.

    Raises
    ------
    ConversionError
        When the bytes are no NIfTI header or a broken one.
    MissingDependencyError
        When nibabel is not installed.
    """

    block: bytes
    extensions: bytes | None
    parsed: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Parse the bytes."""
        object.__setattr__(self, "parsed", _parse(self.block))

    @classmethod
    def read(cls, file: io.BufferedIOBase, *, single: bool) -> NiftiHeader:
        """Read header and extensions from the start of a file.

        Parameters
        ----------
        file
            Open for reading, decompressed.
        single
            Whether the name of the file says that the voxels follow in it.

        Raises
        ------
        ConversionError
            When there is no such header.

        Warns
        -----
        MlaWarning
            When the extensions are longer than 1 MiB and left out.
        """
        start = file.read(4)
        size = next((n for n in _SIZES if n in _both_orders(start)), 0)
        if not size:
            raise ConversionError("the file does not begin with a NIfTI header")
        header = cls(block=start + file.read(size - 4), extensions=None)
        if header.is_pair is single:
            kinds = ("one of a pair", "the only one")
            raise ConversionError(
                f"the header says that the file is {kinds[single ^ 1]}, its name that it is "
                f"{kinds[single]}. To fix: rename it"
            )
        longest = _MAX_EXTENSION_BYTES + 1
        wanted = longest if header.is_pair else min(header.voxel_offset - size, longest)
        extensions = file.read(wanted)
        if len(extensions) < longest:
            return cls(block=header.block, extensions=extensions)
        warnings.warn(
            f"the extensions of this NIfTI file exceed {_MAX_EXTENSION_BYTES} bytes and are left "
            "out; voxels and geometry are complete",
            MlaWarning,
            stacklevel=2,
        )
        return header

    @classmethod
    def from_json(cls, entry: object) -> NiftiHeader | None:
        """Read back what `to_json` returns; None when it is anything else."""
        try:
            block, extensions = entry["header"], entry["extensions"]  # type: ignore[index]
            if len(block) > 2 * max(_SIZES) or len(extensions or "") > 2 * _MAX_EXTENSION_BYTES:
                return None
            return cls(
                block=base64.b64decode(block, validate=True),
                extensions=None if extensions is None else base64.b64decode(extensions),
            )
        except (binascii.Error, ConversionError, KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> Json:
        """Return the bytes as plain data."""
        extensions = self.extensions
        return {
            "header": base64.b64encode(self.block).decode("ascii"),
            "extensions": (
                None if extensions is None else base64.b64encode(extensions).decode("ascii")
            ),
        }

    def fields(self) -> Json:
        """Return every field of the header as plain data."""
        return {
            name: _plain(self.parsed.structarr[name]) for name in self.parsed.structarr.dtype.names
        }

    @property
    def is_pair(self) -> bool:
        """Whether the voxels are in a file of their own."""
        return self.block[_MAGIC_AT[len(self.block)] + 1] == ord("i")

    @property
    def voxel_offset(self) -> int:
        """Where the voxels start in their file, bytes."""
        offset = float(self.parsed["vox_offset"])
        least = 0 if self.is_pair else len(self.block)
        if not offset.is_integer() or offset < least:
            raise ConversionError(f"the voxels start at byte {offset}, which is no place for them")
        return int(offset)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, in the order of the indices i, j, k."""
        ndim = int(self.parsed["dim"][0])
        shape = tuple(map(int, self.parsed.get_data_shape()))
        size = math.prod(n for n in shape if n)
        if not 1 <= ndim <= _MAX_NDIM or min(shape) < 0 or size >= _MAX_SIZE:
            raise ConversionError(f"{ndim} dimensions of extents {shape} are no array")
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers, with the byte order of the file.

        Raises
        ------
        ConversionError
            For colours, single bits and extended precision, which other files do not hold.
        """
        code = int(self.parsed["datatype"])
        try:
            dtype: np.dtype[Any] = self.parsed.get_data_dtype()
        except KeyError:
            dtype = np.dtype(np.void)
        if dtype.kind not in "iufc" or code in _EXTENDED_PRECISION:
            raise ConversionError(
                f"voxels of type {code} ({dtype}) cannot be converted: integers, floats of at "
                "most 64 and complex numbers of at most 128 bits can. To fix: save it as these"
            )
        return dtype

    @property
    def affine(self) -> NDArray[np.float64]:
        """4x4, index (i, j, k) to RAS position: sform, else qform, else what nibabel makes up.

        Raises
        ------
        ConversionError
            When the numbers of the chosen form are broken.
        """
        try:
            return np.asarray(self.parsed.get_best_affine(), np.float64)
        except Exception as error:  # nibabel raises its own kind, directly below Exception
            raise ConversionError(f"the header holds no valid geometry: {error}") from error

    @property
    def space_unit(self) -> str | None:
        """Unit of positions, None where unknown."""
        return _UNITS.get(int(self.parsed["xyzt_units"]) & _SPACE_BITS)

    @property
    def time_axis(self) -> EvenAxis | None:
        """Positions along the fourth axis, None where the header does not tell."""
        start, step = float(self.parsed["toffset"]), float(self.parsed["pixdim"][4])
        if len(self.shape) <= 3 or step == 0 or not math.isfinite(step + start):
            return None
        return EvenAxis(start=start, step=step, unit=self.time_unit)

    @property
    def time_start(self) -> float:
        """Position of the first volume in the unit of time; 0 where there is none."""
        start = float(self.parsed["toffset"])
        return start if math.isfinite(start) else 0.0

    @property
    def slice_axis(self) -> int:
        """The axis along which slices follow one another; the third where the header is silent."""
        axis = self.parsed.get_dim_info()[2]
        return 2 if axis is None else int(axis)

    @property
    def time_unit(self) -> str | None:
        """Unit along the fourth axis, None where unknown."""
        return _UNITS.get(int(self.parsed["xyzt_units"]) & _TIME_BITS)

    @property
    def scaling(self) -> tuple[float, float] | None:
        """Slope and intercept that turn stored numbers into values, None where there are none."""
        slope, inter = float(self.parsed["scl_slope"]), float(self.parsed["scl_inter"])
        is_valid = math.isfinite(slope) and math.isfinite(inter) and slope != 0
        return (slope, inter) if is_valid else None

    def leading_bytes(self, *, single: bool) -> tuple[bytes, int]:
        """Return what a file starts with, and where the voxels start in theirs.

        Unchanged where the kind of file is the same; otherwise magic and offset are adjusted.

        Parameters
        ----------
        single
            Whether the voxels follow in the same file.
        """
        size, kept = len(self.block), self.extensions
        if kept is not None and single is not self.is_pair:
            is_whole = self.is_pair or self.parsed["vox_offset"] == size + len(kept)
            if is_whole:
                return self.block + kept, self.voxel_offset
        following = kept if kept and len(kept) >= 4 else bytes(4)
        offset = 0
        if single:
            offset = -(-(size + len(following)) // _ALIGNMENT) * _ALIGNMENT
            following = following.ljust(offset - size, b"\0")
        kind, position = _OFFSET_FIELD[size]
        block = bytearray(self.block)
        block[_MAGIC_AT[size] + 1] = ord("+" if single else "i")
        struct.pack_into(self.parsed.endianness + kind, block, position, offset)
        return bytes(block) + following, offset


def plan_header(
    *,
    base: NiftiHeader | None,
    shape: Sequence[int],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    space_unit: str | None,
    time_axis: EvenAxis | None,
    scaling: tuple[float, float] | None,
) -> NiftiHeader:
    """Make a header for an array; what the arguments do not say is taken from `base`.

    sform and qform get the affine (the qform without shears, with code 0 if there are any) under
    the code of the base, 2 ("aligned") without one. NIfTI-2 where NIfTI-1 cannot hold an extent.

    Raises
    ------
    ConversionError
        When NIfTI has no such type or shape.
    """
    size = 540 if max(shape) > _MAX_NIFTI1_EXTENT else len(base.block) if base else 348
    endianness = dtype.str[0] if dtype.str[0] in "<>" else "<"
    if base is not None and len(base.block) == size:
        parsed = base.parsed.as_byteswapped(endianness)
    else:
        parsed = _header_class(size, is_pair=False)(endianness=endianness)
    codes = [int(base.parsed[name]) for name in ("sform_code", "qform_code")] if base else []
    code = next((code for code in codes if code > 0), _ALIGNED_ANATOMY)
    try:
        parsed.set_data_dtype(dtype)
        parsed.set_data_shape(tuple(shape))
        parsed.set_qform(affine, code)
        parsed.set_sform(affine, code)
        if not np.allclose(parsed.get_qform(), affine, rtol=1e-4, atol=1e-4):
            parsed["qform_code"] = 0
    except Exception as error:  # nibabel raises its own kind, directly below Exception
        raise ConversionError(
            f"NIfTI cannot hold an array of shape {tuple(shape)} and type {dtype}: {error}. "
            "To fix: convert with .astype(...) or write fewer dimensions"
        ) from error
    time_unit = None if time_axis is None else time_axis.unit
    parsed["xyzt_units"] = _UNIT_CODES.get(space_unit, 0) + _UNIT_CODES.get(time_unit, 0)
    parsed["toffset"] = 0 if time_axis is None else time_axis.start
    if time_axis is not None:
        parsed["pixdim"][4] = time_axis.step
    parsed["scl_slope"], parsed["scl_inter"] = scaling or (1, 0)
    return NiftiHeader(block=parsed.binaryblock, extensions=base.extensions if base else b"")


def spatial_names(affine: NDArray[np.float64]) -> tuple[str, str, str]:
    """Name each voxel axis after the world axis it mostly runs along; x, y, z when ambiguous."""
    from nibabel.orientations import io_orientation

    try:
        with np.errstate(all="ignore"):
            along = io_orientation(affine)[:, 0].tolist()
    except np.linalg.LinAlgError:
        return ("x", "y", "z")
    if sorted(along) != [0, 1, 2]:
        return ("x", "y", "z")
    first, second, third = ("xyz"[int(axis)] for axis in along)
    return (first, second, third)


def _parse(block: bytes) -> Any:
    """Return nibabel's header, with what nibabel repairs on loading repaired."""
    size = len(block)
    if size not in _SIZES:
        raise ConversionError(f"the header ends after {size} bytes: the file is truncated")
    at = _MAGIC_AT[size]
    magic = block[at : at + 3]
    if magic not in (b"n+" + _VERSION[size], b"ni" + _VERSION[size]):
        raise ConversionError(
            f"the header says {magic!r} where NIfTI says 'n+1', 'ni1', 'n+2' or 'ni2': Analyze 7.5 "
            "and its relatives do not say where left is. To fix: convert to NIfTI, and check it"
        )
    kind = _header_class(size, is_pair=magic[1:2] == b"i")
    try:
        parsed = kind(binaryblock=block, check=False)
        parsed.check_fix(logger=_logger, error_level=_FATAL)
    except Exception as error:  # nibabel raises its own kind, directly below Exception
        raise ConversionError(f"the NIfTI header is broken: {error}") from error
    return parsed


def _header_class(size: int, *, is_pair: bool) -> Any:
    """Return nibabel's class for a header of that size."""
    try:
        from nibabel import nifti1, nifti2
    except ImportError as error:
        raise MissingDependencyError(
            "NIfTI files need nibabel, which is not installed. "
            'To fix: pip install "mlarray-xr[nifti]"'
        ) from error
    if size == 348:
        return nifti1.Nifti1PairHeader if is_pair else nifti1.Nifti1Header
    return nifti2.Nifti2PairHeader if is_pair else nifti2.Nifti2Header


def _both_orders(start: bytes) -> tuple[int, ...]:
    """Return four bytes as an integer of either byte order."""
    return tuple(int.from_bytes(start, order) for order in ("little", "big"))


def _plain(value: NDArray[Any]) -> Any:
    """Return one header field as plain data."""
    found = value.tolist()
    return found.rstrip(b"\0").decode("latin-1") if isinstance(found, bytes) else found
