"""convert: from one file format to another, by the names of the files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from mlarray_xr.array import MlaArray
from mlarray_xr.errors import ConversionError
from mlarray_xr.foreign.nifti import NIFTI_SUFFIXES, mla_to_nifti, nifti_to_mla
from mlarray_xr.planning.codec import DEFAULT_CODEC
from mlarray_xr.write import to_mla

if TYPE_CHECKING:
    from mlarray_xr.planning.codec import Codec
    from mlarray_xr.planning.layout import Sizes
    from mlarray_xr.report import WriteReport

__all__ = ["convert"]

_TARGET = ".mla"
_READABLE = (_TARGET, ".mb2nd", ".b2nd")


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    patch: Sizes | Literal["default"] | None = "default",
    chunks: Sizes | None = None,
    blocks: Sizes | None = None,
    codec: str | Codec = DEFAULT_CODEC,
    mode: Literal["w-", "w"] = "w-",
) -> WriteReport | None:
    """Convert a file to the format that the name of the target asks for.

    NIfTI (``.nii``, ``.nii.gz``, ``.hdr``/``.img``) becomes `.mla` and back, with every voxel and
    the header bit for bit. An `.mla` file, or an ``.mb2nd`` or ``.b2nd`` of an earlier time,
    becomes an `.mla` file of another layout or codec. Voxels are never scaled, cast or reordered.

    Parameters
    ----------
    src, dst
        Local paths; their suffixes tell the formats.
    patch, chunks, blocks, codec
        Layout and compression of an `.mla` target, as in `to_mla`.
    mode
        ``"w-"`` refuses an existing target, ``"w"`` replaces it. Replacing the source is safe.

    Returns
    -------
    WriteReport or None
        None when the target is no `.mla` file.

    Raises
    ------
    ConversionError
        When there is no way between the two formats, or the target cannot hold the source.
    FileNotFoundError, FileExistsError
        When the source is missing, or the target exists and `mode` is ``"w-"``.
    GeometryError
        When NIfTI needs to know where the voxels are, and the source does not say.

    Examples
    --------
    >>> import numpy as np, mlarray_xr
    >>> _ = mlarray_xr.to_mla(np.zeros((32, 64, 64), "int16"), "scan.mla")
    >>> report = mlarray_xr.convert("scan.mla", "small.mla", chunks=32, codec="zstd-1")
    >>> report.n_chunks, str(report.codec)
    (4, 'zstd-1')
    """
    source, target = _suffix(src), _suffix(dst)
    if target == _TARGET and source in NIFTI_SUFFIXES:
        return nifti_to_mla(
            src, dst, patch=patch, chunks=chunks, blocks=blocks, codec=codec, mode=mode
        )
    if target == _TARGET and source in _READABLE:
        array = MlaArray(src)
        if not array.metadata.has_array:
            raise ConversionError(f"{os.fspath(src)}: the file holds metadata only, no array")
        return to_mla(array, dst, patch=patch, chunks=chunks, blocks=blocks, codec=codec, mode=mode)
    if target in NIFTI_SUFFIXES and source in _READABLE:
        if (patch, chunks, blocks, codec) != ("default", None, None, DEFAULT_CODEC):
            raise ConversionError(
                f"{os.fspath(dst)}: patch, chunks, blocks and codec were given, and a NIfTI file "
                "has none of them. To fix: leave them out"
            )
        mla_to_nifti(src, dst, mode=mode)
        return None
    raise ConversionError(
        f"{os.fspath(src)} -> {os.fspath(dst)}: no way from {source!r} to {target!r}. Ways there "
        f"are: {', '.join((*_READABLE, *NIFTI_SUFFIXES))} to {_TARGET}; {', '.join(_READABLE)} to "
        f"{', '.join(NIFTI_SUFFIXES)}"
    )


def _suffix(path: str | os.PathLike[str]) -> str:
    """Return the suffix that tells the format."""
    name = os.path.basename(os.fspath(path)).lower()
    known = (*NIFTI_SUFFIXES, *_READABLE)
    return next((s for s in known if name.endswith(s)), os.path.splitext(name)[1])
